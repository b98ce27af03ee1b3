//! What a spawning thread sheds, once, so that its children do not inherit it.
//!
//! Fork and exec preserve more than descriptors and an environment (execve(2), credentials(7)): whoever started this process could
//! otherwise be seen in every child of it. Most of that belongs to a thread, and the threads that spawn are ours even in a process
//! that is not. What belongs to the process, or cannot be shed for good, the child sets itself (`child.rs`).
//!
//! Not shed: what confines (`no_new_privs`, seccomp, securebits, namespaces, hard limits). A child never gets more than its parent.

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::raw::{self, Answer};

/// Sheds what the calling thread inherited. A host that refuses one of these calls, as a container's seccomp filter may, refuses it
/// to the child too, so a refusal is no reason not to spawn.
pub(super) fn shed_inheritance() {
    const MPOL_DEFAULT: usize = 0;
    const IOPRIO_WHO_PROCESS: usize = 1;
    const IOPRIO_NONE: usize = 0;
    const PER_LINUX: usize = 0;
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    // More CPUs than a kernel can have (8,192); those that the cpuset does not allow are left out by the kernel.
    let all_cpus = [u8::MAX; 1024];
    let cpus = all_cpus.as_ptr().expose_provenance();
    ignore(call(libc::SYS_sched_setaffinity, [0, all_cpus.len(), cpus, 0, 0]));
    ignore(call(libc::SYS_set_mempolicy, [MPOL_DEFAULT, 0, 0, 0, 0]));
    ignore(call(libc::SYS_ioprio_set, [IOPRIO_WHO_PROCESS, 0, IOPRIO_NONE, 0, 0]));
    ignore(call(libc::SYS_personality, [PER_LINUX, 0, 0, 0, 0]));
    // Each child joins a keyring of its own. This is what it has where the quota on keys refuses it one.
    ignore(call(libc::SYS_keyctl, [KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0]));
    if rustix::process::geteuid().is_root() {
        // The thread's own, which libc would change for all threads. Root without capabilities keeps them.
        ignore(call(libc::SYS_setgroups, [0, 0, 0, 0, 0]));
    }
    shed_inheritable_capabilities();
}

/// Clears the capabilities that `exec` would hand down: the inheritable set and, with it, the ambient one.
fn shed_inheritable_capabilities() {
    let Ok(own) = rustix::thread::capabilities(None) else { return };
    if own.inheritable.is_empty() {
        return;
    }
    // To give up capabilities needs none.
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..own })
        .unwrap_or_default();
}

/// Calls the kernel with what is the calling thread's own.
fn call(number: libc::c_long, arguments: [usize; 5]) -> Answer {
    // SAFETY: the only pointer above is to memory that outlives its call and is read alone.
    #[allow(unsafe_code)]
    unsafe {
        raw::syscall(number, arguments)
    }
}

fn ignore(answer: Answer) {
    match answer {
        Ok(_) | Err(_) => {}
    }
}

//! What this process takes for itself, so that those whom it supervises cannot starve it: CPU, memory, the OOM killer's mercy.
//!
//! Each call says what the kernel answered; that a host does not offer one of them is no reason not to start. What children
//! must not inherit (the nice value, `oom_score_adj`) their spawn gives back; memory locks end with `exec`.

use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::thread::CapabilitySet;

use super::error::{KernelError, Result};

/// Gives the calling thread, and those that it starts from now on, this nice value.
///
/// # Errors
/// EPERM, EACCES: no CAP_SYS_NICE.
///
/// # Kernel
/// setpriority(2); on Linux a nice value is a thread's.
pub fn set_nice(nice: i8) -> Result<()> {
    let failed = |errno| {
        KernelError::new("setpriority", nice.to_string(), errno).hint("give it CAP_SYS_NICE, or Nice= in its unit")
    };
    rustix::process::setpriority_process(None, nice.into()).map_err(failed)
}

/// Gives this process's session this nice value among all sessions: where the scheduler groups tasks by session, a nice value
/// counts only within it. Does nothing where it does not, or where the session is not this process's own.
///
/// # Errors
/// EPERM: no CAP_SYS_NICE. EAGAIN: it was changed a moment ago.
///
/// # Kernel
/// 2.6.38, `CONFIG_SCHED_AUTOGROUP`; sched(7), "The autogroup feature".
pub fn set_session_nice(nice: i8) -> Result<()> {
    // A session that began outside this pid namespace has the number 0 here.
    let own = nix::unistd::Pid::this();
    if nix::unistd::getsid(None) != Ok(own) {
        return Ok(());
    }
    match std::fs::write("/proc/self/autogroup", nice.to_string()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(KernelError::from_io("write", "/proc/self/autogroup", &error))
        }
        _ => Ok(()),
    }
}

/// Keeps what this process has in memory there, and what it will have from its first use on. Nothing is read ahead.
///
/// What counts is the program's own text: where memory is short and there is no swap, it is the first to be dropped, and has
/// to be read back from a disk that everybody reads from.
///
/// # Errors
/// EPERM: no CAP_IPC_LOCK. (With a limit instead of the capability a later allocation could fail: then it is not tried.)
///
/// # Kernel
/// 4.4 (`MCL_ONFAULT`), mlock(2).
pub fn lock_memory() -> Result<()> {
    let failed = |errno| KernelError::new("mlockall", "this process", errno).hint("give it CAP_IPC_LOCK");
    if !rustix::thread::capabilities(None).map_err(failed)?.effective.contains(CapabilitySet::IPC_LOCK) {
        return Err(failed(Errno::PERM));
    }
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(failed)
}

/// Gives this process, and with it all that it starts, the kernel's usual choice of what is in a core dump.
///
/// # Errors
/// Those of procfs.
///
/// # Kernel
/// `/proc/self/coredump_filter`, core(5), "Controlling which mappings are written to the core dump".
pub fn reset_core_dumps() -> Result<()> {
    let file = "/proc/self/coredump_filter";
    std::fs::write(file, "0x33").or_else(|error| match error.kind() {
        // A kernel without core dumps.
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(KernelError::from_io("write", file, &error)),
    })
}

/// Has the OOM killer take others first: -1000 (never) to 1000. A value that is lower already stays.
///
/// # Errors
/// EPERM, EACCES: no CAP_SYS_RESOURCE.
///
/// # Kernel
/// proc_pid_oom_score_adj(5).
pub fn lower_oom_score(adj: i16) -> Result<()> {
    let file = "/proc/self/oom_score_adj";
    let failed = |error: std::io::Error| {
        KernelError::from_io("write", file, &error).hint("give it CAP_SYS_RESOURCE, or OOMScoreAdjust= in its unit")
    };
    let now = std::fs::read_to_string(file).map_err(failed)?.trim().parse::<i16>().unwrap_or(0);
    if now <= adj {
        return Ok(());
    }
    std::fs::write(file, adj.to_string()).map_err(failed)
}

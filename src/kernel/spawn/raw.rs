//! The kernel called by hand: what a child that borrows its parent's memory may do, and `clone3`.
//!
//! No libc function is called between `clone3` and `execve`: libc keeps state for each thread (errno, cancellation,
//! locks, cached ids), and the child runs with the thread state of its parent.

use std::arch::asm;
use std::ffi::c_void;

/// What a system call answered: a value, or the error number.
pub(super) type Answer = Result<usize, i32>;

/// The kernel's `struct clone_args`, version 2 (Linux 5.7).
#[repr(C)]
#[derive(Default)]
pub(super) struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

// Own constants: libc's are C ints, and those above 32 bits come out as 0.
pub(super) const CLONE_VM: u64 = 0x100;
pub(super) const CLONE_FILES: u64 = 0x400;
pub(super) const CLONE_PIDFD: u64 = 0x1000;
pub(super) const CLONE_VFORK: u64 = 0x4000;
pub(super) const CLONE_PARENT_SETTID: u64 = 0x10_0000;
pub(super) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
pub(super) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn answer(value: i64) -> Answer {
    // The kernel's own rule: -4095 to -1 is an error number.
    match i32::try_from(value) {
        Ok(error @ -4095..=-1) => Err(error.wrapping_neg()),
        // A 64-bit register on both machines.
        _ => Ok(usize::try_from(value.cast_unsigned()).unwrap_or(usize::MAX)),
    }
}

/// Calls the kernel.
///
/// # Safety
/// The arguments are what the call numbered `number` takes; its effects on memory and descriptors are the caller's.
#[allow(unsafe_code)]
pub(super) unsafe fn syscall(number: libc::c_long, arguments: [usize; 5]) -> Answer {
    let [a, b, c, d, e] = arguments;
    let value: i64;
    // SAFETY: the registers are those of the system call convention; the kernel clobbers what is named and nothing
    // else; what the call itself does is the caller's promise.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => value,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as u64 as i64 => value,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
    answer(value)
}

/// Makes a child that runs `child(argument)` on the stack that `args` names, and returns its pid in the parent.
///
/// To the compiler the block runs once: the child never leaves it, for `child` does not return.
///
/// # Safety
/// `args` describes a stack that nobody else uses until the child has executed a program or ended (`CLONE_VFORK` sees
/// to that); `child` upholds what a child in borrowed memory must: no allocation, no lock, no panic, no libc.
#[allow(unsafe_code)]
pub(super) unsafe fn clone3(args: &CloneArgs, child: extern "C" fn(*mut c_void) -> !, argument: *mut c_void) -> Answer {
    let value: i64;
    // SAFETY: in the parent the block is a plain system call. In the child all registers but the result and the stack
    // pointer are the parent's; the new stack is 16-byte aligned, which `call` expects, and the frame chain ends here.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => value,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") child,
            in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: as above; `blr` needs a 16-byte aligned stack pointer.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x21",
            "blr x20",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") std::ptr::from_ref(args).expose_provenance() as i64 => value,
            in("x1") size_of::<CloneArgs>(),
            in("x20") child,
            in("x21") argument,
            lateout("x30") _,
        );
    }
    answer(value)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("treeherd calls the kernel by hand when it spawns: x86_64 and aarch64 are known");

/// Ends the calling process with an exit code.
#[allow(unsafe_code)]
pub(super) fn exit(code: usize) -> ! {
    loop {
        // SAFETY: exit_group touches no memory, and does not return.
        if unsafe { syscall(libc::SYS_exit_group, [code, 0, 0, 0, 0]) }.is_ok() {
            std::hint::spin_loop();
        }
    }
}

/// A mask with every signal in it.
pub(super) const ALL_SIGNALS: u64 = u64::MAX;

/// Sets the calling thread's signal mask and returns the one before.
///
/// By hand and not through libc, which keeps two signals of its own unblocked.
#[allow(unsafe_code)]
pub(in crate::kernel) fn set_signal_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    let arguments = [
        libc::SIG_SETMASK.cast_unsigned() as usize,
        std::ptr::from_ref(&mask).expose_provenance(),
        std::ptr::from_mut(&mut before).expose_provenance(),
        size_of::<u64>(),
        0,
    ];
    // SAFETY: both pointers are to 8 bytes that live through the call, the size that the kernel expects.
    // It cannot fail with these arguments.
    match unsafe { syscall(libc::SYS_rt_sigprocmask, arguments) } {
        Ok(_) | Err(_) => before,
    }
}

/// A stack for children, with a guard page below it. Kept by a spawning thread and used by one child after another.
pub(super) struct Stack {
    lowest: *mut c_void,
}

impl Stack {
    const GUARD: usize = 64 << 10;
    /// 64 KiB: the child needs a few hundred bytes, a build without optimization a few thousand.
    pub(super) const SIZE: usize = 64 << 10;

    /// Maps a stack.
    #[allow(unsafe_code)]
    pub(super) fn new() -> rustix::io::Result<Self> {
        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
        let length = Self::GUARD + Self::SIZE;
        // SAFETY: a new private mapping at an address of the kernel's choice takes the place of nothing.
        let lowest = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let stack = Self { lowest };
        // SAFETY: the first pages of the mapping above, which nothing refers to. 64 KiB is whole pages on every machine.
        unsafe { mprotect(lowest, Self::GUARD, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    /// Returns the lowest address that a child may use.
    pub(super) fn usable(&self) -> u64 {
        self.lowest.expose_provenance() as u64 + Self::GUARD as u64
    }
}

impl Drop for Stack {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, and no child is on it: spawning returns after the child has left it.
        match unsafe { rustix::mm::munmap(self.lowest, Self::GUARD + Self::SIZE) } {
            Ok(()) | Err(_) => {}
        }
    }
}

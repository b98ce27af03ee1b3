//! Taking a message off a socket without closing here what was sent along.
//!
//! A descriptor that is received has to be closed by somebody, and its close may block for as long as its sender likes. A process that
//! ends does not linger (`PF_EXITING`: a TCP socket with `SO_LINGER` is let be), and nobody waits for one that hangs in its end. So a
//! child takes the message, in our memory and with a table of descriptors of its own, and ends at once. In it is neither a program nor
//! anything of ours but the number of the socket.
//!
//! ```text
//! this thread                          child (same memory, own stack, own descriptors)
//! clone3(VM, FILES, CHILD_CLEARTID) ─► close_range(UNSHARE) · recvmsg · PIDFD_GET_INFO · exit
//! waits until it has left our memory ◄──────────────────────────────────────────────── its descriptors are closed after that
//! ```

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::thread::futex;

use super::Launched;
use super::raw::{self, CloneArgs, Stack};
use crate::kernel::error::{KernelError, Result};

/// How long a child is waited for to leave our memory. It makes three calls that do not wait; on a busy machine it may be late.
const CHILD_MAX: Duration = Duration::from_millis(20);

/// Room for credentials, a pidfd and as many descriptors as can be sent, in words of 8 bytes.
const CONTROL: usize = 256;

/// Not in the libc crate yet: `<linux/socket.h>`, `<linux/pidfd.h>`.
const SCM_PIDFD: i32 = 4;
const PIDFD_GET_INFO: usize = 0xC040_FF0B;
const PIDFD_INFO_CGROUPID: u64 = 4;

const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;

/// A message that was taken.
#[derive(Debug)]
pub(in crate::kernel) struct Taken {
    /// What was sent, as far as there was room.
    pub text: Vec<u8>,
    /// Whether there was more.
    pub is_cut: bool,
    /// The number and the user of its sender, as the kernel says.
    pub pid: i32,
    /// As `pid`.
    pub uid: u32,
    /// The cgroup that its sender is in, or was in when it ended, as `pidfd::cgroup_id`.
    pub cgroup: Option<u64>,
    /// The child, to be reaped when it has ended.
    pub child: Launched,
}

/// What the child needs and leaves. Shared with it until `tid` is 0.
struct Task {
    socket: i32,
    header: UnsafeCell<libc::msghdr>,
    part: UnsafeCell<libc::iovec>,
    control: UnsafeCell<[u64; CONTROL]>,
    text: UnsafeCell<Vec<u8>>,
    info: UnsafeCell<[u64; 8]>,
    /// The length of the message, or an error number below 0.
    answer: AtomicI64,
    cgroup: AtomicU64,
    /// The kernel makes it 0 when the child has left our memory.
    tid: AtomicU32,
    stack: Stack,
}

/// What a child has taken, or is about to.
#[derive(Debug)]
pub(in crate::kernel) enum Taking {
    /// A message.
    Done(Taken),
    /// There was none.
    Nothing,
    /// The child is late.
    Late(Late),
}

/// A child that is still in our memory, with what it uses of that.
pub(in crate::kernel) struct Late {
    task: Option<Box<Task>>,
    child: Option<Launched>,
}

// SAFETY: its pointers are into memory that is its own, the task's and its stack's.
#[allow(unsafe_code)]
unsafe impl Send for Late {}

impl std::fmt::Debug for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Late").field("child", &self.child).finish_non_exhaustive()
    }
}

impl Late {
    /// Says what has become of it, and waits no more.
    ///
    /// # Errors
    /// As [`take`].
    pub(in crate::kernel) fn look(mut self) -> Result<Taking> {
        let is_gone = self.task.as_ref().is_some_and(|task| task.tid.load(Ordering::Acquire) == 0);
        match (self.task.take(), self.child.take()) {
            (Some(task), Some(child)) if is_gone => task.finish(child),
            (task, child) => {
                (self.task, self.child) = (task, child);
                Ok(Taking::Late(self))
            }
        }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        // Given up with the socket: the child may still write there.
        if let Some(task) = self.task.take() {
            Box::leak(task);
        }
    }
}

/// Takes the next message off a datagram socket, without waiting for one.
///
/// # Errors
/// EAGAIN, ENOMEM: no child can be made.
///
/// # Kernel
/// Linux 6.13 (`PIDFD_GET_INFO`); 5.9 (`close_range(2)`); clone(2), `CLONE_CHILD_CLEARTID`; `inet_release`, `PF_EXITING`.
#[allow(unsafe_code)]
pub(in crate::kernel) fn take(socket: BorrowedFd<'_>, length_max: usize) -> Result<Taking> {
    let failed = |errno| KernelError::new("take a message off", "the notify socket", errno);
    // SAFETY: all zeros is a `msghdr` and an `iovec` of nothing.
    let (header, part) = unsafe { (std::mem::zeroed::<libc::msghdr>(), std::mem::zeroed::<libc::iovec>()) };
    let mut task = Box::new(Task {
        socket: socket.as_raw_fd(),
        header: UnsafeCell::new(header),
        part: UnsafeCell::new(part),
        control: UnsafeCell::new([0; CONTROL]),
        text: UnsafeCell::new(vec![0; length_max]),
        info: UnsafeCell::new([PIDFD_INFO_CGROUPID, 0, 0, 0, 0, 0, 0, 0]),
        answer: AtomicI64::new(-i64::from(libc::EINTR)),
        cgroup: AtomicU64::new(0),
        tid: AtomicU32::new(1),
        stack: Stack::new().map_err(failed)?,
    });
    let text = task.text.get_mut();
    *task.part.get_mut() = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    let (part, control) = (task.part.get(), task.control.get());
    let header = task.header.get_mut();
    (header.msg_iov, header.msg_iovlen) = (part, 1);
    (header.msg_control, header.msg_controllen) = (control.cast(), (CONTROL * 8) as _);
    let mut pidfd: i32 = -1;
    let args = CloneArgs {
        flags: raw::CLONE_VM | raw::CLONE_FILES | raw::CLONE_PIDFD | raw::CLONE_CLEAR_SIGHAND | CLONE_CHILD_CLEARTID,
        pidfd: std::ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        child_tid: task.tid.as_ptr().expose_provenance() as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: task.stack.usable(),
        stack_size: Stack::SIZE as u64,
        ..CloneArgs::default()
    };
    let argument = std::ptr::from_ref(&*task).cast_mut().cast();
    let mask = raw::set_signal_mask(raw::ALL_SIGNALS);
    // SAFETY: the stack is the child's alone, and lives with the task until the child has left our memory or for ever; `run` makes
    // system calls on the task and nothing else.
    let born = unsafe { raw::clone3(&args, run, argument) };
    raw::set_signal_mask(mask);
    let no_child = |errno| KernelError::new("clone3", "a child that takes a message", Errno::from_raw_os_error(errno));
    let pid = born.map_err(no_child)?;
    // SAFETY: the kernel has just put a new descriptor there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let child = Launched { pid: i32::try_from(pid).unwrap_or(0), pidfd };
    if has_left(&task.tid) {
        return task.finish(child);
    }
    Ok(Taking::Late(Late { task: Some(task), child: Some(child) }))
}

impl Task {
    /// Reads what a child has left that is in our memory no more.
    fn finish(mut self: Box<Self>, child: Launched) -> Result<Taking> {
        let length = self.answer.load(Ordering::Acquire);
        let Ok(length) = usize::try_from(length) else {
            // It has nothing to close.
            drop(super::pidfd::wait(child.pidfd.as_fd()));
            return match Errno::from_raw_os_error(i32::try_from(-length).unwrap_or(libc::EIO)) {
                Errno::AGAIN | Errno::INTR => Ok(Taking::Nothing),
                errno => Err(KernelError::new("take a message off", "the notify socket", errno)),
            };
        };
        let header = *self.header.get_mut();
        let [pid, uid] = credentials(self.control.get_mut(), header.msg_controllen).unwrap_or_default();
        let cgroup = Some(self.cgroup.load(Ordering::Relaxed)).filter(|id| *id != 0);
        let mut text = std::mem::take(self.text.get_mut());
        text.truncate(length);
        let is_cut = header.msg_flags & libc::MSG_TRUNC != 0;
        Ok(Taking::Done(Taken { text, is_cut, pid: pid.cast_signed(), uid, cgroup, child }))
    }
}

/// Waits until the child has left our memory; says whether it has.
fn has_left(tid: &AtomicU32) -> bool {
    let end = Instant::now() + CHILD_MAX;
    loop {
        let before = tid.load(Ordering::Acquire);
        let left = end.saturating_duration_since(Instant::now());
        if before == 0 || left.is_zero() {
            return before == 0;
        }
        let most = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        // Not a private one: the kernel wakes all.
        match futex::wait(tid, futex::Flags::empty(), before, Some(&most)) {
            Ok(()) | Err(_) => {}
        }
    }
}

/// The child's `main`. Nothing here allocates, panics or calls libc.
extern "C" fn run(task: *mut c_void) -> ! {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    // SAFETY: the parent passes its task, which lives until this process has left its memory.
    #[allow(unsafe_code)]
    let task = unsafe { &*task.cast::<Task>() };
    let call = |number: libc::c_long, arguments: [usize; 5]| {
        // SAFETY: the calls are those below; what they write to is the task's, and this process's alone until it has left.
        #[allow(unsafe_code)]
        unsafe {
            raw::syscall(number, arguments)
        }
    };
    let socket = task.socket.cast_unsigned() as usize;
    // What is received is in no table but this process's own. A whole word of the kernel's bitmap: before 5.18 it copied a part of
    // one wrongly.
    let unshared = call(libc::SYS_close_range, [(socket | 63) + 1, u32::MAX as usize, CLOSE_RANGE_UNSHARE, 0, 0]);
    let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC).cast_unsigned() as usize;
    let header = task.header.get().expose_provenance();
    // What is not closed here would be open for as long as this process hangs in its end.
    let close = |first, last| call(libc::SYS_close_range, [first, last, 0, 0, 0]);
    let alone = unshared
        .and_then(|_| close(socket + 1, u32::MAX as usize))
        .and_then(|_| if socket > 0 { close(0, socket - 1) } else { Ok(0) });
    let received = alone.and_then(|_| call(libc::SYS_recvmsg, [socket, header, flags, 0, 0]));
    if received.is_ok()
        && let Some(pidfd) = find(task, SCM_PIDFD)
    {
        let info = task.info.get().expose_provenance();
        if call(libc::SYS_ioctl, [pidfd as usize, PIDFD_GET_INFO, info, 0, 0]).is_ok() {
            // SAFETY: the kernel has written it, and nobody else does.
            #[allow(unsafe_code)]
            let [mask, cgroup, ..] = unsafe { *task.info.get() };
            if mask & PIDFD_INFO_CGROUPID != 0 {
                task.cgroup.store(cgroup, Ordering::Relaxed);
            }
        }
    }
    match close(socket, socket) {
        Ok(_) | Err(_) => {}
    }
    let answer = match received {
        Ok(length) => i64::try_from(length).unwrap_or(0),
        Err(errno) => -i64::from(errno),
    };
    task.answer.store(answer, Ordering::Release);
    raw::exit(0)
}

/// Finds the first number of a control message of this type.
fn find(task: &Task, kind: i32) -> Option<u32> {
    // SAFETY: the kernel has filled it in, and nobody writes to it now.
    #[allow(unsafe_code)]
    let (control, length) = unsafe { (&*task.control.get(), (*task.header.get()).msg_controllen) };
    let [first, ..] = message(control, length, kind)?;
    Some(first).filter(|fd| fd.cast_signed() >= 0)
}

fn credentials(control: &[u64; CONTROL], length: usize) -> Option<[u32; 2]> {
    message(control, length, libc::SCM_CREDENTIALS)
}

/// Returns the first two numbers of a control message of this type; the second one is 0 if there is no room for it.
///
/// # Kernel
/// cmsg(3): a header of 16 bytes, the length in its first word, level and type in its second; what follows is aligned to 8 bytes.
fn message(control: &[u64; CONTROL], length: usize, kind: i32) -> Option<[u32; 2]> {
    let halves = |word: u64| [(word & 0xffff_ffff) as u32, (word >> 32) as u32];
    let mut at = 0;
    while at * 8 + 16 <= length {
        let size = usize::try_from(*control.get(at)?).ok()?;
        let [level, of] = halves(*control.get(at + 1)?);
        let data = *control.get(at + 2)?;
        if (level.cast_signed(), of.cast_signed()) == (libc::SOL_SOCKET, kind) {
            return Some(halves(data));
        }
        at = at.checked_add(size.max(16).div_ceil(8))?;
    }
    None
}

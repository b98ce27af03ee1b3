//! Processes by descriptor: a pidfd is an identity, a pid is only a number.
//!
//! A pidfd turns readable when its process ends, and stays so. It says *that*; [`try_wait`] (for our children) and
//! [`exit_info`] (for anybody's) say *how*.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::error::{KernelError, Result};
use super::process::read_text;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It ended itself, with this exit code, 0 to 255.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether it dumped core.
        core: bool,
    },
}

/// What a process and its reaped descendants used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rusage {
    /// CPU time in user space, in microseconds.
    pub user_us: u64,
    /// CPU time in the kernel, in microseconds.
    pub system_us: u64,
    /// The largest resident set of any one of them, in bytes.
    pub max_rss_bytes: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that needed I/O.
    pub major_faults: u64,
    /// Blocks of 512 bytes read from disks.
    pub read_blocks: u64,
    /// Blocks of 512 bytes written to disks.
    pub written_blocks: u64,
    /// How often it gave up the CPU to wait.
    pub voluntary_switches: u64,
    /// How often the CPU was taken from it.
    pub involuntary_switches: u64,
}

/// The end of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub status: Exit,
    /// What it used.
    pub rusage: Rusage,
}

/// A process that is held by its descriptor, which several threads may share.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its number, for comparison with a list of the kernel's.
    pub pid: i32,
    /// Its pidfd.
    pub fd: Arc<OwnedFd>,
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a process by its number. Closes on exec.
///
/// # Errors
/// ESRCH ([`KernelError::is_gone`]) if no process has this number.
///
/// # Kernel
/// Linux 5.3, pidfd_open(2).
pub fn open(pid: i32) -> Result<OwnedFd> {
    // Negative numbers make rustix panic; to the kernel they are invalid, to us they are nobody's.
    Some(pid)
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw)
        .ok_or(Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|errno| KernelError::new("pidfd_open", format!("pid {pid}"), errno))
}

/// Returns a number by which a process is known again, until the next boot, when its pid is opened anew: no other process
/// that ever had this pid has the same. `pid` is the number that the pidfd was opened by.
///
/// # Errors
/// ESRCH ([`KernelError::is_gone`]) if it has ended and been reaped, where the kernel is older than 6.9.
///
/// # Kernel
/// Linux 6.9: the inode of the pidfd, which is never given to another process (pidfs). Before, the time of its start in clock
/// ticks, proc_pid_stat(5), field 22.
pub fn identity(pidfd: BorrowedFd<'_>, pid: i32) -> Result<u64> {
    /// `PID_FS_MAGIC` of linux/magic.h.
    const PIDFS: i64 = 0x5049_4446;
    let wrong = |errno| KernelError::new("identify", object(pidfd), errno);
    if rustix::fs::fstatfs(pidfd).map_err(wrong)?.f_type == PIDFS {
        return rustix::fs::fstat(pidfd).map(|stat| stat.st_ino).map_err(wrong);
    }
    started_at(pid)?.ok_or_else(|| wrong(Errno::SRCH))
}

fn started_at(pid: i32) -> Result<Option<u64>> {
    Ok(stat_fields(pid)?.and_then(|fields| fields.get(22 - 3)?.parse().ok()))
}

/// Says whether the process that has a number now began before a time. `None`: no process has it.
///
/// # Errors
/// As [`cgroup_of`].
///
/// # Kernel
/// proc_pid_stat(5), field 22: in clock ticks since the boot.
pub(super) fn began_before(pid: i32, time: crate::model::time::Monotonic) -> Result<Option<bool>> {
    let second = u128::from(rustix::param::clock_ticks_per_second());
    let is_before = |ticks| u128::from(ticks) * 1_000_000_000 <= u128::from(time.0) * second;
    Ok(started_at(pid)?.map(is_before))
}

/// Returns the effective user of the process that has a number now.
///
/// # Errors
/// As [`cgroup_of`].
///
/// # Kernel
/// proc_pid_status(5), `Uid`.
pub(super) fn effective_user(pid: i32) -> Result<Option<u32>> {
    let status = read_of(&format!("/proc/{pid}/status"))?.unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok()))
}

/// Reads `/proc/PID/stat` from field 3, the state, on: the name before it may itself contain parentheses and blanks.
fn stat_fields(pid: i32) -> Result<Option<Vec<String>>> {
    let stat = read_of(&format!("/proc/{pid}/stat"))?.unwrap_or_default();
    let fields = stat.rfind(')').and_then(|end| stat.get(end + 1..));
    Ok(fields.map(|fields| fields.split_ascii_whitespace().map(str::to_owned).collect()))
}

/// Sends a signal to the process of a pidfd; never to another one that got its number.
///
/// # Errors
/// ESRCH ([`KernelError::is_gone`]) if it has ended and been reaped; EPERM.
///
/// # Kernel
/// Linux 5.1, pidfd_send_signal(2).
pub fn signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<()> {
    rustix::process::pidfd_send_signal(pidfd, signal)
        .map_err(|errno| KernelError::new(format!("send {signal:?} to"), object(pidfd), errno))
}

/// Reaps a child if it has ended; `None` if it lives.
///
/// # Errors
/// ECHILD: it is not a child of this process, or somebody else has reaped it.
///
/// # Kernel
/// Linux 5.4 (`P_PIDFD`), waitid(2).
pub fn try_wait(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>> {
    waitid(pidfd, libc::WEXITED | libc::WNOHANG)
}

/// Reads how a child has ended and leaves it a zombie, to be reaped by [`try_wait`]; `None` if it lives, or if a tracer that
/// has not waited for it hides its end: then [`has_ended`] knows that it has ended and [`zombie_exit`] how.
///
/// # Errors
/// As [`try_wait`].
///
/// # Kernel
/// Linux 5.4 (`P_PIDFD`), waitid(2), `WNOWAIT`; docs/kernel.md, 25.
pub fn peek(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>> {
    waitid(pidfd, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

/// Waits until a child has ended, and reaps it. For one that is known to be at its end only.
pub(super) fn wait(pidfd: BorrowedFd<'_>) -> Result<Ended> {
    loop {
        match waitid(pidfd, libc::WEXITED) {
            Ok(Some(ended)) => return Ok(ended),
            Err(error) if error.errno == Errno::INTR => {}
            Ok(None) => return Err(KernelError::new("waitid", object(pidfd), Errno::CHILD)),
            Err(error) => return Err(error),
        }
    }
}

/// The system call and not libc's function: only the former tells what the child used.
#[allow(unsafe_code)]
fn waitid(pidfd: BorrowedFd<'_>, options: i32) -> Result<Option<Ended>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to storage of the kernel's own types that outlives the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            info.as_mut_ptr(),
            options,
            usage.as_mut_ptr(),
        )
    };
    if answer < 0 {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
        return Err(KernelError::new("waitid", object(pidfd), errno));
    }
    // SAFETY: zeroed before, which is a value of both types, and filled in by the kernel.
    let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
    // SAFETY: waitid fills in these fields, or leaves the zeros when nothing has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let status = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        code => Exit::Signal { number: status, core: code == libc::CLD_DUMPED },
    };
    Ok(Some(Ended { status, rusage: rusage(&usage) }))
}

fn rusage(usage: &libc::rusage) -> Rusage {
    let count = |value: i64| u64::try_from(value).unwrap_or(0);
    let micros = |time: libc::timeval| count(time.tv_sec).saturating_mul(1_000_000).saturating_add(count(time.tv_usec));
    Rusage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss_bytes: count(usage.ru_maxrss).saturating_mul(1024),
        minor_faults: count(usage.ru_minflt),
        major_faults: count(usage.ru_majflt),
        read_blocks: count(usage.ru_inblock),
        written_blocks: count(usage.ru_oublock),
        voluntary_switches: count(usage.ru_nvcsw),
        involuntary_switches: count(usage.ru_nivcsw),
    }
}

const PIDFD_INFO_CGROUPID: u64 = 1 << 2;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The kernel's `struct pidfd_info`, first version, 64 bytes.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pids: [u32; 3],
    ids: [u32; 8],
    exit_code: i32,
}

/// Returns how a process ended, be it our child or not, if the kernel still tells: its pidfd was opened before it was
/// reaped, and it has been reaped since.
///
/// `None`: it lives, or it is a zombie that nobody has reaped yet, or the kernel is older.
///
/// # Errors
/// None of the known answers of the kernel is one; others are passed on.
///
/// # Kernel
/// Linux 6.15 (`PIDFD_INFO_EXIT`), ioctl_pidfd(2).
pub fn exit_info(pidfd: BorrowedFd<'_>) -> Result<Option<Exit>> {
    let info = info(pidfd, PIDFD_INFO_EXIT)?;
    Ok(info.filter(|info| info.mask & PIDFD_INFO_EXIT != 0).map(|info| from_wait_status(info.exit_code)))
}

/// Returns the identity of the cgroup2 that a process is in, or was in when it ended: the inode number of its directory.
///
/// `None`: the kernel is older.
///
/// # Errors
/// As [`exit_info`].
///
/// # Kernel
/// Linux 6.13 (`PIDFD_INFO_CGROUPID`); of a process that has been reaped 6.15. ioctl_pidfd(2).
pub fn cgroup_id(pidfd: BorrowedFd<'_>) -> Result<Option<u64>> {
    // Of one that has been reaped it is told along with its end only.
    let info = info(pidfd, PIDFD_INFO_CGROUPID | PIDFD_INFO_EXIT)?;
    Ok(info.filter(|info| info.mask & PIDFD_INFO_CGROUPID != 0).map(|info| info.cgroupid))
}

/// Asks what the kernel knows of a process: the mask of the answer says what of it. `None` if it knows of no such request.
#[allow(unsafe_code)]
fn info(pidfd: BorrowedFd<'_>, mask: u64) -> Result<Option<PidfdInfo>> {
    /// `_IOWR(0xFF, 11, struct pidfd_info)`.
    const PIDFD_GET_INFO: u32 = 0xC040_FF0B;
    const { assert!(size_of::<PidfdInfo>() == 64) };
    let mut info = PidfdInfo { mask, ..PidfdInfo::default() };
    // SAFETY: the request carries the size of the storage that it reads and writes.
    let answer =
        unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::Ioctl::from(PIDFD_GET_INFO), std::ptr::from_mut(&mut info)) };
    if answer < 0 {
        return match Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL) {
            // No such request, or no such mask, or reaped and nothing kept.
            Errno::NOTTY | Errno::INVAL | Errno::SRCH => Ok(None),
            errno => Err(KernelError::new("PIDFD_GET_INFO", object(pidfd), errno)),
        };
    }
    Ok(Some(info))
}

/// Returns how a process has ended that nobody has reaped yet, be it our child or not. `None`: it lives, or has been reaped.
///
/// # Kernel
/// Linux 3.5, proc_pid_stat(5), field 52; to be allowed to read it takes what ptrace(2) takes for reading.
#[must_use]
pub fn zombie_exit(pidfd: BorrowedFd<'_>) -> Option<Exit> {
    let is_unreaped = || pid_of(pidfd).ok().flatten();
    let fields = stat_fields(is_unreaped()?).ok()??;
    let status = fields.get(52 - 3)?.parse().ok()?;
    // Not reaped now, so not reaped then: the number was its own.
    (fields.first()? == "Z" && is_unreaped().is_some()).then(|| from_wait_status(status))
}

/// Reads the status word of wait(2).
fn from_wait_status(status: i32) -> Exit {
    if libc::WIFEXITED(status) {
        Exit::Code(libc::WEXITSTATUS(status))
    } else {
        Exit::Signal { number: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) }
    }
}

/// Says whether the process of a pidfd has ended, reaped or not.
///
/// # Errors
/// ENOMEM.
///
/// # Kernel
/// Linux 5.3, pidfd_open(2).
pub fn has_ended(pidfd: BorrowedFd<'_>) -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let ready = loop {
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Err(Errno::INTR) => {}
            answer => break answer,
        }
    };
    ready.map(|ready| ready > 0).map_err(|errno| KernelError::new("poll", object(pidfd), errno))
}

/// Returns the path of a process in the cgroup2 hierarchy, `/` for its root; `None` if the process
/// is gone or hidden (`hidepid`), or the host has no cgroup2. A cgroup that has been removed is
/// shown with ` (deleted)` at its end.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM.
///
/// # Kernel
/// proc_pid_cgroup(5): the line that begins with `0::`.
pub fn cgroup_of(pid: i32) -> Result<Option<String>> {
    let text = read_of(&format!("/proc/{pid}/cgroup"))?;
    Ok(text.and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)))
}

/// Reads a file of `/proc`; `None` if the process is gone, or hidden from this one.
fn read_of(path: &str) -> Result<Option<String>> {
    match read_text(path).map_err(|error| KernelError::from_io("read", path, &error)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_gone() || matches!(error.errno, Errno::ACCESS | Errno::PERM) => Ok(None),
        Err(error) => Err(error),
    }
}

fn object(pidfd: BorrowedFd<'_>) -> String {
    pid_of(pidfd).ok().flatten().map_or_else(|| "a pidfd".to_owned(), |pid| format!("pid {pid}"))
}

/// Returns the number that a process has now; none once it has been reaped.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM.
pub(super) fn pid_of(pidfd: BorrowedFd<'_>) -> Result<Option<i32>> {
    let info = read_of(&format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?.unwrap_or_default();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    // It is -1 once it has been reaped, and 0 for a process outside our pid namespace.
    Ok(pid.filter(|pid| *pid > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_is_a_code_or_a_signal() {
        assert_eq!(from_wait_status(0), Exit::Code(0));
        assert_eq!(from_wait_status(55 << 8), Exit::Code(55));
        assert_eq!(from_wait_status(9), Exit::Signal { number: 9, core: false });
        assert_eq!(from_wait_status(11 | 0x80), Exit::Signal { number: 11, core: true });
    }

    #[test]
    fn a_process_is_known_again_and_taken_for_no_other() {
        let own = std::process::id().cast_signed();
        let know = |pid: i32| identity(open(pid).unwrap().as_fd(), pid).unwrap();
        assert_eq!(know(own), know(own));
        assert_ne!(know(own), know(1));
        assert!(started_at(own).unwrap() > started_at(1).unwrap(), "where there is no pidfs");
    }

    #[test]
    fn a_pid_that_is_no_pid_is_gone() {
        for pid in [0, -1, i32::MIN, i32::MAX] {
            assert!(open(pid).unwrap_err().is_gone(), "{pid}");
        }
    }
}

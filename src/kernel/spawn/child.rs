//! What the child does between its birth and `execve`.
//!
//! It runs on a stack of its own in its parent's memory, or in a copy of it, and its parent's
//! thread sleeps meanwhile. So: only system calls made by hand, only on what was made ready before;
//! no allocation, no lock, no panic, no libc, no `Drop`. What it has to tell it leaves in its
//! [`Report`]: the step it is at, and the error number of the step that failed.

use std::convert::Infallible;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::Ordering;

use rustix::fs::PROC_SUPER_MAGIC;

use super::entry::PidEntry;
use super::needs::HEAD_MAX;
use super::raw::{self, Answer};
use super::report::Report;
use crate::model::stage::Stage;

/// What the child is to do.
pub(super) enum Mission {
    /// To become the program.
    Exec,
    /// To end at once with exit code 0: the test whether children live here at all.
    Exit,
}

/// Everything that the child needs, made ready by its parent, and what it leaves behind.
pub(super) struct Orders<'a> {
    pub mission: Mission,
    /// Descriptors of `cgroup.procs` files.
    pub enter: &'a [i32],
    /// Descriptors of 3 and above, and low ones: dup2 onto 0, 1 and 2 must not overwrite one that is still needed, and the
    /// table is copied as far as the highest of them.
    pub stdio: [i32; 3],
    /// A descriptor of 3 and above, and the other number of 3 and above under which the program has it.
    pub passed: Option<(i32, i32)>,
    /// The variable that is to hold the child's process id.
    pub pid_entry: Option<&'a PidEntry>,
    /// Signals that may be ignored, a bit each.
    pub ignored: u64,
    /// None where the child has the value by birth.
    pub oom_score_adj: Option<&'a CStr>,
    /// Whether a host that does not offer the value is a failure (it was asked for) or not (it is our default).
    pub oom_score_adj_asked: bool,
    /// Whether the child would inherit another scheduling policy than `SCHED_OTHER`.
    pub is_scheduled_otherwise: bool,
    pub nice: i8,
    /// As for `oom_score_adj_asked`.
    pub nice_asked: bool,
    pub umask: u16,
    pub ioprio: Option<u16>,
    /// Number, soft and hard limit, as the kernel wants them.
    pub rlimits: &'a [(u32, [u64; 2])],
    pub no_new_privs: bool,
    pub credentials: Option<(u32, u32, &'a [u32])>,
    /// Whether the user that the child becomes is root, whose capabilities `exec` would give back.
    pub keeps_capabilities: bool,
    pub cwd: &'a CStr,
    /// None for the `/dev/null` that is in its place already.
    pub stdin: Option<&'a CStr>,
    /// Full paths to try in turn; null-terminated lists of the arguments and of the environment.
    pub search: &'a [*const c_char],
    pub argv: &'a [*const c_char],
    pub env: &'a [*const c_char],
    /// Where the child says what it is at, and what failed.
    pub report: &'a Report,
}

impl Orders<'_> {
    fn at(&self, stage: Stage) {
        self.report.stage.store(stage as u8, Ordering::Relaxed);
    }
}

/// How late a timer of the program may be, in nanoseconds: the kernel's own default of 50 µs.
const TIMER_SLACK: usize = 50_000;

/// A step's failure: which one of several, and the error number.
type Failed = (usize, i32);

/// The child's `main`: carries the orders out, or leaves behind what failed, and ends.
pub(super) extern "C" fn run(orders: *mut c_void) -> ! {
    // SAFETY: the parent passes its `Orders`, which live on its sleeping thread's stack until this process has executed
    // a program or ended.
    #[allow(unsafe_code)]
    let orders = unsafe { &*orders.cast::<Orders<'_>>() };
    if matches!(orders.mission, Mission::Exit) {
        raw::exit(0);
    }
    let Err((which, errno)) = steps(orders);
    read_head(orders, which);
    orders.report.which.store(which, Ordering::Relaxed);
    orders.report.errno.store(errno, Ordering::Relaxed);
    raw::exit(127)
}

/// Calls the kernel.
///
/// Every pointer among the arguments comes from `Orders` or from the caller's own stack and outlives the call, and every
/// call made through here is one that writes to no memory: that is what makes it safe to leave to the caller.
fn call(number: libc::c_long, arguments: [usize; 5]) -> Answer {
    // SAFETY: see above; the calls are the ones of this file.
    #[allow(unsafe_code)]
    unsafe {
        raw::syscall(number, arguments)
    }
}

/// Turns a C int or a descriptor into a register, with its sign kept.
fn int(value: i32) -> usize {
    (value as isize).cast_unsigned()
}

fn text(text: &CStr) -> usize {
    text.as_ptr().expose_provenance()
}

fn steps(orders: &Orders<'_>) -> Result<Infallible, Failed> {
    stop_ignoring(orders.ignored);
    enter(orders)?;
    session(orders)?;
    stdio(orders)?;
    scheduling(orders)?;
    rlimits(orders)?;
    privileges(orders)?;
    orders.at(Stage::Cwd);
    call(libc::SYS_chdir, [text(orders.cwd), 0, 0, 0, 0]).map_err(|errno| (0, errno))?;
    stdin(orders)?;
    if let (Some(entry), Ok(pid)) = (orders.pid_entry, call(libc::SYS_getpid, [0; 5])) {
        entry.set(pid);
    }
    // What was sent to the child so far arrives here, and ends it: every signal has its default action.
    raw::set_signal_mask(0);
    exec(orders)
}

/// Gives signals that are ignored their default action: `CLONE_CLEAR_SIGHAND` spares them, and Rust ignores SIGPIPE.
fn stop_ignoring(ignored: u64) {
    // The kernel's `struct sigaction`: handler, flags, restorer, mask; all zero is SIG_DFL.
    let default = [0usize; 4];
    let address = default.as_ptr().expose_provenance();
    for signal in (1..=64).filter(|signal| ignored >> (signal - 1) & 1 == 1) {
        // SIGKILL and SIGSTOP answer EINVAL, and are what they are.
        match call(libc::SYS_rt_sigaction, [signal, address, 0, size_of::<u64>(), 0]) {
            Ok(_) | Err(_) => {}
        }
    }
}

fn enter(orders: &Orders<'_>) -> Result<(), Failed> {
    orders.at(Stage::Enter);
    for (which, fd) in orders.enter.iter().enumerate() {
        call(libc::SYS_write, [int(*fd), text(c"0"), 1, 0, 0]).map_err(|errno| (which, errno))?;
    }
    Ok(())
}

/// Leads a session without a terminal, and with a keyring that holds nobody else's keys. The keyring is made before the user
/// changes: of its few (`kernel.keys.maxkeys`) none is used up. The kernel may refuse it: its quota, a seccomp filter.
fn session(orders: &Orders<'_>) -> Result<(), Failed> {
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    orders.at(Stage::Session);
    call(libc::SYS_setsid, [0; 5]).map_err(|errno| (0, errno))?;
    match call(libc::SYS_keyctl, [KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0]) {
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Takes a table of descriptors of its own, puts the descriptors in their places and closes every other one.
fn stdio(orders: &Orders<'_>) -> Result<(), Failed> {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    orders.at(Stage::Stdio);
    let [stdin, stdout, stderr] = orders.stdio;
    let passed = orders.passed.map_or(0, |(fd, _)| fd);
    // A whole word of the kernel's bitmap: before 5.18 it copied a part of one wrongly.
    let unneeded = (int(stdin.max(stdout).max(stderr).max(passed)) | 63) + 1;
    // Up to here the table is our parent's, and every change of it would be one of his.
    call(libc::SYS_close_range, [unneeded, u32::MAX as usize, CLOSE_RANGE_UNSHARE, 0, 0])
        .map_err(|errno| (3, errno))?;
    for (place, fd) in orders.stdio.iter().enumerate() {
        call(libc::SYS_dup3, [int(*fd), place, 0, 0, 0]).map_err(|errno| (place, errno))?;
    }
    let mut first = 3;
    if let Some((fd, number)) = orders.passed {
        call(libc::SYS_dup3, [int(fd), int(number), 0, 0, 0]).map_err(|errno| (3, errno))?;
        if number > first {
            close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    close_range(first, -1)
}

/// Closes the descriptors from the first to the last; -1, as the kernel reads it, is the last that there can be.
fn close_range(first: i32, last: i32) -> Result<(), Failed> {
    let last = last.cast_unsigned() as usize;
    call(libc::SYS_close_range, [int(first), last, 0, 0, 0]).map(drop).map_err(|errno| (4, errno))
}

fn cannot_fail(answer: Answer) {
    match answer {
        Ok(_) | Err(_) => {}
    }
}

fn scheduling(orders: &Orders<'_>) -> Result<(), Failed> {
    cannot_fail(call(libc::SYS_umask, [usize::from(orders.umask), 0, 0, 0, 0]));
    if let Some(value) = orders.oom_score_adj {
        orders.at(Stage::OomScoreAdj);
        let written = write_oom_score_adj(value);
        if orders.oom_score_adj_asked {
            written.map_err(|errno| (0, errno))?;
        }
    }
    orders.at(Stage::Nice);
    if orders.is_scheduled_otherwise {
        // The kernel's `struct sched_param`: a priority, which only real-time policies have.
        let priority = 0u32;
        let param = std::ptr::from_ref(&priority).expose_provenance();
        call(libc::SYS_sched_setscheduler, [0, int(libc::SCHED_OTHER), param, 0, 0]).map_err(|errno| (0, errno))?;
    }
    // Of a real-time thread it is 0, and stays so.
    cannot_fail(call(libc::SYS_prctl, [int(libc::PR_SET_TIMERSLACK), TIMER_SLACK, 0, 0, 0]));
    let reniced = call(libc::SYS_setpriority, [0, 0, int(i32::from(orders.nice)), 0, 0]);
    if orders.nice_asked {
        reniced.map_err(|errno| (0, errno))?;
    }
    if let Some(ioprio) = orders.ioprio {
        orders.at(Stage::Ionice);
        const IOPRIO_WHO_PROCESS: usize = 1;
        call(libc::SYS_ioprio_set, [IOPRIO_WHO_PROCESS, 0, usize::from(ioprio), 0, 0]).map_err(|errno| (0, errno))?;
    }
    Ok(())
}

fn write_oom_score_adj(value: &CStr) -> Answer {
    let path = text(c"/proc/self/oom_score_adj");
    let fd = call(libc::SYS_openat, [int(libc::AT_FDCWD), path, int(libc::O_WRONLY | libc::O_CLOEXEC), 0, 0])?;
    let written = call(libc::SYS_write, [fd, text(value), value.count_bytes(), 0, 0]);
    call(libc::SYS_close, [fd, 0, 0, 0, 0])?;
    written
}

/// Sets the resource limits. After everything that opens a file: a limit of three descriptors is a legal one.
fn rlimits(orders: &Orders<'_>) -> Result<(), Failed> {
    orders.at(Stage::Rlimits);
    for (which, (resource, limits)) in orders.rlimits.iter().enumerate() {
        let new = limits.as_ptr().expose_provenance();
        call(libc::SYS_prlimit64, [0, *resource as usize, new, 0, 0]).map_err(|errno| (which, errno))?;
    }
    Ok(())
}

/// Gives up privileges, the supplementary groups first and the user last: without the user nothing else can be changed.
fn privileges(orders: &Orders<'_>) -> Result<(), Failed> {
    if orders.no_new_privs {
        orders.at(Stage::NoNewPrivs);
        call(libc::SYS_prctl, [int(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0]).map_err(|errno| (0, errno))?;
    }
    if let Some((uid, gid, groups)) = orders.credentials {
        let (uid, gid) = (uid as usize, gid as usize);
        orders.at(Stage::Groups);
        let list = groups.as_ptr().expose_provenance();
        call(libc::SYS_setgroups, [groups.len(), list, 0, 0, 0]).map_err(|errno| (0, errno))?;
        orders.at(Stage::Gid);
        call(libc::SYS_setresgid, [gid, gid, gid, 0, 0]).map_err(|errno| (0, errno))?;
        orders.at(Stage::Uid);
        call(libc::SYS_setresuid, [uid, uid, uid, 0, 0]).map_err(|errno| (0, errno))?;
    }
    if !orders.keeps_capabilities {
        orders.at(Stage::Uid);
        drop_capabilities().map_err(|errno| (0, errno))?;
    }
    Ok(())
}

/// Gives up every capability. The kernel does so itself only where root becomes another user, and not with every securebit:
/// a supervisor that is not root but has capabilities would open files for its children with them.
fn drop_capabilities() -> Answer {
    // `struct __user_cap_header_struct`: version 3, the calling process; `struct __user_cap_data_struct`, twice.
    let header = [0x2008_0522u32, 0];
    let none = [0u32; 6];
    let (header, none) = (header.as_ptr().expose_provenance(), none.as_ptr().expose_provenance());
    call(libc::SYS_capset, [header, none, 0, 0, 0])
}

/// Opens stdin with the rights of the user that the child became, in the place of `/dev/null`. A terminal does not become the
/// session's, and a FIFO without a writer holds nobody up; the program itself has it as usual.
fn stdin(orders: &Orders<'_>) -> Result<(), Failed> {
    let Some(path) = orders.stdin else { return Ok(()) };
    orders.at(Stage::Stdin);
    // The lowest descriptor that is free is the one that is opened.
    call(libc::SYS_close, [0; 5]).map_err(|errno| (0, errno))?;
    let fd = open(text(path))?;
    call(libc::SYS_fcntl, [fd, int(libc::F_SETFL), 0, 0, 0]).map(drop).map_err(|errno| (0, errno))
}

/// The `which` of a file that is refused because it is on procfs.
pub(super) const ON_PROCFS: usize = 1;

/// Opens a file that the agent named, to read from it without blocking.
///
/// Until `exec` this process is still the supervisor to procfs: its files would show the agent the
/// supervisor's memory, and its magic links would open what the supervisor has open, past the
/// permissions of the directories on the way.
fn open(path: usize) -> Result<usize, Failed> {
    const RESOLVE_NO_MAGICLINKS: u64 = 2;
    let flags = libc::O_RDONLY | libc::O_NOCTTY | libc::O_NONBLOCK;
    // The kernel's `struct open_how`: flags, mode, resolve.
    let how = [u64::from(flags.cast_unsigned()), 0, RESOLVE_NO_MAGICLINKS];
    let at = how.as_ptr().expose_provenance();
    let fd =
        call(libc::SYS_openat2, [int(libc::AT_FDCWD), path, at, size_of_val(&how), 0]).map_err(|errno| (0, errno))?;
    // The kernel's `struct statfs` on 64 bits: 15 words, the first one is the type of the file
    // system.
    let mut about = [0i64; 15];
    let at = about.as_mut_ptr().expose_provenance();
    // SAFETY: the kernel writes at most the 120 bytes of the buffer, which is this function's own.
    #[allow(unsafe_code)]
    unsafe { raw::syscall(libc::SYS_fstatfs, [fd, at, 0, 0, 0]) }.map_err(|errno| (0, errno))?;
    if std::hint::black_box(about)[0] == PROC_SUPER_MAGIC { Err((ON_PROCFS, libc::EPERM)) } else { Ok(fd) }
}

/// Reads the first bytes of a file that could not be executed, with the rights that the program would have had: they say what it
/// lacks.
fn read_head(orders: &Orders<'_>, which: usize) {
    let (true, Some(path)) =
        (orders.report.stage.load(Ordering::Relaxed) == Stage::Exec as u8, orders.search.get(which))
    else {
        return;
    };
    // Even a limit of three descriptors leaves one for this.
    cannot_fail(call(libc::SYS_close, [0; 5]));
    let Ok(fd) = open(path.expose_provenance()) else { return };
    let at = orders.report.head.get().expose_provenance();
    // SAFETY: the buffer is as long as is said, the parent's that sleeps meanwhile, and nobody else's.
    #[allow(unsafe_code)]
    let read = unsafe { raw::syscall(libc::SYS_read, [fd, at, HEAD_MAX, 0, 0]) };
    if let Ok(length) = read {
        orders.report.head_length.store(length, Ordering::Relaxed);
    }
}

/// Tries the candidates in turn as execvp does: a missing one is passed over, a forbidden one too but remembered.
fn exec(orders: &Orders<'_>) -> Result<Infallible, Failed> {
    let argv = orders.argv.as_ptr().expose_provenance();
    let env = orders.env.as_ptr().expose_provenance();
    let mut failed = (0, libc::ENOENT);
    for (which, path) in orders.search.iter().enumerate() {
        orders.at(Stage::Exec);
        let Err(errno) = call(libc::SYS_execve, [path.expose_provenance(), argv, env, 0, 0]) else { continue };
        match errno {
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {
                if failed.1 != libc::EACCES {
                    failed = (which, errno);
                }
            }
            libc::EACCES => {
                if failed.1 != libc::EACCES {
                    failed = (which, errno);
                }
            }
            _ => return Err((which, errno)),
        }
    }
    Err(failed)
}

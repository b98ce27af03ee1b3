//! Starting a program inside a cgroup, from its first instruction on.
//!
//! ```text
//! parent thread                       child (same memory and descriptors, own stack)
//! make everything ready
//! block all signals
//! clone3(VM, VFORK, FILES, PIDFD, CLEAR_SIGHAND, INTO_CGROUP) ──> born in the leaf
//!   :  sleeps                         default signals · v1 mirrors · session, keyring · own descriptors ·
//!   :                                 stdout, stderr, nothing else open · umask, oom_score_adj, scheduling ·
//!   :                                 rlimits · groups, gid, uid, capabilities · cwd · stdin · mask
//!   :                                 execve ──────────────> the program
//! reads the stage and errno that the child left <── or it failed, and ended
//! ```
//!
//! No memory is copied (`fork` copies page tables: 40 ms in a process of 1 GiB) except where a
//! child could take its parent down with it ([`Memory::Copied`]), nor more descriptors than a child
//! needs (copying and closing 10,000 costs a millisecond), no pipe is needed to learn what failed,
//! and no process ever exists outside its leaf.
//!
//! Not here: which limits the leaf has, how long a spawn may take. **A spawn blocks its thread until `exec`**, and a child
//! in a frozen leaf, or one without memory to live in, never comes that far: `cgroup.kill` on the leaf, from another
//! thread, frees the thread, and the spawn tells [`Stage::Killed`]. Not always: a child in an uninterruptible call (a file system
//! that does not answer) holds it for as long as that takes, and another thread takes the child over ([`Newborn`]). So spawn on a
//! thread that lives for ever and can be done without.
//!
//! Invariants: a failed spawn leaves no process, no zombie and no descriptor behind; a child has stdin, stdout and stderr
//! and no other descriptor but the one that is passed to it, no signal blocked or ignored, and leads a session of its own.
//!
//! While a child that gave up its user still borrows our memory, the user must not be able to trace it. The kernel sees
//! to that by marking the *shared* memory undumpable; the mark stays on the supervisor for the rest of its life (no core
//! dumps of it). Nobody may take it off again: another thread's child could be on its way at that moment.

mod bare;
mod child;
mod cradle;
mod entry;
mod needs;
mod newborn;
mod raw;
mod report;
mod shed;
mod taker;
mod tell;

use std::cell::RefCell;
use std::ffi::{CString, OsStr, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use self::child::{Mission, Orders};
use self::cradle::Cradle;
use self::entry::PidEntry;
pub use self::newborn::Newborn;
pub(super) use self::raw::set_signal_mask;
use self::report::Report;
use super::error::errno_text;
use super::pidfd::{self, Exit};
use super::user::Credentials;
use crate::model::error::{Code, Error};
use crate::model::stage::{SpawnFailure, Stage};

pub(super) use bare::{end as end_bare, start as start_bare};
pub(super) use taker::{Late, Taking, take as take_message};

/// How a child comes into its leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is born there (`CLONE_INTO_CGROUP`): the leaf's `pids.max` counts it, nothing of it was ever elsewhere.
    CloneInto,
    /// It is born where we are and writes itself into the leaf before anything else. The leaf's `cgroup.procs` is the
    /// caller's to put first in [`Launch::enter`].
    EnterItself,
}

/// Which memory a child has until it executes its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Ours (`CLONE_VM`). A kill of all processes that share the child's memory ends this process
    /// too: the kernel does that where a whole cgroup runs out of memory (`memory.oom.group`).
    Shared,
    /// A copy of ours, which costs the copying of page tables.
    Copied,
}

/// A resource limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// Which resource.
    pub resource: Resource,
    /// What is enforced, in the resource's unit; `u64::MAX` for no limit.
    pub soft: u64,
    /// How far the process may raise the soft one, in the resource's unit; `u64::MAX` for no limit.
    pub hard: u64,
}

/// A resource that `setrlimit(2)` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource(u32);

impl Resource {
    const NAMES: [&'static str; 16] = [
        "cpu",
        "fsize",
        "data",
        "stack",
        "core",
        "rss",
        "nproc",
        "nofile",
        "memlock",
        "as",
        "locks",
        "sigpending",
        "msgqueue",
        "nice",
        "rtprio",
        "rttime",
    ];

    /// Finds a resource by its name in lower case and without its prefix: `nofile` for `RLIMIT_NOFILE`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        u32::try_from(index).ok().map(Self)
    }

    /// Returns the name: `nofile`.
    #[must_use]
    pub fn name(self) -> &'static str {
        usize::try_from(self.0).ok().and_then(|index| Self::NAMES.get(index)).copied().unwrap_or("?")
    }

    /// Returns how far this process may raise its own limit; `u64::MAX` for no limit, `None` if the kernel does not know it.
    ///
    /// # Kernel
    /// getrlimit(2).
    #[must_use]
    #[allow(unsafe_code)]
    pub fn own_hard_limit(self) -> Option<u64> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel fills in the limit, which outlives the call.
        let answer = unsafe { libc::getrlimit(self.0 as _, &raw mut limit) };
        (answer == 0).then_some(limit.rlim_max)
    }

    /// Walks over the names of all resources.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter()
    }
}

/// An I/O scheduling class and the priority within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPriority {
    /// Served first, 0 (most urgent) to 7. Needs CAP_SYS_ADMIN or CAP_SYS_NICE.
    Realtime(u8),
    /// The usual class, 0 (most urgent) to 7.
    BestEffort(u8),
    /// Served when nobody else wants the disk.
    Idle,
}

impl IoPriority {
    fn bits(self) -> u16 {
        let (class, level) = match self {
            Self::Realtime(level) => (1, level),
            Self::BestEffort(level) => (2, level),
            Self::Idle => (3, 0),
        };
        (class << 13) | u16::from(level & 7)
    }
}

/// Everything that a program is started with.
#[derive(Debug)]
pub struct Launch {
    /// The arguments, the program's own name first.
    pub argv: Vec<CString>,
    /// The environment, each as `NAME=VALUE`; nothing of ours is added.
    pub env: Vec<CString>,
    /// A variable whose value is the child's own process id, which only the child knows.
    pub pid_variable: Option<CString>,
    /// Full paths of the program, tried in turn; see [`path_candidates`].
    pub search: Vec<CString>,
    /// The working directory; entered as the user that the child becomes.
    pub cwd: CString,
    /// The file that the child reads from as descriptor 0, opened as the user that it becomes; `None` is `/dev/null`.
    pub stdin: Option<CString>,
    /// What the child writes to as descriptor 1.
    pub stdout: OwnedFd,
    /// What the child writes to as descriptor 2.
    pub stderr: OwnedFd,
    /// What the child has besides, and under which number: 3 or more.
    pub passed: Option<(OwnedFd, i32)>,
    /// The directory of the cgroup that the child lives in: fresh, never killed before.
    pub leaf: OwnedFd,
    /// `cgroup.procs` files, open for writing, into which the child writes itself, in this order.
    pub enter: Vec<OwnedFd>,
    /// The user, group and supplementary groups that the child becomes; `None` keeps ours.
    pub credentials: Option<Credentials>,
    /// The signals that this process may ignore, a bit each from signal 1 on: the child gives them their default action. `u64::MAX`
    /// where somebody else may have any of them ignored at any time.
    pub ignored: u64,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// How much the OOM killer likes it, -1000 (never) to 1000. `None` is 0, where the host offers that.
    pub oom_score_adj: Option<i16>,
    /// CPU niceness, -20 (most urgent) to 19. `None` is 0, where the host offers that.
    pub nice: Option<i8>,
    /// I/O priority; `None` has none of its own: it follows the niceness.
    pub ionice: Option<IoPriority>,
    /// The permissions that new files do not get.
    pub umask: u16,
    /// Whether `exec` can never give it more privileges than it has (`no_new_privs`).
    pub no_new_privs: bool,
    /// How it comes into its leaf.
    pub way: Way,
    /// Which memory it has until then.
    pub memory: Memory,
}

/// A program that runs.
#[derive(Debug)]
pub struct Launched {
    /// Its process id, for people and for `/proc`; an identity only as long as the pidfd says that it lives.
    pub pid: i32,
    /// Its pidfd: readable when it ends. Closes on exec.
    pub pidfd: OwnedFd,
}

/// Starts a program inside its leaf, and blocks the calling thread until it has been executed or has failed.
///
/// # Errors
/// The stage that failed, with the kernel's errno, the object and, where known, what helps. Nothing of the child is left.
/// A child that a signal ended before `exec` is [`Stage::Killed`].
///
/// # Kernel
/// Linux 5.9 (`close_range(2)`); [`Way::CloneInto`] 5.7. clone(2), execve(2), cgroups(7).
pub fn spawn(launch: &Launch) -> Result<Launched, SpawnFailure> {
    Ok(spawn_shared(launch, &Newborn::default())?.expect("nobody else knows of the child"))
}

/// Does as [`spawn`]; `None` if another thread took the child over meanwhile.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_shared(launch: &Launch, newborn: &Newborn) -> Result<Option<Launched>, SpawnFailure> {
    with_cradle(|cradle| {
        let laid = cradle.lay([launch.stdout.as_fd(), launch.stderr.as_fd()]);
        let laid = laid.map_err(|errno| tell::prepare("stdio", errno));
        let launched = laid.and_then(|()| spawn_laid(launch, cradle, newborn));
        cradle.clear();
        launched
    })
}

/// Opens what the calling thread keeps for its children, and sheds what they must not inherit. A thread that is to spawn among many descriptors calls this
/// before they are there: each of its children copies the table of descriptors as far as it reaches now.
///
/// # Errors
/// [`Stage::Prepare`]: no descriptor or no memory is left.
pub fn get_ready() -> Result<(), SpawnFailure> {
    with_cradle(|cradle| cradle.stock().map_err(|errno| tell::prepare("stdin", errno)))
}

fn with_cradle<T>(act: impl FnOnce(&mut Cradle) -> Result<T, SpawnFailure>) -> Result<T, SpawnFailure> {
    thread_local! {
        static KEPT: RefCell<Option<Cradle>> = const { RefCell::new(None) };
    }
    KEPT.with_borrow_mut(|kept| match kept {
        Some(cradle) => act(cradle),
        None => act(kept.insert(Cradle::new().map_err(|errno| tell::prepare("what a child is born with", errno))?)),
    })
}

/// Does as [`spawn`] with stdin, stdout and stderr in their places.
fn spawn_laid(launch: &Launch, cradle: &Cradle, newborn: &Newborn) -> Result<Option<Launched>, SpawnFailure> {
    let mut moved = Vec::new();
    let mut passed = None;
    if let Some((fd, number)) = &launch.passed {
        let mut source = fd.as_raw_fd();
        // One that has its number already would keep the mark that closes it at exec.
        if source < 3 || source == *number {
            let copy =
                rustix::io::fcntl_dupfd_cloexec(fd, *number).map_err(|errno| tell::prepare("a descriptor", errno))?;
            source = copy.as_raw_fd();
            moved.push(copy);
        }
        passed = Some((source, *number));
    }
    let enter: Vec<i32> = launch.enter.iter().map(AsRawFd::as_raw_fd).collect();
    let rlimits: Vec<(u32, [u64; 2])> =
        launch.rlimits.iter().map(|limit| (limit.resource.0, [limit.soft, limit.hard])).collect();
    let oom_score_adj = launch.oom_score_adj.unwrap_or(0).to_string();
    let has_it_by_birth = cradle.own_oom_score_adj().is_some_and(|own| own == oom_score_adj);
    let oom_score_adj = CString::new(oom_score_adj).unwrap_or_default();
    let (search, argv, mut env) = (pointers(&launch.search), pointers(&launch.argv), pointers(&launch.env));
    let pid_entry = launch.pid_variable.as_deref().map(PidEntry::new);
    if let Some(entry) = &pid_entry {
        env.insert(0, entry.pointer());
    }
    cradle.report.clear();
    let orders = Orders {
        enter: &enter,
        stdio: cradle.places(),
        passed,
        pid_entry: pid_entry.as_ref(),
        ignored: launch.ignored,
        oom_score_adj: (!has_it_by_birth).then_some(&oom_score_adj),
        oom_score_adj_asked: launch.oom_score_adj.is_some(),
        is_scheduled_otherwise: is_scheduled_otherwise(),
        nice: launch.nice.unwrap_or(0),
        nice_asked: launch.nice.is_some(),
        umask: launch.umask,
        ioprio: launch.ionice.map(IoPriority::bits),
        rlimits: &rlimits,
        no_new_privs: launch.no_new_privs,
        credentials: launch.credentials.as_ref().map(|user| (user.uid, user.gid, user.groups.as_slice())),
        keeps_capabilities: match &launch.credentials {
            Some(user) => user.uid == 0,
            None => rustix::process::geteuid().is_root(),
        },
        cwd: &launch.cwd,
        stdin: launch.stdin.as_deref(),
        // Without the null that ends it: this one is walked over by us.
        search: &search[..launch.search.len()],
        argv: &argv,
        env: &env,
        ..Orders::new(Mission::Exec, &cradle.report)
    };
    let child = give_birth(cradle, launch.leaf.as_fd(), (launch.way, launch.memory), &orders, newborn)?;
    if !newborn.come_back() {
        return Ok(None);
    }
    judge(launch, &orders, child).map(Some)
}

impl<'a> Orders<'a> {
    fn new(mission: Mission, report: &'a Report) -> Self {
        Self {
            mission,
            enter: &[],
            stdio: [0, 1, 2],
            passed: None,
            pid_entry: None,
            ignored: 0,
            oom_score_adj: None,
            oom_score_adj_asked: false,
            is_scheduled_otherwise: false,
            nice: 0,
            nice_asked: false,
            umask: 0,
            ioprio: None,
            rlimits: &[],
            no_new_privs: false,
            credentials: None,
            keeps_capabilities: true,
            cwd: c"/",
            stdin: None,
            search: &[],
            argv: &[],
            env: &[],
            report,
        }
    }
}

/// Says whether the calling thread has another scheduling policy than the usual one, which its child would inherit.
#[allow(unsafe_code)]
fn is_scheduled_otherwise() -> bool {
    // SAFETY: it takes no pointer.
    unsafe { libc::sched_getscheduler(0) != libc::SCHED_OTHER }
}

/// Makes the list of pointers that `execve` wants, a null at its end.
fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Makes the child and returns when it has executed its program or ended.
fn give_birth(
    cradle: &Cradle,
    leaf: BorrowedFd<'_>,
    (way, memory): (Way, Memory),
    orders: &Orders<'_>,
    newborn: &Newborn,
) -> Result<Launched, SpawnFailure> {
    clone_on(&cradle.stack, leaf, (way, memory), orders, newborn).map_err(|errno| tell::clone(leaf, errno))
}

#[allow(unsafe_code)]
fn clone_on(
    stack: &raw::Stack,
    leaf: BorrowedFd<'_>,
    (way, memory): (Way, Memory),
    orders: &Orders<'_>,
    newborn: &Newborn,
) -> Result<Launched, Errno> {
    let memory = match memory {
        Memory::Shared => raw::CLONE_VM,
        Memory::Copied => 0,
    };
    let [parent_tid, pidfd] = newborn.places();
    let mut args = raw::CloneArgs {
        flags: memory
            | raw::CLONE_VFORK
            | raw::CLONE_FILES
            | raw::CLONE_PIDFD
            | raw::CLONE_PARENT_SETTID
            | raw::CLONE_CLEAR_SIGHAND,
        pidfd,
        parent_tid,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: stack.usable(),
        stack_size: raw::Stack::SIZE as u64,
        ..raw::CloneArgs::default()
    };
    if way == Way::CloneInto {
        args.flags |= raw::CLONE_INTO_CGROUP;
        args.cgroup = u64::from(leaf.as_raw_fd().cast_unsigned());
    }
    // A handler of ours must not run in the child: it would act on our memory.
    let mask = raw::set_signal_mask(raw::ALL_SIGNALS);
    // SAFETY: the stack is this thread's, and this thread sleeps while the child is on it (CLONE_VFORK); `child::run`
    // and what it calls keep to system calls on `orders`, which outlive the call.
    let born = unsafe { raw::clone3(&args, child::run, std::ptr::from_ref(orders).cast_mut().cast()) };
    raw::set_signal_mask(mask);
    let pid = born.map_err(Errno::from_raw_os_error)?;
    // SAFETY: the kernel has opened this descriptor for us, and nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(newborn.pidfd()) };
    Ok(Launched { pid: i32::try_from(pid).unwrap_or(-1), pidfd })
}

/// Finds out what became of the child, and reaps it if that is nothing.
fn judge(launch: &Launch, orders: &Orders<'_>, child: Launched) -> Result<Launched, SpawnFailure> {
    let report = orders.report;
    let stage = Stage::ALL.get(usize::from(report.stage.load(Ordering::Relaxed))).copied().unwrap_or(Stage::Clone);
    let errno = report.errno.load(Ordering::Relaxed);
    if errno == 0 && stage == Stage::Exec && !ended_before_exec(&child) {
        return Ok(child);
    }
    // It has left our memory already and is at its end: this waits for the last of it.
    let ended = pidfd::wait(child.pidfd.as_fd());
    if errno == 0 {
        return Err(tell::killed(stage, ended.map(|ended| ended.status)));
    }
    let which = report.which.load(Ordering::Relaxed);
    Err(tell::failed(launch, stage, which, Errno::from_raw_os_error(errno), report.head()))
}

/// Says whether a child that came as far as calling `execve` was ended in it.
///
/// Only of a child that is a zombie by now can this be said: one that lives may still be at the kernel's own work, and
/// both an `exec` and an end let its parent go on before they are done. So a child that is killed in the middle of its
/// `execve` may be told as launched, and then as ended by a signal.
fn ended_before_exec(child: &Launched) -> bool {
    /// The kernel's own mark: a new process has it and the first `exec` takes it off, when it cannot fail any more.
    const PF_FORKNOEXEC: u64 = 0x40;
    if !pidfd::has_ended(child.pidfd.as_fd()).unwrap_or(false) {
        return false;
    }
    let Ok(stat) = std::fs::read(format!("/proc/{}/stat", child.pid)) else { return false };
    process_flags(&stat).is_some_and(|flags| flags & PF_FORKNOEXEC != 0)
}

/// Reads the kernel's flags of a process from its `stat`; proc_pid_stat(5), field 9.
fn process_flags(stat: &[u8]) -> Option<u64> {
    // The name, in parentheses, may contain anything; the state follows it, and the flags are the seventh from there.
    let after_name = stat.get(memchr::memrchr(b')', stat)? + 1..)?;
    std::str::from_utf8(after_name.split(|byte| *byte == b' ').nth(7)?).ok()?.parse().ok()
}

/// Refuses a process to which `clone3` is forbidden, by asking for nothing: the kernel itself answers EINVAL. There, not even threads can
/// be made with every C library, and errors about those would name no cause.
///
/// # Errors
/// [`Code::Unsupported`].
///
/// # Kernel
/// clone(2), seccomp(2): Docker's older profiles answer EPERM, newer ones ENOSYS.
pub fn check_clone3() -> Result<(), Error> {
    // SAFETY: no arguments, and no size of them: it is refused before anything is read.
    #[allow(unsafe_code)]
    let answer = unsafe { raw::syscall(libc::SYS_clone3, [0; 5]) };
    let Err(errno @ (libc::EPERM | libc::ENOSYS)) = answer else { return Ok(()) };
    let message = format!("start a process by clone3: {}", errno_text(Errno::from_raw_os_error(errno)));
    Err(Error::new(Code::Unsupported, message).remedy(tell::NO_CLONE3))
}

/// Finds out by trying whether children can be born in cgroups here.
///
/// Some kernels kill at birth every child that is born in a cgroup of which, or of whose parent process's cgroup,
/// `cgroup.kill` was ever written. `leaf` is a freshly made, empty cgroup; the child ends at once without running any
/// program, and nothing of it is left.
///
/// # Errors
/// [`Stage::Clone`] if no child could be made at all.
///
/// # Kernel
/// `CLONE_INTO_CGROUP`: Linux 5.7, clone(2). The bug: about 6.14 to 6.18.44.
pub fn way_that_works(leaf: BorrowedFd<'_>) -> Result<Way, SpawnFailure> {
    let how = (Way::CloneInto, Memory::Copied);
    let child = with_cradle(|cradle| {
        give_birth(cradle, leaf, how, &Orders::new(Mission::Exit, &cradle.report), &Newborn::default())
    })?;
    match pidfd::wait(child.pidfd.as_fd()).map(|ended| ended.status) {
        Ok(Exit::Signal { .. }) => Ok(Way::EnterItself),
        // With SIGCHLD ignored the kernel reaps for us and tells nothing.
        Ok(Exit::Code(_)) | Err(_) => Ok(Way::CloneInto),
    }
}

/// Returns the full paths that `execvp(3)` would try for a command: itself if it has a slash, else one for each
/// directory of `path`. An empty directory is the working directory.
///
/// A command or a directory with a zero byte is no path, and has no candidate.
#[must_use]
pub fn path_candidates(command: &str, path: &OsStr) -> Vec<CString> {
    if command.is_empty() {
        return Vec::new();
    }
    if command.contains('/') {
        return CString::new(command).into_iter().collect();
    }
    path.as_bytes()
        .split(|byte| *byte == b':')
        .filter_map(|directory| {
            let end = directory.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
            let directory = if directory.is_empty() { b"." } else { &directory[..end] };
            CString::new([directory, b"/", command.as_bytes()].concat()).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(command: &str, path: &str) -> Vec<String> {
        path_candidates(command, OsStr::new(path)).into_iter().map(|path| path.into_string().unwrap()).collect()
    }

    #[test]
    fn a_command_is_looked_up_as_execvp_does() {
        assert_eq!(candidates("ls", "/usr/bin:/bin/"), ["/usr/bin/ls", "/bin/ls"]);
        assert_eq!(candidates("./ls", "/usr/bin"), ["./ls"]);
        assert_eq!(candidates("/bin/ls", "/usr/bin"), ["/bin/ls"]);
        assert_eq!(candidates("ls", ":/bin"), ["./ls", "/bin/ls"]);
        assert_eq!(candidates("ls", "/"), ["/ls"]);
        assert_eq!(candidates("", "/bin"), Vec::<String>::new());
        assert_eq!(candidates("a\0b", "/bin"), Vec::<String>::new());
    }

    #[test]
    fn resources_have_the_kernels_numbers() {
        assert_eq!(Resource::from_name("nofile"), Some(Resource(libc::RLIMIT_NOFILE)));
        assert_eq!(Resource::from_name("rttime"), Some(Resource(libc::RLIMIT_RTTIME)));
        assert_eq!(Resource::from_name("core"), Some(Resource(libc::RLIMIT_CORE)));
        assert_eq!(Resource::from_name("as"), Some(Resource(libc::RLIMIT_AS)));
        assert_eq!(Resource::from_name("msgqueue"), Some(Resource(libc::RLIMIT_MSGQUEUE)));
        assert_eq!(Resource::from_name("RLIMIT_AS"), None);
        assert!(Resource::names().all(|name| Resource::from_name(name).unwrap().name() == name));
    }

    #[test]
    fn the_flags_of_a_process_are_found_behind_whatever_its_name_is() {
        assert_eq!(process_flags(b"7 (a) b) 1 2 (c) Z 1 7 7 0 -1 4227148 0 0"), Some(4_227_148));
        assert_eq!(process_flags(b"7 (a"), None);
        let ours = std::fs::read("/proc/self/stat").unwrap();
        assert_eq!(process_flags(&ours).unwrap() & 0x40, 0, "this process has executed the test binary");
    }
}

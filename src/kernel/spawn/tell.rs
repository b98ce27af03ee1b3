//! What a failed spawn tells: the object, the cause, and for the known ones what helps.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::io::Errno;

use super::Launch;
use super::child::ON_PROCFS;
use super::needs::{Needs, needs};
use crate::kernel::error::{KernelError, errno_text};
use crate::kernel::pidfd::Exit;
use crate::model::stage::{SpawnFailure, Stage};

fn failure(stage: Stage, object: &str, errno: Errno) -> SpawnFailure {
    SpawnFailure {
        stage,
        errno: Some(errno.raw_os_error()),
        message: format!("{object}: {}", errno_text(errno)),
        remedy: None,
    }
}

pub(super) fn prepare(object: &str, errno: Errno) -> SpawnFailure {
    failure(Stage::Prepare, object, errno)
}

/// What helps where clone3 is forbidden. There is no way around it: nothing else makes a process inside its cgroup.
pub(super) const NO_CLONE3: &str = "a seccomp filter forbids clone3: use a profile that allows it (Docker 20.10.10 or newer \
     with CAP_SYS_ADMIN, or --security-opt seccomp=FILE; SystemCallFilter= of a unit)";

/// Tells why no process could be made.
pub(super) fn clone(leaf: BorrowedFd<'_>, errno: Errno) -> SpawnFailure {
    let remedy = match errno {
        Errno::AGAIN => Some(
            "a limit on the number of tasks is reached: pids_max of the agent or of one above it, or the host's \
             kernel.threads-max or kernel.pid_max",
        ),
        Errno::NOENT | Errno::NODEV => Some("the cgroup has been removed"),
        Errno::BUSY => Some("the cgroup has controllers enabled for cgroups below it, and so takes no process itself"),
        Errno::BADF => Some("this is not a directory of cgroup2"),
        Errno::OPNOTSUPP => Some("the cgroup is threaded or below a threaded one"),
        Errno::ACCESS => Some("run treeherd as root, or delegate the cgroup and its cgroup.procs to it"),
        Errno::NOSYS | Errno::PERM => Some(NO_CLONE3),
        Errno::NOMEM => Some("the host is out of memory, or its pid namespace has ended"),
        _ => None,
    };
    SpawnFailure { remedy: remedy.map(str::to_owned), ..failure(Stage::Clone, &path_of(leaf), errno) }
}

/// Tells that a signal ended the child at a stage.
pub(super) fn killed(stage: Stage, ended: Result<Exit, KernelError>) -> SpawnFailure {
    let by = match ended {
        Ok(Exit::Signal { number, .. }) => nix::sys::signal::Signal::try_from(number)
            .map_or_else(|_| format!("signal {number}"), |name| name.to_string()),
        Ok(Exit::Code(code)) => format!("exit {code}"),
        Err(_) => "a signal".to_owned(),
    };
    let message = format!("by {by} before exec, at the stage {stage}");
    SpawnFailure { stage: Stage::Killed, errno: None, message, remedy: None }
}

/// Tells which step failed, on which of its objects.
pub(super) fn failed(launch: &Launch, stage: Stage, which: usize, errno: Errno, head: Option<&[u8]>) -> SpawnFailure {
    let object = match stage {
        Stage::Enter => launch.enter.get(which).map(|fd| path_of(fd.as_fd())),
        Stage::Session => Some("setsid".to_owned()),
        Stage::Stdio => Some(stdio(launch, which)),
        Stage::OomScoreAdj => launch.oom_score_adj.map(|value| value.to_string()),
        Stage::Nice => launch.nice.map(|value| value.to_string()),
        Stage::Ionice => launch.ionice.map(|value| format!("{value:?}")),
        Stage::Rlimits => {
            launch.rlimits.get(which).map(|limit| format!("{} {}:{}", limit.resource.name(), limit.soft, limit.hard))
        }
        Stage::Groups => launch.credentials.as_ref().map(|user| format!("{:?}", user.groups)),
        Stage::Gid => launch.credentials.as_ref().map(|user| user.gid.to_string()),
        Stage::Uid => launch.credentials.as_ref().map(|user| user.uid.to_string()),
        Stage::Cwd => Some(launch.cwd.to_string_lossy().into_owned()),
        Stage::Stdin => launch.stdin.as_ref().map(|path| path.to_string_lossy().into_owned()),
        Stage::Exec => Some(program(launch, which)),
        _ => None,
    };
    SpawnFailure {
        remedy: remedy(launch, stage, which, errno, head),
        ..failure(stage, &object.unwrap_or_default(), errno)
    }
}

/// Returns which descriptor could not be put in its place.
fn stdio(launch: &Launch, which: usize) -> String {
    match (which, &launch.passed) {
        (3, Some((_, number))) => format!("descriptor {number}"),
        _ => (*["stdin", "stdout", "stderr"].get(which).unwrap_or(&"close_range")).to_owned(),
    }
}

/// Returns what was to be executed: the only candidate, or the name that was looked for.
fn program(launch: &Launch, which: usize) -> String {
    let shown = match launch.search.as_slice() {
        [_, _, ..] => launch.argv.first(),
        _ => None,
    };
    let shown = shown.or(launch.search.get(which)).or(launch.argv.first());
    shown.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn remedy(launch: &Launch, stage: Stage, which: usize, errno: Errno, head: Option<&[u8]>) -> Option<String> {
    let no_privilege = matches!(errno, Errno::PERM | Errno::ACCESS);
    let text = match (stage, errno) {
        (Stage::Enter, Errno::NOSPC) => "its cpuset has no CPUs or no memory nodes yet",
        (Stage::Enter, Errno::NODEV | Errno::NOENT) => "the cgroup has been removed",
        (Stage::Enter, Errno::BUSY) => "the cgroup has controllers enabled for cgroups below it",
        (Stage::OomScoreAdj, _) if no_privilege => "this host gives no CAP_SYS_RESOURCE: the value can only be raised",
        (Stage::Rlimits, Errno::PERM) => "this host gives no CAP_SYS_RESOURCE: a hard limit can only be lowered",
        (Stage::Rlimits, Errno::INVAL) => "the soft limit is above the hard one",
        (Stage::Nice | Stage::Ionice, _) if no_privilege => "run treeherd with CAP_SYS_NICE",
        (Stage::Groups | Stage::Gid | Stage::Uid, Errno::PERM) => {
            "run treeherd as root to start programs as another user"
        }
        (Stage::Groups | Stage::Gid | Stage::Uid, Errno::INVAL) => "the id is not mapped in this user namespace",
        (Stage::Cwd, Errno::ACCESS) if launch.credentials.is_some() => "the user may not enter this directory",
        (Stage::Cwd, Errno::NOENT | Errno::NOTDIR) => "make the directory before the agent starts, or give another cwd",
        (Stage::Stdin, _) if which == ON_PROCFS => {
            "it is on procfs and would be opened before exec, when it shows the supervisor: have the program open it"
        }
        (Stage::Stdin, Errno::LOOP) => {
            "it has too many symbolic links, or is one of procfs, as /dev/stdin and /proc/self/fd are, which leads to a \
             file of the supervisor before exec: name the file itself"
        }
        (Stage::Exec, _) => return exec_remedy(launch, which, errno, head),
        _ => return None,
    };
    Some(text.to_owned())
}

fn exec_remedy(launch: &Launch, which: usize, errno: Errno, head: Option<&[u8]>) -> Option<String> {
    let looked_for = launch.search.len() > 1;
    let path = launch.search.get(which).map(|path| in_cwd(launch, path.as_bytes()));
    // As the supervisor sees it, which may be more than the user that the child became can see.
    let found = path.as_ref().and_then(|path| std::fs::metadata(path).ok());
    let text = match errno {
        Errno::NOENT | Errno::ACCESS | Errno::NOEXEC | Errno::LIBBAD if found.is_some() => {
            return lack(launch, path?.as_path(), &found?, errno, head);
        }
        Errno::NOENT if looked_for => {
            return Some(format!("not in any of the {} directories of PATH", launch.search.len()));
        }
        Errno::ACCESS => "let the user reach the file",
        Errno::TOOBIG => {
            "arguments and environment are too long: 128 KiB for each at most, and a quarter of the stack's rlimit \
             (2 MiB by default) for all"
        }
        Errno::TXTBSY => "somebody has the file open for writing",
        Errno::AGAIN => "the user has reached its rlimit nproc",
        Errno::NOMEM => "there is not enough memory to begin with: raise memory_max",
        _ => return None,
    };
    Some(text.to_owned())
}

fn in_cwd(launch: &Launch, path: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(launch.cwd.as_bytes())).join(OsStr::from_bytes(path))
}

/// Says what a file lacks that is there and cannot be executed.
fn lack(launch: &Launch, path: &Path, about: &Metadata, errno: Errno, head: Option<&[u8]>) -> Option<String> {
    if errno == Errno::ACCESS
        && let Some(why) = forbidden(path, about)
    {
        return Some(why);
    }
    let needs = head.map(needs);
    Some(match (needs, errno) {
        (Some(Needs::Interpreter(name)), Errno::NOENT | Errno::ACCESS | Errno::LIBBAD | Errno::NOEXEC) => {
            interpreter_remedy(launch, &name)
        }
        (Some(Needs::Loader(name)), Errno::NOENT) => {
            let name = shown(&name);
            format!("its loader {name} does not exist: install the C library that it was built for, or a static build")
        }
        (Some(Needs::Machine(name)), Errno::NOEXEC) => {
            format!("it is a program for {name}, and this machine is {}", std::env::consts::ARCH)
        }
        (Some(Needs::Content), Errno::NOEXEC) => "the file is empty".to_owned(),
        (_, Errno::NOENT) => "the file exists, but the interpreter or loader that it names does not".to_owned(),
        (_, Errno::NOEXEC) => {
            "it is neither a program for this machine nor a script whose first line is #! and an interpreter".to_owned()
        }
        (_, Errno::ACCESS) => "let the user reach the file and execute it".to_owned(),
        _ => return None,
    })
}

/// Says why nobody may execute a file.
fn forbidden(path: &Path, about: &Metadata) -> Option<String> {
    if about.is_dir() {
        return Some("it is a directory: name a program in it".to_owned());
    }
    if !about.is_file() {
        return Some("it is not a regular file".to_owned());
    }
    if about.mode() & 0o111 == 0 {
        return Some("the file is not executable: chmod +x".to_owned());
    }
    let mount = statvfs(path).ok()?;
    mount
        .f_flag
        .contains(StatVfsMountFlags::NOEXEC)
        .then(|| "its file system is mounted noexec: mount it with exec, or put the program elsewhere".to_owned())
}

fn interpreter_remedy(launch: &Launch, name: &[u8]) -> String {
    let path = in_cwd(launch, name);
    let (name, found) = (shown(name), std::fs::metadata(&path).ok());
    let why = match &found {
        None if name.ends_with("\\r") => {
            "does not exist: its line ends in a carriage return, convert the file to Unix lines"
        }
        None => "does not exist: install it, or correct the line",
        Some(about) => match forbidden(&path, about) {
            Some(why) => return format!("the interpreter {name} of its first line cannot be executed: {why}"),
            None => "cannot be executed itself: its own interpreter or loader is missing, or the user may not reach it",
        },
    };
    format!("the interpreter {name} of its first line {why}")
}

/// Shows a path that a file names: it may have any bytes.
fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

/// Returns the path that a descriptor of ours was opened under, for people.
fn path_of(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    let number = fd.as_raw_fd();
    std::fs::read_link(format!("/proc/self/fd/{number}"))
        .map_or_else(|_| format!("descriptor {number}"), |path| path.to_string_lossy().into_owned())
}

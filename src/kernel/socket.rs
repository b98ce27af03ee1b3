//! The state directory, which one daemon at a time has, and the socket in it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::error::KernelError;
use super::lock::{Lock, Refused};
use super::{pidfd, rights};
use crate::model::error::{Code, Error, check_socket_path};

/// The file in the state directory that is locked.
const LOCK: &str = "lock";

/// The mode of the socket for clients: whoever may write to it commands the daemon.
pub const SOCKET_MODE: u32 = 0o660;

/// A state directory that is ours until this value is dropped or the process ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    held: Mutex<Held>,
}

/// The directory and the lock in it; replaced when somebody has deleted them.
#[derive(Debug)]
struct Held {
    dir: Arc<OwnedFd>,
    _lock: Lock,
}

impl StateDir {
    /// Returns the directory's path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open directory.
    #[must_use]
    pub fn dir(&self) -> Arc<OwnedFd> {
        self.held().dir.clone()
    }

    /// Re-creates the directory and its lock if they were deleted, and returns the names of what was.
    ///
    /// # Errors
    /// As [`claim_state_dir`].
    pub fn restore(&self) -> Result<Vec<String>, Error> {
        let mut held = self.held();
        let is_moved = !is_at(&held.dir, &self.path);
        if !is_moved && !is_missing(&self.path.join(LOCK)) {
            return Ok(Vec::new());
        }
        let dir = if is_moved { Arc::new(open_state_dir(&self.path)?) } else { held.dir.clone() };
        *held = Held { _lock: lock(&dir, &self.path)?, dir };
        Ok(if is_moved { vec![self.path.display().to_string()] } else { vec![LOCK.to_owned()] })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says whether nothing stands at a path. What cannot be examined counts as there.
#[must_use]
pub fn is_missing(path: &Path) -> bool {
    rustix::fs::lstat(path).is_err_and(|errno| errno == Errno::NOENT)
}

/// Says whether an open directory is the one at a path.
fn is_at(dir: &OwnedFd, path: &Path) -> bool {
    let identity = |about: rustix::fs::Stat| (about.st_dev, about.st_ino);
    let there = rustix::fs::lstat(path).map(identity);
    there.is_ok() && there == rustix::fs::fstat(dir).map(identity)
}

/// Takes a state directory for this process, and makes it (0711, ours) if it is not there; its parent must be.
///
/// # Errors
/// [`Code::InUse`]: another daemon, named by its pid, has it. [`Code::Unsupported`] and [`Code::Kernel`]: it is a symbolic link or
/// no directory, belongs to somebody else, others may write to it, or it cannot be made.
///
/// # Kernel
/// fcntl_locking(2): the lock dies with the process.
pub fn claim_state_dir(path: &Path) -> Result<StateDir, Error> {
    let dir = open_state_dir(path)?;
    let held = Held { _lock: lock(&dir, path)?, dir: Arc::new(dir) };
    Ok(StateDir { path: path.to_owned(), held: Mutex::new(held) })
}

fn lock(dir: &OwnedFd, path: &Path) -> Result<Lock, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock_path = path.join(LOCK);
    let failed =
        |operation: &str, errno| Error::from(KernelError::new(operation, lock_path.display().to_string(), errno));
    let lock = rustix::fs::openat(dir, LOCK, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| failed("open", errno))?;
    Lock::take(lock).map_err(|refused| match refused {
        Refused::Held(by) => in_use(path, &by),
        Refused::Failed(errno) => failed("lock", errno),
    })
}

/// Says whether a supervisor has a state directory; one that cannot be examined counts as taken.
#[must_use]
pub fn is_state_dir_in_use(path: &Path) -> bool {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::open(path.join(LOCK), flags, Mode::empty()) {
        Ok(lock) => !matches!(fcntl_getlk(&lock, &Flock::from(FlockType::WriteLock)), Ok(None)),
        Err(errno) => errno != Errno::NOENT,
    }
}

fn in_use(path: &Path, holder: &str) -> Error {
    Error::new(Code::InUse, format!("state directory {} is in use by {holder}", path.display()))
        .remedy("talk to that daemon, end it with `treeherd shutdown`, or give this one another --state-dir")
}

fn open_state_dir(path: &Path) -> Result<OwnedFd, Error> {
    let shown = path.display();
    let refused = |why: &str, remedy: &str| {
        Err(Error::new(Code::Unsupported, format!("state directory {shown} {why}")).remedy(remedy))
    };
    let made = match rustix::fs::mkdir(path, Mode::from_raw_mode(0o711)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => {
            return Err(KernelError::new("make state directory", shown.to_string(), errno)
                .hint("make its parent directory, or give another --state-dir")
                .into());
        }
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return refused("is a symbolic link or no directory", "remove it, or give another --state-dir");
        }
        Err(errno) => return Err(KernelError::new("open state directory", shown.to_string(), errno).into()),
    };
    let failed = |errno| Error::from(KernelError::new("examine state directory", shown.to_string(), errno));
    if made {
        // The umask has taken its share.
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o711)).map_err(failed)?;
    }
    let about = rustix::fs::fstat(&dir).map_err(failed)?;
    if about.st_uid != rustix::process::geteuid().as_raw() {
        return refused(&format!("belongs to user {}", about.st_uid), "chown it to the user that the daemon runs as");
    }
    if about.st_mode & 0o022 != 0 {
        return refused("can be written to by others", "chmod go-w it: who writes there commands the daemon");
    }
    Ok(dir)
}

/// Looks up the group whose members may use the socket: `treeherd`. A host without it, or without a name service at all, is the
/// usual one.
#[must_use]
pub fn usual_group() -> Option<u32> {
    super::user::lookup_group("treeherd").ok()
}

/// Opens a listening socket for clients: with this mode, of this group if we may give it away, else of ours.
///
/// A socket that a dead daemon left behind is removed: the claim on the state directory is the proof that no other daemon
/// lives on it.
///
/// # Errors
/// [`Code::InUse`]: somebody answers on the socket. [`Code::BadValue`]: the path is too long for a
/// socket. [`Code::Unsupported`], [`Code::Kernel`]: others may replace what is in its directory,
/// something that is no socket is in the way (and stays), or a call failed.
///
/// # Kernel
/// unix(7).
pub fn bind(_claim: &StateDir, path: &Path, group: Option<u32>, mode: u32) -> Result<UnixListener, Error> {
    let shown = path.display().to_string();
    let address = address_of(path)?;
    check_directory(path)?;
    remove_stale(path, &address)?;
    let failed = |operation: &str, errno| Error::from(KernelError::new(operation, shown.as_str(), errno));
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| failed("make socket", errno))?;
    // A connection inherits it.
    rights::refuse(&socket);
    // Nobody can connect before `listen`, so nobody does before the mode is right.
    bind_at(&socket, path, &address, group, mode)?;
    rustix::net::listen(&socket, 128).map_err(|errno| failed("listen on socket", errno))?;
    Ok(UnixListener::from(socket))
}

/// Takes over the listening socket that a service manager has handed to this process, if it has.
///
/// # Errors
/// [`Code::Unsupported`]: it has handed over several, or something that is not a listening Unix stream socket.
/// [`Code::Kernel`]: `LISTEN_FDS` cannot be read.
///
/// # Panics
/// If it is called twice in a process: the descriptor has one owner.
///
/// # Kernel
/// sd_listen_fds(3), unix(7).
pub fn inherited() -> Result<Option<UnixListener>, Error> {
    static IS_TAKEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    let mut handed =
        sd_notify::listen_fds().map_err(|error| Error::new(Code::Kernel, format!("read LISTEN_FDS: {error}")))?;
    let count = handed.len();
    let Some(fd) = handed.next() else { return Ok(None) };
    let refused = |why: String| {
        let error = Error::new(Code::Unsupported, format!("the service manager handed over {why}"));
        Err(error.remedy("give one ListenStream= with a path, and nothing else"))
    };
    if count > 1 {
        return refused(format!("{count} sockets, and one is all that is served"));
    }
    assert!(!IS_TAKEN.swap(true, std::sync::atomic::Ordering::Relaxed), "descriptor {fd} was taken over already");
    // SAFETY: the service manager opened it for us, `LISTEN_PID` says so, and nobody else in this process asks for it.
    #[allow(unsafe_code)]
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let is_unix = rustix::net::getsockname(&socket).is_ok_and(|name| name.address_family() == AddressFamily::UNIX);
    let is_stream = rustix::net::sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
    if !is_unix || !is_stream || rustix::net::sockopt::socket_acceptconn(&socket) != Ok(true) {
        return refused(format!("descriptor {fd}, which is not a listening Unix stream socket"));
    }
    rights::refuse(&socket);
    Ok(Some(UnixListener::from(socket)))
}

/// Binds a socket, and gives its file this mode, whatever the umask is, and this group if we may.
///
/// The file is opened once and changed by that descriptor: a path that is resolved again could lead
/// to another file by then.
///
/// # Kernel
/// unix(7): the file gets the mode of the socket itself, less the umask.
pub(super) fn bind_at(
    socket: &OwnedFd,
    path: &Path,
    address: &SocketAddrUnix,
    group: Option<u32>,
    mode: u32,
) -> Result<(), KernelError> {
    let failed = |operation: &str| {
        let (operation, shown) = (operation.to_owned(), path.display().to_string());
        move |errno| KernelError::new(operation, shown, errno)
    };
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::fchmod(socket, mode).map_err(failed("set the mode of socket"))?;
    rustix::net::bind(socket, address).map_err(failed("bind socket"))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open bound socket"))?;
    let about = rustix::fs::fstat(&file).map_err(failed("examine bound socket"))?;
    let is_socket = FileType::from_raw_mode(about.st_mode) == FileType::Socket;
    if !is_socket || about.st_uid != rustix::process::geteuid().as_raw() {
        return Err(failed("keep bound socket")(Errno::STALE).hint("another program has replaced it"));
    }
    if let Some(id) = group {
        match rustix::fs::chownat(&file, "", None, Some(Gid::from_raw(id)), AtFlags::EMPTY_PATH) {
            // Somebody who is not root and not in the group keeps the socket to their own.
            Err(Errno::PERM) => {}
            other => other.map_err(failed("give socket to group"))?,
        }
    }
    if Mode::from_raw_mode(about.st_mode) != mode {
        let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::chmod(by_descriptor, mode).map_err(failed("set the mode of bound socket"))?;
    }
    Ok(())
}

/// Refuses the directory of a socket in which others can replace it: who connects would be served
/// by them.
fn check_directory(path: &Path) -> Result<(), Error> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shown = directory.display();
    let about = match rustix::fs::stat(directory) {
        Ok(about) => about,
        // The bind has the reason.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(KernelError::new("examine socket directory", shown.to_string(), errno).into()),
    };
    let (mode, owner) = (about.st_mode & 0o7777, about.st_uid);
    let (is_sticky, is_writable) = (mode & 0o1000 != 0, mode & 0o022 != 0);
    let (why, remedy) = if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        (format!("belongs to user {owner}"), format!("chown {shown} to root or to the user of the daemon"))
    } else if is_writable && !is_sticky {
        (format!("can be written to by others (mode {mode:04o})"), format!("chmod go-w {shown}"))
    } else {
        return Ok(());
    };
    let message = format!("bind socket {}: its directory {shown} {why}, who could replace the socket", path.display());
    Err(Error::new(Code::Unsupported, message).remedy(format!("{remedy}, or give a --socket in another directory")))
}

pub(super) fn address_of(path: &Path) -> Result<SocketAddrUnix, Error> {
    check_socket_path(path)?;
    SocketAddrUnix::new(path).map_err(|errno| KernelError::new("name socket", path.display().to_string(), errno).into())
}

/// Removes the socket of a dead daemon; whatever else is at the path stays.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), Error> {
    let shown = path.display();
    if !is_left_behind(path)? {
        return Ok(());
    }
    let failed = |operation: &str, errno| Error::from(KernelError::new(operation, shown.to_string(), errno));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| failed("make socket", errno))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        // EAGAIN: somebody listens and does not accept as fast as others connect.
        Ok(()) | Err(Errno::AGAIN) if listener_is_dead(&probe) => {}
        Ok(()) | Err(Errno::AGAIN) => {
            return Err(Error::new(Code::InUse, format!("somebody answers on socket {shown}"))
                .remedy("end that daemon, or give another --socket"));
        }
        Err(errno) => return Err(failed("connect to socket", errno)),
    }
    unlink_stale(path)
}

/// Says whether a socket of ours stands at a path.
///
/// # Errors
/// [`Code::Unsupported`]: something else stands there, and stays.
pub(super) fn is_left_behind(path: &Path) -> Result<bool, Error> {
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(false),
        Ok(about) if about.file_type().is_socket() && about.uid() == rustix::process::geteuid().as_raw() => Ok(true),
        Ok(_) => {
            let why = format!("{} is in the way: it is not a socket of ours", path.display());
            Err(Error::new(Code::Unsupported, why).remedy("remove it, or give another --state-dir or --socket"))
        }
    }
}

pub(super) fn unlink_stale(path: &Path) -> Result<(), Error> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(KernelError::new("remove stale socket", path.display().to_string(), errno).into()),
    }
}

/// Says whether the process that listened is dead although its socket is open: a child of it that hangs on its way to `exec`
/// still has a copy of the descriptor.
fn listener_is_dead(probe: &OwnedFd) -> bool {
    let pid = getsockopt(probe, sockopt::PeerCredentials).map(|credentials| credentials.pid());
    pid.is_ok_and(|pid| pid > 0 && pidfd::open(pid).is_err_and(|error| error.is_gone()))
}

#[cfg(test)]
mod tests;

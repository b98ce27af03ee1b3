//! Who is at the other end of a connection: the process that connected, and the cgroup that it was in.
//!
//! The kernel notes the process at `connect`. A connection can be handed on, or outlive that process: its identity stays
//! that of the process that made it. A pid alone proves nothing, since it may have been given to another process meanwhile:
//!
//! | kernel | a living peer | a peer that has ended |
//! | --- | --- | --- |
//! | 6.17 and later | its pidfd (`SO_PEERPIDFD`) | its cgroup by the pidfd (`PIDFD_GET_INFO`), if that cgroup still exists |
//! | 6.5 to 6.16 | its pidfd | nothing: the process is unknown |
//! | before | its pid, if the process that has it now has the same user and began before the connection was accepted | the process is unknown |
//!
//! On kernels before 6.5 a stranger can stand in for a peer that has ended if all pids were used once between `connect` and
//! `accept`, and if its user is the same.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::io::Errno;

use super::error::{KernelError, Result};
use super::pidfd;
use crate::model::time::Monotonic;

/// The process that connected, as it was then.
#[derive(Debug)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process id, 0 if it is outside our pid namespace. Only a number.
    pub pid: i32,
    /// Where it is, or was when it ended.
    pub origin: Origin,
}

/// Where a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In this cgroup, as `/proc/PID/cgroup` shows it.
    Cgroup(String),
    /// Outside our pid namespace: it descends from none of our processes.
    OtherNamespace,
    /// The kernel does not prove it. Why, as the rest of a sentence that begins with the process.
    Unknown(&'static str),
}

/// Finds out who is at the other end of a connection that was accepted at this time. `find` finds the path of an existing
/// cgroup by its identity.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM: the peer may live, and cannot be identified.
///
/// # Kernel
/// SO_PEERCRED, unix(7). SO_PEERPIDFD: Linux 6.5; of a peer that has ended EINVAL or ESRCH before
/// 6.17.
pub fn peer(stream: impl AsFd, accepted: Monotonic, find: impl FnOnce(u64) -> Result<Option<String>>) -> Result<Peer> {
    let failed = |option: &str, client: &str, errno: nix::errno::Errno| {
        KernelError::new(format!("read {option} of"), client, Errno::from_raw_os_error(errno as i32))
    };
    let credentials =
        getsockopt(&stream, sockopt::PeerCredentials).map_err(|errno| failed("SO_PEERCRED", "a client", errno))?;
    let (uid, gid, pid) = (credentials.uid(), credentials.gid(), credentials.pid());
    let origin = match getsockopt(&stream, sockopt::PeerPidfd) {
        _ if pid == 0 => Origin::OtherNamespace,
        Ok(pidfd) => by_pidfd(&pidfd, pid, find)?,
        Err(nix::errno::Errno::ENOPROTOOPT) => by_number(pid, uid, accepted)?,
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ESRCH) => ENDED,
        Err(errno) => return Err(failed("SO_PEERPIDFD", &format!("the client with pid {pid}"), errno)),
    };
    Ok(Peer { uid, gid, pid, origin })
}

fn by_pidfd(pidfd: &OwnedFd, pid: i32, find: impl FnOnce(u64) -> Result<Option<String>>) -> Result<Origin> {
    if let Some(path) = pidfd::cgroup_of(pid)?
        // Not reaped after the file was read, so not before: the number was its own.
        && pidfd::pid_of(pidfd.as_fd())? == Some(pid)
    {
        return Ok(existing(path));
    }
    match pidfd::cgroup_id(pidfd.as_fd())? {
        Some(id) => Ok(find(id)?.map_or(GONE, existing)),
        None => Ok(ENDED),
    }
}

const ENDED: Origin = Origin::Unknown("has ended, and this kernel does not keep where it was");
const GONE: Origin = Origin::Unknown("has ended, and its cgroup was removed");

/// A cgroup that was removed belongs to nobody: another one may have its name.
fn existing(path: String) -> Origin {
    if path.ends_with(" (deleted)") { GONE } else { Origin::Cgroup(path) }
}

/// Finds a process by its number where the kernel gives no pidfd of a peer.
///
/// # Kernel
/// proc_pid_stat(5), field 22; proc_pid_status(5), `Uid`.
fn by_number(pid: i32, uid: u32, accepted: Monotonic) -> Result<Origin> {
    const UNPROVED: Origin = Origin::Unknown("has ended, or its pid belongs to another process");
    let pidfd = match pidfd::open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.is_gone() => return Ok(UNPROVED),
        Err(error) => return Err(error),
    };
    let Some(path) = pidfd::cgroup_of(pid)? else { return Ok(UNPROVED) };
    let is_its_own = pidfd::began_before(pid, accepted)? == Some(true) && pidfd::effective_user(pid)? == Some(uid);
    Ok(if is_its_own && !pidfd::has_ended(pidfd.as_fd())? { existing(path) } else { UNPROVED })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;
    use crate::kernel::clock;

    #[test]
    fn a_living_peer_is_known_by_its_process_and_cgroup() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = peer(&ours, clock::monotonic(), |_| Ok(None)).unwrap();
        assert_eq!(peer.pid.cast_unsigned(), std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        let own = Origin::Cgroup(pidfd::cgroup_of(peer.pid).unwrap().unwrap());
        assert_eq!(peer.origin, own);
        assert_eq!(by_number(peer.pid, peer.uid, clock::monotonic()), Ok(own), "where the kernel gives no pidfd");
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_peer_that_was_reaped_is_known_by_its_cgroup_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut child = Command::new("true");
        let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        // SAFETY: between fork and exec it makes one connection.
        unsafe {
            child.pre_exec(move || {
                let mut stream = UnixStream::connect(&path)?;
                stream.write_all(b"x")?;
                kept.lock().expect("nobody else has it").push(stream);
                Ok(())
            })
        };
        assert!(child.status().unwrap().success());
        let (stream, _) = listener.accept().unwrap();
        let found = peer(&stream, clock::monotonic(), |_| Ok(None)).unwrap();
        assert!(matches!(found.origin, Origin::Unknown(_)), "{found:?}");
        let found = peer(&stream, clock::monotonic(), |_| Ok(Some("/x".to_owned()))).unwrap();
        assert!(matches!(found.origin, Origin::Unknown(_)) || found.origin == Origin::Cgroup("/x".to_owned()));
    }

    #[test]
    fn a_number_that_another_process_has_proves_nothing() {
        let (own, uid) = (std::process::id().cast_signed(), rustix::process::geteuid().as_raw());
        let now = clock::monotonic();
        for (pid, uid, accepted) in [(own, uid + 1, now), (own, uid, Monotonic(0)), (i32::MAX, uid, now)] {
            assert!(matches!(by_number(pid, uid, accepted), Ok(Origin::Unknown(_))), "{pid} {uid} {accepted:?}");
        }
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(matches!(by_number(child.id().cast_signed(), uid, clock::monotonic()), Ok(Origin::Unknown(_))));
    }
}

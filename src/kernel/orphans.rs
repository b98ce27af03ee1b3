//! Orphans: processes whose parent has ended before them.
//!
//! The kernel gives them to the nearest subreaper above, or else to PID 1, and not every PID 1 reaps, or soon: in a container it may be
//! any program. Until then an orphan that has ended is a zombie, which holds a pid and counts towards `pids.max`.
//!
//! An orphan becomes a child of the main thread, and what another thread has cloned is a child of that one: so whoever waits for
//! children of the main thread alone takes nobody else's status away.

use std::os::fd::OwnedFd;

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, getpid, set_child_subreaper, waitid};
use rustix::thread::gettid;

use super::cgroup::{comm_and_state, is_within};
use super::error::{KernelError, Result};
use super::pidfd;
use crate::model::survivor::Outsider;

/// How long an orphan that has ended waits to be reaped: where a thousand die at once, nobody waits for that.
const DELAY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How many orphans are looked at, and how many that live elsewhere are named.
const LOOKED_AT_MAX: usize = 4096;
const OUTSIDERS_MAX: usize = 16;

/// Lists the orphans that are not below this cgroup, as `/proc/PID/cgroup` shows paths, and are not among those known. None where orphans are not given to this
/// process.
///
/// # Kernel
/// `/proc/PID/task/TID/children`, proc_pid_task(5): `CONFIG_PROC_CHILDREN`.
#[must_use]
pub fn outside_of(herd: &str, known: &[i32]) -> Vec<Outsider> {
    let orphans = || -> Vec<i32> {
        let own = std::process::id();
        let text = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
        pids.filter(|pid| !known.contains(pid)).take(LOOKED_AT_MAX).collect()
    };
    let describe = |pid: i32| {
        let place = pidfd::cgroup_of(pid).filter(|place| !is_within(place, herd))?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (comm, _) = comm_and_state(&stat).filter(|(_, state)| !matches!(state, 'Z' | 'X'))?;
        Some(Outsider { pid, comm: comm.chars().flat_map(char::escape_default).collect(), place })
    };
    let found: Vec<Outsider> = orphans().into_iter().filter_map(describe).take(OUTSIDERS_MAX).collect();
    if found.is_empty() {
        return found;
    }
    // A number that is still that of an orphan was not given to another process meanwhile.
    let still = orphans();
    found.into_iter().filter(|it| still.contains(&it.pid)).collect()
}

/// This process as the one to whom orphans are given.
#[derive(Debug)]
pub struct Orphans {
    deaths: SignalFd,
}

impl Orphans {
    /// Has all orphans below this process given to it, and SIGCHLD told by a descriptor alone. To be called before any other thread is
    /// started, as each has to have the signal blocked; children that are spawned have not. `None` if this is not the main thread:
    /// then the process is somebody else's, and so are its children.
    ///
    /// # Errors
    /// EMFILE: the limit on descriptors is reached.
    ///
    /// # Kernel
    /// Linux 3.4, PR_SET_CHILD_SUBREAPER(2const); signalfd(2).
    pub fn take_in() -> Result<Option<Self>> {
        if gettid() != getpid() {
            return Ok(None);
        }
        let failed =
            |call| move |errno: nix::Error| KernelError::new(call, "SIGCHLD", Errno::from_raw_os_error(errno as i32));
        // Where it is ignored the kernel reaps all children itself, and tells nothing.
        // SAFETY: no handler is set.
        #[allow(unsafe_code)]
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.map_err(failed("signal"))?;
        let mask = SigSet::from(Signal::SIGCHLD);
        mask.thread_block().map_err(failed("pthread_sigmask"))?;
        let deaths = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        let deaths = deaths.map_err(failed("signalfd"))?;
        set_child_subreaper(Some(getpid()))
            .map_err(|errno| KernelError::new("prctl", "PR_SET_CHILD_SUBREAPER", errno))?;
        Ok(Some(Self { deaths }))
    }

    /// Reaps orphans when they have ended, until the other end of this pipe is closed. To be called in the main thread, as that is
    /// whose children they are.
    ///
    /// # Errors
    /// ENOMEM.
    ///
    /// # Kernel
    /// Linux 4.7 (`__WNOTHREAD` for waitid(2)).
    pub fn reap_until_closed(&self, pipe: &OwnedFd) -> Result<()> {
        let wait_for = |fds: &mut [PollFd<'_>], timeout| match poll(fds, timeout) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(KernelError::new("poll", "orphans", errno)),
        };
        let mut closed = PollFd::new(pipe, PollFlags::empty());
        loop {
            let mut fds = [closed.clone(), PollFd::new(&self.deaths, PollFlags::IN)];
            wait_for(&mut fds, None)?;
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            self.listen();
            // An agent's own process tells of its end, too: it is nobody's orphan.
            if matches!(wait(WaitIdOptions::NOWAIT), Ok(None) | Err(Errno::CHILD)) {
                continue;
            }
            wait_for(std::slice::from_mut(&mut closed), Some(&DELAY))?;
            while matches!(wait(WaitIdOptions::empty()), Ok(Some(_)) | Err(Errno::INTR)) {}
        }
    }

    /// Takes the signal: as long as it is there, no other one is told. Whoever ends from here on is told again.
    fn listen(&self) {
        while let Ok(Some(_)) = self.deaths.read_signal() {}
    }
}

fn wait(options: WaitIdOptions) -> rustix::io::Result<Option<rustix::process::WaitIdStatus>> {
    /// `__WNOTHREAD`.
    const OF_THIS_THREAD: WaitIdOptions = WaitIdOptions::from_bits_retain(libc::__WNOTHREAD.cast_unsigned());
    waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | OF_THIS_THREAD | options)
}

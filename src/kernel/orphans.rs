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
use super::process::read_text;
use crate::model::survivor::Outsider;

/// How long an orphan that has ended waits to be reaped: where a thousand die at once, nobody waits for that.
const DELAY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How many orphans a step of a search examines, and how many that live elsewhere are named.
const EXAMINED_A_STEP_MAX: usize = 512;
const OUTSIDERS_MAX: usize = 16;

/// A search for the orphans that live outside a cgroup, a bounded step at a time.
#[derive(Debug, Default)]
pub struct Search {
    /// Those that are still to be examined; `None` before the first step.
    left: Option<Vec<i32>>,
    found: Vec<Outsider>,
}

impl Search {
    /// Examines some orphans, and returns those found when it has examined all: those that are not
    /// below this cgroup, as `/proc/PID/cgroup` shows paths, and are not among those known. None
    /// where orphans are not given to this process.
    ///
    /// # Kernel
    /// `/proc/PID/task/TID/children`, proc_pid_task(5): `CONFIG_PROC_CHILDREN`.
    pub fn step(&mut self, herd: &str, known: &[i32]) -> Option<Vec<Outsider>> {
        let describe = |pid: i32| {
            let place = pidfd::cgroup_of(pid).ok()?.filter(|place| !is_within(place, herd))?;
            let stat = read_text(format!("/proc/{pid}/stat")).ok()?;
            let (comm, _) = comm_and_state(&stat).filter(|(_, state)| !matches!(state, 'Z' | 'X'))?;
            Some(Outsider { pid, comm: comm.chars().flat_map(char::escape_default).collect(), place })
        };
        let left = self.left.get_or_insert_with(|| all().into_iter().filter(|pid| !known.contains(pid)).collect());
        let part = left.split_off(left.len().saturating_sub(EXAMINED_A_STEP_MAX));
        let room = OUTSIDERS_MAX - self.found.len();
        self.found.extend(part.into_iter().filter_map(describe).take(room));
        if !left.is_empty() && self.found.len() < OUTSIDERS_MAX {
            return None;
        }
        let mut found = std::mem::take(&mut self.found);
        if !found.is_empty() {
            // A number that is still that of an orphan was not given to another process meanwhile.
            let still = all();
            found.retain(|it| still.contains(&it.pid));
        }
        Some(found)
    }
}

fn all() -> Vec<i32> {
    let own = std::process::id();
    let text = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
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

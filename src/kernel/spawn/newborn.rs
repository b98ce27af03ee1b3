//! A child on its way to `exec`, as threads see it that do not wait for it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Launched;

/// A child that may hang on its way to `exec`, for another thread than the one that waits for it to take over.
///
/// A child in an uninterruptible call, as on a FUSE file system whose server does not answer, is not ended by SIGKILL, and its
/// parent's thread waits for as long as it. Whoever has its pidfd need not.
#[derive(Debug, Default)]
pub struct Newborn {
    /// Written by the kernel before the child runs: 0 until there is one.
    pid: AtomicI32,
    pidfd: AtomicI32,
    owner: Mutex<Owner>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Owner {
    /// The thread that waits for it, and its descriptor is open.
    #[default]
    Waiting,
    /// That thread, which waits no more.
    Back,
    /// Whoever took it over.
    Other,
}

impl Newborn {
    /// Takes the child over from the thread that waits for it: that one neither reaps it nor reports it any more. `None` if there
    /// is none yet, or it does not hang any more.
    #[must_use]
    pub fn take_over(&self) -> Option<Launched> {
        let mut owner = self.owner();
        let pid = self.pid.load(Ordering::Acquire);
        if *owner != Owner::Waiting || pid == 0 {
            return None;
        }
        // SAFETY: the kernel wrote this descriptor before the pid, and its owner closes it only after it is back.
        #[allow(unsafe_code)]
        let pidfd = unsafe { BorrowedFd::borrow_raw(self.pidfd.load(Ordering::Relaxed)) };
        let pidfd: OwnedFd = rustix::io::fcntl_dupfd_cloexec(pidfd, 3).ok()?;
        *owner = Owner::Other;
        Some(Launched { pid, pidfd })
    }

    /// The thread that waited for the child is back. Returns whether the child is still its.
    pub(super) fn come_back(&self) -> bool {
        let mut owner = self.owner();
        let is_ours = *owner == Owner::Waiting;
        if is_ours {
            *owner = Owner::Back;
        }
        is_ours
    }

    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where the kernel writes the pid, for `CLONE_PARENT_SETTID`, and the pidfd.
    pub(super) fn places(&self) -> [u64; 2] {
        [&self.pid, &self.pidfd].map(|place| place.as_ptr().expose_provenance() as u64)
    }

    /// Returns the descriptor that the kernel wrote.
    pub(super) fn pidfd(&self) -> i32 {
        self.pidfd.load(Ordering::Relaxed)
    }
}

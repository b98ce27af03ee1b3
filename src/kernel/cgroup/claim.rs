//! Whose the root cgroup is: one supervisor's at a time.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::{Cgroups, Place};
use crate::kernel::error::{KernelError, Result};
use crate::model::error::{Code, Error};

/// A file that nothing else opens (closing any descriptor of it would give the lock up), and that is writable where a cgroup is
/// delegated: cgroup-v2.rst, Model of Delegation.
const LOCKED: &str = "cgroup.threads";

/// The roots that supervisors of this very process have: a record lock does not keep a process out of its own.
static CLAIMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A root cgroup that is ours as long as this lives.
#[derive(Debug)]
pub struct RootClaim {
    _lock: OwnedFd,
    root: String,
}

impl Drop for RootClaim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.root);
    }
}

impl Cgroups {
    /// Takes the root cgroup for this supervisor.
    ///
    /// # Errors
    /// [`Code::InUse`]: another supervisor, named by its pid, has it. Else what the kernel answered.
    ///
    /// # Kernel
    /// fcntl_locking(2): the lock needs a descriptor for writing, which strangers do not get; it dies with the process, and
    /// children do not inherit it.
    pub fn claim(&self) -> std::result::Result<RootClaim, Error> {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.contains(&self.root) {
            return Err(self.in_use("this process itself"));
        }
        let lock = self.spine.open(LOCKED, OFlags::RDWR)?;
        match rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => return Err(self.in_use("another daemon")),
            Err(errno) => return Err(KernelError::new("lock", self.spine.object(LOCKED), errno).into()),
        }
        claimed.insert(self.root.clone());
        Ok(RootClaim { _lock: lock, root: self.root.clone() })
    }

    fn in_use(&self, by: &str) -> Error {
        Error::new(Code::InUse, format!("root cgroup {} is in use by {by}", self.root))
            .remedy("give this daemon another --cgroup, or end the other one")
    }

    /// Opens a place's `cgroup.events`, to be polled for [`PollFlags::PRI`](rustix::event::PollFlags).
    ///
    /// # Errors
    /// What `openat2` answered.
    pub fn events_fd(&self, place: &Place) -> Result<OwnedFd> {
        let events = self.dir(place)?.open("cgroup.events", OFlags::RDONLY)?;
        // A poll tells of changes since the last read.
        rustix::io::read(&events, &mut [0u8; 64])
            .map_err(|errno| KernelError::new("read", format!("{place}/cgroup.events"), errno))?;
        Ok(events)
    }

    /// Returns the herd's path as `/proc/PID/cgroup` shows it.
    #[must_use]
    pub fn herd_path(&self) -> String {
        format!("{}/{}/{}", self.host.mounted_part.trim_end_matches('/'), self.root, Place::herd())
    }
}

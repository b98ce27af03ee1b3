//! Whose the root cgroup is: one supervisor's at a time.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::{Cgroups, Place};
use crate::kernel::error::{KernelError, Result};
use crate::kernel::lock::{Lock, Refused};
use crate::kernel::process::read_text;
use crate::kernel::{guardian, pidfd};
use crate::model::error::{Code, Error};

/// A file that nothing else locks, and that is writable where a cgroup is delegated: cgroup-v2.rst, Model of Delegation.
pub(super) const LOCKED: &str = "cgroup.threads";

/// A root cgroup that is ours as long as this lives.
#[derive(Debug)]
pub struct RootClaim {
    _lock: Lock,
}

impl Cgroups {
    /// Takes the root cgroup for this supervisor.
    ///
    /// # Errors
    /// [`Code::InUse`]: another supervisor, named by its pid, has it. Else what the kernel answered.
    ///
    /// # Kernel
    /// fcntl_locking(2): the lock needs a descriptor for writing, which strangers do not get; it dies with the process.
    pub fn claim(&self) -> std::result::Result<RootClaim, Error> {
        let lock = Lock::take(self.spine.open(LOCKED, OFlags::RDWR)?).map_err(|refused| match refused {
            Refused::Held(by) => self.in_use(&by),
            Refused::Failed(errno) => KernelError::new("lock", self.spine.object(LOCKED), errno).into(),
        })?;
        Ok(RootClaim { _lock: lock })
    }

    fn in_use(&self, by: &str) -> Error {
        Error::new(Code::InUse, format!("root cgroup {} is in use by {by}", self.root))
            .remedy("give this daemon another --cgroup, or end the other one")
    }

    /// Opens the guardian that has the root cgroup because its supervisor is gone, if that is so.
    #[must_use]
    pub fn guardian_at_work(&self) -> Option<OwnedFd> {
        let file = self.spine.open(LOCKED, OFlags::RDWR).ok()?;
        let holder = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??.pid?.as_raw_nonzero().get();
        let process = pidfd::open(holder).ok()?;
        // After it was opened: its number is nobody else's then. Its cgroup it leaves before it is done.
        let name = read_text(format!("/proc/{holder}/comm")).ok()?;
        (name.trim_end() == guardian::NAME.to_string_lossy()).then_some(process)
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

    /// Finds the path of an existing cgroup, as `/proc/PID/cgroup` shows it, by the identity that
    /// [`pidfd::cgroup_id`] gives. `None`: it was removed, it is not mounted here, or this
    /// process may not ask.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    ///
    /// # Kernel
    /// open_by_handle_at(2) with `FILEID_KERNFS`; it needs CAP_DAC_READ_SEARCH.
    #[allow(unsafe_code)]
    pub fn path_of_id(&self, id: u64) -> Result<Option<String>> {
        #[repr(C, align(8))]
        struct Handle {
            bytes: libc::c_uint,
            kind: libc::c_int,
            id: u64,
        }
        /// `FILEID_KERNFS` of linux/exportfs.h.
        const KERNFS: libc::c_int = 0xfe;
        let mut handle = Handle { bytes: 8, kind: KERNFS, id };
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: a `file_handle` is a length, a type and so many bytes; it outlives the call.
        let fd = unsafe {
            libc::open_by_handle_at(self.mount.as_fd().as_raw_fd(), std::ptr::from_mut(&mut handle).cast(), flags)
        };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return match Errno::from_io_error(&error) {
                Some(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                    Err(KernelError::new("open", format!("the cgroup with id {id}"), errno))
                }
                _ => Ok(None),
            };
        }
        // SAFETY: the kernel has just opened it for us.
        let directory = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok();
        let below = path.as_ref().and_then(|path| path.strip_prefix(&self.host.cgroup2).ok()?.to_str());
        Ok(below.map(|below| format!("{}/{below}", self.host.mounted_part.trim_end_matches('/'))))
    }

    /// Returns the herd's path as `/proc/PID/cgroup` shows it.
    #[must_use]
    pub fn herd_path(&self) -> String {
        format!("{}/{}/{}", self.host.mounted_part.trim_end_matches('/'), self.root, Place::herd())
    }
}

//! Delegation: a run whose user makes cgroups of its own below the run's cgroup.
//!
//! ```text
//! a/                     root's: the limits of the agent, which its user cannot write to
//! └── run-1/             the user's: cgroup.procs, cgroup.subtree_control, cgroup.threads; bounded in depth and number
//!     ├── main/          the main process, so that run-1 is free to hand controllers down
//!     └── …              what the user makes
//! ```

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Uid, XattrFlags};

use super::dir::Dir;
use super::{Cgroups, Place};
use crate::kernel::error::{KernelError, Result};
use crate::kernel::host::Binding;
use crate::model::limits::Controller;

/// The cgroup of the main process.
pub const MAIN: &str = "main";

/// How deep the cgroups below a delegated one may be nested: a herd of ten levels takes 24. Each
/// level costs the removal a descriptor.
const DEPTH_MAX: u32 = 64;

/// How many cgroups there may be below a delegated one: a host has 65,535 of those that account for
/// memory, for everybody together.
const CGROUPS_MAX: u32 = 1024;

/// The files besides the directory itself that belong to whom a cgroup is delegated.
const FILES: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

/// How service managers mark what they delegate; another supervisor finds its root cgroup by that.
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];

impl Cgroups {
    /// Delegates the cgroup of a run, in which nothing is yet, to a user, with every controller
    /// that cgroup2 has here. Returns the place of the main process, below it. Without an owner the
    /// cgroups stay this process's user's.
    ///
    /// # Errors
    /// What the kernel answered; EBUSY if a process is in a cgroup above it, against the
    /// no-internal-processes rule.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "Model of Delegation", "Delegation Containment"; `cgroup.max.depth`,
    /// `cgroup.max.descendants`: 4.14.
    pub fn delegate(&self, place: &Place, owner: Option<(u32, u32)>) -> Result<Place> {
        let is_native = |controller: &Controller| self.host.binding(*controller) == &Binding::V2;
        self.enable_for(place, Controller::ALL.into_iter().filter(is_native).collect())?;
        let dir = self.dir(place)?;
        dir.write("cgroup.max.depth", &DEPTH_MAX.to_string())?;
        dir.write("cgroup.max.descendants", &CGROUPS_MAX.to_string())?;
        dir.make(MAIN)?;
        let main = dir.descend(MAIN)?;
        for mark in MARKS {
            // Where a mark cannot be set, another supervisor needs `--cgroup`.
            let _is_marked = rustix::fs::fsetxattr(dir.as_fd(), mark, b"1", XattrFlags::empty());
        }
        if let Some(owner) = owner {
            give(&main, owner)?;
            give(&dir, owner)?;
        }
        Ok(place.join(MAIN))
    }
}

fn give(dir: &Dir, (uid, gid): (u32, u32)) -> Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    let failed = |object: String, errno| KernelError::new("chown", object, errno);
    for file in FILES {
        rustix::fs::chownat(dir.as_fd(), file, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(dir.object(file), errno))?;
    }
    rustix::fs::fchown(dir.as_fd(), uid, gid).map_err(|errno| failed(dir.label().to_owned(), errno))
}

//! The herd's cgroups: the spine in cgroup2, and mirrors of it in the v1 hierarchies that drive controllers.
//!
//! ```text
//! cgroup2 (the spine: tree, freeze, kill, events)       v1 memory (only what is limited, and what lies above it)
//! <root>/                                               <own cgroup of the supervisor>/<root>/
//! ├── supervisor/     the daemon
//! └── herd/                                             └── herd/
//!     └── a/                                                └── a/          memory.limit_in_bytes
//!         ├── run-1/  processes
//!         └── level-1/b/run-1/
//! ```
//!
//! Kept open are only the mount points and `<root>`; everything else is opened when it is needed, relative to them.
//! Nothing here waits, and nothing here decides: a call says what the kernel answered. *Already gone* is an answer
//! ([`KernelError::is_gone`]), and where the call ends things it is mapped to "nothing left to do".
//!
//! The invariant: a cgroup whose limits could not all be set does not exist, in no hierarchy.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::kernel::error::{KernelError, Result};
use crate::kernel::host::Host;
use crate::model::limits::Controller;

mod above;
mod claim;
mod delegate;
pub(crate) mod dir;
mod hits;
mod inhabitants;
mod limit;
mod mirror;
mod oom;
mod place;
mod root;
mod sharing;
mod survivors;
mod used;

use dir::{Dir, Step, walk};

pub use above::{ForksAbove, ReachedAbove, has_room, is_somebodys, limits_above};
pub use claim::RootClaim;
pub use delegate::MAIN;
pub use hits::COUNTED;
pub use inhabitants::Laggard;
pub(in crate::kernel) use inhabitants::comm_and_state;
pub use oom::OomCounts;
pub(in crate::kernel) use oom::is_limited;
pub use place::Place;
pub(in crate::kernel) use place::is_within;
pub(in crate::kernel) use root::MARKS;
pub use root::{is_first_leaf, remedy, step_aside};
pub use survivors::describe as describe_survivors;

/// Whether a subtree is to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// No process of the subtree runs.
    Frozen,
    /// The subtree runs, unless a cgroup above it is frozen.
    Thawed,
}

/// What `cgroup.events` tells of a subtree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Whether a live process is in the subtree; zombies do not count.
    pub populated: bool,
    /// Whether the whole subtree stands still, by its own freeze or by one above it.
    pub frozen: bool,
}

/// How a removal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The cgroups are gone, from every hierarchy.
    Removed,
    /// A process is still in there: wait for `populated 0` and ask again.
    Busy,
}

/// The herd's cgroups in all hierarchies. Shared by threads.
#[derive(Debug)]
pub struct Cgroups {
    host: Arc<Host>,
    /// The root cgroup's path below the mount points, without a leading slash.
    root: String,
    /// The cgroup2 mount point.
    mount: Dir,
    /// The root cgroup in cgroup2.
    spine: Dir,
    /// The v1 hierarchies by the controllers that are bound to them; co-mounted controllers share one.
    hierarchies: BTreeMap<Controller, Arc<Hierarchy>>,
    /// The cgroups that the herd is in and that are not its own, as far as memory and tasks are concerned, the nearest first.
    memory_above: Vec<above::Outside>,
    pids_above: Vec<above::Outside>,
    /// Where the supervisor was before it moved into its leaf, and the name of the leaf.
    moved: Mutex<Option<root::Moved>>,
    /// Enabling, making and limiting exclude each other, so that an undo never takes away what another call relies on.
    changing: Mutex<()>,
    /// The subtree that stands still while its processes are moved, and what its freezer is asked for when that is done.
    stilled: Mutex<Option<(Place, Frozen)>>,
    /// The children that share this process's memory.
    sharing: sharing::Sharing,
}

/// A v1 hierarchy.
#[derive(Debug)]
struct Hierarchy {
    path: PathBuf,
    /// The cgroup below which the mirrors are.
    mount: Dir,
    /// Whether there may be mirrors in it: where a mirror was never made, none is looked for.
    has_mirrors: AtomicBool,
}

impl Cgroups {
    /// Makes the leaf cgroup of a run and opens it, `O_RDONLY | O_DIRECTORY`, for `CLONE_INTO_CGROUP` or for watches.
    ///
    /// # Errors
    /// What `mkdir` or `open` answered; EEXIST if the leaf exists (a leaf is never used twice).
    pub fn make_leaf(&self, place: &Place) -> Result<OwnedFd> {
        self.spine.make_below(place.path())?;
        // The error that is told is the one that made the undoing necessary.
        self.open_dir(place).inspect_err(|_| drop(remove_below(&self.spine, place.path())))
    }

    /// Opens a place's directory, `O_RDONLY | O_DIRECTORY`.
    ///
    /// # Errors
    /// What `openat2` answered; [`KernelError::is_gone`] if there is no such cgroup.
    pub fn open_dir(&self, place: &Place) -> Result<OwnedFd> {
        self.dir(place).map(Dir::into_fd)
    }

    /// Opens the `cgroup.procs` of a place for writing: the way into it where a process cannot be cloned into it.
    ///
    /// # Errors
    /// What `openat2` answered.
    pub fn procs_fd(&self, place: &Place) -> Result<OwnedFd> {
        self.dir(place)?.open("cgroup.procs", OFlags::WRONLY)
    }

    /// Reads whether a subtree is populated and whether it is frozen.
    ///
    /// # Errors
    /// What the read answered; [`KernelError::is_gone`] if the cgroup was removed.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "Core Interface Files", `cgroup.events`.
    pub fn events(&self, place: &Place) -> Result<Events> {
        Ok(events_from_text(&self.spine.read_first_below(place.path(), "cgroup.events")?))
    }

    /// Asks the kernel to freeze or thaw a subtree. It is done when [`Events::frozen`] says so, not when this returns.
    ///
    /// # Errors
    /// What the write answered; [`KernelError::is_gone`] if the cgroup was removed.
    ///
    /// # Kernel
    /// 5.2; cgroup-v2.rst, "Core Interface Files", `cgroup.freeze`. The v1 freezer is never used: a process that it holds
    /// ignores SIGKILL.
    pub fn set_frozen(&self, place: &Place, frozen: Frozen) -> Result<()> {
        let mut stilled = self.stilled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, after)) = stilled.as_mut().filter(|(held, _)| held == place) {
            *after = frozen;
            if frozen == Frozen::Thawed {
                return Ok(());
            }
        }
        self.write_freezer(place, frozen)
    }

    fn write_freezer(&self, place: &Place, frozen: Frozen) -> Result<()> {
        let text = match frozen {
            Frozen::Frozen => "1",
            Frozen::Thawed => "0",
        };
        self.dir(place)?.write("cgroup.freeze", text)
    }

    /// Does something while a subtree is frozen, in which then nothing forks; afterwards its freezer is asked for what it was asked
    /// for before, or by [`Cgroups::set_frozen`] meanwhile. A caller holds `changing`.
    ///
    /// # Errors
    /// What the writes answered, other than that the cgroup is gone.
    fn while_frozen<T>(&self, place: &Place, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let lock = || self.stilled.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut stilled = lock();
            *stilled = Some((place.clone(), self.asked_frozen(place)?));
            self.write_freezer(place, Frozen::Frozen).inspect_err(|_| *stilled = None)?;
        }
        let outcome = act();
        let mut stilled = lock();
        let after = stilled.take().map_or(Frozen::Thawed, |(_, after)| after);
        match self.write_freezer(place, after) {
            Err(error) if !error.is_gone() => Err(error),
            _ => outcome,
        }
    }

    /// Thaws a place that is never paused by itself (the herd, the children of one agent together): an earlier daemon may have
    /// ended while it moved processes there.
    ///
    /// # Errors
    /// What the kernel answered, other than that the cgroup is gone.
    pub fn thaw_group(&self, place: &Place) -> Result<()> {
        match self.asked_frozen(place) {
            Ok(Frozen::Frozen) => self.write_freezer(place, Frozen::Thawed),
            Ok(Frozen::Thawed) => Ok(()),
            Err(error) if error.is_gone() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads what a place was last asked to do: its own `cgroup.freeze`, whatever a cgroup above it was asked.
    ///
    /// # Errors
    /// What the read answered; [`KernelError::is_gone`] if the cgroup was removed.
    ///
    /// # Kernel
    /// 5.2; cgroup-v2.rst, "Core Interface Files", `cgroup.freeze`.
    pub fn asked_frozen(&self, place: &Place) -> Result<Frozen> {
        let text = self.dir(place)?.read("cgroup.freeze")?;
        Ok(if text.trim() == "1" { Frozen::Frozen } else { Frozen::Thawed })
    }

    /// Removes a subtree bottom-up, in every hierarchy. A place that does not exist is removed already.
    ///
    /// Whether it is populated is asked first, so that a busy subtree loses none of its empty cgroups either.
    ///
    /// # Errors
    /// What the kernel answered, other than that something is gone or busy.
    pub fn remove(&self, place: &Place) -> Result<Removal> {
        match self.events(place) {
            Ok(events) if events.populated => return Ok(Removal::Busy),
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
        if remove_below(&self.spine, place.path())? == Removal::Busy {
            return Ok(Removal::Busy);
        }
        let mut outcome = Removal::Removed;
        for hierarchy in self.mirrored_hierarchies() {
            if remove_below(&hierarchy.mount, &self.full(place))? == Removal::Busy {
                outcome = Removal::Busy;
            }
        }
        Ok(outcome)
    }

    /// Lists every cgroup below `herd/`, each before those below it: at start, what an earlier daemon left.
    ///
    /// # Errors
    /// What the kernel answered, other than that something is gone.
    pub fn leftovers(&self) -> Result<Vec<Place>> {
        let herd = Place::herd();
        let mut places = Vec::new();
        walk(self.dir(&herd)?, &mut |step| {
            if let Step::Entered { path: Some(path), .. } = step {
                places.push(herd.below(path));
            }
            Ok(())
        })?;
        places.retain(|place| *place != herd);
        Ok(places)
    }

    /// Returns what the host offers.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Opens a place in the spine.
    pub(in crate::kernel) fn dir(&self, place: &Place) -> Result<Dir> {
        self.spine.descend(place.path())
    }

    /// Returns a place's path below a mount point.
    fn full(&self, place: &Place) -> String {
        format!("{}/{place}", self.root)
    }

    /// Returns the v1 hierarchies, each once.
    fn each_hierarchy(&self) -> impl Iterator<Item = &Hierarchy> {
        let mut seen = Vec::new();
        self.hierarchies.values().map(Arc::as_ref).filter(move |hierarchy| {
            let is_new = !seen.contains(&&hierarchy.path);
            seen.push(&hierarchy.path);
            is_new
        })
    }

    /// Returns the v1 hierarchies that may have mirrors, each once.
    fn mirrored_hierarchies(&self) -> impl Iterator<Item = &Hierarchy> {
        self.each_hierarchy().filter(|hierarchy| hierarchy.has_mirrors.load(Ordering::SeqCst))
    }
}

/// Removes a directory below another one, and all below it, bottom-up.
fn remove_below(top: &Dir, path: &str) -> Result<Removal> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = match top.descend(above) {
        Ok(parent) => parent,
        Err(error) if error.is_gone() => return Ok(Removal::Removed),
        Err(error) => return Err(error),
    };
    let name = std::ffi::CString::new(name)
        .map_err(|_| KernelError::new("rmdir", format!("{}/{name:?}", parent.label()), Errno::INVAL))?;
    // A cgroup without children, by far the most frequent one, goes in one call.
    match parent.remove(&name) {
        Ok(()) => return Ok(Removal::Removed),
        Err(error) if error.is_gone() => return Ok(Removal::Removed),
        Err(error) if !is_busy(error.errno) => return Err(error),
        Err(_) => {}
    }
    let dir = match parent.child(&name) {
        Ok(dir) => dir,
        Err(error) if error.is_gone() => return Ok(Removal::Removed),
        Err(error) => return Err(error),
    };
    // A user to whom it is delegated makes no cgroup from now on. v1 has no such file, and no
    // delegation.
    dir.write("cgroup.max.descendants", "0").unwrap_or_default();
    let mut is_empty = true;
    walk(dir, &mut |step| match step {
        Step::Left { parent, name } => match parent.remove(name) {
            Err(error) if is_busy(error.errno) => {
                is_empty = false;
                Ok(())
            }
            other => other,
        },
        Step::Entered { .. } => Ok(()),
    })?;
    if !is_empty {
        return Ok(Removal::Busy);
    }
    match parent.remove(&name) {
        Ok(()) => Ok(Removal::Removed),
        Err(error) if error.is_gone() => Ok(Removal::Removed),
        Err(error) if is_busy(error.errno) => Ok(Removal::Busy),
        Err(error) => Err(error),
    }
}

fn is_busy(errno: Errno) -> bool {
    matches!(errno, Errno::BUSY | Errno::NOTEMPTY)
}

/// Reads `cgroup.events`; lines that are not known are passed over.
fn events_from_text(text: &str) -> Events {
    let is_set = |key| crate::kernel::stat::flat(text, key) == Some(1);
    Events { populated: is_set("populated"), frozen: is_set("frozen") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_by_name_and_unknown_ones_passed_over() {
        let events = events_from_text("populated 1\nshiny 1\nfrozen 0\n");
        assert_eq!(events, Events { populated: true, frozen: false });
        assert_eq!(events_from_text("populated_maybe 1\n"), Events::default());
    }
}

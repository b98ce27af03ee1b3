//! Mirrors: cgroups of a v1 hierarchy at the same path as the place that they limit.
//!
//! A mirror is made where a limit of its controller is set, with the directories above it. A process of the spine belongs
//! into the deepest mirror on its path: it enters it before `exec` ([`Cgroups::entrances`]), or is pulled in when the
//! mirror is made over a living subtree.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dir::{Dir, Step, walk};
use super::inhabitants::{comm_and_state, processes_below};
use super::{Cgroups, Hierarchy, Place, Removal, remove_below, root};
use crate::kernel::controllers::fill_cpuset;
use crate::kernel::error::{KernelError, Result};
use crate::kernel::process::read_text;
use crate::model::limits::Controller;

/// How often a subtree is read again while its processes are pulled into a new mirror; each round leaves only what was
/// forked during the one before. One that forks faster than it is moved is frozen after the first rounds.
const RUNNING_ROUNDS: usize = 4;
const FROZEN_ROUNDS: usize = 32;

/// How long a subtree may take to freeze before its processes are moved as they are.
const FROZEN_WITHIN: Duration = Duration::from_millis(500);

impl Cgroups {
    /// Opens the `cgroup.procs` of the deepest mirror on a place's path, once for each v1 hierarchy that has one there: a
    /// child writes `0` into each before it executes its program.
    ///
    /// # Errors
    /// What `openat2` answered, other than that there is no mirror.
    pub fn entrances(&self, place: &Place) -> Result<Vec<OwnedFd>> {
        let mut entrances = Vec::new();
        for hierarchy in self.mirrored_hierarchies() {
            if let Some(mirror) = self.deepest(hierarchy, place)? {
                entrances.push(mirror.open("cgroup.procs", OFlags::WRONLY)?);
            }
        }
        Ok(entrances)
    }

    /// Says whether a place has a mirror in the v1 hierarchy of a controller.
    #[must_use]
    pub fn mirrored(&self, place: &Place, controller: Controller) -> bool {
        self.mirror(place, controller).is_some()
    }

    /// Opens the mirror of a place itself, if it has one.
    pub(in crate::kernel) fn mirror(&self, place: &Place, controller: Controller) -> Option<Dir> {
        let hierarchy = self.hierarchies.get(&controller)?;
        let may_be = hierarchy.has_mirrors.load(Ordering::SeqCst);
        may_be.then(|| hierarchy.mount.descend(&self.full(place)).ok()).flatten()
    }

    /// Opens the deepest mirror on a place's path.
    fn deepest(&self, hierarchy: &Hierarchy, place: &Place) -> Result<Option<Dir>> {
        let open = |from: &Dir, path: &str| match from.descend(path) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        };
        let Some(mut deepest) = open(&hierarchy.mount, &self.full(&Place::herd()))? else { return Ok(None) };
        for name in place.path().split('/').skip(1) {
            match open(&deepest, name)? {
                Some(dir) => deepest = dir,
                None => break,
            }
        }
        Ok(Some(deepest))
    }

    /// Makes a place's mirror and what is missing above it; the paths that were made are added to `made`, even on failure.
    pub(super) fn make_mirror(&self, place: &Place, controller: Controller, made: &mut Made) -> Result<Dir> {
        let hierarchy = &self.hierarchies[&controller];
        hierarchy.has_mirrors.store(true, Ordering::SeqCst);
        let full = self.full(place);
        let mut path = String::with_capacity(full.len());
        let mut at = hierarchy.mount.descend("")?;
        // What is above is there as a rule.
        if let Some((above, _)) = full.rsplit_once('/')
            && let Ok(dir) = hierarchy.mount.descend(above)
        {
            (at, path) = (dir, above.to_owned());
        }
        let rest = full[path.len()..].trim_start_matches('/').to_owned();
        for name in rest.split('/') {
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(name);
            let is_new = match at.make(name) {
                Ok(()) => true,
                Err(error) if error.errno == Errno::EXIST => false,
                Err(error) => return Err(error),
            };
            if is_new {
                made.0.push((controller, path.clone()));
            }
            let dir = at.descend(name)?;
            if is_new && path.len() <= self.root.len() {
                root::mark(&dir);
            }
            // Co-mounted cpuset too: a cgroup of such a hierarchy takes no process while its CPUs are empty.
            if self.hierarchies.get(&Controller::Cpuset).is_some_and(|cpuset| cpuset.path == hierarchy.path) {
                fill_cpuset(&at, &dir)?;
            }
            at = dir;
        }
        Ok(at)
    }

    /// Removes mirrors that were made, last first; what is still in use stays.
    pub(super) fn unmake(&self, made: Made) {
        for (controller, path) in made.0.into_iter().rev() {
            // Undoing is best effort: the error that is told is the one that made it necessary.
            drop(remove_below(&self.hierarchies[&controller].mount, &path));
        }
    }

    /// Removes a mirror that an earlier daemon left at a place where there is no cgroup in the spine: its limits are stale.
    pub(super) fn drop_stale_mirror(&self, place: &Place, controller: Controller) -> Result<()> {
        match remove_below(&self.hierarchies[&controller].mount, &self.full(place))? {
            Removal::Removed => Ok(()),
            Removal::Busy => Err(KernelError::new("rmdir", format!("mirror {place} ({controller})"), Errno::BUSY)
                .hint("processes that are not in the herd are in its v1 cgroup: move or end them")),
        }
    }

    /// Removes every mirror whose place is not in the spine; a busy one stays.
    pub(super) fn drop_orphaned_mirrors(&self) -> Result<()> {
        for hierarchy in self.each_hierarchy() {
            let herd = match hierarchy.mount.descend(&self.full(&Place::herd())) {
                Ok(herd) => herd,
                Err(error) if error.is_gone() => continue,
                Err(error) => return Err(error),
            };
            let mut orphans: Vec<Place> = Vec::new();
            walk(herd, &mut |step| {
                if let Step::Entered { path: Some(path), .. } = step {
                    let place = Place::herd().below(path);
                    let is_known = orphans.iter().any(|orphan| place.is_within(orphan));
                    if !is_known && self.dir(&place).is_err_and(|error| error.is_gone()) {
                        orphans.push(place);
                    }
                }
                Ok(())
            })?;
            for orphan in orphans {
                remove_below(&hierarchy.mount, &self.full(&orphan))?;
            }
        }
        Ok(())
    }

    /// Moves every process of a place's subtree that is not in its mirror, or in one below that, into the mirror.
    ///
    /// A process that is forked meanwhile is where its parent was: the subtree is read until nobody is left outside.
    pub(super) fn pull_in(&self, place: &Place, controller: Controller) -> Result<()> {
        let Some(mirror) = self.mirror(place, controller) else { return Ok(()) };
        if self.pull(place, &mirror, RUNNING_ROUNDS)? == 0 {
            return Ok(());
        }
        let left = self.while_frozen(place, || {
            self.await_frozen(place)?;
            self.pull(place, &mirror, FROZEN_ROUNDS)
        })?;
        if left == 0 {
            return Ok(());
        }
        let object = format!("{left} processes of {place} into {}", mirror.label());
        Err(KernelError::new("move", object, Errno::AGAIN)
            .hint("processes are moved into the subtree from outside: end that"))
    }

    /// Waits until a subtree is frozen, for [`FROZEN_WITHIN`] at most: a task that hangs in the kernel does not fork either.
    fn await_frozen(&self, place: &Place) -> Result<()> {
        let events = self.events_fd(place)?;
        let deadline = Instant::now() + FROZEN_WITHIN;
        while !self.events(place)?.frozen {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
                Ok(0) => break,
                Ok(_) => drop(rustix::io::pread(&events, &mut [0u8; 64], 0)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(KernelError::new("poll", format!("{place}/cgroup.events"), errno)),
            }
        }
        Ok(())
    }

    /// Moves processes into a mirror in so many rounds at most. Returns how many are left outside.
    fn pull(&self, place: &Place, mirror: &Dir, rounds: usize) -> Result<usize> {
        for _ in 0..rounds {
            let outside = self.outside(place, mirror)?;
            if outside.is_empty() {
                return Ok(0);
            }
            for pid in outside {
                match mirror.write("cgroup.procs", &pid.to_string()) {
                    Ok(()) => {}
                    // It died, or is a zombie.
                    Err(error) if error.errno == Errno::SRCH => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(self.outside(place, mirror)?.into_iter().filter(|pid| !is_zombie(*pid)).count())
    }

    fn outside(&self, place: &Place, mirror: &Dir) -> Result<BTreeSet<i32>> {
        let all: BTreeSet<i32> = self.processes(place)?.into_iter().collect();
        let inside = processes_below(mirror.descend("")?)?;
        Ok(all.difference(&inside).copied().collect())
    }

    /// Gives the processes of mirrors that are about to be unmade back to the deepest mirror that stays above them.
    pub(super) fn push_out(&self, made: &Made) {
        for (controller, path) in made.0.iter().rev() {
            let mount = &self.hierarchies[controller].mount;
            let above = path.rsplit_once('/').map_or("", |(above, _)| above);
            let (Ok(dir), Ok(above)) = (mount.descend(path), mount.descend(above)) else { continue };
            for pid in processes_below(dir).unwrap_or_default() {
                // A process that is gone needs no move; for any other the removal will tell.
                drop(above.write("cgroup.procs", &pid.to_string()));
            }
        }
    }
}

/// The mirrors that a call made, by controller and path below the mount point, parents first.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<(Controller, String)>);

impl Made {
    /// Says whether nothing was made.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = read_text(format!("/proc/{pid}/stat")).ok();
    stat.and_then(|stat| comm_and_state(&stat)).is_none_or(|(_, state)| matches!(state, 'Z' | 'X'))
}

/// Turns a name into what the kernel takes; names of ours never contain a zero byte.
pub(super) fn c_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| KernelError::new("name", format!("{name:?}"), Errno::INVAL))
}

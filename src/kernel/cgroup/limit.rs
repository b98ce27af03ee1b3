//! Cgroups with limits: making them, changing them, reading them back. All or nothing.

use std::collections::BTreeSet;

use super::dir::Dir;
use super::mirror::Made;
use super::root::is_below;
use super::{Cgroups, Place, remove_below};
use crate::kernel::controllers::{self, Before, Seat, Seats, World};
use crate::kernel::error::{KernelError, Result};
use crate::kernel::host::Binding;
use crate::model::error::Error;
use crate::model::limits::{Controller, Knob, Limits};
use rustix::io::Errno;

/// The controllers that a call enabled: a path below the cgroup2 mount point, and what to write to disable them.
type Enabled = Vec<(String, String)>;

/// What helps where a process that is not ours keeps a cgroup from handing controllers down: the no-internal-processes rule.
const SHARED: &str = "another process is in this very cgroup: move it into a leaf below, start treeherd in a cgroup of its own \
     (systemd-run --scope -p Delegate=yes treeherd ...), or name another root with --cgroup";

impl Cgroups {
    /// Makes a place's cgroup with its limits: in the spine, and in the v1 hierarchies that enforce one of the limits.
    ///
    /// All or nothing: on any failure everything that was made or enabled is undone.
    ///
    /// # Errors
    /// [`LimitNotOffered`](crate::model::error::Code::LimitNotOffered) names the controller and what helps; else what the
    /// kernel answered: EEXIST if the cgroup exists, EBUSY if a process is in a cgroup above it, against the
    /// no-internal-processes rule.
    pub fn make(&self, place: &Place, limits: &Limits) -> std::result::Result<(), Error> {
        self.check_offered(limits)?;
        if limits.is_empty() {
            return Ok(self.spine.make_below(place.path())?);
        }
        let _alone = self.end_sharing(place, limits)?;
        let _changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.spine.make_below(place.path())?;
        let (mut made, mut enabled) = (Made::default(), Enabled::new());
        let outcome = self.make_limited(place, limits, &mut made, &mut enabled);
        if outcome.is_err() {
            self.unmake(made);
            // The error that is told is the one that made the undoing necessary.
            drop(remove_below(&self.spine, place.path()));
            self.disable(enabled);
        }
        outcome
    }

    /// Has the kernel keep an account of a place's memory of its own, also where no limit on memory needs it. On a host that binds
    /// memory to v1 nothing is done.
    ///
    /// # Errors
    /// As [`Cgroups::make`].
    ///
    /// # Kernel
    /// cgroup-v2.rst, "Controlling Controllers".
    pub fn account_memory(&self, place: &Place) -> Result<()> {
        if self.host.binding(Controller::Memory) != &Binding::V2 {
            return Ok(());
        }
        self.enable_for(place, BTreeSet::from([Controller::Memory]))
    }

    /// Enables controllers of cgroup2 for a place that stay enabled.
    pub(super) fn enable_for(&self, place: &Place, controllers: BTreeSet<Controller>) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.enable(place, &controllers, &mut Enabled::new())
    }

    fn make_limited(
        &self,
        place: &Place,
        limits: &Limits,
        made: &mut Made,
        enabled: &mut Enabled,
    ) -> std::result::Result<(), Error> {
        for controller in controllers_of(limits).into_iter().filter(|controller| self.is_v1(*controller)) {
            self.drop_stale_mirror(place, controller)?;
        }
        let seats = self.seats(place, limits, made, enabled)?;
        controllers::apply(&seats, limits).map(drop)
    }

    /// Changes limits of a living cgroup: of an agent, of a level below one, or of the herd. Knobs that are not named stay.
    ///
    /// All or nothing: on failure of one the earlier ones are put back. Where a limit needs a v1 mirror, every process of
    /// the subtree that is not in a deeper one is moved into it. Memory that such a process already uses stays charged
    /// where it was; what it takes from now on counts.
    ///
    /// # Errors
    /// As [`Cgroups::make`]; [`WrongState`](crate::model::error::Code::WrongState) if a group kill
    /// would end this process too, as long as a child that shares its memory is on the way to
    /// `exec` there; EAGAIN if others move processes into the subtree faster than those are moved.
    pub fn set_limits(&self, place: &Place, limits: &Limits) -> std::result::Result<(), Error> {
        self.check_offered(limits)?;
        let _alone = self.end_sharing(place, limits)?;
        let _changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(self.dir(place)?);
        let (mut made, mut enabled) = (Made::default(), Enabled::new());
        let outcome = self.change(place, limits, &mut made, &mut enabled);
        if outcome.is_err() {
            if !made.is_empty() {
                self.push_out(&made);
            }
            self.unmake(made);
            self.disable(enabled);
        }
        outcome
    }

    fn change(
        &self,
        place: &Place,
        limits: &Limits,
        made: &mut Made,
        enabled: &mut Enabled,
    ) -> std::result::Result<(), Error> {
        let seats = self.seats(place, limits, made, enabled)?;
        let before: Vec<Before> = controllers::apply(&seats, limits)?;
        for (controller, _) in seats.iter().filter(|(_, seat)| seat.world == World::V1) {
            if let Err(error) = self.pull_in(place, *controller) {
                controllers::put_back(&seats, before)?;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Reads what is in force at a place for some knobs. What is not limited there, or not offered, is left out; of
    /// `io_max` the first device is told.
    #[must_use]
    pub fn limits_now(&self, place: &Place, knobs: impl IntoIterator<Item = Knob>) -> Limits {
        let seat = |knob: Knob| match self.host.binding(knob.controller()) {
            Binding::V2 => self.dir(place).ok().map(|dir| Seat { world: World::V2, dir }),
            Binding::V1 { .. } => self.mirror(place, knob.controller()).map(|dir| Seat { world: World::V1, dir }),
            Binding::Absent { .. } => None,
        };
        knobs
            .into_iter()
            .filter(|knob| self.host.enforcer(*knob).is_ok())
            .filter_map(|knob| Some((knob, controllers::read(&seat(knob)?, knob).ok()??)))
            .collect()
    }

    fn check_offered(&self, limits: &Limits) -> std::result::Result<(), Error> {
        limits.iter().try_for_each(|(knob, _)| self.host.enforcer(knob).map(drop))
    }

    fn is_v1(&self, controller: Controller) -> bool {
        matches!(self.host.binding(controller), Binding::V1 { .. })
    }

    /// Opens the directories in which limits are set; mirrors are made and controllers enabled where that is needed.
    fn seats(&self, place: &Place, limits: &Limits, made: &mut Made, enabled: &mut Enabled) -> Result<Seats> {
        let mut seats = Seats::new();
        let (mirrored, native): (BTreeSet<_>, BTreeSet<_>) =
            controllers_of(limits).into_iter().partition(|controller| self.is_v1(*controller));
        self.enable(place, &native, enabled)?;
        for controller in native {
            seats.insert(controller, Seat { world: World::V2, dir: self.dir(place)? });
        }
        for controller in mirrored {
            seats.insert(controller, Seat { world: World::V1, dir: self.make_mirror(place, controller, made)? });
        }
        Ok(seats)
    }

    /// Enables controllers for a place: top-down in the cgroups above it, all in one write for each, only what is missing.
    ///
    /// All in one write, because on a populated cgroup some controllers can be enabled one by one, which silently makes
    /// it the root of a threaded subtree.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "Controlling Controllers", "No Internal Process Constraint".
    fn enable(&self, place: &Place, controllers: &BTreeSet<Controller>, enabled: &mut Enabled) -> Result<()> {
        let missing_in = |dir: &Dir, file: &str| -> Result<Vec<Controller>> {
            let text = dir.read(file)?;
            let has = |controller: &Controller| text.split_whitespace().any(|name| name == controller.name());
            Ok(controllers.iter().copied().filter(|controller| !has(controller)).collect())
        };
        if controllers.is_empty() || missing_in(&self.dir(place)?, "cgroup.controllers")?.is_empty() {
            return Ok(());
        }
        // What is above the root is only touched if the root does not have a controller yet, and never what is above ourselves.
        let full = self.full(place);
        let is_here = missing_in(&self.spine, "cgroup.controllers")?.is_empty();
        let start = if is_here { self.root.len() } else { self.touched_from() };
        let ends = full.match_indices('/').map(|(at, _)| at).filter(|at| *at >= start);
        let ends: Vec<usize> = if start == 0 { std::iter::once(0).chain(ends).collect() } else { ends.collect() };
        for end in ends {
            let dir = self.mount.descend(&full[..end])?;
            let missing = missing_in(&dir, "cgroup.subtree_control")?;
            if missing.is_empty() {
                continue;
            }
            check_empty(&dir).map_err(explain_enabling)?;
            let text = |sign: char| missing.iter().map(|name| format!("{sign}{name}")).collect::<Vec<_>>().join(" ");
            dir.write("cgroup.subtree_control", &text('+')).map_err(explain_enabling)?;
            enabled.push((full[..end].to_owned(), text('-')));
            if end == self.root.len() {
                self.shield_supervisor();
            }
        }
        Ok(())
    }

    /// Returns the length of the part of the root's path that is somebody else's: of our own cgroup, or of the one that it is in, if
    /// the root was made below that.
    fn touched_from(&self) -> usize {
        let own = self.host.own_cgroup.trim_matches('/');
        let above = own.rsplit_once('/').map_or("", |(above, _)| above);
        if is_below(&self.root, own) {
            own.len()
        } else if is_below(&self.root, above) {
            self.root.len()
        } else {
            0
        }
    }

    fn disable(&self, enabled: Enabled) {
        for (path, text) in enabled.into_iter().rev() {
            if let Ok(dir) = self.mount.descend(&path) {
                // Best effort: what is still in use below stays enabled, and the error that is told is the first one.
                drop(dir.write("cgroup.subtree_control", &text));
            }
        }
    }
}

fn controllers_of(limits: &Limits) -> BTreeSet<Controller> {
    limits.iter().map(|(knob, _)| knob.controller()).collect()
}

/// Refuses a cgroup with processes in it. The kernel refuses it too, but not for `pids` and `cpu`: with these alone it makes the
/// cgroup the root of a threaded subtree, in which no other controller can be enabled and no agent can be started.
///
/// # Kernel
/// cgroup-v2.rst, "Threads"; its root cgroup, which has no `cgroup.type`, may have processes.
fn check_empty(dir: &Dir) -> Result<()> {
    match dir.read("cgroup.type") {
        Err(error) if error.is_gone() => return Ok(()),
        Err(error) => return Err(error),
        Ok(_) if dir.read("cgroup.procs")?.is_empty() => return Ok(()),
        Ok(_) => {}
    }
    Err(KernelError::new("enable controllers in", dir.label(), Errno::BUSY))
}

fn explain_enabling(error: KernelError) -> KernelError {
    match error.errno {
        Errno::BUSY => error.hint(SHARED),
        Errno::OPNOTSUPP => error.hint("the cgroup is threaded, or has threaded ones below it"),
        Errno::NOENT => error.hint("the cgroup above does not hand the controller down: delegate it (Delegate=yes)"),
        _ => error,
    }
}

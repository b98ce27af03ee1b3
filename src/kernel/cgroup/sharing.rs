//! Which children on their way to `exec` share this process's memory, and below which cgroups none
//! may.
//!
//! The kernel kills all processes that share the memory of a victim of the OOM killer. It passes
//! over a child that has not executed its program yet, except where it kills a whole cgroup
//! (`memory.oom.group`): there it would kill this process too.
//!
//! The invariant: no child that shares memory is in a cgroup that is killed as a whole, nor in one
//! below it. v1 has no group kill.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::{Cgroups, Place};
use crate::model::error::{Code, Error};
use crate::model::limits::{Knob, Limits, Setting};

/// How long a group kill waits for the children that share memory: many times as long as the way to
/// `exec` takes.
const EXEC_MAX: Duration = Duration::from_secs(1);

/// What is known of children that share memory.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The leaves of the children that share memory now.
    under_way: Vec<Place>,
    /// The places for which a group kill is being enabled.
    enabling: Vec<Place>,
    /// Whether any cgroup may have a group kill: where none was ever enabled, no file is read.
    may_be_grouped: bool,
}

/// A child that shares memory, until this is dropped.
#[derive(Debug)]
pub struct Shared<'a>(&'a Sharing, Place);

/// A place below which no child shares memory, until this is dropped.
pub(super) struct Alone<'a>(&'a Sharing, Place);

impl Sharing {
    /// Of a herd that an earlier daemon may have left.
    pub fn of_old_herd() -> Self {
        Self { state: Mutex::new(State { may_be_grouped: true, ..State::default() }), left: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cgroups {
    /// Notes that a child which is to be born in a leaf shares this process's memory; `None` if it
    /// must not, because it could be killed together with its cgroup or one above it.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "Memory Interface Files", `memory.oom.group`; `__oom_kill_process` in
    /// mm/oom_kill.c.
    pub fn share_memory(&self, leaf: &Place) -> Option<Shared<'_>> {
        let mut state = self.sharing.state();
        let is_enabling = state.enabling.iter().any(|place| leaf.is_within(place));
        if is_enabling || (state.may_be_grouped && leaf.lineage().any(|place| self.is_killed_as_group(&place))) {
            return None;
        }
        state.under_way.push(leaf.clone());
        Some(Shared(&self.sharing, leaf.clone()))
    }

    /// What cannot be read may be set.
    fn is_killed_as_group(&self, place: &Place) -> bool {
        match self.dir(place).and_then(|dir| dir.read(Knob::MemoryOomGroup.file())) {
            Ok(text) => text.trim() != "0",
            Err(error) => error.errno != Errno::NOENT,
        }
    }

    /// Makes way for limits: if they enable a group kill, no child below the place shares memory
    /// any more, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Code::WrongState`]: a child does so for longer than [`EXEC_MAX`].
    pub(super) fn end_sharing(&self, place: &Place, limits: &Limits) -> Result<Option<Alone<'_>>, Error> {
        if !limits.iter().any(|(knob, setting)| knob == Knob::MemoryOomGroup && *setting == Setting::Flag(true)) {
            return Ok(None);
        }
        let mut state = self.sharing.state();
        state.may_be_grouped = true;
        state.enabling.push(place.clone());
        let alone = Alone(&self.sharing, place.clone());
        let is_shared = |state: &mut State| state.under_way.iter().any(|leaf| leaf.is_within(place));
        let waited = self.sharing.left.wait_timeout_while(state, EXEC_MAX, is_shared);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let held = state.under_way.iter().find(|leaf| leaf.is_within(place)).cloned();
        // Before `alone` is dropped, which locks again.
        drop(state);
        let Some(leaf) = held else { return Ok(Some(alone)) };
        let message = format!(
            "write \"1\" to memory.oom.group of {place}: the program of {leaf} has not started yet, and until then a group kill would \
             end this supervisor too"
        );
        Err(Error::new(Code::WrongState, message)
            .remedy("terminate that agent, or try again when its program has started"))
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        remove(&mut self.0.state().under_way, &self.1);
        self.0.left.notify_all();
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        remove(&mut self.0.state().enabling, &self.1);
    }
}

/// Removes one of several equal places.
fn remove(places: &mut Vec<Place>, place: &Place) {
    if let Some(at) = places.iter().position(|known| known == place) {
        places.swap_remove(at);
    }
}

//! What a main process leaves behind in the cgroup of its run. As long as it lives nobody listens to that cgroup: most leave
//! nothing behind, and every watch that is never set is a wakeup less at a birth and at an end.

use super::body::Watched;
use super::drain::After;
use super::supervisor::{Chore, Supervisor};
use crate::kernel::cgroup::Place;
use crate::machine::AgentKey;
use crate::model::id::Run;

impl Supervisor {
    /// Counts what a main process left behind, hundreds at most, and listens to it; 0 only if the kernel says that the run's
    /// cgroup is empty.
    pub(super) fn descendants(&mut self, key: AgentKey, run: Run) -> u64 {
        let place = self.bodies[&key].run_place(run);
        if self.is_empty(&place) {
            return 0;
        }
        self.watch_leaf(key, run, &place);
        // What ended before it was watched has woken nobody.
        if self.is_empty(&place) {
            return 0;
        }
        self.watch_left(key, run);
        self.tools.cgroups.some_processes(&place).map_or(1, |pids| pids.len().max(1) as u64)
    }

    fn is_empty(&self, place: &Place) -> bool {
        match self.tools.cgroups.events(place) {
            Ok(events) => !events.populated,
            Err(error) if error.is_gone() => true,
            Err(error) => {
                tracing::error!("look for processes in {place}: {error}");
                false
            }
        }
    }

    fn watch_leaf(&mut self, key: AgentKey, run: Run, place: &Place) {
        if let Some(watch) = self.watch_events(place, Watched::Leaf(key, run), Chore::Leaf(key, run)) {
            self.bodies.entry(key).and_modify(|body| body.leaf_watch = Some((run, watch)));
        }
    }

    /// Looks again at a leaf that could not be watched.
    pub(super) fn retry_leaf(&mut self, key: AgentKey, run: Run) {
        let Some(place) = self.bodies.get(&key).map(|body| body.run_place(run)) else { return };
        if !self.is_empty(&place) {
            self.watch_leaf(key, run, &place);
        }
        self.look_at_leaf(key, run);
    }

    /// Tells the machine when nothing of a run lives any more.
    pub(super) fn look_at_leaf(&mut self, key: AgentKey, run: Run) {
        let Some(place) = self.bodies.get(&key).map(|body| body.run_place(run)) else { return };
        if self.is_empty(&place) {
            self.left_ended(key);
            self.forget_left(key);
            self.forget_pid_file(key);
            self.when_drained(key, After::Emptied(run));
        }
    }
}

//! The cgroup of an agent, its whole subtree. Nobody listens to it until something hangs on what it will say: that it is frozen,
//! or that it is empty after its removal was refused. Most agents are born and end without either.

use std::os::fd::AsFd;
use std::time::Duration;

use super::body::Watched;
use super::drain::After;
use super::supervisor::{Chore, Supervisor};
use crate::kernel::cgroup::Place;
use crate::kernel::clock;
use crate::kernel::watch::WatchId;
use crate::machine::{AgentKey, Frost, Input};

/// When a cgroup is looked at again that could not be watched.
const WATCH_RETRY: Duration = Duration::from_millis(50);

/// After how long without a failure to watch a cgroup the next one is reported: those that are retried fail more often than that.
const WATCH_QUIET: Duration = Duration::from_secs(1);

/// The kernel holds news of a cgroup back until 10 ms after its last ones (`CGROUP_FILE_NOTIFY_MIN_INTV`). Whoever is paused in that
/// time is looked at meanwhile, after each of these.
const LOOKS: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(2), Duration::from_millis(4)];

impl Supervisor {
    /// A freezer was written: tells the machine when it is seen to have done what was asked.
    pub(super) fn await_frost(&mut self, key: AgentKey) {
        self.listen_at_home(key);
        self.look_for_frost_after(key, 0);
    }

    /// Looks at an agent's freezer for the n-th time.
    pub(super) fn look_for_frost(&mut self, key: AgentKey, look: usize) {
        self.look_at_home(key);
        self.look_for_frost_after(key, look + 1);
    }

    fn look_for_frost_after(&mut self, key: AgentKey, look: usize) {
        if let Some(delay) = LOOKS.get(look).filter(|_| self.machine.is_freezing(key)) {
            self.chores.insert((clock::monotonic() + *delay, Chore::Frost(key, look)));
        }
    }

    /// Listens to an agent's cgroup from now on, and tells the machine what it says now: what changed before has woken nobody.
    ///
    /// Read here and not on a hand: what it read could be older than news that is already told.
    pub(super) fn listen_at_home(&mut self, key: AgentKey) {
        let Some(body) = self.bodies.get(&key) else { return };
        if body.home_watch.is_none() {
            let home = body.home.clone();
            let watch = self.watch_events(&home, Watched::Home(key), Chore::Home(key));
            self.bodies.entry(key).and_modify(|body| body.home_watch = watch);
        }
        self.look_at_home(key);
    }

    /// Listens to the `cgroup.events` of a place; none if it is gone, or cannot be watched: then this chore is done soon.
    pub(super) fn watch_events(&mut self, place: &Place, watched: Watched, retry: Chore) -> Option<WatchId> {
        let dir = self.tools.cgroups.open_dir(place);
        match dir.and_then(|dir| self.tools.watches.add_modify(dir.as_fd(), "cgroup.events")) {
            Ok(watch) => {
                self.watched.insert(watch, watched);
                Some(watch)
            }
            Err(error) if error.is_gone() => None,
            Err(error) => {
                let now = clock::monotonic();
                let last = self.watch_failed.replace(now);
                if last.is_none_or(|last| now.since(last) > WATCH_QUIET) {
                    tracing::error!("watch {place}: {error}; what is not watched is read every {WATCH_RETRY:?}");
                }
                self.chores.insert((now + WATCH_RETRY, retry));
                None
            }
        }
    }

    /// Tells the machine what the cgroup of an agent says.
    pub(super) fn look_at_home(&mut self, key: AgentKey) {
        let Some(body) = self.bodies.get(&key) else { return };
        let Ok(events) = self.tools.cgroups.events(&body.home) else { return };
        self.feed(Input::FrostSeen { agent: key, frost: if events.frozen { Frost::Frozen } else { Frost::Thawed } });
        if !events.populated {
            self.when_drained(key, After::SubtreeEmptied);
        }
    }

    /// Says whether no process lives in an agent's cgroup now.
    pub(super) fn is_deserted(&self, key: AgentKey) -> bool {
        let Some(body) = self.bodies.get(&key) else { return false };
        match self.tools.cgroups.events(&body.home) {
            Ok(events) => !events.populated,
            Err(error) => error.is_gone(),
        }
    }
}

//! What the shell listens to besides its descriptors: files of cgroups and of agents' output, which the kernel tells of when they
//! change. Each watch has an entry that says what it is on; one without an entry is over.

use super::body::Watched;
use super::memory::Holder;
use super::output::UNWATCHED_LOOK;
use super::supervisor::{Chore, Supervisor};
use crate::kernel::cgroup::Place;
use crate::kernel::clock;
use crate::kernel::watch::{Fact, Left, WatchId};
use crate::machine::AgentKey;
use crate::model::limits::{Knob, Limits};

impl Supervisor {
    pub(super) fn watches_fired(&mut self) {
        let mut facts = Vec::new();
        loop {
            let left = match self.tools.watches.read(&mut facts) {
                Ok(left) => left,
                Err(error) => {
                    tracing::error!("read watches: {error}");
                    return;
                }
            };
            for fact in facts.drain(..) {
                match fact {
                    Fact::Modified(watch) => self.watch_fired(watch),
                    Fact::Gone(watch) => self.watch_ended(watch),
                    Fact::Overflow => self.look_at_everything(),
                }
            }
            if left == Left::Nothing {
                return;
            }
        }
    }

    /// A watch has ended by itself. One on a spool file ends when the writer that fired it goes on: if that was stopped in
    /// between, the watch that was set anew meanwhile was the same one, and has ended unheard.
    fn watch_ended(&mut self, watch: WatchId) {
        match self.watched.get(&watch) {
            Some(Watched::Stream(..)) => self.watch_fired(watch),
            _ => drop(self.watched.remove(&watch)),
        }
    }

    fn watch_fired(&mut self, watch: WatchId) {
        let Some(watched) = self.watched.get(&watch).cloned() else { return };
        if let Watched::Stream(..) = watched {
            // It fires once.
            self.watched.remove(&watch);
        }
        self.look_at(watched);
    }

    fn look_at(&mut self, watched: Watched) {
        match watched {
            Watched::Home(key) => self.look_at_home(key),
            Watched::Leaf(key, run) => self.look_at_leaf(key, run),
            Watched::Stream(key, stream) => self.spool_written(key, stream),
            Watched::Memory(place) => self.memory_told(&place),
            Watched::Hits(place, knob) => self.look_at_hits(&place, knob),
            Watched::ForksAbove => self.look_at_forks_above(),
            Watched::StateDir => self.restore_soon(),
        }
    }

    /// Facts were lost: every file that is watched is read.
    fn look_at_everything(&mut self) {
        tracing::warn!("the kernel's queue of facts was full; everything is looked at again");
        self.watched.values().cloned().collect::<Vec<_>>().into_iter().for_each(|watched| self.look_at(watched));
    }

    /// Listens to the limits that were just set.
    pub(super) fn watch_limits(&mut self, places: &[(Place, Limits)]) {
        self.watch_memory(places);
        self.watch_hits(places);
    }

    /// Listens to limits that were set before this daemon began; what was hit by then is not told again.
    pub(super) fn watch_limits_as_they_are(&mut self, places: &[(Place, Limits)]) {
        self.watch_memory(places);
        for (place, limits) in places {
            self.memory.take_as_told(&self.tools.cgroups, place);
            self.listen_to_hits(place, limits);
        }
    }

    /// The cgroups of an agent and all below it are gone, and so is what listened to them.
    pub(super) fn forget_cgroups(&mut self, key: AgentKey) {
        let Some(home) = self.bodies.get(&key).map(|body| body.home.clone()) else { return };
        let mut keys = vec![key];
        while let Some(key) = keys.pop() {
            keys.extend(self.machine.children_of(key));
            self.forget_pressure(key);
            let Some(body) = self.bodies.get_mut(&key) else { continue };
            let watches = body.home_watch.take().into_iter().chain(body.leaf_watch.take().map(|(_, watch)| watch));
            for watch in watches.collect::<Vec<_>>() {
                self.unwatch(watch);
            }
        }
        self.forget_limits(&home);
    }

    pub(super) fn forget_limits(&mut self, place: &Place) {
        self.forget_hits(place);
        for domain in self.memory.forget(place) {
            if let Some((_, eventfd)) = domain.eventfd {
                self.stop_polling(&eventfd);
            }
            if let Some(watch) = domain.watch {
                self.unwatch(watch);
            }
        }
    }

    /// Has the file of a limit looked at that cannot be watched: of a memory domain, or of a knob.
    pub(super) fn look_later(&mut self, place: &Place, knob: Option<Knob>, error: &dyn std::fmt::Display) {
        tracing::warn!("watch the limits of {place}: {error}; they are looked at every {UNWATCHED_LOOK:?}");
        self.chores.insert((clock::monotonic() + UNWATCHED_LOOK, Chore::Unwatched(place.clone(), knob)));
    }

    /// Looks at the file of a limit that could not be watched, and tries to watch it again, for as long as it is limited.
    pub(super) fn look_at_unwatched(&mut self, place: &Place, knob: Option<Knob>) {
        let is_watched = match knob {
            None => self.watch_domain(place),
            Some(knob) => self.watch_counter(place, knob),
        };
        match knob {
            None => self.memory_told(place),
            Some(knob) => self.look_at_hits(place, knob),
        }
        if !is_watched {
            self.chores.insert((clock::monotonic() + UNWATCHED_LOOK, Chore::Unwatched(place.clone(), knob)));
        }
    }

    pub(super) fn unwatch(&mut self, watch: WatchId) {
        self.watched.remove(&watch);
        // It may have ended by itself, with its file.
        drop(self.tools.watches.remove(watch));
    }

    /// Finds the agent whose subtree a place is, or whose children's.
    pub(super) fn owner_of(&self, place: &Place) -> Option<AgentKey> {
        match Holder::of(place) {
            Holder::Herd => None,
            Holder::Agent(id) | Holder::Children(_, id) => self.machine.key_of(&id.parse().ok()?),
        }
    }
}

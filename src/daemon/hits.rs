//! Forks that met a `pids_max`: told with a count, at most once a second for each limit, however many there are.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

use super::body::Watched;
use super::memory::name_of;
use super::supervisor::{Chore, Supervisor, now};
use crate::kernel::cgroup::Place;
use crate::kernel::watch::WatchId;
use crate::model::event::Kind;
use crate::model::limits::{Knob, Limits};
use crate::model::time::Monotonic;

/// How long the hits of a limit are gathered before they are told again.
const GATHERED: Duration = Duration::from_secs(1);

/// The limits on forks that are listened to.
pub(super) type Hits = BTreeMap<Place, Hit>;

/// One of them.
#[derive(Debug)]
pub(super) struct Hit {
    watch: WatchId,
    told: u64,
    /// Before this time nothing more is told.
    next: Monotonic,
}

impl Supervisor {
    /// Listens to the limits on forks that were just set.
    pub(super) fn watch_forks(&mut self, places: &[(Place, Limits)]) {
        for (place, limits) in places {
            if self.hits.contains_key(place) {
                continue;
            }
            self.listen_to_forks(place, limits);
            if let Some(hit) = self.hits.get_mut(place) {
                // What was refused before the watch was there has woken nobody.
                hit.told = 0;
                self.look_at_forks(place);
            }
        }
    }

    /// Listens to a limit on forks; what it has refused until now counts as told.
    pub(super) fn listen_to_forks(&mut self, place: &Place, limits: &Limits) {
        if limits.get(Knob::PidsMax).is_none() {
            return;
        }
        let watch = self
            .tools
            .cgroups
            .pids_events_dir(place)
            .and_then(|dir| dir.map(|dir| self.tools.watches.add_modify(dir.as_fd(), "pids.events")).transpose());
        match watch {
            Ok(Some(watch)) => {
                let told = self.tools.cgroups.pids_hits(place).ok().flatten().unwrap_or(0);
                self.watched.insert(watch, Watched::Forks(place.clone()));
                self.hits.insert(place.clone(), Hit { watch, told, next: Monotonic::default() });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("watch the forks of {place}: {error}"),
        }
    }

    /// Tells how often a limit on forks was hit since the last time.
    pub(super) fn look_at_forks(&mut self, place: &Place) {
        let now = now();
        let Some(hit) = self.hits.get_mut(place) else { return };
        if now.mono < hit.next {
            self.chores.insert((hit.next, Chore::Forks(place.clone())));
            return;
        }
        let Ok(Some(count)) = self.tools.cgroups.pids_hits(place) else { return };
        let new = count.saturating_sub(hit.told);
        if new == 0 {
            return;
        }
        hit.told = count;
        hit.next = now.mono + GATHERED;
        let limits = self.tools.cgroups.limits_now(place, [Knob::PidsMax]);
        let owner = self.owner_of(place);
        let mut event = self.machine.event_about(now.mono, now.wall, Kind::Limit, owner);
        event.message = format!("{limits} of {} was hit {new} times: forks are refused", name_of(place));
        event.limits = Some(limits);
        self.publish(event);
    }

    pub(super) fn forget_forks(&mut self, place: &Place) {
        let gone: Vec<_> = self.hits.keys().filter(|other| other.is_within(place)).cloned().collect();
        for place in gone {
            if let Some(hit) = self.hits.remove(&place) {
                self.unwatch(hit.watch);
            }
        }
    }
}

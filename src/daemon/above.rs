//! Forks that a limit above the herd has refused: whoever of the herd wanted to fork, the limit is somebody else's.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use super::body::Watched;
use super::hits::Pace;
use super::supervisor::{Chore, Supervisor, now};
use crate::model::event::{Hit, Kind};
use crate::model::limits::{Knob, Limits};

/// What is known of each limit, by its name as a culprit.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<String, Known>);

#[derive(Debug)]
struct Known {
    told: u64,
    total: u64,
    pace: Pace,
}

impl Supervisor {
    /// Listens to the limits of tasks above the herd; what they have refused until now is nobody's news.
    pub(super) fn watch_forks_above(&mut self) {
        for above in self.tools.cgroups.pids_above() {
            match self.tools.watches.add_modify(above.dir.as_fd(), "pids.events") {
                Ok(watch) => drop(self.watched.insert(watch, Watched::ForksAbove)),
                Err(error) => tracing::warn!("watch {}: {error}", above.culprit),
            }
            let known = Known { told: above.refused, total: 0, pace: Pace::default() };
            self.refusals.0.insert(above.culprit, known);
        }
    }

    /// Tells of forks that were refused above the herd since the last time, if it is time for that.
    pub(super) fn look_at_forks_above(&mut self) {
        if self.refusals.0.is_empty() {
            return;
        }
        let now = now();
        for above in self.tools.cgroups.pids_above() {
            let Some(known) = self.refusals.0.get_mut(&above.culprit) else { continue };
            let hits = above.refused.saturating_sub(known.told);
            if hits == 0 {
                continue;
            }
            if let Some(later) = known.pace.is_early(now.mono) {
                self.chores.insert((later, Chore::ForksAbove));
                continue;
            }
            known.told = above.refused;
            known.total += hits;
            known.pace.advance(now.mono);
            let hit = Hit { culprit: above.culprit, hits, total: known.total, largest: None };
            *self.limit_hits.entry(Knob::PidsMax.name().to_owned()).or_default() += hits;
            let mut event = self.machine.event_about(now.mono, now.wall, Kind::Limit, None);
            let limits: Limits = [(Knob::PidsMax, above.setting)].into_iter().collect();
            let times = if hits == 1 { "once".to_owned() } else { format!("{hits} times") };
            event.message = format!("{limits} of {} was hit {times}: forks are refused", hit.culprit);
            event.limits = Some(limits);
            event.hit = Some(hit);
            self.publish(event);
        }
    }
}

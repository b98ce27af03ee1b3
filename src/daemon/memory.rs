//! Who ran out of memory, and whose limit it was: from the kernel's counters before and after.
//!
//! A domain is a cgroup with a memory limit of its own. The counter of kills rises in the cgroup of the victim, the counter of
//! a limit that was reached in the culprit. Both are read when a process was killed, and when the kernel says that a
//! domain ran out of memory (an eventfd on v1, `memory.events.local` on cgroup2).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::kernel::cgroup::{Cgroups, OomCounts, Place};
use crate::kernel::watch::WatchId;
use crate::machine::AgentKey;
use crate::model::limits::{Knob, Setting};
use crate::model::status::Oom;
use crate::model::units::Max;

/// When a domain is looked at after the v1 eventfd fired: it fires before the kill is counted.
pub(super) const LOOKS: [Duration; 4] =
    [Duration::from_millis(2), Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(400)];

/// A cgroup with a memory limit of its own.
#[derive(Debug)]
pub(super) struct Domain {
    /// The agent whose limit it is; none for the herd's.
    pub owner: Option<AgentKey>,
    /// The v1 notification, and its token in the poll.
    pub eventfd: Option<(usize, OwnedFd)>,
    /// The watch on cgroup2's events.
    pub watch: Option<WatchId>,
    /// How many kills were told as events.
    pub told: u64,
    /// How many looks are still due.
    pub looks: usize,
}

/// All domains, and the counters as they were seen last.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub domains: BTreeMap<Place, Domain>,
    /// Kills in a cgroup that were the end of a main process.
    attributed: BTreeMap<Place, u64>,
    /// How often a limit had been reached when it was last looked at.
    reached: BTreeMap<Place, u64>,
}

/// Says whether a place is that of an agent's children together. herd / a / level-1 / b: from the herd on every second one is,
/// whatever an agent is called.
pub(super) fn is_of_children(place: &Place) -> bool {
    let depth = place.path().split('/').count();
    depth > 2 && depth % 2 == 1
}

/// Names whose limit a place's is: an agent's, all children's of an agent, or the herd's.
pub(super) fn name_of(place: &Place) -> String {
    match place.parent() {
        Some(parent) if is_of_children(place) => format!("{} of {}", place.name(), parent.name()),
        _ => place.name().to_owned(),
    }
}

/// Returns a place and those above it, nearest first.
fn chain(place: &Place) -> impl Iterator<Item = Place> {
    std::iter::successors(Some(place.clone()), Place::parent)
}

impl Memory {
    /// Says whether the OOM killer ended a main process that a SIGKILL ended in this cgroup, and whose limit it was.
    pub fn explain(&mut self, cgroups: &Cgroups, home: &Place) -> Option<Oom> {
        let (place, counts) = chain(home).find_map(|place| Some((place.clone(), cgroups.oom_counts(&place).ok()??)))?;
        let attributed = self.attributed.entry(place).or_default();
        if counts.oom_kill <= *attributed {
            return None;
        }
        *attributed += 1;
        Some(self.culprit(cgroups, home))
    }

    /// Finds the nearest limit that was reached since it was last looked at; if no counter tells, the nearest that was ever met.
    pub fn culprit(&mut self, cgroups: &Cgroups, home: &Place) -> Oom {
        let mut limited = Vec::new();
        for place in chain(home) {
            let Ok(Some(OomCounts { oom, .. })) = cgroups.oom_counts(&place) else { continue };
            let before = self.reached.insert(place.clone(), oom).unwrap_or(0);
            let limits = cgroups.limits_now(&place, [Knob::MemoryMax]);
            if let Some(Setting::Bytes(Max::Value(limit))) = limits.get(Knob::MemoryMax) {
                limited.push((place, limit.0, oom > before));
            }
        }
        let counted = limited.iter().find(|(_, _, was_reached)| *was_reached);
        let met = || limited.iter().find(|(place, ..)| cgroups.has_met_limit(place));
        let found = counted.or_else(met);
        Oom {
            culprit: found.map(|(place, ..)| name_of(place)),
            limit_bytes: found.map(|(_, limit, _)| *limit),
            largest: None,
        }
    }

    /// Returns how many kills of a domain were not told yet, and takes them as told.
    pub fn untold(&mut self, cgroups: &Cgroups, place: &Place) -> u64 {
        let Some(domain) = self.domains.get_mut(place) else { return 0 };
        let Ok(Some(counts)) = cgroups.oom_counts(place) else { return 0 };
        let new = counts.oom_kill.saturating_sub(domain.told);
        domain.told = domain.told.max(counts.oom_kill);
        new
    }

    /// Forgets everything of a cgroup that is removed and what is below it. Returns what has to be taken off the poll.
    pub fn forget(&mut self, place: &Place) -> Vec<Domain> {
        self.attributed.retain(|other, _| !other.is_within(place));
        self.reached.retain(|other, _| !other.is_within(place));
        let gone: Vec<_> = self.domains.keys().filter(|other| other.is_within(place)).cloned().collect();
        gone.iter().filter_map(|place| self.domains.remove(place)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_an_agents_its_childrens_or_the_herds() {
        let agent = Place::herd().join("a");
        let level = agent.join("level-1");
        let child = level.join("level-9");
        let names = [Place::herd(), agent, level, child.clone(), child.join("level-2")].map(|place| name_of(&place));
        assert_eq!(names, ["herd", "a", "level-1 of a", "level-9", "level-2 of level-9"]);
    }
}

//! Who ran out of memory, and whose limit it was: from the kernel's counters before and after.
//!
//! A domain is a cgroup with a memory limit of its own. The counter of kills rises in the cgroup of the victim, the counter of
//! a limit that was reached in the culprit. Both are read when a process was killed, and when the kernel says that a
//! domain ran out of memory (an eventfd on v1, `memory.events.local` on cgroup2).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use mio::Interest;

use super::body::Watched;
use super::hits::Pace;
use super::largest::Look;
use super::supervisor::{Chore, Source, Supervisor, now};
use crate::kernel::cgroup::{Cgroups, OomCounts, Place, ReachedAbove};
use crate::kernel::clock;
use crate::kernel::error::KernelError;
use crate::kernel::host::Binding;
use crate::kernel::watch::WatchId;
use crate::machine::{AgentKey, Input};
use crate::model::event::Kind;
use crate::model::limits::{Controller, Knob, Limits, Setting};
use crate::model::status::Oom;
use crate::model::units::{Bytes, Max};

/// When a domain is looked at after the v1 eventfd fired: it fires before the kill is counted.
const LOOKS: [Duration; 4] =
    [Duration::from_millis(2), Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(400)];

/// In how many agents victims are looked for at one kill.
const VICTIMS_MAX: usize = 1_000;

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
    /// When the next ones are.
    pub pace: Pace,
    /// How many kills were found, told or not.
    pub found: u64,
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
    /// Kills in an agent's own cgroup that its run has been told of.
    victims: BTreeMap<Place, u64>,
    /// Kills in the nearest memory cgroup above the herd that were the end of a main process, or are nobody's news.
    outside: u64,
    /// How often a limit above the herd had been reached when it was last looked at, by its name as a culprit.
    reached_outside: BTreeMap<String, u64>,
}

/// Whose a place below the herd is.
pub(super) enum Holder<'a> {
    Herd,
    /// An agent's cgroup.
    Agent(&'a str),
    /// The cgroup of an agent's children together: `level-K`, and the agent.
    Children(&'a str, &'a str),
}

impl<'a> Holder<'a> {
    /// Reads it from the path: `herd / agent / level-K / agent / …`.
    pub fn of(place: &'a Place) -> Self {
        let mut names = place.path().rsplit('/');
        let (last, above) = (names.next().unwrap_or_default(), names.next());
        match (above, names.count() % 2) {
            (None, _) => Self::Herd,
            (Some(agent), 1) => Self::Children(last, agent),
            (Some(_), _) => Self::Agent(last),
        }
    }
}

/// Names whose limit a place's is.
pub(super) fn name_of(place: &Place) -> String {
    match Holder::of(place) {
        Holder::Herd => "herd".to_owned(),
        Holder::Agent(id) => id.to_owned(),
        Holder::Children(level, agent) => format!("{level} of {agent}"),
    }
}

impl Memory {
    /// Says whether the OOM killer ended a main process that a SIGKILL ended in this cgroup, and whose limit it was.
    /// `peak` is the most memory that the process had, if that is known.
    pub fn explain(&mut self, look: &mut Look<'_>, home: &Place, peak: Option<u64>) -> Option<Oom> {
        let cgroups = look.cgroups;
        let counted = home.lineage().find_map(|place| Some((place.clone(), cgroups.oom_counts(&place).ok()??)));
        let (kills, attributed) = match counted {
            Some((place, counts)) => (counts.oom_kill, self.attributed.entry(place).or_default()),
            // The OOM killer of the host itself names nobody.
            None if cgroups.memory_above().is_empty() => return None,
            None => (cgroups.kills_outside()?, &mut self.outside),
        };
        if kills <= *attributed {
            return None;
        }
        *attributed += 1;
        Some(self.culprit(look, home, peak))
    }

    /// Names the limit that a victim most likely died of, and takes nothing as looked at.
    pub fn nearest_limit(&self, look: &mut Look<'_>, home: &Place) -> Oom {
        let mut seen = Self { reached: self.reached.clone(), ..Self::default() };
        seen.culprit(look, home, None)
    }

    /// Finds the nearest limit that was reached since it was last looked at; if none was, the nearest that ever was, or that was met.
    /// And who uses most below it.
    pub fn culprit(&mut self, look: &mut Look<'_>, home: &Place, peak: Option<u64>) -> Oom {
        let cgroups = look.cgroups;
        let mut limited = Vec::new();
        for place in home.lineage() {
            let Ok(Some(OomCounts { oom, .. })) = cgroups.oom_counts(&place) else { continue };
            let before = self.reached.insert(place.clone(), oom).unwrap_or(0);
            let limits = cgroups.limits_now(&place, [Knob::MemoryMax]);
            if let Some(Setting::Bytes(Max::Value(limit))) = limits.get(Knob::MemoryMax) {
                limited.push((place, limit.0, oom, oom > before));
            }
        }
        let new = limited.iter().find(|(.., is_new)| *is_new);
        let above = self.reached_above(cgroups);
        let blame = |above: &ReachedAbove| Oom {
            culprit: Some(above.culprit.clone()),
            limit_bytes: Some(above.limit.0),
            largest: None,
        };
        if let (None, Some((above, _))) = (new, above.iter().find(|(_, is_new)| *is_new)) {
            return blame(above);
        }
        let ever = || limited.iter().find(|(_, _, oom, _)| *oom > 0);
        let met = || limited.iter().find(|(place, ..)| cgroups.has_met_limit(place));
        let found = new.or_else(ever).or_else(met);
        if let (None, Some((above, _))) = (found, above.iter().find(|(above, _)| above.oom > 0 || above.is_met)) {
            return blame(above);
        }
        let killed = peak.map(|peak| (home, peak));
        let largest = |(top, ..): &(Place, u64, u64, bool)| look.largest(top, Controller::Memory, killed);
        Oom {
            culprit: found.map(|(place, ..)| name_of(place)),
            limit_bytes: found.map(|(_, limit, ..)| *limit),
            largest: found.and_then(largest),
        }
    }

    /// Lists the limits above the herd, and whether each was reached since it was last looked at.
    fn reached_above(&mut self, cgroups: &Cgroups) -> Vec<(ReachedAbove, bool)> {
        let mut compare = |above: ReachedAbove| {
            let before = self.reached_outside.insert(above.culprit.clone(), above.oom).unwrap_or(0);
            let is_new = above.oom > before;
            (above, is_new)
        };
        cgroups.memory_above().into_iter().map(&mut compare).collect()
    }

    /// Takes what was counted above the herd until now for told.
    pub fn take_outside_as_told(&mut self, cgroups: &Cgroups) {
        self.outside = cgroups.kills_outside().unwrap_or(0);
        self.reached_outside = cgroups.memory_above().into_iter().map(|above| (above.culprit, above.oom)).collect();
    }

    /// Returns how many kills of a domain were not told yet, and how many of them were not found before.
    pub fn untold(&mut self, cgroups: &Cgroups, place: &Place) -> (u64, u64) {
        let Some(domain) = self.domains.get_mut(place) else { return (0, 0) };
        let Ok(Some(counts)) = cgroups.oom_counts(place) else { return (0, 0) };
        let fresh = counts.oom_kill.saturating_sub(domain.found);
        domain.found = domain.found.max(counts.oom_kill);
        (counts.oom_kill.saturating_sub(domain.told), fresh)
    }

    /// Takes the kills in an agent's cgroup as known: its main process was one of them, and that is told with its end.
    pub fn take_as_found(&mut self, cgroups: &Cgroups, home: &Place) {
        self.new_victims(cgroups, home);
    }

    /// Returns how many processes of an agent were killed since it was last asked; none where its kills are counted with another's.
    pub fn new_victims(&mut self, cgroups: &Cgroups, home: &Place) -> u64 {
        let Ok(Some(counts)) = cgroups.oom_counts(home) else { return 0 };
        let seen = self.victims.entry(home.clone()).or_default();
        counts.oom_kill.saturating_sub(std::mem::replace(seen, counts.oom_kill))
    }

    /// Takes the counters of a place as they are for told: an earlier daemon has told them, or they are nobody's news any more.
    pub fn take_as_told(&mut self, cgroups: &Cgroups, place: &Place) {
        let Ok(Some(counts)) = cgroups.oom_counts(place) else { return };
        self.attributed.insert(place.clone(), counts.oom_kill);
        self.victims.insert(place.clone(), counts.oom_kill);
        self.reached.insert(place.clone(), counts.oom);
        if let Some(domain) = self.domains.get_mut(place) {
            (domain.told, domain.found) = (counts.oom_kill, counts.oom_kill);
        }
    }

    /// Forgets everything of a cgroup that is removed and what is below it. Returns what has to be taken off the poll.
    pub fn forget(&mut self, place: &Place) -> Vec<Domain> {
        self.attributed.retain(|other, _| !other.is_within(place));
        self.reached.retain(|other, _| !other.is_within(place));
        self.victims.retain(|other, _| !other.is_within(place));
        let gone: Vec<_> = self.domains.keys().filter(|other| other.is_within(place)).cloned().collect();
        gone.iter().filter_map(|place| self.domains.remove(place)).collect()
    }
}

impl Supervisor {
    pub(super) fn watch_memory(&mut self, places: &[(Place, Limits)]) {
        for (place, limits) in places {
            let is_limited = [Knob::MemoryMax, Knob::MemoryHigh].iter().any(|knob| limits.get(*knob).is_some());
            let owner = self.owner_of(place);
            if !(is_limited || self.counts_delegated_memory(owner)) || self.memory.domains.contains_key(place) {
                continue;
            }
            // A kill from before it was watched fires nothing: its counter is read in any case.
            let looks = LOOKS.len();
            let mut domain =
                Domain { owner, eventfd: None, watch: None, told: 0, pace: Pace::default(), found: 0, looks };
            self.chores.insert((clock::monotonic() + LOOKS[0], Chore::Memory(place.clone())));
            let cgroups = &self.tools.cgroups;
            match cgroups.oom_eventfd(place) {
                Ok(Some(eventfd)) => domain.eventfd = self.register_memory(eventfd),
                Ok(None) => match self.watch_memory_file(place) {
                    Ok(watch) => domain.watch = Some(watch),
                    Err(error) => self.look_later(place, None, &error),
                },
                Err(error) => self.look_later(place, None, &error),
            }
            self.memory.domains.insert(place.clone(), domain);
        }
    }

    /// Says whether memory is accounted for below an agent's own cgroup, which is delegated to its
    /// user.
    fn counts_delegated_memory(&self, owner: Option<AgentKey>) -> bool {
        let is_delegated = owner.and_then(|owner| self.machine.spec_of(owner)).is_some_and(|spec| spec.delegate);
        is_delegated && self.tools.cgroups.host().binding(Controller::Memory) == &Binding::V2
    }

    fn watch_memory_file(&mut self, place: &Place) -> Result<WatchId, KernelError> {
        let dir = self.tools.cgroups.open_dir(place)?;
        // Of a cgroup that is delegated the kernel counts each kill below it.
        let is_delegated = self.counts_delegated_memory(self.owner_of(place));
        let file = if is_delegated { "memory.events" } else { "memory.events.local" };
        let watch = self.tools.watches.add_modify(dir.as_fd(), file)?;
        self.watched.insert(watch, Watched::Memory(place.clone()));
        Ok(watch)
    }

    /// Tries again to have the kernel tell of a domain. Says whether nothing more is to be done for that.
    pub(super) fn watch_domain(&mut self, place: &Place) -> bool {
        if self.memory.domains.get(place).is_none_or(|domain| domain.watch.is_some() || domain.eventfd.is_some()) {
            return true;
        }
        let eventfd = match self.tools.cgroups.oom_eventfd(place) {
            Ok(eventfd) => eventfd.and_then(|eventfd| self.register_memory(eventfd)),
            Err(_) => return false,
        };
        let watch = if eventfd.is_none() { self.watch_memory_file(place).ok() } else { None };
        let is_watched = eventfd.is_some() || watch.is_some();
        self.memory.domains.entry(place.clone()).and_modify(|domain| (domain.eventfd, domain.watch) = (eventfd, watch));
        is_watched
    }

    fn register_memory(&mut self, eventfd: OwnedFd) -> Option<(usize, OwnedFd)> {
        let id = usize::try_from(self.fresh()).ok()?;
        self.poll_for(&eventfd, Source::Memory(id), Interest::READABLE);
        Some((id, eventfd))
    }

    pub(super) fn memory_fired(&mut self, id: usize) {
        let fired = self
            .memory
            .domains
            .iter_mut()
            .find(|(_, domain)| domain.eventfd.as_ref().is_some_and(|(own, _)| *own == id));
        let Some((place, domain)) = fired else { return };
        if let Some((_, eventfd)) = &domain.eventfd {
            // The count says nothing; reading it makes the next one fire.
            let mut count = [0u8; 8];
            if let Err(error) = rustix::io::read(eventfd, &mut count) {
                tracing::debug!("read the notification of {place}: {error}");
            }
        }
        domain.looks = LOOKS.len();
        let place = place.clone();
        self.chores.insert((clock::monotonic() + LOOKS[0], Chore::Memory(place)));
    }

    /// The file of a memory domain was written to: of an OOM kill, or of a limit that was hit.
    pub(super) fn memory_told(&mut self, place: &Place) {
        self.look_at_memory(place);
        self.look_at_hits(place, Knob::MemoryMax);
        self.look_at_hits(place, Knob::MemoryHigh);
    }

    pub(super) fn look_at_memory(&mut self, place: &Place) {
        let (kills, fresh) = self.memory.untold(&self.tools.cgroups, place);
        if fresh > 0 {
            self.find_victims(place);
        }
        let now = now();
        if let Some(domain) = self.memory.domains.get_mut(place) {
            let look = LOOKS.len() - domain.looks;
            domain.looks = if fresh > 0 { 0 } else { domain.looks.saturating_sub(1) };
            if let (true, Some(after)) = (domain.looks > 0, LOOKS.get(look + 1)) {
                self.chores.insert((now.mono + *after, Chore::Memory(place.clone())));
            }
        }
        let Some(domain) = self.memory.domains.get_mut(place).filter(|_| kills > 0) else { return };
        // A loop of kills is told as limits that are hit are: at once, then in ever longer intervals.
        if let Some(later) = domain.pace.is_early(now.mono) {
            self.chores.insert((later, Chore::Memory(place.clone())));
            return;
        }
        domain.told += kills;
        domain.pace.advance(now.mono);
        let owner = self.memory.domains.get(place).and_then(|domain| domain.owner);
        let mut event = self.machine.event_about(now.mono, now.wall, Kind::Oom, owner);
        let mut look = Look { cgroups: &self.tools.cgroups, reads: &mut self.reads, now: now.mono };
        let oom = self.memory.culprit(&mut look, place, None);
        let limit = oom.culprit.as_ref().map(|culprit| format!(" at the limit of {culprit}")).unwrap_or_default();
        let largest = oom.largest.as_ref().map(|it| it.clause(Bytes(it.amount)));
        event.message = format!("the OOM killer ended {kills} of its processes{limit}{}", largest.unwrap_or_default());
        event.oom = Some(oom);
        self.publish(event);
    }
}

impl Supervisor {
    /// Finds the agents whose processes were killed at a limit, and has the machine decide what that means for their runs.
    fn find_victims(&mut self, place: &Place) {
        let homes = self.bodies.iter().filter(|(_, body)| body.home.is_within(place) && body.has_run());
        let homes: Vec<(AgentKey, Place)> =
            homes.map(|(key, body)| (*key, body.home.clone())).take(VICTIMS_MAX).collect();
        for (agent, home) in homes {
            let kills = self.memory.new_victims(&self.tools.cgroups, &home);
            let Some(run) = self.machine.run_of(agent).filter(|_| kills > 0) else { continue };
            let mut look = Look { cgroups: &self.tools.cgroups, reads: &mut self.reads, now: clock::monotonic() };
            let oom = self.memory.nearest_limit(&mut look, &home);
            self.feed(Input::OomKilled { agent, run, kills, oom });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_agents_or_its_childrens_by_its_depth_and_not_by_its_name() {
        let root = Place::herd().join("a");
        let level = root.join("level-1");
        assert_eq!(name_of(&Place::herd()), "herd");
        assert_eq!(name_of(&root), "a");
        assert_eq!(name_of(&level), "level-1 of a");
        assert_eq!(name_of(&level.join("b")), "b");
        assert_eq!(name_of(&level.join("level-7")), "level-7", "an agent may be called that");
        assert_eq!(name_of(&level.join("b").join("level-2")), "level-2 of b");
    }
}

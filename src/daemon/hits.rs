//! Limits that were hit: told with a count and the culprit, in ever longer intervals as long as that goes on.
//!
//! Whose limit it is, is who is to blame: the kernel counts a hit where the limit is, whoever below runs into it. The first hit is told
//! at once; those that follow after 1 s, 2 s, 4 s and so on, after 5 minutes at most, so a limit that is hit for an hour makes 20
//! events, however irregularly: only 5 minutes without a hit start the intervals over. What is not told by then is told when
//! the agent's run ends; what the limit of a level or a group has counted since it was told last goes with its cgroup. None is told
//! twice.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Once;
use std::time::Duration;

use super::body::Watched;
use super::largest::Look;
use super::memory::name_of;
use super::pressure::Listener;
use super::supervisor::{Chore, Supervisor, now};
use crate::kernel::cgroup::{COUNTED, Place};
use crate::kernel::error::Result;
use crate::kernel::host::Binding;
use crate::kernel::watch::WatchId;
use crate::machine::Now;
use crate::model::event::{Hit, Kind};
use crate::model::limits::{Controller, Knob, Limits};
use crate::model::pressure::Resource;
use crate::model::time::Monotonic;
use crate::model::units::Bytes;

/// How long the hits of a limit are gathered at first before they are told again.
const GATHERED: Duration = Duration::from_secs(1);

/// How long they are gathered at most.
const GATHERED_MOST: Duration = Duration::from_secs(300);

/// That hits of `cpu_max` are not told on this host.
static SAID: Once = Once::new();

/// The limits that are listened to.
pub(super) type Hits = BTreeMap<(Place, Knob), Counter>;

/// One of them.
#[derive(Debug)]
pub(super) struct Counter {
    ear: Ear,
    /// How many hits are told, or nobody's news.
    told: u64,
    /// How many hits were told by this daemon.
    total: u64,
    /// How often memory could not be reclaimed: that is told by itself.
    ooms: u64,
    pace: Pace,
}

/// What tells that a counter has moved.
#[derive(Clone, Copy, Debug)]
enum Ear {
    Watch(WatchId),
    Trigger(u64),
    /// Nothing: it could not be watched, and is looked at by the clock.
    Clock,
    /// The watch of the memory domain, which is listened to anyway.
    Domain,
}

/// When something that goes on is reported again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Before this time nothing more is reported.
    next: Monotonic,
    wait: Duration,
}

impl Pace {
    /// Returns when it may be reported again, if that is not now.
    pub(super) fn is_early(&self, now: Monotonic) -> Option<Monotonic> {
        (now < self.next).then_some(self.next)
    }

    /// It is reported now. The kernel itself reports pressure only every other second: a short silence is no end.
    pub fn advance(&mut self, now: Monotonic) {
        let is_new = self.wait.is_zero() || now.since(self.next) >= GATHERED_MOST;
        self.wait = if is_new { GATHERED } else { (self.wait * 2).min(GATHERED_MOST) };
        self.next = now + self.wait;
    }
}

impl Supervisor {
    /// Listens to limits that were just set.
    pub(super) fn watch_hits(&mut self, places: &[(Place, Limits)]) {
        for (place, limits) in places {
            for knob in self.listen_to_hits(place, limits) {
                // What was hit before somebody listened has woken nobody.
                if let Some(counter) = self.hits.get_mut(&(place.clone(), knob)) {
                    counter.told = 0;
                }
                self.look_at_hits(place, knob);
            }
        }
    }

    /// Listens to limits; what was hit until now counts as told. Returns those that are new. A limit that was lifted since is
    /// listened to as before: nobody hits it, and it may come back.
    pub(super) fn listen_to_hits(&mut self, place: &Place, limits: &Limits) -> Vec<Knob> {
        let mut fresh = Vec::new();
        for knob in COUNTED {
            let key = (place.clone(), knob);
            let is_limited = limits.get(knob).is_some_and(|setting| setting.amount().is_some());
            if !is_limited || self.hits.contains_key(&key) {
                continue;
            }
            match self.hear(place, knob) {
                Ok(Some(ear)) => {
                    let counter = Counter { ear, ..self.counter(place, knob) };
                    self.hits.insert(key, counter);
                    fresh.push(knob);
                }
                Ok(None) => {}
                Err(error) if error.is_gone() => {}
                // Where the kernel keeps no such account, it is the same for all.
                Err(error) if knob == Knob::CpuMax => {
                    SAID.call_once(|| tracing::warn!("hits of cpu_max are not told here: {error}"));
                }
                Err(error) => {
                    self.look_later(place, Some(knob), &error);
                    let counter = Counter { ear: Ear::Clock, ..self.counter(place, knob) };
                    self.hits.insert(key, counter);
                    fresh.push(knob);
                }
            }
        }
        fresh
    }

    /// Tries again to have the kernel tell of a limit. Says whether nothing more is to be done for that.
    pub(super) fn watch_counter(&mut self, place: &Place, knob: Knob) -> bool {
        let key = (place.clone(), knob);
        if !self.hits.get(&key).is_some_and(|counter| matches!(counter.ear, Ear::Clock)) {
            return true;
        }
        let ear = self.hear(place, knob).ok().flatten();
        if let (Some(counter), Some(ear)) = (self.hits.get_mut(&key), ear) {
            counter.ear = ear;
        }
        ear.is_some()
    }

    /// Takes what was hit until now as told.
    fn counter(&self, place: &Place, knob: Knob) -> Counter {
        let told = self.tools.cgroups.hits(place, knob).ok().flatten().unwrap_or(0);
        Counter { ear: Ear::Domain, told, total: 0, ooms: self.ooms_of(place), pace: Pace::default() }
    }

    /// Listens to what tells of a limit; none where nothing does.
    fn hear(&mut self, place: &Place, knob: Knob) -> Result<Option<Ear>> {
        let cgroups = &self.tools.cgroups;
        match knob {
            Knob::PidsMax => {
                let Some(dir) = cgroups.pids_events_dir(place)? else { return Ok(None) };
                let watch = self.tools.watches.add_modify(dir.as_fd(), "pids.events")?;
                self.watched.insert(watch, Watched::Hits(place.clone(), knob));
                Ok(Some(Ear::Watch(watch)))
            }
            Knob::CpuMax => {
                let trigger = cgroups.throttle_trigger(place)?;
                Ok(self.register_trigger(Listener::Limit(place.clone()), trigger).map(Ear::Trigger))
            }
            _ => {
                let has_watch = self.memory.domains.get(place).is_some_and(|domain| domain.watch.is_some());
                Ok(has_watch.then_some(Ear::Domain))
            }
        }
    }

    fn ooms_of(&self, place: &Place) -> u64 {
        self.tools.cgroups.oom_counts(place).ok().flatten().map_or(0, |counts| counts.oom)
    }

    /// Tells how often a limit was hit since the last time, if it is time for that.
    pub(super) fn look_at_hits(&mut self, place: &Place, knob: Knob) {
        let now = now();
        let key = (place.clone(), knob);
        let Some(counter) = self.hits.get(&key) else { return };
        match counter.pace.is_early(now.mono) {
            Some(later) => _ = self.chores.insert((later, Chore::Hits(place.clone(), knob))),
            None => self.tell_hits(now, &key),
        }
    }

    /// Tells all that is untold of a place: a run in it has ended. And looks at the limits above that it may have died of: since 6.11 v1
    /// counts a refused fork and wakes nobody.
    pub(super) fn tell_all_hits(&mut self, place: &Place) {
        let now = now();
        for knob in COUNTED {
            self.tell_hits(now, &(place.clone(), knob));
        }
        if self.tools.cgroups.host().binding(Controller::Pids) != &Binding::V2 {
            for above in place.lineage().skip(1) {
                self.look_at_hits(&above, Knob::PidsMax);
            }
            self.look_at_forks_above();
        }
    }

    fn tell_hits(&mut self, now: Now, key: &(Place, Knob)) {
        let (place, knob) = key;
        let Some(counter) = self.hits.get(key) else { return };
        let Ok(Some(count)) = self.tools.cgroups.hits(place, *knob) else { return };
        let hits = count.saturating_sub(counter.told);
        if hits == 0 {
            return;
        }
        // Where it could not be kept to without a kill, that kill is told.
        let ooms = if *knob == Knob::MemoryMax { self.ooms_of(place) } else { counter.ooms };
        let counter = self.hits.get_mut(key).expect("it was just there");
        counter.told = count;
        if ooms > std::mem::replace(&mut counter.ooms, ooms) {
            return;
        }
        counter.total += hits;
        counter.pace.advance(now.mono);
        let total = counter.total;
        let mut look = Look { cgroups: &self.tools.cgroups, reads: &mut self.reads, now: now.mono };
        let largest = look.largest(place, knob.controller(), None);
        let most = largest.as_ref().map(|it| match knob {
            Knob::PidsMax => it.clause(format_args!("{} tasks", it.amount)),
            _ => it.clause(Bytes(it.amount)),
        });
        let hit = Hit { culprit: name_of(place), hits, total, largest };
        *self.limit_hits.entry(knob.name().to_owned()).or_default() += hits;
        let limits = self.tools.cgroups.limits_now(place, [*knob]);
        let owner = self.owner_of(place);
        let mut event = self.machine.event_about(now.mono, now.wall, Kind::Limit, owner);
        let times = if hits == 1 { "once".to_owned() } else { format!("{hits} times") };
        let (what, most) = (self.what_follows(place, *knob), most.unwrap_or_default());
        event.message = format!("{limits} of {} was hit {times}: {what}{most}", hit.culprit);
        event.limits = Some(limits);
        event.hit = Some(hit);
        self.publish(event);
    }

    /// Says what the kernel does about a hit.
    fn what_follows(&self, place: &Place, knob: Knob) -> &'static str {
        match knob {
            Knob::PidsMax => "forks are refused",
            Knob::CpuMax => "its tasks wait for the next period",
            Knob::MemoryHigh => {
                let rules = self.machine.pressure_rules(self.owner_of(place));
                if rules.iter().any(|rule| rule.resource == Resource::Memory) {
                    "it is slowed down, and nothing is killed"
                } else {
                    "it is slowed down, for ever if need be, and never killed; a rule on memory pressure could act on it"
                }
            }
            _ => "memory is reclaimed, and nothing is killed",
        }
    }

    /// Says how often limits were hit that hold for a place: its own, and those above it.
    pub(super) fn hits_over(&self, place: &Place) -> Vec<String> {
        let over = self.hits.iter().filter(|((of, _), counter)| place.is_within(of) && counter.total > 0);
        let text = |((of, knob), counter): (&(Place, Knob), &Counter)| {
            let limits = self.tools.cgroups.limits_now(of, [*knob]);
            format!(
                "{limits} of {} was hit, {} times until now: {}",
                name_of(of),
                counter.total,
                self.what_follows(of, *knob)
            )
        };
        over.map(text).collect()
    }

    /// Listens no longer to the limits of a place and of all below it.
    pub(super) fn forget_hits(&mut self, place: &Place) {
        let gone: Vec<_> = self.hits.keys().filter(|(other, _)| other.is_within(place)).cloned().collect();
        for counter in gone.iter().filter_map(|key| self.hits.remove(key)).collect::<Vec<_>>() {
            match counter.ear {
                Ear::Watch(watch) => self.unwatch(watch),
                Ear::Trigger(id) => self.drop_trigger(id),
                Ear::Domain | Ear::Clock => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns at which seconds a limit is told that is hit in these.
    fn told(hit: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let (mut pace, mut told) = (Pace::default(), Vec::new());
        for second in hit {
            let now = Monotonic(second * 1_000_000_000);
            if now >= pace.next {
                pace.advance(now);
                told.push(second);
            }
        }
        told
    }

    #[test]
    fn a_limit_that_is_hit_for_an_hour_is_told_twenty_times() {
        let hour = told(1_000..4_600);
        assert_eq!(hour[..9], [0, 1, 3, 7, 15, 31, 63, 127, 255].map(|after| 1_000 + after));
        assert_eq!(hour[9..12], [1_511, 1_811, 2_111], "five minutes at most");
        assert_eq!(hour.len(), 20);
    }

    #[test]
    fn a_limit_that_is_hit_every_third_second_is_no_news_each_time() {
        assert!(told((1_000..4_600).step_by(3)).len() <= 20, "{:?}", told((1_000..4_600).step_by(3)));
        assert!(told((1_000..4_600).step_by(61)).len() <= 20);
    }

    #[test]
    fn after_five_calm_minutes_the_intervals_start_over() {
        assert_eq!(told([1_000, 1_001, 1_003, 1_400, 1_401, 1_402, 1_403]), [1_000, 1_001, 1_003, 1_400, 1_401, 1_403]);
        assert_eq!(
            told([1_000, 1_100, 1_101, 1_102]),
            [1_000, 1_100, 1_102],
            "at once after a while, but no new beginning"
        );
    }
}

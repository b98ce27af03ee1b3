//! The storm limiter: however many agents crash in a loop, the herd restarts only so many at once, and so many a second.
//!
//! A token bucket over the whole herd (`restart_burst`, `restart_rate`). Every start that a policy wants takes a token; one
//! that somebody asked for does not. Those without a token wait for their turn, the most urgent first, then the first to
//! come. Who waits is told once (`process:delayed`), and the herd's first and last wait are (`herd:storm`, `herd:calm`).
//!
//! Whoever cannot start when its turn has come (it is paused, it is to end) gives it up, and asks again when it can. While
//! nobody waits there is no timer: an idle herd pays nothing. The bucket is not written down: it begins full.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::agent::{Phase, Start};
use super::input::AgentKey;
use super::{Machine, Step, Timer};
use crate::model::config::HerdConfig;
use crate::model::event::Kind;
use crate::model::id::Priority;
use crate::model::status::millis;
use crate::model::time::Monotonic;

/// A place among those that wait for their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    number: u64,
    priority: Priority,
    /// When it will come, if nobody more urgent joins.
    pub expected: Monotonic,
}

/// The bucket, and who waits for a token.
#[derive(Debug, Default)]
pub(super) struct Storm {
    /// When the bucket will be full again, if nobody takes a token.
    full_at: Monotonic,
    waiting: BTreeMap<Reverse<Priority>, BTreeMap<u64, AgentKey>>,
    /// The timer that is set.
    pub due: Option<Monotonic>,
    /// How many have had to wait since the storm began; none if there is no storm.
    delayed: Option<u64>,
}

impl Storm {
    /// Returns when the next token is there.
    fn next_token(&self, config: &HerdConfig) -> Monotonic {
        let interval = config.restart_rate.interval();
        self.full_at + interval - interval * config.restart_burst
    }

    fn take(&mut self, now: Monotonic, config: &HerdConfig) -> bool {
        let is_there = now >= self.next_token(config);
        if is_there {
            self.full_at = self.full_at.max(now) + config.restart_rate.interval();
        }
        is_there
    }

    fn first(&self) -> Option<AgentKey> {
        self.waiting.values().find_map(|alike| alike.values().next().copied())
    }

    fn forget(&mut self, turn: Turn) {
        if let Some(alike) = self.waiting.get_mut(&Reverse(turn.priority)) {
            alike.remove(&turn.number);
            if alike.is_empty() {
                self.waiting.remove(&Reverse(turn.priority));
            }
        }
    }

    /// Counts those whose turn comes before that of a newcomer.
    fn ahead_of(&self, priority: Priority) -> usize {
        self.waiting.range(..=Reverse(priority)).map(|(_, alike)| alike.len()).sum()
    }
}

impl Machine {
    /// Says whether an agent may start now as far as the herd is concerned. If not, it waits for its turn.
    pub(super) fn has_its_turn(&mut self, step: &mut Step, key: AgentKey) -> bool {
        let agent = &self.agents[&key];
        if agent.start == Start::Asked {
            self.give_up_turn(key);
            return true;
        }
        if agent.turn.is_some() {
            return false;
        }
        let (now, priority) = (step.now.mono, agent.spec.priority);
        if self.storm.waiting.is_empty() && self.storm.take(now, &self.config) {
            return true;
        }
        let ahead = self.storm.ahead_of(priority);
        let rate = self.config.restart_rate;
        let places = u32::try_from(ahead).unwrap_or(u32::MAX);
        let expected = self.storm.next_token(&self.config).max(now) + rate.interval().saturating_mul(places);
        let number = self.fresh();
        self.storm.waiting.entry(Reverse(priority)).or_default().insert(number, key);
        self.agent_mut(key).turn = Some(Turn { number, priority, expected });
        if self.storm.delayed.is_none() {
            let burst = self.config.restart_burst;
            let message = format!("restarts wait for their turn: there are more than {burst} at once and {rate}");
            self.publish(step, Kind::Storm, None, |event| event.message = message);
        }
        *self.storm.delayed.get_or_insert(0) += 1;
        let delay = millis(expected.since(now));
        self.publish(step, Kind::Delayed, key, |event| {
            event.delay_ms = Some(delay);
            let text = humantime::format_duration(Duration::from_millis(delay));
            event.message = format!("its restart waits for its turn, behind {ahead} others: expected in {text}");
        });
        false
    }

    /// Takes an agent out of those that wait for their turn.
    pub(super) fn give_up_turn(&mut self, key: AgentKey) {
        if let Some(turn) = self.agent_mut(key).turn.take() {
            self.storm.forget(turn);
            // Those below it let it go first.
            let children = self.agents[&key].children.clone();
            self.dirty.extend(children);
        }
    }

    /// Starts those whose turn has come. Returns whether anything was done.
    pub(super) fn settle_storm(&mut self, step: &mut Step) -> bool {
        let mut is_moved = false;
        while let Some(key) = self.storm.first() {
            let can_start = self.can_take_its_turn(key);
            if can_start && !self.storm.take(step.now.mono, &self.config) {
                break;
            }
            self.give_up_turn(key);
            if can_start {
                self.dirty.insert(key);
                self.start(step, key);
            }
            is_moved = true;
        }
        self.set_storm_timer();
        if self.storm.waiting.is_empty()
            && let Some(delayed) = self.storm.delayed.take()
        {
            let message = format!("no restart waits for its turn any more: {delayed} had to");
            self.publish(step, Kind::Calm, None, |event| event.message = message);
        }
        is_moved
    }

    fn can_take_its_turn(&self, key: AgentKey) -> bool {
        let agent = &self.agents[&key];
        let is_ready = matches!(agent.phase, Phase::Held) && agent.down.is_none() && agent.renewal.is_none();
        is_ready && self.may_start(key)
    }

    fn set_storm_timer(&mut self) {
        let due = (!self.storm.waiting.is_empty()).then(|| self.storm.next_token(&self.config));
        if due == self.storm.due {
            return;
        }
        if let Some(old) = self.storm.due {
            self.timers.remove(&(old, Timer::Storm));
        }
        if let Some(due) = due {
            self.timers.insert((due, Timer::Storm));
        }
        self.storm.due = due;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_gives_a_burst_and_then_the_rate() {
        let mut config = HerdConfig::default();
        (config.restart_rate, config.restart_burst) = ("2/s".parse().unwrap(), 3);
        let mut storm = Storm::default();
        let mut at = |millis: u64| storm.take(Monotonic(millis * 1_000_000), &config);
        assert_eq!([at(9_000), at(9_000), at(9_000), at(9_000)], [true, true, true, false]);
        assert_eq!([at(9_499), at(9_500), at(9_500)], [false, true, false]);
        assert_eq!([at(60_000), at(60_000), at(60_000), at(60_000)], [true, true, true, false], "full, not fuller");
    }
}

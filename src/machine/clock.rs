//! The clocks of a run: what has to happen by when, or else the run has failed. They stand still while the agent is paused.
//!
//! A clock that runs out does nothing by itself: settling the agent finds it and fails the run, with the clock's cause.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::time::Monotonic;

/// A wait that stands still while the agent is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Countdown {
    Until(Monotonic),
    Suspended(Duration),
}

impl Countdown {
    /// Starts a wait, of a paused agent as one that stands still.
    pub fn new(now: Monotonic, left: Duration, paused_since: Option<Monotonic>) -> Self {
        if paused_since.is_some() { Self::Suspended(left) } else { Self::Until(now + left) }
    }

    /// Returns the same wait, standing still.
    pub fn suspended(self, now: Monotonic) -> Self {
        match self {
            Self::Until(until) => Self::Suspended(until.since(now)),
            Self::Suspended(_) => self,
        }
    }

    /// Returns the same wait, going on.
    pub fn resumed(self, now: Monotonic) -> Self {
        match self {
            Self::Until(_) => self,
            Self::Suspended(left) => Self::Until(now + left),
        }
    }

    /// Returns when it is over, unless it stands still.
    pub fn due(self) -> Option<Monotonic> {
        match self {
            Self::Until(until) => Some(until),
            Self::Suspended(_) => None,
        }
    }
}

/// What a run is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Clock {
    /// It may last so long: `run_timeout`.
    Run,
    /// It may take so long to be ready: `ready_timeout`.
    Ready,
    /// Its next heartbeat comes within so long: `watchdog`.
    Watchdog,
    /// It may take so long to end after it has said that it does: `grace`.
    Stop,
    /// It is looked at whether it does anything each time that so long has gone by: `stall`. This one alone fails nobody.
    Stall,
}

/// The clocks that go for the present run.
#[derive(Clone, Debug, Default)]
pub(super) struct Clocks(BTreeMap<Clock, Countdown>);

impl Clocks {
    /// Starts a clock, or starts it anew.
    pub fn start(&mut self, clock: Clock, countdown: Countdown) {
        self.0.insert(clock, countdown);
    }

    /// Puts a clock that goes off until so long from now, if it would run out earlier.
    pub fn extend(&mut self, clock: Clock, now: Monotonic, time: Duration) {
        if let Some(countdown) = self.0.get_mut(&clock) {
            *countdown = match *countdown {
                Countdown::Until(until) => Countdown::Until(until.max(now + time)),
                Countdown::Suspended(left) => Countdown::Suspended(left.max(time)),
            };
        }
    }

    /// Takes a clock off: what it waits for has happened.
    pub fn stop(&mut self, clock: Clock) {
        self.0.remove(&clock);
    }

    /// Returns how a clock stands, if it goes.
    pub fn get(&self, clock: Clock) -> Option<Countdown> {
        self.0.get(&clock).copied()
    }

    /// Takes every clock off: the run is over, or is being ended.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn iter(&self) -> impl Iterator<Item = (Clock, Countdown)> {
        self.0.iter().map(|(clock, countdown)| (*clock, *countdown))
    }

    pub fn suspend(&mut self, now: Monotonic) {
        self.0.values_mut().for_each(|countdown| *countdown = countdown.suspended(now));
    }

    pub fn resume(&mut self, now: Monotonic) {
        self.0.values_mut().for_each(|countdown| *countdown = countdown.resumed(now));
    }

    /// Returns when the next one runs out.
    pub fn due(&self) -> Option<Monotonic> {
        self.0.values().filter_map(|countdown| countdown.due()).min()
    }

    /// Returns one that has run out.
    pub fn expired(&self, now: Monotonic) -> Option<Clock> {
        self.0.iter().find(|(_, countdown)| countdown.due().is_some_and(|due| now >= due)).map(|(clock, _)| *clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_stands_still_while_it_is_suspended() {
        let at = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        let mut clocks = Clocks::default();
        clocks.start(Clock::Run, Countdown::new(at(0), Duration::from_secs(10), None));
        clocks.suspend(at(4));
        assert_eq!((clocks.due(), clocks.expired(at(100))), (None, None), "paused for long");
        clocks.suspend(at(50));
        clocks.resume(at(100));
        clocks.resume(at(103));
        assert_eq!(clocks.due(), Some(at(106)), "four seconds were used, six are left");
        assert_eq!((clocks.expired(at(105)), clocks.expired(at(106))), (None, Some(Clock::Run)));
    }

    #[test]
    fn an_extension_puts_a_clock_off_and_never_forward() {
        let at = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        let mut clocks = Clocks::default();
        clocks.extend(Clock::Ready, at(0), Duration::from_secs(5));
        assert_eq!(clocks.due(), None, "what does not go is not started by it");
        clocks.start(Clock::Ready, Countdown::new(at(0), Duration::from_secs(10), None));
        clocks.extend(Clock::Ready, at(2), Duration::from_secs(3));
        assert_eq!(clocks.due(), Some(at(10)));
        clocks.extend(Clock::Ready, at(8), Duration::from_secs(5));
        assert_eq!(clocks.due(), Some(at(13)));
        clocks.suspend(at(12));
        clocks.extend(Clock::Ready, at(50), Duration::from_secs(7));
        clocks.resume(at(100));
        assert_eq!(clocks.due(), Some(at(107)), "in a pause, it counts from its end");
    }
}

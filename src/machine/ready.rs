//! What a run tells of itself: that it is ready, that it lives, that it needs more time, that it is about to end.
//!
//! ```text
//!            spawned        READY=1, a line, a newline            STOPPING=1
//!  Nothing ──────────▶ Nothing ──────────▶ Ready ─────────────────────▶ Stopping
//!                      clock: Ready        clocks: Watchdog, beat by beat   clock: Stop
//! ```
//!
//! Who may speak for a run is the shell's to find out. What is told while the spawn is still on its hand counts once that is over;
//! what is told of a run that is over counts for nobody.

use std::time::Duration;

use super::agent::{Ladder, Phase, Verdict};
use super::clock::{Clock, Countdown};
use super::input::AgentKey;
use super::stop::{Stage, StopKey};
use super::{Machine, Step, Timer};
use crate::model::event::Kind;
use crate::model::id::Run;
use crate::model::note::{Note, Told};
use crate::model::ready::{Ready, WATCHDOG_LEAST};
use crate::model::spec::{DURATION_MAX, StopSignal};
use crate::model::status::{Cause, millis};
use crate::model::time::Monotonic;

/// The signal for a run whose heartbeat was missed: it dumps core, so that somebody can see where it hangs.
pub(super) const SIGABRT: StopSignal = StopSignal(6);

/// By how much `EXTEND_TIMEOUT_USEC=` can put off the kill of a run that is to end, all in all. What it is to be ready or to
/// run is its own business and has no such bound.
const PUT_OFF_MOST: Duration = Duration::from_secs(3600);

/// What the present run has told of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Voice {
    pub told: Told,
    /// What it last said with `STATUS=`.
    pub status: Option<String>,
    /// The heartbeat that it asked for itself; zero is none.
    pub period: Option<Duration>,
    /// By how much its kill was put off.
    pub put_off: Duration,
    /// Until when it has asked for time before it was known to have begun.
    early: Option<Monotonic>,
    /// It has given itself up before it was known to have begun.
    is_given_up: bool,
}

impl Machine {
    /// A process of a run has told something.
    pub(super) fn notified(&mut self, step: &mut Step, key: AgentKey, run: Run, notes: Vec<Note>) {
        for note in notes {
            let Some(agent) = self.agents.get_mut(&key).filter(|agent| agent.run == run && agent.can_speak()) else {
                return;
            };
            match note {
                Note::Ready if agent.spec.ready == Some(Ready::Notify) => self.tell_ready(step, key),
                Note::Ready => {}
                // Whether it is one of the run, the shell knows.
                Note::Main(_) => {}
                Note::Stopping => self.tell_stopping(step, key),
                Note::Status(text) => agent.voice.status = Some(text).filter(|text| !text.is_empty()),
                Note::Beat => self.beat(step, key),
                Note::Trigger if agent.has_run() => self.give_up(step, key),
                Note::Trigger => agent.voice.is_given_up = true,
                Note::Period(period) if period.is_zero() || period >= WATCHDOG_LEAST => {
                    agent.voice.period = Some(period.min(DURATION_MAX));
                    self.dirty.insert(key);
                    self.beat(step, key);
                }
                // Too hasty to be kept: the one that goes stays.
                Note::Period(_) => {}
                Note::Extend(time) => self.extend(step, key, time.min(DURATION_MAX)),
            }
        }
    }

    /// The line or the newline that a run is to show when it is ready was seen.
    pub(super) fn ready_seen(&mut self, step: &mut Step, key: AgentKey, run: Run) {
        let is_meant = |ready: &Ready| *ready != Ready::Notify;
        let agent = self.agents.get(&key).filter(|agent| agent.run == run && agent.can_speak());
        if agent.is_some_and(|agent| agent.spec.ready.as_ref().is_some_and(is_meant)) {
            self.tell_ready(step, key);
        }
    }

    pub(super) fn tell_ready(&mut self, step: &mut Step, key: AgentKey) {
        let agent = self.agent_mut(key);
        if agent.voice.told == Told::Nothing {
            agent.voice.told = Told::Ready;
            if agent.has_run() {
                self.publish_ready(step, key);
                self.await_next_word(step, key);
            }
        }
    }

    fn publish_ready(&self, step: &mut Step, key: AgentKey) {
        let agent = &self.agents[&key];
        if let (Some(sign), Some(began), true) = (agent.spec.ready_sign(), agent.began, agent.is_unattended()) {
            let took = humantime::format_duration(Duration::from_millis(millis(step.now.mono.since(began.mono))));
            let message = format!("after {took}: {sign}");
            self.publish(step, Kind::Ready, key, |event| event.message = message);
        }
    }

    /// The program of a run executes: it is ready now, has told so already, or has a time for that.
    pub(super) fn await_ready(&mut self, step: &mut Step, key: AgentKey) {
        let agent = self.agent_mut(key);
        if agent.voice.told == Told::Nothing && agent.spec.ready_sign().is_none() {
            agent.voice.told = Told::Ready;
        }
        if agent.voice.told == Told::Ready {
            self.publish_ready(step, key);
        }
        self.await_next_word(step, key);
        if let Some(until) = self.agent_mut(key).voice.early.take() {
            self.extend(step, key, until.since(step.now.mono));
        }
        if std::mem::take(&mut self.agent_mut(key).voice.is_given_up) {
            self.give_up(step, key);
        }
    }

    /// Fails a run that wants to be treated as if it had missed its heartbeat.
    fn give_up(&mut self, step: &mut Step, key: AgentKey) {
        let why = "it asked for it with WATCHDOG=trigger".to_owned();
        self.condemn(step, key, Verdict { cause: Cause::Watchdog, why }, SIGABRT);
    }

    /// Starts the clock for what a run is expected to tell next.
    pub(super) fn await_next_word(&mut self, step: &Step, key: AgentKey) {
        self.dirty.insert(key);
        let agent = self.agent_mut(key);
        if !agent.is_unattended() {
            return;
        }
        let (now, paused_since) = (step.now.mono, agent.paused_since);
        agent.clocks.stop(Clock::Ready);
        agent.clocks.stop(Clock::Watchdog);
        match agent.voice.told {
            Told::Nothing => {
                if let Some(timeout) = agent.spec.ready_deadline() {
                    agent.clocks.start(Clock::Ready, Countdown::new(now, timeout, paused_since));
                }
            }
            Told::Ready => {
                if let Some(period) = agent.heartbeat() {
                    agent.clocks.start(Clock::Watchdog, Countdown::new(now, period, paused_since));
                }
            }
            // No heartbeat is expected any more, but the end.
            Told::Stopping => agent.clocks.start(Clock::Stop, Countdown::new(now, agent.spec.grace, paused_since)),
        }
    }

    /// Starts the time until the next heartbeat anew.
    fn beat(&mut self, step: &Step, key: AgentKey) {
        if self.agents[&key].voice.told == Told::Ready {
            self.await_next_word(step, key);
        }
    }

    fn tell_stopping(&mut self, step: &Step, key: AgentKey) {
        let agent = self.agent_mut(key);
        if agent.voice.told != Told::Stopping {
            agent.voice.told = Told::Stopping;
            if agent.has_run() {
                self.await_next_word(step, key);
            }
        }
    }

    /// Gives a run more time for what it is about: to be ready, to run and to beat, or to end.
    fn extend(&mut self, step: &Step, key: AgentKey, time: Duration) {
        let now = step.now.mono;
        self.dirty.insert(key);
        let agent = self.agent_mut(key);
        if !agent.has_run() {
            agent.voice.early = agent.voice.early.max(Some(now + time));
            return;
        }
        if agent.is_unattended() {
            let clocks: &[Clock] = match agent.voice.told {
                Told::Nothing => &[Clock::Ready],
                Told::Ready => &[Clock::Run, Clock::Watchdog],
                Told::Stopping => &[Clock::Stop],
            };
            return clocks.iter().for_each(|clock| agent.clocks.extend(*clock, now, time));
        }
        let until = now + time.min(PUT_OFF_MOST);
        if let Some(down) = &agent.down {
            let stop = down.stop;
            return self.put_off_stop(key, stop, until);
        }
        // A run that has failed gets its grace and no more.
        let is_judged = agent.verdict.is_some();
        if let Phase::Running { ladder: Some(Ladder::Polite(at)), .. }
        | Phase::Draining { ladder: Some(Ladder::Polite(at)), .. } = &mut agent.phase
        {
            let by = until.since(*at);
            if !is_judged && agent.voice.put_off + by <= PUT_OFF_MOST {
                agent.voice.put_off += by;
                *at = *at + by;
            }
        }
    }

    /// Puts the kill of a stop off, if whoever asked for it left the grace to its agents.
    fn put_off_stop(&mut self, key: AgentKey, stop_key: StopKey, until: Monotonic) {
        let put_off = self.agents[&key].voice.put_off;
        let Some(stop) = self.stops.get_mut(&stop_key).filter(|stop| stop.can_be_put_off) else { return };
        let Stage::Polite(at) = stop.stage else { return };
        let by = until.since(at);
        if by.is_zero() || put_off + by > PUT_OFF_MOST {
            return;
        }
        stop.stage = Stage::Polite(at + by);
        let members: Vec<_> = stop.members().collect();
        self.timers.remove(&(at, Timer::Stop(stop_key)));
        self.timers.insert((at + by, Timer::Stop(stop_key)));
        self.agent_mut(key).voice.put_off += by;
        for member in members {
            if let Some(down) = self.agents.get_mut(&member).and_then(|agent| agent.down.as_mut())
                && down.stop == stop_key
            {
                down.kill_at = at + by;
                self.dirty.insert(member);
            }
        }
    }
}

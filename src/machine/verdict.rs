//! A failure that is found while the run goes on: it is told at once, and what lives of the run is ended for it.

use std::time::Duration;

use super::agent::{Ladder, Outcome, Phase, Verdict};
use super::clock::{Clock, Countdown};
use super::input::AgentKey;
use super::ready::SIGABRT;
use super::{Machine, Step};
use crate::model::spec::StopSignal;
use crate::model::status::{Cause, ExitRecord};

impl Machine {
    /// Fails the run for this cause, unless its end is on its way already: tells it, sends the signal, and gives the run its
    /// grace until the kill. What follows is decided when it is over.
    pub(super) fn condemn(&mut self, step: &mut Step, key: AgentKey, verdict: Verdict, signal: StopSignal) {
        let agent = &self.agents[&key];
        if !agent.is_unattended() {
            return;
        }
        let (grace, order) = (agent.spec.grace, agent.has_run().then(|| agent.signal(signal)));
        self.judge(step, key, verdict);
        if let Some(order) = order {
            step.order(order);
            self.set_ladder(key, Ladder::Polite(step.now.mono + grace));
        }
    }

    /// Tells that the run has failed for this cause, though it goes on. One that only waits for its last words is over with that.
    pub(super) fn judge(&mut self, step: &mut Step, key: AgentKey, verdict: Verdict) {
        let agent = &self.agents[&key];
        if let Phase::Reading { record, .. } = &agent.phase {
            let mut record = record.as_ref().clone();
            record.judge(verdict.cause, &verdict.why);
            return self.run_is_over(step, key, record);
        }
        let mut record = match &agent.phase {
            Phase::Draining { record, .. } => record.as_ref().clone(),
            _ => ExitRecord::new(verdict.cause),
        };
        record.judge(verdict.cause, &verdict.why);
        self.stamp(step, key, &mut record);
        self.tell_end(step, key, Outcome::Failed, &record);
        let agent = self.agent_mut(key);
        agent.clocks.clear();
        agent.verdict = Some(verdict);
        if let Phase::Draining { record: old, .. } = &mut agent.phase {
            **old = record;
        }
    }

    /// Starts the clocks of a run that has just begun.
    pub(super) fn start_clocks(&mut self, step: &Step, key: AgentKey) {
        let agent = self.agent_mut(key);
        let (now, paused_since) = (step.now.mono, agent.paused_since);
        if let Some(timeout) = agent.spec.run_timeout {
            agent.clocks.start(Clock::Run, Countdown::new(now, timeout, paused_since));
        }
    }

    /// Fails a run that has come too late for one of its clocks.
    pub(super) fn settle_clocks(&mut self, step: &mut Step, key: AgentKey) {
        let agent = &self.agents[&key];
        if !agent.is_unattended() {
            return;
        }
        let Some(clock) = agent.clocks.expired(step.now.mono) else { return };
        let text = |duration: Option<Duration>| humantime::format_duration(duration.unwrap_or_default()).to_string();
        let (cause, why) = match clock {
            Clock::Run => (Cause::Timeout, format!("it ran for longer than {}", text(agent.spec.run_timeout))),
            Clock::Ready => (Cause::Ready, format!("it was not ready within {}", text(agent.spec.ready_deadline()))),
            Clock::Watchdog => (Cause::Watchdog, format!("no WATCHDOG=1 within {}", text(agent.heartbeat()))),
            Clock::Stop => {
                let grace = text(Some(agent.spec.grace));
                (Cause::Timeout, format!("it said STOPPING=1 and did not end within {grace}"))
            }
            // It is looked at, and then decided.
            Clock::Stall => return,
        };
        let signal = if clock == Clock::Watchdog { SIGABRT } else { agent.spec.stop_signal };
        self.condemn(step, key, Verdict { cause, why }, signal);
    }
}

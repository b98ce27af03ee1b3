//! Runs that do nothing: by samples of the kernel's account of their CPU time and of the length of their output.
//!
//! ```text
//!           a quarter of the rule's time            answered: something was done, or a first sample
//!  Sample ─────────────────────────────▶ Sample ───────────────────────────────────────────────────▶ from the beginning
//!    ▲                                     │ answered: nothing was done
//!    └─────────────────────────────────────┘ two in a row: half is told; four: all of it, and the action follows
//! ```
//!
//! Only a run with a rule is sampled, and only while no agent below it runs: whoever waits for one does its work. When the last of
//! them has ended, its time begins anew. In a pause it stands still, as every clock does.

use std::time::Duration;

use super::agent::{Agent, Verdict};
use super::clock::{Clock, Countdown};
use super::input::{AgentKey, Effect};
use super::{Machine, Step};
use crate::model::event::Kind;
use crate::model::id::Run;
use crate::model::rule::Action;
use crate::model::stall::{LOOKS, StallRule};
use crate::model::status::{Cause, millis};

/// What a run has done since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The CPU time that all of its processes have used, those that have ended too.
    pub cpu: Duration,
    /// How much its agent has written to both streams, in bytes.
    pub output_bytes: u64,
}

impl Sample {
    /// Says whether nothing was done between this sample and a later one.
    fn is_idle_until(self, later: Self, rule: &StallRule) -> bool {
        self.output_bytes == later.output_bytes && later.cpu.saturating_sub(self.cpu) <= rule.idle()
    }
}

/// What is known of the present run's idleness.
#[derive(Clone, Debug, Default)]
pub(super) struct Quiet {
    /// The last sample.
    seen: Option<Sample>,
    /// In how many looks in a row it was found idle.
    looks: u32,
    /// Whether a sample is being taken.
    is_asked: bool,
}

impl Quiet {
    fn is_told(&self) -> bool {
        self.looks >= LOOKS / 2
    }

    /// Returns for how long the run has done nothing, as far as is known.
    pub fn lasts(&self, rule: &StallRule) -> Duration {
        rule.look() * self.looks
    }
}

impl Agent {
    /// Says whether it is looked at whether its run does anything.
    pub fn is_to_be_busy(&self) -> bool {
        self.has_run() && self.is_unattended() && self.runs_below == 0
    }
}

impl Machine {
    /// Has a run looked at that has a rule, when it is time for that.
    pub(super) fn settle_stall(&mut self, step: &mut Step, key: AgentKey) {
        let agent = &self.agents[&key];
        if agent.spec.stall.is_none() {
            return;
        }
        if !agent.is_to_be_busy() {
            return self.look_away(step, key);
        }
        let is_due =
            agent.clocks.get(Clock::Stall).is_none_or(|look| look.due().is_some_and(|due| step.now.mono >= due));
        if is_due && !agent.quiet.is_asked {
            let run = agent.run;
            let agent = self.agent_mut(key);
            agent.clocks.stop(Clock::Stall);
            agent.quiet.is_asked = true;
            step.order(Effect::Sample { agent: key, run });
        }
    }

    /// Looks at a run no longer: it is being ended, or waits for an agent below it.
    fn look_away(&mut self, step: &mut Step, key: AgentKey) {
        let agent = self.agent_mut(key);
        agent.clocks.stop(Clock::Stall);
        let is_asked = agent.quiet.is_asked;
        let before = std::mem::replace(&mut agent.quiet, Quiet { is_asked, ..Quiet::default() });
        if before.is_told() && self.agents[&key].is_unattended() {
            self.tell_stirred(step, key, "an agent below it runs");
        }
    }

    /// A sample of a run was taken; none if it could not be.
    pub(super) fn sampled(&mut self, step: &mut Step, key: AgentKey, run: Run, sample: Option<Sample>) {
        let Some(agent) = self.agents.get_mut(&key).filter(|agent| agent.run == run) else { return };
        let Some(rule) = agent.spec.stall else { return };
        agent.quiet.is_asked = false;
        self.dirty.insert(key);
        if !agent.is_to_be_busy() {
            return;
        }
        let paused_since = agent.paused_since;
        agent.clocks.start(Clock::Stall, Countdown::new(step.now.mono, rule.look(), paused_since));
        // What is seen in a pause says nothing: the last sample before it is the one to compare with.
        if paused_since.is_some() {
            return;
        }
        let before = std::mem::replace(&mut agent.quiet.seen, sample);
        let is_idle = before.zip(sample).is_some_and(|(before, sample)| before.is_idle_until(sample, &rule));
        if is_idle {
            agent.quiet.looks = agent.quiet.looks.saturating_add(1);
            return self.found_idle(step, key, &rule);
        }
        let was_told = agent.quiet.is_told();
        agent.quiet.looks = 0;
        if was_told {
            self.tell_stirred(step, key, "it does something again");
        }
    }

    fn found_idle(&mut self, step: &mut Step, key: AgentKey, rule: &StallRule) {
        let (looks, fails) = (self.agents[&key].quiet.looks, rule.action == Action::Fail);
        let text = |duration| humantime::format_duration(duration).to_string();
        let what = format!("no output and no CPU for {}", text(rule.look() * looks));
        let then = match looks {
            _ if looks == LOOKS / 2 && fails => format!("; if that lasts for {}, it has failed", text(rule.after)),
            _ if looks == LOOKS / 2 || looks == LOOKS => String::new(),
            _ => return,
        };
        let quiet_ms = millis(rule.look() * looks);
        self.publish(step, Kind::Stalled, key, |event| {
            event.message = format!("{what}{then}");
            event.quiet_ms = Some(quiet_ms);
        });
        if looks == LOOKS && fails {
            let signal = self.agents[&key].spec.stop_signal;
            self.condemn(step, key, Verdict { cause: Cause::Stall, why: what }, signal);
        }
    }

    fn tell_stirred(&self, step: &mut Step, key: AgentKey, why: &str) {
        self.publish(step, Kind::Stirred, key, |event| event.message = why.to_owned());
    }
}

//! What an agent says means something: rules that have found a line, and the last words of a run that ended well.
//!
//! A run that ended badly is told at once. One that ended well may have said in its last words that it failed: where a rule could
//! find that, its end is decided when they were looked at.

use std::time::Duration;

use super::agent::{Phase, Verdict};
use super::input::{AgentKey, Effect};
use super::{Machine, Step};
use crate::model::event::Kind;
use crate::model::id::Run;
use crate::model::rule::{Action, Found};
use crate::model::status::{Cause, ExitRecord};
use crate::model::time::Monotonic;

/// How long the end of a run waits for its last words to be looked at: much longer than that takes on a busy host.
const READING_MOST: Duration = Duration::from_secs(10);

impl Machine {
    /// A rule has found a line: it is told, and if the rule says so the run has failed.
    pub(super) fn matched(&mut self, step: &mut Step, key: AgentKey, run: Run, rule: usize, found: Found) {
        let Some(agent) = self.agents.get(&key) else { return };
        let Some(action) = agent.spec.rules.get(rule).map(|rule| rule.action) else { return };
        let is_present = agent.run == run;
        let why = format!("{} at offset {} of {}: {}", found.rule, found.offset, found.stream, found.line);
        let more = match found.lines.saturating_sub(1) {
            0 => String::new(),
            more => format!(" (and {more} more lines since)"),
        };
        self.publish(step, Kind::Notice, key, |event| {
            event.run = Some(run);
            event.message = format!("{why}{more}");
            event.found = Some(found);
        });
        if action == Action::Fail && is_present {
            self.fail_for_words(step, key, Verdict { cause: Cause::Output, why });
        }
    }

    /// Fails a run for what was said in it.
    fn fail_for_words(&mut self, step: &mut Step, key: AgentKey, verdict: Verdict) {
        let agent = &self.agents[&key];
        let is_asked = agent.down.is_some() || agent.cycle.is_some();
        if is_asked || agent.is_end_told() {
            return;
        }
        if agent.ladder().is_some() {
            // It is being ended for something that is no failure: what its main process left behind, or a start that took too long.
            self.judge(step, key, verdict);
            self.dirty.insert(key);
        } else {
            let signal = agent.spec.stop_signal;
            self.condemn(step, key, verdict, signal);
        }
    }

    /// Says whether the end of a run waits for its last words.
    pub(super) fn awaits_last_words(&self, key: AgentKey, record: &ExitRecord) -> bool {
        let agent = &self.agents[&key];
        let has_rule = agent.spec.rules.iter().any(|rule| rule.action == Action::Fail);
        let is_asked = agent.down.is_some() || agent.cycle.is_some();
        has_rule && record.is_success() && !is_asked && !matches!(agent.phase, Phase::Reading { .. })
    }

    /// Has the last words of a run looked at.
    pub(super) fn read_output(&mut self, step: &mut Step, key: AgentKey, record: ExitRecord) {
        let run = self.agents[&key].run;
        step.order(Effect::ReadOutput { agent: key, run });
        let deadline = step.now.mono + READING_MOST;
        self.enter(key, Phase::Reading { record: Box::new(record), deadline });
    }

    /// All that a run has written was looked at.
    pub(super) fn output_read(&mut self, step: &mut Step, key: AgentKey, run: Run) {
        let Some(agent) = self.agents.get(&key) else { return };
        if let (Phase::Reading { record, .. }, true) = (&agent.phase, agent.run == run) {
            let record = record.as_ref().clone();
            self.run_is_over(step, key, record);
        }
    }

    /// Waits no longer for last words when it takes too long, or when somebody has asked for the end.
    pub(super) fn settle_reading(&mut self, step: &mut Step, key: AgentKey, record: ExitRecord, deadline: Monotonic) {
        let agent = &self.agents[&key];
        if step.now.mono >= deadline || agent.down.is_some() || agent.cycle.is_some() {
            self.run_is_over(step, key, record);
        }
    }
}

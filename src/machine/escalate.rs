//! How a failure climbs: a parent fails for its children, with the cause `child`, and its own policy decides what follows.
//!
//! | what happened | and the parent | then the parent | and its children |
//! | --- | --- | --- | --- |
//! | more restarts of its children than `children.intensity` within `children.period` | any | fails | are ended; start anew with it |
//! | a `significant` child failed for good | any | fails | are ended; start anew with it, that one too, unless it failed by `dependency` |
//! | a `significant` child completed | any | is ended, in order, for good | are ended |
//! | any other child ended for good | any | nothing | go on |
//!
//! Every one is told as `process:escalated`.
//!
//! | a parent that fails | is told as | comes back by |
//! | --- | --- | --- |
//! | with a run | `process:failed`, cause `child`; the run is ended after those below it | its `restart` policy, as after any failure |
//! | a group | `process:failed`, cause `child`; it has no run to end | its `restart` policy: its children start anew |
//! | whose last run is over, and that only waits for its children | `process:failed`, cause `child` | not at all |
//! | that is between two runs | nothing more: it has failed already | the restart that it waits for; its children with it |
//!
//! When it comes back, that counts with its own parent: so it goes on upwards. When it does not (`never`, or its own
//! intensity is used up), it has failed for good, and what is below it is ended, `on_main_exit = "wait"` or not. A root
//! agent has nobody above: the herd goes on without it.

use std::sync::Arc;
use std::time::Duration;

use super::agent::{Outcome, Phase, Verdict};
use super::input::AgentKey;
use super::restart::{Decision, History, decide};
use super::{Machine, Step};
use crate::model::event::Kind;
use crate::model::spec::RestartPolicy;
use crate::model::status::{Cause, ExitRecord};

impl Machine {
    /// Fails an agent for what its children did.
    pub(super) fn escalate(&mut self, step: &mut Step, key: AgentKey, why: String) {
        let agent = &self.agents[&key];
        if agent.down.is_some() || agent.has_ended() {
            return;
        }
        self.unrecorded.insert(key);
        self.publish(step, Kind::Escalated, key, |event| event.message.clone_from(&why));
        match agent.phase {
            Phase::Group => self.fail_group(step, key, &why),
            Phase::Lingering { .. } => self.fail_lingering(step, key, &why),
            _ => {
                let verdict = Verdict { cause: Cause::Child, why };
                if agent.is_unattended() {
                    self.judge(step, key, verdict);
                } else if matches!(agent.phase, Phase::Spawning { .. }) {
                    // It is told when its run has begun.
                    self.agent_mut(key).verdict = Some(verdict);
                }
                self.renew_below(step, key);
            }
        }
    }

    /// Has all below an agent end, and start anew when it does. What was counted of them is forgotten.
    fn renew_below(&mut self, step: &mut Step, key: AgentKey) {
        for below in self.subtree(key) {
            self.unrecorded.insert(below);
            let agent = self.agent_mut(below);
            agent.child_restarts.clear();
            if below != key {
                agent.history = History::default();
            }
        }
        let by: Arc<str> = format!("the failure of {}", self.agents[&key].spec.id).into();
        self.renew(step, key, &[key], &by);
    }

    fn fail_group(&mut self, step: &mut Step, key: AgentKey, why: &str) {
        let mut record = ExitRecord::new(Cause::Child);
        record.judge(Cause::Child, why);
        self.stamp(step, key, &mut record);
        let agent = self.agent_mut(key);
        agent.last = Some(Box::new(record.clone()));
        agent.ended = Some(step.now);
        let ran = agent.began.map_or(Duration::ZERO, |began| step.now.mono.since(began.mono));
        self.decide_next(step, key, Outcome::Failed, &record, ran);
    }

    /// Its last run is over, and what is below it ends with this cause. An end that was told stays what it was; one that was about to be
    /// told as completed is a failure.
    fn fail_lingering(&mut self, step: &mut Step, key: AgentKey, why: &str) {
        let mut record = self.agents[&key].last.as_deref().cloned().unwrap_or_else(|| ExitRecord::new(Cause::Child));
        record.judge(Cause::Child, why);
        if !self.agents[&key].is_end_told() {
            self.tell_end(step, key, Outcome::Failed, &record);
            self.agent_mut(key).last = Some(Box::new(record.clone()));
        }
        self.end_or_linger(step, key, Outcome::Failed, &record);
    }

    /// An agent has ended on its own, without a stop and without a restart that somebody asked for: its policy decides.
    pub(super) fn decide_next(
        &mut self,
        step: &mut Step,
        key: AgentKey,
        outcome: Outcome,
        record: &ExitRecord,
        ran: Duration,
    ) {
        let chance = self.chance.f64();
        let agent = self.agent_mut(key);
        let spec = agent.spec.clone();
        let is_success = outcome == Outcome::Completed;
        match decide(&spec.restart, &mut agent.history, is_success, ran, step.now.mono, chance) {
            Decision::Again { delay, attempt } => {
                self.tell_end(step, key, outcome, record);
                if record.cause == Cause::Child && spec.is_group() {
                    self.renew_below(step, key);
                }
                self.come_back(step, key, delay, attempt);
            }
            Decision::GiveUp => {
                self.tell_end(step, key, outcome, record);
                self.report_given_up(step, key, record);
                self.has_ended_for_good(step, key, Outcome::Failed, record);
            }
            Decision::No => self.has_ended_for_good(step, key, outcome, record),
        }
    }

    pub(super) fn has_ended_for_good(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome, record: &ExitRecord) {
        let agent = &self.agents[&key];
        let parent = agent.parent.filter(|parent| {
            agent.spec.significant && outcome == Outcome::Failed && self.agents[parent].down.is_none()
        });
        let Some(parent) = parent else { return self.end_or_linger(step, key, outcome, record) };
        let how = agent.last.as_deref().filter(|last| last.cause == Cause::GivenUp).unwrap_or(record);
        let why = format!("its significant child {} has failed: {how}", agent.spec.id);
        let above = &self.agents[&parent];
        // What could not start for the end of another one would not be able to next time, either.
        let parent_may_come_back = above.spec.restart.policy != RestartPolicy::Never
            && !matches!(above.phase, Phase::Lingering { .. })
            && record.cause != Cause::Dependency;
        if parent_may_come_back {
            self.tell_end(step, key, outcome, record);
            self.hold(key, super::agent::Start::Automatic);
        } else {
            self.end_or_linger(step, key, outcome, record);
        }
        self.escalate(step, parent, why);
    }

    /// Ends the parent of a significant child that has completed.
    pub(super) fn end_parent_of(&mut self, step: &mut Step, key: AgentKey) {
        let agent = &self.agents[&key];
        let Some(parent) = agent.parent.filter(|_| agent.spec.significant && agent.down.is_none()) else { return };
        if self.agents[&parent].down.is_none() {
            let by = format!("the end of its significant child {}", agent.spec.id);
            self.begin_stop(step, &[parent], None, &by.into(), None);
        }
    }
}

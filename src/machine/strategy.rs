//! What a parent does when one of its children comes back: who starts anew along with it.
//!
//! | strategy | when a child comes back | start anew |
//! | --- | --- | --- |
//! | `one-for-one` | by its own policy | that one; what is below it goes on |
//! | `one-for-all` | by its own policy | all children, with all below them |
//! | `rest-for-one` | by its own policy | that one and those made after it, with all below them |
//!
//! Starting anew is a **renewal**. Whoever of its members runs is ended: children before parents, the later made first,
//! one deadline for all (`polite`). Each that is over waits; when the last one is, and the delay of the one whose failure it
//! was, all start: parents before their children, the first made first. Each ended run has its terminal event, by the strategy.
//!
//! * Whether an agent comes back is its own policy's word only when it ends on its own: what a strategy has ended comes back,
//!   `never` included (OTP's temporary children do not).
//! * What was stopped by somebody, or has ended for good, is no member: no strategy brings it back. A member that is stopped
//!   meanwhile leaves.
//! * A renewal takes its members from another one: the latest decides. Groups have no run, so they are members only when it is
//!   their own failure.
//! * A renewal is not written down: when the supervisor dies meanwhile, its members are ended as they were to be, and come
//!   back one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::agent::{Ladder, Phase, Start};
use super::input::AgentKey;
use super::polite::Shares;
use super::{Machine, Step};
use crate::model::recovery::Strategy;
use crate::model::time::Monotonic;

/// The identity of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RenewalKey(u64);

/// Agents that are ended together, and then start anew together.
#[derive(Debug)]
pub(super) struct Renewal {
    /// Whose failure it was: its own policy says when all may start.
    head: AgentKey,
    /// On whose behalf the others are ended.
    pub by: Arc<str>,
    /// When what lives of the old runs is killed.
    pub kill_at: Monotonic,
    pub members: BTreeSet<AgentKey>,
    /// Members that are not ready to start: their run, or their delay, is not over.
    pub pending: BTreeSet<AgentKey>,
}

impl Machine {
    /// Brings an agent back that ended on its own, by its own policy: after its delay, with whomever its parent's strategy
    /// names; or, if its parent has had to put up with too much, with its parent.
    pub(super) fn come_back(&mut self, step: &mut Step, key: AgentKey, delay: Duration, attempt: u32) {
        self.agent_mut(key).restarts += 1;
        if self.is_swept_along(key) {
            return self.hold(key, Start::Automatic);
        }
        let parent = self.agents[&key].parent;
        if let Some((parent, why)) = parent.and_then(|parent| Some((parent, self.one_too_many(step, parent, key)?))) {
            self.hold(key, Start::Automatic);
            return self.escalate(step, parent, why);
        }
        self.back_off(step, key, delay, attempt);
        let Some(parent) = parent.map(|parent| &self.agents[&parent]) else { return };
        let strategy = parent.spec.children.strategy;
        let is_meant = |sibling: &AgentKey| match strategy {
            Strategy::OneForOne => false,
            Strategy::OneForAll => true,
            Strategy::RestForOne => *sibling >= key,
        };
        let tops: Vec<_> = parent.children.iter().copied().filter(is_meant).collect();
        let by = format!("strategy {strategy} of {}", parent.spec.id);
        self.renew(step, key, &tops, &by.into());
    }

    /// Counts one more restart of a parent's child; says why if that is one too many.
    fn one_too_many(&mut self, step: &Step, parent: AgentKey, child: AgentKey) -> Option<String> {
        let now = step.now.mono;
        self.unrecorded.insert(parent);
        let agent = self.agent_mut(parent);
        let children = agent.spec.children.clone();
        let most = children.intensity?;
        while agent.child_restarts.front().is_some_and(|at| now.since(*at) >= children.period) {
            agent.child_restarts.pop_front();
        }
        if agent.child_restarts.len() < most as usize {
            agent.child_restarts.push_back(now);
            return None;
        }
        let period = humantime::format_duration(children.period);
        let child = &self.agents[&child];
        let last = child.last.as_ref().map(ToString::to_string).unwrap_or_default();
        Some(format!(
            "its children needed more than {most} restarts within {period}: the last was {}, {last}",
            child.spec.id
        ))
    }

    /// Says whether an agent starts anew for the sake of another one: its own delay and its own count do not matter then.
    fn is_swept_along(&self, key: AgentKey) -> bool {
        let renewal = self.agents[&key].renewal.and_then(|renewal| self.renewals.get(&renewal));
        renewal.is_some_and(|renewal| renewal.head != key)
    }

    /// Ends what runs in these subtrees, to have it start anew together with `head`.
    pub(super) fn renew(&mut self, step: &mut Step, head: AgentKey, tops: &[AgentKey], by: &Arc<str>) {
        let now = step.now.mono;
        let is_member = |key: &AgentKey| *key == head || self.can_start_anew(*key);
        let members: Vec<_> = tops.iter().flat_map(|top| self.subtree(*top)).filter(is_member).collect();
        let head_waits = !self.agents[&head].has_run() && !matches!(self.agents[&head].phase, Phase::Spawning { .. });
        if head_waits && members.iter().all(|key| *key == head) {
            return;
        }
        let grace = tops.iter().map(|top| self.agents[top].spec.grace).max().unwrap_or_default();
        let shares = self.share_out(now, grace, &members);
        let number = RenewalKey(self.fresh());
        let kill_at = now + grace;
        let renewal = Renewal { head, by: by.clone(), kill_at, members: BTreeSet::new(), pending: BTreeSet::new() };
        self.renewals.insert(number, renewal);
        for key in members.into_iter().rev() {
            self.leave_renewal(key);
            self.join_renewal(step, key, number, &shares);
        }
        // All its members may wait to start already, the failed one too.
        self.end_renewal_if_ready(number);
    }

    /// Says whether an agent has a run, or waits for one, and nobody wants it to end for good.
    fn can_start_anew(&self, key: AgentKey) -> bool {
        let agent = &self.agents[&key];
        let has_or_waits = match agent.phase {
            Phase::Queued
            | Phase::Held
            | Phase::Running { .. }
            | Phase::Draining { .. }
            | Phase::Reading { .. }
            | Phase::Backoff { .. } => true,
            Phase::Spawning { .. } => !agent.spec.is_group(),
            Phase::Group | Phase::Lingering { .. } | Phase::Ended { .. } => false,
        };
        has_or_waits && agent.down.is_none()
    }

    fn join_renewal(&mut self, step: &mut Step, key: AgentKey, number: RenewalKey, shares: &Shares) {
        let Some(renewal) = self.renewals.get_mut(&number) else { return };
        renewal.members.insert(key);
        let (is_head, by) = (renewal.head == key, renewal.by.clone());
        let rung = Ladder::Asked { signal_by: shares.signal_by(key), kill_at: renewal.kill_at };
        let agent = self.agents.get_mut(&key).expect("a member was just found");
        agent.renewal = Some(number);
        let is_unattended = agent.is_unattended();
        let is_pending = match agent.phase {
            Phase::Queued | Phase::Held => false,
            // The delay that counts is that of the one whose failure it was.
            Phase::Backoff { .. } if !is_head => {
                agent.start = Start::Automatic;
                agent.phase = Phase::Held;
                false
            }
            // What has failed before, or was asked to make place for its next run, is on its way already.
            Phase::Running { .. } | Phase::Draining { .. } | Phase::Reading { .. } => {
                if is_unattended && !is_head {
                    (agent.cycle, agent.start) = (Some(by), Start::Automatic);
                }
                true
            }
            Phase::Spawning { deadline } => {
                // One that is past its deadline is on its way to failing, as well.
                if !is_head && deadline.is_some() {
                    (agent.cycle, agent.start) = (Some(by), Start::Automatic);
                }
                true
            }
            _ => true,
        };
        if is_pending {
            renewal_mut(&mut self.renewals, number).pending.insert(key);
        }
        if self.agents[&key].has_run() && self.agents[&key].ladder().is_none() {
            self.set_ladder(key, rung);
            self.settle_ladder(step, key);
        }
        self.dirty.insert(key);
    }

    /// Takes an agent out of its renewal: it starts on its own, or not at all.
    pub(super) fn leave_renewal(&mut self, key: AgentKey) {
        let Some(number) = self.agent_mut(key).renewal.take() else { return };
        renewal_mut(&mut self.renewals, number).members.remove(&key);
        self.note_ready(key, number);
    }

    /// Says whether a held agent waits for others of its renewal; it does not keep them waiting.
    pub(super) fn await_renewal(&mut self, key: AgentKey) -> bool {
        if let Some(number) = self.agents[&key].renewal {
            self.note_ready(key, number);
        }
        self.agents[&key].renewal.is_some()
    }

    /// Notes that a renewal need not wait for an agent; after the last one, all may start.
    fn note_ready(&mut self, key: AgentKey, number: RenewalKey) {
        renewal_mut(&mut self.renewals, number).pending.remove(&key);
        self.end_renewal_if_ready(number);
    }

    /// Ends a renewal that waits for no member: all of them may start.
    fn end_renewal_if_ready(&mut self, number: RenewalKey) {
        if self.renewals.get(&number).is_none_or(|renewal| !renewal.pending.is_empty()) {
            return;
        }
        let Some(renewal) = self.renewals.remove(&number) else { return };
        for member in renewal.members {
            self.agent_mut(member).renewal = None;
            self.dirty.insert(member);
        }
    }

    /// Has an agent wait until it may start.
    pub(super) fn hold(&mut self, key: AgentKey, start: Start) {
        self.agent_mut(key).start = start;
        self.enter(key, Phase::Held);
    }
}

fn renewal_mut(renewals: &mut BTreeMap<RenewalKey, Renewal>, number: RenewalKey) -> &mut Renewal {
    renewals.get_mut(&number).expect("an agent's renewal is there as long as it has members")
}

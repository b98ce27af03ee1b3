//! The end of an agent: it leaves the tree's books, is retained for a while, and is forgotten.

use super::agent::{Home, Outcome, Phase};
use super::input::{AgentKey, Effect};
use super::{Machine, Step, Timer, Until};
use crate::model::config::{FAILED_RETAINED_MAX, RETAINED_MOST};
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::spec::OnMainExit;
use crate::model::status::{Cause, ExitRecord};
use crate::model::time::Monotonic;

impl Machine {
    /// The last run is over: ends the agent, or first waits for (or ends) the agents below it.
    pub(super) fn end_or_linger(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome, record: &ExitRecord) {
        let agent = &self.agents[&key];
        if agent.live_children == 0 {
            return self.end(step, key, outcome);
        }
        if outcome == Outcome::Failed {
            self.tell_end(step, key, outcome, record);
        }
        let agent = &self.agents[&key];
        // Without its cgroup nothing below it can ever start.
        let ends_them = agent.spec.on_main_exit == OnMainExit::Terminate
            || agent.home == Home::None
            || record.cause == Cause::Child;
        if agent.down.is_none() && ends_them {
            let children: Vec<_> = agent.children.iter().copied().collect();
            let (grace, by) = (agent.spec.grace, format!("the end of {}", agent.spec.id));
            self.begin_stop(step, &children, Some(grace), &by.into(), None);
        }
        self.leave_renewal(key);
        self.enter(key, Phase::Lingering { outcome });
    }

    /// Nothing of the agent lives and nothing will by itself.
    pub(super) fn end(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome) {
        let agent = &self.agents[&key];
        let by = agent.down.as_ref().map(|down| down.by.to_string());
        if let Some(reply) = agent.reply {
            let message = format!("start {}: it was terminated before it started", agent.spec.id);
            step.reply(reply, Err(Error::new(Code::WrongState, message)));
        }
        let mut record = ExitRecord::new(Cause::Terminated);
        record.by = by;
        let waits = matches!(agent.phase, Phase::Backoff { .. } | Phase::Held);
        if agent.is_end_told() && agent.down.is_some() && waits {
            // Its last run's end is told; that there is no next one is not.
            self.publish(step, Kind::GaveUp, key, |event| event.message = format!("not started again: {record}"));
        }
        let record = agent.last.as_deref().cloned().unwrap_or(record);
        self.tell_end(step, key, outcome, &record);
        self.leave(step, key, outcome);
        self.note_ended(step.now.mono, key);
        self.settle_waits(step, Until::Ended, key);
        if outcome == Outcome::Completed {
            self.end_parent_of(step, key);
        }
    }

    /// Enters the last phase and gives the room back.
    pub(super) fn leave(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome) {
        let now = step.now;
        let expires = self.expiry(key, outcome, now.mono);
        self.leave_renewal(key);
        self.give_up_turn(key);
        self.wake_followed(key);
        let is_admitted = self.agents[&key].is_admitted();
        if is_admitted {
            self.count_out(key);
        } else {
            self.queue.remove(&(std::cmp::Reverse(self.agents[&key].spec.priority), key));
        }
        let agent = self.agent_mut(key);
        agent.phase = Phase::Ended { outcome, at: now.mono };
        agent.ended = agent.ended.or(Some(now));
        agent.expires = expires;
        agent.paused_total = agent.paused_for(now.mono);
        agent.paused_since = None;
        agent.freezer.own = super::Frost::Thawed;
        agent.reply = None;
        self.frost_moved.insert(key);
        self.dirty.insert(key);
        self.retain(now.mono, key);
        self.end_presses(step, key);
        if let Some(parent) = self.agents[&key].parent {
            self.agent_mut(parent).live_children -= 1;
            self.dirty.insert(parent);
        }
        let of_all = self.retained.first().filter(|_| self.retained.len() > RETAINED_MOST);
        let of_failed = self.failed.first().filter(|_| self.failed.len() > FAILED_RETAINED_MAX);
        for (_, oldest) in of_all.into_iter().chain(of_failed).copied().collect::<Vec<_>>() {
            if self.config.auto_cleanup {
                self.agent_mut(oldest).expires = Some(now.mono);
                self.dirty.insert(oldest);
            }
        }
    }

    /// Returns when an agent that ends now is forgotten: one that a file declares stays until it leaves the file.
    pub(super) fn expiry(&self, key: AgentKey, outcome: Outcome, now: Monotonic) -> Option<Monotonic> {
        let is_kept = !self.config.auto_cleanup || self.agents[&key].spec.declared_by.is_some();
        let retention = match outcome {
            Outcome::Failed => self.config.failed_retention,
            Outcome::Completed | Outcome::Terminated => self.config.cleanup_retention,
        };
        (!is_kept).then(|| now + retention)
    }

    /// Enters an agent that has ended into the books of those that are still known.
    pub(super) fn retain(&mut self, at: Monotonic, key: AgentKey) {
        self.retained.insert((at, key));
        let agent = &self.agents[&key];
        if matches!(agent.phase, Phase::Ended { outcome: Outcome::Failed, .. }) && agent.spec.declared_by.is_none() {
            self.failed.insert((at, key));
        }
    }

    /// Takes an agent out of these books.
    pub(super) fn release(&mut self, at: Monotonic, key: AgentKey) {
        self.retained.remove(&(at, key));
        self.failed.remove(&(at, key));
    }

    pub(super) fn settle_ended(&mut self, step: &mut Step, key: AgentKey) {
        self.settle_home(step, key);
        let agent = &self.agents[&key];
        let is_due = agent.expires.is_some_and(|expires| step.now.mono >= expires);
        if is_due && agent.home == Home::None && agent.children.is_empty() && agent.stops.is_empty() {
            self.lose_followers(step, key);
            self.publish(step, Kind::Removed, key, |_| {});
            step.order(Effect::Forget(key));
            self.drop_agent(step, key);
        }
    }

    /// Drops the record of an agent that has ended.
    fn drop_agent(&mut self, step: &mut Step, key: AgentKey) {
        self.settle_waits(step, Until::Forgotten, key);
        let Some(agent) = self.agents.remove(&key) else { return };
        if let Some(due) = agent.due {
            self.timers.remove(&(due, Timer::Agent(key)));
        }
        self.ids.remove(&agent.spec.id);
        self.unfollow(&agent);
        self.specs.remove(key);
        if let Phase::Ended { at, .. } = agent.phase {
            self.release(at, key);
        }
        if let Some(parent) = agent.parent.and_then(|parent| self.agents.get_mut(&parent)) {
            parent.children.remove(&key);
            self.dirty.insert(parent.key);
        }
    }

    /// Takes back an agent whose first spawn failed, as if it had never been; what waits to be started below it is refused.
    pub(super) fn expunge(&mut self, step: &mut Step, key: AgentKey) {
        let id = self.agents[&key].spec.id.clone();
        for child in self.agents[&key].children.clone() {
            let message = format!("spawn {}: its parent {id} could not be started", self.agents[&child].spec.id);
            if let Some(reply) = self.agent_mut(child).reply.take() {
                step.reply(reply, Err(Error::new(Code::NoSuchParent, message)));
            } else if !self.agents[&child].has_ended() {
                // It was queued, or held by a pause: whoever asked for it was told that it will come.
                let mut record = ExitRecord::new(Cause::Exec);
                record.error = Some(message);
                self.tell_end(step, child, Outcome::Failed, &record);
            }
            self.expunge(step, child);
        }
        self.count_spawned(key, |count| count - 1);
        if !self.agents[&key].has_ended() {
            self.leave(step, key, Outcome::Failed);
        }
        self.lose_followers(step, key);
        self.note_ended(step.now.mono, key);
        self.settle_waits(step, Until::Ended, key);
        for stop in self.agents[&key].stops.clone() {
            self.dirty_stops.insert(stop);
            if let Some(stop) = self.stops.get_mut(&stop) {
                stop.forget(key);
            }
        }
        step.order(Effect::Forget(key));
        self.drop_agent(step, key);
    }
}

//! Pause and resume: what was asked is an agent's own, what is told is what the kernel has confirmed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::agent::{Agent, Home, Phase};
use super::input::{AgentKey, Caller, Effect, Frost, Now, ReplyTo};
use super::stop::Stage;
use super::{Machine, Step, Timer};
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::request::{Answer, Target};
use crate::model::time::Monotonic;

/// A pause or resume whose confirmation somebody waits for.
#[derive(Debug)]
pub(super) struct Frosting {
    reply: ReplyTo,
    wanted: Frost,
    order: Vec<AgentKey>,
    pending: BTreeSet<AgentKey>,
    deadline: Monotonic,
    /// Set when the deadline has come.
    pub is_late: bool,
}

impl Machine {
    pub(super) fn ask_frost(
        &mut self,
        step: &mut Step,
        to: ReplyTo,
        caller: &Caller,
        target: &Target,
        wanted: Frost,
    ) -> Result<(), Error> {
        let verb = if wanted == Frost::Frozen { "pause" } else { "resume" };
        let keys = self.targets(target)?;
        let (can, cannot): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|key| !self.agents[key].has_ended() && self.agents[key].down.is_none());
        if let (Target::Ids(_), Some(key)) = (target, cannot.first()) {
            let agent = &self.agents[key];
            let message = format!("{verb} {}: it is {}", agent.spec.id, agent.state());
            return Err(Error::new(Code::WrongState, message).remedy(format!("only agents that live can be {verb}d")));
        }
        for key in &can {
            let agent = self.agent_mut(*key);
            agent.freezer.own = wanted;
            agent.paused_by = (wanted == Frost::Frozen).then(|| caller.name.clone());
            if wanted == Frost::Thawed {
                self.spare(*key);
            }
            self.freezer_is_wanted(step.now, *key);
        }
        let deadline = step.now.mono + self.config.freeze_timeout;
        let pending = can.iter().copied().collect();
        let frosting = Frosting { reply: to, wanted, order: can, pending, deadline, is_late: false };
        let key = self.fresh();
        self.timers.insert((deadline, Timer::Frosting(key)));
        self.frostings.insert(key, frosting);
        Ok(())
    }

    /// What is wanted of an agent's freezer has changed: all below it is to be looked at.
    pub(super) fn freezer_is_wanted(&mut self, now: Now, key: AgentKey) {
        self.frost_moved.insert(key);
        for below in self.subtree(key) {
            self.note_pause(now, below);
            self.dirty.insert(below);
        }
    }

    /// Says whether an agent is paused, by itself or from above.
    pub(super) fn is_paused(&self, key: AgentKey) -> bool {
        self.agents[&key].freezer.wanted() == Frost::Frozen || self.is_paused_from_above(key)
    }

    pub(super) fn is_paused_from_above(&self, key: AgentKey) -> bool {
        self.ancestors(key).any(|above| self.agents[&above].freezer.wanted() == Frost::Frozen)
    }

    /// Starts or stops the account of paused time, and every clock of the agent with it.
    pub(super) fn note_pause(&mut self, now: Now, key: AgentKey) {
        let is_paused = self.is_paused(key);
        let agent = self.agent_mut(key);
        if agent.has_ended() {
            return;
        }
        match (is_paused, agent.paused_since) {
            (true, None) => agent.paused_since = Some(now.mono),
            (false, Some(since)) => {
                agent.paused_total += now.mono.since(since);
                agent.paused_since = None;
            }
            _ => {}
        }
        if is_paused {
            agent.clocks.suspend(now.mono);
        } else {
            agent.clocks.resume(now.mono);
        }
        if let Phase::Backoff { countdown } = &mut agent.phase {
            *countdown = if is_paused { countdown.suspended(now.mono) } else { countdown.resumed(now.mono) };
        }
    }

    /// Nobody is held to a time in which it may have stood still: the clocks of all runs go on as they were then.
    pub(super) fn stood_still(&mut self, now: Monotonic, since: Monotonic) {
        for (key, agent) in &mut self.agents {
            if agent.paused_since.is_none() && agent.clocks.due().is_some() {
                agent.clocks.suspend(since);
                agent.clocks.resume(now);
                self.dirty.insert(*key);
            }
        }
    }

    /// Returns what should stand in an agent's `cgroup.freeze`.
    fn wanted_frost(&self, key: AgentKey) -> Frost {
        let agent = &self.agents[&key];
        if agent.has_ended() {
            // Its cgroup goes as it is.
            return agent.freezer.written;
        }
        let Some(down) = &agent.down else { return agent.freezer.wanted() };
        let Some(stop) = self.stops.get(&down.stop) else { return agent.freezer.written };
        match stop.stage {
            Stage::Freezing(_) if stop.is_top(key) => Frost::Frozen,
            // A paused process cannot see its stop signal: first the signal, then the thaw, then the grace. What has yet to
            // wait for others to end has to let them.
            Stage::Polite(_) if down.signal == super::agent::Signal::Ordered => agent.freezer.written,
            Stage::Polite(_) => Frost::Thawed,
            _ => agent.freezer.written,
        }
    }

    /// Orders the write that brings `cgroup.freeze` to what is wanted: one at a time, and never while a spawn is on its way.
    pub(super) fn settle_freezer(&mut self, step: &mut Step, key: AgentKey) {
        let wanted = self.wanted_frost(key);
        let agent = self.agent_mut(key);
        let is_free = agent.home == Home::Made && agent.freezer.ordered.is_none();
        let would_hang = wanted == Frost::Frozen && agent.spawning > 0;
        if is_free && !would_hang && agent.freezer.written != wanted {
            agent.freezer.ordered = Some(wanted);
            step.order(Effect::Freeze { agent: key, frost: wanted });
        }
    }

    pub(super) fn freezer_written(&mut self, step: &mut Step, key: AgentKey, written: Frost) {
        let Some(agent) = self.agents.get_mut(&key) else { return };
        agent.freezer.ordered = None;
        self.frost_moved.insert(key);
        if agent.home == Home::None {
            // Its cgroup was removed along with an agent above.
            return;
        }
        agent.freezer.written = written;
        // What was seen before this write is no answer to it: it may have been the freeze of an agent above.
        agent.freezer.seen = Frost::Thawed;
        let goes_on = written == Frost::Thawed && agent.freezer.told == Frost::Frozen;
        if goes_on {
            agent.freezer.told = Frost::Thawed;
            self.publish(step, Kind::Resumed, key, |_| {});
        }
        self.dirty.extend(self.subtree(key));
        self.dirty_stops.extend(self.agents[&key].stops.iter().copied());
        self.tell_pause(step, key);
    }

    pub(super) fn frost_seen(&mut self, step: &mut Step, key: AgentKey, frost: Frost) {
        let Some(agent) = self.agents.get_mut(&key) else { return };
        agent.freezer.seen = frost;
        self.frost_moved.insert(key);
        self.dirty_stops.extend(self.agents[&key].stops.iter().copied());
        self.tell_pause(step, key);
    }

    fn tell_pause(&mut self, step: &mut Step, key: AgentKey) {
        let freezer = &mut self.agent_mut(key).freezer;
        if freezer.is_confirmed() && freezer.wanted() == Frost::Frozen && freezer.told == Frost::Thawed {
            freezer.told = Frost::Frozen;
            self.unrecorded.insert(key);
            self.publish(step, Kind::Paused, key, |_| {});
            self.reclaim(step, key);
        }
    }

    /// Answers the pauses and resumes that are confirmed, or whose time is over.
    pub(super) fn settle_frostings(&mut self, step: &mut Step) {
        let moved = std::mem::take(&mut self.frost_moved);
        let Self { frostings, agents, .. } = self;
        let mut over = Vec::new();
        for (number, frosting) in frostings.iter_mut() {
            let wanted = frosting.wanted;
            let is_waited_for = |key: &AgentKey| agents.get(key).is_some_and(|agent| is_waited_for(agent, wanted));
            frosting.pending.retain(|key| !moved.contains(key) || is_waited_for(key));
            if frosting.pending.is_empty() || frosting.is_late {
                over.push(*number);
            }
        }
        for number in over {
            let Some(frosting) = self.frostings.remove(&number) else { continue };
            self.timers.remove(&(frosting.deadline, Timer::Frosting(number)));
            if frosting.pending.is_empty() {
                let now = step.now.mono;
                let known = frosting.order.iter().filter(|key| self.agents.contains_key(key));
                let statuses = known.map(|key| Arc::new(self.status(*key, now))).collect();
                step.reply(frosting.reply, Ok(Answer::Agents(statuses)));
            } else {
                let agents = frosting.pending.into_iter().collect();
                step.order(Effect::FindLaggards { agents, reply: Some(frosting.reply) });
            }
        }
    }
}

/// Says whether an agent's freezer has yet to come to what was asked.
fn is_waited_for(agent: &Agent, wanted: Frost) -> bool {
    let freezer = &agent.freezer;
    let is_settled = match wanted {
        Frost::Frozen => freezer.is_confirmed(),
        Frost::Thawed => freezer.written == Frost::Thawed && freezer.ordered.is_none(),
    };
    let is_moot = agent.has_ended() || agent.home == Home::None || freezer.wanted() != wanted;
    !(is_settled || is_moot)
}

//! `settle`: moves one agent as far towards what is wanted as it can go now.

use std::time::Duration;

use super::agent::{Agent, Home, Ladder, Outcome, Phase, Start};
use super::input::{AgentKey, Effect, Force, SpawnOrder};
use super::ready::Voice;
use super::stall::Quiet;

use super::{Machine, Step, Timer};
use crate::model::request::Answer;
use crate::model::time::Monotonic;

/// How long a stop, from its kill on, waits for a spawn that is on its way.
const SPAWN_MOST: Duration = Duration::from_secs(1);

impl Machine {
    /// Settles one agent. Everything that changes a phase is here or is called from here.
    pub(super) fn settle(&mut self, step: &mut Step, key: AgentKey) {
        let Some(agent) = self.agents.get(&key) else { return };
        let now = step.now.mono;
        let is_down = agent.down.is_some();
        let is_childless = agent.live_children == 0;
        self.settle_signal(step, key);
        self.settle_freezer(step, key);
        match self.agents[&key].phase.clone() {
            Phase::Queued | Phase::Held | Phase::Backoff { .. } if is_down => {
                // It starts with nobody any more.
                self.leave_renewal(key);
                if is_childless {
                    self.end(step, key, Outcome::Terminated);
                }
            }
            Phase::Queued => drop(self.settle_lost(step, key)),
            Phase::Held => self.settle_held(step, key),
            Phase::Spawning { deadline: Some(deadline) } if now >= spawn_due(&self.agents[&key], deadline) => {
                self.agent_mut(key).phase = Phase::Spawning { deadline: None };
                let run = self.agents[&key].run;
                step.order(Effect::KillRun { agent: key, run, force: Force::Stroke });
            }
            Phase::Spawning { .. } => {}
            Phase::Group if is_down && is_childless => self.end(step, key, Outcome::Terminated),
            Phase::Group => {}
            Phase::Running { .. } | Phase::Draining { .. } => {
                self.settle_stall(step, key);
                self.settle_clocks(step, key);
                self.settle_ladder(step, key);
            }
            Phase::Reading { record, deadline } => self.settle_reading(step, key, *record, deadline),
            Phase::Lingering { .. } if is_childless => {
                let outcome = self.outcome_when_down(key);
                self.end(step, key, outcome);
            }
            Phase::Lingering { .. } => {}
            Phase::Backoff { countdown } if countdown.due().is_some_and(|due| now >= due) => {
                self.hold(key, Start::Automatic);
            }
            Phase::Backoff { .. } => {}
            Phase::Ended { .. } => self.settle_ended(step, key),
        }
        self.set_timer(now, key);
        self.note_outlook(key);
        self.unrecorded.insert(key);
    }

    fn settle_held(&mut self, step: &mut Step, key: AgentKey) {
        if self.settle_lost(step, key) {
            return;
        }
        let is_renewing = self.await_renewal(key);
        let agent = &self.agents[&key];
        if !is_renewing && agent.spec.is_group() && agent.home == Home::Made && self.can_follow(agent) {
            // Its children start anew; it has nothing to start itself.
            let agent = self.agent_mut(key);
            (agent.began, agent.ended, agent.last, agent.told) = (Some(step.now), None, None, None);
            return self.enter(key, Phase::Group);
        }
        if !is_renewing && self.may_start(key) && self.has_its_turn(step, key) {
            return self.start(step, key);
        }
        // A spawn that waits for a resume or for others is answered now: it may take for ever.
        if (is_renewing || self.is_held_by_frost(key) || self.is_held_by_others(key))
            && let Some(reply) = self.agent_mut(key).reply.take()
        {
            let status = self.status(key, step.now.mono);
            step.reply(reply, Ok(Answer::Agent(Box::new(status))));
        }
    }

    pub(super) fn start(&mut self, step: &mut Step, key: AgentKey) {
        let timeout = step.now.mono + self.config.spawn_timeout;
        let parent = self.agents[&key].parent;
        let make_level = parent.filter(|parent| self.agents[parent].nursery == Home::None).map(|parent| {
            self.agent_mut(parent).nursery = Home::Making;
            self.siblings_limits(parent)
        });
        let agent = self.agent_mut(key);
        if !agent.spec.is_group() {
            agent.run = agent.run.next();
        }
        let make = (agent.home == Home::None).then(|| agent.limits.clone());
        if make.is_some() {
            agent.home = Home::Making;
        }
        // A group has no process: there is nothing that could hang, and no run whose kill would free it.
        agent.phase = Phase::Spawning { deadline: (!agent.spec.is_group()).then_some(timeout) };
        agent.paused_total = Duration::ZERO;
        agent.told = None;
        // What was asked of a run that another machine had ordered is not asked of this one.
        agent.cycle = None;
        agent.verdict = None;
        agent.overdue = None;
        agent.oom_kills = 0;
        agent.last_left = None;
        agent.stuck = None;
        agent.voice = Voice::default();
        agent.quiet = Quiet::default();
        agent.began = None;
        let order = SpawnOrder { agent: key, run: agent.run, spec: agent.spec.clone(), make, make_level };
        self.count_spawning(key, |count| count + 1);
        step.order(Effect::Spawn(Box::new(order)));
    }

    fn count_spawning(&mut self, key: AgentKey, change: fn(u32) -> u32) {
        let chain: Vec<_> = std::iter::once(key).chain(self.ancestors(key)).collect();
        for key in chain {
            let agent = self.agent_mut(key);
            agent.spawning = change(agent.spawning);
            let stops = agent.stops.clone();
            if agent.spawning == 0 {
                self.dirty.insert(key);
                self.dirty_stops.extend(stops);
            }
        }
    }

    /// A spawn is off the hand: whoever waited for that is settled again.
    pub(super) fn spawn_is_over(&mut self, key: AgentKey, home: Home) {
        self.count_spawning(key, |count| count - 1);
        let agent = self.agent_mut(key);
        if agent.home == Home::Making {
            agent.home = home;
        }
        self.frost_moved.insert(key);
        self.dirty.insert(key);
        let children = self.agents[&key].children.clone();
        self.dirty.extend(children);
        let Some(parent) = self.agents[&key].parent else { return };
        if self.agents[&parent].nursery == Home::Making {
            let parent = self.agent_mut(parent);
            parent.nursery = home;
            let siblings = parent.children.clone();
            self.dirty.extend(siblings);
        }
    }

    /// Sets the agent's one timer to the next thing that it waits for.
    fn set_timer(&mut self, now: Monotonic, key: AgentKey) {
        let Some(agent) = self.agents.get(&key) else { return };
        let due = if self.is_removal_held(agent) { None } else { self.due(now, agent) };
        if due == agent.due {
            return;
        }
        if let Some(old) = agent.due {
            self.timers.remove(&(old, Timer::Agent(key)));
        }
        if let Some(due) = due {
            self.timers.insert((due, Timer::Agent(key)));
        }
        self.agent_mut(key).due = due;
    }

    /// Returns when an agent is to be settled again though nothing else happens.
    fn due(&self, now: Monotonic, agent: &Agent) -> Option<Monotonic> {
        match &agent.phase {
            Phase::Spawning { deadline } => deadline.map(|deadline| spawn_due(agent, deadline)),
            Phase::Running { ladder, .. } | Phase::Draining { ladder, .. } => {
                let clocks = || agent.clocks.due().filter(|_| agent.is_unattended());
                let rung = ladder.map(Ladder::due).or_else(clocks);
                rung.into_iter().chain(self.signal_due(now, agent)).min()
            }
            Phase::Reading { deadline, .. } => Some(*deadline),
            Phase::Backoff { countdown } if agent.down.is_none() => countdown.due(),
            Phase::Ended { .. } => match agent.home {
                Home::Emptying(kill) => Some(kill.again),
                Home::None => agent.expires.filter(|_| agent.children.is_empty() && agent.stops.is_empty()),
                Home::Making | Home::Made | Home::Removing(_) => None,
            },
            _ => None,
        }
    }
}

/// Returns when a spawn that hangs is killed: at its deadline, or soon after the kill of a stop that waits for it.
fn spawn_due(agent: &Agent, deadline: Monotonic) -> Monotonic {
    agent.down.as_ref().map_or(deadline, |down| deadline.min(down.kill_at + SPAWN_MOST))
}

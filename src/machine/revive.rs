//! A restart on request: the present run is ended for the next one, or an agent that has ended is started once more.

use super::agent::{Agent, Home, Ladder, Phase, Start};
use super::input::{AgentKey, Caller, ReplyTo};
use super::{Machine, Step};
use crate::model::error::{Code, Error};
use crate::model::id::{AgentId, Run};
use crate::model::time::Monotonic;

impl Machine {
    pub(super) fn ask_restart(
        &mut self,
        step: &mut Step,
        to: ReplyTo,
        caller: &Caller,
        id: &AgentId,
    ) -> Result<(), Error> {
        let key = self.find(id)?;
        let agent = &self.agents[&key];
        let refuse =
            |why: &str, remedy: &str| Err(Error::new(Code::WrongState, format!("restart {id}: {why}")).remedy(remedy));
        if agent.spec.is_group() {
            return refuse("it is a group and has no process", "restart the agents below it");
        }
        if agent.down.is_some() && !agent.has_ended() {
            return refuse("it is being terminated", "wait until it has ended");
        }
        self.check_not_lost(agent)?;
        let signal = agent.signal(agent.spec.stop_signal);
        let kill_at = Ladder::Polite(step.now.mono + agent.spec.grace);
        match &agent.phase {
            Phase::Running { ladder: None, .. } => {
                let agent = self.agent_mut(key);
                agent.cycle = Some(caller.name.clone());
                agent.start = Start::Asked;
                agent.reply = Some(to);
                if let Phase::Running { ladder, .. } = &mut agent.phase {
                    *ladder = Some(kill_at);
                }
                step.order(signal);
                self.dirty.insert(key);
            }
            Phase::Reading { .. } => {
                let agent = self.agent_mut(key);
                agent.cycle = Some(caller.name.clone());
                agent.start = Start::Asked;
                agent.reply = Some(to);
                self.dirty.insert(key);
            }
            Phase::Backoff { .. } => {
                self.agent_mut(key).reply = Some(to);
                self.hold(key, Start::Asked);
            }
            Phase::Ended { .. } => self.revive(step, key, to)?,
            phase => {
                let why =
                    format!("it is {}", if matches!(phase, Phase::Queued) { "queued" } else { agent.state().name() });
                return refuse(&why, "wait until it runs or has ended");
            }
        }
        Ok(())
    }

    /// Starts an agent that has ended once more, if there is room for it.
    fn revive(&mut self, step: &mut Step, key: AgentKey, to: ReplyTo) -> Result<(), Error> {
        let agent = &self.agents[&key];
        self.check_revivable(step.now.mono, agent)?;
        if let Phase::Ended { at, .. } = agent.phase {
            self.release(at, key);
        }
        let agent = self.agent_mut(key);
        agent.down = None;
        agent.told = agent.told.filter(|told| *told != Run(0));
        agent.expires = None;
        agent.restarts += 1;
        agent.reply = Some(to);
        let parent = agent.parent;
        self.hold(key, Start::Asked);
        self.count_in(key);
        if let Some(parent) = parent {
            self.agent_mut(parent).live_children += 1;
        }
        self.settle(step, key);
        Ok(())
    }

    fn check_revivable(&self, now: Monotonic, agent: &Agent) -> Result<(), Error> {
        let id = &agent.spec.id;
        if self.door != super::Door::Open {
            return Err(Error::new(Code::ShuttingDown, format!("restart {id}: the herd is being ended")));
        }
        if let Some(parent) = agent.parent.map(|parent| &self.agents[&parent]).filter(|parent| !parent.takes_children())
        {
            let message = format!("restart {id}: its parent {} is {}", parent.spec.id, parent.state());
            return Err(Error::new(Code::NoSuchParent, message).remedy("restart the parent first"));
        }
        if agent.expires.is_some_and(|expires| now >= expires) {
            let message = format!("restart {id}: it is being cleaned up");
            return Err(Error::new(Code::WrongState, message).remedy("spawn it anew in a moment"));
        }
        if !agent.stops.is_empty() || agent.home != Home::None {
            let message = format!("restart {id}: its end is not over yet");
            return Err(Error::new(Code::WrongState, message).remedy("ask again in a moment"));
        }
        self.room(&agent.spec.after, agent.parent, agent.level, &agent.limits)
    }
}

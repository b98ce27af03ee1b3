//! Who starts after whom (`after`): what a start waits for beyond its parent's.
//!
//! A start, the first one and each restart, waits until every agent that is named is ready or has completed. What an agent
//! promises to those that wait for it is its [`Outlook`]: it follows from its phase alone, so no wait has a state of its own, and
//! none has a deadline, since whatever is waited for has its own.
//!
//! | what is named | outlook | who waits for it |
//! | --- | --- | --- |
//! | is ready; executes, without a `ready`; is a group and made; has completed | ready | starts |
//! | is queued, held, being started, between two runs, being ended | open | waits |
//! | has failed for good, or was terminated; was taken back when it could not be started | lost | has failed, cause `dependency` |
//! | is not known any more | ready | starts |
//!
//! * Whoever waits fails in the very step in which what it waits for is lost. So a name that nobody has is one that had
//!   completed, or one that a restart does not find any more: neither is anything to wait for.
//! * What runs is never touched, whatever becomes of those that it started after.
//! * No circle: a start waits for those that it names and for its parent. An agent can name only what is there, so only a
//!   name that is used again can close a circle, and that spawn is refused.
//! * No place is held in front of one that has none: nobody is let in as long as one that it starts after is queued, and no
//!   name that is used again is queued as long as somebody has a place that starts after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::agent::{Agent, Outcome, Phase};
use super::input::AgentKey;
use super::{Machine, Step};
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::id::{AgentId, Run};
use crate::model::spec::AgentSpec;
use crate::model::status::{Cause, ExitRecord, State};

/// What an agent promises to those that start after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Outlook {
    /// It may be ready one day.
    #[default]
    Open,
    /// They may start.
    Ready,
    /// It will not be ready.
    Lost,
}

impl Agent {
    fn current_outlook(&self) -> Outlook {
        match (&self.phase, self.state()) {
            (Phase::Ended { outcome, .. } | Phase::Lingering { outcome }, _) => match outcome {
                Outcome::Completed => Outlook::Ready,
                Outcome::Failed | Outcome::Terminated => Outlook::Lost,
            },
            // What it left behind is waited for, and then it has failed.
            (Phase::Draining { record, .. }, _) if !record.is_success() => Outlook::Open,
            (_, State::Group | State::Running) => Outlook::Ready,
            _ => Outlook::Open,
        }
    }

    /// Says how an agent was lost: `db, which has failed: exit status 3`.
    fn loss(&self) -> String {
        let id = &self.spec.id;
        match (&self.down, &self.last) {
            (Some(down), _) if self.has_ended() => format!("{id}, which was terminated by {}", down.by),
            (Some(down), _) => format!("{id}, which is being terminated by {}", down.by),
            (None, Some(last)) => format!("{id}, which has failed: {last}"),
            (None, None) => format!("{id}, which has failed"),
        }
    }
}

impl Machine {
    /// Enters an agent into the books of those that it starts after.
    pub(super) fn follow(&mut self, key: AgentKey) {
        let spec = self.agents[&key].spec.clone();
        for id in &spec.after {
            self.followers.entry(id.clone()).or_default().insert(key);
        }
    }

    /// Takes an agent that is dropped out of these books.
    pub(super) fn unfollow(&mut self, agent: &Agent) {
        for id in &agent.spec.after {
            if let Some(followers) = self.followers.get_mut(id) {
                followers.remove(&agent.key);
                if followers.is_empty() {
                    self.followers.remove(id);
                }
            }
        }
    }

    /// Walks over the agents that start after whoever has this name.
    pub(super) fn followers(&self, id: &AgentId) -> impl Iterator<Item = AgentKey> {
        self.followers.get(id).into_iter().flatten().copied()
    }

    /// Walks over those of these names that there are.
    pub(super) fn followed<'a>(&'a self, after: &'a BTreeSet<AgentId>) -> impl Iterator<Item = &'a Agent> {
        after.iter().filter_map(|id| self.agents.get(self.ids.get(id)?).map(Box::as_ref))
    }

    /// Walks over the agents that the next start of one waits for.
    pub(super) fn awaited<'a>(&'a self, agent: &'a Agent) -> impl Iterator<Item = &'a Agent> {
        self.followed(&agent.spec.after).filter(|it| it.current_outlook() != Outlook::Ready)
    }

    /// Says whether all that an agent starts after is ready.
    pub(super) fn can_follow(&self, agent: &Agent) -> bool {
        self.awaited(agent).next().is_none()
    }

    /// Says whether an agent, or one above it that goes first, waits for those that it starts after.
    pub(super) fn is_held_by_others(&self, key: AgentKey) -> bool {
        let mut chain = std::iter::once(key).chain(self.ancestors(key)).map(|key| &self.agents[&key]);
        chain.any(|agent| matches!(agent.phase, Phase::Held) && !self.can_follow(agent))
    }

    /// Has those looked at again that start after an agent, and those below them, if it promises something else than before.
    pub(super) fn note_outlook(&mut self, key: AgentKey) {
        let Some(agent) = self.agents.get_mut(&key) else { return };
        let outlook = agent.current_outlook();
        if std::mem::replace(&mut agent.outlook, outlook) == outlook {
            return;
        }
        let followers: Vec<_> = self.followers(&self.agents[&key].spec.id).collect();
        for follower in followers {
            self.dirty.insert(follower);
            self.dirty.extend(self.agents[&follower].children.iter().copied());
        }
    }

    /// Has those looked at again that an agent starts after: it does not run any more, and they end after it.
    pub(super) fn wake_followed(&mut self, key: AgentKey) {
        let followed: Vec<_> = self.followed(&self.agents[&key].spec.after).map(|it| it.key).collect();
        self.dirty.extend(followed);
    }

    /// Fails an agent that waits for one that is lost; says whether it does.
    pub(super) fn settle_lost(&mut self, step: &mut Step, key: AgentKey) -> bool {
        let lost = self.followed(&self.agents[&key].spec.after).find(|it| it.current_outlook() == Outlook::Lost);
        let Some(loss) = lost.map(Agent::loss) else { return false };
        self.cannot_follow(step, key, &loss);
        true
    }

    /// Fails those that wait for a lost agent which is about to be dropped.
    pub(super) fn lose_followers(&mut self, step: &mut Step, key: AgentKey) {
        let agent = &self.agents[&key];
        if agent.current_outlook() != Outlook::Lost {
            return;
        }
        let loss = agent.loss();
        let waits = |key: &AgentKey| {
            let agent = &self.agents[key];
            matches!(agent.phase, Phase::Held | Phase::Queued) && agent.down.is_none()
        };
        let waiting: Vec<_> = self.followers(&agent.spec.id).filter(waits).collect();
        for follower in waiting {
            self.cannot_follow(step, follower, &loss);
        }
    }

    /// Fails an agent that can never start. Its own policy is not asked: another try would find the same.
    fn cannot_follow(&mut self, step: &mut Step, key: AgentKey, loss: &str) {
        let mut record = ExitRecord::new(Cause::Dependency);
        let why = format!("it starts after {loss}");
        let agent = self.agent_mut(key);
        if let Some(reply) = agent.reply.take() {
            let error = Error::new(Code::WrongState, format!("start {}: {why}", agent.spec.id));
            step.reply(reply, Err(error));
        }
        record.error = Some(why);
        let agent = self.agent_mut(key);
        agent.last = Some(Box::new(record.clone()));
        agent.ended = Some(step.now);
        if self.agents[&key].is_end_told() {
            // Its last run's end is told; that there is no next one is not.
            self.publish(step, Kind::GaveUp, key, |event| event.message = record.to_string());
        }
        if let Phase::Queued = self.agents[&key].phase {
            // What is below it is queued, too, and has to go first: it has no place in which it could linger.
            let by = format!("the end of {}", self.agents[&key].spec.id).into();
            let children: Vec<_> = self.agents[&key].children.iter().copied().collect();
            if !children.is_empty() {
                self.begin_stop(step, &children, None, &by, None);
            }
            let mut below = self.subtree(key).split_off(1);
            while let Some(key) = below.pop() {
                self.settle(step, key);
            }
        }
        self.has_ended_for_good(step, key, Outcome::Failed, &record);
    }

    /// Refuses a spawn that would wait for nobody, for one that is lost, or for itself.
    pub(super) fn check_after(&self, spec: &AgentSpec) -> Result<(), Error> {
        for id in &spec.after {
            let Some(key) = self.ids.get(id) else {
                let message = format!("spawn {}: it is to start after {id}, and no agent is called that", spec.id);
                return Err(
                    Error::new(Code::NoSuchAgent, message).remedy(format!("spawn {id} first, or do not name it"))
                );
            };
            refuse_lost("spawn", &spec.id, &self.agents[key])?;
        }
        let Some(circle) = self.circle(spec) else { return Ok(()) };
        let message = format!("spawn {}: its start would wait for itself: {circle}", spec.id);
        Err(Error::new(Code::BadValue, message).remedy("choose another id, or start after others"))
    }

    /// Refuses to have a name that is used again wait for room, while somebody holds a place that starts after it.
    pub(super) fn check_followers(&self, id: &AgentId, why: &Error) -> Result<(), Error> {
        let mut followers = self.followers(id).map(|key| &self.agents[&key]);
        let Some(holder) = followers.find(|it| it.is_admitted()) else { return Ok(()) };
        let holder = &holder.spec.id;
        let message =
            format!("{}; and {id} cannot wait for room: {holder}, which starts after it, has a place", why.message);
        Err(Error::new(Code::BoundReached, message)
            .remedy(format!("wait until another one ends, or end {holder} first")))
    }

    /// Refuses a start that is asked for and could not be.
    pub(super) fn check_not_lost(&self, agent: &Agent) -> Result<(), Error> {
        let id = &agent.spec.id;
        for named in &agent.spec.after {
            match self.ids.get(named) {
                Some(key) => refuse_lost("restart", id, &self.agents[key])?,
                None if agent.run == Run(0) => {
                    let message = format!("restart {id}: it starts after {named}, which is not known any more");
                    return Err(Error::new(Code::NoSuchAgent, message).remedy(format!("spawn {named} first")));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Finds the shortest way on which the start of a new agent waits for itself, if there is one.
    fn circle(&self, spec: &AgentSpec) -> Option<String> {
        // Nobody is below it yet: it is waited for only if its name was used before.
        self.followers.get(&spec.id)?;
        let mut waits: BTreeMap<&AgentId, &AgentId> = BTreeMap::new();
        let mut open = VecDeque::from([spec]);
        while let Some(waiter) = open.pop_front() {
            for id in waiter.after.iter().chain(&waiter.parent) {
                if waits.contains_key(id) {
                    continue;
                }
                waits.insert(id, &waiter.id);
                if *id == spec.id {
                    let way = std::iter::successors(Some(&waiter.id), |id| {
                        waits.get(id).copied().filter(|it| **it != spec.id)
                    });
                    let mut names: Vec<&str> = way.map(AgentId::as_str).collect();
                    names.reverse();
                    return Some(format!("{id} -> {} -> {id}", names.join(" -> ")));
                }
                open.extend(self.ids.get(id).map(|key| &*self.agents[key].spec));
            }
        }
        None
    }
}

fn refuse_lost(operation: &str, id: &AgentId, named: &Agent) -> Result<(), Error> {
    if named.current_outlook() != Outlook::Lost && named.down.is_none() {
        return Ok(());
    }
    let message = format!("{operation} {id}: it starts after {}", named.loss());
    Err(Error::new(Code::WrongState, message).remedy(format!("start {} first", named.spec.id)))
}

//! Who is let in: the bounds on the tree, what fits into what, and the queue.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::agent::{Agent, Phase};
use super::input::{AgentKey, Frost, ReplyTo};
use super::{Door, Machine, Step};
use crate::model::config::RETAINED_MOST;
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::id::{AgentId, Level, Priority};
use crate::model::limits::Limits;
use crate::model::request::Answer;
use crate::model::spec::{Admission, AgentSpec};

/// How many spawns may wait for admission.
const QUEUE_MOST: usize = 10_000;

impl Machine {
    /// Nothing can be written down any more: an agent that is let in now, the next daemon would know nothing of.
    pub(super) fn state_unwritable(&mut self, step: &mut Step, why: Arc<str>) {
        if self.unwritable.is_none() {
            let message = format!("{why}; deaths are reported and agents are ended all the same, new ones are refused");
            self.publish(step, Kind::StateStalled, None, |event| event.message = message);
        }
        self.unwritable = Some(why);
    }

    /// Everything is written down again.
    pub(super) fn state_writable(&mut self, step: &mut Step) {
        if self.unwritable.take().is_some() {
            self.publish(step, Kind::StateRecovered, None, |event| {
                event.message = "the state is written again".to_owned()
            });
        }
    }

    fn check_writable(&self) -> Result<(), Error> {
        let Some(why) = &self.unwritable else { return Ok(()) };
        let error =
            Error::new(Code::StateUnwritable, format!("no agent is started that could not be recovered: {why}"));
        Err(error.remedy("make room on the file system of the state directory, or wait until its disk answers"))
    }

    /// Admits, queues or refuses a spawn. What it can refuse, it refuses before anything is changed.
    pub(super) fn ask_spawn(&mut self, step: &mut Step, to: ReplyTo, spec: AgentSpec) -> Result<(), Error> {
        self.check_writable()?;
        let (parent, level) = self.place(&spec)?;
        let limits = self.limits_for(&spec, parent, level)?;
        self.check_counted(level, &limits)?;
        self.check_budget(&spec, parent)?;
        self.check_after(&spec)?;
        self.check_specs(&spec, parent)?;
        let room = self.room(&spec.after, parent, level, &limits);
        let is_queued = match (&room, spec.admission) {
            (Ok(()), _) => false,
            (Err(error), Admission::Queue) if self.queue.len() < QUEUE_MOST => {
                self.check_followers(&spec.id, error)?;
                true
            }
            (Err(error), _) => return Err(error.clone()),
        };
        let key = AgentKey(self.fresh());
        let agent = Agent::new(key, Arc::new(spec), parent, level, limits);
        self.ids.insert(agent.spec.id.clone(), key);
        if let Some(parent) = parent {
            let parent = self.agent_mut(parent);
            parent.children.insert(key);
            parent.live_children += 1;
        }
        let priority = agent.spec.priority;
        self.agents.insert(key, Box::new(agent));
        self.count_spec(key);
        self.follow(key);
        self.count_spawned(key, |count| count + 1);
        if is_queued {
            self.queue.insert((Reverse(priority), key));
            self.unrecorded.insert(key);
            self.publish(step, Kind::Queued, key, |event| {
                event.message = room.err().map(|error| error.message).unwrap_or_default();
            });
            let status = self.status(key, step.now.mono);
            step.reply(to, Ok(Answer::Agent(Box::new(status))));
        } else {
            self.count_in(key);
            self.agent_mut(key).reply = Some(to);
            self.enter(key, Phase::Held);
        }
        Ok(())
    }

    /// Finds where a new agent would stand.
    fn place(&self, spec: &AgentSpec) -> Result<(Option<AgentKey>, Level), Error> {
        spec.check()?;
        let refuse = |code, message: String| Err(Error::new(code, format!("spawn {}: {message}", spec.id)));
        if self.door != Door::Open {
            return refuse(Code::ShuttingDown, "the herd is being ended".to_owned());
        }
        if let Some(other) = self.ids.get(&spec.id) {
            let state = self.agents[other].state();
            let error = Error::new(
                Code::DuplicateId,
                format!("spawn {0}: an agent {0} exists already, it is {state}", spec.id),
            );
            return Err(error.remedy(if state.has_ended() {
                format!("`treeherd cleanup {}` frees the id", spec.id)
            } else {
                "choose another id".to_owned()
            }));
        }
        let parent = match &spec.parent {
            None => None,
            Some(id) => Some(self.parent(&spec.id, id)?),
        };
        if spec.significant && parent.is_none() {
            let error = Error::new(
                Code::BadValue,
                format!("spawn {}: significant: it has no parent that could end with it", spec.id),
            );
            return Err(error.remedy("give it a parent, or drop significant"));
        }
        let level = parent.map_or(Level(0), |parent| self.agents[&parent].level.below());
        if let Some(stated) = spec.level.filter(|stated| *stated != level) {
            return refuse(Code::WrongLevel, format!("level {stated} is stated, by its parent it is {level}"));
        }
        let most = self.config.bounds.max_levels;
        if level.0 >= most {
            return Err(bound(&spec.id, "max_levels", most.into(), &format!("it would stand at level {level}")));
        }
        if self.retained.len() >= RETAINED_MOST && !self.config.auto_cleanup {
            let message =
                format!("spawn {}: {RETAINED_MOST} ended agents are retained, the most there may be", spec.id);
            return Err(Error::new(Code::BoundReached, message).remedy("`treeherd cleanup --all` forgets them"));
        }
        Ok((parent, level))
    }

    fn parent(&self, id: &AgentId, parent: &AgentId) -> Result<AgentKey, Error> {
        let Some(key) = self.ids.get(parent).copied() else {
            let error = Error::new(Code::NoSuchParent, format!("spawn {id}: no agent is called {parent}"));
            return Err(error.remedy("spawn or register the parent first"));
        };
        let agent = &self.agents[&key];
        if !agent.takes_children() {
            let message = format!("spawn {id}: its parent {parent} is {}", agent.state());
            return Err(Error::new(Code::NoSuchParent, message).remedy("choose a parent that lives"));
        }
        Ok(key)
    }

    /// Refuses a spawn below an agent whose budget is used up, and a budget that is wider than one above it.
    fn check_budget(&self, spec: &AgentSpec, parent: Option<AgentKey>) -> Result<(), Error> {
        let chain = parent.into_iter().flat_map(|parent| std::iter::once(parent).chain(self.ancestors(parent)));
        for above in chain.map(|key| &self.agents[&key]) {
            let Some(most) = above.spec.spawn_budget else { continue };
            if above.spawned >= most {
                let why = format!("{} agents were spawned below {}, for good", above.spawned, above.spec.id);
                let error = Error::new(
                    Code::BoundReached,
                    format!("spawn {}: spawn_budget = {most} is reached: {why}", spec.id),
                );
                return Err(error.remedy("restart an agent that has ended, or choose another parent"));
            }
            if let Some(own) = spec.spawn_budget.filter(|own| *own > most) {
                let message =
                    format!("spawn {}: spawn_budget = {own} is wider than the {most} of {}", spec.id, above.spec.id);
                return Err(Error::new(Code::LimitTooWide, message).remedy(format!("use {most} or less")));
            }
        }
        Ok(())
    }

    /// Counts an agent in the lifetime budgets of all above it. One that is taken back was never spawned.
    pub(super) fn count_spawned(&mut self, key: AgentKey, change: fn(u32) -> u32) {
        let chain: Vec<_> = self.ancestors(key).collect();
        for above in chain {
            let agent = self.agent_mut(above);
            if agent.spec.spawn_budget.is_some() {
                agent.spawned = change(agent.spawned);
                self.unrecorded.insert(above);
            }
        }
    }

    /// Says whether there is room for one more agent, or which bound leaves none.
    pub(super) fn room(
        &self,
        after: &BTreeSet<AgentId>,
        parent: Option<AgentKey>,
        level: Level,
        limits: &Limits,
    ) -> Result<(), Error> {
        let bounds = &self.config.bounds;
        let at_level = self.levels.get(&level).map_or(0, |agents| agents.len());
        let full = |name: &str, most: u32, of: &str| {
            let error = Error::new(Code::BoundReached, format!("{name} = {most} is reached: {of}"));
            Err(error.remedy(format!("wait until one ends, ask for admission = \"queue\", or raise {name}")))
        };
        // Whoever holds a place while it waits for one that has none could hold the last one.
        let mut before = parent.map(|parent| &*self.agents[&parent]).into_iter().chain(self.followed(after));
        if let Some(first) = before.find(|it| matches!(it.phase, Phase::Queued)) {
            let is_parent = parent == Some(first.key);
            let whose = if is_parent { "its parent " } else { "it starts after " };
            let message = format!("{whose}{}, which waits for room itself", first.spec.id);
            let remedy = format!("wait until {} is admitted, or ask for admission = \"queue\"", first.spec.id);
            return Err(Error::new(Code::BoundReached, message).remedy(remedy));
        }
        if self.admitted >= bounds.max_agents {
            return full("max_agents", bounds.max_agents, &format!("the herd has {} agents", self.admitted));
        }
        if at_level >= bounds.max_agents_per_level as usize {
            return full(
                "max_agents_per_level",
                bounds.max_agents_per_level,
                &format!("level {level} has {at_level} agents"),
            );
        }
        let crowded =
            parent.map(|parent| &self.agents[&parent]).filter(|it| it.admitted_children >= bounds.max_children);
        if let Some(parent) = crowded {
            let of = format!("{} has {} children", parent.spec.id, parent.admitted_children);
            return full("max_children", bounds.max_children, &of);
        }
        self.total_room(level, limits, None)
    }

    /// Counts an agent against the bounds.
    pub(super) fn count_in(&mut self, key: AgentKey) {
        let (level, parent) = (self.agents[&key].level, self.agents[&key].parent);
        self.levels.entry(level).or_default().insert(key);
        self.admitted += 1;
        if let Some(parent) = parent {
            self.agent_mut(parent).admitted_children += 1;
        }
    }

    /// Gives an agent's room back.
    pub(super) fn count_out(&mut self, key: AgentKey) {
        let (level, parent) = (self.agents[&key].level, self.agents[&key].parent);
        if let Some(agents) = self.levels.get_mut(&level) {
            agents.remove(&key);
        }
        self.admitted -= 1;
        if let Some(parent) = parent {
            self.agent_mut(parent).admitted_children -= 1;
        }
        self.queue_moved = true;
    }

    /// Lets in the most urgent one that there is room for now, and asks to be called again.
    pub(super) fn settle_queue(&mut self, step: &mut Step) {
        let has_room = |(_, key): &&(Reverse<Priority>, AgentKey)| {
            let agent = &self.agents[key];
            agent.down.is_none() && self.room(&agent.spec.after, agent.parent, agent.level, &agent.limits).is_ok()
        };
        let Some(entry) = self.queue.iter().find(has_room).copied() else { return };
        let (_, key) = entry;
        self.queue.remove(&entry);
        self.count_in(key);
        self.enter(key, Phase::Held);
        self.settle(step, key);
        // Whoever waits for its parent to be let in may come before others now.
        self.queue_moved = true;
    }

    /// Says whether a held agent can be started now.
    pub(super) fn may_start(&self, key: AgentKey) -> bool {
        use super::agent::Home::{Made, Making, None};
        let agent = &self.agents[&key];
        let parent_is_ready = agent.parent.is_none_or(|parent| {
            let parent = &self.agents[&parent];
            // Where both start anew, the parent is first.
            let waits = parent.turn.is_some() || matches!(parent.phase, Phase::Held) && !self.can_follow(parent);
            let goes_first = matches!(parent.phase, Phase::Spawning { .. }) || waits;
            parent.home == Made && parent.nursery != Making && !goes_first
        });
        // What is made gets limits that the kernel has not refused.
        let limits_are_known = agent.home == Made || self.changes.is_empty();
        let is_free = matches!(agent.home, None | Made) && self.can_follow(agent);
        parent_is_ready && is_free && limits_are_known && !self.is_held_by_frost(key)
    }

    /// Says whether a spawn would enter a frozen cgroup, or one that is about to be frozen.
    pub(super) fn is_held_by_frost(&self, key: AgentKey) -> bool {
        std::iter::once(key).chain(self.ancestors(key)).any(|key| {
            let freezer = &self.agents[&key].freezer;
            freezer.wanted() == Frost::Frozen || freezer.written == Frost::Frozen || freezer.ordered.is_some()
        })
    }
}

fn bound(id: &AgentId, name: &str, most: u32, why: &str) -> Error {
    Error::new(Code::BoundReached, format!("spawn {id}: {name} = {most} is reached: {why}"))
        .remedy(format!("choose a parent nearer to the root, or raise {name}"))
}

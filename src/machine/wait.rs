//! Clients that wait for agents to end, or to be forgotten. What an agent's end costs does not depend on how many wait for others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::input::{AgentKey, ReplyTo};
use super::{Machine, Step};
use crate::model::error::Error;
use crate::model::id::AgentId;
use crate::model::request::Answer;
use crate::model::status::AgentStatus;

/// All who wait.
#[derive(Debug, Default)]
pub(super) struct Waits {
    all: BTreeMap<u64, Wait>,
    /// Who waits for each agent.
    about: BTreeMap<AgentKey, BTreeSet<u64>>,
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Wait {
    reply: ReplyTo,
    until: Until,
    order: Vec<AgentKey>,
    pending: BTreeSet<AgentKey>,
    /// How those are that need not be waited for any more; shared by all who wait for the same one.
    done: BTreeMap<AgentKey, Arc<AgentStatus>>,
}

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    Ended,
    Forgotten,
}

impl Wait {
    pub fn new(reply: ReplyTo, until: Until, order: Vec<AgentKey>, pending: BTreeSet<AgentKey>) -> Self {
        Self { reply, until, order, pending, done: BTreeMap::new() }
    }

    fn answer(&self) -> Answer {
        Answer::Agents(self.order.iter().filter_map(|key| self.done.get(key).cloned()).collect())
    }
}

impl Waits {
    fn insert(&mut self, number: u64, wait: Wait) {
        for key in &wait.pending {
            self.about.entry(*key).or_default().insert(number);
        }
        self.all.insert(number, wait);
    }

    fn remove(&mut self, number: u64) -> Option<Wait> {
        let wait = self.all.remove(&number)?;
        for key in &wait.pending {
            self.forget(*key, number);
        }
        Some(wait)
    }

    fn forget(&mut self, key: AgentKey, number: u64) {
        if let Some(about) = self.about.get_mut(&key) {
            about.remove(&number);
            if about.is_empty() {
                self.about.remove(&key);
            }
        }
    }
}

impl Machine {
    pub(super) fn departed(&mut self, client: u64) {
        let theirs = self.waits.all.iter().filter(|(_, wait)| wait.reply.client == client);
        for number in theirs.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.waits.remove(number);
        }
    }

    pub(super) fn ask_wait(&mut self, step: &mut Step, to: ReplyTo, ids: &[AgentId]) -> Result<(), Error> {
        let mut order = ids.iter().map(|id| self.find(id)).collect::<Result<Vec<_>, _>>()?;
        // Who is named twice is told of once.
        let mut seen = BTreeSet::new();
        order.retain(|key| seen.insert(*key));
        let (ended, pending): (Vec<_>, Vec<_>) = order.iter().partition(|key| self.agents[key].has_ended());
        let mut wait = Wait::new(to, Until::Ended, order, pending.into_iter().collect());
        wait.done.extend(ended.into_iter().map(|key| (key, Arc::new(self.status(key, step.now.mono)))));
        self.add_wait(step, wait);
        Ok(())
    }

    pub(super) fn add_wait(&mut self, step: &mut Step, wait: Wait) {
        if wait.pending.is_empty() {
            step.reply(wait.reply, Ok(wait.answer()));
        } else {
            let number = self.fresh();
            self.waits.insert(number, wait);
        }
    }

    /// Tells those who wait for this of an agent that it is so, and answers whoever waits for nobody any more.
    pub(super) fn settle_waits(&mut self, step: &mut Step, until: Until, key: AgentKey) {
        let Some(about) = self.waits.about.get(&key) else { return };
        let numbers: Vec<u64> = about.iter().copied().filter(|it| self.waits.all[it].until == until).collect();
        if numbers.is_empty() {
            return;
        }
        let status = Arc::new(self.status(key, step.now.mono));
        for number in numbers {
            self.waits.forget(key, number);
            let Some(wait) = self.waits.all.get_mut(&number) else { continue };
            wait.pending.remove(&key);
            wait.done.insert(key, status.clone());
            if wait.pending.is_empty()
                && let Some(wait) = self.waits.remove(number)
            {
                step.reply(wait.reply, Ok(wait.answer()));
            }
        }
    }
}

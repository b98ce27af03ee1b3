//! How much memory specifications take: bounded for the herd, and for each root agent's subtree, so that none keeps the others out.

use std::collections::BTreeMap;

use super::Machine;
use super::input::AgentKey;
use crate::model::error::{Code, Error};
use crate::model::spec::AgentSpec;

/// How many bytes, as JSON, the specifications of all agents that are known may have: queued, living and retained ones.
const SPECS_MAX: usize = 256 << 20;

/// How many those of one root agent's subtree may have.
const SUBTREE_MAX: usize = 64 << 20;

/// The bytes that are taken.
#[derive(Debug, Default)]
pub(super) struct Account {
    all: usize,
    subtrees: BTreeMap<AgentKey, usize>,
    /// What each agent had when it was put on the account, and under which root agent: limits change later.
    agents: BTreeMap<AgentKey, (AgentKey, usize)>,
}

impl Account {
    fn add(&mut self, key: AgentKey, root: AgentKey, size: usize) {
        self.all += size;
        *self.subtrees.entry(root).or_default() += size;
        self.agents.insert(key, (root, size));
    }

    /// Takes an agent that is dropped off the account.
    pub fn remove(&mut self, key: AgentKey) {
        let Some((root, size)) = self.agents.remove(&key) else { return };
        self.all -= size;
        if let Some(subtree) = self.subtrees.get_mut(&root) {
            *subtree -= size;
            if *subtree == 0 {
                self.subtrees.remove(&root);
            }
        }
    }
}

impl Machine {
    /// Refuses a specification that there is no room for.
    pub(super) fn check_specs(&self, spec: &AgentSpec, parent: Option<AgentKey>) -> Result<(), Error> {
        let size = spec.size();
        let subtree = parent.and_then(|parent| self.specs.subtrees.get(&self.root_of(parent))).copied().unwrap_or(0);
        let refused = |of: &str, taken: usize, most: usize| {
            let message = format!(
                "spawn {}: the specifications of {of} have {taken} bytes already, {size} more are beyond the {most} that are allowed",
                spec.id
            );
            Err(Error::new(Code::BoundReached, message).remedy("clean up ended agents, or put large values into files"))
        };
        if subtree + size > SUBTREE_MAX {
            return refused("its root agent's subtree", subtree, SUBTREE_MAX);
        }
        if self.specs.all + size > SPECS_MAX {
            return refused("all agents", self.specs.all, SPECS_MAX);
        }
        Ok(())
    }

    /// Puts an agent on the account.
    pub(super) fn count_spec(&mut self, key: AgentKey) {
        let size = self.agents[&key].spec.size();
        self.specs.add(key, self.root_of(key), size);
    }

    fn root_of(&self, key: AgentKey) -> AgentKey {
        self.ancestors(key).last().unwrap_or(key)
    }
}

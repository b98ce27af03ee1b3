//! The tree file: a herd's bounds and limits, and its agents, in TOML. Text in; a [`Tree`] or **every** mistake out.
//!
//! ```toml
//! [herd]                                # bounds, times, limits over all agents together
//! max_levels = 4
//! limits = { memory_max = "1GiB" }
//! [levels.1]
//! each = { memory_max = "256MiB" }      # for each agent of the level; also siblings, total
//! [defaults]                            # laid under every agent
//! grace = "5s"
//! [agents.boss]
//! command = "exec sleep 60"             # a text is for `sh -c`, a list is run as it is; neither makes a group
//! [agents.boss.agents.worker-1]         # a child by its place ...
//! command = ["sleep", "60"]
//! [agents.worker-2]
//! parent = "boss"                       # ... or by its parent's name
//! after = ["worker-1"]                  # is started when that one is ready or has completed
//! ```
//!
//! ```text
//! text ──toml──► spanned tables ──[read]──► drafts ──[family]──► levels ──[order, room, fit]──► Tree
//!                      └───────────────────────┴────────[mistakes]────┴────────────┴─────────► Vec<Mistake>
//! ```
//!
//! Single values are read by the same types that read requests, so nothing is understood in two ways. What is refused
//! here is what a herd of this file alone would refuse; what depends on the host (controllers, programs, users) is not
//! looked at.

mod family;
mod fit;
mod mistakes;
mod order;
mod read;
mod room;
mod schema;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;

use serde::Serialize;

use super::config::HerdConfig;
use super::spec::AgentSpec;
use mistakes::Mistakes;
pub use schema::schema;

/// The longest tree file, in bytes.
pub const TREE_MAX: usize = 16 << 20;

/// What a tree file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// The herd's bounds, limits and times.
    pub config: HerdConfig,
    /// The agents, parents before their children and those that others start after before those, otherwise in the file's order.
    pub agents: Vec<AgentSpec>,
}

/// Something that is wrong in a tree file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What helps.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl Tree {
    /// Reads a tree file.
    ///
    /// # Errors
    /// Every mistake in it, in the order of their places; never none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<Mistake>> {
        if bytes.len() > TREE_MAX {
            let mut mistakes = Mistakes::new("");
            let why = format!("the file is larger than {TREE_MAX} bytes");
            mistakes.add(&(0..0), why, "a tree file describes agents; large values belong into files of their own");
            return Err(mistakes.sorted());
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
            let mut mistakes = Mistakes::new(&good);
            let end = good.len()..good.len();
            mistakes.add(&end, "a byte here is not UTF-8", "a tree file is TOML, and TOML is UTF-8 text");
            mistakes.sorted()
        })?;
        let mut mistakes = Mistakes::new(text);
        let drafts = read::file(text, &mut mistakes);
        let family = family::Family::of(&drafts, &mut mistakes);
        let order = order::starts(&drafts.agents, &family, &mut mistakes);
        room::check(&drafts.agents, &family, &order, &drafts.config.bounds, &mut mistakes);
        fit::check(&drafts, &family, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes.sorted());
        }
        let agents = order.iter().map(|index| drafts.agents[*index].spec.clone()).collect();
        Ok(Self { config: drafts.config, agents })
    }

    /// Has every agent declared by a file.
    pub fn declare(&mut self, file: &str) {
        self.agents.iter_mut().for_each(|agent| agent.declared_by = Some(file.to_owned()));
    }

    /// Returns how many levels the agents stand on.
    #[must_use]
    pub fn depth(&self) -> usize {
        let mut levels = std::collections::BTreeMap::new();
        for agent in &self.agents {
            let level = agent.parent.as_ref().and_then(|parent| levels.get(parent)).map_or(0, |level| level + 1);
            levels.insert(&agent.id, level);
        }
        levels.values().max().map_or(0, |deepest| deepest + 1)
    }
}

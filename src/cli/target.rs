//! Whom a command is about: exactly one kind of address.

use clap::Args;

use crate::model::id::{AgentId, Level, SessionId};
use crate::model::request::Target;

/// Subtrees, one kind of address required.
#[derive(Args, Clone, Debug, PartialEq)]
#[group(required = true, multiple = false)]
pub(super) struct Targets {
    /// Agents, each with everything below it
    #[arg(value_name = "ID")]
    ids: Vec<AgentId>,
    /// Every agent of a level
    #[arg(long, value_name = "N")]
    level: Option<u16>,
    /// Every agent of a session
    #[arg(long, value_name = "SESSION")]
    session: Option<SessionId>,
    /// Every agent
    #[arg(long)]
    all: bool,
}

/// Agents, all of them if no address is given.
#[derive(Args, Clone, Debug, PartialEq)]
#[group(required = false, multiple = false)]
pub(super) struct Narrowing {
    /// Agents, each with everything below it
    #[arg(value_name = "ID")]
    ids: Vec<AgentId>,
    /// The agents of a level
    #[arg(long, value_name = "N")]
    level: Option<u16>,
    /// The agents of a session
    #[arg(long, value_name = "SESSION")]
    session: Option<SessionId>,
    /// The agents right below this one
    #[arg(long, value_name = "ID")]
    pub parent: Option<AgentId>,
}

/// One agent alone, or several.
#[derive(Args, Clone, Debug, PartialEq)]
#[group(required = true, multiple = false)]
pub(super) struct Speakers {
    /// One agent, without those below it
    #[arg(value_name = "ID")]
    id: Option<AgentId>,
    /// An agent with everything below it
    #[arg(long, value_name = "ID")]
    subtree: Option<AgentId>,
    /// Every agent of a level
    #[arg(long, value_name = "N")]
    level: Option<u16>,
    /// Every agent of a session
    #[arg(long, value_name = "SESSION")]
    session: Option<SessionId>,
    /// Every agent
    #[arg(long)]
    all: bool,
}

/// Whose output is read.
pub(super) enum Whose {
    /// One agent's.
    One(AgentId),
    /// That of many.
    Many(Target),
}

fn address(ids: Vec<AgentId>, level: Option<u16>, session: Option<SessionId>) -> Option<Target> {
    let of_level = level.map(|level| Target::Level(Level(level)));
    let of_ids = (!ids.is_empty()).then_some(Target::Ids(ids));
    of_ids.or(of_level).or(session.map(Target::Session))
}

impl Targets {
    /// Returns whom the request is about.
    pub(super) fn target(self) -> Target {
        // The parser let exactly one kind through: without the three others it is --all.
        address(self.ids, self.level, self.session).unwrap_or(Target::All)
    }
}

impl Speakers {
    /// Returns whose output is asked for.
    pub(super) fn whose(self) -> Whose {
        match self.id {
            Some(id) => Whose::One(id),
            None => {
                let ids = self.subtree.into_iter().collect();
                Whose::Many(address(ids, self.level, self.session).unwrap_or(Target::All))
            }
        }
    }
}

impl Narrowing {
    /// Returns whom the request is about, if not everybody.
    pub(super) fn target(self) -> Option<Target> {
        address(self.ids, self.level, self.session)
    }
}

//! What can be asked of the herd that changes it, and what is answered.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::applied::Applied;
use super::id::{AgentId, Level, SessionId};
use super::limits::{Knob, Limits};
use super::spec::AgentSpec;
use super::status::{AgentStatus, Receipt};

/// Whom a request is about. An agent stands for its whole subtree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// These agents.
    Ids(Vec<AgentId>),
    /// Every agent of a level.
    Level(Level),
    /// Every agent of a session.
    Session(SessionId),
    /// Every agent.
    All,
}

/// Whose limits are changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitScope {
    /// One agent's, over its subtree.
    Agent(AgentId),
    /// Those that a level gives to each of its agents that has not its own.
    Each(Level),
    /// Those over all children of one parent together, for every parent above this level.
    Siblings(Level),
    /// Those over the sum of the level's own limits.
    Total(Level),
    /// The whole herd's.
    Herd,
}

/// A request that the machine decides upon.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Start an agent, or register a group if it has no command.
    Spawn(Box<AgentSpec>),
    /// Freeze subtrees.
    Pause(Target),
    /// Thaw subtrees.
    Resume(Target),
    /// End subtrees: stop signal, grace (the agent's own if none is given), kill. A grace of 0 is the kill alone.
    Terminate(Target, Option<Duration>),
    /// Change limits.
    Limit(LimitScope, Limits),
    /// Change limits, and take these back: what is inherited, or what the level gives, holds in their place.
    Lift(LimitScope, Limits, Vec<Knob>),
    /// Remember what an applied file has given.
    Declare(String, Applied),
    /// End an agent's run and start the next one.
    Restart(AgentId),
    /// Answer when all of these have ended.
    Wait(Vec<AgentId>),
    /// Forget ended agents, their records and their output, now.
    Cleanup(Target),
    /// End everything, then the supervisor.
    Shutdown(Option<Duration>),
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The agent that was spawned, registered or restarted.
    Agent(Box<AgentStatus>),
    /// The agents that a request was about, as they are now.
    Agents(Vec<Arc<AgentStatus>>),
    /// What a terminate did.
    Receipt(Receipt),
    /// The limits that are in force now.
    Limits(Limits),
    /// It is done.
    Done,
}

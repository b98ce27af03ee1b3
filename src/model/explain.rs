//! Why an agent is as it is, and what comes next: the shape that `explain` answers with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::AgentId;
use super::status::State;

/// Why an agent is in its state, in sentences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Whose.
    pub id: AgentId,
    /// Where it stands in its life.
    pub state: State,
    /// What has led to it, the nearest cause first.
    pub because: Vec<String>,
    /// What has to happen before it can go on; nothing if it just runs or has ended.
    pub waiting_for: Vec<String>,
    /// What will happen by itself, the soonest first; then what would happen if.
    pub next: Vec<Next>,
}

/// Something that will happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Next {
    /// What, in a sentence.
    pub what: String,
    /// In how many milliseconds at the latest; none if that does not depend on time alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_ms: Option<u64>,
}

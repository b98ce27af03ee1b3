//! placeholder replaced by the kernel helper's version
use std::fmt;

use serde::{Deserialize, Serialize};

/// The step at which a spawn failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Stage {
    Prepare,
    User,
    Cgroup,
    Clone,
    Enter,
    Session,
    Stdio,
    Rlimits,
    OomScoreAdj,
    Nice,
    Ionice,
    Groups,
    Gid,
    Uid,
    Cwd,
    Exec,
    Killed,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Why a spawn failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SpawnFailure {
    pub stage: Stage,
    pub errno: Option<i32>,
    pub message: String,
    pub remedy: Option<String>,
}

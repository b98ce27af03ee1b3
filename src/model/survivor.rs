//! A process that outlives its kill, or that no kill reaches: which one, where it is, and what holds it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many survivors of one agent are named.
pub const SURVIVORS_MAX: usize = 16;

/// A process that was killed and has not died.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Survivor {
    /// Its process id.
    pub pid: i32,
    /// Its name, as the kernel knows it: 15 bytes at most, escaped for a terminal.
    pub comm: String,
    /// The state of one of its threads that live, a letter of proc_pid_stat(5): `D` waits in the kernel and takes no signal.
    pub state: char,
    /// The kernel function in which that thread waits, where the kernel tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
    /// Its cgroup's path in cgroup2.
    pub place: String,
    /// What holds it.
    pub reason: SurvivalReason,
    /// The process that traces it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracer: Option<i32>,
}

/// Why a process that was killed has not died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SurvivalReason {
    /// A tracer holds it in its exit (`PTRACE_O_TRACEEXIT`) until the tracer lets it go on or ends.
    Traced,
    /// It is frozen in a freezer cgroup of version 1, where it takes no signal until it is thawed.
    FrozenV1,
    /// It waits in the kernel for a device or a file system, and takes no signal until that answers.
    Uninterruptible,
    /// Nothing that can be read holds it: its exit is under way, or the kernel did not take the signal.
    Unknown,
}

/// A process that was started in the herd, has left its cgroups and has lost its parents: it is a child of the supervisor, and no
/// kill of an agent reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outsider {
    /// Its process id.
    pub pid: i32,
    /// Its name, as the kernel knows it: 15 bytes at most, escaped for a terminal.
    pub comm: String,
    /// Its cgroup's path in cgroup2.
    pub place: String,
}

impl fmt::Display for Outsider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) in {}", self.pid, self.comm, self.place)
    }
}

impl fmt::Display for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wchan = self.wchan.as_deref().map(|wchan| format!(" in {wchan}")).unwrap_or_default();
        write!(f, "process {} ({}) in {}, state {}{wchan}", self.pid, self.comm, self.place, self.state)?;
        match (self.reason, self.tracer) {
            (SurvivalReason::Traced, Some(tracer)) => write!(f, ": held by its tracer, process {tracer}"),
            (SurvivalReason::Traced, None) => f.write_str(": held by its tracer"),
            (SurvivalReason::FrozenV1, _) => f.write_str(": frozen by a v1 freezer that is not ours"),
            (SurvivalReason::Uninterruptible, _) => f.write_str(": waits uninterruptibly in the kernel"),
            (SurvivalReason::Unknown, _) => Ok(()),
        }
    }
}

/// Names survivors in one sentence.
#[must_use]
pub fn sentence(survivors: &[Survivor]) -> String {
    if survivors.is_empty() {
        return "no process that can be named".to_owned();
    }
    survivors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

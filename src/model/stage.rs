//! The steps between a request and `exec`, and what a spawn that failed at one of them tells.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};

/// A step on the way from a request to a running program at which a spawn can fail. In the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Opening files and making ready what the child needs.
    Prepare,
    /// Looking up the user and the group.
    User,
    /// Making the leaf cgroup, its mirrors and their limits.
    Cgroup,
    /// Making the process, inside its leaf.
    Clone,
    /// Writing itself into a cgroup: the v1 mirrors, or the leaf where it could not be born there.
    Enter,
    /// Becoming the leader of a session of its own.
    Session,
    /// Putting stdin, stdout and stderr in their places.
    Stdio,
    /// Setting how much the OOM killer likes it.
    OomScoreAdj,
    /// Setting its CPU niceness.
    Nice,
    /// Setting its I/O priority.
    Ionice,
    /// Setting its resource limits.
    Rlimits,
    /// Giving up the gain of privileges by `exec`.
    NoNewPrivs,
    /// Setting its supplementary groups.
    Groups,
    /// Setting its group.
    Gid,
    /// Setting its user.
    Uid,
    /// Going to its working directory, as the user that it became.
    Cwd,
    /// Opening the file that is its standard input, as the user that it became.
    Stdin,
    /// Executing the program.
    Exec,
    /// Not a step: it was ended by a signal before it came to run the program (a deadline, the OOM killer, a terminate).
    Killed,
}

impl Stage {
    /// Every stage, in the order in which they are taken.
    pub const ALL: [Self; 19] = [
        Self::Prepare,
        Self::User,
        Self::Cgroup,
        Self::Clone,
        Self::Enter,
        Self::Session,
        Self::Stdio,
        Self::OomScoreAdj,
        Self::Nice,
        Self::Ionice,
        Self::Rlimits,
        Self::NoNewPrivs,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::Cwd,
        Self::Stdin,
        Self::Exec,
        Self::Killed,
    ];

    /// Returns the stage's name on the wire: `oom_score_adj`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::Clone => "clone",
            Self::Enter => "enter",
            Self::Session => "session",
            Self::Stdio => "stdio",
            Self::OomScoreAdj => "oom_score_adj",
            Self::Nice => "nice",
            Self::Ionice => "ionice",
            Self::Rlimits => "rlimits",
            Self::NoNewPrivs => "no_new_privs",
            Self::Groups => "groups",
            Self::Gid => "gid",
            Self::Uid => "uid",
            Self::Cwd => "cwd",
            Self::Stdin => "stdin",
            Self::Exec => "exec",
            Self::Killed => "killed",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A spawn that failed: where, with what, on what. Nothing of the process is left.
///
/// Shown as `exec /no/such: No such file or directory (ENOENT)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpawnFailure {
    /// The step that failed.
    pub stage: Stage,
    /// The kernel's error number, where the kernel said no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// The object and the cause: `/no/such: No such file or directory (ENOENT)`.
    pub message: String,
    /// What helps, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl fmt::Display for SpawnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.stage, self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for SpawnFailure {}

impl From<SpawnFailure> for Error {
    fn from(failure: SpawnFailure) -> Self {
        let code = match failure.stage {
            Stage::Exec => Code::ExecFailed,
            _ => Code::SpawnFailed,
        };
        let error = Self::new(code, format!("{} {}", failure.stage, failure.message));
        match failure.remedy {
            Some(remedy) => error.remedy(remedy),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_one_name_and_stands_in_its_order() {
        assert!(Stage::ALL.is_sorted());
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, index);
            assert_eq!(serde_json::to_string(&stage).unwrap(), format!("\"{stage}\""));
        }
    }

    #[test]
    fn a_failure_reads_as_operation_object_cause() {
        let failure = SpawnFailure {
            stage: Stage::Exec,
            errno: Some(2),
            message: "/no/such: No such file or directory (ENOENT)".to_owned(),
            remedy: None,
        };
        assert_eq!(failure.to_string(), "exec /no/such: No such file or directory (ENOENT)");
        assert_eq!(
            serde_json::to_string(&failure).unwrap(),
            r#"{"stage":"exec","errno":2,"message":"/no/such: No such file or directory (ENOENT)"}"#
        );
        let text = failure.to_string();
        let error = Error::from(failure);
        assert_eq!((error.code, error.to_string()), (Code::ExecFailed, text));
    }
}

//! What is: an agent's state, how its runs ended, what a terminate did. These are the shapes that programs read.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{AgentId, Level, Priority, Run, SessionId};
use super::limits::Limits;
use super::stage::Stage;
use super::survivor::{Outsider, Survivor};
use super::time::Wall;
use super::units::Bytes;

/// Where an agent stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has no command and is there for its children.
    Group,
    /// It waits for admission.
    Queued,
    /// It is on its way to being ready: its process is being made, waits for the agents that it starts after or for its paused
    /// subtree to be resumed, or has not told yet that it is ready.
    Starting,
    /// Its run is going on.
    Running,
    /// It is paused, by itself or with an agent above it: nothing of it runs, and all its times stand still.
    Paused,
    /// Its run is being ended.
    Stopping,
    /// Its run was killed and has not ended: a tracer, a v1 freezer or the kernel itself holds a process of it.
    Stuck,
    /// It waits for its next run.
    Backoff,
    /// It ended well on its own.
    Completed,
    /// It ended badly on its own.
    Failed,
    /// It ended because that was asked for.
    Terminated,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 11] = [
        Self::Group,
        Self::Queued,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stuck,
        Self::Backoff,
        Self::Completed,
        Self::Failed,
        Self::Terminated,
    ];

    /// Returns the state that is shown of an agent that is paused: a pause hides what would go on without it.
    #[must_use]
    pub fn in_a_pause(self) -> Self {
        match self {
            Self::Group | Self::Starting | Self::Running | Self::Backoff => Self::Paused,
            other => other,
        }
    }

    /// Says whether the agent has ended and will not run again by itself.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Terminated)
    }

    /// Returns the state's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stuck => "stuck",
            Self::Backoff => "backoff",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Terminated => "terminated",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Whether an agent is paused, and by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Paused {
    /// It is not.
    #[default]
    No,
    /// It was asked of this agent itself.
    Own,
    /// Only an agent above it is paused, and it with that one.
    Inherited,
}

impl Paused {
    /// Returns the word's text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Own => "own",
            Self::Inherited => "inherited",
        }
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The main process exited with a status.
    Exit,
    /// A signal killed the main process, and it was not ours.
    Signal,
    /// The OOM killer killed the main process.
    Oom,
    /// The program could not be started.
    Exec,
    /// It was asked for.
    Terminated,
    /// How it ended is not known: no daemon lived to see it, or the kernel did not tell.
    Lost,
    /// It ran for longer than its `run_timeout`, or went on for longer than its grace after it had said `STOPPING=1`.
    Timeout,
    /// A rule on pressure ended it: it was the one of the lowest priority.
    Pressure,
    /// A rule found a line in its output that means failure.
    Output,
    /// Its children failed: too often for its `children.intensity`, or a significant one for good.
    Child,
    /// It was not ready within its `ready_timeout`.
    Ready,
    /// Its heartbeat was missed.
    Watchdog,
    /// It wrote no output and used no CPU for as long as its `stall` rule allows.
    Stall,
    /// It could not be started: an agent that it starts after has ended for good without being ready.
    Dependency,
    /// Its restarts are used up, however its last run ended: status, signal and OOM kill are that run's.
    #[serde(rename = "given-up")]
    GivenUp,
}

impl Cause {
    /// Returns the cause's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::Oom => "oom",
            Self::Exec => "exec",
            Self::Terminated => "terminated",
            Self::Lost => "lost",
            Self::Timeout => "timeout",
            Self::Pressure => "pressure",
            Self::Output => "output",
            Self::Child => "child",
            Self::Ready => "ready",
            Self::Watchdog => "watchdog",
            Self::Stall => "stall",
            Self::Dependency => "dependency",
            Self::GivenUp => "given-up",
        }
    }

    /// Says whether it was found in a run that went on, which was ended for it.
    #[must_use]
    pub fn is_verdict(self) -> bool {
        match self {
            Self::Exit | Self::Signal | Self::Oom | Self::Exec | Self::Terminated | Self::Lost => false,
            Self::Dependency | Self::GivenUp => false,
            Self::Timeout | Self::Output | Self::Child | Self::Pressure => true,
            Self::Ready | Self::Watchdog | Self::Stall => true,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How the kernel says that a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this status.
    Status(i32),
    /// This signal killed it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether a core was dumped.
        core: bool,
    },
    /// Nobody knows: it ended while no daemon was there to ask.
    Unknown,
}

/// What a run used, from the kernel's account of its main process and those it waited for (wait4(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rusage {
    /// User CPU time in microseconds.
    pub user_us: u64,
    /// System CPU time in microseconds.
    pub system_us: u64,
    /// The largest resident set, in bytes. Not known of a process that never used more than the supervisor itself: the kernel
    /// counts in what it shared with it before `exec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rss_bytes: Option<u64>,
}

/// An OOM kill: whose limit was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Oom {
    /// The culprit: the nearest agent, itself or above, whose own limit was reached; `level-K of AGENT` for the limit on an
    /// agent's children together, `herd` for the herd's; `outside: DIRECTORY` for that of a cgroup which the herd is in; none if
    /// the host itself was out of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub culprit: Option<String>,
    /// That limit, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Who uses most of it, in bytes, right after the kill; a main process that was killed counts with the most that it had. None
    /// where no agent is below the culprit, or more is than can be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest: Option<Largest>,
}

/// Who uses most of what a limit above is about: the largest agent below the culprit with all below it, followed down as long as
/// one alone makes up more than half; or the culprit itself, if its own processes use more than any agent below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Largest {
    /// The agent.
    pub agent: AgentId,
    /// How much: bytes of memory, or tasks.
    pub amount: u64,
}

impl Largest {
    /// Says who it is, as the end of a message; `amount` has its unit.
    pub(crate) fn clause(&self, amount: impl fmt::Display) -> String {
        format!("; {} uses most: {amount}", self.agent)
    }
}

/// The record of a run's end. Every run has exactly one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExitRecord {
    /// Why it ended.
    pub cause: Cause,
    /// The main process's exit status, if it exited.
    pub status: Option<i32>,
    /// The signal that killed the main process, if one did: `SIGSEGV`.
    pub signal: Option<String>,
    /// Whether a core was dumped.
    pub core: bool,
    /// Whose limit was reached, if the OOM killer ended it.
    pub oom: Option<Oom>,
    /// At which step it failed to start, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// What failed in one sentence, where status and signal do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why the last run ended, where the cause is `given-up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_cause: Option<Cause>,
    /// What failed in the last run, where the cause is `given-up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Who asked for the end, if somebody did: `uid 0, pid 712`, `agent build`, `the daemon's shutdown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Whether it did not stop within its grace and was killed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overdue: bool,
    /// How many processes the main process left behind; some hundreds stand for that many or more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub descendants: u64,
    /// How many processes that were not its main one the OOM killer ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oom_kills: u64,
    /// How long the run lasted, paused time included, in milliseconds.
    pub run_ms: u64,
    /// How long the agent was paused during the run, in milliseconds.
    pub paused_ms: u64,
    /// What the main process used.
    #[serde(default)]
    pub rusage: Rusage,
    /// The last lines of its stderr, on a failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl ExitRecord {
    /// Makes a record with a cause and nothing else.
    #[must_use]
    pub fn new(cause: Cause) -> Self {
        Self {
            cause,
            status: None,
            signal: None,
            core: false,
            oom: None,
            stage: None,
            error: None,
            last_cause: None,
            last_error: None,
            by: None,
            overdue: false,
            descendants: 0,
            oom_kills: 0,
            run_ms: 0,
            paused_ms: 0,
            rusage: Rusage::default(),
            last_lines: Vec::new(),
        }
    }

    /// Gives it the cause for which the run was ended, whatever the main process itself ended with.
    pub fn judge(&mut self, cause: Cause, why: &str) {
        self.cause = cause;
        self.error = Some(why.to_owned());
        (self.last_cause, self.last_error) = (None, None);
    }

    /// Turns the record of a last run into that of an agent that is given up for this reason.
    pub(crate) fn give_up(&mut self, why: &str) {
        let (cause, error) = (self.cause, self.error.take());
        self.judge(Cause::GivenUp, why);
        (self.last_cause, self.last_error) = (Some(cause), error);
    }

    /// Returns the record of the run itself, whether or not the agent was given up after it.
    pub(crate) fn of_the_run(&self) -> Self {
        let Some(cause) = self.last_cause else { return self.clone() };
        Self { cause, error: self.last_error.clone(), last_cause: None, last_error: None, ..self.clone() }
    }

    /// Says whether the main process exited with status 0 on its own.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.cause == Cause::Exit && self.status == Some(0)
    }
}

impl fmt::Display for ExitRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.cause, self.status, &self.signal) {
            (Cause::Dependency, ..) => write!(f, "not started: {}", self.error.as_deref().unwrap_or("unknown error"))?,
            (Cause::GivenUp, ..) => {
                write!(f, "given up: {}", self.error.as_deref().unwrap_or("its restarts are used up"))?;
                if self.last_cause.is_some() {
                    write!(f, "; the last run: {}", self.of_the_run())?;
                }
            }
            (Cause::Exec, ..) => write!(f, "could not start: {}", self.error.as_deref().unwrap_or("unknown error"))?,
            (Cause::Oom, ..) => {
                f.write_str(self.error.as_deref().unwrap_or("killed by the OOM killer"))?;
                if let Some(Oom { culprit: Some(culprit), limit_bytes, largest }) = &self.oom {
                    write!(f, " at the limit of {culprit}")?;
                    if let Some(limit) = limit_bytes {
                        write!(f, " ({})", Bytes(*limit))?;
                    }
                    if let Some(largest) = largest {
                        f.write_str(&largest.clause(Bytes(largest.amount)))?;
                    }
                }
            }
            (Cause::Terminated, ..) => {
                f.write_str("terminated")?;
                if let Some(by) = &self.by {
                    write!(f, " by {by}")?;
                }
                if self.overdue {
                    f.write_str(", killed since it did not stop in time")?;
                }
            }
            (cause, ..) if cause.is_verdict() => {
                write!(f, "{cause}: {}", self.error.as_deref().unwrap_or("the cause is not known"))?;
            }
            (_, Some(status), _) => write!(f, "exit status {status}")?,
            (_, _, Some(signal)) => {
                write!(f, "killed by {signal}{}", if self.core { " (core dumped)" } else { "" })?;
            }
            _ => write!(f, "lost: {}", self.error.as_deref().unwrap_or("no daemon saw how it ended"))?,
        }
        if self.oom_kills > 0 && self.cause != Cause::Oom {
            write!(f, "; OOM kills in it: {}", self.oom_kills)?;
        }
        Ok(())
    }
}

/// An agent as `ps` shows it: these fields are stable, further ones may join.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentStatus {
    /// Its name.
    pub id: AgentId,
    /// The agent above it.
    pub parent: Option<AgentId>,
    /// How deep it stands.
    pub level: Level,
    /// The user's word for its kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its session.
    pub session: Option<SessionId>,
    /// How urgent it is.
    pub priority: Priority,
    /// Where it stands in its life.
    pub state: State,
    /// Whether it is paused, and by whom.
    pub paused: Paused,
    /// The main process of the run that is going on.
    pub pid: Option<i32>,
    /// The number of its last run.
    pub run: Run,
    /// Its cgroup's absolute path on cgroup2.
    pub cgroup: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How its last run ended; none while it has not ended.
    pub exit: Option<ExitRecord>,
    /// How many of its runs were restarts.
    pub restarts: u32,
    /// When its run began.
    pub started: Option<Wall>,
    /// When its last run ended.
    pub ended: Option<Wall>,
    /// What it waits for, and until when, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// What it last said of itself with `STATUS=`, as it said it: escape it before you show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_text: Option<String>,
    /// How many processes of its present or last run, other than its main one, the OOM killer has ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oom_kills: u64,
    /// The limits over its subtree: its own and those of its level.
    pub limits: Limits,
    /// What it can do, in the user's words.
    pub capabilities: Vec<String>,
    /// Anything else the user keeps with it.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// The agents right below it.
    pub children: Vec<AgentId>,
    /// How long it has been paused in this run, in milliseconds.
    pub paused_ms: u64,
}

/// What a terminate did: proof, not a promise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Receipt {
    /// One entry for every agent that was in the subtrees, parents before children.
    pub agents: Vec<AgentReceipt>,
    /// How many processes ended.
    pub processes: u64,
    /// How long it took until the last was gone, in milliseconds.
    pub ms: f64,
    /// Processes of the herd, whichever agent's, that live outside its cgroups and whose parents have ended; 16 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<Outsider>,
}

/// One agent's part of a [`Receipt`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentReceipt {
    /// Whose.
    pub id: AgentId,
    /// How many of its processes ended; 0 if it had none left.
    pub processes: u64,
    /// Which signals were sent, and how many processes ended after each: `{"SIGTERM": 2, "SIGKILL": 1}`.
    pub signals: BTreeMap<String, u64>,
    /// From the request until its cgroup was empty, in milliseconds.
    pub ms: f64,
    /// How many processes had outlived the kill when the time of the request was over: 0 when it ended well. At least 1 if
    /// the end of its run was not seen.
    pub survivors: u64,
    /// Those of them that can be named, 16 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alive: Vec<Survivor>,
}

/// Turns a duration into milliseconds for the wire.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

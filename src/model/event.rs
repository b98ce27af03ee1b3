//! What happened: one event for each thing that a user or a program may want to know, numbered without gaps.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{AgentId, Level, Run, SessionId};
use super::limits::Limits;
use super::rule::Found;
use super::status::{ExitRecord, Largest, Oom};
use super::time::Wall;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What kind of thing happened. The text is stable; further kinds may join.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Kind {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the kind's text.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

kinds! {
    /// A daemon began (again) to supervise the herd.
    HerdStarted = "herd:started",
    /// The herd is being ended; nothing is admitted any more.
    HerdStopping = "herd:stopping",
    /// A group has its cgroup.
    Registered = "process:registered",
    /// A spawn waits for admission.
    Queued = "process:queued",
    /// An agent is admitted and has its cgroup.
    Spawned = "process:spawned",
    /// A daemon goes on with an agent of the one before it.
    Adopted = "process:adopted",
    /// A run's program is executing.
    Started = "process:started",
    /// A run has told that it is ready; how long that took and how it told is in the message.
    Ready = "process:ready",
    /// A run's main process exited and left descendants; the run's own end follows.
    Exited = "process:exited",
    /// A run ended badly on its own.
    Failed = "process:failed",
    /// A run ended well on its own.
    Completed = "process:completed",
    /// A run ended because that was asked for.
    Terminated = "process:terminated",
    /// An agent is being ended, on request.
    Stopping = "process:stopping",
    /// An agent did not stop within its grace: it is killed.
    Overdue = "process:overdue",
    /// An agent was killed and has not ended within `kill_timeout`: which processes live on, where and why, is in the message.
    Stuck = "process:stuck",
    /// An agent's subtree is seen frozen.
    Paused = "process:paused",
    /// An agent's subtree goes on.
    Resumed = "process:resumed",
    /// A next run is due.
    Restarting = "process:restarting",
    /// A restart waits for its turn: the herd restarts more than its `restart_rate` allows.
    Delayed = "process:delayed",
    /// An agent fails for its children: what they did, and how often, is in the message.
    Escalated = "process:escalated",
    /// An agent is not started again, though its policy would: the reason is in the message.
    GaveUp = "process:gave-up",
    /// The OOM killer killed a process.
    Oom = "process:oom",
    /// A limit was hit: forks were refused, or something was slowed down. That goes on may be told after 1 s, 2 s, 4 s and so on,
    /// after 5 minutes at most, with all hits until then.
    Limit = "process:limit",
    /// A run has written no output and used no CPU, with no agent below it running: told at half of the time that its `stall`
    /// rule gives it, and at all of it. For how long is in `quiet_ms`.
    Stalled = "process:stalled",
    /// A run that was told to be stalled does something again, or waits for an agent below it.
    Stirred = "process:stirred",
    /// A rule has found a line in the output; or output was gone before the rules had looked at it.
    Notice = "process:notice",
    /// A process that empties output pipes has ended; another one takes its place.
    KeeperLost = "output:keeper-lost",
    /// Limits were changed.
    LimitsChanged = "process:limits-changed",
    /// Processes do not die or do not freeze; which ones, and where they hang, is in the message.
    Lagging = "process:lagging",
    /// An ended agent, its record and its output are gone; its id is free again.
    Removed = "process:removed",
    /// Tasks stood still for longer than a rule on pressure allows.
    PressureRose = "pressure:rose",
    /// `memory.high` was set below what is used, by a rule on pressure.
    PressureTightens = "pressure:tightens",
    /// An agent is paused by a rule on pressure.
    PressurePauses = "pressure:pauses",
    /// An agent is resumed that a rule on pressure had paused.
    PressureResumes = "pressure:resumes",
    /// An agent is ended by a rule on pressure.
    PressureTerminates = "pressure:terminates",
    /// The pressure that a rule is about is gone, and everything that the rule had done, but the ends, is undone.
    PressureGone = "pressure:gone",
    /// Restarts begin to wait for their turn.
    Storm = "herd:storm",
    /// No restart waits for its turn any more.
    Calm = "herd:calm",
    /// The state directory cannot be written: its disk stalls or is full. Deaths are reported and agents are ended all the same,
    /// new ones are refused; events wait in memory. Why is in the message.
    StateStalled = "state:stalled",
    /// The state directory can be written again, and everything that waited for that is written.
    StateRecovered = "state:recovered",
    /// Files of the state directory were deleted by somebody and are re-created: which ones is in the message.
    StateRestored = "state:restored",
    /// An agent asked for something that it may not.
    Forbidden = "request:forbidden",
    /// A death was told later than the bound.
    Late = "detection:late",
    /// The kernel gives no watch on an agent's output: output that is not watched is looked at by the clock. Told when that begins,
    /// and again only after all was watched.
    Unwatched = "watch:degraded",
}

impl Kind {
    /// Says whether a run ends with this event.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Terminated)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A limit that was hit, by the kernel's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hit {
    /// The culprit: the agent whose own limit it is; `level-K of AGENT` for the limit on an agent's children together, `herd` for
    /// the herd's; `outside: DIRECTORY` for that of a cgroup which the herd is in.
    pub culprit: String,
    /// How often it was hit since that was told last.
    pub hits: u64,
    /// How often it was hit since it was set, or since the daemon began, this event's hits included.
    pub total: u64,
    /// Who uses most of it now: bytes for the limits of memory, tasks for `pids_max`. None for `cpu_max`, where no agent is below
    /// the culprit, and where more is than can be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest: Option<Largest>,
}

/// An event: `seq`, `time`, `kind`, `agent`, `level` and `run` are always there, the rest where it applies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The number: 1 for the herd's first event, one more for each.
    pub seq: u64,
    /// When it was told.
    pub time: Wall,
    /// What happened.
    pub kind: Kind,
    /// To whom; none for the herd itself.
    pub agent: Option<AgentId>,
    /// The agent's level.
    pub level: Option<Level>,
    /// The agent's run.
    pub run: Option<Run>,
    /// The agent above it: whoever supervises its children filters by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<AgentId>,
    /// The agent's identity: a number that no other agent ever has. An id can belong to another agent later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_key: Option<u64>,
    /// The identity of the agent above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_key: Option<u64>,
    /// The agent's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
    /// Whose limit was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom: Option<Oom>,
    /// How long until the next run, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// For how long a run has done nothing, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_ms: Option<u64>,
    /// What a rule has found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Found>,
    /// How often a limit was hit, and whose it is; which one and its value is in `limits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit: Option<Hit>,
    /// The limits that are in force now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How many of the same this stands for, where it stands for many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What happened and why, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Event {
    /// Says what happened in a sentence, as it came: it may hold bytes that a terminal obeys. Empty where the kind says it all.
    #[must_use]
    pub fn sentence(&self) -> String {
        match &self.exit {
            Some(exit) if self.message.is_empty() => exit.to_string(),
            _ => self.message.clone(),
        }
    }

    /// Makes an event of the herd that is not numbered yet and says no more than that.
    #[must_use]
    pub fn new(time: Wall, kind: Kind) -> Self {
        Self {
            seq: 0,
            time,
            kind,
            agent: None,
            level: None,
            run: None,
            parent: None,
            agent_key: None,
            parent_key: None,
            session: None,
            pid: None,
            exit: None,
            oom: None,
            delay_ms: None,
            quiet_ms: None,
            found: None,
            hit: None,
            limits: None,
            count: None,
            message: String::new(),
        }
    }
}

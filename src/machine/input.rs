//! What comes in: requests, and facts in the past tense. What goes out: orders.
//!
//! Facts carry the [`AgentKey`] of the agent that they are about, which is never used twice, and the run: a fact that
//! comes late is about nobody and changes nothing.

use std::fmt;
use std::sync::Arc;

use super::stall::Sample;
use crate::model::error::Error;
use crate::model::event::Event;
use crate::model::id::Run;
use crate::model::limits::Limits;
use crate::model::note::Note;
use crate::model::record::{AgentRecord, HerdRecord};
use crate::model::request::{Answer, Request};
use crate::model::rule::Found;
use crate::model::spec::{AgentSpec, StopSignal, StopSignalTo};
use crate::model::stage::SpawnFailure;
use crate::model::status::{Exit, Oom, Rusage};
use crate::model::survivor::Survivor;
use crate::model::time::{Monotonic, Wall};

/// An agent's identity within one daemon's life: never used twice. (An id is used again, a pid is no identity at all.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentKey(pub u64);

impl fmt::Display for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The time of a step, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For waits and durations.
    pub mono: Monotonic,
    /// For people.
    pub wall: Wall,
}

/// Whom to answer: a client, and which of its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplyTo {
    /// The client.
    pub client: u64,
    /// Its call.
    pub call: u64,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// As people read it: `uid 0, pid 712`.
    pub name: Arc<str>,
    /// The agent that the asking process belongs to: it may act only below itself.
    pub agent: Option<AgentKey>,
    /// The user and the group of the asking process, where it is one.
    pub user: Option<(u32, u32)>,
}

/// Whether a cgroup runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Frost {
    /// It runs.
    #[default]
    Thawed,
    /// It is frozen.
    Frozen,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Somebody asked for something.
    Asked(ReplyTo, Caller, Request),
    /// A client went away; whatever waits for it alone is dropped.
    Departed(u64),
    /// A spawn succeeded: the cgroups are made and, unless it is a group, the program executes.
    Spawned {
        /// Whose.
        agent: AgentKey,
        /// The main process; none for a group.
        pid: Option<i32>,
    },
    /// A spawn failed, and left nothing.
    SpawnFailed {
        /// Whose.
        agent: AgentKey,
        /// At which step, and why.
        failure: SpawnFailure,
    },
    /// A main process ended.
    Exited {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
        /// How.
        exit: Exit,
        /// What it used.
        rusage: Rusage,
        /// Whose limit was reached, if the OOM killer did it.
        oom: Option<Oom>,
        /// How many processes it left behind in the run's cgroup.
        descendants: u64,
    },
    /// The OOM killer ended processes of a run; the main one may be among them, and its end is a fact of its own.
    OomKilled {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
        /// How many.
        kills: u64,
        /// Whose limit was reached.
        oom: Oom,
    },
    /// Of those that a main process left behind, these have ended last so far.
    LeftEnded {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
        /// How; if one of several died of a signal, that one.
        exit: Exit,
    },
    /// A run has named its main process, which is one of its own.
    MainNamed {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
        /// Which.
        pid: i32,
    },
    /// The cgroup of a run became empty.
    RunEmptied {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
    },
    /// A rule has found lines in the output of a run. Of those that one write brings, the first is told at once.
    Matched {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
        /// Which rule, by its place in the specification.
        rule: usize,
        /// The line.
        found: Box<Found>,
    },
    /// A run was looked at, as was ordered.
    Sampled {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
        /// What it has done; none if that could not be read.
        sample: Option<Sample>,
    },
    /// All that a run has written was looked at, and what the rules have found in it was told.
    OutputRead {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
    },
    /// A process of a run told something of it.
    Notified {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
        /// What, in the order in which it was told.
        notes: Vec<Note>,
    },
    /// A run has shown the line or the newline that says that it is ready.
    ReadySeen {
        /// Whose.
        agent: AgentKey,
        /// Which run.
        run: Run,
    },
    /// The cgroup of an agent, its whole subtree, became empty.
    SubtreeEmptied(AgentKey),
    /// The stop signal was sent to so many processes of a run.
    Signalled {
        /// Whose.
        agent: AgentKey,
        /// How many.
        processes: u64,
    },
    /// It was found out who has survived a kill.
    Surveyed {
        /// The number of the order.
        number: u64,
        /// The processes of each agent that live; those of which none does may be left out.
        found: Vec<(AgentKey, Vec<Survivor>)>,
    },
    /// A subtree was killed; right before, these agents had so many processes.
    Killed {
        /// The top of the subtree.
        agent: AgentKey,
        /// The number of processes of each agent that had any.
        counts: Vec<(AgentKey, u64)>,
    },
    /// `cgroup.freeze` was written.
    FreezerWritten {
        /// Whose.
        agent: AgentKey,
        /// What was written.
        written: Frost,
    },
    /// The kernel says that a subtree is frozen, or is not any more.
    FrostSeen {
        /// Whose.
        agent: AgentKey,
        /// What it says.
        frost: Frost,
    },
    /// An agent's cgroup and all below it are removed.
    Removed(AgentKey),
    /// An agent's cgroup could not be removed: something lives in it.
    RemoveRefused(AgentKey),
    /// Tasks have waited for longer than a rule on pressure allows.
    Pressed(PressKey),
    /// Some of an agent's memory was taken back, as was ordered, and there may be more.
    Reclaimed(AgentKey),
    /// A change of limits is done.
    LimitsSet(u64),
    /// A change of limits was refused by the kernel, and nothing was changed.
    LimitsRefused(u64, Error),
    /// What is decided cannot be written down, and why.
    StateUnwritable(Arc<str>),
    /// It can be written down again.
    StateWritable,
    /// Time went by.
    Ticked,
    /// Time went by since then without the supervisor: it was frozen, or the machine slept. Maybe nobody else did anything either.
    StoodStill(Monotonic),
}

/// One rule on pressure: of the herd, or of an agent's subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PressKey {
    /// Whose; the herd's if none.
    pub place: Option<AgentKey>,
    /// Which of its rules, from 0.
    pub rule: usize,
}

/// Where limits are to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitPlace {
    /// The herd's cgroup.
    Herd,
    /// An agent's cgroup.
    Agent(AgentKey),
    /// The cgroup of an agent's children together.
    Children(AgentKey),
}

/// Where survivors of a kill are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Runs, with their main processes wherever they are.
    pub runs: Vec<(AgentKey, Run)>,
    /// The cgroups of agents that have ended, of which something is left.
    pub homes: Vec<AgentKey>,
}

/// How a kill is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// In one stroke, which takes all processes but those whose first thread has ended.
    Stroke,
    /// In one stroke, then frozen and one process after the other: for what the stroke passed over.
    Sweep,
}

/// What is needed to start a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SpawnOrder {
    /// Whose.
    pub agent: AgentKey,
    /// Which run.
    pub run: Run,
    /// What to start.
    pub spec: Arc<AgentSpec>,
    /// If the agent's cgroup is to be made: its limits.
    pub make: Option<Limits>,
    /// If the cgroup of the parent's children together is to be made: its limits.
    pub make_level: Option<Limits>,
}

/// An order. Each is carried out once, and those that the machine waits for come back as a fact.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make the cgroups and start the run, or leave nothing. Answered by `Spawned` or `SpawnFailed`.
    Spawn(Box<SpawnOrder>),
    /// Send a signal to the processes of a run, wherever its main process is, and have those go on that are stopped. Answered
    /// by `Signalled`.
    Signal {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
        /// Which.
        signal: StopSignal,
        /// To which of them.
        to: StopSignalTo,
    },
    /// Kill a run, wherever its main process is; also frees a spawn that hangs on its way to exec.
    KillRun {
        /// Whose.
        agent: AgentKey,
        /// Which run.
        run: Run,
        /// How.
        force: Force,
    },
    /// Kill a subtree, wherever its main processes are. Answered by `Killed`.
    Kill {
        /// The top of the subtree.
        agent: AgentKey,
        /// The runs in it, to be counted.
        runs: Vec<(AgentKey, Run)>,
        /// How.
        force: Force,
    },
    /// Find out who has survived a kill. Answered by `Surveyed`.
    Survey {
        /// The number to answer with.
        number: u64,
        /// Where to look.
        survey: Survey,
    },
    /// Write `cgroup.freeze`. Answered by `FreezerWritten`, and then by `FrostSeen`: what `cgroup.events` says is read once
    /// after `FreezerWritten` was told, and again at each change. Where an agent above is frozen there is no change.
    Freeze {
        /// Whose.
        agent: AgentKey,
        /// What.
        frost: Frost,
    },
    /// Look at all that an ended run has written. Answered by `OutputRead`.
    ReadOutput {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
    },
    /// Look at what a run has done. Answered by `Sampled`.
    Sample {
        /// Whose.
        agent: AgentKey,
        /// Of which run.
        run: Run,
    },
    /// Remove the empty cgroup of a run.
    RemoveRun {
        /// Whose.
        agent: AgentKey,
        /// Which run.
        run: Run,
    },
    /// Remove an agent's cgroup and all below it. Answered by `Removed` or `RemoveRefused`.
    Remove(AgentKey),
    /// Set limits, all or none of them. Answered by `LimitsSet` or `LimitsRefused`.
    SetLimits {
        /// The number to answer with.
        change: u64,
        /// Where and which.
        settings: Vec<(LimitPlace, Limits)>,
    },
    /// Set `memory.high` below what is used now. Nobody waits for it.
    Tighten(LimitPlace),
    /// Set `memory.high` back to what was asked for.
    Loosen(LimitPlace),
    /// Have the kernel take back some of the memory of an agent that is frozen. Answered by `Reclaimed` if there may be more.
    Reclaim(AgentKey),
    /// Tell which processes neither freeze nor die: as an event, and to whoever waits.
    FindLaggards {
        /// Below which agents.
        agents: Vec<AgentKey>,
        /// Who is told that the time budget is over.
        reply: Option<ReplyTo>,
    },
    /// Answer a request.
    Reply(ReplyTo, Result<Answer, Error>),
    /// Tell everybody. The number is given where it is written down.
    Publish(Box<Event>),
    /// Write down how an agent is, before anything of this step is told or carried out (a spawn alone may come first).
    Record(Box<AgentRecord>),
    /// Write down the limits of the herd and of its levels, likewise.
    RecordHerd(Box<HerdRecord>),
    /// Drop what is kept of an agent: its record, its output, its watches.
    Forget(AgentKey),
    /// The herd has ended: the supervisor may go.
    Finish,
}

//! What the shell keeps of each agent: descriptors, watches, the bookkeeping of its output. No decision hangs on it.

use super::rules::Watcher;
use crate::kernel::cgroup::Place;
use crate::kernel::pidfd::Held;
use crate::kernel::rights::Stream;
use crate::kernel::watch::WatchId;
use crate::model::id::{AgentId, Run};
use crate::model::limits::Knob;
use crate::output::{Scan, Spool};

/// One agent.
#[derive(Debug)]
pub(super) struct Body {
    pub id: AgentId,
    /// Its cgroup.
    pub home: Place,
    /// The watch on that, if something hangs on what it says.
    pub home_watch: Option<WatchId>,
    /// The main process that runs, and its run.
    pub process: Option<(Run, Held)>,
    /// The watch on the cgroup of a run whose main process has ended and left others behind.
    pub leaf_watch: Option<(Run, WatchId)>,
    /// Those that the run's main process has left behind, or was before it.
    pub left: Vec<super::left::Left>,
    /// The descriptor on which a run is to write a newline when it is ready.
    pub newline: Option<(Run, Stream)>,
    /// The search for the line that says that a run is ready.
    pub scan: Option<(Run, Scan)>,
    pub spool: Option<Spool>,
    /// Which pipes it writes to, if they are pipes.
    pub pipes: Option<u64>,
    /// The run whose spawn made the spool files.
    pub spool_from: Option<Run>,
    /// Whether it is to be stored soon when the bytes of each stream were seen.
    pub times_due: [bool; 2],
    /// The watches on its two spool files.
    pub streams: [Ear; 2],
    /// What its rules have seen, if it has any.
    pub watcher: Option<Box<Watcher>>,
    /// The last lines of stderr at its last failure.
    pub last_lines: Vec<String>,
}

/// How a spool file is listened to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ear {
    /// It is not: it was never written to, there is no file, or it is being looked at.
    #[default]
    Deaf,
    /// The next write fires this one-shot watch.
    Armed(WatchId),
    /// It was written to, and is looked at when its damping interval is over.
    Due,
}

impl Body {
    pub fn new(id: AgentId, home: Place) -> Self {
        Self {
            id,
            home,
            home_watch: None,
            process: None,
            leaf_watch: None,
            left: Vec::new(),
            newline: None,
            scan: None,
            spool: None,
            pipes: None,
            spool_from: None,
            times_due: [false; 2],
            streams: [Ear::Deaf; 2],
            watcher: None,
            last_lines: Vec::new(),
        }
    }

    /// Returns the main process of a run, if it has not ended.
    pub fn main(&self, run: Run) -> Option<Held> {
        self.process.as_ref().filter(|(of, _)| *of == run).map(|(_, main)| main.clone())
    }

    /// Says whether its main process runs, or has left others behind.
    pub fn has_run(&self) -> bool {
        self.process.is_some() || self.leaf_watch.is_some()
    }

    pub fn run_place(&self, run: Run) -> Place {
        self.home.join(&format!("run-{run}"))
    }
}

/// What a watch is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// The `cgroup.events` of an agent's cgroup.
    Home(crate::machine::AgentKey),
    /// The `cgroup.events` of a run's cgroup.
    Leaf(crate::machine::AgentKey, Run),
    /// A spool file.
    Stream(crate::machine::AgentKey, crate::model::stream::Stream),
    /// The `memory.events.local` of a memory domain.
    Memory(Place),
    /// A file that tells when a limit is hit.
    Hits(Place, Knob),
    /// The `pids.events` of a cgroup that the herd is in.
    ForksAbove,
    /// The state directory.
    StateDir,
}

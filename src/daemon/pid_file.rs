//! `pid_file`: the file in which a program that puts itself into the background names its main process.
//!
//! ```text
//!  the process that was started ends with 0 ──► read ──► a process of this run ──► it is the main process, the run is ready
//!                                                ▲ │
//!      something was written in its directory ───┘ └─ none yet: waited for, until ready_timeout fails the run
//! ```
//!
//! The path is the agent's, so nothing of it is touched by the loop, nor with the daemon's rights: each read has a thread that takes the
//! rights of the agent's user and ends with them. It may hang in a file system that does not answer; then the run fails in its time.
//! What a file names counts only if it is a process of the agent's own run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use mio::{Interest, Waker};

use super::hands::STACK;
use super::job::Outcome;
use super::supervisor::{Chore, Source, Supervisor};
use crate::kernel::watch::{Fact, WatchId, Watches};
use crate::kernel::{clock, pid_file, user};
use crate::machine::AgentKey;
use crate::model::error::{Code, Error};
use crate::model::id::Run;
use crate::model::spec::AgentSpec;

/// The delay between a report of a change in a directory and the read of a file in it: programs
/// create a file first, and write it then.
const DAMPING: Duration = Duration::from_millis(10);

/// The longest such delay. The delay doubles with each read of one file, since others may write in
/// its directory all the time.
const DAMPING_MAX: Duration = Duration::from_millis(640);

/// How often a file is read whose directory cannot be watched: it may not be there yet.
const UNWATCHED_LOOK: Duration = Duration::from_millis(200);

/// How many files are read at once. Each read is short, or hangs; those that come then wait.
const READERS_MAX: usize = 64;

/// Runs that wait for their files.
#[derive(Debug)]
pub(super) struct PidFiles {
    outcomes: Sender<Outcome>,
    waker: Arc<Waker>,
    /// Apart from all other watches: two watches on one directory would be one. None until a run waits for the first time.
    watches: Option<Arc<Watches>>,
    dirs: HashMap<WatchId, BTreeSet<AgentKey>>,
    waiting: BTreeMap<AgentKey, Waiting>,
    readers: usize,
}

#[derive(Debug)]
struct Waiting {
    run: Run,
    is_read: bool,
    /// Whether something was written since that read began.
    is_due: bool,
    /// Whether a read is scheduled.
    is_scheduled: bool,
    delay: Duration,
}

/// What a read has come to.
#[derive(Debug)]
pub(super) struct PidRead {
    agent: AgentKey,
    run: Run,
    watch: Option<WatchId>,
    pid: Option<i32>,
}

impl PidFiles {
    pub fn new(outcomes: &Sender<Outcome>, waker: &Arc<Waker>) -> Self {
        Self {
            outcomes: outcomes.clone(),
            waker: waker.clone(),
            watches: None,
            dirs: HashMap::new(),
            waiting: BTreeMap::new(),
            readers: 0,
        }
    }

    /// Ends the watches that nobody needs. Not while files are read: a reader may have set the same watch just now.
    fn unwatch(&mut self) {
        let Some(watches) = self.watches.as_ref().filter(|_| self.readers == 0) else { return };
        for (watch, _) in self.dirs.extract_if(|_, keys| keys.is_empty()) {
            drop(watches.remove(watch));
        }
    }
}

/// Watches the directory of a file, then reads it, with the rights of the agent's user.
fn read(spec: &AgentSpec, path: &Path, watches: &Watches) -> Result<(Option<WatchId>, Option<i32>), Error> {
    if spec.user.is_some() || spec.group.is_some() {
        pid_file::become_reader(&user::lookup(spec.user.as_deref(), spec.group.as_deref())?)?;
    }
    // Before the read: what is written in between is told.
    let watch = path.parent().and_then(|dir| watches.add_arrivals(dir).ok());
    let pid = pid_file::read(path).unwrap_or_else(|error| {
        tracing::debug!("{error}");
        None
    });
    Ok((watch, pid))
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    Error::new(Code::Kernel, format!("{what}: {error}"))
}

impl Supervisor {
    /// Waits for a run's file to name its main process, if it is to do that now.
    pub(super) fn await_pid_file(&mut self, key: AgentKey, run: Run) {
        if self.machine.awaits_main(key, run) {
            let waiting = Waiting { run, is_read: false, is_due: false, is_scheduled: false, delay: DAMPING };
            self.pid_files.waiting.insert(key, waiting);
            self.read_pid_file(key);
        }
    }

    /// Has an agent's file read.
    pub(super) fn read_pid_file(&mut self, key: AgentKey) {
        let Some(waiting) = self.pid_files.waiting.get_mut(&key) else { return };
        if !self.machine.awaits_main(key, waiting.run) {
            return self.forget_pid_file(key);
        }
        waiting.is_scheduled = false;
        waiting.is_due = waiting.is_read || self.pid_files.readers >= READERS_MAX;
        if waiting.is_due {
            return;
        }
        let (run, spec) = (waiting.run, self.machine.spec_of(key).cloned());
        let Some((spec, path)) = spec.and_then(|spec| Some((spec.clone(), spec.pid_file.clone()?))) else { return };
        waiting.is_read = true;
        self.pid_files.readers += 1;
        if let Err(error) = self.start_reader(key, run, spec, path) {
            tracing::warn!("read the pid_file of {key}: {error}; it is tried again");
            self.pid_read(&PidRead { agent: key, run, watch: None, pid: None });
        }
    }

    fn start_reader(
        &mut self,
        agent: AgentKey,
        run: Run,
        spec: Arc<AgentSpec>,
        path: std::path::PathBuf,
    ) -> Result<(), Error> {
        let watches = self.pid_file_watches()?;
        let (outcomes, waker) = (self.pid_files.outcomes.clone(), self.pid_files.waker.clone());
        let act = move || {
            let (watch, pid) = read(&spec, &path, &watches).unwrap_or_else(|error| {
                tracing::warn!("read {}, the pid_file of {}: {error}", path.display(), spec.id);
                (None, None)
            });
            // Nobody listens any more once the supervisor has ended.
            if outcomes.send(Outcome::PidRead(PidRead { agent, run, watch, pid })).is_ok() {
                waker.wake().unwrap_or_default();
            }
        };
        let thread = std::thread::Builder::new().name("pid-file".to_owned()).stack_size(STACK);
        thread.spawn(act).map(drop).map_err(|error| failed("start a thread", &error))
    }

    fn pid_file_watches(&mut self) -> Result<Arc<Watches>, Error> {
        if let Some(watches) = &self.pid_files.watches {
            return Ok(watches.clone());
        }
        let watches = Arc::new(Watches::new()?);
        self.poll_for(&*watches, Source::PidFiles, Interest::READABLE);
        self.pid_files.watches = Some(watches.clone());
        Ok(watches)
    }

    /// A file was read: what it names is the main process, if that is one of this run.
    pub(super) fn pid_read(&mut self, read: &PidRead) {
        let key = read.agent;
        self.pid_files.readers = self.pid_files.readers.saturating_sub(1);
        if let Some(watch) = read.watch {
            self.pid_files.dirs.entry(watch).or_default().insert(key);
        }
        let next = self.pid_files.waiting.iter().find(|(_, other)| other.is_due && !other.is_read).map(|(key, _)| *key);
        if let Some(waiting) = self.pid_files.waiting.get_mut(&key).filter(|waiting| waiting.run == read.run) {
            waiting.is_read = false;
            let is_due = std::mem::take(&mut waiting.is_due);
            if let Some(pid) = read.pid {
                self.main_named(key, read.run, pid);
            }
            if is_due {
                self.schedule_pid_file(key);
            } else if read.watch.is_none() {
                self.chores.insert((clock::monotonic() + UNWATCHED_LOOK, Chore::PidFile(key)));
            }
        }
        let is_over = |(key, waiting): (&AgentKey, &Waiting)| !self.machine.awaits_main(*key, waiting.run);
        if self.pid_files.waiting.get_key_value(&key).is_none_or(is_over) {
            self.forget_pid_file(key);
        }
        match next {
            Some(next) => self.read_pid_file(next),
            None => self.pid_files.unwatch(),
        }
    }

    /// Something was written in directories of files that are waited for. What else is reported
    /// within [`DAMPING`] is read after it: anybody who may write in such a directory can make
    /// reports without end.
    pub(super) fn pid_files_came(&mut self) {
        let Some(watches) = self.pid_files.watches.clone() else { return };
        let mut facts = Vec::new();
        if let Err(error) = watches.read(&mut facts) {
            tracing::error!("{error}; pid files are read when their directory is reported to have changed again");
        }
        let mut keys = BTreeSet::new();
        for fact in facts.into_iter().collect::<BTreeSet<Fact>>() {
            match fact {
                Fact::Modified(watch) => keys.extend(self.pid_files.dirs.get(&watch).into_iter().flatten()),
                // The directory is gone: another one may come.
                Fact::Gone(watch) => keys.extend(self.pid_files.dirs.remove(&watch).unwrap_or_default()),
                Fact::Overflow => keys.extend(self.pid_files.waiting.keys()),
            }
        }
        for key in keys {
            self.schedule_pid_file(key);
        }
        self.stop_polling(&*watches);
        self.chores.insert((clock::monotonic() + DAMPING, Chore::PidFiles));
    }

    /// Has the reports of directories polled again.
    pub(super) fn pid_files_are_due(&mut self) {
        if let Some(watches) = self.pid_files.watches.clone() {
            self.poll_for(&*watches, Source::PidFiles, Interest::READABLE);
        }
    }

    /// Schedules the read of an agent's file, unless one is scheduled.
    fn schedule_pid_file(&mut self, key: AgentKey) {
        let Some(waiting) = self.pid_files.waiting.get_mut(&key) else { return };
        if !std::mem::replace(&mut waiting.is_scheduled, true) {
            self.chores.insert((clock::monotonic() + waiting.delay, Chore::PidFile(key)));
            waiting.delay = (waiting.delay * 2).min(DAMPING_MAX);
        }
    }

    /// Waits for the file of an agent no more.
    pub(super) fn forget_pid_file(&mut self, key: AgentKey) {
        if self.pid_files.waiting.remove(&key).is_some() {
            for keys in self.pid_files.dirs.values_mut() {
                keys.remove(&key);
            }
            self.pid_files.unwatch();
        }
    }
}

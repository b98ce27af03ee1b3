//! Files of the state directory that somebody deletes while a daemon uses it: they are re-created and reported.
//!
//! An inotify watch reports removals from the state directory, and the watch on a spool file its unlink. What follows is one look at
//! every name that is to be there, on the thread of the disk. A file counts as deleted if nothing stands at its path: what somebody
//! has put in its place stays.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use mio::Interest;

use super::body::Watched;
use super::disk::Doing;
use super::job::{Job, Tools};
use super::settings::Settings;
use super::supervisor::{Chore, Source, Supervisor, now};
use crate::kernel::notify::Inbox;
use crate::kernel::socket::{self, SOCKET_MODE, StateDir, is_missing};
use crate::kernel::watch::WatchId;
use crate::kernel::{clock, rights};
use crate::machine::AgentKey;
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::id::AgentId;
use crate::model::time::Monotonic;

/// How long after the last removal the rest is checked, if that comes within a second: an `rm -r` that is under way would fail at
/// what is re-created.
const DAMPING: Duration = Duration::from_millis(100);

/// How often something is re-created at most, and how often a directory is checked that the kernel gives no watch for.
const EVERY: Duration = Duration::from_secs(1);

/// How many agents an event names.
const NAMED_MAX: usize = 3;

/// How many rounds of messages are taken from a notify socket that is replaced; a sender may still be connected to it.
const LAST_ROUNDS: usize = 16;

/// The listening socket's place, so that it can be bound there again.
#[derive(Clone, Debug)]
pub(super) struct Door {
    path: PathBuf,
    group: Option<u32>,
    mode: u32,
    is_own: bool,
}

impl Door {
    /// Takes the socket that a service manager handed over, or binds one.
    pub fn open(
        claim: &StateDir,
        inherited: Option<UnixListener>,
        settings: &Settings,
        group: Option<u32>,
    ) -> Result<(Self, UnixListener), Error> {
        if let Some(listener) = inherited {
            let path = path_of(&listener).unwrap_or_else(|| settings.socket());
            let about = std::fs::symlink_metadata(&path).ok();
            let mode = about.as_ref().map_or(SOCKET_MODE, |about| about.mode() & 0o777);
            return Ok((Self { path, group: about.map(|about| about.gid()), mode, is_own: false }, listener));
        }
        let door = Self { path: settings.socket(), group, mode: SOCKET_MODE, is_own: true };
        let listener = door.bind(claim)?;
        Ok((door, listener))
    }

    fn bind(&self, claim: &StateDir) -> Result<UnixListener, Error> {
        socket::bind(claim, &self.path, self.group, self.mode)
    }
}

fn path_of(listener: &UnixListener) -> Option<PathBuf> {
    listener.local_addr().ok()?.as_pathname().map(Path::to_owned)
}

/// Returns the socket that a service manager handed over, unless its path was deleted: nobody could connect to it.
pub(super) fn inherited() -> Result<Option<UnixListener>, Error> {
    let is_reachable = |listener: &UnixListener| path_of(listener).is_none_or(|path| !is_missing(&path));
    Ok(socket::inherited()?.filter(is_reachable))
}

/// What keeps the state directory complete.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Held by whoever gives it up, in the order of the end.
    claim: Weak<StateDir>,
    door: Door,
    watch: Option<WatchId>,
    /// Whether a look is due, and when the last one began.
    is_due: bool,
    last: Option<Monotonic>,
    /// When something was removed, the first time since that look and the last time.
    removed: [Monotonic; 2],
    doing: Option<Doing<Restored>>,
    fault: Option<String>,
    /// Whether it is reported that the directory has no watch.
    is_degraded: bool,
}

/// What a look has found, and made.
#[derive(Debug, Default)]
struct Restored {
    /// The names of what was deleted.
    names: Vec<String>,
    has_records: bool,
    has_journal: bool,
    is_dir_new: bool,
    /// The agents whose spool files were deleted.
    agents: Vec<(AgentKey, AgentId)>,
    door: Option<UnixListener>,
    inbox: Option<Inbox>,
    fault: Option<String>,
}

impl Upkeep {
    pub fn new(claim: &Arc<StateDir>, door: Door) -> Self {
        let claim = Arc::downgrade(claim);
        let (watch, doing, last, fault) = (None, None, None, None);
        let removed = [Monotonic::default(); 2];
        Self { claim, door, watch, is_due: false, last, removed, doing, fault, is_degraded: false }
    }

    /// Returns why something could not be re-created, if so.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Returns the path of the listening socket, unless it is the service manager's.
    pub fn own_socket(&self) -> Option<PathBuf> {
        self.door.is_own.then(|| self.door.path.clone())
    }
}

/// What is to be there.
struct Expected {
    claim: Arc<StateDir>,
    tools: Arc<Tools>,
    door: Door,
    notify: PathBuf,
    journal: Vec<String>,
    agents: Vec<(AgentKey, AgentId)>,
}

impl Expected {
    /// Re-creates what is not there. The journal and the records are only looked for: whoever writes them has their content.
    fn restore(self) -> Restored {
        let mut restored = Restored::default();
        if let Err(error) = self.restore_all(&mut restored) {
            restored.fault = Some(error.to_string());
        }
        restored
    }

    fn restore_all(self, restored: &mut Restored) -> Result<(), Error> {
        let Self { claim, tools, door, notify, journal, agents } = self;
        let state_dir = claim.path();
        restored.names = claim.restore()?;
        restored.is_dir_new = !restored.names.is_empty();
        if tools.store.restore()? {
            restored.names.push("agents".to_owned());
        }
        // An agent that runs as root may have put something else there. It has no output then, and costs no other agent anything.
        let mend = |id: &AgentId| tools.store.mend(id).inspect_err(|error| tracing::warn!("{error}"));
        restored.agents = agents.into_iter().filter(|(_, id)| mend(id) == Ok(true)).collect();
        let mut is_deleted = |path: &Path| {
            let is_deleted = is_missing(path);
            let name = || path.strip_prefix(state_dir).unwrap_or(path).display().to_string();
            restored.names.extend(is_deleted.then(name));
            is_deleted
        };
        if is_deleted(&door.path) {
            restored.door = Some(door.bind(&claim)?);
        }
        if is_deleted(&notify) {
            restored.inbox = Some(Inbox::bind(&claim, &notify)?);
        }
        for name in journal {
            restored.has_journal |= is_deleted(&state_dir.join(name));
        }
        restored.has_records = is_deleted(&state_dir.join("records"));
        restored.names.extend(tools.keepers.restore()?);
        Ok(())
    }
}

impl Restored {
    fn sentence(&self, state_dir: &Path) -> String {
        let mut parts = self.names.clone();
        if !self.agents.is_empty() {
            let named: Vec<&str> = self.agents.iter().take(NAMED_MAX).map(|(_, id)| id.as_str()).collect();
            let others = self.agents.len() - named.len();
            let others = if others > 0 { format!(" and {others} others") } else { String::new() };
            parts.push(format!("the output of {}{others}", named.join(", ")));
        }
        let shown = state_dir.display();
        let mut sentence = format!("somebody deleted in {shown}: {}; re-created", parts.join(", "));
        if !self.agents.is_empty() {
            sentence.push_str(
                ". What was kept of this output is lost, and what a present run writes is kept from its next run on",
            );
        }
        sentence
    }
}

impl Supervisor {
    /// Watches the state directory. Where the kernel gives no watch it is checked by the clock.
    pub(super) fn watch_state_dir(&mut self) {
        let Some(claim) = self.upkeep.claim.upgrade() else { return };
        if let Some(before) = self.upkeep.watch.take() {
            self.unwatch(before);
        }
        match self.tools.watches.add_removals(claim.dir().as_fd()) {
            Ok(watch) => {
                self.upkeep.watch = Some(watch);
                self.upkeep.is_degraded = false;
                self.watched.insert(watch, Watched::StateDir);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.upkeep.is_degraded, true) {
                    let now = now();
                    let mut event = self.machine.event_about(now.mono, now.wall, Kind::Unwatched, None);
                    event.message = format!("{error}; the state directory is checked every {EVERY:?}");
                    self.publish(event);
                }
                self.upkeep.last = Some(clock::monotonic());
                self.restore_soon();
            }
        }
    }

    /// Something of the state directory was removed: has it checked soon.
    pub(super) fn restore_soon(&mut self) {
        let now = clock::monotonic();
        self.upkeep.removed[1] = now;
        if !std::mem::replace(&mut self.upkeep.is_due, true) {
            self.upkeep.removed[0] = now;
            let soon = now + DAMPING;
            let at = self.upkeep.last.map_or(soon, |last| soon.max(last + EVERY));
            self.chores.insert((at, Chore::Restore));
        }
    }

    /// Checks the state directory.
    pub(super) fn restore_is_due(&mut self) {
        let (now, [first, last]) = (clock::monotonic(), self.upkeep.removed);
        if now < last + DAMPING && now < first + EVERY {
            self.chores.insert((last + DAMPING, Chore::Restore));
            return;
        }
        self.upkeep.is_due = false;
        self.upkeep.last = Some(now);
        if self.upkeep.doing.is_some() {
            return self.restore_soon();
        }
        let Some(claim) = self.upkeep.claim.upgrade() else { return };
        let spools = self.bodies.iter().filter(|(_, body)| body.spool.is_some());
        let expected = Expected {
            claim,
            tools: self.tools.clone(),
            door: self.upkeep.door.clone(),
            notify: self.settings.notify_socket(),
            journal: self.journal.files(),
            agents: spools.map(|(key, body)| (*key, body.id.clone())).collect(),
        };
        self.upkeep.doing = Some(self.disk.act(move || expected.restore()));
        self.take_restored();
        if self.upkeep.watch.is_none() {
            self.watch_state_dir();
        }
    }

    /// Takes in what was re-created, and reports it.
    pub(super) fn take_restored(&mut self) {
        let Some(mut restored) = self.upkeep.doing.as_ref().and_then(Doing::take) else { return };
        self.upkeep.doing = None;
        if restored.has_journal {
            self.journal.restore();
        }
        if restored.has_records {
            self.records.restore();
        }
        if restored.is_dir_new {
            self.watch_state_dir();
        }
        if let Some(Err(error)) = restored.door.take().map(|listener| self.take_door(listener)) {
            restored.fault.get_or_insert(error.to_string());
        }
        if let Some(inbox) = restored.inbox.take() {
            self.take_inbox(inbox);
        }
        for (key, id) in &restored.agents {
            crate::model::stream::Stream::ALL.into_iter().for_each(|it| self.spool_due_in(*key, it, Duration::ZERO));
            if self.bodies.get(key).is_some_and(|body| body.pipes.is_some()) {
                // Its keeper goes on into the new files.
                self.hands.take(Job::Keep { agent: *key, id: id.clone(), sweep: None });
            }
        }
        self.upkeep.fault = restored.fault.take();
        if !restored.names.is_empty() || !restored.agents.is_empty() {
            let now = now();
            let mut event = self.machine.event_about(now.mono, now.wall, Kind::StateRestored, None);
            event.message = restored.sentence(&self.settings.state_dir);
            self.publish(event);
        }
        // What failed is tried again, and what was removed before there was a watch is found.
        if self.upkeep.fault.is_some() || restored.is_dir_new {
            self.restore_soon();
        }
    }

    /// Listens on a socket in the place of the deleted one, whose last connections are accepted.
    fn take_door(&mut self, listener: UnixListener) -> Result<(), Error> {
        let failed = |error| Error::new(Code::Kernel, format!("set up the socket: {error}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = mio::net::UnixListener::from_std(listener);
        self.poll_for(&listener, Source::Listener, Interest::READABLE);
        self.accept();
        if let Some(before) = self.listener.replace(listener) {
            self.stop_polling(&before);
            rights::close_listener(UnixListener::from(before).into());
        }
        self.upkeep.door.is_own = true;
        Ok(())
    }

    /// Hears agents on a socket in the place of the deleted one, whose last messages are read.
    fn take_inbox(&mut self, inbox: Inbox) {
        self.poll_for(&inbox, Source::Notify, Interest::READABLE);
        self.mailbox.has_more = true;
        for _ in 0..LAST_ROUNDS {
            if self.mailbox.has_more {
                self.read_letters();
            }
        }
        let before = std::mem::replace(&mut self.mailbox.inbox, inbox);
        self.mailbox.has_more = true;
        self.stop_polling(&before);
    }
}

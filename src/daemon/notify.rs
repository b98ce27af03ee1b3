//! What agents tell of themselves: messages over `NOTIFY_SOCKET`, and the newline on a descriptor that says that a run is ready.
//!
//! One socket serves the whole herd, and anybody can send to it. Who it was the kernel says; whoever is in no run's cgroup is not
//! heard. A process of an agent below speaks for that agent and not for the one above. What was sent is read before an end or a
//! deadline is looked at: a program that tells something and ends at once has told it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mio::Interest;
use rustix::io::Errno;

use super::accept::Owner;
use super::exit::is_reaped;
use super::supervisor::{Chore, Source, Supervisor};
use crate::kernel::cgroup::{MAIN, Place};
use crate::kernel::clock;
use crate::kernel::notify::{Inbox, Letter, Received, Sender};
use crate::kernel::pidfd::Held;
use crate::kernel::rights::{self, Read, Stream};
use crate::kernel::spawn::Launched;
use crate::machine::{AgentKey, Input};
use crate::model::id::Run;
use crate::model::note::{NOTE_MOST, Note, Told};
use crate::model::record::AgentRecord;

/// How many messages one turn takes in: 64 are read in less than 1 ms, and then everybody else has their turn.
const LETTERS_A_TURN: usize = 64;

/// How many of those that bring descriptors one turn takes in: each takes 0.1 ms.
const TAKEN_A_TURN: usize = 8;

/// How many children may hang in the close of what was sent before descriptors are refused to senders.
const CLOSERS_HANGING_MAX: usize = 64;

/// How many there may be until nothing is received any more: those that the socket's queue held when senders were refused, too.
const CLOSERS_MAX: usize = 1024;

/// How much of what is written to a descriptor for readiness one turn takes in, in reads.
const READS_A_TURN: usize = 16;

/// After what time a socket is read again that was left alone.
const CLOSERS_RETRY: Duration = Duration::from_secs(1);

/// After what time it is asked for a message that a child is late with.
const LATE_RETRY: Duration = Duration::from_millis(5);

/// After what time a message is taken again for which no child could be made.
const CHILDLESS_RETRY: Duration = Duration::from_millis(50);

/// The socket, and what became of what came in.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub inbox: Inbox,
    /// Whether more was there than one turn takes in.
    pub has_more: bool,
    /// How many messages were not heard.
    pub refused: u64,
    /// Children that end with the descriptors that were sent to it, by the number of their source.
    closers: BTreeMap<u64, Held>,
    /// Whether so many of them hang that descriptors are refused to senders.
    is_refusing: bool,
}

impl Mailbox {
    pub fn new(inbox: Inbox) -> Self {
        Self { inbox, has_more: false, refused: 0, closers: BTreeMap::new(), is_refusing: false }
    }

    /// Has descriptors refused to senders, or not any more.
    fn refuse(&mut self, refuse: bool) {
        if self.is_refusing != refuse && self.inbox.refuse_descriptors(refuse) {
            self.is_refusing = refuse;
            let what = if refuse { "are refused" } else { "are taken again" };
            tracing::warn!(
                "{} closes of descriptors that were sent to the notify socket hang: they {what}",
                self.closers.len()
            );
        }
    }
}

/// The cgroups of the runs that have something to tell, by the kernel's identity of them. A hand notes one before its program
/// begins, so that no message comes too early.
#[derive(Debug, Default)]
pub(super) struct Leaves(Mutex<Listed>);

#[derive(Debug, Default)]
struct Listed {
    runs: HashMap<u64, (AgentKey, Run)>,
    ids: HashMap<AgentKey, u64>,
}

impl Leaves {
    /// Notes the cgroup of an agent's present run.
    pub fn note(&self, agent: AgentKey, run: Run, id: u64) {
        let mut listed = self.lock();
        listed.forget(agent);
        listed.runs.insert(id, (agent, run));
        listed.ids.insert(agent, id);
    }

    /// Forgets it: the run is over, or never began.
    pub fn forget(&self, agent: AgentKey) {
        self.lock().forget(agent);
    }

    fn find(&self, id: u64) -> Option<(AgentKey, Run)> {
        self.lock().runs.get(&id).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    fn forget(&mut self, agent: AgentKey) {
        if let Some(id) = self.ids.remove(&agent) {
            self.runs.remove(&id);
        }
    }
}

impl Supervisor {
    /// Reads what agents have sent.
    pub(super) fn read_letters(&mut self) {
        self.mailbox.has_more = false;
        let mut taken = 0;
        for _ in 0..LETTERS_A_TURN {
            if !rights::NOTIFY.has_room() || self.mailbox.closers.len() >= CLOSERS_MAX {
                return self.wait_for_closers("no message of an agent is read");
            }
            match self.mailbox.inbox.receive() {
                Ok(Received::Letter(mut letter)) => {
                    if let Some(closer) = letter.closer.take() {
                        self.await_closer(closer);
                        taken += 1;
                    }
                    self.read_letter(&letter);
                    if taken >= TAKEN_A_TURN {
                        break;
                    }
                }
                Ok(Received::Nothing) => return,
                // The socket reports only what comes from now on: what is there is asked for again.
                Ok(Received::Soon) => return self.receive_later(LATE_RETRY),
                Err(error) => {
                    tracing::debug!("{error}");
                    return self.receive_later(CHILDLESS_RETRY);
                }
            }
        }
        self.mailbox.has_more = true;
    }

    /// Reaps a child that closes descriptors when it has ended. Most have by now.
    fn await_closer(&mut self, closer: Launched) {
        let process = Held { pid: closer.pid, fd: Arc::new(closer.pidfd) };
        if is_reaped(&process) {
            return;
        }
        let id = self.fresh();
        self.poll_for(&process.fd, Source::Zombie(id), Interest::READABLE);
        self.mailbox.closers.insert(id, process);
        if self.mailbox.closers.len() >= CLOSERS_HANGING_MAX {
            self.mailbox.refuse(true);
        }
    }

    /// A child that closes descriptors has ended, if it was one.
    pub(super) fn closer_ended(&mut self, id: u64) {
        if self.mailbox.closers.get(&id).is_some_and(is_reaped) {
            if let Some(process) = self.mailbox.closers.remove(&id) {
                self.stop_polling(&process.fd);
            }
            if self.mailbox.closers.is_empty() {
                self.mailbox.refuse(false);
            }
        }
    }

    /// Leaves a socket alone for a while: what comes over it could bring descriptors, and as many as may hang in a close
    /// already. Only on kernels before 6.16.
    pub(super) fn wait_for_closers(&mut self, what: &str) {
        if !self.waits_for_closers {
            tracing::warn!(
                "too many descriptors that were sent to this daemon cannot be closed: {what} for {CLOSERS_RETRY:?}"
            );
        }
        self.receive_later(CLOSERS_RETRY);
    }

    fn receive_later(&mut self, after: Duration) {
        if !self.waits_for_closers {
            self.waits_for_closers = true;
            self.chores.insert((clock::monotonic() + after, Chore::Closers));
        }
    }

    /// Receives again what was left alone.
    pub(super) fn receive_again(&mut self) {
        self.waits_for_closers = false;
        self.read_letters();
        self.accept();
    }

    fn read_letter(&mut self, letter: &Letter) {
        match (self.speaker(&letter.sender), &letter.text) {
            (Some((agent, run)), Some(text)) => {
                let mut notes = Note::parse(text);
                let mut main = None;
                notes.retain(|note| match note {
                    Note::Main(pid) => {
                        main = Some(*pid);
                        false
                    }
                    _ => true,
                });
                // To name many in one message says no more than to name the last.
                if let Some(pid) = main {
                    self.main_named(agent, run, pid);
                }
                if !notes.is_empty() {
                    self.feed(Input::Notified { agent, run, notes });
                }
            }
            (None, _) => {
                self.refuse(&letter.sender, "it is in no run's cgroup, or has ended before anybody could look")
            }
            (_, None) => self.refuse(&letter.sender, &format!("it is longer than {NOTE_MOST} bytes")),
        }
    }

    /// Finds the run that a sender belongs to.
    fn speaker(&self, sender: &Sender) -> Option<(AgentKey, Run)> {
        let listed = sender.cgroup_id().and_then(|id| self.tools.leaves.find(id));
        listed.or_else(|| match self.cgroup_owner(&sender.cgroup()?) {
            Owner::Agent(agent, run) => Some((agent, run?)),
            Owner::Nobody | Owner::Outside => None,
        })
    }

    /// Counts a message that is not heard, and tells it: the first, the second, the fourth and so on, since any process on the host
    /// can send as many as it likes.
    fn refuse(&mut self, sender: &Sender, why: &str) {
        self.mailbox.refused += 1;
        if self.mailbox.refused.is_power_of_two() {
            let (uid, pid, count) = (sender.uid, sender.pid, self.mailbox.refused);
            tracing::warn!(
                "a message of uid {uid}, pid {pid} to the notify socket is not heard: {why}; so far {count}"
            );
        }
    }

    /// Listens again to a run that goes on from an earlier daemon's time. The descriptor for a newline went with that one.
    pub(super) fn hear_again(&mut self, record: &AgentRecord, place: Option<Place>) {
        let (key, run, spec) = (AgentKey(record.birth.key), record.course.run, &record.birth.spec);
        if let (Some(place), true) = (place, spec.notifies()) {
            let place = if spec.delegate { place.join(MAIN) } else { place };
            let about = self.tools.cgroups.open_dir(&place).map(|leaf| rustix::fs::fstat(&leaf));
            match about {
                Ok(Ok(about)) => self.tools.leaves.note(key, run, about.st_ino),
                Ok(Err(errno)) => tracing::warn!("stat {place}: {errno}; its messages are known by their path"),
                Err(error) => tracing::warn!("{error}; its messages are known by their path"),
            }
        }
        if record.course.account == Told::Nothing {
            self.await_line(key, run, spec);
        }
    }

    /// Waits for a newline on a run's descriptor.
    pub(super) fn await_newline(&mut self, key: AgentKey, run: Run, socket: Stream) {
        self.poll_for(&socket, Source::Newline(key), Interest::READABLE);
        if let Some(body) = self.bodies.get_mut(&key) {
            body.newline = Some((run, socket));
        }
    }

    /// Something was written to a run's descriptor, or its last writer has closed it.
    pub(super) fn newline_came(&mut self, key: AgentKey) {
        let Some((run, socket)) = self.bodies.get(&key).and_then(|body| body.newline.as_ref()) else { return };
        let run = *run;
        let mut buffer = [0; 4096];
        for _ in 0..READS_A_TURN {
            match socket.read(&mut buffer) {
                Ok(Read::Bytes(read)) if memchr::memchr(b'\n', &buffer[..read]).is_some() => {
                    self.forget_newline(key);
                    return self.feed(Input::ReadySeen { agent: key, run });
                }
                Ok(Read::Bytes(0) | Read::Descriptors) => return self.forget_newline(key),
                Ok(Read::Bytes(_)) => {}
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    tracing::error!("read the descriptor of {key}: {errno}");
                    return self.forget_newline(key);
                }
            }
        }
        // There is more, and an edge-triggered poll tells of it only if it is asked anew.
        if let Some((run, socket)) = self.bodies.get_mut(&key).and_then(|body| body.newline.take()) {
            self.poll_again(&socket, Source::Newline(key), Interest::READABLE);
            self.bodies.entry(key).and_modify(|body| body.newline = Some((run, socket)));
        }
    }

    /// Waits for no newline of an agent any more.
    pub(super) fn forget_newline(&mut self, key: AgentKey) {
        let newline = self.bodies.get_mut(&key).and_then(|body| body.newline.take());
        let Some((_, socket)) = newline else { return };
        self.stop_polling(&socket);
    }
}

//! One connection: bytes in, lines out, what it follows. Bounded in every direction.

use rustix::io::Errno;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::logs::Joining;
use super::outbox::{Entries, List, Outbox, ROOM};
use super::quota::Account;
use crate::api::message::{Outcome, answer_head, answer_line, notification_line};
use crate::api::method::{Call, EventQuery, FollowQuery};
use crate::api::{CALLS_MAX, REQUEST_MAX};
use crate::kernel::rights::{Read, Stream};
use crate::machine::{AgentKey, Caller};
use crate::model::error::{Code, Error};
use crate::model::id::{AgentId, Run};
use crate::output::Cursor;

/// How much may wait to be sent before no request is read any more.
const BACKLOG_MAX: usize = 4 << 20;

/// How much memory the buffers of all clients take before those with more than [`SHARE`] have to wait.
pub(super) const CLIENTS_MEMORY_MAX: usize = 64 << 20;

/// How much of that every client has for itself, whatever the others hold.
const SHARE: usize = CLIENTS_MEMORY_MAX / crate::api::CLIENTS_MAX;

/// What an unanswered call, or one that follows, takes at most.
const CALL_SIZE: usize = 1 << 10;

/// Whether the clients hold as much memory as they may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Memory {
    #[default]
    Ample,
    /// Only who holds less than its [`SHARE`] goes on.
    Short,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    pub stream: Stream,
    pub caller: Caller,
    pub account: Account,
    input: Vec<u8>,
    /// How much of `input` was taken as requests, and how much was searched for the end of a line.
    taken: usize,
    searched: usize,
    outbox: Outbox,
    /// Whether the connection took no more, and the poll has not told of it since.
    is_full: bool,
    /// Whether the poll tells when the reader has made room. As long as nothing waits to be sent it does not: every answer
    /// that is read makes room, and would wake the loop for nothing.
    pub listens_for_room: bool,
    /// The calls that are not answered, by the machine's number, with the client's own `id`; none if it wants no answer.
    pub calls: BTreeMap<u64, Option<Value>>,
    /// The call that a reader thread works at, or that is put off: until it is done no further request is taken.
    pub reading: Option<u64>,
    /// The request that waits until its agent may change something again.
    pub put_off: Option<(Option<Value>, Call)>,
    /// Whether a reader thread looks up events for one of those that follow.
    pub is_catching_up: bool,
    /// Whether requests were left where they are, until what came before them is done.
    pub is_held_up: bool,
    pub events: Vec<EventFollow>,
    pub outputs: BTreeMap<AgentKey, Vec<OutputFollow>>,
    /// Those that follow many: each has a place in `outputs` for every agent that it covers and that has had something to tell.
    pub wide: Vec<WideFollow>,
    /// The call that follows many and has not all of its places yet.
    pub joining: Option<Joining>,
    /// Those of the agents in `outputs` that may have something to tell: nobody else's files are looked at.
    pub news: BTreeSet<AgentKey>,
    /// The most memory that it has held since it gave up most of it.
    peak: usize,
    /// Whether the other side has closed both directions: it reads no answer any more.
    has_hung_up: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// It has closed its side, or was told to go: what it asked for is answered, what waits is sent, then it is closed.
    Leaving,
    Broken,
}

/// Events that a client follows.
#[derive(Debug)]
pub(super) struct EventFollow {
    /// The daemon's own name of it.
    pub number: u64,
    pub call: Value,
    pub query: EventQuery,
    /// From this number on; they wait in the journal, not here.
    pub next: u64,
}

/// An agent's output that a client follows.
#[derive(Debug)]
pub(super) struct OutputFollow {
    pub call: Value,
    pub id: AgentId,
    /// From this place on; it waits in the spool, not here.
    pub cursor: Cursor,
    pub lasts: Lasts,
}

/// For how long an agent's output is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lasts {
    /// Until the agent has ended.
    UntilItEnds,
    /// As long as the agent is known, for this one of those that follow many, which has been told of the end of this run.
    WhileKnown { wide: usize, told: Option<Run> },
}

/// The output of many agents that a client follows.
#[derive(Debug)]
pub(super) struct WideFollow {
    pub call: Value,
    pub query: FollowQuery,
}

impl Client {
    pub fn new(stream: Stream, caller: Caller, account: Account) -> Self {
        Self {
            stream,
            caller,
            account,
            input: Vec::new(),
            taken: 0,
            searched: 0,
            outbox: Outbox::default(),
            is_full: false,
            listens_for_room: false,
            calls: BTreeMap::new(),
            reading: None,
            put_off: None,
            is_catching_up: false,
            is_held_up: false,
            events: Vec::new(),
            outputs: BTreeMap::new(),
            wide: Vec::new(),
            joining: None,
            news: BTreeSet::new(),
            peak: 0,
            has_hung_up: false,
            state: State::Open,
        }
    }

    /// Reads what is there. Returns whether there may be more.
    pub fn receive(&mut self, memory: Memory) -> bool {
        let mut chunk = [0u8; 16 << 10];
        for _ in 0..8 {
            if self.state != State::Open || self.is_held_up(memory) {
                return false;
            }
            if self.input.len() > REQUEST_MAX {
                return true;
            }
            match self.stream.read(&mut chunk) {
                Ok(Read::Bytes(0)) => {
                    // The end of the stream ends its last line, too.
                    if self.input.last().is_some_and(|last| *last != b'\n') {
                        self.input.push(b'\n');
                    }
                    self.leave();
                    return false;
                }
                Ok(Read::Bytes(read)) => self.input.extend_from_slice(&chunk[..read]),
                Ok(Read::Descriptors) => {
                    let error = Error::new(Code::BadRequest, "a request carries file descriptors, and none are taken");
                    self.send(answer_line(&Value::Null, Err(error.remedy("send JSON without SCM_RIGHTS"))));
                    self.leave();
                    return false;
                }
                Err(Errno::AGAIN) => return false,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.state = State::Broken;
                    return false;
                }
            }
        }
        true
    }

    /// Takes the next complete line out of what was read, if its turn has come.
    pub fn next_line(&mut self, memory: Memory) -> Option<Vec<u8>> {
        if self.state == State::Broken || self.is_held_up(memory) {
            return None;
        }
        let Some(end) = memchr::memchr(b'\n', &self.input[self.searched..]).map(|at| self.searched + at) else {
            self.searched = self.input.len();
            self.tidy_input();
            return None;
        };
        let line = self.input[self.taken..end].to_vec();
        (self.taken, self.searched) = (end + 1, end + 1);
        Some(line)
    }

    /// Gives up what is taken, and refuses a line that is too long.
    fn tidy_input(&mut self) {
        self.input.drain(..self.taken);
        (self.taken, self.searched) = (0, self.input.len());
        if self.input.len() > REQUEST_MAX {
            let message = format!("a request is longer than {REQUEST_MAX} bytes without an end of line");
            let error = Error::new(Code::TooLarge, message).remedy("send one JSON-RPC message a line");
            self.send(answer_line(&Value::Null, Err(error)));
            self.input = Vec::new();
            self.searched = 0;
            self.leave();
        }
        if self.input.is_empty() && self.input.capacity() > 64 << 10 {
            self.input = Vec::new();
        }
    }

    /// Says whether its next request has to wait, and notes if so: until a long answer is written and a reader thread is done,
    /// and as long as too much waits to be sent.
    fn is_held_up(&mut self, memory: Memory) -> bool {
        let is_over = match memory {
            Memory::Ample => self.outbox.waiting() > BACKLOG_MAX,
            Memory::Short => self.held() > SHARE,
        };
        self.is_held_up |= is_over || self.outbox.has_list() || self.reading.is_some();
        self.is_held_up
    }

    /// Says whether requests that were left go on now, and notes it.
    pub fn is_let_on(&mut self, memory: Memory) -> bool {
        std::mem::replace(&mut self.is_held_up, false) && !self.is_held_up(memory)
    }

    /// Returns about how much memory it takes.
    pub fn held(&self) -> usize {
        let calls = (self.calls.len() + self.events.len()) * CALL_SIZE;
        self.input.capacity() + self.outbox.size() + calls
    }

    /// Returns how much memory it has given up since its peak, if that was most of it.
    pub fn freed(&mut self) -> usize {
        let held = self.held();
        if held < self.peak / 4 {
            return std::mem::replace(&mut self.peak, held) - held;
        }
        self.peak = self.peak.max(held);
        0
    }

    pub fn answer(&mut self, id: &Value, outcome: Outcome) {
        self.send(answer_line(id, outcome));
    }

    /// Answers with a list; `around` is what is written before and after its entries.
    pub fn answer_list(&mut self, id: &Value, around: (&str, &str), entries: Entries) {
        let head = [answer_head(id).as_bytes(), around.0.as_bytes()].concat();
        self.outbox.list(List::new(head, entries, format!("{}}}\n", around.1).into_bytes()));
    }

    pub fn notify<P: serde::Serialize>(&mut self, method: &str, params: &P) {
        self.send(notification_line(method, params));
    }

    /// Tells an event, as it is written, to one of its calls that follow.
    pub fn tell_event(&mut self, call: &Value, json: &str) {
        let line =
            format!("{{\"jsonrpc\":\"2.0\",\"method\":\"event\",\"params\":{{\"call\":{call},\"event\":{json}}}}}\n");
        self.send(line.into_bytes());
    }

    pub fn send(&mut self, line: Vec<u8>) {
        if self.state != State::Broken {
            self.outbox.line(line);
        }
    }

    /// Writes on a long answer, as far as there is room; see [`Outbox::write_on`].
    pub fn write_on(&mut self, most: usize, entry: impl FnMut(&mut Entries, &mut Vec<u8>) -> bool) -> bool {
        self.state != State::Broken && self.outbox.write_on(most, entry)
    }

    /// Says whether the poll has to tell when the reader has made room.
    pub fn waits_for_room(&self) -> bool {
        self.outbox.waiting() > 0
    }

    /// Returns how much was written for it so far, sent or not.
    pub fn written(&self) -> u64 {
        self.outbox.written()
    }

    /// Says whether the connection takes no more for now.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Says whether notifications may be sent.
    pub fn has_room(&self) -> bool {
        self.state == State::Open && !self.outbox.has_list() && self.outbox.waiting() < ROOM
    }

    pub fn may_call(&self) -> bool {
        self.calls.len() < CALLS_MAX
    }

    pub fn may_follow(&self) -> bool {
        let single = self.outputs.values().flatten().filter(|follow| follow.lasts == Lasts::UntilItEnds);
        self.events.len() + self.wide.len() + single.count() < CALLS_MAX
    }

    /// The poll has told something of the connection: perhaps the reader has made room.
    pub fn polled(&mut self) {
        self.is_full = false;
    }

    /// The other side has closed both directions. What it has sent before that is still taken.
    pub fn hang_up(&mut self) {
        self.has_hung_up = true;
    }

    /// Writes as much as the reader takes.
    pub fn flush(&mut self) {
        while !self.outbox.next_bytes().is_empty() && !self.is_full && self.state != State::Broken {
            match self.stream.write(self.outbox.next_bytes()) {
                Ok(written) => self.outbox.note_sent(written),
                Err(Errno::AGAIN) => self.is_full = true,
                Err(Errno::INTR) => {}
                Err(_) => self.state = State::Broken,
            }
        }
    }

    /// Says whether there may be requests that were read and not taken.
    fn has_lines(&self) -> bool {
        self.searched < self.input.len()
    }

    pub fn leave(&mut self) {
        if self.state == State::Open {
            self.state = State::Leaving;
        }
    }

    /// Says whether the connection is to be dropped: broken, or done and with nothing left to read, to send or to wait for. A client
    /// that closes only the direction of its requests still gets the answers; for one that has hung up no answer is waited for.
    pub fn is_over(&self) -> bool {
        match self.state {
            State::Open => false,
            State::Leaving => {
                let is_answered = self.has_hung_up || self.outbox.is_empty() && self.calls.is_empty();
                is_answered && self.reading.is_none() && !self.has_lines()
            }
            State::Broken => true,
        }
    }
}

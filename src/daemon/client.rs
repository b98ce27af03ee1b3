//! One connection: bytes in, lines out, what it follows. Bounded in every direction.

use rustix::io::Errno;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use crate::api::message::{Outcome, answer_line, notification_line};
use crate::api::method::{EventQuery, FollowQuery};
use crate::api::{CALLS_MAX, REQUEST_MAX};
use crate::kernel::rights::{Read, Stream};
use crate::machine::{AgentKey, Caller};
use crate::model::error::{Code, Error};
use crate::model::id::{AgentId, Run};
use crate::output::Cursor;

/// How much may wait to be sent before notifications wait for the reader.
pub(super) const ROOM: usize = 256 << 10;

/// How much may wait to be sent before no request is read any more.
const BACKLOG_MAX: usize = 4 << 20;

/// How many requests of one client a turn takes.
const REQUESTS_A_TURN: usize = 32;

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    pub stream: Stream,
    pub caller: Caller,
    input: Vec<u8>,
    /// How much of `input` was searched for the end of a line.
    searched: usize,
    output: Vec<u8>,
    sent: usize,
    /// Whether the connection took no more, and the poll has not told of it since.
    is_full: bool,
    /// Whether the poll tells when the reader has made room. As long as nothing waits to be sent it does not: every answer
    /// that is read makes room, and would wake the loop for nothing.
    pub listens_for_room: bool,
    /// The calls that are not answered, by the machine's number, with the client's own `id`; none if it wants no answer.
    pub calls: BTreeMap<u64, Option<Value>>,
    pub events: Vec<EventFollow>,
    pub outputs: BTreeMap<AgentKey, Vec<OutputFollow>>,
    /// Those that follow many: each has a place in `outputs` for every agent that it covers and that has had something to tell.
    pub wide: Vec<WideFollow>,
    /// Those of the agents in `outputs` that may have something to tell: nobody else's files are looked at.
    pub news: BTreeSet<AgentKey>,
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
    pub fn new(stream: Stream, caller: Caller) -> Self {
        Self {
            stream,
            caller,
            input: Vec::new(),
            searched: 0,
            output: Vec::new(),
            sent: 0,
            is_full: false,
            listens_for_room: false,
            calls: BTreeMap::new(),
            events: Vec::new(),
            outputs: BTreeMap::new(),
            wide: Vec::new(),
            news: BTreeSet::new(),
            state: State::Open,
        }
    }

    /// Reads what is there. Returns whether there may be more.
    pub fn receive(&mut self) -> bool {
        let mut chunk = [0u8; 16 << 10];
        for _ in 0..8 {
            if self.state != State::Open || self.waiting() > BACKLOG_MAX {
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
                    self.send(&answer_line(&Value::Null, Err(error.remedy("send JSON without SCM_RIGHTS"))));
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

    /// Takes the complete lines out of what was read, a bounded number of them.
    pub fn lines(&mut self) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut taken = 0;
        while lines.len() < REQUESTS_A_TURN && self.waiting() <= BACKLOG_MAX {
            let Some(end) = memchr::memchr(b'\n', &self.input[self.searched..]).map(|at| self.searched + at) else {
                self.searched = self.input.len();
                break;
            };
            lines.push(self.input[taken..end].to_vec());
            taken = end + 1;
            self.searched = taken;
        }
        self.input.drain(..taken);
        self.searched -= taken;
        if self.searched == self.input.len() && self.input.len() > REQUEST_MAX {
            let message = format!("a request is longer than {REQUEST_MAX} bytes without an end of line");
            let error = Error::new(Code::TooLarge, message).remedy("send one JSON-RPC message a line");
            self.send(&answer_line(&Value::Null, Err(error)));
            self.input = Vec::new();
            self.searched = 0;
            self.leave();
        }
        if self.input.is_empty() && self.input.capacity() > 64 << 10 {
            self.input = Vec::new();
        }
        lines
    }

    /// Says whether complete requests wait for another turn.
    pub fn has_lines(&self) -> bool {
        self.state != State::Broken && self.searched < self.input.len() && self.waiting() <= BACKLOG_MAX
    }

    pub fn answer(&mut self, id: &Value, outcome: Outcome) {
        self.send(&answer_line(id, outcome));
    }

    pub fn notify<P: serde::Serialize>(&mut self, method: &str, params: &P) {
        self.send(&notification_line(method, params));
    }

    pub fn send(&mut self, line: &[u8]) {
        if self.state != State::Broken {
            self.output.extend_from_slice(line);
        }
    }

    pub fn waiting(&self) -> usize {
        self.output.len() - self.sent
    }

    pub fn has_room(&self) -> bool {
        self.state == State::Open && self.waiting() < ROOM
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

    /// Writes as much as the reader takes.
    pub fn flush(&mut self) {
        while self.sent < self.output.len() && !self.is_full && self.state != State::Broken {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(Errno::AGAIN) => self.is_full = true,
                Err(Errno::INTR) => {}
                Err(_) => self.state = State::Broken,
            }
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            self.output.shrink_to(16 << 10);
        } else if self.sent > ROOM {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }

    pub fn leave(&mut self) {
        if self.state == State::Open {
            self.state = State::Leaving;
        }
    }

    /// Says whether the connection is to be dropped: broken, or done and with nothing left to read, to send or to wait for.
    pub fn is_over(&self) -> bool {
        match self.state {
            State::Open => false,
            State::Leaving => self.waiting() == 0 && self.calls.is_empty() && !self.has_lines(),
            State::Broken => true,
        }
    }
}

//! What clients want to read and what takes long: reader threads do it, in steps, so that a long read holds up no short one.
//!
//! A client has one such read at a time with them, so nobody's reads wait for a thousand of another client. What is the same for
//! everybody (`doctor`, the figures of the herd) is read once for all who ask meanwhile, and again only when it has become old.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;

use super::follow::PIECE_BUDGET;
use super::job::{Job, Tools};
use super::journal::{Page, Pages};
use super::settings::Settings;
use super::supervisor::{Supervisor, now};
use crate::api::message::{Incoming, Outcome, result};
use crate::api::method::{Call, EventQuery, LogQuery, StatsQuery};
use crate::kernel::cgroup::Place;
use crate::kernel::error::KernelError;
use crate::kernel::pidfd;
use crate::machine::{AgentKey, ReplyTo};
use crate::model::error::Error;
use crate::model::id::AgentId;
use crate::model::time::Monotonic;
use crate::model::usage::Usage;
use crate::output::{Cursor, Read, Spool, Tail};

/// How many bytes of events an answer has, or one event more.
const EVENTS_PAGE: usize = 256 << 10;

/// How many bytes of events are looked up at once for who follows them.
const CATCH_PAGE: usize = 64 << 10;

/// How many cgroups are measured in one step.
const PLACES_A_STEP: usize = 64;

/// How old an answer to `doctor` may be that is given again.
const DOCTOR_FRESH: Duration = Duration::from_secs(1);

/// A longer request is parsed by a reader thread, and so is one with patterns: each has to be compiled.
const PARSED_AT_ONCE_MAX: usize = 16 << 10;

/// Something to read.
#[derive(Debug)]
pub(super) enum Errand {
    /// Parse a request that takes long.
    Parse { client: u64, number: u64, line: Vec<u8> },
    /// Look up the next events for one of those that a client follows.
    Catch { client: u64, number: u64, pages: Pages, query: EventQuery },
    /// Look up a page of events.
    Events { to: ReplyTo, pages: Pages, query: EventQuery },
    /// Read a page of an agent's output.
    Output { to: ReplyTo, key: AgentKey, id: AgentId, spool: Spool, cursor: Cursor },
    /// Look at what the host offers.
    Doctor(Box<Settings>),
    /// Find the cgroup of a process.
    Process { to: ReplyTo, pid: i32 },
    /// Read the figures of the herd and of these places.
    Measure { call: Measured, places: VecDeque<(AgentKey, Place)>, done: Vec<(AgentKey, Usage, Place)> },
    /// Find where the last lines of agents begin.
    Tails { call: Followed, left: VecDeque<Tailed>, done: Vec<(AgentKey, AgentId, Cursor)> },
}

/// Who asked for figures.
#[derive(Debug)]
pub(super) enum Measured {
    /// One agent's, for `show`.
    Agent(ReplyTo, AgentKey),
    /// The herd's and every agent's, for whoever waits for `stats`.
    Herd,
}

/// Who asked where the last lines begin.
#[derive(Debug)]
pub(super) enum Followed {
    /// `logs`.
    One(ReplyTo, LogQuery),
    /// `follow`, which goes on with the next agents.
    Many(ReplyTo),
}

/// An agent whose last lines are looked for.
#[derive(Debug)]
pub(super) struct Tailed {
    pub key: AgentKey,
    pub id: AgentId,
    pub spool: Spool,
    pub tail: Tail,
}

/// What was read.
#[derive(Debug)]
pub(super) enum Reading {
    Parsed { client: u64, number: u64, id: Option<Value>, call: Result<Call, Error> },
    Caught { client: u64, number: u64, page: Result<Page, Error> },
    Answer(ReplyTo, Outcome),
    Output { to: ReplyTo, key: AgentKey, read: Result<(Read, Cursor), Error> },
    Doctor(Outcome),
    Process { to: ReplyTo, pid: i32, cgroup: Result<Option<String>, KernelError> },
    Measured { call: Measured, herd: Option<Usage>, agents: Vec<(AgentKey, Usage, Place)> },
    Tails { call: Followed, found: Result<Vec<(AgentKey, AgentId, Cursor)>, Error> },
}

/// How far a step has come.
#[derive(Debug)]
pub(super) enum Step {
    Done(Reading),
    /// The rest is for when the others have had their turn.
    More(Errand),
}

impl Errand {
    /// Does a bounded part of it.
    pub fn step(self, tools: &Tools) -> Step {
        Step::Done(match self {
            Self::Parse { client, number, line } => {
                let (id, call) = parse(&line);
                Reading::Parsed { client, number, id, call }
            }
            Self::Catch { client, number, pages, query } => {
                Reading::Caught { client, number, page: pages.read(&query, CATCH_PAGE) }
            }
            Self::Events { to, pages, query } => Reading::Answer(to, events(&pages, &query)),
            Self::Output { to, key, id, spool, mut cursor } => {
                let read = spool.read(&tools.store, &id, &mut cursor, PIECE_BUDGET);
                Reading::Output { to, key, read: read.map(|read| (read, cursor)) }
            }
            Self::Doctor(settings) => Reading::Doctor(result(&super::doctor::doctor(&settings))),
            Self::Process { to, pid } => Reading::Process { to, pid, cgroup: pidfd::cgroup_of(pid) },
            Self::Measure { call, mut places, mut done } => {
                let part = places.drain(..places.len().min(PLACES_A_STEP));
                done.extend(part.filter_map(|(key, place)| Some((key, tools.cgroups.usage(&place).ok()?, place))));
                if !places.is_empty() {
                    return Step::More(Self::Measure { call, places, done });
                }
                let herd = matches!(call, Measured::Herd).then(|| tools.cgroups.usage(&Place::herd()).ok()).flatten();
                Reading::Measured { call, herd, agents: done }
            }
            Self::Tails { call, mut left, mut done } => {
                let Some(mut first) = left.pop_front() else {
                    return Step::Done(Reading::Tails { call, found: Ok(done) });
                };
                match first.tail.step(&first.spool, &tools.store, &first.id) {
                    Ok(Some(cursor)) => done.push((first.key, first.id, cursor)),
                    Ok(None) => left.push_front(first),
                    Err(error) => return Step::Done(Reading::Tails { call, found: Err(error) }),
                }
                return Step::More(Self::Tails { call, left, done });
            }
        })
    }
}

/// Parses a line.
pub(super) fn parse(line: &[u8]) -> (Option<Value>, Result<Call, Error>) {
    match Incoming::parse(line) {
        Ok(incoming) => {
            let call = Call::parse(&incoming.method, incoming.params);
            (incoming.id, call)
        }
        Err(error) => (Some(Value::Null), Err(error)),
    }
}

/// Says whether a line takes long to parse.
pub(super) fn is_long_to_parse(line: &[u8]) -> bool {
    line.len() > PARSED_AT_ONCE_MAX || memchr::memmem::find(line, b"\"pattern\"").is_some()
}

/// Makes the answer to `events` out of what is written.
fn events(pages: &Pages, query: &EventQuery) -> Outcome {
    let Page { events, last, lost } = pages.read(query, EVENTS_PAGE)?;
    let events: Vec<Box<RawValue>> = events.into_iter().filter_map(|json| RawValue::from_string(json).ok()).collect();
    #[derive(serde::Serialize)]
    struct Events {
        events: Vec<Box<RawValue>>,
        last: u64,
        lost: u64,
    }
    result(&Events { events, last, lost })
}

/// What is read for everybody who asks.
#[derive(Debug, Default)]
pub(super) struct Shared {
    doctors: Vec<ReplyTo>,
    doctor: Option<(Monotonic, Box<RawValue>)>,
    stats: Vec<(ReplyTo, StatsQuery)>,
}

impl Supervisor {
    pub(super) fn hand_errand(&mut self, errand: Errand) {
        self.hand(Job::Read(Box::new(errand)));
    }

    /// Takes what a reader thread has read.
    pub(super) fn take_reading(&mut self, reading: Reading) {
        match reading {
            Reading::Parsed { client, number, id, call } => {
                if let Some(client) = self.clients.get_mut(&client).filter(|client| client.reading == Some(number)) {
                    client.reading = None;
                }
                self.stirred.insert(client);
                self.take_request(client, id.as_ref(), call);
            }
            Reading::Caught { client, number, page } => self.caught_up(client, number, page),
            Reading::Answer(to, outcome) => self.reply_value(to, outcome),
            Reading::Output { to, key, read } => self.output_read(to, key, read),
            Reading::Doctor(outcome) => self.doctor_is_back(outcome),
            Reading::Process { to, pid, cgroup } => {
                let found = cgroup.map_err(Error::from);
                let outcome =
                    found.and_then(|cgroup| self.process(to.client, pid, cgroup)).and_then(|status| result(&status));
                self.reply_value(to, outcome);
            }
            Reading::Measured { call, herd, agents } => self.measured(call, herd, agents),
            Reading::Tails { call, found } => self.tails_found(call, found),
        }
    }

    /// Answers `doctor` by what was found a moment ago, or when somebody has had a look.
    pub(super) fn ask_doctor(&mut self, to: ReplyTo) {
        match &self.shared.doctor {
            Some((at, answer)) if now().mono.since(*at) < DOCTOR_FRESH => {
                let answer = answer.clone();
                self.reply_value(to, Ok(answer));
            }
            _ => {
                self.shared.doctors.push(to);
                if self.shared.doctors.len() == 1 {
                    self.hand_errand(Errand::Doctor(Box::new(self.settings.clone())));
                }
            }
        }
    }

    fn doctor_is_back(&mut self, outcome: Outcome) {
        self.shared.doctor = outcome.as_ref().ok().map(|answer| (now().mono, answer.clone()));
        for to in std::mem::take(&mut self.shared.doctors) {
            self.reply_value(to, outcome.clone());
        }
    }

    /// Has the herd measured for `stats`, once for all who ask meanwhile.
    pub(super) fn ask_stats(&mut self, to: ReplyTo, query: StatsQuery, places: Vec<(AgentKey, Place)>) {
        self.shared.stats.push((to, query));
        if self.shared.stats.len() == 1 {
            self.hand_errand(Errand::Measure { call: Measured::Herd, places: places.into(), done: Vec::new() });
        }
    }

    /// Returns who waits for the figures of the herd.
    pub(super) fn take_stats(&mut self) -> Vec<(ReplyTo, StatsQuery)> {
        std::mem::take(&mut self.shared.stats)
    }
}

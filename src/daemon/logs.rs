//! `logs` and `follow`: where a reader begins is found by a reader thread, and the places of one that follows many are made a few
//! agents at a time.

use std::collections::{BTreeSet, VecDeque};

use serde_json::Value;

use super::call::{Answered, now_with};
use super::client::{Lasts, OutputFollow, WideFollow};
use super::follow::page;
use super::reads::{Errand, Followed, Tailed};
use super::supervisor::Supervisor;
use crate::api::WIDE_MAX;
use crate::api::message::result;
use crate::api::method::{FollowQuery, LogQuery, Nothing, Offsets, Output};
use crate::machine::{AgentKey, ReplyTo};
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::request::Target;
use crate::model::stream::Stream;
use crate::output::{Cursor, Read, Tail};

/// For how many agents a call that follows many makes places at once.
const JOINED_AT_ONCE: usize = 32;

/// A call that follows many, and is not answered before it has a place at every agent that has something to tell already.
#[derive(Debug)]
pub(super) struct Joining {
    follow: WideFollow,
    left: VecDeque<AgentKey>,
    placed: Vec<(AgentKey, AgentId, Cursor)>,
}

impl Supervisor {
    pub(super) fn logs(&mut self, client_id: u64, id: Option<&Value>, query: LogQuery) -> Result<Answered, Error> {
        let key = self.readable(client_id, &query.id)?;
        if query.from.is_some() && query.lines.is_some() {
            let error = Error::new(Code::BadValue, "logs: both lines and from are given");
            return Err(error.remedy("give one of them"));
        }
        if query.follow {
            self.check_follows(client_id)?;
        }
        let Some(tailed) = self.tailed(key, query.stream, query.lines.unwrap_or(0)) else {
            let error = Error::new(Code::WrongState, format!("logs {}: it never ran and has no output", query.id));
            return Err(error.remedy("name an agent with a command"));
        };
        if query.lines.is_some() {
            let to = self.expect_reading(client_id, id)?;
            let left = VecDeque::from([tailed]);
            self.hand_errand(Errand::Tails { call: Followed::One(to, query), left, done: Vec::new() });
            return Ok(Answered::Later);
        }
        let cursor = match query.from {
            Some(from) => {
                let mut cursor = Cursor { stdout: from.stdout, stderr: from.stderr };
                let is_left_out = |stream: &Stream| query.stream.is_some_and(|only| only != *stream);
                Stream::ALL.into_iter().filter(is_left_out).for_each(|stream| cursor.set(stream, None));
                cursor
            }
            None => Cursor::at(query.stream, |_| 0),
        };
        if query.follow {
            let call = id.cloned().unwrap_or_default();
            return now_with(&self.follow_from(client_id, key, call, query.id, cursor));
        }
        let to = self.expect_reading(client_id, id)?;
        self.hand_errand(Errand::Output { to, key, id: query.id, spool: tailed.spool, cursor });
        Ok(Answered::Later)
    }

    /// Takes up what an agent's output is read by; none if it never ran.
    fn tailed(&mut self, key: AgentKey, stream: Option<Stream>, lines: usize) -> Option<Tailed> {
        self.catch_up(key);
        let body = self.bodies.get(&key)?;
        Some(Tailed { key, id: body.id.clone(), spool: body.spool.clone()?, tail: Tail::new(stream, lines) })
    }

    /// Has a client follow one agent's output from a place on. Returns what it is answered.
    fn follow_from(&mut self, client_id: u64, key: AgentKey, call: Value, id: AgentId, cursor: Cursor) -> Output {
        if let Some(client) = self.clients.get_mut(&client_id) {
            let follow = OutputFollow { call, id, cursor, lasts: Lasts::UntilItEnds };
            client.outputs.entry(key).or_default().push(follow);
            client.news.insert(key);
            self.stirred.insert(client_id);
        }
        Output { next: Offsets { stdout: cursor.stdout, stderr: cursor.stderr }, ..Output::default() }
    }

    pub(super) fn follow(&mut self, client_id: u64, id: Option<&Value>, query: FollowQuery) -> Result<Answered, Error> {
        match &query.target {
            Target::Ids(ids) => ids.iter().try_for_each(|id| self.readable(client_id, id).map(drop))?,
            _ => self.permit_whole(client_id, "the output of the herd; name agents by their ids")?,
        }
        self.check_follows(client_id)?;
        if self.clients.get(&client_id).is_some_and(|client| client.wide.len() >= WIDE_MAX) {
            let error = Error::new(
                Code::TooManyClients,
                format!("{WIDE_MAX} calls of this connection follow many agents already"),
            );
            return Err(error.remedy("follow with a wider target, or use another connection"));
        }
        let left = self.machine.select(&query.target)?.into();
        let to = self.expect_reading(client_id, id)?;
        if let Some(client) = self.clients.get_mut(&client_id) {
            let follow = WideFollow { call: id.cloned().unwrap_or_default(), query };
            client.joining = Some(Joining { follow, left, placed: Vec::new() });
        }
        self.join_some(to);
        Ok(Answered::Later)
    }

    /// Makes places for the next agents that a call covers, or answers it.
    fn join_some(&mut self, to: ReplyTo) {
        let Some(mut joining) = self.clients.get_mut(&to.client).and_then(|client| client.joining.take()) else {
            return;
        };
        if joining.left.is_empty() {
            return self.joined(to, joining);
        }
        let (stream, lines) = (joining.follow.query.stream, joining.follow.query.lines);
        let mut looks = VecDeque::new();
        for key in joining.left.drain(..joining.left.len().min(JOINED_AT_ONCE)) {
            let Some(tailed) = self.tailed(key, stream, lines.unwrap_or(0)) else { continue };
            match lines {
                Some(_) => looks.push_back(tailed),
                None => {
                    let cursor = Cursor::at(stream, |_| 0);
                    joining.placed.push((key, tailed.id, cursor));
                }
            }
        }
        if let Some(client) = self.clients.get_mut(&to.client) {
            client.joining = Some(joining);
        }
        self.hand_errand(Errand::Tails { call: Followed::Many(to), left: looks, done: Vec::new() });
    }

    /// A reader thread has found where the last lines of agents begin.
    pub(super) fn tails_found(&mut self, call: Followed, found: Result<Vec<(AgentKey, AgentId, Cursor)>, Error>) {
        match (call, found) {
            (Followed::One(to, query), Ok(found)) => {
                let spool =
                    found.first().and_then(|(key, ..)| self.bodies.get(key)).and_then(|body| body.spool.clone());
                let (Some((key, id, cursor)), Some(spool)) = (found.into_iter().next(), spool) else {
                    return self.reply_value(to, Err(gone()));
                };
                if query.follow {
                    let call = self.clients.get(&to.client).and_then(|client| client.calls.get(&to.call)?.clone());
                    let first = self.follow_from(to.client, key, call.unwrap_or_default(), id, cursor);
                    self.reply_value(to, result(&first));
                } else {
                    self.hand_errand(Errand::Output { to, key, id, spool, cursor });
                }
            }
            (Followed::One(to, _), Err(error)) => self.reply_value(to, Err(error)),
            (Followed::Many(to), found) => {
                if let Some(joining) = self.clients.get_mut(&to.client).and_then(|client| client.joining.as_mut()) {
                    // Of an agent whose files are gone meanwhile there is nothing to follow.
                    joining.placed.extend(found.unwrap_or_default());
                }
                self.join_some(to);
            }
        }
    }

    /// A page of an agent's output is read. Meanwhile some of it may have been given up, and if the agent is forgotten by now, the
    /// files may have been another's.
    pub(super) fn output_read(&mut self, to: ReplyTo, key: AgentKey, read: Result<(Read, Cursor), Error>) {
        let spool = self.bodies.get(&key).and_then(|body| body.spool.as_ref());
        let output = match (spool.filter(|_| self.machine.id_of(key).is_some()), read) {
            (Some(spool), Ok((mut read, mut cursor))) => {
                spool.confirm(&mut read, &mut cursor);
                Ok(page(read, &cursor))
            }
            (None, _) => Err(gone()),
            (_, Err(error)) => Err(error),
        };
        self.reply_value(to, output.and_then(|output| result(&output)));
    }

    /// Every agent that had something to tell has a place: what comes from now on is told.
    fn joined(&mut self, to: ReplyTo, joining: Joining) {
        let placed: BTreeSet<AgentKey> = joining.placed.iter().map(|(key, ..)| *key).collect();
        let Some(client) = self.clients.get_mut(&to.client) else { return };
        let Joining { follow, placed: places, .. } = joining;
        let wide = client.wide.len();
        let lasts = Lasts::WhileKnown { wide, told: None };
        let stream = follow.query.stream;
        for (key, id, cursor) in places.into_iter().filter(|(key, ..)| self.machine.id_of(*key).is_some()) {
            let follow = OutputFollow { call: follow.call.clone(), id, cursor, lasts };
            client.outputs.entry(key).or_default().push(follow);
            client.news.insert(key);
        }
        // Who has begun to write meanwhile is told from its beginning.
        for key in self.machine.select(&follow.query.target).unwrap_or_default() {
            let Some(body) = self.bodies.get(&key).filter(|body| body.spool.is_some()) else { continue };
            if !placed.contains(&key) && self.machine.may_read(&client.caller, key) {
                let cursor = Cursor::at(stream, |_| 0);
                let follow = OutputFollow { call: follow.call.clone(), id: body.id.clone(), cursor, lasts };
                client.outputs.entry(key).or_default().push(follow);
                client.news.insert(key);
            }
        }
        client.wide.push(follow);
        self.reply_value(to, result(&Nothing {}));
    }
}

fn gone() -> Error {
    Error::new(Code::NoSuchAgent, "the agent was forgotten meanwhile").remedy("`treeherd ps` lists all")
}

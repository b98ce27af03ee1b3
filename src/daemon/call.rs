//! What each method does: the ones that change something go to the machine, the ones that read are answered here.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::accept::Owner;
use super::client::{Client, EventFollow, Lasts, OutputFollow, WideFollow};
use super::follow::read;
use super::job::{Job, Measured};
use super::reread::OURSELVES;
use super::supervisor::{Supervisor, now};
use crate::api::message::{Incoming, Outcome, result};
use crate::api::method::{
    Call, EventQuery, Events, FollowQuery, Hello, LogQuery, Nothing, Offsets, Selection, Shown, Stats, StatsQuery,
    grace,
};
use crate::api::{CALLS_MAX, WIDE_MAX};
use crate::kernel::cgroup::Place;
use crate::kernel::pidfd;
use crate::machine::{AgentKey, Input, ReplyTo};
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::request::{Answer, Request, Target};
use crate::model::status::{AgentStatus, millis};
use crate::model::stream::Stream;
use crate::model::usage::Usage;
use crate::output::{Cursor, Spool};

/// Figures of the herd and of each agent, kept for an interval.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    herd: Option<Usage>,
    agents: Vec<(AgentKey, Usage)>,
}

/// Whether a call is answered now or later.
enum Answered {
    Now(Box<RawValue>),
    Later,
}

fn now_with<T: Serialize>(value: &T) -> Result<Answered, Error> {
    result(value).map(Answered::Now)
}

impl Supervisor {
    /// Takes one line of a client.
    pub(super) fn request(&mut self, client_id: u64, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let incoming = match Incoming::parse(line) {
            Ok(incoming) => incoming,
            Err(error) => return self.answer(client_id, Some(&Value::Null), Err(error)),
        };
        let id = incoming.id.as_ref();
        let outcome =
            Call::parse(&incoming.method, incoming.params).and_then(|call| self.take_call(client_id, id, call));
        match outcome {
            Ok(Answered::Now(value)) => self.answer(client_id, id, Ok(value)),
            Ok(Answered::Later) => {}
            Err(error) => self.answer(client_id, id, Err(error)),
        }
    }

    /// Answers a call, unless its client wants no answer.
    fn answer(&mut self, client_id: u64, id: Option<&Value>, outcome: Outcome) {
        if let (Some(client), Some(id)) = (self.clients.get_mut(&client_id), id) {
            client.answer(id, outcome);
            self.stirred.insert(client_id);
        }
    }

    /// Answers a call that the machine, or a hand, has decided upon.
    pub(super) fn reply(&mut self, to: ReplyTo, outcome: Result<Answer, Error>) {
        if let (OURSELVES, Err(error)) = (to, &outcome) {
            return tracing::error!("{error}");
        }
        let value = outcome.and_then(|answer| match answer {
            Answer::Agent(status) => result(&self.with_lines(*status)),
            Answer::Agents(statuses) => {
                result(&statuses.into_iter().map(|status| self.with_lines(status)).collect::<Vec<_>>())
            }
            Answer::Receipt(receipt) => result(&receipt),
            Answer::Limits(limits) => result(&limits),
        });
        self.reply_value(to, value);
    }

    pub(super) fn reply_value(&mut self, to: ReplyTo, value: Outcome) {
        let Some(client) = self.clients.get_mut(&to.client) else { return };
        if let Some(id) = client.calls.remove(&to.call).flatten() {
            client.answer(&id, value);
            self.stirred.insert(to.client);
        }
    }

    /// Adds to a status what only the shell knows.
    fn with_lines(&self, mut status: AgentStatus) -> AgentStatus {
        let body = self.machine.key_of(&status.id).and_then(|key| self.bodies.get(&key));
        if let (Some(exit), Some(body)) = (&mut status.exit, body) {
            exit.last_lines.clone_from(&body.last_lines);
        }
        status
    }

    fn take_call(&mut self, client_id: u64, id: Option<&Value>, call: Call) -> Result<Answered, Error> {
        let request = match call {
            Call::Hello(_) => return now_with(&self.hello()),
            Call::Config(_) => return now_with(&self.configured()),
            Call::Ps(selection) => return now_with(&self.ps(&selection)?),
            Call::Process(of) => return now_with(&self.process(of.pid)?),
            Call::Events(query) => return now_with(&self.events(client_id, id, query)?),
            Call::Logs(query) => return self.logs(client_id, id, &query),
            Call::Follow(query) => return now_with(&self.follow(client_id, id, query)?),
            Call::Doctor(_) => return now_with(&super::doctor::doctor(&self.settings)),
            Call::Show(of) => {
                let key = self.readable(client_id, &of.id)?;
                let reply = self.expect_reply(client_id, id)?;
                let mut places = self.places(&[key]);
                let run = self.machine.run_of(key).and_then(|run| Some((key, self.bodies.get(&key)?.run_place(run))));
                places.extend(run.filter(|_| !self.machine.has_ended(key)));
                self.hand(Job::Measure { call: Measured::Agent(reply, key), places });
                return Ok(Answered::Later);
            }
            Call::Explain(of) => {
                let key = self.readable(client_id, &of.id)?;
                let mut told = self.machine.explain(key, now().mono);
                let home = self.bodies.get(&key).map(|body| &body.home).filter(|_| !told.state.has_ended());
                told.because.extend(home.map(|home| self.hits_over(home)).unwrap_or_default());
                return now_with(&told);
            }
            Call::Stats(query) => return self.stats(client_id, id, query),
            Call::Spawn(spec) => {
                self.check_pressure(&spec.pressure)?;
                Request::Spawn(spec)
            }
            Call::Pause(of) => Request::Pause(of.target),
            Call::Resume(of) => Request::Resume(of.target),
            Call::Terminate(ending) => Request::Terminate(ending.target, grace(ending.grace_ms)),
            Call::Limit(change) => Request::Limit(change.scope, change.limits),
            Call::Restart(of) => Request::Restart(of.id),
            Call::Wait(of) => Request::Wait(of.ids),
            Call::Cleanup(of) => Request::Cleanup(of.target),
            Call::Shutdown(of) => Request::Shutdown(grace(of.grace_ms)),
        };
        let reply = self.expect_reply(client_id, id)?;
        let Some(caller) = self.clients.get(&client_id).map(|client| client.caller.clone()) else {
            return Ok(Answered::Later);
        };
        self.feed(Input::Asked(reply, caller, request));
        Ok(Answered::Later)
    }

    /// Notes that a call will be answered later.
    fn expect_reply(&mut self, client_id: u64, id: Option<&Value>) -> Result<ReplyTo, Error> {
        let call = self.fresh();
        let gone = || Error::new(Code::NoDaemon, "the client is gone");
        let client = self.clients.get_mut(&client_id).ok_or_else(gone)?;
        if !client.may_call() {
            let error =
                Error::new(Code::TooManyClients, format!("{CALLS_MAX} calls of this connection are not answered yet"));
            return Err(error.remedy("wait for answers before sending more"));
        }
        client.calls.insert(call, id.cloned());
        Ok(ReplyTo { client: client_id, call })
    }

    fn hello(&self) -> Hello {
        Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            cgroup: self.root.clone(),
            state_dir: self.settings.state_dir.display().to_string(),
        }
    }

    fn ps(&self, selection: &Selection) -> Result<Vec<AgentStatus>, Error> {
        let mut keys = self.machine.select(selection.target.as_ref().unwrap_or(&Target::All))?;
        if let Some(parent) = &selection.parent {
            let parent = self.find(parent)?;
            keys.retain(|key| self.machine.parent_of(*key) == Some(parent));
        }
        let mono = now().mono;
        Ok(keys.into_iter().map(|key| self.with_lines(self.machine.status(key, mono))).collect())
    }

    fn find(&self, id: &AgentId) -> Result<AgentKey, Error> {
        self.machine.key_of(id).ok_or_else(|| {
            Error::new(Code::NoSuchAgent, format!("no agent is called {id}")).remedy("`treeherd ps` lists all")
        })
    }

    /// Finds an agent whose secrets (output, environment) this client may read: an agent sees itself and what is below it.
    fn readable(&self, client_id: u64, id: &AgentId) -> Result<AgentKey, Error> {
        let key = self.find(id)?;
        if self.may_read(client_id, key) {
            return Ok(key);
        }
        let error = Error::new(Code::Forbidden, format!("an agent may not read the output and settings of {id}"));
        Err(error.remedy("name the agent itself or one below it"))
    }

    fn may_read(&self, client_id: u64, key: AgentKey) -> bool {
        self.clients.get(&client_id).is_none_or(|client| self.machine.may_read(&client.caller, key))
    }

    fn process(&self, pid: i32) -> Result<AgentStatus, Error> {
        let none = || {
            Error::new(Code::NoSuchAgent, format!("process {pid} belongs to no agent"))
                .remedy("`treeherd ps` lists all agents")
        };
        let cgroup = pidfd::cgroup_of(pid).ok_or_else(none)?;
        let Owner::Agent(key, _) = self.cgroup_owner(&cgroup) else { return Err(none()) };
        Ok(self.with_lines(self.machine.status(key, now().mono)))
    }

    fn events(&mut self, client_id: u64, id: Option<&Value>, query: EventQuery) -> Result<Events, Error> {
        let own = self.clients.get(&client_id).and_then(|client| client.caller.agent);
        if own.is_some() {
            let of = query.agent.as_ref().or(query.parent.as_ref());
            let error =
                Error::new(Code::Forbidden, "an agent may read only the events of itself and of agents below it");
            let of = of.ok_or_else(|| error.remedy("name one with agent or parent"))?.clone();
            self.readable(client_id, &of)?;
        }
        if !query.follow {
            self.write_down();
            return self.journal.read(&query);
        }
        self.check_follows(client_id)?;
        let last = self.journal.last();
        let next = query.since.map_or(last, |since| since.min(last)) + 1;
        if let Some(client) = self.clients.get_mut(&client_id) {
            client.events.push(EventFollow { call: id.cloned().unwrap_or_default(), query, next });
            self.stirred.insert(client_id);
        }
        Ok(Events { events: Vec::new(), last, lost: 0 })
    }

    fn logs(&mut self, client_id: u64, id: Option<&Value>, query: &LogQuery) -> Result<Answered, Error> {
        let key = self.readable(client_id, &query.id)?;
        self.catch_up(key);
        let Some(spool) = self.bodies.get(&key).and_then(|body| body.spool.as_ref()) else {
            let error = Error::new(Code::WrongState, format!("logs {}: it never ran and has no output", query.id));
            return Err(error.remedy("name an agent with a command"));
        };
        let mut cursor = match query.from {
            Some(from) if query.lines.is_none() => {
                let mut cursor = Cursor { stdout: from.stdout, stderr: from.stderr };
                Stream::ALL.into_iter().filter(|it| query.stream.is_some_and(|only| only != *it)).for_each(|stream| {
                    cursor.set(stream, None);
                });
                cursor
            }
            Some(_) => {
                return Err(
                    Error::new(Code::BadValue, "logs: both lines and from are given").remedy("give one of them")
                );
            }
            None => self.first_cursor(spool, &query.id, query.stream, query.lines)?,
        };
        if !query.follow {
            return now_with(&read(self, spool, &query.id, &mut cursor)?);
        }
        self.check_follows(client_id)?;
        let next = Offsets { stdout: cursor.stdout, stderr: cursor.stderr };
        let first = crate::api::method::Output { next, ..Default::default() };
        if let Some(client) = self.clients.get_mut(&client_id) {
            let (call, id) = (id.cloned().unwrap_or_default(), query.id.clone());
            let follow = OutputFollow { call, id, cursor, lasts: Lasts::UntilItEnds };
            client.outputs.entry(key).or_default().push(follow);
            client.news.insert(key);
            self.stirred.insert(client_id);
        }
        now_with(&first)
    }

    /// Returns where a reader begins: so many lines before the end, or at the first kept byte.
    fn first_cursor(
        &self,
        spool: &Spool,
        id: &AgentId,
        stream: Option<Stream>,
        lines: Option<usize>,
    ) -> Result<Cursor, Error> {
        let Some(lines) = lines else { return Ok(Cursor::at(stream, |stream| spool.bounds(stream).0)) };
        let streams: Vec<Stream> = stream.map_or_else(|| Stream::ALL.to_vec(), |stream| vec![stream]);
        spool.from_tail(&self.tools.store, id, &streams, lines)
    }

    fn follow(&mut self, client_id: u64, id: Option<&Value>, query: FollowQuery) -> Result<Nothing, Error> {
        let is_agent = self.clients.get(&client_id).is_some_and(|client| client.caller.agent.is_some());
        match &query.target {
            Target::Ids(ids) => ids.iter().try_for_each(|id| self.readable(client_id, id).map(drop))?,
            _ if is_agent => {
                let error = Error::new(Code::Forbidden, "an agent may follow only itself and the agents below it");
                return Err(error.remedy("name them by their ids"));
            }
            _ => {}
        }
        self.check_follows(client_id)?;
        if self.clients.get(&client_id).is_some_and(|client| client.wide.len() >= WIDE_MAX) {
            let error = Error::new(
                Code::TooManyClients,
                format!("{WIDE_MAX} calls of this connection follow many agents already"),
            );
            return Err(error.remedy("follow with a wider target, or use another connection"));
        }
        let mut began = Vec::new();
        for key in self.machine.select(&query.target)? {
            self.catch_up(key);
            let Some(body) = self.bodies.get(&key) else { continue };
            if let Some(spool) = &body.spool {
                began.push((key, body.id.clone(), self.first_cursor(spool, &body.id, query.stream, query.lines)?));
            }
        }
        let Some(client) = self.clients.get_mut(&client_id) else { return Ok(Nothing {}) };
        let (call, wide) = (id.cloned().unwrap_or_default(), client.wide.len());
        for (key, id, cursor) in began {
            let lasts = Lasts::WhileKnown { wide, told: None };
            client.outputs.entry(key).or_default().push(OutputFollow { call: call.clone(), id, cursor, lasts });
            client.news.insert(key);
        }
        client.wide.push(WideFollow { call, query });
        self.stirred.insert(client_id);
        Ok(Nothing {})
    }

    /// Refuses a call that follows if the client has too many of them.
    fn check_follows(&self, client_id: u64) -> Result<(), Error> {
        if self.clients.get(&client_id).is_none_or(Client::may_follow) {
            return Ok(());
        }
        let error = Error::new(Code::TooManyClients, format!("{CALLS_MAX} calls of this connection follow already"));
        Err(error.remedy("follow many agents with one call of follow, or use another connection"))
    }

    fn stats(&mut self, client_id: u64, id: Option<&Value>, query: StatsQuery) -> Result<Answered, Error> {
        let mono = now().mono;
        let interval = self.settings.herd.monitoring_interval;
        if let Some((_, sample)) = self.usage.as_ref().filter(|(at, _)| mono.since(*at) < interval) {
            return now_with(&self.counted(sample, client_id, query));
        }
        let reply = self.expect_reply(client_id, id)?;
        let all = self.machine.select(&Target::All)?;
        self.hand(Job::Measure { call: Measured::Herd(reply, query), places: self.places(&all) });
        Ok(Answered::Later)
    }

    fn places(&self, keys: &[AgentKey]) -> Vec<(AgentKey, Place)> {
        let made = keys.iter().filter(|key| self.machine.has_cgroup(**key));
        made.filter_map(|key| Some((*key, self.bodies.get(key)?.home.clone()))).collect()
    }

    /// A hand has read the figures that somebody asked for.
    pub(super) fn measured(&mut self, call: Measured, herd: Option<Usage>, agents: Vec<(AgentKey, Usage, Place)>) {
        match call {
            Measured::Agent(to, key) => {
                let home = self.bodies.get(&key).map(|body| &body.home);
                let (homes, runs): (Vec<_>, Vec<_>) = agents.into_iter().partition(|(_, _, place)| Some(place) == home);
                let first = |of: Vec<(AgentKey, Usage, Place)>| of.first().map(|(_, usage, _)| *usage);
                let shown = self.shown(key, first(homes), first(runs));
                self.reply_value(to, shown.and_then(|shown| result(&shown)));
            }
            Measured::Herd(to, query) => {
                let agents = agents.into_iter().map(|(key, usage, _)| (key, usage)).collect();
                let sample = Sample { herd, agents };
                let stats = self.counted(&sample, to.client, query);
                self.usage = Some((now().mono, sample));
                self.reply_value(to, result(&stats));
            }
        }
    }

    fn shown(&mut self, key: AgentKey, usage: Option<Usage>, own_usage: Option<Usage>) -> Result<Shown, Error> {
        let now = now();
        let gone = || Error::new(Code::NoSuchAgent, "the agent was forgotten meanwhile");
        let spec = self.machine.spec_of(key).ok_or_else(gone)?.as_ref().clone();
        self.catch_up(key);
        let status = self.with_lines(self.machine.status(key, now.mono));
        let spool = self.bodies.get(&key).and_then(|body| body.spool.as_ref());
        let bounds = |stream| spool.map(|spool| spool.bounds(stream));
        let (stdout, stderr) = (bounds(Stream::Stdout), bounds(Stream::Stderr));
        let watcher = self.bodies.get(&key).and_then(|body| body.watcher.as_ref());
        let uptime_ms = status
            .started
            .filter(|_| status.pid.is_some())
            .map(|started| now.wall.0.saturating_sub(started.0) / 1_000_000);
        Ok(Shown {
            spec,
            usage,
            own_usage,
            uptime_ms,
            output_start: Offsets { stdout: stdout.map(|it| it.0), stderr: stderr.map(|it| it.0) },
            output_end: Offsets { stdout: stdout.map(|it| it.1), stderr: stderr.map(|it| it.1) },
            rules: watcher.map(|watcher| watcher.counts()).unwrap_or_default(),
            rules_gone_bytes: watcher.map_or(0, |watcher| watcher.gone),
            status,
        })
    }

    fn counted(&self, sample: &Sample, client_id: u64, query: StatsQuery) -> Stats {
        let counts = self.machine.counts();
        let (mut usage_by_level, mut usage_by_agent) = (BTreeMap::new(), BTreeMap::new());
        for (key, usage) in &sample.agents {
            let Some((id, level)) = self.machine.id_of(*key).zip(self.machine.level_of(*key)) else { continue };
            usage_by_level.entry(level).or_insert_with(Usage::default).add(usage);
            if query.agents && self.may_read(client_id, *key) {
                usage_by_agent.insert(id.clone(), *usage);
            }
        }
        Stats {
            agents: counts.levels.values().sum(),
            levels: counts.levels,
            states: counts.states,
            causes: counts.causes,
            detection: self.detection.report(),
            detection_by_cause: self.detection.report_by_cause(),
            usage: sample.herd,
            usage_by_level,
            usage_by_agent,
            rule_lines: self.rule_lines,
            limit_hits: self.limit_hits.clone(),
            clients: self.clients.len() as u64,
            notes_refused: self.mailbox.refused,
            last_event: self.journal.last(),
            uptime_ms: millis(now().mono.since(self.began)),
        }
    }

    /// Hands have found out who neither freezes nor dies.
    pub(super) fn laggards_found(&mut self, found: &[(AgentKey, String)], reply: Option<ReplyTo>) {
        for (key, tasks) in found {
            let now = now();
            let mut event =
                self.machine.event_about(now.mono, now.wall, crate::model::event::Kind::Lagging, Some(*key));
            event.message = format!("still waited for: {tasks}");
            self.publish(event);
        }
        let Some(to) = reply else { return };
        let name = |key: &AgentKey| self.machine.id_of(*key).map_or_else(|| key.to_string(), ToString::to_string);
        let list: Vec<String> = found.iter().map(|(key, tasks)| format!("{}: {tasks}", name(key))).collect();
        let message = format!("not all is frozen within the time: {}", list.join("; "));
        let error = Error::new(Code::TimedOut, message)
            .remedy("it goes on in the background; `treeherd ps` and the events tell when it is done");
        self.reply_value(to, Err(error));
    }
}

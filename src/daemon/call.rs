//! What each method does: the ones that change something go to the machine, the ones that read are answered here, or by a reader
//! thread if that takes long.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::accept::Owner;
use super::client::{Client, EventFollow};
use super::outbox::Entries;
use super::reads::{Errand, Measured, is_long_to_parse, parse};
use super::reread::OURSELVES;
use super::supervisor::{Supervisor, now};
use crate::api::message::{Outcome, result};
use crate::api::method::{
    Call, EventQuery, Events, Hello, Nothing, Offsets, Selection, Shown, Stats, StatsQuery, grace,
};
use crate::api::{CALL_ID_MAX, CALLS_MAX};
use crate::kernel::cgroup::Place;
use crate::machine::{AgentKey, Caller, Input, ReplyTo};
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::request::{Answer, Request, Target};
use crate::model::status::{AgentStatus, millis};
use crate::model::stream::Stream;
use crate::model::usage::Usage;

/// Figures of the herd and of each agent, kept for an interval.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    herd: Option<Usage>,
    agents: Vec<(AgentKey, Usage)>,
}

/// Whether a call is answered now or later.
pub(super) enum Answered {
    Now(Box<RawValue>),
    Later,
}

pub(super) fn now_with<T: Serialize>(value: &T) -> Result<Answered, Error> {
    result(value).map(Answered::Now)
}

/// Says whether the `id` of a request is as short as it has to be.
fn is_short(id: &Value) -> bool {
    match id {
        Value::String(text) => text.len() < CALL_ID_MAX,
        Value::Array(_) | Value::Object(_) => serde_json::to_string(id).is_ok_and(|json| json.len() <= CALL_ID_MAX),
        _ => true,
    }
}

impl Supervisor {
    /// Takes one line of a client.
    pub(super) fn request(&mut self, client_id: u64, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        if is_long_to_parse(line) {
            let number = self.fresh();
            if let Some(client) = self.clients.get_mut(&client_id) {
                client.reading = Some(number);
            }
            return self.hand_errand(Errand::Parse { client: client_id, number, line: line.to_vec() });
        }
        let (id, call) = parse(line);
        self.take_request(client_id, id.as_ref(), call);
    }

    /// Takes a request that is parsed, or was found to be none.
    pub(super) fn take_request(&mut self, client_id: u64, id: Option<&Value>, call: Result<Call, Error>) {
        let is_long = id.is_some_and(|id| !is_short(id));
        if is_long {
            let message = format!("the id of a request is longer than {CALL_ID_MAX} bytes");
            let error = Error::new(Code::TooLarge, message).remedy("use a number or a short text");
            return self.answer(client_id, Some(&Value::Null), Err(error));
        }
        let call = match call {
            Ok(call) if call.is_change() => match self.put_off(client_id, id, call) {
                Some(call) => Ok(call),
                None => return,
            },
            other => other,
        };
        match call.and_then(|call| self.take_call(client_id, id, call)) {
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
        let value = match outcome {
            Err(error) => Err(error),
            Ok(Answer::Agents(statuses)) => {
                return self.reply_list(to, ("[", "]"), Entries::Statuses(statuses.into_iter()));
            }
            Ok(Answer::Receipt(receipt)) => return self.reply_receipt(to, receipt),
            Ok(Answer::Agent(status)) => result(&self.with_lines(*status)),
            Ok(Answer::Limits(limits)) => result(&limits),
            Ok(Answer::Done) => result(&Nothing {}),
        };
        self.reply_value(to, value);
    }

    /// Answers a call with a list that is written as its reader takes it.
    pub(super) fn reply_list(&mut self, to: ReplyTo, around: (&str, &str), entries: Entries) {
        if let Some((client, id)) = self.call_is_over(to) {
            client.answer_list(&id, around, entries);
        }
    }

    pub(super) fn reply_value(&mut self, to: ReplyTo, value: Outcome) {
        if let Some((client, id)) = self.call_is_over(to) {
            client.answer(&id, value);
        }
    }

    /// Takes a call off its client's account. Returns both, if an answer is wanted.
    fn call_is_over(&mut self, to: ReplyTo) -> Option<(&mut Client, Value)> {
        let client = self.clients.get_mut(&to.client)?;
        self.stirred.insert(to.client);
        client.reading.take_if(|reading| *reading == to.call);
        let id = client.calls.remove(&to.call).flatten()?;
        Some((client, id))
    }

    /// Adds to a status what only the shell knows.
    pub(super) fn with_lines(&self, mut status: AgentStatus) -> AgentStatus {
        let body = self.machine.key_of(&status.id).and_then(|key| self.bodies.get(&key));
        if let (Some(exit), Some(body)) = (&mut status.exit, body) {
            exit.last_lines.clone_from(&body.last_lines);
        }
        status
    }

    fn take_call(&mut self, client_id: u64, id: Option<&Value>, call: Call) -> Result<Answered, Error> {
        let request = match call {
            Call::Hello(_) => return now_with(&self.hello()),
            Call::Config(_) => {
                self.permit_whole(client_id, "the configuration")?;
                return now_with(&self.configured());
            }
            Call::Ps(selection) => return self.ps(client_id, id, &selection),
            Call::Process(of) => {
                let to = self.expect_reading(client_id, id)?;
                self.hand_errand(Errand::Process { to, pid: of.pid });
                return Ok(Answered::Later);
            }
            Call::Events(query) => return self.events(client_id, id, query),
            Call::Logs(query) => return self.logs(client_id, id, query),
            Call::Follow(query) => return self.follow(client_id, id, query),
            Call::Doctor(_) => {
                self.permit_whole(client_id, "what the host offers")?;
                let to = self.expect_reading(client_id, id)?;
                self.ask_doctor(to);
                return Ok(Answered::Later);
            }
            Call::Show(of) => {
                let key = self.readable(client_id, &of.id)?;
                let to = self.expect_reading(client_id, id)?;
                let mut places = self.places(&[key]);
                let run = self.machine.run_of(key).and_then(|run| Some((key, self.bodies.get(&key)?.run_place(run))));
                places.extend(run.filter(|_| !self.machine.has_ended(key)));
                let call = Measured::Agent(to, key);
                self.hand_errand(Errand::Measure { call, places: places.into(), done: Vec::new() });
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
            Call::Limit(change) if change.lifted.is_empty() => Request::Limit(change.scope, change.limits),
            Call::Limit(change) => {
                let lifted = change.lifted.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
                Request::Lift(change.scope, change.limits, lifted)
            }
            Call::Declare(declaration) => Request::Declare(declaration.file, declaration.applied),
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

    /// Notes that a call will be answered when a reader thread is done; until then the client's other requests wait.
    pub(super) fn expect_reading(&mut self, client_id: u64, id: Option<&Value>) -> Result<ReplyTo, Error> {
        let to = self.expect_reply(client_id, id)?;
        if let Some(client) = self.clients.get_mut(&client_id) {
            client.reading = Some(to.call);
        }
        Ok(to)
    }

    fn hello(&self) -> Hello {
        Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            cgroup: self.root.clone(),
            state_dir: self.settings.state_dir.display().to_string(),
        }
    }

    fn ps(&mut self, client_id: u64, id: Option<&Value>, selection: &Selection) -> Result<Answered, Error> {
        let caller = self.caller_of(client_id)?;
        let mut keys = self.machine.select_readable(caller, selection.target.as_ref().unwrap_or(&Target::All))?;
        if let Some(parent) = &selection.parent {
            let parent = self.machine.find_readable(caller, parent)?;
            keys.retain(|key| self.machine.parent_of(*key) == Some(parent));
        }
        let to = self.expect_reply(client_id, id)?;
        self.reply_list(to, ("[", "]"), Entries::Agents(keys.into_iter()));
        Ok(Answered::Later)
    }

    fn caller_of(&self, client_id: u64) -> Result<&Caller, Error> {
        let gone = || Error::new(Code::NoDaemon, "the client is gone");
        self.clients.get(&client_id).map(|client| &client.caller).ok_or_else(gone)
    }

    pub(super) fn readable(&self, client_id: u64, id: &AgentId) -> Result<AgentKey, Error> {
        self.machine.find_readable(self.caller_of(client_id)?, id)
    }

    pub(super) fn permit_whole(&self, client_id: u64, what: &str) -> Result<(), Error> {
        self.machine.permit_whole(self.caller_of(client_id)?, what)
    }

    /// Tells to which agent a process in this cgroup belongs.
    pub(super) fn process(&self, client_id: u64, pid: i32, cgroup: Option<String>) -> Result<AgentStatus, Error> {
        let none = || {
            Error::new(Code::NoSuchAgent, format!("process {pid} belongs to no agent"))
                .remedy("`treeherd ps` lists all agents")
        };
        let cgroup = cgroup.ok_or_else(none)?;
        let Owner::Agent(key, _) = self.cgroup_owner(&cgroup) else { return Err(none()) };
        if !self.machine.may_read(self.caller_of(client_id)?, key) {
            return Err(none());
        }
        Ok(self.with_lines(self.machine.status(key, now().mono)))
    }

    fn events(&mut self, client_id: u64, id: Option<&Value>, mut query: EventQuery) -> Result<Answered, Error> {
        let (of, below) = (&query.agent, &query.parent);
        if of.is_none() && below.is_none() {
            self.permit_whole(client_id, "the events of the herd; name one with agent or parent")?;
        }
        let caller = self.caller_of(client_id)?;
        if caller.agent.is_some() || query.follow {
            // By identity: a name can belong to another agent before and after.
            let key_of = |id: &AgentId| match caller.agent {
                Some(_) => self.machine.find_readable(caller, id).map(Some),
                // Whoever follows a name that nobody has waits for the next that takes it.
                None => Ok(self.machine.key_of(id)),
            };
            let [of, below] = [of, below].map(|id| id.as_ref().map(key_of).transpose());
            (query.agent_key, query.parent_key) = (of?.flatten().map(|key| key.0), below?.flatten().map(|key| key.0));
        }
        if !query.follow {
            self.write_down();
            let to = self.expect_reading(client_id, id)?;
            let pages = self.journal.pages(query.since.unwrap_or(0));
            self.hand_errand(Errand::Events { to, pages, query });
            return Ok(Answered::Later);
        }
        self.check_follows(client_id)?;
        let last = self.journal.last();
        let next = query.since.map_or(last, |since| since.min(last)) + 1;
        let number = self.fresh();
        if let Some(client) = self.clients.get_mut(&client_id) {
            client.events.push(EventFollow { number, call: id.cloned().unwrap_or_default(), query, next });
            self.stirred.insert(client_id);
        }
        now_with(&Events { events: Vec::new(), last, lost: 0 })
    }

    /// Refuses a call that follows if the client has too many of them.
    pub(super) fn check_follows(&self, client_id: u64) -> Result<(), Error> {
        if self.clients.get(&client_id).is_none_or(Client::may_follow) {
            return Ok(());
        }
        let error = Error::new(Code::TooManyClients, format!("{CALLS_MAX} calls of this connection follow already"));
        Err(error.remedy("follow many agents with one call of follow, or use another connection"))
    }

    fn stats(&mut self, client_id: u64, id: Option<&Value>, query: StatsQuery) -> Result<Answered, Error> {
        self.permit_whole(client_id, "the figures of the herd")?;
        let mono = now().mono;
        let interval = self.settings.herd.monitoring_interval;
        let to = self.expect_reading(client_id, id)?;
        if self.usage.as_ref().is_some_and(|(at, _)| mono.since(*at) < interval) {
            self.reply_stats(to, query);
        } else {
            let all = self.machine.select(&Target::All)?;
            let places = self.places(&all);
            self.ask_stats(to, query, places);
        }
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
            Measured::Herd => {
                let agents = agents.into_iter().map(|(key, usage, _)| (key, usage)).collect();
                self.usage = Some((now().mono, Sample { herd, agents }));
                for (to, query) in self.take_stats() {
                    self.reply_stats(to, query);
                }
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

    /// Answers with the figures that were read last.
    fn reply_stats(&mut self, to: ReplyTo, query: StatsQuery) {
        let Some((_, sample)) = self.usage.take() else { return };
        let stats = self.counted(&sample);
        if query.agents {
            let usage = Entries::Usage(sample.agents.clone().into_iter());
            let text = serde_json::to_string(&stats).unwrap_or_default();
            let head = format!(r#"{},"usage_by_agent":{{"#, text.trim_end_matches('}'));
            self.reply_list(to, (&head, "}}"), usage);
        } else {
            self.reply_value(to, result(&stats));
        }
        self.usage = Some((now().mono, sample));
    }

    fn counted(&self, sample: &Sample) -> Stats {
        let counts = self.machine.counts();
        let mut usage_by_level = BTreeMap::new();
        for (key, usage) in &sample.agents {
            let Some(level) = self.machine.level_of(*key) else { continue };
            usage_by_level.entry(level).or_insert_with(Usage::default).add(usage);
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
            usage_by_agent: BTreeMap::new(),
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

//! The library's handle: a herd in this very process, or one behind a socket; both are used in the same way.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::api::client::Client;
use crate::api::method::{
    Call, Doctor, Ending, EventNote, EventQuery, Events, FollowQuery, Grace, LimitChange, LogQuery, Nothing, OfAgent,
    OfAgents, OfProcess, OfTarget, Offsets, Output, OutputNote, Selection, Shown, Stats, StatsQuery,
};
use crate::daemon::{self, Running, Settings};
use crate::model::error::{Code, Error};
use crate::model::explain::Explanation;
use crate::model::id::{AgentId, Level, SessionId};
use crate::model::limits::Limits;
use crate::model::request::{LimitScope, Target};
use crate::model::spec::AgentSpec;
use crate::model::status::{AgentStatus, Receipt};
use crate::model::stream::Stream;

/// A herd: a supervisor within this process ([`Herd::start`]) or a daemon behind a socket ([`Herd::connect`]).
///
/// Every method waits for its answer. The handle can be shared by threads: each call that is on its way has a connection of its
/// own, and connections are used again.
///
/// A herd that was started here and is dropped without [`Herd::shutdown`] is killed: nothing outlives its supervisor.
#[derive(Debug)]
pub struct Herd {
    socket: PathBuf,
    running: Mutex<Option<Running>>,
    idle: Mutex<Vec<Client>>,
}

/// The children of an agent: how they are, and what happens to them from then on.
#[derive(Debug)]
pub struct Monitor {
    /// How they were when the stream began.
    pub children: Vec<AgentStatus>,
    /// What happens to them.
    pub events: EventStream,
}

/// Events as they happen. Ends with the herd.
#[derive(Debug)]
pub struct EventStream(Client);

/// Output as it is written. Ends with the agent, or, of many, with the herd.
#[derive(Debug)]
pub struct OutputStream {
    client: Client,
    is_over: bool,
    /// Whether it is over when an agent has ended.
    is_single: bool,
}

impl Iterator for EventStream {
    type Item = EventNote;

    fn next(&mut self) -> Option<EventNote> {
        self.0.note().ok()?.read().ok()
    }
}

impl EventStream {
    /// Sets how long [`Iterator::next`] waits until it gives up; for ever if none is given.
    ///
    /// # Errors
    /// A duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.0.set_timeout(timeout)
    }
}

impl Iterator for OutputStream {
    type Item = OutputNote;

    fn next(&mut self) -> Option<OutputNote> {
        if self.is_over {
            return None;
        }
        let note: OutputNote = self.client.note().ok()?.read().ok()?;
        self.is_over = note.is_last && self.is_single;
        Some(note)
    }
}

impl OutputStream {
    /// Does as [`EventStream::set_timeout`].
    ///
    /// # Errors
    /// A duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.client.set_timeout(timeout)
    }
}

impl Herd {
    /// Starts a supervisor within this process.
    ///
    /// # Errors
    /// Everything that can be wrong with the host or the settings; then nothing is left behind.
    pub fn start(settings: Settings) -> Result<Self, Error> {
        let socket = settings.socket();
        let running = Mutex::new(Some(daemon::start(settings)?));
        let herd = Self { socket, running, idle: Mutex::default() };
        // Whoever has started a herd can end it, however many others are connected by then.
        let own = herd.connect_client()?;
        herd.idle.lock().unwrap_or_else(PoisonError::into_inner).push(own);
        Ok(herd)
    }

    /// Talks to the daemon that listens on a socket.
    ///
    /// # Errors
    /// [`Code::NoDaemon`] if none answers there.
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        let idle = Mutex::new(vec![Client::connect(socket)?]);
        Ok(Self { socket: socket.to_owned(), running: Mutex::default(), idle })
    }

    /// Opens a connection of one's own.
    ///
    /// # Errors
    /// [`Code::NoDaemon`] if the herd has ended.
    pub fn connect_client(&self) -> Result<Client, Error> {
        Client::connect(&self.socket)
    }

    fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        let mut client = self.idle_client()?;
        let outcome = client.call(call);
        if !matches!(&outcome, Err(error) if error.code == Code::NoDaemon) {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        }
        outcome
    }

    /// Takes a connection that nobody uses; one is there from the start, whatever becomes of the socket.
    fn idle_client(&self) -> Result<Client, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| self.connect_client(), Ok)
    }

    /// Registers a group: an agent that has children and no process. Its specification's command is left out.
    ///
    /// # Errors
    /// As [`Herd::spawn_child_agent`].
    pub fn register_agent(&self, spec: AgentSpec) -> Result<AgentStatus, Error> {
        self.call(&Call::Spawn(Box::new(AgentSpec { command: Vec::new(), ..spec })))
    }

    /// Starts an agent below another one, or a root agent. All or nothing: on an error no process, no cgroup and no record is left.
    ///
    /// # Errors
    /// The bound, the limit or the step that stands in the way.
    pub fn spawn_child_agent(&self, parent: Option<&AgentId>, spec: AgentSpec) -> Result<AgentStatus, Error> {
        self.call(&Call::Spawn(Box::new(AgentSpec { parent: parent.cloned(), ..spec })))
    }

    /// Tells how an agent is.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn agent_status(&self, id: &AgentId) -> Result<AgentStatus, Error> {
        let all: Vec<AgentStatus> = self.select(Some(Target::Ids(vec![id.clone()])), None)?;
        only(all, id)
    }

    /// Tells all of an agent: how it is, what was asked for, what it uses.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn show(&self, id: &AgentId) -> Result<Shown, Error> {
        self.call(&Call::Show(OfAgent { id: id.clone() }))
    }

    /// Tells why an agent is as it is, what it waits for, and what comes next.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn explain(&self, id: &AgentId) -> Result<Explanation, Error> {
        self.call(&Call::Explain(OfAgent { id: id.clone() }))
    }

    fn select(&self, target: Option<Target>, parent: Option<AgentId>) -> Result<Vec<AgentStatus>, Error> {
        self.call(&Call::Ps(Selection { target, parent }))
    }

    /// Lists all agents.
    ///
    /// # Errors
    /// [`Code::NoDaemon`].
    pub fn agents(&self) -> Result<Vec<AgentStatus>, Error> {
        self.select(None, None)
    }

    /// Lists the agents of a level.
    ///
    /// # Errors
    /// [`Code::NoDaemon`].
    pub fn processes_at_level(&self, level: Level) -> Result<Vec<AgentStatus>, Error> {
        self.select(Some(Target::Level(level)), None)
    }

    /// Lists the agents right below an agent.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn children_for_agent(&self, id: &AgentId) -> Result<Vec<AgentStatus>, Error> {
        self.select(None, Some(id.clone()))
    }

    /// Tells how the agents right below an agent are, and then what happens to them.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn monitor_children(&self, parent: &AgentId) -> Result<Monitor, Error> {
        let events = self.follow_events(EventQuery { parent: Some(parent.clone()), ..EventQuery::default() })?;
        Ok(Monitor { children: self.children_for_agent(parent)?, events })
    }

    /// Reads a page of past events.
    ///
    /// # Errors
    /// [`Code::NoDaemon`].
    pub fn events(&self, query: EventQuery) -> Result<Events, Error> {
        self.call(&Call::Events(EventQuery { follow: false, ..query }))
    }

    /// Follows events: those after `query.since`, or new ones only.
    ///
    /// # Errors
    /// [`Code::NoDaemon`].
    pub fn follow_events(&self, query: EventQuery) -> Result<EventStream, Error> {
        let mut client = self.connect_client()?;
        let _from: Events = client.call(&Call::Events(EventQuery { follow: true, ..query }))?;
        Ok(EventStream(client))
    }

    /// Freezes subtrees; returns when all is seen frozen.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`], [`Code::WrongState`]; [`Code::TimedOut`] with the tasks that do not freeze.
    pub fn pause(&self, target: Target) -> Result<Vec<AgentStatus>, Error> {
        self.call(&Call::Pause(OfTarget { target }))
    }

    /// Thaws subtrees.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`], [`Code::WrongState`].
    pub fn resume(&self, target: Target) -> Result<Vec<AgentStatus>, Error> {
        self.call(&Call::Resume(OfTarget { target }))
    }

    /// Ends subtrees; returns when nothing of them lives. Without a grace the agents' own one holds; a grace of zero kills at once.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn terminate(&self, target: Target, grace: Option<Duration>) -> Result<Receipt, Error> {
        let grace_ms = grace.map(crate::model::status::millis);
        self.call(&Call::Terminate(Ending { target, grace_ms }))
    }

    /// Freezes an agent's subtree.
    ///
    /// # Errors
    /// As [`Herd::pause`].
    pub fn pause_agent(&self, id: &AgentId) -> Result<AgentStatus, Error> {
        self.pause(Target::Ids(vec![id.clone()])).and_then(|all| only(all, id))
    }

    /// Thaws an agent's subtree.
    ///
    /// # Errors
    /// As [`Herd::resume`].
    pub fn resume_agent(&self, id: &AgentId) -> Result<AgentStatus, Error> {
        self.resume(Target::Ids(vec![id.clone()])).and_then(|all| only(all, id))
    }

    /// Ends an agent's subtree.
    ///
    /// # Errors
    /// As [`Herd::terminate`].
    pub fn terminate_agent(&self, id: &AgentId, grace: Option<Duration>) -> Result<Receipt, Error> {
        self.terminate(Target::Ids(vec![id.clone()]), grace)
    }

    /// Freezes every agent of a level.
    ///
    /// # Errors
    /// As [`Herd::pause`].
    pub fn pause_level(&self, level: Level) -> Result<Vec<AgentStatus>, Error> {
        self.pause(Target::Level(level))
    }

    /// Thaws every agent of a level.
    ///
    /// # Errors
    /// As [`Herd::resume`].
    pub fn resume_level(&self, level: Level) -> Result<Vec<AgentStatus>, Error> {
        self.resume(Target::Level(level))
    }

    /// Ends every agent of a level, with all below: all are frozen before the first is killed.
    ///
    /// # Errors
    /// As [`Herd::terminate`].
    pub fn terminate_level(&self, level: Level, grace: Option<Duration>) -> Result<Receipt, Error> {
        self.terminate(Target::Level(level), grace)
    }

    /// Freezes every agent of a session.
    ///
    /// # Errors
    /// As [`Herd::pause`].
    pub fn pause_session(&self, session: &SessionId) -> Result<Vec<AgentStatus>, Error> {
        self.pause(Target::Session(session.clone()))
    }

    /// Thaws every agent of a session.
    ///
    /// # Errors
    /// As [`Herd::resume`].
    pub fn resume_session(&self, session: &SessionId) -> Result<Vec<AgentStatus>, Error> {
        self.resume(Target::Session(session.clone()))
    }

    /// Ends every agent of a session, with all below.
    ///
    /// # Errors
    /// As [`Herd::terminate`].
    pub fn terminate_session(&self, session: &SessionId, grace: Option<Duration>) -> Result<Receipt, Error> {
        self.terminate(Target::Session(session.clone()), grace)
    }

    /// Changes limits; returns those that are in force now.
    ///
    /// # Errors
    /// [`Code::LimitNotOffered`], [`Code::LimitTooWide`], or what the kernel says; then nothing was changed.
    pub fn limit(&self, scope: LimitScope, limits: Limits) -> Result<Limits, Error> {
        self.call(&Call::Limit(LimitChange { scope, limits, lifted: Vec::new() }))
    }

    /// Ends an agent's run and starts the next one.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`], [`Code::WrongState`], or why the start failed.
    pub fn restart_agent(&self, id: &AgentId) -> Result<AgentStatus, Error> {
        self.call(&Call::Restart(OfAgent { id: id.clone() }))
    }

    /// Waits until all of these have ended.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn wait(&self, ids: &[AgentId]) -> Result<Vec<AgentStatus>, Error> {
        self.call(&Call::Wait(OfAgents { ids: ids.to_vec() }))
    }

    /// Reads an agent's standard output from an offset on, exactly as it was written: one page, with where to read on.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn agent_output(&self, id: &AgentId, from: u64) -> Result<Output, Error> {
        self.output(id, Stream::Stdout, Offsets { stdout: Some(from), stderr: None })
    }

    /// Reads an agent's standard error from an offset on, exactly as it was written: one page, with where to read on.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn agent_errors(&self, id: &AgentId, from: u64) -> Result<Output, Error> {
        self.output(id, Stream::Stderr, Offsets { stdout: None, stderr: Some(from) })
    }

    fn output(&self, id: &AgentId, stream: Stream, from: Offsets) -> Result<Output, Error> {
        let query = LogQuery { id: id.clone(), stream: Some(stream), from: Some(from), lines: None, follow: false };
        self.call(&Call::Logs(query))
    }

    /// Follows both streams of an agent until it has ended.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn follow_output(&self, id: &AgentId) -> Result<OutputStream, Error> {
        let mut client = self.connect_client()?;
        let query = LogQuery { id: id.clone(), stream: None, from: None, lines: None, follow: true };
        let _from: Output = client.call(&Call::Logs(query))?;
        Ok(OutputStream { client, is_over: false, is_single: true })
    }

    /// Follows both streams of all agents that a target covers, of those too that begin later, from the first kept bytes on;
    /// [`OutputNote::id`] tells whose it is.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn follow_outputs(&self, target: Target) -> Result<OutputStream, Error> {
        let mut client = self.connect_client()?;
        client.call::<Nothing>(&Call::Follow(FollowQuery { target, stream: None, lines: None }))?;
        Ok(OutputStream { client, is_over: false, is_single: false })
    }

    /// Returns an agent's main process, if its run is going on.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`].
    pub fn process_for_agent(&self, id: &AgentId) -> Result<Option<i32>, Error> {
        Ok(self.agent_status(id)?.pid)
    }

    /// Finds the agent that a process belongs to: a main process or any descendant.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`] if it belongs to none.
    pub fn agent_for_process(&self, pid: i32) -> Result<AgentStatus, Error> {
        self.call(&Call::Process(OfProcess { pid }))
    }

    /// Counts.
    ///
    /// # Errors
    /// [`Code::NoDaemon`].
    pub fn stats(&self) -> Result<Stats, Error> {
        self.call(&Call::Stats(StatsQuery::default()))
    }

    /// Tells what the host offers.
    ///
    /// # Errors
    /// [`Code::NoDaemon`].
    pub fn doctor(&self) -> Result<Doctor, Error> {
        self.call(&Call::Doctor(Nothing {}))
    }

    /// Forgets ended agents now, with their records and their output: when it returns, their ids are free.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`]; [`Code::WrongState`] for one that has not ended.
    pub fn cleanup(&self, target: Target) -> Result<Vec<AgentStatus>, Error> {
        self.call(&Call::Cleanup(OfTarget { target }))
    }

    /// Ends the herd, and the supervisor with it.
    ///
    /// # Errors
    /// [`Code::NoDaemon`].
    pub fn shutdown(self, grace: Option<Duration>) -> Result<Receipt, Error> {
        let mut client = self.idle_client()?;
        let receipt = client.call(&Call::Shutdown(Grace { grace_ms: grace.map(crate::model::status::millis) }));
        // The supervisor's last word is the end of the connection.
        while client.note().is_ok() {}
        // Why it ended by itself says more than that it does not answer.
        self.join()?;
        receipt
    }

    /// Waits until the supervisor that was started here has ended.
    ///
    /// # Errors
    /// Why it ended, if not because the herd was ended.
    pub fn join(self) -> Result<(), Error> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        running.map_or(Ok(()), Running::join)
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(running) = running else { return };
        if !running.has_ended() {
            // The answer may be lost with the connection: what counts is that the supervisor ends.
            let _receipt: Result<Receipt, Error> = self.call(&Call::Shutdown(Grace { grace_ms: Some(0) }));
        }
        if let Err(error) = running.join() {
            tracing::error!("the herd ended: {error}");
        }
    }
}

fn only(all: Vec<AgentStatus>, id: &AgentId) -> Result<AgentStatus, Error> {
    all.into_iter()
        .find(|agent| agent.id == *id)
        .ok_or_else(|| Error::new(Code::NoSuchAgent, format!("no agent is called {id}")))
}

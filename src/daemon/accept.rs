//! Who comes in: connections, who is behind them, and how they go.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use mio::Interest;

use super::client::Client;
use super::job::Job;
use super::supervisor::{Source, Supervisor};
use crate::api::CLIENTS_MAX;
use crate::api::message::answer_line;
use crate::kernel::socket::Peer;
use crate::machine::{AgentKey, Caller, Input};
use crate::model::error::{Code, Error};
use crate::model::id::Run;

/// The key of no agent: a process inside the herd that no agent of ours owns may do nothing.
const NOBODY: AgentKey = AgentKey(0);

/// How many connections may be on their way in: what comes faster than it can be found out who it is waits in the socket.
const ARRIVING_MOST: usize = 32;

impl Supervisor {
    /// Takes in who connects. Who it is a hand finds out: the kernel tells a process's cgroup only while nobody kills one.
    pub(super) fn accept(&mut self) {
        while self.arriving < ARRIVING_MOST {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((stream, _)) => {
                    self.arriving += 1;
                    self.hand(Job::Identify(stream.into()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!("accept: {error}");
                    return;
                }
            }
        }
    }

    /// A hand has found out who connected.
    pub(super) fn arrived(&mut self, stream: UnixStream, peer: Result<Peer, Error>) {
        self.arriving -= 1;
        match peer {
            Ok(peer) => self.welcome(stream, &peer),
            Err(error) => tracing::warn!("who connected: {error}"),
        }
        self.accept();
    }

    fn welcome(&mut self, stream: UnixStream, peer: &Peer) {
        if self.clients.len() >= CLIENTS_MAX {
            let error =
                Error::new(Code::TooManyClients, format!("{CLIENTS_MAX} clients are connected, the most there may be"));
            let line = answer_line(&serde_json::Value::Null, Err(error.remedy("close a connection first")));
            // The socket's buffer is empty: one line always fits, or the other side is gone already.
            drop(std::io::Write::write(&mut &stream, &line));
            return;
        }
        let caller = self.caller(peer);
        self.take_client(stream, caller);
    }

    /// Adds a connection.
    pub(super) fn take_client(&mut self, stream: UnixStream, caller: Caller) {
        if let Err(error) = stream.set_nonblocking(true) {
            return tracing::warn!("take a client: {error}");
        }
        let id = self.fresh();
        let mut client = Client::new(mio::net::UnixStream::from_std(stream), caller);
        match self.poll.registry().register(client.stream(), Source::Client(id).token(), Interest::READABLE) {
            Ok(()) => drop(self.clients.insert(id, client)),
            Err(error) => tracing::warn!("take a client: {error}"),
        }
    }

    /// Says who is behind a connection: whoever is inside the herd speaks as its agent.
    fn caller(&self, peer: &Peer) -> Caller {
        let name: Arc<str> = format!("uid {}, pid {}", peer.uid, peer.pid).into();
        let agent = peer.cgroup.as_deref().and_then(|cgroup| self.agent_of(cgroup));
        let name = match agent.and_then(|key| self.machine.id_of(key)) {
            Some(id) => format!("agent {id}, {name}").into(),
            None => name,
        };
        Caller { name, agent }
    }

    /// Finds the agent in whose cgroup a process is; [`NOBODY`] for a process in the herd that belongs to none.
    pub(super) fn agent_of(&self, cgroup: &str) -> Option<AgentKey> {
        self.member_of(cgroup).map(|(key, _)| key)
    }

    /// Finds the agent in whose cgroup a process is, and the run, unless it has left that one's.
    pub(super) fn member_of(&self, cgroup: &str) -> Option<(AgentKey, Option<Run>)> {
        let below = cgroup.strip_prefix(&self.tools.cgroups.herd_path())?.strip_prefix('/')?;
        // a / level-1 / b / run-3. What is below a run an agent has made itself, and can give any name to.
        let mut names = below.split('/');
        let (mut id, mut run) = (names.next()?, None);
        while let Some(name) = names.next() {
            match (name.strip_prefix("run-"), names.next()) {
                (Some(number), _) => {
                    run = number.parse().ok().map(Run);
                    break;
                }
                (None, Some(next)) if name.starts_with("level-") => id = next,
                (None, _) => break,
            }
        }
        let key = id.parse().ok().and_then(|id| self.machine.key_of(&id));
        Some((key.unwrap_or(NOBODY), run))
    }

    /// Serves what a client has sent.
    pub(super) fn serve_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let has_more = client.receive();
        let lines = client.lines();
        let is_eager = has_more || client.has_lines() && !lines.is_empty();
        for line in lines {
            self.request(id, &line);
        }
        if is_eager {
            self.eager.insert(id);
        }
        self.stirred.insert(id);
    }

    pub(super) fn drop_client(&mut self, id: u64, mut client: Client) {
        if let Err(error) = self.poll.registry().deregister(client.stream()) {
            tracing::debug!("let a client go: {error}");
        }
        self.feed(Input::Departed(id));
    }
}

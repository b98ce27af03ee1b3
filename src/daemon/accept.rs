//! Who comes in: connections, who is behind them, and how they go.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mio::Interest;

use super::client::Client;
use super::guard;
use super::job::{Arrival, Job};
use super::quota::Account;
use super::settings::Residence;
use super::supervisor::{Chore, Source, Supervisor};
use crate::api::message::answer_line;
use crate::kernel::clock;
use crate::kernel::peer::{Origin, Peer};
use crate::kernel::rights::{self, Stream};
use crate::machine::{AgentKey, Caller, Input};
use crate::model::error::{Code, Error};
use crate::model::id::Run;
use crate::model::time::Monotonic;

/// When a connection that could not be accepted is tried again: nothing tells when there are descriptors again.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How much memory has to be given up for that to be worth a trim of the heap.
const TRIM_LEAST: usize = 4 << 20;

/// How long after memory was given up the heap is trimmed, once for all that is given up meanwhile.
const TRIM_AFTER: Duration = Duration::from_secs(5);

/// How many requests of one client a turn takes.
const REQUESTS_A_TURN: usize = 32;

/// How many connections may be on their way in: what comes faster than it can be found out who it is waits in the socket.
const ARRIVING_MOST: usize = 32;

/// To whom a cgroup belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It is outside the herd.
    Outside,
    /// An agent, and the run unless it is in no run's cgroup.
    Agent(AgentKey, Option<Run>),
    /// It is in the herd, and no agent is known that it could belong to.
    Nobody,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            rights::close_listener(std::os::unix::net::UnixListener::from(listener).into());
        }
    }
}

impl Supervisor {
    /// Takes in who connects. Who it is a hand finds out: the kernel tells a process's cgroup only while nobody kills one.
    pub(super) fn accept(&mut self) {
        while self.arriving < ARRIVING_MOST {
            if !rights::CLIENTS.has_room() {
                return self.wait_for_closers("no connection is accepted");
            }
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((stream, _)) => {
                    self.accept_fails = false;
                    let stream = Stream::new(OwnedFd::from(std::os::unix::net::UnixStream::from(stream)));
                    if let Err(error) = guard::check_for_client(stream.as_fd()) {
                        self.turn_away(&stream, error);
                        continue;
                    }
                    self.arriving += 1;
                    let (accepted, newest) = (clock::monotonic(), self.machine.newest());
                    self.hand(Job::Identify(Arrival { stream, accepted, newest }));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.accept_fails, true) {
                        tracing::warn!("accept: {error}; it is tried again every {ACCEPT_RETRY:?}");
                    }
                    self.chores.insert((clock::monotonic() + ACCEPT_RETRY, Chore::Accept));
                    return;
                }
            }
        }
    }

    /// A hand has found out who connected.
    pub(super) fn arrived(&mut self, arrival: Arrival, peer: Result<Peer, Error>) {
        self.arriving -= 1;
        let outcome = peer.and_then(|peer| {
            let caller = self.caller(&peer, arrival.newest)?;
            let account = self.account_of(&caller);
            self.check_quota(&arrival.stream, account)?;
            Ok((caller, account))
        });
        match outcome {
            Ok((caller, account)) => self.take_client(arrival.stream, caller, account),
            Err(error) => self.turn_away(&arrival.stream, error),
        }
        self.accept();
    }

    /// Refuses a connection. Reported for the first, the second, the fourth and so on: a client can make as many as it likes.
    fn turn_away(&mut self, stream: &Stream, error: Error) {
        self.turned_away += 1;
        if self.turned_away.is_power_of_two() {
            tracing::warn!("a connection is refused: {error}; refused so far: {}", self.turned_away);
        }
        // The socket's buffer is empty: one line always fits, or the other side is gone already.
        stream.write(&answer_line(&serde_json::Value::Null, Err(error))).unwrap_or_default();
    }

    /// Adds a connection.
    fn take_client(&mut self, stream: Stream, caller: Caller, account: Account) {
        let id = self.fresh();
        self.poll_for(&stream, Source::Client(id), Interest::READABLE);
        self.clients.insert(id, Client::new(stream, caller, account));
    }

    /// Decides once, for the whole life of a connection, in whose name it speaks: a process in the herd is its agent. Who
    /// cannot be identified has no rights at all.
    ///
    /// A connection that is handed on, inherited, or left behind by a process that ends or moves keeps the name of the process
    /// that made it. An agent that was made after the connection was accepted is not the one that connected, whatever its id.
    fn caller(&self, peer: &Peer, newest: AgentKey) -> Result<Caller, Error> {
        let name = format!("uid {}, pid {}", peer.uid, peer.pid);
        let user = Some((peer.uid, peer.gid));
        let refused = |why: &str| {
            let error = Error::new(Code::Forbidden, format!("the process that connected ({name}) {why}"));
            Err(error.remedy("connect from a process that lives until its first request is answered"))
        };
        let owner = match &peer.origin {
            Origin::Cgroup(path) => self.cgroup_owner(path),
            Origin::OtherNamespace => Owner::Outside,
            Origin::Unknown(why) => return refused(why),
        };
        match owner {
            Owner::Outside => Ok(Caller { name: name.into(), agent: None, user }),
            Owner::Agent(key, _) if key <= newest => {
                let id = self.machine.id_of(key).map(|id| format!("agent {id}, {name}"));
                Ok(Caller { name: id.map_or_else(|| Arc::from(name), Arc::from), agent: Some(key), user })
            }
            Owner::Agent(..) | Owner::Nobody => refused("is in a cgroup of this herd that belongs to no agent"),
        }
    }

    /// Finds out to whom a cgroup belongs, by its path.
    pub(super) fn cgroup_owner(&self, cgroup: &str) -> Owner {
        let herd = self.tools.cgroups.herd_path();
        let Some(below) = cgroup.strip_prefix(&herd).filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
            return Owner::Outside;
        };
        // a / level-1 / b / run-3. What is below a run an agent has made itself, and can give any name to.
        let mut names = below.trim_start_matches('/').split('/');
        let (mut id, mut run) = (names.next().unwrap_or_default(), None);
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
        key.map_or(Owner::Nobody, |key| Owner::Agent(key, run))
    }

    /// Serves what a client has sent, until then.
    pub(super) fn serve_client(&mut self, id: u64, until: Monotonic) {
        let memory = self.clients_memory;
        let Some(client) = self.clients.get_mut(&id) else { return };
        let mut has_more = client.receive(memory);
        for taken in 1.. {
            let Some(line) = self.clients.get_mut(&id).and_then(|client| client.next_line(memory)) else { break };
            self.request(id, &line);
            if taken >= REQUESTS_A_TURN || clock::monotonic() >= until {
                has_more = true;
                break;
            }
        }
        if has_more {
            self.eager.insert(id);
        }
        self.stirred.insert(id);
    }

    pub(super) fn drop_client(&mut self, id: u64, client: Client) {
        self.memory_is_free(client.held());
        self.stop_polling(&client.stream);
        self.feed(Input::Departed(id));
    }

    /// So many bytes are used no more: when enough have come together and things have calmed down, they go back to the kernel.
    /// Nothing of that is done in somebody else's program.
    pub(super) fn memory_is_free(&mut self, bytes: usize) {
        let before = self.freed;
        self.freed += bytes;
        if before < TRIM_LEAST && self.freed >= TRIM_LEAST && self.settings.residence == Residence::OwnLeaf {
            self.chores.insert((clock::monotonic() + TRIM_AFTER, Chore::Trim));
        }
    }

    pub(super) fn trim_is_due(&mut self) {
        self.freed = 0;
        self.hand(Job::Trim);
    }
}

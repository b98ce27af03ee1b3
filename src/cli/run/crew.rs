//! The calls that may take long, each on a thread of its own: spawning, waiting, ending.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::super::ahead::Asked;
use crate::api::client::Client;
use crate::api::method::{Call, Ending, OfAgents, Selection};
use crate::herd::Herd;
use crate::model::error::{Code, Error};
use crate::model::id::AgentId;
use crate::model::request::Target;
use crate::model::spec::AgentSpec;
use crate::model::status::{AgentStatus, Receipt};

/// What the threads tell.
pub(super) enum Message {
    /// All agents were asked for, and each has started, waits for something, or was refused.
    Spawned,
    /// An agent was not started.
    Refused(AgentId, Error),
    /// All agents with a command have ended; these are the ones that are not forgotten.
    Done(Vec<AgentStatus>),
    /// The supervisor does not answer any more.
    Broken(Error),
    /// The end that a signal asked for failed.
    NotEnded(Error),
}

/// The threads.
pub(super) struct Crew {
    messages: Receiver<Message>,
    teller: Teller,
    /// Has a byte for each message.
    pub wake: UnixStream,
    is_ending: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Teller {
    messages: Sender<Message>,
    wake: Arc<UnixStream>,
}

impl Teller {
    fn tell(&self, message: Message) {
        // Nobody listens any more only when the run is over.
        self.messages.send(message).unwrap_or_default();
        (&*self.wake).write_all(b"m").unwrap_or_default();
    }
}

impl Crew {
    /// Starts to spawn agents, in an order in which each can be.
    pub(super) fn start(herd: &Herd, agents: Vec<AgentSpec>) -> Result<Self, Error> {
        let kernel = |error: std::io::Error| Error::new(Code::Kernel, format!("start a thread: {error}"));
        let (sender, messages) = channel();
        let (wake, write) = UnixStream::pair().map_err(kernel)?;
        wake.set_nonblocking(true).map_err(kernel)?;
        let teller = Teller { messages: sender, wake: Arc::new(write) };
        let is_ending = Arc::new(AtomicBool::new(false));
        let client = herd.connect_client()?;
        let work = Work { client, teller: teller.clone(), is_ending: Arc::clone(&is_ending) };
        std::thread::Builder::new().name("crew".to_owned()).spawn(move || work.run(agents)).map_err(kernel)?;
        Ok(Self { messages, teller, wake, is_ending })
    }

    /// Returns the next message, if there is one.
    pub(super) fn next(&mut self) -> Option<Message> {
        let message = self.messages.try_recv().ok();
        if message.is_none() {
            let mut bytes = [0; 256];
            // The bytes only say that there may be messages: one that came right now is found by the next look.
            while self.wake.read(&mut bytes).is_ok_and(|count| count > 0) {}
            return self.messages.try_recv().ok();
        }
        message
    }

    /// Ends all agents: politely, or at once.
    pub(super) fn end(&self, herd: &Herd, at_once: bool) -> Result<(), Error> {
        self.is_ending.store(true, Ordering::SeqCst);
        let mut client = herd.connect_client()?;
        let teller = self.teller.clone();
        let grace_ms = at_once.then_some(0);
        let thread = std::thread::Builder::new().name("end".to_owned()).spawn(move || {
            let ending = Ending { target: Target::All, grace_ms };
            if let Err(error) = client.call::<Receipt>(&Call::Terminate(ending)) {
                teller.tell(Message::NotEnded(error));
            }
        });
        thread.map(drop).map_err(|error| Error::new(Code::Kernel, format!("start a thread: {error}")))
    }
}

struct Work {
    client: Client,
    teller: Teller,
    is_ending: Arc<AtomicBool>,
}

impl Work {
    fn run(mut self, agents: Vec<AgentSpec>) {
        self.spawn_all(agents);
        self.teller.tell(Message::Spawned);
        let message = match self.wait_for_all() {
            Ok(statuses) => Message::Done(statuses),
            Err(error) => Message::Broken(error),
        };
        self.teller.tell(message);
    }

    /// Spawns all, several at a time, and children only once their parents are there.
    fn spawn_all(&mut self, agents: Vec<AgentSpec>) {
        let (mut asked, mut missing) = (Asked::default(), BTreeSet::new());
        for spec in agents {
            while asked.is_full() || asked.is_open(|id| spec.comes_after(id)) {
                self.hear(&mut asked, &mut missing);
            }
            let id = spec.id.clone();
            let outcome = if self.is_ending.load(Ordering::SeqCst) {
                Err((id, Error::new(Code::ShuttingDown, "not started: the run is being ended")))
            } else if let Some(parent) = spec.parent.as_ref().filter(|parent| missing.contains(*parent)) {
                Err((id, Error::new(Code::NoSuchParent, format!("not started: its parent {parent} was not"))))
            } else if let Some(first) = spec.after.iter().find(|first| missing.contains(*first)) {
                Err((id, Error::new(Code::NoSuchAgent, format!("not started: it starts after {first}, which was not"))))
            } else {
                asked.ask(&mut self.client, &Call::Spawn(Box::new(spec)), id)
            };
            if let Err((id, error)) = outcome {
                self.refuse(id, error, &mut missing);
            }
        }
        while !asked.is_empty() {
            self.hear(&mut asked, &mut missing);
        }
    }

    /// Waits for an answer.
    fn hear(&mut self, asked: &mut Asked<AgentId>, missing: &mut BTreeSet<AgentId>) {
        for (id, outcome) in asked.hear(&mut self.client) {
            if let Err(error) = outcome {
                self.refuse(id, error, missing);
            }
        }
    }

    fn refuse(&self, id: AgentId, error: Error, missing: &mut BTreeSet<AgentId>) {
        missing.insert(id.clone());
        self.teller.tell(Message::Refused(id, error));
    }

    /// Waits until no agent with a command lives, those included that agents have spawned meanwhile.
    fn wait_for_all(&mut self) -> Result<Vec<AgentStatus>, Error> {
        loop {
            if self.is_ending.load(Ordering::SeqCst) {
                // A spawn may have been under way when the end was asked for.
                let ending = Ending { target: Target::All, grace_ms: None };
                self.client.call::<Receipt>(&Call::Terminate(ending))?;
            }
            let agents: Vec<AgentStatus> = self.client.call(&Call::Ps(Selection::default()))?;
            let living = agents.iter().filter(|agent| !agent.command.is_empty() && !agent.state.has_ended());
            let ids: Vec<AgentId> = living.map(|agent| agent.id.clone()).collect();
            if ids.is_empty() {
                return Ok(agents);
            }
            // It can be long until the answer.
            drop(agents);
            match self.client.call::<Vec<AgentStatus>>(&Call::Wait(OfAgents { ids })) {
                // One of them is forgotten already: look again.
                Err(error) if error.code == Code::NoSuchAgent => {}
                other => drop(other?),
            }
        }
    }
}

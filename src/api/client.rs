//! The blocking client: calls, and the notifications of calls that follow.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::message::{Outcome, Outgoing, Reply};
use super::method::Call;
use crate::model::error::{Code, Error, check_socket_path};

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    /// How long a read may take.
    timeout: Option<Timespec>,
    next: u64,
    notes: VecDeque<Note>,
}

/// A notification.
#[derive(Clone, Debug)]
pub struct Note {
    /// `event` or `output`.
    pub method: String,
    /// Its content.
    pub params: Box<RawValue>,
}

impl Note {
    /// Reads its content: [`EventNote`](super::method::EventNote) or [`OutputNote`](super::method::OutputNote).
    ///
    /// # Errors
    /// [`Code::BadRequest`] if it is none.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read(&self.params, &self.method)
    }
}

impl Client {
    /// Connects to the daemon that listens on a socket.
    ///
    /// # Errors
    /// [`Code::NoDaemon`] if none answers there, or it may not be asked.
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        check_socket_path(socket)?;
        let stream = UnixStream::connect(socket).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "you need to be root or a member of the socket's group",
                _ => "start one with `treeherd daemon`, or name its socket with --socket or TREEHERD_SOCKET",
            };
            Error::new(Code::NoDaemon, format!("no daemon answers on {}: {error}", socket.display())).remedy(remedy)
        })?;
        Ok(Self::over(stream))
    }

    /// Talks over a stream that is connected already.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        Self { stream: BufReader::with_capacity(1 << 16, stream), timeout: None, next: 0, notes: VecDeque::new() }
    }

    /// Sends a call and waits for its answer; notifications that come meanwhile are kept for [`Client::note`].
    ///
    /// # Errors
    /// What the daemon answers, or [`Code::NoDaemon`] if it went away.
    pub fn call<T: DeserializeOwned>(&mut self, call: &Call) -> Result<T, Error> {
        let asked = self.ask(call)?;
        loop {
            let (id, outcome) = self.answer()?;
            if id == Some(asked) || outcome.is_err() {
                return read(&outcome?, call.method());
            }
        }
    }

    /// Sends a call and returns its number. The daemon carries calls out in the order in which they come, and answers when each is
    /// done: [`Client::answer`].
    ///
    /// # Errors
    /// [`Code::NoDaemon`] if the daemon went away.
    pub fn ask(&mut self, call: &Call) -> Result<u64, Error> {
        self.next += 1;
        let params = call.params().map_err(|error| broken(&error.to_string()))?;
        let message = Outgoing { jsonrpc: "2.0", id: self.next, method: call.method(), params };
        let mut line = serde_json::to_vec(&message).map_err(|error| broken(&error.to_string()))?;
        line.push(b'\n');
        match self.stream.get_mut().write_all(&line) {
            Ok(()) => Ok(self.next),
            // Who is turned away at the door is told why before it can ask.
            Err(error) => Err(match self.receive() {
                Ok(Reply { error: Some(refusal), .. }) => refusal.into(),
                _ => gone(&error),
            }),
        }
    }

    /// Waits for the next answer, and returns it with the number of its call: none if the daemon could not read the call.
    ///
    /// # Errors
    /// [`Code::NoDaemon`] if the daemon went away.
    pub fn answer(&mut self) -> Result<(Option<u64>, Outcome), Error> {
        loop {
            let reply = self.receive()?;
            if let (Some(method), Some(params)) = (reply.method, reply.params) {
                self.notes.push_back(Note { method, params });
                continue;
            }
            let outcome = match reply.error {
                Some(error) => Err(error.into()),
                None => Ok(reply.result.unwrap_or_else(|| RawValue::NULL.to_owned())),
            };
            return Ok((reply.id.as_ref().and_then(Value::as_u64), outcome));
        }
    }

    /// Waits for the next notification.
    ///
    /// # Errors
    /// [`Code::NoDaemon`] if the daemon went away.
    pub fn note(&mut self) -> Result<Note, Error> {
        loop {
            if let Some(note) = self.notes.pop_front() {
                return Ok(note);
            }
            let reply = self.receive()?;
            if let (Some(method), Some(params)) = (reply.method, reply.params) {
                return Ok(Note { method, params });
            }
            if let Some(error) = reply.error {
                return Err(error.into());
            }
        }
    }

    /// Says whether a notification, or the beginning of one, is here already: [`Client::note`] then waits for its rest at most.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.notes.is_empty() || !self.stream.buffer().is_empty()
    }

    /// Sets how long a read may take; for ever if none is given.
    ///
    /// # Errors
    /// A duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.stream.get_ref().set_read_timeout(timeout).map_err(|error| broken(&error.to_string()))?;
        self.timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        Ok(())
    }

    /// Sleeps until there is something to read. Who sleeps in the read itself is woken for nothing when the daemon takes its request,
    /// and the daemon pays for that before it has read on.
    fn await_bytes(&self) -> io::Result<()> {
        if !self.stream.buffer().is_empty() {
            return Ok(());
        }
        match poll(&mut [PollFd::new(self.stream.get_ref(), PollFlags::IN)], self.timeout.as_ref()) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            // Whatever is wrong, the read finds out.
            _ => Ok(()),
        }
    }

    fn receive(&mut self) -> Result<Reply, Error> {
        self.await_bytes().map_err(|error| gone(&error))?;
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line).map_err(|error| gone(&error))?;
        if read == 0 {
            return Err(Error::new(Code::NoDaemon, "the daemon closed the connection"));
        }
        serde_json::from_slice(&line).map_err(|error| broken(&error.to_string()))
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

/// Reads what a method gives, or a notification's content.
pub(crate) fn read<T: DeserializeOwned>(content: &RawValue, method: &str) -> Result<T, Error> {
    serde_json::from_str(content.get()).map_err(|error| broken(&format!("{method}: {error}")))
}

fn gone(error: &io::Error) -> Error {
    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        return Error::new(Code::TimedOut, "the daemon did not answer in time");
    }
    Error::new(Code::NoDaemon, format!("the daemon went away: {error}"))
}

fn broken(why: &str) -> Error {
    Error::new(Code::BadRequest, format!("the daemon and this program do not understand each other: {why}"))
        .remedy("use the same version of both")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::message::answer_line;
    use crate::api::method::Selection;

    #[test]
    fn who_is_turned_away_before_it_can_ask_is_told_why() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let refusal = Error::new(Code::TooManyClients, "so many are connected").remedy("close a connection first");
        theirs.write_all(&answer_line(&Value::Null, Err(refusal.clone()))).unwrap();
        drop(theirs);
        let refused = Client::over(ours).call::<Value>(&Call::Ps(Selection::default())).unwrap_err();
        assert_eq!(refused, refusal);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let gone = Client::over(ours).call::<Value>(&Call::Ps(Selection::default())).unwrap_err();
        assert_eq!(gone.code, Code::NoDaemon);
    }
}

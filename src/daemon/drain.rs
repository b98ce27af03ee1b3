//! Output pipes: what a run wrote is in its spool files before its end is reported, and its last lines, rules and readiness are
//! decided. The loop itself never touches a pipe: whoever splices from one holds its lock, and a disk can make that wait.

use std::time::Duration;

use mio::Interest;

use super::job::Job;
use super::keepers::Heard;
use super::supervisor::{Chore, Source, Supervisor, now};
use crate::kernel::clock;
use crate::kernel::keeper::Report;
use crate::kernel::pidfd::Held;
use crate::machine::{AgentKey, Input};
use crate::model::event::Kind;
use crate::model::id::Run;
use crate::model::status::{Exit, Rusage};
use crate::model::time::Monotonic;

/// How long the end of a run waits for its pipes to be empty. A keeper needs microseconds; one whose disk stalls holds up nobody's
/// end, and has its bytes written later.
const DRAINED_MAX: Duration = Duration::from_millis(100);

/// What goes on when an agent's pipes are empty.
#[derive(Debug)]
pub(super) enum After {
    /// The main process of a run has ended. It stays a zombie until that is written down.
    Ended { run: Run, exit: Exit, rusage: Rusage, process: Held },
    /// Nothing of a run lives.
    Emptied(Run),
    /// Nothing of an agent's subtree lives.
    SubtreeEmptied,
}

/// Who waits for empty pipes.
#[derive(Debug)]
pub(super) struct Draining {
    key: AgentKey,
    after: After,
    due: Monotonic,
    /// From when on the fact dates.
    since: Monotonic,
}

impl Supervisor {
    /// Goes on with a fact when everything that an agent wrote before it is in its spool files, or after a bounded time.
    pub(super) fn when_drained(&mut self, key: AgentKey, after: After) {
        let ticket = self.fresh();
        let token = self.bodies.get(&key).and_then(|body| body.pipes);
        if !token.is_some_and(|token| self.tools.keepers.drain(token, ticket)) {
            return self.go_on(key, after);
        }
        let (due, since) = (clock::monotonic() + DRAINED_MAX, self.detection.since());
        self.chores.insert((due, Chore::Drained(ticket)));
        self.draining.insert(ticket, Draining { key, after, due, since });
    }

    fn drained(&mut self, ticket: u64) {
        let Some(Draining { key, after, due, since }) = self.draining.remove(&ticket) else { return };
        self.chores.remove(&(due, Chore::Drained(ticket)));
        self.detection.note_deadline(since);
        self.go_on(key, after);
    }

    /// Waits no longer for empty pipes.
    pub(super) fn drain_is_due(&mut self, ticket: u64) {
        if let Some(Draining { key, .. }) = self.draining.get(&ticket) {
            tracing::warn!("{key}: what is in its output pipes is not written in time");
            self.drained(ticket);
        }
    }

    fn go_on(&mut self, key: AgentKey, after: After) {
        match after {
            After::Ended { run, exit, rusage, process } => self.report_end(key, run, exit, rusage, process),
            After::Emptied(run) => self.feed(Input::RunEmptied { agent: key, run }),
            // It may have been started again meanwhile.
            After::SubtreeEmptied if self.is_deserted(key) => self.feed(Input::SubtreeEmptied(key)),
            After::SubtreeEmptied => {}
        }
    }

    /// A keeper has something to tell, or has ended.
    pub(super) fn keeper_told(&mut self, number: usize) {
        let (reports, has_ended) = match self.tools.keepers.hear(number) {
            Heard::Reports(reports) => (reports, false),
            Heard::End(reports, keeper) => {
                self.stop_polling(&*keeper);
                self.hands.take(Job::Reap(keeper));
                (reports, true)
            }
        };
        for report in reports {
            match report {
                Report::Drained { ticket } => self.drained(ticket),
                Report::Fault { token, errno } => self.output_is_stuck(token, errno),
                Report::Refused { token } => {
                    tracing::error!("a keeper has refused an agent's output pipes: another keeper may have them");
                    self.forget_pipes(token);
                }
                Report::Has { .. } | Report::Ready { .. } => {}
            }
        }
        if has_ended {
            self.keeper_is_lost();
        }
    }

    /// Polls the keepers that a hand has started and epoll has not taken.
    pub(super) fn poll_keepers(&mut self) {
        for (number, keeper) in self.tools.keepers.take_unpolled() {
            self.poll_for(&*keeper, Source::Keeper(number), Interest::READABLE);
        }
    }

    fn keeper_is_lost(&mut self) {
        let now = now();
        let mut event = self.machine.event_about(now.mono, now.wall, Kind::KeeperLost, None);
        event.message = "a keeper of output pipes has ended, and another one takes them; what an agent that has ended \
                         since had in its pipes is lost"
            .to_owned();
        self.publish(event);
        let tools = self.tools.clone();
        self.disk.act(move || tools.store.discard_spares());
    }

    /// An agent's pipes are kept: it may have ended, and been forgotten, meanwhile.
    pub(super) fn pipes_kept(&mut self, key: AgentKey, token: Option<u64>) {
        // Where somebody has deleted them, the run that has them open goes on, and the next one has others.
        if token.is_some() {
            self.enter_pipes(key, token);
        }
    }

    /// Takes note of what an agent's output is from now on. Pipes that it had before are forgotten.
    pub(super) fn enter_pipes(&mut self, key: AgentKey, pipes: Option<u64>) {
        let before = match self.bodies.get_mut(&key) {
            Some(body) => std::mem::replace(&mut body.pipes, pipes).filter(|before| pipes != Some(*before)),
            None => pipes,
        };
        if let Some(before) = before {
            self.forget_pipes(before);
        }
    }

    /// Has an agent's pipes forgotten: it is.
    pub(super) fn forget_pipes(&mut self, token: u64) {
        if let Some(ends) = self.tools.keepers.forget(token) {
            self.hands.take(Job::Close(ends));
        }
    }

    /// Has the pipes kept that nobody keeps.
    pub(super) fn keep_again(&mut self) {
        let is_lost = |token: &u64| !self.tools.keepers.has(*token);
        let lost = self.bodies.iter().filter(|(_, body)| body.pipes.as_ref().is_some_and(is_lost));
        let jobs: Vec<Job> =
            lost.map(|(key, body)| Job::Keep { agent: *key, id: body.id.clone(), sweep: None }).collect();
        jobs.into_iter().for_each(|job| self.hands.take(job));
    }

    fn output_is_stuck(&mut self, token: u64, errno: i32) {
        let Some(key) = self.bodies.iter().find(|(_, body)| body.pipes == Some(token)).map(|(key, _)| *key) else {
            return;
        };
        let now = now();
        let mut event = self.machine.event_about(now.mono, now.wall, Kind::Notice, Some(key));
        let errno = nix::errno::Errno::from_raw(errno);
        event.message = format!(
            "its output cannot be written: {} ({errno:?}); it waits in its pipe, and is tried again each second",
            errno.desc()
        );
        self.publish(event);
    }
}

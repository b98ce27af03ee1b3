//! What the hands bring back: facts for the machine, and what the shell does about them itself.

use std::os::fd::AsFd;
use std::time::Duration;

use super::body::Ear;
use super::job::{Born, Job, Outcome};
use super::spawners::GivenUp;
use super::supervisor::{Chore, Supervisor};
use crate::kernel::clock;
use crate::kernel::pidfd::{self, Held};
use crate::machine::{AgentKey, Input};
use crate::model::id::Run;
use crate::model::stream::Stream;

/// How long the kill of its leaf may take to end a spawn that hangs.
const RESCUE_MAX: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn take_outcomes(&mut self) {
        while let Ok(outcome) = self.outcomes.try_recv() {
            self.take_outcome(outcome);
        }
    }

    pub(super) fn take_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Fact(fact) => self.take_fact(fact),
            Outcome::Born(born) => self.born(*born),
            Outcome::Limited(change, places) => {
                self.feed(Input::LimitsSet(change));
                self.watch_limits(&places);
            }
            Outcome::Outside(to, found) => self.complete_receipt(to, found),
            Outcome::Laggards { found, reply } => self.laggards_found(&found, reply),
            Outcome::Dug(agent, dug) => self.hole_dug(agent, dug),
            Outcome::KeeperReaped => self.keep_again(),
            Outcome::Kept(agent, token) => self.pipes_kept(agent, token),
            Outcome::Identified(arrival, peer) => self.arrived(arrival, peer),
            Outcome::Read(reading) => self.take_reading(*reading),
            Outcome::PidRead(read) => self.pid_read(&read),
            // A hand goes on with it by itself.
            Outcome::Unfinished(job) => self.hands.take(job),
            Outcome::Fault(error) => tracing::warn!("{error}"),
            Outcome::Nothing => {}
        }
    }

    /// Answers a spawn whose kill has not ended it, whatever keeps it.
    pub(super) fn give_spawn_up(&mut self, agent: AgentKey, run: Run) {
        match self.hands.spawners.give_up(agent, run) {
            GivenUp::Refused(failure) => self.take_fact(Input::SpawnFailed { agent, failure }),
            GivenUp::Unborn(made, failure) => self.hand(Job::TakeBack(made, failure)),
            GivenUp::Born(born) => self.born(*born),
            GivenUp::NotYet => self.await_rescue(agent, run),
            GivenUp::Over => {}
        }
    }

    /// Has a spawn that is being killed given up if that is in vain.
    pub(super) fn await_rescue(&mut self, agent: AgentKey, run: Run) {
        self.chores.insert((clock::monotonic() + RESCUE_MAX, Chore::Rescue(agent, run)));
    }

    /// Has threads that hang replaced, for as long as spawns wait.
    pub(super) fn relieve_spawners(&mut self) {
        if let Some(again) = self.hands.spawners.relieve(clock::monotonic()) {
            self.chores.insert((again, Chore::Spawners));
        }
    }

    fn take_fact(&mut self, fact: Input) {
        match &fact {
            Input::Removed(key) => self.forget_cgroups(*key),
            Input::SpawnFailed { agent, .. } => {
                let run = self.machine.run_of(*agent);
                if let Some(body) = self.bodies.get_mut(agent).filter(|body| body.spool_from == run) {
                    // The files that this very spawn made are taken back with it.
                    body.spool = None;
                }
            }
            _ => {}
        }
        let what_follows: Option<(_, fn(&mut Self, _))> = match &fact {
            // An empty cgroup, or one frozen from above, is frozen without news.
            Input::FreezerWritten { agent, .. } => Some((*agent, Self::await_frost)),
            Input::RemoveRefused(agent) => Some((*agent, Self::listen_at_home)),
            _ => None,
        };
        self.feed(fact);
        if let Some((key, follow)) = what_follows {
            follow(self, key);
        }
    }

    /// A run has started: listens for its end and its output.
    fn born(&mut self, born: Born) {
        let key = born.agent;
        self.watch_limits(&born.limited);
        self.watch_pressure(Some(key));
        self.poll_keepers();
        self.enter_pipes(key, born.pipes);
        if born.pipes.is_some_and(|token| !self.tools.keepers.has(token)) {
            // Who kept them has ended in between.
            self.keep_again();
        }
        let pid = born.process.as_ref().map(|(pid, _)| *pid);
        if let Some((pid, process)) = &born.process {
            self.records.note_process(key, pidfd::identity(process.as_fd(), *pid).ok());
        }
        self.feed(Input::Spawned { agent: key, pid });
        self.watch_output(key, born.run, born.rules);
        if let Some(socket) = born.newline {
            self.await_newline(key, born.run, socket);
        }
        if let Some((pid, fd)) = born.process {
            let process = Held { pid, fd: fd.into() };
            self.listen_to(key, born.run, process);
            // It may have written already: what nobody listens to yet is looked at first.
            for stream in Stream::ALL {
                if self.bodies.get(&key).is_some_and(|body| body.streams[stream as usize] == Ear::Deaf) {
                    self.spool_written(key, stream);
                }
            }
        }
    }
}

//! When spool files are looked at: woken by one-shot watches, damped, and never by a timer alone.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::body::{Ear, Watched};
use super::job::Job;
use super::rules::{Rest, scans_end};
use super::supervisor::{Chore, Supervisor, now};
use crate::kernel::clock;
use crate::machine::{AgentKey, Input};
use crate::model::error::Code;
use crate::model::event::{Event, Kind};
use crate::model::id::Run;
use crate::model::ready::Ready;
use crate::model::spec::AgentSpec;
use crate::model::stream::Stream;
use crate::output::{Cursor, Dug, Looked, Scan, Spool};

/// How long a file that was written to is left alone: what is written meanwhile costs nobody anything.
const DAMPING: Duration = Duration::from_millis(5);

/// Who writes so many bytes in a damping interval is looked at again after the next one: nobody listens meanwhile, as what would
/// be heard is known. A watch that fires at once would cost more than the look.
const RUSH: u64 = 64 << 10;

/// Who writes so many bytes between two looks is looked at sooner: at gigabytes a second the damping interval alone is more than may
/// stand over the cap.
const FLOOD: u64 = 4 << 20;
const FLOOD_DAMPING: Duration = Duration::from_millis(2);

/// How often files are looked at that cannot be watched.
pub(super) const UNWATCHED_LOOK: Duration = Duration::from_millis(200);

/// How often it is stored when output was seen. What a killed daemon had not stored yet is as old as the last write.
const TIMES_EVERY: Duration = Duration::from_secs(1);

/// How much of its stderr a failure tells.
const LAST_LINES: usize = 10;
const LAST_BYTES: usize = 4096;

impl Supervisor {
    /// A spool file was written to: it is looked at when the damping interval is over.
    pub(super) fn spool_written(&mut self, key: AgentKey, stream: Stream) {
        self.spool_due_in(key, stream, DAMPING);
    }

    /// Has a spool file looked at when this time has gone by, or earlier if it is due already.
    pub(super) fn spool_due_in(&mut self, key: AgentKey, stream: Stream, delay: Duration) {
        let Some(body) = self.bodies.get_mut(&key) else { return };
        let ear = std::mem::replace(&mut body.streams[stream as usize], Ear::Due);
        if ear != Ear::Due {
            self.chores.insert((clock::monotonic() + delay, Chore::Spool(key, stream)));
        }
        if let Ear::Armed(watch) = ear {
            self.unwatch(watch);
        }
    }

    /// Looks at a spool file, gives space back, listens again, and wakes the followers.
    pub(super) fn look_at_spool(&mut self, key: AgentKey, stream: Stream) {
        if let Some(body) = self.bodies.get_mut(&key) {
            // Its chore is being done: what comes from here on needs another one.
            let ear = &mut body.streams[stream as usize];
            if *ear == Ear::Due {
                *ear = Ear::Deaf;
            }
        }
        // Rules first: what they have looked at may be given back.
        let rest = self.look_for_rules(key, stream);
        let has_more = self.service(key, stream) | self.look_for_line(key, stream);
        match rest {
            Rest::Now => return self.spool_due_in(key, stream, Duration::ZERO),
            Rest::Nothing if !has_more => {}
            Rest::Nothing | Rest::More => return self.spool_written(key, stream),
        }
        self.arm(key, stream);
        // What was written between the look and the watch has woken nobody.
        if self.service(key, stream) | self.look_for_line(key, stream) | self.is_unread(key, stream) {
            self.spool_written(key, stream);
        }
    }

    /// Begins to look for the line that says that a run is ready, in what it is going to say.
    pub(super) fn await_line(&mut self, key: AgentKey, run: Run, spec: &AgentSpec) {
        let Some(Ready::Pattern { pattern, stream }) = &spec.ready else { return };
        if run > Run(1) {
            self.catch_up(key);
        }
        let Some(body) = self.bodies.get_mut(&key) else { return };
        body.scan = body.spool.as_ref().map(|spool| {
            let mut from = Cursor::default();
            for stream in Stream::ALL.into_iter().filter(|it| stream.has(*it)) {
                let (start, end) = spool.bounds(stream);
                // All that there is of a first run is its own.
                from.set(stream, Some(if run > Run(1) { end } else { start }));
            }
            (run, Scan::new(pattern, from))
        });
    }

    /// Looks for that line in what is new, and returns whether there is more to look at.
    fn look_for_line(&mut self, key: AgentKey, stream: Stream) -> bool {
        let Some(body) = self.bodies.get_mut(&key) else { return false };
        let (Some((run, scan)), Some(spool)) = (&mut body.scan, &body.spool) else { return false };
        let ends = scans_end(&mut self.scans_end);
        if Instant::now() >= ends {
            return true;
        }
        let looked = scan.look(spool, &self.tools.store, &body.id, stream, ends).unwrap_or_else(|error| {
            tracing::debug!("look for a line of {}: {error}", body.id);
            Looked::Nothing
        });
        if looked == Looked::Found {
            let run = *run;
            body.scan = None;
            self.feed(Input::ReadySeen { agent: key, run });
        }
        looked == Looked::More
    }

    /// Returns whether there is more to do soon, without anybody's telling.
    fn service(&mut self, key: AgentKey, stream: Stream) -> bool {
        let Some(body) = self.bodies.get_mut(&key) else { return false };
        let Some(spool) = &mut body.spool else { return false };
        let (_, seen) = spool.bounds(stream);
        match spool.service(&self.tools.store, &body.id, stream, now().wall) {
            Ok(serviced) => {
                if let Some(fault) = serviced.fault {
                    tracing::warn!("{fault}");
                }
                let is_due = serviced.grew && !std::mem::replace(&mut body.times_due[stream as usize], true);
                if is_due {
                    self.chores.insert((clock::monotonic() + TIMES_EVERY, Chore::Times(key, stream)));
                }
                if serviced.grew {
                    self.stir_followers(key);
                }
                if let Some(hole) = serviced.hole {
                    self.hand(Job::Dig { agent: key, hole });
                }
                let grown = serviced.end - seen;
                if grown >= FLOOD {
                    self.spool_due_in(key, stream, FLOOD_DAMPING);
                }
                grown >= RUSH
            }
            Err(error) => {
                tracing::debug!("look at the output of {}: {error}", body.id);
                if error.code == Code::NoSuchAgent {
                    self.restore_soon();
                }
                false
            }
        }
    }

    /// Has stored when a stream's bytes were seen.
    pub(super) fn store_times(&mut self, key: AgentKey, stream: Stream) {
        let Some(body) = self.bodies.get_mut(&key) else { return };
        body.times_due[stream as usize] = false;
        // A disk that stalls would collect these orders, each with a descriptor. The next bytes order it again.
        let Some(spool) = body.spool.as_ref().filter(|_| !self.is_unwritable) else { return };
        match spool.times(&self.tools.store, &body.id, stream) {
            Ok(times) => self.hands.take(Job::StoreTimes(times)),
            Err(error) => tracing::debug!("store when output of {} was seen: {error}", body.id),
        }
    }

    /// A hole is dug, or could not be.
    pub(super) fn hole_dug(&mut self, key: AgentKey, dug: Dug) {
        let stream = dug.stream();
        let Some(spool) = self.bodies.get_mut(&key).and_then(|body| body.spool.as_mut()) else { return };
        match spool.hole_dug(dug) {
            Ok(true) => drop(self.service(key, stream)),
            Ok(false) => {}
            Err(fault) => tracing::warn!("{fault}"),
        }
    }

    fn arm(&mut self, key: AgentKey, stream: Stream) {
        let Some(body) = self.bodies.get_mut(&key) else { return };
        let ear = &mut body.streams[stream as usize];
        if let Ear::Armed(_) = ear {
            return;
        }
        *ear = Ear::Deaf;
        let dir = match self.tools.store.watch_dir(&body.id) {
            Ok(dir) => dir,
            Err(error) if error.code == Code::NoSuchAgent => return,
            Err(error) => return self.look_by_the_clock(key, stream, &error),
        };
        match self.tools.watches.add_modify_once(dir.as_fd(), stream.as_str()) {
            Ok(watch) => {
                *ear = Ear::Armed(watch);
                self.watched.insert(watch, Watched::Stream(key, stream));
                if self.unwatched.remove(&(key, stream)) && self.unwatched.is_empty() {
                    tracing::info!("all output is watched again");
                }
            }
            Err(error) if error.is_gone() => {}
            Err(error) => self.look_by_the_clock(key, stream, &error),
        }
    }

    /// Has output looked at that cannot be watched, for as long as its agent lives: it stays bounded, and what is looked for in it is
    /// found. Reported when it begins, and not for each agent.
    fn look_by_the_clock(&mut self, key: AgentKey, stream: Stream, error: &dyn std::fmt::Display) {
        if self.machine.has_ended(key) {
            self.unwatched.remove(&(key, stream));
            return;
        }
        if self.unwatched.is_empty() {
            let now = now();
            let mut event = self.machine.event_about(now.mono, now.wall, Kind::Unwatched, Some(key));
            event.message = format!("{error}; output that is not watched is looked at every {UNWATCHED_LOOK:?}");
            self.publish(event);
        }
        self.unwatched.insert((key, stream));
        self.spool_due_in(key, stream, UNWATCHED_LOOK);
    }

    /// Brings the bookkeeping of both streams up to date.
    pub(super) fn catch_up(&mut self, key: AgentKey) {
        for stream in Stream::ALL {
            self.service(key, stream);
        }
    }

    /// Adds to an event what only the shell knows: the last lines of stderr of a failure.
    pub(super) fn decorate(&mut self, event: &mut Event) {
        let (Kind::Failed, Some(exit), Some(id)) = (event.kind, &mut event.exit, &event.agent) else { return };
        let Some(key) = self.machine.key_of(id) else { return };
        if exit.cause != crate::model::status::Cause::Exec {
            self.service(key, Stream::Stderr);
        }
        let Some(body) = self.bodies.get_mut(&key) else { return };
        // Whoever has said nothing has no last words: most that are killed.
        let has_spoken = |spool: &&Spool| matches!(spool.bounds(Stream::Stderr), (start, end) if start < end);
        let lines = body.spool.as_ref().filter(has_spoken).and_then(|spool| {
            spool.last_lines(&self.tools.store, &body.id, Stream::Stderr, LAST_LINES, LAST_BYTES).ok()
        });
        body.last_lines = lines.unwrap_or_default();
        exit.last_lines.clone_from(&body.last_lines);
    }
}

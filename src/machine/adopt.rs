//! Going on where another machine has ended: from what it wrote down, and what the kernel says now. The kernel wins.
//!
//! ```text
//! recorded          the kernel says                      so
//! Running           its main process lives               it runs on
//! Running           only others of its run live          its end is told now, they are drained as its policy says
//! Running, Draining nothing of its run lives             its end is told now, its restart policy decides
//! Group             its cgroup is gone                   it is made again
//! any, not ended    the host was started again           it is lost: told once, and never started by itself
//! ```
//!
//! How a process ended that nobody saw end is not known, and not made up: [`Cause::Lost`]. Whoever was to end is stopped
//! again, with what is left of its grace; what was paused stays so. Who asked for something and was not answered is gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::agent::{Agent, Down, Home, Kill, Ladder, Outcome, Phase, Signal, Start, Verdict};
use super::clock::{Clock, Countdown};
use super::input::{AgentKey, Effect, Frost, Now};
use super::restart::History;
use super::run::Death;
use super::stop::StopKey;
use super::{Machine, Step};
use crate::model::event::Kind;
use crate::model::id::{Level, Run};
use crate::model::record::{AgentRecord, Course, Moment, Pause, Rung, Standing, Wait};
use crate::model::status::{Cause, Exit, ExitRecord, Rusage};
use crate::model::time::Monotonic;

/// The driver of an end that is over.
const NO_STOP: StopKey = StopKey(0);

/// An agent of another machine.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// What was written down of it last.
    pub record: AgentRecord,
    /// Whether the terminal event that the record speaks of was told.
    pub end: Telling,
    /// What the kernel says of it; none if the host was started since, and nothing of it can be left.
    pub found: Option<Found>,
}

/// Whether an event was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// It was, or there is none.
    Told,
    /// It was not.
    Untold,
}

/// What the kernel says of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its cgroup; none if there is none.
    pub home: Option<FoundHome>,
    /// What is left of its run.
    pub left: Left,
}

/// An agent's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundHome {
    /// What stands in its `cgroup.freeze`.
    pub freeze: Frost,
    /// Whether the cgroup of its children together is there.
    pub has_level: bool,
}

/// What is left of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Its main process, and whatever else.
    Main,
    /// Not its main process, but so many others.
    Others(u64),
    /// Nothing.
    Nothing,
}

impl Machine {
    /// Takes over the herd of another machine: parents before children, into a machine that has no agents yet.
    ///
    /// # Panics
    /// If an agent's parent is not there, or a name is taken.
    pub fn adopt(&mut self, now: Now, herd: Vec<Adopted>, effects: &mut Vec<Effect>) {
        let step = &mut Step { now, effects };
        for adopted in &herd {
            self.readmit(now, adopted);
        }
        for Adopted { record, end, found } in &herd {
            let key = AgentKey(record.birth.key);
            if found.is_some() && !record.has_ended() {
                self.publish(step, Kind::Adopted, key, |event| event.message = how_it_stands(record, *found));
            }
            if *end == Telling::Untold {
                let end = end_of(record);
                self.publish_end(step, key, Outcome::of(&end), end);
            }
        }
        self.resume_stops(step, &herd);
        self.mark_what_is_over(now.mono, &herd);
        // Children first: what has ended by itself was not ended by the end of an agent above. And before all others those whose
        // main process alone is gone: it was not ended by a failure that is found next to it.
        let has_others = |it: &&Adopted| it.found.is_some_and(|found| matches!(found.left, Left::Others(_)));
        let (headless, others): (Vec<_>, Vec<_>) = herd.iter().rev().partition(has_others);
        for Adopted { record, found, .. } in headless.into_iter().chain(others) {
            let key = AgentKey(record.birth.key);
            self.note_pause(now, key);
            match found {
                Some(found) => self.catch_up(step, key, found.left),
                None => self.lose(step, key, record),
            }
        }
        self.dirty.extend(self.agents.keys());
        self.queue_moved = true;
        self.settle_dirty(step);
    }

    /// Enters an agent into the tree's books as it was written down.
    fn readmit(&mut self, now: Now, Adopted { record, found, .. }: &Adopted) {
        let (birth, course) = (&record.birth, &record.course);
        let (key, parent) = (AgentKey(birth.key), birth.parent.map(AgentKey));
        let level = parent.map_or(Level(0), |parent| self.agents[&parent].level.below());
        let mut agent = Agent::new(key, birth.spec.clone(), parent, level, course.limits.clone());
        if agent.spec.limits != course.own {
            Arc::make_mut(&mut agent.spec).limits = course.own.clone();
        }
        agent.enter_course(course, record.last.as_deref());
        if let Some(Found { home: Some(home), .. }) = found {
            agent.home = Home::Made;
            agent.nursery = if home.has_level { Home::Made } else { Home::None };
            agent.freezer.written = home.freeze;
        } else if matches!(agent.phase, Phase::Group) {
            agent.phase = Phase::Held;
        }
        if found.is_none() {
            agent.enter_this_boot(now);
        }
        let (has_ended, is_admitted, has_run) = (agent.has_ended(), agent.is_admitted(), agent.has_run());
        assert!(self.ids.insert(agent.spec.id.clone(), key).is_none(), "{}: an agent's name is its own", agent.spec.id);
        if let Phase::Queued = agent.phase {
            self.queue.insert((std::cmp::Reverse(agent.spec.priority), key));
        }
        self.agents.insert(key, Box::new(agent));
        self.count_spec(key);
        if let Phase::Ended { outcome, at } = self.agents[&key].phase {
            let expires = self.agents[&key].expires.or_else(|| self.expiry(key, outcome, now.mono));
            self.agent_mut(key).expires = expires;
            self.retain(at, key);
        }
        self.follow(key);
        self.next = self.next.max(birth.key);
        if let Some(parent) = parent.map(|parent| self.agent_mut(parent)) {
            parent.children.insert(key);
            parent.live_children += u32::from(!has_ended);
        }
        if is_admitted {
            self.count_in(key);
        }
        if has_run {
            self.count_run(key, |count| count + 1);
        }
    }

    /// Stops what was being stopped: together what was to end together, with what is left of the grace.
    fn resume_stops(&mut self, step: &mut Step, herd: &[Adopted]) {
        let mut stops: BTreeMap<(Monotonic, Arc<str>), Vec<AgentKey>> = BTreeMap::new();
        for Adopted { record, .. } in herd.iter().filter(|it| it.found.is_some() && !it.record.has_ended()) {
            if let Some(ending) = &record.course.ending {
                let stop = stops.entry((ending.kill_at, ending.by.clone())).or_default();
                stop.push(AgentKey(record.birth.key));
            }
        }
        for ((kill_at, by), keys) in stops {
            self.begin_stop(step, &keys, Some(kill_at.since(step.now.mono)), &by, None);
        }
    }

    /// Has nobody end a run that is over already, for the sake of another one that is found to be over, too.
    fn mark_what_is_over(&mut self, now: Monotonic, herd: &[Adopted]) {
        for Adopted { record, found, .. } in herd {
            let key = AgentKey(record.birth.key);
            let is_over = found.is_some_and(|found| found.left == Left::Nothing);
            if is_over && self.agents[&key].is_unattended() {
                self.set_ladder(key, Ladder::Polite(now));
            }
        }
    }

    /// Tells the machine what happened to a run while there was none.
    fn catch_up(&mut self, step: &mut Step, key: AgentKey, left: Left) {
        let agent = &self.agents[&key];
        let run = agent.run;
        let others = match left {
            Left::Main | Left::Nothing => 0,
            Left::Others(processes) => processes,
        };
        match (&agent.phase, left) {
            (Phase::Running { .. }, Left::Others(_) | Left::Nothing) => {
                // Whoever is stopped now is stopped for another one that was found to be over.
                let is_unasked = agent.recorded.as_ref().is_some_and(|it| it.ending.is_none() && it.cycle.is_none());
                let (exit, rusage) = (Exit::Unknown, Rusage::default());
                let death = Death { exit, rusage, oom: None, descendants: others, is_unasked };
                self.exited(step, key, run, death);
            }
            (Phase::Draining { .. }, Left::Nothing) => self.run_emptied(step, key, run),
            (Phase::Running { ladder, .. } | Phase::Draining { ladder, .. }, _) => {
                // It may be lost with whoever was to send it; a second one does no harm.
                if let (Some(Ladder::Polite(_)), None) = (ladder, &agent.down) {
                    step.order(agent.signal(agent.spec.stop_signal));
                }
            }
            _ => {}
        }
        if self.agents[&key].has_run() {
            self.resume_clocks(step, key);
        }
    }

    /// Starts the clocks of a run that goes on; what it has used of its time is used. What it told while there was nobody to
    /// hear it is lost: for that its time begins anew.
    fn resume_clocks(&mut self, step: &Step, key: AgentKey) {
        self.start_clocks(step, key);
        self.await_next_word(step, key);
        let now = step.now.mono;
        let agent = self.agent_mut(key);
        if let (Some(timeout), Some(began)) = (agent.spec.run_timeout, agent.began) {
            let used = now.since(began.mono).saturating_sub(agent.paused_for(now));
            let countdown = Countdown::new(now, timeout.saturating_sub(used), agent.paused_since);
            agent.clocks.start(Clock::Run, countdown);
        }
    }

    /// Ends an agent of another boot.
    fn lose(&mut self, step: &mut Step, key: AgentKey, record: &AgentRecord) {
        if record.has_ended() {
            return;
        }
        let mut lost = ExitRecord::new(Cause::Lost);
        let has_run = record.course.run != Run(0);
        let when = if has_run { "while it ran" } else { "before it had started" };
        lost.error = Some(format!("the host was started again {when}"));
        if record.course.run != Run(0) && record.course.told == Some(record.course.run) {
            // Its last run's end is told; that there is no next one is not.
            self.publish(step, Kind::GaveUp, key, |event| event.message = format!("not started again: {lost}"));
        } else {
            self.tell_end(step, key, Outcome::Failed, &lost);
            self.agent_mut(key).last = Some(Box::new(lost));
        }
        self.leave(step, key, Outcome::Failed);
    }
}

impl Agent {
    /// Takes over what was written down of it.
    fn enter_course(&mut self, course: &Course, last: Option<&ExitRecord>) {
        let now = |moment: Moment| Now { mono: moment.mono, wall: moment.wall };
        self.phase = phase(&course.standing, last);
        (self.run, self.told) = (course.run, course.told);
        self.cycle.clone_from(&course.cycle);
        self.verdict = course.judgement.clone().map(|it| Verdict { cause: it.cause, why: it.why });
        (self.voice.told, self.voice.period) = (course.account, course.heartbeat);
        (self.freezer.own, self.freezer.told) = frosts(course.pause);
        (self.paused_since, self.paused_total) = (course.paused_since, course.paused_total);
        (self.restarts, self.oom_kills) = (course.restarts, course.oom_kills);
        // Who asked for a start and was not answered is gone: it is a policy's now.
        self.start = if course.run == Run(0) { Start::Asked } else { Start::Automatic };
        (self.child_restarts, self.spawned) = (VecDeque::from(course.child_restarts.clone()), course.spawned);
        self.history = History { streak: course.streak, recent: VecDeque::from(course.recent.clone()) };
        (self.began, self.ended, self.expires) = (course.began.map(now), course.ended.map(now), course.expires);
        self.last = last.cloned().map(Box::new);
        self.recorded = Some(Box::new(course.clone()));
        if let (Phase::Ended { .. }, Some(ending)) = (&self.phase, &course.ending) {
            let (by, kill_at) = (ending.by.clone(), ending.kill_at);
            self.down = Some(Down { stop: NO_STOP, by, kill_at, signal: Signal::Sent, signal_by: kill_at });
        }
    }

    /// Drops all times of another boot.
    fn enter_this_boot(&mut self, now: Now) {
        self.history.recent.clear();
        self.child_restarts.clear();
        (self.began, self.paused_since, self.expires) = (None, None, None);
        if let Phase::Ended { at, .. } = &mut self.phase {
            *at = now.mono;
        }
    }
}

fn phase(standing: &Standing, last: Option<&ExitRecord>) -> Phase {
    match standing {
        Standing::Group => Phase::Group,
        Standing::Queued => Phase::Queued,
        Standing::Held => Phase::Held,
        Standing::Running { pid, rung } => Phase::Running { pid: *pid, ladder: rung.map(ladder) },
        Standing::Draining { rung } => {
            let record = last.cloned().unwrap_or_else(|| ExitRecord::new(Cause::Lost));
            Phase::Draining { record: Box::new(record), ladder: rung.map(ladder) }
        }
        Standing::Lingering(outcome) => Phase::Lingering { outcome: *outcome },
        Standing::Backoff(Wait::Until(until)) => Phase::Backoff { countdown: Countdown::Until(*until) },
        Standing::Backoff(Wait::Suspended(left)) => Phase::Backoff { countdown: Countdown::Suspended(*left) },
        Standing::Ended { outcome, at } => Phase::Ended { outcome: *outcome, at: *at },
    }
}

fn ladder(rung: Rung) -> Ladder {
    match rung {
        Rung::Asked(signal_by, kill_at) => Ladder::Asked { signal_by, kill_at },
        Rung::Polite(at) => Ladder::Polite(at),
        Rung::Killed(since) => Ladder::Killed(Kill { since, again: since }),
        Rung::Late(since) => Ladder::Late(Kill { since, again: since }),
    }
}

/// Returns the end that a record speaks of: of the run that is over, or of one that goes on and was found in a failure.
fn end_of(record: &AgentRecord) -> ExitRecord {
    match (&record.course.standing, &record.course.judgement) {
        (Standing::Running { .. }, Some(judgement)) => {
            let mut end = ExitRecord::new(judgement.cause);
            end.judge(judgement.cause, &judgement.why);
            end
        }
        _ => record.last.as_deref().map_or_else(|| ExitRecord::new(Cause::Terminated), ExitRecord::of_the_run),
    }
}

/// Returns what was asked, and what was told.
fn frosts(pause: Pause) -> (Frost, Frost) {
    match pause {
        Pause::Off => (Frost::Thawed, Frost::Thawed),
        Pause::Asked => (Frost::Frozen, Frost::Thawed),
        Pause::Told => (Frost::Frozen, Frost::Frozen),
        Pause::Lifted => (Frost::Thawed, Frost::Frozen),
    }
}

/// Says for people how an agent was found.
fn how_it_stands(record: &AgentRecord, found: Option<Found>) -> String {
    let left = found.map_or(Left::Nothing, |found| found.left);
    match (&record.course.standing, left) {
        (Standing::Running { .. }, Left::Main) => "its run goes on",
        (Standing::Running { .. }, _) => "its main process ended while no daemon lived",
        (Standing::Draining { .. }, Left::Nothing) => "the last of its run ended while no daemon lived",
        (Standing::Draining { .. }, _) => "what its main process left behind lives on",
        (Standing::Group, _) => "it is a group",
        (Standing::Queued, _) => "it waits for room in the tree",
        (Standing::Held, _) => "its next run is still to be started",
        (Standing::Backoff(_), _) => "it waits for its next run",
        (Standing::Lingering(_), _) => "it waits for the agents below it",
        (Standing::Ended { .. }, _) => "it has ended",
    }
    .to_owned()
}

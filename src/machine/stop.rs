//! The end of subtrees on request: polite, then atomic, with a receipt.
//!
//! ```text
//!  Polite ── grace is over, or was 0 ──▶ Closing ── no spawn is on its way ──▶ (Freezing ──▶) Killing ──▶ Removing ──▶ done
//!     └───────────────── all have ended on the polite signal ─────────────────────────────────────────────▲
//! ```
//!
//! One top is killed by one write. Several tops (a level, a session) are first all frozen and seen frozen, so that none of
//! them runs one instruction after the first has died; a task that does not freeze holds the rest up for a bounded time only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::agent::{Agent, Down, Home, Kill, Outcome, Phase, Signal};
use super::input::{AgentKey, Caller, Effect, Force, ReplyTo};
use super::survive::Owed;
use super::{Door, Machine, Step, Timer};
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::id::AgentId;
use crate::model::request::{Answer, Target};
use crate::model::spec::DURATION_MAX;
use crate::model::status::{AgentReceipt, Receipt};
use crate::model::survivor::Survivor;
use crate::model::time::Monotonic;

/// How long a kill may take until what hangs is named.
pub(super) const LAGGING_AFTER: Duration = Duration::from_secs(1);

/// How long several tops may take to freeze before they are killed as they are.
const FREEZE_BUDGET: Duration = Duration::from_millis(500);

/// The identity of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StopKey(pub u64);

/// How far a stop has come; with the deadline of the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Polite(Monotonic),
    Closing,
    Freezing(Monotonic),
    Killing(Kill),
    Removing,
}

/// The end of one or several subtrees.
#[derive(Debug)]
pub(super) struct Stop {
    tops: Vec<AgentKey>,
    members: Vec<AgentKey>,
    /// Agents that had ended before, whose cgroup was still there.
    remains: Vec<AgentKey>,
    pub stage: Stage,
    /// Whether its agents can ask for more time: not where whoever asked said how much they get.
    pub can_be_put_off: bool,
    began: Monotonic,
    replies: Vec<ReplyTo>,
    pub owed: Owed,
    /// When its kill is due, or was.
    pub kill_due: Monotonic,
    tallies: BTreeMap<AgentKey, Tally>,
    /// Members that have not ended.
    pending: BTreeSet<AgentKey>,
    /// Members whose stop signal is on a hand.
    signals: BTreeSet<AgentKey>,
    /// Tops whose kill is on a hand.
    kills: BTreeSet<AgentKey>,
    /// Tops whose cgroup is not removed.
    unremoved: BTreeSet<AgentKey>,
}

/// What a stop did to one agent.
#[derive(Clone, Debug)]
struct Tally {
    id: AgentId,
    signal: String,
    polite: u64,
    killed: u64,
    emptied: Option<Monotonic>,
}

impl Stop {
    pub fn is_top(&self, key: AgentKey) -> bool {
        self.tops.contains(&key)
    }

    /// Walks over the agents that it ends.
    pub fn members(&self) -> impl Iterator<Item = AgentKey> {
        self.members.iter().copied()
    }

    /// Drops a member that never came to be.
    pub fn forget(&mut self, key: AgentKey) {
        self.pending.remove(&key);
        self.unremoved.remove(&key);
        self.tops.retain(|top| *top != key);
    }

    /// Notes that the stop signal of an agent is on a hand.
    pub fn expect_signal(&mut self, key: AgentKey) {
        self.signals.insert(key);
    }

    /// Returns when the kill is due; at once if it is under way.
    fn urgency(&self) -> Monotonic {
        match self.stage {
            Stage::Polite(deadline) => deadline,
            _ => self.began,
        }
    }

    /// Walks over the agents that had ended before it and whose cgroup was still there.
    pub fn remains(&self) -> impl Iterator<Item = AgentKey> {
        self.remains.iter().copied()
    }

    pub fn take_replies(&mut self) -> Vec<ReplyTo> {
        std::mem::take(&mut self.replies)
    }

    /// Returns whether its answer was that not all has ended.
    pub fn is_answered_late(&self) -> bool {
        self.owed == Owed::Nothing
    }

    /// Makes the receipt: of each agent that has not ended, what is known to live is not counted as ended.
    pub fn receipt(&self, now: Monotonic, alive: &BTreeMap<AgentKey, Vec<Survivor>>) -> Receipt {
        let millis = |at: Monotonic| at.since(self.began).as_secs_f64() * 1000.0;
        let late = self.remains.iter().filter(|key| alive.contains_key(key));
        let receipt = |key: &AgentKey| {
            let tally = &self.tallies[key];
            let left = alive.get(key);
            let survivors = left.map_or(0, |left| left.len().max(1) as u64);
            let killed = tally.killed.saturating_sub(survivors);
            let ended_politely = tally.polite.saturating_sub(tally.killed.max(survivors));
            let signals = [(tally.signal.as_str(), ended_politely), ("SIGKILL", killed)];
            AgentReceipt {
                id: tally.id.clone(),
                processes: ended_politely + killed,
                signals: signals.iter().filter(|(_, n)| *n > 0).map(|(name, n)| ((*name).to_owned(), *n)).collect(),
                ms: millis(tally.emptied.unwrap_or(now)),
                survivors,
                alive: left.cloned().unwrap_or_default(),
            }
        };
        let agents: Vec<AgentReceipt> = self.members.iter().chain(late).map(receipt).collect();
        let processes = agents.iter().map(|agent| agent.processes).sum();
        // What lives outside the herd's cgroups the shell adds.
        Receipt { processes, agents, ms: millis(now), outside: Vec::new() }
    }
}

impl Machine {
    pub(super) fn ask_terminate(
        &mut self,
        step: &mut Step,
        to: ReplyTo,
        caller: &Caller,
        target: &Target,
        grace: Option<Duration>,
    ) -> Result<(), Error> {
        if grace.is_some_and(|grace| grace > DURATION_MAX) {
            return Err(Error::new(Code::BadValue, "the grace is a year at most"));
        }
        let keys = self.targets(target)?;
        self.begin_stop(step, &keys, grace, &caller.name, Some(to));
        Ok(())
    }

    pub(super) fn ask_shutdown(&mut self, step: &mut Step, to: ReplyTo, caller: &Caller, grace: Option<Duration>) {
        if self.door == Door::Open {
            self.door = Door::Closed;
            let message = format!("asked by {}", caller.name);
            self.publish(step, Kind::HerdStopping, None, |event| event.message = message);
        }
        let keys: Vec<_> = self.agents.keys().copied().collect();
        self.begin_stop(step, &keys, grace, &caller.name, Some(to));
    }

    /// Begins to end the subtrees of these agents. Of those that have ended, only the cgroup matters: until it is removed, a
    /// process that moved itself out of its run may live in it.
    pub(super) fn begin_stop(
        &mut self,
        step: &mut Step,
        keys: &[AgentKey],
        grace: Option<Duration>,
        by: &Arc<str>,
        reply: Option<ReplyTo>,
    ) {
        let live: Vec<_> = keys.iter().copied().filter(|key| !self.agents[key].has_ended()).collect();
        let tops = self.tops(&live);
        let remains: Vec<_> = keys
            .iter()
            .copied()
            .filter(|key| self.agents[key].has_ended() && self.agents[key].home != Home::None)
            .collect();
        let stop_key = StopKey(self.fresh());
        let can_be_put_off = grace.is_none();
        let grace = grace.or_else(|| tops.iter().map(|key| self.agents[key].spec.grace).max()).unwrap_or_default();
        let now = step.now.mono;
        let members: Vec<_> =
            tops.iter().flat_map(|top| self.subtree(*top)).filter(|key| !self.agents[key].has_ended()).collect();
        let stop = Stop {
            stage: if grace.is_zero() { Stage::Closing } else { Stage::Polite(now + grace) },
            can_be_put_off,
            began: now,
            replies: reply.into_iter().collect(),
            owed: Owed::Later,
            kill_due: now,
            tallies: members.iter().chain(&remains).map(|key| (*key, self.tally(*key))).collect(),
            pending: members.iter().copied().collect(),
            signals: BTreeSet::new(),
            kills: BTreeSet::new(),
            unremoved: tops.iter().chain(&remains).copied().collect(),
            tops: tops.clone(),
            members: members.clone(),
            remains: remains.clone(),
        };
        let shares = self.share_out(now, grace, &members);
        for key in members {
            self.put_down(key, stop_key, &stop, by, shares.signal_by(key));
        }
        for key in remains {
            self.agent_mut(key).stops.push(stop_key);
        }
        self.set_stop_timer(stop_key, None, &stop.stage);
        self.stops.insert(stop_key, stop);
        self.dirty_stops.insert(stop_key);
        for key in tops {
            self.publish(step, Kind::Stopping, key, |event| event.message = format!("asked by {by}"));
        }
    }

    fn tally(&self, key: AgentKey) -> Tally {
        let spec = &self.agents[&key].spec;
        Tally { id: spec.id.clone(), signal: spec.stop_signal.to_string(), polite: 0, killed: 0, emptied: None }
    }

    /// Makes an agent's end wanted; of several stops the most urgent drives it.
    fn put_down(&mut self, key: AgentKey, stop_key: StopKey, stop: &Stop, by: &Arc<str>, signal_by: Monotonic) {
        let driver = self.agents[&key].down.as_ref().and_then(|down| self.stops.get(&down.stop)).map(Stop::urgency);
        let agent = self.agent_mut(key);
        agent.stops.push(stop_key);
        match &mut agent.down {
            None => {
                let (by, kill_at) = (by.clone(), stop.urgency());
                agent.down = Some(Down { stop: stop_key, by, kill_at, signal: Signal::Unsent, signal_by });
            }
            Some(down) if driver.is_none_or(|driver| stop.urgency() < driver) => {
                (down.stop, down.kill_at, down.signal_by) = (stop_key, stop.urgency(), signal_by);
            }
            Some(_) => {}
        }
        self.dirty.insert(key);
    }

    fn set_stop_timer(&mut self, key: StopKey, old: Option<Stage>, new: &Stage) {
        let deadline = |stage: &Stage| match stage {
            Stage::Polite(at) | Stage::Freezing(at) => Some(*at),
            Stage::Killing(kill) => Some(kill.again),
            Stage::Closing | Stage::Removing => None,
        };
        if let Some(at) = old.as_ref().and_then(deadline) {
            self.timers.remove(&(at, Timer::Stop(key)));
        }
        if let Some(at) = deadline(new) {
            self.timers.insert((at, Timer::Stop(key)));
        }
    }

    /// Moves a stop as far as it can go now.
    pub(super) fn settle_stop(&mut self, step: &mut Step, key: StopKey) {
        while let Some(stop) = self.stops.get(&key) {
            let before = stop.stage;
            let after = self.next_stage(step.now.mono, stop);
            if after == before {
                break;
            }
            self.set_stop_timer(key, Some(before), &after);
            let stop = self.stops.get_mut(&key).expect("it was just found");
            stop.stage = after;
            if let Stage::Polite(at) = before {
                stop.kill_due = at;
            }
            match after {
                Stage::Freezing(_) => {
                    for top in self.stops[&key].tops.clone() {
                        self.settle_freezer(step, top);
                    }
                }
                Stage::Killing(kill) => self.kill(step, key, kill),
                Stage::Removing => {
                    for top in self.stops[&key].tops.clone() {
                        if self.agents.get(&top).is_none_or(|agent| agent.home == Home::None) {
                            self.stops.get_mut(&key).expect("it was just found").unremoved.remove(&top);
                        }
                    }
                }
                Stage::Closing => {
                    for member in self.stops[&key].pending.clone() {
                        self.tell_overdue(step, member);
                    }
                }
                Stage::Polite(_) => {}
            }
        }
        let is_done = self.stops.get(&key).is_some_and(|stop| {
            stop.stage == Stage::Removing
                && stop.unremoved.is_empty()
                && stop.signals.is_empty()
                && stop.kills.is_empty()
        });
        if is_done {
            self.finish_stop(step, key);
        } else {
            self.settle_answer(step, key);
        }
    }

    fn next_stage(&self, now: Monotonic, stop: &Stop) -> Stage {
        if stop.pending.is_empty() {
            return Stage::Removing;
        }
        match stop.stage {
            Stage::Polite(deadline) if now >= deadline => Stage::Closing,
            Stage::Closing => {
                let spawning: u32 = stop.tops.iter().map(|top| self.agents[top].spawning).sum();
                if spawning > 0 {
                    Stage::Closing
                } else if stop.tops.len() > 1 {
                    Stage::Freezing(now + FREEZE_BUDGET)
                } else {
                    Stage::Killing(Kill::new(now))
                }
            }
            Stage::Freezing(deadline) => {
                let is_frozen = |top: &AgentKey| {
                    let agent = &self.agents[top];
                    agent.home != Home::Made || agent.freezer.is_confirmed()
                };
                if now >= deadline || stop.tops.iter().all(is_frozen) {
                    Stage::Killing(Kill::new(now))
                } else {
                    Stage::Freezing(deadline)
                }
            }
            Stage::Killing(kill) if now >= kill.again => Stage::Killing(kill.again(now, self.config.kill_timeout)),
            stage => stage,
        }
    }

    /// Orders the kill of every top that still has something in it.
    fn kill(&mut self, step: &mut Step, key: StopKey, kill: Kill) {
        let force = kill.force(step.now.mono);
        let tops = self.stops[&key].tops.clone();
        let mut hanging = Vec::new();
        for top in tops {
            if self.agents[&top].home != Home::Made {
                continue;
            }
            let below = self.subtree(top);
            let runs: Vec<_> = below
                .iter()
                .map(|key| &self.agents[key])
                .filter(|agent| agent.has_run())
                .map(|agent| (agent.key, agent.run))
                .collect();
            if runs.is_empty() {
                continue;
            }
            hanging.push(top);
            // Every stop of these agents waits for the count, whoever ordered the kill.
            for stop in self.stops.values_mut() {
                if runs.iter().any(|(member, _)| stop.tallies.contains_key(member)) {
                    stop.kills.insert(top);
                }
            }
            step.order(Effect::Kill { agent: top, runs, force });
        }
        let is_owed = self.stops[&key].owed != Owed::Nothing;
        if kill.is_lagging(step.now.mono) && is_owed && !hanging.is_empty() {
            step.order(Effect::FindLaggards { agents: hanging, reply: None });
        }
    }

    pub(super) fn signalled(&mut self, key: AgentKey, processes: u64) {
        let Some(agent) = self.agents.get_mut(&key) else { return };
        if let Some(down) = &mut agent.down {
            down.signal = Signal::Sent;
        }
        for stop_key in agent.stops.clone() {
            if let Some(stop) = self.stops.get_mut(&stop_key) {
                if let Some(tally) = stop.tallies.get_mut(&key) {
                    tally.polite = tally.polite.max(processes);
                }
                stop.signals.remove(&key);
                self.dirty_stops.insert(stop_key);
            }
        }
        // The tops above may be thawed now.
        self.dirty.insert(key);
    }

    pub(super) fn killed(&mut self, top: AgentKey, counts: &[(AgentKey, u64)]) {
        for (stop_key, stop) in &mut self.stops {
            // Another stop's kill of the same agents is news for this one, too.
            for (key, count) in counts {
                if let Some(tally) = stop.tallies.get_mut(key) {
                    // What an earlier kill has counted and is still dying is not counted twice.
                    tally.killed = tally.killed.max(*count);
                }
            }
            if stop.kills.remove(&top) {
                self.dirty_stops.insert(*stop_key);
            }
        }
    }

    /// Tells the stops that wait for it that an agent has ended.
    pub(super) fn note_ended(&mut self, now: Monotonic, key: AgentKey) {
        for stop_key in self.agents[&key].stops.clone() {
            if let Some(stop) = self.stops.get_mut(&stop_key) {
                stop.pending.remove(&key);
                if let Some(tally) = stop.tallies.get_mut(&key) {
                    tally.emptied = Some(now);
                }
                self.dirty_stops.insert(stop_key);
            }
        }
    }

    fn finish_stop(&mut self, step: &mut Step, key: StopKey) {
        self.set_owed(key, Owed::Nothing);
        let Some(stop) = self.stops.remove(&key) else { return };
        let receipt = stop.receipt(step.now.mono, &BTreeMap::new());
        for reply in &stop.replies {
            step.reply(*reply, Ok(Answer::Receipt(receipt.clone())));
        }
        for member in stop.members.iter().chain(&stop.remains) {
            if let Some(agent) = self.agents.get_mut(member) {
                agent.stops.retain(|other| *other != key);
                self.dirty.insert(*member);
            }
        }
    }

    /// An agent's cgroup and everything below it is gone.
    pub(super) fn removed(&mut self, key: AgentKey) {
        if !self.agents.contains_key(&key) {
            return;
        }
        for below in self.subtree(key) {
            let agent = self.agent_mut(below);
            // Its own removal is on a hand still: until that is off it, nothing new may stand in its place.
            if below == key || !matches!(agent.home, Home::Removing(_)) {
                agent.home = Home::None;
            }
            agent.nursery = Home::None;
            agent.freezer = super::agent::Freezer::default();
            let stops = agent.stops.clone();
            self.frost_moved.insert(below);
            self.dirty.insert(below);
            for stop_key in stops {
                if let Some(stop) = self.stops.get_mut(&stop_key) {
                    stop.unremoved.remove(&below);
                    self.dirty_stops.insert(stop_key);
                }
            }
        }
    }

    /// Something lives in a cgroup whose runs are all empty: a process that moved itself. It is killed, and the removal tried again.
    pub(super) fn remove_refused(&mut self, step: &mut Step, key: AgentKey) {
        let Some(agent) = self.agents.get_mut(&key) else { return };
        let Home::Removing(kill) = agent.home else { return };
        let (now, timeout) = (step.now.mono, self.config.kill_timeout);
        agent.home = Home::Emptying(kill.map_or_else(|| Kill::new(now), |kill| kill.again(now, timeout)));
        step.order(Effect::Kill { agent: key, runs: Vec::new(), force: Force::Sweep });
        self.dirty.insert(key);
    }

    pub(super) fn subtree_emptied(&mut self, key: AgentKey) {
        if let Some(agent) = self.agents.get_mut(&key).filter(|agent| matches!(agent.home, Home::Emptying(_))) {
            agent.home = Home::Made;
            self.dirty.insert(key);
        }
    }

    /// Orders the removal of an ended agent's cgroup, unless an agent above will take it along.
    pub(super) fn settle_home(&mut self, step: &mut Step, key: AgentKey) {
        let agent = &self.agents[&key];
        let kill = match agent.home {
            Home::Made => None,
            Home::Emptying(kill) if step.now.mono >= kill.again => Some(kill),
            _ => return,
        };
        if !self.is_removal_held(agent) {
            self.agent_mut(key).home = Home::Removing(kill);
            step.order(Effect::Remove(key));
        }
    }

    /// Says whether an ended agent's cgroup is left to something else than time: an agent above that will take it along, or a
    /// write that is on a hand.
    pub(super) fn is_removal_held(&self, agent: &Agent) -> bool {
        let goes_along = agent.parent.is_some_and(|parent| {
            let parent = &self.agents[&parent];
            parent.down.is_some() || parent.has_ended()
        });
        let is_there = matches!(agent.home, Home::Made | Home::Emptying(_));
        agent.has_ended() && is_there && (goes_along || agent.freezer.ordered.is_some())
    }

    /// Says how an agent that is to end has ended.
    pub(super) fn outcome_when_down(&self, key: AgentKey) -> Outcome {
        let agent = &self.agents[&key];
        match &agent.phase {
            Phase::Lingering { outcome } => *outcome,
            _ => Outcome::Terminated,
        }
    }
}

//! DECIDES and cannot act. Facts and requests in, orders out: `step(now, input, &mut effects)`.
//!
//! What is wanted of an agent and where it is are two things. Wanted is *up*, or *down* (somebody asked for its end; then
//! nothing but an explicit restart brings it back). Where it is, is its phase:
//!
//! ```text
//!            admitted          may start          exec'd              main gone, others live
//!  Queued ────────────▶ Held ────────────▶ Spawning ──────▶ Running ─────────────────────▶ Draining
//!    │                   ▲  ▲                 │               │  run empty                     │ run empty
//!    │                   │  └── due ── Backoff ◀──────────────┴────────── restart ─────────────┤
//!    │ wanted down       │                                                                     │ for good
//!    └───────────────────┼────────────▶ Ended ◀────── no agent below lives ────── Lingering ◀──┘
//!                        └── restarted ───┘                        (Group: made, then only its children matter)
//! ```
//!
//! What follows from a failure:
//!
//! | who decides | by | and then |
//! | --- | --- | --- |
//! | the agent | `restart`: policy, intensity | it comes back after its delay, or has ended for good (`restart.rs`) |
//! | its parent | `children`: strategy | it comes back alone, or others start anew with it (`strategy.rs`) |
//! | its parent | `children`: intensity | one too many: the parent has failed itself, and so on upwards (`escalate.rs`) |
//! | those that start after it | `after` | they wait, or cannot start, too (`after.rs`) |
//! | the herd | `restart_rate`, `restart_burst` | a restart beyond them waits for its turn (`storm.rs`) |
//!
//! * `settle` moves one agent as far as it can go now. It is idempotent: after a step, settling anything again orders nothing
//!   ([`Machine::settle_everything`] is how tests prove that).
//! * An order exists only if a later decision depends on its outcome or on time, and every wait has a deadline in `timers`.
//! * Rules prevent, they never cause: a subtree is not frozen while a spawn into it is on its way (the spawn would hang), and
//!   nothing is spawned into a subtree that is frozen, ending, or about to be.
//! * Time is an argument. There is no clock, no I/O and no chance in here that a test could not repeat.

mod admit;
mod adopt;
mod after;
mod agent;
mod check;
mod clock;
mod end;
mod escalate;
mod explain;
mod input;
mod limit;
mod output;
mod pause;
mod permission;
mod polite;
mod pressure;
mod ready;
mod record;
mod refuse;
mod report;
mod restart;
mod revive;
mod run;
mod settle;
mod specs;
mod stall;
mod stop;
mod storm;
mod strategy;
mod survive;
#[cfg(test)]
mod tests;
mod verdict;
mod wait;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use adopt::{Adopted, Found, FoundHome, Left, Telling};
use agent::{Agent, Home, Phase};
pub use input::{
    AgentKey, Caller, Effect, Force, Frost, Input, LimitPlace, Now, PressKey, ReplyTo, SpawnOrder, Survey,
};
use limit::Change;
use pause::Frosting;
use pressure::Press;
use refuse::Refusals;
pub use report::Counts;
pub use stall::Sample;
use stop::{Stop, StopKey};
use storm::Storm;
use strategy::{Renewal, RenewalKey};
use wait::{Until, Wait, Waits};

use crate::model::applied::Applied;
use crate::model::config::HerdConfig;
use crate::model::error::{Code, Error};
use crate::model::id::{AgentId, Level, Priority};
use crate::model::limits::{Knob, LimitAbove, Limits};
use crate::model::request::{Answer, LimitScope, Request, Target};
use crate::model::status::Cause;
use crate::model::time::Monotonic;
use crate::model::within::Baseline;

/// The pure decider: the tree, what is wanted of it, and everything that is waited for.
#[derive(Debug)]
pub struct Machine {
    config: HerdConfig,
    /// The absolute path of the herd's root cgroup, for people.
    root: String,
    /// The knobs that this host does not offer, each with the error that says so.
    not_offered: BTreeMap<Knob, Error>,
    /// The limits that hold for the whole herd and are not its own, the narrowest of each knob.
    above: BTreeMap<Knob, LimitAbove>,
    /// Each in a place of its own: a map keeps as many empty ones as full ones, and moves them.
    agents: BTreeMap<AgentKey, Box<Agent>>,
    ids: BTreeMap<AgentId, AgentKey>,
    /// Who starts after whoever has this name.
    followers: BTreeMap<AgentId, BTreeSet<AgentKey>>,
    /// How many bytes the specifications of all agents have, and of each root agent's subtree.
    specs: specs::Account,
    /// The admitted agents of each level.
    levels: BTreeMap<Level, BTreeSet<AgentKey>>,
    admitted: u32,
    queue: BTreeSet<(Reverse<Priority>, AgentKey)>,
    /// The ended agents that are still known, oldest first.
    retained: BTreeSet<(Monotonic, AgentKey)>,
    /// Those of them that have failed and that no file declares.
    failed: BTreeSet<(Monotonic, AgentKey)>,
    /// What each applied file has given.
    applied: BTreeMap<String, Applied>,
    stops: BTreeMap<StopKey, Stop>,
    renewals: BTreeMap<RenewalKey, Renewal>,
    storm: Storm,
    frostings: BTreeMap<u64, Frosting>,
    /// The rules whose pressure is not gone.
    presses: BTreeMap<PressKey, Press>,
    waits: Waits,
    changes: BTreeMap<u64, Change>,
    /// The changes of limits that wait for the one before.
    waiting_changes: VecDeque<(ReplyTo, LimitScope, Limits, Vec<Knob>)>,
    timers: BTreeSet<(Monotonic, Timer)>,
    dirty: BTreeSet<AgentKey>,
    dirty_stops: BTreeSet<StopKey>,
    dirty_presses: BTreeSet<PressKey>,
    queue_moved: bool,
    /// Agents that may have to be written down anew.
    unrecorded: BTreeSet<AgentKey>,
    /// Agents whose freezer has moved in this step.
    frost_moved: BTreeSet<AgentKey>,
    /// The agents that have asked for what they may not.
    refusals: BTreeMap<AgentKey, Refusals>,
    door: Door,
    next: u64,
    chance: fastrand::Rng,
    /// What agents have that ask for nothing.
    baseline: Baseline,
    ends: BTreeMap<Cause, u64>,
    /// Why nothing can be written down, as long as that is so.
    unwritable: Option<Arc<str>>,
}

/// Whether the herd admits agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    Closed,
    Finished,
}

/// Whose deadline a timer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Agent(AgentKey),
    Stop(StopKey),
    Answer(StopKey),
    Frosting(u64),
    Press(PressKey),
    /// Of requests that are refused; by the agent that makes them.
    Refusals(AgentKey),
    Storm,
}

/// One step: its time, and the orders that it gives.
struct Step<'a> {
    now: Now,
    effects: &'a mut Vec<Effect>,
}

impl Step<'_> {
    fn order(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn reply(&mut self, to: ReplyTo, outcome: Result<Answer, Error>) {
        self.effects.push(Effect::Reply(to, outcome));
    }
}

impl Machine {
    /// Makes the machine of an empty herd. `root` is its root cgroup's absolute path, `not_offered` tells for each knob that
    /// the host does not enforce how that is refused, `seed` feeds the jitter of restarts.
    #[must_use]
    pub fn new(config: HerdConfig, root: String, not_offered: BTreeMap<Knob, Error>, seed: u64) -> Self {
        Self {
            config,
            root,
            not_offered,
            above: BTreeMap::new(),
            agents: BTreeMap::new(),
            ids: BTreeMap::new(),
            followers: BTreeMap::new(),
            specs: specs::Account::default(),
            levels: BTreeMap::new(),
            admitted: 0,
            queue: BTreeSet::new(),
            retained: BTreeSet::new(),
            failed: BTreeSet::new(),
            applied: BTreeMap::new(),
            stops: BTreeMap::new(),
            renewals: BTreeMap::new(),
            storm: Storm::default(),
            frostings: BTreeMap::new(),
            presses: BTreeMap::new(),
            waits: Waits::default(),
            changes: BTreeMap::new(),
            waiting_changes: VecDeque::new(),
            timers: BTreeSet::new(),
            dirty: BTreeSet::new(),
            dirty_stops: BTreeSet::new(),
            dirty_presses: BTreeSet::new(),
            queue_moved: false,
            unrecorded: BTreeSet::new(),
            frost_moved: BTreeSet::new(),
            refusals: BTreeMap::new(),
            door: Door::Open,
            next: 1,
            chance: fastrand::Rng::with_seed(seed),
            baseline: Baseline::default(),
            ends: BTreeMap::new(),
            unwritable: None,
        }
    }

    /// Takes in one input and gives the orders that follow from it.
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        let mut step = Step { now, effects };
        self.take(&mut step, input);
        self.expire(now.mono);
        self.settle_dirty(&mut step);
    }

    /// Returns when the machine wants to be told that time went by; never, if nothing waits for time.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Has the keys of agents begin above a number, so that none is the same as in an earlier daemon's life.
    pub fn number_from(&mut self, first: u64) {
        self.next = self.next.max(first);
    }

    /// Takes over the bounds and times of a configuration that was read again; its limits are changed by requests. A bound
    /// that is below what is there already keeps out what comes, and ends nothing.
    pub fn reconfigure(&mut self, now: Now, config: &HerdConfig, effects: &mut Vec<Effect>) {
        let (limits, levels) = (std::mem::take(&mut self.config.limits), std::mem::take(&mut self.config.levels));
        let pressure = std::mem::take(&mut self.config.pressure);
        self.config = HerdConfig { limits, levels, pressure, ..config.clone() };
        self.queue_moved = true;
        self.settle_dirty(&mut Step { now, effects });
    }

    /// Settles every agent and every stop again. It orders nothing, or there is a bug: that is what tests call it for.
    pub fn settle_everything(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.dirty.extend(self.agents.keys());
        self.dirty_stops.extend(self.stops.keys());
        self.dirty_presses.extend(self.presses.keys());
        self.frost_moved.extend(self.agents.keys());
        self.queue_moved = true;
        self.settle_dirty(&mut Step { now, effects });
    }

    fn take(&mut self, step: &mut Step, input: Input) {
        match input {
            Input::Asked(to, caller, request) => self.asked(step, to, &caller, request),
            Input::Departed(client) => self.departed(client),
            Input::Spawned { agent, pid } => self.spawned(step, agent, pid),
            Input::SpawnFailed { agent, failure } => self.spawn_failed(step, agent, failure),
            Input::Exited { agent, run, exit, rusage, oom, descendants } => {
                self.exited(step, agent, run, run::Death { exit, rusage, oom, descendants, is_unasked: false });
            }
            Input::OomKilled { agent, run, kills, oom } => self.oom_killed(step, agent, run, kills, oom),
            Input::MainNamed { agent, run, pid } => self.main_named(step, agent, run, pid),
            Input::LeftEnded { agent, run, exit } => self.left_ended(agent, run, exit),
            Input::RunEmptied { agent, run } => self.run_emptied(step, agent, run),
            Input::Matched { agent, run, rule, found } => self.matched(step, agent, run, rule, *found),
            Input::OutputRead { agent, run } => self.output_read(step, agent, run),
            Input::Notified { agent, run, notes } => self.notified(step, agent, run, notes),
            Input::ReadySeen { agent, run } => self.ready_seen(step, agent, run),
            Input::Sampled { agent, run, sample } => self.sampled(step, agent, run, sample),
            Input::SubtreeEmptied(agent) => self.subtree_emptied(agent),
            Input::Signalled { agent, processes } => self.signalled(agent, processes),
            Input::Surveyed { number, found } => self.surveyed(step, number, found),
            Input::Killed { agent, counts } => self.killed(agent, &counts),
            Input::FreezerWritten { agent, written } => self.freezer_written(step, agent, written),
            Input::FrostSeen { agent, frost } => self.frost_seen(step, agent, frost),
            Input::Removed(agent) => self.removed(agent),
            Input::RemoveRefused(agent) => self.remove_refused(step, agent),
            Input::Pressed(key) => self.pressed(step, key),
            Input::Reclaimed(agent) => self.reclaim(step, agent),
            Input::LimitsSet(change) => self.limits_set(step, change),
            Input::LimitsRefused(change, error) => self.limits_refused(step, change, error),
            Input::Ticked => {}
            Input::StateUnwritable(why) => self.state_unwritable(step, why),
            Input::StateWritable => self.state_writable(step),
            Input::StoodStill(since) => self.stood_still(step.now.mono, since),
        }
    }

    /// Marks everything whose deadline has come.
    fn expire(&mut self, now: Monotonic) {
        while let Some(&(at, timer)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Agent(key) => {
                    if let Some(agent) = self.agents.get_mut(&key) {
                        agent.due = None;
                        self.dirty.insert(key);
                    }
                }
                Timer::Stop(key) | Timer::Answer(key) => {
                    self.dirty_stops.insert(key);
                }
                Timer::Press(key) => {
                    self.dirty_presses.insert(key);
                }
                Timer::Frosting(key) => {
                    if let Some(frosting) = self.frostings.get_mut(&key) {
                        frosting.is_late = true;
                    }
                }
                // Whose time has come is found by its account.
                Timer::Refusals(_) => {}
                Timer::Storm => self.storm.due = None,
            }
        }
    }

    fn settle_dirty(&mut self, step: &mut Step) {
        loop {
            if let Some(key) = self.dirty.pop_first() {
                self.settle(step, key);
            } else if let Some(stop) = self.dirty_stops.pop_first() {
                self.settle_stop(step, stop);
            } else if let Some(press) = self.dirty_presses.pop_first() {
                self.settle_press(step, press);
            } else if std::mem::take(&mut self.queue_moved) {
                self.settle_queue(step);
            } else if !self.settle_storm(step) {
                break;
            }
        }
        self.settle_frostings(step);
        self.settle_refusals(step);
        self.settle_records(step);
        self.settle_door(step);
    }

    fn settle_door(&mut self, step: &mut Step) {
        let has_ended = |agent: &Agent| agent.has_ended() && agent.home == Home::None;
        let is_empty = self.stops.is_empty() && self.agents.values().all(|agent| has_ended(agent));
        // What outlived its kill outlives the supervisor: the next one goes on with its end.
        let is_given_up = self.stops.values().all(Stop::is_answered_late) && self.is_stuck();
        let is_over = self.door == Door::Closed && self.changes.is_empty() && (is_empty || is_given_up);
        if is_over {
            self.door = Door::Finished;
            step.order(Effect::Finish);
        }
    }

    fn asked(&mut self, step: &mut Step, to: ReplyTo, caller: &Caller, mut request: Request) {
        let permitted = self.permit(caller, &request).and_then(|()| match &mut request {
            Request::Spawn(spec) => self.narrow(caller, spec),
            _ => Ok(()),
        });
        if let Err(error) = permitted {
            self.publish_forbidden(step, caller, &error);
            return step.reply(to, Err(error));
        }
        let refused = match request {
            Request::Spawn(spec) => self.ask_spawn(step, to, *spec),
            Request::Pause(target) => self.ask_frost(step, to, caller, &target, Frost::Frozen),
            Request::Resume(target) => self.ask_frost(step, to, caller, &target, Frost::Thawed),
            Request::Terminate(target, grace) => self.ask_terminate(step, to, caller, &target, grace),
            Request::Limit(scope, limits) => self.ask_limit(step, to, scope, limits, &[]),
            Request::Lift(scope, limits, lifted) => self.ask_limit(step, to, scope, limits, &lifted),
            Request::Declare(file, applied) => self.ask_declare(step, to, file, applied),
            Request::Restart(id) => self.ask_restart(step, to, caller, &id),
            Request::Wait(ids) => self.ask_wait(step, to, &ids),
            Request::Cleanup(target) => self.ask_cleanup(step, to, &target),
            Request::Shutdown(grace) => {
                self.ask_shutdown(step, to, caller, grace);
                Ok(())
            }
        };
        if let Err(error) = refused {
            if error.code == Code::LimitTooWide && caller.agent.is_some() {
                self.publish_forbidden(step, caller, &error);
            }
            step.reply(to, Err(error));
        }
    }

    fn ask_cleanup(&mut self, step: &mut Step, to: ReplyTo, target: &Target) -> Result<(), Error> {
        let keys = self.targets(target)?;
        let (ended, live): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| self.agents[key].has_ended());
        if let (Target::Ids(_), Some(key)) = (target, live.first()) {
            let agent = &self.agents[key];
            let message =
                format!("clean up {}: it is {}, only ended agents are cleaned up", agent.spec.id, agent.state());
            return Err(Error::new(Code::WrongState, message).remedy("terminate it first"));
        }
        // An agent stands for its subtree, which has ended before it; as long as a child is known, so is its parent.
        let all: BTreeSet<_> = ended.into_iter().flat_map(|key| self.subtree(key)).collect();
        for key in &all {
            self.agent_mut(*key).expires = Some(step.now.mono);
            self.dirty.insert(*key);
        }
        // Whoever is answered can use the ids again.
        let order = all.iter().copied().collect();
        self.add_wait(step, Wait::new(to, Until::Forgotten, order, all));
        Ok(())
    }

    fn find(&self, id: &AgentId) -> Result<AgentKey, Error> {
        self.ids.get(id).copied().ok_or_else(|| {
            Error::new(Code::NoSuchAgent, format!("no agent is called {id}")).remedy("`treeherd ps` lists all")
        })
    }

    /// Resolves a target into keys, in the order of their making.
    fn targets(&self, target: &Target) -> Result<Vec<AgentKey>, Error> {
        if let Target::Ids(ids) = target {
            let mut keys = ids.iter().map(|id| self.find(id)).collect::<Result<Vec<_>, _>>()?;
            keys.sort_unstable();
            keys.dedup();
            return Ok(keys);
        }
        let keys: Vec<_> = self.agents.values().filter(|agent| agent.is_named(target)).map(|agent| agent.key).collect();
        if let (Target::Session(session), true) = (target, keys.is_empty()) {
            let error = Error::new(Code::NoSuchAgent, format!("no agent belongs to session {session}"));
            return Err(error.remedy("`treeherd ps` lists all, with their sessions"));
        }
        Ok(keys)
    }

    /// Returns only those keys that have no other of them above.
    fn tops(&self, keys: &[AgentKey]) -> Vec<AgentKey> {
        let set: BTreeSet<_> = keys.iter().copied().collect();
        keys.iter().copied().filter(|key| !self.ancestors(*key).any(|above| set.contains(&above))).collect()
    }

    /// Walks from an agent's parent up to its root agent.
    fn ancestors(&self, key: AgentKey) -> impl Iterator<Item = AgentKey> {
        let parent = move |key: &AgentKey| self.agents.get(key).and_then(|agent| agent.parent);
        std::iter::successors(parent(&key), parent)
    }

    /// Lists an agent and all below it, parents before children.
    fn subtree(&self, key: AgentKey) -> Vec<AgentKey> {
        let mut found = Vec::new();
        let mut stack = vec![key];
        while let Some(key) = stack.pop() {
            found.push(key);
            stack.extend(self.agents[&key].children.iter().rev());
        }
        found
    }

    fn agent_mut(&mut self, key: AgentKey) -> &mut Agent {
        self.agents.get_mut(&key).expect("a key that was just found stays valid within a step")
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Moves an agent into a phase and has it settled again.
    fn enter(&mut self, key: AgentKey, phase: Phase) {
        self.agent_mut(key).phase = phase;
        self.dirty.insert(key);
    }
}

//! Watches every input and every order, and compares what the machine says with what the kernel knows.
//!
//! Here are the books that it keeps and what it says to orders; `asked` takes in requests, `told` judges answers and events, `always`
//! what holds at every moment, at rest and at the end.

mod after;
mod always;
mod asked;
mod crashed;
mod health;
mod recovery;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use treeherd::machine::{AgentKey, Effect, Frost, Input, LimitPlace, Machine, Now, ReplyTo};
use treeherd::model::config::HerdConfig;
use treeherd::model::error::{Code, Error};
use treeherd::model::event::Kind;
use treeherd::model::id::{AgentId, Level, Run};
use treeherd::model::request::Request;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::{Exit, Paused, State};
use treeherd::model::time::Monotonic;

use super::kernel::{Kernel, Tally};
use after::Order;
use asked::{is_permitted, subtrees};
use health::Health;
use recovery::Recovery;

/// An agent as it was asked for.
#[derive(Clone, Debug)]
struct Known {
    parent: Option<AgentKey>,
    level: Level,
    priority: u8,
    spec: AgentSpec,
}

/// A request, and what was true when it came.
#[derive(Debug)]
pub struct Asked {
    request: Request,
    /// Whom it is about, and all below them.
    members: BTreeSet<AgentKey>,
    /// For each member whose end is this request's alone: its live processes and what had happened to them.
    exact: BTreeMap<AgentKey, (u64, Tally)>,
    is_answered: bool,
    /// When the kill of its members is due, if it asks for their end.
    kill_at: Option<Monotonic>,
    at: Monotonic,
    is_permitted: bool,
    /// Its client went away before it was answered, or after.
    is_gone: bool,
}

/// Subtrees that are ended together.
#[derive(Debug)]
struct Group {
    tops: BTreeSet<AgentKey>,
    freezes_since: Option<Monotonic>,
    kill_at: Option<Monotonic>,
}

pub struct Observer {
    config: HerdConfig,
    known: BTreeMap<AgentKey, Known>,
    names: BTreeMap<AgentId, AgentKey>,
    requests: BTreeMap<ReplyTo, Asked>,
    started: BTreeSet<(AgentKey, Run)>,
    told: BTreeSet<(AgentKey, Run)>,
    /// Agents that somebody wants to end, or that end with one above.
    down: BTreeSet<AgentKey>,
    /// Runs that somebody wants to be followed by the next.
    cycles: BTreeSet<(AgentKey, Run)>,
    /// Runs that were killed since their spawn took too long.
    late: BTreeSet<(AgentKey, Run)>,
    /// Runs that were found in a failure.
    judged: BTreeSet<(AgentKey, Run)>,
    /// Runs whose last words are looked at, and since when.
    reading: BTreeMap<(AgentKey, Run), Monotonic>,
    /// Runs whose main process's end was told, and whether the end of the run had been asked for by then.
    exits: BTreeMap<(AgentKey, Run), bool>,
    /// Of those that main processes have left behind, how the last that is known of has ended.
    pub left: BTreeMap<(AgentKey, Run), Exit>,
    spawning: BTreeSet<AgentKey>,
    removing: BTreeSet<AgentKey>,
    /// Agents that are ended since the one above them has ended.
    cascading: BTreeSet<AgentKey>,
    /// Agents whose subtree's kill was ordered since they were started last.
    killed: BTreeSet<AgentKey>,
    frosts: BTreeMap<AgentKey, Frost>,
    groups: Vec<Group>,
    paused: BTreeSet<AgentKey>,
    /// The last pause or resume of each agent.
    frost_asked: BTreeMap<AgentKey, ReplyTo>,
    backoffs: BTreeMap<AgentKey, Duration>,
    /// What each run has told of itself, and for how long it has been silent.
    health: BTreeMap<(AgentKey, Run), Health>,
    queued: BTreeSet<AgentKey>,
    /// Agents that were announced, and not yet ended.
    announced: BTreeSet<AgentKey>,
    forgotten: BTreeSet<AgentKey>,
    /// Runs of which nobody can see how they end: their supervisor died before.
    unseen: BTreeSet<(AgentKey, Run)>,
    totals_changed: bool,
    recovery: Recovery,
    order: Order,
    pub has_finished: bool,
    /// What was seen, by name: tells what a swarm reaches.
    pub seen: BTreeMap<String, u64>,
}

impl Observer {
    pub fn new(config: &HerdConfig) -> Self {
        Self {
            config: config.clone(),
            known: BTreeMap::new(),
            names: BTreeMap::new(),
            requests: BTreeMap::new(),
            started: BTreeSet::new(),
            told: BTreeSet::new(),
            down: BTreeSet::new(),
            cycles: BTreeSet::new(),
            late: BTreeSet::new(),
            judged: BTreeSet::new(),
            reading: BTreeMap::new(),
            exits: BTreeMap::new(),
            left: BTreeMap::new(),
            spawning: BTreeSet::new(),
            removing: BTreeSet::new(),
            cascading: BTreeSet::new(),
            killed: BTreeSet::new(),
            frosts: BTreeMap::new(),
            groups: Vec::new(),
            paused: BTreeSet::new(),
            frost_asked: BTreeMap::new(),
            backoffs: BTreeMap::new(),
            health: BTreeMap::new(),
            queued: BTreeSet::new(),
            announced: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            unseen: BTreeSet::new(),
            totals_changed: false,
            recovery: Recovery::default(),
            order: Order::default(),
            has_finished: false,
            seen: BTreeMap::new(),
        }
    }

    pub fn is_spawning(&self, key: AgentKey) -> bool {
        self.spawning.contains(&key)
    }

    /// Says whether the end of a run's main process was told.
    pub fn is_headless(&self, key: AgentKey, run: Run) -> bool {
        self.exits.contains_key(&(key, run))
    }

    /// The agents that are known by name, ended ones included.
    pub fn keys(&self) -> Vec<AgentKey> {
        self.names.values().copied().collect()
    }

    /// The names of the agents that there are.
    pub fn live_names(&self, machine: &Machine) -> Vec<AgentId> {
        self.names.keys().filter(|id| machine.key_of(id).is_some()).cloned().collect()
    }

    fn is_asked(&self, key: AgentKey, run: Run) -> bool {
        self.down.contains(&key) || self.cycles.contains(&(key, run))
    }

    fn note(&mut self, what: impl Into<String>) {
        *self.seen.entry(what.into()).or_default() += 1;
    }

    /// Takes in what the machine is about to be told.
    pub fn before(&mut self, machine: &Machine, kernel: &Kernel, now: Now, input: &Input) -> Option<ReplyTo> {
        match input {
            Input::Asked(to, caller, request) => {
                self.asked(machine, kernel, now, *to, request);
                let is_permitted = caller.agent.is_none_or(|own| is_permitted(machine, own, request));
                self.requests.get_mut(to).unwrap().is_permitted = is_permitted;
                return Some(*to);
            }
            Input::Departed(client) => {
                for (_, asked) in self.requests.iter_mut().filter(|(to, _)| to.client == *client) {
                    asked.is_gone = true;
                }
            }
            Input::Spawned { agent, .. } | Input::SpawnFailed { agent, .. } => {
                assert!(self.spawning.remove(agent), "{agent}: an answer to a spawn that was ordered");
            }
            Input::Removed(agent) => {
                self.removing.remove(agent);
                let gone: Vec<_> = self.frosts.keys().copied().filter(|key| !kernel.dirs.contains_key(key)).collect();
                for key in gone {
                    self.frosts.remove(&key);
                    self.paused.remove(&key);
                }
            }
            Input::RemoveRefused(agent) => {
                self.removing.remove(agent);
            }
            Input::Exited { agent, run, .. } => {
                let is_asked = self.is_asked(*agent, *run);
                self.exits.entry((*agent, *run)).or_insert(is_asked);
            }
            Input::LeftEnded { agent, run, exit } => drop(self.left.insert((*agent, *run), *exit)),
            Input::Notified { agent, run, notes } => self.heard(machine, *agent, *run, notes),
            Input::ReadySeen { agent, run } => self.saw_ready(machine, *agent, *run),
            Input::StoodStill(since) => self.stay_young(machine, now.mono.since(*since)),
            _ => {}
        }
        None
    }

    /// Compares what the machine has ordered and told with what is true.
    pub fn after(&mut self, machine: &Machine, kernel: &Kernel, now: Now, asked: Option<ReplyTo>, effects: &[Effect]) {
        self.learn(machine, asked, effects);
        let was_queued = self.queued.clone();
        // Another supervisor goes on with several ends at once: those of one are due at the same time.
        let due = |key| machine.record(key).and_then(|record| record.course.ending).map(|ending| ending.kill_at);
        let mut together: BTreeMap<_, BTreeSet<AgentKey>> = BTreeMap::new();
        for effect in effects {
            if let Effect::Publish(event) = effect
                && event.kind == Kind::Stopping
                && let Some(key) = event.agent.as_ref().and_then(|id| self.names.get(id))
            {
                together.entry((event.message.clone(), due(*key))).or_default().insert(*key);
            }
        }
        let kill_at = asked.and_then(|to| self.requests[&to].kill_at);
        // Where another stop of theirs is more urgent, no freeze tells when this one has begun to wait for it.
        let group = |((_, due), tops)| Group { tops, freezes_since: None, kill_at: kill_at.or(due) };
        self.groups.extend(together.into_iter().map(group));
        self.restarted(machine, asked, effects);
        for effect in effects {
            assert!(!self.has_finished, "nothing is ordered after the end: {effect:?}");
            self.ordered(machine, kernel, now, effect);
        }
        for group in &mut self.groups {
            // Where a thaw is still on a hand, the time runs without an order to freeze.
            let is_closed = group.kill_at.is_some_and(|at| at <= now.mono)
                && !self.spawning.iter().any(|key| group.tops.iter().any(|top| machine.is_within(*key, *top)));
            if is_closed || group.tops.iter().any(|key| self.frosts.get(key) == Some(&Frost::Frozen)) {
                group.freezes_since.get_or_insert(now.mono);
            }
        }
        self.check_always(machine, kernel, now);
        self.check_waits(machine);
        self.check_queue(machine, &was_queued);
    }

    fn ordered(&mut self, machine: &Machine, kernel: &Kernel, now: Now, effect: &Effect) {
        for key in subjects(effect) {
            assert!(!self.forgotten.contains(&key), "{key} is forgotten, and yet: {effect:?}");
            assert!(self.known.contains_key(&key), "{key} was never asked for: {effect:?}");
        }
        match effect {
            Effect::Spawn(order) => {
                let key = order.agent;
                assert!(self.spawning.insert(key), "{key}: two spawns at once");
                assert!(!self.down.contains(&key), "{key}: what was stopped does not run again");
                self.check_start(kernel, now, key, order.run);
                self.check_follows(machine, kernel, key, order.run);
                for above in self.chain(key) {
                    assert_ne!(
                        self.frosts.get(&above),
                        Some(&Frost::Frozen),
                        "{key}: clone into a frozen cgroup hangs"
                    );
                    assert!(!self.removing.contains(&above), "{key}: a spawn into {above}, which is being removed");
                    assert!(!self.paused.contains(&above), "{key}: a spawn into {above}, which is paused");
                }
                if let Some(left) = self.backoffs.remove(&key) {
                    assert!(left < Duration::from_millis(1), "{key}: started {left:?} before its delay is over");
                }
            }
            Effect::Freeze { agent, frost } => {
                if *frost == Frost::Frozen {
                    self.assert_no_spawn_into(machine, *agent, "freeze");
                    for group in self.groups.iter_mut().filter(|group| group.tops.contains(agent)) {
                        group.freezes_since.get_or_insert(now.mono);
                    }
                }
                self.frosts.insert(*agent, *frost);
            }
            Effect::Kill { agent, runs, .. } => {
                self.assert_no_spawn_into(machine, *agent, "kill");
                if !runs.is_empty() {
                    let is_due =
                        |asked: &Asked| asked.members.contains(agent) && asked.kill_at.is_some_and(|at| at <= now.mono);
                    let is_asked = self.requests.values().any(is_due) || self.cascading.contains(agent);
                    assert!(is_asked, "{agent}: killed before its grace is over");
                    self.assert_frozen_together(kernel, now, *agent);
                    self.killed.insert(*agent);
                }
            }
            Effect::Remove(agent) => {
                self.assert_no_spawn_into(machine, *agent, "removal");
                assert!(self.removing.insert(*agent), "{agent}: two removals at once");
            }
            Effect::Reply(to, outcome) => {
                self.answered(*to);
                let is_no = matches!(outcome, Err(error) if error.code == Code::Forbidden);
                let asked = &self.requests[to];
                if let (Request::Restart(id), Err(Error { code: Code::NoSuchParent, .. })) = (&asked.request, outcome) {
                    // It had ended, waited below a parent that could not be started, and goes with it.
                    self.announced.remove(&self.names[id]);
                }
                assert_eq!(
                    is_no, !asked.is_permitted,
                    "{to:?}: an agent may act only below itself: {:?}",
                    asked.request
                );
                self.check_answer(machine, kernel, now, *to, outcome.as_ref().ok());
            }
            Effect::FindLaggards { reply: Some(to), .. } => self.answered(*to),
            Effect::Publish(event) => self.told(machine, kernel, now, event),
            Effect::Forget(key) => {
                self.forgotten.insert(*key);
                self.forget_order(*key);
                self.recovery.forget(*key);
                for group in &mut self.groups {
                    group.tops.remove(key);
                }
                self.backoffs.remove(key);
                assert!(!kernel.dirs.contains_key(key), "{key}: forgotten, and its cgroup is there");
                assert!(!self.announced.contains(key), "{key}: announced, and forgotten before its end was told");
            }
            Effect::Finish => {
                self.has_finished = true;
                self.at_the_end(machine, kernel);
            }
            Effect::KillRun { agent, run, .. } => {
                if self.spawning.contains(agent) {
                    self.late.insert((*agent, *run));
                }
            }
            Effect::ReadOutput { agent, run } => {
                assert!(
                    self.exits.contains_key(&(*agent, *run)),
                    "{agent}: run {run} goes on, and its last words are read"
                );
                assert!(
                    kernel.in_run(*agent, *run).next().is_none(),
                    "{agent}: something of run {run} may still speak"
                );
                self.reading.insert((*agent, *run), now.mono);
            }
            Effect::Sample { agent, run } => {
                assert!(self.known[agent].spec.stall.is_some(), "{agent}: it is looked at, and nobody wants to know");
                assert!(!self.told.contains(&(*agent, *run)), "{agent}: run {run} has ended, and it is looked at");
                assert!(!self.has_run_below(machine, kernel, *agent), "{agent}: it is looked at, and waits for others");
            }
            Effect::Reclaim(agent) => {
                assert!(kernel.is_frozen(*agent), "{agent}: it runs, and its memory is taken back");
                let paused = machine.key_of_paused(*agent);
                assert_eq!(paused, Some(Paused::Own), "{agent}: its memory is taken back, and nothing pauses it");
                self.note("memory taken back");
            }
            Effect::Record(_)
            | Effect::RecordHerd(_)
            | Effect::Survey { .. }
            | Effect::Signal { .. }
            | Effect::RemoveRun { .. }
            | Effect::SetLimits { .. }
            | Effect::Tighten(_)
            | Effect::Loosen(_)
            | Effect::FindLaggards { reply: None, .. } => {}
        }
    }

    fn chain(&self, key: AgentKey) -> Vec<AgentKey> {
        std::iter::successors(Some(key), |key| self.known[key].parent).collect()
    }

    fn assert_no_spawn_into(&self, machine: &Machine, top: AgentKey, what: &str) {
        for key in &self.spawning {
            assert!(!machine.is_within(*key, top), "{key}: a spawn is on its way into {top} at its {what}");
        }
    }

    fn assert_frozen_together(&mut self, kernel: &Kernel, now: Now, top: AgentKey) {
        let groups: Vec<_> = self.groups.iter().filter(|group| group.tops.contains(&top)).collect();
        assert!(!groups.is_empty(), "{top}: killed, and nobody asked");
        let is_right = |group: &&Group| {
            let is_late = group.freezes_since.is_some_and(|at| now.mono >= at + Duration::from_millis(500));
            // What has strayed from a run that is over is found and killed when its cgroup is removed, level or not.
            let is_still = |key: &AgentKey| kernel.within(*key).all(|(_, it)| it.is_stopped || it.has_strayed);
            is_late || group.tops.len() == 1 || group.tops.iter().all(is_still)
        };
        let goes_along = self.chain(top).iter().skip(1).any(|above| self.killed.contains(above));
        assert!(goes_along || groups.iter().any(is_right), "{top}: killed while others of its group still run");
        let several = groups.iter().all(|group| group.tops.len() > 1);
        if several {
            self.note("killed together");
        }
    }
}

fn state(machine: &Machine, key: AgentKey) -> State {
    machine.status(key, Monotonic(0)).state
}

/// Lists the agents that an order is about.
fn subjects(effect: &Effect) -> Vec<AgentKey> {
    match effect {
        Effect::Spawn(order) => vec![order.agent],
        Effect::Signal { agent, .. }
        | Effect::KillRun { agent, .. }
        | Effect::Freeze { agent, .. }
        | Effect::ReadOutput { agent, .. }
        | Effect::Sample { agent, .. }
        | Effect::RemoveRun { agent, .. }
        | Effect::Remove(agent)
        | Effect::Reclaim(agent)
        | Effect::Forget(agent) => vec![*agent],
        Effect::Kill { agent, runs, .. } => std::iter::once(*agent).chain(runs.iter().map(|(key, _)| *key)).collect(),
        Effect::FindLaggards { agents, .. } => agents.clone(),
        Effect::Survey { survey, .. } => {
            survey.runs.iter().map(|(key, _)| *key).chain(survey.homes.iter().copied()).collect()
        }
        Effect::SetLimits { settings, .. } => settings
            .iter()
            .filter_map(|(place, _)| match place {
                LimitPlace::Herd => None,
                LimitPlace::Agent(key) | LimitPlace::Children(key) => Some(*key),
            })
            .collect(),
        Effect::Tighten(place) | Effect::Loosen(place) => match place {
            LimitPlace::Herd => Vec::new(),
            LimitPlace::Agent(key) | LimitPlace::Children(key) => vec![*key],
        },
        Effect::Record(_) | Effect::RecordHerd(_) | Effect::Reply(..) | Effect::Publish(_) | Effect::Finish => {
            Vec::new()
        }
    }
}

/// What the machine says of an agent that may be gone.
trait Asking {
    fn key_of_state(&self, key: AgentKey) -> Option<State>;
    fn key_of_paused(&self, key: AgentKey) -> Option<Paused>;
    fn is_held(&self, key: AgentKey) -> bool;
}

impl Asking for Machine {
    fn key_of_state(&self, key: AgentKey) -> Option<State> {
        self.id_of(key).map(|_| state(self, key))
    }

    fn key_of_paused(&self, key: AgentKey) -> Option<Paused> {
        self.id_of(key).map(|_| self.status(key, Monotonic(0)).paused)
    }

    /// Says whether an agent waits for one above that is paused.
    fn is_held(&self, key: AgentKey) -> bool {
        let above = std::iter::successors(self.parent_of(key), |key| self.parent_of(*key));
        above.into_iter().any(|key| self.key_of_paused(key).is_some_and(|paused| paused != Paused::No))
    }
}

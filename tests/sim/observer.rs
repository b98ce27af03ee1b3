//! Watches every input and every order, and compares what the machine says with what the kernel knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use treeherd::machine::{AgentKey, Effect, Frost, Input, LimitPlace, Machine, Now, ReplyTo};
use treeherd::model::config::HerdConfig;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::{AgentId, Level, Run};
use treeherd::model::request::{Answer, LimitScope, Request};
use treeherd::model::status::{Cause, Exit, Paused, Receipt, State};
use treeherd::model::time::Monotonic;

use super::kernel::{Kernel, Tally};

/// An agent as it was asked for.
#[derive(Clone, Debug)]
struct Known {
    parent: Option<AgentKey>,
    level: Level,
    priority: u8,
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
}

/// Subtrees that are ended together.
#[derive(Debug)]
struct Group {
    tops: BTreeSet<AgentKey>,
    freezes_since: Option<Monotonic>,
}

pub struct Observer {
    config: HerdConfig,
    known: BTreeMap<AgentKey, Known>,
    names: BTreeMap<AgentId, AgentKey>,
    requests: BTreeMap<ReplyTo, Asked>,
    departed: BTreeSet<u64>,
    started: BTreeSet<(AgentKey, Run)>,
    told: BTreeSet<(AgentKey, Run)>,
    /// Agents that somebody wants to end, or that end with one above.
    down: BTreeSet<AgentKey>,
    /// Runs that somebody wants to be followed by the next.
    cycles: BTreeSet<(AgentKey, Run)>,
    /// Runs that were killed since their spawn took too long.
    late: BTreeSet<(AgentKey, Run)>,
    /// Runs whose main process's end was told, and whether the end of the run had been asked for by then.
    exits: BTreeMap<(AgentKey, Run), bool>,
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
    queued: BTreeSet<AgentKey>,
    /// Agents that were announced, and not yet ended.
    announced: BTreeSet<AgentKey>,
    forgotten: BTreeSet<AgentKey>,
    totals_changed: bool,
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
            departed: BTreeSet::new(),
            started: BTreeSet::new(),
            told: BTreeSet::new(),
            down: BTreeSet::new(),
            cycles: BTreeSet::new(),
            late: BTreeSet::new(),
            exits: BTreeMap::new(),
            spawning: BTreeSet::new(),
            removing: BTreeSet::new(),
            cascading: BTreeSet::new(),
            killed: BTreeSet::new(),
            frosts: BTreeMap::new(),
            groups: Vec::new(),
            paused: BTreeSet::new(),
            frost_asked: BTreeMap::new(),
            backoffs: BTreeMap::new(),
            queued: BTreeSet::new(),
            announced: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            totals_changed: false,
            has_finished: false,
            seen: BTreeMap::new(),
        }
    }

    pub fn is_spawning(&self, key: AgentKey) -> bool {
        self.spawning.contains(&key)
    }

    pub fn parent_of(&self, key: AgentKey) -> Option<AgentKey> {
        self.known[&key].parent
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
            Input::Asked(to, _, request) => {
                self.asked(machine, kernel, now, *to, request);
                return Some(*to);
            }
            Input::Departed(client) => {
                self.departed.insert(*client);
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
            _ => {}
        }
        None
    }

    fn asked(&mut self, machine: &Machine, kernel: &Kernel, now: Now, to: ReplyTo, request: &Request) {
        let keys = match request {
            Request::Terminate(target, _) | Request::Pause(target) | Request::Resume(target) => machine.select(target),
            Request::Shutdown(_) => machine.select(&treeherd::model::request::Target::All),
            _ => Ok(Vec::new()),
        };
        let keys = keys.unwrap_or_default();
        if let Request::Resume(_) = request {
            for key in &keys {
                self.paused.remove(key);
            }
        }
        if let Request::Pause(_) | Request::Resume(_) = request {
            self.frost_asked.extend(keys.iter().map(|key| (*key, to)));
        }
        if let Request::Limit(LimitScope::Total(_), _) = request {
            self.totals_changed = true;
        }
        let members = subtrees(machine, &keys);
        let kill_at = match request {
            Request::Terminate(_, grace) | Request::Shutdown(grace) => {
                let is_top = |key: &AgentKey| {
                    let is_live = machine.key_of_state(*key).is_some_and(|state| !state.has_ended());
                    let mut above = self.chain(*key).into_iter().skip(1);
                    is_live && !above.any(|it| keys.contains(&it) && !state(machine, it).has_ended())
                };
                let graces =
                    keys.iter().copied().filter(is_top).filter_map(|key| machine.spec_of(key)).map(|it| it.grace);
                Some(now.mono + grace.or_else(|| graces.max()).unwrap_or_default())
            }
            _ => None,
        };
        let mut exact = BTreeMap::new();
        for key in &members {
            let run = machine.run_of(*key).unwrap_or_default();
            let is_main = kernel.in_run(*key, run).any(|(_, process)| process.is_main);
            let is_plain = !self.down.contains(key) && !self.cycles.contains(&(*key, run)) && !self.is_spawning(*key);
            let strays = kernel.within(*key).any(|(_, process)| process.has_strayed);
            if is_main && is_plain && !strays && self.started.contains(&(*key, run)) {
                let tally = kernel.tallies.get(key).copied().unwrap_or_default();
                exact.insert(*key, (kernel.in_run(*key, run).count() as u64, tally));
            }
        }
        let asked = Asked { request: request.clone(), members, exact, is_answered: false, kill_at };
        assert!(self.requests.insert(to, asked).is_none());
    }

    /// Compares what the machine has ordered and told with what is true.
    pub fn after(&mut self, machine: &Machine, kernel: &Kernel, now: Now, asked: Option<ReplyTo>, effects: &[Effect]) {
        self.learn(machine, asked);
        let was_queued = self.queued.clone();
        let mut together: BTreeMap<String, BTreeSet<AgentKey>> = BTreeMap::new();
        for effect in effects {
            if let Effect::Publish(event) = effect
                && event.kind == Kind::Stopping
                && let Some(key) = event.agent.as_ref().and_then(|id| self.names.get(id))
            {
                together.entry(event.message.clone()).or_default().insert(*key);
            }
        }
        self.groups.extend(together.into_values().map(|tops| Group { tops, freezes_since: None }));
        self.restarted(machine, asked, effects);
        for effect in effects {
            assert!(!self.has_finished, "nothing is ordered after the end: {effect:?}");
            self.ordered(machine, kernel, now, effect);
        }
        for group in &mut self.groups {
            if group.tops.iter().any(|key| self.frosts.get(key) == Some(&Frost::Frozen)) {
                group.freezes_since.get_or_insert(now.mono);
            }
        }
        self.check_always(machine, kernel, now);
        self.check_queue(machine, &was_queued);
    }

    /// Learns of a new agent.
    fn learn(&mut self, machine: &Machine, asked: Option<ReplyTo>) {
        let Some(Asked { request: Request::Spawn(spec), .. }) = asked.and_then(|to| self.requests.get(&to)) else {
            return;
        };
        let Some(key) = machine.key_of(&spec.id) else { return };
        if self.known.contains_key(&key) {
            return;
        }
        let parent = machine.parent_of(key);
        let level = parent.map_or(Level(0), |parent| self.known[&parent].level.below());
        self.known.insert(key, Known { parent, level, priority: spec.priority.into() });
        self.names.insert(spec.id.clone(), key);
    }

    /// Learns of a restart that was asked for and begun.
    fn restarted(&mut self, machine: &Machine, asked: Option<ReplyTo>, effects: &[Effect]) {
        let Some(to) = asked else { return };
        let Request::Restart(id) = &self.requests[&to].request else { return };
        let is_refused = effects.iter().any(|effect| matches!(effect, Effect::Reply(it, Err(_)) if *it == to));
        let Some(key) = machine.key_of(id).filter(|_| !is_refused) else { return };
        let is_cycle = effects.iter().any(|it| matches!(it, Effect::Signal { agent, .. } if *agent == key));
        if is_cycle {
            self.cycles.insert((key, machine.run_of(key).unwrap()));
            return;
        }
        self.down.remove(&key);
        self.killed.remove(&key);
        self.backoffs.remove(&key);
        self.groups.retain(|group| !group.tops.contains(&key));
        self.announced.insert(key);
        for asked in self.requests.values_mut() {
            asked.members.remove(&key);
            asked.exact.remove(&key);
        }
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
            Effect::Kill { agent, runs } => {
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
                self.check_answer(machine, kernel, *to, outcome.as_ref().ok());
            }
            Effect::FindLaggards { reply: Some(to), .. } => self.answered(*to),
            Effect::Publish(event) => self.told(machine, kernel, event),
            Effect::Forget(key) => {
                self.forgotten.insert(*key);
                for group in &mut self.groups {
                    group.tops.remove(key);
                }
                self.backoffs.remove(key);
                assert!(!kernel.dirs.contains_key(key), "{key}: forgotten, and its cgroup is there");
                assert!(!self.announced.contains(key), "{key}: announced, and forgotten before its end was told");
            }
            Effect::Finish => {
                self.has_finished = true;
                self.at_the_end(kernel);
            }
            Effect::KillRun { agent, run } => {
                if self.spawning.contains(agent) {
                    self.late.insert((*agent, *run));
                }
            }
            Effect::Signal { .. }
            | Effect::RemoveRun { .. }
            | Effect::SetLimits { .. }
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

    fn answered(&mut self, to: ReplyTo) {
        let asked = self.requests.get_mut(&to).unwrap_or_else(|| panic!("{to:?}: an answer to nobody"));
        assert!(!asked.is_answered, "{to:?}: answered twice: {:?}", asked.request);
        asked.is_answered = true;
    }

    fn check_answer(&mut self, machine: &Machine, kernel: &Kernel, to: ReplyTo, answer: Option<&Answer>) {
        match (&self.requests[&to].request, answer) {
            (_, Some(Answer::Receipt(receipt))) => self.check_receipt(machine, kernel, to, receipt),
            (Request::Pause(_), Some(Answer::Agents(agents))) => {
                for agent in agents.iter().filter(|it| it.paused == Paused::Own && !it.state.has_ended()) {
                    let key = self.names[&agent.id];
                    let is_news = self.frost_asked.get(&key) == Some(&to) && !self.down.contains(&key);
                    assert!(!is_news || kernel.is_still(key), "{}: said to be paused, and it runs", agent.id);
                }
            }
            (Request::Resume(_), Some(Answer::Agents(agents))) => {
                for agent in agents.iter().filter(|it| it.paused != Paused::Own && !it.state.has_ended()) {
                    let key = self.names[&agent.id];
                    let is_news = self.frost_asked.get(&key) == Some(&to) && !self.down.contains(&key);
                    let dir = kernel.dirs.get(&key).filter(|_| is_news);
                    assert!(dir.is_none_or(|dir| dir.freeze == Frost::Thawed), "{}: said to be resumed", agent.id);
                }
            }
            (Request::Wait(_), Some(Answer::Agents(agents))) => {
                for agent in agents {
                    assert!(agent.state.has_ended(), "{}: said to have ended, it is {}", agent.id, agent.state);
                }
            }
            (Request::Spawn(_) | Request::Restart(_), Some(Answer::Agent(agent))) => {
                let key = self.names[&agent.id];
                self.announced.insert(key);
            }
            _ => {}
        }
    }

    fn check_receipt(&mut self, machine: &Machine, kernel: &Kernel, to: ReplyTo, receipt: &Receipt) {
        let mut counted = 0;
        let asked = &self.requests[&to];
        for key in &asked.members {
            let live: Vec<_> = kernel.within(*key).collect();
            assert!(live.is_empty(), "{key}: a receipt, and of it live {live:?}");
            assert!(!kernel.hanging.contains_key(key) && !self.spawning.contains(key), "{key}: a receipt, and a spawn");
            assert!(!kernel.dirs.contains_key(key), "{key}: a receipt, and its cgroup is there");
            let ended = self.forgotten.contains(key) || machine.key_of_state(*key).is_none_or(State::has_ended);
            assert!(ended, "{key}: a receipt, and it has not ended");
        }
        for (key, (live, before)) in &asked.exact {
            let after = kernel.tallies.get(key).copied().unwrap_or_default();
            let Some(id) = self.names.iter().find(|(_, it)| *it == key).map(|(id, _)| id) else { continue };
            let is_plain = Tally { our_deaths: 0, ..after } == Tally { our_deaths: 0, ..*before };
            // A kill for lateness is counted by nobody.
            let is_late = self.late.iter().any(|(late, _)| late == key);
            if let (true, Some(agent)) = (is_plain && !is_late, receipt.agents.iter().find(|agent| agent.id == *id)) {
                assert_eq!(agent.processes, *live, "{key}: the receipt counts what died: {agent:?}");
                counted += 1;
            }
        }
        let sum: u64 = receipt.agents.iter().map(|agent| agent.processes).sum();
        assert_eq!(receipt.processes, sum);
        if counted > 0 {
            self.note("exact receipts");
        }
    }

    /// Compares an event with the truth.
    fn told(&mut self, machine: &Machine, kernel: &Kernel, event: &Event) {
        self.note(event.kind.name());
        let Some(key) = event.agent.as_ref().and_then(|id| self.names.get(id)).copied() else { return };
        let run = event.run.unwrap_or_default();
        match event.kind {
            Kind::Started => {
                assert!(self.started.insert((key, run)), "{key}: run {run} started twice");
                self.announced.insert(key);
            }
            Kind::Registered => {
                self.announced.insert(key);
            }
            Kind::Queued => {
                self.queued.insert(key);
                self.announced.insert(key);
            }
            Kind::Stopping => {
                let below = subtrees(machine, &[key]);
                for key in &below {
                    self.paused.remove(key);
                }
                if event.message.contains("the end of") {
                    self.cascading.insert(key);
                }
                self.down.extend(below);
            }
            Kind::Paused => {
                assert!(kernel.is_frozen(key), "{key}: told to be paused, and the kernel says it is not frozen");
                // A stop thaws it presently; the pause that was under way is told all the same.
                if !self.down.contains(&key) {
                    self.paused.insert(key);
                }
            }
            Kind::Resumed => {
                self.paused.remove(&key);
            }
            Kind::Restarting => {
                self.backoffs.insert(key, Duration::from_millis(event.delay_ms.unwrap()));
                self.announced.insert(key);
            }
            Kind::GaveUp => {
                self.announced.remove(&key);
            }
            Kind::Completed | Kind::Failed | Kind::Terminated => {
                self.announced.remove(&key);
                self.check_end(kernel, key, run, event);
            }
            _ => {}
        }
    }

    fn check_end(&mut self, kernel: &Kernel, key: AgentKey, run: Run, event: &Event) {
        let exit = event.exit.as_ref().expect("an end has its record");
        if run == Run(0) || !self.started.contains(&(key, run)) {
            match event.kind {
                Kind::Failed => assert_eq!(exit.cause, Cause::Exec, "{key}: it never started"),
                Kind::Terminated => assert!(run == Run(0), "{key}: run {run} never started"),
                _ => panic!("{key}: completed, and it never started"),
            }
            assert!(run == Run(0) || self.told.insert((key, run)), "{key}: run {run} ended twice");
            return;
        }
        assert!(self.told.insert((key, run)), "{key}: run {run} ended twice");
        let death = kernel.deaths.get(&(key, run)).unwrap_or_else(|| panic!("{key}: run {run} is said to have ended"));
        let was_asked = self.exits.get(&(key, run)).copied().unwrap_or_else(|| panic!("{key}: nobody told its exit"));
        if event.kind != Kind::Failed {
            assert!(kernel.in_run(key, run).next().is_none(), "{key}: {} while its processes live", event.kind);
        }
        let is_good = death.exit == Exit::Status(0) && !death.is_oom;
        let is_asked = self.is_asked(key, run);
        let allowed: &[Kind] = match (was_asked, is_asked, is_good) {
            // Nobody asked: it ended by itself, and that is what is told.
            (false, false, true) => &[Kind::Completed],
            (_, _, false) if !was_asked => &[Kind::Failed],
            // It ended well, and what it left behind was ended on request.
            (false, true, true) => &[Kind::Completed, Kind::Terminated],
            (true, ..) => &[Kind::Terminated],
            (false, ..) => unreachable!("all are told apart"),
        };
        if death.is_ours && !was_asked {
            // Its spawn took too long, and its kill came when it had just succeeded.
            assert!(self.late.contains(&(key, run)), "{key}: we killed run {run}, and nobody asked");
            assert_eq!((event.kind, exit.cause), (Kind::Failed, Cause::Exec), "{key}: run {run} was too late");
            self.note("late spawns");
            return;
        }
        assert!(allowed.contains(&event.kind), "{key} run {run}: told {}, true is {allowed:?}: {death:?}", event.kind);
        let is_named = (event.kind == Kind::Terminated) == (exit.cause == Cause::Terminated);
        assert!(is_named, "{key} run {run}: {} with the cause {}", event.kind, exit.cause);
        if event.kind == Kind::Failed {
            assert_eq!(exit.cause == Cause::Oom, death.is_oom, "{key}: the OOM killer is named when it did it");
        }
    }

    /// What holds at every moment.
    fn check_always(&mut self, machine: &Machine, kernel: &Kernel, now: Now) {
        if let Some(deadline) = machine.next_deadline() {
            assert!(deadline > now.mono, "a deadline that has come is settled");
        }
        for key in &self.paused {
            assert!(kernel.is_still(*key), "{key}: paused, and something in it runs");
        }
        let busy: BTreeSet<AgentKey> = kernel
            .processes
            .values()
            .filter(|process| !process.has_strayed)
            .map(|process| process.agent)
            .chain(kernel.hanging.keys().copied())
            .collect();
        let bounds = &self.config.bounds;
        assert!(busy.len() <= bounds.max_agents as usize, "max_agents holds for what runs");
        let mut levels: BTreeMap<Level, u32> = BTreeMap::new();
        let mut children: BTreeMap<AgentKey, u32> = BTreeMap::new();
        for key in &busy {
            let known = &self.known[key];
            *levels.entry(known.level).or_default() += 1;
            if let Some(parent) = known.parent {
                *children.entry(parent).or_default() += 1;
            }
        }
        assert!(levels.values().all(|n| *n <= bounds.max_agents_per_level), "max_agents_per_level holds: {levels:?}");
        assert!(levels.keys().all(|level| level.0 < bounds.max_levels), "max_levels holds: {levels:?}");
        assert!(children.values().all(|n| *n <= bounds.max_children), "max_children holds: {children:?}");
        self.check_totals(kernel, &busy);
    }

    fn check_totals(&self, kernel: &Kernel, busy: &BTreeSet<AgentKey>) {
        for (level, profile) in self.config.levels.iter().filter(|_| !self.totals_changed) {
            for (knob, total) in profile.total.iter() {
                let members = busy.iter().filter(|key| self.known[key].level == *level);
                let amounts = members.map(|key| {
                    let setting = kernel.dirs.get(key).and_then(|dir| dir.limits.get(knob));
                    setting.and_then(|it| it.amount()).expect("in a level with a total everyone has a limit")
                });
                assert!(amounts.sum::<u128>() <= total.amount().unwrap(), "the total of {knob} at {level} holds");
            }
        }
    }

    /// Nobody is let in while somebody more urgent waits for the same place.
    fn check_queue(&mut self, machine: &Machine, before: &BTreeSet<AgentKey>) {
        if before.is_empty() && self.queued.is_empty() {
            return;
        }
        self.queued.retain(|key| machine.key_of_state(*key) == Some(State::Queued));
        let rank = |key: &AgentKey| (std::cmp::Reverse(self.known[key].priority), *key);
        for entered in before.iter().filter(|key| !self.queued.contains(key)) {
            let is_in = machine.key_of_state(*entered).is_some_and(|state| !state.has_ended());
            for waiting in self.queued.iter().filter(|_| is_in && !self.down.contains(entered)) {
                let is_alike = self.known[entered].parent == self.known[waiting].parent
                    && machine.limits_of(*entered) == machine.limits_of(*waiting)
                    && !self.down.contains(waiting);
                assert!(!is_alike || rank(entered) < rank(waiting), "{entered} is let in before {waiting}");
            }
        }
    }

    /// Time passes; the clock of a back-off stands still while its agent is paused.
    pub fn passed(&mut self, machine: &Machine, time: Duration) {
        for (key, left) in &mut self.backoffs {
            if machine.key_of_paused(*key) == Some(Paused::No) {
                *left = left.saturating_sub(time);
            }
        }
    }

    /// What holds when everything has been carried out, told and waited for.
    pub fn at_rest(&mut self, machine: &Machine, kernel: &Kernel) {
        for (to, asked) in self.requests.iter().filter(|(to, asked)| !asked.is_answered && !self.is_gone(to)) {
            let Request::Wait(ids) = &asked.request else { panic!("{to:?} is never answered: {:?}", asked.request) };
            let is_live = |id: &AgentId| machine.key_of(id).is_some_and(|key| !state(machine, key).has_ended());
            assert!(ids.iter().any(is_live), "{to:?}: all have ended, and it waits: {ids:?}");
        }
        for key in self.names.values().filter(|key| !self.forgotten.contains(key)) {
            let status = machine.status(*key, Monotonic(0));
            let is_paused = status.paused != Paused::No || machine.is_held(*key);
            match status.state {
                State::Stopping => panic!("{key} stops for ever"),
                State::Backoff | State::Starting => assert!(is_paused, "{key} is {} for ever", status.state),
                State::Queued => self.assert_no_room(machine, *key),
                _ => {}
            }
            if status.state.has_ended() {
                assert!(!self.config.auto_cleanup, "{key} has ended, and is retained for ever");
                assert!(!kernel.dirs.contains_key(key), "{key} has ended, and its cgroup is there");
            }
        }
        for (key, dir) in &kernel.dirs {
            assert_eq!(machine.limits_of(*key), Some(&dir.limits), "{key}: its limits are the kernel's");
            if let Some(limits) = &dir.nursery {
                let level = self.known[key].level.below();
                assert_eq!(
                    machine.config().level(level).siblings,
                    *limits,
                    "{key}: the limits of its children together"
                );
            }
        }
        assert_eq!(machine.config().limits, kernel.herd, "the herd's limits are the kernel's");
        for (key, run) in &self.started {
            let is_over = kernel.in_run(*key, *run).next().is_none() && kernel.deaths.contains_key(&(*key, *run));
            // A completion is told when the agents below have ended, too.
            let waits = machine.key_of_state(*key) == Some(State::Running) && machine.run_of(*key) == Some(*run);
            assert!(
                !is_over || waits || self.told.contains(&(*key, *run)),
                "{key}: the end of run {run} was never told"
            );
        }
    }

    fn is_gone(&self, to: &ReplyTo) -> bool {
        self.departed.contains(&to.client)
    }

    fn assert_no_room(&self, machine: &Machine, key: AgentKey) {
        let known = &self.known[&key];
        let counts = machine.counts();
        let bounds = &self.config.bounds;
        let at_level = counts.levels.get(&known.level).copied().unwrap_or(0);
        let siblings = known.parent.map_or(0, |parent| {
            machine
                .children_of(parent)
                .into_iter()
                .filter(|it| {
                    let state = state(machine, *it);
                    !state.has_ended() && state != State::Queued
                })
                .count()
        });
        let is_full = at_level >= bounds.max_agents_per_level.into()
            || counts.levels.values().sum::<u64>() >= bounds.max_agents.into()
            || siblings >= bounds.max_children as usize
            || known.parent.is_some_and(|parent| state(machine, parent) == State::Queued)
            || !machine.config().level(known.level).total.is_empty();
        assert!(is_full, "{key} is queued, and there is room");
    }

    /// What holds when the herd has ended.
    pub fn at_the_end(&self, kernel: &Kernel) {
        assert!(self.has_finished, "a shutdown ends");
        assert!(kernel.dirs.is_empty(), "no cgroup is left: {:?}", kernel.dirs.keys());
        assert!(kernel.processes.is_empty() && kernel.hanging.is_empty(), "no process is left");
        for (to, asked) in self.requests.iter().filter(|(to, asked)| !asked.is_answered && !self.is_gone(to)) {
            panic!("{to:?} was never answered: {:?}", asked.request);
        }
        for run in &self.started {
            assert!(self.told.contains(run), "the end of {run:?} was never told");
        }
    }

    /// Says whether a request is answered.
    pub fn is_answered(&self, to: ReplyTo) -> bool {
        self.requests[&to].is_answered
    }
}

fn state(machine: &Machine, key: AgentKey) -> State {
    machine.status(key, Monotonic(0)).state
}

/// Lists these agents and all below them.
fn subtrees(machine: &Machine, tops: &[AgentKey]) -> BTreeSet<AgentKey> {
    let mut found = BTreeSet::new();
    let mut left = tops.to_vec();
    while let Some(key) = left.pop() {
        if found.insert(key) {
            left.extend(machine.children_of(key));
        }
    }
    found
}

/// Lists the agents that an order is about.
fn subjects(effect: &Effect) -> Vec<AgentKey> {
    match effect {
        Effect::Spawn(order) => vec![order.agent],
        Effect::Signal { agent, .. }
        | Effect::KillRun { agent, .. }
        | Effect::Freeze { agent, .. }
        | Effect::RemoveRun { agent, .. }
        | Effect::Remove(agent)
        | Effect::Forget(agent) => vec![*agent],
        Effect::Kill { agent, runs } => std::iter::once(*agent).chain(runs.iter().map(|(key, _)| *key)).collect(),
        Effect::FindLaggards { agents, .. } => agents.clone(),
        Effect::SetLimits { settings, .. } => settings
            .iter()
            .filter_map(|(place, _)| match place {
                LimitPlace::Herd => None,
                LimitPlace::Agent(key) | LimitPlace::Children(key) => Some(*key),
            })
            .collect(),
        Effect::Reply(..) | Effect::Publish(_) | Effect::Finish => Vec::new(),
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

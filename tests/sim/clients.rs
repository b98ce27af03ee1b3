//! Clients that ask for everything that can be asked for, sense or nonsense.

use std::time::Duration;

use treeherd::machine::AgentKey;
use treeherd::model::id::{AgentId, Level};
use treeherd::model::limits::Limits;
use treeherd::model::note::Note;
use treeherd::model::pressure::PressureRule;
use treeherd::model::ready::Ready;
use treeherd::model::request::{LimitScope, Request, Target};
use treeherd::model::rule::Action;
use treeherd::model::spec::{Admission, AgentSpec, Children, OnMainExit, OnOom, Restart, RestartPolicy, Strategy};
use treeherd::model::stall::StallRule;

use super::chance::Chance;

const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

pub fn id(name: &str) -> AgentId {
    name.parse().unwrap()
}

/// Which kinds of requests a world sees, by weight.
#[derive(Clone, Debug)]
pub struct Habits {
    pub names: usize,
    pub spawn: u32,
    pub stop: u32,
    pub pause: u32,
    pub restart: u32,
    pub limit: u32,
    pub other: u32,
    pub limits_on_spawn: bool,
    /// How many agents have something to say about their children, in percent.
    pub supervision: u32,
    /// How many agents, in percent, have something to tell of themselves.
    pub health: u32,
    /// How many agents, in percent, start after others.
    pub after: u32,
}

impl Habits {
    pub fn new(chance: &mut Chance) -> Self {
        Self {
            names: 2 + chance.pick(NAMES.len() - 1),
            spawn: 10,
            stop: chance.of(&[1, 3, 6]),
            pause: chance.of(&[0, 2, 5]),
            restart: chance.of(&[0, 2, 4]),
            limit: chance.of(&[0, 1, 4]),
            other: chance.of(&[0, 1, 3]),
            limits_on_spawn: chance.comes(50),
            supervision: chance.of(&[0, 30, 80]),
            health: chance.of(&[0, 40, 100]),
            after: chance.of(&[0, 30, 70]),
        }
    }

    /// Makes up a request; mostly about agents that there are.
    pub fn request(&self, chance: &mut Chance, known: &[AgentId]) -> Request {
        let weights = [self.spawn, self.stop, self.pause, self.restart, self.limit, self.other];
        let mut at = chance.pick(weights.iter().sum::<u32>() as usize);
        let mut kind = 0;
        while at >= weights[kind] as usize {
            at -= weights[kind] as usize;
            kind += 1;
        }
        match kind {
            0 => Request::Spawn(Box::new(self.spec(chance, known))),
            1 => Request::Terminate(self.target(chance, known), some_grace(chance)),
            2 if chance.comes(50) => Request::Pause(self.target(chance, known)),
            2 => Request::Resume(self.target(chance, known)),
            3 => Request::Restart(self.name(chance, known)),
            4 => Request::Limit(self.scope(chance, known), some_limits(chance)),
            _ if chance.comes(50) => Request::Wait((0..1 + chance.pick(3)).map(|_| self.name(chance, known)).collect()),
            _ => Request::Cleanup(self.target(chance, known)),
        }
    }

    /// Makes up a parent with something to say about its children, and some of these: what chance alone seldom brings together.
    pub fn family(&self, chance: &mut Chance) -> Vec<AgentSpec> {
        if self.supervision <= 50 {
            return Vec::new();
        }
        let mut all: Vec<AgentSpec> = NAMES[..4].iter().map(|_| self.spec(chance, &[])).collect();
        for (index, spec) in all.iter_mut().enumerate() {
            spec.id = id(NAMES[index]);
            spec.parent = (index > 0).then(|| id(NAMES[chance.pick(index).min(1)]));
            spec.significant &= index > 0;
            (spec.level, spec.spawn_budget) = (None, None);
            spec.after.clear();
            if index > 0 && chance.comes(self.after) {
                spec.after.insert(id(NAMES[chance.pick(index)]));
            }
            spec.restart.policy = chance.of(&[RestartPolicy::OnFailure, RestartPolicy::Always, RestartPolicy::Never]);
        }
        all
    }

    fn name(&self, chance: &mut Chance, known: &[AgentId]) -> AgentId {
        if known.is_empty() || chance.comes(20) { self.any_name(chance) } else { chance.of(known) }
    }

    fn any_name(&self, chance: &mut Chance) -> AgentId {
        id(NAMES[chance.pick(self.names)])
    }

    fn scope(&self, chance: &mut Chance, known: &[AgentId]) -> LimitScope {
        let level = some_level(chance);
        match chance.pick(6) {
            0 | 1 => LimitScope::Agent(self.name(chance, known)),
            2 => LimitScope::Each(level),
            3 => LimitScope::Siblings(level),
            4 => LimitScope::Total(level),
            _ => LimitScope::Herd,
        }
    }

    fn target(&self, chance: &mut Chance, known: &[AgentId]) -> Target {
        match chance.pick(10) {
            0..=5 => Target::Ids((0..1 + chance.pick(3)).map(|_| self.name(chance, known)).collect()),
            6 | 7 => Target::Level(some_level(chance)),
            8 => Target::Session(chance.of(&["s1", "s2"]).parse().unwrap()),
            _ => Target::All,
        }
    }

    fn spec(&self, chance: &mut Chance, known: &[AgentId]) -> AgentSpec {
        let name = self.any_name(chance);
        let mut spec = if chance.comes(20) { AgentSpec::group(name) } else { AgentSpec::new(name, ["work"]) };
        if chance.comes(if self.supervision > 50 { 90 } else { 70 }) {
            spec.parent = Some(self.name(chance, known));
        }
        if chance.comes(5) {
            spec.level = Some(some_level(chance));
        }
        if chance.comes(30) {
            spec.session = Some(chance.of(&["s1", "s2"]).parse().unwrap());
        }
        spec.priority = chance.of(&[1, 5, 5, 9]).try_into().unwrap();
        spec.user = chance.comes(20).then(|| chance.of(&["root", "nobody"]).to_owned());
        spec.nice = chance.comes(20).then(|| chance.of(&[-1, 0, 1]));
        spec.admission = chance.of(&[Admission::Refuse, Admission::Queue]);
        spec.on_main_exit = chance.of(&[OnMainExit::Terminate, OnMainExit::Wait]);
        spec.on_oom = chance.of(&[OnOom::Continue, OnOom::Kill, OnOom::Fail]);
        spec.grace = some_grace(chance).unwrap_or(Duration::from_secs(10));
        spec.restart = Restart {
            policy: chance.of(&[RestartPolicy::Never, RestartPolicy::OnFailure, RestartPolicy::Always]),
            delay: chance.of(&[Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1)]),
            intensity: chance.of(&[0, 1, 3, 10]),
            // Whatever fails again and again is given up within the time that a world is drained for.
            period: Duration::from_secs(24 * 3600),
            jitter: chance.of(&[0.0, 0.1, 1.0]),
            // Whoever fails less often than its intensity allows goes on for ever: none shall in a world that comes to rest.
            max_delay: Duration::from_secs(20),
            ..Restart::default()
        };
        if !spec.is_group() && chance.comes(20) {
            spec.run_timeout = chance.of(&[Some(Duration::from_millis(1)), Some(Duration::from_secs(2))]);
        }
        if !spec.is_group() && chance.comes(self.health / 2) {
            let after = chance.of(&[Duration::from_secs(1), Duration::from_secs(4)]);
            spec.stall = Some(StallRule { after, action: chance.of(&[Action::Notice, Action::Fail]) });
        }
        if !spec.is_group() && chance.comes(25) {
            spec.rules = ["fail:fatal", "strange"].iter().map(|rule| rule.parse().unwrap()).collect();
        }
        if chance.comes(self.supervision) {
            spec.children = Children {
                strategy: chance.of(&[Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne]),
                intensity: chance.of(&[None, Some(0), Some(1), Some(2)]),
                period: chance.of(&[Duration::from_secs(1), Duration::from_secs(600)]),
            };
            spec.significant = chance.comes(20);
            spec.spawn_budget = chance.of(&[None, None, None, Some(0), Some(2), Some(9)]);
        }
        if chance.comes(20) {
            spec.pressure = some_rules(chance);
        }
        if !spec.is_group() && chance.comes(self.health) {
            let times = [Duration::from_millis(20), Duration::from_millis(500), Duration::from_secs(5)];
            spec.ready = chance.of(&[None, Some(Ready::Notify), Some(Ready::Notify), Some(Ready::Fd(3))]);
            // Not its default: whoever fails once a minute may go on for ever.
            spec.ready_timeout = Some(chance.of(&times));
            spec.watchdog = Some(chance.of(&times)).filter(|_| chance.comes(50));
        }
        if chance.comes(self.after) {
            spec.after = (0..1 + chance.pick(2)).map(|_| self.name(chance, known)).collect();
            spec.after.remove(&spec.id);
        }
        if self.limits_on_spawn && chance.comes(70) {
            spec.limits = some_limits(chance);
        }
        spec
    }
}

pub fn some_rules(chance: &mut Chance) -> Vec<PressureRule> {
    let rules = [
        "memory 10%",
        "memory 10% 2s tighten,pause",
        "cpu full 50% 10s warn",
        "io 1% 500ms terminate",
        "memory 10% 500ms pause,terminate",
    ];
    (0..1 + chance.pick(2)).map(|_| chance.of(&rules).parse().unwrap()).collect()
}

fn some_level(chance: &mut Chance) -> Level {
    Level(chance.of(&[0, 0, 1, 1, 2, 3, 9]))
}

fn some_grace(chance: &mut Chance) -> Option<Duration> {
    chance.of(&[None, Some(Duration::ZERO), Some(Duration::from_millis(200)), Some(Duration::from_secs(3))])
}

pub fn some_limits(chance: &mut Chance) -> Limits {
    let mut limits = Limits::default();
    for _ in 0..1 + chance.pick(2) {
        let text =
            ["memory_max=64MiB", "memory_max=512MiB", "memory_max=4GiB", "pids_max=10", "pids_max=100", "cpu_max=50%"];
        limits.set_text(chance.of(&text)).unwrap();
    }
    limits
}

/// Makes up what a process tells of itself.
pub fn some_notes(chance: &mut Chance) -> Vec<Note> {
    let time =
        chance.of(&[Duration::ZERO, Duration::from_millis(1), Duration::from_millis(300), Duration::from_secs(20)]);
    let seldom = chance.of(&[
        Note::Stopping,
        Note::Trigger,
        Note::Status("fine".to_owned()),
        Note::Period(time),
        Note::Extend(time),
        Note::Extend(time),
    ]);
    (0..1 + chance.pick(2)).map(|_| chance.of(&[Note::Ready, Note::Ready, Note::Beat, seldom.clone()])).collect()
}

/// Picks who asks: mostly somebody outside the herd.
pub fn some_caller(chance: &mut Chance, agents: &[AgentKey]) -> Option<AgentKey> {
    if !agents.is_empty() && chance.comes(8) { Some(chance.of(agents)) } else { None }
}

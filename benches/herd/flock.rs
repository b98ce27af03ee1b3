//! The machine alone: a herd without a kernel below it, in which one agent after the other fails and is started again.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use treeherd::machine::{AgentKey, Caller, Effect, Input, Machine, Now, ReplyTo};
use treeherd::model::config::HerdConfig;
use treeherd::model::recovery::{Rate, RestartPolicy};
use treeherd::model::request::Request;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::{Exit, Rusage};

pub struct Flock {
    machine: Machine,
    now: Now,
    keys: Vec<AgentKey>,
    next: usize,
    pub steps: u64,
}

impl Flock {
    /// Makes a herd of so many agents that run.
    pub fn new(agents: u32) -> Self {
        let mut config = HerdConfig::default();
        (config.bounds.max_agents, config.bounds.max_agents_per_level) = (agents, agents);
        config.restart_burst = 100_000;
        config.restart_rate = Rate::per_second(NonZeroU32::new(1_000_000).unwrap());
        let machine = Machine::new(config, "/flock".to_owned(), BTreeMap::new(), 1);
        let mut flock = Self { machine, now: Now::default(), keys: Vec::new(), next: 0, steps: 0 };
        for number in 0..agents {
            let id = format!("a{number}");
            let mut spec = AgentSpec::new(id.parse().unwrap(), ["true"]);
            spec.restart.policy = RestartPolicy::Always;
            (spec.restart.delay, spec.restart.period) = (Duration::ZERO, Duration::from_secs(1));
            spec.restart.intensity = u32::MAX;
            let caller = Caller { name: "uid 0".into(), agent: None, user: None };
            let to = ReplyTo { client: 1, call: number.into() };
            flock.step(Input::Asked(to, caller, Request::Spawn(Box::new(spec))));
            let key = flock.machine.key_of(&id.parse().unwrap()).unwrap();
            flock.step(Input::Spawned { agent: key, pid: Some(2) });
            flock.keys.push(key);
        }
        flock.steps = 0;
        flock
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        self.steps += 1;
        self.now.mono.0 += 1_000_000;
        let mut effects = Vec::new();
        self.machine.step(self.now, input, &mut effects);
        effects
    }

    /// The next agent fails, and is started again.
    pub fn restart(&mut self) {
        let agent = self.keys[self.next % self.keys.len()];
        self.next += 1;
        let run = self.machine.run_of(agent).unwrap();
        let (exit, rusage) = (Exit::Status(1), Rusage::default());
        let effects = self.step(Input::Exited { agent, run, exit, rusage, oom: None, descendants: 0 });
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Spawn(_))), "{effects:?}");
        self.step(Input::Spawned { agent, pid: Some(2) });
    }
}

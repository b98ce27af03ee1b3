//! Tiny worlds, every order: a search takes each choice in turn, runs the world anew with it, and checks as the swarm does.
//!
//! Of the first `DEPTH` choices every branch is taken; after that, a run may leave the first choice (an answer before an order,
//! an order before a notice, all of them before the next deed) so many times as the world says. The drain and the shutdown
//! that follow are searched in the same way.

use std::time::Duration;

use treeherd::model::config::HerdConfig;
use treeherd::model::id::Level;
use treeherd::model::ready::Ready;
use treeherd::model::request::{Request, Target};
use treeherd::model::spec::{AgentSpec, OnMainExit, RestartPolicy, Strategy};
use treeherd::model::status::Exit;

use super::chance::Chance;
use super::clients::id;
use super::kernel::Temper;
use super::world::World;

/// So many of the first choices are all taken.
const DEPTH: usize = 2;

/// Something that the world does once, whenever the search likes.
enum Deed {
    Ask(Request),
    /// The main process of the n-th agent forks, and its child ignores the stop signal.
    Fork(usize),
    /// The main process of the n-th agent ends by itself.
    Exit(usize, i32),
    /// The main process of the n-th agent shows that it is ready.
    Ready(usize),
    /// Time goes on to the next deadline.
    Pass,
    /// The supervisor dies; before there is another one, the main process of the n-th agent ends.
    Crash(Option<usize>),
}

fn spec(name: &str, parent: Option<&str>) -> AgentSpec {
    AgentSpec { parent: parent.map(id), grace: Duration::from_secs(1), ..AgentSpec::new(id(name), ["work"]) }
}

fn spawn(spec: AgentSpec) -> Deed {
    Deed::Ask(Request::Spawn(Box::new(spec)))
}

/// Runs one world through one list of choices; returns the choices that there were.
fn run(deeds: &[Deed], list: Vec<usize>, config: &HerdConfig) -> Vec<(usize, usize)> {
    let mut world = World::new(config.clone(), Chance::Script { list, taken: Vec::new() });
    let mut left: std::collections::VecDeque<&Deed> = deeds.iter().collect();
    loop {
        let moves = world.moves();
        let can_act = usize::from(!left.is_empty());
        if moves.len() + can_act == 0 {
            break;
        }
        let choice = world.chance.pick(moves.len() + can_act);
        match moves.get(choice) {
            Some(chosen) => {
                world.make(*chosen);
            }
            None => act(&mut world, left.pop_front().unwrap()),
        }
    }
    world.drain();
    world.shut_down(Some(Duration::from_millis(100)));
    let Chance::Script { taken, .. } = world.chance else { unreachable!("it was a script") };
    taken
}

fn act(world: &mut World, deed: &Deed) {
    let main_of = |world: &World, n: usize| {
        let key = world.observer.keys().get(n).copied()?;
        world.kernel.processes.iter().find(|(_, it)| it.is_main && it.agent == key && !it.is_stopped).map(|it| *it.0)
    };
    match deed {
        Deed::Ask(request) => {
            world.ask(1, None, request.clone());
        }
        Deed::Fork(n) => {
            if let Some(pid) = main_of(world, *n) {
                world.kernel.fork(pid, Temper::Stubborn);
            }
        }
        Deed::Exit(n, status) => {
            if let Some(pid) = main_of(world, *n) {
                world.kernel.exit(pid, Exit::Status(*status), false);
            }
        }
        Deed::Ready(n) => {
            if let Some(pid) = main_of(world, *n) {
                world.show_ready(pid);
            }
        }
        Deed::Pass => {
            world.pass_to_deadline();
        }
        Deed::Crash(ends) => {
            world.crash();
            if let Some(pid) = ends.and_then(|n| main_of(world, n)) {
                world.kernel.exit(pid, Exit::Status(0), false);
            }
            world.kernel.update();
            world.revive();
        }
    }
    world.kernel.update();
}

/// Finds the next list of choices after one that was run: the last choice that can be raised within the bounds is.
fn next(taken: &[(usize, usize)], deviations: usize) -> Option<Vec<usize>> {
    let mut list = taken.to_vec();
    while let Some((choice, n)) = list.pop() {
        let late = list.iter().skip(DEPTH).filter(|(choice, _)| *choice > 0).count();
        let is_free = list.len() < DEPTH || late < deviations;
        if choice + 1 < n && is_free {
            let mut next: Vec<usize> = list.iter().map(|(choice, _)| *choice).collect();
            next.push(choice + 1);
            return Some(next);
        }
    }
    None
}

fn explore(name: &str, deeds: &[Deed], config: &HerdConfig, deviations: usize) {
    let mut list = Vec::new();
    let mut runs: u64 = 0;
    loop {
        let shown = list.clone();
        let result = std::panic::catch_unwind(|| run(deeds, list.clone(), config));
        let Ok(taken) = result else { panic!("{name}: repeat with the choices {shown:?}") };
        runs += 1;
        match next(&taken, deviations) {
            Some(following) => list = following,
            None => break,
        }
    }
    eprintln!("{name}: {runs} runs");
}

fn terminate(names: &[&str], grace: Duration) -> Deed {
    Deed::Ask(Request::Terminate(Target::Ids(names.iter().map(|name| id(name)).collect()), Some(grace)))
}

#[test]
fn every_order_of_a_terminate_and_a_restart() {
    let mut agent = spec("a", None);
    agent.restart.policy = RestartPolicy::Always;
    agent.restart.delay = Duration::ZERO;
    let deeds = [
        spawn(agent),
        Deed::Fork(0),
        Deed::Exit(0, 1),
        Deed::Pass,
        terminate(&["a"], Duration::from_secs(1)),
        Deed::Pass,
    ];
    explore("terminate and restart", &deeds, &HerdConfig::default(), 3);
}

#[test]
fn every_order_of_two_deaths_of_the_supervisor() {
    let mut agent = spec("a", None);
    agent.restart.policy = RestartPolicy::Always;
    agent.restart.delay = Duration::ZERO;
    let deeds = [
        spawn(agent),
        spawn(spec("b", Some("a"))),
        Deed::Crash(Some(0)),
        terminate(&["b"], Duration::from_secs(1)),
        Deed::Crash(None),
        Deed::Pass,
    ];
    explore("two deaths of the supervisor", &deeds, &HerdConfig::default(), 1);
}

#[test]
fn every_order_of_the_end_of_a_level() {
    let level = Deed::Ask(Request::Terminate(Target::Level(Level(0)), Some(Duration::ZERO)));
    let deeds = [spawn(spec("a", None)), spawn(spec("b", None)), level, Deed::Exit(1, 0)];
    explore("level", &deeds, &HerdConfig::default(), 2);
}

#[test]
fn every_order_of_pauses_and_joint_stops() {
    let pause = Deed::Ask(Request::Pause(Target::Ids(vec![id("a")])));
    let resume = Deed::Ask(Request::Resume(Target::Ids(vec![id("a")])));
    let deeds = [
        spawn(spec("a", None)),
        pause,
        spawn(spec("b", Some("a"))),
        resume,
        terminate(&["b"], Duration::from_secs(1)),
        terminate(&["a"], Duration::ZERO),
    ];
    explore("pause and joint stops", &deeds, &HerdConfig::default(), 2);
}

#[test]
fn every_order_of_a_parents_end_and_a_queue() {
    let mut config = HerdConfig::default();
    config.bounds.max_agents_per_level = 1;
    let mut waits = spec("b", None);
    waits.admission = treeherd::model::spec::Admission::Queue;
    let parent = AgentSpec { on_main_exit: OnMainExit::Terminate, ..spec("a", None) };
    let deeds = [
        spawn(parent),
        spawn(spec("c", Some("a"))),
        spawn(waits),
        Deed::Exit(0, 0),
        Deed::Ask(Request::Restart(id("a"))),
        terminate(&["a", "b"], Duration::ZERO),
    ];
    explore("parent's end and queue", &deeds, &config, 2);
}

fn comes_back(name: &str, parent: Option<&str>) -> AgentSpec {
    let mut agent = spec(name, parent);
    (agent.restart.policy, agent.restart.delay) = (RestartPolicy::OnFailure, Duration::ZERO);
    agent
}

#[test]
fn every_order_of_a_strategy_and_a_stop() {
    let mut parent = AgentSpec { command: Vec::new(), ..spec("p", None) };
    parent.children.strategy = Strategy::OneForAll;
    let deeds = [
        spawn(parent),
        spawn(comes_back("a", Some("p"))),
        spawn(comes_back("b", Some("p"))),
        Deed::Exit(0, 1),
        Deed::Exit(1, 1),
        terminate(&["b"], Duration::from_secs(1)),
        Deed::Pass,
    ];
    explore("strategy and stop", &deeds, &HerdConfig::default(), 1);
}

#[test]
fn every_order_of_an_escalation() {
    let mut parent = comes_back("p", None);
    parent.children.intensity = Some(0);
    let deeds = [
        spawn(parent),
        spawn(comes_back("a", Some("p"))),
        spawn(spec("b", Some("a"))),
        Deed::Exit(1, 1),
        Deed::Exit(0, 1),
        Deed::Pass,
    ];
    explore("escalation", &deeds, &HerdConfig::default(), 1);
}

#[test]
fn every_order_of_a_significant_end_and_a_turn() {
    let config = HerdConfig { restart_burst: 1, restart_rate: "1/s".parse().unwrap(), ..HerdConfig::default() };
    let significant = AgentSpec { significant: true, ..spec("a", Some("p")) };
    let deeds = [
        spawn(comes_back("p", None)),
        spawn(significant),
        Deed::Exit(1, 1),
        Deed::Pass,
        Deed::Ask(Request::Restart(id("a"))),
        Deed::Exit(1, 0),
    ];
    explore("significant end and turn", &deeds, &config, 2);
}

#[test]
fn every_order_of_a_start_and_the_ends_of_what_it_waits_for() {
    let first = AgentSpec { ready: Some(Ready::Fd(3)), ..comes_back("a", None) };
    let second = AgentSpec { after: [id("a")].into(), ..comes_back("b", None) };
    let deeds = [
        spawn(first),
        spawn(second),
        Deed::Exit(0, 1),
        Deed::Ready(0),
        Deed::Exit(1, 1),
        terminate(&["a"], Duration::from_secs(1)),
        Deed::Crash(None),
    ];
    explore("start and what it waits for", &deeds, &HerdConfig::default(), 2);
}

#[test]
fn every_order_of_a_queue_and_a_start_after_another_one() {
    let mut config = HerdConfig::default();
    config.bounds.max_agents_per_level = 1;
    let queued = |name: &str, after: &[&str], priority: u8| AgentSpec {
        after: after.iter().map(|name| id(name)).collect(),
        priority: priority.try_into().unwrap(),
        admission: treeherd::model::spec::Admission::Queue,
        ..spec(name, None)
    };
    let deeds = [
        spawn(queued("a", &[], 5)),
        spawn(queued("b", &[], 1)),
        spawn(queued("c", &["b"], 9)),
        Deed::Exit(0, 0),
        Deed::Exit(1, 0),
        terminate(&["b"], Duration::ZERO),
    ];
    explore("queue and start after another one", &deeds, &config, 2);
}

//! Many worlds, each from a seed: which faults are on, how large the tree is and what is asked differ from seed to seed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use treeherd::machine::{Input, PressKey};
use treeherd::model::config::{Bounds, HerdConfig};
use treeherd::model::id::Level;
use treeherd::model::request::Request;
use treeherd::model::rule::{Action, Rule};
use treeherd::model::status::Exit;

use super::chance::Chance;
use super::clients::{Habits, some_caller, some_limits, some_notes, some_rules};
use super::crash::Doom;
use super::kernel::Notice;
use super::world::{Faults, Move, World};

/// After so many failing seeds, no further are tried.
const FAILURES_MOST: usize = 30;

/// Prints the one line that repeats a seed, if it fails.
struct Repeat(u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nrepeat with: TREEHERD_SEED={} cargo test --test simulation swarm -- --nocapture\n", self.0);
        }
    }
}

/// How restless a world is, in percent of its turns.
struct Rates {
    requests: u32,
    life: u32,
    time: u32,
    departures: u32,
    pressure: u32,
    /// In a thousand.
    crashes: u32,
}

fn config(chance: &mut Chance) -> HerdConfig {
    let mut config = HerdConfig {
        bounds: Bounds {
            max_levels: chance.of(&[2, 3, 10]),
            max_agents_per_level: chance.of(&[1, 2, 4, 20]),
            max_children: chance.of(&[1, 3, 100]),
            max_agents: chance.of(&[2, 4, 100]),
        },
        restart_rate: chance.of(&["1/s", "20/s"]).parse().unwrap(),
        restart_burst: chance.of(&[1, 2, 100]),
        kill_timeout: Duration::from_secs(chance.of(&[1, 3, 10])),
        auto_cleanup: chance.comes(80),
        cleanup_retention: chance.of(&[Duration::ZERO, Duration::from_secs(1), Duration::from_secs(60)]),
        ..HerdConfig::default()
    };
    if chance.comes(30) {
        config.pressure = some_rules(chance);
    }
    if chance.comes(10) {
        config.levels.entry(Level(1)).or_default().pressure = some_rules(chance);
    }
    if chance.comes(30) {
        config.limits.set_text("memory_max=2GiB").unwrap();
    }
    if chance.comes(30) {
        config.levels.entry(Level(1)).or_default().siblings.set_text("memory_max=1GiB").unwrap();
    }
    if chance.comes(30) {
        config.levels.entry(Level(1)).or_default().each = some_limits(chance);
    }
    if chance.comes(20) {
        config.levels.entry(Level(0)).or_default().total.set_text("memory_max=1GiB").unwrap();
    }
    config
}

fn faults(chance: &mut Chance) -> Faults {
    let mut some = |percents: &[u32]| chance.of(percents);
    Faults {
        spawn_fails: some(&[0, 0, 10, 40]),
        spawn_hangs: some(&[0, 0, 5, 20]),
        limits_refused: some(&[0, 30]),
        doubles: some(&[0, 0, 10, 50]),
        stubborn: some(&[0, 20, 60]),
        handlers: some(&[0, 30]),
        jams: some(&[0, 0, 10]),
        hollows: some(&[0, 0, 20]),
        strays: some(&[0, 0, 20]),
        departs: some(&[0, 0, 10]),
        hours: some(&[0, 0, 1]),
    }
}

/// Lives through one seed; returns the steps that it took and what was seen.
fn live(seed: u64, tells: bool) -> (u64, BTreeMap<String, u64>) {
    let _repeat = Repeat(seed);
    let mut chance = Chance::Seed(fastrand::Rng::with_seed(seed));
    let config = config(&mut chance);
    let faults = faults(&mut chance);
    let habits = Habits::new(&mut chance);
    let rates = Rates {
        requests: chance.of(&[3, 8, 20]),
        life: chance.of(&[2, 8, 20]),
        time: chance.of(&[2, 8, 20]),
        departures: chance.of(&[0, 1]),
        pressure: chance.of(&[0, 0, 2, 10]),
        crashes: chance.of(&[0, 0, 5, 30]),
    };
    let turns = chance.of(&[60, 150, 400]);
    let freezes_slowly = chance.comes(40);
    let mut world = World::new(config, chance);
    (world.faults, world.kernel.freezes_slowly, world.tells) = (faults, freezes_slowly, tells);
    for spec in habits.family(&mut world.chance) {
        world.ask(0, None, Request::Spawn(Box::new(spec)));
        world.flush();
    }
    for _ in 0..turns {
        turn(&mut world, &habits, &rates);
    }
    world.drain();
    let grace = world.chance.of(&[None, Some(Duration::ZERO), Some(Duration::from_millis(100))]);
    // The last words may overlap with much that is going on.
    world.faults = faults;
    for _ in 0..turns / 4 {
        turn(&mut world, &habits, &rates);
    }
    world.faults = Faults::default();
    world.shut_down(grace);
    (world.steps, world.observer.seen)
}

fn turn(world: &mut World, habits: &Habits, rates: &Rates) {
    if world.chance.comes(rates.requests) {
        let request = habits.request(&mut world.chance, &world.observer.live_names(&world.machine));
        let caller = some_caller(&mut world.chance, &world.observer.keys());
        let client = world.chance.pick(4) as u64;
        world.ask(client, caller, request);
    } else if world.chance.pick(1000) < rates.crashes as usize {
        crash(world, habits);
    } else if world.chance.comes(rates.departures) {
        let client = world.chance.pick(4) as u64;
        world.step(Input::Departed(client));
    } else if world.chance.comes(rates.pressure) {
        press(world);
    } else if world.chance.comes(rates.life) {
        live_on(world);
    } else if world.chance.comes(rates.time) {
        pass_some(world);
    } else {
        let mut moves = world.moves();
        if world.chance.comes(80) {
            moves.retain(|it| !matches!(it, Move::Unjam(_)));
        }
        if moves.is_empty() {
            pass_some(world);
        } else {
            let chosen = world.chance.pick(moves.len());
            world.make(moves[chosen]);
        }
    }
}

/// The supervisor dies, between steps or in the middle of one; after a while, in which life goes on, there is another one.
fn crash(world: &mut World, habits: &Habits) {
    world.disk.doom = world.chance.of(&[None, Some(Doom::Unwritten), Some(Doom::Untold)]);
    if world.disk.doom.is_some() {
        let mut moves = world.moves();
        moves.retain(|it| matches!(it, Move::Answer(_) | Move::Notice(_)));
        if world.chance.comes(50) && moves.iter().any(is_end) {
            moves.retain(is_end);
        }
        if moves.is_empty() || world.chance.comes(30) {
            let request = habits.request(&mut world.chance, &world.observer.live_names(&world.machine));
            world.ask(9, None, request);
        } else {
            let chosen = world.chance.pick(moves.len());
            world.make(moves[chosen]);
        }
    }
    world.crash();
    for _ in 0..world.chance.pick(8) {
        live_on(world);
        let time = world.chance.of(&[0, 100, 3_000, 100_000]);
        world.pass(Duration::from_millis(time));
    }
    world.revive();
}

/// The kernel says that a rule's share of a window was exceeded, of somebody who has rules or has not.
fn press(world: &mut World) {
    let mut places: Vec<_> = world.observer.keys().into_iter().map(Some).collect();
    places.push(None);
    let key = PressKey { place: world.chance.of(&places), rule: world.chance.pick(2) };
    world.step(Input::Pressed(key));
}

/// Says whether a step with this one may tell the end of a run.
fn is_end(it: &Move) -> bool {
    matches!(it, Move::Notice(Notice::Exit(..) | Notice::Run(..)) | Move::Answer(_))
}

fn pass_some(world: &mut World) {
    if world.chance.comes(10) {
        let wall = world.chance.of(&[0, 1_600_000_000_000_000_000, 1_800_000_000_000_000_000]);
        world.now.wall.0 = wall;
    }
    if world.chance.comes(world.faults.hours) {
        return world.pass(Duration::from_secs(7200));
    }
    if world.chance.comes(30) && world.pass_to_deadline() {
        return;
    }
    let since = world.now.mono;
    let time = world.chance.of(&[1, 20, 150, 700, 2500]);
    world.pass(Duration::from_millis(time));
    if world.chance.comes(5) {
        world.step(Input::StoodStill(since));
    } else if world.chance.comes(50) {
        world.step(Input::Ticked);
    }
}

/// A process does something of its own accord.
fn live_on(world: &mut World) {
    let free: Vec<u64> = world
        .kernel
        .processes
        .iter()
        .filter(|(_, process)| !process.is_stopped && !process.is_jammed)
        .map(|(pid, _)| *pid)
        .collect();
    if free.is_empty() {
        return;
    }
    let pid = world.chance.of(&free);
    let (agent, is_main) = (world.kernel.processes[&pid].agent, world.kernel.processes[&pid].is_main);
    let has_departed = world.kernel.processes[&pid].has_departed;
    let can_tell = world.machine.spec_of(agent).is_some_and(|spec| spec.ready.is_some() || spec.watchdog.is_some());
    if can_tell && world.chance.comes(60) {
        if world.chance.comes(20) {
            world.show_ready(pid);
        } else {
            let notes = some_notes(&mut world.chance);
            world.tell_of(pid, notes);
        }
    } else if world.machine.spec_of(agent).is_some_and(|spec| spec.stall.is_some()) && world.chance.comes(40) {
        let (cpu, bytes) = world.chance.of(&[(1, 0), (0, 1), (50, 7)]);
        world.work(pid, Duration::from_millis(cpu), bytes);
    } else if world.chance.comes(world.faults.jams) {
        world.kernel.processes.get_mut(&pid).unwrap().is_jammed = true;
    } else if world.chance.comes(world.faults.hollows) {
        world.kernel.processes.get_mut(&pid).unwrap().is_hollow = true;
    } else if !is_main && world.chance.comes(world.faults.strays) {
        world.kernel.stray(pid);
    } else if is_main && !has_departed && world.chance.comes(world.faults.departs) {
        world.depart(pid);
    } else if world.chance.comes(20) && !rules_of(world, pid).is_empty() {
        let rules = rules_of(world, pid);
        let rule = world.chance.pick(rules.len());
        world.kernel.say(pid, rule, rules[rule].action == Action::Fail);
        if world.chance.comes(40) {
            world.kernel.exit(pid, Exit::Status(0), false);
        }
    } else if !has_departed && world.chance.comes(50) && world.kernel.processes.len() < 60 {
        let temper = world.some_temper();
        world.kernel.fork(pid, temper);
    } else {
        let is_oom = world.chance.comes(10);
        let exit = if is_oom { Exit::Signal { number: 9, core: false } } else { world.some_exit() };
        if is_oom && !is_main {
            world.lose_a_worker(pid);
        } else {
            world.kernel.exit(pid, exit, is_oom);
        }
    }
    world.kernel.update();
}

/// Returns the rules that look at what a process says: none of one that has left its run.
fn rules_of(world: &World, pid: u64) -> Vec<Rule> {
    let process = &world.kernel.processes[&pid];
    let spec = world.machine.spec_of(process.agent).filter(|_| !process.has_strayed);
    spec.map(|spec| spec.rules.clone()).unwrap_or_default()
}

#[test]
fn swarm() {
    if let Some(seed) = std::env::var("TREEHERD_SEED").ok().and_then(|seed| seed.parse().ok()) {
        live(seed, true);
        return;
    }
    let seeds: u64 = std::env::var("TREEHERD_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(4000);
    let began = Instant::now();
    let mut steps = 0;
    let mut failed = Vec::new();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 1..=seeds {
        let Ok((more, what)) = std::panic::catch_unwind(|| live(seed, false)) else {
            failed.push(seed);
            if failed.len() >= FAILURES_MOST {
                break;
            }
            continue;
        };
        steps += more;
        for (name, count) in what {
            *seen.entry(name).or_default() += count;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    eprintln!(
        "{seeds} seeds, {steps} steps, {:.0} seeds/s, {:.0} steps/s",
        seeds as f64 / seconds,
        steps as f64 / seconds
    );
    eprintln!("{seen:?}");
    assert!(failed.is_empty(), "these seeds failed: {failed:?}");
    let expected = [
        "killed together",
        "exact receipts",
        "process:paused",
        "pressure:pauses",
        "pressure:resumes",
        "pressure:terminates",
        "pressure:gone",
        "memory taken back",
        "process:gave-up",
        "process:queued",
        "timeout",
        "lost",
        "ends told by the next one",
        "child",
        "process:escalated",
        "herd:storm",
        "herd:calm",
        "strategy one-for-all",
        "strategy rest-for-one",
        "significant",
        "spawn_budget",
        "lost",
        "output",
        "last words",
        "process:ready",
        "ready",
        "watchdog",
        "stopping and not ending",
        "process:stalled",
        "process:stirred",
        "stall",
        "started after another one",
        "dependency",
        "stood still",
        "process:stuck",
        "answered late",
        "departed",
        "crash of what was left behind",
    ];
    for name in expected {
        assert!(seeds < 1000 || seen.contains_key(name), "the swarm reaches {name:?}");
    }
}

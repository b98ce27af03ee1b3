//! Crowds of processes ended, and paused, at once.

use std::time::{Duration, Instant};

use treeherd::api::method::{Call, OfTarget};
use treeherd::model::id::AgentId;
use treeherd::model::request::Target as Whom;
use treeherd::model::status::AgentStatus;

use crate::Plan;
use crate::bare::{Bare, Program, is_set, write_and_wait};
use crate::guest::{self, Daemon};
use crate::measure::{Table, Target, alternate};

/// How long a crowd may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);

/// The shapes: so many processes in so many agents, below a group if there is more than one.
const SHAPES: [(usize, usize); 4] = [(10, 1), (1_000, 1), (1_000, 20), (10_000, 20)];

fn named((processes, agents): (usize, usize)) -> String {
    format!("{processes} processes of {}", if agents > 1 { format!("{agents} agents") } else { "one agent".to_owned() })
}

/// Of large crowds fewer are made.
fn rounds(plan: &Plan, most: usize, processes: usize) -> usize {
    (plan.rounds(most) * 1_000 / processes.max(1_000)).max(3)
}

/// A tree of the floor that is equal to that of the herd: as many cgroups with as many processes.
fn bare_tree(bare: &Bare, (processes, agents): (usize, usize)) {
    let (command, variable) = guest::role(&format!("crowd:{}", processes / agents));
    let program = Program::new(&command, &[variable]);
    for agent in 0..agents {
        // Nobody waits for it: it ends when its cgroup is killed, and is reaped then.
        drop(bare.spawn(&agent.to_string(), &program));
    }
    await_processes(&bare.path, processes);
}

fn own_tree(daemon: &mut Daemon, (processes, agents): (usize, usize)) -> AgentId {
    let top = if agents > 1 { daemon.group(None) } else { daemon.spawn_crowd(None, processes) };
    if agents > 1 {
        for _ in 0..agents {
            daemon.spawn_crowd(Some(&top), processes / agents);
        }
    }
    let status: Vec<AgentStatus> = daemon.client.call(&Call::Ps(Default::default())).unwrap();
    let path = &status.iter().find(|status| status.id == top).unwrap().cgroup;
    await_processes(std::path::Path::new(path), processes);
    top
}

/// Waits until all processes are there.
fn await_processes(path: &std::path::Path, processes: usize) {
    let began = Instant::now();
    while count(path) < processes {
        assert!(began.elapsed() < PATIENCE, "of {processes} processes {} are there", count(path));
        std::thread::sleep(Duration::from_millis(2));
    }
    // And until they have come to rest.
    std::thread::sleep(Duration::from_millis(20));
}

fn count(path: &std::path::Path) -> usize {
    let own = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines().count();
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| count(&entry.path()));
    own + below.sum::<usize>()
}

/// From the request to the receipt, with no grace, beside a write to `cgroup.kill` until nothing lives.
pub fn terminate(plan: &Plan, table: &mut Table) {
    for shape in SHAPES {
        let mut daemon = Daemon::start("kill");
        let floor = || {
            let bare = Bare::new("floor");
            bare_tree(&bare, shape);
            let began = Instant::now();
            write_and_wait(&bare.path, "cgroup.kill", "1", || !is_set(&bare.path, "populated"));
            began.elapsed().as_secs_f64() * 1e3
        };
        let ours = || {
            let top = own_tree(&mut daemon, shape);
            let began = Instant::now();
            let receipt = daemon.kill(&top);
            let took = began.elapsed();
            assert_eq!(receipt.processes, shape.0 as u64);
            daemon.forget();
            took.as_secs_f64() * 1e3
        };
        let spreads = alternate(rounds(plan, 30, shape.0), floor, ours);
        // Of a few, the way of the request is what takes the time.
        let target = if shape.0 >= 1_000 { Target::Ratio(1.5) } else { Target::None };
        table.compare(&format!("terminate {}", named(shape)), "ms", spreads, target);
    }
}

/// From the request to the answer that all is seen frozen (and seen thawed), beside a write to `cgroup.freeze`.
pub fn pause(plan: &Plan, table: &mut Table) {
    for shape in SHAPES {
        let mut daemon = Daemon::start("pause");
        let bare = Bare::new("floor");
        bare_tree(&bare, shape);
        let top = own_tree(&mut daemon, shape);
        let of_top = OfTarget { target: Whom::Ids(vec![top]) };
        for (verb, value, call) in
            [("pause", "1", Call::Pause(of_top.clone())), ("resume", "0", Call::Resume(of_top.clone()))]
        {
            let other = if value == "1" { "0" } else { "1" };
            let counter_call = if value == "1" { Call::Resume(of_top.clone()) } else { Call::Pause(of_top.clone()) };
            let is_done = |value: &'static str| move |path: &std::path::Path| is_set(path, "frozen") == (value == "1");
            let freeze = |value: &'static str| {
                write_and_wait(&bare.path, "cgroup.freeze", value, || is_done(value)(&bare.path));
            };
            let floor = || {
                freeze(other);
                let began = Instant::now();
                freeze(value);
                began.elapsed().as_secs_f64() * 1e3
            };
            let ours = || {
                daemon.client.call::<Vec<AgentStatus>>(&counter_call).unwrap();
                let began = Instant::now();
                daemon.client.call::<Vec<AgentStatus>>(&call).unwrap();
                began.elapsed().as_secs_f64() * 1e3
            };
            let spreads = alternate(rounds(plan, 60, shape.0), floor, ours);
            table.compare(&format!("{verb} {}", named(shape)), "ms", spreads, Target::None);
        }
    }
}

//! A thousand processes ended, and paused, at once.

use std::time::Instant;

use treeherd::api::method::{Call, OfTarget};
use treeherd::model::id::AgentId;
use treeherd::model::request::Target as Whom;
use treeherd::model::status::AgentStatus;

use crate::Plan;
use crate::bare::{Bare, Program, is_set, write_and_wait};
use crate::guest::{self, Daemon};
use crate::measure::{Table, Target, alternate};

const PROCESSES: usize = 1_000;

/// The two shapes: so many agents, below a group if there is more than one.
const SHAPES: [(usize, &str); 2] = [(1, "1,000 processes of one agent"), (20, "1,000 processes of 20 agents")];

/// A tree of the floor that is equal to that of the herd: as many cgroups with as many processes.
fn bare_tree(bare: &Bare, agents: usize) {
    let (command, variable) = guest::role(&format!("crowd:{}", PROCESSES / agents));
    let program = Program::new(&command, &[variable]);
    for agent in 0..agents {
        // Nobody waits for it: it ends when its cgroup is killed, and this process's end reaps it.
        drop(bare.spawn(&agent.to_string(), &program));
    }
    await_processes(&bare.path);
}

fn own_tree(daemon: &mut Daemon, agents: usize) -> AgentId {
    let top = if agents > 1 { daemon.group(None) } else { daemon.spawn_crowd(None, PROCESSES) };
    if agents > 1 {
        for _ in 0..agents {
            daemon.spawn_crowd(Some(&top), PROCESSES / agents);
        }
    }
    let status: Vec<AgentStatus> = daemon.client.call(&Call::Ps(Default::default())).unwrap();
    let path = &status.iter().find(|status| status.id == top).unwrap().cgroup;
    await_processes(std::path::Path::new(path));
    top
}

/// Waits until all processes are there.
fn await_processes(path: &std::path::Path) {
    while count(path) < PROCESSES {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    // And until they have come to rest.
    std::thread::sleep(std::time::Duration::from_millis(20));
}

fn count(path: &std::path::Path) -> usize {
    let own = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines().count();
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| count(&entry.path()));
    own + below.sum::<usize>()
}

/// From the request to the receipt, with no grace, beside a write to `cgroup.kill` until nothing lives.
pub fn terminate(plan: &Plan, table: &mut Table) {
    for (agents, what) in SHAPES {
        let mut daemon = Daemon::start("kill");
        let floor = || {
            let bare = Bare::new("floor");
            bare_tree(&bare, agents);
            let began = Instant::now();
            write_and_wait(&bare.path, "cgroup.kill", "1", || !is_set(&bare.path, "populated"));
            let took = began.elapsed();
            reap();
            took.as_secs_f64() * 1e3
        };
        let ours = || {
            let top = own_tree(&mut daemon, agents);
            let began = Instant::now();
            let receipt = daemon.kill(&top);
            let took = began.elapsed();
            assert_eq!(receipt.processes, PROCESSES as u64);
            daemon.forget();
            took.as_secs_f64() * 1e3
        };
        let spreads = alternate(plan.rounds(30), floor, ours);
        table.compare(&format!("terminate {what}"), "ms", spreads, Target::Ratio(1.5));
    }
}

/// From the request to the answer that all is seen frozen (and seen thawed), beside a write to `cgroup.freeze`.
pub fn pause(plan: &Plan, table: &mut Table) {
    for (agents, what) in SHAPES {
        let mut daemon = Daemon::start("pause");
        let bare = Bare::new("floor");
        bare_tree(&bare, agents);
        let top = own_tree(&mut daemon, agents);
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
            let spreads = alternate(plan.rounds(60), floor, ours);
            table.compare(&format!("{verb} {what}"), "ms", spreads, Target::None);
        }
    }
}

/// Reaps the children that have ended.
fn reap() {
    use rustix::process::{WaitOptions, wait};
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

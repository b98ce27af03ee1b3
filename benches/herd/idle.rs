//! A thousand agents that do nothing, and then die all at once.

use std::path::PathBuf;
use std::time::Duration;

use treeherd::api::method::{Call, Nothing, Stats, StatsQuery};
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::State;

use crate::Plan;
use crate::guest::Daemon;
use crate::measure::{Spread, Table, Target};

const AGENTS: usize = 1_000;

pub fn idle(plan: &Plan, table: &mut Table) {
    let mut daemon = Daemon::start("idle");
    let pid = daemon.pid();
    settle();
    let before = Memory::of(pid);
    for _ in 0..AGENTS {
        let id = daemon.fresh();
        daemon.spawn(AgentSpec::new(id, ["sleep", "100000"]));
    }
    settle();
    let after = Memory::of(pid);
    let each = |after: u64, before: u64| Spread::single(after.saturating_sub(before) as f64 / AGENTS as f64);
    table.tell("memory of an idle agent, PSS", "KiB", each(after.pss, before.pss), Target::Most(16.0));
    table.tell("memory of an idle agent, private", "KiB", each(after.private, before.private), Target::Most(16.0));
    table.tell("memory of the daemon itself, PSS", "KiB", Spread::single(before.pss as f64), Target::None);

    let seconds = if plan.is_quick { 2 } else { 10 };
    let (switches, runs) = (switches(pid), runs(pid));
    std::thread::sleep(Duration::from_secs(seconds));
    let woken = self::switches(pid) - switches;
    let ran = self::runs(pid) - runs;
    let name = |what: &str| format!("{what} in {seconds} s with 1,000 idle agents");
    table.tell(&name("context switches"), "count", Spread::single(woken as f64), Target::Most(0.0));
    table.tell(&name("turns on a CPU"), "count", Spread::single(ran as f64), Target::Most(0.0));
    die_at_once(&mut daemon, table);
}

/// Kills all agents with one write from outside, and asks the daemon how late it told each death.
fn die_at_once(daemon: &mut Daemon, table: &mut Table) {
    let herd =
        PathBuf::from(daemon.client.call::<treeherd::api::method::Hello>(&Call::Hello(Nothing {})).unwrap().cgroup);
    std::fs::write(herd.join("herd/cgroup.kill"), "1").unwrap();
    let stats = loop {
        let stats: Stats = daemon.client.call(&Call::Stats(StatsQuery::default())).unwrap();
        if stats.states.get(&State::Failed) == Some(&(AGENTS as u64)) {
            break stats;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let latency = stats.detection;
    assert_eq!(latency.count, AGENTS as u64 + 1, "and that of the first one");
    let millis = |micros: u64| Spread::single(micros as f64 / 1e3);
    table.tell("1,000 deaths at once told within, p50", "ms", millis(latency.p50_us), Target::None);
    table.tell("1,000 deaths at once told within, p99", "ms", millis(latency.p99_us), Target::None);
    table.tell("1,000 deaths at once told within, all", "ms", millis(latency.max_us), Target::Most(500.0));
    daemon.forget();
}

/// Lets everything that was begun come to its end.
fn settle() {
    std::thread::sleep(Duration::from_secs(1));
}

/// A process's memory, in KiB.
pub struct Memory {
    pub pss: u64,
    private: u64,
}

impl Memory {
    pub fn of(pid: u32) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        Self { pss: field("Pss:"), private: field("Private_Dirty:") + field("Private_Clean:") }
    }
}

/// Sums over a process's threads.
fn over_threads(pid: u32, read: impl Fn(&std::path::Path) -> u64) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks.map(|task| read(&task.path())).sum()
}

fn switches(pid: u32) -> u64 {
    over_threads(pid, |task| {
        let text = std::fs::read_to_string(task.join("status")).unwrap();
        let counts = text.lines().filter(|line| line.contains("ctxt_switches:"));
        counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    })
}

/// Reads how often the threads were given a CPU: the third number of `schedstat`.
fn runs(pid: u32) -> u64 {
    over_threads(pid, |task| schedstat(task)[2])
}

/// Reads for how long the threads had a CPU, in nanoseconds.
pub fn cpu_ns(pid: u32) -> u64 {
    over_threads(pid, |task| schedstat(task)[0])
}

fn schedstat(task: &std::path::Path) -> [u64; 3] {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
    std::array::from_fn(|_| numbers.next().unwrap())
}

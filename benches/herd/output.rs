//! What an agent pays for its output being kept, and what the daemon pays: beside a writer whose file only grows, and beside one
//! whose file a bare loop keeps as short. The kernel frees pages under the lock that each write takes: what that loop costs its
//! writer, nobody who bounds a file can spare it.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::time::{ClockId, clock_gettime};
use treeherd::model::event::Kind;
use treeherd::model::spec::AgentSpec;
use treeherd::model::stream::Output;
use treeherd::output::CAP_DEFAULT;

use crate::Plan;
use crate::bare::{Bare, Child, Program};
use crate::guest::{Daemon, Follower};
use crate::idle::cpu_ns;
use crate::measure::{Spread, Table, Target, alternate};

/// How much a writer writes, and in which pieces.
const WRITERS: [(&str, u64, u64); 2] = [("4 KiB", 4096, 512 << 20), ("100 bytes", 100, 100 << 20)];

/// How long the bare loop leaves its file alone, as the daemon does.
const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// What is given back at a time is a multiple of this, as the daemon does it.
const ALIGN: u64 = 64 << 10;

pub fn output(plan: &Plan, table: &mut Table) {
    for (name, piece, total) in WRITERS {
        let mut daemon = Daemon::start("output");
        let mut events = Follower::new(&daemon);
        let count = total / piece;
        let write = format!("exec dd if=/dev/zero bs={piece} count={count} status=none");
        let flood = Flood::new(&daemon.dir.path().join("floor"), &write, count * piece);
        let gigabytes = (count * piece) as f64 / 1e9;
        let (mut costs, pid) = (Vec::new(), daemon.pid());
        let ours = || {
            let id = daemon.fresh();
            let before = cpu_ns(pid);
            let began = Instant::now();
            let mut spec = AgentSpec::new(id.clone(), ["/bin/sh", "-c", &write]);
            // As the floor has it.
            spec.output = Output::File;
            daemon.spawn(spec);
            events.await_event(&[Kind::Completed], &id);
            let rate = flood.rate(began);
            costs.push((cpu_ns(pid) - before) as f64 / 1e9 / gigabytes);
            daemon.forget();
            rate
        };
        let spreads = alternate(plan.rounds(10), || flood.run(wait), ours);
        table.compare(&format!("output in pieces of {name}"), "MB/s", spreads, Target::None);
        let mut bare_costs = Vec::new();
        let looped = || {
            let before = thread_cpu();
            let rate = flood.run(|child| give_back(&flood.file, child));
            bare_costs.push((thread_cpu() - before).as_secs_f64() / gigabytes);
            rate
        };
        let spreads = alternate(plan.rounds(10), || flood.run(wait), looped);
        table.compare(&format!("a bare loop gives back, {name}"), "MB/s", spreads, Target::None);
        let costs = (Spread::of(bare_costs), Spread::of(costs));
        table.compare(&format!("CPU for giving back, {name}"), "s/GB", costs, Target::Ratio(1.2));
        let peaks = (0..plan.rounds(10)).map(|_| peak(&mut daemon, &write, count * piece)).collect();
        table.tell(&format!("disk over the cap at most, {name}"), "MiB", Spread::of(peaks), Target::Most(16.0));
        let modes = Modes { daemon, events, write, bytes: count * piece, costs: Default::default() };
        modes.compare(plan, table, name);
    }
}

/// An agent that writes to a file, and one that writes to a pipe, in turn.
struct Modes {
    daemon: Daemon,
    events: Follower,
    write: String,
    bytes: u64,
    /// The CPU time of all who have a part in it, in seconds per GB: of files, and of pipes.
    costs: [Vec<f64>; 2],
}

impl Modes {
    fn compare(self, plan: &Plan, table: &mut Table, name: &str) {
        let modes = RefCell::new(self);
        let of = |output| modes.borrow_mut().run(output);
        let spreads = alternate(plan.rounds(10), || of(Output::File), || of(Output::Pipe));
        table.compare(&format!("through a pipe, beside a file, {name}"), "MB/s", spreads, Target::None);
        let [file, pipe] = modes.into_inner().costs.map(Spread::of);
        let what = format!("CPU of the writer, daemon and keepers, beside a file, {name}");
        table.compare(&what, "s/GB", (file, pipe), Target::None);
    }

    fn run(&mut self, output: Output) -> f64 {
        let id = self.daemon.fresh();
        let mut spec = AgentSpec::new(id.clone(), ["/bin/sh", "-c", &self.write]);
        spec.output = output;
        let (before, began) = (self.cpu_seconds(), Instant::now());
        self.daemon.spawn(spec);
        let (event, _) = self.events.await_event(&[Kind::Completed], &id);
        let seconds = began.elapsed().as_secs_f64();
        let writer = event.exit.unwrap().rusage;
        let writer = Duration::from_micros(writer.user_us + writer.system_us).as_secs_f64();
        let cost = writer + self.cpu_seconds() - before;
        self.costs[usize::from(output == Output::Pipe)].push(cost / (self.bytes as f64 / 1e9));
        self.daemon.forget();
        self.bytes as f64 / 1e6 / seconds
    }

    /// Adds up what the daemon and its keepers have used so far.
    fn cpu_seconds(&self) -> f64 {
        let daemon = self.daemon.pid();
        let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap().flatten();
        let children = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
        let children: Vec<u32> = children
            .flat_map(|pids| pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
            .collect();
        let is_keeper = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "treeherd-keeper\n")
        };
        let all = children.into_iter().filter(is_keeper).chain([daemon]);
        all.map(cpu_ns).sum::<u64>() as f64 / 1e9
    }
}

/// Writes to an agent's output and returns by how much its file stood over the cap at most, in MiB.
fn peak(daemon: &mut Daemon, write: &str, total: u64) -> f64 {
    let id = daemon.fresh();
    daemon.spawn(AgentSpec::new(id.clone(), ["/bin/sh", "-c", write]));
    let file = File::open(daemon.dir.path().join(format!("state/agents/{id}/stdout"))).unwrap();
    let mut peak = 0;
    loop {
        let about = file.metadata().unwrap();
        peak = peak.max(about.blocks() * 512);
        if about.size() >= total {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    daemon.wait(&id);
    daemon.forget();
    peak.saturating_sub(CAP_DEFAULT.0) as f64 / f64::from(1 << 20)
}

/// A writer and its file.
struct Flood {
    bare: Bare,
    program: Program,
    file: File,
    total: u64,
}

impl Flood {
    fn new(path: &Path, write: &str, total: u64) -> Self {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
        let argv = ["/bin/sh".to_owned(), "-c".to_owned(), format!("{write} >>{} 2>/dev/null", path.display())];
        let program = Program::new(&argv, &[("PATH", "/usr/bin:/bin".to_owned())]);
        Self { bare: Bare::new("floor"), program, file, total }
    }

    /// Has it written while something is done beside it until it has ended, and returns the rate in MB/s.
    fn run(&self, beside: impl FnOnce(&Child)) -> f64 {
        let began = Instant::now();
        let child = self.bare.spawn("a", &self.program);
        beside(&child);
        let rate = self.rate(began);
        self.bare.remove("a");
        self.file.set_len(0).unwrap();
        rate
    }

    fn rate(&self, began: Instant) -> f64 {
        self.total as f64 / 1e6 / began.elapsed().as_secs_f64()
    }
}

fn wait(child: &Child) {
    child.wait();
}

/// Gives back what is older than the cap until the writer has ended.
fn give_back(file: &File, child: &Child) {
    let cap = CAP_DEFAULT.0;
    let mut start = 0;
    while poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], Some(&INTERVAL)).unwrap() == 0 {
        let size = file.metadata().unwrap().size();
        let to = size.saturating_sub(cap) / ALIGN * ALIGN;
        if size - start > cap + cap / 8 {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file.as_fd(), mode, start, to - start).unwrap();
            start = to;
        }
    }
    child.wait();
}

/// Returns how long this thread had a CPU.
fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec.try_into().unwrap())
}

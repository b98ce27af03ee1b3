//! What is measured: one function for each kind of run, all alike for every peer.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::peer::{BARE, End, Job, Kit, Peer, SYSTEMD};
use crate::roles::{self, MAKERS};
use crate::samples::Samples;
use crate::yard::{Bell, Yard, has_ended_by, monotonic_ns, reap};

/// How long a peer may take to have everything running.
const UP_MOST: Duration = Duration::from_secs(30);

/// How long a service has run before it is killed: some peers start none twice within a second.
const AGE: Duration = Duration::from_millis(1_100);

/// The pause between two crashes.
const CALM: Duration = Duration::from_millis(20);

/// How long a restart may take, and how long a series of them.
const RESTART_MOST: Duration = Duration::from_secs(6);
const SERIES_MOST: Duration = Duration::from_secs(8);

/// How long an end may take.
const END_MOST: Duration = Duration::from_secs(8);

/// For how long nothing is done.
const IDLE: Duration = Duration::from_secs(3);

/// How many processes burn CPU time for each CPU.
const BURNERS_A_CPU: usize = 2;

/// A peer with its services, running.
struct Raised<'a> {
    peer: &'a Peer,
    kit: &'a Kit,
    job: Job<'a>,
    yard: &'a Yard,
    bell: Bell,
    /// The process that was started.
    pid: u32,
    /// Each service's pid, and when it began.
    services: Vec<(u64, Pid)>,
    /// From the start to the first act of the last service.
    took_ms: f64,
}

impl<'a> Raised<'a> {
    fn new(
        kit: &'a Kit,
        peer: &'a Peer,
        yard: &'a Yard,
        services: impl FnOnce(&Bell) -> Vec<Vec<String>>,
        is_kept: bool,
    ) -> Result<Self, String> {
        let mut bell = Bell::new(yard.dir.path());
        let services = services(&bell);
        let count = services.len();
        let job = Job { dir: yard.dir.path(), cgroup: format!("{}/herd", yard.name), services, is_kept };
        let mut command = (peer.lay)(kit, &job);
        let began = monotonic_ns();
        let pid = yard.start(&mut command, None);
        let deadline = Instant::now() + UP_MOST;
        let mut services = Vec::with_capacity(count);
        while services.len() < count {
            let Some([at, pid]) = bell.hear(deadline) else {
                let (up, seconds) = (services.len(), UP_MOST.as_secs());
                eprintln!("  {}: {}", peer.name, yard.last_words());
                return Err(format!("{up} of {count} services ran after {seconds} s"));
            };
            services.push((at, Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()));
        }
        let last = services.iter().map(|(at, _)| *at).max().unwrap_or(began);
        Ok(Self { peer, kit, job, yard, bell, pid, services, took_ms: millis(began, last) })
    }

    /// Lists the processes that are not services: the peer itself, however many it is.
    fn own(&self) -> BTreeSet<u32> {
        if self.peer.name == SYSTEMD {
            return BTreeSet::from([1]);
        }
        let mut pids = self.yard.pids();
        for (_, pid) in &self.services {
            pids.remove(&pid.as_raw_nonzero().get().unsigned_abs());
        }
        pids
    }

    fn pss_kib(&self) -> f64 {
        self.own().iter().map(|pid| pss_kib(*pid)).sum()
    }

    /// Kills each service once, and tells how long it was until its next one began.
    fn crash(&mut self) -> Vec<f64> {
        let mut took = Vec::new();
        let end = Instant::now() + SERIES_MOST;
        for service in &mut self.services {
            let (began, pid) = *service;
            let age = Duration::from_nanos(monotonic_ns().saturating_sub(began));
            std::thread::sleep(AGE.saturating_sub(age).max(CALM));
            if Instant::now() > end {
                break;
            }
            let killed = monotonic_ns();
            if let Err(errno) = kill_process(pid, Signal::KILL) {
                eprintln!(
                    "  {}: {pid:?} is gone: {errno}, after {} restarts: {}",
                    self.peer.name,
                    took.len(),
                    self.yard.last_words()
                );
                break;
            }
            let Some([at, pid]) = self.bell.hear(Instant::now() + RESTART_MOST) else { break };
            took.push(millis(killed, at));
            *service = (at, Pid::from_raw(i32::try_from(pid).unwrap()).unwrap());
        }
        took
    }

    /// Ends everything as the peer has it, and tells how long that took, if it did end.
    fn end(&self) -> Option<f64> {
        let began = monotonic_ns();
        let deadline = Instant::now() + END_MOST;
        let signal = |number: &i32| {
            let signal = Signal::from_named_raw(*number).unwrap();
            kill_process(Pid::from_raw(self.pid.cast_signed()).unwrap(), signal).ok();
        };
        match &self.peer.end {
            End::Signal(number) => signal(number),
            End::Command(command, number) => {
                let pid = self.yard.start(&mut command(self.kit, &self.job), None);
                if !has_ended_by(pid, deadline) {
                    return None;
                }
                number.iter().for_each(signal);
            }
            End::None => return None,
        }
        has_ended_by(self.pid, deadline).then(|| millis(began, monotonic_ns()))
    }
}

impl Drop for Raised<'_> {
    /// What is not in the yard does not end with it: its peer ends it, or it would run beside whoever is next.
    fn drop(&mut self) {
        if let (SYSTEMD, End::Command(command, _)) = (self.peer.name, &self.peer.end) {
            let ended = command(self.kit, &self.job).status();
            assert!(ended.is_ok_and(|status| status.success()), "systemd has ended its services");
        }
    }
}

fn millis(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

/// Brings up so many services: the time, and the memory that it takes.
pub fn up(kit: &Kit, peer: &Peer, count: usize, program: &dyn Fn(&Bell) -> String, samples: &mut Samples) {
    let (time, memory) = if count == 50 { ("up-50", "pss-50") } else { ("up-1000", "pss-1000") };
    if samples.is_out(time, peer.name) {
        return;
    }
    let yard = Yard::new();
    match Raised::new(kit, peer, &yard, |bell| vec![vec![program(bell)]; count], false) {
        Ok(raised) => {
            samples.add(time, peer.name, [raised.took_ms]);
            std::thread::sleep(AGE);
            let pss = raised.pss_kib();
            samples.add(memory, peer.name, [pss]);
            if let Some((_, small)) = samples.at("pss-50", peer.name, 50).filter(|_| count > 50) {
                samples.add("pss-each", peer.name, [(pss - small) / (count as f64 - 50.0)]);
            }
        }
        Err(why) => [time, memory].iter().for_each(|measure| samples.refuse(measure, peer.name, &why)),
    }
}

/// Has 50 services idle, then crashes each of them, then each once more while every CPU is busy.
pub fn live(kit: &Kit, peer: &Peer, program: &dyn Fn(&Bell) -> String, samples: &mut Samples) {
    let yard = Yard::new();
    let mut raised = match Raised::new(kit, peer, &yard, |bell| vec![vec![program(bell)]; 50], false) {
        Ok(raised) => raised,
        Err(why) => {
            ["wakeups", "cpu", "crash", "crash-busy"]
                .iter()
                .for_each(|measure| samples.refuse(measure, peer.name, &why));
            return;
        }
    };
    std::thread::sleep(AGE);
    let own = raised.own();
    let (woken, ran) = (sum(&own, switches), sum(&own, cpu_ns));
    std::thread::sleep(IDLE);
    let seconds = IDLE.as_secs_f64();
    samples.add("wakeups", peer.name, [(sum(&own, switches) - woken) as f64 / seconds]);
    samples.add("cpu", peer.name, [(sum(&own, cpu_ns) - ran) as f64 / 1e6 / seconds]);
    for measure in ["crash", "crash-busy"] {
        let busy = Yard::new();
        if measure == "crash-busy" {
            let cpus = std::thread::available_parallelism().unwrap().get();
            for _ in 0..cpus * BURNERS_A_CPU {
                busy.start(Command::new(std::env::current_exe().unwrap()).env(roles::ROLE, "burn:"), None);
            }
        }
        let took = raised.crash();
        if took.is_empty() {
            samples.refuse(measure, peer.name, &format!("no service was back within {} s", RESTART_MOST.as_secs()));
        }
        samples.add(measure, peer.name, took);
    }
}

/// Runs services that leave processes behind, ends all, and counts who lives on.
pub fn terminate(kit: &Kit, peer: &Peer, samples: &mut Samples) {
    let measures = ["survivors", "stop"];
    if peer.name == BARE {
        measures.iter().for_each(|measure| samples.refuse(measure, peer.name, "a loop has no end"));
        return;
    }
    let yard = Yard::new();
    let makers = |bell: &Bell| MAKERS.iter().map(|(maker, _)| roles::command(maker, &bell.path)).collect();
    let raised = match Raised::new(kit, peer, &yard, makers, false) {
        Ok(raised) => raised,
        Err(why) => return measures.iter().for_each(|measure| samples.refuse(measure, peer.name, &why)),
    };
    match raised.end() {
        Some(took) => samples.add("stop", peer.name, [took]),
        None => samples.refuse("stop", peer.name, &format!("not over after {} s", END_MOST.as_secs())),
    }
    std::thread::sleep(Duration::from_millis(100));
    reap();
    yard.freeze();
    let survivors = survivors(&yard);
    samples.add("survivors", peer.name, [survivors.len() as f64]);
    let kinds = MAKERS.iter().map(|(maker, _)| *maker).filter(|maker| survivors.iter().any(|kind| kind == maker));
    samples.tell_kinds(peer.name, kinds);
}

/// Lists the roles of those that descend from a maker of this yard and live, wherever they are.
fn survivors(yard: &Yard) -> Vec<String> {
    let bell = yard.dir.path().join("bell").to_str().unwrap().to_owned();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let roles = pids.filter_map(|pid| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let environ = String::from_utf8_lossy(&environ).into_owned();
        let role = environ.split('\0').find_map(|entry| entry.strip_prefix(roles::ROLE)?.strip_prefix('='))?;
        let (maker, theirs) = role.split_once(':')?;
        (theirs == bell).then(|| maker.to_owned())
    });
    roles.collect()
}

/// Has one service write at full speed: how much it got rid of, and what its supervisor spent on that.
pub fn output(kit: &Kit, peer: &Peer, samples: &mut Samples) {
    let measures = ["output", "output-cpu"];
    let yard = Yard::new();
    let writer = |bell: &Bell| vec![roles::command("writer", &bell.path)];
    if peer.name == BARE {
        let mut bell = Bell::new(yard.dir.path());
        let words = writer(&bell).remove(0);
        let file = File::options().append(true).create(true).open(yard.dir.path().join("log")).unwrap();
        yard.start(Command::new(&words[0]).args(&words[1..]), Some(file));
        let deadline = Instant::now() + UP_MOST;
        if let Some([nanos, bytes]) = bell.hear(deadline).and_then(|_| bell.hear(deadline)) {
            samples.add("output", peer.name, [bytes as f64 * 1e3 / nanos as f64]);
        }
        samples.refuse("output-cpu", peer.name, "a file without a keeper");
        return;
    }
    let mut raised = match Raised::new(kit, peer, &yard, writer, true) {
        Ok(raised) => raised,
        Err(why) => return measures.iter().for_each(|measure| samples.refuse(measure, peer.name, &why)),
    };
    let own = raised.own();
    let ran = sum(&own, cpu_ns);
    let Some([nanos, bytes]) = raised.bell.hear(Instant::now() + UP_MOST) else {
        let why = format!("the writer was not done after {} s", UP_MOST.as_secs());
        return measures.iter().for_each(|measure| samples.refuse(measure, peer.name, &why));
    };
    // What is still in a pipe is written, and paid for, later.
    std::thread::sleep(Duration::from_millis(300));
    samples.add("output", peer.name, [bytes as f64 * 1e3 / nanos as f64]);
    let spent = sum(&own, cpu_ns) - ran;
    samples.add("output-cpu", peer.name, [spent as f64 / bytes as f64]);
}

fn pss_kib(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
}

/// Sums over all threads of processes.
fn sum(pids: &BTreeSet<u32>, read: fn(&Path) -> u64) -> u64 {
    let tasks = |pid: &u32| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    pids.iter().flat_map(tasks).map(|task| read(&task.path())).sum()
}

fn switches(task: &Path) -> u64 {
    let text = std::fs::read_to_string(task.join("status")).unwrap_or_default();
    let counts = text.lines().filter(|line| line.contains("ctxt_switches:"));
    counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

fn cpu_ns(task: &Path) -> u64 {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

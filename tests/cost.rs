//! What clients cost each other and the agents: as many as there may be ask for what is expensive, of every method, and read nothing.
//! A death is told in time, a request that changes something does not queue behind reads, and memory stays bounded.
//!
//! The machine that runs the tests is loaded by others. So lateness is judged only where a bare loop of this process, which does
//! nothing but wait for the same death, was in time: what the machine does to everybody is not held against the daemon.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::raw::Raw;
use common::*;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;
use serde_json::{Value, json};
use treeherd::api::method::Call;
use treeherd::herd::EventStream;
use treeherd::kernel::pidfd;
use treeherd::model::event::Kind;
use treeherd::model::id::AgentId;

/// The promise: how late the end of a run may be told.
const PROMISED: Duration = Duration::from_millis(500);

/// Where a bare loop takes longer than this to see a death, the machine is too loaded to say anything about us.
const BARE_MOST: Duration = Duration::from_millis(100);

/// How many clients ask for the worst at once.
const CLIENTS: usize = 100;

/// How many deaths are measured for each method.
const DEATHS: usize = 3;

/// How many agents there are to be asked about, and how much is kept with each.
const AGENTS: usize = 100;
const METADATA: usize = 5_000;

/// Clients that send the same request again and again, and read what comes only as fast as that.
struct Crowd {
    is_over: std::sync::Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// What a client does with its answers.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    Read,
    Left,
}

impl Crowd {
    fn start(socket: &Path, line: &str, answers: Answers) -> Self {
        const THREADS: usize = 4;
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS).map(|_| {
            let (is_over, line, socket) = (is_over.clone(), line.to_owned(), socket.to_owned());
            std::thread::spawn(move || {
                let mut clients: Vec<_> = (0..CLIENTS / THREADS).map(|_| Asker::new(&socket, &line)).collect();
                while !is_over.load(Ordering::Relaxed) {
                    let moved = clients.iter_mut().map(|client| client.go_on(answers)).filter(|moved| *moved).count();
                    if moved == 0 {
                        let_pass("0.01");
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { is_over, threads }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// One of the crowd.
struct Asker {
    socket: PathBuf,
    stream: UnixStream,
    requests: Vec<u8>,
    sent: usize,
}

impl Asker {
    fn new(socket: &Path, line: &str) -> Self {
        let requests = format!("{line}\n").repeat(64).into_bytes();
        Self { socket: socket.to_owned(), stream: connect(socket), requests, sent: 0 }
    }

    /// Sends and reads as much as goes at once. Returns whether anything went. Who is sent away, since those of before are not all
    /// gone yet, comes back.
    fn go_on(&mut self, answers: Answers) -> bool {
        let mut has_moved = false;
        match self.stream.write(&self.requests[self.sent..]) {
            Ok(count) => (self.sent, has_moved) = ((self.sent + count) % self.requests.len(), count > 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => (self.stream, self.sent) = (connect(&self.socket), 0),
        }
        let mut buffer = [0; 64 << 10];
        if answers == Answers::Read {
            has_moved |= self.stream.read(&mut buffer).is_ok_and(|count| count > 0);
        }
        has_moved
    }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Kills an agent, and returns when its death was told and when a bare loop has seen it.
fn kill(events: &mut EventStream, id: &AgentId, pid: i32) -> (Duration, Duration) {
    let process = pidfd::open(pid).unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let bare = std::thread::spawn(move || {
        ready.send(()).unwrap();
        rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
        Instant::now()
    });
    is_ready.recv().unwrap();
    let begin = Instant::now();
    pidfd::signal(pidfd::open(pid).unwrap().as_fd(), Signal::KILL).unwrap();
    assert_eq!(await_event(events, Kind::Failed, id).run.unwrap().0, 1);
    let told = begin.elapsed();
    let seen = bare.join().unwrap().duration_since(begin);
    (told, seen)
}

/// Judges what was measured: the one in the middle, as a single one may be the scheduler's.
fn judge(what: &str, mut lateness: Vec<(Duration, Duration)>) -> Option<String> {
    let bare = lateness.iter().map(|(_, bare)| *bare).max().unwrap();
    lateness.sort_unstable();
    let (middle, worst) = (lateness[lateness.len() / 2].0, lateness.last().unwrap().0);
    let figures = format!("{what}: told after {middle:?}, at worst {worst:?}; a bare loop after {bare:?} at worst");
    println!("{figures}");
    (middle > PROMISED && bare < BARE_MOST).then_some(figures)
}

/// Registers groups with much to tell of.
fn groups(raw: &mut Raw, count: usize, metadata: usize) {
    for number in 0..count {
        let params = json!({ "id": format!("g{number}"), "metadata": { "k": "m".repeat(metadata) } });
        let answer = raw.call("spawn", &params);
        assert!(answer["result"]["id"].is_string(), "{answer}");
    }
}

/// The worst that can be asked of each method.
fn worst(method: &str) -> Value {
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    match method {
        "ps" | "hello" | "config" | "doctor" => json!({}),
        "show" | "explain" => json!({ "id": "loud" }),
        "restart" => json!({ "id": "no-such" }),
        "spawn" => {
            let rules: Vec<Value> = (0..16).map(|n| json!({ "pattern": format!("x{n}\\w{{20}}") })).collect();
            // A name that is taken: all of it has to be parsed to be refused.
            json!({ "id": "loud", "command": ["true"], "rules": rules, "metadata": { "k": nested(20), "m": "x".repeat(50_000) } })
        }
        "process" => json!({ "pid": std::process::id() }),
        "stats" => json!({ "agents": true }),
        "events" => json!({ "since": 0, "agent": "nobody-at-all" }),
        "logs" => json!({ "id": "loud", "lines": 1_000_000 }),
        "follow" => json!({ "target": "all", "lines": 1_000 }),
        "pause" | "resume" | "terminate" | "cleanup" => json!({ "target": { "ids": ["no-such"] } }),
        "limit" => json!({ "scope": { "agent": "g0" }, "limits": { "pids_max": 1000 } }),
        "wait" => json!({ "ids": ["loud"] }),
        "shutdown" => json!({ "grace_ms": -1 }),
        "declare" => json!({ "file": "f".repeat(60_000), "applied": {} }),
        other => panic!("what is the worst of {other}?"),
    }
}

#[test]
fn a_death_is_told_in_time_while_a_hundred_clients_do_their_worst_of_every_method() {
    let herd = daemon(&["--max-agents-per-level", "1000"]);
    let mut raw = Raw::connect(&herd.socket());
    groups(&mut raw, AGENTS, METADATA);
    let loud = herd.spawn_with(
        "loud",
        None,
        "head -c 20000000 /dev/zero | tr '\\0' x; echo; echo end; exec sleep 1000",
        |spec| {
            spec.output_max = treeherd::model::units::Bytes(64 << 20);
        },
    );
    await_line(&herd, &loud, "end");
    let mut events = herd.follow();
    let mut late = Vec::new();
    for method in Call::METHODS {
        let victims: Vec<_> = (0..DEATHS).map(|n| herd.sleeper(None, &format!("victim-{method}-{n}"))).collect();
        let pids: Vec<i32> = victims.iter().map(|id| herd.agent_status(id).unwrap().pid.unwrap()).collect();
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": worst(method) }).to_string();
        let answers = if *method == "ps" { Answers::Left } else { Answers::Read };
        let crowd = Crowd::start(&herd.socket(), &request, answers);
        let lateness = victims.iter().zip(pids).map(|(id, pid)| kill(&mut events, id, pid)).collect();
        drop(crowd);
        late.extend(judge(method, lateness));
    }
    let stats = herd.stats().unwrap();
    println!("by its own account: {:?}", stats.detection);
    assert!(late.is_empty() || stats.detection.max_us < 100_000, "too late: {late:#?}");
    herd.finish();
}

/// Reads a figure of a process in KiB.
fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn clients_that_do_not_read_take_bounded_memory_together_and_only_their_own_answers_wait() {
    let herd = daemon(&["--max-agents-per-level", "1000"]);
    let mut raw = Raw::connect(&herd.socket());
    groups(&mut raw, 200, 60_000);
    let pid = u32::try_from(raw.call("hello", &json!({}))["result"]["pid"].as_u64().unwrap()).unwrap();
    let before = memory(pid, "VmRSS");
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "ps" }).to_string();
    let mut deaf: Vec<_> = (0..CLIENTS).map(|_| Asker::new(&herd.socket(), &request)).collect();
    for _ in 0..20 {
        deaf.iter_mut().for_each(|client| _ = client.go_on(Answers::Left));
        assert_eq!(raw.call("ps", &json!({}))["result"].as_array().unwrap().len(), 200, "who reads is answered");
    }
    let peak = memory(pid, "VmHWM");
    println!("{before} KiB before, {peak} KiB at most");
    // Each holds its room, one entry more, and its requests; the answers to all that was asked are 1,000 times as much.
    assert!(peak < before + 200_000, "{before} KiB before, {peak} KiB at most");
    let mut late = Raw::connect(&herd.socket());
    assert!(late.call("hello", &json!({}))["result"].is_object());
    // Whoever begins to read at last gets all of it.
    let slow = deaf.pop().unwrap();
    slow.stream.set_nonblocking(false).unwrap();
    let mut slow = Raw { reader: std::io::BufReader::new(slow.stream.try_clone().unwrap()), stream: slow.stream };
    for _ in 0..3 {
        let answer = slow.line().unwrap();
        let ids: BTreeSet<&str> =
            answer["result"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 200);
    }
    drop((deaf, slow));
    // After the peak it goes back to the kernel.
    let most = before + (peak - before) / 2 + 4_096;
    until("the daemon gives its memory back", || memory(pid, "VmRSS") < most);
    println!("{} KiB in the end", memory(pid, "VmRSS"));
    herd.finish();
}

#[test]
fn a_terminate_does_not_queue_behind_those_who_ask_for_figures() {
    let herd = daemon(&["--max-agents-per-level", "1000"]);
    let mut raw = Raw::connect(&herd.socket());
    groups(&mut raw, 60, 0);
    let victims: Vec<_> = (0..DEATHS).map(|n| herd.sleeper(None, &format!("v{n}"))).collect();
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "show", "params": { "id": "g7" } }).to_string();
    let crowd = Crowd::start(&herd.socket(), &request, Answers::Read);
    let mut events = herd.follow();
    let mut lateness = Vec::new();
    for id in &victims {
        let pid = herd.agent_status(id).unwrap().pid.unwrap();
        let process = pidfd::open(pid).unwrap();
        let begin = Instant::now();
        let receipt = herd.terminate_agent(id, Some(Duration::ZERO)).unwrap();
        assert_eq!(receipt.processes, 1);
        let told = begin.elapsed();
        await_event(&mut events, Kind::Terminated, id);
        // What the machine takes to let anybody see a death that is there already.
        let begin = Instant::now();
        rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
        lateness.push((told, begin.elapsed()));
    }
    drop(crowd);
    let late = judge("terminate --now beside 100 clients that ask for figures", lateness);
    assert!(late.is_none(), "{late:?}");
    herd.finish();
}

#[test]
fn a_list_is_whole_and_one_line_while_agents_come_and_go_and_events_are_followed() {
    let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = 1000);
    let mut raw = Raw::connect(&herd.socket());
    groups(&mut raw, 100, 20_000);
    let mut slow = Raw::connect(&herd.socket());
    slow.send("{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"events\",\"params\":{\"follow\":true}}\n");
    slow.send(&"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ps\"}\n".repeat(20));
    slow.send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"hello\"}\n");
    for number in 0..20 {
        let id = herd.spawn(&format!("passing-{number}"), "exit 0");
        drop(herd.cleanup(ids(&[&id])));
    }
    let (mut lists, mut events) = (0, 0);
    loop {
        let line = slow.line().unwrap();
        match line["id"].as_u64() {
            Some(0) => {}
            Some(1) => {
                let listed = line["result"].as_array().unwrap();
                let groups = listed.iter().filter(|it| it["id"].as_str().unwrap().starts_with('g')).count();
                assert_eq!(groups, 100, "whoever is there all the time is in every list");
                lists += 1;
            }
            Some(2) => break,
            _ => events += u32::from(line["params"]["event"]["seq"].is_u64()),
        }
    }
    assert_eq!(lists, 20, "what is asked is answered in its order");
    println!("{events} events came between the lists");
    herd.finish();
}

//! How late a death is told while agents do their worst: from right before `_exit` to the event at a client, beside a bare
//! pidfd and epoll loop under the same load in the same run.
//!
//! The client and the bare loop are one process, as urgent as the daemon and in a session of its own: a client that is starved
//! itself is told nothing in time by anybody.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::epoll;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use treeherd::api::client::Client;
use treeherd::api::method::{Call, Ending, EventQuery, Events, LogQuery, Output, Stats, StatsQuery};
use treeherd::kernel::guard;
use treeherd::model::event::Kind;
use treeherd::model::id::AgentId;
use treeherd::model::request::Target as Whom;
use treeherd::model::status::Receipt;

use crate::Plan;
use crate::bare::{Bare, Child, Program};
use crate::guest::{self, Daemon, Follower, Page, monotonic_ns};
use crate::measure::{Spread, Table, Target};

/// How urgent the measuring process is: as the daemon.
const NICE: i8 = -10;

/// How many agents burn CPUs, for each CPU.
const BURNERS_A_CPU: usize = 16;

/// How many clients follow everything and read nothing.
const DEAF_CLIENTS: usize = 100;

/// How many clients ask for the same, and how many requests each of them sends ahead.
const ASKERS: usize = 100;
const ASKED_AHEAD: usize = 16;

/// How many agents they ask about.
const ASKED_ABOUT: usize = 200;

/// How many processes are killed beside the measured deaths, and how many of those there are.
const CROWD: usize = 10_000;
const BYSTANDERS: usize = 50;

/// How many agents die in one instant.
const VOLLEY: usize = 1_000;

/// Plays what an agent of these benches is.
pub fn play(role: &str, argument: &str) {
    match role {
        "burn" => loop {
            std::hint::spin_loop();
        },
        "bomb" => loop {
            // SAFETY: there is one thread, and every child does the same.
            unsafe { libc::fork() };
        },
        "thrash" => thrash(Path::new(argument)),
        "flood" => flood(),
        "ask" => ask(argument),
        "volley" => {
            // As agents are: nobody's session, the usual priority.
            rustix::process::setsid().ok();
            guard::set_nice(0).unwrap();
            let (slot, dir) = argument.split_once(':').unwrap();
            die_with_the_others(slot.parse().unwrap(), Path::new(dir));
        }
        other => panic!("{other} is no role"),
    }
}

/// Writes a file that is larger than the memory it may have, and reads it for ever. (What somebody else had written would be
/// in somebody else's account.)
fn thrash(path: &Path) {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let length = 128 << 20;
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let piece = vec![b'x'; 1 << 20];
    (0..length >> 20).for_each(|_| std::io::Write::write_all(&mut file, &piece).unwrap());
    // SAFETY: a new private mapping of a file that nobody shortens.
    let address = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) }.unwrap();
    // SAFETY: the mapping above, which is never unmapped.
    let pages: &[u8] = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), length) };
    loop {
        std::hint::black_box(pages.iter().step_by(4096).fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
    }
}

fn flood() {
    use std::io::Write;
    let mut stdout = std::io::stdout();
    let piece = [b'x'; 4096];
    while stdout.write_all(&piece).is_ok() {}
}

/// Asks the same over and over again, over many connections: `SOCKET REQUEST`.
fn ask(argument: &str) {
    use std::io::{Read, Write};
    let (socket, line) = argument.split_once(' ').unwrap();
    let requests = format!("{line}\n").repeat(ASKED_AHEAD);
    let threads = (0..ASKERS).map(|_| {
        let (mut stream, requests) = (std::os::unix::net::UnixStream::connect(socket).unwrap(), requests.clone());
        std::thread::spawn(move || {
            let (mut buffer, mut answers) = (vec![0; 64 << 10], ASKED_AHEAD);
            loop {
                if answers >= ASKED_AHEAD {
                    answers -= ASKED_AHEAD;
                    if stream.write_all(requests.as_bytes()).is_err() {
                        return;
                    }
                }
                let Ok(read @ 1..) = stream.read(&mut buffer) else { return };
                answers += memchr::memchr_iter(b'\n', &buffer[..read]).count();
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
}

/// Waits until all are to die, notes the time, and does.
fn die_with_the_others(slot: usize, dir: &Path) {
    let page = Page::open(&dir.join(format!("slot-{slot}")));
    // It is there as soon as it can be opened: until somebody writes to the fifo, nobody reads from it.
    drop(File::open(dir.join("fifo")).unwrap());
    page.set(monotonic_ns());
    // SAFETY: ends the process; nothing is to be dropped.
    unsafe { libc::_exit(0) }
}

/// Latencies in milliseconds.
#[derive(Default)]
struct Latencies {
    floor: Vec<f64>,
    ours: Vec<f64>,
}

impl Latencies {
    /// Puts three figures into the table: the middle, the worst of a hundred, the worst.
    fn tell(mut self, name: &str, table: &mut Table) {
        self.floor.sort_by(f64::total_cmp);
        self.ours.sort_by(f64::total_cmp);
        for (what, percent, target) in
            [("p50", 50, Target::None), ("p99", 99, Target::None), ("max", 100, Target::Most(500.0))]
        {
            let at = |values: &[f64]| Spread::single(values[(values.len() - 1) * percent / 100]);
            table.compare(&format!("{name}: {what}"), "ms", (at(&self.floor), at(&self.ours)), target);
        }
    }
}

/// Agents, or children, that wait to die in one instant.
struct Volley {
    dir: tempfile::TempDir,
    pages: Vec<Page>,
}

impl Volley {
    fn new(count: usize) -> Self {
        let dir = guest::memory_dir();
        let fifo = std::ffi::CString::new(dir.path().join("fifo").to_str().unwrap()).unwrap();
        // SAFETY: a path that ends in a zero byte and outlives the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let pages = (0..count).map(|slot| Page::open(&dir.path().join(format!("slot-{slot}")))).collect();
        Self { dir, pages }
    }

    fn role(&self, slot: usize) -> String {
        format!("volley:{slot}:{}", self.dir.path().display())
    }

    /// Lets them die, and those who come as far only later, as long as what is returned is held.
    fn fire(&self) -> File {
        File::options().write(true).open(self.dir.path().join("fifo")).unwrap()
    }

    /// Returns how late the deaths of agents are told; `shake` is done right before they are to die.
    fn of_agents(&self, herd: &mut Field, shake: impl FnOnce(&mut Field)) -> Vec<f64> {
        let mut slots = BTreeMap::new();
        for slot in 0..self.pages.len() {
            let id = herd.daemon.fresh();
            herd.daemon.spawn(guest::play(&id, &self.role(slot)));
            slots.insert(id, slot);
        }
        shake(herd);
        let _fired = self.fire();
        let mut latencies = Vec::new();
        while !slots.is_empty() {
            let (event, at) = herd.events.await_any(&[Kind::Completed, Kind::Failed]);
            if let Some(slot) = event.agent.and_then(|id| slots.remove(&id)) {
                latencies.push(millis(self.pages[slot].get(), at));
            }
        }
        latencies
    }

    /// Returns how late a bare loop learns of the deaths of its children.
    fn of_children(&self, herd: &mut Field, shake: impl FnOnce(&mut Field)) -> Vec<f64> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let children: Vec<Child> = (0..self.pages.len())
            .map(|slot| {
                let (command, variable) = guest::role(&self.role(slot));
                let child = herd.bare.spawn(&format!("slot-{slot}"), &Program::new(&command, &[variable]));
                let data = epoll::EventData::new_u64(slot as u64);
                epoll::add(&poll, &child.pidfd, data, epoll::EventFlags::IN).unwrap();
                child
            })
            .collect();
        shake(herd);
        let _fired = self.fire();
        let mut latencies = Vec::new();
        while latencies.len() < children.len() {
            let mut events = Vec::with_capacity(32);
            epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
            let at = monotonic_ns();
            for event in events {
                let slot = usize::try_from(event.data.u64()).unwrap();
                let pidfd = &children[slot].pidfd;
                waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
                epoll::delete(&poll, pidfd).unwrap();
                latencies.push(millis(self.pages[slot].get(), at));
            }
        }
        (0..children.len()).for_each(|slot| herd.bare.remove(&format!("slot-{slot}")));
        latencies
    }
}

fn millis(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

/// Where it is measured: a daemon, a client, a bare loop's cgroup, and what is set upon them.
struct Field {
    daemon: Daemon,
    events: Follower,
    bare: Bare,
    /// The agents that are a load.
    agents: Vec<AgentId>,
    clients: Vec<Client>,
    /// A file for those who want more memory than they may have, on a disk.
    disk: tempfile::TempDir,
}

impl Field {
    fn new() -> Self {
        let daemon = Daemon::start("load");
        let disk = tempfile::tempdir().unwrap();
        let (events, bare) = (Follower::new(&daemon), Bare::new("floor"));
        Self { daemon, events, bare, agents: Vec::new(), clients: Vec::new(), disk }
    }

    fn agent(&mut self, role: &str, limits: &[&str]) -> AgentId {
        let id = self.daemon.fresh();
        let mut spec = guest::play(&id, role);
        limits.iter().for_each(|limit| spec.limits.set_text(limit).unwrap());
        self.daemon.spawn(spec);
        self.agents.push(id.clone());
        id
    }

    fn burn(&mut self) {
        let cpus = std::thread::available_parallelism().unwrap().get();
        (0..cpus * BURNERS_A_CPU).for_each(|_| drop(self.agent("burn:", &[])));
    }

    fn bomb(&mut self) {
        self.agent("bomb:", &["pids_max=256"]);
    }

    fn thrash(&mut self) {
        let file = self.disk.path().join("larger-than-memory");
        self.agent(&format!("thrash:{}", file.display()), &["memory_max=64MiB"]);
    }

    fn flood(&mut self) {
        (0..2).for_each(|_| drop(self.agent("flood:", &[])));
    }

    /// Two agents write, and clients who do not read follow all events and all output.
    fn deafen(&mut self) {
        let writers = [self.agent("flood:", &[]), self.agent("flood:", &[])];
        for _ in 0..DEAF_CLIENTS {
            let mut client = self.daemon.connect();
            client.call::<Events>(&Call::Events(EventQuery { follow: true, ..EventQuery::default() })).unwrap();
            for id in writers.clone() {
                let query = LogQuery { id, stream: None, from: None, lines: None, follow: true };
                client.call::<Output>(&Call::Logs(query)).unwrap();
            }
            self.clients.push(client);
        }
    }

    fn all(&mut self) {
        self.deafen();
        self.thrash();
        self.bomb();
        self.burn();
    }

    /// Starts an agent of many processes and returns when all are there.
    fn crowd(&mut self) -> AgentId {
        let id = self.agent(&format!("crowd:{CROWD}"), &[]);
        let path = Path::new(&self.daemon.root()).join(format!("herd/{id}/run-1/cgroup.procs"));
        while std::fs::read_to_string(&path).unwrap().lines().count() < CROWD {
            settle();
        }
        id
    }

    /// Has agents killed by another thread, from about now on.
    fn kill(&self, id: AgentId) {
        let mut client = self.daemon.connect();
        let call = Call::Terminate(Ending { target: Whom::Ids(vec![id]), grace_ms: Some(0) });
        std::thread::spawn(move || drop(client.call::<Receipt>(&call).unwrap()));
    }

    /// Ends the loads.
    fn calm(&mut self) {
        self.clients.clear();
        let target = Whom::Ids(std::mem::take(&mut self.agents));
        if target != Whom::Ids(Vec::new()) {
            self.daemon.client.call::<Receipt>(&Call::Terminate(Ending { target, grace_ms: Some(0) })).unwrap();
        }
        self.daemon.forget();
    }

    /// Deaths between other things: one of the bare loop's and one of ours, in turn.
    fn single(&mut self, rounds: usize) -> Latencies {
        let mut latencies = Latencies::default();
        let file = self.daemon.dir.path().join("stamp");
        let page = Page::open(&file);
        let role = format!("stamp:{}", file.display());
        let (command, variable) = guest::role(&role);
        let program = Program::new(&command, &[variable]);
        for _ in 0..rounds {
            let child = self.bare.spawn("single", &program);
            let at = child.wait();
            self.bare.remove("single");
            latencies.floor.push(millis(page.get(), at));
            let id = self.daemon.fresh();
            self.daemon.spawn(guest::play(&id, &role));
            let (_, at) = self.events.await_event(&[Kind::Completed, Kind::Failed], &id);
            latencies.ours.push(millis(page.get(), at));
        }
        latencies
    }

    /// Many deaths in one instant, first those of the bare loop's children; `shake` is done right before each.
    fn volleys(&mut self, rounds: usize, deaths: usize, shake: impl Fn(&mut Self)) -> Latencies {
        let mut latencies = Latencies::default();
        for _ in 0..rounds {
            latencies.floor.extend(Volley::new(deaths).of_children(self, &shake));
            self.calm();
            latencies.ours.extend(Volley::new(deaths).of_agents(self, &shake));
            self.calm();
        }
        latencies
    }
}

/// Lets what was begun come as far as its wait.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(300));
}

/// What puts a load onto the field.
type Shake = fn(&mut Field);

/// Loads that stay, and deaths among them, one at a time.
const STEADY: [(&str, Shake); 6] = [
    ("a death, nothing else", |_| {}),
    ("every CPU burnt by agents", Field::burn),
    ("a fork bomb at its pids limit", Field::bomb),
    ("an agent thrashes at its memory limit", Field::thrash),
    ("two agents write at full speed", Field::flood),
    ("100 clients do not read what two agents write", Field::deafen),
];

/// Deaths that are a load themselves, or come with one that does not last.
const SUDDEN: [(&str, usize, usize, Shake); 3] = [
    ("1,000 agents die in one instant", 10, VOLLEY, |_| settle()),
    ("a subtree of 10,000 processes is being killed", 10, BYSTANDERS, |field| {
        let id = field.crowd();
        settle();
        field.kill(id);
    }),
    ("all of them together", 5, VOLLEY, |field| {
        let id = field.crowd();
        field.all();
        settle();
        field.kill(id);
    }),
];

/// The worst that 100 clients can ask for at once, without a pause, of each method there is.
fn worst(method: &str) -> String {
    let params = match method {
        "hello" | "ps" | "config" | "doctor" => "{}",
        "show" | "explain" => r#"{"id":"loud"}"#,
        "stats" => r#"{"agents":true}"#,
        "events" => r#"{"since":0,"agent":"nobody"}"#,
        "logs" => r#"{"id":"loud","lines":1000000}"#,
        "follow" => r#"{"target":"all","lines":1000}"#,
        "process" => r#"{"pid":1}"#,
        "pause" | "resume" | "terminate" | "cleanup" => r#"{"target":{"ids":["nobody"]}}"#,
        "restart" => r#"{"id":"nobody"}"#,
        "wait" => r#"{"ids":["loud"]}"#,
        "shutdown" => r#"{"grace_ms":-1}"#,
        "limit" => r#"{"scope":{"agent":"loud"},"limits":{"pids_max":1000}}"#,
        "declare" => return format!(r#"{{"file":"{}","applied":{{}}}}"#, "f".repeat(60_000)),
        // A name that is taken: all of it has to be parsed to be refused.
        "spawn" => return format!(r#"{{"id":"loud","command":["true"],"metadata":{{"k":"{}"}}}}"#, "x".repeat(50_000)),
        other => panic!("what is the worst of {other}?"),
    };
    params.to_owned()
}

/// How late a death is told while clients do their worst, beside the daemon that nobody asks in the same run.
pub fn cost(plan: &Plan, table: &mut Table) {
    guard::set_nice(NICE).unwrap();
    let mut field = Field::new();
    let mut loud = guest::play(&"loud".parse().unwrap(), "flood:");
    loud.output_max = treeherd::model::units::Bytes(64 << 20);
    field.daemon.spawn(loud);
    (0..ASKED_ABOUT).for_each(|_| drop(field.daemon.group(None)));
    settle();
    field.single(plan.rounds(100)).tell("a death, nobody asks", table);
    for method in Call::METHODS {
        let params = worst(method);
        let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let socket = field.daemon.dir.path().join("state/treeherd.sock");
        let (command, (variable, value)) = guest::role(&format!("ask:{} {line}", socket.display()));
        let mut askers = std::process::Command::new(&command[0]).env(variable, value).spawn().unwrap();
        settle();
        field.single(plan.rounds(100)).tell(&format!("a death while 100 clients ask for {method}"), table);
        askers.kill().unwrap();
        askers.wait().unwrap();
    }
    field.account("100 clients ask for everything in turn", table);
}

pub fn load(plan: &Plan, table: &mut Table) {
    // Whoever leads a process group cannot; then it measures within the session that it is in.
    rustix::process::setsid().ok();
    guard::set_session_nice(NICE).unwrap();
    guard::set_nice(NICE).unwrap();
    for (name, begin) in STEADY {
        let mut field = Field::new();
        begin(&mut field);
        settle();
        field.single(plan.rounds(300)).tell(name, table);
        field.account(name, table);
        field.calm();
    }
    for (name, rounds, deaths, shake) in SUDDEN {
        let mut field = Field::new();
        let rounds = if plan.is_quick { 1 } else { rounds };
        field.volleys(rounds, deaths, shake).tell(name, table);
        field.account(name, table);
    }
}

impl Field {
    /// Asks the daemon how late it believes that it was.
    fn account(&mut self, name: &str, table: &mut Table) {
        let stats: Stats = self.daemon.client.call(&Call::Stats(StatsQuery::default())).unwrap();
        let millis = Spread::single(stats.detection.max_us as f64 / 1e3);
        table.tell(&format!("{name}: max by the daemon's own account"), "ms", millis, Target::Most(500.0));
    }
}

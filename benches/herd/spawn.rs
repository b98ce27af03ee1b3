//! The birth and the end of one agent.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use treeherd::api::method::{Call, Hello, Nothing};
use treeherd::kernel::watch::Watches;
use treeherd::model::event::Kind;
use treeherd::model::spec::AgentSpec;

use crate::Plan;
use crate::bare::{self, Bare, Program};
use crate::guest::{self, Daemon, Follower, Page, Wire, monotonic_ns};
use crate::measure::{Table, Target, alternate};
use crate::tiny;

/// Until when a spawn is measured.
#[derive(Clone, Copy)]
enum Until {
    /// The first instruction of the program: what the target is about.
    Exec,
    /// The return to the one who asked: of the call that spawned, or of the answer.
    Answer,
}

/// Where the new agent stands.
#[derive(Clone, Copy)]
enum Among {
    /// It is the only one.
    None,
    /// It is below so many groups, one below the other.
    Family(usize),
    /// So many others are there, each with a process.
    Others(usize),
    /// It is the only one, and has limits.
    Limits,
}

/// From the request on the socket to the first instruction of the program, beside `mkdir` + `clone3` + `execve`; and to the
/// answer that says that it was executed.
pub fn spawn(plan: &Plan, table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let stamp = dir.path().join("stamp");
    let page = Page::open(&stamp);
    let tiny = tiny::write(dir.path(), &stamp);
    let (tiny, target) = (tiny.as_str(), Target::Ratio(2.0));
    for (name, command, among, until, target) in [
        ("spawn below a group: request to exec", tiny, Among::Family(1), Until::Exec, target),
        ("spawn as a root agent: request to exec", tiny, Among::None, Until::Exec, target),
        ("the same among 1,000 agents", tiny, Among::Others(1_000), Until::Exec, Target::None),
        ("the same below 10 groups", tiny, Among::Family(10), Until::Exec, Target::None),
        ("the same below 64 groups", tiny, Among::Family(64), Until::Exec, Target::None),
        ("the same with memory_max and pids_max", tiny, Among::Limits, Until::Exec, Target::None),
        ("spawn as a root agent: request to answer", tiny, Among::None, Until::Answer, Target::None),
        // With a linker that runs on, and takes a CPU from the answer: on few CPUs this is more than half of the time.
        ("the same of a dynamic program", "/bin/true", Among::None, Until::Answer, Target::None),
    ] {
        // What notes its time also ends; what has no time to note does not look at it.
        let argv = [command, "and", "end"].map(str::to_owned);
        let program = Program::new(&argv, &[]);
        let bare = Bare::new("floor");
        let mut daemon = Daemon::start("spawn");
        let groups = if let Among::Family(groups) = among { groups } else { 0 };
        let parent = (0..groups).fold(None, |above, _| Some(daemon.group(above.as_ref())));
        let limits = if let Among::Limits = among { &["memory_max=64MiB", "pids_max=16"][..] } else { &[] };
        if let Among::Others(others) = among {
            for _ in 0..others {
                let id = daemon.fresh();
                daemon.spawn(AgentSpec::new(id, [tiny, "and", "only", "stay"]));
            }
        }
        let mut wire = daemon.wire();
        let took = |began: u64, answered: u64| {
            let until = match until {
                Until::Exec => page.get(),
                Until::Answer => answered,
            };
            assert!(began < until, "the program has run");
            micros(until - began)
        };
        let floor = || {
            let began = monotonic_ns();
            let child = bare.spawn("a", &program);
            let answered = monotonic_ns();
            child.wait();
            bare.remove("a");
            took(began, answered)
        };
        let ours = || {
            let mut spec = AgentSpec::new(daemon.fresh(), argv.clone());
            spec.parent.clone_from(&parent);
            limits.iter().for_each(|limit| spec.limits.set_text(limit).unwrap());
            let id = spec.id.clone();
            let request = Wire::line(&Call::Spawn(Box::new(spec)));
            let began = monotonic_ns();
            wire.ask(&request);
            let answered = monotonic_ns();
            daemon.wait(&id);
            daemon.forget();
            took(began, answered)
        };
        table.compare(name, "µs", alternate(plan.rounds(1_000), floor, ours), target);
    }
}

/// The same beside every kernel call that an agent cannot do without, made by one thread: what is left is the way there and
/// back (client, loop, spawner, loop, client), what the child tidies up, JSON, the journal.
pub fn spawn_kept(plan: &Plan, table: &mut Table) {
    let programs = tempfile::tempdir().unwrap();
    let stamp = programs.path().join("stamp");
    let page = Page::open(&stamp);
    let tiny = tiny::write(programs.path(), &stamp);
    let kept = Kept::new(&guest::unique("floor"), &tiny);
    let floor = || {
        let began = monotonic_ns();
        let child = kept.spawn();
        kept.clear(&child);
        micros(page.get() - began)
    };
    let spreads = alternate(plan.rounds(1_000), floor, asked(&tiny, &page));
    table.compare("spawn to exec, beside all its kernel calls", "µs", spreads, Target::None);
}

/// The same beside a process that does these calls when a byte comes over its socket: on a thread of their own, so that
/// whoever listens is never held up by a kernel that takes its time.
pub fn spawn_served(plan: &Plan, table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let stamp = dir.path().join("stamp");
    let page = Page::open(&stamp);
    let tiny = tiny::write(dir.path(), &stamp);
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let role = format!("server:{}:{}:{tiny}", socket.display(), guest::unique("served"));
    let (command, variable) = guest::role(&role);
    let mut process = std::process::Command::new(&command[0]).envs([variable]).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let floor = || {
        let began = monotonic_ns();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        micros(page.get() - began)
    };
    let spreads = alternate(plan.rounds(1_000), floor, asked(&tiny, &page));
    table.compare("spawn to exec, beside a bare server's", "µs", spreads, Target::None);
    drop(stream);
    process.wait().unwrap();
}

/// Plays that server, until its socket is closed.
pub fn serve(argument: &str) {
    let [socket, name, tiny] = argument.split(':').collect::<Vec<_>>().try_into().unwrap();
    let (name, tiny) = (name.to_owned(), tiny.to_owned());
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut answers = stream.try_clone().unwrap();
    let (jobs, work) = std::sync::mpsc::channel();
    let hand = std::thread::spawn(move || {
        let kept = Kept::new(&name, &tiny);
        for () in work {
            let child = kept.spawn();
            kept.clear(&child);
            answers.write_all(b"x").unwrap();
        }
    });
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&epoll, &stream, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
    loop {
        let mut ready = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        epoll::wait(&epoll, &mut ready, None).unwrap();
        if stream.read(&mut [0]).unwrap() == 0 {
            break;
        }
        jobs.send(()).unwrap();
    }
    drop(jobs);
    hand.join().unwrap();
}

/// Returns what measures a spawn by a daemon of our own.
fn asked(tiny: &str, page: &Page) -> impl FnMut() -> f64 {
    let argv = [tiny, "and", "end"].map(str::to_owned);
    let mut daemon = Daemon::start("spawn");
    let mut wire = daemon.wire();
    move || {
        let spec = AgentSpec::new(daemon.fresh(), argv.clone());
        let id = spec.id.clone();
        let request = Wire::line(&Call::Spawn(Box::new(spec)));
        let began = monotonic_ns();
        wire.ask(&request);
        daemon.wait(&id);
        daemon.forget();
        micros(page.get() - began)
    }
}

/// Where agents are made by nothing but kernel calls: a cgroup, spools, watches.
struct Kept {
    bare: Bare,
    dir: tempfile::TempDir,
    spools: OwnedFd,
    watches: Watches,
    program: Program,
}

impl Kept {
    fn new(name: &str, tiny: &str) -> Self {
        let dir = guest::memory_dir();
        let program = Program::new(&[tiny, "and", "end"].map(str::to_owned), &[]);
        Self {
            bare: Bare::named(name),
            spools: bare::open_dir(dir.path()),
            dir,
            watches: Watches::new().unwrap(),
            program,
        }
    }

    fn spawn(&self) -> bare::Child {
        self.bare.spawn_kept("a", &self.program, &self.spools, &self.watches)
    }

    /// Waits for its end, and takes everything back.
    fn clear(&self, child: &bare::Child) {
        child.wait();
        self.bare.remove("a/run-1");
        self.bare.remove("a");
        std::fs::remove_dir_all(self.dir.path().join("a")).unwrap();
        self.watches.read(&mut Vec::new()).unwrap();
    }
}

/// A request that does nothing, beside a byte that is sent to another process and back: what the way over a socket costs. And once
/// more when nothing has happened for a while: what it costs besides to wake a CPU that sleeps, which a spawn does twice.
pub fn hello(plan: &Plan, table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("echo");
    let listener = UnixListener::bind(&socket).unwrap();
    let (command, variable) = guest::role(&format!("echo:{}", socket.display()));
    let mut process = std::process::Command::new(&command[0]).envs([variable]).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut daemon = Daemon::start("hello");
    for (name, sleep) in [("a request that does nothing", 0), ("the same after 2 ms of sleep", 2)] {
        let sleep = Duration::from_millis(sleep);
        let floor = || {
            std::thread::sleep(sleep);
            let began = Instant::now();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            began.elapsed().as_secs_f64() * 1e6
        };
        let ours = || {
            std::thread::sleep(sleep);
            let began = Instant::now();
            daemon.client.call::<Hello>(&Call::Hello(Nothing {})).unwrap();
            began.elapsed().as_secs_f64() * 1e6
        };
        table.compare(name, "µs", alternate(plan.rounds(2_000), floor, ours), Target::None);
    }
    drop(stream);
    process.wait().unwrap();
}

/// From right before `_exit` to the event at a client, beside the way from there to the return of an `epoll_wait`.
pub fn exit(plan: &Plan, table: &mut Table) {
    let bare = Bare::new("floor");
    let mut daemon = Daemon::start("exit");
    let mut events = Follower::new(&daemon);
    let file = daemon.dir.path().join("stamp");
    let page = Page::open(&file);
    let role = format!("stamp:{}", file.display());
    let (command, variable) = guest::role(&role);
    let program = Program::new(&command, &[variable]);
    let floor = || {
        let child = bare.spawn("a", &program);
        let at = child.wait();
        bare.remove("a");
        micros(at - page.get())
    };
    let ours = || {
        let id = daemon.fresh();
        daemon.spawn(guest::play(&id, &role));
        let (event, at) = events.await_event(&[Kind::Completed, Kind::Failed], &id);
        assert_eq!(event.kind, Kind::Completed);
        let latency = micros(at - page.get());
        daemon.forget();
        latency
    };
    table.compare("exit to event", "µs", alternate(plan.rounds(500), floor, ours), Target::Ratio(5.0));
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

//! The birth and the end of one agent.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Instant;

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
    /// It is below a group.
    Family,
    /// So many others are there, each with a process.
    Others(usize),
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
        ("spawn below a group: request to exec", tiny, Among::Family, Until::Exec, target),
        ("spawn as a root agent: request to exec", tiny, Among::None, Until::Exec, target),
        ("the same among 1,000 agents", tiny, Among::Others(1_000), Until::Exec, Target::None),
        ("spawn as a root agent: request to answer", tiny, Among::None, Until::Answer, Target::None),
        // With a linker that runs on, and takes a CPU from the answer: on few CPUs this is more than half of the time.
        ("the same of a dynamic program", "/bin/true", Among::None, Until::Answer, Target::None),
    ] {
        let argv = [command.to_owned()];
        let program = Program::new(&argv, &[]);
        let bare = Bare::new("floor");
        let mut daemon = Daemon::start("spawn");
        let parent = matches!(among, Among::Family).then(|| daemon.group(None));
        if let Among::Others(others) = among {
            for _ in 0..others {
                let id = daemon.fresh();
                daemon.spawn(AgentSpec::new(id, [tiny, "sleep"]));
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
    let dir = guest::memory_dir();
    let programs = tempfile::tempdir().unwrap();
    let stamp = programs.path().join("stamp");
    let page = Page::open(&stamp);
    let argv = [tiny::write(programs.path(), &stamp)];
    let program = Program::new(&argv, &[]);
    let (spools, watches) = (bare::open_dir(dir.path()), Watches::new().unwrap());
    let bare = Bare::new("floor");
    let mut daemon = Daemon::start("spawn");
    let mut wire = daemon.wire();
    let floor = || {
        let began = monotonic_ns();
        let child = bare.spawn_kept("a", &program, &spools, &watches);
        child.wait();
        bare.remove("a/run-1");
        bare.remove("a");
        std::fs::remove_dir_all(dir.path().join("a")).unwrap();
        watches.read(&mut Vec::new()).unwrap();
        micros(page.get() - began)
    };
    let ours = || {
        let spec = AgentSpec::new(daemon.fresh(), argv.clone());
        let id = spec.id.clone();
        let request = Wire::line(&Call::Spawn(Box::new(spec)));
        let began = monotonic_ns();
        wire.ask(&request);
        daemon.wait(&id);
        daemon.forget();
        micros(page.get() - began)
    };
    let spreads = alternate(plan.rounds(1_000), floor, ours);
    table.compare("spawn to exec, beside all its kernel calls", "µs", spreads, Target::None);
}

/// A request that does nothing, beside a byte that is sent to another process and back: what the way over a socket costs.
pub fn hello(plan: &Plan, table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("echo");
    let listener = UnixListener::bind(&socket).unwrap();
    let (command, variable) = guest::role(&format!("echo:{}", socket.display()));
    let mut process = std::process::Command::new(&command[0]).envs([variable]).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut daemon = Daemon::start("hello");
    let floor = || {
        let began = Instant::now();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        began.elapsed().as_secs_f64() * 1e6
    };
    let ours = || {
        let began = Instant::now();
        daemon.client.call::<Hello>(&Call::Hello(Nothing {})).unwrap();
        began.elapsed().as_secs_f64() * 1e6
    };
    table.compare("a request that does nothing", "µs", alternate(plan.rounds(2_000), floor, ours), Target::None);
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

//! What a herd's size costs: the same things among 100, 1,000 and 10,000 agents, the smallest herd being the measure of the others.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use treeherd::api::method::{Call, Ending, Hello, Nothing};
use treeherd::model::event::Kind;
use treeherd::model::request::Target as Whom;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::{AgentStatus, Receipt};

use crate::Plan;
use crate::guest::{self, Daemon, Follower, Page};
use crate::idle::Memory;
use crate::measure::{Spread, Table, Target};
use crate::tiny;

/// How many agents, each with a process.
const SIZES: [usize; 3] = [100, 1_000, 10_000];

/// How much more may be needed among a hundred times as many: the depth of a tree doubles.
const LOGARITHM: Target = Target::Ratio(2.0);

/// How many clients are connected and say nothing.
const CLIENTS: usize = 1_000;

pub fn scale(plan: &Plan, table: &mut Table) {
    treeherd::kernel::process::raise_descriptor_limit().unwrap();
    let mut smallest = BTreeMap::new();
    for agents in SIZES {
        let mut tell = |what: &'static str, unit, ours: Spread| {
            let name = format!("{what}, among {agents}");
            match smallest.get(what) {
                Some(floor) => table.compare(&name, unit, (*floor, ours), LOGARITHM),
                None => table.tell(&name, unit, ours, Target::None),
            }
            smallest.entry(what).or_insert(ours);
        };
        herd(plan, agents, &mut tell);
    }
    crowd_of_clients(plan, table);
}

fn herd(plan: &Plan, agents: usize, tell: &mut dyn FnMut(&'static str, &'static str, Spread)) {
    let dir = tempfile::tempdir().unwrap();
    let stamp = dir.path().join("stamp");
    let page = Page::open(&stamp);
    let tiny = tiny::write(dir.path(), &stamp);
    let mut daemon = Daemon::start("scale");
    let empty = Memory::of(daemon.pid()).pss;
    let each = |began: Instant| Spread::single(began.elapsed().as_secs_f64() * 1e6 / agents as f64);

    let began = Instant::now();
    for _ in 0..agents {
        let id = daemon.fresh();
        daemon.spawn(AgentSpec::new(id, [&tiny, "and", "only", "stay"]));
    }
    tell("up, each", "µs", each(began));
    let full = Memory::of(daemon.pid()).pss;
    tell("memory, each", "KiB", Spread::single(full.saturating_sub(empty) as f64 / agents as f64));

    let listed = |daemon: &mut Daemon| {
        let began = Instant::now();
        let all: Vec<AgentStatus> = daemon.client.call(&Call::Ps(Default::default())).unwrap();
        assert_eq!(all.len(), agents);
        began.elapsed().as_secs_f64() * 1e6 / agents as f64
    };
    tell("listed, each", "µs", Spread::of((0..plan.rounds(30)).map(|_| listed(&mut daemon)).collect()));
    let (exits, spawns) = births_and_deaths(plan, &mut daemon, &stamp, &page);
    tell("spawn to answer", "µs", spawns);
    tell("exit to event", "µs", exits);

    let began = Instant::now();
    daemon.succeed();
    let all: Vec<AgentStatus> = daemon.client.call(&Call::Ps(Default::default())).unwrap();
    assert!(all.iter().all(|agent| !agent.state.has_ended()) && all.len() == agents);
    tell("kill -9 of the daemon to the next one's list, each", "µs", each(began));

    let began = Instant::now();
    let ending = Ending { target: Whom::All, grace_ms: Some(0) };
    let receipt: Receipt = daemon.client.call(&Call::Terminate(ending)).unwrap();
    assert_eq!(receipt.processes, agents as u64);
    tell("terminated, each", "µs", each(began));
    daemon.forget();
}

/// Has agents come and go beside the others: how late each death was told, and how long each spawn took.
fn births_and_deaths(plan: &Plan, daemon: &mut Daemon, stamp: &Path, page: &Page) -> (Spread, Spread) {
    let mut events = Follower::new(daemon);
    let role = format!("stamp:{}", stamp.display());
    let (mut exits, mut spawns) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds(300) {
        let id = daemon.fresh();
        let began = Instant::now();
        daemon.spawn(guest::play(&id, &role));
        spawns.push(began.elapsed().as_secs_f64() * 1e6);
        let (event, at) = events.await_event(&[Kind::Completed, Kind::Failed], &id);
        assert_eq!(event.kind, Kind::Completed);
        exits.push((at - page.get()) as f64 / 1e3);
        daemon.forget();
    }
    (Spread::of(exits), Spread::of(spawns))
}

/// A request beside so many clients that are connected and ask for nothing, and with nobody else there.
fn crowd_of_clients(plan: &Plan, table: &mut Table) {
    let mut daemon = Daemon::start("clients");
    let measure = |daemon: &mut Daemon| {
        let ask = |_| {
            let began = Instant::now();
            daemon.client.call::<Hello>(&Call::Hello(Nothing {})).unwrap();
            began.elapsed().as_secs_f64() * 1e6
        };
        Spread::of((0..plan.rounds(2_000)).map(ask).collect())
    };
    let alone = measure(&mut daemon);
    let clients: Vec<_> = (0..CLIENTS).map(|_| daemon.connect()).collect();
    let beside = measure(&mut daemon);
    drop(clients);
    table.compare("a request beside 1,000 clients, and alone", "µs", (alone, beside), LOGARITHM);
}

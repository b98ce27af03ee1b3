//! Detection while agents do their worst, all of it at once: every CPU is burnt, a fork bomb is at its limit, an agent thrashes at
//! its memory limit, two write at full speed, a hundred clients follow and do not read, a crowd of processes is being killed and
//! ninety agents die in one instant. And in the middle of it a fork storm is paused and resumed. What counts here is that every end is told, once, with its cause; how soon, the bench
//! `load` measures.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use common::*;
use treeherd::herd::{EventStream, Herd, OutputStream};
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::status::{Cause, State};

/// How many clients follow everything and read nothing.
const DEAF_CLIENTS: usize = 100;

/// How many processes are killed while the deaths are told.
const CROWD: usize = 1_000;

/// How many agents die in one instant.
const VOLLEY: usize = 90;

#[test]
fn role() {
    match std::env::var(ROLE).as_deref() {
        Ok("burn") => loop {
            std::hint::spin_loop();
        },
        // A main process that does not die of what its bombs do, and lights them for ever.
        Ok("bomber") => loop {
            let _at_its_limit = std::process::Command::new("sh").args(["-c", "b() { b & b & wait; }; b"]).status();
        },
        Ok("thrash") => thrash(),
        Ok("storm") => storm(),
        Ok("flood") => {
            let (mut stdout, piece) = (std::io::stdout(), [b'x'; 4096]);
            while stdout.write_all(&piece).is_ok() {}
        }
        _ => {}
    }
}

/// Writes a file that is larger than the memory it may have, and reads it for ever.
fn thrash() {
    let mut file = tempfile::tempfile().unwrap();
    let mut piece = vec![b'x'; 1 << 20];
    (0..96).for_each(|_| file.write_all(&piece).unwrap());
    loop {
        file.seek(SeekFrom::Start(0)).unwrap();
        while file.read(&mut piece).unwrap() > 0 {}
    }
}

/// A client that follows everything, and reads nothing as long as nobody asks it to.
type Deaf = (EventStream, [OutputStream; 2]);

/// Sets everything upon a herd; what is returned has to be held on to.
fn shake(herd: &Own) -> Vec<Deaf> {
    let floods = ["flood-1", "flood-2"].map(|id| herd.role(None, id, "flood", |_| {}));
    herd.role(None, "thrash", "thrash", |spec| spec.limits = limits(&["memory_max=48MiB"]));
    herd.role(None, "bomb", "bomber", |spec| spec.limits = limits(&["pids_max=64"]));
    for number in 0..std::thread::available_parallelism().unwrap().get() {
        herd.role(None, &format!("burn-{number}"), "burn", |_| {});
    }
    let deaf = || {
        let outputs = floods.each_ref().map(|id| herd.follow_output(id).unwrap());
        (herd.follow_events(Default::default()).unwrap(), outputs)
    };
    (0..DEAF_CLIENTS / 3).map(|_| deaf()).collect()
}

/// Starts agents that die when a fifo is opened for writing, each in its own way; returns what has to be told of each.
fn doomed(herd: &Own, fifo: &str) -> BTreeMap<AgentId, (Cause, Option<i32>)> {
    let mut ends = BTreeMap::new();
    for number in 0..VOLLEY {
        let status = i32::try_from(number % 7).unwrap();
        let (script, end) = match number % 3 {
            0 => (format!(": < {fifo}; exit {status}"), (Cause::Exit, Some(status))),
            1 => (format!(": < {fifo}; kill -9 $$"), (Cause::Signal, None)),
            // Somebody else still holds its output when it is gone.
            _ => (format!("sleep 1000 & : < {fifo}; exit 3"), (Cause::Exit, Some(3))),
        };
        ends.insert(herd.spawn(&format!("doomed-{number}"), &script), end);
    }
    ends
}

/// Checks that each of these ends is told once, with its cause, by an event.
fn check(herd: &Own, told: &[Event], ends: &BTreeMap<AgentId, (Cause, Option<i32>)>) {
    for event in told {
        let (cause, status) = ends[event.agent.as_ref().unwrap()];
        let exit = event.exit.as_ref().unwrap();
        assert_eq!((exit.cause, exit.status), (cause, status), "{event:?}");
        assert_eq!(event.kind, if status == Some(0) { Kind::Completed } else { Kind::Failed }, "{event:?}");
    }
    for id in ends.keys() {
        assert_eq!(herd.ends_of(id).len(), 1, "{id} ends once");
    }
}

/// Pauses a fork storm, and checks that it does nothing until it is resumed.
fn pause_in_the_storm(herd: &Own, storm: &AgentId) {
    let cgroup = herd.pause_agent(storm).unwrap().cgroup;
    let stands_still = || {
        let before = cpu_used(&cgroup);
        let_pass("0.05");
        cpu_used(&cgroup) == before
    };
    // The kernel counts a task as frozen right before it is scheduled out, which may take a while here: then it is accounted.
    until("a paused storm uses no CPU", stands_still);
    assert!((0..3).all(|_| stands_still()), "and goes on using none");
    let before = cpu_used(&cgroup);
    herd.resume_agent(storm).unwrap();
    until("it goes on", || cpu_used(&cgroup) > before);
}

#[test]
fn every_end_is_told_once_with_its_cause_under_all_loads_at_once() {
    let herd = herd_with(|settings| {
        settings.herd.bounds.max_agents_per_level = 1000;
        settings.herd.limits = limits(&["pids_max=6000"]);
    });
    let mut events = herd.follow();
    let fifo = herd.dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let ends = doomed(&herd, fifo.to_str().unwrap());
    // Each waits for a fifo that nobody will ever write to: a fork, and no program.
    let never = herd.dir.path().join("never");
    assert!(std::process::Command::new("mkfifo").arg(&never).status().unwrap().success());
    let script = "i=0; while [ $i -lt $CROWD ]; do read x < $NEVER & i=$((i+1)); done; echo all; wait";
    let crowd = herd.spawn_with("crowd", None, script, |spec| {
        spec.env.insert("CROWD".to_owned(), CROWD.to_string());
        spec.env.insert("NEVER".to_owned(), never.to_str().unwrap().to_owned());
    });
    await_line(&herd, &crowd, "all");
    let deaf = shake(&herd);
    let storm = herd.role(None, "storm", "storm", |spec| spec.limits = limits(&["pids_max=100"]));
    // The crowd is killed by somebody else, while the doomed die and one after another more come and go.
    let killer = Herd::connect(&herd.socket()).unwrap();
    let kill = std::thread::spawn({
        let crowd = crowd.clone();
        move || killer.terminate_agent(&crowd, Some(Duration::ZERO)).unwrap()
    });
    let _go = File::options().write(true).open(&fifo).unwrap();
    let told = await_ends(&mut events, &ends.keys().cloned().collect::<Vec<_>>());
    check(&herd, &told, &ends);
    for round in 0..4 {
        let silent = herd.spawn(&format!("silent-{round}"), "exit 3");
        assert_eq!(await_event(&mut events, Kind::Failed, &silent).exit.unwrap().status, Some(3));
        // The main process is gone though a grandchild holds its output and will not go.
        let held = herd.spawn(&format!("held-{round}"), "(trap '' TERM; sleep 1000) & exit 4");
        assert_eq!(await_event(&mut events, Kind::Failed, &held).exit.unwrap().status, Some(4));
    }
    pause_in_the_storm(&herd, &storm);
    let receipt = kill.join().unwrap();
    assert!(receipt.processes >= CROWD as u64 && receipt.agents.iter().all(|agent| agent.survivors == 0));
    // Who is a load is alive: nobody was taken for another.
    for id in ["bomb", "thrash", "flood-1", "flood-2", "burn-0", "storm"] {
        assert_eq!(herd.agent_status(&name(id)).unwrap().state, State::Running, "{id}");
    }
    let stats = herd.stats().unwrap();
    assert!(stats.detection.count >= (VOLLEY + 8) as u64, "{:?}", stats.detection);
    let of_causes: u64 = stats.detection_by_cause.values().map(|latency| latency.count).sum();
    assert_eq!(of_causes, stats.detection.count, "each end has its cause");
    assert!(stats.detection_by_cause[&Cause::Signal].count >= (VOLLEY / 3) as u64);
    println!("{:?}", stats.detection);
    drop(deaf);
    herd.finish();
}

//! Failures that are found in runs that go on, each kind with its cause, on real processes.
#![allow(clippy::unwrap_used)]

mod common;

use assert_cmd::cargo::cargo_bin;
use common::*;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use treeherd::herd::EventStream;
use treeherd::model::error::Code;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::request::Target;
use treeherd::model::rule::Action;
use treeherd::model::spec::AgentSpec;
use treeherd::model::stall::StallRule;
use treeherd::model::status::{Cause, State};

/// What an agent of this binary does.
#[test]
fn role() {
    let wait = |ms| std::thread::park_timeout(Duration::from_millis(ms));
    match std::env::var(ROLE).unwrap_or_default().as_str() {
        // As a runtime does that waits for the network: a timer, now and then, and hardly anything behind it.
        "tick" => (0..4000).for_each(|_| wait(250)),
        "talk" => (0..4000).for_each(|line| {
            println!("{line}");
            wait(100);
        }),
        _ => {}
    }
}

fn stall(spec: &mut AgentSpec, after_ms: u64, action: Action) {
    spec.stall = Some(StallRule { after: Duration::from_millis(after_ms), action });
}

/// Starts an agent that does nothing, and has a rule on that.
fn idler(herd: &Own, parent: Option<&AgentId>, id: &str, after_ms: u64, action: Action) -> AgentId {
    herd.program(parent, id, &["sleep", "1000"], |spec| stall(spec, after_ms, action))
}

/// Waits until it is told that an agent has done nothing for all of its time.
fn await_stall(events: &mut EventStream, id: &AgentId, after_ms: u64) -> Event {
    std::iter::from_fn(|| Some(await_event(events, Kind::Stalled, id)))
        .find(|event| event.quiet_ms == Some(after_ms))
        .unwrap()
}

fn stalls(herd: &Own, id: &AgentId) -> Vec<(Kind, Option<u64>)> {
    let events = herd.events_of(id).into_iter();
    events.filter(|it| matches!(it.kind, Kind::Stalled | Kind::Stirred)).map(|it| (it.kind, it.quiet_ms)).collect()
}

#[test]
fn a_run_beyond_its_timeout_has_failed_and_all_of_it_is_ended() {
    let herd = herd();
    let mut events = herd.follow();
    // Its main process goes at the polite signal, what it has started does not hear it.
    let id = herd.spawn_with(
        "late",
        None,
        "trap 'exit 0' TERM; (trap '' TERM; sleep 1000) & echo up; sleep 1000 & wait",
        |spec| {
            spec.run_timeout = Some(Duration::from_millis(300));
            spec.grace = Duration::from_millis(300);
        },
    );
    let failed = await_event(&mut events, Kind::Failed, &id);
    let exit = failed.exit.unwrap();
    assert_eq!((exit.cause, exit.status), (Cause::Timeout, None), "told before anything of it has ended");
    assert!(exit.error.unwrap().contains("300ms"), "{}", failed.message);
    let [status] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
    let exit = status.exit.unwrap();
    assert_eq!((status.state, exit.cause, exit.status), (State::Failed, Cause::Timeout, Some(0)));
    assert_eq!(herd.ends_of(&id), [Kind::Failed], "one terminal event");
    assert_eq!(herd.processes(), Vec::<i32>::new());
    herd.finish();
}

#[test]
fn a_stall_is_told_at_half_and_at_all_of_its_time_and_goes_on() {
    let herd = herd();
    let mut events = herd.follow();
    let id = idler(&herd, None, "a", 1000, Action::Notice);
    let told = await_stall(&mut events, &id, 1000);
    assert_eq!(told.message, "no output and no CPU for 1s");
    assert_eq!(stalls(&herd, &id), [(Kind::Stalled, Some(500)), (Kind::Stalled, Some(1000))]);
    assert_eq!(herd.agent_status(&id).unwrap().state, State::Running, "it is told, and nothing else");
    let explained = herd.explain(&id).unwrap();
    assert!(explained.because.iter().any(|why| why.contains("no output and used no CPU")), "{explained:?}");
    herd.finish();
}

#[test]
fn a_stall_fails_the_run_if_the_rule_says_so() {
    let herd = herd();
    let id = idler(&herd, None, "a", 1000, Action::Fail);
    let [status] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
    let exit = status.exit.unwrap();
    assert_eq!((status.state, exit.cause), (State::Failed, Cause::Stall));
    assert_eq!(exit.error.as_deref(), Some("no output and no CPU for 1s"));
    assert_eq!(herd.stats().unwrap().causes[&Cause::Stall], 1);
    herd.finish();
}

#[test]
fn a_runtime_that_ticks_does_nothing_and_who_computes_or_talks_does() {
    let herd = herd();
    let mut events = herd.follow();
    let busy = herd.spawn_with("busy", None, "while :; do :; done", |spec| stall(spec, 4000, Action::Fail));
    let talker = herd.role(None, "talker", "talk", |spec| stall(spec, 4000, Action::Fail));
    let ticker = herd.role(None, "ticker", "tick", |spec| stall(spec, 4000, Action::Notice));
    await_stall(&mut events, &ticker, 4000);
    assert_eq!((stalls(&herd, &busy), stalls(&herd, &talker)), (vec![], vec![]));
    herd.finish();
}

#[test]
fn output_ends_a_stall_and_that_is_told() {
    let herd = herd();
    let mut events = herd.follow();
    let pipe = herd.dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let id = herd.program(None, "a", &["cat", pipe.to_str().unwrap()], |spec| stall(spec, 2000, Action::Notice));
    let told = await_event(&mut events, Kind::Stalled, &id);
    assert_eq!(told.quiet_ms, Some(1000), "half of it first");
    // As long as it is open, there may come more.
    let mut end = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    std::io::Write::write_all(&mut end, b"x").unwrap();
    await_event(&mut events, Kind::Stirred, &id);
    await_stall(&mut events, &id, 2000);
    herd.finish();
}

#[test]
fn a_parent_that_waits_for_a_live_child_is_not_stalled() {
    let herd = herd();
    let mut events = herd.follow();
    let parent = idler(&herd, None, "parent", 3000, Action::Fail);
    let child = herd.sleeper(Some(&parent), "child");
    let witness = idler(&herd, None, "witness", 4000, Action::Notice);
    await_stall(&mut events, &witness, 4000);
    assert_eq!(stalls(&herd, &parent), [], "somebody else was found out beside it meanwhile");
    assert_eq!(herd.agent_status(&parent).unwrap().state, State::Running);
    herd.terminate(ids(&[&child]), Some(Duration::ZERO)).unwrap();
    await_event(&mut events, Kind::Failed, &parent);
    herd.finish();
}

#[test]
fn the_time_of_a_stall_stands_still_in_a_pause() {
    let herd = herd();
    let mut events = herd.follow();
    let paused = idler(&herd, None, "paused", 3000, Action::Fail);
    herd.pause(ids(&[&paused])).unwrap();
    let witness = idler(&herd, None, "witness", 4000, Action::Notice);
    await_stall(&mut events, &witness, 4000);
    assert_eq!((stalls(&herd, &paused), herd.ends_of(&paused)), (vec![], vec![]));
    herd.resume(Target::All).unwrap();
    let failed = await_event(&mut events, Kind::Failed, &paused);
    assert_eq!(failed.exit.unwrap().cause, Cause::Stall);
    herd.finish();
}

#[test]
fn the_next_daemon_looks_for_stalls_too() {
    let mut herd = daemon(&[]);
    let id = idler(&herd, None, "a", 2000, Action::Fail);
    herd.crash();
    herd.restart();
    let [status] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
    assert_eq!((status.run.0, status.exit.unwrap().cause), (1, Cause::Stall));
    herd.finish();
}

#[test]
fn a_stall_that_is_too_short_or_nobodys_is_refused() {
    let herd = herd();
    let hasty = herd.refused_with("a", |spec| stall(spec, 999, Action::Notice));
    assert!(
        hasty.code == Code::BadValue && hasty.message.contains("stall: must be between 1s and a year (got 999ms)"),
        "{hasty}"
    );
    let mut group = AgentSpec::group(name("g"));
    stall(&mut group, 1000, Action::Notice);
    let refused = herd.refused(None, group);
    assert!(refused.message.contains("stall: a group has no process"), "{refused}");
    herd.finish();
}

/// Asks for a spawn that the kernel holds back: somebody else has frozen the cgroup that the child is born in.
fn hang(herd: &Own, id: &AgentId, freezer: &Path) -> Child {
    std::fs::write(freezer, "1").unwrap();
    let mut spawn = Command::new(cargo_bin!("treeherd"));
    spawn.arg("--socket").arg(herd.socket()).args(["spawn", id.as_str(), "--parent", "boss", "--", "sleep", "1000"]);
    let spawn = spawn.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is on its way", || herd.agent_status(id).is_ok_and(|it| it.state == State::Starting));
    spawn
}

#[test]
fn a_spawn_that_hangs_holds_nobody_up() {
    let herd = herd_with(|settings| settings.herd.spawn_timeout = Duration::from_secs(3600));
    let boss = herd.sleeper(None, "boss");
    let freezer = Path::new(&herd.agent_status(&boss).unwrap().cgroup).join("cgroup.freeze");
    for round in 0..3 {
        let (slow, quick) = (name(&format!("slow{round}")), format!("quick{round}"));
        let mut hung = hang(&herd, &slow, &freezer);
        // What comes meanwhile is answered, started and told.
        let mut events = herd.follow();
        let quick = herd.spawn(&quick, "exit 3");
        assert_eq!(await_event(&mut events, Kind::Failed, &quick).exit.unwrap().status, Some(3));
        assert_eq!(herd.agent_status(&slow).unwrap().state, State::Starting);
        std::fs::write(&freezer, "0").unwrap();
        assert!(hung.wait().unwrap().success());
        assert_eq!(herd.agent_status(&slow).unwrap().state, State::Running);
        // Whoever carried it out is back.
        let last = herd.spawn(&format!("last{round}"), "exit 0");
        await_event(&mut events, Kind::Completed, &last);
    }
    herd.finish();
}

#[test]
fn a_spawn_that_hangs_for_too_long_is_ended_and_told() {
    let herd = herd_with(|settings| settings.herd.spawn_timeout = Duration::from_secs(1));
    let boss = herd.sleeper(None, "boss");
    let freezer = Path::new(&herd.agent_status(&boss).unwrap().cgroup).join("cgroup.freeze");
    let hung = hang(&herd, &name("slow"), &freezer).wait_with_output().unwrap();
    assert!(!hung.status.success());
    let why = String::from_utf8_lossy(&hung.stderr).into_owned();
    assert!(why.contains("spawn slow: its program did not start within 1s\n  help: "), "{why}");
    assert!(herd.agent_status(&name("slow")).is_err(), "half a spawn never exists");
    // What it was started below is still frozen, and ends all the same.
    herd.finish();
}

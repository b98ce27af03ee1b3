//! Recovery that follows the tree, on real processes: strategies, escalation, turns, budgets, the order of an end.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::process::Command;
use std::time::Duration;
use treeherd::model::error::Code;
use treeherd::model::event::{Event, Kind};
use treeherd::model::explain::Explanation;
use treeherd::model::id::{AgentId, Run};
use treeherd::model::spec::{AgentSpec, RestartPolicy, Strategy};
use treeherd::model::status::{Cause, State};

fn comes_back(spec: &mut AgentSpec) {
    (spec.restart.policy, spec.restart.delay) = (RestartPolicy::OnFailure, Duration::from_millis(50));
}

/// Fails once, and then runs: a file remembers.
fn fails_once(herd: &Own, flag: &str) -> String {
    let file = herd.dir.path().join(flag);
    let file = file.display();
    format!("if test -e {file}; then exec sleep 1000; else touch {file}; exit 3; fi")
}

fn supervisor(herd: &Own, id: &str, change: impl FnOnce(&mut AgentSpec)) -> AgentId {
    let mut spec = AgentSpec::group(name(id));
    change(&mut spec);
    herd.register_agent(spec).unwrap().id
}

fn started(herd: &Own, id: &AgentId) -> Vec<Event> {
    herd.events_of(id).into_iter().filter(|event| event.kind == Kind::Started).collect()
}

fn await_run(events: &mut treeherd::herd::EventStream, id: &AgentId, run: u32) {
    while await_event(events, Kind::Started, id).run != Some(Run(run)) {}
}

#[test]
fn one_for_all_ends_the_siblings_and_starts_all_anew_but_what_was_stopped() {
    let herd = herd();
    let parent = supervisor(&herd, "parent", |spec| spec.children.strategy = Strategy::OneForAll);
    let first = herd.sleeper(Some(&parent), "first");
    let below = herd.sleeper(Some(&first), "below");
    let stopped = herd.sleeper(Some(&parent), "stopped");
    herd.terminate_agent(&stopped, None).unwrap();
    let old = [&first, &below].map(|id| herd.process_for_agent(id).unwrap().unwrap());
    let mut events = herd.follow();
    let failing = herd.spawn_with("failing", Some(&parent), &fails_once(&herd, "flag"), comes_back);
    await_run(&mut events, &failing, 2);
    assert!(old.iter().all(|pid| process_state(*pid).is_none_or(|state| state == 'Z')), "no old run lives on");
    let status = herd.agent_status(&first).unwrap();
    let exit = status.exit.unwrap();
    assert_eq!((exit.cause, exit.by.as_deref()), (Cause::Terminated, Some("strategy one-for-all of parent")));
    for id in [&first, &below] {
        while started(&herd, id).len() < 2 {
            await_event(&mut events, Kind::Started, id);
        }
        assert_eq!(herd.ends_of(id), [Kind::Terminated], "one terminal event for the run that has ended");
    }
    assert_eq!(herd.agent_status(&stopped).unwrap().state, State::Terminated);
    let ended = |id: &AgentId| herd.events_of(id).iter().find(|event| event.kind == Kind::Terminated).unwrap().seq;
    assert!(ended(&below) < ended(&first), "children before parents");
    herd.finish();
}

#[test]
fn one_restart_of_a_child_too_many_fails_its_parent_and_all_start_anew() {
    let herd = herd();
    let mut events = herd.follow();
    let parent = herd.spawn_with("parent", None, "exec sleep 1000", |spec| {
        comes_back(spec);
        spec.children.intensity = Some(2);
    });
    let sibling = herd.sleeper(Some(&parent), "sibling");
    let file = herd.dir.path().join("runs");
    let script = format!("echo run >> {0}; test $(wc -l < {0}) -gt 3 && exec sleep 1000; exit 7", file.display());
    let child = herd.spawn_with("child", Some(&parent), &script, comes_back);
    let told = await_event(&mut events, Kind::Escalated, &parent);
    assert!(told.message.contains("more than 2 restarts within 10m: the last was child, exit status 7"), "{told:?}");
    let failed = await_event(&mut events, Kind::Failed, &parent);
    assert_eq!(failed.exit.unwrap().cause, Cause::Child);
    await_run(&mut events, &child, 4);
    assert_eq!(started(&herd, &child).len(), 4);
    for id in [&parent, &sibling] {
        until("all start anew", || started(&herd, id).len() == 2);
    }
    assert_eq!(herd.ends_of(&parent), [Kind::Failed]);
    assert_eq!(herd.ends_of(&child), [Kind::Failed; 3]);
    herd.finish();
}

#[test]
fn the_end_of_a_significant_child_ends_its_parent() {
    let herd = herd();
    let parent = supervisor(&herd, "parent", |_| {});
    let other = herd.sleeper(Some(&parent), "other");
    herd.spawn_with("child", Some(&parent), "exit 0", |spec| spec.significant = true);
    let all = herd.wait(&[parent, other]).unwrap();
    assert_eq!([all[0].state, all[1].state], [State::Terminated; 2]);
    let failing = herd.sleeper(None, "failing");
    herd.spawn_with("bad", Some(&failing), "exit 4", |spec| spec.significant = true);
    let [status] = herd.wait(std::slice::from_ref(&failing)).unwrap().try_into().unwrap();
    let exit = status.exit.unwrap();
    assert_eq!((status.state, exit.cause), (State::Failed, Cause::Child));
    assert!(exit.error.unwrap().contains("significant child bad has failed: exit status 4"));
    let error = herd.refused_with("nobody", |spec| spec.significant = true);
    assert_eq!(error.code, Code::BadValue, "{error}");
    herd.finish();
}

#[test]
fn agents_that_crash_in_a_loop_wait_for_their_turn_and_the_herd_stays_usable() {
    let herd = herd_with(|settings| {
        settings.herd.bounds.max_agents_per_level = 100;
        (settings.herd.restart_rate, settings.herd.restart_burst) = ("20/s".parse().unwrap(), 10);
    });
    let mut events = herd.follow();
    for index in 0..60 {
        herd.spawn_with(&format!("crash-{index}"), None, "exit 1", |spec| {
            comes_back(spec);
            spec.restart.delay = Duration::ZERO;
            spec.restart.intensity = 3;
        });
    }
    let told = await_event(&mut events, Kind::Delayed, &name("crash-20"));
    assert!(told.message.contains("waits for its turn") && told.delay_ms.is_some(), "{told:?}");
    let asked = herd.sleeper(None, "asked");
    assert_eq!(herd.agent_status(&asked).unwrap().state, State::Running, "what is asked for waits for nobody");
    let all: Vec<AgentId> = (0..60).map(|index| name(&format!("crash-{index}"))).collect();
    let ends = herd.wait(&all).unwrap();
    assert!(ends.iter().all(|status| status.state == State::Failed && status.run == Run(4)));
    let restarts = all.iter().flat_map(|id| started(&herd, id)).filter(|event| event.run != Some(Run(1)));
    let mut times: Vec<u64> = restarts.map(|event| event.time.0).collect();
    times.sort_unstable();
    assert_eq!(times.len(), 180);
    // 10 at once, 170 others 50 ms apart: 8.5 s as they are ordered, a little less or more as they are told.
    assert!(times[179] - times[0] >= 6_000_000_000, "{} ms for all", (times[179] - times[0]) / 1_000_000);
    herd.finish();
}

#[test]
fn a_stop_ends_children_first_and_a_deaf_one_does_not_cost_its_parent_the_signal() {
    let herd = herd();
    let polite = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 1000 & wait; done";
    let parent = herd.spawn("parent", polite);
    let child = herd.spawn_below(&parent, "child", polite);
    let deaf = herd.spawn_below(&parent, "deaf", "trap '' TERM; echo up; while :; do sleep 1000; done");
    for id in [&parent, &child, &deaf] {
        await_line(&herd, id, "up");
    }
    herd.terminate_agent(&parent, Some(Duration::from_secs(2))).unwrap();
    let end = |id: &AgentId| herd.events_of(id).into_iter().find(|event| event.kind == Kind::Terminated).unwrap();
    let [first, second, last] = [&child, &parent, &deaf].map(end);
    assert!(first.seq < second.seq.min(last.seq));
    let [first, second, last] = [first, second, last].map(|event| event.exit.unwrap());
    assert_eq!((first.overdue, second.overdue, last.overdue), (false, false, true));
    assert_eq!((second.status, last.signal.as_deref()), (Some(0), Some("SIGKILL")), "the parent heard, in time");
    assert!(herd.events_of(&deaf).iter().any(|event| event.kind == Kind::Overdue));
    herd.finish();
}

#[test]
fn a_spawn_budget_is_used_up_for_good() {
    let herd = herd();
    let parent = supervisor(&herd, "parent", |spec| spec.spawn_budget = Some(2));
    let child = herd.sleeper(Some(&parent), "child");
    herd.sleeper(Some(&child), "below");
    herd.terminate_agent(&child, Some(Duration::ZERO)).unwrap();
    let error = herd.refused(Some(&parent), AgentSpec::new(name("third"), ["sleep", "1000"]));
    assert_eq!(error.code, Code::BoundReached);
    assert!(error.to_string().contains("spawn_budget = 2"), "{error}");
    herd.restart_agent(&child).unwrap();
    herd.finish();
}

#[test]
fn explain_tells_why_and_what_comes_next() {
    let herd = herd();
    let parent = supervisor(&herd, "parent", |spec| {
        (spec.children.strategy, spec.children.intensity) = (Strategy::RestForOne, Some(5));
    });
    let id = herd.spawn_with("failing", Some(&parent), "exit 3", |spec| {
        (spec.restart.policy, spec.restart.delay) = (RestartPolicy::OnFailure, Duration::from_secs(50));
    });
    let mut events = herd.follow();
    if herd.agent_status(&id).unwrap().state != State::Backoff {
        await_event(&mut events, Kind::Restarting, &id);
    }
    let told = herd.explain(&id).unwrap();
    assert_eq!(told.state, State::Backoff);
    assert!(told.because.iter().any(|line| line.contains("exit status 3")), "{told:?}");
    assert!(told.next.iter().any(|next| next.what.contains("started again") && next.in_ms.is_some()), "{told:?}");
    let running = herd.sleeper(Some(&parent), "running");
    let told = herd.explain(&running).unwrap();
    assert!(told.next.iter().any(|next| next.what.contains("not started again")), "{told:?}");
    herd.pause_agent(&running).unwrap();
    let told = herd.explain(&running).unwrap();
    assert!(told.because.iter().any(|line| line.starts_with("it was paused by ")), "{told:?}");
    assert_eq!(told.waiting_for, ["a resume of running"]);
    let binary = env!("CARGO_BIN_EXE_treeherd");
    let socket = herd.socket();
    let run = |extra: &[&str]| {
        let output = Command::new(binary).args(["explain", "failing", "--socket"]).arg(&socket).args(extra).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let text = run(&[]);
    assert!(text.starts_with("failing is backoff") && text.contains("next"), "{text}");
    let told: Explanation = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!(told.id, id);
    herd.finish();
}

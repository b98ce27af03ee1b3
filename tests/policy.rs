//! Words of the policies, each on real processes: what it says is what happens, and what another one says is not.
//!
//! Here are those that no other file is about; that each has a test, `tidy` demands.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::time::Duration;
use treeherd::herd::EventStream;
use treeherd::model::event::Kind;
use treeherd::model::id::{AgentId, Level, Run};
use treeherd::model::ready::Ready;
use treeherd::model::request::Target;
use treeherd::model::rule::Rule;
use treeherd::model::spec::{Admission, AgentSpec, OnMainExit, RestartPolicy, StopSignal, Strategy};
use treeherd::model::status::{Cause, State};
use treeherd::model::stream::Streams;

/// Starts an agent and waits for its end: how it ended, and in which run.
fn end_of(herd: &Own, id: &str, script: &str, change: impl FnOnce(&mut AgentSpec)) -> (State, u32) {
    let id = herd.spawn_with(id, None, script, change);
    let [status] = herd.wait(&[id]).unwrap().try_into().unwrap();
    (status.state, status.run.0)
}

#[test]
fn each_restart_policy_brings_back_what_it_says_and_nothing_else() {
    let herd = herd();
    let mut number = 0;
    let mut end = |policy, script: &str| {
        number += 1;
        end_of(&herd, &format!("a{number}"), script, |spec| {
            (spec.restart.policy, spec.restart.delay, spec.restart.intensity) = (policy, Duration::ZERO, 2);
        })
    };
    assert_eq!(end(RestartPolicy::Never, "exit 0"), (State::Completed, 1));
    assert_eq!(end(RestartPolicy::Never, "exit 1"), (State::Failed, 1));
    assert_eq!(end(RestartPolicy::OnFailure, "exit 0"), (State::Completed, 1));
    assert_eq!(end(RestartPolicy::OnFailure, "exit 1"), (State::Failed, 3));
    assert_eq!(end(RestartPolicy::Always, "exit 0"), (State::Failed, 3), "it is given up");
    assert_eq!(end(RestartPolicy::Always, "exit 1"), (State::Failed, 3));
    herd.finish();
}

#[test]
fn each_strategy_starts_anew_whom_it_names_and_nobody_else() {
    let herd = herd();
    let mut events = herd.follow();
    for (strategy, before, after) in
        [(Strategy::OneForOne, 1, 1), (Strategy::RestForOne, 1, 2), (Strategy::OneForAll, 2, 2)]
    {
        let mut spec = AgentSpec::group(name(strategy.name()));
        spec.children.strategy = strategy;
        let parent = herd.register_agent(spec).unwrap().id;
        let named = |what: &str| format!("{what}-{strategy}");
        let first = herd.sleeper(Some(&parent), &named("first"));
        let flag = herd.dir.path().join(named("flag"));
        // Its first run fails when the file is there, and its second one runs on.
        let script = format!(
            "mkdir {0}-first || exec sleep 1000; while ! test -e {0}; do sleep 0.01; done; exit 3",
            flag.display()
        );
        let failing = herd.spawn_with(&named("failing"), Some(&parent), &script, |spec| {
            (spec.restart.policy, spec.restart.delay) = (RestartPolicy::OnFailure, Duration::ZERO);
        });
        let last = herd.sleeper(Some(&parent), &named("last"));
        std::fs::write(&flag, "").unwrap();
        while await_event(&mut events, Kind::Started, &failing).run != Some(Run(2)) {}
        let run = |id: &AgentId| herd.agent_status(id).unwrap().run.0;
        until("all start anew", || (run(&first), run(&failing), run(&last)) == (before, 2, after));
        // Whoever starts anew has ended before the first of them is started.
        let ends = [&first, &last].map(|id| herd.ends_of(id).len());
        assert_eq!(ends, [before, after].map(|runs: u32| runs as usize - 1), "{strategy}");
    }
    herd.finish();
}

#[test]
fn what_the_main_process_leaves_behind_is_ended_or_waited_for() {
    let herd = herd();
    let mut events = herd.follow();
    let leave = |id: &str, policy| {
        let up = herd.dir.path().join(id);
        let script = format!(
            "(trap 'echo ended; exit' TERM; echo up; : >{0}; while :; do sleep 0.01; done) & until [ -e {0} ]; do sleep 0.01; done",
            up.display()
        );
        herd.spawn_with(id, None, &script, |spec| spec.on_main_exit = policy)
    };
    let waited = leave("waited", OnMainExit::Wait);
    let ended = leave("ended", OnMainExit::Terminate);
    await_event(&mut events, Kind::Completed, &ended);
    assert_eq!(output(&herd, &ended), b"up\nended\n", "in order, by the stop signal");
    let status = herd.agent_status(&waited).unwrap();
    assert_eq!((status.state, herd.ends_of(&waited)), (State::Running, vec![]));
    herd.finish();
}

#[test]
fn a_full_tree_refuses_or_has_wait_as_the_request_says() {
    let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = 1);
    let mut events = herd.follow();
    let first = herd.sleeper(None, "first");
    let refused = herd.refused_with("refused", |spec| spec.admission = Admission::Refuse);
    assert!(refused.message.contains("max_agents_per_level = 1 is reached"), "{refused}");
    let queued = herd.program(None, "queued", &["sleep", "1000"], |spec| spec.admission = Admission::Queue);
    await_event(&mut events, Kind::Queued, &queued);
    assert_eq!(herd.agent_status(&queued).unwrap().state, State::Queued);
    herd.terminate_agent(&first, None).unwrap();
    await_event(&mut events, Kind::Started, &queued);
    herd.finish();
}

#[test]
fn the_polite_signal_and_the_grace_are_the_agents_own() {
    let herd = herd();
    let script = "trap 'echo usr1; exit 0' USR1; trap 'echo term' TERM; echo up; while :; do sleep 0.01; done";
    let polite = herd.spawn_with("polite", None, script, |spec| spec.stop_signal = StopSignal(libc::SIGUSR1));
    let deaf = herd.spawn_with("deaf", None, "trap '' TERM; echo up; while :; do sleep 0.01; done", |spec| {
        spec.grace = Duration::from_millis(100);
    });
    for id in [&polite, &deaf] {
        await_line(&herd, id, "up");
    }
    // Somebody whose time is over before the usual grace would be.
    let timeout = |spec: &mut AgentSpec| spec.run_timeout = Some(Duration::from_secs(7));
    let witness = herd.spawn_with("witness", None, "exec sleep 1000", timeout);
    let signals = |id| herd.terminate_agent(id, None).unwrap().agents.remove(0).signals;
    assert!(signals(&deaf).contains_key("SIGKILL"));
    assert_eq!(herd.ends_of(&witness), [], "it was not given more time than it has asked for");
    assert!(signals(&polite).contains_key("SIGUSR1"));
    assert_eq!(output(&herd, &polite), b"up\nusr1\n");
    let overdue = |id| herd.agent_status(id).unwrap().exit.unwrap().overdue;
    assert_eq!((overdue(&polite), overdue(&deaf)), (false, true));
    herd.finish();
}

#[test]
fn each_pattern_looks_at_its_stream_and_at_no_other() {
    let herd = herd();
    let mut events = herd.follow();
    let on = |stream| Rule { stream, ..Rule::new("word".parse().unwrap()) };
    let id = herd.spawn_with("a", None, "echo word; echo word >&2", |spec| {
        spec.rules = [Streams::Stdout, Streams::Stderr, Streams::Both].map(on).to_vec();
    });
    herd.wait(std::slice::from_ref(&id)).unwrap();
    // An end does not wait until what means no failure has been looked at.
    let lines = || herd.show(&id).unwrap().rules.iter().map(|count| count.lines).collect::<Vec<_>>();
    until("each line is counted", || lines().iter().sum::<u64>() >= 4);
    assert_eq!(lines(), [1, 1, 2]);
    let ready = |id: &str, stream, script| {
        let pattern = "^up$".parse().unwrap();
        herd.spawn_with(id, None, script, |spec| spec.ready = Some(Ready::Pattern { pattern, stream }))
    };
    let wrong = ready("wrong", Streams::Stdout, "echo up >&2; exec sleep 1000");
    let right = ready("right", Streams::Stderr, "echo up >&2; exec sleep 1000");
    await_event(&mut events, Kind::Ready, &right);
    assert_eq!(herd.agent_status(&wrong).unwrap().state, State::Starting);
    herd.finish();
}

#[test]
fn every_clock_of_a_paused_agent_stands_still() {
    let herd = herd();
    let mut events = herd.follow();
    let time = Duration::from_secs(3);
    let sleep = "exec sleep 1000";
    let lasting = herd.spawn_with("lasting", None, sleep, |spec| spec.run_timeout = Some(time));
    let starting = herd.spawn_with("starting", None, sleep, |spec| {
        (spec.ready, spec.ready_timeout) = (Some(Ready::Notify), Some(time));
    });
    let beating = herd.spawn_with("beating", None, sleep, |spec| spec.watchdog = Some(time));
    let coming = herd.spawn_with("coming", None, "exit 1", |spec| {
        (spec.restart.policy, spec.restart.delay, spec.restart.jitter) = (RestartPolicy::Always, time, 0.0);
    });
    await_event(&mut events, Kind::Restarting, &coming);
    let all = [&lasting, &starting, &beating, &coming];
    herd.pause(ids(&all)).unwrap();
    // Somebody who has more time, and is not paused, has used it up.
    let witness =
        herd.spawn_with("witness", None, sleep, |spec| spec.run_timeout = Some(time + Duration::from_secs(1)));
    await_event(&mut events, Kind::Failed, &witness);
    let state = |id: &AgentId| herd.agent_status(id).unwrap().state;
    assert_eq!(all.map(state), [State::Paused; 4]);
    herd.resume(Target::All).unwrap();
    assert_eq!(all.map(state), [State::Running, State::Starting, State::Running, State::Backoff]);
    let ended = await_ends(&mut events, &[lasting, starting, beating]);
    let causes: Vec<_> = ended.iter().map(|event| event.exit.as_ref().unwrap().cause).collect();
    assert!([Cause::Timeout, Cause::Ready, Cause::Watchdog].iter().all(|cause| causes.contains(cause)), "{causes:?}");
    while await_event(&mut events, Kind::Started, &coming).run != Some(Run(2)) {}
    herd.finish();
}

#[test]
fn agents_levels_sessions_and_the_whole_herd_are_addressed() {
    let herd = herd();
    let root = herd.sleeper(None, "root");
    let child =
        herd.program(Some(&root), "child", &["sleep", "1000"], |spec| spec.session = Some("s".parse().unwrap()));
    let other = herd.sleeper(None, "other");
    for (target, expected) in [
        (Target::Ids(vec![root.clone()]), vec![&root]),
        (Target::Level(Level(1)), vec![&child]),
        (Target::Session("s".parse().unwrap()), vec![&child]),
        (Target::All, vec![&root, &child, &other]),
    ] {
        let paused = herd.pause(target.clone()).unwrap();
        assert_eq!(paused.iter().map(|agent| &agent.id).collect::<Vec<_>>(), expected, "{target:?}");
        assert_eq!(herd.resume(target).unwrap().len(), expected.len());
    }
    let receipt = herd.terminate(Target::Session("s".parse().unwrap()), None).unwrap();
    assert_eq!(receipt.agents.iter().map(|agent| &agent.id).collect::<Vec<_>>(), [&child]);
    herd.finish();
}

/// Waits for an event of the herd's own.
fn await_herds(events: &mut EventStream, kind: Kind) {
    let found = events.by_ref().filter_map(|note| note.event).any(|event| event.kind == kind);
    assert!(found, "no {kind}");
}

#[test]
fn a_storm_of_restarts_is_told_at_its_begin_and_at_its_end() {
    let herd = herd_with(|settings| {
        (settings.herd.restart_rate, settings.herd.restart_burst) = ("5/s".parse().unwrap(), 1);
    });
    let mut events = herd.follow();
    for id in ["a", "b", "c", "d"] {
        herd.spawn_with(id, None, "exit 1", |spec| {
            (spec.restart.policy, spec.restart.delay) = (RestartPolicy::OnFailure, Duration::ZERO);
            spec.restart.intensity = 2;
        });
    }
    await_herds(&mut events, Kind::Storm);
    await_herds(&mut events, Kind::Calm);
    herd.finish();
}

#[test]
fn a_death_that_is_told_later_than_the_bound_is_told_to_be_late() {
    let herd = herd_with(|settings| settings.herd.failure_detection_timeout = Duration::from_nanos(1));
    let mut events = herd.follow();
    herd.spawn("a", "exit 1");
    await_herds(&mut events, Kind::Late);
    assert_eq!(herd.stats().unwrap().detection.late, 1);
    herd.finish();
}

#[test]
fn what_is_registered_is_ended_and_the_herds_end_are_told() {
    let herd = herd();
    let mut events = herd.follow();
    let group = herd.group(None, "group");
    await_event(&mut events, Kind::Registered, &group);
    assert_eq!(herd.agent_status(&group).unwrap().state, State::Group);
    let go = herd.dir.path().join("go");
    let script =
        format!("trap 'asked=1' TERM; echo up; until test -n \"$asked\" -a -e {}; do sleep 0.01; done", go.display());
    let slow = herd.spawn_below(&group, "slow", &script);
    await_line(&herd, &slow, "up");
    std::thread::scope(|scope| {
        let ending = scope.spawn(|| herd.terminate_agent(&slow, None).unwrap());
        await_event(&mut events, Kind::Stopping, &slow);
        assert_eq!(herd.agent_status(&slow).unwrap().state, State::Stopping);
        std::fs::write(&go, "").unwrap();
        assert_eq!(ending.join().unwrap().agents.len(), 1);
    });
    herd.finish();
    await_herds(&mut events, Kind::HerdStopping);
}

//! Output rules on real processes: what is told, what fails, and that no flood holds anybody up.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::time::Duration;
use treeherd::model::error::Code;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::{AgentId, Run};
use treeherd::model::rule::Rule;
use treeherd::model::spec::{AgentSpec, OnMainExit, RestartPolicy};
use treeherd::model::status::{Cause, State};
use treeherd::model::stream::Stream;
use treeherd::model::units::Bytes;

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Lists what rules have found in an agent's output, as far as it is told.
fn notices(herd: &Own, id: &AgentId) -> Vec<Event> {
    herd.events_of(id).into_iter().filter(|event| event.kind == Kind::Notice).collect()
}

/// Lists how many lines each rule has found.
fn counts(herd: &Own, id: &AgentId) -> Vec<u64> {
    herd.show(id).unwrap().rules.iter().map(|count| count.lines).collect()
}

#[test]
fn a_notice_tells_the_line_and_fails_nothing() {
    let herd = herd();
    let mut events = herd.follow();
    let script = r"echo fine; printf 'an \033[31mERROR here\n' >&2; echo ERROR on stdout; exec sleep 1000";
    let id = herd.spawn_with("a", None, script, |spec| {
        spec.rules = rules(&["stderr:ERROR", "nothing"]);
        spec.rules[0].name = Some("error".to_owned());
    });
    let event = await_event(&mut events, Kind::Notice, &id);
    let found = event.found.unwrap();
    assert_eq!((found.rule.as_str(), found.stream, found.offset, found.lines), ("error", Stream::Stderr, 0, 1));
    assert_eq!(found.line, r"an \x1b[31mERROR here");
    let shown = herd.show(&id).unwrap();
    assert_eq!((shown.status.state, counts(&herd, &id)), (State::Running, vec![1, 0]));
    herd.finish();
}

#[test]
fn text_alone_fails_nothing_without_a_rule() {
    let herd = herd();
    let id = herd.spawn("a", "echo ERROR panic fatal >&2");
    let [status] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
    assert_eq!((status.state, notices(&herd, &id).len()), (State::Completed, 0));
    herd.finish();
}

#[test]
fn a_fail_rule_ends_the_run_with_the_cause_output() {
    let herd = herd();
    let mut events = herd.follow();
    let id = herd.spawn_with("a", None, "sleep 1000 & echo 'panic: at the disco' >&2; wait", |spec| {
        spec.rules = rules(&["stderr:fail:^panic:"]);
    });
    let failed = await_event(&mut events, Kind::Failed, &id);
    let exit = failed.exit.unwrap();
    assert_eq!((exit.cause, exit.status), (Cause::Output, None), "told before anything of it has ended");
    assert!(exit.error.unwrap().contains("at offset 0 of stderr: panic: at the disco"));
    assert_eq!(exit.last_lines, ["panic: at the disco"]);
    let [status] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
    assert_eq!((status.state, herd.ends_of(&id)), (State::Failed, vec![Kind::Failed]));
    assert_eq!(herd.processes(), Vec::<i32>::new());
    herd.finish();
}

#[test]
fn the_last_words_of_a_run_decide_how_it_ended() {
    let herd = herd();
    let fail = |spec: &mut AgentSpec| spec.rules = rules(&["fail:panic"]);
    // Without an end of its line, the very last thing before status 0.
    let plain = herd.spawn_with("plain", None, "printf 'no panic'", fail);
    let fine = herd.spawn_with("fine", None, "printf 'all is well'", fail);
    let much = herd.spawn_with("much", None, "head -c 12000000 /dev/zero | tr '\\0' '\\n'; printf panic", fail);
    // What it leaves behind says it, and is waited for.
    let left = herd.spawn_with("left", None, "(sleep 0.2; echo panic >&2) & exit 0", |spec| {
        fail(spec);
        spec.on_main_exit = OnMainExit::Wait;
    });
    let all = [plain, fine, much, left];
    let states: Vec<_> = herd.wait(&all).unwrap().iter().map(|status| status.state).collect();
    assert_eq!(states, [State::Failed, State::Completed, State::Failed, State::Failed]);
    for id in [&all[0], &all[2], &all[3]] {
        let exit = herd.show(id).unwrap().status.exit.unwrap();
        assert_eq!((exit.cause, exit.status), (Cause::Output, Some(0)), "{id}");
        assert_eq!(herd.ends_of(id), [Kind::Failed], "{id}");
    }
    herd.finish();
}

#[test]
fn what_one_run_has_said_fails_no_other() {
    let herd = herd();
    let mut events = herd.follow();
    let file = herd.dir.path().join("again");
    let script = format!("[ -e {0} ] && exec sleep 1000; touch {0}; echo panic; exit 3", file.display());
    let id = herd.spawn_with("a", None, &script, |spec| {
        spec.rules = rules(&["fail:panic"]);
        (spec.restart.policy, spec.restart.delay) = (RestartPolicy::OnFailure, Duration::ZERO);
    });
    // Its words may be looked at before or after the next run begins, and before or after its status is seen.
    let (mut notices, mut runs) = (Vec::new(), Vec::new());
    while notices.is_empty() || runs.len() < 2 {
        let event = events.next().expect("both come").event.unwrap();
        match event.kind {
            Kind::Notice => notices.push(event.run),
            Kind::Started => runs.push(event.run),
            _ => {}
        }
    }
    assert_eq!((notices, runs), (vec![Some(Run(1))], vec![Some(Run(1)), Some(Run(2))]));
    assert_eq!((herd.ends_of(&id), counts(&herd, &id)), (vec![Kind::Failed], vec![1]));
    assert_eq!(herd.show(&id).unwrap().status.state, State::Running);
    herd.finish();
}

#[test]
fn a_flood_of_matches_is_told_a_few_times_and_counted_exactly() {
    let herd = herd();
    let lines = 1_000_000_u64;
    let id = herd.spawn_with("a", None, &format!("yes ERROR | head -n {lines} >&2"), |spec| {
        spec.rules = rules(&["ERROR", "stdout:ERROR", "fail:^$"]);
        // Nothing is given back before it is looked at, however slow this machine is.
        spec.output_max = Bytes(64 << 20);
    });
    let [status] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
    assert_eq!((status.state, counts(&herd, &id)), (State::Completed, vec![lines, 0, 0]));
    let told = notices(&herd, &id);
    let sum: u64 = told.iter().map(|event| event.found.as_ref().unwrap().lines).sum();
    assert_eq!((sum, herd.stats().unwrap().rule_lines), (lines, lines), "each line is told once, with others");
    // The first at once, the last at the end, and one a second in between.
    let exit = status.exit.unwrap();
    assert!(told.len() as u64 <= 3 + exit.run_ms / 1000 + 5, "{} notices in {} ms", told.len(), exit.run_ms);
    herd.finish();
}

#[test]
fn what_is_given_back_before_it_is_looked_at_is_told() {
    let herd = herd();
    let mut events = herd.follow();
    // Faster than anything can be matched, with hardly anything kept; it never ends.
    let id = herd.program(None, "a", &["sh", "-c", "exec cat /dev/zero"], |spec| {
        spec.rules = rules(&["never"]);
        spec.output_max = Bytes(64 << 10);
    });
    let told = await_event(&mut events, Kind::Notice, &id);
    assert!(told.found.is_none() && told.message.contains("gone before its rules"), "{}", told.message);
    // Nobody else waits for it: neither a death, nor a request.
    for turn in 0..20 {
        let other = herd.spawn(&format!("other-{turn}"), "exit 3");
        await_event(&mut events, Kind::Failed, &other);
    }
    let shown = herd.show(&id).unwrap();
    assert!(shown.rules_gone_bytes > 0 && shown.status.state == State::Running);
    herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap();
    herd.finish();
}

#[test]
fn bad_rules_are_refused_whole() {
    let herd = herd();
    let error = herd.refused_with("a", |spec| spec.rules = rules(&[r"\w{30}"; 9]));
    assert!(error.message.contains("all patterns of the rules together") && error.remedy.is_some(), "{error}");
    let error = herd.refused_with("a", |spec| spec.rules = rules(&["x"; 33]));
    assert_eq!(error.code, Code::BadValue);
    assert!(herd.spools().is_empty(), "nothing is left");
    herd.finish();
}

#[test]
fn patterns_that_take_long_delay_no_answer_and_no_end() {
    let herd = herd();
    let mut events = herd.follow();
    // A line of them takes some 30 ms, and all of them a minute.
    let lines = "yes $(head -c 1000 /dev/zero | tr '\\0' a) | head -n 2000; exec sleep 1000";
    let slow = r"[ab]*a[ab]{5000}c";
    let rule = herd.spawn_with("rule", None, lines, |spec| spec.rules = rules(&[slow]));
    let ready = herd.spawn_with("ready", None, lines, |spec| {
        spec.ready = Some(format!("stdout:{slow}").parse().unwrap());
        spec.ready_timeout = Some(Duration::from_secs(600));
    });
    for number in 0..5 {
        let id = herd.spawn(&format!("short-{number}"), "exit 3");
        await_event(&mut events, Kind::Failed, &id);
    }
    for id in [rule, ready] {
        assert_eq!(herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap().agents[0].survivors, 0);
    }
    herd.finish();
}

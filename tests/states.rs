//! States do not flatter: what `ps`, `wait` and `explain` say of an agent that was given up, is paused, or lost a process.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::time::Duration;
use treeherd::model::event::Kind;
use treeherd::model::spec::RestartPolicy;
use treeherd::model::status::{Cause, State};

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_agent_that_is_given_up_has_failed_however_well_its_last_run_ended() {
    let herd = herd();
    for (id, script, last) in [("well", "exit 0", Cause::Exit), ("badly", "kill -SEGV $$", Cause::Signal)] {
        let id = herd.spawn_with(id, None, script, |spec| {
            (spec.restart.policy, spec.restart.delay, spec.restart.intensity) =
                (RestartPolicy::Always, Duration::ZERO, 3);
        });
        let waited = treeherd(&herd, &["wait", id.as_str()]);
        assert_eq!(waited.status.code(), Some(1), "{}", text(&waited));
        assert!(text(&waited).contains("given up"), "{}", text(&waited));
        let status = herd.agent_status(&id).unwrap();
        let exit = status.exit.unwrap();
        assert_eq!((status.state, status.run.0), (State::Failed, 4));
        assert_eq!((exit.cause, exit.last_cause), (Cause::GivenUp, Some(last)));
        assert!(text(&treeherd(&herd, &["explain", id.as_str()])).contains("more than 3 restarts"));
        let ends = herd.ends_of(&id);
        let wanted = if last == Cause::Exit { Kind::Completed } else { Kind::Failed };
        assert_eq!(ends, [wanted; 4], "each run is told as it ended");
    }
    herd.finish();
}

#[test]
fn a_paused_agent_and_all_below_it_are_shown_as_paused_first() {
    let herd = herd();
    let boss = herd.group(None, "boss");
    let worker = herd.sleeper(Some(&boss), "worker");
    herd.pause_agent(&boss).unwrap();
    for id in [&boss, &worker] {
        assert_eq!(herd.agent_status(id).unwrap().state, State::Paused);
        let explained = text(&treeherd(&herd, &["explain", id.as_str()]));
        let mut lines = explained.lines();
        assert_eq!(lines.next(), Some(format!("{id} is paused").as_str()));
        assert!(lines.next().unwrap().contains("was paused by"), "{explained}");
        assert!(explained.contains("a resume of boss"), "{explained}");
    }
    let listed = text(&treeherd(&herd, &["ps"]));
    assert_eq!(listed.matches(" paused ").count(), 2, "{listed}");
    assert_eq!(text(&treeherd(&herd, &["tree"])).matches(" paused ").count(), 2);
    let counted = herd.stats().unwrap().states;
    assert_eq!((counted.get(&State::Paused), counted.get(&State::Running)), (Some(&2), None), "{counted:?}");
    // What ends is shown to end, paused or not; what waits for room waits for that.
    herd.resume_agent(&boss).unwrap();
    assert_eq!(herd.agent_status(&worker).unwrap().state, State::Running);
    assert_eq!(herd.agent_status(&boss).unwrap().state, State::Group);
    herd.finish();
}

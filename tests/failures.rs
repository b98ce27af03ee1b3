//! Failures that are found in runs that go on, each kind with its cause, on real processes.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::time::Duration;
use treeherd::model::event::Kind;
use treeherd::model::status::{Cause, State};

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

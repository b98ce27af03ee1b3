//! The origin's own headings, through the library, on a real kernel.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use treeherd::model::event::Kind;
use treeherd::model::id::Level;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::{Cause, State};

#[test]
fn a_first_life() {
    let herd = herd();
    let mut events = herd.follow();
    let id = herd.spawn("a", "echo out; echo err >&2; exit 3");
    let event = await_event(&mut events, Kind::Failed, &id);
    let exit = event.exit.unwrap();
    assert_eq!((exit.cause, exit.status), (Cause::Exit, Some(3)));
    assert_eq!(exit.last_lines, ["err"]);
    assert_eq!(output(&herd, &id), b"out\n");
    assert_eq!(errors(&herd, &id), b"err\n");
    assert_eq!(herd.agent_status(&id).unwrap().state, State::Failed);
    herd.finish();
}

#[test]
fn a_tree_ends_with_its_root() {
    let herd = herd();
    let root = herd.spawn("root", "trap '' TERM; setsid sleep 1000 & sleep 1000 & sleep 1000");
    let child = herd.spawn_below(&root, "child", "sleep 1000");
    assert_eq!(herd.agent_status(&child).unwrap().level, Level(1));
    herd.register_agent(AgentSpec::group(name("group"))).unwrap();
    let receipt = herd.terminate(ids(&[&root]), Some(std::time::Duration::from_millis(200))).unwrap();
    println!("{receipt:?}");
    assert_eq!(receipt.agents.len(), 2);
    assert_eq!(receipt.processes, 6, "{receipt:?}");
    herd.finish();
}

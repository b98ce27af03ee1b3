//! `top` on a real terminal: script(1) gives it one.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use common::*;
use treeherd::model::event::Kind;
use treeherd::model::status::State;

/// Runs `top` against a herd, hands it a key when something stands on the screen, and returns all that it has drawn.
fn top(herd: &Own, keys: &[(&str, &str)]) -> String {
    let treeherd = assert_cmd::cargo::cargo_bin!("treeherd");
    let line = format!(
        "stty rows 24 columns 100; exec {} --socket {} top --interval 100ms",
        treeherd.display(),
        herd.socket().display()
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    let mut terminal = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut hands, mut eyes) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    let (mut drawn, mut piece, mut looked_at) = (String::new(), [0; 4096], 0);
    for (awaited, key) in keys {
        while !drawn[looked_at..].contains(awaited) {
            let read = eyes.read(&mut piece).unwrap();
            assert!(read > 0, "it has ended, and never drew {awaited:?}: {drawn}");
            drawn += &String::from_utf8_lossy(&piece[..read]);
        }
        looked_at = drawn.len();
        hands.write_all(key.as_bytes()).unwrap();
    }
    eyes.read_to_string(&mut drawn).unwrap();
    assert!(terminal.wait().unwrap().success(), "{drawn}");
    drawn
}

#[test]
fn top_draws_the_herd_on_a_terminal_and_ends_an_agent_only_after_a_yes() {
    let herd = herd();
    let mut events = herd.follow();
    let parent = herd.sleeper(None, "parent");
    let child = herd.sleeper(Some(&parent), "child");
    // The first agent is selected; the second one is ended.
    let drawn = top(&herd, &[("child", "j"), ("parent", "t"), ("Terminate", "y"), ("done", "q")]);
    assert!(drawn.contains("\x1b[?1049h") && drawn.contains("\x1b[?1049l"), "the screen is given back: {drawn:?}");
    await_event(&mut events, Kind::Terminated, &child);
    assert_eq!(herd.agent_status(&parent).unwrap().state, State::Running);
    herd.finish();
}

#[test]
fn top_without_a_terminal_says_what_programs_read() {
    let herd = herd();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("treeherd"));
    let output = command.arg("--socket").arg(herd.socket()).arg("top").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stats --agents --json"));
    herd.finish();
}

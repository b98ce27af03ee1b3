//! `apply`: a running herd is brought to a file, by the command line, on real processes.
#![allow(clippy::unwrap_used)]

mod common;

use assert_cmd::cargo::cargo_bin;
use common::*;
use std::process::{Command, Output};
use treeherd::model::event::Kind;
use treeherd::model::limits::Knob;
use treeherd::model::status::State;

fn apply(herd: &Own, file: &str, words: &[&str]) -> Output {
    let path = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(path.path(), file).unwrap();
    let mut command = Command::new(cargo_bin!("treeherd"));
    command.arg("--socket").arg(herd.socket()).arg("apply").arg(path.path()).args(words).output().unwrap()
}

fn told(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

const FLEET: &str = "
[agents.boss]
[agents.boss.agents.a]
command = 'exec sleep 1000'
[agents.boss.agents.b]
command = 'exec sleep 1000'
limits = { pids_max = 20 }
";

#[test]
fn a_herd_is_brought_to_a_file_and_only_what_differs_is_touched() {
    let herd = herd();
    assert_eq!(
        told(&apply(&herd, FLEET, &["--dry-run"])),
        ["+ start  boss (new)", "+ start  a (new)", "+ start  b (new)"]
    );
    assert!(herd.processes().is_empty(), "a dry run starts nothing");
    told(&apply(&herd, FLEET, &[]));
    let pid = |id: &str| herd.agent_status(&name(id)).unwrap().pid.unwrap();
    let (a, b) = (pid("a"), pid("b"));
    assert_eq!(told(&apply(&herd, FLEET, &[])), ["= keep   boss", "= keep   a", "= keep   b"]);
    // What an agent has started itself is its own, what nobody knows has to go.
    let own = herd.sleeper(Some(&name("a")), "own");
    herd.sleeper(None, "stranger");
    let changed = FLEET.replace("pids_max = 20", "pids_max = 30") + "[agents.c]\ncommand = 'exec sleep 1000'\n";
    let steps = told(&apply(&herd, &changed, &["--now"]));
    let wanted = [
        "- end    stranger (not in the file)",
        "= keep   boss",
        "= keep   a",
        "~ limit  b: pids_max = 30",
        "+ start  c (new)",
    ];
    assert_eq!(steps, wanted);
    assert_eq!((pid("a"), pid("b")), (a, b), "what is there goes on");
    assert_eq!(herd.agent_status(&own).unwrap().state, State::Running);
    assert_eq!(herd.agent_status(&name("b")).unwrap().limits.get(Knob::PidsMax).unwrap().to_string(), "30");
    assert!(herd.agent_status(&name("stranger")).is_err());
    // Another command is another agent.
    let other = changed.replace(
        "[agents.boss.agents.a]\ncommand = 'exec sleep 1000'",
        "[agents.boss.agents.a]\ncommand = 'exec sleep 2000'",
    );
    let steps = told(&apply(&herd, &other, &["--now"]));
    assert_eq!(steps[0], "- end    a (command differs)");
    assert_ne!(pid("a"), a);
    assert!(herd.agent_status(&own).is_err(), "what was below it went with it");
    assert_eq!(herd.ends_of(&name("b")), Vec::<Kind>::new());
    herd.finish();
}

#[test]
fn a_step_that_is_refused_ends_the_apply_and_says_so() {
    let herd = herd();
    let deep = "[agents.a]\ncommand = '/nonexistent/program'\n[agents.b]\ncommand = 'sleep 1000'\n"
        .replace("'/non", "['/non")
        .replace("program'", "program']");
    let output = apply(&herd, &deep, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["done"].as_u64(), report["steps"].as_array().unwrap().len()), (Some(0), 2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/program"));
    let output = apply(&herd, "[agents.a]\ncomand = 'x'\n", &[]);
    assert_eq!(output.status.code(), Some(1), "a file with mistakes changes nothing");
    herd.finish();
}

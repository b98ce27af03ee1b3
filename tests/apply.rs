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
    let deep = "[agents.a]\ncommand = ['/nonexistent/program']\n[agents.a.agents.b]\ncommand = 'sleep 1000'\n";
    let output = apply(&herd, deep, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["done"].as_u64(), report["steps"].as_array().unwrap().len()), (Some(0), 2));
    assert_eq!(report["refused"].as_array().unwrap().len(), 1, "what is to come after it was not asked for");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/program"));
    let output = apply(&herd, "[agents.a]\ncomand = 'x'\n", &[]);
    assert_eq!(output.status.code(), Some(1), "a file with mistakes changes nothing");
    herd.finish();
}

/// Each step is done, refused or was not asked for, and the report says which: also where many were asked for at a time.
#[test]
fn what_was_asked_for_with_a_refused_step_is_told_as_what_became_of_it() {
    let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = 50);
    let mut file = String::new();
    for number in 0..40 {
        let command = if matches!(number, 3 | 5) { "['/nonexistent/program']" } else { "'exec sleep 1000'" };
        file += &format!("[agents.a{number}]\ncommand = {command}\n");
    }
    let output = apply(&herd, &format!("[herd]\nmax_agents_per_level = 50\n{file}"), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let ids: Vec<&str> = report["steps"].as_array().unwrap().iter().map(|step| step["id"].as_str().unwrap()).collect();
    let refused: Vec<&str> = report["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|refusal| {
            assert!(refusal["error"]["message"].as_str().unwrap().contains("/nonexistent/program"), "{refusal}");
            ids[usize::try_from(refusal["step"].as_u64().unwrap()).unwrap()]
        })
        .collect();
    assert_eq!(refused[0], "a3", "{report}");
    assert!(refused.len() <= 2, "{report}");
    let asked = usize::try_from(report["done"].as_u64().unwrap()).unwrap() + refused.len();
    assert!(asked < ids.len(), "a refusal ends the asking");
    for (number, id) in ids.iter().enumerate() {
        let runs = herd.agent_status(&name(id)).is_ok_and(|agent| agent.state == State::Running);
        assert_eq!(runs, number < asked && !refused.contains(id), "{id} of {report}");
    }
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), refused.len());
    herd.finish();
}

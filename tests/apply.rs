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
    apply_as(herd, "fleet", file, words)
}

fn apply_as(herd: &Own, name: &str, file: &str, words: &[&str]) -> Output {
    let path = herd.dir.path().join(format!("{name}.toml"));
    std::fs::write(&path, file).unwrap();
    let mut command = Command::new(cargo_bin!("treeherd"));
    command.arg("--socket").arg(herd.socket()).arg("apply").arg(path).args(words).output().unwrap()
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
    // What an agent has started itself is its own, and what somebody has started by hand is theirs.
    let own = herd.sleeper(Some(&name("a")), "own");
    let stranger = herd.sleeper(None, "stranger");
    let changed = FLEET.replace("pids_max = 20", "pids_max = 30") + "[agents.c]\ncommand = 'exec sleep 1000'\n";
    let steps = told(&apply(&herd, &changed, &["--now"]));
    let wanted = ["= keep   boss", "= keep   a", "~ limit  b: pids_max = 30", "+ start  c (new)"];
    assert_eq!(steps, wanted);
    assert_eq!((pid("a"), pid("b")), (a, b), "what is there goes on");
    assert_eq!(herd.agent_status(&own).unwrap().state, State::Running);
    assert_eq!(herd.agent_status(&name("b")).unwrap().limits.get(Knob::PidsMax).unwrap().to_string(), "30");
    assert_eq!(herd.agent_status(&stranger).unwrap().state, State::Running);
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
fn a_step_that_is_refused_keeps_back_what_needs_it_and_nothing_else() {
    let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = 200);
    let mut file = "[herd]\nmax_agents_per_level = 200\n".to_owned();
    file +=
        "[agents.bad]\ncommand = ['/nonexistent/program']\n[agents.bad.agents.below]\ncommand = 'exec sleep 1000'\n";
    file += "[agents.late]\ncommand = 'exec sleep 1000'\nafter = ['bad']\n";
    for number in 0..100 {
        file += &format!("[agents.a{number}]\ncommand = 'exec sleep 1000'\n");
    }
    let output = apply(&herd, &file, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |field: &str| report[field].as_array().unwrap().len();
    assert_eq!((report["done"].as_u64(), count("refused"), count("left_out")), (Some(100), 1, 2), "{report}");
    assert!(report["refused"][0]["error"]["message"].as_str().unwrap().contains("/nonexistent/program"));
    let running = || herd.agents().unwrap().iter().filter(|agent| agent.state == State::Running).count();
    assert_eq!(running(), 100);
    // The next try has only these to start.
    let output = apply(&herd, &file.replace("['/nonexistent/program']", "'exec sleep 1000'"), &[]);
    let starts = told(&output).iter().filter(|line| line.starts_with("+ start")).count();
    assert_eq!((starts, running()), (3, 103));
    let output = apply(&herd, "[agents.a]\ncomand = 'x'\n", &[]);
    assert_eq!(output.status.code(), Some(1), "a file with mistakes changes nothing");
    assert_eq!(running(), 103);
    herd.finish();
}

/// Everything that `show`, `config` and the journal say of a herd, to the last byte.
fn all_of(herd: &Own) -> String {
    let mut text = String::new();
    for words in [&["config", "show", "--json"][..], &["ps", "--json"], &["events", "--since", "0", "--json"]] {
        text += &String::from_utf8_lossy(&treeherd(herd, words).stdout);
    }
    let waits = |agent: &treeherd::model::status::AgentStatus| format!("{:?}", (&agent.id, &agent.limits, agent.pid));
    text + &herd.agents().unwrap().iter().map(waits).collect::<String>()
}

#[test]
fn a_second_apply_changes_nothing_whatever_a_level_the_herd_or_a_command_gave() {
    let herd = herd_with(|settings| settings.herd.limits = limits(&["pids_max=500"]));
    let file = "[levels.1]\neach = { pids_max = 64 }\nsiblings = { pids_max = 200 }\n".to_owned() + FLEET;
    told(&apply(&herd, &file, &[]));
    assert!(treeherd(&herd, &["limit", "a", "pids_max=40"]).status.success());
    let before = all_of(&herd);
    for _ in 0..2 {
        assert_eq!(told(&apply(&herd, &file, &[])), ["= keep   boss", "= keep   a", "= keep   b"]);
        assert_eq!(all_of(&herd), before);
    }
    // What the file gave goes with it, and what stood there before comes back.
    let wider = format!("[herd]\nlimits = {{ pids_max = 300 }}\n{file}");
    assert_eq!(told(&apply(&herd, &wider, &[]))[0], "~ limit  the herd: pids_max = 300");
    let fewer = FLEET.replace("limits = { pids_max = 20 }\n", "");
    let steps = told(&apply(&herd, &fewer, &[]));
    let wanted = [
        "~ limit  the herd: pids_max = 500",
        "~ limit  each of level 1: pids_max is taken back",
        "~ limit  siblings of level 1: pids_max is taken back",
        "= keep   boss",
        "= keep   a",
        "~ limit  b: pids_max is taken back",
    ];
    assert_eq!(steps, wanted);
    let limit = |id: &str| herd.agent_status(&name(id)).unwrap().limits.get(Knob::PidsMax).map(ToString::to_string);
    assert_eq!((limit("a"), limit("b")), (Some("40".to_owned()), None), "what a command gave stays");
    assert!(told(&apply(&herd, &fewer, &[])).iter().all(|line| line.starts_with('=')));
    herd.finish();
}

#[test]
fn each_file_owns_what_it_declares_and_never_touches_another_ones_also_after_a_crash() {
    let mut herd = daemon(&[]);
    let one = "[agents.one]\ncommand = 'exec sleep 1000'\n[agents.both]\ncommand = 'exec sleep 1000'\n";
    let two = "[agents.two]\ncommand = 'exec sleep 1000'\n";
    told(&apply_as(&herd, "first", one, &[]));
    told(&apply_as(&herd, "second", two, &[]));
    let by_hand = herd.sleeper(None, "by-hand");
    herd.crash();
    herd.restart();
    let clash = format!("{two}[agents.both]\ncommand = 'true'\n[agents.by-hand]\ncommand = 'true'\n");
    let refused = apply_as(&herd, "second", &clash, &[]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("both is declared by first"), "{text}");
    assert!(text.contains("by-hand was started by hand"), "{text}");
    let fewer = "[agents.one]\ncommand = 'exec sleep 1000'\n";
    assert_eq!(told(&apply_as(&herd, "first", fewer, &["--now"])), ["- end    both (not in the file)", "= keep   one"]);
    let state = |id: &str| herd.agent_status(&name(id)).map(|agent| agent.state).ok();
    assert_eq!(
        ["one", "two", "both", "by-hand"].map(state),
        [Some(State::Running), Some(State::Running), None, Some(State::Running)]
    );
    assert!(herd.processes().len() == 3 && by_hand.as_str() == "by-hand");
    herd.finish();
}

#[test]
fn a_declared_agent_stays_when_it_has_ended_and_one_by_hand_is_forgotten() {
    let herd = herd_with(|settings| {
        settings.herd.cleanup_retention = std::time::Duration::from_millis(1);
        settings.herd.failed_retention = std::time::Duration::from_millis(1);
    });
    let mut events = herd.follow();
    told(&apply(&herd, "[agents.done]\ncommand = 'echo here'\n", &[]));
    await_event(&mut events, Kind::Completed, &name("done"));
    for (id, script) in [("well", "exit 0"), ("badly", "exit 1")] {
        let id = herd.spawn(id, script);
        await_event(&mut events, Kind::Removed, &id);
    }
    assert_eq!(herd.agent_status(&name("done")).unwrap().state, State::Completed);
    assert_eq!(output(&herd, &name("done")), b"here\n");
    assert_eq!(told(&apply(&herd, "[agents.done]\ncommand = 'echo here'\n", &[])), ["= keep   done"]);
    let away = told(&apply(&herd, "[agents.other]\ncommand = 'exec sleep 1000'\n", &[]));
    assert_eq!(away, ["- end    done (not in the file)", "+ start  other (new)"]);
    assert!(herd.agent_status(&name("done")).is_err());
    herd.finish();
}

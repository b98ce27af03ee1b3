//! The command line as a whole: exit statuses, where errors go, what programs can rely on.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::cargo_bin;

fn treeherd(words: &[&str]) -> Output {
    Command::new(cargo_bin!("treeherd")).env_remove("TREEHERD_SOCKET").args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn usage_errors_have_status_2_and_go_to_stderr() {
    for words in [
        &[][..],
        &["frobnicate"],
        &["pause"],
        &["pause", "a", "--all"],
        &["spawn", "a"],
        &["spawn", "../x", "--", "true"],
        &["spawn", "cgroup.procs", "--", "true"],
        &["spawn", "a", "--memory-max", "10XB", "--", "true"],
        &["spawn", "a", "--nice", "40", "--", "true"],
        &["limit", "a"],
        &["limit", "pids_max=4"],
        &["terminate", "a", "--grace", "soon"],
        &["logs"],
        &["logs", "a", "--all"],
        &["logs", "a", "b"],
        &["daemon", "--max-levels", "0", "--state-dir", "/nonexistent/dir"],
        &["daemon", "--config", "/nonexistent/file"],
    ] {
        let output = treeherd(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn without_a_daemon_the_status_is_5_and_the_remedy_is_told() {
    for words in [
        &["ps"][..],
        &["tree"],
        &["show", "a"],
        &["stats"],
        &["events", "-f"],
        &["logs", "a"],
        &["pause", "--all"],
        &["spawn", "a", "--", "true"],
        &["limit", "--herd", "pids_max=5"],
        &["wait", "a"],
        &["shutdown"],
    ] {
        let output = treeherd(&[words, &["--socket", "/nonexistent/socket"]].concat());
        // After `--` the words belong to the agent.
        let output = if words.contains(&"--") {
            treeherd(&[&["--socket", "/nonexistent/socket"], words].concat())
        } else {
            output
        };
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{words:?}: {told}");
        assert!(told.starts_with("treeherd: ") && told.contains("\n  help: "), "{told}");
    }
}

#[test]
fn programs_get_errors_as_one_object_on_stderr() {
    for (words, code, status) in [
        (&["--json", "ps", "--socket", "/nonexistent/socket"][..], "no_daemon", 5),
        (&["--json", "pause"], "bad_value", 2),
        (&["--json", "check", "/nonexistent"], "bad_tree", 2),
    ] {
        let output = treeherd(words);
        let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!((error["code"].as_str(), output.status.code()), (Some(code), Some(status)), "{words:?}");
        assert!(error["message"].is_string() && error["remedy"].is_string(), "{error}");
    }
}

#[test]
fn the_socket_is_named_by_a_flag_a_directory_or_the_environment() {
    let told = |words: &[&str], variable: Option<&str>| {
        let mut command = Command::new(cargo_bin!("treeherd"));
        command.env_remove("TREEHERD_SOCKET").args(words);
        if let Some(variable) = variable {
            command.env("TREEHERD_SOCKET", variable);
        }
        text(&command.output().unwrap().stderr)
    };
    assert!(told(&["ps", "--socket", "/nonexistent/s"], Some("/nonexistent/v")).contains("on /nonexistent/s:"));
    assert!(told(&["ps", "--state-dir", "/nonexistent/d"], None).contains("on /nonexistent/d/treeherd.sock:"));
    assert!(told(&["ps"], Some("/nonexistent/v")).contains("on /nonexistent/v:"));
}

#[test]
fn help_and_completions_name_every_verb_and_every_limit() {
    let help = text(&treeherd(&["--help"]).stdout);
    let spawn = text(&treeherd(&["spawn", "--help"]).stdout);
    let verbs = "run daemon apply check config doctor spawn register ps tree show stats events logs pause resume terminate limit \
                 restart wait cleanup shutdown schema completions man";
    for verb in verbs.split_whitespace() {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb} is missing in\n{help}");
    }
    for flag in ["--memory-max", "--pids-max", "--cpu-max", "--cpuset-cpus", "--io-max"] {
        assert!(spawn.contains(flag), "{flag} is missing in\n{spawn}");
    }
    let completions = treeherd(&["completions", "bash"]);
    assert!(completions.status.success() && text(&completions.stdout).contains("--memory-max"));
}

#[test]
fn both_schemas_are_printed_without_a_daemon_and_on_one_line_for_programs() {
    for (words, title) in [(&["schema"][..], "treeherd"), (&["schema", "--tree"], "treeherd: a tree file")] {
        let (pretty, line) = (treeherd(words), treeherd(&[words, &["--json"]].concat()));
        let document: serde_json::Value = serde_json::from_slice(&pretty.stdout).unwrap();
        assert_eq!(document["title"], title);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&line.stdout).unwrap(), document);
        assert!(text(&pretty.stdout).lines().count() > 1000 && text(&line.stdout).lines().count() == 1);
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = Command::new(cargo_bin!("treeherd"))
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

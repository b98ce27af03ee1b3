//! `treeherd check`: every mistake of a tree file in one go, for people and for programs.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;
use tempfile::NamedTempFile;

const BAD: &str = "\
[herd]
max_levels = 2
limits = { memory_max = \"10XB\" }

[agents.boss]
comand = [\"sh\"]

[agents.boss.agents.worker]
parent = \"boss\"
nice = 40

[agents.lost]
parent = \"bos\"

[agents.a]
parent = \"b\"
[agents.b]
parent = \"a\"
";

fn check(text: &[u8], more: &[&str]) -> (Output, String) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    let output = Command::new(cargo_bin!("treeherd")).arg("check").arg(file.path()).args(more).output().unwrap();
    let name = file.path().display().to_string();
    (output, name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_mistake_is_told_with_its_place_its_source_and_a_remedy() {
    let (output, name) = check(BAD.as_bytes(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stdout);
    for expected in [
        "3:25: memory_max: \"10XB\" is not a size",
        "6:1: there is no key \"comand\" for an agent",
        "did you mean command?",
        "9:1: the parent is said twice",
        "10:8: agent worker: nice: must be between -20 and 19 (got 40)",
        "   10 │ nice = 40",
        "      │        ^",
        "13:10: the parent of lost, bos, is not in this file",
        "did you mean boss?",
        "16:10: the parents go in a circle: a -> b -> a",
        "6 mistakes",
    ] {
        assert!(told.contains(expected), "{expected} is missing in\n{told}");
    }
    assert_eq!(told.matches("  help: ").count(), 6);
    assert!(told.lines().filter(|line| line.starts_with(&name)).count() == 7);
    assert!(!told.contains('\x1b'), "no colours for a pipe");
}

#[test]
fn programs_get_an_array() {
    let (output, name) = check(BAD.as_bytes(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let mistakes: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(mistakes.len(), 6);
    assert_eq!((&mistakes[0]["line"], &mistakes[0]["column"]), (&3.into(), &25.into()));
    for mistake in &mistakes {
        assert_eq!(mistake["file"], name.as_str());
        assert!(mistake["message"].is_string() && mistake["remedy"].is_string());
    }
    let (output, _) = check(b"[agents.a]", &["--json"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "[]\n"));
}

#[test]
fn a_good_file_is_told_as_such_and_the_examples_are_good() {
    let (output, _) = check(b"[agents.a.agents.b]\ncommand = 'true'", &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("no mistakes; 2 agents on 2 levels"));
    for example in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let path = example.unwrap().path();
        if path.extension().is_some_and(|end| end == "toml") {
            let output = Command::new(cargo_bin!("treeherd")).arg("check").arg(&path).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}: {}", path.display(), text(&output.stdout));
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_usage_error() {
    for path in ["/nonexistent/tree.toml", "/"] {
        let output = Command::new(cargo_bin!("treeherd")).args(["check", path]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{path}");
        let told = text(&output.stderr);
        assert!(told.starts_with("treeherd: ") && told.contains("\n  help: "), "{told}");
    }
}

#[test]
fn hostile_files_are_mistakes_and_nothing_worse() {
    for bytes in [&b"\xff\xfe"[..], b"[agents.\"\x1b[2J\"]", b"\0", "[[[[".repeat(10_000).as_bytes()] {
        let (output, _) = check(bytes, &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(!output.stdout.contains(&0x1b), "what the file says does nothing to a terminal");
    }
    let output = Command::new(cargo_bin!("treeherd")).args(["check", "/dev/zero"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "an endless file is too large");
}

#[test]
fn run_refuses_a_bad_file_before_anything_is_started() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(BAD.as_bytes()).unwrap();
    let output = Command::new(cargo_bin!("treeherd")).arg("run").arg(file.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("6 mistakes"));
}

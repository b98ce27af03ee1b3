//! The house is in order: the arrows between its rooms, the words that must not be said, the size of its files.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files that may be longer than the rest, with the reason.
const LONG: [(&str, &str); 0] = [];

const LINES_MOST: usize = 700;

/// What policies, requests and events are made of: the words that a user writes and reads.
const WORDS: [(&str, &str); 12] = [
    ("src/model/recovery.rs", "RestartPolicy"),
    ("src/model/recovery.rs", "Strategy"),
    ("src/model/spec.rs", "OnMainExit"),
    ("src/model/spec.rs", "Admission"),
    ("src/model/ready.rs", "Ready"),
    ("src/model/rule.rs", "Action"),
    ("src/model/stream.rs", "Streams"),
    ("src/model/request.rs", "Target"),
    ("src/model/request.rs", "LimitScope"),
    ("src/model/status.rs", "State"),
    ("src/model/status.rs", "Paused"),
    ("src/model/status.rs", "Cause"),
];

/// Words that no test on real processes can bring about, with the reason.
const UNREAL: [(&str, &str); 1] = [("Kind::Lagging", "a task has to hang in the kernel; the simulation's do")];

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut stack) = (Vec::new(), vec![root.join(dir)]);
    while let Some(at) = stack.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.strip_prefix(root).unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Says whether a file holds unit tests only.
fn is_test(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests")
}

/// Returns the code of a file: no comments, no tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Lists the rooms that a text names: `crate::ROOM`, also in braces.
fn rooms_named(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut named = BTreeSet::new();
    for part in ["crate::", "treeherd::"].iter().flat_map(|prefix| code.split(prefix).skip(1)) {
        match part.strip_prefix('{') {
            None => drop(named.insert(word(part))),
            Some(list) => {
                let (mut depth, mut item) = (0, String::new());
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => drop(named.insert(word(std::mem::take(&mut item).trim()))),
                        _ if depth == 0 => item.push(c),
                        _ => {}
                    }
                }
                named.insert(word(item.trim()));
            }
        }
    }
    named.remove("");
    named
}

#[test]
fn the_arrows_between_the_rooms_hold() {
    let rooms = ["api", "cli", "daemon", "herd", "kernel", "machine", "model", "output"];
    let allowed = |room: &str| -> &[&str] {
        match room {
            "model" => &["model"],
            "machine" => &["machine", "model"],
            "kernel" => &["kernel", "model"],
            "output" => &["output", "model"],
            "api" => &["api", "model"],
            "daemon" => &["daemon", "machine", "kernel", "output", "api", "model"],
            "herd" => &["herd", "daemon", "api", "model"],
            "cli" => &["cli", "model", "api", "output", "herd", "daemon"],
            "main" | "lib" => &["cli"],
            other => panic!("which room is {other}?"),
        }
    };
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let room = path.components().nth(1).unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if is_test(&path) {
            continue;
        }
        for named in rooms_named(&code(&text)) {
            if rooms.contains(&named.as_str()) && !allowed(&room).contains(&named.as_str()) {
                wrong.push(format!("{} imports {named}", path.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_machine_has_no_clock_no_kernel_and_no_voice() {
    let banned = [
        "std::time::Instant",
        "SystemTime",
        "Instant::now",
        "HashMap",
        "HashSet",
        "std::fs",
        "std::io",
        "std::net",
        "std::process",
        "std::thread",
        "std::env",
        "rustix",
        "libc::",
        "nix::",
        "mio::",
        "serde",
        "tracing",
        "println!",
        "eprintln!",
        "unsafe",
        "sleep",
        "fastrand::Rng::new",
        "log::",
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources("src/machine").into_iter().filter(|(path, _)| !is_test(path)) {
        let text = code(&text);
        wrong.extend(
            banned.iter().filter(|word| text.contains(**word)).map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn nothing_is_left_undone_asleep_or_ignored() {
    // Put together here, so that this file does not say them.
    let banned = ["todo!", "unimplemented!", "thread::sleep", "#[ignore", "dbg!", "FIXME", "XXX"].map(|word| {
        let (head, tail) = word.split_at(2);
        [head, tail].concat()
    });
    let mut wrong = Vec::new();
    for dir in ["src", "tests", "benches", "examples"] {
        for (path, text) in sources(dir).into_iter().filter(|(path, _)| !path.ends_with("tidy.rs")) {
            // A bench lets time go by: that is what it measures.
            let is_fine = |word: &str| dir == "benches" && word.ends_with("sleep");
            let found = banned.iter().filter(|word| text.contains(word.as_str()) && !is_fine(word));
            wrong.extend(found.map(|word| format!("{}: {word}", path.display())));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_source_file_can_be_read_in_one_go() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let name = path.to_str().unwrap();
        let (lines, is_known) = (text.lines().count(), LONG.iter().any(|(long, _)| *long == name));
        if (lines > LINES_MOST) != is_known {
            wrong.push(format!("{name} has {lines} lines, listed as long: {is_known}"));
        }
        if !text.starts_with("//!") && !is_test(&path) {
            wrong.push(format!("{name} does not say what it is"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// Lists the names of all tests and benches.
fn test_names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for dir in ["src", "tests", "benches"] {
        for (path, text) in sources(dir) {
            names.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
            let functions = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            names.extend(functions.filter_map(|line| line.split('(').next()).map(str::to_owned));
        }
    }
    names
}

#[test]
fn every_promise_of_the_readme_names_tests_that_exist() {
    let Ok(readme) = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")) else { return };
    let names = test_names();
    let mut in_table = false;
    let (mut rows, mut promises, mut wrong) = (0, 0, Vec::new());
    for line in readme.lines() {
        if line.starts_with('#') {
            in_table = line.to_lowercase().contains("promise");
        } else if in_table && line.starts_with('|') && !line.contains("---") {
            rows += 1;
            let tests = line.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap_or("");
            let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
            if named.is_empty() {
                continue;
            }
            promises += 1;
            let last =
                |name: &str| name.rsplit([':', '/', ' ']).next().unwrap_or(name).trim_end_matches(".rs").to_owned();
            wrong.extend(named.iter().filter(|name| !names.contains(&last(name))).map(|name| (*name).to_owned()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "tests that README names and that are not there");
    assert_eq!(promises > 0, rows > 0, "the table of promises names its tests, in backticks, in its last column");
}

/// Lists the variants of an enum as code names them: `Cause::Exit`.
fn variants(file: &str, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let body = text.split(&format!("pub enum {name} {{\n")).nth(1).unwrap().split("\n}").next().unwrap();
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let words = lines.map(|line| line.chars().take_while(|c| c.is_alphanumeric()).collect::<String>());
    words.filter(|word| word.starts_with(char::is_uppercase)).map(|word| format!("{name}::{word}")).collect()
}

#[test]
fn every_word_of_a_policy_is_in_a_test_on_real_processes() {
    let is_real = |path: &Path| !path.starts_with("tests/sim") && !path.ends_with("tidy.rs");
    let tests: String = sources("tests").iter().filter(|(path, _)| is_real(path)).map(|(_, text)| code(text)).collect();
    let is_named = |word: &String| {
        let is_whole = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric());
        tests.match_indices(word.as_str()).any(|(at, _)| is_whole(&tests[at + word.len()..]))
    };
    let kinds = treeherd::model::event::Kind::ALL.iter().map(|kind| format!("Kind::{kind:?}"));
    let words: Vec<_> = WORDS.iter().flat_map(|(file, name)| variants(file, name)).chain(kinds).collect();
    assert!(words.len() > 80, "{words:?}");
    let wrong: Vec<_> =
        words.iter().filter(|word| is_named(word) == UNREAL.iter().any(|(unreal, _)| unreal == word)).collect();
    assert_eq!(wrong, Vec::<&String>::new(), "words without a test, or with one although they are said to have none");
}

//! The contract as it is told, held against what a real daemon takes and gives: every method, and an error of every kind.
#![allow(clippy::unwrap_used)]

mod common;

use common::raw::Raw;
use common::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use treeherd::api::method::Call;

/// A client that looks at every line that goes out or comes in.
struct Checked {
    raw: Raw,
    line: jsonschema::Validator,
    /// By pointer into the document.
    parts: BTreeMap<String, jsonschema::Validator>,
    answered: BTreeSet<String>,
    notes: Vec<Value>,
}

fn validate(validator: &jsonschema::Validator, value: &Value, what: &str) {
    let wrong: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{} at {}", error, error.instance_path())).collect();
    assert!(wrong.is_empty(), "{what} is not as the schema says: {wrong:#?}: {value:#}");
}

impl Checked {
    fn connect(socket: &Path) -> Self {
        let output = Command::new(assert_cmd::cargo::cargo_bin!("treeherd")).arg("schema").output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut parts = BTreeMap::new();
        let mut part = |pointer: String| {
            let mut schema = document.pointer(&pointer).unwrap().clone();
            schema["$defs"] = document["$defs"].clone();
            parts.insert(pointer, jsonschema::draft202012::new(&schema).unwrap());
        };
        for method in Call::METHODS {
            part(format!("/methods/{method}/params"));
            part(format!("/methods/{method}/result"));
        }
        for note in ["event", "output"] {
            part(format!("/notifications/{note}/params"));
        }
        part("/errors".to_owned());
        let line = jsonschema::draft202012::new(&document).unwrap();
        Self { raw: Raw::connect(socket), line, parts, answered: BTreeSet::new(), notes: Vec::new() }
    }

    fn send(&mut self, method: &str, params: &Value) {
        let request = json!({ "jsonrpc": "2.0", "id": method, "method": method, "params": params });
        self.raw.send(&format!("{request}\n"));
    }

    /// Reads lines until one is an answer; notifications on the way are kept.
    fn answer(&mut self) -> Value {
        loop {
            let note = self.read();
            if note.get("method").is_none() {
                return note;
            }
            self.notes.push(note);
        }
    }

    fn read(&mut self) -> Value {
        let line = self.raw.line().unwrap();
        if let Some(method) = line["method"].as_str() {
            validate(&self.parts[&format!("/notifications/{method}/params")], &line["params"], method);
            validate(&self.line, &line, method);
        }
        line
    }

    /// Asks for what the schema allows, and is given what it says.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        validate(&self.line, &json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }), method);
        validate(&self.parts[&format!("/methods/{method}/params")], &params, method);
        self.send(method, &params);
        let answer = self.answer();
        let result = answer.get("result").unwrap_or_else(|| panic!("{method} {params}: {answer}"));
        validate(&self.parts[&format!("/methods/{method}/result")], result, method);
        validate(&self.line, &answer, method);
        self.answered.insert(method.to_owned());
        result.clone()
    }

    /// Asks for what is refused with a code; whether the schema forbids it, too, is told.
    fn refused(&mut self, method: &str, params: Value, code: &str) -> bool {
        let part = self.parts.get(&format!("/methods/{method}/params"));
        let is_forbidden = part.is_none_or(|part| !part.is_valid(&params));
        self.send(method, &params);
        let answer = self.answer();
        validate(&self.parts["/errors"], &answer["error"], method);
        validate(&self.line, &answer, method);
        assert_eq!(answer["error"]["data"]["code"], code, "{method} {params}: {answer}");
        is_forbidden
    }

    /// Reads on until a notification is as it should be.
    fn await_note(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) {
        while !self.notes.iter().any(&is_it) {
            assert!(self.notes.len() < 1000, "no {what} in {:#?}", self.notes);
            let note = self.read();
            self.notes.push(note);
        }
    }
}

/// An agent with a value for nearly everything that can be asked for.
fn worker() -> Value {
    json!({
        "id": "worker", "parent": "fleet", "type": "tool", "priority": 7, "session": "s", "capabilities": ["dig"],
        "metadata": { "ticket": [17, null, { "a": 2.5 }] },
        "command": ["sh", "-c", "echo up; echo a warning >&2; exec sleep 1000"],
        "cwd": "/", "env": { "A": "b" }, "inherit_env": ["LANG"], "stdin": "/dev/null",
        "limits": { "pids_max": 64, "memory_max": "256MiB", "cpu_max": "150%" },
        "rlimits": { "nofile": 1024, "core": "0:max" }, "oom_score_adj": 100, "nice": 5, "umask": "027",
        "ionice": { "class": "best-effort", "level": 7 },
        "restart": { "policy": "on-failure", "delay": "10ms" }, "children": { "strategy": "one-for-all", "intensity": 3 },
        "spawn_budget": 10, "on_main_exit": "wait", "stop_signal": "INT", "stop_signal_to": "main", "grace": "5s", "run_timeout": 3600,
        "rules": [{ "name": "warned", "pattern": "warning", "stream": "stderr", "action": "notice" }],
        "ready": { "pattern": "^up$", "stream": "stdout" }, "ready_timeout": "30s",
        "stall": { "after": "1h", "action": "fail" }, "output_max": "1MiB", "admission": "queue",
    })
}

#[test]
fn what_a_real_daemon_takes_and_gives_is_what_the_schema_says() {
    let herd = herd();
    let mut checked = Checked::connect(&herd.socket());
    checked.ask("hello", json!({}));
    checked.ask("doctor", json!({}));
    checked.ask("config", json!({}));
    checked.ask("events", json!({ "follow": true, "since": 0 }));
    checked.ask("spawn", json!({ "id": "fleet" }));
    let spawned = checked.ask("spawn", worker());
    checked.ask("logs", json!({ "id": "worker", "follow": true }));
    checked.ask("follow", json!({ "target": { "level": 1 }, "stream": "stderr", "lines": 3 }));
    checked.await_note("output", |note| note["params"]["pieces"][0]["data"] == "dXAK");
    checked.await_note("notice", |note| note["params"]["event"]["found"]["rule"] == "warned");
    checked.await_note("readiness", |note| note["params"]["event"]["kind"] == "process:ready");
    let shown = checked.ask("show", json!({ "id": "worker" }));
    assert_eq!((&shown["spec"]["grace"], &shown["spec"]["output_max"]), (&json!("5s"), &json!(1 << 20)));
    checked.ask("ps", json!({ "parent": "fleet" }));
    checked.ask("explain", json!({ "id": "worker" }));
    checked.ask("process", json!({ "pid": spawned["pid"] }));
    checked.ask("stats", json!({ "agents": true }));
    checked.ask("limit", json!({ "scope": { "agent": "worker" }, "limits": { "pids_max": 32, "cpu_max": "max" } }));
    checked.ask("limit", json!({ "scope": { "siblings": 1 }, "limits": { "pids_max": "max" } }));
    checked.ask("pause", json!({ "target": { "level": 1 } }));
    checked.ask("show", json!({ "id": "worker" }));
    checked.ask("resume", json!({ "target": { "session": "s" } }));
    checked.ask("restart", json!({ "id": "worker" }));

    checked.ask("spawn", json!({ "id": "bad", "command": ["sh", "-c", "echo no >&2; exit 3"] }));
    checked.ask("wait", json!({ "ids": ["bad"] }));
    checked.await_note("failure", |note| note["params"]["event"]["exit"]["status"] == 3);
    checked.ask("show", json!({ "id": "bad" }));
    checked.ask("spawn", json!({ "id": "shot", "command": ["sh", "-c", "kill -SEGV $$"] }));
    checked.ask("wait", json!({ "ids": ["shot"] }));

    assert!(!checked.refused("show", json!({ "id": "nobody" }), "no_such_agent"));
    assert!(!checked.refused("spawn", json!({ "id": "fleet" }), "duplicate_id"));
    assert!(!checked.refused("spawn", json!({ "id": "x", "command": ["/no/such"] }), "exec_failed"));
    assert!(!checked.refused("spawn", json!({ "id": "x", "parent": "nobody" }), "no_such_parent"));
    assert!(checked.refused("show", json!({ "id": "../x" }), "bad_value"));
    assert!(checked.refused("ps", json!({ "no": 1 }), "bad_value"));
    assert!(checked.refused("spawn", json!({ "id": "x", "limits": { "memory_max": "10XB" } }), "bad_value"));
    assert!(checked.refused("spawn", json!({ "id": "x", "restart": { "no": 1 } }), "bad_value"));
    assert!(checked.refused("terminat", json!({}), "unknown_method"));
    checked.raw.send("hello\n");
    let answer = checked.answer();
    validate(&checked.parts["/errors"], &answer["error"], "what is not JSON");

    let receipt = checked.ask("terminate", json!({ "target": { "ids": ["fleet"] }, "grace_ms": 0 }));
    assert_eq!(receipt["agents"][1]["signals"]["SIGKILL"], 1, "{receipt}");
    checked.await_note("the last output", |note| note["params"]["is_last"] == true);
    let told = checked.ask("events", json!({ "since": 0 }));
    assert!(told["events"].as_array().unwrap().len() > 20, "{told:#}");
    checked.ask("logs", json!({ "id": "worker", "lines": 1, "stream": "stderr" }));
    checked.ask("stats", json!({}));
    checked.ask("cleanup", json!({ "target": "all" }));
    checked.ask("declare", json!({ "file": "fleet", "applied": {} }));
    checked.ask("shutdown", json!({ "grace_ms": 0 }));
    assert_eq!(checked.answered, Call::METHODS.iter().map(|method| (*method).to_owned()).collect());
    let cgroup = herd.cgroup.clone();
    drop(herd);
    assert_eq!(leftovers(&cgroup), Vec::<std::path::PathBuf>::new());
}

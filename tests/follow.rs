//! Output of many agents over one connection: who is covered, from where, until when, and who may ask.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use assert_cmd::cargo::cargo_bin;
use common::raw::Raw;
use common::*;
use serde_json::{Value, json};
use treeherd::api::method::OutputNote;
use treeherd::api::{CALLS_MAX, WIDE_MAX};
use treeherd::herd::OutputStream;
use treeherd::model::error::Code;
use treeherd::model::id::Level;
use treeherd::model::request::Target;

/// What a follower was told: of each agent its text, and how often its last.
#[derive(Debug, Default)]
struct Heard {
    said: BTreeMap<String, String>,
    lasts: BTreeMap<String, usize>,
}

impl Heard {
    fn take(&mut self, note: &OutputNote) {
        let id = note.id.to_string();
        *self.lasts.entry(id.clone()).or_default() += usize::from(note.is_last);
        let bytes = note.output.pieces.iter().flat_map(|piece| piece.data.clone()).collect();
        self.said.entry(id).or_default().push_str(&String::from_utf8(bytes).unwrap());
    }

    /// Takes in what comes until so many ends of an agent were told.
    fn until_last(&mut self, stream: &mut OutputStream, id: &str, count: usize) {
        while self.lasts.get(id).copied().unwrap_or(0) < count {
            let note = stream.next().unwrap_or_else(|| panic!("no last of {id} within {PATIENCE:?}: {self:?}"));
            self.take(&note);
        }
    }

    fn all(&self) -> Vec<(&str, &str)> {
        self.said.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect()
    }
}

fn followed(herd: &Own, target: Target) -> OutputStream {
    let mut stream = herd.follow_outputs(target).unwrap();
    stream.set_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn in_session(session: &str) -> impl FnOnce(&mut treeherd::model::spec::AgentSpec) {
    let session = session.parse().unwrap();
    move |spec| spec.session = Some(session)
}

#[test]
fn a_target_covers_those_who_are_there_and_those_who_begin_later() {
    let herd = herd();
    let crew = herd.group(None, "crew");
    let early = herd.spawn_below(&crew, "early", "echo before; sleep 1000");
    herd.spawn_with("apart", None, "echo apart; sleep 1000", in_session("s"));
    await_line(&herd, &early, "before");
    await_line(&herd, &name("apart"), "apart");
    let targets = [ids(&[&crew]), Target::Level(Level(1)), Target::Session("s".parse().unwrap()), Target::All];
    let mut streams = targets.map(|target| followed(&herd, target));
    herd.spawn_below(&crew, "late", "printf late");
    herd.spawn_with("member", None, "echo member >&2", in_session("s"));
    herd.spawn("silent", "exit 0");
    herd.wait(&["late", "member", "silent"].map(name)).unwrap();
    herd.terminate(Target::All, Some(Duration::ZERO)).unwrap();
    let (before, late, apart, member) =
        (("early", "before\n"), ("late", "late"), ("apart", "apart\n"), ("member", "member\n"));
    let wanted: [(&[&str], Vec<_>); 4] = [
        (&["early", "late"], vec![before, late]),
        (&["early", "late"], vec![before, late]),
        (&["apart", "member"], vec![apart, member]),
        (&["apart", "early", "late", "member", "silent"], vec![apart, before, late, member, ("silent", "")]),
    ];
    for (stream, (ends, said)) in streams.iter_mut().zip(wanted) {
        let mut heard = Heard::default();
        ends.iter().for_each(|id| heard.until_last(stream, id, 1));
        assert_eq!(heard.all(), said);
        assert!(heard.lasts.values().all(|count| *count == 1), "{heard:?}");
    }
    herd.finish();
}

#[test]
fn who_is_started_again_is_followed_on_and_the_end_of_each_run_is_told_once() {
    let herd = herd();
    let mut stream = followed(&herd, Target::All);
    let mut heard = Heard::default();
    let again = herd.spawn("again", "echo run");
    heard.until_last(&mut stream, "again", 1);
    // Its cgroup may be on its way out.
    until("it starts again", || herd.restart_agent(&again).is_ok());
    heard.until_last(&mut stream, "again", 2);
    herd.cleanup(ids(&[&again])).unwrap();
    // Another one of this name has a stream of its own, from its first byte on.
    herd.spawn("again", "echo another");
    heard.until_last(&mut stream, "again", 3);
    let runs = heard.said["again"].lines().count();
    assert_eq!((runs, heard.said["again"].ends_with("another\n")), (3, true), "{heard:?}");
    herd.finish();
}

#[test]
fn output_is_told_after_the_events_that_came_before_it_also_to_who_is_slow() {
    const AGENTS: u32 = 400;
    let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = AGENTS);
    let mut raw = Raw::connect(&herd.socket());
    raw.call("events", &json!({ "follow": true, "since": 0 }));
    raw.call("follow", &json!({ "target": "all" }));
    // More events than a page has, for a reader who does not read.
    for number in 0..AGENTS {
        herd.spawn(&format!("a{number}"), "head -c 2000 /dev/zero | tr '\\0' x; echo");
    }
    let mut lasts = 0;
    let (mut started, mut ended) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    while lasts < AGENTS {
        let note = raw.line().unwrap();
        if note["method"].is_null() {
            // An answer, which a notification may have come before.
            assert!(note["error"].is_null(), "{note}");
            continue;
        }
        let params = &note["params"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if note["method"] == "event" {
            assert_eq!(params["lost"], Value::Null, "{note}");
            let (kind, agent) = (text(&params["event"]["kind"]), text(&params["event"]["agent"]));
            match kind.as_str() {
                "process:started" => drop(started.insert(agent)),
                "process:completed" => drop(ended.insert(agent)),
                _ => {}
            }
            continue;
        }
        let id = text(&params["id"]);
        assert!(started.contains(&id), "{id} was heard before its start was told");
        if params["is_last"] == true {
            assert!(ended.contains(&id), "the last of {id} was told before its end");
            lasts += 1;
        }
    }
    herd.finish();
}

#[test]
fn a_connection_has_a_bounded_number_of_follows() {
    let herd = herd();
    let mut raw = Raw::connect(&herd.socket());
    herd.sleeper(None, "a");
    let follow = ("follow", json!({ "target": { "level": 7 } }));
    let single =
        [("events", json!({ "follow": true, "agent": "nobody" })), ("logs", json!({ "id": "a", "follow": true }))];
    let refused = |raw: &mut Raw, (method, params): &(&str, Value), remedy: &str| {
        let answer = raw.call(method, params);
        assert_eq!(answer["error"]["data"]["code"], "too_many_clients", "{answer}");
        assert!(answer["error"]["data"]["remedy"].as_str().unwrap().contains(remedy), "{answer}");
    };
    for _ in 0..WIDE_MAX {
        assert!(raw.call(follow.0, &follow.1)["error"].is_null());
    }
    refused(&mut raw, &follow, "a wider target");
    for (method, params) in single.iter().cycle().take(CALLS_MAX - WIDE_MAX) {
        let answer = raw.call(method, params);
        assert!(answer["error"].is_null(), "{answer}");
    }
    single.iter().chain([&follow]).for_each(|call| refused(&mut raw, call, "one call of follow"));
    let mut other = Raw::connect(&herd.socket());
    assert!(other.call("follow", &json!({ "target": "all" }))["error"].is_null(), "another one may");
    herd.finish();
}

#[test]
fn who_is_not_there_is_refused() {
    let herd = herd();
    assert_code(herd.follow_outputs(ids(&[&name("nobody")])), Code::NoSuchAgent);
    assert_code(herd.follow_outputs(Target::Session("none".parse().unwrap())), Code::NoSuchAgent);
    herd.finish();
}

#[test]
fn an_agent_follows_what_is_below_it_and_nobody_who_takes_a_name_from_there() {
    let herd = herd();
    let program = cargo_bin!("treeherd").to_str().unwrap();
    let (socket, go) = (herd.socket(), herd.dir.path().join("go"));
    let script = format!(
        "until [ -e {} ]; do sleep 0.02; done; exec {program} --socket {} logs --subtree below --follow",
        go.display(),
        socket.display()
    );
    let spy = herd.spawn("spy", &script);
    let says = |parent, what: &str| {
        let id = herd.spawn_with("below", parent, &format!("echo {what}; sleep 1000"), |_| {});
        await_line(&herd, &id, what);
        id
    };
    let forget = |id| {
        herd.terminate(ids(&[id]), Some(Duration::ZERO)).unwrap();
        herd.cleanup(ids(&[id])).unwrap();
    };
    let below = says(Some(&spy), "mine");
    std::fs::write(&go, "").unwrap();
    await_line(&herd, &spy, "below │ mine");
    forget(&below);
    forget(&says(None, "secret"));
    says(Some(&spy), "again");
    await_line(&herd, &spy, "below │ again");
    assert_eq!(String::from_utf8(output(&herd, &spy)).unwrap(), "below │ mine\nbelow │ again\n");
    herd.finish();
}

#[test]
fn on_the_command_line_each_line_stands_behind_its_agent() {
    let mut herd = daemon(&[]);
    let top = herd.spawn("top", "echo first; echo wrong >&2; sleep 1000");
    let inner = herd.spawn_below(&top, "inner", "printf '1\\n2\\n3\\nopen'; sleep 1000");
    await_line(&herd, &top, "wrong");
    await_line(&herd, &inner, "3");
    herd.group(None, "group");
    let shown = |words: &[&str]| {
        let output = treeherd(&herd, words);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let of_inner = "inner │ 1\ninner │ 2\ninner │ 3\ninner │ open\n";
    assert_eq!(shown(&["logs", "--level", "1"]), of_inner);
    assert_eq!(shown(&["logs", "--all", "--stderr"]), "  top ║ wrong\n");
    assert_eq!(shown(&["logs", "--subtree", "top", "-n", "1"]), "  top │ first\n  top ║ wrong\ninner │ open\n");
    let piece: Value = serde_json::from_str(&shown(&["--json", "logs", "--level", "1"])).unwrap();
    assert_eq!(
        (&piece["agent"], &piece["stream"], &piece["data"]),
        (&json!("inner"), &json!("stdout"), &json!("MQoyCjMKb3Blbg=="))
    );
    assert_eq!(shown(&["ps", "top"]).lines().count(), 3, "an agent stands for its subtree");

    let mut follower = Command::new(cargo_bin!("treeherd"));
    follower.arg("--socket").arg(herd.socket()).args(["logs", "--all", "--follow"]).stdout(Stdio::piped());
    let mut follower = follower.spawn().unwrap();
    let mut told = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said: Vec<String> = told.by_ref().take(5).collect();
    let late = herd.spawn("late", "echo late");
    herd.wait(&[late]).unwrap();
    herd.end();
    said.extend(told);
    assert!(follower.wait().unwrap().success(), "the end of the herd is its end");
    for line in ["  top │ first", "  top ║ wrong", "inner │ 1", "inner │ open", " late │ late"] {
        assert_eq!(said.iter().filter(|said| *said == line).count(), 1, "{line}: {said:?}");
    }
}

/// The child is not in the file, and is told where its supervisor is all the same.
const FILE: &str = r#"
[agents.boss]
command = """
"$TREEHERD" spawn child --parent boss -- sh -c 'echo "at $TREEHERD_SOCKET"; printf open' > /dev/null &&
"$TREEHERD" wait child > /dev/null"""
"#;

#[test]
fn a_run_shows_what_agents_write_that_its_agents_have_spawned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree.toml");
    std::fs::write(&path, FILE).unwrap();
    let cgroup = unique("run");
    let mut run = Command::new(cargo_bin!("treeherd"));
    run.args(["run", "--cgroup", &cgroup, "--state-dir", "state"]).arg(&path).current_dir(dir.path());
    let out = run.output().unwrap();
    let said = text(&out.stdout);
    assert!(out.status.success(), "{said}{}", text(&out.stderr));
    let place = |line: &str| said.find(line).unwrap_or_else(|| panic!("{line}: {said}"));
    let socket = dir.path().canonicalize().unwrap().join("state/treeherd.sock");
    let line = place(&format!("child │ at {}\n", socket.display()));
    assert!(place("child ▶ started") < line && line < place("child │ open\n"), "{said}");
    assert_eq!(leftovers(&cgroup), Vec::<std::path::PathBuf>::new());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

//! The socket itself, used by people and programs that do not wish it well.
#![allow(clippy::unwrap_used)]

mod common;

use common::raw::Raw;
use common::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;
use treeherd::api::{CALLS_MAX, CLIENTS_MAX, REQUEST_MAX};
use treeherd::model::event::Kind;
use treeherd::model::spec::METADATA_DEPTH_MAX;

fn code(answer: &Value) -> &str {
    answer["error"]["data"]["code"].as_str().unwrap_or_else(|| panic!("no error: {answer}"))
}

#[test]
fn what_is_not_a_request_is_refused_and_the_connection_goes_on() {
    let herd = herd();
    let mut raw = Raw::connect(&herd.socket());
    for (text, wanted, number) in [
        ("hello", "not_json", -32700),
        ("{", "not_json", -32700),
        ("\u{0}\u{1}\u{2}", "not_json", -32700),
        ("[]", "bad_request", -32600),
        (r#"["2.0",1,"ps",null]"#, "bad_request", -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ps"}]"#, "bad_request", -32600),
        ("null", "bad_request", -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ps"}"#, "bad_request", -32600),
        (r#"{"id":1,"method":"ps"}"#, "bad_request", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, "bad_request", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"terminat"}"#, "unknown_method", -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"show","params":{"id":7}}"#, "bad_value", -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"show","params":{"id":"../x"}}"#, "bad_value", -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"show","params":[1]}"#, "bad_value", -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ps","params": []}"#, "bad_value", -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"events","params":[null,false]}"#, "bad_value", -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ps","params":{"no":1}}"#, "bad_value", -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"pause","params":{"target":{"level":-1}}}"#, "bad_value", -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"process","params":{"pid":99999999999}}"#, "bad_value", -32602),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"terminate","params":{"target":"all","grace_ms":-1}}"#,
            "bad_value",
            -32602,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"spawn","params":{"id":"a","command":["true"],"limits":{"memory_max":"10XB"}}}"#,
            "bad_value",
            -32602,
        ),
    ] {
        let answer = raw.ask(text);
        assert_eq!((code(&answer), answer["error"]["code"].as_i64()), (wanted, Some(number)), "{text}: {answer}");
    }
    let answer = raw.ask(r#"{"jsonrpc":"2.0","id":1,"method":"terminat"}"#);
    assert!(answer["error"]["data"]["remedy"].as_str().unwrap().contains("did you mean terminate?"), "{answer}");
    let answer = raw.ask(r#"{"jsonrpc":"2.0","id":1,"method":"hello"}"#);
    assert_eq!(answer["result"]["pid"], std::process::id());
    herd.finish();
}

#[test]
fn an_id_of_any_type_comes_back_and_a_notification_is_not_answered() {
    let herd = herd();
    let mut raw = Raw::connect(&herd.socket());
    for id in
        [json!(1), json!(-1), json!("x"), json!(1.5), json!(null), json!(true), json!([1, {"a": []}]), json!({"a": 1})]
    {
        let answer = raw.ask(&json!({ "jsonrpc": "2.0", "id": id, "method": "hello" }).to_string());
        assert_eq!(answer["id"], id);
        assert!(answer["result"].is_object());
        let answer = raw.ask(&json!({ "jsonrpc": "2.0", "id": id, "method": "no" }).to_string());
        assert_eq!((&answer["id"], code(&answer)), (&id, "unknown_method"));
    }
    raw.send("{\"jsonrpc\":\"2.0\",\"method\":\"hello\"}\n{\"jsonrpc\":\"2.0\",\"method\":\"stats\"}\n");
    let answer = raw.ask(r#"{"jsonrpc":"2.0","id":"after","method":"hello"}"#);
    assert_eq!(answer["id"], "after", "without an id no answer is sent");
    herd.finish();
}

#[test]
fn a_line_without_an_end_is_refused_at_the_bound() {
    let herd = herd();
    let mut raw = Raw::connect(&herd.socket());
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0;
    // Up to 1 GiB is offered; the refusal comes after little more than the bound.
    while sent < 1 << 30 {
        match raw.stream.write(&chunk) {
            Ok(written) => sent += written,
            Err(_) => break,
        }
    }
    assert!(sent < REQUEST_MAX + (16 << 20), "{sent} bytes were taken");
    let answer = raw.line().unwrap();
    assert_eq!(code(&answer), "too_large");
    assert_eq!(raw.line(), None, "and the connection is closed");
    assert!(herd.stats().unwrap().clients >= 1);
    herd.finish();
}

#[test]
fn a_request_just_below_the_bound_is_read() {
    let herd = herd();
    let mut raw = Raw::connect(&herd.socket());
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"hello"}"#;
    let padded = format!("{}{request}", " ".repeat(REQUEST_MAX - request.len()));
    assert!(raw.ask(&padded)["result"].is_object());
    herd.finish();
}

#[test]
fn deep_nesting_is_refused_and_what_goes_in_comes_out() {
    let herd = herd();
    let mut raw = Raw::connect(&herd.socket());
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let spawn = |depth: usize| {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"spawn","params":{{"id":"g{depth}","metadata":{{"k":{}}}}}}}"#,
            nested(depth)
        )
    };
    let answer = raw.ask(&spawn(100_000));
    assert_eq!(code(&answer), "bad_value");
    for depth in [1, METADATA_DEPTH_MAX, METADATA_DEPTH_MAX + 1, 100, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129]
    {
        let answer = raw.ask(&spawn(depth));
        if depth <= METADATA_DEPTH_MAX {
            assert_eq!(answer["result"]["id"], format!("g{depth}"));
        } else {
            assert!(["bad_value", "bad_request"].contains(&code(&answer)), "{answer}");
        }
        for method in ["ps", "show"] {
            let params = if method == "ps" { json!({}) } else { json!({ "id": format!("g{depth}") }) };
            let answer = raw.call(method, &params);
            assert!(answer.is_object(), "an agent that was let in can be read by every client");
        }
    }
    assert!(!herd.agents().unwrap().is_empty());
    herd.finish();
}

#[test]
fn pipelined_requests_are_all_answered() {
    let herd = herd();
    let mut raw = Raw::connect(&herd.socket());
    let count = 5_000;
    let requests: String =
        (0..count).map(|id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"ps\"}}\n")).collect();
    let mut writer = raw.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(requests.as_bytes()).unwrap());
    for id in 0..count {
        assert_eq!(raw.line().unwrap()["id"], id, "what is answered at once is answered in order");
    }
    sender.join().unwrap();
    herd.finish();
}

#[test]
fn a_client_that_has_closed_its_side_still_gets_every_answer() {
    let herd = herd();
    let id = herd.spawn("a", "read x < /dev/null; exec sleep 0.2");
    let mut raw = Raw::connect(&herd.socket());
    let count = 500;
    let mut requests: String =
        (0..count).map(|id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"ps\"}}\n")).collect();
    // The last one has no end of line, and is answered only when the agent has ended.
    requests.push_str(&format!(r#"{{"jsonrpc":"2.0","id":"last","method":"wait","params":{{"ids":["{id}"]}}}}"#));
    raw.send(&requests);
    raw.stream.shutdown(Shutdown::Write).unwrap();
    for id in 0..count {
        assert_eq!(raw.line().unwrap()["id"], id);
    }
    let last = raw.line().unwrap();
    assert_eq!((&last["id"], &last["result"][0]["state"]), (&json!("last"), &json!("completed")));
    assert_eq!(raw.line(), None);
    herd.finish();
}

#[test]
fn a_client_that_goes_away_in_the_middle_disturbs_nobody() {
    let herd = herd();
    let id = herd.sleeper(None, "a");
    for _ in 0..50 {
        let mut raw = Raw::connect(&herd.socket());
        raw.send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"wait\",\"params\":{\"ids\":[\"a\"]}}\n");
        raw.send(
            "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"events\",\"params\":{\"follow\":true,\"since\":0}}\n{\"json",
        );
    }
    herd.terminate_agent(&id, None).unwrap();
    let mut raw = Raw::connect(&herd.socket());
    assert!(raw.call("stats", &json!({}))["result"]["clients"].as_u64().unwrap() <= 3, "the others are forgotten");
    herd.finish();
}

#[test]
fn unanswered_calls_are_bounded() {
    let herd = herd();
    herd.sleeper(None, "a");
    let mut raw = Raw::connect(&herd.socket());
    for id in 0..=CALLS_MAX {
        raw.send(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"wait\",\"params\":{{\"ids\":[\"a\"]}}}}\n"));
    }
    let answer = raw.line().unwrap();
    assert_eq!((code(&answer), &answer["id"]), ("too_many_clients", &json!(CALLS_MAX)));
    assert!(herd.stats().is_ok());
    herd.finish();
}

#[test]
fn ten_thousand_connections_are_refused_politely_beyond_the_bound() {
    let herd = herd();
    let mut events = herd.follow();
    let mut first = Raw::connect(&herd.socket());
    assert!(first.call("hello", &json!({}))["result"].is_object());
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..10_000 {
        let mut raw = Raw::connect(&herd.socket());
        // Whoever is refused may be so before it has asked anything.
        let _sent = raw.stream.write(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\"}\n");
        let answer = raw.line().expect("nobody is sent away without a word");
        if answer["result"].is_object() {
            held.push(raw);
        } else {
            assert_eq!(code(&answer), "too_many_clients");
            refused += 1;
        }
    }
    assert!(refused > 9_000 && held.len() < CLIENTS_MAX, "{refused} refused, {} held", held.len());
    assert!(first.call("ps", &json!({}))["result"].is_array(), "those who are in go on");
    let spawned = first.call("spawn", &json!({ "id": "a", "command": ["sh", "-c", "exit 3"] }));
    assert_eq!(spawned["result"]["id"], "a");
    await_event(&mut events, Kind::Failed, &name("a"));
    drop(held);
    // The first answer may still be from the turn in which the others left.
    for _ in 0..2 {
        assert!(first.call("stats", &json!({}))["result"].is_object());
    }
    let mut late = Raw::connect(&herd.socket());
    assert!(late.call("hello", &json!({}))["result"].is_object(), "there is room again");
    herd.finish();
}

#[test]
fn a_slow_reader_of_output_blocks_nobody_and_is_told_its_loss() {
    let herd = herd();
    let mut events = herd.follow();
    let fifo = herd.dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let size = 48_000_000u64;
    let script = format!("read x < {}; yes 12345 | head -c {size}; exit 0", fifo.display());
    let id = herd.spawn_with("a", None, &script, |spec| spec.output_max = treeherd::model::units::Bytes(1 << 20));
    let mut slow = Raw::connect(&herd.socket());
    slow.call("logs", &json!({ "id": "a", "follow": true, "stream": "stdout" }));
    std::fs::write(&fifo, "go\n").unwrap();
    await_event(&mut events, Kind::Completed, &id);
    assert!(herd.stats().is_ok());
    let (mut at, mut gone, mut read) = (0, 0, 0);
    loop {
        let note = slow.line().unwrap();
        let note: treeherd::api::method::OutputNote = serde_json::from_value(note["params"].clone()).unwrap();
        let lost = note.output.gone.stdout.unwrap_or(0);
        (gone, at) = (gone + lost, at + lost);
        for piece in &note.output.pieces {
            assert_eq!(piece.offset, at, "offsets are exact across the gap");
            let wanted = b"12345\n".iter().cycle().skip(usize::try_from(at % 6).unwrap());
            assert!(piece.data.iter().zip(wanted).all(|(a, b)| a == b));
            at += piece.data.len() as u64;
            read += piece.data.len() as u64;
        }
        if note.is_last {
            break;
        }
    }
    assert_eq!((at, gone + read), (size, size));
    assert!(gone > size / 2, "it was too slow: {gone}");
    herd.finish();
}

#[test]
fn a_slow_reader_of_events_blocks_nobody_and_is_told_its_loss() {
    let herd = herd();
    let mut slow = Raw::connect(&herd.socket());
    slow.call("events", &json!({ "follow": true, "since": 0 }));
    let mut quick = herd.follow();
    // Failures that quote as much as they can, until the journal has turned over twice.
    let size = |name: &str| herd.dir.path().join("state").join(name).metadata().map_or(0, |metadata| metadata.len());
    let id = herd.spawn_with("a", None, "head -c 8192 /dev/zero >&2; exit 1", |spec| {
        spec.restart.policy = treeherd::model::spec::RestartPolicy::Always;
        spec.restart.delay = Duration::ZERO;
        spec.restart.intensity = 1_000_000;
    });
    let (mut last, mut turns, mut before) = (0, 0, 0);
    while turns < 3 {
        let event = await_event(&mut quick, Kind::Failed, &id);
        assert!(event.seq > last);
        last = event.seq;
        let now = size("journal");
        turns += u32::from(now < before);
        before = now;
        assert!(size("journal") + size("journal.1") < 20 << 20, "the journal is bounded");
    }
    herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap();
    let last = herd.stats().unwrap().last_event;
    let (mut at, mut lost) = (0, 0);
    while at < last {
        let note = slow.line().unwrap();
        let skipped = note["params"]["lost"].as_u64().unwrap_or(0);
        (lost, at) = (lost + skipped, at + skipped);
        if let Some(seq) = note["params"]["event"]["seq"].as_u64() {
            assert_eq!(seq, at + 1, "what is lost is told exactly");
            at = seq;
        }
    }
    assert!(lost > 0);
    herd.finish();
}

/// What the agents of the tests below are: this binary again, as a client inside the herd.
#[test]
fn role() {
    if std::env::var(ROLE).is_ok_and(|role| role == "client") {
        let mut raw = Raw::connect(Path::new(&std::env::var("SOCKET").unwrap()));
        for line in std::env::var("REQUESTS").unwrap().lines() {
            let answer = raw.ask(line);
            println!("answer {}", answer["error"]["data"]["code"].as_str().unwrap_or("ok"));
        }
        println!("answer end");
        std::io::stdout().flush().unwrap();
        let _nothing = std::io::stdin().read(&mut [0u8; 1]);
    }
}

#[test]
fn acceptance_11_an_agent_acts_only_below_itself() {
    let herd = herd();
    let parent = herd.sleeper(None, "parent");
    let cousin = herd.sleeper(None, "cousin");
    let ask = |method: &str, params: Value| {
        json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
    };
    let (other, all) = (json!({ "ids": ["cousin"] }), json!("all"));
    let requests = [
        (ask("pause", json!({ "target": { "ids": ["parent"] } })), "forbidden"),
        (ask("pause", json!({ "target": other })), "forbidden"),
        (ask("terminate", json!({ "target": other, "grace_ms": 0 })), "forbidden"),
        (ask("terminate", json!({ "target": { "ids": ["child", "cousin"] } })), "forbidden"),
        (ask("pause", json!({ "target": all })), "forbidden"),
        (ask("resume", json!({ "target": { "level": 0 } })), "forbidden"),
        (ask("limit", json!({ "scope": { "agent": "child" }, "limits": { "pids_max": 10000 } })), "forbidden"),
        (ask("limit", json!({ "scope": "herd", "limits": { "pids_max": 10000 } })), "forbidden"),
        (ask("limit", json!({ "scope": { "each": 1 }, "limits": { "pids_max": 10000 } })), "forbidden"),
        (ask("restart", json!({ "id": "parent" })), "forbidden"),
        (ask("cleanup", json!({ "target": all })), "forbidden"),
        (ask("wait", json!({ "ids": ["cousin"] })), "forbidden"),
        (ask("shutdown", json!({})), "forbidden"),
        (ask("spawn", json!({ "id": "x", "command": ["true"] })), "forbidden"),
        (ask("spawn", json!({ "id": "x", "parent": "parent", "command": ["true"] })), "forbidden"),
        (ask("logs", json!({ "id": "cousin" })), "forbidden"),
        (ask("follow", json!({ "target": all })), "forbidden"),
        (ask("follow", json!({ "target": { "level": 1 } })), "forbidden"),
        (ask("follow", json!({ "target": { "ids": ["child", "cousin"] } })), "forbidden"),
        (ask("show", json!({ "id": "parent" })), "forbidden"),
        (ask("events", json!({ "since": 0 })), "forbidden"),
        (ask("events", json!({ "since": 0, "agent": "cousin" })), "forbidden"),
        (ask("spawn", json!({ "id": "own", "parent": "child", "command": ["sleep", "1000"] })), "ok"),
        (ask("pause", json!({ "target": { "ids": ["own"] } })), "ok"),
        (ask("limit", json!({ "scope": { "agent": "own" }, "limits": { "pids_max": 10 } })), "ok"),
        (ask("limit", json!({ "scope": { "agent": "own" }, "limits": { "pids_max": 1000 } })), "limit_too_wide"),
        (ask("terminate", json!({ "target": { "ids": ["own"] }, "grace_ms": 0 })), "ok"),
        (ask("logs", json!({ "id": "child" })), "ok"),
    ];
    let text: Vec<&str> = requests.iter().map(|(line, _)| line.as_str()).collect();
    let child = herd.role(Some(&parent), "child", "client", |spec| {
        spec.env.insert("SOCKET".to_owned(), herd.socket().to_str().unwrap().to_owned());
        spec.env.insert("REQUESTS".to_owned(), text.join("\n"));
        spec.limits = limits(&["pids_max=100"]);
    });
    await_line(&herd, &child, "answer end");
    let said = String::from_utf8(output(&herd, &child)).unwrap();
    let answers: Vec<&str> =
        said.lines().filter_map(|line| line.split_once("answer ")).map(|(_, answer)| answer).collect();
    for ((line, wanted), answer) in requests.iter().zip(&answers) {
        assert_eq!(answer, wanted, "{line}");
    }
    assert_eq!(answers.len(), requests.len() + 1);
    let trail: Vec<_> = herd.events_of(&child).into_iter().filter(|event| event.kind == Kind::Forbidden).collect();
    assert!(trail.len() >= 15, "each is in the audit trail: {}", trail.len());
    assert!(trail.iter().all(|event| event.message.contains("agent child")), "{trail:?}");
    for id in [&parent, &cousin] {
        let status = herd.agent_status(id).unwrap();
        assert_eq!((status.run.0, status.paused), (1, treeherd::model::status::Paused::No));
        assert_eq!(herd.ends_of(id), []);
    }
    herd.finish();
}

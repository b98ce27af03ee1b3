use serde_json::json;

use super::*;

fn document() -> Value {
    serde_json::to_value(Contract::new()).unwrap()
}

/// Makes a validator of one part of the document.
fn part(document: &Value, pointer: &str) -> jsonschema::Validator {
    let mut schema = document.pointer(pointer).unwrap_or_else(|| panic!("nothing is at {pointer}")).clone();
    schema["$defs"] = document["$defs"].clone();
    jsonschema::draft202012::new(&schema).unwrap()
}

/// Walks over every value of a document.
fn walk(value: &Value, visit: &mut impl FnMut(&Value)) {
    visit(value);
    match value {
        Value::Array(values) => values.iter().for_each(|value| walk(value, visit)),
        Value::Object(values) => values.values().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

#[test]
fn the_document_is_a_valid_schema_and_every_reference_in_it_resolves() {
    let document = document();
    jsonschema::draft202012::meta::validate(&document).unwrap();
    let mut count = 0;
    walk(&document, &mut |value| {
        let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return };
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} is nowhere");
        count += 1;
    });
    assert!(count > 200, "{count} references");
    for definition in document["$defs"].as_object().unwrap().values() {
        jsonschema::draft202012::meta::validate(definition).unwrap();
    }
}

#[test]
fn every_method_is_in_it_with_what_it_does_takes_and_gives() {
    let document = document();
    let methods = document["methods"].as_object().unwrap();
    assert_eq!(methods.keys().map(String::as_str).collect::<BTreeSet<_>>(), Call::METHODS.iter().copied().collect());
    for (name, method) in methods {
        assert!(method["description"].as_str().unwrap().len() > 10, "{name}");
        for pointer in [format!("/methods/{name}/params"), format!("/methods/{name}/result")] {
            assert!(!part(&document, &pointer).is_valid(&json!(17)), "{pointer} takes anything");
        }
    }
}

#[test]
fn every_definition_and_every_field_is_described_in_plain_text() {
    let document = document();
    // getrlimit(2) describes its names.
    let silent = ["Rlimit"];
    for (name, definition) in document["$defs"].as_object().unwrap() {
        assert!(definition["description"].is_string() || silent.contains(&name.as_str()), "{name}: {definition}");
        for (field, schema) in definition["properties"].as_object().into_iter().flatten() {
            let is_envelope = ["Request", "Answer", "Notification"].contains(&name.as_str());
            assert!(schema["description"].is_string() || is_envelope, "{name}.{field}: {schema}");
        }
    }
    walk(&document, &mut |value| {
        let text = value.get("description").and_then(Value::as_str).unwrap_or_default();
        assert!(!text.contains("[`") && !text.contains("](") && !text.contains("::"), "{text}");
    });
}

#[test]
fn every_stable_code_is_in_the_error_object() {
    let document = document();
    let error = part(&document, "/errors");
    for code in document["$defs"]["Code"]["oneOf"].as_array().unwrap() {
        let code: crate::model::error::Code = serde_json::from_value(code["const"].clone()).unwrap();
        let value = serde_json::to_value(RpcError::from(Error::new(code, "why").remedy("what helps"))).unwrap();
        assert!(error.is_valid(&value), "{value}");
    }
    assert!(!error.is_valid(&json!({ "code": -32000, "message": "why", "data": { "code": "no_such_code" } })));
}

/// Parameters, and whether they are taken: by the schema and by the reader.
#[test]
fn the_schema_takes_what_the_reader_takes_and_refuses_what_it_refuses() {
    let document = document();
    let spawn = |field: &str, value: Value| json!({ "id": "a", "command": ["true"], field: value });
    let (bad_id, long_id) = (json!({ "id": "../x" }), json!({ "id": "x".repeat(64) }));
    let table = [
        ("ps", json!({}), true),
        ("ps", json!({ "no": 1 }), false),
        ("ps", json!({ "target": "all", "parent": "p" }), true),
        ("show", json!({}), false),
        ("show", json!({ "id": "a", "no": 1 }), false),
        ("show", bad_id, false),
        ("show", long_id, false),
        ("show", json!({ "id": "x".repeat(63) }), true),
        ("pause", json!({ "target": { "level": 2 } }), true),
        ("pause", json!({ "target": { "level": -1 } }), false),
        ("pause", json!({ "target": { "level": 1, "session": "s" } }), false),
        ("pause", json!({ "target": "none" }), false),
        ("terminate", json!({ "target": { "ids": ["a", "b"] }, "grace_ms": 0 }), true),
        ("terminate", json!({ "target": { "ids": ["a"] }, "grace_ms": -1 }), false),
        ("limit", json!({ "scope": "herd", "limits": { "pids_max": "max", "cpu_max": "150%" } }), true),
        ("limit", json!({ "scope": { "each": 1 }, "limits": { "pids_max": 0 } }), false),
        ("limit", json!({ "scope": { "total": 1 }, "limits": { "pids_mux": 5 } }), false),
        ("events", json!({ "since": null, "follow": true }), true),
        ("logs", json!({ "id": "a", "stream": "stdin" }), false),
        ("logs", json!({ "id": "a", "from": { "stdout": 7 } }), true),
        ("process", json!({ "pid": 99_999_999_999_i64 }), false),
        ("spawn", json!({ "command": ["true"] }), false),
        ("spawn", spawn("commmand", json!([])), false),
        ("spawn", spawn("priority", json!(10)), true),
        ("spawn", spawn("priority", json!(11)), false),
        ("spawn", spawn("oom_score_adj", json!(1001)), false),
        ("spawn", spawn("nice", json!(-20)), true),
        ("spawn", spawn("nice", json!(20)), false),
        ("spawn", spawn("ionice", json!({ "class": "idle", "level": 8 })), false),
        ("spawn", spawn("output_max", json!("1 MiB")), true),
        ("spawn", spawn("output_max", json!(65536)), true),
        ("spawn", spawn("output_max", json!("1XB")), false),
        ("spawn", spawn("output_max", json!(-1)), false),
        ("spawn", spawn("grace", json!("1m 30s")), true),
        ("spawn", spawn("grace", json!(0.5)), true),
        ("spawn", spawn("grace", json!(-1)), false),
        ("spawn", spawn("grace", json!(null)), false),
        ("spawn", spawn("run_timeout", json!(null)), true),
        ("spawn", spawn("restart", json!({ "policy": "on-failure", "delay": "1s" })), true),
        ("spawn", spawn("restart", json!({ "policy": "on_failure" })), false),
        ("spawn", spawn("restart", json!({ "no": 1 })), false),
        ("spawn", spawn("restart", json!("always")), false),
        ("spawn", spawn("children", json!({ "strategy": "one-for-all" })), true),
        ("spawn", spawn("ready", json!("notify")), true),
        ("spawn", spawn("ready", json!("nottify")), false),
        ("spawn", spawn("ready", json!({ "fd": 3 })), true),
        ("spawn", spawn("ready", json!({ "fd": 2 })), false),
        ("spawn", spawn("ready", json!({ "pattern": "up$", "fd": 3 })), false),
        ("spawn", spawn("rules", json!([{ "pattern": "panic", "action": "fail" }])), true),
        ("spawn", spawn("rules", json!([{ "pattern": "x".repeat(1025) }])), false),
        ("spawn", spawn("stall", json!({ "after": "5m" })), true),
        ("spawn", spawn("stall", json!("5m")), false),
        ("spawn", spawn("pressure", json!([{ "resource": "memory", "above": "15%" }])), true),
        ("spawn", spawn("pressure", json!([{ "resource": "memory", "above": "101%" }])), false),
        ("spawn", spawn("rlimits", json!({ "nofile": 1024, "core": "0:max" })), true),
        ("spawn", spawn("rlimits", json!({ "no": 1024 })), false),
        ("spawn", spawn("env", json!({ "A": 1 })), false),
        ("spawn", spawn("metadata", json!({ "a": [1, null, { "b": 2.5 }] })), true),
        ("spawn", spawn("limits", json!({ "memory_max": "512MiB", "memory_oom_group": true, "cpu_weight": 50 })), true),
        ("spawn", spawn("limits", json!({ "memory_max": "10XB" })), false),
        ("spawn", spawn("limits", json!({ "memory_max": [1] })), false),
        ("spawn", spawn("limits", json!({ "cpu_weight": 10_001 })), false),
    ];
    for (method, params, is_taken) in table {
        let validator = part(&document, &format!("/methods/{method}/params"));
        assert_eq!(validator.is_valid(&params), is_taken, "the schema: {method} {params}");
        let raw = serde_json::value::to_raw_value(&params).unwrap();
        let is_read = Call::parse(method, Some(&raw)).is_ok_and(|call| match call {
            Call::Spawn(spec) => spec.check().is_ok(),
            _ => true,
        });
        assert_eq!(is_read, is_taken, "the reader: {method} {params}");
    }
}

#[test]
fn a_line_of_the_socket_is_a_request_an_answer_or_a_notification() {
    let document = document();
    let line = jsonschema::draft202012::new(&document).unwrap();
    for (text, is_one) in [
        (json!({ "jsonrpc": "2.0", "id": 1, "method": "ps" }), true),
        (json!({ "jsonrpc": "2.0", "id": 1, "method": "ps", "params": { "target": "all" } }), true),
        (json!({ "jsonrpc": "2.0", "method": "show", "params": { "id": "a" } }), true),
        (json!({ "jsonrpc": "2.0", "id": 1, "method": "show" }), false),
        (json!({ "jsonrpc": "2.0", "id": 1, "method": "ps", "params": { "no": 1 } }), false),
        (json!({ "jsonrpc": "1.0", "id": 1, "method": "ps" }), false),
        (json!({ "jsonrpc": "2.0", "id": 1, "method": "terminat" }), false),
        (json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32700, "message": "no", "data": null } }), true),
        (json!({ "jsonrpc": "2.0", "id": 1 }), false),
        (json!({ "jsonrpc": "2.0", "method": "event", "params": { "call": 1, "lost": 3 } }), true),
        (json!({ "jsonrpc": "2.0", "method": "event", "params": { "lost": 3 } }), false),
    ] {
        assert_eq!(line.is_valid(&text), is_one, "{text}");
    }
}

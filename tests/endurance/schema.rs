//! Requests by the schema: parameters that fit, parameters that nearly fit, and junk.

use std::process::Command;

use serde_json::{Map, Value, json};

/// Texts that are a limit, a duration, a name, or none of them. None of them is a program that does anything.
const WORDS: &[&str] = &[
    "",
    "x",
    "a b",
    "..",
    "../../etc",
    "\u{202e}evil",
    "line\nbreak",
    "\u{1b}[2J",
    "\u{0}",
    "512MiB",
    "2GB",
    "150%",
    "50000 100000",
    "max",
    "1s",
    "10ms",
    "1000000h",
    "-1",
    "99999999999999999999",
    "nobody",
    "root",
    "TERM",
    "(a*)*$",
    "[",
    "on-failure",
];

/// Programs that are harmless, whoever runs them.
const COMMANDS: &[&[&str]] =
    &[&["sleep", "1000"], &["true"], &["sh", "-c", "echo out; echo err >&2; exit 3"], &["/no/such"], &["/etc/passwd"]];

/// Makes requests from what `treeherd schema` says.
pub struct Requests {
    document: Value,
    pub methods: Vec<String>,
    pub chance: fastrand::Rng,
    /// Names of agents that may be there.
    ids: Vec<String>,
    /// Whether the request that is made now is to be one that is taken.
    is_fair: bool,
}

impl Requests {
    pub fn new(seed: u64, ids: &[&str]) -> Self {
        let output = Command::new(assert_cmd::cargo::cargo_bin!("treeherd")).arg("schema").output().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let methods = document["methods"].as_object().unwrap().keys().cloned().collect();
        let new = (0..8).map(|number| format!("new-{number}"));
        let ids = ids.iter().map(|id| (*id).to_owned()).chain(new).collect();
        Self { document, methods, chance: fastrand::Rng::with_seed(seed), ids, is_fair: true }
    }

    /// Makes one line: a request of a method as a rule, sometimes something that is none.
    pub fn line(&mut self, id: &str, method: &str) -> String {
        self.is_fair = self.chance.bool();
        let mut params = self.value(&json!({ "$ref": format!("#/methods/{method}/params") }), 0);
        if params.is_object() && self.is_foul(8) {
            params["unknown"] = self.junk();
        }
        let line = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string();
        if self.is_foul(20) {
            let mut cut = self.chance.usize(..=line.len());
            while !line.is_char_boundary(cut) {
                cut -= 1;
            }
            return line[..cut].to_owned();
        }
        line
    }

    pub fn one_in(&mut self, times: u32) -> bool {
        self.chance.u32(..times) == 0
    }

    /// Says whether something is to be wrong here: one time in so many, and never in a fair request.
    fn is_foul(&mut self, times: u32) -> bool {
        !self.is_fair && self.one_in(times)
    }

    fn choose<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.chance.usize(..of.len())]
    }

    fn word(&mut self) -> Value {
        if self.one_in(60) {
            return "é".repeat(self.chance.usize(1..5000)).into();
        }
        (*self.choose(WORDS)).into()
    }

    fn id(&mut self) -> Value {
        let ids = self.ids.clone();
        if self.is_foul(5) { self.word() } else { self.choose(&ids).clone().into() }
    }

    fn number(&mut self, schema: &Value) -> Value {
        let bound = |name: &str| schema[name].as_i64();
        match self.chance.u32(..8) {
            0 => bound("minimum").map_or(json!(0), |least| json!(least)),
            1 => bound("maximum").map_or(json!(u64::MAX), |most| json!(most)),
            2 => json!(-1),
            3 => json!(1.5),
            4 => json!(i64::MIN),
            5 => json!(u64::MAX),
            _ => {
                json!(self.chance.i64(bound("minimum").unwrap_or(0)..=bound("maximum").unwrap_or(1 << 20).min(1 << 40)))
            }
        }
    }

    fn junk(&mut self) -> Value {
        match self.chance.u32(..8) {
            0 => Value::Null,
            1 => json!(self.chance.bool()),
            2 => json!([]),
            3 => json!({}),
            4 => self.number(&Value::Null),
            5 => (0..self.chance.usize(1..200)).fold(json!(1), |inner, _| json!([inner])),
            _ => self.word(),
        }
    }

    fn value(&mut self, schema: &Value, depth: u32) -> Value {
        if self.is_foul(40) {
            return self.junk();
        }
        if let Some(pointer) = schema["$ref"].as_str() {
            let target = self.document.pointer(pointer.trim_start_matches('#')).cloned().unwrap_or_default();
            return if depth > 12 { Value::Null } else { self.value(&target, depth + 1) };
        }
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        for choice in ["enum", "anyOf", "oneOf"] {
            if let Some(choices) = schema[choice].as_array().filter(|choices| !choices.is_empty()) {
                let chosen = self.choose(choices).clone();
                return if choice == "enum" { chosen } else { self.value(&chosen, depth + 1) };
            }
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) if !kinds.is_empty() => self.choose(kinds).as_str().unwrap_or_default().to_owned(),
            Value::String(kind) => kind.clone(),
            _ => return self.junk(),
        };
        match kind.as_str() {
            "object" => self.object(schema, depth),
            "array" => {
                let items = self.chance.usize(..4);
                (0..items).map(|_| self.value(&schema["items"], depth + 1)).collect()
            }
            "integer" | "number" => self.number(schema),
            "boolean" => json!(self.chance.bool()),
            "null" => Value::Null,
            _ => self.word(),
        }
    }

    fn object(&mut self, schema: &Value, depth: u32) -> Value {
        let mut object = Map::new();
        let is_required = |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|it| it == name));
        let properties = schema["properties"].as_object().cloned().unwrap_or_default();
        for (name, property) in &properties {
            let is_wanted = if is_required(name) {
                !self.is_foul(25)
            } else {
                let times = if self.is_fair { 20 } else { 4 + depth };
                self.one_in(times)
            };
            if is_wanted || name == "command" && !self.one_in(4) {
                let value = self.property(name, property, depth);
                object.insert(name.clone(), value);
            }
        }
        if schema["additionalProperties"].is_object() {
            for _ in 0..self.chance.usize(..3) {
                let name = self.word().as_str().unwrap_or_default().to_owned();
                let value = self.value(&schema["additionalProperties"], depth + 1);
                object.insert(name, value);
            }
        }
        object.into()
    }

    /// Makes a property's value: of those whose name says what fits, one that fits as a rule.
    fn property(&mut self, name: &str, schema: &Value, depth: u32) -> Value {
        if self.is_foul(3) && name != "command" {
            return self.value(schema, depth + 1);
        }
        match name {
            "id" | "parent" | "agent" => self.id(),
            "ids" | "after" => (0..self.chance.usize(..3)).map(|_| self.id()).collect(),
            "command" => json!(self.choose(COMMANDS)),
            "limits" if self.is_fair => json!({ "pids_max": self.chance.u32(1..100) }),
            "grace_ms" => json!(self.chance.u32(..50)),
            "grace" | "run_timeout" | "ready_timeout" | "delay" => json!(self.choose(&["0s", "10ms", "1s", "1h"])),
            "cwd" => json!(self.choose(&["/", "/tmp", "/no/such", "../x"])),
            "stdin" => json!(self.choose(&["/dev/null", "/etc/hostname", "/no/such"])),
            "pid" => json!(self.choose(&[1, 2, -1, i64::from(std::process::id())])),
            _ => self.value(schema, depth + 1),
        }
    }
}

//! The whole contract as one JSON Schema (draft 2020-12), made of the very types that are read and written.
//!
//! ```text
//! { "$schema", "$id", "title", "description", "version",
//!   "anyOf": what a line of the socket can be
//!   "methods":       { METHOD: { "description", "params": what is taken, "result": what is given } }
//!   "notifications": { METHOD: { "description", "params": what is given } }
//!   "errors":        what is given instead of a result; all stable codes are in `Code`
//!   "$defs":         { TYPE: schema } }
//! ```
//!
//! Many a type is read in more forms than it is written in: `512MiB` is given back as a number. Then `TYPE` is what is taken, and
//! `TYPEGiven` what is given.

use std::collections::{BTreeMap, BTreeSet};

use schemars::consts::meta_schemas::DRAFT2020_12;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::message::RpcError;
use super::method::{Call, EventNote, OutputNote};
use crate::model::error::Error;
use crate::model::schema::describe;

/// Where definitions are.
const DEFINITIONS: &str = "#/$defs/";

const ABOUT: &str = "JSON-RPC 2.0 over a Unix stream socket, one message a line. Where a type is read in more forms than it is \
                     written in, TYPE is what is taken and TYPEGiven what is given. What is given may get further fields.";
const FOLLOWED_EVENT: &str = "An event that happened after a call of `events` with `follow`, or how many were lost.";
const FOLLOWED_OUTPUT: &str = "What an agent wrote after a call of `logs` with `follow`.";

/// What the name of a type ends with that is given otherwise than it is taken.
const GIVEN: &str = "Given";

/// The contract. Its fields are the document's, in its order.
#[derive(Clone, Debug, Serialize)]
pub struct Contract {
    #[serde(rename = "$schema")]
    dialect: &'static str,
    #[serde(rename = "$id")]
    id: String,
    title: &'static str,
    description: &'static str,
    version: &'static str,
    #[serde(rename = "anyOf")]
    lines: Vec<Schema>,
    #[serde(serialize_with = "in_order")]
    methods: Vec<(&'static str, Method)>,
    #[serde(serialize_with = "in_order")]
    notifications: Vec<(&'static str, Notification)>,
    errors: Schema,
    #[serde(rename = "$defs")]
    definitions: BTreeMap<String, Schema>,
}

/// What one method does, takes and gives.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Method {
    pub description: String,
    pub params: Schema,
    pub result: Schema,
}

/// What one notification tells.
#[derive(Clone, Debug, Serialize)]
struct Notification {
    description: &'static str,
    params: Schema,
}

fn in_order<T: Serialize, S: Serializer>(entries: &[(&'static str, T)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|(name, entry)| (name, entry)))
}

impl Contract {
    /// Describes the API of this version.
    #[must_use]
    pub fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(describe));
        let mut taken = SchemaGenerator::new(settings.clone().for_deserialize());
        let settings = settings.for_serialize().with_transform(RecursiveTransform(loosen));
        let mut given = SchemaGenerator::new(settings);
        let mut methods = Call::described(&mut taken, &mut given);
        let mut notifications = vec![
            ("event", Notification { description: FOLLOWED_EVENT, params: given.subschema_for::<EventNote>() }),
            ("output", Notification { description: FOLLOWED_OUTPUT, params: given.subschema_for::<OutputNote>() }),
        ];
        let errors = given.subschema_for::<RpcError>();
        // What the command line tells on stderr.
        given.subschema_for::<Error>();
        let (mut definitions, written) = (taken.take_definitions(true), given.take_definitions(true));
        let renamed = differing(&definitions, &written);
        let mut rename = RecursiveTransform(|schema: &mut Schema| rename(schema, &renamed));
        let given = methods.iter_mut().map(|(_, method)| &mut method.result);
        given.chain(notifications.iter_mut().map(|(_, note)| &mut note.params)).for_each(|it| rename.transform(it));
        for (name, mut schema) in written {
            if let Ok(schema) = <&mut Schema>::try_from(&mut schema) {
                rename.transform(schema);
            }
            definitions.insert(if renamed.contains(&name) { name + GIVEN } else { name }, schema);
        }
        definitions.insert("Request".to_owned(), request(&methods, &definitions).into());
        definitions.insert("Answer".to_owned(), answer(&methods, &errors).into());
        definitions.insert("Notification".to_owned(), notification(&notifications).into());
        Self {
            dialect: DRAFT2020_12,
            id: format!("urn:treeherd:{}", env!("CARGO_PKG_VERSION")),
            title: "treeherd",
            description: ABOUT,
            version: env!("CARGO_PKG_VERSION"),
            lines: ["Request", "Answer", "Notification"].map(reference).to_vec(),
            methods,
            notifications,
            errors,
            definitions: definitions
                .into_iter()
                .filter_map(|(name, schema)| Some((name, Schema::try_from(schema).ok()?)))
                .collect(),
        }
    }
}

impl Default for Contract {
    fn default() -> Self {
        Self::new()
    }
}

fn reference(name: &str) -> Schema {
    Schema::new_ref(format!("{DEFINITIONS}{name}"))
}

/// A request, its parameters as its method takes them. Those that have to be given are given.
fn request(methods: &[(&'static str, Method)], definitions: &Map<String, Value>) -> Schema {
    let rules: Vec<Value> = methods
        .iter()
        .map(|(name, method)| {
            let needs = referred(&method.params).and_then(|name| definitions.get(name)?.get("required"));
            let required = needs.map_or_else(Vec::new, |_| vec!["params"]);
            let params = &method.params;
            serde_json::json!({
                "if": { "properties": { "method": { "const": name } } },
                "then": { "properties": { "params": params }, "required": required },
            })
        })
        .collect();
    json_schema!({
        "description": "A call. Without an `id` it is not answered. `params` may be left out where none is required.",
        "type": "object",
        "properties": { "jsonrpc": { "const": "2.0" }, "id": true, "method": { "enum": Call::METHODS }, "params": true },
        "required": ["jsonrpc", "method"],
        "allOf": rules,
    })
}

/// An answer: whose it is says its `id` alone, so its result is that of any method.
fn answer(methods: &[(&'static str, Method)], errors: &Schema) -> Schema {
    let mut results: Vec<&Schema> = Vec::new();
    for (_, method) in methods {
        if !results.contains(&&method.result) {
            results.push(&method.result);
        }
    }
    json_schema!({
        "description": "What a call was answered with: a result, or an error. With an `id` of null it is about a line that is no call.",
        "type": "object",
        "properties": { "jsonrpc": { "const": "2.0" }, "id": true },
        "required": ["jsonrpc", "id"],
        "oneOf": [
            { "properties": { "result": { "anyOf": results } }, "required": ["result"] },
            { "properties": { "error": errors }, "required": ["error"] },
        ],
    })
}

fn notification(notifications: &[(&'static str, Notification)]) -> Schema {
    let kinds: Vec<Value> = notifications
        .iter()
        .map(|(name, note)| {
            let params = &note.params;
            serde_json::json!({ "properties": { "method": { "const": name }, "params": params } })
        })
        .collect();
    json_schema!({
        "description": "What a call that follows is told of, as it happens; `params.call` is that call's `id`.",
        "type": "object",
        "properties": { "jsonrpc": { "const": "2.0" } },
        "required": ["jsonrpc", "method", "params"],
        "oneOf": kinds,
    })
}

/// Returns the definition that a schema refers to.
fn referred(schema: &Schema) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix(DEFINITIONS)
}

/// Returns the names of those types that are taken otherwise than given, themselves or by what is in them.
fn differing(taken: &Map<String, Value>, given: &Map<String, Value>) -> BTreeSet<String> {
    let both: Vec<&String> = taken.keys().filter(|name| given.contains_key(*name)).collect();
    let mut differ: BTreeSet<String> =
        both.iter().filter(|name| taken[**name] != given[**name]).map(|name| (*name).clone()).collect();
    loop {
        let refers = |name: &&&String| {
            let text = taken[**name].to_string();
            differ.iter().any(|other| text.contains(&format!("\"{DEFINITIONS}{other}\"")))
        };
        let more: Vec<String> =
            both.iter().filter(refers).filter(|name| !differ.contains(**name)).map(|name| (*name).clone()).collect();
        if more.is_empty() {
            return differ;
        }
        differ.extend(more);
    }
}

fn rename(schema: &mut Schema, renamed: &BTreeSet<String>) {
    if let Some(name) = referred(schema).filter(|name| renamed.contains(*name)).map(|name| format!("{name}{GIVEN}")) {
        schema.insert("$ref".to_owned(), format!("{DEFINITIONS}{name}").into());
    }
}

/// What is given has no default: it is there, or does not apply. And another version may give more.
fn loosen(schema: &mut Schema) {
    schema.remove("default");
    if schema.get("properties").is_some() {
        schema.remove("additionalProperties");
    }
}

#[cfg(test)]
mod tests;

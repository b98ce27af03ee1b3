//! The tree file as a JSON Schema: the types that read its values, in the tables that the reader takes them from.

use schemars::consts::meta_schemas::DRAFT2020_12;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value, json};

use super::read::{OWN, SHORT};
use crate::model::config::{Bounds, HerdConfig};
use crate::model::id::AgentId;
use crate::model::limits::LevelLimits;
use crate::model::schema::describe;
use crate::model::spec::AgentSpec;

type Fields = Map<String, Value>;

/// Describes what a tree file can say, as JSON Schema (draft 2020-12). What only all of a file together shows, as a parent that is
/// not there, [`Tree::parse`](super::Tree::parse) finds.
#[must_use]
pub fn schema() -> Schema {
    let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let level = generator.subschema_for::<LevelLimits>();
    let id = AgentId::json_schema(&mut generator);
    let mut herd = fields(HerdConfig::json_schema(&mut generator));
    herd.retain(|name, _| !matches!(name.as_str(), "bounds" | "levels"));
    herd.extend(fields(Bounds::json_schema(&mut generator)));
    let mut agent = fields(AgentSpec::json_schema(&mut generator));
    agent.remove("id");
    let mut definitions = generator.take_definitions(false);
    // They are among the herd's own keys.
    definitions.remove(Bounds::schema_name().as_ref());
    let command = agent["command"].take();
    agent.insert("command".to_owned(), short(&command, json!({ "type": "string" })));
    for (name, key) in SHORT {
        let long = agent[name].take();
        let value = long_fields(&long, &definitions).and_then(|fields| fields.get(key)).cloned();
        agent.insert(name.to_owned(), short(&long, value.unwrap_or_default()));
    }
    let mut defaults = agent.clone();
    defaults.retain(|name, _| !OWN.contains(&name.as_str()));
    let agents = json!({
        "description": "Agents by their names; below another agent's table those below it.",
        "type": "object",
        "patternProperties": { id.get("pattern").and_then(Value::as_str).unwrap_or_default(): { "$ref": "#/$defs/Agent" } },
        "additionalProperties": false,
    });
    agent.insert("agents".to_owned(), agents.clone());
    let node = table("An agent. Without a command it is a group: it has children, and no process.", &agent);
    definitions.insert("Agent".to_owned(), node);
    let mut root = json_schema!({
        "$schema": DRAFT2020_12,
        "$id": format!("urn:treeherd:{}:tree", env!("CARGO_PKG_VERSION")),
        "title": "treeherd: a tree file",
        "description": "What a herd is held to, and what runs in it. A daemon's configuration has `herd` and `levels` alone.",
        "type": "object",
        "properties": {
            "herd": table("The herd: bounds, times, and limits over all agents together.", &herd),
            "levels": {
                "description": "What each level gives to its agents, by its number.",
                "type": "object",
                "patternProperties": { "^(0|[1-9][0-9]*)$": level },
                "additionalProperties": false,
            },
            "defaults": table("What is laid under every agent.", &defaults),
            "agents": agents,
        },
        "additionalProperties": false,
        "$defs": definitions,
    });
    RecursiveTransform(describe).transform(&mut root);
    root
}

/// Returns the fields of a struct.
fn fields(schema: Schema) -> Fields {
    match Value::from(schema)["properties"].take() {
        Value::Object(fields) => fields,
        _ => Fields::new(),
    }
}

/// Returns the fields of the struct that a field, which may be left out, refers to.
fn long_fields<'a>(field: &Value, definitions: &'a Fields) -> Option<&'a Fields> {
    let reference = field.get("$ref").or_else(|| field["anyOf"].get(0)?.get("$ref"))?;
    definitions.get(reference.as_str()?.rsplit('/').next()?)?["properties"].as_object()
}

/// A field that is read in its own form, or as a text.
fn short(long: &Value, mut text: Value) -> Value {
    let mut long = long.clone();
    let mut both = Fields::new();
    for word in ["description", "default"] {
        let taken = |schema: &mut Value| schema.as_object_mut().and_then(|schema| schema.remove(word));
        taken(&mut text);
        both.extend(taken(&mut long).map(|value| (word.to_owned(), value)));
    }
    both.insert("anyOf".to_owned(), json!([text, long]));
    both.into()
}

fn table(description: &str, fields: &Fields) -> Value {
    json!({ "description": description, "type": "object", "properties": fields, "additionalProperties": false })
}

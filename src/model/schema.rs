//! What a JSON Schema tells of values that are read in more forms than their type has, which `derive` cannot see: how they are
//! read, or how they are written, whichever is asked for. And how it tells that: in plain text.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::limits::{Knob, Limits, PIDS_MAX_MOST};
use super::time::{DurationText, OptionalDurationText};
use super::units::Bytes;

macro_rules! described {
    ($($(#[doc = $doc:literal])* $name:ident as $shown:literal: read $read:expr, written $written:expr;)*) => {
        $(impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed($shown)
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let mut schema = if generator.contract().is_deserialize() { $read } else { $written };
                schema.insert("description".to_owned(), concat!($($doc),*).trim().into());
                schema
            }
        })*
    };
}

described! {
    /// A number of bytes: as a text with a unit (KiB, MiB, GiB, TiB, KB, MB, GB, TB), or plain.
    Bytes as "Bytes":
        read json_schema!({
            "type": ["integer", "string"],
            "minimum": 0,
            "pattern": SIZE,
            "examples": [65536, "512MiB", "2GB"],
        }),
        written json_schema!({ "type": "integer", "minimum": 0 });
    /// A duration: as a text, or as a number of seconds.
    DurationText as "Duration":
        read json_schema!({ "type": ["string", "number"], "minimum": 0, "examples": ["250ms", "1m 30s", 10] }),
        written json_schema!({ "type": "string", "examples": ["250ms", "1m 30s"] });
    /// Limits, by their names: the kernel's with `.` as `_`.
    Limits as "Limits": read limits(Knob::read), written limits(Knob::written);
}

impl JsonSchema for OptionalDurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Option::<DurationText>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Option::<DurationText>::json_schema(generator)
    }
}

/// A size as a text.
const SIZE: &str = "^ *[0-9][0-9_]* *([KMGTkmgt]([Ii]?[Bb])?|[Bb])? *$";

fn limits(value: fn(Knob) -> Schema) -> Schema {
    let property = |knob: Knob| {
        let mut schema = value(knob);
        schema.insert("description".to_owned(), knob.help().into());
        (knob.name().to_owned(), Value::from(schema))
    };
    let properties: serde_json::Map<String, Value> = Knob::ALL.into_iter().map(property).collect();
    json_schema!({ "type": "object", "properties": properties, "additionalProperties": false })
}

impl Knob {
    /// What is taken: a number may be written as a text, too.
    fn read(self) -> Schema {
        match self {
            Self::MemoryOomGroup => json_schema!({ "enum": [true, false, 0, 1, "true", "false", "0", "1"] }),
            Self::PidsMax => json_schema!({
                "type": ["integer", "string"], "minimum": 1, "maximum": PIDS_MAX_MOST, "pattern": "^(max|[0-9]+)$",
            }),
            Self::CpuWeight | Self::IoWeight => json_schema!({
                "type": ["integer", "string"], "minimum": 1, "maximum": 10_000, "pattern": "^[0-9]+$",
            }),
            Self::CpuMax => json_schema!({ "type": "string", "examples": ["150%", "50000 100000", "max"] }),
            Self::CpusetCpus => json_schema!({ "type": ["string", "integer"], "minimum": 0, "examples": ["0-3,8", 2] }),
            Self::IoMax => json_schema!({ "type": "string", "examples": ["8:0 rbps=1MiB wiops=120"] }),
            Self::MemoryMax
            | Self::MemoryHigh
            | Self::MemoryLow
            | Self::MemoryMin
            | Self::MemorySwapMax
            | Self::Hugetlb2MbMax
            | Self::Hugetlb1GbMax => json_schema!({
                "type": ["integer", "string"],
                "minimum": 0,
                "pattern": format!("^max$|{SIZE}"),
                "examples": ["512MiB", "max"],
            }),
        }
    }

    /// What is given.
    fn written(self) -> Schema {
        match self {
            Self::MemoryOomGroup => json_schema!({ "type": "boolean" }),
            Self::CpuWeight | Self::IoWeight => json_schema!({ "type": "integer" }),
            Self::CpuMax => json_schema!({ "type": "string", "examples": ["50000 100000", "max 100000"] }),
            Self::CpusetCpus | Self::IoMax => json_schema!({ "type": "string" }),
            _ => json_schema!({ "type": ["integer", "string"], "minimum": 0, "pattern": "^max$" }),
        }
    }
}

/// Says in JSON Schema's own words what `format` only remarks, and puts comments into plain text.
pub(crate) fn describe(schema: &mut Schema) {
    let bounds = match schema.get("format").and_then(Value::as_str) {
        Some("int32") => Some((i64::from(i32::MIN), i64::from(i32::MAX))),
        Some("uint32") => Some((0, i64::from(u32::MAX))),
        _ => None,
    };
    if let (Some((least, most)), Some(schema)) = (bounds, schema.as_object_mut()) {
        schema.entry("minimum").or_insert(least.into());
        schema.entry("maximum").or_insert(most.into());
    }
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = plain(text);
    }
}

/// Returns a comment of the code as a text for everybody: without links, and a paragraph on one line.
pub(crate) fn plain(comment: &str) -> String {
    static LINK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\[(`[^`]+`)\](\([^)]*\))?").expect("it is well-formed"));
    let text: Cow<'_, str> = LINK.replace_all(comment.trim(), "$1");
    text.split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n\n")
}

//! The envelopes of JSON-RPC 2.0, and how our errors travel in them.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::model::error::{Code, Error};

/// A request as it comes in.
#[derive(Debug, Deserialize)]
pub struct Incoming<'a> {
    /// Always `2.0`.
    #[serde(borrow)]
    pub jsonrpc: Cow<'a, str>,
    /// Anything, `null` too: it is given back as it is. Without one (a notification) no answer is sent.
    #[serde(default, deserialize_with = "present")]
    pub id: Option<Value>,
    /// The method's name.
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    /// The method's parameters, by name: as they came, for only the method knows what they are.
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
}

impl<'a> Incoming<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// [`Code::NotJson`], or [`Code::BadRequest`] if it is no request: a batch is none, each of its requests has a line of its own.
    pub fn parse(line: &'a [u8]) -> Result<Self, Error> {
        let bad = |code, why: &str| {
            let shown = String::from_utf8_lossy(&line[..line.len().min(60)]);
            Error::new(code, format!("not a JSON-RPC 2.0 request: {why}: {shown:?}"))
                .remedy(r#"as in {"jsonrpc":"2.0","id":1,"method":"ps","params":{}}, one a line"#)
        };
        // Serde would take its fields in their order.
        if line.trim_ascii_start().starts_with(b"[") {
            return Err(bad(Code::BadRequest, "an array"));
        }
        let incoming: Self = serde_json::from_slice(line)
            .map_err(|error| bad(if error.is_data() { Code::BadRequest } else { Code::NotJson }, &error.to_string()))?;
        if incoming.jsonrpc != "2.0" {
            return Err(bad(Code::BadRequest, &format!("jsonrpc is {:?}", incoming.jsonrpc)));
        }
        Ok(incoming)
    }
}

/// Tells a `null` from nothing.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// A request as it goes out.
#[derive(Debug, Serialize)]
pub struct Outgoing<'a, P: Serialize> {
    /// Always `2.0`.
    pub jsonrpc: &'static str,
    /// The call's number.
    pub id: u64,
    /// The method's name.
    pub method: &'a str,
    /// The method's parameters.
    pub params: P,
}

/// An answer or a notification as a client reads it.
#[derive(Debug, Deserialize)]
pub struct Reply {
    /// The call that is answered; none for a notification, and for an error about a line that could not be read.
    #[serde(default)]
    pub id: Option<Value>,
    /// What was asked for.
    #[serde(default)]
    pub result: Option<Box<RawValue>>,
    /// Why not.
    #[serde(default)]
    pub error: Option<RpcError>,
    /// A notification's kind.
    #[serde(default)]
    pub method: Option<String>,
    /// A notification's content.
    #[serde(default)]
    pub params: Option<Box<RawValue>>,
}

/// An error as JSON-RPC spells it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RpcError {
    /// JSON-RPC's number: -32700, -32600, -32601, -32602 for what the protocol itself forbids, -32000 for the rest.
    pub code: i32,
    /// For people.
    pub message: String,
    /// Our own code and remedy.
    #[serde(default)]
    pub data: Option<ErrorDetail>,
}

/// What [`Error`] has beyond its message.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDetail {
    /// Stable, for programs.
    pub code: Code,
    /// What helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl From<Error> for RpcError {
    fn from(error: Error) -> Self {
        let code = match error.code {
            Code::NotJson => -32700,
            Code::BadRequest => -32600,
            Code::UnknownMethod => -32601,
            Code::BadValue | Code::BadId => -32602,
            _ => -32000,
        };
        let data = Some(ErrorDetail { code: error.code, remedy: error.remedy });
        Self { code, message: error.message, data }
    }
}

impl From<RpcError> for Error {
    fn from(error: RpcError) -> Self {
        let (code, remedy) = error.data.map_or((Code::BadRequest, None), |data| (data.code, data.remedy));
        Self { code, message: error.message, remedy }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    jsonrpc: &'static str,
    id: &'a Value,
    result: &'a RawValue,
}

#[derive(Serialize)]
struct Refusal<'a> {
    jsonrpc: &'static str,
    id: &'a Value,
    error: RpcError,
}

#[derive(Serialize)]
struct Notification<'a, P> {
    jsonrpc: &'static str,
    method: &'a str,
    params: &'a P,
}

/// What a call gives, in the form in which it is sent, or why it gives nothing.
pub type Outcome = Result<Box<RawValue>, Error>;

/// Writes what a call gives in the form in which it is sent.
///
/// # Errors
/// [`Code::BadValue`] for what JSON has no form for.
pub fn result<T: Serialize>(value: &T) -> Outcome {
    to_raw_value(value).map_err(|error| Error::new(Code::BadValue, format!("the answer has no JSON form: {error}")))
}

/// Writes the beginning of an answer, up to what the call gives.
#[must_use]
pub fn answer_head(id: &Value) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#)
}

/// Writes an answer as one line.
#[must_use]
pub fn answer_line(id: &Value, outcome: Outcome) -> Vec<u8> {
    match outcome {
        Ok(result) => line(&Answer { jsonrpc: "2.0", id, result: &result }),
        Err(error) => line(&Refusal { jsonrpc: "2.0", id, error: error.into() }),
    }
}

/// Writes a notification as one line.
#[must_use]
pub fn notification_line<P: Serialize>(method: &str, params: &P) -> Vec<u8> {
    line(&Notification { jsonrpc: "2.0", method, params })
}

fn line<M: Serialize>(message: &M) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("a message is made of what JSON has a form for");
    line.push(b'\n');
    line
}

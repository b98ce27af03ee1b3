//! The methods: what each takes and what it gives.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::schema::Method;
use crate::model::applied::Applied;
use crate::model::config::HerdConfig;
use crate::model::error::{Code, Error};
use crate::model::event::Event;
use crate::model::explain::Explanation;
use crate::model::id::{AgentId, Level};
use crate::model::limits::Limits;
use crate::model::request::{LimitScope, Target};
use crate::model::rule::RuleCount;
use crate::model::schema::plain;
use crate::model::spec::AgentSpec;
use crate::model::status::{AgentStatus, Cause, Receipt, State};
use crate::model::stream::Stream;
use crate::model::time::Wall;
use crate::model::usage::Usage;

macro_rules! methods {
    ($($(#[doc = $doc:literal])* $name:ident ($params:ty) -> $result:ty = $text:literal,)*) => {
        /// A call with its parameters.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Call {
            $($(#[doc = $doc])* $name($params),)*
        }

        impl Call {
            /// Every method's name.
            pub const METHODS: &[&str] = &[$($text),*];

            /// Reads a call from its method and parameters.
            ///
            /// # Errors
            /// [`Code::UnknownMethod`] with the nearest known one; [`Code::BadValue`] for parameters that do not fit.
            pub fn parse(method: &str, params: Option<&RawValue>) -> Result<Self, Error> {
                match method {
                    $($text => parameters(method, params).map(Self::$name),)*
                    _ => Err(unknown(method)),
                }
            }

            /// Returns the method's name.
            #[must_use]
            pub fn method(&self) -> &'static str {
                match self { $(Self::$name(_) => $text),* }
            }

            /// Writes the parameters.
            ///
            /// # Errors
            /// Only for values that JSON has no form for.
            pub fn params(&self) -> serde_json::Result<Box<RawValue>> {
                match self { $(Self::$name(params) => serde_json::value::to_raw_value(params)),* }
            }

            /// Describes every method: what it does, what it takes, and what it gives.
            pub(super) fn described(taken: &mut SchemaGenerator, given: &mut SchemaGenerator) -> Vec<(&'static str, Method)> {
                vec![$(($text, Method {
                    description: plain(concat!($($doc),*)),
                    params: taken.subschema_for::<$params>(),
                    result: given.subschema_for::<$result>(),
                })),*]
            }
        }
    };
}

methods! {
    /// Who is there: gives [`Hello`].
    Hello(Nothing) -> Hello = "hello",
    /// Starts an agent, or registers a group if it has no command: gives its [`AgentStatus`] when its program executes, and at
    /// once if it has to wait for room, for a resume or for the agents that it starts after.
    Spawn(Box<AgentSpec>) -> AgentStatus = "spawn",
    /// Lists agents: gives their [`AgentStatus`]es.
    Ps(Selection) -> Vec<AgentStatus> = "ps",
    /// Tells all of one agent: gives [`Shown`].
    Show(OfAgent) -> Shown = "show",
    /// Tells why an agent is as it is and what comes next: gives its [`Explanation`].
    Explain(OfAgent) -> Explanation = "explain",
    /// Finds the agent that a process belongs to: gives its [`AgentStatus`].
    Process(OfProcess) -> AgentStatus = "process",
    /// Counts: gives [`Stats`].
    Stats(StatsQuery) -> Stats = "stats",
    /// Tells what happened: gives [`Events`], and with `follow` notifications `event` with [`EventNote`].
    Events(EventQuery) -> Events = "events",
    /// Reads output: gives [`Output`], and with `follow` notifications `output` with [`OutputNote`].
    Logs(LogQuery) -> Output = "logs",
    /// Follows the output of many agents, of those too that begin later: gives [`Nothing`], and notifications `output` with
    /// [`OutputNote`] until the connection is closed.
    Follow(FollowQuery) -> Nothing = "follow",
    /// Freezes subtrees: gives the [`AgentStatus`]es when all is seen frozen.
    Pause(OfTarget) -> Vec<AgentStatus> = "pause",
    /// Thaws subtrees: gives the [`AgentStatus`]es.
    Resume(OfTarget) -> Vec<AgentStatus> = "resume",
    /// Ends subtrees: gives the [`Receipt`] when nothing of them lives.
    Terminate(Ending) -> Receipt = "terminate",
    /// Changes limits: gives those that are in force now.
    Limit(LimitChange) -> Limits = "limit",
    /// Ends an agent's run and starts the next: gives its [`AgentStatus`].
    Restart(OfAgent) -> AgentStatus = "restart",
    /// Waits until all of these have ended: gives their [`AgentStatus`]es.
    Wait(OfAgents) -> Vec<AgentStatus> = "wait",
    /// Forgets ended agents now: gives what they were, once their ids are free.
    Cleanup(OfTarget) -> Vec<AgentStatus> = "cleanup",
    /// Ends the herd and the daemon: gives the receipt.
    Shutdown(Grace) -> Receipt = "shutdown",
    /// Remembers what an applied file has given, so that it goes with it: gives [`Nothing`].
    Declare(Declaration) -> Nothing = "declare",
    /// Tells what the herd is held to now: gives [`Configured`].
    Config(Nothing) -> Configured = "config",
    /// Tells what the host offers: gives [`Doctor`].
    Doctor(Nothing) -> Doctor = "doctor",
}

impl Call {
    /// Says whether it changes something: what it asks for is done, and reported.
    #[must_use]
    pub fn is_change(&self) -> bool {
        match self {
            Self::Spawn(_) | Self::Pause(_) | Self::Resume(_) | Self::Terminate(_) | Self::Limit(_) => true,
            Self::Restart(_) | Self::Cleanup(_) | Self::Shutdown(_) | Self::Declare(_) => true,
            Self::Hello(_) | Self::Ps(_) | Self::Show(_) | Self::Explain(_) | Self::Process(_) | Self::Stats(_) => {
                false
            }
            Self::Events(_) | Self::Logs(_) | Self::Follow(_) | Self::Wait(_) | Self::Config(_) | Self::Doctor(_) => {
                false
            }
        }
    }
}

fn parameters<P: DeserializeOwned>(method: &str, params: Option<&RawValue>) -> Result<P, Error> {
    let params = params.map_or("{}", RawValue::get);
    // Serde would take them in the order of its fields.
    if params.starts_with('[') {
        let message = format!("{method}: parameters by position");
        return Err(Error::new(Code::BadValue, message).remedy(r#"give them by name, as in {"id": "worker"}"#));
    }
    serde_json::from_str(params).map_err(|error| Error::new(Code::BadValue, format!("{method}: {error}")))
}

fn unknown(method: &str) -> Error {
    let shown: String = method.chars().take(40).collect();
    let similarity = |known: &&&str| (strsim::jaro_winkler(known, method) * 1000.0).round();
    let nearest = Call::METHODS.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    Error::new(Code::UnknownMethod, format!("no method is called {shown:?}")).remedy(format!(
        "did you mean {}? All are: {}",
        nearest.unwrap_or(&""),
        Call::METHODS.join(" ")
    ))
}

/// What the herd is held to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Configured {
    /// All of it.
    pub config: HerdConfig,
    /// Each setting by its name in a configuration file, as in `herd.max_levels`.
    pub settings: BTreeMap<String, Configuration>,
    /// What each applied file has given, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub applied: BTreeMap<String, Applied>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Configuration {
    /// What it is.
    pub value: Value,
    /// Where it comes from: `FILE:LINE`, `--flag`, `default`, or `changed while it runs`.
    pub origin: String,
}

/// No parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// One agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfAgent {
    /// Its name.
    pub id: AgentId,
}

/// Several agents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfAgents {
    /// Their names.
    pub ids: Vec<AgentId>,
}

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfProcess {
    /// Its number, as the daemon's pid namespace has it. Any descendant of an agent will do.
    pub pid: i32,
}

/// Subtrees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfTarget {
    /// `{"ids": ["a"]}`, `{"level": 1}`, `{"session": "s"}` or `"all"`.
    pub target: Target,
}

/// Which agents are listed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// All, if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Only the agents right below this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<AgentId>,
}

/// The end of subtrees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ending {
    /// Whose.
    pub target: Target,
    /// How long the polite stop may take, in milliseconds: 0 kills at once; the agent's own grace by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// The end of the herd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Grace {
    /// How long the polite stop may take, in milliseconds: 0 kills at once; the agents' own grace by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// Turns the wire's milliseconds into a duration.
#[must_use]
pub fn grace(grace_ms: Option<u64>) -> Option<Duration> {
    grace_ms.map(Duration::from_millis)
}

/// A change of limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitChange {
    /// Whose: `{"agent": "a"}`, `{"each": 1}`, `{"siblings": 1}`, `{"total": 1}` or `"herd"`.
    pub scope: LimitScope,
    /// Which.
    pub limits: Limits,
    /// The names of limits that are taken back: what is inherited, or what the level gives, holds in their place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lifted: Vec<String>,
}

/// What an applied file has given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// The file's name.
    pub file: String,
    /// What it has given; nothing if it is to be forgotten.
    pub applied: Applied,
}

/// Which figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StatsQuery {
    /// Whether what each agent uses is told as well.
    pub agents: bool,
}

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EventQuery {
    /// Only those with a greater number; with none and `follow`, only new ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Whether new ones are told as they happen.
    pub follow: bool,
    /// Only those of this agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// Only those of the agents right below this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<AgentId>,
    /// Which of those that have or had the name `agent`. The daemon decides it: what is followed is one agent, and no other
    /// that takes its name later.
    #[serde(skip)]
    pub agent_key: Option<u64>,
    /// Which of those that have or had the name `parent`. The daemon decides it.
    #[serde(skip)]
    pub parent_key: Option<u64>,
}

/// Whom an event is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub agent: Option<&'a str>,
    pub parent: Option<&'a str>,
    pub agent_key: Option<u64>,
    pub parent_key: Option<u64>,
}

impl EventQuery {
    /// Says whether an event about this subject is asked for.
    pub(crate) fn wants(&self, of: Subject<'_>) -> bool {
        let is_asked =
            |asked: &Option<AgentId>, of: Option<&str>| asked.as_ref().is_none_or(|asked| of == Some(asked.as_str()));
        is_asked(&self.agent, of.agent)
            && is_asked(&self.parent, of.parent)
            && self.agent_key.is_none_or(|key| of.agent_key == Some(key))
            && self.parent_key.is_none_or(|key| of.parent_key == Some(key))
    }

    /// Keeps to the agents that an event is about, where only their names were known.
    pub(crate) fn keep_to(&mut self, of: Subject<'_>) {
        if self.agent.is_some() {
            self.agent_key = self.agent_key.or(of.agent_key);
        }
        if self.parent.is_some() {
            self.parent_key = self.parent_key.or(of.parent_key);
        }
    }
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// In order; a page of them. Ask again with `since` = `last` until none comes.
    pub events: Vec<Event>,
    /// The number of the last event that was looked at.
    pub last: u64,
    /// How many events with a greater number than `since` are not kept any more.
    pub lost: u64,
}

/// The notification `event`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventNote {
    /// The `id` of the call that follows.
    pub call: Value,
    /// What happened; none if this only tells of a loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
    /// How many events this reader was too slow for, right before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Which output, and from where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    /// Whose.
    pub id: AgentId,
    /// Only this stream; both by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// From these offsets; from the first kept bytes by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Offsets>,
    /// From so many lines before the end, instead of an offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
    /// Whether what is written later is told as it comes.
    #[serde(default)]
    pub follow: bool,
}

/// Whose output is followed, and from where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FollowQuery {
    /// Those who are covered when they write: `{"ids": ["a"]}` with all below, `{"level": 1}`, `{"session": "s"}` or `"all"`.
    pub target: Target,
    /// Only this stream; both by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// From so many lines of each stream before its end; by default from the first kept bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
}

/// A place in the two streams: bytes from the beginning of each. A stream that is not read has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Offsets {
    /// In standard output.
    pub stdout: Option<u64>,
    /// In standard error.
    pub stderr: Option<u64>,
}

/// Output: a page of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// In order of time as far as it is known, and of offset within a stream.
    pub pieces: Vec<OutputPiece>,
    /// Where to read on.
    pub next: Offsets,
    /// How many bytes from the asked offset on are gone.
    pub gone: Offsets,
    /// Whether there was no more when it was read.
    pub at_end: bool,
}

/// Bytes of one stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutputPiece {
    /// Which.
    pub stream: Stream,
    /// The first byte's offset in the stream.
    pub offset: u64,
    /// When they were written, as exactly as is known.
    pub time: Option<Wall>,
    /// The bytes, in base64.
    #[serde(with = "base64_bytes")]
    #[schemars(with = "String", extend("contentEncoding" = "base64"))]
    pub data: Vec<u8>,
}

/// The notification `output`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutputNote {
    /// The `id` of the call that follows.
    pub call: Value,
    /// Whose.
    pub id: AgentId,
    /// What was written.
    #[serde(flatten)]
    pub output: Output,
    /// Whether the agent has ended, and this was the last; of many that are followed, one may be started again.
    pub is_last: bool,
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The daemon's version.
    pub version: String,
    /// The daemon's pid.
    pub pid: u32,
    /// The herd's root cgroup.
    pub cgroup: String,
    /// Where its state is.
    pub state_dir: String,
}

/// All of one agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Shown {
    /// How it is.
    #[serde(flatten)]
    pub status: AgentStatus,
    /// What was asked for.
    pub spec: AgentSpec,
    /// What its subtree uses, its own run included; none when its cgroup is gone.
    pub usage: Option<Usage>,
    /// What its own run uses, without the agents below it; none when it does not run.
    pub own_usage: Option<Usage>,
    /// How long its run has lasted, in milliseconds.
    pub uptime_ms: Option<u64>,
    /// What of its streams is kept: the first offset.
    pub output_start: Offsets,
    /// What of its streams is kept: the offset after the last byte.
    pub output_end: Offsets,
    /// What its rules have found, in the order of the rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleCount>,
    /// How much of its output was gone before its rules had looked at it, in bytes.
    #[serde(default)]
    pub rules_gone_bytes: u64,
}

/// Counts over the herd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// Agents that count against the bounds.
    pub agents: u64,
    /// Those by level.
    pub levels: BTreeMap<Level, u64>,
    /// All agents by state, the retained ones included.
    pub states: BTreeMap<State, u64>,
    /// Runs that have ended, by cause.
    pub causes: BTreeMap<Cause, u64>,
    /// From the kernel's fact, or the deadline, to the event that tells the end of a run.
    pub detection: Latency,
    /// The same for each cause of an end.
    #[serde(default)]
    pub detection_by_cause: BTreeMap<Cause, Latency>,
    /// What the whole herd uses.
    pub usage: Option<Usage>,
    /// What the subtrees that begin at each level use, summed.
    pub usage_by_level: BTreeMap<Level, Usage>,
    /// What each agent's subtree uses, if that was asked for: of agents whose cgroup is there and that the caller may read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub usage_by_agent: BTreeMap<AgentId, Usage>,
    /// Lines that rules have found and told.
    #[serde(default)]
    pub rule_lines: u64,
    /// How often limits were hit and that was told, by the limit's name.
    #[serde(default)]
    pub limit_hits: BTreeMap<String, u64>,
    /// Clients that are connected.
    pub clients: u64,
    /// Messages to `NOTIFY_SOCKET` that were not heard, since no run's process had sent them or they were too long.
    #[serde(default)]
    pub notes_refused: u64,
    /// The number of the last event.
    pub last_event: u64,
    /// For how long the daemon has been up, in milliseconds.
    pub uptime_ms: u64,
}

/// A latency's distribution, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half were at most this.
    pub p50_us: u64,
    /// Of a hundred, 99 were at most this.
    pub p99_us: u64,
    /// None was above this.
    pub max_us: u64,
    /// How many were above the bound on failure detection.
    pub late: u64,
    /// How many were at most so many microseconds, by that bound; not cumulative.
    pub histogram: BTreeMap<u64, u64>,
}

/// What the host offers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Doctor {
    /// Whether a daemon can work here.
    pub is_fit: bool,
    /// Each check that start-up makes.
    pub checks: Vec<Check>,
    /// Which limit is enforced by what.
    pub limits: Vec<Enforced>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub outcome: Finding,
    /// What was found.
    pub detail: String,
    /// What helps, if it is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// As it should be.
    Good,
    /// Something is not offered, the rest works.
    Limited,
    /// Nothing works without it.
    Bad,
}

/// What enforces one limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Enforced {
    /// The limit.
    pub limit: String,
    /// The kernel file that enforces it; none if a request for it is refused.
    pub by: Option<String>,
    /// Why it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

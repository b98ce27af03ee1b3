//! What is asked for: the specification of an agent, complete and checked for what can be checked without a tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};
use super::id::{AgentId, Level, Priority, SessionId};
use super::limits::Limits;
use super::pressure::PressureRule;
use super::range::{no_duration_between, not_between};
use super::ready::Ready;
pub use super::recovery::{Children, Restart, RestartPolicy, Strategy};
use super::rule::{self, Rule};
use super::stall::StallRule;
use super::stream::Output;
use super::time::{DurationText, OptionalDurationText};
use super::umask::Umask;
use super::units::{Bytes, Max};

/// The longest command, environment and metadata of one agent together, in bytes as JSON.
pub const SPEC_MAX: usize = 256 * 1024;

/// How little and how much of each stream may be kept.
const OUTPUT_MAX_LEAST: Bytes = Bytes(64 << 10);
const OUTPUT_MAX_MOST: Bytes = Bytes(1 << 30);

/// How deep the values of `metadata` may be nested: a parser that reads a list of agents stops at 128 or so.
pub const METADATA_DEPTH_MAX: usize = 32;

/// How many agents one may start after.
pub const AFTER_MOST: usize = 64;

/// The longest grace, back-off or other duration that an agent may ask for: a year.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// An agent as it is asked for. Without a command it is a group: a node that has children but no process.
///
/// An agent that asks for a child gives it at most what it has itself. `user`, `group`, `session`, `nice`, `ionice`, `umask`,
/// `oom_score_adj` and `rlimits` that it leaves out are its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec {
    /// The name, unique in the herd.
    pub id: AgentId,
    /// The agent above it; none for a root agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<AgentId>,
    /// The level that the caller believes it to have. Checked, never used: the level follows from the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// The agents that it starts after: each start, the first and every restart, waits until each of them is ready or has
    /// completed. Anywhere in the herd, 64 at most; none by default.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub after: BTreeSet<AgentId>,
    /// The applied file that declares it, by name: it stays, ended or not, until it leaves that file or is cleaned up. None for an
    /// agent that somebody started by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared_by: Option<String>,
    /// A word of the user's for what kind of agent this is.
    #[serde(default = "default_kind", rename = "type")]
    pub kind: String,
    /// How urgent it is, 0 to 10: the order of the queue for admission.
    #[serde(default)]
    pub priority: Priority,
    /// The session it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// What it can do, in the user's words; kept and shown, never interpreted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Anything else that the user wants to keep with it; kept and shown, never interpreted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// The program and its arguments, looked up in the environment's PATH. Empty for a group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The working directory, absolute; `/` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// Environment variables, on top of PATH, HOME, USER and LANG.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Names of variables that are taken over from the daemon's own environment, if they are set there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherit_env: Vec<String>,
    /// The user to run as, by name or number; the daemon's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The group to run as, by name or number; the user's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Whether its cgroup is delegated to its user, who then makes cgroups below it with limits of
    /// its own; it cannot exceed those of the agent, and all that runs there ends with the agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delegate: bool,
    /// A file to read standard input from, opened with the agent's own rights; `/dev/null` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<PathBuf>,
    /// Limits over the agent's subtree.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// Resource limits of the main process (`setrlimit`), inherited by what it starts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rlimits: BTreeMap<Rlimit, RlimitPair>,
    /// The main process's `oom_score_adj`, -1000 to 1000; 0 by default, whatever the daemon's own is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000))]
    pub oom_score_adj: Option<i16>,
    /// The main process's nice value, -20 to 19; 0 by default, whatever the daemon's own is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -20, max = 19))]
    pub nice: Option<i8>,
    /// The main process's I/O priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ionice: Option<IoNice>,
    /// The permissions that files of the main process do not get, in octal; `022` by default, whatever the daemon's own are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<Umask>,
    /// When and how it is started again.
    #[serde(default)]
    pub restart: Restart,
    /// What it makes of its children's failures.
    #[serde(default, skip_serializing_if = "Children::is_default")]
    pub children: Children,
    /// Whether its parent ends when it ends for good on its own: badly if it failed, in order if it completed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub significant: bool,
    /// How many agents may ever be spawned below it, restarts not counted. Without bound by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spawn_budget: Option<u32>,
    /// What happens to what the main process leaves behind when it ends.
    #[serde(default)]
    pub on_main_exit: OnMainExit,
    /// What it means that the OOM killer ends a process of the run that is not its main one.
    #[serde(default, skip_serializing_if = "OnOom::is_default")]
    pub on_oom: OnOom,
    /// The polite signal.
    #[serde(default)]
    pub stop_signal: StopSignal,
    /// Which processes of a run get the stop signal; the kill is always for all.
    #[serde(default, skip_serializing_if = "StopSignalTo::is_default")]
    pub stop_signal_to: StopSignalTo,
    /// How long a polite stop may take before the kill.
    #[serde(default = "default_grace", with = "DurationText")]
    pub grace: Duration,
    /// How long a run may last, paused time not counted; then it has failed. For ever by default.
    #[serde(default, with = "OptionalDurationText", skip_serializing_if = "Option::is_none")]
    pub run_timeout: Option<Duration>,
    /// What is done when its subtree waits for memory, CPU time or I/O for too long; its level's rules by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pressure: Vec<PressureRule>,
    /// What is looked for in the lines of its output, 32 rules at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// How it tells that it is ready; without this it is as soon as its program executes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// The file into which a program that puts itself into the background writes the number of its main process, absolute. It is read
    /// with the agent's own rights when the process that was started has ended with status 0. The run is ready when it names a process
    /// of the run, which is the main process from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
    /// How long a run may take to be ready, paused time not counted; then it has failed. 60 s by default; without `ready` and
    /// `pid_file` it means nothing.
    #[serde(default, with = "OptionalDurationText", skip_serializing_if = "Option::is_none")]
    pub ready_timeout: Option<Duration>,
    /// How often a run that is ready has to send `WATCHDOG=1` (sd_notify(3)), paused time not counted, 10 ms at least; if it
    /// does not, it has failed. Never by default.
    #[serde(default, with = "OptionalDurationText", skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Duration>,
    /// For how long a run may do nothing, and what follows. For ever by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<StallRule>,
    /// What its stdout and stderr are.
    #[serde(default)]
    pub output: Output,
    /// How much of each of its two streams is kept, in bytes: 64 KiB to 1 GiB, 16 MiB by default.
    #[serde(default = "default_output_max")]
    pub output_max: Bytes,
    /// What happens when a bound on the tree is reached.
    #[serde(default)]
    pub admission: Admission,
}

fn default_kind() -> String {
    "agent".to_owned()
}

fn default_grace() -> Duration {
    Duration::from_secs(10)
}

fn default_output_max() -> Bytes {
    Bytes(16 << 20)
}

impl AgentSpec {
    /// Makes the specification of an agent with a command, everything else at its default.
    #[must_use]
    pub fn new<S: Into<String>>(id: AgentId, command: impl IntoIterator<Item = S>) -> Self {
        Self {
            id,
            parent: None,
            level: None,
            after: BTreeSet::new(),
            declared_by: None,
            kind: default_kind(),
            priority: Priority::default(),
            session: None,
            capabilities: Vec::new(),
            metadata: BTreeMap::new(),
            command: command.into_iter().map(Into::into).collect(),
            cwd: None,
            env: BTreeMap::new(),
            inherit_env: Vec::new(),
            user: None,
            group: None,
            delegate: false,
            stdin: None,
            limits: Limits::default(),
            rlimits: BTreeMap::new(),
            oom_score_adj: None,
            nice: None,
            ionice: None,
            umask: None,
            restart: Restart::default(),
            children: Children::default(),
            significant: false,
            spawn_budget: None,
            on_main_exit: OnMainExit::default(),
            on_oom: OnOom::default(),
            stop_signal: StopSignal::default(),
            stop_signal_to: StopSignalTo::default(),
            grace: default_grace(),
            run_timeout: None,
            pressure: Vec::new(),
            rules: Vec::new(),
            ready: None,
            pid_file: None,
            ready_timeout: None,
            watchdog: None,
            stall: None,
            output: Output::default(),
            output_max: default_output_max(),
            admission: Admission::default(),
        }
    }

    /// Makes the specification of a group.
    #[must_use]
    pub fn group(id: AgentId) -> Self {
        Self::new::<String>(id, [])
    }

    /// Says whether this is a group: an agent without a command.
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.command.is_empty()
    }

    /// Says whether that agent has to be known before this one can be: it is its parent, or one that it starts after.
    #[must_use]
    pub fn comes_after(&self, id: &AgentId) -> bool {
        self.parent.as_ref() == Some(id) || self.after.contains(id)
    }

    /// Returns how many bytes it has as JSON.
    #[must_use]
    pub fn size(&self) -> usize {
        serde_json::to_vec(self).map_or(usize::MAX, |json| json.len())
    }

    /// Checks everything that can be checked without a tree and a host.
    ///
    /// # Errors
    /// [`Code::BadValue`] or [`Code::TooLarge`] for the first fault, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        let bad =
            |field: &str, why: String| Err(Error::new(Code::BadValue, format!("agent {}: {field}: {why}", self.id)));
        let has_nul = |text: &str| text.contains('\0');
        if self.command.first().is_some_and(String::is_empty) {
            return bad("command", "the program's name is empty".to_owned());
        }
        if self.command.iter().any(|word| has_nul(word)) {
            return bad("command", "a word contains a NUL byte".to_owned());
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains('=') || has_nul(name) || has_nul(value) {
                return bad(
                    "env",
                    format!("{name:?} is not a variable: a name is not empty and has no `=`, neither has a NUL byte"),
                );
            }
        }
        for (field, path) in [("cwd", &self.cwd), ("stdin", &self.stdin), ("pid_file", &self.pid_file)] {
            if let Some(path) = path.as_ref().filter(|path| path.to_str().is_none()) {
                return bad(
                    field,
                    format!(
                        "{path:?} is not UTF-8: a specification is JSON, which holds text; make a link to it whose name is"
                    ),
                );
            }
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return bad(field, "the path is not absolute".to_owned());
            }
            if path.as_ref().is_some_and(|path| path.as_os_str().as_encoded_bytes().contains(&0)) {
                return bad(field, "the path contains a NUL byte".to_owned());
            }
        }
        if self.after.contains(&self.id) {
            return bad("after", "it cannot start after itself".to_owned());
        }
        if self.after.len() > AFTER_MOST {
            return bad("after", format!("must name at most {AFTER_MOST} agents (got {})", self.after.len()));
        }
        if let Some(adj) = self.oom_score_adj.filter(|adj| !(-1000..=1000).contains(adj)) {
            return bad("oom_score_adj", not_between(-1000, 1000, adj));
        }
        if let Some(nice) = self.nice.filter(|nice| !(-20..=19).contains(nice)) {
            return bad("nice", not_between(-20, 19, nice));
        }
        if let Some(ionice) = self.ionice.filter(|ionice| ionice.level > 7) {
            return bad("ionice", format!("level {}", not_between(0, 7, ionice.level)));
        }
        if !(OUTPUT_MAX_LEAST..=OUTPUT_MAX_MOST).contains(&self.output_max) {
            return bad("output_max", not_between(OUTPUT_MAX_LEAST, OUTPUT_MAX_MOST, self.output_max));
        }
        if self.kind.is_empty() || self.kind.len() > 63 || self.kind.chars().any(char::is_control) {
            let shown: String = self.kind.chars().take(40).collect();
            return bad("type", format!("must have 1 to 63 printable characters (got {shown:?})"));
        }
        if let Some(name) = self.declared_by.as_deref().filter(|name| !is_file_name(name)) {
            let shown: String = name.chars().take(40).collect();
            return bad("declared_by", format!("a file's name has 1 to 63 printable characters (got {shown:?})"));
        }
        for (name, pair) in &self.rlimits {
            if pair.soft.is_wider_than(&pair.hard) {
                return bad("rlimits", format!("{name}: the soft limit is above the hard one"));
            }
        }
        if self.grace > DURATION_MAX {
            return bad("grace", no_duration_between("0s", self.grace));
        }
        if let Some(timeout) = self.run_timeout.filter(|timeout| timeout.is_zero() || *timeout > DURATION_MAX) {
            return bad("run_timeout", no_duration_between("1ns", timeout));
        }
        if self.is_group() && self.run_timeout.is_some() {
            return bad("run_timeout", "a group has no process and no run".to_owned());
        }
        if self.is_group() && self.delegate {
            return bad("delegate", "a group has no process that could make cgroups".to_owned());
        }
        PressureRule::check_all(&self.pressure)?;
        rule::check(&self.rules).or_else(|why| bad("rules", why))?;
        if self.is_group() && !self.rules.is_empty() {
            return bad("rules", "a group has no process and no output".to_owned());
        }
        self.check_ready().or_else(|(field, why)| bad(field, why))?;
        if let Some(stall) = &self.stall {
            stall.check().or_else(|why| bad("stall", why))?;
        }
        if self.is_group() && self.stall.is_some() {
            return bad("stall", "a group has no process and never does anything".to_owned());
        }
        if self.metadata.values().any(|value| !is_shallow(value, METADATA_DEPTH_MAX)) {
            return bad("metadata", format!("must be nested at most {METADATA_DEPTH_MAX} levels deep"));
        }
        self.restart.check().or_else(|why| bad("restart", why))?;
        self.children.check().or_else(|why| bad("children", why))?;
        let size = self.size();
        if size > SPEC_MAX {
            let message =
                format!("agent {}: the specification has {size} bytes as JSON, {SPEC_MAX} are allowed", self.id);
            return Err(Error::new(Code::TooLarge, message).remedy("put large values into a file and give its path"));
        }
        Ok(())
    }
}

/// Says whether a text can be the name of an applied file.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && !name.chars().any(char::is_control)
}

/// Says whether a value is nested at most so deep.
fn is_shallow(value: &serde_json::Value, most: usize) -> bool {
    let is_below = |value| most > 0 && is_shallow(value, most - 1);
    match value {
        serde_json::Value::Array(values) => most > 0 && values.iter().all(is_below),
        serde_json::Value::Object(values) => most > 0 && values.values().all(is_below),
        _ => true,
    }
}

/// What becomes of the descendants that the main process leaves behind, and of the agents below, when it has ended for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnMainExit {
    /// They are terminated: stop signal, grace, kill.
    #[default]
    Terminate,
    /// They are waited for; the run ends when the last of them has ended.
    Wait,
}

/// Which processes of a run get the stop signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StopSignalTo {
    /// Every process of the run.
    #[default]
    All,
    /// The main process, which ends the others in its own way. What it leaves behind gets the signal when it has ended.
    Main,
}

impl StopSignalTo {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a spawn does at a bound on the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Admission {
    /// It is refused, with the bound's name.
    #[default]
    Refuse,
    /// It waits, the most urgent first, until there is room.
    Queue,
}

/// The signal of a polite stop, SIGTERM by default; written `SIGTERM`, `TERM` or 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("examples" = ["SIGTERM", "INT"]))]
pub struct StopSignal(pub i32);

impl Default for StopSignal {
    fn default() -> Self {
        Self(15)
    }
}

impl FromStr for StopSignal {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        use nix::sys::signal::Signal;
        let upper = text.to_ascii_uppercase();
        let name = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
        let signal = name.parse::<Signal>().ok().or_else(|| Signal::try_from(upper.parse::<i32>().ok()?).ok());
        signal.map(|signal| Self(signal as i32)).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Error::new(Code::BadValue, format!("no signal is called {shown:?}")).remedy("as in SIGTERM, SIGINT, SIGHUP")
        })
    }
}

impl TryFrom<String> for StopSignal {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<StopSignal> for String {
    fn from(signal: StopSignal) -> String {
        signal.to_string()
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&signal_name(self.0))
    }
}

/// Returns a signal's name: `SIGKILL`; its number where it has none.
#[must_use]
pub fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.as_str().to_owned())
}

/// What an OOM kill of a process that is not a run's main one means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnOom {
    /// It is counted and shown; the run goes on.
    #[default]
    Continue,
    /// The run has failed, and all of it is killed at once.
    Kill,
    /// The run has failed, and is ended by its stop signal and its grace.
    Fail,
}

impl OnOom {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A resource of `setrlimit`, by the kernel's name in small letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // getrlimit(2) documents them, and better.
pub enum Rlimit {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Memlock,
    Nofile,
    Nproc,
    Rss,
    Sigpending,
    Stack,
}

impl Rlimit {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::As,
        Self::Core,
        Self::Cpu,
        Self::Data,
        Self::Fsize,
        Self::Memlock,
        Self::Nofile,
        Self::Nproc,
        Self::Rss,
        Self::Sigpending,
        Self::Stack,
    ];
}

impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format!("{self:?}").to_ascii_lowercase())
    }
}

/// The two values of a resource limit; on the wire one value for both (`1024`, `"max"`) or `"SOFT:HARD"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RlimitForm", into = "String")]
#[schemars(extend("examples" = [1024, "max", "0:max"]))]
pub struct RlimitPair {
    /// What is enforced.
    pub soft: Max<u64>,
    /// As far as the process itself may raise it.
    pub hard: Max<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a resource limit is a whole number, or a text as in 1024, max or SOFT:HARD")]
enum RlimitForm {
    Number(u64),
    Text(String),
}

impl TryFrom<RlimitForm> for RlimitPair {
    type Error = String;
    fn try_from(form: RlimitForm) -> Result<Self, String> {
        match form {
            RlimitForm::Number(number) => Ok(Self { soft: Max::Value(number), hard: Max::Value(number) }),
            RlimitForm::Text(text) => text.parse(),
        }
    }
}

impl FromStr for RlimitPair {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let value = |text: &str| match text {
            "max" | "unlimited" | "infinity" => Ok(Max::Max),
            text => text.parse::<Bytes>().map(|bytes| Max::Value(bytes.0)),
        };
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        Ok(Self { soft: value(soft)?, hard: value(hard)? })
    }
}

impl From<RlimitPair> for String {
    fn from(pair: RlimitPair) -> String {
        format!("{}:{}", pair.soft, pair.hard)
    }
}

/// An I/O priority (ioprio_set(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IoNice {
    /// The scheduling class.
    pub class: IoClass,
    /// The priority within the class, 0 (first) to 7 (last).
    #[serde(default)]
    #[schemars(range(max = 7))]
    pub level: u8,
}

/// The scheduling class of an I/O priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IoClass {
    /// Before everybody else.
    Realtime,
    /// The normal class.
    BestEffort,
    /// Only when nobody else wants the disk.
    Idle,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> AgentId {
        "a".parse().unwrap()
    }

    #[test]
    fn a_spec_needs_an_id_and_nothing_else() {
        let spec: AgentSpec = serde_json::from_str(r#"{"id":"a"}"#).unwrap();
        assert_eq!(spec, AgentSpec::group(id()));
        assert!(spec.is_group() && spec.check().is_ok());
        assert!(
            serde_json::from_str::<AgentSpec>(r#"{"id":"a","comand":["x"]}"#).is_err(),
            "an unknown field is refused"
        );
        let back: AgentSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(back, spec);
    }

    #[test]
    fn hostile_values_are_refused_with_the_fields_name() {
        let with = |change: fn(&mut AgentSpec)| {
            let mut spec = AgentSpec::new(id(), ["true"]);
            change(&mut spec);
            spec.check().unwrap_err().to_string()
        };
        assert!(with(|spec| spec.command = vec![String::new()]).contains("command"));
        assert!(with(|spec| spec.command = vec!["a\0b".into()]).contains("command"));
        assert!(with(|spec| drop(spec.env.insert("A=B".into(), "x".into()))).contains("env"));
        assert!(with(|spec| spec.cwd = Some("relative".into())).contains("cwd"));
        assert!(with(|spec| spec.nice = Some(20)).contains("nice"));
        assert!(with(|spec| spec.after = [id()].into()).contains("after: it cannot start after itself"));
        assert!(with(|spec| spec.after = (0..65).map(|n| format!("b{n}").parse().unwrap()).collect()).contains("64"));
        assert!(with(|spec| spec.restart.factor = f64::NAN).contains("restart"));
        assert!(with(|spec| spec.command = vec!["x".repeat(300_000)]).contains("bytes"));
        assert!(with(|spec| spec.kind = "a\u{1b}[31m".into()).contains("type"));
    }

    #[test]
    fn a_stop_signal_is_a_name_or_a_number() {
        for text in ["SIGINT", "int", "2"] {
            assert_eq!(text.parse(), Ok(StopSignal(2)));
        }
        assert!("SIGFOO".parse::<StopSignal>().is_err());
        assert!("0".parse::<StopSignal>().is_err());
    }

    #[test]
    fn an_rlimit_is_one_value_or_two() {
        let pair = |text: &str| serde_json::from_str::<RlimitPair>(text).unwrap();
        assert_eq!(pair("7"), RlimitPair { soft: Max::Value(7), hard: Max::Value(7) });
        assert_eq!(pair("\"1K:max\""), RlimitPair { soft: Max::Value(1024), hard: Max::Max });
        assert!(serde_json::from_str::<RlimitPair>("-1").is_err());
    }
}

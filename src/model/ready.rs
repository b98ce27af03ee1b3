//! How an agent tells that it is ready, how long it may take, and how often it has to show that it lives.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};
use super::pattern::Pattern;
use super::range::no_duration_between;
use super::spec::{AgentSpec, DURATION_MAX};
use super::stream::Streams;

/// How long an agent may take to be ready, unless its specification says otherwise.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// The shortest heartbeat: one tick of a kernel with `CONFIG_HZ=100`. A process that shares its CPU may be off it for so long
/// through no fault of its own.
pub const WATCHDOG_LEAST: Duration = Duration::from_millis(10);

/// The descriptors that a newline may be expected on: above stdin, stdout and stderr, and below the usual limit on descriptors.
pub const READY_FDS: std::ops::RangeInclusive<i32> = 3..=1023;

/// How an agent tells that it is ready. Written `"notify"`, `{ pattern = "REGEX", stream = "stdout" }` or `{ fd = 3 }`; on a
/// command line `notify`, `stdout:REGEX`, `stderr:REGEX`, `both:REGEX` or `fd:3`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Form", into = "Form")]
pub enum Ready {
    /// `READY=1`, sent by any process of its run to the socket that `NOTIFY_SOCKET` names (sd_notify(3)).
    Notify,
    /// A line of its output that a pattern matches.
    Pattern {
        /// What the line matches.
        pattern: Pattern,
        /// On which of the streams.
        stream: Streams,
    },
    /// A newline on this descriptor, a socket that the program is started with.
    Fd(i32),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "readiness is \"notify\", { pattern = \"REGEX\", stream = \"stdout\" } or { fd = 3 }")]
enum Form {
    #[schemars(extend("const" = "notify"))]
    Word(String),
    Pattern(PatternForm),
    Fd(FdForm),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct PatternForm {
    // As a text: what is wrong with it is to be told, and not only that no form fits.
    #[schemars(with = "Pattern")]
    pattern: String,
    #[serde(default)]
    stream: Streams,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct FdForm {
    #[schemars(range(min = *READY_FDS.start(), max = *READY_FDS.end()))]
    fd: i64,
}

impl TryFrom<Form> for Ready {
    type Error = Error;
    fn try_from(form: Form) -> Result<Self, Error> {
        match form {
            Form::Word(word) if word == "notify" => Ok(Self::Notify),
            Form::Word(word) => Err(unknown(&word)),
            Form::Pattern(PatternForm { pattern, stream }) => Ok(Self::Pattern { pattern: pattern.parse()?, stream }),
            Form::Fd(FdForm { fd }) => descriptor(fd),
        }
    }
}

impl From<Ready> for Form {
    fn from(ready: Ready) -> Self {
        match ready {
            Ready::Notify => Self::Word("notify".to_owned()),
            Ready::Pattern { pattern, stream } => Self::Pattern(PatternForm { pattern: pattern.into(), stream }),
            Ready::Fd(fd) => Self::Fd(FdForm { fd: fd.into() }),
        }
    }
}

fn unknown(word: &str) -> Error {
    let shown: String = word.chars().take(40).collect();
    Error::new(Code::BadValue, format!("{shown:?} is no way to be ready"))
        .remedy("use \"notify\", { pattern = \"REGEX\" } or { fd = 3 }")
}

fn descriptor(fd: i64) -> Result<Ready, Error> {
    let fd = i32::try_from(fd).ok().filter(|fd| READY_FDS.contains(fd));
    fd.map(Ready::Fd).ok_or_else(|| {
        Error::new(Code::BadValue, "the descriptor is 3 to 1023").remedy("0 to 2 are stdin, stdout and stderr: use 3")
    })
}

impl FromStr for Ready {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let pattern = |pattern: &str, stream| Ok(Self::Pattern { pattern: pattern.parse()?, stream });
        match text.split_once(':') {
            None if text == "notify" => Ok(Self::Notify),
            Some(("stdout", text)) => pattern(text, Streams::Stdout),
            Some(("stderr", text)) => pattern(text, Streams::Stderr),
            Some(("both", text)) => pattern(text, Streams::Both),
            Some(("fd", number)) => descriptor(number.parse().unwrap_or(-1)),
            _ => Err(unknown(text).remedy("use notify, stdout:REGEX, stderr:REGEX, both:REGEX or fd:3")),
        }
    }
}

/// Writes it as on a command line.
impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notify => f.write_str("notify"),
            Self::Pattern { pattern, stream } => write!(f, "{}:{pattern}", stream.name()),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

impl Ready {
    /// Says what shows it.
    #[must_use]
    pub fn sign(&self) -> &'static str {
        match self {
            Self::Notify => "READY=1",
            Self::Pattern { .. } => "a line of its output",
            Self::Fd(_) => "a newline on its descriptor",
        }
    }
}

impl AgentSpec {
    /// Returns how long a run may take to be ready; none if it is ready as soon as its program executes.
    #[must_use]
    pub fn ready_deadline(&self) -> Option<Duration> {
        self.ready_sign().map(|_| self.ready_timeout.unwrap_or(READY_TIMEOUT))
    }

    /// Returns what shows that a run is ready; none if it is as soon as its program executes.
    #[must_use]
    pub fn ready_sign(&self) -> Option<&'static str> {
        let named = self.pid_file.as_ref().map(|_| "its pid_file names its main process");
        self.ready.as_ref().map(Ready::sign).or(named)
    }

    /// Says whether its processes have something to tell over `NOTIFY_SOCKET`.
    #[must_use]
    pub fn notifies(&self) -> bool {
        self.ready == Some(Ready::Notify) || self.watchdog.is_some()
    }

    /// Checks readiness and heartbeat; the field and what is wrong with it.
    pub(super) fn check_ready(&self) -> Result<(), (&'static str, String)> {
        let given = [
            ("ready", self.ready.is_some()),
            ("pid_file", self.pid_file.is_some()),
            ("ready_timeout", self.ready_timeout.is_some()),
            ("watchdog", self.watchdog.is_some()),
        ];
        if let Some((field, _)) = given.iter().find(|(_, is_given)| self.is_group() && *is_given) {
            return Err((field, "a group has no process that could tell it".to_owned()));
        }
        if self.pid_file.is_some() && self.ready.is_some() {
            return Err((
                "pid_file",
                "with it a run is ready when its main process is named: leave out `ready`".to_owned(),
            ));
        }
        if let Some(given) = self.ready_timeout.filter(|timeout| timeout.is_zero() || *timeout > DURATION_MAX) {
            return Err(("ready_timeout", no_duration_between("1ns", given)));
        }
        if let Some(given) = self.watchdog.filter(|watchdog| !(WATCHDOG_LEAST..=DURATION_MAX).contains(watchdog)) {
            return Err(("watchdog", no_duration_between("10ms", given)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Ready, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn readiness_has_three_forms_and_reads_what_it_writes() {
        for (json, text) in [
            (r#""notify""#, "notify"),
            (r#"{"pattern":"up$","stream":"both"}"#, "both:up$"),
            (r#"{"pattern":"a:b","stream":"stderr"}"#, "stderr:a:b"),
            (r#"{"fd":3}"#, "fd:3"),
        ] {
            let ready = read(json).unwrap();
            assert_eq!(serde_json::to_string(&ready).unwrap(), json);
            assert_eq!(ready.to_string(), text);
            assert_eq!(text.parse(), Ok(ready));
        }
        assert_eq!(read(r#"{"pattern":"up$"}"#), "both:up$".parse().map_err(|error: Error| error.to_string()));
    }

    #[test]
    fn what_can_never_come_is_refused_with_its_reason() {
        for (json, why) in [
            (r#""nottify""#, "no way to be ready"),
            (r#"{"fd":2}"#, "3 to 1023"),
            (r#"{"fd":-1}"#, "3 to 1023"),
            (r#"{"fd":1024}"#, "3 to 1023"),
            (r#"{"pattern":"("}"#, "unclosed group"),
            (r#"{"pattern":"x","stream":"stdin"}"#, "readiness is"),
            (r#"{"pattern":"x","fd":3}"#, "readiness is"),
            ("3", "readiness is"),
        ] {
            let told = read(json).unwrap_err();
            assert!(told.contains(why), "{json}: {told}");
        }
        for text in ["fd:x", "stdin:x", "ready", ""] {
            assert!(text.parse::<Ready>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_a_hasty_heartbeat_and_no_time_at_all_are_refused() {
        let refused = |change: fn(&mut AgentSpec), command: &[&str]| {
            let mut spec = AgentSpec::new("a".parse().unwrap(), command.iter().copied());
            change(&mut spec);
            spec.check().unwrap_err().message
        };
        assert!(refused(|spec| spec.ready = Some(Ready::Notify), &[]).contains("ready: a group"));
        assert!(refused(|spec| spec.watchdog = Some(Duration::from_secs(1)), &[]).contains("watchdog: a group"));
        assert!(refused(|spec| spec.watchdog = Some(Duration::from_millis(9)), &["x"]).contains("10ms"));
        assert!(refused(|spec| spec.ready_timeout = Some(Duration::ZERO), &["x"]).contains("ready_timeout"));
    }
}

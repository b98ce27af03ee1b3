//! Rules on pressure: how much of the time tasks may stand still for want of a resource, and what is done step by step when it
//! is more.
//!
//! Pressure is the kernel's own measure (PSI): the time in which *some* task of a cgroup, or all of them (*full*), could not go
//! on for want of memory, CPU time or I/O.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};
use super::time::DurationText;

/// How many rules one place may have: each costs a descriptor.
pub const RULES_MOST: usize = 6;

/// The shortest window that the kernel takes.
pub const WINDOW_LEAST: Duration = Duration::from_millis(500);

/// The longest window that the kernel takes.
pub const WINDOW_MOST: Duration = Duration::from_secs(10);

macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $what:literal { $($(#[$word_doc:meta])* $word:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$word_doc])* $word,)*
        }

        impl $name {
            /// Returns its text.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$word => $text),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                match text {
                    $($text => Ok(Self::$word),)*
                    _ => {
                        let shown: String = text.chars().take(40).collect();
                        let error = Error::new(Code::BadValue, format!("{shown:?} is no {}", $what));
                        Err(error.remedy(concat!("use one of:", $(" ", $text),*)))
                    }
                }
            }
        }
    };
}

words! {
    /// What tasks wait for.
    Resource: "resource" {
        /// Memory: reclaim, and pages that were dropped and are read back.
        Memory = "memory",
        /// CPU time.
        Cpu = "cpu",
        /// I/O.
        Io = "io",
    }
}

words! {
    /// Whose standing still counts.
    Stall: "measure of pressure" {
        /// The time in which at least one task waits.
        Some = "some",
        /// The time in which all tasks that could run wait.
        Full = "full",
    }
}

words! {
    /// What is done.
    Measure: "step" {
        /// It is told.
        Warn = "warn",
        /// `memory.high` is set below what is used: the cgroup is slowed down and reclaimed.
        Tighten = "tighten",
        /// The agent of the lowest priority is paused, then the next, until one is left.
        Pause = "pause",
        /// The agent of the lowest priority is ended, then the next.
        Terminate = "terminate",
    }
}

/// A share of a window, 1 to 100 percent; written `15%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^([1-9][0-9]?|100)%$"))]
pub struct Share(u8);

impl Share {
    /// Returns this share of a duration.
    #[must_use]
    pub fn of(self, duration: Duration) -> Duration {
        duration * u32::from(self.0) / 100
    }
}

impl FromStr for Share {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let percent = text.strip_suffix('%').and_then(|digits| digits.trim().parse().ok());
        percent.filter(|percent| (1..=100).contains(percent)).map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Error::new(Code::BadValue, format!("{shown:?} is no share of the time")).remedy("use 1% to 100%")
        })
    }
}

impl TryFrom<String> for Share {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Share> for String {
    fn from(share: Share) -> String {
        share.to_string()
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// One rule: `memory some 15% 2s warn,pause,terminate`.
///
/// Whenever tasks stood still for more than `above` of a `window`, the next of the `steps` is taken. When three windows have
/// gone by without that, what was paused is resumed, the last one first, one in each window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PressureRule {
    /// What is waited for.
    pub resource: Resource,
    /// Whose waiting counts: `some` by default.
    #[serde(default = "some")]
    pub stall: Stall,
    /// How much of the window is too much, 1% to 100%.
    pub above: Share,
    /// The window, 500 ms to 10 s: 2 s by default. Without CAP_SYS_RESOURCE the kernel takes multiples of 2 s only.
    #[serde(default = "two_seconds", with = "DurationText")]
    pub window: Duration,
    /// What is done, in this order: `warn`, `pause`, `terminate` by default.
    #[serde(default = "usual_steps")]
    pub steps: Vec<Measure>,
}

fn some() -> Stall {
    Stall::Some
}

fn two_seconds() -> Duration {
    Duration::from_secs(2)
}

fn usual_steps() -> Vec<Measure> {
    vec![Measure::Warn, Measure::Pause, Measure::Terminate]
}

impl PressureRule {
    /// Checks what can be checked without a host.
    ///
    /// # Errors
    /// [`Code::BadValue`], naming the fault.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |why: &str, remedy: &str| {
            Err(Error::new(Code::BadValue, format!("pressure: {self}: {why}")).remedy(remedy.to_owned()))
        };
        if !(WINDOW_LEAST..=WINDOW_MOST).contains(&self.window) {
            return bad("the window is out of range", "use 500ms to 10s");
        }
        if self.steps.is_empty() || self.steps.windows(2).any(|pair| pair[0] >= pair[1]) {
            return bad("the steps are not in their order", "use some of warn, tighten, pause, terminate, each once");
        }
        if self.resource != Resource::Memory && self.steps.contains(&Measure::Tighten) {
            return bad("only memory can be tightened", "drop the step");
        }
        Ok(())
    }

    /// Checks the rules of one place.
    ///
    /// # Errors
    /// [`Code::BadValue`]: too many, or one that is wrong.
    pub fn check_all(rules: &[Self]) -> Result<(), Error> {
        if rules.len() > RULES_MOST {
            let message = format!("pressure: {} rules, {RULES_MOST} are allowed", rules.len());
            return Err(Error::new(Code::BadValue, message).remedy("drop some"));
        }
        rules.iter().try_for_each(Self::check)
    }
}

impl fmt::Display for PressureRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<&str> = self.steps.iter().map(|step| step.name()).collect();
        let window = humantime::format_duration(self.window);
        write!(f, "{} {} {} {window} {}", self.resource, self.stall, self.above, steps.join(","))
    }
}

/// Reads `RESOURCE [some|full] SHARE% [WINDOW] [STEPS]`.
impl FromStr for PressureRule {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut words = text.split_whitespace().peekable();
        let resource = words.next().unwrap_or_default().parse()?;
        let stall = words.next_if(|word| !word.ends_with('%')).map_or(Ok(Stall::Some), str::parse)?;
        let above = words.next().unwrap_or_default().parse()?;
        let is_window = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        let window = words.next_if(is_window).map_or(Ok(two_seconds()), |word| {
            humantime::parse_duration(word)
                .map_err(|error| Error::new(Code::BadValue, format!("pressure: window {word:?}: {error}")))
        })?;
        let read = |list: &str| list.split(',').map(str::parse).collect::<Result<Vec<_>, _>>();
        let steps = words.next().map_or(Ok(usual_steps()), read)?;
        if let Some(rest) = words.next() {
            let error = Error::new(Code::BadValue, format!("pressure: {rest:?} is one word too many"));
            return Err(error.remedy("as in 'memory some 15% 2s warn,pause,terminate'"));
        }
        let rule = Self { resource, stall, above, window, steps };
        rule.check()?;
        Ok(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_line_and_finds_its_way_back() {
        let rule: PressureRule = "memory some 15% 2s warn,pause,terminate".parse().unwrap();
        assert_eq!("memory 15%".parse::<PressureRule>().unwrap(), rule, "the rest has defaults");
        assert_eq!(rule.to_string().parse::<PressureRule>().unwrap(), rule);
        assert_eq!(rule.above.of(rule.window), Duration::from_millis(300));
        let json = r#"{"resource":"memory","above":"15%"}"#;
        assert_eq!(serde_json::from_str::<PressureRule>(json).unwrap(), rule);
        let other: PressureRule = "cpu full 90% 10s warn".parse().unwrap();
        assert_eq!((other.stall, other.steps), (Stall::Full, vec![Measure::Warn]));
    }

    #[test]
    fn what_the_kernel_or_the_order_of_steps_does_not_take_is_refused() {
        for text in [
            "",
            "memory",
            "disk 10%",
            "memory 0%",
            "memory 101%",
            "memory 10% 100ms",
            "memory 10% 11s",
            "memory 10% 2s run",
            "memory 10% 2s pause,warn",
            "memory 10% 2s warn,warn",
            "cpu 10% 2s tighten",
            "memory 10% 2s warn more",
        ] {
            assert!(text.parse::<PressureRule>().is_err(), "{text}");
        }
    }
}

//! How agents come back: each agent's own policy, and what its parent makes of its children's failures.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::range::{no_duration_between, not_between};
use super::spec::DURATION_MAX;
use super::time::DurationText;

/// The most restarts of its children that a parent can be told to put up with.
pub const CHILD_INTENSITY_MOST: u32 = 10_000;

/// When an agent is started again (OTP's transient, permanent, temporary).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Not at all.
    #[default]
    Never,
    /// When it has failed.
    OnFailure,
    /// Whenever it has ended on its own.
    Always,
}

impl RestartPolicy {
    /// Returns the policy's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
        }
    }
}

/// The restart policy with its numbers. The n-th restart in a row waits `delay * factor^(n-1)`, `max_delay` at most, with
/// up to `jitter` of that taken off or put on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// When.
    pub policy: RestartPolicy,
    /// The first delay: 1 s by default.
    #[serde(with = "DurationText")]
    pub delay: Duration,
    /// The longest delay: 60 s by default.
    #[serde(with = "DurationText")]
    pub max_delay: Duration,
    /// By how much each delay is longer than the one before, 1 to 100: 2 by default.
    pub factor: f64,
    /// The part of a delay that chance decides, 0 to 1: 0.1 by default.
    pub jitter: f64,
    /// How long a run must last for the delay to begin anew: 60 s by default.
    #[serde(with = "DurationText")]
    pub healthy_after: Duration,
    /// How many restarts there may be within `period`, after which the agent is given up: 10 by default.
    pub intensity: u32,
    /// The time in which restarts are counted: 600 s by default.
    #[serde(with = "DurationText")]
    pub period: Duration,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Never,
            delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            factor: 2.0,
            jitter: 0.1,
            healthy_after: Duration::from_secs(60),
            intensity: 10,
            period: Duration::from_secs(600),
        }
    }
}

impl Restart {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1.0..=100.0).contains(&self.factor) {
            return Err(format!("factor {}", not_between(1, 100, self.factor)));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(format!("jitter {}", not_between(0, 1, self.jitter)));
        }
        if self.delay > self.max_delay {
            let shown = humantime::format_duration;
            return Err(format!(
                "delay must be at most max_delay, {} (got {})",
                shown(self.max_delay),
                shown(self.delay)
            ));
        }
        let durations = [("max_delay", self.max_delay), ("healthy_after", self.healthy_after), ("period", self.period)];
        if let Some((name, given)) = durations.into_iter().find(|(_, given)| *given > DURATION_MAX) {
            return Err(format!("{name} {}", no_duration_between("0s", given)));
        }
        Ok(())
    }
}

/// Which children start anew when one of them comes back (OTP's words).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// That one alone; what is below it goes on.
    #[default]
    OneForOne,
    /// All children, with everything below them.
    OneForAll,
    /// That one and those that were made after it, with everything below them.
    RestForOne,
}

impl Strategy {
    /// Returns the strategy's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OneForOne => "one-for-one",
            Self::OneForAll => "one-for-all",
            Self::RestForOne => "rest-for-one",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a parent makes of the failures of its children: OTP's supervisor flags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Children {
    /// Who starts anew along with a child that comes back.
    pub strategy: Strategy,
    /// How many of its children's restarts it puts up with within `period`, 0 to 10,000; at one more it has failed itself.
    /// Without bound by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intensity: Option<u32>,
    /// The time in which its children's restarts are counted: 600 s by default.
    #[serde(with = "DurationText")]
    pub period: Duration,
}

impl Default for Children {
    fn default() -> Self {
        Self { strategy: Strategy::default(), intensity: None, period: Duration::from_secs(600) }
    }
}

impl Children {
    /// Says whether nothing but the defaults is asked for.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(given) = self.intensity.filter(|intensity| *intensity > CHILD_INTENSITY_MOST) {
            return Err(format!("intensity {}", not_between(0, CHILD_INTENSITY_MOST, given)));
        }
        if self.period.is_zero() || self.period > DURATION_MAX {
            return Err(format!("period {}", no_duration_between("1ns", self.period)));
        }
        Ok(())
    }
}

/// So many in a unit of time; as text `20/s`, `300/m` or `1000/h`, 1 to 1,000,000 in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^([1-9][0-9]{0,5}|1000000)/[smh]$"))]
pub struct Rate {
    count: NonZeroU32,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

impl Unit {
    const ALL: [(&'static str, Self, u64); 3] =
        [("s", Self::Second, 1), ("m", Self::Minute, 60), ("h", Self::Hour, 3600)];
}

/// The most that a rate can allow in its unit of time.
const RATE_MOST: u32 = 1_000_000;

impl Rate {
    /// Makes a rate of so many a second.
    #[must_use]
    pub const fn per_second(count: NonZeroU32) -> Self {
        Self { count, unit: Unit::Second }
    }

    /// Returns the time that each one takes.
    #[must_use]
    pub fn interval(self) -> Duration {
        let seconds = Unit::ALL.iter().find(|(_, unit, _)| *unit == self.unit).map_or(1, |(_, _, seconds)| *seconds);
        Duration::from_secs(seconds) / self.count.get()
    }
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{:?} is not a rate, as in 20/s", text.chars().take(40).collect::<String>());
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let (_, unit, _) = Unit::ALL.into_iter().find(|(name, ..)| *name == unit.trim()).ok_or_else(wrong)?;
        let count: NonZeroU32 = count.trim().parse().map_err(|_| wrong())?;
        if count.get() > RATE_MOST {
            return Err(format!("a rate is 1 to {RATE_MOST} in a unit of time"));
        }
        Ok(Self { count, unit })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Unit::ALL.iter().find(|(_, unit, _)| *unit == self.unit).map_or("s", |(name, ..)| *name);
        write!(f, "{}/{name}", self.count)
    }
}

impl TryFrom<String> for Rate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> String {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_in_a_unit_of_time() {
        for (text, interval) in [("20/s", 50), ("1/s", 1000), ("300/m", 200), ("1000/h", 3600)] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.interval(), rate.to_string().as_str()), (Duration::from_millis(interval), text));
        }
        for text in ["", "20", "0/s", "-1/s", "20/d", "2000000/s", "1.5/s", "/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn hostile_numbers_of_a_parent_are_refused() {
        let check = |children: Children| children.check().is_ok();
        assert!(check(Children::default()));
        assert!(check(Children { intensity: Some(0), ..Children::default() }), "the first failure is one too many");
        assert!(!check(Children { intensity: Some(10_001), ..Children::default() }));
        assert!(!check(Children { period: Duration::ZERO, ..Children::default() }));
        assert!(!check(Children { period: Duration::MAX, ..Children::default() }));
    }
}

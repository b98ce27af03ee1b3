//! Time as a value. The machine is handed the time, it never looks at a clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point on the machine's monotonic clock (`CLOCK_BOOTTIME`), in nanoseconds: for waits and durations.
/// On disk it is that number, and means something until the next boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// Returns the time that passed since `earlier`, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Monotonic {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Monotonic {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A point on the wall clock (`CLOCK_REALTIME`), in nanoseconds since 1970: for people and for journals only.
/// As text and on the wire it is RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("format" = "date-time"))]
pub struct Wall(pub u64);

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(time) => write!(f, "{time:.6}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl From<Wall> for String {
    fn from(wall: Wall) -> String {
        wall.to_string()
    }
}

impl TryFrom<String> for Wall {
    type Error = jiff::Error;
    fn try_from(text: String) -> Result<Self, jiff::Error> {
        let time: jiff::Timestamp = text.parse()?;
        Ok(Self(u64::try_from(time.as_nanosecond()).unwrap_or(0)))
    }
}

/// Durations in tree files and requests: text such as `1s`, `250ms`, `1m 30s`, or a number of seconds.
pub struct DurationText;

impl DurationText {
    /// Reads a duration from its text.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Duration, String> {
        if let Ok(seconds) = text.parse::<f64>() {
            return Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is not a duration"));
        }
        humantime::parse_duration(text).map_err(|error| format!("{text:?} is not a duration ({error})"))
    }

    /// Writes a duration as text.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    /// Reads a duration from text or from a number of seconds.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a duration is a text, as in 10s, or a number of seconds")]
        enum Form {
            Seconds(f64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Seconds(seconds) => Duration::try_from_secs_f64(seconds)
                .map_err(|_| serde::de::Error::custom(format!("{seconds} is not a duration in seconds"))),
            Form::Text(text) => Self::parse(&text).map_err(serde::de::Error::custom),
        }
    }
}

/// The same for a duration that need not be there.
pub struct OptionalDurationText;

impl OptionalDurationText {
    /// Writes a duration as text.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => DurationText::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a duration from text or from a number of seconds, or none from null.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        #[derive(Deserialize)]
        struct Given(#[serde(with = "DurationText")] Duration);
        Ok(Option::<Given>::deserialize(deserializer)?.map(|Given(duration)| duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_rfc_3339_with_microseconds() {
        let wall = Wall(1_700_000_000_123_456_789);
        assert_eq!(wall.to_string(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(Wall::try_from(wall.to_string()).ok(), Some(Wall(1_700_000_000_123_456_000)));
    }

    #[test]
    fn durations_are_text_or_seconds() {
        assert_eq!(DurationText::parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(DurationText::parse("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(DurationText::parse("0"), Ok(Duration::ZERO));
        assert!(DurationText::parse("-1").is_err());
        assert!(DurationText::parse("10 parsecs").is_err());
    }
}

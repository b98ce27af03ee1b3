//! The text about a value outside its range: the range, and the value given.

use std::fmt::Display;
use std::time::Duration;

/// Returns why a value is refused that is not in a range, both ends included.
pub(super) fn not_between(least: impl Display, most: impl Display, given: impl Display) -> String {
    format!("must be between {least} and {most} (got {given})")
}

/// Returns why a duration is refused that is not in a range, both ends included.
pub(super) fn no_duration_between(least: &str, given: Duration) -> String {
    not_between(least, "a year", humantime::format_duration(given))
}

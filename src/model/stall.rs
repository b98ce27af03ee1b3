//! Rules on stalls: for how long a run may do nothing, and what follows if it does.
//!
//! To do nothing is to write no output and to use no CPU. A runtime that only waits ticks all the same (timers, garbage
//! collection), so a share of one CPU counts as none: [`IDLE_SHARE`]. What an agent below does is not looked at: whoever waits
//! for a live agent below it does its work.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::range::no_duration_between;
use super::rule::Action;
use super::spec::DURATION_MAX;
use super::time::DurationText;

/// How much of one CPU is no work, as one part of so many: a thousandth, 1 ms in a second.
pub const IDLE_SHARE: u32 = 1000;

/// In how many parts the time of a rule is looked at: it is found out by a quarter of it too late at most.
pub const LOOKS: u32 = 4;

/// The shortest time of a rule. A look at it is then 250 ms, and the share of that 250 µs: in less than that one wake-up cannot be
/// told from work.
pub const STALL_LEAST: Duration = Duration::from_secs(1);

/// The rule of one agent. In a tree file, `stall = "5m"` stands for `stall = { after = "5m" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StallRule {
    /// For how long a run may do nothing, paused time and the time in which an agent below it runs not counted: 1 s at least.
    #[serde(with = "DurationText")]
    pub after: Duration,
    /// What follows besides the events at half of that time and at all of it.
    #[serde(default)]
    pub action: Action,
}

impl StallRule {
    /// Returns the time from one look to the next.
    #[must_use]
    pub fn look(&self) -> Duration {
        self.after / LOOKS
    }

    /// Returns how much CPU time between two looks is no work.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.look() / IDLE_SHARE
    }

    /// Checks it; says what is wrong, in a sentence without the agent.
    pub(super) fn check(&self) -> Result<(), String> {
        if (STALL_LEAST..=DURATION_MAX).contains(&self.after) {
            return Ok(());
        }
        Err(format!("{}; less could not tell a wake-up from work", no_duration_between("1s", self.after)))
    }
}

impl FromStr for StallRule {
    type Err = String;

    /// Reads `[ACTION:]TIME`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (action, time) = match text.split_once(':') {
            Some((word, time)) => {
                let unknown = || format!("{word:?} is no action: use notice or fail, as in fail:5m");
                (Action::from_word(word).ok_or_else(unknown)?, time)
            }
            None => (Action::Notice, text),
        };
        Ok(Self { after: DurationText::parse(time)?, action })
    }
}

/// Writes it for people.
impl fmt::Display for StallRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.action == Action::Fail { "has failed" } else { "is told" };
        write!(f, "{what} after {} without output and CPU", humantime::format_duration(self.after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_time_with_an_action_before_it() {
        let read = |text: &str| text.parse::<StallRule>().map(|rule| (rule.after.as_secs(), rule.action));
        assert_eq!(read("5m"), Ok((300, Action::Notice)));
        assert_eq!(read("notice:5m"), Ok((300, Action::Notice)));
        assert_eq!(read("fail:90"), Ok((90, Action::Fail)));
        assert!(read("kill:5m").is_err() && read("soon").is_err() && read("").is_err());
    }

    #[test]
    fn a_look_is_a_quarter_and_a_thousandth_of_it_is_no_work() {
        let table =
            [(1_000, 250, 250), (60_000, 15_000, 15_000), (300_000, 75_000, 75_000), (3_600_000, 900_000, 900_000)];
        for (after_ms, look_ms, idle_us) in table {
            let rule = StallRule { after: Duration::from_millis(after_ms), action: Action::Notice };
            assert_eq!(rule.look(), Duration::from_millis(look_ms), "{after_ms} ms");
            assert_eq!(rule.idle(), Duration::from_micros(idle_us), "{after_ms} ms");
            assert!(rule.check().is_ok());
        }
        let hasty = StallRule { after: Duration::from_millis(999), action: Action::Notice };
        assert!(hasty.check().unwrap_err().contains("1s"));
        assert!(StallRule { after: DURATION_MAX * 2, ..hasty }.check().is_err());
    }
}

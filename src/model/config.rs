//! What the herd is held to: bounds on the tree, limits by level, times.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Code, Error};
use super::id::Level;
use super::limits::{LevelLimits, Limits};
use super::pressure::PressureRule;
use super::recovery::Rate;
use super::time::DurationText;

/// The deepest tree that can be asked for.
pub const LEVELS_MOST: u16 = 256;

/// The most agents that can be asked for.
pub const AGENTS_MOST: u32 = 100_000;

/// How many ended agents are retained at most; beyond it the oldest go early.
pub const RETAINED_MOST: usize = 20_000;

/// How many failed agents that no file declares are retained for `failed_retention`; beyond it the oldest go early.
pub const FAILED_RETAINED_MAX: usize = 1_000;

/// How many restarts there may be over the whole herd, unless it is configured.
const RESTART_RATE: Rate = Rate::per_second(NonZeroU32::new(20).expect("it is not zero"));

/// Bounds on the tree's shape. A spawn beyond one is refused with the bound's name, or queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// How many levels there may be: 1 to 256, 10 by default.
    pub max_levels: u16,
    /// How many agents a level may have over all branches: 20 by default.
    pub max_agents_per_level: u32,
    /// How many children an agent may have: as many as a level by default.
    pub max_children: u32,
    /// How many agents the herd may have: 10,000 by default.
    pub max_agents: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_levels: 10, max_agents_per_level: 20, max_children: AGENTS_MOST, max_agents: 10_000 }
    }
}

impl Bounds {
    /// Checks the bounds' own ranges.
    ///
    /// # Errors
    /// [`Code::BadValue`], naming the bound.
    pub fn check(&self) -> Result<(), Error> {
        range("max_levels", self.max_levels.into(), LEVELS_MOST.into())?;
        range("max_agents_per_level", self.max_agents_per_level, AGENTS_MOST)?;
        range("max_children", self.max_children, AGENTS_MOST)?;
        range("max_agents", self.max_agents, AGENTS_MOST)
    }
}

fn range(name: &str, value: u32, most: u32) -> Result<(), Error> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(Code::BadValue, format!("{name} = {value} is out of range")).remedy(format!("use 1 to {most}")))
}

/// What is said on the command line, and stands over what a file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // Each is the field of the same name in [`Bounds`] and [`HerdConfig`].
pub struct Flags {
    pub max_levels: Option<u16>,
    pub max_agents_per_level: Option<u32>,
    pub max_children: Option<u32>,
    pub max_agents: Option<u32>,
    pub cleanup_retention: Option<Duration>,
    pub auto_cleanup: Option<bool>,
}

impl Flags {
    /// Lists the names of those that are given.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let given = [
            ("max_levels", self.max_levels.is_some()),
            ("max_agents_per_level", self.max_agents_per_level.is_some()),
            ("max_children", self.max_children.is_some()),
            ("max_agents", self.max_agents.is_some()),
            ("cleanup_retention", self.cleanup_retention.is_some()),
            ("auto_cleanup", self.auto_cleanup.is_some()),
        ];
        given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect()
    }

    /// Lays these over a configuration.
    #[must_use]
    pub fn over(&self, mut config: HerdConfig) -> HerdConfig {
        let bounds = &mut config.bounds;
        bounds.max_levels = self.max_levels.unwrap_or(bounds.max_levels);
        bounds.max_agents_per_level = self.max_agents_per_level.unwrap_or(bounds.max_agents_per_level);
        bounds.max_children = self.max_children.unwrap_or(bounds.max_children);
        bounds.max_agents = self.max_agents.unwrap_or(bounds.max_agents);
        config.cleanup_retention = self.cleanup_retention.unwrap_or(config.cleanup_retention);
        config.auto_cleanup = self.auto_cleanup.unwrap_or(config.auto_cleanup);
        config
    }
}

/// The herd's own configuration, apart from where it lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HerdConfig {
    /// Bounds on the tree.
    pub bounds: Bounds,
    /// Limits over all agents together.
    pub limits: Limits,
    /// What is done when the agents together wait for memory, CPU time or I/O for too long. Read at start only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pressure: Vec<PressureRule>,
    /// What each level gives to its agents, by level.
    pub levels: BTreeMap<Level, LevelLimits>,
    /// Whether ended agents go by themselves after `cleanup_retention`: true by default.
    pub auto_cleanup: bool,
    /// How long an ended agent, its record and its output stay: 60 s by default.
    #[serde(with = "DurationText")]
    pub cleanup_retention: Duration,
    /// How long a failed one stays that no file declares: 24 h by default. Of those the last 1,000 stay.
    #[serde(with = "DurationText")]
    pub failed_retention: Duration,
    /// How often statistics are sampled while somebody looks: 500 ms by default.
    #[serde(with = "DurationText")]
    pub monitoring_interval: Duration,
    /// The bound on telling a failure, beyond which `detection:late` is told: 500 ms by default.
    #[serde(with = "DurationText")]
    pub failure_detection_timeout: Duration,
    /// How long a process may take from its making to its program's start: 5 s by default.
    #[serde(with = "DurationText")]
    pub spawn_timeout: Duration,
    /// How long a pause may take until all is seen frozen: 2 s by default.
    #[serde(with = "DurationText")]
    pub freeze_timeout: Duration,
    /// How long a kill may take until whoever asked for it is answered with what lives on: 100 ms to 1 h, 10 s by default.
    #[serde(with = "DurationText")]
    pub kill_timeout: Duration,
    /// How many restarts there may be over the whole herd, beyond `restart_burst`: 20 a second by default. Those beyond wait
    /// for their turn; a restart that somebody asked for never does.
    pub restart_rate: Rate,
    /// How many restarts there may be at once: 1 to 100,000, 100 by default.
    pub restart_burst: u32,
}

impl Default for HerdConfig {
    fn default() -> Self {
        Self {
            bounds: Bounds::default(),
            limits: Limits::default(),
            pressure: Vec::new(),
            levels: BTreeMap::new(),
            auto_cleanup: true,
            cleanup_retention: Duration::from_secs(60),
            failed_retention: Duration::from_secs(24 * 3600),
            monitoring_interval: Duration::from_millis(500),
            failure_detection_timeout: Duration::from_millis(500),
            spawn_timeout: Duration::from_secs(5),
            freeze_timeout: Duration::from_secs(2),
            kill_timeout: Duration::from_secs(10),
            restart_rate: RESTART_RATE,
            restart_burst: 100,
        }
    }
}

/// The bounds of `kill_timeout`.
const KILL_TIMEOUT_MIN: Duration = Duration::from_millis(100);
const KILL_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

impl HerdConfig {
    /// Checks everything that can be checked without a host.
    ///
    /// # Errors
    /// [`Code::BadValue`] or [`Code::LimitTooWide`] for the first fault, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        self.bounds.check()?;
        PressureRule::check_all(&self.pressure)?;
        range("restart_burst", self.restart_burst, AGENTS_MOST)?;
        if !(KILL_TIMEOUT_MIN..=KILL_TIMEOUT_MAX).contains(&self.kill_timeout) {
            let given = humantime::format_duration(self.kill_timeout);
            let message = format!("kill_timeout: {given} is not within 100ms and 1h");
            return Err(Error::new(Code::BadValue, message).remedy("use its default, 10s"));
        }
        for (level, limits) in &self.levels {
            if level.0 >= self.bounds.max_levels {
                let message = format!(
                    "limits for level {level}: the tree has {} levels, 0 to {}",
                    self.bounds.max_levels,
                    self.bounds.max_levels - 1
                );
                return Err(Error::new(Code::BadValue, message).remedy("raise max_levels or drop the level"));
            }
            PressureRule::check_all(&limits.pressure)?;
            for (part, inner) in [("each", &limits.each), ("siblings", &limits.siblings)] {
                if let Some((knob, mine, theirs)) = inner.first_wider_than(&self.limits) {
                    let message = format!("level {level} {part}: {knob} = {mine} is wider than the herd's {theirs}");
                    return Err(Error::new(Code::LimitTooWide, message).remedy("lower it, or raise the herd's"));
                }
            }
        }
        Ok(())
    }

    /// Returns what a level gives to its agents.
    #[must_use]
    pub fn level(&self, level: Level) -> LevelLimits {
        self.levels.get(&level).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = HerdConfig::default();
        assert_eq!((config.bounds.max_levels, config.bounds.max_agents_per_level), (10, 20));
        assert_eq!(config.cleanup_retention, Duration::from_secs(60));
        assert_eq!(config.failure_detection_timeout, Duration::from_millis(500));
        assert!(config.auto_cleanup && config.check().is_ok());
    }

    #[test]
    fn a_level_wider_than_the_herd_is_refused() {
        let mut config = HerdConfig::default();
        config.limits.set_text("memory_max=1GiB").unwrap();
        config.levels.entry(Level(1)).or_default().siblings.set_text("memory_max=2GiB").unwrap();
        assert_eq!(config.check().unwrap_err().code, Code::LimitTooWide);
    }
}

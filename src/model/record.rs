//! What is kept of an agent so that the next daemon can go on with it: written down before anything of it is told.
//!
//! Times are on the monotonic clock, which goes on from daemon to daemon and begins anew at a boot: a record of another boot
//! tells who there was, and not what still is.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{AgentId, Level, Run};
use super::limits::{LevelLimits, Limits};
use super::note::Told;
use super::spec::AgentSpec;
use super::status::{Cause, ExitRecord};
use super::time::{Monotonic, Wall};

/// Where an agent stands, as far as another daemon has to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// A group whose cgroup was made.
    Group,
    /// It waits for admission.
    Queued,
    /// It is admitted, and no run of it goes on: the next one is to be started when that is possible.
    Held,
    /// A run goes on.
    Running {
        /// Its main process: a number, to be proved.
        pid: i32,
        /// How its end is brought about, if that is asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rung: Option<Rung>,
    },
    /// The main process has ended, as the record's `last` says, and has left others behind.
    Draining {
        /// How their end is brought about, if they are not waited for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rung: Option<Rung>,
    },
    /// The last run is over, agents below are still there.
    Lingering(Outcome),
    /// It waits for its next run.
    Backoff(Wait),
    /// It has ended.
    Ended {
        /// How.
        outcome: Outcome,
        /// When.
        at: Monotonic,
    },
}

/// How an agent ended for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well, on its own.
    Completed,
    /// Badly, on its own.
    Failed,
    /// Because it was asked to.
    Terminated,
}

/// A step on the way from the stop signal to the kill of a run, with the time of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The stop signal waits for what runs below, until the first time at most; then, at the second, comes the kill.
    Asked(Monotonic, Monotonic),
    /// The stop signal was ordered; then comes the kill.
    Polite(Monotonic),
    /// The kill was ordered first at this time.
    Killed(Monotonic),
    /// The kill was ordered first at this time, since its program came too late.
    Late(Monotonic),
}

/// A wait that stands still while the agent is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// It goes on, until this time.
    Until(Monotonic),
    /// It stands still, with so much left.
    Suspended(Duration),
}

/// Whether an agent was paused itself, and what was told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// It was not.
    #[default]
    Off,
    /// It was asked for, and not confirmed yet.
    Asked,
    /// It was confirmed and told.
    Told,
    /// It was told, and a resume was asked for.
    Lifted,
}

impl Pause {
    fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// The wish that an agent ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Who asked.
    pub by: Arc<str>,
    /// When the kill is due.
    pub kill_at: Monotonic,
}

/// A failure that was found in a run that went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// Its cause.
    pub cause: Cause,
    /// In one sentence.
    pub why: String,
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// For durations.
    pub mono: Monotonic,
    /// For people.
    pub wall: Wall,
}

/// What an agent is, for as long as it is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Birth {
    /// The number that tells it from every other agent that ever had its name.
    pub key: u64,
    /// The number of the agent above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// What was asked for.
    pub spec: Arc<AgentSpec>,
}

/// What changes in an agent's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// Where it stands.
    pub standing: Standing,
    /// Its present or last run; a run that was ordered and has not begun does not count.
    pub run: Run,
    /// The last run whose terminal event was told; 0 for the end of what has no run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Run>,
    /// The wish that it ends, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// Who asked for the present run to be ended for the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<Arc<str>>,
    /// The failure that the present run is ended for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
    /// How far the run that goes on has come, by its own account.
    #[serde(default, skip_serializing_if = "Told::is_nothing")]
    pub account: Told,
    /// The heartbeat that this run has asked for itself; zero is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Duration>,
    /// Whether it was paused itself.
    #[serde(default, skip_serializing_if = "Pause::is_off")]
    pub pause: Pause,
    /// Since when it is paused, by itself or from above, while a run goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_since: Option<Monotonic>,
    /// For how long it was paused before that, in this run.
    #[serde(default, skip_serializing_if = "Duration::is_zero")]
    pub paused_total: Duration,
    /// How many processes of its run, other than its main one, the OOM killer has ended.
    #[serde(default, skip_serializing_if = "is_zero_long")]
    pub oom_kills: u64,
    /// How many of its runs were restarts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// Restarts in a row without a healthy run between them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub streak: u32,
    /// When the restarts of the last period were decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<Monotonic>,
    /// When the restarts of its children in the last period were decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub child_restarts: Vec<Monotonic>,
    /// How many agents were ever spawned below it, if there is a budget for that.
    #[serde(default)]
    pub spawned: u32,
    /// When its present or last run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Moment>,
    /// When its last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Moment>,
    /// When it is forgotten, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Monotonic>,
    /// Its own limits as they are now, in place of those that its specification has.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub own: Limits,
    /// The limits over its subtree: its own and those of its level.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

fn is_zero_long(count: &u64) -> bool {
    *count == 0
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// An agent, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentRecord {
    /// What it is.
    pub birth: Birth,
    /// How it is.
    pub course: Course,
    /// How its last run ended, or its present one's main process.
    pub last: Option<Box<ExitRecord>>,
}

impl AgentRecord {
    /// Returns its name.
    #[must_use]
    pub fn id(&self) -> &AgentId {
        &self.birth.spec.id
    }

    /// Says whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.course.standing, Standing::Ended { .. })
    }
}

/// The limits of the herd and of its levels, as they are now: they can be changed while agents run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HerdRecord {
    /// Over all agents together.
    pub limits: Limits,
    /// What each level gives to its agents.
    pub levels: std::collections::BTreeMap<Level, LevelLimits>,
    /// What each applied file has given.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub applied: std::collections::BTreeMap<String, super::applied::Applied>,
}

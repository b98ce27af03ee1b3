//! What runs tell of themselves, against what the machine makes of it.

use std::time::Duration;

use treeherd::machine::{AgentKey, Machine};
use treeherd::model::id::Run;
use treeherd::model::note::{Note, Told};
use treeherd::model::ready::{Ready, WATCHDOG_LEAST};
use treeherd::model::record::{Course, Standing};
use treeherd::model::status::{Cause, Paused};

use super::super::kernel::Kernel;
use super::{Asking, Observer};

/// One run, by its own account. Times are those in which it was not paused.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    /// Its program executes, and its end was not told.
    pub is_going: bool,
    is_ready: bool,
    is_stopping: bool,
    has_triggered: bool,
    was_told: bool,
    /// Its supervisor died before it told of its beginning.
    has_unseen_age: bool,
    /// The heartbeat that it asked for.
    period: Option<Duration>,
    age: Duration,
    /// As its age, and anew with each supervisor.
    since_start: Duration,
    since_beat: Duration,
    since_stopping: Duration,
}

impl Observer {
    pub(super) fn heard(&mut self, machine: &Machine, key: AgentKey, run: Run, notes: &[Note]) {
        let is_meant = machine.spec_of(key).is_some_and(|spec| spec.ready == Some(Ready::Notify));
        for note in notes.iter().filter(|_| machine.run_of(key) == Some(run)) {
            let health = self.health.entry((key, run)).or_default();
            match note {
                Note::Ready if is_meant => health.become_ready(),
                Note::Stopping => health.is_stopping = true,
                Note::Beat => health.since_beat = Duration::ZERO,
                Note::Trigger => health.has_triggered = true,
                Note::Period(period) if period.is_zero() || *period >= WATCHDOG_LEAST => {
                    health.period = Some(*period);
                    health.since_beat = Duration::ZERO;
                }
                Note::Ready | Note::Status(_) | Note::Period(_) | Note::Extend(_) => {}
            }
        }
    }

    pub(super) fn saw_ready(&mut self, machine: &Machine, key: AgentKey, run: Run) {
        let is_meant =
            machine.spec_of(key).is_some_and(|spec| spec.ready.as_ref().is_some_and(|ready| *ready != Ready::Notify));
        if is_meant && machine.run_of(key) == Some(run) {
            self.health.entry((key, run)).or_default().become_ready();
        }
    }

    pub(super) fn told_ready(&mut self, machine: &Machine, key: AgentKey, run: Run) {
        assert!(machine.spec_of(key).unwrap().ready.is_some(), "{key}: nobody asked it to tell that it is ready");
        let is_asked = self.is_asked(key, run);
        let health = self.health.get_mut(&(key, run)).unwrap();
        assert!(health.is_ready && health.is_going, "{key}: run {run} has never said that it is ready: {health:?}");
        assert!(!std::mem::replace(&mut health.was_told, true), "{key}: run {run} is told to be ready twice");
        assert!(!is_asked, "{key}: run {run} is to end, and told to be ready");
    }

    /// Another supervisor goes on: it knows what was written down, and waits anew for what may have been told to nobody.
    pub(super) fn remember(&mut self, key: AgentKey, run: Run, course: &Course) {
        self.health.retain(|(it, of), _| *it != key || *of <= run);
        let health = self.health.entry((key, run)).or_default();
        health.has_unseen_age |= !health.is_going;
        health.is_going =
            matches!(course.standing, Standing::Running { .. } | Standing::Draining { .. }) && course.told < Some(run);
        health.is_ready = course.account == Told::Ready || health.is_ready && course.account == Told::Stopping;
        health.is_stopping = course.account == Told::Stopping;
        health.period = course.heartbeat;
        if course.judgement.is_none() {
            health.has_triggered = false;
            (health.since_start, health.since_beat, health.since_stopping) = Default::default();
        }
    }

    /// Time passes for the runs that are not paused.
    pub(super) fn grow_older(&mut self, machine: &Machine, time: Duration) {
        for ((key, run), health) in &mut self.health {
            if health.is_going && machine.run_of(*key) == Some(*run) && machine.key_of_paused(*key) == Some(Paused::No)
            {
                health.age += time;
                health.since_start += time;
                health.since_beat += time;
                health.since_stopping += if health.is_stopping { time } else { Duration::ZERO };
            }
        }
    }

    /// Whoever is found in a failure has earned it.
    pub(super) fn check_verdict(&mut self, machine: &Machine, key: AgentKey, run: Run, cause: Cause) {
        let spec = machine.spec_of(key).unwrap();
        let health = self.health.get_mut(&(key, run)).unwrap();
        health.is_going = false;
        let is_over = |timeout: Option<Duration>, time: Duration| timeout.is_some_and(|timeout| time >= timeout);
        let is_silent = health.is_stopping && health.since_stopping >= spec.grace;
        let is_earned = match cause {
            Cause::Timeout if health.has_unseen_age => spec.run_timeout.is_some() || is_silent,
            Cause::Timeout => is_over(spec.run_timeout, health.age) || is_silent,
            Cause::Ready => !health.is_ready && is_over(spec.ready_deadline(), health.since_start),
            Cause::Watchdog => {
                let period = health.period.or(spec.watchdog).filter(|period| !period.is_zero());
                let is_up = (health.is_ready || spec.ready.is_none()) && !health.is_stopping;
                health.has_triggered || is_up && is_over(period, health.since_beat)
            }
            // Reckoned where escalations, pressure and words are.
            Cause::Child | Cause::Pressure | Cause::Output => true,
            _ => panic!("{key}: {cause} is no verdict"),
        };
        assert!(is_earned, "{key}: run {run} has failed by {cause}: {health:?} of {spec:?}");
        if cause == Cause::Timeout && spec.run_timeout.is_none() {
            self.note("stopping and not ending");
        }
    }

    /// Says whether the present run of an agent has to show that it lives.
    pub(super) fn is_watched(&self, machine: &Machine, kernel: &Kernel, key: AgentKey) -> bool {
        let Some((spec, run)) = machine.spec_of(key).zip(machine.run_of(key)) else { return false };
        if kernel.in_run(key, run).next().is_none() {
            return false;
        }
        let asked = self.health.get(&(key, run)).filter(|health| health.is_going).map(|health| health.period);
        asked.is_some_and(|asked| asked.or(spec.watchdog).is_some_and(|period| !period.is_zero()))
    }
}

impl Health {
    fn become_ready(&mut self) {
        if !self.is_ready {
            self.is_ready = true;
            self.since_beat = Duration::ZERO;
        }
    }
}

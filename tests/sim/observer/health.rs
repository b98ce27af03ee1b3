//! What runs tell of themselves, against what the machine makes of it.

use std::collections::BTreeSet;
use std::time::Duration;

use treeherd::machine::{AgentKey, Machine};
use treeherd::model::event::Event;
use treeherd::model::id::Run;
use treeherd::model::note::{Note, Told};
use treeherd::model::ready::{Ready, WATCHDOG_LEAST};
use treeherd::model::record::{Course, Standing};
use treeherd::model::rule::Action;
use treeherd::model::spec::OnOom;
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
    /// Its supervisor died before it told of its beginning, or wrote a pause of it down.
    has_unseen_age: bool,
    /// It was not held to a time in which its supervisor stood still: the next one does not know of that.
    is_forgiven: bool,
    /// The heartbeat that it asked for.
    period: Option<Duration>,
    age: Duration,
    /// As its age, and anew with each supervisor.
    since_start: Duration,
    since_beat: Duration,
    since_stopping: Duration,
    /// Since it has done something, or an agent below it has run.
    since_work: Duration,
    /// The same when it was looked at last.
    quiet: Duration,
    /// How much of its stall was told since: nothing, half of it, all of it.
    stall_told: u8,
}

impl Observer {
    /// Says whether a run is ready by its own account.
    pub(super) fn says_ready(&self, key: AgentKey, run: Run) -> bool {
        let is_told = self.health.get(&(key, run)).is_some_and(|health| health.is_ready);
        is_told || self.known[&key].spec.ready.is_none()
    }

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
                Note::Ready | Note::Main(_) | Note::Status(_) | Note::Period(_) | Note::Extend(_) => {}
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
        health.has_unseen_age |= !health.is_going || health.is_forgiven;
        health.is_going =
            matches!(course.standing, Standing::Running { .. } | Standing::Draining { .. }) && course.told < Some(run);
        health.is_ready = course.account == Told::Ready || health.is_ready && course.account == Told::Stopping;
        health.is_stopping = course.account == Told::Stopping;
        health.period = course.heartbeat;
        match &course.judgement {
            None => {
                health.has_triggered = false;
                (health.since_start, health.since_beat, health.since_stopping) = Default::default();
                health.stall_told = 0;
            }
            // It was decided, and nobody heard of it: what was told along with it is as lost as the end.
            Some(judgement) if judgement.cause == Cause::Stall => health.stall_told = 2,
            Some(_) => {}
        }
    }

    /// A pause or a resume of the last step was not written down: how long the run was paused since is another story.
    pub(super) fn forget_age(&mut self, key: AgentKey, run: Run) {
        self.health.entry((key, run)).or_default().has_unseen_age = true;
    }

    /// Time passes for the runs that are not paused.
    pub(super) fn grow_older(&mut self, machine: &Machine, kernel: &Kernel, time: Duration) {
        let busy: BTreeSet<_> =
            self.health.keys().copied().filter(|(key, _)| self.has_run_below(machine, kernel, *key)).collect();
        for ((key, run), health) in &mut self.health {
            if busy.contains(&(*key, *run)) {
                health.since_work = Duration::ZERO;
            }
            if health.is_going && machine.run_of(*key) == Some(*run) && machine.key_of_paused(*key) == Some(Paused::No)
            {
                health.age += time;
                health.since_start += time;
                health.since_beat += time;
                health.since_work += if busy.contains(&(*key, *run)) { Duration::ZERO } else { time };
                health.since_stopping += if health.is_stopping { time } else { Duration::ZERO };
            }
        }
    }

    /// The time that has passed last may have been nobody's: no run is held to it.
    pub(super) fn stay_young(&mut self, machine: &Machine, time: Duration) {
        let ages = |(key, run): &(AgentKey, Run), health: &Health| {
            health.is_going && machine.run_of(*key) == Some(*run) && machine.key_of_paused(*key) == Some(Paused::No)
        };
        for (_, health) in self.health.iter_mut().filter(|(of, health)| ages(of, health)) {
            health.is_forgiven = true;
            let Health { age, since_start, since_beat, since_stopping, since_work, .. } = health;
            for clock in [age, since_start, since_beat, since_stopping, since_work] {
                *clock = clock.saturating_sub(time);
            }
        }
        self.note("stood still");
    }

    /// Says whether a run goes on below an agent, as far as that was told.
    pub(super) fn has_run_below(&self, machine: &Machine, kernel: &Kernel, key: AgentKey) -> bool {
        let is_below = |it: &AgentKey| *it != key && machine.is_within(*it, key);
        let runs = kernel.dirs.keys().copied().filter(is_below).filter_map(|it| Some((it, machine.run_of(it)?)));
        let mut started = runs.filter(|run| self.started.contains(run));
        started.any(|(it, run)| kernel.lives(it, run))
    }

    /// A run uses CPU or writes output.
    pub fn worked(&mut self, key: AgentKey, run: Run) {
        self.health.entry((key, run)).or_default().since_work = Duration::ZERO;
    }

    /// The kernel is asked what a run has done; what it does before that is told is no news to anybody.
    pub fn looked_at(&mut self, key: AgentKey, run: Run) {
        let health = self.health.entry((key, run)).or_default();
        health.quiet = health.since_work;
    }

    pub(super) fn told_stalled(&mut self, machine: &Machine, kernel: &Kernel, key: AgentKey, event: &Event) {
        let (run, quiet) = (event.run.unwrap(), Duration::from_millis(event.quiet_ms.unwrap()));
        let rule = machine.spec_of(key).unwrap().stall.expect("nobody asked for it to be told");
        assert_eq!(machine.key_of_paused(key), Some(Paused::No), "{key}: stalled, and paused");
        assert!(!self.has_run_below(machine, kernel, key), "{key}: stalled, and an agent below it runs");
        assert!(!self.is_asked(key, run), "{key}: run {run} is to end, and told to be stalled");
        let health = self.health.get_mut(&(key, run)).unwrap();
        assert!(health.is_going && health.quiet >= quiet, "{key}: run {run} does something: {health:?}");
        health.stall_told += 1;
        assert_eq!(quiet * 2, rule.after * health.stall_told.into(), "{key}: half is told once, then all of it once");
    }

    pub(super) fn told_stirred(&mut self, key: AgentKey, run: Run) {
        let health = self.health.get_mut(&(key, run)).unwrap();
        assert!(std::mem::take(&mut health.stall_told) > 0, "{key}: run {run} stirs, and was never told to be stalled");
    }

    /// Says whether the present run of an agent does nothing, and is to be ended for that.
    pub(super) fn is_to_fail_for_rest(&self, machine: &Machine, kernel: &Kernel, key: AgentKey) -> bool {
        let Some((spec, run)) = machine.spec_of(key).zip(machine.run_of(key)) else { return false };
        let is_going = self.health.get(&(key, run)).is_some_and(|health| health.is_going);
        let fails = spec.stall.is_some_and(|rule| rule.action == Action::Fail);
        fails && is_going && kernel.lives(key, run) && !self.has_run_below(machine, kernel, key)
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
            Cause::Stall => {
                let rule = spec.stall.filter(|rule| rule.action == Action::Fail);
                is_over(rule.map(|rule| rule.after), health.quiet) && health.stall_told == 2
            }
            Cause::Oom => spec.on_oom != OnOom::Continue,
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
        if !kernel.lives(key, run) {
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

//! One agent as the machine sees it: what is wanted of it, where it is, and what the kernel said last.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::after::Outlook;
use super::clock::{Clocks, Countdown};
use super::input::{AgentKey, Effect, Force, Frost, Now, ReplyTo};
use super::ready::Voice;
use super::restart::History;
use super::stall::Quiet;
use super::stop::{LAGGING_AFTER, StopKey};
use super::storm::Turn;
use super::strategy::RenewalKey;
use crate::model::id::{Level, Run};
use crate::model::limits::Limits;
use crate::model::note::Told;
use crate::model::record::Course;
pub(super) use crate::model::record::Outcome;
use crate::model::request::Target;
use crate::model::spec::{AgentSpec, StopSignal, StopSignalTo};
use crate::model::status::{Cause, Exit, ExitRecord, Paused, State};
use crate::model::survivor::Survivor;
use crate::model::time::{Monotonic, Wall};

/// The signal that no process can refuse.
pub(super) const SIGKILL: StopSignal = StopSignal(9);

/// The way from the polite signal to the kill, for one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ladder {
    /// The stop signal waits for what runs below it, until `signal_by` at most.
    Asked { signal_by: Monotonic, kill_at: Monotonic },
    /// The stop signal is sent; at this time comes the kill.
    Polite(Monotonic),
    /// The kill is ordered, and ordered again if need be.
    Killed(Kill),
    /// The spawn succeeded when its kill for lateness was ordered already: killed, and again if need be.
    Late(Kill),
}

/// A kill whose end was not seen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kill {
    /// When it was ordered first.
    pub since: Monotonic,
    /// When it is ordered again: what it passed over is swept then.
    pub again: Monotonic,
}

/// How long a kill may take until what it passed over is swept. The kernel needs 160 ms for 10,000 processes.
const SWEEP_AFTER: Duration = Duration::from_millis(200);

/// The longest time between two sweeps of what does not die.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_secs(60);

impl Kill {
    /// A kill that is ordered now.
    pub fn new(now: Monotonic) -> Self {
        Self { since: now, again: now + SWEEP_AFTER }
    }

    /// Returns how it is carried out now.
    pub fn force(self, now: Monotonic) -> Force {
        if now == self.since { Force::Stroke } else { Force::Sweep }
    }

    /// Returns whether it takes so long that what hangs is to be named.
    pub fn is_lagging(self, now: Monotonic) -> bool {
        now.since(self.since) >= LAGGING_AFTER
    }

    /// The same kill, ordered again now. Each interval is as long as all before together, and one ends with the time that
    /// a kill may take.
    pub fn again(self, now: Monotonic, timeout: Duration) -> Self {
        let again = now + now.since(self.since).clamp(SWEEP_AFTER, SWEEP_INTERVAL_MAX);
        let late = self.since + timeout;
        Self { again: if now < late { again.min(late) } else { again }, ..self }
    }
}

impl Ladder {
    /// Returns when the next rung is due.
    pub fn due(self) -> Monotonic {
        match self {
            Self::Asked { signal_by: at, .. } | Self::Polite(at) => at,
            Self::Killed(kill) | Self::Late(kill) => kill.again,
        }
    }
}

impl Outcome {
    /// Tells what a run's record makes of the agent.
    pub fn of(record: &ExitRecord) -> Self {
        match record.cause {
            Cause::Terminated => Self::Terminated,
            _ if record.is_success() => Self::Completed,
            _ => Self::Failed,
        }
    }
}

/// Where an agent is. The one place where it changes is `Machine::enter`.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// A group whose cgroup is made.
    Group,
    /// It waits for admission.
    Queued,
    /// It is admitted and waits for its parent's cgroup, for the agents that it starts after, or for its subtree to be thawed.
    Held,
    /// The spawn is on a hand; at the deadline the fresh run is killed, which frees the hand.
    Spawning { deadline: Option<Monotonic> },
    /// The main process runs. A ladder says that this run is to be ended for the next one.
    Running { pid: i32, ladder: Option<Ladder> },
    /// The main process has ended, descendants live. Without a ladder they are waited for.
    Draining { record: Box<ExitRecord>, ladder: Option<Ladder> },
    /// Nothing of the run lives, and it ended well; but its last words could mean failure. At the deadline they do not.
    Reading { record: Box<ExitRecord>, deadline: Monotonic },
    /// The last run is over, agents below are still there.
    Lingering { outcome: Outcome },
    /// It waits for its next run.
    Backoff { countdown: Countdown },
    /// It has ended, and nothing of it lives.
    Ended { outcome: Outcome, at: Monotonic },
}

/// An agent's cgroup directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// Not made yet, or removed.
    None,
    /// Being made by a spawn that is under way.
    Making,
    /// There.
    Made,
    /// Being removed; with the kill of what lives in it, if that was refused before.
    Removing(Option<Kill>),
    /// Its removal was refused since something lives in it: killed, and tried again when it is empty or the kill is due again.
    Emptying(Kill),
}

/// An agent's freezer: what is asked, what was ordered, what was written, what the kernel says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Freezer {
    /// Whether a user paused this very agent.
    pub own: Frost,
    /// Whether a rule on pressure holds it.
    pub hold: Frost,
    /// The write that is on a hand.
    pub ordered: Option<Frost>,
    /// The last write that was carried out.
    pub written: Frost,
    /// What `cgroup.events` said last.
    pub seen: Frost,
    /// What the last event told of it.
    pub told: Frost,
}

impl Freezer {
    /// Returns what is wanted of it: it is frozen as long as anybody wants that.
    pub fn wanted(&self) -> Frost {
        if self.own == Frost::Frozen { self.own } else { self.hold }
    }

    /// Says whether the kernel has confirmed that the subtree is frozen, and nothing is on its way to change that.
    pub fn is_confirmed(&self) -> bool {
        self.seen == Frost::Frozen && self.written == Frost::Frozen && self.ordered.is_none()
    }
}

/// The request to end an agent, as far as it concerns this agent.
#[derive(Clone, Debug)]
pub(super) struct Down {
    /// The stop that drives it.
    pub stop: StopKey,
    /// Who asked.
    pub by: Arc<str>,
    /// When the kill is due.
    pub kill_at: Monotonic,
    /// The stop signal to the present run.
    pub signal: Signal,
    /// When the signal is sent even if something runs below it still.
    pub signal_by: Monotonic,
}

/// How far the stop signal to a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Unsent,
    Ordered,
    Sent,
}

/// Who wants the next start: it decides whether the storm limiter has a say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Start {
    /// Somebody asked for it.
    #[default]
    Asked,
    /// A policy.
    Automatic,
}

/// Why a run that goes on has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub cause: Cause,
    /// In one sentence.
    pub why: String,
}

/// One agent.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub key: AgentKey,
    pub spec: Arc<AgentSpec>,
    pub parent: Option<AgentKey>,
    pub children: BTreeSet<AgentKey>,
    /// Children that have not ended.
    pub live_children: u32,
    /// Children that count against `max_children`.
    pub admitted_children: u32,
    pub level: Level,
    /// The limits over the subtree: the level's `each` with the agent's own over it.
    pub limits: Limits,
    pub phase: Phase,
    /// Wanted: none is up; else it is to end and to stay ended.
    pub down: Option<Down>,
    /// Who asked for the present run to be ended for the next one.
    pub cycle: Option<Arc<str>>,
    /// The renewal that it starts anew with.
    pub renewal: Option<RenewalKey>,
    /// Who wants the next start.
    pub start: Start,
    /// Its place among the restarts that wait for their turn.
    pub turn: Option<Turn>,
    /// What it promised last to those that start after it.
    pub outlook: Outlook,
    /// The stops that wait for it.
    pub stops: Vec<StopKey>,
    pub home: Home,
    /// The cgroup of the children together.
    pub nursery: Home,
    /// Spawns on a hand in the subtree, the agent's own included.
    pub spawning: u32,
    /// Runs that go on in the subtree, the agent's own apart.
    pub runs_below: u32,
    /// How many agents were ever spawned below it, if there is a budget for that.
    pub spawned: u32,
    /// When the restarts of its children in the last period were decided.
    pub child_restarts: VecDeque<Monotonic>,
    pub freezer: Freezer,
    /// What the present run is held to.
    pub clocks: Clocks,
    /// What the present or last run has told of itself.
    pub voice: Voice,
    /// What is known of the present run's idleness, if it has a rule on that.
    pub quiet: Quiet,
    /// The failure that the present run was found in, and is ended for: its end has this cause.
    pub verdict: Option<Verdict>,
    /// How many processes of the present or last run the OOM killer has ended, its main one included.
    pub oom_kills: u64,
    /// The end of those that the main process left behind and that ended last.
    pub last_left: Option<Exit>,
    /// Who has outlived the kill of the present run, if its time for that is over.
    pub stuck: Option<Vec<Survivor>>,
    /// Since when the present run is to be dead and was killed for it: its grace is over.
    pub overdue: Option<Monotonic>,
    /// Who paused this very agent.
    pub paused_by: Option<Arc<str>>,
    /// Since when it is paused, by itself or from above, while a run is going on.
    pub paused_since: Option<Monotonic>,
    /// For how long it was paused in this run.
    pub paused_total: Duration,
    pub run: Run,
    pub restarts: u32,
    pub history: History,
    pub began: Option<Now>,
    pub ended: Option<Now>,
    /// When it is forgotten, once it has ended.
    pub expires: Option<Monotonic>,
    /// How the last run ended.
    pub last: Option<Box<ExitRecord>>,
    /// The run whose terminal event was told; 0 for the end of what has no run.
    pub told: Option<Run>,
    /// Who waits for the outcome of the spawn or restart that is under way.
    pub reply: Option<ReplyTo>,
    /// What was written down of it last.
    pub recorded: Option<Box<Course>>,
    /// The timer that is set for it.
    pub due: Option<Monotonic>,
}

impl Agent {
    pub fn new(key: AgentKey, spec: Arc<AgentSpec>, parent: Option<AgentKey>, level: Level, limits: Limits) -> Self {
        Self {
            key,
            spec,
            parent,
            children: BTreeSet::new(),
            live_children: 0,
            admitted_children: 0,
            level,
            limits,
            phase: Phase::Queued,
            down: None,
            cycle: None,
            renewal: None,
            start: Start::default(),
            turn: None,
            outlook: Outlook::default(),
            stops: Vec::new(),
            home: Home::None,
            nursery: Home::None,
            spawning: 0,
            runs_below: 0,
            spawned: 0,
            child_restarts: VecDeque::new(),
            freezer: Freezer::default(),
            clocks: Clocks::default(),
            voice: Voice::default(),
            quiet: Quiet::default(),
            verdict: None,
            oom_kills: 0,
            last_left: None,
            stuck: None,
            overdue: None,
            paused_by: None,
            paused_since: None,
            paused_total: Duration::ZERO,
            run: Run::default(),
            restarts: 0,
            history: History::default(),
            began: None,
            ended: None,
            expires: None,
            last: None,
            told: None,
            reply: None,
            recorded: None,
            due: None,
        }
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// Says whether a target names this very agent, and not only one above it.
    pub fn is_named(&self, target: &Target) -> bool {
        match target {
            Target::Ids(ids) => ids.contains(&self.spec.id),
            Target::Level(level) => self.level == *level,
            Target::Session(session) => self.spec.session.as_ref() == Some(session),
            Target::All => true,
        }
    }

    /// Says whether agents may be put below it: it neither ends nor has ended.
    pub fn takes_children(&self) -> bool {
        self.down.is_none() && !matches!(self.phase, Phase::Lingering { .. } | Phase::Ended { .. })
    }

    /// Says whether it counts against the bounds on the tree.
    pub fn is_admitted(&self) -> bool {
        !matches!(self.phase, Phase::Queued | Phase::Ended { .. })
    }

    /// Returns how far the end of its present run has come, if that was asked for the sake of the next one.
    pub fn ladder(&self) -> Option<Ladder> {
        match self.phase {
            Phase::Running { ladder, .. } | Phase::Draining { ladder, .. } => ladder,
            _ => None,
        }
    }

    /// Says whether its run goes on and nobody has asked for its end yet: only such a run can be found in a failure.
    pub fn is_unattended(&self) -> bool {
        let goes_on = self.has_run() || matches!(self.phase, Phase::Reading { .. });
        goes_on && self.ladder().is_none() && self.down.is_none() && self.cycle.is_none()
    }

    /// Says whether the terminal event of its present run was told.
    pub fn is_end_told(&self) -> bool {
        self.told == Some(self.run)
    }

    /// Says whether processes of its present run may live.
    pub fn has_run(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Draining { .. })
    }

    /// Says whether nothing of the agents below it runs, or is about to.
    pub fn is_last_to_run(&self) -> bool {
        let own = u32::from(matches!(self.phase, Phase::Spawning { .. }));
        self.runs_below == 0 && self.spawning == own
    }

    /// Says whether something can be told of its present run.
    pub fn can_speak(&self) -> bool {
        self.has_run() || matches!(self.phase, Phase::Spawning { .. })
    }

    /// Says whether its `pid_file` is to name the main process: the one that was started has ended well.
    pub fn awaits_main(&self) -> bool {
        let is_well = matches!(&self.phase, Phase::Draining { record, ladder: None } if record.is_success());
        is_well && self.spec.pid_file.is_some() && self.voice.told == Told::Nothing
    }

    /// Returns how often its run has to show that it lives.
    pub fn heartbeat(&self) -> Option<Duration> {
        self.voice.period.or(self.spec.watchdog).filter(|period| !period.is_zero())
    }

    /// Returns the order that sends a signal to its present run: to all of it if no main process is there to hear it, or if
    /// the signal is no request.
    pub fn signal(&self, signal: StopSignal) -> Effect {
        let is_request = matches!(self.phase, Phase::Running { .. }) && signal != SIGKILL;
        let to = if is_request { self.spec.stop_signal_to } else { StopSignalTo::All };
        Effect::Signal { agent: self.key, run: self.run, signal, to }
    }

    pub fn pid(&self) -> Option<i32> {
        match self.phase {
            Phase::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    pub fn state(&self) -> State {
        let up = |state| if self.down.is_some() { State::Stopping } else { state };
        if self.stuck.is_some() && self.has_run() {
            return State::Stuck;
        }
        match &self.phase {
            Phase::Group => up(State::Group),
            Phase::Queued => State::Queued,
            Phase::Held | Phase::Spawning { .. } => up(State::Starting),
            Phase::Running { ladder: Some(_), .. } | Phase::Draining { ladder: Some(_), .. } => State::Stopping,
            Phase::Running { .. } | Phase::Draining { .. } | Phase::Reading { .. } => up(match self.voice.told {
                Told::Nothing => State::Starting,
                Told::Ready => State::Running,
                Told::Stopping => State::Stopping,
            }),
            Phase::Lingering { .. } if self.spec.on_main_exit == crate::model::spec::OnMainExit::Wait => {
                up(State::Running)
            }
            Phase::Lingering { .. } => State::Stopping,
            Phase::Backoff { .. } => up(State::Backoff),
            Phase::Ended { outcome: Outcome::Completed, .. } => State::Completed,
            Phase::Ended { outcome: Outcome::Failed, .. } => State::Failed,
            Phase::Ended { outcome: Outcome::Terminated, .. } => State::Terminated,
        }
    }

    /// Returns its own part of the pause; whether an agent above is paused, the tree knows.
    pub fn paused(&self, inherited: bool) -> Paused {
        match (self.freezer.wanted(), inherited) {
            (Frost::Frozen, _) => Paused::Own,
            (Frost::Thawed, true) => Paused::Inherited,
            (Frost::Thawed, false) => Paused::No,
        }
    }

    /// Returns how long it was paused in this run.
    pub fn paused_for(&self, now: Monotonic) -> Duration {
        self.paused_total + self.paused_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    pub fn started_wall(&self) -> Option<Wall> {
        self.began.map(|began| began.wall)
    }
}

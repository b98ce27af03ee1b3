//! Why an agent is as it is, what it waits for and what comes next, in sentences made from facts. It decides nothing.
//!
//! Each subject is one function in [`LINES`], which adds its sentences and says nothing when it has none: a new subject is
//! one more line there.

use std::time::Duration;

use super::Machine;
use super::agent::{Agent, Ladder, Outcome, Phase, Signal};
use super::clock::{Clock, Countdown};
use super::input::{AgentKey, Frost};
use super::restart::{Decision, decide};
use super::stop::Stage;
use crate::model::explain::{Explanation, Next};
use crate::model::note::Told;
use crate::model::recovery::Strategy;
use crate::model::rule::Action;
use crate::model::spec::{OnMainExit, RestartPolicy};
use crate::model::status::{Cause, millis};
use crate::model::time::Monotonic;

type Line = fn(&Machine, &Agent, Monotonic, &mut Explanation);

/// What is looked at, in the order of its sentences.
const LINES: [Line; 16] = [
    stuck,
    paused,
    stopping,
    being_ended,
    waiting,
    following,
    renewing,
    turn,
    running,
    oom_kills,
    telling,
    last_run,
    clocks,
    idleness,
    retention,
    after_a_failure,
];

impl Machine {
    /// Explains an agent. It exists: its key was just found.
    #[must_use]
    pub fn explain(&self, key: AgentKey, now: Monotonic) -> Explanation {
        let agent = &self.agents[&key];
        let mut told = Explanation {
            id: agent.spec.id.clone(),
            state: self.shown_state(key),
            because: Vec::new(),
            waiting_for: Vec::new(),
            next: Vec::new(),
        };
        for line in LINES {
            line(self, agent, now, &mut told);
        }
        told.next.sort_by_key(|next| next.in_ms.unwrap_or(u64::MAX));
        told
    }
}

fn text(duration: Duration) -> String {
    // Below a second people want milliseconds, above it they do not.
    let shown = if duration < Duration::from_secs(1) { millis(duration) } else { duration.as_secs() * 1000 };
    humantime::format_duration(Duration::from_millis(shown)).to_string()
}

fn at(told: &mut Explanation, now: Monotonic, when: Monotonic, what: impl Into<String>) {
    told.next.push(Next { what: what.into(), in_ms: Some(millis(when.since(now))) });
}

fn some_day(told: &mut Explanation, what: impl Into<String>) {
    told.next.push(Next { what: what.into(), in_ms: None });
}

/// It was killed and lives on.
fn stuck(_: &Machine, agent: &Agent, _: Monotonic, told: &mut Explanation) {
    for survivor in agent.stuck.iter().flatten() {
        told.because.push(format!("it was killed, and {survivor} lives on"));
    }
}

/// Somebody asked for its end, for good.
fn stopping(machine: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let Some(down) = agent.down.as_ref().filter(|_| !agent.has_ended()) else { return };
    told.because.push(format!("its end was asked for by {}", down.by));
    if agent.live_children > 0 {
        told.waiting_for.push(format!("the {} agents right below it to end", agent.live_children));
    }
    if agent.has_run() {
        told.waiting_for.push("the processes of its run to end".to_owned());
    }
    if down.signal != Signal::Unsent {
        told.because.push(format!("{} was sent to its run", agent.spec.stop_signal));
    } else if let Some(due) = machine.signal_due(now, agent) {
        at(told, now, due, format!("{} is sent to its run, or sooner if all below has ended", agent.spec.stop_signal));
    }
    match machine.stops.get(&down.stop).map(|stop| stop.stage) {
        Some(Stage::Polite(deadline)) => at(told, now, deadline, "what is left of it is killed"),
        Some(Stage::Closing) => told.waiting_for.push("spawns into its subtree that are on their way".to_owned()),
        Some(Stage::Freezing(deadline)) => at(told, now, deadline, "it is killed, all of it frozen or not"),
        Some(Stage::Killing(kill)) => at(told, now, kill.again, "what has not died of the kill is killed again"),
        Some(Stage::Removing) | None => {}
    }
    some_day(told, "it stays ended: no policy brings it back, only `treeherd restart`");
}

/// Its run is ended for the next one, or for a failure.
fn being_ended(_: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    if let Some(verdict) = &agent.verdict {
        told.because.push(format!("its run was found in a failure, {}: {}", verdict.cause, verdict.why));
    } else if let Some(by) = &agent.cycle {
        told.because.push(format!("its run is ended for the next one, by {by}"));
    }
    let Some(ladder) = agent.ladder() else { return };
    told.waiting_for.push("the processes of its run to end".to_owned());
    match ladder {
        Ladder::Asked { signal_by, kill_at } => {
            at(told, now, signal_by, format!("{} is sent, or sooner if all below has ended", agent.spec.stop_signal));
            at(told, now, kill_at, "what is left of its run is killed");
        }
        Ladder::Polite(kill) => at(told, now, kill, "what is left of its run is killed"),
        Ladder::Killed(kill) | Ladder::Late(kill) => {
            at(told, now, kill.again, "what is left of its run is killed again");
        }
    }
}

fn paused(machine: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let chain = std::iter::once(agent.key).chain(machine.ancestors(agent.key));
    let pausers: Vec<_> = chain.map(|key| &machine.agents[&key]).filter(|it| it.freezer.own == Frost::Frozen).collect();
    for pauser in pausers.iter().filter(|_| !agent.has_ended()) {
        let whom = if pauser.key == agent.key { "it".to_owned() } else { format!("{} above it", pauser.spec.id) };
        let by = pauser.paused_by.as_deref().map(|by| format!(" by {by}")).unwrap_or_default();
        let since = pauser.paused_since.map(|at| format!(", {} ago", text(now.since(at)))).unwrap_or_default();
        told.because.push(format!("{whom} was paused{by}{since}"));
        told.waiting_for.push(format!("a resume of {}", pauser.spec.id));
    }
}

/// It has no run yet, or none any more.
fn waiting(machine: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    if agent.down.is_some() {
        return;
    }
    match &agent.phase {
        Phase::Queued => {
            let room = machine.room(&agent.spec.after, agent.parent, agent.level, &agent.limits);
            let why = room.err().map_or_else(|| "others come before it".to_owned(), |error| error.message);
            told.because.push(format!("there is no room for it in the tree: {why}"));
            told.waiting_for.push(format!("room; its priority is {}", u8::from(agent.spec.priority)));
        }
        Phase::Held if machine.can_follow(agent) && !machine.is_held_by_frost(agent.key) => {
            if agent.renewal.is_some() || agent.turn.is_some() {
                return;
            }
            told.waiting_for.push("its parent to be started, or a change of limits".to_owned());
        }
        Phase::Spawning { deadline } => {
            told.because.push(format!("its run {} is being started", agent.run));
            told.waiting_for.push("its program to execute".to_owned());
            if let Some(deadline) = deadline {
                at(told, now, *deadline, "a start that hangs is killed and has failed");
            }
        }
        Phase::Draining { ladder: None, .. } if agent.awaits_main() => {
            told.because.push(
                "the process that was started has ended, as a program does that goes into the background".to_owned(),
            );
        }
        Phase::Draining { ladder: None, .. } => {
            told.because.push("its main process has ended, and on_main_exit is wait".to_owned());
            told.waiting_for.push("the processes that its main process left behind".to_owned());
        }
        Phase::Lingering { outcome } => {
            let word = if *outcome == Outcome::Failed { "failed" } else { "ended" };
            told.because.push(format!("its last run has {word}, and agents below it live"));
            told.waiting_for.push(format!("the {} agents right below it to end", agent.live_children));
            if agent.spec.on_main_exit == OnMainExit::Wait {
                some_day(told, "they are not asked to end: on_main_exit is wait");
            }
        }
        Phase::Backoff { countdown: Countdown::Until(until) } => {
            at(told, now, *until, "its delay is over: it is started again")
        }
        Phase::Backoff { countdown: Countdown::Suspended(left) } => {
            some_day(told, format!("it is started again {} after it was resumed", text(*left)));
        }
        _ => {}
    }
}

/// It starts after others.
fn following(machine: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let can_wait = matches!(agent.phase, Phase::Held | Phase::Queued) && agent.down.is_none();
    for awaited in machine.awaited(agent).filter(|_| can_wait).take(10) {
        let own = machine.waits_for(awaited.key, now).map(|what| format!("; it waits for {what}")).unwrap_or_default();
        told.waiting_for.push(format!("{}{own}", to_be_ready(awaited, now)));
        let id = &awaited.spec.id;
        some_day(told, format!("should {id} end for good and not be ready, it is not started: it has failed, too"));
    }
}

/// Says how far an agent is that another one waits for.
pub(super) fn to_be_ready(awaited: &Agent, now: Monotonic) -> String {
    let since = awaited.began.filter(|_| awaited.has_run());
    let since = since.map(|began| format!(" since {}", text(now.since(began.mono)))).unwrap_or_default();
    format!("{} to be ready, which is {}{since}", awaited.spec.id, awaited.state())
}

fn renewing(machine: &Machine, agent: &Agent, _: Monotonic, told: &mut Explanation) {
    let Some(renewal) = agent.renewal.and_then(|number| machine.renewals.get(&number)) else { return };
    told.because.push(format!("it starts anew together with others, by {}", renewal.by));
    let others = renewal.pending.iter().filter(|key| **key != agent.key);
    let names: Vec<_> = others.filter_map(|key| machine.id_of(*key)).map(|id| id.as_str()).collect();
    if !names.is_empty() {
        let shown = names[..names.len().min(10)].join(", ");
        let more = if names.len() > 10 { format!(" and {} more", names.len() - 10) } else { String::new() };
        told.waiting_for.push(format!("{shown}{more} to be ready to start, too"));
    }
}

fn turn(machine: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let Some(turn) = agent.turn else { return };
    let (burst, rate) = (machine.config.restart_burst, machine.config.restart_rate);
    told.because.push(format!("the herd restarts {burst} at once and {rate} at most, and others came before"));
    told.waiting_for.push("its turn to be restarted".to_owned());
    at(told, now, turn.expected, "its turn comes, if nobody more urgent joins");
}

fn running(_: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let Some(began) = agent.began.filter(|_| agent.is_unattended()) else { return };
    told.because.push(format!("its run {} began {} ago", agent.run, text(now.since(began.mono))));
}

/// What its run has lost to the OOM killer.
fn oom_kills(_: &Machine, agent: &Agent, _: Monotonic, told: &mut Explanation) {
    if agent.has_run() && agent.oom_kills > 0 {
        told.because.push(format!("the OOM killer has ended {} processes of its run", agent.oom_kills));
    }
}

/// What its run has told of itself, and what it is expected to tell.
fn telling(_: &Machine, agent: &Agent, _: Monotonic, told: &mut Explanation) {
    if !agent.has_run() {
        return;
    }
    match (agent.voice.told, agent.spec.ready_sign()) {
        (Told::Nothing, Some(sign)) => told.waiting_for.push(format!("its readiness: {sign}")),
        (Told::Ready, Some(sign)) => told.because.push(format!("it has told that it is ready: {sign}")),
        (Told::Stopping, _) => told.because.push("it said STOPPING=1: it is about to end by itself".to_owned()),
        _ => {}
    }
}

fn last_run(_: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let (Some(last), Some(ended)) = (&agent.last, agent.ended) else { return };
    let ago = text(now.since(ended.mono));
    let which = if agent.spec.is_group() { "it ended".to_owned() } else { format!("a run of it ended {ago} ago") };
    told.because.push(format!("{which}: {last}"));
    if matches!(agent.phase, Phase::Ended { .. }) && agent.down.is_none() {
        told.because.push(match agent.spec.restart.policy {
            RestartPolicy::Never => "its restart policy is never".to_owned(),
            RestartPolicy::OnFailure if last.is_success() => {
                "its restart policy is on-failure, and it did not fail".to_owned()
            }
            // What is known of the end says why.
            _ if last.cause == Cause::GivenUp => return,
            policy => {
                let (most, period) = (agent.spec.restart.intensity, text(agent.spec.restart.period));
                format!("its restart policy is {}, and its {most} restarts within {period} are used up", policy.name())
            }
        });
    }
}

fn clocks(_: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    for (clock, countdown) in agent.clocks.iter().filter(|_| agent.is_unattended()) {
        let what = match clock {
            Clock::Run => "its run_timeout is over: it has failed",
            Clock::Ready => "its ready_timeout is over: it has failed, unless it is ready by then",
            Clock::Watchdog => "its heartbeat is missed: it has failed, unless it tells that it lives",
            // Its time is a look's, and not the rule's.
            Clock::Stall => continue,
            Clock::Stop => "it has said that it stops, and its grace is over: it has failed",
        };
        match countdown {
            Countdown::Until(until) => at(told, now, until, what),
            Countdown::Suspended(left) => some_day(told, format!("{what}, {} after it was resumed", text(left))),
        }
    }
}

/// For how long its run has done nothing, and what follows.
fn idleness(_: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let Some(rule) = agent.spec.stall.filter(|_| agent.has_run() && agent.is_unattended()) else { return };
    if agent.runs_below > 0 {
        return told.because.push("it is not stalled, whatever it does itself: agents below it run".to_owned());
    }
    let (quiet, look) = (agent.quiet.lasts(&rule), rule.look());
    if !quiet.is_zero() {
        told.because.push(format!("for {} it has written no output and used no CPU", text(quiet)));
    }
    let has_failed = if rule.action == Action::Fail { ": it has failed" } else { "" };
    let what = format!("it has done nothing for {}{has_failed}, unless it does something", text(rule.after));
    let rest = rule.after.saturating_sub(quiet + look);
    match agent.clocks.get(Clock::Stall) {
        Some(Countdown::Until(next)) if quiet < rule.after => at(told, now, next + rest, what),
        Some(Countdown::Suspended(left)) if quiet < rule.after => {
            some_day(told, format!("{what}, {} after it was resumed", text(left + rest)));
        }
        _ => {}
    }
}

fn retention(_: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    if let Some(expires) = agent.expires.filter(|_| agent.has_ended()) {
        at(told, now, expires, "it is forgotten, its record and its output with it");
    }
    if let Some(file) = agent.spec.declared_by.as_ref().filter(|_| agent.has_ended() && agent.expires.is_none()) {
        some_day(told, format!("it stays as it is until it leaves the file {file}, or is cleaned up"));
    }
}

/// What its policy and its parent would make of a failure now.
fn after_a_failure(machine: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let can_fail = agent.is_unattended() || matches!(agent.phase, Phase::Spawning { .. });
    if !can_fail || agent.down.is_some() {
        return;
    }
    let restart = &agent.spec.restart;
    let ran = agent.began.map_or(Duration::ZERO, |began| now.since(began.mono));
    let mut history = agent.history.clone();
    let used = history.used(restart, now);
    match decide(restart, &mut history, false, ran, now, 0.5) {
        Decision::Again { delay, .. } => {
            let (most, period) = (restart.intensity, text(restart.period));
            let share = format!("{used} of {most} restarts within {period} are used");
            some_day(told, format!("should it fail, it is started again after about {}: {share}", text(delay)));
            parents_answer(machine, agent, now, told);
        }
        Decision::GiveUp => some_day(told, format!("should it fail, it is given up: {used} restarts are used up")),
        Decision::No => some_day(told, "should it fail, it is not started again: its restart policy is never"),
    }
    if let Some(parent) = agent.parent.and_then(|parent| machine.id_of(parent)).filter(|_| agent.spec.significant) {
        some_day(told, format!("when it ends for good, {parent} ends with it: it is significant"));
    }
}

fn parents_answer(machine: &Machine, agent: &Agent, now: Monotonic, told: &mut Explanation) {
    let Some(parent) = agent.parent.map(|parent| &machine.agents[&parent]) else { return };
    let (children, id) = (&parent.spec.children, &parent.spec.id);
    if let Some(most) = children.intensity {
        let used = parent.child_restarts.iter().filter(|at| now.since(**at) < children.period).count();
        let period = text(children.period);
        let then = if used >= most as usize { "fails, too" } else { "puts up with it" };
        some_day(told, format!("{id} {then}: {used} of its {most} restarts of children within {period} are used"));
    }
    match children.strategy {
        Strategy::OneForOne => {}
        strategy => some_day(told, format!("others start anew with it: the strategy of {id} is {strategy}")),
    }
}

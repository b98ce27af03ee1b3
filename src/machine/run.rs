//! A run from its birth to its end: the facts about it, and what follows from its end.

use std::time::Duration;

use super::agent::{Home, Kill, Ladder, Outcome, Phase, Signal, Verdict};
use super::clock::Countdown;
use super::input::{AgentKey, Effect, Force};
use super::{Machine, Step};
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::id::{AgentId, Run};
use crate::model::note::Told;
use crate::model::request::Answer;
use crate::model::spec::{OnMainExit, OnOom, StopSignalTo, signal_name};
use crate::model::stage::{SpawnFailure, Stage};
use crate::model::status::{Cause, Exit, ExitRecord, Oom, Rusage, millis};

/// What is known of a main process's end.
pub(super) struct Death {
    pub exit: Exit,
    pub rusage: Rusage,
    pub oom: Option<Oom>,
    pub descendants: u64,
    /// Whether it came before any request that there is now for the end of the run.
    pub is_unasked: bool,
}

impl Death {
    fn record(self) -> ExitRecord {
        let cause = match self.exit {
            _ if self.oom.is_some() => Cause::Oom,
            Exit::Signal { .. } => Cause::Signal,
            Exit::Status(_) => Cause::Exit,
            Exit::Unknown => Cause::Lost,
        };
        let mut record = ExitRecord::new(cause);
        match self.exit {
            Exit::Status(status) => record.status = Some(status),
            Exit::Signal { number, core } => {
                record.signal = Some(signal_name(number));
                record.core = core;
            }
            Exit::Unknown => {}
        }
        record.rusage = self.rusage;
        record.oom = self.oom;
        record.descendants = self.descendants;
        record
    }
}

/// What is wrong with a run whose `pid_file` could name nobody.
const LEFT_NOTHING: &str = "it left no process that its pid_file could name";

impl Machine {
    pub(super) fn spawned(&mut self, step: &mut Step, key: AgentKey, pid: Option<i32>) {
        let Some(agent) = self.agents.get_mut(&key) else { return };
        let Phase::Spawning { deadline } = agent.phase else { return };
        let ladder = deadline.is_none().then_some(Ladder::Late(Kill::new(step.now.mono)));
        let is_made = agent.home == Home::Making;
        agent.began = Some(step.now);
        agent.ended = None;
        agent.phase = match pid {
            Some(pid) => Phase::Running { pid, ladder },
            None => Phase::Group,
        };
        let verdict = agent.verdict.take().filter(|_| agent.down.is_none() && agent.cycle.is_none());
        let kill_at = agent.renewal.and_then(|renewal| self.renewals.get(&renewal)).map(|renewal| renewal.kill_at);
        if let Some(down) = &mut agent.down {
            down.signal = Signal::Unsent;
        }
        self.spawn_is_over(key, Home::Made);
        if pid.is_none() {
            self.publish(step, Kind::Registered, key, |_| {});
        } else {
            if is_made {
                self.publish(step, Kind::Spawned, key, |_| {});
            }
            self.publish(step, Kind::Started, key, |_| {});
            self.count_run(key, |count| count + 1);
            self.start_clocks(step, key);
            self.await_ready(step, key);
        }
        if let Some(verdict) = verdict {
            self.judge(step, key, verdict);
        }
        if let (Some(kill_at), None) = (kill_at, ladder) {
            self.set_ladder(key, Ladder::Asked { signal_by: step.now.mono, kill_at });
        }
        if let Some(reply) = self.agent_mut(key).reply.take() {
            let status = self.status(key, step.now.mono);
            // One that is late is on its way to its kill, and may never have begun to run its program.
            let answer = match ladder.filter(|_| pid.is_some()) {
                None => Ok(Answer::Agent(Box::new(status))),
                Some(_) => Err(spawn_error(&status.id, &self.late())),
            };
            step.reply(reply, answer);
        }
    }

    /// What a spawn that was ended for its time is told as.
    fn late(&self) -> SpawnFailure {
        let remedy = "look for a frozen cgroup above it and a file system that hangs, or raise spawn_timeout";
        let message = self.did_not_start();
        SpawnFailure { stage: Stage::Killed, errno: None, message, remedy: Some(remedy.to_owned()) }
    }

    /// What is wrong with a spawn that was ended for its time.
    fn did_not_start(&self) -> String {
        format!("its program did not start within {}", humantime::format_duration(self.config.spawn_timeout))
    }

    pub(super) fn spawn_failed(&mut self, step: &mut Step, key: AgentKey, mut failure: SpawnFailure) {
        let Some(agent) = self.agents.get(&key) else { return };
        let Phase::Spawning { deadline } = agent.phase else { return };
        if failure.stage == Stage::Killed && deadline.is_none() {
            failure = self.late();
        }
        let reply = agent.reply;
        let is_first = agent.home == Home::Making && agent.run <= Run(1);
        self.spawn_is_over(key, Home::None);
        let mut record = ExitRecord::new(Cause::Exec);
        record.stage = Some(failure.stage);
        record.error = Some(failure.message.clone());
        self.agent_mut(key).reply = None;
        if let (true, Some(reply)) = (is_first, reply) {
            self.publish(step, Kind::Failed, key, |event| event.exit = Some(record.clone()));
            *self.ends.entry(Cause::Exec).or_default() += 1;
            let error = spawn_error(&self.agents[&key].spec.id, &failure);
            self.agent_mut(key).last = Some(Box::new(record));
            self.expunge(step, key);
            return step.reply(reply, Err(error));
        }
        if let Some(reply) = reply {
            step.reply(reply, Err(spawn_error(&self.agents[&key].spec.id, &failure)));
        }
        self.run_is_over(step, key, record);
    }

    pub(super) fn exited(&mut self, step: &mut Step, key: AgentKey, run: Run, death: Death) {
        let Some(agent) = self.agents.get(&key) else { return };
        let Phase::Running { ladder, .. } = agent.phase else { return };
        if agent.run != run {
            return;
        }
        let (left_behind, is_unasked) = (death.descendants, death.is_unasked);
        let mut record = death.record();
        if let Some(verdict) = &agent.verdict {
            record.judge(verdict.cause, &verdict.why);
        } else if let Some(by) = agent.down.as_ref().map(|it| &it.by).or(agent.cycle.as_ref()).filter(|_| !is_unasked) {
            record.cause = Cause::Terminated;
            record.by = Some(by.to_string());
        } else if let (Some(Ladder::Late(_)), Cause::Signal) = (ladder, record.cause) {
            // It was ours: the end is that of a spawn which took too long, not of a program.
            record.cause = Cause::Exec;
            record.stage = Some(Stage::Killed);
            record.error = Some(self.did_not_start());
        }
        let is_unnamed = agent.spec.pid_file.is_some() && agent.voice.told == Told::Nothing;
        if is_unnamed && left_behind == 0 && record.is_success() {
            record.judge(Cause::Ready, LEFT_NOTHING);
        }
        self.stamp(step, key, &mut record);
        if left_behind == 0 {
            return self.run_is_over(step, key, record);
        }
        let on_main_exit = agent.spec.on_main_exit;
        let (signal, grace, signal_to) = (agent.spec.stop_signal, agent.spec.grace, agent.spec.stop_signal_to);
        let is_asked = record.cause == Cause::Terminated;
        let is_bad = !record.is_success();
        // A run that was found in a failure is on its way to its kill.
        let is_judged = agent.verdict.is_some();
        // What is left behind is ended now, unless the policy waits for it or a stop ends it anyway.
        let goes_on = is_unnamed && !is_bad;
        let ends_them = on_main_exit == OnMainExit::Terminate && !is_asked && !is_judged && !goes_on;
        let is_late = matches!(ladder, Some(Ladder::Late(_)));
        let ladder = if ends_them && !is_late { Some(Ladder::Polite(step.now.mono + grace)) } else { ladder };
        if ends_them && is_bad {
            // A failure is a fact at once; a completion is proved by the empty cgroup only.
            self.tell_end(step, key, Outcome::Failed, &record);
        } else if !is_asked {
            let exit = record.clone();
            self.publish(step, Kind::Exited, key, |event| {
                event.message = format!("{exit}, {left_behind} processes left behind");
                event.exit = Some(exit);
            });
        }
        // A main process that was to end the others in its own way has ended without that.
        let is_asked_alone = is_asked && signal_to == StopSignalTo::Main;
        if ends_them || is_asked_alone {
            step.order(Effect::Signal { agent: key, run, signal, to: StopSignalTo::All });
        }
        self.agent_mut(key).last = Some(Box::new(record.clone()));
        self.enter(key, Phase::Draining { record: Box::new(record), ladder });
    }

    pub(super) fn run_emptied(&mut self, step: &mut Step, key: AgentKey, run: Run) {
        let Some(agent) = self.agents.get(&key) else { return };
        let Phase::Draining { record, .. } = &agent.phase else { return };
        if agent.run == run {
            let mut record = record.as_ref().clone();
            // Whoever puts itself into the background leaves its work to these: their crash is the run's.
            match agent.last_left.filter(|_| agent.is_unattended() && record.is_success()) {
                Some(Exit::Signal { number, core }) => {
                    (record.cause, record.status, record.core) = (Cause::Signal, None, core);
                    record.signal = Some(signal_name(number));
                }
                _ if agent.awaits_main() => record.judge(Cause::Ready, LEFT_NOTHING),
                _ => {}
            }
            self.run_is_over(step, key, record);
        }
    }

    /// A run goes on in another main process than the one that was started.
    pub(super) fn main_named(&mut self, step: &mut Step, key: AgentKey, run: Run, pid: i32) {
        let Some(agent) = self.agents.get_mut(&key).filter(|agent| agent.run == run) else { return };
        match &mut agent.phase {
            Phase::Running { pid: main, .. } => *main = pid,
            Phase::Draining { ladder, .. } => agent.phase = Phase::Running { pid, ladder: *ladder },
            _ => return,
        }
        self.dirty.insert(key);
        if self.agents[&key].spec.pid_file.is_some() {
            self.tell_ready(step, key);
        }
    }

    /// Some of those that a main process left behind have ended.
    pub(super) fn left_ended(&mut self, key: AgentKey, run: Run, exit: Exit) {
        if let Some(agent) = self.agents.get_mut(&key).filter(|agent| agent.run == run && agent.has_run()) {
            agent.last_left = Some(exit);
        }
    }

    /// The OOM killer ended processes of a run: they are counted, and its policy decides whether it has failed.
    pub(super) fn oom_killed(&mut self, step: &mut Step, key: AgentKey, run: Run, kills: u64, oom: Oom) {
        let Some(agent) = self.agents.get_mut(&key).filter(|agent| agent.run == run && agent.has_run()) else { return };
        agent.oom_kills = agent.oom_kills.saturating_add(kills);
        let (on_oom, signal) = (agent.spec.on_oom, agent.spec.stop_signal);
        let culprit = oom.culprit.map(|culprit| format!(" at the limit of {culprit}")).unwrap_or_default();
        let why = format!("the OOM killer ended {kills} of its processes{culprit}");
        self.dirty.insert(key);
        let verdict = Verdict { cause: Cause::Oom, why };
        match on_oom {
            OnOom::Continue => {}
            OnOom::Fail => self.condemn(step, key, verdict, signal),
            OnOom::Kill if self.agents[&key].is_unattended() => {
                self.judge(step, key, verdict);
                step.order(Effect::KillRun { agent: key, run, force: Force::Stroke });
                self.set_ladder(key, Ladder::Killed(Kill::new(step.now.mono)));
            }
            OnOom::Kill => {}
        }
    }

    /// Nothing of the run lives: decides what follows.
    pub(super) fn run_is_over(&mut self, step: &mut Step, key: AgentKey, mut record: ExitRecord) {
        if self.agents[&key].has_run() {
            self.count_run(key, |count| count - 1);
        }
        self.wake_followed(key);
        if self.awaits_last_words(key, &record) {
            return self.read_output(step, key, record);
        }
        let now = step.now.mono;
        let agent = self.agent_mut(key);
        let has_begun = agent.began.is_some();
        let ran = agent.began.map_or(Duration::ZERO, |began| now.since(began.mono));
        let is_told = agent.is_end_told();
        let (run, cycle, is_down) = (agent.run, agent.cycle.take(), agent.down.clone());
        if !is_told {
            self.stamp(step, key, &mut record);
        }
        // Who failed on its own before anybody asked has failed, whoever ended what it left behind.
        if let (false, true, Some(by)) =
            (is_told, record.is_success(), is_down.as_ref().map(|down| &down.by).or(cycle.as_ref()))
        {
            record.cause = Cause::Terminated;
            record.by = Some(by.to_string());
        }
        let outcome = Outcome::of(&record);
        record.overdue = self.agents[&key].overdue.is_some();
        // The main process's own kill is the cause, and no other's.
        let is_own = u64::from(record.cause == Cause::Oom && record.oom.is_some());
        record.oom_kills = self.agents[&key].oom_kills.saturating_sub(is_own);
        self.agent_mut(key).last = Some(Box::new(record.clone()));
        self.agent_mut(key).ended = Some(step.now);
        self.agent_mut(key).stuck = None;
        self.agent_mut(key).clocks.clear();
        if has_begun {
            step.order(Effect::RemoveRun { agent: key, run });
        }
        if is_down.is_some() {
            return self.end_or_linger(step, key, outcome, &record);
        }
        if cycle.is_some() {
            self.tell_end(step, key, outcome, &record);
            self.agent_mut(key).restarts += 1;
            // Whoever wanted this end wants the next start.
            return self.hold(key, self.agents[&key].start);
        }
        self.decide_next(step, key, outcome, &record, ran);
    }

    /// Reports that an agent's restarts are used up. The run's own end keeps its cause; the agent has failed, however well
    /// that run ended.
    pub(super) fn report_given_up(&mut self, step: &mut Step, key: AgentKey, last: &ExitRecord) {
        let restart = &self.agents[&key].spec.restart;
        let (count, period) = (restart.intensity, humantime::format_duration(restart.period));
        let mut record = last.clone();
        record.give_up(&format!("it needed more than {count} restarts within {period}"));
        self.publish(step, Kind::GaveUp, key, |event| {
            event.message = record.to_string();
            event.exit = Some(record.clone());
        });
        self.agent_mut(key).last = Some(Box::new(record));
    }

    pub(super) fn back_off(&mut self, step: &mut Step, key: AgentKey, delay: Duration, attempt: u32) {
        let paused_since = self.agents[&key].paused_since;
        let policy = self.agents[&key].spec.restart.policy;
        self.publish(step, Kind::Restarting, key, |event| {
            event.delay_ms = Some(millis(delay));
            let delay = humantime::format_duration(Duration::from_millis(millis(delay)));
            event.message = format!("restart {attempt} in a row, in {delay}: its policy is {}", policy.name());
        });
        let countdown = Countdown::new(step.now.mono, delay, paused_since);
        self.enter(key, Phase::Backoff { countdown });
    }

    /// Writes the times into a record.
    pub(super) fn stamp(&self, step: &Step, key: AgentKey, record: &mut ExitRecord) {
        let agent = &self.agents[&key];
        record.run_ms = agent.began.map_or(0, |began| millis(step.now.mono.since(began.mono)));
        record.paused_ms = millis(agent.paused_for(step.now.mono));
    }

    /// Tells a run's one terminal event.
    pub(super) fn tell_end(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome, record: &ExitRecord) {
        let agent = self.agent_mut(key);
        if agent.is_end_told() {
            return;
        }
        agent.told = Some(agent.run);
        *self.ends.entry(record.cause).or_default() += 1;
        self.publish_end(step, key, outcome, record.clone());
    }

    pub(super) fn publish_end(&self, step: &mut Step, key: AgentKey, outcome: Outcome, record: ExitRecord) {
        let kind = match outcome {
            Outcome::Completed => Kind::Completed,
            Outcome::Failed => Kind::Failed,
            Outcome::Terminated => Kind::Terminated,
        };
        self.publish(step, kind, key, |event| {
            event.message = record.to_string();
            event.exit = Some(record);
        });
    }
}

fn spawn_error(id: &AgentId, failure: &SpawnFailure) -> Error {
    let code = if failure.stage == Stage::Exec { Code::ExecFailed } else { Code::SpawnFailed };
    // What the kernel refused is told with the step that it refused.
    let step = failure.errno.map(|_| format!("{} ", failure.stage)).unwrap_or_default();
    let error = Error::new(code, format!("spawn {id}: {step}{}", failure.message));
    match &failure.remedy {
        Some(remedy) => error.remedy(remedy.clone()),
        None => error,
    }
}

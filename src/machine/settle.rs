//! `settle`: moves one agent as far towards what is wanted as it can go now. And the facts about its runs.

use std::time::Duration;

use super::agent::{Agent, Countdown, Home, Ladder, Outcome, Phase, Signal};
use super::input::{AgentKey, Caller, Effect, ReplyTo, SpawnOrder};
use super::restart::{Decision, decide};
use super::stop::KILL_RETRY;
use super::{Machine, Step, Timer};
use crate::model::config::RETAINED_MOST;
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::id::{AgentId, Run};
use crate::model::request::Answer;
use crate::model::spec::{OnMainExit, signal_name};
use crate::model::stage::{SpawnFailure, Stage};
use crate::model::status::{Cause, Exit, ExitRecord, Oom, Rusage, millis};
use crate::model::time::Monotonic;

/// What is known of a main process's end.
pub(super) struct Death {
    pub exit: Exit,
    pub rusage: Rusage,
    pub oom: Option<Oom>,
    pub descendants: u64,
}

impl Death {
    fn record(self) -> ExitRecord {
        let cause = match self.exit {
            _ if self.oom.is_some() => Cause::Oom,
            Exit::Signal { .. } => Cause::Signal,
            Exit::Status(_) | Exit::Unknown => Cause::Exit,
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

impl Machine {
    /// Settles one agent. Everything that changes a phase is here or is called from here.
    pub(super) fn settle(&mut self, step: &mut Step, key: AgentKey) {
        let Some(agent) = self.agents.get(&key) else { return };
        let now = step.now.mono;
        let is_down = agent.down.is_some();
        let is_childless = agent.live_children == 0;
        self.settle_freezer(step, key);
        match self.agents[&key].phase.clone() {
            Phase::Queued | Phase::Held | Phase::Backoff { .. } if is_down => {
                if is_childless {
                    self.end(step, key, Outcome::Terminated);
                }
            }
            Phase::Queued => {}
            Phase::Held => self.settle_held(step, key),
            Phase::Spawning { deadline: Some(deadline) } if now >= deadline => {
                self.agent_mut(key).phase = Phase::Spawning { deadline: None };
                let run = self.agents[&key].run;
                step.order(Effect::KillRun { agent: key, run });
            }
            Phase::Spawning { .. } => {}
            Phase::Group if is_down && is_childless => self.end(step, key, Outcome::Terminated),
            Phase::Group => {}
            Phase::Running { ladder, .. } | Phase::Draining { ladder, .. } => {
                self.settle_signal(step, key);
                self.settle_ladder(step, key, ladder);
            }
            Phase::Lingering { .. } if is_childless => {
                let outcome = self.outcome_when_down(key);
                self.end(step, key, outcome);
            }
            Phase::Lingering { .. } => {}
            Phase::Backoff { countdown: Countdown::Until(until) } if now >= until => self.enter(key, Phase::Held),
            Phase::Backoff { .. } => {}
            Phase::Ended { .. } => self.settle_ended(step, key),
        }
        self.set_timer(key);
    }

    fn settle_held(&mut self, step: &mut Step, key: AgentKey) {
        if self.may_start(key) {
            return self.start(step, key);
        }
        // A spawn that waits for a resume is answered now: it may take for ever.
        if self.is_held_by_frost(key)
            && let Some(reply) = self.agent_mut(key).reply.take()
        {
            let status = self.status(key, step.now.mono);
            step.reply(reply, Ok(Answer::Agent(Box::new(status))));
        }
    }

    fn start(&mut self, step: &mut Step, key: AgentKey) {
        let timeout = step.now.mono + self.config.spawn_timeout;
        let parent = self.agents[&key].parent;
        let make_level = parent.filter(|parent| self.agents[parent].nursery == Home::None).map(|parent| {
            self.agent_mut(parent).nursery = Home::Making;
            self.siblings_limits(parent)
        });
        let agent = self.agent_mut(key);
        if !agent.spec.is_group() {
            agent.run = agent.run.next();
        }
        let make = (agent.home == Home::None).then(|| agent.limits.clone());
        if make.is_some() {
            agent.home = Home::Making;
        }
        // A group has no process: there is nothing that could hang, and no run whose kill would free it.
        agent.phase = Phase::Spawning { deadline: (!agent.spec.is_group()).then_some(timeout) };
        agent.paused_total = Duration::ZERO;
        agent.began = None;
        let order = SpawnOrder { agent: key, run: agent.run, spec: agent.spec.clone(), make, make_level };
        self.count_spawning(key, |count| count + 1);
        step.order(Effect::Spawn(Box::new(order)));
    }

    fn count_spawning(&mut self, key: AgentKey, change: fn(u32) -> u32) {
        let chain: Vec<_> = std::iter::once(key).chain(self.ancestors(key)).collect();
        for key in chain {
            let agent = self.agent_mut(key);
            agent.spawning = change(agent.spawning);
            let stops = agent.stops.clone();
            if agent.spawning == 0 {
                self.dirty.insert(key);
                self.dirty_stops.extend(stops);
            }
        }
    }

    /// A spawn is off the hand: whoever waited for that is settled again.
    fn spawn_is_over(&mut self, key: AgentKey, home: Home) {
        self.count_spawning(key, |count| count - 1);
        let agent = self.agent_mut(key);
        if agent.home == Home::Making {
            agent.home = home;
        }
        self.frost_moved.insert(key);
        self.dirty.insert(key);
        if home == Home::Made {
            let children = self.agents[&key].children.clone();
            self.dirty.extend(children);
        }
        let Some(parent) = self.agents[&key].parent else { return };
        if self.agents[&parent].nursery == Home::Making {
            let parent = self.agent_mut(parent);
            parent.nursery = home;
            let siblings = parent.children.clone();
            self.dirty.extend(siblings);
        }
    }

    pub(super) fn spawned(&mut self, step: &mut Step, key: AgentKey, pid: Option<i32>) {
        let Some(agent) = self.agents.get_mut(&key) else { return };
        let Phase::Spawning { deadline } = agent.phase else { return };
        let ladder = deadline.is_none().then_some(Ladder::Late(step.now.mono + KILL_RETRY));
        let is_made = agent.home == Home::Making;
        agent.began = Some(step.now);
        agent.ended = None;
        agent.phase = match pid {
            Some(pid) => Phase::Running { pid, ladder },
            None => Phase::Group,
        };
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
        }
        if let Some(reply) = self.agent_mut(key).reply.take() {
            let status = self.status(key, step.now.mono);
            step.reply(reply, Ok(Answer::Agent(Box::new(status))));
        }
    }

    pub(super) fn spawn_failed(&mut self, step: &mut Step, key: AgentKey, failure: &SpawnFailure) {
        let Some(agent) = self.agents.get(&key) else { return };
        if !matches!(agent.phase, Phase::Spawning { .. }) {
            return;
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
            let error = spawn_error(&self.agents[&key].spec.id, failure);
            self.expunge(step, key);
            return step.reply(reply, Err(error));
        }
        if let Some(reply) = reply {
            step.reply(reply, Err(spawn_error(&self.agents[&key].spec.id, failure)));
        }
        self.run_is_over(step, key, record);
    }

    /// Takes back an agent whose first spawn failed, as if it had never been; what waits to be started below it is refused.
    fn expunge(&mut self, step: &mut Step, key: AgentKey) {
        let id = self.agents[&key].spec.id.clone();
        for child in self.agents[&key].children.clone() {
            let message = format!("spawn {}: its parent {id} could not be started", self.agents[&child].spec.id);
            if let Some(reply) = self.agent_mut(child).reply.take() {
                step.reply(reply, Err(Error::new(Code::NoSuchParent, message)));
            } else if !self.agents[&child].has_ended() {
                // It was queued, or held by a pause: whoever asked for it was told that it will come.
                let mut record = ExitRecord::new(Cause::Exec);
                record.error = Some(message);
                self.tell_end(step, child, Outcome::Failed, &record);
            }
            self.expunge(step, child);
        }
        if !self.agents[&key].has_ended() {
            self.leave(step, key, Outcome::Failed);
        }
        self.note_ended(step.now.mono, key);
        self.settle_waits(step, key);
        for stop in self.agents[&key].stops.clone() {
            self.dirty_stops.insert(stop);
            if let Some(stop) = self.stops.get_mut(&stop) {
                stop.forget(key);
            }
        }
        step.order(Effect::Forget(key));
        self.drop_agent(key);
    }

    pub(super) fn exited(&mut self, step: &mut Step, key: AgentKey, run: Run, death: Death) {
        let Some(agent) = self.agents.get(&key) else { return };
        let Phase::Running { ladder, .. } = agent.phase else { return };
        if agent.run != run {
            return;
        }
        let left_behind = death.descendants;
        let mut record = death.record();
        if let Some(by) = agent.down.as_ref().map(|down| &down.by).or(agent.cycle.as_ref()) {
            record.cause = Cause::Terminated;
            record.by = Some(by.to_string());
        } else if let (Some(Ladder::Late(_)), Cause::Signal) = (ladder, record.cause) {
            // It was ours: the end is that of a spawn which took too long, not of a program.
            let timeout = humantime::format_duration(self.config.spawn_timeout);
            record.cause = Cause::Exec;
            record.stage = Some(Stage::Killed);
            record.error = Some(format!("its program did not start within {timeout}"));
        }
        if left_behind == 0 {
            return self.run_is_over(step, key, record);
        }
        self.stamp(step, key, &mut record);
        let on_main_exit = agent.spec.on_main_exit;
        let (signal, grace) = (agent.spec.stop_signal, agent.spec.grace);
        let is_asked = record.cause == Cause::Terminated;
        let is_bad = !record.is_success();
        // What is left behind is ended now, unless the policy waits for it or a stop ends it anyway.
        let ends_them = on_main_exit == OnMainExit::Terminate && !is_asked;
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
        if ends_them {
            step.order(Effect::Signal { agent: key, run, signal });
        }
        self.agent_mut(key).last = Some(Box::new(record.clone()));
        self.enter(key, Phase::Draining { record: Box::new(record), ladder });
    }

    pub(super) fn run_emptied(&mut self, step: &mut Step, key: AgentKey, run: Run) {
        let Some(agent) = self.agents.get(&key) else { return };
        let Phase::Draining { record, .. } = &agent.phase else { return };
        if agent.run == run {
            let record = record.as_ref().clone();
            self.run_is_over(step, key, record);
        }
    }

    /// Writes the times into a record.
    fn stamp(&self, step: &Step, key: AgentKey, record: &mut ExitRecord) {
        let agent = &self.agents[&key];
        record.run_ms = agent.began.map_or(0, |began| millis(step.now.mono.since(began.mono)));
        record.paused_ms = millis(agent.paused_for(step.now.mono));
    }

    /// Nothing of the run lives: decides what follows.
    fn run_is_over(&mut self, step: &mut Step, key: AgentKey, mut record: ExitRecord) {
        let now = step.now.mono;
        let agent = self.agent_mut(key);
        let has_begun = agent.began.is_some();
        let ran = agent.began.map_or(Duration::ZERO, |began| now.since(began.mono));
        let is_told = agent.told == agent.run;
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
        let outcome = match record.cause {
            Cause::Terminated => Outcome::Terminated,
            _ if record.is_success() => Outcome::Completed,
            _ => Outcome::Failed,
        };
        self.agent_mut(key).last = Some(Box::new(record.clone()));
        self.agent_mut(key).ended = Some(step.now);
        if has_begun {
            step.order(Effect::RemoveRun { agent: key, run });
        }
        if is_down.is_some() {
            return self.end_or_linger(step, key, outcome, &record);
        }
        if cycle.is_some() {
            self.tell_end(step, key, outcome, &record);
            self.agent_mut(key).restarts += 1;
            return self.enter(key, Phase::Held);
        }
        let chance = self.chance.f64();
        let agent = self.agent_mut(key);
        let spec = agent.spec.clone();
        match decide(&spec.restart, &mut agent.history, outcome == Outcome::Completed, ran, now, chance) {
            Decision::Again { delay, attempt } => {
                agent.restarts += 1;
                self.tell_end(step, key, outcome, &record);
                self.back_off(step, key, delay, attempt);
            }
            Decision::GiveUp => {
                self.tell_end(step, key, outcome, &record);
                let (count, period) = (spec.restart.intensity, humantime::format_duration(spec.restart.period));
                self.publish(step, Kind::GaveUp, key, |event| {
                    event.message =
                        format!("given up: {count} restarts within {period} are the most that its policy allows");
                });
                self.end_or_linger(step, key, outcome, &record);
            }
            Decision::No => self.end_or_linger(step, key, outcome, &record),
        }
    }

    fn back_off(&mut self, step: &mut Step, key: AgentKey, delay: Duration, attempt: u32) {
        let is_paused = self.is_paused(key);
        let policy = self.agents[&key].spec.restart.policy;
        self.publish(step, Kind::Restarting, key, |event| {
            event.delay_ms = Some(millis(delay));
            let delay = humantime::format_duration(Duration::from_millis(millis(delay)));
            event.message = format!("restart {attempt} in a row, in {delay}: its policy is {}", policy.name());
        });
        let countdown = if is_paused { Countdown::Suspended(delay) } else { Countdown::Until(step.now.mono + delay) };
        self.enter(key, Phase::Backoff { countdown });
    }

    /// The last run is over: ends the agent, or first waits for (or ends) the agents below it.
    fn end_or_linger(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome, record: &ExitRecord) {
        let agent = &self.agents[&key];
        if agent.live_children == 0 {
            return self.end(step, key, outcome);
        }
        if outcome == Outcome::Failed {
            self.tell_end(step, key, outcome, record);
        }
        let agent = &self.agents[&key];
        // Without its cgroup nothing below it can ever start.
        let ends_them = agent.spec.on_main_exit == OnMainExit::Terminate || agent.home == Home::None;
        if agent.down.is_none() && ends_them {
            let children: Vec<_> = agent.children.iter().copied().collect();
            let (grace, by) = (agent.spec.grace, format!("the end of {}", agent.spec.id));
            self.begin_stop(step, &children, Some(grace), &by.into(), None);
        }
        self.enter(key, Phase::Lingering { outcome });
    }

    /// Tells a run's one terminal event.
    fn tell_end(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome, record: &ExitRecord) {
        let agent = self.agent_mut(key);
        if agent.told == agent.run && agent.run != Run(0) {
            return;
        }
        agent.told = agent.run;
        *self.ends.entry(record.cause).or_default() += 1;
        let kind = match outcome {
            Outcome::Completed => Kind::Completed,
            Outcome::Failed => Kind::Failed,
            Outcome::Terminated => Kind::Terminated,
        };
        let record = record.clone();
        self.publish(step, kind, key, |event| {
            event.message = record.to_string();
            event.exit = Some(record);
        });
    }

    /// Nothing of the agent lives and nothing will by itself.
    fn end(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome) {
        let agent = &self.agents[&key];
        let by = agent.down.as_ref().map(|down| down.by.to_string());
        if let Some(reply) = agent.reply {
            let message = format!("start {}: it was terminated before it started", agent.spec.id);
            step.reply(reply, Err(Error::new(Code::WrongState, message)));
        }
        let mut record = ExitRecord::new(Cause::Terminated);
        record.by = by;
        if agent.run != Run(0) && matches!(agent.phase, Phase::Backoff { .. } | Phase::Held) {
            // Its last run's end is told; that there is no next one is not.
            self.publish(step, Kind::GaveUp, key, |event| event.message = format!("not started again: {record}"));
        }
        let record = agent.last.as_deref().cloned().unwrap_or(record);
        self.tell_end(step, key, outcome, &record);
        self.leave(step, key, outcome);
        self.note_ended(step.now.mono, key);
        self.settle_waits(step, key);
    }

    /// Enters the last phase and gives the room back.
    fn leave(&mut self, step: &mut Step, key: AgentKey, outcome: Outcome) {
        let retention = self.config.auto_cleanup.then_some(self.config.cleanup_retention);
        let now = step.now;
        let is_admitted = self.agents[&key].is_admitted();
        if is_admitted {
            self.count_out(key);
        } else {
            self.queue.remove(&(std::cmp::Reverse(self.agents[&key].spec.priority), key));
        }
        let agent = self.agent_mut(key);
        agent.phase = Phase::Ended { outcome, at: now.mono };
        agent.ended = agent.ended.or(Some(now));
        agent.expires = retention.map(|retention| now.mono + retention);
        agent.paused_total = agent.paused_for(now.mono);
        agent.paused_since = None;
        agent.freezer.own = super::Frost::Thawed;
        agent.reply = None;
        self.frost_moved.insert(key);
        self.dirty.insert(key);
        self.retained.insert((now.mono, key));
        if let Some(parent) = self.agents[&key].parent {
            self.agent_mut(parent).live_children -= 1;
            self.dirty.insert(parent);
        }
        if self.retained.len() > RETAINED_MOST {
            let oldest = self.retained.first().map(|(_, key)| *key);
            if let Some(oldest) = oldest.filter(|_| self.config.auto_cleanup) {
                self.agent_mut(oldest).expires = Some(now.mono);
                self.dirty.insert(oldest);
            }
        }
    }

    fn settle_ended(&mut self, step: &mut Step, key: AgentKey) {
        self.settle_home(step, key);
        let agent = &self.agents[&key];
        let is_due = agent.expires.is_some_and(|expires| step.now.mono >= expires);
        if is_due && agent.home == Home::None && agent.children.is_empty() && agent.stops.is_empty() {
            self.publish(step, Kind::Removed, key, |_| {});
            step.order(Effect::Forget(key));
            self.drop_agent(key);
        }
    }

    /// Drops the record of an agent that has ended.
    fn drop_agent(&mut self, key: AgentKey) {
        let Some(agent) = self.agents.remove(&key) else { return };
        if let Some(due) = agent.due {
            self.timers.remove(&(due, Timer::Agent(key)));
        }
        self.ids.remove(&agent.spec.id);
        if let Phase::Ended { at, .. } = agent.phase {
            self.retained.remove(&(at, key));
        }
        if let Some(parent) = agent.parent.and_then(|parent| self.agents.get_mut(&parent)) {
            parent.children.remove(&key);
            self.dirty.insert(parent.key);
        }
    }

    /// Climbs the ladder of a run that is to end while its agent is not: signal, grace, kill.
    fn settle_ladder(&mut self, step: &mut Step, key: AgentKey, ladder: Option<Ladder>) {
        let now = step.now.mono;
        let Some(rung) = ladder.filter(|rung| now >= rung.due()) else { return };
        let run = self.agents[&key].run;
        step.order(Effect::KillRun { agent: key, run });
        if !matches!(rung, Ladder::Polite(_)) {
            step.order(Effect::FindLaggards { agents: vec![key], reply: None });
        }
        let again = now + KILL_RETRY;
        let next = Some(if matches!(rung, Ladder::Late(_)) { Ladder::Late(again) } else { Ladder::Killed(again) });
        match &mut self.agent_mut(key).phase {
            Phase::Running { ladder, .. } | Phase::Draining { ladder, .. } => *ladder = next,
            _ => {}
        }
    }

    pub(super) fn ask_restart(
        &mut self,
        step: &mut Step,
        to: ReplyTo,
        caller: &Caller,
        id: &AgentId,
    ) -> Result<(), Error> {
        let key = self.find(id)?;
        let agent = &self.agents[&key];
        let refuse =
            |why: &str, remedy: &str| Err(Error::new(Code::WrongState, format!("restart {id}: {why}")).remedy(remedy));
        if agent.spec.is_group() {
            return refuse("it is a group and has no process", "restart the agents below it");
        }
        if agent.down.is_some() && !agent.has_ended() {
            return refuse("it is being terminated", "wait until it has ended");
        }
        let signal = Effect::Signal { agent: key, run: agent.run, signal: agent.spec.stop_signal };
        let kill_at = Ladder::Polite(step.now.mono + agent.spec.grace);
        match &agent.phase {
            Phase::Running { ladder: None, .. } => {
                let agent = self.agent_mut(key);
                agent.cycle = Some(caller.name.clone());
                agent.reply = Some(to);
                if let Phase::Running { ladder, .. } = &mut agent.phase {
                    *ladder = Some(kill_at);
                }
                step.order(signal);
                self.dirty.insert(key);
            }
            Phase::Backoff { .. } => {
                self.agent_mut(key).reply = Some(to);
                self.enter(key, Phase::Held);
            }
            Phase::Ended { .. } => self.revive(step, key, to)?,
            phase => {
                let why =
                    format!("it is {}", if matches!(phase, Phase::Queued) { "queued" } else { agent.state().name() });
                return refuse(&why, "wait until it runs or has ended");
            }
        }
        Ok(())
    }

    /// Starts an agent that has ended once more, if there is room for it.
    fn revive(&mut self, step: &mut Step, key: AgentKey, to: ReplyTo) -> Result<(), Error> {
        let agent = &self.agents[&key];
        self.check_revivable(agent)?;
        if let Phase::Ended { at, .. } = agent.phase {
            self.retained.remove(&(at, key));
        }
        let agent = self.agent_mut(key);
        agent.down = None;
        agent.expires = None;
        agent.restarts += 1;
        agent.reply = Some(to);
        let parent = agent.parent;
        self.enter(key, Phase::Held);
        self.count_in(key);
        if let Some(parent) = parent {
            self.agent_mut(parent).live_children += 1;
        }
        self.settle(step, key);
        Ok(())
    }

    /// Sets the agent's one timer to the next thing that it waits for.
    fn set_timer(&mut self, key: AgentKey) {
        let Some(agent) = self.agents.get(&key) else { return };
        let due = if self.is_removal_held(agent) { None } else { due(agent) };
        if due == agent.due {
            return;
        }
        if let Some(old) = agent.due {
            self.timers.remove(&(old, Timer::Agent(key)));
        }
        if let Some(due) = due {
            self.timers.insert((due, Timer::Agent(key)));
        }
        self.agent_mut(key).due = due;
    }

    fn check_revivable(&self, agent: &Agent) -> Result<(), Error> {
        let id = &agent.spec.id;
        if self.door != super::Door::Open {
            return Err(Error::new(Code::ShuttingDown, format!("restart {id}: the herd is being ended")));
        }
        if let Some(parent) = agent.parent.map(|parent| &self.agents[&parent]).filter(|parent| !parent.takes_children())
        {
            let message = format!("restart {id}: its parent {} is {}", parent.spec.id, parent.state());
            return Err(Error::new(Code::NoSuchParent, message).remedy("restart the parent first"));
        }
        if !agent.stops.is_empty() || agent.home != Home::None {
            let message = format!("restart {id}: its end is not over yet");
            return Err(Error::new(Code::WrongState, message).remedy("ask again in a moment"));
        }
        self.room(agent.parent, agent.level, &agent.limits)
    }
}

/// Returns when an agent is to be settled again though nothing else happens.
fn due(agent: &Agent) -> Option<Monotonic> {
    match &agent.phase {
        Phase::Spawning { deadline } => *deadline,
        Phase::Running { ladder, .. } | Phase::Draining { ladder, .. } => ladder.map(Ladder::due),
        Phase::Backoff { countdown: Countdown::Until(until) } if agent.down.is_none() => Some(*until),
        Phase::Ended { .. } => match agent.home {
            Home::Emptying(retry) => Some(retry),
            Home::None => agent.expires.filter(|_| agent.children.is_empty() && agent.stops.is_empty()),
            Home::Making | Home::Made | Home::Removing => None,
        },
        _ => None,
    }
}

fn spawn_error(id: &AgentId, failure: &SpawnFailure) -> Error {
    let code = if failure.stage == Stage::Exec { Code::ExecFailed } else { Code::SpawnFailed };
    let error = Error::new(code, format!("spawn {id}: {}", failure.message));
    match &failure.remedy {
        Some(remedy) => error.remedy(remedy.clone()),
        None => error,
    }
}

//! What is written down of each agent, so that another machine can go on with it ([`Machine::adopt`](super::Machine::adopt)).
//!
//! After each step, every agent that was touched is compared with what was written down of it last. A spawn that nobody
//! was told of is not written down: what it has made without a record is taken back by whoever comes next.

use super::agent::{Agent, Freezer, Ladder, Phase};
use super::clock::Countdown;
use super::input::{AgentKey, Effect, Frost, Now};
use super::{Machine, Step};
use crate::model::id::Run;
use crate::model::note::Told;
use crate::model::record::{
    AgentRecord, Birth, Course, Ending, HerdRecord, Judgement, Moment, Pause, Rung, Standing, Wait,
};

impl Machine {
    /// Orders the record of every agent whose course has changed in this step.
    pub(super) fn settle_records(&mut self, step: &mut Step) {
        for key in std::mem::take(&mut self.unrecorded) {
            // Until its spawn is answered, nobody was told of an agent.
            let agent = self.agents.get(&key);
            if agent.is_some_and(|agent| agent.recorded.is_some() || agent.reply.is_none()) {
                self.write_down(step, key);
            }
        }
    }

    fn write_down(&mut self, step: &mut Step, key: AgentKey) {
        let agent = &self.agents[&key];
        let course = course(agent);
        if agent.recorded.as_deref() == Some(&course) {
            return;
        }
        // Whoever is known below another one makes that one known: without it there would be no place for it. And whoever
        // starts after another one: without it, that one's end would look like one that nobody need wait for.
        let followed = self.followed(&agent.spec.after).map(|it| it.key);
        let before: Vec<_> = agent.parent.into_iter().chain(followed).collect();
        for key in before {
            if self.agents[&key].recorded.is_none() {
                self.write_down(step, key);
            }
        }
        let agent = self.agent_mut(key);
        step.order(Effect::Record(Box::new(record(agent, course.clone()))));
        agent.recorded = Some(Box::new(course));
    }

    /// Returns what is written down of an agent; none of one that nobody was told of yet.
    #[must_use]
    pub fn record(&self, key: AgentKey) -> Option<AgentRecord> {
        let agent = self.agents.get(&key).filter(|agent| agent.recorded.is_some())?;
        Some(record(agent, course(agent)))
    }

    /// Returns all that is written down, parents before children.
    pub fn records(&self) -> impl Iterator<Item = AgentRecord> {
        self.agents.keys().filter_map(|key| self.record(*key))
    }

    /// Returns the limits of the herd and of its levels.
    #[must_use]
    pub fn herd_record(&self) -> HerdRecord {
        let (limits, levels) = (self.config.limits.clone(), self.config.levels.clone());
        HerdRecord { limits, levels, applied: self.applied.clone() }
    }
}

fn record(agent: &Agent, course: Course) -> AgentRecord {
    let birth = Birth { key: agent.key.0, parent: agent.parent.map(|parent| parent.0), spec: agent.spec.clone() };
    let last = match &agent.phase {
        Phase::Draining { record, .. } | Phase::Reading { record, .. } => Some(record.clone()),
        _ => agent.last.clone(),
    };
    AgentRecord { birth, course, last }
}

fn course(agent: &Agent) -> Course {
    let is_spawning = matches!(agent.phase, Phase::Spawning { .. });
    // Until its start is told the last run is the one before, whose end was told before this one was ordered.
    let (run, told) = if is_spawning && !agent.spec.is_group() {
        let before = Run(agent.run.0 - 1);
        (before, (before > Run(0)).then_some(before))
    } else {
        (agent.run, agent.told)
    };
    Course {
        standing: standing(&agent.phase),
        run,
        told,
        ending: agent.down.as_ref().map(|down| Ending { by: down.by.clone(), kill_at: down.kill_at }),
        cycle: agent.cycle.clone(),
        judgement: agent.verdict.clone().map(|verdict| Judgement { cause: verdict.cause, why: verdict.why }),
        account: if agent.has_run() { agent.voice.told } else { Told::default() },
        heartbeat: agent.voice.period.filter(|_| agent.has_run()),
        pause: pause(&agent.freezer),
        paused_since: agent.paused_since,
        paused_total: agent.paused_total,
        oom_kills: agent.oom_kills,
        restarts: agent.restarts,
        streak: agent.history.streak,
        recent: agent.history.recent.iter().copied().collect(),
        child_restarts: agent.child_restarts.iter().copied().collect(),
        spawned: agent.spawned,
        began: agent.began.map(moment),
        ended: agent.ended.map(moment),
        expires: agent.expires,
        own: agent.spec.limits.clone(),
        limits: agent.limits.clone(),
    }
}

fn standing(phase: &Phase) -> Standing {
    match phase {
        Phase::Group => Standing::Group,
        Phase::Queued => Standing::Queued,
        Phase::Held | Phase::Spawning { .. } => Standing::Held,
        Phase::Running { pid, ladder } => Standing::Running { pid: *pid, rung: ladder.map(rung) },
        Phase::Draining { ladder, .. } => Standing::Draining { rung: ladder.map(rung) },
        // Whoever comes next finds it empty, and has its last words looked at.
        Phase::Reading { .. } => Standing::Draining { rung: None },
        Phase::Lingering { outcome } => Standing::Lingering(*outcome),
        Phase::Backoff { countdown: Countdown::Until(until) } => Standing::Backoff(Wait::Until(*until)),
        Phase::Backoff { countdown: Countdown::Suspended(left) } => Standing::Backoff(Wait::Suspended(*left)),
        Phase::Ended { outcome, at } => Standing::Ended { outcome: *outcome, at: *at },
    }
}

fn rung(ladder: Ladder) -> Rung {
    match ladder {
        Ladder::Asked { signal_by, kill_at } => Rung::Asked(signal_by, kill_at),
        Ladder::Polite(at) => Rung::Polite(at),
        Ladder::Killed(kill) => Rung::Killed(kill.since),
        Ladder::Late(kill) => Rung::Late(kill.since),
    }
}

fn pause(freezer: &Freezer) -> Pause {
    match (freezer.own, freezer.told) {
        (Frost::Thawed, Frost::Thawed) => Pause::Off,
        (Frost::Frozen, Frost::Thawed) => Pause::Asked,
        (Frost::Frozen, Frost::Frozen) => Pause::Told,
        (Frost::Thawed, Frost::Frozen) => Pause::Lifted,
    }
}

fn moment(now: Now) -> Moment {
    Moment { mono: now.mono, wall: now.wall }
}

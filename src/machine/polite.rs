//! The polite part of an end: who gets its stop signal when, and the rungs from there to the kill.
//!
//! Children end before their parents, whoever started after another one before that one, branches at once, and there is one
//! deadline for all. An agent gets its signal when nothing below it and nothing that follows it runs any more. So that one deaf agent does not cost those above it their signal, the time until the
//! deadline is shared out evenly among the levels: with a parent and its child, the parent has its signal at half of the
//! grace at the latest, and the rest of it to end.
//!
//! ```text
//!   begin            1/3             2/3            deadline
//!     ├ leaves now ───┤                │                │
//!     │               ├ their parents ─┤                │     at the latest: sooner, if all below has ended
//!     │               │                ├ the top ───────┤
//!     └────────────────────────────────────────────────▶ kill, of all that is left, at once
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use super::agent::{Agent, Kill, Ladder, Phase, Signal};
use super::input::{AgentKey, Effect, Force};
use super::stop::Stage;
use super::{Machine, Step};
use crate::model::event::Kind;
use crate::model::time::Monotonic;

/// When each agent of some subtrees has its signal at the latest.
pub(super) struct Shares {
    began: Monotonic,
    grace: Duration,
    /// How many of these agents one after the other end before each of them.
    heights: BTreeMap<AgentKey, u32>,
    levels: u32,
}

impl Shares {
    pub fn signal_by(&self, key: AgentKey) -> Monotonic {
        let height = self.heights.get(&key).copied().unwrap_or_default();
        self.began + self.grace.mul_f64(f64::from(height) / f64::from(self.levels))
    }
}

impl Machine {
    /// Shares out the time until the kill of these agents, which come parents before children.
    pub(super) fn share_out(&self, began: Monotonic, grace: Duration, members: &[AgentKey]) -> Shares {
        let mut heights: BTreeMap<AgentKey, u32> = members.iter().map(|key| (*key, 0)).collect();
        // Whoever was made later stands below the earlier one, or starts after it.
        let keys: Vec<_> = heights.keys().rev().copied().collect();
        for key in keys {
            let (agent, above) = (&self.agents[&key], heights[&key] + 1);
            let followed = agent.spec.after.iter().filter_map(|id| self.ids.get(id).copied());
            for longer in agent.parent.into_iter().chain(followed) {
                heights.entry(longer).and_modify(|height| *height = above.max(*height));
            }
        }
        let levels = heights.values().max().map_or(1, |highest| highest + 1);
        Shares { began, grace, heights, levels }
    }

    /// Says whether nothing runs any more that is to end before it: below it, or started after it.
    fn is_last_to_run(&self, agent: &Agent) -> bool {
        let is_ending = |it: &Agent| it.can_speak() && (it.down.is_some() || it.ladder().is_some());
        agent.is_last_to_run() && !self.followers(&agent.spec.id).any(|key| is_ending(&self.agents[&key]))
    }

    /// Returns when the stop signal of an agent that is to end is due, if it is not under way and will be sent at all.
    pub(super) fn signal_due(&self, now: Monotonic, agent: &Agent) -> Option<Monotonic> {
        let down = agent.down.as_ref().filter(|down| down.signal == Signal::Unsent && agent.has_run())?;
        let stage = self.stops.get(&down.stop)?.stage;
        let is_polite = matches!(stage, Stage::Polite(deadline) if now < deadline);
        is_polite.then(|| if self.is_last_to_run(agent) { now } else { down.signal_by })
    }

    /// Orders the stop signal for the present run of an agent that is to end, once, when it is due.
    pub(super) fn settle_signal(&mut self, step: &mut Step, key: AgentKey) {
        let agent = &self.agents[&key];
        if self.signal_due(step.now.mono, agent).is_none_or(|due| step.now.mono < due) {
            return;
        }
        let effect = agent.signal(agent.spec.stop_signal);
        let stops = agent.stops.clone();
        step.order(effect);
        for stop in stops {
            if let Some(stop) = self.stops.get_mut(&stop) {
                stop.expect_signal(key);
            }
        }
        if let Some(down) = &mut self.agent_mut(key).down {
            down.signal = Signal::Ordered;
        }
    }

    /// Climbs the ladder of a run that is to end while its agent is not: signal, grace, kill.
    pub(super) fn settle_ladder(&mut self, step: &mut Step, key: AgentKey) {
        let now = step.now.mono;
        let agent = &self.agents[&key];
        let Some(rung) = agent.ladder() else { return };
        let is_due = now >= rung.due() || matches!(rung, Ladder::Asked { .. }) && self.is_last_to_run(agent);
        if !is_due {
            return;
        }
        let run = agent.run;
        let next = match rung {
            Ladder::Asked { kill_at, .. } => {
                step.order(agent.signal(agent.spec.stop_signal));
                Ladder::Polite(kill_at)
            }
            Ladder::Polite(_) => {
                if !agent.spec.grace.is_zero() {
                    self.tell_overdue(step, key);
                }
                step.order(Effect::KillRun { agent: key, run, force: Force::Stroke });
                Ladder::Killed(Kill::new(now))
            }
            Ladder::Killed(kill) | Ladder::Late(kill) => {
                step.order(Effect::KillRun { agent: key, run, force: Force::Sweep });
                if kill.is_lagging(now) && agent.stuck.is_none() {
                    step.order(Effect::FindLaggards { agents: vec![key], reply: None });
                }
                self.settle_stuck(step, key, kill);
                let kill = kill.again(now, self.config.kill_timeout);
                if matches!(rung, Ladder::Late(_)) { Ladder::Late(kill) } else { Ladder::Killed(kill) }
            }
        };
        self.set_ladder(key, next);
    }

    /// Puts the run of an agent onto a rung.
    pub(super) fn set_ladder(&mut self, key: AgentKey, rung: Ladder) {
        if let Phase::Running { ladder, .. } | Phase::Draining { ladder, .. } = &mut self.agent_mut(key).phase {
            *ladder = Some(rung);
        }
        self.dirty.insert(key);
    }

    /// Tells that a run has not ended within its grace, and is killed.
    pub(super) fn tell_overdue(&mut self, step: &mut Step, key: AgentKey) {
        let agent = self.agent_mut(key);
        if !agent.has_run() || agent.overdue.is_some() {
            return;
        }
        agent.overdue = Some(step.now.mono);
        self.publish(step, Kind::Overdue, key, |event| {
            event.message = "its grace is over and processes of it live: it is killed".to_owned();
        });
    }

    /// Counts a run that begins or ends in the books of all above it.
    pub(super) fn count_run(&mut self, key: AgentKey, change: fn(u32) -> u32) {
        let chain: Vec<_> = self.ancestors(key).collect();
        for above in chain {
            let agent = self.agent_mut(above);
            agent.runs_below = change(agent.runs_below);
            // None is left, or it is the first.
            if agent.runs_below <= 1 {
                self.dirty.insert(above);
            }
        }
    }
}

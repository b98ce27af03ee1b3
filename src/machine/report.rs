//! What the machine tells: statuses, counts, events.

use std::collections::BTreeMap;

use super::agent::{Home, Phase};
use super::clock::{Clock, Countdown};
use super::explain::to_be_ready;
use super::input::{AgentKey, Effect, Frost, Now};
use super::{Machine, Step};
use crate::model::config::HerdConfig;
use crate::model::error::Error;
use crate::model::event::{Event, Kind};
use crate::model::id::{AgentId, Level, Run};
use crate::model::limits::Limits;
use crate::model::request::Target;
use crate::model::spec::AgentSpec;
use crate::model::status::{AgentStatus, Cause, State};
use crate::model::survivor::sentence;
use crate::model::time::{Monotonic, Wall};

/// How many agents there are of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Admitted agents by level.
    pub levels: BTreeMap<Level, u64>,
    /// Agents by state, the retained ones included.
    pub states: BTreeMap<State, u64>,
    /// Runs that have ended since the daemon began, by cause.
    pub causes: BTreeMap<Cause, u64>,
}

impl Machine {
    /// Returns what the herd is held to.
    #[must_use]
    pub fn config(&self) -> &HerdConfig {
        &self.config
    }

    /// Returns the agent of this name.
    #[must_use]
    pub fn key_of(&self, id: &AgentId) -> Option<AgentKey> {
        self.ids.get(id).copied()
    }

    /// Returns the last agent that was made: each that is made later has a greater key.
    #[must_use]
    pub fn newest(&self) -> AgentKey {
        AgentKey(self.next)
    }

    /// Returns an agent's name.
    #[must_use]
    pub fn id_of(&self, key: AgentKey) -> Option<&AgentId> {
        self.agents.get(&key).map(|agent| &agent.spec.id)
    }

    /// Returns an agent's specification.
    #[must_use]
    pub fn spec_of(&self, key: AgentKey) -> Option<&std::sync::Arc<AgentSpec>> {
        self.agents.get(&key).map(|agent| &agent.spec)
    }

    /// Returns an agent's present or last run.
    #[must_use]
    pub fn run_of(&self, key: AgentKey) -> Option<Run> {
        self.agents.get(&key).map(|agent| agent.run)
    }

    /// Says whether a run waits for its `pid_file` to name its main process.
    #[must_use]
    pub fn awaits_main(&self, key: AgentKey, run: Run) -> bool {
        self.agents.get(&key).is_some_and(|agent| agent.run == run && agent.awaits_main())
    }

    /// Returns the main process of an agent's run, while that runs.
    #[must_use]
    pub fn main_pid(&self, key: AgentKey, run: Run) -> Option<i32> {
        self.agents.get(&key).filter(|agent| agent.run == run)?.pid()
    }

    /// Returns the agent above one.
    #[must_use]
    pub fn parent_of(&self, key: AgentKey) -> Option<AgentKey> {
        self.agents.get(&key)?.parent
    }

    /// Returns how deep an agent stands.
    #[must_use]
    pub fn level_of(&self, key: AgentKey) -> Option<Level> {
        self.agents.get(&key).map(|agent| agent.level)
    }

    /// Says whether an agent has ended, or is forgotten.
    #[must_use]
    pub fn has_ended(&self, key: AgentKey) -> bool {
        self.agents.get(&key).is_none_or(|agent| agent.has_ended())
    }

    /// Says whether a run of an agent is being started.
    #[must_use]
    pub fn is_spawning(&self, key: AgentKey) -> bool {
        self.agents.get(&key).is_some_and(|agent| matches!(agent.phase, Phase::Spawning { .. }))
    }

    /// Says whether an agent's freezer was told to freeze, and has not been seen to have done so.
    #[must_use]
    pub fn is_freezing(&self, key: AgentKey) -> bool {
        let freezer = self.agents.get(&key).map(|agent| &agent.freezer);
        freezer.is_some_and(|freezer| freezer.written == Frost::Frozen && freezer.seen == Frost::Thawed)
    }

    /// Returns the limits over an agent's subtree.
    #[must_use]
    pub fn limits_of(&self, key: AgentKey) -> Option<&Limits> {
        self.agents.get(&key).map(|agent| &agent.limits)
    }

    /// Says whether an agent is the other one or stands below it.
    #[must_use]
    pub fn is_within(&self, key: AgentKey, top: AgentKey) -> bool {
        key == top || self.ancestors(key).any(|above| above == top)
    }

    /// Says whether an agent's cgroup is there.
    #[must_use]
    pub fn has_cgroup(&self, key: AgentKey) -> bool {
        self.agents.get(&key).is_some_and(|agent| matches!(agent.home, Home::Made | Home::Emptying(_)))
    }

    /// Returns the path of an agent's cgroup below the herd's root: `herd/a/level-1/b`.
    #[must_use]
    pub fn path_of(&self, key: AgentKey) -> String {
        let mut chain: Vec<_> =
            std::iter::once(key).chain(self.ancestors(key)).filter_map(|key| self.agents.get(&key)).collect();
        chain.reverse();
        let mut path = "herd".to_owned();
        for agent in chain {
            if agent.level.0 > 0 {
                path.push_str(&format!("/level-{}", agent.level));
            }
            path.push('/');
            path.push_str(agent.spec.id.as_str());
        }
        path
    }

    /// Finds the agents that a reading request is about, in the order of their making: an agent stands for its subtree.
    ///
    /// # Errors
    /// As for the requests that change something: an unknown agent or session.
    pub fn select(&self, target: &Target) -> Result<Vec<AgentKey>, Error> {
        let mut keys = self.targets(target)?;
        if let Target::Ids(_) = target {
            keys = keys.into_iter().flat_map(|key| self.subtree(key)).collect();
            keys.sort_unstable();
            keys.dedup();
        }
        Ok(keys)
    }

    /// Says whether [`Machine::select`] finds an agent.
    #[must_use]
    pub fn covers(&self, target: &Target, key: AgentKey) -> bool {
        let is_named = |key: AgentKey| self.agents.get(&key).is_some_and(|agent| agent.is_named(target));
        is_named(key) || matches!(target, Target::Ids(_)) && self.ancestors(key).any(is_named)
    }

    /// Lists the agents right below one.
    #[must_use]
    pub fn children_of(&self, key: AgentKey) -> Vec<AgentKey> {
        self.agents.get(&key).map(|agent| agent.children.iter().copied().collect()).unwrap_or_default()
    }

    /// Counts everything.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut states = BTreeMap::new();
        for agent in self.agents.values() {
            *states.entry(self.shown_state(agent.key)).or_default() += 1;
        }
        let levels = self.levels.iter().map(|(level, agents)| (*level, agents.len() as u64)).filter(|(_, n)| *n > 0);
        Counts { levels: levels.collect(), states, causes: self.ends.clone() }
    }

    /// Tells how an agent is. The agent exists: its key was just found.
    #[must_use]
    pub fn status(&self, key: AgentKey, now: Monotonic) -> AgentStatus {
        let agent = &self.agents[&key];
        let spec = &agent.spec;
        AgentStatus {
            id: spec.id.clone(),
            parent: agent.parent.and_then(|parent| self.id_of(parent)).cloned(),
            level: agent.level,
            kind: spec.kind.clone(),
            session: spec.session.clone(),
            priority: spec.priority,
            state: self.shown_state(key),
            paused: if agent.has_ended() { agent.paused(false) } else { agent.paused(self.is_paused_from_above(key)) },
            pid: agent.pid(),
            run: agent.run,
            cgroup: format!("{}/{}", self.root, self.path_of(key)),
            command: spec.command.clone(),
            exit: agent.last.as_deref().cloned(),
            restarts: agent.restarts,
            started: agent.started_wall(),
            ended: agent.ended.map(|ended| ended.wall),
            waits: self.waits_for(key, now),
            status_text: agent.voice.status.clone(),
            oom_kills: agent.last.as_ref().filter(|_| !agent.has_run()).map_or(agent.oom_kills, |last| last.oom_kills),
            limits: agent.limits.clone(),
            capabilities: spec.capabilities.clone(),
            metadata: spec.metadata.clone(),
            children: agent.children.iter().filter_map(|child| self.id_of(*child)).cloned().collect(),
            paused_ms: crate::model::status::millis(agent.paused_for(now)),
        }
    }

    /// Returns the state that people see: a pause comes before what would go on without it.
    pub(super) fn shown_state(&self, key: AgentKey) -> State {
        let state = self.agents[&key].state();
        if self.is_paused(key) { state.in_a_pause() } else { state }
    }

    /// Names the nearest agent, itself or above, that is paused by its own request.
    fn pauser(&self, key: AgentKey) -> Option<&AgentId> {
        let is_own = |key: &AgentKey| self.agents[key].freezer.own == Frost::Frozen;
        let pauser = std::iter::once(key).chain(self.ancestors(key)).find(is_own)?;
        self.id_of(pauser)
    }

    /// Returns whether agents have not ended though the herd has: what outlives its kill.
    #[must_use]
    pub fn has_survivors(&self) -> bool {
        self.door == super::Door::Finished && !self.stops.is_empty()
    }

    /// Says in a sentence what an agent waits for.
    pub(super) fn waits_for(&self, key: AgentKey, now: Monotonic) -> Option<String> {
        let agent = &self.agents[&key];
        let left = |until: Monotonic| {
            humantime::format_duration(std::time::Duration::from_millis(crate::model::status::millis(until.since(now))))
                .to_string()
        };
        let clock = |clock, what| {
            Some(match agent.clocks.get(clock)? {
                Countdown::Until(until) => format!("{what}, {} left", left(until)),
                Countdown::Suspended(_) => format!("{what}; the time stands still while it is paused"),
            })
        };
        match &agent.phase {
            _ if agent.stuck.is_some() => Some(sentence(agent.stuck.as_deref().unwrap_or_default())),
            _ if agent.freezer.hold == Frost::Frozen => self.held_by(key),
            Phase::Queued => Some("room in the tree".to_owned()),
            Phase::Held if agent.renewal.is_some() => Some("others to end: they start anew together".to_owned()),
            Phase::Held if !self.can_follow(agent) => {
                let mut awaited = self.awaited(agent);
                let first = awaited.next().map(|first| to_be_ready(first, now));
                let more = awaited.count();
                first.map(|first| if more > 0 { format!("{first}, and for {more} more") } else { first })
            }
            Phase::Held if self.is_held_by_frost(key) => Some("its subtree to be resumed".to_owned()),
            Phase::Held => match agent.turn {
                Some(turn) => Some(format!("its turn to be restarted, expected in {}", left(turn.expected))),
                None => Some("its parent to be started".to_owned()),
            },
            Phase::Spawning { .. } => Some("its program to execute".to_owned()),
            Phase::Draining { .. } => Some("the processes that its main process left behind".to_owned()),
            Phase::Reading { .. } => Some("its last output to be looked at".to_owned()),
            Phase::Lingering { .. } => Some("the agents below it to end".to_owned()),
            Phase::Backoff { countdown: Countdown::Until(until) } => Some(format!("its next run, in {}", left(*until))),
            Phase::Backoff { countdown: Countdown::Suspended(_) } => {
                Some("its next run; the time stands still while it is paused".to_owned())
            }
            Phase::Running { .. } if agent.down.is_some() => Some("its processes to end".to_owned()),
            Phase::Group | Phase::Running { ladder: None, .. } if agent.down.is_none() && self.is_paused(key) => {
                let pauser = self.pauser(key).map_or("the agent above it", AgentId::as_str);
                Some(format!("a resume of {pauser}"))
            }
            Phase::Running { ladder: None, .. } => {
                clock(Clock::Ready, "its readiness").or_else(|| clock(Clock::Stop, "its end, which it has announced"))
            }
            Phase::Group | Phase::Running { .. } | Phase::Ended { .. } => None,
        }
    }

    /// Makes an event, about an agent or about the herd.
    pub(super) fn event(&self, now: Now, kind: Kind, key: Option<AgentKey>) -> Event {
        let agent = key.and_then(|key| self.agents.get(&key));
        Event {
            agent: agent.map(|agent| agent.spec.id.clone()),
            level: agent.map(|agent| agent.level),
            run: agent.map(|agent| agent.run),
            parent: agent.and_then(|agent| self.id_of(agent.parent?)).cloned(),
            agent_key: agent.map(|agent| agent.key.0),
            parent_key: agent.and_then(|agent| agent.parent).map(|parent| parent.0),
            session: agent.and_then(|agent| agent.spec.session.clone()),
            pid: agent.and_then(|agent| agent.pid()),
            ..Event::new(now.wall, kind)
        }
    }

    /// Tells something of an agent, or of the herd.
    pub(super) fn publish(
        &self,
        step: &mut Step,
        kind: Kind,
        of: impl Into<Option<AgentKey>>,
        fill: impl FnOnce(&mut Event),
    ) {
        let mut event = self.event(step.now, kind, of.into());
        fill(&mut event);
        step.order(Effect::Publish(Box::new(event)));
    }

    /// Makes an event that the shell has found out by itself.
    #[must_use]
    pub fn event_about(&self, mono: Monotonic, wall: Wall, kind: Kind, key: Option<AgentKey>) -> Event {
        self.event(Now { mono, wall }, kind, key)
    }
}

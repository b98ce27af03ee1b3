//! What must hold after every step, whatever came in. A failure is a bug in the machine, never an answer to an input.

use super::Machine;
use super::agent::{Agent, Home, Phase};
use super::input::AgentKey;

impl Machine {
    /// Checks every invariant.
    ///
    /// # Panics
    /// If one does not hold: that is what it is for.
    pub fn check(&self) {
        assert_eq!(self.ids.len(), self.agents.len(), "every agent has its own id");
        let mut admitted = 0;
        for (key, agent) in &self.agents {
            self.check_agent(*key);
            if agent.is_admitted() {
                admitted += 1;
                assert!(
                    self.levels[&agent.level].contains(key),
                    "{}: an admitted agent is counted at its level",
                    agent.spec.id
                );
            }
        }
        assert_eq!(admitted, self.admitted, "the admitted are counted");
        assert_eq!(self.levels.values().map(|level| level.len()).sum::<usize>(), self.admitted as usize);
        assert!(self.admitted <= self.config.bounds.max_agents, "max_agents holds");
        for (level, agents) in &self.levels {
            assert!(
                agents.len() <= self.config.bounds.max_agents_per_level as usize,
                "max_agents_per_level holds at {level}"
            );
        }
        for (at, timer) in &self.timers {
            if let super::Timer::Agent(key) = timer {
                assert_eq!(self.agents[key].due, Some(*at), "an agent has the one timer that it knows of");
            }
        }
        for (key, press) in &self.presses {
            let is_over = key.place.is_some_and(|place| self.has_ended(place));
            assert!(!is_over, "{key:?}: a rule on pressure ends with its place");
            assert!(press.has_timer(*key, &self.timers), "{key:?}: what a rule does is undone in time");
        }
        for renewal in self.renewals.values() {
            assert!(!renewal.pending.is_empty(), "a renewal that waits for nobody is over");
            assert!(renewal.pending.is_subset(&renewal.members), "a renewal waits for its members only");
        }
        assert!(
            self.dirty.is_empty() && self.dirty_stops.is_empty() && !self.queue_moved,
            "a step leaves nothing unsettled"
        );
    }

    fn check_renewal(&self, agent: &Agent) {
        let id = &agent.spec.id;
        let Some(number) = agent.renewal else { return };
        let renewal = &self.renewals[&number];
        assert!(renewal.members.contains(&agent.key), "{id}: a renewal knows its members");
        let is_ready = matches!(agent.phase, Phase::Queued | Phase::Held);
        assert_eq!(
            is_ready,
            !renewal.pending.contains(&agent.key),
            "{id}: a renewal waits for those that are not ready"
        );
        let is_ending = !agent.has_run() || agent.ladder().is_some();
        assert!(is_ending, "{id}: no run goes on in a renewal");
    }

    fn check_agent(&self, key: AgentKey) {
        let agent = &self.agents[&key];
        let id = &agent.spec.id;
        let children: Vec<_> = agent.children.iter().map(|child| &self.agents[child]).collect();
        assert!(
            children.iter().all(|child| child.parent == Some(key) && child.level == agent.level.below()),
            "{id}: levels follow"
        );
        assert_eq!(
            children.iter().filter(|child| !child.has_ended()).count(),
            agent.live_children as usize,
            "{id}: live children"
        );
        let admitted = children.iter().filter(|child| child.is_admitted()).count();
        assert_eq!(admitted, agent.admitted_children as usize, "{id}: admitted children");
        assert!(agent.admitted_children <= self.config.bounds.max_children, "{id}: max_children holds");
        let spawning: u32 = children.iter().map(|child| child.spawning).sum();
        let own = u32::from(matches!(agent.phase, Phase::Spawning { .. }));
        assert_eq!(agent.spawning, spawning + own, "{id}: spawns on their way are counted");
        let runs: u32 = children.iter().map(|child| child.runs_below + u32::from(child.has_run())).sum();
        assert_eq!(agent.runs_below, runs, "{id}: runs below it are counted");
        self.check_renewal(agent);
        if let Phase::Queued = agent.phase {
            let is_held = self.followers(id).any(|follower| self.agents[&follower].is_admitted());
            assert!(!is_held, "{id}: nobody has a place in front of one that waits for its own");
        }
        if agent.has_ended() {
            assert_eq!(agent.live_children, 0, "{id}: an agent ends after all that is below it");
            let is_excused = agent.down.is_some() || agent.last.is_some();
            assert!(!agent.spec.is_group() || is_excused, "{id}: a group ends only when asked to, or not made");
            assert!(agent.run.0 == 0 || agent.is_end_told(), "{id}: its last run has its terminal event");
        }
        if agent.has_run() || matches!(agent.phase, Phase::Group) {
            assert_eq!(agent.home, Home::Made, "{id}: what runs has a cgroup");
        }
        if let Phase::Reading { record, .. } = &agent.phase {
            assert!(
                record.is_success() && agent.verdict.is_none(),
                "{id}: only what ended well waits for its last words"
            );
            assert!(!agent.is_end_told(), "{id}: what is told waits for nothing");
        }
        let is_ending = agent.ladder().is_some() || agent.down.is_some();
        assert!(agent.verdict.is_none() || !agent.has_run() || is_ending, "{id}: what has failed is ended");
        if let Some(parent) = agent.parent.filter(|_| agent.home == Home::Made) {
            let parent = &self.agents[&parent];
            assert!(
                matches!(parent.home, Home::Made | Home::Removing(_) | Home::Emptying(_)),
                "{id}: a cgroup stands in its parent's"
            );
        }
        let holders = self.presses.values().filter(|press| press.holds(key)).count();
        let is_held = agent.freezer.hold == super::Frost::Frozen;
        assert_eq!(holders, usize::from(is_held), "{id}: whoever is held is held by one rule, which will let it go");
        assert!(agent.told.is_none_or(|told| told <= agent.run), "{id}: nothing is told of a run that was not");
        if agent.down.is_some() {
            assert!(
                !matches!(agent.phase, Phase::Backoff { .. }) || agent.live_children > 0,
                "{id}: what was stopped does not come back"
            );
        }
        // Once a freeze is ordered, no spawn is on its way into the subtree, and none is ordered until it is thawed.
        let is_frozen =
            agent.freezer.written == super::Frost::Frozen || agent.freezer.ordered == Some(super::Frost::Frozen);
        assert!(!is_frozen || agent.spawning == 0 || agent.down.is_some(), "{id}: no spawn into a frozen cgroup");
    }
}

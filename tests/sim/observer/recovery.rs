//! What a failure may lead to, reckoned once more: who starts anew with whom, which escalation is justified, how many
//! restarts there are, how many agents may ever be spawned.

use std::collections::{BTreeMap, BTreeSet};

use treeherd::machine::{Adopted, AgentKey, Machine, Now};
use treeherd::model::id::Run;
use treeherd::model::record::Standing;
use treeherd::model::recovery::Strategy;
use treeherd::model::status::Paused;
use treeherd::model::time::Monotonic;

use super::super::kernel::Kernel;
use super::{Asking, Observer, subtrees};

/// Agents that start anew together.
#[derive(Debug)]
struct Together {
    members: BTreeSet<AgentKey>,
    /// The runs that end for it.
    old: BTreeSet<(AgentKey, Run)>,
}

#[derive(Debug, Default)]
pub struct Recovery {
    together: Vec<Together>,
    /// When each parent's children were restarted, as far as it counts.
    counted: BTreeMap<AgentKey, Vec<Monotonic>>,
    /// Agents whose next start was asked for.
    pub asked: BTreeSet<AgentKey>,
    /// When policies have started something.
    automatic: Vec<Monotonic>,
    removed: BTreeSet<AgentKey>,
    /// Agents whose first spawn failed: they never were.
    taken_back: BTreeSet<AgentKey>,
}

impl Recovery {
    pub fn removed(&mut self, key: AgentKey) {
        self.removed.insert(key);
    }

    pub fn forget(&mut self, key: AgentKey) {
        self.leave(key);
        if !self.removed.contains(&key) {
            self.taken_back.insert(key);
        }
    }

    /// Another supervisor goes on.
    pub fn crashed(&mut self, herd: &[Adopted]) {
        self.together.clear();
        self.automatic.clear();
        // What was told last may not be written down.
        let counted = herd.iter().map(|it| (AgentKey(it.record.birth.key), it.record.course.child_restarts.clone()));
        self.counted = counted.collect();
    }

    /// An agent is to end, or starts anew with others.
    pub fn leave(&mut self, key: AgentKey) {
        for together in &mut self.together {
            together.members.remove(&key);
            together.old.retain(|(member, _)| *member != key);
        }
        self.together.retain(|together| !together.members.is_empty());
    }
}

impl Observer {
    /// A child comes back by its own policy: its parent has counted it, and names those that start anew with it.
    pub(super) fn restarting(&mut self, machine: &Machine, now: Now, key: AgentKey) {
        let Some(parent) = self.known[&key].parent else { return };
        let children = self.known[&parent].spec.children.clone();
        let counted = self.recovery.counted.entry(parent).or_default();
        counted.retain(|at| now.mono.since(*at) < children.period);
        counted.push(now.mono);
        let is_within = children.intensity.is_none_or(|most| counted.len() <= most as usize);
        assert!(is_within, "{parent}: puts up with more restarts of its children than it may");
        let tops: Vec<_> = match children.strategy {
            Strategy::OneForOne => return,
            Strategy::OneForAll => machine.children_of(parent),
            Strategy::RestForOne => machine.children_of(parent).into_iter().filter(|it| *it >= key).collect(),
        };
        self.note(format!("strategy {}", children.strategy));
        self.begin_together(machine, &tops, key);
    }

    /// A parent fails for its children.
    pub(super) fn escalated(&mut self, machine: &Machine, now: Now, key: AgentKey, why: &str) {
        let children = self.known[&key].spec.children.clone();
        if why.starts_with("its significant") {
            self.note("significant");
            // It may be forgotten by now.
            let mut children = self.known.values().filter(|it| it.parent == Some(key) && it.spec.significant);
            assert!(children.any(|it| why.contains(&format!(" {} ", it.spec.id))), "{key}: {why}");
        } else {
            let counted = self.recovery.counted.entry(key).or_default();
            let recent = counted.iter().filter(|at| now.mono.since(**at) < children.period).count();
            let most = children.intensity.unwrap_or_else(|| panic!("{key}: escalates, and has no intensity"));
            assert!(recent >= most as usize, "{key}: escalates after {recent} restarts of its children: {why}");
        }
        assert!(!self.down.contains(&key), "{key}: escalates, and somebody wants its end");
        for below in subtrees(machine, &[key]) {
            self.recovery.counted.remove(&below);
        }
        self.begin_together(machine, &[key], key);
    }

    fn begin_together(&mut self, machine: &Machine, tops: &[AgentKey], head: AgentKey) {
        let mut together = Together { members: BTreeSet::new(), old: BTreeSet::new() };
        for key in subtrees(machine, tops) {
            // What only waits for those below it has ended for good.
            let is_over = machine.record(key).is_some_and(|it| matches!(it.course.standing, Standing::Lingering(_)));
            if self.down.contains(&key) || machine.has_ended(key) || (is_over && key != head) {
                continue;
            }
            self.recovery.leave(key);
            let run = machine.run_of(key).unwrap_or_default();
            let is_going_on = self.spawning.contains(&key) || self.started.contains(&(key, run));
            if is_going_on && !self.told.contains(&(key, run)) {
                together.old.insert((key, run));
                // What was killed for its lateness has failed before.
                if key != head && !self.late.contains(&(key, run)) {
                    self.cycles.insert((key, run));
                }
            }
            if key != head {
                self.backoffs.remove(&key);
            }
            together.members.insert(key);
        }
        self.recovery.together.push(together);
    }

    /// A run is ordered.
    pub(super) fn check_start(&mut self, kernel: &Kernel, now: Now, key: AgentKey, run: Run) {
        for together in self.recovery.together.iter().filter(|together| together.members.contains(&key)) {
            let living = together.old.iter().find(|(member, old)| kernel.in_run(*member, *old).next().is_some());
            assert_eq!(living, None, "{key}: starts anew while an old run of those that it starts with lives");
        }
        self.recovery.leave(key);
        if run <= Run(1) || self.recovery.asked.remove(&key) {
            return;
        }
        self.recovery.automatic.push(now.mono);
        let (burst, interval) = (self.config.restart_burst, self.config.restart_rate.interval());
        let all = &self.recovery.automatic;
        for (index, at) in all.iter().enumerate() {
            let count = (all.len() - index) as u128;
            let most = u128::from(burst) + now.mono.since(*at).as_nanos() / interval.as_nanos();
            assert!(count <= most, "{key}: {count} restarts since {at:?}, the herd allows {most}");
        }
    }

    /// Whoever starts anew does not keep its old run.
    pub(super) fn check_renewed(&self, kernel: &Kernel) {
        for (key, run) in self.recovery.together.iter().flat_map(|together| &together.old) {
            let living = kernel.in_run(*key, *run).next();
            assert!(living.is_none(), "{key}: run {run} goes on, and others have started anew with it");
        }
    }

    /// Says whether an agent starts anew together with one that is paused.
    pub(super) fn waits_for_paused(&self, machine: &Machine, key: AgentKey) -> bool {
        let is_paused = |key: &AgentKey| {
            machine.key_of_paused(*key).is_some_and(|paused| paused != Paused::No) || machine.is_held(*key)
        };
        self.recovery.together.iter().any(|it| it.members.contains(&key) && it.members.iter().any(is_paused))
    }

    /// A new agent stands below agents that may have so many spawned, ever.
    pub(super) fn check_budgets(&mut self, key: AgentKey) {
        for above in self.chain(key).into_iter().skip(1) {
            let Some(most) = self.known[&above].spec.spawn_budget else { continue };
            let is_below = |it: &&AgentKey| {
                !self.recovery.taken_back.contains(it) && self.chain(**it).into_iter().skip(1).any(|it| it == above)
            };
            let count = self.known.keys().filter(is_below).count();
            assert!(count <= most as usize, "{above}: {count} agents were spawned below it, {most} are allowed");
            self.note("spawn_budget");
        }
    }
}

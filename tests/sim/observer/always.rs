//! What holds at every moment, at rest and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use treeherd::machine::{AgentKey, Machine, Now};
use treeherd::model::id::{AgentId, Level};
use treeherd::model::request::Request;
use treeherd::model::status::{Paused, State};
use treeherd::model::time::Monotonic;

use super::super::kernel::Kernel;
use super::{Asked, Asking, Observer, state};

impl Observer {
    /// What holds at every moment.
    pub(super) fn check_always(&mut self, machine: &Machine, kernel: &Kernel, now: Now) {
        if let Some(deadline) = machine.next_deadline() {
            assert!(deadline > now.mono, "a deadline that has come is settled");
        }
        for (to, asked) in self.requests.iter().filter(|(_, asked)| !asked.is_answered) {
            let is_bounded = matches!(asked.request, Request::Pause(_) | Request::Resume(_));
            let is_late = now.mono >= asked.at + self.config.freeze_timeout;
            assert!(!(is_bounded && is_late), "{to:?} waits longer than it may: {:?}", asked.request);
        }
        let ends =
            |asked: &&Asked| matches!(asked.request, Request::Terminate(_, Some(_)) | Request::Shutdown(Some(_)));
        for asked in self.requests.values().filter(|asked| !asked.is_answered).filter(ends) {
            let is_late = asked.kill_at.is_some_and(|at| now.mono > at + self.config.kill_timeout);
            assert!(!is_late, "an end is answered within grace and kill_timeout: {:?}", asked.request);
        }
        for key in &self.paused {
            assert!(kernel.is_still(*key), "{key}: paused, and something in it runs");
        }
        let busy: BTreeSet<AgentKey> = kernel
            .processes
            .values()
            .filter(|process| !process.has_strayed)
            .map(|process| process.agent)
            .chain(kernel.hanging.keys().copied())
            .collect();
        let bounds = &self.config.bounds;
        assert!(busy.len() <= bounds.max_agents as usize, "max_agents holds for what runs");
        let mut levels: BTreeMap<Level, u32> = BTreeMap::new();
        let mut children: BTreeMap<AgentKey, u32> = BTreeMap::new();
        for key in &busy {
            let known = &self.known[key];
            *levels.entry(known.level).or_default() += 1;
            if let Some(parent) = known.parent {
                *children.entry(parent).or_default() += 1;
            }
        }
        assert!(levels.values().all(|n| *n <= bounds.max_agents_per_level), "max_agents_per_level holds: {levels:?}");
        assert!(levels.keys().all(|level| level.0 < bounds.max_levels), "max_levels holds: {levels:?}");
        assert!(children.values().all(|n| *n <= bounds.max_children), "max_children holds: {children:?}");
        self.check_totals(kernel, &busy);
    }

    pub(super) fn check_totals(&self, kernel: &Kernel, busy: &BTreeSet<AgentKey>) {
        for (level, profile) in self.config.levels.iter().filter(|_| !self.totals_changed) {
            for (knob, total) in profile.total.iter() {
                let members = busy.iter().filter(|key| self.known[key].level == *level);
                let amounts = members.map(|key| {
                    let setting = kernel.dirs.get(key).and_then(|dir| dir.limits.get(knob));
                    setting.and_then(|it| it.amount()).expect("in a level with a total everyone has a limit")
                });
                assert!(amounts.sum::<u128>() <= total.amount().unwrap(), "the total of {knob} at {level} holds");
            }
        }
    }

    /// Nobody is let in while somebody more urgent waits for the same place.
    pub(super) fn check_queue(&mut self, machine: &Machine, before: &BTreeSet<AgentKey>) {
        if before.is_empty() && self.queued.is_empty() {
            return;
        }
        self.queued.retain(|key| machine.key_of_state(*key) == Some(State::Queued));
        let rank = |key: &AgentKey| (std::cmp::Reverse(self.known[key].priority), *key);
        for entered in before.iter().filter(|key| !self.queued.contains(key)) {
            let is_in = machine.key_of_state(*entered).is_some_and(|state| !state.has_ended());
            for waiting in self.queued.iter().filter(|_| is_in && !self.down.contains(entered)) {
                let is_alike = self.known[entered].parent == self.known[waiting].parent
                    && machine.limits_of(*entered) == machine.limits_of(*waiting)
                    && !self.down.contains(waiting)
                    && !self.is_behind(machine, *waiting, *entered);
                assert!(!is_alike || rank(entered) < rank(waiting), "{entered} is let in before {waiting}");
            }
        }
    }

    /// Time passes; the clocks of an agent stand still while it is paused.
    pub fn passed(&mut self, machine: &Machine, kernel: &Kernel, time: Duration) {
        self.grow_older(machine, kernel, time);
        for (key, left) in &mut self.backoffs {
            if machine.key_of_paused(*key) == Some(Paused::No) {
                *left = left.saturating_sub(time);
            }
        }
    }

    /// What holds when everything has been carried out, told and waited for.
    pub fn at_rest(&mut self, machine: &Machine, kernel: &Kernel) {
        for (to, asked) in self.requests.iter().filter(|(_, asked)| !asked.is_answered && !asked.is_gone) {
            let Request::Wait(ids) = &asked.request else { panic!("{to:?} is never answered: {:?}", asked.request) };
            let is_live = |id: &AgentId| machine.key_of(id).is_some_and(|key| !state(machine, key).has_ended());
            assert!(ids.iter().any(is_live), "{to:?}: all have ended, and it waits: {ids:?}");
        }
        for key in self.names.values().filter(|key| !self.forgotten.contains(key)) {
            let status = machine.status(*key, Monotonic(0));
            let is_paused = status.paused != Paused::No || machine.is_held(*key);
            match status.state {
                // Its own word that it stops is held to its grace, which stands still while it is paused.
                State::Stopping => assert!(is_paused && !self.down.contains(key), "{key} stops for ever"),
                State::Backoff | State::Starting => {
                    let waits_for_paused = self.waits_for_paused(machine, *key);
                    let waits = waits_for_paused || self.waits_for_others(machine, kernel, *key);
                    assert!(is_paused || waits, "{key} is {} for ever", status.state);
                }
                State::Queued => self.assert_no_room(machine, *key),
                _ => {}
            }
            let is_well = status.exit.as_ref().is_none_or(|exit| exit.is_success()) || status.command.is_empty();
            assert!(status.state != State::Completed || is_well, "{key}: completed, and {:?}", status.exit);
            assert!(is_paused || status.state != State::Paused, "{key}: it is shown as paused");
            assert!(
                status.paused == Paused::No || status.state != State::Running,
                "{key}: it is paused, and shown as running"
            );
            let is_watched = self.is_watched(machine, kernel, *key) && status.state == State::Running && !is_paused;
            assert!(!is_watched, "{key} runs for ever without a heartbeat");
            let is_idle = self.is_to_fail_for_rest(machine, kernel, *key) && status.state == State::Running;
            assert!(!is_idle || is_paused, "{key} does nothing for ever");
            if status.state.has_ended() {
                assert!(!self.config.auto_cleanup, "{key} has ended, and is retained for ever");
                assert!(!kernel.dirs.contains_key(key), "{key} has ended, and its cgroup is there");
            }
        }
        self.check_renewed(kernel);
        for (key, dir) in &kernel.dirs {
            assert_eq!(machine.limits_of(*key), Some(&dir.limits), "{key}: its limits are the kernel's");
            if let Some(limits) = &dir.nursery {
                let level = self.known[key].level.below();
                assert_eq!(
                    machine.config().level(level).siblings,
                    *limits,
                    "{key}: the limits of its children together"
                );
            }
        }
        assert_eq!(machine.config().limits, kernel.herd, "the herd's limits are the kernel's");
        for (key, run) in &self.started {
            let is_over = kernel.in_run(*key, *run).next().is_none() && kernel.deaths.contains_key(&(*key, *run));
            // A completion is told when the agents below have ended, too.
            let waits = matches!(machine.key_of_state(*key), Some(State::Running | State::Paused))
                && machine.run_of(*key) == Some(*run);
            assert!(
                !is_over || waits || self.told.contains(&(*key, *run)),
                "{key}: the end of run {run} was never told"
            );
        }
    }

    pub(super) fn assert_no_room(&self, machine: &Machine, key: AgentKey) {
        let known = &self.known[&key];
        let counts = machine.counts();
        let bounds = &self.config.bounds;
        let at_level = counts.levels.get(&known.level).copied().unwrap_or(0);
        let siblings = known.parent.map_or(0, |parent| {
            machine
                .children_of(parent)
                .into_iter()
                .filter(|it| {
                    let state = state(machine, *it);
                    !state.has_ended() && state != State::Queued
                })
                .count()
        });
        let is_full = at_level >= bounds.max_agents_per_level.into()
            || counts.levels.values().sum::<u64>() >= bounds.max_agents.into()
            || siblings >= bounds.max_children as usize
            || known.parent.is_some_and(|parent| state(machine, parent) == State::Queued)
            || self.named(machine, key).any(|named| state(machine, named) == State::Queued)
            || !machine.config().level(known.level).total.is_empty();
        assert!(is_full, "{key} is queued, and there is room");
    }

    /// What holds when the herd has ended.
    pub fn at_the_end(&self, machine: &Machine, kernel: &Kernel) {
        assert!(self.has_finished, "a shutdown ends");
        if machine.has_survivors() {
            // What does not die outlives the supervisor; that was answered, and is not said to have ended.
            return assert!(self.requests.values().all(|asked| asked.is_answered || asked.is_gone), "all are answered");
        }
        assert!(kernel.dirs.is_empty(), "no cgroup is left: {:?}", kernel.dirs.keys());
        assert!(kernel.processes.is_empty() && kernel.hanging.is_empty(), "no process is left");
        let mut waiting = self.requests.iter().filter(|(_, asked)| !asked.is_answered && !asked.is_gone);
        if let Some((to, asked)) = waiting.next() {
            panic!("{to:?} was never answered: {:?}", asked.request);
        }
        for run in &self.started {
            assert!(self.told.contains(run), "the end of {run:?} was never told");
        }
    }
}

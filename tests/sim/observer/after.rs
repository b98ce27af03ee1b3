//! Who starts after whom, against what is true of those that were named.

use std::collections::{BTreeMap, BTreeSet};

use treeherd::machine::{AgentKey, Machine};
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::{AgentId, Run};
use treeherd::model::status::{Exit, ExitRecord, State};
use treeherd::model::time::Monotonic;

use super::super::kernel::Kernel;
use super::{Asking, Observer, state};

#[derive(Debug, Default)]
pub(super) struct Order {
    /// How each agent has ended last.
    ends: BTreeMap<AgentKey, Kind>,
    /// Names whose last agent had completed when it was forgotten.
    completed: BTreeSet<AgentId>,
    /// Agents that have begun once.
    begun: BTreeSet<AgentKey>,
}

impl Observer {
    pub(super) fn began_order(&mut self, key: AgentKey) {
        self.order.begun.insert(key);
        self.order.ends.remove(&key);
    }

    pub(super) fn ended_order(&mut self, key: AgentKey, event: &Event) {
        self.order.ends.insert(key, event.kind);
    }

    pub(super) fn forget_order(&mut self, key: AgentKey) {
        let id = self.known[&key].spec.id.clone();
        if self.order.ends.get(&key) == Some(&Kind::Completed) {
            self.order.completed.insert(id);
        } else {
            self.order.completed.remove(&id);
        }
    }

    /// Lists the agents of the names that one starts after.
    pub(super) fn named<'a>(&'a self, machine: &'a Machine, key: AgentKey) -> impl Iterator<Item = AgentKey> + 'a {
        self.known[&key].spec.after.iter().filter_map(|id| machine.key_of(id))
    }

    /// Nobody starts before those that it starts after.
    pub(super) fn check_follows(&mut self, machine: &Machine, kernel: &Kernel, key: AgentKey, run: Run) {
        let after = self.known[&key].spec.after.clone();
        for id in &after {
            match machine.key_of(id) {
                Some(named) => assert!(self.is_fit(machine, kernel, named), "{key}: started before {id} is ready"),
                None => {
                    let is_anew = run > Run(1) || self.order.begun.contains(&key);
                    assert!(is_anew || self.order.completed.contains(id), "{key}: started after {id}, which is lost");
                }
            }
            self.note("started after another one");
        }
    }

    /// Says whether an agent is ready or has completed, by the books.
    fn is_fit(&self, machine: &Machine, kernel: &Kernel, key: AgentKey) -> bool {
        let known = &self.known[&key];
        if known.spec.is_group() {
            return kernel.dirs.contains_key(&key) && !self.down.contains(&key);
        }
        let run = machine.run_of(key).unwrap_or_default();
        let end = self.order.ends.get(&key);
        // An end that nobody has told yet does not count.
        if let Some(death) = kernel.deaths.get(&(key, run)).filter(|_| self.exits.contains_key(&(key, run))) {
            let is_good = death.exit == Exit::Status(0) && !death.is_oom;
            return end.map_or(is_good, |end| *end == Kind::Completed);
        }
        let is_going = self.started.contains(&(key, run)) && !self.told.contains(&(key, run));
        is_going && self.says_ready(key, run) && !self.down.contains(&key)
    }

    /// Nobody waits for what has ended and will not be ready.
    pub(super) fn check_waits(&self, machine: &Machine) {
        for key in self.names.values().filter(|key| !self.forgotten.contains(key) && !self.down.contains(key)) {
            let Some(now) = machine.key_of_state(*key) else { continue };
            let is_between =
                now == State::Starting && !self.is_spawning(*key) && machine.status(*key, Monotonic(0)).pid.is_none();
            if now != State::Queued && !is_between {
                continue;
            }
            for named in self.named(machine, *key) {
                let named_state = state(machine, named);
                let is_lost = matches!(named_state, State::Failed | State::Terminated);
                assert!(!is_lost, "{key} waits for {named}, which has ended: {named_state}");
            }
        }
    }

    /// Says whether an agent, or one above it, waits for others that are not ready.
    pub(super) fn waits_for_others(&self, machine: &Machine, kernel: &Kernel, key: AgentKey) -> bool {
        let is_open = |named: AgentKey| {
            let is_up = matches!(state(machine, named), State::Running | State::Group | State::Completed);
            !is_up || kernel.deaths.contains_key(&(named, machine.run_of(named).unwrap_or_default()))
        };
        self.chain(key).into_iter().any(|key| self.named(machine, key).any(is_open))
    }

    /// Says whether a queued agent could not be let in before another one.
    pub(super) fn is_behind(&self, machine: &Machine, waiting: AgentKey, entered: AgentKey) -> bool {
        self.named(machine, waiting).any(|named| named == entered || state(machine, named) == State::Queued)
    }

    /// Who could not be started for another one says for which.
    pub(super) fn check_dependency(&mut self, machine: &Machine, key: AgentKey, exit: &ExitRecord) {
        self.note("dependency");
        let why = exit.error.as_deref().unwrap_or_default();
        let named = |id: &&AgentId| why.starts_with(&format!("it starts after {id}, which"));
        let id = self.known[&key].spec.after.iter().find(named).unwrap_or_else(|| panic!("{key}: {why}"));
        let is_lost = machine.key_of(id).is_none_or(|it| {
            matches!(state(machine, it), State::Failed | State::Terminated | State::Stopping)
                || self.told.contains(&(it, machine.run_of(it).unwrap_or_default()))
        });
        assert!(is_lost, "{key}: it has failed for {id}, which is not lost");
    }
}

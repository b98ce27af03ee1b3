//! What is asked for: whom a request is about, what was true when it came, and whom it makes known.

use std::collections::{BTreeMap, BTreeSet};

use treeherd::machine::{AgentKey, Effect, Machine, Now, ReplyTo};
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::{AgentId, Level};
use treeherd::model::request::{LimitScope, Request, Target};
use treeherd::model::within::{self, Baseline};

use super::super::kernel::Kernel;
use super::{Asked, Asking, Known, Observer, state};

impl Observer {
    /// Takes in a request that the machine is about to be told.
    pub(super) fn asked(&mut self, machine: &Machine, kernel: &Kernel, now: Now, to: ReplyTo, request: &Request) {
        let keys = match request {
            Request::Terminate(target, _)
            | Request::Pause(target)
            | Request::Resume(target)
            | Request::Cleanup(target) => machine.select(target),
            Request::Shutdown(_) => machine.select(&Target::All),
            _ => Ok(Vec::new()),
        };
        let keys = keys.unwrap_or_default();
        if let Request::Resume(_) = request {
            for key in &keys {
                self.paused.remove(key);
            }
        }
        if let Request::Pause(_) | Request::Resume(_) = request {
            self.frost_asked.extend(keys.iter().map(|key| (*key, to)));
        }
        if let Request::Limit(LimitScope::Total(_), _) = request {
            self.totals_changed = true;
        }
        let members = subtrees(machine, &keys);
        let kill_at = match request {
            Request::Terminate(_, grace) | Request::Shutdown(grace) => {
                let is_top = |key: &AgentKey| {
                    let is_live = machine.key_of_state(*key).is_some_and(|state| !state.has_ended());
                    let mut above = self.chain(*key).into_iter().skip(1);
                    is_live && !above.any(|it| keys.contains(&it) && !state(machine, it).has_ended())
                };
                let graces =
                    keys.iter().copied().filter(is_top).filter_map(|key| machine.spec_of(key)).map(|it| it.grace);
                Some(now.mono + grace.or_else(|| graces.max()).unwrap_or_default())
            }
            _ => None,
        };
        let mut exact = BTreeMap::new();
        for key in &members {
            let run = machine.run_of(*key).unwrap_or_default();
            let is_main = kernel.in_run(*key, run).any(|(_, process)| process.is_main);
            let is_plain = !self.down.contains(key) && !self.cycles.contains(&(*key, run)) && !self.is_spawning(*key);
            let strays = kernel.within(*key).any(|(_, process)| process.has_strayed);
            if is_main && is_plain && !strays && self.started.contains(&(*key, run)) {
                let tally = kernel.tallies.get(key).copied().unwrap_or_default();
                exact.insert(*key, (kernel.in_run(*key, run).count() as u64, tally));
            }
        }
        let (request, at) = (request.clone(), now.mono);
        let asked =
            Asked { request, members, exact, is_answered: false, kill_at, at, is_permitted: true, is_gone: false };
        assert!(self.requests.insert(to, asked).is_none());
    }

    /// Learns of a new agent.
    pub(super) fn learn(&mut self, machine: &Machine, asked: Option<ReplyTo>, effects: &[Effect]) {
        let Some(Asked { request: Request::Spawn(spec), .. }) = asked.and_then(|to| self.requests.get(&to)) else {
            return;
        };
        // It may be let into the queue, fail for what it was to start after, and be forgotten, all in this step.
        let came_and_went = || {
            effects.iter().find_map(|effect| match effect {
                Effect::Forget(key) if !self.known.contains_key(key) => Some(*key),
                _ => None,
            })
        };
        let Some(key) = machine.key_of(&spec.id).or_else(came_and_went) else { return };
        if self.known.contains_key(&key) {
            return;
        }
        let parent = spec.parent.as_ref().map(|id| self.names[id]);
        let level = parent.map_or(Level(0), |parent| self.known[&parent].level.below());
        // What an agent leaves open for its child is its own.
        let spec = machine.spec_of(key).map_or_else(|| spec.as_ref().clone(), |spec| spec.as_ref().clone());
        self.names.insert(spec.id.clone(), key);
        self.known.insert(key, Known { parent, level, priority: spec.priority.into(), spec });
        self.check_budgets(key);
    }

    /// Learns of a restart that was asked for and begun.
    pub(super) fn restarted(&mut self, machine: &Machine, asked: Option<ReplyTo>, effects: &[Effect]) {
        let Some(to) = asked else { return };
        let Request::Restart(id) = &self.requests[&to].request else { return };
        let is_refused = effects.iter().any(|effect| matches!(effect, Effect::Reply(it, Err(_)) if *it == to));
        let Some(key) = machine.key_of(id).filter(|_| !is_refused) else { return };
        self.recovery.asked.insert(key);
        // A run whose last words were waited for is over with the request.
        let is_over = |it: &Event| it.kind == Kind::Terminated && it.agent.as_ref() == Some(id);
        let over = effects.iter().find_map(|it| match it {
            Effect::Publish(event) if is_over(event) => event.run,
            _ => None,
        });
        if let Some(run) = over {
            self.cycles.insert((key, run));
            return;
        }
        let is_cycle = effects.iter().any(|it| matches!(it, Effect::Signal { agent, .. } if *agent == key));
        if is_cycle {
            self.cycles.insert((key, machine.run_of(key).unwrap()));
            return;
        }
        self.down.remove(&key);
        self.killed.remove(&key);
        self.backoffs.remove(&key);
        self.groups.retain(|group| !group.tops.contains(&key));
        self.announced.insert(key);
        for asked in self.requests.values_mut() {
            asked.members.remove(&key);
            asked.exact.remove(&key);
        }
    }
}

/// Lists these agents and all below them.
pub(super) fn subtrees(machine: &Machine, tops: &[AgentKey]) -> BTreeSet<AgentKey> {
    let mut found = BTreeSet::new();
    let mut left = tops.to_vec();
    while let Some(key) = left.pop() {
        if found.insert(key) {
            left.extend(machine.children_of(key));
        }
    }
    found
}

/// Says whether an agent may ask for something: all that it is about is below itself, and no child has more than itself.
pub(super) fn is_permitted(machine: &Machine, own: AgentKey, request: &Request) -> bool {
    // Of what is not there, it may be told so.
    let is_below = |id: &AgentId| machine.key_of(id).is_none_or(|key| key != own && machine.is_within(key, own));
    match request {
        Request::Spawn(spec) => {
            let is_within = |id: &AgentId| machine.key_of(id) == Some(own) || is_below(id);
            let has = machine.spec_of(own).is_some_and(|asker| {
                let mut child = spec.as_ref().clone();
                within::inherit(&mut child, asker);
                within::is_within(&child, asker, &Baseline::default()).is_ok()
            });
            has && spec.parent.as_ref().is_some_and(is_within) && spec.after.iter().all(is_within)
        }
        Request::Pause(Target::Ids(ids))
        | Request::Resume(Target::Ids(ids))
        | Request::Terminate(Target::Ids(ids), _)
        | Request::Cleanup(Target::Ids(ids))
        | Request::Wait(ids) => ids.iter().all(is_below),
        Request::Restart(id) | Request::Limit(LimitScope::Agent(id), _) => is_below(id),
        _ => false,
    }
}

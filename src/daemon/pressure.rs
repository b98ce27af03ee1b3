//! Listens to the pressure of the places that have rules on it, and to no other: whoever has none costs nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use mio::Interest;

use super::guard;
use super::job::Job;
use super::supervisor::{Source, Supervisor};
use crate::kernel::cgroup::{Cgroups, Place};
use crate::machine::{AgentKey, Input, LimitPlace, PressKey};
use crate::model::error::Error;
use crate::model::limits::{Knob, Limits, Setting};
use crate::model::pressure::{Measure, PressureRule};
use crate::model::units::{Bytes, Max};

/// The triggers that are set, by the number of their token.
pub(super) type Triggers = BTreeMap<u64, (Listener, OwnedFd)>;

/// Who wants to know of pressure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listener {
    /// A rule.
    Rule(PressKey),
    /// The `cpu_max` of a place.
    Limit(Place),
}

impl Supervisor {
    /// Says no to rules that this host cannot carry out.
    pub(super) fn check_pressure(&self, rules: &[PressureRule]) -> Result<(), Error> {
        rules.iter().try_for_each(|rule| self.tools.cgroups.check_pressure(rule))
    }

    /// Listens to the pressure in an agent's subtree, or in the herd, as its rules say.
    pub(super) fn watch_pressure(&mut self, place: Option<AgentKey>) {
        let rules = self.machine.pressure_rules(place).to_vec();
        let is_heard = |listener: &Listener| matches!(listener, Listener::Rule(key) if key.place == place);
        if rules.is_empty() || self.triggers.values().any(|(listener, _)| is_heard(listener)) {
            return;
        }
        let Some(home) = self.pressure_place(place) else { return };
        for (rule, wanted) in rules.iter().enumerate() {
            match self.tools.cgroups.pressure_trigger(&home, wanted) {
                Ok(trigger) => drop(self.register_trigger(Listener::Rule(PressKey { place, rule }), trigger)),
                Err(error) if error.is_gone() => return,
                Err(error) => tracing::error!("listen to the pressure in {home}: {error}"),
            }
        }
    }

    /// Listens to the pressure of a place that was there before this daemon, and undoes what an earlier one has tightened.
    pub(super) fn take_up_pressure(&mut self, place: Option<AgentKey>) {
        self.watch_pressure(place);
        let mut steps = self.machine.pressure_rules(place).iter().flat_map(|rule| &rule.steps);
        if steps.any(|step| *step == Measure::Tighten)
            && let Some(home) = self.pressure_place(place)
        {
            self.loosen(&place.map_or(LimitPlace::Herd, LimitPlace::Agent), home);
        }
    }

    fn pressure_place(&self, place: Option<AgentKey>) -> Option<Place> {
        place.map_or_else(|| Some(Place::herd()), |key| Some(self.bodies.get(&key)?.home.clone()))
    }

    /// Listens to a trigger; returns its number.
    pub(super) fn register_trigger(&mut self, listener: Listener, trigger: OwnedFd) -> Option<u64> {
        if let Err(error) = guard::check_for_spawn(trigger.as_fd()) {
            tracing::error!("listen to pressure: {error}");
            return None;
        }
        let id = self.fresh();
        self.poll_for(&trigger, Source::Pressure(id), Interest::PRIORITY);
        self.triggers.insert(id, (listener, trigger));
        Some(id)
    }

    /// A trigger has fired: a rule's share of its window was exceeded. (Or its cgroup was removed: then it is over.)
    pub(super) fn pressure_fired(&mut self, id: u64) {
        match self.triggers.get(&id).map(|(listener, _)| listener.clone()) {
            Some(Listener::Rule(key)) if key.place.is_none_or(|place| self.machine.has_cgroup(place)) => {
                self.feed(Input::Pressed(key));
            }
            Some(Listener::Limit(place)) => self.look_at_hits(&place, Knob::CpuMax),
            _ => {}
        }
    }

    /// Stops listening to the pressure in an agent's subtree.
    pub(super) fn forget_pressure(&mut self, agent: AgentKey) {
        let of_it = |listener: &Listener| matches!(listener, Listener::Rule(key) if key.place == Some(agent));
        let gone: Vec<_> = self.triggers.iter().filter(|(_, (it, _))| of_it(it)).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.drop_trigger(id));
    }

    pub(super) fn drop_trigger(&mut self, id: u64) {
        let Some((_, trigger)) = self.triggers.remove(&id) else { return };
        self.stop_polling(&trigger);
    }

    /// Has `memory.high` set back to what was asked for.
    pub(super) fn loosen(&mut self, of: &LimitPlace, place: Place) {
        let limits = match of {
            LimitPlace::Agent(key) => self.machine.limits_of(*key),
            _ => Some(&self.machine.config().limits),
        };
        let asked = limits.and_then(|limits| limits.get(Knob::MemoryHigh)).cloned();
        let mut loose = Limits::default();
        loose.set(Knob::MemoryHigh, asked.unwrap_or(Setting::Bytes(Max::Max)));
        self.hand(Job::Loosen(place, loose));
    }
}

/// Sets `memory.high` to nine tenths of what is used, or leaves it where it is lower already.
pub(super) fn tighten(cgroups: &Cgroups, place: &Place) -> Result<(), Error> {
    cgroups.usage(place).map_err(Error::from).and_then(|usage| {
        let Some(used) = usage.memory_current_bytes else { return Ok(()) };
        let mut limits = Limits::default();
        limits.set(Knob::MemoryHigh, Setting::Bytes(Max::Value(Bytes(used / 10 * 9))));
        let now = cgroups.limits_now(place, [Knob::MemoryHigh]);
        let is_lower = now.first_wider_than(&limits).is_none() && !now.is_empty();
        if is_lower { Ok(()) } else { cgroups.set_limits(place, &limits) }
    })
}

//! What is done, step by step, about agents that wait for memory, CPU time or I/O; and how it is undone when they do not any more.
//!
//! ```text
//!  pressed ──▶ warn ──pressed──▶ tighten ──pressed──▶ pause, pause … (lowest priority first) ──pressed──▶ terminate, terminate …
//!                                                       ▲                 │ three calm windows
//!                                                       └────pressed──────┴──▶ resume, resume … (last one first) ──▶ gone
//! ```
//!
//! Who is paused for memory gives what it has to the others: the kernel is asked to take it back, piece by piece, until there is no
//! more or it is resumed.
//!
//! A pause by a rule and a user's pause are two wishes: an agent runs when nobody holds it. So what a user has paused no rule
//! resumes, and a user's resume lifts both; whoever was resumed by a user is not paused again by that rule before the pressure is gone.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::input::{AgentKey, Effect, Frost, LimitPlace, PressKey};
use super::{Machine, Step, Timer};
use crate::model::event::Kind;
use crate::model::pressure::{Measure, PressureRule, Resource, Stall};
use crate::model::status::Cause;
use crate::model::time::Monotonic;

/// How many windows without pressure make it gone.
const CALM_WINDOWS: u32 = 3;

/// A rule whose pressure is not gone.
#[derive(Debug)]
pub(super) struct Press {
    rule: PressureRule,
    /// Which of the rule's steps is next.
    next: usize,
    /// When the next thing is undone, unless there is pressure before.
    calm_at: Monotonic,
    /// The agents that it has paused, in this order.
    held: Vec<AgentKey>,
    /// The agents that a user has resumed.
    spared: BTreeSet<AgentKey>,
    /// Whether `memory.high` is below what was asked for.
    is_tight: bool,
}

impl Press {
    /// Goes back to the steps that can be taken more than once.
    fn rewind(&mut self) {
        self.next = self.rule.steps.iter().position(|step| *step >= Measure::Pause).unwrap_or(self.rule.steps.len());
    }

    /// Says whether it will be looked at again.
    pub fn has_timer(&self, key: PressKey, timers: &BTreeSet<(Monotonic, Timer)>) -> bool {
        timers.contains(&(self.calm_at, Timer::Press(key)))
    }

    /// Says whether it holds an agent.
    pub fn holds(&self, key: AgentKey) -> bool {
        self.held.contains(&key)
    }
}

impl Machine {
    /// Returns the rules on the pressure of an agent's subtree, or of the herd.
    #[must_use]
    pub fn pressure_rules(&self, place: Option<AgentKey>) -> &[PressureRule] {
        let Some(key) = place else { return &self.config.pressure };
        let Some(agent) = self.agents.get(&key) else { return &[] };
        match self.config.levels.get(&agent.level) {
            Some(level) if agent.spec.pressure.is_empty() => &level.pressure,
            _ => &agent.spec.pressure,
        }
    }

    /// A rule's share of a window was exceeded: takes its next step.
    pub(super) fn pressed(&mut self, step: &mut Step, key: PressKey) {
        let is_over = key.place.is_some_and(|place| self.has_ended(place));
        let Some(rule) = self.pressure_rules(key.place).get(key.rule).filter(|_| !is_over).cloned() else { return };
        let calm_at = step.now.mono + rule.window * CALM_WINDOWS;
        self.presses.entry(key).or_insert_with(|| Press {
            rule,
            next: 0,
            calm_at,
            held: Vec::new(),
            spared: BTreeSet::new(),
            is_tight: false,
        });
        self.set_press_timer(key, calm_at);
        if self.presses[&key].next >= self.presses[&key].rule.steps.len() {
            // Somebody may have come meanwhile who can give way.
            self.press_mut(key).rewind();
        }
        while !self.take_measure(step, key) {
            self.press_mut(key).next += 1;
        }
    }

    fn press_mut(&mut self, key: PressKey) -> &mut Press {
        self.presses.get_mut(&key).expect("whoever has the key has just found it")
    }

    fn set_press_timer(&mut self, key: PressKey, at: Monotonic) {
        let old = std::mem::replace(&mut self.press_mut(key).calm_at, at);
        self.timers.remove(&(old, Timer::Press(key)));
        self.timers.insert((at, Timer::Press(key)));
    }

    /// Does what the next step says. Returns false if there is nothing left to do of it.
    fn take_measure(&mut self, step: &mut Step, key: PressKey) -> bool {
        let press = &self.presses[&key];
        match press.rule.steps.get(press.next) {
            // Everything is done that may be done.
            None => {}
            Some(Measure::Warn) => {
                self.tell_press(step, Kind::PressureRose, key, None);
                self.press_mut(key).next += 1;
            }
            Some(Measure::Tighten) => {
                self.press_mut(key).is_tight = true;
                self.press_mut(key).next += 1;
                step.order(Effect::Tighten(limit_place(key)));
                self.tell_press(step, Kind::PressureTightens, key, None);
            }
            Some(Measure::Pause) => match self.next_to_pause(key) {
                Some(victim) => self.pause_for_pressure(step, key, victim),
                None => return false,
            },
            Some(Measure::Terminate) => match self.next_to_end(key) {
                Some(victim) => self.end_for_pressure(step, key, victim),
                None => return self.is_one_ending(key),
            },
        }
        true
    }

    /// Returns the agents of a rule's place whose run goes on.
    fn runners(&self, key: PressKey) -> Vec<AgentKey> {
        let has_run = |key: &AgentKey| self.agents[key].has_run() && self.agents[key].down.is_none();
        match key.place {
            Some(place) => self.subtree(place).into_iter().filter(has_run).collect(),
            None => self.agents.keys().copied().filter(has_run).collect(),
        }
    }

    /// Orders agents by who has to give way first: the lowest priority of all that runs in its subtree, then the deepest, then the youngest.
    fn urgency(&self, key: AgentKey) -> impl Ord + use<> {
        let below = self.subtree(key).into_iter().filter(|key| self.agents[key].has_run());
        let agent = &self.agents[&key];
        let most = below.map(|key| self.agents[&key].spec.priority).max().unwrap_or(agent.spec.priority);
        (most, Reverse(agent.level), Reverse(key))
    }

    /// Finds the agent to be paused next: one that leaves another one running.
    fn next_to_pause(&self, key: PressKey) -> Option<AgentKey> {
        let running: Vec<_> = self.runners(key).into_iter().filter(|key| !self.is_paused(*key)).collect();
        let spared = &self.presses[&key].spared;
        let may = |victim: &AgentKey| {
            !spared.contains(victim) && running.iter().any(|other| !self.is_within(*other, *victim))
        };
        running.iter().copied().filter(may).min_by_key(|key| self.urgency(*key))
    }

    /// Finds the agent to be ended next: none as long as one is being ended.
    fn next_to_end(&self, key: PressKey) -> Option<AgentKey> {
        if self.is_one_ending(key) {
            return None;
        }
        let unattended = self.runners(key).into_iter().filter(|key| self.agents[key].is_unattended());
        unattended.min_by_key(|key| self.urgency(*key))
    }

    fn is_one_ending(&self, key: PressKey) -> bool {
        let is_ending =
            |key: &AgentKey| self.agents[key].verdict.as_ref().is_some_and(|verdict| verdict.cause == Cause::Pressure);
        self.runners(key).iter().any(is_ending)
    }

    fn pause_for_pressure(&mut self, step: &mut Step, key: PressKey, victim: AgentKey) {
        self.press_mut(key).held.push(victim);
        self.set_hold(step, victim, Frost::Frozen);
        self.tell_press(step, Kind::PressurePauses, key, Some(victim));
    }

    fn set_hold(&mut self, step: &Step, key: AgentKey, frost: Frost) {
        self.agent_mut(key).freezer.hold = frost;
        self.freezer_is_wanted(step.now, key);
    }

    /// Says whether a rule may pause an agent for memory: then what it has should be told apart from what the others have.
    #[must_use]
    pub fn may_be_paused_for_memory(&self, key: AgentKey) -> bool {
        let is_one = |rule: &PressureRule| rule.resource == Resource::Memory && rule.steps.contains(&Measure::Pause);
        let above = [None, Some(key)].into_iter().chain(self.ancestors(key).map(Some));
        above.flat_map(|place| self.pressure_rules(place)).any(is_one)
    }

    /// Has an agent give its memory to the others, piece by piece, as long as a rule on memory pauses it.
    pub(super) fn reclaim(&self, step: &mut Step, key: AgentKey) {
        let pauses = |press: &Press| press.rule.resource == Resource::Memory && press.holds(key);
        let agent = self.agents.get(&key);
        let stands_still = agent.is_some_and(|agent| agent.down.is_none() && agent.freezer.is_confirmed());
        if stands_still && self.presses.values().any(pauses) {
            step.order(Effect::Reclaim(key));
        }
    }

    fn end_for_pressure(&mut self, step: &mut Step, key: PressKey, victim: AgentKey) {
        let why = self.press_text(key);
        self.tell_press(step, Kind::PressureTerminates, key, Some(victim));
        // One that is paused hears no signal but the last.
        let signal = if self.is_paused(victim) { super::agent::SIGKILL } else { self.agents[&victim].spec.stop_signal };
        self.condemn(step, victim, super::agent::Verdict { cause: Cause::Pressure, why }, signal);
    }

    /// Undoes the last thing that a rule has done, if its time has come: without pressure the paused are resumed one by one.
    pub(super) fn settle_press(&mut self, step: &mut Step, key: PressKey) {
        let Some(press) = self.presses.get_mut(&key).filter(|press| step.now.mono >= press.calm_at) else { return };
        let window = press.rule.window;
        // What comes next if it returns is a pause again, and no end.
        press.rewind();
        if let Some(last) = press.held.pop() {
            self.set_hold(step, last, Frost::Thawed);
            self.tell_press(step, Kind::PressureResumes, key, Some(last));
            return self.set_press_timer(key, step.now.mono + window);
        }
        self.tell_press(step, Kind::PressureGone, key, None);
        self.drop_press(step, key);
    }

    /// Forgets a rule's pressure, and lets go of what it holds.
    fn drop_press(&mut self, step: &mut Step, key: PressKey) {
        let Some(press) = self.presses.remove(&key) else { return };
        self.timers.remove(&(press.calm_at, Timer::Press(key)));
        for held in press.held {
            self.set_hold(step, held, Frost::Thawed);
        }
        let is_there = key.place.is_none_or(|place| self.agents.get(&place).is_some_and(|agent| !agent.has_ended()));
        if press.is_tight && is_there {
            step.order(Effect::Loosen(limit_place(key)));
        }
    }

    /// An agent has ended: no rule holds it, and those on its subtree are over.
    pub(super) fn end_presses(&mut self, step: &mut Step, ended: AgentKey) {
        self.agent_mut(ended).freezer.hold = Frost::Thawed;
        self.presses.values_mut().for_each(|press| press.held.retain(|held| *held != ended));
        let own: Vec<_> = self.presses.keys().copied().filter(|key| key.place == Some(ended)).collect();
        own.into_iter().for_each(|key| self.drop_press(step, key));
    }

    /// A user has resumed an agent: no rule holds it any more.
    pub(super) fn spare(&mut self, key: AgentKey) {
        self.agent_mut(key).freezer.hold = Frost::Thawed;
        for press in self.presses.values_mut().filter(|press| press.holds(key)) {
            press.held.retain(|held| *held != key);
            press.spared.insert(key);
        }
    }

    /// Says in a sentence what holds an agent.
    pub(super) fn held_by(&self, key: AgentKey) -> Option<String> {
        let (key, press) = self.presses.iter().find(|(_, press)| press.holds(key))?;
        Some(format!("the {} pressure in {} to be gone", press.rule.resource, self.place_name(*key)))
    }

    fn place_name(&self, key: PressKey) -> String {
        let id = key.place.and_then(|place| self.id_of(place));
        id.map_or_else(|| "the herd".to_owned(), ToString::to_string)
    }

    fn press_text(&self, key: PressKey) -> String {
        let PressureRule { resource, stall, above, window, .. } = &self.presses[&key].rule;
        let what = match resource {
            Resource::Memory => "memory",
            Resource::Cpu => "CPU time",
            Resource::Io => "I/O",
        };
        let who = match stall {
            Stall::Some => "some",
            Stall::Full => "all",
        };
        let (place, window) = (self.place_name(key), humantime::format_duration(*window));
        format!("in {place}, {who} tasks waited for {what} for more than {above} of {window}")
    }

    /// Tells of a step; it is about an agent, or about the rule's place.
    fn tell_press(&self, step: &mut Step, kind: Kind, key: PressKey, of: Option<AgentKey>) {
        let message = match kind {
            Kind::PressureResumes | Kind::PressureGone => {
                format!("{} pressure in {} is gone", self.presses[&key].rule.resource, self.place_name(key))
            }
            _ => self.press_text(key),
        };
        self.publish(step, kind, of.or(key.place), |event| event.message = message);
    }
}

fn limit_place(key: PressKey) -> LimitPlace {
    key.place.map_or(LimitPlace::Herd, LimitPlace::Agent)
}

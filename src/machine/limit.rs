//! What fits into what, and changes of limits while agents run.

use std::collections::BTreeMap;

use super::agent::{Home, Phase};
use super::input::{AgentKey, Effect, LimitPlace, ReplyTo};
use super::{Machine, Step};
use crate::model::applied::{APPLIED_MAX, Applied};
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::id::Level;
use crate::model::limits::{Knob, LevelLimits, LimitAbove, Limits};
use crate::model::request::{Answer, LimitScope};
use crate::model::spec::{AgentSpec, is_file_name};

/// A change of limits that is on a hand: the model has it already, and takes it back if the kernel refuses.
#[derive(Debug)]
pub(super) struct Change {
    reply: ReplyTo,
    scope: LimitScope,
    limits: Limits,
    /// What the agents had before.
    agents: BTreeMap<AgentKey, (Limits, Option<Limits>)>,
    /// What the levels and the herd had before.
    levels: BTreeMap<Level, LevelLimits>,
    herd: Limits,
}

/// How many changes of limits may wait for the one that is on a hand.
const WAITING_CHANGES_MOST: usize = 1000;

/// What becomes of limits that are taken back: what holds in their place, or no limit.
fn with_lifted(now: &Limits, lifted: &[Knob]) -> Limits {
    let none = |knob: Knob| knob.parse("max").ok();
    lifted.iter().filter_map(|knob| Some((*knob, now.get(*knob).cloned().or_else(|| none(*knob))?))).collect()
}

/// Returns what has to be written for `now` to become `wanted`.
fn difference(now: &Limits, wanted: &Limits) -> Limits {
    let lifted: Vec<Knob> = now.iter().map(|(knob, _)| knob).filter(|knob| wanted.get(*knob).is_none()).collect();
    let changed = wanted.iter().filter(|(knob, setting)| now.get(*knob) != Some(setting));
    let changed: Limits = changed.map(|(knob, setting)| (knob, setting.clone())).collect();
    changed.overlaid(&with_lifted(wanted, &lifted))
}

fn without(limits: &Limits, lifted: &[Knob]) -> Limits {
    let mut limits = limits.clone();
    lifted.iter().for_each(|knob| limits.remove(*knob));
    limits
}

/// Narrows `outer` by every setting of `inner` that is not wider.
fn tighten(outer: &mut Limits, inner: &Limits) {
    for (knob, setting) in inner.iter() {
        if !outer.get(knob).is_some_and(|theirs| setting.is_wider_than(theirs)) {
            outer.set(knob, setting.clone());
        }
    }
}

impl Machine {
    /// Counts with limits that hold for the whole herd from outside: nothing of the herd can have more. Returns what the herd itself is
    /// given beyond them, which is no more than a promise that cannot be kept.
    pub fn set_limits_above(&mut self, above: Vec<LimitAbove>) -> Vec<LimitAbove> {
        for limit in above {
            let known = self.above.get(&limit.knob);
            if !known.is_some_and(|known| limit.setting.is_wider_than(&known.setting)) {
                self.above.insert(limit.knob, limit);
            }
        }
        let is_exceeded = |above: &&LimitAbove| {
            self.config.limits.get(above.knob).is_some_and(|own| own.is_wider_than(&above.setting))
        };
        self.above.values().filter(is_exceeded).cloned().collect()
    }

    /// Returns the limits that hold for whatever is put below `parent`.
    fn inherited(&self, parent: Option<AgentKey>, level: Level) -> Limits {
        let mut limits: Limits = self.above.values().map(|it| (it.knob, it.setting.clone())).collect();
        tighten(&mut limits, &self.config.limits);
        let mut chain: Vec<AgentKey> =
            parent.into_iter().chain(parent.into_iter().flat_map(|key| self.ancestors(key))).collect();
        chain.reverse();
        for key in chain {
            let agent = &self.agents[&key];
            if let Some(profile) = self.config.levels.get(&agent.level).filter(|_| agent.parent.is_some()) {
                tighten(&mut limits, &profile.siblings);
            }
            tighten(&mut limits, &agent.limits);
        }
        if let Some(profile) = self.config.levels.get(&level).filter(|_| parent.is_some()) {
            tighten(&mut limits, &profile.siblings);
        }
        limits
    }

    /// Checks the limits of a new agent and returns those that its cgroup gets: its own over its level's.
    pub(super) fn limits_for(&self, spec: &AgentSpec, parent: Option<AgentKey>, level: Level) -> Result<Limits, Error> {
        self.check_own(&format!("spawn {}", spec.id), &spec.limits, parent, level)?;
        Ok(self.with_profile(&spec.limits, parent, level))
    }

    fn check_own(&self, operation: &str, own: &Limits, parent: Option<AgentKey>, level: Level) -> Result<(), Error> {
        self.check_offered(operation, own)?;
        if let Some((knob, mine, theirs)) = own.first_wider_than(&self.inherited(parent, level)) {
            let outside = self.above.get(&knob).filter(|above| above.setting == *theirs);
            let whose = outside
                .map_or("that it inherits".to_owned(), |above| format!("of {}, outside of the herd", above.path));
            let message = format!("{operation}: {knob} = {mine} is wider than the {theirs} {whose}");
            return Err(Error::new(Code::LimitTooWide, message)
                .remedy(format!("use {theirs} or less, or raise the limit above it")));
        }
        Ok(())
    }

    fn check_offered(&self, operation: &str, limits: &Limits) -> Result<(), Error> {
        match limits.iter().find_map(|(knob, _)| self.not_offered.get(&knob)) {
            None => Ok(()),
            Some(error) => Err(Error { message: format!("{operation}: {}", error.message), ..error.clone() }),
        }
    }

    /// Lays an agent's own limits over its level's `each`, which gives way to what is inherited.
    fn with_profile(&self, own: &Limits, parent: Option<AgentKey>, level: Level) -> Limits {
        let Some(profile) = self.config.levels.get(&level) else { return own.clone() };
        let inherited = self.inherited(parent, level);
        let each: Limits = profile
            .each
            .iter()
            .map(|(knob, setting)| match inherited.get(knob) {
                Some(theirs) if setting.is_wider_than(theirs) => (knob, theirs.clone()),
                _ => (knob, setting.clone()),
            })
            .collect();
        each.overlaid(own)
    }

    /// Says no to limits that a level's `total` cannot count, whatever room there is.
    pub(super) fn check_counted(&self, level: Level, limits: &Limits) -> Result<(), Error> {
        let Some(profile) = self.config.levels.get(&level) else { return Ok(()) };
        let is_counted = |knob| limits.get(knob).and_then(|setting| setting.amount()).is_some();
        let uncounted = profile.total.iter().find(|(knob, total)| total.amount().is_some() && !is_counted(*knob));
        let Some((knob, total)) = uncounted else { return Ok(()) };
        let message =
            format!("level {level} has a total of {knob} = {total}: an agent there needs a {knob} of its own");
        Err(Error::new(Code::BoundReached, message).remedy(format!("give it a {knob}, or the level an `each`")))
    }

    /// Says whether a level's `total` has room for limits, those of `instead` not counted.
    pub(super) fn total_room(&self, level: Level, limits: &Limits, instead: Option<AgentKey>) -> Result<(), Error> {
        self.check_counted(level, limits)?;
        let Some(profile) = self.config.levels.get(&level) else { return Ok(()) };
        for (knob, total) in profile.total.iter() {
            let Some(total_amount) = total.amount() else { continue };
            let Some(mine) = limits.get(knob).and_then(|setting| setting.amount()) else { continue };
            let members = self.levels.get(&level).into_iter().flatten().filter(|key| Some(**key) != instead);
            let used: u128 = members.map(|key| self.amount_held(*key, knob)).sum();
            if used + mine > total_amount {
                let message = format!(
                    "total of {knob} at level {level} = {total} is reached: {used} are given, {mine} more are asked for"
                );
                return Err(Error::new(Code::BoundReached, message).remedy("wait until one ends, or ask for less"));
            }
        }
        Ok(())
    }

    /// Returns how much of a total an agent takes: while a change is on a hand, the larger of before and after it.
    fn amount_held(&self, key: AgentKey, knob: Knob) -> u128 {
        let amount = |limits: &Limits| limits.get(knob).and_then(|setting| setting.amount()).unwrap_or(0);
        let before =
            self.changes.values().filter_map(|change| change.agents.get(&key)).map(|(limits, _)| amount(limits));
        before.max().unwrap_or(0).max(amount(&self.agents[&key].limits))
    }

    /// Returns the limits of an agent's children together.
    pub(super) fn siblings_limits(&self, parent: AgentKey) -> Limits {
        let level = self.agents[&parent].level.below();
        self.config.levels.get(&level).map(|profile| profile.siblings.clone()).unwrap_or_default()
    }

    /// Begins a change of limits, or has it wait until the one before is done: two hands would carry out two changes of one
    /// knob in an order that nobody chose, and what the kernel refuses must not be taken back from under another change.
    pub(super) fn ask_limit(
        &mut self,
        step: &mut Step,
        to: ReplyTo,
        scope: LimitScope,
        limits: Limits,
        lifted: &[Knob],
    ) -> Result<(), Error> {
        if let Some(knob) = lifted.iter().find(|knob| knob.parse("max").is_err()) {
            let error = Error::new(Code::BadValue, format!("change limits: {knob} cannot be taken back"));
            return Err(error.remedy("set it to another value"));
        }
        if self.changes.is_empty() {
            return self.change_limits(step, to, scope, &limits, lifted);
        }
        if self.waiting_changes.len() >= WAITING_CHANGES_MOST {
            let message = format!("change limits: {WAITING_CHANGES_MOST} changes wait already");
            return Err(Error::new(Code::BoundReached, message).remedy("ask again in a moment"));
        }
        self.waiting_changes.push_back((to, scope, limits, lifted.to_vec()));
        Ok(())
    }

    /// A change is over: begins those that waited, until one is on a hand, and lets the agents that waited for it start.
    fn next_change(&mut self, step: &mut Step) {
        let held = self.agents.values().filter(|agent| matches!(agent.phase, Phase::Held));
        self.dirty.extend(held.map(|agent| agent.key));
        self.queue_moved = true;
        while self.changes.is_empty() {
            let Some((to, scope, limits, lifted)) = self.waiting_changes.pop_front() else { return };
            if let Err(error) = self.change_limits(step, to, scope, &limits, &lifted) {
                step.reply(to, Err(error));
            }
        }
    }

    fn change_limits(
        &mut self,
        step: &mut Step,
        to: ReplyTo,
        scope: LimitScope,
        limits: &Limits,
        lifted: &[Knob],
    ) -> Result<(), Error> {
        if limits.is_empty() && lifted.is_empty() {
            return Err(Error::new(Code::BadValue, "no limit is given").remedy("as in memory_max=512MiB"));
        }
        self.check_offered("change limits", limits)?;
        let mut change = Change {
            reply: to,
            scope: scope.clone(),
            limits: limits.overlaid(&with_lifted(&Limits::default(), lifted)),
            agents: BTreeMap::new(),
            levels: self.config.levels.clone(),
            herd: self.config.limits.clone(),
        };
        let settings = match scope {
            LimitScope::Agent(id) => self.limit_agent(&mut change, &id, limits, lifted)?,
            LimitScope::Herd => {
                self.config.limits = without(&self.config.limits, lifted).overlaid(limits);
                vec![(LimitPlace::Herd, change.limits.clone())]
            }
            LimitScope::Each(level) => self.limit_each(&mut change, level, limits, lifted)?,
            LimitScope::Siblings(level) => self.limit_siblings(level, limits, lifted)?,
            LimitScope::Total(level) => {
                self.check_level(level)?;
                let profile = self.config.levels.entry(level).or_default();
                profile.total = without(&profile.total, lifted).overlaid(limits);
                Vec::new()
            }
        };
        let key = self.fresh();
        self.record_limits(step, &change);
        self.changes.insert(key, change);
        self.queue_moved = true;
        if settings.is_empty() {
            self.tell_change(step, key);
        } else {
            step.order(Effect::SetLimits { change: key, settings });
        }
        Ok(())
    }

    /// Has a change, or its taking back, written down.
    fn record_limits(&mut self, step: &mut Step, change: &Change) {
        self.unrecorded.extend(change.agents.keys());
        if change.levels != self.config.levels || change.herd != self.config.limits {
            step.order(Effect::RecordHerd(Box::new(self.herd_record())));
        }
    }

    fn check_level(&self, level: Level) -> Result<(), Error> {
        let most = self.config.bounds.max_levels;
        if level.0 < most {
            return Ok(());
        }
        Err(Error::new(Code::BadValue, format!("there is no level {level}: max_levels is {most}"))
            .remedy(format!("use 0 to {}", most - 1)))
    }

    fn limit_agent(
        &mut self,
        change: &mut Change,
        id: &crate::model::id::AgentId,
        limits: &Limits,
        lifted: &[Knob],
    ) -> Result<Vec<(LimitPlace, Limits)>, Error> {
        let key = self.find(id)?;
        let agent = &self.agents[&key];
        self.check_is_settable(key)?;
        self.check_own(&format!("limit {id}"), limits, agent.parent, agent.level)?;
        let is_made = agent.home == Home::Made;
        let own = without(&agent.spec.limits, lifted).overlaid(limits);
        let given = self.with_profile(&own, agent.parent, agent.level);
        let kept = lifted.iter().filter_map(|knob| Some((*knob, given.get(*knob)?.clone())));
        let wanted = without(&agent.limits, lifted).overlaid(&kept.collect()).overlaid(limits);
        let written = limits.overlaid(&with_lifted(&wanted, lifted));
        // Lower is always right, were the total even lower; higher must have room.
        if agent.is_admitted() && wanted.first_wider_than(&agent.limits).is_some() {
            self.total_room(agent.level, &wanted, Some(key))?;
        }
        let agent = self.agent_mut(key);
        change.agents.insert(key, (std::mem::replace(&mut agent.limits, wanted), Some(agent.spec.limits.clone())));
        std::sync::Arc::make_mut(&mut agent.spec).limits = own;
        Ok(if is_made { vec![(LimitPlace::Agent(key), written)] } else { Vec::new() })
    }

    fn check_is_settable(&self, key: AgentKey) -> Result<(), Error> {
        let agent = &self.agents[&key];
        let state = agent.state();
        if agent.has_ended() || agent.home == Home::Making {
            let message = format!("limit {}: it is {state}", agent.spec.id);
            let remedy = if agent.has_ended() { "limits are for agents that live" } else { "ask again when it runs" };
            return Err(Error::new(Code::WrongState, message).remedy(remedy));
        }
        Ok(())
    }

    fn limit_each(
        &mut self,
        change: &mut Change,
        level: Level,
        limits: &Limits,
        lifted: &[Knob],
    ) -> Result<Vec<(LimitPlace, Limits)>, Error> {
        self.check_level(level)?;
        let members: Vec<AgentKey> = self
            .agents
            .values()
            .filter(|agent| agent.level == level && !agent.has_ended())
            .map(|agent| agent.key)
            .collect();
        for key in &members {
            self.check_is_settable(*key)?;
        }
        let profile = self.config.levels.entry(level).or_default();
        profile.each = without(&profile.each, lifted).overlaid(limits);
        let wanted = |key: &AgentKey| {
            let agent = &self.agents[key];
            (*key, self.with_profile(&agent.spec.limits, agent.parent, level))
        };
        let wanted: BTreeMap<AgentKey, Limits> = members.iter().map(wanted).collect();
        if let Err(error) = self.check_total(level, &wanted) {
            self.config.levels.clone_from(&change.levels);
            return Err(error);
        }
        let mut settings = Vec::new();
        for (key, wanted) in wanted {
            let agent = &self.agents[&key];
            let changed = difference(&agent.limits, &wanted);
            let is_made = agent.home == Home::Made;
            let agent = self.agent_mut(key);
            change.agents.insert(key, (std::mem::replace(&mut agent.limits, wanted), None));
            if is_made && !changed.is_empty() {
                settings.push((LimitPlace::Agent(key), changed));
            }
        }
        Ok(settings)
    }

    /// Says no if the agents of a level would have more than its total, and more than now.
    fn check_total(&self, level: Level, wanted: &BTreeMap<AgentKey, Limits>) -> Result<(), Error> {
        let total = self.config.level(level).total;
        for (knob, total) in total.iter() {
            let amount = |limits: &Limits| limits.get(knob).and_then(|setting| setting.amount()).unwrap_or(0);
            let admitted = || wanted.iter().filter(|(key, _)| self.agents[key].is_admitted());
            let before: u128 = admitted().map(|(key, _)| amount(&self.agents[key].limits)).sum();
            let after: u128 = admitted().map(|(_, limits)| amount(limits)).sum();
            if total.amount().is_some_and(|total| after > total) && after > before {
                let message = format!("total of {knob} at level {level} = {total}: {after} would be given");
                return Err(Error::new(Code::BoundReached, message).remedy("ask for less, or raise the total first"));
            }
        }
        Ok(())
    }

    fn limit_siblings(
        &mut self,
        level: Level,
        limits: &Limits,
        lifted: &[Knob],
    ) -> Result<Vec<(LimitPlace, Limits)>, Error> {
        self.check_level(level)?;
        if level.0 == 0 {
            let error = Error::new(Code::BadValue, "the agents of level 0 have no parent");
            return Err(error.remedy("limit the herd: it is what they have in common"));
        }
        if let Some((knob, mine, theirs)) = limits.first_wider_than(&self.config.limits) {
            let message = format!("level {level} siblings: {knob} = {mine} is wider than the herd's {theirs}");
            return Err(Error::new(Code::LimitTooWide, message).remedy("lower it, or raise the herd's"));
        }
        let in_making =
            self.agents.values().find(|agent| agent.level.below() == level && agent.nursery == Home::Making);
        if let Some(parent) = in_making {
            let message = format!("level {level} siblings: the first child of {} is being started", parent.spec.id);
            return Err(Error::new(Code::WrongState, message).remedy("ask again when it runs"));
        }
        let profile = self.config.levels.entry(level).or_default();
        profile.siblings = without(&profile.siblings, lifted).overlaid(limits);
        let written = limits.overlaid(&with_lifted(&Limits::default(), lifted));
        let parents = self.agents.values().filter(|agent| agent.level.below() == level && agent.nursery == Home::Made);
        Ok(parents.map(|agent| (LimitPlace::Children(agent.key), written.clone())).collect())
    }

    /// Remembers what an applied file has given; nothing, if that is so.
    pub(super) fn ask_declare(
        &mut self,
        step: &mut Step,
        to: ReplyTo,
        file: String,
        applied: Applied,
    ) -> Result<(), Error> {
        if !is_file_name(&file) {
            let error = Error::new(Code::BadValue, "declare: a file's name has 1 to 63 printable characters");
            return Err(error.remedy("give it another one with --name"));
        }
        if self.applied.len() >= APPLIED_MAX && !self.applied.contains_key(&file) {
            let error =
                Error::new(Code::BoundReached, format!("declare {file}: {APPLIED_MAX} files are applied already"));
            return Err(error.remedy("apply fewer files, each with more agents"));
        }
        if applied.is_empty() {
            self.applied.remove(&file);
        } else {
            self.applied.insert(file, applied);
        }
        step.order(Effect::RecordHerd(Box::new(self.herd_record())));
        step.reply(to, Ok(Answer::Done));
        Ok(())
    }

    /// Returns what each applied file has given.
    #[must_use]
    pub fn applied(&self) -> &BTreeMap<String, Applied> {
        &self.applied
    }

    /// Goes on with what the machine before has remembered of applied files.
    pub fn restore_applied(&mut self, applied: BTreeMap<String, Applied>) {
        self.applied = applied;
    }

    pub(super) fn limits_set(&mut self, step: &mut Step, key: u64) {
        self.tell_change(step, key);
        self.next_change(step);
    }

    fn tell_change(&mut self, step: &mut Step, key: u64) {
        let Some(change) = self.changes.remove(&key) else { return };
        let level = |level: &Level| self.config.levels.get(level).cloned().unwrap_or_default();
        let now = match &change.scope {
            LimitScope::Agent(id) => self.ids.get(id).map(|key| self.agents[key].limits.clone()).unwrap_or_default(),
            LimitScope::Each(of) => level(of).each,
            LimitScope::Siblings(of) => level(of).siblings,
            LimitScope::Total(of) => level(of).total,
            LimitScope::Herd => self.config.limits.clone(),
        };
        let of = match &change.scope {
            LimitScope::Agent(_) => String::new(),
            LimitScope::Each(level) => format!("each of level {level}: "),
            LimitScope::Siblings(level) => format!("siblings of level {level}: "),
            LimitScope::Total(level) => format!("total of level {level}: "),
            LimitScope::Herd => "herd: ".to_owned(),
        };
        let subject = match &change.scope {
            LimitScope::Agent(id) => self.ids.get(id).copied(),
            _ => None,
        };
        self.publish(step, Kind::LimitsChanged, subject, |event| {
            event.message = format!("{of}{}", change.limits);
            event.limits = Some(now.clone());
        });
        step.reply(change.reply, Ok(Answer::Limits(now)));
    }

    pub(super) fn limits_refused(&mut self, step: &mut Step, key: u64, error: Error) {
        let Some(mut change) = self.changes.remove(&key) else { return };
        for (key, (limits, own)) in std::mem::take(&mut change.agents) {
            self.unrecorded.insert(key);
            if let Some(agent) = self.agents.get_mut(&key) {
                agent.limits = limits;
                if let Some(own) = own {
                    std::sync::Arc::make_mut(&mut agent.spec).limits = own;
                }
            }
        }
        self.queue_moved = true;
        std::mem::swap(&mut self.config.levels, &mut change.levels);
        std::mem::swap(&mut self.config.limits, &mut change.herd);
        self.record_limits(step, &change);
        step.reply(change.reply, Err(error));
        self.next_change(step);
    }
}

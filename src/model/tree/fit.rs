//! What fits into what: no limit is wider than what stands above it, and a level's total has room for its agents.

use std::collections::BTreeMap;

use super::family::Family;
use super::mistakes::Mistakes;
use super::read::{Draft, Drafts, Placed};
use crate::model::id::Level;
use crate::model::limits::{Limits, Setting};
use crate::model::spec::Admission;

pub(super) fn check(drafts: &Drafts, family: &Family, mistakes: &mut Mistakes<'_>) {
    check_profiles(drafts, mistakes);
    let mut effective: Vec<Limits> = vec![Limits::default(); drafts.agents.len()];
    let mut inherited: Vec<Limits> = effective.clone();
    for index in &family.order {
        let Some(level) = family.levels[*index] else { continue };
        let mut outer = drafts.config.limits.clone();
        if let Some(parent) = family.parents[*index] {
            outer = inherited[parent].clone();
            if let Some(profile) = drafts.levels.get(&level) {
                tighten(&mut outer, &profile.siblings.limits);
            }
        }
        let agent = &drafts.agents[*index];
        check_agent(agent, &outer, mistakes);
        effective[*index] = with_each(drafts, level, &outer, &agent.limits.limits);
        tighten(&mut outer, &effective[*index]);
        inherited[*index] = outer;
    }
    check_totals(drafts, family, &effective, mistakes);
}

/// Narrows `outer` by every setting of `inner` that is not wider.
fn tighten(outer: &mut Limits, inner: &Limits) {
    for (knob, setting) in inner.iter() {
        if !outer.get(knob).is_some_and(|theirs| setting.is_wider_than(theirs)) {
            outer.set(knob, setting.clone());
        }
    }
}

/// Lays an agent's limits over its level's `each`, which gives way to what is inherited.
fn with_each(drafts: &Drafts, level: Level, outer: &Limits, own: &Limits) -> Limits {
    let Some(profile) = drafts.levels.get(&level) else { return own.clone() };
    let each = profile.each.limits.iter().map(|(knob, setting)| match outer.get(knob) {
        Some(theirs) if setting.is_wider_than(theirs) => (knob, theirs.clone()),
        _ => (knob, setting.clone()),
    });
    each.collect::<Limits>().overlaid(own)
}

fn check_agent(agent: &Draft, outer: &Limits, mistakes: &mut Mistakes<'_>) {
    tell_wider(&agent.name, &agent.limits, outer, "it inherits", mistakes);
}

/// Tells every setting that is wider than the one around it.
fn tell_wider(whose: &str, inner: &Placed, outer: &Limits, from: &str, mistakes: &mut Mistakes<'_>) {
    for (knob, mine) in inner.limits.iter() {
        let Some(theirs) = outer.get(knob).filter(|theirs| mine.is_wider_than(theirs)) else { continue };
        let (mine, theirs) = (shown(mine), shown(theirs));
        let message = format!("{whose}: {knob} = {mine} is wider than the {theirs} that {from}");
        let place = inner.places.get(&knob).cloned().unwrap_or(0..0);
        mistakes.add(&place, message, format!("use {theirs} or less, or raise the limit above it"));
    }
}

fn shown(setting: &Setting) -> String {
    match setting {
        Setting::Bytes(bytes) => bytes.to_string(),
        other => other.to_string(),
    }
}

fn check_profiles(drafts: &Drafts, mistakes: &mut Mistakes<'_>) {
    let most = drafts.config.bounds.max_levels;
    for (level, profile) in &drafts.levels {
        let parts = [("each", &profile.each), ("siblings", &profile.siblings), ("total", &profile.total)];
        let first = parts.iter().flat_map(|(_, part)| part.places.values()).min_by_key(|place| place.start);
        if let Some(place) = first.filter(|_| level.0 >= most) {
            let message = format!("there is no level {level}: max_levels = {most} allows 0 to {}", most - 1);
            mistakes.add(place, message, "raise max_levels in [herd] or drop the level");
        }
        for (part, placed) in &parts[..2] {
            let whose = format!("level {level}, {part}");
            tell_wider(&whose, placed, &drafts.config.limits, "the whole herd has", mistakes);
        }
        if let Some(place) = profile.siblings.places.values().next().filter(|_| level.0 == 0) {
            let message = "the agents of level 0 have no parent, so no siblings' limit";
            mistakes.add(place, message, "limit the herd: it is what they have in common");
        }
        for (knob, setting) in profile.total.limits.iter().filter(|(_, setting)| setting.amount().is_none()) {
            let place = profile.total.places.get(&knob).cloned().unwrap_or(0..0);
            let message = format!("level {level}, total: {knob} = {setting} is no amount that can be summed");
            mistakes.add(&place, message, "a total takes sizes, numbers of tasks and CPU quotas");
        }
    }
}

/// Tells which agents a level's total would refuse.
fn check_totals(drafts: &Drafts, family: &Family, effective: &[Limits], mistakes: &mut Mistakes<'_>) {
    let mut used: BTreeMap<_, u128> = BTreeMap::new();
    for index in &family.order {
        let (agent, Some(level)) = (&drafts.agents[*index], family.levels[*index]) else { continue };
        let Some(profile) = drafts.levels.get(&level) else { continue };
        for (knob, total) in profile.total.limits.iter() {
            let Some(most) = total.amount() else { continue };
            let Some(mine) = effective[*index].get(knob).and_then(Setting::amount) else {
                let message =
                    format!("level {level} has a total of {knob} = {}, and {} has no {knob}", shown(total), agent.name);
                mistakes.add(&agent.at, message, format!("give it a {knob}, or the level an `each`"));
                continue;
            };
            let sum = used.entry((level, knob)).or_default();
            if *sum + mine <= most {
                *sum += mine;
            } else if agent.spec.admission == Admission::Refuse {
                let message =
                    format!("{} is one too many for level {level}'s total of {knob} = {}", agent.name, shown(total));
                let place = agent.limits.places.get(&knob).unwrap_or(&agent.at);
                mistakes.add(
                    place,
                    message,
                    "ask for less, raise the total, or let it wait with admission = \"queue\"",
                );
            }
        }
    }
}

//! Who is whose child: duplicate names, unknown parents, cycles, levels, and the bounds on the tree's shape.

use std::collections::BTreeMap;

use super::mistakes::{Mistakes, nearest};
use super::read::{Draft, Drafts};
use crate::model::config::Bounds;
use crate::model::id::Level;
use crate::model::spec::Admission;

/// The tree that the drafts make.
pub(super) struct Family {
    /// Each draft's parent, by index, if it has one that exists.
    pub parents: Vec<Option<usize>>,
    /// Each draft's level, if it hangs on a root.
    pub levels: Vec<Option<Level>>,
    /// The drafts by name; of several with the same one the first.
    pub names: BTreeMap<String, usize>,
    /// The drafts that hang on a root: parents before children, otherwise as in the file.
    pub order: Vec<usize>,
}

impl Family {
    pub(super) fn of(drafts: &Drafts, mistakes: &mut Mistakes<'_>) -> Self {
        let agents = &drafts.agents;
        let names = names(agents, mistakes);
        let parents = parents(agents, &names, mistakes);
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); agents.len()];
        for (child, parent) in parents.iter().enumerate() {
            if let Some(parent) = parent {
                children[*parent].push(child);
            }
        }
        let mut levels = vec![None; agents.len()];
        let mut order = Vec::with_capacity(agents.len());
        let roots = (0..agents.len()).filter(|index| agents[*index].parent.is_none()).rev();
        let mut open: Vec<(usize, Level)> = roots.map(|root| (root, Level(0))).collect();
        while let Some((index, level)) = open.pop() {
            levels[index] = Some(level);
            order.push(index);
            open.extend(children[index].iter().rev().map(|child| (*child, level.below())));
        }
        cycles(agents, &parents, &levels, mistakes);
        let names = names.into_iter().map(|(name, index)| (name.to_owned(), index)).collect();
        let family = Self { parents, levels, names, order };
        family.check_levels(drafts, mistakes);
        family.check_bounds(agents, &drafts.config.bounds, mistakes);
        family.check_supervision(agents, &children, mistakes);
        family.check_budgets(agents, mistakes);
        family
    }

    fn check_levels(&self, drafts: &Drafts, mistakes: &mut Mistakes<'_>) {
        let most = drafts.config.bounds.max_levels;
        for index in &self.order {
            let (agent, Some(level)) = (&drafts.agents[*index], self.levels[*index]) else { continue };
            if level.0 == most {
                let message =
                    format!("{} stands at level {level}, max_levels = {most} allows 0 to {}", agent.name, most - 1);
                mistakes.add(&agent.at, message, "choose a parent nearer to the root, or raise max_levels in [herd]");
            }
            if let Some((stated, at)) = agent.spec.level.zip(agent.keys.get("level")).filter(|it| it.0 != level) {
                let message = format!("{} has level {stated} here, by its parent it is {level}", agent.name);
                mistakes.add(at, message, "drop the key: the level follows from the parent");
            }
        }
    }

    /// Tells what is said about children or a parent that are not there.
    fn check_supervision(&self, agents: &[Draft], children: &[Vec<usize>], mistakes: &mut Mistakes<'_>) {
        for (index, agent) in agents.iter().enumerate() {
            let at = |key: &str| agent.keys.get(key).unwrap_or(&agent.at);
            // Agents with a command may spawn their children themselves.
            if agent.keys.contains_key("children") && agent.spec.is_group() && children[index].is_empty() {
                let message = format!("{} has a word on its children, and has none in this file", agent.name);
                mistakes.add(at("children"), message, "give it agents, or drop the key");
            }
            if agent.spec.significant && agent.parent.is_none() {
                let message = format!("{} is significant, and has no parent that could end with it", agent.name);
                mistakes.add(at("significant"), message, "give it a parent, or drop the key");
            }
        }
    }

    /// Tells lifetime budgets that are wider than one above them, or too small for this very file.
    fn check_budgets(&self, agents: &[Draft], mistakes: &mut Mistakes<'_>) {
        let mut narrowest: Vec<Option<(u32, usize)>> = vec![None; agents.len()];
        let mut below: Vec<u32> = vec![0; agents.len()];
        for index in self.order.iter().rev() {
            if let Some(parent) = self.parents[*index] {
                below[parent] += below[*index] + 1;
            }
        }
        for index in &self.order {
            let above = self.parents[*index].and_then(|parent| narrowest[parent]);
            narrowest[*index] = above;
            let agent = &agents[*index];
            let Some(own) = agent.spec.spawn_budget else { continue };
            let place = agent.keys.get("spawn_budget").unwrap_or(&agent.at);
            if let Some((most, whose)) = above.filter(|(most, _)| own > *most) {
                let whose = &agents[whose].name;
                let message = format!("{}: spawn_budget = {own} is wider than the {most} of {whose}", agent.name);
                mistakes.add(place, message, format!("use {most} or less"));
            } else {
                narrowest[*index] = Some((own, *index));
            }
            if below[*index] > own {
                let count = below[*index];
                let message =
                    format!("{}: spawn_budget = {own}, and this file has {count} agents below it", agent.name);
                mistakes.add(place, message, "raise it, or drop agents");
            }
        }
    }

    /// Tells the first agent beyond each bound. One that may queue waits instead.
    fn check_bounds(&self, agents: &[Draft], bounds: &Bounds, mistakes: &mut Mistakes<'_>) {
        let mut at_level: BTreeMap<Level, u32> = BTreeMap::new();
        let mut below: BTreeMap<usize, u32> = BTreeMap::new();
        let mut all = 0;
        for index in &self.order {
            let agent = &agents[*index];
            let Some(level) = self.levels[*index].filter(|_| agent.spec.admission == Admission::Refuse) else {
                continue;
            };
            let mut count = |name: &str, count: &mut u32, most: u32, of: String| {
                *count += 1;
                if *count == most.saturating_add(1) {
                    let message = format!("{} is one too many: {name} = {most}, {of}", agent.name);
                    let remedy = format!("raise {name} in [herd], or let it wait with admission = \"queue\"");
                    mistakes.add(&agent.at, message, remedy);
                }
            };
            count("max_agents", &mut all, bounds.max_agents, "over the whole herd".to_owned());
            let of = format!("at level {level}, over all branches");
            count("max_agents_per_level", at_level.entry(level).or_default(), bounds.max_agents_per_level, of);
            if let Some(parent) = self.parents[*index] {
                let of = format!("below {}", agents[parent].name);
                count("max_children", below.entry(parent).or_default(), bounds.max_children, of);
            }
        }
    }
}

/// Maps each name to the first draft that has it.
fn names<'a>(agents: &'a [Draft], mistakes: &mut Mistakes<'_>) -> BTreeMap<&'a str, usize> {
    let mut names = BTreeMap::new();
    for (index, agent) in agents.iter().enumerate() {
        let first = *names.entry(agent.name.as_str()).or_insert(index);
        if first != index {
            let (line, column) = mistakes.place(agents[first].at.start);
            let message = format!("{} is declared twice: the first time at line {line}, column {column}", agent.name);
            mistakes.add(&agent.at, message, "ids are unique in the whole herd: rename one");
        }
    }
    names
}

fn parents(agents: &[Draft], names: &BTreeMap<&str, usize>, mistakes: &mut Mistakes<'_>) -> Vec<Option<usize>> {
    let mut find = |agent: &Draft| {
        let (name, at) = agent.parent.as_ref()?;
        let found = names.get(name.as_str()).copied();
        // What seems to lack may be in the part of the file that could not be read.
        if found.is_none() && !mistakes.is_torn && !mistakes.is_full() {
            let others: Vec<&str> = names.keys().copied().filter(|other| *other != agent.name).collect();
            let message = format!("the parent of {}, {name}, is not in this file", agent.name);
            mistakes.add(at, message, nearest(name, &others));
        }
        found
    };
    agents.iter().map(&mut find).collect()
}

/// Tells each cycle once, at its first member in the file.
fn cycles(agents: &[Draft], parents: &[Option<usize>], levels: &[Option<Level>], mistakes: &mut Mistakes<'_>) {
    let mut is_seen = vec![false; agents.len()];
    for start in 0..agents.len() {
        let mut path = Vec::new();
        let mut at = Some(start);
        while let Some(index) = at.filter(|index| levels[*index].is_none() && !is_seen[*index]) {
            is_seen[index] = true;
            path.push(index);
            at = parents[index];
        }
        // Only a path that comes back to itself is a new cycle; others end at one that is told, or at a lost parent.
        let Some(begin) = at.and_then(|index| path.iter().position(|member| *member == index)) else { continue };
        let cycle = &mut path[begin..];
        let first = (0..cycle.len()).min_by_key(|place| cycle[*place]).unwrap_or(0);
        cycle.rotate_left(first);
        let mut names: Vec<&str> = cycle.iter().map(|index| agents[*index].name.as_str()).collect();
        names.push(&agents[cycle[0]].name);
        let agent = &agents[cycle[0]];
        let place = agent.parent.as_ref().map_or(&agent.at, |(_, at)| at);
        let message = format!("the parents go in a circle: {}", names.join(" -> "));
        mistakes.add(place, message, "one of them needs another parent, or none");
    }
}

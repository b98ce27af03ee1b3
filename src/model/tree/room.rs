//! Who would be refused since what it needs first has to wait for room: it stands below that one or starts after it, and may not
//! wait itself.
//!
//! The agents are let in one after another as they are started, and nobody has ended by then. Whom a level's total has wait is not
//! looked at.

use std::collections::BTreeMap;

use super::family::Family;
use super::mistakes::Mistakes;
use super::read::Draft;
use crate::model::config::Bounds;
use crate::model::spec::Admission;

pub(super) fn check(agents: &[Draft], family: &Family, order: &[usize], bounds: &Bounds, mistakes: &mut Mistakes<'_>) {
    let (mut all, mut at_level, mut below) = (0, BTreeMap::new(), BTreeMap::new());
    let mut waits = vec![false; agents.len()];
    for index in order {
        let (agent, parent) = (&agents[*index], family.parents[*index]);
        let named = agent.after.iter().filter_map(|(name, at)| Some((*family.names.get(name)?, at)));
        let mut before = parent.map(|parent| (parent, &agent.at)).into_iter().chain(named);
        let first = before.find(|(first, _)| waits[*first]);
        let siblings = below.entry(parent).or_insert(0);
        let level = at_level.entry(family.levels[*index]).or_insert(0);
        let is_full = all >= bounds.max_agents
            || *level >= bounds.max_agents_per_level
            || (parent.is_some() && *siblings >= bounds.max_children);
        match first {
            _ if agent.spec.admission == Admission::Queue && (is_full || first.is_some()) => waits[*index] = true,
            Some((first, at)) => {
                let (name, first) = (&agent.name, &agents[first].name);
                let message = format!("{name} may not wait, and {first} has to wait for room before it");
                let remedy = format!(
                    "let {name} wait, too, with admission = \"queue\", or raise the bound that {first} waits for"
                );
                mistakes.add(at, message, remedy);
            }
            None => (all, *level, *siblings) = (all + 1, *level + 1, *siblings + 1),
        }
    }
}

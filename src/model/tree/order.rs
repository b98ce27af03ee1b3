//! Who starts after whom: unknown names, circles, and an order of the starts in which each finds what it waits for.
//!
//! The start of an agent waits for those that it names (`after`) and for its parent's. Where these waits go in a circle, nobody
//! of it would ever start.

use super::family::Family;
use super::mistakes::{Mistakes, nearest};
use super::read::Draft;

/// One draft on the way through what it waits for.
struct Stop {
    index: usize,
    /// What it waits for: its parent first.
    waits: Vec<usize>,
    /// How many of them were looked at.
    seen: usize,
}

impl Stop {
    fn at(index: usize, waits: &[Vec<usize>]) -> Self {
        Self { index, waits: waits[index].clone(), seen: 0 }
    }
}

/// Returns the drafts that hang on a root in an order in which they can be started: as in the file, as far as it can be.
pub(super) fn starts(agents: &[Draft], family: &Family, mistakes: &mut Mistakes<'_>) -> Vec<usize> {
    let mut waits: Vec<Vec<usize>> = family.parents.iter().map(|parent| parent.iter().copied().collect()).collect();
    for (index, agent) in agents.iter().enumerate() {
        waits[index].extend(named(agent, family, mistakes));
    }
    let mut order = Vec::with_capacity(agents.len());
    let mut state = vec![State::Unseen; agents.len()];
    for root in &family.order {
        // What depends on what may be as deep as the file has agents: no recursion.
        let mut path = Vec::new();
        if state[*root] == State::Unseen {
            state[*root] = State::Open;
            path.push(Stop::at(*root, &waits));
        }
        while let Some(stop) = path.last_mut() {
            let Some(next) = stop.waits.get(stop.seen).copied() else {
                state[stop.index] = State::Done;
                order.push(stop.index);
                path.pop();
                continue;
            };
            stop.seen += 1;
            match state[next] {
                State::Done => {}
                State::Unseen => {
                    state[next] = State::Open;
                    path.push(Stop::at(next, &waits));
                }
                State::Open => tell_circle(agents, family, &path, next, mistakes),
            }
        }
    }
    order
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unseen,
    Open,
    Done,
}

/// Finds the agents that one names, and tells those that there are not.
fn named(agent: &Draft, family: &Family, mistakes: &mut Mistakes<'_>) -> Vec<usize> {
    let mut found = Vec::new();
    for (name, at) in &agent.after {
        match family.names.get(name) {
            // In a circle of parents nobody stands; that is told where the parents are.
            Some(index) if family.levels[*index].is_none() => {}
            Some(index) => found.push(*index),
            None if mistakes.is_torn || mistakes.is_full() => {}
            None => {
                let others: Vec<&str> =
                    family.names.keys().map(String::as_str).filter(|other| *other != agent.name).collect();
                let message = format!("{} starts after {name}, which is not in this file", agent.name);
                mistakes.add(at, message, nearest(name, &others));
            }
        }
    }
    found
}

/// Tells the circle that a path closes at one of its stops, at the first `after` in it.
fn tell_circle(agents: &[Draft], family: &Family, path: &[Stop], closes_at: usize, mistakes: &mut Mistakes<'_>) {
    let begin = path.iter().position(|stop| stop.index == closes_at).unwrap_or(0);
    let mut circle: Vec<usize> = path[begin..].iter().map(|stop| stop.index).collect();
    let first = (0..circle.len()).min_by_key(|place| circle[*place]).unwrap_or(0);
    circle.rotate_left(first);
    circle.push(circle[0]);
    let is_after = |pair: &&[usize]| family.parents[pair[0]] != Some(pair[1]);
    // A circle of parents alone is no path from a root.
    let Some(pair) = circle.windows(2).find(is_after) else { return };
    let (waiter, name) = (&agents[pair[0]], &agents[pair[1]].name);
    let at = waiter.after.iter().find(|(named, _)| named == name).map_or(&waiter.at, |(_, at)| at);
    let names: Vec<&str> = circle.iter().map(|index| agents[*index].name.as_str()).collect();
    let below = circle.windows(2).find(|pair| !is_after(pair));
    let why = below.map(|pair| {
        let (child, parent) = (&agents[pair[0]].name, &agents[pair[1]].name);
        format!("; {child} stands below {parent} and starts after it anyway")
    });
    let message = format!("the starts wait in a circle: {}{}", names.join(" -> "), why.unwrap_or_default());
    mistakes.add(at, message, format!("drop {name} from the after of {}, or another one of the circle", waiter.name));
}

//! Who uses most of what the limit of somebody above is about, at the time at which that limit is hit.
//!
//! Whose limit it is has the blame, and who ran into it may be anybody: neither says where it went. So the largest branch below is
//! looked for, then the largest below that one, as long as it alone makes up more than half of the one above. What that reads is
//! bounded for each second; beyond it, nobody is named.

use std::time::Duration;

use super::memory::Holder;
use crate::kernel::cgroup::{Cgroups, Place};
use crate::model::limits::Controller;
use crate::model::status::Largest;
use crate::model::time::Monotonic;

/// How many files may be read in a second: that takes about 10 ms.
const READS: u32 = 2_000;

/// What may still be read in a second.
#[derive(Debug, Default)]
pub(super) struct Reads {
    left: u32,
    until: Monotonic,
}

impl Reads {
    fn left(&mut self, now: Monotonic) -> &mut u32 {
        if now >= self.until {
            *self = Self { left: READS, until: now + Duration::from_secs(1) };
        }
        &mut self.left
    }
}

/// A look at the kernel's counters, now.
pub(super) struct Look<'a> {
    pub cgroups: &'a Cgroups,
    pub reads: &'a mut Reads,
    pub now: Monotonic,
}

impl Look<'_> {
    /// Finds who uses most below a place, itself included. `killed` is where a process was killed for it, and what that one had: it is
    /// counted in. None where nobody is below, or not all can be looked at.
    pub fn largest(&mut self, top: &Place, controller: Controller, killed: Option<(&Place, u64)>) -> Option<Largest> {
        let (cgroups, reads) = (self.cgroups, self.reads.left(self.now));
        let (mut at, mut found) = (top.clone(), None);
        while let Some((place, amount)) = largest_branch(cgroups, &at, controller, killed, reads) {
            match found {
                Some((_, whole)) if place == at || amount <= whole / 2 => break,
                None if place == at => {
                    found = Some((place, amount));
                    break;
                }
                _ => at = place.clone(),
            }
            found = Some((place, amount));
        }
        let (place, amount) = found?;
        Some(Largest { agent: place.name().parse().ok()?, amount })
    }
}

/// Returns the agent right below a place whose subtree uses most; the place's own if its own run uses more than any of them. None if
/// nobody is below.
fn largest_branch(
    cgroups: &Cgroups,
    at: &Place,
    controller: Controller,
    killed: Option<(&Place, u64)>,
    reads: &mut u32,
) -> Option<(Place, u64)> {
    let below = cgroups.below(at).ok()?;
    let (runs, branches) = match Holder::of(at) {
        Holder::Herd | Holder::Children(..) => (Vec::new(), below),
        Holder::Agent(_) => {
            let (levels, runs): (Vec<_>, Vec<_>) = below.into_iter().partition(|it| it.name().starts_with("level-"));
            (runs, levels.iter().flat_map(|level| cgroups.below(level).unwrap_or_default()).collect())
        }
    };
    let mut used = |place: &Place, of_the_dead: u64| {
        let used = cgroups.used(place, controller, reads).ok().flatten();
        used.map(|used| used + of_the_dead)
    };
    let dead_in = |branch: &Place| killed.filter(|(place, _)| place.is_within(branch)).map_or(0, |(_, bytes)| bytes);
    let all: Option<Vec<_>> = branches.into_iter().map(|it| Some((used(&it, dead_in(&it))?, it))).collect();
    let (most, branch) = all?.into_iter().max()?;
    let own = runs.iter().map(|run| used(run, 0)).sum::<Option<u64>>()?;
    let own = own + killed.filter(|(place, _)| *place == at).map_or(0, |(_, bytes)| bytes);
    Some(if own > most { (at.clone(), own) } else { (branch, most) })
}

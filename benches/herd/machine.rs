//! How fast the machine decides, and whether that depends on how many it decides about.

use std::time::Instant;

use crate::Plan;
use crate::flock::Flock;
use crate::measure::{Spread, Table, Target};

const RESTARTS: usize = 2_000;

pub fn machine(plan: &Plan, table: &mut Table) {
    for agents in [10, 1_000, 100_000] {
        let mut flock = Flock::new(agents);
        let rates = (0..plan.rounds(50)).map(|_| {
            let (began, steps) = (Instant::now(), flock.steps);
            (0..RESTARTS).for_each(|_| flock.restart());
            (flock.steps - steps) as f64 / 1e3 / began.elapsed().as_secs_f64()
        });
        let rates = Spread::of(rates.collect());
        table.tell(&format!("the machine's steps a second among {agents} agents"), "thousands", rates, Target::None);
    }
}

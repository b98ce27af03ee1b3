//! Long runs: a fuzzer, a crash loop and a soak. Each takes a few seconds in a build, and as long as is asked for by hand.
//!
//! ```text
//! TREEHERD_ENDURE=1h cargo test --release --test endurance -- --nocapture crash
//! TREEHERD_SEED=7 cargo test --test endurance -- --nocapture fuzz       repeats the choices of one run
//! ```
//!
//! Each prints what it counted. Requires root and a cgroup2 mount.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod churn;
mod crash;
mod fuzz;
mod schema;
mod soak;

use std::time::{Duration, Instant};

use common::ROLE;

/// When a run that starts now ends.
struct Until(Instant);

impl Until {
    /// Takes the time that `TREEHERD_ENDURE` gives, or else the one that suits a build.
    fn after(in_a_build: Duration) -> Self {
        Self(Instant::now() + common::endurance().unwrap_or(in_a_build))
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.0
    }
}

/// Returns the seed of this run, and prints it, so that the run's choices can be repeated.
fn seed() -> u64 {
    let seed = std::env::var("TREEHERD_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("TREEHERD_SEED={seed}");
    seed
}

/// What this binary does when it is started as an agent.
#[test]
fn role() {
    if std::env::var(ROLE).is_ok_and(|role| role == "fuzz") {
        fuzz::from_inside();
    }
}

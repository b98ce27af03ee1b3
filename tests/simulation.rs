//! The simulation: `cargo test --test simulation`.
//!
//! `TREEHERD_SEEDS=20000` runs more seeds, `TREEHERD_SEED=7` repeats one and tells every step.
#![allow(clippy::unwrap_used)]

mod sim;

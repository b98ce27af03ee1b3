//! treeherd supervises **trees of processes** on Linux.
//!
//! ```text
//! model/    WORDS. Ids, units, specs, limits, states, events. Plain values; no clock, no kernel.
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod kernel;
pub mod model;
pub mod output;

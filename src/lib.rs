//! treeherd supervises **trees of processes** on Linux.
//!
//! ```text
//! model/    WORDS. Ids, units, specs, limits, states, events. Plain values; no clock, no kernel.
//! machine/  DECIDES and cannot act. Pure: step(now, input, &mut effects).
//! kernel/   ACTS and cannot decide. One file for each kernel interface.
//! output/   WHAT AGENTS SAY. Spool files, offsets, trimming, readers.
//! daemon/   THE SHELL. The one place where machine meets kernel.
//! api/      THE CONTRACT. JSON-RPC 2.0 types, framing, the blocking client.
//! cli/      THE FACE. Commands, printers.
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod cli;
pub mod daemon;
pub mod herd;
pub mod kernel;
pub mod machine;
pub mod model;
pub mod output;

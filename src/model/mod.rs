//! WORDS. Identifiers, units, specifications, limits, states, events: plain values that every other room shares.
//!
//! Nothing here has a clock, touches the kernel, or decides anything.

pub mod error;
pub mod id;
pub mod limits;
pub mod stage;
pub mod time;
pub mod units;

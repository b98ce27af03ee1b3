//! WORDS. Identifiers, units, specifications, limits, states, events: plain values that every other room shares.
//!
//! Nothing here has a clock, touches the kernel, or decides anything.

pub mod applied;
pub mod config;
pub mod error;
pub mod event;
pub mod explain;
pub mod id;
pub mod limits;
pub mod note;
pub mod pattern;
pub mod plan;
pub mod pressure;
mod range;
pub mod ready;
pub mod record;
pub mod recovery;
pub mod request;
pub mod rule;
pub(crate) mod schema;
pub mod spec;
pub mod stage;
pub mod stall;
pub mod status;
pub mod stream;
pub mod survivor;
pub mod time;
pub mod tree;
pub mod umask;
pub mod units;
pub mod usage;
pub mod within;

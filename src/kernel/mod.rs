//! ACTS and cannot decide. One file for each interface of the kernel.

pub mod alarm;
pub mod cgroup;
pub mod clock;
pub(crate) mod controllers;
pub mod error;
pub mod guard;
pub mod guardian;
pub mod host;
pub mod keeper;
mod lock;
pub mod notify;
pub mod orphans;
pub mod peer;
pub mod pid_file;
pub mod pidfd;
pub mod pressure;
pub mod process;
pub mod program;
pub mod readiness;
pub mod rights;
pub mod signals;
pub mod socket;
pub mod spawn;
pub mod stat;
pub mod user;
pub mod watch;

//! ACTS and cannot decide. One file for each interface of the kernel.

pub mod clock;
pub mod error;
pub mod pidfd;
pub mod process;
pub mod socket;
pub mod spawn;
pub mod user;
pub mod watch;
pub mod cgroup;
pub(crate) mod controllers;
pub mod error;
pub mod host;
pub mod stat;

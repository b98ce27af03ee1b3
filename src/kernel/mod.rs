//! ACTS and cannot decide. One file for each interface of the kernel.

pub mod cgroup;
pub(crate) mod controllers;
pub mod error;
pub mod host;
pub mod stat;

//! ACTS and cannot decide. One file for each interface of the kernel.

pub mod error;
pub mod host;

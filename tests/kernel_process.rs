//! Facts about processes that the supervisor stands on, each proved on the kernel that runs the test.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;
#[path = "kernel_process/room.rs"]
mod room;

#[path = "kernel_process/born.rs"]
mod born;
#[path = "kernel_process/daemon.rs"]
mod daemon;
#[path = "kernel_process/ended.rs"]
mod ended;
#[path = "kernel_process/failed.rs"]
mod failed;
#[path = "kernel_process/leaf.rs"]
mod leaf;
#[path = "kernel_process/program.rs"]
mod program;
#[path = "kernel_process/table.rs"]
mod table;

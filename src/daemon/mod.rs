//! THE SHELL. The one place where the machine meets the kernel: it carries messages between them and decides nothing.
//!
//! ```text
//!              requests                    facts                         jobs
//!  clients ───────────────▶ ┌──────┐ ◀──────────────── pidfds, inotify ┌───────┐
//!          ◀─────────────── │ loop │ ─────────────────────────────────▶│ hands │──▶ kernel
//!   answers, events, output └──────┘ ◀───────────────── outcomes ──────└───────┘
//!                             │  ▲ step(now, input, &mut effects)
//!                             ▼  │
//!                           machine
//! ```
//!
//! One thread decides, a few hands act; a spawn that is asked for alone the loop's own thread carries out, and a stand-in turns the
//! loop if that takes long. The loop sleeps in one `epoll_wait` until something happens or the machine's next deadline comes; an
//! idle herd has neither.

mod above;
mod accept;
mod adopt;
mod allowance;
mod body;
mod call;
mod client;
mod config;
mod dead;
mod disk;
mod doctor;
mod drain;
mod end;
mod exit;
mod follow;
mod guard;
mod hands;
mod hits;
mod home;
mod job;
mod journal;
mod keepers;
mod largest;
mod latency;
mod launch;
mod leaf;
mod left;
mod logs;
mod memory;
mod notify;
mod outbox;
mod outcome;
mod output;
mod perform;
mod pid_file;
mod pressure;
mod quota;
mod reads;
mod receipt;
mod records;
mod reread;
mod restore;
mod rota;
mod rules;
mod seat;
mod service;
mod settings;
mod spawners;
mod stand_in;
mod start;
mod supervisor;
mod unpolled;
mod watched;

pub use config::{DEFAULT_CONFIG, Loaded, load};
pub use dead::{DeadHerd, RUN_PREFIX, dead_herds, run_places};
pub use doctor::doctor;
pub use guard::{prepare_process, trim_memory};
pub use seat::{Seat, choose_seat, limits_above_us};
pub use settings::{DEFAULT_CGROUP, Residence, Settings};
pub use start::{Running, serve, start, step_aside};

pub use crate::kernel::guardian::EndsWith;
pub use crate::kernel::program::share_heap;
pub use crate::kernel::signals::{block_irrelevant as block_irrelevant_signals, is_ignored};
pub use crate::kernel::spawn::check_clone3;

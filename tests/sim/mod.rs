//! The machine against a model of everything around it. Nothing here sleeps, forks or reads a clock.
//!
//! ```text
//! clients ──requests──▶ Machine ──orders──▶ lanes (one a hand) ──carried out──▶ Kernel
//!    ▲                    ▲  └─replies, events──▶ Observer ◀────what is true────┘  │
//!    └────────────────────┴──────facts, delayed, merged, doubled, reordered────────┘
//! ```
//!
//! * `kernel` knows what is true: cgroups, processes, who killed whom. It fails where the real one would hurt.
//! * `world` is the shell: it carries orders and facts, one at a time, in an order that chance or a search picks.
//!   Orders and answers of one agent keep their order; those of different agents do not.
//! * `observer` believes nothing that the machine says and compares it with the kernel after every step.
//! * `clients` ask for everything that can be asked for.

pub mod chance;
pub mod clients;
pub mod crash;
pub mod exhaustive;
pub mod health;
pub mod kernel;
pub mod observer;
pub mod pressure;
pub mod recovery;
pub mod scenarios;
pub mod stall;
pub mod swarm;
pub mod world;

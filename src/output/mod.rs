//! WHAT AGENTS SAY. Spool files: where output lands, how it stays bounded, how it is read back.
//!
//! ```text
//!   agent ──write──► agents/<id>/stdout.pipe
//!                       │ splice: a keeper       ┌──────── hole ────────┬───────── kept ─────────┐
//!                       ▼                        0                    start                     end
//!                    agents/<id>/stdout               given back              start ≤ end
//! ```
//!
//! The supervisor never stands between an agent and its output: a process that outlives it splices the agent's pipes into the
//! files, or ([`Output::File`](crate::model::stream::Output)) the child holds the files themselves. What happens here is
//! bookkeeping beside it. [`Store`] is the directory and opens files on demand, so that an agent costs no descriptor.
//! [`Spool`] is one agent's bookkeeping: it notes how far the files have grown and when, gives up what is below the cap, says
//! which [`Hole`] gives its space back, and reads. [`Lines`] and [`escape`] are for whoever shows the bytes to a person; a
//! [`Scan`] looks for one line, a [`Sweep`] for all that a [`RuleSet`] says has a meaning. Nothing here has a thread or a clock.
//!
//! # Offsets
//! A stream's offset counts every byte that the stream was ever seen to have, and never goes back. It is the file's
//! offset, for ever, as long as nobody but treeherd takes bytes away. Where somebody does (`echo x >/dev/stderr` opens
//! the spool file with `O_TRUNC`), the file's first byte gets the offset that the stream had reached: every byte in the
//! file counts as new. A prefix that such a truncation left in place is thereby told twice; nothing that stands in the
//! file is lost. The shift is kept in `<stream>.base` beside the file, for the next daemon. A truncation is noticed by a
//! file that shrank or whose bytes before the last seen end changed. What was written and truncated away again between
//! two calls of [`Spool::service`] was never seen and has no offset, nor is a truncation by a stranger noticed that
//! rewrites the last 16 seen bytes at the same place.
//!
//! # The bound
//! After [`Spool::service`] a stream keeps at least its last `cap` bytes, and at most `cap + cap/8 + 64 KiB`
//! ([`Spool::most`]); the file is larger by what the agent writes until the hole is dug. Measured with 2 CPUs, a cap of 16 MiB
//! and 5 ms between calls, the most that a file's blocks stood over the cap:
//!
//! | writer | ext4 | tmpfs |
//! | --- | --- | --- |
//! | `dd bs=100` | 2.4 MiB at 87 MB/s | 2.5 MiB at 100 MB/s |
//! | `yes`, through a pipe and `head` | 6 MiB at 570 MB/s | 10 MiB at 720 MB/s |
//! | `dd bs=1M` | 33 MiB at 4.3 GB/s | 24 MiB at 1.8 GB/s |
//!
//! A call costs 5 µs; the holes cost 0.06 to 0.35 s for each GB that the agent writes, waiting for the writer's lock included:
//! 5 ms at the longest, where the writer has a CPU. One that is held back in the middle of a write holds its hole up as long.
//! A stream ends where the file system's offsets end: at 16 TiB on ext4, 8 EiB on tmpfs.
//!
//! Where the file system cannot punch holes ([`Store::punches`]) there is **no** bound: cutting the file instead would
//! lose, uncounted, what is written at that moment, and exact offsets are worth more. Whoever opens the store says so.
//!
//! # Invariants
//! * `base ≤ start ≤ end`; none of the three ever decreases.
//! * No zeros of a [`Hole`] are told as data: it is dug below `start`, and nothing below that is read. Holes that the agent itself
//!   made count as gone where they are seen: as long as the file takes less space than what is kept of it is long.
//! * Nothing here waits for the agent's writes to its file but [`Hole::dig`], [`Spool::recover`] and a read of a sparse file.
//! * A spool file is hostile ground. An agent that runs as root can truncate, replace, or grow its files: symbolic links
//!   are not followed, a fifo blocks nobody, and memory and time for one call are bounded by constants and by the budget.
//!
//! A punch is itself an `IN_MODIFY` to a watch on the file; the call that follows finds nothing to do, and that is the end.

mod file;
mod lines;
mod marks;
mod pipes;
mod read;
mod rules;
mod scan;
mod spool;
mod store;
#[cfg(test)]
mod tests;

pub use lines::{Colours, Line, Lines, PARTIAL_MOST, escape};
pub use read::{Cursor, Gone, Piece, Read, Tail};
pub use rules::{Budget, LINE_MOST, Match, RuleSet, Sweep, Swept};
pub use scan::{Looked, Scan};
pub use spool::{CAP_DEFAULT, CAP_LEAST, Dug, Hole, Serviced, Spool, Times};
pub use store::{Inlet, Pipes, Store};

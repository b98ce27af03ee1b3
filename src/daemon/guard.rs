//! The daemon's care for itself, done once at its start, where it is a process of its own. In somebody else's program nothing
//! of this is touched.

use std::os::fd::{AsFd, BorrowedFd};

use crate::kernel::error::KernelError;
use crate::kernel::program::{self, Sparse};
use crate::kernel::{guard, process};
use crate::model::error::{Code, Error};

/// The nice value of the daemon's threads, and of its session among the sessions: some nine times the share of an agent.
const NICE: i8 = -10;

/// Others go first, and long before: as systemd's own daemons have it.
const OOM_SCORE_ADJ: i16 = -900;

/// How many descriptors are left to what ends, freezes and reports when no agent is spawned any more. What one spawn and the
/// threads that act need at once is a fraction of it.
const RESERVED_FROM_SPAWNS: u64 = 192;

/// How many are left when no client but the operator is let in any more.
const RESERVED_FROM_GUESTS: u64 = 144;

/// How many are left when no client is let in any more.
const RESERVED_FROM_CLIENTS: u64 = 96;

/// Refuses a spawn that would take a descriptor out of the reserve. `descriptor` is the first one that it has opened.
pub(super) fn check_for_spawn(descriptor: BorrowedFd<'_>) -> Result<(), Error> {
    if !process::is_among_last(descriptor, RESERVED_FROM_SPAWNS) {
        return Ok(());
    }
    let message =
        format!("the daemon has no descriptor to spare: the last {RESERVED_FROM_SPAWNS} are kept to end agents");
    Err(Error::new(Code::BoundReached, message).remedy("raise the limit on open files (LimitNOFILE=), or end agents"))
}

/// Refuses a client that would take a descriptor out of the reserve.
pub(super) fn check_for_client(descriptor: BorrowedFd<'_>) -> Result<(), Error> {
    check_connection(descriptor, RESERVED_FROM_CLIENTS)
}

/// Refuses a client that is not the operator, and would take a descriptor out of the operator's reserve.
pub(super) fn check_for_guest(descriptor: impl AsFd) -> Result<(), Error> {
    check_connection(descriptor.as_fd(), RESERVED_FROM_GUESTS)
}

fn check_connection(descriptor: BorrowedFd<'_>, reserve: u64) -> Result<(), Error> {
    if !process::is_among_last(descriptor, reserve) {
        return Ok(());
    }
    let message = format!("the daemon has no descriptor to spare: the last {reserve} are reserved");
    Err(Error::new(Code::TooManyClients, message).remedy("close a connection, or raise the limit on open files"))
}

/// Takes what the host offers, and says once what it does not. Threads have the nice value only if they are started after this.
pub(super) fn protect() {
    told("the OOM killer may end it as soon as others", guard::lower_oom_score(OOM_SCORE_ADJ));
    told("its session is as urgent as others", guard::set_session_nice(NICE));
    told("it is as urgent as its agents", guard::set_nice(NICE));
}

/// Makes a process that is ours alone ready to have children: descriptors as far as the hard limit goes, and of what whoever
/// started it has left to it, what children inherit from the process and not from a thread.
pub fn prepare_process() {
    told("descriptors are few", crate::kernel::process::raise_descriptor_limit());
    told("agents' core dumps are as its own", guard::reset_core_dumps());
}

/// Keeps in memory what is used from now on, and as little besides as the host allows: for as long as the answer lives. To be
/// called when everything is ready: what only the start has used goes.
pub(super) fn hold_memory() -> Option<Sparse> {
    let sparse = trim_memory();
    told("memory is not locked", guard::lock_memory());
    sparse
}

/// Lets go of what only the start of this process has used of its program, and has no more come in than is used: for as long as the
/// answer lives.
pub fn trim_memory() -> Option<Sparse> {
    let sparse = told("of its program comes in more than is used", program::sparse());
    told("what only its start has used stays in memory", program::forget());
    sparse
}

fn told<T>(what: &str, outcome: Result<T, KernelError>) -> Option<T> {
    outcome.map_err(|error| tracing::info!("the daemon itself: {what}: {error}")).ok()
}

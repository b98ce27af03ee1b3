//! The signals that this process does not take: they ask for nothing that a supervisor does, and most would end it.
//!
//! They are blocked rather than ignored: a blocked signal wakes no thread, and a child gets an empty mask anyway, so a spawn pays
//! nothing for it. An ignored one would have to be reset in every child.

use rustix::process::Signal;

use super::process;
use super::spawn::set_signal_mask;

/// The signals that are left as they are: requests to end or to reload, reports of a fault of the program itself, those that nobody
/// can block, and those that the kernel ignores. SIGCHLD is blocked: a thread that does not block it takes it away from the
/// descriptor on which orphans are reported.
const UNBLOCKED: [Signal; 16] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::ILL,
    Signal::TRAP,
    Signal::ABORT,
    Signal::BUS,
    Signal::FPE,
    Signal::SEGV,
    Signal::SYS,
    Signal::KILL,
    Signal::STOP,
    Signal::CONT,
    Signal::URG,
    Signal::WINCH,
];

/// Blocks every signal that asks neither for an end nor for a reload, in this thread and in all that it starts. To be called before
/// there are other threads, in a process that belongs to the supervisor.
///
/// The two signals that a C library keeps for itself are among them: it uses them to cancel threads and to change the user of all
/// threads, and nothing here does either.
pub fn block_irrelevant() {
    let unblocked = UNBLOCKED.iter().fold(0, |mask, signal| mask | 1 << (signal.as_raw() - 1));
    set_signal_mask(!unblocked);
}

/// Returns whether this process ignores a signal: nohup(1) has SIGHUP ignored.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    process::ignored_signals().is_ok_and(|ignored| ignored >> (signal - 1) & 1 == 1)
}

//! The end of processes: signals and kills, carried out on a hand.
//!
//! A main process may have left the cgroup of its run (`su` with pam_systemd, `cgexec`, a scope). Its pidfd is held, so the stop
//! signal and the kill reach it where it is.

use std::os::fd::AsFd;

use rustix::process::Signal;

use super::job::{Outcome, note};
use crate::kernel::cgroup::{Cgroups, Place, describe_survivors};
use crate::kernel::error::{KernelError, Result};
use crate::kernel::pidfd::{self, Held};
use crate::machine::{AgentKey, Force, Input};
use crate::model::spec::StopSignalTo;

/// A run to be signalled or killed.
#[derive(Debug)]
pub(super) struct Quarry {
    pub place: Place,
    /// The main process, as long as it has not ended.
    pub main: Option<Held>,
}

/// Sends a stop signal, and SIGCONT after it: a stopped process handles no other signal. Returns how many processes got it.
pub(super) fn signal(cgroups: &Cgroups, run: &Quarry, signal: i32, to: StopSignalTo) -> u64 {
    let Some(signal) = Signal::from_named_raw(signal) else { return 0 };
    let with_continue = [signal, Signal::CONT];
    let signals = if signal == Signal::KILL { &with_continue[..1] } else { &with_continue };
    let reached = match (to, &run.main) {
        (StopSignalTo::Main, Some(_)) => Ok(Default::default()),
        _ => cgroups.signal(&run.place, signals),
    };
    let mut reached = reached.unwrap_or_else(|error| note(&error));
    if let Some(main) = run.main.as_ref().filter(|main| !reached.contains(&main.pid)) {
        let sent = signals.iter().try_for_each(|signal| pidfd::signal(main.as_fd(), *signal));
        match sent {
            Ok(()) => drop(reached.insert(main.pid)),
            Err(error) => note_unless_gone(&error),
        }
    }
    reached.len() as u64
}

/// Kills a run.
pub(super) fn kill_run(cgroups: &Cgroups, run: &Quarry, force: Force) -> Result<()> {
    kill_main(run);
    kill_place(cgroups, &run.place, force)
}

/// Kills a subtree, and counts the processes of its runs right before.
pub(super) fn kill(
    cgroups: &Cgroups,
    agent: AgentKey,
    place: &Place,
    runs: &[(AgentKey, Quarry)],
    force: Force,
) -> Outcome {
    let counts = runs.iter().map(|(key, run)| (*key, count(cgroups, run))).collect();
    kill_place(cgroups, place, force).unwrap_or_else(|error| note(&error));
    runs.iter().for_each(|(_, run)| kill_main(run));
    Outcome::Fact(Input::Killed { agent, counts })
}

fn kill_place(cgroups: &Cgroups, place: &Place, force: Force) -> Result<()> {
    match force {
        Force::Stroke => cgroups.kill(place).map(drop),
        Force::Sweep => cgroups.sweep(place).map(drop),
    }
}

/// Counts the processes of a run, its main process among them wherever it is.
fn count(cgroups: &Cgroups, run: &Quarry) -> u64 {
    let pids = cgroups.processes(&run.place).unwrap_or_default();
    let has_left = |main: &Held| !pids.contains(&main.pid) && pidfd::has_ended(main.as_fd()) == Ok(false);
    pids.len() as u64 + u64::from(run.main.as_ref().is_some_and(has_left))
}

/// Finds out who has survived the kill of runs, and who lives in the cgroups of agents that have ended.
pub(super) fn survey(
    cgroups: &Cgroups,
    number: u64,
    runs: &[(AgentKey, Quarry)],
    homes: &[(AgentKey, Place)],
) -> Outcome {
    let of_run = |run: &Quarry| {
        let main = run.main.as_ref().filter(|main| pidfd::has_ended(main.as_fd()) == Ok(false));
        let mut pids = cgroups.processes_anywhere(&run.place);
        pids.extend(main.map(|main| main.pid));
        describe_survivors(pids)
    };
    let found = runs.iter().map(|(key, run)| (*key, of_run(run)));
    let homes = homes.iter().map(|(key, home)| (*key, describe_survivors(cgroups.processes_anywhere(home))));
    Outcome::Fact(Input::Surveyed { number, found: found.chain(homes).collect() })
}

fn kill_main(run: &Quarry) {
    if let Some(Err(error)) = run.main.as_ref().map(|main| pidfd::signal(main.as_fd(), Signal::KILL)) {
        note_unless_gone(&error);
    }
}

fn note_unless_gone(error: &KernelError) {
    if !error.is_gone() {
        note::<()>(error);
    }
}

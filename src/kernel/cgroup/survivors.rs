//! Who outlives a kill, and what holds it: read from procfs, where no read waits for the process.

use std::collections::BTreeSet;

use super::{Cgroups, Place};
use crate::kernel::process::read_text;
use crate::kernel::{host, pidfd};
use crate::model::survivor::{SURVIVORS_MAX, SurvivalReason, Survivor};

impl Cgroups {
    /// Lists the processes of a subtree, in cgroup2 and in the v1 mirrors, those included that have left cgroup2 only.
    #[must_use]
    pub fn processes_anywhere(&self, place: &Place) -> BTreeSet<i32> {
        let mirrors = self.mirrored_hierarchies().map(|hierarchy| hierarchy.mount.descend(&self.full(place)));
        let dirs = std::iter::once(self.dir(place)).chain(mirrors).filter_map(Result::ok);
        dirs.filter_map(|dir| super::inhabitants::processes_below(dir).ok()).flatten().collect()
    }
}

/// Describes processes that were killed and have not died, 16 of them at most. Those that are gone by now are left out.
#[must_use]
pub fn describe(pids: impl IntoIterator<Item = i32>) -> Vec<Survivor> {
    pids.into_iter().filter_map(describe_one).take(SURVIVORS_MAX).collect()
}

fn describe_one(pid: i32) -> Option<Survivor> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let tids = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // The first thread may have ended before the others.
    let (tid, comm, state) =
        tids.filter_map(|tid| thread(pid, tid)).find(|(_, _, state)| !matches!(state, 'Z' | 'X'))?;
    let read = |file: &str| read_text(format!("/proc/{pid}/task/{tid}/{file}")).ok();
    let wchan = read("wchan").filter(|wchan| !matches!(wchan.as_str(), "" | "0"));
    let tracer = read("status").and_then(|status| tracer_in(&status));
    let reason = match state {
        _ if tracer.is_some() => SurvivalReason::Traced,
        'D' if host::is_frozen_in_v1(pid) => SurvivalReason::FrozenV1,
        'D' => SurvivalReason::Uninterruptible,
        _ => SurvivalReason::Unknown,
    };
    let place = pidfd::cgroup_of(pid).ok().flatten().unwrap_or_default();
    Some(Survivor { pid, comm, state, wchan, place, reason, tracer })
}

fn thread(pid: i32, tid: i32) -> Option<(i32, String, char)> {
    let stat = read_text(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let (comm, state) = super::inhabitants::comm_and_state(&stat)?;
    Some((tid, comm.chars().flat_map(char::escape_default).collect(), state))
}

fn tracer_in(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracer_is_found_and_none_is_none() {
        assert_eq!(tracer_in("Name:\tx\nTracerPid:\t77\nUid:\t0\n"), Some(77));
        assert_eq!(tracer_in("Name:\tx\nTracerPid:\t0\n"), None);
    }

    #[test]
    fn a_process_that_lives_is_described() {
        let own = std::process::id().cast_signed();
        let found = describe([own, i32::MAX]);
        assert_eq!((found.len(), found[0].pid, found[0].tracer), (1, own, None));
        assert!(!found[0].comm.is_empty() && found[0].place.starts_with('/'));
    }
}

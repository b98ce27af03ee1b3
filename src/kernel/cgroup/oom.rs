//! Running out of memory: counters, the v1 notification, and whose limit it was.
//!
//! | | victim's counter | whose limit |
//! | --- | --- | --- |
//! | cgroup2 | `oom_kill` of `memory.events.local` of the cgroup in which the victim was, or of `memory.events` above it | `oom` of `memory.events.local` |
//! | v1 | `oom_kill` of `memory.oom_control` of the mirror in which the victim was, and of no other one | `memory.failcnt` |
//!
//! On v1 no counter tells an OOM from a reclaim at the limit: `failcnt` rises with both. `memory.max_usage_in_bytes` does
//! not help, as usage stands at the limit in both cases. Where swap is limited too, no counter may rise at all (6.18); then the
//! nearest limit that was ever met is all that can be told ([`Cgroups::has_met_limit`]). The eventfd is signalled in the mirror whose limit was reached
//! and in every one below it.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dir::Dir;
use super::{Cgroups, Place};
use crate::kernel::error::{KernelError, Result};
use crate::kernel::host::Binding;
use crate::kernel::stat::flat;
use crate::model::limits::Controller;

/// What a memory cgroup has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomCounts {
    /// How often this cgroup's own limit was reached and nothing could be reclaimed. On v1, where that is not counted:
    /// how often an allocation met the limit, reclaims included (`memory.failcnt`).
    pub oom: u64,
    /// How many processes of this very cgroup the OOM killer killed, whoever's limit was reached.
    pub oom_kill: u64,
}

impl Cgroups {
    /// Reads what a place's memory cgroup has counted; `None` if it has none.
    ///
    /// # Errors
    /// What the read answered; [`KernelError::is_gone`] if the place is gone.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "Memory Interface Files", `memory.events.local`; cgroup-v1/memory.rst, "OOM Control" (`oom_kill`: 4.13).
    pub fn oom_counts(&self, place: &Place) -> Result<Option<OomCounts>> {
        let Some(dir) = self.seat(place, Controller::Memory)? else { return Ok(None) };
        let count = |text: &str, key| flat(text, key).unwrap_or(0);
        if matches!(self.host.binding(Controller::Memory), Binding::V2) {
            let Some(text) = own_events(&dir, "memory.events")? else { return Ok(None) };
            let oom_kill = match place.is_agents() {
                true => kills_in_runs(&dir, &text)?,
                false => count(&text, "oom_kill"),
            };
            return Ok(Some(OomCounts { oom: count(&text, "oom"), oom_kill }));
        }
        let control = dir.read("memory.oom_control")?;
        let failures = dir.read("memory.failcnt")?.trim().parse().unwrap_or(0);
        Ok(Some(OomCounts { oom: failures, oom_kill: count(&control, "oom_kill") }))
    }

    /// Says whether the memory of a v1 mirror, or memory and swap together, ever came so near its limit that the next charge,
    /// which the kernel makes in batches of 64 pages, had to fail.
    #[must_use]
    pub fn has_met_limit(&self, place: &Place) -> bool {
        self.mirror(place, Controller::Memory).is_some_and(|dir| has_met_limit(&dir))
    }

    /// Opens an eventfd (non-blocking, close-on-exec) that the kernel signals when the place's v1 memory mirror, or one
    /// above it, runs out of memory, and once more when the mirror is removed. `None` on cgroup2, where
    /// `memory.events.local` is watched, and where the place has no mirror.
    ///
    /// # Errors
    /// What the kernel answered.
    ///
    /// # Kernel
    /// cgroup-v1/memory.rst, "OOM Control"; cgroup-v1/cgroups.rst, "Notification API".
    pub fn oom_eventfd(&self, place: &Place) -> Result<Option<OwnedFd>> {
        let Some(dir) = self.mirror(place, Controller::Memory) else { return Ok(None) };
        let event = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| KernelError::new("eventfd", place.path(), errno))?;
        let control = dir.open("memory.oom_control", OFlags::RDONLY)?;
        dir.write("cgroup.event_control", &format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))?;
        Ok(Some(event))
    }
}

/// Returns how many processes of an agent's own runs were killed. Where its cgroup hands memory
/// down, for an agent below it or because it is delegated, they are counted in the cgroups of its
/// runs, and only for its whole subtree once those are removed.
fn kills_in_runs(home: &Dir, own: &str) -> Result<u64> {
    let kills = |text: &str| flat(text, "oom_kill").unwrap_or(0);
    if !home.read("cgroup.subtree_control")?.split_whitespace().any(|name| name == Controller::Memory.name()) {
        return Ok(kills(own));
    }
    // The whole first: a kill in between is found by the next look.
    let all = kills(&home.read("memory.events")?);
    let mut below = 0;
    for name in home.children()?.iter().filter(|name| name.to_bytes().starts_with(b"level-")) {
        below += absent_is_none(home.child(name)?.read("memory.events"))?.map_or(0, |text| kills(&text));
    }
    Ok(all.saturating_sub(below))
}

/// Says whether a memory cgroup of v1 ever came near its limit.
pub(super) fn has_met_limit(dir: &Dir) -> bool {
    const BATCH: u64 = 64 * 4096;
    let number = |file: &str| dir.read(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    ["memory", "memory.memsw"].iter().any(|which| {
        let peak = number(&format!("{which}.max_usage_in_bytes"));
        let limit = number(&format!("{which}.limit_in_bytes"));
        peak.zip(limit).is_some_and(|(peak, limit)| peak + BATCH >= limit)
    })
}

/// Reads a file of counters as far as they are about the cgroup itself: `FILE.local`, or `FILE` on a kernel that has no such file. None
/// if the cgroup has no such controller.
pub(super) fn own_events(dir: &Dir, file: &str) -> Result<Option<String>> {
    match absent_is_none(dir.read(&format!("{file}.local")))? {
        Some(text) => Ok(Some(text)),
        None => absent_is_none(dir.read(file)),
    }
}

/// A file that is not there says that the cgroup has no such controller, as long as the cgroup itself was opened.
pub(super) fn absent_is_none(result: Result<String>) -> Result<Option<String>> {
    match result {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.errno == Errno::NOENT => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns whether a v1 memory mirror has a limit of its own, which says that all of its subtree is in it.
pub(in crate::kernel) fn is_limited(mirror: &Dir) -> bool {
    const UNCOUNTABLE: u64 = 0x7fff_ffff_fffe_0000;
    let limit = mirror.read("memory.limit_in_bytes").ok().and_then(|text| text.trim().parse::<u64>().ok());
    limit.is_some_and(|limit| limit < UNCOUNTABLE)
}

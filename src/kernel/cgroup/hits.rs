//! How often limits were hit: the kernel's counters of a place's own limits, and what tells that one may have moved.
//!
//! | limit | counter on cgroup2 | counter on v1 | told by |
//! | --- | --- | --- | --- |
//! | `pids_max` | `max` of `pids.events.local` | `max` of `pids.events` | the file |
//! | `memory_max` | `max` of `memory.events.local` | none that is told of | the file |
//! | `memory_high` | `high` of `memory.events.local` | not offered | the file |
//! | `cpu_max` | `nr_throttled` of `cpu.stat` | the same | pressure: a throttled task waits for a CPU |

use std::os::fd::OwnedFd;

use super::dir::Dir;
use super::oom::{absent_is_none, own_events};
use super::{Cgroups, Place};
use crate::kernel::error::Result;
use crate::kernel::host::Binding;
use crate::kernel::stat::flat;
use crate::model::limits::{Controller, Knob};

/// The limits whose hits are counted.
pub const COUNTED: [Knob; 4] = [Knob::PidsMax, Knob::MemoryMax, Knob::MemoryHigh, Knob::CpuMax];

impl Cgroups {
    /// Reads how often a place's own limit was hit: forks that were refused at `pids_max`, reclaims at `memory_max`, throttlings at
    /// `memory_high`, periods that were cut short by `cpu_max`. `None` if it has no such limit, or nobody counts.
    ///
    /// # Errors
    /// What the read answered; [`is_gone`](crate::kernel::error::KernelError::is_gone) if the place is gone.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "PID Interface Files", `pids.events.local` (from 6.11 on, when `pids.events` began to count the limits
    /// below, too; before, that counts in the cgroup of the process that wanted to fork, as on v1); "Memory Interface Files",
    /// `memory.events.local`; "CPU Interface Files", `cpu.stat`.
    pub fn hits(&self, place: &Place, knob: Knob) -> Result<Option<u64>> {
        let Some(dir) = self.seat(place, knob.controller())? else { return Ok(None) };
        let (text, key) = match knob {
            Knob::PidsMax => (own_events(&dir, "pids.events")?, "max"),
            Knob::MemoryMax => (own_events(&dir, "memory.events")?, "max"),
            Knob::MemoryHigh => (own_events(&dir, "memory.events")?, "high"),
            Knob::CpuMax => (absent_is_none(dir.read("cpu.stat"))?, "nr_throttled"),
            _ => return Ok(None),
        };
        Ok(text.and_then(|text| flat(&text, key)))
    }

    /// Opens the directory whose `pids.events` tells of forks that were refused at a place; `None` if it has no pids controller.
    ///
    /// # Errors
    /// What `openat2` answered.
    pub fn pids_events_dir(&self, place: &Place) -> Result<Option<OwnedFd>> {
        Ok(self.seat(place, Controller::Pids)?.map(Dir::into_fd))
    }

    /// Opens the directory in which a controller limits a place, if there is one.
    pub(super) fn seat(&self, place: &Place, controller: Controller) -> Result<Option<Dir>> {
        match self.host.binding(controller) {
            Binding::V2 => self.dir(place).map(Some),
            Binding::V1 { .. } => Ok(self.mirror(place, controller)),
            Binding::Absent { .. } => Ok(None),
        }
    }
}

//! How much of what a limit is about a subtree uses, for no more reads than there are.
//!
//! | | where the controller covers the cgroup | elsewhere, added up over its subtree |
//! | --- | --- | --- |
//! | pids, in tasks | `pids.current`, on cgroup2 | the lines of `cgroup.threads` |
//! | memory, in bytes | `memory.current`; `memory.usage_in_bytes` of a v1 mirror with a limit | resident sets |

use rustix::io::Errno;

use super::dir::{Dir, Step, walk};
use super::oom::is_limited;
use super::{Cgroups, Place};
use crate::kernel::error::{KernelError, Result};
use crate::kernel::host::Binding;
use crate::kernel::stat::resident;
use crate::model::limits::Controller;

impl Cgroups {
    /// Lists the cgroups right below a place; below one that is gone there are none.
    ///
    /// # Errors
    /// What the kernel answered, other than that the place is gone.
    pub fn below(&self, place: &Place) -> Result<Vec<Place>> {
        match self.dir(place).and_then(|dir| dir.children()) {
            Ok(names) => Ok(names.iter().filter_map(|name| Some(place.below(name.to_str().ok()?))).collect()),
            Err(error) if error.is_gone() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Reads what a subtree uses: tasks of `pids`, bytes of `memory`. One that is gone uses nothing. Each read takes one off `reads`;
    /// `None` when they are used up, and for any other controller.
    ///
    /// # Errors
    /// What the kernel answered, other than that something is gone.
    ///
    /// # Kernel
    /// cgroup-v2.rst, "PID Interface Files", "Memory Interface Files", and "Core Interface Files" for `cgroup.threads`.
    pub fn used(&self, place: &Place, controller: Controller, reads: &mut u32) -> Result<Option<u64>> {
        let dir = match self.dir(place) {
            Ok(dir) => dir,
            Err(error) if error.is_gone() => return Ok(Some(0)),
            Err(error) => return Err(error),
        };
        let is_v2 = matches!(self.host.binding(controller), Binding::V2);
        let counted = match controller {
            Controller::Pids if is_v2 => number(&dir, "pids.current"),
            Controller::Pids => None,
            Controller::Memory if is_v2 => number(&dir, "memory.current"),
            Controller::Memory => {
                let mirror = self.mirror(place, controller).filter(is_limited);
                mirror.and_then(|mirror| number(&mirror, "memory.usage_in_bytes"))
            }
            _ => return Ok(None),
        };
        match counted {
            Some(used) => Ok(pay(reads, 1).map(|()| used)),
            None => add_up(dir, controller, reads),
        }
    }
}

/// Looks at the tasks of a subtree one by one.
fn add_up(top: Dir, controller: Controller, reads: &mut u32) -> Result<Option<u64>> {
    let mut sum = Some(0);
    let looked = walk(top, &mut |step| {
        let Step::Entered { dir, .. } = step else { return Ok(()) };
        // An agent may have made any number of cgroups: the rest is not walked through.
        let Some(before) = sum else { return Err(KernelError::new("look for tasks in", dir.label(), Errno::CANCELED)) };
        sum = if controller == Controller::Pids {
            pay(reads, 1).map(|()| dir.pids("cgroup.threads")).transpose()?.map(|tasks| before + tasks.len() as u64)
        } else {
            let pids = dir.pids("cgroup.procs")?;
            let is_paid = pay(reads, 1 + pids.len());
            is_paid.map(|()| before + pids.iter().filter_map(|pid| resident(*pid)).sum::<u64>())
        };
        Ok(())
    });
    if sum.is_none() { Ok(None) } else { looked.map(|()| sum) }
}

/// Takes so many off what may be read; none if there are not so many.
fn pay(reads: &mut u32, cost: usize) -> Option<()> {
    *reads = reads.checked_sub(u32::try_from(cost).unwrap_or(u32::MAX))?;
    Some(())
}

fn number(dir: &Dir, file: &str) -> Option<u64> {
    dir.read(file).ok()?.trim().parse().ok()
}

//! The processes in a subtree: who they are, ending them, signalling them.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::dir::{Dir, Step, walk};
use super::place::is_within;
use super::{Cgroups, Place};
use crate::kernel::error::{KernelError, Result};
use crate::kernel::host;
use crate::kernel::process::read_text;

/// How many descriptors of processes are open at once while a subtree is signalled.
const SIGNAL_BATCH: usize = 256;

/// In how many cgroups of a subtree some of its processes are looked for: agents may make any
/// number.
const SOME_CGROUPS_MAX: usize = 64;

/// The most laggards that are named.
const LAGGARDS_MAX: usize = 64;

/// A task that keeps its subtree from being frozen or empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laggard {
    /// The process.
    pub pid: i32,
    /// The thread of it that lags behind.
    pub tid: i32,
    /// The thread's name, as the kernel knows it: 15 bytes at most.
    pub comm: String,
    /// The thread's state, a letter of `proc_pid_stat(5)`: `D` waits in the kernel and hears no signal.
    pub state: char,
    /// The kernel function in which the thread waits, where this kernel tells it.
    pub wchan: Option<String>,
}

impl Cgroups {
    /// Lists the processes of a subtree; of one that is gone there are none. Each is in it at the moment at which its
    /// cgroup is read: a list is a picture of the past.
    ///
    /// # Errors
    /// What the kernel answered, other than that something is gone.
    pub fn processes(&self, place: &Place) -> Result<Vec<i32>> {
        match self.dir(place) {
            Ok(dir) => processes_below(dir).map(|pids| pids.into_iter().collect()),
            Err(error) if error.is_gone() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Lists some processes of a subtree: of 64 cgroups at most, and of each as many as the kernel
    /// lists in one piece, which is a few hundred. It takes no longer for 50,000 processes.
    ///
    /// # Errors
    /// What the kernel answered; [`KernelError::is_gone`] if there is no such cgroup.
    pub fn some_processes(&self, place: &Place) -> Result<Vec<i32>> {
        let top = self.dir(place)?;
        let mut pids = top.some_pids()?;
        let mut next: VecDeque<Dir> = VecDeque::from([top]);
        let mut left = SOME_CGROUPS_MAX;
        while let Some(dir) = next.pop_front() {
            for name in dir.children().unwrap_or_default() {
                // What goes away meanwhile has no processes.
                let Ok(child) = dir.child(&name) else { continue };
                pids.extend(child.some_pids().unwrap_or_default());
                next.push_back(child);
                left -= 1;
                if left == 0 {
                    return Ok(pids);
                }
            }
        }
        Ok(pids)
    }

    /// Kills every process of a subtree in one stroke, forks in flight, frozen and traced ones included, and returns how
    /// many were seen in it right before. Their death is told by [`Events::populated`](super::Events), not by the return.
    ///
    /// A subtree that is gone has no processes.
    ///
    /// # Errors
    /// EBUSY without having done anything if this very process is in the subtree; else what the write answered.
    ///
    /// # Kernel
    /// 5.14; cgroup-v2.rst, "Core Interface Files", `cgroup.kill`. The time it takes grows with the number of processes.
    pub fn kill(&self, place: &Place) -> Result<u64> {
        let dir = match self.dir(place) {
            Ok(dir) => dir,
            Err(error) if error.is_gone() => return Ok(0),
            Err(error) => return Err(error),
        };
        if self.holds_us(place)? {
            return Err(KernelError::new("write \"1\" to", dir.object("cgroup.kill"), Errno::BUSY)
                .hint("the supervisor itself is in this subtree"));
        }
        // What cannot be counted is killed all the same.
        let seen = dir.descend("").and_then(processes_below).map_or(0, |processes| processes.len() as u64);
        match dir.write("cgroup.kill", "1") {
            Ok(()) => Ok(seen),
            Err(error) if error.is_gone() => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Says whether this process is in the subtree.
    fn holds_us(&self, place: &Place) -> Result<bool> {
        let own = own_cgroup()?;
        let own = self.host.below_mount(&own).unwrap_or(own);
        Ok(is_within(own.trim_start_matches('/'), &self.full(place)))
    }

    /// Sends signals, in this order, to every process of a subtree and returns which processes got them. A process that is
    /// forked meanwhile may be missed.
    ///
    /// Never to a stranger, even where pids are reused at once: a process is held by a pidfd, then the cgroup's list is
    /// read again. A pid on that second list whose pidfd is still alive is the process of the list, because a pid is not
    /// given away while its owner lives; if the owner died in between, the signal goes nowhere (ESRCH).
    ///
    /// # Errors
    /// What the kernel answered, other than that something is gone.
    ///
    /// # Kernel
    /// 5.3; `pidfd_open(2)`, `pidfd_send_signal(2)`.
    pub fn signal(&self, place: &Place, signals: &[Signal]) -> Result<BTreeSet<i32>> {
        let mut reached = BTreeSet::new();
        match self.dir(place) {
            Ok(dir) => signal_below(dir, signals, &mut reached)?,
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
        Ok(reached)
    }

    /// Kills what a [`kill`](Self::kill) passed over, and returns which processes got the signal.
    ///
    /// `cgroup.kill` sends a thread-directed SIGKILL to each thread group leader, so a process whose leader has exited
    /// before its other threads survives it. A SIGKILL through a pidfd is directed at the process and ends it. The
    /// subtree is frozen first, so that it cannot fork faster than it is listed; a killed process dies frozen. Processes
    /// that left cgroup2 and are still in a v1 mirror of the place are killed as well.
    ///
    /// The subtree stays frozen: this is for one whose end is ordered and whose cgroup is going to be removed. One call is
    /// one bounded pass; repeat it until the subtree is empty.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    ///
    /// # Kernel
    /// docs/kernel.md, 24; `cgroup_kill`/`__cgroup_kill`, `cgroup_freeze`.
    pub fn sweep(&self, place: &Place) -> Result<BTreeSet<i32>> {
        self.kill(place)?;
        let mut reached = BTreeSet::new();
        let gone_is_fine =
            |outcome: Result<()>| outcome.or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) });
        gone_is_fine(self.set_frozen(place, super::Frozen::Frozen))?;
        let mirrors = self.mirrored_hierarchies().map(|hierarchy| hierarchy.mount.descend(&self.full(place)));
        for dir in std::iter::once(self.dir(place)).chain(mirrors) {
            gone_is_fine(dir.and_then(|dir| signal_below(dir, &[Signal::KILL], &mut reached)))?;
        }
        Ok(reached)
    }

    /// Names the tasks that keep a subtree from being frozen or empty, 64 of them at most: all that run, or wait
    /// in the kernel without hearing signals (`D`). A task that waits for its vfork child is `D` too, and counts as frozen.
    #[must_use]
    pub fn laggards(&self, place: &Place) -> Vec<Laggard> {
        let pids = self.processes(place).unwrap_or_default();
        pids.into_iter().flat_map(laggards_of).take(LAGGARDS_MAX).collect()
    }
}

/// Signals every process in a directory and all below it.
fn signal_below(top: Dir, signals: &[Signal], reached: &mut BTreeSet<i32>) -> Result<()> {
    walk(top, &mut |step| {
        let Step::Entered { dir, .. } = step else { return Ok(()) };
        for batch in dir.pids("cgroup.procs")?.chunks(SIGNAL_BATCH) {
            let held = hold(batch)?;
            let still_there: BTreeSet<i32> = dir.pids("cgroup.procs")?.into_iter().collect();
            for (pid, process) in held.into_iter().filter(|(pid, _)| still_there.contains(pid)) {
                if signal_process(pid, process.as_fd(), signals)? {
                    reached.insert(pid);
                }
            }
        }
        Ok(())
    })
}

/// Sends signals to a process; says whether it was there.
fn signal_process(pid: i32, process: BorrowedFd<'_>, signals: &[Signal]) -> Result<bool> {
    for (sent, signal) in signals.iter().enumerate() {
        match rustix::process::pidfd_send_signal(process, *signal) {
            Ok(()) => {}
            // It may die of the first one before the next is sent.
            Err(Errno::SRCH) => return Ok(sent > 0),
            Err(errno) => {
                return Err(KernelError::new(format!("send {signal:?} to"), format!("process {pid}"), errno));
            }
        }
    }
    Ok(true)
}

/// Opens a pidfd for each process that still exists.
fn hold(pids: &[i32]) -> Result<Vec<(i32, OwnedFd)>> {
    let mut held = Vec::with_capacity(pids.len());
    for pid in pids {
        let Some(process) = Pid::from_raw(*pid) else { continue };
        match rustix::process::pidfd_open(process, PidfdFlags::empty()) {
            Ok(fd) => held.push((*pid, fd)),
            // EINVAL: the leader of the thread group is gone, and its other threads with it in a moment.
            Err(Errno::SRCH | Errno::INVAL) => {}
            Err(errno) => return Err(KernelError::new("pidfd_open", format!("process {pid}"), errno)),
        }
    }
    Ok(held)
}

/// Lists the processes in a directory and all below it.
pub(super) fn processes_below(top: Dir) -> Result<BTreeSet<i32>> {
    let mut pids = BTreeSet::new();
    walk(top, &mut |step| {
        if let Step::Entered { dir, .. } = step {
            pids.extend(dir.pids("cgroup.procs")?);
        }
        Ok(())
    })?;
    Ok(pids)
}

/// Reads the cgroup2 path of this process.
pub(super) fn own_cgroup() -> Result<String> {
    let file = "/proc/self/cgroup";
    let text = read_text(file).map_err(|error| KernelError::from_io("read", file, &error))?;
    host::own_path(&text).map(str::to_owned).ok_or_else(|| KernelError::new("read", file, Errno::NOENT))
}

fn laggards_of(pid: i32) -> Vec<Laggard> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let tids = tasks.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    tids.filter_map(|tid| {
        let read = |file: &str| read_text(format!("/proc/{pid}/task/{tid}/{file}")).ok();
        let (comm, state) = comm_and_state(&read("stat")?)?;
        let wchan = read("wchan").filter(|wchan| !matches!(wchan.as_str(), "" | "0"));
        // A sleeper hears the freezer and the kill at once, and in the freezer it looks like any other sleeper.
        let stands = matches!(state, 'Z' | 'X' | 'T' | 't' | 'S' | 'I');
        (!stands).then_some(Laggard { pid, tid, comm, state, wchan })
    })
    .collect()
}

/// Reads the name and the state from `/proc/PID/stat`. The name may itself contain parentheses and blanks.
pub(in crate::kernel) fn comm_and_state(stat: &str) -> Option<(String, char)> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let state = stat.get(close + 1..)?.trim_start().chars().next()?;
    Some((stat.get(open + 1..close)?.to_owned(), state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_may_contain_parentheses() {
        assert_eq!(comm_and_state("12 (a) R (b) D 1 2 3"), Some(("a) R (b".to_owned(), 'D')));
        assert_eq!(comm_and_state("12 (sh) S 1"), Some(("sh".to_owned(), 'S')));
        assert_eq!(comm_and_state("12"), None);
    }
}

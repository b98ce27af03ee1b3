//! Ourselves: what this process may do, and the one thing that it takes for itself, descriptors.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;

use super::error::{KernelError, Result};

/// The soft limit on descriptors before this process raised it.
static DESCRIPTORS_AT_START: OnceLock<u64> = OnceLock::new();

/// Returns how many descriptors this process could have when it was started; `u64::MAX` for no limit.
#[must_use]
pub fn descriptor_limit_at_start() -> u64 {
    *DESCRIPTORS_AT_START.get_or_init(|| getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

/// Returns how far the number of descriptors that a process may have can be raised; `u64::MAX` for no limit.
#[must_use]
pub fn hard_descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Raises the number of descriptors that this process may have to the most that it is allowed, and returns that;
/// `u64::MAX` for no limit.
///
/// # Errors
/// EPERM: the hard limit is above `fs.nr_open`.
///
/// # Kernel
/// setrlimit(2).
pub fn raise_descriptor_limit() -> Result<u64> {
    let now = getrlimit(Resource::Nofile);
    DESCRIPTORS_AT_START.get_or_init(|| now.current.unwrap_or(u64::MAX));
    let most = now.maximum.unwrap_or(u64::MAX);
    if now.current != now.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })
            .map_err(|errno| KernelError::new("raise rlimit nofile", most.to_string(), errno))?;
    }
    Ok(most)
}

/// Waits for the end of the process of a pidfd, and says whether it came in time.
#[must_use]
pub fn has_ended_within(pidfd: &OwnedFd, most: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let timeout = Timespec::try_from(most).unwrap_or_default();
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

/// Returns the number of the user as whom this process acts.
#[must_use]
pub fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Says whether this descriptor is one of the last `reserve` that this process may have. The kernel gives the lowest free number,
/// so a high number says how many are open, without a count.
///
/// # Kernel
/// open(2), "the lowest-numbered file descriptor not currently open"; getrlimit(2).
#[must_use]
pub fn is_among_last(descriptor: BorrowedFd<'_>, reserve: u64) -> bool {
    let number = u64::from(descriptor.as_raw_fd().unsigned_abs());
    getrlimit(Resource::Nofile).current.is_some_and(|most| number.saturating_add(reserve) >= most)
}

/// Says whether this descriptor is in the first `part`th of those that this process may have, as [`is_among_last`] does.
#[must_use]
pub fn is_among_first(descriptor: BorrowedFd<'_>, part: u64) -> bool {
    let number = u64::from(descriptor.as_raw_fd().unsigned_abs());
    getrlimit(Resource::Nofile).current.is_none_or(|most| number < most / part)
}

/// Says whether this process acts as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the largest resident set that this process has had, in bytes.
#[must_use]
pub fn own_peak() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| u64::try_from(usage.max_rss()).unwrap_or(0).saturating_mul(1024))
}

/// A capability that treeherd has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The kernel's name: `CAP_KILL`.
    pub name: &'static str,
    /// Whether this process has it in effect.
    pub present: bool,
    /// What is lost without it.
    pub without: &'static str,
}

const CAPABILITIES: [(&str, CapabilitySet, &str); 8] = [
    (
        "CAP_SYS_ADMIN",
        CapabilitySet::SYS_ADMIN,
        "no cgroup2 hierarchy can be mounted, and no identity can be kept in a cgroup's trusted attributes",
    ),
    ("CAP_SETUID", CapabilitySet::SETUID, "agents cannot run as another user"),
    ("CAP_SETGID", CapabilitySet::SETGID, "agents cannot run with another group, nor give up the supplementary ones"),
    ("CAP_KILL", CapabilitySet::KILL, "agents of another user get no stop signal; only the kill reaches them"),
    (
        "CAP_DAC_OVERRIDE",
        CapabilitySet::DAC_OVERRIDE,
        "cgroups that belong to another user cannot be made, limited or killed",
    ),
    ("CAP_CHOWN", CapabilitySet::CHOWN, "the socket cannot be given to a group, nor a cgroup to a user"),
    (
        "CAP_SYS_RESOURCE",
        CapabilitySet::SYS_RESOURCE,
        "hard rlimits cannot be raised, oom_score_adj cannot be lowered, and pressure is told in steps of 2 s",
    ),
    ("CAP_SYS_NICE", CapabilitySet::SYS_NICE, "agents cannot be made more urgent than treeherd itself"),
];

/// Lists the capabilities that treeherd has a use for, and which of them it has.
///
/// # Errors
/// None that is known.
///
/// # Kernel
/// capget(2), capabilities(7).
pub fn capabilities() -> Result<Vec<Capability>> {
    let ours = rustix::thread::capabilities(None)
        .map_err(|errno| KernelError::new("capget", "this process", errno))?
        .effective;
    let list = CAPABILITIES.iter();
    Ok(list.map(|(name, bit, without)| Capability { name, present: ours.contains(*bit), without }).collect())
}

/// Reads a file of `/proc` that shows bytes which a process chose, such as its name: what is no
/// UTF-8 becomes U+FFFD.
pub(super) fn read_text(path: impl AsRef<Path>) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

/// Returns the signals that this process ignores now, a bit each from signal 1 on.
///
/// # Errors
/// Those of reading procfs.
///
/// # Kernel
/// `SigIgn`, proc_pid_status(5).
pub fn ignored_signals() -> Result<u64> {
    let file = "/proc/self/status";
    let operation = "read the ignored signals in";
    let status = read_text(file).map_err(|error| KernelError::from_io(operation, file, &error))?;
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.ok_or_else(|| KernelError::new(operation, file, Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_descriptor_limit_is_raised_to_the_hard_one() {
        let most = raise_descriptor_limit().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), most);
        assert_eq!(raise_descriptor_limit().unwrap(), most, "twice is the same as once");
    }

    #[test]
    fn a_descriptors_number_says_how_many_are_open() {
        let most = raise_descriptor_limit().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_among_last(file.as_fd(), 16));
        assert!(is_among_last(file.as_fd(), most));
    }

    #[test]
    fn the_capabilities_are_those_that_proc_tells() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
        for (capability, (_, bit, _)) in capabilities().unwrap().iter().zip(CAPABILITIES) {
            assert_eq!(capability.present, mask & bit.bits() != 0, "{}", capability.name);
        }
    }
}

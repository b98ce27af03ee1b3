//! What this process takes for itself, so that those whom it supervises cannot starve it: CPU, memory, the OOM killer's mercy.
//!
//! Each call says what the kernel answered; that a host does not offer one of them is no reason not to start. What children
//! must not inherit (the nice value, `oom_score_adj`) their spawn gives back; memory locks end with `exec`.

use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::thread::CapabilitySet;

use super::error::{KernelError, Result};

/// Gives the calling thread, and those that it starts from now on, this nice value, and returns the one before.
///
/// # Errors
/// EPERM, EACCES: no CAP_SYS_NICE.
///
/// # Kernel
/// setpriority(2); on Linux a nice value is a thread's.
pub fn set_nice(nice: i8) -> Result<i8> {
    let failed = |errno| {
        KernelError::new("setpriority", nice.to_string(), errno).hint("give it CAP_SYS_NICE, or Nice= in its unit")
    };
    let before = rustix::process::getpriority_process(None).map_err(failed)?;
    rustix::process::setpriority_process(None, nice.into()).map_err(failed)?;
    Ok(i8::try_from(before).unwrap_or(0))
}

/// Gives this process's session this nice value among all sessions: where the scheduler groups tasks by session, a nice value
/// counts only within it. Does nothing where it does not, or where the session is not this process's own.
///
/// # Errors
/// EPERM: no CAP_SYS_NICE. EAGAIN: it was changed a moment ago.
///
/// # Kernel
/// 2.6.38, `CONFIG_SCHED_AUTOGROUP`; sched(7), "The autogroup feature".
pub fn set_session_nice(nice: i8) -> Result<()> {
    // A session that began outside this pid namespace has the number 0 here.
    let own = nix::unistd::Pid::this();
    if nix::unistd::getsid(None) != Ok(own) {
        return Ok(());
    }
    match std::fs::write("/proc/self/autogroup", nice.to_string()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(KernelError::from_io("write", "/proc/self/autogroup", &error))
        }
        _ => Ok(()),
    }
}

/// Keeps what this process has in memory there, and what it will have from its first use on. Nothing is read ahead.
///
/// What counts is the program's own text: where memory is short and there is no swap, it is the first to be dropped, and has
/// to be read back from a disk that everybody reads from.
///
/// # Errors
/// EPERM: no CAP_IPC_LOCK. (With a limit instead of the capability a later allocation could fail: then it is not tried.)
///
/// # Kernel
/// 4.4 (`MCL_ONFAULT`), mlock(2).
pub fn lock_memory() -> Result<()> {
    let failed = |errno| KernelError::new("mlockall", "this process", errno).hint("give it CAP_IPC_LOCK");
    if !rustix::thread::capabilities(None).map_err(failed)?.effective.contains(CapabilitySet::IPC_LOCK) {
        return Err(failed(Errno::PERM));
    }
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(failed)
}

/// Lets go of all program text and constants that were used so far, this program's and its libraries': what is needed from now on comes
/// back from the page cache, in pieces of 64 KiB. To be called before [`lock_memory`], which keeps what was ever used.
///
/// # Errors
/// Those of reading procfs.
///
/// # Kernel
/// `MADV_DONTNEED`, madvise(2); `CONFIG_PROC_PAGE_MONITOR`, proc_pid_smaps(5).
pub fn forget_program() -> Result<()> {
    let file = "/proc/self/smaps";
    let smaps = std::fs::read_to_string(file).map_err(|error| KernelError::from_io("read", file, &error))?;
    unwritten(&smaps).try_for_each(|pages| {
        // SAFETY: these pages are mapped from a file, cannot be written to and never were: what comes back is what was there.
        #[allow(unsafe_code)]
        let forgotten = unsafe {
            let start = std::ptr::with_exposed_provenance_mut(pages.start);
            rustix::mm::madvise(start, pages.len(), rustix::mm::Advice::LinuxDontNeed)
        };
        forgotten.map_err(|errno| KernelError::new("madvise", "program text", errno))
    })
}

/// Finds the mappings of which every page is as it is in its file. What was relocated before it was made read-only is not.
fn unwritten(smaps: &str) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut mapping = None;
    smaps.lines().filter_map(move |line| match line.strip_prefix("Anonymous:") {
        Some(size) => mapping.take().filter(|_| size.trim() == "0 kB"),
        None => {
            // A figure's line has a colon behind its first word, and a mapping's has a range there.
            if line.split(' ').next().is_some_and(|word| !word.ends_with(':')) {
                mapping = from_file(line);
            }
            None
        }
    })
}

/// Reads where a mapping is, if it is a private one of a file and cannot be written to.
fn from_file(mapping: &str) -> Option<std::ops::Range<usize>> {
    let mut words = mapping.split_ascii_whitespace();
    let (range, access, file) = (words.next()?, words.next()?, words.nth(3)?);
    let (start, end) = range.split_once('-')?;
    let is_fixed = matches!(access, "r-xp" | "r--p") && file.starts_with('/');
    is_fixed.then_some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

/// Has the OOM killer take others first: -1000 (never) to 1000. A value that is lower already stays.
///
/// # Errors
/// EPERM, EACCES: no CAP_SYS_RESOURCE.
///
/// # Kernel
/// proc_pid_oom_score_adj(5).
pub fn lower_oom_score(adj: i16) -> Result<()> {
    let file = "/proc/self/oom_score_adj";
    let failed = |error: std::io::Error| {
        KernelError::from_io("write", file, &error).hint("give it CAP_SYS_RESOURCE, or OOMScoreAdjust= in its unit")
    };
    let now = std::fs::read_to_string(file).map_err(failed)?.trim().parse::<i16>().unwrap_or(0);
    if now <= adj {
        return Ok(());
    }
    std::fs::write(file, adj.to_string()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55e6-55f0 r--p 00000000 fe:00 8249952    /usr/bin/a program
Rss:                  16 kB
Anonymous:             0 kB
55f0-56f0 r-xp 0000a000 fe:00 8249952    /usr/bin/a program
Anonymous:             0 kB
56f0-5700 r--p 0010a000 fe:00 8249952    /usr/bin/a program
Anonymous:            16 kB
5700-5710 rw-p 0011a000 fe:00 8249952    /usr/bin/a program
Anonymous:             0 kB
5710-5720 r--p 00000000 00:00 0          [vvar]
Anonymous:             0 kB
5720-5730 r--s 00000000 00:1a 12         /dev/shm/shared
Anonymous:             0 kB
5730-5740 r-xp 00000000 00:00 0
Anonymous:             0 kB
";

    #[test]
    fn what_is_as_in_its_file_is_found() {
        assert_eq!(unwritten(SMAPS).collect::<Vec<_>>(), [0x55e6..0x55f0, 0x55f0..0x56f0]);
        assert_eq!(unwritten("").count(), 0);
    }

    #[test]
    fn what_was_let_go_of_is_out_of_memory_until_it_is_used() {
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let lines = smaps.lines().skip_while(|line| !line.contains("r-xp") || from_file(line).is_none());
            let rss = lines.clone().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        forget_program().unwrap();
        assert!(resident() < before, "of {before} kB");
    }
}

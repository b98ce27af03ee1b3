//! How much memory this process's own program takes: its text and constants, and its libraries'.
//!
//! They are mapped from files. What is used comes in by faults, and with each the kernel maps what is around it (64 KiB,
//! `fault_around_bytes`): after a while most of a program is in memory that half of it would serve, and under
//! [`guard::lock_memory`](super::guard::lock_memory) it stays there.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mm::{Advice, UserfaultfdFlags};

use super::error::{KernelError, Result};
use super::process::read_text;

/// How much of the stack is left beyond where it is, for what is called from there.
const STACK_LEFT: usize = 16 << 10;

/// This process's program, of which only the pages come in that are used; until this is dropped.
#[derive(Debug)]
pub struct Sparse {
    _userfaultfd: OwnedFd,
}

/// Has text and constants come in page by page. What is in already stays: see [`forget`].
///
/// Around a page the kernel maps nothing where somebody wants to know of writes by pages. Here nobody does, and nothing is
/// written.
///
/// # Errors
/// EINVAL: an older kernel. ENOSYS: one without `CONFIG_USERFAULTFD`. EPERM: a container's filter forbids it. Those of reading procfs.
///
/// # Kernel
/// Linux 6.7 (`UFFD_FEATURE_WP_ASYNC`), ioctl_userfaultfd(2).
#[allow(unsafe_code)]
pub fn sparse() -> Result<Sparse> {
    /// `UFFD_USER_MODE_ONLY`: with it nobody needs a privilege.
    const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);
    /// `_IOWR(0xAA, 0x3F, struct uffdio_api)`: version, features, what else can be asked for.
    const UFFDIO_API: u32 = 0xC018_AA3F;
    const UFFD_API: u64 = 0xAA;
    const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
    /// `_IOWR(0xAA, 0x00, struct uffdio_register)`: start, length, mode, what else can be asked for.
    const UFFDIO_REGISTER: u32 = 0xC020_AA00;
    const UFFDIO_REGISTER_MODE_WP: u64 = 2;

    let failed = |call| move |errno| KernelError::new(call, "this process", errno).hint("it takes Linux 6.7");
    // SAFETY: of the two modes in which a fault waits for whoever has this descriptor neither is asked for.
    let userfaultfd = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | USER_MODE_ONLY) };
    let userfaultfd = userfaultfd.map_err(failed("userfaultfd"))?;
    request(&userfaultfd, UFFDIO_API, &mut [UFFD_API, UFFD_FEATURE_WP_ASYNC, 0]).map_err(failed("UFFDIO_API"))?;
    for pages in unwritten(&smaps()?) {
        let mut register = [pages.start as u64, pages.len() as u64, UFFDIO_REGISTER_MODE_WP, 0];
        request(&userfaultfd, UFFDIO_REGISTER, &mut register).map_err(failed("UFFDIO_REGISTER"))?;
    }
    Ok(Sparse { _userfaultfd: userfaultfd })
}

/// Has all threads share one heap: of glibc's, one for each thread, each keeps what was once needed in it. To be called before there
/// are other threads. Other C libraries have one anyway.
///
/// `M_ARENA_MAX`, mallopt(3).
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes a setting of the allocator, which takes any value.
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free in the heap, glibc's. Locked memory cannot be given back in part: it is unlocked for that moment, and
/// locked again by [`guard::lock_memory`](super::guard::lock_memory).
///
/// # Kernel
/// malloc_trim(3); `EINVAL` of `MADV_DONTNEED` for locked pages, madvise(2); munlockall(2).
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    {
        let is_locked = std::fs::read_to_string("/proc/self/status")
            .is_ok_and(|status| status.lines().any(|line| line.starts_with("VmLck:") && !line.ends_with(" 0 kB")));
        if is_locked {
            rustix::mm::munlockall().unwrap_or_default();
        }
        // SAFETY: it gives back pages that hold nothing, under the allocator's own lock.
        #[allow(unsafe_code)]
        unsafe {
            libc::malloc_trim(0);
        }
        if is_locked {
            // It could be locked before, and nothing has changed since.
            super::guard::lock_memory().unwrap_or_default();
        }
    }
}

/// Makes a request that takes, and answers in, so many numbers.
#[allow(unsafe_code)]
fn request<const N: usize>(
    userfaultfd: &OwnedFd,
    request: u32,
    numbers: &mut [u64; N],
) -> std::result::Result<(), Errno> {
    debug_assert_eq!(
        usize::try_from(request >> 16 & 0x3FFF),
        Ok(size_of::<[u64; N]>()),
        "the request carries its size"
    );
    // SAFETY: the kernel reads and writes as many bytes as the request says, and so many are there.
    let answer = unsafe { libc::ioctl(userfaultfd.as_raw_fd(), libc::Ioctl::from(request), numbers.as_mut_ptr()) };
    if answer < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    Ok(())
}

/// Lets go of all text and constants that were used so far: what is needed from now on comes back from the page cache. So it does of
/// what is free in the heap, glibc's, and in the main thread of what its stack was used for beyond where it is now: a start goes
/// deeper than what comes after it. To be called before [`guard::lock_memory`](super::guard::lock_memory), which keeps what was ever
/// used.
///
/// # Errors
/// Those of reading procfs.
///
/// # Kernel
/// `MADV_DONTNEED`, madvise(2); `CONFIG_PROC_PAGE_MONITOR`, proc_pid_smaps(5); malloc_trim(3).
#[allow(unsafe_code)]
pub fn forget() -> Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: it gives back pages that hold nothing, under the allocator's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
    let smaps = smaps()?;
    unwritten(&smaps).into_iter().chain(spent_stack(&smaps)).try_for_each(|pages| {
        let start = std::ptr::with_exposed_provenance_mut(pages.start);
        // SAFETY: these pages are mapped from a file, cannot be written to and never were, and what comes back is what was there;
        // or they are beyond the top of the stack, where nothing is kept.
        let forgotten = unsafe { rustix::mm::madvise(start, pages.len(), Advice::LinuxDontNeed) };
        forgotten.map_err(|errno| KernelError::new("madvise", "what the start has used", errno))
    })
}

/// Finds in `smaps` what of the calling thread's stack is beyond where it is, if that is the main thread's: it is alone in its mapping.
fn spent_stack(smaps: &str) -> Option<Range<usize>> {
    let local = 0u8;
    let here = std::ptr::from_ref(&local).addr();
    let stack = smaps.lines().filter_map(mapping).find(|it| it.name == "[stack]" && it.range.contains(&here))?;
    // It grows downwards.
    let end = here.saturating_sub(STACK_LEFT) & !(rustix::param::page_size() - 1);
    Some(stack.range.start..end)
}

/// Reads what this process has mapped.
fn smaps() -> Result<String> {
    let file = "/proc/self/smaps";
    read_text(file).map_err(|error| KernelError::from_io("read", file, &error))
}

/// What is mapped somewhere.
struct Mapping<'a> {
    range: Range<usize>,
    access: &'a str,
    /// A file's path, or what the kernel calls it.
    name: &'a str,
    /// Nothing in it is other than in its file: what was relocated before it was made read-only is.
    is_unwritten: bool,
}

/// Finds in `smaps` what is as in its file, and stays so, of programs and libraries: of files that are mapped to be executed, too.
/// Those stay; what else is mapped, a thread may be about to give up.
fn unwritten(smaps: &str) -> Vec<Range<usize>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        match line.strip_prefix("Anonymous:") {
            None => mappings.extend(mapping(line)),
            Some(size) => {
                if let Some(last) = mappings.last_mut() {
                    last.is_unwritten = size.trim() == "0 kB";
                }
            }
        }
    }
    let is_program = |it: &Mapping<'_>| it.access == "r-xp" && it.name.starts_with('/');
    let programs: Vec<&str> = mappings.iter().filter(|it| is_program(it)).map(|it| it.name).collect();
    let is_fixed = |it: &&Mapping<'_>| it.is_unwritten && matches!(it.access, "r-xp" | "r--p");
    let fixed = mappings.iter().filter(is_fixed).filter(|it| programs.contains(&it.name));
    fixed.map(|it| it.range.clone()).collect()
}

/// Reads the line that begins a mapping.
fn mapping(line: &str) -> Option<Mapping<'_>> {
    let [range, access, _, _, _, name] = line.splitn(6, ' ').collect::<Vec<_>>().try_into().ok()?;
    let (start, end) = range.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    Some(Mapping { range, access, name: name.trim_start(), is_unwritten: false })
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
5730-5731 r--p 00000000 fe:00 77         /etc/ld.so.cache
Anonymous:             0 kB
5731-5740 r-xp 00000000 00:00 0 
Anonymous:             0 kB
";

    #[test]
    fn what_is_as_in_its_file_is_found() {
        assert_eq!(unwritten(SMAPS), [0x55e6..0x55f0, 0x55f0..0x56f0]);
        assert!(unwritten("").is_empty());
    }
    #[test]
    fn what_was_let_go_of_is_out_of_memory_until_it_is_used() {
        let resident = || {
            let smaps = smaps().unwrap();
            let is_text = |line: &str| mapping(line).is_some_and(|it| it.access == "r-xp" && it.name.starts_with('/'));
            let rss =
                smaps.lines().skip_while(|line| !is_text(line)).find_map(|line| line.strip_prefix("Rss:")).unwrap();
            rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        forget().unwrap();
        assert!(resident() < before, "of {before} kB");
    }
}

//! A process without a program: it runs one function of this crate, in memory of its own that holds nothing else.
//!
//! For what has to outlive this process, in a library too, where there is no program of ours to execute. The child is a copy of
//! this process (`fork`), and gives back all that was copied but the code and its stack. So it costs some pages, keeps
//! neither a terminal nor a pipe open, and no signal to this process's group or session reaches it.
//!
//! What stays besides is what its thread has of its own: the kernel writes to a part of it (rseq(2)) whenever the thread is switched.
//!
//! What runs there may do what a signal handler may, and less: no allocation, no lock, no thread-local, no panic, no libc but
//! what copies memory. rustix's system calls are such.

use std::ffi::{CStr, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::Launched;
use super::raw::{self, CloneArgs, Stack};
use crate::kernel::error::{KernelError, Result};

/// How many descriptors the process may be given.
const DESCRIPTORS_MAX: usize = 32;

/// How many mapped ranges of code may be kept.
const RANGES_MAX: usize = 128;

/// How far around its descriptor the memory of a thread is kept, in bytes, as far as one mapping reaches; and the size of the stack of
/// the thread that is copied.
const THREAD: usize = 64 << 10;

/// How much is kept behind what is mapped of libc's file, in bytes: it has some 50,000 of variables.
const VARIABLES: usize = 64 << 10;

/// A range of addresses: the first, and the first behind it.
type Range = (usize, usize);

/// What the child needs, at the low end of its stack's mapping.
struct Birth<T> {
    name: &'static CStr,
    main: fn(&T) -> !,
    orders: T,
    descriptors: [i32; DESCRIPTORS_MAX],
    given: usize,
    /// In ascending order.
    keep: [Range; RANGES_MAX],
    kept: usize,
    /// Behind the highest address that is mapped.
    end: usize,
}

/// Starts a process, called `name`, that runs `main` with a copy of `orders`, in the cgroup of an open directory, or in ours. It leads a session of its own, has
/// every signal blocked, and the given descriptors as 0, 1, 2 and so on. It is a child that only `waitid` with `__WCLONE` reports.
///
/// # Errors
/// EAGAIN, ENOMEM: no process or memory is left.
///
/// # Safety
/// `main` and all that it calls keep to what the module's header says, and `orders` contains no pointer.
///
/// # Kernel
/// Linux 5.9 (`close_range(2)`), 5.7 (`CLONE_INTO_CGROUP`).
#[allow(unsafe_code)]
pub(in crate::kernel) unsafe fn start<T: Copy + Send>(
    name: &'static CStr,
    main: fn(&T) -> !,
    orders: T,
    descriptors: &[BorrowedFd<'_>],
    leaf: Option<BorrowedFd<'_>>,
) -> Result<Launched> {
    // A fresh thread has little memory of its own, and all of it in one place.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("guard".to_owned()).stack_size(THREAD);
        // SAFETY: the caller's promise.
        let started =
            thread.spawn_scoped(scope, move || unsafe { copy_this_thread(name, main, orders, descriptors, leaf) });
        let failed = |errno| KernelError::new("start a thread", "guard", errno);
        let started = started.map_err(|error| KernelError::from_io("start a thread", "guard", &error))?;
        started.join().unwrap_or_else(|_| Err(failed(Errno::FAULT)))
    })
}

/// Does as [`start`], and copies the calling thread.
///
/// # Safety
/// As [`start`].
#[allow(unsafe_code)]
unsafe fn copy_this_thread<T: Copy>(
    name: &'static CStr,
    main: fn(&T) -> !,
    orders: T,
    descriptors: &[BorrowedFd<'_>],
    leaf: Option<BorrowedFd<'_>>,
) -> Result<Launched> {
    let failed = |errno| KernelError::new("start", "a process without a program", errno);
    if descriptors.len() > DESCRIPTORS_MAX || size_of::<Birth<T>>() > Stack::SIZE / 2 {
        return Err(failed(Errno::TOOBIG));
    }
    let stack = Stack::new().map_err(failed)?;
    let low = usize::try_from(stack.usable()).map_err(|_| failed(Errno::INVAL))?;
    // Above those that the child is to have: none is overwritten before it is in its place.
    let lowest = i32::try_from(DESCRIPTORS_MAX).unwrap_or(i32::MAX);
    let sources: Vec<OwnedFd> = descriptors
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, lowest).map_err(failed))
        .collect::<Result<_>>()?;
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|e| KernelError::from_io("read", "maps", &e))?;
    let code = begin::<T> as extern "C" fn(*mut c_void) -> ! as usize;
    // An address: as wide as usize, whatever libc calls it.
    // SAFETY: it reads a register.
    #[allow(clippy::cast_possible_truncation)]
    let thread = unsafe { libc::pthread_self() } as usize;
    let (ranges, end) = worth_keeping(&maps, code, thread, (low, low + Stack::SIZE));
    let mut birth = Birth {
        name,
        main,
        orders,
        descriptors: [-1; DESCRIPTORS_MAX],
        given: sources.len(),
        keep: [(0, 0); RANGES_MAX],
        kept: ranges.len(),
        end,
    };
    birth.keep[..ranges.len()].copy_from_slice(&ranges);
    birth.descriptors.iter_mut().zip(&sources).for_each(|(place, fd)| *place = fd.as_raw_fd());
    let place = std::ptr::with_exposed_provenance_mut::<Birth<T>>(low);
    // SAFETY: the mapping is ours alone, writable, aligned to a page, and larger than what is written, as was checked above.
    unsafe { place.write(birth) };
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: raw::CLONE_PIDFD | raw::CLONE_CLEAR_SIGHAND,
        pidfd: std::ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        stack: stack.usable(),
        stack_size: Stack::SIZE as u64,
        ..CloneArgs::default()
    };
    if let Some(leaf) = leaf {
        args.flags |= raw::CLONE_INTO_CGROUP;
        args.cgroup = u64::from(leaf.as_raw_fd().cast_unsigned());
    }
    let mask = raw::set_signal_mask(raw::ALL_SIGNALS);
    // SAFETY: the stack and what lies at its low end are copied with all memory, and nobody else uses the copy; `begin` and, as the
    // caller promises, `main` do only what a child of a process with threads may.
    let pid = unsafe { raw::clone3(&args, begin::<T>, place.cast()) };
    raw::set_signal_mask(mask);
    let pid = pid.map_err(|errno| failed(Errno::from_raw_os_error(errno)))?;
    // SAFETY: the kernel has just put a new descriptor there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Launched { pid: i32::try_from(pid).unwrap_or(0), pidfd })
}

/// The child's first steps.
extern "C" fn begin<T: Copy>(birth: *mut c_void) -> ! {
    // SAFETY: it was written there right before this process was made, and that memory is kept.
    #[allow(unsafe_code)]
    let birth = unsafe { &*birth.cast::<Birth<T>>() };
    call(libc::SYS_setsid, [0; 5]);
    for (number, source) in birth.descriptors.iter().take(birth.given).enumerate() {
        call(libc::SYS_dup3, [source.cast_unsigned() as usize, number, 0, 0, 0]);
    }
    call(libc::SYS_close_range, [birth.given, u32::MAX as usize, 0, 0, 0]);
    // Neither a directory nor a mount point is in use because of this process.
    call(libc::SYS_chdir, [c"/".as_ptr().expose_provenance(), 0, 0, 0, 0]);
    let name = birth.name.as_ptr().expose_provenance();
    call(libc::SYS_prctl, [libc::PR_SET_NAME.cast_unsigned() as usize, name, 0, 0, 0]);
    let mut from = 0;
    for (first, behind) in birth.keep.iter().take(birth.kept) {
        call(libc::SYS_munmap, [from, first.wrapping_sub(from), 0, 0, 0]);
        from = *behind;
    }
    call(libc::SYS_munmap, [from, birth.end.wrapping_sub(from), 0, 0, 0]);
    (birth.main)(&birth.orders)
}

/// Ends a process that was made here.
pub(in crate::kernel) fn end() -> ! {
    raw::exit(0)
}

/// Calls the kernel; what a step of [`begin`] cannot do is done without.
fn call(number: libc::c_long, arguments: [usize; 5]) {
    // SAFETY: the calls are those of `begin`: they write to no memory, and what is unmapped nothing refers to any more.
    #[allow(unsafe_code)]
    match unsafe { raw::syscall(number, arguments) } {
        Ok(_) | Err(_) => {}
    }
}

/// Finds the ranges that the child needs in the text of `/proc/self/maps`: those of the files whose code is mapped, the one with
/// `code` first of all and libc next, where there are too many; the kernel's own; what its thread has of its own; and its stack.
/// Returns them in ascending order, and the end of what is mapped.
fn worth_keeping(maps: &str, code: usize, thread: usize, stack: Range) -> (Vec<Range>, usize) {
    struct Mapping<'a> {
        range: Range,
        is_code: bool,
        file: Option<&'a str>,
        name: &'a str,
    }
    let parse = |line| {
        let line: &str = line;
        let mut words = line.split_ascii_whitespace();
        let (first, behind) = words.next()?.split_once('-')?;
        let range = (usize::from_str_radix(first, 16).ok()?, usize::from_str_radix(behind, 16).ok()?);
        let is_code = words.next()?.contains('x');
        let (_, device, inode) = (words.next()?, words.next()?, words.next()?);
        let name = words.next().unwrap_or("");
        let at = line.find(device)?;
        // Device and inode are one word after the other.
        let file = (inode != "0").then(|| &line[at..at + device.len() + 1 + inode.len()]);
        Some(Mapping { range, is_code, file, name })
    };
    // The page of `vsyscall` is at the other end of the address space, and no mapping.
    let mappings: Vec<Mapping<'_>> = maps.lines().filter_map(parse).filter(|it| it.range.1 <= usize::MAX / 2).collect();
    let end = mappings.iter().map(|it| it.range.1).max().unwrap_or(0).max(stack.1);
    let contains = |range: Range| (range.0..range.1).contains(&code);
    let own = mappings.iter().find(|it| contains(it.range)).and_then(|it| it.file);
    let rank = |mapping: &Mapping<'_>| match mapping.file {
        Some(file) if Some(file) == own => Some(0),
        None if mapping.name.starts_with("[v") || contains(mapping.range) => Some(0),
        None => None,
        Some(_) if mapping.name.starts_with("/memfd:") => None,
        Some(file) => {
            let has_code = mappings.iter().any(|other| other.is_code && other.file == Some(file));
            let is_libc = ["/libc", "/ld-"].iter().any(|part| mapping.name.contains(part));
            has_code.then_some(if is_libc { 1 } else { 2 })
        }
    };
    let mut ranked: Vec<(u8, Range)> = mappings.iter().filter_map(|it| Some((rank(it)?, it.range))).collect();
    let around = mappings.iter().find(|it| (it.range.0..it.range.1).contains(&thread)).map(|it| it.range);
    let near =
        |(first, behind): Range| (first.max((thread - THREAD) & !0xffff), behind.min((thread + THREAD) & !0xffff));
    ranked.extend(around.map(|range| (0, near(range))));
    // The variables without a value of libc, whose functions look there how to copy.
    let libcs = mappings.iter().filter(|it| rank(it) == Some(1)).map(|it| it.range.1);
    let is_behind = |end: usize| move |it: &&Mapping<'_>| it.range.0 == end && it.file.is_none();
    let behind = libcs.filter_map(|end| mappings.iter().find(is_behind(end)));
    ranked.extend(behind.map(|it| (1, (it.range.0, it.range.1.min(it.range.0 + VARIABLES)))));
    ranked.push((0, stack));
    ranked.sort_unstable();
    ranked.truncate(RANGES_MAX);
    let mut kept: Vec<Range> = ranked.into_iter().map(|(_, range)| range).collect();
    kept.sort_unstable();
    kept.dedup_by(|next, before| {
        next.0 == before.1 && {
            before.1 = next.1;
            true
        }
    });
    (kept, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_kept_with_the_files_that_it_comes_from_and_nothing_else() {
        let maps = "\
            1000-2000 r--p 00000000 fe:00 11                         /usr/bin/program\n\
            2000-3000 r-xp 00001000 fe:00 11                         /usr/bin/program\n\
            3000-4000 rw-p 00002000 fe:00 11                         /usr/bin/program\n\
            4000-9000 rw-p 00000000 00:00 0                          [heap]\n\
            a000-b000 r--s 00000000 fe:00 12                         /var/lib/data\n\
            c000-d000 r-xp 00000000 fe:00 13                         /usr/lib/libc.so.6\n\
            d000-f000 rw-p 00000000 00:00 0 \n\
            f000-f800 r-xp 00000000 00:01 14                         /memfd:jit (deleted)\n\
            f800-fa00 rwxp 00000000 00:00 0 \n\
            10000-20000 rw-p 00000000 00:00 0 \n\
            20000-51000 rw-p 00000000 00:00 0 \n\
            60000-61000 r-xp 00000000 00:00 0                        [vdso]\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]\n";
        let (kept, end) = worth_keeping(maps, 0x2800, 0x50800, (0x10000, 0x18000));
        assert_eq!(
            kept,
            [(0x1000, 0x4000), (0xc000, 0xf000), (0x10000, 0x18000), (0x40000, 0x51000), (0x60000, 0x61000)]
        );
        assert_eq!(end, 0x61000);
    }
}

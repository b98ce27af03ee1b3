//! One inotify instance for everything that is watched: event files of cgroups, spool files of agents.
//!
//! Instances are limited to 128 a user, watches are not short: so one instance, shared by all threads (every call takes
//! `&self`). A fact says *that* a file was written, never what: equal facts merge, so whoever gets one reads the file.
//! A file is named by its directory's descriptor, so that the depth of a tree does not matter.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::error::{KernelError, Result};

/// One watch. The kernel counts upwards and does not give a number out again before it has used up 2³¹.
///
/// Watching a file that is watched already gives the same number and takes the place of the first watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(i32);

/// What became of watched files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// The file was written to or unlinked, once or more often; or something was removed from the directory.
    Modified(WatchId),
    /// The watch has ended: removed by us, fired as a one-shot, or its file is gone. Many kernels do not tell it of the
    /// files of a cgroup that was removed (6.18 does not): end such a watch before the `rmdir`.
    Gone(WatchId),
    /// The queue was full and facts are lost: everything that is watched must be looked at.
    Overflow,
}

/// Whether the kernel may have more facts than a read returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The queue was seen empty: the next fact makes the descriptor readable again.
    Nothing,
    /// The bound of one read was reached. An edge-triggered poll will not tell: read again.
    Maybe,
}

/// An inotify instance. Readable when there are facts.
#[derive(Debug)]
pub struct Watches {
    inotify: OwnedFd,
}

/// How many buffers one [`Watches::read`] takes: 4 of 64 KiB hold the 16,384 facts of a full queue.
const BUFFERS_A_READ: usize = 4;
const BUFFER: usize = 64 << 10;

impl Watches {
    /// Makes an instance. Closes on exec, never blocks.
    ///
    /// # Errors
    /// EMFILE: `fs.inotify.max_user_instances` or the limit on descriptors is reached.
    ///
    /// # Kernel
    /// Linux 2.6.27, inotify(7).
    pub fn new() -> Result<Self> {
        match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
            Ok(inotify) => Ok(Self { inotify }),
            Err(errno) => {
                let error = KernelError::new("inotify_init", "an instance", errno);
                Err(match errno {
                    Errno::MFILE => error.hint("raise the sysctl fs.inotify.max_user_instances"),
                    _ => error,
                })
            }
        }
    }

    /// Watches a file of a directory for being written to, until it is removed.
    ///
    /// # Errors
    /// ENOENT, ENODEV ([`KernelError::is_gone`]): no such file, or its directory has been removed. ENOSPC: too many watches.
    pub fn add_modify(&self, dir: BorrowedFd<'_>, file: &str) -> Result<WatchId> {
        self.add(dir, file, WatchFlags::MODIFY)
    }

    /// Watches a file of a directory for being written to or unlinked once: [`Fact::Modified`], then [`Fact::Gone`], and then
    /// its writers pay nothing any more.
    ///
    /// A write between the last look at the file and this call is not told: look again after it. The watch that fired ends only
    /// when its writer runs on, which may be after this call: then this one is the same, and [`Fact::Gone`] is its only fact.
    ///
    /// # Errors
    /// As [`Watches::add_modify`].
    pub fn add_modify_once(&self, dir: BorrowedFd<'_>, file: &str) -> Result<WatchId> {
        // Unlinking a file changes its link count, which is one of its attributes.
        self.add(dir, file, WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::ONESHOT)
    }

    /// Watches a directory for the removal of what is in it, and for its own: [`Fact::Modified`].
    ///
    /// # Errors
    /// As [`Watches::add_modify`].
    pub fn add_removals(&self, dir: BorrowedFd<'_>) -> Result<WatchId> {
        let removed = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
        self.add(dir, ".", removed | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF)
    }

    /// Watches a directory for what is made in it, moved there or written to.
    ///
    /// # Errors
    /// ENOENT, EACCES: what is wrong with the path. ENOSPC: too many watches.
    pub fn add_arrivals(&self, dir: &Path) -> Result<WatchId> {
        let arrivals = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        self.add_path(dir, &dir.display().to_string(), arrivals | WatchFlags::ONLYDIR)
    }

    fn add(&self, dir: BorrowedFd<'_>, file: &str, flags: WatchFlags) -> Result<WatchId> {
        let path = format!("/proc/self/fd/{}/{file}", dir.as_raw_fd());
        self.add_path(Path::new(&path), file, flags)
    }

    fn add_path(&self, path: &Path, shown: &str, flags: WatchFlags) -> Result<WatchId> {
        inotify::add_watch(&self.inotify, path, flags).map(WatchId).map_err(|errno| {
            let error = KernelError::new("watch", shown, errno);
            match errno {
                Errno::NOSPC => error.hint("raise the sysctl fs.inotify.max_user_watches"),
                _ => error,
            }
        })
    }

    /// Ends a watch. One that has ended already is what was wanted.
    ///
    /// # Errors
    /// None that is known.
    pub fn remove(&self, watch: WatchId) -> Result<()> {
        match inotify::remove_watch(&self.inotify, watch.0) {
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(KernelError::new("remove watch", watch.0.to_string(), errno)),
        }
    }

    /// Appends what has become of watched files to `facts`, without waiting.
    ///
    /// # Errors
    /// None that is known.
    pub fn read(&self, facts: &mut Vec<Fact>) -> Result<Left> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        for _ in 0..BUFFERS_A_READ {
            let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => facts.extend(fact(event.events(), WatchId(event.wd()))),
                    Err(Errno::AGAIN) => return Ok(Left::Nothing),
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(KernelError::new("read", "inotify", errno)),
                }
                if reader.is_buffer_empty() {
                    break;
                }
            }
        }
        Ok(Left::Maybe)
    }
}

/// What happens to a watched file or directory.
const CHANGES: ReadFlags = ReadFlags::MODIFY
    .union(ReadFlags::ATTRIB)
    .union(ReadFlags::DELETE)
    .union(ReadFlags::MOVED_FROM)
    .union(ReadFlags::CREATE)
    .union(ReadFlags::MOVED_TO)
    .union(ReadFlags::CLOSE_WRITE)
    .union(ReadFlags::DELETE_SELF)
    .union(ReadFlags::MOVE_SELF);

fn fact(events: ReadFlags, watch: WatchId) -> Option<Fact> {
    if events.contains(ReadFlags::QUEUE_OVERFLOW) {
        Some(Fact::Overflow)
    } else if events.contains(ReadFlags::IGNORED) {
        Some(Fact::Gone(watch))
    } else if events.intersects(CHANGES) {
        Some(Fact::Modified(watch))
    } else {
        None
    }
}

impl AsFd for Watches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn read(watches: &Watches) -> Vec<Fact> {
        let mut facts = Vec::new();
        assert_eq!(watches.read(&mut facts).unwrap(), Left::Nothing);
        facts
    }

    #[test]
    fn a_watch_tells_of_writes_merged_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let fd = fs::File::open(dir.path()).unwrap();
        let mut file = fs::File::create(dir.path().join("spool")).unwrap();
        let watches = Watches::new().unwrap();
        let watch = watches.add_modify(fd.as_fd(), "spool").unwrap();
        assert_eq!(read(&watches), []);
        file.write_all(b"a").unwrap();
        file.write_all(b"b").unwrap();
        assert_eq!(read(&watches), [Fact::Modified(watch)]);
        file.write_all(b"c").unwrap();
        assert_eq!(read(&watches), [Fact::Modified(watch)]);
        watches.remove(watch).unwrap();
        assert_eq!(read(&watches), [Fact::Gone(watch)]);
        watches.remove(watch).unwrap();
        file.write_all(b"d").unwrap();
        assert_eq!(read(&watches), []);
    }

    #[test]
    fn a_one_shot_watch_fires_once_and_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let fd = fs::File::open(dir.path()).unwrap();
        let mut file = fs::File::create(dir.path().join("spool")).unwrap();
        let watches = Watches::new().unwrap();
        let watch = watches.add_modify_once(fd.as_fd(), "spool").unwrap();
        file.write_all(b"a").unwrap();
        file.write_all(b"b").unwrap();
        assert_eq!(read(&watches), [Fact::Modified(watch), Fact::Gone(watch)]);
        let again = watches.add_modify_once(fd.as_fd(), "spool").unwrap();
        assert_ne!(again, watch, "a number is not given out again");
        file.write_all(b"c").unwrap();
        assert_eq!(read(&watches), [Fact::Modified(again), Fact::Gone(again)]);
    }

    #[test]
    fn what_is_unlinked_or_removed_from_a_directory_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        let fd = fs::File::open(&state).unwrap();
        let _open = fs::File::create(state.join("spool")).unwrap();
        let watches = Watches::new().unwrap();
        let file = watches.add_modify_once(fd.as_fd(), "spool").unwrap();
        let removals = watches.add_removals(fd.as_fd()).unwrap();
        fs::write(state.join("other"), "made and written").unwrap();
        assert_eq!(read(&watches), []);
        fs::remove_file(state.join("spool")).unwrap();
        let facts = read(&watches);
        assert!(facts.contains(&Fact::Modified(file)), "by its unlink, though it is open: {facts:?}");
        assert!(facts.contains(&Fact::Modified(removals)), "{facts:?}");
        fs::rename(&state, dir.path().join("moved")).unwrap();
        assert_eq!(read(&watches), [Fact::Modified(removals)]);
    }

    #[test]
    fn a_file_that_is_not_there_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let fd = fs::File::open(dir.path()).unwrap();
        let watches = Watches::new().unwrap();
        assert!(watches.add_modify(fd.as_fd(), "no-such").unwrap_err().is_gone());
    }

    #[test]
    fn a_full_queue_is_told_as_overflow() {
        let dir = tempfile::tempdir().unwrap();
        let fd = fs::File::open(dir.path()).unwrap();
        let watches = Watches::new().unwrap();
        let mut files: Vec<fs::File> = (0..2)
            .map(|name| {
                let file = fs::File::create(dir.path().join(name.to_string())).unwrap();
                watches.add_modify(fd.as_fd(), &name.to_string()).unwrap();
                file
            })
            .collect();
        let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
        // Only equal neighbours merge: two files in turn fill the queue.
        for turn in 0..=most {
            files[turn % 2].write_all(b"x").unwrap();
        }
        let mut facts = Vec::new();
        while watches.read(&mut facts).unwrap() == Left::Maybe {}
        assert_eq!(facts.last(), Some(&Fact::Overflow));
    }
}

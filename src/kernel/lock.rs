//! A lock on a file that ends with this process, whatever its children do.
//!
//! An `flock` belongs to the open file, which every child shares until its `exec`; a record lock belongs to the table of
//! descriptors, which our children share until they have one of their own ([`super::spawn`]). A child that hangs in a
//! frozen cgroup would keep either for a dead daemon, and the next one, the only one who could free that child, would not
//! start. So a thread with a table of its own holds the lock, and nothing else: it sleeps until the lock is given back.
//! That table is nobody else's in this process either, so a second lock on the same file is refused here, too.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::process;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, fcntl_getlk};

/// Enough for the few calls that the thread makes.
const STACK: usize = 64 << 10;

/// A lock that is ours until this value is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    keeper: Option<(JoinHandle<()>, Sender<()>)>,
}

/// Why there is no lock.
#[derive(Debug)]
pub(super) enum Refused {
    /// Somebody has it, told as the rest of a sentence.
    Held(String),
    /// The kernel's reason.
    Failed(Errno),
}

impl Lock {
    /// Locks a file that is open for writing.
    ///
    /// # Kernel
    /// fcntl_locking(2), close_range(2), 5.9.
    pub fn take(file: OwnedFd) -> Result<Self, Refused> {
        let (answer, answered) = channel();
        let (release, released) = channel();
        let number = file.as_raw_fd();
        let thread = Builder::new().name("lock".to_owned()).stack_size(STACK);
        let keeper = thread
            .spawn(move || keep(number, &answer, &released))
            .map_err(|error| Refused::Failed(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        let lock = Self { keeper: Some((keeper, release)) };
        // Until the thread has answered, the number is the file's in both tables.
        answered.recv().unwrap_or(Err(Refused::Failed(Errno::AGAIN)))?;
        drop(file);
        Ok(lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((keeper, release)) = self.keeper.take() {
            drop(release);
            // It cannot have panicked, and if it had, the lock were gone as well.
            keeper.join().unwrap_or_default();
        }
    }
}

/// The thread: locks, says so, and holds on until nobody wants the lock any more.
fn keep(number: i32, answer: &Sender<Result<(), Refused>>, released: &Receiver<()>) {
    let outcome = hold(number);
    let is_held = outcome.is_ok();
    if answer.send(outcome).is_ok() && is_held {
        released.recv().unwrap_or_default();
        // Here and not at the thread's end, which others know of before its table is gone.
        close(0, u32::MAX, 0).unwrap_or_default();
    }
}

fn hold(number: i32) -> Result<(), Refused> {
    let own = number.cast_unsigned();
    // A whole word of the kernel's bitmap: before 5.18 it copied a part of one wrongly.
    close((own | 63) + 1, u32::MAX, CLOSE_RANGE_UNSHARE).map_err(Refused::Failed)?;
    // From here on the table is ours. What was copied along would be open for as long as the lock is held.
    close(own + 1, u32::MAX, 0).map_err(Refused::Failed)?;
    if own > 0 {
        close(0, own - 1, 0).map_err(Refused::Failed)?;
    }
    // SAFETY: it is open in this table, and nobody closes it here while it is borrowed.
    #[allow(unsafe_code)]
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::AGAIN | Errno::ACCESS) => Err(Refused::Held(holder(file))),
        Err(errno) => Err(Refused::Failed(errno)),
    }
}

/// Says who has the lock. The kernel knows, unless it is in a pid namespace that we cannot see.
fn holder(file: BorrowedFd<'_>) -> String {
    match fcntl_getlk(file, &Flock::from(FlockType::WriteLock)) {
        Ok(Some(found)) => match found.pid {
            Some(pid) if pid.as_raw_nonzero().get().cast_unsigned() == process::id() => {
                "this process itself".to_owned()
            }
            Some(pid) => format!("the daemon with pid {pid}"),
            None => "a daemon outside this pid namespace".to_owned(),
        },
        Ok(None) | Err(_) => "a daemon that is just ending".to_owned(),
    }
}

const CLOSE_RANGE_UNSHARE: u32 = 2;

/// Closes descriptors of the calling thread, both ends included; with [`CLOSE_RANGE_UNSHARE`] in a table that is its own from
/// then on.
#[allow(unsafe_code)]
fn close(first: u32, last: u32, flags: u32) -> Result<(), Errno> {
    // SAFETY: only this file's thread calls this. In the table that it shares it closes nothing, and in its own no value of
    // this program owns a descriptor.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::*;

    fn take(path: &Path) -> Result<Lock, Refused> {
        Lock::take(File::options().write(true).create(true).truncate(false).open(path).unwrap().into())
    }

    #[test]
    fn a_lock_is_refused_to_the_same_process_too_and_is_free_once_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = take(&path).unwrap();
        for _ in 0..2 {
            // The descriptor of a lock that is refused is closed, which takes nothing from the one that is held.
            assert!(matches!(take(&path), Err(Refused::Held(by)) if by == "this process itself"));
        }
        drop(lock);
        for _ in 0..100 {
            drop(take(&path).expect("it is free as soon as the drop is done"));
        }
    }
}

//! What the guardian does: it waits, and then ends the herd. Everything here runs in a process without a program
//! (`spawn/bare.rs`): no allocation, no lock, no panic.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::walk::{self, Handle, Visit};
use super::{Estate, Text};
use crate::kernel::spawn::end_bare;

/// The descriptors, by number.
const SUPERVISOR: RawFd = 0;
const LINE: RawFd = 1;
const SPINE: RawFd = 2;
const LOCK: RawFd = 3;
const HOME: RawFd = 4;
const PARENT: RawFd = 5;
const ABOVE_STATE: RawFd = 6;
const MOUNTS: RawFd = 7;

/// How long the first kill of a herd may take before the second, in milliseconds; each next one twice as long.
const RETRY_MS: i64 = 50;

/// How often it is seen, each time after as long, whether a leaf is empty.
const EMPTY_LOOKS: u32 = 40;

/// The longest time between two kills, in milliseconds.
const RETRY_MAX_MS: i64 = 1_600;

/// How long a supervisor may take to die, in seconds.
const DYING_MAX: i64 = 60;

/// How many times the state directory is walked: before Linux 6.6 a walk through a tmpfs that removes what it finds passes over about half
/// of the rest, since a place in a directory is a count of the names before it.
const STATE_PASSES_MAX: u32 = 32;

/// How much of a list of processes is read at once.
const PROCS: usize = 4_096;

/// The longest path of a root cgroup; one that is longer stays.
const ROOT_MAX: usize = 2_048;

/// What the guardian has to know. Plain values.
#[derive(Clone, Copy)]
pub(super) struct Orders {
    root: Text<ROOT_MAX>,
    state: Text<256>,
    has_parent: bool,
    is_below_home: bool,
    mounts: usize,
}

impl Orders {
    pub(super) fn new(estate: &Estate, has_parent: bool) -> Self {
        Self {
            root: Text::new(estate.root.as_bytes()),
            state: Text::EMPTY,
            has_parent,
            is_below_home: estate.is_below_home,
            mounts: estate.mounts.len(),
        }
    }

    /// Names the state directory that goes with the herd.
    pub(super) fn set_state(&mut self, name: &CStr) {
        self.state = Text::new(name.to_bytes());
    }
}

/// The process: waits for the end of the supervisor, ends the herd if it is still there, and ends.
pub(super) fn guard(orders: &Orders) -> ! {
    wait_for_supervisor(orders.has_parent);
    if takes_root() {
        kill_herd();
        clear_up(orders);
    }
    end_bare()
}

/// Takes the root's lock; another supervisor may have done so.
fn takes_root() -> bool {
    let lock = || rustix::fs::fcntl_lock(fd(LOCK), FlockOperation::NonBlockingLockExclusive).is_ok();
    if lock() {
        return true;
    }
    // The line may end before the thread that holds the lock does: with the whole process it does.
    let mut fds = [PollFd::from_borrowed_fd(fd(SUPERVISOR), PollFlags::IN)];
    let _has_ended = poll(&mut fds, Some(&Timespec { tv_sec: DYING_MAX, tv_nsec: 0 }));
    lock()
}

/// Borrows one of the descriptors that this process was made with.
fn fd(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the process has them by birth and closes none of them.
    #[allow(unsafe_code)]
    unsafe {
        BorrowedFd::borrow_raw(number)
    }
}

/// Returns when the supervisor has ended, or has given up its end of the line. Its parent's end is passed on as SIGTERM.
fn wait_for_supervisor(has_parent: bool) {
    let mut is_told = !has_parent;
    loop {
        let parent = if is_told { PollFlags::empty() } else { PollFlags::IN };
        // A hung-up pipe is reported without having been asked for; the parent's pidfd of one that has ended, too: it goes then.
        let mut fds = [
            PollFd::from_borrowed_fd(fd(SUPERVISOR), PollFlags::IN),
            PollFd::from_borrowed_fd(fd(LINE), PollFlags::empty()),
            PollFd::from_borrowed_fd(fd(PARENT), parent),
        ];
        let all = if is_told { fds.len() - 1 } else { fds.len() };
        match poll(&mut fds[..all], None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        if !fds[0].revents().is_empty() || !fds[1].revents().is_empty() {
            return;
        }
        if !is_told && !fds[2].revents().is_empty() {
            is_told = true;
            let _ended = pidfd_send_signal(fd(SUPERVISOR), Signal::TERM);
        }
    }
}

/// Kills the herd until nothing of it lives.
fn kill_herd() {
    let Ok(herd) = open_at(fd(SPINE), c"herd", OFlags::RDONLY | OFlags::DIRECTORY) else { return };
    let Ok(events) = open_at(herd.as_fd(), c"cgroup.events", OFlags::RDONLY) else { return };
    let mut patience = RETRY_MS;
    let mut is_first = true;
    loop {
        if let Ok(kill) = open_at(herd.as_fd(), c"cgroup.kill", OFlags::WRONLY) {
            let _answer = rustix::io::write(&kill, b"1");
        }
        if !is_first {
            // A process whose first thread has ended takes no kill but its own; what is empty goes meanwhile.
            walk::remove(fd(SPINE), c"herd", &mut KillEach);
        }
        // A poll reports changes since the last read.
        if !is_populated(events.as_fd()) {
            return;
        }
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        let timeout = Timespec { tv_sec: patience / 1_000, tv_nsec: patience % 1_000 * 1_000_000 };
        let _is_over = poll(&mut fds, Some(&timeout));
        if !is_populated(events.as_fd()) {
            return;
        }
        is_first = false;
        patience = (patience * 2).min(RETRY_MAX_MS);
    }
}

/// Reads whether a process is in the subtree; one that is gone has none.
fn is_populated(events: BorrowedFd<'_>) -> bool {
    let mut text = [0u8; 128];
    let _start = rustix::fs::seek(events, SeekFrom::Start(0));
    let Ok(length) = rustix::io::read(events, &mut text) else { return false };
    text.get(..length).is_some_and(|text| text.windows(11).any(|part| part == b"populated 1"))
}

fn open_at(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<Handle> {
    rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()).map(Handle::from)
}

/// Kills every process of each cgroup, one by one.
struct KillEach;

impl Visit for KillEach {
    fn entered(&mut self, dir: BorrowedFd<'_>) {
        let Ok(list) = open_at(dir, c"cgroup.procs", OFlags::RDONLY) else { return };
        each_pid(list.as_fd(), &mut |pid| {
            let Some(pid) = Pid::from_raw(pid) else { return };
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()).map(Handle::from) else { return };
            // A pid on the list while its pidfd is held is that very process: its number is not given away before.
            let mut is_there = false;
            if let Ok(again) = open_at(dir, c"cgroup.procs", OFlags::RDONLY) {
                each_pid(again.as_fd(), &mut |other| is_there |= other == pid.as_raw_nonzero().get());
            }
            if is_there {
                let _ended = pidfd_send_signal(&process, Signal::KILL);
            }
        });
    }

    fn found(&mut self, _: BorrowedFd<'_>, _: &CStr) {}
}

/// Reads the numbers in a `cgroup.procs`. Those of other pid namespaces (0) are left out.
fn each_pid(list: BorrowedFd<'_>, found: &mut dyn FnMut(i32)) {
    let mut text = [0u8; PROCS];
    let mut number = 0i32;
    while let Ok(length @ 1..) = rustix::io::read(list, &mut text) {
        for byte in text.iter().take(length) {
            if byte.is_ascii_digit() {
                number = number.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
            } else {
                if number > 0 {
                    found(number);
                }
                number = 0;
            }
        }
    }
}

/// Removes the herd's cgroups and mirrors, the supervisor's and the guardian's leaves, the root if it was made for the herd, and the
/// state directory that goes with it.
fn clear_up(orders: &Orders) {
    walk::remove(fd(SPINE), c"herd", &mut KillEach);
    // What has left the herd's cgroup2 is found in its mirrors.
    for mount in (1..orders.mounts).filter_map(mount) {
        let mut root = orders.root;
        if let Some(path) = root.head(orders.root.length)
            && let Ok(root) = open_at(mount, path, OFlags::RDONLY | OFlags::DIRECTORY)
        {
            walk::remove(root.as_fd(), c"herd", &mut KillEach);
        }
    }
    // A service manager starts nothing again in a cgroup that hands controllers down, and nobody can come back to one.
    hand_nothing_down(fd(SPINE));
    if orders.is_below_home {
        hand_nothing_down(fd(HOME));
    }
    leave();
    remove_leaves();
    for mount in (0..orders.mounts).filter_map(mount) {
        remove_root(mount, orders.root);
    }
    if orders.state.length > 0 {
        let mut state = orders.state;
        if let Some(name) = state.head(orders.state.length) {
            let _is_gone = (0..STATE_PASSES_MAX).any(|_| walk::remove(fd(ABOVE_STATE), name, &mut RemoveFiles));
        }
    }
}

fn mount(index: usize) -> Option<BorrowedFd<'static>> {
    Some(fd(MOUNTS + i32::try_from(index).ok()?))
}

/// Goes where the supervisor came from, so that the root can be removed; else to the top.
fn leave() {
    let enter = |dir| open_at(dir, c"cgroup.procs", OFlags::WRONLY).and_then(|procs| rustix::io::write(&procs, b"0"));
    if enter(fd(HOME)).is_err() {
        let _refused = enter(fd(MOUNTS));
    }
}

/// Disables the controllers that a cgroup hands down, as far as nothing below needs them.
fn hand_nothing_down(dir: BorrowedFd<'_>) {
    let mut text = [0u8; 256];
    let Ok(control) = open_at(dir, c"cgroup.subtree_control", OFlags::RDWR) else { return };
    let length = rustix::io::read(&control, &mut text).unwrap_or(0);
    for name in text.get(..length).unwrap_or_default().split(u8::is_ascii_whitespace) {
        let mut line = [b'-'; 32];
        if let Some(place) = line.get_mut(1..=name.len()).filter(|_| !name.is_empty()) {
            place.copy_from_slice(name);
            let _busy = rustix::io::write(&control, line.get(..=name.len()).unwrap_or_default());
        }
    }
}

/// Removes the leaves beside the herd: nothing is in them any more, and what is stays.
fn remove_leaves() {
    let mut chunk = [MaybeUninit::uninit(); 2_048];
    let mut entries = rustix::fs::RawDir::new(fd(SPINE), &mut chunk);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if [&b"supervisor"[..], super::LEAF.as_bytes()].iter().any(|leaf| name.to_bytes().starts_with(leaf)) {
            await_empty(name);
            walk::unlink(fd(SPINE), name, AtFlags::REMOVEDIR);
        }
    }
}

/// Waits for a bounded time until nothing lives in a leaf: keepers of output pipes end by themselves when nobody writes.
fn await_empty(leaf: &CStr) {
    let Ok(leaf) = open_at(fd(SPINE), leaf, OFlags::RDONLY | OFlags::DIRECTORY) else { return };
    let Ok(events) = open_at(leaf.as_fd(), c"cgroup.events", OFlags::RDONLY) else { return };
    for _ in 0..EMPTY_LOOKS {
        if !is_populated(events.as_fd()) {
            return;
        }
        let timeout = Timespec { tv_sec: RETRY_MS / 1_000, tv_nsec: RETRY_MS % 1_000 * 1_000_000 };
        let _is_over = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout));
    }
}

/// Removes the root of a hierarchy, and what is above it, as far as it was made by us and is empty.
fn remove_root(mount: BorrowedFd<'_>, mut root: Text<ROOT_MAX>) {
    let mut length = root.length;
    while length > 0 {
        let Some(path) = root.head(length) else { return };
        let Ok(dir) = open_at(mount, path, OFlags::RDONLY | OFlags::DIRECTORY) else { return };
        let is_marked = crate::kernel::cgroup::MARKS
            .iter()
            .any(|mark| rustix::fs::fgetxattr(&dir, *mark, &mut [0u8; 8][..]).is_ok());
        if !is_marked || rustix::fs::unlinkat(mount, path, AtFlags::REMOVEDIR).is_err() {
            return;
        }
        length = root.bytes.get(..length).and_then(|path| path.iter().rposition(|byte| *byte == b'/')).unwrap_or(0);
    }
}

/// Removes what is no directory.
struct RemoveFiles;

impl Visit for RemoveFiles {
    fn entered(&mut self, _: BorrowedFd<'_>) {}

    fn found(&mut self, dir: BorrowedFd<'_>, name: &CStr) {
        walk::unlink(dir, name, AtFlags::empty());
    }
}

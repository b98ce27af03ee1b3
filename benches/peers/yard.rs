//! Where a peer runs: a cgroup of this run's own, from which nothing that it or its services start gets away, and a directory in
//! memory. Whatever a peer leaves behind, one write ends; the end is certain and bounded, also after a failure.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The place of one peer for one run.
pub struct Yard {
    cgroup: PathBuf,
    /// The cgroup below the cgroup2 mount.
    pub name: String,
    pub dir: tempfile::TempDir,
}

impl Yard {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("th-peers-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup2().join(&name);
        std::fs::create_dir(&cgroup).unwrap();
        Self { cgroup, name, dir: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    /// Starts a program in here, in a session of its own, as a service manager does; what it says goes into the file `said`, or
    /// its stdout somewhere else.
    pub fn start(&self, command: &mut Command, stdout: Option<File>) -> u32 {
        let procs = File::options().write(true).open(self.cgroup.join("cgroup.procs")).unwrap();
        let said = File::options().append(true).create(true).open(self.dir.path().join("said")).unwrap();
        let stdout = stdout.unwrap_or_else(|| said.try_clone().unwrap());
        command.stdin(Stdio::null()).stdout(stdout).stderr(said);
        // SAFETY: the child makes system calls only.
        unsafe {
            command.pre_exec(move || {
                rustix::io::write(&procs, b"0")?;
                rustix::process::setsid()?;
                Ok(())
            });
        }
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")).id()
    }

    /// Returns what the peer said, its last line only.
    pub fn last_words(&self) -> String {
        let said = std::fs::read_to_string(self.dir.path().join("said")).unwrap_or_default();
        said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
    }

    /// Lists all processes in here.
    pub fn pids(&self) -> BTreeSet<u32> {
        let (mut found, mut open) = (BTreeSet::new(), vec![self.cgroup.clone()]);
        while let Some(dir) = open.pop() {
            let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
            open.extend(below(&dir));
        }
        found
    }

    /// Stops everything in here where it stands: what forks without end can be counted.
    pub fn freeze(&self) {
        std::fs::write(self.cgroup.join("cgroup.freeze"), "1").unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.is("frozen 1") && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is(&self, what: &str) -> bool {
        let events = std::fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == what)
    }
}

/// Returns where cgroup2 is mounted.
fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted");
    PathBuf::from(line.split(' ').nth(4).unwrap())
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove(dir: &Path) {
    below(dir).iter().for_each(|dir| remove(dir));
    std::fs::remove_dir(dir).unwrap_or_else(|error| eprintln!("remove {}: {error}", dir.display()));
}

impl Drop for Yard {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(self.cgroup.join("cgroup.kill"), "1") {
            eprintln!("kill {}: {error}", self.cgroup.display());
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.is("populated 1") && Instant::now() < deadline {
            reap();
            std::thread::sleep(Duration::from_millis(1));
        }
        reap();
        remove(&self.cgroup);
    }
}

/// Reaps whoever has ended: this process is the nearest subreaper of all of them.
pub fn reap() {
    use rustix::process::{WaitOptions, wait};
    while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
}

/// Waits until a process has ended.
pub fn has_ended_by(pid: u32, deadline: Instant) -> bool {
    while Path::new(&format!("/proc/{pid}")).exists() {
        if Instant::now() > deadline {
            return false;
        }
        reap();
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A fifo on which services tell two numbers each: most of them when they began, and their pid.
pub struct Bell {
    pub path: PathBuf,
    fifo: File,
}

impl Bell {
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("bell");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        // Opened for both: it has a reader at once, and never comes to its end.
        let fifo = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        Self { path, fifo }
    }

    /// Waits for the next two numbers.
    pub fn hear(&mut self, deadline: Instant) -> Option<[u64; 2]> {
        loop {
            let mut bytes = [0; 16];
            if self.fifo.read(&mut bytes).is_ok_and(|count| count == 16) {
                let number = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
                return Some([number(0), number(8)]);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            poll(
                &mut [PollFd::from_borrowed_fd(self.fifo.as_fd(), PollFlags::IN)],
                Timespec::try_from(left).ok().as_ref(),
            )
            .unwrap();
        }
    }
}

/// Makes the programs of a directory tree appear as if they were installed, for this process and its children alone: some peers
/// look for their parts at the paths that they were built with.
pub fn overlay(tree: &Path) -> Result<(), String> {
    use std::ffi::CString;
    let done = |what: &str, value: i32| {
        if value == 0 { Ok(()) } else { Err(format!("{what}: {}", std::io::Error::last_os_error())) }
    };
    let none = std::ptr::null();
    // SAFETY: this process's own view of the mounts, and nothing else.
    done("unshare the mounts", unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    // SAFETY: a path that ends in a zero byte; the rest is not read for a change of propagation.
    let private = unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) };
    done("keep the mounts private", private)?;
    for part in ["usr/bin", "usr/lib/x86_64-linux-gnu"].iter().filter(|part| tree.join(part).exists()) {
        let options = CString::new(format!("lowerdir={}:/{part}", tree.join(part).display())).unwrap();
        let target = CString::new(format!("/{part}")).unwrap();
        let kind = c"overlay".as_ptr();
        // SAFETY: texts that end in a zero byte and outlive the call.
        done("mount an overlay", unsafe { libc::mount(kind, target.as_ptr(), kind, 0, options.as_ptr().cast()) })?;
    }
    Ok(())
}

/// Reads the clock that all processes share, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

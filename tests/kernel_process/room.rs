//! A place to spawn in: cgroups of this test process alone, gone when the test is, even if it panics.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use treeherd::kernel::pidfd::{self, Ended, Exit};
use treeherd::kernel::spawn::{self, Launch, Launched, Memory, Way, path_candidates};

/// How long a fact may take to come true before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long it is between two looks at what nobody tells of.
const GLANCE: Duration = Duration::from_millis(1);

/// The mount of a hierarchy: cgroup2 for `None`, else the v1 one with this controller.
pub fn mount(controller: Option<&str>) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1)?;
        let wanted = match controller {
            None => kind == "cgroup2",
            Some(name) => kind == "cgroup" && options.split(',').any(|option| option == name),
        };
        wanted.then(|| PathBuf::from(left.split(' ').nth(4).unwrap()))
    })
}

/// A cgroup of ours.
pub struct Room {
    pub path: PathBuf,
    dir: OwnedFd,
}

impl Room {
    /// Makes a fresh cgroup in cgroup2.
    pub fn new() -> Self {
        Self::below(&mount(None).expect("the tests need cgroup2 and root"))
    }

    /// Makes a fresh cgroup in a v1 hierarchy, if this host has it.
    pub fn v1(controller: &str) -> Option<Self> {
        let mount = mount(Some(controller));
        if mount.is_none() {
            eprintln!("skipped: this host has no v1 hierarchy with {controller}");
        }
        mount.map(|mount| Self::below(&mount))
    }

    fn below(parent: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("th-k2-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self::adopt(path)
    }

    /// Takes over a cgroup that a process of ours has made.
    pub fn adopt(path: PathBuf) -> Self {
        Self { dir: File::open(&path).unwrap().into(), path }
    }

    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.path.join(file), text).unwrap();
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).unwrap()
    }

    pub fn procs(&self) -> OwnedFd {
        fs::OpenOptions::new().write(true).open(self.path.join("cgroup.procs")).unwrap().into()
    }

    /// The way into this cgroup that works on this kernel, tried on another fresh one.
    pub fn way() -> Way {
        spawn::way_that_works(Self::new().dir()).unwrap()
    }

    /// What starts `command` here, with `argv`, by the way that works, with output to `output`.
    pub fn launch(&self, argv: &[&str], output: &OwnedFd) -> Launch {
        let way = Self::way();
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        Launch {
            argv: argv.iter().map(|text| CString::new(*text).unwrap()).collect(),
            env: vec![c"PATH=/usr/bin:/bin".to_owned()],
            pid_variable: None,
            search: path_candidates(argv[0], std::ffi::OsStr::new("/usr/bin:/bin")),
            cwd: c"/".to_owned(),
            stdin: None,
            stdout: output.try_clone().unwrap(),
            stderr: null(),
            passed: None,
            leaf: self.dir.try_clone().unwrap(),
            enter: if way == Way::EnterItself { vec![self.procs()] } else { Vec::new() },
            credentials: None,
            ignored: u64::MAX,
            rlimits: Vec::new(),
            oom_score_adj: None,
            nice: None,
            ionice: None,
            umask: 0o022,
            no_new_privs: false,
            way,
            memory: Memory::Shared,
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let v2 = self.path.join("cgroup.kill").exists();
        if v2 {
            // A cgroup that is gone already is what is wanted.
            fs::write(self.path.join("cgroup.kill"), "1").ok();
        }
        let end = Instant::now() + PATIENCE;
        while let Err(error) = fs::remove_dir(&self.path) {
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > end {
                eprintln!("{} is left behind: {error}", self.path.display());
                return;
            }
            if !v2 {
                kill_members(&self.path);
            }
            thread::park_timeout(GLANCE);
        }
    }
}

/// Kills what is in a v1 cgroup of ours, except ourselves.
fn kill_members(path: &Path) {
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse::<i32>().ok()) {
        if let Ok(pidfd) = pidfd::open(pid)
            && pid.cast_unsigned() != std::process::id()
        {
            pidfd::signal(pidfd.as_fd(), rustix::process::Signal::KILL).ok();
        }
    }
}

/// A file without a name, for output.
pub fn sink() -> OwnedFd {
    rustix::fs::memfd_create("th-k2", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

pub fn text(fd: &OwnedFd) -> String {
    let mut file = File::from(fd.try_clone().unwrap());
    std::io::Seek::rewind(&mut file).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Waits for a child's end by its pidfd, and reaps it.
pub fn end(child: &Launched) -> Ended {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&child.pidfd, PollFlags::IN)];
    let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "the child did not end in time");
    pidfd::try_wait(child.pidfd.as_fd()).unwrap().expect("a readable pidfd means that it has ended")
}

/// Starts a shell script in a fresh cgroup and returns what it wrote.
pub fn shell(script: &str, change: impl FnOnce(&mut Launch)) -> String {
    let (room, out) = (Room::new(), sink());
    let mut launch = room.launch(&["/bin/sh", "-c", script], &out);
    change(&mut launch);
    let child = spawn::spawn(&launch).unwrap();
    assert_eq!(end(&child).status, Exit::Code(0), "{}", text(&out));
    text(&out)
}

/// Turns a condition into a fact: looks at it until it holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::park_timeout(GLANCE);
    }
}

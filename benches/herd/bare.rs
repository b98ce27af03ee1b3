//! The floor: the kernel calls that cannot be avoided, and nothing else.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, waitid};
use treeherd::kernel::watch::Watches;

/// A cgroup of our own; it and all below it are killed and removed in the end.
pub struct Bare {
    pub path: PathBuf,
    fd: OwnedFd,
}

/// A child of ours.
pub struct Child {
    pub pidfd: OwnedFd,
}

impl Bare {
    pub fn new(name: &str) -> Self {
        Self::named(&crate::guest::unique(name))
    }

    /// Makes one whose name is known to others.
    pub fn named(name: &str) -> Self {
        let path = crate::guest::cgroup2().join(name);
        std::fs::create_dir(&path).unwrap();
        Self { fd: open_dir(&path), path }
    }

    /// Makes a cgroup and starts a program in it: nothing is prepared, nothing is told.
    pub fn spawn(&self, name: &str, program: &Program) -> Child {
        rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let leaf = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).unwrap();
        Child { pidfd: clone_into(&leaf, program) }
    }

    /// Does as [`Bare::spawn`] with everything that an agent has: a cgroup and one for its run, a directory with a file for each
    /// stream, and the watches on them. One thread, no request, no answer, no event, no child that cleans up before `exec`.
    pub fn spawn_kept(&self, name: &str, program: &Program, spools: &OwnedFd, watches: &Watches) -> Child {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let make = |above: &OwnedFd, name: &str| {
            rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o755)).unwrap();
            rustix::fs::openat(above, name, flags, Mode::empty()).unwrap()
        };
        let home = make(&self.fd, name);
        watches.add_modify(home.as_fd(), "cgroup.events").unwrap();
        let leaf = make(&home, "run-1");
        let spool = make(spools, name);
        let streams = ["stdout", "stderr"].map(|stream| {
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&spool, stream, flags, Mode::RUSR | Mode::WUSR).unwrap();
            watches.add_modify_once(spool.as_fd(), stream).unwrap();
            file
        });
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let child = Child { pidfd: clone_into(&leaf, program) };
        drop((streams, null));
        child
    }

    pub fn remove(&self, name: &str) {
        let remove = || rustix::fs::unlinkat(&self.fd, name, rustix::fs::AtFlags::REMOVEDIR);
        while remove() == Err(rustix::io::Errno::BUSY) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        sweep(&self.path);
        // And what was orphaned in it.
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}

/// Kills and removes a cgroup and all below it, if it is there.
pub fn sweep(path: &Path) {
    if std::fs::write(path.join("cgroup.kill"), "1").is_ok() {
        while is_set(path, "populated") {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    let mut dirs = vec![path.to_owned()];
    let mut at = 0;
    while let Some(dir) = dirs.get(at).cloned() {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()));
        at += 1;
    }
    for dir in dirs.iter().rev() {
        while let Err(error) = std::fs::remove_dir(dir) {
            if error.raw_os_error() != Some(libc::EBUSY) {
                break;
            }
            std::thread::yield_now();
        }
    }
}

/// Says whether a cgroup's `cgroup.events` has a 1 for a key.
pub fn is_set(path: &Path, key: &str) -> bool {
    let events = std::fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == format!("{key} 1"))
}

/// Writes to a file of a cgroup and waits until its `cgroup.events` says so.
pub fn write_and_wait(path: &Path, file: &str, value: &str, is_done: impl Fn() -> bool) {
    let events = std::fs::File::open(path.join("cgroup.events")).unwrap();
    std::fs::File::options().write(true).open(path.join(file)).unwrap().write_all(value.as_bytes()).unwrap();
    loop {
        // Reading rearms the poll.
        let mut text = [0u8; 64];
        rustix::io::pread(&events, &mut text, 0).unwrap();
        if is_done() {
            return;
        }
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], None).unwrap();
    }
}

impl Child {
    /// Waits in an epoll until the child has ended; returns when that was known, before reaping it.
    pub fn wait(&self) -> u64 {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&poll, &self.pidfd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
        let mut events = Vec::with_capacity(1);
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        let at = crate::guest::monotonic_ns();
        waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        at
    }
}

/// A program as `execve` wants it.
pub struct Program {
    pointers: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    _texts: Vec<CString>,
}

impl Program {
    pub fn new(argv: &[String], env: &[(&str, String)]) -> Self {
        let argv: Vec<_> = argv.iter().map(|word| CString::new(word.as_str()).unwrap()).collect();
        let env: Vec<_> = env.iter().map(|(name, value)| CString::new(format!("{name}={value}")).unwrap()).collect();
        let pointers =
            |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
        Self { pointers: pointers(&argv), env: pointers(&env), _texts: argv.into_iter().chain(env).collect() }
    }
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `clone3(VM | VFORK | PIDFD | INTO_CGROUP)`, and in the child `execve` and nothing else. The child uses no stack at all.
fn clone_into(leaf: &OwnedFd, program: &Program) -> OwnedFd {
    const FLAGS: u64 = 0x100 | 0x4000 | 0x1000 | 0x2_0000_0000;
    let mut pidfd: i32 = -1;
    let args = CloneArgs {
        flags: FLAGS,
        pidfd: std::ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        cgroup: leaf.as_raw_fd().cast_unsigned().into(),
        ..CloneArgs::default()
    };
    let path = program.pointers[0];
    let (argv, env) = (program.pointers.as_ptr(), program.env.as_ptr());
    let value: i64;
    // SAFETY: the child shares memory and stack with us while this thread sleeps, and touches neither: it makes two system
    // calls from registers. The kernel writes `pidfd`, which outlives the call.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r12",
            "mov rsi, r13",
            "mov rdx, r14",
            "mov eax, 59",
            "syscall",
            "mov edi, 127",
            "mov eax, 231",
            "syscall",
            "2:",
            inlateout("rax") libc::SYS_clone3 => value,
            in("rdi") std::ptr::from_ref(&args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") path, in("r13") argv, in("r14") env,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x0, x20",
            "mov x1, x21",
            "mov x2, x22",
            "mov x8, 221",
            "svc 0",
            "mov x0, 127",
            "mov x8, 94",
            "svc 0",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") std::ptr::from_ref(&args).expose_provenance() as i64 => value,
            in("x1") size_of::<CloneArgs>(),
            in("x20") path, in("x21") argv, in("x22") env,
        );
    }
    assert!(value > 0, "clone3: errno {}", -value);
    // SAFETY: the kernel has just opened it for us.
    unsafe { OwnedFd::from_raw_fd(pidfd) }
}

pub fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

//! What this very program plays as somebody's child: services that leave processes behind, a writer, a burner of CPU time, and the
//! barest supervisor there can be.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::yard::monotonic_ns;

/// The variable that says which role this program plays. Every process that descends from such a one can be told by it.
pub const ROLE: &str = "TREEHERD_PEERS_ROLE";

/// What leaves processes behind, and how many of them each starts.
pub const MAKERS: [(&str, &str); 5] = [
    ("background", "a child in the background"),
    ("setsid", "a child in a session of its own"),
    ("double-fork", "a grandchild in a session of its own, whose parent has ended"),
    ("deaf", "a service and a child that ignore SIGTERM"),
    ("storm", "eight processes that fork and end, again and again, each in a session of its own"),
];

/// How long a storm lasts at most.
const STORM: Duration = Duration::from_secs(60);

const HOPPERS: usize = 8;

/// How long, and how much, a writer writes.
const WRITES_FOR: Duration = Duration::from_secs(1);
const WRITES_MOST: u64 = 1 << 30;

/// Plays a role if the environment says so.
pub fn play() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    let (role, argument) = role.split_once(':').unwrap();
    match role {
        "bare" => bare(Path::new(argument)),
        "writer" => writer(Path::new(argument)),
        // Without the hint of a spin lock, on which a machine may do something else.
        "burn" => loop {
            std::hint::black_box(0);
        },
        maker => make(maker, Path::new(argument)),
    }
    true
}

/// Returns the command of a service that plays a role.
pub fn command(role: &str, argument: &Path) -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let role = format!("{ROLE}={role}:{}", argument.display());
    vec!["/usr/bin/env".to_owned(), role, program.to_str().unwrap().to_owned()]
}

/// Starts every command of a file, and each again when it has ended.
fn bare(file: &Path) {
    let text = std::fs::read_to_string(file).unwrap();
    let start = |line: &str| {
        let mut words = line.split(' ');
        Command::new(words.next().unwrap()).args(words).env_remove(ROLE).spawn().unwrap().id().cast_signed()
    };
    let mut running: HashMap<i32, &str> = text.lines().map(|line| (start(line), line)).collect();
    while let Ok(Some((pid, _))) = rustix::process::wait(rustix::process::WaitOptions::empty()) {
        if let Some(line) = running.remove(&pid.as_raw_nonzero().get()) {
            running.insert(start(line), line);
        }
    }
}

/// Writes lines of 100 bytes at full speed, 40 at a time, and tells for how long it did and how much that was.
fn writer(bell: &Path) {
    tell(bell, [monotonic_ns(), u64::from(std::process::id())]);
    let piece = ["x".repeat(99), "\n".to_owned()].concat().repeat(40);
    let (began, mut written) = (Instant::now(), 0);
    let mut stdout = File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned().unwrap());
    while began.elapsed() < WRITES_FOR && written < WRITES_MOST {
        stdout.write_all(piece.as_bytes()).unwrap();
        written += piece.len() as u64;
    }
    tell(bell, [u64::try_from(began.elapsed().as_nanos()).unwrap(), written]);
    rest();
}

fn tell(bell: &Path, numbers: [u64; 2]) {
    let bytes = numbers.map(u64::to_ne_bytes).concat();
    File::options().write(true).open(bell).unwrap().write_all(&bytes).unwrap();
}

fn rest() -> ! {
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

/// Forks; says whether this is the child.
fn is_child() -> bool {
    // SAFETY: there is one thread.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        pid => pid == 0,
    }
}

/// Makes what `maker` is said to make, tells that it is there, and stays.
fn make(maker: &str, bell: &Path) {
    if maker == "deaf" {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    }
    let children = if maker == "storm" { HOPPERS } else { 1 };
    for _ in 0..children {
        if !is_child() {
            continue;
        }
        if ["setsid", "double-fork", "storm"].contains(&maker) {
            rustix::process::setsid().unwrap();
        }
        if maker == "double-fork" && !is_child() {
            std::process::exit(0);
        }
        if maker == "storm" {
            hop();
        }
        rest();
    }
    // Until every one of them has done what it is to do.
    std::thread::sleep(Duration::from_millis(50));
    tell(bell, [monotonic_ns(), u64::from(std::process::id())]);
    rest();
}

/// Goes on in a child, and in that one's child, as long as a storm lasts.
fn hop() {
    let end = Instant::now() + STORM;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
        if !is_child() {
            // SAFETY: ends the process; nothing is to be dropped.
            unsafe { libc::_exit(0) }
        }
        rustix::process::setsid().unwrap();
    }
    // SAFETY: as above.
    unsafe { libc::_exit(0) }
}

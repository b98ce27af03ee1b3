//! The guardian: what is left of a herd whose supervisor is gone, and what the guardian itself costs.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use common::foreground::{Foreground, lives};
use common::*;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use treeherd::daemon::Settings;
use treeherd::herd::Herd;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::State;

/// The most memory that a guardian may have of its own, in bytes, page tables and the kernel's part aside.
const OWN_MEMORY_MAX: u64 = 200 << 10;

/// Agents that only the kill reaches: deaf to signals, in sessions of their own, frozen, and one whose first thread has ended.
const TREE: &str = "
[agents.deaf]
command = [\"sh\", \"-c\", \"trap '' TERM HUP INT; (setsid sleep 1000 &); sleep 1000 & wait\"]
[agents.deaf.limits]
pids_max = 50
[agents.child]
parent = \"deaf\"
command = \"sleep 1000\"
[agents.headless]
command = [\"BINARY\", \"--exact\", \"role\", \"--nocapture\", \"--test-threads=1\"]
env = { TREEHERD_TEST_ROLE = \"headless\" }
";

/// What the agents and the supervisors of the tests below are: this binary again.
#[test]
fn role() {
    match std::env::var(ROLE).as_deref() {
        // With one test thread a test runs in the first thread of the process.
        Ok("headless") => {
            std::thread::spawn(|| {
                println!("up");
                loop {
                    std::thread::park();
                }
            });
            // SAFETY: it ends this thread, and only this one.
            #[allow(unsafe_code)]
            unsafe {
                libc::syscall(libc::SYS_exit, 0)
            };
        }
        Ok("library") => {
            let _herd = start_in_this_process();
            println!("up");
            std::thread::park_timeout(PATIENCE);
        }
        Ok("changes") => {
            std::mem::forget(start_in_this_process());
            println!("up");
            let error = Command::new("sleep").arg("1000").exec();
            panic!("{error}");
        }
        _ => {}
    }
}

/// Starts a herd as any program may, with more memory than a guardian has.
fn start_in_this_process() -> Herd {
    let ballast = vec![7u8; 32 << 20];
    let dir = PathBuf::from(std::env::var("STATE").unwrap());
    let settings = Settings { cgroup: std::env::var("CGROUP").unwrap(), ..Settings::new(dir) };
    let herd = Herd::start(settings).unwrap();
    herd.spawn_child_agent(None, AgentSpec::new(name("a"), ["sleep", "1000"])).unwrap();
    std::mem::forget(ballast);
    herd
}

#[test]
fn kill_9_of_a_run_ends_whatever_its_agents_are_and_leaves_nothing() {
    let mut run = Foreground::run(TREE, &[]);
    run.await_text("up");
    run.await_processes(5);
    let (agents, guardian) = (run.agents(), run.guardian());
    std::fs::write(run.place().join("herd/deaf/cgroup.freeze"), "1").unwrap();
    run.process.kill().unwrap();
    run.process.wait().unwrap();
    run.await_nothing();
    assert_eq!(agents.into_iter().filter(|pid| lives(*pid)).collect::<Vec<_>>(), Vec::<i32>::new());
    until("the guardian has ended, too", || !lives(guardian));
}

#[test]
fn the_guardian_survives_its_supervisors_process_group_and_holds_no_pipe_open() {
    let mut run = Foreground::run("[agents.a]\ncommand = \"echo up; exec sleep 1000\"\n", &[]);
    run.await_processes(1);
    // Until it has a session of its own, the agent is in its supervisor's group.
    run.await_text("up");
    let guardian = run.guardian();
    let group = Pid::from_raw(run.process.id().cast_signed());
    for signal in [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
        kill(Pid::from_raw(guardian), signal).unwrap();
    }
    // As long as a guardian is busy, a reader of the run's output would hear of no end if it had that open, too.
    kill(Pid::from_raw(guardian), Signal::SIGSTOP).unwrap();
    killpg(group, Signal::SIGKILL).unwrap();
    run.process.wait().unwrap();
    let mut rest = Vec::new();
    run.stdout.read_to_end(&mut rest).unwrap();
    run.process.stderr.take().unwrap().read_to_end(&mut rest).unwrap();
    assert_ne!(run.agents(), Vec::<i32>::new(), "nobody has ended them yet");
    kill(Pid::from_raw(guardian), Signal::SIGCONT).unwrap();
    run.await_nothing();
}

#[test]
fn a_run_that_ends_in_order_leaves_no_guardian() {
    let mut run = Foreground::run("[agents.a]\ncommand = \"sleep 1000\"\n", &[]);
    run.await_processes(1);
    let guardian = run.guardian();
    kill(Pid::from_raw(run.process.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(run.process.wait().unwrap().code(), Some(1));
    assert_eq!(process_state(guardian), None, "it is not even a zombie");
    assert_eq!(leftovers(&run.cgroup), Vec::<PathBuf>::new());
}

#[test]
fn a_guardian_has_next_to_no_memory_and_no_descriptor_of_its_supervisor() {
    let library = Foreground::role("library");
    let guardian = library.guardian();
    let smaps = || std::fs::read_to_string(format!("/proc/{guardian}/smaps")).unwrap();
    let sum = |text: &str, key: &str| -> u64 {
        let figures = text.lines().filter_map(|line| line.strip_prefix(key));
        figures.map(|line| line.trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10).sum()
    };
    // What a file has shared with it is nobody's own, even if it is dirty in the page cache.
    let own = |text: &str| -> u64 {
        let mappings: Vec<&str> = text.split("VmFlags").collect();
        mappings.iter().map(|mapping| sum(mapping, "Private_Dirty:").min(sum(mapping, "Anonymous:"))).sum()
    };
    until("it has given back what it does not need", || sum(&smaps(), "Anonymous:") < 8 << 20);
    let own = own(&smaps());
    assert!(own <= OWN_MEMORY_MAX, "{own} bytes of its own");
    let fds = std::fs::read_dir(format!("/proc/{guardian}/fd")).unwrap().flatten();
    let targets: Vec<PathBuf> = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
    let is_known = |target: &Path| {
        let text = target.to_str().unwrap();
        text == "anon_inode:[pidfd]" || text.starts_with("pidfd:") || target.starts_with("/sys/fs/cgroup")
    };
    let others: Vec<&PathBuf> = targets.iter().filter(|target| !is_known(target)).collect();
    assert!(matches!(others[..], [line] if line.to_str().unwrap().starts_with("pipe:")), "{targets:?}");
}

#[test]
fn a_herd_in_a_library_ends_when_its_process_is_killed() {
    let mut library = Foreground::role("library");
    let agent = library.agents()[0];
    library.process.kill().unwrap();
    assert_eq!(library.process.wait().unwrap().signal(), Some(9));
    library.await_nothing();
    assert!(!lives(agent));
}

#[test]
fn a_herd_ends_when_its_process_becomes_another_program() {
    let mut library = Foreground::role("changes");
    library.await_nothing();
    assert_eq!(library.process.try_wait().unwrap(), None, "the other program runs");
}

#[test]
fn a_daemon_that_is_to_do_so_takes_its_herd_along_and_the_next_one_starts_at_once() {
    let mut herd = daemon(&["--end-with-supervisor"]);
    for round in 0..3 {
        let agent = herd.sleeper(None, &format!("a{round}"));
        let pid = herd.process_for_agent(&agent).unwrap().unwrap();
        herd.crash();
        // Without a moment in between: the guardian has the root, or the next daemon has.
        herd.restart();
        let state = herd.agent_status(&agent).unwrap().state;
        match state {
            State::Running => assert!(lives(pid), "the next daemon was first and has taken it over"),
            _ => until("it has ended", || !lives(pid)),
        }
    }
    herd.finish();
}

#[test]
fn a_run_ends_in_order_when_its_parent_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (file, cgroup) = (dir.path().join("tree.toml"), unique("guarded"));
    let said = dir.path().join("said");
    let script = format!("trap 'echo asked > {}; exit 0' TERM; sleep 1000 & wait", said.display());
    std::fs::write(&file, format!("[agents.a]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n")).unwrap();
    let mut command = Command::new("sh");
    // It waits for the run: a shell would execute a last command in its own place.
    let line = format!(
        "'{}' run --end-with-parent --cgroup {cgroup} {}; exit 7",
        cargo_bin!("treeherd").display(),
        file.display()
    );
    command.args(["-c", &line]);
    let mut parent = Foreground::start(command, cgroup, dir);
    parent.await_processes(2);
    kill(Pid::from_raw(parent.process.id().cast_signed()), Signal::SIGKILL).unwrap();
    parent.process.wait().unwrap();
    parent.await_nothing();
    assert_eq!(std::fs::read_to_string(said).unwrap(), "asked\n", "the stop signal came before the kill");
}

#[test]
fn a_herd_without_supervisor_and_guardian_is_told_by_doctor_and_removed_once_it_is_empty() {
    let mut run = Foreground::run("[agents.a]\ncommand = [\"sleep\", \"1000\"]\n", &[]);
    run.await_processes(1);
    let guardian = Pid::from_raw(run.guardian());
    kill(guardian, Signal::SIGSTOP).unwrap();
    run.process.kill().unwrap();
    run.process.wait().unwrap();
    kill(guardian, Signal::SIGKILL).unwrap();
    until("the guardian is gone", || !lives(guardian.as_raw()));
    // A directory that was just made may be that of a run which is just starting.
    let dir = std::fs::File::open(run.state_dir()).unwrap();
    dir.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60)).unwrap();
    let doctor = || {
        let output = Command::new(cargo_bin!("treeherd")).args(["--state-dir", "/nowhere", "doctor"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (told, herd) = (doctor(), run.place().join("herd"));
    assert!(told.contains(&format!("1 processes in {}", herd.display())), "{told}");
    assert!(told.contains(&format!("echo 1 > {}/cgroup.kill", herd.display())), "{told}");
    std::fs::write(herd.join("cgroup.kill"), "1").unwrap();
    until("nothing of it lives", || run.agents().is_empty());
    doctor();
    assert_eq!(leftovers(&run.cgroup), Vec::<PathBuf>::new());
    assert!(!run.state_dir().exists());
}

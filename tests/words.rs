//! What a supervisor writes itself, and the signals it gets: whoever reads its words may be slow, stopped or gone.
#![allow(clippy::unwrap_used)]

mod common;

use assert_cmd::cargo::cargo_bin;
use common::*;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use treeherd::herd::Herd;
use treeherd::model::event::Kind;

/// The signals that end a daemon and a run in order; SIGHUP ends a run only.
const ENDS: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// The signals that report a fault of the program itself, and those that nobody can keep out.
const FAULTS: [i32; 9] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGKILL,
    libc::SIGSTOP,
];

/// Sends a signal by its number: two of them no library names.
fn send(pid: u32, signal: i32) {
    assert!(Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap().success());
}

/// A `treeherd run` of one agent, in a process of its own.
struct Run {
    child: Child,
    cgroup: String,
    dir: tempfile::TempDir,
}

impl Run {
    /// Starts it with these for stdin, stdout and stderr, behind these words.
    fn start(agents: &str, wrap: &[&str], stdio: [Stdio; 3]) -> Self {
        let (dir, cgroup) = (tempfile::tempdir().unwrap(), unique("run"));
        std::fs::write(dir.path().join("tree.toml"), agents).unwrap();
        // Whoever runs the tests may ignore it (nohup).
        let heard = ["env", "--default-signal=HUP"];
        let words = [&heard, wrap, &[cargo_bin!("treeherd").to_str().unwrap(), "run", "--cgroup", &cgroup]].concat();
        let mut command = Command::new(words[0]);
        let [stdin, stdout, stderr] = stdio;
        command.args(&words[1..]).args(["--state-dir", "state", "tree.toml"]).current_dir(dir.path());
        let child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
        Self { child, cgroup, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn herd(&self) -> Herd {
        Herd::connect(&self.file("state/treeherd.sock")).unwrap()
    }

    /// Waits until it has ended, and checks that it has left nothing.
    fn end(mut self) -> ExitStatus {
        let mut status = None;
        until("the run ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(leftovers(&self.cgroup), Vec::<PathBuf>::new(), "nothing is left in any hierarchy");
        status.unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
        for path in leftovers(&self.cgroup) {
            drop(std::fs::write(path.join("herd/cgroup.kill"), "1"));
            until("nothing lives", || processes_in(path.to_str().unwrap()).is_empty());
            directories_below(&path).iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
        }
    }
}

/// An agent that tells in files that it is up and that it was asked to end.
const POLITE: &str = r#"[agents.a]
cwd = "DIR"
command = "trap 'touch asked; exit 0' TERM; touch up; while :; do sleep 0.05; done"
"#;

/// An agent that does not end when it is asked to.
const STUBBORN: &str = r#"[agents.a]
cwd = "DIR"
grace = "1h"
command = "trap '' TERM; touch up; while :; do sleep 0.05; done"
"#;

fn in_dir(agents: &str, dir: &Path) -> String {
    agents.replace("DIR", dir.to_str().unwrap())
}

fn polite(dir: &Path) -> String {
    in_dir(POLITE, dir)
}

/// Starts a daemon whose stderr is this.
fn daemon_with_stderr(stderr: impl Into<Stdio>) -> Own {
    daemon_started(|command| {
        command.stderr(stderr);
    })
}

/// Spawns an agent, sees it die, and ends the herd.
fn assert_serves(herd: Own) {
    let mut events = herd.follow();
    for round in 0..20 {
        let id = herd.spawn(&format!("a{round}"), "exit 3");
        await_event(&mut events, Kind::Failed, &id);
    }
    herd.finish();
}

#[test]
fn a_daemon_whose_stderr_is_gone_or_full_serves_all_the_same() {
    let (read, write) = std::io::pipe().unwrap();
    let herd = daemon_with_stderr(write);
    drop(read);
    assert_serves(herd);
    assert_serves(daemon_with_stderr(OpenOptions::new().write(true).open("/dev/full").unwrap()));
}

#[test]
fn a_daemon_does_not_wait_for_who_does_not_read_its_log() {
    let (read, write) = std::io::pipe().unwrap();
    fill(&write);
    let herd = daemon_with_stderr(write);
    assert_serves(herd);
    drop(read);
}

/// Writes into a pipe until it takes no more.
fn fill(pipe: impl AsFd) {
    let flags = rustix::fs::fcntl_getfl(&pipe).unwrap();
    rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&pipe, &[b'x'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&pipe, flags).unwrap();
}

#[test]
fn lines_that_nobody_could_read_are_counted_where_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let open = |write: bool| OpenOptions::new().read(!write).write(write).open(&path);
    // A FIFO is open for both, or for none.
    let reader = std::thread::scope(|scope| {
        let reader = scope.spawn(|| open(false).unwrap());
        let herd = daemon_with_stderr(open(true).unwrap());
        (reader.join().unwrap(), herd)
    });
    let (reader, herd) = reader;
    drop(reader);
    let mut events = herd.follow();
    let id = herd.spawn("unread", "exit 3");
    await_event(&mut events, Kind::Failed, &id);
    let mut reader = BufReader::new(open(false).unwrap());
    let mut line = String::new();
    for round in 0.. {
        let id = herd.spawn(&format!("read{round}"), "exit 3");
        await_event(&mut events, Kind::Failed, &id);
        while !line.contains(&format!("read{round}")) || !line.contains("process:failed") {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if line.contains("log lines were lost: ") {
                return herd.finish();
            }
        }
    }
}

#[test]
fn a_signal_that_asks_for_no_end_ends_neither_a_daemon_nor_a_run() {
    let herd = daemon(&[]);
    let id = herd.sleeper(None, "a");
    let dir = tempfile::tempdir().unwrap();
    let run = Run::start(&in_dir(STUBBORN, dir.path()), &[], [Stdio::null(), Stdio::null(), Stdio::null()]);
    until("the run's agent is up", || dir.path().join("up").exists());
    let daemon = herd.pid();
    for signal in (1..=64).filter(|signal| !ENDS.contains(signal) && !FAULTS.contains(signal)) {
        send(daemon, signal);
        send(run.child.id(), signal);
        let status = |pid: u32| process_state(pid.cast_signed());
        assert!(!matches!(status(daemon), None | Some('Z' | 'T')), "signal {signal}: {:?}", status(daemon));
        assert!(!matches!(status(run.child.id()), None | Some('Z' | 'T')), "signal {signal} to a run");
    }
    assert_eq!(herd.agent_status(&id).unwrap().restarts, 0);
    assert_eq!(run.herd().agents().unwrap().len(), 1);
    // They are not handed on, and no agent has them blocked.
    let pid = herd.agent_status(&id).unwrap().pid.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for name in ["SigBlk", "SigIgn", "SigPnd", "ShdPnd"] {
        let mask = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap();
        assert_eq!(mask.trim().trim_start_matches('0'), "", "{name}");
    }
    herd.finish();
    // Twice: its agent does not end when it is asked to.
    send(run.child.id(), libc::SIGTERM);
    send(run.child.id(), libc::SIGINT);
    assert_eq!(run.end().code(), Some(1));
}

#[test]
fn a_signal_that_asks_for_an_end_ends_a_daemon_in_order() {
    for signal in ENDS.into_iter().filter(|signal| *signal != libc::SIGHUP) {
        let mut herd = daemon(&[]);
        herd.sleeper(None, "a");
        send(herd.pid(), signal);
        assert!(herd.wait_for_end().success(), "signal {signal}");
        assert_eq!(leftovers(&herd.cgroup), Vec::<PathBuf>::new(), "signal {signal}");
    }
}

#[test]
fn each_signal_that_asks_for_an_end_ends_a_run_in_order() {
    for signal in ENDS {
        let dir = tempfile::tempdir().unwrap();
        let run = Run::start(&polite(dir.path()), &[], [Stdio::null(), Stdio::null(), Stdio::null()]);
        until("it is up", || dir.path().join("up").exists());
        send(run.child.id(), signal);
        assert_eq!(run.end().code(), Some(1), "signal {signal}: its agent did not complete");
        assert!(dir.path().join("asked").exists(), "signal {signal}: in order");
    }
}

#[test]
fn a_hangup_that_nohup_keeps_out_ends_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::start(&polite(dir.path()), &["nohup"], [Stdio::null(), Stdio::null(), Stdio::null()]);
    until("it is up", || dir.path().join("up").exists());
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", run.child.id())).unwrap();
        let times = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2).map(|it| it.parse::<u64>());
        times.sum::<Result<u64, _>>().unwrap()
    };
    send(run.child.id(), libc::SIGHUP);
    let before = used();
    let_pass("1");
    assert!(used() - before < 20, "and it waits without using the CPU: {} ticks", used() - before);
    assert!(!dir.path().join("asked").exists());
    send(run.child.id(), libc::SIGTERM);
    assert_eq!(run.end().code(), Some(1));
}

#[test]
fn a_second_signal_of_any_kind_ends_a_run_at_once() {
    for signal in ENDS {
        let dir = tempfile::tempdir().unwrap();
        let agents = in_dir(STUBBORN, dir.path());
        let mut run = Run::start(&agents, &[], [Stdio::null(), Stdio::null(), Stdio::piped()]);
        let mut said = BufReader::new(run.child.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.by_ref().any(|line| line.contains("from another terminal")));
        until("its agent is up", || dir.path().join("up").exists());
        send(run.child.id(), signal);
        assert!(said.by_ref().any(|line| line.contains("ending all agents")), "signal {signal}");
        // Two SIGHUPs at once are one terminal that was closed.
        let_pass("0.3");
        send(run.child.id(), signal);
        assert!(said.by_ref().any(|line| line.contains("killing all agents")), "signal {signal}");
        assert_eq!(run.end().code(), Some(1), "signal {signal}");
    }
}

#[test]
fn a_run_whose_terminal_is_closed_ends_its_agents_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (terminal, end) = pty();
    let stdio = [end.try_clone().unwrap(), end.try_clone().unwrap(), end].map(Stdio::from);
    let run = Run::start(&polite(dir.path()), &["setsid", "--ctty"], stdio);
    until("it is up", || dir.path().join("up").exists());
    drop(terminal);
    assert_eq!(run.end().code(), Some(1));
    assert!(dir.path().join("asked").exists(), "in order");
}

/// Opens a terminal, and the end at which programs have it.
#[allow(unsafe_code)]
fn pty() -> (OwnedFd, OwnedFd) {
    let (mut terminal, mut end) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both numbers are there to be written to, and nothing else is asked for.
    assert_eq!(unsafe { libc::openpty(&raw mut terminal, &raw mut end, none, none.cast(), none.cast()) }, 0);
    // SAFETY: they were just opened, and nobody else has them.
    let fds = unsafe { (OwnedFd::from_raw_fd(terminal), OwnedFd::from_raw_fd(end)) };
    [&fds.0, &fds.1].iter().for_each(|fd| rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).unwrap());
    fds
}

#[test]
fn a_run_whose_stdout_nobody_reads_serves_its_signals_and_tells_what_was_not_shown() {
    let (mut unread, write) = std::io::pipe().unwrap();
    let flood = "[agents.a]\ncommand = \"yes\"\noutput_max = \"1MiB\"\n";
    let mut run = Run::start(flood, &[], [Stdio::null(), write.into(), Stdio::piped()]);
    let mut said = run.child.stderr.take().unwrap();
    until("the pipe is full", || rustix::io::ioctl_fionread(&unread).is_ok_and(|count| count >= 60 << 10));
    until("more was written than is kept", || {
        run.herd().agent_output(&name("a"), 0).is_ok_and(|page| page.gone.stdout.is_some_and(|gone| gone > 4 << 20))
    });
    send(run.child.id(), libc::SIGTERM);
    assert_eq!(run.end().code(), Some(1));
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    assert!(text.contains("bytes of output were not shown: nobody reads stdout"), "{text}");
    let mut first = [0; 4096];
    unread.read_exact(&mut first).unwrap();
    assert!(String::from_utf8_lossy(&first).contains("a │ y\n"), "what fits is shown");
}

#[test]
fn a_run_whose_reader_comes_back_is_told_what_it_has_missed() {
    let (read, write) = std::io::pipe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let agents = format!(
        "[agents.a]\noutput_max = \"64KiB\"\ncwd = {:?}\ncommand = \"yes | head -c 20000000; touch written; \
         until [ -e go ]; do sleep 0.05; done; echo the end\"\n",
        dir.path()
    );
    let mut run = Run::start(&agents, &[], [Stdio::null(), write.into(), Stdio::piped()]);
    let said = run.child.stderr.take().unwrap();
    until("all is written, and more than fits anywhere", || dir.path().join("written").exists());
    File::create(dir.path().join("go")).unwrap();
    let shown = BufReader::new(read).lines().map_while(Result::ok);
    assert_eq!(shown.filter(|line| line.ends_with("the end")).count(), 1);
    assert_eq!(run.end().code(), Some(0));
    let said: Vec<String> = BufReader::new(said).lines().map_while(Result::ok).collect();
    assert!(said.iter().any(|line| line.contains("bytes of stdout are gone")), "{said:?}");
}

#[test]
fn a_run_whose_stdout_is_gone_goes_on() {
    let (read, write) = std::io::pipe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let agents = format!(
        "[agents.a]\ncwd = {:?}\ncommand = \"echo a; until [ -e go ]; do sleep 0.05; done; echo b; touch done\"\n",
        dir.path()
    );
    let mut run = Run::start(&agents, &[], [Stdio::null(), write.into(), Stdio::piped()]);
    let mut said = BufReader::new(run.child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(BufReader::new(&read).lines().map_while(Result::ok).any(|line| line == "a │ a"));
    drop(read);
    File::create(dir.path().join("go")).unwrap();
    assert!(said.any(|line| line.contains("write to stdout: ") && line.contains("the agents go on")));
    assert_eq!(run.end().code(), Some(0), "its agent completed");
    assert!(dir.path().join("done").exists());
}

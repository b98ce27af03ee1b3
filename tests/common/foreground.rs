//! A herd in the foreground, in a process of its own.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use assert_cmd::cargo::cargo_bin;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{AS_ROLE, ROLE, leftovers, process_state, processes_in, unique, until};

/// A foreground herd, or any other process with one, and where it is.
pub struct Foreground {
    pub process: Child,
    pub cgroup: String,
    pub stdout: BufReader<std::process::ChildStdout>,
    _dir: tempfile::TempDir,
}

impl Foreground {
    pub fn start(mut command: Command, cgroup: String, dir: tempfile::TempDir) -> Self {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        Self { process, cgroup, stdout, _dir: dir }
    }

    /// Runs a tree file in the foreground, with more words on the command line.
    pub fn run(tree: &str, words: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tree.toml");
        let binary = std::env::current_exe().unwrap();
        std::fs::write(&file, tree.replace("BINARY", binary.to_str().unwrap())).unwrap();
        let cgroup = unique("guarded");
        let mut command = Command::new(cargo_bin!("treeherd"));
        command.args(["run", "--cgroup", &cgroup]).args(words).arg(&file);
        Self::start(command, cgroup, dir)
    }

    /// Starts this binary in a role with a herd in it, and waits until that runs.
    pub fn role(role: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = unique("guarded");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(AS_ROLE);
        command.env(ROLE, role).env("CGROUP", &cgroup).env("STATE", dir.path().join("state"));
        let mut own = Self::start(command, cgroup, dir);
        own.await_text("up");
        own
    }

    pub fn await_text(&mut self, text: &str) {
        let mut said = String::new();
        loop {
            let before = said.len();
            assert_ne!(self.stdout.read_line(&mut said).unwrap(), 0, "{text:?} was never said, but: {said}");
            if said[before..].contains(text) {
                return;
            }
        }
    }

    pub fn await_processes(&self, count: usize) {
        // Without a guardian there is no agent yet: the process in the herd is the start's own trial.
        let guardian = self.place().join("guardian");
        let is_guarded = || !processes_in(guardian.to_str().unwrap()).is_empty();
        until("the agents run", || is_guarded() && self.agents().len() >= count);
    }

    pub fn place(&self) -> PathBuf {
        treeherd::kernel::host::Host::discover().unwrap().cgroup2.join(&self.cgroup)
    }

    pub fn agents(&self) -> Vec<i32> {
        processes_in(self.place().join("herd").to_str().unwrap())
    }

    pub fn guardian(&self) -> i32 {
        processes_in(self.place().join("guardian").to_str().unwrap())[0]
    }

    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/treeherd-run-{}", self.process.id()))
    }

    /// Waits until nothing of it is there, in no hierarchy.
    pub fn await_nothing(&self) {
        until("nothing is left", || leftovers(&self.cgroup).is_empty() && !self.state_dir().exists());
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        let guardians = processes_in(self.place().join("guardian").to_str().unwrap());
        guardians.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGCONT).unwrap_or_default());
    }
}

/// Says whether a process runs.
pub fn lives(pid: i32) -> bool {
    process_state(pid).is_some_and(|state| state != 'Z')
}

//! The supervisor as PID 1 of a container: a new pid namespace with a `/proc` of its own.
#![allow(clippy::unwrap_used)]

mod common;

use assert_cmd::cargo::cargo_bin;
use common::*;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use treeherd::herd::Herd;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::State;

/// Starts this program as the first process of a pid namespace.
fn contained(words: &[&str]) -> Child {
    let namespace = ["--pid", "--mount-proc", "--fork", "--kill-child"];
    let mut command = Command::new("unshare");
    command.args(namespace).arg(cargo_bin!("treeherd")).args(words).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Lists a process's children, as `pid state`.
fn children(pid: u32) -> Vec<(u32, Option<char>)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let pids = text.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.map(|pid: u32| (pid, process_state(pid.cast_signed()))).collect()
}

#[test]
fn as_pid_1_it_reaps_orphans_passes_signals_on_and_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (state, cgroup) = (dir.path().join("state"), unique("init"));
    let words = ["daemon", "--state-dir", state.to_str().unwrap(), "--cgroup", &cgroup];
    let mut unshare = contained(&words);
    until("the daemon answers", || Herd::connect(&state.join("treeherd.sock")).is_ok());
    let herd = Herd::connect(&state.join("treeherd.sock")).unwrap();
    let init = children(unshare.id())[0].0;
    // Orphans that end while their agent lives on: nobody but PID 1 can reap them.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do (true & ) ; done; (sh -c 'echo done' &); exec sleep 1000";
    herd.spawn_child_agent(None, AgentSpec::new(name("a"), ["sh", "-c", script])).unwrap();
    await_line(&herd, &name("a"), "done");
    until("the orphans are reaped", || {
        let left = children(init);
        left.len() == 1 && left[0].1 != Some('Z')
    });
    assert_eq!(herd.agent_status(&name("a")).unwrap().state, State::Running);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init.cast_signed()), nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = unshare.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(leftovers(&cgroup), Vec::<PathBuf>::new());
}

#[test]
fn as_pid_1_its_exit_status_is_that_of_the_run() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), "[agents.a]\ncommand = \"exit 3\"\n").unwrap();
    let cgroup = unique("init-run");
    let run = ["run", "--quiet", file.path().to_str().unwrap(), "--cgroup", &cgroup];
    assert_eq!(contained(&run).wait().unwrap().code(), Some(1), "one of its agents failed");
    assert_eq!(leftovers(&cgroup), Vec::<PathBuf>::new());
}

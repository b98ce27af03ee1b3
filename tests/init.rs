//! The supervisor as PID 1 of a container: a new pid namespace with a `/proc` of its own.
#![allow(clippy::unwrap_used)]

mod common;

use assert_cmd::cargo::cargo_bin;
use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use treeherd::api::client::Client;
use treeherd::api::method::{Call, Hello, Nothing};
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

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Lists a process's children other than keepers, as `pid state`.
fn children(pid: u32) -> Vec<(u32, Option<char>)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let pids =
        text.split_whitespace().map(|pid| pid.parse().unwrap()).filter(|pid: &u32| !is_keeper(pid.cast_signed()));
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
    // Orphans that end while their agent lives on: the daemon reaps them.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do (true & ) ; done; (sh -c 'echo done' &); exec sleep 1000";
    herd.spawn_child_agent(None, AgentSpec::new(name("a"), ["sh", "-c", script])).unwrap();
    await_line(&herd, &name("a"), "done");
    until("the orphans are reaped", || {
        let left = children(init);
        left.len() == 1 && left[0].1 != Some('Z') && children(left[0].0).is_empty()
    });
    // Whoever comes into the container from outside leaves its orphans to PID 1.
    let mut visitor = Command::new("nsenter");
    visitor.args(["--pid", "--target", &init.to_string(), "sh", "-c", "(sleep 0.3 &)"]);
    assert!(visitor.status().unwrap().success());
    until("the orphan is there", || children(init).len() == 2);
    until("the orphan is reaped", || {
        let left = children(init);
        left.len() == 1 && left[0].1 != Some('Z')
    });
    assert_eq!(herd.agent_status(&name("a")).unwrap().state, State::Running);
    signal(init.cast_signed(), Signal::SIGTERM);
    let status = unshare.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(leftovers(&cgroup), Vec::<PathBuf>::new());
}

#[test]
fn a_daemon_reaps_its_agents_orphans_whoever_is_above_it() {
    if !alone("a_daemon_reaps_its_agents_orphans_whoever_is_above_it") {
        return;
    }
    // The one above is this process, which reaps nobody.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let herd = daemon(&[]);
    let count = 300;
    let orphan = "sh -c 'echo $$; exec sleep 1000'";
    let script = format!("i=0; while [ $i -lt {count} ]; do ({orphan} &); i=$((i+1)); done; exec sleep 1000");
    let id = herd.spawn("a", &script);
    let pids = || {
        let said = String::from_utf8(output(&herd, &id)).unwrap();
        said.lines().map(|pid| pid.parse::<i32>().unwrap()).collect::<Vec<_>>()
    };
    until("all have spoken", || pids().len() == count);
    let pids = pids();
    signal(pids[0], Signal::SIGKILL);
    until("the first is gone", || process_state(pids[0]).is_none());
    let status = herd.agent_status(&id).unwrap();
    assert_eq!(status.state, State::Running);
    // All others at once: the daemon is told of one.
    let supervisor = Client::connect(&herd.socket()).unwrap().call::<Hello>(&Call::Hello(Nothing {})).unwrap().pid;
    signal(supervisor.cast_signed(), Signal::SIGSTOP);
    std::fs::write(Path::new(&status.cgroup).join("cgroup.kill"), "1").unwrap();
    until("they have ended", || pids[1..].iter().all(|pid| process_state(*pid) == Some('Z')));
    signal(supervisor.cast_signed(), Signal::SIGCONT);
    until("all are gone", || pids.iter().all(|pid| process_state(*pid).is_none()));
    // What an agent's own process ends with is still its own.
    let failed = herd.spawn("b", "exit 3");
    assert_eq!(herd.wait(&[failed]).unwrap()[0].exit.as_ref().unwrap().status, Some(3));
    herd.finish();
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

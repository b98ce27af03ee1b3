//! The daemon as a service manager sees it: what it is told, and the socket that it hands over.
#![allow(clippy::unwrap_used)]

mod common;

use assert_cmd::cargo::cargo_bin;
use common::*;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use treeherd::herd::Herd;
use treeherd::model::spec::AgentSpec;

/// Someone who stands in for systemd: its notification socket, and a daemon that it started.
struct Manager {
    dir: tempfile::TempDir,
    notices: UnixDatagram,
    cgroup: String,
    daemon: Option<Child>,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let notices = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notices.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { dir, notices, cgroup: unique("service"), daemon: None }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a daemon through a shell that makes ready what a service manager does.
    fn start(&mut self, script: &str, stdin: Stdio, words: &[&str]) {
        let state = self.path("state");
        let command = Command::new("sh")
            .args(["-c", &format!("{script} exec \"$@\""), "sh"])
            .arg(cargo_bin!("treeherd"))
            .args(["daemon", "--cgroup", &self.cgroup, "--state-dir"])
            .arg(&state)
            .args(words)
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stdin(stdin)
            .stderr(Stdio::null())
            .spawn();
        self.daemon = Some(command.unwrap());
    }

    /// Waits for a message with this in it.
    fn await_notice(&self, wanted: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length = self.notices.recv(&mut buffer).unwrap_or_else(|error| panic!("no {wanted:?}: {error}"));
            let notice = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if notice.contains(wanted) {
                return notice;
            }
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.daemon.as_ref().unwrap().id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    fn end(&mut self) {
        let status = self.daemon.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(leftovers(&self.cgroup), Vec::<std::path::PathBuf>::new());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

fn connect(socket: &Path) -> Herd {
    Herd::connect(socket).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_service_manager_is_told_of_the_start_the_counts_a_reload_and_the_stop() {
    let mut manager = Manager::new();
    std::fs::write(manager.path("config.toml"), "[herd]\nmax_agents = 7\n").unwrap();
    let config = manager.path("config.toml");
    manager.start("", Stdio::null(), &["--config", config.to_str().unwrap()]);
    manager.await_notice("READY=1");
    manager.await_notice("STATUS=no agents");
    let herd = connect(&manager.path("state/treeherd.sock"));
    herd.spawn_child_agent(None, AgentSpec::new(name("a"), ["sleep", "1000"])).unwrap();
    manager.await_notice("STATUS=agents: 1 (1 running), levels: 1");
    manager.signal(nix::sys::signal::Signal::SIGHUP);
    let reloading = manager.await_notice("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.await_notice("READY=1");
    manager.signal(nix::sys::signal::Signal::SIGTERM);
    manager.await_notice("STOPPING=1");
    manager.end();
}

#[test]
fn what_a_daemon_was_born_to_ignore_its_agents_do_not() {
    let mut manager = Manager::new();
    manager.start("trap '' HUP USR1 CHLD;", Stdio::null(), &[]);
    manager.await_notice("READY=1");
    let herd = connect(&manager.path("state/treeherd.sock"));
    let agent = herd.spawn_child_agent(None, AgentSpec::new(name("a"), ["cat", "/proc/self/status"])).unwrap().id;
    herd.wait(std::slice::from_ref(&agent)).unwrap();
    let status = String::from_utf8(output(&herd, &agent)).unwrap();
    assert!(status.contains("SigIgn:\t0000000000000000\n"), "{status}");
    manager.signal(nix::sys::signal::Signal::SIGTERM);
    manager.end();
}

#[test]
fn every_setting_tells_where_it_comes_from_before_and_after_a_reload() {
    let mut manager = Manager::new();
    let config = manager.path("config.toml");
    std::fs::write(&config, "[herd]\nmax_agents = 7\nlimits = { pids_max = 100 }\n").unwrap();
    std::fs::create_dir(manager.path("config.d")).unwrap();
    std::fs::write(manager.path("config.d/more.toml"), "[herd]\nmax_levels = 3\n").unwrap();
    manager.start("", Stdio::null(), &["--config", config.to_str().unwrap(), "--max-children", "5"]);
    manager.await_notice("READY=1");
    let socket = manager.path("state/treeherd.sock");
    let treeherd = |words: &[&str]| {
        let output = Command::new(cargo_bin!("treeherd")).arg("--socket").arg(&socket).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = || serde_json::from_str::<serde_json::Value>(&treeherd(&["config", "show", "--json"])).unwrap();
    let (before, text) = (shown(), treeherd(&["config", "show"]));
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("herd.max_levels").ends_with("config.d/more.toml:2"), "{text}");
    assert!(line("herd.max_agents ").ends_with("config.toml:2"), "{text}");
    assert!(line("herd.max_children").ends_with("--max-children"), "{text}");
    assert!(line("herd.cleanup_retention").ends_with("default"), "{text}");
    assert_eq!(before["herd.limits.pids_max"]["value"], 100);
    treeherd(&["limit", "--herd", "pids_max=90"]);
    assert_eq!(shown()["herd.limits.pids_max"], serde_json::json!({ "value": 90, "origin": "changed while it runs" }));
    std::fs::write(manager.path("config.d/more.toml"), "[herd]\n\nmax_levels = 4\n").unwrap();
    manager.signal(nix::sys::signal::Signal::SIGHUP);
    manager.await_notice("RELOADING=1");
    manager.await_notice("READY=1");
    let levels = shown()["herd.max_levels"].clone();
    assert_eq!(levels["value"], 4);
    assert!(levels["origin"].as_str().unwrap().ends_with("more.toml:3"), "{levels}");
    manager.signal(nix::sys::signal::Signal::SIGTERM);
    manager.end();
}

#[test]
fn a_service_manager_that_wants_to_hear_that_it_lives_hears_it() {
    let mut manager = Manager::new();
    manager.start("WATCHDOG_USEC=200000 WATCHDOG_PID=$$", Stdio::null(), &[]);
    manager.await_notice("READY=1");
    for _ in 0..3 {
        manager.await_notice("WATCHDOG=1");
    }
    manager.signal(nix::sys::signal::Signal::SIGTERM);
    manager.end();
}

#[test]
fn a_socket_that_is_handed_over_is_served_and_left_where_it_is() {
    let mut manager = Manager::new();
    let socket = manager.path("handed.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // A client that came before the daemon.
    let early = std::thread::spawn({
        let socket = socket.clone();
        move || connect(&socket).agent_status(&name("a")).unwrap_err()
    });
    let take = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$;";
    manager.start(take, Stdio::from(OwnedFd::from(listener)), &[]);
    assert_eq!(early.join().unwrap().code, treeherd::model::error::Code::NoSuchAgent);
    assert!(!manager.path("state/treeherd.sock").exists(), "it has no other socket");
    connect(&socket).shutdown(None).unwrap();
    manager.end();
    assert!(socket.exists(), "it belongs to whoever made it");
}

#[test]
fn what_is_handed_over_and_is_no_socket_is_refused() {
    let mut manager = Manager::new();
    let refused = "exec 3</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec 2>\"$NOTIFY_SOCKET.err\";";
    manager.start(refused, Stdio::null(), &[]);
    assert!(!manager.daemon.take().unwrap().wait().unwrap().success());
    assert!(!manager.path("state/treeherd.sock").exists());
    let told = std::fs::read_to_string(manager.path("notify.err")).unwrap();
    assert!(told.contains("descriptor 3") && told.contains("ListenStream="), "{told}");
    assert_eq!(leftovers(&manager.cgroup), Vec::<std::path::PathBuf>::new());
}

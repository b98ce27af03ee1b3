//! The first process of a container, as a runtime starts it: crun, an OCI bundle, the capabilities that Docker gives by default, a
//! cgroup namespace of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use libtest_mimic::Trial;
use serde_json::{Value, json};
use treeherd::herd::Herd;
use treeherd::model::error::Code;
use treeherd::model::event::Kind;
use treeherd::model::id::AgentId;
use treeherd::model::limits::{Knob, Limits};
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::Cause;

use crate::common::*;
use crate::trials;

pub fn all() -> Vec<Trial> {
    trials![
        the_first_process_of_a_container_limits_reaps_and_ends_in_order,
        its_exit_status_is_that_of_the_run,
        a_read_only_cgroup_mount_is_refused_with_the_remedy,
        beside_another_first_process_what_stands_in_the_way_is_told,
    ]
}

/// What Docker leaves to a container's root, of what matters here.
const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_SYS_CHROOT",
];

/// A container that is ended and removed with its value.
struct Container {
    name: String,
    bundle: PathBuf,
    crun: Child,
}

impl Container {
    /// Starts a container with a program; its cgroup mount is `rw` or `ro`, its `/run` is the bundle's `run` here.
    fn start(words: &[&str], cgroup_mount: &str) -> Self {
        let (name, bundle) = (unique("box"), Path::new("/root").join(unique("bundle")));
        let root = bundle.join("root");
        for dir in ["usr", "proc", "sys/fs/cgroup", "dev", "tmp", "run"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::fs::create_dir(bundle.join("run")).unwrap();
        for link in ["bin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link)).unwrap();
        }
        std::fs::copy(assert_cmd::cargo::cargo_bin!("treeherd"), root.join("treeherd")).unwrap();
        std::fs::write(bundle.join("tree.toml"), "[agents.a]\ncommand = 'exit 3'\n").unwrap();
        std::fs::copy(bundle.join("tree.toml"), root.join("tree.toml")).unwrap();
        std::fs::write(bundle.join("config.json"), config(words, cgroup_mount, &bundle, &name).to_string()).unwrap();
        let mut command = Command::new("crun");
        command.args(["--cgroup-manager=cgroupfs", "run", "--bundle"]).arg(&bundle).arg(&name);
        let crun = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { name, bundle, crun }
    }

    fn socket(&self) -> PathBuf {
        self.bundle.join("run/treeherd/treeherd.sock")
    }

    /// Waits until its daemon answers.
    fn herd(&mut self) -> Herd {
        let socket = self.socket();
        until("the daemon answers", || {
            if let Some(status) = self.crun.try_wait().unwrap() {
                panic!("the container ended with {status}: {}", self.said());
            }
            let_pass("0.05");
            Herd::connect(&socket).is_ok()
        });
        Herd::connect(&socket).unwrap()
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        std::io::Read::read_to_string(self.crun.stderr.as_mut().unwrap(), &mut text).unwrap();
        text
    }

    /// Waits for its end, and returns the exit status and what it said on stderr.
    fn end(mut self) -> (Option<i32>, String) {
        let said = self.said();
        (self.crun.wait().unwrap().code(), said)
    }

    fn crun(&self, words: &[&str]) -> Output {
        Command::new("crun").args(words).output().unwrap()
    }

    /// Runs a program inside, as `docker exec` does.
    fn exec(&self, words: &[&str]) -> Output {
        self.crun(&[&["exec", &self.name], words].concat())
    }

    /// Where its cgroup is on this side.
    fn cgroup(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(&self.name)
    }

    /// Returns the number of its first process on this side.
    fn first(&self) -> i32 {
        let state: Value = serde_json::from_slice(&self.crun(&["state", &self.name]).stdout).unwrap();
        i32::try_from(state["pid"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.crun(&["delete", "--force", &self.name]);
        drop(self.crun.kill());
        drop(self.crun.wait());
    }
}

fn config(words: &[&str], cgroup_mount: &str, bundle: &Path, name: &str) -> Value {
    let mount = |kind: &str, source: &str, at: &str, options: &[&str]| json!({ "type": kind, "source": source, "destination": at, "options": options });
    let namespaces = ["pid", "mount", "ipc", "uts", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "args": words,
            "env": ["PATH=/usr/bin:/usr/sbin", "HOME=/"],
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
        },
        "root": { "path": "root" },
        "mounts": [
            mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "tmpfs", "/dev", &["nosuid", "mode=755"]),
            mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", cgroup_mount]),
            mount("bind", "/usr", "/usr", &["rbind", "ro"]),
            mount("bind", bundle.join("run").to_str().unwrap(), "/run", &["rbind", "rw"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{name}"),
            "namespaces": namespaces,
        },
    })
}

/// Starts an agent with limits.
fn start(herd: &Herd, id: &str, script: &str, limited: &[&str]) -> AgentId {
    let spec = AgentSpec { limits: limits(limited), ..AgentSpec::new(name(id), ["sh", "-c", script]) };
    herd.spawn_child_agent(None, spec).unwrap_or_else(|error| panic!("{error}"));
    name(id)
}

/// Lists a process's children with their states.
fn children(pid: i32) -> Vec<Option<char>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| process_state(pid.parse().unwrap())).collect()
}

fn the_first_process_of_a_container_limits_reaps_and_ends_in_order() {
    let mut container = Container::start(&["/treeherd", "daemon"], "rw");
    let herd = container.herd();
    let mut events = herd.follow_events(Default::default()).unwrap();
    events.set_timeout(Some(PATIENCE)).unwrap();
    let orphans = "for i in 1 2 3 4 5 6 7 8; do (true &); done; (sh -c 'echo done' &); exec sleep 1000";
    let a = start(&herd, "a", orphans, &["memory_max=32MiB", "pids_max=20", "cpu_max=50%"]);
    await_line(&herd, &a, "done");
    let file = |file: &str| std::fs::read_to_string(container.cgroup().join("treeherd/herd/a").join(file)).unwrap();
    assert_eq!((file("memory.max").trim(), file("pids.max").trim()), ("33554432", "20"));
    let first = container.first();
    until("nobody but the supervisor is left to its first process", || {
        let left = children(first);
        left.len() == 1 && left[0] != Some('Z')
    });
    let hog = start(&herd, "hog", "exec tail /dev/zero", &["memory_max=16MiB"]);
    assert_eq!(await_event(&mut events, Kind::Failed, &hog).exit.unwrap().cause, Cause::Oom);
    let listed = container.exec(&["/treeherd", "ps"]);
    assert!(listed.status.success(), "a client that comes in later: {}", String::from_utf8_lossy(&listed.stderr));
    assert!(container.crun(&["kill", &container.name, "HUP"]).status.success());
    assert!(container.crun(&["kill", &container.name, "TERM"]).status.success());
    let cgroup = container.cgroup();
    let (status, said) = container.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("SIGHUP"), "signals are passed on: {said}");
    assert!(!cgroup.exists(), "nothing is left in it");
}

fn its_exit_status_is_that_of_the_run() {
    let (status, said) = Container::start(&["/treeherd", "run", "--quiet", "/tree.toml"], "rw").end();
    assert_eq!(status, Some(1), "one of its agents failed: {said}");
}

fn a_read_only_cgroup_mount_is_refused_with_the_remedy() {
    for words in [&["/treeherd", "daemon"][..], &["/treeherd", "run", "/tree.toml"]] {
        let (status, said) = Container::start(words, "ro").end();
        assert_eq!(status, Some(3), "{said}");
        assert!(said.contains("(EROFS)") && said.contains("mount -o remount,rw /sys/fs/cgroup"), "{said}");
    }
    let mut container = Container::start(&["/treeherd", "doctor"], "ro");
    let mut text = String::new();
    std::io::Read::read_to_string(container.crun.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(container.end().0, Some(1));
    assert!(text.contains("no supervisor can work here") && text.contains("remount,rw"), "{text}");
}

fn beside_another_first_process_what_stands_in_the_way_is_told() {
    let mut container = Container::start(&["/usr/bin/sh", "-c", "/treeherd daemon & wait"], "rw");
    let herd = container.herd();
    start(&herd, "free", "exec sleep 1000", &[]);
    let mut spec = AgentSpec::new(name("held"), ["sleep", "1000"]);
    for knob in ["pids_max=9", "memory_max=32MiB"] {
        spec.limits = limits(&[knob]);
        let error = assert_code(herd.spawn_child_agent(None, spec.clone()), Code::SpawnFailed);
        assert!(error.message.contains("EBUSY") && error.remedy.unwrap().contains("leaf"), "{knob}");
    }
    let threaded = std::fs::read_to_string(container.cgroup().join("cgroup.type")).unwrap();
    assert_eq!(threaded.trim(), "domain", "what the kernel would have let through has not been tried");
    assert!(herd.agent_status(&name("free")).is_ok());
    let unlimited: Limits = herd.agent_status(&name("free")).unwrap().limits;
    assert!(unlimited.get(Knob::PidsMax).is_none());
    herd.shutdown(Some(std::time::Duration::ZERO)).unwrap();
    assert_eq!(container.end().0, Some(0));
}

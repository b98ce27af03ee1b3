//! Where the herd's root is: within whatever treeherd was put into, with the limits there known by name.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use common::foreground::{Foreground, lives};
use common::*;
use treeherd::daemon::Settings;
use treeherd::herd::Herd;
use treeherd::kernel::host::{Binding, Host};
use treeherd::model::limits::Controller;
use treeherd::model::spec::AgentSpec;

/// A cgroup with a limit on memory, as an engine makes one for a job, and the cgroup in it for the job's first process.
struct Allocation {
    path: PathBuf,
    task: PathBuf,
}

impl Allocation {
    /// None where memory is not limited by cgroups.
    fn new(megabytes: u64) -> Option<Self> {
        let host = Host::discover().unwrap();
        let name = unique("allocation");
        let bytes = (megabytes << 20).to_string();
        match host.binding(Controller::Memory) {
            Binding::Absent { why } => {
                skip(why);
                None
            }
            Binding::V1 { mount } => {
                let path = mount.join(host.own_v1[mount].trim_start_matches('/')).join(name);
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join("memory.limit_in_bytes"), &bytes).unwrap();
                drop(std::fs::write(path.join("memory.memsw.limit_in_bytes"), &bytes));
                Some(Self { task: path.clone(), path })
            }
            Binding::V2 => {
                let path = host.cgroup2.join(name);
                std::fs::create_dir(&path).unwrap();
                std::fs::write(host.cgroup2.join("cgroup.subtree_control"), "+memory").unwrap();
                std::fs::write(path.join("memory.max"), &bytes).unwrap();
                drop(std::fs::write(path.join("memory.swap.max"), "0"));
                std::fs::write(path.join("cgroup.subtree_control"), "+memory").unwrap();
                let task = path.join("task_0");
                std::fs::create_dir(&task).unwrap();
                Some(Self { task, path })
            }
        }
    }

    /// Runs a tree file in it, without a word about cgroups.
    fn run(&self, tree: &str) -> Foreground {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tree.toml");
        std::fs::write(&file, tree).unwrap();
        let mut command = self.command(&["--json", "run"]);
        command.arg(&file);
        let mut run = Foreground::start(command, String::new(), dir);
        run.cgroup = self.root(run.process.id());
        run
    }

    /// Makes a command that starts this program in it.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let enter = format!("echo $$ > '{}/cgroup.procs' && exec \"$@\"", self.task.display());
        command.args(["-c", &enter, "sh"]).arg(cargo_bin!("treeherd")).args(words);
        command
    }

    /// Returns where the root of a run is to be in cgroup2: on v1 only the mirrors are in the allocation.
    fn root(&self, pid: u32) -> String {
        let name = format!("treeherd-run-{pid}");
        match self.path.strip_prefix(Host::discover().unwrap().cgroup2) {
            Ok(below) => below.join(name).to_str().unwrap().to_owned(),
            Err(_) => name,
        }
    }

    /// Says whether a process is in it, as far as memory is concerned.
    fn holds(&self, pid: i32) -> bool {
        processes_in(self.path.to_str().unwrap()).contains(&pid)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        until("the allocation can be removed", || {
            directories_below(&self.path).iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
            !self.path.exists()
        });
    }
}

#[test]
fn a_limit_is_within_the_allocation_that_treeherd_was_started_in() {
    let Some(allocation) = Allocation::new(64) else { return };
    let mut run = allocation.run(
        "[agents.small]\ncommand = [\"sleep\", \"1000\"]\nlimits = { memory_max = \"32MiB\" }\n
         [agents.wide]\ncommand = [\"sleep\", \"1000\"]\nlimits = { memory_max = \"65MiB\" }\n",
    );
    run.await_text("outside of the herd");
    run.await_processes(1);
    let small = run.agents();
    assert!(small.iter().all(|pid| allocation.holds(*pid)), "{small:?}");
    run.process.kill().unwrap();
    run.process.wait().unwrap();
    run.await_nothing();
    assert!(!lives(small[0]));
}

#[test]
fn an_oom_kill_at_a_limit_outside_of_the_herd_is_told_with_that_limit() {
    let Some(allocation) = Allocation::new(64) else { return };
    let mut run = allocation.run("[agents.hog]\ncommand = [\"tail\", \"/dev/zero\"]\n");
    run.await_text(&format!("outside: {}", allocation.path.display()));
    assert_eq!(run.process.wait().unwrap().code(), Some(1));
    run.await_nothing();
}

#[test]
fn doctor_and_check_tell_the_limits_that_treeherd_is_in() {
    let Some(allocation) = Allocation::new(64) else { return };
    let doctor = allocation.command(&["--state-dir", "/nowhere", "doctor"]).output().unwrap();
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let limit = format!("memory_max 64MiB at {}", allocation.path.display());
    assert!(text.contains(&limit), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tree.toml");
    std::fs::write(&file, "[agents.a]\ncommand = \"true\"\nlimits = { memory_max = \"1GiB\" }\n").unwrap();
    let check = allocation.command(&["check", file.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(check.status.success() && text.contains(&limit) && text.contains("a: memory_max"), "{text}");
}

#[test]
fn a_herd_in_an_agent_ends_with_the_agent() {
    let herd = daemon(&[]);
    let (file, said) = (herd.dir.path().join("tree.toml"), herd.dir.path().join("said"));
    std::fs::write(&file, format!("[agents.inner]\ncommand = \"echo $$ > {}; exec sleep 1000\"\n", said.display()))
        .unwrap();
    let program = cargo_bin!("treeherd").to_str().unwrap();
    let outer = herd.program(None, "outer", &[program, "run", file.to_str().unwrap()], |_| {});
    let supervisor = herd.process_for_agent(&outer).unwrap().unwrap();
    let inner = || std::fs::read_to_string(&said).ok()?.trim().parse::<i32>().ok();
    until("the inner agent runs", || inner().is_some());
    let inner = inner().unwrap();
    let leaf = format!("{}/herd/outer/run-1/treeherd-run-{supervisor}/herd/inner/run-1", herd.cgroup);
    let cgroup = std::fs::read_to_string(format!("/proc/{inner}/cgroup")).unwrap();
    assert!(cgroup.lines().any(|line| line.starts_with("0::") && line.ends_with(&leaf)), "{cgroup}");
    let receipt = herd.terminate_agent(&outer, Some(std::time::Duration::ZERO)).unwrap();
    assert!(!lives(inner) && !lives(supervisor));
    assert!(receipt.processes >= 3, "the supervisor, its guardian and its agent: {}", receipt.processes);
    // What was killed with its guardian has nobody to clear up.
    delete(format!("/run/treeherd-run-{supervisor}"));
    herd.finish();
}

/// What this binary does when it is started as an agent: a program with a herd of its own, which says nothing of cgroups.
#[test]
fn role() {
    if std::env::var(ROLE).is_err() {
        return;
    }
    let herd = Herd::start(Settings::new(std::env::var("STATE").unwrap())).unwrap_or_else(|error| panic!("{error}"));
    let inner = herd.spawn_child_agent(None, AgentSpec::new(name("inner"), ["sleep", "1000"])).unwrap();
    println!("\ninner {}", inner.pid.unwrap());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_librarys_herd_in_an_agent_is_within_the_agents_cgroup_and_ends_with_it() {
    let herd = daemon(&[]);
    let state = herd.dir.path().join("inner");
    let outer = herd.role(None, "outer", "library", |spec| {
        spec.env.insert("STATE".to_owned(), state.to_str().unwrap().to_owned());
    });
    let said = || String::from_utf8_lossy(&output(&herd, &outer)).into_owned();
    let inner = || said().lines().find_map(|line| line.strip_prefix("inner ")?.parse::<i32>().ok());
    until("the inner agent runs", || inner().is_some());
    let inner = inner().unwrap();
    let cgroup = std::fs::read_to_string(format!("/proc/{inner}/cgroup")).unwrap();
    let leaf = format!("{}/herd/outer/run-1/treeherd/herd/inner/run-1", herd.cgroup);
    assert!(cgroup.lines().any(|line| line.starts_with("0::") && line.ends_with(&leaf)), "{cgroup}");
    herd.terminate_agent(&outer, Some(std::time::Duration::ZERO)).unwrap();
    assert!(!lives(inner));
    herd.finish();
}

#[test]
fn the_path_of_a_root_cgroup_may_begin_with_the_mount_point() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tree.toml");
    std::fs::write(&file, "[agents.a]\ncommand = [\"sleep\", \"1000\"]\n").unwrap();
    let (mount, cgroup) = (Host::discover().unwrap().cgroup2, unique("place"));
    let mut command = Command::new(cargo_bin!("treeherd"));
    command.args(["run", "--cgroup", mount.join(&cgroup).to_str().unwrap()]).arg(&file);
    let mut run = Foreground::start(command, cgroup, dir);
    run.await_processes(1);
    run.process.kill().unwrap();
    run.process.wait().unwrap();
    run.await_nothing();
    assert!(!Path::new(&mount).join("sys").exists(), "it is not nested");
}

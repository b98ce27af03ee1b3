//! Without root: a user supervises within the cgroup that was delegated to them, as a user's service manager does it.
#![allow(clippy::unwrap_used)]

mod common;

use assert_cmd::cargo::cargo_bin;
use common::*;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use treeherd::kernel::host::Host;

/// Somebody who owns nothing here: `nobody`.
const USER: u32 = 65534;

/// A cgroup that is delegated to the user, the program where the user can run it, and a place for its state.
struct Delegated {
    cgroup: String,
    path: PathBuf,
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Delegated {
    fn new() -> Self {
        let (cgroup, dir) = (unique("user"), tempfile::tempdir().unwrap());
        let path = Host::discover().unwrap().cgroup2.join(&cgroup);
        std::fs::create_dir_all(path.join("own")).unwrap();
        let delegate = |path: &Path| chown(path, Some(USER), Some(USER)).unwrap();
        delegate(&path);
        for file in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "own", "own/cgroup.procs"] {
            delegate(&path.join(file));
        }
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "user.delegate", b"1", flags).unwrap();
        std::fs::copy(cargo_bin!("treeherd"), dir.path().join("treeherd")).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        delegate(&dir.path().join("run"));
        Self { cgroup, path, dir, daemon: None }
    }

    /// Makes a command that runs this program as the user, from within a cgroup.
    fn command(&self, cgroup: &Path, words: &[&str]) -> Command {
        let id = USER.to_string();
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(cgroup.join("cgroup.procs"))
            .args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(self.dir.path().join("treeherd"))
            .args(words)
            .env("XDG_RUNTIME_DIR", self.dir.path().join("run"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(&self.path.join("own"), words).output().unwrap()
    }

    fn told(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
        for path in [self.path.join("own"), self.path.clone()] {
            drop(std::fs::remove_dir(path));
        }
    }
}

#[test]
fn without_root_it_supervises_within_what_was_delegated_to_it() {
    let mut user = Delegated::new();
    let daemon = user.command(&user.path.join("own"), &["daemon"]).stderr(Stdio::null()).spawn().unwrap();
    user.daemon = Some(daemon);
    until("the daemon answers", || user.run(&["ps"]).status.success());
    user.told(&["register", "group"]);
    user.told(&[
        "spawn",
        "a",
        "--parent",
        "group",
        "--",
        "sh",
        "-c",
        "(setsid sleep 1000 &) ; echo up; exec sleep 1000",
    ]);
    until("it is up", || user.told(&["logs", "a"]).contains("up"));
    let status: serde_json::Value = serde_json::from_str(&user.told(&["ps", "--json"])).unwrap();
    let cgroup = status[1]["cgroup"].as_str().unwrap();
    assert!(cgroup.ends_with(&format!("{}/herd/group/level-1/a", user.cgroup)), "{cgroup}");
    let doctor: serde_json::Value = serde_json::from_str(&user.told(&["doctor", "--json"])).unwrap();
    let host = Host::discover().unwrap();
    for limit in doctor["limits"].as_array().unwrap() {
        // Nothing but what cgroup2 hands down is a user's.
        let is_promised = limit["by"].is_string();
        assert!(
            !is_promised || host.cgroup2.join(&user.cgroup).join(limit["by"].as_str().unwrap()).exists(),
            "{limit}"
        );
    }
    if !user.path.join("memory.max").exists() {
        let refused = user.run(&["spawn", "b", "--memory-max", "64MiB", "--", "sleep", "1000"]);
        assert_eq!(refused.status.code(), Some(3), "what is not delegated is refused");
    }
    user.told(&["pause", "group"]);
    let receipt: serde_json::Value = serde_json::from_str(&user.told(&["terminate", "group", "--json"])).unwrap();
    assert_eq!(receipt["processes"], 2, "{receipt}");
    user.told(&["shutdown"]);
    assert!(user.daemon.take().unwrap().wait().unwrap().success());
    assert_eq!(directories_below(&user.path), [user.path.clone(), user.path.join("own")], "nothing is left");
}

#[test]
fn where_nothing_is_delegated_it_says_the_one_command_that_helps() {
    let user = Delegated::new();
    let mount = Host::discover().unwrap().cgroup2;
    let output = user.command(&mount, &["daemon"]).output().unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("systemd-run --user --scope -p Delegate=yes treeherd daemon"), "{told}");
}

#[test]
fn what_was_delegated_to_a_service_manager_is_not_taken() {
    let user = Delegated::new();
    let unit = user.path.join("terminal.scope");
    std::fs::create_dir(&unit).unwrap();
    chown(&unit, Some(USER), Some(USER)).unwrap();
    // In a terminal there is a shell as well.
    let mut shell = Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(unit.join("cgroup.procs"), shell.id().to_string()).unwrap();
    let output = user.command(&unit, &["daemon"]).output().unwrap();
    shell.kill().unwrap();
    shell.wait().unwrap();
    std::fs::remove_dir(&unit).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("systemd-run --user --scope -p Delegate=yes treeherd daemon"), "{told}");
    assert!(!user.path.join("herd").exists(), "nothing is made beside the manager's units");
}

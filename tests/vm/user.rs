//! Somebody who is not root, with a service manager of their own: as the README says, and where nothing was delegated.
//!
//! ```text
//! user-1000.slice/user@1000.service          systemd delegates cpu, memory and pids to the user's own systemd
//!                 ├── app.slice/terminal.service     what the user starts: nothing was delegated to it
//!                 └── app.slice/run-….scope          systemd-run --user --scope -p Delegate=yes …
//! ```

use std::path::Path;
use std::process::{Command, Output};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::common::processes_in;
use crate::guest::{FirstProcess, Kit};
use crate::host;
use crate::systemd::{done, until};
use crate::trials;

const USER: &str = "1000";

/// The unit that is a user's as well.
const UNIT: &str = "systemd/treeherd.service";

const RUNTIME: &str = "/run/user/1000";

/// Hands the unit to a guest with systemd.
pub fn here(kit: &Kit, name: &str) -> Result<(), Failed> {
    host::part(kit, name, FirstProcess::Systemd, "", vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(UNIT)])
}

pub fn all() -> Vec<Trial> {
    log_in();
    trials![
        the_printed_command_supervises_within_the_users_own_tree,
        what_is_not_delegated_is_named_and_refused,
        where_nothing_was_delegated_the_command_that_helps_is_told,
        a_tree_runs_in_the_scope_that_was_delegated_to_it,
        the_unit_is_a_users_too,
    ]
}

/// Makes the user and starts their service manager, without what is not here: PAM, logind, a bus.
fn log_in() {
    let script = format!(
        "echo tester:x:{USER}:{USER}::/home/tester:/bin/sh >>/etc/passwd; echo tester:x:{USER}: >>/etc/group
        mkdir -p /home/tester && chown {USER}:{USER} /home/tester
        for unit in user@ user-runtime-dir@; do mkdir -p /etc/systemd/system/$unit.service.d; done
        printf '[Service]\\nPAMName=\\nEnvironment=XDG_RUNTIME_DIR={RUNTIME}\\n' >/etc/systemd/system/user@.service.d/here.conf
        printf '[Service]\\nExecStart=\\nExecStart=install -d -m 700 -o {USER} -g {USER} {RUNTIME}\\nExecStop=\\n' \\
            >/etc/systemd/system/user-runtime-dir@.service.d/here.conf
        install -m 755 {} /usr/bin/treeherd
        systemctl daemon-reload && systemctl start user@{USER}",
        assert_cmd::cargo::cargo_bin!("treeherd").display()
    );
    done(&["sh", "-c", &script]);
}

/// Runs a program as the user.
fn run(words: &[&str]) -> Output {
    let identity = ["--reuid", USER, "--regid", USER, "--clear-groups"];
    let mut command = Command::new("setpriv");
    command.args(identity).args(words).env("XDG_RUNTIME_DIR", RUNTIME).env("HOME", "/home/tester");
    command.output().unwrap()
}

/// Runs a program as the user that has to succeed, and returns what it says.
fn told(words: &[&str]) -> String {
    let output = run(words);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {said}{}{}", String::from_utf8_lossy(&output.stderr), log());
    said
}

/// What the command in the terminal has said.
fn log() -> String {
    std::fs::read_to_string(format!("{RUNTIME}/terminal")).unwrap_or_default()
}

/// Enters a command in a terminal of the user's: within their tree of cgroups.
fn enter(command: &str) {
    run(&["systemctl", "--user", "stop", "terminal"]);
    let unit = format!(
        "[Service]\nExecStart=sh -c '{command}'\nStandardOutput=truncate:{RUNTIME}/terminal\nStandardError=inherit\n"
    );
    std::fs::create_dir_all("/etc/systemd/user").unwrap();
    std::fs::write("/etc/systemd/user/terminal.service", unit).unwrap();
    told(&["systemctl", "--user", "daemon-reload"]);
    told(&["systemctl", "--user", "start", "terminal"]);
}

/// Enters the command that the README prints.
fn start_daemon() {
    enter("systemd-run --user --scope -p Delegate=yes treeherd daemon");
    until("the daemon answers", || run(&["treeherd", "ps"]).status.success());
}

fn agent(id: &str) -> Value {
    serde_json::from_str(&told(&["treeherd", "show", id, "--json"])).unwrap()
}

fn the_printed_command_supervises_within_the_users_own_tree() {
    start_daemon();
    told(&[
        "treeherd",
        "spawn",
        "a",
        "--memory-max",
        "32MiB",
        "--pids-max",
        "9",
        "--cpu-max",
        "50%",
        "--",
        "sleep",
        "1000",
    ]);
    let cgroup = agent("a")["cgroup"].as_str().unwrap().to_owned();
    let place = format!("/user@{USER}.service/app.slice/run-");
    assert!(cgroup.contains(&place) && cgroup.ends_with(".scope/herd/a"), "{cgroup}");
    let limit = |file: &str| std::fs::read_to_string(Path::new(&cgroup).join(file)).unwrap().trim().to_owned();
    assert_eq!(
        (limit("memory.max"), limit("pids.max"), limit("cpu.max")),
        ("33554432".into(), "9".into(), "50000 100000".into())
    );
    told(&["treeherd", "spawn", "hog", "--memory-max", "16MiB", "--", "tail", "/dev/zero"]);
    assert_eq!(run(&["treeherd", "wait", "hog"]).status.code(), Some(1));
    assert_eq!(agent("hog")["exit"]["cause"], "oom");
    told(&["treeherd", "pause", "a"]);
    told(&["treeherd", "terminate", "a", "--now"]);
    told(&["treeherd", "shutdown"]);
    let scope = cgroup.strip_suffix("/herd/a").unwrap();
    until("its scope is gone", || !Path::new(scope).exists());
}

fn what_is_not_delegated_is_named_and_refused() {
    start_daemon();
    let doctor: Value = serde_json::from_str(&told(&["treeherd", "doctor", "--json"])).unwrap();
    let check = |name: &str| {
        let checks = doctor["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {doctor}")).clone()
    };
    assert_eq!(check("controller memory")["outcome"], "good");
    let io = check("controller io");
    assert_eq!(io["outcome"], "limited");
    assert!(io["remedy"].as_str().unwrap().contains("delegate io"), "{io}");
    let refused = run(&["treeherd", "spawn", "a", "--io-weight", "50", "--", "true"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("controller io") && said.contains("Delegate"), "{said}");
    told(&["treeherd", "shutdown"]);
}

fn where_nothing_was_delegated_the_command_that_helps_is_told() {
    let home = format!("/sys/fs/cgroup/user.slice/user-{USER}.slice/user@{USER}.service");
    // In a terminal there is a shell as well.
    for command in ["treeherd daemon; true", "treeherd doctor; true"] {
        enter(command);
        until("it ends", || processes_in(&format!("{home}/app.slice/terminal.service")).is_empty());
        assert!(log().contains("systemd-run --user --scope -p Delegate=yes treeherd daemon"), "{command}: {}", log());
    }
    assert!(!Path::new(&home).join("herd").exists(), "what is their service manager's is not touched");
}

fn a_tree_runs_in_the_scope_that_was_delegated_to_it() {
    std::fs::write(
        "/home/tester/tree.toml",
        "[agents.a]\ncommand = 'cat /proc/self/cgroup'\nlimits = { pids_max = 7 }\n",
    )
    .unwrap();
    enter("systemd-run --user --scope -p Delegate=yes treeherd run /home/tester/tree.toml");
    until("its agent has said where it is", || log().contains("0::/"));
    assert!(log().contains(".scope/herd/a/run-1"), "{}", log());
}

fn the_unit_is_a_users_too() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join(UNIT);
    told(&["install", "-D", "-m", "644", unit.to_str().unwrap(), "/home/tester/.config/systemd/user/treeherd.service"]);
    told(&["systemctl", "--user", "daemon-reload"]);
    let started = run(&["systemctl", "--user", "start", "treeherd"]);
    assert!(started.status.success(), "{}", done(&["journalctl", "--no-pager", "--lines=20"]));
    told(&["treeherd", "spawn", "a", "--pids-max", "9", "--", "sleep", "1000"]);
    assert!(agent("a")["cgroup"].as_str().unwrap().ends_with("/app.slice/treeherd.service/herd/a"));
    told(&["systemctl", "--user", "reload", "treeherd"]);
    told(&["systemctl", "--user", "stop", "treeherd"]);
    assert_eq!(told(&["systemctl", "--user", "show", "--property=Result", "--value", "treeherd"]).trim(), "success");
}

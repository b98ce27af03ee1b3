//! The daemon as a service of a real systemd, installed as the README says; and what a power failure leaves of it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::common::{PATIENCE, let_pass, processes_in};
use crate::trials;

/// Where the service's herd is.
pub const HERD: &str = "/sys/fs/cgroup/system.slice/treeherd.service/herd";

/// The service's unit.
const UNIT: &str = "/etc/systemd/system/treeherd.service";

/// What stands in the configuration file.
const CONFIG: &str = "/etc/treeherd/config.toml";

/// A state directory that a power failure does not empty.
const LASTING: &str = "/var/lib/treeherd";

/// How many changes are told before the last moment in which all is on the disk.
const TOLD: u32 = 15;

/// The tests of the service.
pub fn service() -> Vec<Trial> {
    trials![
        the_units_are_well_formed,
        a_herd_lives_in_the_services_own_cgroup,
        a_reload_applies_the_configuration_and_a_wrong_one_changes_nothing,
        an_agent_out_of_memory_is_no_failure_of_the_service,
        a_freeze_of_the_service_and_its_thaw_do_no_harm,
        a_daemon_that_is_killed_is_started_again_and_adopts_its_agents,
        an_upgrade_in_place_keeps_the_agents_and_a_restart_ends_them,
        the_first_client_starts_the_daemon,
        a_stop_ends_the_herd_and_leaves_no_cgroup,
        a_stop_of_many_who_are_deaf_is_over_in_time,
    ]
}

/// What is tested up to the moment in which the power fails.
pub fn crash() -> Vec<Trial> {
    trials![the_power_fails_in_the_middle_of_work]
}

/// What is tested when the machine is up again.
pub fn after_crash() -> Vec<Trial> {
    trials![the_next_daemon_starts_on_what_the_power_failure_left]
}

/// Runs a program.
pub fn run(words: &[&str]) -> Output {
    Command::new(words[0]).args(&words[1..]).output().unwrap()
}

/// Runs a program that has to succeed, and returns what it says.
pub fn done(words: &[&str]) -> String {
    let output = run(words);
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?}: {said}{failed}{}", journal());
    said.trim().to_owned()
}

/// What systemd knows about the service.
pub fn property(name: &str) -> String {
    done(&["systemctl", "show", "--property", name, "--value", "treeherd"])
}

/// The end of the service's journal, for failures.
fn journal() -> String {
    String::from_utf8_lossy(&run(&["journalctl", "--unit", "treeherd", "--lines", "50", "--no-pager"]).stdout)
        .into_owned()
}

/// Waits for a fact that nothing tells of.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", journal());
        let_pass("0.1");
    }
}

fn agents() -> Vec<Value> {
    serde_json::from_str::<Vec<Value>>(&done(&["treeherd", "ps", "--json"])).unwrap()
}

/// A service that has just been started, without a configuration, as if for the first time.
fn fresh() {
    std::fs::remove_file(CONFIG).unwrap_or_default();
    done(&["systemctl", "stop", "treeherd.socket", "treeherd"]);
    done(&["systemctl", "reset-failed"]);
    done(&["systemctl", "start", "treeherd.socket", "treeherd"]);
    assert_eq!(property("ActiveState"), "active");
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

fn the_units_are_well_formed() {
    std::fs::create_dir_all("/etc/treeherd").unwrap();
    std::fs::write("/etc/treeherd/fleet.toml", "[agents.a]\ncommand = 'true'\n").unwrap();
    let units = ["treeherd.service", "treeherd.socket", "treeherd@fleet.service"];
    let verified = run(&[&["systemd-analyze", "verify", "--man=no"], &units[..]].concat());
    let said = String::from_utf8_lossy(&verified.stderr);
    // This systemd is older than the unit would have it.
    let mistakes: Vec<_> = said.lines().filter(|line| !line.contains("DelegateSubgroup")).collect();
    assert!(verified.status.success() && mistakes.is_empty(), "{said}");
    // Restrictions would be the agents' too, so there are few; but no agent speaks for the service.
    let exposure = done(&["systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=96", UNIT]);
    assert!(exposure.contains("✓ NotifyAccess="), "{exposure}");
}

fn a_herd_lives_in_the_services_own_cgroup() {
    fresh();
    done(&["treeherd", "spawn", "own", "--memory-max", "64MiB", "--pids-max", "20", "--", "sleep", "1000"]);
    done(&["treeherd", "spawn", "below", "--parent", "own", "--cpu-max", "50%", "--", "sleep", "1000"]);
    let own = Path::new(HERD).join("own");
    assert_eq!((read(own.join("memory.max")), read(own.join("pids.max"))), ("67108864".to_owned(), "20".to_owned()));
    assert_eq!(read(own.join("level-1/below/cpu.max")), "50000 100000");
    let supervisor = Path::new(HERD).with_file_name("supervisor");
    assert_eq!(read(supervisor.join("cpu.weight")), "10000", "beside the herd it goes first");
    assert_eq!(read(supervisor.join("memory.min")), "67108864");
    assert_eq!(processes_in(HERD).len(), 2);
    until("the journal has the agent as a field", || {
        done(&["journalctl", "--no-pager", "--output", "cat", "AGENT=below"]).contains("process:started")
    });
    until("it is told how many agents there are", || property("StatusText").contains('2'));
    done(&["treeherd", "terminate", "own", "--now"]);
    assert_eq!(processes_in(HERD), Vec::<i32>::new());
}

fn a_reload_applies_the_configuration_and_a_wrong_one_changes_nothing() {
    fresh();
    std::fs::create_dir_all("/etc/treeherd").unwrap();
    done(&["treeherd", "spawn", "a", "--", "sleep", "1000"]);
    let limit = || std::fs::read_to_string(Path::new(HERD).join("a/pids.max")).unwrap_or_default().trim().to_owned();
    std::fs::write(CONFIG, "[levels.0]\neach = { pids_max = 33 }\n").unwrap();
    done(&["systemctl", "reload", "treeherd"]);
    until("the limit of its level is put on the agent", || limit() == "33");
    std::fs::write(CONFIG, "[levels.0]\neach = { pids_max = 44, nonsense = 1 }\n").unwrap();
    done(&["systemctl", "reload", "treeherd"]);
    until("the mistake is told", || journal().contains("nonsense"));
    assert_eq!((limit().as_str(), agents().len()), ("33", 1));
}

fn an_agent_out_of_memory_is_no_failure_of_the_service() {
    fresh();
    let daemon = property("MainPID");
    done(&["treeherd", "spawn", "bystander", "--", "sleep", "1000"]);
    done(&["treeherd", "spawn", "hog", "--memory-max", "16MiB", "--", "tail", "/dev/zero"]);
    assert_eq!(run(&["treeherd", "wait", "hog"]).status.code(), Some(1));
    let shown: Value = serde_json::from_str(&done(&["treeherd", "show", "hog", "--json"])).unwrap();
    assert_eq!((&shown["exit"]["cause"], &shown["exit"]["oom"]["culprit"]), (&"oom".into(), &"hog".into()), "{shown}");
    assert_eq!((property("ActiveState"), property("MainPID")), ("active".to_owned(), daemon));
    assert_eq!(processes_in(HERD).len(), 1, "the bystander lives");
}

fn a_daemon_that_is_killed_is_started_again_and_adopts_its_agents() {
    fresh();
    // Without a limit: this systemd is older than the unit would have it.
    done(&["treeherd", "spawn", "before", "--", "sh", "-c", "setsid sleep 1000 & exec sleep 1000"]);
    until("it has two processes", || processes_in(HERD).len() == 2);
    let before = processes_in(HERD);
    let (daemon, restarts) = (property("MainPID"), property("NRestarts"));
    done(&["kill", "-KILL", &daemon]);
    until("systemd starts it again", || property("NRestarts") != restarts && property("ActiveState") == "active");
    assert_ne!(property("MainPID"), daemon);
    assert_eq!(processes_in(HERD), before, "they live on");
    assert_eq!((agents().len(), &agents()[0]["state"]), (1, &"running".into()));
    done(&["treeherd", "spawn", "after", "--memory-max", "64MiB", "--", "sleep", "1000"]);
    let living: Vec<_> = agents().into_iter().filter(|agent| agent["state"] == "running").collect();
    let known: usize = living.iter().map(|agent| processes_in(agent["cgroup"].as_str().unwrap()).len()).sum();
    assert_eq!(processes_in(HERD).len(), known, "every process is a known agent's: {living:?}");
    done(&["treeherd", "terminate", "--all", "--now"]);
    assert_eq!(processes_in(HERD), Vec::<i32>::new());
}

fn a_freeze_of_the_service_and_its_thaw_do_no_harm() {
    fresh();
    let beats = "while :; do systemd-notify --ready WATCHDOG=1; sleep 0.5; done";
    done(&["treeherd", "spawn", "beats", "--ready", "notify", "--watchdog", "3s", "--", "sh", "-c", beats]);
    done(&["treeherd", "spawn", "sleeps", "--run-timeout", "1h", "--", "sleep", "1000"]);
    done(&["treeherd", "spawn", "paused", "--", "sleep", "1000"]);
    done(&["treeherd", "pause", "paused"]);
    let is_as_asked =
        |agent: &serde_json::Value| agent["state"] == if agent["id"] == "paused" { "paused" } else { "running" };
    until("it is ready", || agents().iter().all(is_as_asked));
    let (daemon, restarts, before) = (property("MainPID"), property("NRestarts"), events_about("beats"));
    // Longer than the agent's heartbeat may be late, and shorter than the daemon's own.
    done(&["systemctl", "freeze", "treeherd"]);
    assert_eq!(property("FreezerState"), "frozen");
    let_pass("20");
    done(&["systemctl", "thaw", "treeherd"]);
    let_pass("5");
    let agents = agents();
    assert!(agents.iter().all(|agent| is_as_asked(agent) && agent["run"] == 1), "{agents:?}");
    assert_eq!(agents.iter().find(|agent| agent["id"] == "paused").unwrap()["paused"], "own");
    assert_eq!((property("MainPID"), property("NRestarts")), (daemon, restarts));
    assert_eq!(events_about("beats"), before, "nothing has happened to it");
}

/// The events of an agent, a line each.
fn events_about(id: &str) -> String {
    done(&["treeherd", "events", "--since", "0", "--agent", id])
}

fn an_upgrade_in_place_keeps_the_agents_and_a_restart_ends_them() {
    fresh();
    done(&["treeherd", "spawn", "a", "--", "sh", "-c", "echo before; exec sleep 1000"]);
    let before = processes_in(HERD);
    let program = |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino();
    let old = program(&property("MainPID"));
    done(&["install", "-m", "755", "/usr/bin/treeherd", "/usr/bin/treeherd.new"]);
    std::fs::rename("/usr/bin/treeherd.new", "/usr/bin/treeherd").unwrap();
    let restarts = property("NRestarts");
    done(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "treeherd"]);
    until("systemd starts it again", || property("NRestarts") != restarts && property("ActiveState") == "active");
    assert_ne!(program(&property("MainPID")), old, "it is the new program");
    assert_eq!((processes_in(HERD), &agents()[0]["state"]), (before, &"running".into()));
    assert!(done(&["treeherd", "logs", "a"]).ends_with("before"));
    // A restart is a stop, in order, and a start.
    done(&["systemctl", "restart", "treeherd"]);
    assert_eq!((processes_in(HERD), property("ActiveState")), (Vec::new(), "active".to_owned()));
    assert!(agents().iter().all(|agent| agent["state"] == "terminated"), "{:?}", agents());
}

fn the_first_client_starts_the_daemon() {
    fresh();
    run(&["systemctl", "stop", "treeherd.service"]);
    assert_eq!(property("ActiveState"), "inactive");
    assert_eq!(agents(), Vec::<Value>::new());
    assert_eq!(property("ActiveState"), "active");
}

fn a_stop_ends_the_herd_and_leaves_no_cgroup() {
    fresh();
    done(&[
        "treeherd",
        "spawn",
        "deaf",
        "--grace",
        "100ms",
        "--",
        "sh",
        "-c",
        "trap '' TERM; echo up; sleep 1000; sleep 1000",
    ]);
    let pids = processes_in(HERD);
    assert!(!pids.is_empty());
    done(&["systemctl", "stop", "treeherd.socket", "treeherd"]);
    assert_eq!(property("Result"), "success");
    assert!(!Path::new(HERD).parent().unwrap().exists(), "its cgroup is gone");
    assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

fn a_stop_of_many_who_are_deaf_is_over_in_time() {
    fresh();
    let deaf = "trap '' TERM; while :; do sleep 1000; done";
    for parent in 0..3 {
        let parent = format!("parent-{parent}");
        done(&["treeherd", "spawn", &parent, "--", "sh", "-c", deaf]);
        for child in 0..3 {
            let child = format!("{parent}-{child}");
            done(&["treeherd", "spawn", &child, "--parent", &parent, "--", "sh", "-c", deaf]);
        }
    }
    until("all of them run", || processes_in(HERD).len() == 24);
    let begun = Instant::now();
    done(&["systemctl", "stop", "treeherd.socket", "treeherd"]);
    assert_eq!(property("Result"), "success", "the daemon has ended them, within TimeoutStopSec");
    assert!(begun.elapsed().as_secs() >= 9, "each has had its grace");
    assert!(!Path::new(HERD).parent().unwrap().exists(), "its cgroup is gone");
}

/// The daemon with a state directory that outlives the machine.
fn start_lasting() {
    let dir = Path::new("/etc/systemd/system/treeherd.service.d");
    std::fs::create_dir_all(dir).unwrap();
    let unit = format!("[Service]\nExecStart=\nExecStart=/usr/bin/treeherd --state-dir {LASTING} daemon\n");
    std::fs::write(dir.join("lasting.conf"), unit).unwrap();
    done(&["systemctl", "daemon-reload"]);
    done(&["systemctl", "start", "treeherd.service"]);
}

fn lasting(words: &[&str]) -> String {
    done(&[&["treeherd", "--state-dir", LASTING], words].concat())
}

/// The numbers of all events that are kept.
fn events() -> Vec<u64> {
    let text = lasting(&["events", "--since", "0", "--json"]);
    let number = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64();
    text.lines().filter_map(number).collect()
}

fn the_power_fails_in_the_middle_of_work() {
    start_lasting();
    lasting(&["spawn", "top", "--memory-max", "64MiB", "--pids-max", "20", "--", "sleep", "1000"]);
    lasting(&["spawn", "busy", "--parent", "top", "--", "sh", "-c", "while :; do echo working; done"]);
    let endless = r#"{"jsonrpc":"2.0","id":1,"method":"spawn","params":{"id":"endless","command":["sh","-c","echo ended >&2; exit 1"],
        "restart":{"policy":"always","delay":"0s","intensity":1000000}}}"#;
    let socket = std::os::unix::net::UnixStream::connect(format!("{LASTING}/treeherd.sock")).unwrap();
    std::io::Write::write_all(&mut &socket, (endless.replace('\n', " ") + "\n").as_bytes()).unwrap();
    let change = |pids: std::ops::Range<u32>| {
        pids.for_each(|pids| drop(lasting(&["limit", "top", &format!("pids_max={pids}")])));
    };
    change(20..20 + TOLD);
    // What was told so far is on the disk for good, what comes now is not.
    done(&["sync"]);
    change(50..55);
    std::fs::write("/proc/sysrq-trigger", "b").unwrap();
    let_pass("60");
    panic!("the power is still on");
}

fn the_next_daemon_starts_on_what_the_power_failure_left() {
    let journal = std::fs::metadata(Path::new(LASTING).join("journal")).unwrap().len();
    assert!(journal > 0, "something was left");
    start_lasting();
    let numbers = events();
    assert!(numbers.len() > TOLD as usize, "the events that were on the disk are kept: {}", numbers.len());
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "in order, and none twice: {numbers:?}");
    assert_eq!(processes_in(HERD), Vec::<i32>::new(), "nobody lives on");
    let agents: Vec<Value> = serde_json::from_str(&lasting(&["ps", "--json"])).unwrap();
    let top = agents.iter().find(|agent| agent["id"] == "top").unwrap_or_else(|| panic!("{agents:?}"));
    assert_eq!((&top["state"], &top["exit"]["cause"]), (&"failed".into(), &"lost".into()), "{top}");
    lasting(&["spawn", "fresh", "--memory-max", "64MiB", "--", "sh", "-c", "echo here"]);
    lasting(&["wait", "fresh"]);
    assert!(lasting(&["logs", "fresh"]).ends_with("here"));
    lasting(&["cleanup", "--all"]);
    lasting(&["spawn", "busy", "--", "sleep", "1000"]);
    done(&["systemctl", "stop", "treeherd"]);
    assert_eq!(property("Result"), "success");
}

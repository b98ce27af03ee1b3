//! Hosts that are not as they should be: nothing delegated, a mount that is read-only, what a crash has left behind, no memory controller,
//! a clock that jumps. What cannot work is refused with its remedy; what can goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::Value;
use treeherd::api::method::EventQuery;
use treeherd::daemon::Settings;
use treeherd::herd::Herd;
use treeherd::model::event::Event;
use treeherd::model::id::AgentId;
use treeherd::model::recovery::{Restart, RestartPolicy};
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::State;

use crate::common::*;
use crate::trials;

const MOUNT: &str = "/sys/fs/cgroup";

pub fn all() -> Vec<Trial> {
    trials![
        a_read_only_hierarchy_is_refused_with_the_remedy,
        who_was_given_no_cgroup_is_told_what_helps,
        what_a_killed_daemon_left_enabled_holds_nobody_up,
        a_root_with_a_process_in_it_is_no_place_for_limits_and_stays_a_domain,
        a_threaded_root_is_refused,
        a_second_daemon_on_the_same_root_or_directory_is_refused,
        a_clock_that_jumps_fires_no_timer_and_delays_none,
    ]
}

/// The tests for a kernel that was booted without the memory controller.
pub fn without_memory() -> Vec<Trial> {
    trials![a_controller_that_is_missing_is_named_and_its_limits_are_refused]
}

fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn treeherd(words: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("treeherd")).args(words).output().unwrap()
}

/// Asserts that a program was refused, with a status and these words.
fn assert_told(output: &Output, status: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(status), "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in: {said}"));
}

/// A daemon with a log that can be read, in a root cgroup and a state directory that are given.
struct Logged {
    child: std::process::Child,
    state: PathBuf,
    cgroup: String,
    log: PathBuf,
    herd: Herd,
}

impl Logged {
    fn start(state: &Path, cgroup: &str, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("treeherd"));
        command.args(["daemon", "--cgroup", cgroup, "--state-dir"]).arg(state);
        let mut child = command.env("NO_COLOR", "1").stdout(Stdio::null()).stderr(file).spawn().unwrap();
        let socket = state.join("treeherd.sock");
        until("the daemon answers", || {
            assert!(child.try_wait().unwrap().is_none(), "{}", std::fs::read_to_string(log).unwrap());
            let_pass("0.02");
            Herd::connect(&socket).is_ok_and(|herd| herd.agents().is_ok())
        });
        let herd = Herd::connect(&socket).unwrap();
        Self { child, state: state.to_owned(), cgroup: cgroup.to_owned(), log: log.to_owned(), herd }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn spawn(&self, id: &str, script: &str, limited: &[&str]) -> AgentId {
        let spec = AgentSpec { limits: limits(limited), ..AgentSpec::new(name(id), ["sh", "-c", script]) };
        self.herd.spawn_child_agent(None, spec).unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        name(id)
    }

    /// Counts the agents that live, however many processes each has at this moment.
    fn agents(&self) -> usize {
        let pids = processes_in(&format!("{MOUNT}/{}/herd", self.cgroup));
        let cgroup_of = |pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok();
        pids.into_iter().filter_map(cgroup_of).collect::<BTreeSet<String>>().len()
    }

    fn events(&self) -> Vec<Event> {
        self.herd.events(EventQuery { since: Some(0), ..EventQuery::default() }).unwrap().events
    }

    /// Kills it, and starts the next one in its place.
    fn next(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Self::start(&self.state, &self.cgroup, &self.log)
    }

    fn end(mut self) {
        self.herd.shutdown(Some(Duration::ZERO)).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{}", std::fs::read_to_string(&self.log).unwrap());
        assert_eq!(leftovers(&self.cgroup), Vec::<PathBuf>::new());
    }
}

fn a_read_only_hierarchy_is_refused_with_the_remedy() {
    let state = tempfile::tempdir().unwrap();
    let program = assert_cmd::cargo::cargo_bin!("treeherd").display().to_string();
    let inside = |words: &str| {
        let script = format!("mount -o remount,bind,ro {MOUNT} && exec {program} {words}");
        Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap()
    };
    let told = ["(EROFS)", "mount -o remount,rw /sys/fs/cgroup"];
    let daemon = format!("daemon --state-dir {}", state.path().join("state").display());
    assert_told(&inside(&daemon), 3, &told);
    assert_told(&inside("doctor"), 1, &told);
    // A root that is there already is no help.
    std::fs::create_dir(Path::new(MOUNT).join("treeherd")).unwrap();
    assert_told(&inside(&daemon), 3, &told);
    std::fs::remove_dir(Path::new(MOUNT).join("treeherd")).unwrap();
}

fn who_was_given_no_cgroup_is_told_what_helps() {
    let program = assert_cmd::cargo::cargo_bin!("treeherd");
    let home = tempfile::tempdir().unwrap();
    shell(&format!("chmod 711 /root; chown nobody {}", home.path().display()));
    for words in [&["daemon"][..], &["doctor"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).args(words);
        let output = command.env("XDG_RUNTIME_DIR", home.path()).output().unwrap();
        assert!(!output.status.success());
        let status = output.status.code().unwrap();
        assert_told(&output, status, &["(EACCES)", "systemd-run --user --scope -p Delegate=yes treeherd daemon"]);
    }
}

fn what_a_killed_daemon_left_enabled_holds_nobody_up() {
    let (dir, root) = (tempfile::tempdir().unwrap(), unique("stale"));
    let (state, log) = (dir.path().join("state"), dir.path().join("log"));
    // Delegated: it was there before, and stays.
    let path = Path::new(MOUNT).join(&root);
    std::fs::create_dir(&path).unwrap();
    let enabled = || std::fs::read_to_string(path.join("cgroup.subtree_control")).unwrap();
    let daemon = Logged::start(&state, &root, &log);
    daemon.spawn("a", "exec sleep 1000", &["memory_max=32MiB", "pids_max=9"]);
    let daemon = daemon.next();
    assert_eq!(enabled().trim(), "memory pids");
    daemon.spawn("b", "exec sleep 1000", &["cpu_max=50%"]);
    assert_eq!((enabled().trim(), daemon.agents()), ("cpu memory pids", 2));
    daemon.herd.shutdown(Some(Duration::ZERO)).unwrap();
    let mut child = daemon.child;
    assert!(child.wait().unwrap().success());
    assert_eq!(enabled().trim(), "", "a service manager could start it again here");
    std::fs::remove_dir(&path).unwrap();
}

fn a_root_with_a_process_in_it_is_no_place_for_limits_and_stays_a_domain() {
    let (dir, root) = (tempfile::tempdir().unwrap(), unique("populated"));
    let path = Path::new(MOUNT).join(&root);
    std::fs::create_dir(&path).unwrap();
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(path.join("cgroup.procs"), other.id().to_string()).unwrap();
    // A program that uses the library makes no leaf beside the herd: with nobody below, the kernel would take pids and cpu.
    let settings = Settings { cgroup: root.clone(), ..Settings::new(dir.path().join("state")) };
    let herd = Herd::start(settings).unwrap();
    let spawn = |limit: &str| {
        herd.spawn_child_agent(
            None,
            AgentSpec { limits: limits(&[limit]), ..AgentSpec::new(name("a"), ["sleep", "1000"]) },
        )
    };
    for limit in ["pids_max=9", "cpu_max=50%", "memory_max=32MiB"] {
        let error = spawn(limit).unwrap_err();
        assert!(error.message.contains("EBUSY") && error.remedy.as_ref().unwrap().contains("leaf"), "{limit}: {error}");
    }
    assert_eq!(std::fs::read_to_string(path.join("cgroup.type")).unwrap(), "domain\n");
    other.kill().unwrap();
    other.wait().unwrap();
    spawn("pids_max=9").unwrap();
    herd.shutdown(Some(Duration::ZERO)).unwrap();
    std::fs::remove_dir(&path).unwrap();
}

fn a_threaded_root_is_refused() {
    let root = unique("threaded");
    let path = Path::new(MOUNT).join(&root);
    std::fs::create_dir_all(path.join("inner")).unwrap();
    std::fs::write(path.join("inner/cgroup.type"), "threaded").unwrap();
    let state = tempfile::tempdir().unwrap();
    let output = treeherd(&[
        "daemon",
        "--cgroup",
        &format!("{root}/inner"),
        "--state-dir",
        state.path().join("s").to_str().unwrap(),
    ]);
    assert_told(&output, 1, &["(EOPNOTSUPP)", "threaded"]);
    assert_eq!(directories_below(&path).len(), 2, "nothing is left");
    shell(&format!("rmdir {0}/inner {0}", path.display()));
}

fn a_second_daemon_on_the_same_root_or_directory_is_refused() {
    let (dir, root) = (tempfile::tempdir().unwrap(), unique("first"));
    let daemon = Logged::start(&dir.path().join("state"), &root, &dir.path().join("log"));
    daemon.spawn("a", "exec sleep 1000", &["pids_max=9"]);
    let pid = format!("in use by the daemon with pid {}", daemon.child.id());
    let at = |state: &str| dir.path().join(state).to_str().unwrap().to_owned();
    assert_told(&treeherd(&["daemon", "--cgroup", &root, "--state-dir", &at("other")]), 3, &[&pid, "another --cgroup"]);
    assert_told(
        &treeherd(&["daemon", "--cgroup", "other", "--state-dir", &at("state")]),
        3,
        &[&pid, "another --state-dir"],
    );
    assert_eq!(daemon.agents(), 1);
    assert!(!Path::new(MOUNT).join("other").exists());
    daemon.end();
}

/// Sets the clock on or back by a day.
fn jump(sign: &str) {
    shell(&format!("date -s \"@$(($(date +%s) {sign} 86400))\" >/dev/null"));
}

fn a_clock_that_jumps_fires_no_timer_and_delays_none() {
    let (dir, root) = (tempfile::tempdir().unwrap(), unique("clock"));
    let daemon = Logged::start(&dir.path().join("state"), &root, &dir.path().join("log"));
    let spawn = |id: &str, script: &str, change: &dyn Fn(&mut AgentSpec)| {
        let mut spec = AgentSpec::new(name(id), ["sh", "-c", script]);
        change(&mut spec);
        daemon.herd.spawn_child_agent(None, spec).unwrap();
        name(id)
    };
    let restart = |delay: u64| {
        move |spec: &mut AgentSpec| {
            let delay = Duration::from_secs(delay);
            spec.restart = Restart { policy: RestartPolicy::OnFailure, delay, max_delay: delay, ..Restart::default() };
        }
    };
    for sign in ["+", "-"] {
        let id = |what: &str| format!("{what}-{}", if sign == "+" { "on" } else { "back" });
        // What is due in an hour is not due in a day's jump: an ended one's retention is a minute.
        let timed = spawn(&id("timed"), "exec sleep 1000", &|spec| spec.run_timeout = Some(Duration::from_secs(3_600)));
        let ended = spawn(&id("ended"), "exit 3", &|_| ());
        let patient = spawn(&id("patient"), "exit 3", &restart(3_600));
        let state = |id: &AgentId| daemon.herd.agent_status(id).map(|status| status.state);
        until("they are where they should be", || {
            state(&ended) == Ok(State::Failed) && state(&patient) == Ok(State::Backoff)
        });
        // And what is due in a second is due in a second.
        let begun = Instant::now();
        let soon = spawn(&id("soon"), "exec sleep 1000", &|spec| spec.run_timeout = Some(Duration::from_secs(1)));
        let eager = spawn(&id("eager"), "exit 3", &restart(1));
        jump(sign);
        until("both happened", || {
            let_pass("0.05");
            state(&soon) == Ok(State::Failed) && daemon.herd.agent_status(&eager).unwrap().run.0 > 1
        });
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(1), "not before their time: {took:?}");
        assert_eq!(
            (state(&timed), state(&ended), state(&patient)),
            (Ok(State::Running), Ok(State::Failed), Ok(State::Backoff))
        );
        let exit = daemon.herd.agent_status(&soon).unwrap().exit.unwrap();
        assert!((1_000..60_000).contains(&exit.run_ms), "{exit:?}");
    }
    let numbers: Vec<u64> = daemon.events().iter().map(|event| event.seq).collect();
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "{numbers:?}");
    // Nor is the next daemon led astray.
    jump("+");
    let daemon = daemon.next();
    assert_eq!(daemon.herd.agent_status(&name("timed-on")).unwrap().state, State::Running);
    assert_eq!(daemon.herd.agent_status(&name("patient-on")).unwrap().state, State::Backoff);
    jump("-");
    daemon.end();
}

fn a_controller_that_is_missing_is_named_and_its_limits_are_refused() {
    let doctor: Value = serde_json::from_slice(&treeherd(&["doctor", "--json"]).stdout).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let memory = checks.iter().find(|check| check["name"] == "controller memory").unwrap();
    assert_eq!((&doctor["is_fit"], &memory["outcome"]), (&true.into(), &"limited".into()), "{doctor}");
    assert!(memory["remedy"].as_str().unwrap().contains("cgroup_disable="), "{memory}");
    let (dir, root) = (tempfile::tempdir().unwrap(), unique("poor"));
    let state = dir.path().join("state");
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[herd]\nlimits = { memory_max = '1GiB' }\n").unwrap();
    let words =
        ["daemon", "--cgroup", &root, "--config", config.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
    assert_told(&treeherd(&words), 3, &["memory_max is not offered here", "controller memory"]);
    let daemon = Logged::start(&state, &root, &dir.path().join("log"));
    let mut spec = AgentSpec::new(name("a"), ["sleep", "1000"]);
    spec.limits = limits(&["pids_max=9", "memory_max=32MiB"]);
    let error = daemon.herd.spawn_child_agent(None, spec).unwrap_err();
    assert!(error.message.contains("controller memory") && error.remedy.is_some(), "{error}");
    let a = daemon.spawn("a", "exec sleep 1000", &["pids_max=9", "cpu_max=50%"]);
    daemon.herd.pause(ids(&[&a])).unwrap();
    assert_eq!(daemon.agents(), 1);
    daemon.end();
}

//! Ends that a process, a tracer or another cgroup stands in the way of: everything still ends, and is reported as it was.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use rustix::process::Signal;
use treeherd::kernel::pidfd;
use treeherd::model::error::Code;
use treeherd::model::event::Kind;
use treeherd::model::id::AgentId;
use treeherd::model::spec::StopSignalTo;
use treeherd::model::status::{Cause, Receipt, State};
use treeherd::model::survivor::SurvivalReason;

/// What the agents of the tests below are: this binary again.
#[test]
fn role() {
    match std::env::var(ROLE).as_deref() {
        Ok("headless") => headless(|| {
            loop {
                std::thread::park();
            }
        }),
        Ok("headless-storm") => {
            // procfs has no link to the program of a process without a first thread.
            let program = this();
            headless(|| {
                loop {
                    drop(Command::new(&program).args(AS_ROLE).stdout(Stdio::null()).spawn());
                }
            });
        }
        Ok("tracer") => trace(),
        _ => {}
    }
}

fn this() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Ends the first thread of this process, which the test harness waits in, and goes on in this one, deaf to SIGTERM.
#[allow(unsafe_code)]
fn headless(then: impl FnOnce()) {
    extern "C" fn leave(_: libc::c_int) {
        // SAFETY: ends the thread that runs this handler alone; nothing of its stack is used again.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let handler: extern "C" fn(libc::c_int) = leave;
    let own = std::process::id().cast_signed();
    // SAFETY: the handler makes one system call, which is safe in a signal handler.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::signal(libc::SIGUSR1, handler as libc::sighandler_t);
        libc::syscall(libc::SYS_tgkill, own, own, libc::SIGUSR1);
    }
    while process_state(own) != Some('Z') {
        std::thread::yield_now();
    }
    std::io::stdout().write_all(b"\nheadless\n").unwrap();
    then();
}

/// Traces the process in `VICTIM` with the options in `OPTIONS`, and never waits for it.
#[allow(unsafe_code)]
fn trace() {
    let number = |name: &str| std::env::var(name).unwrap().parse::<libc::c_long>().unwrap();
    let (victim, options) = (number("VICTIM"), number("OPTIONS"));
    // SAFETY: PTRACE_SEIZE reads no memory of ours.
    let answer = unsafe { libc::ptrace(libc::PTRACE_SEIZE, libc::pid_t::try_from(victim).unwrap(), 0, options) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    println!("\ntraced");
    loop {
        std::thread::park();
    }
}

/// Starts an agent whose main process has no first thread any more.
fn spawn_headless(herd: &Own, id: &str, role: &str) -> AgentId {
    let id = herd.role(None, id, role, |spec| {
        spec.grace = Duration::from_millis(100);
        spec.limits = limits(&["pids_max=48"]);
    });
    await_line(herd, &id, "headless");
    id
}

fn spawn_tracer(herd: &Own, id: &str, victim: &AgentId, options: libc::c_int) -> AgentId {
    let pid = herd.agent_status(victim).unwrap().pid.unwrap();
    let tracer = herd.role(None, id, "tracer", |spec| {
        spec.env.insert("VICTIM".to_owned(), pid.to_string());
        spec.env.insert("OPTIONS".to_owned(), options.to_string());
    });
    await_line(herd, &tracer, "traced");
    tracer
}

/// Starts an agent that ends with status 3 when somebody writes into the returned FIFO.
fn spawn_victim(herd: &Own, id: &str) -> (AgentId, PathBuf) {
    let fifo = herd.dir.path().join(id);
    make_fifo(&fifo);
    // Its name is no UTF-8: all that is read of it is.
    let name = "printf '\\377x' > /proc/$$/comm";
    let id = herd.spawn(id, &format!("{name}; echo up; read line < {}; exit 3", fifo.display()));
    await_line(herd, &id, "up");
    (id, fifo)
}

fn make_fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
}

fn terminate_now(herd: &Own, id: &AgentId) -> Receipt {
    let receipt = herd.terminate_agent(id, Some(Duration::ZERO)).unwrap();
    assert_eq!(receipt.agents[0].survivors, 0, "{receipt:?}");
    receipt
}

/// A cgroup beside the herd, gone when the test is over.
struct Elsewhere(PathBuf);

impl Elsewhere {
    fn new() -> Self {
        let unified = treeherd::kernel::host::Host::discover().unwrap().cgroup2;
        let path = unified.join(unique("elsewhere"));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn procs(&self) -> String {
        self.0.join("cgroup.procs").display().to_string()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(std::fs::write(self.0.join("cgroup.kill"), "1"));
        until("the cgroup beside the herd is removed", || std::fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn cgroup_kill_passes_over_a_process_whose_first_thread_has_ended() {
    let elsewhere = Elsewhere::new();
    let mut command = Command::new("sh");
    let script = format!("echo $$ > {}; exec \"$0\" \"$@\"", elsewhere.procs());
    command.args(["-c", &script]).arg(this()).args(AS_ROLE).env(ROLE, "headless");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "headless" {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0);
    }
    let pid = child.id().cast_signed();
    let process = pidfd::open(pid).unwrap();
    std::fs::write(elsewhere.0.join("cgroup.kill"), "1").unwrap();
    let_pass("0.3");
    let listed = processes_in(elsewhere.0.to_str().unwrap());
    if listed.is_empty() {
        // The kill of this kernel reaches it: that of 6.12 does, that of 6.18 does not.
        return drop(child.wait());
    }
    assert_eq!(listed, [pid], "it is listed, and lives");
    assert_eq!((process_state(pid), pidfd::has_ended(process.as_fd())), (Some('Z'), Ok(false)));
    std::fs::write(elsewhere.0.join("cgroup.freeze"), "1").unwrap();
    let events = || std::fs::read_to_string(elsewhere.0.join("cgroup.events")).unwrap();
    until("its other threads are frozen", || events().contains("frozen 1"));
    pidfd::signal(process.as_fd(), Signal::KILL).unwrap();
    until("a signal to the process ends it, frozen or not", || events().contains("populated 0"));
    child.wait().unwrap();
}

#[test]
fn a_main_process_whose_first_thread_has_ended_is_killed() {
    let herd = herd();
    for grace in [Some(Duration::ZERO), None] {
        let id = spawn_headless(&herd, if grace.is_some() { "now" } else { "polite" }, "headless");
        let receipt = herd.terminate_agent(&id, grace).unwrap();
        assert_eq!(herd.processes(), Vec::<i32>::new());
        assert_eq!((receipt.processes, receipt.agents[0].survivors), (1, 0), "{receipt:?}");
        let exit = herd.agent_status(&id).unwrap().exit.unwrap();
        assert_eq!((exit.cause, exit.signal.as_deref()), (Cause::Terminated, Some("SIGKILL")));
    }
    let id = spawn_headless(&herd, "again", "headless");
    let before = herd.agent_status(&id).unwrap().pid;
    herd.restart_agent(&id).unwrap();
    assert!(process_state(before.unwrap()).is_none(), "a restart ends the run before");
    // The shutdown has one to end, too.
    herd.finish();
}

#[test]
fn what_is_left_behind_is_killed_though_its_first_thread_has_ended() {
    let herd = herd();
    let words = AS_ROLE.join(" ");
    let script = format!("{ROLE}=headless {} {words} & read end < fifo; exit 1", this().display());
    let fifo = herd.dir.path().join("fifo");
    make_fifo(&fifo);
    let id = herd.spawn_with("main", None, &script, |spec| {
        spec.grace = Duration::from_millis(100);
        spec.cwd = Some(herd.dir.path().to_owned());
    });
    await_line(&herd, &id, "headless");
    std::fs::write(&fifo, "end\n").unwrap();
    let ended = herd.wait(std::slice::from_ref(&id)).unwrap();
    assert_eq!((ended[0].state, herd.processes()), (State::Failed, Vec::new()));
    herd.finish();
}

#[test]
fn a_fork_storm_of_processes_without_a_first_thread_ends() {
    let herd = herd();
    let id = spawn_headless(&herd, "storm", "headless-storm");
    let cgroup = herd.agent_status(&id).unwrap().cgroup;
    until("it is a storm", || processes_in(&cgroup).len() > 6);
    terminate_now(&herd, &id);
    assert_eq!(herd.processes(), Vec::<i32>::new());
    herd.finish();
}

#[test]
fn a_next_daemon_ends_what_has_no_first_thread_any_more() {
    let mut herd = daemon(&[]);
    let adopted = spawn_headless(&herd, "adopted", "headless");
    herd.crash();
    herd.restart();
    assert_eq!(herd.agent_status(&adopted).unwrap().state, State::Running);
    terminate_now(&herd, &adopted);
    spawn_headless(&herd, "stray", "headless");
    herd.crash();
    std::fs::remove_file(herd.dir.path().join("state/records")).unwrap();
    herd.restart();
    assert_eq!(herd.processes(), Vec::<i32>::new(), "what is in no record is ended at start");
    herd.finish();
}

#[test]
fn a_death_that_a_tracer_hides_is_reported_at_once_with_its_exit() {
    let herd = herd();
    let (victim, fifo) = spawn_victim(&herd, "victim");
    let pid = herd.agent_status(&victim).unwrap().pid.unwrap();
    let tracer = spawn_tracer(&herd, "tracer", &victim, 0);
    let mut events = herd.follow();
    std::fs::write(&fifo, "end\n").unwrap();
    let exit = await_event(&mut events, Kind::Failed, &victim).exit.unwrap();
    assert_eq!((exit.cause, exit.status), (Cause::Exit, Some(3)));
    assert_eq!(herd.agent_status(&tracer).unwrap().state, State::Running, "nobody has waited for it");
    assert_eq!(process_state(pid), Some('Z'));
    terminate_now(&herd, &tracer);
    until("it is reaped when its tracer has ended", || process_state(pid).is_none());
    let detection = herd.stats().unwrap().detection;
    assert_eq!(detection.late, 0, "{detection:?}");
    herd.finish();
}

#[test]
fn a_main_process_that_left_its_cgroup_gets_its_stop_signal_and_the_kill() {
    let herd = herd();
    let elsewhere = Elsewhere::new();
    let leave = format!("echo $$ > {}", elsewhere.procs());
    let polite = format!("trap 'echo bye; exit 0' TERM; {leave}; echo up; while :; do sleep 0.01; done");
    let deaf = format!("trap '' TERM; {leave}; echo up; exec sleep 1000");
    for (id, script, grace, signal) in [("polite", polite, 20_000, "SIGTERM"), ("deaf", deaf, 100, "SIGKILL")] {
        let id = herd.spawn(id, &script);
        await_line(&herd, &id, "up");
        let receipt = herd.terminate_agent(&id, Some(Duration::from_millis(grace))).unwrap();
        assert_eq!(receipt.agents[0].signals, BTreeMap::from([(signal.to_owned(), 1)]), "{receipt:?}");
    }
    assert!(String::from_utf8(output(&herd, &name("polite"))).unwrap().ends_with("bye\n"));
    assert_eq!(processes_in(elsewhere.0.to_str().unwrap()), Vec::<i32>::new());
    herd.finish();
}

#[test]
fn a_stopped_process_handles_its_stop_signal() {
    let herd = herd();
    let id = herd.spawn("stopped", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done");
    await_line(&herd, &id, "up");
    let pid = herd.agent_status(&id).unwrap().pid.unwrap();
    pidfd::signal(pidfd::open(pid).unwrap().as_fd(), Signal::STOP).unwrap();
    until("it is stopped", || process_state(pid) == Some('T'));
    let receipt = herd.terminate_agent(&id, Some(Duration::from_secs(20))).unwrap();
    assert!(!receipt.agents[0].signals.contains_key("SIGKILL"), "{receipt:?}");
    assert!(String::from_utf8(output(&herd, &id)).unwrap().ends_with("bye\n"));
    herd.finish();
}

#[test]
fn the_stop_signal_can_be_for_the_main_process_alone() {
    let herd = herd();
    let fifo = herd.dir.path().join("fifo");
    make_fifo(&fifo);
    let worker = format!("(echo up; read end < {}; echo drained) & wait", fifo.display());
    let id =
        herd.spawn_with("master", None, &format!("trap 'echo asked; wait; exit 0' TERM; {worker}; wait"), |spec| {
            spec.stop_signal_to = StopSignalTo::Main;
            spec.grace = Duration::from_secs(20);
        });
    await_line(&herd, &id, "up");
    let receipt = std::thread::scope(|scope| {
        let asked = scope.spawn(|| herd.terminate_agent(&id, None).unwrap());
        await_line(&herd, &id, "asked");
        std::fs::write(&fifo, "end\n").unwrap();
        asked.join().unwrap()
    });
    assert!(String::from_utf8(output(&herd, &id)).unwrap().contains("drained"), "its worker was left to end");
    assert_eq!(receipt.agents[0].signals, BTreeMap::from([("SIGTERM".to_owned(), 1)]));
    // What it does not end itself gets the signal after it, not the kill after the grace.
    let script = "(trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.01; done) & wait";
    let id = herd.spawn_with("careless", None, script, |spec| {
        spec.stop_signal_to = StopSignalTo::Main;
        spec.grace = Duration::from_secs(20);
    });
    await_line(&herd, &id, "up");
    let receipt = herd.terminate_agent(&id, None).unwrap();
    assert!(receipt.ms < 19_000.0 && String::from_utf8(output(&herd, &id)).unwrap().contains("asked"), "{receipt:?}");
    herd.finish();
}

/// Starts a herd whose kills may take 500 ms.
fn hasty() -> Own {
    herd_with(|settings| settings.herd.kill_timeout = Duration::from_secs(3))
}

#[test]
fn a_process_that_its_tracer_holds_in_its_exit_is_named_in_the_receipt_and_ends_once() {
    let herd = hasty();
    let (victim, _) = spawn_victim(&herd, "victim");
    let pid = herd.agent_status(&victim).unwrap().pid.unwrap();
    let tracer = spawn_tracer(&herd, "tracer", &victim, libc::PTRACE_O_TRACEEXIT);
    let tracer_pid = herd.agent_status(&tracer).unwrap().pid.unwrap();
    let words = ["terminate", "victim", "--now", "--json"];
    let answer = treeherd(&herd, &words);
    let receipt: Receipt = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(answer.status.code(), Some(1), "not all has ended: {receipt:?}");
    let agent = &receipt.agents[0];
    assert_eq!((receipt.processes, agent.survivors, agent.signals.len()), (0, 1, 0), "{receipt:?}");
    let alive = &agent.alive[0];
    assert_eq!((alive.pid, alive.reason), (pid, SurvivalReason::Traced), "{alive}");
    assert_eq!(alive.comm, "\\u{fffd}x", "{alive}");
    // The tracer is the thread that traces.
    assert_eq!(parent_of_thread(alive.tracer.unwrap()), tracer_pid, "{alive}");
    assert_eq!(herd.agent_status(&victim).unwrap().state, State::Stuck);
    assert_eq!(herd.ends_of(&victim), [], "an end that nobody has seen is not reported");
    let explained = treeherd(&herd, &["explain", "victim"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("held by its tracer"), "{explained:?}");
    let mut events = herd.follow();
    terminate_now(&herd, &tracer);
    let exit = await_event(&mut events, Kind::Terminated, &victim).exit.unwrap();
    assert_eq!(exit.signal.as_deref(), Some("SIGKILL"));
    assert_eq!(herd.ends_of(&victim), [Kind::Terminated], "its end is reported once");
    assert_eq!(herd.events_of(&victim).iter().filter(|event| event.kind == Kind::Stuck).count(), 1);
    until("its cgroup is removed", || herd.cgroups().iter().all(|path| !path.ends_with("victim")));
    herd.finish();
}

/// Returns the process that a thread belongs to.
fn parent_of_thread(tid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("Tgid:")).unwrap().trim().parse().unwrap()
}

#[test]
fn a_restart_whose_old_run_does_not_die_is_answered() {
    let herd = hasty();
    let (victim, _) = spawn_victim(&herd, "victim");
    let tracer = spawn_tracer(&herd, "tracer", &victim, libc::PTRACE_O_TRACEEXIT);
    let error = assert_code(herd.restart_agent(&victim), Code::TimedOut);
    assert!(error.message.contains("held by its tracer"), "{error}");
    let mut events = herd.follow();
    terminate_now(&herd, &tracer);
    await_event(&mut events, Kind::Started, &victim);
    herd.finish();
}

#[test]
fn a_shutdown_is_answered_though_a_process_does_not_die_and_the_next_daemon_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("herd.toml");
    std::fs::write(&config, "[herd]\nkill_timeout = '500ms'\n").unwrap();
    let mut herd = daemon(&["--config", config.to_str().unwrap()]);
    let (victim, _) = spawn_victim(&herd, "victim");
    let pid = herd.agent_status(&victim).unwrap().pid.unwrap();
    // Not an agent: the shutdown does not end this one.
    let mut tracer = Command::new(this());
    tracer.args(AS_ROLE).env(ROLE, "tracer").env("VICTIM", pid.to_string()).stdout(Stdio::piped());
    let mut tracer = tracer.env("OPTIONS", libc::PTRACE_O_TRACEEXIT.to_string()).spawn().unwrap();
    let mut out = std::io::BufReader::new(tracer.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "traced" {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0);
    }
    let answer = treeherd(&herd, &["shutdown", "--now", "--json"]);
    let receipt: Receipt = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!((answer.status.code(), receipt.agents[0].alive[0].pid), (Some(1), pid), "{receipt:?}");
    herd.reap_daemon();
    herd.restart();
    assert_eq!(herd.agent_status(&victim).unwrap().pid, Some(pid), "it is adopted, and still to end");
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    let ended = herd.wait(&[victim]).unwrap();
    assert_eq!(ended[0].state, State::Terminated);
    herd.finish();
}

#[test]
fn a_process_in_a_frozen_v1_freezer_is_reported_and_ends_when_it_is_thawed() {
    let freezer = Path::new("/sys/fs/cgroup/freezer").join(unique("freezer"));
    if std::fs::create_dir(&freezer).is_err() {
        return;
    }
    let herd = hasty();
    let id = herd.sleeper(None, "cold");
    let pid = herd.agent_status(&id).unwrap().pid.unwrap();
    std::fs::write(freezer.join("cgroup.procs"), pid.to_string()).unwrap();
    std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    let state = || std::fs::read_to_string(freezer.join("freezer.state")).unwrap();
    until("it is frozen", || state().trim() == "FROZEN");
    let receipt = herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap();
    let alive = &receipt.agents[0].alive;
    let alive: Vec<_> = alive.iter().map(|it| (it.pid, it.reason)).collect();
    assert_eq!(alive, [(pid, SurvivalReason::FrozenV1)], "{receipt:?}");
    std::fs::write(freezer.join("freezer.state"), "THAWED").unwrap();
    let ended = herd.wait(&[id]).unwrap();
    assert_eq!(ended[0].state, State::Terminated);
    until("the freezer's cgroup is empty", || std::fs::remove_dir(&freezer).is_ok());
    herd.finish();
}

#[test]
fn a_process_that_left_cgroup2_is_found_in_a_v1_mirror_and_ended() {
    let host = treeherd::kernel::host::Host::discover().unwrap();
    let is_v1 = |controller| matches!(host.binding(controller), treeherd::kernel::host::Binding::V1 { .. });
    if !is_v1(treeherd::model::limits::Controller::Pids) {
        return;
    }
    let herd = herd();
    let elsewhere = Elsewhere::new();
    let script = format!("sh -c 'echo $$ > {}; echo $$; exec sleep 1000' & wait", elsewhere.procs());
    let id = herd.spawn_with("root", None, &script, |spec| spec.limits = limits(&["pids_max=20"]));
    until("it has left", || !processes_in(elsewhere.0.to_str().unwrap()).is_empty());
    let pid = processes_in(elsewhere.0.to_str().unwrap())[0];
    terminate_now(&herd, &id);
    assert!(matches!(process_state(pid), None | Some('Z' | 'X')), "it is ended where it is");
    herd.finish();
}

/// Starts an agent whose child has left the herd, and returns the agent and the child.
fn spawn_leaver(herd: &Own, id: &str, elsewhere: &Elsewhere) -> (AgentId, i32) {
    let script = format!("sleep 1000 & echo $! > {}; echo $!; echo up; exec sleep 1000", elsewhere.procs());
    let id = herd.spawn(id, &script);
    await_line(herd, &id, "up");
    let said = String::from_utf8(output(herd, &id)).unwrap();
    let child = said.lines().next().unwrap().parse().unwrap();
    until("it is the program", || comm(child) == "sleep");
    (id, child)
}

#[test]
fn orphans_inside_the_herd_do_not_hide_a_process_that_left_it() {
    const ORPHANS: usize = 600;
    let elsewhere = Elsewhere::new();
    let herd = daemon(&[]);
    let script = format!("for i in $(seq {ORPHANS}); do (sleep 1000 &) ; done; echo up; exec sleep 1000");
    let crowd = herd.spawn("crowd", &script);
    await_line(&herd, &crowd, "up");
    // It is given to the supervisor when its parent has ended: behind all others.
    let (leaver, outside) = spawn_leaver(&herd, "leaver", &elsewhere);
    let receipt = terminate_now(&herd, &leaver);
    assert_eq!(receipt.outside.iter().map(|it| it.pid).collect::<Vec<_>>(), [outside], "{receipt:?}");
    pidfd::signal(pidfd::open(outside).unwrap().as_fd(), Signal::KILL).unwrap();
    until("it is reaped", || process_state(outside).is_none());
    assert_eq!(terminate_now(&herd, &crowd).outside, []);
    herd.finish();
}

#[test]
fn a_process_that_left_the_herd_and_lost_its_parent_is_named_in_the_receipt_and_reaped() {
    let elsewhere = Elsewhere::new();
    let mut herd = daemon(&[]);
    let (id, first) = spawn_leaver(&herd, "first", &elsewhere);
    let bystander = herd.spawn("bystander", "(sleep 1000 &) ; exec sleep 1000");
    let receipt = terminate_now(&herd, &id);
    let place = format!("/{}", elsewhere.0.file_name().unwrap().to_str().unwrap());
    let outside: Vec<_> =
        receipt.outside.iter().map(|it| (it.pid, it.comm.as_str(), it.place.ends_with(&place))).collect();
    assert_eq!(outside, [(first, "sleep", true)], "{receipt:?}");
    pidfd::signal(pidfd::open(first).unwrap().as_fd(), Signal::KILL).unwrap();
    until("it is reaped", || process_state(first).is_none());
    assert_eq!(
        terminate_now(&herd, &bystander).outside,
        [],
        "an orphan in the herd is ended, and one that has ended is gone"
    );
    // The last receipt has it, too.
    let (_, second) = spawn_leaver(&herd, "second", &elsewhere);
    let shutdown = treeherd(&herd, &["shutdown", "--now"]);
    let said = String::from_utf8(shutdown.stdout).unwrap();
    assert!(said.contains(&format!("outside the herd, not ended: process {second} (sleep) in /")), "{said}");
    herd.reap_daemon();
    assert_eq!(process_state(second), Some('S'), "nobody has ended it");
}

#[test]
fn a_supervisors_own_processes_are_in_no_receipt() {
    let herd = daemon(&["--end-with-supervisor"]);
    let id = herd.spawn("a", "echo up; exec sleep 1000");
    await_line(&herd, &id, "up");
    assert_eq!(terminate_now(&herd, &id).outside, []);
    herd.finish();
}

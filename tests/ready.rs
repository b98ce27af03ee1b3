//! Readiness and heartbeat, on real processes that tell how they are.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use treeherd::kernel::notify::{Inbox, Received};
use treeherd::kernel::socket::claim_state_dir;
use treeherd::model::event::Kind;
use treeherd::model::id::AgentId;
use treeherd::model::ready::Ready;
use treeherd::model::spec::{AgentSpec, RestartPolicy};
use treeherd::model::status::{AgentStatus, Cause, State};

fn notify(spec: &mut AgentSpec) {
    spec.ready = Some(Ready::Notify);
}

fn status(herd: &Own, id: &AgentId) -> AgentStatus {
    herd.agent_status(id).unwrap()
}

/// Sends a message as a program does that knows nothing of treeherd.
fn tell(message: &str) {
    sd_notify::notify(&[sd_notify::NotifyState::Custom(message)]).unwrap();
}

/// Lets an agent live on for a while.
fn live_for(time: Duration) {
    std::thread::park_timeout(time);
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

/// What this binary does when it is started as an agent.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.as_str() {
        "mute" => park(),
        "ready" => {
            tell("READY=1\nSTATUS=serving \u{1b}[31mall");
            park();
        }
        "shout" => tell("READY=1"),
        "extend" => {
            tell("EXTEND_TIMEOUT_USEC=20000000");
            live_for(Duration::from_secs(4));
            tell("READY=1");
            park();
        }
        "stopping" => {
            tell("READY=1\nSTOPPING=1");
            park();
        }
        // Beats for as long as its file is there.
        "beat" => {
            let interval = sd_notify::watchdog_enabled().expect("WATCHDOG_USEC and WATCHDOG_PID are meant for it");
            tell("READY=1");
            while std::path::Path::new(&std::env::var("WHILE").unwrap()).exists() {
                tell("WATCHDOG=1");
                live_for(interval / 4);
            }
            park();
        }
        // Says itself how often it will be heard of, or that it should be taken for dead.
        "period" => {
            tell("WATCHDOG_USEC=500000\nREADY=1");
            park();
        }
        "trigger" => {
            tell("READY=1\nWATCHDOG=trigger");
            park();
        }
        // Asks for more time when it is asked to stop, and needs it.
        "slow" => {
            let asked = std::sync::Arc::default();
            signal_hook::flag::register(signal_hook::consts::SIGTERM, std::sync::Arc::clone(&asked)).unwrap();
            tell("READY=1");
            while !asked.load(std::sync::atomic::Ordering::SeqCst) {
                live_for(Duration::from_millis(10));
            }
            tell("EXTEND_TIMEOUT_USEC=30000000");
            live_for(Duration::from_secs(3));
        }
        "flood" => loop {
            tell("STATUS=I say so much that nobody else is to be heard");
        },
        other => panic!("no role {other}"),
    }
}

#[test]
fn an_agent_is_starting_until_it_says_ready() {
    let herd = herd();
    let mut events = herd.follow();
    let id = herd.role(None, "a", "ready", notify);
    let ready = await_event(&mut events, Kind::Ready, &id);
    assert!(ready.message.starts_with("after ") && ready.message.ends_with(": READY=1"), "{}", ready.message);
    let told = status(&herd, &id);
    assert_eq!((told.state, told.status_text.as_deref()), (State::Running, Some("serving \u{1b}[31mall")));
    let mute = herd.role(None, "b", "mute", notify);
    let told = status(&herd, &mute);
    assert_eq!(told.state, State::Starting);
    assert!(told.waits.unwrap().starts_with("its readiness, "), "and until when");
    herd.finish();
}

#[test]
fn an_agent_that_is_never_ready_has_failed_run_after_run() {
    let herd = herd();
    let id = herd.role(None, "a", "mute", |spec| {
        notify(spec);
        spec.ready_timeout = Some(Duration::from_millis(200));
        spec.restart.policy = RestartPolicy::OnFailure;
        (spec.restart.delay, spec.restart.intensity) = (Duration::ZERO, 1);
    });
    let [told] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
    let exit = told.exit.unwrap();
    assert_eq!((told.state, told.run.0, exit.cause), (State::Failed, 2, Cause::GivenUp));
    assert_eq!(exit.last_cause, Some(Cause::Ready));
    assert!(exit.last_error.unwrap().contains("not ready within 200ms"));
    assert_eq!(herd.ends_of(&id), [Kind::Failed, Kind::Failed]);
    herd.finish();
}

/// Says whether the kernel tells the cgroup of a sender that has been reaped.
fn is_known_after_its_end() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let claim = claim_state_dir(&dir.path().join("state")).unwrap();
    let mut inbox = Inbox::bind(&claim, &claim.path().join("notify")).unwrap();
    let mut shout = Command::new(std::env::current_exe().unwrap());
    shout.args(["--exact", "role"]).env(ROLE, "shout").env("NOTIFY_SOCKET", claim.path().join("notify"));
    assert!(shout.output().unwrap().status.success());
    matches!(inbox.receive().unwrap(), Received::Letter(letter) if letter.sender.cgroup_id().is_some())
}

#[test]
fn what_tells_and_ends_at_once_was_heard() {
    let herd = herd();
    let mut events = herd.follow();
    for name in ["a", "b", "c", "d"] {
        let id = herd.role(None, name, "shout", notify);
        await_event(&mut events, Kind::Ready, &id);
    }
    if !is_known_after_its_end() {
        return skip("this kernel forgets where a process was that has been reaped");
    }
    // The one that tells is a child of the main process, which has reaped it before anybody looks.
    let binary = std::env::current_exe().unwrap();
    let script = format!("{} --exact role --nocapture >&2; exec sleep 1000", binary.display());
    let id = herd.spawn_with("e", None, &script, |spec| {
        notify(spec);
        spec.env.insert(ROLE.to_owned(), "shout".to_owned());
    });
    await_event(&mut events, Kind::Ready, &id);
    herd.finish();
}

/// Starts an agent that is ready and has to beat every second, and does as long as a file is there.
fn beating(herd: &Own) -> (AgentId, PathBuf) {
    let file = herd.dir.path().join("beats");
    std::fs::write(&file, "").unwrap();
    let id = herd.role(None, "a", "beat", |spec| {
        notify(spec);
        spec.watchdog = Some(Duration::from_secs(1));
        spec.env.insert("WHILE".to_owned(), file.to_str().unwrap().to_owned());
    });
    (id, file)
}

#[test]
fn a_missed_heartbeat_is_a_failure_and_the_process_is_aborted() {
    let herd = herd();
    let mut events = herd.follow();
    let (id, file) = beating(&herd);
    await_event(&mut events, Kind::Ready, &id);
    let_pass("2.5");
    assert_eq!(status(&herd, &id).state, State::Running, "it beats");
    std::fs::remove_file(&file).unwrap();
    let failed = await_event(&mut events, Kind::Failed, &id);
    assert_eq!(failed.exit.unwrap().cause, Cause::Watchdog);
    let [told] = herd.wait(&[id]).unwrap().try_into().unwrap();
    assert_eq!(told.exit.unwrap().signal.as_deref(), Some("SIGABRT"));
    herd.finish();
}

#[test]
fn the_heartbeat_of_a_paused_agent_is_not_missed() {
    let herd = herd();
    let mut events = herd.follow();
    let (id, _file) = beating(&herd);
    await_event(&mut events, Kind::Ready, &id);
    herd.pause_agent(&id).unwrap();
    let_pass("2.5");
    herd.resume_agent(&id).unwrap();
    let_pass("1.5");
    let told = status(&herd, &id);
    assert_eq!((told.state, told.run.0), (State::Running, 1));
    assert!(told.paused_ms >= 2000);
    herd.finish();
}

#[test]
fn the_environment_is_what_sd_notify_clients_look_for_and_nobody_else_has_it() {
    let herd = herd();
    let mut events = herd.follow();
    let script = "echo $NOTIFY_SOCKET $WATCHDOG_USEC $WATCHDOG_PID $$ end";
    let watched = herd.spawn_with("a", None, script, |spec| spec.watchdog = Some(Duration::from_secs(20)));
    let told = herd.spawn_with("b", None, script, notify);
    let neither = herd.spawn("c", script);
    await_ends(&mut events, &[watched.clone(), told.clone(), neither.clone()]);
    let said = |id: &AgentId| String::from_utf8(output(&herd, id)).unwrap().trim().to_owned();
    let socket = herd.dir.path().join("state/notify").display().to_string();
    let words: Vec<String> = said(&watched).split(' ').map(str::to_owned).collect();
    assert_eq!((&words[0], words[1].as_str(), &words[2]), (&socket, "20000000", &words[3]));
    assert_eq!(said(&told).split(' ').count(), 3, "no heartbeat: {}", said(&told));
    assert_eq!(said(&neither).split(' ').count(), 2, "nothing: {}", said(&neither));
    herd.finish();
}

#[test]
fn nobody_speaks_for_another() {
    let herd = herd();
    let mut events = herd.follow();
    let parent = herd.role(None, "a", "mute", notify);
    let child = herd.role(Some(&parent), "b", "ready", notify);
    await_event(&mut events, Kind::Ready, &child);
    let outside = UnixDatagram::unbound().unwrap();
    outside.send_to(b"READY=1\nMAINPID=1", herd.dir.path().join("state/notify")).unwrap();
    // Messages are read in order: when this one was heard, the one before was not.
    let last = herd.role(None, "c", "ready", notify);
    await_event(&mut events, Kind::Ready, &last);
    assert_eq!(herd.stats().unwrap().notes_refused, 1);
    assert_eq!(status(&herd, &parent).state, State::Starting);
    herd.finish();
}

#[test]
fn a_flood_of_messages_holds_up_nobody() {
    let herd = herd();
    let mut events = herd.follow();
    let file = herd.dir.path().join("beats");
    std::fs::write(&file, "").unwrap();
    for name in ["f1", "f2"] {
        herd.role(None, name, "flood", notify);
    }
    let beating = herd.role(None, "a", "beat", |spec| {
        notify(spec);
        spec.watchdog = Some(Duration::from_secs(2));
        spec.env.insert("WHILE".to_owned(), file.to_str().unwrap().to_owned());
    });
    await_event(&mut events, Kind::Ready, &beating);
    for number in 0..20 {
        let id = herd.spawn(&format!("x{number}"), "exit 3");
        await_event(&mut events, Kind::Failed, &id);
    }
    let_pass("4");
    assert_eq!(status(&herd, &beating).state, State::Running);
    let status = status(&herd, &name("f1"));
    assert_eq!(status.state, State::Starting);
    assert!(status.status_text.unwrap().starts_with("I say so much"));
    herd.finish();
}

#[test]
fn more_time_to_be_ready_is_given_to_who_asks_for_it() {
    let herd = herd();
    let mut events = herd.follow();
    let id = herd.role(None, "a", "extend", |spec| {
        notify(spec);
        spec.ready_timeout = Some(Duration::from_secs(3));
    });
    await_event(&mut events, Kind::Ready, &id);
    herd.finish();
}

#[test]
fn a_stop_is_put_off_for_who_asks_for_more_time() {
    let herd = herd();
    let mut events = herd.follow();
    let id = herd.role(None, "a", "slow", |spec| {
        notify(spec);
        spec.grace = Duration::from_secs(1);
    });
    await_event(&mut events, Kind::Ready, &id);
    let receipt = herd.terminate_agent(&id, None).unwrap();
    assert!(!receipt.agents[0].signals.contains_key("SIGKILL"), "{receipt:?}");
    let exit = status(&herd, &id).exit.unwrap();
    assert_eq!((exit.cause, exit.status, exit.overdue), (Cause::Terminated, Some(0), false));
    herd.finish();
}

#[test]
fn a_heartbeat_that_the_agent_itself_asks_for_or_gives_up_counts() {
    let herd = herd();
    let mut events = herd.follow();
    for role in ["period", "trigger"] {
        let id = herd.role(None, role, role, notify);
        let failed = await_event(&mut events, Kind::Failed, &id);
        assert_eq!(failed.exit.unwrap().cause, Cause::Watchdog, "{role}");
    }
    herd.finish();
}

#[test]
fn what_says_stopping_and_goes_on_has_failed_after_its_grace() {
    let herd = herd();
    let id = herd.role(None, "a", "stopping", |spec| {
        notify(spec);
        spec.grace = Duration::from_millis(500);
    });
    let [told] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
    let exit = told.exit.unwrap();
    assert_eq!((told.state, exit.cause), (State::Failed, Cause::Timeout));
    assert!(exit.error.unwrap().contains("STOPPING=1"));
    herd.finish();
}

#[test]
fn a_newline_on_a_descriptor_makes_ready_and_less_does_not() {
    let herd = herd();
    let mut events = herd.follow();
    let fd = |spec: &mut AgentSpec| spec.ready = Some(Ready::Fd(7));
    let id = herd.spawn_with("a", None, "printf abc >&7; echo >&7; exec sleep 1000", fd);
    let ready = await_event(&mut events, Kind::Ready, &id);
    assert!(ready.message.contains("a newline"), "{}", ready.message);
    let closed = herd.spawn_with("b", None, "printf abc >&7; exec 7>&-; exec sleep 1000", |spec| {
        fd(spec);
        spec.ready_timeout = Some(Duration::from_millis(500));
    });
    let failed = await_event(&mut events, Kind::Failed, &closed);
    assert_eq!(failed.exit.unwrap().cause, Cause::Ready);
    herd.finish();
}

/// A pipe could be locked by the run (`splice` from a socket that has nothing), and who reads it
/// would wait uninterruptibly.
#[test]
fn the_descriptor_of_a_newline_is_nothing_that_the_run_can_lock() {
    let herd = herd();
    let mut events = herd.follow();
    let script = "[ -S /proc/self/fd/7 ] || exit 9; echo >&7; exec sleep 1000";
    let id = herd.spawn_with("a", None, script, |spec| spec.ready = Some(Ready::Fd(7)));
    await_event(&mut events, Kind::Ready, &id);
    herd.finish();
}

#[test]
fn a_line_that_matches_makes_ready_once_a_run() {
    let herd = herd();
    let mut events = herd.follow();
    let flag = herd.dir.path().join("flag").display().to_string();
    // Its second run says it on the wrong stream, and in a line that is not complete.
    let script = format!(
        "if [ -e {flag} ]; then echo listening on 80; printf 'listening on 80' >&2; exec sleep 1000; fi; touch {flag}; \
         echo starting >&2; echo listening on 80 >&2; sleep 1000"
    );
    let id = herd.spawn_with("a", None, &script, |spec| {
        spec.ready = Some("stderr:^listening on \\d+$".parse().unwrap());
        spec.ready_timeout = Some(Duration::from_secs(20));
    });
    let ready = await_event(&mut events, Kind::Ready, &id);
    assert!(ready.message.contains("a line"), "{}", ready.message);
    herd.restart_agent(&id).unwrap();
    let_pass("0.5");
    let told = status(&herd, &id);
    assert_eq!((told.run.0, told.state), (2, State::Starting), "what the first run said is no news of the second");
    herd.finish();
}

#[test]
fn a_line_is_found_in_a_flood_of_others() {
    let herd = herd();
    let mut events = herd.follow();
    let script = "seq 1 400000; printf '%0100000d ready\\n' 0; seq 1 400000; exec sleep 1000";
    let id = herd.spawn_with("a", None, script, |spec| spec.ready = Some("stdout:0 ready$".parse().unwrap()));
    await_event(&mut events, Kind::Ready, &id);
    herd.finish();
}

#[test]
fn what_can_never_be_told_is_refused() {
    let herd = herd();
    let group = AgentSpec { ready: Some(Ready::Notify), ..AgentSpec::group(name("g")) };
    assert!(herd.register_agent(group).unwrap_err().message.contains("ready: a group"));
    let hasty = herd.refused_with("h", |spec| spec.watchdog = Some(Duration::from_millis(1)));
    assert!(hasty.message.contains("watchdog"), "{hasty}");
    herd.finish();
}

#[test]
fn systemd_notify_tells_that_it_is_ready_and_ends_well() {
    if Command::new("systemd-notify").arg("--version").output().is_err() {
        return skip("no systemd-notify here");
    }
    let herd = herd();
    let id = herd.spawn_with("script", None, "systemd-notify --ready; echo status $?; exec sleep 1000", notify);
    await_line(&herd, &id, "status 0");
    assert_eq!(status(&herd, &id).state, State::Running);
    herd.finish();
}

//! States do not flatter: what `ps`, `wait` and `explain` say of an agent that was given up, is paused, or lost a process.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use treeherd::kernel::host::{Host, KernelVersion};
use treeherd::model::event::Kind;
use treeherd::model::ready::Ready;
use treeherd::model::spec::{AgentSpec, OnMainExit, OnOom, RestartPolicy};
use treeherd::model::status::{Cause, State};

/// What this binary does when it is started as an agent.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let tell = |message: String| sd_notify::notify(&[sd_notify::NotifyState::Custom(&message)]).unwrap();
    match role.as_str() {
        // A server that forks, names the one that stays, and ends.
        "forks-and-names" => {
            // It is the supervisor's to reap: whoever started it ends first.
            #[allow(clippy::zombie_processes)]
            let server = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            tell(format!("MAINPID={}\nREADY=1", server.id()));
        }
        "names-another" => {
            tell(format!("MAINPID={}", std::env::var("OTHER").unwrap()));
            tell("READY=1".to_owned());
            loop {
                std::thread::park();
            }
        }
        // One after the other is named as the main process.
        "names-many" => {
            #[allow(clippy::zombie_processes)]
            let start = || std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            (0..200).for_each(|_| tell(format!("MAINPID={}", start().id())));
            tell("READY=1".to_owned());
            loop {
                std::thread::park();
            }
        }
        role => panic!("{role}"),
    }
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_agent_that_is_given_up_has_failed_however_well_its_last_run_ended() {
    let herd = herd();
    for (id, script, last) in [("well", "exit 0", Cause::Exit), ("badly", "kill -SEGV $$", Cause::Signal)] {
        let id = herd.spawn_with(id, None, script, |spec| {
            (spec.restart.policy, spec.restart.delay, spec.restart.intensity) =
                (RestartPolicy::Always, Duration::ZERO, 3);
        });
        let waited = treeherd(&herd, &["wait", id.as_str()]);
        assert_eq!(waited.status.code(), Some(1), "{}", text(&waited));
        assert!(text(&waited).contains("given up"), "{}", text(&waited));
        let status = herd.agent_status(&id).unwrap();
        let exit = status.exit.unwrap();
        assert_eq!((status.state, status.run.0), (State::Failed, 4));
        assert_eq!((exit.cause, exit.last_cause), (Cause::GivenUp, Some(last)));
        assert!(text(&treeherd(&herd, &["explain", id.as_str()])).contains("more than 3 restarts"));
        let ends = herd.ends_of(&id);
        let wanted = if last == Cause::Exit { Kind::Completed } else { Kind::Failed };
        assert_eq!(ends, [wanted; 4], "each run is told as it ended");
    }
    herd.finish();
}

#[test]
fn a_paused_agent_and_all_below_it_are_shown_as_paused_first() {
    let herd = herd();
    let boss = herd.group(None, "boss");
    let worker = herd.sleeper(Some(&boss), "worker");
    herd.pause_agent(&boss).unwrap();
    for id in [&boss, &worker] {
        assert_eq!(herd.agent_status(id).unwrap().state, State::Paused);
        let explained = text(&treeherd(&herd, &["explain", id.as_str()]));
        let mut lines = explained.lines();
        assert_eq!(lines.next(), Some(format!("{id} is paused").as_str()));
        assert!(lines.next().unwrap().contains("was paused by"), "{explained}");
        assert!(explained.contains("a resume of boss"), "{explained}");
    }
    let listed = text(&treeherd(&herd, &["ps"]));
    assert_eq!(listed.matches(" paused ").count(), 2, "{listed}");
    assert_eq!(text(&treeherd(&herd, &["tree"])).matches(" paused ").count(), 2);
    let counted = herd.stats().unwrap().states;
    assert_eq!((counted.get(&State::Paused), counted.get(&State::Running)), (Some(&2), None), "{counted:?}");
    // What ends is shown to end, paused or not; what waits for room waits for that.
    herd.resume_agent(&boss).unwrap();
    assert_eq!(herd.agent_status(&worker).unwrap().state, State::Running);
    assert_eq!(herd.agent_status(&boss).unwrap().state, State::Group);
    herd.finish();
}

#[test]
fn a_program_that_puts_itself_into_the_background_and_crashes_has_failed_and_comes_back() {
    // Before Linux 6.15 the exit of an orphan is known to whom it was given: a daemon of its own.
    let herd = daemon(&[]);
    let mut events = herd.follow();
    // The one that lives on is forked by one that is forked, as daemon(3) does it.
    let script = "setsid sh -c 'sleep 1000 & exit 0' & exit 0";
    let id = herd.spawn_with("forks", None, script, |spec| {
        (spec.on_main_exit, spec.restart.policy) = (OnMainExit::Wait, RestartPolicy::OnFailure);
        spec.restart.delay = Duration::ZERO;
    });
    let sleeper = |old: Option<i32>| {
        let mut found = None;
        until("the program is in the background", || {
            let alone: Vec<i32> = herd.processes();
            let is_it = |pid: &i32| comm(*pid) == "sleep" && Some(*pid) != old;
            found = alone.iter().copied().find(is_it).filter(|_| alone.len() == 1);
            found.is_some()
        });
        found.unwrap()
    };
    let first = sleeper(None);
    // How it ends is known only once the supervisor has found it, after the end of what started it.
    let_pass("0.5");
    let kill = |pid: i32, signal: &str| {
        assert!(std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    };
    kill(first, "-SEGV");
    let failed = await_event(&mut events, Kind::Failed, &id);
    let exit = failed.exit.unwrap();
    assert_eq!((exit.cause, exit.signal.as_deref()), (Cause::Signal, Some("SIGSEGV")));
    let second = sleeper(Some(first));
    assert_eq!(herd.agent_status(&id).unwrap().run.0, 2);
    // One that is asked to end is no crash, whatever it dies of.
    herd.terminate(ids(&[&id]), Some(Duration::ZERO)).unwrap();
    assert_eq!(herd.agent_status(&id).unwrap().state, State::Terminated);
    assert_ne!(first, second);
    herd.finish();
}

#[test]
fn an_oom_kill_of_a_worker_stays_visible_and_its_policy_decides() {
    let herd = herd();
    // A worker that takes all there is, below a main process that takes nothing.
    let script = "sh -c 'exec tail /dev/zero' ; echo worker-gone; exec sleep 1000";
    let spawn = |id: &str, on_oom| {
        herd.spawn_with(id, None, script, |spec| {
            (spec.on_oom, spec.limits) = (on_oom, limits(&["memory_max=20MiB"]));
        })
    };
    let on = spawn("on", OnOom::Continue);
    await_line(&herd, &on, "worker-gone");
    until("the kill is told", || herd.agent_status(&on).unwrap().oom_kills == 1);
    assert_eq!(herd.agent_status(&on).unwrap().state, State::Running);
    for words in [&["ps"][..], &["show", "on"], &["explain", "on"]] {
        assert!(text(&treeherd(&herd, words)).contains("OOM"), "{words:?}");
    }
    herd.terminate(ids(&[&on]), None).unwrap();
    assert_eq!(herd.agent_status(&on).unwrap().exit.unwrap().oom_kills, 1, "it is in the record");
    for (id, on_oom) in [("kill", OnOom::Kill), ("fail", OnOom::Fail)] {
        let id = spawn(id, on_oom);
        let [status] = herd.wait(std::slice::from_ref(&id)).unwrap().try_into().unwrap();
        let exit = status.exit.unwrap();
        assert_eq!((status.state, exit.cause), (State::Failed, Cause::Oom), "{exit}");
    }
    herd.finish();
}

#[test]
fn a_run_goes_on_in_the_main_process_that_it_names_and_ends_as_that_one_does() {
    // Before Linux 6.15 the exit of an orphan is known to whom it was given: a daemon of its own.
    let herd = daemon(&[]);
    let mut events = herd.follow();
    let id = herd.role(None, "forks", "forks-and-names", |spec| {
        (spec.ready, spec.on_main_exit) = (Some(Ready::Notify), OnMainExit::Wait);
    });
    await_event(&mut events, Kind::Ready, &id);
    let pid = sleeper_of(&herd);
    assert_eq!(herd.agent_status(&id).unwrap().pid, Some(pid));
    assert!(std::process::Command::new("kill").args(["-SEGV", &pid.to_string()]).status().unwrap().success());
    let exit = await_event(&mut events, Kind::Failed, &id).exit.unwrap();
    assert_eq!((exit.cause, exit.signal.as_deref()), (Cause::Signal, Some("SIGSEGV")));
    herd.finish();
}

#[test]
fn an_agent_that_names_one_main_process_after_the_other_takes_few_descriptors_and_is_ended() {
    let herd = daemon(&[]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", herd.daemon_pid())).unwrap().count();
    let before = descriptors();
    let mut events = herd.follow();
    let id = herd.role(None, "many", "names-many", |spec| spec.ready = Some(Ready::Notify));
    await_event(&mut events, Kind::Ready, &id);
    // Those that are watched are 64 at most; the rest are the agent's own, its output's and those of helpers.
    assert!(descriptors() < before + 120, "{before}, then {}", descriptors());
    let receipt = herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap();
    assert_eq!((receipt.processes, herd.processes()), (201, Vec::new()));
    herd.finish();
}

#[test]
fn a_process_of_another_run_is_nobodys_main_process() {
    let herd = herd();
    let mut events = herd.follow();
    let victim = herd.sleeper(None, "victim");
    let pid = herd.agent_status(&victim).unwrap().pid.unwrap();
    let liar = herd.role(None, "liar", "names-another", |spec| {
        spec.ready = Some(Ready::Notify);
        spec.env.insert("OTHER".to_owned(), pid.to_string());
    });
    await_event(&mut events, Kind::Ready, &liar);
    let own = herd.agent_status(&liar).unwrap().pid.unwrap();
    assert_ne!(own, pid, "it is not taken");
    herd.terminate(ids(&[&liar]), None).unwrap();
    assert_eq!(herd.agent_status(&victim).unwrap().state, State::Running);
    herd.finish();
}

#[test]
fn oom_kills_in_a_loop_are_counted_and_reported_in_ever_longer_intervals() {
    let herd = herd();
    let script = "while :; do sh -c 'exec tail /dev/zero' 2>/dev/null; done";
    let id = herd.spawn_with("loop", None, script, |spec| spec.limits = limits(&["memory_max=20MiB"]));
    until("it has lost a dozen", || herd.agent_status(&id).unwrap().oom_kills >= 12);
    herd.terminate(ids(&[&id]), Some(Duration::ZERO)).unwrap();
    let events = herd.events_of(&id);
    let began = events.iter().find(|event| event.kind == Kind::Started).unwrap().time;
    let told: Vec<_> = events.iter().filter(|event| event.kind == Kind::Oom).collect();
    // At once, after 1 s, after 2 s more, and so on.
    let seconds = (events.last().unwrap().time.0 - began.0) / 1_000_000_000;
    let most = (1..).find(|n| (1_u64 << n) > seconds + 1).unwrap() + 1;
    assert!(!told.is_empty() && told.len() <= most, "{} in {seconds} s", told.len());
    herd.finish();
}

/// A program that goes into the background as daemons do: the one that stays is forked by one that is forked, and named by a file.
fn goes_into_the_background(file: &Path, then: &str) -> String {
    let file = file.display();
    format!("setsid sh -c '{then} & echo $! > {file}.new; mv {file}.new {file}' & wait; exit 0")
}

fn named_by(file: &Path) -> impl Fn(&mut AgentSpec) {
    move |spec: &mut AgentSpec| spec.pid_file = Some(file.to_owned())
}

/// Waits until only a `sleep` is left of what was started, and returns it.
fn sleeper_of(own: &Own) -> i32 {
    until("its first process has ended", || matches!(own.processes()[..], [pid] if comm(pid) == "sleep"));
    own.processes()[0]
}

#[test]
fn a_program_in_the_background_is_known_by_its_pid_file_and_its_crash_is_a_failure() {
    let mut own = daemon(&[]);
    let mut events = own.follow();
    let file = own.dir.path().join("server.pid");
    let id = own.spawn_with("server", None, &goes_into_the_background(&file, "exec sleep 1000"), |spec| {
        named_by(&file)(spec);
        (spec.restart.policy, spec.restart.delay) = (RestartPolicy::OnFailure, Duration::ZERO);
    });
    await_event(&mut events, Kind::Ready, &id);
    let status = own.agent_status(&id).unwrap();
    let pid = status.pid.unwrap();
    assert_eq!(status.state, State::Running);
    until("it is the only one", || own.processes() == [pid] && comm(pid) == "sleep");
    // Also in the eyes of a next daemon.
    own.crash();
    own.restart();
    let mut events = own.follow();
    assert_eq!(own.agent_status(&id).unwrap().pid, Some(pid));
    assert!(std::process::Command::new("kill").args(["-SEGV", &pid.to_string()]).status().unwrap().success());
    let exit = await_event(&mut events, Kind::Failed, &id).exit.unwrap();
    // Before Linux 6.15 nobody can say how it ended but PID 1, to whom the crash has given it.
    if exit.cause != Cause::Lost
        || Host::discover().unwrap().kernel >= (KernelVersion { major: 6, minor: 15, patch: 0 })
    {
        assert_eq!((exit.cause, exit.signal.as_deref()), (Cause::Signal, Some("SIGSEGV")));
    }
    // The file still has the old number; the next run writes its own.
    await_event(&mut events, Kind::Ready, &id);
    let status = own.agent_status(&id).unwrap();
    assert_eq!((status.run.0, status.state), (2, State::Running));
    assert_ne!(status.pid, Some(pid));
    own.finish();
}

#[test]
fn a_pid_file_that_comes_later_is_waited_for_also_by_a_next_daemon_and_one_that_never_comes_is_a_failure() {
    let mut own = daemon(&[]);
    let dir = own.dir.path().join("later");
    let file = dir.join("server.pid");
    let later = own.spawn_with("later", None, "setsid sleep 1000 & exit 0", named_by(&file));
    let pid = sleeper_of(&own);
    assert_eq!(own.agent_status(&later).unwrap().state, State::Starting);
    assert!(text(&treeherd(&own, &["explain", "later"])).contains("pid_file names its main process"));
    own.crash();
    own.restart();
    let mut events = own.follow();
    std::fs::create_dir(&dir).unwrap();
    // Of another agent, of nobody, no number; then its own.
    let victim = own.sleeper(None, "victim");
    let other = own.agent_status(&victim).unwrap().pid.unwrap();
    for text in [other.to_string(), "1".to_owned(), "no number".to_owned(), String::new()] {
        std::fs::write(&file, text).unwrap();
    }
    assert_eq!(own.agent_status(&later).unwrap().state, State::Starting);
    std::fs::write(&file, pid.to_string()).unwrap();
    await_event(&mut events, Kind::Ready, &later);
    assert_eq!(own.agent_status(&later).unwrap().pid, Some(pid));
    let never = own.spawn_with("never", None, "setsid sleep 1000 & exit 0", |spec| {
        named_by(&own.dir.path().join("never.pid"))(spec);
        spec.ready_timeout = Some(Duration::from_millis(300));
    });
    let exit = await_event(&mut events, Kind::Failed, &never).exit.unwrap();
    assert_eq!(exit.cause, Cause::Ready, "{exit}");
    let nobody = own.spawn_with("nobody", None, "exit 0", named_by(&file));
    let exit = await_event(&mut events, Kind::Failed, &nobody).exit.unwrap();
    assert_eq!(exit.cause, Cause::Ready, "{exit}");
    assert!(exit.to_string().contains("left no process"), "{exit}");
    assert_eq!(own.agent_status(&victim).unwrap().state, State::Running);
    own.finish();
}

#[test]
fn a_pid_file_is_read_with_the_agents_rights() {
    let own = daemon(&[]);
    let mut events = own.follow();
    let secret = own.dir.path().join("secret.pid");
    std::fs::write(&secret, "").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    let link = std::env::temp_dir().join(unique("link"));
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    for (user, is_read) in [(None, true), (Some("65534".to_owned()), false)] {
        let id = own.spawn_with(if is_read { "root" } else { "user" }, None, "setsid sleep 1000 & exit 0", |spec| {
            named_by(&link)(spec);
            (spec.user, spec.group) = (user.clone(), user.clone());
            spec.ready_timeout = Some(Duration::from_secs(if is_read { 60 } else { 1 }));
        });
        std::fs::write(&secret, sleeper_of(&own).to_string()).unwrap();
        // The link's directory is the one that is watched.
        std::fs::write(link.with_extension("news"), "").unwrap();
        let kind = if is_read { Kind::Ready } else { Kind::Failed };
        await_event(&mut events, kind, &id);
        own.terminate(ids(&[&id]), Some(Duration::ZERO)).unwrap();
    }
    std::fs::remove_file(&link).unwrap();
    std::fs::remove_file(link.with_extension("news")).unwrap();
    own.finish();
}

#[test]
fn others_who_write_in_the_directory_of_pid_files_delay_no_answer_and_no_end() {
    let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = 1000);
    let dir = tempfile::tempdir().unwrap();
    for number in 0..200 {
        herd.spawn_with(&format!("late-{number}"), None, "sleep 1000 & exit 0", |spec| {
            spec.pid_file = Some(dir.path().join(format!("{number}.pid")));
            spec.ready_timeout = Some(Duration::from_secs(600));
        });
    }
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for flood in 0..2 {
            let (dir, is_over) = (dir.path(), &is_over);
            scope.spawn(move || {
                // Equal neighbours would be one report.
                for file in ["a", "b"].iter().cycle() {
                    drop(std::fs::File::create(dir.join(format!("{file}{flood}"))).unwrap());
                    if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut events = herd.follow();
            for number in 0..5 {
                let id = herd.spawn(&format!("short-{number}"), "exit 3");
                await_event(&mut events, Kind::Failed, &id);
            }
        }));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        ended.unwrap();
    });
    herd.finish();
}

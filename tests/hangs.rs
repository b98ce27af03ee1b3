//! Spawns that hang: on a file system that does not answer, or stopped by a stranger who has the same user.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::fuse::{Fuse, Silence, unshare_mounts};
use common::*;
use treeherd::model::event::Kind;
use treeherd::model::spec::AgentSpec;
use treeherd::model::stage::Stage;
use treeherd::model::status::{AgentStatus, Cause, State};

/// A user that nobody else on the host is.
const STRANGER: u32 = 3_999_999_007;

/// A spawn that is asked for by a client of its own: it may take for ever.
fn ask(herd: &Own, words: &[&str]) -> Child {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("treeherd"));
    command.arg("--socket").arg(herd.socket()).arg("spawn").args(words).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn is_starting(herd: &Own, id: &str) -> bool {
    herd.agents().unwrap().iter().any(|agent| agent.id == name(id) && agent.state == State::Starting)
}

fn status(herd: &Own, id: &str) -> AgentStatus {
    herd.agents().unwrap().into_iter().find(|agent| agent.id == name(id)).unwrap()
}

/// Has six agents hang on their way to `exec` below one root agent, and checks that others do not wait for them.
fn assert_nobody_waits(herd: &Own, words: &[&str]) {
    let mut asked = Vec::new();
    herd.group(None, "hostile");
    for number in 1..=6 {
        let id = format!("hangs{number}");
        asked.push(ask(herd, &[&[&id, "--parent", "hostile"], words, &["--", "sleep", "1000"]].concat()));
        until("it is being started", || is_starting(herd, &id));
    }
    for number in 1..=6 {
        herd.sleeper(None, &format!("other{number}"));
    }
    herd.restart_agent(&name("other1")).unwrap();
    let hanging = (1..=6).filter(|number| is_starting(herd, &format!("hangs{number}"))).count();
    assert_eq!(hanging, 6, "the others have started before any of these came to an end");
    herd.terminate(ids(&[&name("hostile")]), Some(Duration::ZERO)).unwrap();
    for mut child in asked {
        assert!(!child.wait().unwrap().success());
    }
    assert_eq!(status(herd, "other2").state, State::Running);
}

fn with_fuse(test: &str, silence: Silence, check: impl FnOnce(&Path, Fuse)) {
    if !alone(test) {
        return;
    }
    unshare_mounts();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("dead");
    match Fuse::mount(&at, silence) {
        Some(fuse) => check(&at, fuse),
        None => skip("this host has no FUSE"),
    }
}

#[test]
fn six_working_directories_that_do_not_answer_hold_nobody_else_up() {
    with_fuse("six_working_directories_that_do_not_answer_hold_nobody_else_up", Silence::Unread, |dead, fuse| {
        let herd = daemon(&[]);
        assert_nobody_waits(&herd, &["--cwd", dead.to_str().unwrap()]);
        drop(fuse);
        herd.finish();
    });
}

#[test]
fn six_stdin_files_that_do_not_answer_hold_nobody_else_up() {
    with_fuse("six_stdin_files_that_do_not_answer_hold_nobody_else_up", Silence::Unread, |dead, fuse| {
        let herd = daemon(&[]);
        assert_nobody_waits(&herd, &["--stdin", dead.join("file").to_str().unwrap(), "--user", "nobody"]);
        drop(fuse);
        herd.finish();
    });
}

#[test]
fn a_spawn_that_even_sigkill_does_not_end_is_answered_and_holds_nobody_up() {
    let test = "a_spawn_that_even_sigkill_does_not_end_is_answered_and_holds_nobody_up";
    with_fuse(test, Silence::Read, |dead, fuse| {
        let herd = herd_with(|settings| settings.herd.spawn_timeout = Duration::from_millis(200));
        let mut spec = AgentSpec::new(name("jammed"), ["sleep", "1000"]);
        spec.cwd = Some(dead.to_owned());
        let error = herd.refused(None, spec);
        fuse.await_request();
        assert!(error.message.contains("its program did not start within 200ms"), "{error}");
        let jammed = status(&herd, "jammed");
        assert_eq!(process_state(jammed.pid.unwrap()), Some('D'), "no kill ends it, and it is not hidden");
        herd.sleeper(None, "other");
        drop(fuse);
        until("it ends when the file system does", || herd.ends_of(&name("jammed")) == [Kind::Failed]);
        let exit = herd.events_of(&name("jammed")).into_iter().find_map(|event| event.exit).unwrap();
        assert_eq!((exit.cause, exit.stage), (Cause::Exec, Some(Stage::Killed)), "{exit}");
        herd.finish();
    });
}

#[test]
fn of_one_root_agents_subtree_a_few_spawns_hang_and_the_next_is_refused_by_name() {
    let test = "of_one_root_agents_subtree_a_few_spawns_hang_and_the_next_is_refused_by_name";
    with_fuse(test, Silence::Read, |dead, fuse| {
        // Longer than a busy machine takes to start what does not hang.
        let herd = herd_with(|settings| settings.herd.spawn_timeout = Duration::from_secs(2));
        let hostile = herd.group(None, "hostile");
        let spawn = |id: &str, cwd: &Path| {
            let mut spec = AgentSpec::new(name(id), ["sleep", "1000"]);
            (spec.parent, spec.cwd) = (Some(hostile.clone()), Some(cwd.to_owned()));
            herd.spawn_child_agent(Some(&hostile), spec)
        };
        for number in 1..=4 {
            spawn(&format!("jammed{number}"), dead).unwrap_err();
        }
        let refused = spawn("sound", Path::new("/")).unwrap_err();
        assert!(refused.message.contains("4 of one root agent's"), "{refused}");
        herd.sleeper(None, "other");
        drop(fuse);
        until("those are gone", || herd.ends_of(&name("jammed4")) == [Kind::Failed]);
        spawn("sound", Path::new("/")).unwrap();
        herd.finish();
    });
}

#[test]
fn a_herd_ends_in_time_while_the_thread_that_turned_its_loop_hangs_in_a_spawn() {
    let test = "a_herd_ends_in_time_while_the_thread_that_turned_its_loop_hangs_in_a_spawn";
    with_fuse(test, Silence::Unread, |dead, _fuse| {
        let mut herd = daemon(&[]);
        // Asked for alone: the loop's own thread carries it out.
        let mut first = ask(&herd, &["first", "--cwd", dead.to_str().unwrap(), "--", "sleep", "1000"]);
        until("it is being started", || is_starting(&herd, "first"));
        herd.sleeper(None, "other");
        // It comes long before the spawn's own deadline of 5 s: the kill of a stop does not wait for that.
        let asked = std::time::Instant::now();
        herd.end();
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        assert!(!first.wait().unwrap().success());
    });
}

#[test]
fn a_stranger_who_stops_all_processes_of_a_user_holds_up_nobody_else() {
    let herd = daemon(&[]);
    let stranger = "while :; do kill -s STOP -- -1 2>/dev/null; done";
    let mut stranger = Command::new("sh").args(["-c", stranger]).uid(STRANGER).gid(STRANGER).spawn().unwrap();
    let user = STRANGER.to_string();
    let victims: Vec<_> = (1..=8)
        .map(|number| {
            let id = format!("victim{number}");
            ask(&herd, &[&id, "--user", &user, "--group", &user, "--cwd", "/", "--", "sleep", "1000"])
        })
        .collect();
    for number in 1..=8 {
        until("it is asked for", || herd.agents().unwrap().iter().any(|it| it.id == name(&format!("victim{number}"))));
    }
    for number in 1..=6 {
        herd.sleeper(None, &format!("other{number}"));
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    for mut victim in victims {
        victim.wait().unwrap();
    }
    herd.finish();
}

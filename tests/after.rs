//! Who starts after whom (`after`), on real processes and by the command line.
#![allow(clippy::unwrap_used)]

mod common;

use assert_cmd::cargo::cargo_bin;
use common::*;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use treeherd::model::error::Code;
use treeherd::model::event::Kind;
use treeherd::model::id::AgentId;
use treeherd::model::request::Target;
use treeherd::model::spec::{Admission, AgentSpec, RestartPolicy};
use treeherd::model::status::{AgentStatus, Cause, State};

fn status(herd: &Own, id: &AgentId) -> AgentStatus {
    herd.agent_status(id).unwrap()
}

fn after(ids: &[&AgentId]) -> impl FnOnce(&mut AgentSpec) {
    let ids = ids.iter().map(|id| (*id).clone()).collect();
    move |spec| spec.after = ids
}

/// Makes a shell wait until somebody makes a file.
fn once(file: &Path) -> String {
    format!("until [ -e {} ]; do sleep 0.02; done", file.display())
}

/// Starts an agent that is ready once its file is there.
fn slow(herd: &Own, id: &str, change: impl FnOnce(&mut AgentSpec)) -> (AgentId, std::path::PathBuf) {
    let file = herd.dir.path().join(format!("{id}-is-up"));
    let script = format!("{}; echo up; exec sleep 1000", once(&file));
    let id = herd.spawn_with(id, None, &script, |spec| {
        spec.ready = Some("stdout:^up".parse().unwrap());
        change(spec);
    });
    (id, file)
}

fn touch(file: &Path) {
    std::fs::write(file, "").unwrap();
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn an_agent_starts_when_what_it_comes_after_is_ready_and_says_so_until_then() {
    let herd = herd();
    let mut events = herd.follow();
    let (db, file) = slow(&herd, "db", |_| {});
    let out = treeherd(&herd, &["spawn", "web", "--after", "db", "--", "sleep", "1000"]);
    assert!(out.status.success(), "it is answered while it waits: {}", said(&out));
    let web = name("web");
    let told = status(&herd, &web);
    assert_eq!((told.state, told.pid), (State::Starting, None));
    assert!(told.waits.unwrap().starts_with("db to be ready, which is starting since "));
    let explained = said(&treeherd(&herd, &["explain", "web"]));
    assert!(explained.contains("db to be ready, which is starting since "), "{explained}");
    assert!(explained.contains("its readiness"), "and what that one waits for: {explained}");
    let shown = said(&treeherd(&herd, &["show", "web"]));
    assert!(shown.lines().any(|line| line.starts_with("after") && line.ends_with(" db")), "{shown}");
    touch(&file);
    await_event(&mut events, Kind::Ready, &db);
    await_event(&mut events, Kind::Started, &web);
    assert_eq!(status(&herd, &web).state, State::Running);
    herd.finish();
}

#[test]
fn a_step_that_completes_and_a_group_that_is_made_are_enough() {
    let herd = herd();
    let file = herd.dir.path().join("migrated");
    let step = herd.spawn("migrate", &once(&file));
    let step = herd.spawn_with("seed", None, "exit 0", after(&[&step]));
    let group = AgentSpec { after: [step.clone()].into(), ..AgentSpec::group(name("fleet")) };
    let group = herd.register_agent(group).unwrap().id;
    let below = herd.spawn_with("worker", Some(&group), "exec sleep 1000", |_| {});
    let last = herd.spawn_with("last", None, "exec sleep 1000", after(&[&group]));
    // `migrate` executes, and has no `ready`: `seed` has started, and all after it follow, in an order of their own.
    for (kind, id) in [(Kind::Completed, &step), (Kind::Started, &below), (Kind::Started, &last)] {
        until(&format!("{kind} of {id}"), || herd.events_of(id).iter().any(|event| event.kind == kind));
    }
    touch(&file);
    herd.finish();
}

#[test]
fn what_can_never_start_has_failed_once_and_its_policy_is_not_asked() {
    let herd = herd();
    let mut events = herd.follow();
    let file = herd.dir.path().join("die");
    let db = herd.spawn_with("db", None, &format!("{}; exit 3", once(&file)), |spec| {
        spec.ready = Some("stdout:^never".parse().unwrap());
    });
    let always = |spec: &mut AgentSpec| {
        spec.restart.policy = RestartPolicy::Always;
        spec.restart.delay = Duration::ZERO;
    };
    let web = herd.spawn_with("web", None, "exec sleep 1000", |spec| {
        always(spec);
        spec.after = [db.clone()].into();
    });
    let probe = herd.spawn_with("probe", None, "exec sleep 1000", after(&[&web]));
    touch(&file);
    let failed = await_event(&mut events, Kind::Failed, &web);
    assert_eq!(failed.exit.unwrap().cause, Cause::Dependency);
    assert_eq!(failed.message, "not started: it starts after db, which has failed: exit status 3");
    await_event(&mut events, Kind::Failed, &probe);
    let [web_now, probe_now] = herd.wait(&[web.clone(), probe.clone()]).unwrap().try_into().unwrap();
    assert_eq!((web_now.state, web_now.run.0, probe_now.state), (State::Failed, 0, State::Failed));
    assert_eq!((herd.ends_of(&web).len(), herd.ends_of(&probe).len()), (1, 1));
    // Neither a spawn nor a restart is begun that could not start.
    let error = herd.refused_with("other", after(&[&db]));
    assert_eq!(error.code, Code::WrongState);
    assert!(error.message.contains("db, which has failed: exit status 3"), "{error}");
    assert_code(herd.restart_agent(&web), Code::WrongState);
    herd.finish();
}

#[test]
fn a_terminated_dependency_fails_who_waits_and_touches_nobody_who_runs() {
    let herd = herd();
    let mut events = herd.follow();
    let (db, file) = slow(&herd, "db", |_| {});
    touch(&file);
    await_event(&mut events, Kind::Ready, &db);
    let web = herd.spawn_with("web", None, "exec sleep 1000", |spec| {
        spec.after = [db.clone()].into();
        spec.restart.policy = RestartPolicy::Always;
        spec.restart.delay = Duration::ZERO;
    });
    herd.restart_agent(&db).unwrap();
    let before = status(&herd, &web);
    assert_eq!((before.state, before.run.0), (State::Running, 1), "what runs is not touched by a restart");
    herd.terminate(Target::Ids(vec![db.clone()]), None).unwrap();
    assert_eq!(status(&herd, &web).pid, before.pid, "nor by the end");
    assert_code(herd.restart_agent(&web), Code::WrongState);
    // Its next start finds that db is gone.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before.pid.unwrap()), nix::sys::signal::Signal::SIGKILL).unwrap();
    let given_up = await_event(&mut events, Kind::GaveUp, &web);
    assert!(given_up.message.starts_with("not started: it starts after db, which was terminated by "), "{given_up:?}");
    let now = status(&herd, &web);
    assert_eq!((now.state, now.run.0, now.exit.unwrap().cause), (State::Failed, 1, Cause::Dependency));
    herd.finish();
}

#[test]
fn a_restart_waits_for_what_is_between_two_runs() {
    let herd = herd();
    let mut events = herd.follow();
    let file = herd.dir.path().join("again");
    let script = format!("[ -e {0} ] || exit 1; echo up; exec sleep 1000", file.display());
    let db = herd.spawn_with("db", None, &script, |spec| {
        spec.ready = Some("stdout:^up".parse().unwrap());
        spec.restart.policy = RestartPolicy::OnFailure;
        (spec.restart.delay, spec.restart.max_delay) = (Duration::from_millis(20), Duration::from_millis(20));
        spec.restart.intensity = 10_000;
    });
    let web = herd.spawn_with("web", None, "exec sleep 1000", after(&[&db]));
    for _ in 0..3 {
        await_event(&mut events, Kind::Restarting, &db);
    }
    assert_eq!((status(&herd, &web).state, status(&herd, &web).run.0), (State::Starting, 0));
    touch(&file);
    await_event(&mut events, Kind::Ready, &db);
    await_event(&mut events, Kind::Started, &web);
    herd.finish();
}

#[test]
fn who_waits_is_paused_resumed_and_terminated_at_once() {
    let herd = herd();
    let mut events = herd.follow();
    let (db, file) = slow(&herd, "db", |_| {});
    let web = herd.spawn_with("web", None, "exec sleep 1000", after(&[&db]));
    let other = herd.spawn_with("other", None, "exec sleep 1000", after(&[&db]));
    let child = herd.spawn_with("child", Some(&other), "exec sleep 1000", |_| {});
    herd.pause_agent(&web).unwrap();
    let receipt = herd.terminate(Target::Ids(vec![other.clone()]), None).unwrap();
    assert_eq!((receipt.processes, receipt.agents.len()), (0, 2));
    assert_eq!(status(&herd, &child).state, State::Terminated);
    touch(&file);
    await_event(&mut events, Kind::Ready, &db);
    assert_eq!(status(&herd, &web).pid, None, "it is paused");
    herd.resume_agent(&web).unwrap();
    await_event(&mut events, Kind::Started, &web);
    herd.finish();
}

#[test]
fn names_that_cannot_be_waited_for_are_refused_whole() {
    let herd = herd();
    let a = herd.sleeper(None, "a");
    let error = herd.refused_with("b", after(&[&name("nobody")]));
    assert_eq!(error.code, Code::NoSuchAgent);
    assert!(error.message.contains("it is to start after nobody"), "{error}");
    assert_eq!(herd.refused_with("b", after(&[&name("b")])).code, Code::BadValue);
    // A name that is used again could close a circle.
    let step = herd.spawn("step", "exit 0");
    herd.wait(std::slice::from_ref(&step)).unwrap();
    herd.program(None, "b", &["sleep", "1000"], after(&[&step, &a]));
    herd.program(Some(&name("b")), "c", &["sleep", "1000"], after(&[&name("b")]));
    herd.cleanup(Target::Ids(vec![step])).unwrap();
    let error = herd.refused_with("step", after(&[&name("c")]));
    assert_eq!(error.code, Code::BadValue);
    assert!(error.message.ends_with("its start would wait for itself: step -> c -> b -> step"), "{error}");
    assert!(herd.agent_status(&name("step")).is_err(), "nothing of it is there");
    herd.finish();
}

#[test]
fn nobody_holds_the_place_that_what_it_waits_for_needs() {
    let herd = herd_with(|settings| settings.herd.bounds.max_agents_per_level = 1);
    let mut events = herd.follow();
    let queue = |spec: &mut AgentSpec| spec.admission = Admission::Queue;
    let file = herd.dir.path().join("done");
    let first = herd.spawn("first", &once(&file));
    let db = herd.spawn_with("db", None, "exit 0", |spec| {
        queue(spec);
        spec.priority = 1.try_into().unwrap();
    });
    let error = herd.refused_with("hasty", after(&[&db]));
    assert_eq!(error.code, Code::BoundReached);
    let web = herd.spawn_with("web", None, "exec sleep 1000", |spec| {
        queue(spec);
        (spec.priority, spec.after) = (9.try_into().unwrap(), [db.clone()].into());
    });
    assert_eq!(status(&herd, &web).state, State::Queued);
    touch(&file);
    await_event(&mut events, Kind::Completed, &first);
    await_event(&mut events, Kind::Completed, &db);
    await_event(&mut events, Kind::Started, &web);
    // A name that is used again cannot be queued for a place that one has which starts after it.
    herd.cleanup(Target::Ids(vec![db.clone()])).unwrap();
    let error = herd.refused_with("db", queue);
    assert_eq!(error.code, Code::BoundReached);
    assert!(error.message.contains("web, which starts after it, has a place"), "{error}");
    herd.finish();
}

#[test]
fn a_stop_ends_what_started_after_another_one_before_it() {
    let herd = herd();
    let mut events = herd.follow();
    let group = herd.group(None, "data");
    let db = herd.sleeper(Some(&group), "db");
    let file = herd.dir.path().join("saved");
    // What it starts ends by itself: a child that is born right after the signal was sent does not have it.
    let script = format!("trap '{}; exit 0' TERM; echo up; while :; do sleep 0.02; done", once(&file));
    let web = herd.spawn_with("web", None, &script, |spec| {
        spec.ready = Some("stdout:^up".parse().unwrap());
        (spec.after, spec.grace) = ([db.clone()].into(), Duration::from_secs(60));
    });
    await_event(&mut events, Kind::Ready, &web);
    let own = treeherd::herd::Herd::connect(&herd.socket()).unwrap();
    let stop = std::thread::spawn(move || own.terminate(Target::All, None).unwrap());
    await_event(&mut events, Kind::Stopping, &web);
    assert!(status(&herd, &db).pid.is_some(), "db waits for web");
    touch(&file);
    for id in [&web, &db] {
        await_event(&mut events, Kind::Terminated, id);
    }
    stop.join().unwrap();
    herd.finish();
}

#[test]
fn one_for_all_starts_anew_in_the_order_of_what_comes_after_what() {
    let herd = herd();
    let mut events = herd.follow();
    let mut boss = AgentSpec::group(name("boss"));
    boss.children.strategy = treeherd::model::spec::Strategy::OneForAll;
    let boss = herd.register_agent(boss).unwrap().id;
    let file = herd.dir.path().join("open");
    touch(&file);
    let again = |spec: &mut AgentSpec| {
        spec.restart.policy = RestartPolicy::OnFailure;
        spec.restart.delay = Duration::ZERO;
    };
    let script = format!("{}; echo up; exec sleep 1000", once(&file));
    let db = herd.spawn_with("db", Some(&boss), &script, |spec| {
        again(spec);
        spec.ready = Some("stdout:^up".parse().unwrap());
    });
    let web = herd.spawn_with("web", Some(&boss), "exec sleep 1000", |spec| {
        again(spec);
        spec.after = [db.clone()].into();
    });
    await_event(&mut events, Kind::Started, &web);
    std::fs::remove_file(&file).unwrap();
    let pid = nix::unistd::Pid::from_raw(status(&herd, &web).pid.unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    await_event(&mut events, Kind::Started, &db);
    assert_eq!((status(&herd, &web).pid, status(&herd, &web).run.0), (None, 1), "it was first to fail, and waits");
    touch(&file);
    await_event(&mut events, Kind::Ready, &db);
    await_event(&mut events, Kind::Started, &web);
    herd.finish();
}

#[test]
fn a_wait_outlives_its_daemon() {
    let mut herd = daemon(&[]);
    let (db, file) = slow(&herd, "db", |_| {});
    let web = herd.spawn_with("web", None, "exec sleep 1000", after(&[&db]));
    herd.crash();
    herd.restart();
    assert!(status(&herd, &web).waits.unwrap().starts_with("db to be ready"));
    let mut events = herd.follow();
    touch(&file);
    await_event(&mut events, Kind::Started, &web);
    herd.finish();
}

#[test]
fn an_agent_names_only_itself_and_what_is_below_it() {
    let herd = herd();
    herd.sleeper(None, "secret");
    let script = format!(
        "for n in secret boss; do {} --socket {} spawn w-$n --parent boss --after $n -- sleep 1000; echo $n $?; done; exec sleep 1000",
        cargo_bin!("treeherd").display(),
        herd.socket().display()
    );
    let boss = herd.spawn("boss", &script);
    await_line(&herd, &boss, "secret 3");
    await_line(&herd, &boss, "boss 0");
    assert!(herd.agent_status(&name("w-secret")).is_err());
    herd.finish();
}

const FILE: &str = "
[agents.web]
after = ['db']
command = 'echo web starts'
[agents.data.agents.db]
command = 'echo db starts; sleep 0.2; echo up; exec sleep 0.3'
ready = { pattern = '^up' }
";

#[test]
fn a_tree_file_runs_and_is_applied_whatever_the_order_of_its_agents() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree.toml");
    std::fs::write(&path, FILE).unwrap();
    let cgroup = unique("after");
    let out = Command::new(cargo_bin!("treeherd")).args(["run", "--cgroup", &cgroup]).arg(&path).output().unwrap();
    let text = said(&out);
    assert!(out.status.success(), "{text}");
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
    assert!(place("db starts") < place("web starts") && leftovers(&cgroup).is_empty(), "{text}");

    // What could not start for another one is started anew with it.
    let herd = herd();
    let path = path.to_str().unwrap();
    let die = herd.dir.path().join("die");
    std::fs::write(path, FILE.replace("echo db starts", &format!("{}; exit 1", once(&die)))).unwrap();
    let out = treeherd(&herd, &["apply", path]);
    assert!(out.status.success(), "{}", said(&out));
    touch(&die);
    herd.wait(&[name("web")]).unwrap();
    assert_eq!(status(&herd, &name("web")).exit.unwrap().cause, Cause::Dependency);
    std::fs::write(path, FILE).unwrap();
    let plan = said(&treeherd(&herd, &["apply", path, "--dry-run"]));
    assert!(plan.contains("- end    web (has not started after db, which is started)"), "{plan}");
    let mut events = herd.follow();
    assert!(treeherd(&herd, &["apply", path]).status.success());
    await_event(&mut events, Kind::Completed, &name("web"));
    herd.finish();
}

//! The daemon dies and another one goes on: every agent that lives is adopted, every death in between is told once.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::*;
use treeherd::api::method::EventQuery;
use treeherd::model::error::Code;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::spec::{AgentSpec, OnMainExit, RestartPolicy};
use treeherd::model::status::{AgentStatus, Cause, ExitRecord, Paused, State};

/// Counts upwards, a number a line, for ever, and leaves the CPU to others in between.
const COUNT: &str =
    "i=0; while :; do n=$((i+100)); while [ $i -lt $n ]; do echo $i; i=$((i+1)); done; sleep 0.01; done";

/// Reads every event from the journal, page by page.
fn events(own: &Own) -> Vec<Event> {
    let (mut all, mut since) = (Vec::new(), 0);
    loop {
        let page = own.events(EventQuery { since: Some(since), ..EventQuery::default() }).unwrap();
        assert_eq!(page.lost, 0, "the journal keeps all of a test");
        if page.last <= since {
            return all;
        }
        all.extend(page.events);
        since = page.last;
    }
}

/// Every run that was started has ended exactly once, or goes on; the numbers of the events have no gap.
fn assert_each_end_is_told_once(own: &Own) {
    // Before the events: some start and end all the time.
    let statuses = own.agents().unwrap();
    let all = events(own);
    assert!(all.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq), "events are numbered without gaps");
    let mut runs: BTreeMap<(AgentId, u32), u32> = BTreeMap::new();
    for event in &all {
        let Some(run) = event.agent.clone().zip(event.run).map(|(id, run)| (id, run.0)) else { continue };
        if event.kind == Kind::Started {
            runs.insert(run, 0);
        } else if event.kind.is_terminal() && run.1 > 0 {
            *runs.entry(run).or_default() += 1;
        }
    }
    let last: BTreeMap<AgentId, u32> = runs.keys().cloned().collect();
    for ((id, run), ends) in runs {
        let had_ended = |status: &AgentStatus| status.run.0 == run && status.state.has_ended();
        let goes_on = last[&id] == run && statuses.iter().any(|status| status.id == id && !had_ended(status));
        assert!(ends == 1 || (ends == 0 && goes_on), "{id}: run {run} has {ends} ends");
    }
}

/// Waits until an agent has said so many bytes.
fn await_output(own: &Own, id: &AgentId, bytes: u64) {
    until("it has said enough", || own.agent_output(id, bytes).is_ok_and(|page| !page.pieces.is_empty()));
}

/// Checks that what is kept of a counting agent's output is what it said, without a gap or a doubled byte.
fn assert_counts(own: &Own, id: &AgentId) {
    let text = String::from_utf8(output(own, id)).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.ends_with('\n')) {
        assert_eq!(line.trim(), number.to_string(), "line {number}");
    }
    assert!(lines.len() > 100, "it said something");
}

#[test]
fn an_adopted_agent_is_like_any_other() {
    let mut own = daemon(&[]);
    let fleet = own.group(None, "fleet");
    let parent = own.program(Some(&fleet), "parent", &["sh", "-c", COUNT], |_| {});
    let child = own.program(Some(&parent), "child", &["sh", "-c", "sleep 1000 & echo up; wait"], |spec| {
        spec.limits = limits(&["pids_max=10"]);
        spec.session = Some("night".parse().unwrap());
    });
    await_line(&own, &child, "up");
    await_output(&own, &parent, 10_000);
    let before: Vec<_> = [&fleet, &parent, &child].map(|id| own.agent_status(id).unwrap()).into();
    own.crash();
    own.restart();

    let after: Vec<_> = [&fleet, &parent, &child].map(|id| own.agent_status(id).unwrap()).into();
    assert_eq!(before, after, "ps shows what it showed");
    let adopted: Vec<_> = events(&own).into_iter().filter(|event| event.kind == Kind::Adopted).collect();
    assert_eq!(
        adopted.iter().filter_map(|event| event.agent.clone()).collect::<Vec<_>>(),
        [fleet, parent.clone(), child.clone()]
    );
    assert_eq!(adopted[1].pid, before[1].pid);
    assert_counts(&own, &parent);
    assert_eq!(own.agent_for_process(before[2].pid.unwrap()).unwrap().id, child);
    assert_eq!(own.children_for_agent(&parent).unwrap()[0].id, child);
    assert_eq!(own.agent_status(&child).unwrap().limits, limits(&["pids_max=10"]));

    // What it does from here on is seen, and what is asked of it is done.
    let grandchild = own.sleeper(Some(&child), "grandchild");
    own.pause_agent(&parent).unwrap();
    assert_eq!(own.agent_status(&grandchild).unwrap().paused, Paused::Inherited);
    own.resume_agent(&parent).unwrap();
    let receipt = own.terminate_agent(&child, None).unwrap();
    assert!(receipt.processes >= 3, "{receipt:?}");
    assert_eq!(own.ends_of(&child), [Kind::Terminated]);
    own.finish();
}

#[test]
fn how_an_adopted_agent_ends_is_told_as_it_is() {
    let mut own = daemon(&[]);
    let fifo = |name: &str| {
        let path = own.dir.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path.to_str().unwrap().to_owned()
    };
    let (well, badly) = (fifo("well"), fifo("badly"));
    let good = own.spawn("good", &format!("read x < {well}; exit 0"));
    let bad = own.spawn("bad", &format!("read x < {badly}; echo last words >&2; exit 7"));
    let slain = own.sleeper(None, "slain");
    let mut seen = BTreeMap::new();
    own.crash();
    own.restart();
    let mut told = own.follow();
    let pid = own.agent_status(&slain).unwrap().pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGUSR1).unwrap();
    std::fs::write(&well, "go\n").unwrap();
    std::fs::write(&badly, "go\n").unwrap();
    for event in await_ends(&mut told, &[good.clone(), bad.clone(), slain.clone()]) {
        seen.insert(event.agent.clone().unwrap(), (event.kind, event.exit.unwrap()));
    }
    let kernel = treeherd::kernel::host::Host::discover().unwrap().kernel;
    let tells = (kernel.major, kernel.minor) >= (6, 15);
    let (good, bad, slain) = (&seen[&good], &seen[&bad], &seen[&slain]);
    // An older kernel tells it until somebody has reaped them, which may be too soon to be seen.
    let is_lost = |end: &(Kind, ExitRecord)| !tells && end.0 == Kind::Failed && end.1.cause == Cause::Lost;
    assert!(is_lost(good) || (good.0, good.1.status) == (Kind::Completed, Some(0)), "{good:?}");
    assert!(is_lost(bad) || (bad.0, bad.1.status) == (Kind::Failed, Some(7)), "{bad:?}");
    assert_eq!(bad.1.last_lines, ["last words"]);
    assert!(is_lost(slain) || (slain.0, slain.1.signal.as_deref()) == (Kind::Failed, Some("SIGUSR1")), "{slain:?}");
    assert_each_end_is_told_once(&own);
    own.finish();
}

#[test]
fn what_ends_while_no_daemon_lives_is_told_once() {
    let mut own = daemon(&[]);
    let plain = own.sleeper(None, "plain");
    let leaves = own.spawn_with("leaves", None, "sleep 1000 & echo up; wait", |spec| {
        spec.on_main_exit = OnMainExit::Wait;
    });
    let again = own.program(None, "again", &["sleep", "1000"], |spec| {
        spec.restart.policy = RestartPolicy::OnFailure;
        spec.restart.delay = std::time::Duration::ZERO;
    });
    await_line(&own, &leaves, "up");
    let main = |id: &AgentId| own.agent_status(id).unwrap().pid.unwrap();
    let mains = [main(&plain), main(&leaves), main(&again)];
    own.crash();
    for pid in mains {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        // Until nobody can know any more how it ended.
        until("it is reaped", || process_state(pid).is_none());
    }
    own.restart();
    until("its end is told", || !own.ends_of(&plain).is_empty());
    let end = own.events_of(&plain).into_iter().find(|event| event.kind.is_terminal()).unwrap();
    assert_eq!((end.kind, end.exit.unwrap().cause), (Kind::Failed, Cause::Lost));
    assert_eq!(own.agent_status(&leaves).unwrap().state, State::Running, "what it left behind is waited for");
    until("an unknown end is no success", || {
        own.agent_status(&again).is_ok_and(|it| it.run.0 == 2 && it.pid.is_some())
    });
    let others: Vec<i32> = own.processes();
    own.crash();
    own.restart();
    assert_eq!(own.processes(), others);
    own.terminate_agent(&leaves, None).unwrap();
    assert_each_end_is_told_once(&own);
    assert_eq!(own.ends_of(&plain), [Kind::Failed]);
    own.finish();
}

#[test]
fn what_was_asked_for_before_still_holds() {
    let mut own = daemon(&[]);
    let paused = own.spawn("paused", COUNT);
    let below = own.sleeper(Some(&paused), "below");
    let deaf = own.spawn_with("deaf", None, "trap '' TERM; echo up; while :; do sleep 1000; done", |spec| {
        spec.grace = std::time::Duration::from_secs(3);
    });
    let stopped = own.sleeper(None, "stopped");
    own.terminate_agent(&stopped, None).unwrap();
    await_line(&own, &deaf, "up");
    await_output(&own, &paused, 1000);
    own.pause_agent(&paused).unwrap();
    let asking = own.connect_client().unwrap();
    let mut told = own.follow();
    let socket = own.socket();
    let stopper = std::thread::spawn(move || {
        let herd = treeherd::herd::Herd::connect(&socket).unwrap();
        herd.terminate_agent(&name("deaf"), None)
    });
    await_event(&mut told, Kind::Stopping, &deaf);
    drop(asking);
    own.crash();
    assert_code(stopper.join().unwrap(), Code::NoDaemon);
    own.restart();
    assert_eq!(own.agent_status(&paused).unwrap().paused, Paused::Own);
    assert_eq!(own.agent_status(&below).unwrap().paused, Paused::Inherited);
    let still = own.agent_status(&paused).unwrap().cgroup;
    let before = cpu_used(&still);
    // The stop goes on by itself, to the kill that was due.
    let end = await_ends(&mut own.follow(), std::slice::from_ref(&deaf)).remove(0);
    assert_eq!((end.kind, end.exit.unwrap().cause), (Kind::Terminated, Cause::Terminated));
    assert_still(&still, before, "what is paused stands still");
    assert_eq!(own.agent_status(&stopped).unwrap().state, State::Terminated, "what was stopped stays stopped");
    own.resume_agent(&paused).unwrap();
    let so_far = output(&own, &paused).len() as u64;
    await_output(&own, &paused, so_far + 1000);
    assert_counts(&own, &paused);
    own.finish();
}

#[test]
fn a_run_that_another_program_froze_while_no_daemon_lived_is_thawed_and_reported() {
    let mut own = daemon(&[]);
    let [runs, paused, below] = ["runs", "paused", "below"].map(|id| own.sleeper(None, id));
    own.pause_agent(&paused).unwrap();
    let cgroup = |id| own.agent_status(id).unwrap().cgroup;
    let run = |id| format!("{}/run-1", cgroup(id));
    let [run, paused_run, home] = [run(&runs), run(&paused), cgroup(&below)];
    own.crash();
    for place in [&run, &paused_run, &home] {
        std::fs::write(format!("{place}/cgroup.freeze"), "1").unwrap();
    }
    own.restart();
    let is_frozen = |place| std::fs::read_to_string(format!("{place}/cgroup.events")).unwrap().contains("frozen 1");
    until("what nobody paused runs", || !is_frozen(&run) && !is_frozen(&home));
    assert!(is_frozen(&paused_run), "what was paused stays so");
    for (id, count) in [(&runs, 1), (&paused, 1), (&below, 0)] {
        let notices = own.events_of(id).into_iter().filter(|event| event.kind == Kind::Notice);
        let is_about_it = |event: &Event| event.message.contains("another program had frozen its run (cgroup.freeze)");
        assert_eq!(notices.filter(is_about_it).count(), count, "{id}");
    }
    assert_eq!(own.agent_status(&runs).unwrap().state, State::Running);
    own.resume_agent(&paused).unwrap();
    until("a resume resumes it", || !is_frozen(&paused_run));
    own.finish();
}

#[test]
fn what_no_record_knows_of_is_ended() {
    let mut own = daemon(&[]);
    let known = own.sleeper(None, "known");
    let pid = own.agent_status(&known).unwrap().pid;
    own.crash();
    // A spawn that was under way: it is noted, its cgroup is made, it has a process, and nobody was told.
    let records = own.dir.path().join("state/records");
    let text = std::fs::read_to_string(&records).unwrap();
    let key = text.split_once("{\"birth\":{\"key\":").unwrap().1.split_once(',').unwrap().0;
    let begun = format!(
        "{{\"begun\":{{\"key\":999,\"run\":1,\"place\":\"herd/stray\"}}}}\n\
         {{\"begun\":{{\"key\":{key},\"run\":2,\"place\":\"herd/known\"}}}}\n"
    );
    std::fs::write(&records, text.clone() + &begun).unwrap();
    let root = treeherd::kernel::host::Host::discover().unwrap().cgroup2.join(&own.cgroup).join("herd");
    let stray = root.join("stray/run-1");
    std::fs::create_dir_all(&stray).unwrap();
    let next = root.join("known/run-2");
    std::fs::create_dir(&next).unwrap();
    let mut sleepers = Vec::new();
    for leaf in [&stray, &next] {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        std::fs::write(leaf.join("cgroup.procs"), child.id().to_string()).unwrap();
        sleepers.push(child);
    }
    own.restart();
    for sleeper in &mut sleepers {
        assert!(!sleeper.wait().unwrap().success(), "it was killed");
    }
    assert!(!stray.exists() && !next.exists());
    assert_eq!(own.agent_status(&known).unwrap().pid, pid);
    let started = events(&own).into_iter().rfind(|event| event.kind == Kind::HerdStarted).unwrap();
    assert!(started.message.contains("adopted agents: 1") && started.message.contains("were ended: 2"), "{started:?}");
    own.finish();
}

#[test]
fn a_daemon_with_another_cgroup_is_refused_while_agents_live() {
    let mut own = daemon(&[]);
    own.sleeper(None, "a");
    own.crash();
    let theirs = std::mem::replace(&mut own.cgroup, unique("other"));
    let output = own.start().stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(&format!("--cgroup {theirs}")), "{said}");
    assert_eq!(leftovers(&own.cgroup), Vec::<std::path::PathBuf>::new());
    own.cgroup = theirs;
    own.restart();
    assert_eq!(own.agent_status(&name("a")).unwrap().state, State::Running);
    own.finish();
}

#[test]
fn after_a_boot_every_agent_is_lost_once_and_none_is_started() {
    let mut own = daemon(&["--cleanup-retention", "1h"]);
    let fleet = own.group(None, "fleet");
    let worker = own.program(Some(&fleet), "worker", &["sleep", "1000"], |spec| {
        spec.restart.policy = RestartPolicy::Always;
    });
    let done = own.spawn("done", "echo said");
    own.wait(std::slice::from_ref(&done)).unwrap();
    own.crash();
    // What a boot does: the processes and cgroups are gone, the boot has another name.
    let root = treeherd::kernel::host::Host::discover().unwrap().cgroup2.join(&own.cgroup);
    std::fs::write(root.join("herd/cgroup.kill"), "1").unwrap();
    until("they are gone", || {
        std::fs::read_to_string(root.join("herd/cgroup.events")).unwrap().contains("populated 0")
    });
    for path in leftovers(&own.cgroup) {
        directories_below(&path).iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
    }
    let records = own.dir.path().join("state/records");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = std::fs::read_to_string(&records).unwrap().replace(boot.trim(), "another");
    std::fs::write(&records, text).unwrap();
    for _ in 0..2 {
        own.restart();
        for id in [&fleet, &worker] {
            assert_eq!(own.ends_of(id), [Kind::Failed], "{id}");
            let status = own.agent_status(id).unwrap();
            assert_eq!((status.state, status.exit.unwrap().cause), (State::Failed, Cause::Lost));
        }
        assert_eq!(own.ends_of(&done), [Kind::Completed]);
        assert_eq!(output(&own, &done), b"said\n", "what was said is there");
        own.crash();
    }
    own.restart();
    own.finish();
}

#[test]
fn a_clean_end_leaves_nothing_to_adopt() {
    let mut own = daemon(&[]);
    own.sleeper(None, "a");
    assert!(own.dir.path().join("state/records").exists());
    own.end();
    assert!(!own.dir.path().join("state/records").exists());
    own.restart();
    assert_eq!(own.agents().unwrap(), []);
    own.finish();
}

#[test]
fn item_8_kill_9_of_the_daemon_under_load() {
    let mut own = daemon(&["--max-agents-per-level", "100"]);
    let fleet = own.group(None, "fleet");
    let talkers: Vec<AgentId> = (0..3).map(|n| own.spawn_below(&fleet, &format!("talker-{n}"), COUNT)).collect();
    let sleepers: Vec<AgentId> = (0..10).map(|n| own.sleeper(Some(&fleet), &format!("sleeper-{n}"))).collect();
    let paused = own.spawn_below(&fleet, "paused", COUNT);
    let limited = own.program(Some(&fleet), "limited", &["sleep", "1000"], |spec| {
        spec.limits = limits(&["memory_max=64MiB", "pids_max=20"]);
    });
    // The end of each run is an end to be told, and so is its next start.
    let crashing: Vec<AgentId> = (0..3)
        .map(|n| {
            own.spawn_with(&format!("crashing-{n}"), Some(&fleet), "exit 3", |spec| {
                spec.restart.policy = RestartPolicy::Always;
                spec.restart.delay = std::time::Duration::from_millis(5);
                spec.restart.factor = 1.0;
                spec.restart.intensity = 1_000_000;
            })
        })
        .collect();
    talkers.iter().chain([&paused]).for_each(|id| await_output(&own, id, 10_000));
    own.pause_agent(&paused).unwrap();
    let steady: Vec<&AgentId> = talkers.iter().chain(&sleepers).chain([&paused, &limited]).collect();
    let pids: Vec<_> = steady.iter().map(|id| own.agent_status(id).unwrap().pid.unwrap()).collect();
    let mut restarts = vec![0; crashing.len()];

    for round in 0..10 {
        // In the middle of spawns and terminates that nobody will be told of.
        let herd = treeherd::herd::Herd::connect(&own.socket()).unwrap();
        let busy = std::thread::spawn(move || {
            for n in 0.. {
                let id = name(&format!("brief-{round}-{n}"));
                let spec = AgentSpec::new(id.clone(), ["sleep", "1000"]);
                let gone = herd.spawn_child_agent(Some(&name("fleet")), spec).is_err()
                    || herd.terminate_agent(&id, Some(std::time::Duration::ZERO)).is_err();
                if gone {
                    return;
                }
            }
        });
        until("all that crash have been started again", || {
            let runs =
                crashing.iter().zip(&restarts).map(|(id, before)| own.agent_status(id).unwrap().restarts > *before);
            runs.into_iter().all(|more| more)
        });
        own.crash();
        busy.join().unwrap();
        own.restart();
        for (id, pid) in steady.iter().zip(&pids) {
            assert_eq!(own.agent_status(id).unwrap().pid, Some(*pid), "{id} in round {round}");
        }
        assert_eq!(own.agent_status(&paused).unwrap().paused, Paused::Own);
        for (id, before) in crashing.iter().zip(&mut restarts) {
            let now = own.agent_status(id).unwrap().restarts;
            assert!(now >= *before, "{id}: its restarts are counted on: {now} after {before}");
            *before = now;
        }
    }
    own.resume_agent(&paused).unwrap();
    talkers.iter().chain([&paused]).for_each(|id| assert_counts(&own, id));
    assert_each_end_is_told_once(&own);
    let home = own.agent_status(&limited).unwrap().cgroup;
    assert_eq!(own.agent_status(&limited).unwrap().limits, limits(&["memory_max=64MiB", "pids_max=20"]), "{home}");
    own.terminate_agent(&fleet, None).unwrap();
    assert_eq!(own.processes(), Vec::<i32>::new());
    assert_each_end_is_told_once(&own);
    own.finish();
}

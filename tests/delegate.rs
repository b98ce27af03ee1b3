//! Agents whose cgroup is delegated to their user: they make cgroups of their own, and all of it
//! ends with them.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use assert_cmd::cargo::cargo_bin;
use common::foreground::lives;
use common::*;
use treeherd::kernel::host::{Binding, Host};
use treeherd::model::error::Code;
use treeherd::model::event::Kind;
use treeherd::model::id::AgentId;
use treeherd::model::limits::Controller;
use treeherd::model::ready::Ready;
use treeherd::model::request::Target;
use treeherd::model::spec::{AgentSpec, OnMainExit};
use treeherd::model::status::{Cause, State};

/// Somebody who owns nothing here.
const NOBODY: u32 = 65534;

/// Finds the cgroup of the process that runs it, and the one that is delegated, above it.
const PLACES: &str = "c=$MOUNT$(sed -n 's/^0:://p' /proc/self/cgroup); r=${c%/main}\n";

fn delegated(spec: &mut AgentSpec) {
    spec.delegate = true;
    spec.env.insert("MOUNT".to_owned(), Host::discover().unwrap().cgroup2.to_str().unwrap().to_owned());
}

fn nobodys(spec: &mut AgentSpec) {
    delegated(spec);
    spec.user = Some(NOBODY.to_string());
}

/// Returns the cgroup of an agent's first run.
fn run_of(herd: &Own, id: &AgentId) -> PathBuf {
    PathBuf::from(herd.agent_status(id).unwrap().cgroup).join("run-1")
}

/// Makes a directory in which anybody runs this program, and nobody has its runtime directory.
fn room_for_nobody() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("treeherd");
    std::fs::copy(cargo_bin!("treeherd"), &program).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    chown(dir.path().join("run"), Some(NOBODY), Some(NOBODY)).unwrap();
    (dir, program.to_str().unwrap().to_owned())
}

/// What this binary does when it is started as an agent.
#[test]
fn role() {
    if std::env::var(ROLE).is_ok_and(|role| role == "ready") {
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        socket.send_to(b"READY=1", std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
        loop {
            std::thread::park();
        }
    }
}

#[test]
fn a_herd_in_a_delegated_agent_of_another_user_has_cgroups_of_its_own_and_ends_with_the_agent() {
    let herd = daemon(&[]);
    let (dir, program) = room_for_nobody();
    let file = dir.path().join("tree.toml");
    let limits = if has_controllers() { "limits = { memory_max = \"64MiB\", pids_max = 9 }\n" } else { "" };
    std::fs::write(&file, format!("[agents.inner]\ncommand = \"echo inner $$; exec sleep 1000\"\n{limits}")).unwrap();
    let outer = herd.program(None, "outer", &[&program, "run", file.to_str().unwrap()], |spec| {
        nobodys(spec);
        spec.env.insert("XDG_RUNTIME_DIR".to_owned(), dir.path().join("run").to_str().unwrap().to_owned());
    });
    let supervisor = herd.process_for_agent(&outer).unwrap().unwrap();
    let inner = || {
        let said = String::from_utf8_lossy(&output(&herd, &outer)).into_owned();
        assert_eq!(herd.ends_of(&outer), [], "{said}{}", String::from_utf8_lossy(&errors(&herd, &outer)));
        said.lines().find_map(|line| line.rsplit_once("inner ")?.1.parse::<i32>().ok())
    };
    until("the inner agent runs", || inner().is_some());
    let inner = inner().unwrap();
    let leaf = format!("{}/herd/outer/run-1/herd/inner/run-1", herd.cgroup);
    let cgroup = std::fs::read_to_string(format!("/proc/{inner}/cgroup")).unwrap();
    assert!(cgroup.lines().any(|line| line.starts_with("0::") && line.ends_with(&leaf)), "{cgroup}");
    assert_eq!(std::fs::metadata(format!("/proc/{inner}")).unwrap().uid(), NOBODY);
    herd.terminate_agent(&outer, Some(Duration::ZERO)).unwrap();
    assert!(!lives(inner) && !lives(supervisor));
    herd.finish();
}

#[test]
fn a_delegated_agent_reaches_neither_its_limits_nor_more_cgroups_than_the_bound_and_leaves_none() {
    let herd = daemon(&[]);
    let script = "
        for file in ../cgroup.procs ../cgroup.subtree_control ../cgroup.freeze ../cgroup.kill ../memory.max ../pids.max \
            cgroup.max.depth cgroup.max.descendants cgroup.freeze cgroup.kill cgroup.type memory.max pids.max; do
            [ -w $r/$file ] && echo writes $file
        done
        mkdir $r/../beside 2>/dev/null && echo makes beside
        deep=$r; n=0
        while mkdir $deep/deep 2>/dev/null; do deep=$deep/deep; n=$((n + 1)); done
        echo deep $n
        seq 1500 | sed \"s|^|$r/many-|\" | xargs mkdir 2>/dev/null
        echo many $(ls -d $r/many-* | wc -l)
        (trap '' TERM; exec sleep 1000) & echo $! > $deep/cgroup.procs
        sleep 1000 & echo $! > $r/many-1/cgroup.procs; echo 1 > $r/many-1/cgroup.freeze
        (echo threaded > $r/many-2/cgroup.type) 2>/dev/null
        chmod 000 $r/many-1 $r
        echo over; exec sleep 1000";
    let hostile = herd.spawn_with("hostile", None, &(PLACES.to_owned() + script), nobodys);
    await_line(&herd, &hostile, "over");
    let said = String::from_utf8_lossy(&output(&herd, &hostile)).into_owned();
    assert_eq!(said, "deep 64\nmany 959\nover\n", "with `main`, 1024 cgroups");
    let run = run_of(&herd, &hostile);
    let processes = processes_in(run.to_str().unwrap());
    assert_eq!(processes.len(), 3);
    herd.pause_agent(&hostile).unwrap();
    herd.resume_agent(&hostile).unwrap();
    // A process of the same user goes on making cgroups in there, and is not in the agent.
    let again =
        "chmod 755 $RUN; while [ -d $RUN ]; do seq 2000 | sed \"s|^|$RUN/again-|\" | xargs mkdir; echo again; done 2>/dev/null
        exec sleep 1000";
    let other = herd.spawn_with("other", None, again, |spec| {
        spec.env.insert("RUN".to_owned(), run.to_str().unwrap().to_owned());
        spec.user = Some(NOBODY.to_string());
    });
    await_line(&herd, &other, "again");
    herd.terminate_agent(&hostile, Some(Duration::ZERO)).unwrap();
    assert!(!processes.into_iter().any(lives));
    until("the cgroups are removed", || !run.exists());
    assert_eq!(herd.agent_status(&other).unwrap().state, State::Running);
    herd.finish();
}

#[test]
fn what_lives_in_cgroups_of_a_delegated_agent_is_counted_waited_for_and_adopted() {
    let mut herd = daemon(&[]);
    let script = "mkdir -p $r/own/below
        sleep 1000 & echo $! > $r/own/cgroup.procs
        sleep 1000 & echo $! > $r/own/below/cgroup.procs
        echo over; exec sleep 1000";
    let id = herd.spawn_with("a", None, &(PLACES.to_owned() + script), |spec| {
        delegated(spec);
        spec.on_main_exit = OnMainExit::Wait;
    });
    await_line(&herd, &id, "over");
    let ready = herd.role(None, "ready", "ready", |spec| {
        delegated(spec);
        spec.ready = Some(Ready::Notify);
    });
    until("its message is its own", || herd.agent_status(&ready).unwrap().state == State::Running);
    let main = herd.process_for_agent(&id).unwrap().unwrap();
    herd.crash();
    herd.restart();
    assert_eq!(herd.process_for_agent(&id).unwrap(), Some(main), "it is adopted");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(main), nix::sys::signal::Signal::SIGKILL).unwrap();
    let told = |herd: &Own| herd.events_of(&id).into_iter().find(|event| event.kind == Kind::Exited);
    until("the end of its main process is reported", || told(&herd).is_some());
    let told = told(&herd).unwrap().message;
    assert!(told.contains("2 processes left behind"), "{told}");
    let run = run_of(&herd, &id);
    assert_eq!(processes_in(run.to_str().unwrap()).len(), 2);
    herd.crash();
    herd.restart();
    assert_eq!(herd.ends_of(&id), [], "what it left behind is adopted, too");
    herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap();
    until("the cgroups are removed", || !run.exists());
    herd.finish();
}

#[test]
fn an_agent_whose_cgroup_is_not_delegated_cannot_have_one_that_is() {
    let herd = daemon(&[]);
    let program = cargo_bin!("treeherd").to_str().unwrap();
    let ask = |id: &str| {
        let child = format!("child-of-{id} --parent {id} --delegate --user {NOBODY} -- sleep 1000");
        format!("{program} --socket {} spawn {child} 2>&1; echo status $?; sleep 1000", herd.socket().display())
    };
    let plain = herd.spawn("plain", &ask("plain"));
    await_line(&herd, &plain, "status 3");
    let said = String::from_utf8_lossy(&output(&herd, &plain)).into_owned();
    assert!(said.contains("delegate"), "{said}");
    let granted = herd.spawn_with("granted", None, &ask("granted"), delegated);
    await_line(&herd, &granted, "status 0");
    assert_eq!(std::fs::metadata(run_of(&herd, &name("child-of-granted"))).unwrap().uid(), NOBODY);
    let group = AgentSpec { delegate: true, ..AgentSpec::group(name("group")) };
    assert_code(herd.register_agent(group), Code::BadValue);
    herd.finish();
}

/// Says whether the controllers of cgroup2 can be delegated here.
fn has_controllers() -> bool {
    let host = Host::discover().unwrap();
    [Controller::Pids, Controller::Memory].iter().all(|it| host.binding(*it) == &Binding::V2)
}

#[test]
fn the_user_of_a_delegated_agent_sets_limits_within_those_of_the_agent_and_oom_kills_there_are_reported() {
    if !has_controllers() {
        return eprintln!("skipped: controllers of v1 are not delegated");
    }
    let herd = daemon(&[]);
    let own = "echo +pids +memory > $r/cgroup.subtree_control && mkdir $r/own && echo 3 > $r/own/pids.max &&
        echo 16777216 > $r/own/memory.max && echo 0 > $r/own/memory.swap.max && cat $r/own/pids.max
        sh -c 'echo $$ > $0/own/cgroup.procs; exec tail /dev/zero' $r
        echo worker ended; exec sleep 1000";
    let wide = herd.spawn_with("wide", None, &(PLACES.to_owned() + own), |spec| {
        nobodys(spec);
        spec.limits = limits(&["memory_max=64MiB", "pids_max=20"]);
    });
    await_line(&herd, &wide, "worker ended");
    until("the kill is reported", || herd.agent_status(&wide).unwrap().oom_kills == 1);
    assert_eq!(herd.agent_status(&wide).unwrap().state, State::Running);
    let eats = "echo +memory > $r/cgroup.subtree_control; exec tail /dev/zero";
    let eater = herd.spawn_with("eater", None, &(PLACES.to_owned() + eats), |spec| {
        nobodys(spec);
        spec.limits = limits(&["memory_max=16MiB", "memory_swap_max=0"]);
    });
    let status = herd.wait(std::slice::from_ref(&eater)).unwrap().remove(0);
    let exit = status.exit.unwrap();
    assert_eq!((exit.cause, exit.oom.unwrap().culprit.as_deref()), (Cause::Oom, Some("eater")));
    herd.terminate(Target::All, Some(Duration::ZERO)).unwrap();
    until("the cgroups are removed", || !run_of(&herd, &wide).exists());
    herd.finish();
}

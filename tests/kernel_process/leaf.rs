//! Leaves that hang, are frozen, were killed.

use std::process::Command;

use treeherd::kernel::spawn::{Way, spawn, way_that_works};
use treeherd::model::stage::Stage;

use crate::room::{Room, end, sink, until};

/// Runs a test's body in a new process of the test binary: one that has no other tests beside it.
pub fn in_a_process_of_its_own(name: &str, body: impl FnOnce()) {
    const MARK: &str = "TH_K2_OWN_PROCESS";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let output = again(name).env(MARK, "1").output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The command that runs one test, whose name has `name` in it, in a new process of the test binary.
pub fn again(name: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let listed = Command::new(&program).args(["--list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let full = listed.lines().filter_map(|line| line.strip_suffix(": test")).find(|line| line.contains(name)).unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", full, "--nocapture", "--test-threads=1"]);
    command
}

#[test]
fn a_child_born_in_a_killed_cgroup_dies_at_birth_where_the_canary_says_so() {
    let (room, out) = (Room::new(), sink());
    assert_eq!(way_that_works(room.dir()).unwrap(), Way::CloneInto, "never killed yet");
    room.write("cgroup.kill", "1");
    let way = way_that_works(room.dir()).unwrap();
    eprintln!("into a cgroup that was killed: {way:?}");
    let mut launch = room.launch(&["/bin/true"], &out);
    match way {
        Way::CloneInto => end(&spawn(&launch).unwrap()),
        Way::EnterItself => {
            let killed = spawn(&launch).unwrap_err();
            assert_eq!(killed.stage, Stage::Killed);
            assert_eq!(killed.to_string(), "killed by SIGKILL before exec, at the stage clone");
            // A child that writes itself into the leaf is not affected.
            launch.way = Way::EnterItself;
            launch.enter.insert(0, room.procs());
            end(&spawn(&launch).unwrap())
        }
    };
}

#[test]
fn a_parent_whose_own_cgroup_was_killed_finds_the_way_that_works() {
    in_a_process_of_its_own("a_parent_whose_own_cgroup_was_killed", || {
        let home = Room::new();
        home.write("cgroup.kill", "1");
        home.write("cgroup.procs", "0");
        let (room, out) = (Room::new(), sink());
        let way = way_that_works(room.dir()).unwrap();
        eprintln!("from a cgroup that was killed: {way:?}");
        // `launch` asks for the way by itself: it is the same one, and it works.
        let launch = room.launch(&["/bin/true"], &out);
        assert_eq!(launch.way, way);
        end(&spawn(&launch).unwrap());
        // Out again, so that the cgroup can be removed without this process.
        std::fs::write(home.path.parent().unwrap().join("cgroup.procs"), "0").unwrap();
        // In a cgroup that was never killed it is cured.
        let fresh = Room::new();
        fresh.write("cgroup.procs", "0");
        assert_eq!(way_that_works(Room::new().dir()).unwrap(), Way::CloneInto);
        std::fs::write(fresh.path.parent().unwrap().join("cgroup.procs"), "0").unwrap();
    });
}

#[test]
fn a_spawn_into_a_frozen_leaf_hangs_until_it_is_killed_and_tells_so() {
    let (room, out) = (Room::new(), sink());
    let launch = room.launch(&["/bin/true"], &out);
    room.write("cgroup.freeze", "1");
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| spawn(&launch));
        until("the child is in the leaf and frozen", || {
            let events = room.read("cgroup.events");
            events.contains("populated 1") && events.contains("frozen 1")
        });
        assert!(!hung.is_finished());
        room.write("cgroup.kill", "1");
        let killed = hung.join().unwrap().unwrap_err();
        assert_eq!((killed.stage, killed.errno), (Stage::Killed, None));
        assert_eq!(killed.to_string(), "killed by SIGKILL before exec, at the stage clone");
    });
    until("the leaf is empty", || room.read("cgroup.events").contains("populated 0"));
}

#[test]
fn a_spawn_into_a_frozen_leaf_goes_on_when_it_is_thawed() {
    let (room, out) = (Room::new(), sink());
    let launch = room.launch(&["/bin/echo", "thawed"], &out);
    room.write("cgroup.freeze", "1");
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| spawn(&launch));
        until("the child is in the leaf", || room.read("cgroup.events").contains("populated 1"));
        assert_eq!(crate::room::text(&out), "");
        room.write("cgroup.freeze", "0");
        end(&hung.join().unwrap().unwrap());
    });
    assert_eq!(crate::room::text(&out), "thawed\n");
}

#[test]
fn a_child_that_execs_and_dies_at_once_was_launched() {
    let (room, out) = (Room::new(), sink());
    let launch = room.launch(&["/bin/sh", "-c", "kill -9 $$"], &out);
    for _ in 0..50 {
        let child = spawn(&launch).expect("it has been executed, and then killed");
        end(&child);
    }
}

#[test]
fn a_child_without_memory_to_exec_in_is_ended_by_the_kill_of_its_leaf_and_tells_so() {
    let Some(mirror) = Room::v1("memory") else { return };
    mirror.write("memory.limit_in_bytes", "4096");
    let (room, out) = (Room::new(), sink());
    let mut launch = room.launch(&["/bin/true"], &out);
    launch.enter.push(mirror.procs());
    let failure = std::thread::scope(|scope| {
        let hung = scope.spawn(|| spawn(&launch));
        // It may hang, or the OOM killer may find it, or it may get by: what is told must fit.
        let mut counter = 0;
        until("it is out of memory or done", || {
            let failed: u64 = mirror.read("memory.failcnt").trim().parse().unwrap();
            counter += u32::from(failed > 100);
            counter > 1000 || hung.is_finished()
        });
        let hangs = !hung.is_finished();
        room.write("cgroup.kill", "1");
        let outcome = hung.join().unwrap();
        eprintln!("without memory: hangs {hangs}, {outcome:?}");
        outcome
    });
    match failure {
        Err(failure) => assert!(matches!(failure.stage, Stage::Killed | Stage::Exec), "{failure}"),
        Ok(child) => {
            end(&child);
        }
    }
}

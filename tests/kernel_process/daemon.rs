//! What a daemon leaves behind, who calls it, and what its watches tell.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use treeherd::kernel::clock;
use treeherd::kernel::peer::{Origin, peer};
use treeherd::kernel::pidfd::{self, Exit};
use treeherd::kernel::socket::{SOCKET_MODE, bind, claim_state_dir};
use treeherd::kernel::spawn::spawn;
use treeherd::kernel::watch::{Fact, Watches};
use treeherd::model::error::Code;

use crate::leaf::again;
use crate::room::{Room, end, sink, until};

#[test]
fn a_dead_daemons_claim_is_free_even_while_its_child_hangs_on_its_way_to_exec() {
    const ME: &str = "a_dead_daemons_claim_is_free";
    if let Some(state) = std::env::var_os("TH_K2_STATE") {
        let claim = claim_state_dir(&PathBuf::from(&state)).unwrap();
        let _listener = bind(&claim, &claim.path().join("s.sock"), None, SOCKET_MODE).unwrap();
        let (room, out) = (Room::new(), sink());
        let launch = room.launch(&["/bin/true"], &out);
        // A child that comes and goes, with a copy of every descriptor, takes nothing away.
        end(&spawn(&launch).unwrap());
        room.write("cgroup.freeze", "1");
        std::fs::write(PathBuf::from(&state).join("leaf"), room.path.to_str().unwrap()).unwrap();
        spawn(&launch).unwrap_err();
        unreachable!("the daemon is killed while it hangs");
    }
    let guard = tempfile::tempdir().unwrap();
    let state = guard.path().join("state");
    let mut daemon = again(ME).env("TH_K2_STATE", &state).spawn().unwrap();
    let mut leaf = String::new();
    until("the daemon's child hangs in its leaf", || {
        leaf = std::fs::read_to_string(state.join("leaf")).unwrap_or_default();
        !leaf.is_empty()
            && std::fs::read_to_string(format!("{leaf}/cgroup.events")).unwrap().contains("populated 1\nfrozen 1")
    });
    let leaf = Room::adopt(leaf.into());
    let refused = claim_state_dir(&state).unwrap_err();
    assert_eq!(refused.code, Code::InUse);
    assert!(refused.message.contains(&format!("the daemon with pid {}", daemon.id())), "{refused}");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(leaf.read("cgroup.events").contains("populated 1"), "the child still hangs");
    let claim = claim_state_dir(&state).unwrap();
    bind(&claim, &state.join("s.sock"), None, SOCKET_MODE)
        .expect("its socket is open in the child, and stale nevertheless");
}

#[test]
fn a_caller_is_known_by_its_cgroup() {
    let guard = tempfile::tempdir().unwrap();
    let claim = claim_state_dir(&guard.path().join("state")).unwrap();
    let path = claim.path().join("s.sock");
    let listener = bind(&claim, &path, None, SOCKET_MODE).unwrap();
    let (room, out) = (Room::new(), sink());
    let mut launch = room.launch(&["/bin/sh"], &out);
    let program = std::env::current_exe().unwrap();
    launch.search = vec![std::ffi::CString::new(program.to_str().unwrap()).unwrap()];
    launch.argv = vec![c"x".to_owned(), c"connects_to_the_socket_that_it_is_told".to_owned()];
    launch.env = vec![std::ffi::CString::new(format!("TH_K2_SOCKET={}", path.display())).unwrap()];
    let child = spawn(&launch).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let caller = peer(&stream, clock::monotonic(), |_| Ok(None)).unwrap();
    assert_eq!(caller.pid, child.pid);
    let name = room.path.file_name().unwrap().to_str().unwrap();
    assert_eq!(caller.origin, Origin::Cgroup(format!("/{name}")));
    drop(stream);
    assert_eq!(end(&child).status, Exit::Code(0));
}

#[test]
fn connects_to_the_socket_that_it_is_told() {
    // A part of a_caller_is_known_by_its_cgroup, and nothing without it.
    let Some(path) = std::env::var_os("TH_K2_SOCKET") else { return };
    let mut stream = UnixStream::connect(path).unwrap();
    let mut nothing = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut nothing).unwrap();
}

#[test]
fn one_inotify_instance_tells_of_a_cgroups_events() {
    let (room, out) = (Room::new(), sink());
    let watches = Watches::new().unwrap();
    let watch = watches.add_modify(room.dir(), "cgroup.events").unwrap();
    let child = spawn(&room.launch(&["sleep", "1000"], &out)).unwrap();
    let mut facts = Vec::new();
    let mut told = |what: &str, now: &str| {
        until(what, || {
            facts.clear();
            watches.read(&mut facts).unwrap();
            facts.contains(&Fact::Modified(watch)) && room.read("cgroup.events").contains(now)
        });
    };
    told("populated", "populated 1");
    pidfd::signal(child.pidfd.as_fd(), rustix::process::Signal::KILL).unwrap();
    told("empty", "populated 0");
    end(&child);
    std::fs::remove_dir(&room.path).unwrap();
    facts.clear();
    watches.read(&mut facts).unwrap();
    eprintln!("told of a removed cgroup: {facts:?}");
    std::fs::create_dir(&room.path).unwrap();
    watches.remove(watch).unwrap();
}

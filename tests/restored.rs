//! The state directory while somebody deletes what is in it: it is complete again, reported once, and nothing is forgotten.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use treeherd::herd::{EventStream, Herd};
use treeherd::model::event::{Event, Kind};
use treeherd::model::ready::Ready;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::State;
use treeherd::model::stream::Output;

fn state(own: &Own) -> PathBuf {
    own.dir.path().join("state")
}

fn await_kind(events: &mut EventStream, kind: Kind) -> Event {
    let mut events = events.by_ref().filter_map(|note| note.event);
    events.find(|event| event.kind == kind).unwrap_or_else(|| panic!("no {kind} within {PATIENCE:?}"))
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o777
}

/// Starts an agent that says over the notify socket that it is ready.
fn start_ready(own: &Own, id: &str) {
    let mut spec = AgentSpec::new(name(id), ["sh", "-c", "systemd-notify --no-block --ready; exec sleep 1000"]);
    if !Path::new("/usr/bin/systemd-notify").exists() {
        let send = "import os,socket; s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); \
                    s.sendto(b'READY=1',os.environ['NOTIFY_SOCKET']); os.execvp('sleep',['sleep','1000'])";
        spec = AgentSpec::new(name(id), ["python3", "-c", send]);
    }
    spec.ready = Some(Ready::Notify);
    own.spawn_child_agent(None, spec).unwrap();
    until("it is ready", || own.agent_status(&name(id)).unwrap().state == State::Running);
}

/// Lists the keepers of output pipes.
fn keepers(own: &Own) -> Vec<i32> {
    let root = treeherd::kernel::host::Host::discover().unwrap().cgroup2.join(&own.cgroup);
    processes_in(root.to_str().unwrap()).into_iter().filter(|pid| is_keeper(*pid)).collect()
}

/// Counts how often something was reported, in the whole journal.
fn count(own: &Own, kind: Kind) -> usize {
    let out = treeherd(own, &["events", "--since", "0", "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let kind = format!("\"{kind}\"");
    text.lines().filter(|line| line.contains(&kind)).count()
}

#[test]
fn a_state_directory_that_is_deleted_is_there_again_with_all_that_a_next_daemon_needs() {
    let mut own = daemon(&[]);
    let lives = own.sleeper(None, "lives");
    let speaks = own.program(None, "speaks", &["sh", "-c", "echo before; exec sleep 1000"], |_| {});
    let piped = own.program(None, "piped", &["sh", "-c", "exec sleep 1000"], |spec| spec.output = Output::Pipe);
    await_line(&own, &speaks, "before");
    let mut events = own.follow();
    // A slow removal meets what is re-created meanwhile.
    until("the directory is removed", || {
        let removed = std::fs::remove_dir_all(state(&own));
        removed.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) || removed.is_ok()
    });
    let mut missing = vec!["treeherd.sock", "notify", "journal", "records", "agents", "keeper-0", "speaks"];
    while !missing.is_empty() {
        let restored = await_kind(&mut events, Kind::StateRestored);
        missing.retain(|what| !restored.message.contains(what));
    }
    // What has the content of the records writes them, a moment later where the disk is slow.
    until("the records are there", || state(&own).join("records").exists());
    let modes = ["", "treeherd.sock", "notify", "lock", "records"].map(|it| mode(&state(&own).join(it)));
    assert_eq!(modes, [0o711, 0o660, 0o666, 0o600, 0o600]);
    // New clients are served, agents are heard, and another daemon is refused.
    assert_eq!(Herd::connect(&own.socket()).unwrap().agents().unwrap().len(), 3);
    start_ready(&own, "new");
    let other = own.start().stderr(Stdio::piped()).output().unwrap();
    let refused = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && refused.contains("is in use by"), "{refused}");
    // A next run writes into files that are kept.
    for id in [&speaks, &piped] {
        own.restart_agent(id).unwrap();
    }
    await_line(&own, &speaks, "before");
    let pids = |own: &Own| own.agents().unwrap().iter().map(|agent| agent.pid).collect::<Vec<_>>();
    let (before, keeping) = (pids(&own), keepers(&own));
    own.crash();
    own.restart();
    assert_eq!((keepers(&own), keeping.len()), (keeping, 2), "the next daemon has found them");
    assert_eq!(own.agents().unwrap().len(), 4);
    assert_eq!(pids(&own), before, "the records were complete: nobody was ended");
    assert_eq!(own.agent_status(&lives).unwrap().state, State::Running);
    assert!(own.events_of(&lives).iter().any(|event| event.kind == Kind::Started), "the journal has its old events");
    assert!(count(&own, Kind::StateRestored) >= 1, "the event is in the journal");
    own.finish();
}

#[test]
fn each_file_that_is_deleted_alone_is_there_again() {
    let own = daemon(&[]);
    let id = own.program(None, "a", &["sh", "-c", "echo said; exec sleep 1000"], |_| {});
    await_line(&own, &id, "said");
    let mut events = own.follow();
    let names = ["treeherd.sock", "notify", "journal", "journal.ends", "records", "lock", "agents", "agents/a"];
    for (round, deleted) in names.into_iter().chain(["agents/a/stdout"]).enumerate() {
        let path = state(&own).join(deleted);
        if path.is_dir() {
            delete(&path)
        } else {
            std::fs::remove_file(&path).unwrap()
        }
        let restored = await_kind(&mut events, Kind::StateRestored);
        let what = if deleted.starts_with("agents/") { "the output of a" } else { deleted };
        assert!(restored.message.contains(what), "{deleted}: {}", restored.message);
        until("it is there", || path.exists());
        assert_eq!(count(&own, Kind::StateRestored), round + 1, "{deleted}");
    }
    start_ready(&own, "new");
    own.restart_agent(&id).unwrap();
    await_line(&own, &id, "said");
    // What a run writes after that is in the new file.
    let go = own.dir.path().join("go");
    let script = format!("until [ -e {} ]; do sleep 0.05; done; echo later; exec sleep 1000", go.display());
    let piped = own.spawn_with("piped", None, &script, |spec| spec.output = Output::Pipe);
    std::fs::remove_file(state(&own).join("agents/piped/stdout")).unwrap();
    await_kind(&mut events, Kind::StateRestored);
    std::fs::write(go, "").unwrap();
    await_line(&own, &piped, "later");
    own.finish();
}

#[test]
fn a_state_directory_that_cannot_be_re_created_is_reported_and_is_there_when_it_can() {
    let own = daemon(&[]);
    let id = own.sleeper(None, "a");
    let mut events = own.follow();
    // A file in the place of the directory, at once.
    let other = own.dir.path().join("other");
    std::fs::write(&other, "").unwrap();
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, &other, CWD, state(&own), RenameFlags::EXCHANGE).unwrap();
    delete(&other);
    let stalled = await_kind(&mut events, Kind::StateStalled);
    assert!(stalled.message.contains("no directory"), "{}", stalled.message);
    own.terminate(ids(&[&id]), None).unwrap();
    std::fs::remove_file(state(&own)).unwrap();
    await_kind(&mut events, Kind::StateRestored);
    until("new clients are served", || Herd::connect(&own.socket()).is_ok_and(|herd| herd.agents().is_ok()));
    own.finish();
}

#[test]
fn the_socket_of_a_service_manager_that_is_deleted_is_replaced_by_one_of_our_own() {
    let mut own = daemon_to_be(&[]);
    std::fs::create_dir(state(&own)).unwrap();
    let socket = own.socket();
    let listener = OwnedFd::from(UnixListener::bind(&socket).unwrap());
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let handed = listener.try_clone().unwrap();
    let take = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
    let start = |own: &mut Own, handed: OwnedFd| {
        own.restart_by(|daemon| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", take, "sh"]).arg(daemon.get_program()).args(daemon.get_args());
            command.stdin(Stdio::from(handed)).stdout(Stdio::null()).stderr(Stdio::null());
            command
        });
    };
    start(&mut own, handed);
    let mut events = own.follow();
    std::fs::remove_file(&socket).unwrap();
    let restored = await_kind(&mut events, Kind::StateRestored);
    assert!(restored.message.contains("treeherd.sock"), "{}", restored.message);
    assert_eq!(mode(&socket), 0o600, "with the mode that it had");
    assert_eq!(Herd::connect(&socket).unwrap().agents().unwrap().len(), 0);
    // The manager still has the deleted one, and hands it over again.
    own.crash();
    std::fs::remove_file(&socket).unwrap();
    start(&mut own, listener);
    assert!(UnixStream::connect(&socket).is_ok());
    own.end();
    assert!(!socket.exists());
}

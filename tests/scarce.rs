//! What the daemon needs is scarce: descriptors, watches; and somebody is loud. What ends agents and what reports their ends goes on.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::raw::Raw;
use common::*;
use rustix::process::{Pid, Resource, Rlimit};
use serde_json::json;
use treeherd::api::method::EventQuery;
use treeherd::api::{CLIENTS_MAX, CLIENTS_OF_AGENT_MAX, CLIENTS_OF_OPERATOR_MIN, CLIENTS_OF_TREE_MAX};
use treeherd::kernel::host::{Binding, Host};
use treeherd::kernel::peer::Origin;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::limits::Controller;
use treeherd::model::ready::Ready;
use treeherd::model::units::Bytes;

/// How many requests the loud agent makes.
const REFUSED: usize = 500;

/// What agents of the tests below are: this binary again.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    if role == "hoarder" {
        let socket = PathBuf::from(std::env::var("SOCKET").unwrap());
        let own = std::env::var("OWN").unwrap();
        let child = json!({ "id": format!("endless-{own}"), "parent": own, "command": ["sleep", "1000"] });
        let answer = Raw::connect(&socket).call("spawn", &child);
        assert!(answer["result"].is_object() || answer["error"]["data"]["code"] == "too_many_clients", "{answer}");
        let child = child["id"].as_str().unwrap();
        let held: Vec<Raw> = std::iter::repeat_with(|| wait_half_closed(&socket, child)).map_while(|raw| raw).collect();
        println!("{} held", held.len());
        println!("no more");
        let_pass("1000");
    }
    if role == "loud" {
        let mut raw = Raw::connect(Path::new(&std::env::var("SOCKET").unwrap()));
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "pause", "params": { "target": "all" } });
        for _ in 0..REFUSED {
            assert_eq!(raw.ask(&request.to_string())["error"]["data"]["code"], "forbidden");
        }
        println!("all refused");
        let_pass("1000");
    }
}

/// Connects, asks for what is never answered, and closes the direction of requests. None if the connection is refused.
fn wait_half_closed(socket: &Path, id: &str) -> Option<Raw> {
    let mut raw = Raw::connect(socket);
    let answer = raw.call("hello", &json!({}));
    if answer["error"].is_object() {
        assert_eq!(answer["error"]["data"]["code"], "too_many_clients", "{answer}");
        return None;
    }
    let wait = json!({ "jsonrpc": "2.0", "id": 2, "method": "wait", "params": { "ids": [id] } });
    raw.send(&format!("{wait}\n"));
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    Some(raw)
}

#[test]
fn agents_that_hold_all_connections_they_can_get_keep_neither_the_operator_nor_other_trees_out() {
    let herd = daemon(&[]);
    let endless = herd.sleeper(None, "endless");
    let hoard = |id: &str, parent: Option<&AgentId>| {
        herd.role(parent, id, "hoarder", |spec| {
            spec.env.insert("SOCKET".to_owned(), herd.socket().to_str().unwrap().to_owned());
            spec.env.insert("OWN".to_owned(), id.to_owned());
        })
    };
    let held = |id: &AgentId| {
        await_line(&herd, id, "no more");
        let said = String::from_utf8(output(&herd, id)).unwrap();
        said.lines().find_map(|line| line.strip_suffix(" held")).unwrap().parse::<usize>().unwrap()
    };
    let first = hoard("first", None);
    assert_eq!(held(&first), CLIENTS_OF_AGENT_MAX);
    let of_tree: usize = (0..4).map(|n| held(&hoard(&format!("below-{n}"), Some(&first)))).sum();
    assert_eq!(CLIENTS_OF_AGENT_MAX + of_tree, CLIENTS_OF_TREE_MAX);
    for n in 0..3 {
        assert_eq!(held(&hoard(&format!("other-{n}"), None)), CLIENTS_OF_AGENT_MAX);
    }
    let mut operators: Vec<Raw> = (0..CLIENTS_OF_OPERATOR_MIN / 2).map(|_| Raw::connect(&herd.socket())).collect();
    for raw in &mut operators {
        assert!(raw.call("hello", &json!({}))["result"].is_object());
    }
    // A call whose client has closed its direction is answered all the same.
    let mut raw = wait_half_closed(&herd.socket(), "endless").unwrap();
    herd.terminate_agent(&endless, Some(Duration::ZERO)).unwrap();
    assert_eq!(raw.line().unwrap()["id"], 2);
    herd.finish();
}

#[test]
fn a_client_that_hangs_up_gives_its_place_back_before_its_call_is_answered() {
    let herd = daemon(&[]);
    herd.sleeper(None, "endless");
    for _ in 0..CLIENTS_MAX + 10 {
        drop(wait_half_closed(&herd.socket(), "endless").expect("those who have hung up hold no place"));
    }
    until("their places are free", || herd.stats().unwrap().clients < 10);
    herd.finish();
}

fn pid_of(herd: &Own) -> Pid {
    let pid = Raw::connect(&herd.socket()).call("hello", &json!({}))["result"]["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[test]
fn out_of_descriptors_spawns_are_refused_and_every_agent_is_ended() {
    let herd = daemon(&["--max-agents-per-level", "1000", "--max-children", "1000"]);
    let mut events = herd.follow();
    let most = Rlimit { current: Some(320), maximum: Some(320) };
    rustix::process::prlimit(Some(pid_of(&herd)), Resource::Nofile, most).unwrap();
    let mut agents = Vec::new();
    let refused = loop {
        let id = name(&format!("a{}", agents.len()));
        let spec = treeherd::model::spec::AgentSpec::new(id.clone(), ["sleep", "1000"]);
        match herd.spawn_child_agent(None, spec) {
            Ok(_) => agents.push(id),
            Err(error) => break error,
        }
        assert!(agents.len() < 320, "each takes a descriptor");
    };
    assert!(refused.message.contains("descriptor") && refused.remedy.is_some(), "{refused}");
    assert!(agents.len() > 10, "{} agents", agents.len());
    // Clients are let in for longer, and then sent away with a reason.
    let mut clients = Vec::new();
    let reason = loop {
        let mut raw = Raw::connect(&herd.socket());
        let _sent = std::io::Write::write(&mut raw.stream, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\"}\n");
        let answer = raw.line().expect("nobody is sent away without a word");
        if answer["error"].is_object() {
            break answer;
        }
        clients.push(raw);
        assert!(clients.len() < 320);
    };
    assert_eq!(reason["error"]["data"]["code"], "too_many_clients", "{reason}");
    // What ends, freezes and reports works as ever, for those who are in.
    let paused = herd.pause_agent(&agents[0]).unwrap();
    assert!(paused.pid.is_some());
    let pid = herd.agent_status(&agents[1]).unwrap().pid.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    await_event(&mut events, Kind::Failed, &agents[1]);
    for id in &agents[2..] {
        assert_eq!(herd.terminate_agent(id, Some(Duration::ZERO)).unwrap().processes, 1);
    }
    drop(clients);
    until("there is room for a client again", || {
        let mut raw = Raw::connect(&herd.socket());
        raw.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _sent = std::io::Write::write(&mut raw.stream, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\"}\n");
        raw.line().is_some_and(|answer| answer["result"].is_object())
    });
    herd.sleeper(None, "again");
    herd.finish();
}

#[test]
fn a_connection_that_could_not_be_accepted_is_accepted_when_there_are_descriptors_again() {
    let herd = daemon(&[]);
    let pid = pid_of(&herd);
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = |current| rustix::process::prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum }).unwrap();
    // Not one more than there are.
    let before = limit(Some(8));
    let mut raw = Raw { stream: UnixStream::connect(herd.socket()).unwrap(), reader: reader(&herd) };
    raw.reader = std::io::BufReader::new(raw.stream.try_clone().unwrap());
    raw.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    raw.send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\"}\n");
    // Somebody who is in is served meanwhile.
    assert!(herd.stats().is_ok());
    limit(before.current);
    assert!(raw.line().unwrap()["result"].is_object(), "nobody else had to connect for that");
    herd.finish();
}

#[test]
fn out_of_descriptors_a_living_client_is_not_reported_to_have_ended() {
    if !alone("out_of_descriptors_a_living_client_is_not_reported_to_have_ended") {
        return;
    }
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let accepted = treeherd::kernel::clock::monotonic();
    let identify = || treeherd::kernel::peer::peer(&ours, accepted, |_| Ok(None)).map(|peer| peer.origin);
    let found = identify().unwrap();
    assert!(matches!(found, Origin::Cgroup(_)), "{found:?}");
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    // The pidfd of the peer needs a descriptor, and then what is read of it another one.
    let first = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    for free in [0, 1] {
        let current = Some(u64::try_from(first).unwrap() + free);
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
        let outcome = identify();
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
        let error = outcome.expect_err("it is not known where the client is");
        assert!(error.to_string().contains("EMFILE"), "{error}");
    }
}

fn reader(herd: &Own) -> std::io::BufReader<UnixStream> {
    std::io::BufReader::new(UnixStream::connect(herd.socket()).unwrap())
}

/// Starts a daemon that gets one inotify watch: a user namespace has a bound of its own, which
/// holds for this daemon alone.
fn daemon_without_watches() -> Option<Own> {
    let scarce = "echo 1 > /proc/sys/user/max_inotify_watches && exec \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", scarce, "sh"];
    if !std::process::Command::new(prefix[0]).args(&prefix[1..]).arg("true").status().is_ok_and(|it| it.success()) {
        skip("no user namespaces here");
        return None;
    }
    Some(daemon_by(&prefix, &[]))
}

#[test]
fn without_watches_output_stays_bounded_and_what_is_looked_for_in_it_is_found() {
    let Some(herd) = daemon_without_watches() else { return };
    let mut events = herd.follow();
    let others: Vec<_> = (0..4).map(|n| herd.sleeper(None, &format!("watched-{n}"))).collect();
    let fifo = herd.dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let script = format!("read x < {}; yes 12345 | head -c 7999998; echo up; exec sleep 1000", fifo.display());
    let id = name("late");
    let mut spec = treeherd::model::spec::AgentSpec::new(id.clone(), ["sh", "-c", &script]);
    spec.output_max = Bytes(64 << 10);
    spec.ready = Some(Ready::Pattern { pattern: "^up$".parse().unwrap(), stream: Default::default() });
    herd.spawn_child_agent(None, spec).unwrap();
    std::fs::write(&fifo, "go\n").unwrap();
    await_event(&mut events, Kind::Ready, &id);
    let about = || std::fs::metadata(herd.dir.path().join("state/agents/late/stdout")).unwrap();
    until("what is over the bound is given back", || std::os::unix::fs::MetadataExt::blocks(&about()) * 512 < 1 << 20);
    let told: Vec<Event> = others.iter().chain([&id]).flat_map(|id| herd.events_of(id)).collect();
    let degraded: Vec<_> = told.iter().filter(|event| event.kind == Kind::Unwatched).collect();
    assert_eq!(degraded.len(), 1, "it is reported once: {degraded:?}");
    herd.finish();
}

/// From which descriptor on epoll takes no more, in the test below.
const UNPOLLED_FROM: u32 = 48;

/// Has epoll_ctl(2) answer ENOSPC to this process from then on, as it does when `fs.epoll.max_user_watches` is reached.
#[allow(unsafe_code, clippy::cast_possible_truncation)]
fn exhaust_epoll() -> std::io::Result<()> {
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |at: usize| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at as u32, 0, 0);
    let answer = |with: u32| step(libc::BPF_RET | libc::BPF_K, with, 0, 0);
    let argument = |number: usize| std::mem::offset_of!(libc::seccomp_data, args) + 8 * number;
    let is_equal = |k: u32, otherwise: u8| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, 0, otherwise);
    let mut filter = [
        load(std::mem::offset_of!(libc::seccomp_data, nr)),
        is_equal(libc::SYS_epoll_ctl as u32, 5),
        load(argument(1)),
        is_equal(libc::EPOLL_CTL_ADD as u32, 3),
        load(argument(2)),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, UNPOLLED_FROM, 0, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOSPC as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: prctl reads the program during the call, and it outlives that.
    let is_set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if is_set { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
#[allow(unsafe_code)]
fn what_epoll_does_not_take_is_polled_by_the_clock_and_every_death_is_reported() {
    use std::os::unix::process::CommandExt;
    let herd = daemon_started(|command| {
        command.args(["--max-agents-per-level", "100", "--max-children", "100"]);
        // SAFETY: between fork and exec it makes two system calls.
        unsafe { command.pre_exec(exhaust_epoll) };
    });
    let mut events = herd.follow();
    let agents: Vec<_> = (0..UNPOLLED_FROM).map(|n| herd.sleeper(None, &format!("a{n}"))).collect();
    let mut late = Raw::connect(&herd.socket());
    assert!(late.call("hello", &json!({}))["result"].is_object(), "a client is served, too");
    let mut alive: BTreeMap<AgentId, i32> =
        herd.agents().unwrap().into_iter().map(|status| (status.id, status.pid.unwrap())).collect();
    alive.remove(&agents[0]);
    for pid in alive.values() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    while !alive.is_empty() {
        let event = events.next().expect("every death is reported").event.unwrap();
        if event.kind == Kind::Failed {
            alive.remove(event.agent.as_ref().unwrap());
        }
    }
    assert_eq!(herd.terminate_agent(&agents[0], Some(Duration::ZERO)).unwrap().processes, 1);
    let told = herd.events(EventQuery { since: Some(0), ..EventQuery::default() }).unwrap().events;
    assert_eq!(told.iter().filter(|event| event.kind == Kind::Spawned).count(), agents.len());
    let degraded: Vec<_> = told.iter().filter(|event| event.kind == Kind::Unwatched).collect();
    assert_eq!(degraded.len(), 1, "it is reported once: {degraded:?}");
    assert!(degraded[0].message.contains("max_user_watches"), "{degraded:?}");
    herd.finish();
}

#[test]
fn out_of_tasks_spawns_are_refused_and_every_agent_is_ended() {
    let host = Host::discover().unwrap();
    let Binding::V1 { mount } = host.binding(Controller::Pids) else {
        return skip("the limit on tasks around a daemon is set on v1 here");
    };
    let around = mount.join(host.own_v1[mount].trim_start_matches('/')).join(unique("tasks"));
    std::fs::create_dir(&around).unwrap();
    let enter = format!("echo $$ > '{}/cgroup.procs' && exec \"$@\"", around.display());
    let herd = daemon_by(&["sh", "-c", &enter, "sh"], &[]);
    let mut events = herd.follow();
    let agents: Vec<_> = (0..10).map(|n| herd.sleeper(None, &format!("a{n}"))).collect();
    let tasks = std::fs::read_to_string(around.join("pids.current")).unwrap();
    std::fs::write(around.join("pids.max"), tasks.trim()).unwrap();
    let refused = herd.refused_with("one-more", |_| {});
    assert!(refused.message.contains("EAGAIN") || refused.message.contains("temporarily"), "{refused}");
    let pid = herd.agent_status(&agents[0]).unwrap().pid.unwrap();
    let paused = herd.pause_agent(&agents[1]).unwrap();
    assert!(paused.pid.is_some());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    await_event(&mut events, Kind::Failed, &agents[0]);
    // The task that has ended is no room for others to take.
    let tasks = std::fs::read_to_string(around.join("pids.current")).unwrap();
    std::fs::write(around.join("pids.max"), tasks.trim()).unwrap();
    assert!(Raw::connect(&herd.socket()).call("doctor", &json!({}))["result"].is_object());
    for id in &agents[1..] {
        assert_eq!(herd.terminate_agent(id, Some(Duration::ZERO)).unwrap().processes, 1);
    }
    herd.finish();
    std::fs::remove_dir(around).unwrap();
}

#[test]
fn without_watches_a_limit_that_is_hit_is_reported() {
    let Some(herd) = daemon_without_watches() else { return };
    let mut events = herd.follow();
    herd.sleeper(None, "watched");
    let id = herd.spawn_with("forks", None, "while :; do (sleep 1000 &) 2> /dev/null; sleep 0.1; done", |spec| {
        spec.limits = limits(&["pids_max=8"]);
    });
    assert_eq!(await_event(&mut events, Kind::Limit, &id).hit.unwrap().culprit, "forks");
    herd.finish();
}

#[test]
fn refused_requests_are_counted_after_the_first_and_hide_nobodys_death() {
    let herd = daemon(&[]);
    let mut events = herd.follow();
    let loud = herd.role(None, "loud", "loud", |spec| {
        spec.env.insert("SOCKET".to_owned(), herd.socket().to_str().unwrap().to_owned());
    });
    let other = herd.spawn("other", "exit 3");
    assert_eq!(await_event(&mut events, Kind::Failed, &other).exit.unwrap().status, Some(3));
    await_line(&herd, &loud, "all refused");
    let refusals = || {
        let of = herd.events_of(&loud).into_iter().filter(|event| event.kind == Kind::Forbidden);
        of.map(|event| event.count.unwrap_or(1)).collect::<Vec<u64>>()
    };
    until("each is counted", || refusals().iter().sum::<u64>() == REFUSED as u64);
    let refusals = refusals();
    assert!(refusals.len() < 100, "{} events", refusals.len());
    assert!(refusals.first() == Some(&1) && refusals.last().unwrap() > &1, "{refusals:?}");
    herd.finish();
}

//! Who asks, and what is sent along: connections of processes that end, and descriptors that nobody wants.
#![allow(clippy::unwrap_used)]

mod common;

use common::raw::Raw;
use common::*;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketType,
};
use serde_json::json;
use std::io::{BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use treeherd::kernel::host::{Host, KernelVersion};
use treeherd::kernel::rights;
use treeherd::model::event::Kind;
use treeherd::model::ready::Ready;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::State;

/// What the agents of the tests below are: this binary again.
#[test]
fn role() {
    if std::env::var(ROLE).is_ok_and(|role| role == "barrier") {
        // As systemd-notify does it: sd_notify(3), sd_notify_barrier(3).
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        socket.connect(std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&socket, b"READY=1", &[writer.as_fd()]).unwrap();
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        println!("\nreleased");
        loop {
            std::thread::park();
        }
    }
    if std::env::var(ROLE).is_ok_and(|role| role == "dead-connector") {
        let socket = std::env::var("SOCKET").unwrap();
        let ask = r#"{"jsonrpc":"2.0","id":1,"method":"pause","params":{"target":{"ids":["victim"]}}}"#;
        for mut raw in made_by_the_dead(Path::new(&socket), 60) {
            println!("answer {}", answer(&mut raw, ask));
        }
        println!("answer end");
        std::io::stdout().flush().unwrap();
    }
    if std::env::var(ROLE).is_ok_and(|role| role == "hander") {
        let connection = UnixStream::connect(std::env::var("SOCKET").unwrap()).unwrap();
        let out = UnixStream::connect(std::env::var("WAY_OUT").unwrap()).unwrap();
        send(&out, b"x", &[connection.as_fd()]).unwrap();
        loop {
            std::thread::park();
        }
    }
}

/// Receives one descriptor.
fn receive(socket: &UnixStream) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let parts = &mut [std::io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut messages = control.drain();
    let Some(RecvAncillaryMessage::ScmRights(mut fds)) = messages.next() else { panic!("no descriptor came") };
    fds.next().unwrap()
}

#[test]
fn a_connection_that_an_agent_hands_out_of_the_herd_stays_the_agents() {
    let herd = herd();
    herd.sleeper(None, "victim");
    let (way_out, listener) = (herd.dir.path().join("out"), herd.dir.path().join("out"));
    let listener = std::os::unix::net::UnixListener::bind(listener).unwrap();
    herd.role(None, "insider", "hander", |spec| {
        spec.env.insert("SOCKET".into(), herd.socket().to_str().unwrap().into());
        spec.env.insert("WAY_OUT".into(), way_out.to_str().unwrap().into());
    });
    let handed = UnixStream::from(receive(&listener.accept().unwrap().0));
    handed.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut raw = Raw { reader: BufReader::new(handed.try_clone().unwrap()), stream: handed };
    let answer = raw.call("terminate", &json!({ "target": { "ids": ["victim"] } }));
    assert_eq!(answer["error"]["data"]["code"], "forbidden", "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().starts_with("insider is an agent"), "{answer}");
    herd.finish();
}

/// Makes connections by a process that has ended, and was reaped, when they are used.
#[allow(unsafe_code)]
fn made_by_the_dead(socket: &Path, count: usize) -> Vec<Raw> {
    let address = SocketAddrUnix::new(socket).unwrap();
    let sockets: Vec<OwnedFd> =
        (0..count).map(|_| rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap()).collect();
    let of_child: Vec<OwnedFd> = sockets.iter().map(|socket| socket.try_clone().unwrap()).collect();
    let mut child = Command::new("true");
    // SAFETY: between fork and exec it makes system calls only.
    unsafe {
        child.pre_exec(move || {
            for socket in &of_child {
                rustix::net::connect(socket, &address)?;
            }
            Ok(())
        })
    };
    assert!(child.status().unwrap().success());
    let raw = |socket: OwnedFd| {
        let stream = UnixStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Raw { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    };
    // The last are the most likely to be identified when their process has ended.
    sockets.into_iter().rev().map(raw).collect()
}

/// Asks, and returns the code of the refusal, or `ok`. A connection that is refused is closed after one line.
fn answer(raw: &mut Raw, text: &str) -> String {
    raw.stream.write_all(format!("{text}\n").as_bytes()).unwrap_or_default();
    let Some(answer) = raw.line() else { return "closed".to_owned() };
    answer["error"]["data"]["code"].as_str().unwrap_or("ok").to_owned()
}

#[test]
fn a_connection_whose_maker_has_ended_is_its_agents_or_nobodys() {
    let herd = herd();
    herd.sleeper(None, "victim");
    let mut events = herd.follow();
    let evil = herd.role(None, "evil", "dead-connector", |spec| {
        spec.env.insert("SOCKET".into(), herd.socket().to_str().unwrap().into());
    });
    await_line(&herd, &evil, "answer end");
    let text = String::from_utf8(output(&herd, &evil)).unwrap();
    let answers: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("answer ")).collect();
    assert_eq!(answers.len(), 61);
    assert!(answers[..60].iter().all(|answer| *answer == "forbidden"), "{answers:?}");
    let forbidden = await_event(&mut events, Kind::Forbidden, &evil);
    assert!(forbidden.message.starts_with("agent evil, uid "), "{forbidden:?}");
    herd.finish();
}

#[test]
fn outside_the_herd_a_maker_that_has_ended_is_served_only_where_the_kernel_proves_it() {
    let herd = herd();
    let hello = r#"{"jsonrpc":"2.0","id":1,"method":"hello"}"#;
    for mut raw in made_by_the_dead(&herd.socket(), 50) {
        let answer = answer(&mut raw, hello);
        assert!(["ok", "forbidden"].contains(&answer.as_str()), "{answer}");
        if answer == "forbidden" {
            assert_eq!(raw.line(), None, "a refused connection is closed");
        }
    }
    herd.finish();
}

/// A connection whose last close waits until the other side is gone: it has data that nobody reads.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // A thousand of them take little memory.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 4096).unwrap();
    let (other, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while (&socket).write(&[0; 65536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(600))).unwrap();
    (socket, other)
}

/// Sends bytes, and descriptors with them.
fn send(socket: impl AsFd, text: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut control, SendFlags::empty())
}

fn connect_notify(herd: &Own) -> std::os::unix::net::UnixDatagram {
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    socket.connect(herd.dir.path().join("state/notify")).unwrap();
    socket
}

#[test]
fn descriptors_are_refused_on_a_connection_and_closed_at_once_on_the_notify_socket() {
    let herd = herd();
    let (mut reader, writer) = std::io::pipe().unwrap();
    send(connect_notify(&herd), b"BARRIER=1", &[writer.as_fd(); 253]).unwrap();
    drop(writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "all copies are closed");
    if rights::refuse(UnixStream::pair().unwrap().0) == rights::Rights::Possible {
        return skip("the kernel has no SO_PASSRIGHTS");
    }
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut raw = Raw::connect(&herd.socket());
    assert_eq!(send(&raw.stream, b"x", &[writer.as_fd()]), Err(rustix::io::Errno::PERM));
    assert!(raw.call("hello", &json!({}))["result"].is_object(), "and nothing of it was sent");
    herd.finish();
}

/// Counts the descriptors, threads and children of a daemon, other than its keepers.
fn costs(pid: u32) -> [usize; 3] {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let is_other = |pid: &&str| !is_keeper(pid.parse().unwrap());
    [count("fd"), count("task"), children.map(|list| list.split_whitespace().filter(is_other).count()).sum()]
}

#[test]
fn a_thousand_messages_with_sockets_that_linger_hold_up_no_message_of_an_agent_and_cost_nothing() {
    let herd = daemon(&[]);
    let before = costs(herd.daemon_pid());
    let notify = connect_notify(&herd);
    let mut others = std::collections::VecDeque::new();
    for number in 0..1000 {
        let (socket, other) = lingering();
        send(&notify, b"READY=1", &[socket.as_fd()]).unwrap();
        others.push_back(other);
        // Ours may be the last close after all.
        std::thread::spawn(move || drop(socket));
        if others.len() > 50 {
            others.pop_front();
        }
        if number % 200 == 0 {
            let mut events = herd.follow();
            let id = herd.spawn(&format!("a{number}"), "exit 0");
            await_event(&mut events, Kind::Completed, &id);
        }
    }
    // Before Linux 6.16 eight threads close what is sent, and a barrier may wait behind those that hang.
    if Host::discover().unwrap().kernel < (KernelVersion { major: 6, minor: 16, patch: 0 }) {
        others.clear();
    }
    // Behind all of them.
    let (mut reader, writer) = std::io::pipe().unwrap();
    send(&notify, b"BARRIER=1", &[writer.as_fd()]).unwrap();
    drop(writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    let id = herd.role(None, "agent", "barrier", |spec| spec.ready = Some(Ready::Notify));
    await_line(&herd, &id, "released");
    assert_eq!(herd.agent_status(&id).unwrap().state, State::Running);
    herd.terminate_agent(&id, None).unwrap();
    // What a busy machine makes the daemon add for spawns is less than a tenth of what a thousand leaks are.
    let most = [before[0] + 100, before[1] + 20, 0];
    let mut after = before;
    until("nothing of it is left", || {
        after = costs(herd.daemon_pid());
        after[2] == 0
    });
    assert!(after.iter().zip(most).all(|(now, most)| *now <= most), "{before:?}, {after:?}");
    drop(others);
    herd.finish();
}

/// Counts the threads of this process that close what others have sent, and may hang in that.
fn closers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "closer\n")).count()
}

/// Sends descriptors whose last close waits, until one hangs in this process; then the herd does all that it did before.
fn hang(herd: &Own, id: &str, mut send_one: impl FnMut(BorrowedFd<'_>)) {
    let mut others = Vec::new();
    until("a close hangs", || {
        let (socket, other) = lingering();
        send_one(socket.as_fd());
        others.push(other);
        // If this is the last close after all, it is this thread that hangs.
        std::thread::spawn(move || drop(socket));
        closers() > 0
    });
    ends_well(herd, id);
}

/// Runs an agent. The program of one is begun with a copy of this process's descriptors: now and then its close of one of them is the
/// last, waits, and has the spawn refused.
fn ends_well(herd: &Own, id: &str) {
    let mut events = herd.follow();
    let mut refusals = Vec::new();
    // A program that was given up may start all the same before it is killed, and its id is taken
    // then.
    let started = loop {
        let spec = AgentSpec::new(name(&format!("{id}-{}", refusals.len())), ["true"]);
        match herd.spawn_child_agent(None, spec) {
            Ok(started) => break started.id,
            Err(error) => refusals.push(error.to_string()),
        }
        assert!(refusals.len() < 12, "no agent is started: {refusals:?}");
    };
    await_event(&mut events, Kind::Completed, &started);
}

#[test]
fn before_6_16_a_descriptor_whose_close_hangs_holds_nobody_up_whichever_way_it_comes() {
    if !alone("before_6_16_a_descriptor_whose_close_hangs_holds_nobody_up_whichever_way_it_comes") {
        return;
    }
    rights::act_as_before_6_16();
    let herd = herd();
    let mut raws = Vec::new();
    // With a request.
    hang(&herd, "with-a-request", |fd| {
        let raw = Raw::connect(&herd.socket());
        send(&raw.stream, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\"}\n", &[fd]).unwrap();
        raws.push(raw);
    });
    for mut raw in raws {
        let answer = raw.line().unwrap();
        assert!(answer["error"]["message"].as_str().unwrap().contains("file descriptors"), "{answer}");
        assert_eq!(raw.line(), None);
    }
    // With a message of an agent, or of whoever says so.
    let notify = connect_notify(&herd);
    hang(&herd, "with-a-message", |fd| {
        send(&notify, b"STATUS=x", &[fd; 253]).unwrap();
    });
    // Unread, when the connection is closed.
    hang(&herd, "unread", |fd| {
        let raw = Raw::connect(&herd.socket());
        raw.stream.shutdown(std::net::Shutdown::Read).unwrap();
        send(&raw.stream, b"x", &[fd]).unwrap_or_default();
    });
    // The last client's connections and the notify socket hold some, too: to close them holds the end up no more.
    herd.finish();
}

#[test]
fn before_6_16_as_many_hanging_closes_as_may_be_stop_neither_requests_nor_detection() {
    if !alone("before_6_16_as_many_hanging_closes_as_may_be_stop_neither_requests_nor_detection") {
        return;
    }
    rights::act_as_before_6_16();
    let herd = herd();
    let notify = connect_notify(&herd);
    notify.set_nonblocking(true).unwrap();
    let mut others = Vec::new();
    // Until nothing is read any more: then the queue of the socket is full.
    until("the notify socket is left alone", || {
        let (socket, other) = lingering();
        let sent = send(&notify, b"STATUS=x", &[socket.as_fd(); 253]);
        others.push(other);
        std::thread::spawn(move || drop(socket));
        others.len() > 20 && sent == Err(rustix::io::Errno::AGAIN)
    });
    ends_well(&herd, "a");
    // With the other side the reason of the hanging goes.
    others.clear();
    let id = herd.program(None, "b", &["sleep", "1000"], |_| {});
    notify.set_nonblocking(false).unwrap();
    notify.set_write_timeout(Some(PATIENCE)).unwrap();
    notify.send(b"STATUS=y").expect("messages are read again");
    herd.terminate_agent(&id, Some(Duration::ZERO)).unwrap();
    herd.finish();
}

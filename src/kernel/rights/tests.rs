use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

use super::*;

/// Sends bytes, and descriptors with them.
fn send(socket: impl AsFd, text: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(socket, &[IoSlice::new(text)], &mut control, flags)
}

/// A pair as on a kernel before 6.16: ours has what its peer sends, descriptors too.
fn old_pair() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream { socket: Some(ours.into()), rights: Rights::Possible };
    rustix::net::sockopt::set_socket_oobinline(&stream, true).unwrap();
    (stream, theirs)
}

/// A connection whose last close waits until the other side is gone: it has data that nobody reads.
struct Lingering {
    socket: TcpStream,
    other: TcpStream,
}

impl Lingering {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        while (&socket).write(&[0; 65536]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        let linger = Some(std::time::Duration::from_secs(600));
        rustix::net::sockopt::set_socket_linger(&socket, linger).unwrap();
        Self { socket, other }
    }

    /// Has it closed by whoever received it: ours was not the last.
    fn leave(self) -> TcpStream {
        // Not by a close, which would wait if it were the last after all.
        drop(self.socket);
        self.other
    }
}

/// Says whether the other end of a pipe is closed.
fn is_closed(reader: &std::io::PipeReader) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let wait = Timespec { tv_sec: 30, tv_nsec: 0 };
    let mut fds = [PollFd::new(reader, PollFlags::empty())];
    poll(&mut fds, Some(&wait)).unwrap() == 1 && fds[0].revents().contains(PollFlags::HUP)
}

#[test]
fn what_carries_a_descriptor_stays_unread_and_what_came_before_is_read() {
    let (stream, theirs) = old_pair();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut buffer = [0; 64];
    (&theirs).write_all(b"before").unwrap();
    assert_eq!(stream.read(&mut buffer), Ok(Read::Bytes(6)));
    send(&theirs, b"with", &[writer.as_fd(); 253], SendFlags::empty()).unwrap();
    drop(writer);
    for _ in 0..2 {
        assert_eq!(stream.read(&mut buffer), Ok(Read::Descriptors));
    }
    drop(stream);
    assert!(is_closed(&reader), "it is closed with the socket");
}

#[test]
fn a_descriptor_with_an_out_of_band_byte_is_not_read_past() {
    let (stream, theirs) = old_pair();
    let (_reader, writer) = std::io::pipe().unwrap();
    match send(&theirs, b"!", &[writer.as_fd()], SendFlags::OOB) {
        Err(Errno::OPNOTSUPP) => return,
        sent => assert_eq!(sent, Ok(1)),
    }
    (&theirs).write_all(b"after").unwrap();
    assert_eq!(stream.read(&mut [0; 64]), Ok(Read::Descriptors));
}

#[test]
fn a_socket_whose_unread_descriptors_cannot_be_closed_holds_nobody_up() {
    let mut others = Vec::new();
    // More than there are threads that may hang.
    for _ in 0..THREADS_MAX + 4 {
        let (stream, theirs) = old_pair();
        let lingering = Lingering::new();
        send(&theirs, b"x", &[lingering.socket.as_fd()], SendFlags::empty()).unwrap();
        others.push(lingering.leave());
        drop(stream);
    }
    // All of them hang, and yet: a socket without a descriptor is closed here and now.
    assert!(!CLIENTS.lock().waiting.is_empty() && CLIENTS.has_room());
    let (stream, theirs) = old_pair();
    (&theirs).write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0; 64]), Ok(Read::Bytes(1)));
    drop(stream);
    assert!((&theirs).write_all(b"x").is_err());
    drop(others);
    let (reader, writer) = std::io::pipe().unwrap();
    CLIENTS.take([OwnedFd::from(writer)]);
    assert!(is_closed(&reader), "with the last peer gone all of them go on");
}

#[test]
fn from_6_16_on_the_kernel_refuses_descriptors_to_the_sender() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let early = UnixStream::connect(&path).unwrap();
    if refuse(&listener) == Rights::Possible {
        assert!(kernel() < (6, 16), "a kernel from 6.16 on has SO_PASSRIGHTS");
        return;
    }
    let own = std::io::stdout();
    send(&early, b"x", &[own.as_fd()], SendFlags::empty()).unwrap();
    let late = UnixStream::connect(&path).unwrap();
    assert_eq!(send(&late, b"x", &[own.as_fd()], SendFlags::empty()), Err(Errno::PERM), "before it is accepted");
    let accept = || Stream::new(listener.accept().unwrap().0.into());
    let (early, late) = (accept(), accept());
    assert_eq!(early.rights, Rights::Possible, "it was connected before");
    assert_eq!(early.read(&mut [0; 8]), Ok(Read::Descriptors));
    assert_eq!(late.rights, Rights::Refused, "it has it from the listening socket");
}

fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = crate::kernel::host::KernelVersion::from_release(&release).unwrap();
    (version.major, version.minor)
}

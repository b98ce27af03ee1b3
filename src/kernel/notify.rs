//! The socket of sd_notify(3): any process may send to it, and the kernel says who it was.
//!
//! What a message says of its sender is never believed. The kernel vouches for the pid (`SCM_CREDENTIALS`) and, from 6.5 on,
//! for the process itself (`SCM_PIDFD`); its cgroup is then found even of a sender that has ended since.
//!
//! Descriptors that are sent along (`BARRIER=1`, `FDSTORE=1`) are closed when the message has been taken, and whoever waits for that,
//! as `systemd-notify` does, goes on. Where the kernel can refuse them to the sender (6.16), which is done when too many closes hang, a
//! child takes such a message and ends with them (`spawn::take_message`); before, threads close them: [`rights`].
//!
//! What waits unread is bounded by the kernel: `net.unix.max_dgram_qlen` messages, each on its sender's account. A sender that
//! finds the queue full waits.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, getrlimit};

use super::error::{KernelError, Result};
use super::pidfd;
use super::rights::{self, Rights};
use super::socket::{StateDir, address_of, bind_at, is_left_behind, unlink_stale};
use super::spawn::{self, Late, Launched, Taking};
use crate::model::error::Error;
use crate::model::note::NOTE_MOST;

/// Room for what the kernel adds to a message: credentials, a pidfd, and as many descriptors as can be sent (`SCM_MAX_FD`).
const CONTROL: usize = 2048;

/// Not in the libc crate yet: `<asm-generic/socket.h>`, `<linux/socket.h>`.
const SO_PASSPIDFD: libc::c_int = 76;
const SCM_PIDFD: libc::c_int = 4;

/// The socket. Never blocks, closes on exec.
#[derive(Debug)]
pub struct Inbox {
    /// Taken when it is dropped.
    socket: Option<OwnedFd>,
    rights: Rights,
    /// A child that was late with the message that comes next.
    late: Option<Late>,
}

/// What a look at the socket has brought.
#[derive(Debug)]
pub enum Received {
    /// A message.
    Letter(Letter),
    /// Nothing is there.
    Nothing,
    /// The next one is being taken, and comes in a moment.
    Soon,
}

/// A message and its sender.
#[derive(Debug)]
pub struct Letter {
    /// What was sent; none of it if that was more than [`NOTE_MOST`].
    pub text: Option<Vec<u8>>,
    /// Who sent it.
    pub sender: Sender,
    /// A child that closes by its end what was sent along, to be reaped when it has ended.
    pub closer: Option<Launched>,
    _descriptors: Unwanted,
}

/// What was sent along with a message; closed with it, by a thread that may block.
#[derive(Debug, Default)]
struct Unwanted(Vec<OwnedFd>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            rights::NOTIFY.take(std::mem::take(&mut self.0));
        }
    }
}

/// The process that sent a message, as it was then.
#[derive(Debug, Default)]
pub struct Sender {
    /// Its process id, 0 if it is outside our pid namespace. Only a number, unless there is a pidfd.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    pidfd: Option<OwnedFd>,
    /// Its cgroup, where there was a pidfd that is not ours.
    taken: Option<Option<u64>>,
}

impl Inbox {
    /// Makes the socket: mode 0666, for agents run as any user. One that a dead daemon left behind is removed.
    ///
    /// # Errors
    /// [`Code::BadValue`](crate::model::error::Code::BadValue): the path is too long for a socket.
    /// [`Code::Unsupported`](crate::model::error::Code::Unsupported): something that is no socket of ours is in the way (and stays).
    ///
    /// # Kernel
    /// unix(7). `SO_PASSPIDFD`: Linux 6.5; before, a sender is only a number.
    pub fn bind(_claim: &StateDir, path: &Path) -> std::result::Result<Self, Error> {
        let address = address_of(path)?;
        if is_left_behind(path)? {
            unlink_stale(path)?;
        }
        let shown = path.display().to_string();
        let failed = |operation: &str, errno| Error::from(KernelError::new(operation, shown.as_str(), errno));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
            .map_err(|errno| failed("make socket", errno))?;
        rustix::net::sockopt::set_socket_passcred(&socket, true).map_err(|errno| failed("set up socket", errno))?;
        pass_pidfd(&socket, true);
        let rights = if can_take() { rights::can_refuse(&socket) } else { rights::refuse(&socket) };
        bind_at(&socket, path, &address, None, 0o666)?;
        Ok(Self { socket: Some(socket), rights, late: None })
    }

    /// Takes the next message, without waiting for one.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM: no child can be made for a message with descriptors. It stays where it is.
    pub fn receive(&mut self) -> Result<Received> {
        if let Some(late) = self.late.take() {
            let taking = late.look()?;
            return Ok(self.taken(taking));
        }
        if self.rights == Rights::Refusable {
            match self.has_descriptors() {
                None => return Ok(Received::Nothing),
                Some(true) => {
                    let taking = spawn::take_message(self.as_fd(), NOTE_MOST)?;
                    return Ok(self.taken(taking));
                }
                Some(false) => {}
            }
        }
        let mut text = vec![0; NOTE_MOST];
        let mut control = Control::default();
        let (length, flags) = match receive(self.as_fd(), &mut text, &mut control) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(errno) => return Err(KernelError::new("receive from", "the notify socket", errno)),
        };
        text.truncate(length);
        let text = (flags & libc::MSG_TRUNC == 0).then_some(text);
        Ok(Received::Letter(Letter { text, sender: control.sender, closer: None, _descriptors: control.descriptors }))
    }

    /// Says whether descriptors come with the next message; `None` if there is none, as another one may come at any moment.
    fn has_descriptors(&self) -> Option<bool> {
        // With a pidfd there would have to be room for it, and that would be used for a descriptor.
        pass_pidfd(self.as_fd(), false);
        let has = peek(self.as_fd());
        pass_pidfd(self.as_fd(), true);
        has
    }

    fn taken(&mut self, taking: Taking) -> Received {
        let taken = match taking {
            Taking::Done(taken) => taken,
            Taking::Nothing => return Received::Nothing,
            Taking::Late(late) => {
                self.late = Some(late);
                return Received::Soon;
            }
        };
        let sender = Sender { pid: taken.pid, uid: taken.uid, pidfd: None, taken: Some(taken.cgroup) };
        let text = (!taken.is_cut).then_some(taken.text);
        Received::Letter(Letter { text, sender, closer: Some(taken.child), _descriptors: Unwanted::default() })
    }

    /// Has the kernel refuse descriptors to senders, or not any more. Says whether it obeys.
    pub fn refuse_descriptors(&self, refuse: bool) -> bool {
        self.rights == Rights::Refusable && rights::set(self.as_fd(), refuse)
    }
}

/// Says whether a process may have as many descriptors as come with a message, and those that it has by birth: what there is no room
/// for would be closed where it is received.
fn can_take() -> bool {
    const DESCRIPTORS_MIN: u64 = 1024;
    getrlimit(Resource::Nofile).current.is_none_or(|most| most >= DESCRIPTORS_MIN)
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("it is taken when this is dropped").as_fd()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // What waits unread is closed with the socket.
        if self.rights != Rights::Refused {
            rights::NOTIFY.take(self.socket.take());
        }
    }
}

impl Sender {
    /// Returns the identity of the cgroup that it is in, or was in when it ended, as [`pidfd::cgroup_id`]; `None` where the kernel does
    /// not tell.
    #[must_use]
    pub fn cgroup_id(&self) -> Option<u64> {
        if let Some(taken) = self.taken {
            return taken;
        }
        pidfd::cgroup_id(self.pidfd.as_ref()?.as_fd()).ok().flatten()
    }

    /// Returns the path of the cgroup that it is in; `None` if it has ended and been reaped. On a kernel that gives no pidfd
    /// there is no proof that its number is still its own.
    #[must_use]
    pub fn cgroup(&self) -> Option<String> {
        if self.taken.is_some() {
            return None;
        }
        let path = pidfd::cgroup_of(self.pid).ok()??;
        // Unreaped now, so unreaped then: the number was its own all the time.
        let is_its_own = |pidfd: &OwnedFd| pidfd::pid_of(pidfd.as_fd()) == Ok(Some(self.pid));
        self.pidfd.as_ref().is_none_or(is_its_own).then_some(path)
    }
}

/// What came with a message.
#[derive(Default)]
struct Control {
    sender: Sender,
    descriptors: Unwanted,
}

/// Asks for pidfds; an older kernel gives none.
#[allow(unsafe_code)]
fn pass_pidfd(socket: impl AsFd, on: bool) {
    let socket = socket.as_fd();
    let on = libc::c_int::from(on);
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("the size of an int");
    // SAFETY: the option's value is an int that outlives the call, and its length is given.
    let answer = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSPIDFD, std::ptr::from_ref(&on).cast(), length)
    };
    if answer < 0 {
        tracing::debug!("the kernel gives no pidfds of senders: {}", std::io::Error::last_os_error());
    }
}

/// Says whether descriptors come with the next message of a socket that gives no pidfds; `None` if there is none. Nothing is
/// received: without room for them they stay in the socket.
#[allow(unsafe_code)]
fn peek(socket: BorrowedFd<'_>) -> Option<bool> {
    #[repr(C, align(8))]
    struct Space([u8; 32]);
    const { assert!(size_of::<libc::cmsghdr>() + size_of::<libc::ucred>() <= 32) };
    let (mut space, mut text) = (Space([0; 32]), [0_u8; 1]);
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: all zeros is a `msghdr` without a name, without parts and without control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    (header.msg_control, header.msg_controllen) = (space.0.as_mut_ptr().cast(), 32);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the header points to one buffer and one control buffer, each with its length, which outlive the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    (length >= 0).then_some(header.msg_flags & libc::MSG_CTRUNC != 0)
}

/// Receives one message; returns its length and flags.
#[allow(unsafe_code)]
fn receive(
    socket: BorrowedFd<'_>,
    text: &mut [u8],
    control: &mut Control,
) -> std::result::Result<(usize, libc::c_int), Errno> {
    #[repr(C, align(8))]
    struct Space([MaybeUninit<u8>; CONTROL]);
    let mut space = Space([MaybeUninit::uninit(); CONTROL]);
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: all zeros is a `msghdr` without a name, without parts and without control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = space.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    // SAFETY: the header points to one buffer and one control buffer, each with its length, which outlive the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let Ok(length) = usize::try_from(length) else {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    };
    // SAFETY: the kernel has filled in the control data and its length; the macros walk within that.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const header);
        while !next.is_null() {
            let found = *next;
            let data = libc::CMSG_DATA(next);
            let size = found.cmsg_len as usize - (data as usize - next as usize);
            control.take(found, data, size);
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
    }
    Ok((length, header.msg_flags))
}

impl Control {
    /// Takes one control message; what is not known has no descriptors in it.
    ///
    /// # Safety
    /// `data` is that of a control message that was just received, `size` bytes long, and its descriptors have no other owner.
    #[allow(unsafe_code)]
    unsafe fn take(&mut self, header: libc::cmsghdr, data: *const u8, size: usize) {
        let fds = size / size_of::<libc::c_int>();
        // SAFETY: an array of descriptors begins at `data`, which need not be aligned; the kernel opened each for us.
        let fd = |index: usize| unsafe {
            let fd = data.cast::<libc::c_int>().add(index).read_unaligned();
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
        };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => self.descriptors.0.extend((0..fds).filter_map(fd)),
            // A number below zero is the kernel's reason why there is none.
            (libc::SOL_SOCKET, SCM_PIDFD) if fds > 0 => self.sender.pidfd = fd(0),
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if size >= size_of::<libc::ucred>() => {
                // SAFETY: the message holds a `ucred`.
                let credentials = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                (self.sender.pid, self.sender.uid) = (credentials.pid, credentials.uid);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;
    use crate::kernel::socket::claim_state_dir;

    fn inbox() -> (tempfile::TempDir, std::path::PathBuf, StateDir, Inbox) {
        let dir = tempfile::tempdir().unwrap();
        let claim = claim_state_dir(&dir.path().join("state")).unwrap();
        let path = claim.path().join("notify");
        let inbox = Inbox::bind(&claim, &path).unwrap();
        (dir, path, claim, inbox)
    }

    fn next(inbox: &mut Inbox) -> Letter {
        match inbox.receive() {
            Ok(Received::Letter(letter)) => letter,
            other => panic!("{other:?}"),
        }
    }

    fn own_cgroup_id() -> u64 {
        let own = pidfd::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        pidfd::cgroup_id(own.as_fd()).unwrap().unwrap_or_default()
    }

    #[test]
    fn the_kernel_says_who_sent_a_message() {
        let (_dir, path, claim, mut inbox) = inbox();
        assert!(matches!(inbox.receive().unwrap(), Received::Nothing));
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o666, "agents of any user can send");
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1\nMAINPID=1", &path).unwrap();
        let letter = next(&mut inbox);
        assert_eq!(letter.text.as_deref(), Some(&b"READY=1\nMAINPID=1"[..]));
        assert_eq!(letter.sender.pid.unsigned_abs(), std::process::id());
        assert_eq!(letter.sender.cgroup(), pidfd::cgroup_of(letter.sender.pid).unwrap());
        assert!(matches!(inbox.receive().unwrap(), Received::Nothing));
        sender.send_to(&[b'x'; NOTE_MOST + 1], &path).unwrap();
        assert_eq!(next(&mut inbox).text, None, "too long to be read");
        drop(inbox);
        Inbox::bind(&claim, &path).expect("what a dead daemon left is replaced");
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_sender_that_was_reaped_is_not_mistaken_for_whoever_has_its_number() {
        let (_dir, path, _claim, mut inbox) = inbox();
        let socket = UnixDatagram::unbound().unwrap();
        let mut child = Command::new("true");
        // SAFETY: between fork and exec it does one system call.
        unsafe { child.pre_exec(move || socket.send_to(b"READY=1", &path).map(drop)) };
        assert!(child.status().unwrap().success());
        let letter = next(&mut inbox);
        assert_eq!(letter.sender.cgroup(), None, "nobody has its number");
        // Kernels that still give a pidfd of it know where it was.
        assert!(letter.sender.cgroup_id().is_none_or(|id| id == own_cgroup_id()));
    }
}

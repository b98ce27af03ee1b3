//! Descriptors that are sent over a socket (`SCM_RIGHTS`) although the receiver wants none.
//!
//! The kernel closes such a descriptor in the context of the thread that receives it, that reads past it, or that closes
//! the socket in which it waits. A close can block for as long as its sender likes: a TCP socket with `SO_LINGER` and a
//! peer that does not read, a file on a FUSE or NFS mount whose server does not answer. No thread that others depend on
//! may be that thread.
//!
//! | kernel | stream sockets | the notify socket |
//! | --- | --- | --- |
//! | 6.16 and later | `SO_PASSRIGHTS` 0: the sender gets EPERM, nothing arrives | taken by a child that ends with them; `SO_PASSRIGHTS` 0 while too many of those hang |
//! | before | peeked before they are read: what carries a descriptor stays unread, and the socket is closed by a [`Closers`] thread | received with room for all, closed by a [`Closers`] thread |
//!
//! `SO_PASSRIGHTS` is inherited from the listening socket at `connect`. A connection that was made before a service
//! manager handed the listening socket over may still hold descriptors, and is treated as on an older kernel.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

/// Not in the libc crate yet: `<asm-generic/socket.h>`.
const SO_PASSRIGHTS: libc::c_int = 83;

/// How many threads of one [`Closers`] may be in a close at once.
const THREADS_MAX: usize = 8;

/// How many descriptors may wait for one [`Closers`] before nothing is received any more that can bring others: four
/// messages with as many as one can carry (`SCM_MAX_FD`, 253).
const WAITING_MAX: usize = 1012;

/// Whether `SO_PASSRIGHTS` is left alone, as if the kernel did not have it.
static IS_OLD: AtomicBool = AtomicBool::new(false);

/// Has this process behave as on a kernel before 6.16. Only for tests of that path on a later kernel; it cannot be undone.
#[doc(hidden)]
pub fn act_as_before_6_16() {
    IS_OLD.store(true, Ordering::SeqCst);
}

/// Whether descriptors can come over a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// The kernel refuses them to the sender.
    Refused,
    /// They can, and the kernel refuses them when it is told to.
    Refusable,
    /// They can.
    Possible,
}

/// Has the kernel refuse descriptors from now on. Those that wait in the socket already stay in it.
///
/// # Kernel
/// Linux 6.16, `SO_PASSRIGHTS`.
pub fn refuse(socket: impl AsFd) -> Rights {
    if IS_OLD.load(Ordering::SeqCst) {
        return Rights::Possible;
    }
    set_int(socket.as_fd(), SO_PASSRIGHTS, 0).map_or(Rights::Possible, |()| Rights::Refused)
}

/// Says whether the kernel could refuse descriptors, and leaves it at that.
pub fn can_refuse(socket: impl AsFd) -> Rights {
    let is_known = !IS_OLD.load(Ordering::SeqCst) && int(socket.as_fd(), SO_PASSRIGHTS).is_ok();
    if is_known { Rights::Refusable } else { Rights::Possible }
}

/// Has the kernel refuse descriptors or not any more; says whether it does as it is told.
pub(super) fn set(socket: impl AsFd, refuse: bool) -> bool {
    set_int(socket.as_fd(), SO_PASSRIGHTS, i32::from(!refuse)).is_ok()
}

#[allow(unsafe_code)]
fn set_int(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("the size of an int");
    let value = std::ptr::from_ref(&value).cast();
    // SAFETY: the option's value is an int that outlives the call, and its length is given.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, length) };
    if answer < 0 { Err(last_errno()) } else { Ok(()) }
}

#[allow(unsafe_code)]
fn int(socket: BorrowedFd<'_>, option: libc::c_int) -> Result<libc::c_int, Errno> {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).expect("the size of an int");
    let pointer = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the kernel writes an int at most, as the length says, into storage that outlives the call.
    let answer = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, pointer, &raw mut length) };
    if answer < 0 { Err(last_errno()) } else { Ok(value) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// A connected stream socket from which no descriptor is received. Its close never blocks the thread that drops it.
#[derive(Debug)]
pub struct Stream {
    /// Taken when it is dropped.
    socket: Option<OwnedFd>,
    rights: Rights,
}

/// What a read of a [`Stream`] gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes; 0 at the end.
    Bytes(usize),
    /// What comes next carries descriptors: it stays unread, and nothing can be read any more.
    Descriptors,
}

impl Stream {
    /// Takes a connection that was just accepted.
    ///
    /// # Kernel
    /// `SO_OOBINLINE`: reading past an out-of-band byte would close what was sent with it.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        let rights = match int(socket.as_fd(), SO_PASSRIGHTS) {
            Ok(0) => Rights::Refused,
            _ => {
                refuse(&socket);
                // Credentials without room for them would look like descriptors.
                rustix::net::sockopt::set_socket_passcred(&socket, false).unwrap_or_default();
                rustix::net::sockopt::set_socket_oobinline(&socket, true).unwrap_or_default();
                Rights::Possible
            }
        };
        Self { socket: Some(socket), rights }
    }

    /// Reads without waiting.
    ///
    /// # Errors
    /// EAGAIN: nothing is there. What the kernel answered else.
    ///
    /// # Kernel
    /// unix(7). A peek without room for control data keeps the descriptors in the socket, and says by `MSG_CTRUNC` that
    /// there are any. It ends with the first part of the stream that carries one.
    pub fn read(&self, buffer: &mut [u8]) -> Result<Read, Errno> {
        let socket = self.as_fd();
        let mut length = buffer.len();
        if self.rights == Rights::Possible {
            let (peeked, flags) = peek(socket, buffer)?;
            if flags & libc::MSG_CTRUNC != 0 {
                return Ok(Read::Descriptors);
            }
            length = peeked;
        }
        rustix::net::recv(socket, &mut buffer[..length], RecvFlags::DONTWAIT).map(|(read, _)| Read::Bytes(read))
    }

    /// Writes as much as the other side has room for, without waiting.
    ///
    /// # Errors
    /// EAGAIN: there is no room. What the kernel answered else.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::net::send(self.as_fd(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("it is taken when this is dropped").as_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(socket) = self.socket.take() else { return };
        if self.rights == Rights::Possible {
            // After this nothing can arrive: what is unread now is all that the close has to free.
            rustix::net::shutdown(&socket, Shutdown::Both).unwrap_or_default();
            if rustix::io::ioctl_fionread(&socket) != Ok(0) {
                CLIENTS.take([socket]);
            }
        }
    }
}

/// Closes a listening socket, in which connections may wait whose senders did not wait to be accepted.
pub fn close_listener(socket: OwnedFd) {
    if int(socket.as_fd(), SO_PASSRIGHTS) != Ok(0) {
        CLIENTS.take([socket]);
    }
}

#[allow(unsafe_code)]
fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, libc::c_int), Errno> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeros is a `msghdr` without a name, without parts and without control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the header points to one buffer, with its length, which outlives the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    usize::try_from(length).map(|length| (length, header.msg_flags)).map_err(|_| last_errno())
}

/// Threads that close what may block. As many as are needed, up to a bound, and none when nothing is to be closed.
#[derive(Debug)]
pub struct Closers(Mutex<Closing>);

#[derive(Debug)]
struct Closing {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
}

/// Close what comes over connections of clients. Apart from [`NOTIFY`]: fewer people can reach their socket.
pub static CLIENTS: Closers = Closers::new();

/// Close what comes over the notify socket, to which everybody can send.
pub static NOTIFY: Closers = Closers::new();

impl Closers {
    const fn new() -> Self {
        Self(Mutex::new(Closing { waiting: VecDeque::new(), threads: 0 }))
    }

    /// Closes descriptors, each in a thread that may block.
    pub fn take(&'static self, descriptors: impl IntoIterator<Item = OwnedFd>) {
        let mut closing = self.lock();
        closing.waiting.extend(descriptors);
        self.add_thread(&mut closing);
    }

    /// Says whether more may be received that has to be closed. If not, all threads are in a close that does not end, and
    /// as many descriptors wait as may: what else there is stays in its socket.
    pub fn has_room(&self) -> bool {
        self.lock().waiting.len() < WAITING_MAX
    }

    fn add_thread(&'static self, closing: &mut Closing) {
        if closing.waiting.is_empty() || closing.threads >= THREADS_MAX {
            return;
        }
        let thread = std::thread::Builder::new().name("closer".to_owned()).stack_size(128 << 10);
        match thread.spawn(|| self.work()) {
            Ok(_) => closing.threads += 1,
            // They wait for the next that come, and none comes if there are too many.
            Err(error) => tracing::warn!("start a thread to close descriptors: {error}"),
        }
    }

    fn work(&'static self) {
        loop {
            let mut closing = self.lock();
            let Some(descriptor) = closing.waiting.pop_front() else {
                closing.threads -= 1;
                return;
            };
            // This one may block.
            self.add_thread(&mut closing);
            drop(closing);
            drop(descriptor);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Closing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

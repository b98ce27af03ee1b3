//! A keeper: a small process that holds the read ends of agents' output pipes and splices what comes into their spool files.
//!
//! ```text
//!   agent ── write ──► FIFO ── splice ──► spool file ◄── reads, gives space back ── daemon
//!                        └─────── keeper ──────┘
//!                                   ▲ socket: keep, drain, forget
//!                                   └──────────────── daemon, or the next one
//! ```
//!
//! It outlives the daemon, so that output goes on while none runs, and nobody's end loses what is in a pipe. It decides nothing and
//! parses nothing: it has one `epoll` and sleeps in it. It ends when it is asked to, or when no daemon is connected and no process
//! has any of its pipes open for writing.
//!
//! For each pipe there is a second keeper that only holds its read end. As long as either lives a write sees a reader, and neither's end
//! kills an agent by SIGPIPE. (The agent could hold its own read end. But asyncio, and whoever else polls for a reader's end, takes
//! bytes that are readable from its own stdout for that end.)
//!
//! Not here: which streams there are, what is in them, how long somebody waits for a drained pipe.
//!
//! # Invariants
//! * At most one keeper splices into a spool file: it holds a lock on the file, and one that does not answer is killed before another one
//!   takes its place.
//! * A byte is in its pipe until it is in its file: `splice` consumes what was written, also when the keeper is killed in it.
//! * Neither a full disk nor an error of a file loses a byte or ends the keeper: the pipe fills up, the agent's write waits, and the
//!   keeper tries again each second.

mod nest;
mod orders;
mod table;

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, IoSlice};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Resource, Signal, WaitId, WaitIdOptions, getrlimit, waitid};

pub use self::orders::{Order, Report};
use self::orders::{VERSION, WIRE};
use super::error::{KernelError, Result};
use super::socket::bind_at;
use super::{pidfd, spawn};

/// The name of the process, as `ps` shows it.
const NAME: &std::ffi::CStr = c"treeherd-keeper";

/// How long a keeper has to answer a new daemon before it is killed.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How many descriptors a keeper has besides those of streams: its sockets, its epoll, its timer, and those of one order that is
/// being received.
const DESCRIPTORS_OWN: u64 = 12;

/// How many agents one keeper can serve at most.
pub const AGENTS_MAX: usize = table::AGENTS_MAX;

/// The descriptors of one agent's output, both streams in the order stdout, stderr.
#[derive(Debug)]
pub struct Streams {
    /// Which agent: the inode number of its stdout FIFO, which is not given out again as long as the keeper has it open.
    pub token: u64,
    /// The read ends; they never block.
    pub pipes: [OwnedFd; 2],
    /// The spool files, open for writing at their ends and not for appending, which `splice` refuses.
    pub spools: [OwnedFd; 2],
}

/// A connection to a keeper. Readable when there are reports; closed by its end.
#[derive(Debug)]
pub struct Keeper {
    link: OwnedFd,
    process: OwnedFd,
    /// How many agents it can serve.
    pub capacity: usize,
    /// Whose pipes it had when this daemon greeted it.
    pub had: Vec<u64>,
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl Keeper {
    /// Starts a keeper, which listens at a path for daemons to come. A socket that is there already is removed.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM, EMFILE; what is wrong with the path.
    ///
    /// # Kernel
    /// unix(7), clone(2).
    pub fn start(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let failed = |operation: &str, errno| KernelError::new(operation, shown.as_str(), errno);
        let listener = bind(path)?;
        let (link, end) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| failed("make socket pair", errno))?;
        let orders = nest::Birth { uid: rustix::process::geteuid().as_raw(), capacity: capacity() };
        let descriptors = [listener.as_fd(), end.as_fd()];
        // SAFETY: `nest::main` makes system calls through rustix, has its own memory mapped, and drops no owned descriptor.
        #[allow(unsafe_code)]
        let process = unsafe { spawn::start_bare(NAME, nest::main, orders, &descriptors, None) }?.pidfd;
        drop((listener, end));
        let keeper = Self { link, process, capacity: 0, had: Vec::new() };
        keeper.greet(&shown)
    }

    /// Connects to a keeper that an earlier daemon has started; `None` if there is none any more. One that does not answer, or of
    /// another version, is killed: its pipes are then nobody's until another keeper has them.
    ///
    /// # Errors
    /// EACCES: the socket is somebody else's. EMFILE.
    ///
    /// # Kernel
    /// unix(7), `SO_PEERCRED`: of who called `listen`.
    pub fn find(path: &Path) -> Result<Option<Self>> {
        let shown = path.display().to_string();
        let failed = |operation: &str, errno| KernelError::new(operation, shown.as_str(), errno);
        let address =
            rustix::net::SocketAddrUnix::new(path).map_err(|errno| failed("name the keeper's socket", errno))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let link = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| failed("make socket", errno))?;
        match rustix::net::connect(&link, &address) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
            // EAGAIN: its queue is full, as it takes nobody in.
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(failed("connect to keeper", errno)),
        }
        rustix::io::ioctl_fionbio(&link, false).map_err(|errno| failed("set up connection to keeper", errno))?;
        let peer = getsockopt(&link, sockopt::PeerCredentials)
            .map_err(|errno| failed("identify keeper", Errno::from_raw_os_error(errno as i32)))?;
        if peer.uid() != rustix::process::geteuid().as_raw() {
            return Err(failed("connect to keeper", Errno::ACCESS).hint("another user listens there: remove it"));
        }
        let process = match pidfd::open(peer.pid()) {
            Ok(process) => process,
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(error),
        };
        let keeper = Self { link, process, capacity: 0, had: Vec::new() };
        Ok(keeper.greet(&shown).ok())
    }

    /// Asks a keeper for its version and capacity, and kills one that does not answer.
    fn greet(mut self, shown: &str) -> Result<Self> {
        let greeted = self.send(&Order::Greet { version: VERSION }).and_then(|()| self.answer(shown));
        match greeted {
            Ok(capacity) => {
                self.capacity = capacity;
                Ok(self)
            }
            Err(error) => {
                self.kill();
                Err(error)
            }
        }
    }

    fn answer(&mut self, shown: &str) -> Result<usize> {
        let failed = |errno| KernelError::new("await the answer of", format!("keeper at {shown}"), errno);
        let timeout = Timespec { tv_sec: i64::try_from(ANSWER_MAX.as_secs()).unwrap_or(1), tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(&self.link, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(failed(Errno::TIMEDOUT)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
            match self.receive()? {
                Some(Report::Ready { version: VERSION, capacity }) => return Ok(capacity),
                Some(Report::Ready { .. }) => return Err(failed(Errno::PROTO)),
                Some(Report::Has { token }) => self.had.push(token),
                // Of an order of the daemon before.
                Some(_) | None => {}
            }
        }
    }

    /// Returns its process id, unless it has ended and was reaped.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        pidfd::pid_of(self.process.as_fd()).ok().flatten()
    }

    /// Ends a keeper at once, and waits until it has ended.
    fn kill(&self) {
        if pidfd::signal(self.process.as_fd(), Signal::KILL).is_ok() {
            self.reap(ANSWER_MAX);
        }
    }

    fn wait_for_end(&self, most: Duration) -> bool {
        let timeout =
            Timespec { tv_sec: i64::try_from(most.as_secs()).unwrap_or(1), tv_nsec: most.subsec_nanos().into() };
        matches!(poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&timeout)), Ok(1..))
    }

    /// Waits until the keeper has ended, and reaps it if it is this process's child; says whether it has ended.
    pub fn reap(&self, most: Duration) -> bool {
        let has_ended = self.wait_for_end(most);
        if has_ended {
            // One that an earlier daemon started is somebody else's to reap.
            let reaped = WaitIdOptions::EXITED
                | WaitIdOptions::NOHANG
                | WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
            let _reaped = waitid(WaitId::PidFd(self.process.as_fd()), reaped);
        }
        has_ended
    }

    /// Gives the keeper the streams of an agent; of what it has already of this agent it
    /// takes spool files that are other ones. Waits while the keeper has much to read.
    ///
    /// # Errors
    /// EPIPE, ECONNRESET: it has ended.
    pub fn keep(&self, streams: &Streams) -> Result<()> {
        let [out, err] = &streams.pipes;
        let [out_file, err_file] = &streams.spools;
        let descriptors = [out.as_fd(), err.as_fd(), out_file.as_fd(), err_file.as_fd()];
        self.hand_over(&Order::Keep { token: streams.token }, &descriptors)
    }

    /// Has the keeper hold the pipes of an agent, which another one splices.
    ///
    /// # Errors
    /// As [`Keeper::keep`].
    pub fn hold(&self, streams: &Streams) -> Result<()> {
        let [out, err] = &streams.pipes;
        self.hand_over(&Order::Hold { token: streams.token }, &[out.as_fd(), err.as_fd()])
    }

    fn hand_over(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(descriptors));
        let bytes = order.encode();
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.link, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
        })
        .map(drop)
        .map_err(|errno| KernelError::new("hand streams to", "keeper", errno))
    }

    /// Has the keeper listen at a path again: its socket was deleted.
    ///
    /// # Errors
    /// As [`Keeper::keep`]; what is wrong with the path.
    pub fn listen_at(&self, path: &Path) -> Result<()> {
        self.hand_over(&Order::Listen, &[bind(path)?.as_fd()])
    }

    /// Sends an order that has no descriptors, without waiting.
    ///
    /// # Errors
    /// EPIPE, ECONNRESET: it has ended. EAGAIN: it does not read.
    pub fn send(&self, order: &Order) -> Result<()> {
        let bytes = order.encode();
        rustix::io::retry_on_intr(|| rustix::net::send(&self.link, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT))
            .map(drop)
            .map_err(|errno| KernelError::new("send an order to", "keeper", errno))
    }

    /// Takes a report, without waiting; `None` if there is none now.
    ///
    /// # Errors
    /// EPIPE: the keeper has ended.
    pub fn receive(&self) -> Result<Option<Report>> {
        let failed = |errno| KernelError::new("receive from", "keeper", errno);
        let mut bytes = [0; WIRE];
        match rustix::io::retry_on_intr(|| rustix::net::recv(&self.link, &mut bytes, RecvFlags::DONTWAIT)) {
            Ok((0, _)) => Err(failed(Errno::PIPE)),
            Ok(_) => Ok(Report::decode(&bytes)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }
}

/// Binds the socket of a keeper; one that is there already is removed.
fn bind(path: &Path) -> Result<OwnedFd> {
    let shown = path.display().to_string();
    let failed = |operation: &str, errno| KernelError::new(operation, shown.as_str(), errno);
    let address = rustix::net::SocketAddrUnix::new(path).map_err(|errno| failed("name the keeper's socket", errno))?;
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed("remove the socket of an earlier keeper at", errno)),
    }
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| failed("make socket", errno))?;
    // Only the keeper itself listens, so that its peers see its own credentials: nobody can connect before.
    bind_at(&listener, path, &address, None, 0o600)?;
    Ok(listener)
}

/// Returns how many agents a keeper can serve with the descriptors that a process may have.
fn capacity() -> usize {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let agents = most.saturating_sub(DESCRIPTORS_OWN) / 4;
    usize::try_from(agents).unwrap_or(AGENTS_MAX).min(AGENTS_MAX)
}

#[cfg(test)]
mod tests;

//! The signals that end a run: the first in order, the second at once.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::daemon;

/// How soon after a SIGHUP another one is the same: of a terminal that is closed, both the kernel and the shell tell.
const SAME_HANGUP_MAX: Duration = Duration::from_millis(200);

/// Requests to end: SIGINT, SIGTERM and SIGQUIT, and SIGHUP, unless it was ignored when this program started (nohup(1)).
pub(super) struct Requests {
    asked: UnixStream,
    hung_up: UnixStream,
    /// Where SIGHUP is ignored nobody writes here, and nobody closes it.
    _hang_up: UnixStream,
    last_hangup: Option<Instant>,
    count: u32,
}

impl Requests {
    /// Has the signals arrive as bytes from now on.
    pub(super) fn listen() -> std::io::Result<Self> {
        let (asked, ask) = UnixStream::pair()?;
        let (hung_up, hang_up) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGQUIT] {
            signal_hook::low_level::pipe::register(signal, ask.try_clone()?)?;
        }
        if !daemon::is_ignored(SIGHUP) {
            signal_hook::low_level::pipe::register(SIGHUP, hang_up.try_clone()?)?;
        }
        asked.set_nonblocking(true)?;
        hung_up.set_nonblocking(true)?;
        Ok(Self { asked, hung_up, _hang_up: hang_up, last_hangup: None, count: 0 })
    }

    /// Returns what becomes readable when one comes.
    pub(super) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.asked.as_fd(), self.hung_up.as_fd()]
    }

    /// Takes those that have come, and calls `each` with how many there were by then.
    pub(super) fn take<E>(&mut self, mut each: impl FnMut(u32) -> Result<(), E>) -> Result<(), E> {
        let mut new = arrived(&self.asked);
        if arrived(&self.hung_up) > 0 {
            let last = self.last_hangup.replace(Instant::now());
            new += usize::from(last.is_none_or(|last| last.elapsed() > SAME_HANGUP_MAX));
        }
        for _ in 0..new {
            self.count += 1;
            each(self.count)?;
        }
        Ok(())
    }
}

/// Takes the bytes that came in, and returns how many.
fn arrived(mut pipe: &UnixStream) -> usize {
    let mut bytes = [0; 64];
    pipe.read(&mut bytes).unwrap_or(0)
}

//! What epoll polls for the loop, and what it does not take: where the watches of this user are used up
//! (`fs.epoll.max_user_watches`) or the kernel has no memory, descriptors are polled by the clock until epoll takes them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use mio::Interest;
use mio::unix::SourceFd;

use super::client::Client;
use super::supervisor::{Source, Supervisor, now};
use crate::kernel::clock;
use crate::kernel::readiness::{Wish, ready_now};
use crate::model::event::Kind;
use crate::model::time::Monotonic;

/// How often they are polled: a death is reported within the promise.
const UNPOLLED_LOOK: Duration = Duration::from_millis(100);

/// The descriptors that epoll does not poll.
#[derive(Debug, Default)]
pub(super) struct Unpolled {
    wanted: BTreeMap<RawFd, (Source, Interest)>,
    /// When they are polled next.
    next: Monotonic,
}

impl Unpolled {
    /// Returns when they are polled next, if there are any.
    pub fn due(&self) -> Option<Monotonic> {
        (!self.wanted.is_empty()).then_some(self.next)
    }
}

impl Supervisor {
    /// Has a descriptor polled until [`Supervisor::stop_polling`].
    pub(super) fn poll_for(&mut self, descriptor: &impl AsFd, source: Source, interest: Interest) {
        let fd = descriptor.as_fd().as_raw_fd();
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&fd), source.token(), interest) {
            self.poll_by_the_clock(fd, source, interest, &error);
        }
    }

    /// Changes what a descriptor is polled for, and has it reported again if it is ready.
    pub(super) fn poll_again(&mut self, descriptor: &impl AsFd, source: Source, interest: Interest) {
        let fd = descriptor.as_fd().as_raw_fd();
        if let Some((_, old)) = self.unpolled.wanted.get_mut(&fd) {
            *old = interest;
        } else if let Err(error) = self.poll.registry().reregister(&mut SourceFd(&fd), source.token(), interest) {
            self.poll_by_the_clock(fd, source, interest, &error);
        }
    }

    /// Polls a descriptor no more. To be called before it is closed.
    pub(super) fn stop_polling(&mut self, descriptor: &impl AsFd) {
        let fd = descriptor.as_fd().as_raw_fd();
        if self.unpolled.wanted.remove(&fd).is_none()
            && let Err(error) = self.poll.registry().deregister(&mut SourceFd(&fd))
        {
            tracing::warn!("epoll_ctl: stop polling descriptor {fd}: {error}");
        }
    }

    /// Reported when it begins, and not for each descriptor.
    fn poll_by_the_clock(&mut self, fd: RawFd, source: Source, interest: Interest, error: &std::io::Error) {
        if self.unpolled.wanted.is_empty() {
            let now = now();
            let key = if let Source::Process(key) = source { Some(key) } else { None };
            let mut event = self.machine.event_about(now.mono, now.wall, Kind::Unwatched, key);
            event.message = format!(
                "epoll_ctl: {error}; descriptors that it does not take are polled every {UNPOLLED_LOOK:?}; raise \
                 fs.epoll.max_user_watches, or end agents"
            );
            self.publish(event);
            self.unpolled.next = clock::monotonic() + UNPOLLED_LOOK;
        }
        self.unpolled.wanted.insert(fd, (source, interest));
    }

    /// Polls what epoll has not taken, if it is time for that, and offers it to epoll again. Returns what is ready.
    pub(super) fn unpolled_ready(&mut self) -> Vec<Source> {
        let now = clock::monotonic();
        if self.unpolled.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.unpolled.next = now + UNPOLLED_LOOK;
        // If it takes one, it may take others.
        while let Some((fd, (source, interest))) = self.unpolled.wanted.pop_first() {
            if self.poll.registry().register(&mut SourceFd(&fd), source.token(), interest).is_err() {
                self.unpolled.wanted.insert(fd, (source, interest));
                break;
            }
        }
        let wish = |(fd, (_, interest)): (&RawFd, &(Source, Interest))| Wish {
            fd: *fd,
            is_urgent: interest.is_priority(),
            is_output: interest.is_writable(),
        };
        let wishes: Vec<Wish> = self.unpolled.wanted.iter().map(wish).collect();
        let mut sources = Vec::new();
        for ready in ready_now(&wishes) {
            let source = self.unpolled.wanted[&wishes[ready.at].fd].0;
            if let (Source::Client(id), true) = (source, ready.has_hung_up) {
                self.clients.entry(id).and_modify(Client::hang_up);
            }
            sources.push(source);
        }
        sources
    }
}

//! Which of some descriptors are ready now: poll(2), which needs no watch in the kernel as epoll does.

use std::os::fd::RawFd;

/// What a descriptor is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The descriptor. One that is not open is never ready.
    pub fd: RawFd,
    /// Whether it is asked for exceptional conditions (`POLLPRI`) in the place of input.
    pub is_urgent: bool,
    /// Whether it is asked for room for output, too.
    pub is_output: bool,
}

/// What poll(2) answers about a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The place of its wish.
    pub at: usize,
    /// Whether the other side has closed both directions.
    pub has_hung_up: bool,
}

/// Lists those descriptors that are ready, without waiting.
///
/// # Kernel
/// poll(2).
#[must_use]
#[allow(unsafe_code)]
pub fn ready_now(wishes: &[Wish]) -> Vec<Ready> {
    let events = |wish: &Wish| {
        let input = if wish.is_urgent { libc::POLLPRI } else { libc::POLLIN };
        input | if wish.is_output { libc::POLLOUT } else { 0 }
    };
    let mut fds: Vec<libc::pollfd> =
        wishes.iter().map(|wish| libc::pollfd { fd: wish.fd, events: events(wish), revents: 0 }).collect();
    let Ok(count) = libc::nfds_t::try_from(fds.len()) else { return Vec::new() };
    // SAFETY: the kernel reads and writes as many entries as there are, during the call; it takes any number for a descriptor.
    if unsafe { libc::poll(fds.as_mut_ptr(), count, 0) } <= 0 {
        return Vec::new();
    }
    let is_ready = |fd: &libc::pollfd| fd.revents != 0 && fd.revents & libc::POLLNVAL == 0;
    let ready = |(at, fd): (usize, &libc::pollfd)| Ready { at, has_hung_up: fd.revents & libc::POLLHUP != 0 };
    fds.iter().enumerate().filter(|(_, fd)| is_ready(fd)).map(ready).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_ready_is_listed_and_what_is_not_open_is_not() {
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let mut wishes: Vec<Wish> =
            pairs.iter().map(|(ours, _)| Wish { fd: ours.as_raw_fd(), is_urgent: false, is_output: false }).collect();
        wishes.push(Wish { fd: i32::MAX, is_urgent: true, is_output: true });
        assert_eq!(ready_now(&wishes), []);
        (&pairs[1].1).write_all(b"x").unwrap();
        pairs[2].1.shutdown(std::net::Shutdown::Both).unwrap();
        let ready = [Ready { at: 1, has_hung_up: false }, Ready { at: 2, has_hung_up: true }];
        assert_eq!(ready_now(&wishes), ready);
    }
}

//! The clocks, and how long a thread had to wait for a CPU.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::time::{ClockId, clock_gettime};

use super::error::{KernelError, Result};
use crate::model::time::{Monotonic, Wall};

/// Reads the monotonic clock that goes on while the machine sleeps (`CLOCK_BOOTTIME`).
///
/// # Kernel
/// Linux 2.6.39, clock_gettime(2).
#[must_use]
pub fn monotonic() -> Monotonic {
    Monotonic(nanoseconds(clock_gettime(ClockId::Boottime)))
}

/// Reads the wall clock (`CLOCK_REALTIME`). It can be set, and so go backwards.
#[must_use]
pub fn wall() -> Wall {
    Wall(nanoseconds(clock_gettime(ClockId::Realtime)))
}

/// Returns the identity of this boot: the monotonic clock's readings mean something as long as it is the same.
///
/// # Errors
/// What the read answered: /proc is not mounted.
///
/// # Kernel
/// random(4), `/proc/sys/kernel/random/boot_id`.
pub fn boot_id() -> Result<String> {
    let file = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(file).map_err(|error| KernelError::from_io("read", file, &error))?;
    Ok(text.trim().to_owned())
}

fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// How long one thread was ready to run and had no CPU: what part of a delay is the machine's and not ours.
#[derive(Debug)]
pub struct RunDelay {
    schedstat: File,
}

impl RunDelay {
    /// Opens the figures of the calling thread; they stay that thread's, whoever reads them. `None` where the kernel keeps
    /// none.
    ///
    /// # Kernel
    /// Linux 3.17 (`/proc/thread-self`), with `CONFIG_SCHED_INFO`; sched-stats.rst, "/proc/PID/schedstat".
    #[must_use]
    pub fn of_this_thread() -> Option<Self> {
        let delay = Self { schedstat: File::open("/proc/thread-self/schedstat").ok()? };
        delay.nanoseconds().map(|_| delay)
    }

    /// Returns the time that the thread has spent waiting for a CPU since it began, in nanoseconds; `None` once it has ended.
    #[must_use]
    pub fn nanoseconds(&self) -> Option<u64> {
        let mut buffer = [0; 96];
        let length = self.schedstat.read_at(&mut buffer, 0).ok()?;
        parse(std::str::from_utf8(buffer.get(..length)?).ok()?)
    }
}

/// Takes the second of the three figures: time on a CPU, time waiting for one, number of turns.
fn parse(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_does_not_go_backwards_and_the_wall_clock_is_of_this_age() {
        let first = monotonic();
        assert!(monotonic() >= first && first.0 > 0);
        assert!(wall().0 > 1_700_000_000_000_000_000);
    }

    #[test]
    fn the_run_delay_is_the_second_figure_and_only_grows() {
        assert_eq!(parse("12 34 56\n"), Some(34));
        assert_eq!(parse(""), None);
        if let Some(delay) = RunDelay::of_this_thread() {
            let first = delay.nanoseconds().unwrap();
            std::thread::yield_now();
            assert!(delay.nanoseconds().unwrap() >= first);
        }
    }
}

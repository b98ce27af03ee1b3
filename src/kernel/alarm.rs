//! An alarm: a time after which a thread that waits for it is woken, unless it is put off before.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::{self, Errno};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::error::{KernelError, Result};

/// An alarm that is not set yet. To set it and to put it off costs a system call each, and wakes nobody.
///
/// # Kernel
/// Linux 2.6.25, timerfd_create(2).
#[derive(Debug)]
pub struct Alarm {
    timer: OwnedFd,
}

impl Alarm {
    /// Makes one.
    ///
    /// # Errors
    /// EMFILE, ENFILE: no descriptor is left.
    pub fn new() -> Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC);
        timer.map(|timer| Self { timer }).map_err(|errno| KernelError::new("timerfd_create", "an alarm", errno))
    }

    /// Has it go off after this time, from a nanosecond (less is one) to `i64::MAX` seconds; and not at the time that was set before.
    pub fn set(&self, after: Duration) {
        self.write(after.max(Duration::from_nanos(1)));
    }

    /// Has it not go off, if it has not yet.
    pub fn put_off(&self) {
        self.write(Duration::ZERO);
    }

    fn write(&self, after: Duration) {
        let it_value = after.try_into().expect("the seconds fit into an i64");
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        // The descriptor is a timer, and the time is one: there is nothing else to fail.
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).expect("a timer can be set");
    }

    /// Blocks until it goes off.
    pub fn wait(&self) {
        let mut times = [0; size_of::<u64>()];
        while io::read(&self.timer, &mut times) == Err(Errno::INTR) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::clock;

    #[test]
    fn an_alarm_goes_off_once_at_the_last_time_that_was_set() {
        let (alarm, began) = (Alarm::new().unwrap(), clock::monotonic());
        alarm.set(Duration::ZERO);
        alarm.wait();
        alarm.set(Duration::from_nanos(1));
        alarm.put_off();
        alarm.set(Duration::from_millis(20));
        alarm.wait();
        assert!(clock::monotonic().since(began) >= Duration::from_millis(20), "what was put off has gone off");
    }
}

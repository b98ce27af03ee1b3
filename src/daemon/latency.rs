//! How late deaths are told: from the kernel's fact to the event.
//!
//! The kernel does not say when a pidfd became readable. What can be said is an upper bound, and that is what is measured: if
//! the poll had to wait, then the loop's own wait for a CPU since (its run-queue delay) and everything until the event was
//! handed to the clients; if the poll returned at once, everything since the poll before it, as the death may have come
//! right after that one.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::api::method::Latency;
use crate::kernel::clock::{self, RunDelay};
use crate::model::time::Monotonic;

/// A poll that took less than this did not wait for anything.
const NO_WAIT: Duration = Duration::from_micros(30);

/// The measuring device.
#[derive(Debug)]
pub(super) struct Detection {
    histogram: Histogram<u64>,
    bound: Duration,
    late: u64,
    delay: Option<RunDelay>,
    /// From when on a fact that this turn handles can date.
    since: Monotonic,
    /// When the poll before this turn returned.
    polled: Monotonic,
    before_poll: Option<(Monotonic, Option<u64>)>,
    /// Deaths of this turn that are not told yet.
    pending: u64,
}

impl Detection {
    pub fn new(bound: Duration) -> Self {
        let histogram = Histogram::new_with_bounds(1, 3_600_000_000, 2).expect("the bounds are constants and valid");
        let now = clock::monotonic();
        Self {
            histogram,
            bound,
            late: 0,
            delay: RunDelay::of_this_thread(),
            since: now,
            polled: now,
            before_poll: None,
            pending: 0,
        }
    }

    pub fn set_bound(&mut self, bound: Duration) {
        self.bound = bound;
    }

    pub fn before_poll(&mut self) {
        self.before_poll = Some((clock::monotonic(), self.delay.as_ref().and_then(RunDelay::nanoseconds)));
    }

    /// Notes that the poll returned; `was_full` says that it may have left facts for the next one.
    pub fn after_poll(&mut self, now: Monotonic, was_full: bool) {
        let Some((before, delay_before)) = self.before_poll.take() else { return };
        let delay_now = self.delay.as_ref().and_then(RunDelay::nanoseconds);
        if !was_full {
            self.since = if now.since(before) < NO_WAIT {
                self.polled
            } else {
                let delayed = delay_now.zip(delay_before).map_or(0, |(now, before)| now.saturating_sub(before));
                now - Duration::from_nanos(delayed)
            };
        }
        self.polled = now;
    }

    /// A death was read in this turn.
    pub fn note_death(&mut self) {
        self.pending += 1;
    }

    /// Says how many deaths are not told yet.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// What this turn had to tell is told. Returns how late it was, if that was too late.
    pub fn told(&mut self) -> Option<Duration> {
        if self.pending == 0 {
            return None;
        }
        let latency = clock::monotonic().since(self.since);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        self.histogram.saturating_record_n(micros, self.pending);
        let is_late = latency > self.bound;
        if is_late {
            self.late += self.pending;
        }
        self.pending = 0;
        is_late.then_some(latency)
    }

    pub fn report(&self) -> Latency {
        let buckets = self.histogram.iter_log(1, 2.0).filter(|step| step.count_since_last_iteration() > 0);
        Latency {
            count: self.histogram.len(),
            p50_us: self.histogram.value_at_quantile(0.5),
            p99_us: self.histogram.value_at_quantile(0.99),
            max_us: self.histogram.max(),
            late: self.late,
            histogram: buckets.map(|step| (step.value_iterated_to() + 1, step.count_since_last_iteration())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_counted_and_the_late_ones_are_told() {
        let mut detection = Detection::new(Duration::ZERO);
        detection.before_poll();
        detection.after_poll(clock::monotonic(), false);
        assert_eq!(detection.told(), None, "nothing died");
        detection.note_death();
        detection.note_death();
        assert!(detection.told().is_some(), "everything is later than a bound of zero");
        let report = detection.report();
        assert_eq!((report.count, report.late), (2, 2));
        assert_eq!(report.histogram.values().sum::<u64>(), 2);
    }
}

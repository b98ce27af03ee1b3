//! How late the end of a run is told: from the fact to the event, for each cause.
//!
//! The kernel does not say when a pidfd became readable, or a cgroup empty. What can be said is an upper bound, and that is
//! what is measured: if the poll had to wait, then the loop's own wait for a CPU since (its run-queue delay) and everything until
//! the event was handed to the clients; if the poll returned at once, everything since the poll before it, as the fact may have
//! come right after that one. A deadline that was missed is a fact from the deadline on.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::api::method::Latency;
use crate::kernel::clock::{self, RunDelay};
use crate::model::status::Cause;
use crate::model::time::Monotonic;

/// A poll that took less than this did not wait for anything.
const NO_WAIT: Duration = Duration::from_micros(30);

/// A latency beyond it is counted as this one.
const LONGEST: Duration = Duration::from_secs(3_600);

/// The measuring device.
#[derive(Debug)]
pub(super) struct Detection {
    all: Series,
    causes: BTreeMap<Cause, Series>,
    bound: Duration,
    delay: Option<RunDelay>,
    /// When the poll of this turn began, and the run-queue delay until then, in nanoseconds.
    before_poll: (Monotonic, Option<u64>),
    /// When it returned.
    polled: Monotonic,
    /// Whether it may have left facts for the next one.
    was_full: bool,
    /// From when on a fact that this turn handles can date; found out when one is there.
    since: Option<Monotonic>,
    /// The ends of this turn that are not told yet, and from when on each can date.
    pending: Vec<(Cause, Monotonic)>,
}

/// What was told too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late {
    pub cause: Cause,
    pub latency: Duration,
}

/// The latencies of one kind, in microseconds.
#[derive(Debug)]
struct Series {
    /// As large as its longest latency needs.
    histogram: Histogram<u32>,
    late: u64,
}

impl Series {
    fn new() -> Self {
        Self { histogram: Histogram::new(2).expect("so few digits are valid"), late: 0 }
    }

    fn record(&mut self, latency: Duration, bound: Duration) {
        let micros = latency.min(LONGEST).as_micros();
        self.histogram
            .record(u64::try_from(micros).unwrap_or(u64::MAX).max(1))
            .expect("it grows as far as the longest needs");
        self.late += u64::from(latency > bound);
    }

    fn report(&self) -> Latency {
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

impl Detection {
    pub fn new(bound: Duration) -> Self {
        let now = clock::monotonic();
        Self {
            all: Series::new(),
            causes: BTreeMap::new(),
            bound,
            delay: None,
            before_poll: (now, None),
            polled: now,
            was_full: false,
            since: Some(now),
            pending: Vec::new(),
        }
    }

    /// The loop is turned by the calling thread from now on: it is whose delay counts.
    pub fn is_turned_here(&mut self) {
        self.delay = RunDelay::of_this_thread();
        // What is left of another thread's figures says nothing.
        self.before_poll.1 = None;
    }

    pub fn set_bound(&mut self, bound: Duration) {
        self.bound = bound;
    }

    pub fn before_poll(&mut self) {
        // What a full poll has left for this one dates from as long ago as what it brought.
        self.since = self.was_full.then(|| self.since());
        self.before_poll = (clock::monotonic(), self.run_delay());
    }

    /// Notes that the poll returned; `is_full` says that it may have left facts for the next one.
    pub fn after_poll(&mut self, now: Monotonic, is_full: bool) {
        let has_waited = now.since(self.before_poll.0) >= NO_WAIT;
        if !has_waited {
            self.since.get_or_insert(self.polled);
        }
        (self.polled, self.was_full) = (now, is_full);
    }

    /// Returns from when on a fact that this turn handles can date.
    pub fn since(&mut self) -> Monotonic {
        if let Some(since) = self.since {
            return since;
        }
        let (before, delay_before) = self.before_poll;
        let delayed = self.run_delay().zip(delay_before).map_or(0, |(now, before)| now.saturating_sub(before));
        // A delay since the poll is in there, too: but no fact is older than the poll.
        let since = (self.polled - Duration::from_nanos(delayed)).max(before);
        *self.since.insert(since)
    }

    fn run_delay(&self) -> Option<u64> {
        self.delay.as_ref().and_then(RunDelay::nanoseconds)
    }

    /// A deadline is being handled: what follows from it in this turn dates from then, or from before.
    pub fn note_deadline(&mut self, due: Monotonic) {
        self.since = Some(self.since().min(due));
    }

    /// The end of a run was found in this turn.
    pub fn note_end(&mut self, cause: Cause) {
        let since = self.since();
        self.pending.push((cause, since));
    }

    /// Says how many ends are not told yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What this turn had to tell is told. Returns the worst of what was too late.
    pub fn told(&mut self) -> Option<Late> {
        if self.pending.is_empty() {
            return None;
        }
        let now = clock::monotonic();
        let mut worst = None;
        for (cause, since) in self.pending.drain(..) {
            let latency = now.since(since);
            self.all.record(latency, self.bound);
            self.causes.entry(cause).or_insert_with(Series::new).record(latency, self.bound);
            if latency > worst.map_or(self.bound, |worst: Late| worst.latency) {
                worst = Some(Late { cause, latency });
            }
        }
        worst
    }

    /// Tells the latencies of all ends together.
    pub fn report(&self) -> Latency {
        self.all.report()
    }

    /// Tells the latencies of each cause.
    pub fn report_by_cause(&self) -> BTreeMap<Cause, Latency> {
        self.causes.iter().map(|(cause, series)| (*cause, series.report())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_counted_by_cause_and_the_worst_late_one_is_told() {
        let mut detection = Detection::new(Duration::ZERO);
        detection.before_poll();
        detection.after_poll(clock::monotonic(), false);
        assert_eq!(detection.told(), None, "nothing ended");
        detection.note_end(Cause::Exit);
        detection.note_end(Cause::Exit);
        detection.note_deadline(clock::monotonic() - Duration::from_secs(2));
        detection.note_end(Cause::Timeout);
        let late = detection.told().unwrap();
        assert!(late.cause == Cause::Timeout && late.latency >= Duration::from_secs(2), "{late:?}");
        let (all, causes) = (detection.report(), detection.report_by_cause());
        assert_eq!((all.count, all.late), (3, 3), "everything is later than a bound of zero");
        assert_eq!(all.histogram.values().sum::<u64>(), 3);
        // As exact as two digits are.
        assert!(all.max_us >= 2_000_000 && causes[&Cause::Timeout].p50_us >= 1_980_000, "{all:?}");
        assert_eq!((causes[&Cause::Exit].count, causes[&Cause::Timeout].count), (2, 1));
        assert_eq!(detection.told(), None, "nothing is told twice");
    }
}

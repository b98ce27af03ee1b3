//! The arithmetic of restarts: whether, and after how long. Example tables are the tests below.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::spec::{Restart, RestartPolicy};
use crate::model::time::Monotonic;

/// What an agent's earlier runs mean for the next restart.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Restarts in a row without a healthy run between them.
    pub streak: u32,
    /// When the restarts of the last period were decided.
    pub recent: VecDeque<Monotonic>,
}

impl History {
    /// Counts the restarts that the policy's present period holds.
    pub fn used(&self, restart: &Restart, now: Monotonic) -> usize {
        self.recent.iter().filter(|at| now.since(**at) < restart.period).count()
    }
}

/// Whether a run that ended on its own is followed by another.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    /// After this delay, as the n-th restart in a row.
    Again { delay: Duration, attempt: u32 },
    /// The policy does not ask for it.
    No,
    /// The policy asks for it, and there were too many.
    GiveUp,
}

/// Decides about a run that ended on its own after `ran`, well or badly.
pub(super) fn decide(
    restart: &Restart,
    history: &mut History,
    success: bool,
    ran: Duration,
    now: Monotonic,
    chance: f64,
) -> Decision {
    let asked = match restart.policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => !success,
        RestartPolicy::Always => true,
    };
    if !asked {
        return Decision::No;
    }
    if ran >= restart.healthy_after {
        history.streak = 0;
    }
    while history.recent.front().is_some_and(|at| now.since(*at) >= restart.period) {
        history.recent.pop_front();
    }
    if history.recent.len() >= restart.intensity as usize {
        return Decision::GiveUp;
    }
    let delay = delay(restart, history.streak, chance);
    history.streak = history.streak.saturating_add(1);
    history.recent.push_back(now);
    Decision::Again { delay, attempt: history.streak }
}

/// Returns the delay before the restart that follows `streak` others in a row; `chance` is 0 to 1.
fn delay(restart: &Restart, streak: u32, chance: f64) -> Duration {
    if restart.delay.is_zero() {
        // Nothing times a growth beyond all numbers is no number.
        return Duration::ZERO;
    }
    let most = restart.max_delay.as_secs_f64();
    let grown = restart.delay.as_secs_f64() * restart.factor.powf(f64::from(streak));
    let base = if grown.is_finite() { grown.min(most) } else { most };
    let spread = 1.0 + restart.jitter * (2.0 * chance - 1.0);
    Duration::try_from_secs_f64((base * spread).clamp(0.0, most)).unwrap_or(restart.max_delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(policy: RestartPolicy) -> Restart {
        Restart { policy, jitter: 0.0, ..Restart::default() }
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let restart = policy(RestartPolicy::Always);
        let table = [(0, 1.0), (1, 2.0), (2, 4.0), (5, 32.0), (6, 60.0), (7, 60.0), (4_000_000_000, 60.0)];
        for (streak, seconds) in table {
            assert_eq!(delay(&restart, streak, 0.5), Duration::from_secs_f64(seconds), "after {streak}");
        }
    }

    #[test]
    fn jitter_spreads_both_ways_and_never_beyond_the_longest() {
        let restart = Restart { jitter: 0.5, ..policy(RestartPolicy::Always) };
        assert_eq!(delay(&restart, 0, 0.0), Duration::from_millis(500));
        assert_eq!(delay(&restart, 0, 1.0), Duration::from_millis(1500));
        assert_eq!(delay(&restart, 20, 1.0), Duration::from_secs(60));
    }

    #[test]
    fn a_delay_of_zero_stays_zero() {
        let restart = Restart { delay: Duration::ZERO, ..policy(RestartPolicy::Always) };
        for streak in [0, 9, 1_024, 4_000_000_000] {
            assert_eq!(delay(&restart, streak, 1.0), Duration::ZERO, "after {streak}");
        }
    }

    #[test]
    fn the_policy_decides_by_outcome() {
        use RestartPolicy::{Always, Never, OnFailure};
        let table = [
            (Never, false, false),
            (Never, true, false),
            (OnFailure, false, true),
            (OnFailure, true, false),
            (Always, true, true),
            (Always, false, true),
        ];
        for (when, success, again) in table {
            let decision = decide(&policy(when), &mut History::default(), success, Duration::ZERO, Monotonic(0), 0.5);
            assert_eq!(decision != Decision::No, again, "{when:?} success={success}");
        }
    }

    #[test]
    fn a_healthy_run_resets_the_delay_and_the_period_forgets() {
        let restart = Restart { intensity: 2, period: Duration::from_secs(100), ..policy(RestartPolicy::Always) };
        let mut history = History::default();
        let mut at = |seconds: u64, ran: u64| {
            let now = Monotonic(seconds * 1_000_000_000);
            decide(&restart, &mut history, false, Duration::from_secs(ran), now, 0.5)
        };
        assert_eq!(at(0, 0), Decision::Again { delay: Duration::from_secs(1), attempt: 1 });
        assert_eq!(at(1, 0), Decision::Again { delay: Duration::from_secs(2), attempt: 2 });
        assert_eq!(at(2, 0), Decision::GiveUp, "two in 100 s are allowed");
        assert_eq!(
            at(150, 60),
            Decision::Again { delay: Duration::from_secs(1), attempt: 1 },
            "healthy for 60 s, and both forgotten"
        );
    }
}

//! What an agent may not do: each refusal is reported at first, then they are counted, so that nobody can turn the journal over
//! with them.
//!
//! An agent's first [`BURST`] refusals are events of their own. Those that follow are reported together after 1 s, 2 s, 4 s and so on,
//! after 5 minutes at most, with their number. When such an interval goes by without one, the account is closed.

use std::time::Duration;

use super::input::{AgentKey, Caller};
use super::{Machine, Step, Timer};
use crate::model::error::Error;
use crate::model::event::Kind;
use crate::model::time::Monotonic;

/// How many refusals of one agent are reported one by one.
const BURST: u32 = 32;

/// How long refusals are gathered at first, and at most.
const GATHERED: Duration = Duration::from_secs(1);
const GATHERED_MOST: Duration = Duration::from_secs(300);

/// The refusals of one agent.
#[derive(Debug)]
pub(super) struct Refusals {
    reported: u32,
    /// How many are not reported, and what the last one was.
    gathered: u64,
    last: String,
    wait: Duration,
    due: Monotonic,
}

impl Machine {
    /// Reports an overreach, or counts it.
    pub(super) fn publish_forbidden(&mut self, step: &mut Step, caller: &Caller, error: &Error) {
        let message = format!("{}: {}", caller.name, error.message);
        let key = caller.agent.unwrap_or(AgentKey(0));
        let refusals = self.refusals.entry(key).or_insert_with(|| {
            let due = step.now.mono + GATHERED;
            self.timers.insert((due, Timer::Refusals(key)));
            Refusals { reported: 0, gathered: 0, last: String::new(), wait: GATHERED, due }
        });
        if refusals.reported < BURST {
            refusals.reported += 1;
            return self.publish(step, Kind::Forbidden, caller.agent, |event| event.message = message);
        }
        refusals.gathered += 1;
        refusals.last = message;
    }

    /// Reports what was gathered when its time has come, or closes the account.
    pub(super) fn settle_refusals(&mut self, step: &mut Step) {
        let due = self.refusals.iter().filter(|(_, refusals)| refusals.due <= step.now.mono);
        for key in due.map(|(key, _)| *key).collect::<Vec<_>>() {
            let Some(mut refusals) = self.refusals.remove(&key) else { continue };
            if refusals.gathered == 0 {
                continue;
            }
            let count = std::mem::take(&mut refusals.gathered);
            let message = format!("{count} more requests were refused, the last one: {}", refusals.last);
            refusals.wait = (refusals.wait * 2).min(GATHERED_MOST);
            refusals.due = step.now.mono + refusals.wait;
            self.timers.insert((refusals.due, Timer::Refusals(key)));
            self.refusals.insert(key, refusals);
            self.publish(step, Kind::Forbidden, Some(key), |event| {
                event.message = message;
                event.count = Some(count);
            });
        }
    }
}

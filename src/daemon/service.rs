//! What a service manager is told of the daemon: ready, how many agents, alive, reloading, stopping (sd_notify(3)). Where there
//! is none, all of it is silence. A program that uses the library speaks for itself: nothing of this is done there.

use std::time::Duration;

use sd_notify::NotifyState;

use super::supervisor::{Chore, Supervisor};
use crate::kernel::clock;
use crate::machine::Counts;
use crate::model::event::{Event, Kind};
use crate::model::status::State;

/// How long the counts may be behind: a storm of events is one message a second to the service manager.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// The service manager, as far as it listens.
#[derive(Debug)]
pub(super) struct Service {
    /// How often it wants to hear that the loop turns.
    heartbeat: Option<Duration>,
    /// What it was told last.
    status: String,
    has_status_due: bool,
}

impl Service {
    /// Finds out whether somebody listens: `NOTIFY_SOCKET`, `WATCHDOG_USEC`.
    pub fn find() -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET")?;
        // Twice as often as asked for, as sd_watchdog_enabled(3) recommends.
        let heartbeat = sd_notify::watchdog_enabled().map(|interval| interval / 2).filter(|half| !half.is_zero());
        Some(Self { heartbeat, status: String::new(), has_status_due: false })
    }
}

fn tell(states: &[NotifyState<'_>]) {
    sd_notify::notify(states).unwrap_or_else(|error| tracing::debug!("tell the service manager: {error}"));
}

impl Supervisor {
    /// Tells that the daemon serves, and begins to tell that it lives.
    pub(super) fn tell_ready(&mut self) {
        if self.service.is_some() {
            tell(&[NotifyState::Ready]);
            self.status_is_due();
            self.beat();
        }
    }

    /// Takes note of an event that a service manager may want to know of.
    pub(super) fn note_for_service(&mut self, event: &Event) {
        if self.service.is_none() {
            return;
        }
        if event.kind == Kind::HerdStopping {
            tell(&[NotifyState::Stopping]);
        }
        let Some(service) = &mut self.service else { return };
        if !service.has_status_due {
            service.has_status_due = true;
            self.chores.insert((clock::monotonic() + STATUS_EVERY, Chore::Status));
        }
    }

    /// Tells the counts, if they have changed.
    pub(super) fn status_is_due(&mut self) {
        let status = sentence(&self.machine.counts());
        let Some(service) = &mut self.service else { return };
        service.has_status_due = false;
        if service.status != status {
            tell(&[NotifyState::Status(&status)]);
            service.status = status;
        }
    }

    /// Tells that the loop turns: it is the loop that comes here.
    pub(super) fn beat(&mut self) {
        if let Some(every) = self.service.as_ref().and_then(|service| service.heartbeat) {
            tell(&[NotifyState::Watchdog]);
            self.chores.insert((clock::monotonic() + every, Chore::Heartbeat));
        }
    }

    /// Does something during which the service is reloading.
    pub(super) fn reloading(&mut self, reload: impl FnOnce(&mut Self)) {
        if self.service.is_none() {
            return reload(self);
        }
        match NotifyState::monotonic_usec_now() {
            Ok(at) => tell(&[NotifyState::Reloading, at]),
            Err(error) => tracing::debug!("read the time: {error}"),
        }
        reload(self);
        tell(&[NotifyState::Ready]);
    }
}

/// Says how many agents there are, in the words of `stats`: `agents: 12 (2 group, 9 running, 1 backoff), levels: 3`.
fn sentence(counts: &Counts) -> String {
    let live: Vec<(State, u64)> =
        counts.states.iter().filter(|(state, _)| !state.has_ended()).map(|(state, count)| (*state, *count)).collect();
    let agents: u64 = live.iter().map(|(_, count)| count).sum();
    if agents == 0 {
        return "no agents".to_owned();
    }
    let list: Vec<String> = live.iter().map(|(state, count)| format!("{count} {state}")).collect();
    format!("agents: {agents} ({}), levels: {}", list.join(", "), counts.levels.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Level;

    #[test]
    fn the_status_counts_who_has_not_ended() {
        let mut counts = Counts::default();
        assert_eq!(sentence(&counts), "no agents");
        counts.levels.extend([(Level(0), 1), (Level(1), 3)]);
        counts.states.extend([(State::Group, 1), (State::Running, 2), (State::Backoff, 1), (State::Failed, 7)]);
        assert_eq!(sentence(&counts), "agents: 4 (1 group, 2 running, 1 backoff), levels: 2");
    }
}

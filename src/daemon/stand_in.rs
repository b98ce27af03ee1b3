//! Who turns the loop: its own thread, and a stand-in while that one is away.
//!
//! A spawn that a client asks for alone is carried out by the loop's own thread: to wake a hand and to be woken by it would take a
//! fifth of its time. (A restart is on its way in a hand while its cause is told.) But it may also block, for as long as somebody
//! holds a lock in the kernel. So before it the thread leaves the supervisor on the desk and sets an alarm; if it is not back in
//! time the stand-in takes over, until it is.
//!
//! ```text
//!  loop's own thread   turns ──── leaves, spawns ──── comes back, turns ───── leaves, spawns . . . . . . . . . comes back, turns
//!  stand-in            sleeps ──────────────────────────────────────────────────────── alarm: turns ── gives back, sleeps
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::{Events, Waker};

use super::hands::get_ready;
use super::supervisor::{EVENTS, Supervisor};
use crate::kernel::alarm::Alarm;
use crate::model::error::{Code, Error};

/// How long the loop's own thread may be away: ten times as long as a spawn takes, and next to nothing to who waits for news. And as
/// long as the tick of most kernels: an alarm that is due before it has a clock programmed, which takes a virtual machine as long as
/// the rest of the way to the first kernel call.
const AWAY_MOST: Duration = Duration::from_millis(4);

/// Where the supervisor is left.
struct Desk {
    state: Mutex<State>,
    given_back: Condvar,
    alarm: Alarm,
    /// Wakes whoever turns the loop.
    waker: Arc<Waker>,
}

#[derive(Default)]
struct State {
    /// None while it is with one of the two.
    supervisor: Option<Box<Supervisor>>,
    /// Why the stand-in could not turn it.
    failed: Option<Error>,
    /// Whether the loop's own thread is back and waits for it.
    is_awaited: bool,
    is_over: bool,
}

/// Turns the loop until the herd has ended, then clears up while no thread is at its end: one that is cannot leave its cgroup any more,
/// and the cgroup cannot go before it has.
pub(super) fn turn_until_over(
    mut supervisor: Box<Supervisor>,
    clear_up: impl FnOnce(&mut Supervisor, &Result<(), Error>),
) -> (Box<Supervisor>, Result<(), Error>) {
    let alarm = match Alarm::new() {
        Ok(alarm) => alarm,
        Err(error) => {
            let outcome = Err(error.into());
            clear_up(&mut supervisor, &outcome);
            return (supervisor, outcome);
        }
    };
    let waker = supervisor.waker.clone();
    let desk = Desk { state: Mutex::default(), given_back: Condvar::new(), alarm, waker };
    std::thread::scope(|scope| {
        let _closing = Closing(&desk);
        let stand_in = std::thread::Builder::new().name("stand-in".to_owned());
        let (mut supervisor, outcome) = match stand_in.spawn_scoped(scope, || desk.stand_in()) {
            Ok(_) => desk.turn_until_over(supervisor),
            Err(error) => (supervisor, Err(Error::new(Code::Kernel, format!("start thread stand-in: {error}")))),
        };
        clear_up(&mut supervisor, &outcome);
        (supervisor, outcome)
    })
}

/// Lets the stand-in end.
struct Closing<'a>(&'a Desk);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.alarm.set(Duration::ZERO);
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_until_over(&self, mut supervisor: Box<Supervisor>) -> (Box<Supervisor>, Result<(), Error>) {
        let mut events = Events::with_capacity(EVENTS);
        supervisor.detection.is_turned_here();
        get_ready(&supervisor.tools);
        while !supervisor.is_over {
            if let Err(error) = supervisor.turn(&mut events) {
                return (supervisor, Err(error));
            }
            let Some(job) = supervisor.take_own_spawn() else { continue };
            let tools = supervisor.tools.clone();
            let outcome;
            (supervisor, outcome) = self.away(supervisor, || job.run(&tools));
            supervisor.take_outcome(outcome);
            supervisor.tell();
            (supervisor, ()) = self.away(supervisor, || get_ready(&tools));
            if let Some(error) = self.lock().failed.take() {
                return (supervisor, Err(error));
            }
        }
        supervisor.take_leave();
        (supervisor, Ok(()))
    }

    /// Leaves the supervisor on the desk, acts, and has it back.
    fn away<T>(&self, supervisor: Box<Supervisor>, act: impl FnOnce() -> T) -> (Box<Supervisor>, T) {
        self.lock().supervisor = Some(supervisor);
        self.alarm.set(AWAY_MOST);
        let done = act();
        self.alarm.put_off();
        let mut state = self.lock();
        if let Some(supervisor) = state.supervisor.take() {
            return (supervisor, done);
        }
        state.is_awaited = true;
        if let Err(error) = self.waker.wake() {
            tracing::error!("wake the stand-in: {error}");
        }
        let mut state =
            self.given_back.wait_while(state, |it| it.supervisor.is_none()).unwrap_or_else(PoisonError::into_inner);
        state.is_awaited = false;
        let mut supervisor = state.supervisor.take().expect("it was waited for");
        supervisor.detection.is_turned_here();
        (supervisor, done)
    }

    /// Turns the loop whenever its own thread is away for too long.
    fn stand_in(&self) {
        loop {
            self.alarm.wait();
            let mut state = self.lock();
            if state.is_over {
                return;
            }
            // None: it was back in time after all.
            let Some(mut supervisor) = state.supervisor.take() else { continue };
            drop(state);
            supervisor.detection.is_turned_here();
            let mut events = Events::with_capacity(EVENTS);
            let mut outcome = Ok(());
            while outcome.is_ok() && !supervisor.is_over && !self.lock().is_awaited {
                outcome = supervisor.turn(&mut events);
                // Nobody stands in for a stand-in.
                if let Some(spawn) = supervisor.take_own_spawn() {
                    supervisor.hand_out(spawn);
                }
            }
            let mut state = self.lock();
            (state.supervisor, state.failed) = (Some(supervisor), outcome.err());
            self.given_back.notify_one();
        }
    }
}

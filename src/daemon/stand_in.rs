//! Who turns the loop: one of two threads, while the other stands by.
//!
//! A spawn that a client asks for alone is carried out by the thread that turns the loop: to wake a spawner and to be woken by it would
//! take a fifth of its time. (A restart is on its way on a spawner while its cause is told.) But it may also block, for as long as
//! somebody holds a lock in the kernel, or for ever. So before it the thread leaves the supervisor on the desk and sets an alarm; if it
//! is not back in time, the other takes over for good, and they have changed places.
//!
//! ```text
//!  loop      turns ──── leaves, spawns ──── is back, turns ───── leaves, spawns . . . . . . . . . is back, stands by
//!  stand-in  stands by ──────────────────────────────────────────────────────── alarm: turns ───────────────────────
//! ```
//!
//! While nobody stands by, all spawns go to the spawners. A third thread waits for the end, which comes even if one of the two hangs.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::Events;

use super::hands::get_ready;
use super::supervisor::{EVENTS, Supervisor};
use crate::kernel::alarm::Alarm;
use crate::model::error::{Code, Error};

/// How long the thread that turns may be away: ten times as long as a spawn takes, and next to nothing to who waits for news. And as
/// long as the tick of most kernels: an alarm that is due before it has a clock programmed, which takes a virtual machine as long as
/// the rest of the way to the first kernel call.
const AWAY_MOST: Duration = Duration::from_millis(4);

/// What is done at the end, by whoever turns then.
pub(super) type ClearUp = Box<dyn FnOnce(&mut Supervisor, &Result<(), Error>) + Send>;

/// The supervisor after its end, and how it came to that.
pub(super) type Ended = (Box<Supervisor>, Result<(), Error>);

/// A loop that is being turned.
pub(super) struct Turning {
    ended: Receiver<Ended>,
    /// None if it could not begin.
    desk: Option<Arc<Desk>>,
    threads: Vec<JoinHandle<()>>,
}

/// Where the supervisor is left.
struct Desk {
    state: Mutex<State>,
    alarm: Alarm,
}

struct State {
    /// None while somebody has it.
    supervisor: Option<Box<Supervisor>>,
    stands_by: bool,
    is_over: bool,
    /// None when it has come.
    ending: Option<Ending>,
}

struct Ending {
    clear_up: ClearUp,
    ended: Sender<Ended>,
    /// Closed when all is done.
    _turns: Option<OwnedFd>,
}

impl Ending {
    fn come(self, mut supervisor: Box<Supervisor>, outcome: Result<(), Error>) {
        (self.clear_up)(&mut supervisor, &outcome);
        // Whoever has waited for it is gone only if it panicked.
        self.ended.send((supervisor, outcome)).unwrap_or_default();
    }
}

/// Turns the loop until the herd has ended, then clears up while no thread is at its end: one that is cannot leave its cgroup any more,
/// and the cgroup cannot go before it has. The descriptor is closed at the end.
pub(super) fn turn(supervisor: Box<Supervisor>, clear_up: ClearUp, turns: Option<OwnedFd>) -> Turning {
    let (sender, ended) = channel();
    let ending = Ending { clear_up, ended: sender, _turns: turns };
    let mut turning = Turning { ended, desk: None, threads: Vec::new() };
    let alarm = match Alarm::new() {
        Ok(alarm) => alarm,
        Err(error) => {
            ending.come(supervisor, Err(error.into()));
            return turning;
        }
    };
    let state = State { supervisor: Some(supervisor), stands_by: false, is_over: false, ending: Some(ending) };
    let desk = Arc::new(Desk { state: Mutex::new(state), alarm });
    let start = |name: &str, work: fn(&Desk)| {
        let desk = desk.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&desk));
        thread.map_err(|error| Error::new(Code::Kernel, format!("start thread {name}: {error}")))
    };
    let threads = [start("loop", Desk::turn_first), start("stand-in", Desk::stand_by_first)];
    for thread in threads {
        match thread {
            Ok(thread) => turning.threads.push(thread),
            Err(error) if turning.threads.is_empty() => {
                let (supervisor, ending) = desk.take_all();
                if let (Some(supervisor), Some(ending)) = (supervisor, ending) {
                    ending.come(supervisor, Err(error));
                }
            }
            Err(error) => tracing::warn!("all spawns go to other threads: {error}"),
        }
    }
    turning.desk = Some(desk);
    turning
}

impl Turning {
    /// Waits until the herd has ended.
    pub fn wait(self) -> Ended {
        let ended = self.ended.recv().expect("the loop's threads do not panic");
        if let Some(desk) = self.desk {
            // Whoever hangs in a spawn is not waited for.
            let all_come = desk.close();
            for thread in self.threads.into_iter().filter(|_| all_come) {
                thread.join().unwrap_or_default();
            }
        }
        ended
    }
}

/// Has the end come if its thread panics: nobody else would turn the loop.
struct Closing<'a>(&'a Desk);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.0.take_all());
        }
    }
}

/// Why a thread turns no more.
enum Turned {
    /// The herd has ended.
    Over,
    /// Another thread turns in its place.
    TakenOver,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_all(&self) -> (Option<Box<Supervisor>>, Option<Ending>) {
        let mut state = self.state();
        (state.supervisor.take(), state.ending.take())
    }

    /// Lets whoever stands by end. Returns whether both threads do.
    fn close(&self) -> bool {
        let mut state = self.state();
        state.is_over = true;
        self.alarm.set(Duration::ZERO);
        state.stands_by
    }

    fn turn_first(&self) {
        let supervisor = self.state().supervisor.take();
        if let Some(supervisor) = supervisor {
            get_ready(&supervisor.tools);
            self.take_turns(supervisor);
        }
    }

    fn stand_by_first(&self) {
        if let Some(supervisor) = self.stand_by() {
            self.take_turns(supervisor);
        }
    }

    fn take_turns(&self, mut supervisor: Box<Supervisor>) {
        let _closing = Closing(self);
        while let Turned::TakenOver = self.turn_on(supervisor) {
            match self.stand_by() {
                Some(left) => supervisor = left,
                None => return,
            }
        }
    }

    /// Waits until the thread that turns is away for too long. None if the herd has ended.
    fn stand_by(&self) -> Option<Box<Supervisor>> {
        self.state().stands_by = true;
        loop {
            if self.state().is_over {
                return None;
            }
            self.alarm.wait();
            let mut state = self.state();
            // None: it was back in time after all.
            if let Some(supervisor) = state.supervisor.take() {
                state.stands_by = false;
                return Some(supervisor);
            }
        }
    }

    fn turn_on(&self, mut supervisor: Box<Supervisor>) -> Turned {
        let mut events = Events::with_capacity(EVENTS);
        supervisor.detection.is_turned_here();
        while !supervisor.is_over {
            if let Err(error) = supervisor.turn(&mut events) {
                return self.end(supervisor, Err(error));
            }
            let Some(job) = supervisor.take_own_spawn() else { continue };
            let (tools, spawners) = (supervisor.tools.clone(), supervisor.hands.spawners.clone());
            match self.leave(supervisor) {
                Ok(()) => {}
                Err(kept) => {
                    supervisor = kept;
                    supervisor.hand_out(job);
                    continue;
                }
            }
            let outcome = spawners.carry_out(job);
            let Some(mut left) = self.come_back() else {
                spawners.report(outcome);
                get_ready(&tools);
                return Turned::TakenOver;
            };
            left.take_outcome(outcome);
            left.tell();
            left.send();
            match self.leave(left) {
                Ok(()) => {
                    get_ready(&tools);
                    match self.come_back() {
                        Some(left) => supervisor = left,
                        None => return Turned::TakenOver,
                    }
                }
                Err(kept) => supervisor = kept,
            }
        }
        supervisor.take_leave();
        self.end(supervisor, Ok(()))
    }

    /// Leaves the supervisor on the desk, unless nobody stands by.
    fn leave(&self, supervisor: Box<Supervisor>) -> Result<(), Box<Supervisor>> {
        let mut state = self.state();
        if !state.stands_by {
            return Err(supervisor);
        }
        state.supervisor = Some(supervisor);
        drop(state);
        self.alarm.set(AWAY_MOST);
        Ok(())
    }

    /// Has the supervisor back, unless the other thread has it.
    fn come_back(&self) -> Option<Box<Supervisor>> {
        self.alarm.put_off();
        self.state().supervisor.take()
    }

    fn end(&self, supervisor: Box<Supervisor>, outcome: Result<(), Error>) -> Turned {
        let ending = self.state().ending.take();
        if let Some(ending) = ending {
            ending.come(supervisor, outcome);
        }
        Turned::Over
    }
}

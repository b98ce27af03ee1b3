//! The disk of the state directory. What is written there is written by a thread of its own, so that a disk that stalls (a frozen
//! file system, a dead file server) delays no death, no kill and no answer.
//!
//! ```text
//!  loop ──act──► [ queue ] ──thread──► records, journal, spool directories
//!    ▲ waits, for PATIENCE_MAX a turn at most                │
//!    └────────────────────── done ◄──────────────────────────┘ done late: the loop is woken
//! ```
//!
//! As long as the disk answers, an action is done when [`Disk::act`] returns: what is told is written down, and what is ordered
//! follows from what is written down. Once it does not, the loop waits no more: actions are queued, in order, until it does.
//! Where the files are in memory there is no thread: a write there is a copy.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::Waker;

use crate::kernel::clock;
use crate::model::error::{Code, Error};
use crate::model::time::Monotonic;

/// How long the loop waits for the disk in one turn: a fifth of the bound on reporting a death, and longer than a busy CPU keeps the
/// thread waiting.
const PATIENCE_MAX: Duration = Duration::from_millis(100);

/// How long one action may take until the disk counts as stalled.
pub(super) const STALLED_AFTER: Duration = Duration::from_millis(250);

/// How long the last words may take, when the herd has ended.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// File systems whose files are in memory: tmpfs and ramfs, statfs(2).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

type Task = Box<dyn FnOnce() + Send>;

/// The way to the disk.
#[derive(Debug)]
pub(super) struct Disk {
    /// None where files are in memory.
    tasks: Option<Sender<Task>>,
    waker: Option<Arc<Waker>>,
    /// How long this turn may still wait.
    patience: Duration,
}

/// An action that is done, or will be.
#[derive(Debug)]
pub(super) struct Doing<T> {
    slot: Arc<Slot<T>>,
    /// When it was asked for.
    pub began: Monotonic,
}

#[derive(Debug)]
struct Slot<T> {
    state: Mutex<State<T>>,
    done: Condvar,
}

#[derive(Debug)]
struct State<T> {
    outcome: Option<T>,
    /// Whether the loop has stopped waiting for it, and is to be woken.
    is_late: bool,
}

impl Disk {
    /// Starts the thread, if the file system of the state directory needs one.
    pub fn start(state_dir: &Path, waker: &Arc<Waker>) -> Result<Self, Error> {
        let about = rustix::fs::statfs(state_dir);
        if about.is_ok_and(|about| IN_MEMORY.contains(&about.f_type)) {
            return Ok(Self::in_memory());
        }
        let (tasks, queue) = channel::<Task>();
        let thread = std::thread::Builder::new().name("disk".to_owned()).stack_size(super::hands::STACK);
        thread
            .spawn(move || queue.into_iter().for_each(|task| task()))
            .map_err(|error| Error::new(Code::Kernel, format!("start thread disk: {error}")))?;
        Ok(Self { tasks: Some(tasks), waker: Some(waker.clone()), patience: PATIENCE_MAX })
    }

    /// Makes one for files that are in memory.
    pub fn in_memory() -> Self {
        Self { tasks: None, waker: None, patience: PATIENCE_MAX }
    }

    /// A turn begins. While the disk stalls no turn waits for it.
    pub fn begin_turn(&mut self, stalls: bool) {
        self.patience = if stalls { Duration::ZERO } else { PATIENCE_MAX };
    }

    /// The herd has ended: there is nothing more to be on time for.
    pub fn take_leave(&mut self) {
        self.patience = LAST_WORDS_MAX;
    }

    /// Does something with files, after all that was asked for before. It is done on return, unless the disk stalls.
    pub fn act<T: Send + 'static>(&mut self, act: impl FnOnce() -> T + Send + 'static) -> Doing<T> {
        let Some(tasks) = &self.tasks else { return Doing::new(Some(act())) };
        let doing = Doing::new(None);
        let (slot, waker) = (doing.slot.clone(), self.waker.clone());
        let task: Task = Box::new(move || {
            let outcome = act();
            let mut state = slot.lock();
            state.outcome = Some(outcome);
            let is_late = state.is_late;
            drop(state);
            slot.done.notify_one();
            if let Some(waker) = waker.filter(|_| is_late) {
                waker.wake().unwrap_or_else(|error| tracing::error!("wake the loop: {error}"));
            }
        });
        tasks.send(task).expect("the thread lives as long as this");
        doing.wait(self.patience);
        self.patience = self.patience.saturating_sub(clock::monotonic().since(doing.began));
        doing
    }
}

impl<T> Doing<T> {
    fn new(outcome: Option<T>) -> Self {
        let slot = Slot { state: Mutex::new(State { outcome, is_late: false }), done: Condvar::new() };
        Self { slot: Arc::new(slot), began: clock::monotonic() }
    }

    fn wait(&self, most: Duration) {
        let is_open = |state: &mut State<T>| state.outcome.is_none();
        let waited = self.slot.done.wait_timeout_while(self.slot.lock(), most, is_open);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_late = state.outcome.is_none();
    }

    /// Takes the outcome, if it is done.
    pub fn take(&self) -> Option<T> {
        self.slot.lock().outcome.take()
    }
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

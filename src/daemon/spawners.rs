//! The spawners: threads that carry out spawns, and have another take their place where one hangs.
//!
//! A spawn blocks its thread until `exec`, and whoever owns the working directory's file system, or may signal the child's
//! user, can have that take for ever; a process that waits for a FUSE server cannot even be killed. So:
//!
//! ```text
//!  waiting ──▶ preparing ──────────▶ cloning ─────────▶ over: an outcome
//!     │            │                     │ its leaf was killed, and it hangs on
//!     ▼ refused    ▼ taken back          ▼ handed over as it is: a process of the run that is being killed
//! ```
//!
//! Every spawn is answered in time: [`Spawners::give_up`] takes one that was killed in vain away from its thread, which is lost until
//! the kernel lets go of it. Of one root agent's subtree a few spawns may hang; its next ones wait for those, and nobody else does.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::Waker;

use super::hands::{STACK, get_ready};
use super::job::{Born, Made, Outcome, SpawnJob, Tools};
use crate::kernel::clock;
use crate::kernel::spawn::Newborn;
use crate::machine::AgentKey;
use crate::model::error::{Code, Error};
use crate::model::id::Run;
use crate::model::stage::{SpawnFailure, Stage};
use crate::model::time::Monotonic;

/// Threads that spawn while none hangs.
const SPAWNERS: usize = 4;

/// Threads that spawn, those that hang included.
const SPAWNERS_MAX: usize = 256;

/// Spawns of one root agent's subtree that may hang at a time.
const HANGING_MAX: usize = 4;

/// From when on a spawn counts as one that hangs: a hundred times as long as one takes.
const HANGS_FROM: Duration = Duration::from_millis(20);

/// The pool. Once closed, its threads end as soon as they do not hang.
pub(super) struct Spawners {
    shared: Arc<Shared>,
}

struct Shared {
    tools: Arc<Tools>,
    outcomes: Sender<Outcome>,
    waker: Arc<Waker>,
    state: Mutex<State>,
    some: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<SpawnJob>,
    out: Vec<Arc<Attempt>>,
    threads: usize,
    is_closed: bool,
}

/// A spawn that is on a thread.
pub(super) struct Attempt {
    agent: AgentKey,
    run: Run,
    /// The root agent that it is, or is below.
    top: AgentKey,
    since: Monotonic,
    progress: Mutex<Progress>,
    pub newborn: Newborn,
}

/// How far a spawn has come.
enum Progress {
    Preparing(Made),
    Cloning(Made, Box<Born>),
    /// It has an outcome, or was given up.
    Over,
}

/// What becomes of a spawn that is given up.
pub(super) enum GivenUp {
    /// Its turn had not come: nothing is made.
    Refused(SpawnFailure),
    /// It has no process. What it has made is to be taken back.
    Unborn(Box<Made>, SpawnFailure),
    /// It has a process, which neither runs its program nor dies.
    Born(Box<Born>),
    /// It is between the two.
    NotYet,
    /// Its outcome is on its way.
    Over,
}

impl Attempt {
    fn new(job: &SpawnJob) -> Self {
        Self {
            agent: job.agent,
            run: job.run,
            top: job.top,
            since: clock::monotonic(),
            progress: Mutex::new(Progress::Preparing(Made::of(job))),
            newborn: Newborn::default(),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something was made. A failure if the spawn was given up meanwhile: then it is the caller's to take back.
    pub fn note(&self, note: impl FnOnce(&mut Made)) -> Result<(), SpawnFailure> {
        match &mut *self.progress() {
            Progress::Preparing(made) => note(made),
            _ => return Err(abandoned()),
        }
        Ok(())
    }

    /// Enters the part in which there may be a process, with everything that is known of the run but that.
    pub fn begin_clone(&self, born: Born) -> Result<(), SpawnFailure> {
        let mut progress = self.progress();
        match std::mem::replace(&mut *progress, Progress::Over) {
            Progress::Preparing(made) => *progress = Progress::Cloning(made, Box::new(born)),
            _ => return Err(abandoned()),
        }
        Ok(())
    }

    /// Ends it, and returns what it has made and what is known of its run; none if it was given up meanwhile.
    pub fn finish(&self) -> Option<(Made, Option<Box<Born>>)> {
        match std::mem::replace(&mut *self.progress(), Progress::Over) {
            Progress::Preparing(made) => Some((made, None)),
            Progress::Cloning(made, born) => Some((made, Some(born))),
            Progress::Over => None,
        }
    }

    fn give_up(&self) -> GivenUp {
        let mut progress = self.progress();
        match std::mem::replace(&mut *progress, Progress::Over) {
            Progress::Preparing(made) => {
                GivenUp::Unborn(Box::new(made), hangs("its preparation hangs: a name service or a file system"))
            }
            Progress::Cloning(made, mut born) => match self.newborn.take_over() {
                Some(child) => {
                    born.process = Some((child.pid, child.pidfd));
                    GivenUp::Born(born)
                }
                None => {
                    *progress = Progress::Cloning(made, born);
                    GivenUp::NotYet
                }
            },
            Progress::Over => GivenUp::Over,
        }
    }

    fn hangs(&self, now: Monotonic) -> bool {
        now.since(self.since) >= HANGS_FROM
    }
}

fn hangs(why: &str) -> SpawnFailure {
    SpawnFailure { stage: Stage::Prepare, errno: None, message: why.to_owned(), remedy: None }
}

/// Is told to nobody.
fn abandoned() -> SpawnFailure {
    hangs("it was given up")
}

impl State {
    /// Takes the first spawn whose subtree has not too many that hang.
    fn next(&mut self, now: Monotonic) -> Option<SpawnJob> {
        let at = self.waiting.iter().position(|job| self.may_begin(job, now))?;
        self.waiting.remove(at)
    }

    fn may_begin(&self, job: &SpawnJob, now: Monotonic) -> bool {
        self.out.iter().filter(|it| it.top == job.top && it.hangs(now)).count() < HANGING_MAX
    }

    fn begin(&mut self, job: &SpawnJob) -> Arc<Attempt> {
        let attempt = Arc::new(Attempt::new(job));
        self.out.push(attempt.clone());
        attempt
    }
}

impl Spawners {
    pub fn start(tools: &Arc<Tools>, outcomes: &Sender<Outcome>, waker: &Arc<Waker>) -> Result<Self, Error> {
        let (tools, outcomes, waker) = (tools.clone(), outcomes.clone(), waker.clone());
        let shared = Shared { tools, outcomes, waker, state: Mutex::default(), some: Condvar::new() };
        let spawners = Self { shared: Arc::new(shared) };
        (0..SPAWNERS).try_for_each(|_| spawners.start_one(&mut spawners.shared.state()))?;
        Ok(spawners)
    }

    fn start_one(&self, state: &mut State) -> Result<(), Error> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("spawner".to_owned()).stack_size(STACK);
        thread
            .spawn(move || shared.work())
            .map_err(|error| Error::new(Code::Kernel, format!("start thread spawner: {error}")))?;
        state.threads += 1;
        Ok(())
    }

    /// Hands a spawn out.
    pub fn take(&self, job: SpawnJob) {
        self.shared.state().waiting.push_back(job);
        self.shared.some.notify_one();
    }

    /// Says whether no spawn waits or is on a thread.
    pub fn are_idle(&self) -> bool {
        let state = self.shared.state();
        state.waiting.is_empty() && state.out.is_empty()
    }

    /// Puts another thread in the place of each that hangs, if spawns wait for one. Returns when the next may have to be.
    pub fn relieve(&self, now: Monotonic) -> Option<Monotonic> {
        let mut state = self.shared.state();
        let threads_left = state.threads.saturating_sub(state.out.len());
        let may_begin = state.waiting.iter().filter(|job| state.may_begin(job, now)).count();
        if may_begin <= threads_left {
            return None;
        }
        let hanging = state.out.iter().filter(|it| it.hangs(now)).count();
        let lacking = (hanging + SPAWNERS).min(SPAWNERS_MAX).saturating_sub(state.threads);
        for _ in 0..lacking {
            if let Err(error) = self.start_one(&mut state) {
                tracing::warn!("a spawn hangs, and no other thread takes its place: {error}");
                break;
            }
        }
        if lacking > 0 {
            return Some(now + HANGS_FROM);
        }
        state.out.iter().filter(|it| !it.hangs(now)).map(|it| it.since + HANGS_FROM).min()
    }

    /// Gives a spawn up that was to be ended by the kill of its leaf, and was not.
    pub fn give_up(&self, agent: AgentKey, run: Run) -> GivenUp {
        let mut state = self.shared.state();
        if let Some(at) = state.waiting.iter().position(|job| (job.agent, job.run) == (agent, run)) {
            state.waiting.remove(at);
            let why = format!(
                "its turn did not come: {} spawns hang, {HANGING_MAX} of one root agent's at most",
                state.out.len()
            );
            return GivenUp::Refused(hangs(&why));
        }
        let attempt = state.out.iter().find(|it| (it.agent, it.run) == (agent, run)).cloned();
        drop(state);
        attempt.map_or(GivenUp::Over, |attempt| attempt.give_up())
    }

    /// Carries a spawn out on the calling thread.
    pub fn carry_out(&self, job: SpawnJob) -> Outcome {
        let attempt = self.shared.state().begin(&job);
        self.shared.carry_out(&job, &attempt)
    }

    /// Lets the threads end when nothing waits any more.
    pub fn close(&self) {
        self.shared.state().is_closed = true;
        self.shared.some.notify_all();
    }

    /// Reports the outcome of a spawn that was carried out elsewhere.
    pub fn report(&self, outcome: Outcome) {
        // Where nobody listens any more it is nobody's.
        self.shared.report(outcome);
    }
}

impl Clone for Spawners {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(&self, job: &SpawnJob, attempt: &Arc<Attempt>) -> Outcome {
        let outcome = job.run(&self.tools, attempt);
        self.state().out.retain(|it| !Arc::ptr_eq(it, attempt));
        // One that has waited for this one alone may come next.
        self.some.notify_one();
        outcome
    }

    /// Sends an outcome to the loop. Nobody listens any more once the supervisor has ended.
    fn report(&self, outcome: Outcome) -> bool {
        matches!(outcome, Outcome::Nothing) || self.outcomes.send(outcome).is_ok() && self.waker.wake().is_ok()
    }

    fn next(&self) -> Option<(SpawnJob, Arc<Attempt>)> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.next(clock::monotonic()) {
                let attempt = state.begin(&job);
                return Some((job, attempt));
            }
            if state.is_closed {
                return None;
            }
            state = self.some.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Works until the pool is closed, getting ready before each wait.
    fn work(&self) {
        get_ready(&self.tools);
        while let Some((job, attempt)) = self.next() {
            if !self.report(self.carry_out(&job, &attempt)) {
                return;
            }
            get_ready(&self.tools);
        }
    }
}

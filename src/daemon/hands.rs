//! The hands: a fixed pool of threads for kernel calls that take long in proportion to a subtree.
//!
//! A spawn blocks its thread until `exec`, and a kill of 50,000 processes takes seconds: neither may hold up the news of
//! another agent's death. Jobs go in over a queue, outcomes come back over a channel that wakes the loop. What may hang or take long
//! never stands in front of what ends and protects, so each kind has threads of its own:
//!
//! | threads | do | may wait for |
//! | --- | --- | --- |
//! | enders | kill, signal, freeze, thaw | nothing but the kernel's work on the subtree |
//! | [`Spawners`] | spawn | a program's file, a working directory; one that hangs is replaced |
//! | diggers | give space and memory back | a lock that a writer holds; a disk |
//! | limiter | sets limits | reclaim, when a limit is below what is used |
//! | keepers | give output pipes to keepers, and close them | another process that holds the lock of a pipe |
//! | readers | what clients read, a step at a time | each other's steps |
//! | hands | everything else: cgroups that go, who connects | the kernel's lock on cgroups |
//!
//! All threads live as long as the supervisor: a child's parent-death signal and a vfork are bound to its spawner's thread.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use mio::Waker;

use super::job::{Job, Outcome, Tools};
use super::spawners::Spawners;
use crate::kernel::spawn;
use crate::model::error::{Code, Error};

/// Threads that give space and memory back.
const DIGGERS: usize = 2;

/// Threads that end and freeze.
const ENDERS: usize = 3;

/// Threads that set limits: one, so they are set in their order.
const LIMITERS: usize = 1;

/// Threads that open and close output pipes, which an agent can hold up for as long as it likes.
const KEEPERS: usize = 4;

/// Threads that read for clients.
const READERS: usize = 2;

/// Threads that do everything else.
const ACTORS: usize = 2;

/// Enough for the deepest call here, which formats an error; the child of a spawn has a stack of its own.
pub(super) const STACK: usize = 256 << 10;

/// The pool. Dropping it lets the threads finish what is queued and end.
pub(super) struct Hands {
    pub spawners: Spawners,
    holes: Arc<Queue>,
    ends: Arc<Queue>,
    limits: Arc<Queue>,
    keeps: Arc<Queue>,
    reads: Arc<Queue>,
    acts: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    some: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    is_closed: bool,
}

impl Hands {
    /// Starts the threads.
    pub fn start(tools: &Arc<Tools>, outcomes: &Sender<Outcome>, waker: &Arc<Waker>) -> Result<Self, Error> {
        let spawners = Spawners::start(tools, outcomes, waker)?;
        let hands = Self {
            spawners,
            holes: Arc::default(),
            ends: Arc::default(),
            limits: Arc::default(),
            keeps: Arc::default(),
            reads: Arc::default(),
            acts: Arc::default(),
        };
        let pools = [
            ("digger", DIGGERS, &hands.holes),
            ("ender", ENDERS, &hands.ends),
            ("limiter", LIMITERS, &hands.limits),
            ("keeper", KEEPERS, &hands.keeps),
            ("reader", READERS, &hands.reads),
            ("hand", ACTORS, &hands.acts),
        ];
        for (name, count, queue) in pools {
            for _ in 0..count {
                let (queue, tools, outcomes, waker) = (queue.clone(), tools.clone(), outcomes.clone(), waker.clone());
                let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
                thread
                    .spawn(move || queue.work(&tools, &outcomes, &waker))
                    .map_err(|error| Error::new(Code::Kernel, format!("start thread {name}: {error}")))?;
            }
        }
        Ok(hands)
    }

    /// Hands a job out.
    pub fn take(&self, job: Job) {
        let queue = match job {
            Job::Dig { .. } | Job::Reclaim { .. } | Job::Trim | Job::Reap(_) | Job::StoreTimes(_) => &self.holes,
            Job::Kill { .. } | Job::KillRun { .. } | Job::Signal { .. } | Job::Freeze { .. } | Job::FindOutside(..) => {
                &self.ends
            }
            Job::SetLimits { .. } | Job::Tighten(_) | Job::Loosen(..) => &self.limits,
            Job::Keep { .. } | Job::Close(_) => &self.keeps,
            Job::Read(_) => &self.reads,
            _ => &self.acts,
        };
        queue.add(job);
    }
}

/// Does for the next spawn what needs no knowledge of it: so it is done already when somebody asks for one.
pub(super) fn get_ready(tools: &Tools) {
    let ready = spawn::get_ready().map_err(|failure| failure.message);
    let stock = || match tools.is_disk_slow.load(Ordering::Relaxed) {
        true => Ok(()),
        false => tools.store.stock(|pipes| tools.keepers.keep(pipes)).map_err(|error| error.to_string()),
    };
    if let Err(error) = ready.and_then(|()| stock()) {
        tracing::warn!("get ready to spawn: {error}");
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.spawners.close();
        for queue in [&self.holes, &self.ends, &self.limits, &self.keeps, &self.reads, &self.acts] {
            queue.lock().is_closed = true;
            queue.some.notify_all();
        }
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, job: Job) {
        self.lock().waiting.push_back(job);
        self.some.notify_one();
    }

    fn next(&self) -> Option<Job> {
        let mut jobs = self.lock();
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            if jobs.is_closed {
                return None;
            }
            jobs = self.some.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Works until the queue is closed.
    fn work(&self, tools: &Tools, outcomes: &Sender<Outcome>, waker: &Waker) {
        while let Some(job) = self.next() {
            let outcome = match job.run(tools) {
                Outcome::Unfinished(rest) => {
                    self.add(rest);
                    continue;
                }
                // Nobody waits for it: the loop is not woken.
                Outcome::Nothing => continue,
                outcome => outcome,
            };
            // Nobody listens any more once the supervisor has ended: then the outcome is nobody's.
            if outcomes.send(outcome).is_err() || waker.wake().is_err() {
                return;
            }
        }
    }
}

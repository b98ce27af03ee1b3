//! How a main process ended: of our child, the kernel tells; of an adopted one, it is found out in what time there is.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

use mio::Interest;
use rustix::io::Errno;

use super::drain::After;
use super::largest::Look;
use super::supervisor::{Chore, Source, Supervisor};
use crate::kernel::pidfd::{self, Held};
use crate::kernel::{clock, process};
use crate::machine::{AgentKey, Input};
use crate::model::id::Run;
use crate::model::status::{Exit, Rusage};

/// When it is looked again how an adopted process ended, if neither it nor its remains told: it was reaped while it was looked
/// at. All together stay within the bound on telling a failure.
const LOOKS: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(20), Duration::from_millis(100)];

/// How many zombies are remembered that tracers hold.
const TRACED_MAX: usize = 1024;

/// Children that have ended and are not reaped.
#[derive(Debug, Default)]
pub(super) struct Zombies {
    /// Whose end is not written down yet: as long as they are there, a next daemon can ask the kernel for it.
    unrecorded: Vec<Held>,
    /// Whose tracer has not released them.
    traced: BTreeMap<u64, Held>,
}

/// Reaps a child if that can be done; says whether there is nothing left to reap.
pub(super) fn is_reaped(process: &Held) -> bool {
    !matches!(pidfd::try_wait(process.as_fd()), Ok(None))
}

/// Tells a process's end in the model's words.
pub(super) fn exit_of(status: pidfd::Exit) -> Exit {
    match status {
        pidfd::Exit::Code(status) => Exit::Status(status),
        pidfd::Exit::Signal { number, core } => Exit::Signal { number, core },
    }
}

impl Supervisor {
    /// A pidfd became readable: the process has ended, even if a tracer that has not waited for it hides that from us.
    pub(super) fn process_ended(&mut self, key: AgentKey) {
        let Some(body) = self.bodies.get_mut(&key) else { return };
        let Some((run, process)) = body.process.take() else { return };
        match pidfd::peek(process.as_fd()) {
            Ok(Some(ended)) => {
                let rusage = Rusage {
                    user_us: ended.rusage.user_us,
                    system_us: ended.rusage.system_us,
                    max_rss_bytes: Some(ended.rusage.max_rss_bytes).filter(|peak| *peak > process::own_peak()),
                };
                self.run_ended(key, run, process, Some(ended.status), rusage);
            }
            Ok(None) if pidfd::has_ended(process.as_fd()) == Ok(true) => {
                self.stranger_ended(key, run, process, 0);
            }
            Ok(None) => body.process = Some((run, process)),
            Err(error) if error.errno == Errno::CHILD => self.stranger_ended(key, run, process, 0),
            Err(error) => {
                tracing::error!("read how {} ended: {error}", body.id);
                self.run_ended(key, run, process, None, Rusage::default());
            }
        }
    }

    /// Reaps the children whose end is written down. A zombie that a tracer holds is reaped when its pidfd says that it can be.
    pub(super) fn reap(&mut self) {
        for process in std::mem::take(&mut self.zombies.unrecorded) {
            if is_reaped(&process) {
                continue;
            }
            let id = self.fresh();
            self.poll_for(&process.fd, Source::Zombie(id), Interest::READABLE);
            self.zombies.traced.insert(id, process);
            if self.zombies.traced.len() > TRACED_MAX
                && let Some((_, oldest)) = self.zombies.traced.pop_first()
            {
                self.stop_polling(&oldest.fd);
                tracing::warn!("zombie {} is given up: tracers hold too many", oldest.pid);
            }
        }
    }

    /// The pidfd of a traced zombie became readable again: its tracer has ended or has released it.
    pub(super) fn zombie_moved(&mut self, id: u64) {
        self.closer_ended(id);
        if self.zombies.traced.get(&id).is_some_and(is_reaped)
            && let Some(zombie) = self.zombies.traced.remove(&id)
        {
            self.stop_polling(&zombie.fd);
        }
    }

    /// The main process of a run has ended, in a way that may not be known.
    fn run_ended(&mut self, key: AgentKey, run: Run, process: Held, status: Option<pidfd::Exit>, rusage: Rusage) {
        if !self.bodies.contains_key(&key) {
            return;
        }
        self.stop_polling(&process.fd);
        let exit = status.map_or(Exit::Unknown, exit_of);
        self.when_drained(key, After::Ended { run, exit, rusage, process });
    }

    /// Tells the machine of the end of a main process.
    pub(super) fn report_end(&mut self, key: AgentKey, run: Run, exit: Exit, rusage: Rusage, process: Held) {
        self.zombies.unrecorded.push(process);
        if !self.bodies.contains_key(&key) {
            return;
        }
        let descendants = self.descendants(key, run);
        let home = self.bodies[&key].home.clone();
        let oom = match exit {
            Exit::Signal { number: libc::SIGKILL, .. } => {
                let now = clock::monotonic();
                let mut look = Look { cgroups: &self.tools.cgroups, reads: &mut self.reads, now };
                let oom = self.memory.explain(&mut look, &home, rusage.max_rss_bytes);
                self.memory.take_as_found(&self.tools.cgroups, &home);
                oom
            }
            _ => None,
        };
        // The kernel holds news of one file back for up to 10 ms: a limit that it died of is told before its death.
        self.tell_all_hits(&home);
        self.feed(Input::Exited { agent: key, run, exit, rusage, oom, descendants });
        self.await_pid_file(key, run);
    }

    /// The main process of an adopted agent has ended: whoever it was given to, PID 1 as a rule, reaps it. Until then procfs tells
    /// how it ended, from then on its pidfd does, if the kernel is new enough. After the last look it is not known.
    fn stranger_ended(&mut self, key: AgentKey, run: Run, process: Held, look: usize) {
        let reaped = || {
            pidfd::exit_info(process.as_fd()).unwrap_or_else(|error| {
                tracing::warn!("read how {key} ended: {error}");
                None
            })
        };
        match (pidfd::zombie_exit(process.as_fd()).or_else(reaped), LOOKS.get(look)) {
            (None, Some(after)) => {
                if let Some(body) = self.bodies.get_mut(&key) {
                    body.process = Some((run, process));
                }
                self.chores.insert((clock::monotonic() + *after, Chore::Exit(key, look + 1)));
            }
            (exit, _) => self.run_ended(key, run, process, exit, Rusage::default()),
        }
    }

    /// Looks once more how the main process of an adopted agent ended.
    pub(super) fn exit_is_due(&mut self, key: AgentKey, look: usize) {
        if let Some((run, process)) = self.bodies.get_mut(&key).and_then(|body| body.process.take()) {
            self.stranger_ended(key, run, process, look);
        }
    }
}

//! What a main process leaves behind: a program that puts itself into the background lives on in these processes.
//!
//! Each has a pidfd, so that its end is known, whoever reaps it. When one ends, its run is read again: what it has forked by then is
//! watched, too. The end of the last one is the run's, if it died of a signal. With `MAINPID=` or
//! its `pid_file` a program names the one of them that is its main process from then on: that
//! one's end is the run's as any main process's is.

use std::os::fd::AsFd;
use std::sync::Arc;

use mio::Interest;

use super::accept::Owner;
use super::exit::exit_of;
use super::supervisor::{Source, Supervisor};
use crate::kernel::pidfd::{self, Held};
use crate::machine::{AgentKey, Input};
use crate::model::id::Run;
use crate::model::spec::{AgentSpec, OnMainExit};
use crate::model::status::Exit;

/// How many processes of a run are watched one by one: what puts itself into the background is few.
const LEFT_MAX: usize = 64;

/// A process that a main process has left behind.
#[derive(Debug)]
pub(super) struct Left {
    run: Run,
    process: Held,
}

impl Supervisor {
    /// Watches the processes of a run that is waited for, its main process apart.
    pub(super) fn watch_left(&mut self, key: AgentKey, run: Run) {
        let waits = |spec: &Arc<AgentSpec>| spec.on_main_exit == OnMainExit::Wait || spec.pid_file.is_some();
        let is_waited_for = self.machine.spec_of(key).is_some_and(waits);
        let Some(place) = self.bodies.get(&key).filter(|_| is_waited_for).map(|body| body.run_place(run)) else {
            return;
        };
        for pid in self.tools.cgroups.some_processes(&place).unwrap_or_default() {
            let body = &self.bodies[&key];
            if body.left.len() >= LEFT_MAX {
                return;
            }
            let known = body.left.iter().map(|left| &left.process);
            // A main process that was named is one of them no more: its exit can be read once.
            if known.chain(body.process.as_ref().map(|(_, process)| process)).any(|process| process.pid == pid) {
                continue;
            }
            if let Some(process) = self.process_of(key, run, pid) {
                self.keep_left(key, Left { run, process });
            }
        }
    }

    /// Opens a process, and proves by its cgroup that it is one of this run.
    fn process_of(&self, key: AgentKey, run: Run, pid: i32) -> Option<Held> {
        let process = Held { pid, fd: Arc::new(pidfd::open(pid).ok()?) };
        // What an agent does takes no descriptor that kills need.
        super::guard::check_for_spawn(process.as_fd()).ok()?;
        let owner = self.cgroup_owner(&pidfd::cgroup_of(pid).ok()??);
        let is_here = matches!(owner, Owner::Agent(agent, Some(of)) if (agent, of) == (key, run));
        // Its number was its own as long as it has not ended.
        (is_here && !pidfd::has_ended(process.as_fd()).ok()?).then_some(process)
    }

    fn keep_left(&mut self, key: AgentKey, left: Left) {
        self.poll_for(&left.process.fd, Source::Left(key), Interest::READABLE);
        if let Some(body) = self.bodies.get_mut(&key) {
            body.left.push(left);
        }
    }

    /// Reads how those have ended that a run's main process left behind, and watches what they have forked.
    pub(super) fn left_ended(&mut self, key: AgentKey) {
        let Some(body) = self.bodies.get_mut(&key) else { return };
        let is_over = |left: &mut Left| pidfd::has_ended(left.process.as_fd()).unwrap_or(true);
        let ended: Vec<Left> = body.left.extract_if(.., is_over).collect();
        let Some(run) = ended.last().map(|left| left.run) else { return };
        let mut last = None;
        for left in ended {
            self.stop_polling(&left.process.fd);
            let exit = how_it_ended(&left.process);
            // Of several that end together the one that crashed tells more.
            last = if matches!(last, Some(Exit::Signal { .. })) { last } else { exit.or(last) };
        }
        if let Some(exit) = last {
            self.feed(Input::LeftEnded { agent: key, run, exit });
        }
        self.watch_left(key, run);
    }

    /// A process of a run names its main process, `MAINPID=`, or its `pid_file` does: it has to be one of this run.
    pub(super) fn main_named(&mut self, key: AgentKey, run: Run, pid: i32) {
        if self.machine.main_pid(key, run) == Some(pid) {
            return;
        }
        let Some(process) = self.process_of(key, run, pid) else {
            return tracing::debug!("main process {pid} of {key} is not taken: no such process is in its run");
        };
        let Some(body) = self.bodies.get_mut(&key) else { return };
        let (named, others): (Vec<Left>, Vec<Left>) =
            std::mem::take(&mut body.left).into_iter().partition(|left| left.process.pid == pid);
        body.left = others;
        let before = body.process.take();
        for left in named {
            self.stop_polling(&left.process.fd);
        }
        // The one that was started is our child and has to be waited for. It is the first that comes here; one that was named is
        // kept as long as there are few.
        if let Some((run, process)) = before {
            self.stop_polling(&process.fd);
            if self.bodies.get(&key).is_some_and(|body| body.left.len() <= LEFT_MAX) {
                self.keep_left(key, Left { run, process });
            }
        }
        self.records.note_process(key, pidfd::identity(process.as_fd(), pid).ok());
        self.feed(Input::MainNamed { agent: key, run, pid });
        self.listen_to(key, run, process);
    }

    /// Watches nothing any more of what an earlier run has left behind.
    pub(super) fn forget_left(&mut self, key: AgentKey) {
        let left = self.bodies.get_mut(&key).map(|body| std::mem::take(&mut body.left)).unwrap_or_default();
        for left in left {
            self.stop_polling(&left.process.fd);
        }
    }
}

/// Reads how a process has ended, be it our child or not; none if the kernel does not tell any more.
fn how_it_ended(process: &Held) -> Option<Exit> {
    let process = process.as_fd();
    let waited = pidfd::try_wait(process).ok().flatten().map(|ended| ended.status);
    let told = || pidfd::zombie_exit(process).or_else(|| pidfd::exit_info(process).ok().flatten());
    waited.or_else(told).map(exit_of)
}

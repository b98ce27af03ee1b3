//! What the hands do: one job is one order of the machine, carried out against the kernel.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use super::end::{self, Quarry};
use super::guard;
use super::keepers::{END_MAX, Ends, Keepers, Sweep};
use super::launch::{self, Surroundings};
use super::notify::Leaves;
use super::pid_file::PidRead;
use super::pressure;
use super::reads::{Errand, Reading, Step};
use super::rules::Rulebook;
use super::spawners::Attempt;
use crate::kernel::cgroup::{Cgroups, Frozen, Place, Removal};
use crate::kernel::error::KernelError;
use crate::kernel::keeper::Keeper;
use crate::kernel::orphans::Search;
use crate::kernel::peer::{self, Peer};
use crate::kernel::program;
use crate::kernel::rights::Stream;
use crate::kernel::spawn::{self, Memory, Way};
use crate::kernel::watch::Watches;
use crate::machine::{AgentKey, Force, Frost, Input, ReplyTo, Sample};
use crate::model::error::{Code, Error};
use crate::model::id::{AgentId, Run};
use crate::model::limits::Limits;
use crate::model::ready::Ready;
use crate::model::spec::{AgentSpec, StopSignalTo};
use crate::model::stage::{SpawnFailure, Stage};
use crate::model::survivor::Outsider;
use crate::model::time::Monotonic;
use crate::output::{Dug, Hole, RuleSet, Store, Times};

/// What every hand holds.
#[derive(Debug)]
pub(super) struct Tools {
    pub cgroups: Cgroups,
    pub store: Store,
    pub keepers: Keepers,
    pub watches: Watches,
    pub way: Way,
    pub surroundings: Surroundings,
    pub rulebook: Rulebook,
    pub leaves: Leaves,
    /// Whether the disk of the state directory stalls or is full: nothing is made there in advance then.
    pub is_disk_slow: AtomicBool,
    /// The guardian's process, once there is one.
    pub guardian: OnceLock<i32>,
}

impl Tools {
    /// Lists this supervisor's own processes that live outside the herd's cgroup.
    pub fn own_processes(&self) -> Vec<i32> {
        self.keepers.pids().into_iter().chain(self.guardian.get().copied()).collect()
    }
}

/// A job.
#[derive(Debug)]
pub(super) enum Job {
    /// Take back what a spawn has made that was given up, which has then failed.
    TakeBack(Box<Made>, SpawnFailure),
    Signal {
        agent: AgentKey,
        run: Quarry,
        signal: i32,
        to: StopSignalTo,
    },
    /// Kill one run; nobody waits for the outcome.
    KillRun {
        run: Quarry,
        force: Force,
    },
    Kill {
        agent: AgentKey,
        place: Place,
        runs: Vec<(AgentKey, Quarry)>,
        force: Force,
    },
    /// Find out who has survived a kill.
    Survey {
        number: u64,
        runs: Vec<(AgentKey, Quarry)>,
        homes: Vec<(AgentKey, Place)>,
    },
    Freeze {
        agent: AgentKey,
        place: Place,
        frost: Frost,
    },
    /// Look at what a run has done.
    Sample {
        agent: AgentKey,
        run: Run,
        place: Place,
        id: AgentId,
    },
    RemoveRun {
        agent: AgentKey,
        place: Place,
    },
    Remove {
        agent: AgentKey,
        place: Place,
    },
    SetLimits {
        change: u64,
        settings: Vec<(Place, Limits)>,
    },
    /// Set `memory.high` below what is used; nobody waits for the outcome.
    Tighten(Place),
    /// Set `memory.high` back; nobody waits for the outcome.
    Loosen(Place, Limits),
    Reclaim {
        agent: AgentKey,
        place: Place,
    },
    FindLaggards {
        agents: Vec<(AgentKey, Place)>,
        reply: Option<ReplyTo>,
    },
    /// Find what lives outside the herd, for the receipt of this call.
    FindOutside(ReplyTo, Search),
    /// Give space of an agent's output back.
    Dig {
        agent: AgentKey,
        hole: Hole,
    },
    /// Store when output was seen.
    StoreTimes(Times),
    /// Have an agent's output pipes kept.
    Keep {
        agent: AgentKey,
        id: AgentId,
        /// Of an adopted agent.
        sweep: Option<Arc<Sweep>>,
    },
    /// Close the read ends of an agent's output pipes.
    Close(Ends),
    /// Reap a keeper of output pipes that is about to end.
    Reap(Arc<Keeper>),
    /// Find out who is at the other end of a connection.
    Identify(Arrival),
    /// Read what a client wants to know.
    Read(Box<Errand>),
    /// Give the heap's free memory back to the kernel.
    Trim,
}

/// A connection whose maker is not known yet.
#[derive(Debug)]
pub(super) struct Arrival {
    pub stream: Stream,
    pub accepted: Monotonic,
    /// The last agent that was made before: who connected belongs to none that is made later.
    pub newest: AgentKey,
}

/// What is needed to start a run.
#[derive(Debug)]
pub(super) struct SpawnJob {
    pub agent: AgentKey,
    /// The root agent that it is, or is below.
    pub top: AgentKey,
    pub run: Run,
    pub spec: Arc<AgentSpec>,
    pub home: Place,
    /// The limits of the agent's cgroup, if that is to be made.
    pub make: Option<Limits>,
    /// Whether its memory is accounted for, even without a limit.
    pub accounts_memory: bool,
    /// The place and limits of the cgroup of its siblings together, if that is to be made.
    pub make_level: Option<(Place, Limits)>,
    /// Whether its spool files are to be made.
    pub make_spool: bool,
}

/// What a spawn has brought forth.
#[derive(Debug)]
pub(super) struct Born {
    pub agent: AgentKey,
    pub run: Run,
    /// The main process; none of a group.
    pub process: Option<(i32, OwnedFd)>,
    /// The descriptor on which it is to write a newline when it is ready.
    pub newline: Option<Stream>,
    /// The places that were made with limits.
    pub limited: Vec<(Place, Limits)>,
    /// Which pipes it writes to, if they are pipes.
    pub pipes: Option<u64>,
    /// Its compiled rules, if it has any.
    pub rules: Option<Arc<RuleSet>>,
}

/// How a job came out.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A fact for the machine.
    Fact(Input),
    /// A run has started.
    Born(Box<Born>),
    /// A change of limits is done, in these places.
    Limited(u64, Vec<(Place, Limits)>),
    /// Who hangs, in words.
    Laggards { found: Vec<(AgentKey, String)>, reply: Option<ReplyTo> },
    /// What lives outside the herd, for a receipt.
    Outside(ReplyTo, Vec<Outsider>),
    /// Space of an agent's output is given back.
    Dug(AgentKey, Dug),
    /// A keeper of output pipes has ended, and with it its hold on them.
    KeeperReaped,
    /// An agent's output pipes are kept: these, if it has any.
    Kept(AgentKey, Option<u64>),
    /// Who connected.
    Identified(Arrival, Result<Peer, Error>),
    /// What a client wanted to know.
    Read(Box<Reading>),
    /// What the file says that is to name a run's main process.
    PidRead(PidRead),
    /// There is more to do when the others of its queue have had their turn.
    Unfinished(Job),
    /// Something nobody waits for failed.
    Fault(Error),
    /// Something nobody waits for is done.
    Nothing,
}

impl Job {
    /// Says whether it may be done before what was decided is written down: it changes nothing, or nobody could have it back.
    pub fn is_unrecorded(&self) -> bool {
        let is_a_look = matches!(
            self,
            Self::FindOutside(..)
                | Self::FindLaggards { .. }
                | Self::Survey { .. }
                | Self::Read(_)
                | Self::Sample { .. }
        );
        is_a_look || matches!(self, Self::TakeBack(..) | Self::Identify(_) | Self::Dig { .. } | Self::Trim)
    }

    pub fn run(self, tools: &Tools) -> Outcome {
        let cgroups = &tools.cgroups;
        match self {
            Self::TakeBack(made, failure) => {
                let agent = made.agent;
                made.take_back(tools);
                Outcome::Fact(Input::SpawnFailed { agent, failure })
            }
            Self::Signal { agent, run, signal, to } => {
                let processes = end::signal(cgroups, &run, signal, to);
                Outcome::Fact(Input::Signalled { agent, processes })
            }
            Self::KillRun { run, force } => nothing(end::kill_run(cgroups, &run, force)),
            Self::Kill { agent, place, runs, force } => end::kill(cgroups, agent, &place, &runs, force),
            Self::Survey { number, runs, homes } => end::survey(cgroups, number, &runs, &homes),
            Self::Freeze { agent, place, frost } => freeze(cgroups, agent, &place, frost),
            Self::Sample { agent, run, place, id } => {
                Outcome::Fact(Input::Sampled { agent, run, sample: sample(tools, &place, &id) })
            }
            Self::RemoveRun { place, .. } => nothing(cgroups.remove(&place)),
            Self::Remove { agent, place } => Outcome::Fact(match cgroups.remove(&place) {
                Ok(Removal::Removed) => Input::Removed(agent),
                Ok(Removal::Busy) => Input::RemoveRefused(agent),
                Err(error) => {
                    note::<()>(&error);
                    Input::RemoveRefused(agent)
                }
            }),
            Self::SetLimits { change, settings } => set_limits(cgroups, change, &settings),
            Self::Tighten(place) => done(pressure::tighten(cgroups, &place)),
            Self::Loosen(place, limits) => done(cgroups.set_limits(&place, &limits)),
            Self::Reclaim { agent, place } => match cgroups.reclaim(&place) {
                Ok(true) => Outcome::Fact(Input::Reclaimed(agent)),
                other => nothing(other),
            },
            Self::FindLaggards { agents, reply } => {
                let found = agents.into_iter().map(|(key, place)| (key, laggards(cgroups, &place))).collect();
                Outcome::Laggards { found, reply }
            }
            Self::FindOutside(to, mut search) => match search.step(&cgroups.herd_path(), &tools.own_processes()) {
                Some(found) => Outcome::Outside(to, found),
                None => Outcome::Unfinished(Self::FindOutside(to, search)),
            },
            Self::Dig { agent, hole } => Outcome::Dug(agent, hole.dig()),
            Self::Keep { agent, id, sweep } => {
                let kept = keep(tools, &id);
                drop(sweep);
                kept.map_or_else(Outcome::Fault, |token| Outcome::Kept(agent, token))
            }
            Self::Close(ends) => {
                drop(ends);
                Outcome::Nothing
            }
            Self::StoreTimes(times) => done(times.store()),
            Self::Reap(keeper) => {
                keeper.reap(END_MAX);
                Outcome::KeeperReaped
            }
            Self::Identify(arrival) => {
                let peer = peer::peer(&arrival.stream, arrival.accepted, |id| cgroups.path_of_id(id));
                Outcome::Identified(arrival, peer.map_err(Error::from))
            }
            Self::Trim => {
                program::trim_heap();
                Outcome::Nothing
            }
            Self::Read(errand) => match errand.step(tools) {
                Step::Done(reading) => Outcome::Read(Box::new(reading)),
                Step::More(errand) => Outcome::Unfinished(Self::Read(Box::new(errand))),
            },
        }
    }
}

/// Logs an error of something that will be tried again or is seen otherwise, and goes on with the default.
pub(super) fn note<T: Default>(error: &crate::kernel::error::KernelError) -> T {
    tracing::warn!("{error}");
    T::default()
}

/// Reads what a run has done. One that is over meanwhile is nobody's business any more.
fn sample(tools: &Tools, place: &Place, id: &AgentId) -> Option<Sample> {
    let cpu = tools.cgroups.cpu_used(place).inspect_err(|error| tracing::debug!("{error}")).ok()?;
    let output_bytes = tools.store.written(id).inspect_err(|error| tracing::debug!("{error}")).ok()?;
    Some(Sample { cpu, output_bytes })
}

/// Has the pipes of an agent kept, and returns which ones; none if it has none. Opening a pipe
/// waits for as long as another process holds its lock: never on the loop.
fn keep(tools: &Tools, id: &AgentId) -> Result<Option<u64>, Error> {
    let Some(pipes) = tools.store.pipes(id)? else { return Ok(None) };
    let token = pipes.token;
    tools.keepers.keep(pipes)?;
    Ok(Some(token))
}

fn done(outcome: Result<(), Error>) -> Outcome {
    outcome.map_or_else(Outcome::Fault, |()| Outcome::Nothing)
}

fn nothing<T>(outcome: crate::kernel::error::Result<T>) -> Outcome {
    outcome.map_or_else(|error| Outcome::Fault(error.into()), |_| Outcome::Nothing)
}

fn freeze(cgroups: &Cgroups, agent: AgentKey, place: &Place, frost: Frost) -> Outcome {
    let frozen = match frost {
        Frost::Frozen => Frozen::Frozen,
        Frost::Thawed => Frozen::Thawed,
    };
    if let Err(error) = cgroups.set_frozen(place, frozen) {
        note::<()>(&error);
    }
    Outcome::Fact(Input::FreezerWritten { agent, written: frost })
}

/// Sets limits in several places; when one is refused, those before it get back what they had.
fn set_limits(cgroups: &Cgroups, change: u64, settings: &[(Place, Limits)]) -> Outcome {
    let mut undo: Vec<(&Place, Limits)> = Vec::new();
    for (place, limits) in settings {
        let before = cgroups.limits_now(place, limits.iter().map(|(knob, _)| knob));
        if let Err(error) = cgroups.set_limits(place, limits) {
            for (place, before) in undo.iter().rev() {
                if let Err(error) = cgroups.set_limits(place, before) {
                    tracing::warn!("put limits back: {error}");
                }
            }
            return Outcome::Fact(Input::LimitsRefused(change, error));
        }
        undo.push((place, before));
    }
    Outcome::Limited(change, settings.to_vec())
}

fn laggards(cgroups: &Cgroups, place: &Place) -> String {
    let tasks = cgroups.laggards(place);
    if tasks.is_empty() {
        return "nothing that can be named".to_owned();
    }
    let name = |task: &crate::kernel::cgroup::Laggard| {
        let wchan = task.wchan.as_deref().map(|wchan| format!(" in {wchan}")).unwrap_or_default();
        format!(
            "process {} ({}, state {}{wchan})",
            task.pid,
            crate::output::escape(task.comm.as_bytes(), crate::output::Colours::Escaped),
            task.state
        )
    };
    tasks.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// What a spawn has made so far: taken back, last first, if a later step fails.
#[derive(Debug)]
pub(super) struct Made {
    agent: AgentKey,
    level: Option<Place>,
    home: Option<Place>,
    leaf: Option<Place>,
    /// Whose spool files.
    spool: Option<AgentId>,
    /// Output pipes that a keeper was given.
    pipes: Option<u64>,
}

impl SpawnJob {
    /// Carries it out. Given up meanwhile, it has no outcome.
    pub fn run(&self, tools: &Tools, attempt: &Attempt) -> Outcome {
        let launched = self.make_all(tools, attempt);
        let Some((made, born)) = attempt.finish() else { return Outcome::Nothing };
        let failure = match (launched, born) {
            (Ok(process), Some(mut born)) => {
                born.process = process.map(|launched| (launched.pid, launched.pidfd));
                return Outcome::Born(born);
            }
            (Err(failure), _) => failure,
            (Ok(_), None) => at(Stage::Prepare, Error::new(Code::Kernel, "it never began to clone")),
        };
        made.take_back(tools);
        Outcome::Fact(Input::SpawnFailed { agent: self.agent, failure })
    }

    /// Makes a cgroup and notes it, so that whoever fails or is given up later leaves nothing.
    fn make(
        &self,
        tools: &Tools,
        attempt: &Attempt,
        place: &Place,
        limits: &Limits,
        which: fn(&mut Made) -> &mut Option<Place>,
    ) -> Result<(), SpawnFailure> {
        tools.cgroups.make(place, limits).map_err(|error| at(Stage::Cgroup, error))?;
        attempt.note(|made| *which(made) = Some(place.clone())).inspect_err(|_| remove(tools, place))
    }

    fn make_all(&self, tools: &Tools, attempt: &Attempt) -> Result<Option<spawn::Launched>, SpawnFailure> {
        let cgroups = &tools.cgroups;
        let rules = tools.rulebook.compiled(&self.spec).map_err(|error| at(Stage::Prepare, error))?;
        if let Some((place, limits)) = &self.make_level {
            self.make(tools, attempt, place, limits, |made| &mut made.level)?;
        }
        let mut born = Born {
            agent: self.agent,
            run: self.run,
            process: None,
            newline: None,
            limited: Vec::new(),
            pipes: None,
            rules,
        };
        born.limited.extend(self.make_level.clone());
        born.limited.extend(self.make.clone().map(|limits| (self.home.clone(), limits)));
        if let Some(limits) = &self.make {
            self.make(tools, attempt, &self.home, limits, |made| &mut made.home)?;
            if self.accounts_memory
                && let Err(error) = cgroups.account_memory(&self.home)
            {
                tracing::warn!("a pause for memory will take none of it back: {error}");
            }
        }
        if self.spec.is_group() {
            return attempt.begin_clone(born).map(|()| None);
        }
        let place = self.home.join(&format!("run-{}", self.run));
        let leaf = cgroups.make_leaf(&place).map_err(|error| at(Stage::Cgroup, error.into()))?;
        attempt.note(|made| made.leaf = Some(place.clone())).inspect_err(|_| remove(tools, &place))?;
        guard::check_for_spawn(leaf.as_fd()).map_err(|error| at(Stage::Prepare, error))?;
        let id = &self.spec.id;
        let output = self.spec.output;
        let inlet = if self.make_spool { tools.store.create(id, output) } else { tools.store.inlet(id, output) };
        let inlet = inlet.map_err(|error| at(Stage::Prepare, error))?;
        if self.make_spool {
            attempt.note(|made| made.spool = Some(id.clone()))?;
        }
        if let Some(token) = inlet.token {
            self.keep_pipes(tools, attempt, token)?;
            born.pipes = Some(token);
        }
        let mut launch = launch::prepare(&self.spec, tools, &place, leaf, inlet)?;
        if self.spec.notifies() {
            let about = rustix::fs::fstat(&launch.leaf).map_err(|errno| failed("stat", &place, errno))?;
            tools.leaves.note(self.agent, self.run, about.st_ino);
        }
        if let Some(Ready::Fd(number)) = self.spec.ready {
            let (ours, theirs) = launch::newline_sockets()?;
            (born.newline, launch.passed) = (Some(ours), Some((theirs, number)));
        }
        // In a delegated cgroup its user could make one that is killed as a group.
        let shared = if self.spec.delegate { None } else { cgroups.share_memory(&place) };
        if shared.is_some() {
            launch.memory = Memory::Shared;
        }
        attempt.begin_clone(born)?;
        spawn::spawn_shared(&launch, &attempt.newborn)
    }

    /// Has the output pipes kept, which waits for a keeper that has much to do. New ones that a failed spawn leaves are forgotten.
    fn keep_pipes(&self, tools: &Tools, attempt: &Attempt, token: u64) -> Result<(), SpawnFailure> {
        if !tools.keepers.has(token) {
            keep(tools, &self.spec.id).map_err(|error| at(Stage::Prepare, error))?;
        }
        if self.make_spool {
            let noted = attempt.note(|made| made.pipes = Some(token));
            noted.inspect_err(|_| drop(tools.keepers.forget(token)))?;
        }
        Ok(())
    }
}

impl Made {
    /// Of a spawn that has made nothing yet.
    pub fn of(job: &SpawnJob) -> Self {
        Self { agent: job.agent, level: None, home: None, leaf: None, spool: None, pipes: None }
    }

    fn take_back(self, tools: &Tools) {
        tools.leaves.forget(self.agent);
        for place in [self.leaf, self.home, self.level].into_iter().flatten() {
            remove(tools, &place);
        }
        if let Some(token) = self.pipes {
            drop(tools.keepers.forget(token));
        }
        if let Some(id) = self.spool
            && let Err(error) = tools.store.remove(&id)
        {
            tracing::warn!("take back the output of {id}: {error}");
        }
    }
}

fn remove(tools: &Tools, place: &Place) {
    match tools.cgroups.remove(place) {
        Ok(Removal::Removed) => {}
        Ok(Removal::Busy) => tracing::warn!("take back {place}: a process is still in it"),
        Err(error) => tracing::warn!("take back {place}: {error}"),
    }
}

fn failed(operation: &str, place: &Place, errno: rustix::io::Errno) -> SpawnFailure {
    at(Stage::Prepare, KernelError::new(operation, place.to_string(), errno).into())
}

/// Turns an error of a step into a spawn's failure.
pub(super) fn at(stage: Stage, error: Error) -> SpawnFailure {
    SpawnFailure { stage, errno: None, message: error.message, remedy: error.remedy }
}

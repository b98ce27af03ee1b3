//! The model kernel: cgroups and processes, and what is true of them. Every rule here is a fact about the real one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use treeherd::machine::{AgentKey, Force, Frost, LimitPlace, Sample, SpawnOrder, Survey};
use treeherd::model::id::Run;
use treeherd::model::limits::Limits;
use treeherd::model::stall::IDLE_SHARE;
use treeherd::model::status::Exit;
use treeherd::model::survivor::{SurvivalReason, Survivor};

/// How a process takes the stop signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    /// It dies of it at once, even frozen.
    Plain,
    /// It has a handler, and ends when it next runs.
    Handler,
    /// It ignores it.
    Stubborn,
}

/// A live process.
#[derive(Clone, Debug)]
pub struct Process {
    pub agent: AgentKey,
    pub run: Run,
    pub is_main: bool,
    pub temper: Temper,
    /// It moved itself from the run's leaf into the agent's own cgroup.
    pub has_strayed: bool,
    /// It is a main process that left the herd's cgroups: a signal or kill of its run reaches it by its pidfd, and nothing else does.
    pub has_departed: bool,
    pub is_stopped: bool,
    /// In D state: it neither freezes nor dies.
    pub is_jammed: bool,
    /// Its first thread has ended: `cgroup.kill` passes it over, unless it is a main process, whose pidfd is held.
    pub is_hollow: bool,
    /// It has got the stop signal and will obey.
    pub is_asked: bool,
    pub is_doomed: bool,
}

/// How a main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    pub exit: Exit,
    pub is_oom: bool,
    /// Whether a signal or kill that was ordered caused it.
    pub is_ours: bool,
}

/// Something that a descriptor or a watch will tell. They merge: each is told as it is when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    Exit(AgentKey, Run),
    Said(AgentKey, Run),
    Run(AgentKey, Run),
    Subtree(AgentKey),
    Frost(AgentKey),
}

/// An agent's cgroup.
#[derive(Clone, Debug)]
pub struct Dir {
    pub parent: Option<AgentKey>,
    pub limits: Limits,
    /// The cgroup of the children together, with its limits.
    pub nursery: Option<Limits>,
    pub freeze: Frost,
    pub runs: BTreeSet<Run>,
    populated_runs: BTreeSet<Run>,
    is_populated: bool,
    is_frozen: bool,
}

/// What happened to an agent's processes, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub forks: u64,
    pub own_deaths: u64,
    pub strays: u64,
    pub our_deaths: u64,
}

/// A spawn that hangs on its way to exec, with what is to be taken back when it fails.
#[derive(Clone, Copy, Debug)]
pub struct Hanging {
    pub run: Run,
    made: bool,
    made_level: bool,
}

fn survivor((pid, process): (u64, &Process)) -> Survivor {
    Survivor {
        pid: i32::try_from(pid).unwrap(),
        comm: "model".to_owned(),
        state: if process.is_jammed { 'D' } else { 'R' },
        wchan: None,
        place: format!("/model/{}", process.agent),
        reason: SurvivalReason::Uninterruptible,
        tracer: None,
    }
}

/// Says whether a kill takes a process.
fn is_hit(process: &Process, force: Force) -> bool {
    force == Force::Sweep || !process.is_hollow || process.is_main
}

/// The kernel.
#[derive(Default)]
pub struct Kernel {
    pub dirs: BTreeMap<AgentKey, Dir>,
    pub processes: BTreeMap<u64, Process>,
    pub deaths: BTreeMap<(AgentKey, Run), Death>,
    pub runs_ever: BTreeSet<(AgentKey, Run)>,
    pub hanging: BTreeMap<AgentKey, Hanging>,
    pub notices: BTreeSet<Notice>,
    pub tallies: BTreeMap<AgentKey, Tally>,
    /// Lines that rules find, by the rule, as long as nobody has looked at them.
    pub unread: BTreeMap<(AgentKey, Run), VecDeque<usize>>,
    /// Runs that have said something that means failure.
    pub fatal: BTreeSet<(AgentKey, Run)>,
    /// Those of them whose words were not lost with a supervisor.
    pub heard: BTreeSet<(AgentKey, Run)>,
    /// What each run has done.
    pub work: BTreeMap<(AgentKey, Run), Sample>,
    /// How processes have ended that were no main ones, until the shell has looked.
    pub left: Vec<(AgentKey, Run, Exit)>,
    pub herd: Limits,
    /// Whether processes freeze one by one, when chance says so.
    pub freezes_slowly: bool,
    next: u64,
}

impl Kernel {
    fn chain(&self, key: AgentKey) -> impl Iterator<Item = AgentKey> {
        std::iter::successors(Some(key), |key| self.dirs.get(key).and_then(|dir| dir.parent))
    }

    pub fn is_within(&self, key: AgentKey, top: AgentKey) -> bool {
        self.chain(key).any(|above| above == top)
    }

    /// Says whether a cgroup is to be frozen, by itself or from above.
    pub fn is_to_freeze(&self, key: AgentKey) -> bool {
        self.chain(key).any(|key| self.dirs.get(&key).is_some_and(|dir| dir.freeze == Frost::Frozen))
    }

    pub fn within(&self, top: AgentKey) -> impl Iterator<Item = (u64, &Process)> {
        let is_in = move |it: &Process| !it.has_departed && self.is_within(it.agent, top);
        self.processes.iter().filter(move |(_, it)| is_in(it)).map(|(pid, it)| (*pid, it))
    }

    /// Says whether every process of a subtree stands still.
    pub fn is_still(&self, top: AgentKey) -> bool {
        self.within(top).all(|(_, process)| process.is_stopped)
    }

    pub fn in_run(&self, agent: AgentKey, run: Run) -> impl Iterator<Item = (u64, &Process)> {
        let is_in = move |it: &Process| it.agent == agent && it.run == run && !it.has_strayed && !it.has_departed;
        self.processes.iter().filter(move |(_, it)| is_in(it)).map(|(pid, it)| (*pid, it))
    }

    /// The main process of a run, if it left the herd.
    fn departed(&self, agent: AgentKey, run: Run) -> impl Iterator<Item = (u64, &Process)> {
        let is_it = move |it: &Process| it.has_departed && it.agent == agent && it.run == run;
        self.processes.iter().filter(move |(_, it)| is_it(it)).map(|(pid, it)| (*pid, it))
    }

    /// The processes that a signal or kill of a run reaches.
    fn reach(&self, agent: AgentKey, run: Run) -> impl Iterator<Item = (u64, &Process)> {
        self.in_run(agent, run).chain(self.departed(agent, run))
    }

    /// Says whether a process of a run lives, the main one wherever it is.
    pub fn lives(&self, agent: AgentKey, run: Run) -> bool {
        self.reach(agent, run).next().is_some()
    }

    /// Says whether the main process of a run lives, wherever it is.
    pub fn has_main(&self, agent: AgentKey, run: Run) -> bool {
        self.reach(agent, run).any(|(_, it)| it.is_main)
    }

    fn tally(&mut self, agent: AgentKey) -> &mut Tally {
        self.tallies.entry(agent).or_default()
    }

    /// Brings what the kernel tells up to date with what is.
    pub fn update(&mut self) {
        let frost: Vec<_> = self.dirs.keys().map(|key| (*key, self.is_to_freeze(*key))).collect();
        for (key, is_to_freeze) in frost {
            let slowly = self.freezes_slowly;
            for process in self.processes.values_mut().filter(|it| it.agent == key && !it.has_departed) {
                match is_to_freeze {
                    true if !slowly && !process.is_jammed => process.is_stopped = true,
                    true => {}
                    false => process.is_stopped = false,
                }
            }
        }
        for key in self.dirs.keys().copied().collect::<Vec<_>>() {
            let is_populated =
                self.within(key).next().is_some() || self.hanging.keys().any(|it| self.is_within(*it, key));
            let is_frozen = self.is_to_freeze(key) && self.is_still(key);
            let runs: BTreeSet<Run> =
                self.dirs[&key].runs.iter().copied().filter(|run| self.in_run(key, *run).next().is_some()).collect();
            let dir = self.dirs.get_mut(&key).unwrap();
            let emptied = dir.populated_runs.difference(&runs).map(|run| Notice::Run(key, *run)).collect::<Vec<_>>();
            if dir.is_populated && !is_populated {
                self.notices.insert(Notice::Subtree(key));
            }
            if dir.is_frozen != is_frozen {
                self.notices.insert(Notice::Frost(key));
            }
            (dir.populated_runs, dir.is_populated, dir.is_frozen) = (runs, is_populated, is_frozen);
            self.notices.extend(emptied);
        }
    }

    pub fn is_frozen(&self, key: AgentKey) -> bool {
        self.dirs.get(&key).is_some_and(|dir| dir.is_frozen)
    }

    /// Makes the cgroups of a spawn. What is there already, or is missing, is a bug of whoever ordered it.
    fn make(&mut self, order: &SpawnOrder, parent: Option<AgentKey>) -> Hanging {
        let key = order.agent;
        if let Some(parent) = parent {
            let above = self
                .dirs
                .get_mut(&parent)
                .unwrap_or_else(|| panic!("{key}: a spawn below {parent}, which has no cgroup"));
            match (&order.make_level, &above.nursery) {
                (Some(limits), None) => above.nursery = Some(limits.clone()),
                (None, Some(_)) => {}
                (Some(_), Some(_)) => panic!("{key}: mkdir of the level below {parent}: EEXIST"),
                (None, None) => panic!("{key}: the level below {parent} was never made"),
            }
        } else {
            assert!(order.make_level.is_none(), "{key}: a root agent stands in no level's cgroup");
        }
        match (&order.make, self.dirs.contains_key(&key)) {
            (Some(limits), false) => {
                let dir = Dir {
                    parent,
                    limits: limits.clone(),
                    nursery: None,
                    freeze: Frost::Thawed,
                    runs: BTreeSet::new(),
                    populated_runs: BTreeSet::new(),
                    is_populated: false,
                    is_frozen: false,
                };
                self.dirs.insert(key, dir);
            }
            (None, true) => {}
            (Some(_), true) => panic!("{key}: mkdir of its cgroup: EEXIST"),
            (None, false) => panic!("{key}: its cgroup was never made"),
        }
        assert!(!self.is_to_freeze(key), "{key}: clone into a frozen cgroup hangs");
        if !order.spec.is_group() {
            assert!(self.runs_ever.insert((key, order.run)), "{key}: the leaf of run {} is used twice", order.run);
            self.dirs.get_mut(&key).unwrap().runs.insert(order.run);
        }
        Hanging { run: order.run, made: order.make.is_some(), made_level: order.make_level.is_some() }
    }

    /// Carries out a spawn; none for a group, else the pid.
    pub fn spawn(&mut self, order: &SpawnOrder, parent: Option<AgentKey>, temper: Temper) -> Option<i32> {
        self.make(order, parent);
        if order.spec.is_group() {
            return None;
        }
        let pid = self.add(order.agent, order.run, temper);
        self.processes.get_mut(&pid).unwrap().is_main = true;
        i32::try_from(pid).ok()
    }

    pub fn spawn_hanging(&mut self, order: &SpawnOrder, parent: Option<AgentKey>) {
        let hanging = self.make(order, parent);
        self.hanging.insert(order.agent, hanging);
    }

    pub fn spawn_failing(&mut self, order: &SpawnOrder, parent: Option<AgentKey>) {
        let made = self.make(order, parent);
        self.unmake(order.agent, made);
    }

    fn unmake(&mut self, key: AgentKey, made: Hanging) {
        let dir = self.dirs.get_mut(&key).unwrap();
        dir.runs.remove(&made.run);
        let parent = dir.parent;
        if made.made {
            self.dirs.remove(&key);
        }
        if let Some(above) = parent.filter(|_| made.made_level) {
            self.dirs.get_mut(&above).unwrap().nursery = None;
        }
    }

    fn add(&mut self, agent: AgentKey, run: Run, temper: Temper) -> u64 {
        self.next += 1;
        let process = Process {
            agent,
            run,
            is_main: false,
            temper,
            has_strayed: false,
            has_departed: false,
            is_stopped: false,
            is_jammed: false,
            is_hollow: false,
            is_asked: false,
            is_doomed: false,
        };
        self.processes.insert(self.next, process);
        self.next
    }

    pub fn fork(&mut self, pid: u64, temper: Temper) {
        let parent = self.processes[&pid].clone();
        let child = self.add(parent.agent, parent.run, temper);
        self.processes.get_mut(&child).unwrap().has_strayed = parent.has_strayed;
        self.tally(parent.agent).forks += 1;
    }

    /// A run uses CPU or writes output.
    pub fn work(&mut self, run: (AgentKey, Run), cpu: Duration, bytes: u64) {
        let work = self.work.entry(run).or_insert(Sample { cpu: Duration::ZERO, output_bytes: 0 });
        work.cpu += cpu;
        work.output_bytes += bytes;
    }

    /// Time passes: whatever is not stopped ticks, half as much as is no work.
    pub fn tick(&mut self, time: Duration) {
        let awake = self.processes.values().filter(|it| !it.is_stopped && !it.has_strayed && !it.has_departed);
        let runs: BTreeSet<_> = awake.map(|process| (process.agent, process.run)).collect();
        for run in runs {
            self.work(run, time / IDLE_SHARE / 2, 0);
        }
    }

    /// A process says something that a rule of its agent finds.
    pub fn say(&mut self, pid: u64, rule: usize, is_fatal: bool) {
        let process = &self.processes[&pid];
        let run = (process.agent, process.run);
        self.unread.entry(run).or_default().push_back(rule);
        self.notices.insert(Notice::Said(run.0, run.1));
        if is_fatal {
            self.fatal.insert(run);
            self.heard.insert(run);
        }
    }

    /// What was said up to now is looked at by nobody: the next supervisor begins with what is said from then on.
    pub fn forget_words(&mut self) {
        self.unread.clear();
        self.heard.clear();
    }

    pub fn stray(&mut self, pid: u64) {
        let process = self.processes.get_mut(&pid).unwrap();
        process.has_strayed = true;
        let agent = process.agent;
        self.tally(agent).strays += 1;
    }

    pub fn depart(&mut self, pid: u64) {
        self.processes.get_mut(&pid).unwrap().has_departed = true;
    }

    /// A process ends by itself.
    pub fn exit(&mut self, pid: u64, exit: Exit, is_oom: bool) {
        let agent = self.processes[&pid].agent;
        self.tally(agent).own_deaths += 1;
        self.bury(pid, Death { exit, is_oom, is_ours: false });
    }

    /// A process ends since it was told to.
    pub fn obey(&mut self, pid: u64, exit: Exit) {
        let agent = self.processes[&pid].agent;
        self.tally(agent).our_deaths += 1;
        self.bury(pid, Death { exit, is_oom: false, is_ours: true });
    }

    fn bury(&mut self, pid: u64, death: Death) {
        let process = self.processes.remove(&pid).unwrap();
        if process.is_main {
            self.deaths.insert((process.agent, process.run), death);
            self.notices.insert(Notice::Exit(process.agent, process.run));
        } else if !process.has_strayed {
            self.left.push((process.agent, process.run, death.exit));
        }
    }

    fn strike(&mut self, pid: u64, number: i32) {
        let process = self.processes.get_mut(&pid).unwrap();
        if process.is_jammed {
            process.is_doomed = true;
        } else {
            self.obey(pid, Exit::Signal { number, core: false });
        }
    }

    pub fn unjam(&mut self, pid: u64) {
        let process = self.processes.get_mut(&pid).unwrap();
        process.is_jammed = false;
        if process.is_doomed {
            self.strike(pid, 9);
        }
    }

    pub fn signal(&mut self, agent: AgentKey, run: Run) -> u64 {
        assert!(self.runs_ever.contains(&(agent, run)), "{agent}: a signal for run {run}, which never was");
        let pids: Vec<_> = self.reach(agent, run).map(|(pid, it)| (pid, it.temper)).collect();
        for (pid, temper) in &pids {
            match temper {
                Temper::Plain => self.strike(*pid, 15),
                Temper::Handler => self.processes.get_mut(pid).unwrap().is_asked = true,
                Temper::Stubborn => {}
            }
        }
        pids.len() as u64
    }

    /// Kills one run; says whether a spawn hung in it.
    pub fn kill_run(&mut self, agent: AgentKey, run: Run, force: Force) -> bool {
        assert!(self.runs_ever.contains(&(agent, run)), "{agent}: a kill for run {run}, which never was");
        for pid in self.reach(agent, run).filter(|(_, it)| is_hit(it, force)).map(|(pid, _)| pid).collect::<Vec<_>>() {
            self.strike(pid, 9);
        }
        let hangs = self.hanging.get(&agent).copied().filter(|hanging| hanging.run == run);
        if let Some(hanging) = hangs {
            self.hanging.remove(&agent);
            self.unmake(agent, hanging);
        }
        hangs.is_some()
    }

    /// Kills a subtree, and counts the processes of these runs right before.
    pub fn kill(&mut self, top: AgentKey, runs: &[(AgentKey, Run)], force: Force) -> Vec<(AgentKey, u64)> {
        assert!(
            !self.hanging.keys().any(|key| self.is_within(*key, top)),
            "{top}: killed while a spawn into it is on its way"
        );
        let count = |(agent, run): &(AgentKey, Run)| (*agent, self.reach(*agent, *run).count() as u64);
        let counts = runs.iter().map(count).filter(|(_, count)| *count > 0).collect();
        let departed = runs.iter().flat_map(|(agent, run)| self.departed(*agent, *run));
        let hit = self.within(top).filter(|(_, it)| is_hit(it, force)).chain(departed);
        for pid in hit.map(|(pid, _)| pid).collect::<Vec<_>>() {
            self.strike(pid, 9);
        }
        counts
    }

    /// Names the processes that live in these runs and cgroups.
    pub fn survey(&self, survey: &Survey) -> Vec<(AgentKey, Vec<Survivor>)> {
        let runs = survey.runs.iter().map(|(key, run)| (*key, self.reach(*key, *run).map(survivor).collect()));
        let homes = survey.homes.iter().map(|key| (*key, self.within(*key).map(survivor).collect()));
        runs.chain(homes).collect()
    }

    pub fn freeze(&mut self, key: AgentKey, frost: Frost) {
        if let Some(dir) = self.dirs.get_mut(&key) {
            assert!(
                frost == Frost::Thawed || !self.hanging.keys().any(|it| *it == key),
                "{key}: frozen while its spawn is on its way"
            );
            dir.freeze = frost;
        }
    }

    pub fn remove_run(&mut self, key: AgentKey, run: Run) {
        assert!(self.in_run(key, run).next().is_none(), "{key}: rmdir of run {run}: EBUSY");
        if let Some(dir) = self.dirs.get_mut(&key) {
            dir.runs.remove(&run);
        }
    }

    /// Removes a cgroup and all below it; says no if something lives there.
    pub fn remove(&mut self, top: AgentKey) -> Result<(), ()> {
        assert!(
            !self.hanging.keys().any(|key| self.is_within(*key, top)),
            "{top}: removed while a spawn into it is on its way"
        );
        if self.within(top).next().is_some() {
            return Err(());
        }
        let gone: Vec<_> = self.dirs.keys().copied().filter(|key| self.is_within(*key, top)).collect();
        for key in gone {
            self.dirs.remove(&key);
        }
        Ok(())
    }

    pub fn set_limits(&mut self, settings: &[(LimitPlace, Limits)]) {
        for (place, limits) in settings {
            let target = match place {
                LimitPlace::Herd => Some(&mut self.herd),
                LimitPlace::Agent(key) => self.dirs.get_mut(key).map(|dir| &mut dir.limits),
                LimitPlace::Children(key) => self.dirs.get_mut(key).and_then(|dir| dir.nursery.as_mut()),
            };
            if let Some(target) = target {
                *target = target.overlaid(limits);
            }
        }
    }
}

//! The shell of the model: carries orders to the kernel and facts back, in an order that chance or a search picks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use treeherd::machine::{AgentKey, Caller, Effect, Input, Machine, Now, ReplyTo};
use treeherd::model::config::HerdConfig;
use treeherd::model::error::{Code, Error};
use treeherd::model::id::Run;
use treeherd::model::note::Note;
use treeherd::model::request::Request;
use treeherd::model::rule::{Action, Found};
use treeherd::model::spec::OnMainExit;
use treeherd::model::stage::{SpawnFailure, Stage};
use treeherd::model::status::{Exit, Oom, Rusage};
use treeherd::model::stream::Stream;
use treeherd::model::time::{Monotonic, Wall};

use super::chance::Chance;
use super::crash::Disk;
use super::kernel::{Kernel, Notice, Temper};
use super::observer::Observer;

/// What goes in order among itself: one agent's orders and answers, and what takes another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Agent(AgentKey),
    /// The kill that frees a hand cannot wait for that hand.
    Rescue(AgentKey, Run),
    Limits(u64),
    /// A look at a run keeps nobody waiting.
    Look(AgentKey, Run),
    /// Who has survived is looked for beside everything else.
    Survey(u64),
    /// Nobody waits for what is taken back.
    Memory(AgentKey),
}

/// What can go wrong in this world, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub spawn_fails: u32,
    pub spawn_hangs: u32,
    pub limits_refused: u32,
    pub doubles: u32,
    pub stubborn: u32,
    pub handlers: u32,
    pub jams: u32,
    pub hollows: u32,
    pub strays: u32,
    pub departs: u32,
    pub hours: u32,
}

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Order(Lane),
    Answer(Lane),
    Notice(Notice),
    Stop(u64),
    Obey(u64),
    Unjam(u64),
    /// The oldest message of a process is read.
    Read,
}

pub struct World {
    pub machine: Machine,
    pub kernel: Kernel,
    pub observer: Observer,
    pub now: Now,
    pub chance: Chance,
    pub faults: Faults,
    pub orders: BTreeMap<Lane, VecDeque<Effect>>,
    pub answers: BTreeMap<Lane, VecDeque<Input>>,
    /// What processes have told of themselves, oldest first.
    pub letters: VecDeque<Input>,
    /// What is written down for the next machine.
    pub disk: Disk,
    pub steps: u64,
    pub calls: u64,
    pub tells: bool,
}

impl World {
    pub fn new(config: HerdConfig, chance: Chance) -> Self {
        let mut kernel = Kernel::default();
        kernel.herd = config.limits.clone();
        let observer = Observer::new(&config);
        Self {
            machine: Machine::new(config, "/model".to_owned(), BTreeMap::new(), 1),
            kernel,
            observer,
            now: Now { mono: Monotonic(1_000_000_000), wall: Wall(1_700_000_000_000_000_000) },
            chance,
            faults: Faults::default(),
            orders: BTreeMap::new(),
            answers: BTreeMap::new(),
            letters: VecDeque::new(),
            disk: Disk::default(),
            steps: 0,
            calls: 0,
            tells: false,
        }
    }

    /// Hands the machine an input, checks everything, and sends the orders on their way.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        self.steps += 1;
        if self.tells {
            eprintln!("{:>6} {:?} {input:?}", self.steps, Duration::from_nanos(self.now.mono.0));
        }
        let asked = self.observer.before(&self.machine, &self.kernel, self.now, &input);
        let mut effects = Vec::new();
        self.machine.step(self.now, input, &mut effects);
        if self.tells {
            for effect in &effects {
                match effect {
                    Effect::Publish(event) => eprintln!(
                        "          tells {} {} {} {:?} {}",
                        event.kind,
                        event.agent.as_ref().map_or("", |id| id.as_str()),
                        event.run.unwrap_or_default(),
                        event.exit.as_ref().map(|exit| exit.cause),
                        event.message
                    ),
                    Effect::Spawn(order) => eprintln!(
                        "          Spawn {} {} run {} make {} level {}",
                        order.agent,
                        order.spec.id,
                        order.run,
                        order.make.is_some(),
                        order.make_level.is_some()
                    ),
                    Effect::Reply(to, Ok(_)) => eprintln!("          Reply {to:?} Ok"),
                    effect => eprintln!("          {effect:?}"),
                }
            }
        }
        self.machine.check();
        let mut again = Vec::new();
        self.machine.settle_everything(self.now, &mut again);
        assert_eq!(again, [], "settling again orders nothing");
        if self.disk.doom.is_some() {
            self.die_in_step(&effects);
            return Vec::new();
        }
        self.disk.write(&effects);
        self.disk.check(&self.machine);
        self.observer.after(&self.machine, &self.kernel, self.now, asked, &effects);
        for effect in &effects {
            self.route(effect);
        }
        effects
    }

    pub fn route(&mut self, effect: &Effect) {
        let lane = match effect {
            Effect::Spawn(order) => Lane::Agent(order.agent),
            Effect::KillRun { agent, run, .. } => Lane::Rescue(*agent, *run),
            Effect::Sample { agent, run } => Lane::Look(*agent, *run),
            Effect::Survey { number, .. } => Lane::Survey(*number),
            Effect::Reclaim(agent) => Lane::Memory(*agent),
            Effect::Signal { agent, .. }
            | Effect::Kill { agent, .. }
            | Effect::Freeze { agent, .. }
            | Effect::ReadOutput { agent, .. }
            | Effect::RemoveRun { agent, .. }
            | Effect::Remove(agent) => Lane::Agent(*agent),
            Effect::SetLimits { change, .. } => Lane::Limits(*change),
            Effect::FindLaggards { .. }
            | Effect::Tighten(_)
            | Effect::Loosen(_)
            | Effect::Reply(..)
            | Effect::Publish(_)
            | Effect::Record(_)
            | Effect::RecordHerd(_)
            | Effect::Forget(_)
            | Effect::Finish => return,
        };
        self.orders.entry(lane).or_default().push_back(effect.clone());
    }

    /// Asks for something as a new call of a client.
    pub fn ask(&mut self, client: u64, agent: Option<AgentKey>, request: Request) -> (ReplyTo, Vec<Effect>) {
        self.calls += 1;
        let to = ReplyTo { client, call: self.calls };
        let caller = Caller { name: format!("client {client}").into(), agent, user: None };
        (to, self.step(Input::Asked(to, caller, request)))
    }

    /// Lists what can happen next, time apart.
    pub fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (lane, answers) in &self.answers {
            if !answers.is_empty() {
                moves.push(Move::Answer(*lane));
            }
        }
        for (lane, orders) in &self.orders {
            let is_held = match lane {
                _ if orders.is_empty() => true,
                Lane::Agent(key) => self.kernel.hanging.contains_key(key),
                Lane::Rescue(key, run) => {
                    let before = self.orders.get(&Lane::Agent(*key));
                    before.is_some_and(|it| it.iter().any(|it| matches!(it, Effect::Spawn(it) if it.run == *run)))
                }
                Lane::Limits(_) | Lane::Look(..) | Lane::Survey(_) | Lane::Memory(_) => false,
            };
            if !is_held {
                moves.push(Move::Order(*lane));
            }
        }
        for notice in &self.kernel.notices {
            // A main process is known from its spawn on.
            let is_early =
                matches!(notice, Notice::Exit(key, _) | Notice::Said(key, _) if self.observer.is_spawning(*key));
            if !is_early {
                moves.push(Move::Notice(*notice));
            }
        }
        if !self.letters.is_empty() {
            moves.push(Move::Read);
        }
        for (pid, process) in &self.kernel.processes {
            if process.is_jammed {
                moves.push(Move::Unjam(*pid));
            } else if !process.is_stopped {
                if self.kernel.freezes_slowly && !process.has_departed && self.kernel.is_to_freeze(process.agent) {
                    moves.push(Move::Stop(*pid));
                }
                if process.is_asked {
                    moves.push(Move::Obey(*pid));
                }
            }
        }
        moves
    }

    /// Lets one thing happen; returns what the machine said to it.
    pub fn make(&mut self, chosen: Move) -> Vec<Effect> {
        self.look_at_left();
        if self.tells {
            eprintln!("       {chosen:?}");
        }
        match chosen {
            Move::Order(lane) => {
                let effect = self.orders.get_mut(&lane).and_then(VecDeque::pop_front).unwrap();
                self.orders.retain(|_, orders| !orders.is_empty());
                self.carry_out(lane, effect);
                self.kernel.update();
                Vec::new()
            }
            Move::Answer(lane) => {
                let input = self.answers.get_mut(&lane).and_then(VecDeque::pop_front).unwrap();
                self.answers.retain(|_, answers| !answers.is_empty());
                if let Input::FreezerWritten { agent, .. } = &input {
                    // After the write is told, the shell looks once: there may have been no change to be told of.
                    self.kernel.notices.insert(Notice::Frost(*agent));
                }
                self.step(input)
            }
            Move::Notice(notice) => self.tell(notice),
            Move::Stop(pid) => {
                self.kernel.processes.get_mut(&pid).unwrap().is_stopped = true;
                self.kernel.update();
                Vec::new()
            }
            Move::Obey(pid) => {
                let exit = self.some_exit();
                self.kernel.obey(pid, exit);
                self.kernel.update();
                Vec::new()
            }
            Move::Read => {
                let letter = self.letters.pop_front().unwrap();
                self.step(letter)
            }
            Move::Unjam(pid) => {
                self.kernel.unjam(pid);
                self.kernel.update();
                Vec::new()
            }
        }
    }

    /// Tells how those have ended that a main process has left behind, where they are waited for.
    fn look_at_left(&mut self) {
        for (agent, run, exit) in std::mem::take(&mut self.kernel.left) {
            let is_waited_for = self.machine.spec_of(agent).is_some_and(|spec| spec.on_main_exit == OnMainExit::Wait);
            if is_waited_for && self.observer.is_headless(agent, run) {
                self.letters.push_back(Input::LeftEnded { agent, run, exit });
            }
        }
    }

    /// A main process leaves the herd's cgroups.
    pub fn depart(&mut self, pid: u64) {
        self.kernel.depart(pid);
        if self.tells {
            eprintln!("       {pid} departs");
        }
        *self.observer.seen.entry("departed".to_owned()).or_default() += 1;
    }

    pub fn some_exit(&mut self) -> Exit {
        self.chance.of(&[Exit::Status(0), Exit::Status(3), Exit::Signal { number: 11, core: true }])
    }

    pub fn some_temper(&mut self) -> Temper {
        if self.chance.comes(self.faults.stubborn) {
            Temper::Stubborn
        } else if self.chance.comes(self.faults.handlers) {
            Temper::Handler
        } else {
            Temper::Plain
        }
    }

    /// A process tells something of itself; it will be read some time, perhaps after its end.
    /// The OOM killer ends a process that is not a main one, and that is told some time.
    pub fn lose_a_worker(&mut self, pid: u64) {
        let (agent, run) = (self.kernel.processes[&pid].agent, self.kernel.processes[&pid].run);
        self.kernel.exit(pid, Exit::Signal { number: 9, core: false }, false);
        let oom = Oom { culprit: None, limit_bytes: None, largest: None };
        self.letters.push_back(Input::OomKilled { agent, run, kills: 1, oom });
    }

    pub fn tell_of(&mut self, pid: u64, notes: Vec<Note>) {
        let process = &self.kernel.processes[&pid];
        let (agent, run) = (process.agent, process.run);
        self.letters.push_back(Input::Notified { agent, run, notes });
    }

    /// A process does something that is more than a tick.
    pub fn work(&mut self, pid: u64, cpu: Duration, bytes: u64) {
        let process = &self.kernel.processes[&pid];
        let run = (process.agent, process.run);
        // The account of who has left its run's cgroup is another one: nobody sees it work.
        let cpu = if process.has_strayed || process.has_departed { Duration::ZERO } else { cpu };
        self.kernel.work(run, cpu, bytes);
        if !cpu.is_zero() || bytes > 0 {
            self.observer.worked(run.0, run.1);
        }
    }

    /// Ends by themselves the runs that would be looked at for ever, whether they do anything or not.
    fn end_the_watched(&mut self) {
        let is_watched = |key| {
            let rule = self.machine.spec_of(key).and_then(|spec| spec.stall);
            rule.is_some_and(|rule| rule.action == Action::Notice)
        };
        let awake = self.kernel.processes.iter().filter(|(_, it)| !it.is_stopped && is_watched(it.agent));
        for pid in awake.map(|(pid, _)| *pid).collect::<Vec<_>>() {
            self.kernel.exit(pid, Exit::Status(0), false);
        }
        self.kernel.update();
    }

    /// A process shows the line or the newline that says that its run is ready.
    pub fn show_ready(&mut self, pid: u64) {
        let process = &self.kernel.processes[&pid];
        self.letters.push_back(Input::ReadySeen { agent: process.agent, run: process.run });
    }

    pub fn carry_out(&mut self, lane: Lane, effect: Effect) {
        let answer = match effect {
            Effect::Spawn(order) => {
                let agent = order.agent;
                let parent = self.machine.parent_of(agent);
                if self.chance.comes(self.faults.spawn_hangs) && !order.spec.is_group() {
                    self.kernel.spawn_hanging(&order, parent);
                    return;
                }
                if self.chance.comes(self.faults.spawn_fails) {
                    let stage = self.chance.of(&[Stage::Cgroup, Stage::Clone, Stage::Cwd, Stage::Uid, Stage::Exec]);
                    self.kernel.spawn_failing(&order, parent);
                    Input::SpawnFailed { agent, failure: failure(stage) }
                } else {
                    let temper = self.some_temper();
                    Input::Spawned { agent, pid: self.kernel.spawn(&order, parent, temper) }
                }
            }
            Effect::Signal { agent, run, .. } => Input::Signalled { agent, processes: self.kernel.signal(agent, run) },
            Effect::KillRun { agent, run, force } => {
                if self.kernel.kill_run(agent, run, force) {
                    let answer = Input::SpawnFailed { agent, failure: failure(Stage::Killed) };
                    self.answers.entry(Lane::Agent(agent)).or_default().push_back(answer);
                }
                return;
            }
            Effect::Kill { agent, runs, force } => {
                Input::Killed { agent, counts: self.kernel.kill(agent, &runs, force) }
            }
            Effect::Freeze { agent, frost } => {
                self.kernel.freeze(agent, frost);
                Input::FreezerWritten { agent, written: frost }
            }
            Effect::ReadOutput { agent, run } => {
                self.kernel.notices.remove(&Notice::Said(agent, run));
                let said = self.kernel.unread.remove(&(agent, run)).unwrap_or_default();
                let answers = self.answers.entry(lane).or_default();
                answers.extend(said.into_iter().map(|rule| matched(agent, run, rule)));
                Input::OutputRead { agent, run }
            }
            Effect::Sample { agent, run } => {
                let is_there = self.kernel.dirs.get(&agent).is_some_and(|dir| dir.runs.contains(&run));
                self.kernel.work((agent, run), Duration::ZERO, 0);
                self.observer.looked_at(agent, run);
                Input::Sampled { agent, run, sample: is_there.then(|| self.kernel.work[&(agent, run)]) }
            }
            Effect::Survey { number, survey } => Input::Surveyed { number, found: self.kernel.survey(&survey) },
            Effect::Reclaim(agent) => {
                if !self.chance.comes(50) {
                    return;
                }
                Input::Reclaimed(agent)
            }
            Effect::RemoveRun { agent, run } => return self.kernel.remove_run(agent, run),
            Effect::Remove(agent) => match self.kernel.remove(agent) {
                Ok(()) => Input::Removed(agent),
                Err(()) => Input::RemoveRefused(agent),
            },
            Effect::SetLimits { change, settings } => {
                if self.chance.comes(self.faults.limits_refused) {
                    Input::LimitsRefused(change, Error::new(Code::Kernel, "write of a limit: EINVAL"))
                } else {
                    self.kernel.set_limits(&settings);
                    Input::LimitsSet(change)
                }
            }
            other => panic!("{other:?} is not for a hand"),
        };
        self.answers.entry(lane).or_default().push_back(answer);
    }

    /// Reads what a notice is about, as it is now, and tells that.
    fn tell(&mut self, notice: Notice) -> Vec<Effect> {
        // Lines are looked at once.
        if matches!(notice, Notice::Said(..)) || !self.chance.comes(self.faults.doubles) {
            self.kernel.notices.remove(&notice);
        }
        let input = match notice {
            Notice::Exit(agent, run) => {
                let death = self.kernel.deaths[&(agent, run)];
                let descendants = self.kernel.in_run(agent, run).count() as u64;
                let is_seen = !self.observer.is_unseen(agent, run);
                let exit = if is_seen { death.exit } else { Exit::Unknown };
                let oom = (death.is_oom && is_seen).then(some_oom);
                Input::Exited { agent, run, exit, rusage: Rusage::default(), oom, descendants }
            }
            Notice::Said(agent, run) => {
                let said = self.kernel.unread.entry((agent, run)).or_default();
                let rule = said.pop_front().expect("it is told of what was said");
                if !said.is_empty() {
                    self.kernel.notices.insert(notice);
                }
                matched(agent, run, rule)
            }
            // As long as the main process lives nobody looks, wherever it is.
            Notice::Run(agent, run)
                if self.kernel.in_run(agent, run).next().is_none() && !self.kernel.has_main(agent, run) =>
            {
                Input::RunEmptied { agent, run }
            }
            Notice::Subtree(agent) if self.kernel.within(agent).next().is_none() => Input::SubtreeEmptied(agent),
            Notice::Run(..) | Notice::Subtree(_) => {
                self.kernel.notices.remove(&notice);
                return Vec::new();
            }
            Notice::Frost(agent) => {
                let frost = if self.kernel.is_frozen(agent) {
                    treeherd::machine::Frost::Frozen
                } else {
                    treeherd::machine::Frost::Thawed
                };
                Input::FrostSeen { agent, frost }
            }
        };
        self.step(input)
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        self.observer.passed(&self.machine, &self.kernel, time);
        self.kernel.tick(time);
        self.now.mono = self.now.mono + time;
        self.now.wall.0 = self.now.wall.0.saturating_add(u64::try_from(time.as_nanos()).unwrap());
    }

    /// Lets time pass until the machine wants to be told; says whether it wants to at all.
    pub fn pass_to_deadline(&mut self) -> bool {
        let Some(deadline) = self.machine.next_deadline() else { return false };
        self.pass(deadline.since(self.now.mono));
        self.step(Input::Ticked);
        true
    }

    /// Lets everything that is under way come to its end in a fair world, without a moment's waiting.
    pub fn flush(&mut self) {
        let mut patience = 20_000;
        loop {
            let moves = self.moves();
            if moves.is_empty() {
                break;
            }
            let chosen = self.chance.pick(moves.len());
            self.make(moves[chosen]);
            patience -= 1;
            assert!(patience > 0, "a fair world comes to rest");
        }
    }

    /// Lets everything that is under way and everything that waits for time come to its end in a fair world.
    pub fn drain(&mut self) {
        self.faults = Faults { ..Faults::default() };
        let until = self.now.mono + Duration::from_secs(3 * 24 * 3600);
        loop {
            self.flush();
            self.end_the_watched();
            self.flush();
            assert!(self.now.mono < until, "whatever waits for time ends within three days");
            if !self.pass_to_deadline() {
                break;
            }
        }
        self.observer.at_rest(&self.machine, &self.kernel);
    }

    /// Ends the herd and sees that nothing is left.
    pub fn shut_down(&mut self, grace: Option<Duration>) {
        self.ask(0, None, Request::Shutdown(grace));
        for _ in 0..100_000 {
            if self.observer.has_finished {
                break;
            }
            let moves = self.moves();
            if moves.is_empty() {
                assert!(self.pass_to_deadline(), "a shutdown comes to its end");
            } else {
                let chosen = self.chance.pick(moves.len());
                self.make(moves[chosen]);
            }
        }
        self.observer.at_the_end(&self.machine, &self.kernel);
    }
}

fn failure(stage: Stage) -> SpawnFailure {
    SpawnFailure { stage, errno: Some(1), message: format!("model: {stage}"), remedy: None }
}

pub fn matched(agent: AgentKey, run: Run, rule: usize) -> Input {
    let found = Found { rule: "r".to_owned(), stream: Stream::Stderr, offset: 0, line: "said".to_owned(), lines: 1 };
    Input::Matched { agent, run, rule, found: Box::new(found) }
}

fn some_oom() -> Oom {
    Oom { culprit: None, limit_bytes: None, largest: None }
}

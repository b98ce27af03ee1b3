//! The loop: one turn takes in what happened, lets the machine decide, and tells whoever has to know.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::allowance::Allowances;
use super::body::{Body, Watched};
use super::client::{self, CLIENTS_MEMORY_MAX, Client};
use super::disk::{Disk, STALLED_AFTER};
use super::drain::Draining;
use super::exit::Zombies;
use super::hands::Hands;
use super::hits::Hits;
use super::job::{Job, Outcome, SpawnJob, Tools};
use super::journal::Journal;
use super::largest::Reads;
use super::latency::{Detection, Late};
use super::memory::Memory;
use super::notify::Mailbox;
use super::pid_file::PidFiles;
use super::pressure::Triggers;
use super::reads::Shared;
use super::records::Records;
use super::reread::OURSELVES;
use super::restore::Upkeep;
use super::rota::Rota;
use super::rules::TURN_MOST;
use super::service::Service;
use super::settings::Settings;
use super::unpolled::Unpolled;
use crate::kernel::cgroup::Place;
use crate::kernel::clock;
use crate::kernel::watch::WatchId;
use crate::machine::{AgentKey, Caller, Effect, Input, Machine, Now, ReplyTo};
use crate::model::error::{Code, Error};
use crate::model::event::{Event, Kind};
use crate::model::id::Run;
use crate::model::limits::Knob;
use crate::model::request::Request;
use crate::model::status::Receipt;
use crate::model::stream::Stream;
use crate::model::time::Monotonic;

/// How many events one poll takes in.
pub(super) const EVENTS: usize = 1024;

/// How many deaths are written down and told together.
const DEATHS_A_TELL: usize = 32;

/// How long one turn serves clients, twice at most: then agents have their turn, and the other clients the next one.
const CLIENTS_A_TURN: Duration = Duration::from_millis(5);

/// When it is tried again to write what could not be written.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// How late the loop wakes at least if it was frozen, or the machine slept: no load makes it that late.
const STOPPED_FROM: Duration = Duration::from_secs(1);

/// What a token stands for: the kind in its lowest bits, a number above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Waker,
    Watches,
    Signals,
    Listener,
    Client(u64),
    Process(AgentKey),
    Memory(usize),
    Pressure(u64),
    Notify,
    Newline(AgentKey),
    /// A child that has ended and that its tracer holds.
    Zombie(u64),
    Left(AgentKey),
    Keeper(usize),
    /// Directories in which files are to name main processes.
    PidFiles,
}

impl Source {
    pub fn token(self) -> Token {
        let number = |kind: usize, number: u64| Token(kind | usize::try_from(number << 4).unwrap_or(usize::MAX));
        match self {
            Self::Waker => Token(0),
            Self::Watches => Token(1),
            Self::Signals => Token(2),
            Self::Listener => Token(3),
            Self::Client(id) => number(4, id),
            Self::Process(key) => number(5, key.0),
            Self::Memory(id) => number(6, id as u64),
            Self::Notify => Token(7),
            Self::Newline(key) => number(8, key.0),
            Self::Pressure(id) => number(9, id),
            Self::Zombie(id) => number(10, id),
            Self::Left(key) => number(11, key.0),
            Self::Keeper(id) => number(12, id as u64),
            Self::PidFiles => Token(13),
        }
    }

    fn of(token: Token) -> Self {
        let number = (token.0 >> 4) as u64;
        match token.0 & 15 {
            0 => Self::Waker,
            1 => Self::Watches,
            2 => Self::Signals,
            3 => Self::Listener,
            4 => Self::Client(number),
            5 => Self::Process(AgentKey(number)),
            6 => Self::Memory(token.0 >> 4),
            7 => Self::Notify,
            8 => Self::Newline(AgentKey(number)),
            9 => Self::Pressure(number),
            11 => Self::Left(AgentKey(number)),
            12 => Self::Keeper(token.0 >> 4),
            13 => Self::PidFiles,
            _ => Self::Zombie(number),
        }
    }
}

/// Something that the shell itself does at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chore {
    /// Wait no longer for the pipes of an agent to be empty.
    Drained(u64),
    /// Look at a spool file that was written to.
    Spool(AgentKey, Stream),
    /// Store when the bytes of a spool file were seen.
    Times(AgentKey, Stream),
    /// Look at the cgroup of an agent that could not be watched.
    Home(AgentKey),
    /// Look for the n-th time whether an agent's freezer has done what was asked.
    Frost(AgentKey, usize),
    /// Look for the n-th time how the main process of an adopted agent ended: whoever is its parent has to reap it first.
    Exit(AgentKey, usize),
    /// Give a spawn up whose leaf was killed.
    Rescue(AgentKey, Run),
    /// Put threads in the place of those that hang in a spawn.
    Spawners,
    /// Look at the cgroup of a run that could not be watched.
    Leaf(AgentKey, Run),
    /// Look at the counters of a memory domain.
    Memory(Place),
    /// Look at the counter of a limit.
    Hits(Place, Knob),
    /// Look at the limits of tasks above the herd.
    ForksAbove,
    /// Look at the file of a limit that could not be watched.
    Unwatched(Place, Option<Knob>),
    /// Tell what an agent's rules have found meanwhile.
    Found(AgentKey),
    /// Receive again, if the descriptors that hang in a close leave room.
    Closers,
    /// Try again to write what could not be written.
    Write,
    /// Re-create what was deleted of the state directory.
    Restore,
    /// Read the file that is to name an agent's main process.
    PidFile(AgentKey),
    /// Poll the directories of such files again.
    PidFiles,
    /// Accept connections that could not be accepted.
    Accept,
    /// Take the request of a client that was put off.
    Take(u64),
    /// Give memory back that was needed for a while.
    Trim,
    /// Tell the service manager the counts.
    Status,
    /// Tell the service manager that the loop turns.
    Heartbeat,
}

/// Everything that the loop has.
pub(super) struct Supervisor {
    pub settings: Settings,
    pub machine: Machine,
    pub tools: Arc<Tools>,
    pub hands: Hands,
    /// Jobs for the hands, until what was decided is written down.
    pub held: Vec<Job>,
    /// Spawns, until the start of their runs is written down.
    pub held_spawns: Vec<SpawnJob>,
    /// The only spawn that clients have asked for in this turn, while none is with the hands.
    pub own_spawn: Option<SpawnJob>,
    /// Whether a spawn that is ordered now may be that one. What follows from news is on its way while they are told.
    pub keeps_a_spawn: bool,
    pub outcomes: Receiver<Outcome>,
    /// Removals that wait for the end of this turn.
    pub tidying: Vec<Job>,
    pub poll: Poll,
    /// What epoll does not poll.
    pub unpolled: Unpolled,
    pub signals: Option<signal_hook_mio::v1_0::Signals>,
    pub listener: Option<mio::net::UnixListener>,
    /// Connections of which a hand finds out whose they are.
    pub arriving: usize,
    /// How many connections were refused.
    pub turned_away: u64,
    /// Whether something is not received since too many descriptors hang in a close.
    pub waits_for_closers: bool,
    /// Whether the last connection could not be accepted, and that is reported.
    pub accept_fails: bool,
    /// How much memory was given up since the heap was trimmed.
    pub freed: usize,
    /// The streams of output that could not be watched, and are looked at by the clock.
    pub unwatched: BTreeSet<(AgentKey, Stream)>,
    /// When a cgroup could last not be watched.
    pub watch_failed: Option<Monotonic>,
    pub clients: BTreeMap<u64, Client>,
    /// Clients that have requests to take.
    pub eager: Rota,
    /// Clients that have something to send, or follow something that moved.
    pub stirred: Rota,
    /// Whether there are events that not everybody who follows them was told of.
    pub has_news: bool,
    /// Whether the clients hold as much memory as they may.
    pub clients_memory: client::Memory,
    /// What is read for everybody who asks.
    pub shared: Shared,
    pub zombies: Zombies,
    /// Receipts that wait for what lives outside of the herd.
    pub receipts: BTreeMap<ReplyTo, Receipt>,
    /// What agents may still change at once.
    pub allowances: Allowances,
    /// Each in a place of its own, as the machine has its agents.
    pub bodies: HashMap<AgentKey, Box<Body>>,
    pub watched: HashMap<WatchId, Watched>,
    pub memory: Memory,
    pub hits: Hits,
    pub refusals: super::above::Refusals,
    pub reads: Reads,
    pub triggers: Triggers,
    /// How many bytes of output may still be looked at in this turn.
    pub rules_room: u64,
    /// When this turn may examine no more output, once it has begun to.
    pub scans_end: Option<Instant>,
    /// How many lines rules have found and told.
    pub rule_lines: u64,
    /// How often limits were hit and that was told, by their names.
    pub limit_hits: BTreeMap<String, u64>,
    pub mailbox: Mailbox,
    /// What waits until pipes are empty, by the ticket of the order.
    pub draining: BTreeMap<u64, Draining>,
    pub chores: BTreeSet<(Monotonic, Chore)>,
    pub disk: Disk,
    pub records: Records,
    pub journal: Journal,
    pub upkeep: Upkeep,
    pub pid_files: PidFiles,
    /// Whether it was told that these cannot be written.
    pub is_unwritable: bool,
    pub detection: Detection,
    pub began: Monotonic,
    pub next_id: u64,
    pub is_over: bool,
    pub stops_asked: u32,
    pub root: String,
    /// None where nobody listens.
    pub service: Option<Service>,
    pub usage: Option<(Monotonic, super::call::Sample)>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Returns the time on both clocks.
pub(super) fn now() -> Now {
    Now { mono: clock::monotonic(), wall: clock::wall() }
}

impl Supervisor {
    /// The herd has ended: tells what there is to tell, and has done.
    pub fn take_leave(&mut self) {
        self.disk.take_leave();
        self.complete_receipts();
        self.write_down();
        self.tell_news();
        for id in self.clients.keys().copied().collect::<Vec<_>>() {
            self.clients.entry(id).and_modify(Client::polled);
            self.pump(id);
        }
    }

    /// Sleeps until something happens, and does what follows from it.
    pub fn turn(&mut self, events: &mut Events) -> Result<(), Error> {
        let timeout = self.timeout();
        (self.rules_room, self.scans_end) = (TURN_MOST, None);
        let is_behind = self.behind_since().is_some();
        self.disk.begin_turn(is_behind);
        self.detection.before_poll();
        let asleep = clock::monotonic();
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                return Err(Error::new(Code::Kernel, format!("epoll_wait: {error}")));
            }
            _ => {}
        }
        let mut sources: Vec<Source> = events.iter().map(|event| Source::of(event.token())).collect();
        for event in events.iter().filter(|event| event.is_write_closed()) {
            if let Source::Client(id) = Source::of(event.token()) {
                self.clients.entry(id).and_modify(Client::hang_up);
            }
        }
        sources.extend(self.unpolled_ready());
        let awake = clock::monotonic();
        self.detection.after_poll(awake, sources.len() == EVENTS);
        if timeout.is_some_and(|timeout| awake.since(asleep) > timeout + STOPPED_FROM) {
            self.feed(Input::StoodStill(asleep));
        }
        // What an agent has told before its end counts.
        if self.mailbox.has_more || sources.contains(&Source::Notify) {
            self.read_letters();
        }
        for source in &sources {
            if let Source::Newline(key) = *source {
                self.newline_came(key);
            }
        }
        // News of agents first: no client may make another wait for it.
        for source in &sources {
            match *source {
                Source::Process(key) => {
                    self.process_ended(key);
                    // When a thousand die at once, the first is not told after the last.
                    if self.detection.pending() >= DEATHS_A_TELL {
                        self.tell();
                    }
                }
                Source::Left(key) => self.left_ended(key),
                Source::Watches => self.watches_fired(),
                Source::Memory(id) => self.memory_fired(id),
                Source::Pressure(id) => self.pressure_fired(id),
                Source::Zombie(id) => self.zombie_moved(id),
                Source::Keeper(number) => self.keeper_told(number),
                Source::PidFiles => self.pid_files_came(),
                Source::Waker => {}
                Source::Signals | Source::Listener | Source::Client(_) => {}
                Source::Notify | Source::Newline(_) => {}
            }
        }
        self.take_outcomes();
        self.tell();
        self.send();
        for source in sources {
            match source {
                Source::Signals => self.signals_came(),
                Source::Listener => self.accept(),
                Source::Client(id) => {
                    self.clients.entry(id).and_modify(Client::polled);
                    self.eager.insert(id);
                    self.stirred.insert(id);
                }
                _ => {}
            }
        }
        self.keeps_a_spawn = true;
        self.serve_clients();
        self.keeps_a_spawn = false;
        self.do_chores();
        if let Some(due) = self.machine.next_deadline().filter(|due| *due <= clock::monotonic()) {
            self.detection.note_deadline(due);
            // What was sent in time counts.
            self.read_letters();
            self.feed(Input::Ticked);
        }
        self.tell();
        self.send();
        self.tidy_up();
        Ok(())
    }

    /// Takes requests of clients, each in its turn, as long as this turn has time for them.
    fn serve_clients(&mut self) {
        if self.eager.is_empty() && self.clients_memory == client::Memory::Ample {
            return;
        }
        let held: usize = self.clients.values().map(Client::held).sum();
        let memory = if held < CLIENTS_MEMORY_MAX { client::Memory::Ample } else { client::Memory::Short };
        if std::mem::replace(&mut self.clients_memory, memory) != memory {
            // Those who had to wait for memory may go on.
            self.clients.keys().for_each(|id| self.stirred.insert(*id));
        }
        let until = clock::monotonic() + CLIENTS_A_TURN;
        for _ in 0..self.eager.len() {
            let Some(id) = self.eager.pop() else { break };
            self.serve_client(id, until);
            if clock::monotonic() >= until {
                break;
            }
        }
    }

    /// Sends answers and pages of what is followed, each client in its turn, as long as this turn has time for them.
    pub fn send(&mut self) {
        let until = clock::monotonic() + CLIENTS_A_TURN;
        for _ in 0..self.stirred.len() {
            let Some(id) = self.stirred.pop() else { break };
            self.pump(id);
            if clock::monotonic() >= until {
                break;
            }
        }
    }

    /// Writes down what this turn has brought, and tells the news to those who follow events.
    pub fn tell(&mut self) {
        self.take_restored();
        self.write_down();
        self.watch_disk();
        self.tell_news();
        if let Some(Late { cause, latency }) = self.detection.told() {
            let now = now();
            let mut event = self.machine.event_about(now.mono, now.wall, Kind::Late, None);
            let bound = humantime::format_duration(self.settings.herd.failure_detection_timeout);
            let after = latency.as_millis();
            event.message = format!("the end of a run ({cause}) was told after up to {after} ms; the bound is {bound}");
            self.publish(event);
        }
    }

    /// Has removed what nobody needs any more. The cgroup of a run waits until the next one is started: both need the kernel's lock.
    fn tidy_up(&mut self) {
        let waits = |job: &Job| matches!(job, Job::RemoveRun { agent, .. } if self.machine.is_spawning(*agent));
        let (later, now) = std::mem::take(&mut self.tidying).into_iter().partition(waits);
        self.tidying = later;
        now.into_iter().for_each(|job: Job| self.hands.take(job));
    }

    /// Writes down what was decided, then what happened; then what was decided is carried out. Where the disk stalls that is not
    /// waited for: what could not be written in time is written later, in the same order.
    pub fn write_down(&mut self) {
        self.records.flush(&self.machine, &mut self.disk);
        // Until its end is written down, a next daemon can ask the kernel for it.
        if self.records.behind_since().is_none() {
            self.reap();
        }
        self.journal.flush(&mut self.disk);
        for job in std::mem::take(&mut self.held) {
            self.hands.take(job);
        }
        // A run starts when the end of the one before is written, unless the disk stalls: of two ends in a row that are
        // unwritten when a daemon dies, the next one could report only the last.
        if self.is_unwritable || self.behind_since().is_none() {
            for spawn in std::mem::take(&mut self.held_spawns) {
                self.hand_out(spawn);
            }
        }
    }

    /// Returns since when something is being written that should have been by now.
    fn behind_since(&mut self) -> Option<Monotonic> {
        self.records.behind_since().into_iter().chain(self.journal.behind_since()).min()
    }

    /// Tells once that the state cannot be written, and once that it can again.
    fn watch_disk(&mut self) {
        let why = match self.behind_since() {
            Some(since) if clock::monotonic().since(since) < STALLED_AFTER => {
                // It may come to its end in a moment.
                self.chores.insert((since + STALLED_AFTER, Chore::Write));
                return;
            }
            Some(_) => Some(format!("writing to {} takes longer than it may", self.settings.state_dir.display())),
            None => self.records.fault().or(self.journal.fault()).or(self.upkeep.fault()).map(str::to_owned),
        };
        if why.is_some() == self.is_unwritable {
            return;
        }
        self.is_unwritable = why.is_some();
        self.tools.is_disk_slow.store(self.is_unwritable, Ordering::Relaxed);
        self.write_again();
        self.feed(why.map_or(Input::StateWritable, |why| Input::StateUnwritable(why.into())));
        self.write_down();
    }

    /// What could not be written is tried again by the end of this turn, and if need be later.
    fn write_again(&mut self) {
        if self.is_unwritable {
            self.chores.insert((clock::monotonic() + WRITE_AGAIN, Chore::Write));
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.eager.is_empty() || !self.stirred.is_empty() || self.has_news || self.mailbox.has_more {
            return Some(Duration::ZERO);
        }
        let chore = self.chores.first().map(|(at, _)| *at);
        let due = self.machine.next_deadline().into_iter().chain(chore).chain(self.unpolled.due()).min()?;
        Some(due.since(clock::monotonic()))
    }

    /// Lets the machine decide about one input, and carries out what it orders.
    pub fn feed(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.machine.step(now(), input, &mut effects);
        self.perform_all(effects);
    }

    pub fn perform_all(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            super::perform::perform(self, effect);
        }
    }

    pub fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn do_chores(&mut self) {
        let now = clock::monotonic();
        while self.chores.first().is_some_and(|(at, _)| *at <= now) {
            match self.chores.pop_first() {
                Some((_, Chore::Home(key))) => self.listen_at_home(key),
                Some((_, Chore::Frost(key, look))) => self.look_for_frost(key, look),
                Some((_, Chore::Exit(key, look))) => self.exit_is_due(key, look),
                Some((_, Chore::Leaf(key, run))) => self.retry_leaf(key, run),
                Some((_, Chore::Spool(key, stream))) => self.look_at_spool(key, stream),
                Some((_, Chore::Rescue(key, run))) => self.give_spawn_up(key, run),
                Some((_, Chore::Spawners)) => self.relieve_spawners(),
                Some((_, Chore::Times(key, stream))) => self.store_times(key, stream),
                Some((_, Chore::Memory(place))) => self.look_at_memory(&place),
                Some((_, Chore::Hits(place, knob))) => self.look_at_hits(&place, knob),
                Some((_, Chore::ForksAbove)) => self.look_at_forks_above(),
                Some((_, Chore::Unwatched(place, knob))) => self.look_at_unwatched(&place, knob),
                Some((_, Chore::Drained(ticket))) => self.drain_is_due(ticket),
                Some((_, Chore::Found(key))) => self.tell_found(key),
                Some((_, Chore::Closers)) => self.receive_again(),
                Some((_, Chore::Write)) => self.write_again(),
                Some((_, Chore::Restore)) => self.restore_is_due(),
                Some((_, Chore::PidFile(key))) => self.read_pid_file(key),
                Some((_, Chore::PidFiles)) => self.pid_files_are_due(),
                Some((_, Chore::Accept)) => self.accept(),
                Some((_, Chore::Take(client))) => self.take_what_was_put_off(client),
                Some((_, Chore::Trim)) => self.trim_is_due(),
                Some((_, Chore::Status)) => self.status_is_due(),
                Some((_, Chore::Heartbeat)) => self.beat(),
                None => {}
            }
        }
    }

    fn signals_came(&mut self) {
        let Some(signals) = &mut self.signals else { return };
        let came: BTreeSet<i32> = signals.pending().collect();
        for signal in came {
            match signal {
                SIGHUP => self.reloading(Self::reread),
                SIGTERM => self.stop("SIGTERM"),
                SIGINT => self.stop("SIGINT"),
                SIGQUIT => self.stop("SIGQUIT"),
                _ => {}
            }
        }
    }

    /// Ends the herd in order; asked a second time, at once.
    fn stop(&mut self, why: &str) {
        self.stops_asked += 1;
        let grace = (self.stops_asked > 1).then_some(Duration::ZERO);
        let caller = Caller { name: format!("{why} to the daemon").into(), agent: None, user: None };
        tracing::info!("{why}: the herd is being ended");
        self.feed(Input::Asked(OURSELVES, caller, Request::Shutdown(grace)));
    }

    /// Numbers an event, writes it down and tells those who are up to date.
    pub fn publish(&mut self, mut event: Event) {
        self.decorate(&mut event);
        if let (true, Some(exit)) = (event.kind.is_terminal(), &event.exit) {
            self.detection.note_end(exit.cause);
        }
        self.journal.append(&mut event);
        let key = event.agent.as_ref().and_then(|id| self.machine.key_of(id));
        match key {
            Some(key) if event.kind.is_terminal() => self.records.note_end(key, event.seq),
            Some(key) if event.kind == Kind::Started => self.records.note_start(key, event.seq),
            _ => {}
        }
        super::perform::log(&event);
        self.has_news = true;
        self.note_for_service(&event);
        if let Some(key) = key.filter(|key| self.machine.has_ended(*key)) {
            // It may have been the end of what somebody follows.
            self.stir_followers(key);
        }
    }

    /// Sends a job to the hands, when the decision that it follows from is written down. What only tidies up waits until all of
    /// this turn's news is told: whoever dies meanwhile, and whoever wants to know of it, needs the CPU.
    pub fn hand(&mut self, job: Job) {
        if matches!(job, Job::RemoveRun { .. } | Job::Remove { .. }) {
            self.tidying.push(job);
        } else if job.is_unrecorded() {
            self.hands.take(job);
        } else {
            self.held.push(job);
        }
    }

    /// Keeps a spawn that comes alone for whoever turns the loop; of several none waits for another.
    pub fn hand_spawn(&mut self, spawn: SpawnJob) {
        if self.keeps_a_spawn && self.own_spawn.is_none() && self.hands.spawners.are_idle() {
            self.own_spawn = Some(spawn);
            return;
        }
        for spawn in self.own_spawn.take().into_iter().chain([spawn]) {
            self.held_spawns.push(spawn);
        }
    }

    /// Takes the spawn that came alone in this turn, if nothing else waits for the next one.
    pub fn take_own_spawn(&mut self) -> Option<SpawnJob> {
        let spawn = self.own_spawn.take()?;
        if self.behind_since().is_some() {
            self.held_spawns.push(spawn);
        } else if self.eager.is_empty() && !self.mailbox.has_more {
            return Some(spawn);
        } else {
            self.hand_out(spawn);
        }
        None
    }

    /// Gives a spawn to the spawners.
    pub fn hand_out(&mut self, spawn: SpawnJob) {
        self.hands.spawners.take(spawn);
        self.relieve_spawners();
    }
}

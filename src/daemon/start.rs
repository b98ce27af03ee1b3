//! From settings to a turning loop: every check is made before anything is changed, and what was made is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Waker};
use rustix::pipe::PipeFlags;

use super::adopt::{self, Estate};
use super::disk::Disk;
use super::exit::Zombies;
use super::hands::Hands;
use super::job::Tools;
use super::journal::Journal;
use super::keepers::Keepers;
use super::latency::Detection;
use super::launch::Surroundings;
use super::notify::{Leaves, Mailbox};
use super::pid_file::PidFiles;
use super::records::Records;
use super::restore::{self, Door, Upkeep};
use super::rules::Rulebook;
use super::service::Service;
use super::settings::{Residence, Settings};
use super::stand_in::{self, ClearUp, Ended};
use super::supervisor::{Source, Supervisor, now};
use super::unpolled::Unpolled;
use crate::kernel::cgroup::{self, Cgroups, Place, Removal, RootClaim};
use crate::kernel::error::KernelError;
use crate::kernel::guardian::{EndsWith, Guardian};
use crate::kernel::host::Host;
use crate::kernel::notify::Inbox;
use crate::kernel::orphans::Orphans;
use crate::kernel::program::{self, Sparse};
use crate::kernel::spawn::{self, Way};
use crate::kernel::watch::Watches;
use crate::kernel::{clock, process, socket};
use crate::machine::Machine;
use crate::model::config::HerdConfig;
use crate::model::error::{Code, Error, check_socket_path};
use crate::model::event::Kind;
use crate::model::id::AgentId;
use crate::model::limits::Knob;
use crate::output::Store;

/// The cgroup for a trial; no agent can have a name with a dot.
const CANARY: &str = ".canary";

/// How long the start waits for the guardian of a dead supervisor that is ending its herd.
const GUARDIAN_MOST: Duration = Duration::from_secs(10);

/// How many keys a daemon may use for each second that it runs before the next could use one again.
const KEYS_A_SECOND: u64 = 1 << 20;

/// A supervisor that runs in a thread of this process.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Waits until the supervisor has ended.
    ///
    /// # Errors
    /// Why it ended, if not because the herd was ended.
    pub fn join(self) -> Result<(), Error> {
        self.thread.join().unwrap_or_else(|_| Err(Error::new(Code::Kernel, "the supervisor's thread panicked")))
    }

    /// Says whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Starts a supervisor in a thread of this process.
///
/// # Errors
/// Everything that can be wrong with the host or the settings; then nothing is left behind.
pub fn start(settings: Settings) -> Result<Running, Error> {
    spawn::check_clone3()?;
    let (report, started) = channel();
    let thread = std::thread::Builder::new().name("treeherd".to_owned()).spawn(move || {
        let outcome = Herdsman::build(settings, Manner::Library);
        match outcome {
            Ok(herdsman) => {
                drop(report.send(Ok(())));
                herdsman.run()
            }
            Err(error) => {
                drop(report.send(Err(error.clone())));
                Err(error)
            }
        }
    });
    let thread = thread.map_err(|error| Error::new(Code::Kernel, format!("start the supervisor's thread: {error}")))?;
    started.recv().unwrap_or_else(|_| Err(Error::new(Code::Kernel, "the supervisor's thread ended at once")))?;
    Ok(Running { thread })
}

/// Runs a daemon in the foreground until its herd is ended: by a request, SIGTERM, SIGINT or SIGQUIT. SIGHUP rereads the configuration.
///
/// # Errors
/// As [`start`], and whatever ended the daemon against its will.
pub fn serve(settings: Settings) -> Result<(), Error> {
    let mut herdsman = Herdsman::build(settings, Manner::Daemon)?;
    herdsman.supervisor.tell_ready();
    herdsman.run()
}

/// Moves this process, the first one of a container, out of the way of a supervisor that is to start there. Where it may not, the
/// supervisor's start tells why.
pub fn step_aside() {
    Host::discover().and_then(|host| Ok(cgroup::step_aside(&host)?)).unwrap_or_default();
}

/// Whether the process is ours alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It is: signals are for us.
    Daemon,
    /// It belongs to somebody else's program.
    Library,
}

/// A supervisor with everything that has to be taken back after it.
struct Herdsman {
    /// Held until the end: the program takes no more memory than it uses as long as this is.
    _sparse: Option<Sparse>,
    // In this order they are given up: when the clients see their connections end, another supervisor can start.
    /// Held until the end: the root cgroup is ours as long as this is.
    _root_claim: RootClaim,
    /// Held until the end: the socket is ours as long as this is.
    _claim: Arc<socket::StateDir>,
    /// None in somebody else's program.
    orphans: Option<Orphans>,
    supervisor: Box<Supervisor>,
    /// Given up last: a herd that did not end in order is the guardian's as soon as its root is free.
    guardian: Arc<Mutex<Option<Guardian>>>,
}

/// The cgroups, taken back if the start fails.
struct Undo(Option<Cgroups>);

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(cgroups) = self.0.take() {
            remove_root(&cgroups);
        }
    }
}

/// Removes the spool directories of all agents but these. What is somebody else's stays.
fn remove_spools(store: &Store, known: &BTreeSet<AgentId>) {
    store.remove_all_but(known).iter().for_each(|error| tracing::warn!("{error}"));
}

fn remove_root(cgroups: &Cgroups) {
    match cgroups.remove_root() {
        Ok(Removal::Removed) => {}
        Ok(Removal::Busy) => tracing::warn!("the root cgroup stays: something is still in it"),
        Err(error) => tracing::warn!("remove the root cgroup: {error}"),
    }
}

impl Herdsman {
    fn build(settings: Settings, manner: Manner) -> Result<Self, Error> {
        settings.herd.check()?;
        let settings = if manner == Manner::Library { settings.seated()? } else { settings };
        check_socket_path(&settings.socket())?;
        check_socket_path(&settings.notify_socket())?;
        // Before there are other threads.
        let orphans = match manner {
            Manner::Daemon => {
                super::guard::prepare_process();
                program::share_heap();
                Orphans::take_in()?
            }
            Manner::Library => None,
        };
        let claim = Arc::new(socket::claim_state_dir(&settings.state_dir)?);
        let host = Arc::new(Host::discover()?);
        let not_offered = check_offers(&host, &settings)?;
        // Only what is ours is taken back.
        let (cgroups, root_claim) = take_root(&host, settings.cgroup())?;
        let mut cgroups = Undo(Some(cgroups));
        let own = cgroups.0.as_ref().expect("it was just put there");
        check_pressure(own, &settings)?;
        let root = settings.cgroup().to_owned();
        let records = Records::new(&settings.state_dir, clock::boot_id()?, root);
        let legacy = adopt::read(&settings.state_dir, &records, &host)?;
        let herd = adopt::with_limits_in_force(&settings.herd, &records, legacy.as_ref());
        let applied = adopt::applied(&records, legacy.as_ref());
        let estate = Estate::survey(own, &records, legacy)?;
        prepare_cgroups(own, settings.residence, &herd)?;
        let inherited = if manner == Manner::Daemon { restore::inherited()? } else { None };
        let (way, group) = try_and_look_up(own, inherited.is_none())?;
        let store = Store::open(&settings.state_dir)?;
        if !store.punches() {
            tracing::warn!(
                "the file system of {} cannot give space back: output is not bounded there",
                settings.state_dir.display()
            );
        }
        if manner == Manner::Daemon {
            super::guard::protect();
        }
        let (watches, surroundings) = (Watches::new()?, Surroundings::look(&settings, manner)?);
        let inbox = Inbox::bind(&claim, &settings.notify_socket())?;
        let (door, listener) = Door::open(&claim, inherited, &settings, group)?;
        let upkeep = Upkeep::new(&claim, door);
        let journal = Journal::open(&settings.state_dir)?;
        let poll = Poll::new().map_err(|error| Error::new(Code::Kernel, format!("epoll_create1: {error}")))?;
        let registry = poll.registry().try_clone().map_err(|error| KernelError::from_io("dup", "epoll", &error))?;
        let keepers = Keepers::open(&settings.state_dir, registry)?;
        let tools = Tools {
            keepers,
            cgroups: cgroups.0.take().expect("it is still there"),
            store,
            watches,
            way,
            surroundings,
            leaves: Leaves::default(),
            rulebook: Rulebook::default(),
            is_disk_slow: AtomicBool::new(false),
            guardian: OnceLock::new(),
        };
        let root = format!("{}/{}", host.cgroup2.display(), settings.cgroup());
        let mut machine = Machine::new(herd, root.clone(), not_offered, clock::wall().0);
        machine.restore_applied(applied);
        for above in machine.set_limits_above(cgroup::limits_above(&host, settings.cgroup())) {
            tracing::warn!("the herd's own {} is wider than a limit that it is in: {above}", above.knob);
        }
        machine.set_baseline(super::launch::baseline());
        // The journal goes on from daemon to daemon, and tells agents apart by their keys.
        machine.number_from(clock::wall().0 / 1_000_000_000 * KEYS_A_SECOND);
        let parts = Parts { settings, manner, tools, listener, inbox, records, journal, upkeep, poll, machine, root };
        // Every check is made: from here on things are changed.
        let ended = estate.end_strays(&parts.tools.cgroups)?;
        remove_spools(&parts.tools.store, &estate.ids());
        let mut supervisor = parts.assemble()?;
        // Before anything of the herd is begun, and after everything else that can be refused.
        let guardian = set_guardian(&supervisor).inspect_err(|_| remove_root(&supervisor.tools.cgroups))?;
        supervisor.memory.take_outside_as_told(&supervisor.tools.cgroups);
        supervisor.watch_forks_above();
        supervisor.announce(estate, ended);
        let sparse = match manner {
            Manner::Daemon => super::guard::hold_memory(),
            Manner::Library => None,
        };
        Ok(Self {
            _sparse: sparse,
            _root_claim: root_claim,
            _claim: claim,
            orphans,
            supervisor: Box::new(supervisor),
            guardian: Arc::new(Mutex::new(guardian)),
        })
    }

    fn run(mut self) -> Result<(), Error> {
        let guardian = self.guardian.clone();
        let clear_up = move |supervisor: &mut Supervisor, outcome: &Result<(), Error>| {
            supervisor.tools.store.close();
            if supervisor.machine.has_survivors() {
                tracing::error!(
                    "processes outlive their kill: the next daemon in this state directory goes on with their end"
                );
            } else if outcome.is_ok() {
                supervisor.tools.keepers.quit();
                supervisor.records.remove(&mut supervisor.disk);
                remove_spools(&supervisor.tools.store, &BTreeSet::new());
            }
            for socket in supervisor.upkeep.own_socket().into_iter().chain([supervisor.settings.notify_socket()]) {
                if let Err(error) = std::fs::remove_file(&socket) {
                    tracing::warn!("remove {}: {error}", socket.display());
                }
            }
            if let Ok(Removal::Removed) = supervisor.tools.cgroups.remove(&Place::herd()) {
                let guardian = guardian.lock().unwrap_or_else(PoisonError::into_inner).take();
                guardian.into_iter().for_each(Guardian::dismiss);
            }
            remove_root(&supervisor.tools.cgroups);
        };
        let outcome;
        (self.supervisor, outcome) = turn(self.orphans.as_ref(), self.supervisor, Box::new(clear_up));
        outcome
    }
}

/// Makes the root cgroup and takes it for this supervisor. A guardian that is just ending the herd of a dead supervisor there is
/// waited for.
fn take_root(host: &Arc<Host>, root: &str) -> Result<(Cgroups, RootClaim), Error> {
    let mut has_waited = false;
    loop {
        let cgroups = Cgroups::create(host.clone(), root)?;
        match cgroups.claim() {
            Ok(claim) => return Ok((cgroups, claim)),
            Err(error) if has_waited => return Err(error),
            Err(error) => match cgroups.guardian_at_work() {
                Some(guardian) if process::has_ended_within(&guardian, GUARDIAN_MOST) => has_waited = true,
                _ => return Err(error),
            },
        }
    }
}

/// Starts the guardian of a herd that ends with this process.
fn set_guardian(supervisor: &Supervisor) -> Result<Option<Guardian>, Error> {
    let settings = &supervisor.settings;
    if settings.ends_with == EndsWith::Nobody {
        return Ok(None);
    }
    let state_dir = settings.is_transient.then_some(settings.state_dir());
    let tools = &supervisor.tools;
    let guardian = Guardian::start(&tools.cgroups, settings.ends_with, state_dir, tools.way)?;
    tools.guardian.get_or_init(|| guardian.pid());
    Ok(Some(guardian))
}

/// Turns the loop in threads of its own. This one waits; as the main thread it is given orphans, and has no other children.
fn turn(orphans: Option<&Orphans>, supervisor: Box<Supervisor>, clear_up: ClearUp) -> Ended {
    let not_reaped = |why: &dyn std::fmt::Display| tracing::error!("orphans are not reaped: {why}");
    let pipe = orphans.map(|orphans| (orphans, rustix::pipe::pipe_with(PipeFlags::CLOEXEC)));
    match pipe {
        None => stand_in::turn(supervisor, clear_up, None).wait(),
        Some((_, Err(errno))) => {
            not_reaped(&errno);
            stand_in::turn(supervisor, clear_up, None).wait()
        }
        Some((orphans, Ok((is_over, turns)))) => {
            let turning = stand_in::turn(supervisor, clear_up, Some(turns));
            orphans.reap_until_closed(&is_over).unwrap_or_else(|error| not_reaped(&error));
            turning.wait()
        }
    }
}

/// Refuses a configuration with limits that the host does not enforce.
fn check_offers(host: &Host, settings: &Settings) -> Result<BTreeMap<Knob, Error>, Error> {
    let not_offered: BTreeMap<Knob, Error> =
        Knob::ALL.into_iter().filter_map(|knob| Some((knob, host.enforcer(knob).err()?))).collect();
    let herd = &settings.herd;
    let levels = herd.levels.values().flat_map(|level| [&level.each, &level.siblings]);
    let asked = levels.chain([&herd.limits]).flat_map(|limits| limits.iter());
    match asked.filter_map(|(knob, _)| not_offered.get(&knob)).next() {
        Some(error) => Err(error.clone()),
        None => Ok(not_offered),
    }
}

/// Refuses a configuration with rules on pressure that the host cannot carry out.
fn check_pressure(cgroups: &Cgroups, settings: &Settings) -> Result<(), Error> {
    let of_levels = settings.herd.levels.values().flat_map(|level| &level.pressure);
    settings.herd.pressure.iter().chain(of_levels).try_for_each(|rule| cgroups.check_pressure(rule))
}

/// Takes the root cgroup: ourselves in a leaf of it if asked for, the herd's own limits set.
fn prepare_cgroups(cgroups: &Cgroups, residence: Residence, herd: &HerdConfig) -> Result<(), Error> {
    if residence == Residence::OwnLeaf {
        cgroups.enter_supervisor()?;
    }
    if !herd.limits.is_empty() {
        cgroups.set_limits(&Place::herd(), &herd.limits)?;
    }
    Ok(())
}

/// Does side by side what takes long at the start: the trial waits for a child, the group of a socket of our own for a name service.
fn try_and_look_up(cgroups: &Cgroups, binds: bool) -> Result<(Way, Option<u32>), Error> {
    std::thread::scope(|scope| {
        let start = || std::thread::Builder::new().name("names".to_owned()).spawn_scoped(scope, socket::usual_group);
        let names = binds.then(start);
        let way = canary(cgroups)?;
        let group = match names {
            None => None,
            Some(Ok(names)) => names.join().ok().flatten(),
            Some(Err(_)) => socket::usual_group(),
        };
        Ok((way, group))
    })
}

/// Tries once whether a child can be cloned into a cgroup here.
pub(super) fn canary(cgroups: &Cgroups) -> Result<Way, Error> {
    // It would run nothing, if the daemon before has died while a limit was set for the whole herd.
    cgroups.thaw_group(&Place::herd())?;
    let place = Place::herd().join(CANARY);
    let leaf = cgroups.make_leaf(&place)?;
    let way = spawn::way_that_works(leaf.as_fd()).map_err(Error::from);
    drop(leaf);
    cgroups.remove(&place)?;
    let way = way?;
    if way == Way::EnterItself {
        tracing::warn!(
            "clone into a cgroup does not work here (a kernel bug after cgroup.kill); children enter by themselves"
        );
    }
    Ok(way)
}

/// What a supervisor is assembled from.
struct Parts {
    settings: Settings,
    manner: Manner,
    tools: Tools,
    listener: std::os::unix::net::UnixListener,
    records: Records,
    inbox: Inbox,
    journal: Journal,
    upkeep: Upkeep,
    poll: Poll,
    machine: Machine,
    root: String,
}

impl Parts {
    fn assemble(self) -> Result<Supervisor, Error> {
        let failed = |what: &str, error: std::io::Error| Error::new(Code::Kernel, format!("{what}: {error}"));
        let Self { settings, manner, tools, listener, inbox, records, journal, upkeep, poll, machine, root } = self;
        let registry = poll.registry();
        let waker = Waker::new(registry, Source::Waker.token()).map_err(|error| failed("make a waker", error))?;
        let waker = Arc::new(waker);
        let watches = tools.watches.as_fd().as_raw_fd();
        registry
            .register(&mut SourceFd(&watches), Source::Watches.token(), Interest::READABLE)
            .map_err(|error| failed("poll the watches", error))?;
        registry
            .register(&mut SourceFd(&inbox.as_fd().as_raw_fd()), Source::Notify.token(), Interest::READABLE)
            .map_err(|error| failed("poll the notify socket", error))?;
        listener.set_nonblocking(true).map_err(|error| failed("set up the socket", error))?;
        let mut listener = mio::net::UnixListener::from_std(listener);
        registry
            .register(&mut listener, Source::Listener.token(), Interest::READABLE)
            .map_err(|error| failed("poll the socket", error))?;
        let signals = match manner {
            Manner::Library => None,
            Manner::Daemon => {
                use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
                let mut signals = signal_hook_mio::v1_0::Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])
                    .map_err(|error| failed("listen to signals", error))?;
                registry
                    .register(&mut signals, Source::Signals.token(), Interest::READABLE)
                    .map_err(|error| failed("poll signals", error))?;
                Some(signals)
            }
        };
        let (sender, outcomes) = channel();
        let tools = Arc::new(tools);
        let hands = Hands::start(&tools, &sender, &waker)?;
        let disk = Disk::start(&settings.state_dir, &waker)?;
        let detection = Detection::new(settings.herd.failure_detection_timeout);
        Ok(Supervisor {
            settings,
            machine,
            tools,
            hands,
            held: Vec::new(),
            held_spawns: Vec::new(),
            own_spawn: None,
            keeps_a_spawn: false,
            outcomes,
            tidying: Vec::new(),
            poll,
            signals,
            listener: Some(listener),
            arriving: 0,
            turned_away: 0,
            waits_for_closers: false,
            accept_fails: false,
            freed: 0,
            unwatched: std::collections::BTreeSet::new(),
            watch_failed: None,
            unpolled: Unpolled::default(),
            clients: BTreeMap::new(),
            eager: super::rota::Rota::default(),
            stirred: super::rota::Rota::default(),
            has_news: false,
            clients_memory: super::client::Memory::default(),
            shared: super::reads::Shared::default(),
            allowances: super::allowance::Allowances::default(),
            zombies: Zombies::default(),
            receipts: BTreeMap::new(),
            bodies: std::collections::HashMap::new(),
            watched: std::collections::HashMap::new(),
            memory: super::memory::Memory::default(),
            hits: super::hits::Hits::default(),
            refusals: super::above::Refusals::default(),
            reads: super::largest::Reads::default(),
            triggers: super::pressure::Triggers::default(),
            rules_room: 0,
            scans_end: None,
            rule_lines: 0,
            limit_hits: BTreeMap::new(),
            mailbox: Mailbox::new(inbox),
            draining: BTreeMap::new(),
            chores: std::collections::BTreeSet::new(),
            disk,
            records,
            journal,
            upkeep,
            pid_files: PidFiles::new(&sender, &waker),
            is_unwritable: false,
            detection,
            began: clock::monotonic(),
            next_id: 0,
            is_over: false,
            stops_asked: 0,
            root,
            service: (manner == Manner::Daemon).then(Service::find).flatten(),
            usage: None,
        })
    }
}

impl Supervisor {
    /// Tells that a daemon has begun, and what it found, and goes on with that.
    fn announce(&mut self, estate: Estate, ended: u64) {
        // Before the first event of this daemon has a number that a lost one of the daemon before had.
        let written = self.journal.last();
        let limits = self.machine.config().limits.clone();
        self.watch_limits(&[(Place::herd(), limits)]);
        self.take_up_pressure(None);
        self.watch_state_dir();
        let now = now();
        let mut event = self.machine.event_about(now.mono, now.wall, Kind::HerdStarted, None);
        event.pid = i32::try_from(std::process::id()).ok();
        event.message = format!("treeherd {} supervises {}", env!("CARGO_PKG_VERSION"), self.root);
        event.message.push_str(&estate.tell(ended));
        self.publish(event);
        self.adopt(estate, written);
        self.poll_keepers();
        self.write_down();
        tracing::info!("listening on {}", self.settings.socket().display());
    }
}

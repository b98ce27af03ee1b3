//! What an earlier daemon has left is gone on with: its records say what there was, the kernel says what there is.
//!
//! Before the loop turns: what nobody has a record of is ended (a spawn that was under way), main processes are found again
//! and proved by more than their pid, recorded limits are set again, and the machine is told. From then on an adopted agent
//! is like any other, but for one thing: it is not our child, so how it ended is asked of its pidfd.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mio::Interest;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::body::Body;
use super::job::Job;
use super::keepers::Sweep;
use super::records::{Begun, Legacy, Mark, Records};
use super::rules::Watcher;
use super::supervisor::{Source, Supervisor, now};
use crate::kernel::cgroup::{Cgroups, Frozen, Place, Removal};
use crate::kernel::clock;
use crate::kernel::error::{KernelError, Result as KernelResult};
use crate::kernel::host::Host;
use crate::kernel::pidfd::{self, Held};
use crate::machine::{Adopted, AgentKey, Found, FoundHome, Frost, Left, Telling};
use crate::model::applied::Applied;
use crate::model::config::HerdConfig;
use crate::model::error::{Code, Error};
use crate::model::event::Kind;
use crate::model::id::{AgentId, Level, Run};
use crate::model::limits::Limits;
use crate::model::record::{AgentRecord, Standing};
use crate::model::spec::AgentSpec;
use crate::model::stream::Stream;
use crate::output::Spool;

/// How long what nobody has a record of may take to die at start.
const STRAYS_BUDGET: Duration = Duration::from_secs(10);

/// How long a kill at start may take until what it passed over is swept.
const SWEEP_AFTER: Duration = Duration::from_millis(200);

/// How many cgroups an error names.
const UNKNOWN_SHOWN_MAX: usize = 5;

/// What an earlier daemon has left.
#[derive(Debug)]
pub(super) struct Estate {
    /// Its agents, parents before children.
    heirs: Vec<Heir>,
    /// Cgroups of spawns that were under way, and empty ones: they are in no record.
    strays: Vec<Place>,
}

/// One agent of it.
#[derive(Debug)]
struct Heir {
    record: AgentRecord,
    mark: Mark,
    home: Place,
    level: Level,
    /// What its cgroup says; none if there is none.
    found: Option<FoundHome>,
    /// Its main process, if that is still the one of the record.
    main: Option<Held>,
    /// Whether it is of this boot and this root cgroup: else nothing of it can be left.
    is_near: bool,
}

impl Heir {
    fn key(&self) -> AgentKey {
        AgentKey(self.record.birth.key)
    }

    fn level_below(&self) -> Place {
        self.home.join(&format!("level-{}", self.level.below()))
    }

    /// Returns the cgroup of the run that goes on.
    fn run_place(&self) -> Option<Place> {
        let goes_on = matches!(self.record.course.standing, Standing::Running { .. } | Standing::Draining { .. });
        goes_on.then(|| self.home.join(&format!("run-{}", self.record.course.run)))
    }
}

/// Reads what an earlier daemon has left in the books of a state directory.
///
/// # Errors
/// As [`Legacy::read`]; [`Code::InUse`]: its agents live in another root cgroup; [`Code::Unsupported`]: agents live, and their
/// records cannot all be read.
pub(super) fn read(dir: &Path, records: &Records, host: &Host) -> Result<Option<Legacy>, Error> {
    let Some(legacy) = Legacy::read(dir)? else { return Ok(None) };
    let root = records.root();
    if legacy.root != root && legacy.boot == records.boot() && lives(host, &legacy.root) {
        let message =
            format!("agents of an earlier daemon live in root cgroup {}, this one is given {root}", legacy.root);
        return Err(Error::new(Code::InUse, message)
            .remedy(format!("start it with --cgroup {} to go on with them, or use another --state-dir", legacy.root)));
    }
    if legacy.unread > 0 && is_near(&legacy, records) && lives(host, root) {
        let message = format!("{} lines of {}/records cannot be read", legacy.unread, dir.display());
        return Err(Error::new(Code::Unsupported, message).remedy(
            "start the treeherd that wrote it, or remove the file: then every agent that lives in the cgroup is ended",
        ));
    }
    Ok(Some(legacy))
}

/// Says whether the kernel can still have what is in the books: it is the same boot, and the same root cgroup.
fn is_near(legacy: &Legacy, records: &Records) -> bool {
    legacy.boot == records.boot() && legacy.root == records.root()
}

/// Says whether anything lives in the herd of a root cgroup.
fn lives(host: &Host, root: &str) -> bool {
    let events = host.cgroup2.join(root).join("herd/cgroup.events");
    std::fs::read_to_string(events).is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

impl Estate {
    /// Looks at what there is of the agents in the books, and changes nothing.
    ///
    /// # Errors
    /// [`Code::Unsupported`]: processes live in cgroups that the books know nothing of, so the books are not complete. What the
    /// kernel answered.
    pub fn survey(cgroups: &Cgroups, records: &Records, legacy: Option<Legacy>) -> Result<Self, Error> {
        let leftovers = cgroups.leftovers()?;
        let there: BTreeSet<&Place> = leftovers.iter().collect();
        let mut heirs: Vec<Heir> = Vec::new();
        // Without any books, and in those of an older version, everything else is a spawn that was under way.
        let mut begun = None;
        if let Some(legacy) = legacy {
            let is_near = is_near(&legacy, records);
            let mut places: BTreeMap<u64, (Place, Level)> = BTreeMap::new();
            for (record, mark) in legacy.agents {
                let (above, level) = match record.birth.parent.and_then(|parent| places.get(&parent)) {
                    Some((home, level)) => (home.join(&format!("level-{}", level.below())), level.below()),
                    None => (Place::herd(), Level(0)),
                };
                let home = above.join(record.id().as_str());
                places.insert(record.birth.key, (home.clone(), level));
                heirs.push(Heir { record, mark, home, level, found: None, main: None, is_near });
            }
            begun = legacy.begun.filter(|_| is_near);
        }
        for heir in heirs.iter_mut().filter(|heir| heir.is_near && !is_queued(heir) && there.contains(&heir.home)) {
            let freeze = match cgroups.asked_frozen(&heir.home)? {
                Frozen::Frozen => Frost::Frozen,
                Frozen::Thawed => Frost::Thawed,
            };
            heir.found = Some(FoundHome { freeze, has_level: there.contains(&heir.level_below()) });
            heir.main = find_main(heir);
        }
        let strays = strays(&leftovers, &heirs);
        if let Some(begun) = begun {
            check_strays(cgroups, &leftovers, &strays, &heirs, &begun)?;
        }
        Ok(Self { heirs, strays })
    }

    /// Kills and removes every cgroup that is in no record, and returns how many processes that ended. What does not die is left,
    /// and told.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn end_strays(&self, cgroups: &Cgroups) -> Result<u64, Error> {
        end_strays(cgroups, &self.strays)
    }

    /// Returns the names of its agents.
    pub fn ids(&self) -> BTreeSet<AgentId> {
        self.heirs.iter().map(|heir| heir.record.id().clone()).collect()
    }

    /// Says in words what was found.
    pub fn tell(&self, ended: u64) -> String {
        let (near, far): (Vec<_>, Vec<_>) =
            self.heirs.iter().filter(|heir| !heir.record.has_ended()).partition(|heir| heir.is_near);
        let mut text = String::new();
        for (what, count) in [
            ("adopted agents", near.len() as u64),
            ("agents of which nothing is left", far.len() as u64),
            ("processes in no record of an earlier daemon were ended", ended),
        ] {
            if count > 0 {
                text.push_str(&format!("; {what}: {count}"));
            }
        }
        text
    }
}

/// An agent that waits for admission has no cgroup: what stands at its place is of a spawn that was under way.
fn is_queued(heir: &Heir) -> bool {
    heir.record.course.standing == Standing::Queued
}

/// Opens the main process of a record, if the process with its pid is still the same.
fn find_main(heir: &Heir) -> Option<Held> {
    let Standing::Running { pid, .. } = heir.record.course.standing else { return None };
    let process = pidfd::open(pid).ok()?;
    let identity = pidfd::identity(process.as_fd(), pid).ok()?;
    (Some(identity) == heir.mark.process).then(|| Held { pid, fd: process.into() })
}

/// Lists every cgroup that is in no record, without those below another one.
fn strays(leftovers: &[Place], heirs: &[Heir]) -> Vec<Place> {
    let (mut known, mut runs) = (BTreeSet::new(), BTreeSet::new());
    for heir in heirs.iter().filter(|heir| heir.found.is_some()) {
        known.extend([heir.home.clone(), heir.level_below()]);
        runs.extend(heir.run_place());
    }
    // What is below a run an agent has made itself.
    let is_known = |place: &Place| known.contains(place) || place.lineage().any(|above| runs.contains(&above));
    let mut strays: Vec<Place> = Vec::new();
    for place in leftovers.iter().filter(|place| !is_known(place)) {
        if !strays.iter().any(|stray| place.is_within(stray)) {
            strays.push(place.clone());
        }
    }
    strays
}

/// Refuses to go on if something lives in a cgroup that is in no record and is of no spawn that was under way.
fn check_strays(
    cgroups: &Cgroups,
    leftovers: &[Place],
    strays: &[Place],
    heirs: &[Heir],
    begun: &[Begun],
) -> Result<(), Error> {
    let known: BTreeSet<u64> =
        heirs.iter().filter(|heir| heir.found.is_some()).map(|heir| heir.record.birth.key).collect();
    let under_way: BTreeSet<String> = begun
        .iter()
        .map(|begun| match known.contains(&begun.key) {
            true => format!("{}/run-{}", begun.place, begun.run),
            false => begun.place.clone(),
        })
        .collect();
    // A spawn that was under way has made one run, and nothing has been spawned below it: any other run there is unrecorded.
    let runs: BTreeSet<String> = begun.iter().map(|begun| format!("{}/run-{}", begun.place, begun.run)).collect();
    let is_other_run =
        |place: &Place| place.name().starts_with("run-") && !place.lineage().any(|above| runs.contains(above.path()));
    // No agent can have a name with a dot.
    let is_ours = |stray: &Place| under_way.contains(stray.path()) || stray.name().starts_with('.');
    let (ours, others): (Vec<&Place>, Vec<&Place>) = strays.iter().partition(|stray| is_ours(stray));
    let below = leftovers.iter().filter(|place| is_other_run(place) && ours.iter().any(|stray| place.is_within(stray)));
    let mut unknown = Vec::new();
    for place in others.into_iter().chain(below) {
        if cgroups.events(place)?.populated {
            unknown.push(place.to_string());
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let count = unknown.len();
    unknown.truncate(UNKNOWN_SHOWN_MAX);
    let message = format!(
        "the records are not complete: processes live in {count} cgroups of which they know nothing ({})",
        unknown.join(", ")
    );
    Err(Error::new(Code::Unsupported, message).remedy(
        "end these processes yourself (write 1 to cgroup.kill there), or remove the file `records` in the state directory: then \
         every agent that lives in the cgroup is ended",
    ))
}

fn end_strays(cgroups: &Cgroups, strays: &[Place]) -> Result<u64, Error> {
    let mut ended = 0;
    for stray in strays {
        ended += cgroups.kill(stray)?;
    }
    let deadline = clock::monotonic() + STRAYS_BUDGET;
    for stray in strays {
        while cgroups.events(stray).is_ok_and(|events| events.populated) {
            let left = deadline.since(clock::monotonic());
            if left.is_zero() {
                tracing::error!("{stray}: processes that are in no record of an earlier daemon do not die");
                break;
            }
            wait_for_news(cgroups, stray, left.min(SWEEP_AFTER))?;
            if cgroups.events(stray).is_ok_and(|events| events.populated) {
                cgroups.sweep(stray)?;
            }
        }
        if cgroups.remove(stray)? == Removal::Busy {
            // A process that has left cgroup2 is in a v1 mirror still.
            cgroups.sweep(stray)?;
            cgroups.remove(stray)?;
        }
    }
    Ok(ended)
}

/// Waits until a cgroup's events change. Nothing turns yet that this could hold up.
fn wait_for_news(cgroups: &Cgroups, place: &Place, most: Duration) -> KernelResult<()> {
    let events = cgroups.events_fd(place)?;
    if !cgroups.events(place)?.populated {
        return Ok(());
    }
    let timeout = Timespec { tv_sec: i64::try_from(most.as_secs()).unwrap_or(1), tv_nsec: most.subsec_nanos().into() };
    rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout))
        .map(drop)
        .map_err(|errno| KernelError::new("poll", "cgroup.events", errno))
}

impl Supervisor {
    /// Goes on with what an earlier daemon has left. `written` is the number of the last event that it has written.
    pub(super) fn adopt(&mut self, estate: Estate, written: u64) {
        let (mut adopted, mut started) = (Vec::new(), Vec::new());
        let (mut mains, mut thawed) = (Vec::new(), Vec::new());
        let mut places = Vec::new();
        let sweep = Arc::new(Sweep(self.tools.clone()));
        self.thaw_groups(&estate.heirs);
        for mut heir in estate.heirs {
            let key = heir.key();
            self.records.inherit(key, heir.mark);
            self.enter_body(&mut heir, &sweep);
            if self.thaw_run(&heir) {
                thawed.push(key);
            }
            if let Some(found) = heir.found {
                places.extend(self.limits_again(&heir, found));
            }
            let found = heir.is_near.then(|| Found { home: heir.found, left: self.left_of(&heir) });
            if found.is_some_and(|found| found.left != Left::Nothing) {
                self.hear_again(&heir.record, heir.run_place());
            }
            let is_told = heir.mark.told_at.is_none_or(|at| at <= written);
            let end = if is_told { Telling::Told } else { Telling::Untold };
            started.extend(heir.mark.started_at.filter(|at| *at > written).map(|_| (key, heir.record.course.run)));
            if let Some(main) = heir.main {
                mains.push((key, heir.record.course.run, main));
            }
            adopted.push(Adopted { record: heir.record, end, found });
        }
        let keys: Vec<AgentKey> = adopted.iter().map(|it| AgentKey(it.record.birth.key)).collect();
        let mut effects = Vec::new();
        let now = now();
        self.machine.adopt(now, adopted, &mut effects);
        // The daemon before was killed between its two files: the records have a start that the journal has not.
        for (key, run) in started {
            let mut event = self.machine.event_about(now.mono, now.wall, Kind::Started, Some(key));
            // By now the next one may have been ordered.
            event.run = Some(run);
            self.publish(event);
        }
        for key in thawed {
            let mut event = self.machine.event_about(now.mono, now.wall, Kind::Notice, Some(key));
            event.message =
                "another program had frozen its run (cgroup.freeze) while no daemon lived: thawed".to_owned();
            self.publish(event);
        }
        self.watch_limits_as_they_are(&places);
        self.perform_all(effects);
        for (key, run, main) in mains {
            self.listen_to(key, run, main);
        }
        for key in keys {
            if let Some(run) = self.machine.run_of(key) {
                self.await_pid_file(key, run);
            }
            self.listen_at_home(key);
            if self.machine.has_cgroup(key) {
                self.take_up_pressure(Some(key));
            }
            for stream in Stream::ALL {
                self.look_at_spool(key, stream);
            }
        }
    }

    /// Thaws the cgroups of the children of one agent, which no pause freezes: the daemon before
    /// may have died while it set a limit there. Of agents the machine knows what their freezers
    /// are to be.
    fn thaw_groups(&self, heirs: &[Heir]) {
        let has_level = |heir: &&Heir| heir.found.is_some_and(|found| found.has_level);
        let levels = heirs.iter().filter(has_level).map(Heir::level_below);
        levels.for_each(|place| self.tools.cgroups.thaw_group(&place).unwrap_or_else(|error| super::job::note(&error)));
    }

    /// Thaws the cgroup of a run, which no pause freezes; says whether it was frozen.
    fn thaw_run(&self, heir: &Heir) -> bool {
        let Some(place) = heir.run_place().filter(|_| heir.found.is_some()) else { return false };
        if !matches!(self.tools.cgroups.asked_frozen(&place), Ok(Frozen::Frozen)) {
            return false;
        }
        let outcome = self.tools.cgroups.thaw_group(&place);
        outcome.map_err(|error| super::job::note::<()>(&error)).is_ok()
    }

    /// Makes what the shell keeps of an agent.
    fn enter_body(&mut self, heir: &mut Heir, sweep: &Arc<Sweep>) {
        if is_queued(heir) {
            return;
        }
        let (key, spec) = (heir.key(), heir.record.birth.spec.clone());
        let mut body = Body::new(spec.id.clone(), heir.home.clone());
        if !spec.is_group() && heir.record.course.run > Run(0) {
            match Spool::recover(&self.tools.store, &spec.id, spec.output_max) {
                Ok(spool) => {
                    body.watcher = self.go_on_watching(&spec, &spool, heir.record.course.run);
                    body.spool = Some(spool);
                    body.pipes = self.tools.store.token(&spec.id);
                    if body.pipes.is_some() {
                        let (id, sweep) = (spec.id.clone(), Some(sweep.clone()));
                        self.hands.take(Job::Keep { agent: key, id, sweep });
                    }
                }
                Err(error) => tracing::warn!("go on with the output of {}: {error}", spec.id),
            }
        }
        if let Some(last) = &mut heir.record.last {
            body.last_lines = std::mem::take(&mut last.last_lines);
        }
        self.bodies.insert(key, Box::new(body));
    }

    /// Has the rules of an agent look at what it writes from now on: how far they had come is not known.
    fn go_on_watching(&self, spec: &AgentSpec, spool: &Spool, run: Run) -> Option<Box<Watcher>> {
        let compiled = self.tools.rulebook.compiled(spec);
        let set = compiled.map_err(|error| tracing::warn!("go on with the rules of {}: {error}", spec.id)).ok()??;
        let begins = Stream::ALL.map(|stream| spool.bounds(stream).1);
        Some(Box::new(Watcher::new(&spec.rules, &set, begins, run)))
    }

    /// Sets the limits that are written down, where the kernel has others: a change may have been under way.
    fn limits_again(&self, heir: &Heir, found: FoundHome) -> Vec<(Place, Limits)> {
        let mut places = vec![(heir.home.clone(), heir.record.course.limits.clone())];
        if found.has_level {
            places.push((heir.level_below(), self.machine.config().level(heir.level.below()).siblings));
        }
        let is_delegated = |place: &Place| heir.record.birth.spec.delegate && *place == heir.home;
        places.retain(|(place, limits)| !limits.is_empty() || is_delegated(place));
        for (place, limits) in &places {
            let is_set = self.tools.cgroups.limits_now(place, limits.iter().map(|(knob, _)| knob)) == *limits;
            if !is_set && let Err(error) = self.tools.cgroups.set_limits(place, limits) {
                tracing::error!("set the limits of {place} again: {error}");
            }
        }
        places
    }

    /// Finds out what is left of an agent's run, and listens to what its main process left behind.
    fn left_of(&mut self, heir: &Heir) -> Left {
        if heir.main.is_some() {
            return Left::Main;
        }
        let goes_on = heir.found.is_some() && heir.run_place().is_some();
        match if goes_on { self.descendants(heir.key(), heir.record.course.run) } else { 0 } {
            0 => Left::Nothing,
            others => Left::Others(others),
        }
    }

    /// Listens for the end of a run's main process.
    pub(super) fn listen_to(&mut self, key: AgentKey, run: Run, process: Held) {
        // A process that has ended already makes its pidfd readable at once.
        self.poll_for(&process.fd, Source::Process(key), Interest::READABLE);
        if let Some(body) = self.bodies.get_mut(&key) {
            body.process = Some((run, process));
        }
    }
}

/// Returns a configuration with the limits that were in force, which can have been changed while agents ran. Where the file or
/// the command line has others by now, SIGHUP applies them.
pub(super) fn with_limits_in_force(config: &HerdConfig, records: &Records, legacy: Option<&Legacy>) -> HerdConfig {
    let is_near = |legacy: &&Legacy| !legacy.agents.is_empty() && is_near(legacy, records);
    let herd = legacy.filter(is_near).and_then(|legacy| legacy.herd.as_ref());
    let Some(herd) = herd else { return config.clone() };
    if (&herd.limits, &herd.levels) != (&config.limits, &config.levels) {
        tracing::warn!("the adopted herd keeps the limits that it had; SIGHUP applies those of the configuration");
    }
    HerdConfig { limits: herd.limits.clone(), levels: herd.levels.clone(), ..config.clone() }
}

/// Returns what the daemon before has remembered of applied files, where its herd goes on.
pub(super) fn applied(records: &Records, legacy: Option<&Legacy>) -> BTreeMap<String, Applied> {
    let is_near = |legacy: &&Legacy| !legacy.agents.is_empty() && is_near(legacy, records);
    legacy.filter(is_near).and_then(|legacy| legacy.herd.as_ref()).map(|herd| herd.applied.clone()).unwrap_or_default()
}

//! One tree file in the foreground: a supervisor in this process, its agents' output and events on stdout.
//!
//! ```text
//!               ┌──────────► crew: spawns all, waits for all ──┐ messages, a byte in `wake` for each
//! tree file ────┤                                              ▼
//!               └► Herd ◄──── watch: events and output ──► [one poll] ◄── signals
//! ```
//!
//! This thread shows; it blocks in one poll and never in a call that an agent could hold up, nor in a write. The first SIGINT, SIGTERM,
//! SIGQUIT or SIGHUP ends the cascade in order, the next one kills it. The status is 0 only if every agent with a command completed.

mod crew;
mod signals;
mod stdout;
mod summary;
mod view;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::args::{Global, RunArgs};
use super::check;
use super::failure::{Done, FAILED, Failure, note, tell};
use super::init;
use super::link::SOCKET_VARIABLE;
use super::log;
use super::screen::Screen;
use crate::api::client::Client;
use crate::api::method::{Call, EventQuery, Events, FollowQuery, Nothing, Selection};
use crate::daemon::{self, EndsWith, Settings};
use crate::herd::Herd;
use crate::model::error::{Code, Error};
use crate::model::request::Target;
use crate::model::spec::AgentSpec;
use crate::model::status::AgentStatus;
use crew::{Crew, Message};
use signals::Requests;
use stdout::Paper;
use view::View;

/// The variable that tells an agent how to call this very program.
const PROGRAM_VARIABLE: &str = "TREEHERD";

/// How long the last lines may take after the last end.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The status for a tree file with mistakes.
const BAD_FILE: u8 = 2;

/// `run`
pub(super) fn run(global: &Global, args: RunArgs, screen: &mut Screen) -> Done {
    let Some(mut tree) = check::tree(&args.file, screen)? else { return Ok(ExitCode::from(BAD_FILE)) };
    tree.declare(&check::stem(&args.file));
    if tree.agents.is_empty() {
        let error = Error::new(Code::BadTree, format!("{} has no agents", args.file.display()));
        return Err(error.remedy("add one, as in [agents.hello] with command = \"echo hello\"").into());
    }
    daemon::check_clone3()?;
    // Before there are other threads.
    daemon::prepare_process();
    daemon::share_heap();
    daemon::block_irrelevant_signals();
    let failed = |what: &str, error: std::io::Error| Error::new(Code::Kernel, format!("{what}: {error}"));
    // What befalls agents is shown as events.
    log::start(global.log_format, "error").map_err(|error| failed("start the log", error))?;
    let mut requests = Requests::listen().map_err(|error| failed("catch signals", error))?;
    for dead in daemon::dead_herds() {
        note(&format!("{dead}; {}", dead.remedy()));
    }
    let place = Place::choose(global)?;
    let mut settings = Settings::new(&place.dir);
    settings.herd = tree.config;
    settings.socket.clone_from(&global.socket);
    let seat = daemon::choose_seat(args.cgroup.as_deref(), &own_name())?;
    // A path, and no name whose place is still to be chosen.
    (settings.cgroup, settings.residence) = (format!("/{}", seat.cgroup), seat.residence);
    settings.is_transient = place.is_ours;
    settings.ends_with = match args.end_with_parent {
        true => EndsWith::Parent,
        // With PID 1 ends everything.
        false if init::is_parent() => EndsWith::Nobody,
        false => EndsWith::Supervisor,
    };
    let socket = settings.socket();
    settings.env = told_where(&socket);
    let herd = Herd::start(settings)?;
    if !args.quiet {
        note(&format!("from another terminal: {SOCKET_VARIABLE}={} treeherd ps", socket.display()));
    }
    let paper = Paper::behind(screen).map_err(|error| failed("start a thread for stdout", error))?;
    let mut view = View::new(&tree.agents, args.quiet, screen);
    let outcome = watch(&herd, tree.agents, &mut requests, &mut view, &paper);
    let ended = herd.shutdown(None);
    outcome.and_then(|()| Ok(view.finish()?))?;
    paper.finish(LAST_LINES);
    ended?;
    Ok(if view.all_completed() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Tells agents where their supervisor is: a parent may pause and end what is below it.
fn told_where(socket: &Path) -> BTreeMap<String, String> {
    let paths = [(SOCKET_VARIABLE, std::path::absolute(socket)), (PROGRAM_VARIABLE, std::env::current_exe())];
    let known =
        |(name, path): (&str, std::io::Result<PathBuf>)| Some((name.to_owned(), path.ok()?.to_str()?.to_owned()));
    paths.into_iter().filter_map(known).collect()
}

/// Returns the name of this run, for its cgroup and its state directory.
fn own_name() -> String {
    format!("{}{}", daemon::RUN_PREFIX, std::process::id())
}

/// Where the supervisor keeps its state; a directory of our own goes with us.
struct Place {
    dir: PathBuf,
    is_ours: bool,
}

impl Place {
    fn choose(global: &Global) -> Result<Self, Error> {
        if let Some(dir) = &global.state_dir {
            return Ok(Self { dir: dir.clone(), is_ours: false });
        }
        let places = daemon::run_places().map(|place| place.join(own_name()));
        let mut why = String::new();
        for dir in places {
            // As a daemon's: agents of any user reach the sockets in it, and nobody can list it.
            match std::fs::DirBuilder::new().mode(0o711).create(&dir) {
                Ok(()) => return Ok(Self { dir, is_ours: true }),
                Err(error) => why = format!("make {}: {error}", dir.display()),
            }
        }
        Err(Error::new(Code::Kernel, why).remedy("name a directory with --state-dir"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_ours {
            // What cannot be removed lies in a directory that is cleared at boot.
            std::fs::remove_dir_all(&self.dir).unwrap_or_default();
        }
    }
}

/// Runs the agents and shows what they do, until all have ended.
fn watch(
    herd: &Herd,
    agents: Vec<AgentSpec>,
    requests: &mut Requests,
    view: &mut View<'_>,
    paper: &Paper,
) -> Result<(), Failure> {
    let mut client = herd.connect_client()?;
    client.call::<Events>(&Call::Events(EventQuery { follow: true, ..EventQuery::default() }))?;
    client.call::<Nothing>(&Call::Follow(FollowQuery { target: Target::All, stream: None, lines: None }))?;
    let mut crew = Crew::start(herd, agents)?;
    let (mut has_started, mut sparse) = (false, None);
    loop {
        drain(&mut client, view, paper)?;
        match crew.next() {
            Some(Message::Done(statuses)) => {
                view.ended(&statuses);
                return settle(&mut client, view, paper);
            }
            Some(Message::Spawned) => has_started = true,
            Some(Message::Refused(id, error)) => view.refused(&id, &error)?,
            Some(Message::Broken(error)) => return Err(error.into()),
            Some(Message::NotEnded(error)) => tell(&error, false),
            None => {
                view.flush()?;
                if std::mem::take(&mut has_started) {
                    // Where the supervisor, in a cgroup of its own, holds its memory already, this is refused and changes nothing.
                    sparse = sparse.or_else(daemon::trim_memory);
                }
                let [asked, hung_up] = requests.fds();
                if wait(&client, paper, &[crew.wake.as_fd(), asked, hung_up], None)? {
                    take(&mut client, view)?;
                }
            }
        }
        requests.take(|count| {
            note(if count == 1 { "ending all agents; a second signal kills them" } else { "killing all agents" });
            crew.end(herd, count > 1)
        })?;
    }
}

/// Shows what is here already, as far as stdout has room.
fn drain(client: &mut Client, view: &mut View<'_>, paper: &Paper) -> Result<(), Failure> {
    while client.has_more() && paper.has_room() {
        take(client, view)?;
    }
    Ok(())
}

/// Shows the next notification; waits for it if it is not here.
fn take(client: &mut Client, view: &mut View<'_>) -> Result<(), Failure> {
    view.take(&client.note()?)
}

/// Shows the last of what the agents, which have all ended, wrote.
fn settle(client: &mut Client, view: &mut View<'_>, paper: &Paper) -> Result<(), Failure> {
    // Whatever was on its way before this call is here after it.
    client.call::<Vec<AgentStatus>>(&Call::Ps(Selection::default()))?;
    let deadline = Instant::now() + LAST_LINES;
    loop {
        drain(client, view, paper)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if !view.is_following() || left.is_zero() {
            return Ok(());
        }
        view.flush()?;
        if wait(client, paper, &[], Some(left))? {
            take(client, view)?;
        }
    }
}

/// Waits until there is something to do, and returns whether the supervisor has something to tell for which stdout has room.
fn wait(client: &Client, paper: &Paper, others: &[BorrowedFd<'_>], most: Option<Duration>) -> Result<bool, Error> {
    let has_room = paper.has_room();
    if has_room && client.has_more() {
        // There was no room for it a moment ago.
        return Ok(true);
    }
    let told = if has_room { client.as_fd() } else { paper.room() };
    let fds = std::iter::once(&told).chain(others);
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let most = most.and_then(|most| Timespec::try_from(most).ok());
    match poll(&mut fds, most.as_ref()) {
        Ok(_) => Ok(has_room && !fds[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(Error::new(Code::Kernel, format!("poll: {errno}"))),
    }
}

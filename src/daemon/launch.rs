//! From a specification to everything that a child needs: its environment, its user, its files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::job::{Tools, at};
use super::settings::Settings;
use super::start::Manner;
use crate::kernel::cgroup::Place;
use crate::kernel::error::KernelError;
use crate::kernel::process;
use crate::kernel::rights::Stream;
use crate::kernel::spawn::{self, IoPriority, Launch, Memory, Resource, Way};
use crate::kernel::user::{self, Account};
use crate::model;
use crate::model::error::{Code, Error};
use crate::model::spec::{AgentSpec, IoClass, IoNice, Rlimit};
use crate::model::stage::{SpawnFailure, Stage};
use crate::model::units::Max;
use crate::model::within::Baseline;
use crate::output::Inlet;

/// The variable that says which process is to send the heartbeat.
const WATCHDOG_PID: &CStr = c"WATCHDOG_PID";

/// The PATH of an agent that is given none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The soft limit on descriptors of an agent that asks for none, unless the supervisor was started with less: what select(2) can
/// take. A program that needs more raises it, as far as the hard limit goes.
const DESCRIPTORS: u64 = 1024;

/// What the daemon itself is and has, looked up once.
#[derive(Debug)]
pub(super) struct Surroundings {
    own: Account,
    /// The soft limit on descriptors of agents that ask for none.
    descriptors: u64,
    /// Where agents tell how they are.
    notify_socket: OsString,
    /// What is in every agent's environment.
    env: BTreeMap<String, String>,
    /// The signals that this process may ignore.
    ignored: u64,
}

impl Surroundings {
    /// Looks up who we are. In a process of our own nobody changes later which signals are ignored.
    pub fn look(settings: &Settings, manner: Manner) -> Result<Self, Error> {
        let ignored = match manner {
            Manner::Daemon => process::ignored_signals()?,
            Manner::Library => u64::MAX,
        };
        let descriptors = process::descriptor_limit_at_start().min(DESCRIPTORS);
        let notify_socket = settings.notify_socket().into_os_string();
        Ok(Self { own: user::own_account()?, notify_socket, env: settings.env.clone(), descriptors, ignored })
    }
}

/// Tells what agents have that ask for nothing.
pub(super) fn baseline() -> Baseline {
    let hard = |name: &Rlimit| {
        let most = Resource::from_name(&name.to_string())?.own_hard_limit()?;
        Some((*name, if most == u64::MAX { Max::Max } else { Max::Value(most) }))
    };
    Baseline { uid: rustix::process::geteuid().as_raw(), rlimits: Rlimit::ALL.iter().filter_map(hard).collect() }
}

/// Makes everything ready for a child of this run.
pub(super) fn prepare(
    spec: &AgentSpec,
    tools: &Tools,
    place: &Place,
    leaf: OwnedFd,
    inlet: Inlet,
) -> Result<Launch, SpawnFailure> {
    let credentials = match (&spec.user, &spec.group) {
        (None, None) => None,
        (user, group) => Some(user::lookup(user.as_deref(), group.as_deref()).map_err(|error| at(Stage::User, error))?),
    };
    let account = credentials.as_ref().map_or(&tools.surroundings.own, |user| &user.account);
    // What an agent may open again by `/dev/stdout` belongs to it.
    if let (Some(user), Some(_)) = (&credentials, inlet.token) {
        give_pipes(&inlet, user).map_err(|error| at(Stage::User, error.into()))?;
    }
    let (place, leaf) = match spec.delegate {
        true => delegate(tools, place, credentials.as_ref()).map_err(|error| at(Stage::Cgroup, error.into()))?,
        false => (place.clone(), leaf),
    };
    let env = environment(spec, account, &tools.surroundings);
    let path = env.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH=").map(OsStr::from_bytes));
    let program = &spec.command[0];
    let mut enter = Vec::new();
    if tools.way == Way::EnterItself {
        enter.push(tools.cgroups.procs_fd(&place).map_err(|error| at(Stage::Cgroup, error.into()))?);
    }
    enter.extend(tools.cgroups.entrances(&place).map_err(|error| at(Stage::Cgroup, error.into()))?);
    let text = |text: &OsStr| {
        CString::new(text.as_bytes())
            .map_err(|_| at(Stage::Prepare, Error::new(Code::BadValue, format!("{text:?} contains a NUL byte"))))
    };
    let cwd = spec.cwd.as_deref().unwrap_or(Path::new("/"));
    Ok(Launch {
        argv: spec.command.iter().map(|word| text(OsStr::new(word))).collect::<Result<_, _>>()?,
        env: env.iter().map(|entry| text(entry)).collect::<Result<_, _>>()?,
        pid_variable: spec.watchdog.map(|_| WATCHDOG_PID.to_owned()),
        search: spawn::path_candidates(program, path.unwrap_or(OsStr::new(DEFAULT_PATH))),
        cwd: CString::new(cwd.as_os_str().as_bytes()).unwrap_or_default(),
        stdin: spec.stdin.as_deref().map(|path| CString::new(path.as_os_str().as_bytes()).unwrap_or_default()),
        stdout: inlet.stdout,
        stderr: inlet.stderr,
        passed: None,
        leaf,
        enter,
        credentials,
        ignored: tools.surroundings.ignored,
        rlimits: rlimits(spec, tools.surroundings.descriptors)?,
        oom_score_adj: spec.oom_score_adj,
        nice: spec.nice,
        ionice: spec.ionice.map(io_priority),
        umask: spec.umask.unwrap_or_default().bits(),
        no_new_privs: false,
        way: tools.way,
        memory: Memory::Copied,
    })
}

/// Delegates a run's cgroup to the user that the agent becomes, and returns the place in it where
/// the main process lives.
fn delegate(tools: &Tools, place: &Place, user: Option<&user::Credentials>) -> Result<(Place, OwnedFd), KernelError> {
    let main = tools.cgroups.delegate(place, user.map(|user| (user.uid, user.gid)))?;
    let leaf = tools.cgroups.open_dir(&main)?;
    Ok((main, leaf))
}

/// Gives the pipes of an agent to the user that it becomes.
fn give_pipes(inlet: &Inlet, user: &user::Credentials) -> Result<(), KernelError> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(user.gid));
    for pipe in [&inlet.stdout, &inlet.stderr] {
        rustix::fs::fchown(pipe, Some(uid), Some(gid))
            .map_err(|errno| KernelError::new(format!("chown to {}", user.uid), "its output pipes", errno))?;
    }
    Ok(())
}

/// A clean environment: PATH, HOME, USER and LANG, what every agent is given, what is inherited by name, what this one is given,
/// and what sd_notify(3) and sd_watchdog_enabled(3) look for in an agent that has something to tell.
fn environment(spec: &AgentSpec, who: &Account, surroundings: &Surroundings) -> Vec<OsString> {
    let own = |name: &str| std::env::var_os(name).map(Cow::from);
    let text = |text| Cow::from(OsStr::new(text));
    let mut env: BTreeMap<&str, Cow<'_, OsStr>> = BTreeMap::from([
        ("PATH", text(DEFAULT_PATH)),
        ("HOME", who.home.as_os_str().into()),
        ("USER", text(&who.name)),
        ("LANG", own("LANG").unwrap_or(text("C.UTF-8"))),
    ]);
    env.extend(surroundings.env.iter().map(|(name, value)| (name.as_str(), text(value))));
    env.extend(spec.inherit_env.iter().filter_map(|name| Some((name.as_str(), own(name)?))));
    env.extend(spec.env.iter().map(|(name, value)| (name.as_str(), text(value))));
    if spec.notifies() {
        env.insert("NOTIFY_SOCKET", surroundings.notify_socket.as_os_str().into());
    }
    if let Some(watchdog) = spec.watchdog {
        env.insert("WATCHDOG_USEC", OsString::from(watchdog.as_micros().to_string()).into());
        // Only the child knows this one.
        env.remove("WATCHDOG_PID");
    }
    let entry =
        |(name, value): (&&str, &Cow<'_, OsStr>)| [OsStr::new(name), OsStr::new("="), value].into_iter().collect();
    env.iter().map(entry).collect()
}

/// Makes the socket pair on which a run reports with a newline that it is ready: our end, and the
/// run's.
///
/// It is no pipe: the run could hold the kernel's lock of a pipe (a `splice` from a socket that has
/// nothing), and our read would wait for it.
pub(super) fn newline_sockets() -> Result<(Stream, OwnedFd), SpawnFailure> {
    let failed = |errno| at(Stage::Prepare, KernelError::new("make", "a socket pair", errno).into());
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
    Ok((Stream::new(ours), theirs))
}

/// What is asked for, and a fixed soft limit on descriptors if that is not.
fn rlimits(spec: &AgentSpec, descriptors: u64) -> Result<Vec<spawn::Rlimit>, SpawnFailure> {
    let number = |value: Max<u64>| value.value().unwrap_or(u64::MAX);
    let is_asked = spec.rlimits.contains_key(&model::spec::Rlimit::Nofile);
    let usual = Resource::from_name("nofile").filter(|_| !is_asked).map(|resource| {
        let hard = process::hard_descriptor_limit();
        Ok(spawn::Rlimit { resource, soft: descriptors.min(hard), hard })
    });
    let asked = spec.rlimits.iter().map(|(name, pair)| {
        let resource = Resource::from_name(&name.to_string());
        let unknown = || at(Stage::Rlimits, Error::new(Code::BadValue, format!("no resource limit is called {name}")));
        Ok(spawn::Rlimit { resource: resource.ok_or_else(unknown)?, soft: number(pair.soft), hard: number(pair.hard) })
    });
    usual.into_iter().chain(asked).collect()
}

fn io_priority(ionice: IoNice) -> IoPriority {
    match ionice.class {
        IoClass::Realtime => IoPriority::Realtime(ionice.level),
        IoClass::BestEffort => IoPriority::BestEffort(ionice.level),
        IoClass::Idle => IoPriority::Idle,
    }
}

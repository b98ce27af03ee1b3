//! The processes that are measured: a daemon of our own, and the roles that this very program plays as somebody's child.
#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use treeherd::api::client::Client;
use treeherd::api::message::Outgoing;
use treeherd::api::method::{Call, Ending, EventNote, EventQuery, Events, Grace, Hello, Nothing, OfAgents, OfTarget};
use treeherd::daemon::{Residence, Settings};
use treeherd::kernel::host::Host;
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::request::Target;
use treeherd::model::spec::AgentSpec;
use treeherd::model::status::{AgentStatus, Receipt};

/// The variable that says which role this program plays.
const ROLE: &str = "TREEHERD_BENCH_ROLE";

/// How long an agent that has ended lets the measured machine calm down before it ends.
const CALM: Duration = Duration::from_millis(4);

/// Plays a role if the environment says so.
pub fn play_role() -> bool {
    let Ok(role) = std::env::var(ROLE) else { return false };
    let (role, argument) = role.split_once(':').unwrap();
    match role {
        "daemon" => {
            let (cgroup, dir) = argument.split_once(':').unwrap();
            daemon(cgroup, Path::new(dir));
        }
        "stamp" => stamp(Path::new(argument)),
        "crowd" => crowd(argument.parse().unwrap()),
        "echo" => echo(Path::new(argument)),
        "server" => crate::spawn::serve(argument),
        "janitor" => janitor(argument),
        other => crate::load::play(other, argument),
    }
    true
}

fn daemon(cgroup: &str, dir: &Path) {
    // As a service manager does: whoever measures is not in the daemon's session, nor in its share of the CPUs.
    rustix::process::setsid().unwrap();
    let mut settings = Settings::new(dir);
    settings.cgroup = cgroup.to_owned();
    settings.residence = Residence::OwnLeaf;
    settings.herd.bounds.max_levels = 65;
    settings.herd.bounds.max_agents_per_level = 20_000;
    settings.herd.bounds.max_agents = 20_000;
    treeherd::daemon::serve(settings).unwrap();
}

/// Waits until the measuring process is gone, and sweeps every cgroup that it left.
fn janitor(names: &str) {
    // What interrupts the one who measures, from a terminal, does not reach it.
    rustix::process::setsid().unwrap();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    for mount in cgroup_mounts() {
        let entries = std::fs::read_dir(&mount).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(names)) {
            eprintln!("left behind, and swept: {}", entry.path().display());
            crate::bare::sweep(&entry.path());
        }
    }
}

/// Has whatever this process leaves behind swept when it is gone, however it goes.
pub fn employ_janitor() -> std::process::Child {
    let (command, (variable, value)) = role(&format!("janitor:{}", own_names()));
    Command::new(&command[0]).env(variable, value).stdin(std::process::Stdio::piped()).spawn().unwrap()
}

/// Gives back every byte that comes over a socket, until it is closed.
fn echo(socket: &Path) {
    use std::io::Read;
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 {
        stream.write_all(&byte).unwrap();
    }
}

/// Notes the time in a shared page, and ends at once.
fn stamp(file: &Path) {
    let page = Page::open(file);
    std::thread::sleep(CALM);
    page.0.store(monotonic_ns(), Ordering::Relaxed);
    // SAFETY: ends the process; nothing is to be dropped.
    unsafe { libc::_exit(0) }
}

/// Makes a process group of so many processes that do nothing, this one included, and says so when all are there.
fn crowd(count: usize) {
    for _ in 1..count {
        // SAFETY: there is one thread, and the child only sleeps.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        }
        assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
    }
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

/// A number that is shared with another process, in a file.
pub struct Page(&'static AtomicU64);

impl Page {
    pub fn open(path: &Path) -> Self {
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(4096).unwrap();
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new shared mapping of a page that is there; it is never unmapped.
        let address = unsafe { mmap(std::ptr::null_mut(), 4096, flags, MapFlags::SHARED, &file, 0) }.unwrap();
        // SAFETY: as above, aligned to a page, and only ever used as this atomic.
        Self(unsafe { &*address.cast::<AtomicU64>() })
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// Reads the clock that all processes share, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Makes a name that nobody else has.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{}{what}-{}", own_names(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// How all names begin that this process makes.
fn own_names() -> String {
    format!("th-bench-{}-", std::process::id())
}

/// Lists where cgroups are mounted, of both versions.
fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).collect()
}

/// Returns where cgroup2 is mounted.
pub fn cgroup2() -> PathBuf {
    Host::discover().unwrap().cgroup2
}

/// Makes a directory in memory if the host has one: where `/run` is in life.
pub fn memory_dir() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Returns the command and the environment of this program in a role.
pub fn role(role: &str) -> (Vec<String>, (&'static str, String)) {
    (vec![std::env::current_exe().unwrap().to_str().unwrap().to_owned()], (ROLE, role.to_owned()))
}

/// A daemon in a process of its own. Ended, and its cgroups swept, in the end.
pub struct Daemon {
    pub client: Client,
    process: std::process::Child,
    cgroups: Vec<PathBuf>,
    pub dir: tempfile::TempDir,
    role: String,
    next: u32,
}

/// Starts a daemon and waits until it answers.
fn up(role: &str, state: &Path) -> (std::process::Child, Client) {
    let (command, (variable, value)) = self::role(role);
    let mut process = Command::new(&command[0]).env(variable, value).spawn().unwrap();
    loop {
        match Client::connect(&state.join("treeherd.sock")) {
            Ok(client) => return (process, client),
            Err(error) => assert!(process.try_wait().unwrap().is_none(), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Daemon {
    pub fn start(name: &str) -> Self {
        let (cgroup, dir) = (unique(name), memory_dir());
        let state = dir.path().join("state");
        let role = format!("daemon:{cgroup}:{}", state.display());
        let (process, client) = up(&role, &state);
        let cgroups = cgroup_mounts().into_iter().map(|mount| mount.join(&cgroup)).collect();
        let mut daemon = Self { client, process, cgroups, dir, role, next: 0 };
        // What the first agent brings into memory is the daemon's own.
        let first = daemon.fresh();
        daemon.spawn(AgentSpec::new(first.clone(), ["true"]));
        daemon.wait(&first);
        daemon.forget();
        daemon
    }

    /// Kills it, and starts another one in its place: returns when that one answers.
    pub fn succeed(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        (self.process, self.client) = up(&self.role, &self.dir.path().join("state"));
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.dir.path().join("state/treeherd.sock")).unwrap()
    }

    /// Returns the herd's root cgroup.
    pub fn root(&mut self) -> String {
        self.client.call::<Hello>(&Call::Hello(Nothing {})).unwrap().cgroup
    }

    pub fn wire(&self) -> Wire {
        Wire(BufReader::new(UnixStream::connect(self.dir.path().join("state/treeherd.sock")).unwrap()))
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Makes an agent's name that was not used yet.
    pub fn fresh(&mut self) -> AgentId {
        self.next += 1;
        format!("a{}", self.next).parse().unwrap()
    }

    pub fn spawn(&mut self, spec: AgentSpec) -> AgentStatus {
        self.client.call(&Call::Spawn(Box::new(spec))).unwrap()
    }

    pub fn spawn_crowd(&mut self, parent: Option<&AgentId>, processes: usize) -> AgentId {
        let id = self.fresh();
        let mut spec = play(&id, &format!("crowd:{processes}"));
        spec.parent = parent.cloned();
        self.spawn(spec);
        id
    }

    pub fn group(&mut self, parent: Option<&AgentId>) -> AgentId {
        let id = self.fresh();
        let mut spec = AgentSpec::group(id.clone());
        spec.parent = parent.cloned();
        self.spawn(spec);
        id
    }

    pub fn wait(&mut self, id: &AgentId) -> AgentStatus {
        let ended: Vec<AgentStatus> = self.client.call(&Call::Wait(OfAgents { ids: vec![id.clone()] })).unwrap();
        ended.into_iter().next().unwrap()
    }

    pub fn forget(&mut self) {
        self.client.call::<Vec<AgentStatus>>(&Call::Cleanup(OfTarget { target: Target::All })).unwrap();
    }

    pub fn kill(&mut self, id: &AgentId) -> Receipt {
        let target = Target::Ids(vec![id.clone()]);
        self.client.call(&Call::Terminate(Ending { target, grace_ms: Some(0) })).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.client.call::<Receipt>(&Call::Shutdown(Grace { grace_ms: Some(0) })));
        drop(self.process.wait());
        for cgroup in self.cgroups.iter().filter(|cgroup| cgroup.exists()) {
            eprintln!("left behind, and swept: {}", cgroup.display());
            crate::bare::sweep(cgroup);
        }
    }
}

/// A connection for requests that are written before the clock starts, as by a client in any language.
pub struct Wire(BufReader<UnixStream>);

impl Wire {
    /// Writes a request as it goes over the socket.
    pub fn line(call: &Call) -> Vec<u8> {
        let message = Outgoing { jsonrpc: "2.0", id: 1, method: call.method(), params: call.params().unwrap() };
        let mut line = serde_json::to_vec(&message).unwrap();
        line.push(b'\n');
        line
    }

    /// Sends a request and waits for its answer, as the library's client does: not in the read itself.
    pub fn ask(&mut self, line: &[u8]) {
        self.0.get_mut().write_all(line).unwrap();
        poll(&mut [PollFd::new(self.0.get_ref(), PollFlags::IN)], None).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        assert!(answer.contains("\"result\""), "{answer}");
    }
}

/// Describes an agent that plays a role.
pub fn play(id: &AgentId, what: &str) -> AgentSpec {
    let (command, (variable, value)) = role(what);
    let mut spec = AgentSpec::new(id.clone(), command);
    spec.env.insert(variable.to_owned(), value);
    spec
}

/// A connection that follows the events.
pub struct Follower(Client);

impl Follower {
    pub fn new(daemon: &Daemon) -> Self {
        let mut client = daemon.connect();
        client.call::<Events>(&Call::Events(EventQuery { follow: true, ..EventQuery::default() })).unwrap();
        Self(client)
    }

    /// Waits for an event of one of these kinds about an agent; returns it and when it was there.
    pub fn await_event(&mut self, kinds: &[Kind], id: &AgentId) -> (Event, u64) {
        loop {
            let (event, at) = self.await_any(kinds);
            if event.agent.as_ref() == Some(id) {
                return (event, at);
            }
        }
    }

    /// Waits for an event of one of these kinds; returns it and when it was there.
    pub fn await_any(&mut self, kinds: &[Kind]) -> (Event, u64) {
        loop {
            let note = self.0.note().unwrap();
            let at = monotonic_ns();
            let note: EventNote = note.read().unwrap();
            if let Some(event) = note.event.filter(|event| kinds.contains(&event.kind)) {
                return (event, at);
            }
        }
    }
}

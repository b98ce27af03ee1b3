//! What the tests on a real kernel share: a herd of their own that leaves nothing, and waits for facts with a deadline.
#![allow(dead_code, clippy::unwrap_used)]

pub mod foreground;
pub mod fuse;
pub mod raw;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use treeherd::api::method::EventQuery;
use treeherd::daemon::Settings;
use treeherd::herd::{EventStream, Herd};
use treeherd::model::error::{Code, Error};
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::limits::Limits;
use treeherd::model::request::Target;
use treeherd::model::spec::AgentSpec;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// How long a fact may take before a test gives up on it; never how fast it should be.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a test may take altogether before everything is killed: a request that is never answered must not hang a build.
const TEST_MOST: Duration = Duration::from_secs(150);

/// The arguments with which a test binary plays a role. With one thread it would say the test's name before, on the same line.
pub const AS_ROLE: [&str; 4] = ["--exact", "role", "--nocapture", "--test-threads=2"];

/// The variable that tells a test binary, started again, what it is to be.
pub const ROLE: &str = "TREEHERD_TEST_ROLE";

/// Returns how long the runs of `tests/endurance` are to take, if that is not what suits a build: `TREEHERD_ENDURE=1h`.
pub fn endurance() -> Option<Duration> {
    let text = std::env::var("TREEHERD_ENDURE").ok()?;
    Some(humantime::parse_duration(&text).unwrap_or_else(|error| panic!("TREEHERD_ENDURE={text}: {error}")))
}

/// The root cgroups of all herds of this process that are alive.
static ALIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A herd in a state directory and a root cgroup of its own. It leaves nothing, even if its test panics or its supervisor did.
pub struct Own {
    herd: Option<Herd>,
    /// The daemon, if it is a process of its own.
    daemon: Option<Child>,
    words: Vec<String>,
    /// What the daemon is started by.
    prefix: Vec<String>,
    pub dir: tempfile::TempDir,
    /// The state directory.
    pub state: PathBuf,
    pub cgroup: String,
    _watchdog: Sender<()>,
}

impl std::ops::Deref for Own {
    type Target = Herd;
    fn deref(&self) -> &Herd {
        self.herd.as_ref().unwrap()
    }
}

/// Makes a name that no other test has.
pub fn unique(what: &str) -> String {
    format!("th-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Starts a herd with the defaults, changed as asked.
pub fn herd_with(change: impl FnOnce(&mut Settings)) -> Own {
    let dir = tempfile::tempdir().unwrap();
    let cgroup = unique("test");
    let mut settings = Settings::new(dir.path().join("state"));
    settings.cgroup.clone_from(&cgroup);
    change(&mut settings);
    let herd = Herd::start(settings).unwrap_or_else(|error| panic!("{error}"));
    alive().insert(cgroup.clone());
    Own {
        herd: Some(herd),
        daemon: None,
        words: Vec::new(),
        prefix: Vec::new(),
        state: dir.path().join("state"),
        dir,
        cgroup,
        _watchdog: watchdog(),
    }
}

/// Starts a daemon in a process of its own, with these words on its command line.
pub fn daemon(words: &[&str]) -> Own {
    daemon_by(&[], words)
}

/// Starts a daemon by another program, which executes what follows its own words.
pub fn daemon_by(prefix: &[&str], words: &[&str]) -> Own {
    let mut own = daemon_to_be(words);
    own.prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
    own.restart();
    own
}

/// Starts a daemon in a process of its own, by a command that is changed as asked.
pub fn daemon_started(change: impl FnOnce(&mut Command)) -> Own {
    let mut own = daemon_to_be(&[]);
    let mut command = own.start();
    change(&mut command);
    own.await_answer(command);
    own
}

/// Makes a place for a daemon that [`Own::restart`] starts.
pub fn daemon_to_be(words: &[&str]) -> Own {
    let dir = tempfile::tempdir().unwrap();
    let cgroup = unique("daemon");
    alive().insert(cgroup.clone());
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    Own {
        herd: None,
        daemon: None,
        words,
        prefix: Vec::new(),
        state: dir.path().join("state"),
        dir,
        cgroup,
        _watchdog: watchdog(),
    }
}

fn alive() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the whole process, and every herd in it, if a test does not come to its end.
fn watchdog() -> Sender<()> {
    let most = TEST_MOST + endurance().unwrap_or_default();
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let (sender, end) = channel();
    std::thread::spawn(move || {
        if end.recv_timeout(most) == Err(RecvTimeoutError::Timeout) {
            // Not by eprintln!: what a test prints is kept back until it has ended.
            drop(writeln!(std::io::stderr(), "{name} hangs: it has not ended within {most:?}"));
            alive().iter().for_each(|cgroup| clear(cgroup));
            std::process::exit(101);
        }
    });
    sender
}

/// Kills and removes whatever is left under a root cgroup, as well as that is possible.
fn clear(cgroup: &str) {
    for path in leftovers(cgroup) {
        let _unified_only = std::fs::write(path.join("herd/cgroup.kill"), "1");
        let lives = |_: &u32| {
            std::fs::read_to_string(path.join("herd/cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
        };
        // A moment each, a few seconds together: whoever cleans up does not wait for ever.
        (0..200).take_while(lives).for_each(|_| let_pass("0.02"));
        for dir in directories_below(&path).iter().rev() {
            let _busy = std::fs::remove_dir(dir);
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.herd.take());
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
        clear(&self.cgroup);
        alive().remove(&self.cgroup);
    }
}

/// Says that something cannot be tested here. Where everything is required, that is a failure.
pub fn skip(why: &str) {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|tier| tier == "kernel"), "skipped, but REQUIRE={required}: {why}");
    eprintln!("skipped: {why}");
}

/// Runs one test of this binary again, in a process of its own. Returns true in that process.
pub fn alone(test: &str) -> bool {
    if std::env::var(ROLE).is_ok_and(|role| role == "alone") {
        return true;
    }
    let binary = std::env::current_exe().unwrap();
    let output = Command::new(binary).args(["--exact", test, "--nocapture"]).env(ROLE, "alone").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "{test}, in a process of its own");
    false
}

pub fn herd() -> Own {
    herd_with(|_| {})
}

impl Own {
    /// Ends the herd and checks that nothing of it is left, in no hierarchy.
    pub fn finish(mut self) {
        self.end();
    }

    /// Waits for a daemon that was asked to end, whatever it leaves.
    pub fn reap_daemon(&mut self) {
        drop(self.herd.take());
        assert!(self.daemon.take().unwrap().wait().unwrap().success(), "it ends in order");
    }

    /// Does as [`Own::finish`], and keeps the state directory.
    pub fn end(&mut self) {
        self.herd.take().unwrap().shutdown(Some(Duration::ZERO)).unwrap_or_else(|error| panic!("{error}"));
        if let Some(mut daemon) = self.daemon.take() {
            assert!(daemon.wait().unwrap().success(), "it ends in order");
        }
        assert_eq!(leftovers(&self.cgroup), Vec::<PathBuf>::new(), "nothing is left in any hierarchy");
    }

    /// Kills the daemon.
    pub fn crash(&mut self) {
        drop(self.herd.take());
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Starts a daemon where the last one was.
    pub fn restart(&mut self) {
        self.await_answer(self.start());
    }

    /// Starts a daemon where the last one was, by a command made from the usual one.
    pub fn restart_by(&mut self, change: impl FnOnce(Command) -> Command) {
        self.await_answer(change(self.start()));
    }

    fn await_answer(&mut self, mut command: Command) {
        self.daemon = Some(command.spawn().unwrap());
        let socket = self.socket();
        until("the daemon answers", || {
            if let Some(status) = self.daemon.as_mut().unwrap().try_wait().unwrap() {
                panic!("the daemon ended: {status}");
            }
            // A child of the dead one, on its way to its program, may still hold the old socket.
            self.herd = Herd::connect(&socket).ok().filter(|herd| herd.agents().is_ok());
            self.herd.is_some()
        });
    }

    /// Returns the pid of the daemon.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Waits until the daemon has ended.
    pub fn wait_for_end(&mut self) -> std::process::ExitStatus {
        drop(self.herd.take());
        self.daemon.take().unwrap().wait().unwrap()
    }

    /// Makes the command that starts a daemon here.
    pub fn start(&self) -> Command {
        let program = assert_cmd::cargo::cargo_bin!("treeherd");
        let mut command = match self.prefix.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.args(["daemon", "--cgroup", &self.cgroup, "--state-dir"]).arg(&self.state);
        command.args(&self.words).stdout(std::process::Stdio::null());
        if std::env::var_os("TREEHERD_TEST_LOG").is_none() {
            command.stderr(std::process::Stdio::null());
        }
        command
    }

    pub fn spawn(&self, id: &str, script: &str) -> AgentId {
        self.spawn_with(id, None, script, |_| {})
    }

    pub fn spawn_below(&self, parent: &AgentId, id: &str, script: &str) -> AgentId {
        self.spawn_with(id, Some(parent), script, |_| {})
    }

    pub fn spawn_with(
        &self,
        id: &str,
        parent: Option<&AgentId>,
        script: &str,
        change: impl FnOnce(&mut AgentSpec),
    ) -> AgentId {
        let id = name(id);
        let mut spec = AgentSpec::new(id.clone(), ["sh", "-c", script]);
        change(&mut spec);
        self.spawn_child_agent(parent, spec).unwrap_or_else(|error| panic!("{error}"));
        id
    }

    /// Starts an agent that is to be refused, and returns why.
    pub fn refused(&self, parent: Option<&AgentId>, spec: AgentSpec) -> Error {
        self.spawn_child_agent(parent, spec).expect_err("it is to be refused")
    }

    /// Tries to start an agent with a command, changed as asked, that is to be refused, and returns why.
    pub fn refused_with(&self, id: &str, change: impl FnOnce(&mut AgentSpec)) -> Error {
        let mut spec = AgentSpec::new(name(id), ["sleep", "1000"]);
        change(&mut spec);
        self.refused(None, spec)
    }

    /// Starts an agent that only sleeps: one process, which SIGTERM ends.
    pub fn sleeper(&self, parent: Option<&AgentId>, id: &str) -> AgentId {
        self.program(parent, id, &["sleep", "1000"], |_| {})
    }

    /// Starts an agent with a command.
    pub fn program(
        &self,
        parent: Option<&AgentId>,
        id: &str,
        command: &[&str],
        change: impl FnOnce(&mut AgentSpec),
    ) -> AgentId {
        let mut spec = AgentSpec::new(name(id), command.iter().copied());
        change(&mut spec);
        self.spawn_child_agent(parent, spec).unwrap_or_else(|error| panic!("{error}"));
        name(id)
    }

    /// Starts this test binary as an agent, in a role.
    pub fn role(&self, parent: Option<&AgentId>, id: &str, role: &str, change: impl FnOnce(&mut AgentSpec)) -> AgentId {
        let binary = std::env::current_exe().unwrap();
        self.program(parent, id, &[&[binary.to_str().unwrap()], &AS_ROLE[..]].concat(), |spec| {
            spec.env.insert(ROLE.to_owned(), role.to_owned());
            change(spec);
        })
    }

    /// Registers a group.
    pub fn group(&self, parent: Option<&AgentId>, id: &str) -> AgentId {
        let spec = AgentSpec { parent: parent.cloned(), ..AgentSpec::group(name(id)) };
        self.register_agent(spec).unwrap_or_else(|error| panic!("{error}"));
        name(id)
    }

    /// Reads every event about an agent from the journal.
    pub fn events_of(&self, id: &AgentId) -> Vec<Event> {
        let (mut all, mut since) = (Vec::new(), 0);
        loop {
            let query = EventQuery { since: Some(since), agent: Some(id.clone()), ..EventQuery::default() };
            let page = self.events(query).unwrap();
            all.extend(page.events);
            if page.last <= since {
                return all;
            }
            since = page.last;
        }
    }

    /// Lists the kinds of the terminal events of an agent.
    pub fn ends_of(&self, id: &AgentId) -> Vec<Kind> {
        self.events_of(id).iter().map(|event| event.kind).filter(|kind| kind.is_terminal()).collect()
    }

    /// Lists every directory of this herd, in every hierarchy.
    pub fn cgroups(&self) -> BTreeSet<PathBuf> {
        leftovers(&self.cgroup).iter().flat_map(|path| directories_below(path)).collect()
    }

    /// Lists every process of the herd.
    pub fn processes(&self) -> Vec<i32> {
        let unified = treeherd::kernel::host::Host::discover().unwrap().cgroup2;
        processes_in(unified.join(&self.cgroup).join("herd").to_str().unwrap())
    }

    /// Lists what of the herd's output is on disk, by agent.
    pub fn spools(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.dir.path().join("state/agents")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // The files of agents to come have names that no agent can have.
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// Returns the process of the daemon, where it is one of its own.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub fn socket(&self) -> PathBuf {
        self.state.join("treeherd.sock")
    }

    pub fn follow(&self) -> EventStream {
        let mut events = self.follow_events(Default::default()).unwrap();
        events.set_timeout(Some(PATIENCE)).unwrap();
        events
    }
}

pub fn name(id: &str) -> AgentId {
    id.parse().unwrap()
}

pub fn ids(of: &[&AgentId]) -> Target {
    Target::Ids(of.iter().map(|id| (*id).clone()).collect())
}

/// Asks a herd on the command line.
pub fn treeherd(herd: &Own, words: &[&str]) -> Output {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("treeherd"));
    command.arg("--socket").arg(herd.socket()).args(words).output().unwrap()
}

/// Waits for an event of a kind about an agent.
pub fn await_event(events: &mut EventStream, kind: Kind, id: &AgentId) -> Event {
    let mut others = Vec::new();
    for event in events.by_ref().filter_map(|note| note.event).filter(|event| event.agent.as_ref() == Some(id)) {
        if event.kind == kind {
            return event;
        }
        others.push(format!("{} {}", event.kind, event.message));
    }
    panic!("no {kind} of {id} within {PATIENCE:?}, but {others:?}");
}

/// Reads limits as they are written: `memory_max=64MiB`.
pub fn limits(texts: &[&str]) -> Limits {
    let mut limits = Limits::default();
    texts.iter().for_each(|text| limits.set_text(text).unwrap());
    limits
}

/// Waits until a number of agents has ended.
pub fn await_ends(events: &mut EventStream, ids: &[AgentId]) -> Vec<Event> {
    let mut left: BTreeSet<_> = ids.iter().cloned().collect();
    let mut found = Vec::new();
    while !left.is_empty() {
        let note = events.next().unwrap_or_else(|| panic!("{left:?} did not end within {PATIENCE:?}"));
        let Some(event) = note.event.filter(|event| event.kind.is_terminal()) else { continue };
        if event.agent.as_ref().is_some_and(|id| left.remove(id)) {
            found.push(event);
        }
    }
    found
}

/// Asserts that a request was refused with a code.
pub fn assert_code<T: std::fmt::Debug>(outcome: Result<T, Error>, code: Code) -> Error {
    let error = outcome.expect_err("it is to be refused");
    assert_eq!(error.code, code, "{error}");
    error
}

/// Lists a directory and all below it, parents first.
pub fn directories_below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let entries = std::fs::read_dir(&found[at]).into_iter().flatten().flatten();
        found.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path()));
        at += 1;
    }
    found
}

/// Reads the CPU time that a cgroup has used, in microseconds.
pub fn cpu_used(cgroup: &str) -> u64 {
    let text = std::fs::read_to_string(Path::new(cgroup).join("cpu.stat")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap()
}

/// Asserts that a cgroup that is frozen has used no CPU since. The kernel wakes what is frozen for some microseconds, and stops it
/// again, when anybody enables a controller above; what runs uses a thousand times as much.
pub fn assert_still(cgroup: &str, before: u64, what: &str) {
    let used = cpu_used(cgroup) - before;
    assert!(used < 1_000, "{what}: {used} us");
}

/// Waits for a span of time as a fact: until a process outside of the herd has ended.
pub fn let_pass(seconds: &str) {
    assert!(Command::new("sleep").arg(seconds).status().unwrap().success());
}

/// Is a fork storm: processes that do nothing but start others, a bounded number at a time.
pub fn storm() -> ! {
    loop {
        let children: Vec<_> = (0..8).filter_map(|_| Command::new("true").spawn().ok()).collect();
        children.into_iter().for_each(|mut child| drop(child.wait()));
    }
}

/// Lists the directories of a cgroup name in every hierarchy that is mounted.
pub fn leftovers(cgroup: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_cgroup = |line: &&str| line.contains(" - cgroup");
    let points = mounts.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    // On v1 mirrors are below the cgroup of the process that makes them: of this one, too.
    let own = treeherd::kernel::host::Host::discover().unwrap().own_v1;
    let own = own.into_iter().filter(|(_, own)| own != "/").map(|(point, own)| point.join(own.trim_start_matches('/')));
    points.chain(own).map(|point| point.join(cgroup)).filter(|path| path.exists()).collect()
}

/// Deletes a directory that a supervisor uses: what is deleted of it may be re-created meanwhile.
pub fn delete(dir: impl AsRef<Path>) {
    while let Err(error) = std::fs::remove_dir_all(&dir) {
        assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{error}");
    }
}

/// Reads a process's state letter; none if it does not exist.
pub fn process_state(pid: i32) -> Option<char> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Lists the processes in a cgroup and all below it.
pub fn processes_in(cgroup: &str) -> Vec<i32> {
    let mut found = Vec::new();
    let mut stack = vec![PathBuf::from(cgroup)];
    while let Some(dir) = stack.pop() {
        let pids = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(pids.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        stack.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    found
}

/// Reads all of a stream that is kept.
pub fn output(herd: &Herd, id: &AgentId) -> Vec<u8> {
    let (mut bytes, mut from) = (Vec::new(), 0);
    loop {
        let page = herd.agent_output(id, from).unwrap();
        bytes.extend(page.pieces.iter().flat_map(|piece| piece.data.clone()));
        from = page.next.stdout.unwrap();
        if page.at_end {
            return bytes;
        }
    }
}

/// Reads all of a stream of errors that is kept.
pub fn errors(herd: &Herd, id: &AgentId) -> Vec<u8> {
    let page = herd.agent_errors(id, 0).unwrap();
    page.pieces.into_iter().flat_map(|piece| piece.data).collect()
}

/// Waits until a file in an agent's output says so: until a line is there.
pub fn await_line(herd: &Herd, id: &AgentId, line: &str) {
    // Apart: a piece of one may begin in the middle of the other's line.
    let mut said = std::collections::BTreeMap::<_, Vec<u8>>::new();
    let mut notes = herd.follow_output(id).unwrap();
    notes.set_timeout(Some(PATIENCE)).unwrap();
    for note in notes {
        for piece in note.output.pieces {
            said.entry(piece.stream).or_default().extend(piece.data);
        }
        if said.values().any(|text| String::from_utf8_lossy(text).lines().any(|found| found == line)) {
            return;
        }
    }
    let said: Vec<_> = said.iter().map(|(stream, text)| (stream, String::from_utf8_lossy(text))).collect();
    panic!("{id} never said {line:?}: {said:?}");
}

/// Returns the name of a process, which is empty once it is gone.
pub fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Says whether a process keeps the output pipes of agents: a supervisor has two of them, beside it.
pub fn is_keeper(pid: i32) -> bool {
    comm(pid) == "treeherd-keeper"
}

/// Waits until something holds that nobody tells of.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < end, "not in time: {what}");
        // Whoever looks all the time leaves a slow machine no time for what is waited for.
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Takes a write lease on a file: an `exec` of it waits until the lease is dropped, or for
/// /proc/sys/fs/lease-break-time.
#[allow(dead_code, unsafe_code)]
pub fn lease(path: &Path) -> std::fs::File {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(path).unwrap();
    // A break of the lease is reported by a signal that is ignored by default, instead of SIGIO.
    // SAFETY: both take numbers and touch no memory.
    let leased = unsafe {
        libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
            && libc::fcntl(file.as_raw_fd(), 10, libc::SIGURG) == 0
    };
    assert!(leased, "{}: {}", path.display(), std::io::Error::last_os_error());
    file
}

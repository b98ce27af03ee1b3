//! What the tests on a real kernel share: a herd of their own that leaves nothing, and waits for facts with a deadline.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use treeherd::daemon::Settings;
use treeherd::herd::{EventStream, Herd};
use treeherd::model::event::{Event, Kind};
use treeherd::model::id::AgentId;
use treeherd::model::request::Target;
use treeherd::model::spec::AgentSpec;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// How long a fact may take before a test gives up on it; never how fast it should be.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A herd in a state directory and a root cgroup of its own.
pub struct Own {
    herd: Option<Herd>,
    pub dir: tempfile::TempDir,
    pub cgroup: String,
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
    Own { herd: Some(herd), dir, cgroup }
}

pub fn herd() -> Own {
    herd_with(|_| {})
}

impl Own {
    /// Ends the herd and checks that nothing of it is left, in no hierarchy.
    pub fn finish(mut self) {
        self.herd.take().unwrap().shutdown(Some(Duration::ZERO)).unwrap();
        assert_eq!(leftovers(&self.cgroup), Vec::<PathBuf>::new(), "nothing is left in any hierarchy");
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

    pub fn follow(&self) -> EventStream {
        let events = self.follow_events(Default::default()).unwrap();
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

/// Waits for an event of a kind about an agent.
pub fn await_event(events: &mut EventStream, kind: Kind, id: &AgentId) -> Event {
    for note in events.by_ref() {
        if let Some(event) = note.event.filter(|event| event.kind == kind && event.agent.as_ref() == Some(id)) {
            return event;
        }
    }
    panic!("no {kind} of {id} within {PATIENCE:?}");
}

/// Lists the directories of a cgroup name in every hierarchy that is mounted.
pub fn leftovers(cgroup: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_cgroup = |line: &&str| line.contains(" - cgroup");
    let points = mounts.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4));
    points.map(|point| PathBuf::from(point).join(cgroup)).filter(|path| path.exists()).collect()
}

/// Reads a process's state letter; none if it does not exist.
pub fn process_state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
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
    let mut text = Vec::new();
    for note in herd.follow_output(id).unwrap() {
        text.extend(note.output.pieces.iter().flat_map(|piece| piece.data.clone()));
        if String::from_utf8_lossy(&text).lines().any(|found| found == line) {
            return;
        }
    }
    panic!("{id} never said {line:?}: {:?}", String::from_utf8_lossy(&text));
}

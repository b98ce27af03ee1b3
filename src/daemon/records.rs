//! What the next daemon needs in order to go on: every agent's record, in a file that is appended to and bounded.
//!
//! ```text
//! {"header":…}   which boot, which root cgroup
//! {"birth":…}    what an agent is, once            {"course":…}  how it is, whenever that changes: the last one counts
//! {"begun":…}    a run is about to be spawned      {"gone":7}    it is forgotten
//! {"herd":…}     the limits of the herd and of its levels
//! ```
//!
//! A cgroup is made only after its line `begun` is written. So what lives in a cgroup that has neither a record nor such a line is
//! no spawn that was under way: the file was cut, and the next daemon refuses to start rather than to end what it knows nothing of.
//! (A file that was cut right behind such a line cannot be told from one that a crash left in the middle of a spawn.)
//!
//! A turn's lines are written by one write, before the turn's events are written to the journal: what is told is written down.
//! A record says which event told its agent's last end; if the journal does not have that one, it is told by whoever reads
//! the record. When the file has grown to twice what it needs, it is written anew beside the old one, and takes its place.
//! It is not synced: it is for the death of the daemon. After that of the host there is nothing to go on with.
//! On disk it has room in advance: when there is none left for that, nothing new is begun, and what ends is written down still.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::disk::{Disk, Doing};
use crate::kernel::cgroup::Place;
use crate::machine::{AgentKey, Machine};
use crate::model::error::{Code, Error};
use crate::model::id::Run;
use crate::model::record::{AgentRecord, Birth, Course, HerdRecord};
use crate::model::status::ExitRecord;
use crate::model::time::Monotonic;

/// The version of the format.
const VERSION: u32 = 2;

/// The version before: without `begun`.
const VERSION_UNBEGUN: u32 = 1;

/// How much the file may grow beyond twice its last size when written anew, in bytes.
const GROWTH: u64 = 1 << 20;

/// How many bytes of lines wait while the disk stalls; beyond that the file is written anew when it goes on.
const UNWRITTEN_MAX: usize = 4 << 20;

/// How much room the file has in advance, in bytes: for the longest line.
const RESERVE: u64 = LINE_MAX;

/// The longest line that is read: a specification at its largest, and as much again.
const LINE_MAX: u64 = 1 << 20;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    version: u32,
    boot: String,
    root: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Header(Header),
    Birth(Birth),
    Course(Box<Entry>),
    Begun(Begun),
    Gone(u64),
    Herd(HerdRecord),
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: u64,
    course: Course,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Box<ExitRecord>>,
    #[serde(flatten)]
    mark: Mark,
}

/// A run that is about to be spawned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    pub key: u64,
    pub run: Run,
    /// The agent's cgroup, below the herd's.
    pub place: String,
}

/// What only the shell knows of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The identity of its last main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u64>,
    /// The number of the event that told its last end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_at: Option<u64>,
    /// The number of the event that reported its last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<u64>,
}

/// An agent of which something is written down, or noted for that.
#[derive(Clone, Debug, Default)]
struct Known {
    mark: Mark,
    /// Whether the file says what it is.
    has_birth: bool,
    /// Its spawn that is under way.
    begun: Option<Begun>,
}

/// What an earlier daemon wrote down.
#[derive(Debug)]
pub(super) struct Legacy {
    pub root: String,
    pub boot: String,
    pub agents: Vec<(AgentRecord, Mark)>,
    pub herd: Option<HerdRecord>,
    /// Spawns that were under way; `None` if whoever wrote it did not note them.
    pub begun: Option<Vec<Begun>>,
    /// How many lines cannot be read, though they are complete: the file is damaged, or a newer treeherd wrote them.
    pub unread: u64,
}

/// The records of one state directory.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    header: Header,
    /// None until the file is written anew for the first time, and whenever it has to be.
    file: Option<Open>,
    /// How large it was when it was written anew.
    base: u64,
    unwritten: Vec<u8>,
    known: HashMap<AgentKey, Known>,
    /// What is on its way to the file.
    writing: Option<Doing<Written>>,
    /// Why the last write failed, or why there is no room for more.
    fault: Option<String>,
    /// Whether somebody has deleted the file.
    is_deleted: bool,
}

/// The file that is appended to.
#[derive(Clone, Debug)]
struct Open {
    file: Arc<File>,
    size: u64,
    /// Up to where it has room.
    room: u64,
}

/// What became of a write: the file as it is then.
#[derive(Debug)]
struct Written {
    file: Option<Open>,
    is_anew: bool,
    fault: Option<String>,
}

impl Records {
    /// Prepares the records of this daemon; what is there is left as it is until the first [`Records::flush`].
    pub fn new(dir: &Path, boot: String, root: String) -> Self {
        Self {
            dir: dir.to_owned(),
            header: Header { version: VERSION, boot, root },
            file: None,
            base: 0,
            unwritten: Vec::new(),
            known: HashMap::new(),
            writing: None,
            fault: None,
            is_deleted: false,
        }
    }

    /// Has the next [`Records::flush`] write the file anew: somebody has deleted it.
    pub fn restore(&mut self) {
        self.is_deleted = true;
    }

    /// Returns the boot that this daemon is of.
    pub fn boot(&self) -> &str {
        &self.header.boot
    }

    /// Returns the root cgroup of this daemon.
    pub fn root(&self) -> &str {
        &self.header.root
    }

    /// Notes who the main process of an agent is.
    pub fn note_process(&mut self, key: AgentKey, identity: Option<u64>) {
        self.known.entry(key).or_default().mark.process = identity;
    }

    /// Notes which event told an agent's end.
    pub fn note_end(&mut self, key: AgentKey, seq: u64) {
        self.known.entry(key).or_default().mark.told_at = Some(seq);
    }

    /// Notes which event reported an agent's start.
    pub fn note_start(&mut self, key: AgentKey, seq: u64) {
        self.known.entry(key).or_default().mark.started_at = Some(seq);
    }

    /// Takes over what an earlier daemon knew of an agent.
    pub fn inherit(&mut self, key: AgentKey, mark: Mark) {
        self.known.insert(key, Known { mark, ..Known::default() });
    }

    /// Appends an agent's record; for the first time, what the agent is as well.
    pub fn append(&mut self, record: AgentRecord) {
        let key = AgentKey(record.birth.key);
        let known = self.known.entry(key).or_default();
        let mark = known.mark;
        known.begun.take_if(|begun| begun.run <= record.course.run);
        if !std::mem::replace(&mut known.has_birth, true) {
            self.put(&Line::Birth(record.birth));
        }
        self.put(&Line::Course(Box::new(Entry { key: key.0, course: record.course, last: record.last, mark })));
    }

    pub fn append_herd(&mut self, herd: HerdRecord) {
        self.put(&Line::Herd(herd));
    }

    /// Appends that a run is about to be spawned in an agent's cgroup.
    pub fn append_begun(&mut self, key: AgentKey, run: Run, place: &Place) {
        let begun = Begun { key: key.0, run, place: place.to_string() };
        self.known.entry(key).or_default().begun = Some(begun.clone());
        self.put(&Line::Begun(begun));
    }

    /// Appends that an agent is forgotten.
    pub fn append_gone(&mut self, key: AgentKey) {
        if self.known.remove(&key).is_some_and(|known| known.has_birth || known.begun.is_some()) {
            self.put(&Line::Gone(key.0));
        }
    }

    fn put(&mut self, line: &Line) {
        if serde_json::to_writer(&mut self.unwritten, line).is_ok() {
            self.unwritten.push(b'\n');
        }
    }

    /// Writes what was appended since the last time, unless what was appended before it is still being written. What could not
    /// be written is written anew, with all the rest, when that works again.
    pub fn flush(&mut self, machine: &Machine, disk: &mut Disk) {
        self.settle();
        if self.writing.is_some() {
            if self.unwritten.len() > UNWRITTEN_MAX {
                self.file = None;
                self.unwritten.clear();
            }
            return;
        }
        let lines = std::mem::take(&mut self.unwritten);
        let dir = self.dir.clone();
        if std::mem::take(&mut self.is_deleted) {
            self.file = None;
        }
        match self.file.clone() {
            Some(open) if open.size <= 2 * self.base + GROWTH => {
                // Where there is no room in advance it is looked for again.
                if lines.is_empty() && self.fault.is_none() {
                    return;
                }
                self.writing = Some(disk.act(move || append(open, &lines, &dir)));
            }
            old => {
                let all = self.all(machine);
                self.writing = Some(disk.act(move || write_anew(old, &lines, &all, &dir)));
            }
        }
        self.settle();
    }

    /// Takes note of a write that is done.
    fn settle(&mut self) {
        let Some(Written { file, is_anew, fault }) = self.writing.as_ref().and_then(Doing::take) else { return };
        self.writing = None;
        if let (Some(open), true) = (&file, is_anew || fault.is_some()) {
            // Where it could not be written anew it is appended to, and that is tried again when it has grown as much.
            self.base = open.size;
        }
        (self.file, self.fault) = (file, fault);
    }

    /// Returns since when a write is under way that did not come to its end in time.
    pub fn behind_since(&mut self) -> Option<Monotonic> {
        self.settle();
        self.writing.as_ref().map(|doing| doing.began)
    }

    /// Returns why the last write failed, or why there is no room for more.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    fn path(&self) -> PathBuf {
        self.dir.join("records")
    }

    /// Returns everything that there is to write now.
    fn all(&mut self, machine: &Machine) -> Vec<u8> {
        self.put(&Line::Header(self.header.clone()));
        self.put(&Line::Herd(machine.herd_record()));
        self.known.values_mut().for_each(|known| known.has_birth = false);
        machine.records().for_each(|record| self.append(record));
        let begun: Vec<Begun> = self.known.values().filter_map(|known| known.begun.clone()).collect();
        begun.into_iter().for_each(|begun| self.put(&Line::Begun(begun)));
        std::mem::take(&mut self.unwritten)
    }

    /// Removes the file: the herd has ended, there is nothing to go on with.
    pub fn remove(&mut self, disk: &mut Disk) {
        self.file = None;
        let path = self.path();
        disk.act(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("remove {}: {error}", path.display());
            }
            _ => {}
        });
    }
}

/// Appends lines, and sees to it that there is room for more.
fn append(open: Open, lines: &[u8], dir: &Path) -> Written {
    let failed = |error: &dyn std::fmt::Display| {
        Some(format!("write {}: {error}; agents could not be recovered after a crash", dir.join("records").display()))
    };
    match (&*open.file).write_all(lines) {
        Ok(()) => {
            let (open, room) = reserve(Open { size: open.size + lines.len() as u64, ..open });
            let fault = room.err().and_then(|errno| failed(&std::io::Error::from(errno)));
            Written { file: Some(open), is_anew: false, fault }
        }
        Err(error) => {
            // What is torn is passed over by whoever reads it: the next file has all of it.
            open.file.set_len(open.size).unwrap_or_default();
            Written { file: None, is_anew: false, fault: failed(&error) }
        }
    }
}

/// Writes a new file and puts it into the old one's place; where that fails, the lines are appended to the old one.
fn write_anew(old: Option<Open>, lines: &[u8], all: &[u8], dir: &Path) -> Written {
    let put = || -> std::io::Result<Open> {
        let beside = dir.join("records.new");
        // A torn one of an earlier attempt.
        std::fs::remove_file(&beside).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&beside)?;
        // On a full disk others need the room of what did not fit.
        file.write_all(all).inspect_err(|_| std::fs::remove_file(&beside).unwrap_or_default())?;
        std::fs::rename(&beside, dir.join("records"))?;
        Ok(Open { file: Arc::new(file), size: all.len() as u64, room: 0 })
    };
    match (put(), old) {
        (Ok(open), _) => Written { is_anew: true, ..append(open, &[], dir) },
        (Err(_), Some(old)) => append(old, lines, dir),
        (Err(error), None) => {
            let why = format!("write {}: {error}", dir.join("records").display());
            let fault = Some(format!("{why}; agents could not be recovered after a crash"));
            Written { file: None, is_anew: false, fault }
        }
    }
}

/// Sees to it that the file has room for the longest line; where no room can be had in advance, there is no telling.
fn reserve(open: Open) -> (Open, Result<(), Errno>) {
    if open.room >= open.size + RESERVE / 2 {
        return (open, Ok(()));
    }
    match rustix::io::retry_on_intr(|| fallocate(&open.file, FallocateFlags::KEEP_SIZE, open.size, RESERVE)) {
        Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => (open, Err(errno)),
        _ => (Open { room: open.size + RESERVE, ..open }, Ok(())),
    }
}

impl Legacy {
    /// Reads what an earlier daemon wrote down in a state directory; none if there is nothing.
    ///
    /// A last line that is not complete is passed over: of it nobody was told. Others that cannot be read are counted.
    ///
    /// # Errors
    /// The file cannot be read, or another version wrote it: what lives of it would be ended as nobody's.
    pub fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join("records");
        let shown = path.display();
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let wrong = |error: std::io::Error| Error::new(Code::Kernel, format!("read {shown}: {error}"));
        let file = match open {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error)),
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        let mut legacy: Option<Self> = None;
        let mut agents: BTreeMap<u64, (Option<Birth>, Option<Entry>)> = BTreeMap::new();
        let mut begun: BTreeMap<u64, Begun> = BTreeMap::new();
        loop {
            line.clear();
            let read = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).map_err(wrong)?;
            if read == 0 {
                break;
            }
            match (serde_json::from_slice(&line), &mut legacy) {
                (Ok(Line::Header(header)), None) => legacy = Some(Self::begin(header, &path)?),
                (Ok(Line::Birth(birth)), Some(_)) => {
                    let agent = agents.entry(birth.key).or_default();
                    agent.0 = Some(birth);
                }
                (Ok(Line::Course(entry)), Some(_)) => {
                    let agent = agents.entry(entry.key).or_default();
                    agent.1 = Some(*entry);
                }
                (Ok(Line::Begun(run)), Some(_)) => drop(begun.insert(run.key, run)),
                (Ok(Line::Gone(key)), Some(_)) => {
                    agents.remove(&key);
                    begun.remove(&key);
                }
                (Ok(Line::Herd(herd)), Some(legacy)) => legacy.herd = Some(herd),
                (outcome, legacy) => {
                    let error = outcome.err().map(|error| error.to_string()).unwrap_or_default();
                    tracing::warn!("a line of {shown} is passed over: {error}");
                    let is_torn = line.last() != Some(&b'\n');
                    if let (Some(legacy), false) = (legacy, is_torn) {
                        legacy.unread += 1;
                    }
                }
            }
        }
        if let Some(legacy) = &mut legacy {
            legacy.agents = agents.into_values().filter_map(complete).collect();
            if let Some(known) = &mut legacy.begun {
                known.extend(begun.into_values());
            }
            legacy.drop_strangers();
        }
        Ok(legacy)
    }

    fn begin(header: Header, path: &Path) -> Result<Self, Error> {
        if ![VERSION, VERSION_UNBEGUN].contains(&header.version) {
            let message = format!("{} was written by another version of treeherd", path.display());
            return Err(Error::new(Code::Unsupported, message)
                .remedy("start that version again and end its herd, or remove the file: then its agents are ended"));
        }
        let begun = (header.version == VERSION).then(Vec::new);
        Ok(Self { root: header.root, boot: header.boot, agents: Vec::new(), herd: None, begun, unread: 0 })
    }

    /// Drops what hangs on nothing, and an older agent of the same name: only a damaged file has such.
    fn drop_strangers(&mut self) {
        let mut names = HashMap::new();
        for (record, _) in &self.agents {
            names.insert(record.id().clone(), record.birth.key);
        }
        let mut known = std::collections::BTreeSet::new();
        self.agents.retain(|(record, _)| {
            let birth = &record.birth;
            let has_place = birth.parent.is_none_or(|parent| known.contains(&parent) && parent < birth.key);
            let is_kept = has_place && names.get(record.id()) == Some(&birth.key);
            if is_kept {
                known.insert(birth.key);
            } else {
                tracing::warn!("the record of {} is passed over: what it hangs on is not there", record.id());
            }
            is_kept
        });
    }
}

fn complete((birth, entry): (Option<Birth>, Option<Entry>)) -> Option<(AgentRecord, Mark)> {
    let (birth, entry) = (birth?, entry?);
    Some((AgentRecord { birth, course: entry.course, last: entry.last }, entry.mark))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::machine::{Caller, Effect, Input, Now, ReplyTo};
    use crate::model::config::HerdConfig;
    use crate::model::request::{Request, Target};
    use crate::model::spec::AgentSpec;

    /// A machine, and a file to which its records go.
    struct Desk {
        machine: Machine,
        records: Records,
        dir: tempfile::TempDir,
    }

    impl Desk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let records = Records::new(dir.path(), "boot".to_owned(), "root".to_owned());
            let machine = Machine::new(HerdConfig::default(), "/x".to_owned(), BTreeMap::new(), 1);
            let mut desk = Self { machine, records, dir };
            desk.records.flush(&desk.machine, &mut Disk::in_memory());
            desk
        }

        fn step(&mut self, input: Input) {
            let mut effects = Vec::new();
            self.machine.step(Now::default(), input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Record(record) => self.records.append(*record),
                    Effect::Forget(key) => self.records.append_gone(key),
                    _ => {}
                }
            }
            self.records.flush(&self.machine, &mut Disk::in_memory());
        }

        fn ask(&mut self, request: Request) {
            let caller = Caller { name: "test".into(), agent: None, user: None };
            self.step(Input::Asked(ReplyTo { client: 1, call: 1 }, caller, request));
        }

        fn spawn(&mut self, id: &str, parent: Option<&str>) -> AgentKey {
            let id = id.parse().unwrap();
            let parent = parent.map(|parent| parent.parse().unwrap());
            self.ask(Request::Spawn(Box::new(AgentSpec { parent, ..AgentSpec::new(id, ["true"]) })));
            let id = self.machine.children_and_roots().last().copied().unwrap();
            self.records.note_process(id, Some(77));
            self.step(Input::Spawned { agent: id, pid: Some(7) });
            id
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("records")
        }

        fn read(&self) -> Legacy {
            Legacy::read(self.dir.path()).unwrap().unwrap()
        }

        fn assert_is_written(&self) {
            let read: Vec<AgentRecord> = self.read().agents.into_iter().map(|(record, _)| record).collect();
            assert_eq!(read, self.machine.records().collect::<Vec<_>>());
        }
    }

    impl Machine {
        fn children_and_roots(&self) -> Vec<AgentKey> {
            self.select(&Target::All).unwrap()
        }
    }

    #[test]
    fn what_was_written_is_read_as_it_was() {
        let mut desk = Desk::new();
        let parent = desk.spawn("a", None);
        desk.spawn("b", Some("a"));
        desk.assert_is_written();
        desk.records.note_end(parent, 12);
        desk.ask(Request::Pause(Target::All));
        desk.ask(Request::Terminate(Target::Ids(vec!["b".parse().unwrap()]), None));
        desk.assert_is_written();
        let legacy = desk.read();
        assert_eq!((legacy.boot.as_str(), legacy.root.as_str(), legacy.unread), ("boot", "root", 0));
        assert_eq!(legacy.agents[0].1, Mark { process: Some(77), told_at: Some(12), started_at: None });
    }

    #[test]
    fn a_last_line_that_is_torn_is_nobodys_and_one_in_the_middle_is_counted() {
        let mut desk = Desk::new();
        desk.spawn("a", None);
        let whole = std::fs::read(desk.path()).unwrap();
        std::fs::write(desk.path(), [&whole[..], b"{\"gone\":2"].concat()).unwrap();
        assert_eq!((desk.read().agents.len(), desk.read().unread), (1, 0));
        std::fs::write(desk.path(), [&whole[..], b"{\"new\":2}\n"].concat()).unwrap();
        assert_eq!((desk.read().agents.len(), desk.read().unread), (1, 1));
        std::fs::write(desk.path(), "").unwrap();
        assert!(Legacy::read(desk.dir.path()).unwrap().is_none());
        std::fs::write(desk.path(), String::from_utf8(whole).unwrap().replace("\"version\":2", "\"version\":9"))
            .unwrap();
        assert_eq!(Legacy::read(desk.dir.path()).unwrap_err().code, Code::Unsupported);
    }

    #[test]
    fn the_file_is_bounded_and_written_anew_in_its_place() {
        let mut desk = Desk::new();
        let key = desk.spawn("a", None);
        let mut most = 0;
        for _ in 0..4_000 {
            desk.ask(Request::Pause(Target::All));
            desk.ask(Request::Resume(Target::All));
            most = most.max(std::fs::metadata(desk.path()).unwrap().len());
        }
        assert!(most > GROWTH / 2 && most < GROWTH + (64 << 10), "{most}");
        assert_eq!(desk.read().agents[0].0.birth.key, key.0);
        desk.assert_is_written();
        assert!(!desk.dir.path().join("records.new").exists());
    }

    #[test]
    fn a_spawn_that_is_under_way_is_noted_until_its_run_is_recorded() {
        let mut desk = Desk::new();
        let begin = |desk: &mut Desk, key, run, place: &Place| {
            desk.records.append_begun(key, Run(run), place);
            desk.records.flush(&desk.machine, &mut Disk::in_memory());
            desk.read().begun.unwrap()
        };
        let (place, strange) = (Place::herd().join("a"), AgentKey(77));
        assert_eq!(begin(&mut desk, strange, 1, &place).len(), 1);
        desk.records.append_gone(strange);
        let a = desk.spawn("a", None);
        let begun = begin(&mut desk, a, 2, &place);
        assert_eq!(begun, [Begun { key: a.0, run: Run(2), place: "herd/a".to_owned() }]);
        desk.records.file = None;
        desk.ask(Request::Pause(Target::All));
        assert_eq!(desk.read().begun.unwrap(), begun, "when all is written anew, too");
    }

    #[test]
    fn what_hangs_on_nothing_is_passed_over() {
        let mut desk = Desk::new();
        desk.spawn("a", None);
        desk.spawn("b", Some("a"));
        let text = std::fs::read_to_string(desk.path()).unwrap();
        let without: Vec<&str> = text.lines().filter(|line| !line.contains("\"id\":\"a\"")).collect();
        std::fs::write(desk.path(), without.join("\n")).unwrap();
        assert_eq!(desk.read().agents.len(), 0);
    }
}

//! What the next daemon needs in order to go on: every agent's record, in a file that is appended to and bounded.
//!
//! ```text
//! {"header":…}   which boot, which root cgroup
//! {"birth":…}    what an agent is, once            {"course":…}  how it is, whenever that changes: the last one counts
//! {"gone":7}     it is forgotten                   {"herd":…}    the limits of the herd and of its levels
//! ```
//!
//! A turn's lines are written by one write, before the turn's events are written to the journal: what is told is written down.
//! A record says which event told its agent's last end; if the journal does not have that one, it is told by whoever reads
//! the record. When the file has grown to twice what it needs, it is written anew beside the old one, and takes its place.
//! It is not synced: it is for the death of the daemon. After that of the host there is nothing to go on with.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::machine::{AgentKey, Machine};
use crate::model::error::{Code, Error};
use crate::model::record::{AgentRecord, Birth, Course, HerdRecord};
use crate::model::status::ExitRecord;

/// The version of the format.
const VERSION: u32 = 1;

/// How much the file may grow beyond twice its last size when written anew, in bytes.
const GROWTH: u64 = 1 << 20;

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

/// What only the shell knows of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The identity of its last main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u64>,
    /// The number of the event that told its last end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_at: Option<u64>,
}

/// An agent of which something is written down, or noted for that.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    mark: Mark,
    /// Whether the file says what it is.
    has_birth: bool,
}

/// What an earlier daemon wrote down.
#[derive(Debug)]
pub(super) struct Legacy {
    pub root: String,
    pub boot: String,
    pub agents: Vec<(AgentRecord, Mark)>,
    pub herd: Option<HerdRecord>,
}

/// The records of one state directory.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    header: Header,
    /// None until the file is written anew for the first time.
    file: Option<File>,
    size: u64,
    /// How large it was when it was written anew.
    base: u64,
    unwritten: Vec<u8>,
    known: HashMap<AgentKey, Known>,
    has_failed: bool,
}

impl Records {
    /// Prepares the records of this daemon; what is there is left as it is until the first [`Records::flush`].
    pub fn new(dir: &Path, boot: String, root: String) -> Self {
        Self {
            dir: dir.to_owned(),
            header: Header { version: VERSION, boot, root },
            file: None,
            size: 0,
            base: 0,
            unwritten: Vec::new(),
            known: HashMap::new(),
            has_failed: false,
        }
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

    /// Takes over what an earlier daemon knew of an agent.
    pub fn inherit(&mut self, key: AgentKey, mark: Mark) {
        self.known.insert(key, Known { mark, has_birth: false });
    }

    /// Appends an agent's record; for the first time, what the agent is as well.
    pub fn append(&mut self, record: AgentRecord) {
        let key = AgentKey(record.birth.key);
        let known = self.known.entry(key).or_default();
        let mark = known.mark;
        if !std::mem::replace(&mut known.has_birth, true) {
            self.put(&Line::Birth(record.birth));
        }
        self.put(&Line::Course(Box::new(Entry { key: key.0, course: record.course, last: record.last, mark })));
    }

    pub fn append_herd(&mut self, herd: HerdRecord) {
        self.put(&Line::Herd(herd));
    }

    /// Appends that an agent is forgotten.
    pub fn append_gone(&mut self, key: AgentKey) {
        if self.known.remove(&key).is_some_and(|known| known.has_birth) {
            self.put(&Line::Gone(key.0));
        }
    }

    fn put(&mut self, line: &Line) {
        if serde_json::to_writer(&mut self.unwritten, line).is_ok() {
            self.unwritten.push(b'\n');
        }
    }

    /// Writes what was appended since the last time. A full disk is told once; when it works again, all is written anew.
    pub fn flush(&mut self, machine: &Machine) {
        let is_full = self.size > 2 * self.base + GROWTH;
        let outcome = match &mut self.file {
            Some(file) if !is_full => {
                if self.unwritten.is_empty() {
                    return;
                }
                self.size += self.unwritten.len() as u64;
                file.write_all(&self.unwritten)
            }
            _ => self.write_anew(machine),
        };
        self.unwritten.clear();
        match outcome {
            Ok(()) => self.has_failed = false,
            Err(error) => {
                self.file = None;
                if !std::mem::replace(&mut self.has_failed, true) {
                    let path = self.path();
                    tracing::error!("write {}: {error}; a next daemon could not go on from here", path.display());
                }
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("records")
    }

    /// Writes a new file with what there is now, and puts it into the old one's place.
    fn write_anew(&mut self, machine: &Machine) -> std::io::Result<()> {
        self.unwritten.clear();
        self.put(&Line::Header(self.header.clone()));
        self.put(&Line::Herd(machine.herd_record()));
        self.known.values_mut().for_each(|known| known.has_birth = false);
        machine.records().for_each(|record| self.append(record));
        let beside = self.dir.join("records.new");
        // A torn one of an earlier attempt.
        std::fs::remove_file(&beside).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&self.unwritten)?;
        std::fs::rename(&beside, self.path())?;
        (self.size, self.base) = (self.unwritten.len() as u64, self.unwritten.len() as u64);
        self.file = Some(file);
        Ok(())
    }

    /// Removes the file: the herd has ended, there is nothing to go on with.
    pub fn remove(&mut self) {
        self.file = None;
        if let Err(error) = std::fs::remove_file(self.path()) {
            tracing::warn!("remove {}: {error}", self.path().display());
        }
    }
}

impl Legacy {
    /// Reads what an earlier daemon wrote down in a state directory; none if there is nothing.
    ///
    /// A last line that is not complete, or a line that says nothing, is passed over.
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
                (Ok(Line::Gone(key)), Some(_)) => drop(agents.remove(&key)),
                (Ok(Line::Herd(herd)), Some(legacy)) => legacy.herd = Some(herd),
                (outcome, _) => {
                    let error = outcome.err().map(|error| error.to_string()).unwrap_or_default();
                    tracing::warn!("a line of {shown} is passed over: {error}");
                }
            }
        }
        if let Some(legacy) = &mut legacy {
            legacy.agents = agents.into_values().filter_map(complete).collect();
            legacy.drop_strangers();
        }
        Ok(legacy)
    }

    fn begin(header: Header, path: &Path) -> Result<Self, Error> {
        if header.version != VERSION {
            let message = format!("{} was written by another version of treeherd", path.display());
            return Err(Error::new(Code::Unsupported, message)
                .remedy("start that version again and end its herd, or remove the file: then its agents are ended"));
        }
        Ok(Self { root: header.root, boot: header.boot, agents: Vec::new(), herd: None })
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

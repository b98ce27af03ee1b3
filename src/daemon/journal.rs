//! The journal: every event one line of JSON, numbered without gaps, in two files that together stay bounded.
//!
//! ```text
//! journal.1   the older half, or absent        journal   the newer half; appended to, moved over journal.1 when it is full
//! ```
//!
//! ```text
//! journal.ends.1, journal.ends   the ends of runs, once more: they are kept when what was told beside them is gone
//! ```
//!
//! A turn's events are written by one write at its end, whole or not at all: a number that is missing is an event that is lost. An
//! index of every 64th line says where to begin to read. While the disk stalls or is full, events wait in memory, bounded, and are
//! written in order when it goes on.
//!
//! The last events are kept in memory as well: a follower that keeps up costs no read. Everybody else reads the files page by page
//! on a reader thread, from a [`Pages`] that holds them open.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::disk::{Disk, Doing};
use crate::api::method::{EventQuery, Subject};
use crate::kernel::socket::is_missing;
use crate::model::error::{Code, Error};
use crate::model::event::Event;
use crate::model::id::AgentId;
use crate::model::time::Monotonic;

/// How large one of the two files may become, in bytes.
const HALF_MAX: u64 = 8 << 20;

/// How large one of the two files of ends may become, in bytes.
const ENDS_MAX: u64 = 2 << 20;

/// How many bytes of events wait in memory while the disk stalls or is full; those that come then are lost.
const UNWRITTEN_MAX: usize = 4 << 20;

/// Every how many lines the index has an entry.
const STRIDE: u64 = 64;

/// How many bytes of the journal are scanned for one page.
const PAGE_SCAN_MAX: u64 = 1 << 20;

/// How many bytes one read of the journal takes.
const CHUNK: usize = 64 << 10;

/// How many bytes of the last events are kept in memory.
const RECENT_MAX: usize = 1 << 20;

/// The journal of one state directory.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    all: Pair,
    ends: Pair,
    /// The number of the last event.
    last: u64,
    recent: Recent,
}

/// Two files that together stay bounded.
#[derive(Debug)]
struct Pair {
    dir: PathBuf,
    /// What they are called: the older one has a `.1` behind it.
    name: &'static str,
    most: u64,
    newer: Half,
    older: Option<Half>,
    unwritten: Lines,
    /// What is on its way to the file.
    writing: Option<(Doing<Written>, Arc<Lines>)>,
    /// Why the last write failed, if it did.
    fault: Option<String>,
    /// Whether somebody may have deleted its files: the next write puts them back.
    is_deleted: bool,
}

/// Lines that are to be written.
#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    /// Numbers of events and where they stand in the text: the first one and about every 64th.
    index: Vec<(u64, u64)>,
}

/// What became of a write.
#[derive(Debug)]
struct Written {
    /// The size of the file after it.
    size: u64,
    outcome: std::io::Result<()>,
    /// The file that took its place, if it was full.
    turned: Option<Result<File, String>>,
    /// The files that were put back.
    back: Back,
}

/// Files that take the place of deleted ones, with the same bytes.
#[derive(Debug, Default)]
struct Back {
    newer: Option<File>,
    older: Option<File>,
}

/// The last events, in memory.
#[derive(Debug, Default)]
struct Recent {
    events: VecDeque<Told>,
    bytes: usize,
}

/// One event as it is written.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub seq: u64,
    agent: Option<AgentId>,
    parent: Option<AgentId>,
    agent_key: Option<u64>,
    parent_key: Option<u64>,
    /// The event, as JSON.
    pub json: Arc<str>,
}

impl Told {
    /// Returns whom it is about.
    pub fn subject(&self) -> Subject<'_> {
        let (agent, parent) = (self.agent.as_ref().map(AgentId::as_str), self.parent.as_ref().map(AgentId::as_str));
        Subject { agent, parent, agent_key: self.agent_key, parent_key: self.parent_key }
    }
}

#[derive(Debug)]
struct Half {
    file: Arc<File>,
    size: u64,
    /// Numbers of events and where they stand, both ascending.
    index: VecDeque<(u64, u64)>,
}

impl Journal {
    /// Opens the journal of a state directory, and goes on with the numbers of an earlier daemon.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let all = Pair::open(dir, "journal", HALF_MAX)?;
        let ends = Pair::open(dir, "journal.ends", ENDS_MAX)?;
        let last = all.last().max(ends.last());
        Ok(Self { dir: dir.to_owned(), all, ends, last, recent: Recent::default() })
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    /// Gives an event its number and notes it down for the next [`Journal::flush`].
    pub fn append(&mut self, event: &mut Event) {
        self.last += 1;
        event.seq = self.last;
        let Ok(json) = serde_json::to_string(event) else { return };
        self.all.unwritten.push(event.seq, &json);
        if event.kind.is_terminal() {
            self.ends.unwritten.push(event.seq, &json);
        }
        let (agent, parent) = (event.agent.clone(), event.parent.clone());
        let (agent_key, parent_key) = (event.agent_key, event.parent_key);
        self.recent.push(Told { seq: event.seq, agent, parent, agent_key, parent_key, json: json.into() });
    }

    /// Returns the number of the first event in memory.
    pub fn first_recent(&self) -> Option<u64> {
        self.recent.events.front().map(|told| told.seq)
    }

    /// Returns the events from a number on, if all of them are still in memory.
    pub fn recent(&self, from: u64) -> Option<impl Iterator<Item = &Told>> {
        let first = self.recent.events.front()?.seq;
        let skipped = usize::try_from(from.checked_sub(first)?).ok()?;
        Some(self.recent.events.range(skipped.min(self.recent.events.len())..))
    }

    /// Writes what was appended since the last time, unless what was appended before it is still being written. Ends are written
    /// once more after that: no reader finds one before what was told earlier.
    pub fn flush(&mut self, disk: &mut Disk) {
        self.all.flush(disk);
        if self.all.is_written() {
            self.ends.flush(disk);
        }
    }

    /// Returns the names of its files.
    pub fn files(&self) -> Vec<String> {
        let of = |pair: &Pair| {
            let older = pair.older.as_ref().map(|_| format!("{}.1", pair.name));
            older.into_iter().chain([pair.name.to_owned()]).collect::<Vec<_>>()
        };
        [of(&self.all), of(&self.ends)].concat()
    }

    /// Has the next [`Journal::flush`] put back what was deleted.
    pub fn restore(&mut self) {
        (self.all.is_deleted, self.ends.is_deleted) = (true, true);
    }

    /// Returns since when a write is under way that did not come to its end in time.
    pub fn behind_since(&mut self) -> Option<Monotonic> {
        self.all.behind_since().into_iter().chain(self.ends.behind_since()).min()
    }

    /// Returns why the last write failed, if it did.
    pub fn fault(&self) -> Option<&str> {
        self.all.fault.as_deref().or(self.ends.fault.as_deref())
    }

    /// Opens what is written of the events after a number, to be read by another thread.
    pub fn pages(&self, since: u64) -> Pages {
        let first = self.all.halves().find_map(Half::first).unwrap_or(u64::MAX);
        let ends = self.ends.halves().filter(|_| since.saturating_add(1) < first);
        let ends = ends.filter_map(|half| half.stretch(since, first));
        let all = self.all.halves().filter_map(|half| half.stretch(since, u64::MAX));
        Pages { dir: self.dir.clone(), halves: ends.chain(all).collect(), since }
    }
}

impl Pair {
    fn open(dir: &Path, name: &'static str, most: u64) -> Result<Self, Error> {
        let older = Half::open(&dir.join(format!("{name}.1")), false)?;
        let newer = Half::open(&dir.join(name), true)?.expect("it is made if it is not there");
        let (dir, unwritten) = (dir.to_owned(), Lines::default());
        Ok(Self { dir, name, most, newer, older, unwritten, writing: None, fault: None, is_deleted: false })
    }

    /// Returns the number of the last event that is written.
    fn last(&self) -> u64 {
        self.newer.last().or_else(|| self.older.as_ref().and_then(Half::last)).unwrap_or(0)
    }

    fn halves(&self) -> impl Iterator<Item = &Half> {
        self.older.iter().chain([&self.newer])
    }

    fn is_written(&self) -> bool {
        self.writing.is_none() && self.unwritten.text.is_empty()
    }

    fn flush(&mut self, disk: &mut Disk) {
        self.settle();
        if self.writing.is_some() || self.is_written() && !self.is_deleted {
            return;
        }
        let lines = Arc::new(std::mem::take(&mut self.unwritten));
        let (file, size, text) = (self.newer.file.clone(), self.newer.size, lines.clone());
        let (dir, name, most) = (self.dir.clone(), self.name, self.most);
        let older = self.older.as_ref().map(|half| half.file.clone());
        let is_deleted = std::mem::take(&mut self.is_deleted);
        let act = move || {
            let back = if is_deleted { put_back(&dir, name, &file, older.as_deref()) } else { Ok(Back::default()) };
            match back {
                Ok(back) => {
                    let file = back.newer.as_ref().unwrap_or(&file);
                    let written = write(file, size, &text.text, most, || turn(&dir, name));
                    Written { back, ..written }
                }
                Err(error) => Written { size, outcome: Err(error), turned: None, back: Back::default() },
            }
        };
        self.writing = Some((disk.act(act), lines));
        self.settle();
    }

    fn behind_since(&mut self) -> Option<Monotonic> {
        self.settle();
        self.writing.as_ref().map(|(doing, _)| doing.began)
    }

    /// Takes note of a write that is done. What could not be written is written next time, if there is room for it until then.
    fn settle(&mut self) {
        let Some(Written { size, outcome, turned, back }) = self.writing.as_ref().and_then(|(doing, _)| doing.take())
        else {
            return;
        };
        let Some((_, lines)) = self.writing.take() else { return };
        let halves = [(Some(&mut self.newer), back.newer), (self.older.as_mut(), back.older)];
        for (half, file) in halves.into_iter().filter_map(|(half, file)| half.zip(file)) {
            half.file = Arc::new(file);
        }
        let shown = self.dir.join(self.name);
        self.fault = match outcome {
            Ok(()) => {
                let begin = self.newer.size;
                lines.index.iter().for_each(|(seq, at)| self.newer.note(*seq, begin + at));
                None
            }
            Err(error) => {
                self.unwritten.put_before(&lines);
                // It may be since its directory is gone.
                self.is_deleted = true;
                Some(format!("write {}: {error}", shown.display()))
            }
        };
        self.newer.size = size;
        match turned {
            None => {}
            Some(Ok(file)) => {
                let half = Half { file: Arc::new(file), size: 0, index: VecDeque::new() };
                self.older = Some(std::mem::replace(&mut self.newer, half));
            }
            Some(Err(error)) => self.fault = Some(format!("turn {} over: {error}; it grows", shown.display())),
        }
    }
}

impl Recent {
    fn push(&mut self, told: Told) {
        self.bytes += told.json.len();
        self.events.push_back(told);
        while self.bytes > RECENT_MAX {
            let Some(oldest) = self.events.pop_front() else { return };
            self.bytes -= oldest.json.len();
        }
    }
}

/// The written events after a number: the files that hold them, and where to begin.
#[derive(Debug)]
pub(super) struct Pages {
    dir: PathBuf,
    halves: Vec<Stretch>,
    since: u64,
}

#[derive(Debug)]
struct Stretch {
    file: Arc<File>,
    from: u64,
    to: u64,
    /// What comes from this number on is not read here.
    below: u64,
}

/// A page of events as they are written.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Those that were asked for, as JSON.
    pub events: Vec<String>,
    /// The number of the last event that was scanned.
    pub last: u64,
    /// How many events after the number that was asked for are missing.
    pub lost: u64,
}

/// What a reader has to know of a line.
#[derive(Deserialize)]
struct Line<'a> {
    seq: u64,
    #[serde(borrow)]
    agent: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    parent: Option<Cow<'a, str>>,
    #[serde(default)]
    agent_key: Option<u64>,
    #[serde(default)]
    parent_key: Option<u64>,
}

impl Pages {
    /// Reads the first page: events of `most` bytes together, or one more.
    ///
    /// # Errors
    /// Those of reading a file.
    pub fn read(&self, query: &EventQuery, most: usize) -> Result<Page, Error> {
        let mut page = Page { last: self.since, ..Page::default() };
        let (mut room, mut scan) = (most, PAGE_SCAN_MAX);
        for stretch in &self.halves {
            if room > 0 && scan > 0 {
                stretch.read(query, &mut page, &mut room, &mut scan).map_err(|error| {
                    Error::new(Code::Kernel, format!("read the journal in {}: {error}", self.dir.display()))
                })?;
            }
        }
        Ok(page)
    }
}

impl Stretch {
    fn read(&self, query: &EventQuery, page: &mut Page, room: &mut usize, scan: &mut u64) -> std::io::Result<()> {
        let (mut at, mut open) = (self.from, Vec::new());
        while at < self.to && *room > 0 && *scan > 0 {
            let length = usize::try_from(self.to - at).map_or(CHUNK, |left| left.min(CHUNK));
            let begin = open.len();
            open.resize(begin + length, 0);
            let read = self.file.read_at(&mut open[begin..], at)?;
            open.truncate(begin + read);
            if read == 0 {
                break;
            }
            at += read as u64;
            let mut taken = 0;
            while let Some(end) = memchr::memchr(b'\n', &open[taken..]).map(|end| taken + end) {
                if *room == 0 || *scan == 0 {
                    return Ok(());
                }
                // What comes before the first one, since not every line is in the index, does not count.
                let Some(is_new) = page.take(&open[taken..end], query, room, self.below) else { return Ok(()) };
                if is_new {
                    *scan = scan.saturating_sub((end + 1 - taken) as u64);
                }
                taken = end + 1;
            }
            open.drain(..taken);
        }
        Ok(())
    }
}

impl Page {
    /// Takes in a line, and says whether it is one of those after the number that was asked for. What is no event any more is
    /// missing, and counted with the next one. None if the rest is read elsewhere.
    fn take(&mut self, line: &[u8], query: &EventQuery, room: &mut usize, below: u64) -> Option<bool> {
        let Ok(text) = std::str::from_utf8(line) else { return Some(false) };
        let Ok(Line { seq, agent, parent, agent_key, parent_key }) = serde_json::from_str(text) else {
            return Some(false);
        };
        if seq <= self.last {
            return Some(false);
        }
        if seq >= below {
            return None;
        }
        self.lost += seq - self.last - 1;
        self.last = seq;
        let (agent, parent) = (agent.as_deref(), parent.as_deref());
        if query.wants(Subject { agent, parent, agent_key, parent_key }) {
            self.events.push(text.to_owned());
            *room = room.saturating_sub(text.len());
        }
        Some(true)
    }
}

impl Half {
    fn open(path: &Path, make: bool) -> Result<Option<Self>, Error> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(make).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if !make && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::new(Code::Kernel, format!("open {}: {error}", path.display()))),
        };
        let mut half = Self { file: Arc::new(file), size: 0, index: VecDeque::new() };
        half.scan().map_err(|error| Error::new(Code::Kernel, format!("read {}: {error}", path.display())))?;
        Ok(Some(half))
    }

    /// Reads the numbers of what an earlier daemon wrote, and cuts off a last line that was not finished.
    fn scan(&mut self) -> std::io::Result<()> {
        #[derive(serde::Deserialize)]
        struct Number {
            seq: u64,
        }
        let mut reader = BufReader::new(&*self.file);
        let (mut at, mut line, mut numbers) = (0u64, Vec::new(), Vec::new());
        loop {
            line.clear();
            let read = reader.by_ref().take(HALF_MAX).read_until(b'\n', &mut line)? as u64;
            if read == 0 || line.last() != Some(&b'\n') {
                break;
            }
            if let Ok(Number { seq }) = serde_json::from_slice(&line) {
                numbers.push((seq, at));
            }
            at += read;
        }
        self.file.set_len(at)?;
        self.size = at;
        for (seq, at) in numbers {
            self.note(seq, at);
        }
        Ok(())
    }

    /// Returns the number of its first event.
    fn first(&self) -> Option<u64> {
        self.index.front().map(|(seq, _)| *seq)
    }

    fn note(&mut self, seq: u64, at: u64) {
        if is_far(self.index.back(), seq) {
            self.index.push_back((seq, at));
        }
    }

    fn last(&self) -> Option<u64> {
        let (first, _) = self.index.back()?;
        let (mut page, mut room, mut scan) = (Page::default(), usize::MAX, u64::MAX);
        self.stretch(first.saturating_sub(1), u64::MAX)?
            .read(&EventQuery::default(), &mut page, &mut room, &mut scan)
            .ok()?;
        Some(page.last)
    }

    /// Returns where the events after a number are; none if there is nothing to read.
    fn stretch(&self, since: u64, below: u64) -> Option<Stretch> {
        let after = self.index.partition_point(|(seq, _)| *seq <= since.saturating_add(1));
        let (_, from) = self.index.get(after.saturating_sub(1))?;
        Some(Stretch { file: self.file.clone(), from: *from, to: self.size, below })
    }
}

impl Lines {
    /// Appends a line, unless too many wait already.
    fn push(&mut self, seq: u64, line: &str) {
        if self.text.len() >= UNWRITTEN_MAX {
            return;
        }
        if is_far(self.index.last(), seq) {
            self.index.push((seq, self.text.len() as u64));
        }
        self.text.extend_from_slice(line.as_bytes());
        self.text.push(b'\n');
    }

    /// Takes in lines that come before these, which are lost if both together are more than may wait.
    fn put_before(&mut self, first: &Self) {
        let (mut text, mut index) = (first.text.clone(), first.index.clone());
        if text.len() + self.text.len() <= UNWRITTEN_MAX {
            index.extend(self.index.iter().map(|(seq, at)| (*seq, at + text.len() as u64)));
            text.extend_from_slice(&self.text);
        }
        *self = Self { text, index };
    }
}

/// Says whether an event is so far behind the last one in an index that it has an entry there.
fn is_far(last: Option<&(u64, u64)>, seq: u64) -> bool {
    last.is_none_or(|(last, _)| seq >= last + STRIDE)
}

/// Appends lines to a file of this size, whole or not at all, and begins another one if it is full.
fn write(mut file: &File, size: u64, lines: &[u8], most: u64, turn: impl FnOnce() -> Result<File, String>) -> Written {
    let outcome = file.write_all(lines);
    match &outcome {
        Ok(()) => {
            let size = file.metadata().map_or(size + lines.len() as u64, |metadata| metadata.size());
            Written { size, outcome, turned: (size > most).then(turn), back: Back::default() }
        }
        Err(_) => {
            // To make a file shorter takes no room; where even that fails, the next line is lost with the torn one.
            file.set_len(size).unwrap_or_default();
            Written { size, outcome, turned: None, back: Back::default() }
        }
    }
}

/// Puts back those files of a pair that were deleted. What was in them is read from the deleted ones, which are still open.
fn put_back(dir: &Path, name: &str, newer: &File, older: Option<&File>) -> std::io::Result<Back> {
    let copy = |file: &File, name: String| -> std::io::Result<Option<File>> {
        let (path, beside) = (dir.join(&name), dir.join(name + ".new"));
        if !is_missing(&path) {
            return Ok(None);
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut copy = options.open(&beside)?;
        copy.set_len(0)?;
        let mut file = file;
        file.rewind()?;
        std::io::copy(&mut file, &mut copy)?;
        std::fs::rename(&beside, &path)?;
        Ok(Some(copy))
    };
    let older = older.map(|older| copy(older, format!("{name}.1"))).transpose()?.flatten();
    Ok(Back { newer: copy(newer, name.to_owned())?, older })
}

/// Makes the newer file the older one. What a full disk can refuse comes first.
fn turn(dir: &Path, name: &str) -> Result<File, String> {
    let [newer, older, fresh] = ["", ".1", ".new"].map(|end| dir.join(format!("{name}{end}")));
    let half = Half::open(&fresh, true).map_err(|error| error.message)?.expect("it is made if it is not there");
    half.file.set_len(0).map_err(|error| error.to_string())?;
    std::fs::rename(&newer, &older).map_err(|error| error.to_string())?;
    std::fs::rename(&fresh, &newer).map_err(|error| error.to_string())?;
    Ok(Arc::into_inner(half.file).expect("nobody else has it"))
}

#[cfg(test)]
mod tests;

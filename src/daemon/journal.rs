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
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::disk::{Disk, Doing};
use crate::api::method::{EventQuery, Subject};
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
        Ok(Self { dir, name, most, newer, older, unwritten, writing: None, fault: None })
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
        if self.is_written() || self.writing.is_some() {
            return;
        }
        let lines = Arc::new(std::mem::take(&mut self.unwritten));
        let (file, size, text) = (self.newer.file.clone(), self.newer.size, lines.clone());
        let (dir, name, most) = (self.dir.clone(), self.name, self.most);
        let act = move || write(&file, size, &text.text, most, || turn(&dir, name));
        self.writing = Some((disk.act(act), lines));
        self.settle();
    }

    fn behind_since(&mut self) -> Option<Monotonic> {
        self.settle();
        self.writing.as_ref().map(|(doing, _)| doing.began)
    }

    /// Takes note of a write that is done. What could not be written is written next time, if there is room for it until then.
    fn settle(&mut self) {
        let Some(Written { size, outcome, turned }) = self.writing.as_ref().and_then(|(doing, _)| doing.take()) else {
            return;
        };
        let Some((_, lines)) = self.writing.take() else { return };
        let shown = self.dir.join(self.name);
        self.fault = match outcome {
            Ok(()) => {
                let begin = self.newer.size;
                lines.index.iter().for_each(|(seq, at)| self.newer.note(*seq, begin + at));
                None
            }
            Err(error) => {
                self.unwritten.put_before(&lines);
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
            Written { size, outcome, turned: (size > most).then(turn) }
        }
        Err(_) => {
            // To make a file shorter takes no room; where even that fails, the next line is lost with the torn one.
            file.set_len(size).unwrap_or_default();
            Written { size, outcome, turned: None }
        }
    }
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
mod tests {
    use super::*;
    use crate::model::event::Kind;
    use crate::model::time::Wall;

    fn event(message: &str) -> Event {
        Event { message: message.to_owned(), ..Event::new(Wall(1), Kind::Started) }
    }

    /// Reads a page, and returns the numbers of its events.
    fn read(journal: &Journal, since: u64) -> (Vec<u64>, Page) {
        let page = journal.pages(since).read(&EventQuery::default(), 1 << 20).unwrap();
        let numbers = page.events.iter().map(|json| serde_json::from_str::<Event>(json).unwrap().seq).collect();
        (numbers, page)
    }

    #[test]
    fn events_are_numbered_without_gaps_across_daemons() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..3 {
            let mut journal = Journal::open(dir.path()).unwrap();
            for number in 1..=100 {
                let mut event = event("x");
                journal.append(&mut event);
                assert_eq!(event.seq, round * 100 + number);
            }
            journal.flush(&mut Disk::in_memory());
        }
        let (numbers, page) = read(&Journal::open(dir.path()).unwrap(), 290);
        assert_eq!(numbers, (291..=300).collect::<Vec<_>>());
        assert_eq!((page.last, page.lost), (300, 0));
    }

    #[test]
    fn a_line_that_was_cut_short_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&mut event("whole"));
        journal.flush(&mut Disk::in_memory());
        (&*journal.all.newer.file).write_all(b"{\"seq\":2,\"ti").unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.last(), 1);
        journal.append(&mut event("next"));
        journal.flush(&mut Disk::in_memory());
        assert_eq!(read(&journal, 0).0, [1, 2]);
    }

    #[test]
    fn what_could_not_be_written_is_written_later_and_what_had_no_room_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let append = |journal: &mut Journal, count: u64, text: &str| {
            (0..count).for_each(|_| journal.append(&mut event(text)));
            journal.flush(&mut Disk::in_memory());
        };
        append(&mut journal, 10, "x");
        let unwritable = Arc::new(File::open(dir.path().join("journal")).unwrap());
        let file = std::mem::replace(&mut journal.all.newer.file, unwritable);
        append(&mut journal, 190, "x");
        assert!(journal.fault().is_some() && !journal.all.unwritten.text.is_empty());
        append(&mut journal, 1, &"x".repeat(UNWRITTEN_MAX));
        append(&mut journal, 1, "lost");
        journal.all.newer.file = file;
        append(&mut journal, 0, "");
        assert!(journal.fault().is_none() && journal.all.unwritten.text.is_empty());
        append(&mut journal, 100, "x");
        for journal in [journal, Journal::open(dir.path()).unwrap()] {
            let (mut at, mut lost, mut seen) = (5, 0, Vec::new());
            while at < 302 {
                let (numbers, page) = read(&journal, at);
                assert!(page.last > at, "it goes on after {at}");
                seen.extend(numbers);
                (at, lost) = (page.last, lost + page.lost);
            }
            assert_eq!((seen, lost), ((6..=201).chain(203..=302).collect(), 1));
        }
    }

    #[test]
    fn bytes_that_are_no_event_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        for garbage in [&b"\xff\xfe no text\n"[..], b"{\"seq\":\n", b"\n", b"{}\n"] {
            journal.append(&mut event("x"));
            journal.flush(&mut Disk::in_memory());
            (&*journal.all.newer.file).write_all(garbage).unwrap();
            journal.all.newer.size += garbage.len() as u64;
        }
        for journal in [journal, Journal::open(dir.path()).unwrap()] {
            assert_eq!(journal.last(), 4);
            assert_eq!(read(&journal, 0).0, [1, 2, 3, 4]);
        }
    }

    #[test]
    fn the_journal_is_bounded_and_tells_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let long = "x".repeat(100_000);
        for _ in 0..400 {
            journal.append(&mut event(&long));
            journal.flush(&mut Disk::in_memory());
        }
        let size: u64 =
            ["journal", "journal.1"].iter().map(|name| dir.path().join(name).metadata().unwrap().len()).sum();
        assert!(size <= 2 * (HALF_MAX + 200_000), "{size}");
        let (numbers, first) = read(&journal, 0);
        assert!(first.lost > 0 && numbers[0] == first.lost + 1, "what is gone is told exactly");
        let (mut at, mut count) = (first.last, first.events.len() as u64);
        while at < 400 {
            let (_, page) = read(&journal, at);
            assert!(!page.events.is_empty());
            (at, count) = (page.last, count + page.events.len() as u64);
        }
        assert_eq!(count + first.lost, 400);
    }

    #[test]
    fn an_end_is_still_told_when_all_that_was_told_beside_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let end = |message: &str| Event { message: message.to_owned(), ..Event::new(Wall(1), Kind::Failed) };
        let long = "x".repeat(100_000);
        for round in 0..400 {
            let mut told = if round % 100 == 7 { end("ended") } else { event(&long) };
            journal.append(&mut told);
            journal.flush(&mut Disk::in_memory());
        }
        for journal in [journal, Journal::open(dir.path()).unwrap()] {
            let (mut at, mut numbers, mut lost) = (0, Vec::new(), 0);
            while at < 400 {
                let (new, page) = read(&journal, at);
                lost += page.lost;
                assert!(page.last > at, "it goes on");
                at = page.last;
                numbers.extend(new);
            }
            assert_eq!(numbers[..2], [8, 108], "the oldest that are kept are ends");
            assert!(numbers.is_sorted() && numbers.contains(&208) && numbers.contains(&308) && lost > 200);
            assert_eq!(numbers.len() as u64 + lost, 400, "what is gone is told exactly");
        }
    }

    #[test]
    fn the_last_events_are_in_memory_as_far_as_their_bound_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert!(journal.recent(1).is_none());
        (0..400).for_each(|_| journal.append(&mut event(&"x".repeat(10_000))));
        assert!(journal.recent(1).is_none(), "the first ones are in the files alone");
        let numbers: Vec<_> = journal.recent(390).unwrap().map(|told| told.seq).collect();
        assert_eq!(numbers, (390..=400).collect::<Vec<_>>());
        assert!(journal.recent.bytes <= RECENT_MAX && journal.recent(401).unwrap().next().is_none());
    }
}

//! The journal: every event one line of JSON, numbered without gaps, in two files that together stay bounded.
//!
//! ```text
//! journal.1   the older half, or absent        journal   the newer half; appended to, moved over journal.1 when it is full
//! ```
//!
//! A turn's events are written by one write at its end, whole or not at all: a number that is missing is an event that is lost. An
//! index of every 64th line says where to begin to read.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::api::method::{EventQuery, Events};
use crate::model::error::{Code, Error};
use crate::model::event::Event;

/// How large one of the two files may become, in bytes.
const HALF_MAX: u64 = 8 << 20;

/// Every how many lines the index has an entry.
const STRIDE: u64 = 64;

/// How many events a page has at most, and how many bytes of the journal are read for it.
const PAGE_EVENTS: usize = 1000;
const PAGE_BYTES: u64 = 1 << 20;

/// The journal of one state directory.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    newer: Half,
    older: Option<Half>,
    /// The number of the last event.
    last: u64,
    unwritten: Vec<u8>,
    has_failed: bool,
}

#[derive(Debug)]
struct Half {
    file: File,
    size: u64,
    /// Numbers of events and where they stand, both ascending.
    index: VecDeque<(u64, u64)>,
}

impl Journal {
    /// Opens the journal of a state directory, and goes on with the numbers of an earlier daemon.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let older = Half::open(&dir.join("journal.1"), false)?;
        let newer = Half::open(&dir.join("journal"), true)?.expect("it is made if it is not there");
        let last = newer.last().or_else(|| older.as_ref().and_then(Half::last)).unwrap_or(0);
        Ok(Self { dir: dir.to_owned(), newer, older, last, unwritten: Vec::new(), has_failed: false })
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    /// Gives an event its number and notes it down for the next [`Journal::flush`].
    pub fn append(&mut self, event: &mut Event) {
        self.last += 1;
        event.seq = self.last;
        let at = self.newer.size + self.unwritten.len() as u64;
        self.newer.note(event.seq, at);
        if serde_json::to_writer(&mut self.unwritten, event).is_ok() {
            self.unwritten.push(b'\n');
        }
    }

    /// Writes what was appended since the last time. A full disk is told once, and what could not be written is lost.
    pub fn flush(&mut self) {
        if self.unwritten.is_empty() {
            return;
        }
        let written = self.newer.write(&self.unwritten).map_err(|error| format!("{error}; events are lost"));
        self.unwritten.clear();
        let outcome = written.and_then(|()| if self.newer.size > HALF_MAX { self.turn() } else { Ok(()) });
        match (outcome, &mut self.has_failed) {
            (Err(error), has_failed @ false) => {
                *has_failed = true;
                tracing::error!("write {}: {error} until that works again", self.dir.join("journal").display());
            }
            (Ok(()), has_failed @ true) => {
                *has_failed = false;
                tracing::info!("write {}: that works again", self.dir.join("journal").display());
            }
            _ => {}
        }
    }

    /// Makes the newer half the older one. What a full disk can refuse comes first.
    fn turn(&mut self) -> Result<(), String> {
        let [newer, older, fresh] = ["journal", "journal.1", "journal.new"].map(|name| self.dir.join(name));
        let failed = |error: &dyn std::fmt::Display| format!("turn it over: {error}; it grows");
        let half = Half::open(&fresh, true).map_err(|error| failed(&error))?.expect("it is made if it is not there");
        std::fs::rename(&newer, &older).map_err(|error| failed(&error))?;
        std::fs::rename(&fresh, &newer).map_err(|error| failed(&error))?;
        self.older = Some(std::mem::replace(&mut self.newer, half));
        Ok(())
    }

    /// Reads a page of the events after `query.since` that are written.
    pub fn read(&self, query: &EventQuery) -> Result<Events, Error> {
        let since = query.since.unwrap_or(0);
        let mut page = Events { events: Vec::new(), last: since, lost: 0 };
        let mut budget = PAGE_BYTES;
        for half in self.older.iter().chain([&self.newer]) {
            if page.events.len() < PAGE_EVENTS && budget > 0 {
                half.read(since, query, &mut page, &mut budget).map_err(|error| {
                    Error::new(Code::Kernel, format!("read the journal in {}: {error}", self.dir.display()))
                })?;
            }
        }
        Ok(page)
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
        let mut half = Self { file, size: 0, index: VecDeque::new() };
        half.scan().map_err(|error| Error::new(Code::Kernel, format!("read {}: {error}", path.display())))?;
        Ok(Some(half))
    }

    /// Reads the numbers of what an earlier daemon wrote, and cuts off a last line that was not finished.
    fn scan(&mut self) -> std::io::Result<()> {
        #[derive(serde::Deserialize)]
        struct Number {
            seq: u64,
        }
        let mut reader = BufReader::new(&self.file);
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

    /// Appends lines that are noted already, or takes back what was written of them and noted.
    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let outcome = self.file.write_all(lines);
        match &outcome {
            Ok(()) => self.size = self.file.metadata().map_or(self.size, |metadata| metadata.size()),
            Err(_) => {
                // To make a file shorter takes no room; where even that fails, the next line is lost with the torn one.
                self.file.set_len(self.size).unwrap_or_default();
                self.index.retain(|(_, at)| *at < self.size);
            }
        }
        outcome
    }

    fn note(&mut self, seq: u64, at: u64) {
        if self.index.is_empty() || seq.is_multiple_of(STRIDE) {
            self.index.push_back((seq, at));
        }
    }

    fn last(&self) -> Option<u64> {
        let (_, at) = self.index.back()?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(*at)).ok()?;
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        lines.filter_map(|line| serde_json::from_str::<Event>(&line).ok()).map(|event| event.seq).last()
    }

    fn read(&self, since: u64, query: &EventQuery, page: &mut Events, budget: &mut u64) -> std::io::Result<()> {
        let after = self.index.partition_point(|(seq, _)| *seq <= since.saturating_add(1));
        let Some((_, from)) = self.index.get(after.saturating_sub(1)) else { return Ok(()) };
        let mut file = &self.file;
        file.seek(SeekFrom::Start(*from))?;
        for line in BufReader::new(file).lines() {
            let line = line?;
            let Ok(event) = serde_json::from_str::<Event>(&line) else { continue };
            if event.seq <= page.last {
                continue;
            }
            page.lost += event.seq - page.last - 1;
            page.last = event.seq;
            *budget = budget.saturating_sub(line.len() as u64);
            if query.wants(&event) {
                page.events.push(event);
            }
            if page.events.len() >= PAGE_EVENTS || *budget == 0 {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::Kind;
    use crate::model::time::Wall;

    fn event(message: &str) -> Event {
        Event { message: message.to_owned(), ..Event::new(Wall(1), Kind::Started) }
    }

    fn since(since: u64) -> EventQuery {
        EventQuery { since: Some(since), ..EventQuery::default() }
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
            journal.flush();
        }
        let page = Journal::open(dir.path()).unwrap().read(&since(290)).unwrap();
        assert_eq!(page.events.iter().map(|event| event.seq).collect::<Vec<_>>(), (291..=300).collect::<Vec<_>>());
        assert_eq!((page.last, page.lost), (300, 0));
    }

    #[test]
    fn a_line_that_was_cut_short_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&mut event("whole"));
        journal.flush();
        journal.newer.file.write_all(b"{\"seq\":2,\"ti").unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.last(), 1);
        journal.append(&mut event("next"));
        journal.flush();
        assert_eq!(journal.read(&since(0)).unwrap().events.len(), 2);
    }

    #[test]
    fn what_could_not_be_written_is_counted_where_it_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let append = |journal: &mut Journal, count: u64| {
            (0..count).for_each(|_| journal.append(&mut event("x")));
            journal.flush();
        };
        append(&mut journal, 10);
        let unwritable = File::open(dir.path().join("journal")).unwrap();
        let file = std::mem::replace(&mut journal.newer.file, unwritable);
        append(&mut journal, 190);
        journal.newer.file = file;
        append(&mut journal, 100);
        for journal in [journal, Journal::open(dir.path()).unwrap()] {
            let page = journal.read(&since(5)).unwrap();
            assert_eq!((page.events.len(), page.lost, page.last), (105, 190, 300));
            let page = journal.read(&since(250)).unwrap();
            assert_eq!((page.events.first().unwrap().seq, page.events.len(), page.lost), (251, 50, 0));
        }
    }

    #[test]
    fn the_journal_is_bounded_and_tells_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let long = "x".repeat(100_000);
        for _ in 0..400 {
            journal.append(&mut event(&long));
            journal.flush();
        }
        let size: u64 =
            ["journal", "journal.1"].iter().map(|name| dir.path().join(name).metadata().unwrap().len()).sum();
        assert!(size <= 2 * (HALF_MAX + 200_000), "{size}");
        let first = journal.read(&since(0)).unwrap();
        assert!(first.lost > 0 && first.events[0].seq == first.lost + 1, "what is gone is told exactly");
        let (mut at, mut count) = (first.last, first.events.len() as u64);
        while at < 400 {
            let page = journal.read(&since(at)).unwrap();
            assert!(!page.events.is_empty());
            (at, count) = (page.last, count + page.events.len() as u64);
        }
        assert_eq!(count + first.lost, 400);
    }
}

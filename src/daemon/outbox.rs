//! What waits to be sent to one client: lines, and long answers of which only the next entries are ever in memory.
//!
//! ```text
//!  bytes (at most ROOM, or one message more)  ◀── list: head, entry, entry, … tail ◀── line ◀── list
//! ```
//!
//! A message is one line, so nothing may come between the entries of a list: what is answered meanwhile waits behind it.
//! An entry is made when there is room for it, out of what is true then; an agent that is gone by then is left out.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::machine::AgentKey;
use crate::model::status::{AgentReceipt, AgentStatus};
use crate::model::usage::Usage;

/// How much may wait to be sent before notifications and the entries of lists wait for the reader.
pub(super) const ROOM: usize = 256 << 10;

/// What a buffer keeps when it is empty.
const SPARE_MAX: usize = 16 << 10;

/// What a status that waits to be written takes in memory, besides what it shares.
const STATUS_SIZE: usize = 1 << 10;

/// What waits to be sent, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// How many bytes were taken off the front of `bytes` so far.
    gone: u64,
    sheets: VecDeque<Sheet>,
}

#[derive(Debug)]
enum Sheet {
    Line(Vec<u8>),
    List(List),
}

/// A long answer.
#[derive(Debug)]
pub(super) struct List {
    /// What comes before the first entry.
    head: Vec<u8>,
    entries: Entries,
    /// What comes after the last one.
    tail: Vec<u8>,
    is_begun: bool,
    has_entry: bool,
}

/// The entries of a list that are not written yet.
#[derive(Debug)]
pub(super) enum Entries {
    Agents(std::vec::IntoIter<AgentKey>),
    Statuses(std::vec::IntoIter<Arc<AgentStatus>>),
    Receipts(std::vec::IntoIter<AgentReceipt>),
    Usage(std::vec::IntoIter<(AgentKey, Usage)>),
}

impl Entries {
    /// Returns about how much memory they take.
    fn size(&self) -> usize {
        match self {
            Self::Agents(left) => left.len() * size_of::<AgentKey>(),
            Self::Statuses(left) => left.len() * STATUS_SIZE,
            Self::Receipts(left) => left.len() * STATUS_SIZE,
            Self::Usage(left) => left.len() * size_of::<(AgentKey, Usage)>(),
        }
    }
}

impl List {
    pub fn new(head: Vec<u8>, entries: Entries, tail: Vec<u8>) -> Self {
        Self { head, entries, tail, is_begun: false, has_entry: false }
    }
}

impl Outbox {
    /// Adds a whole line.
    pub fn line(&mut self, line: Vec<u8>) {
        match self.sheets.is_empty() {
            true => self.bytes.extend_from_slice(&line),
            false => self.sheets.push_back(Sheet::Line(line)),
        }
    }

    /// Adds a long answer.
    pub fn list(&mut self, list: List) {
        self.sheets.push_back(Sheet::List(list));
    }

    /// Says whether a long answer is not written yet.
    pub fn has_list(&self) -> bool {
        !self.sheets.is_empty()
    }

    /// Returns how many bytes were ever written for the reader.
    pub fn written(&self) -> u64 {
        self.gone + self.bytes.len() as u64
    }

    /// Returns how many bytes wait for the reader.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Says whether nothing waits any more.
    pub fn is_empty(&self) -> bool {
        self.waiting() == 0 && self.sheets.is_empty()
    }

    /// Returns about how much memory all of it takes.
    pub fn size(&self) -> usize {
        let sheet = |sheet: &Sheet| match sheet {
            Sheet::Line(line) => line.len(),
            Sheet::List(list) => list.head.len() + list.entries.size() + list.tail.len(),
        };
        self.bytes.capacity() + self.sheets.iter().map(sheet).sum::<usize>()
    }

    /// Returns what is to be written to the connection next.
    pub fn next_bytes(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Notes that so much of that is written.
    pub fn note_sent(&mut self, count: usize) {
        self.sent += count;
        if self.waiting() > 0 && self.sent <= ROOM {
            return;
        }
        self.bytes.drain(..self.sent);
        self.gone += std::mem::take(&mut self.sent) as u64;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(SPARE_MAX);
        }
    }

    /// Writes on what waits behind the bytes, as long as there is room, `most` bytes or one entry more. `entry` writes the next
    /// entry of a list, and says whether there was one. Returns whether anything was written.
    pub fn write_on(&mut self, most: usize, mut entry: impl FnMut(&mut Entries, &mut Vec<u8>) -> bool) -> bool {
        let begin = self.bytes.len();
        while self.bytes.len() - begin < most && self.waiting() < ROOM {
            match self.sheets.front_mut() {
                None => break,
                Some(Sheet::Line(line)) => {
                    self.bytes.append(line);
                    self.sheets.pop_front();
                }
                Some(Sheet::List(list)) => {
                    if list.write_on(&mut self.bytes, &mut entry) {
                        self.sheets.pop_front();
                    }
                }
            }
        }
        self.bytes.len() > begin
    }
}

impl List {
    /// Writes its next entry. Returns whether that was all.
    fn write_on(&mut self, bytes: &mut Vec<u8>, entry: &mut impl FnMut(&mut Entries, &mut Vec<u8>) -> bool) -> bool {
        if !std::mem::replace(&mut self.is_begun, true) {
            bytes.append(&mut self.head);
        }
        let before = bytes.len();
        if self.has_entry {
            bytes.push(b',');
        }
        if entry(&mut self.entries, bytes) {
            self.has_entry = true;
            return false;
        }
        bytes.truncate(before);
        bytes.append(&mut self.tail);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agents(keys: std::ops::Range<u64>) -> Entries {
        Entries::Agents(keys.map(AgentKey).collect::<Vec<_>>().into_iter())
    }

    fn write(entries: &mut Entries, bytes: &mut Vec<u8>) -> bool {
        let Entries::Agents(keys) = entries else { return false };
        let Some(key) = keys.next() else { return false };
        bytes.extend_from_slice(format!("{:>4096}", key.0).as_bytes());
        true
    }

    #[test]
    fn a_list_is_written_as_its_reader_takes_it_and_nothing_comes_between() {
        let mut outbox = Outbox::default();
        outbox.list(List::new(b"[".to_vec(), agents(0..1000), b"]\n".to_vec()));
        outbox.line(b"answer\n".to_vec());
        outbox.list(List::new(b"[".to_vec(), agents(0..0), b"]\n".to_vec()));
        let mut read = Vec::new();
        while !outbox.is_empty() {
            outbox.write_on(64 << 10, write);
            assert!(outbox.size() < 2 * ROOM, "{}", outbox.size());
            let taken = outbox.next_bytes().len().min(100_000);
            read.extend_from_slice(&outbox.next_bytes()[..taken]);
            outbox.note_sent(taken);
        }
        let text = String::from_utf8(read).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let numbers: Vec<u64> =
            lines[0].trim_matches(['[', ']']).split(',').map(|it| it.trim().parse().unwrap()).collect();
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
        assert_eq!(lines[1..], ["answer", "[]"]);
    }

    #[test]
    fn without_a_reader_no_more_than_the_room_is_written() {
        let mut outbox = Outbox::default();
        outbox.list(List::new(b"[".to_vec(), agents(0..1_000_000), b"]\n".to_vec()));
        while outbox.write_on(64 << 10, write) {}
        assert!(outbox.waiting() < ROOM + 8192);
    }
}

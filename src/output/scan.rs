//! Looking for a line, once.

use std::time::Instant;

use regex::bytes::Regex;

use super::lines::{Line, Lines};
use super::read::Cursor;
use super::rules::LINE_MOST;
use super::spool::Spool;
use super::store::Store;
use crate::model::error::Error;
use crate::model::id::AgentId;
use crate::model::pattern::Pattern;
use crate::model::stream::Stream;

/// How much one look reads, in bytes: at 5 ms between looks 50 MB/s, and a fraction of a millisecond each.
const LOOK_MOST: usize = 256 << 10;

/// How much is examined between two looks at the clock, in bytes.
const SLICE: usize = 4 << 10;

/// A search for one line. A line longer than [`LINE_MOST`] is examined in parts of that length;
/// what was given back before that is not found.
#[derive(Clone, Debug)]
pub struct Scan {
    regex: Regex,
    cursor: Cursor,
    lines: [Lines; 2],
}

/// What one look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// A line that matches.
    Found,
    /// None so far, and there is more to look at, at once.
    More,
    /// None so far.
    Nothing,
}

impl Scan {
    /// Begins a search, from these offsets on in the streams that have one.
    #[must_use]
    pub fn new(pattern: &Pattern, from: Cursor) -> Self {
        Self { regex: pattern.compile(), cursor: from, lines: [Lines::cut_at(LINE_MOST), Lines::cut_at(LINE_MOST)] }
    }

    /// Examines what is new in a stream, for as long as it may.
    ///
    /// # Errors
    /// Those of [`Spool::read`].
    pub fn look(
        &mut self,
        spool: &Spool,
        store: &Store,
        id: &AgentId,
        stream: Stream,
        until: Instant,
    ) -> Result<Looked, Error> {
        if self.cursor.get(stream).is_none() {
            return Ok(Looked::Nothing);
        }
        let mut cursor = Cursor::default();
        cursor.set(stream, self.cursor.get(stream));
        let read = spool.read(store, id, &mut cursor, LOOK_MOST)?;
        self.cursor.set(stream, cursor.get(stream));
        let mut is_found = false;
        for piece in &read.pieces {
            for start in (0..piece.bytes.len()).step_by(SLICE) {
                let end = piece.bytes.len().min(start + SLICE);
                let note = |line: Line| is_found |= self.regex.is_match(&line.bytes);
                self.lines[stream as usize].feed_part(piece, start..end, note);
                if is_found || Instant::now() >= until {
                    self.cursor.set(stream, Some(piece.offset + end as u64));
                    return Ok(if is_found { Looked::Found } else { Looked::More });
                }
            }
        }
        Ok(if read.at_end { Looked::Nothing } else { Looked::More })
    }
}

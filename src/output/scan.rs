//! Looking for a line: once, from where the stream ended when the search began.

use regex::bytes::Regex;

use super::lines::Lines;
use super::read::Cursor;
use super::spool::Spool;
use super::store::Store;
use crate::model::error::Error;
use crate::model::id::AgentId;
use crate::model::pattern::Pattern;
use crate::model::stream::{Stream, Streams};

/// How much one look reads, in bytes: at 5 ms between looks 50 MB/s, and a fraction of a millisecond each.
const LOOK_MOST: usize = 256 << 10;

/// A search for one line. A line longer than [`PARTIAL_MOST`](super::PARTIAL_MOST) is looked at in parts of that length; what
/// was given back before it was looked at is not found.
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
    /// Begins a search in what comes after the ends of these streams, as of the last [`Spool::service`].
    #[must_use]
    pub fn new(pattern: &Pattern, streams: Streams, spool: &Spool) -> Self {
        let mut cursor = Cursor::default();
        for stream in Stream::ALL.into_iter().filter(|stream| streams.has(*stream)) {
            cursor.set(stream, Some(spool.bounds(stream).1));
        }
        Self { regex: pattern.compile(), cursor, lines: Default::default() }
    }

    /// Looks at what is new in a stream.
    ///
    /// # Errors
    /// Those of [`Spool::read`].
    pub fn look(&mut self, spool: &Spool, store: &Store, id: &AgentId, stream: Stream) -> Result<Looked, Error> {
        if self.cursor.get(stream).is_none() {
            return Ok(Looked::Nothing);
        }
        let mut cursor = Cursor::default();
        cursor.set(stream, self.cursor.get(stream));
        let read = spool.read(store, id, &mut cursor, LOOK_MOST)?;
        self.cursor.set(stream, cursor.get(stream));
        let mut is_found = false;
        for piece in &read.pieces {
            self.lines[stream as usize].feed(piece, |line| is_found |= self.regex.is_match(&line.bytes));
        }
        Ok(match (is_found, read.at_end) {
            (true, _) => Looked::Found,
            (false, false) => Looked::More,
            (false, true) => Looked::Nothing,
        })
    }
}

//! Looking for meaning: the lines of a stream against the rules of its agent, each byte once, in the order of the stream.
//!
//! A [`RuleSet`] is what is looked for, compiled once; a [`Sweep`] is how far one stream was looked at. A line ends with `\n`
//! or `\r\n`, which are not part of it. Of a line that is longer than [`LINE_MOST`] its first [`LINE_MOST`] bytes are looked at,
//! as soon as they are there. What is given back before it was looked at is gone: that is counted, the line that was open
//! before the gap is looked at as it is, and what is left of the line in which the gap ends is passed over.

use std::sync::Arc;
use std::time::Instant;

use memchr::memchr;
use regex::bytes::RegexSet;

use super::read::Cursor;
use super::spool::Spool;
use super::store::Store;
use crate::model::error::Error;
use crate::model::id::AgentId;
use crate::model::rule::{Rule, compile};
use crate::model::stream::Stream;

/// How much of a line is looked at, in bytes.
pub const LINE_MOST: usize = 8 << 10;

/// How much is read in one go, in bytes.
const PIECE: u64 = 64 << 10;

/// As much work as a line is besides its bytes.
const LINE_WORK: u64 = 32;

/// The rules of an agent, compiled; can be shared by agents that have the same ones.
#[derive(Debug)]
pub struct RuleSet {
    /// For each stream the rules that look at it.
    streams: [Option<Listeners>; 2],
}

#[derive(Debug)]
struct Listeners {
    set: RegexSet,
    /// Which rule each pattern of the set is.
    rules: Vec<usize>,
}

impl Listeners {
    fn new(all: &[Rule], stream: Stream) -> Result<Option<Self>, Error> {
        let (rules, patterns): (Vec<_>, Vec<_>) =
            all.iter().enumerate().filter(|(_, rule)| rule.listens_to(stream)).unzip();
        if rules.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { set: compile(patterns)?, rules }))
    }
}

impl RuleSet {
    /// Compiles the rules of an agent.
    ///
    /// # Errors
    /// As [`compile`].
    pub fn new(rules: &[Rule]) -> Result<Self, Error> {
        Ok(Self { streams: [Listeners::new(rules, Stream::Stdout)?, Listeners::new(rules, Stream::Stderr)?] })
    }

    /// Says whether any rule looks at a stream.
    #[must_use]
    pub fn listens_to(&self, stream: Stream) -> bool {
        self.streams[stream as usize].is_some()
    }

    /// Tells every rule that finds a line.
    fn look(&self, stream: Stream, offset: u64, line: &[u8], each: &mut impl FnMut(Match<'_>)) {
        let Some(listeners) = &self.streams[stream as usize] else { return };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // Most lines mean nothing, and that is found out much faster than which rule it is.
        if listeners.set.is_match(line) {
            for number in listeners.set.matches(line) {
                each(Match { rule: listeners.rules[number], offset, line });
            }
        }
    }
}

/// A line that a rule has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match<'a> {
    /// The rule, by its place among the agent's rules.
    pub rule: usize,
    /// The offset of the line's first byte in the stream.
    pub offset: u64,
    /// The line, or its first [`LINE_MOST`] bytes.
    pub line: &'a [u8],
}

/// How far one stream was looked at.
#[derive(Clone, Debug)]
pub struct Sweep {
    set: Arc<RuleSet>,
    stream: Stream,
    /// The offset of the next byte.
    next: u64,
    /// The line whose end is not there yet.
    open: Vec<u8>,
    /// Whether the rest of the present line is passed over: it is too long, or its beginning is gone.
    passes_over: bool,
}

/// How much one call of [`Sweep::look`] may do.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// How much work, as [`Swept::work`] counts it.
    pub work: u64,
    /// When it ends, whatever is left: what a line costs depends on the patterns. The line at work
    /// then is finished.
    pub until: Instant,
}

/// What one call of [`Sweep::look`] has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How much work that was: the bytes that were looked at, and 32 more for each line.
    pub work: u64,
    /// How many were gone before they could be.
    pub gone: u64,
    /// Whether all was looked at, up to the offset that was given or to the end that there is.
    pub at_end: bool,
}

impl Sweep {
    /// Begins at an offset of a stream.
    #[must_use]
    pub fn new(set: Arc<RuleSet>, stream: Stream, begin: u64) -> Self {
        Self { set, stream, next: begin, open: Vec::new(), passes_over: false }
    }

    /// Returns the offset of the first byte that was not looked at.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Examines the stream until the `budget` is used up, not beyond the offset `until`, and
    /// reports every line that a rule matches.
    ///
    /// # Errors
    /// Those of [`Spool::read`]; what was looked at before stays so.
    pub fn look(
        &mut self,
        spool: &Spool,
        store: &Store,
        id: &AgentId,
        budget: Budget,
        until: u64,
        mut each: impl FnMut(Match<'_>),
    ) -> Result<Swept, Error> {
        let mut looked = Swept { at_end: self.next >= until, ..Swept::default() };
        while !looked.at_end && looked.work < budget.work {
            let room = (budget.work - looked.work).min(until - self.next).min(PIECE);
            let mut cursor = Cursor::default();
            cursor.set(self.stream, Some(self.next));
            let read = spool.read(store, id, &mut cursor, usize::try_from(room).unwrap_or(0))?;
            for piece in &read.pieces {
                looked.gone += self.skip_to(piece.offset.min(until), &mut each);
                // Behind a gap there may be more than there was room for.
                let length =
                    usize::try_from(until - self.next).map_or(piece.bytes.len(), |left| left.min(piece.bytes.len()));
                let (used, lines) = self.take(&piece.bytes[..length], budget.until, &mut each);
                looked.work += used as u64 + LINE_WORK * lines;
                if used < length {
                    return Ok(looked);
                }
            }
            looked.gone += self.skip_to(cursor.get(self.stream).unwrap_or(self.next).min(until), &mut each);
            looked.at_end = read.at_end || self.next >= until;
        }
        Ok(looked)
    }

    /// Looks at the line that stands open: nothing follows it.
    pub fn finish(&mut self, mut each: impl FnMut(Match<'_>)) {
        if !self.open.is_empty() {
            self.set.look(self.stream, self.open_at(), &self.open, &mut each);
            self.open.clear();
        }
        self.passes_over = false;
    }

    /// Goes on behind a gap, if there is one. Returns how many bytes are passed over.
    pub fn skip_to(&mut self, offset: u64, each: impl FnMut(Match<'_>)) -> u64 {
        let gap = offset.saturating_sub(self.next);
        if gap > 0 {
            self.finish(each);
            self.next = offset;
            self.passes_over = true;
        }
        gap
    }

    fn open_at(&self) -> u64 {
        self.next - self.open.len() as u64
    }

    /// Examines bytes that follow those before, for as long as it may. Returns how many, and how
    /// many lines they end.
    fn take(&mut self, bytes: &[u8], until: Instant, each: &mut impl FnMut(Match<'_>)) -> (usize, u64) {
        let mut rest = bytes;
        let mut lines = 0;
        while !rest.is_empty() && (lines == 0 || Instant::now() < until) {
            let newline = memchr(b'\n', rest);
            let (part, used) = newline.map_or((rest, rest.len()), |at| (&rest[..at], at + 1));
            if !self.passes_over {
                self.passes_over = self.lengthen(part, newline.is_some(), each);
            }
            self.passes_over &= newline.is_none();
            self.next += used as u64;
            lines += u64::from(newline.is_some());
            rest = &rest[used..];
        }
        (bytes.len() - rest.len(), lines)
    }

    /// Adds a part to the present line and looks at it if it is all there, or as long as it may be; says whether the rest of
    /// the line is passed over.
    fn lengthen(&mut self, part: &[u8], is_all: bool, each: &mut impl FnMut(Match<'_>)) -> bool {
        let kept = &part[..part.len().min(LINE_MOST - self.open.len())];
        let is_cut = kept.len() < part.len();
        if !is_all && !is_cut {
            self.open.extend_from_slice(kept);
        } else if self.open.is_empty() {
            self.set.look(self.stream, self.next, kept, each);
        } else {
            let offset = self.open_at();
            self.open.extend_from_slice(kept);
            self.set.look(self.stream, offset, &self.open, each);
            self.open.clear();
        }
        is_cut
    }
}

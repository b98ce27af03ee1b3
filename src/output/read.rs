//! Reading back: from an offset, both streams merged by time, or the last lines.

use memchr::memrchr_iter;

use super::file::SpoolFile;
use super::lines::{Colours, escape};
use super::spool::{Spool, Track};
use super::store::Store;
use crate::model::error::Error;
use crate::model::id::AgentId;
use crate::model::stream::Stream;
use crate::model::time::Wall;

/// The longest piece, in bytes.
const PIECE_MOST: usize = 256 << 10;

/// The most steps (a piece, or a hole passed over) of one call: an agent can make its file as full of holes as it likes.
const STEPS_MOST: usize = 256;

/// How much one step of a [`Tail`] looks at, in bytes.
const TAIL_STEP: u64 = 4 << 20;

/// How much is looked at in one go when lines are counted backwards, in bytes.
const CHUNK: usize = 64 << 10;

/// A stretch of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The stream that it is from.
    pub stream: Stream,
    /// The offset of its first byte.
    pub offset: u64,
    /// When its bytes were first seen: a service interval late at the most. `None` if they were written since the last
    /// [`Spool::service`], or seen by an earlier daemon.
    pub time: Option<Wall>,
    /// Its bytes, at least one.
    pub bytes: Vec<u8>,
}

/// Where a reader stands in each stream: the offset of the next byte that it wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The next offset of stdout; `None` if stdout is not read.
    pub stdout: Option<u64>,
    /// The next offset of stderr; `None` if stderr is not read.
    pub stderr: Option<u64>,
}

impl Cursor {
    /// Returns a cursor for one stream, or for both, at these offsets.
    #[must_use]
    pub fn at(only: Option<Stream>, offset: impl Fn(Stream) -> u64) -> Self {
        let at = |stream| only.is_none_or(|only| only == stream).then(|| offset(stream));
        Self { stdout: at(Stream::Stdout), stderr: at(Stream::Stderr) }
    }

    /// Returns where the reader stands in a stream.
    #[must_use]
    pub fn get(&self, stream: Stream) -> Option<u64> {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    /// Sets where the reader stands in a stream.
    pub fn set(&mut self, stream: Stream, offset: Option<u64>) {
        match stream {
            Stream::Stdout => self.stdout = offset,
            Stream::Stderr => self.stderr = offset,
        }
    }
}

/// How many bytes were asked for and do not exist any more, in each stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Bytes of stdout.
    pub stdout: u64,
    /// Bytes of stderr.
    pub stderr: u64,
}

impl Gone {
    fn of(&mut self, stream: Stream) -> &mut u64 {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// What one call of [`Spool::read`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The bytes, in the order in which they were seen.
    pub pieces: Vec<Piece>,
    /// What the cursor passed over.
    pub gone: Gone,
    /// Whether the cursor reached the end of every stream that it reads, as that was during the call. If not, there is
    /// more to read at once, even when this call had only holes to pass over.
    pub at_end: bool,
    /// The offset of each file's first byte, as the reader knew it.
    bases: [u64; 2],
}

/// When a byte was seen, as far as known: the order of a merged read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    ByAnEarlierDaemon,
    At(Wall),
    NotYet,
}

/// One stream during one call.
struct Source<'a> {
    stream: Stream,
    track: &'a Track,
    file: SpoolFile,
    /// Whether it was still the file that was seen when the call began.
    is_continued: bool,
    /// The next offset.
    at: u64,
    /// The stream's end as it is now; the last seen end may be less.
    end: u64,
    /// Whether the file takes less space than what is kept of it is long: then there are holes in it.
    is_sparse: bool,
    gone: u64,
}

impl Spool {
    /// Reads on from a cursor, at most `budget` bytes, and moves the cursor over what it returns and over what is gone.
    ///
    /// Of one stream come exactly the kept bytes in order. Two streams are merged by the times at which their bytes were
    /// first seen, pieces cut where the time changes, stdout first among equals. The files are read as they are now:
    /// bytes written since the last [`Spool::service`] are there too, last. Of a file that was truncated since then
    /// nothing is told: service it first. If one is truncated during the call, nothing is read. A cursor beyond the end stays
    /// there. A page that a copy of the spool has read is good only after [`Spool::confirm`].
    ///
    /// # Errors
    /// Those of [`Spool::service`]. The cursor is then where it was.
    pub fn read(&self, store: &Store, id: &AgentId, cursor: &mut Cursor, budget: usize) -> Result<Read, Error> {
        let mut sources = Vec::with_capacity(2);
        for stream in Stream::ALL {
            if let Some(at) = cursor.get(stream) {
                sources.push(self.source(store, id, stream, at)?);
            }
        }
        let mut read = Read::default();
        let mut room = budget;
        for _ in 0..STEPS_MOST {
            let unread = sources.iter_mut().filter(|source| source.at < source.end);
            let Some(source) = unread.min_by_key(|source| source.seen()) else { break };
            if room == 0 {
                break;
            }
            if let Some(piece) = source.step(room)? {
                room -= piece.bytes.len();
                read.pieces.push(piece);
            }
        }
        read.at_end = sources.iter().all(|source| source.at >= source.end);
        for source in &sources {
            if source.is_continued && !source.track.is_continued_by(&source.file, source.file.size()?)? {
                // Its bytes may be new ones, which have no offset yet.
                return Ok(Read::default());
            }
        }
        for source in sources {
            read.bases[source.stream as usize] = source.track.base;
            cursor.set(source.stream, Some(source.at));
            *read.gone.of(source.stream) = source.gone;
        }
        Ok(read)
    }

    /// Takes out of a page, which an earlier copy of this spool has read, what may not be the output that was written: bytes that
    /// were given up meanwhile may have been read as the zeros of a hole, and those of a file that was truncated meanwhile have
    /// other offsets now. What is taken out counts as gone, or is read again from the cursor, which stands behind the page.
    ///
    /// A hole is dug only below what [`Spool::bounds`] says is kept: where that has not moved past a byte by now, it was read before.
    pub fn confirm(&self, read: &mut Read, cursor: &mut Cursor) {
        for stream in Stream::ALL {
            let Some(next) = cursor.get(stream) else { continue };
            let track = self.track(stream);
            let is_same_file = read.bases[stream as usize] == track.base;
            let mut lost = 0;
            read.pieces.retain_mut(|piece| {
                if piece.stream == stream {
                    let length = piece.bytes.len() as u64;
                    let below =
                        if is_same_file { track.start.saturating_sub(piece.offset).min(length) } else { length };
                    piece.bytes.drain(..usize::try_from(below).unwrap_or(usize::MAX));
                    piece.offset += below;
                    lost += below;
                }
                !piece.bytes.is_empty()
            });
            let gone = read.gone.of(stream);
            *gone += lost;
            if !is_same_file {
                let from = next - *gone;
                let next = next.min(track.base).max(from);
                *gone = next - from;
                read.at_end = false;
                cursor.set(stream, Some(next));
            }
        }
    }

    /// Returns a stream's last lines as text that is safe to show ([`escape`]), looking at its last `max_bytes` bytes only.
    /// A line whose beginning is not among them begins with `…`.
    ///
    /// # Errors
    /// Those of [`Spool::service`].
    pub fn last_lines(
        &self,
        store: &Store,
        id: &AgentId,
        stream: Stream,
        lines: usize,
        max_bytes: usize,
    ) -> Result<Vec<String>, Error> {
        let source = self.source(store, id, stream, 0)?;
        let from = source.end.saturating_sub(max_bytes as u64).max(source.at);
        let first = from - source.track.base;
        let is_cut = first > 0 && source.file.read_at(first - 1, 1)? != b"\n";
        let mut cursor = Cursor::default();
        cursor.set(stream, Some(from));
        let read = self.read(store, id, &mut cursor, max_bytes)?;
        let bytes: Vec<u8> = read.pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        let all: Vec<&[u8]> = bytes.strip_suffix(b"\n").unwrap_or(&bytes).split(|byte| *byte == b'\n').collect();
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let skipped = all.len().saturating_sub(lines);
        let text = |(index, line): (usize, &&[u8])| {
            let cut = if index == 0 && is_cut { "…" } else { "" };
            format!("{cut}{}", escape(line, Colours::Escaped))
        };
        Ok(all.iter().enumerate().skip(skipped).map(text).collect())
    }

    fn source(&self, store: &Store, id: &AgentId, stream: Stream, at: u64) -> Result<Source<'_>, Error> {
        let track = self.track(stream);
        let file = store.spool_file(id, stream)?;
        let (size, space) = file.size_and_space()?;
        let is_continued = track.is_continued_by(&file, size)?;
        // A truncated file: as the next service will have it, but its bytes have no offset yet.
        let start = if is_continued { track.start } else { track.end };
        let end = if is_continued { track.base.saturating_add(size) } else { track.end };
        let is_sparse = space < end - start;
        let gone = start.saturating_sub(at);
        Ok(Source { stream, track, file, is_continued, at: at.max(start), end, is_sparse, gone })
    }
}

impl Source<'_> {
    fn seen(&self) -> Seen {
        match self.track.marks.time_at(self.at) {
            _ if self.at >= self.track.end => Seen::NotYet,
            Some(time) => Seen::At(time),
            None => Seen::ByAnEarlierDaemon,
        }
    }

    /// Reads up to where the time changes, a hole begins, or the room ends; or passes over a hole.
    fn step(&mut self, room: usize) -> Result<Option<Piece>, Error> {
        let base = self.track.base;
        let from = self.at - base;
        let mut hole = u64::MAX;
        // To look for holes is to wait for the agent's writes.
        if self.is_sparse {
            let data = base.saturating_add(self.file.data_from(from)?.unwrap_or(u64::MAX)).min(self.end);
            if data > self.at {
                self.gone += data - self.at;
                self.at = data;
                return Ok(None);
            }
            hole = base.saturating_add(self.file.hole_from(from)?);
        }
        let seen_end = if self.at < self.track.end { self.track.end } else { u64::MAX };
        let mark = self.track.marks.next_after(self.at).unwrap_or(u64::MAX);
        let stop = self.end.min(hole).min(seen_end).min(mark);
        let most = room.min(PIECE_MOST);
        let length = usize::try_from(stop - self.at).map_or(most, |length| length.min(most));
        let time = match self.seen() {
            Seen::At(time) => Some(time),
            Seen::ByAnEarlierDaemon | Seen::NotYet => None,
        };
        let bytes = self.file.read_at(from, length)?;
        if bytes.is_empty() {
            // The file was truncated while it was read: the next service will tell.
            self.end = self.at;
            return Ok(None);
        }
        let piece = Piece { stream: self.stream, offset: self.at, time, bytes };
        self.at += piece.bytes.len() as u64;
        Ok(Some(piece))
    }

    /// Looks for `lines` more line beginnings, from `upper` back to `least`, in a bounded part of the file.
    fn look_back(&self, back: &mut Back, least: u64) -> Result<Option<u64>, Error> {
        if back.lines == 0 {
            return Ok(Some(back.end));
        }
        let stop = back.upper.saturating_sub(TAIL_STEP).max(least);
        while back.upper > stop {
            let lower = back.upper.saturating_sub(CHUNK as u64).max(least);
            let length = usize::try_from(back.upper - lower).unwrap_or(CHUNK);
            let bytes = self.file.read_at(lower - self.track.base, length)?;
            for index in memrchr_iter(b'\n', &bytes) {
                let next = lower + index as u64 + 1;
                // The newline at the very end ends the last line, it does not begin another.
                if next == back.end {
                    continue;
                }
                back.lines -= 1;
                if back.lines == 0 {
                    return Ok(Some(next));
                }
            }
            back.upper = lower;
        }
        Ok((back.upper <= least).then_some(least))
    }
}

/// A search for where the last lines of streams begin, in steps: what is kept may be long, and all of it one line.
#[derive(Clone, Debug)]
pub struct Tail {
    lines: usize,
    /// The streams that are still to be looked at, the present one last.
    streams: Vec<Stream>,
    present: Option<Back>,
    cursor: Cursor,
}

/// How far one stream was looked at.
#[derive(Clone, Copy, Debug)]
struct Back {
    lines: usize,
    end: u64,
    upper: u64,
}

impl Tail {
    /// Begins a search in one stream, or in both.
    #[must_use]
    pub fn new(only: Option<Stream>, lines: usize) -> Self {
        let streams = only.map_or_else(|| Stream::ALL.to_vec(), |only| vec![only]);
        Self { lines, streams, present: None, cursor: Cursor::default() }
    }

    /// Looks on, at 4 MiB at most. Returns the cursor from which each stream has so many more lines, or all that there ever was: a merged
    /// read from there begins with at most so many lines of each stream. None if there is more to look at.
    ///
    /// # Errors
    /// Those of [`Spool::service`].
    pub fn step(&mut self, spool: &Spool, store: &Store, id: &AgentId) -> Result<Option<Cursor>, Error> {
        let Some(stream) = self.streams.last().copied() else { return Ok(Some(self.cursor)) };
        let source = spool.source(store, id, stream, 0)?;
        // More than the bound is there only if the agent made it so; it is not worth the time.
        let least = source.end.saturating_sub(spool.most()).max(source.at);
        let back = self.present.get_or_insert(Back { lines: self.lines, end: source.end, upper: source.end });
        if let Some(offset) = source.look_back(back, least)? {
            // Fewer lines than were asked for: the reader learns what is gone before them.
            let is_short = self.lines > 0 && offset == source.at;
            self.cursor.set(stream, Some(if is_short { 0 } else { offset }));
            self.streams.pop();
            self.present = None;
        }
        Ok(self.streams.is_empty().then_some(self.cursor))
    }
}

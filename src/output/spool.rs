//! One agent's bookkeeping: how far its streams reach, when they grew, and what was given back.

use super::file::SpoolFile;
use super::marks::Marks;
use super::store::Store;
use crate::model::error::Error;
use crate::model::id::AgentId;
use crate::model::stream::Stream;
use crate::model::time::Wall;
use crate::model::units::Bytes;

/// How much of each stream is kept unless someone says otherwise.
pub const CAP_DEFAULT: Bytes = Bytes(16 << 20);

/// The least that can be kept of each stream.
pub const CAP_LEAST: Bytes = Bytes(64 << 10);

/// Holes begin and end at multiples of this: whole blocks on every file system (the largest have 64 KiB).
const ALIGN: u64 = 64 << 10;

/// The most that one call gives back: 6 ms of the kernel's work on ext4, 16 ms on tmpfs. More than that is there only after
/// a time without a daemon.
const PUNCH_MOST: u64 = 128 << 20;

/// How many bytes before the end are remembered, to notice that the file is not the one that was seen.
const TAIL: usize = 16;

/// The bookkeeping of one agent's two streams: under 200 bytes, and at most 2 KiB of marks.
#[derive(Clone, Debug)]
pub struct Spool {
    cap: u64,
    tracks: [Track; 2],
}

/// What one call of [`Spool::service`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serviced {
    /// Whether there are bytes that the last call had not seen.
    pub grew: bool,
    /// The stream's end now, in bytes since its beginning.
    pub end: u64,
    /// The first offset that is kept.
    pub start: u64,
    /// How many bytes of the stream this call gave up.
    pub punched: u64,
    /// Whether there is more to give back than one call does: call again soon, without waiting for news.
    pub unfinished: bool,
    /// What went wrong without harm to the output itself (space could not be given back, a shift not be stored);
    /// told once, until it works again.
    pub fault: Option<Error>,
}

impl Spool {
    /// Makes the bookkeeping for files that were just created. `cap` is what is kept of each stream, in bytes, from
    /// [`CAP_LEAST`]; less counts as that.
    #[must_use]
    pub fn new(cap: Bytes) -> Self {
        Self { cap: cap.0.max(CAP_LEAST.0), tracks: Default::default() }
    }

    /// Makes the bookkeeping for files that an earlier daemon left. When their bytes were seen is forgotten.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`](crate::model::error::Code::NoSuchAgent); those of the kernel.
    pub fn recover(store: &Store, id: &AgentId, cap: Bytes) -> Result<Self, Error> {
        let mut spool = Self::new(cap);
        for stream in Stream::ALL {
            let file = store.spool_file(id, stream)?;
            let size = file.size()?;
            let data = file.data_from(0)?.unwrap_or(size).min(size);
            let base = store.base(id, stream)?;
            let track = &mut spool.tracks[stream as usize];
            track.base = base;
            track.start = base.saturating_add(data);
            track.end = base.saturating_add(size);
            track.tail = Tail::of(&file, size)?;
        }
        Ok(spool)
    }

    /// Returns the first kept offset and the end of a stream, as of the last [`Spool::service`].
    #[must_use]
    pub fn bounds(&self, stream: Stream) -> (u64, u64) {
        let track = self.track(stream);
        (track.start, track.end)
    }

    /// Returns the most that is kept of each stream when a call of [`Spool::service`] is finished, in bytes.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.limit().saturating_add(ALIGN)
    }

    /// Looks at a stream's file: notes how far it grew, and gives back what is older than the cap.
    ///
    /// `now` is the time that the new bytes get. A call without news changes nothing.
    ///
    /// # Errors
    /// [`Code::NoSuchAgent`](crate::model::error::Code::NoSuchAgent);
    /// [`Code::WrongState`](crate::model::error::Code::WrongState) if something else stands in the file's place; those of
    /// the kernel. The bookkeeping is then as it was.
    pub fn service(&mut self, store: &Store, id: &AgentId, stream: Stream, now: Wall) -> Result<Serviced, Error> {
        let (cap, limit) = (self.cap, self.limit());
        let track = &mut self.tracks[stream as usize];
        let file = store.spool_file(id, stream)?;
        let size = file.size()?;
        let is_continued = track.is_continued_by(&file, size)?;
        let tail = Tail::of(&file, size)?;

        let mut stored = Ok(());
        if !is_continued {
            stored = store.set_base(id, stream, track.end);
            track.base = track.end;
            track.start = track.end;
        }
        let end = track.base.saturating_add(size);
        let grew = end > track.end;
        if grew {
            track.marks.note(track.end, now);
        }
        track.end = end;
        track.tail = tail;

        let before = track.start;
        let trimmed = if store.punches() { track.trim(&file, size, cap, limit) } else { Ok(false) };
        let punched = track.start - before;
        track.marks.forget_below(track.start);
        let unfinished = *trimmed.as_ref().unwrap_or(&false);
        let works = punched > 0 || !is_continued;
        let fault = track.told_once(stored.and(trimmed.map(drop)), works);
        Ok(Serviced { grew, end, start: track.start, punched, unfinished, fault })
    }

    pub(super) fn track(&self, stream: Stream) -> &Track {
        &self.tracks[stream as usize]
    }

    /// From here on giving back is worth a call.
    fn limit(&self) -> u64 {
        self.cap.saturating_add(self.cap / 8)
    }
}

/// One stream, in stream offsets: `base ≤ start ≤ end`.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    /// The offset of the file's first byte: 0, until somebody truncates the file.
    pub(super) base: u64,
    /// The first kept offset.
    pub(super) start: u64,
    /// The last seen end.
    pub(super) end: u64,
    pub(super) marks: Marks,
    tail: Tail,
    /// Whether the present fault was told.
    told: bool,
}

impl Track {
    /// Says whether a file of this size still holds, before the last seen end, what was seen there.
    pub(super) fn is_continued_by(&self, file: &SpoolFile, size: u64) -> Result<bool, Error> {
        let seen = self.end - self.base;
        Ok(size >= seen && (seen == 0 || Tail::of(file, seen)? == self.tail))
    }

    /// Gives back whole blocks below the cap, if enough came together; says whether there is more to do.
    fn trim(&mut self, file: &SpoolFile, size: u64, cap: u64, limit: u64) -> Result<bool, Error> {
        let from = self.start - self.base;
        let to = size.saturating_sub(cap) / ALIGN * ALIGN;
        if size.saturating_sub(from) <= limit || to <= from {
            return Ok(false);
        }
        let from = from / ALIGN * ALIGN;
        let mut stop = to.min(from + PUNCH_MOST);
        file.punch(from, stop)?;
        if stop < to {
            // Where the agent left the file sparse there is nothing to give back, be it ever so long.
            let data = file.data_from(stop)?.unwrap_or(to);
            stop = to.min(data / ALIGN * ALIGN).max(stop);
        }
        self.start = self.base.saturating_add(stop);
        Ok(stop < to)
    }

    fn told_once(&mut self, outcome: Result<(), Error>, works: bool) -> Option<Error> {
        match outcome {
            Ok(()) => {
                self.told &= !works;
                None
            }
            Err(_) if self.told => None,
            Err(error) => {
                self.told = true;
                Some(error)
            }
        }
    }
}

/// The last bytes before an end, then zeros if there are fewer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tail([u8; TAIL]);

impl Tail {
    fn of(file: &SpoolFile, end: u64) -> Result<Self, Error> {
        let from = end.saturating_sub(TAIL as u64);
        let read = file.read_at(from, usize::try_from(end - from).unwrap_or(TAIL))?;
        let mut tail = Self::default();
        tail.0[..read.len()].copy_from_slice(&read);
        Ok(tail)
    }
}

//! One agent's bookkeeping: how far its streams reach, when they grew, and what was given back.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

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

/// The most that one hole gives back: 6 ms of the kernel's work on ext4, 16 ms on tmpfs. More than that is there only after
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

/// What one call of [`Spool::service`] found.
#[derive(Debug)]
pub struct Serviced {
    /// Whether there are bytes that the last call had not seen.
    pub grew: bool,
    /// The stream's end now, in bytes since its beginning.
    pub end: u64,
    /// The first offset that is kept.
    pub start: u64,
    /// Space of this stream that is to be given back now: whoever digs the hole tells [`Spool::hole_dug`].
    pub hole: Option<Hole>,
    /// What went wrong without harm to the output itself (a shift could not be stored); told once, until it works again.
    pub fault: Option<Error>,
}

/// Space to give back: a stretch of one file, below what is kept. It holds the file open.
#[derive(Debug)]
pub struct Hole {
    stream: Stream,
    file: SpoolFile,
    base: u64,
    /// In stream offsets, as all that follows.
    from: u64,
    to: u64,
    /// How far there is more to give back.
    until: u64,
    /// The end of what was seen, and what stands before it.
    seen: (u64, Tail),
}

/// A hole, or what came in the way.
#[derive(Debug)]
pub struct Dug {
    stream: Stream,
    /// Where the hole was to end.
    to: u64,
    /// Up to where nothing is left to give back.
    outcome: Result<u64, Error>,
}

/// When the bytes of a stream were seen, for a later daemon.
#[derive(Debug)]
pub struct Times {
    dir: OwnedFd,
    stream: Stream,
    bytes: Vec<u8>,
}

impl Times {
    /// Stores it. This can wait for a disk.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn store(self) -> Result<(), Error> {
        super::store::write_times(&self.dir, self.stream, &self.bytes)
    }
}

impl Hole {
    /// Gives the space back. **This waits for the agent's writes to the file**, and an agent that is given no CPU in the middle of
    /// one takes its time: not for a thread that somebody else waits for.
    #[must_use]
    pub fn dig(self) -> Dug {
        Dug { stream: self.stream, to: self.to, outcome: self.punch() }
    }

    fn punch(&self) -> Result<u64, Error> {
        let (seen, tail) = &self.seen;
        if !tail.stands_in(&self.file, self.file.size()?, *seen)? {
            // It was truncated meanwhile, and what stands there is new.
            return Ok(self.to);
        }
        self.file.punch(self.from - self.base, self.to - self.base)?;
        if self.to == self.until {
            return Ok(self.to);
        }
        // Where the agent left the file sparse there is nothing to give back, be it ever so long.
        let data = self.file.data_from(self.to - self.base)?.map_or(u64::MAX, |data| data / ALIGN * ALIGN);
        Ok(self.base.saturating_add(data).clamp(self.to, self.until))
    }
}

impl Dug {
    /// Returns the stream whose file it is in.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream
    }
}

impl Spool {
    /// Makes the bookkeeping for files that were just created. `cap` is what is kept of each stream, in bytes, from
    /// [`CAP_LEAST`]; less counts as that.
    #[must_use]
    pub fn new(cap: Bytes) -> Self {
        Self { cap: cap.0.max(CAP_LEAST.0), tracks: Default::default() }
    }

    /// Makes the bookkeeping for files that an earlier daemon left.
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
            track.freed = base.saturating_add(data / ALIGN * ALIGN);
            track.end = base.saturating_add(size);
            track.tail = Tail::of(&file, size)?;
            // What was seen after the last time that this was stored is as old as the last write, at most.
            let (marks, told) = Marks::from_bytes(&store.times(id, stream)?);
            track.marks = marks;
            if told < track.end || track.marks.time_at(track.start).is_none() {
                track.marks.note(told.clamp(track.start, track.end), file.written_at()?);
            }
        }
        Ok(spool)
    }

    /// Returns the first kept offset and the end of a stream, as of the last [`Spool::service`].
    #[must_use]
    pub fn bounds(&self, stream: Stream) -> (u64, u64) {
        let track = self.track(stream);
        (track.start, track.end)
    }

    /// Returns when the bytes of a stream were seen, to be stored for a later daemon.
    ///
    /// # Errors
    /// As [`Store::watch_dir`].
    pub fn times(&self, store: &Store, id: &AgentId, stream: Stream) -> Result<Times, Error> {
        let track = self.track(stream);
        Ok(Times { dir: store.watch_dir(id)?, stream, bytes: track.marks.to_bytes(track.end) })
    }

    /// Returns the most that is kept of each stream after a call of [`Spool::service`], in bytes.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.limit().saturating_add(ALIGN)
    }

    /// Looks at a stream's file: notes how far it grew, and gives up what is older than the cap. The space of that is given back
    /// by whoever digs the hole that is asked for: one at a time.
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
            (track.base, track.start, track.freed, track.digging) = (track.end, track.end, track.end, None);
        }
        let end = track.base.saturating_add(size);
        let grew = end > track.end;
        if grew {
            track.marks.note(track.end, now);
        }
        track.end = end;
        track.tail = tail;
        if store.punches() {
            track.give_up(size, cap, limit);
        }
        track.marks.forget_below(track.start);
        track.told &= is_continued || stored.is_err();
        let fault = stored.err().and_then(|fault| track.tell_once(fault));
        Ok(Serviced { grew, end, start: track.start, hole: track.next_hole(stream, file), fault })
    }

    /// Notes what became of a hole. Returns whether there is more to give back: [`Spool::service`] has the next hole.
    ///
    /// # Errors
    /// The space could not be given back: told once, until it works again. It is tried again at the next call of
    /// [`Spool::service`].
    pub fn hole_dug(&mut self, dug: Dug) -> Result<bool, Error> {
        let track = &mut self.tracks[dug.stream as usize];
        if track.digging.map(NonZeroU64::get) != Some(dug.to) {
            // Of a file that was truncated since.
            return Ok(false);
        }
        track.digging = None;
        match dug.outcome {
            Ok(freed) => {
                (track.freed, track.told) = (freed, false);
                Ok(freed < track.aligned_start())
            }
            Err(fault) => track.tell_once(fault).map_or(Ok(false), Err),
        }
    }

    pub(super) fn track(&self, stream: Stream) -> &Track {
        &self.tracks[stream as usize]
    }

    /// From here on giving back is worth a call.
    fn limit(&self) -> u64 {
        self.cap.saturating_add(self.cap / 8)
    }
}

/// One stream, in stream offsets: `base ≤ freed ≤ start ≤ end`.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    /// The offset of the file's first byte: 0, until somebody truncates the file.
    pub(super) base: u64,
    /// The first kept offset.
    pub(super) start: u64,
    /// Up to where the space was given back; a whole number of blocks from `base`.
    freed: u64,
    /// Where the hole ends that is being dug.
    digging: Option<NonZeroU64>,
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
        self.tail.stands_in(file, size, self.end - self.base)
    }

    /// Gives up whole blocks below the cap, if enough came together.
    fn give_up(&mut self, size: u64, cap: u64, limit: u64) {
        let to = self.base.saturating_add(size.saturating_sub(cap) / ALIGN * ALIGN);
        if self.end - self.start > limit && to > self.start {
            self.start = to;
        }
    }

    /// What is given up, without the block that holds the first kept byte.
    fn aligned_start(&self) -> u64 {
        self.base + (self.start - self.base) / ALIGN * ALIGN
    }

    /// Returns the hole that is to be dug now, if there is one and none is being dug.
    fn next_hole(&mut self, stream: Stream, file: SpoolFile) -> Option<Hole> {
        let until = self.aligned_start();
        if self.digging.is_some() || self.freed >= until {
            return None;
        }
        let to = until.min(self.freed.saturating_add(PUNCH_MOST));
        self.digging = NonZeroU64::new(to);
        let seen = (self.end - self.base, self.tail.clone());
        Some(Hole { stream, file, base: self.base, from: self.freed, to, until, seen })
    }

    /// Returns a fault, unless it was told before.
    fn tell_once(&mut self, fault: Error) -> Option<Error> {
        (!std::mem::replace(&mut self.told, true)).then_some(fault)
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

    /// Says whether a file of this size still has these bytes before an end that was seen.
    fn stands_in(&self, file: &SpoolFile, size: u64, end: u64) -> Result<bool, Error> {
        Ok(size >= end && (end == 0 || Self::of(file, end)? == *self))
    }
}

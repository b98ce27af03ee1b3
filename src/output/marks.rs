//! When which byte was seen: sparse pairs of offset and time, the newest precise, coarser with age.

use crate::model::time::Wall;

/// The most marks of one stream; 16 bytes each.
pub(super) const MARKS_MOST: usize = 64;

/// From this offset on the stream's bytes were first seen at this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    offset: u64,
    time: Wall,
}

/// The marks of one stream, both offsets and times strictly ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks(Vec<Mark>);

impl Marks {
    /// Notes that the bytes from `offset` on were first seen at `time`. A clock that went back counts as standing still.
    pub(super) fn note(&mut self, offset: u64, time: Wall) {
        if self.0.last().is_some_and(|last| last.time >= time || last.offset >= offset) {
            return;
        }
        if self.0.len() == MARKS_MOST {
            let mut index = 0;
            self.0.retain(|_| {
                index += 1;
                index > MARKS_MOST / 2 || index % 2 == 1
            });
        }
        self.0.push(Mark { offset, time });
    }

    /// Drops the marks that tell nothing about `start` and what follows it.
    pub(super) fn forget_below(&mut self, start: u64) {
        let below = self.0.partition_point(|mark| mark.offset <= start);
        self.0.drain(..below.saturating_sub(1));
    }

    /// Returns the marks as they are stored: after `end`, up to which they say something, each offset and time.
    pub(super) fn to_bytes(&self, end: u64) -> Vec<u8> {
        let marks = self.0.iter().flat_map(|mark| [mark.offset, mark.time.0]);
        std::iter::once(end).chain(marks).flat_map(u64::to_le_bytes).collect()
    }

    /// Reads stored marks, and up to where they say something; none if they are damaged, and of damaged ones those before.
    pub(super) fn from_bytes(bytes: &[u8]) -> (Self, u64) {
        let mut numbers = bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
        let mut marks = Self::default();
        let end = numbers.next().unwrap_or(0);
        while let (Some(offset), Some(time)) = (numbers.next(), numbers.next()) {
            marks.note(offset, Wall(time));
        }
        (marks, end)
    }

    /// Returns when the byte at `offset` was first seen, if that is known.
    pub(super) fn time_at(&self, offset: u64) -> Option<Wall> {
        let below = self.0.partition_point(|mark| mark.offset <= offset);
        below.checked_sub(1).map(|index| self.0[index].time)
    }

    /// Returns where the next mark after `offset` stands.
    pub(super) fn next_after(&self, offset: u64) -> Option<u64> {
        self.0.get(self.0.partition_point(|mark| mark.offset <= offset)).map(|mark| mark.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_bounded_and_the_newest_half_is_precise() {
        let mut marks = Marks::default();
        for step in 0..10_000 {
            marks.note(step * 10, Wall(step + 1));
            assert!(marks.0.len() <= MARKS_MOST);
        }
        assert!(marks.0.windows(2).all(|pair| pair[0].offset < pair[1].offset && pair[0].time < pair[1].time));
        for step in 9_980..10_000 {
            assert_eq!(marks.time_at(step * 10 + 9), Some(Wall(step + 1)));
        }
        let old = marks.time_at(50_000).expect("the first mark is kept").0;
        assert!(old <= 5_001, "a dropped mark makes bytes older, never younger");
        assert_eq!(marks.next_after(99_989), Some(99_990));
        assert_eq!(marks.next_after(99_990), None);
    }

    #[test]
    fn what_was_stored_says_the_same_and_what_is_damaged_says_less() {
        let mut marks = Marks::default();
        for step in 0..100 {
            marks.note(step * 10, Wall(step + 1));
        }
        let bytes = marks.to_bytes(1_000);
        assert_eq!(Marks::from_bytes(&bytes), (marks, 1_000));
        assert_eq!(Marks::from_bytes(&[]), (Marks::default(), 0));
        for length in 0..bytes.len() {
            let (cut, _) = Marks::from_bytes(&bytes[..length]);
            assert!(cut.0.len() <= MARKS_MOST && cut.0.iter().all(|mark| mark.offset < 1_000));
        }
        let (noise, _) = Marks::from_bytes(&[0xff; 8 * 2001]);
        assert!(noise.0.len() <= MARKS_MOST);
    }

    #[test]
    fn the_mark_that_covers_the_start_is_kept() {
        let mut marks = Marks::default();
        for step in 0..4 {
            marks.note(step * 10, Wall(step + 1));
        }
        marks.forget_below(15);
        assert_eq!(marks.time_at(9), None);
        assert_eq!(marks.time_at(15), Some(Wall(2)));
        assert_eq!(marks.0.len(), 3);
    }

    #[test]
    fn a_clock_that_goes_back_stands_still() {
        let mut marks = Marks::default();
        marks.note(0, Wall(5));
        marks.note(10, Wall(3));
        assert_eq!(marks.time_at(10), Some(Wall(5)));
    }
}

//! The agents of a keeper, found by their tokens: open addressing in a fixed piece of memory, as the keeper has no allocator.
//!
//! Places do not move, so that a number of a place is what `epoll` repeats. All zero is an empty table.

/// How many agents there can be.
pub(super) const AGENTS_MAX: usize = 16 << 10;

/// How many places there are: twice as many, so that searches end soon.
const PLACES: usize = 2 * AGENTS_MAX;

/// Who was here is gone, and a search goes on behind it. No inode has this number.
const GONE: u64 = u64::MAX;

/// One agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The token; 0 where nobody ever was, which is no inode's number.
    pub token: u64,
    pub streams: [Stream; 2],
    /// Whether a daemon has kept it since it greeted.
    pub is_kept: bool,
}

/// One stream of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub pipe: i32,
    pub spool: i32,
    pub state: State,
    /// How many more times its bytes are taken at once, as its pipe was full when they were left to gather.
    pub hurry: u8,
    /// How many times it was the last time.
    pub hurried: u8,
}

/// What a stream waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// It is closed: its last writer ended while no daemon was there.
    Closed,
    /// For bytes.
    Idle,
    /// For its next turn: there are bytes.
    Busy,
    /// For the next tick: bytes gather in its pipe, and writes wake nobody.
    Gathering,
    /// For its file to take bytes again.
    Stuck,
    /// For nothing: another keeper splices it, and it is held open here.
    Held,
}

impl State {
    /// Says whether a stream is visited again without news from its pipe.
    pub fn waits(self) -> bool {
        matches!(self, Self::Busy | Self::Gathering | Self::Stuck)
    }
}

/// All agents.
pub(super) struct Table {
    places: [Place; PLACES],
    count: usize,
}

impl Table {
    /// Counts the agents.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns the agent at a place.
    pub fn at(&mut self, number: usize) -> Option<&mut Place> {
        self.places.get_mut(number).filter(|place| !matches!(place.token, 0 | GONE))
    }

    /// Finds an agent's place.
    pub fn find(&self, token: u64) -> Option<usize> {
        let found = walk(token).find(|number| matches!(self.places[*number].token, it if it == token || it == 0))?;
        (self.places[found].token == token && !matches!(token, 0 | GONE)).then_some(found)
    }

    /// Gives an agent a place; `None` if it has one, or there are too many.
    pub fn add(&mut self, token: u64, streams: [Stream; 2]) -> Option<usize> {
        if matches!(token, 0 | GONE) || self.count == AGENTS_MAX || self.find(token).is_some() {
            return None;
        }
        let free = walk(token).find(|number| matches!(self.places[*number].token, 0 | GONE))?;
        self.places[free] = Place { token, streams, is_kept: true };
        self.count += 1;
        Some(free)
    }

    /// Takes an agent's place away.
    pub fn remove(&mut self, number: usize) {
        let ends_search = self.places[(number + 1) % PLACES].token == 0;
        self.places[number].token = GONE;
        self.count -= 1;
        // What leads nowhere any more is free again: searches do not grow with the age of the table.
        let mut last = number;
        while ends_search && self.places[last].token == GONE {
            self.places[last].token = 0;
            last = (last + PLACES - 1) % PLACES;
        }
    }

    /// Returns the number behind the last place.
    pub fn end(&self) -> usize {
        if self.count == 0 { 0 } else { PLACES }
    }
}

/// The places where an agent can be, the likeliest first. Inode numbers follow one another: neighbours share a page.
fn walk(token: u64) -> impl Iterator<Item = usize> {
    let first = usize::try_from(token % PLACES as u64).unwrap_or(0);
    (0..PLACES).map(move |step| (first + step) % PLACES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream { pipe: 3, spool: 4, state: State::Idle, hurry: 0, hurried: 0 };

    /// Tests with an empty table, on a stack that holds it.
    fn with_table(test: fn(&mut Table)) {
        let nobody = Place { token: 0, streams: [STREAM; 2], is_kept: false };
        let thread = std::thread::Builder::new().stack_size(16 << 20);
        let thread = thread.spawn(move || test(&mut Table { places: [nobody; PLACES], count: 0 }));
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn agents_are_found_by_their_tokens_however_many_came_and_went() {
        with_table(come_and_go);
    }

    fn come_and_go(table: &mut Table) {
        let mut random = fastrand::Rng::with_seed(7);
        let mut model = std::collections::BTreeMap::new();
        for _ in 0..20_000 {
            // Few different first places, so that they are in each other's way.
            let token = random.u64(1..400) * PLACES as u64 + random.u64(0..4);
            match (table.find(token), model.get(&token)) {
                (Some(found), Some(known)) => {
                    assert_eq!(found, *known);
                    table.remove(found);
                    model.remove(&token);
                }
                (None, None) => drop(model.insert(token, table.add(token, [STREAM; 2]).unwrap())),
                other => panic!("{token}: {other:?}"),
            }
            assert_eq!(table.len(), model.len());
        }
    }

    #[test]
    fn a_full_table_refuses_and_an_emptied_one_is_as_at_the_beginning() {
        with_table(fill_and_empty);
    }

    fn fill_and_empty(table: &mut Table) {
        for token in 1..=AGENTS_MAX as u64 {
            assert!(table.add(token, [STREAM; 2]).is_some());
        }
        assert_eq!((table.add(AGENTS_MAX as u64 + 1, [STREAM; 2]), table.add(5, [STREAM; 2])), (None, None));
        for token in 1..=AGENTS_MAX as u64 {
            let place = table.find(token).unwrap();
            table.remove(place);
        }
        assert!(table.places.iter().all(|place| place.token == 0));
        assert_eq!((table.find(0), table.find(GONE), table.end()), (None, None, 0));
    }
}

//! Where choices come from: a seed, or a search that takes each in turn.

/// The source of every choice in a world.
pub enum Chance {
    /// A seed.
    Seed(fastrand::Rng),
    /// A list of choices to repeat; after its end always the first.
    Script { list: Vec<usize>, taken: Vec<(usize, usize)> },
}

impl Chance {
    /// Picks one of `n` things.
    pub fn pick(&mut self, n: usize) -> usize {
        assert!(n > 0, "there is something to choose from");
        match self {
            Self::Seed(rng) => rng.usize(0..n),
            Self::Script { list, taken } => {
                let choice = list.get(taken.len()).copied().unwrap_or(0);
                taken.push((choice, n));
                choice
            }
        }
    }

    /// Comes true `percent` times in a hundred; a search never takes it.
    pub fn comes(&mut self, percent: u32) -> bool {
        match self {
            Self::Seed(rng) => rng.u32(0..100) < percent,
            Self::Script { .. } => false,
        }
    }

    /// Picks one of these.
    pub fn of<T: Clone>(&mut self, things: &[T]) -> T {
        match self {
            Self::Seed(rng) => things[rng.usize(0..things.len())].clone(),
            Self::Script { .. } => things[0].clone(),
        }
    }
}

//! Who has something to do, each once, in the order in which they came: so nobody is served twice before everybody else was.

use std::collections::{BTreeSet, VecDeque};

/// A queue of clients in which each stands once.
#[derive(Debug, Default)]
pub(super) struct Rota {
    order: VecDeque<u64>,
    members: BTreeSet<u64>,
}

impl Rota {
    /// Adds somebody at the end, unless they are in already.
    pub fn insert(&mut self, id: u64) {
        if self.members.insert(id) {
            self.order.push_back(id);
        }
    }

    /// Takes out whoever has waited longest.
    pub fn pop(&mut self) -> Option<u64> {
        let id = self.order.pop_front()?;
        self.members.remove(&id);
        Some(id)
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

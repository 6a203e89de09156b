//! A cell on its own, for tests.

use super::*;

/// A cell with its own memory.
pub(super) struct Owned {
    pub(super) word: AtomicI64,
    pub(super) marks: AtomicU8,
    pub(super) stripe: AtomicU8,
    pub(super) cells: Cells,
}

impl Owned {
    pub(super) fn new() -> Self {
        Self {
            word: AtomicI64::new(SPECIAL),
            marks: AtomicU8::new(0),
            stripe: AtomicU8::new(0),
            cells: Cells::new(true),
        }
    }

    /// A present cell that lives in a stripe.
    pub(super) fn striped(value: i64) -> Self {
        let owned = Self::new();
        owned.set(0);
        owned.give_stripe();
        assert_ne!(owned.stripe.load(Ordering::Relaxed), 0);
        owned.set(value);
        owned
    }

    pub(super) fn give_stripe(&self) {
        self.cells.give_stripe(&self.cell(), lock(&self.cells.moves));
    }

    pub(super) fn cell(&self) -> Cell<'_> {
        Cell { word: &self.word, marks: &self.marks, stripe: &self.stripe }
    }

    pub(super) fn set(&self, value: i64) -> Content {
        self.cell().change(&self.cells, |_| Ok(Some(value))).unwrap().0
    }

    pub(super) fn delete(&self) -> Content {
        self.cell().change(&self.cells, |_| Ok(None)).unwrap().0
    }

    pub(super) fn get(&self) -> Content {
        self.cell().get(&self.cells)
    }

    pub(super) fn incr(&self, delta: i64) -> Result<i64, Overflow> {
        self.cell().incr(&self.cells, delta)
    }

    pub(super) fn add(&self, delta: i64, lane: usize) -> Result<(), Overflow> {
        self.cell().add(&self.cells, delta, lane)
    }

    /// Adds by way of a lane, opening it first.
    pub(super) fn add_in_lane(&self, delta: i64, lane: usize) -> bool {
        let number = self.stripe.load(Ordering::Relaxed);
        let Some(stripe) = self.cells.stripe(number) else { return false };
        stripe.force_lane(lane, delta)
    }
}

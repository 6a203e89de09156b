//! Operations on one counter: concurrent changes, the same for an owner with exclusive access, and the DIRTY mark.

use super::{CounterRef, CounterStore, Overflow};
use crate::atomics::Ordering;
use crate::cell::{self, Cell, Content};
use crate::write_batch_queue::{QueueFull, Room, WriteBatchQueue};

/// Mark: the counter waits in the write batch queue.
const DIRTY: u8 = 1;

impl CounterStore {
    /// The value, None if the counter is absent.
    pub fn get(&self, at: CounterRef) -> Option<i64> {
        self.cell(at).get(&self.cells)
    }

    /// The value, 0 if the counter is absent.
    pub fn value(&self, at: CounterRef) -> i64 {
        self.get(at).unwrap_or(0)
    }

    /// Does the counter exist?
    pub fn is_present(&self, at: CounterRef) -> bool {
        self.get(at).is_some()
    }

    /// Adds; gives the new value.
    pub fn incr(&self, at: CounterRef, delta: i64) -> Result<i64, Overflow> {
        self.cell(at).incr(&self.cells, delta)
    }

    /// Adds without returning the value. A contended counter gets stripes, so that threads stop slowing each other
    /// down.
    pub fn add(&self, at: CounterRef, delta: i64) -> Result<(), Overflow> {
        self.cell(at).add(&self.cells, delta, cell::own_lane())
    }

    /// Replaces the content, None if absent, with the result of `to`; gives the new one. `to` may run several times.
    pub fn change_with(
        &self,
        at: CounterRef,
        to: impl Fn(Option<i64>) -> Result<Option<i64>, Overflow>,
    ) -> Result<Option<i64>, Overflow> {
        self.cell(at).change(&self.cells, to).map(|(_, after)| after)
    }

    /// Sets the value; gives the old one, 0 if the counter was absent.
    pub fn set(&self, at: CounterRef, value: i64) -> i64 {
        before(self.cell(at).change(&self.cells, |_| Ok(Some(value)))).unwrap_or(0)
    }

    /// Takes the whole amount out. The counter then exists, at 0.
    pub fn drain(&self, at: CounterRef) -> i64 {
        self.set(at, 0)
    }

    /// Makes the counter absent; gives what it held, None if it was absent already.
    pub fn delete(&self, at: CounterRef) -> Option<i64> {
        before(self.cell(at).change(&self.cells, |_| Ok(None)))
    }

    /// [`incr`](Self::incr) for an owner.
    pub fn incr_mut(&mut self, at: CounterRef, delta: i64) -> Result<i64, Overflow> {
        let (_, after) = self.cell(at).change_alone(&self.cells, cell::plus(delta))?;
        Ok(after.unwrap_or(0))
    }

    /// [`set`](Self::set) for an owner.
    pub fn set_mut(&mut self, at: CounterRef, value: i64) -> i64 {
        before(self.cell(at).change_alone(&self.cells, |_| Ok(Some(value)))).unwrap_or(0)
    }

    /// [`drain`](Self::drain) for an owner.
    pub fn drain_mut(&mut self, at: CounterRef) -> i64 {
        self.set_mut(at, 0)
    }

    /// [`delete`](Self::delete) for an owner.
    pub fn delete_mut(&mut self, at: CounterRef) -> Option<i64> {
        before(self.cell(at).change_alone(&self.cells, |_| Ok(None)))
    }

    /// Does the counter wait in the queue?
    pub fn is_dirty(&self, at: CounterRef) -> bool {
        // Relaxed: exact under exclusive access, otherwise a hint.
        self.arena.at(at).head().marks.load(Ordering::Relaxed) & DIRTY != 0
    }

    /// Puts a changed counter into the queue unless it is already there. If this failed after the change was applied,
    /// the journal would miss the change, so concurrent callers [`reserve`](WriteBatchQueue::reserve) first and use
    /// [`mark_dirty_in`](Self::mark_dirty_in).
    pub fn mark_dirty(&self, at: CounterRef, queue: &WriteBatchQueue) -> Result<(), QueueFull> {
        if self.is_dirty(at) {
            return Ok(());
        }
        self.mark_dirty_in(at, &mut queue.reserve(1)?)
    }

    /// Puts a changed counter into reserved room, unless it is already in the queue.
    pub fn mark_dirty_in(&self, at: CounterRef, room: &mut Room<'_>) -> Result<(), QueueFull> {
        let marks = &self.arena.at(at).head().marks;
        // Relaxed: the drain, which clears the mark, excludes us; among concurrent callers the
        // read-modify-write decides who pushes.
        if marks.load(Ordering::Relaxed) & DIRTY != 0 {
            return Ok(());
        }
        if room.left() == 0 {
            return Err(QueueFull);
        }
        if marks.fetch_or(DIRTY, Ordering::Relaxed) & DIRTY == 0 {
            room.push(at, self.arrangement);
        }
        Ok(())
    }

    /// [`mark_dirty`](Self::mark_dirty) for an owner.
    pub fn mark_dirty_mut(&mut self, at: CounterRef, queue: &mut WriteBatchQueue) -> Result<(), QueueFull> {
        let marks = &self.arena.at(at).head().marks;
        let now = marks.load(Ordering::Relaxed);
        if now & DIRTY == 0 {
            queue.push_alone(at, self.arrangement)?;
            marks.store(now | DIRTY, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Clears the mark: the drain has taken the counter.
    pub(crate) fn mark_clean(&mut self, at: CounterRef) {
        let marks = &self.arena.at(at).head().marks;
        marks.store(marks.load(Ordering::Relaxed) & !DIRTY, Ordering::Relaxed);
    }

    fn cell(&self, at: CounterRef) -> Cell<'_> {
        self.arena.at(at).cell()
    }
}

/// The content before a change that can't overflow.
fn before(outcome: Result<(Content, Content), Overflow>) -> Content {
    match outcome {
        Ok((before, _)) => before,
        Err(Overflow) => unreachable!("only adding overflows"),
    }
}

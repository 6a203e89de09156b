//! Getting rid of absent counters by building the store anew.

use super::index::{Index, Slot};
use super::{Arena, CounterStore, Writer, next_arrangement};
use crate::atomics::{AtomicPtr, Mutex, locked_mut};
use crate::cell::Cells;

/// Fewer absent counters than this aren't worth the work.
const ABSENT_MIN: usize = 65_536;

impl CounterStore {
    /// Are more than half of the entries absent counters, and are they many? Where a counter was refused for want of
    /// room since, an eighth is enough, however few: a whole copy for less than that would cost more than it frees.
    pub fn wants_compaction(&mut self) -> bool {
        let Writer { entries, was_full, .. } = *locked_mut(&mut self.writer);
        let absent = entries.saturating_sub(self.len());
        if was_full { absent > entries / 8 } else { absent >= ABSENT_MIN && absent > entries / 2 }
    }

    /// Builds index and arena anew without the absent counters, in hash order; stripes are folded.
    /// All refs become invalid. Does nothing and gives false while a counter waits in the write
    /// batch queue, or if the memory for the copy can't be had.
    pub fn compact(&mut self) -> bool {
        // If this fails, the next refusal asks for it again.
        locked_mut(&mut self.writer).was_full = false;
        let Some(index) = Index::new(self.homes_wanted()) else { return false };
        let mut new = Self {
            seed: self.seed,
            shared_seed: self.shared_seed.clone(),
            bytes_max: self.bytes_max,
            arrangement: next_arrangement(),
            writer: Mutex::new(Writer { index_bytes: index.bytes(), ..Writer::default() }),
            index: AtomicPtr::new(Box::into_raw(Box::new(index))),
            arena: Arena::new(),
            cells: Cells::new(self.cells.striping()),
            foreign: None,
        };
        let old = self.index();
        for slot in old.slots_from(0).flatten() {
            if self.is_dirty(slot.at) || !self.copy(slot, &mut new) {
                return false;
            }
        }
        new.foreign = self.foreign.take();
        *self = new;
        true
    }

    /// Homes for the present counters, with room for about as many again before growing; but no more than there are, for
    /// they may not fit into the bound.
    fn homes_wanted(&self) -> usize {
        (2 * self.len()).min(self.index().homes())
    }

    fn copy(&self, slot: Slot, new: &mut Self) -> bool {
        let entry = self.arena.at(slot.at);
        let Some(value) = entry.cell().get(&self.cells) else { return true };
        let writer = locked_mut(&mut new.writer);
        let left = u64::MAX; // no more than the store had, which was within its bound
        let Some(at) = new.arena.append(&mut writer.memory, entry.hash_low(), entry.key(), left) else {
            return false;
        };
        writer.entries += 1;
        if !new.index().place(Slot { tag: slot.tag, at }) {
            return false;
        }
        new.set_mut(at, value);
        true
    }
}

//! The index: an array of slots in near hash order.
//!
//! A slot holds the high half of a hash (the *tag*) and a ref; 0 is empty. A key's home is as far into the array as its
//! tag is into the range of tags; an entry takes the first free slot from its home on. Slots are never emptied. So slots
//! stay nearly in hash order, and a position in hash order corresponds to a position in the array at any size: the scan's
//! cursor and the growth in one sweep rely on that. Probing doesn't wrap round; spare slots follow the last home.
//!
//! Slots are written under the store's writer lock and read by any thread.

use super::arena::{CounterRef, prefetch};
use crate::atomics::{AtomicU64, Ordering};
use crate::lazy_memory::LazyAtomics;

/// Greatest distance from home of an insertion. With good hashes, a table of any size stays below it at the load at
/// which it grows.
const PROBE_MAX: usize = 2048;
/// Most entries with one tag. Chance gives only a few even among a billion keys; more were made to collide, and
/// growing wouldn't separate them.
pub(super) const TAG_ENTRIES_MAX: usize = 128;
/// A larger array would gain no order from 32-bit tags.
const HOMES_MAX: usize = 1 << 31;
/// Homes of an empty store.
#[cfg(not(pycounter_loom))]
pub(super) const HOMES_MIN: usize = 16;
#[cfg(pycounter_loom)]
pub(super) const HOMES_MIN: usize = 2;

pub(super) struct Index {
    slots: LazyAtomics<AtomicU64>,
    homes: usize,
}

/// The result of looking for a key.
pub(super) enum Probe {
    Found(CounterRef),
    /// Absent; this slot is free.
    Free(usize),
    /// Absent, with no free slot near enough: a larger index would help.
    TooFar,
    /// Absent, and too many other entries have its tag.
    TagFull,
}

/// The content of a slot.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) tag: u32,
    pub(super) at: CounterRef,
}

impl Slot {
    fn of(raw: u64) -> Option<Self> {
        Some(Self { tag: (raw >> 32) as u32, at: CounterRef::from_number(raw as u32)? })
    }

    fn raw(self) -> u64 {
        u64::from(self.tag) << 32 | u64::from(self.at.number())
    }
}

/// The high half of a hash, as stored in slots.
pub(super) fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The smallest allowed index size with at least this many homes: a power of two, or 1.5 times one. With doubling alone,
/// an index would be half empty right after growing, and the empty half would weigh as much as the keys.
pub(super) fn size_for(homes: usize) -> usize {
    let power = homes.next_power_of_two().max(HOMES_MIN);
    let between = power / 4 * 3;
    if between >= homes && between > HOMES_MIN { between } else { power }
}

/// Spare slots for twice the reach of an insertion: see `place_all_of`.
fn slots_of(homes: usize) -> usize {
    homes + 2 * homes.min(PROBE_MAX) + 1
}

/// Bytes of an index with this many homes.
pub(super) fn bytes_of(homes: usize) -> u64 {
    (slots_of(homes) * size_of::<AtomicU64>()) as u64
}

/// Entries that an index with this many homes holds before it must grow.
pub(super) fn entries_max_of(homes: usize) -> usize {
    if cfg!(pycounter_loom) { homes } else { homes * 27 / 32 }
}

impl Index {
    /// An empty index with at least this many homes; None if that is too large.
    pub(super) fn new(homes: usize) -> Option<Self> {
        let homes = size_for(homes);
        if homes > HOMES_MAX {
            return None;
        }
        let slots = LazyAtomics::new(slots_of(homes))?;
        Some(Self { slots, homes })
    }

    pub(super) fn homes(&self) -> usize {
        self.homes
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.slots.len() * size_of::<AtomicU64>()) as u64
    }

    /// Entries that it holds before it must grow.
    pub(super) fn entries_max(&self) -> usize {
        entries_max_of(self.homes)
    }

    pub(super) fn home(&self, tag: u32) -> usize {
        // No overflow: both factors are below 2^32.
        ((u64::from(tag) * self.homes as u64) >> 32) as usize
    }

    /// The smallest tag whose home is `home`; one above the largest tag for the home after the last.
    pub(super) fn first_tag(&self, home: usize) -> u64 {
        ((home as u64) << 32).div_ceil(self.homes as u64)
    }

    /// The slots from a home on, None for empty ones.
    pub(super) fn slots_from(&self, home: usize) -> impl Iterator<Item = Option<Slot>> {
        // Acquire: pairs with the Release store in `fill`: the entry of a slot is whole.
        self.slots[home.min(self.slots.len())..].iter().map(|slot| Slot::of(slot.load(Ordering::Acquire)))
    }

    pub(super) fn prefetch(&self, tag: u32) {
        if let Some(slot) = self.slots.get(self.home(tag)) {
            prefetch(std::ptr::from_ref(slot));
        }
    }

    /// Looks up a key: the slot with its tag for which `is_it` holds.
    pub(super) fn find(&self, tag: u32, is_it: impl Fn(CounterRef) -> bool) -> Option<CounterRef> {
        let home = self.home(tag);
        for slot in &self.slots[home..] {
            // Acquire: pairs with the Release store in `fill`: the entry of a slot is whole.
            let slot = Slot::of(slot.load(Ordering::Acquire))?;
            if slot.tag == tag && is_it(slot.at) {
                return Some(slot.at);
            }
        }
        None
    }

    /// Looks up a key, or the slot where it would go.
    pub(super) fn probe(&self, tag: u32, is_it: impl Fn(CounterRef) -> bool) -> Probe {
        let home = self.home(tag);
        let mut same_tag = 0;
        for (distance, slot) in self.slots_from(home).enumerate() {
            match slot {
                Some(slot) if slot.tag == tag => {
                    if is_it(slot.at) {
                        return Probe::Found(slot.at);
                    }
                    same_tag += 1;
                }
                Some(_) => {}
                None if same_tag >= TAG_ENTRIES_MAX => return Probe::TagFull,
                None if distance < self.homes.min(PROBE_MAX) => return Probe::Free(home + distance),
                None => break,
            }
        }
        Probe::TooFar
    }

    /// Puts an entry into a slot that `probe` called free.
    pub(super) fn fill(&self, place: usize, slot: Slot) {
        // Release: pairs with the Acquire loads above; the entry was written before.
        self.slots[place].store(slot.raw(), Ordering::Release);
    }

    /// Copies all entries of another index in one sweep over both, without reading the entries themselves. False if they
    /// don't fit, which takes hostile keys; this index is then unusable.
    ///
    /// A run of slots with one tag can be pushed from its home by its neighbours, so it may end up farther away than an
    /// insertion would. The last slot always stays empty.
    pub(super) fn place_all_of(&self, other: &Index) -> bool {
        other.slots_from(0).flatten().all(|slot| self.place(slot))
    }

    /// Places one entry in an index that isn't shared yet.
    pub(super) fn place(&self, slot: Slot) -> bool {
        let spare = self.slots.len() - 1;
        for place in &self.slots[self.home(slot.tag)..spare] {
            // Relaxed: the whole index is published by the Release store of its pointer.
            if place.load(Ordering::Relaxed) == 0 {
                place.store(slot.raw(), Ordering::Relaxed);
                return true;
            }
        }
        false
    }
}

//! The counters that changed since the last drain, each at most once.
//!
//! Many threads push without a lock. The drain has exclusive access to queue and store (`&mut`), and whatever gave it
//! that access orders it after all pushes. The DIRTY mark in a counter's entry keeps it in the queue at most once: only
//! the thread that sets the mark pushes.
//!
//! A change must not be applied unless there is room to mark it. An owner with exclusive access asks [`has_room`];
//! concurrent threads first reserve a [`Room`].
//!
//! [`has_room`]: WriteBatchQueue::has_room

use crate::atomics::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::counter_store::{CounterRef, CounterStore};
use crate::lazy_memory::LazyAtomics;

/// How many counters ahead the drain prefetches.
const AHEAD: usize = 8;

/// The queue is full: drain it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many counters wait to be written")]
pub struct QueueFull;

/// A bounded queue of changed counters. Its memory is only committed as it fills.
pub struct WriteBatchQueue {
    slots: LazyAtomics<AtomicU32>,
    /// Slots in use or promised to a [`Room`]; at most the capacity.
    promised: AtomicUsize,
    /// Slots in use; at most `promised`.
    filled: AtomicUsize,
    /// The store arrangement that the refs belong to.
    arrangement: AtomicU64,
}

impl WriteBatchQueue {
    /// A queue for up to `capacity` counters; None if memory is short.
    pub fn new(capacity: usize) -> Option<Self> {
        Some(Self {
            slots: LazyAtomics::new(capacity)?,
            promised: AtomicUsize::new(0),
            filled: AtomicUsize::new(0),
            arrangement: AtomicU64::new(0),
        })
    }

    /// How many counters wait.
    pub fn len(&self) -> usize {
        // Relaxed: exact under exclusive access, otherwise an estimate.
        self.filled.load(Ordering::Relaxed)
    }

    /// Is nothing waiting?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many counters can wait.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Is there no room for even one more?
    pub fn is_full(&self) -> bool {
        !self.has_room(1)
    }

    /// Whether there is room for `count` more, until somebody else pushes.
    pub fn has_room(&self, count: usize) -> bool {
        // Relaxed: as in `len`.
        count <= self.capacity() - self.promised.load(Ordering::Relaxed)
    }

    /// Reserves room for `count` counters; dropping it returns what is unused.
    pub fn reserve(&self, count: usize) -> Result<Room<'_>, QueueFull> {
        // Relaxed: only the number matters; no other memory hangs on it.
        let mut promised = self.promised.load(Ordering::Relaxed);
        loop {
            if count > self.capacity() - promised {
                return Err(QueueFull);
            }
            match self.promised.compare_exchange_weak(promised, promised + count, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(Room { queue: self, left: count }),
                Err(seen) => promised = seen,
            }
        }
    }

    /// Empties the queue after the store was cleared.
    pub fn clear(&mut self) {
        self.promised.store(0, Ordering::Relaxed);
        self.filled.store(0, Ordering::Relaxed);
    }

    /// Drains the queue: passes each counter's key and value (None if deleted) to `f`, in the order in which they were
    /// first marked, and clears their marks.
    ///
    /// Counters that were marked before `store` was cleared or compacted are skipped.
    pub fn take(&mut self, store: &mut CounterStore, mut f: impl FnMut(&[u8], Option<i64>)) {
        // All Relaxed here: `&mut self` means that every push happened before.
        if self.arrangement.load(Ordering::Relaxed) == store.arrangement() {
            let waiting = &self.slots[..self.len()];
            let counter = |slot: &AtomicU32| CounterRef::from_number(slot.load(Ordering::Relaxed));
            for (place, slot) in waiting.iter().enumerate() {
                if let Some(ahead) = waiting.get(place + AHEAD).and_then(counter) {
                    store.prefetch_entry(ahead);
                }
                if let Some(at) = counter(slot) {
                    store.mark_clean(at);
                    f(store.key(at), store.get(at));
                }
            }
        }
        self.clear();
    }

    /// Appends under exclusive access.
    pub(crate) fn push_alone(&mut self, at: CounterRef, arrangement: u64) -> Result<(), QueueFull> {
        let filled = self.len();
        let slot = self.slots.get(filled).ok_or(QueueFull)?;
        // All Relaxed: see `take`.
        slot.store(at.number(), Ordering::Relaxed);
        self.filled.store(filled + 1, Ordering::Relaxed);
        self.promised.store(filled + 1, Ordering::Relaxed);
        self.arrangement.store(arrangement, Ordering::Relaxed);
        Ok(())
    }
}

/// Reserved room in a queue.
pub struct Room<'a> {
    queue: &'a WriteBatchQueue,
    left: usize,
}

impl Room<'_> {
    /// How many counters it still has room for.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Appends a counter whose DIRTY mark the caller has just set.
    pub(crate) fn push(&mut self, at: CounterRef, arrangement: u64) {
        debug_assert!(self.left > 0);
        self.left = self.left.saturating_sub(1);
        // All Relaxed: only the drain reads these, with exclusive access.
        let place = self.queue.filled.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = self.queue.slots.get(place) {
            slot.store(at.number(), Ordering::Relaxed);
        }
        self.queue.arrangement.store(arrangement, Ordering::Relaxed);
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            // Relaxed: see `reserve`.
            self.queue.promised.fetch_sub(self.left, Ordering::Relaxed);
        }
    }
}

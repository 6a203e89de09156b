//! All counters of a process: a concurrent map from keys to signed 64-bit values.
//!
//! # Shape
//!
//! ```text
//! index (near hash order)          arena (order of insertion)
//! [ tag | ref ] ------------------> [ word | length, marks, stripe, hash | key ... ]
//! [ tag | ref ]                     [ word | ...
//! ```
//!
//! A lookup reads one cache line of the index and one of the arena. That is why it pays to hash a whole chunk of keys,
//! prefetch the slots, then the entries, and apply last ([`prefetch_slot`], [`prefetch_cell`]). A counter with a 16-byte
//! key takes 8 bytes of slot and 32 of entry.
//!
//! # Access
//!
//! - Finding and changing counters takes no lock (`cell` lists the exceptions).
//! - Inserting takes the writer lock, which blocks neither readers nor changes. A full index is replaced by the next
//!   larger one. Readers may still use the old one, so it is kept until somebody has `&mut self` and calls [`reclaim`],
//!   or the store is dropped.
//! - Methods that end in `_mut` are for an owner with exclusive access: no lock, no atomic read-modify-write.
//!
//! A deleted counter's entry stays, marked absent, and is reused when its key returns. [`compact`](CounterStore::compact)
//! removes it. A [`CounterRef`] is valid until then.
//!
//! # Ordering
//!
//! An entry is published by the Release store of its slot, and found by an Acquire load. A new index is published by
//! the Release store of its pointer, loaded with Acquire. Values order nothing: no other memory hangs on them.
//!
//! [`prefetch_slot`]: CounterStore::prefetch_slot
//! [`prefetch_cell`]: CounterStore::prefetch_cell
//! [`reclaim`]: CounterStore::reclaim

#![allow(unsafe_code, reason = "the index is owned through an atomic pointer")]

mod arena;
mod changes;
mod compaction;
mod index;
mod restore;
mod room;
mod scan;

#[cfg(all(test, not(pycounter_loom)))]
mod tests;

#[cfg(all(test, pycounter_loom))]
mod loom_tests;

pub use crate::cell::Overflow;
pub use arena::CounterRef;
pub use restore::RestoreRow;
pub use scan::Top;

use crate::atomics::{AtomicPtr, Mutex, Ordering, lock, locked_mut};
use crate::cell::Cells;
use crate::limits::KEY_BYTES_MAX;
use crate::placement::foreign_list::ForeignList;
use arena::{Arena, ArenaMemory};
use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;
use index::{HOMES_MIN, Index, Probe, Slot, tag_of};
use std::hash::Hasher;
use std::sync::atomic::{AtomicU64 as PlainAtomicU64, Ordering as PlainOrdering};

/// Why a counter couldn't be made. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store's byte bound, 32 GiB of entries, or the system's memory is used up.
    #[error("there is no room for more counters")]
    Full,
    /// Too many keys share a hash prefix: they were made to collide.
    #[error("too many keys collide with this one")]
    Crowded,
    /// The key is empty or too long.
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes")]
    KeyLength,
}

/// The map. See the module's documentation.
pub struct CounterStore {
    seed: u64,
    shared_seed: SharedSeed,
    bytes_max: u64,
    /// Identifies this arrangement of entries among all stores.
    arrangement: u64,
    /// Owned. Replaced under `writer`.
    index: AtomicPtr<Index>,
    arena: Arena,
    cells: Cells,
    writer: Mutex<Writer>,
    /// In a cluster's shard: learns of each inserted counter.
    foreign: Option<Box<ForeignList>>,
}

/// State guarded by the writer lock.
#[derive(Default)]
struct Writer {
    /// Filled slots of the index: counters, present or absent.
    entries: usize,
    memory: ArenaMemory,
    retired: Vec<RetiredIndex>,
    /// Bytes of the index and of retired ones.
    index_bytes: u64,
    /// Whether a counter was refused for lack of room since the last compaction.
    was_full: bool,
}

/// An index that readers may still use. Owned, but not as a Box, which would claim unique access.
struct RetiredIndex(*mut Index);

// SAFETY: it owns the index, which is Send, and is used for freeing it only.
unsafe impl Send for RetiredIndex {}

impl Drop for RetiredIndex {
    fn drop(&mut self) {
        // SAFETY: from Box::into_raw, and replaced; dropped only under `&mut CounterStore`, when no
        // reader can have it any more.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

fn next_arrangement() -> u64 {
    static NEXT: PlainAtomicU64 = PlainAtomicU64::new(1);
    // Relaxed: only the numbers' being different matters.
    NEXT.fetch_add(1, PlainOrdering::Relaxed)
}

impl Default for CounterStore {
    fn default() -> Self {
        Self::new()
    }
}

/// From this size on, giving a store's memory back to the system takes longer than a caller may wait.
const LARGE_STORE_BYTES: u64 = 16 << 20;

/// Frees a store: a large one on a thread of its own.
fn let_go(store: CounterStore) {
    if store.memory_bytes() < LARGE_STORE_BYTES {
        return;
    }
    // Without a thread it is freed here.
    drop(std::thread::Builder::new().name("pycounter-free".into()).spawn(move || drop(store)));
}

impl CounterStore {
    /// An empty store with a random seed and no byte bound of its own.
    pub fn new() -> Self {
        let seed = getrandom::u64().unwrap_or_else(|_| {
            // The standard library's randomness, which can't fail.
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().build_hasher().finish()
        });
        Self::with_seed(seed, u64::MAX)
    }

    /// An empty store. The same seed gives the same hashes, so cursors survive a restart.
    /// `bytes_max` bounds [`memory_bytes`](Self::memory_bytes).
    pub fn with_seed(seed: u64, bytes_max: u64) -> Self {
        let index = Box::new(Index::new(HOMES_MIN).expect("memory for the smallest index"));
        let writer = Writer { index_bytes: index.bytes(), ..Writer::default() };
        Self {
            seed,
            shared_seed: SharedSeed::from_u64(seed),
            bytes_max,
            arrangement: next_arrangement(),
            index: AtomicPtr::new(Box::into_raw(index)),
            arena: Arena::new(),
            cells: Cells::new(true),
            writer: Mutex::new(writer),
            foreign: None,
        }
    }

    /// From now on, lists each foreign counter that [`find_or_insert_mut`] and its callers insert.
    ///
    /// [`find_or_insert_mut`]: Self::find_or_insert_mut
    pub fn list_foreign(&mut self, list: ForeignList) {
        self.foreign = Some(Box::new(list));
    }

    /// The list of foreign counters.
    pub fn foreign(&self) -> Option<&ForeignList> {
        self.foreign.as_deref()
    }

    /// The same store without stripes: for journaled maps, where every change returns a result.
    pub fn without_stripes(mut self) -> Self {
        self.cells.set_striping(false);
        self
    }

    /// The seed of the hash.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The hash of a key, for the other methods.
    pub fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared_seed);
        hasher.write(key);
        hasher.finish()
    }

    /// First step for a chunk: prefetches this hash's home slot.
    pub fn prefetch_slot(&self, hash: u64) {
        self.index().prefetch(tag_of(hash));
    }

    /// Second step for a chunk: prefetches the entry that most likely has this hash, and returns it for
    /// [`find_or_insert_likely_mut`](Self::find_or_insert_likely_mut) to check once its bytes have arrived.
    pub fn prefetch_cell(&self, hash: u64) -> Option<CounterRef> {
        let likely = self.index().find(tag_of(hash), |_| true)?;
        self.arena.prefetch(likely);
        Some(likely)
    }

    /// Prefetches an entry.
    pub fn prefetch_entry(&self, at: CounterRef) {
        self.arena.prefetch(at);
    }

    /// The counter with this key, present or absent; None if it has no entry.
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<CounterRef> {
        self.index().find(tag_of(hash), |at| self.is_key(at, hash, key))
    }

    /// The counter with this key; without an entry, a new one that is absent until its first change.
    pub fn find_or_insert(&self, hash: u64, key: &[u8]) -> Result<CounterRef, StoreError> {
        match self.find(hash, key) {
            Some(at) => Ok(at),
            None => self.insert(&mut lock(&self.writer), hash, key),
        }
    }

    /// As [`find_or_insert`](Self::find_or_insert); also frees an index that it replaced.
    pub fn find_or_insert_mut(&mut self, hash: u64, key: &[u8]) -> Result<CounterRef, StoreError> {
        if let Some(at) = self.find(hash, key) {
            return Ok(at);
        }
        let outcome = self.insert(&mut lock(&self.writer), hash, key);
        self.reclaim();
        if let (Ok(_), Some(foreign)) = (outcome, &mut self.foreign) {
            foreign.look(key);
        }
        outcome
    }

    /// As [`find_or_insert_mut`](Self::find_or_insert_mut), third step for a chunk: `likely` is what
    /// [`prefetch_cell`](Self::prefetch_cell) returned for the hash.
    #[inline(always)] // 6 % of a chunk otherwise: cargo bench --bench shard
    pub fn find_or_insert_likely_mut(
        &mut self,
        likely: Option<CounterRef>,
        hash: u64,
        key: &[u8],
    ) -> Result<CounterRef, StoreError> {
        match likely.filter(|&likely| self.is_key(likely, hash, key)) {
            Some(at) => Ok(at),
            None => self.find_or_insert_mut(hash, key),
        }
    }

    /// The counter's key.
    pub fn key(&self, at: CounterRef) -> &[u8] {
        self.arena.at(at).key()
    }

    /// How many counters are present.
    pub fn len(&self) -> usize {
        self.cells.present()
    }

    /// Is no counter present?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in use: entries, indexes (including replaced ones not freed yet) and stripes.
    pub fn memory_bytes(&self) -> u64 {
        let index_bytes = lock(&self.writer).index_bytes;
        self.arena.used_bytes() + index_bytes + self.cells.memory_bytes() as u64
    }

    /// The bound of [`memory_bytes`](Self::memory_bytes).
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Frees replaced indexes. Cheap if there are none.
    pub fn reclaim(&mut self) {
        release_retired(locked_mut(&mut self.writer));
    }

    /// Drops all counters and their memory. Refs become invalid, and a queue drops those it holds.
    pub fn clear(&mut self) {
        let mut empty = Self::with_seed(self.seed, self.bytes_max);
        empty.cells.set_striping(self.cells.striping());
        empty.foreign = self.foreign.take();
        let_go(std::mem::replace(self, empty));
    }

    /// Changes whenever refs become invalid; differs between stores.
    pub(crate) fn arrangement(&self) -> u64 {
        self.arrangement
    }

    fn index(&self) -> &Index {
        // Acquire: pairs with the Release store in `grow`: the new index is whole.
        let index = self.index.load(Ordering::Acquire);
        // SAFETY: from Box::into_raw, never null. A replaced index is kept until somebody has
        // `&mut self`, and by then this borrow of `self` has ended.
        unsafe { &*index }
    }

    /// Whether this counter has that key, whose hash is given.
    fn is_key(&self, at: CounterRef, hash: u64, key: &[u8]) -> bool {
        let entry = self.arena.at(at);
        entry.hash_low() == hash as u32 && entry.key() == key
    }

    /// Inserts unless another thread already has. `writer` is this store's guarded state.
    #[cold]
    fn insert(&self, writer: &mut Writer, hash: u64, key: &[u8]) -> Result<CounterRef, StoreError> {
        let outcome = self.try_insert(writer, hash, key);
        writer.was_full |= outcome == Err(StoreError::Full);
        outcome
    }

    fn try_insert(&self, writer: &mut Writer, hash: u64, key: &[u8]) -> Result<CounterRef, StoreError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(StoreError::KeyLength);
        }
        let tag = tag_of(hash);
        loop {
            let index = self.index();
            let place = match index.probe(tag, |at| self.is_key(at, hash, key)) {
                Probe::Found(at) => return Ok(at),
                Probe::Free(place) => Some(place),
                Probe::TooFar => None,
                Probe::TagFull => return Err(StoreError::Crowded),
            };
            let Some(place) = place.filter(|_| writer.entries < index.entries_max()) else {
                // A row this long in an index this sparse: somebody crafted these keys, and may craft more.
                if writer.entries < index.homes() / 4 {
                    return Err(StoreError::Crowded);
                }
                self.grow(writer)?;
                continue;
            };
            let used = self.arena.used_bytes() + writer.index_bytes;
            let left = self.bytes_max.saturating_sub(used);
            let at = self.arena.append(&mut writer.memory, hash as u32, key, left);
            let at = at.ok_or(StoreError::Full)?;
            index.fill(place, Slot { tag, at });
            writer.entries += 1;
            return Ok(at);
        }
    }

    /// Replaces the index by the next larger one.
    fn grow(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let old = self.index();
        let new = Index::new(old.homes() + 1).ok_or(StoreError::Full)?;
        let bytes = new.bytes();
        if self.arena.used_bytes() + writer.index_bytes + bytes > self.bytes_max {
            return Err(StoreError::Full);
        }
        if !new.place_all_of(old) {
            return Err(StoreError::Crowded);
        }
        writer.index_bytes += bytes;
        // Release: pairs with the Acquire load in `index`. Only holders of the lock store here.
        let old = self.index.swap(Box::into_raw(Box::new(new)), Ordering::AcqRel);
        writer.retired.push(RetiredIndex(old));
        Ok(())
    }
}

/// Frees replaced indexes. The caller must have `&mut CounterStore`.
fn release_retired(writer: &mut Writer) {
    for retired in writer.retired.drain(..) {
        // SAFETY: owned, and not freed yet.
        writer.index_bytes -= unsafe { &*retired.0 }.bytes();
    }
}

impl Drop for CounterStore {
    fn drop(&mut self) {
        // SAFETY: from Box::into_raw, and `&mut self` means no reader is left. Replaced ones are separate.
        drop(unsafe { Box::from_raw(self.index.load(Ordering::Relaxed)) });
    }
}

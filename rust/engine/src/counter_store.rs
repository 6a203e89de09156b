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
//! A lookup reads one line of the index and one of the arena, which is why hashing a whole chunk of
//! keys, prefetching slots, then entries, and only then applying is worth it ([`prefetch_slot`],
//! [`prefetch_cell`]). Eight bytes of slot and 32 of entry make a counter with a 16-byte key.
//!
//! # Who may do what
//!
//! - Finding and changing counters takes no lock (but see `cell` for what leaves the fast path).
//! - Inserting takes the writer lock. It stops neither readers nor changes. A full index is replaced
//!   by the next larger one; readers may still be in the old one, so that is kept until somebody
//!   has `&mut self` (then call [`reclaim`], or the store is dropped).
//! - Methods that end in `_mut` are for an owner with exclusive access: no lock and no locked
//!   instruction.
//!
//! A deleted counter's entry stays, absent, and is used again when its key returns;
//! [`compact`](CounterStore::compact) gets rid of it. A [`CounterRef`] is good until then.
//!
//! # Ordering
//!
//! The one publication is an entry's: written, then its slot is stored with Release, found with an
//! Acquire load. Replacing the index is a Release store of its pointer, loaded with Acquire. Values
//! order nothing; they are only counted with.
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

use crate::atomics::{AtomicPtr, Mutex, Ordering, lock, locked_mut};
use crate::cell::Cells;
use crate::foreign_list::ForeignList;
use crate::limits::KEY_BYTES_MAX;
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
    /// Too many keys share a hash prefix: these keys were made to collide.
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
    /// Told apart from every other arrangement of entries, in any store.
    arrangement: u64,
    /// Owned. Replaced by the holder of `writer`.
    index: AtomicPtr<Index>,
    arena: Arena,
    cells: Cells,
    writer: Mutex<Writer>,
    /// Of a shard among others: told of each counter that comes.
    foreign: Option<Box<ForeignList>>,
}

/// What the writer lock guards.
#[derive(Default)]
struct Writer {
    /// Filled slots of the index: counters, present or absent.
    entries: usize,
    memory: ArenaMemory,
    retired: Vec<RetiredIndex>,
    /// Bytes of the index and the retired ones.
    index_bytes: u64,
    /// A counter was refused for want of room since the last compaction.
    was_full: bool,
}

/// An index that readers may still be in. Owned, but not as a Box, which would claim to be alone.
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

impl CounterStore {
    /// An empty store with a random seed and no byte bound of its own.
    pub fn new() -> Self {
        let seed = getrandom::u64().unwrap_or_else(|_| {
            // The standard library's own source; it has none that fails.
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().build_hasher().finish()
        });
        Self::with_seed(seed, u64::MAX)
    }

    /// An empty store. The same seed gives the same hashes, so that cursors survive a restart.
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

    /// Lists the foreign ones among the counters that come from now on, with [`find_or_insert_mut`] and what builds on it.
    ///
    /// [`find_or_insert_mut`]: Self::find_or_insert_mut
    pub fn list_foreign(&mut self, list: ForeignList) {
        self.foreign = Some(Box::new(list));
    }

    /// That list.
    pub fn foreign(&self) -> Option<&ForeignList> {
        self.foreign.as_deref()
    }

    /// The same store with single cells only: for journaled maps, whose changes all have results.
    pub fn without_stripes(mut self) -> Self {
        self.cells.set_striping(false);
        self
    }

    /// The seed of the hash.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The hash of a key, to be passed on to the other methods.
    pub fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared_seed);
        hasher.write(key);
        hasher.finish()
    }

    /// First step of a chunk: fetches the slot where this hash is at home.
    pub fn prefetch_slot(&self, hash: u64) {
        self.index().prefetch(tag_of(hash));
    }

    /// Second step of a chunk: fetches the entry that is most likely this hash's, and gives it, for
    /// [`find_or_insert_likely_mut`](Self::find_or_insert_likely_mut) to check when its bytes are there.
    pub fn prefetch_cell(&self, hash: u64) -> Option<CounterRef> {
        let likely = self.index().find(tag_of(hash), |_| true)?;
        self.arena.prefetch(likely);
        Some(likely)
    }

    /// Fetches an entry.
    pub fn prefetch_entry(&self, at: CounterRef) {
        self.arena.prefetch(at);
    }

    /// The counter with this key, present or absent; None if there never was one.
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<CounterRef> {
        self.index().find(tag_of(hash), |at| self.is_key(at, hash, key))
    }

    /// The counter with this key; if there never was one, a new one, still absent: it becomes
    /// present by its first change.
    pub fn find_or_insert(&self, hash: u64, key: &[u8]) -> Result<CounterRef, StoreError> {
        match self.find(hash, key) {
            Some(at) => Ok(at),
            None => self.insert(&mut lock(&self.writer), hash, key),
        }
    }

    /// As [`find_or_insert`](Self::find_or_insert), and frees what an insertion replaced.
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

    /// As [`find_or_insert_mut`](Self::find_or_insert_mut), third step of a chunk: `likely` is what
    /// [`prefetch_cell`](Self::prefetch_cell) gave for the hash.
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

    /// Bytes in use: entries, indexes (replaced ones too, until they can be freed) and stripes.
    pub fn memory_bytes(&self) -> u64 {
        let index_bytes = lock(&self.writer).index_bytes;
        self.arena.used_bytes() + index_bytes + self.cells.memory_bytes() as u64
    }

    /// Frees replaced indexes. Cheap if there are none.
    pub fn reclaim(&mut self) {
        release_retired(locked_mut(&mut self.writer));
    }

    /// Drops every counter at once and all their memory. Refs become invalid; a queue forgets the
    /// ones that wait in it.
    pub fn clear(&mut self) {
        let mut empty = Self::with_seed(self.seed, self.bytes_max);
        empty.cells.set_striping(self.cells.striping());
        empty.foreign = self.foreign.take();
        *self = empty;
    }

    /// Changes whenever refs become invalid; differs between stores.
    pub(crate) fn arrangement(&self) -> u64 {
        self.arrangement
    }

    fn index(&self) -> &Index {
        // Acquire: pairs with the Release store in `grow`: the new index is whole.
        let index = self.index.load(Ordering::Acquire);
        // SAFETY: from Box::into_raw, never null; after being replaced it is kept until somebody
        // has `&mut self`, when this borrow of `self` has ended.
        unsafe { &*index }
    }

    /// Is this the counter with that key, whose hash is given?
    fn is_key(&self, at: CounterRef, hash: u64, key: &[u8]) -> bool {
        let entry = self.arena.at(at);
        entry.hash_low() == hash as u32 && entry.key() == key
    }

    /// Inserts unless somebody else has. `writer` is what this store's lock guards.
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
                // A long row in an index this sparse: somebody made these keys, and may make more.
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

/// Frees replaced indexes; only for who has `&mut CounterStore`.
fn release_retired(writer: &mut Writer) {
    for retired in writer.retired.drain(..) {
        // SAFETY: owned, and not freed yet.
        writer.index_bytes -= unsafe { &*retired.0 }.bytes();
    }
}

impl Drop for CounterStore {
    fn drop(&mut self) {
        // SAFETY: from Box::into_raw; `&mut self`: no reader is left. Replaced ones are others.
        drop(unsafe { Box::from_raw(self.index.load(Ordering::Relaxed)) });
    }
}

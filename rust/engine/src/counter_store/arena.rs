//! Storage for entries: append-only chunks, each twice as large as the one before.
//!
//! A [`CounterRef`] counts units of 8 bytes over all chunks, so 32 bits address 32 GiB. Entries never move while the
//! store is shared, so readers hold plain references to them. Appending requires the store's writer lock.
//!
//! An entry is published by the Release store of its index slot (or of `used`, for iteration). Its plain fields are
//! written before that and never again.

#![allow(unsafe_code, reason = "entries of varying length in raw memory")]

use crate::atomics::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering, Published};
use crate::cell::Cell;
use crate::lazy_memory::LazyMemory;
use crate::limits::KEY_BYTES_MAX;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::ptr;

/// The location of a counter's entry, valid in its store until that is compacted or cleared. In another store it names
/// some other counter or panics, but never reads foreign memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CounterRef(NonZeroU32);

impl CounterRef {
    /// The number, for a queue of refs.
    pub(crate) fn number(self) -> u32 {
        self.0.get()
    }

    /// The ref with this number, None for 0.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }
}

const UNIT_BYTES: usize = 8;
/// Units in the first chunk: 32 KiB.
const FIRST_UNITS: u64 = 1 << FIRST_UNITS_LOG2;
const FIRST_UNITS_LOG2: u32 = 12;
/// 4,096 * (2^20 - 1) units: nearly 2^32.
const CHUNKS: usize = 20;
const UNITS_MAX: u64 = FIRST_UNITS * ((1 << CHUNKS) - 1);
/// Unit of the first entry: 0 is no ref, and starting on a cache line keeps 32-byte entries within one line.
const START: u64 = 8;
const HEADER_BYTES: usize = size_of::<Entry>();
/// Units of an entry that are prefetched: they hold keys of up to 24 bytes.
const PREFETCH_UNITS: usize = 5;
/// Readable bytes behind each chunk, so that no length found in it leads outside.
const SLACK_BYTES: usize = HEADER_BYTES + KEY_BYTES_MAX;

/// The fixed part of an entry; the key's bytes follow.
#[repr(C)]
pub(super) struct Entry {
    word: AtomicI64,
    key_len: Published<u16>,
    /// DIRTY and the cell's own marks.
    pub(super) marks: AtomicU8,
    stripe: AtomicU8,
    /// The low half of the hash; the high half is in the index slot.
    hash_low: Published<u32>,
}

const _: () = assert!(align_of::<Entry>() <= UNIT_BYTES);
#[cfg(not(pycounter_loom))]
const _: () = assert!(HEADER_BYTES == 16);

/// An entry in place.
#[derive(Clone, Copy)]
pub(super) struct Placed<'a> {
    at: *const Entry,
    arena: PhantomData<&'a Arena>,
}

impl<'a> Placed<'a> {
    pub(super) fn head(self) -> &'a Entry {
        // SAFETY: `at` comes from `Arena::at`: an entry published to us, in memory that lives as
        // long as the arena. Everything in it that changes is atomic.
        unsafe { &*self.at }
    }

    pub(super) fn key(self) -> &'a [u8] {
        let len = usize::from(self.head().key_len.get()).min(KEY_BYTES_MAX);
        // SAFETY: the key was written behind the header before the entry was published, and never
        // changes. With any length up to KEY_BYTES_MAX the slice stays within the chunk's slack.
        unsafe { std::slice::from_raw_parts(self.at.cast::<u8>().add(HEADER_BYTES), len) }
    }

    pub(super) fn hash_low(self) -> u32 {
        self.head().hash_low.get()
    }

    pub(super) fn cell(self) -> Cell<'a> {
        let head = self.head();
        Cell { word: &head.word, marks: &head.marks, stripe: &head.stripe }
    }
}

/// A unit's chunk, and its offset in it.
fn locate(unit: u64) -> (usize, usize) {
    let shifted = unit + FIRST_UNITS;
    let log = shifted.ilog2();
    ((log - FIRST_UNITS_LOG2) as usize, (shifted ^ (1 << log)) as usize)
}

/// The first unit after this unit's chunk.
fn chunk_end(unit: u64) -> u64 {
    (2 << (unit + FIRST_UNITS).ilog2()) - FIRST_UNITS
}

/// The next unit where an entry may begin, so that its header doesn't straddle a cache line.
fn place(unit: u64) -> u64 {
    unit + u64::from(unit % 8 == 7)
}

fn entry_units(key_bytes: usize) -> u64 {
    (HEADER_BYTES + key_bytes).div_ceil(UNIT_BYTES) as u64
}

/// The part of the arena owned by the holder of the writer lock.
#[derive(Default)]
pub(super) struct ArenaMemory {
    chunks: Vec<LazyMemory>,
}

pub(super) struct Arena {
    /// Starts of the chunks, which `ArenaMemory` owns; null if not allocated yet.
    chunks: [AtomicPtr<u64>; CHUNKS],
    /// Units in use. Written by the writer only.
    used: AtomicU64,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self { chunks: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())), used: AtomicU64::new(START) }
    }

    /// Bytes in use. Pages behind them are reserved but untouched.
    pub(super) fn used_bytes(&self) -> u64 {
        // Relaxed: a figure.
        (self.used.load(Ordering::Relaxed) - START) * UNIT_BYTES as u64
    }

    /// Upper bound of the bytes added by appending this many counters with this many key bytes in total. None if that is
    /// more than an arena can hold.
    pub(super) fn bytes_for(&self, count: usize, key_bytes: usize) -> Option<u64> {
        // Each entry may need a unit for alignment and a partial one at its end, and the end of each chunk may stay empty.
        let units = (key_bytes as u64).div_ceil(UNIT_BYTES as u64) + count as u64 * (entry_units(0) + 2);
        // Relaxed: a figure.
        let used = self.used.load(Ordering::Relaxed);
        let (mut end, mut edge) = (used + units, chunk_end(used));
        while edge < end {
            end += entry_units(KEY_BYTES_MAX) + 1;
            edge = chunk_end(edge);
        }
        (end <= UNITS_MAX).then_some((end - used) * UNIT_BYTES as u64)
    }

    /// The entry of a ref. Panics if there is none: the ref is from another store.
    pub(super) fn at(&self, at: CounterRef) -> Placed<'_> {
        let (chunk, offset) = locate(u64::from(at.number()));
        // Relaxed: the ref was published after the chunk's pointer, and we have the ref.
        let start = self.chunks[chunk].load(Ordering::Relaxed);
        assert!(!start.is_null(), "a ref into another store");
        // SAFETY: the chunk has more than `offset` units.
        Placed { at: unsafe { start.add(offset) }.cast(), arena: PhantomData }
    }

    /// Prefetches the entry: the cache line of its header and the next one, for keys that aren't long.
    pub(super) fn prefetch(&self, at: CounterRef) {
        let (chunk, offset) = locate(u64::from(at.number()));
        if let Some(chunk) = self.chunks.get(chunk) {
            // Relaxed: the address is only a guess.
            let entry = chunk.load(Ordering::Relaxed).wrapping_add(offset);
            prefetch(entry);
            prefetch(entry.wrapping_add(PREFETCH_UNITS - 1));
        }
    }

    /// Appends an absent counter. None if this would exceed `bytes_left`, 32 GiB in all, or the system's memory. The
    /// caller must hold the writer lock, which guards `memory`.
    pub(super) fn append(
        &self,
        memory: &mut ArenaMemory,
        hash_low: u32,
        key: &[u8],
        bytes_left: u64,
    ) -> Option<CounterRef> {
        let key_len = u16::try_from(key.len()).ok().filter(|_| key.len() <= KEY_BYTES_MAX)?;
        let units = entry_units(key.len());
        // Relaxed: we are its only writer.
        let used = self.used.load(Ordering::Relaxed);
        let mut unit = place(used);
        if unit + units > chunk_end(unit) {
            unit = chunk_end(unit);
        }
        let end = unit + units;
        if end > UNITS_MAX || (end - used) * UNIT_BYTES as u64 > bytes_left {
            return None;
        }
        let (chunk, offset) = locate(unit);
        let mut start = self.chunks.get(chunk)?.load(Ordering::Relaxed);
        if start.is_null() {
            let bytes = (FIRST_UNITS << chunk) as usize * UNIT_BYTES + SLACK_BYTES;
            let new = LazyMemory::new(bytes)?;
            start = new.start().cast().as_ptr();
            memory.chunks.push(new);
            // Relaxed: published with the refs into it.
            self.chunks[chunk].store(start, Ordering::Relaxed);
        }
        let entry = Entry {
            word: AtomicI64::new(crate::cell::SPECIAL),
            key_len: Published::new(key_len),
            marks: AtomicU8::new(0),
            stripe: AtomicU8::new(0),
            hash_low: Published::new(hash_low),
        };
        // SAFETY: units `unit..end` lie in this chunk, and nobody else has them: they are at or
        // above `used`, and we hold the writer lock.
        unsafe {
            let at = start.add(offset).cast::<Entry>();
            at.write(entry);
            ptr::copy_nonoverlapping(key.as_ptr(), at.cast::<u8>().add(HEADER_BYTES), key.len());
        }
        // Release: pairs with the Acquire load in `for_each`.
        self.used.store(end, Ordering::Release);
        CounterRef::from_number(u32::try_from(unit).ok()?)
    }

    /// Visits every entry in the order of insertion.
    pub(super) fn for_each<'a>(&'a self, mut visit: impl FnMut(CounterRef, Placed<'a>)) {
        // Acquire: pairs with the Release store in `append`.
        let used = self.used.load(Ordering::Acquire);
        let mut unit = place(START);
        while unit < used {
            let Some(at) = u32::try_from(unit).ok().and_then(CounterRef::from_number) else { break };
            let entry = self.at(at);
            match entry.head().key_len.get() {
                // Zeros: no entry fitted into the rest of this chunk.
                0 => unit = chunk_end(unit),
                len => {
                    visit(at, entry);
                    unit += entry_units(usize::from(len));
                }
            }
            unit = place(unit);
        }
    }
}

/// Prefetches the cache line of an address, which need not be valid.
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch has no effect on memory and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

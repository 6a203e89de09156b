//! Where entries live: an append-only row of chunks, each twice as large as the one before.
//!
//! A [`CounterRef`] counts units of 8 bytes over all chunks, so that 32 bits reach 32 GiB. Entries
//! never move while the store is shared, and readers hold plain references to them. Appending is the
//! business of whoever holds the store's writer lock.
//!
//! An entry is published by the Release store of its index slot (or of `used`, for walkers): its
//! plain fields are written before and never after.

#![allow(unsafe_code, reason = "entries of varying length in raw memory")]

use crate::atomics::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering, Published};
use crate::cell::Cell;
use crate::lazy_memory::LazyMemory;
use crate::limits::KEY_BYTES_MAX;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::ptr;

/// Where a counter's entry is: valid for the store that gave it, until that store is compacted or
/// cleared. Used elsewhere it names some other counter or panics; it reads no foreign memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CounterRef(NonZeroU32);

impl CounterRef {
    /// The bare number, for a queue of refs.
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
/// The first entry's place: 0 is no ref, and a line's first unit keeps 32-byte entries in one line.
const START: u64 = 8;
const HEADER_BYTES: usize = size_of::<Entry>();
/// Units of an entry that a prefetch asks for: keys of up to 24 bytes are in them.
const PREFETCH_UNITS: usize = 5;
/// Readable bytes behind each chunk, so that no length found anywhere in it leads out of it.
const SLACK_BYTES: usize = HEADER_BYTES + KEY_BYTES_MAX;

/// The fixed part of an entry; the key's bytes follow.
#[repr(C)]
pub(super) struct Entry {
    word: AtomicI64,
    key_len: Published<u16>,
    /// DIRTY here, and the cell's own marks.
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
        // long as the arena; all that changes in it is atomic.
        unsafe { &*self.at }
    }

    pub(super) fn key(self) -> &'a [u8] {
        let len = usize::from(self.head().key_len.get()).min(KEY_BYTES_MAX);
        // SAFETY: the key was written behind the header before the entry was published, and isn't
        // changed; with any length up to KEY_BYTES_MAX the slice stays within the chunk's slack.
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

/// Where a unit is: its chunk, and how far into it.
fn locate(unit: u64) -> (usize, usize) {
    let shifted = unit + FIRST_UNITS;
    let log = shifted.ilog2();
    ((log - FIRST_UNITS_LOG2) as usize, (shifted ^ (1 << log)) as usize)
}

/// The first unit after this unit's chunk.
fn chunk_end(unit: u64) -> u64 {
    (2 << (unit + FIRST_UNITS).ilog2()) - FIRST_UNITS
}

/// The next place where an entry may begin: its header doesn't straddle a cache line.
fn place(unit: u64) -> u64 {
    unit + u64::from(unit % 8 == 7)
}

fn entry_units(key_bytes: usize) -> u64 {
    (HEADER_BYTES + key_bytes).div_ceil(UNIT_BYTES) as u64
}

/// What the holder of the writer lock owns of the arena.
#[derive(Default)]
pub(super) struct ArenaMemory {
    chunks: Vec<LazyMemory>,
}

pub(super) struct Arena {
    /// Starts of the chunks, which `ArenaMemory` owns; null: not allocated yet.
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

    /// At most so many bytes more are in use once so many counters were appended, whose keys have so many bytes
    /// together. None: that is more than there can be.
    pub(super) fn bytes_for(&self, count: usize, key_bytes: usize) -> Option<u64> {
        // Each may need a unit to be placed, a part of one to be whole, and each chunk's end may stay empty.
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

    /// The entry of a ref. Panics if there can't be one: then the ref is from elsewhere.
    pub(super) fn at(&self, at: CounterRef) -> Placed<'_> {
        let (chunk, offset) = locate(u64::from(at.number()));
        // Relaxed: the ref was published after the chunk's pointer, and we have the ref.
        let start = self.chunks[chunk].load(Ordering::Relaxed);
        assert!(!start.is_null(), "a ref into another store");
        // SAFETY: the chunk has more than `offset` units.
        Placed { at: unsafe { start.add(offset) }.cast(), arena: PhantomData }
    }

    /// Asks the processor to fetch the entry: the line of its header, and where its key goes on behind that line, if it
    /// is no long one.
    pub(super) fn prefetch(&self, at: CounterRef) {
        let (chunk, offset) = locate(u64::from(at.number()));
        if let Some(chunk) = self.chunks.get(chunk) {
            // Relaxed: only an address to guess with.
            let entry = chunk.load(Ordering::Relaxed).wrapping_add(offset);
            prefetch(entry);
            prefetch(entry.wrapping_add(PREFETCH_UNITS - 1));
        }
    }

    /// Appends an absent counter. None if this would take more than `bytes_left` bytes, 32 GiB in
    /// all, or what the system gives. Only for the holder of the writer lock, whose `memory` it is.
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
            // Relaxed: published together with the refs into it.
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

/// Asks the processor to fetch the line of an address, which need not be valid.
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads nothing and faults nowhere.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

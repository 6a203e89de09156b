//! The exactly-once memory of raw clients: operation ids seen within the window, each with its operation's
//! fingerprint and answer, so that a retry gets the first answer instead of counting again.
//!
//! One thread owns the table (`&mut self`); it knows no clock: `now_ms` is the shard's journaled uptime.
//!
//! # Layout
//!
//! Rows lie in the order of their time in chunks of 64 KiB, so the oldest leave at the front and whole chunks are
//! given back; nothing is ever moved. What is not journaled yet is a suffix. The index is 1,024 small hash tables
//! of 32-bit row positions: each grows on its own, so no insertion waits for more than 1/1,024 of a rehash.
//!
//! # Memory
//!
//! A row takes [`ROW_BYTES`] and its id, and 6 to 12 bytes of index: about 50 bytes for an id of 16. With rate
//! `r` in ids a second that is `r` × 125 s × 50 bytes at the default window: the default bound of 256 MiB carries
//! about 40,000 ids a second.
//!
//! # Time
//!
//! An id that carries `born` (the shard's uptime when the client made it, as `hello` told) is refused once it is
//! older than the window, so that it can't be counted again although it has been forgotten. A client's idea of the
//! time may run ahead, or the uptime fall back by its unjournaled part in a crash: `born` may be up to
//! `born_ahead_ms` in the future, and rows are kept for that much longer than the window.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use thiserror::Error;

use crate::error_code::ErrorCode;
use crate::journal::entry::{Entry, Fingerprint, StoredResult};
use crate::limits::OPERATION_ID_BYTES_MAX;

/// Bytes of a row before its id: the id's length, an error's number or 0, fingerprint, value, time.
pub const ROW_BYTES: usize = 26;

const CHUNK_BYTES: usize = 1 << 16;
const INDEX_PARTS: usize = 1 << 10;
/// Positions are told apart by their low 32 bits, so no two rows may be that far apart.
const SPAN_MAX: u64 = (1 << 32) - 2 * CHUNK_BYTES as u64;

/// Bounds and windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationIdSettings {
    /// An id seen less long ago is never forgotten.
    pub ids_window_ms: u64,
    /// How far in the future the `born` of an id may be.
    pub born_ahead_ms: u64,
    /// Most bytes of rows and index together; at most 4 GiB of rows, whatever is set. The last id that fits may grow one
    /// of the index's 1,024 parts on top of it.
    pub ids_bytes_max: usize,
}

impl Default for OperationIdSettings {
    fn default() -> Self {
        Self { ids_window_ms: 120_000, born_ahead_ms: 5_000, ids_bytes_max: 256 << 20 }
    }
}

impl OperationIdSettings {
    /// May an id be forgotten? The table and the pages both ask this.
    #[must_use]
    pub fn id_has_expired(&self, seen_ms: u64, now_ms: u64) -> bool {
        now_ms > seen_ms.saturating_add(self.ids_window_ms).saturating_add(self.born_ahead_ms)
    }
}

/// Why the restored state can't be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OperationIdRestoreError {
    /// An id of a length that none may have.
    #[error("an operation id has {0} bytes")]
    Length(usize),
    /// More than positions can tell apart.
    #[error("the operation ids take more than 4 GiB")]
    TooMany,
}

/// What the table knows of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing: the operation is new, or forgotten.
    Unknown,
    /// This operation answered so.
    Known(StoredResult),
    /// It belongs to another operation: `id_reused`.
    Reused,
}

/// What the table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationIdTableStats {
    /// Ids.
    pub ids: usize,
    /// Bytes of chunks and index.
    pub bytes: usize,
}

/// The operation ids of one shard.
#[derive(Debug)]
pub struct OperationIdTable {
    settings: OperationIdSettings,
    hasher: RandomState,
    rows: Rows,
    /// Low halves of row positions, by id.
    index: Box<[HashTable<u32>]>,
    index_bytes: usize,
    len: usize,
    /// Rows from here on were not drained yet.
    drained_end: u64,
    /// The newest row's time.
    newest_ms: u64,
}

impl OperationIdTable {
    /// An empty table.
    #[must_use]
    pub fn new(settings: OperationIdSettings) -> Self {
        Self {
            settings,
            hasher: RandomState::default(),
            rows: Rows::default(),
            index: (0..INDEX_PARTS).map(|_| HashTable::new()).collect(),
            index_bytes: INDEX_PARTS * size_of::<HashTable<u32>>(),
            len: 0,
            drained_end: 0,
            newest_ms: 0,
        }
    }

    /// What it holds.
    #[must_use]
    pub fn stats(&self) -> OperationIdTableStats {
        OperationIdTableStats { ids: self.len, bytes: self.index_bytes + self.rows.bytes() }
    }

    /// What is known of this id, for an operation with this fingerprint.
    #[must_use]
    pub fn get(&self, id: &[u8], fingerprint: Fingerprint) -> Lookup {
        match self.find(id).and_then(|position| self.rows.get(position)) {
            None => Lookup::Unknown,
            Some(row) if row.fingerprint == fingerprint => Lookup::Known(row.result),
            Some(_) => Lookup::Reused,
        }
    }

    /// Looks at where the id is or would be, so that the memory is there when [`get`](Self::get) and
    /// [`insert`](Self::insert) ask for it: looks at several ids overlap, since nothing waits for what they find.
    pub fn prefetch(&self, id: &[u8]) {
        let hash = self.hasher.hash_one(id);
        std::hint::black_box(self.index[part(hash)].find(hash, |_| false));
    }

    /// May an unknown id that was made at `born` be used?
    ///
    /// # Errors
    /// - `id_expired`: the id may have been used and forgotten;
    /// - `bad_request`: it comes from the future, and would outlive its own expiry.
    pub fn check_born(&self, born_ms: u64, now_ms: u64) -> Result<(), ErrorCode> {
        if born_ms.saturating_add(self.settings.ids_window_ms) < now_ms {
            return Err(ErrorCode::IdExpired);
        }
        if born_ms > now_ms.saturating_add(self.settings.born_ahead_ms) {
            return Err(ErrorCode::BadRequest);
        }
        Ok(())
    }

    /// Is there room for one more id of this length? If not, the operation is refused (`overloaded`).
    #[must_use]
    pub fn has_room(&self, id_len: usize) -> bool {
        self.index_bytes + self.rows.bytes_with(ROW_BYTES + id_len) <= self.settings.ids_bytes_max
            && self.rows.span() < SPAN_MAX
    }

    /// Keeps an unknown id and its operation's answer. The caller asked [`OperationIdTable::has_room`].
    pub fn insert(&mut self, id: &[u8], fingerprint: Fingerprint, result: StoredResult, now_ms: u64) {
        debug_assert!(self.find(id).is_none(), "the id is known already");
        // Twice as many leave as come, so that under a steady load the table holds little beyond its window.
        self.expire(now_ms, 2);
        // Times never fall, or the oldest would not be at the front.
        self.newest_ms = self.newest_ms.max(now_ms);
        self.push(Row { id, fingerprint, result, seen_ms: self.newest_ms });
    }

    /// Forgets up to `budget` ids that have left the window and were drained. Gives how many.
    pub fn expire(&mut self, now_ms: u64, budget: usize) -> usize {
        for forgotten in 0..budget {
            let position = self.rows.settle(self.rows.start);
            let oldest = self.rows.get(position).filter(|_| position < self.drained_end);
            let Some(row) = oldest.filter(|row| self.settings.id_has_expired(row.seen_ms, now_ms)) else {
                return forgotten;
            };
            let hash = self.hasher.hash_one(row.id);
            self.rows.pop_front();
            self.len -= 1;
            self.unindex(hash, position);
        }
        budget
    }

    /// Are there ids that no drain has handed out?
    #[must_use]
    pub fn has_new(&self) -> bool {
        self.drained_end < self.rows.end
    }

    /// About how many bytes a drain would encode.
    #[must_use]
    pub fn new_bytes(&self) -> usize {
        (self.rows.end - self.drained_end) as usize
    }

    /// Hands out the ids that came since the last drain, in the order of their coming.
    pub fn drain_new(&mut self, mut emit: impl FnMut(&Entry<'_>)) {
        let mut position = self.drained_end;
        while let Some((row, next)) = self.rows.next(position) {
            let Row { id, fingerprint, result, seen_ms } = row;
            emit(&Entry::OperationId { id, fingerprint, result, seen_ms });
            position = next;
        }
        self.drained_end = self.rows.end;
    }

    /// Recovery: takes an entry of a page or of a record, in any order; one about other things is ignored. Of two
    /// entries about one id the later counts.
    ///
    /// # Errors
    /// The table can't hold it.
    pub fn restore(&mut self, entry: &Entry<'_>) -> Result<(), OperationIdRestoreError> {
        let Entry::OperationId { id, fingerprint, result, seen_ms } = *entry else { return Ok(()) };
        if id.is_empty() || id.len() > OPERATION_ID_BYTES_MAX {
            return Err(OperationIdRestoreError::Length(id.len()));
        }
        if self.rows.span() >= SPAN_MAX {
            return Err(OperationIdRestoreError::TooMany);
        }
        let row = Row { id, fingerprint, result, seen_ms };
        match self.find(id) {
            None => self.push(row),
            Some(position) if self.rows.get(position).is_some_and(|known| known.seen_ms < seen_ms) => {
                self.rows.write(position, row);
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Ends recovery: brings the ids into the order of their time, and counts them as drained.
    pub fn finish_restore(&mut self) {
        let mut order = Vec::with_capacity(self.len);
        let mut position = self.rows.start;
        while let Some((row, next)) = self.rows.next(position) {
            order.push((row.seen_ms, self.rows.settle(position)));
            position = next;
        }
        if !order.is_sorted() {
            order.sort_unstable();
            let unordered = std::mem::take(&mut self.rows);
            self.index.iter_mut().for_each(HashTable::clear);
            self.len = 0;
            for row in order.iter().filter_map(|&(_, position)| unordered.get(position)) {
                self.push(row);
            }
        }
        self.newest_ms = order.last().map_or(0, |&(seen_ms, _)| seen_ms);
        self.drained_end = self.rows.end;
    }

    fn push(&mut self, row: Row<'_>) {
        let hash = self.hasher.hash_one(row.id);
        let position = self.rows.push(row);
        self.len += 1;
        let (rows, hasher, part) = (&self.rows, &self.hasher, &mut self.index[part(hash)]);
        let bytes = part.allocation_size();
        part.insert_unique(hash, position as u32, |&low| {
            rows.get(rows.position(low)).map_or(0, |row| hasher.hash_one(row.id))
        });
        self.index_bytes = self.index_bytes + part.allocation_size() - bytes;
    }

    fn find(&self, id: &[u8]) -> Option<u64> {
        let hash = self.hasher.hash_one(id);
        let has_id = |&low: &u32| self.rows.get(self.rows.position(low)).is_some_and(|row| row.id == id);
        self.index[part(hash)].find(hash, has_id).map(|&low| self.rows.position(low))
    }

    fn unindex(&mut self, hash: u64, position: u64) {
        let (rows, hasher, part) = (&self.rows, &self.hasher, &mut self.index[part(hash)]);
        let bytes = part.allocation_size();
        if let Ok(entry) = part.find_entry(hash, |&low| low == position as u32) {
            entry.remove();
        }
        if part.capacity() > 64 && part.len() < part.capacity() / 8 {
            part.shrink_to(2 * part.len(), |&low| {
                rows.get(rows.position(low)).map_or(0, |row| hasher.hash_one(row.id))
            });
        }
        self.index_bytes = self.index_bytes + part.allocation_size() - bytes;
    }
}

/// The part of the index for a hash; hash tables use the lowest and the highest bits.
fn part(hash: u64) -> usize {
    (hash >> 40) as usize % INDEX_PARTS
}

#[derive(Debug, Clone, Copy)]
struct Row<'t> {
    id: &'t [u8],
    fingerprint: Fingerprint,
    result: StoredResult,
    seen_ms: u64,
}

impl<'t> Row<'t> {
    /// Reads the row at the beginning of `bytes`.
    fn read(bytes: &'t [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<ROW_BYTES>()?;
        let word = |at: usize| head.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
        let result = match ErrorCode::from_number(head[1]) {
            None => StoredResult::Value(word(10)? as i64),
            Some(code) => StoredResult::Error(code),
        };
        let id = rest.get(..usize::from(head[0]))?;
        Some(Row { id, fingerprint: Fingerprint(word(2)?), result, seen_ms: word(18)? })
    }

    /// Writes the row to `bytes`, which has its length.
    fn write(self, bytes: &mut [u8]) {
        let (value, error) = match self.result {
            StoredResult::Value(value) => (value, 0),
            StoredResult::Error(code) => (0, code as u8),
        };
        bytes[0] = self.id.len() as u8;
        bytes[1] = error;
        bytes[2..10].copy_from_slice(&self.fingerprint.0.to_le_bytes());
        bytes[10..18].copy_from_slice(&value.to_le_bytes());
        bytes[18..26].copy_from_slice(&self.seen_ms.to_le_bytes());
        bytes[ROW_BYTES..].copy_from_slice(self.id);
    }

    fn len(&self) -> usize {
        ROW_BYTES + self.id.len()
    }
}

/// Rows in the order of insertion. A position counts bytes since the beginning; rows don't straddle chunks, and a
/// 0, with which no row begins, closes a chunk that has bytes left.
#[derive(Debug, Default)]
struct Rows {
    chunks: VecDeque<Box<[u8]>>,
    /// The position at which the first chunk begins.
    base: u64,
    /// The position of the oldest row, or of the 0 before it; `end` if there is none.
    start: u64,
    /// Where the next row goes if it fits.
    end: u64,
    /// A chunk that became empty, for the next one needed.
    spare: Option<Box<[u8]>>,
}

impl Rows {
    fn bytes(&self) -> usize {
        (self.chunks.len() + usize::from(self.spare.is_some())) * CHUNK_BYTES
    }

    /// The bytes after a push of a row of so many.
    fn bytes_with(&self, row_len: usize) -> usize {
        let opens_chunk = self.place_for(row_len) >= self.base + (self.chunks.len() * CHUNK_BYTES) as u64;
        self.bytes() + if opens_chunk && self.spare.is_none() { CHUNK_BYTES } else { 0 }
    }

    fn span(&self) -> u64 {
        self.end - self.start
    }

    /// The position whose low half this is.
    fn position(&self, low: u32) -> u64 {
        self.start + u64::from(low.wrapping_sub(self.start as u32))
    }

    /// Where the next row, of this length, will begin.
    fn place_for(&self, row_len: usize) -> u64 {
        let used = self.end as usize % CHUNK_BYTES;
        if used + row_len > CHUNK_BYTES { self.end.next_multiple_of(CHUNK_BYTES as u64) } else { self.end }
    }

    /// What the chunk holds from the position on.
    fn tail(&self, position: u64) -> Option<&[u8]> {
        let offset = usize::try_from(position.checked_sub(self.base)?).ok()?;
        self.chunks.get(offset / CHUNK_BYTES)?.get(offset % CHUNK_BYTES..)
    }

    fn tail_mut(&mut self, position: u64) -> Option<&mut [u8]> {
        let offset = usize::try_from(position.checked_sub(self.base)?).ok()?;
        self.chunks.get_mut(offset / CHUNK_BYTES)?.get_mut(offset % CHUNK_BYTES..)
    }

    /// Moves from the 0 that closes a chunk to the next chunk's beginning.
    fn settle(&self, position: u64) -> u64 {
        match self.tail(position) {
            Some([0, ..]) if position < self.end => (position + 1).next_multiple_of(CHUNK_BYTES as u64),
            _ => position,
        }
    }

    /// The row that begins at the position.
    fn get(&self, position: u64) -> Option<Row<'_>> {
        if position < self.end { Row::read(self.tail(position)?) } else { None }
    }

    /// The row at the position or after the 0 there, and the position after that row.
    fn next(&self, position: u64) -> Option<(Row<'_>, u64)> {
        let position = self.settle(position);
        self.get(position).map(|row| (row, position + row.len() as u64))
    }

    fn push(&mut self, row: Row<'_>) -> u64 {
        let position = self.place_for(row.len());
        if position > self.end
            && let Some([closing, ..]) = self.tail_mut(self.end)
        {
            *closing = 0;
        }
        if position >= self.base + (self.chunks.len() * CHUNK_BYTES) as u64 {
            let chunk = self.spare.take().unwrap_or_else(|| vec![0; CHUNK_BYTES].into_boxed_slice());
            self.chunks.push_back(chunk);
        }
        self.end = position + row.len() as u64;
        self.write(position, row);
        position
    }

    fn write(&mut self, position: u64, row: Row<'_>) {
        if let Some(bytes) = self.tail_mut(position).and_then(|tail| tail.get_mut(..row.len())) {
            row.write(bytes);
        }
    }

    fn pop_front(&mut self) {
        let Some((_, next)) = self.next(self.start) else { return };
        self.start = next;
        while self.base + CHUNK_BYTES as u64 <= self.start {
            self.spare = self.chunks.pop_front();
            self.base += CHUNK_BYTES as u64;
        }
    }
}

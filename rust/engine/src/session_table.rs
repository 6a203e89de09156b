//! The exactly-once memory of smart clients: for each session its last sequence and the results it has not
//! acknowledged yet, so that a repeated operation gets its first answer instead of counting again.
//!
//! One thread owns the table (`&mut self`); it knows no clock: `now_ms` is the shard's journaled uptime.
//!
//! # Durability
//!
//! What changed since the last drain is handed out by [`SessionTable::drain_dirty`], in the same commit as the
//! counters it changed. An acknowledgement alone is no reason for a commit: it rides along with the next one,
//! and losing it in a crash only keeps results longer. A session's mere use (`hello`, repeated operations) is
//! journaled once in 1/64 of the window, and a session is kept for that much longer than the window, so that it
//! never leaves early even if its last uses were not journaled.
//!
//! # Ends
//!
//! `bye` and expiry alike turn a row into a tombstone, journaled as `SessionEnded`. A tombstone is kept for the
//! tombstone window, and until it has been drained.
//!
//! Pages drop rows by [`SessionSettings::session_has_expired`] and tombstones by
//! [`SessionSettings::tombstone_has_expired`], both at the uptime that they are folded to. So once a row's journaled
//! use is that old, the table refuses the session even before [`SessionTable::expire`] comes by: results after those
//! that a page has dropped would be read as a gap. A row that waits to be drained is in no such page: the drain
//! comes before the commit that could make its page drop it.
//!
//! # Memory
//!
//! [`ROW_BYTES`] (96) for a session, [`RESULT_BYTES`] (17) for a kept result (room for results grows by half, and is
//! given back when three quarters are empty), [`TOMBSTONE_BYTES`] (64) for an ended session.

mod recovery;
pub mod row;
mod settings;

use std::collections::VecDeque;
use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::{HashMap, HashTable};

pub use self::recovery::SessionRestoreError;
use self::settings::RESULTS_CAPACITY_MIN;
pub use self::settings::SessionSettings;
use crate::error_code::ErrorCode;
use crate::journal::entry::{Entry, Fingerprint, StoredResult};
use crate::session_table::row::SessionRow;
pub use crate::session_table::row::{RESULT_BYTES, merge_session_entry};
use crate::wire::request::SessionId;

/// Bytes counted for each session, its place in the index included.
pub const ROW_BYTES: usize = size_of::<Option<Slot>>() + 8;
/// Bytes counted for each ended session that is still remembered.
pub const TOMBSTONE_BYTES: usize = 64;

/// A drained entry holds at most so many results, so that it stays far below a record's size.
const ENTRY_RESULTS_MAX: usize = 4096;
/// Below this many, empty room is not given back.
const SHRINK_CAPACITY_MIN: usize = 64;

/// What the table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionTableStats {
    /// Live sessions.
    pub sessions: usize,
    /// Ended ones still remembered.
    pub tombstones: usize,
    /// Counted bytes, as the header says.
    pub bytes: usize,
}

#[derive(Debug)]
struct Slot {
    session: SessionId,
    row: SessionRow,
    /// Results up to here were handed out by a drain.
    drained_through: u64,
    /// The `used_ms` that was handed out last.
    drained_used_ms: u64,
    /// Is it in the list of dirty slots?
    dirty: bool,
    /// Restored with results missing.
    gapped: bool,
}

/// The sessions of one shard.
#[derive(Debug)]
pub struct SessionTable {
    settings: SessionSettings,
    hasher: RandomState,
    slots: Vec<Option<Slot>>,
    free_slots: Vec<u32>,
    /// Slot numbers, by session.
    index: HashTable<u32>,
    /// Slots to drain; a number may be stale or twice in it (`Slot::dirty` tells).
    dirty_slots: Vec<u32>,
    /// At most so many results wait to be drained.
    dirty_results: usize,
    /// Does something wait that replies depend on?
    is_dirty: bool,
    ended_ms: HashMap<SessionId, u64, RandomState>,
    /// In the order of `ended_ms`; stale where `ended_ms` says otherwise.
    tombstones: VecDeque<(SessionId, u64)>,
    /// The last so many tombstones were not drained yet.
    tombstones_undrained: usize,
    /// Room for results, over all sessions, in bytes.
    results_bytes: usize,
    /// Where the search for expired sessions goes on.
    expiry_cursor: usize,
}

/// An accepted batch: first [`Batch::old_count`] items that were applied before, whose answers
/// [`SessionTable::old_result`] has, then new ones, each of which the caller applies and then
/// [records](SessionTable::record). A handle, good until the table is used for anything else.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    slot: u32,
    old_count: usize,
}

/// What an accepted batch takes.
struct Plan {
    /// `None`: a row is to be made.
    slot: Option<u32>,
    old_count: usize,
    /// Room for results that the row is to have.
    capacity: usize,
}

impl Batch {
    /// So many leading items were applied before and must not be applied again.
    #[must_use]
    pub fn old_count(self) -> usize {
        self.old_count
    }
}

impl SessionTable {
    /// An empty table.
    #[must_use]
    pub fn new(settings: SessionSettings) -> Self {
        let hasher = RandomState::default();
        Self {
            settings,
            slots: Vec::new(),
            free_slots: Vec::new(),
            index: HashTable::new(),
            dirty_slots: Vec::new(),
            dirty_results: 0,
            is_dirty: false,
            ended_ms: HashMap::with_hasher(hasher.clone()),
            hasher,
            tombstones: VecDeque::new(),
            tombstones_undrained: 0,
            results_bytes: 0,
            expiry_cursor: 0,
        }
    }

    /// What it holds.
    #[must_use]
    pub fn stats(&self) -> SessionTableStats {
        SessionTableStats { sessions: self.index.len(), tombstones: self.tombstones.len(), bytes: self.bytes() }
    }

    fn bytes(&self) -> usize {
        self.index.len() * ROW_BYTES + self.tombstones.len() * TOMBSTONE_BYTES + self.results_bytes
    }

    /// Opens a batch of `count` operations from `first_sequence` on, or refuses it whole, changing nothing.
    ///
    /// An accepted batch raises the session's `acked_through` and counts as use of the session. A session begins
    /// with its first batch at sequence 1. Without items it is an acknowledgement of a session that exists.
    ///
    /// # Errors
    /// - `bad_request`: sequence 0, sequences that leave 64 bits, or an acknowledgement above the last sequence
    ///   applied;
    /// - `session_unknown`: never seen (and this isn't its beginning), ended, or expired;
    /// - `sequence_gap`: operations before `first_sequence` are missing;
    /// - `too_large`: more new items than one session may ever keep results of;
    /// - `overloaded`: a bound of the settings.
    pub fn begin_batch(
        &mut self,
        session: SessionId,
        first_sequence: u64,
        count: usize,
        acked_through: u64,
        now_ms: u64,
    ) -> Result<Batch, ErrorCode> {
        let plan = self.plan_batch(session, first_sequence, count, acked_through, now_ms)?;
        let slot = match plan.slot {
            Some(slot) => {
                self.prepare(slot, acked_through, &plan);
                slot
            }
            None => {
                let mut row = SessionRow::new(now_ms);
                row.set_capacity(plan.capacity);
                let (drained_through, drained_used_ms) = (0, now_ms);
                self.insert(Slot { session, row, drained_through, drained_used_ms, dirty: false, gapped: false })
            }
        };
        let old_count = plan.old_count;
        let new_count = count - old_count;
        if new_count > 0 {
            self.is_dirty = true;
            self.mark_dirty(slot);
        }
        self.use_slot(slot, now_ms);
        Ok(Batch { slot, old_count })
    }

    /// Would [`begin_batch`](Self::begin_batch) accept it?
    ///
    /// # Errors
    /// As there.
    pub fn check_batch(
        &self,
        session: SessionId,
        first_sequence: u64,
        count: usize,
        acked_through: u64,
        now_ms: u64,
    ) -> Result<(), ErrorCode> {
        self.plan_batch(session, first_sequence, count, acked_through, now_ms).map(|_| ())
    }

    /// The answer to an old item of the batch.
    ///
    /// # Errors
    /// - `already_settled`: the client acknowledged its result before;
    /// - `id_reused`: another operation has this sequence.
    pub fn old_result(&self, batch: Batch, sequence: u64, fingerprint: Fingerprint) -> Result<StoredResult, ErrorCode> {
        let slot = self.slots.get(batch.slot as usize).and_then(Option::as_ref);
        match slot.and_then(|slot| slot.row.result(sequence)) {
            None => Err(ErrorCode::AlreadySettled),
            Some((known, result)) if known == fingerprint => Ok(result),
            Some(_) => Err(ErrorCode::IdReused),
        }
    }

    /// Keeps the outcome of the batch's next new item, which thereby consumes its sequence.
    ///
    /// At most as often as the batch has new items: room was made for those.
    pub fn record(&mut self, batch: Batch, fingerprint: Fingerprint, result: StoredResult) {
        let Some(slot) = self.slots.get_mut(batch.slot as usize).and_then(Option::as_mut) else {
            debug_assert!(false, "the batch is not the table's latest");
            return;
        };
        debug_assert!(slot.row.results_len() < slot.row.capacity(), "more outcomes than the batch has new items");
        self.dirty_results += 1;
        slot.row.push(fingerprint, result);
    }

    /// All of a batch's checks, and what accepting it takes.
    fn plan_batch(
        &self,
        session: SessionId,
        first_sequence: u64,
        count: usize,
        acked_through: u64,
        now_ms: u64,
    ) -> Result<Plan, ErrorCode> {
        let next_sequence = first_sequence.checked_add(count as u64).filter(|&next| next < u64::MAX);
        let Some(next_sequence) = next_sequence.filter(|_| first_sequence > 0) else {
            return Err(ErrorCode::BadRequest);
        };
        match self.find(session) {
            Some(slot) if self.is_over(slot, now_ms) => Err(ErrorCode::SessionUnknown),
            Some(slot) => self.plan_known(slot, first_sequence, next_sequence, acked_through),
            None => self.plan_first(session, first_sequence, count, acked_through),
        }
    }

    /// A batch of an existing session.
    fn plan_known(
        &self,
        slot: u32,
        first_sequence: u64,
        next_sequence: u64,
        acked_through: u64,
    ) -> Result<Plan, ErrorCode> {
        let row = &self.slots[slot as usize].as_ref().ok_or(ErrorCode::Internal)?.row;
        let expected = row.last_sequence().saturating_add(1);
        if first_sequence > expected {
            return Err(ErrorCode::SequenceGap);
        }
        if acked_through >= expected {
            return Err(ErrorCode::BadRequest);
        }
        let old_count = (expected.min(next_sequence) - first_sequence) as usize;
        let new_count = next_sequence.saturating_sub(expected) as usize;
        let settled = acked_through.saturating_sub(row.acked_through()) as usize;
        let needed = row.results_len() - settled + new_count;
        let capacity = row.capacity();
        let capacity_wanted = if new_count > 0 {
            let others_bytes = self.bytes() - capacity * RESULT_BYTES;
            self.settings.room_for(needed, new_count, capacity, others_bytes)?
        } else {
            capacity
        };
        let is_too_wide = capacity_wanted <= capacity && capacity > SHRINK_CAPACITY_MIN && needed < capacity / 4;
        let capacity = if is_too_wide { needed.max(RESULTS_CAPACITY_MIN) } else { capacity_wanted };
        Ok(Plan { slot: Some(slot), old_count, capacity })
    }

    /// The first batch of a session.
    fn plan_first(
        &self,
        session: SessionId,
        first_sequence: u64,
        count: usize,
        acked_through: u64,
    ) -> Result<Plan, ErrorCode> {
        if first_sequence > 1 || count == 0 || self.ended_ms.contains_key(&session) {
            return Err(ErrorCode::SessionUnknown);
        }
        if acked_through > 0 {
            return Err(ErrorCode::BadRequest);
        }
        if self.index.len() >= self.settings.sessions_max {
            return Err(ErrorCode::Overloaded);
        }
        let capacity = self.settings.room_for(count, count, 0, self.bytes() + ROW_BYTES)?;
        Ok(Plan { slot: None, old_count: 0, capacity })
    }

    /// Takes an accepted batch's acknowledgement and makes room for its new items.
    fn prepare(&mut self, number: u32, acked_through: u64, plan: &Plan) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let row = &mut slot.row;
        let before = row.capacity();
        let acked_rises = acked_through > row.acked_through();
        row.acknowledge(acked_through);
        if plan.capacity != before {
            row.set_capacity(plan.capacity);
        }
        self.results_bytes = self.results_bytes + row.capacity() * RESULT_BYTES - before * RESULT_BYTES;
        if acked_rises {
            self.mark_dirty(number);
        }
    }

    /// The session's last sequence, for a client that resumes it; counts as use of the session.
    /// `None`: unknown, ended, or expired.
    pub fn resume(&mut self, session: SessionId, now_ms: u64) -> Option<u64> {
        let slot = self.find(session).filter(|&slot| !self.is_over(slot, now_ms))?;
        self.use_slot(slot, now_ms);
        self.last_sequence(session)
    }

    /// The session's last sequence.
    #[must_use]
    pub fn last_sequence(&self, session: SessionId) -> Option<u64> {
        let slot = self.slots.get(self.find(session)? as usize)?.as_ref()?;
        Some(slot.row.last_sequence())
    }

    /// Ends a session; once more is fine for as long as its tombstone is kept.
    ///
    /// # Errors
    /// `session_unknown`: never seen, or forgotten.
    pub fn end(&mut self, session: SessionId, now_ms: u64) -> Result<(), ErrorCode> {
        match self.find(session) {
            Some(slot) => {
                self.bury(slot, now_ms);
                Ok(())
            }
            None if self.ended_ms.contains_key(&session) => Ok(()),
            None => Err(ErrorCode::SessionUnknown),
        }
    }

    /// Looks at up to `budget` rows and as many tombstones for expired ones. Gives how many sessions ended by it.
    ///
    /// Called with a budget of a hundredth of the sessions a second, say, it finds each within minutes. Rows
    /// that wait to be drained stay.
    pub fn expire(&mut self, now_ms: u64, budget: usize) -> usize {
        self.expire_tombstones(now_ms, budget);
        let mut ended = 0;
        for _ in 0..budget.min(self.slots.len()) {
            self.expiry_cursor = (self.expiry_cursor + 1) % self.slots.len();
            if self.is_over(self.expiry_cursor as u32, now_ms) {
                self.bury(self.expiry_cursor as u32, now_ms);
                ended += 1;
            }
        }
        ended
    }

    fn expire_tombstones(&mut self, now_ms: u64, budget: usize) {
        for _ in 0..budget.min(self.tombstones.len() - self.tombstones_undrained) {
            match self.tombstones.front() {
                Some(&(session, ended_ms)) if self.settings.tombstone_has_expired(ended_ms, now_ms) => {
                    self.tombstones.pop_front();
                    if self.ended_ms.get(&session) == Some(&ended_ms) {
                        self.ended_ms.remove(&session);
                    }
                }
                _ => break,
            }
        }
    }

    /// Is something waiting for a drain on which replies depend? (An acknowledgement alone is not.)
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// About how many bytes a drain would encode.
    #[must_use]
    pub fn dirty_bytes(&self) -> usize {
        self.dirty_results * 19 + self.dirty_slots.len() * 48 + self.tombstones_undrained * 28
    }

    /// Hands out what is new since the last drain: for each changed session its new results (several entries in
    /// a row if they are many), for each ended one its tombstone.
    pub fn drain_dirty(&mut self, mut emit: impl FnMut(&Entry<'_>)) {
        let mut buffer = Vec::new();
        for slot in self.dirty_slots.drain(..) {
            let Some(slot) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else { continue };
            if std::mem::take(&mut slot.dirty) {
                buffer = slot.drain(buffer, &mut emit);
            }
        }
        for &(session, ended_ms) in self.tombstones.range(self.tombstones.len() - self.tombstones_undrained..) {
            emit(&Entry::SessionEnded { session, ended_ms });
        }
        self.tombstones_undrained = 0;
        self.dirty_results = 0;
        self.is_dirty = false;
    }

    /// Was the session unused for so long that pages may have dropped it?
    fn is_over(&self, number: u32, now_ms: u64) -> bool {
        let slot = self.slots.get(number as usize).and_then(Option::as_ref);
        slot.is_some_and(|slot| !slot.dirty && self.settings.session_has_expired(slot.drained_used_ms, now_ms))
    }

    fn find(&self, session: SessionId) -> Option<u32> {
        let hash = self.hasher.hash_one(session);
        let is_it = |&slot: &u32| matches!(&self.slots[slot as usize], Some(slot) if slot.session == session);
        self.index.find(hash, is_it).copied()
    }

    fn insert(&mut self, slot: Slot) -> u32 {
        let hash = self.hasher.hash_one(slot.session);
        self.results_bytes += slot.row.capacity() * RESULT_BYTES;
        let number = match self.free_slots.pop() {
            Some(number) => {
                self.slots[number as usize] = Some(slot);
                number
            }
            None => {
                self.slots.push(Some(slot));
                (self.slots.len() - 1) as u32
            }
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hash, number, |&number| {
            slots[number as usize].as_ref().map_or(0, |slot| hasher.hash_one(slot.session))
        });
        number
    }

    fn remove(&mut self, number: u32) -> Option<Slot> {
        let slot = self.slots.get_mut(number as usize)?.take()?;
        let hash = self.hasher.hash_one(slot.session);
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == number) {
            entry.remove();
        }
        self.results_bytes -= slot.row.capacity() * RESULT_BYTES;
        self.free_slots.push(number);
        Some(slot)
    }

    /// Turns a row into a tombstone.
    fn bury(&mut self, number: u32, now_ms: u64) {
        let Some(slot) = self.remove(number) else { return };
        // Never before the row's last use, nor before an earlier tombstone: times must not fall.
        let newest_ms = self.tombstones.back().map_or(0, |&(_, ended_ms)| ended_ms);
        let ended_ms = now_ms.max(slot.row.used_ms()).max(newest_ms);
        self.ended_ms.insert(slot.session, ended_ms);
        self.tombstones.push_back((slot.session, ended_ms));
        self.tombstones_undrained += 1;
        self.is_dirty = true;
    }

    fn use_slot(&mut self, number: u32, now_ms: u64) {
        let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut) else { return };
        slot.row.touch(now_ms);
        if slot.row.used_ms() > slot.drained_used_ms.saturating_add(self.settings.refresh_ms()) {
            self.is_dirty = true;
            self.mark_dirty(number);
        }
    }

    fn mark_dirty(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(number as usize).and_then(Option::as_mut)
            && !std::mem::replace(&mut slot.dirty, true)
        {
            self.dirty_slots.push(number);
        }
    }
}

impl Slot {
    /// Hands out what is new; gives the buffer back.
    fn drain(
        &mut self,
        mut results: Vec<(Fingerprint, StoredResult)>,
        emit: &mut impl FnMut(&Entry<'_>),
    ) -> Vec<(Fingerprint, StoredResult)> {
        let (acked_through, used_ms) = (self.row.acked_through(), self.row.used_ms());
        let last_sequence = self.row.last_sequence();
        let mut first_sequence = self.drained_through.max(acked_through).saturating_add(1);
        loop {
            results.clear();
            self.row.collect_results(first_sequence, ENTRY_RESULTS_MAX, &mut results);
            let next_sequence = first_sequence + results.len() as u64;
            let entry = Entry::Session { session: self.session, acked_through, first_sequence, used_ms, results };
            emit(&entry);
            let Entry::Session { results: buffer, .. } = entry else { unreachable!("it was made just above") };
            results = buffer;
            first_sequence = next_sequence;
            if first_sequence > last_sequence {
                break;
            }
        }
        self.drained_through = last_sequence;
        self.drained_used_ms = used_ms;
        results
    }
}

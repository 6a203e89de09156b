//! Rebuilds the session table from pages and records, by the rules of `row`.

use thiserror::Error;

use super::{SessionTable, Slot};
use crate::journal::entry::Entry;
use crate::session_table::row::{Merge, RESULT_BYTES, SessionFacts, SessionRow};
use crate::wire::request::SessionId;

/// Why the restored state can't be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SessionRestoreError {
    /// A session's results are not contiguous.
    #[error("results of session {0:02x?} are missing before sequence {1}")]
    Gap(SessionId, u64),
}

impl SessionTable {
    /// Recovery: takes an entry of a page or of a record; one about other things is ignored. Pages come first, in
    /// any order, then records in theirs. What is contained already changes nothing.
    pub fn restore(&mut self, entry: &Entry<'_>) {
        match *entry {
            Entry::Session { session, acked_through, first_sequence, used_ms, ref results } => {
                self.restore_session(session, SessionFacts { acked_through, first_sequence, used_ms, results });
            }
            Entry::SessionEnded { session, ended_ms } => self.restore_ended(session, ended_ms),
            _ => {}
        }
    }

    /// Ends recovery.
    ///
    /// # Errors
    /// Results of a session are missing: records or pages were lost.
    pub fn finish_restore(&mut self) -> Result<(), SessionRestoreError> {
        self.tombstones.make_contiguous().sort_unstable_by_key(|&(_, ended_ms)| ended_ms);
        match self.slots.iter().flatten().find(|slot| slot.gapped) {
            Some(slot) => Err(SessionRestoreError::Gap(slot.session, slot.row.acked_through().saturating_add(1))),
            None => Ok(()),
        }
    }

    fn restore_session(&mut self, session: SessionId, facts: SessionFacts<'_>) {
        if self.ended_ms.get(&session).is_some_and(|&ended_ms| facts.used_ms <= ended_ms) {
            return;
        }
        self.ended_ms.remove(&session);
        let slot_number = self.find(session).unwrap_or_else(|| {
            let row = SessionRow::new(facts.used_ms);
            self.insert(Slot { session, row, drained_through: 0, drained_used_ms: 0, dirty: false, gapped: false })
        });
        let Some(slot) = self.slots.get_mut(slot_number as usize).and_then(Option::as_mut) else { return };
        let capacity = slot.row.capacity();
        slot.gapped |= slot.row.merge(facts) == Merge::Gap;
        slot.drained_through = slot.row.last_sequence();
        slot.drained_used_ms = slot.row.used_ms();
        self.results_bytes = self.results_bytes + slot.row.capacity() * RESULT_BYTES - capacity * RESULT_BYTES;
    }

    fn restore_ended(&mut self, session: SessionId, ended_ms: u64) {
        if let Some(slot) = self.find(session) {
            let used_ms = self.slots[slot as usize].as_ref().map_or(0, |slot| slot.row.used_ms());
            if ended_ms < used_ms {
                return;
            }
            self.remove(slot);
        }
        if self.ended_ms.get(&session).is_none_or(|&known_ms| known_ms < ended_ms) {
            self.ended_ms.insert(session, ended_ms);
            self.tombstones.push_back((session, ended_ms));
        }
    }
}

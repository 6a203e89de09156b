//! One session's row, and the one set of rules by which journal entries build it: the table uses them when it
//! recovers, the checkpointer when it folds records into pages, so both arrive at the same state.
//!
//! # Order
//!
//! A page may be newer than the position from which records are read again, so an entry may meet a row that
//! already contains it, or a later life of the same session id. Times decide, because within one session the
//! times of its entries never fall:
//!
//! - an entry with a smaller `used_ms` than the row's is contained in the row already, and is skipped;
//! - with the same `used_ms`, results up to the row's last sequence are skipped;
//! - a tombstone beats a `Session` entry unless that one is later: only a new life of the id, begun when the
//!   tombstone was gone, can be;
//! - a row beats a `SessionEnded` entry that is earlier than the row's last use.

use std::collections::VecDeque;

use crate::error_code::ErrorCode;
use crate::journal::entry::{Entry, Fingerprint, StoredResult};
use crate::wire::request::SessionId;

/// A kept result, in 17 bytes: the memory of a busy shard's sessions is mostly these.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed)]
struct PackedResult {
    fingerprint: u64,
    value: i64,
    /// An error's number; 0 where there is a value.
    error: u8,
}

impl PackedResult {
    fn pack(fingerprint: Fingerprint, result: StoredResult) -> Self {
        let (value, error) = match result {
            StoredResult::Value(value) => (value, 0),
            StoredResult::Error(code) => (0, code as u8),
        };
        Self { fingerprint: fingerprint.0, value, error }
    }

    fn unpack(self) -> (Fingerprint, StoredResult) {
        let result = match ErrorCode::from_number(self.error) {
            None => StoredResult::Value(self.value),
            Some(code) => StoredResult::Error(code),
        };
        (Fingerprint(self.fingerprint), result)
    }
}

/// Bytes of memory for each kept result.
pub const RESULT_BYTES: usize = size_of::<PackedResult>();

/// What an entry did to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// Nothing: the row contains it.
    Older,
    /// The row now contains it.
    Merged,
    /// Results between the row's last one and the entry's first one are missing. The row now holds the entry
    /// alone. Harmless if a tombstone follows, damage if not.
    Gap,
}

/// What a `Session` entry says of its session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionFacts<'e> {
    pub acked_through: u64,
    pub first_sequence: u64,
    pub used_ms: u64,
    pub results: &'e [(Fingerprint, StoredResult)],
}

impl SessionFacts<'_> {
    /// Results up to here are kept elsewhere or by nobody.
    fn settled_through(&self) -> u64 {
        self.acked_through.max(self.first_sequence.saturating_sub(1))
    }

    /// Does it not say everything from sequence `known_through + 1` on?
    fn leaves_gap_after(&self, known_through: u64) -> bool {
        self.first_sequence.saturating_sub(1) > known_through.max(self.acked_through)
    }
}

/// Folds a session's later entry into its earlier one, as a page holds it. Same rules as [`SessionState::merge`].
#[must_use]
pub fn merge_session_entry<'a>(earlier: Option<Entry<'a>>, later: Entry<'a>) -> Entry<'a> {
    let (Entry::Session { session, .. } | Entry::SessionEnded { session, .. }) = later else { return later };
    let state = earlier.and_then(|earlier| SessionState::merge(None, &earlier));
    SessionState::merge(state, &later).map_or(later, |state| state.to_entry(session))
}

/// A session's results above `acked_through`, in order and without holes.
#[derive(Debug, Clone)]
pub struct SessionRow {
    acked_through: u64,
    used_ms: u64,
    results: VecDeque<PackedResult>,
}

impl SessionRow {
    pub(crate) fn new(used_ms: u64) -> Self {
        Self { acked_through: 0, used_ms, results: VecDeque::new() }
    }

    fn from_facts(facts: SessionFacts<'_>) -> Self {
        let mut row = Self::new(facts.used_ms);
        row.acked_through = facts.settled_through();
        row.append(facts);
        row
    }

    /// The sequence of the newest result, 0 before the first.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.acked_through.saturating_add(self.results.len() as u64)
    }

    /// Results up to here are no longer kept.
    #[must_use]
    pub fn acked_through(&self) -> u64 {
        self.acked_through
    }

    /// The shard's uptime at the session's last use, in milliseconds.
    #[must_use]
    pub fn used_ms(&self) -> u64 {
        self.used_ms
    }

    /// How many results are kept.
    #[must_use]
    pub fn results_len(&self) -> usize {
        self.results.len()
    }

    /// The kept result of this sequence.
    #[must_use]
    pub fn result(&self, sequence: u64) -> Option<(Fingerprint, StoredResult)> {
        let index = usize::try_from(sequence.checked_sub(self.acked_through)?.checked_sub(1)?).ok()?;
        self.results.get(index).map(|packed| packed.unpack())
    }

    /// Times never fall, whatever the caller's clock does.
    pub(crate) fn touch(&mut self, now_ms: u64) {
        self.used_ms = self.used_ms.max(now_ms);
    }

    pub(crate) fn push(&mut self, fingerprint: Fingerprint, result: StoredResult) {
        self.results.push_back(PackedResult::pack(fingerprint, result));
    }

    /// Forgets results up to `acked_through`; a value below the present one does nothing.
    pub(crate) fn acknowledge(&mut self, acked_through: u64) {
        let Some(settled) = acked_through.checked_sub(self.acked_through) else { return };
        let kept_len = self.results.len();
        self.results.drain(..usize::try_from(settled).unwrap_or(kept_len).min(kept_len));
        self.acked_through = acked_through;
    }

    pub(crate) fn capacity(&self) -> usize {
        self.results.capacity()
    }

    /// Makes room for exactly so many results, or gives room back.
    pub(crate) fn set_capacity(&mut self, capacity: usize) {
        if capacity > self.results.capacity() {
            self.results.reserve_exact(capacity - self.results.len());
        } else {
            self.results.shrink_to(capacity);
        }
    }

    /// Adds what the facts say, by the rules of the module's header.
    pub(crate) fn merge(&mut self, facts: SessionFacts<'_>) -> Merge {
        if facts.used_ms < self.used_ms {
            return Merge::Older;
        }
        if facts.leaves_gap_after(self.last_sequence()) {
            *self = Self::from_facts(facts);
            return Merge::Gap;
        }
        self.used_ms = facts.used_ms;
        self.acknowledge(facts.acked_through);
        self.append(facts);
        Merge::Merged
    }

    /// Appends the results above the last sequence.
    fn append(&mut self, facts: SessionFacts<'_>) {
        let known = self.last_sequence().saturating_add(1).saturating_sub(facts.first_sequence);
        let fresh = facts.results.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
        self.results.extend(fresh.iter().map(|&(fingerprint, result)| PackedResult::pack(fingerprint, result)));
    }

    /// The results from `first_sequence` on, at most `results_max` of them.
    pub(crate) fn collect_results(
        &self,
        first_sequence: u64,
        results_max: usize,
        into: &mut Vec<(Fingerprint, StoredResult)>,
    ) {
        let skip = first_sequence.saturating_sub(self.acked_through.saturating_add(1));
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(self.results.len());
        into.extend(self.results.range(skip..).take(results_max).map(|packed| packed.unpack()));
    }
}

/// All that is durable about one session id, as a page keeps it.
#[derive(Debug, Clone)]
pub enum SessionState {
    /// It can be used.
    Live(SessionRow),
    /// It has ended; no id of its kind may begin again while this is kept.
    Ended {
        /// The shard's uptime then, in milliseconds.
        ended_ms: u64,
    },
}

impl SessionState {
    /// Folds an entry about this session into what is known of it (`None`: nothing). Entries must come in the
    /// journal's order; one that is contained already changes nothing. Entries about other things are ignored.
    #[must_use]
    pub fn merge(state: Option<SessionState>, entry: &Entry<'_>) -> Option<SessionState> {
        match *entry {
            Entry::Session { acked_through, first_sequence, used_ms, ref results, .. } => {
                let facts = SessionFacts { acked_through, first_sequence, used_ms, results };
                Some(Self::merge_facts(state, facts).0)
            }
            Entry::SessionEnded { ended_ms, .. } => Some(Self::merge_ended(state, ended_ms)),
            _ => state,
        }
    }

    pub(crate) fn merge_facts(state: Option<SessionState>, facts: SessionFacts<'_>) -> (SessionState, Merge) {
        match state {
            Some(SessionState::Live(mut row)) => {
                let merge = row.merge(facts);
                (SessionState::Live(row), merge)
            }
            Some(SessionState::Ended { ended_ms }) if facts.used_ms <= ended_ms => {
                (SessionState::Ended { ended_ms }, Merge::Older)
            }
            Some(SessionState::Ended { .. }) | None => {
                let merge = if facts.leaves_gap_after(0) { Merge::Gap } else { Merge::Merged };
                (SessionState::Live(SessionRow::from_facts(facts)), merge)
            }
        }
    }

    pub(crate) fn merge_ended(state: Option<SessionState>, ended_ms: u64) -> SessionState {
        match state {
            Some(SessionState::Live(row)) if ended_ms < row.used_ms => SessionState::Live(row),
            Some(SessionState::Ended { ended_ms: before }) => SessionState::Ended { ended_ms: before.max(ended_ms) },
            _ => SessionState::Ended { ended_ms },
        }
    }

    /// The entry that a page holds for it: all kept results.
    #[must_use]
    pub fn to_entry(&self, session: SessionId) -> Entry<'static> {
        match self {
            SessionState::Live(row) => {
                let mut results = Vec::with_capacity(row.results.len());
                row.collect_results(0, usize::MAX, &mut results);
                Entry::Session {
                    session,
                    acked_through: row.acked_through,
                    first_sequence: row.acked_through.saturating_add(1),
                    used_ms: row.used_ms,
                    results,
                }
            }
            SessionState::Ended { ended_ms } => Entry::SessionEnded { session, ended_ms: *ended_ms },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId([7; 16]);

    fn entry(acked_through: u64, first_sequence: u64, used_ms: u64, values: &[i64]) -> Entry<'static> {
        let results = values.iter().map(|&value| (Fingerprint(value as u64), StoredResult::Value(value))).collect();
        Entry::Session { session: SESSION, acked_through, first_sequence, used_ms, results }
    }

    fn fold<'a>(entries: &[Entry<'a>]) -> Option<Entry<'a>> {
        entries.iter().fold(None, |state, entry| SessionState::merge(state, entry)).map(|state| state.to_entry(SESSION))
    }

    #[test]
    fn a_result_takes_17_bytes_and_comes_back_as_it_was() {
        assert_eq!(RESULT_BYTES, 17);
        for result in [
            StoredResult::Value(i64::MIN),
            StoredResult::Value(0),
            StoredResult::Error(ErrorCode::Overflow),
            StoredResult::Error(ErrorCode::BadKey),
        ] {
            let fingerprint = Fingerprint(u64::MAX - 3);
            assert_eq!(PackedResult::pack(fingerprint, result).unpack(), (fingerprint, result));
        }
    }

    #[test]
    fn records_fold_into_a_full_row() {
        let records = [entry(0, 1, 5, &[1, 2, 3]), entry(2, 4, 6, &[4]), entry(3, 5, 6, &[5, 6])];
        assert_eq!(fold(&records), Some(entry(3, 4, 6, &[4, 5, 6])));
    }

    #[test]
    fn results_acknowledged_before_they_were_journaled_leave_no_gap() {
        let records = [entry(0, 1, 5, &[1]), entry(9, 10, 6, &[10])];
        assert_eq!(fold(&records), Some(entry(9, 10, 6, &[10])));
    }

    #[test]
    fn reading_any_tail_of_the_records_again_changes_nothing() {
        let records = [
            entry(0, 1, 5, &[1, 2]),
            entry(1, 3, 5, &[3]),
            Entry::SessionEnded { session: SESSION, ended_ms: 7 },
            entry(0, 1, 9, &[-1]),
            entry(0, 2, 9, &[-2, -3]),
            entry(2, 4, 12, &[]),
        ];
        for end in 0..=records.len() {
            let once = fold(&records[..end]);
            for start in 0..end {
                let again: Vec<_> = records[..end].iter().chain(&records[start..end]).cloned().collect();
                assert_eq!(fold(&again), once, "records {start}..{end} read twice");
            }
        }
    }

    #[test]
    fn a_gap_is_told() {
        let facts = SessionFacts { acked_through: 0, first_sequence: 3, used_ms: 1, results: &[] };
        assert_eq!(SessionState::merge_facts(None, facts).1, Merge::Gap);
        let (state, _) = SessionState::merge_facts(None, SessionFacts { first_sequence: 1, ..facts });
        assert_eq!(SessionState::merge_facts(Some(state), SessionFacts { used_ms: 2, ..facts }).1, Merge::Gap);
    }

    #[test]
    fn absurd_numbers_do_not_panic() {
        for first_sequence in [0, 1, u64::MAX] {
            for acked_through in [0, 5, u64::MAX] {
                let _ = fold(&[entry(0, 1, 0, &[1, 2]), entry(acked_through, first_sequence, 3, &[9])]);
            }
        }
    }

    #[test]
    fn an_entry_of_an_earlier_time_does_not_touch_the_row() {
        let row = entry(0, 1, 9, &[1, 2]);
        assert_eq!(fold(&[row.clone(), entry(0, 400, 8, &[5])]), Some(row.clone()));
        assert_eq!(fold(&[row.clone(), Entry::SessionEnded { session: SESSION, ended_ms: 8 }]), Some(row));
    }

    #[test]
    fn a_tombstone_beats_what_is_not_later() {
        let ended = Entry::SessionEnded { session: SESSION, ended_ms: 9 };
        for used_ms in [8, 9] {
            assert_eq!(fold(&[ended.clone(), entry(0, 1, used_ms, &[1])]), Some(ended.clone()));
        }
        assert_eq!(fold(&[entry(0, 1, 9, &[1]), ended.clone()]), Some(ended.clone()));
        assert_eq!(fold(&[ended, entry(0, 1, 10, &[1])]), Some(entry(0, 1, 10, &[1])));
    }
}

//! The journaled state of a shard: counters, sessions, operation ids, and what has changed since the last commit.
//! Anything else is gone after a crash.
//!
//! Threads: a server's loop thread owns it. In an embedded map a lock guards it: mutators hold the lock shared and use
//! only the `&self` operations of the counter store; the drain holds it exclusively.

use crate::counter_store::{CounterStore, RestoreRow, StoreError};
use crate::journal::entry::Entry;
use crate::journal::record::{CommitEncoder, EncodedCommit};
use crate::operation_id_table::{OperationIdRestoreError, OperationIdSettings, OperationIdTable};
use crate::placement::foreign_list::ForeignList;
use crate::planted_bug::{PlantedBug, is_planted};
use crate::session_table::{SessionRestoreError, SessionSettings, SessionTable};
use crate::write_batch_queue::WriteBatchQueue;

/// Bounds of the journaled state.
#[derive(Debug, Clone)]
pub struct StateSettings {
    /// Bytes of counters, keys and index included.
    pub counters_bytes_max: u64,
    /// Counters that may be changed and not yet committed.
    pub dirty_counters_max: usize,
    /// Settings of the session table.
    pub sessions: SessionSettings,
    /// Settings of the operation id table.
    pub ids: OperationIdSettings,
}

/// The journaled state and its changes.
pub struct State {
    /// All counters.
    pub counters: CounterStore,
    /// The counters that changed since the last drain.
    pub dirty: WriteBatchQueue,
    /// Sessions and their results.
    pub sessions: SessionTable,
    /// Operation ids and their results.
    pub ids: OperationIdTable,
    /// Counters that were read from the folder and are not in `counters` yet. Empty once all is restored.
    restoring: RestoreRow,
    /// All counters were removed since the last drain, before the changes that are marked now.
    cleared: bool,
}

impl State {
    /// An empty state, to be filled by `restore`.
    ///
    /// # Errors
    /// `NoMemory` for the write batch queue.
    pub fn new(hash_seed: u64, settings: &StateSettings) -> Result<Self, RestoreError> {
        Ok(Self {
            counters: CounterStore::with_seed(hash_seed, settings.counters_bytes_max).without_stripes(),
            dirty: WriteBatchQueue::new(settings.dirty_counters_max).ok_or(RestoreError::NoMemory)?,
            sessions: SessionTable::new(settings.sessions),
            ids: OperationIdTable::new(settings.ids),
            restoring: RestoreRow::default(),
            cleared: false,
        })
    }

    /// Lists the foreign ones among the counters that come from now on, restored ones too.
    pub fn list_foreign(&mut self, list: ForeignList) {
        self.counters.list_foreign(list);
    }

    /// Takes one fact from a checkpoint page or from the log, in their order.
    pub fn restore(&mut self, entry: &Entry<'_>) -> Result<(), RestoreError> {
        match entry {
            Entry::Counter { key, value } => self.restore_counter(key, Some(*value))?,
            Entry::Deleted { key } => self.restore_counter(key, None)?,
            Entry::Cleared => {
                self.restoring = RestoreRow::default();
                self.counters.clear();
            }
            Entry::Session { .. } | Entry::SessionEnded { .. } => self.sessions.restore(entry),
            Entry::OperationId { .. } => self.ids.restore(entry)?,
            Entry::Uptime { .. } => {}
        }
        Ok(())
    }

    /// Takes a fact if it is about counters, for a replica, which keeps nothing else. It is there after
    /// [`State::finish_counters`].
    pub fn restore_counters(&mut self, entry: &Entry<'_>) -> Result<(), RestoreError> {
        match entry {
            Entry::Counter { .. } | Entry::Deleted { .. } | Entry::Cleared => self.restore(entry),
            _ => Ok(()),
        }
    }

    /// Everything that was restored can be read.
    ///
    /// # Errors
    /// `Counters` if the last ones don't fit.
    pub fn finish_counters(&mut self) -> Result<(), RestoreError> {
        let outcome = self.restoring.flush(&mut self.counters);
        self.make_room(outcome)?;
        self.compact_if_worthwhile();
        Ok(())
    }

    /// Deleted counters wait as absent ones, as in the shard that wrote the log, and make room like there.
    fn restore_counter(&mut self, key: &[u8], value: Option<i64>) -> Result<(), RestoreError> {
        let outcome = self.restoring.push(&mut self.counters, key, value);
        self.make_room(outcome)
    }

    fn make_room(&mut self, outcome: Result<(), StoreError>) -> Result<(), RestoreError> {
        match outcome {
            Err(StoreError::Full) if self.counters.wants_compaction() && self.counters.compact() => {
                Ok(self.restoring.flush(&mut self.counters)?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// All pages and records were restored.
    ///
    /// # Errors
    /// `Counters` if the last ones don't fit, `Sessions` if results are missing.
    pub fn finish_restore(&mut self) -> Result<(), RestoreError> {
        let outcome = self.restoring.flush(&mut self.counters);
        self.make_room(outcome)?;
        self.restoring = RestoreRow::default();
        self.ids.finish_restore();
        Ok(self.sessions.finish_restore()?)
    }

    /// Is there anything that the next commit must carry?
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.cleared || !self.dirty.is_empty() || self.sessions.is_dirty() || self.ids.has_new()
    }

    /// Has this counter a change that no commit carries yet?
    #[must_use]
    pub fn is_changed(&self, key: &[u8]) -> bool {
        let counters = &self.counters;
        self.cleared || counters.find(counters.hash(key), key).is_some_and(|counter| counters.is_dirty(counter))
    }

    /// Removes every counter; sessions and ids stay.
    pub fn clear_counters(&mut self) {
        self.dirty.take(&mut self.counters, |_, _| {});
        self.counters.clear();
        self.cleared = true;
    }

    /// Encodes everything that changed as one commit: always whole, so values, results and ids travel together.
    pub fn drain(&mut self, encoder: &mut CommitEncoder, uptime_ms: u64) -> EncodedCommit {
        encoder.begin(encoder.next_number(), uptime_ms);
        if std::mem::take(&mut self.cleared) {
            encoder.put(&Entry::Cleared);
        }
        self.dirty.take(&mut self.counters, |key, value| match value {
            Some(value) => encoder.put_counter(key, value),
            None => encoder.put_deleted(key),
        });
        let sessions_left_out = is_planted(PlantedBug::SessionRowsLeftOut);
        self.sessions.drain_dirty(|entry| {
            if !sessions_left_out {
                encoder.put(entry)
            }
        });
        self.ids.drain_new(|entry| encoder.put(entry));
        self.compact_if_worthwhile();
        encoder.finish()
    }

    /// Housekeeping: forgets sessions and ids whose time is over, a bounded number at a call. Makes room where there is
    /// none for new counters, though nothing changed since.
    pub fn expire(&mut self, uptime_ms: u64) {
        const BUDGET: usize = 1_000;
        self.sessions.expire(uptime_ms, BUDGET);
        self.ids.expire(uptime_ms, BUDGET);
        if self.dirty.is_empty() {
            self.compact_if_worthwhile();
        }
    }

    fn compact_if_worthwhile(&mut self) {
        if self.counters.wants_compaction() {
            self.counters.compact();
        }
    }
}

/// Why what the folder holds can't be taken into memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A bound is too low for what is stored.
    #[error("{0}: raise counters_bytes_max to hold what the folder has")]
    Counters(#[from] StoreError),
    /// A bound is too low, or the entry is none that was ever written.
    #[error(transparent)]
    Ids(#[from] OperationIdRestoreError),
    /// Results are missing.
    #[error("{0}: records or pages were lost; restore the folder from a backup")]
    Sessions(#[from] SessionRestoreError),
    /// The system gave none.
    #[error("there is no memory for the queue of changed counters: lower dirty_counters_max")]
    NoMemory,
}

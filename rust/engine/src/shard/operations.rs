//! What a change does to a shard, whichever protocol asked: ids first, then limits, then the counter.

use super::held_replies::ReplyKind;
use super::{LOOK_WORK, Shard};
use crate::counter_store::CounterRef;
use crate::error_code::ErrorCode;
use crate::fingerprint::Method;
use crate::journal::entry::{Fingerprint, StoredResult};
use crate::operation_id_table::Lookup;
use crate::wire::request::{ChangeOptions, Item, SessionId};

impl Shard {
    /// One change with or without an operation id. Answers the value after, or the amount taken.
    pub(super) fn change(
        &mut self,
        method: Method,
        key: &[u8],
        delta: i64,
        options: &ChangeOptions<'_>,
    ) -> Result<i64, ErrorCode> {
        let Some(id) = options.id else {
            self.admit(1)?;
            return self.apply(method, key, delta);
        };
        let print = Fingerprint::of(method, key, delta);
        self.change_once(id, print, options.born, |shard| shard.apply(method, key, delta))
    }

    /// One change under an operation id: `apply`, or what it answered the first time.
    pub(super) fn change_once(
        &mut self,
        id: &[u8],
        print: Fingerprint,
        born: Option<u64>,
        apply: impl FnOnce(&mut Self) -> Result<i64, ErrorCode>,
    ) -> Result<i64, ErrorCode> {
        // Before any limit: a retry must get its original result however loaded the shard is.
        match self.state.ids.get(id, print) {
            Lookup::Known(result) => return result.into_outcome(),
            Lookup::Reused => return Err(ErrorCode::IdReused),
            Lookup::Unknown => {}
        }
        if let Some(born) = born {
            self.state.ids.check_born(born, self.uptime_ms)?;
        }
        self.admit(1)?;
        if !self.state.ids.has_room(id.len()) {
            return Err(ErrorCode::Overloaded);
        }
        let outcome = apply(self);
        // Any other error says that nothing was applied and that a retry may fare better: the id stays free.
        if matches!(outcome, Ok(_) | Err(ErrorCode::Overflow)) {
            self.state.ids.insert(id, print, StoredResult::from_outcome(outcome), self.uptime_ms);
        }
        outcome
    }

    /// May `count` more changes be applied now?
    pub(super) fn admit(&self, count: usize) -> Result<(), ErrorCode> {
        if self.failing {
            return Err(ErrorCode::ReadOnly);
        }
        if self.state.dirty.has_room(count) { Ok(()) } else { Err(ErrorCode::Overloaded) }
    }

    /// What a read of these counters waits for. While the disk fails, values without an unwritten change are on disk, and
    /// no change is taken: they wait for nothing. See `docs/durability.md`.
    pub(super) fn kind_of_read<'k>(&self, keys: impl IntoIterator<Item = &'k [u8]>) -> ReplyKind {
        let Some(unwritten) = self.unwritten.as_deref() else { return ReplyKind::Seen };
        let is_written = |key| !unwritten.holds(key) && !self.state.is_changed(key);
        if unwritten.number() == self.handed_over && keys.into_iter().all(is_written) {
            return ReplyKind::Neutral;
        }
        ReplyKind::Seen
    }

    /// Applies an admitted increment to a counter whose hash is known, and which was looked for already if it is likely.
    #[inline]
    pub(super) fn increment(
        &mut self,
        likely: Option<CounterRef>,
        hash: u64,
        key: &[u8],
        delta: i64,
    ) -> Result<i64, ErrorCode> {
        let counters = &mut self.state.counters;
        let counter = counters.find_or_insert_likely_mut(likely, hash, key).map_err(|_| ErrorCode::Overloaded)?;
        self.increment_at(counter, delta)
    }

    fn increment_at(&mut self, counter: CounterRef, delta: i64) -> Result<i64, ErrorCode> {
        let counters = &mut self.state.counters;
        let value = counters.incr_mut(counter, delta).map_err(|_| ErrorCode::Overflow)?;
        // There is room: the caller was admitted.
        counters.mark_dirty_mut(counter, &mut self.state.dirty).map_err(|_| ErrorCode::Internal)?;
        self.statistics.changes += 1;
        Ok(value)
    }

    /// Applies an admitted change to the counter and marks it. `DeleteAll` changes all of them, and gives how many.
    pub(super) fn apply(&mut self, method: Method, key: &[u8], delta: i64) -> Result<i64, ErrorCode> {
        if method == Method::DeleteAll {
            return Ok(self.delete_all());
        }
        let hash = self.state.counters.hash(key);
        if method == Method::Incr {
            return self.increment(None, hash, key, delta);
        }
        let counters = &mut self.state.counters;
        let Some(counter) = counters.find(hash, key).filter(|&counter| counters.is_present(counter)) else {
            return Ok(0); // there is nothing to take, and nothing to journal
        };
        let taken = match method {
            Method::Delete => counters.delete_mut(counter).unwrap_or(0),
            _ => counters.drain_mut(counter),
        };
        counters.mark_dirty_mut(counter, &mut self.state.dirty).map_err(|_| ErrorCode::Internal)?;
        self.statistics.changes += 1;
        Ok(taken)
    }

    /// Forgets every counter; gives how many there were. Ids and sessions stay: an old retry gets its first result.
    fn delete_all(&mut self) -> i64 {
        let count = self.state.counters.len();
        self.work += LOOK_WORK * count;
        self.state.clear_counters();
        self.statistics.changes += 1;
        count as i64
    }

    /// One item of `incr_many` or `delete_many`.
    pub(super) fn change_item(
        &mut self,
        method: Method,
        item: &Item<'_>,
        options: &ChangeOptions<'_>,
    ) -> Result<i64, ErrorCode> {
        if let Some(code) = item.error {
            return Err(code);
        }
        let options = ChangeOptions { id: item.id, ..*options };
        self.change(method, item.key, item.delta, &options)
    }

    /// A session's batch: refused whole with nothing consumed, or a result for each item.
    pub(super) fn apply_batch(
        &mut self,
        session: SessionId,
        first_sequence: u64,
        acked_through: u64,
        items: &[Item<'_>],
        mut answer: impl FnMut(Result<i64, ErrorCode>),
    ) -> Result<(), ErrorCode> {
        // Only new items are subject to limits: a retry must get its results however loaded the shard is.
        let last = self.state.sessions.last_sequence(session).unwrap_or(0);
        let end = first_sequence.checked_add(items.len() as u64).ok_or(ErrorCode::BadRequest)?;
        let new = items.len().min(usize::try_from(end.saturating_sub(last + 1)).unwrap_or(usize::MAX));
        // Before anything is made for the batch: a refused one leaves nothing behind.
        let sessions = &self.state.sessions;
        sessions.check_batch(session, first_sequence, items.len(), acked_through, self.uptime_ms)?;
        let counters = if new > 0 { self.reserve_counters(&items[items.len() - new..])? } else { Vec::new() };
        let sessions = &mut self.state.sessions;
        let batch = sessions.begin_batch(session, first_sequence, items.len(), acked_through, self.uptime_ms)?;
        let mut counters = counters.into_iter();
        for (index, (sequence, item)) in (first_sequence..).zip(items).enumerate() {
            let print = Fingerprint::of_item(item);
            let outcome = if index < batch.old_count() {
                self.state.sessions.old_result(batch, sequence, print).and_then(StoredResult::into_outcome)
            } else {
                let outcome = counters.next().unwrap_or(Err(ErrorCode::Internal));
                let outcome = outcome.and_then(|counter| self.increment_at(counter, item.delta));
                self.state.sessions.record(batch, print, StoredResult::from_outcome(outcome));
                outcome
            };
            answer(outcome);
        }
        Ok(())
    }

    /// Makes room for changes of all these items, so that none can be refused for want of it half way through; where
    /// there is none, makes no counter. Gives each one's counter, absent still where it is new, or why the item is a bad
    /// one.
    fn reserve_counters(&mut self, items: &[Item<'_>]) -> Result<Vec<Result<CounterRef, ErrorCode>>, ErrorCode> {
        self.admit(items.len())?;
        let counters = &mut self.state.counters;
        let hashes: Vec<u64> = items.iter().map(|item| counters.hash(item.key)).collect();
        hashes.iter().for_each(|&hash| counters.prefetch_slot(hash));
        for &hash in &hashes {
            counters.prefetch_cell(hash);
        }
        let key_bytes = items.iter().map(|item| item.key.len()).sum();
        if !counters.has_room(items.len(), key_bytes) {
            // Near the bound only, so that nobody else pays for it: only keys that are new need room.
            let is_new =
                |(item, hash): &(&Item<'_>, &u64)| item.error.is_none() && counters.find(**hash, item.key).is_none();
            let new = items.iter().zip(&hashes).filter(is_new);
            let (count, key_bytes) = new.fold((0, 0), |(count, bytes), (item, _)| (count + 1, bytes + item.key.len()));
            if count > 0 && !counters.has_room(count, key_bytes) {
                counters.note_full();
                return Err(ErrorCode::Overloaded);
            }
        }
        let mut reserve = |(item, &hash): (&Item<'_>, &u64)| match item.error {
            Some(code) => Ok(Err(code)),
            None => counters.find_or_insert_mut(hash, item.key).map(Ok).map_err(|_| ErrorCode::Overloaded),
        };
        items.iter().zip(&hashes).map(&mut reserve).collect()
    }
}

//! What was accepted and never sent, in order: batches that still grow, and calls between them.

use std::collections::VecDeque;

use super::batches::{Batch, Waiting};
use super::calls::Call;
use crate::planted_bug::{PlantedBug, is_planted};
use crate::wire::request::Level;

/// So many pairs of buffers of settled batches are kept for new ones.
const SPARE_MAX: usize = 16;
/// Larger ones are not kept.
const SPARE_BYTES_MAX: usize = 64 << 10;

/// One place in the queue.
pub(super) enum Entry<T> {
    Batch(Batch<T>),
    Call(Call<T>),
}

/// The queue.
pub(super) struct Queue<T> {
    entries: VecDeque<Entry<T>>,
    /// How many of the entries are calls.
    calls: usize,
    spare: Vec<(Vec<u8>, Vec<Waiting<T>>)>,
    /// Memory of all batches that aren't settled, those that were numbered too.
    pub batch_bytes: usize,
    /// Memory of the calls in it.
    pub call_bytes: usize,
    /// Increments that are accepted and not settled, those that were numbered too.
    pub operations: usize,
    /// Until when increments wait for company while others are in flight; 0: there are none.
    pub hold_until_ms: u64,
    last_mark: u64,
    /// No call in it has an earlier deadline.
    pub call_deadline_ms: u64,
}

impl<T> Queue<T> {
    pub(super) const fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            calls: 0,
            spare: Vec::new(),
            batch_bytes: 0,
            call_bytes: 0,
            operations: 0,
            hold_until_ms: 0,
            last_mark: 0,
            call_deadline_ms: u64::MAX,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The batch that takes one more increment at this level: behind the last call, and not full.
    #[inline]
    pub(super) fn open_batch(&mut self, level: Level, operations_max: usize, bytes_max: usize) -> &mut Batch<T> {
        let length = self.entries.len();
        let fits = |entry: &Entry<T>| match entry {
            Entry::Batch(batch) => {
                batch.level == level
                    && batch.order == 0
                    && batch.count < operations_max
                    && batch.items.len() < bytes_max
            }
            Entry::Call(_) => false,
        };
        // One batch for each level may be open at the end.
        let index = match self.entries.back() {
            Some(last) if fits(last) => length - 1,
            Some(Entry::Batch(_)) if length > 1 && fits(&self.entries[length - 2]) => length - 2,
            _ => {
                let (items, waiting) = self.spare.pop().unwrap_or_default();
                self.last_mark += 1;
                let mut batch = Batch::new(level, items, waiting);
                batch.mark = self.last_mark;
                self.entries.push_back(Entry::Batch(batch));
                length
            }
        };
        match &mut self.entries[index] {
            Entry::Batch(batch) => batch,
            Entry::Call(_) => unreachable!("a call takes no increments"),
        }
    }

    pub(super) fn push_call(&mut self, call: Call<T>) {
        self.calls += 1;
        self.call_bytes += call.memory_bytes();
        self.call_deadline_ms = self.call_deadline_ms.min(call.deadline_ms);
        self.entries.push_back(Entry::Call(call));
    }

    /// A batch of which no copy can count comes back, before all others.
    pub(super) fn give_back(&mut self, mut batch: Batch<T>) {
        batch.reset();
        self.entries.push_front(Entry::Batch(batch));
    }

    /// A batch is settled: its memory is free for a new one.
    pub(super) fn release(&mut self, batch: &mut Batch<T>) {
        self.batch_bytes -= batch.memory_bytes();
        if !is_planted(PlantedBug::LinkLeavesNoRoom) {
            self.operations -= batch.count;
        }
        let mut items = std::mem::take(&mut batch.items);
        let mut waiting = std::mem::take(&mut batch.waiting);
        batch.deadline_ms = u64::MAX;
        let bytes = items.capacity() + waiting.capacity() * size_of::<Waiting<T>>();
        if self.spare.len() < SPARE_MAX && bytes <= SPARE_BYTES_MAX {
            items.clear();
            waiting.clear();
            self.spare.push((items, waiting));
        }
    }

    pub(super) fn front(&self) -> Option<&Entry<T>> {
        self.entries.front()
    }

    /// Is what is at the front increments that gather still, with nothing but such behind them?
    pub(super) fn is_gathering(&self, now_ms: u64, full: impl Fn(Level) -> usize) -> bool {
        let is_waiting = |entry: &Entry<T>| match entry {
            Entry::Batch(batch) => batch.order == 0 && batch.count < full(batch.level),
            Entry::Call(_) => false,
        };
        now_ms < self.hold_until_ms && self.entries.len() <= 2 && self.entries.iter().all(is_waiting)
    }

    /// Every place, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter()
    }

    pub(super) fn pop_front(&mut self) -> Option<Entry<T>> {
        let entry = self.entries.pop_front()?;
        if self.entries.is_empty() {
            self.hold_until_ms = 0;
        }
        if let Entry::Call(call) = &entry {
            self.calls -= 1;
            self.call_bytes -= call.memory_bytes();
        }
        Some(entry)
    }

    /// Takes the calls out, in order.
    pub(super) fn take_calls(&mut self) -> Vec<Call<T>> {
        let mut taken = Vec::new();
        self.take_calls_if(|_| true, |call| taken.push(call));
        taken
    }

    /// Every batch; those that `change` leaves empty are dropped.
    pub(super) fn change_batches(&mut self, mut change: impl FnMut(&mut Batch<T>)) {
        let mut is_any_empty = false;
        for entry in &mut self.entries {
            if let Entry::Batch(batch) = entry {
                let (bytes, operations) = (batch.memory_bytes(), batch.count);
                change(batch);
                self.batch_bytes -= bytes - batch.memory_bytes();
                self.operations -= operations - batch.count;
                is_any_empty |= batch.count == 0;
            }
        }
        if is_any_empty {
            self.entries.retain(|entry| !matches!(entry, Entry::Batch(batch) if batch.count == 0));
        }
    }

    /// Gives away the calls whose time has run out.
    pub(super) fn take_expired_calls(&mut self, now_ms: u64, mut take: impl FnMut(Call<T>)) {
        if self.call_deadline_ms > now_ms {
            return;
        }
        self.call_deadline_ms = u64::MAX;
        self.take_calls_if(|call| call.deadline_ms <= now_ms, &mut take);
        let left = self.entries.iter().filter_map(|entry| match entry {
            Entry::Call(call) => Some(call.deadline_ms),
            Entry::Batch(_) => None,
        });
        self.call_deadline_ms = left.min().unwrap_or(u64::MAX);
    }

    /// Gives away the calls that `is_wanted` names, and keeps the others in their order.
    pub(super) fn take_calls_if(&mut self, mut is_wanted: impl FnMut(&Call<T>) -> bool, mut take: impl FnMut(Call<T>)) {
        if self.calls == 0 {
            return;
        }
        let mut kept = VecDeque::with_capacity(self.entries.len());
        for entry in std::mem::take(&mut self.entries) {
            match entry {
                Entry::Call(call) if is_wanted(&call) => {
                    self.calls -= 1;
                    self.call_bytes -= call.memory_bytes();
                    take(call);
                }
                entry => kept.push_back(entry),
            }
        }
        self.entries = kept;
    }

    /// How many calls are in it.
    pub(super) const fn calls(&self) -> usize {
        self.calls
    }
}

//! What clients want of a link: to be accepted or refused at once, and taken back while nothing of it was sent.

use super::batches;
use super::calls::{self, Call};
use super::types::Repeat;
use super::{CONFIRMING_MAX, Confirming, ShardLink};
use crate::planted_bug::{PlantedBug, is_planted};
use crate::wire::request::Level;

impl<T> ShardLink<T> {
    /// Accepts an increment; `key` has 1 to 1,024 bytes. It is sent with the next `flush`, or later.
    ///
    /// # Errors
    /// What is unsettled fills the bound: gives back `waiter`, and nothing was done (`overloaded`).
    #[inline]
    pub fn incr(&mut self, key: &[u8], delta: i64, level: Level, deadline_ms: u64, waiter: T) -> Result<(), T> {
        let operations_max = self.settings.gather_operations_max.min(self.settings.batch_operations_max);
        if self.queue.hold_until_ms == 0 {
            self.queue.hold_until_ms = self.now_ms + self.settings.gather_ms;
        }
        self.accept(key, delta, level, deadline_ms, waiter, operations_max)
    }

    /// As `incr`, of an increment that is part of a list: lists wait for no company.
    ///
    /// # Errors
    /// As `incr`.
    #[inline]
    pub fn incr_in_list(&mut self, key: &[u8], delta: i64, level: Level, deadline_ms: u64, waiter: T) -> Result<(), T> {
        self.queue.hold_until_ms = 1;
        self.accept(key, delta, level, deadline_ms, waiter, self.settings.batch_operations_max)
    }

    #[inline]
    fn accept(
        &mut self,
        key: &[u8],
        delta: i64,
        level: Level,
        deadline_ms: u64,
        waiter: T,
        operations_max: usize,
    ) -> Result<(), T> {
        if self.memory_bytes() + batches::memory_of::<T>(key.len()) > self.settings.queue_bytes_max {
            return Err(waiter);
        }
        let batch = self.queue.open_batch(level, operations_max, self.settings.batch_bytes_max);
        let before = batch.memory_bytes();
        batch.push(key, delta, deadline_ms, waiter);
        let grown = batch.memory_bytes() - before;
        self.queue.batch_bytes += grown;
        self.queue.operations += 1;
        self.session.statistics.operations += 1;
        Ok(())
    }

    /// Accepts any other request, behind the increments before it. Only while the shard refuses increments for now does
    /// it overtake those that were never sent.
    ///
    /// `params` is an encoded array.
    ///
    /// # Errors
    /// What is unsettled fills the bound: gives back `waiter`, and nothing was done (`overloaded`).
    pub fn call(&mut self, method: &str, params: &[u8], repeat: Repeat, deadline_ms: u64, waiter: T) -> Result<(), T> {
        let memory = calls::memory_of::<T>(method.len() + params.len() + 5);
        if self.memory_bytes() + memory > self.settings.queue_bytes_max {
            return Err(waiter);
        }
        self.queue.push_call(Call::new(method, params, repeat, deadline_ms, waiter));
        self.session.statistics.calls += 1;
        Ok(())
    }

    /// Memory of all that is accepted and not settled.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.queue.batch_bytes + self.queue.call_bytes + self.calls.bytes
    }

    /// Increments that are accepted and not settled, abandoned ones too.
    #[must_use]
    pub const fn unsettled(&self) -> usize {
        self.queue.operations
    }

    /// Tells `waiter` once everything that is acknowledged now is durable, or reported as lost.
    ///
    /// # Errors
    /// Too many wait already: gives back `waiter` (`overloaded`).
    pub fn confirm(&mut self, deadline_ms: u64, waiter: T) -> Result<(), T> {
        if self.confirming.len() >= CONFIRMING_MAX {
            return Err(waiter);
        }
        self.confirming.push(Confirming { waiter, deadline_ms, is_asked: false });
        Ok(())
    }

    /// Forgets the waiters that `is_gone` names, and gives them to `drop_waiter`. What was never sent is taken back. What
    /// was sent stays until it is settled, and is `unknown` until then.
    pub fn abandon_waiters(&mut self, mut is_gone: impl FnMut(&T) -> bool, mut drop_waiter: impl FnMut(T)) {
        self.session.window_mut().for_each(|batch| batch.abandon(&mut is_gone, &mut drop_waiter));
        self.queue.change_batches(|batch| {
            if batch.sent_at_ms > 0 {
                batch.abandon(&mut is_gone, &mut drop_waiter);
            } else {
                batch.take(|one| one.waiter.as_ref().is_some_and(&mut is_gone), |_, _, _, waiter| drop_waiter(waiter));
            }
        });
        self.calls.abandon_waiters(&mut is_gone, &mut drop_waiter);
        let mut gone = Vec::new();
        let is_call_gone = |call: &Call<T>| call.waiter.as_ref().is_some_and(&mut is_gone);
        self.queue.take_calls_if(is_call_gone, |call| gone.extend(call.waiter));
        gone.into_iter().for_each(&mut drop_waiter);
        for one in self.confirming.extract_if(.., |one| is_gone(&one.waiter)) {
            drop_waiter(one.waiter);
        }
        self.check();
    }

    /// Takes increments back that were never sent, or that the shard refused so that no copy can count: this share of
    /// them (0.0 to 1.0), evenly. Gives each to `take(key, delta, level, deadline_ms, waiter)`.
    pub fn take_unsent(&mut self, share: f64, mut take: impl FnMut(&[u8], i64, Level, u64, T)) {
        if is_planted(PlantedBug::LinkDivertsSent) {
            for batch in self.session.window_mut().filter(|batch| batch.is_ambiguous && !batch.is_answered) {
                let mut waiters: Vec<T> = batch.waiting.iter_mut().filter_map(|one| one.waiter.take()).collect();
                let items: Vec<_> = batch.iter().map(|(key, delta, one)| (key, delta, one.deadline_ms)).collect();
                if items.len() == waiters.len() {
                    let all = items.into_iter().zip(waiters.drain(..));
                    all.for_each(|((key, delta, deadline_ms), waiter)| {
                        take(key, delta, batch.level, deadline_ms, waiter)
                    });
                }
            }
        }
        let mut due = 0.0;
        let taken = &mut self.session.statistics.operations_taken;
        self.queue.change_batches(|batch| {
            let level = batch.level;
            let is_wanted = |_: &_| {
                due += share;
                let is_due = due >= 1.0;
                due -= f64::from(u8::from(is_due));
                is_due
            };
            batch.take(is_wanted, |key, delta, deadline_ms, waiter| {
                *taken += 1;
                take(key, delta, level, deadline_ms, waiter);
            });
        });
        self.check();
    }
}

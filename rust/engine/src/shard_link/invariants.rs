//! What must hold of a link between two calls. Builds with debug assertions check it after each of them.

use super::ShardLink;
use super::batches::Batch;
use super::queue::{Entry, Queue};
use super::session::{ENDED_MAX, Session};

impl<T> ShardLink<T> {
    /// Panics where something is wrong, in builds with debug assertions.
    #[inline]
    pub(super) fn check(&self) {
        if cfg!(debug_assertions) && !cfg!(feature = "planted-bugs") {
            self.session.check();
            self.queue.check(&self.session);
            self.calls.check();
            debug_assert!(self.barrier.is_some() || self.confirming.iter().all(|one| !one.is_asked));
        }
    }
}

impl<T> Session<T> {
    fn check(&self) {
        let mut next = self.acked_through + 1;
        for batch in &self.window {
            debug_assert_eq!(batch.first, next, "the window has a gap");
            debug_assert!(batch.count > 0, "a numbered batch is empty");
            debug_assert!(!batch.in_flight || !(batch.is_answered || batch.is_refused), "answered, and in flight");
            debug_assert!(batch.sent_at_ms > 0 && batch.order > 0, "numbered, and never sent");
            if batch.is_answered {
                debug_assert!(batch.items.is_empty() && batch.waiting.is_empty(), "answered, and not released");
            } else {
                debug_assert_eq!(batch.waiting.len(), batch.count, "waiters of a batch");
                let gone = batch.waiting.iter().filter(|one| one.waiter.is_none()).count();
                debug_assert_eq!(batch.abandoned, gone, "abandoned increments");
            }
            next = batch.last() + 1;
        }
        debug_assert_eq!(self.next_sequence, next, "the next number");
        debug_assert!(self.window.iter().is_sorted_by_key(|batch| batch.order), "the window is out of order");
        debug_assert!(self.window.front().is_none_or(|batch| !batch.is_answered || batch.is_refused), "not settled");
        let sum = |is_wanted: fn(&Batch<T>) -> bool| self.window.iter().filter(|batch| is_wanted(batch)).count();
        debug_assert_eq!(self.in_flight, sum(|batch| batch.in_flight), "batches in flight");
        let unsent = sum(|batch| !batch.is_answered && !batch.in_flight && !batch.is_refused);
        debug_assert!(self.to_send_again <= unsent, "batches to send again");
        debug_assert_eq!(self.window_operations, self.window.iter().map(|batch| batch.count).sum::<usize>());
        debug_assert!(self.acked_through < self.next_sequence, "more is settled than was sent");
        debug_assert!(self.tail.answered_max < self.next_sequence, "more is answered than was sent");
        debug_assert_eq!(self.tail.session, self.id, "the tail of another session");
        debug_assert!(self.ended.len() <= ENDED_MAX);
        self.tail.check();
        for tail in &self.retired {
            debug_assert!(!tail.is_empty() && tail.session != self.id, "a retired session without a tail");
            tail.check();
        }
    }
}

impl<T> Queue<T> {
    fn check(&self, session: &Session<T>) {
        let (mut bytes, mut call_bytes, mut calls, mut operations) = (0, 0, 0, 0);
        for entry in self.iter() {
            match entry {
                Entry::Batch(batch) => {
                    debug_assert!(batch.count > 0 && batch.count == batch.waiting.len(), "a queued batch's waiters");
                    debug_assert!(batch.first == 0 && !batch.is_ambiguous && !batch.in_flight, "queued, and sent");
                    debug_assert!(batch.sent_at_ms > 0 || batch.abandoned == 0, "abandoned, and never sent");
                    bytes += batch.memory_bytes();
                    operations += batch.count;
                }
                Entry::Call(call) => {
                    debug_assert!(call.order == 0 && call.waiter.is_some(), "a queued call was sent");
                    debug_assert!(self.call_deadline_ms <= call.deadline_ms, "a deadline would be missed");
                    call_bytes += call.memory_bytes();
                    calls += 1;
                }
            }
        }
        let numbered = session.window().filter(|batch| !batch.is_answered);
        for batch in numbered {
            bytes += batch.memory_bytes();
            operations += batch.count;
        }
        debug_assert_eq!(self.batch_bytes, bytes, "memory of batches");
        debug_assert_eq!(self.call_bytes, call_bytes, "memory of calls");
        debug_assert_eq!(self.calls(), calls, "calls");
        debug_assert_eq!(self.operations, operations, "unsettled increments");
    }
}

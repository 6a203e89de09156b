//! The hand-over between the thread that drains and the commit thread: one commit at a time, and news of it.
//!
//! Who does what:
//! - the *drainer* (a server's loop, an embedded map's flusher) submits, at most one commit at a time, and asks
//!   `in_flight`, `durable` and `is_failing` without a lock on its hot path;
//! - the *writer* (the commit thread) takes the commit and settles it: durable, failed for now, or ended for good;
//! - any thread may wait for a commit's outcome.
//!
//! The mutex orders everything but the three atomics, which only repeat what it guards; their orderings are beside
//! their uses. No files in here, so that a model checker can try every interleaving.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::atomics::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, lock};
use crate::journal::record::EncodedCommit;
use crate::journal::unwritten::Unwritten;

/// The newest durable commit, readable by everybody.
#[derive(Debug)]
pub struct Durable(AtomicU64);

impl Durable {
    fn new(number: u64) -> Self {
        Self(AtomicU64::new(number))
    }

    /// For who is no writer but follows one: this much is durable there.
    fn set(&self, number: u64) {
        // Release: as in `settle`.
        self.0.store(number, Ordering::Release);
    }

    /// Its number; 0 before the first.
    pub fn commit(&self) -> u64 {
        // Acquire: pairs with the Release in `settle`. Whoever sees the number may read the log up to it.
        self.0.load(Ordering::Acquire)
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitOutcome {
    /// The commit is on disk.
    Durable,
    /// An attempt failed while we waited; it is tried again.
    Failing,
    /// The journal has ended without it.
    Ended,
    /// The deadline came first.
    TimedOut,
}

/// What the writer waits for.
pub(super) enum Order {
    /// Append this.
    Commit(EncodedCommit),
    /// Nothing came for a while: check the log.
    Check,
    /// End: there is nothing left.
    Stop,
}

/// How long the writer sleeps without an order.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct State {
    next: Option<EncodedCommit>,
    /// A settled commit's buffer, to be filled again.
    recycled: Option<Vec<u8>>,
    stop: bool,
    /// The writer takes nothing any more.
    ended: bool,
    failures: u64,
    /// Why the last attempt failed; `None` once one worked.
    failure: Option<String>,
    /// What the commit holds whose last attempt failed.
    unwritten: Option<Arc<Unwritten>>,
}

/// The slot. See the module's documentation.
#[derive(Debug)]
pub(super) struct CommitSlot {
    state: Mutex<State>,
    /// The writer sleeps here.
    ordered: Condvar,
    /// Those who wait for an outcome sleep here.
    settled: Condvar,
    durable: Arc<Durable>,
    in_flight: AtomicBool,
    failing: AtomicBool,
}

impl CommitSlot {
    pub(super) fn new(durable: u64) -> Self {
        Self {
            state: Mutex::new(State::default()),
            ordered: Condvar::new(),
            settled: Condvar::new(),
            durable: Arc::new(Durable::new(durable)),
            in_flight: AtomicBool::new(false),
            failing: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn durable(&self) -> &Arc<Durable> {
        &self.durable
    }

    /// Nothing is ever submitted here: this much is durable elsewhere.
    pub(super) fn follow(&self, number: u64) {
        self.durable.set(number);
    }

    /// Drainer: is a commit on its way? False says that `durable` shows the last one already.
    pub(super) fn in_flight(&self) -> bool {
        // Acquire: pairs with the Release in `settle`, which comes after the one of `durable`.
        self.in_flight.load(Ordering::Acquire)
    }

    /// Did the last attempt fail, or has the writer ended?
    pub(super) fn is_failing(&self) -> bool {
        // Relaxed: advice for admission. What was admitted by mistake is held like everything else.
        self.failing.load(Ordering::Relaxed)
    }

    pub(super) fn failure(&self) -> (u64, Option<String>) {
        let state = self.lock();
        (state.failures, state.failure.clone())
    }

    pub(super) fn take_buffer(&self) -> Vec<u8> {
        self.lock().recycled.take().unwrap_or_default()
    }

    /// Drainer: hands a commit over; gives it back if one is on its way, or the journal has ended.
    pub(super) fn submit(&self, commit: EncodedCommit) -> Result<(), EncodedCommit> {
        let mut state = self.lock();
        // Relaxed: only the drainer, who is here, sets it; the lock orders the writer's clearing.
        if state.ended || state.stop || self.in_flight.load(Ordering::Relaxed) {
            return Err(commit);
        }
        self.in_flight.store(true, Ordering::Relaxed);
        state.next = Some(commit);
        drop(state);
        self.ordered.notify_one();
        Ok(())
    }

    /// Writer: sleeps until there is a commit, the end, or time to check.
    pub(super) fn next_order(&self) -> Order {
        let mut state = self.lock();
        let mut is_time = false;
        loop {
            if let Some(commit) = state.next.take() {
                return Order::Commit(commit);
            }
            if state.stop {
                return Order::Stop;
            }
            if is_time {
                return Order::Check;
            }
            let woken = self.ordered.wait_timeout(state, CHECK_INTERVAL).unwrap_or_else(PoisonError::into_inner);
            (state, is_time) = (woken.0, woken.1.timed_out());
        }
    }

    /// Writer: a check found the log in order again.
    pub(super) fn recover(&self) {
        let mut state = self.lock();
        state.failure = None;
        self.failing.store(false, Ordering::Relaxed);
    }

    /// Writer: the commit that waits for it, if there is one.
    pub(super) fn take_next(&self) -> Option<EncodedCommit> {
        self.lock().next.take()
    }

    /// Writer: the commit is on disk.
    pub(super) fn settle(&self, commit: EncodedCommit) {
        let mut state = self.lock();
        state.failure = None;
        state.unwritten = None;
        self.failing.store(false, Ordering::Relaxed);
        // Release, in this order: who sees `in_flight` false sees the number, and who sees the number, the log.
        self.durable.0.store(commit.number, Ordering::Release);
        self.in_flight.store(false, Ordering::Release);
        state.recycled = Some(commit.bytes);
        drop(state);
        self.settled.notify_all();
    }

    /// What the commit holds whose last attempt failed, until one works.
    pub(super) fn unwritten(&self) -> Option<Arc<Unwritten>> {
        self.lock().unwritten.clone()
    }

    /// Writer: notes what `commit` holds, whose attempt is about to be told as failed.
    pub(super) fn note_unwritten(&self, commit: &EncodedCommit) {
        if self.unwritten().is_none_or(|unwritten| unwritten.number() != commit.number) {
            let unwritten = Arc::new(Unwritten::of(commit));
            self.lock().unwritten = Some(unwritten);
        }
    }

    /// Writer: an attempt failed; the commit stays in flight.
    pub(super) fn fail(&self, reason: String) {
        let mut state = self.lock();
        state.failures += 1;
        state.failure = Some(reason);
        self.failing.store(true, Ordering::Relaxed);
        drop(state);
        self.settled.notify_all();
    }

    /// Writer: sleeps before the next attempt. True: the end was ordered meanwhile.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut state = self.lock();
        loop {
            if state.stop {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return false;
            };
            state = self.ordered.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writer: nothing is taken any more. A commit in flight stays unsettled.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.failing.store(true, Ordering::Relaxed);
        drop(state);
        self.settled.notify_all();
    }

    /// Orders the writer to end once nothing is left to append, or once an attempt fails.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.ordered.notify_one();
    }

    /// Sleeps until commit `number` is durable, an attempt fails from now on, the journal ends, or the deadline.
    pub(super) fn wait_durable(&self, number: u64, deadline: Option<Instant>) -> WaitOutcome {
        let mut state = self.lock();
        let failures = state.failures;
        loop {
            if self.durable.commit() >= number {
                return WaitOutcome::Durable;
            }
            if state.ended {
                return WaitOutcome::Ended;
            }
            if state.failures != failures {
                return WaitOutcome::Failing;
            }
            state = match deadline {
                None => self.settled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
                    else {
                        return WaitOutcome::TimedOut;
                    };
                    self.settled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

#[cfg(all(test, pycounter_loom))]
mod loom_tests {
    use super::*;

    fn commit(number: u64) -> EncodedCommit {
        EncodedCommit { number, bytes: vec![number as u8], previous_hash: number - 1, last_hash: number }
    }

    /// The writer as the commit thread plays it; fails each commit's first attempt if told so.
    fn write(slot: &CommitSlot, failing: bool) -> Vec<u64> {
        let mut written = Vec::new();
        loop {
            match slot.next_order() {
                Order::Stop => break,
                Order::Check => {}
                Order::Commit(commit) => {
                    if failing {
                        slot.fail("no".into());
                    }
                    written.push(commit.number);
                    slot.settle(commit);
                }
            }
        }
        slot.end();
        written
    }

    #[test]
    fn loom_commits_are_settled_in_order_and_seen_by_waiters() {
        loom::model(|| {
            let slot = Arc::new(CommitSlot::new(0));
            let writer = loom::thread::spawn({
                let slot = Arc::clone(&slot);
                move || write(&slot, false)
            });
            assert!(slot.submit(commit(1)).is_ok());
            assert_eq!(slot.wait_durable(1, None), WaitOutcome::Durable);
            // Durable was published before, or together with, the end of the flight.
            if !slot.in_flight() {
                assert_eq!(slot.durable().commit(), 1);
                assert!(slot.submit(commit(2)).is_ok());
            }
            slot.stop();
            let written = writer.join().unwrap();
            assert_eq!(slot.durable().commit(), *written.last().unwrap());
        });
    }

    #[test]
    fn loom_a_waiter_never_sleeps_through_a_failure_or_the_end() {
        loom::model(|| {
            let slot = Arc::new(CommitSlot::new(0));
            let writer = loom::thread::spawn({
                let slot = Arc::clone(&slot);
                move || write(&slot, true)
            });
            let waiter = loom::thread::spawn({
                let slot = Arc::clone(&slot);
                move || slot.wait_durable(1, None)
            });
            assert!(slot.submit(commit(1)).is_ok());
            slot.stop();
            writer.join().unwrap();
            assert_ne!(waiter.join().unwrap(), WaitOutcome::TimedOut);
            assert_eq!(slot.wait_durable(1, None), WaitOutcome::Durable);
            assert_eq!(slot.wait_durable(2, None), WaitOutcome::Ended);
            assert!(slot.is_failing(), "changes are admitted that nobody will write");
        });
    }
}

//! A durable counter map inside the user's process: what `pycounter.open` gives.
//!
//! Threads: any number of callers change counters under the *shared* side of one lock, using the store's atomic
//! operations: apply, mark as changed, read the stamp, unlock. The flusher thread takes the *exclusive* side to
//! drain, so a commit is a consistent cut: a change is in it whole, with its mark, or not at all. The commit
//! thread writes. Nobody holds the lock while the disk works.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::counter_store::{CounterRef, CounterStore, Overflow};
use crate::error_code::ErrorCode;
use crate::folder::Recovered;
use crate::journal::commit_thread::{CommitThread, WaitOutcome};
use crate::journal::record::CommitEncoder;
use crate::state::State;
use crate::wire::request::Level;
use crate::write_batch_queue::Room;

/// A flusher that has nothing to do looks again after this time.
const IDLE: Duration = Duration::from_secs(3600);

/// A durable counter map. Dropping it writes what is pending, as far as the disk lets it.
pub struct JournaledMap {
    inner: Arc<Inner>,
    flusher: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    level: Level,
    flush_interval: Duration,
    state: RwLock<Shared>,
    journal: CommitThread,
    orders: Mutex<Orders>,
    ordered: Condvar,
    /// Counters in the commit that is being written.
    in_flight: AtomicUsize,
    /// Changes are refused. Relaxed: a change that slips by is flushed by `close` or reported as not durable.
    stopped: AtomicBool,
}

/// What the lock guards.
struct Shared {
    state: State,
    encoder: CommitEncoder,
    started: Instant,
    uptime_before_ms: u64,
}

/// What the flusher is asked to do.
#[derive(Debug, Default)]
struct Orders {
    flush: bool,
    stop: bool,
}

/// Why a change or a flush failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// Nothing was applied.
    #[error("{}: nothing was applied", .0.meaning())]
    Refused(ErrorCode),
    /// It is applied in memory; whether it lasts is not known yet.
    #[error(
        "the change is applied in memory but not on disk yet ({0}); it is written again until that works: do not repeat it, call flush()"
    )]
    NotDurable(String),
    /// The map can't be closed without a loss; it stays open.
    #[error(
        "{counters} counters have changes in memory that the disk doesn't take ({reason}); nothing is lost yet, and the \
         map stays open: make room, then call close() again, or lose them with close(discard=True)"
    )]
    NotWritten {
        /// Counters with changes that aren't on disk.
        counters: usize,
        /// What the system says.
        reason: String,
    },
    /// The map was closed.
    #[error("the map is closed: nothing was applied")]
    Closed,
}

impl JournaledMap {
    /// Puts a recovered state and its journal to work.
    #[must_use]
    pub fn start(recovered: Recovered, level: Level, flush_interval: Duration) -> Self {
        let Recovered { state, encoder, journal, uptime_ms: uptime_before_ms, .. } = recovered;
        let shared = Shared { state, encoder, started: Instant::now(), uptime_before_ms };
        let inner = Arc::new(Inner {
            level,
            flush_interval,
            state: RwLock::new(shared),
            journal,
            orders: Mutex::default(),
            ordered: Condvar::new(),
            stopped: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        });
        let flusher = {
            let inner = Arc::clone(&inner);
            std::thread::Builder::new().name("pycounter-flush".into()).spawn(move || inner.flush_until_stopped()).ok()
        };
        Self { inner, flusher: Mutex::new(flusher) }
    }

    /// Reads, without waiting for anything to be durable.
    pub fn read<R>(&self, read: impl FnOnce(&CounterStore) -> R) -> R {
        read(&self.inner.shared().state.counters)
    }

    /// Applies changes in one cut: `change` gets a handle for any number of them. Returns once they are at the
    /// map's level.
    ///
    /// # Errors
    /// `Refused` and `Closed` before anything was applied; `NotDurable` when the disk failed meanwhile.
    pub fn change<R>(
        &self,
        changes_max: usize,
        change: impl FnOnce(&mut Changes<'_>) -> R,
    ) -> Result<R, EmbeddedError> {
        let (result, stamp) = {
            let shared = self.inner.shared();
            let room = self.inner.reserve(&shared.state, changes_max)?;
            let result = change(&mut Changes { state: &shared.state, room });
            (result, shared.stamp())
        };
        if self.inner.level == Level::Durable {
            self.inner.wait_for(stamp)?;
        } else if self.pending() > self.inner.early_flush() {
            self.inner.order(|orders| orders.flush = true);
        }
        Ok(result)
    }

    /// Removes every counter.
    pub fn clear(&self) -> Result<(), EmbeddedError> {
        let stamp = {
            let mut shared = self.inner.exclusive();
            self.inner.reserve(&shared.state, 0)?;
            shared.state.clear_counters();
            shared.stamp()
        };
        if self.inner.level == Level::Durable { self.inner.wait_for(stamp) } else { Ok(()) }
    }

    /// Returns once everything applied before is on disk.
    pub fn flush(&self) -> Result<(), EmbeddedError> {
        let stamp = self.inner.shared().stamp();
        self.inner.wait_for(stamp)
    }

    /// Counters that changed and are not durable yet (those of a commit on its way not counted).
    #[must_use]
    pub fn pending(&self) -> usize {
        self.inner.shared().state.dirty.len()
    }

    /// The journal's side: state, statistics, trimming.
    #[must_use]
    pub fn journal(&self) -> &CommitThread {
        &self.inner.journal
    }

    /// Writes what is pending and ends the threads. Idempotent.
    ///
    /// # Errors
    /// `NotWritten` if the disk refuses. The map then goes on as before, unless `discard` is set: then it is closed, and
    /// what isn't on disk is lost.
    pub fn close(&self, discard: bool) -> Result<(), EmbeddedError> {
        if lock(&self.flusher).is_none() {
            return Ok(());
        }
        // Refuses changes that would come after the last commit.
        self.inner.stopped.store(true, Ordering::Relaxed);
        if let (Err(error), false) = (self.flush(), discard) {
            self.inner.stopped.store(false, Ordering::Relaxed);
            let EmbeddedError::NotDurable(reason) = error else { return Err(error) };
            let counters = self.pending() + self.inner.in_flight.load(Ordering::Relaxed);
            return Err(EmbeddedError::NotWritten { counters, reason });
        }
        if let Some(flusher) = lock(&self.flusher).take() {
            self.inner.order(|orders| orders.stop = true);
            // A panic of the flusher was printed by its thread; what matters here is that it has ended.
            drop(flusher.join());
            self.inner.journal.shutdown();
        }
        Ok(())
    }
}

impl Drop for JournaledMap {
    fn drop(&mut self) {
        drop(self.close(true));
    }
}

impl Inner {
    // A panic while the lock was held can't have left a change half applied in a way that matters to counting
    // (each is one atomic and one mark), so poisoning is not passed on.
    fn shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Shared> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets room aside for the marks of `changes` changes, so that none is applied that no commit would carry.
    fn reserve<'s>(&self, state: &'s State, changes: usize) -> Result<Room<'s>, EmbeddedError> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(EmbeddedError::Closed);
        }
        if self.journal.is_failing() {
            return Err(EmbeddedError::Refused(ErrorCode::ReadOnly));
        }
        state.dirty.reserve(changes).map_err(|_| {
            self.order(|orders| orders.flush = true);
            EmbeddedError::Refused(ErrorCode::Overloaded)
        })
    }

    fn early_flush(&self) -> usize {
        self.shared().state.dirty.capacity() / 8
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut lock(&self.orders));
        self.ordered.notify_one();
    }

    fn wait_for(&self, stamp: u64) -> Result<(), EmbeddedError> {
        if self.journal.durable() >= stamp {
            return Ok(());
        }
        self.order(|orders| orders.flush = true);
        match self.journal.wait_durable(stamp, Duration::MAX) {
            WaitOutcome::Durable => Ok(()),
            outcome => Err(EmbeddedError::NotDurable(
                self.journal.failure().unwrap_or_else(|| format!("the journal has ended: {outcome:?}")),
            )),
        }
    }

    /// The flusher thread.
    fn flush_until_stopped(&self) {
        loop {
            let stop = self.wait_for_orders();
            self.commit();
            if stop {
                return;
            }
        }
    }

    /// Sleeps until there is an order, or until `applied` changes have waited long enough. True: stop.
    fn wait_for_orders(&self) -> bool {
        let interval = if self.level == Level::Applied { self.flush_interval } else { IDLE };
        let orders = lock(&self.orders);
        let (mut orders, _) = self
            .ordered
            .wait_timeout_while(orders, interval, |orders| !orders.flush && !orders.stop)
            .unwrap_or_else(PoisonError::into_inner);
        orders.flush = false;
        orders.stop
    }

    /// One commit with everything that changed, from the drain to the disk.
    fn commit(&self) {
        let number = {
            let mut shared = self.exclusive();
            if !shared.state.is_dirty() {
                return;
            }
            let Shared { state, encoder, started, uptime_before_ms } = &mut *shared;
            let changed = state.dirty.len();
            let run = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            encoder.recycle(self.journal.take_buffer());
            let commit = state.drain(encoder, uptime_before_ms.saturating_add(run));
            let number = commit.number;
            // Relaxed: a figure for an error.
            self.in_flight.store(changed, Ordering::Relaxed);
            if self.journal.submit(commit).is_err() {
                return; // the journal was ended; waiters are told so by it
            }
            number
        };
        // On failure the commit thread tries again by itself; the next drain must wait for it all the same.
        while self.journal.wait_durable(number, Duration::MAX) == WaitOutcome::Failing {
            if lock(&self.orders).stop {
                return;
            }
        }
        self.in_flight.store(0, Ordering::Relaxed);
    }
}

impl Shared {
    /// The commit that covers everything applied so far.
    fn stamp(&self) -> u64 {
        if self.state.is_dirty() { self.encoder.next_number() } else { self.encoder.next_number() - 1 }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle for changes within one cut. Each change marks its counter for the next commit.
pub struct Changes<'s> {
    state: &'s State,
    room: Room<'s>,
}

impl Changes<'_> {
    /// The store, for reads and hashes.
    #[must_use]
    pub fn counters(&self) -> &CounterStore {
        &self.state.counters
    }

    /// Adds and gives the value after.
    ///
    /// # Errors
    /// `overflow`, or `overloaded` when there is no memory for another counter; nothing was changed.
    pub fn incr(&mut self, hash: u64, key: &[u8], delta: i64) -> Result<i64, ErrorCode> {
        let counter = self.insert(hash, key)?;
        let value = self.counters().incr(counter, delta).map_err(|_| ErrorCode::Overflow)?;
        self.mark(counter);
        Ok(value)
    }

    /// Replaces the value, None if there is no counter, with the result of `to`; gives the new one. `to` may run several
    /// times.
    ///
    /// # Errors
    /// `overflow`, if `to` says so; `overloaded` when there is no memory for another counter. Nothing was changed.
    pub fn change_with(
        &mut self,
        hash: u64,
        key: &[u8],
        to: impl Fn(Option<i64>) -> Result<Option<i64>, Overflow>,
    ) -> Result<Option<i64>, ErrorCode> {
        let counter = self.insert(hash, key)?;
        let after = self.counters().change_with(counter, to).map_err(|_| ErrorCode::Overflow)?;
        self.mark(counter);
        Ok(after)
    }

    /// Sets the value and gives the one before.
    ///
    /// # Errors
    /// `overloaded` when there is no memory for another counter.
    pub fn set(&mut self, hash: u64, key: &[u8], value: i64) -> Result<i64, ErrorCode> {
        let counter = self.insert(hash, key)?;
        let before = self.counters().set(counter, value);
        self.mark(counter);
        Ok(before)
    }

    /// Takes everything out; the counter stays.
    #[must_use]
    pub fn drain(&mut self, hash: u64, key: &[u8]) -> i64 {
        let Some(counter) = self.find(hash, key) else { return 0 };
        let taken = self.counters().drain(counter);
        self.mark(counter);
        taken
    }

    /// Removes the counter; `None` if it doesn't exist.
    #[must_use]
    pub fn delete(&mut self, hash: u64, key: &[u8]) -> Option<i64> {
        let counter = self.find(hash, key)?;
        let taken = self.counters().delete(counter);
        self.mark(counter);
        taken
    }

    fn insert(&self, hash: u64, key: &[u8]) -> Result<CounterRef, ErrorCode> {
        self.counters().find_or_insert(hash, key).map_err(|_| ErrorCode::Overloaded)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<CounterRef> {
        self.counters().find(hash, key).filter(|&counter| self.counters().is_present(counter))
    }

    /// After the change, under the shared lock: the drain can't come between the two.
    fn mark(&mut self, counter: CounterRef) {
        let marked = self.state.counters.mark_dirty_in(counter, &mut self.room);
        debug_assert!(marked.is_ok(), "a change was applied that no commit will carry");
    }
}

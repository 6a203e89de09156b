//! What is behind a `Counters`: the engine's store in memory, or a journaled map on disk. Everything above works on
//! either through the same few calls, so that no operation is written twice.
//!
//! Who waits for what: the lock around the store is held for one call into the engine, and never while Python code
//! runs or the interpreter is waited for. So a thread may wait for it attached to the interpreter: whoever holds it
//! goes on without. It is taken exclusively only to replace or to rebuild the whole store.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use pycounter_engine::counter_store::{CounterStore, Overflow, StoreError};
use pycounter_engine::embedded::Changes;
use pycounter_engine::error_code::ErrorCode;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;

use crate::errors;
use crate::opened_map::OpenedMap;

/// Deletions and first insertions between two looks at what the store could free.
const SWEEP_EVERY: usize = 4096;
/// From this many items or counters on, a call lets other threads run Python meanwhile: it takes some milliseconds, as
/// long as the interpreter lets a thread run anyway. Below, handing over and back would cost more than it gives: beside
/// a busy thread it takes up to 5 ms to be back.
pub(crate) const DETACH_FROM: usize = 131_072;

/// Adds to counters, or takes from them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Plus,
    Minus,
}

/// Why one change was refused. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Overflow,
    Full,
}

impl Refusal {
    /// The exception for it.
    #[cold]
    pub(crate) fn raise(self, py: Python<'_>) -> PyErr {
        match self {
            Self::Overflow => errors::named(py, "CounterOverflow", ("the value would leave the range of 64 bits",)),
            Self::Full => PyMemoryError::new_err("there is no room for more counters"),
        }
    }
}

impl From<StoreError> for Refusal {
    /// Keys of a wrong length don't come here, so whatever it is, it is a lack of room.
    fn from(_: StoreError) -> Self {
        Self::Full
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        if code == ErrorCode::Overflow { Self::Overflow } else { Self::Full }
    }
}

/// A map in this process's memory.
pub(crate) struct MemoryMap {
    store: RwLock<CounterStore>,
    /// Counts towards SWEEP_EVERY. Relaxed everywhere: which call sweeps doesn't matter.
    unswept: AtomicUsize,
}

impl MemoryMap {
    pub(crate) fn new(store: CounterStore) -> Self {
        Self { store: RwLock::new(store), unswept: AtomicUsize::new(0) }
    }

    // A panic in the middle leaves the store as a concurrent reader may find it at any time: poison says nothing.
    fn shared<R>(&self, run: impl FnOnce(&CounterStore) -> R) -> R {
        run(&self.store.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, store: CounterStore) {
        let old = std::mem::replace(&mut *self.store.write().unwrap_or_else(PoisonError::into_inner), store);
        drop(old); // a large one takes its time, which nobody needs to wait for
    }

    /// Once in a while, if nobody else is at work: frees outgrown indexes and, where most are, deleted counters.
    fn sweep(&self, py: Python<'_>, changes: usize) {
        if self.unswept.fetch_add(changes, Ordering::Relaxed) < SWEEP_EVERY {
            return;
        }
        py.detach(|| {
            let Ok(mut store) = self.store.try_write() else { return };
            self.unswept.store(0, Ordering::Relaxed);
            store.reclaim();
            if store.wants_compaction() {
                store.compact();
            }
        });
    }
}

/// The counters behind a `Counters`.
#[allow(clippy::large_enum_variant, reason = "maps are large and few; a box would cost each call one more fetch")]
pub(crate) enum Backend {
    Memory(MemoryMap),
    Journaled(OpenedMap),
}

impl Backend {
    pub(crate) fn memory(store: CounterStore) -> Self {
        Self::Memory(MemoryMap::new(store))
    }

    /// Why nothing can be done with it any more; None while something can.
    pub(crate) fn unusable(&self) -> Option<&'static str> {
        match self {
            Self::Memory(_) => None,
            Self::Journaled(map) => map.unusable(),
        }
    }

    /// Reads. `read` runs no Python code.
    pub(crate) fn read<R>(&self, py: Python<'_>, read: impl FnOnce(&CounterStore) -> R) -> PyResult<R> {
        match self {
            Self::Memory(map) => Ok(map.shared(read)),
            Self::Journaled(map) => map.read(py, read),
        }
    }

    /// Reads everything: lets others run Python meanwhile if that is much.
    pub(crate) fn read_all<R: Send>(
        &self,
        py: Python<'_>,
        read: impl FnOnce(&CounterStore) -> R + Send,
    ) -> PyResult<R> {
        let count = self.read(py, CounterStore::len)?;
        self.read_many(py, count, read)
    }

    /// Reads `count` counters: lets others run Python meanwhile if that is much.
    pub(crate) fn read_many<R: Send>(
        &self,
        py: Python<'_>,
        count: usize,
        read: impl FnOnce(&CounterStore) -> R + Send,
    ) -> PyResult<R> {
        if count < DETACH_FROM {
            return self.read(py, read);
        }
        match self {
            Self::Memory(map) => Ok(py.detach(|| map.shared(read))),
            Self::Journaled(map) => map.read_detached(py, read),
        }
    }

    /// Changes up to `changes_max` counters in one cut. `change` runs no Python code.
    ///
    /// # Errors
    /// Of a journaled map: refused, or applied and not durable; then `change` has run.
    pub(crate) fn change<R: Send>(
        &self,
        py: Python<'_>,
        changes_max: usize,
        mut change: impl FnMut(&mut Cut<'_, '_>) -> R + Send,
    ) -> PyResult<R> {
        match self {
            Self::Memory(map) if changes_max < DETACH_FROM => Ok(match map.store.try_write() {
                Ok(mut store) => change(&mut Cut::Alone(&mut store)),
                Err(_) => map.shared(|store| change(&mut Cut::Shared(store))),
            }),
            Self::Memory(map) => Ok(py.detach(|| map.shared(|store| change(&mut Cut::Shared(store))))),
            Self::Journaled(map) => map.change(py, changes_max, |changes| change(&mut Cut::Journaled(changes))),
        }
    }

    /// How many changes of a long row to make at a time: many, where there is much to wait for.
    pub(crate) fn chunk(&self, expected: usize) -> usize {
        match self {
            Self::Memory(_) if expected < DETACH_FROM => 256,
            Self::Memory(_) => DETACH_FROM,
            Self::Journaled(map) => DETACH_FROM.min(map.changes_max()),
        }
    }

    /// Tells that so many counters came or went.
    pub(crate) fn sweep(&self, py: Python<'_>, changes: usize) {
        match self {
            Self::Memory(map) => map.sweep(py, changes),
            Self::Journaled(_) => {} // its own drain does
        }
    }

    /// Removes every counter and frees their memory.
    pub(crate) fn clear(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Memory(map) => py.detach(|| map.replace(CounterStore::new())),
            Self::Journaled(map) => map.clear(py)?,
        }
        Ok(())
    }
}

/// What a map lets its users do within one call.
pub(crate) enum Cut<'c, 's> {
    /// Nobody else is in the store: no locked instruction is needed. The usual case, since a thread that is attached
    /// to the interpreter meets only those that let go of it for a long call.
    Alone(&'c mut CounterStore),
    Shared(&'c CounterStore),
    Journaled(&'c mut Changes<'s>),
}

impl Cut<'_, '_> {
    /// The store, for reads and hashes.
    pub(crate) fn store(&self) -> &CounterStore {
        match self {
            Self::Alone(store) => store,
            Self::Shared(store) => store,
            Self::Journaled(changes) => changes.counters(),
        }
    }

    /// Adds; gives the value after.
    pub(crate) fn incr(&mut self, hash: u64, key: &[u8], delta: i64) -> Result<i64, Refusal> {
        match self {
            Self::Alone(store) => {
                let counter = store.find_or_insert_mut(hash, key)?;
                store.incr_mut(counter, delta).map_err(|_| Refusal::Overflow)
            }
            Self::Shared(store) => store.incr(store.find_or_insert(hash, key)?, delta).map_err(|_| Refusal::Overflow),
            Self::Journaled(changes) => Ok(changes.incr(hash, key, delta)?),
        }
    }

    /// Adds, where nobody asks for the value.
    pub(crate) fn add(&mut self, hash: u64, key: &[u8], delta: i64) -> Result<(), Refusal> {
        match self {
            Self::Shared(store) => store.add(store.find_or_insert(hash, key)?, delta).map_err(|_| Refusal::Overflow),
            alone => alone.incr(hash, key, delta).map(drop),
        }
    }

    /// Adds, or takes away. The amount's opposite may have more than 64 bits.
    pub(crate) fn add_signed(&mut self, hash: u64, key: &[u8], sign: Sign, amount: i64) -> Result<(), Refusal> {
        let delta = if sign == Sign::Plus { Some(amount) } else { amount.checked_neg() };
        if let Some(delta) = delta {
            return self.add(hash, key, delta);
        }
        let minus = |value: Option<i64>| value.unwrap_or(0).checked_sub(amount).map(Some).ok_or(Overflow);
        self.change_with(hash, key, minus).map(drop)
    }

    /// Replaces the value, None if there is no counter, with the result of `to`; gives the new one.
    pub(crate) fn change_with(
        &mut self,
        hash: u64,
        key: &[u8],
        to: impl Fn(Option<i64>) -> Result<Option<i64>, Overflow>,
    ) -> Result<Option<i64>, Refusal> {
        if let Self::Journaled(changes) = self {
            return Ok(changes.change_with(hash, key, to)?);
        }
        let store = self.store();
        store.change_with(store.find_or_insert(hash, key)?, to).map_err(|_| Refusal::Overflow)
    }

    /// Sets the value.
    pub(crate) fn set(&mut self, key: &[u8], value: i64) -> Result<(), Refusal> {
        let hash = self.store().hash(key);
        match self {
            Self::Alone(store) => {
                let counter = store.find_or_insert_mut(hash, key)?;
                store.set_mut(counter, value);
            }
            Self::Shared(store) => {
                store.set(store.find_or_insert(hash, key)?, value);
            }
            Self::Journaled(changes) => {
                changes.set(hash, key, value)?;
            }
        }
        Ok(())
    }

    /// Takes everything out; the counter stays if it was there.
    pub(crate) fn drain(&mut self, key: &[u8]) -> i64 {
        let hash = self.store().hash(key);
        if let Self::Journaled(changes) = self {
            return changes.drain(hash, key);
        }
        let store = self.store();
        let counter = store.find(hash, key).filter(|&counter| store.is_present(counter));
        counter.map_or(0, |counter| store.drain(counter))
    }

    /// Removes the counter; gives what it held, None if there was none.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Option<i64> {
        let hash = self.store().hash(key);
        if let Self::Journaled(changes) = self {
            return changes.delete(hash, key);
        }
        let store = self.store();
        store.delete(store.find(hash, key)?)
    }
}

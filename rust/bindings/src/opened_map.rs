//! The journaled map behind a `JournaledCounters`: not there before `start`, refused after `close` and after a fork.
//!
//! A call that waits for the disk lets other threads run Python meanwhile.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pycounter_engine::counter_store::CounterStore;
use pycounter_engine::embedded::{Changes, EmbeddedError, JournaledMap};
use pycounter_engine::error_code::ErrorCode;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::errors;
use crate::owned_by_process::OwnedByProcess;

/// See the module's documentation.
pub(crate) struct OpenedMap {
    map: OwnedByProcess<OnceLock<JournaledMap>>,
    /// Calls wait for the disk.
    durable: bool,
    changes_max: usize,
    closed: AtomicBool,
}

impl OpenedMap {
    /// A map that isn't there yet. `changes_max` of its counters may wait for the disk.
    pub(crate) fn new(py: Python<'_>, durable: bool, changes_max: usize) -> PyResult<Self> {
        let map = OwnedByProcess::new(py, OnceLock::new())?;
        Ok(Self { map, durable, changes_max, closed: AtomicBool::new(false) })
    }

    /// Puts the recovered map in place.
    pub(crate) fn set(&self, py: Python<'_>, map: JournaledMap) -> PyResult<()> {
        let set = self.map.get_or_raise(py)?.set(map);
        set.map_err(|_| PyRuntimeError::new_err("the counters were started before"))
    }

    /// How many changes fit into one cut.
    pub(crate) fn changes_max(&self) -> usize {
        self.changes_max
    }

    /// Why nothing can be done with it; None while something can.
    pub(crate) fn unusable(&self) -> Option<&'static str> {
        let map = self.map.get();
        match map.map(OnceLock::get) {
            None => Some("the parent process's"),
            Some(_) if self.closed.load(Ordering::Relaxed) => Some("closed"),
            Some(None) => Some("not started"),
            Some(Some(_)) => None,
        }
    }

    fn map(&self, py: Python<'_>) -> PyResult<&JournaledMap> {
        let map = self.map.get_or_raise(py)?.get();
        // Relaxed: a change that comes at the same time as `close` is refused by the map itself.
        if self.closed.load(Ordering::Relaxed) {
            return Err(raise(py, &EmbeddedError::Closed));
        }
        map.ok_or_else(|| PyRuntimeError::new_err("the counters are not started"))
    }

    pub(crate) fn read<R>(&self, py: Python<'_>, read: impl FnOnce(&CounterStore) -> R) -> PyResult<R> {
        Ok(self.map(py)?.read(read))
    }

    pub(crate) fn read_detached<R: Send>(
        &self,
        py: Python<'_>,
        read: impl FnOnce(&CounterStore) -> R + Send,
    ) -> PyResult<R> {
        let map = self.map(py)?;
        Ok(py.detach(|| map.read(read)))
    }

    /// One cut. While too much waits for the disk already, waits too.
    pub(crate) fn change<R: Send>(
        &self,
        py: Python<'_>,
        changes_max: usize,
        mut change: impl FnMut(&mut Changes<'_>) -> R + Send,
    ) -> PyResult<R> {
        let map = self.map(py)?;
        loop {
            let outcome = if self.durable {
                py.detach(|| map.change(changes_max, &mut change))
            } else {
                map.change(changes_max, &mut change)
            };
            match outcome {
                Err(EmbeddedError::Refused(ErrorCode::Overloaded)) => self.flush(py)?,
                outcome => return outcome.map_err(|error| raise(py, &error)),
            }
        }
    }

    pub(crate) fn clear(&self, py: Python<'_>) -> PyResult<()> {
        let map = self.map(py)?;
        py.detach(|| map.clear()).map_err(|error| raise(py, &error))
    }

    pub(crate) fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let map = self.map(py)?;
        py.detach(|| map.flush()).map_err(|error| raise(py, &error))
    }

    pub(crate) fn pending(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.map(py)?.pending())
    }

    /// Writes what is pending and ends the map; if the disk refuses, only with `discard`. Idempotent; does nothing in a
    /// forked child.
    pub(crate) fn close(&self, py: Python<'_>, discard: bool) -> PyResult<()> {
        if let Some(map) = self.map.get().and_then(OnceLock::get) {
            py.detach(|| map.close(discard)).map_err(|error| raise(py, &error))?;
        }
        self.closed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for OpenedMap {
    fn drop(&mut self) {
        let map = self.map.take();
        // Dropping it waits for the disk. Without an interpreter the closure, and the map in it, is dropped here.
        Python::try_attach(|py| py.detach(|| drop(map)));
    }
}

#[cold]
fn raise(py: Python<'_>, error: &EmbeddedError) -> PyErr {
    let class = match error {
        EmbeddedError::Refused(_) => "StorageError",
        EmbeddedError::NotDurable(_) | EmbeddedError::NotWritten { .. } => "NotDurable",
        _ => "PyCounterError",
    };
    errors::named(py, class, (error.to_string(),))
}

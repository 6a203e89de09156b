//! What belongs to the process that made it: its threads, locks and files don't come along through a fork.

use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::errors;

/// Forks that led to this process. Relaxed everywhere: a child has one thread when it counts.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Runs in every forked child.
#[pyfunction]
fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Has forks counted from now on.
fn watch_forks(py: Python<'_>) -> PyResult<()> {
    static WATCHED: PyOnceLock<()> = PyOnceLock::new();
    WATCHED.get_or_try_init(py, || {
        let arguments = PyDict::new(py);
        arguments.set_item("after_in_child", wrap_pyfunction!(count_fork, py)?)?;
        py.import("os")?.call_method("register_at_fork", (), Some(&arguments)).map(drop)
    })?;
    Ok(())
}

/// Something that a forked child may neither use nor drop.
pub(crate) struct OwnedByProcess<T> {
    /// None only while it is dropped.
    inner: Option<T>,
    forks: u32,
}

impl<T> OwnedByProcess<T> {
    pub(crate) fn new(py: Python<'_>, inner: T) -> PyResult<Self> {
        watch_forks(py)?;
        Ok(Self { inner: Some(inner), forks: FORKS.load(Ordering::Relaxed) })
    }

    /// None in a forked child.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        if self.is_here() { self.inner.as_ref() } else { None }
    }

    /// AfterFork in a forked child.
    pub(crate) fn get_or_raise(&self, py: Python<'_>) -> PyResult<&T> {
        self.get().ok_or_else(|| {
            let text = "these counters were opened before a fork: open them in one process, after forking";
            errors::named(py, "AfterFork", (text,))
        })
    }

    /// Takes it out to be dropped; in a forked child it is left alone for good.
    pub(crate) fn take(&mut self) -> Option<T> {
        let inner = self.inner.take();
        if self.is_here() {
            return inner;
        }
        mem::forget(inner);
        None
    }

    fn is_here(&self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }
}

impl<T> Drop for OwnedByProcess<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

//! `JournaledCounters`: `Counters` that are on disk, in a folder like a shard's. What `pycounter.open` wraps.

use std::path::PathBuf;
use std::time::Duration;

use pycounter_engine::embedded::JournaledMap;
use pycounter_engine::wire::request::Level;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::counter_backend::Backend;
use crate::counters::Counters;
use crate::journaled_folder::{FolderSettings, JournaledFolder, level_of};
use crate::opened_map::OpenedMap;
use crate::owned_by_process::OwnedByProcess;

/// Counters on disk. Recovery comes first: `load_root` and `load_page` of `folder`, then `start`.
#[pyclass(frozen, subclass, extends = Counters, module = "pycounter._native")]
pub struct JournaledCounters {
    folder: OwnedByProcess<Py<JournaledFolder>>,
    level: Level,
    flush_interval: Duration,
}

/// The map of the part that all `Counters` have.
fn opened<'c>(slf: &'c Bound<'_, JournaledCounters>) -> PyResult<&'c OpenedMap> {
    match slf.as_super().get().backend() {
        Backend::Journaled(map) => Ok(map),
        Backend::Memory(_) => Err(PyTypeError::new_err("these counters are not journaled")),
    }
}

#[pymethods]
impl JournaledCounters {
    #[new]
    #[pyo3(signature = (directory, *, name = "shard-0", level = "durable", segment_bytes = 67_108_864,
        counters_bytes_max = 8_589_934_592, dirty_counters_max = 1_048_576, sessions_max = 100_000,
        results_per_session_max = 10_000, session_bytes_max = 268_435_456, ids_bytes_max = 268_435_456,
        session_window_s = 604_800.0, id_window_s = 120.0, flush_interval_s = 1.0))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        py: Python<'_>,
        directory: PathBuf,
        name: &str,
        level: &str,
        segment_bytes: u64,
        counters_bytes_max: u64,
        dirty_counters_max: usize,
        sessions_max: usize,
        results_per_session_max: usize,
        session_bytes_max: usize,
        ids_bytes_max: usize,
        session_window_s: f64,
        id_window_s: f64,
        flush_interval_s: f64,
    ) -> PyResult<PyClassInitializer<Self>> {
        let level = level_of(level)?;
        let flush_interval = Duration::try_from_secs_f64(flush_interval_s)
            .map_err(|_| PyValueError::new_err("flush_interval_s must be a time in seconds"))?;
        let settings = FolderSettings {
            segment_bytes,
            counters_bytes_max,
            dirty_counters_max,
            sessions_max,
            results_per_session_max,
            session_bytes_max,
            ids_bytes_max,
            session_window_s,
            id_window_s,
            ring: None,
        };
        let map = OpenedMap::new(py, level == Level::Durable, dirty_counters_max)?;
        let folder = Py::new(py, JournaledFolder::open(py, directory, name, &settings, None)?)?;
        let folder = OwnedByProcess::new(py, folder)?;
        let counters = PyClassInitializer::from(Counters::with(Backend::Journaled(map)));
        Ok(counters.add_subclass(Self { folder, level, flush_interval }))
    }

    /// Replays the log and starts the threads that write. Gives the number of commits replayed.
    fn start(slf: &Bound<'_, Self>) -> PyResult<u64> {
        let (py, this) = (slf.py(), slf.get());
        let recovered = this.folder.get_or_raise(py)?.get().recover(py, false)?;
        let replayed = recovered.commits_replayed;
        opened(slf)?.set(py, JournaledMap::start(recovered, this.level, this.flush_interval))?;
        Ok(replayed)
    }

    /// Returns once everything up to now is on disk.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        opened(slf)?.flush(slf.py())
    }

    /// Counters that changed since the last commit began.
    #[getter]
    fn pending(slf: &Bound<'_, Self>) -> PyResult<usize> {
        opened(slf)?.pending(slf.py())
    }

    /// Writes what is pending and ends the threads. Idempotent. The folder stays locked until `folder.close_folder()`.
    #[pyo3(signature = (*, discard = false))]
    fn close(slf: &Bound<'_, Self>, discard: bool) -> PyResult<()> {
        opened(slf)?.close(slf.py(), discard)
    }

    /// The folder: its identity, its log, its checkpoints.
    #[getter]
    fn folder(&self, py: Python<'_>) -> PyResult<Py<JournaledFolder>> {
        Ok(self.folder.get_or_raise(py)?.clone_ref(py))
    }

    /// "applied" or "durable".
    #[getter]
    fn level(&self) -> &'static str {
        if self.level == Level::Durable { "durable" } else { "applied" }
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("counters on disk can't be pickled: pickle a copy(), or open their folder there"))
    }
}

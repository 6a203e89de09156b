//! `JournaledCounters`: `Counters` that are on disk, in a folder like a shard's. What `pycounter.open` wraps.

use std::path::PathBuf;
use std::time::Duration;

use pycounter_engine::embedded::JournaledMap;
use pycounter_engine::wire::request::Level;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::counter_backend::Backend;
use crate::counters::Counters;
use crate::journaled_folder::{Fold, FolderSettings, JournaledFolder, level_of};
use crate::opened_map::OpenedMap;
use crate::owned_by_process::OwnedByProcess;

/// Counters on disk. Recovery comes first, as for a shard: `load_root`, `load_page` for each key, `start`.
#[pyclass(frozen, subclass, extends = Counters, module = "pycounter._native")]
pub struct JournaledCounters {
    folder: OwnedByProcess<JournaledFolder>,
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

impl JournaledCounters {
    fn folder(&self, py: Python<'_>) -> PyResult<&JournaledFolder> {
        self.folder.get_or_raise(py)
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
        let folder = OwnedByProcess::new(py, JournaledFolder::open(py, directory, name, &settings, None)?)?;
        let counters = PyClassInitializer::from(Counters::with(Backend::Journaled(map)));
        Ok(counters.add_subclass(Self { folder, level, flush_interval }))
    }

    /// Replays the log and starts the threads that write. Gives the number of commits replayed.
    fn start(slf: &Bound<'_, Self>) -> PyResult<u64> {
        let (py, this) = (slf.py(), slf.get());
        let recovered = this.folder(py)?.recover(py, false)?;
        let replayed = recovered.commits_replayed;
        opened(slf)?.set(py, JournaledMap::start(recovered, this.level, this.flush_interval))?;
        Ok(replayed)
    }

    /// Returns once everything up to now is on disk.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        opened(slf)?.flush(slf.py())
    }

    /// Counters that changed since the last commit was begun.
    #[getter]
    fn pending(slf: &Bound<'_, Self>) -> PyResult<usize> {
        opened(slf)?.pending(slf.py())
    }

    /// Writes what is pending, ends the threads and unlocks the folder. Idempotent.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let closed = opened(slf)?.close(slf.py());
        if let Some(folder) = slf.get().folder.get() {
            folder.close();
        }
        closed
    }

    /// "applied" or "durable".
    #[getter]
    fn level(&self) -> &'static str {
        if self.level == Level::Durable { "durable" } else { "applied" }
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("counters on disk can't be pickled: pickle a copy(), or open their folder there"))
    }

    // --- what the folder does: see `JournaledFolder` ---

    /// The folder's identity: 32 hexadecimal digits.
    #[getter]
    fn identity(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.folder(py)?.identity().to_owned())
    }

    /// The name, as the manifest has it.
    #[getter]
    fn name(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.folder(py)?.name().to_owned())
    }

    /// Was the folder empty before?
    #[getter]
    fn created(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.folder(py)?.created())
    }

    /// The fencing number of this run.
    #[getter]
    fn epoch(&self, py: Python<'_>) -> PyResult<u64> {
        self.folder(py)?.epoch()
    }

    /// Bytes that `start` cut from the log's end.
    #[getter]
    fn torn_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.folder(py)?.torn_bytes()
    }

    /// Takes the root's row; gives the keys of the pages to load.
    fn load_root<'py>(&self, py: Python<'py>, root: Option<&[u8]>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        self.folder(py)?.load_root(py, root)
    }

    /// Takes one page's row.
    fn load_page(&self, py: Python<'_>, key: &[u8], page: Option<&[u8]>) -> PyResult<()> {
        self.folder(py)?.load_page(py, key, page)
    }

    /// Unlocks the folder of counters that were not started. Idempotent.
    fn close_folder(&self) {
        if let Some(folder) = self.folder.get() {
            folder.close();
        }
    }

    /// Bytes of the log's files.
    #[getter]
    fn log_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.folder(py)?.log_bytes(py)
    }

    /// Durable commits above the checkpoint.
    #[getter]
    fn commits_behind(&self, py: Python<'_>) -> PyResult<u64> {
        self.folder(py)?.commits_behind()
    }

    /// Reads durable commits, to be folded into pages.
    fn begin_fold(&self, py: Python<'_>) -> PyResult<Option<Fold>> {
        self.folder(py)?.begin_fold(py)
    }

    /// The fold's root is safe in the store: drops the log below it.
    fn end_fold(&self, py: Python<'_>, fold: &Fold) -> PyResult<()> {
        self.folder(py)?.end_fold(py, fold)
    }
}

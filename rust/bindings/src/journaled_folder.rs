//! `JournaledFolder` and `Fold`: what the server's shard and the embedded map share, from recovery to checkpoints.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pycounter_engine::checkpoint::{self, ROOT_KEY, Root};
use pycounter_engine::folder::{Checkpointer, FolderError, Recovered, Recovery};
use pycounter_engine::journal::commit_thread::Durable;
use pycounter_engine::journal::tail::{Tail, TailPlace, TailReaders};
use pycounter_engine::journal::{JournalOptions, Position};
use pycounter_engine::operation_id_table::OperationIdSettings;
use pycounter_engine::placement::hash_ring::HashRing;
use pycounter_engine::session_table::SessionSettings;
use pycounter_engine::state::StateSettings;
use pycounter_engine::wire::request::Level;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;
use crate::simulated_disk::SimulatedDisk;

/// A page, or the root, as rows for a store.
type Row<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

/// The level's word.
pub(crate) fn level_of(word: &str) -> PyResult<Level> {
    match word {
        "applied" => Ok(Level::Applied),
        "durable" => Ok(Level::Durable),
        other => Err(PyValueError::new_err(format!("level must be \"applied\" or \"durable\", not {other:?}"))),
    }
}

/// The settings of a folder's state, as Python gives them.
pub(crate) struct FolderSettings<'r> {
    pub(crate) segment_bytes: u64,
    pub(crate) counters_bytes_max: u64,
    pub(crate) dirty_counters_max: usize,
    pub(crate) sessions_max: usize,
    pub(crate) results_per_session_max: usize,
    pub(crate) session_bytes_max: usize,
    pub(crate) ids_bytes_max: usize,
    pub(crate) session_window_s: f64,
    pub(crate) id_window_s: f64,
    /// Of the shards that this one is among: it lists what isn't at home.
    pub(crate) ring: Option<&'r HashRing>,
}

impl FolderSettings<'_> {
    pub(crate) fn state(&self) -> PyResult<StateSettings> {
        let milliseconds = |name: &str, seconds: f64| {
            // 2^53: the largest f64 up to which every whole number has its own.
            if seconds > 0.0 && seconds * 1000.0 < 9e15 {
                return Ok((seconds * 1000.0) as u64);
            }
            Err(PyValueError::new_err(format!("{name} must be a positive time in seconds, not {seconds}")))
        };
        let id_window_ms = milliseconds("id_window_s", self.id_window_s)?;
        Ok(StateSettings {
            counters_bytes_max: self.counters_bytes_max,
            dirty_counters_max: self.dirty_counters_max,
            sessions: SessionSettings {
                sessions_max: self.sessions_max,
                results_per_session_max: self.results_per_session_max,
                table_bytes_max: self.session_bytes_max,
                session_window_ms: milliseconds("session_window_s", self.session_window_s)?,
                tombstone_window_ms: id_window_ms,
            },
            ids: OperationIdSettings {
                ids_window_ms: id_window_ms,
                ids_bytes_max: self.ids_bytes_max,
                ..OperationIdSettings::default()
            },
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A locked folder: recovered first, checkpointed later.
///
/// Recovery, in this order: `load_root`, `load_page` for each key that it gave, then `start` of the class that
/// extends this one.
#[pyclass(frozen, subclass, module = "pycounter._native")]
pub struct JournaledFolder {
    directory: PathBuf,
    recovery: Mutex<Option<Recovery>>,
    running: Mutex<Option<Running>>,
    identity: String,
    name: String,
    created: bool,
}

/// What the checkpoint thread needs of a started journal.
#[derive(Clone)]
struct Running {
    checkpointer: Arc<Checkpointer>,
    tails: Arc<TailReaders>,
    durable: Arc<Durable>,
    epoch: u64,
    torn_bytes: u64,
}

impl JournaledFolder {
    pub(crate) fn open(
        py: Python<'_>,
        directory: PathBuf,
        name: &str,
        settings: &FolderSettings<'_>,
        simulated: Option<&SimulatedDisk>,
    ) -> PyResult<Self> {
        let state = settings.state()?;
        let mut options = JournalOptions {
            name: name.to_owned(),
            segment_bytes: settings.segment_bytes,
            ..JournalOptions::default()
        };
        if let Some(disk) = simulated {
            (options.files, options.seed) = (disk.files(), Some(disk.seed));
        }
        let recovery = py.detach(|| Recovery::open(&directory, options, &state));
        let mut recovery = recovery.map_err(|error| errors::folder(py, &directory, &error))?;
        if let Some(ring) = settings.ring {
            recovery.list_foreign(ring.clone());
        }
        let manifest = recovery.manifest();
        Ok(Self {
            identity: manifest.identity.to_string(),
            name: manifest.name.clone(),
            created: recovery.created(),
            recovery: Mutex::new(Some(recovery)),
            running: Mutex::new(None),
            directory,
        })
    }

    /// Replays the log and opens it for writing.
    pub(crate) fn recover(&self, py: Python<'_>, by_hand: bool) -> PyResult<Recovered> {
        let recovery = lock(&self.recovery).take();
        let recovery = recovery.ok_or_else(|| PyRuntimeError::new_err("the folder was started or closed before"))?;
        let start = if by_hand { Recovery::start_by_hand } else { Recovery::start };
        let recovered = py.detach(|| start(recovery)).map_err(|error| errors::folder(py, &self.directory, &error))?;
        *lock(&self.running) = Some(Running {
            checkpointer: Arc::clone(&recovered.checkpointer),
            tails: Arc::clone(&recovered.tails),
            durable: recovered.journal.durable_handle(),
            epoch: recovered.epoch,
            torn_bytes: recovered.torn_bytes,
        });
        Ok(recovered)
    }

    /// Lets go of the folder. The lock is free once a fold that is under way has ended too.
    pub(crate) fn close(&self) {
        lock(&self.recovery).take();
        lock(&self.running).take();
    }

    fn running(&self) -> PyResult<Running> {
        lock(&self.running).clone().ok_or_else(|| PyRuntimeError::new_err("the folder is not started, or closed"))
    }

    fn failed(&self, py: Python<'_>, error: impl Into<FolderError>) -> PyErr {
        errors::folder(py, &self.directory, &error.into())
    }

    fn with_recovery<R>(
        &self,
        py: Python<'_>,
        run: impl FnOnce(&mut Recovery) -> Result<R, FolderError>,
    ) -> PyResult<R> {
        let mut guard = lock(&self.recovery);
        let recovery = guard.as_mut().ok_or_else(|| PyRuntimeError::new_err("recovery is over"))?;
        run(recovery).map_err(|error| self.failed(py, error))
    }
}

#[pymethods]
impl JournaledFolder {
    /// The shard's identity: 32 hexadecimal digits, made with the folder.
    #[getter]
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// The shard's name, as the manifest has it.
    #[getter]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Was the folder empty before?
    #[getter]
    pub(crate) fn created(&self) -> bool {
        self.created
    }

    /// The fencing number of this run. RuntimeError before `start`.
    #[getter]
    pub(crate) fn epoch(&self) -> PyResult<u64> {
        Ok(self.running()?.epoch)
    }

    /// Bytes that `start` cut from the log's end: a commit that was never acknowledged. RuntimeError before `start`.
    #[getter]
    pub(crate) fn torn_bytes(&self) -> PyResult<u64> {
        Ok(self.running()?.torn_bytes)
    }

    /// Takes the root's row, or None where the store has none. Gives the keys of the pages to load.
    pub(crate) fn load_root<'py>(&self, py: Python<'py>, root: Option<&[u8]>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let keys = self.with_recovery(py, |recovery| recovery.load_root(root))?;
        Ok(keys.iter().map(|key| PyBytes::new(py, key)).collect())
    }

    /// Takes one page's row, or None where the store lacks it.
    pub(crate) fn load_page(&self, py: Python<'_>, key: &[u8], page: Option<&[u8]>) -> PyResult<()> {
        self.with_recovery(py, |recovery| recovery.load_page(key, page))
    }

    /// Lets go of the folder: it is unlocked once whatever writes to it has ended too. Idempotent.
    fn close_folder(&self) {
        self.close();
    }

    /// Bytes of the log above the checkpoint, about: whole files.
    #[getter]
    pub(crate) fn log_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        let running = self.running()?;
        py.detach(|| running.checkpointer.log_bytes()).map_err(|error| self.failed(py, error))
    }

    /// Commits above the checkpoint.
    #[getter]
    pub(crate) fn commits_behind(&self) -> PyResult<u64> {
        let running = self.running()?;
        Ok(running.checkpointer.commits_behind(running.durable.commit()))
    }

    /// Has the next commit begin a new file of the log, so that a checkpoint can drop the one before it.
    fn roll_log(&self) -> PyResult<()> {
        self.running()?.checkpointer.roll_log();
        Ok(())
    }

    /// Reads durable commits, as many as fit into the memory for it, to be folded into pages. None: there is nothing new.
    pub(crate) fn begin_fold(&self, py: Python<'_>) -> PyResult<Option<Fold>> {
        let running = self.running()?;
        let durable = running.durable.commit();
        let fold = py.detach(|| running.checkpointer.begin(durable)).map_err(|error| self.failed(py, error))?;
        Ok(fold.map(|fold| Fold { directory: self.directory.clone(), state: Mutex::new((fold, None)) }))
    }

    /// The fold's root is safe in the store: tells the manifest, and drops the log below it.
    pub(crate) fn end_fold(&self, py: Python<'_>, fold: &Fold) -> PyResult<()> {
        let running = self.running()?;
        let root = lock(&fold.state).1.take();
        let root = root.ok_or_else(|| PyRuntimeError::new_err("the fold is not finished, or ended already"))?;
        py.detach(|| running.checkpointer.end(root)).map_err(|error| self.failed(py, error))
    }

    /// What there is for a replica from a place on, up to commit `upto`: ("records", whole records), ("unknown", why the
    /// place isn't in this history), or ("late", b"") where the log begins later.
    #[pyo3(signature = (identity, after, epoch, last_hash, index, *, upto, about_bytes))]
    #[allow(clippy::too_many_arguments, reason = "what a replica has")]
    fn read_tail<'py>(
        &self,
        py: Python<'py>,
        identity: Option<&str>,
        after: u64,
        epoch: u64,
        last_hash: u64,
        index: u32,
        upto: u64,
        about_bytes: usize,
    ) -> PyResult<(&'static str, Bound<'py, PyBytes>)> {
        let tails = self.running()?.tails;
        let identity = identity.and_then(|identity| identity.parse().ok());
        let place = TailPlace { after: Position { commit: after, hash: last_hash }, index };
        let tail = py.detach(|| tails.read(identity, epoch, place, upto, about_bytes));
        Ok(match tail.map_err(|error| self.failed(py, error))? {
            Tail::Records(records) => ("records", PyBytes::new(py, &records)),
            Tail::Unknown(reason) => ("unknown", PyBytes::new(py, reason.as_bytes())),
            Tail::BeginsLate => ("late", PyBytes::new(py, b"")),
        })
    }

    /// Keeps the log above commit `after`, as far as it is there still, until `unpin_log`. Gives the pin.
    fn pin_log(&self, after: u64) -> PyResult<u64> {
        Ok(self.running()?.checkpointer.pin(after))
    }

    /// A pin needs only the log above commit `after` from now on.
    fn move_pin(&self, pin: u64, after: u64) -> PyResult<()> {
        self.running()?.checkpointer.move_pin(pin, after);
        Ok(())
    }

    /// Ends a pin. After `close` too.
    fn unpin_log(&self, pin: u64) {
        if let Some(running) = lock(&self.running).as_ref() {
            running.checkpointer.unpin(pin);
        }
    }

    /// What a root's row says: fold, commit, hash of the commit's last record, keys of the pages.
    fn read_root<'py>(&self, py: Python<'py>, row: &[u8]) -> PyResult<(u64, u64, u64, Vec<Bound<'py, PyBytes>>)> {
        let root = self.running()?.checkpointer.read_root(row).map_err(|error| self.failed(py, error))?;
        let keys = root.page_keys().iter().map(|key| PyBytes::new(py, key)).collect();
        Ok((root.fold, root.position.commit, root.position.hash, keys))
    }
}

/// Commits read from the log, on their way into pages. For one thread.
#[pyclass(frozen, module = "pycounter._native")]
pub struct Fold {
    directory: PathBuf,
    /// The fold, and once it is finished its root.
    state: Mutex<(checkpoint::Fold, Option<Root>)>,
}

#[pymethods]
impl Fold {
    /// The last commit folded in.
    #[getter]
    fn commit(&self) -> u64 {
        lock(&self.state).0.position().commit
    }

    /// How many commits are folded in.
    #[getter]
    fn commits(&self) -> u64 {
        lock(&self.state).0.commits()
    }

    /// How many pages are to be rewritten.
    #[getter]
    fn steps(&self) -> usize {
        lock(&self.state).0.steps()
    }

    /// The row that `merge` needs for this step; None: no row.
    fn old_key<'py>(&self, py: Python<'py>, step: usize) -> Option<Bound<'py, PyBytes>> {
        lock(&self.state).0.old_key(step).map(|key| PyBytes::new(py, &key))
    }

    /// Merges a step's changes into its page. Gives the rows to put.
    fn merge<'py>(&self, py: Python<'py>, step: usize, old_page: Option<&[u8]>) -> PyResult<Vec<Row<'py>>> {
        let rows = py.detach(|| lock(&self.state).0.merge(step, old_page));
        let rows = rows.map_err(|error| errors::folder(py, &self.directory, &error.into()))?;
        Ok(rows.iter().map(|(key, row)| (PyBytes::new(py, key), PyBytes::new(py, row))).collect())
    }

    /// All steps are merged: the root's row, to be put once the pages are, and the keys that are garbage after it.
    fn finish<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Vec<Bound<'py, PyBytes>>) {
        let mut state = lock(&self.state);
        let (row, root, garbage) = state.0.finish();
        state.1 = Some(root);
        let garbage = garbage.iter().map(|key| PyBytes::new(py, key)).collect();
        (PyBytes::new(py, ROOT_KEY), PyBytes::new(py, &row), garbage)
    }
}

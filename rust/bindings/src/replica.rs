//! `Replica`: a shard that follows another one, for the event loop that owns it.

use std::sync::Arc;
use std::time::Duration;

use pycounter_engine::clock::Clock;
use pycounter_engine::journal::Position;
use pycounter_engine::shard::{FollowError, HostFigures, Shard, ShardSettings};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::errors;
use crate::journaled_folder::{FolderSettings, level_of};
use crate::shard::{Connection, Host, LoopCalls, to_dict};

/// Another shard's counters, kept up with it in memory, and reads of them.
#[pyclass(frozen, module = "pycounter._native")]
pub struct Replica {
    host: Arc<Host>,
}

fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|_| PyValueError::new_err("an age is a time in seconds"))
}

impl Replica {
    fn follow<R>(&self, py: Python<'_>, follow: impl FnOnce(&mut Shard) -> Result<R, FollowError>) -> PyResult<R> {
        self.host.with(follow)?.map_err(|error| failed(py, &error))
    }
}

fn failed(py: Python<'_>, error: &FollowError) -> PyErr {
    let name =
        if matches!(error, FollowError::Restore(_) | FollowError::System(_)) { "StorageError" } else { "DamagedData" };
    errors::named(py, name, (error.to_string(),))
}

#[pymethods]
impl Replica {
    #[new]
    #[pyo3(signature = (call_soon, *, name, primary, server_version = "", tokens = Vec::new(), frame_bytes_max = 1_048_576,
        input_bytes_max = 268_435_456, connections_max = 10_000, reply_bytes_max = 4_194_304,
        held_bytes_max = 268_435_456, counters_bytes_max = 8_589_934_592))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        py: Python<'_>,
        call_soon: Py<PyAny>,
        name: &str,
        primary: &str,
        server_version: &str,
        tokens: Vec<Vec<u8>>,
        frame_bytes_max: usize,
        input_bytes_max: usize,
        connections_max: usize,
        reply_bytes_max: usize,
        held_bytes_max: usize,
        counters_bytes_max: u64,
    ) -> PyResult<Self> {
        let settings = ShardSettings {
            level: level_of("durable")?,
            server_version: server_version.to_owned(),
            tokens,
            frame_bytes_max,
            input_bytes_max,
            connections_max,
            reply_bytes_max,
            held_bytes_max,
            flush_interval: Duration::from_secs(1),
        };
        // It keeps no sessions, no ids and nothing that waits for a commit.
        let state = FolderSettings {
            segment_bytes: 0,
            counters_bytes_max,
            dirty_counters_max: 1,
            sessions_max: 1,
            results_per_session_max: 1,
            session_bytes_max: 1,
            ids_bytes_max: 1,
            session_window_s: 1.0,
            id_window_s: 1.0,
            ring: None,
        };
        let shard = Shard::replica(settings, state.state()?, name, primary, Clock::system());
        let host = Host::default();
        host.start(shard.map_err(|error| failed(py, &error))?, LoopCalls { call_soon, commit: None });
        Ok(Self { host: Arc::new(host) })
    }

    /// Begins a client's connection. `owner.attend()` is called on the loop when the connection needs a look.
    #[pyo3(signature = (owner, address = ""))]
    fn connect(&self, owner: Py<PyAny>, address: &str) -> PyResult<Connection> {
        self.host.connect(owner, address)
    }

    /// What to ask the primary for next: identity or None, after, epoch, hash, index.
    #[getter]
    fn place(&self) -> PyResult<(Option<String>, u64, u64, u64, u32)> {
        let place = self.host.with(|shard| shard.follow_place())?;
        Ok(place.map_or((None, 0, 0, 0, 0), |(identity, epoch, place)| {
            let identity = identity.map(|identity| identity.to_string());
            (identity, place.after.commit, epoch, place.after.hash, place.index)
        }))
    }

    /// Who the primary says that it is; another one than before: the state is dropped.
    fn primary(&self, py: Python<'_>, identity: &str, shard: &str, epoch: u64) -> PyResult<()> {
        let identity = identity.parse().map_err(PyValueError::new_err)?;
        self.follow(py, |it| it.follow_primary(identity, shard, epoch))
    }

    /// Drops the state: the primary doesn't know it.
    fn anew(&self, py: Python<'_>) -> PyResult<()> {
        self.follow(py, Shard::follow_anew)
    }

    /// Begins to take in a checkpoint.
    fn begin_checkpoint(&self, py: Python<'_>) -> PyResult<()> {
        self.follow(py, Shard::follow_checkpoint)
    }

    /// Takes in a page of the checkpoint.
    fn page(&self, py: Python<'_>, row: &[u8]) -> PyResult<()> {
        self.follow(py, |shard| shard.follow_page(row))
    }

    /// All pages are in, and with them everything up to this commit.
    fn end_checkpoint(&self, commit: u64, last_hash: u64) -> PyResult<()> {
        self.host.with(|shard| shard.follow_from(Position { commit, hash: last_hash }))
    }

    /// Takes in whole records. Gives the last whole commit.
    fn records(&self, py: Python<'_>, records: &[u8]) -> PyResult<u64> {
        self.follow(py, |shard| shard.follow_records(records))
    }

    /// Commit `durable` was the primary's newest `age_s` ago.
    fn heard(&self, durable: u64, age_s: f64) -> PyResult<()> {
        let age = duration(age_s)?;
        self.host.with(|shard| shard.follow_heard(durable, age))
    }

    /// The primary can't be reached; `ended`: its process has ended.
    fn lost(&self, reason: &str, ended: bool) -> PyResult<()> {
        self.host.with(|shard| shard.follow_lost(reason, ended))
    }

    /// Housekeeping, about every 100 ms.
    fn tick(&self) -> PyResult<()> {
        self.host.with(Shard::tick)
    }

    /// Replaces the tokens of which clients must send one first. Who is connected stays so.
    fn set_tokens(&self, tokens: Vec<Vec<u8>>) -> PyResult<()> {
        self.host.with(|shard| shard.set_tokens(tokens))
    }

    /// Where this replica serves, for `topology`.
    fn set_topology(&self, address: &str) -> PyResult<()> {
        self.host.with(|shard| shard.set_address(address))
    }

    /// What `topology` answers, as an encoded value.
    fn topology<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.host.with(|shard| PyBytes::new(py, &shard.topology()))
    }

    /// What only the server counts.
    fn report(&self, connections_refused: u64) -> PyResult<()> {
        self.host.with(|shard| shard.report(HostFigures { connections_refused, ..HostFigures::default() }))
    }

    /// As the wire has it.
    fn health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        to_dict(py, self.host.with(|shard| shard.health())?)
    }

    /// Every figure that it counts, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        to_dict(py, self.host.with(|shard| shard.stats())?)
    }

    /// Drops everything. Idempotent.
    fn stop(&self, py: Python<'_>) {
        let shard = self.host.stop();
        py.detach(|| drop(shard));
    }
}

//! `Shard` and `Connection`: the engine's shard for a server's event loop.
//!
//! One mutex guards the shard. The loop thread holds it for the length of a native call; another thread that asks
//! for figures waits that long. Python is called only while the mutex is free.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pycounter_engine::clock::Clock;
use pycounter_engine::journal::commit_thread::Step;
use pycounter_engine::shard;
use pycounter_engine::shard::{Fed, Figure, HostCall, HostFigures, HostRequest, ShardSettings};
use pycounter_engine::wire::msgpack_rpc as rpc;
use pycounter_engine::wire::request::TailRequest;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::hash_ring::HashRing;
use crate::journaled_folder::{FolderSettings, JournaledFolder, level_of};
use crate::simulated_disk::SimulatedDisk;

/// A reply's figures as a Python dict.
pub(crate) fn to_dict<'py>(py: Python<'py>, figures: Vec<(&'static str, Figure)>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, figure) in figures {
        match figure {
            Figure::Number(number) => dict.set_item(name, number)?,
            Figure::Text(text) => dict.set_item(name, text)?,
        }
    }
    Ok(dict)
}

/// The loop's `call_soon`, and the shard's own `commit` to be called by it, if there is ever anything to commit.
pub(crate) struct LoopCalls {
    pub(crate) call_soon: Py<PyAny>,
    pub(crate) commit: Option<Py<PyAny>>,
}

/// What the shard and its connections share.
#[derive(Default)]
pub(crate) struct Host {
    shard: Mutex<Option<shard::Shard>>,
    /// By slot. A connection that ended leaves `None`.
    owners: Mutex<Vec<Option<Py<PyAny>>>>,
    /// Set while the shard runs; `commit` leads back to the `Shard`, so `stop` must cut this.
    loop_calls: Mutex<Option<LoopCalls>>,
}

impl Host {
    /// Goes to work.
    pub(crate) fn start(&self, shard: shard::Shard, calls: LoopCalls) {
        *self.loop_calls.lock().unwrap_or_else(PoisonError::into_inner) = Some(calls);
        *self.lock() = Some(shard);
    }

    /// Calls nothing any more, and gives the shard back.
    pub(crate) fn stop(&self) -> Option<shard::Shard> {
        let calls = self.loop_calls.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(calls);
        self.lock().take()
    }

    /// Uses the shard. RuntimeError where there is none.
    pub(crate) fn with<R>(&self, use_shard: impl FnOnce(&mut shard::Shard) -> R) -> PyResult<R> {
        self.lock().as_mut().map(use_shard).ok_or_else(not_running)
    }

    /// Begins a connection.
    pub(crate) fn connect(self: &Arc<Self>, owner: Py<PyAny>, address: &str) -> PyResult<Connection> {
        let slot = self.with(|shard| shard.connect_from(address))?;
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() <= slot {
            owners.resize_with(slot + 1, || None);
        }
        owners[slot] = Some(owner);
        Ok(Connection { host: Arc::clone(self), slot: Mutex::new(Some(slot)) })
    }

    fn lock(&self) -> MutexGuard<'_, Option<shard::Shard>> {
        // A panic inside the engine is a bug that leaves one chunk half done; counting on would hide it.
        self.shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self, py: Python<'_>, slot: usize) -> Option<Py<PyAny>> {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(slot)?.as_ref().map(|owner| owner.clone_ref(py))
    }

    /// Has the loop call `owner.attend()` and `shard.commit()` as needed.
    fn schedule(&self, py: Python<'_>, slot: usize, fed: Fed) -> PyResult<()> {
        if fed == Fed::default() {
            return Ok(());
        }
        let calls = {
            let calls = self.loop_calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls
                .as_ref()
                .map(|calls| (calls.call_soon.clone_ref(py), calls.commit.as_ref().map(|commit| commit.clone_ref(py))))
        };
        let Some((call_soon, commit)) = calls else { return Ok(()) };
        if fed.attend
            && let Some(owner) = self.owner(py, slot)
        {
            call_soon.call1(py, (owner.getattr(py, "attend")?,))?;
        }
        if fed.commit
            && let Some(commit) = commit
        {
            call_soon.call1(py, (commit,))?;
        }
        Ok(())
    }
}

fn not_running() -> PyErr {
    PyRuntimeError::new_err("the shard is not running: start() was not called, or stop() was")
}

/// One shard's engine, for the event loop that owns it. Recovery comes first: see `JournaledFolder`.
#[pyclass(frozen, extends = JournaledFolder, module = "pycounter._native")]
pub struct Shard {
    host: Arc<Host>,
    settings: ShardSettings,
    /// Of a simulation.
    clock: Option<Clock>,
}

#[pymethods]
impl Shard {
    #[new]
    #[pyo3(signature = (directory, *, name = "shard-0", level = "durable", server_version = "", tokens = Vec::new(),
        segment_bytes = 67_108_864, frame_bytes_max = 1_048_576, input_bytes_max = 268_435_456, connections_max = 10_000,
        reply_bytes_max = 4_194_304, held_bytes_max = 268_435_456,
        counters_bytes_max = 8_589_934_592, dirty_counters_max = 1_048_576, sessions_max = 100_000,
        results_per_session_max = 10_000, session_bytes_max = 268_435_456, ids_bytes_max = 268_435_456,
        session_window_s = 604_800.0, id_window_s = 120.0, flush_interval_s = 1.0, ring = None, simulated = None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        py: Python<'_>,
        directory: std::path::PathBuf,
        name: &str,
        level: &str,
        server_version: &str,
        tokens: Vec<Vec<u8>>,
        segment_bytes: u64,
        frame_bytes_max: usize,
        input_bytes_max: usize,
        connections_max: usize,
        reply_bytes_max: usize,
        held_bytes_max: usize,
        counters_bytes_max: u64,
        dirty_counters_max: usize,
        sessions_max: usize,
        results_per_session_max: usize,
        session_bytes_max: usize,
        ids_bytes_max: usize,
        session_window_s: f64,
        id_window_s: f64,
        flush_interval_s: f64,
        ring: Option<&HashRing>,
        simulated: Option<&SimulatedDisk>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let settings = ShardSettings {
            level: level_of(level)?,
            server_version: server_version.to_owned(),
            tokens,
            frame_bytes_max,
            input_bytes_max,
            connections_max,
            reply_bytes_max,
            held_bytes_max,
            flush_interval: Duration::try_from_secs_f64(flush_interval_s)
                .map_err(|_| pyo3::exceptions::PyValueError::new_err("flush_interval_s must be a time in seconds"))?,
        };
        let folder = JournaledFolder::open(
            py,
            directory,
            name,
            &FolderSettings {
                segment_bytes,
                counters_bytes_max,
                dirty_counters_max,
                sessions_max,
                results_per_session_max,
                session_bytes_max,
                ids_bytes_max,
                session_window_s,
                id_window_s,
                ring: ring.map(HashRing::engine),
            },
            simulated,
        )?;
        Ok(PyClassInitializer::from(folder).add_subclass(Self {
            host: Arc::default(),
            settings,
            clock: simulated.map(|disk| disk.clock.clone()),
        }))
    }

    /// Replays the log and starts the commit thread. Gives the number of commits replayed.
    fn start(slf: &Bound<'_, Self>, call_soon: Py<PyAny>) -> PyResult<u64> {
        let py = slf.py();
        let this = slf.get();
        let recovered = slf.as_super().get().recover(py, this.clock.is_some())?;
        let commits = recovered.commits_replayed;
        let clock = this.clock.clone().unwrap_or_else(Clock::system);
        let shard = shard::Shard::with_clock(recovered, this.settings.clone(), clock);
        let commit = slf.getattr("commit")?.unbind();
        this.host.start(shard, LoopCalls { call_soon, commit: Some(commit) });
        Ok(commits)
    }

    /// Readable once a commit has ended: `loop.add_reader(fd, on_wake)`.
    #[getter]
    fn wake_fd(&self) -> PyResult<i32> {
        self.with(|shard| shard.journal().wake_fd())
    }

    /// Drains what changed into one commit unless one is in flight. The engine schedules this by itself.
    fn commit(&self) -> PyResult<bool> {
        // After stop() a call that was scheduled before may still come.
        Ok(self.host.lock().as_mut().is_some_and(shard::Shard::commit))
    }

    /// On a simulated disk, where the commit thread would: tries to append the commit that is in flight. True: it is
    /// durable. False: that failed. None: there was none.
    fn commit_step(&self) -> PyResult<Option<bool>> {
        self.with(|shard| match shard.journal().step() {
            Step::Idle => None,
            Step::Durable => Some(true),
            Step::Failed => Some(false),
        })
    }

    /// Is a commit on its way to the disk?
    fn commit_in_flight(&self) -> PyResult<bool> {
        self.with(|shard| shard.journal().in_flight())
    }

    /// Why the disk refuses, while it does.
    #[getter]
    fn failure(&self) -> PyResult<Option<String>> {
        self.with(|shard| shard.journal().failure())
    }

    /// Counters whose changes aren't on disk.
    #[getter]
    fn unwritten_counters(&self) -> PyResult<usize> {
        self.with(|shard| shard.unwritten_counters())
    }

    /// Clears `wake_fd` and gives (owner, bytes to write) for each connection whose replies may go.
    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let mut ready: Vec<(usize, Option<Py<PyBytes>>, bool)> = Vec::new();
        if let Some(shard) = self.host.lock().as_mut() {
            shard.release(|slot, bytes, attend| {
                let bytes = (!bytes.is_empty()).then(|| PyBytes::new(py, bytes).unbind());
                ready.push((slot, bytes, attend));
            });
        }
        let released = PyList::empty(py);
        for (slot, bytes, attend) in ready {
            if let (Some(bytes), Some(owner)) = (bytes, self.host.owner(py, slot)) {
                released.append((owner, bytes))?;
            }
            self.host.schedule(py, slot, Fed { attend, commit: false })?;
        }
        Ok(released)
    }

    /// Begins a connection. `owner.attend()` is called on the loop when the connection needs a look.
    #[pyo3(signature = (owner, address = ""))]
    fn connect(&self, owner: Py<PyAny>, address: &str) -> PyResult<Connection> {
        self.host.connect(owner, address)
    }

    /// Housekeeping, about every 100 ms: expiry, and write-behind of `applied` changes.
    fn tick(&self) -> PyResult<()> {
        self.with(shard::Shard::tick)
    }

    /// Replaces the tokens of which clients must send one first. Who is connected stays so.
    fn set_tokens(&self, tokens: Vec<Vec<u8>>) -> PyResult<()> {
        self.with(|shard| shard.set_tokens(tokens))
    }

    /// What `topology` answers: this shard alone, at `address`.
    fn set_topology(&self, address: &str) -> PyResult<()> {
        self.with(|shard| shard.set_address(address))
    }

    /// What `topology` answers, as an encoded value.
    fn topology<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.with(|shard| PyBytes::new(py, &shard.topology()))
    }

    /// What only the server counts, for `stats`, `health` and INFO. `checkpoint_failure` is None after one that worked.
    #[pyo3(signature = (*, checkpoints, checkpoints_failed, checkpoint_failure, log_bytes, connections_refused))]
    fn report(
        &self,
        checkpoints: u64,
        checkpoints_failed: u64,
        checkpoint_failure: Option<String>,
        log_bytes: u64,
        connections_refused: u64,
    ) -> PyResult<()> {
        let figures =
            HostFigures { checkpoints, checkpoints_failed, checkpoint_failure, log_bytes, connections_refused };
        self.with(|shard| shard.report(figures))
    }

    /// `state` is "ok" or "read_only"; then `reason` says why. `checkpoint_failure` is there if the last one failed.
    fn health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        to_dict(py, self.with(|shard| shard.health())?)
    }

    /// Every figure that the shard counts, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        to_dict(py, self.with(|shard| shard.stats())?)
    }

    /// The newest commit that is on disk.
    fn durable_commit(&self) -> PyResult<u64> {
        self.with(|shard| shard.journal().durable())
    }

    /// Is everything on disk, and every reply out?
    fn is_settled(&self) -> PyResult<bool> {
        self.with(|shard| shard.is_settled())
    }

    /// Commits until everything is on disk, at most so many seconds. False: the time ran out.
    fn wait_durable(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let timeout = Duration::try_from_secs_f64(timeout_s)
            .map_err(|_| pyo3::exceptions::PyValueError::new_err("timeout_s must be a time in seconds"))?;
        py.detach(|| self.with(|shard| shard.wait_durable(timeout)))
    }

    /// Ends the commit thread and unlocks the folder. Idempotent.
    fn stop(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let shard = this.host.stop();
        slf.py().detach(|| {
            if let Some(mut shard) = shard {
                shard.stop();
            }
        });
        slf.as_super().get().close();
        Ok(())
    }
}

impl Shard {
    fn with<R>(&self, use_shard: impl FnOnce(&mut shard::Shard) -> R) -> PyResult<R> {
        self.host.with(use_shard)
    }
}

/// What a replica has and wants, by name.
fn tail_request<'py>(py: Python<'py>, request: &TailRequest) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("identity", request.identity.map(|identity| format!("{identity:032x}")))?;
    dict.set_item("after", request.after)?;
    dict.set_item("epoch", request.epoch)?;
    dict.set_item("hash", request.hash)?;
    dict.set_item("index", request.index)?;
    dict.set_item("page", request.page)?;
    dict.set_item("wait_ms", request.wait_ms)?;
    Ok(dict)
}

/// A request that Python answers: msgid, method, argument.
type Asked<'py> = (Option<u32>, &'static str, Bound<'py, PyAny>);

/// A client's connection: unparsed input, replies that wait, and what the protocol remembers.
#[pyclass(frozen, module = "pycounter._native")]
pub struct Connection {
    host: Arc<Host>,
    /// `None` after `shutdown`.
    slot: Mutex<Option<usize>>,
}

impl Connection {
    fn slot(&self) -> Option<usize> {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the engine's connection; `default` once it is gone.
    fn ask<R>(&self, default: R, ask: impl FnOnce(&mut shard::Connection) -> R) -> R {
        let Some(slot) = self.slot() else { return default };
        match self.host.lock().as_mut().and_then(|shard| shard.connection_mut(slot)) {
            Some(connection) => ask(connection),
            None => default,
        }
    }
}

#[pymethods]
impl Connection {
    /// Takes a chunk as it came from the socket: one call a chunk. Gives what to write at once.
    /// `feed(b"")` goes on with input that was left because replies piled up, or its turn was over.
    fn feed<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(slot) = self.slot() else { return Ok(None) };
        let (fed, killed, replies) = {
            let mut guard = self.host.lock();
            let Some(shard) = guard.as_mut() else { return Ok(None) };
            let fed = shard.feed(slot, data);
            let replies = shard.replies();
            let replies = (!replies.is_empty()).then(|| PyBytes::new(py, replies));
            (fed, shard.take_killed(), replies)
        };
        self.host.schedule(py, slot, fed)?;
        for slot in killed {
            self.host.schedule(py, slot, Fed { attend: true, commit: false })?;
        }
        Ok(replies)
    }

    /// Write what is left, then close.
    #[getter]
    fn closing(&self) -> bool {
        self.ask(true, |connection| connection.is_closing())
    }

    /// Stop reading until this is false again.
    #[getter]
    fn crowded(&self) -> bool {
        self.ask(false, |connection| connection.is_crowded())
    }

    /// May it be read from though the client reads nothing? Then `crowded` decides as ever.
    #[getter]
    fn reads_on(&self) -> bool {
        self.ask(false, |connection| connection.reads_on())
    }

    /// The client reads nothing, or goes on reading: then `feed` must be called, with nothing if need be.
    fn note_unread(&self, unread: bool) {
        self.ask((), |connection| connection.note_unread(unread));
    }

    /// The client sends nothing more: what it sent is still answered, then `closing` is true.
    fn finish(&self) {
        let Some(slot) = self.slot() else { return };
        if let Some(shard) = self.host.lock().as_mut() {
            shard.finish(slot);
        }
    }

    /// Is there a reply that the client still has to get?
    #[getter]
    fn owed(&self) -> bool {
        self.ask(false, |connection| connection.is_owed())
    }

    /// Has the client sent the token, or is none needed?
    #[getter]
    fn authenticated(&self) -> bool {
        self.ask(false, |connection| connection.is_authenticated())
    }

    /// "msgpack-rpc", "resp2", "resp3", or "" before the first byte.
    #[getter]
    fn protocol(&self) -> &'static str {
        self.ask("", |connection| connection.protocol_name())
    }

    /// Rare requests that Python answers: (msgid or None, method, argument). The argument is a backup's folder,
    /// the known version of the topology, or what a replica has and wants by name.
    fn take_requests<'py>(&self, py: Python<'py>) -> PyResult<Vec<Asked<'py>>> {
        let requests = self.ask(Vec::new(), shard::Connection::take_host_requests);
        let named = requests.into_iter().map(|HostRequest { msgid, call }| {
            Ok(match call {
                HostCall::Backup(folder) => (msgid, "backup", folder.into_pyobject(py)?.into_any()),
                HostCall::Tail(request) => (msgid, "tail", tail_request(py, &request)?.into_any()),
                HostCall::WatchTopology(known) => (msgid, "watch_topology", known.into_pyobject(py)?.into_any()),
            })
        });
        named.collect()
    }

    /// The encoded answer to such a request: `error` is "code: message", or `result` an encoded value.
    fn reply<'py>(
        &self,
        py: Python<'py>,
        msgid: u32,
        error: Option<&str>,
        result: Option<&[u8]>,
    ) -> Bound<'py, PyBytes> {
        let mut out = Vec::with_capacity(16 + result.map_or(0, <[u8]>::len));
        match (error, result) {
            (Some(error), _) => rpc::reply_error_text(&mut out, msgid, error),
            (None, Some(result)) => {
                rpc::reply_begin(&mut out, msgid);
                out.extend_from_slice(result);
            }
            (None, None) => rpc::reply_nil(&mut out, msgid),
        }
        PyBytes::new(py, &out)
    }

    /// The transport is gone: drops what the client was owed. Idempotent.
    fn shutdown(&self) {
        let Some(slot) = self.slot.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let owner = {
            let mut owners = self.host.owners.lock().unwrap_or_else(PoisonError::into_inner);
            owners.get_mut(slot).and_then(Option::take)
        };
        drop(owner);
        if let Some(shard) = self.host.lock().as_mut() {
            shard.disconnect(slot);
        }
    }
}

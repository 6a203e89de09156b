//! `Router`, `RouterLink` and `RouterConnection`: the hot path of a coordinator for its event loop.
//!
//! One mutex guards the router. The loop thread holds it for the length of a native call; another thread that asks for
//! figures waits that long. Python is called only while the mutex is free, but for making session ids.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pycounter_engine::figure::Figure;
use pycounter_engine::limits::SESSION_ID_BYTES;
use pycounter_engine::router::{self, Calls, LinkSettings, Place, RouterSettings, Serving};
use pycounter_engine::wire::request::SessionId;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::foreign_keys::ForeignKeys;
use crate::hash_ring::HashRing;
use crate::journaled_folder::level_of;
use crate::read_cache::ReadCache;
use crate::shard::to_dict;

/// The loop's `call_soon`, and what it is to call once there is something to flush.
pub(crate) struct LoopCalls {
    pub(crate) call_soon: Py<PyAny>,
    pub(crate) on_flush: Py<PyAny>,
}

/// Who is at the other end of the native objects.
#[derive(Default)]
struct Owners {
    /// Of connections, by slot. One that ended leaves `None`.
    connections: Vec<Option<Py<PyAny>>>,
    /// Of links, by shard, while there is a connection.
    links: Vec<Option<Py<PyAny>>>,
}

/// What the router, its links and its connections share.
struct Host {
    router: Mutex<router::Router>,
    owners: Mutex<Owners>,
    /// Set while the router runs; `on_flush` leads back to it, so `stop` must cut this.
    loop_calls: Mutex<Option<LoopCalls>>,
    clock: Py<PyAny>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic inside the engine is a bug that leaves one chunk half done; counting on would hide it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    fn owner(&self, py: Python<'_>, place: Place) -> Option<Py<PyAny>> {
        lock(&self.owners).connections.get(place.slot())?.as_ref().map(|owner| owner.clone_ref(py))
    }

    /// Milliseconds of the loop's clock.
    fn now_ms(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(self.clock.call0(py)?.extract::<f64>(py)? * 1000.0)
    }

    /// Has the loop call what the router wants after a native call.
    fn schedule(&self, py: Python<'_>) -> PyResult<()> {
        let mut places = Vec::new();
        let calls = {
            let mut router = lock(&self.router);
            let calls = router.take_calls();
            if calls.attend {
                router.take_attend(|place| places.push(place));
            }
            calls
        };
        if calls == Calls::default() {
            return Ok(());
        }
        let (call_soon, on_flush) = match lock(&self.loop_calls).as_ref() {
            Some(calls) => (calls.call_soon.clone_ref(py), calls.on_flush.clone_ref(py)),
            None => return Ok(()),
        };
        for place in places {
            if let Some(owner) = self.owner(py, place) {
                call_soon.call1(py, (owner.getattr(py, "attend")?,))?;
            }
        }
        if calls.flush {
            call_soon.call1(py, (on_flush,))?;
        }
        Ok(())
    }

    /// Adds (owner, bytes) for each connection that has something to send.
    fn append_ready(&self, py: Python<'_>, ready: &Bound<'_, PyList>) -> PyResult<()> {
        let mut outputs: Vec<(Place, Py<PyBytes>)> = Vec::new();
        lock(&self.router).take_ready(|place, bytes| outputs.push((place, PyBytes::new(py, bytes).unbind())));
        for (place, bytes) in outputs {
            if let Some(owner) = self.owner(py, place) {
                ready.append((owner, bytes))?;
            }
        }
        Ok(())
    }
}

/// Calls `new_id`; should that fail, which a source of chance doesn't, the system's makes the id.
pub(crate) fn session_ids(new_id: Py<PyAny>) -> Arc<dyn Fn() -> SessionId + Send + Sync> {
    let systems = LinkSettings::default().new_session_id;
    Arc::new(move || {
        Python::attach(|py| {
            let id = new_id.call0(py).and_then(|id| id.extract::<[u8; SESSION_ID_BYTES]>(py));
            id.map_or_else(
                |error| {
                    error.write_unraisable(py, None);
                    systems()
                },
                SessionId,
            )
        })
    })
}

/// The hot path of a coordinator: raw clients' requests to shards and back, for the event loop that owns it.
#[pyclass(frozen, module = "pycounter._native")]
pub struct Router {
    host: Arc<Host>,
    shards: usize,
}

#[pymethods]
impl Router {
    #[new]
    #[pyo3(signature = (ring, foreign, cache = None, *, clock, level = "durable", server_version = "",
        name = "coordinator-0", identity = "", tokens = Vec::new(), strict = Vec::new(), frame_bytes_max = 1_048_576,
        input_bytes_max = 268_435_456, connections_max = 10_000, reply_bytes_max = 4_194_304,
        held_bytes_max = 268_435_456, queue_bytes_max = 67_108_864, request_timeout_s = 2.0,
        batch_operations_max = 1000, batch_bytes_max = 524_288, batches_in_flight_max = 8,
        window_operations_max = 9000, new_session_id = None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        py: Python<'_>,
        ring: &HashRing,
        foreign: &ForeignKeys,
        cache: Option<&ReadCache>,
        clock: Py<PyAny>,
        level: &str,
        server_version: &str,
        name: &str,
        identity: &str,
        tokens: Vec<Vec<u8>>,
        strict: Vec<Vec<u8>>,
        frame_bytes_max: usize,
        input_bytes_max: usize,
        connections_max: usize,
        reply_bytes_max: usize,
        held_bytes_max: usize,
        queue_bytes_max: usize,
        request_timeout_s: f64,
        batch_operations_max: usize,
        batch_bytes_max: usize,
        batches_in_flight_max: usize,
        window_operations_max: usize,
        new_session_id: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let shards = ring.engine().shards().len();
        if foreign.keys.shards() != shards {
            return Err(PyValueError::new_err("foreign keys are of another number of shards than the ring has"));
        }
        if !(request_timeout_s > 0.0 && request_timeout_s < 1e9) {
            return Err(PyValueError::new_err("request_timeout_s must be a time in seconds above 0"));
        }
        if batch_operations_max == 0 || batches_in_flight_max == 0 || window_operations_max < batch_operations_max {
            return Err(PyValueError::new_err("batches must have room for an operation, and the window for a batch"));
        }
        let mut link = LinkSettings {
            token: tokens.first().cloned(),
            client: name.to_owned(),
            batch_operations_max,
            batch_bytes_max,
            batches_in_flight_max,
            window_operations_max,
            queue_bytes_max,
            ..LinkSettings::default()
        };
        if let Some(new_id) = new_session_id {
            link.new_session_id = session_ids(new_id);
        }
        let settings = RouterSettings {
            level: level_of(level)?,
            server_version: server_version.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            tokens,
            strict,
            frame_bytes_max,
            input_bytes_max,
            connections_max,
            reply_bytes_max,
            held_bytes_max,
            request_timeout_ms: (request_timeout_s * 1000.0).ceil() as u64,
            link,
        };
        let cache = cache.map(ReadCache::shared);
        let router = router::Router::new(ring.engine().clone(), Arc::clone(&foreign.keys), cache, settings);
        let owners = Owners { connections: Vec::new(), links: (0..shards).map(|_| None).collect() };
        let host = Host { router: Mutex::new(router), owners: Mutex::new(owners), loop_calls: Mutex::default(), clock };
        let now_ms = host.now_ms(py)?;
        lock(&host.router).tick(now_ms);
        Ok(Self { host: Arc::new(host), shards })
    }

    /// Goes to work.
    fn start(&self, py: Python<'_>, call_soon: Py<PyAny>, on_flush: Py<PyAny>) -> PyResult<()> {
        *lock(&self.host.loop_calls) = Some(LoopCalls { call_soon, on_flush });
        self.host.schedule(py)
    }

    /// Calls nothing any more. Idempotent.
    fn stop(&self) {
        let calls = lock(&self.host.loop_calls).take();
        drop(calls);
    }

    /// Begins a client's connection.
    #[pyo3(signature = (owner, address = ""))]
    fn connect(&self, owner: Py<PyAny>, address: &str) -> RouterConnection {
        let place = lock(&self.host.router).connect_from(address);
        let mut owners = lock(&self.host.owners);
        if owners.connections.len() <= place.slot() {
            owners.connections.resize_with(place.slot() + 1, || None);
        }
        owners.connections[place.slot()] = Some(owner);
        RouterConnection { host: Arc::clone(&self.host), place: Mutex::new(Some(place)) }
    }

    /// The one connection to a shard.
    fn link(&self, shard: usize) -> PyResult<RouterLink> {
        if shard >= self.shards {
            return Err(PyIndexError::new_err(format!("there are {} shards", self.shards)));
        }
        Ok(RouterLink { host: Arc::clone(&self.host), shard })
    }

    /// (owner, bytes to write) for links and clients' connections that have something to send.
    fn flush<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let now_ms = self.host.now_ms(py)?;
        let mut outputs: Vec<(usize, Py<PyBytes>)> = Vec::new();
        lock(&self.host.router).flush(now_ms, |shard, bytes| outputs.push((shard, PyBytes::new(py, bytes).unbind())));
        let ready = PyList::empty(py);
        for (shard, bytes) in outputs {
            let owner = lock(&self.host.owners).links[shard].as_ref().map(|owner| owner.clone_ref(py));
            if let Some(owner) = owner {
                ready.append((owner, bytes))?;
            }
        }
        self.host.append_ready(py, &ready)?;
        self.host.schedule(py)?;
        Ok(ready)
    }

    /// For each shard its serving weight, and who takes what it doesn't, or -1.
    fn set_serving(&self, py: Python<'_>, serving: Vec<(f64, isize)>) -> PyResult<()> {
        let serving: Vec<Serving> =
            serving.into_iter().map(|(weight, other)| Serving::new(weight, usize::try_from(other).ok())).collect();
        if !lock(&self.host.router).set_serving(&serving) {
            return Err(PyValueError::new_err(
                "there must be one entry for each shard, and name shards that there are",
            ));
        }
        self.host.schedule(py)
    }

    /// Replaces the tokens of clients; shards are sent the first from their next connection on.
    fn set_tokens(&self, tokens: Vec<Vec<u8>>) {
        lock(&self.host.router).set_tokens(tokens);
    }

    /// What `topology` answers: the encoded document.
    fn set_topology(&self, topology: Vec<u8>) {
        lock(&self.host.router).set_topology(topology);
    }

    /// Housekeeping, about every 50 ms. `now` is the clock's.
    fn tick(&self, py: Python<'_>, now: f64) -> PyResult<()> {
        lock(&self.host.router).tick(now * 1000.0);
        self.host.schedule(py)
    }

    /// Is no client owed a reply, and no shard's answer missing?
    fn is_settled(&self) -> bool {
        lock(&self.host.router).is_settled()
    }

    /// Increments that nobody waits for and no shard takes: (key, delta). With `unsent`, those too that wait for a
    /// shard and were never sent.
    #[pyo3(signature = (*, unsent = false))]
    fn take_unserved<'py>(&self, py: Python<'py>, unsent: bool) -> Vec<(Bound<'py, PyBytes>, i64)> {
        let taken = lock(&self.host.router).take_unserved(unsent);
        taken.into_iter().map(|(key, delta)| (PyBytes::new(py, &key), delta)).collect()
    }

    /// A removal of a key's counter, or of all counters, is settled: what shards were known to hold is gone.
    #[pyo3(signature = (key))]
    fn forget(&self, key: Option<&[u8]>) {
        lock(&self.host.router).forget(key);
    }

    /// The port that clients reach it at, for INFO.
    fn set_port(&self, port: u16) {
        lock(&self.host.router).set_port(port);
    }

    /// The text of INFO's sections; all of them where none is named.
    fn info(&self, sections: Vec<Vec<u8>>, keyspace: &str) -> String {
        let sections: Vec<&[u8]> = sections.iter().map(Vec::as_slice).collect();
        lock(&self.host.router).info(&sections, keyspace)
    }

    /// (shard, seconds until it answered, was it no error) since the last call.
    fn samples(&self) -> Vec<(usize, f64, bool)> {
        let samples = lock(&self.host.router).take_samples();
        samples.into_iter().map(|sample| (sample.shard, sample.latency_ms / 1000.0, sample.ok)).collect()
    }

    /// Every figure that the router counts, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = lock(&self.host.router).stats();
        to_dict(py, stats)
    }
}

/// A coordinator's one connection to a shard. It holds the session there, which outlives the connection.
#[pyclass(frozen, module = "pycounter._native")]
pub struct RouterLink {
    host: Arc<Host>,
    shard: usize,
}

#[pymethods]
impl RouterLink {
    /// There is a connection: `flush` gives what to write on it, as (owner, bytes).
    fn connected(&self, py: Python<'_>, owner: Py<PyAny>) -> PyResult<()> {
        let before = lock(&self.host.owners).links[self.shard].replace(owner);
        drop(before);
        lock(&self.host.router).link_connected(self.shard);
        self.host.schedule(py)
    }

    /// Takes a chunk from the shard. Gives (owner, bytes to write) for clients' connections.
    fn feed<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyList>> {
        let now_ms = self.host.now_ms(py)?;
        let fed = lock(&self.host.router).feed_link(self.shard, now_ms, data);
        if let Err(violation) = fed {
            self.host.schedule(py)?;
            return Err(PyValueError::new_err(violation.to_string()));
        }
        let ready = PyList::empty(py);
        self.host.append_ready(py, &ready)?;
        self.host.schedule(py)?;
        Ok(ready)
    }

    /// The connection is gone. What was never sent waits for the next one, until its time runs out.
    fn lost(&self, py: Python<'_>) -> PyResult<()> {
        let owner = lock(&self.host.owners).links[self.shard].take();
        drop(owner);
        lock(&self.host.router).link_lost(self.shard);
        self.host.schedule(py)
    }

    /// Why no connection could be made: told to those whose time runs out.
    fn note_error(&self, error: &str) {
        lock(&self.host.router).note_link_error(self.shard, error);
    }

    /// Is it connected, and has the shard said hello?
    #[getter]
    fn ready(&self) -> bool {
        lock(&self.host.router).link(self.shard).is_ready()
    }

    /// Whether replies are due and nothing has arrived for so long that the connection should be closed.
    #[getter]
    fn silent(&self) -> bool {
        lock(&self.host.router).link(self.shard).is_silent()
    }

    /// The shard's, as it said hello.
    #[getter]
    fn identity(&self) -> Option<String> {
        lock(&self.host.router).link(self.shard).identity().map(str::to_owned)
    }

    /// The newest commit of the shard that holds an increment of the session, as far as it was answered; 0: none.
    #[getter]
    fn commit_seen(&self) -> u64 {
        lock(&self.host.router).link(self.shard).commit_seen()
    }

    /// The end of a settled session, to be written before the connection is closed. Nothing may be asked afterwards.
    fn goodbye<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &lock(&self.host.router).link_goodbye(self.shard))
    }

    /// `ready`, `identity`, `epoch`, `last_error` and figures, by name.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        use Figure::{Number, Text};
        let figures = {
            let router = lock(&self.host.router);
            let link = router.link(self.shard);
            let own = link.statistics();
            vec![
                ("ready", Number(u64::from(link.is_ready()))),
                ("identity", Text(link.identity().unwrap_or_default().to_owned())),
                ("epoch", Number(link.epoch().unwrap_or(0))),
                ("last_error", Text(link.last_error().to_owned())),
                ("queued_bytes", Number(link.memory_bytes() as u64)),
                ("operations", Number(own.operations)),
                ("operations_settled", Number(own.operations_settled)),
                ("operations_unknown", Number(own.operations_unknown)),
                ("operations_lost", Number(own.operations_lost)),
                ("operations_resent", Number(own.operations_resent)),
                ("operations_taken", Number(own.operations_taken)),
                ("diverted", Number(router.diverted(self.shard))),
                ("batches", Number(own.batches)),
                ("batches_resent", Number(own.batches_resent)),
                ("batches_refused", Number(own.batches_refused)),
                ("calls", Number(own.calls)),
                ("calls_resent", Number(own.calls_resent)),
                ("expired_unsent", Number(own.expired_unsent)),
                ("expired_sent", Number(own.expired_sent)),
                ("sessions_renewed", Number(own.sessions_renewed)),
                ("greetings", Number(own.greetings)),
                ("losses", Number(own.losses)),
            ]
        };
        to_dict(py, figures)
    }
}

/// A raw client's connection at a coordinator.
#[pyclass(frozen, module = "pycounter._native")]
pub struct RouterConnection {
    host: Arc<Host>,
    /// `None` after `shutdown`.
    place: Mutex<Option<Place>>,
}

impl RouterConnection {
    fn place(&self) -> Option<Place> {
        *lock(&self.place)
    }

    /// Asks the engine's connection; `default` once it is gone.
    fn ask<R>(&self, default: R, ask: impl FnOnce(&router::Connection) -> R) -> R {
        let Some(place) = self.place() else { return default };
        lock(&self.host.router).connection(place).map(ask).unwrap_or(default)
    }
}

#[pymethods]
impl RouterConnection {
    /// Takes a chunk as it came from the socket: one call a chunk. Gives what to write at once.
    fn feed<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(place) = self.place() else { return Ok(None) };
        let replies = {
            let mut router = lock(&self.host.router);
            router.feed(place, data);
            let replies = router.replies();
            (!replies.is_empty()).then(|| PyBytes::new(py, replies))
        };
        self.host.schedule(py)?;
        Ok(replies)
    }

    /// Write what is left, then close.
    #[getter]
    fn closing(&self) -> bool {
        self.ask(true, router::Connection::is_closing)
    }

    /// Stop reading until this is false again.
    #[getter]
    fn crowded(&self) -> bool {
        self.ask(false, router::Connection::is_crowded)
    }

    /// May it be read from though the client reads nothing? Then `crowded` decides as ever.
    #[getter]
    fn reads_on(&self) -> bool {
        self.ask(false, router::Connection::reads_on)
    }

    /// The client reads nothing, or goes on reading: then `feed` must be called, with nothing if need be.
    fn note_unread(&self, unread: bool) {
        if let Some(place) = self.place() {
            lock(&self.host.router).note_unread(place, unread);
        }
    }

    /// Is there a reply that the client still has to get?
    #[getter]
    fn owed(&self) -> bool {
        self.ask(false, router::Connection::is_owed)
    }

    /// Has the client sent the token, or is none needed?
    #[getter]
    fn authenticated(&self) -> bool {
        self.ask(false, router::Connection::is_authenticated)
    }

    /// "msgpack-rpc", "resp2", "resp3", or "" before the first byte.
    #[getter]
    fn protocol(&self) -> &'static str {
        self.ask("", router::Connection::protocol_name)
    }

    /// The client sends nothing more: what it sent is still answered, then `closing` is true.
    fn finish(&self) {
        if let Some(place) = self.place() {
            lock(&self.host.router).finish(place);
        }
    }

    /// Rare requests that Python answers: (token, method, params, protocol).
    fn take_requests<'py>(&self, py: Python<'py>) -> Vec<(u64, &'static str, Bound<'py, PyBytes>, &'static str)> {
        let Some(place) = self.place() else { return Vec::new() };
        let requests = lock(&self.host.router).take_host_requests(place);
        let encoded = requests
            .into_iter()
            .map(|request| (request.token, request.method, PyBytes::new(py, &request.params), request.protocol));
        encoded.collect()
    }

    /// Answers such a request: `error` is "code: message", or `result` one encoded value.
    fn answer<'py>(
        &self,
        py: Python<'py>,
        token: u64,
        error: Option<&str>,
        result: &[u8],
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(place) = self.place() else { return Ok(None) };
        let replies = {
            let mut router = lock(&self.host.router);
            let replies =
                if router.answer(place, token, error, result) { router.take_output(place) } else { Vec::new() };
            (!replies.is_empty()).then(|| PyBytes::new(py, &replies))
        };
        self.host.schedule(py)?;
        Ok(replies)
    }

    /// Ends a connection that asked for a passage: gives what the shard is to be sent first, and whether the client has
    /// finished; or None if it doesn't wait for a passage any more.
    fn hand_over<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyBytes>, bool)> {
        let place = self.place()?;
        let (input, has_finished) = lock(&self.host.router).hand_over(place)?;
        self.shutdown();
        Some((PyBytes::new(py, &input), has_finished))
    }

    /// The transport is gone: drops what the client was owed. Idempotent.
    fn shutdown(&self) {
        let Some(place) = lock(&self.place).take() else { return };
        let owner = lock(&self.host.owners).connections.get_mut(place.slot()).and_then(Option::take);
        drop(owner);
        lock(&self.host.router).disconnect(place);
    }
}

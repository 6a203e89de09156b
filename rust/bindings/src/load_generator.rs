//! `LoadGenerator`: measures servers of counters; and servers that only pretend to count, to compare with.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pycounter_engine::load_generator::{self, KeyOrder, Operation, Protocol, Workload};
use pyo3::exceptions::{PyConnectionError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// What came out of a run.
#[pyclass(frozen, get_all, module = "pycounter._native")]
pub struct LoadReport {
    operations: u64,
    errors: u64,
    unanswered: u64,
    first_error: Option<String>,
    seconds: f64,
    cpu_seconds: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

#[pymethods]
impl LoadReport {
    /// Right answers a second.
    #[getter]
    fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.operations as f64 / self.seconds } else { 0.0 }
    }

    fn __repr__(&self) -> String {
        format!(
            "LoadReport(operations={}, errors={}, unanswered={}, seconds={:.3}, p50_us={:.0}, p99_us={:.0})",
            self.operations, self.errors, self.unanswered, self.seconds, self.p50_us, self.p99_us
        )
    }
}

impl From<load_generator::LoadReport> for LoadReport {
    fn from(report: load_generator::LoadReport) -> Self {
        Self {
            operations: report.operations,
            errors: report.errors,
            unanswered: report.unanswered,
            seconds: report.elapsed.as_secs_f64(),
            cpu_seconds: report.cpu.as_secs_f64(),
            p50_us: report.percentile_us(50.0),
            p99_us: report.percentile_us(99.0),
            p999_us: report.percentile_us(99.9),
            max_us: report.percentile_us(100.0),
            first_error: report.first_error,
        }
    }
}

/// Loads a server of counters from the calling thread, without the interpreter's lock, and checks every reply.
#[pyclass(frozen, module = "pycounter._native")]
pub struct LoadGenerator {
    address: SocketAddr,
    workload: Workload,
    stopped: AtomicBool,
}

#[pymethods]
impl LoadGenerator {
    #[new]
    #[pyo3(signature = (host, port, *, protocol = "resp", operation = "incr", connections = 50, pipeline = 1,
        batch = 100, keys = 100_000, order = "uniform", operations = None, seconds = None, seed = 1))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        host: &str,
        port: u16,
        protocol: &str,
        operation: &str,
        connections: usize,
        pipeline: usize,
        batch: usize,
        keys: u64,
        order: &str,
        operations: Option<u64>,
        seconds: Option<f64>,
        seed: u64,
    ) -> PyResult<Self> {
        let unknown = |what: &str, word: &str| PyValueError::new_err(format!("there is no {what} {word:?}"));
        let workload = Workload {
            protocol: match protocol {
                "resp" => Protocol::Resp,
                "msgpack-rpc" => Protocol::MsgpackRpc,
                "memcached" => Protocol::Memcached,
                word => return Err(unknown("protocol", word)),
            },
            operation: match operation {
                "incr" => Operation::Incr,
                "incr-with-id" => Operation::IncrWithId,
                "apply" => Operation::Apply { batch },
                "get" => Operation::Get,
                word => return Err(unknown("operation", word)),
            },
            connections,
            pipeline,
            keys,
            order: match order {
                "uniform" => KeyOrder::Uniform,
                "sequential" => KeyOrder::Sequential,
                word => return Err(unknown("order", word)),
            },
            operations,
            duration: seconds
                .map(Duration::try_from_secs_f64)
                .transpose()
                .map_err(|error| PyValueError::new_err(format!("seconds: {error}")))?,
            seed,
        };
        workload.check().map_err(|error| PyValueError::new_err(error.to_string()))?;
        let address = (host, port).to_socket_addrs()?.next();
        let address = address.ok_or_else(|| PyConnectionError::new_err(format!("{host} has no address")))?;
        Ok(Self { address, workload, stopped: AtomicBool::new(false) })
    }

    /// Runs the workload and gives what came out.
    fn run(&self, py: Python<'_>) -> PyResult<LoadReport> {
        // Relaxed: the flag carries nothing else.
        let report = interruptible(py, &|| !self.stopped.load(Ordering::Relaxed), |keep_going| {
            load_generator::run(self.address, &self.workload, keep_going)
        })?;
        Ok(report.into())
    }

    /// Has `run` end soon, from another thread, or not begin.
    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` without the interpreter's lock; now and then it looks for signals, whose exception ends it.
fn interruptible<T: Send>(
    py: Python<'_>,
    wanted: &(dyn Fn() -> bool + Sync),
    work: impl FnOnce(&mut dyn FnMut() -> bool) -> io::Result<T> + Send,
) -> PyResult<T> {
    let mut interrupted = None;
    let result = py.detach(|| {
        work(&mut || {
            if interrupted.is_none() {
                interrupted = Python::attach(|py| py.check_signals()).err();
            }
            interrupted.is_none() && wanted()
        })
    });
    match interrupted {
        Some(error) => Err(error),
        None => result.map_err(PyErr::from),
    }
}

/// The floor of a server: one connection whose increments are parsed, and all answered by 1.
#[pyclass(frozen, module = "pycounter._native")]
#[derive(Default)]
pub struct ConstantReplies {
    connection: Mutex<load_generator::ConstantReplies>,
}

#[pymethods]
impl ConstantReplies {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// The replies to a chunk of a connection's bytes.
    fn feed<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let mut replies = Vec::with_capacity(data.len() / 4);
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.feed(data, &mut replies).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(PyBytes::new(py, &replies))
    }
}

/// Serves constant replies on 127.0.0.1 from the calling thread until a signal's exception: the load generator's ceiling.
#[pyfunction]
pub fn serve_constant_replies(py: Python<'_>, port: u16) -> PyResult<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    interruptible(py, &|| true, |keep_going| load_generator::serve_constant_replies(&listener, keep_going))
}

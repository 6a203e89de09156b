//! A load generator for servers of counters: many connections, one thread, every reply checked.
//!
//! Reading order: this file (workload and report), `connection` (a batch out, its replies in), `requests` and
//! `replies` (their bytes), `key_picker`. `constant_replies` and `constant_server` are the least a server can do;
//! they show the minimum cost of serving and of generating.
//!
//! Each connection is a closed loop: it sends `pipeline` requests, waits for all replies, and sends the next batch.
//! Requests are encoded once; only digits, message numbers and sequences are patched. So one core generates more than
//! any measured server can take, as `constant_server` shows.
//!
//! It runs on the calling thread and shares no state with other runs.

mod connection;
mod constant_replies;
mod constant_server;
mod key_picker;
mod replies;
mod requests;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventFlags};
use rustix::time::{ClockId, clock_gettime};

use connection::Connection;
use key_picker::KeyPicker;

pub use constant_replies::{ConstantReplies, NotAnIncrement};
pub use constant_server::serve_constant_replies;
pub use key_picker::{KEYS_MAX, KeyOrder};

/// Connect timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that sends no reply on any connection for this long counts as dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often `keep_going` is called.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Most connections, requests in a pipeline, and items in a batch, to bound memory.
const COUNT_MAX: usize = 65_536;
/// Most request bytes over all connections.
const REQUEST_BYTES_MAX: usize = 1 << 30;

/// The protocol of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// RESP, Redis's protocol.
    Resp,
    /// MessagePack-RPC.
    MsgpackRpc,
    /// memcached's meta commands.
    Memcached,
}

/// What one request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Adds 1 to a counter.
    Incr,
    /// Adds 1 under an operation id of its own. MessagePack-RPC only.
    IncrWithId,
    /// `apply` in a session for each connection, several increments a request. MessagePack-RPC only.
    Apply {
        /// Increments in a request; each counts as an operation.
        batch: usize,
    },
    /// Reads a counter.
    Get,
}

/// One run of the generator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// The protocol of the requests.
    pub protocol: Protocol,
    /// What the requests do.
    pub operation: Operation,
    /// Connections, all established before the first request.
    pub connections: usize,
    /// Requests that a connection sends before it waits for their replies.
    pub pipeline: usize,
    /// Number of keys: `key:000000000000` and so on, 16 bytes each.
    pub keys: u64,
    /// How keys are chosen.
    pub order: KeyOrder,
    /// Stop after this many operations ...
    pub operations: Option<u64>,
    /// ... or start no request after this long. At least one of the two is required.
    pub duration: Option<Duration>,
    /// Seed for the choice of keys.
    pub seed: u64,
}

/// Why a workload can't run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// Connections, pipeline or batch out of range.
    #[error("{0} must be from 1 to 65536")]
    Count(&'static str),
    /// More keys than eight digits can number.
    #[error("keys must be from 1 to 100000000")]
    Keys,
    /// Neither operations nor a duration: it would never end.
    #[error("operations or seconds must say when the run ends")]
    Endless,
    /// The protocol has no such request.
    #[error("this protocol has no such operation")]
    Operation,
    /// Connections, pipeline and batch together need too much memory.
    #[error("connections, pipeline and batch together need more than 1 GiB of requests")]
    Memory,
}

impl Workload {
    /// Checks that the workload can run.
    ///
    /// # Errors
    ///
    /// Why it can't.
    pub fn check(&self) -> Result<(), WorkloadError> {
        let batch = self.batch();
        for (name, count) in [("connections", self.connections), ("pipeline", self.pipeline), ("batch", batch)] {
            if !(1..=COUNT_MAX).contains(&count) {
                return Err(WorkloadError::Count(name));
            }
        }
        if !(1..=KEYS_MAX).contains(&self.keys) {
            return Err(WorkloadError::Keys);
        }
        if self.operations.is_none() && self.duration.is_none() {
            return Err(WorkloadError::Endless);
        }
        if self.protocol != Protocol::MsgpackRpc && !matches!(self.operation, Operation::Incr | Operation::Get) {
            return Err(WorkloadError::Operation);
        }
        // Three factors of at most 2^16 each: their product times a request's size fits into 64 bits.
        if self.connections * self.pipeline * (batch * requests::ITEM_BYTES_MAX + requests::FRAME_BYTES_MAX)
            > REQUEST_BYTES_MAX
        {
            return Err(WorkloadError::Memory);
        }
        Ok(())
    }

    /// Operations in one request.
    fn batch(&self) -> usize {
        match self.operation {
            Operation::Apply { batch } => batch,
            _ => 1,
        }
    }
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// Operations with a correct reply.
    pub operations: u64,
    /// Operations with an error or an impossible reply.
    pub errors: u64,
    /// Operations that were sent and never answered.
    pub unanswered: u64,
    /// The first error.
    pub first_error: Option<String>,
    /// From the first request to the last reply.
    pub elapsed: Duration,
    /// CPU time of the generating thread.
    pub cpu: Duration,
    /// From handing a request's batch to the system until its reply was read.
    pub latencies: Histogram<u64>,
}

impl LoadReport {
    /// A percentile (0 to 100) of the latency, in microseconds.
    #[must_use]
    pub fn percentile_us(&self, percent: f64) -> f64 {
        self.latencies.value_at_percentile(percent) as f64 / 1_000.0
    }
}

/// State shared by the connections of a run.
struct Run {
    keys: KeyPicker,
    /// Operations not yet started.
    left: u64,
    report: LoadReport,
    last_reply: Instant,
}

impl Run {
    /// Takes up to `wanted` of the remaining operations.
    fn take(&mut self, wanted: usize) -> usize {
        let taken = self.left.min(wanted as u64);
        self.left -= taken;
        taken as usize
    }

    fn count_errors(&mut self, operations: usize, what: impl FnOnce() -> String) {
        self.report.errors += operations as u64;
        self.note(what);
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        self.report.first_error.get_or_insert_with(what);
    }

    fn record(&mut self, now: Instant, since: Instant, operations: usize) {
        let nanoseconds = u64::try_from((now - since).as_nanos()).unwrap_or(u64::MAX);
        self.report.latencies.saturating_record_n(nanoseconds, operations as u64);
        self.last_reply = now;
    }
}

fn thread_cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Runs the workload. `keep_going` is called about every 50 ms; once it returns false, no new request is sent.
///
/// Server errors, closed connections and silence end up in the report.
///
/// # Errors
///
/// A connection can't be established, or the system is out of descriptors. `InvalidInput`: see [`Workload::check`].
pub fn run(address: SocketAddr, workload: &Workload, keep_going: &mut dyn FnMut() -> bool) -> io::Result<LoadReport> {
    workload.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::with_capacity(workload.connections);
    for number in 0..workload.connections {
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        // Edge-triggered: a connection hears only of changes, and is never registered again.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&poll, &stream, epoll::EventData::new_u64(number as u64), flags)?;
        connections.push(Connection::new(stream, workload)?);
    }
    let latencies = Histogram::new_with_max(SILENCE_MAX.as_nanos() as u64 * 2, 3).map_err(io::Error::other)?;
    let cpu_before = thread_cpu();
    let start = Instant::now();
    let mut run = Run {
        keys: KeyPicker::new(workload.order, workload.keys, workload.seed),
        left: workload.operations.unwrap_or(u64::MAX),
        report: LoadReport {
            operations: 0,
            errors: 0,
            unanswered: 0,
            first_error: None,
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            latencies,
        },
        last_reply: start,
    };
    for connection in &mut connections {
        connection.begin(&mut run);
    }
    drive(&poll, &mut connections, &mut run, start, workload.duration, keep_going)?;
    for connection in &connections {
        run.report.unanswered += connection.in_flight() as u64;
    }
    run.report.elapsed = run.last_reply - start;
    run.report.cpu = thread_cpu().saturating_sub(cpu_before);
    Ok(run.report)
}

/// Runs until every started batch is answered, or nothing more will come.
fn drive(
    poll: &impl std::os::fd::AsFd,
    connections: &mut [Connection],
    run: &mut Run,
    start: Instant,
    duration: Option<Duration>,
    keep_going: &mut dyn FnMut() -> bool,
) -> io::Result<()> {
    let deadline = duration.and_then(|duration| start.checked_add(duration));
    let timeout = Timespec::try_from(CHECK_INTERVAL).map_err(io::Error::other)?;
    let mut events = Vec::with_capacity(256);
    let mut next_check = start + CHECK_INTERVAL;
    let mut waiting = connections.iter().filter(|connection| connection.is_waiting()).count();
    while waiting > 0 {
        events.clear();
        match epoll::wait(poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            run.left = 0;
        }
        if now >= next_check {
            next_check = now + CHECK_INTERVAL;
            if !keep_going() {
                run.left = 0;
            }
            if now - run.last_reply > SILENCE_MAX {
                run.note(|| format!("no reply for {} seconds", SILENCE_MAX.as_secs()));
                return Ok(());
            }
        }
        for event in &events {
            let Some(connection) = usize::try_from(event.data.u64()).ok().and_then(|at| connections.get_mut(at)) else {
                continue;
            };
            if connection.is_waiting() {
                let flags = event.flags;
                connection.advance(run, flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR));
                waiting -= usize::from(!connection.is_waiting());
            }
        }
    }
    Ok(())
}

//! What a coordinator does with chunks of bytes: clients' requests to shards, shards' replies to clients.
//!
//! Threads: one thread, the host's event loop, calls everything here. There is no clock inside: whoever owns these
//! objects says what time it is.
//!
//! The path of an increment: [`Router::feed`] parses a chunk, finds each key's home, and queues its increment at the
//! link of that shard, with a [`Waiter`] that says whose it is. [`Router::flush`], at the end of the
//! loop's turn, gives what has gathered for each shard. [`Router::feed_link`] takes a shard's answers and writes each
//! into the output of the connection that waits; RESP's replies leave in the order of their requests.
//!
//! `crate::shard_link` is the connection to one shard; `core` what answers change; `routing` where an operation goes;
//! `groups` and `gather` put several requests together, and several answers; `whole_counters`, `whole_answers` and `counting`
//! are what needs every shard; `host_requests` are what the host answers.

mod connection;
mod core;
mod counting;
mod diversion;
mod gather;
mod groups;
mod host_requests;
mod msgpack_handler;
mod partials;
mod reply_row;
mod resp_handler;
mod routing;
mod slab;
mod statistics;
mod unfinished_input;
mod unserved;
mod waiter;
mod whole_answers;
mod whole_counters;

use std::sync::Arc;

pub use connection::Connection;
pub use host_requests::HostRequest;
pub use routing::Serving;
pub use slab::Place;
pub use statistics::{Sample, Statistics};

use self::core::Core;
use crate::connection_input::Protocol;
use crate::limits::GREETING_BYTES_MAX;
use crate::placement::foreign_keys::ForeignKeys;
use crate::placement::hash_ring::{HashRing, key_hash};
use crate::read_cache::ReadCache;
use crate::resp_connection::{Peer, Rate};
use crate::shard_link::ShardLink;
pub use crate::shard_link::{LinkSettings, LinkStatistics, LinkViolation, Outcome, Repeat};
use crate::wire::request::Level;
use crate::wire::scan::FrameLimits;
use groups::ReadBatch;
use unserved::Unserved;
use waiter::Kind;
pub use waiter::Waiter;
use whole_counters::RemovalBatch;

/// A connection whose frames come in pieces keeps at most so much memory for the next piece.
const INPUT_SPARE_BYTES: usize = 4096;
/// So often a shard is asked what time it is.
const SHARD_TIME_INTERVAL_MS: u64 = 1000;
/// Samples that wait to be taken.
const SAMPLES_MAX: usize = 512;

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct RouterSettings {
    /// The level of operations that name none. Those with ids are passed on as they are, so it must be the shards'.
    pub level: Level,
    /// Shown by `hello` and INFO.
    pub server_version: String,
    /// The coordinator's name.
    pub name: String,
    /// The cluster's.
    pub identity: String,
    /// Clients must send one of them first; without any, nobody needs one. Shards are sent `link.token`.
    pub tokens: Vec<Vec<u8>>,
    /// Keys that begin so are served by their home only.
    pub strict: Vec<Vec<u8>>,
    /// Longest frame, in bytes; the shards' is taken to be no shorter.
    pub frame_bytes_max: usize,
    /// Bytes of unfinished requests that all connections together may leave in memory; shared out as a shard does.
    pub input_bytes_max: usize,
    /// Connections that the host admits.
    pub connections_max: usize,
    /// Bytes of replies that a connection may be owed before reading from it stops.
    pub reply_bytes_max: usize,
    /// Bytes of requests that gather several answers, for all connections together, before reading stops.
    pub held_bytes_max: usize,
    /// What isn't answered after it, in milliseconds, is told so.
    pub request_timeout_ms: u64,
    /// Of each shard's link.
    pub link: LinkSettings,
}

/// What the host has to do after a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// Take [`Router::take_attend`].
    pub attend: bool,
    /// Call `flush` once the turn of the loop is over.
    pub flush: bool,
}

/// A shard's link and what gathers for it.
struct Link {
    link: ShardLink<Waiter>,
    reads: ReadBatch,
    removals: RemovalBatch,
    connected: bool,
    /// When the shard was last asked for the time.
    asked_time_at: Option<u64>,
    /// Increments of keys whose home the shard is, and which another one took.
    diverted: u64,
}

/// The hot path of a coordinator.
pub struct Router {
    settings: RouterSettings,
    ring: HashRing,
    /// Of the shards, in the ring's order.
    names: Vec<String>,
    links: Vec<Link>,
    serving: Vec<Serving>,
    /// Some shard's weight is below 1.
    some_unhealthy: bool,
    core: Core,
    /// Bytes of unfinished requests, over all connections.
    input_bytes: usize,
    /// Of the address that clients reach it at, as text.
    port: String,
    /// Requests a second.
    rate: Rate,
    /// When the host first told the time.
    started_ms: Option<u64>,
    /// Encoded.
    topology: Vec<u8>,
    /// The last fed connection's replies.
    now: Vec<u8>,
    wants_flush: bool,
    flush_scheduled: bool,
    samples: Vec<Sample>,
    scratch: Vec<u8>,
    unserved: Unserved,
    /// What ids of this router's own operations begin with, and the last one's number.
    operation_ids: [u8; 16],
    last_operation_id: u64,
}

impl Router {
    /// A router for the shards of a ring; none of them is connected.
    #[must_use]
    pub fn new(
        ring: HashRing,
        foreign: Arc<ForeignKeys>,
        cache: Option<Arc<ReadCache>>,
        settings: RouterSettings,
    ) -> Self {
        let names: Vec<String> = ring.shards().iter().map(|(name, _)| name.clone()).collect();
        // An item that goes beyond half a frame, and what stands around the items, fit into the other half.
        let link_settings = LinkSettings {
            batch_bytes_max: settings.link.batch_bytes_max.min(settings.frame_bytes_max / 2),
            ..settings.link.clone()
        };
        let operation_ids = (link_settings.new_session_id)().0;
        let link = || Link {
            link: ShardLink::new(link_settings.clone()),
            reads: ReadBatch::default(),
            removals: RemovalBatch::default(),
            connected: false,
            asked_time_at: None,
            diverted: 0,
        };
        Self {
            links: names.iter().map(|_| link()).collect(),
            serving: vec![Serving::default(); names.len()],
            some_unhealthy: false,
            core: Core::new(foreign, cache, names.len(), settings.held_bytes_max, settings.reply_bytes_max),
            names,
            ring,
            settings,
            input_bytes: 0,
            port: String::new(),
            rate: Rate::default(),
            started_ms: None,
            topology: vec![0xc0],
            now: Vec::new(),
            wants_flush: false,
            flush_scheduled: false,
            samples: Vec::new(),
            scratch: Vec::new(),
            unserved: Unserved::default(),
            operation_ids,
            last_operation_id: 0,
        }
    }

    /// How many shards there are.
    #[must_use]
    pub const fn shards(&self) -> usize {
        self.links.len()
    }

    /// The port that clients reach it at, for INFO.
    pub fn set_port(&mut self, port: u16) {
        self.port = port.to_string();
    }

    /// Begins a connection from an address that isn't known; gives its place.
    pub fn connect(&mut self) -> Place {
        self.connect_from("")
    }

    /// Begins a connection; gives its place. `address` is for CLIENT LIST.
    pub fn connect_from(&mut self, address: &str) -> Place {
        self.core.statistics.connections_total += 1;
        let authenticated = self.settings.tokens.is_empty();
        let now = self.core.now_ms;
        let peer = Peer { address: address.into(), connected_ms: now, heard_ms: now };
        let connection = Connection::new(self.core.statistics.connections_total, authenticated, peer);
        self.core.connections.insert(Box::new(connection))
    }

    /// Ends a connection. What it was owed is dropped.
    pub fn disconnect(&mut self, place: Place) {
        if let Some(connection) = self.core.connections.remove(place) {
            self.input_bytes -= connection.input_bytes;
        }
        self.core.stopped.retain(|&stopped| stopped != place);
    }

    /// The client sends nothing more. What it sent is still answered, then the connection is closing.
    pub fn finish(&mut self, place: Place) {
        if let Some(connection) = self.core.connections.get_mut(place) {
            connection.finished = true;
        }
    }

    /// The connection at a place.
    #[must_use]
    pub fn connection(&self, place: Place) -> Option<&Connection> {
        self.core.connections.get(place).map(Box::as_ref)
    }

    /// A client reads nothing, or goes on reading.
    pub fn note_unread(&mut self, place: Place, unread: bool) {
        if let Some(connection) = self.core.connections.get_mut(place) {
            connection.note_unread(unread);
        }
    }

    /// What `topology` answers, encoded.
    pub fn set_topology(&mut self, topology: Vec<u8>) {
        self.topology = topology;
    }

    /// Takes a chunk as it came from the socket. Afterwards `replies` holds what may be written at once.
    /// An empty chunk goes on with input that was left because replies piled up.
    pub fn feed(&mut self, place: Place, chunk: &[u8]) {
        self.now.clear();
        let Some(mut connection) = self.core.connections.take(place) else { return };
        self.core.statistics.bytes_received += chunk.len() as u64;
        connection.peer.heard_ms = self.core.now_ms;
        let was_crowded = connection.is_crowded();
        connection.stalled = false;
        connection.called = false;
        if connection.out.capacity() == 0 {
            std::mem::swap(&mut connection.out, &mut self.now);
        }

        let mut input = std::mem::take(&mut connection.input);
        if input.is_empty() {
            let consumed = self.consume(place, &mut connection, chunk);
            input.extend_from_slice(chunk.get(consumed..).unwrap_or_default());
        } else {
            input.extend_from_slice(chunk);
            let consumed = self.consume(place, &mut connection, &input);
            input.drain(..consumed);
            if consumed > 0 && input.capacity() > INPUT_SPARE_BYTES {
                input.shrink_to(INPUT_SPARE_BYTES);
            }
        }
        connection.input = input;
        connection.stalled |= connection.hold.is_some();
        if connection.closing {
            connection.drop_unfinished();
            connection.stalled = false;
        }
        self.count_input(&mut connection);
        if connection.stalled && self.is_full() && !connection.stopped {
            connection.stopped = true;
            self.core.stopped.push(place);
        }
        std::mem::swap(&mut self.now, &mut connection.out);
        connection.out = Vec::new();
        self.core.statistics.bytes_sent += self.now.len() as u64;
        let wants_attention = connection.is_crowded() != was_crowded || !connection.host_requests.is_empty();
        self.core.connections.put_back(place, connection);
        if wants_attention {
            self.core.call(place);
        }
        self.core.tell_late(&self.names);
        // Replies that left a moment ago may be all that it waited for.
        self.core.look(place);
    }

    /// What the last `feed` has to send at once.
    #[must_use]
    pub fn replies(&self) -> &[u8] {
        &self.now
    }

    /// What a connection has to send, now.
    pub fn take_output(&mut self, place: Place) -> Vec<u8> {
        let Some(connection) = self.core.connections.get_mut(place) else { return Vec::new() };
        self.core.statistics.bytes_sent += connection.out.len() as u64;
        let out = std::mem::take(&mut connection.out);
        self.core.look(place);
        out
    }

    /// Connections that the host is to look at, taken.
    pub fn take_attend(&mut self, mut each: impl FnMut(Place)) {
        for place in self.core.attend.drain(..) {
            each(place);
        }
    }

    /// What the host has to do. `flush` is said once until that was called.
    pub fn take_calls(&mut self) -> Calls {
        let wanted = self.wants_flush || !self.core.ready.is_empty() || !self.core.read_wholes.is_empty();
        let flush = wanted && !self.flush_scheduled;
        self.flush_scheduled |= flush;
        Calls { attend: !self.core.attend.is_empty(), flush }
    }

    /// Gives what each shard is to be sent now.
    pub fn flush(&mut self, now_ms: f64, mut deliver: impl FnMut(usize, &[u8])) {
        self.flush_scheduled = false;
        self.wants_flush = false;
        self.set_now(now_ms);
        self.go_on_with_wholes();
        self.send_counting();
        let mut out = std::mem::take(&mut self.scratch);
        for shard in 0..self.links.len() {
            self.scratch = out;
            self.send_reads(shard);
            out = std::mem::take(&mut self.scratch);
            out.clear();
            self.links[shard].link.flush(&mut out);
            if !out.is_empty() {
                self.core.stopwatches[shard].start(now_ms);
                deliver(shard, &out);
            }
        }
        self.core.tell_late(&self.names);
        const SCRATCH_BYTES_MAX: usize = 1 << 20;
        if out.capacity() <= SCRATCH_BYTES_MAX {
            self.scratch = out;
        }
    }

    /// Gives what each connection has to send.
    pub fn take_ready(&mut self, deliver: impl FnMut(Place, &[u8])) {
        self.core.take_ready(deliver);
    }

    fn set_now(&mut self, now_ms: f64) {
        self.core.now_ms = self.core.now_ms.max(now_ms.max(0.0) as u64);
        self.started_ms.get_or_insert(self.core.now_ms);
    }

    /// There is a connection to a shard.
    pub fn link_connected(&mut self, shard: usize) {
        let link = &mut self.links[shard];
        link.connected = true;
        link.asked_time_at = None;
        link.link.connected();
        self.wants_flush = true;
    }

    /// Takes a chunk of a shard's answers.
    ///
    /// # Errors
    /// The shard broke the protocol: the connection is of no use any more.
    pub fn feed_link(&mut self, shard: usize, now_ms: f64, chunk: &[u8]) -> Result<(), LinkViolation> {
        self.set_now(now_ms);
        let core = &mut self.core;
        let outcome = self.links[shard].link.feed(chunk, &mut |waiter, outcome| core.done(shard, waiter, outcome));
        if let Some(commit) = core.commit_noted.take() {
            self.links[shard].link.note_commit(commit);
        }
        // An answer makes room for what waits to be sent.
        self.wants_flush = true;
        self.sample(shard, now_ms, true);
        outcome
    }

    /// The connection to a shard is gone.
    pub fn link_lost(&mut self, shard: usize) {
        let core = &mut self.core;
        let link = &mut self.links[shard];
        link.connected = false;
        link.link.lost(&mut |waiter, outcome| core.done(shard, waiter, outcome));
        self.wants_flush = true;
    }

    /// A shard's link, to be looked at.
    #[must_use]
    pub fn link(&self, shard: usize) -> &ShardLink<Waiter> {
        &self.links[shard].link
    }

    /// A removal of a key's counter, or of all counters, is settled: what shards were known to hold is gone.
    pub fn forget(&mut self, key: Option<&[u8]>) {
        match key {
            Some(key) => self.core.partials.forget(key_hash(key), self.links.len()),
            None => self.core.partials.forget_all(),
        }
    }

    /// How many increments, whose home the shard is, were given to others.
    #[must_use]
    pub fn diverted(&self, shard: usize) -> u64 {
        self.links[shard].diverted
    }

    /// Replaces the tokens that let clients in; shards are sent the first from their next connection on.
    pub fn set_tokens(&mut self, tokens: Vec<Vec<u8>>) {
        self.settings.link.token = tokens.first().cloned();
        for link in &mut self.links {
            link.link.set_token(self.settings.link.token.clone());
        }
        self.settings.tokens = tokens;
    }

    /// Why no connection to a shard could be made.
    pub fn note_link_error(&mut self, shard: usize, error: &str) {
        self.links[shard].link.note_error(error);
    }

    /// The end of a settled session, to be sent before the connection to the shard is closed.
    pub fn link_goodbye(&mut self, shard: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.links[shard].link.say_goodbye(&mut out);
        out
    }

    /// Housekeeping, some twenty times a second.
    pub fn tick(&mut self, now_ms: f64) {
        self.set_now(now_ms);
        let now = self.core.now_ms;
        self.rate.note(now, self.core.statistics.commands());
        for shard in 0..self.links.len() {
            let core = &mut self.core;
            self.links[shard].link.tick(now, &mut |waiter, outcome| core.done(shard, waiter, outcome));
            self.ask_time(shard);
            self.sample(shard, now_ms, false);
        }
        self.wants_flush = true;
    }

    /// Asks a shard for its time, now and then: ids that say when they were born are told in it.
    fn ask_time(&mut self, shard: usize) {
        let now = self.core.now_ms;
        let link = &mut self.links[shard];
        let is_due = link.asked_time_at.is_none_or(|asked| now >= asked + SHARD_TIME_INTERVAL_MS);
        if !link.link.is_ready() || !is_due {
            return;
        }
        link.asked_time_at = Some(now);
        let params = routing::hello_params(self.settings.link.token.as_deref());
        let waiter = Waiter { hash: 0, place: Place::NOWHERE, ticket: 0, kind: Kind::ShardTime };
        let deadline_ms = now + self.settings.request_timeout_ms;
        let accepted = link.link.call("hello", &params, Repeat::Never, deadline_ms, waiter).is_ok();
        self.core.stopwatches[shard].asked += u64::from(accepted);
    }

    fn sample(&mut self, shard: usize, now_ms: f64, heard: bool) {
        if let Some((latency_ms, ok)) = self.core.stopwatches[shard].look(now_ms, heard)
            && self.samples.len() < SAMPLES_MAX
        {
            self.samples.push(Sample { shard, latency_ms, ok });
        }
    }

    /// Samples since the last call.
    pub fn take_samples(&mut self) -> Vec<Sample> {
        std::mem::take(&mut self.samples)
    }

    /// Is no client owed a reply, and no shard's answer missing?
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.core.stopwatches.iter().all(|stopwatch| stopwatch.asked <= stopwatch.answered)
            && self.core.ready.is_empty()
            && self.core.connections.iter().all(|connection| !connection.is_owed())
    }

    /// Do gathers fill the bound for all connections?
    const fn is_full(&self) -> bool {
        self.core.held_bytes > self.core.held_bytes_max
    }

    /// Must a connection's next request wait?
    #[inline]
    fn must_wait(&self, connection: &Connection) -> bool {
        connection.hold.is_some() || connection.owed_bytes() > self.settings.reply_bytes_max || self.is_full()
    }

    /// Parses and carries out whole frames; gives the number of bytes used up.
    fn consume(&mut self, place: Place, connection: &mut Connection, bytes: &[u8]) -> usize {
        if connection.closing {
            return bytes.len();
        }
        if let (Protocol::Unknown, Some(&first)) = (&connection.protocol, bytes.first()) {
            match Protocol::detect(first) {
                Some(protocol) => connection.protocol = protocol,
                None => {
                    connection.closing = true;
                    self.core.statistics.protocol_errors += 1;
                    return bytes.len();
                }
            }
        }
        match std::mem::replace(&mut connection.protocol, Protocol::Unknown) {
            Protocol::Unknown => 0,
            Protocol::MsgpackRpc(mut scanner) => {
                let consumed = self.consume_msgpack(place, connection, &mut scanner, bytes);
                connection.protocol = Protocol::MsgpackRpc(scanner);
                consumed
            }
            Protocol::Resp(mut state) => {
                let consumed = self.consume_resp(place, connection, &mut state, bytes);
                connection.protocol = Protocol::Resp(state);
                consumed
            }
        }
    }

    /// How large may its next frame be? Who hasn't sent the token has no business with large ones.
    fn frame_limits(&self, connection: &Connection) -> FrameLimits {
        let bytes_max = self.settings.frame_bytes_max;
        FrameLimits { bytes_max: if connection.authenticated { bytes_max } else { bytes_max.min(GREETING_BYTES_MAX) } }
    }
}

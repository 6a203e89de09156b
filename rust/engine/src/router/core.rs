//! What answers of shards change: connections, and what gathers for them. The links stand beside it, so that one of them
//! can be fed while its answers come here.

use std::sync::Arc;

use super::connection::{Connection, Hold};
use super::counting::Counting;
use super::gather::Gather;
use super::groups::{IncrGroup, ReadGroup};
use super::host_requests;
use super::partials::Partials;
use super::reply_row::Reply;
use super::slab::{Place, Slab};
use super::statistics::{Statistics, Stopwatch};
use super::waiter::{Kind, Waiter};
use super::whole_counters::{RemovalGroup, WholeCommand};
use crate::connection_input::Protocol;
use crate::error_code::ErrorCode;
use crate::placement::foreign_keys::ForeignKeys;
use crate::read_cache::ReadCache;
use crate::shard_link::Outcome;
use crate::shard_link::split_error;
use crate::wire::msgpack_rpc as rpc;
use crate::wire::msgpack_rpc::reader::{Reader, Value};
use crate::wire::request::Level;
use crate::wire::resp;

/// Buffers for output that are kept for the next.
const POOLED_BUFFERS_MAX: usize = 64;
const POOLED_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// A value with what its reply says of its safety.
#[derive(Debug, Clone, Copy)]
struct Detail {
    level: Level,
    commit: u64,
}

/// What came of a request while its connection was being fed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Late {
    /// It was not accepted, because of this shard.
    Refused(Waiter, ErrorCode, usize),
    /// All parts of a gather were asked for.
    Begun(Place),
    /// All reads of a command that needs counters whole were asked for.
    BegunWhole(Place),
}

/// Everything but the links.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) connections: Slab<Box<Connection>>,
    pub(super) gathers: Slab<Gather>,
    pub(super) read_groups: Slab<ReadGroup>,
    pub(super) incr_groups: Slab<IncrGroup>,
    pub(super) removal_groups: Slab<RemovalGroup>,
    pub(super) wholes: Slab<WholeCommand>,
    /// Of these, those that have something to change now.
    pub(super) read_wholes: Vec<Place>,
    pub(super) countings: Slab<Counting>,
    /// Who wants to know how many counters there are, and wasn't asked for yet.
    pub(super) count_askers: Vec<(Place, u32)>,
    /// The commit that the shard's last answer told, for its link.
    pub(super) commit_noted: Option<u64>,
    /// Which keys other shards than the home may hold.
    pub(super) foreign: Arc<ForeignKeys>,
    pub(super) partials: Partials,
    /// For reads that ask for it. All who share it use it on the thread that owns the router.
    pub(super) cache: Option<Arc<ReadCache>>,
    /// Connections with something in `out`.
    pub(super) ready: Vec<Place>,
    /// Connections that the host is to look at.
    pub(super) attend: Vec<Place>,
    /// Connections that stopped because `held_bytes` are at their bound.
    pub(super) stopped: Vec<Place>,
    /// Memory of gathers, over all connections.
    pub(super) held_bytes: usize,
    pub(super) held_bytes_max: usize,
    pub(super) reply_bytes_max: usize,
    pub(super) statistics: Statistics,
    /// For each shard.
    pub(super) stopwatches: Vec<Stopwatch>,
    /// For each shard: what time it was there, at least, when it last said so.
    pub(super) shard_times: Vec<Option<u64>>,
    /// What came of requests of the connection that is being fed, to be told once it is back in its place.
    pub(super) late: Vec<Late>,
    pub(super) now_ms: u64,
    pool: Vec<Vec<u8>>,
    pub(super) waiters_pool: Vec<Vec<Waiter>>,
}

impl Core {
    pub(super) fn new(
        foreign: Arc<ForeignKeys>,
        cache: Option<Arc<ReadCache>>,
        shards: usize,
        held_bytes_max: usize,
        reply_bytes_max: usize,
    ) -> Self {
        Self {
            connections: Slab::default(),
            gathers: Slab::default(),
            read_groups: Slab::default(),
            incr_groups: Slab::default(),
            removal_groups: Slab::default(),
            wholes: Slab::default(),
            read_wholes: Vec::new(),
            countings: Slab::default(),
            count_askers: Vec::new(),
            commit_noted: None,
            foreign,
            partials: Partials::default(),
            cache,
            ready: Vec::new(),
            attend: Vec::new(),
            stopped: Vec::new(),
            held_bytes: 0,
            held_bytes_max,
            reply_bytes_max,
            statistics: Statistics::default(),
            stopwatches: vec![Stopwatch::default(); shards],
            shard_times: vec![None; shards],
            late: Vec::new(),
            now_ms: 0,
            pool: Vec::new(),
            waiters_pool: Vec::new(),
        }
    }

    /// A shard's answer: the hot path.
    #[inline]
    pub(super) fn done(&mut self, shard: usize, waiter: Waiter, outcome: Outcome<'_>) {
        self.stopwatches[shard].answered += 1;
        if let (Kind::Incr, Outcome::Value { value, .. }) = (waiter.kind, outcome) {
            self.partials.set(waiter.hash, shard, value);
            self.settled(waiter.hash);
            if !self.foreign.is_foreign(waiter.hash) {
                return self.settle_int(waiter.place, waiter.ticket, value);
            }
        }
        self.done_otherwise(shard, waiter, outcome);
    }

    /// A change of a key is settled: what was loaded of it before is old.
    #[inline]
    pub(super) fn settled(&self, hash: u64) {
        // Two misses of the processor's caches for each increment, which only those pay who read through the cache.
        // Whoever does, does so on this thread.
        if let Some(cache) = &self.cache
            && cache.is_used()
        {
            cache.bump_hashed(hash);
        }
    }

    #[inline(never)]
    fn done_otherwise(&mut self, shard: usize, waiter: Waiter, outcome: Outcome<'_>) {
        let Waiter { place, ticket, .. } = waiter;
        if waiter.kind.is_change() {
            self.settled(waiter.hash);
        }
        match (waiter.kind, outcome) {
            (Kind::ReadGroup, outcome) => self.read_group_done(shard, place, outcome),
            (Kind::IncrGroup, outcome) => self.incr_group_done(shard, place, outcome),
            (Kind::RemovalGroup, outcome) => self.removal_group_done(shard, place, outcome),
            (Kind::Count, outcome) => self.count_done(place, outcome),
            (Kind::ShardTime, Outcome::Reply(reply)) => self.shard_times[shard] = time_of(reply),
            (Kind::ShardTime, Outcome::Error { code, .. }) => self.stopwatches[shard].note_error(code),
            (Kind::ShardTime, _) => {}
            (_, Outcome::Error { code, message }) => {
                self.stopwatches[shard].note_error(code);
                self.refuse(waiter, code, message);
            }
            (_, Outcome::ErrorText(text)) => {
                let (code, message) = split_error(text);
                self.stopwatches[shard].note_error(code);
                self.refuse(waiter, code, message);
            }
            (Kind::SetWhole, Outcome::Value { value, .. }) => {
                self.partials.set(waiter.hash, shard, value);
                self.set_whole_done(waiter, Ok(()));
            }
            (Kind::Incr | Kind::PartIncr, Outcome::Value { value, .. }) => {
                let (value, exact) = self.with_others(shard, waiter.hash, value);
                self.value_done(waiter, value, exact, None);
            }
            (_, Outcome::Value { value, level, commit }) => {
                let (value, exact) = self.with_others(shard, waiter.hash, value);
                self.value_done(waiter, value, exact, Some(Detail { level, commit }));
            }
            (Kind::Passed, Outcome::Reply(reply)) if is_value(reply) => self.settle(place, |connection| {
                rpc::reply_begin(&mut connection.out, ticket);
                connection.out.extend_from_slice(reply);
                connection.pending -= 1;
            }),
            (kind, Outcome::Reply(reply) | Outcome::ReplyAgain(reply)) => match value_of(reply) {
                Some((value, detail)) if kind != Kind::Passed => {
                    let (value, exact) = self.with_others(shard, waiter.hash, value);
                    self.value_done(waiter, value, exact, detail);
                }
                _ => self.refuse(waiter, ErrorCode::Internal, "the shard's answer has another form"),
            },
        }
    }

    /// An increment's value at a shard, with what the others hold as far as it is known; and whether it is all.
    pub(super) fn with_others(&mut self, shard: usize, hash: u64, value: i64) -> (i128, bool) {
        self.partials.set(hash, shard, value);
        if self.foreign.is_foreign(hash) {
            (i128::from(value) + self.partials.others(hash, shard, self.shard_times.len()), false)
        } else {
            (i128::from(value), true)
        }
    }

    /// An increment is done.
    fn value_done(&mut self, waiter: Waiter, value: i128, exact: bool, detail: Option<Detail>) {
        match (waiter.kind, detail) {
            (Kind::PartIncr, _) => self.part_done(waiter, Ok(Some(value))),
            (Kind::IncrDetail | Kind::IncrWithId, Some(detail)) => self.settle(waiter.place, |connection| {
                let out = &mut connection.out;
                rpc::reply_begin(out, waiter.ticket);
                rpc::write_map_len(out, 4);
                rpc::write_str(out, "value");
                rpc::write_i128(out, value);
                rpc::write_str(out, "exact");
                rpc::write_bool(out, exact);
                rpc::write_str(out, "level");
                rpc::write_str(out, detail.level.name());
                rpc::write_str(out, "commit");
                rpc::write_u64(out, detail.commit);
                connection.pending -= 1;
            }),
            _ => match i64::try_from(value) {
                Ok(value) => self.settle_int(waiter.place, waiter.ticket, value),
                Err(_) => self.settle_large(waiter.place, waiter.ticket, value),
            },
        }
    }

    /// Answers a request with an error.
    pub(super) fn refuse(&mut self, waiter: Waiter, code: ErrorCode, message: &str) {
        match waiter.kind {
            Kind::PartIncr | Kind::PartRead => self.part_done(waiter, Err((code, message))),
            Kind::PartOfWhole => self.part_of_whole_done(0, waiter, Err((code, message))),
            Kind::SetWhole => self.set_whole_done(waiter, Err((code, message))),
            Kind::ReadGroup | Kind::IncrGroup | Kind::RemovalGroup | Kind::Count | Kind::ShardTime => {}
            _ => {
                self.statistics.errors += 1;
                self.settle(waiter.place, |connection| refuse(connection, waiter.ticket, code, message));
            }
        }
    }

    /// Answers with an integer.
    #[inline]
    pub(super) fn settle_int(&mut self, place: Place, ticket: u32, value: i64) {
        let Some(connection) = self.connections.get_mut(place) else { return };
        if connection.out.capacity() == 0 {
            connection.out = self.pool.pop().unwrap_or_default();
        }
        match &connection.protocol {
            Protocol::Resp(state) => {
                let version = state.version;
                connection.replies.settle(ticket, Reply::Int(value), version, &mut connection.out);
            }
            _ => {
                rpc::reply_int(&mut connection.out, ticket, value);
                connection.pending -= 1;
            }
        }
        if !connection.ready {
            connection.ready = true;
            self.ready.push(place);
        }
        if connection.is_watched() {
            self.look(place);
        }
    }

    /// Answers with a counter's value, or nil.
    pub(super) fn settle_read(&mut self, place: Place, ticket: u32, value: Option<i64>) {
        self.settle(place, |connection| match &connection.protocol {
            Protocol::Resp(state) => {
                let version = state.version;
                connection.replies.settle(ticket, value.map_or(Reply::Null, Reply::Bulk), version, &mut connection.out);
            }
            _ => {
                match value {
                    Some(value) => rpc::reply_int(&mut connection.out, ticket, value),
                    None => rpc::reply_nil(&mut connection.out, ticket),
                }
                connection.pending -= 1;
            }
        });
    }

    /// Answers with what is outside of 64 bits.
    #[cold]
    fn settle_large(&mut self, place: Place, ticket: u32, value: i128) {
        self.settle(place, |connection| match &connection.protocol {
            Protocol::Resp(state) => {
                let version = state.version;
                connection.replies.settle(ticket, large(value), version, &mut connection.out);
            }
            _ => {
                rpc::reply_begin(&mut connection.out, ticket);
                rpc::write_i128(&mut connection.out, value);
                connection.pending -= 1;
            }
        });
    }

    /// Has `write` settle one reply of a connection, if that is there still.
    pub(super) fn settle(&mut self, place: Place, write: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.connections.get_mut(place) else { return };
        write(connection);
        self.note_output(place);
        self.look(place);
    }

    /// Has the host look at a connection.
    pub(super) fn call(&mut self, place: Place) {
        if let Some(connection) = self.connections.get_mut(place)
            && !connection.called
        {
            connection.called = true;
            self.attend.push(place);
        }
    }

    /// The connection has something to send.
    pub(super) fn note_output(&mut self, place: Place) {
        if let Some(connection) = self.connections.get_mut(place)
            && !connection.ready
            && !connection.out.is_empty()
        {
            connection.ready = true;
            self.ready.push(place);
        }
    }

    /// Replies have been settled: does something go on with it?
    pub(super) fn look(&mut self, place: Place) {
        if let Some(connection) = self.connections.get_mut(place)
            && connection.is_watched()
            && wants_attention(connection, self.reply_bytes_max)
        {
            connection.called = true;
            self.attend.push(place);
        }
    }

    /// Memory that was held is free: those that waited for it go on.
    pub(super) fn release_stopped(&mut self) {
        if self.held_bytes > self.held_bytes_max / 2 || self.stopped.is_empty() {
            return;
        }
        for place in std::mem::take(&mut self.stopped) {
            if let Some(connection) = self.connections.get_mut(place) {
                connection.stopped = false;
            }
            self.look(place);
        }
    }

    /// Gives what each connection has to send.
    pub(super) fn take_ready(&mut self, mut deliver: impl FnMut(Place, &[u8])) {
        let mut ready = std::mem::take(&mut self.ready);
        for place in ready.drain(..) {
            let Some(connection) = self.connections.get_mut(place) else { continue };
            connection.ready = false;
            let out = std::mem::take(&mut connection.out);
            if !out.is_empty() {
                self.statistics.bytes_sent += out.len() as u64;
                deliver(place, &out);
            }
            give_back(out, &mut self.pool);
            // What has left may be all that it waited for.
            self.look(place);
        }
        self.ready = ready;
    }
}

/// Puts a buffer into the pool, emptied. Bounded, so that an idle process is small again.
fn give_back(mut buffer: Vec<u8>, pool: &mut Vec<Vec<u8>>) {
    if pool.len() < POOLED_BUFFERS_MAX && buffer.capacity() <= POOLED_BUFFER_BYTES_MAX {
        buffer.clear();
        pool.push(buffer);
    }
}

/// Begins what waited for replies to leave. Is the host to look at it then?
fn wants_attention(connection: &mut Connection, reply_bytes_max: usize) -> bool {
    if !connection.owes() {
        match connection.hold.take() {
            Some(Hold::Start(open, request)) => host_requests::start(connection, open, request),
            Some(hold @ (Hold::Answer | Hold::Passage)) => connection.hold = Some(hold),
            Some(Hold::Replies) | None => {}
        }
    }
    if connection.called {
        return false;
    }
    // Where the bound for all is full it is fed once more all the same, and waits among those that are told of room.
    let may_go_on = connection.hold.is_none() && !connection.stopped && connection.owed_bytes() <= reply_bytes_max / 2;
    !connection.host_requests.is_empty() || connection.stalled && may_go_on || connection.is_closing()
}

/// Writes an error as the reply to a connection's request.
pub(super) fn refuse(connection: &mut Connection, ticket: u32, code: ErrorCode, message: &str) {
    match &connection.protocol {
        Protocol::Resp(state) => {
            let mut text = Vec::new();
            resp::write_error(&mut text, code, message);
            let (version, reply) = (state.version, Reply::Bytes(text.into()));
            connection.replies.settle(ticket, reply, version, &mut connection.out);
        }
        _ => {
            rpc::reply_error(&mut connection.out, ticket, code, message);
            connection.pending -= 1;
        }
    }
}

/// What is outside of 64 bits, for RESP.
pub(super) fn large(value: i128) -> Reply {
    let mut text = Vec::new();
    resp::write_bulk(&mut text, itoa::Buffer::new().format(value).as_bytes());
    Reply::Bytes(text.into())
}

/// Is it a counter's value, or nil?
fn is_value(reply: &[u8]) -> bool {
    matches!(Reader::new(reply).read(), Ok(Value::Nil | Value::Unsigned(_) | Value::Negative(_)))
}

/// A shard's result of an increment: a value, or a map with it.
fn value_of(reply: &[u8]) -> Option<(i64, Option<Detail>)> {
    let mut reader = Reader::new(reply);
    let int = |value| match value {
        Value::Unsigned(value) => i64::try_from(value).ok(),
        Value::Negative(value) => Some(value),
        _ => None,
    };
    let pairs = match reader.read().ok()? {
        Value::Map(pairs) => pairs,
        value => return int(value).map(|value| (value, None)),
    };
    let (mut found, mut level, mut commit) = (None, Level::Durable, 0);
    for _ in 0..pairs {
        let Value::Text(name) = reader.read_whole().ok()? else { return None };
        match (name, reader.read_whole().ok()?) {
            (b"value", value) => found = int(value),
            (b"level", Value::Text(b"applied")) => level = Level::Applied,
            (b"commit", Value::Unsigned(value)) => commit = value,
            _ => {}
        }
    }
    Some((found?, Some(Detail { level, commit })))
}

/// What time a shard's `hello` says it is there.
fn time_of(reply: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(reply);
    let Value::Map(pairs) = reader.read().ok()? else { return None };
    for _ in 0..pairs {
        let Value::Text(name) = reader.read_whole().ok()? else { return None };
        if let (b"time", Value::Unsigned(time)) = (name, reader.read_whole().ok()?) {
            return Some(time);
        }
    }
    None
}

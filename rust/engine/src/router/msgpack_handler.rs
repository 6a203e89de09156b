//! MessagePack-RPC: frames to operations. Replies carry their msgid and may overtake each other.

use super::Router;
use super::connection::{Connection, Hold};
use super::core::Late;
use super::gather::{Gather, Wanted};
use super::groups::IncrGroup;
use super::host_requests::Shape;
use super::slab::Place;
use super::waiter::{Kind, Waiter};
use crate::error_code::ErrorCode;
use crate::placement::hash_ring::key_hash;
use crate::shard_link::Repeat;
use crate::token::token_matches;
use crate::wire::msgpack_rpc::{self as rpc, FrameScanner, Parsed};
use crate::wire::request::{Accuracy, ChangeOptions, Item, ReadFrom, ReadOptions, Request};
use crate::wire::resp::Version;
use crate::wire::scan::Scan;

const NO_SESSIONS: &str = "a session belongs to one shard: name the shard in `hello`, connect to it, or send ids";
/// Replicas follow shards.
const NO_TAIL: &str = "a coordinator has no journal to follow: ask a shard";

/// `scan` gives the foreign ones with all others, once each.
const NO_COUNTERS: &str = "a coordinator holds no counters that could be foreign: ask a shard";

/// Increments with ids for one shard: encoded, and for each its key's hash and its place in the request.
type EncodedItems = (Vec<u8>, Vec<(u64, u32)>);

impl Router {
    /// Carries out every whole frame of `bytes`; gives the number of bytes used up.
    pub(super) fn consume_msgpack(
        &mut self,
        place: Place,
        connection: &mut Connection,
        scanner: &mut FrameScanner,
        bytes: &[u8],
    ) -> usize {
        let mut position = 0;
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            if self.must_wait(connection) {
                connection.stalled = true;
                break;
            }
            if connection.authenticated
                && let Some(fast) = rpc::fast_incr(rest)
            {
                // The scanner may stand inside this frame, when the start of it came with an earlier chunk.
                scanner.reset();
                connection.pending += 1;
                if fast.id.is_some() {
                    let params = rpc::call_of(&rest[..fast.len]).map_or(&[][..], |(_, params)| params);
                    let asker = (place, fast.msgid);
                    self.pass_incr(fast.key, fast.delta, &ChangeOptions::default(), params, asker);
                } else {
                    let level = self.settings.level;
                    self.route_incr(fast.key, fast.delta, level, place, fast.msgid, Kind::Incr);
                }
                position += fast.len;
                continue;
            }
            match scanner.scan(rest, self.frame_limits(connection)) {
                Ok(Scan::Complete(length)) => {
                    self.execute_msgpack(place, connection, &rest[..length]);
                    if matches!(connection.hold, Some(Hold::Passage | Hold::Replies)) {
                        // A shard gets this frame and all that follows it, as it came; or it is carried out later.
                        connection.stalled = true;
                        break;
                    }
                    position += length;
                }
                Ok(Scan::Incomplete) => break,
                Err(error) => {
                    self.core.statistics.protocol_errors += 1;
                    if let Some(msgid) = rpc::request_msgid(rest) {
                        rpc::reply_error(&mut connection.out, msgid, error.code(), &error.to_string());
                    }
                    connection.closing = true;
                }
            }
            if connection.closing {
                break;
            }
        }
        position
    }

    fn execute_msgpack(&mut self, place: Place, connection: &mut Connection, frame: &[u8]) {
        let (_, params) = rpc::call_of(frame).unwrap_or_default();
        match rpc::parse(frame) {
            Parsed::Request { msgid, request: Ok(request) } => {
                self.serve(place, connection, Some(msgid), request, params);
            }
            Parsed::Request { msgid, request: Err(error) } => {
                self.core.statistics.errors += 1;
                rpc::reply_error(&mut connection.out, msgid, error.code, &error.message);
            }
            Parsed::Notification { request: Ok(request), .. } => self.serve(place, connection, None, request, params),
            // Nobody to tell; an unknown notification is ignored by the protocol's rule.
            Parsed::Notification { request: Err(_), .. } => {}
            Parsed::Invalid { msgid, error } => {
                self.core.statistics.protocol_errors += 1;
                match msgid {
                    Some(msgid) => rpc::reply_error(&mut connection.out, msgid, error.code, &error.message),
                    None => connection.closing = true,
                }
            }
        }
    }

    /// Serves a request; one without `msgid` (a notification) gets no reply.
    fn serve(
        &mut self,
        place: Place,
        connection: &mut Connection,
        msgid: Option<u32>,
        request: Request<'_>,
        params: &[u8],
    ) {
        self.core.statistics.requests += 1;
        if !connection.authenticated && !matches!(request, Request::Hello { .. }) {
            return self.deny(connection, msgid, ErrorCode::Unauthenticated, ErrorCode::Unauthenticated.meaning());
        }
        // A notification's answers are sent to nobody.
        let asker = (msgid.map_or(Place::NOWHERE, |_| place), msgid.unwrap_or(0));
        match request {
            Request::Incr { key, delta, options } => {
                connection.pending += usize::from(msgid.is_some());
                if options.id.is_some() {
                    return self.pass_incr(key, delta, &options, params, asker);
                }
                let level = options.level.unwrap_or(self.settings.level);
                let kind = if options.detail { Kind::IncrDetail } else { Kind::Incr };
                self.route_incr(key, delta, level, asker.0, asker.1, kind);
            }
            Request::IncrMany { items, options } => {
                connection.pending += usize::from(msgid.is_some());
                self.serve_incr_many(asker, &items, &options);
            }
            Request::DeleteMany { .. } if connection.owes() => connection.hold = Some(Hold::Replies),
            Request::DeleteMany { items, options } => match self.unreachable("delete_many") {
                Some(message) => self.deny(connection, msgid, ErrorCode::Unavailable, &message),
                None => {
                    connection.pending += usize::from(msgid.is_some());
                    self.delete_many(asker, &items, &options);
                }
            },
            Request::Get { key, options } => self.serve_get(connection, msgid, asker, key, options, params),
            Request::GetMany { keys, options } => self.serve_get_many(connection, msgid, asker, &keys, options, params),
            Request::Total { .. } => self.serve_by_host(connection, msgid, "total", params),
            Request::TotalMany { .. } => self.serve_by_host(connection, msgid, "total_many", params),
            Request::Drain { .. } => self.serve_by_host(connection, msgid, "drain", params),
            Request::Delete { .. } => self.serve_by_host(connection, msgid, "delete", params),
            Request::DeleteAll { .. } => self.serve_by_host(connection, msgid, "delete_all", params),
            Request::Scan { foreign: false, .. } => self.serve_by_host(connection, msgid, "scan", params),
            Request::Scan { .. } => self.deny(connection, msgid, ErrorCode::Forbidden, NO_COUNTERS),
            Request::Top { .. } => self.serve_by_host(connection, msgid, "top", params),
            Request::Backup { .. } => self.serve_by_host(connection, msgid, "backup", params),
            Request::Stats { .. } => self.serve_at_once(connection, msgid, "stats", params),
            Request::WatchTopology { .. } => self.serve_at_once(connection, msgid, "watch_topology", params),
            Request::Health { .. } => self.serve_at_once(connection, msgid, "health", params),
            Request::Apply { .. } | Request::Bye { .. } => {
                self.deny(connection, msgid, ErrorCode::Forbidden, NO_SESSIONS);
            }
            Request::Tail(_) => self.deny(connection, msgid, ErrorCode::Forbidden, NO_TAIL),
            Request::Hello { token, session, shard, client: _ } => {
                if !token_matches(&self.settings.tokens, token) {
                    self.core.statistics.refused_tokens += 1;
                    let message = "the token is missing or wrong";
                    self.deny(connection, msgid, ErrorCode::Unauthenticated, message);
                    connection.closing = true;
                    return;
                }
                connection.authenticated = true;
                if let Some(shard) = shard {
                    return self.begin_passage(connection, msgid, shard);
                }
                if session.is_some() {
                    return self.deny(connection, msgid, ErrorCode::Forbidden, NO_SESSIONS);
                }
                tell(connection, msgid, |out| self.write_hello(out));
            }
            Request::Ping => tell(connection, msgid, |out| rpc::write_str(out, "pong")),
            Request::Topology => tell(connection, msgid, |out| out.extend_from_slice(&self.topology)),
        }
    }

    /// Has the host connect the client to the shard or replica of this name. After an error the connection is closed,
    /// as what came behind the request is meant for that shard.
    fn begin_passage(&mut self, connection: &mut Connection, msgid: Option<u32>, name: &[u8]) {
        if connection.owes() || !connection.open.is_empty() {
            let message = "ask for a shard when all earlier requests are answered: nothing behind this was applied";
            self.deny(connection, msgid, ErrorCode::BadRequest, message);
            connection.closing = true;
            return;
        }
        let mut params = Vec::new();
        rpc::write_array_len(&mut params, 1);
        rpc::write_bin(&mut params, name);
        self.serve_by_host(connection, msgid, "passage", &params);
        connection.hold = Some(Hold::Passage);
    }

    fn deny(&mut self, connection: &mut Connection, msgid: Option<u32>, code: ErrorCode, message: &str) {
        self.core.statistics.errors += 1;
        if let Some(msgid) = msgid {
            rpc::reply_error(&mut connection.out, msgid, code, message);
        }
    }

    fn serve_by_host(&mut self, connection: &mut Connection, msgid: Option<u32>, method: &'static str, params: &[u8]) {
        self.ask_host(connection, method, Shape::Result(msgid), params.to_vec(), Version::Resp2);
    }

    fn serve_at_once(&mut self, connection: &mut Connection, msgid: Option<u32>, method: &'static str, params: &[u8]) {
        if let Err(code) = self.ask_host_at_once(connection, method, msgid, params) {
            self.deny(connection, msgid, code, "too many such requests of this connection wait for an answer");
        }
    }

    fn serve_get(
        &mut self,
        connection: &mut Connection,
        msgid: Option<u32>,
        (place, ticket): (Place, u32),
        key: &[u8],
        options: ReadOptions,
        params: &[u8],
    ) {
        if needs_choice(options.accuracy, options.read_from) || self.is_out_of_reach(&[key]) {
            return self.serve_by_host(connection, msgid, "get", params);
        }
        let ReadOptions { level, min_commit, accuracy, or_nil, read_from: _ } = options;
        if level.is_some() || min_commit.is_some() {
            let hash = key_hash(key);
            if self.core.foreign.is_foreign(hash) && min_commit.is_some() {
                let message = "min_commit is of one shard, and several hold this counter";
                return self.deny(connection, msgid, ErrorCode::BadRequest, message);
            }
            if !self.core.foreign.is_foreign(hash) {
                connection.pending += usize::from(msgid.is_some());
                let waiter = Waiter { hash, place, ticket, kind: Kind::Passed };
                return self.pass_read(self.ring.home_of_hash(hash), "get", params, waiter);
            }
        }
        connection.pending += usize::from(msgid.is_some());
        if accuracy == Accuracy::Cached && !or_nil && self.core.cache.is_some() {
            return self.read_cached(Wanted::Value { or_nil }, &[key], place, ticket);
        }
        self.read_one(key, place, ticket, or_nil);
    }

    fn serve_get_many(
        &mut self,
        connection: &mut Connection,
        msgid: Option<u32>,
        (place, ticket): (Place, u32),
        keys: &[&[u8]],
        options: ReadOptions,
        params: &[u8],
    ) {
        let ReadOptions { level: _, min_commit, accuracy, or_nil, read_from } = options;
        if min_commit.is_some() {
            let message = "min_commit is of one shard: read a single counter with it";
            return self.deny(connection, msgid, ErrorCode::BadRequest, message);
        }
        if needs_choice(accuracy, read_from) || self.is_out_of_reach(keys) {
            return self.serve_by_host(connection, msgid, "get_many", params);
        }
        connection.pending += usize::from(msgid.is_some());
        if accuracy == Accuracy::Cached && !or_nil && self.core.cache.is_some() {
            return self.read_cached(Wanted::Values { or_nil }, keys, place, ticket);
        }
        self.read_many(keys, place, ticket, or_nil);
    }

    /// Passes a read on as it is.
    fn pass_read(&mut self, shard: usize, method: &str, params: &[u8], waiter: Waiter) {
        self.wants_flush = true;
        self.core.statistics.reads += 1;
        let deadline_ms = self.core.now_ms + self.settings.request_timeout_ms;
        match self.links[shard].link.call(method, params, Repeat::Always, deadline_ms, waiter) {
            Ok(()) => self.core.stopwatches[shard].asked += 1,
            Err(waiter) => self.core.late.push(Late::Refused(waiter, ErrorCode::Overloaded, shard)),
        }
    }

    fn serve_incr_many(&mut self, (place, ticket): (Place, u32), items: &[Item<'_>], options: &ChangeOptions<'_>) {
        let gather = self.core.begin_gather(Gather::new(Wanted::Outcomes, place, ticket, items.len()));
        let level = options.level.unwrap_or(self.settings.level);
        let bytes_max = self.group_bytes_max();
        let mut with_ids: Vec<EncodedItems> = Vec::new();
        for (index, item) in (0..).zip(items) {
            let Some(waiting) = self.core.gathers.get_mut(gather) else { return };
            if let Some(code) = item.error {
                waiting.take(index, Err((code, code.meaning())));
                continue;
            }
            if place == Place::NOWHERE && item.id.is_none() {
                // Nobody waits, neither for the items together nor for this one.
                self.route_incr(item.key, item.delta, level, place, 0, Kind::Incr);
                continue;
            }
            waiting.expect();
            let Some(id) = item.id else {
                // Increments of one key are done in their order.
                if !with_ids.is_empty() {
                    let home = self.ring.home(item.key);
                    self.send_incr_group(home, gather, &mut with_ids[home], options);
                }
                self.route_incr(item.key, item.delta, level, gather, index, Kind::PartIncr);
                continue;
            };
            match self.home_for_change(item.key) {
                (hash, Err(home)) => {
                    let waiter = Waiter { hash, place: gather, ticket: index, kind: Kind::PartIncr };
                    self.core.late.push(Late::Refused(waiter, ErrorCode::Unavailable, home));
                }
                (hash, Ok(home)) => {
                    if with_ids.is_empty() {
                        with_ids.resize_with(self.links.len(), Default::default);
                    }
                    let (encoded, members) = &mut with_ids[home];
                    rpc::write_array_len(encoded, 3);
                    rpc::write_bin(encoded, item.key);
                    rpc::write_i64(encoded, item.delta);
                    rpc::write_bin(encoded, id);
                    members.push((hash, index));
                    // Encoded anew, they may take more bytes than in the frame that they came in.
                    if encoded.len() >= bytes_max {
                        self.send_incr_group(home, gather, &mut with_ids[home], options);
                    }
                }
            }
        }
        for (shard, items) in with_ids.iter_mut().enumerate() {
            self.send_incr_group(shard, gather, items, options);
        }
        self.core.late.push(Late::Begun(gather));
    }

    /// Sends increments with ids that have gathered for a shard.
    fn send_incr_group(&mut self, shard: usize, gather: Place, items: &mut EncodedItems, options: &ChangeOptions<'_>) {
        let (encoded, members) = std::mem::take(items);
        if members.is_empty() {
            return;
        }
        self.core.statistics.increments += members.len() as u64;
        let mut list = Vec::with_capacity(encoded.len() + 5);
        rpc::write_array_len(&mut list, members.len());
        list.extend_from_slice(&encoded);
        let group = self.core.incr_groups.insert(IncrGroup { gather, items: members });
        let waiter = Waiter { hash: 0, place: group, ticket: 0, kind: Kind::IncrGroup };
        self.pass_incr_group(shard, &list, options, waiter);
    }

    fn write_hello(&self, out: &mut Vec<u8>) {
        rpc::write_map_len(out, 7);
        for (name, value) in [
            ("server", "pycounter"),
            ("version", self.settings.server_version.as_str()),
            ("role", "coordinator"),
            ("shard", self.settings.name.as_str()),
            ("identity", self.settings.identity.as_str()),
        ] {
            rpc::write_str(out, name);
            rpc::write_str(out, value);
        }
        rpc::write_str(out, "epoch");
        rpc::write_u64(out, 0);
        rpc::write_str(out, "time");
        rpc::write_u64(out, self.core.now_ms);
    }
}

/// Answers at once.
fn tell(connection: &mut Connection, msgid: Option<u32>, write: impl FnOnce(&mut Vec<u8>)) {
    if let Some(msgid) = msgid {
        rpc::reply_begin(&mut connection.out, msgid);
        write(&mut connection.out);
    }
}

/// Does a read need the host to say whom to ask? An exact one asks every shard, as a counter may be foreign somewhere
/// without this router knowing it yet.
fn needs_choice(accuracy: Accuracy, read_from: ReadFrom) -> bool {
    accuracy == Accuracy::Exact || read_from != ReadFrom::Primary
}

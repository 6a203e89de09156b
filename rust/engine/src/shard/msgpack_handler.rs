//! MessagePack-RPC: frames to operations, outcomes to replies. Replies carry their msgid and may overtake each other.

use super::connection::{Connection, HostCall, HostRequest, PendingTop};
use super::held_replies::{ReplyKind, give_back};
use super::{LOOK_WORK, Part, Pending, RUN_MAX, Shard, TURN_WORK_MAX};
use crate::counter_store::{CounterStore, Top};
use crate::error_code::ErrorCode;
use crate::fingerprint::Method;
use crate::journal::entry::Fingerprint;
use crate::operation_id_table::Lookup;
use crate::placement::hash_ring::key_hash;
use crate::planted_bug;
use crate::token::token_matches;
use crate::wire::glob;
use crate::wire::msgpack_rpc::{self as rpc, FrameScanner, Parsed};
use crate::wire::request::{ChangeOptions, Item, Level, ReadOptions, Request};
use crate::wire::scan::Scan;

/// A page of `scan` or `top` ends after about this many bytes of keys, so that one request can't fill the memory.
const PAGE_REPLY_BYTES_MAX: usize = 1 << 20;
/// `scan` looks at so many counters at a time before it sees what that cost; fewer where a pattern is long.
const SCAN_STRIDE_MAX: usize = 4096;
/// `top` looks at so many places at a time ...
const TOP_STRIDE: usize = 1024;
/// ... and at so many in a turn: its counters are anywhere in memory.
const TOP_TURN_WORK_MAX: usize = 16 * TOP_STRIDE * LOOK_WORK;
/// It gives up where it would have to keep more bytes of keys meanwhile.
const TOP_KEY_BYTES_MAX: usize = 4 * PAGE_REPLY_BYTES_MAX;
/// Of a shard's own topology.
const TOPOLOGY_VERSION: u64 = 1;

impl Shard {
    /// Executes every whole frame of `bytes`; gives the number of bytes used up.
    pub(super) fn consume_msgpack(
        &mut self,
        connection: &mut Connection,
        scanner: &mut FrameScanner,
        bytes: &[u8],
    ) -> usize {
        let mut position = 0;
        if !self.go_on_with_top(connection) {
            return position;
        }
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            if connection.authenticated
                && self.following.is_none()
                && let Some(fast) = rpc::fast_incr(rest)
            {
                self.push_run(bytes, fast.key, fast.delta, fast.msgid, fast.id);
                position += fast.len;
                // The scanner may stand inside this frame, when the start of it came with an earlier chunk.
                scanner.reset();
                if self.run.len() == RUN_MAX {
                    self.apply_msgpack_run(bytes);
                    if self.is_piled_up(connection) {
                        connection.stalled = true;
                        break;
                    }
                }
                continue;
            }
            self.apply_msgpack_run(bytes);
            if self.is_piled_up(connection) {
                connection.stalled = true;
                break;
            }
            match scanner.scan(rest, self.frame_limits(connection)) {
                Ok(Scan::Complete(length)) => {
                    self.execute_msgpack(connection, &rest[..length]);
                    position += length;
                }
                Ok(Scan::Incomplete) => break,
                Err(error) => {
                    self.statistics.protocol_errors += 1;
                    if let Some(msgid) = rpc::request_msgid(rest) {
                        rpc::reply_error(&mut self.now, msgid, error.code(), &error.to_string());
                    }
                    connection.closing = true;
                }
            }
            if connection.closing || connection.top.is_some() {
                break;
            }
        }
        self.apply_msgpack_run(bytes);
        position
    }

    /// Adds a parsed increment to the run. `key` and `id` are parts of `bytes`.
    pub(super) fn push_run(&mut self, bytes: &[u8], key: &[u8], delta: i64, msgid: u32, id: Option<&[u8]>) {
        let hash = self.state.counters.hash(key);
        self.state.counters.prefetch_slot(hash);
        let id = id.map(|id| Part::of(bytes, id));
        self.run.push(Pending { hash, delta, likely: None, msgid, key: Part::of(bytes, key), id });
    }

    fn apply_msgpack_run(&mut self, bytes: &[u8]) {
        self.apply_run(bytes, None, |out, msgid, outcome| match outcome {
            Ok(value) => rpc::reply_int(out, msgid, value),
            Err(code) => rpc::reply_error(out, msgid, code, code.meaning()),
        });
    }

    fn execute_msgpack(&mut self, connection: &mut Connection, frame: &[u8]) {
        match rpc::parse(frame) {
            Parsed::Request { msgid, request: Ok(request) } => self.answer(connection, Some(msgid), request),
            Parsed::Request { msgid, request: Err(error) } => {
                self.statistics.errors += 1;
                rpc::reply_error(&mut self.now, msgid, error.code, &error.message);
            }
            Parsed::Notification { request: Ok(request), .. } => self.answer(connection, None, request),
            // Nobody to tell; an unknown notification is ignored by the protocol's rule.
            Parsed::Notification { request: Err(_), .. } => {}
            Parsed::Invalid { msgid, error } => {
                self.statistics.protocol_errors += 1;
                match msgid {
                    Some(msgid) => rpc::reply_error(&mut self.now, msgid, error.code, &error.message),
                    None => connection.closing = true,
                }
            }
        }
    }

    /// Executes a request and writes its reply; without `msgid` (a notification) the reply is taken back.
    fn answer(&mut self, connection: &mut Connection, msgid: Option<u32>, request: Request<'_>) {
        self.statistics.requests += 1;
        let before = (self.now.len(), self.held.len());
        if connection.authenticated || matches!(request, Request::Hello { .. }) {
            self.execute(connection, msgid, request);
        } else {
            let code = ErrorCode::Unauthenticated;
            self.statistics.errors += 1;
            rpc::reply_error(&mut self.now, msgid.unwrap_or(0), code, code.meaning());
        }
        if msgid.is_none() {
            self.now.truncate(before.0);
            self.held.truncate(before.1);
        }
    }

    fn execute(&mut self, connection: &mut Connection, msgid: Option<u32>, request: Request<'_>) {
        let id = msgid.unwrap_or(0);
        if let Some((code, message)) = self.refusal_of(&request) {
            return self.refuse_with(Level::Applied, id, code, message);
        }
        match request {
            Request::Incr { key, delta, options } => self.answer_change(id, Method::Incr, key, delta, &options),
            Request::Drain { key, options } => self.answer_change(id, Method::Drain, key, 0, &options),
            Request::Delete { key, options } => self.answer_change(id, Method::Delete, key, 0, &options),
            Request::DeleteAll { options } => self.answer_change(id, Method::DeleteAll, b"", 0, &options),
            Request::IncrMany { items, options } => {
                let level = options.level.unwrap_or(self.settings.level);
                let mut results = self.pool.pop().unwrap_or_default();
                let mut kind = ReplyKind::Neutral;
                for item in &items {
                    let outcome = self.change_item(Method::Incr, item, &options);
                    kind = kind.max(ReplyKind::of(outcome));
                    write_outcome(&mut results, outcome);
                }
                self.reply(kind, level, id, |_, out| {
                    rpc::write_array_len(out, items.len());
                    out.extend_from_slice(&results);
                });
                give_back(results, &mut self.pool);
            }
            Request::DeleteMany { items, options } => self.answer_delete_many(id, &items, &options),
            Request::Apply { session, first_sequence, acked_through, items, level } => {
                let level = level.unwrap_or(self.settings.level);
                let reply_level = planted_bug::level_of(level, || {
                    self.state.sessions.last_sequence(session).is_some_and(|last| first_sequence <= last)
                });
                let mut results = self.pool.pop().unwrap_or_default();
                let outcome = self.apply_batch(session, first_sequence, acked_through, &items, |outcome| {
                    write_outcome(&mut results, outcome);
                });
                match outcome {
                    Ok(()) => self.reply(ReplyKind::Changed, reply_level, id, |shard, out| {
                        rpc::write_map_len(out, 3);
                        rpc::write_str(out, "results");
                        rpc::write_array_len(out, items.len());
                        out.extend_from_slice(&results);
                        shard.write_level_and_commit(out, level);
                    }),
                    Err(code) => self.refuse(level, id, code),
                }
                give_back(results, &mut self.pool);
            }
            Request::Get { key, options } => self.read(id, options, &[key], |shard, out| {
                write_value(out, shard.value(key), options.or_nil);
            }),
            Request::GetMany { keys, options } => self.read(id, options, &keys, |shard, out| {
                rpc::write_array_len(out, keys.len());
                for key in &keys {
                    write_value(out, shard.value(key), options.or_nil);
                }
            }),
            Request::Total { key, options } => {
                self.read(id, options, &[key], |shard, out| shard.write_total(out, key));
            }
            Request::TotalMany { keys, options } => self.read(id, options, &keys, |shard, out| {
                rpc::write_array_len(out, keys.len());
                for key in &keys {
                    shard.write_total(out, key);
                }
            }),
            Request::Scan { cursor, count, prefix, foreign } => self.look(id, self.settings.level, |shard, out| {
                let (next, found) = shard.scan_page(cursor, count, b"", |counters, key| {
                    key.starts_with(prefix)
                        && (!foreign || counters.foreign().is_some_and(|list| list.is_foreign(key_hash(key))))
                });
                rpc::write_array_len(out, 2);
                rpc::write_u64(out, next);
                write_counters(out, &found);
            }),
            Request::Top { n, prefix } => {
                // More than fit into a reply are as good as that many.
                connection.top = Some(PendingTop { msgid, top: Top::new(n.min(PAGE_REPLY_BYTES_MAX + 1), prefix) });
                self.go_on_with_top(connection);
            }
            Request::Hello { token, client: _, session, shard } => {
                if !token_matches(&self.settings.tokens, token) {
                    self.statistics.refused_tokens += 1;
                    let code = ErrorCode::Unauthenticated;
                    rpc::reply_error(&mut self.now, id, code, "the token is missing or wrong");
                    connection.closing = true;
                    return;
                }
                connection.authenticated = true;
                let own = self.replica_of().map_or(self.identity.name.as_str(), |(name, _)| name);
                if let Some(wanted) = shard.filter(|&wanted| wanted != own.as_bytes()) {
                    // What came behind it is meant for the other shard.
                    let wanted = String::from_utf8_lossy(wanted);
                    let message = format!("this is {own}, not {wanted}: nothing was applied");
                    rpc::reply_error(&mut self.now, id, ErrorCode::WrongShard, &message);
                    connection.closing = true;
                    return;
                }
                let last = session.and_then(|session| self.state.sessions.resume(session, self.uptime_ms));
                if self.failing && last.is_none() {
                    // A new client must get in while the disk fails. The time is the durable one: a later one could be
                    // ahead of the clock after a crash.
                    let time_ms = self.durable_uptime_ms;
                    return self.tell(id, |shard, out| shard.write_hello(out, time_ms, session.is_some(), None));
                }
                self.look(id, Level::Durable, |shard, out| {
                    shard.write_hello(out, shard.uptime_ms, session.is_some(), last);
                });
            }
            Request::Bye { session } => {
                let level = self.settings.level;
                match self.state.sessions.end(session, self.uptime_ms) {
                    Ok(()) => self.reply(ReplyKind::Changed, level, id, |_, out| rpc::write_nil(out)),
                    Err(code) => self.refuse(level, id, code),
                }
            }
            Request::Ping => self.tell(id, |_, out| rpc::write_str(out, "pong")),
            Request::Stats => self.tell(id, |shard, out| shard.write_stats(out)),
            Request::Health { foreign_from } => self.tell(id, |shard, out| shard.write_health(out, foreign_from)),
            Request::Topology => self.tell(id, |shard, out| shard.write_topology(out)),
            Request::WatchTopology { known } if known < TOPOLOGY_VERSION => {
                self.tell(id, |shard, out| shard.write_topology(out));
            }
            Request::WatchTopology { known } => leave(connection, msgid, HostCall::WatchTopology(known)),
            Request::Tail(request) => leave(connection, msgid, HostCall::Tail(request)),
            Request::Backup { directory } => leave(connection, msgid, HostCall::Backup(directory.to_owned())),
        }
    }

    /// Looks at some more counters for the connection's `top`, if there is one, and answers it at its end. False: it
    /// isn't done, and the connection's turn is over.
    fn go_on_with_top(&mut self, connection: &mut Connection) -> bool {
        let Some(PendingTop { msgid, mut top }) = connection.top.take() else { return true };
        // A replica may have begun anew meanwhile.
        if let Some((code, message)) = self.refusal_of(&Request::Top { n: 0, prefix: b"" }) {
            self.refuse_with(Level::Applied, msgid.unwrap_or(0), code, message);
            return true;
        }
        let is_done = loop {
            if top.key_bytes() > TOP_KEY_BYTES_MAX || top.look(&self.state.counters, TOP_STRIDE) {
                break true;
            }
            self.work += TOP_STRIDE * LOOK_WORK;
            if self.work > TOP_TURN_WORK_MAX {
                break false;
            }
        };
        if !is_done {
            connection.top = Some(PendingTop { msgid, top });
            connection.stalled = true;
            return false;
        }
        let Some(id) = msgid else { return true };
        if top.key_bytes() > PAGE_REPLY_BYTES_MAX {
            self.refuse(self.settings.level, id, ErrorCode::TooLarge);
        } else {
            let found = top.finish();
            self.look(id, self.settings.level, |_, out| write_counters(out, &found));
        }
        true
    }

    fn answer_delete_many(&mut self, msgid: u32, items: &[Item<'_>], options: &ChangeOptions<'_>) {
        let level = options.level.unwrap_or(self.settings.level);
        let mut results = self.pool.pop().unwrap_or_default();
        let mut kind = ReplyKind::Neutral;
        for item in items {
            let outcome = self.change_item(Method::Delete, item, options);
            kind = kind.max(ReplyKind::of(outcome));
            write_outcome(&mut results, outcome);
        }
        self.reply(kind, level, msgid, |shard, out| {
            if options.detail {
                rpc::write_map_len(out, 3);
                rpc::write_str(out, "values");
            }
            rpc::write_array_len(out, items.len());
            out.extend_from_slice(&results);
            if options.detail {
                shard.write_level_and_commit(out, level);
            }
        });
        give_back(results, &mut self.pool);
    }

    fn answer_change(&mut self, msgid: u32, method: Method, key: &[u8], delta: i64, options: &ChangeOptions<'_>) {
        let level = options.level.unwrap_or(self.settings.level);
        let reply_level = planted_bug::level_of(level, || {
            let known = |id| self.state.ids.get(id, Fingerprint::of(method, key, delta)) != Lookup::Unknown;
            options.id.is_some_and(known)
        });
        match self.change(method, key, delta, options) {
            Ok(value) => self.reply(ReplyKind::Changed, reply_level, msgid, |shard, out| {
                if !options.detail {
                    return rpc::write_i64(out, value);
                }
                rpc::write_map_len(out, 4);
                rpc::write_str(out, "value");
                rpc::write_i64(out, value);
                rpc::write_str(out, "exact");
                rpc::write_bool(out, true);
                shard.write_level_and_commit(out, level);
            }),
            Err(code) => self.refuse(level, msgid, code),
        }
    }

    /// A reply that tells of these counters.
    fn read(&mut self, msgid: u32, options: ReadOptions, keys: &[&[u8]], write: impl FnOnce(&mut Self, &mut Vec<u8>)) {
        let level = options.level.unwrap_or(self.settings.level);
        if let Some(commit) = options.min_commit {
            if commit > self.stamp() {
                if self.following.is_some() {
                    let message = "the replica has not got that far";
                    return self.refuse_with(level, msgid, ErrorCode::Unavailable, message);
                }
                let message = "min_commit is above the newest commit: it is of another shard, or was lost";
                return self.refuse_with(level, msgid, ErrorCode::BadRequest, message);
            }
            if commit > self.journal.durable() {
                return self.look(msgid, Level::Durable, write);
            }
        }
        let kind = self.kind_of_read(keys.iter().copied());
        self.reply(kind, level, msgid, write);
    }

    /// A reply that tells of counters which the request doesn't name, or of a session.
    fn look(&mut self, msgid: u32, level: Level, write: impl FnOnce(&mut Self, &mut Vec<u8>)) {
        self.reply(ReplyKind::Seen, level, msgid, write);
    }

    /// Writes a reply's frame around what `write` gives. `write` may change the shard.
    fn reply(&mut self, kind: ReplyKind, level: Level, msgid: u32, write: impl FnOnce(&mut Self, &mut Vec<u8>)) {
        let level = if kind == ReplyKind::Neutral { Level::Applied } else { level };
        let from = self.held.len();
        let mut out = std::mem::take(self.out(level));
        rpc::reply_begin(&mut out, msgid);
        write(self, &mut out);
        *self.out(level) = out;
        self.held.mark_from(from, kind);
    }

    /// A reply that tells nothing of what is counted, and so waits for nothing.
    fn tell(&mut self, msgid: u32, write: impl FnOnce(&mut Self, &mut Vec<u8>)) {
        self.reply(ReplyKind::Neutral, Level::Applied, msgid, write);
    }

    /// Answers the request that `input` begins with, if it got as far as its msgid.
    pub(super) fn refuse_msgpack_input(&mut self, input: &[u8], message: &str) {
        match rpc::request_msgid(input) {
            Some(msgid) => self.refuse_with(Level::Applied, msgid, ErrorCode::Overloaded, message),
            None => self.statistics.errors += 1,
        }
    }

    fn refuse(&mut self, level: Level, msgid: u32, code: ErrorCode) {
        self.refuse_with(level, msgid, code, code.meaning());
    }

    fn refuse_with(&mut self, level: Level, msgid: u32, code: ErrorCode, message: &str) {
        let kind = ReplyKind::of_refusal(code);
        let level = if kind == ReplyKind::Neutral { Level::Applied } else { level };
        let from = self.held.len();
        rpc::reply_error(self.out(level), msgid, code, message);
        self.note_refusal(from, kind);
    }

    /// What a reply says of its safety: it leaves once this level is reached.
    fn write_level_and_commit(&self, out: &mut Vec<u8>, level: Level) {
        rpc::write_str(out, "level");
        rpc::write_str(out, level.name());
        rpc::write_str(out, "commit");
        rpc::write_u64(out, self.stamp());
    }

    fn write_total(&self, out: &mut Vec<u8>, key: &[u8]) {
        let value = self.value(key).unwrap_or(0);
        rpc::write_map_len(out, 5);
        rpc::write_str(out, "total");
        rpc::write_i64(out, value);
        rpc::write_str(out, "partials");
        rpc::write_map_len(out, 1);
        rpc::write_str(out, &self.identity.name);
        rpc::write_i64(out, value);
        rpc::write_str(out, "missing");
        rpc::write_array_len(out, 0);
        rpc::write_str(out, "exact");
        rpc::write_bool(out, self.following.is_none());
        rpc::write_str(out, "age_ms");
        rpc::write_u64(out, self.lag_ms().unwrap_or(0));
    }

    /// The topology of a shard alone, which never changes.
    pub(super) fn write_topology(&self, out: &mut Vec<u8>) {
        rpc::write_map_len(out, 2);
        rpc::write_str(out, "version");
        rpc::write_u64(out, TOPOLOGY_VERSION);
        rpc::write_str(out, "shards");
        rpc::write_array_len(out, 1);
        let replica = self.replica_of();
        rpc::write_map_len(out, 5 + usize::from(replica.is_some()));
        for (name, value) in [
            ("name", self.identity.name.as_str()),
            ("address", replica.map_or(self.address.as_str(), |(_, primary)| primary)),
            ("identity", self.identity.identity.as_str()),
            ("state", if self.journal.is_failing() { "read_only" } else { "ok" }),
        ] {
            rpc::write_str(out, name);
            rpc::write_str(out, value);
        }
        rpc::write_str(out, "weight");
        rpc::write_f64(out, 1.0);
        if let Some((name, _)) = replica {
            rpc::write_str(out, "replicas");
            rpc::write_array_len(out, 1);
            rpc::write_map_len(out, 3);
            for (field, value) in [("name", name), ("address", self.address.as_str()), ("state", "ok")] {
                rpc::write_str(out, field);
                rpc::write_str(out, value);
            }
        }
    }

    fn write_hello(&self, out: &mut Vec<u8>, time_ms: u64, with_session: bool, last_sequence: Option<u64>) {
        rpc::write_map_len(out, if with_session { 7 } else { 6 });
        for (name, value) in [
            ("server", "pycounter"),
            ("version", self.settings.server_version.as_str()),
            ("shard", self.identity.name.as_str()),
            ("identity", self.identity.identity.as_str()),
        ] {
            rpc::write_str(out, name);
            rpc::write_str(out, value);
        }
        rpc::write_str(out, "epoch");
        rpc::write_u64(out, self.identity.epoch);
        rpc::write_str(out, "time");
        rpc::write_u64(out, time_ms);
        if with_session {
            rpc::write_str(out, "last_sequence");
            match last_sequence {
                Some(sequence) => rpc::write_u64(out, sequence),
                None => rpc::write_nil(out),
            }
        }
    }

    /// The counter's value, if it exists.
    pub(super) fn value(&self, key: &[u8]) -> Option<i64> {
        let counters = &self.state.counters;
        let counter = counters.find(counters.hash(key), key).filter(|&counter| counters.is_present(counter))?;
        Some(counters.value(counter))
    }

    /// A page of counters and the cursor of the next one, 0 at the end. It ends at a bound of work too, wanted counters
    /// or not; `wanted` may compare the key with `pattern`.
    pub(super) fn scan_page(
        &mut self,
        mut cursor: u64,
        count: usize,
        pattern: &[u8],
        wanted: impl Fn(&CounterStore, &[u8]) -> bool,
    ) -> (u64, Vec<(Vec<u8>, i64)>) {
        let mut found = Vec::new();
        let (mut bytes, mut looks, mut work) = (0, 0, 0);
        let counters = &self.state.counters;
        let steps_per_byte = glob::steps_per_byte(pattern);
        let stride = (SCAN_STRIDE_MAX / (steps_per_byte + 1)).max(4);
        while found.len() < count && looks < count * 64 && bytes <= PAGE_REPLY_BYTES_MAX && work <= TURN_WORK_MAX {
            let places = stride.min(count - found.len());
            cursor = counters.scan(cursor, places, |key, value| {
                work += pattern.len() + steps_per_byte * key.len();
                if wanted(counters, key) {
                    bytes += key.len();
                    found.push((key.to_vec(), value));
                }
            });
            looks += places;
            work += places * LOOK_WORK;
            if cursor == 0 {
                break;
            }
        }
        self.work += work;
        (cursor, found)
    }
}

/// Leaves a request to the host.
fn leave(connection: &mut Connection, msgid: Option<u32>, call: HostCall) {
    connection.host_requests.push(HostRequest { msgid, call });
}

/// A change's outcome as an item of a reply.
fn write_outcome(out: &mut Vec<u8>, outcome: Result<i64, ErrorCode>) {
    match outcome {
        Ok(value) => rpc::write_i64(out, value),
        Err(code) => rpc::write_error(out, code, code.meaning()),
    }
}

fn write_value(out: &mut Vec<u8>, value: Option<i64>, or_nil: bool) {
    match value {
        None if or_nil => rpc::write_nil(out),
        value => rpc::write_i64(out, value.unwrap_or(0)),
    }
}

fn write_counters(out: &mut Vec<u8>, counters: &[(impl AsRef<[u8]>, i64)]) {
    rpc::write_array_len(out, counters.len());
    for (key, value) in counters {
        rpc::write_array_len(out, 2);
        rpc::write_key(out, key.as_ref());
        rpc::write_i64(out, *value);
    }
}

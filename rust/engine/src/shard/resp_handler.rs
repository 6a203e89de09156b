//! RESP: commands to operations, outcomes to replies, in request order, since clients tell replies apart by their order
//! alone. All of them are at the server's level. PING's and the like wait only where a reply before them does.

use super::connection::Connection;
use super::held_replies::{HeldReplies, ReplyKind};
use super::{RUN_MAX, Shard, TURN_WORK_MAX};
use crate::connection_input::Protocol;
use crate::counter_store::CounterStore;
use crate::error_code::ErrorCode;
use crate::fingerprint::Method;
use crate::resp_connection::{
    self, Client, Clients, InfoFacts, Ran, RespState, Server, Transaction, counter_bytes, write_clients, write_killed,
    write_killed_one,
};
use crate::wire::glob;
use crate::wire::request::Level;
use crate::wire::resp::{self, ClientFilter, Command, CommandError, KEYS_COUNTERS_MAX, SetIf, Version, words};
use crate::wire::scan::Scan;

/// A transaction has one turn of the loop, whatever it costs; behind this the rest of it is refused.
const TRANSACTION_WORK_MAX: usize = 16 * TURN_WORK_MAX;
impl Shard {
    /// Executes every whole command of `bytes`; gives the number of bytes used up.
    pub(super) fn consume_resp(&mut self, connection: &mut Connection, state: &mut RespState, bytes: &[u8]) -> usize {
        let mut position = 0;
        if !state.unanswered.is_empty() && !connection.unread {
            self.answer_resp(&connection.held, |_, out| {
                state.unanswered.write(out);
                ReplyKind::Neutral
            });
            connection.stalled = !state.unanswered.is_empty();
            if connection.stalled {
                return position;
            }
        }
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            if connection.authenticated
                && state.transaction.is_none()
                && self.following.is_none()
                && let Some(fast) = resp::fast_incr(rest)
            {
                self.push_run(bytes, fast.key, fast.delta, 0, None);
                position += fast.len;
                state.scanner.reset();
                if self.run.len() == RUN_MAX {
                    self.apply_resp_run(bytes, &connection.held);
                    if self.is_piled_up(connection) {
                        connection.stalled = true;
                        break;
                    }
                }
                continue;
            }
            self.apply_resp_run(bytes, &connection.held);
            if self.is_piled_up(connection) {
                connection.stalled = true;
                break;
            }
            match state.scanner.scan(rest, self.frame_limits(connection)) {
                Ok(Scan::Complete(length)) if resp_connection::must_be_read_first(state, &rest[..length]) => {
                    connection.stalled = true;
                    break;
                }
                Ok(Scan::Complete(length)) => {
                    self.execute_resp(connection, state, &rest[..length]);
                    position += length;
                }
                Ok(Scan::Incomplete) => break,
                Err(_) if !state.unanswered.is_empty() => {
                    connection.stalled = true;
                    break;
                }
                Err(error) => {
                    self.statistics.protocol_errors += 1;
                    self.answer_resp(&connection.held, |_, out| {
                        resp::write_protocol_error(out, error);
                        ReplyKind::Neutral
                    });
                    connection.closing = true;
                }
            }
            if connection.closing {
                break;
            }
        }
        self.apply_resp_run(bytes, &connection.held);
        position
    }

    fn apply_resp_run(&mut self, bytes: &[u8], ahead: &HeldReplies) {
        self.apply_run(bytes, Some(ahead), |out, _, outcome| {
            write_outcome(out, outcome);
        });
    }

    fn execute_resp(&mut self, connection: &mut Connection, state: &mut RespState, frame: &[u8]) {
        self.statistics.requests += 1;
        let held = std::mem::take(&mut connection.held);
        self.answer_resp(&held, |shard, out| {
            match resp_connection::take(state, connection.authenticated, connection.unread, frame, out) {
                Some(command) => shard.run_command(connection, state, &command, out),
                None => ReplyKind::Neutral,
            }
        });
        connection.held = held;
    }

    /// Takes the reply that `write` gives, and its kind. One that tells nothing of any counter leaves at once, unless
    /// a reply `ahead` of it waits.
    fn answer_resp(&mut self, ahead: &HeldReplies, write: impl FnOnce(&mut Self, &mut Vec<u8>) -> ReplyKind) {
        let level = self.settings.level;
        let mut out = std::mem::take(self.out(level));
        let from = out.len();
        let kind = write(self, &mut out);
        self.statistics.errors += u64::from(out.get(from) == Some(&b'-'));
        *self.out(level) = out;
        if level == Level::Applied {
            return;
        }
        if kind == ReplyKind::Neutral && from == 0 && ahead.is_empty() {
            self.now.append(&mut self.held.bytes);
        } else {
            self.held.mark_from(from, kind);
        }
    }

    /// The last words to a client whose unfinished requests are too many.
    pub(super) fn refuse_resp_input(&mut self, ahead: &HeldReplies, message: &str) {
        self.answer_resp(ahead, |_, out| {
            resp::write_error(out, ErrorCode::Overloaded, message);
            ReplyKind::Neutral
        });
    }

    /// Commands about the connection; all others are about counters.
    fn run_command(
        &mut self,
        connection: &mut Connection,
        state: &mut RespState,
        command: &Command<'_>,
        out: &mut Vec<u8>,
    ) -> ReplyKind {
        let server = Server {
            tokens: &self.settings.tokens,
            version: &self.settings.server_version,
            level: self.settings.level,
            port: port_of(&self.address),
            connections_max: self.settings.connections_max,
        };
        let mut client = Client {
            id: connection.id,
            authenticated: &mut connection.authenticated,
            closing: &mut connection.closing,
            refused_tokens: &mut self.statistics.refused_tokens,
        };
        match resp_connection::run(state, &mut client, &server, command, out) {
            Ran::Answered => ReplyKind::Neutral,
            Ran::Execute(transaction) => self.execute_transaction(connection, state, &transaction, out),
            Ran::Clients(clients) => {
                self.run_clients(connection, state, &clients, out);
                ReplyKind::Neutral
            }
            Ran::Other => self.run_counter_command(state.version, command, out),
        }
    }

    fn run_clients(&mut self, own: &mut Connection, state: &RespState, clients: &Clients<'_>, out: &mut Vec<u8>) {
        match clients {
            Clients::List(filter) => {
                let others =
                    self.connections.slots.iter().flatten().filter_map(|connection| match &connection.protocol {
                        Protocol::Resp(state) => Some((connection.id, &connection.peer, &**state)),
                        _ => None,
                    });
                let all = others.chain([(own.id, &own.peer, state)]);
                let wanted = all.filter(|(id, peer, _)| filter.matches(*id, peer, own.id));
                write_clients(out, state.version, self.uptime_ms, wanted);
            }
            Clients::Kill(filter) => write_killed(out, self.kill(own, filter)),
            Clients::KillOne(filter) => write_killed_one(out, self.kill(own, filter)),
        }
    }

    /// Has connections of Redis clients closed once their replies have left; gives how many.
    fn kill(&mut self, own: &mut Connection, filter: &ClientFilter<'_>) -> usize {
        let mut count = 0;
        for slot in 0..self.connections.slots.len() {
            let Some(mut connection) = self.connections.take(slot) else { continue };
            if matches!(connection.protocol, Protocol::Resp(_))
                && !connection.closing
                && filter.matches(connection.id, &connection.peer, own.id)
            {
                connection.closing = true;
                connection.drop_unfinished();
                self.count_input(&mut connection);
                self.killed.push(slot);
                count += 1;
            }
            self.connections.put_back(slot, connection);
        }
        if filter.matches(own.id, &own.peer, own.id) {
            own.closing = true;
            count += 1;
        }
        count
    }

    fn run_counter_command(&mut self, version: Version, command: &Command<'_>, out: &mut Vec<u8>) -> ReplyKind {
        if let Some((code, message)) = self.refusal_of_command(command) {
            resp::write_error(out, code, message);
            return ReplyKind::Neutral;
        }
        match command {
            Command::Info { sections } => {
                resp::write_text(out, version, &self.info(sections));
                return ReplyKind::Neutral;
            }
            Command::IncrBy { key, delta } => {
                let outcome = self.admit(1).and_then(|()| self.apply(Method::Incr, key, *delta));
                return write_outcome(out, outcome);
            }
            Command::Get { key } => {
                write_value(out, version, self.value(key));
                return self.kind_of_read([*key]);
            }
            Command::MGet { keys } => {
                resp::write_array_len(out, keys.len());
                for key in keys {
                    write_value(out, version, self.value(key));
                }
                return self.kind_of_read(keys.iter().copied());
            }
            Command::GetDel { key } => {
                let Some(before) = self.value(key) else {
                    resp::write_null(out, version);
                    return ReplyKind::Seen;
                };
                return match self.admit(1).and_then(|()| self.apply(Method::Delete, key, 0)) {
                    Ok(_) => {
                        resp::write_bulk_int(out, before);
                        ReplyKind::Changed
                    }
                    Err(code) => refuse_code(out, code),
                };
            }
            Command::Del { keys } => {
                // All or none: the count in the reply must be of a whole.
                let outcome = self.admit(keys.len()).map(|()| {
                    let existing = |shard: &mut Self, key: &[u8]| {
                        shard.value(key).is_some() && shard.apply(Method::Delete, key, 0).is_ok()
                    };
                    keys.iter().filter(|key| existing(self, key)).count() as i64
                });
                return write_outcome(out, outcome);
            }
            Command::Exists { keys } => {
                let count = keys.iter().filter(|key| self.value(key).is_some()).count();
                resp::write_int(out, count as i64);
                return self.kind_of_read(keys.iter().copied());
            }
            Command::Set { key, value, get, only_if } => {
                let is_there = only_if.is_some() && self.value(key).is_some();
                if only_if.is_some_and(|only_if| (only_if == SetIf::Exists) != is_there) {
                    let value = if *get { self.value(key) } else { None };
                    write_value(out, version, value);
                    return ReplyKind::Seen;
                }
                match self.set(key, *value) {
                    Ok(before) if *get => write_value(out, version, before),
                    Ok(_) => resp::write_simple(out, "OK"),
                    Err(code) => return refuse_code(out, code),
                }
                return ReplyKind::Changed;
            }
            Command::SetNx { key, .. } if self.value(key).is_some() => resp::write_int(out, 0),
            Command::SetNx { key, value } => return write_outcome(out, self.set(key, *value).map(|_| 1)),
            Command::MSet { pairs } => {
                // All or none, but for memory that runs out between.
                let outcome = self
                    .admit(pairs.len())
                    .and_then(|()| pairs.iter().try_for_each(|(key, value)| self.set(key, *value).map(|_| ())));
                return match outcome {
                    Ok(()) => {
                        resp::write_simple(out, "OK");
                        ReplyKind::Changed
                    }
                    Err(code) => refuse_code(out, code),
                };
            }
            Command::Strlen { key } => {
                let length = self.value(key).map_or(0, |value| itoa::Buffer::new().format(value).len());
                resp::write_int(out, length as i64);
                return self.kind_of_read([*key]);
            }
            Command::Keys { pattern } => return self.write_keys(pattern, out),
            Command::RandomKey => match self.random_key() {
                Some(key) => resp::write_bulk(out, &key),
                None => resp::write_null(out, version),
            },
            Command::Encoding { key } if self.value(key).is_some() => resp::write_bulk(out, b"int"),
            Command::MemoryUsage { key } if self.value(key).is_some() => resp::write_int(out, counter_bytes(key)),
            Command::Encoding { .. } | Command::MemoryUsage { .. } => resp::write_null(out, version),
            Command::LastSave => {
                resp::write_int(out, i64::try_from(self.saved_at_s).unwrap_or(0));
                return ReplyKind::Neutral;
            }
            Command::Scan { cursor, count, pattern, other_type } => {
                let wanted = |_: &CounterStore, key: &[u8]| {
                    !other_type && pattern.is_none_or(|pattern| glob::matches(pattern, key))
                };
                let (next, found) = self.scan_page(*cursor, *count, pattern.unwrap_or_default(), wanted);
                resp::write_array_len(out, 2);
                resp::write_bulk(out, itoa::Buffer::new().format(next).as_bytes());
                resp::write_array_len(out, found.len());
                for (key, _) in &found {
                    resp::write_bulk(out, key);
                }
            }
            Command::DbSize => resp::write_int(out, self.state.counters.len() as i64),
            Command::Type { key } => {
                resp::write_simple(out, if self.value(key).is_some() { "string" } else { "none" });
                return self.kind_of_read([*key]);
            }
            Command::FlushAll => {
                return match self.admit(0).and_then(|()| self.apply(Method::DeleteAll, b"", 0)) {
                    Ok(_) => {
                        resp::write_simple(out, "OK");
                        ReplyKind::Changed
                    }
                    Err(code) => refuse_code(out, code),
                };
            }
            // `run_command` did all others.
            _ => return refuse_code(out, ErrorCode::Internal),
        }
        ReplyKind::Seen
    }

    /// All keys that match, if there are few enough to look at in one turn.
    fn write_keys(&mut self, pattern: &[u8], out: &mut Vec<u8>) -> ReplyKind {
        if self.state.counters.len() > KEYS_COUNTERS_MAX {
            return refuse(out, &words::TOO_MANY_FOR_KEYS);
        }
        let (mut cursor, mut keys, mut bytes) = (0, Vec::new(), 0);
        loop {
            let wanted = |_: &CounterStore, key: &[u8]| glob::matches(pattern, key);
            let (next, found) = self.scan_page(cursor, KEYS_COUNTERS_MAX, pattern, wanted);
            bytes += found.iter().map(|(key, _)| key.len()).sum::<usize>();
            if bytes > self.settings.reply_bytes_max {
                return refuse(out, &words::TOO_MUCH_FOR_KEYS);
            }
            keys.extend(found);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        resp::write_array_len(out, keys.len());
        for (key, _) in &keys {
            resp::write_bulk(out, key);
        }
        ReplyKind::Seen
    }

    /// The first key behind some place of the table.
    fn random_key(&mut self) -> Option<Vec<u8>> {
        let from = u64::from(getrandom::u32().unwrap_or(0));
        // Behind the last counter there may be none: then from the beginning.
        [from, 0].into_iter().find_map(|mut cursor| {
            loop {
                let (next, mut found) = self.scan_page(cursor, 1, b"", |_, _| true);
                if let Some((key, _)) = found.pop() {
                    return Some(key);
                }
                if next == 0 {
                    return None;
                }
                cursor = next;
            }
        })
    }

    fn set(&mut self, key: &[u8], value: i64) -> Result<Option<i64>, ErrorCode> {
        self.admit(1)?;
        let before = self.value(key);
        let counters = &mut self.state.counters;
        let counter = counters.find_or_insert_mut(counters.hash(key), key).map_err(|_| ErrorCode::Overloaded)?;
        counters.set_mut(counter, value);
        counters.mark_dirty_mut(counter, &mut self.state.dirty).map_err(|_| ErrorCode::Internal)?;
        self.statistics.changes += 1;
        Ok(before)
    }

    fn execute_transaction(
        &mut self,
        connection: &mut Connection,
        state: &mut RespState,
        transaction: &Transaction,
        out: &mut Vec<u8>,
    ) -> ReplyKind {
        // One turn of the loop, so one commit: other clients and the disk see all of it or nothing.
        resp::write_array_len(out, transaction.lengths.len());
        let mut frames = &transaction.frames[..];
        let mut kind = ReplyKind::Neutral;
        for &length in &transaction.lengths {
            let (frame, rest) = frames.split_at_checked(length).unwrap_or((frames, &[]));
            frames = rest;
            // A short transaction may ask for long replies (SCAN): what is over the bound is refused, not done.
            if out.len() > self.settings.reply_bytes_max {
                resp::write_error(out, ErrorCode::TooLarge, "the replies before this one fill the connection's bound");
                continue;
            }
            if self.work > TRANSACTION_WORK_MAX {
                resp::write_error(out, ErrorCode::TooLarge, "the commands before this one took a transaction's time");
                continue;
            }
            kind = kind.max(match resp::parse(frame) {
                Ok(command) => self.run_command(connection, state, &command, out),
                Err(error) => refuse(out, &error),
            });
        }
        kind
    }

    fn info(&self, sections: &[&[u8]]) -> String {
        let counters = self.state.counters.len();
        let own = &self.statistics;
        let state = |is_failing: bool| if is_failing { "err" } else { "ok" };
        let facts = InfoFacts {
            port: port_of(&self.address),
            uptime_s: self.uptime_here.as_secs(),
            connections: self.connections.count,
            connections_max: self.settings.connections_max,
            connections_total: own.connections_total,
            connections_refused: Some(self.host_figures.connections_refused),
            commands: own.commands(),
            commands_per_s: self.rate.per_s(),
            bytes_received: own.bytes_received,
            bytes_sent: own.bytes_sent,
            errors: own.errors,
            counters_bytes: Some(self.state.counters.memory_bytes()),
            persistence: format!(
                "rdb_changes_since_last_save:{}\r\nrdb_last_save_time:{}\r\naof_last_write_status:{}\r\naof_last_bgrewrite_status:{}\r\n",
                self.state.dirty.len(),
                self.saved_at_s,
                state(self.journal.is_failing()),
                state(self.host_figures.checkpoint_failure.is_some()),
            ),
            replication: if self.following.is_some() {
                "role:slave\r\n"
            } else {
                "role:master\r\nconnected_slaves:0\r\n"
            },
            keyspace: if counters == 0 {
                String::new()
            } else {
                format!("db0:keys={counters},expires=0,avg_ttl=0\r\n")
            },
        };
        resp_connection::info(sections, &facts, &self.stats())
    }
}

/// What stands behind the last colon of an address.
fn port_of(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(_, port)| port)
}

fn write_outcome(out: &mut Vec<u8>, outcome: Result<i64, ErrorCode>) -> ReplyKind {
    match outcome {
        Ok(value) => resp::write_int(out, value),
        Err(code) => resp::write_error(out, code, code.meaning()),
    }
    ReplyKind::of(outcome)
}

fn refuse_code(out: &mut Vec<u8>, code: ErrorCode) -> ReplyKind {
    write_outcome(out, Err(code))
}

/// A refusal of the command itself.
fn refuse(out: &mut Vec<u8>, error: &CommandError) -> ReplyKind {
    resp::write_command_error(out, error);
    ReplyKind::Neutral
}

fn write_value(out: &mut Vec<u8>, version: Version, value: Option<i64>) {
    match value {
        Some(value) => resp::write_bulk_int(out, value),
        None => resp::write_null(out, version),
    }
}

//! RESP: commands to operations, outcomes to replies, in request order, since clients tell replies apart by their order
//! alone. All of them are at the server's level. PING's and the like wait only where a reply before them does.

use super::connection::{Connection, RespState, Transaction};
use super::held_replies::{HeldReplies, ReplyKind};
use super::{LOOK_WORK, RUN_MAX, Shard, TURN_WORK_MAX};
use crate::error_code::ErrorCode;
use crate::fingerprint::Method;
use crate::wire::glob;
use crate::wire::request::Level;
use crate::wire::resp::{
    self, ClientCommand, Command, CommandError, Credentials, InTransaction, TableQuery, Version, words,
};
use crate::wire::scan::Scan;

/// Commands that one MULTI may queue ...
const TRANSACTION_COMMANDS_MAX: usize = 65_536;
/// ... and their bytes.
const TRANSACTION_BYTES_MAX: usize = 4 << 20;
/// A transaction has one turn of the loop, whatever it costs; behind this the rest of it is refused.
const TRANSACTION_WORK_MAX: usize = 16 * TURN_WORK_MAX;
/// What clients of Redis are told when they look at the version to find out what a server can do.
const REDIS_VERSION: &str = "7.0.0";

impl Shard {
    /// Executes every whole command of `bytes`; gives the number of bytes used up.
    pub(super) fn consume_resp(&mut self, connection: &mut Connection, state: &mut RespState, bytes: &[u8]) -> usize {
        let mut position = 0;
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            if connection.authenticated
                && state.transaction.is_none()
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
                Ok(Scan::Complete(length)) => {
                    self.execute_resp(connection, state, &rest[..length]);
                    position += length;
                }
                Ok(Scan::Incomplete) => break,
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
        self.answer_resp(&held, |shard, out| match resp::parse(frame) {
            Ok(command) if !connection.authenticated && !command.before_auth() => refuse(out, &words::NO_AUTH),
            Ok(command) => match (command.in_transaction(), &mut state.transaction) {
                (InTransaction::Queue, Some(transaction)) => queue(transaction, frame, out),
                (InTransaction::Refuse, Some(transaction)) => {
                    transaction.broken = true;
                    refuse(out, &words::NOT_IN_MULTI)
                }
                _ => shard.run_command(connection, state, &command, out),
            },
            Err(error) => {
                if let Some(transaction) = &mut state.transaction {
                    transaction.broken = true;
                }
                refuse(out, &error)
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
        match command {
            Command::Hello { version, credentials, name } => {
                if let Some(credentials) = credentials
                    && !self.sign_in(connection, credentials, out)
                {
                    return ReplyKind::Neutral;
                }
                if !connection.authenticated {
                    return refuse(out, &words::NO_AUTH);
                }
                if let Some(name) = name {
                    state.name = name.to_vec();
                }
                state.version = version.unwrap_or(state.version);
                self.write_resp_hello(connection, state, out);
            }
            Command::Auth(credentials) => {
                if self.settings.token.is_none() {
                    resp::write_command_error(out, &words::AUTH_NOT_SET);
                } else if self.sign_in(connection, credentials, out) {
                    resp::write_simple(out, "OK");
                }
            }
            Command::Quit => {
                resp::write_simple(out, "OK");
                connection.closing = true;
            }
            Command::Reset => {
                *state = RespState::default();
                connection.authenticated = self.settings.token.is_none();
                resp::write_simple(out, "RESET");
            }
            Command::Multi if state.transaction.is_some() => resp::write_command_error(out, &words::MULTI_NESTED),
            Command::Multi => {
                state.transaction = Some(Transaction::default());
                resp::write_simple(out, "OK");
            }
            Command::Discard => match state.transaction.take() {
                Some(_) => resp::write_simple(out, "OK"),
                None => resp::write_command_error(out, &words::DISCARD_WITHOUT_MULTI),
            },
            Command::Exec => match state.transaction.take() {
                Some(transaction) => return self.execute_transaction(connection, state, &transaction, out),
                None => resp::write_command_error(out, &words::EXEC_WITHOUT_MULTI),
            },
            Command::Watch if state.transaction.is_some() => resp::write_command_error(out, &words::WATCH_IN_MULTI),
            Command::Watch => resp::write_command_error(out, &words::WATCH_REFUSED),
            Command::Client(ClientCommand::SetName(name)) => {
                state.name = name.to_vec();
                resp::write_simple(out, "OK");
            }
            Command::Client(ClientCommand::GetName) if state.name.is_empty() => resp::write_null(out, state.version),
            Command::Client(ClientCommand::GetName) => resp::write_bulk(out, &state.name),
            Command::Client(ClientCommand::SetInfo) | Command::Select | Command::Unwatch => {
                resp::write_simple(out, "OK");
            }
            Command::Client(ClientCommand::Id) => resp::write_int(out, i64::try_from(connection.id).unwrap_or(0)),
            Command::Table(TableQuery::Rows) => resp::write_array_len(out, 0),
            Command::Table(TableQuery::Docs) => resp::write_map_len(out, state.version, 0),
            Command::Table(TableQuery::Count) => resp::write_int(out, Command::COUNT as i64),
            Command::Ping { message: None } => resp::write_simple(out, "PONG"),
            Command::Ping { message: Some(message) } | Command::Echo { message } => resp::write_bulk(out, message),
            Command::Info { sections } => resp::write_text(out, state.version, &self.info(sections)),
            Command::ConfigGet { patterns } => self.write_config(state.version, patterns, out),
            Command::Empty => {}
            _ => return self.run_counter_command(state.version, command, out),
        }
        ReplyKind::Neutral
    }

    fn run_counter_command(&mut self, version: Version, command: &Command<'_>, out: &mut Vec<u8>) -> ReplyKind {
        match command {
            Command::IncrBy { key, delta } => {
                let outcome = self.admit(1).and_then(|()| self.apply(Method::Incr, key, *delta));
                return write_outcome(out, outcome);
            }
            Command::Get { key } => write_value(out, version, self.value(key)),
            Command::MGet { keys } => {
                resp::write_array_len(out, keys.len());
                for key in keys {
                    write_value(out, version, self.value(key));
                }
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
            }
            Command::Set { key, value, get } => {
                match self.set(key, *value) {
                    Ok(before) if *get => write_value(out, version, before),
                    Ok(_) => resp::write_simple(out, "OK"),
                    Err(code) => return refuse_code(out, code),
                }
                return ReplyKind::Changed;
            }
            Command::Scan { cursor, count, pattern, other_type } => {
                let wanted = |key: &[u8]| !other_type && pattern.is_none_or(|pattern| glob::matches(pattern, key));
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
            }
            Command::FlushAll => {
                if let Err(code) = self.admit(0) {
                    return refuse_code(out, code);
                }
                self.work += LOOK_WORK * self.state.counters.len();
                self.state.clear_counters();
                resp::write_simple(out, "OK");
                return ReplyKind::Changed;
            }
            // `run_command` did all others.
            _ => return refuse_code(out, ErrorCode::Internal),
        }
        ReplyKind::Seen
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
        if transaction.broken {
            return refuse(out, &words::EXEC_ABORT);
        }
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

    /// Checks a token; writes the refusal.
    fn sign_in(&mut self, connection: &mut Connection, credentials: &Credentials<'_>, out: &mut Vec<u8>) -> bool {
        if self.token_matches(Some(credentials.password)) {
            connection.authenticated = true;
            return true;
        }
        self.statistics.refused_tokens += 1;
        resp::write_command_error(out, &words::WRONG_PASS);
        false
    }

    fn write_resp_hello(&self, connection: &Connection, state: &RespState, out: &mut Vec<u8>) {
        let texts = [
            ("server", "pycounter"),
            ("version", REDIS_VERSION),
            ("pycounter_version", self.settings.server_version.as_str()),
            ("mode", "standalone"),
            ("role", "master"),
        ];
        resp::write_map_len(out, state.version, texts.len() + 3);
        for (name, text) in texts {
            resp::write_bulk(out, name.as_bytes());
            resp::write_bulk(out, text.as_bytes());
        }
        resp::write_bulk(out, b"proto");
        resp::write_int(out, i64::from(state.version.number()));
        resp::write_bulk(out, b"id");
        resp::write_int(out, i64::try_from(connection.id).unwrap_or(0));
        resp::write_bulk(out, b"modules");
        resp::write_array_len(out, 0);
    }

    fn write_config(&self, version: Version, patterns: &[&[u8]], out: &mut Vec<u8>) {
        // What redis-benchmark and some clients look at: how this server persists, in Redis's terms.
        let settings = [("save", ""), ("appendonly", "yes"), ("appendfsync", self.fsync_policy()), ("databases", "1")];
        let wanted = |name: &str| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes()));
        let found: Vec<_> = settings.iter().filter(|(name, _)| wanted(name)).collect();
        resp::write_map_len(out, version, found.len());
        for (name, value) in found {
            resp::write_bulk(out, name.as_bytes());
            resp::write_bulk(out, value.as_bytes());
        }
    }

    const fn fsync_policy(&self) -> &'static str {
        match self.settings.level {
            Level::Durable => "always",
            Level::Applied => "everysec",
        }
    }

    /// INFO: sections that Redis's clients and dashboards know, then everything that `stats` says.
    fn info(&self, sections: &[&[u8]]) -> String {
        use super::statistics::Figure;
        use std::fmt::Write as _;
        let wanted = |name: &str| {
            sections.is_empty()
                || sections.iter().any(|section| {
                    section.eq_ignore_ascii_case(name.as_bytes())
                        || [&b"all"[..], b"default", b"everything"].iter().any(|all| section.eq_ignore_ascii_case(all))
                })
        };
        let mut text = String::new();
        let counters = self.state.counters.len();
        let blocks = [
            (
                "Server",
                format!(
                    "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nprocess_id:{}\r\nuptime_in_seconds:{}\r\n",
                    std::process::id(),
                    self.uptime_here.as_secs()
                ),
            ),
            ("Clients", format!("connected_clients:{}\r\n", self.connections.count)),
            ("Memory", format!("used_memory_dataset:{}\r\n", self.state.counters.memory_bytes())),
            (
                "Persistence",
                format!(
                    "loading:0\r\naof_enabled:1\r\naof_last_write_status:{}\r\naof_last_bgrewrite_status:{}\r\n",
                    if self.journal.is_failing() { "err" } else { "ok" },
                    if self.host_figures.checkpoint_failure.is_some() { "err" } else { "ok" }
                ),
            ),
            ("Replication", "role:master\r\nconnected_slaves:0\r\n".to_owned()),
            (
                "Keyspace",
                if counters == 0 { String::new() } else { format!("db0:keys={counters},expires=0,avg_ttl=0\r\n") },
            ),
        ];
        for (name, body) in blocks.iter().filter(|(name, _)| wanted(name)) {
            // Writing to a String can't fail.
            let _ = write!(text, "# {name}\r\n{body}\r\n");
        }
        if wanted("PyCounter") {
            text.push_str("# PyCounter\r\n");
            for (name, figure) in self.stats() {
                let _ = match figure {
                    Figure::Number(number) => write!(text, "pycounter_{name}:{number}\r\n"),
                    Figure::Text(word) => write!(text, "pycounter_{name}:{word}\r\n"),
                };
            }
        }
        text
    }
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

fn queue(transaction: &mut Transaction, frame: &[u8], out: &mut Vec<u8>) -> ReplyKind {
    if transaction.lengths.len() >= TRANSACTION_COMMANDS_MAX
        || transaction.frames.len() + frame.len() > TRANSACTION_BYTES_MAX
    {
        transaction.broken = true;
        resp::write_error(out, ErrorCode::TooLarge, "the transaction holds too many commands or bytes");
        return ReplyKind::Neutral;
    }
    transaction.frames.extend_from_slice(frame);
    transaction.lengths.push(frame.len());
    resp::write_simple(out, "QUEUED");
    ReplyKind::Neutral
}

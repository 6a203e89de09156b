//! A RESP connection apart from any counter: what it remembers, and the commands that are about itself. A shard and a
//! coordinator's router share it, so that a client can't tell one from the other by them.

mod clients;
mod info;
mod process_figures;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::token::token_matches;
use crate::wire::glob;
use crate::wire::request::Level;
use crate::wire::resp::{
    self, ClientCommand, ClientFilter, Command, CommandError, Credentials, FrameScanner, InTransaction, Version, words,
};
pub(crate) use clients::{Clients, Peer, write_clients, write_killed, write_killed_one};
pub(crate) use info::{InfoFacts, Rate, info};

/// Commands that one MULTI may queue ...
const TRANSACTION_COMMANDS_MAX: usize = 65_536;
/// ... and their bytes.
const TRANSACTION_BYTES_MAX: usize = 4 << 20;
/// What clients of Redis are told when they look at the version to find out what a server can do.
pub(crate) const REDIS_VERSION: &str = "7.0.0";

/// What RESP remembers of a connection.
#[derive(Debug, Default)]
pub struct RespState {
    /// Where the scan of an incomplete command stands.
    pub scanner: FrameScanner,
    /// 3 after HELLO 3.
    pub version: Version,
    /// After MULTI: the commands queued so far.
    pub transaction: Option<Transaction>,
    /// Answers to what was queued while the client read nothing.
    pub unanswered: Unanswered,
    /// By CLIENT SETNAME or HELLO SETNAME.
    pub name: Vec<u8>,
    /// By CLIENT SETINFO.
    pub library_name: Vec<u8>,
    /// By CLIENT SETINFO.
    pub library_version: Vec<u8>,
}

/// Commands between MULTI and EXEC.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Whole frames, one behind the other.
    pub frames: Vec<u8>,
    /// The length of each.
    pub lengths: Vec<usize>,
    /// A command was refused while queueing: EXEC will refuse all.
    pub broken: bool,
}

impl Transaction {
    pub(crate) fn memory_bytes(&self) -> usize {
        self.frames.capacity() + self.lengths.capacity() * size_of::<usize>()
    }

    /// As in Redis nothing is kept any more once it is broken, and what follows is answered as if it were: one error says
    /// enough, and a client that reads nothing before it has sent everything must not drown in them.
    /// As in Redis nothing is kept any more once it is broken, and what follows is answered as if it were: one error says
    /// enough. False: this is that one.
    fn queue(&mut self, frame: &[u8]) -> bool {
        if self.broken {
            return true;
        }
        if self.lengths.len() >= TRANSACTION_COMMANDS_MAX || self.frames.len() + frame.len() > TRANSACTION_BYTES_MAX {
            *self = Self { broken: true, ..Self::default() };
            return false;
        }
        self.frames.extend_from_slice(frame);
        self.lengths.push(frame.len());
        true
    }
}

/// Answers that are all the same, so a number is enough to keep them: a client may send a whole transaction, however long,
/// before it reads anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unanswered {
    queued: u64,
    /// The transaction became too large behind those.
    refused: bool,
    queued_after: u64,
}

impl Unanswered {
    /// Answers written at a time.
    const WRITTEN_MAX: u64 = 16_384;

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn push(&mut self, is_queued: bool) {
        match (is_queued, self.refused) {
            (false, _) => self.refused = true,
            (true, false) => self.queued += 1,
            (true, true) => self.queued_after += 1,
        }
    }

    /// Writes some.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>) {
        if self.queued == 0 && self.refused {
            refuse(out, &words::TRANSACTION_TOO_LARGE);
            *self = Self { queued: self.queued_after, ..Self::default() };
        }
        let count = self.queued.min(Self::WRITTEN_MAX);
        self.queued -= count;
        for _ in 0..count {
            resp::write_simple(out, "QUEUED");
        }
    }
}

/// Has this frame an answer that must not come before those that the client hasn't read?
pub(crate) fn must_be_read_first(state: &RespState, frame: &[u8]) -> bool {
    if state.unanswered.is_empty() {
        return false;
    }
    let is_queued = |request: resp::Request<'_>| request.row().in_transaction() == InTransaction::Queue;
    !(state.transaction.is_some() && resp::find_command(frame).ok().flatten().is_some_and(is_queued))
}

/// What commands about a connection tell of the server.
pub(crate) struct Server<'a> {
    pub(crate) tokens: &'a [Vec<u8>],
    pub(crate) version: &'a str,
    pub(crate) level: Level,
    /// Of its address, as text; empty where none is known.
    pub(crate) port: &'a str,
    pub(crate) connections_max: usize,
}

/// The connection, as these commands change it.
pub(crate) struct Client<'a> {
    pub(crate) id: u64,
    pub(crate) authenticated: &'a mut bool,
    pub(crate) closing: &'a mut bool,
    /// Wrong tokens, counted.
    pub(crate) refused_tokens: &'a mut u64,
}

/// What became of a command.
pub(crate) enum Ran<'a> {
    /// Its reply is written.
    Answered,
    /// EXEC: run these.
    Execute(Transaction),
    /// CLIENT INFO, LIST or KILL.
    Clients(Clients<'a>),
    /// It isn't about the connection.
    Other,
}

/// Understands a frame. `None`: it was refused or queued, and that is written. Otherwise the command is to be run now.
/// `is_unread`: the client reads nothing, so what can be kept is not written.
///
/// As in Redis, what is queued is looked at no further: wrong arguments fail alone, when the transaction runs.
pub(crate) fn take<'a>(
    state: &mut RespState,
    authenticated: bool,
    is_unread: bool,
    frame: &'a [u8],
    out: &mut Vec<u8>,
) -> Option<Command<'a>> {
    let refused = match resp::find_command(frame) {
        Ok(None) => return None,
        Ok(Some(request)) if !authenticated && !request.row().flags.has(resp::Flags::NO_AUTH) => words::NO_AUTH,
        Ok(Some(request)) => match (request.row().in_transaction(), &mut state.transaction) {
            (InTransaction::Queue, Some(transaction)) => {
                state.unanswered.push(transaction.queue(frame));
                while !is_unread && !state.unanswered.is_empty() {
                    state.unanswered.write(out);
                }
                return None;
            }
            _ => return request.parse().map_err(|error| refuse(out, &error)).ok(),
        },
        Err(error) => error,
    };
    if refused == words::EXEC_ARITY {
        state.transaction = None;
    } else if let Some(transaction) = &mut state.transaction {
        transaction.broken = true;
    }
    refuse(out, &refused);
    None
}

/// Runs a command if it is about the connection.
pub(crate) fn run<'a>(
    state: &mut RespState,
    client: &mut Client<'_>,
    server: &Server<'_>,
    command: &'a Command<'_>,
    out: &mut Vec<u8>,
) -> Ran<'a> {
    match command {
        Command::Hello { version, credentials, name } => {
            if let Some(credentials) = credentials
                && !sign_in(client, server, credentials, out)
            {
                return Ran::Answered;
            }
            if !*client.authenticated {
                refuse(out, &words::HELLO_NO_AUTH);
                return Ran::Answered;
            }
            if let Some(name) = name {
                state.name = name.to_vec();
            }
            state.version = version.unwrap_or(state.version);
            write_hello(state, client.id, server, out);
        }
        Command::Auth(credentials) => {
            // With a user's name it is what HELLO's AUTH is: without a token everybody is let in.
            if server.tokens.is_empty() && credentials.user.is_none() {
                refuse(out, &words::AUTH_NOT_SET);
            } else if sign_in(client, server, credentials, out) {
                resp::write_simple(out, "OK");
            }
        }
        Command::Quit => {
            resp::write_simple(out, "OK");
            *client.closing = true;
        }
        Command::Reset => {
            *state = RespState::default();
            *client.authenticated = server.tokens.is_empty();
            resp::write_simple(out, "RESET");
        }
        Command::Multi if state.transaction.is_some() => refuse(out, &words::MULTI_NESTED),
        Command::Multi => {
            state.transaction = Some(Transaction::default());
            resp::write_simple(out, "OK");
        }
        Command::Discard => match state.transaction.take() {
            Some(_) => resp::write_simple(out, "OK"),
            None => refuse(out, &words::DISCARD_WITHOUT_MULTI),
        },
        Command::Exec => match state.transaction.take() {
            Some(transaction) if transaction.broken => refuse(out, &words::EXEC_ABORT),
            Some(transaction) => return Ran::Execute(transaction),
            None => refuse(out, &words::EXEC_WITHOUT_MULTI),
        },
        Command::Watch if state.transaction.is_some() => refuse(out, &words::WATCH_IN_MULTI),
        Command::Watch => refuse(out, &words::WATCH_REFUSED),
        Command::Client(command) => return run_client(state, client, command, out),
        Command::Select | Command::Unwatch => resp::write_simple(out, "OK"),
        Command::Table(query) => resp::write_table(out, state.version, query),
        Command::Help(row) => resp::write_help(out, row),
        Command::Time => write_time(out),
        Command::Role => {
            resp::write_array_len(out, 3);
            resp::write_bulk(out, b"master");
            resp::write_int(out, 0);
            resp::write_array_len(out, 0);
        }
        Command::Wait => resp::write_int(out, 0),
        Command::Ping { message: None } => resp::write_simple(out, "PONG"),
        Command::Ping { message: Some(message) } | Command::Echo { message } => resp::write_bulk(out, message),
        Command::ConfigGet { patterns } => write_config(state.version, patterns, server, out),
        Command::Empty => {}
        _ => return Ran::Other,
    }
    Ran::Answered
}

fn run_client<'a>(
    state: &mut RespState,
    client: &Client<'_>,
    command: &'a ClientCommand<'_>,
    out: &mut Vec<u8>,
) -> Ran<'a> {
    match command {
        ClientCommand::SetName(name) => {
            state.name = name.to_vec();
            resp::write_simple(out, "OK");
        }
        ClientCommand::SetLibraryName(name) => {
            state.library_name = name.to_vec();
            resp::write_simple(out, "OK");
        }
        ClientCommand::SetLibraryVersion(version) => {
            state.library_version = version.to_vec();
            resp::write_simple(out, "OK");
        }
        ClientCommand::GetName if state.name.is_empty() => resp::write_null(out, state.version),
        ClientCommand::GetName => resp::write_bulk(out, &state.name),
        ClientCommand::Id => resp::write_int(out, i64::try_from(client.id).unwrap_or(0)),
        ClientCommand::NoEffect => resp::write_simple(out, "OK"),
        ClientCommand::Info => {
            let filter = ClientFilter { ids: Some(vec![client.id]), ..ClientFilter::default() };
            return Ran::Clients(Clients::List(filter));
        }
        ClientCommand::List(filter) => return Ran::Clients(Clients::List(filter.clone())),
        ClientCommand::Kill(filter) => return Ran::Clients(Clients::Kill(filter.clone())),
        ClientCommand::KillOne(address) => {
            let filter = ClientFilter { address: Some(address), ..ClientFilter::default() };
            return Ran::Clients(Clients::KillOne(filter));
        }
    }
    Ran::Answered
}

fn write_time(out: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    resp::write_array_len(out, 2);
    resp::write_bulk(out, now.as_secs().to_string().as_bytes());
    resp::write_bulk(out, now.subsec_micros().to_string().as_bytes());
}

/// Seconds since 1970.
pub(crate) fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A refusal of the command itself.
fn refuse(out: &mut Vec<u8>, error: &CommandError) {
    resp::write_command_error(out, error);
}

/// Checks a token; writes the refusal.
fn sign_in(client: &mut Client<'_>, server: &Server<'_>, credentials: &Credentials<'_>, out: &mut Vec<u8>) -> bool {
    if token_matches(server.tokens, Some(credentials.password)) {
        *client.authenticated = true;
        return true;
    }
    *client.refused_tokens += 1;
    refuse(out, &words::WRONG_PASS);
    false
}

fn write_hello(state: &RespState, id: u64, server: &Server<'_>, out: &mut Vec<u8>) {
    let texts = [
        ("server", "pycounter"),
        ("version", REDIS_VERSION),
        ("pycounter_version", server.version),
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
    resp::write_int(out, i64::try_from(id).unwrap_or(0));
    resp::write_bulk(out, b"modules");
    resp::write_array_len(out, 0);
}

/// What benchmarks, dashboards and some clients look at, in Redis's terms.
fn write_config(version: Version, patterns: &[&[u8]], server: &Server<'_>, out: &mut Vec<u8>) {
    let fsync_policy = match server.level {
        Level::Durable => "always",
        Level::Applied => "everysec",
    };
    let clients_max = server.connections_max.to_string();
    let settings = [
        ("save", ""),
        ("appendonly", "yes"),
        ("appendfsync", fsync_policy),
        ("databases", "1"),
        ("maxclients", &clients_max),
        ("maxmemory", "0"),
        ("maxmemory-policy", "noeviction"),
        ("port", server.port),
        ("replica-read-only", "yes"),
        ("slave-read-only", "yes"),
        ("timeout", "0"),
    ];
    let mut found: Vec<(&[u8], &str)> = Vec::new();
    for (name, value) in settings {
        // As in Redis a name is answered as it was sent, and what a pattern finds as it is.
        let shown = patterns.iter().find_map(|pattern| {
            if pattern.eq_ignore_ascii_case(name.as_bytes()) {
                return Some(*pattern);
            }
            glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()).then_some(name.as_bytes())
        });
        found.extend(shown.map(|shown| (shown, value)));
    }
    resp::write_map_len(out, version, found.len());
    for (name, value) in found {
        resp::write_bulk(out, name);
        resp::write_bulk(out, value.as_bytes());
    }
}

/// What MEMORY USAGE answers: the key, and about what a counter takes beside it (`docs/performance.md`).
pub(crate) fn counter_bytes(key: &[u8]) -> i64 {
    const BESIDE_THE_KEY_BYTES: usize = 40;
    (BESIDE_THE_KEY_BYTES + key.len()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const INCR: &[u8] = b"*2\r\n$4\r\nINCR\r\n$1\r\na\r\n";

    #[test]
    fn answers_that_nobody_reads_are_a_number_and_keep_their_order() {
        let mut state = RespState { transaction: Some(Transaction::default()), ..RespState::default() };
        let (mut out, commands) = (Vec::new(), TRANSACTION_COMMANDS_MAX + 5);
        for _ in 0..commands {
            assert!(!must_be_read_first(&state, INCR));
            assert_eq!(take(&mut state, true, true, INCR, &mut out), None);
        }
        assert_eq!(out, b"");
        for other in [&b"EXEC\r\n"[..], b"FOO\r\n", b"INCR\r\n", b"MULTI\r\n"] {
            assert!(must_be_read_first(&state, other), "{}", other.escape_ascii());
        }
        while !state.unanswered.is_empty() {
            let before = out.len();
            state.unanswered.write(&mut out);
            assert!(out.len() > before && out.len() - before < 200_000);
        }
        let replies: Vec<_> = out.split_inclusive(|&byte| byte == b'\n').collect();
        assert_eq!(replies.len(), commands);
        let refused = |reply: &[u8]| reply.starts_with(b"-ERR a transaction holds 65536 commands");
        assert_eq!(replies.iter().position(|reply| refused(reply)), Some(TRANSACTION_COMMANDS_MAX));
        assert_eq!(replies.iter().filter(|reply| **reply == b"+QUEUED\r\n").count(), commands - 1);
        assert!(!must_be_read_first(&state, b"EXEC\r\n"));
    }
}

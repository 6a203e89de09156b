//! A RESP connection apart from any counter: what it remembers, and the commands that are about itself. A shard and a
//! coordinator's router share it, so that a client can't tell one from the other by them.

use crate::error_code::ErrorCode;
use crate::token::token_matches;
use crate::wire::glob;
use crate::wire::request::Level;
use crate::wire::resp::{
    self, ClientCommand, Command, CommandError, Credentials, FrameScanner, InTransaction, TableQuery, Version, words,
};

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
    /// By CLIENT SETNAME or HELLO SETNAME.
    pub name: Vec<u8>,
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

    fn queue(&mut self, frame: &[u8], out: &mut Vec<u8>) {
        if self.lengths.len() >= TRANSACTION_COMMANDS_MAX || self.frames.len() + frame.len() > TRANSACTION_BYTES_MAX {
            self.broken = true;
            return resp::write_error(out, ErrorCode::TooLarge, "the transaction holds too many commands or bytes");
        }
        self.frames.extend_from_slice(frame);
        self.lengths.push(frame.len());
        resp::write_simple(out, "QUEUED");
    }
}

/// What commands about a connection tell of the server.
pub(crate) struct Server<'a> {
    pub(crate) token: Option<&'a [u8]>,
    pub(crate) version: &'a str,
    pub(crate) level: Level,
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
pub(crate) enum Ran {
    /// Its reply is written.
    Answered,
    /// EXEC: run these.
    Execute(Transaction),
    /// It isn't about the connection.
    Other,
}

/// Understands a frame. `None`: it was refused or queued, and that is written. Otherwise the command is to be run now.
pub(crate) fn take<'a>(
    state: &mut RespState,
    authenticated: bool,
    frame: &'a [u8],
    out: &mut Vec<u8>,
) -> Option<Command<'a>> {
    match resp::parse(frame) {
        Ok(command) if !authenticated && !command.before_auth() => refuse(out, &words::NO_AUTH),
        Ok(command) => match (command.in_transaction(), &mut state.transaction) {
            (InTransaction::Queue, Some(transaction)) => transaction.queue(frame, out),
            (InTransaction::Refuse, Some(transaction)) => {
                transaction.broken = true;
                refuse(out, &words::NOT_IN_MULTI);
            }
            _ => return Some(command),
        },
        Err(error) => {
            if let Some(transaction) = &mut state.transaction {
                transaction.broken = true;
            }
            refuse(out, &error);
        }
    }
    None
}

/// Runs a command if it is about the connection.
pub(crate) fn run(
    state: &mut RespState,
    client: &mut Client<'_>,
    server: &Server<'_>,
    command: &Command<'_>,
    out: &mut Vec<u8>,
) -> Ran {
    match command {
        Command::Hello { version, credentials, name } => {
            if let Some(credentials) = credentials
                && !sign_in(client, server, credentials, out)
            {
                return Ran::Answered;
            }
            if !*client.authenticated {
                refuse(out, &words::NO_AUTH);
                return Ran::Answered;
            }
            if let Some(name) = name {
                state.name = name.to_vec();
            }
            state.version = version.unwrap_or(state.version);
            write_hello(state, client.id, server, out);
        }
        Command::Auth(credentials) => {
            if server.token.is_none() {
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
            *client.authenticated = server.token.is_none();
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
        Command::Client(ClientCommand::SetName(name)) => {
            state.name = name.to_vec();
            resp::write_simple(out, "OK");
        }
        Command::Client(ClientCommand::GetName) if state.name.is_empty() => resp::write_null(out, state.version),
        Command::Client(ClientCommand::GetName) => resp::write_bulk(out, &state.name),
        Command::Client(ClientCommand::SetInfo) | Command::Select | Command::Unwatch => resp::write_simple(out, "OK"),
        Command::Client(ClientCommand::Id) => resp::write_int(out, i64::try_from(client.id).unwrap_or(0)),
        Command::Table(TableQuery::Rows) => resp::write_array_len(out, 0),
        Command::Table(TableQuery::Docs) => resp::write_map_len(out, state.version, 0),
        Command::Table(TableQuery::Count) => resp::write_int(out, Command::COUNT as i64),
        Command::Ping { message: None } => resp::write_simple(out, "PONG"),
        Command::Ping { message: Some(message) } | Command::Echo { message } => resp::write_bulk(out, message),
        Command::ConfigGet { patterns } => write_config(state.version, patterns, server.level, out),
        Command::Empty => {}
        _ => return Ran::Other,
    }
    Ran::Answered
}

/// A refusal of the command itself.
fn refuse(out: &mut Vec<u8>, error: &CommandError) {
    resp::write_command_error(out, error);
}

/// Checks a token; writes the refusal.
fn sign_in(client: &mut Client<'_>, server: &Server<'_>, credentials: &Credentials<'_>, out: &mut Vec<u8>) -> bool {
    if token_matches(server.token, Some(credentials.password)) {
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

fn write_config(version: Version, patterns: &[&[u8]], level: Level, out: &mut Vec<u8>) {
    // What redis-benchmark and some clients look at: how this server persists, in Redis's terms.
    let fsync_policy = match level {
        Level::Durable => "always",
        Level::Applied => "everysec",
    };
    let settings = [("save", ""), ("appendonly", "yes"), ("appendfsync", fsync_policy), ("databases", "1")];
    let wanted = |name: &str| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes()));
    let found: Vec<_> = settings.iter().filter(|(name, _)| wanted(name)).collect();
    resp::write_map_len(out, version, found.len());
    for (name, value) in found {
        resp::write_bulk(out, name.as_bytes());
        resp::write_bulk(out, value.as_bytes());
    }
}

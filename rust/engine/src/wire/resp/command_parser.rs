//! Understands a whole request: which command, which arguments, or what is wrong with it.

use super::arguments::Arguments;
use super::client_parser;
use super::command::{ClientCommand, Command, Credentials, SetIf, TableQuery};
use super::command_error::{CommandError, words};
use super::command_table::{CommandRow, Kind, absence};
use super::integer::{parse_i64, parse_u64};
use super::reply_writer::Version;
use crate::error_code::ErrorCode;
use crate::limits::{HELLO_TEXT_BYTES_MAX, PATTERN_BYTES_MAX, REQUEST_ITEMS_MAX};
use crate::wire::request::key_is_valid;

/// Redis's default.
const SCAN_COUNT_DEFAULT: usize = 10;
/// How much of the arguments an error about an unknown command quotes, as in Redis.
const QUOTED_BYTES_MAX: usize = 128;

/// A whole request whose command is known and has as many arguments as it takes. Whether they are right is looked at
/// when it runs: between MULTI and EXEC that is later.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    row: &'static CommandRow,
    /// HELP has no row of its own beside its command's.
    parent: &'static CommandRow,
    /// Behind the name, and behind the subcommand's.
    arguments: Arguments<'a>,
}

impl<'a> Request<'a> {
    /// The row of the command, or of the subcommand.
    #[must_use]
    pub const fn row(&self) -> &'static CommandRow {
        self.row
    }

    /// Understands the arguments.
    ///
    /// # Errors
    /// What to answer instead of carrying it out.
    pub fn parse(mut self) -> Result<Command<'a>, CommandError> {
        let count = self.arguments.count_left();
        parse_command(self.row, self.parent, &mut self.arguments, count)
    }
}

/// Finds the command of one whole request, as measured by a scanner. `None`: there is none in it.
///
/// # Errors
/// There is no such command, or it takes another number of arguments: Redis doesn't queue such a request.
pub fn find_command(frame: &[u8]) -> Result<Option<Request<'_>>, CommandError> {
    let mut arguments = Arguments::of_frame(frame);
    let Some(sent) = arguments.next() else { return Ok(None) };
    let Some(parent) = CommandRow::find(sent) else {
        return Err(absence(sent).unwrap_or_else(|| unknown_command(sent, arguments)));
    };
    let mut row = parent;
    if !parent.subcommands.is_empty()
        && let Some(sent) = arguments.clone().next()
    {
        row = parent.find_subcommand(sent).ok_or_else(|| unknown_subcommand(parent.name, sent))?;
        arguments.next();
    }
    let count = arguments.count_left();
    if !row.takes(count + 1 + usize::from(row.name != parent.name)) {
        return Err(wrong_arity(row.name));
    }
    if count > REQUEST_ITEMS_MAX {
        return Err(CommandError::new(ErrorCode::TooLarge, "ERR a request carries at most 65536 items"));
    }
    Ok(Some(Request { row, parent, arguments }))
}

/// Understands one whole request. Any other bytes get an error, never a panic.
///
/// # Errors
/// What to answer instead of carrying it out. The connection stays open.
pub fn parse(frame: &[u8]) -> Result<Command<'_>, CommandError> {
    find_command(frame)?.map_or(Ok(Command::Empty), Request::parse)
}

fn parse_command<'a>(
    row: &'static CommandRow,
    parent: &'static CommandRow,
    arguments: &mut Arguments<'a>,
    count: usize,
) -> Result<Command<'a>, CommandError> {
    Ok(match row.kind {
        Kind::Incr => Command::IncrBy { key: key(arguments)?, delta: 1 },
        Kind::Decr => Command::IncrBy { key: key(arguments)?, delta: -1 },
        Kind::IncrBy => Command::IncrBy { key: key(arguments)?, delta: delta(arguments)? },
        Kind::DecrBy => Command::IncrBy {
            key: key(arguments)?,
            delta: delta(arguments)?.checked_neg().ok_or(words::DECREMENT_OVERFLOW)?,
        },
        Kind::Get => Command::Get { key: key(arguments)? },
        Kind::MGet => Command::MGet { keys: keys(arguments, count)? },
        Kind::GetDel => Command::GetDel { key: key(arguments)? },
        Kind::GetSet => Command::Set { key: key(arguments)?, value: value(arguments)?, get: true, only_if: None },
        Kind::Del => Command::Del { keys: keys(arguments, count)? },
        Kind::Exists => Command::Exists { keys: keys(arguments, count)? },
        Kind::Set => set(arguments)?,
        Kind::SetNx => Command::SetNx { key: key(arguments)?, value: value(arguments)? },
        Kind::MSet => mset(arguments, count)?,
        Kind::Strlen => Command::Strlen { key: key(arguments)? },
        Kind::Scan => scan(arguments)?,
        Kind::Keys => Command::Keys { pattern: pattern(required(arguments)?)? },
        Kind::RandomKey => Command::RandomKey,
        Kind::DbSize => Command::DbSize,
        Kind::Type => Command::Type { key: key(arguments)? },
        Kind::ObjectEncoding => Command::Encoding { key: key(arguments)? },
        Kind::MemoryUsage => memory_usage(arguments)?,
        Kind::LastSave => Command::LastSave,
        Kind::Hello => hello(arguments)?,
        Kind::Auth => auth(arguments, count)?,
        Kind::Ping if count > 1 => return Err(wrong_arity(row.name)),
        Kind::Ping => Command::Ping { message: arguments.next() },
        Kind::Echo => Command::Echo { message: required(arguments)? },
        Kind::Select => match required(arguments)? {
            b"0" => Command::Select,
            other if parse_i64(other).is_some() => return Err(words::DB_INDEX),
            _ => return Err(words::NOT_AN_INTEGER),
        },
        Kind::Info => Command::Info { sections: arguments.collect() },
        Kind::ConfigGet => Command::ConfigGet { patterns: arguments.map(pattern).collect::<Result<_, _>>()? },
        Kind::Time => Command::Time,
        Kind::Role => Command::Role,
        Kind::Wait => wait(arguments)?,
        Kind::FlushAll => match (arguments.next(), count) {
            (None, _) => Command::FlushAll,
            (Some(mode), 1) if mode.eq_ignore_ascii_case(b"sync") || mode.eq_ignore_ascii_case(b"async") => {
                Command::FlushAll
            }
            _ => return Err(words::SYNTAX),
        },
        Kind::Quit => Command::Quit,
        Kind::Reset => Command::Reset,
        Kind::Multi => Command::Multi,
        Kind::Exec => Command::Exec,
        Kind::Discard => Command::Discard,
        Kind::Watch => Command::Watch,
        Kind::Unwatch => Command::Unwatch,
        Kind::Help => Command::Help(parent),
        Kind::Command => Command::Table(TableQuery::All),
        of_the_connection => subcommand(of_the_connection, arguments)?,
    })
}

/// A subcommand of CLIENT or COMMAND.
fn subcommand<'a>(kind: Kind, arguments: &mut Arguments<'a>) -> Result<Command<'a>, CommandError> {
    Ok(match kind {
        Kind::CommandCount => Command::Table(TableQuery::Count),
        Kind::CommandDocs => Command::Table(TableQuery::Docs(arguments.collect())),
        Kind::CommandInfo => match arguments.collect::<Vec<_>>() {
            none if none.is_empty() => Command::Table(TableQuery::All),
            names => Command::Table(TableQuery::Rows(names)),
        },
        Kind::CommandGetKeys => Command::Table(TableQuery::GetKeys(arguments.collect())),
        Kind::CommandList => Command::Table(command_list(arguments)?),
        Kind::ClientGetName => Command::Client(ClientCommand::GetName),
        Kind::ClientId => Command::Client(ClientCommand::Id),
        Kind::ClientInfo => Command::Client(ClientCommand::Info),
        Kind::ClientKill => Command::Client(client_parser::kill(arguments)?),
        Kind::ClientList => Command::Client(client_parser::list(arguments)?),
        Kind::ClientNoEvict | Kind::ClientNoTouch => Command::Client(client_parser::on_or_off(required(arguments)?)?),
        Kind::ClientSetInfo => Command::Client(client_parser::set_info(required(arguments)?, text(arguments)?)?),
        Kind::ClientSetName => Command::Client(ClientCommand::SetName(client_name(arguments)?)),
        // What has subcommands and came without one: its arity refused it.
        _ => return Err(words::SYNTAX),
    })
}

fn wrong_arity(name: &str) -> CommandError {
    if name == "exec" {
        return words::EXEC_ARITY;
    }
    CommandError::owned(ErrorCode::BadRequest, format!("ERR wrong number of arguments for '{name}' command"))
}

fn unknown_command(name: &[u8], arguments: Arguments<'_>) -> CommandError {
    let quoted = |bytes: &[u8], bytes_max: usize| bytes.get(..bytes_max).unwrap_or(bytes).escape_ascii().to_string();
    let mut line = format!("ERR unknown command '{}', with args beginning with:", quoted(name, QUOTED_BYTES_MAX));
    let mut left = QUOTED_BYTES_MAX;
    for argument in arguments {
        if left == 0 {
            break;
        }
        line.push_str(&format!(" '{}'", quoted(argument, left)));
        left = left.saturating_sub(argument.len().max(1));
    }
    CommandError::owned(ErrorCode::UnknownMethod, line)
}

fn unknown_subcommand(command: &str, sent: &[u8]) -> CommandError {
    let sent = sent.get(..QUOTED_BYTES_MAX).unwrap_or(sent).escape_ascii();
    let command = command.to_ascii_uppercase();
    CommandError::owned(ErrorCode::UnknownMethod, format!("ERR unknown subcommand '{sent}'. Try {command} HELP."))
}

/// An argument that the arity promised. Only bytes that no scanner measured can lack it.
fn required<'a>(arguments: &mut Arguments<'a>) -> Result<&'a [u8], CommandError> {
    arguments.next().ok_or(words::SYNTAX)
}

fn key<'a>(arguments: &mut Arguments<'a>) -> Result<&'a [u8], CommandError> {
    let key = required(arguments)?;
    if key_is_valid(key) { Ok(key) } else { Err(words::BAD_KEY) }
}

/// `count` is at most `REQUEST_ITEMS_MAX`, and a scanner saw that so many arguments are there.
fn keys<'a>(arguments: &mut Arguments<'a>, count: usize) -> Result<Vec<&'a [u8]>, CommandError> {
    let mut keys = Vec::with_capacity(count);
    for _ in 0..count {
        keys.push(key(arguments)?);
    }
    Ok(keys)
}

fn delta(arguments: &mut Arguments<'_>) -> Result<i64, CommandError> {
    parse_i64(required(arguments)?).ok_or(words::BAD_DELTA)
}

fn value(arguments: &mut Arguments<'_>) -> Result<i64, CommandError> {
    parse_i64(required(arguments)?).ok_or(words::NOT_A_COUNTER)
}

fn pattern(pattern: &[u8]) -> Result<&[u8], CommandError> {
    if pattern.len() > PATTERN_BYTES_MAX { Err(words::PATTERN_TOO_LONG) } else { Ok(pattern) }
}

fn text<'a>(arguments: &mut Arguments<'a>) -> Result<&'a [u8], CommandError> {
    let text = arguments.next().ok_or(words::SYNTAX)?;
    if text.len() > HELLO_TEXT_BYTES_MAX { Err(words::TEXT_TOO_LONG) } else { Ok(text) }
}

fn client_name<'a>(arguments: &mut Arguments<'a>) -> Result<&'a [u8], CommandError> {
    let name = text(arguments)?;
    if name.iter().all(u8::is_ascii_graphic) { Ok(name) } else { Err(words::CLIENT_NAME) }
}

fn set<'a>(arguments: &mut Arguments<'a>) -> Result<Command<'a>, CommandError> {
    let (key, value) = (key(arguments)?, value(arguments)?);
    let (mut get, mut only_if) = (false, None);
    for option in arguments {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        if is(b"get") {
            get = true;
        } else if is(b"nx") && only_if != Some(SetIf::Exists) {
            only_if = Some(SetIf::Missing);
        } else if is(b"xx") && only_if != Some(SetIf::Missing) {
            only_if = Some(SetIf::Exists);
        } else if [&b"ex"[..], b"px", b"exat", b"pxat"].iter().any(|name| is(name)) {
            return Err(words::SET_EXPIRY);
        // Nothing expires, so there is nothing that could be lost.
        } else if !is(b"keepttl") {
            return Err(words::SYNTAX);
        }
    }
    Ok(Command::Set { key, value, get, only_if })
}

fn mset<'a>(arguments: &mut Arguments<'a>, count: usize) -> Result<Command<'a>, CommandError> {
    if !count.is_multiple_of(2) {
        return Err(wrong_arity("mset"));
    }
    let mut pairs = Vec::with_capacity(count / 2);
    for _ in 0..count / 2 {
        pairs.push((key(arguments)?, value(arguments)?));
    }
    Ok(Command::MSet { pairs })
}

fn memory_usage<'a>(arguments: &mut Arguments<'a>) -> Result<Command<'a>, CommandError> {
    let key = key(arguments)?;
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or(words::SYNTAX)?;
        if !option.eq_ignore_ascii_case(b"samples") {
            return Err(words::SYNTAX);
        }
        if parse_i64(value).ok_or(words::NOT_AN_INTEGER)? < 0 {
            return Err(words::SYNTAX);
        }
    }
    Ok(Command::MemoryUsage { key })
}

fn wait<'a>(arguments: &mut Arguments<'a>) -> Result<Command<'a>, CommandError> {
    parse_i64(required(arguments)?).ok_or(words::NOT_AN_INTEGER)?;
    match parse_i64(required(arguments)?) {
        None => Err(words::TIMEOUT_NOT_AN_INTEGER),
        Some(..0) => Err(words::TIMEOUT_NEGATIVE),
        Some(_) => Ok(Command::Wait),
    }
}

fn scan<'a>(arguments: &mut Arguments<'a>) -> Result<Command<'a>, CommandError> {
    let cursor = parse_u64(required(arguments)?).ok_or(words::INVALID_CURSOR)?;
    let (mut count, mut wanted, mut other_type) = (SCAN_COUNT_DEFAULT, None, false);
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or(words::SYNTAX)?;
        if option.eq_ignore_ascii_case(b"count") {
            let about = parse_i64(value).ok_or(words::NOT_AN_INTEGER)?;
            let about = usize::try_from(about).ok().filter(|&about| about > 0).ok_or(words::SYNTAX)?;
            // A hint, not a promise: more than a page may hold is a page.
            count = about.min(REQUEST_ITEMS_MAX);
        } else if option.eq_ignore_ascii_case(b"match") {
            wanted = Some(pattern(value)?);
        } else if option.eq_ignore_ascii_case(b"type") {
            other_type = !value.eq_ignore_ascii_case(b"string");
        } else {
            return Err(words::SYNTAX);
        }
    }
    Ok(Command::Scan { cursor, count, pattern: wanted, other_type })
}

fn hello<'a>(arguments: &mut Arguments<'a>) -> Result<Command<'a>, CommandError> {
    let version = match arguments.next() {
        None => None,
        Some(b"2") => Some(Version::Resp2),
        Some(b"3") => Some(Version::Resp3),
        Some(other) => {
            return Err(if parse_i64(other).is_some() { words::NO_PROTO } else { words::PROTO_NOT_AN_INTEGER });
        }
    };
    let (mut credentials, mut name) = (None, None);
    while let Some(option) = arguments.next() {
        let left = arguments.count_left();
        if option.eq_ignore_ascii_case(b"auth") && left >= 2 {
            credentials = Some(Credentials { user: Some(text(arguments)?), password: text(arguments)? });
        } else if option.eq_ignore_ascii_case(b"setname") && left >= 1 {
            name = Some(client_name(arguments)?);
        } else {
            let shown = option.get(..QUOTED_BYTES_MAX).unwrap_or(option).escape_ascii();
            return Err(CommandError::owned(
                ErrorCode::BadRequest,
                format!("ERR Syntax error in HELLO option '{shown}'"),
            ));
        }
    }
    Ok(Command::Hello { version, credentials, name })
}

fn auth<'a>(arguments: &mut Arguments<'a>, count: usize) -> Result<Command<'a>, CommandError> {
    let user = match count {
        1 => None,
        2 => Some(text(arguments)?),
        _ => return Err(words::SYNTAX),
    };
    Ok(Command::Auth(Credentials { user, password: text(arguments)? }))
}

fn command_list<'a>(arguments: &mut Arguments<'a>) -> Result<TableQuery<'a>, CommandError> {
    let sent: Vec<&[u8]> = arguments.collect();
    let (kind, value) = match sent[..] {
        [] => return Ok(TableQuery::List),
        [filter, kind, value] if filter.eq_ignore_ascii_case(b"filterby") => (kind, value),
        _ => return Err(words::SYNTAX),
    };
    let is = |name: &[u8]| kind.eq_ignore_ascii_case(name);
    if is(b"module") {
        Ok(TableQuery::ListModule)
    } else if is(b"aclcat") {
        Ok(TableQuery::ListCategory(value))
    } else if is(b"pattern") {
        Ok(TableQuery::ListPattern(pattern(value)?))
    } else {
        Err(words::SYNTAX)
    }
}

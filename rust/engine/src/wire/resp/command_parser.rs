//! Understands a whole request: which command, which arguments, or what is wrong with it.

use super::arguments::Arguments;
use super::command::{ClientCommand, Command, Credentials, TableQuery};
use super::command_error::{CommandError, words};
use super::integer::{parse_i64, parse_u64};
use super::reply_writer::Version;
use crate::error_code::ErrorCode;
use crate::limits::{HELLO_TEXT_BYTES_MAX, PATTERN_BYTES_MAX, REQUEST_ITEMS_MAX};
use crate::wire::request::key_is_valid;

/// Redis's default.
const SCAN_COUNT_DEFAULT: usize = 10;
/// How much of the arguments an error about an unknown command quotes, as in Redis.
const QUOTED_BYTES_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Incr,
    IncrBy,
    Decr,
    DecrBy,
    Get,
    MGet,
    GetDel,
    Del,
    Exists,
    Set,
    Scan,
    DbSize,
    Type,
    Ping,
    Echo,
    Hello,
    Auth,
    Select,
    Client,
    Command,
    Info,
    Config,
    FlushAll,
    Quit,
    Reset,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
}

/// Name, fewest arguments, most arguments (without the name).
const COMMANDS: &[(&str, Name, usize, usize)] = &[
    ("incr", Name::Incr, 1, 1),
    ("incrby", Name::IncrBy, 2, 2),
    ("get", Name::Get, 1, 1),
    ("ping", Name::Ping, 0, 1),
    ("decr", Name::Decr, 1, 1),
    ("decrby", Name::DecrBy, 2, 2),
    ("mget", Name::MGet, 1, REQUEST_ITEMS_MAX),
    ("multi", Name::Multi, 0, 0),
    ("exec", Name::Exec, 0, 0),
    ("set", Name::Set, 2, usize::MAX),
    ("del", Name::Del, 1, REQUEST_ITEMS_MAX),
    ("getdel", Name::GetDel, 1, 1),
    ("exists", Name::Exists, 1, REQUEST_ITEMS_MAX),
    ("scan", Name::Scan, 1, usize::MAX),
    ("dbsize", Name::DbSize, 0, 0),
    ("type", Name::Type, 1, 1),
    ("echo", Name::Echo, 1, 1),
    ("hello", Name::Hello, 0, usize::MAX),
    ("auth", Name::Auth, 1, usize::MAX),
    ("select", Name::Select, 1, 1),
    ("client", Name::Client, 1, usize::MAX),
    ("command", Name::Command, 0, usize::MAX),
    ("info", Name::Info, 0, usize::MAX),
    ("config", Name::Config, 1, usize::MAX),
    ("flushall", Name::FlushAll, 0, usize::MAX),
    ("flushdb", Name::FlushAll, 0, usize::MAX),
    ("quit", Name::Quit, 0, usize::MAX),
    ("reset", Name::Reset, 0, 0),
    ("discard", Name::Discard, 0, 0),
    ("watch", Name::Watch, 1, usize::MAX),
    ("unwatch", Name::Unwatch, 0, 0),
];

impl Command<'_> {
    /// How many commands there are: what `COMMAND COUNT` answers.
    pub const COUNT: usize = COMMANDS.len();
}

/// Understands one whole request, as measured by a scanner. Any other bytes get an error, never a panic.
///
/// # Errors
/// What to answer instead of carrying it out. The connection stays open.
pub fn parse(frame: &[u8]) -> Result<Command<'_>, CommandError> {
    let mut arguments = Arguments::of_frame(frame);
    let Some(sent) = arguments.next() else { return Ok(Command::Empty) };
    let count = arguments.count_left();
    let Some(&(name, command, min, max)) = COMMANDS.iter().find(|row| row.0.as_bytes().eq_ignore_ascii_case(sent))
    else {
        return Err(unknown_command(sent, arguments));
    };
    if count < min || (count > max && max < REQUEST_ITEMS_MAX) {
        return Err(wrong_arity(name));
    }
    if count > REQUEST_ITEMS_MAX {
        return Err(CommandError::new(ErrorCode::TooLarge, "ERR a request carries at most 65536 items"));
    }
    parse_command(command, &mut arguments, count)
}

fn parse_command<'a>(name: Name, arguments: &mut Arguments<'a>, count: usize) -> Result<Command<'a>, CommandError> {
    Ok(match name {
        Name::Incr => Command::IncrBy { key: key(arguments)?, delta: 1 },
        Name::Decr => Command::IncrBy { key: key(arguments)?, delta: -1 },
        Name::IncrBy => Command::IncrBy { key: key(arguments)?, delta: integer(arguments)? },
        Name::DecrBy => Command::IncrBy {
            key: key(arguments)?,
            delta: integer(arguments)?.checked_neg().ok_or(words::DECREMENT_OVERFLOW)?,
        },
        Name::Get => Command::Get { key: key(arguments)? },
        Name::MGet => Command::MGet { keys: keys(arguments, count)? },
        Name::GetDel => Command::GetDel { key: key(arguments)? },
        Name::Del => Command::Del { keys: keys(arguments, count)? },
        Name::Exists => Command::Exists { keys: keys(arguments, count)? },
        Name::Set => set(arguments)?,
        Name::Scan => scan(arguments)?,
        Name::DbSize => Command::DbSize,
        Name::Type => Command::Type { key: key(arguments)? },
        Name::Ping => Command::Ping { message: arguments.next() },
        Name::Echo => Command::Echo { message: required(arguments)? },
        Name::Hello => hello(arguments)?,
        Name::Auth => auth(arguments, count)?,
        Name::Select => match required(arguments)? {
            b"0" => Command::Select,
            other => return Err(if parse_i64(other).is_some() { words::DB_INDEX } else { words::NOT_AN_INTEGER }),
        },
        Name::Client => Command::Client(client(arguments)?),
        Name::Command => Command::Table(table_query(arguments)?),
        Name::Info => Command::Info { sections: arguments.collect() },
        Name::Config => config(arguments)?,
        Name::FlushAll => match (arguments.next(), count) {
            (None, _) => Command::FlushAll,
            (Some(mode), 1) if mode.eq_ignore_ascii_case(b"sync") || mode.eq_ignore_ascii_case(b"async") => {
                Command::FlushAll
            }
            _ => return Err(words::SYNTAX),
        },
        Name::Quit => Command::Quit,
        Name::Reset => Command::Reset,
        Name::Multi => Command::Multi,
        Name::Exec => Command::Exec,
        Name::Discard => Command::Discard,
        Name::Watch => Command::Watch,
        Name::Unwatch => Command::Unwatch,
    })
}

fn wrong_arity(name: &str) -> CommandError {
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

fn integer(arguments: &mut Arguments<'_>) -> Result<i64, CommandError> {
    parse_i64(required(arguments)?).ok_or(words::BAD_DELTA)
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
    let (key, value) = (key(arguments)?, integer(arguments)?);
    let mut get = false;
    for option in arguments {
        if option.eq_ignore_ascii_case(b"get") {
            get = true;
            continue;
        }
        const OF_REDIS: [&[u8]; 7] = [b"nx", b"xx", b"keepttl", b"ex", b"px", b"exat", b"pxat"];
        let known = OF_REDIS.iter().any(|known| option.eq_ignore_ascii_case(known));
        return Err(if known { words::SET_OPTION } else { words::SYNTAX });
    }
    Ok(Command::Set { key, value, get })
}

fn scan<'a>(arguments: &mut Arguments<'a>) -> Result<Command<'a>, CommandError> {
    let cursor = parse_u64(required(arguments)?).ok_or(words::INVALID_CURSOR)?;
    let (mut count, mut pattern, mut other_type) = (SCAN_COUNT_DEFAULT, None, false);
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or(words::SYNTAX)?;
        if option.eq_ignore_ascii_case(b"count") {
            let wanted = parse_i64(value).ok_or(words::NOT_AN_INTEGER)?;
            let wanted = usize::try_from(wanted).ok().filter(|&wanted| wanted > 0).ok_or(words::SYNTAX)?;
            // A hint, not a promise: more than a page may hold is a page.
            count = wanted.min(REQUEST_ITEMS_MAX);
        } else if option.eq_ignore_ascii_case(b"match") {
            if value.len() > PATTERN_BYTES_MAX {
                return Err(words::PATTERN_TOO_LONG);
            }
            pattern = Some(value);
        } else if option.eq_ignore_ascii_case(b"type") {
            other_type = !value.eq_ignore_ascii_case(b"string");
        } else {
            return Err(words::SYNTAX);
        }
    }
    Ok(Command::Scan { cursor, count, pattern, other_type })
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

fn client<'a>(arguments: &mut Arguments<'a>) -> Result<ClientCommand<'a>, CommandError> {
    let sent = required(arguments)?;
    let count = arguments.count_left();
    let is = |name: &[u8]| sent.eq_ignore_ascii_case(name);
    let exactly = |wanted: usize, name: &str| if count == wanted { Ok(()) } else { Err(wrong_arity(name)) };
    if is(b"setname") {
        exactly(1, "client|setname")?;
        client_name(arguments).map(ClientCommand::SetName)
    } else if is(b"getname") {
        exactly(0, "client|getname").map(|()| ClientCommand::GetName)
    } else if is(b"setinfo") {
        exactly(2, "client|setinfo").map(|()| ClientCommand::SetInfo)
    } else if is(b"id") {
        exactly(0, "client|id").map(|()| ClientCommand::Id)
    } else {
        Err(unknown_subcommand("CLIENT", sent))
    }
}

fn table_query(arguments: &mut Arguments<'_>) -> Result<TableQuery, CommandError> {
    let Some(sent) = arguments.next() else { return Ok(TableQuery::Rows) };
    let is = |name: &[u8]| sent.eq_ignore_ascii_case(name);
    if is(b"docs") {
        Ok(TableQuery::Docs)
    } else if is(b"count") {
        Ok(TableQuery::Count)
    } else if is(b"info") || is(b"list") {
        Ok(TableQuery::Rows)
    } else {
        Err(unknown_subcommand("COMMAND", sent))
    }
}

fn config<'a>(arguments: &mut Arguments<'a>) -> Result<Command<'a>, CommandError> {
    let sent = required(arguments)?;
    if !sent.eq_ignore_ascii_case(b"get") {
        return Err(unknown_subcommand("CONFIG", sent));
    }
    let patterns: Vec<&[u8]> = arguments.collect();
    if patterns.is_empty() {
        return Err(wrong_arity("config|get"));
    }
    if patterns.iter().any(|pattern| pattern.len() > PATTERN_BYTES_MAX) {
        return Err(words::PATTERN_TOO_LONG);
    }
    Ok(Command::ConfigGet { patterns })
}

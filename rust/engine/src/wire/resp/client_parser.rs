//! The arguments of CLIENT's subcommands that have many.

use super::arguments::Arguments;
use super::command::{ClientCommand, ClientFilter};
use super::command_error::{CommandError, words};
use super::integer::parse_i64;
use crate::error_code::ErrorCode;

/// How much of a wrong word an error quotes.
const QUOTED_BYTES_MAX: usize = 128;

/// `LIST [TYPE type] [ID id ...]`
pub(super) fn list<'a>(arguments: &mut Arguments<'a>) -> Result<ClientCommand<'a>, CommandError> {
    let mut filter = ClientFilter::default();
    if let Some(option) = arguments.next() {
        if option.eq_ignore_ascii_case(b"type") && arguments.count_left() == 1 {
            filter.nobody = !is_normal(arguments.next().ok_or(words::SYNTAX)?)?;
        } else if option.eq_ignore_ascii_case(b"id") && arguments.count_left() > 0 {
            let ids = arguments.map(|id| number(id).ok_or(words::INVALID_CLIENT_ID)).collect::<Result<_, _>>()?;
            filter.ids = Some(ids);
        } else {
            return Err(words::SYNTAX);
        }
    }
    Ok(ClientCommand::List(filter))
}

/// `KILL address`, or `KILL` with conditions.
pub(super) fn kill<'a>(arguments: &mut Arguments<'a>) -> Result<ClientCommand<'a>, CommandError> {
    let first = arguments.next().ok_or(words::SYNTAX)?;
    if arguments.count_left() == 0 {
        return Ok(ClientCommand::KillOne(first));
    }
    let mut filter = ClientFilter { skip_self: true, ..ClientFilter::default() };
    let mut option = Some(first);
    while let Some(name) = option {
        let value = arguments.next().ok_or(words::SYNTAX)?;
        let is = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
        if is(b"id") {
            filter.ids = Some(vec![number(value).ok_or(words::CLIENT_ID_ABOVE_0)?]);
        } else if is(b"addr") {
            filter.address = Some(value);
        } else if is(b"type") {
            filter.nobody |= !is_normal(value)?;
        } else if is(b"user") {
            if value != b"default" {
                return Err(unknown("ERR No such user", value));
            }
        } else if is(b"skipme") {
            filter.skip_self = yes_or_no(value)?;
        } else {
            return Err(words::SYNTAX);
        }
        option = arguments.next();
    }
    Ok(ClientCommand::Kill(filter))
}

/// `NO-EVICT ON|OFF` and `NO-TOUCH ON|OFF`
pub(super) fn on_or_off(sent: &[u8]) -> Result<ClientCommand<'static>, CommandError> {
    let is_known = sent.eq_ignore_ascii_case(b"on") || sent.eq_ignore_ascii_case(b"off");
    if is_known { Ok(ClientCommand::NoEffect) } else { Err(words::SYNTAX) }
}

/// `SETINFO LIB-NAME name`, `SETINFO LIB-VER version`
pub(super) fn set_info<'a>(attribute: &[u8], value: &'a [u8]) -> Result<ClientCommand<'a>, CommandError> {
    let is_plain = value.iter().all(u8::is_ascii_graphic);
    if attribute.eq_ignore_ascii_case(b"lib-name") {
        if is_plain { Ok(ClientCommand::SetLibraryName(value)) } else { Err(words::LIB_NAME) }
    } else if attribute.eq_ignore_ascii_case(b"lib-ver") {
        if is_plain { Ok(ClientCommand::SetLibraryVersion(value)) } else { Err(words::LIB_VER) }
    } else {
        Err(unknown("ERR Unrecognized option", attribute))
    }
}

fn number(sent: &[u8]) -> Option<u64> {
    parse_i64(sent).filter(|&id| id > 0).and_then(|id| u64::try_from(id).ok())
}

/// Every client here is one.
fn is_normal(sent: &[u8]) -> Result<bool, CommandError> {
    let is = |name: &[u8]| sent.eq_ignore_ascii_case(name);
    if [&b"master"[..], b"replica", b"slave", b"pubsub"].iter().any(|name| is(name)) {
        return Ok(false);
    }
    if is(b"normal") { Ok(true) } else { Err(unknown("ERR Unknown client type", sent)) }
}

fn yes_or_no(sent: &[u8]) -> Result<bool, CommandError> {
    let is = |name: &[u8]| sent.eq_ignore_ascii_case(name);
    if is(b"yes") || is(b"no") { Ok(is(b"yes")) } else { Err(words::SYNTAX) }
}

fn unknown(line: &str, sent: &[u8]) -> CommandError {
    let sent = sent.get(..QUOTED_BYTES_MAX).unwrap_or(sent).escape_ascii();
    CommandError::owned(ErrorCode::BadRequest, format!("{line} '{sent}'"))
}

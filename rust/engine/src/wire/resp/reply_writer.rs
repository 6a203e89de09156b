//! Writes replies to a connection's buffer, in RESP2 or RESP3, without allocating anything but the
//! buffer's own growth.

use std::io::Write as _;

use super::command_error::{CommandError, prefix, words};
use super::frame_scanner::ProtocolError;
use crate::error_code::ErrorCode;

/// Which of the two forms a connection asked for. Integers, strings and arrays are the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// Every connection begins so.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

impl Version {
    /// 2 or 3.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}

/// `+text`. The text must have no line end.
pub fn write_simple(out: &mut Vec<u8>, text: &'static str) {
    out.push(b'+');
    out.extend_from_slice(text.as_bytes());
    end_line(out);
}

/// `:value`
pub fn write_int(out: &mut Vec<u8>, value: i64) {
    write_number(out, b':', value);
}

/// `$len` and the bytes.
pub fn write_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    write_size(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    end_line(out);
}

/// An integer as a bulk string: what GET answers.
pub fn write_bulk_int(out: &mut Vec<u8>, value: i64) {
    write_bulk(out, itoa::Buffer::new().format(value).as_bytes());
}

/// Text for people, INFO's: a verbatim string in RESP3.
pub fn write_text(out: &mut Vec<u8>, version: Version, text: &str) {
    const FORMAT: &[u8] = b"txt:";
    match version {
        Version::Resp2 => write_bulk(out, text.as_bytes()),
        Version::Resp3 => {
            write_size(out, b'=', FORMAT.len().saturating_add(text.len()));
            out.extend_from_slice(FORMAT);
            out.extend_from_slice(text.as_bytes());
            end_line(out);
        }
    }
}

/// Nothing: `$-1` or `_`.
pub fn write_null(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(match version {
        Version::Resp2 => b"$-1\r\n",
        Version::Resp3 => b"_\r\n",
    });
}

/// Nothing in the place of an array: `*-1` or `_`.
pub fn write_null_array(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(match version {
        Version::Resp2 => b"*-1\r\n",
        Version::Resp3 => b"_\r\n",
    });
}

/// `:1`, `:0` or `#t`, `#f`.
pub fn write_bool(out: &mut Vec<u8>, version: Version, value: bool) {
    out.extend_from_slice(match (version, value) {
        (Version::Resp2, false) => b":0\r\n",
        (Version::Resp2, true) => b":1\r\n",
        (Version::Resp3, false) => b"#f\r\n",
        (Version::Resp3, true) => b"#t\r\n",
    });
}

/// A float: a bulk string or `,value`.
pub fn write_double(out: &mut Vec<u8>, version: Version, value: f64) {
    // The longest f64 that `{}` writes: a sign, "0." and 340 digits or so.
    let mut text = [0_u8; 352];
    let mut unwritten = &mut text[..];
    let written = if value.is_nan() { write!(unwritten, "nan") } else { write!(unwritten, "{value}") };
    debug_assert!(written.is_ok(), "an f64 longer than 352 bytes");
    let left = unwritten.len();
    let text = text.get(..text.len() - left).unwrap_or(&text);
    match version {
        Version::Resp2 => write_bulk(out, text),
        Version::Resp3 => {
            out.push(b',');
            out.extend_from_slice(text);
            end_line(out);
        }
    }
}

/// An array's head; so many values must follow.
pub fn write_array_len(out: &mut Vec<u8>, len: usize) {
    write_size(out, b'*', len);
}

/// The head of a set: an array in RESP2.
pub fn write_set_len(out: &mut Vec<u8>, version: Version, len: usize) {
    write_size(out, if version == Version::Resp3 { b'~' } else { b'*' }, len);
}

/// A map's head: a flat array in RESP2. So many pairs must follow.
pub fn write_map_len(out: &mut Vec<u8>, version: Version, pairs: usize) {
    match version {
        Version::Resp2 => write_size(out, b'*', pairs.saturating_mul(2)),
        Version::Resp3 => write_size(out, b'%', pairs),
    }
}

/// An error with a code and a sentence: `-OOM sentence (overloaded)`. Where clients of Redis match on the
/// words (`overflow`, `unauthenticated`), Redis's words come instead of the sentence.
pub fn write_error(out: &mut Vec<u8>, code: ErrorCode, message: &str) {
    match code {
        ErrorCode::Overflow => write_command_error(out, &words::OVERFLOW),
        ErrorCode::Unauthenticated => write_command_error(out, &words::NO_AUTH),
        _ => write_error_line(out, &[prefix(code), " ", message], code),
    }
}

/// An error that has its words already.
pub fn write_command_error(out: &mut Vec<u8>, error: &CommandError) {
    write_error_line(out, &[&error.line], error.code);
}

/// The last words on a connection that can't be read any further.
pub fn write_protocol_error(out: &mut Vec<u8>, error: ProtocolError) {
    out.extend_from_slice(b"-ERR ");
    // A Vec takes whatever is written to it, so this can't fail.
    let written = write!(out, "{error}");
    debug_assert!(written.is_ok(), "writing to memory failed");
    end_error(out, error.code());
}

fn write_error_line(out: &mut Vec<u8>, parts: &[&str], code: ErrorCode) {
    out.push(b'-');
    for part in parts {
        // A line end would end the reply and let what follows pass for another one.
        out.extend(part.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
    }
    end_error(out, code);
}

fn end_error(out: &mut Vec<u8>, code: ErrorCode) {
    out.extend_from_slice(b" (");
    out.extend_from_slice(code.name().as_bytes());
    out.extend_from_slice(b")\r\n");
}

fn end_line(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

fn write_size(out: &mut Vec<u8>, kind: u8, size: usize) {
    write_number(out, kind, i64::try_from(size).unwrap_or(i64::MAX));
}

/// The line is put together on the stack and copied whole: a copy of constant size is two moves instead of a call.
fn write_number(out: &mut Vec<u8>, kind: u8, value: i64) {
    const LINE_BYTES_MAX: usize = 24; // the kind, 20 of i64::MIN, the line end
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(value).as_bytes();
    let mut line = [0_u8; LINE_BYTES_MAX];
    line[0] = kind;
    line[1..=digits.len()].copy_from_slice(digits);
    line[digits.len() + 1..digits.len() + 3].copy_from_slice(b"\r\n");
    let before = out.len();
    out.extend_from_slice(&line);
    out.truncate(before + digits.len() + 3);
}

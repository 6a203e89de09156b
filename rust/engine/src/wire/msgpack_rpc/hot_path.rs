//! The frames that make up nearly all traffic, matched directly on their bytes.
//!
//! A subset of what [`parse`](super::parse) accepts, with the same meaning. Anything unusual, wrong or incomplete gives
//! `None` and takes the general path. Key lengths are checked here too.

use crate::limits::{KEY_BYTES_MAX, OPERATION_ID_BYTES_MAX};

/// An `incr` without options, or with an operation id and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastIncr<'a> {
    /// Bytes of the frame.
    pub len: usize,
    /// Echoed in the reply.
    pub msgid: u32,
    /// 1 to 1,024 bytes.
    pub key: &'a [u8],
    /// 1 if the frame has no delta.
    pub delta: i64,
    /// The operation id, of 1 to 64 bytes.
    pub id: Option<&'a [u8]>,
}

/// `[0, msgid, "incr", [key]]`, `[0, msgid, "incr", [key, delta]]` or `[0, msgid, "incr", [key, delta, {"id": id}]]` at
/// the start of `buf`.
///
/// If a [`FrameScanner`](super::FrameScanner) had begun with these bytes, reset it.
#[must_use]
pub fn fast_incr(buf: &[u8]) -> Option<FastIncr<'_>> {
    let (msgid, rest) = after_msgid(buf)?;
    let rest = match rest {
        [0xa4, b'i', b'n', b'c', b'r', rest @ ..] | [0xd9 | 0xc4, 4, b'i', b'n', b'c', b'r', rest @ ..] => rest,
        _ => return None,
    };
    let (count, rest) = rest.split_first()?;
    let (key, rest) = key(rest)?;
    let (delta, id, rest) = match count {
        0x91 => (1, None, rest),
        0x92 => delta(rest).map(|(delta, rest)| (delta, None, rest))?,
        0x93 => {
            let (delta, rest) = delta(rest)?;
            let (id, rest) = only_id(rest)?;
            (delta, Some(id), rest)
        }
        _ => return None,
    };
    Some(FastIncr { len: buf.len() - rest.len(), msgid, key, delta, id })
}

/// The bytes after `[0, msgid`. Clients count up, so the encoding's branch is predictable.
fn after_msgid(buf: &[u8]) -> Option<(u32, &[u8])> {
    let [0x94, 0x00, buf @ ..] = buf else { return None };
    match *buf {
        [msgid @ 0..=0x7f, ref rest @ ..] | [0xcc | 0xd0, msgid @ 0..=0x7f, ref rest @ ..] => {
            Some((u32::from(msgid), rest))
        }
        [0xcd, a, b, ref rest @ ..] => Some((u32::from(u16::from_be_bytes([a, b])), rest)),
        [0xce, a, b, c, d, ref rest @ ..] => Some((u32::from_be_bytes([a, b, c, d]), rest)),
        [0xcc, msgid, ref rest @ ..] => Some((u32::from(msgid), rest)),
        [0xd1, a @ 0..=0x7f, b, ref rest @ ..] => Some((u32::from(u16::from_be_bytes([a, b])), rest)),
        [0xd2, a @ 0..=0x7f, b, c, d, ref rest @ ..] | [0xcf | 0xd3, 0, 0, 0, 0, a, b, c, d, ref rest @ ..] => {
            Some((u32::from_be_bytes([a, b, c, d]), rest))
        }
        _ => None,
    }
}

fn key(buf: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes(buf, KEY_BYTES_MAX)
}

/// The map `{"id": id}`.
fn only_id(buf: &[u8]) -> Option<(&[u8], &[u8])> {
    let ([0x81, 0xa2, b'i', b'd', rest @ ..] | [0x81, 0xd9 | 0xc4, 2, b'i', b'd', rest @ ..]) = buf else {
        return None;
    };
    bytes(rest, OPERATION_ID_BYTES_MAX)
}

/// A str or bin of 1 to `len_max` bytes.
fn bytes(buf: &[u8], len_max: usize) -> Option<(&[u8], &[u8])> {
    let (len, rest) = match *buf {
        [head @ 0xa1..=0xbf, ref rest @ ..] => (usize::from(head & 0x1f), rest),
        [0xd9 | 0xc4, len, ref rest @ ..] => (usize::from(len), rest),
        [0xda | 0xc5, a, b, ref rest @ ..] => (usize::from(u16::from_be_bytes([a, b])), rest),
        _ => return None,
    };
    if len == 0 || len > len_max {
        return None;
    }
    rest.split_at_checked(len)
}

fn delta(buf: &[u8]) -> Option<(i64, &[u8])> {
    Some(match *buf {
        [small @ (0..=0x7f | 0xe0..=0xff), ref rest @ ..] => (i64::from(i8::from_be_bytes([small])), rest),
        [0xcc, a, ref rest @ ..] => (i64::from(a), rest),
        [0xcd, a, b, ref rest @ ..] => (i64::from(u16::from_be_bytes([a, b])), rest),
        [0xce, a, b, c, d, ref rest @ ..] => (i64::from(u32::from_be_bytes([a, b, c, d])), rest),
        [0xd0, a, ref rest @ ..] => (i64::from(i8::from_be_bytes([a])), rest),
        [0xd1, a, b, ref rest @ ..] => (i64::from(i16::from_be_bytes([a, b])), rest),
        [0xd2, a, b, c, d, ref rest @ ..] => (i64::from(i32::from_be_bytes([a, b, c, d])), rest),
        // Unsigned and above i64::MAX: a bad delta, which the general path reports.
        [0xcf, a @ 0..=0x7f, b, c, d, e, f, g, h, ref rest @ ..] | [0xd3, a, b, c, d, e, f, g, h, ref rest @ ..] => {
            (i64::from_be_bytes([a, b, c, d, e, f, g, h]), rest)
        }
        _ => return None,
    })
}

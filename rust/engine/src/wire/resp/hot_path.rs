//! The shapes that make up nearly all traffic, matched on the bytes without a scan before.
//!
//! A subset of what [`parse`](super::parse) accepts, with the same meaning: whatever is unusual, wrong or
//! not all there gives `None`, and the general path decides. A key's length is checked here too.

use crate::limits::KEY_BYTES_MAX;

/// An INCR or INCRBY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastIncr<'a> {
    /// Bytes of the request.
    pub len: usize,
    /// Of 1 to 1,024 bytes.
    pub key: &'a [u8],
    /// 1 for INCR.
    pub delta: i64,
}

/// The bit that tells small letters from capitals.
const SMALL: u8 = 0x20;

/// INCR or INCRBY (redis-py's `incr` sends `INCRBY key 1`) as an array, in any case, at the start of `buf`.
///
/// If a [`FrameScanner`](super::FrameScanner) had begun with these bytes, reset it.
#[must_use]
pub fn fast_incr(buf: &[u8]) -> Option<FastIncr<'_>> {
    let (head, rest) = buf.split_first_chunk::<16>()?;
    // A byte that differs from a letter by the bit of the case only is that letter: no other byte passes.
    let small = head.map(|byte| byte | SMALL);
    if head[..8] == *b"*2\r\n$4\r\n" && small[8..12] == *b"incr" && head[12..15] == *b"\r\n$" {
        let (key, rest) = bulk_from(head[15], rest)?;
        return Some(FastIncr { len: buf.len() - rest.len(), key, delta: 1 });
    }
    if head[..8] == *b"*3\r\n$6\r\n" && small[8..14] == *b"incrby" && head[14..] == *b"\r\n" {
        let [b'$', first, rest @ ..] = rest else { return None };
        let (key, rest) = bulk_from(*first, rest)?;
        let [b'$', first, rest @ ..] = rest else { return None };
        let (digits, rest) = bulk_from(*first, rest)?;
        return Some(FastIncr { len: buf.len() - rest.len(), key, delta: delta(digits)? });
    }
    None
}

/// A bulk string of 1 to 1,024 bytes whose length begins with the digit `first`.
fn bulk_from(first: u8, rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let digit = |byte: u8| -> Option<usize> {
        let digit = byte.wrapping_sub(b'0');
        (digit <= 9).then_some(usize::from(digit))
    };
    let mut len = digit(first)?;
    if len == 0 {
        return None;
    }
    let mut rest = rest;
    // At most three more digits: a key has at most 1,024 bytes.
    for _ in 0..3 {
        match rest {
            [b'\r', ..] => break,
            [byte, after @ ..] => (len, rest) = (len * 10 + digit(*byte)?, after),
            [] => return None,
        }
    }
    if len > KEY_BYTES_MAX {
        return None;
    }
    let [b'\r', b'\n', body @ ..] = rest else { return None };
    let (bulk, after) = body.split_at_checked(len)?;
    let [b'\r', b'\n', after @ ..] = after else { return None };
    Some((bulk, after))
}

/// Up to 18 digits in the only accepted form; longer ones go the general way.
fn delta(text: &[u8]) -> Option<i64> {
    const DIGITS_MAX: usize = 18;
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'0', ..] | [] => return None,
        _ if digits.len() > DIGITS_MAX => return None,
        _ => {}
    }
    let mut value = 0_i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(if negative { -value } else { value })
}

//! Finds where a request ends, however its bytes are cut, without looking at any of them twice.

use memchr::{memchr, memchr2};

use super::arguments::next_word;
use super::integer::{parse_i64, parse_u64};
use crate::error_code::ErrorCode;
use crate::limits::{INLINE_BYTES_MAX, REQUEST_ITEMS_MAX};
use crate::wire::scan::{FrameLimits, Scan, begins_line};

/// Longest line `*n` or `$n`, its end included. A number of 64 bits has 20 digits.
const HEADER_BYTES_MAX: usize = 32;
/// Most bulk strings in a request: the items and a command with options around them.
const ARGUMENTS_MAX: u64 = REQUEST_ITEMS_MAX as u64 + 16;
/// The shortest argument: `$0\r\n\r\n`.
const ARGUMENT_BYTES_MIN: u64 = 6;

/// A request that can't be accepted. What follows it can't be found any more: answer and close.
/// The words are Redis's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// `*` without a number of arguments in the allowed range.
    #[error("Protocol error: invalid multibulk length")]
    MultibulkLength,
    /// More arguments than a request may have.
    #[error("Protocol error: invalid multibulk length")]
    TooManyArguments,
    /// `*` and a line without end.
    #[error("Protocol error: too big mbulk count string")]
    MultibulkLine,
    /// `$` without a length; `$-1` too.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// An argument that leads over the limit of a frame.
    #[error("Protocol error: invalid bulk length")]
    TooLarge,
    /// `$` and a line without end.
    #[error("Protocol error: too big bulk count string")]
    BulkLine,
    /// An argument isn't a bulk string.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    ExpectedBulk(u8),
    /// An argument is longer than it says.
    #[error("Protocol error: expected CRLF after a bulk string")]
    ExpectedLineEnd,
    /// A line without end.
    #[error("Protocol error: too big inline request")]
    InlineTooLarge,
    /// A line with a quote that isn't closed, or with an escape in it.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// A request begins with `*`, a printable character or a blank.
    #[error("Protocol error: expected '*' or a command, got '{}'", .0.escape_ascii())]
    ExpectedCommand(u8),
    /// A browser was tricked into sending this here.
    #[error("Protocol error: this is HTTP")]
    Http,
}

impl ProtocolError {
    /// The code to answer with.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::TooManyArguments | Self::TooLarge | Self::InlineTooLarge => ErrorCode::TooLarge,
            _ => ErrorCode::BadRequest,
        }
    }
}

/// A resumable scan over one request. Bytes that come one at a time cost as much as bytes that come at once.
///
/// Owned by its connection, used by the thread that feeds it.
#[derive(Debug, Clone, Default)]
pub struct FrameScanner {
    /// Everything before is understood. For a line: everything before has no end of line.
    position: usize,
    /// Arguments that lack.
    left: u64,
    /// The current argument's length is known: its bytes end here, and a line end follows.
    body_end: Option<usize>,
}

impl FrameScanner {
    /// Goes on with the request that starts at `buf[0]`. Each call brings the bytes of the last call, and
    /// more after them, until the answer is `Complete` or an error; then the scanner begins anew.
    ///
    /// # Errors
    /// As soon as it is certain: a size that leads over the limit is refused by its declaration.
    pub fn scan(&mut self, buf: &[u8], limits: FrameLimits) -> Result<Scan, ProtocolError> {
        let result = match buf.first() {
            None => Ok(Scan::Incomplete),
            Some(b'*') => self.advance(buf, limits),
            Some(&first) if begins_line(first) => self.advance_line(buf, limits),
            Some(&other) => Err(ProtocolError::ExpectedCommand(other)),
        };
        if !matches!(result, Ok(Scan::Incomplete)) {
            self.reset();
        }
        result
    }

    /// Forgets a request that was begun: for one that a fast path took after all.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn advance(&mut self, buf: &[u8], limits: FrameLimits) -> Result<Scan, ProtocolError> {
        if self.position == 0 {
            let Some((count, end)) =
                header(buf, 0, count, ProtocolError::MultibulkLine, ProtocolError::MultibulkLength)?
            else {
                return Ok(Scan::Incomplete);
            };
            if count > ARGUMENTS_MAX || end as u64 + count * ARGUMENT_BYTES_MIN > limits.bytes_max as u64 {
                return Err(ProtocolError::TooManyArguments);
            }
            (self.position, self.left) = (end, count);
        }
        while self.left > 0 {
            let end = match self.body_end {
                Some(end) => end,
                None => match self.advance_header(buf, limits)? {
                    Some(end) => *self.body_end.insert(end),
                    None => return Ok(Scan::Incomplete),
                },
            };
            match buf.get(end..end.saturating_add(2)) {
                Some(b"\r\n") => {}
                Some(_) => return Err(ProtocolError::ExpectedLineEnd),
                None => return Ok(Scan::Incomplete),
            }
            (self.position, self.left, self.body_end) = (end + 2, self.left - 1, None);
        }
        Ok(Scan::Complete(self.position))
    }

    /// Reads `$n` and gives the end of the argument's bytes, if the line is all there.
    fn advance_header(&self, buf: &[u8], limits: FrameLimits) -> Result<Option<usize>, ProtocolError> {
        match buf.get(self.position) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(&other) => return Err(ProtocolError::ExpectedBulk(other)),
        }
        let Some((len, start)) =
            header(buf, self.position, parse_u64, ProtocolError::BulkLine, ProtocolError::BulkLength)?
        else {
            return Ok(None);
        };
        // What must still come: this argument, its line end, and the shortest form of those after it.
        let frame_bytes_min =
            (start as u64).saturating_add(len).saturating_add(2 + (self.left - 1) * ARGUMENT_BYTES_MIN);
        if frame_bytes_min > limits.bytes_max as u64 {
            return Err(ProtocolError::TooLarge);
        }
        Ok(usize::try_from(len).ok().and_then(|len| start.checked_add(len)))
    }

    fn advance_line(&mut self, buf: &[u8], limits: FrameLimits) -> Result<Scan, ProtocolError> {
        let bytes_max = limits.bytes_max.min(INLINE_BYTES_MAX);
        let unread = buf.get(self.position..).unwrap_or(&[]);
        let Some(line_end) = memchr(b'\n', unread) else {
            self.position = buf.len();
            return if buf.len() < bytes_max { Ok(Scan::Incomplete) } else { Err(ProtocolError::InlineTooLarge) };
        };
        let len = self.position + line_end + 1;
        if len > bytes_max {
            return Err(ProtocolError::InlineTooLarge);
        }
        check_line(buf.get(..len).unwrap_or(buf)).map(|()| Scan::Complete(len))
    }
}

/// `*n\r\n` or `$n\r\n` at `start`: the number, and where the line ends. `None`: it isn't all there.
fn header(
    buf: &[u8],
    start: usize,
    number: impl Fn(&[u8]) -> Option<u64>,
    too_long: ProtocolError,
    wrong: ProtocolError,
) -> Result<Option<(u64, usize)>, ProtocolError> {
    let line = buf.get(start..).unwrap_or(&[]);
    let line = line.get(..HEADER_BYTES_MAX).unwrap_or(line);
    let Some(end) = memchr2(b'\r', b'\n', line) else {
        return if line.len() < HEADER_BYTES_MAX { Ok(None) } else { Err(too_long) };
    };
    match line.get(end..) {
        Some([b'\r']) if line.len() < HEADER_BYTES_MAX => return Ok(None),
        Some([b'\r', b'\n', ..]) => {}
        _ => return Err(wrong),
    }
    let number = line.get(1..end).and_then(number).ok_or(wrong)?;
    Ok(Some((number, start + end + 2)))
}

/// How many arguments: as in Redis a negative number means none.
fn count(text: &[u8]) -> Option<u64> {
    parse_u64(text).or_else(|| parse_i64(text).map(|_| 0))
}

/// A line must have words that can be told apart, and must not come from a browser (as Redis does it:
/// a page could make a visitor's browser post commands to a server on the visitor's network).
fn check_line(line: &[u8]) -> Result<(), ProtocolError> {
    let mut rest = line;
    let mut is_first = true;
    while let Some(word) = next_word(&mut rest).map_err(|_| ProtocolError::UnbalancedQuotes)? {
        if is_first && (word.eq_ignore_ascii_case(b"post") || word.eq_ignore_ascii_case(b"host:")) {
            return Err(ProtocolError::Http);
        }
        is_first = false;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { bytes_max: 1 << 20 };

    fn whole(bytes: &[u8]) -> Result<Scan, ProtocolError> {
        FrameScanner::default().scan(bytes, LIMITS)
    }

    fn bytewise(bytes: &[u8]) -> Result<Scan, ProtocolError> {
        let mut scanner = FrameScanner::default();
        for end in 0..=bytes.len() {
            match scanner.scan(&bytes[..end], LIMITS)? {
                Scan::Incomplete => {}
                complete => return Ok(complete),
            }
        }
        Ok(Scan::Incomplete)
    }

    #[test]
    fn requests_end_where_they_end() {
        for bytes in [
            &b"*1\r\n$4\r\nPING\r\n"[..],
            b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
            b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*-9223372036854775808\r\n",
            b" ping\r\n",
            b"\t \r\n",
            b"\"ping\"\r\n",
            b"'ping' 'a b'\n",
            b"12\r\n",
            b"*2\r\n$4\r\nECHO\r\n$4\r\n\r\n\r\n\r\n",
            b"PING\r\n",
            b"ping\n",
            b"\r\n",
            b"\n",
            b"INCR \"a key\" \r\n",
        ] {
            let longer = [bytes, b"*1\r\n"].concat();
            assert_eq!(whole(&longer), Ok(Scan::Complete(bytes.len())), "{}", bytes.escape_ascii());
            assert_eq!(bytewise(&longer), Ok(Scan::Complete(bytes.len())), "{}", bytes.escape_ascii());
            for end in 0..bytes.len() {
                assert_eq!(whole(&bytes[..end]), Ok(Scan::Incomplete), "{}", bytes[..end].escape_ascii());
            }
        }
    }

    #[test]
    fn hostile_requests_get_redis_words() {
        let rows: &[(&[u8], ProtocolError)] = &[
            (b"*-0\r\n", ProtocolError::MultibulkLength),
            (b"*x\r\n", ProtocolError::MultibulkLength),
            (b"*\r\n", ProtocolError::MultibulkLength),
            (b"*01\r\n", ProtocolError::MultibulkLength),
            (b"*1\n", ProtocolError::MultibulkLength),
            (b"*1\rx", ProtocolError::MultibulkLength),
            (b"*99999999999999999999\r\n", ProtocolError::MultibulkLength),
            (b"*65553\r\n", ProtocolError::TooManyArguments),
            (b"*11111111111111111111111111111111", ProtocolError::MultibulkLine),
            (b"*1\r\n$-1\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$x\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$1048576\r\n", ProtocolError::TooLarge),
            (b"*1\r\n$18446744073709551615\r\n", ProtocolError::TooLarge),
            (b"*1\r\n$11111111111111111111111111111111", ProtocolError::BulkLine),
            (b"*1\r\n:1\r\n", ProtocolError::ExpectedBulk(b':')),
            (b"*1\r\n$1\r\nabc", ProtocolError::ExpectedLineEnd),
            (b"GET \"a\r\n", ProtocolError::UnbalancedQuotes),
            (b"GET \"a\"b\r\n", ProtocolError::UnbalancedQuotes),
            (b"GET \"a\\n\"\r\n", ProtocolError::UnbalancedQuotes),
            (b"POST / HTTP/1.1\r\n", ProtocolError::Http),
            (b"Host: localhost\r\n", ProtocolError::Http),
            (b"\x00", ProtocolError::ExpectedCommand(0)),
            (b"\xff", ProtocolError::ExpectedCommand(255)),
        ];
        for (bytes, error) in rows {
            assert_eq!(whole(bytes), Err(*error), "{}", bytes.escape_ascii());
            assert_eq!(bytewise(bytes), Err(*error), "{}", bytes.escape_ascii());
        }
        assert_eq!(ProtocolError::BulkLength.to_string(), "Protocol error: invalid bulk length");
        assert_eq!(ProtocolError::ExpectedBulk(b':').to_string(), "Protocol error: expected '$', got ':'");
    }

    #[test]
    fn bounds_are_exact() {
        let line = [b"a".repeat(INLINE_BYTES_MAX - 1), b"\n".to_vec()].concat();
        assert_eq!(whole(&line), Ok(Scan::Complete(INLINE_BYTES_MAX)));
        assert_eq!(whole(&b"a".repeat(INLINE_BYTES_MAX)), Err(ProtocolError::InlineTooLarge));
        let frame = b"*2\r\n$1\r\na\r\n$2\r\nbb\r\n";
        for (bytes_max, fits) in [(frame.len(), true), (frame.len() - 1, false)] {
            let result = FrameScanner::default().scan(frame, FrameLimits { bytes_max });
            assert_eq!(result, if fits { Ok(Scan::Complete(frame.len())) } else { Err(ProtocolError::TooLarge) });
        }
    }
}

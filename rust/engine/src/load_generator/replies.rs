//! Reads and checks replies: an increment must be answered by a number above 0, a read by a number that isn't negative
//! or by nothing. Anything else is an error.

use memchr::memchr;

use super::{Operation, Protocol};
use crate::wire::msgpack_rpc::reader::{Reader, Truncated, Value};

/// Longest line read, and longest error kept.
const LINE_BYTES_MAX: usize = 4_096;

/// One reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply<'a> {
    pub(super) len: usize,
    /// MessagePack-RPC only; other protocols reply in order.
    pub(super) msgid: Option<u32>,
    pub(super) answer: Answer<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// How many operations were answered correctly and incorrectly.
    Given { right: usize, wrong: usize },
    /// The request was refused.
    Refused(&'a [u8]),
}

/// The bytes are no reply, so nothing after them can be parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoReply;

type Parsed<'a> = Result<Option<Reply<'a>>, NoReply>;

/// The reply at the start of `bytes`; `None` if it is incomplete.
#[derive(Clone, Copy)]
pub(super) struct ReplyReader {
    protocol: Protocol,
    /// The smallest possible answer to an operation.
    least: i64,
    is_apply: bool,
}

impl ReplyReader {
    pub(super) fn new(protocol: Protocol, operation: Operation) -> Self {
        let least = i64::from(operation != Operation::Get);
        Self { protocol, least, is_apply: matches!(operation, Operation::Apply { .. }) }
    }

    pub(super) fn read<'a>(&self, bytes: &'a [u8]) -> Parsed<'a> {
        match self.protocol {
            Protocol::Resp => self.resp(bytes),
            Protocol::MsgpackRpc => match self.msgpack(bytes) {
                Ok(parsed) => parsed,
                Err(Truncated) => Ok(None),
            },
            Protocol::Memcached => self.memcached(bytes),
        }
    }

    fn judged<'a>(&self, len: usize, value: Option<i64>) -> Parsed<'a> {
        let right = usize::from(value.is_some_and(|value| value >= self.least));
        Ok(Some(Reply { len, msgid: None, answer: Answer::Given { right, wrong: 1 - right } }))
    }

    fn resp<'a>(&self, bytes: &'a [u8]) -> Parsed<'a> {
        let Some((line, len)) = line(bytes)? else { return Ok(None) };
        match line {
            [b':', digits @ ..] => self.judged(len, number(digits)),
            b"$-1" => self.judged(len, Some(0)),
            [b'$', digits @ ..] => self.counted(bytes, len, digits),
            [b'-', text @ ..] => Ok(Some(Reply { len, msgid: None, answer: Answer::Refused(text) })),
            _ => Err(NoReply),
        }
    }

    fn memcached<'a>(&self, bytes: &'a [u8]) -> Parsed<'a> {
        let Some((line, len)) = line(bytes)? else { return Ok(None) };
        match line {
            [b'V', b'A', b' ', digits @ ..] => self.counted(bytes, len, digits),
            // A miss: there is no such counter.
            b"EN" | b"NF" => self.judged(len, Some(0)),
            text => Ok(Some(Reply { len, msgid: None, answer: Answer::Refused(text) })),
        }
    }

    /// A number whose length is given by the line that ends at `start`.
    fn counted<'a>(&self, bytes: &'a [u8], start: usize, count: &[u8]) -> Parsed<'a> {
        let count = number(count).and_then(|count| usize::try_from(count).ok()).ok_or(NoReply)?;
        if count > LINE_BYTES_MAX {
            return Err(NoReply);
        }
        let end = start + count;
        match bytes.get(end..end + 2) {
            None => Ok(None),
            Some(b"\r\n") => self.judged(end + 2, number(&bytes[start..end])),
            Some(_) => Err(NoReply),
        }
    }

    fn msgpack<'a>(&self, bytes: &'a [u8]) -> Result<Parsed<'a>, Truncated> {
        let mut reader = Reader::new(bytes);
        let (Value::Array(4), Value::Unsigned(1), Value::Unsigned(msgid)) =
            (reader.read()?, reader.read()?, reader.read()?)
        else {
            return Ok(Err(NoReply));
        };
        let answer = match reader.read()? {
            Value::Nil if self.is_apply => self.results(&mut reader)?,
            Value::Nil => {
                let right = usize::from(self.is_right(reader.read_whole()?));
                Answer::Given { right, wrong: 1 - right }
            }
            Value::Text(text) => {
                reader.read_whole()?;
                Answer::Refused(text)
            }
            _ => return Ok(Err(NoReply)),
        };
        let len = bytes.len() - reader.rest().len();
        Ok(u32::try_from(msgid).map_err(|_| NoReply).map(|msgid| Some(Reply { len, msgid: Some(msgid), answer })))
    }

    /// `{"results": [...], ...}`, where errors are strings. A map without results answers nothing.
    fn results<'a>(&self, reader: &mut Reader<'a>) -> Result<Answer<'a>, Truncated> {
        let (mut right, mut wrong) = (0, 0);
        if let Value::Map(pairs) = reader.read()? {
            for _ in 0..pairs {
                match (reader.read_whole()?, reader.read()?) {
                    (Value::Text(b"results"), Value::Array(count)) => {
                        for _ in 0..count {
                            let is_right = self.is_right(reader.read_whole()?);
                            right += usize::from(is_right);
                            wrong += usize::from(!is_right);
                        }
                    }
                    (_, Value::Array(count)) => reader.skip(count as u64)?,
                    (_, Value::Map(count)) => reader.skip(2 * count as u64)?,
                    _ => {}
                }
            }
        }
        Ok(Answer::Given { right, wrong })
    }

    fn is_right(&self, value: Value<'_>) -> bool {
        matches!(value, Value::Unsigned(value) if i64::try_from(value).is_ok_and(|value| value >= self.least))
    }
}

/// The first line without its terminator, and its length with it.
fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, NoReply> {
    // Replies to increments are short, so a loop is faster than a call.
    let near = bytes.get(..24).unwrap_or(bytes);
    let end = near.iter().position(|&byte| byte == b'\n').or_else(|| memchr(b'\n', bytes));
    match end {
        Some(end) if end > 0 && bytes[end - 1] == b'\r' => Ok(Some((&bytes[..end - 1], end + 1))),
        None if bytes.len() <= LINE_BYTES_MAX => Ok(None),
        _ => Err(NoReply),
    }
}

fn number(text: &[u8]) -> Option<i64> {
    const DIGITS_MAX: usize = 18;
    if let [b'-', digits @ ..] = text {
        return number(digits).map(|number| -number);
    }
    if text.is_empty() || text.len() > DIGITS_MAX {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    text.iter().try_fold(0, |number: i64, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit <= 9).then(|| number * 10 + i64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(len: usize, msgid: Option<u32>, right: usize, wrong: usize) -> Parsed<'static> {
        Ok(Some(Reply { len, msgid, answer: Answer::Given { right, wrong } }))
    }

    /// The whole is read as said, and no part of it is read as a whole.
    fn check(reader: ReplyReader, bytes: &[u8], expected: &Parsed<'_>) {
        assert_eq!(&reader.read(bytes), expected, "{}", bytes.escape_ascii());
        assert_eq!(&reader.read(&[bytes, b"*"].concat()), expected, "{}", bytes.escape_ascii());
        for end in 0..bytes.len() {
            assert_eq!(reader.read(&bytes[..end]), Ok(None), "{}", bytes[..end].escape_ascii());
        }
    }

    #[test]
    fn resp() {
        let incr = ReplyReader::new(Protocol::Resp, Operation::Incr);
        check(incr, b":12\r\n", &given(5, None, 1, 0));
        check(incr, b":9223372036854775807\r\n", &given(22, None, 1, 0));
        check(incr, b":0\r\n", &given(4, None, 0, 1));
        check(incr, b":-3\r\n", &given(5, None, 0, 1));
        check(incr, b":1x\r\n", &given(5, None, 0, 1));
        let refused = Reply { len: 8, msgid: None, answer: Answer::Refused(b"ERR x") };
        check(incr, b"-ERR x\r\n", &Ok(Some(refused)));
        assert_eq!(incr.read(b"+OK\r\n"), Err(NoReply));
        assert_eq!(incr.read(b"\n"), Err(NoReply));
        let get = ReplyReader::new(Protocol::Resp, Operation::Get);
        check(get, b"$2\r\n12\r\n", &given(8, None, 1, 0));
        check(get, b"$-1\r\n", &given(5, None, 1, 0));
        check(get, b"$2\r\nxy\r\n", &given(8, None, 0, 1));
        assert_eq!(get.read(b"$1\r\n12\r\n"), Err(NoReply));
    }

    #[test]
    fn memcached() {
        let incr = ReplyReader::new(Protocol::Memcached, Operation::Incr);
        check(incr, b"VA 2\r\n12\r\n", &given(10, None, 1, 0));
        check(incr, b"NF\r\n", &given(4, None, 0, 1));
        check(incr, b"ERROR\r\n", &Ok(Some(Reply { len: 7, msgid: None, answer: Answer::Refused(b"ERROR") })));
        check(ReplyReader::new(Protocol::Memcached, Operation::Get), b"EN\r\n", &given(4, None, 1, 0));
    }

    #[test]
    fn msgpack() {
        let incr = ReplyReader::new(Protocol::MsgpackRpc, Operation::Incr);
        check(incr, b"\x94\x01\x07\xc0\x05", &given(5, Some(7), 1, 0));
        check(incr, b"\x94\x01\xcd\x01\x00\xc0\xcd\x01\x00", &given(9, Some(256), 1, 0));
        check(incr, b"\x94\x01\x07\xc0\x00", &given(5, Some(7), 0, 1));
        check(incr, b"\x94\x01\x07\xc0\xff", &given(5, Some(7), 0, 1));
        check(incr, b"\x94\x01\x07\xc0\xa1x", &given(6, Some(7), 0, 1));
        let refused = Reply { len: 7, msgid: Some(7), answer: Answer::Refused(b"no") };
        check(incr, b"\x94\x01\x07\xa2no\xc0", &Ok(Some(refused)));
        assert_eq!(incr.read(b"\x94\x00\x07\xc0\x05"), Err(NoReply));
        let apply = ReplyReader::new(Protocol::MsgpackRpc, Operation::Apply { batch: 3 });
        let reply = b"\x94\x01\x07\xc0\x83\xa5level\x92\x01\x02\xa7results\x93\x04\xa2no\x05\xa6commit\x09";
        check(apply, reply, &given(reply.len(), Some(7), 2, 1));
        check(apply, b"\x94\x01\x07\xc0\x80", &given(5, Some(7), 0, 0));
    }
}

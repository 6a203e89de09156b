//! What a client receives, read back: each reply whole, and how many there should be.

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::wire::msgpack_rpc::{self as rpc, Parsed};
use pycounter_engine::wire::resp::{self, Command};
use pycounter_engine::wire::scan::{FrameLimits, Protocol, Scan, detect};

/// A value, as far as anybody looks at it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Nil,
    Int(i64),
    Text(String),
    Error(ErrorCode),
    Array(Vec<Value>),
    Other,
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    pub msgid: Option<u32>,
    pub value: Value,
}

/// Takes the first reply from the start of `bytes`. `None`: it isn't all there.
pub fn take(bytes: &mut &[u8]) -> Option<Reply> {
    let mut rest = *bytes;
    let reply = if bytes.first() == Some(&0x94) {
        let head = take_msgpack(&mut rest, 4)?;
        let Value::Array(mut parts) = head else { return None };
        let (result, error, msgid) = (parts.pop()?, parts.pop()?, parts.pop()?);
        assert_eq!(parts, [Value::Int(1)], "this is no reply");
        let Value::Int(msgid) = msgid else { panic!("a reply without a msgid") };
        let value = match error {
            Value::Nil => result,
            Value::Text(text) => Value::Error(code_of(text.split(':').next().unwrap_or_default())),
            error => error,
        };
        Reply { msgid: Some(u32::try_from(msgid).unwrap()), value }
    } else {
        Reply { msgid: None, value: take_resp(&mut rest)? }
    };
    *bytes = rest;
    Some(reply)
}

fn code_of(name: &str) -> ErrorCode {
    ErrorCode::from_name(name).unwrap_or_else(|| panic!("{name:?} is no code"))
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// A MessagePack value: those that a coordinator writes. `depth` bounds what is inside.
fn take_msgpack(bytes: &mut &[u8], depth: usize) -> Option<Value> {
    let (&head, mut rest) = bytes.split_first()?;
    let mut size = |count: usize| {
        let (number, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(be(number))
    };
    let value = match head {
        0x00..=0x7f => Value::Int(i64::from(head)),
        0xe0..=0xff => Value::Int(i64::from(head as i8)),
        0xc0 => Value::Nil,
        0xc2 | 0xc3 => Value::Other,
        0xcc..=0xcf => {
            let number = size(1 << (head - 0xcc))?;
            i64::try_from(number).map_or(Value::Other, Value::Int)
        }
        0xd0..=0xd3 => {
            let bytes = 1 << (head - 0xd0);
            let shift = 64 - 8 * bytes as u32;
            Value::Int((size(bytes)? << shift) as i64 >> shift)
        }
        0xcb => {
            size(8)?;
            Value::Other
        }
        0xa0..=0xbf | 0xd9..=0xdb | 0xc4..=0xc6 => {
            let length = match head {
                0xa0..=0xbf => u64::from(head & 0x1f),
                0xd9..=0xdb => size(1 << (head - 0xd9))?,
                _ => size(1 << (head - 0xc4))?,
            };
            let (text, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            rest = after;
            Value::Text(String::from_utf8_lossy(text).into_owned())
        }
        0x80..=0x9f | 0xdc..=0xdf => {
            let length = match head {
                0x80..=0x9f => u64::from(head & 0x0f),
                _ => size(2 << (head & 1))?,
            };
            assert!(depth > 0, "a reply that is too deep");
            let is_map = matches!(head, 0x80..=0x8f | 0xde | 0xdf);
            let mut values = Vec::new();
            for _ in 0..length << u32::from(is_map) {
                values.push(take_msgpack(&mut rest, depth - 1)?);
            }
            if is_map { of_map(values) } else { Value::Array(values.into_iter().map(of_item).collect()) }
        }
        _ => panic!("{head:#x} is in a reply"),
    };
    *bytes = rest;
    Some(value)
}

/// An increment's value with detail is one with more to say.
fn of_map(values: Vec<Value>) -> Value {
    let is_value = |pair: &&[Value]| pair[0] == Value::Text("value".into());
    values.chunks(2).find(is_value).map_or(Value::Other, |pair| pair[1].clone())
}

/// An item's error is a text.
fn of_item(value: Value) -> Value {
    match &value {
        Value::Text(text) => match text.split_once(": ") {
            Some((name, _)) if ErrorCode::from_name(name).is_some() => Value::Error(code_of(name)),
            _ => value,
        },
        _ => value,
    }
}

fn take_resp(bytes: &mut &[u8]) -> Option<Value> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let (line, mut rest) = (&bytes[..end], &bytes[end + 2..]);
    let text = std::str::from_utf8(&line[1..]).expect("a line is text");
    let size = || text.parse::<i64>().expect("a size");
    let value = match line[0] {
        b'+' => Value::Text(format!("+{text}")),
        b':' => Value::Int(text.parse().expect("an integer")),
        b'_' => Value::Nil,
        b'#' | b',' => Value::Other,
        b'-' => {
            let code = text.strip_suffix(')').and_then(|text| text.rsplit_once('('));
            Value::Error(code_of(code.expect("an error ends with its code").1))
        }
        b'$' | b'=' if size() == -1 => Value::Nil,
        b'$' | b'=' => {
            let (text, after) = rest.split_at_checked(size() as usize)?;
            let (end, after) = after.split_at_checked(2)?;
            assert_eq!(end, b"\r\n", "a text is longer than it says");
            rest = after;
            let text = String::from_utf8_lossy(text).into_owned();
            text.parse().map_or(Value::Text(text), Value::Int)
        }
        b'*' | b'%' => {
            let mut values = Vec::new();
            for _ in 0..size() << u32::from(line[0] == b'%') {
                values.push(take_resp(&mut rest)?);
            }
            Value::Array(values)
        }
        _ => panic!("{} is no reply", line.escape_ascii()),
    };
    *bytes = rest;
    Some(value)
}

/// How many replies these bytes of a client get, if nothing ends the connection before.
pub fn due(sent: &[u8], limits: FrameLimits) -> usize {
    match sent.first().and_then(|&first| detect(first)) {
        None => 0,
        Some(Protocol::MsgpackRpc) => {
            let answers = |frame: &[u8]| match rpc::parse(frame) {
                Parsed::Request { .. } => Some(1),
                Parsed::Notification { .. } => Some(0),
                Parsed::Invalid { msgid, .. } => msgid.map(|_| 1),
            };
            let mut scanner = rpc::FrameScanner::default();
            count(sent, |bytes| scanner.scan(bytes, limits).map_err(|_| rpc::request_msgid(bytes).is_some()), answers)
        }
        Some(Protocol::Resp) => {
            let answers = |frame: &[u8]| Some(usize::from(!matches!(resp::parse(frame), Ok(Command::Empty))));
            let mut scanner = resp::FrameScanner::default();
            count(sent, |bytes| scanner.scan(bytes, limits).map_err(|_| true), answers)
        }
    }
}

/// `scan` says of bytes that are no frame whether they are answered, `answers` of a frame; `None` is the end, too.
fn count(
    mut rest: &[u8],
    mut scan: impl FnMut(&[u8]) -> Result<Scan, bool>,
    answers: impl Fn(&[u8]) -> Option<usize>,
) -> usize {
    let mut sum = 0;
    loop {
        match scan(rest) {
            Ok(Scan::Complete(length)) => {
                let Some(answered) = answers(&rest[..length]) else { return sum };
                sum += answered;
                rest = &rest[length..];
            }
            Ok(Scan::Incomplete) => return sum,
            Err(is_answered) => return sum + usize::from(is_answered),
        }
    }
}

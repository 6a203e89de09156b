//! Reads a shard's replies. The shard may be broken or another server altogether: whatever isn't a reply to what was
//! asked is told as that, before anything is made of it.

use super::types::LinkViolation;
use crate::wire::msgpack_rpc::reader::{Reader, Truncated, Value};
use crate::wire::request::Level;

/// A reply as it came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply<'a> {
    /// Bytes of the frame.
    pub length: usize,
    pub msgid: u32,
    /// `code: message`.
    pub error: Option<&'a str>,
    /// The result, encoded.
    pub result: &'a [u8],
}

/// Results of a batch: every one of them is an integer or an error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Results<'a> {
    pub count: usize,
    encoded: &'a [u8],
    pub level: Level,
    pub commit: u64,
}

/// What a shard says of itself and of a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Greeting<'a> {
    pub identity: &'a str,
    pub epoch: u64,
    pub last_sequence: Option<u64>,
}

/// One result of a batch.
pub(super) enum ItemResult<'a> {
    Value(i64),
    /// `code: message`.
    Error(&'a str),
}

const fn nonsense<T>(what: &'static str) -> Result<T, LinkViolation> {
    Err(LinkViolation::Nonsense(what))
}

/// The reply at the start of `bytes`; `None`: it isn't all there.
pub(super) fn read_reply(bytes: &[u8]) -> Result<Option<Reply<'_>>, LinkViolation> {
    match reply(bytes) {
        Ok(reply) => reply.map(Some),
        Err(Truncated) => Ok(None),
    }
}

fn reply(bytes: &[u8]) -> Result<Result<Reply<'_>, LinkViolation>, Truncated> {
    let mut reader = Reader::new(bytes);
    let (Value::Array(4), Value::Unsigned(1)) = (reader.read()?, reader.read()?) else {
        return Ok(nonsense("this is no reply"));
    };
    let Value::Unsigned(msgid) = reader.read()? else { return Ok(nonsense("this is no msgid")) };
    let Ok(msgid) = u32::try_from(msgid) else { return Ok(nonsense("this is no msgid")) };
    let error = match reader.read()? {
        Value::Nil => None,
        Value::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Some(text),
            Err(_) => return Ok(nonsense("an error that is no text")),
        },
        _ => return Ok(nonsense("an error that is no text")),
    };
    let start = reader.rest();
    reader.skip(1)?;
    let result = &start[..start.len() - reader.rest().len()];
    Ok(Ok(Reply { length: bytes.len() - reader.rest().len(), msgid, error, result }))
}

/// `{results, level, commit}`, which is whole.
pub(super) fn read_results(result: &[u8]) -> Result<Results<'_>, LinkViolation> {
    let broken = |Truncated| LinkViolation::Nonsense("results that are not whole");
    let mut reader = Reader::new(result);
    let Value::Map(pairs) = reader.read().map_err(broken)? else { return nonsense("results that are no map") };
    let (mut results, mut level, mut commit) = (None, None, None);
    for _ in 0..pairs {
        let Value::Text(name) = reader.read().map_err(broken)? else { return nonsense("a name that is no text") };
        match (name, reader.read().map_err(broken)?) {
            (b"results", Value::Array(count)) => {
                let start = reader.rest();
                for _ in 0..count {
                    check_item(&mut reader)?;
                }
                results = Some((count, &start[..start.len() - reader.rest().len()]));
            }
            (b"level", Value::Text(b"applied")) => level = Some(Level::Applied),
            (b"level", Value::Text(b"durable")) => level = Some(Level::Durable),
            (b"commit", Value::Unsigned(number)) => commit = Some(number),
            (b"results" | b"level" | b"commit", _) => return nonsense("results of another shape"),
            (_, Value::Array(count)) => reader.skip(count as u64).map_err(broken)?,
            (_, Value::Map(count)) => reader.skip(2 * count as u64).map_err(broken)?,
            _ => {}
        }
    }
    let (Some((count, encoded)), Some(level), Some(commit)) = (results, level, commit) else {
        return nonsense("results without numbers, level or commit");
    };
    Ok(Results { count, encoded, level, commit })
}

fn check_item(reader: &mut Reader<'_>) -> Result<(), LinkViolation> {
    match reader.read() {
        Ok(Value::Unsigned(value)) if i64::try_from(value).is_ok() => Ok(()),
        Ok(Value::Negative(_)) => Ok(()),
        Ok(Value::Text(text)) if std::str::from_utf8(text).is_ok() => Ok(()),
        _ => nonsense("a result that is neither a number nor an error"),
    }
}

impl<'a> Results<'a> {
    /// Each result, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = ItemResult<'a>> + use<'a> {
        let mut reader = Reader::new(self.encoded);
        std::iter::from_fn(move || match reader.read() {
            Ok(Value::Unsigned(value)) => Some(ItemResult::Value(value as i64)),
            Ok(Value::Negative(value)) => Some(ItemResult::Value(value)),
            Ok(Value::Text(text)) => Some(ItemResult::Error(std::str::from_utf8(text).unwrap_or_default())),
            _ => None,
        })
    }
}

/// The result of `hello`.
pub(super) fn read_greeting(result: &[u8]) -> Result<Greeting<'_>, LinkViolation> {
    let broken = |Truncated| LinkViolation::Nonsense("a greeting that is not whole");
    let mut reader = Reader::new(result);
    let Value::Map(pairs) = reader.read().map_err(broken)? else { return nonsense("a greeting that is no map") };
    let (mut identity, mut epoch, mut last_sequence) = (None, None, None);
    for _ in 0..pairs {
        let Value::Text(name) = reader.read().map_err(broken)? else { return nonsense("a name that is no text") };
        match (name, reader.read_whole().map_err(broken)?) {
            (b"identity", Value::Text(text)) => identity = std::str::from_utf8(text).ok(),
            (b"epoch", Value::Unsigned(number)) => epoch = Some(number),
            (b"last_sequence", Value::Unsigned(number)) => last_sequence = Some(number),
            (b"last_sequence", Value::Nil) => last_sequence = None,
            (b"identity" | b"epoch" | b"last_sequence", _) => return nonsense("a greeting of another shape"),
            _ => {}
        }
    }
    let (Some(identity), Some(epoch)) = (identity, epoch) else {
        return nonsense("a greeting without identity or epoch");
    };
    Ok(Greeting { identity, epoch, last_sequence })
}

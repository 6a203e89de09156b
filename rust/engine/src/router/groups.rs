//! Reads, and increments with ids, that travel to a shard together.
//!
//! Reads of one turn of the loop gather for each shard and go out as one `get_many`. They keep their place among the
//! increments: before one of a key that a gathered read may be about goes out, the reads do.

use super::Router;
use super::core::{Core, Late};
use super::slab::Place;
use super::waiter::{Kind, Waiter};
use crate::error_code::ErrorCode;
use crate::shard_link::split_error;
use crate::shard_link::{Outcome, Repeat};
use crate::wire::msgpack_rpc as rpc;
use crate::wire::msgpack_rpc::reader::{Reader, Value};

/// A batch of reads ends at so many ...
const BATCH_READS_MAX: usize = 1024;
/// ... or at so many bytes of keys, or half a frame: its frame, and the reply to it, stay below any bound. So does a group
/// of increments with ids.
const BATCH_BYTES_MAX: usize = 128 * 1024;
/// Bits that tell whether a key may be among a batch's.
const FILTER_BITS: usize = 1024;

/// Reads of one shard that gather.
#[derive(Debug)]
pub(super) struct ReadBatch {
    /// Encoded keys.
    keys: Vec<u8>,
    pub(super) waiters: Vec<Waiter>,
    filter: [u64; FILTER_BITS / 64],
}

impl Default for ReadBatch {
    fn default() -> Self {
        Self { keys: Vec::new(), waiters: Vec::new(), filter: [0; FILTER_BITS / 64] }
    }
}

/// Where a key's bit is.
#[inline]
const fn bit(hash: u64) -> (usize, u64) {
    let bit = (hash >> 32) as usize % FILTER_BITS;
    (bit / 64, 1 << (bit % 64))
}

impl ReadBatch {
    /// May it read this key?
    #[inline]
    pub(super) fn may_read(&self, hash: u64) -> bool {
        let (word, bit) = bit(hash);
        self.filter[word] & bit != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    fn push(&mut self, key: &[u8], waiter: Waiter) {
        let (word, bit) = bit(waiter.hash);
        self.filter[word] |= bit;
        // As bytes: what the key means in text is no matter between coordinator and shard.
        rpc::write_bin(&mut self.keys, key);
        self.waiters.push(waiter);
    }

    fn is_full(&self, bytes_max: usize) -> bool {
        self.waiters.len() >= BATCH_READS_MAX || self.keys.len() >= bytes_max
    }
}

/// Reads that are under way.
#[derive(Debug)]
pub(super) struct ReadGroup {
    pub(super) shard: usize,
    pub(super) waiters: Vec<Waiter>,
}

/// Increments with ids that are under way: of a gather, these items.
#[derive(Debug)]
pub(super) struct IncrGroup {
    pub(super) gather: Place,
    /// Hash of the key, and index.
    pub(super) items: Vec<(u64, u32)>,
}

impl Router {
    /// Reads a key at a shard, for `waiter`.
    pub(super) fn read_at(&mut self, shard: usize, key: &[u8], waiter: Waiter) {
        self.core.statistics.reads += 1;
        self.wants_flush = true;
        let bytes_max = self.group_bytes_max();
        let batch = &mut self.links[shard].reads;
        batch.push(key, waiter);
        if batch.is_full(bytes_max) {
            self.send_reads(shard);
        }
    }

    /// So long a request that gathers others may grow.
    pub(super) fn group_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX.min(self.settings.frame_bytes_max / 2)
    }

    /// Sends the reads that have gathered.
    pub(super) fn send_reads(&mut self, shard: usize) {
        let link = &mut self.links[shard];
        if link.reads.is_empty() {
            return;
        }
        let params = &mut self.scratch;
        params.clear();
        rpc::write_array_len(params, 2);
        rpc::write_array_len(params, link.reads.waiters.len());
        params.extend_from_slice(&link.reads.keys);
        rpc::write_map_len(params, 1);
        rpc::write_str(params, "or_nil");
        rpc::write_bool(params, true);
        link.reads.keys.clear();
        link.reads.filter = [0; FILTER_BITS / 64];
        let spare = self.core.waiters_pool.pop().unwrap_or_default();
        let waiters = std::mem::replace(&mut link.reads.waiters, spare);
        let place = self.core.read_groups.insert(ReadGroup { shard, waiters });
        let waiter = Waiter { hash: 0, place, ticket: 0, kind: Kind::ReadGroup };
        let deadline_ms = self.core.now_ms.saturating_add(self.settings.request_timeout_ms);
        match link.link.call("get_many", params, Repeat::Always, deadline_ms, waiter) {
            Ok(()) => self.core.stopwatches[shard].asked += 1,
            Err(waiter) => self.core.late.push(Late::Refused(waiter, ErrorCode::Overloaded, shard)),
        }
    }
}

impl Core {
    pub(super) fn read_group_done(&mut self, shard: usize, place: Place, outcome: Outcome<'_>) {
        let Some(ReadGroup { mut waiters, .. }) = self.read_groups.remove(place) else { return };
        let (code, message) = match outcome {
            Outcome::Reply(reply) | Outcome::ReplyAgain(reply) => {
                let mut reader = Reader::new(reply);
                let whole = matches!(reader.read(), Ok(Value::Array(count)) if count == waiters.len());
                for &waiter in &waiters {
                    self.read_done(shard, waiter, if whole { value(&mut reader) } else { None });
                }
                waiters.clear();
                (ErrorCode::Internal, "")
            }
            Outcome::Error { code, message } => (code, message),
            Outcome::ErrorText(text) => split_error(text),
            Outcome::Value { .. } => (ErrorCode::Internal, "the shard's answer has another form"),
        };
        if !waiters.is_empty() {
            self.stopwatches[shard].note_error(code);
        }
        for waiter in waiters.drain(..) {
            self.refuse(waiter, code, message);
        }
        const POOLED_MAX: usize = 64;
        if self.waiters_pool.len() < POOLED_MAX {
            self.waiters_pool.push(waiters);
        }
    }

    /// A shard's answer to a read: `Some(None)` where it has no such counter, `None` where the answer made no sense.
    fn read_done(&mut self, shard: usize, waiter: Waiter, value: Option<Option<i64>>) {
        let Some(value) = value else {
            return self.refuse(waiter, ErrorCode::Internal, "the shard's answer has another form");
        };
        self.partials.set(waiter.hash, shard, value.unwrap_or(0));
        match waiter.kind {
            Kind::PartRead => self.part_done(waiter, Ok(value.map(i128::from))),
            Kind::PartOfWhole => self.part_of_whole_done(shard, waiter, Ok(value)),
            kind => self.settle_read(waiter.place, waiter.ticket, value.or((kind == Kind::Read).then_some(0))),
        }
    }

    pub(super) fn incr_group_done(&mut self, shard: usize, place: Place, outcome: Outcome<'_>) {
        let Some(IncrGroup { gather, items }) = self.incr_groups.remove(place) else { return };
        let mut reader = Reader::new(b"");
        let mut failure = None;
        match outcome {
            Outcome::Reply(reply) | Outcome::ReplyAgain(reply) => reader = Reader::new(reply),
            Outcome::Error { code, message } => failure = Some((code, message)),
            Outcome::ErrorText(text) => failure = Some(split_error(text)),
            Outcome::Value { .. } => {}
        }
        if let Some((code, _)) = failure {
            self.stopwatches[shard].note_error(code);
        } else if !matches!(reader.read(), Ok(Value::Array(count)) if count == items.len()) {
            failure = Some((ErrorCode::Internal, "the shard's answer has another form"));
        }
        for (hash, ticket) in items {
            self.settled(hash);
            let waiter = Waiter { hash, place: gather, ticket, kind: Kind::PartIncr };
            let part = match failure {
                Some(failure) => Err(failure),
                // Whole: what is inside of nonsense is no other item's value.
                None => match reader.read_whole() {
                    Ok(Value::Text(text)) => {
                        let (code, message) = split_error(std::str::from_utf8(text).unwrap_or("internal: "));
                        // The attempt before it may be on its way, and find room.
                        let is_open = code.retryable() && matches!(outcome, Outcome::ReplyAgain(_));
                        Err((if is_open { ErrorCode::UnknownOutcome } else { code }, message))
                    }
                    Ok(Value::Unsigned(value)) if i64::try_from(value).is_ok() => Ok(value as i64),
                    Ok(Value::Negative(value)) => Ok(value),
                    _ => Err((ErrorCode::Internal, "the shard's answer has another form")),
                },
            };
            let part = part.map(|value| Some(self.with_others(shard, hash, value).0));
            self.part_done(waiter, part);
        }
    }
}

/// The next value or nil of an array. `None`: it is neither.
fn value(reader: &mut Reader<'_>) -> Option<Option<i64>> {
    match reader.read_whole().ok()? {
        Value::Nil => Some(None),
        Value::Unsigned(value) => i64::try_from(value).ok().map(Some),
        Value::Negative(value) => Some(Some(value)),
        _ => None,
    }
}

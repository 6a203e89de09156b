//! Requests that several answers of shards make up: sums of what shards hold of a counter, several counters, several
//! increments. Sums have 128 bits.

use super::core::{Core, Late, large};
use super::reply_row::Reply;
use super::slab::Place;
use super::waiter::{Kind, Waiter};
use crate::connection_input::Protocol;
use crate::error_code::ErrorCode;
use crate::read_cache::ReadCache;
use crate::shard_link::Outcome;
use crate::wire::msgpack_rpc as rpc;
use crate::wire::resp;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One counter; the only item.
    Value {
        /// nil instead of 0 where there is none.
        or_nil: bool,
    },
    /// Several counters.
    Values {
        /// nil instead of 0 where there is none.
        or_nil: bool,
    },
    /// The outcome of each of several increments.
    Outcomes,
    /// How many of several counters exist.
    Existing,
    /// Does the only one exist?
    Type,
}

/// One counter or increment.
#[derive(Debug, Clone, Copy, Default)]
struct Item {
    sum: i128,
    /// A shard has the counter.
    found: bool,
    /// It was refused, see `Gather::errors`.
    refused: bool,
}

/// A request whose answers are being gathered.
#[derive(Debug)]
pub(super) struct Gather {
    wanted: Wanted,
    /// Who asked.
    connection: Place,
    ticket: u32,
    items: Vec<Item>,
    /// By item, where outcomes are wanted.
    errors: Vec<(u32, ErrorCode)>,
    /// The first error, where all are answered together.
    error: Option<(ErrorCode, String)>,
    /// By item, what the cache is to keep: the key, and its version before it was read.
    to_keep: Vec<(u32, Box<[u8]>, u64)>,
    /// Answers that are missing.
    lacking: usize,
    /// As counted in the sum of all.
    bytes: usize,
}

impl Gather {
    pub(super) fn new(wanted: Wanted, connection: Place, ticket: u32, items: usize) -> Self {
        let items = vec![Item::default(); items];
        let bytes = size_of::<Self>() + items.capacity() * size_of::<Item>();
        Self {
            wanted,
            connection,
            ticket,
            items,
            errors: Vec::new(),
            error: None,
            to_keep: Vec::new(),
            lacking: 0,
            bytes,
        }
    }

    /// The request that all this is for: its connection, and its number there.
    pub(super) const fn asker(&self) -> (Place, u32) {
        (self.connection, self.ticket)
    }

    /// One more answer is expected.
    pub(super) fn expect(&mut self) {
        self.lacking += 1;
    }

    /// What comes of this item is for the cache too.
    pub(super) fn keep(&mut self, item: u32, key: &[u8], version: u64) {
        self.to_keep.push((item, key.into(), version));
    }

    fn fill(&self, cache: &ReadCache) {
        for (item, key, version) in &self.to_keep {
            match self.items.get(*item as usize) {
                Some(item) if item.found && !item.refused => match i64::try_from(item.sum) {
                    Ok(value) => drop(cache.fill(key, value, *version)),
                    Err(_) => cache.refuse(),
                },
                _ => {}
            }
        }
    }

    pub(super) fn take(&mut self, item: u32, part: Result<Option<i128>, (ErrorCode, &str)>) {
        let Some(place) = self.items.get_mut(item as usize) else { return };
        match part {
            Ok(value) => {
                place.found |= value.is_some();
                // 2^64 shards would have to hold 2^63 each for this to overflow.
                place.sum = place.sum.wrapping_add(value.unwrap_or(0));
            }
            Err((code, message)) => {
                place.refused = true;
                if self.wanted == Wanted::Outcomes {
                    self.errors.push((item, code));
                } else if self.error.is_none() {
                    self.error = Some((code, message.to_owned()));
                }
            }
        }
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        if let Some((code, message)) = &self.error {
            return rpc::reply_error(out, self.ticket, *code, message);
        }
        rpc::reply_begin(out, self.ticket);
        let write = |out: &mut Vec<u8>, item: &Item, or_nil: bool| match item.found || !or_nil {
            true => rpc::write_i128(out, item.sum),
            false => rpc::write_nil(out),
        };
        match self.wanted {
            // RESP's only.
            Wanted::Existing | Wanted::Type => rpc::write_nil(out),
            Wanted::Value { or_nil } => write(out, &self.items.first().copied().unwrap_or_default(), or_nil),
            Wanted::Values { or_nil } => {
                rpc::write_array_len(out, self.items.len());
                for item in &self.items {
                    write(out, item, or_nil);
                }
            }
            Wanted::Outcomes => {
                rpc::write_array_len(out, self.items.len());
                self.errors.sort_by_key(|(item, _)| *item);
                let mut errors = self.errors.iter();
                for item in &self.items {
                    match item.refused.then(|| errors.next()).flatten() {
                        Some((_, code)) => rpc::write_error(out, *code, code.meaning()),
                        None => rpc::write_i128(out, item.sum),
                    }
                }
            }
        }
    }

    /// As a RESP connection's reply.
    fn reply(&self) -> Reply {
        let mut text = Vec::new();
        if let Some((code, message)) = &self.error {
            resp::write_error(&mut text, *code, message);
            return Reply::Bytes(text.into());
        }
        let reply = |item: &Item| match i64::try_from(item.sum) {
            _ if !item.found => Reply::Null,
            Ok(value) => Reply::Bulk(value),
            Err(_) => large(item.sum),
        };
        let existing = || self.items.iter().filter(|item| item.found).count();
        match (self.wanted, self.items.first()) {
            (Wanted::Value { .. }, Some(item)) => reply(item),
            (Wanted::Existing, _) => Reply::Int(existing() as i64),
            (Wanted::Type, _) => Reply::Bytes(if existing() > 0 { &b"+string\r\n"[..] } else { b"+none\r\n" }.into()),
            _ => Reply::Values(self.items.iter().map(reply).collect()),
        }
    }
}

impl Core {
    /// Begins a gather, with one answer more than will come: [`Late::Begun`] takes that back.
    pub(super) fn begin_gather(&mut self, mut gather: Gather) -> Place {
        gather.expect();
        self.held_bytes += gather.bytes;
        self.gathers.insert(gather)
    }

    /// Tells what came of requests of the connection that was fed.
    pub(super) fn tell_late(&mut self, names: &[String]) {
        for late in std::mem::take(&mut self.late) {
            match late {
                Late::Begun(place) => self.one_less(place),
                Late::BegunWhole(place) => self.one_less_of_whole(place),
                Late::Refused(waiter, code, shard) => {
                    let name = names.get(shard).map_or("", String::as_str);
                    let message = match code {
                        ErrorCode::Overloaded => format!("what waits for shard {name} fills its bound"),
                        _ => format!("shard {name} can't be reached; nothing was applied"),
                    };
                    self.done_refused(shard, waiter, code, &message);
                }
            }
        }
    }

    fn done_refused(&mut self, shard: usize, waiter: Waiter, code: ErrorCode, message: &str) {
        self.statistics.overloaded += u64::from(code == ErrorCode::Overloaded);
        match waiter.kind {
            Kind::ReadGroup => self.read_group_done(shard, waiter.place, Outcome::Error { code, message }),
            Kind::IncrGroup => self.incr_group_done(shard, waiter.place, Outcome::Error { code, message }),
            Kind::RemovalGroup => self.removal_group_done(shard, waiter.place, Outcome::Error { code, message }),
            Kind::Count => self.count_done(waiter.place, Outcome::Error { code, message }),
            _ => self.refuse(waiter, code, message),
        }
    }

    /// An answer for an item came: a value, nothing, or an error.
    pub(super) fn part_done(&mut self, waiter: Waiter, part: Result<Option<i128>, (ErrorCode, &str)>) {
        if let Some(gather) = self.gathers.get_mut(waiter.place) {
            gather.take(waiter.ticket, part);
            self.one_less(waiter.place);
        }
    }

    fn one_less(&mut self, place: Place) {
        let Some(gather) = self.gathers.get_mut(place) else { return };
        gather.lacking -= 1;
        if gather.lacking > 0 {
            return;
        }
        let Some(mut gather) = self.gathers.remove(place) else { return };
        self.held_bytes -= gather.bytes;
        if let Some(cache) = &self.cache {
            gather.fill(cache);
        }
        self.statistics.errors += u64::from(gather.error.is_some());
        self.settle(gather.connection, |connection| match &connection.protocol {
            Protocol::Resp(state) => {
                let version = state.version;
                connection.replies.settle(gather.ticket, gather.reply(), version, &mut connection.out);
            }
            _ => {
                gather.write(&mut connection.out);
                connection.pending -= 1;
            }
        });
        self.release_stopped();
    }
}

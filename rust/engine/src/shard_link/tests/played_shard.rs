//! A link whose shard's side a test plays.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error_code::ErrorCode;
use crate::shard_link::{LinkSettings, LinkViolation, Outcome, Repeat, ShardLink};
use crate::wire::msgpack_rpc::{self as rpc, Parsed};
use crate::wire::request::{Level, Request, SessionId};

/// What was told: who waited, and the value or the error's code.
pub(super) type Told = Vec<(u32, Result<i64, ErrorCode>)>;

/// A link with the shard's side played by the test.
pub(super) struct Link {
    pub(super) link: ShardLink<u32>,
    pub(super) told: Told,
    pub(super) replies: Vec<(u32, Vec<u8>)>,
    pub(super) errors: Vec<(u32, String)>,
}

/// A request as the shard sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Hello(SessionId),
    Bye(SessionId),
    Apply { msgid: u32, session: SessionId, first: u64, acked: u64, items: Vec<(Vec<u8>, i64)>, level: Level },
    Get { msgid: u32, key: Vec<u8> },
    Incr { msgid: u32, key: Vec<u8> },
}

pub(super) fn settings() -> LinkSettings {
    let count = AtomicU8::new(0);
    LinkSettings {
        new_session_id: Arc::new(move || SessionId([count.fetch_add(1, Ordering::Relaxed) + 1; 16])),
        ..LinkSettings::default()
    }
}

pub(super) const FIRST: SessionId = SessionId([1; 16]);
pub(super) const SECOND: SessionId = SessionId([2; 16]);

impl Link {
    pub(super) fn new(settings: LinkSettings) -> Self {
        Self { link: ShardLink::new(settings), told: Vec::new(), replies: Vec::new(), errors: Vec::new() }
    }

    /// Greeted by a shard that doesn't know the session.
    pub(super) fn ready() -> Self {
        let mut link = Self::new(settings());
        link.connect("a", 1, None);
        link
    }

    pub(super) fn connect(&mut self, identity: &str, epoch: u64, last_sequence: Option<u64>) {
        self.link.connected();
        let seen = self.flush();
        assert!(matches!(seen.as_slice(), [Seen::Hello(_)]), "{seen:?}");
        self.greet(identity, epoch, last_sequence).unwrap();
    }

    pub(super) fn greet(
        &mut self,
        identity: &str,
        epoch: u64,
        last_sequence: Option<u64>,
    ) -> Result<(), LinkViolation> {
        let mut bytes = Vec::new();
        rpc::reply_begin(&mut bytes, 0x4000_0000);
        rpc::write_map_len(&mut bytes, 3);
        rpc::write_str(&mut bytes, "identity");
        rpc::write_str(&mut bytes, identity);
        rpc::write_str(&mut bytes, "epoch");
        rpc::write_u64(&mut bytes, epoch);
        rpc::write_str(&mut bytes, "last_sequence");
        match last_sequence {
            Some(last) => rpc::write_u64(&mut bytes, last),
            None => rpc::write_nil(&mut bytes),
        }
        self.feed(&bytes)
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), LinkViolation> {
        let Self { link, told, replies, errors } = self;
        link.feed(bytes, &mut |waiter, outcome| match outcome {
            Outcome::Value { value, .. } => told.push((waiter, Ok(value))),
            Outcome::Error { code, .. } => told.push((waiter, Err(code))),
            Outcome::Reply(bytes) | Outcome::ReplyAgain(bytes) => replies.push((waiter, bytes.to_vec())),
            Outcome::ErrorText(text) => errors.push((waiter, text.to_owned())),
        })
    }

    pub(super) fn lose(&mut self) {
        let told = &mut self.told;
        self.link.lost(&mut |waiter, outcome| told.push((waiter, code_of(outcome))));
    }

    pub(super) fn tick(&mut self, now_ms: u64) {
        let told = &mut self.told;
        self.link.tick(now_ms, &mut |waiter, outcome| told.push((waiter, code_of(outcome))));
    }

    pub(super) fn incr(&mut self, key: &str, level: Level, waiter: u32) {
        self.link.incr(key.as_bytes(), 1, level, 2000, waiter).unwrap();
    }

    pub(super) fn get(&mut self, waiter: u32) {
        self.link.call("get", b"\x91\xa1k", Repeat::Always, 2000, waiter).unwrap();
    }

    pub(super) fn flush(&mut self) -> Vec<Seen> {
        let mut bytes = Vec::new();
        self.link.flush(&mut bytes);
        seen(&bytes)
    }

    pub(super) fn answer(&mut self, msgid: u32, values: &[i64], level: Level) -> Result<(), LinkViolation> {
        let bytes = results(msgid, values, level);
        self.feed(&bytes)
    }

    pub(super) fn refuse(&mut self, msgid: u32, code: ErrorCode) {
        let mut bytes = Vec::new();
        rpc::reply_error(&mut bytes, msgid, code, code.meaning());
        self.feed(&bytes).unwrap();
    }

    pub(super) fn take_told(&mut self) -> Told {
        std::mem::take(&mut self.told)
    }
}

pub(super) fn code_of(outcome: Outcome<'_>) -> Result<i64, ErrorCode> {
    match outcome {
        Outcome::Error { code, .. } => Err(code),
        other => panic!("{other:?} without a reply"),
    }
}

pub(super) fn results(msgid: u32, values: &[i64], level: Level) -> Vec<u8> {
    let mut bytes = Vec::new();
    rpc::reply_begin(&mut bytes, msgid);
    rpc::write_map_len(&mut bytes, 3);
    rpc::write_str(&mut bytes, "results");
    rpc::write_array_len(&mut bytes, values.len());
    values.iter().for_each(|&value| rpc::write_i64(&mut bytes, value));
    rpc::write_str(&mut bytes, "level");
    rpc::write_str(&mut bytes, level.name());
    rpc::write_str(&mut bytes, "commit");
    rpc::write_u64(&mut bytes, 7);
    bytes
}

/// The requests in `bytes`, understood by the shard's own parser.
pub(super) fn seen(mut bytes: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    while !bytes.is_empty() {
        let limits = crate::wire::scan::FrameLimits { bytes_max: 1 << 20 };
        let Ok(crate::wire::scan::Scan::Complete(length)) = rpc::FrameScanner::default().scan(bytes, limits) else {
            panic!("no whole frame: {}", bytes.escape_ascii());
        };
        let (frame, rest) = bytes.split_at(length);
        bytes = rest;
        seen.push(match rpc::parse(frame) {
            Parsed::Request {
                msgid,
                request: Ok(Request::Apply { session, first_sequence, acked_through, items, level }),
            } => {
                let items = items.iter().map(|item| (item.key.to_vec(), item.delta)).collect();
                let level = level.unwrap();
                Seen::Apply { msgid, session, first: first_sequence, acked: acked_through, items, level }
            }
            Parsed::Request { request: Ok(Request::Hello { session, .. }), .. } => Seen::Hello(session.unwrap()),
            Parsed::Request { msgid, request: Ok(Request::Get { key, .. }) } => Seen::Get { msgid, key: key.to_vec() },
            Parsed::Request { msgid, request: Ok(Request::Incr { key, .. }) } => {
                Seen::Incr { msgid, key: key.to_vec() }
            }
            Parsed::Notification { request: Ok(Request::Bye { session }), .. } => Seen::Bye(session),
            other => panic!("{other:?}"),
        });
    }
    seen
}

/// (msgid, first, number of items) of batches, and (msgid, 0, 0) of calls.
pub(super) fn shapes(seen: &[Seen]) -> Vec<(u32, u64, usize)> {
    seen.iter()
        .map(|one| match one {
            Seen::Apply { msgid, first, items, .. } => (*msgid, *first, items.len()),
            Seen::Get { msgid, .. } | Seen::Incr { msgid, .. } => (*msgid, 0, 0),
            other => panic!("{other:?}"),
        })
        .collect()
}

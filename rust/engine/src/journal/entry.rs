//! What a record's body and a checkpoint's page are made of: one fact about the state each.
//!
//! Entries carry absolute values, never deltas, and are applied in order. All integers are little-endian;
//! lengths are LEB128 varints; counter values are zigzag varints.

use crate::error_code::ErrorCode;
use crate::wire::request::SessionId;

/// Tells two operations under one id or sequence apart: a hash of method, key and delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

/// What a change answered, kept to be answered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredResult {
    /// The value after an increment, or the amount taken.
    Value(i64),
    /// Why it was refused, finally.
    Error(ErrorCode),
}

/// One fact.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry<'a> {
    /// The counter has this value.
    Counter {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
        /// Absolute.
        value: i64,
    },
    /// The counter does not exist.
    Deleted {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
    },
    /// No counter exists (the entries after this one in the same commit do).
    Cleared,
    /// A session's row. In a record: only the results that are new since the session's last entry,
    /// that is those of `first_sequence ..`. In a page: all results above `acked_through`.
    Session {
        /// Whose.
        session: SessionId,
        /// Results up to here are no longer kept.
        acked_through: u64,
        /// The sequence of `results[0]`; the session's last sequence is `first_sequence + results.len() - 1`.
        first_sequence: u64,
        /// The shard's uptime when the session was last used, in milliseconds.
        used_ms: u64,
        /// In order.
        results: Vec<(Fingerprint, StoredResult)>,
    },
    /// The session has ended: a tombstone.
    SessionEnded {
        /// Whose.
        session: SessionId,
        /// The shard's uptime then, in milliseconds.
        ended_ms: u64,
    },
    /// An operation id and what its operation answered.
    OperationId {
        /// 1 to 64 bytes.
        id: &'a [u8],
        /// Of the operation.
        fingerprint: Fingerprint,
        /// Its answer.
        result: StoredResult,
        /// The shard's uptime then, in milliseconds.
        seen_ms: u64,
    },
    /// The shard has been up for so long, all its runs together, in milliseconds.
    Uptime {
        /// Milliseconds.
        uptime_ms: u64,
    },
}

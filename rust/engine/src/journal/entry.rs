//! What a record's body and a checkpoint's page are made of: one fact about the state each.
//!
//! Entries carry absolute values, never deltas, and are applied in order.
//!
//! Encoding: a tag byte, then the fields in the order of their declaration. Keys and operation ids are a varint length
//! and the bytes; session ids 16 bytes; fingerprints 8 bytes, little-endian; counter values zigzag varints; every other
//! integer and every count a varint (LEB128, at most 10 bytes). A result is 0 and a zigzag varint, or 1 and the number
//! of the error code.

use crate::error_code::ErrorCode;
use crate::limits::{KEY_BYTES_MAX, OPERATION_ID_BYTES_MAX, SESSION_ID_BYTES};
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

impl StoredResult {
    /// Of an operation that was carried out or finally refused.
    #[must_use]
    pub const fn from_outcome(outcome: Result<i64, ErrorCode>) -> Self {
        match outcome {
            Ok(value) => Self::Value(value),
            Err(code) => Self::Error(code),
        }
    }

    /// To be answered again.
    ///
    /// # Errors
    /// The one that was answered the first time.
    pub const fn into_outcome(self) -> Result<i64, ErrorCode> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Error(code) => Err(code),
        }
    }
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

/// Tag bytes. They are stored: never reuse one.
pub(crate) mod tag {
    pub(crate) const COUNTER: u8 = 1;
    pub(crate) const DELETED: u8 = 2;
    pub(crate) const CLEARED: u8 = 3;
    pub(crate) const SESSION: u8 = 4;
    pub(crate) const SESSION_ENDED: u8 = 5;
    pub(crate) const OPERATION_ID: u8 = 6;
    pub(crate) const UPTIME: u8 = 7;
}

/// Tags of a stored result.
const RESULT_VALUE: u8 = 0;
const RESULT_ERROR: u8 = 1;

/// The longest varint of 64 bits.
pub(crate) const VARINT_BYTES_MAX: usize = 10;
/// The most that a key or an operation id takes: its length (two bytes suffice for 1,024) and itself.
const KEY_ENCODED_MAX: usize = 2 + KEY_BYTES_MAX;
/// The most that one result takes.
const RESULT_BYTES_MAX: usize = 8 + 1 + VARINT_BYTES_MAX;
/// The least that one result takes: what a claimed count is checked against before memory is reserved for it.
const RESULT_BYTES_MIN: usize = 8 + 1 + 1;

/// The most bytes that one encoded entry takes, leaving a session's results aside.
pub const ENTRY_BYTES_MAX: usize =
    1 + KEY_ENCODED_MAX + 8 + 2 * VARINT_BYTES_MAX + 1 + SESSION_ID_BYTES + 3 * VARINT_BYTES_MAX;

/// Why bytes are not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The bytes end inside it.
    #[error("the entry is cut short")]
    Short,
    /// A kind that this version does not know.
    #[error("unknown entry tag {0}")]
    UnknownTag(u8),
    /// A varint of more than 64 bits.
    #[error("a varint is longer than 64 bits")]
    Varint,
    /// A key or an operation id of a length that none may have.
    #[error("a key or an operation id has {0} bytes")]
    Length(u64),
    /// An error code or a result tag that this version does not know.
    #[error("unknown result {0}")]
    Result(u8),
    /// The sequences of a session's results would pass 64 bits, or begin at 0.
    #[error("a session's sequences are out of range")]
    Sequence,
}

/// Appends `value` as a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `value` as a zigzag varint: small magnitudes are short, whatever their sign.
pub(crate) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends the length of `bytes` and `bytes`.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_result(out: &mut Vec<u8>, result: StoredResult) {
    match result {
        StoredResult::Value(value) => {
            out.push(RESULT_VALUE);
            put_zigzag(out, value);
        }
        StoredResult::Error(code) => out.extend_from_slice(&[RESULT_ERROR, code as u8]),
    }
}

/// Appends a counter entry: what most of a record consists of.
///
/// # Panics
/// If the key is empty or longer than `KEY_BYTES_MAX`: such a record could not be read again.
pub(crate) fn put_counter(out: &mut Vec<u8>, key: &[u8], value: i64) {
    assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX, "a key has 1 to {KEY_BYTES_MAX} bytes");
    // One reservation and one copy of the fixed parts on either side of the key.
    out.reserve(1 + 2 + key.len() + VARINT_BYTES_MAX);
    if key.len() < 0x80 {
        out.extend_from_slice(&[tag::COUNTER, key.len() as u8]);
    } else {
        out.push(tag::COUNTER);
        put_varint(out, key.len() as u64);
    }
    out.extend_from_slice(key);
    put_zigzag(out, value);
}

/// Appends the entry of a deleted counter.
///
/// # Panics
/// As [`put_counter`].
pub(crate) fn put_deleted(out: &mut Vec<u8>, key: &[u8]) {
    assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX, "a key has 1 to {KEY_BYTES_MAX} bytes");
    out.push(tag::DELETED);
    put_bytes(out, key);
}

/// Appends a session entry with these results.
pub(crate) fn put_session(
    out: &mut Vec<u8>,
    session: SessionId,
    acked_through: u64,
    first_sequence: u64,
    used_ms: u64,
    results: &[(Fingerprint, StoredResult)],
) {
    assert!(first_sequence > 0, "sequences begin at 1");
    out.push(tag::SESSION);
    out.extend_from_slice(&session.0);
    put_varint(out, acked_through);
    put_varint(out, first_sequence);
    put_varint(out, used_ms);
    put_varint(out, results.len() as u64);
    for (fingerprint, result) in results {
        out.extend_from_slice(&fingerprint.0.to_le_bytes());
        put_result(out, *result);
    }
}

impl Entry<'_> {
    /// Appends the entry's bytes.
    ///
    /// # Panics
    /// If a key or an operation id is empty or too long, or a session's first sequence is 0.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Entry::Counter { key, value } => put_counter(out, key, *value),
            Entry::Deleted { key } => put_deleted(out, key),
            Entry::Cleared => out.push(tag::CLEARED),
            Entry::Session { session, acked_through, first_sequence, used_ms, results } => {
                put_session(out, *session, *acked_through, *first_sequence, *used_ms, results);
            }
            Entry::SessionEnded { session, ended_ms } => {
                out.push(tag::SESSION_ENDED);
                out.extend_from_slice(&session.0);
                put_varint(out, *ended_ms);
            }
            Entry::OperationId { id, fingerprint, result, seen_ms } => {
                assert!(
                    !id.is_empty() && id.len() <= OPERATION_ID_BYTES_MAX,
                    "an operation id has 1 to {OPERATION_ID_BYTES_MAX} bytes"
                );
                out.push(tag::OPERATION_ID);
                put_bytes(out, id);
                out.extend_from_slice(&fingerprint.0.to_le_bytes());
                put_result(out, *result);
                put_varint(out, *seen_ms);
            }
            Entry::Uptime { uptime_ms } => {
                out.push(tag::UPTIME);
                put_varint(out, *uptime_ms);
            }
        }
    }

    /// At least as many bytes as [`Entry::encode`] appends, found without encoding.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        match self {
            Entry::Session { results, .. } => ENTRY_BYTES_MAX + results.len() * RESULT_BYTES_MAX,
            Entry::Counter { key, value: _ } => 1 + 2 + key.len() + VARINT_BYTES_MAX,
            _ => ENTRY_BYTES_MAX,
        }
    }
}

/// How many results of a session fit into one entry of at most `bytes` bytes.
pub(crate) const fn results_within(bytes: usize) -> usize {
    bytes.saturating_sub(ENTRY_BYTES_MAX) / RESULT_BYTES_MAX
}

/// Takes entries off the front of bytes that hold nothing else.
#[derive(Debug, Clone)]
pub struct EntryReader<'a> {
    rest: &'a [u8],
}

impl<'a> EntryReader<'a> {
    /// Over the body of a record, or of a page.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], EntryError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(EntryError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(EntryError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, EntryError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn varint(&mut self) -> Result<u64, EntryError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            // The tenth byte has room for one bit only.
            if shift == 63 && byte > 1 {
                return Err(EntryError::Varint);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(EntryError::Varint)
    }

    fn zigzag(&mut self) -> Result<i64, EntryError> {
        self.varint().map(|value| (value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn bytes(&mut self, longest: usize) -> Result<&'a [u8], EntryError> {
        let length = self.varint()?;
        match usize::try_from(length) {
            Ok(count) if (1..=longest).contains(&count) => self.take(count),
            _ => Err(EntryError::Length(length)),
        }
    }

    fn session(&mut self) -> Result<SessionId, EntryError> {
        self.array::<SESSION_ID_BYTES>().map(SessionId)
    }

    fn fingerprint(&mut self) -> Result<Fingerprint, EntryError> {
        self.array::<8>().map(|bytes| Fingerprint(u64::from_le_bytes(bytes)))
    }

    fn result(&mut self) -> Result<StoredResult, EntryError> {
        match self.byte()? {
            RESULT_VALUE => self.zigzag().map(StoredResult::Value),
            RESULT_ERROR => {
                let number = self.byte()?;
                ErrorCode::from_number(number).map(StoredResult::Error).ok_or(EntryError::Result(number))
            }
            other => Err(EntryError::Result(other)),
        }
    }

    fn results(&mut self, first_sequence: u64) -> Result<Vec<(Fingerprint, StoredResult)>, EntryError> {
        let count = self.varint()?;
        if first_sequence == 0 || first_sequence.checked_add(count).is_none() {
            return Err(EntryError::Sequence);
        }
        // Checked before anything is reserved: a claimed count cannot cost more than the bytes that came with it.
        let count = usize::try_from(count)
            .ok()
            .filter(|&count| count <= self.rest.len() / RESULT_BYTES_MIN)
            .ok_or(EntryError::Short)?;
        let mut results = Vec::with_capacity(count);
        for _ in 0..count {
            results.push((self.fingerprint()?, self.result()?));
        }
        Ok(results)
    }

    fn entry(&mut self) -> Result<Entry<'a>, EntryError> {
        Ok(match self.byte()? {
            tag::COUNTER => Entry::Counter { key: self.bytes(KEY_BYTES_MAX)?, value: self.zigzag()? },
            tag::DELETED => Entry::Deleted { key: self.bytes(KEY_BYTES_MAX)? },
            tag::CLEARED => Entry::Cleared,
            tag::SESSION => {
                let session = self.session()?;
                let (acked_through, first_sequence, used_ms) = (self.varint()?, self.varint()?, self.varint()?);
                Entry::Session {
                    session,
                    acked_through,
                    first_sequence,
                    used_ms,
                    results: self.results(first_sequence)?,
                }
            }
            tag::SESSION_ENDED => Entry::SessionEnded { session: self.session()?, ended_ms: self.varint()? },
            tag::OPERATION_ID => Entry::OperationId {
                id: self.bytes(OPERATION_ID_BYTES_MAX)?,
                fingerprint: self.fingerprint()?,
                result: self.result()?,
                seen_ms: self.varint()?,
            },
            tag::UPTIME => Entry::Uptime { uptime_ms: self.varint()? },
            other => return Err(EntryError::UnknownTag(other)),
        })
    }
}

impl<'a> Iterator for EntryReader<'a> {
    type Item = Result<Entry<'a>, EntryError>;

    /// After an error nothing more comes: what follows could not be told from noise.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            self.rest = &[];
        }
        Some(entry)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry that owns its bytes, for strategies.
    #[derive(Debug, Clone)]
    pub(crate) enum OwnedEntry {
        Counter(Vec<u8>, i64),
        Deleted(Vec<u8>),
        Cleared,
        Session([u8; 16], u64, u64, u64, Vec<(u64, Result<i64, usize>)>),
        SessionEnded([u8; 16], u64),
        OperationId(Vec<u8>, u64, Result<i64, usize>, u64),
        Uptime(u64),
    }

    fn stored(result: Result<i64, usize>) -> StoredResult {
        match result {
            Ok(value) => StoredResult::Value(value),
            Err(index) => StoredResult::Error(ErrorCode::ALL[index % ErrorCode::ALL.len()]),
        }
    }

    impl OwnedEntry {
        pub(crate) fn borrow(&self) -> Entry<'_> {
            match self {
                OwnedEntry::Counter(key, value) => Entry::Counter { key, value: *value },
                OwnedEntry::Deleted(key) => Entry::Deleted { key },
                OwnedEntry::Cleared => Entry::Cleared,
                OwnedEntry::Session(session, acked_through, first_sequence, used_ms, results) => Entry::Session {
                    session: SessionId(*session),
                    acked_through: *acked_through,
                    first_sequence: *first_sequence,
                    used_ms: *used_ms,
                    results: results.iter().map(|&(print, result)| (Fingerprint(print), stored(result))).collect(),
                },
                OwnedEntry::SessionEnded(session, ended_ms) => {
                    Entry::SessionEnded { session: SessionId(*session), ended_ms: *ended_ms }
                }
                OwnedEntry::OperationId(id, print, result, seen_ms) => Entry::OperationId {
                    id,
                    fingerprint: Fingerprint(*print),
                    result: stored(*result),
                    seen_ms: *seen_ms,
                },
                OwnedEntry::Uptime(uptime_ms) => Entry::Uptime { uptime_ms: *uptime_ms },
            }
        }
    }

    fn edge_i64() -> impl Strategy<Value = i64> {
        prop_oneof![Just(0), Just(-1), Just(i64::MIN), Just(i64::MAX), any::<i64>()]
    }

    fn outcome() -> impl Strategy<Value = Result<i64, usize>> {
        prop_oneof![edge_i64().prop_map(Ok), any::<usize>().prop_map(Err)]
    }

    pub(crate) fn entries() -> impl Strategy<Value = OwnedEntry> {
        let key =
            prop_oneof![prop::collection::vec(any::<u8>(), 1..40), prop::collection::vec(any::<u8>(), KEY_BYTES_MAX)];
        let id = prop::collection::vec(any::<u8>(), 1..=OPERATION_ID_BYTES_MAX);
        let results = prop::collection::vec((any::<u64>(), outcome()), 0..20);
        prop_oneof![
            4 => (key.clone(), edge_i64()).prop_map(|(key, value)| OwnedEntry::Counter(key, value)),
            1 => key.prop_map(OwnedEntry::Deleted),
            1 => Just(OwnedEntry::Cleared),
            2 => (any::<[u8; 16]>(), any::<u64>(), 1..u64::MAX - 100, any::<u64>(), results)
                .prop_map(|(session, acked, first, used, results)| OwnedEntry::Session(session, acked, first, used, results)),
            1 => (any::<[u8; 16]>(), any::<u64>()).prop_map(|(session, ended)| OwnedEntry::SessionEnded(session, ended)),
            1 => (id, any::<u64>(), outcome(), any::<u64>()).prop_map(|(id, print, result, seen)| OwnedEntry::OperationId(id, print, result, seen)),
            1 => any::<u64>().prop_map(OwnedEntry::Uptime),
        ]
    }

    proptest! {
        #[test]
        fn entries_round_trip(owned in prop::collection::vec(entries(), 0..20)) {
            let mut bytes = Vec::new();
            for entry in &owned {
                let entry = entry.borrow();
                let before = bytes.len();
                entry.encode(&mut bytes);
                prop_assert!(bytes.len() - before <= entry.encoded_len_max());
            }
            let decoded: Result<Vec<_>, _> = EntryReader::new(&bytes).collect();
            prop_assert_eq!(decoded, Ok(owned.iter().map(OwnedEntry::borrow).collect()));
        }

        #[test]
        fn any_bytes_are_entries_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for entry in EntryReader::new(&bytes) {
                let _ = entry;
            }
        }

        #[test]
        fn varints_are_as_short_as_can_be(value in any::<u64>(), shift in 0..64_u32) {
            let mut out = Vec::new();
            put_varint(&mut out, value >> shift);
            prop_assert_eq!(out.len(), (64 - ((value >> shift) | 1).leading_zeros() as usize).div_ceil(7));
        }
    }

    /// These bytes are on people's disks: a change here is a new format.
    #[test]
    fn golden_bytes() {
        let mut out = Vec::new();
        Entry::Counter { key: b"hits", value: -2 }.encode(&mut out);
        Entry::Deleted { key: b"x" }.encode(&mut out);
        Entry::Cleared.encode(&mut out);
        let results = vec![
            (Fingerprint(7), StoredResult::Value(300)),
            (Fingerprint(8), StoredResult::Error(ErrorCode::Overflow)),
        ];
        Entry::Session { session: SessionId([9; 16]), acked_through: 1, first_sequence: 2, used_ms: 200, results }
            .encode(&mut out);
        Entry::SessionEnded { session: SessionId([9; 16]), ended_ms: 3 }.encode(&mut out);
        Entry::OperationId { id: b"id", fingerprint: Fingerprint(1), result: StoredResult::Value(0), seen_ms: 4 }
            .encode(&mut out);
        Entry::Uptime { uptime_ms: 5 }.encode(&mut out);
        let mut expected = b"\x01\x04hits\x03\x02\x01x\x03\x04".to_vec();
        expected.extend_from_slice(&[9; 16]);
        expected.extend_from_slice(b"\x01\x02\xc8\x01\x02\x07\0\0\0\0\0\0\0\x00\xd8\x04\x08\0\0\0\0\0\0\0\x01\x05\x05");
        expected.extend_from_slice(&[9; 16]);
        expected.extend_from_slice(b"\x03\x06\x02id\x01\0\0\0\0\0\0\0\x00\x00\x04\x07\x05");
        assert_eq!(out, expected);
    }

    #[test]
    fn a_claimed_count_reserves_nothing_that_did_not_come() {
        let mut bytes = vec![tag::SESSION];
        bytes.extend_from_slice(&[0; 16]);
        for field in [0, 1, 0, u64::MAX - 2] {
            put_varint(&mut bytes, field);
        }
        assert_eq!(EntryReader::new(&bytes).next(), Some(Err(EntryError::Short)));
    }
}

//! Records: what a commit is made of on disk, and the encoder that makes them.
//!
//! A record is a header of [`HEADER_BYTES`] bytes and a body of entries. It names its shard, epoch and writer, its place
//! (commit number, index in the commit) and its predecessor's hash, so that it can be told where it belongs without
//! any other file. The thread that drains owns the [`CommitEncoder`]; nothing here does input or output.
//!
//! Offsets in the header, all little-endian:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic |
//! | 4 | 1 | version of this layout |
//! | 5 | 1 | kind: 1 commit, 2 epoch opened |
//! | 6 | 1 | flags: bit 0 is set on the last record of a commit |
//! | 7 | 1 | 0 |
//! | 8 | 4 | length of the body |
//! | 12 | 4 | index in the commit, from 0 |
//! | 16 | 16 | identity of the shard |
//! | 32 | 8 | epoch |
//! | 40 | 8 | writer id: random, one for each opening |
//! | 48 | 8 | commit number |
//! | 56 | 8 | the previous record's hash, 0 before the first |
//! | 64 | 8 | hash: xxh3-64 of bytes 0 to 63 and the body |

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::Xxh3;

use crate::journal::entry::{self, Entry};
use crate::limits::RECORD_BYTES_MAX;

/// Length of a record's header.
pub const HEADER_BYTES: usize = 72;
/// The first four bytes of every record.
pub const MAGIC: [u8; 4] = *b"PyCr";
/// The newest layout of records that this version reads, and the one it writes.
pub const RECORD_VERSION: u8 = 1;
/// Longest body: a record stays below `RECORD_BYTES_MAX`.
pub const BODY_BYTES_MAX: usize = RECORD_BYTES_MAX - HEADER_BYTES - 1;

const FLAG_FINAL: u8 = 1;
/// Where the header's own hash is: what is before it is hashed.
const HASHED_BYTES: usize = 64;

/// A shard's identity: 16 random bytes, made with its folder.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShardIdentity(pub [u8; 16]);

impl fmt::Display for ShardIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ShardIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardIdentity({self})")
    }
}

impl FromStr for ShardIdentity {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = if is_hex { u128::from_str_radix(text, 16).ok() } else { None };
        number.map(|number| Self(number.to_be_bytes())).ok_or("an identity is 32 hexadecimal digits")
    }
}

/// The end of a commit: where the next one goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The commit's number; 0 is before the first.
    pub commit: u64,
    /// The hash of its last record; 0 before the first.
    pub hash: u64,
}

impl Position {
    /// Before the first commit.
    pub const START: Position = Position { commit: 0, hash: 0 };
}

/// Who writes: stands in each of its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Of the shard.
    pub identity: ShardIdentity,
    /// The fencing number: rises with each opening.
    pub epoch: u64,
    /// Random, one for each opening.
    pub writer_id: u64,
}

/// What a record is for. Numbers are stored: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum RecordKind {
    /// Entries of a commit.
    Commit = 1,
    /// The first record of an epoch. It is a commit of its own, without entries.
    EpochOpened = 2,
}

impl RecordKind {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Commit),
            2 => Some(Self::EpochOpened),
            _ => None,
        }
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is for.
    pub kind: RecordKind,
    /// Is it the last of its commit?
    pub is_final: bool,
    /// Length of what follows the header.
    pub body_bytes: usize,
    /// Its place in the commit, from 0.
    pub index: u32,
    /// Who wrote it.
    pub writer: Writer,
    /// The commit.
    pub number: u64,
    /// The hash of the record before it.
    pub previous_hash: u64,
    /// Its own hash.
    pub hash: u64,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// They are noise, or end too early, or were changed.
    Bad,
    /// The checksum is right, the layout is newer than this version.
    Version(u8),
    /// The checksum is right, the kind or a flag is unknown to this version.
    Kind(u8),
}

fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

fn field_u64(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(field(header, at))
}

fn hash_of(header: &[u8], body: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(header);
    hasher.update(body);
    hasher.digest()
}

/// The length of the record that begins with `header`, if it looks like one: magic and a length within bounds.
pub(crate) fn record_length(header: &[u8; HEADER_BYTES]) -> Option<usize> {
    let body_bytes = u32::from_le_bytes(field(header, 8)) as usize;
    (field::<4>(header, 0) == MAGIC && body_bytes <= BODY_BYTES_MAX).then_some(HEADER_BYTES + body_bytes)
}

/// The writer that a header claims, unchecked: to discard candidates before hashing them.
pub(crate) fn claimed_writer(header: &[u8; HEADER_BYTES]) -> Writer {
    Writer {
        identity: ShardIdentity(field(header, 16)),
        epoch: field_u64(header, 32),
        writer_id: field_u64(header, 40),
    }
}

/// The commit number that a header claims, unchecked.
pub(crate) fn claimed_number(header: &[u8; HEADER_BYTES]) -> u64 {
    field_u64(header, 48)
}

impl RecordHeader {
    /// Checks a whole record, which `bytes` begin with; what is after it doesn't matter.
    ///
    /// # Errors
    /// It is none, or of a version or kind that this one doesn't know.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(RecordError::Bad)?;
        let length = record_length(header).ok_or(RecordError::Bad)?;
        let body = rest.get(..length - HEADER_BYTES).ok_or(RecordError::Bad)?;
        let hash = field_u64(header, HASHED_BYTES);
        if hash_of(&header[..HASHED_BYTES], body) != hash {
            return Err(RecordError::Bad);
        }
        let [version, kind, flags, reserved] = field(header, 4);
        if version != RECORD_VERSION {
            return Err(RecordError::Version(version));
        }
        let kind = RecordKind::from_number(kind)
            .filter(|_| flags & !FLAG_FINAL == 0 && reserved == 0)
            .ok_or(RecordError::Kind(kind))?;
        Ok(Self {
            kind,
            is_final: flags & FLAG_FINAL != 0,
            body_bytes: body.len(),
            index: u32::from_le_bytes(field(header, 12)),
            writer: claimed_writer(header),
            number: claimed_number(header),
            previous_hash: field_u64(header, 56),
            hash,
        })
    }

    /// Writes the header over the first bytes of `record`, whose body is in place, and returns its hash.
    fn seal(&self, record: &mut [u8]) -> u64 {
        let (header, body) = record.split_at_mut(HEADER_BYTES);
        header[0..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&[RECORD_VERSION, self.kind as u8, u8::from(self.is_final), 0]);
        header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&self.index.to_le_bytes());
        header[16..32].copy_from_slice(&self.writer.identity.0);
        header[32..40].copy_from_slice(&self.writer.epoch.to_le_bytes());
        header[40..48].copy_from_slice(&self.writer.writer_id.to_le_bytes());
        header[48..56].copy_from_slice(&self.number.to_le_bytes());
        header[56..64].copy_from_slice(&self.previous_hash.to_le_bytes());
        let hash = hash_of(&header[..HASHED_BYTES], body);
        header[HASHED_BYTES..].copy_from_slice(&hash.to_le_bytes());
        hash
    }

    /// How many bytes the record has.
    #[must_use]
    pub const fn record_bytes(&self) -> usize {
        HEADER_BYTES + self.body_bytes
    }
}

/// A commit, ready to be appended. Its bytes never change: a failed append is repeated with the same ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedCommit {
    /// Its number.
    pub number: u64,
    /// Its records.
    pub bytes: Vec<u8>,
    /// The hash of the record before its first.
    pub previous_hash: u64,
    /// The hash of its last record.
    pub last_hash: u64,
}

impl EncodedCommit {
    /// Where the log must end for this commit to be appended.
    #[must_use]
    pub const fn expected(&self) -> Position {
        Position { commit: self.number - 1, hash: self.previous_hash }
    }

    /// Where the log ends with it.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { commit: self.number, hash: self.last_hash }
    }
}

/// Turns facts into commits. Owned by the thread that drains.
///
/// `begin`, any number of `put`s, `finish`: then the next commit continues this one's hash chain, so a finished commit
/// must be appended, and in order. A commit that was begun and not finished leaves no trace.
#[derive(Debug)]
pub struct CommitEncoder {
    writer: Writer,
    /// The end of the last finished commit.
    end: Position,
    bytes: Vec<u8>,
    /// Where the open record begins in `bytes`.
    record_start: usize,
    index: u32,
    /// The hash of the last sealed record.
    previous_hash: u64,
    kind: RecordKind,
    /// `BODY_BYTES_MAX`, but for tests that want many records.
    body_bytes_max: usize,
}

/// A recycled buffer is kept up to this size, however small the last commit was.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

impl CommitEncoder {
    /// Continues a log that ends at `end`.
    #[must_use]
    pub const fn new(writer: Writer, end: Position) -> Self {
        Self {
            writer,
            end,
            bytes: Vec::new(),
            record_start: 0,
            index: 0,
            previous_hash: end.hash,
            kind: RecordKind::Commit,
            body_bytes_max: BODY_BYTES_MAX,
        }
    }

    /// Makes records so short that small commits have several.
    #[cfg(test)]
    pub(crate) fn limit_body(&mut self, body_bytes_max: usize) {
        assert!((entry::ENTRY_BYTES_MAX..=BODY_BYTES_MAX).contains(&body_bytes_max));
        self.body_bytes_max = body_bytes_max;
    }

    /// Who writes.
    #[must_use]
    pub const fn writer(&self) -> Writer {
        self.writer
    }

    /// The number of the next commit.
    #[must_use]
    pub const fn next_number(&self) -> u64 {
        self.end.commit + 1
    }

    /// Bytes of the commit so far.
    #[must_use]
    pub const fn encoded_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Begins a commit with the shard's uptime.
    ///
    /// # Panics
    /// If `number` is not the next one.
    pub fn begin(&mut self, number: u64, uptime_ms: u64) {
        self.restart(number, RecordKind::Commit);
        self.put(&Entry::Uptime { uptime_ms });
    }

    /// The commit that opens this writer's epoch.
    pub(crate) fn epoch_opened(&mut self) -> EncodedCommit {
        self.restart(self.next_number(), RecordKind::EpochOpened);
        self.finish()
    }

    fn restart(&mut self, number: u64, kind: RecordKind) {
        assert_eq!(number, self.next_number(), "commits are numbered without gaps");
        self.bytes.clear();
        self.index = 0;
        self.previous_hash = self.end.hash;
        self.kind = kind;
        self.open_record();
    }

    fn open_record(&mut self) {
        self.record_start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER_BYTES]);
    }

    fn seal_record(&mut self, is_final: bool) {
        let record = &mut self.bytes[self.record_start..];
        let header = RecordHeader {
            kind: self.kind,
            is_final,
            body_bytes: record.len() - HEADER_BYTES,
            index: self.index,
            writer: self.writer,
            number: self.end.commit + 1,
            previous_hash: self.previous_hash,
            hash: 0,
        };
        self.previous_hash = header.seal(record);
        self.index += 1;
    }

    /// Room for `bytes` more in the open record; a new record if there is none.
    fn make_room(&mut self, bytes: usize) {
        if self.room() < bytes {
            self.seal_record(false);
            self.open_record();
        }
    }

    const fn room(&self) -> usize {
        HEADER_BYTES + self.body_bytes_max - (self.bytes.len() - self.record_start)
    }

    /// The counter has this value. This is the path that a million changes a second take.
    pub fn put_counter(&mut self, key: &[u8], value: i64) {
        self.make_room(1 + 2 + key.len() + entry::VARINT_BYTES_MAX);
        entry::put_counter(&mut self.bytes, key, value);
    }

    /// The counter does not exist.
    pub fn put_deleted(&mut self, key: &[u8]) {
        self.make_room(1 + 2 + key.len());
        entry::put_deleted(&mut self.bytes, key);
    }

    /// Any fact. A session with more results than a record holds becomes several entries that continue one another.
    pub fn put(&mut self, fact: &Entry<'_>) {
        let longest = fact.encoded_len_max();
        if longest <= self.body_bytes_max {
            self.make_room(longest);
            fact.encode(&mut self.bytes);
        } else if let Entry::Session { session, acked_through, first_sequence, used_ms, results } = fact {
            let mut first = *first_sequence;
            for part in results.chunks(entry::results_within(self.body_bytes_max)) {
                self.make_room(self.body_bytes_max);
                entry::put_session(&mut self.bytes, *session, *acked_through, first, *used_ms, part);
                first += part.len() as u64;
            }
        } else {
            // Every other entry is bounded far below a record by its own assertions on length.
            fact.encode(&mut self.bytes);
        }
    }

    /// Ends the commit.
    ///
    /// # Panics
    /// If none was begun.
    pub fn finish(&mut self) -> EncodedCommit {
        assert!(!self.bytes.is_empty(), "finish without begin");
        self.seal_record(true);
        let commit = EncodedCommit {
            number: self.next_number(),
            bytes: std::mem::take(&mut self.bytes),
            previous_hash: self.end.hash,
            last_hash: self.previous_hash,
        };
        self.end = commit.position();
        commit
    }

    /// Takes back the buffer of an appended commit, for the next one. A buffer that one large commit blew up is let go
    /// once commits are small again.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        let keep = buffer.len().saturating_mul(4).max(BUFFER_KEEP_BYTES);
        if self.bytes.is_empty() && buffer.capacity() <= keep {
            buffer.clear();
            self.bytes = buffer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::entry::tests::{OwnedEntry, entries};
    use crate::journal::entry::{EntryReader, Fingerprint, StoredResult};
    use crate::wire::request::SessionId;
    use proptest::prelude::*;

    fn writer() -> Writer {
        Writer { identity: ShardIdentity([7; 16]), epoch: 3, writer_id: 99 }
    }

    /// The headers of a commit's records, checked as recovery checks them, and their entries.
    fn read(commit: &EncodedCommit) -> (Vec<RecordHeader>, Vec<u8>) {
        let (mut headers, mut bodies, mut rest) = (Vec::new(), Vec::new(), &commit.bytes[..]);
        while !rest.is_empty() {
            let header = RecordHeader::parse(rest).unwrap();
            bodies.extend_from_slice(&rest[HEADER_BYTES..header.record_bytes()]);
            rest = &rest[header.record_bytes()..];
            headers.push(header);
        }
        (headers, bodies)
    }

    proptest! {
        #[test]
        fn commits_round_trip(owned in prop::collection::vec(entries(), 0..20), copies in 1..60_usize) {
            let mut encoder = CommitEncoder::new(writer(), Position { commit: 41, hash: 5 });
            encoder.begin(42, 7);
            for entry in owned.iter().cycle().take(owned.len() * copies) {
                encoder.put(&entry.borrow());
            }
            let commit = encoder.finish();
            let (headers, bodies) = read(&commit);
            let mut expected = vec![Entry::Uptime { uptime_ms: 7 }];
            expected.extend(owned.iter().cycle().take(owned.len() * copies).map(OwnedEntry::borrow));
            prop_assert_eq!(EntryReader::new(&bodies).collect::<Result<Vec<_>, _>>(), Ok(expected));
            let mut previous = 5;
            for (index, header) in headers.iter().enumerate() {
                prop_assert_eq!((header.index as usize, header.number, header.previous_hash), (index, 42, previous));
                prop_assert_eq!(header.is_final, index + 1 == headers.len());
                prop_assert!(header.record_bytes() < RECORD_BYTES_MAX);
                previous = header.hash;
            }
            prop_assert_eq!(commit.position(), Position { commit: 42, hash: previous });
        }

        #[test]
        fn any_flip_is_found(entries in prop::collection::vec(entries(), 0..5), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut encoder = CommitEncoder::new(writer(), Position::START);
            encoder.begin(1, 7);
            entries.iter().for_each(|entry| encoder.put(&entry.borrow()));
            let mut bytes = encoder.finish().bytes;
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(RecordHeader::parse(&bytes), Err(RecordError::Bad));
        }
    }

    #[test]
    fn a_large_commit_is_split_and_only_its_last_record_is_final() {
        let mut encoder = CommitEncoder::new(writer(), Position::START);
        encoder.begin(1, 0);
        for number in 0..300_000_u64 {
            encoder.put_counter(format!("key-{number}").as_bytes(), i64::MAX);
        }
        let (headers, bodies) = read(&encoder.finish());
        assert!(headers.len() > 5);
        assert_eq!(headers.iter().filter(|header| header.is_final).count(), 1);
        assert_eq!(EntryReader::new(&bodies).filter(Result::is_ok).count(), 300_001);
    }

    #[test]
    fn a_session_with_very_many_results_is_split_into_entries_that_continue_one_another() {
        let results: Vec<_> =
            (0..200_000_u64).map(|number| (Fingerprint(number), StoredResult::Value(i64::MIN))).collect();
        let mut encoder = CommitEncoder::new(writer(), Position::START);
        encoder.begin(1, 0);
        let session = SessionId([1; 16]);
        encoder.put(&Entry::Session {
            session,
            acked_through: 4,
            first_sequence: 10,
            used_ms: 6,
            results: results.clone(),
        });
        let (headers, bodies) = read(&encoder.finish());
        assert!(headers.len() > 3);
        let mut read_back = Vec::new();
        for entry in EntryReader::new(&bodies).skip(1) {
            let Ok(Entry::Session { acked_through: 4, first_sequence, used_ms: 6, results, .. }) = entry else {
                panic!("{entry:?}")
            };
            assert_eq!(first_sequence, 10 + read_back.len() as u64);
            read_back.extend(results);
        }
        assert_eq!(read_back, results);
    }

    #[test]
    fn a_commit_that_was_not_finished_leaves_no_trace() {
        let mut encoder = CommitEncoder::new(writer(), Position::START);
        encoder.begin(1, 0);
        encoder.put_counter(b"lost", 1);
        encoder.begin(1, 0);
        encoder.put_counter(b"kept", 2);
        let first = encoder.finish();
        assert_eq!(read(&first).0[0].previous_hash, 0);
        encoder.begin(2, 0);
        assert_eq!(encoder.finish().expected(), first.position());
    }

    #[test]
    fn a_buffer_is_reused_and_an_outgrown_one_let_go() {
        let mut encoder = CommitEncoder::new(writer(), Position::START);
        encoder.recycle(Vec::with_capacity(5000));
        encoder.begin(1, 0);
        assert_eq!(encoder.bytes.capacity(), 5000);
        let _ = encoder.finish();
        encoder.recycle(Vec::with_capacity(10 * BUFFER_KEEP_BYTES));
        assert_eq!(encoder.bytes.capacity(), 0);
    }

    #[test]
    fn unknown_kinds_flags_and_versions_are_told_from_damage() {
        let commit = CommitEncoder::new(writer(), Position::START).epoch_opened();
        for (at, value, expected) in [
            (4, 2, RecordError::Version(2)),
            (5, 9, RecordError::Kind(9)),
            (6, 3, RecordError::Kind(2)),
            (7, 1, RecordError::Kind(2)),
        ] {
            let mut bytes = commit.bytes.clone();
            bytes[at] = value;
            let hash = hash_of(&bytes[..HASHED_BYTES], &[]);
            bytes[HASHED_BYTES..].copy_from_slice(&hash.to_le_bytes());
            assert_eq!(RecordHeader::parse(&bytes), Err(expected));
        }
    }

    /// These bytes are on people's disks: a change here is a new version.
    #[test]
    fn golden_header() {
        let commit = CommitEncoder::new(writer(), Position { commit: 1, hash: 2 }).epoch_opened();
        let mut expected = b"PyCr\x01\x02\x01\0\0\0\0\0\0\0\0\0".to_vec();
        expected.extend_from_slice(&[7; 16]);
        for field in [3_u64, 99, 2, 2, commit.last_hash] {
            expected.extend_from_slice(&field.to_le_bytes());
        }
        assert_eq!(commit.bytes, expected);
        assert_eq!(commit.last_hash, 17_676_803_204_422_010_296);
    }
}

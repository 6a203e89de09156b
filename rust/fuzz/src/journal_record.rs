//! Bytes as they may stand on a damaged disk: entries, records, a checkpoint's root and pages.
//!
//! Promises: no panic, an end, and nothing is read that reads differently once it is written again.

use pycounter_engine::checkpoint::Root;
use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::journal::entry::{Entry, EntryReader, Fingerprint, StoredResult};
use pycounter_engine::journal::record::{CommitEncoder, Position, RecordHeader, ShardIdentity, Writer};
use pycounter_engine::wire::request::SessionId;

const IDENTITY: ShardIdentity = ShardIdentity([7; 16]);

/// Checks the promises for these bytes. The first one is not looked at.
pub fn check(data: &[u8]) {
    let bytes = data.get(1..).unwrap_or_default();
    check_entries(bytes);
    if let Ok(header) = RecordHeader::parse(bytes) {
        assert!(header.record_bytes() <= bytes.len(), "a record longer than what is there");
        check_entries(&bytes[header.record_bytes() - header.body_bytes..header.record_bytes()]);
    }
    if let Ok(root) = Root::decode(bytes, IDENTITY) {
        for key in root.page_keys() {
            assert!(root.read_page(&key, Some(bytes), &mut |_| {}).is_err(), "a root passed for a page");
        }
    }
}

fn check_entries(bytes: &[u8]) {
    let entries: Vec<_> = EntryReader::new(bytes).map_while(Result::ok).collect();
    assert!(entries.len() <= bytes.len(), "more entries than bytes");
    let mut again = Vec::new();
    entries.iter().for_each(|entry| entry.encode(&mut again));
    let read: Result<Vec<_>, _> = EntryReader::new(&again).collect();
    assert_eq!(read.as_deref(), Ok(&entries[..]), "an entry reads differently once it is written again");
}

/// The corpus, by name.
#[allow(dead_code, reason = "the fuzz targets read the files instead")]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let session = SessionId([1; 16]);
    let results = vec![
        (Fingerprint(1), StoredResult::Value(i64::MIN)),
        (Fingerprint(u64::MAX), StoredResult::Error(ErrorCode::Overflow)),
    ];
    let id = |id, result| Entry::OperationId { id, fingerprint: Fingerprint(9), result, seen_ms: u64::MAX };
    let long = [b'k'; 1024];
    let entries: Vec<(&'static str, Entry<'_>)> = vec![
        ("counter", Entry::Counter { key: b"hits", value: 1 }),
        ("counter-least", Entry::Counter { key: b"a", value: i64::MIN }),
        ("counter-most", Entry::Counter { key: b"\xff\x00", value: i64::MAX }),
        ("counter-long-key", Entry::Counter { key: &long, value: -1 }),
        ("deleted", Entry::Deleted { key: b"hits" }),
        ("deleted-long-key", Entry::Deleted { key: &long }),
        ("cleared", Entry::Cleared),
        ("uptime", Entry::Uptime { uptime_ms: 0 }),
        ("uptime-most", Entry::Uptime { uptime_ms: u64::MAX }),
        ("session-ended", Entry::SessionEnded { session, ended_ms: 5 }),
        ("id-value", id(b"x", StoredResult::Value(7))),
        ("id-error", id(&long[..64], StoredResult::Error(ErrorCode::Overflow))),
        ("session", Entry::Session { session, acked_through: 3, first_sequence: 4, used_ms: 1, results }),
        ("session-bare", Entry::Session { session, acked_through: 0, first_sequence: 1, used_ms: 0, results: vec![] }),
    ];
    let encoded = |entry: &Entry<'_>| {
        let mut bytes = vec![0];
        entry.encode(&mut bytes);
        bytes
    };
    let mut seeds: Vec<_> = entries.iter().map(|(name, entry)| (*name, encoded(entry))).collect();
    let cut: [&'static str; 14] = [
        "cut-1", "cut-2", "cut-3", "cut-4", "cut-5", "cut-6", "cut-7", "cut-8", "cut-9", "cut-10", "cut-11", "cut-12",
        "cut-13", "cut-14",
    ];
    for (name, (_, entry)) in cut.into_iter().zip(&entries) {
        let mut bytes = encoded(entry);
        bytes.pop();
        seeds.push((name, bytes));
    }
    let mut encoder = CommitEncoder::new(Writer { identity: IDENTITY, epoch: 1, writer_id: 2 }, Position::START);
    encoder.begin(1, 12);
    entries.iter().for_each(|(_, entry)| encoder.put(entry));
    let record = [vec![0], encoder.finish().bytes].concat();
    let flipped = |at: usize| {
        let mut record = record.clone();
        record[at] ^= 1;
        record
    };
    seeds.extend([
        ("record-flipped-length", flipped(9)),
        ("record-flipped-hash", flipped(65)),
        ("record-flipped-body", flipped(90)),
        ("record-cut", record[..record.len() / 2].to_vec()),
        ("record", record.clone()),
        ("claimed-count", vec![0, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0xff, 0xff, 0xff, 0x7f]),
        ("unknown-tag", vec![0, 200, 1, 2, 3]),
        ("endless-varint", [vec![0, 7], vec![0xff; 20]].concat()),
    ]);
    seeds
}

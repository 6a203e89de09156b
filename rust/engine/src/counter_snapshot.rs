//! All counters of a store as bytes, for storage or transfer: the format of `Counters.to_bytes`.
//!
//! ```text
//! "PYCOUNT"  version, 1 byte  count, u64  entries, as in the journal  xxh3 of all before, u64
//! ```
//!
//! Numbers are little-endian. Only the first eight bytes are the same in every version. The counters come in no
//! particular order, each key once.
//!
//! Memory use is proportional to the bytes read: nothing is reserved for a claimed count.

use xxhash_rust::xxh3::xxh3_64;

use crate::counter_store::{CounterStore, StoreError};
use crate::journal::entry::{Entry, EntryReader, put_counter};

const MAGIC: [u8; 7] = *b"PYCOUNT";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 1 + size_of::<u64>();

/// Why bytes can't be read as counters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// They are no snapshot.
    #[error("these bytes are no counters: they don't begin with PYCOUNT")]
    NotCounters,
    /// A newer version wrote them.
    #[error("these counters are in format {0}, this version of PyCounter reads format {VERSION}")]
    OtherVersion(u8),
    /// They were damaged or truncated.
    #[error("these counters are damaged: the checksum is not that of the bytes")]
    Checksum,
    /// The checksum matches but the contents don't follow the format: the writer was wrong.
    #[error("these counters are malformed at counter {at}: {reason}")]
    Malformed {
        /// How many counters were read before the error.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// Not enough memory for the counters.
    #[error("these counters don't fit: {0}")]
    Store(#[from] StoreError),
}

/// Writes the store's counters. If others change them meanwhile, each value is one that its counter had at some moment
/// of the call.
#[must_use]
pub fn encode(store: &CounterStore) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + store.len() * 16 + size_of::<u64>());
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    out.extend_from_slice(&[0; size_of::<u64>()]);
    let mut count = 0_u64;
    store.for_each(|key, value| {
        put_counter(&mut out, key, value);
        count += 1;
    });
    out[MAGIC.len() + 1..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
    let checksum = xxh3_64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// Reads the counters into a new store.
///
/// # Errors
/// See [`SnapshotError`].
pub fn decode(bytes: &[u8]) -> Result<CounterStore, SnapshotError> {
    let (count, entries) = check(bytes)?;
    let mut store = CounterStore::new();
    let mut read = 0;
    for entry in EntryReader::new(entries) {
        let malformed =
            |reason: &dyn std::fmt::Display| SnapshotError::Malformed { at: read, reason: reason.to_string() };
        let (key, value) = match entry {
            Ok(Entry::Counter { key, value }) => (key, value),
            Ok(_) => return Err(malformed(&"an entry of another kind")),
            Err(error) => return Err(malformed(&error)),
        };
        let hash = store.hash(key);
        let counter = store.find_or_insert_mut(hash, key)?;
        if store.is_present(counter) {
            return Err(malformed(&"its key was there before"));
        }
        store.set_mut(counter, value);
        read += 1;
    }
    if read != count {
        let reason = format!("the header counts {count}");
        return Err(SnapshotError::Malformed { at: read, reason });
    }
    Ok(store)
}

/// Checks header and checksum; returns the claimed count and the entries.
fn check(bytes: &[u8]) -> Result<(u64, &[u8]), SnapshotError> {
    match bytes.strip_prefix(&MAGIC) {
        None => return Err(SnapshotError::NotCounters),
        Some([version, ..]) if *version != VERSION => return Err(SnapshotError::OtherVersion(*version)),
        Some(_) => {}
    }
    let (body, checksum) = bytes.split_last_chunk().ok_or(SnapshotError::Checksum)?;
    if xxh3_64(body) != u64::from_le_bytes(*checksum) {
        return Err(SnapshotError::Checksum);
    }
    let (header, entries) = body.split_first_chunk::<HEADER_BYTES>().ok_or(SnapshotError::Checksum)?;
    let count = header.last_chunk().ok_or(SnapshotError::Checksum)?;
    Ok((u64::from_le_bytes(*count), entries))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn store_of(counters: &BTreeMap<Vec<u8>, i64>) -> CounterStore {
        let store = CounterStore::new();
        for (key, &value) in counters {
            store.set(store.find_or_insert(store.hash(key), key).expect("room"), value);
        }
        store
    }

    fn contents(store: &CounterStore) -> BTreeMap<Vec<u8>, i64> {
        let mut found = BTreeMap::new();
        store.for_each(|key, value| assert_eq!(found.insert(key.to_vec(), value), None));
        found
    }

    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    fn header(count: u64) -> Vec<u8> {
        [&MAGIC[..], &[VERSION], &count.to_le_bytes()].concat()
    }

    fn refused(bytes: &[u8]) -> SnapshotError {
        decode(bytes).map(|store| contents(&store)).expect_err("refused")
    }

    proptest! {
        #[test]
        fn counters_round_trip(
            counters in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..40), any::<i64>(), 0..50)
        ) {
            let store = store_of(&counters);
            prop_assert_eq!(contents(&decode(&encode(&store)).expect("readable")), counters);
        }

        #[test]
        fn a_changed_byte_is_noticed(place in any::<prop::sample::Index>(), flip in 1..=u8::MAX, cut in any::<bool>()) {
            let mut bytes = encode(&store_of(&BTreeMap::from([(b"a".to_vec(), 1), (b"b".to_vec(), i64::MIN)])));
            let place = place.index(bytes.len());
            if cut { bytes.truncate(place) } else { bytes[place] ^= flip }
            refused(&bytes);
        }

        #[test]
        fn sealed_rubbish_is_counters_or_an_error(count in any::<u64>(), rubbish in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&sealed([header(count), rubbish].concat()));
        }
    }

    /// Such bytes may be on disks: a change here needs a new version.
    #[test]
    fn golden_bytes() {
        let bytes = encode(&store_of(&BTreeMap::from([(b"hits".to_vec(), -2)])));
        let mut expected = b"PYCOUNT\x01\x01\0\0\0\0\0\0\0\x01\x04hits\x03".to_vec();
        expected.extend_from_slice(&0x256b_9bbc_4ae7_bfdd_u64.to_le_bytes());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn absent_counters_stay_out() {
        let store = store_of(&BTreeMap::from([(b"a".to_vec(), 1), (b"b".to_vec(), 2)]));
        store.delete(store.find(store.hash(b"a"), b"a").expect("there"));
        assert_eq!(contents(&decode(&encode(&store)).expect("readable")), BTreeMap::from([(b"b".to_vec(), 2)]));
    }

    #[test]
    fn hostile_bytes_are_refused() {
        assert_eq!(refused(b""), SnapshotError::NotCounters);
        assert_eq!(refused(b"PYCOUN"), SnapshotError::NotCounters);
        assert_eq!(refused(b"PYCOUNT"), SnapshotError::Checksum);
        assert_eq!(refused(b"PYCOUNT\x02rest"), SnapshotError::OtherVersion(2));
        assert_eq!(refused(&sealed(b"PYCOUNT\x01".to_vec())), SnapshotError::Checksum);
        let at = |error: SnapshotError| match error {
            SnapshotError::Malformed { at, .. } => at,
            other => panic!("{other}"),
        };
        assert_eq!(at(refused(&sealed(header(u64::MAX)))), 0);
        let one = [header(1), b"\x01\x01a\x02".to_vec()].concat();
        assert_eq!(contents(&decode(&sealed(one.clone())).expect("readable")), BTreeMap::from([(b"a".to_vec(), 1)]));
        assert_eq!(at(refused(&sealed([one.clone(), b"\x01\x01a\x02".to_vec()].concat()))), 1, "twice");
        assert_eq!(at(refused(&sealed([one.clone(), b"\x01\x01b\x02".to_vec()].concat()))), 2, "more than counted");
        assert_eq!(at(refused(&sealed([one.clone(), b"\x02\x01b".to_vec()].concat()))), 1, "a deletion");
        assert_eq!(at(refused(&sealed([one, b"\x01\x05b".to_vec()].concat()))), 1, "cut short");
    }
}

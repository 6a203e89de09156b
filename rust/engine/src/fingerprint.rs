//! How an operation is told from another one that comes under the same id or sequence.
//!
//! Fingerprints are stored on disk: the bytes hashed and the seed never change.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::journal::entry::Fingerprint;
use crate::wire::request::Item;

/// Part of the stored format.
const SEED: u64 = 0x6669_6e67_6572_7072;

/// Marks the fingerprint of an item that could not be read as key and delta.
const UNREADABLE: u8 = 0x80;

/// What an operation does. The numbers are part of the stored format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Method {
    /// Add the delta.
    Incr = 1,
    /// Take everything out; the counter stays.
    Drain = 2,
    /// Take everything out; the counter goes.
    Delete = 3,
    /// Every counter goes; it names none.
    DeleteAll = 4,
}

impl Fingerprint {
    /// The fingerprint of `method(key, delta)`; those that take have a delta of 0, and `delete_all` an
    /// empty key.
    ///
    /// xxh3 of the method's number, the delta (8 bytes, little-endian) and the key's own xxh3
    /// (8 bytes, little-endian). Two operations share one with a chance of about 2⁻⁶⁴.
    #[must_use]
    pub fn of(method: Method, key: &[u8], delta: i64) -> Fingerprint {
        Self::combine(method as u8, delta, xxh3_64_with_seed(key, SEED))
    }

    /// The fingerprint of an item of `apply` or `incr_many`; a bad one is known by its raw bytes.
    #[must_use]
    pub fn of_item(item: &Item<'_>) -> Fingerprint {
        match item.error {
            None => Self::of(Method::Incr, item.key, item.delta),
            Some(_) => Self::combine(Method::Incr as u8 | UNREADABLE, 0, item.raw_hash),
        }
    }

    fn combine(method: u8, delta: i64, hash: u64) -> Fingerprint {
        let mut bytes = [0; 17];
        bytes[0] = method;
        bytes[1..9].copy_from_slice(&delta.to_le_bytes());
        bytes[9..17].copy_from_slice(&hash.to_le_bytes());
        Fingerprint(xxh3_64_with_seed(&bytes, SEED))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::error_code::ErrorCode;

    #[test]
    fn every_part_matters() {
        let mut seen = HashSet::new();
        for method in [Method::Incr, Method::Drain, Method::Delete, Method::DeleteAll] {
            for key in [b"".as_slice(), b"a", b"b", b"ab", &[0; 1024]] {
                for delta in [0, 1, -1, i64::MIN, i64::MAX] {
                    assert!(seen.insert(Fingerprint::of(method, key, delta)));
                }
            }
        }
        for raw_hash in 0..10 {
            let item = Item { key: b"", delta: 0, id: None, error: Some(ErrorCode::BadKey), raw_hash };
            assert!(seen.insert(Fingerprint::of_item(&item)));
        }
    }

    #[test]
    fn an_item_has_the_fingerprint_of_its_increment() {
        let item = Item { key: b"hits", delta: 7, id: None, error: None, raw_hash: 0 };
        assert_eq!(Fingerprint::of_item(&item), Fingerprint::of(Method::Incr, b"hits", 7));
    }
}

//! A shard's list of its foreign counters: those whose home is another shard.
//!
//! The counter store checks each counter once, on insertion, so nothing else pays. The list only grows, so coordinators
//! can fetch additions; a start rebuilds it from the restored counters. Owned by the thread that owns the counters.

use std::fmt;

use hashbrown::HashSet;

use crate::placement::foreign_keys::FOREIGN_HASHES_MAX;
use crate::placement::hash_ring::{HashRing, key_hash};

/// Most hashes in one part of the list.
pub const PART_HASHES_MAX: usize = 65_536;

/// Hashes of foreign counters' keys, in the order of insertion.
pub struct ForeignList {
    ring: HashRing,
    /// This shard's index in the ring; `None` if it isn't in it, and then every counter is foreign.
    own: Option<usize>,
    /// 8 bytes each, little-endian.
    hashes: Vec<u8>,
    /// The same as a set, so that a counter that goes and comes back isn't listed twice.
    seen: HashSet<u64>,
    /// Whether the list overflowed.
    is_full: bool,
}

impl fmt::Debug for ForeignList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ForeignList").field("own", &self.own).field("len", &self.len()).finish_non_exhaustive()
    }
}

impl ForeignList {
    /// An empty list for shard `name`.
    #[must_use]
    pub fn new(ring: HashRing, name: &str) -> Self {
        let own = ring.shards().iter().position(|(shard, _)| shard == name);
        Self { ring, own, hashes: Vec::new(), seen: HashSet::new(), is_full: false }
    }

    /// Records that a counter with this key was inserted.
    pub fn look(&mut self, key: &[u8]) {
        let hash = key_hash(key);
        if !self.is_foreign(hash) {
            return;
        }
        if self.seen.len() < FOREIGN_HASHES_MAX {
            if self.seen.insert(hash) {
                self.hashes.extend_from_slice(&hash.to_le_bytes());
            }
        } else {
            self.is_full |= !self.seen.contains(&hash);
        }
    }

    /// Whether the home of a key with this hash is another shard.
    #[must_use]
    pub fn is_foreign(&self, hash: u64) -> bool {
        self.own != Some(self.ring.home_of_hash(hash))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len() / 8
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether the list overflowed, so that any counter may be foreign.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.is_full
    }

    /// The part that begins at `from` or at the list's end, with the index of its first hash.
    #[must_use]
    pub fn part(&self, from: u64) -> (u64, &[u8]) {
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(self.len());
        let to = self.len().min(from + PART_HASHES_MAX);
        (from as u64, &self.hashes[8 * from..8 * to])
    }
}

#[cfg(all(test, not(pycounter_loom)))]
mod tests {
    use super::*;
    use crate::counter_store::CounterStore;
    use std::collections::BTreeSet;

    fn list() -> ForeignList {
        ForeignList::new(HashRing::new([("a", 1.0), ("b", 1.0)]).unwrap(), "a")
    }

    fn hashes(list: &ForeignList) -> Vec<u64> {
        list.part(0).1.chunks(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    #[test]
    fn a_store_lists_what_it_inserts_and_is_not_at_home_once() {
        let mut store = CounterStore::new();
        store.list_foreign(list());
        let ring = HashRing::new([("a", 1.0), ("b", 1.0)]).unwrap();
        let keys: Vec<Vec<u8>> = (0..1000).map(|number| format!("key-{number}").into_bytes()).collect();
        let expected: BTreeSet<u64> =
            keys.iter().filter(|key| ring.home_name(key) == "b").map(|key| key_hash(key)).collect();
        assert!((400..600).contains(&expected.len()));
        for _ in 0..3 {
            for key in &keys {
                let counter = store.find_or_insert_mut(store.hash(key), key).unwrap();
                store.incr_mut(counter, 1).unwrap();
            }
            let listed = hashes(store.foreign().unwrap());
            assert_eq!((listed.len(), listed.into_iter().collect::<BTreeSet<_>>()), (expected.len(), expected.clone()));
            // Counters that go and come back keep their place.
            store.clear();
        }
        let counter = store.find_or_insert_mut(store.hash(b"x"), b"x").unwrap();
        store.set_mut(counter, 1);
        assert!(store.compact());
        assert!(store.foreign().is_some_and(|list| list.len() >= expected.len()));
    }

    #[test]
    fn parts_join_to_the_list() {
        let mut list = ForeignList::new(HashRing::new([("b", 1.0)]).unwrap(), "a");
        for number in 0..PART_HASHES_MAX + 10 {
            list.look(&number.to_le_bytes());
        }
        let (first, last) = (list.part(0), list.part(PART_HASHES_MAX as u64));
        assert_eq!((first.0, first.1.len(), last.0, last.1.len()), (0, 8 * PART_HASHES_MAX, 65_536, 80));
        assert_eq!(list.part(u64::MAX), (list.len() as u64, &[][..]));
        assert!(!list.is_full());
    }

    #[test]
    fn a_full_list_says_so() {
        let mut list = ForeignList::new(HashRing::new([("b", 1.0)]).unwrap(), "a");
        for number in 0..FOREIGN_HASHES_MAX {
            list.look(&number.to_le_bytes());
        }
        list.look(&0_usize.to_le_bytes());
        assert!(!list.is_full(), "it is in it already");
        list.look(b"one more");
        assert!(list.is_full() && list.len() == FOREIGN_HASHES_MAX);
    }
}

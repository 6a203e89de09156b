//! A coordinator's knowledge of foreign counters: which shards, other than a key's home, may hold part of it.
//!
//! Each shard lists the hashes of its foreign counters, and coordinators fetch additions with `health`. This combines all
//! shards' lists with this coordinator's own diversions, which no list may have yet. An answer may name a shard too many
//! (equal hashes, a deleted counter, a list not known yet), which costs a request. It never leaves out a shard that a
//! list or [`ForeignKeys::note`] named.
//!
//! Any thread may use it. While nothing is foreign anywhere, a lookup is one atomic load. While few keys are foreign,
//! nearly all others take two more loads, of a bitmap. Only foreign keys, and about one in 16 others once 65,536 keys
//! are foreign, take the lock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::HashSet;

/// Most hashes in a shard's list, at a shard and here. Beyond it the shard may hold any key.
pub const FOREIGN_HASHES_MAX: usize = 1 << 20;
/// Bits in the bitmap (128 KiB).
const BITMAP_BITS_LOG2: u32 = 20;

/// A part of a shard's list, from its reply to `health`.
#[derive(Debug, Clone, Copy)]
pub struct ForeignReport<'a> {
    /// Identifies the opening of the shard's folder: each has a list of its own.
    pub identity: &'a [u8],
    /// The shard's epoch.
    pub epoch: u64,
    /// The length of the whole list.
    pub count: u64,
    /// The index in the list of this part's first hash.
    pub from: u64,
    /// The hashes: 8 bytes each, little-endian.
    pub hashes: &'a [u8],
    /// The list is full: the shard may hold any key.
    pub all: bool,
}

#[derive(Debug, Default)]
struct ShardKeys {
    /// The opening that `listed` belongs to.
    identity: Vec<u8>,
    epoch: u64,
    /// Hashes of the shard's list.
    listed: HashSet<u64>,
    /// How far the list has been read.
    read: u64,
    /// Hashes of keys diverted from here. They outlive a restart of the list: an operation that the shard's last run lost
    /// may be resent to the next one.
    noted: HashSet<u64>,
    /// The shard may hold any key: its list is full, or not known yet.
    all: bool,
}

impl ShardKeys {
    fn may_hold(&self, hash: u64) -> bool {
        self.all || self.listed.contains(&hash) || self.noted.contains(&hash)
    }

    fn is_empty(&self) -> bool {
        !self.all && self.listed.is_empty() && self.noted.is_empty()
    }
}

/// Foreign counters of all shards, by the hashes of their keys ([`crate::placement::hash_ring::key_hash`]).
#[derive(Debug)]
pub struct ForeignKeys {
    /// Whether any shard holds anything foreign.
    some: AtomicBool,
    /// One bit for each value of a hash's highest bits; 0 if no shard has such a hash.
    bitmap: Box<[AtomicU64]>,
    shards: RwLock<Box<[ShardKeys]>>,
}

impl ForeignKeys {
    /// Knowledge of `shards` shards, numbered in the ring's order, that hold nothing foreign yet.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        let words = 1usize << (BITMAP_BITS_LOG2 - 6);
        Self {
            some: AtomicBool::new(false),
            bitmap: (0..words).map(|_| AtomicU64::new(0)).collect(),
            shards: RwLock::new((0..shards).map(|_| ShardKeys::default()).collect()),
        }
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.read().len()
    }

    /// Whether a shard other than the key's home may hold part of it.
    #[must_use]
    #[inline]
    pub fn is_foreign(&self, hash: u64) -> bool {
        self.some.load(Ordering::Acquire) && self.is_foreign_somewhere(hash)
    }

    #[cold]
    fn is_foreign_somewhere(&self, hash: u64) -> bool {
        let (word, bit) = place(hash);
        if self.bitmap[word].load(Ordering::Acquire) & bit == 0 {
            return false;
        }
        self.read().iter().any(|shard| shard.may_hold(hash))
    }

    /// The shards that may hold part of a key without being its home, in order. The home must be asked whether or not
    /// it is among them.
    #[must_use]
    pub fn holders(&self, hash: u64) -> Vec<usize> {
        if !self.is_foreign(hash) {
            return Vec::new();
        }
        let shards = self.read();
        let holding = shards.iter().enumerate().filter(|(_, shard)| shard.may_hold(hash));
        holding.map(|(number, _)| number).collect()
    }

    /// How many hashes are known of a shard.
    ///
    /// # Panics
    /// There is no such shard. The same holds for every method that takes a shard.
    #[must_use]
    pub fn count(&self, shard: usize) -> usize {
        let shards = self.read();
        let shard = &shards[shard];
        shard.listed.len() + shard.noted.iter().filter(|hash| !shard.listed.contains(*hash)).count()
    }

    /// Whether a shard may hold any key.
    #[must_use]
    pub fn may_hold_all(&self, shard: usize) -> bool {
        self.read()[shard].all
    }

    /// Restarts a shard's list. The shard may hold any key until [`ForeignKeys::set_all`] says that the new list is
    /// known.
    pub fn replace(&self, shard: usize) {
        let mut shards = self.write();
        begin_anew(&mut shards[shard]);
        self.settle(&shards);
    }

    /// Adds hashes of a shard's list: 8 bytes each, little-endian.
    pub fn extend(&self, shard: usize, hashes: &[u8]) {
        let mut shards = self.write();
        self.add_listed(&mut shards[shard], hashes);
        self.some.store(!shards.iter().all(ShardKeys::is_empty), Ordering::Release);
        if shards[shard].all {
            self.settle(&shards);
        }
    }

    /// Sets whether a shard may hold any key; false means that its list is known.
    pub fn set_all(&self, shard: usize, all: bool) {
        let mut shards = self.write();
        if shards[shard].all != all {
            shards[shard].all = all;
            self.settle(&shards);
        }
    }

    /// Records that an operation on a key is diverted to a shard. Call this before sending it.
    pub fn note(&self, shard: usize, hash: u64) {
        if self.read()[shard].noted.contains(&hash) {
            return;
        }
        let mut shards = self.write();
        let one = &mut shards[shard];
        if one.noted.len() < FOREIGN_HASHES_MAX {
            one.noted.insert(hash);
            self.mark(hash);
        } else {
            one.all = true;
            self.settle(&shards);
        }
        self.some.store(true, Ordering::Release);
    }

    /// Merges a shard's reply to `health` and returns the index from which to ask for more, 0 if the list is a new one. A
    /// shard whose list hasn't been read to its end may hold any key.
    pub fn absorb(&self, shard: usize, report: ForeignReport<'_>) -> u64 {
        let mut shards = self.write();
        let one = &mut shards[shard];
        let was_all = one.all;
        let is_other = one.identity != report.identity || one.epoch != report.epoch;
        if is_other {
            begin_anew(one);
            one.identity = report.identity.to_vec();
            one.epoch = report.epoch;
        }
        // A late reply repeats what is known; one from further on would leave a gap.
        if report.from <= one.read {
            self.add_listed(one, report.hashes);
            one.read = one.read.max(report.from.saturating_add(report.hashes.len() as u64 / 8));
        }
        let all = report.all || one.read < report.count || one.listed.len() >= FOREIGN_HASHES_MAX;
        let read = one.read;
        one.all = all;
        if is_other || was_all != all {
            self.settle(&shards);
        }
        self.some.store(!shards.iter().all(ShardKeys::is_empty), Ordering::Release);
        read
    }

    fn add_listed(&self, shard: &mut ShardKeys, hashes: &[u8]) {
        let (hashes, _) = hashes.as_chunks::<8>();
        for hash in hashes {
            if shard.listed.len() >= FOREIGN_HASHES_MAX {
                shard.all = true;
                return;
            }
            let hash = u64::from_le_bytes(*hash);
            shard.listed.insert(hash);
            self.mark(hash);
        }
    }

    fn mark(&self, hash: u64) {
        let (word, bit) = place(hash);
        self.bitmap[word].fetch_or(bit, Ordering::Release);
    }

    /// Rebuilds the bitmap after removals or when a shard may hold any key. Readers take no lock, so a bit that stays set
    /// is never cleared in between.
    fn settle(&self, shards: &[ShardKeys]) {
        let mut words = vec![0u64; self.bitmap.len()];
        if shards.iter().any(|shard| shard.all) {
            words.fill(u64::MAX);
        } else {
            for hash in shards.iter().flat_map(|shard| shard.listed.iter().chain(&shard.noted)) {
                let (word, bit) = place(*hash);
                words[word] |= bit;
            }
        }
        for (atomic, word) in self.bitmap.iter().zip(words) {
            atomic.store(word, Ordering::Release);
        }
        self.some.store(!shards.iter().all(ShardKeys::is_empty), Ordering::Release);
    }

    fn read(&self) -> RwLockReadGuard<'_, Box<[ShardKeys]>> {
        self.shards.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Box<[ShardKeys]>> {
        self.shards.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn begin_anew(shard: &mut ShardKeys) {
    shard.listed = HashSet::new();
    shard.read = 0;
    shard.all = true;
}

/// The word and the bit for a hash.
fn place(hash: u64) -> (usize, u64) {
    let number = hash >> (u64::BITS - BITMAP_BITS_LOG2);
    ((number >> 6) as usize, 1 << (number & 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::hash_ring::key_hash;
    use std::sync::Arc;

    fn bytes(hashes: &[u64]) -> Vec<u8> {
        hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect()
    }

    fn report(epoch: u64, count: u64, from: u64, hashes: &[u8]) -> ForeignReport<'_> {
        ForeignReport { identity: b"identity", epoch, count, from, hashes, all: false }
    }

    #[test]
    fn only_what_was_named_is_foreign() {
        let keys = ForeignKeys::new(3);
        let hashes: Vec<u64> = (0..1000u64).map(|number| key_hash(&number.to_le_bytes())).collect();
        assert!(hashes.iter().all(|&hash| !keys.is_foreign(hash) && keys.holders(hash).is_empty()));
        keys.extend(2, &bytes(&hashes[..10]));
        keys.extend(0, &bytes(&hashes[5..20]));
        keys.note(1, hashes[7]);
        for (number, &hash) in hashes.iter().enumerate() {
            let expected = match number {
                7 => vec![0, 1, 2],
                0..5 => vec![2],
                5..10 => vec![0, 2],
                10..20 => vec![0],
                _ => vec![],
            };
            assert_eq!(keys.holders(hash), expected, "{number}");
            assert_eq!(keys.is_foreign(hash), !expected.is_empty(), "{number}");
        }
        assert_eq!([keys.count(0), keys.count(1), keys.count(2)], [15, 1, 10]);
    }

    #[test]
    fn a_shard_whose_list_begins_anew_may_hold_any_key_until_it_is_known() {
        let keys = ForeignKeys::new(2);
        keys.extend(1, &bytes(&[1, 2]));
        keys.note(1, 3);
        keys.replace(1);
        assert_eq!(keys.holders(99), [1]);
        keys.extend(1, &bytes(&[5]));
        keys.set_all(1, false);
        assert!(keys.holders(1).is_empty());
        assert_eq!(keys.holders(5), [1]);
        assert_eq!(keys.holders(3), [1], "what was diverted from here stays");
        assert!(!keys.is_foreign(99));
    }

    #[test]
    fn reports_are_read_to_their_end_and_begin_anew_with_another_opening() {
        let keys = ForeignKeys::new(1);
        assert_eq!(keys.absorb(0, report(1, 0, 0, &[])), 0);
        assert!(!keys.is_foreign(1));
        assert_eq!(keys.absorb(0, report(1, 3, 0, &bytes(&[1, 2]))), 2);
        assert!(keys.is_foreign(9), "the third isn't known yet");
        assert_eq!(keys.absorb(0, report(1, 3, 2, &bytes(&[3]))), 3);
        assert!(keys.is_foreign(3) && !keys.is_foreign(9));
        // A late copy changes nothing, and gaps are refused.
        assert_eq!(keys.absorb(0, report(1, 3, 0, &bytes(&[1, 2]))), 3);
        assert_eq!(keys.absorb(0, report(1, 9, 5, &bytes(&[8]))), 3);
        assert!(keys.is_foreign(9));
        assert_eq!(keys.absorb(0, report(2, 1, 3, &[])), 0);
        assert!(keys.is_foreign(9), "the list of the new opening isn't known");
        assert_eq!(keys.absorb(0, report(2, 1, 0, &bytes(&[1]))), 1);
        assert!(keys.is_foreign(1) && !keys.is_foreign(3) && !keys.is_foreign(9));
        assert_eq!(keys.absorb(0, ForeignReport { identity: b"other", ..report(2, 0, 0, &[]) }), 0);
        assert!(!keys.is_foreign(1));
        assert_eq!(keys.absorb(0, ForeignReport { all: true, ..report(2, 0, 0, &[]) }), 0);
        assert!(keys.may_hold_all(0));
    }

    #[test]
    fn too_many_hashes_are_all_keys() {
        let keys = ForeignKeys::new(1);
        let many: Vec<u64> = (0..FOREIGN_HASHES_MAX as u64 + 1).map(|number| key_hash(&number.to_le_bytes())).collect();
        keys.extend(0, &bytes(&many[..FOREIGN_HASHES_MAX]));
        assert!(!keys.may_hold_all(0) && !keys.is_foreign(key_hash(b"other")));
        keys.extend(0, &bytes(&many[FOREIGN_HASHES_MAX..]));
        assert!(keys.may_hold_all(0) && keys.is_foreign(key_hash(b"other")));
        let keys = ForeignKeys::new(1);
        let count = many.len() as u64;
        keys.absorb(0, report(1, count, 0, &bytes(&many[..2])));
        assert_eq!(keys.absorb(0, report(1, count, 2, &bytes(&many[2..]))), count);
        assert!(keys.may_hold_all(0) && keys.is_foreign(key_hash(b"other")));
    }

    #[test]
    fn what_stays_foreign_is_so_for_readers_while_lists_begin_anew() {
        let keys = Arc::new(ForeignKeys::new(2));
        let hashes: Vec<u64> = (0..200u64).map(|number| key_hash(&number.to_le_bytes())).collect();
        keys.extend(0, &bytes(&hashes));
        let reader = std::thread::spawn({
            let (keys, hashes) = (Arc::clone(&keys), hashes.clone());
            move || {
                for round in 0..300 {
                    assert!(hashes.iter().all(|&hash| keys.is_foreign(hash)), "round {round}");
                }
            }
        });
        for round in 0..100 {
            keys.extend(1, &bytes(&[round, round << 40]));
            keys.replace(1);
            keys.set_all(1, false);
        }
        reader.join().unwrap();
        assert_eq!(keys.count(1), 0);
    }
}

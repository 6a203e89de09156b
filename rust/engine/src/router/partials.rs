//! What each shard was last known to hold of a key: for answering an increment of a key that several shards hold.

/// Entries, a power of two.
const ENTRIES: usize = 1 << 15;

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// 0 where nothing was set; its value is 0, too.
    tag: u64,
    value: i64,
}

/// A table of fixed size in which a newer entry takes an older one's place.
#[derive(Debug)]
pub(super) struct Partials {
    entries: Box<[Entry]>,
}

impl Default for Partials {
    fn default() -> Self {
        Self { entries: vec![Entry::default(); ENTRIES].into() }
    }
}

/// The hash of a key at a shard.
#[inline]
const fn tag(hash: u64, shard: usize) -> u64 {
    // Hashes of keys are uniform; the golden ratio's multiples keep shards apart.
    hash.wrapping_add((shard as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[inline]
const fn index(tag: u64) -> usize {
    tag as usize & (ENTRIES - 1)
}

impl Partials {
    #[inline]
    pub(super) fn set(&mut self, hash: u64, shard: usize, value: i64) {
        let tag = tag(hash, shard);
        if let Some(entry) = self.entries.get_mut(index(tag)) {
            *entry = Entry { tag, value };
        }
    }

    pub(super) fn get(&self, hash: u64, shard: usize) -> Option<i64> {
        let tag = tag(hash, shard);
        self.entries.get(index(tag)).filter(|entry| entry.tag == tag).map(|entry| entry.value)
    }

    /// What so many shards held of a key was taken.
    pub(super) fn forget(&mut self, hash: u64, shards: usize) {
        for tag in (0..shards).map(|shard| tag(hash, shard)) {
            if let Some(entry) = self.entries.get_mut(index(tag)).filter(|entry| entry.tag == tag) {
                entry.value = 0;
            }
        }
    }

    /// Every shard was emptied.
    pub(super) fn forget_all(&mut self) {
        self.entries.fill(Entry::default());
    }

    /// What all of so many shards but one are known to hold.
    pub(super) fn others(&self, hash: u64, shard: usize, shards: usize) -> i128 {
        (0..shards).filter(|&other| other != shard).filter_map(|other| self.get(hash, other)).map(i128::from).sum()
    }
}

#[cfg(all(test, not(pycounter_loom)))]
mod tests {
    use super::*;

    #[test]
    fn others_are_all_but_one() {
        let mut partials = Partials::default();
        for (shard, value) in [(0, i64::MAX), (1, i64::MAX), (2, 5), (3, -7)] {
            partials.set(77, shard, value);
        }
        assert_eq!(partials.others(77, 3, 4), 2 * i128::from(i64::MAX) + 5);
        assert_eq!(partials.others(77, 0, 2), i128::from(i64::MAX));
        assert_eq!(partials.others(78, 0, 4), 0);
        partials.set(77, 2, 6);
        assert_eq!(partials.get(77, 2), Some(6));
        partials.set(78, 2, 9);
        partials.forget(77, 3);
        assert_eq!((partials.others(77, 0, 4), partials.others(78, 0, 4)), (-7, 9));
        partials.forget_all();
        assert_eq!((partials.others(77, 0, 4), partials.others(78, 0, 4)), (0, 0));
    }
}

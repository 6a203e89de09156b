//! What counters were last seen to hold, in bounded memory.
//!
//! There are two generations. When the young one is full it becomes the old one, and what was old is dropped whole: no
//! entry is ever looked for to make room for another, so a full one costs the same as an empty one.

use foldhash::fast::RandomState;

type Generation = hashbrown::HashMap<Box<[u8]>, i64, RandomState>;

/// The values of the latest counters: of so many at least, and of twice as many at most.
#[derive(Debug)]
pub struct LatestValues {
    counters_min: usize,
    young: Generation,
    old: Generation,
}

impl LatestValues {
    /// Remembers none yet.
    #[must_use]
    pub fn new(counters_min: usize) -> Self {
        Self { counters_min: counters_min.max(1), young: Generation::default(), old: Generation::default() }
    }

    /// This is the counter's value now.
    pub fn note(&mut self, key: &[u8], value: i64) {
        if let Some(known) = self.young.get_mut(key) {
            *known = value;
            return;
        }
        self.young.insert(key.into(), value);
        if self.young.len() >= self.counters_min {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// The counter's latest value, if it is remembered.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<i64> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    /// Forgets a counter.
    pub fn forget(&mut self, key: &[u8]) {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.young = Generation::default();
        self.old = Generation::default();
    }

    /// How many entries there are; a counter may have two.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

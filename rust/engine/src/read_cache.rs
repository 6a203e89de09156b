//! A cache of recently read values that never returns one from before a write through it.
//!
//! # What is never returned
//!
//! A value whose load began before a write that was sent or settled through the same cache. Each key has a *version*. A
//! write raises it (`bump`) when it is sent and again when it is settled. A load reads the version before it asks the
//! shard (`begin`), and its value is stored with that version (`fill`) only if the version hasn't changed; `get` returns
//! the value only while it still hasn't. Versions are striped: keys share [`STRIPES`] of them by hash, so a write
//! occasionally invalidates another key's value too. That costs a load and is never wrong.
//!
//! Writers elsewhere don't bump. Their writes show once the value expires, at most `l2_ttl` after its load, whatever its
//! level.
//!
//! # Ordering
//!
//! `bump` is on the path of every increment: one fetch-and-add, no lock. It is `Release`, and `begin` loads with
//! `Acquire`. So a load that sees a settled write's version asks the shard after the shard has answered that write, and
//! its value contains it; and the request can't be sent before the version was read. A thread that learns of a settled
//! write from the thread that bumped is ordered after the bump, so its `get` sees that version or a newer one. The
//! entry's own version is guarded by the lock.
//!
//! # Levels
//!
//! All values are in level 2. The most recently read or loaded ones are also in level 1, for `l1_ttl`, or `hot_ttl` if
//! their key is hot. A value found only in level 2 is promoted. Over a bound, a hand that moves through the entries evicts
//! the least useful of a few neighbours: first expired or stale ones, then cold ones, then by idle time divided by reads.
//! A sketch estimates reads, also of keys that aren't cached, and lets them decay (see `frequency_sketch`).
//!
//! # Memory
//!
//! Entries and keys stay within `bytes_max`; growing tables at most double that. Versions take 512 KiB, the sketch 8 to
//! 16 bytes for each entry of level 2.

use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use foldhash::quality::SeedableRandomState;
use hashbrown::HashTable;

use crate::atomics::{AtomicU64, Mutex, Ordering, lock};
use crate::clock::Clock;
use crate::frequency_sketch::FrequencySketch;
use crate::placement::hash_ring::key_hash;
use crate::planted_bug::{PlantedBug, is_planted};

#[cfg(all(test, not(pycounter_loom)))]
#[path = "read_cache/tests.rs"]
mod tests;

#[cfg(all(test, pycounter_loom))]
#[path = "read_cache/loom_tests.rs"]
mod loom_tests;

/// Number of versions, shared by all keys.
pub const STRIPES: usize = if cfg!(pycounter_loom) { 2 } else { 1 << 16 };
/// Bytes of an entry besides its key: the entry, its slots in the tables, the allocation's header.
pub const ENTRY_BYTES: usize = size_of::<Entry>() + 32;
/// Neighbours compared for an eviction, and how many more while none of them is cold.
const COMPARED: usize = 16;
const COMPARED_MAX: usize = 128;
/// Not in level 1.
const NOWHERE: u32 = u32::MAX;

/// Bounds and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadCacheSettings {
    /// Most values in level 1.
    pub l1_entries: usize,
    /// How long a value stays in level 1.
    pub l1_ttl: Duration,
    /// Most values in both levels.
    pub l2_entries: usize,
    /// Greatest age of a value.
    pub l2_ttl: Duration,
    /// Bytes of entries and their keys.
    pub bytes_max: usize,
    /// A key with more reads than this is hot.
    pub hot_reads: u16,
    /// How long a hot key's value stays in level 1.
    pub hot_ttl: Duration,
    /// A key with fewer reads than this is cold.
    pub cold_reads: u16,
}

impl Default for ReadCacheSettings {
    fn default() -> Self {
        Self {
            l1_entries: 10_000,
            l1_ttl: Duration::from_secs(1),
            l2_entries: 100_000,
            l2_ttl: Duration::from_secs(10),
            bytes_max: 64 << 20,
            hot_reads: 1000,
            hot_ttl: Duration::from_secs(5),
            cold_reads: 10,
        }
    }
}

/// A value from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cached {
    /// The counter's value.
    pub value: i64,
    /// How long ago it was loaded.
    pub age: Duration,
}

/// Statistics of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadCacheStatistics {
    /// Reads answered by level 1.
    pub l1_hits: u64,
    /// Reads answered by level 2.
    pub l2_hits: u64,
    /// Reads not answered, for any reason.
    pub misses: u64,
    /// Misses because the value had expired.
    pub expired: u64,
    /// Misses because of a write since the value's load.
    pub stale: u64,
    /// Values evicted for others.
    pub evictions: u64,
    /// Values stored.
    pub fills: u64,
    /// Values refused: written to since their load began, or too large.
    pub fills_refused: u64,
    /// Values held.
    pub entries: usize,
    /// Values in level 1.
    pub l1_entries: usize,
    /// Bytes of entries and their keys.
    pub bytes: usize,
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    /// The hash in the table and the sketch.
    hash: u64,
    value: i64,
    version: u64,
    stripe: usize,
    /// Nanoseconds on the cache's clock.
    loaded: u64,
    used: u64,
    l1_until: u64,
    l1_place: u32,
}

#[derive(Debug)]
struct Contents {
    /// Indexes into `entries`.
    table: HashTable<u32>,
    entries: Vec<Entry>,
    /// Indexes into `entries` of the values in level 1.
    l1: Vec<u32>,
    /// Where the next eviction starts, in `entries` and in `l1`.
    hand: usize,
    l1_hand: usize,
    bytes: usize,
    sketch: FrequencySketch,
    figures: ReadCacheStatistics,
}

/// The cache. Any thread may use it.
#[derive(Debug)]
pub struct ReadCache {
    settings: ReadCacheSettings,
    versions: Box<[AtomicU64]>,
    contents: Mutex<Contents>,
    hasher: SeedableRandomState,
    clock: Clock,
    began: Instant,
    /// Whether any load has ever begun. A standard atomic under the model checker too: it is a hint for one thread.
    is_used: std::sync::atomic::AtomicBool,
}

/// The stripe of a key's version, by its hash on the ring.
fn stripe_of(key_hash: u64) -> usize {
    // The ring uses the highest bits; any others do here.
    key_hash as usize % STRIPES
}

impl ReadCache {
    /// An empty cache. Numbers of entries are clamped to 1..=2^30.
    #[must_use]
    pub fn new(settings: ReadCacheSettings, clock: Clock) -> Self {
        let bounded = |entries: usize| entries.clamp(1, 1 << 30);
        let settings = ReadCacheSettings {
            l1_entries: bounded(settings.l1_entries),
            l2_entries: bounded(settings.l2_entries),
            ..settings
        };
        let contents = Contents {
            table: HashTable::new(),
            entries: Vec::new(),
            l1: Vec::new(),
            hand: 0,
            l1_hand: 0,
            bytes: 0,
            sketch: FrequencySketch::new(settings.l2_entries),
            figures: ReadCacheStatistics::default(),
        };
        let began = clock.now();
        Self {
            settings,
            versions: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            contents: Mutex::new(contents),
            hasher: SeedableRandomState::random(),
            clock,
            began,
            is_used: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// Records that a write to this key was sent or settled: values loaded before are no longer returned.
    pub fn bump(&self, key: &[u8]) {
        self.bump_hashed(key_hash(key));
    }

    /// As `bump`, for a key whose hash on the ring (`hash_ring::key_hash`) is known.
    pub fn bump_hashed(&self, key_hash: u64) {
        self.versions[stripe_of(key_hash)].fetch_add(1, Ordering::Release);
    }

    /// Records a write to every key: as `bump` for each.
    pub fn bump_all(&self) {
        for version in &self.versions {
            version.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether any load has ever begun. Until then, a thread on which all loads begin need not bump: nothing can be stale.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.is_used.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The key's version: read it before asking the shard, and pass it to `fill` with the answer.
    #[must_use]
    pub fn begin(&self, key: &[u8]) -> u64 {
        self.is_used.store(true, std::sync::atomic::Ordering::Relaxed);
        self.version(stripe_of(key_hash(key)))
    }

    /// Stores a value whose load began at `version`. False if the version has changed or there is no room.
    pub fn fill(&self, key: &[u8], value: i64, version: u64) -> bool {
        let stripe = stripe_of(key_hash(key));
        let is_current = version == self.version(stripe) || is_planted(PlantedBug::CacheFilledByEarlierLoad);
        let mut contents = lock(&self.contents);
        let bytes = ENTRY_BYTES + key.len();
        if !is_current || bytes > self.settings.bytes_max {
            contents.figures.fills_refused += 1;
            return false;
        }
        let version = if is_planted(PlantedBug::CacheFilledByEarlierLoad) { self.version(stripe) } else { version };
        let (hash, now) = (self.hasher.hash_one(key), self.now());
        let place = match contents.find(hash, key) {
            Some(place) => place,
            None => {
                while contents.entries.len() >= self.settings.l2_entries
                    || contents.bytes + bytes > self.settings.bytes_max
                {
                    self.evict(&mut contents, now);
                }
                contents.insert(Entry {
                    key: key.into(),
                    hash,
                    value,
                    version,
                    stripe,
                    loaded: now,
                    used: now,
                    l1_until: now,
                    l1_place: NOWHERE,
                })
            }
        };
        let entry = &mut contents.entries[place];
        (entry.value, entry.version, entry.loaded, entry.used) = (value, version, now, now);
        contents.figures.fills += 1;
        let reads = contents.sketch.estimate(hash);
        self.promote(&mut contents, place, reads, now);
        true
    }

    /// Counts a value that can't be passed to `fill`.
    pub fn refuse(&self) {
        lock(&self.contents).figures.fills_refused += 1;
    }

    /// The value, if the cache holds one that may be returned.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Cached> {
        let (hash, now) = (self.hasher.hash_one(key), self.now());
        let mut contents = lock(&self.contents);
        let reads = contents.sketch.record(hash);
        let Some(place) = contents.find(hash, key) else {
            contents.figures.misses += 1;
            return None;
        };
        let entry = &mut contents.entries[place];
        let age = now.saturating_sub(entry.loaded);
        let is_old = age >= nanoseconds(self.settings.l2_ttl);
        if is_old || entry.version != self.version(entry.stripe) {
            contents.figures.misses += 1;
            *(if is_old { &mut contents.figures.expired } else { &mut contents.figures.stale }) += 1;
            contents.remove(place);
            return None;
        }
        entry.used = now;
        let value = entry.value;
        if entry.l1_place != NOWHERE && now < entry.l1_until {
            contents.figures.l1_hits += 1;
        } else {
            contents.figures.l2_hits += 1;
            self.promote(&mut contents, place, reads, now);
        }
        Some(Cached { value, age: Duration::from_nanos(age) })
    }

    /// Up to `count` cached keys, the most read first, with their estimated reads.
    #[must_use]
    pub fn hottest(&self, count: usize) -> Vec<(Box<[u8]>, u16)> {
        let contents = lock(&self.contents);
        let mut ranked: Vec<(u16, &Entry)> =
            contents.entries.iter().map(|entry| (contents.sketch.estimate(entry.hash), entry)).collect();
        let order = |a: &(u16, &Entry), b: &(u16, &Entry)| b.0.cmp(&a.0).then_with(|| a.1.key.cmp(&b.1.key));
        if count < ranked.len() {
            ranked.select_nth_unstable_by(count, order);
            ranked.truncate(count);
        }
        ranked.sort_unstable_by(order);
        ranked.into_iter().map(|(reads, entry)| (entry.key.clone(), reads)).collect()
    }

    /// Drops all values. Loads in flight may still be stored: their values are no older for it.
    pub fn clear(&self) {
        let mut contents = lock(&self.contents);
        contents.table.clear();
        contents.entries.clear();
        contents.l1.clear();
        (contents.hand, contents.l1_hand, contents.bytes) = (0, 0, 0);
    }

    /// The statistics.
    #[must_use]
    pub fn statistics(&self) -> ReadCacheStatistics {
        let contents = lock(&self.contents);
        ReadCacheStatistics {
            entries: contents.entries.len(),
            l1_entries: contents.l1.len(),
            bytes: contents.bytes,
            ..contents.figures
        }
    }

    /// The clock, which simulations set.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    fn now(&self) -> u64 {
        nanoseconds(self.clock.now().saturating_duration_since(self.began))
    }

    fn version(&self, stripe: usize) -> u64 {
        self.versions[stripe].load(Ordering::Acquire)
    }

    /// Puts an entry into level 1, or extends its time there.
    fn promote(&self, contents: &mut Contents, place: usize, reads: u16, now: u64) {
        let ttl = if reads > self.settings.hot_reads { self.settings.hot_ttl } else { self.settings.l1_ttl };
        if contents.entries[place].l1_place == NOWHERE {
            if contents.l1.len() >= self.settings.l1_entries {
                let (worst, hand) = worst_of(contents.l1_hand, contents.l1.len(), |at| {
                    let entry = &contents.entries[contents.l1[at] as usize];
                    let (is_dead, is_cold, idle) = self.uselessness(contents, entry, now);
                    (is_dead || now >= entry.l1_until, is_cold, idle)
                });
                contents.l1_hand = hand;
                contents.demote(worst);
            }
            contents.entries[place].l1_place = contents.l1.len() as u32;
            contents.l1.push(place as u32);
        }
        contents.entries[place].l1_until = now.saturating_add(nanoseconds(ttl));
    }

    /// Evicts the least useful of the next few entries.
    fn evict(&self, contents: &mut Contents, now: u64) {
        let len = contents.entries.len();
        let (worst, hand) =
            worst_of(contents.hand, len, |place| self.uselessness(contents, &contents.entries[place], now));
        contents.hand = hand;
        contents.remove(worst);
        contents.figures.evictions += 1;
    }

    fn uselessness(&self, contents: &Contents, entry: &Entry, now: u64) -> Uselessness {
        let is_dead = now.saturating_sub(entry.loaded) >= nanoseconds(self.settings.l2_ttl)
            || entry.version != self.version(entry.stripe);
        let reads = contents.sketch.estimate(entry.hash);
        let idle = now.saturating_sub(entry.used) / (1 + u64::from(reads));
        (is_dead, reads < self.settings.cold_reads, idle)
    }
}

/// An eviction rank: whether it can no longer be returned, whether it is cold, and its idle time divided by its reads.
type Uselessness = (bool, bool, u64);

/// The least useful of the next few of `len` (above 0) indexes, and where the next eviction starts.
fn worst_of(hand: usize, len: usize, uselessness: impl Fn(usize) -> Uselessness) -> (usize, usize) {
    let mut worst = (hand % len, uselessness(hand % len));
    let mut compared = 1;
    // So that a few hot neighbours don't evict each other.
    while compared < len.min(if worst.1.0 || worst.1.1 { COMPARED } else { COMPARED_MAX }) {
        let place = (hand + compared) % len;
        let found = uselessness(place);
        if found > worst.1 {
            worst = (place, found);
        }
        compared += 1;
    }
    (worst.0, (hand + compared) % len)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Contents {
    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.table.find(hash, |&place| *self.entries[place as usize].key == *key).map(|&place| place as usize)
    }

    fn insert(&mut self, entry: Entry) -> usize {
        let place = self.entries.len();
        self.bytes += ENTRY_BYTES + entry.key.len();
        let entries = &self.entries;
        self.table.insert_unique(entry.hash, place as u32, |&place| entries[place as usize].hash);
        self.entries.push(entry);
        place
    }

    /// Removes an entry; the last one takes its index.
    fn remove(&mut self, place: usize) {
        let l1_place = self.entries[place].l1_place;
        if l1_place != NOWHERE {
            self.demote(l1_place as usize);
        }
        let last = self.entries.len() - 1;
        if let Ok(found) = self.table.find_entry(self.entries[place].hash, |&at| at as usize == place) {
            found.remove();
        }
        if place != last {
            let moved = &self.entries[last];
            if let Some(at) = self.table.find_mut(moved.hash, |&at| at as usize == last) {
                *at = place as u32;
            }
            if moved.l1_place != NOWHERE {
                self.l1[moved.l1_place as usize] = place as u32;
            }
        }
        let gone = self.entries.swap_remove(place);
        self.bytes -= ENTRY_BYTES + gone.key.len();
    }

    /// Removes an entry from level 1; the last one takes its index there.
    fn demote(&mut self, l1_place: usize) {
        let place = self.l1.swap_remove(l1_place);
        self.entries[place as usize].l1_place = NOWHERE;
        if let Some(&moved) = self.l1.get(l1_place) {
            self.entries[moved as usize].l1_place = l1_place as u32;
        }
    }
}

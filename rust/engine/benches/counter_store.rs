//! The counter store against what it has to beat: papaya's concurrent map, and hashbrown's map in
//! shards behind locks. Every map holds 16-byte keys and 64-bit atomic counters.
//!
//! Run with `cargo bench -p pycounter-engine --bench counter_store`.

use crossbeam_utils::CachePadded;
use divan::{Bencher, black_box, counter::ItemsCount};
use foldhash::quality::RandomState;
use pycounter_engine::counter_store::{CounterRef, CounterStore};
use std::hash::BuildHasher;
use std::sync::RwLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Keys: in the nearest caches, in the last one, in memory.
const KEYS: [usize; 3] = [1_000, 100_000, 1_000_000];
const THREADS: [usize; 2] = [1, 2];
/// Increments in one measured call: what a server finds in one chunk of a pipelining client.
const CHUNK: usize = 256;

type Key = [u8; 16];

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("a debug build measures nothing: run `cargo bench`");
        std::process::exit(2);
    }
    divan::main();
}

/// What all contestants do.
trait CounterMap: Sync {
    fn new() -> Self;
    /// Adds to a counter, made if need be; gives the new value.
    fn incr(&self, key: &Key, delta: i64) -> i64;
    /// Adds to many; gives the sum of the new values. As well as the map can.
    fn incr_chunk(&self, keys: &[Key]) -> i64 {
        keys.iter().map(|key| self.incr(key, 1)).sum()
    }
}

struct Own(CounterStore);

impl CounterMap for Own {
    fn new() -> Self {
        Self(CounterStore::new())
    }

    fn incr(&self, key: &Key, delta: i64) -> i64 {
        let at = self.0.find_or_insert(self.0.hash(key), key).expect("room");
        self.0.incr(at, delta).expect("small numbers")
    }

    fn incr_chunk(&self, keys: &[Key]) -> i64 {
        let mut hashes = [0; CHUNK];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.0.hash(key);
            self.0.prefetch_slot(*hash);
        }
        for &hash in &hashes[..keys.len()] {
            self.0.prefetch_cell(hash);
        }
        let mut sum = 0;
        for (&hash, key) in hashes.iter().zip(keys) {
            let at = self.0.find_or_insert(hash, key).expect("room");
            sum += self.0.incr(at, 1).expect("small numbers");
        }
        sum
    }
}

struct Papaya(papaya::HashMap<Box<[u8]>, AtomicI64, RandomState>);

impl CounterMap for Papaya {
    fn new() -> Self {
        Self(papaya::HashMap::with_hasher(RandomState::default()))
    }

    fn incr(&self, key: &Key, delta: i64) -> i64 {
        let map = self.0.pin();
        if let Some(value) = map.get(&key[..]) {
            return value.fetch_add(delta, Ordering::Relaxed) + delta;
        }
        map.get_or_insert_with(key[..].into(), || AtomicI64::new(0)).fetch_add(delta, Ordering::Relaxed) + delta
    }

    fn incr_chunk(&self, keys: &[Key]) -> i64 {
        // One guard for all: the library's own advice.
        let map = self.0.pin();
        let mut sum = 0;
        for key in keys {
            sum += match map.get(&key[..]) {
                Some(value) => value.fetch_add(1, Ordering::Relaxed) + 1,
                None => self.incr(key, 1),
            };
        }
        sum
    }
}

const SHARDS: usize = 64;

type Shard = CachePadded<RwLock<hashbrown::HashMap<Box<[u8]>, AtomicI64, RandomState>>>;

struct Sharded {
    shards: [Shard; SHARDS],
    hasher: RandomState,
}

impl CounterMap for Sharded {
    fn new() -> Self {
        let hasher = RandomState::default();
        Self { shards: std::array::from_fn(|_| Default::default()), hasher }
    }

    fn incr(&self, key: &Key, delta: i64) -> i64 {
        // Each shard's map has a seed of its own, so that it may hash the same bits again.
        let shard = &self.shards[self.hasher.hash_one(key) as usize % SHARDS];
        if let Some(value) = shard.read().expect("no panic").get(&key[..]) {
            return value.fetch_add(delta, Ordering::Relaxed) + delta;
        }
        let mut map = shard.write().expect("no panic");
        map.entry(key[..].into()).or_default().fetch_add(delta, Ordering::Relaxed) + delta
    }
}

fn key_of(number: usize) -> Key {
    let mut key = *b"counter:--------";
    key[8..].copy_from_slice(&(number as u64).to_be_bytes());
    key
}

/// A cheap random sequence (xorshift), apart in each thread.
struct Picks(u64);

impl Picks {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn keys(&mut self, among: usize) -> [Key; CHUNK] {
        std::array::from_fn(|_| {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            key_of((self.0 >> 11) as usize % among)
        })
    }
}

fn filled<M: CounterMap>(keys: usize) -> M {
    let map = M::new();
    for number in 0..keys {
        map.incr(&key_of(number), 1);
    }
    map
}

fn measure<M: CounterMap>(bencher: Bencher<'_, '_>, keys: usize, chunk: impl Fn(&M, &[Key]) -> i64 + Sync) {
    let map = filled::<M>(keys);
    bencher
        .with_inputs(|| Picks::new().keys(keys))
        .counter(ItemsCount::new(CHUNK))
        .bench_refs(|picked| black_box(chunk(&map, picked)));
}

/// One increment after the other.
#[divan::bench(types = [Own, Papaya, Sharded], args = KEYS, threads = THREADS, sample_count = 400, sample_size = 16)]
fn single<M: CounterMap>(bencher: Bencher<'_, '_>, keys: usize) {
    measure::<M>(bencher, keys, |map, picked| picked.iter().map(|key| map.incr(key, 1)).sum());
}

/// A chunk of increments at once.
#[divan::bench(types = [Own, Papaya, Sharded], args = KEYS, threads = THREADS, sample_count = 400, sample_size = 16)]
fn chunked<M: CounterMap>(bencher: Bencher<'_, '_>, keys: usize) {
    measure::<M>(bencher, keys, |map, picked| map.incr_chunk(picked));
}

/// What the server's loop thread does: a chunk at once, with exclusive access.
#[divan::bench(args = KEYS, sample_count = 400, sample_size = 16)]
fn chunked_exclusive(bencher: Bencher<'_, '_>, keys: usize) {
    let mut store = filled::<Own>(keys).0;
    bencher.with_inputs(|| Picks::new().keys(keys)).counter(ItemsCount::new(CHUNK)).bench_local_refs(|picked| {
        let mut hashes = [0; CHUNK];
        for (hash, key) in hashes.iter_mut().zip(&*picked) {
            *hash = store.hash(key);
            store.prefetch_slot(*hash);
        }
        for &hash in &hashes {
            store.prefetch_cell(hash);
        }
        let mut sum = 0;
        for (&hash, key) in hashes.iter().zip(&*picked) {
            let at = store.find_or_insert_mut(hash, key).expect("room");
            sum += store.incr_mut(at, 1).expect("small numbers");
        }
        black_box(sum)
    });
}

/// Making counters, growth included.
#[divan::bench(types = [Own, Papaya, Sharded], args = KEYS, sample_count = 5, sample_size = 1)]
fn insert<M: CounterMap>(bencher: Bencher<'_, '_>, keys: usize) {
    bencher.counter(ItemsCount::new(keys)).bench(|| filled::<M>(keys));
}

fn hot() -> (CounterStore, CounterRef) {
    let store = CounterStore::new();
    let at = store.find_or_insert(store.hash(b"hot"), b"hot").expect("room");
    store.set(at, 0);
    (store, at)
}

/// One hot counter: `add`, which grows stripes.
#[divan::bench(threads = THREADS, sample_count = 400, sample_size = 64)]
fn hot_add_striped(bencher: Bencher<'_, '_>) {
    let (store, at) = hot();
    bencher.counter(ItemsCount::new(CHUNK)).bench(|| {
        for _ in 0..CHUNK {
            store.add(at, black_box(1)).expect("small numbers");
        }
    });
}

/// One hot counter without stripes.
#[divan::bench(threads = THREADS, sample_count = 400, sample_size = 64)]
fn hot_add_plain(bencher: Bencher<'_, '_>) {
    let (store, at) = hot();
    let store = store.without_stripes();
    bencher.counter(ItemsCount::new(CHUNK)).bench(|| {
        for _ in 0..CHUNK {
            store.add(at, black_box(1)).expect("small numbers");
        }
    });
}

/// The least that sharing one counter can cost: a bare fetch_add, without an overflow check.
#[divan::bench(threads = THREADS, sample_count = 400, sample_size = 64)]
fn hot_fetch_add(bencher: Bencher<'_, '_>) {
    let counter = CachePadded::new(AtomicI64::new(0));
    bencher.counter(ItemsCount::new(CHUNK)).bench(|| {
        for _ in 0..CHUNK {
            counter.fetch_add(black_box(1), Ordering::Relaxed);
        }
    });
}

/// One hot counter whose value is asked for after every 16 additions: folds and lanes in turn.
#[divan::bench(threads = THREADS, sample_count = 400, sample_size = 64)]
fn hot_add_and_read(bencher: Bencher<'_, '_>) {
    let (store, at) = hot();
    bencher.counter(ItemsCount::new(CHUNK)).bench(|| {
        for round in 0..CHUNK {
            store.add(at, black_box(1)).expect("small numbers");
            if round % 16 == 0 {
                black_box(store.value(at));
            }
        }
    });
}

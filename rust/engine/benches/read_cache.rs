//! What a cached read costs, a write's bump, and a fill that drives another value out.
//!
//! `cargo bench -p pycounter-engine --bench read_cache`

use std::hint::black_box;

use divan::Bencher;
use divan::counter::ItemsCount;
use pycounter_engine::clock::Clock;
use pycounter_engine::placement::hash_ring::key_hash;
use pycounter_engine::read_cache::{ReadCache, ReadCacheSettings};

/// Within level 1 and the processor's caches; level 2 full.
const KEYS: [usize; 2] = [1_000, 100_000];

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, whose figures mean nothing: use cargo bench");
        std::process::exit(1);
    }
    divan::main();
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("counter:{number:08}")).collect()
}

/// Filled once; by a clock that stands still nothing ever leaves, and the system's is asked by `get` all the same.
fn filled(keys: &[String], clock: Clock) -> ReadCache {
    let cache = ReadCache::new(ReadCacheSettings::default(), clock);
    for key in keys {
        cache.fill(key.as_bytes(), 1, cache.begin(key.as_bytes()));
    }
    cache
}

#[divan::bench(args = KEYS)]
fn get(bencher: Bencher, count: usize) {
    let keys = keys(count);
    let mut cache = filled(&keys, Clock::system());
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        if cache.get(keys[0].as_bytes()).is_none() {
            cache = filled(&keys, Clock::system());
        }
        keys.iter().filter_map(|key| cache.get(black_box(key.as_bytes()))).count()
    });
}

#[divan::bench(args = KEYS)]
fn get_nothing(bencher: Bencher, count: usize) {
    let keys = keys(count);
    let cache = ReadCache::new(ReadCacheSettings::default(), Clock::system());
    bencher
        .counter(ItemsCount::new(count))
        .bench_local(|| keys.iter().filter_map(|key| cache.get(black_box(key.as_bytes()))).count());
}

#[divan::bench(args = KEYS)]
fn bump(bencher: Bencher, count: usize) {
    let hashes: Vec<u64> = keys(count).iter().map(|key| key_hash(key.as_bytes())).collect();
    let cache = ReadCache::new(ReadCacheSettings::default(), Clock::system());
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        for &hash in &hashes {
            cache.bump_hashed(black_box(hash));
        }
    });
}

/// Twice as many keys as fit: every fill drives one out.
#[divan::bench]
fn fill_a_full_cache(bencher: Bencher) {
    let keys = keys(200_000);
    let cache = filled(&keys, Clock::by_hand());
    bencher
        .counter(ItemsCount::new(keys.len()))
        .bench_local(|| keys.iter().filter(|key| cache.fill(key.as_bytes(), 1, cache.begin(key.as_bytes()))).count());
}

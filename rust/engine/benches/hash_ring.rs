//! What a lookup in the ring costs, and what a new ring costs.
//!
//! `cargo bench -p pycounter-engine --bench hash_ring`

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use pycounter_engine::placement::hash_ring::{HashRing, SharedRing};

const KEYS: usize = 1 << 16;
const SHARDS: [usize; 3] = [4, 64, 1024];

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, whose figures mean nothing: use cargo bench");
        std::process::exit(1);
    }
    divan::main();
}

fn ring(shards: usize) -> HashRing {
    HashRing::new((0..shards).map(|number| (format!("shard-{number}"), 1.0))).expect("names and weights are good")
}

fn keys() -> Vec<String> {
    (0..KEYS).map(|number| format!("key:{number:012}")).collect()
}

#[divan::bench(args = SHARDS)]
fn build(shards: usize) -> HashRing {
    ring(black_box(shards))
}

/// Keys of 16 bytes, each looked up once: points and starts come from the cache only where they all fit into it.
#[divan::bench(args = SHARDS)]
fn home(bencher: Bencher, shards: usize) {
    let (ring, keys) = (ring(shards), keys());
    bencher
        .counter(ItemsCount::new(KEYS))
        .bench_local(|| keys.iter().map(|key| ring.home(black_box(key.as_bytes()))).sum::<usize>());
}

/// The same through a ring that may be replaced at any time, loaded for each key.
#[divan::bench(args = SHARDS)]
fn home_in_shared_ring(bencher: Bencher, shards: usize) {
    let (ring, keys) = (SharedRing::new(ring(shards)), keys());
    bencher
        .counter(ItemsCount::new(KEYS))
        .bench_local(|| keys.iter().map(|key| ring.load().home(black_box(key.as_bytes()))).sum::<usize>());
}

//! Levels, versions, bounds and evictions, by a clock that the tests set; and any steps against a plain map.

use super::*;
use foldhash::SharedSeed;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

fn cache(settings: ReadCacheSettings) -> (ReadCache, Clock) {
    let clock = Clock::by_hand();
    let mut cache = ReadCache::new(settings, clock.clone());
    // The sketch may take a cold key for a hot one that shares its counters: which do is the same in each run.
    cache.hasher = SeedableRandomState::with_seed(1, SharedSeed::global_fixed());
    (cache, clock)
}

fn load(cache: &ReadCache, key: &[u8], value: i64) -> bool {
    let version = cache.begin(key);
    cache.fill(key, value, version)
}

fn value(cache: &ReadCache, key: &[u8]) -> Option<i64> {
    cache.get(key).map(|cached| cached.value)
}

fn key(number: usize) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

#[test]
fn a_value_is_returned_until_the_key_is_written() {
    let (cache, _) = cache(ReadCacheSettings::default());
    assert_eq!(value(&cache, b"a"), None);
    assert!(load(&cache, b"a", 7));
    assert_eq!(value(&cache, b"a"), Some(7));
    cache.bump(b"a");
    assert_eq!(value(&cache, b"a"), None);
    assert!(load(&cache, b"a", i64::MIN));
    assert_eq!(value(&cache, b"a"), Some(i64::MIN));
    let figures = cache.statistics();
    assert_eq!((figures.l1_hits, figures.misses, figures.stale, figures.fills), (2, 2, 1, 2));
}

#[test]
fn a_load_that_began_before_a_write_is_not_kept() {
    let (cache, _) = cache(ReadCacheSettings::default());
    let version = cache.begin(b"a");
    cache.bump(b"a");
    assert!(!cache.fill(b"a", 1, version));
    assert_eq!(value(&cache, b"a"), None);
    assert_eq!(cache.statistics().fills_refused, 1);
}

#[test]
fn a_write_to_every_key_leaves_no_value_and_no_load_that_began_before() {
    let (cache, _) = cache(ReadCacheSettings::default());
    let numbers = 0..1000;
    numbers.clone().for_each(|number| assert!(load(&cache, &key(number), 1)));
    let version = cache.begin(b"under way");
    cache.bump_all();
    assert!(numbers.clone().all(|number| value(&cache, &key(number)).is_none()));
    assert!(!cache.fill(b"under way", 1, version));
    numbers.for_each(|number| assert!(load(&cache, &key(number), 2)));
}

#[test]
fn a_write_to_a_key_of_the_same_stripe_costs_a_load() {
    let (cache, _) = cache(ReadCacheSettings::default());
    let stripe = |number: usize| stripe_of(key_hash(&key(number)));
    let other = (1..).find(|&number| stripe(number) == stripe(0)).unwrap();
    let apart = (1..).find(|&number| stripe(number) != stripe(0)).unwrap();
    load(&cache, &key(0), 1);
    cache.bump_hashed(key_hash(&key(apart)));
    assert_eq!(value(&cache, &key(0)), Some(1));
    cache.bump_hashed(key_hash(&key(other)));
    assert_eq!(value(&cache, &key(0)), None);
}

#[test]
fn a_value_leaves_level_1_then_level_2() {
    let (cache, clock) = cache(ReadCacheSettings::default());
    load(&cache, b"a", 7);
    clock.set(Duration::from_millis(999));
    assert_eq!(cache.get(b"a"), Some(Cached { value: 7, age: Duration::from_millis(999) }));
    assert_eq!(cache.statistics().l1_hits, 1);
    clock.set(Duration::from_secs(1));
    value(&cache, b"a");
    assert_eq!(cache.statistics().l2_hits, 1);
    // Promoted.
    value(&cache, b"a");
    assert_eq!((cache.statistics().l1_hits, cache.statistics().l2_hits), (2, 1));
    clock.set(Duration::from_millis(9_999));
    assert_eq!(value(&cache, b"a"), Some(7));
    // However hot it is in level 1.
    clock.set(Duration::from_secs(10));
    assert_eq!(value(&cache, b"a"), None);
    assert_eq!(cache.statistics().expired, 1);
}

#[test]
fn a_hot_value_stays_in_level_1_for_longer() {
    let (cache, clock) = cache(ReadCacheSettings::default());
    load(&cache, b"a", 7);
    for _ in 0..=1000 {
        value(&cache, b"a");
    }
    clock.set(Duration::from_secs(1));
    value(&cache, b"a");
    assert_eq!(cache.statistics().l2_hits, 1);
    clock.set(Duration::from_millis(5_999));
    value(&cache, b"a");
    assert_eq!(cache.statistics().l2_hits, 1);
    clock.set(Duration::from_secs(6));
    value(&cache, b"a");
    assert_eq!(cache.statistics().l2_hits, 2);
}

#[test]
fn the_cold_leave_first() {
    let (cache, clock) = cache(ReadCacheSettings { l1_entries: 10, l2_entries: 500, ..ReadCacheSettings::default() });
    for number in 0..20 {
        load(&cache, &key(number), 1);
        for _ in 0..20 {
            value(&cache, &key(number));
        }
    }
    clock.set(Duration::from_secs(1));
    // A scan over many keys that are read once.
    for number in 1000..3000 {
        value(&cache, &key(number));
        load(&cache, &key(number), 1);
    }
    let kept = (0..20).filter(|&number| value(&cache, &key(number)).is_some()).count();
    assert_eq!(kept, 20);
    let hottest = cache.hottest(20);
    assert!(hottest.iter().all(|(key, reads)| *reads >= 20 && key.len() <= b"key-19".len()), "{hottest:?}");
    assert_eq!(cache.hottest(1000).len(), 500);
}

#[test]
fn values_that_are_stale_leave_before_cold_ones() {
    let (cache, _) = cache(ReadCacheSettings { l2_entries: 16, ..ReadCacheSettings::default() });
    for number in 0..16 {
        load(&cache, &key(number), 1);
    }
    cache.bump(&key(5));
    load(&cache, &key(100), 1);
    assert!((0..16).filter(|&number| number != 5).all(|number| value(&cache, &key(number)).is_some()));
}

#[test]
fn long_keys_are_bounded_by_bytes() {
    let bytes_max = 100 * (ENTRY_BYTES + 1024);
    let (cache, _) = cache(ReadCacheSettings { bytes_max, ..ReadCacheSettings::default() });
    for number in 0..1000 {
        let mut long = key(number);
        long.resize(1024, b'.');
        assert!(load(&cache, &long, 1));
        assert!(cache.statistics().bytes <= bytes_max);
    }
    assert_eq!(cache.statistics().entries, 100);
    let (tiny, _) = self::cache(ReadCacheSettings { bytes_max: ENTRY_BYTES, ..ReadCacheSettings::default() });
    assert!(!load(&tiny, b"a", 1));
    assert_eq!(tiny.statistics().fills_refused, 1);
}

#[test]
fn clear_forgets_and_the_cache_goes_on() {
    let (cache, _) = cache(ReadCacheSettings { l1_entries: 3, l2_entries: 10, ..ReadCacheSettings::default() });
    for round in 0..3 {
        for number in 0..25 {
            load(&cache, &key(number), round);
        }
        assert_eq!((cache.statistics().entries, cache.statistics().l1_entries), (10, 3));
        cache.clear();
        assert_eq!((cache.statistics().entries, cache.statistics().l1_entries, cache.statistics().bytes), (0, 0, 0));
    }
}

#[test]
fn threads_never_read_what_was_before_a_write_that_they_know_of() {
    let cache = Arc::new(ReadCache::new(ReadCacheSettings::default(), Clock::system()));
    let counter = Arc::new(AtomicI64::new(0));
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (cache, counter) = (cache.clone(), counter.clone());
            thread::spawn(move || {
                for turn in 0..20_000 {
                    if (turn + number) % 4 == 0 {
                        cache.bump(b"a");
                        let after = counter.fetch_add(1, Ordering::SeqCst) + 1;
                        cache.bump(b"a");
                        if let Some(cached) = cache.get(b"a") {
                            assert!(cached.value >= after, "{} after {after}", cached.value);
                        }
                    } else {
                        let version = cache.begin(b"a");
                        cache.fill(b"a", counter.load(Ordering::SeqCst), version);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(cache.statistics().fills > 0);
}

#[derive(Debug, Clone)]
enum Step {
    Get(usize),
    Begin(usize),
    Fill(usize),
    Bump(usize),
    Pass(u64),
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..30usize).prop_map(Step::Get),
        4 => (0..30usize).prop_map(Step::Begin),
        4 => (0..30usize).prop_map(Step::Fill),
        1 => (0..30usize).prop_map(Step::Bump),
        1 => (0..3_000u64).prop_map(Step::Pass),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    /// Against a map from each key to its newest load and its newest write: whatever is returned was loaded since the
    /// write and isn't too old, and every internal place fits every other.
    #[test]
    fn it_is_never_wrong(steps in steps(), l1_entries in 1..8usize, l2_entries in 1..24usize) {
        let (cache, clock) = cache(ReadCacheSettings { l1_entries, l2_entries, ..ReadCacheSettings::default() });
        let (mut now_ms, mut serial) = (0, 0);
        let mut begun: HashMap<usize, (i64, u64)> = HashMap::new();
        let mut written: HashMap<usize, i64> = HashMap::new();
        let mut filled: HashMap<usize, (i64, u64)> = HashMap::new();
        for step in steps {
            serial += 1;
            match step {
                Step::Get(number) => {
                    if let Some(got) = value(&cache, &key(number)) {
                        let (newest, at_ms) = filled[&number];
                        prop_assert_eq!(got, newest);
                        prop_assert!(got > written.get(&number).copied().unwrap_or(0));
                        prop_assert!(now_ms - at_ms < 10_000);
                    }
                }
                Step::Begin(number) => {
                    begun.insert(number, (serial, cache.begin(&key(number))));
                }
                Step::Fill(number) => {
                    if let Some((began, version)) = begun.remove(&number)
                        && cache.fill(&key(number), began, version)
                    {
                        prop_assert!(began > written.get(&number).copied().unwrap_or(0));
                        filled.insert(number, (began, now_ms));
                        prop_assert!(value(&cache, &key(number)) == Some(began));
                    }
                }
                Step::Bump(number) => {
                    cache.bump(&key(number));
                    written.insert(number, serial);
                }
                Step::Pass(ms) => {
                    now_ms += ms;
                    clock.set(Duration::from_millis(now_ms));
                }
                Step::Clear => cache.clear(),
            }
            let contents = lock(&cache.contents);
            prop_assert!(contents.entries.len() <= l2_entries && contents.l1.len() <= l1_entries);
            prop_assert_eq!(contents.table.len(), contents.entries.len());
            let in_l1 = contents.entries.iter().filter(|entry| entry.l1_place != NOWHERE).count();
            prop_assert_eq!(in_l1, contents.l1.len());
            for (place, entry) in contents.entries.iter().enumerate() {
                prop_assert_eq!(contents.find(entry.hash, &entry.key), Some(place));
                prop_assert!(entry.l1_place == NOWHERE || contents.l1[entry.l1_place as usize] as usize == place);
            }
            let bytes: usize = contents.entries.iter().map(|entry| ENTRY_BYTES + entry.key.len()).sum();
            prop_assert_eq!(contents.bytes, bytes);
        }
    }
}

//! Tests of the counter store.

use super::*;
use crate::write_batch_queue::{QueueFull, WriteBatchQueue};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};

fn small() -> CounterStore {
    CounterStore::with_seed(7, u64::MAX)
}

fn counter(store: &CounterStore, key: &[u8]) -> CounterRef {
    store.find_or_insert(store.hash(key), key).unwrap()
}

/// All counters, each page by one call; fails if a key comes twice.
fn scanned(store: &CounterStore, count: usize) -> BTreeMap<Vec<u8>, i64> {
    let mut seen = BTreeMap::new();
    let mut cursor = 0;
    loop {
        cursor = store.scan(cursor, count, |key, value| {
            assert!(seen.insert(key.to_vec(), value).is_none(), "{key:?} came twice");
        });
        if cursor == 0 {
            return seen;
        }
    }
}

fn key_of(number: u32) -> Vec<u8> {
    format!("key:{number}").into_bytes()
}

const THREAD_KEYS: u32 = if cfg!(miri) { 60 } else { 20_000 };

#[test]
fn an_entry_with_a_short_key_costs_32_bytes() {
    let store = small();
    let empty = store.arena.used_bytes();
    for number in 0..100u32 {
        counter(&store, format!("{number:016}").as_bytes());
    }
    assert_eq!(store.arena.used_bytes() - empty, 3200);
}

#[test]
#[cfg_attr(miri, ignore = "slow")]
fn a_counter_costs_at_most_48_bytes_on_average() {
    let mut store = small();
    let mut total = 0.0;
    let (from, to) = (100_000u32, 200_000);
    for number in 0..to {
        let key = format!("{number:016}");
        let hash = store.hash(key.as_bytes());
        store.find_or_insert_mut(hash, key.as_bytes()).unwrap();
        if number >= from {
            total += store.memory_bytes() as f64 / f64::from(number + 1);
        }
    }
    let mean = total / f64::from(to - from);
    assert!((40.0..48.0).contains(&mean), "{mean} bytes");
}

#[test]
fn an_inserted_counter_is_absent_until_changed() {
    let store = small();
    let at = counter(&store, b"a");
    assert_eq!((store.len(), store.get(at), store.value(at)), (0, None, 0));
    assert_eq!(store.delete(at), None);
    assert_eq!(store.incr(at, 5), Ok(5));
    assert_eq!((store.len(), store.get(at)), (1, Some(5)));
    assert_eq!(store.drain(at), 5);
    assert_eq!((store.len(), store.get(at)), (1, Some(0)));
    assert_eq!(store.delete(at), Some(0));
    assert_eq!((store.len(), store.get(at)), (0, None));
    assert_eq!(store.find(store.hash(b"a"), b"a"), Some(at));
    assert_eq!(store.find(store.hash(b"b"), b"b"), None);
    assert_eq!(store.drain(at), 0);
    assert!(store.is_present(at));
    assert_eq!(store.key(at), b"a");
}

#[test]
fn keys_have_1_to_1024_bytes() {
    let mut store = small();
    for len in [1, 7, 8, 9, 16, 1023, 1024] {
        let key = vec![b'k'; len];
        let at = counter(&store, &key);
        assert_eq!(store.key(at), key);
    }
    for key in [vec![], vec![0; 1025], vec![0; 70_000]] {
        let hash = store.hash(&key);
        assert_eq!(store.find_or_insert(hash, &key), Err(StoreError::KeyLength));
        assert_eq!(store.find_or_insert_mut(hash, &key), Err(StoreError::KeyLength));
    }
}

#[test]
fn zeros_and_lengths_make_different_keys() {
    let store = small();
    let refs: HashSet<_> = (1..40).map(|len| counter(&store, &vec![0; len])).collect();
    assert_eq!(refs.len(), 39);
}

#[test]
fn equal_hashes_are_told_apart_by_the_key() {
    let store = small();
    for (number, hash) in (0..180u32).zip([42, 42 << 32, 42 << 32 | 42].into_iter().cycle()) {
        let at = store.find_or_insert(hash, &key_of(number)).unwrap();
        store.set(at, i64::from(number));
    }
    for (number, hash) in (0..180u32).zip([42, 42 << 32, 42 << 32 | 42].into_iter().cycle()) {
        let at = store.find(hash, &key_of(number)).unwrap();
        assert_eq!(store.value(at), i64::from(number));
    }
    assert_eq!(store.find(42, b"key:1"), None);
    assert_eq!(scanned(&store, 1).len(), 180);
}

/// Fills a store with ordinary keys, then with hostile ones until they are refused.
fn attacked(hash_of: impl Fn(u32) -> u64) -> (CounterStore, u32) {
    let store = small();
    for number in 0..20_000 {
        counter(&store, &key_of(number));
    }
    let hostile = |number: u32| format!("hostile:{number}").into_bytes();
    let refused = (0..100_000u32)
        .find(|&number| store.find_or_insert(hash_of(number), &hostile(number)) == Err(StoreError::Crowded))
        .expect("they are refused");
    for number in 0..refused {
        assert!(store.find(hash_of(number), &hostile(number)).is_some());
    }
    assert!(store.index().homes() <= 1 << 18, "the index grew out of bounds for them");
    (store, refused)
}

#[test]
#[cfg_attr(miri, ignore = "slow")]
fn keys_with_one_tag_are_refused_and_the_others_served() {
    for tag in [0u64, 0xFFFF_FFFF, 0x8000_0000] {
        let (store, refused) = attacked(|number| tag << 32 | u64::from(number));
        assert!((128..=129).contains(&refused), "{refused}");
        for number in 20_000..200_000 {
            counter(&store, &key_of(number));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "slow")]
fn keys_with_neighbouring_tags_are_refused_before_lookups_get_long() {
    for tag in [0u64, 0xFFF0_0000, 0x8000_0000] {
        let (store, refused) = attacked(|number| (tag + u64::from(number)) << 32);
        assert!((1000..40_000).contains(&refused), "{refused}");
        for number in 0..20_000 {
            assert!(store.find(store.hash(&key_of(number)), &key_of(number)).is_some());
        }
    }
}

#[test]
fn the_byte_bound_is_kept() {
    let bytes_max = 40_000;
    let store = CounterStore::with_seed(1, bytes_max);
    let mut made = 0;
    let refused = loop {
        let key = key_of(made);
        match store.find_or_insert(store.hash(&key), &key) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
        assert!(store.memory_bytes() <= bytes_max);
    };
    assert_eq!(refused, StoreError::Full);
    assert!(made > 200, "{made}");
    // What is there goes on.
    assert_eq!(store.incr(counter(&store, &key_of(0)), 1), Ok(1));
}

#[test]
fn scan_is_exact_while_the_store_grows() {
    let (there, per_page) = if cfg!(miri) { (100, 5) } else { (3000, 17) };
    let store = small();
    for number in 0..there {
        store.set(counter(&store, &key_of(number)), 1);
    }
    let mut seen = HashMap::new();
    let (mut cursor, mut more) = (0, there);
    loop {
        cursor = store.scan(cursor, 7, |key, _| *seen.entry(key.to_vec()).or_insert(0) += 1);
        if cursor == 0 {
            break;
        }
        for _ in 0..per_page {
            store.set(counter(&store, &key_of(more)), 1);
            more += 1;
        }
    }
    assert!(more > there * 2, "the store has grown meanwhile");
    assert!(seen.values().all(|&times| times == 1));
    assert!((0..there).all(|number| seen.contains_key(&key_of(number))));
}

#[test]
fn scan_ends_on_any_cursor() {
    let store = small();
    for number in 0..50 {
        store.set(counter(&store, &key_of(number)), 1);
    }
    for cursor in [1, u64::from(u32::MAX), 1 << 32, u64::MAX, 0x7FFF_FFFF] {
        let mut at = cursor;
        for _ in 0..1000 {
            at = store.scan(at, 0, |_, _| {});
            if at == 0 {
                break;
            }
        }
        assert_eq!(at, 0, "from {cursor}");
    }
}

#[test]
fn a_cursor_survives_restart_and_compaction() {
    let store = small();
    for number in 0..500 {
        store.set(counter(&store, &key_of(number)), 1);
    }
    let mut seen = HashSet::new();
    let cursor = store.scan(0, 300, |key, _| assert!(seen.insert(key.to_vec())));
    let mut restarted = small();
    for number in (0..500).rev() {
        restarted.set(counter(&restarted, &key_of(number)), 1);
    }
    // Another size: a larger index, as it was before the compaction below.
    for number in 500..600 {
        restarted.delete(counter(&restarted, &key_of(number)));
    }
    assert!(restarted.compact());
    let mut at = cursor;
    while at != 0 {
        at = restarted.scan(at, 10, |key, _| assert!(seen.insert(key.to_vec())));
    }
    assert_eq!(seen.len(), 500);
}

#[test]
fn top_sorts_by_value_then_key() {
    let store = small();
    for (key, value) in [("a:1", 5), ("a:3", 9), ("a:2", 9), ("b:1", 100), ("a:4", i64::MIN), ("a:5", -1)] {
        store.set(counter(&store, key.as_bytes()), value);
    }
    store.delete(counter(&store, b"b:2"));
    let top = |n, prefix: &[u8]| -> Vec<(String, i64)> {
        let found = store.top(n, prefix).into_iter();
        found.map(|(key, value)| (String::from_utf8(key.into()).unwrap(), value)).collect()
    };
    let named = |rows: &[(&str, i64)]| -> Vec<(String, i64)> {
        rows.iter().map(|&(key, value)| (key.to_string(), value)).collect()
    };
    assert_eq!(top(2, b"a:"), named(&[("a:2", 9), ("a:3", 9)]));
    assert_eq!(top(1, b""), named(&[("b:1", 100)]));
    assert_eq!(top(0, b""), named(&[]));
    let all = [("a:2", 9), ("a:3", 9), ("a:1", 5), ("a:5", -1), ("a:4", i64::MIN)];
    assert_eq!(top(usize::MAX, b"a:"), named(&all));
}

#[test]
fn the_queue_has_each_changed_counter_once() {
    let mut store = small();
    let mut queue = WriteBatchQueue::new(3).unwrap();
    let (a, b, c, d) = (counter(&store, b"a"), counter(&store, b"b"), counter(&store, b"c"), counter(&store, b"d"));
    for at in [a, b, a] {
        store.incr(at, 1).unwrap();
        store.mark_dirty(at, &queue).unwrap();
    }
    assert_eq!(queue.len(), 2);
    {
        let mut room = queue.reserve(1).unwrap();
        assert!(queue.is_full() && queue.reserve(1).is_err());
        assert_eq!(store.mark_dirty(c, &queue), Err(QueueFull));
        assert!(!store.is_dirty(c));
        store.mark_dirty_in(a, &mut room).unwrap();
        assert_eq!(room.left(), 1);
    }
    store.mark_dirty_mut(c, &mut queue).unwrap();
    assert_eq!(store.mark_dirty_mut(d, &mut queue), Err(QueueFull));
    assert!(queue.is_full() && !store.is_dirty(d));
    store.delete_mut(b);
    assert!(!store.compact(), "refs wait in the queue");
    let mut taken = Vec::new();
    queue.take(&mut store, |key, value| taken.push((key.to_vec(), value)));
    assert_eq!(taken, [(b"a".to_vec(), Some(2)), (b"b".to_vec(), None), (b"c".to_vec(), None)]);
    assert!(queue.is_empty() && queue.has_room(3) && !store.is_dirty(a));
    store.mark_dirty_mut(a, &mut queue).unwrap();
    store.clear();
    queue.take(&mut store, |_, _| panic!("the store was cleared"));
    assert!(queue.has_room(3));
}

#[test]
fn compaction_drops_absent_counters_and_keeps_the_rest() {
    let mut store = small();
    for number in 0..1000 {
        let at = counter(&store, &key_of(number));
        store.set_mut(at, i64::from(number));
        if number % 4 != 0 {
            store.delete_mut(at);
        }
    }
    let before = store.memory_bytes();
    let expected = scanned(&store, 10);
    assert!(!store.wants_compaction(), "they are few");
    assert!(store.compact());
    assert!(store.memory_bytes() < before / 2);
    assert_eq!((store.len(), scanned(&store, 10)), (250, expected));
    assert_eq!(store.find(store.hash(b"key:1"), b"key:1"), None);
}

#[test]
fn a_full_store_gives_room_again_once_an_eighth_is_deleted() {
    let bytes_max = 40_000;
    let mut store = CounterStore::with_seed(1, bytes_max);
    let mut made = 0;
    while let Ok(at) = store.find_or_insert_mut(store.hash(&key_of(made)), &key_of(made)) {
        store.set_mut(at, 1);
        made += 1;
    }
    assert!(!store.wants_compaction(), "nothing would be freed");
    let freed = made / 8 + 1;
    for number in 0..freed {
        assert!(!store.wants_compaction(), "too little would be freed");
        store.delete_mut(counter(&store, &key_of(number)));
    }
    assert!(store.wants_compaction());
    assert!(store.compact());
    assert_eq!(store.len(), (made - freed) as usize);
    for number in made..made + freed {
        let at = store.find_or_insert_mut(store.hash(&key_of(number)), &key_of(number)).unwrap();
        store.set_mut(at, 1);
        assert!(store.memory_bytes() <= bytes_max);
    }
    assert!(!store.wants_compaction());
}

#[test]
#[should_panic(expected = "another store")]
fn a_ref_from_elsewhere_panics() {
    let store = small();
    for number in 0..5000 {
        counter(&store, &key_of(number));
    }
    let far = counter(&store, b"far");
    small().value(far);
}

#[test]
fn threads_insert_and_count_while_others_scan() {
    let store = CounterStore::new();
    for number in 0..THREAD_KEYS / 4 {
        store.set(counter(&store, &key_of(number)), 0);
    }
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for number in 0..THREAD_KEYS {
                    let at = counter(&store, &key_of(number));
                    store.incr(at, 1).unwrap();
                    store.add(at, 2).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..3 {
                let seen = scanned(&store, 13);
                assert!((0..THREAD_KEYS / 4).all(|number| seen.contains_key(&key_of(number))));
                store.for_each(|_, value| assert!((0..=9).contains(&value)));
            }
        });
    });
    let all = scanned(&store, 100);
    assert_eq!((all.len(), store.len()), (THREAD_KEYS as usize, THREAD_KEYS as usize));
    assert!(all.values().all(|&value| value == 9));
}

#[test]
fn threads_delete_and_count_without_losing_an_amount() {
    let store = CounterStore::new();
    let at = counter(&store, b"contended");
    let rounds = if cfg!(miri) { 100 } else { 50_000 };
    let taken: i64 = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..2)
            .map(|taker| {
                let store = &store;
                scope.spawn(move || {
                    (0..rounds / 10)
                        .map(|round| match (taker + round) % 3 {
                            0 => store.drain(at),
                            1 => store.delete(at).unwrap_or(0),
                            _ => {
                                assert!(store.value(at) >= 0);
                                store.set(at, 0)
                            }
                        })
                        .sum::<i64>()
                })
            })
            .collect();
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    store.incr(at, 3).unwrap();
                    store.add(at, 4).unwrap();
                }
            });
        }
        takers.into_iter().map(|taker| taker.join().unwrap()).sum()
    });
    assert_eq!(taken + store.value(at), 2 * 7 * rounds);
    assert_eq!(store.len(), usize::from(store.is_present(at)));
}

#[test]
fn threads_mark_within_their_room() {
    let mut store = CounterStore::new();
    let mut queue = WriteBatchQueue::new(100).unwrap();
    let refs: Vec<_> = (0..150).map(|number| counter(&store, &key_of(number))).collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for batch in refs.chunks(10) {
                    let Ok(mut room) = queue.reserve(batch.len()) else { continue };
                    for &at in batch {
                        store.incr(at, 1).unwrap();
                        store.mark_dirty_in(at, &mut room).unwrap();
                    }
                }
            });
        }
    });
    let mut taken = HashSet::new();
    queue.take(&mut store, |key, _| assert!(taken.insert(key.to_vec())));
    let changed = refs.iter().filter(|&&at| store.is_present(at));
    assert!(changed.clone().all(|&at| taken.contains(store.key(at))));
    assert_eq!(taken.len(), changed.count());
}

#[derive(Debug, Clone)]
enum Step {
    Incr(usize, i64),
    Add(usize, i64),
    Set(usize, i64),
    Drain(usize),
    Delete(usize),
    Insert(usize),
    Mark(usize),
    Take,
    Compact,
    Clear,
}

fn amount() -> impl Strategy<Value = i64> {
    let edges = [i64::MIN, i64::MAX, 1 << 62, -(1 << 62), crate::cell::SPECIAL, 0, 1, -1];
    prop_oneof![any::<i64>(), -100i64..100, proptest::sample::select(edges.to_vec())]
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0usize..300;
    prop_oneof![
        8 => (key.clone(), amount()).prop_map(|(key, by)| Step::Incr(key, by)),
        4 => (key.clone(), amount()).prop_map(|(key, by)| Step::Add(key, by)),
        4 => (key.clone(), amount()).prop_map(|(key, to)| Step::Set(key, to)),
        2 => key.clone().prop_map(Step::Drain),
        4 => key.clone().prop_map(Step::Delete),
        2 => key.clone().prop_map(Step::Insert),
        4 => key.prop_map(Step::Mark),
        1 => Just(Step::Take),
        1 => Just(Step::Compact),
        1 => Just(Step::Clear),
    ]
}

/// A key for a number: some are long.
fn long_key(number: usize) -> Vec<u8> {
    let len = [1, 5, 16, 17, 100, 1000][number % 6];
    let mut key = number.to_le_bytes()[..2].to_vec();
    key.resize(2 + len, b'.');
    key
}

fn check_against_a_map(steps: Vec<Step>, alone: bool) -> Result<(), TestCaseError> {
    let mut store = CounterStore::with_seed(3, u64::MAX);
    let mut queue = WriteBatchQueue::new(1000).unwrap();
    let mut model: HashMap<Vec<u8>, i64> = HashMap::new();
    let mut marked: Vec<Vec<u8>> = Vec::new();
    for step in steps {
        let key = match step {
            Step::Incr(key, _) | Step::Add(key, _) | Step::Set(key, _) => long_key(key),
            Step::Drain(key) | Step::Delete(key) | Step::Insert(key) | Step::Mark(key) => long_key(key),
            Step::Take | Step::Compact | Step::Clear => vec![0],
        };
        let hash = store.hash(&key);
        let at = match alone {
            true => store.find_or_insert_mut(hash, &key).unwrap(),
            false => store.find_or_insert(hash, &key).unwrap(),
        };
        let before = model.get(&key).copied();
        prop_assert_eq!(store.get(at), before);
        match step {
            Step::Incr(_, by) => {
                let got = if alone { store.incr_mut(at, by) } else { store.incr(at, by) };
                let expected = before.unwrap_or(0).checked_add(by);
                prop_assert_eq!(got.ok(), expected);
                expected.map(|value| model.insert(key, value));
            }
            Step::Add(_, by) => {
                let expected = before.unwrap_or(0).checked_add(by);
                prop_assert_eq!(store.add(at, by).is_ok(), expected.is_some());
                expected.map(|value| model.insert(key, value));
            }
            Step::Set(_, to) => {
                let got = if alone { store.set_mut(at, to) } else { store.set(at, to) };
                prop_assert_eq!(got, before.unwrap_or(0));
                model.insert(key, to);
            }
            Step::Drain(_) => {
                let got = if alone { store.drain_mut(at) } else { store.drain(at) };
                prop_assert_eq!(got, before.unwrap_or(0));
                model.insert(key, 0);
            }
            Step::Delete(_) => {
                let got = if alone { store.delete_mut(at) } else { store.delete(at) };
                prop_assert_eq!(got, before);
                model.remove(&key);
            }
            Step::Insert(_) => {}
            Step::Mark(_) => {
                match alone {
                    true => store.mark_dirty_mut(at, &mut queue).unwrap(),
                    false => store.mark_dirty(at, &queue).unwrap(),
                }
                if !marked.contains(&key) {
                    marked.push(key);
                }
            }
            Step::Take => {
                let mut taken = Vec::new();
                queue.take(&mut store, |key, value| taken.push((key.to_vec(), value)));
                let expected: Vec<_> = marked
                    .drain(..)
                    .map(|key| {
                        let value = model.get(&key).copied();
                        (key, value)
                    })
                    .collect();
                prop_assert_eq!(taken, expected);
            }
            Step::Compact => prop_assert_eq!(store.compact(), marked.is_empty()),
            Step::Clear => {
                store.clear();
                model.clear();
                marked.clear();
                queue.clear();
            }
        }
        prop_assert_eq!(store.len(), model.len());
    }
    let expected: BTreeMap<_, _> = model.into_iter().collect();
    prop_assert_eq!(scanned(&store, 5), expected.clone());
    let mut all = BTreeMap::new();
    store.for_each(|key, value| assert!(all.insert(key.to_vec(), value).is_none()));
    prop_assert_eq!(all, expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 200 }))]

    #[test]
    #[cfg_attr(miri, ignore = "proptest reads files")]
    fn it_works_as_a_map_does(
        steps in proptest::collection::vec(step(), 1..600),
        alone in any::<bool>(),
    ) {
        check_against_a_map(steps, alone)?;
    }
}

//! Every interleaving of a few steps, by the model checker.

use super::*;
use crate::atomics::Arc;
use crate::write_batch_queue::WriteBatchQueue;
use loom::thread;

fn small() -> Arc<CounterStore> {
    Arc::new(CounterStore::with_seed(7, u64::MAX).without_stripes())
}

fn counter(store: &CounterStore, key: &[u8]) -> CounterRef {
    store.find_or_insert(store.hash(key), key).unwrap()
}

#[test]
fn loom_what_is_found_is_whole() {
    loom::model(|| {
        let store = small();
        let theirs = store.clone();
        let inserter = thread::spawn(move || {
            let at = counter(&theirs, b"key");
            theirs.incr(at, 1).unwrap();
        });
        if let Some(at) = store.find(store.hash(b"key"), b"key") {
            assert_eq!(store.key(at), b"key");
            assert!([None, Some(1)].contains(&store.get(at)));
        }
        inserter.join().unwrap();
        assert_eq!(store.value(counter(&store, b"key")), 1);
    });
}

#[test]
fn loom_two_inserters_of_one_key_get_one_counter() {
    loom::model(|| {
        let store = small();
        let theirs = store.clone();
        let other = thread::spawn(move || counter(&theirs, b"key"));
        let mine = counter(&store, b"key");
        assert_eq!(other.join().unwrap(), mine);
    });
}

#[test]
fn loom_growth_hides_nothing() {
    loom::model(|| {
        let store = small();
        let first = counter(&store, b"first");
        let before = store.index().homes();
        let theirs = store.clone();
        let inserter = thread::spawn(move || {
            counter(&theirs, b"second");
            counter(&theirs, b"third")
        });
        assert_eq!(store.find(store.hash(b"first"), b"first"), Some(first));
        inserter.join().unwrap();
        assert!(store.index().homes() > before, "it has grown");
        assert_eq!(store.find(store.hash(b"first"), b"first"), Some(first));
    });
}

#[test]
fn loom_the_queue_hands_over_each_changed_counter_once() {
    loom::model(|| {
        let store = small();
        let queue = Arc::new(WriteBatchQueue::new(3).unwrap());
        let (a, b) = (counter(&store, b"a"), counter(&store, b"b"));
        let (their_store, their_queue) = (store.clone(), queue.clone());
        let marker = thread::spawn(move || {
            for at in [a, b] {
                let mut room = their_queue.reserve(1).unwrap();
                their_store.incr(at, 1).unwrap();
                their_store.mark_dirty_in(at, &mut room).unwrap();
            }
        });
        let mut room = queue.reserve(1).unwrap();
        store.incr(a, 1).unwrap();
        store.mark_dirty_in(a, &mut room).unwrap();
        drop(room);
        marker.join().unwrap();
        let Ok(mut store) = Arc::try_unwrap(store).map_err(|_| ()) else { panic!("shared") };
        let Ok(mut queue) = Arc::try_unwrap(queue).map_err(|_| ()) else { panic!("shared") };
        let mut taken = Vec::new();
        queue.take(&mut store, |key, value| taken.push((key.to_vec(), value)));
        taken.sort();
        assert_eq!(taken, [(b"a".to_vec(), Some(2)), (b"b".to_vec(), Some(1))]);
        assert!(queue.has_room(3));
    });
}

//! Interleavings of a few steps, by the model checker.
//!
//! Loom remembers only the last access to an atomic, so it overlooks that a reader's load came before
//! a writer that loads the same atomic before storing. The writer therefore runs on the main thread,
//! which goes first, and the reader is spawned; each test makes sure that both orders were run.

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

/// Which of two outcomes came up in a model's runs.
struct Seen([PlainAtomicU64; 2]);

impl Seen {
    fn note(&self, which: bool) {
        self.0[usize::from(which)].fetch_add(1, PlainOrdering::Relaxed);
    }

    fn assert_both(&self) {
        assert!(self.0.iter().all(|times| times.load(PlainOrdering::Relaxed) > 0));
    }
}

#[test]
fn loom_what_is_found_is_whole() {
    static FOUND: Seen = Seen([PlainAtomicU64::new(0), PlainAtomicU64::new(0)]);
    loom::model(|| {
        let store = small();
        let theirs = store.clone();
        let finder = thread::spawn(move || {
            let found = theirs.find(theirs.hash(b"key"), b"key");
            if let Some(at) = found {
                assert_eq!(theirs.key(at), b"key");
                assert!([None, Some(1)].contains(&theirs.get(at)));
            }
            FOUND.note(found.is_some());
        });
        let at = counter(&store, b"key");
        store.incr(at, 1).unwrap();
        finder.join().unwrap();
    });
    FOUND.assert_both();
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
    static GROWN: Seen = Seen([PlainAtomicU64::new(0), PlainAtomicU64::new(0)]);
    loom::model(|| {
        let store = small();
        let first = counter(&store, b"first");
        let homes = store.index().homes();
        let theirs = store.clone();
        let finder = thread::spawn(move || {
            assert_eq!(theirs.find(theirs.hash(b"first"), b"first"), Some(first));
            GROWN.note(theirs.index().homes() > homes);
        });
        counter(&store, b"second");
        counter(&store, b"third");
        assert!(store.index().homes() > homes);
        finder.join().unwrap();
    });
    GROWN.assert_both();
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

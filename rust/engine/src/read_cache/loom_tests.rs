//! Interleavings of a load and a write, by the model checker.

use super::*;
use crate::atomics::{Arc, AtomicI64};
use loom::thread;

#[test]
fn loom_after_a_settled_write_no_earlier_value_is_read() {
    loom::model(|| {
        let settings = ReadCacheSettings { l1_entries: 1, l2_entries: 1, ..ReadCacheSettings::default() };
        let cache = Arc::new(ReadCache::new(settings, Clock::by_hand()));
        // The shard: a counter with nothing but its own order.
        let counter = Arc::new(AtomicI64::new(0));
        let (theirs, shard) = (cache.clone(), counter.clone());
        let reader = thread::spawn(move || {
            let version = theirs.begin(b"a");
            let value = shard.load(Ordering::Relaxed);
            theirs.fill(b"a", value, version);
        });
        cache.bump(b"a");
        counter.store(1, Ordering::Relaxed);
        cache.bump(b"a");
        assert!(cache.get(b"a").is_none_or(|cached| cached.value == 1));
        reader.join().unwrap();
        assert!(cache.get(b"a").is_none_or(|cached| cached.value == 1));
    });
}

//! Room for counters that are yet to be made, for who must know before any of them is.

use super::CounterStore;
use super::index::{bytes_of, entries_max_of, size_for};
use crate::atomics::locked_mut;

impl CounterStore {
    /// Is there room for so many new counters, whose keys have so many bytes together? If so, only keys that were made to
    /// collide, or a system without memory, can keep one of them out.
    pub fn has_room(&mut self, count: usize, key_bytes: usize) -> bool {
        let Some(more_bytes) = self.arena.bytes_for(count, key_bytes) else { return false };
        let homes = self.index().homes();
        let writer = locked_mut(&mut self.writer);
        let (mut wanted, mut index_bytes) = (homes, writer.index_bytes);
        while entries_max_of(wanted) < writer.entries.saturating_add(count) {
            // Side by side while one replaces the other.
            let larger = size_for(wanted + 1);
            index_bytes = bytes_of(wanted) + bytes_of(larger);
            wanted = larger;
        }
        self.arena.used_bytes() + more_bytes + index_bytes <= self.bytes_max
    }

    /// Counters were refused for want of room though nothing was tried: as after a refused insertion, the next
    /// compaction may make some.
    pub fn note_full(&mut self) {
        locked_mut(&mut self.writer).was_full = true;
    }
}

#[cfg(all(test, not(pycounter_loom)))]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_said_to_be_room_there_is_and_little_is_left_where_not() {
        for bytes_max in [1 << 16, 300_000, 1 << 20, 5_000_000] {
            let mut store = CounterStore::with_seed(7, bytes_max);
            let mut number = 0_usize;
            loop {
                let count = 1 + number % 97;
                let keys: Vec<String> =
                    (0..count).map(|it| format!("{:0width$}", number + it, width = 8 + it * 10)).collect();
                number += count;
                if !store.has_room(count, keys.iter().map(String::len).sum()) {
                    break;
                }
                for key in &keys {
                    store.find_or_insert_mut(store.hash(key.as_bytes()), key.as_bytes()).unwrap();
                }
            }
            let key = |number: usize| format!("last{number}");
            let mut insert = |store: &mut CounterStore| {
                number += 1;
                let key = key(number);
                store.find_or_insert_mut(store.hash(key.as_bytes()), key.as_bytes()).is_ok()
            };
            while store.has_room(1, 16) {
                assert!(insert(&mut store));
            }
            // An end of a chunk may have been counted that isn't needed.
            let beyond = std::iter::repeat_with(|| insert(&mut store)).take_while(|&inserted| inserted).count();
            assert!(beyond <= 50, "{beyond} more fitted into {bytes_max}");
        }
    }
}

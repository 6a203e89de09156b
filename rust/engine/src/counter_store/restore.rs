//! Loads counters from disk into a store. They arrive one by one in an order unrelated to the store's, so each insertion
//! would miss the cache twice. Gathered in rows, their misses overlap.

use super::{CounterRef, CounterStore, StoreError};

/// Counters in a row: about as many misses as the processor can overlap.
const ROW: usize = 64;

/// One counter as read from disk.
#[derive(Debug, Clone)]
struct Restored {
    hash: u64,
    key: std::ops::Range<usize>,
    /// `None` if it was deleted.
    value: Option<i64>,
    likely: Option<CounterRef>,
}

/// Values waiting to be put into the store.
#[derive(Debug, Default)]
pub struct RestoreRow {
    keys: Vec<u8>,
    row: Vec<Restored>,
    /// How many of the row are already in the store.
    done: usize,
}

impl RestoreRow {
    /// Takes a counter's value, `None` if it was deleted. It is in the store after the next [`flush`](Self::flush) at the
    /// latest. If a counter comes several times, the last value wins.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn push(&mut self, store: &mut CounterStore, key: &[u8], value: Option<i64>) -> Result<(), StoreError> {
        let hash = store.hash(key);
        store.prefetch_slot(hash);
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        self.row.push(Restored { hash, key: start..self.keys.len(), value, likely: None });
        if self.row.len() < ROW { Ok(()) } else { self.flush(store) }
    }

    /// Puts everything into the store. A deleted counter gets an absent entry.
    ///
    /// # Errors
    /// No room for a counter. The ones before it are in the store; call again for the rest once there is room.
    pub fn flush(&mut self, store: &mut CounterStore) -> Result<(), StoreError> {
        for restored in &mut self.row {
            restored.likely = store.prefetch_cell(restored.hash);
        }
        while let Some(Restored { hash, key, value, likely }) = self.row.get(self.done) {
            let key = self.keys.get(key.clone()).unwrap_or_default();
            let counter = store.find_or_insert_likely_mut(*likely, *hash, key)?;
            match value {
                Some(value) => {
                    store.set_mut(counter, *value);
                }
                None => {
                    store.delete_mut(counter);
                }
            }
            self.done += 1;
        }
        self.keys.clear();
        self.row.clear();
        self.done = 0;
        Ok(())
    }
}

#[cfg(all(test, not(pycounter_loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_restore_row_keeps_the_last_of_several_values() {
        let mut store = CounterStore::new();
        let mut row = RestoreRow::default();
        let mut expected = BTreeMap::new();
        for number in 0..1_000_i64 {
            let key = format!("counter-{}", number % 37).into_bytes();
            let value = (number % 5 != 0).then_some(number);
            row.push(&mut store, &key, value).unwrap();
            expected.insert(key, value);
        }
        row.flush(&mut store).unwrap();
        for (key, value) in expected {
            let at = store.find(store.hash(&key), &key).expect("deleted ones too, absent");
            assert_eq!(store.get(at), value);
        }
    }

    #[test]
    fn a_restore_row_goes_on_where_room_ran_out() {
        let mut store = CounterStore::with_seed(7, 16 << 10);
        let mut row = RestoreRow::default();
        let key = |number: u32| format!("counter-{number:08}").into_bytes();
        let mut restored = 0..;
        let full = loop {
            let number = restored.next().unwrap();
            // All but the first are deleted again; absent entries take the same room.
            if let Err(error) = row.push(&mut store, &key(number), (number == 0).then_some(5)) {
                break (number, error);
            }
        };
        assert_eq!(full.1, StoreError::Full);
        assert!(store.wants_compaction() && store.compact());
        row.flush(&mut store).unwrap();
        row.push(&mut store, &key(full.0), Some(9)).unwrap();
        row.flush(&mut store).unwrap();
        let value = |number| store.find(store.hash(&key(number)), &key(number)).and_then(|at| store.get(at));
        assert_eq!((value(0), value(full.0), store.len()), (Some(5), Some(9), 2));
    }
}

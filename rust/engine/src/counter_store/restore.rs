//! Counters on their way from the disk into a store. They come one by one and in no order that the store knows, so each
//! would wait for memory twice. Gathered in rows, they wait for each other's.

use super::{CounterRef, CounterStore, StoreError};

/// Counters in a row: what the processor can fetch side by side.
const ROW: usize = 64;

/// What the disk says of one counter.
#[derive(Debug, Clone)]
struct Restored {
    hash: u64,
    key: std::ops::Range<usize>,
    /// `None`: it was deleted.
    value: Option<i64>,
    likely: Option<CounterRef>,
}

/// Values that are not in their store yet.
#[derive(Debug, Default)]
pub struct RestoreRow {
    keys: Vec<u8>,
    row: Vec<Restored>,
    /// So many of the row are in the store.
    done: usize,
}

impl RestoreRow {
    /// Takes a counter's value, `None` if it was deleted. The store has it after the next [`flush`](Self::flush) at the
    /// latest. Of several values of one counter the last counts.
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

    /// Puts everything into the store. A counter that was deleted is in it too, absent.
    ///
    /// # Errors
    /// There is no room for a counter. Those before it are in the store; once there is room, call again for the rest.
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
            // All but the first are deleted again: absent, they take as much room.
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

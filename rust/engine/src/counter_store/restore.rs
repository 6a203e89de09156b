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
            let counter = match likely.filter(|&likely| store.is_key(likely, *hash, key)) {
                Some(counter) => counter,
                None => store.find_or_insert_mut(*hash, key)?,
            };
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

//! `LatestValues`: what counters were last seen to hold at a shard.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pycounter_engine::latest_values;
use pyo3::prelude::*;

use crate::key::Key;
use crate::split_items::SplitItems;

/// Remembers the values of the latest `counters_min` counters, and of at most twice as many, at a constant cost for each.
#[pyclass(frozen, module = "pycounter._native")]
pub struct LatestValues {
    values: Mutex<latest_values::LatestValues>,
}

impl LatestValues {
    fn lock(&self) -> MutexGuard<'_, latest_values::LatestValues> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl LatestValues {
    #[new]
    fn new(counters_min: usize) -> Self {
        Self { values: Mutex::new(latest_values::LatestValues::new(counters_min)) }
    }

    fn __len__(&self) -> usize {
        self.lock().entries()
    }

    /// This is the counter's value now.
    fn note(&self, key: Key<'_>, value: i64) {
        self.lock().note(key.bytes(), value);
    }

    /// The same of all increments of a shard's part that have a value.
    fn note_split(&self, split: &SplitItems, shard: usize) {
        let mut values = self.lock();
        split.split.for_each_value(shard, |key, value| values.note(key, value));
    }

    /// The counter's latest value; None where it isn't remembered.
    fn get(&self, key: Key<'_>) -> Option<i64> {
        self.lock().get(key.bytes())
    }

    /// Forgets a counter; None: all of them.
    fn forget(&self, key: Option<Key<'_>>) {
        match key {
            Some(key) => self.lock().forget(key.bytes()),
            None => self.lock().clear(),
        }
    }
}

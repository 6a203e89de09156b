//! `SplitItems`: a list of increments by the shards that are their homes, and the results of each shard's part.

use std::sync::{Arc, Mutex, PoisonError};

use pycounter_engine::placement::hash_ring::{HashRing, key_hash};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::errors;
use crate::item_list::ItemList;
use crate::key::to_python;
use crate::pending::ListState;

/// Items of one call, hashed once for ring, cache and foreign keys.
pub(crate) struct Split {
    items: ItemList,
    /// By place. Nothing for a wrong item.
    hashes: Vec<u64>,
    /// Places of the items that can be sent, by shard, and in order for each.
    places: Vec<u32>,
    /// Where in `places` each shard's part begins, and where the last one ends.
    bounds: Vec<usize>,
    /// By shard: the results of its part, once they are there.
    results: Mutex<Vec<Option<Box<ListState>>>>,
}

impl Split {
    fn new(items: ItemList, ring: &HashRing) -> Self {
        let shards = ring.shards().len();
        let (mut hashes, mut homes) = (vec![0; items.len()], Vec::with_capacity(items.len()));
        let mut bounds = vec![0; shards + 1];
        for (place, key, _) in items.iter() {
            let hash = key_hash(key);
            let home = ring.home_of_hash(hash);
            hashes[place as usize] = hash;
            homes.push((place, home));
            bounds[home + 1] += 1;
        }
        for shard in 0..shards {
            bounds[shard + 1] += bounds[shard];
        }
        let (mut places, mut next) = (vec![0; homes.len()], bounds.clone());
        for (place, home) in homes {
            places[next[home]] = place;
            next[home] += 1;
        }
        let results = Mutex::new((0..shards).map(|_| None).collect());
        Self { items, hashes, places, bounds, results }
    }

    /// The places of a shard's part.
    fn part(&self, shard: usize) -> &[u32] {
        match (self.bounds.get(shard), self.bounds.get(shard + 1)) {
            (Some(&from), Some(&to)) => &self.places[from..to],
            _ => &[],
        }
    }

    /// How many items a shard's part has.
    pub(crate) fn count(&self, shard: usize) -> usize {
        self.part(shard).len()
    }

    /// Key and delta of the items of a shard's part, in order.
    pub(crate) fn part_items(&self, shard: usize) -> impl Iterator<Item = (&[u8], i64)> {
        self.part(shard).iter().filter_map(|&place| self.items.get(place))
    }

    /// The hashes of all keys that can be sent.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = u64> {
        self.places.iter().map(|&place| self.hashes[place as usize])
    }

    /// Place and hash of the keys that can be sent.
    pub(crate) fn places_and_hashes(&self) -> impl Iterator<Item = (u32, u64)> {
        self.places.iter().map(|&place| (place, self.hashes[place as usize]))
    }

    /// Takes the results of a shard's part.
    pub(crate) fn deposit(&self, shard: usize, results: Box<ListState>) {
        let before = self.lock().get_mut(shard).and_then(|place| place.replace(results));
        drop(before);
    }

    /// Key and value of the increments of a shard's part that have one.
    pub(crate) fn for_each_value(&self, shard: usize, mut see: impl FnMut(&[u8], i64)) {
        let results = self.lock();
        let Some(Some(state)) = results.get(shard) else { return };
        let mut failed = state.failed_places().peekable();
        for (index, (&value, (key, _))) in state.values().iter().zip(self.part_items(shard)).enumerate() {
            if failed.next_if(|&place| place as usize == index).is_none() {
                see(key, value);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Box<ListState>>>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Increments of one call, by the shards that are their homes. Made by `HashRing.split`.
///
/// Each shard's part goes to its link, by `SessionLink.incr_split`; `results` has the outcomes of all, in the items' order.
#[pyclass(frozen, module = "pycounter._native")]
pub struct SplitItems {
    pub(crate) split: Arc<Split>,
}

impl SplitItems {
    pub(crate) fn new(items: &Bound<'_, PyAny>, ring: &HashRing) -> PyResult<Self> {
        Ok(Self { split: Arc::new(Split::new(ItemList::parse(items)?, ring)) })
    }
}

#[pymethods]
impl SplitItems {
    fn __len__(&self) -> usize {
        self.split.hashes.len()
    }

    /// The shards that have a part, by their numbers in the ring's order.
    #[getter]
    fn shards(&self) -> Vec<usize> {
        (0..self.split.bounds.len() - 1).filter(|&shard| self.split.count(shard) > 0).collect()
    }

    /// The places of a shard's part, in order.
    fn places(&self, shard: usize) -> Vec<u32> {
        self.split.part(shard).to_vec()
    }

    /// How many items a shard's part has.
    fn count(&self, shard: usize) -> usize {
        self.split.count(shard)
    }

    /// The key (str where it is UTF-8) and the delta of the item at a place.
    fn item<'py>(&self, py: Python<'py>, place: u32) -> PyResult<(Bound<'py, PyAny>, i64)> {
        let item = self.split.items.get(place);
        item.map(|(key, delta)| (to_python(py, key), delta))
            .ok_or_else(|| PyIndexError::new_err("there is no such item"))
    }

    /// The places of the items that were taken back before they were sent.
    fn withdrawn(&self) -> Vec<u32> {
        let results = self.split.lock();
        let of_shard = |(shard, state): (usize, &Option<Box<ListState>>)| -> Vec<u32> {
            let part = self.split.part(shard);
            let withdrawn = state.iter().flat_map(|state| state.withdrawn_places());
            withdrawn.filter_map(|index| part.get(index as usize).copied()).collect()
        };
        results.iter().enumerate().flat_map(of_shard).collect()
    }

    /// For each item, in order: its value, or its error. 0 where there is no outcome.
    fn results<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let split = &*self.split;
        let mut values = vec![0_i64; split.hashes.len()];
        let mut failed = Vec::new();
        {
            let results = split.lock();
            for (shard, state) in results.iter().enumerate() {
                let Some(state) = state else { continue };
                let part = split.part(shard);
                for (&place, &value) in part.iter().zip(state.values()) {
                    values[place as usize] = value;
                }
                failed.extend(state.failures().map(|(index, text)| (part[index as usize], text)));
            }
        }
        let list = PyList::new(py, values)?;
        for (place, code, message) in split.items.errors() {
            let error = errors::from_wire(py, &format!("{}: {message}", code.name()));
            list.set_item(*place as usize, error.into_value(py))?;
        }
        for (place, text) in failed {
            list.set_item(place as usize, errors::from_wire(py, &text).into_value(py))?;
        }
        Ok(list)
    }
}

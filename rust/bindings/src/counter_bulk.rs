//! Calls with many keys: taken from Python a chunk at a time, then hashed, fetched and applied in a row.
//!
//! One rule for all of them: items are applied in their order, and at the first that can't be, the call ends with an
//! exception that says which it was. Those before it are applied, those after it aren't.

use pycounter_engine::counter_store::CounterStore;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMapping, PyString, PyTuple};

use crate::counter_backend::{Backend, Cut, Refusal, Sign};
use crate::counter_pages::Page;
use crate::counters::Counters;
use crate::delta::{self, Delta};
use crate::key::{KeyColumn, PinnedKey};
use crate::key_array::KeyArray;

/// Keys that are hashed before the first of them is looked for.
const ROW: usize = 64;
/// From this many counters on the index outgrows the nearest cache, and asking for its lines ahead pays.
const FETCH_SLOTS_FROM: usize = 8_192;
/// From this many on the counters do too. Asking for them means looking for them twice, so it pays later.
const FETCH_CELLS_FROM: usize = 131_072;
/// Places of a store that one step of a deletion by prefix reads.
const DELETE_PLACES: usize = 4_096;
/// Places of a store that one step of a merge reads.
const MERGE_PLACES: usize = 65_536;

/// What `update` and `subtract` take: a mapping from keys to amounts, or keys that count one each.
pub(crate) fn update(backend: &Backend, source: &Bound<'_, PyAny>, sign: Sign) -> PyResult<()> {
    let py = source.py();
    if let Ok(list) = source.cast_exact::<PyList>() {
        return add_each(py, backend, sign, list.len(), list.iter().map(|key| Ok((PinnedKey::new(key)?, 1))));
    }
    if let Ok(other) = source.cast::<Counters>() {
        return merge(py, backend, other.get().backend(), sign);
    }
    if let Ok(dict) = source.cast_exact::<PyDict>() {
        let items = dict.items();
        return add_each(py, backend, sign, items.len(), items.iter().map(|item| pair(&item)));
    }
    if let Ok(mapping) = source.cast::<PyMapping>() {
        let items = mapping.items()?;
        return add_each(py, backend, sign, items.len(), items.iter().map(|item| pair(&item)));
    }
    if let Some(array) = KeyArray::of(source) {
        return add_array(py, backend, sign, &array, |_| 1);
    }
    add_each(py, backend, sign, 0, source.try_iter()?.map(|key| Ok((PinnedKey::new(key?)?, 1))))
}

fn pair(item: &Bound<'_, PyAny>) -> PyResult<(PinnedKey, i64)> {
    let (key, amount): (Bound<'_, PyAny>, Delta) = item.extract()?;
    Ok((PinnedKey::new(key)?, amount.0))
}

fn pair_or_key(item: Bound<'_, PyAny>) -> PyResult<(PinnedKey, i64)> {
    let is_row = item.is_instance_of::<PyTuple>() || item.is_instance_of::<PyList>();
    if !is_row || item.len()? != 2 {
        return Ok((PinnedKey::new(item)?, 1));
    }
    let amount: Delta = item.get_item(1)?.extract()?;
    Ok((PinnedKey::new(item.get_item(0)?)?, amount.0))
}

/// What `add_many` takes: a mapping, pairs of key and delta, keys that count one each, or keys and as many deltas.
pub(crate) fn add_many(backend: &Backend, keys: &Bound<'_, PyAny>, deltas: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    let py = keys.py();
    let Some(deltas) = deltas else {
        if keys.is_instance_of::<PyMapping>() || keys.is_instance_of::<Counters>() {
            return update(backend, keys, Sign::Plus);
        }
        if let Some(array) = KeyArray::of(keys) {
            return add_array(py, backend, Sign::Plus, &array, |_| 1);
        }
        let items = keys_of(keys)?;
        return add_each(py, backend, Sign::Plus, items.len(), items.iter().map(pair_or_key));
    };
    let deltas = delta::all_of(deltas)?;
    if let Some(array) = KeyArray::of(keys) {
        same_length(array.len(), deltas.len())?;
        return add_array(py, backend, Sign::Plus, &array, |at| deltas.get(at).copied().unwrap_or(0));
    }
    let keys = keys_of(keys)?;
    same_length(keys.len(), deltas.len())?;
    let items = keys.iter().zip(&deltas).map(|(key, &delta)| Ok((PinnedKey::new(key)?, delta)));
    add_each(py, backend, Sign::Plus, deltas.len(), items)
}

fn same_length(keys: usize, deltas: usize) -> PyResult<()> {
    if keys == deltas {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("there are {keys} keys and {deltas} deltas; nothing was applied")))
}

/// The keys as a tuple that nobody else can change. One str or bytes is taken for the slip that it is.
pub(crate) fn keys_of<'py>(keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
    if keys.is_instance_of::<PyString>() || keys.is_instance_of::<PyBytes>() || keys.is_instance_of::<PyByteArray>() {
        return Err(PyTypeError::new_err("keys are a sequence of keys, not one str or bytes"));
    }
    if let Ok(tuple) = keys.cast_exact::<PyTuple>() {
        return Ok(tuple.clone());
    }
    if let Ok(list) = keys.cast::<PyList>() {
        return Ok(list.to_tuple());
    }
    PyTuple::new(keys.py(), keys.try_iter()?.collect::<PyResult<Vec<_>>>()?)
}

/// Adds, or takes away, item by item as they come; `expected` is how many, 0 if nobody knows.
fn add_each(
    py: Python<'_>,
    backend: &Backend,
    sign: Sign,
    expected: usize,
    mut items: impl Iterator<Item = PyResult<(PinnedKey, i64)>>,
) -> PyResult<()> {
    let mut applied = 0;
    let mut chunk = Vec::new();
    loop {
        let room = backend.chunk(expected.saturating_sub(applied));
        let mut stopped = None;
        while chunk.len() < room && stopped.is_none() {
            match items.next() {
                Some(Ok(item)) => chunk.push(item),
                Some(Err(error)) => stopped = Some(Err(error)),
                None => stopped = Some(Ok(())),
            }
        }
        let outcome = apply(py, backend, sign, &chunk, &mut applied);
        chunk.drain(..).for_each(|(key, _): (PinnedKey, i64)| key.release(py));
        outcome?;
        match stopped {
            None => {}
            Some(outcome) => return outcome.map_err(|error| stopped_at(py, error, applied)),
        }
    }
}

fn add_array(
    py: Python<'_>,
    backend: &Backend,
    sign: Sign,
    array: &KeyArray<'_>,
    delta: impl Fn(usize) -> i64,
) -> PyResult<()> {
    let mut applied = 0;
    let mut keys = KeyColumn::default();
    while applied < array.len() {
        let room = backend.chunk(array.len() - applied);
        let outcome = array.read(py, applied, room, &mut keys);
        let chunk: Vec<_> = keys.iter().enumerate().map(|(at, key)| (key, delta(applied + at))).collect();
        apply(py, backend, sign, &chunk, &mut applied)?;
        outcome.map_err(|error| stopped_at(py, error, applied))?;
    }
    Ok(())
}

/// Adds another map's counters, or takes them away. Both may be the same map.
pub(crate) fn merge(py: Python<'_>, backend: &Backend, other: &Backend, sign: Sign) -> PyResult<()> {
    let (mut page, mut cursor, mut applied) = (Page::default(), 0, 0);
    loop {
        // Read, then added, with no lock on one map while the other's is waited for.
        cursor = other.read_all(py, |store| page.read(store, cursor, MERGE_PLACES, b""))?;
        let chunk: Vec<_> = page.rows().collect();
        for chunk in chunk.chunks(backend.chunk(chunk.len())) {
            apply(py, backend, sign, chunk, &mut applied)?;
        }
        if cursor == 0 {
            return Ok(());
        }
    }
}

/// Applies a chunk and counts what was applied.
fn apply<K: AsRef<[u8]> + Sync>(
    py: Python<'_>,
    backend: &Backend,
    sign: Sign,
    chunk: &[(K, i64)],
    applied: &mut usize,
) -> PyResult<()> {
    if chunk.is_empty() {
        return Ok(());
    }
    // Not by the result: a change that isn't durable yet is an error, and applied.
    let (mut count, mut refusal, mut inserted) = (0, None, 0);
    let outcome = backend.change(py, chunk.len(), |cut| {
        let before = cut.store().len();
        (count, refusal) = add_all(cut, sign, chunk);
        inserted = cut.store().len().saturating_sub(before);
    });
    *applied += count;
    backend.sweep(py, inserted);
    let outcome = outcome.and_then(|()| refusal.map_or(Ok(()), |refusal: Refusal| Err(refusal.raise(py))));
    outcome.map_err(|error| stopped_at(py, error, *applied))
}

fn add_all<K: AsRef<[u8]>>(cut: &mut Cut<'_, '_>, sign: Sign, chunk: &[(K, i64)]) -> (usize, Option<Refusal>) {
    let mut hashes = [0; ROW];
    for (number, row) in chunk.chunks(ROW).enumerate() {
        hash_and_fetch(cut.store(), row.iter().map(|(key, _)| key.as_ref()), &mut hashes);
        for (at, ((key, delta), &hash)) in row.iter().zip(&hashes).enumerate() {
            if let Err(refusal) = cut.add_signed(hash, key.as_ref(), sign, *delta) {
                return (number * ROW + at, Some(refusal));
            }
        }
    }
    (chunk.len(), None)
}

fn hash_and_fetch<'k>(store: &CounterStore, keys: impl Iterator<Item = &'k [u8]>, hashes: &mut [u64; ROW]) {
    let count = store.len();
    let mut hashed = 0;
    for (hash, key) in hashes.iter_mut().zip(keys) {
        *hash = store.hash(key);
        hashed += 1;
        if count >= FETCH_SLOTS_FROM {
            store.prefetch_slot(*hash);
        }
    }
    if count >= FETCH_CELLS_FROM {
        for &hash in &hashes[..hashed] {
            store.prefetch_cell(hash);
        }
    }
}

/// The values of many counters, 0 for those that don't exist.
pub(crate) fn get_many(backend: &Backend, keys: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    let py = keys.py();
    if let Some(array) = KeyArray::of(keys) {
        let mut column = KeyColumn::default();
        array.read(py, 0, array.len(), &mut column)?;
        let keys: Vec<_> = column.iter().collect();
        return values(py, backend, &keys);
    }
    let keys = keys_of(keys)?;
    let keys = keys.iter().map(PinnedKey::new).collect::<PyResult<Vec<_>>>()?;
    let values = values(py, backend, &keys);
    keys.into_iter().for_each(|key| key.release(py));
    values
}

fn values<K: AsRef<[u8]> + Sync>(py: Python<'_>, backend: &Backend, keys: &[K]) -> PyResult<Vec<i64>> {
    backend.read_many(py, keys.len(), |store| {
        let mut values = Vec::with_capacity(keys.len());
        let mut hashes = [0; ROW];
        for row in keys.chunks(ROW) {
            hash_and_fetch(store, row.iter().map(AsRef::as_ref), &mut hashes);
            let value = |(key, &hash): (&K, &u64)| store.find(hash, key.as_ref()).map_or(0, |at| store.value(at));
            values.extend(row.iter().zip(&hashes).map(value));
        }
        values
    })
}

/// Deletes counters; gives what each held, 0 for those that don't exist. A bad key refuses the call before it begins.
pub(crate) fn delete_many(backend: &Backend, keys: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    let py = keys.py();
    let amounts = if let Some(array) = KeyArray::of(keys) {
        let mut column = KeyColumn::default();
        array.read(py, 0, array.len(), &mut column)?;
        delete_each(py, backend, &column.iter().collect::<Vec<_>>())
    } else {
        let keys = keys_of(keys)?;
        let keys = keys.iter().map(PinnedKey::new).collect::<PyResult<Vec<_>>>()?;
        let amounts = delete_each(py, backend, &keys);
        keys.into_iter().for_each(|key| key.release(py));
        amounts
    };
    Ok(amounts?.into_iter().map(|amount| amount.unwrap_or(0)).collect())
}

/// Deletes the counters whose keys begin with `prefix`, some at a time, and lets others run Python in between. Gives how
/// many these were.
pub(crate) fn delete_prefix(py: Python<'_>, backend: &Backend, prefix: &[u8]) -> PyResult<usize> {
    let (mut page, mut cursor, mut deleted) = (Page::default(), 0, 0);
    loop {
        cursor = backend.read(py, |store| page.read(store, cursor, DELETE_PLACES, prefix))?;
        let keys: Vec<_> = page.rows().map(|(key, _)| key).collect();
        deleted += delete_each(py, backend, &keys)?.into_iter().flatten().count();
        if cursor == 0 {
            return Ok(deleted);
        }
        py.detach(std::thread::yield_now);
        py.check_signals()?;
    }
}

/// What each counter held that was deleted; None for those that don't exist.
fn delete_each<K: AsRef<[u8]> + Sync>(py: Python<'_>, backend: &Backend, keys: &[K]) -> PyResult<Vec<Option<i64>>> {
    let mut amounts = Vec::with_capacity(keys.len());
    for chunk in keys.chunks(backend.chunk(keys.len())) {
        let before = amounts.len();
        let outcome = backend.change(py, chunk.len(), |cut| {
            amounts.truncate(before);
            amounts.extend(chunk.iter().map(|key| cut.delete(key.as_ref())));
        });
        backend.sweep(py, chunk.len());
        outcome.map_err(|error| stopped_at(py, error, amounts.len()))?;
    }
    Ok(amounts)
}

/// Says in an exception where a call with many items ended.
#[cold]
fn stopped_at(py: Python<'_>, error: PyErr, applied: usize) -> PyErr {
    let noted = error
        .add_note(py, format!("item {applied}: those before it are applied, it and those after it are not"))
        .and_then(|()| error.value(py).setattr("index", applied));
    noted.err().unwrap_or(error)
}

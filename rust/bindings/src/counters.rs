//! `Counters`: a thread-safe map from keys to signed 64-bit values, in the spirit of `collections.Counter`.

use pycounter_engine::counter_snapshot;
use pycounter_engine::counter_store::CounterStore;
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping, PyTuple, PyType};

use crate::counter_backend::{Backend, Refusal};
use crate::counter_bulk::{self, Sign};
use crate::counter_pages::{CounterIterator, Page, What};
use crate::delta::Delta;
use crate::key::{self, Key, Prefix};

/// Counters that `repr` shows.
const SHOWN: usize = 20;

type Pair<'py> = (Bound<'py, PyAny>, i64);

/// A thread-safe map from keys to signed 64-bit counters.
///
/// Made from nothing, from keys that count one each, from a mapping of amounts, or from keyword arguments, like
/// `collections.Counter`. A key is its bytes: "a" and b"a" are the same counter.
#[pyclass(frozen, subclass, mapping, weakref, module = "pycounter")]
pub struct Counters {
    backend: Backend,
}

impl Counters {
    pub(crate) fn with(backend: Backend) -> Self {
        Self { backend }
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    fn value(&self, py: Python<'_>, key: &[u8]) -> PyResult<Option<i64>> {
        self.backend.read(py, |store| store.get(store.find(store.hash(key), key)?))
    }

    fn remove(&self, py: Python<'_>, key: &[u8]) -> PyResult<Option<i64>> {
        let removed = self.backend.change(py, 1, |cut| cut.delete(key))?;
        self.backend.sweep(py, 1);
        Ok(removed)
    }

    /// Does every counter here have the same value there?
    fn is_within(&self, py: Python<'_>, other: &Self) -> PyResult<bool> {
        let (mut page, mut cursor) = (Page::default(), 0);
        loop {
            cursor = self.backend.read(py, |store| page.read(store, cursor, 4096, b""))?;
            let value = |store: &CounterStore, key| store.find(store.hash(key), key).map_or(0, |at| store.value(at));
            let same = |store: &CounterStore| page.rows().all(|(key, here)| value(store, key) == here);
            if !other.backend.read(py, same)? {
                return Ok(false);
            }
            if cursor == 0 {
                return Ok(true);
            }
        }
    }
}

/// What `get` gives for a counter that doesn't exist: anything, None too.
struct Fallback<'py>(Option<Bound<'py, PyAny>>);

impl<'py> FromPyObject<'_, 'py> for Fallback<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(Some(object.to_owned())))
    }
}

fn refused<R>(py: Python<'_>, outcome: Result<R, Refusal>) -> PyResult<R> {
    outcome.map_err(|refusal| refusal.raise(py))
}

fn pairs<'py>(py: Python<'py>, counters: impl IntoIterator<Item = (impl AsRef<[u8]>, i64)>) -> Vec<Pair<'py>> {
    counters.into_iter().map(|(key, value)| (key::to_python(py, key.as_ref()), value)).collect()
}

#[pymethods]
impl Counters {
    #[new]
    #[pyo3(signature = (iterable_or_mapping = None, /, **counts))]
    fn new(iterable_or_mapping: Option<&Bound<'_, PyAny>>, counts: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let new = Self::with(Backend::memory(CounterStore::new()));
        new.update(iterable_or_mapping, counts)?;
        Ok(new)
    }

    /// Adds `delta` and gives the value after.
    #[pyo3(signature = (key, delta = Delta(1)), text_signature = "($self, key, delta=1)")]
    fn incr(&self, py: Python<'_>, key: Key<'_>, delta: Delta) -> PyResult<i64> {
        let key = key.bytes();
        let outcome = self.backend.change(py, 1, |cut| cut.incr(cut.store().hash(key), key, delta.0))?;
        refused(py, outcome)
    }

    /// Adds `delta`; threads that add to one counter hardly slow each other down.
    #[pyo3(signature = (key, delta = Delta(1)), text_signature = "($self, key, delta=1)")]
    fn add(&self, py: Python<'_>, key: Key<'_>, delta: Delta) -> PyResult<()> {
        let key = key.bytes();
        let outcome = self.backend.change(py, 1, |cut| cut.add(cut.store().hash(key), key, delta.0))?;
        refused(py, outcome)
    }

    /// Adds to many counters: a delta for each key, or 1.
    #[pyo3(signature = (keys, deltas = None))]
    fn add_many(&self, keys: &Bound<'_, PyAny>, deltas: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        counter_bulk::add_many(&self.backend, keys, deltas)
    }

    /// Counts the elements of an iterable, or adds the amounts of a mapping.
    #[pyo3(signature = (iterable_or_mapping = None, /, **counts))]
    fn update(
        &self,
        iterable_or_mapping: Option<&Bound<'_, PyAny>>,
        counts: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        for source in [iterable_or_mapping, counts.map(|counts| counts.as_any())].into_iter().flatten() {
            counter_bulk::update(&self.backend, source, Sign::Plus)?;
        }
        Ok(())
    }

    /// As `update`, taking away.
    #[pyo3(signature = (iterable_or_mapping = None, /, **counts))]
    fn subtract(
        &self,
        iterable_or_mapping: Option<&Bound<'_, PyAny>>,
        counts: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        for source in [iterable_or_mapping, counts.map(|counts| counts.as_any())].into_iter().flatten() {
            counter_bulk::update(&self.backend, source, Sign::Minus)?;
        }
        Ok(())
    }

    /// Adds the amounts of another map.
    fn merge(&self, other: &Bound<'_, PyAny>) -> PyResult<()> {
        if !other.is_instance_of::<PyMapping>() && !other.is_instance_of::<Counters>() {
            return Err(PyTypeError::new_err(format!("merge takes a mapping, not {}", other.get_type().name()?)));
        }
        counter_bulk::update(&self.backend, other, Sign::Plus)
    }

    /// The value; `default` if there is no such counter.
    #[pyo3(signature = (key, default = Fallback(None)), text_signature = "($self, key, default=0)")]
    fn get<'py>(&self, py: Python<'py>, key: Key<'_>, default: Fallback<'py>) -> PyResult<Bound<'py, PyAny>> {
        match (self.value(py, key.bytes())?, default.0) {
            (None, Some(default)) => Ok(default),
            (value, _) => Ok(value.unwrap_or(0).into_pyobject(py)?.into_any()),
        }
    }

    /// The values of many counters, 0 for those that don't exist.
    fn get_many(&self, keys: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
        counter_bulk::get_many(&self.backend, keys)
    }

    /// Takes everything out and gives it; the counter stays, at 0.
    fn drain(&self, py: Python<'_>, key: Key<'_>) -> PyResult<i64> {
        self.backend.change(py, 1, |cut| cut.drain(key.bytes()))
    }

    /// Removes the counter and gives what it held, 0 if there was none.
    fn delete(&self, py: Python<'_>, key: Key<'_>) -> PyResult<i64> {
        Ok(self.remove(py, key.bytes())?.unwrap_or(0))
    }

    /// Removes the counter and gives what it held. Without it: `default`, or KeyError.
    #[pyo3(signature = (key, *default))]
    fn pop<'py>(
        &self,
        py: Python<'py>,
        key: Bound<'py, PyAny>,
        default: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if default.len() > 1 {
            return Err(PyTypeError::new_err(format!("pop takes at most 2 arguments, not {}", default.len() + 1)));
        }
        match self.remove(py, key.extract::<Key<'_>>()?.bytes())? {
            Some(value) => Ok(value.into_pyobject(py)?.into_any()),
            None => default.get_item(0).map_err(|_| PyKeyError::new_err(key.unbind())),
        }
    }

    /// Removes every counter.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        self.backend.clear(py)
    }

    /// The `n` largest counters whose keys begin with `prefix`: by falling value, then by key.
    #[pyo3(signature = (n, prefix = Prefix(b"")), text_signature = "($self, n, prefix='')")]
    fn top<'py>(&self, py: Python<'py>, n: isize, prefix: Prefix<'_>) -> PyResult<Vec<Pair<'py>>> {
        let n = usize::try_from(n).unwrap_or(0);
        Ok(pairs(py, self.backend.read_all(py, |store| store.top(n, prefix.0))?))
    }

    /// The `n` largest counters, all of them without `n`.
    #[pyo3(signature = (n = None))]
    fn most_common<'py>(&self, py: Python<'py>, n: Option<isize>) -> PyResult<Vec<Pair<'py>>> {
        self.top(py, n.unwrap_or(isize::MAX), Prefix(b""))
    }

    /// The sum of all counters.
    fn total(&self, py: Python<'_>) -> PyResult<i128> {
        self.backend.read_all(py, |store| {
            let mut total = 0;
            store.for_each(|_, value| total += i128::from(value));
            total
        })
    }

    /// An iterator over the pairs of key and value whose keys begin with `prefix`.
    #[pyo3(signature = (prefix = Prefix(b"")), text_signature = "($self, prefix='')")]
    fn scan(slf: &Bound<'_, Self>, prefix: Prefix<'_>) -> CounterIterator {
        CounterIterator::new(slf.clone().unbind(), prefix.0, What::Items)
    }

    /// One step of a scan: the next cursor, 0 at the end, and some pairs.
    #[pyo3(
        signature = (cursor = 0, count = 1000, prefix = Prefix(b"")),
        text_signature = "($self, cursor=0, count=1000, prefix='')"
    )]
    fn scan_page<'py>(
        &self,
        py: Python<'py>,
        cursor: u64,
        count: usize,
        prefix: Prefix<'_>,
    ) -> PyResult<(u64, Vec<Pair<'py>>)> {
        if count == 0 {
            return Err(PyValueError::new_err("count is at least 1"));
        }
        let mut page = Page::default();
        let next = self.backend.read_many(py, count, |store| page.read(store, cursor, count, prefix.0))?;
        Ok((next, pairs(py, page.rows())))
    }

    /// The keys, as a view like a dict's.
    fn keys<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view(slf, "CounterKeys")
    }

    /// The values, as a view like a dict's.
    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view(slf, "CounterValues")
    }

    /// The pairs of key and value, as a view like a dict's.
    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view(slf, "CounterItems")
    }

    /// Another map in memory, with the same counters.
    fn copy(&self, py: Python<'_>) -> PyResult<Self> {
        let copy = Self::with(Backend::memory(CounterStore::new()));
        counter_bulk::merge(py, &copy.backend, &self.backend, Sign::Plus)?;
        Ok(copy)
    }

    /// All counters as bytes, for `from_bytes`.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.backend.read_all(py, counter_snapshot::encode)?))
    }

    /// The counters that `to_bytes` wrote.
    #[classmethod]
    fn from_bytes<'py>(class: &Bound<'py, PyType>, data: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
        let py = class.py();
        let bytes = data.as_bytes();
        let read = py.detach(|| counter_snapshot::decode(bytes));
        let store = read.map_err(|error| PyValueError::new_err(error.to_string()))?;
        let read = Bound::new(py, Self::with(Backend::memory(store)))?.into_any();
        if class.is(py.get_type::<Self>()) { Ok(read) } else { class.call1((read,)) }
    }

    /// Bytes of memory in use.
    fn memory_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.backend.read(py, CounterStore::memory_bytes)
    }

    fn __sizeof__(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.memory_bytes(py)? + size_of::<Self>() as u64)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.backend.read(py, CounterStore::len)
    }

    fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        // What can't be a key isn't one.
        let Ok(key) = key.extract::<Key<'_>>() else { return Ok(false) };
        Ok(self.value(py, key.bytes())?.is_some())
    }

    fn __getitem__(&self, py: Python<'_>, key: Key<'_>) -> PyResult<i64> {
        Ok(self.value(py, key.bytes())?.unwrap_or(0))
    }

    fn __setitem__(&self, py: Python<'_>, key: Key<'_>, value: Delta) -> PyResult<()> {
        let outcome = self.backend.change(py, 1, |cut| cut.set(key.bytes(), value.0))?;
        refused(py, outcome)
    }

    fn __delitem__(&self, py: Python<'_>, key: Key<'_>) -> PyResult<()> {
        self.remove(py, key.bytes()).map(drop)
    }

    fn __iter__(slf: &Bound<'_, Self>) -> CounterIterator {
        CounterIterator::new(slf.clone().unbind(), b"", What::Keys)
    }

    fn __eq__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let other = if let Ok(other) = other.cast::<Self>() {
            other.clone()
        } else if other.is_instance_of::<PyMapping>() {
            let Some(counters) = counters_like(other)? else {
                return Ok(false.into_pyobject(py)?.to_owned().into_any());
            };
            Bound::new(py, counters)?
        } else {
            return Ok(py.NotImplemented().into_bound(py));
        };
        let (here, there) = (slf.get(), other.get());
        let equal = here.is_within(py, there)? && there.is_within(py, here)?;
        Ok(equal.into_pyobject(py)?.to_owned().into_any())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let name = slf.get_type().name()?;
        let this = slf.get();
        let shown = this.top(py, SHOWN as isize, Prefix(b""))?;
        if shown.is_empty() {
            return Ok(format!("{name}()"));
        }
        let mut parts = Vec::with_capacity(shown.len() + 1);
        for (key, value) in &shown {
            parts.push(format!("{}: {value}", key.repr()?));
        }
        let more = this.__len__(py)?.saturating_sub(shown.len());
        if more > 0 {
            parts.push(format!("... {more} more"));
        }
        Ok(format!("{name}({{{}}})", parts.join(", ")))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let bytes = slf.get().to_bytes(slf.py())?;
        Ok((slf.get_type().getattr("from_bytes")?, (bytes,)))
    }
}

/// Makes `isinstance(counters, collections.abc.Mapping)` true, which is what `collections.Counter` and others ask.
pub(crate) fn register_as_mapping(py: Python<'_>) -> PyResult<()> {
    PyMapping::register::<Counters>(py)
}

/// One of the classes of `pycounter.counter_views`.
fn view<'py>(counters: &Bound<'py, Counters>, class: &str) -> PyResult<Bound<'py, PyAny>> {
    counters.py().import("pycounter.counter_views")?.getattr(class)?.call1((counters,))
}

/// A mapping as counters. None: it has something that no counters have.
fn counters_like(mapping: &Bound<'_, PyAny>) -> PyResult<Option<Counters>> {
    let py = mapping.py();
    let counters = Counters::with(Backend::memory(CounterStore::new()));
    for item in mapping.call_method0("items")?.try_iter()? {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item?.extract()?;
        let (Ok(key), Ok(Delta(value))) = (key.extract::<Key<'_>>(), value.extract()) else { return Ok(None) };
        let twice = counters.value(py, key.bytes())?.is_some_and(|before| before != value);
        if twice {
            return Ok(None);
        }
        counters.__setitem__(py, key, Delta(value))?;
    }
    Ok(Some(counters))
}

//! `Counters`: a thread-safe map from keys to signed 64-bit values, in the spirit of `collections.Counter`.

use pycounter_engine::counter_snapshot;
use pycounter_engine::counter_store::CounterStore;
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping, PyTuple, PyType};

use crate::counter_arithmetic::{self, Operation, operand};
use crate::counter_backend::{Backend, Refusal, Sign};
use crate::counter_bulk;
use crate::counter_pages::{CounterIterator, Page, What};
use crate::delta::{Delta, Value};
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

    /// A comparison with another map, or NotImplemented.
    fn compare<'py>(
        slf: &Bound<'py, Self>,
        other: &Bound<'py, PyAny>,
        holds: fn(i64, i64) -> bool,
        but_not_equal: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let Some(other) = operand(other, false)? else { return Ok(py.NotImplemented().into_bound(py)) };
        let (left, right) = (&slf.get().backend, &other.get().backend);
        let is = counter_arithmetic::all(py, left, right, holds)?
            && !(but_not_equal && counter_arithmetic::all(py, left, right, |left, right| left == right)?);
        Ok(is.into_pyobject(py)?.to_owned().into_any())
    }

    /// A new map of this one and another, or NotImplemented. `swapped`: the other is on the left.
    fn combine<'py>(
        slf: &Bound<'py, Self>,
        other: &Bound<'py, PyAny>,
        operation: Operation,
        swapped: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let Some(other) = operand(other, false)? else { return Ok(py.NotImplemented().into_bound(py)) };
        let (mut left, mut right) = (&slf.get().backend, &other.get().backend);
        if swapped {
            (left, right) = (right, left);
        }
        Ok(Bound::new(py, counter_arithmetic::combine(py, left, right, operation)?)?.into_any())
    }

    /// Changes this map by another.
    fn combine_into(&self, other: &Bound<'_, PyAny>, operation: Operation) -> PyResult<()> {
        let Some(other) = operand(other, false)? else {
            let kind = other.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "the other side is Counters or a collections.Counter, not {kind}"
            )));
        };
        counter_arithmetic::combine_into(other.py(), &self.backend, &other.get().backend, operation)
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

    /// Adds to many counters: a mapping, pairs of key and delta, or keys with a delta for each, or 1.
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

    /// Removes many counters and gives what each held, 0 for those that don't exist.
    fn delete_many(&self, keys: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
        counter_bulk::delete_many(&self.backend, keys)
    }

    /// Removes the counters whose keys begin with `prefix`, and gives how many these were.
    fn delete_prefix(&self, py: Python<'_>, prefix: Prefix<'_>) -> PyResult<usize> {
        if prefix.0.is_empty() {
            return Err(PyValueError::new_err("the prefix is empty: to remove every counter there is clear()"));
        }
        counter_bulk::delete_prefix(py, &self.backend, prefix.0)
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

    /// Removes a counter, no matter which, and gives its key and what it held. KeyError if there is none.
    fn popitem<'py>(&self, py: Python<'py>) -> PyResult<Pair<'py>> {
        let (mut page, mut cursor) = (Page::default(), 0);
        loop {
            cursor = self.backend.read(py, |store| page.read(store, cursor, 16, b""))?;
            for (key, _) in page.rows() {
                // Another thread may have been quicker.
                if let Some(value) = self.remove(py, key)? {
                    return Ok((key::to_python(py, key), value));
                }
            }
            if cursor == 0 {
                return Err(PyKeyError::new_err("popitem(): there are no counters"));
            }
        }
    }

    /// The value; a counter that doesn't exist is made with `default` first.
    #[pyo3(signature = (key, default = Value(0)), text_signature = "($self, key, default=0)")]
    fn setdefault(&self, py: Python<'_>, key: Key<'_>, default: Value) -> PyResult<i64> {
        let key = key.bytes();
        let outcome = self
            .backend
            .change(py, 1, |cut| cut.change_with(cut.store().hash(key), key, |value| Ok(value.or(Some(default.0)))))?;
        Ok(refused(py, outcome)?.unwrap_or(default.0))
    }

    /// An iterator over the keys, each as often as its value says; not those below 1.
    fn elements<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view(slf, "elements")
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

    /// Another map in memory, of the same class unless this one is on disk, with the same counters.
    fn copy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let class = slf.get_type();
        if matches!(slf.get().backend, Backend::Memory(_)) && !class.is(slf.py().get_type::<Self>()) {
            return class.call1((slf,));
        }
        let copy = Self::with(Backend::memory(CounterStore::new()));
        counter_bulk::merge(slf.py(), &copy.backend, &slf.get().backend, Sign::Plus)?;
        Ok(Bound::new(slf.py(), copy)?.into_any())
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

    fn __setitem__(&self, py: Python<'_>, key: Key<'_>, value: Value) -> PyResult<()> {
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
        let equal = match operand(other, true)? {
            Some(other) => {
                counter_arithmetic::all(py, &slf.get().backend, &other.get().backend, |left, right| left == right)?
            }
            // It has something that no counters have.
            None if other.is_instance_of::<PyMapping>() => false,
            None => return Ok(py.NotImplemented().into_bound(py)),
        };
        Ok(equal.into_pyobject(py)?.to_owned().into_any())
    }

    fn __le__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::compare(slf, other, |left, right| left <= right, false)
    }

    fn __lt__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::compare(slf, other, |left, right| left <= right, true)
    }

    fn __ge__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::compare(slf, other, |left, right| left >= right, false)
    }

    fn __gt__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::compare(slf, other, |left, right| left >= right, true)
    }

    fn __add__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::combine(slf, other, Operation::Sum, false)
    }

    fn __radd__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::combine(slf, other, Operation::Sum, true)
    }

    fn __iadd__(&self, other: &Bound<'_, PyAny>) -> PyResult<()> {
        self.combine_into(other, Operation::Sum)
    }

    fn __sub__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::combine(slf, other, Operation::Difference, false)
    }

    fn __rsub__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::combine(slf, other, Operation::Difference, true)
    }

    fn __isub__(&self, other: &Bound<'_, PyAny>) -> PyResult<()> {
        self.combine_into(other, Operation::Difference)
    }

    fn __or__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::combine(slf, other, Operation::Union, false)
    }

    fn __ror__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::combine(slf, other, Operation::Union, true)
    }

    fn __ior__(&self, other: &Bound<'_, PyAny>) -> PyResult<()> {
        self.combine_into(other, Operation::Union)
    }

    fn __and__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::combine(slf, other, Operation::Intersection, false)
    }

    fn __rand__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::combine(slf, other, Operation::Intersection, true)
    }

    fn __iand__(&self, other: &Bound<'_, PyAny>) -> PyResult<()> {
        self.combine_into(other, Operation::Intersection)
    }

    fn __pos__(&self, py: Python<'_>) -> PyResult<Self> {
        let nothing = Backend::memory(CounterStore::new());
        counter_arithmetic::combine(py, &self.backend, &nothing, Operation::Sum)
    }

    fn __neg__(&self, py: Python<'_>) -> PyResult<Self> {
        let nothing = Backend::memory(CounterStore::new());
        counter_arithmetic::combine(py, &nothing, &self.backend, Operation::Difference)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let name = slf.get_type().name()?;
        let this = slf.get();
        // After `close`, and in a forked child.
        if let Some(why) = this.backend.unusable() {
            return Ok(format!("<{name}, {why}>"));
        }
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

/// Makes `isinstance(counters, collections.abc.MutableMapping)` true.
pub(crate) fn register_as_mapping(py: Python<'_>) -> PyResult<()> {
    let class = py.import("collections.abc")?.getattr("MutableMapping")?;
    class.call_method1("register", (py.get_type::<Counters>(),)).map(drop)
}

/// What one of the names in `pycounter.counter_views` makes of counters.
fn view<'py>(counters: &Bound<'py, Counters>, class: &str) -> PyResult<Bound<'py, PyAny>> {
    counters.py().import("pycounter.counter_views")?.getattr(class)?.call1((counters,))
}

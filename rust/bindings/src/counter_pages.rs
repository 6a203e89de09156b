//! Looking at many counters: a page at a time, in hash order, whatever is counted or deleted meanwhile.

use std::sync::{Mutex, PoisonError};

use pycounter_engine::counter_store::CounterStore;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::counters::Counters;
use crate::key::{self, KeyColumn};

/// How many places of the store a page covers.
const PLACES: usize = 1024;
/// Pages without a match that one step reads before it lets other threads run Python.
const EMPTY_PAGES: usize = 64;

/// Some counters, copied out of the store.
#[derive(Default)]
pub(crate) struct Page {
    keys: KeyColumn,
    values: Vec<i64>,
}

impl Page {
    /// Reads the counters of the next `count` places whose keys begin with `prefix`. Gives the next cursor, 0 at the
    /// end.
    pub(crate) fn read(&mut self, store: &CounterStore, cursor: u64, count: usize, prefix: &[u8]) -> u64 {
        self.keys.clear();
        self.values.clear();
        store.scan(cursor, count, |key, value| {
            if key.starts_with(prefix) {
                self.keys.push(key);
                self.values.push(value);
            }
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    fn row(&self, number: usize) -> Option<(&[u8], i64)> {
        Some((self.keys.get(number)?, *self.values.get(number)?))
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (&[u8], i64)> {
        self.keys.iter().zip(self.values.iter().copied())
    }
}

/// What an iterator gives.
#[derive(Clone, Copy)]
pub(crate) enum What {
    Keys,
    Items,
}

/// Where an iterator is.
#[derive(Default)]
struct Place {
    page: Page,
    row: usize,
    cursor: u64,
    is_last: bool,
}

/// Goes through the counters in no particular order. One that is there all the time comes exactly once.
#[pyclass(frozen, module = "pycounter._native")]
pub struct CounterIterator {
    counters: Py<Counters>,
    prefix: Box<[u8]>,
    what: What,
    /// None while a thread is at work, with no lock held.
    place: Mutex<Option<Box<Place>>>,
}

impl CounterIterator {
    pub(crate) fn new(counters: Py<Counters>, prefix: &[u8], what: What) -> Self {
        Self { counters, prefix: prefix.into(), what, place: Mutex::new(Some(Box::default())) }
    }

    fn take(&self) -> Option<Box<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put_back(&self, place: Box<Place>) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    /// Reads on until there is a row or nothing is left.
    fn refill(&self, py: Python<'_>, place: &mut Place) -> PyResult<()> {
        let backend = self.counters.get().backend();
        let mut pages = 0;
        while place.row >= place.page.len() && !place.is_last {
            place.cursor = backend.read(py, |store| place.page.read(store, place.cursor, PLACES, &self.prefix))?;
            place.row = 0;
            place.is_last = place.cursor == 0;
            pages += 1;
            if pages % EMPTY_PAGES == 0 {
                py.detach(std::thread::yield_now);
                py.check_signals()?;
            }
        }
        Ok(())
    }
}

#[pymethods]
impl CounterIterator {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(mut place) = self.take() else {
            return Err(PyValueError::new_err("another thread is in this iterator: give each its own"));
        };
        let filled = self.refill(py, &mut place);
        let next = place.page.row(place.row).map(|(key, value)| (key::to_python(py, key), value));
        place.row += 1;
        self.put_back(place);
        filled?;
        let Some((key, value)) = next else { return Ok(None) };
        Ok(Some(match self.what {
            What::Keys => key,
            What::Items => (key, value).into_pyobject(py)?.into_any(),
        }))
    }
}

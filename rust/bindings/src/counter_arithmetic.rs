//! Maps with maps: sums, differences, unions, intersections and comparisons, by `collections.Counter`'s rules.
//!
//! A missing counter counts as 0. What is not above 0 is left out of a result. Each map is read a page at a time, so
//! changes that other threads make meanwhile may be in the result or not. A change in place takes each counter in one
//! step, so that no increment of another thread is lost.

use pycounter_engine::counter_store::{CounterStore, Overflow};
use pyo3::prelude::*;
use pyo3::types::{PyMapping, PyTuple};

use crate::counter_backend::{Backend, Cut, Refusal, Sign};
use crate::counter_bulk;
use crate::counter_pages::Page;
use crate::counters::Counters;
use crate::delta::Value;
use crate::key::Key;

/// Counters that one step reads.
const STEP: usize = 4096;

/// What becomes of two values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Sum,
    Difference,
    Union,
    Intersection,
}

impl Operation {
    fn apply(self, left: i64, right: i64) -> Result<i64, Overflow> {
        match self {
            Self::Sum => left.checked_add(right).ok_or(Overflow),
            Self::Difference => left.checked_sub(right).ok_or(Overflow),
            Self::Union => Ok(left.max(right)),
            Self::Intersection => Ok(left.min(right)),
        }
    }
}

fn value(store: &CounterStore, key: &[u8]) -> Option<i64> {
    store.find(store.hash(key), key).and_then(|at| store.get(at))
}

/// Calls `use_rows` with each page of one map and the values that another has for its keys.
fn each_page(
    py: Python<'_>,
    of: &Backend,
    other: &Backend,
    mut use_rows: impl FnMut(&Page, &[Option<i64>]) -> PyResult<bool>,
) -> PyResult<()> {
    let (mut page, mut cursor) = (Page::default(), 0);
    loop {
        cursor = of.read(py, |store| page.read(store, cursor, STEP, b""))?;
        let values: Vec<_> = other.read(py, |store| page.rows().map(|(key, _)| value(store, key)).collect())?;
        if !use_rows(&page, &values)? || cursor == 0 {
            return Ok(());
        }
        py.check_signals()?;
    }
}

/// Whether `holds` is true of the values of each counter that one of the two has.
pub(crate) fn all(py: Python<'_>, left: &Backend, right: &Backend, holds: fn(i64, i64) -> bool) -> PyResult<bool> {
    let mut so_far = true;
    each_page(py, left, right, |page, values| {
        so_far = page.rows().zip(values).all(|((_, here), there)| holds(here, there.unwrap_or(0)));
        Ok(so_far)
    })?;
    if so_far {
        each_page(py, right, left, |page, values| {
            so_far = page.rows().zip(values).all(|((_, there), here)| holds(here.unwrap_or(0), there));
            Ok(so_far)
        })?;
    }
    Ok(so_far)
}

/// A new map of what is above 0.
pub(crate) fn combine(py: Python<'_>, left: &Backend, right: &Backend, operation: Operation) -> PyResult<Counters> {
    let result = Counters::with(Backend::memory(CounterStore::new()));
    let put = |rows: Vec<(&[u8], Result<i64, Overflow>)>| {
        let outcome = result.backend().change(py, rows.len(), |cut| {
            rows.iter().try_for_each(|(key, value)| match value {
                Ok(value) if *value > 0 => cut.set(key, *value),
                Ok(_) => Ok(()),
                Err(Overflow) => Err(Refusal::Overflow),
            })
        })?;
        outcome.map_err(|refusal| refusal.raise(py))
    };
    each_page(py, left, right, |page, values| {
        let rows = page.rows().zip(values);
        put(rows.map(|((key, here), there)| (key, operation.apply(here, there.unwrap_or(0)))).collect())?;
        Ok(true)
    })?;
    each_page(py, right, left, |page, values| {
        let rows = page.rows().zip(values).filter(|(_, here)| here.is_none());
        put(rows.map(|((key, there), _)| (key, operation.apply(0, there))).collect())?;
        Ok(true)
    })?;
    Ok(result)
}

/// Changes the left map, and drops from it what is not above 0 then.
pub(crate) fn combine_into(py: Python<'_>, left: &Backend, right: &Backend, operation: Operation) -> PyResult<()> {
    match operation {
        Operation::Sum => counter_bulk::merge(py, left, right, Sign::Plus)?,
        Operation::Difference => counter_bulk::merge(py, left, right, Sign::Minus)?,
        Operation::Union => each_page(py, right, left, |page, _| {
            let rows: Vec<_> = page.rows().filter(|&(_, there)| there > 0).collect();
            change_each(py, left, &rows, |here, there| Some(here.unwrap_or(0).max(there)))
        })?,
        Operation::Intersection => each_page(py, left, right, |page, values| {
            let rows: Vec<_> = page.rows().zip(values).map(|((key, _), there)| (key, there.unwrap_or(0))).collect();
            change_each(py, left, &rows, |here, there| here.map(|here| here.min(there)))
        })?,
    }
    each_page(py, left, left, |page, _| {
        let rows: Vec<_> = page.rows().filter(|&(_, here)| here <= 0).collect();
        change_each(py, left, &rows, |here, _| here.filter(|&here| here > 0))
    })
}

/// Replaces the values of some counters, each in one step.
fn change_each(
    py: Python<'_>,
    backend: &Backend,
    rows: &[(&[u8], i64)],
    to: fn(Option<i64>, i64) -> Option<i64>,
) -> PyResult<bool> {
    let change = |cut: &mut Cut<'_, '_>| -> Result<(), Refusal> {
        rows.iter().try_for_each(|&(key, there)| {
            cut.change_with(cut.store().hash(key), key, |here| Ok(to(here, there))).map(drop)
        })
    };
    if !rows.is_empty() {
        backend.change(py, rows.len(), change)?.map_err(|refusal| refusal.raise(py))?;
        backend.sweep(py, rows.len());
    }
    Ok(true)
}

/// The other side of an operator. None: it is neither `Counters` nor, unless `any_mapping`, a `collections.Counter`, or it
/// has something that no counters have.
pub(crate) fn operand<'py>(other: &Bound<'py, PyAny>, any_mapping: bool) -> PyResult<Option<Bound<'py, Counters>>> {
    let py = other.py();
    if let Ok(counters) = other.cast::<Counters>() {
        return Ok(Some(counters.clone()));
    }
    let is_taken = if any_mapping {
        other.is_instance_of::<PyMapping>()
    } else {
        other.is_instance(&py.import("collections")?.getattr("Counter")?)?
    };
    if !is_taken {
        return Ok(None);
    }
    let counters = Counters::with(Backend::memory(CounterStore::new()));
    for item in other.call_method0("items")?.try_iter()? {
        let item = item?.cast_into::<PyTuple>()?;
        let (key, amount) = (item.get_item(0)?, item.get_item(1)?);
        let (Ok(key), Ok(Value(amount))) = (key.extract::<Key<'_>>(), amount.extract()) else { return Ok(None) };
        let key = key.bytes();
        // A str and its bytes may both be there.
        let twice = counters.backend().read(py, |store| value(store, key).is_some_and(|before| before != amount))?;
        if twice {
            return Ok(None);
        }
        counters.backend().change(py, 1, |cut| cut.set(key, amount))?.map_err(|refusal| refusal.raise(py))?;
    }
    Bound::new(py, counters).map(Some)
}

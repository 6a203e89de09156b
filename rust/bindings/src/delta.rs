//! Amounts between Python and the engine, one by one and in bulk.
//!
//! One rule for every surface: an amount is an integer of 64 bits, that is, anything that Python takes for an index: int,
//! bool, NumPy's integers. Everything else raises BadDelta: a float or Decimal even if it is whole, a str even if it
//! holds digits, an integer of more bits. A value that is set, and not added, raises CounterOverflow if it has more bits.

use pyo3::buffer::{ElementType, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::errors;

/// What is added.
#[derive(Clone, Copy)]
pub(crate) struct Delta(pub(crate) i64);

impl<'a, 'py> FromPyObject<'a, 'py> for Delta {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Self).map_err(|error| refusal(object, error, "delta", "BadDelta"))
    }
}

/// What is set.
#[derive(Clone, Copy)]
pub(crate) struct Value(pub(crate) i64);

impl<'a, 'py> FromPyObject<'a, 'py> for Value {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Self).map_err(|error| refusal(object, error, "value", "CounterOverflow"))
    }
}

/// What Python's refusal of an amount means; `too_large` is raised for an integer of more bits.
#[cold]
fn refusal(object: Borrowed<'_, '_, PyAny>, error: PyErr, what: &str, too_large: &str) -> PyErr {
    let py = object.py();
    if error.is_instance_of::<PyOverflowError>(py) {
        return errors::named(py, too_large, (format!("a {what} is a signed 64-bit integer, and this one is larger"),));
    }
    // Not an error that an `__index__` of somebody's own raises.
    if error.is_instance_of::<PyTypeError>(py) && !object.hasattr("__index__").unwrap_or(true) {
        let kind = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
        return errors::named(py, "BadDelta", (format!("a {what} is an integer, not {kind}"),));
    }
    error
}

#[cold]
fn too_large(py: Python<'_>) -> PyErr {
    errors::named(py, "BadDelta", ("a delta is a signed 64-bit integer, and this one is larger",))
}

/// All deltas of a list, a tuple, a buffer of integers (an array of NumPy's, say) or any other iterable, copied.
///
/// # Errors
/// Notes which one is wrong.
pub(crate) fn all_of(deltas: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    if let Ok(list) = deltas.cast::<PyList>() {
        collect(list.iter().map(Ok), list.len())
    } else if let Ok(tuple) = deltas.cast::<PyTuple>() {
        collect(tuple.iter().map(Ok), tuple.len())
    } else if deltas.is_instance_of::<PyString>() || deltas.is_instance_of::<PyBytes>() {
        Err(PyTypeError::new_err("deltas are a sequence of integers, not a str or bytes"))
    } else if let Some(buffer) = integers(deltas)? {
        copied(deltas.py(), &buffer)
    } else {
        collect(deltas.try_iter()?, 0)
    }
}

fn collect<'py>(deltas: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>, expected: usize) -> PyResult<Vec<i64>> {
    let mut collected = Vec::with_capacity(expected);
    for delta in deltas {
        let delta = delta?;
        match delta.extract::<Delta>() {
            Ok(Delta(delta)) => collected.push(delta),
            Err(error) => {
                error.add_note(delta.py(), format!("delta {}; nothing was applied", collected.len()))?;
                return Err(error);
            }
        }
    }
    Ok(collected)
}

/// The object's buffer, if it is one of numbers in this machine's byte order. None: its elements are to be asked for
/// one by one.
fn integers(object: &Bound<'_, PyAny>) -> PyResult<Option<PyUntypedBuffer>> {
    let Ok(buffer) = PyUntypedBuffer::get(object) else { return Ok(None) };
    if buffer.dimensions() != 1 {
        return Err(PyValueError::new_err(format!("deltas have one dimension, not {}", buffer.dimensions())));
    }
    match ElementType::from_format(buffer.format()) {
        ElementType::SignedInteger { .. } | ElementType::UnsignedInteger { .. } => {}
        ElementType::Unknown => return Ok(None),
        _ => {
            let format = buffer.format().to_string_lossy();
            let message = format!("deltas are integers; this buffer's format is {format:?}");
            return Err(errors::named(object.py(), "BadDelta", (message,)));
        }
    }
    // A letter alone means this machine's order. Others are left to the object, which knows them best.
    Ok((buffer.format().count_bytes() == 1).then_some(buffer))
}

fn copied(py: Python<'_>, buffer: &PyUntypedBuffer) -> PyResult<Vec<i64>> {
    /// The buffer's elements, widened.
    fn widened<T: pyo3::buffer::Element + Into<i64>>(py: Python<'_>, buffer: &PyBuffer<T>) -> PyResult<Vec<i64>> {
        Ok(buffer.to_vec(py)?.into_iter().map(Into::into).collect())
    }
    if let Ok(buffer) = buffer.as_typed::<i64>() {
        buffer.to_vec(py)
    } else if let Ok(buffer) = buffer.as_typed::<i32>() {
        widened(py, buffer)
    } else if let Ok(buffer) = buffer.as_typed::<i16>() {
        widened(py, buffer)
    } else if let Ok(buffer) = buffer.as_typed::<i8>() {
        widened(py, buffer)
    } else if let Ok(buffer) = buffer.as_typed::<u32>() {
        widened(py, buffer)
    } else if let Ok(buffer) = buffer.as_typed::<u16>() {
        widened(py, buffer)
    } else if let Ok(buffer) = buffer.as_typed::<u8>() {
        widened(py, buffer)
    } else {
        let wide = buffer.as_typed::<u64>()?.to_vec(py)?;
        let narrow = |(at, &delta): (usize, &u64)| {
            i64::try_from(delta).map_err(|_| {
                let error = too_large(py);
                match error.add_note(py, format!("delta {at}; nothing was applied")) {
                    Ok(()) => error,
                    Err(error) => error,
                }
            })
        };
        wide.iter().enumerate().map(narrow).collect()
    }
}

//! Amounts between Python and the engine: whole numbers of 64 bits, one by one and in bulk.

use pyo3::buffer::{ElementType, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use crate::errors;

/// What is added, or set.
#[derive(Clone, Copy)]
pub(crate) struct Delta(pub(crate) i64);

impl<'a, 'py> FromPyObject<'a, 'py> for Delta {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        object.extract().map(Self).map_err(|error| out_of_range(object.py(), error))
    }
}

impl Delta {
    /// The amount with the sign turned.
    pub(crate) fn negated(self, py: Python<'_>) -> PyResult<i64> {
        self.0.checked_neg().ok_or_else(|| too_large(py))
    }
}

#[cold]
fn out_of_range(py: Python<'_>, error: PyErr) -> PyErr {
    if error.is_instance_of::<PyOverflowError>(py) { too_large(py) } else { error }
}

#[cold]
fn too_large(py: Python<'_>) -> PyErr {
    errors::named(py, "CounterOverflow", ("a delta is a signed 64-bit integer",))
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
            return Err(PyTypeError::new_err(format!("deltas are integers; this buffer's format is {format:?}")));
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

//! Keys between Python and the engine.
//!
//! A key is its bytes: a str counts as its UTF-8, so that `"a"` and `b"a"` are one counter, as on the wire. On the
//! way back a key is a str where its bytes are valid UTF-8, else bytes.

use std::ptr::NonNull;

use pycounter_engine::limits::KEY_BYTES_MAX;
use pyo3::exceptions::PyUnicodeEncodeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::errors;

/// A key, borrowed from the str or bytes that it came as.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a>(&'a [u8]);

impl<'a> Key<'a> {
    /// Its 1 to 1,024 bytes.
    pub(crate) fn bytes(self) -> &'a [u8] {
        self.0
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Key<'a> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let bytes = text_or_bytes(object)?;
        if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX {
            return Err(bad_length(object.py(), bytes.len()));
        }
        Ok(Self(bytes))
    }
}

/// The beginning of keys: also empty, and as long as it likes.
pub(crate) struct Prefix<'a>(pub(crate) &'a [u8]);

impl<'a, 'py> FromPyObject<'a, 'py> for Prefix<'a> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        text_or_bytes(object).map(Self)
    }
}

/// Bytes that live as long as the object's borrow: str and bytes never change, and a str keeps its UTF-8.
fn text_or_bytes<'a>(object: Borrowed<'a, '_, PyAny>) -> PyResult<&'a [u8]> {
    if object.is_instance_of::<PyString>() {
        object.extract::<&'a str>().map(str::as_bytes).map_err(|error| not_utf8(object.py(), error))
    } else {
        object.extract::<&'a [u8]>().map_err(|_| wrong_type(object))
    }
}

#[cold]
fn not_utf8(py: Python<'_>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyUnicodeEncodeError>(py) {
        return error;
    }
    let bad = errors::named(py, "BadKey", ("a key can't hold lone surrogates: they have no UTF-8",));
    bad.set_cause(py, Some(error));
    bad
}

#[cold]
fn wrong_type(object: Borrowed<'_, '_, PyAny>) -> PyErr {
    match object.get_type().name() {
        Ok(name) => errors::named(object.py(), "BadKey", (format!("a key is str or bytes, not {name}"),)),
        Err(error) => error,
    }
}

/// A key of a length that no key has.
#[cold]
pub(crate) fn bad_length(py: Python<'_>, length: usize) -> PyErr {
    errors::named(py, "BadKey", (format!("a key has 1 to {KEY_BYTES_MAX} bytes, not {length}"),))
}

/// The key as Python sees it.
pub(crate) fn to_python<'py>(py: Python<'py>, key: &[u8]) -> Bound<'py, PyAny> {
    match std::str::from_utf8(key) {
        Ok(text) => PyString::new(py, text).into_any(),
        Err(_) => PyBytes::new(py, key).into_any(),
    }
}

/// Keys, copied one behind the other.
#[derive(Default)]
pub(crate) struct KeyColumn {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl KeyColumn {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    pub(crate) fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, number: usize) -> Option<&[u8]> {
        let &end = self.ends.get(number)?;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start..end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|number| self.get(number))
    }
}

/// A key together with the object that owns its bytes: it outlives the list that it was found in, and can be read
/// while other threads run Python.
pub(crate) struct PinnedKey {
    bytes: NonNull<[u8]>,
    owner: Py<PyAny>,
}

impl PinnedKey {
    pub(crate) fn new(object: Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = NonNull::from(object.extract::<Key<'_>>()?.bytes());
        Ok(Self { bytes, owner: object.unbind() })
    }

    /// Drops it, faster than without the proof that this thread is attached.
    pub(crate) fn release(self, py: Python<'_>) {
        self.owner.drop_ref(py);
    }
}

#[allow(unsafe_code, reason = "the bytes belong to an object of another language")]
mod pinned {
    use super::PinnedKey;

    // SAFETY: the bytes never change, and are freed with the owner only, whose reference can be dropped anywhere.
    unsafe impl Send for PinnedKey {}
    // SAFETY: as above: nothing but reading.
    unsafe impl Sync for PinnedKey {}

    impl AsRef<[u8]> for PinnedKey {
        fn as_ref(&self) -> &[u8] {
            // SAFETY: the owner is a str or bytes, so the bytes don't change; it lives as long as `self`, and with it
            // they do: a str frees the UTF-8 that it made only when it is freed itself.
            unsafe { self.bytes.as_ref() }
        }
    }
}

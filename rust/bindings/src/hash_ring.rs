//! `HashRing`: which shard is a key's home.

use std::hash::{DefaultHasher, Hash, Hasher};

use pycounter_engine::placement::hash_ring::{self, RingError};
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMapping, PyString, PyType};

use crate::split_items::SplitItems;

/// A weighted consistent hash ring: which shard is a key's home.
///
/// The home depends only on the shards' names and weights and on the key, in every process and language. A ring
/// never changes; `with_shard`, `with_weight` and `without_shard` make another one, in which only the keys have
/// moved that the shard gained or lost. Any thread may use it.
///
/// Args:
///     shards: names (1 to 255 bytes of UTF-8) and their weights (0.01 to 100), or names alone, of weight 1. A
///         weight of 1 takes 2,048 points of 16 bytes; a ring has at most 4,194,304 points.
///
/// Raises:
///     ValueError: no shard, a bad name or weight, a name twice, or too many points.
///     TypeError: names that aren't str, or weights that aren't numbers.
#[pyclass(frozen, module = "pycounter._native")]
pub struct HashRing {
    ring: hash_ring::HashRing,
    /// The shards' names in the ring's order, so that a lookup makes no string.
    names: Vec<Py<PyString>>,
}

impl HashRing {
    /// The engine's own.
    pub(crate) fn engine(&self) -> &hash_ring::HashRing {
        &self.ring
    }

    fn wrap(py: Python<'_>, ring: Result<hash_ring::HashRing, RingError>) -> PyResult<Self> {
        let ring = ring.map_err(|error| match error {
            RingError::Unknown(_) => PyKeyError::new_err(error.to_string()),
            error => PyValueError::new_err(error.to_string()),
        })?;
        let names = ring.shards().iter().map(|(name, _)| PyString::new(py, name).unbind()).collect();
        Ok(Self { ring, names })
    }
}

/// The bytes of a key: a str counts as its UTF-8.
fn key_bytes<'k>(key: &'k Bound<'_, PyAny>) -> PyResult<&'k [u8]> {
    if let Ok(text) = key.cast::<PyString>() {
        Ok(text.to_str()?.as_bytes())
    } else if let Ok(bytes) = key.cast::<PyBytes>() {
        Ok(bytes.as_bytes())
    } else {
        Err(PyTypeError::new_err(format!("a key is str or bytes, not {}", key.get_type().name()?)))
    }
}

#[pymethods]
impl HashRing {
    #[new]
    fn new(shards: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut pairs: Vec<(String, f64)> = Vec::new();
        if let Ok(mapping) = shards.cast::<PyMapping>() {
            for pair in mapping.items()? {
                pairs.push(pair.extract()?);
            }
        } else if shards.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("shards are a mapping or an iterable of names, not one name"));
        } else {
            for name in shards.try_iter()? {
                pairs.push((name?.extract()?, 1.0));
            }
        }
        Self::wrap(shards.py(), hash_ring::HashRing::new(pairs))
    }

    /// The name of the key's home. A str is looked up as its UTF-8.
    ///
    /// Raises:
    ///     TypeError: the key is neither str nor bytes.
    ///     UnicodeEncodeError: a str with lone surrogates.
    fn home(&self, key: &Bound<'_, PyAny>) -> PyResult<Py<PyString>> {
        Ok(self.names[self.ring.home(key_bytes(key)?)].clone_ref(key.py()))
    }

    /// The names of the keys' homes, in the keys' order. Errors as `home`.
    fn home_many<'py>(&self, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let homes = PyList::empty(keys.py());
        for key in keys.try_iter()? {
            homes.append(self.home(&key?)?)?;
        }
        Ok(homes)
    }

    /// A list of increments by the shards that are their homes: pairs of key and delta, or a dict. A wrong item has its
    /// error in `SplitItems.results`.
    ///
    /// Raises:
    ///     TypeError: it can't be iterated over.
    fn split(&self, items: &Bound<'_, PyAny>) -> PyResult<SplitItems> {
        SplitItems::new(items, &self.ring)
    }

    /// This ring and one more shard, to which about `weight / (all weights)` of the keys move.
    ///
    /// Raises:
    ///     ValueError: the shard is there already, a bad name or weight, or too many points.
    #[pyo3(signature = (name, weight = 1.0))]
    fn with_shard(&self, py: Python<'_>, name: &str, weight: f64) -> PyResult<Self> {
        Self::wrap(py, self.ring.with_shard(name, weight))
    }

    /// This ring with another weight for a shard: keys move only to it, or only away from it.
    ///
    /// Raises:
    ///     KeyError: there is no such shard.
    ///     ValueError: a bad weight, or too many points.
    fn with_weight(&self, py: Python<'_>, name: &str, weight: f64) -> PyResult<Self> {
        Self::wrap(py, self.ring.with_weight(name, weight))
    }

    /// This ring without a shard, whose keys move to the others.
    ///
    /// Raises:
    ///     KeyError: there is no such shard.
    ///     ValueError: there is no other shard.
    fn without_shard(&self, py: Python<'_>, name: &str) -> PyResult<Self> {
        Self::wrap(py, self.ring.without_shard(name))
    }

    /// The shards' names and weights, in the order of the names' bytes: a new dict.
    #[getter]
    fn shards<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let shards = PyDict::new(py);
        for (name, (_, weight)) in self.names.iter().zip(self.ring.shards()) {
            shards.set_item(name, weight)?;
        }
        Ok(shards)
    }

    /// The share of all possible keys that each shard is the home of; they add up to 1.
    fn shares<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let shares = PyDict::new(py);
        for (name, share) in self.names.iter().zip(self.ring.shares()) {
            shares.set_item(name, share)?;
        }
        Ok(shares)
    }

    /// A hash of all points: equal in every implementation that places them right (`docs/hash-ring.md`).
    fn digest(&self) -> u64 {
        self.ring.digest()
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| self.ring == other.get().ring)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, weight) in self.ring.shards() {
            (name, weight.to_bits()).hash(&mut hasher);
        }
        hasher.finish()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("HashRing({})", self.shards(py)?.repr()?))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyType>, (Bound<'py, PyDict>,))> {
        Ok((slf.get_type(), (slf.get().shards(slf.py())?,)))
    }
}

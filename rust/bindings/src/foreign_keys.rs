//! `ForeignKeys`: which shards beside a key's home may hold some of it.

use std::sync::Arc;

use pycounter_engine::placement::foreign_keys::{self, ForeignReport};
use pycounter_engine::placement::hash_ring::key_hash;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::key::Key;
use crate::split_items::SplitItems;

/// What a coordinator knows about foreign counters: which shards beside a key's home may hold some of it.
#[pyclass(frozen, module = "pycounter._native")]
pub struct ForeignKeys {
    /// Shared with the router.
    pub(crate) keys: Arc<foreign_keys::ForeignKeys>,
}

impl ForeignKeys {
    fn checked(&self, shard: usize) -> PyResult<usize> {
        if shard < self.keys.shards() {
            return Ok(shard);
        }
        Err(PyIndexError::new_err(format!("there is no shard {shard} among {}", self.keys.shards())))
    }
}

/// Hashes as a shard gives them.
fn checked_hashes(hashes: &[u8]) -> PyResult<&[u8]> {
    if hashes.len().is_multiple_of(8) {
        return Ok(hashes);
    }
    Err(PyValueError::new_err(format!("hashes are 8 bytes each, not {} bytes together", hashes.len())))
}

#[pymethods]
impl ForeignKeys {
    #[new]
    fn new(shards: usize) -> Self {
        Self { keys: Arc::new(foreign_keys::ForeignKeys::new(shards)) }
    }

    /// Whether a shard other than the key's home may hold some of it.
    fn is_foreign(&self, key: Key<'_>) -> bool {
        self.keys.is_foreign(key_hash(key.bytes()))
    }

    /// The places of those items of a split list whose keys `is_foreign` names.
    fn foreign_places(&self, split: &SplitItems) -> Vec<u32> {
        let all = split.split.places_and_hashes();
        all.filter(|&(_, hash)| self.keys.is_foreign(hash)).map(|(place, _)| place).collect()
    }

    /// The shards that may hold some of a key though they aren't its home. The caller adds the home.
    fn holders<'py>(&self, py: Python<'py>, key: Key<'_>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.keys.holders(key_hash(key.bytes())))
    }

    /// How many hashes are known of a shard.
    fn count(&self, shard: usize) -> PyResult<usize> {
        Ok(self.keys.count(self.checked(shard)?))
    }

    /// Whether a shard is taken to hold any key.
    fn may_hold_all(&self, shard: usize) -> PyResult<bool> {
        Ok(self.keys.may_hold_all(self.checked(shard)?))
    }

    /// A shard's list begins anew.
    fn replace(&self, shard: usize) -> PyResult<()> {
        self.keys.replace(self.checked(shard)?);
        Ok(())
    }

    /// Adds hashes of a shard's list.
    fn extend(&self, shard: usize, hashes: &[u8]) -> PyResult<()> {
        self.keys.extend(self.checked(shard)?, checked_hashes(hashes)?);
        Ok(())
    }

    /// Says that a shard may hold any key, or that its list is known.
    fn set_all(&self, shard: usize, on: bool) -> PyResult<()> {
        self.keys.set_all(self.checked(shard)?, on);
        Ok(())
    }

    /// Remembers that an operation on a key was diverted to a shard.
    fn note(&self, shard: usize, key: Key<'_>) -> PyResult<()> {
        self.keys.note(self.checked(shard)?, key_hash(key.bytes()));
        Ok(())
    }

    /// Takes in `foreign` of a shard's reply to `health`, and gives the `foreign_from` to ask for next.
    #[pyo3(signature = (shard, *, identity, epoch, count, from_, hashes, full))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn absorb(
        &self,
        shard: usize,
        identity: &str,
        epoch: u64,
        count: u64,
        from_: u64,
        hashes: &[u8],
        full: bool,
    ) -> PyResult<u64> {
        let hashes = checked_hashes(hashes)?;
        let report = ForeignReport { identity: identity.as_bytes(), epoch, count, from: from_, hashes, all: full };
        Ok(self.keys.absorb(self.checked(shard)?, report))
    }
}

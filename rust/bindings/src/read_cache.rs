//! `ReadCache`: values that were read lately, for coordinators.

use std::sync::Arc;
use std::time::Duration;

use pycounter_engine::clock::Clock;
use pycounter_engine::read_cache;
use pycounter_engine::read_cache::{Cached, ReadCacheSettings};
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::key::{Key, to_python};
use crate::split_items::SplitItems;

/// Values that were read lately, in two levels, for as long as nobody here has written them.
///
/// A load takes `begin(key)` before it asks the shard, and gives it to `fill` with the value; a write calls `bump` when
/// it is sent and again when it is settled. So `get` never gives a value whose load began before such a write. Any
/// thread may use it. Keys are 1 to 1,024 bytes; a str is its UTF-8.
///
/// Args:
///     l1_entries, l1_ttl_s: most values in level 1, and how long they stay there.
///     l2_entries, l2_ttl_s: most values at all, and how old they may grow.
///     hot_reads, hot_ttl_s: a key read more often stays in level 1 for so long.
///     cold_reads: a key read less often leaves first.
///     bytes_max: bytes of the values and their keys.
///     clock: for tests and simulations: seconds that only rise, asked at every call. None: the system's.
///
/// Raises:
///     ValueError: an argument isn't positive.
///     BadKey (every method that takes a key): it is no key.
#[pyclass(frozen, module = "pycounter._native")]
pub struct ReadCache {
    cache: Arc<read_cache::ReadCache>,
    clock: Option<(Py<PyAny>, f64)>,
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(PyValueError::new_err(format!("{name} is a number of seconds above 0, not {value}"))),
    }
}

fn positive(name: &str, value: usize) -> PyResult<usize> {
    if value == 0 { Err(PyValueError::new_err(format!("{name} must be above 0"))) } else { Ok(value) }
}

impl ReadCache {
    /// The engine's cache, which a router shares.
    pub(crate) fn shared(&self) -> Arc<read_cache::ReadCache> {
        self.cache.clone()
    }

    /// Sets the time by the given clock, before anything is locked.
    fn set_time(&self, py: Python<'_>) -> PyResult<()> {
        if let Some((clock, began)) = &self.clock {
            let now: f64 = clock.call0(py)?.extract(py)?;
            self.cache.clock().set(Duration::try_from_secs_f64(now - began).unwrap_or_default());
        }
        Ok(())
    }

    fn look_up(&self, py: Python<'_>, key: Key<'_>) -> PyResult<Option<Cached>> {
        self.set_time(py)?;
        Ok(self.cache.get(key.bytes()))
    }
}

#[pymethods]
impl ReadCache {
    #[new]
    #[pyo3(signature = (l1_entries = 10_000, l1_ttl_s = 1.0, l2_entries = 100_000, l2_ttl_s = 10.0, hot_reads = 1000,
        hot_ttl_s = 5.0, cold_reads = 10, bytes_max = 67_108_864, *, clock = None))]
    #[expect(clippy::too_many_arguments, reason = "settings, which Python names")]
    fn new(
        py: Python<'_>,
        l1_entries: usize,
        l1_ttl_s: f64,
        l2_entries: usize,
        l2_ttl_s: f64,
        hot_reads: u16,
        hot_ttl_s: f64,
        cold_reads: u16,
        bytes_max: usize,
        clock: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let settings = ReadCacheSettings {
            l1_entries: positive("l1_entries", l1_entries)?,
            l1_ttl: seconds("l1_ttl_s", l1_ttl_s)?,
            l2_entries: positive("l2_entries", l2_entries)?,
            l2_ttl: seconds("l2_ttl_s", l2_ttl_s)?,
            bytes_max: positive("bytes_max", bytes_max)?,
            hot_reads,
            hot_ttl: seconds("hot_ttl_s", hot_ttl_s)?,
            cold_reads,
        };
        let (time, clock) = match clock {
            None => (Clock::system(), None),
            Some(clock) => {
                let began = clock.call0(py)?.extract(py)?;
                (Clock::by_hand(), Some((clock, began)))
            }
        };
        Ok(Self { cache: Arc::new(read_cache::ReadCache::new(settings, time)), clock })
    }

    /// The value, or None if none is held that may be returned.
    fn get(&self, py: Python<'_>, key: Key<'_>) -> PyResult<Option<i64>> {
        Ok(self.look_up(py, key)?.map(|cached| cached.value))
    }

    /// The value and how many seconds ago it was loaded, or None.
    fn lookup(&self, py: Python<'_>, key: Key<'_>) -> PyResult<Option<(i64, f64)>> {
        Ok(self.look_up(py, key)?.map(|cached| (cached.value, cached.age.as_secs_f64())))
    }

    /// A write to this key is sent, or settled: values loaded before are no longer returned.
    fn bump(&self, key: Key<'_>) {
        self.cache.bump(key.bytes());
    }

    /// The same of every key of a split list.
    fn bump_split(&self, split: &SplitItems) {
        split.split.hashes().for_each(|hash| self.cache.bump_hashed(hash));
    }

    /// A write to every key is sent, or settled.
    fn bump_all(&self) {
        self.cache.bump_all();
    }

    /// The key's version: to be asked for before the shard is, and given to `fill` with what the shard answers.
    fn begin(&self, key: Key<'_>) -> u64 {
        self.cache.begin(key.bytes())
    }

    /// Keeps a value that was loaded since `version` was the key's version.
    ///
    /// Returns:
    ///     False: the key was written since, or the value is beyond 64 bits, or there is no room.
    fn fill(&self, py: Python<'_>, key: Key<'_>, value: &Bound<'_, PyAny>, version: u64) -> PyResult<bool> {
        self.set_time(py)?;
        match value.extract() {
            Ok(value) => Ok(self.cache.fill(key.bytes(), value, version)),
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => {
                self.cache.refuse();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Up to `n` of the keys whose values are held, those read most first: a list of (key, estimated reads).
    fn hottest<'py>(&self, py: Python<'py>, n: usize) -> PyResult<Bound<'py, PyList>> {
        let cache = &self.cache;
        let hottest = py.detach(|| cache.hottest(n));
        PyList::new(py, hottest.iter().map(|(key, reads)| (to_python(py, key), *reads)))
    }

    /// Forgets all values.
    fn clear(&self) {
        self.cache.clear();
    }

    /// What it has done since it was made (`l1_hits`, `l2_hits`, `misses`, of them `expired` and `stale`, `evictions`,
    /// `fills`, `fills_refused`) and holds now (`entries`, `l1_entries`, `bytes`): a new dict.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let figures = self.cache.statistics();
        let dict = PyDict::new(py);
        for (name, figure) in [
            ("l1_hits", figures.l1_hits),
            ("l2_hits", figures.l2_hits),
            ("misses", figures.misses),
            ("expired", figures.expired),
            ("stale", figures.stale),
            ("evictions", figures.evictions),
            ("fills", figures.fills),
            ("fills_refused", figures.fills_refused),
            ("entries", figures.entries as u64),
            ("l1_entries", figures.l1_entries as u64),
            ("bytes", figures.bytes as u64),
        ] {
            dict.set_item(name, figure)?;
        }
        Ok(dict)
    }
}

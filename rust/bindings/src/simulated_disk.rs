//! `SimulatedDisk`: where a shard of a simulation keeps its folder, and the clock that it sees.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pycounter_engine::clock::Clock;
use pycounter_engine::journal::files::FileSystem;
use pycounter_engine::journal::simulated_files::{Faults, SimulatedFiles};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Files in memory that know what was made durable, faults that a seed decides, and a clock that stands still.
#[pyclass(frozen, module = "pycounter._native")]
pub struct SimulatedDisk {
    files: SimulatedFiles,
    pub(crate) clock: Clock,
    pub(crate) seed: u64,
    faults: Mutex<Faults>,
}

impl SimulatedDisk {
    pub(crate) fn files(&self) -> Arc<dyn FileSystem> {
        Arc::new(self.files.clone())
    }

    fn change_faults(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut faults);
        self.files.set_faults(*faults);
    }
}

#[pymethods]
impl SimulatedDisk {
    #[new]
    fn new(seed: u64) -> Self {
        let (files, clock) = (SimulatedFiles::new(seed), Clock::by_hand());
        Self { files, clock, seed, faults: Mutex::default() }
    }

    /// Sets the clock, to seconds after its beginning.
    fn set_clock(&self, elapsed_s: f64) -> PyResult<()> {
        let elapsed = Duration::try_from_secs_f64(elapsed_s)
            .map_err(|_| PyValueError::new_err("elapsed_s must be a time in seconds"))?;
        self.clock.set(elapsed);
        Ok(())
    }

    /// How many file operations there were.
    #[getter]
    fn operations(&self) -> u64 {
        self.files.operations()
    }

    /// Has the next so many operations fail, each done in part or not at all; 0: no more fail.
    fn fail_next(&self, count: u64) {
        let now = self.files.operations();
        self.change_faults(|faults| faults.fail = (now, now.saturating_add(count)));
    }

    /// Has the process die in so many operations from now: from that one on, nothing is done. Until `kill` or `crash`.
    fn die_after(&self, count: u64) {
        let now = self.files.operations();
        self.change_faults(|faults| faults.dead_from = Some(now.saturating_add(count)));
    }

    /// The process is gone, what it wrote is there. Faults end.
    fn kill(&self) {
        self.change_faults(|faults| *faults = Faults::default());
        self.files.kill();
    }

    /// The power fails: of what was not fsynced anything may be there. Faults end.
    fn crash(&self) {
        self.change_faults(|faults| *faults = Faults::default());
        self.files.crash();
    }
}

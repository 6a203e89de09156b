//! `pycounter._native`: registers the classes; the logic is in the engine.
use pyo3::prelude::*;

#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
    Ok(())
}

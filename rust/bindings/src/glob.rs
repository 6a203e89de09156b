//! `glob_matches`: the patterns of `SCAN MATCH`, for those who answer it in Python.

use pycounter_engine::wire::glob;
use pyo3::prelude::*;

/// Does the whole of `key` match Redis's `pattern`?
#[pyfunction]
pub fn glob_matches(pattern: &[u8], key: &[u8]) -> bool {
    glob::matches(pattern, key)
}

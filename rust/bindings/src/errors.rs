//! The engine's errors as the exceptions of `pycounter.errors`, and the table of codes.

use std::path::Path;

use pycounter_engine::checkpoint::CheckpointError;
use pycounter_engine::error_code::{Effect, ErrorCode};
use pycounter_engine::folder::FolderError;
use pycounter_engine::journal::JournalError;
use pyo3::prelude::*;

/// An exception of `pycounter.errors`, made by its class with these arguments.
pub(crate) fn named<'py>(py: Python<'py>, class: &str, arguments: impl pyo3::call::PyCallArgs<'py>) -> PyErr {
    let made =
        py.import("pycounter.errors").and_then(|module| module.getattr(class)).and_then(|it| it.call1(arguments));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// The exception for an error as a reply carries it, `code: message`.
pub(crate) fn from_wire(py: Python<'_>, text: &str) -> PyErr {
    named(py, "from_wire", (text,))
}

/// An error about a folder.
pub(crate) fn folder(py: Python<'_>, directory: &Path, error: &FolderError) -> PyErr {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let class = match error {
        FolderError::Journal(JournalError::Locked { .. }) => "FolderLocked",
        FolderError::Journal(JournalError::NewerFormat { .. })
        | FolderError::Checkpoint(CheckpointError::FormatTooNew { .. }) => "FormatTooNew",
        FolderError::Journal(JournalError::Io { source, .. })
            if matches!(source.kind(), StorageFull | QuotaExceeded) =>
        {
            "StorageFull"
        }
        FolderError::Journal(JournalError::Io { .. } | JournalError::Vanished { .. })
        | FolderError::Checkpoint(CheckpointError::Memory(_))
        | FolderError::Restore(_) => "StorageError",
        _ => "DamagedData",
    };
    let message = match error {
        FolderError::Checkpoint(error) => format!("{}: {error}", directory.join("checkpoint").display()),
        error => error.to_string(),
    };
    named(py, class, (message, directory))
}

/// (name, retryable, effect, meaning) of every error code; effect is "nothing", "before" or "unknown".
#[pyfunction]
pub fn error_codes() -> Vec<(&'static str, bool, &'static str, &'static str)> {
    let row = |code: &ErrorCode| {
        let effect = match code.effect() {
            Effect::Nothing => "nothing",
            Effect::Before => "before",
            Effect::Unknown => "unknown",
        };
        (code.name(), code.retryable(), effect, code.meaning())
    };
    ErrorCode::ALL.iter().map(row).collect()
}

//! The exit status of a process that lost something while it was ending, when Python no longer lets anyone set it.

#![allow(unsafe_code, reason = "an exit handler of the C library")]

use std::io;

use pyo3::prelude::*;

/// Makes the process end with status 1, whatever it would have been. For use while the interpreter ends.
#[pyfunction]
pub(crate) fn fail_at_exit() -> PyResult<()> {
    // SAFETY: the handler only ends the process.
    match unsafe { libc::atexit(end_with_failure) } {
        0 => Ok(()),
        _ => Err(io::Error::other("the system takes no more exit handlers").into()),
    }
}

extern "C" fn end_with_failure() {
    // SAFETY: both may be called here; what other handlers would do is of no use to a process that has failed.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(1);
    }
}

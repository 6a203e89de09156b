//! What a link tells beside outcomes, as Python gets it.

use pycounter_engine::figure::Figure::{self, Number};
use pycounter_engine::shard_link::{GivenUp, LinkStatistics, LostTail};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::key::to_python;

/// What a client's link has done, by name.
pub(crate) fn figures(own: &LinkStatistics) -> Vec<(&'static str, Figure)> {
    vec![
        ("batches", Number(own.batches)),
        ("operations", Number(own.operations_sent)),
        ("operations_settled", Number(own.operations_settled)),
        ("operations_failed", Number(own.operations_failed)),
        ("operations_unknown", Number(own.operations_unknown)),
        ("operations_lost", Number(own.operations_lost)),
        ("operations_resent", Number(own.operations_resent)),
        ("batches_resent", Number(own.batches_resent)),
        ("batches_refused", Number(own.batches_refused)),
        ("sessions_renewed", Number(own.sessions_renewed)),
        ("greetings", Number(own.greetings)),
        ("calls", Number(own.calls)),
        ("calls_resent", Number(own.calls_resent)),
        ("operations_succeeded", Number(own.operations_succeeded)),
    ]
}

/// Key, delta, when it was first sent, and the mark of its batch.
pub(crate) type UnknownRow<'py> = (Bound<'py, PyAny>, i64, f64, u64);
/// Key, delta, seconds since it was sent, and whether nobody can tell.
pub(crate) type GivenUpRow<'py> = (Bound<'py, PyAny>, i64, f64, bool);
/// Session, first and last number, and the operations.
pub(crate) type LostRow<'py> = (Bound<'py, PyBytes>, u64, u64, Vec<(Bound<'py, PyAny>, i64)>);

/// An increment that was sent and whose outcome nobody knows, as the link gives it: key, delta, when it was first sent,
/// and the mark of its batch.
pub(crate) type Unknown = (Vec<u8>, i64, u64, u64);

fn age_s(now_ms: u64, sent_at_ms: u64) -> f64 {
    now_ms.saturating_sub(sent_at_ms) as f64 / 1000.0
}

pub(crate) fn unknown_rows<'py>(py: Python<'py>, found: Vec<Unknown>, now_ms: u64) -> Vec<UnknownRow<'py>> {
    let row = |(key, delta, sent_at_ms, mark): Unknown| (to_python(py, &key), delta, age_s(now_ms, sent_at_ms), mark);
    found.into_iter().map(row).collect()
}

pub(crate) fn given_up_rows<'py>(py: Python<'py>, taken: Vec<GivenUp>, now_ms: u64) -> Vec<GivenUpRow<'py>> {
    let row = |one: GivenUp| (to_python(py, &one.key), one.delta, age_s(now_ms, one.sent_at_ms), one.is_unknown);
    taken.into_iter().map(row).collect()
}

pub(crate) fn lost_rows<'py>(py: Python<'py>, taken: Vec<LostTail>) -> Vec<LostRow<'py>> {
    let row = |tail: LostTail| {
        let operations = tail.operations.iter().map(|(key, delta)| (to_python(py, key), *delta)).collect();
        (PyBytes::new(py, &tail.session.0), tail.first_sequence, tail.last_sequence, operations)
    };
    taken.into_iter().map(row).collect()
}

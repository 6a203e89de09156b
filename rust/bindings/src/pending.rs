//! Who waits for a link: their futures by slot, and the outcomes that are on their way to them.

use std::sync::Arc;

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::shard_link::{Outcome, Repeat, ShardLink};
use pycounter_engine::wire::request::Level;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::errors;
use crate::item_list::ItemList;
use crate::split_items::Split;

/// Who waits, as the link knows it: whose future, and which of its items.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter {
    pub(crate) slot: u32,
    pub(crate) place: u32,
}

/// What a future waits for.
pub(crate) enum Kind {
    Incr { detail: bool },
    List(Box<ListState>),
    Call,
    Confirmation,
}

/// A future that is not settled.
pub(crate) struct Pending {
    pub(crate) future: Py<PyAny>,
    pub(crate) kind: Kind,
    /// Nobody waits for it any more; the link is still to be told.
    pub(crate) is_abandoned: bool,
}

/// The results of a list of increments, as they come.
#[derive(Default)]
pub(crate) struct ListState {
    values: Vec<i64>,
    /// Place and number of the error.
    failed: Vec<(u32, u32)>,
    errors: Vec<Failure>,
    /// So many results are still due.
    left: usize,
    /// Of a part of a split list: whose, and which shard's.
    part_of: Option<(Arc<Split>, usize)>,
}

/// An error, and how to make it.
#[derive(PartialEq, Eq)]
struct Failure {
    /// `None`: the refusal that the caller of `withdraw` gave.
    code: Option<ErrorCode>,
    message: String,
}

impl ListState {
    /// Of items that were parsed: those that are wrong have their errors.
    pub(crate) fn new(items: &ItemList) -> Self {
        let mut state = Self { values: vec![0; items.len()], left: items.good(), ..Self::default() };
        for (place, code, message) in items.errors() {
            state.fail(*place, Some(*code), message);
        }
        state
    }

    /// Of a shard's part of a split list.
    pub(crate) fn of_part(split: &Arc<Split>, shard: usize) -> Self {
        let count = split.count(shard);
        Self { values: vec![0; count], left: count, part_of: Some((Arc::clone(split), shard)), ..Self::default() }
    }

    /// By place; 0 where there is an error.
    pub(crate) fn values(&self) -> &[i64] {
        &self.values
    }

    /// The places that have an error, in order.
    pub(crate) fn failed_places(&self) -> impl Iterator<Item = u32> {
        let mut places: Vec<u32> = self.failed.iter().map(|&(place, _)| place).collect();
        places.sort_unstable();
        places.into_iter()
    }

    /// Those that were withdrawn.
    pub(crate) fn withdrawn_places(&self) -> impl Iterator<Item = u32> {
        let is_withdrawn = |number: u32| self.errors.get(number as usize).is_some_and(|error| error.code.is_none());
        self.failed.iter().filter(move |&&(_, number)| is_withdrawn(number)).map(|&(place, _)| place)
    }

    /// Place and text, `code: message`, of the errors; withdrawn ones left out.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (u32, String)> {
        self.failed.iter().filter_map(|&(place, number)| {
            let failure = self.errors.get(number as usize)?;
            Some((place, format!("{}: {}", failure.code?.name(), failure.message)))
        })
    }

    fn fail(&mut self, place: u32, code: Option<ErrorCode>, message: &str) {
        // Nearly all errors of a list are one and the same.
        let is_same = self.errors.last().is_some_and(|last| last.code == code && last.message == message);
        if !is_same {
            self.errors.push(Failure { code, message: message.to_owned() });
        }
        self.failed.push((place, self.errors.len() as u32 - 1));
    }
}

/// Futures by slot.
#[derive(Default)]
pub(crate) struct Slots {
    entries: Vec<Option<Pending>>,
    free: Vec<u32>,
    abandoned: usize,
}

impl Slots {
    pub(crate) fn insert(&mut self, pending: Pending) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.entries[slot as usize] = Some(pending);
            return slot;
        }
        self.entries.push(Some(pending));
        self.entries.len() as u32 - 1
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<Pending> {
        let pending = self.entries.get_mut(slot as usize)?.take()?;
        self.abandoned -= usize::from(pending.is_abandoned);
        self.free.push(slot);
        Some(pending)
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Pending> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    /// Does this future wait there? The slot may be another's by now.
    pub(crate) fn is_of(&self, slot: u32, future: &Bound<'_, PyAny>) -> bool {
        self.entries.get(slot as usize).and_then(Option::as_ref).is_some_and(|one| one.future.is(future))
    }

    pub(crate) fn abandon(&mut self, slot: u32) {
        if let Some(pending) = self.get_mut(slot)
            && !pending.is_abandoned
        {
            pending.is_abandoned = true;
            self.abandoned += 1;
        }
    }

    /// How many are abandoned, and the link wasn't told.
    pub(crate) const fn abandoned(&self) -> usize {
        self.abandoned
    }

    pub(crate) fn futures(&self) -> impl Iterator<Item = &Py<PyAny>> {
        self.entries.iter().flatten().map(|one| &one.future)
    }

    /// Takes all of them.
    pub(crate) fn take_futures(&mut self) -> Vec<Option<Pending>> {
        self.free.clear();
        self.abandoned = 0;
        std::mem::take(&mut self.entries)
    }
}

enum Settled {
    Value(i64),
    Detail(i64, Level, u64),
    List(Box<ListState>),
    Reply(Vec<u8>),
    Nothing,
    /// An increment's error.
    Failed(Failure),
    /// A call's, `code: message`.
    ErrorText(String),
    /// Nobody waits for it.
    Dropped,
}

/// What was settled while the link was locked.
#[derive(Default)]
pub(crate) struct Outcomes {
    settled: Vec<(Pending, Settled)>,
    /// What `withdraw` refuses with.
    refusal: Option<Py<PyAny>>,
}

impl Outcomes {
    pub(crate) fn with_refusal(refusal: Py<PyAny>) -> Self {
        Self { settled: Vec::new(), refusal: Some(refusal) }
    }

    /// An operation has its outcome.
    #[inline]
    pub(crate) fn add(&mut self, slots: &mut Slots, waiter: Waiter, outcome: Outcome<'_>) {
        let Some(pending) = slots.get_mut(waiter.slot) else { return };
        let settled = match (&mut pending.kind, outcome) {
            (Kind::List(state), Outcome::Value { value, .. }) => {
                if let Some(place) = state.values.get_mut(waiter.place as usize) {
                    *place = value;
                }
                return self.count_down(slots, waiter.slot);
            }
            (Kind::List(state), Outcome::Error { code, message }) => {
                state.fail(waiter.place, Some(code), message);
                return self.count_down(slots, waiter.slot);
            }
            (Kind::Incr { detail: false }, Outcome::Value { value, .. }) => Settled::Value(value),
            (Kind::Incr { .. }, Outcome::Value { value, level, commit }) => Settled::Detail(value, level, commit),
            (Kind::Incr { .. }, Outcome::Error { code, message }) => {
                Settled::Failed(Failure { code: Some(code), message: message.to_owned() })
            }
            (_, Outcome::Error { code, message }) => Settled::ErrorText(format!("{}: {message}", code.name())),
            (_, Outcome::ErrorText(text)) => Settled::ErrorText(text.to_owned()),
            (Kind::Confirmation, _) => Settled::Nothing,
            (_, Outcome::Reply(bytes) | Outcome::ReplyAgain(bytes)) => Settled::Reply(bytes.to_vec()),
            (_, Outcome::Value { value, .. }) => Settled::Value(value),
        };
        self.finish(slots, waiter.slot, settled);
    }

    fn finish(&mut self, slots: &mut Slots, slot: u32, settled: Settled) {
        if let Some(pending) = slots.remove(slot) {
            self.settled.push((pending, settled));
        }
    }

    #[inline]
    fn count_down(&mut self, slots: &mut Slots, slot: u32) {
        if let Some(Pending { kind: Kind::List(state), .. }) = slots.get_mut(slot) {
            state.left -= 1;
            if state.left == 0 {
                self.finish_list(slots, slot);
            }
        }
    }

    /// All results of a list are there.
    pub(crate) fn finish_list(&mut self, slots: &mut Slots, slot: u32) {
        if let Some(Pending { kind: Kind::List(state), .. }) = slots.get_mut(slot) {
            let state = std::mem::take(state);
            self.finish(slots, slot, Settled::List(state));
        }
    }

    /// An increment was withdrawn.
    pub(crate) fn refuse(&mut self, slots: &mut Slots, waiter: Waiter) {
        match slots.get_mut(waiter.slot).map(|pending| &mut pending.kind) {
            Some(Kind::List(state)) => {
                state.fail(waiter.place, None, "");
                self.count_down(slots, waiter.slot);
            }
            Some(_) => {
                let refused = Settled::Failed(Failure { code: None, message: String::new() });
                self.finish(slots, waiter.slot, refused);
            }
            None => {}
        }
    }

    /// Tells the link of those for whom nobody waits.
    pub(crate) fn drop_abandoned(&mut self, link: &mut ShardLink<Waiter>, slots: &mut Slots) {
        let mut dropped = Vec::new();
        let entries = &slots.entries;
        let is_gone = |waiter: &Waiter| {
            entries.get(waiter.slot as usize).and_then(Option::as_ref).is_some_and(|pending| pending.is_abandoned)
        };
        link.abandon_waiters(is_gone, |waiter| dropped.push(waiter.slot));
        for slot in dropped {
            match slots.get_mut(slot).map(|pending| &mut pending.kind) {
                Some(Kind::List(state)) => {
                    state.left -= 1;
                    if state.left == 0 {
                        self.finish(slots, slot, Settled::Dropped);
                    }
                }
                Some(_) => self.finish(slots, slot, Settled::Dropped),
                None => {}
            }
        }
    }

    /// Settles the futures. The link must not be locked.
    pub(crate) fn settle(self, py: Python<'_>) {
        let refusal = self.refusal;
        for (pending, settled) in self.settled {
            let future = pending.future.bind(py);
            let done = match settled {
                Settled::Dropped => continue,
                Settled::Value(value) => set_result(future, value),
                Settled::Detail(value, level, commit) => set_result(future, (value, level.name(), commit)),
                Settled::Nothing => set_result(future, py.None()),
                Settled::Reply(bytes) => set_result(future, PyBytes::new(py, &bytes)),
                Settled::List(mut state) if state.part_of.is_some() => {
                    if let Some((split, shard)) = state.part_of.take() {
                        split.deposit(shard, state);
                    }
                    set_result(future, py.None())
                }
                Settled::List(state) => match results(py, *state, refusal.as_ref()) {
                    Ok(list) => set_result(future, list),
                    Err(error) => set_exception(future, error),
                },
                Settled::Failed(failure) => set_exception(future, exception(py, &failure, refusal.as_ref())),
                Settled::ErrorText(text) => set_exception(future, errors::from_wire(py, &text)),
            };
            if let Err(error) = done
                && !is_cancelled(future)
            {
                error.write_unraisable(py, Some(future));
            }
        }
    }
}

fn set_result<'py>(future: &Bound<'py, PyAny>, value: impl IntoPyObject<'py>) -> PyResult<()> {
    let py = future.py();
    future.call_method1(pyo3::intern!(py, "set_result"), (value.into_bound_py_any(py)?,)).map(drop)
}

fn set_exception(future: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
    let py = future.py();
    future.call_method1(pyo3::intern!(py, "set_exception"), (error.into_value(py),)).map(drop)
}

/// Its caller gave up in this turn.
fn is_cancelled(future: &Bound<'_, PyAny>) -> bool {
    future.call_method0(pyo3::intern!(future.py(), "done")).and_then(|done| done.extract()).unwrap_or(false)
}

fn exception(py: Python<'_>, failure: &Failure, refusal: Option<&Py<PyAny>>) -> PyErr {
    match (failure.code, refusal) {
        // The session has ended: to repeat it may count it twice.
        (Some(ErrorCode::UnknownOutcome), _) => errors::named(py, "SessionLost", (failure.message.as_str(),)),
        (Some(code), _) => errors::from_wire(py, &format!("{}: {}", code.name(), failure.message)),
        (None, Some(refusal)) => {
            refusal.call0(py).map_or_else(|error| error, |made| PyErr::from_value(made.into_bound(py)))
        }
        (None, None) => errors::from_wire(py, "unavailable: it was taken back: nothing was applied"),
    }
}

fn results<'py>(py: Python<'py>, state: ListState, refusal: Option<&Py<PyAny>>) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::new(py, state.values)?;
    for (place, number) in state.failed {
        if let Some(failure) = state.errors.get(number as usize) {
            list.set_item(place as usize, exception(py, failure, refusal).into_value(py))?;
        }
    }
    Ok(list)
}

/// What may be done with a call whose reply never came.
pub(crate) fn repeat_of(repeat: &str, until_ms: u64) -> PyResult<Repeat> {
    match repeat {
        "always" => Ok(Repeat::Always),
        "same_shard" => Ok(Repeat::SameShard { until_ms }),
        "never" => Ok(Repeat::Never),
        _ => Err(PyValueError::new_err(format!("repeat is always, same_shard or never, not {repeat:?}"))),
    }
}

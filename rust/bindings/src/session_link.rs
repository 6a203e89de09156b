//! `SessionLink`: a client's connection to one shard and the exactly-once session on it, for the event loop that owns it.
//!
//! The link holds its callers' futures. One mutex guards it. Outcomes are collected under the mutex and futures are
//! settled after releasing it, so no Python code runs under it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::shard_link::{LinkSettings, LinkViolation, Outcome, ShardLink};
use pycounter_engine::wire::request::Level;
use pyo3::exceptions::{PyConnectionError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::errors;
use crate::item_list::{ItemList, delta_of, key_of};
use crate::journaled_folder::level_of;
use crate::link_reports::{self, GivenUpRow, LostRow, UnknownRow, given_up_rows, lost_rows, unknown_rows};
use crate::pending::{Kind, ListState, Outcomes, Pending, Slots, Waiter, repeat_of};
use crate::router::{LoopCalls, session_ids};
use crate::shard::to_dict;
use crate::split_items::SplitItems;

/// Abandoned futures that may pile up before the link drops them.
const ABANDONED_MAX: usize = 64;

struct Inner {
    link: ShardLink<Waiter>,
    slots: Slots,
    /// `on_flush` is going to be called.
    is_flush_due: bool,
    /// The timer that the host has set, in milliseconds of the clock.
    armed_ms: Option<u64>,
    pending_max: usize,
    level: Level,
    timeout_us: u64,
}

/// A connection to one shard, and the session on it.
#[pyclass(frozen, module = "pycounter._native")]
pub struct SessionLink {
    inner: Mutex<Inner>,
    /// Set between `start` and `stop`.
    loop_calls: Mutex<Option<LoopCalls>>,
    clock: Py<PyAny>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic inside the engine is a bug that leaves one call half done; counting on would hide it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SessionLink {
    /// Microseconds of the clock.
    fn now_us(&self, py: Python<'_>) -> PyResult<u64> {
        Ok((self.clock.call0(py)?.extract::<f64>(py)? * 1e6) as u64)
    }

    /// Does something under the lock, and settles what that ended.
    fn change<R>(&self, py: Python<'_>, change: impl FnOnce(&mut Inner, &mut Outcomes) -> R) -> R {
        let mut outcomes = Outcomes::default();
        let result = change(&mut lock(&self.inner), &mut outcomes);
        outcomes.settle(py);
        result
    }

    /// Has the loop call `on_flush` in this turn, if it isn't going to.
    fn schedule_flush(&self, py: Python<'_>) -> PyResult<()> {
        if lock(&self.inner).is_flush_due {
            return Ok(());
        }
        let calls = lock(&self.loop_calls).as_ref().map(|it| (it.call_soon.clone_ref(py), it.on_flush.clone_ref(py)));
        if let Some((call_soon, on_flush)) = calls {
            lock(&self.inner).is_flush_due = true;
            call_soon.call1(py, (on_flush,))?;
        }
        Ok(())
    }

    /// A flush follows in this turn. Gives when a call that takes so long is late.
    fn begin_turn(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<u64> {
        if timeout_s.is_some() || !lock(&self.inner).is_flush_due {
            let now_us = self.now_us(py)?;
            lock(&self.inner).link.note_time(now_us);
        }
        self.schedule_flush(py)?;
        let inner = lock(&self.inner);
        let timeout_us = timeout_s.map_or(inner.timeout_us, |timeout_s| (timeout_s.max(0.0) * 1e6) as u64);
        Ok(inner.link.now_us().saturating_add(timeout_us) / 1000)
    }

    fn level(&self, level: Option<&str>) -> PyResult<Level> {
        level.map_or_else(|| Ok(lock(&self.inner).level), level_of)
    }
}

#[pymethods]
impl SessionLink {
    #[new]
    #[pyo3(signature = (*, clock, level = "durable", token = None, client = "pycounter", passage_to = None, timeout_s = 60.0,
        pending_operations_max = 50_000, gather_operations_max = 100, gather_s = 0.01, batch_operations_max = 1000,
        batch_bytes_max = 524_288, batches_in_flight_max = 8, window_operations_max = 9000,
        unconfirmed_operations_max = 200_000, reply_bytes_max = 67_108_864, backoff_first_s = 0.05, backoff_max_s = 1.0,
        silence_timeout_s = 30.0, session_window_s = 518_400.0, samples_max = 0, new_session_id = None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        clock: Py<PyAny>,
        level: &str,
        token: Option<Vec<u8>>,
        client: &str,
        passage_to: Option<String>,
        timeout_s: f64,
        pending_operations_max: usize,
        gather_operations_max: usize,
        gather_s: f64,
        batch_operations_max: usize,
        batch_bytes_max: usize,
        batches_in_flight_max: usize,
        window_operations_max: usize,
        unconfirmed_operations_max: u64,
        reply_bytes_max: usize,
        backoff_first_s: f64,
        backoff_max_s: f64,
        silence_timeout_s: f64,
        session_window_s: f64,
        samples_max: usize,
        new_session_id: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let counts = [
            gather_operations_max,
            batch_operations_max,
            batch_bytes_max,
            batches_in_flight_max,
            window_operations_max,
            pending_operations_max,
        ];
        if counts.contains(&0) || unconfirmed_operations_max == 0 {
            return Err(PyValueError::new_err("every bound must be above 0"));
        }
        let ms = |seconds: f64| (seconds * 1000.0).ceil().max(1.0) as u64;
        let mut settings = LinkSettings {
            token,
            client: client.to_owned(),
            passage_to,
            batch_operations_max,
            batch_bytes_max,
            batches_in_flight_max,
            window_operations_max,
            // The bound is on operations: whoever is over it waits for room.
            queue_bytes_max: usize::MAX / 2,
            reply_bytes_max,
            backoff_first_ms: ms(backoff_first_s),
            backoff_max_ms: ms(backoff_max_s),
            silence_timeout_ms: ms(silence_timeout_s),
            session_window_ms: ms(session_window_s),
            unconfirmed_operations_max,
            gather_ms: ms(gather_s),
            gather_operations_max,
            calls_overtake: true,
            names_operations: true,
            samples_max,
            ..LinkSettings::default()
        };
        if let Some(new_id) = new_session_id {
            settings.new_session_id = session_ids(new_id);
        }
        let inner = Inner {
            link: ShardLink::new(settings),
            slots: Slots::default(),
            is_flush_due: false,
            armed_ms: None,
            pending_max: pending_operations_max,
            level: level_of(level)?,
            timeout_us: (timeout_s * 1e6) as u64,
        };
        Ok(Self { inner: Mutex::new(inner), loop_calls: Mutex::default(), clock })
    }

    /// Goes to work: `on_flush` is called by `call_soon` once in each turn that has something to flush.
    fn start(&self, call_soon: Py<PyAny>, on_flush: Py<PyAny>) {
        let before = lock(&self.loop_calls).replace(LoopCalls { call_soon, on_flush });
        drop(before);
    }

    /// Calls nothing any more. Idempotent.
    fn stop(&self) {
        let calls = lock(&self.loop_calls).take();
        drop(calls);
    }

    // --- what is wanted ----------------------------------------------------------------------------------------------

    /// Adds to a counter. The future gets the value, or (value, level, commit) with `detail`. Gives the number to
    /// `abandon` it by, or -1: there is no room.
    #[pyo3(signature = (key, delta, future, level = None, detail = false, timeout_s = None))]
    #[allow(clippy::too_many_arguments, reason = "arguments in Python")]
    fn incr(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        delta: &Bound<'_, PyAny>,
        future: Py<PyAny>,
        level: Option<&str>,
        detail: bool,
        timeout_s: Option<f64>,
    ) -> PyResult<i64> {
        let wrong =
            |(code, message): (ErrorCode, String)| errors::from_wire(py, &format!("{}: {message}", code.name()));
        let (key, delta) = (key_of(key).map_err(wrong)?, delta_of(delta).map_err(wrong)?);
        let level = self.level(level)?;
        let deadline_ms = self.begin_turn(py, timeout_s)?;
        let mut inner = lock(&self.inner);
        if inner.link.unsettled() >= inner.pending_max {
            drop(inner);
            drop(future);
            return Ok(-1);
        }
        let Inner { link, slots, .. } = &mut *inner;
        let slot = slots.insert(Pending { future, kind: Kind::Incr { detail }, is_abandoned: false });
        // The only bound is the one above.
        let _ = link.incr(key, delta, level, deadline_ms, Waiter { slot, place: 0 });
        Ok(i64::from(slot))
    }

    /// Adds to many counters: pairs of key and delta. The future gets a list: for each its value, or its error. Whether
    /// there is room is not asked.
    #[pyo3(signature = (items, future, level = None, timeout_s = None))]
    fn incr_many(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyAny>,
        future: Py<PyAny>,
        level: Option<&str>,
        timeout_s: Option<f64>,
    ) -> PyResult<i64> {
        let level = self.level(level)?;
        let items = ItemList::parse(items)?;
        let deadline_ms = self.begin_turn(py, timeout_s)?;
        self.change(py, |inner, outcomes| {
            let Inner { link, slots, .. } = inner;
            let state = ListState::new(&items);
            let slot = slots.insert(Pending { future, kind: Kind::List(Box::new(state)), is_abandoned: false });
            for (place, key, delta) in items.iter() {
                let _ = link.incr_in_list(key, delta, level, deadline_ms, Waiter { slot, place });
            }
            if items.is_none_good() {
                outcomes.finish_list(slots, slot);
            }
            Ok(i64::from(slot))
        })
    }

    /// Adds to the counters of a shard's part of a split list. The future gets None once `SplitItems` has all outcomes.
    #[pyo3(signature = (split, shard, future, level = None, timeout_s = None))]
    fn incr_split(
        &self,
        py: Python<'_>,
        split: &SplitItems,
        shard: usize,
        future: Py<PyAny>,
        level: Option<&str>,
        timeout_s: Option<f64>,
    ) -> PyResult<i64> {
        let level = self.level(level)?;
        let split = &split.split;
        if split.count(shard) == 0 {
            return Err(PyValueError::new_err("that shard has no part of the list"));
        }
        let deadline_ms = self.begin_turn(py, timeout_s)?;
        let mut inner = lock(&self.inner);
        let Inner { link, slots, .. } = &mut *inner;
        let state = ListState::of_part(split, shard);
        let slot = slots.insert(Pending { future, kind: Kind::List(Box::new(state)), is_abandoned: false });
        for (place, (key, delta)) in split.part_items(shard).enumerate() {
            let _ = link.incr_in_list(key, delta, level, deadline_ms, Waiter { slot, place: place as u32 });
        }
        Ok(i64::from(slot))
    }

    /// Any other request; `params` is an encoded array. The future gets the result, encoded. `repeat` says what may be done
    /// when the reply doesn't come: `always`, `same_shard` (for `id_window_s`) or `never`.
    #[pyo3(signature = (method, params, repeat, future, timeout_s = None, id_window_s = 110.0))]
    #[allow(clippy::too_many_arguments, reason = "arguments in Python")]
    fn call(
        &self,
        py: Python<'_>,
        method: &str,
        params: &[u8],
        repeat: &str,
        future: Py<PyAny>,
        timeout_s: Option<f64>,
        id_window_s: f64,
    ) -> PyResult<i64> {
        let deadline_ms = self.begin_turn(py, Some(timeout_s.unwrap_or(f64::MAX / 1e7)))?;
        let mut inner = lock(&self.inner);
        let Inner { link, slots, .. } = &mut *inner;
        let until_ms = (link.now_us() / 1000).saturating_add((id_window_s * 1000.0) as u64);
        let repeat = repeat_of(repeat, until_ms)?;
        let slot = slots.insert(Pending { future, kind: Kind::Call, is_abandoned: false });
        let _ = link.call(method, params, repeat, deadline_ms, Waiter { slot, place: 0 });
        Ok(i64::from(slot))
    }

    /// The future gets None once all that is acknowledged now is durable, or reported as lost.
    #[pyo3(signature = (future, timeout_s = None))]
    fn confirm(&self, py: Python<'_>, future: Py<PyAny>, timeout_s: Option<f64>) -> PyResult<i64> {
        let deadline_ms = self.begin_turn(py, Some(timeout_s.unwrap_or(f64::MAX / 1e7)))?;
        let mut inner = lock(&self.inner);
        let Inner { link, slots, .. } = &mut *inner;
        let slot = slots.insert(Pending { future, kind: Kind::Confirmation, is_abandoned: false });
        if link.confirm(deadline_ms, Waiter { slot, place: 0 }).is_err() {
            let refused = slots.remove(slot);
            drop(inner);
            drop(refused);
            return Err(errors::named(py, "Overloaded", ("too many wait for what is durable already",)));
        }
        Ok(i64::from(slot))
    }

    /// Stops waiting for this future. An unsent operation is taken back. A sent one stays until it is settled, and is
    /// `unknown` until then.
    fn abandon(&self, py: Python<'_>, slot: i64, future: &Bound<'_, PyAny>) {
        self.change(py, |inner, outcomes| {
            let Inner { link, slots, .. } = inner;
            if let Some(slot) = u32::try_from(slot).ok().filter(|&slot| slots.is_of(slot, future)) {
                slots.abandon(slot);
                // Those that gave up are looked for all at once: here, and before anything is sent.
                if slots.abandoned() > ABANDONED_MAX.max(link.unsettled() / 2) {
                    outcomes.drop_abandoned(link, slots);
                }
            }
        });
    }

    /// Takes this share of the increments back that were never sent: their futures get the error that `refusal` makes.
    /// Gives how many these were.
    fn withdraw(&self, py: Python<'_>, share: f64, refusal: Py<PyAny>) -> usize {
        let mut outcomes = Outcomes::with_refusal(refusal);
        let count = {
            let mut inner = lock(&self.inner);
            let Inner { link, slots, .. } = &mut *inner;
            let before = link.unsettled();
            link.take_unsent(share, |_, _, _, _, waiter| outcomes.refuse(slots, waiter));
            before - link.unsettled()
        };
        outcomes.settle(py);
        count
    }

    // --- the connection ----------------------------------------------------------------------------------------------

    /// A connection was made: `flush` gives what to write first.
    fn connected(&self, py: Python<'_>) -> PyResult<()> {
        let now_us = self.now_us(py)?;
        let mut inner = lock(&self.inner);
        inner.link.note_time(now_us);
        inner.link.connected();
        Ok(())
    }

    /// Takes a chunk from the shard, and settles futures. What may be sent then leaves at the end of the turn, with what
    /// those that were answered add meanwhile.
    ///
    /// # Errors
    /// The connection can't be used any more: close it, and call `lost`.
    fn feed(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        let now_us = self.now_us(py)?;
        let fed = self.change(py, |inner, outcomes| {
            let Inner { link, slots, .. } = inner;
            link.note_time(now_us);
            link.feed(data, &mut |waiter, outcome| outcomes.add(slots, waiter, outcome))
        });
        match fed {
            Ok(()) => self.schedule_flush(py),
            Err(LinkViolation::Refused(text)) => Err(errors::from_wire(py, &text)),
            Err(violation @ LinkViolation::WrongShard { .. }) => {
                let message =
                    format!("{violation}: it was restored from a backup or is another; nothing is sent to it");
                Err(errors::named(py, "WrongShard", (message,)))
            }
            Err(violation) => Err(PyConnectionError::new_err(violation.to_string())),
        }
    }

    /// The bytes to write now. Called by `call_soon` as `start` arranges, and after `tick` and `connected`.
    fn flush<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let now_us = self.now_us(py)?;
        let mut out = Vec::new();
        self.change(py, |inner, outcomes| {
            let Inner { link, slots, is_flush_due, .. } = inner;
            *is_flush_due = false;
            link.note_time(now_us);
            if slots.abandoned() > 0 {
                outcomes.drop_abandoned(link, slots);
            }
            link.flush(&mut out);
        });
        Ok((!out.is_empty()).then(|| PyBytes::new(py, &out)))
    }

    /// Time has passed: tells whose time has run out. Gives what to write now.
    fn tick<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let now_us = self.now_us(py)?;
        self.change(py, |inner, outcomes| {
            let Inner { link, slots, armed_ms, .. } = inner;
            *armed_ms = None;
            link.note_time(now_us);
            link.tick(now_us / 1000, &mut |waiter, outcome| outcomes.add(slots, waiter, outcome));
        });
        self.flush(py)
    }

    /// In how many seconds `tick` is to be called, if that is sooner than was said before, or nothing was.
    fn next_wake(&self) -> Option<f64> {
        let mut inner = lock(&self.inner);
        let wake_ms = inner.link.next_wake_ms()?;
        if inner.armed_ms.is_some_and(|armed_ms| armed_ms <= wake_ms) {
            return None;
        }
        inner.armed_ms = Some(wake_ms);
        // A little late, so that the time has surely come.
        Some((wake_ms + 1).saturating_sub(inner.link.now_us() / 1000) as f64 / 1000.0)
    }

    /// The connection is gone, or couldn't be made, for this reason.
    fn lost(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        let now_us = self.now_us(py)?;
        self.change(py, |inner, outcomes| {
            let Inner { link, slots, .. } = inner;
            link.note_time(now_us);
            link.note_error(reason);
            link.lost(&mut |waiter, outcome| outcomes.add(slots, waiter, outcome));
        });
        Ok(())
    }

    /// The only identity that is accepted from now on.
    fn expect_identity(&self, identity: &str) {
        lock(&self.inner).link.expect_identity(identity);
    }

    /// The end of a settled session, to be written before the connection is closed. Nothing may be asked afterwards.
    fn goodbye<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let mut out = Vec::new();
        lock(&self.inner).link.say_goodbye(&mut out);
        PyBytes::new(py, &out)
    }

    /// Nothing can succeed any more: what was sent is unknown, and what wasn't gets `refusal`, which is `code: message`.
    fn give_up(&self, py: Python<'_>, reason: &str, refusal: &str) {
        let (code, message) = refusal.split_once(": ").unwrap_or(("unavailable", refusal));
        let code = ErrorCode::from_name(code).unwrap_or(ErrorCode::Unavailable);
        self.change(py, |inner, outcomes| {
            let Inner { link, slots, .. } = inner;
            let refused = Outcome::Error { code, message };
            link.abandon_with(reason, refused, &mut |waiter, outcome| outcomes.add(slots, waiter, outcome));
        });
    }

    // --- what it knows -----------------------------------------------------------------------------------------------

    /// Has the shard said who it is on the present connection?
    #[getter]
    fn ready(&self) -> bool {
        lock(&self.inner).link.is_ready()
    }

    /// Whether replies are due and nothing has arrived for so long that the connection should be closed.
    #[getter]
    fn silent(&self) -> bool {
        lock(&self.inner).link.is_silent()
    }

    /// The shard's, once it was met.
    #[getter]
    fn identity(&self) -> Option<String> {
        lock(&self.inner).link.identity().map(str::to_owned)
    }

    /// The shard's, which rises with each start of its process.
    #[getter]
    fn epoch(&self) -> Option<u64> {
        lock(&self.inner).link.epoch()
    }

    /// The newest commit of the shard that holds an increment of the session; 0: none.
    #[getter]
    fn commit_seen(&self) -> u64 {
        lock(&self.inner).link.commit_seen()
    }

    /// The present session's id.
    #[getter]
    fn session_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let id = lock(&self.inner).link.session_id();
        PyBytes::new(py, &id.0)
    }

    /// Increments that are accepted and not settled.
    #[getter]
    fn unsettled(&self) -> usize {
        lock(&self.inner).link.unsettled()
    }

    /// Unsettled increments that were sent.
    #[getter]
    fn pending(&self) -> usize {
        lock(&self.inner).link.pending()
    }

    /// Increments that were acknowledged at `applied` and are not known to be durable.
    #[getter]
    fn unconfirmed(&self) -> u64 {
        lock(&self.inner).link.unconfirmed()
    }

    /// The share of the latest increments that didn't fail with their batch; 1.0 where there are none.
    #[getter]
    fn success_rate(&self) -> f64 {
        lock(&self.inner).link.success_rate()
    }

    /// For how many seconds the oldest batch in flight has waited for its answer; None: none is in flight.
    fn in_flight_s(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        let now_us = self.now_us(py)?;
        let since_us = lock(&self.inner).link.in_flight_since_us();
        Ok(since_us.map(|since_us| now_us.saturating_sub(since_us) as f64 / 1e6))
    }

    /// Is there anything to take by `lost_tails`, `given_up` or `samples`?
    #[getter]
    fn news(&self) -> bool {
        lock(&self.inner).link.has_reports()
    }

    /// Increments that were sent and whose outcome nobody knows now: key, delta, seconds since it was sent, and the mark of
    /// its batch. A mark that isn't there any more is settled.
    fn unknown<'py>(&self, py: Python<'py>) -> PyResult<Vec<UnknownRow<'py>>> {
        let now_ms = self.now_us(py)? / 1000;
        let mut found = Vec::new();
        self.change(py, |inner, outcomes| {
            let Inner { link, slots, .. } = inner;
            if slots.abandoned() > 0 {
                outcomes.drop_abandoned(link, slots);
            }
            link.unknown(|key, delta, sent_at_ms, mark| found.push((key.to_vec(), delta, sent_at_ms, mark)));
        });
        Ok(unknown_rows(py, found, now_ms))
    }

    /// What was given up since the last call while nobody waited for it: key, delta, seconds since it was sent, and whether
    /// nobody can tell if it counted; it didn't count otherwise.
    fn given_up<'py>(&self, py: Python<'py>) -> PyResult<Vec<GivenUpRow<'py>>> {
        let now_ms = self.now_us(py)? / 1000;
        let taken = lock(&self.inner).link.take_given_up();
        Ok(given_up_rows(py, taken, now_ms))
    }

    /// Increments acknowledged at `applied` and lost in a crash, since the last call.
    fn lost_tails<'py>(&self, py: Python<'py>) -> Vec<LostRow<'py>> {
        let taken = lock(&self.inner).link.take_lost();
        lost_rows(py, taken)
    }

    /// How batches fared since the last call: seconds, and the code of the refusal.
    fn samples(&self) -> Vec<(f64, Option<&'static str>)> {
        let taken = lock(&self.inner).link.take_samples();
        taken.into_iter().map(|one| (one.latency_us as f64 / 1e6, one.failure.map(ErrorCode::name))).collect()
    }

    /// Figures since it was made, by name.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let own = lock(&self.inner).link.statistics();
        to_dict(py, link_reports::figures(&own))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.clock)?;
        // Where the lock is held, this very thread is in a call on the object: it isn't garbage.
        if let Ok(calls) = self.loop_calls.try_lock()
            && let Some(calls) = calls.as_ref()
        {
            visit.call(&calls.call_soon)?;
            visit.call(&calls.on_flush)?;
        }
        if let Ok(inner) = self.inner.try_lock() {
            for future in inner.slots.futures() {
                visit.call(future)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        self.stop();
        let futures = self.inner.try_lock().map(|mut inner| inner.slots.take_futures());
        drop(futures);
    }
}

//! The rules of exactly once, without input or output: which increments have which numbers, and what may be sent when.
//!
//! A batch goes through these states:
//!
//! ```text
//! queued -> numbered and sent -> answered
//!    ^            |  ^
//!    |            |  `-- sent again, under the same numbers, after a lost connection or a refusal
//!    `------------'  only where it is certain that no copy of it can count any more
//! ```
//!
//! What makes a retry safe is the pair of session and number, and only at the shard that knows the session. Two facts
//! about each numbered batch decide everything: whether an attempt is in flight on the present connection, and whether an
//! earlier attempt was never answered (`is_ambiguous`). A refusal settles a batch only if none was: then its numbers are
//! free again, if all behind it are, and it goes back to what was never sent.
//!
//! Where a session can't go on (the shard has forgotten it), ambiguous batches are told as unknown and never sent again;
//! the others move to a new session. A batch that the shard refuses for good (`too_large`) has used no numbers: nothing
//! after it can have been applied, so what was numbered behind it moves to a new session as well.
//!
//! At level `applied` an answer is not the end: a crash of the shard may take back what it had not written to disk. Each
//! session has an `AppliedTail` of such operations. A session that ends while it has one is *retired*: the shard isn't
//! told goodbye yet, as it must be able to say, after a crash, how much of the session is left.

use std::collections::VecDeque;

use super::applied_tail::AppliedTail;
use super::batches::{Batch, read_item};
use super::calls::split_error;
use super::queue::Queue;
use super::replies::{ItemResult, Results};
use super::reports::Reports;
use super::types::{LinkStatistics, LinkViolation, Outcome};
use crate::error_code::{Effect, ErrorCode};
use crate::planted_bug::{PlantedBug, is_planted};
use crate::wire::msgpack_rpc::reader::Reader;
use crate::wire::request::{Level, SessionId};

/// A batch that had to leave so many sessions is given up.
pub(super) const RENEWALS_MAX: u32 = 3;
/// With so many retired sessions nothing new is sent: each is asked for after a restart.
pub(super) const RETIRED_MAX: usize = 64;
/// So many sessions wait at most to be told goodbye; those beyond expire by themselves.
pub(super) const ENDED_MAX: usize = 64;

/// Refusals that look at the request and not at its operations: a part of the batch may be accepted.
const fn is_of_the_whole(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::TooLarge | ErrorCode::BadRequest)
}

/// After these the shard doesn't go on with the session.
const fn is_ending(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::SessionUnknown | ErrorCode::IdReused | ErrorCode::AlreadySettled | ErrorCode::Internal)
}

/// What the owner of a session has to do after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    /// Wait some time, then go on: the shard refused for now.
    Pause,
}

/// The numbered operations of a link at its shard.
pub(super) struct Session<T> {
    pub id: SessionId,
    /// Everything up to here is settled.
    pub acked_through: u64,
    pub in_flight: usize,
    /// Of sessions that have ended before all that they had acknowledged was known to be durable.
    pub retired: Vec<AppliedTail>,
    /// Sessions to say goodbye to.
    pub ended: Vec<SessionId>,
    pub statistics: LinkStatistics,
    /// What the owner is to be told beside the outcomes.
    pub reports: Reports,
    pub(super) next_sequence: u64,
    pub(super) tail: AppliedTail,
    /// Numbered, in order, from the first that isn't settled. Each has a serial, one after the other.
    pub(super) window: VecDeque<Batch<T>>,
    /// The serial of the window's first.
    pub(super) first_serial: u32,
    pub(super) window_operations: usize,
    /// Batches of the window that are neither answered nor in flight.
    pub(super) to_send_again: usize,
    /// Send nothing until what is in flight is answered, then send again from the first unanswered.
    pub(super) rewinding: bool,
    /// A batch of the window was refused for good.
    pub(super) is_any_refused: bool,
    /// Why this session can't go on.
    pub(super) ending: Option<String>,
    pub(super) window_operations_max: usize,
}

impl<T> Session<T> {
    /// Serials are at most this, then begin again.
    pub(super) const SERIAL_MAX: u32 = 0x3fff_ffff;

    pub(super) fn new(id: SessionId, window_operations_max: usize, reports: Reports) -> Self {
        Self {
            id,
            acked_through: 0,
            in_flight: 0,
            retired: Vec::new(),
            ended: Vec::new(),
            statistics: LinkStatistics::default(),
            reports,
            next_sequence: 1,
            tail: AppliedTail::new(id),
            window: VecDeque::new(),
            first_serial: 0,
            window_operations: 0,
            to_send_again: 0,
            rewinding: false,
            is_any_refused: false,
            ending: None,
            window_operations_max,
        }
    }

    pub(super) fn begin(&mut self, id: SessionId) {
        self.id = id;
        self.next_sequence = 1;
        self.acked_through = 0;
        self.tail = AppliedTail::new(id);
        self.window.clear();
        self.window_operations = 0;
        self.in_flight = 0;
        self.to_send_again = 0;
        self.rewinding = false;
        self.is_any_refused = false;
        self.ending = None;
    }

    // --- what to send ------------------------------------------------------------------------------------------------

    const fn serial(&self, index: usize) -> u32 {
        (self.first_serial.wrapping_add(index as u32)) & Self::SERIAL_MAX
    }

    /// The batch of a serial that is in flight.
    pub(super) fn find(&self, serial: u32) -> Option<usize> {
        let index = (serial.wrapping_sub(self.first_serial) & Self::SERIAL_MAX) as usize;
        self.window.get(index).filter(|batch| batch.in_flight).map(|_| index)
    }

    /// Call before the next two: after a refusal or a loss it finds out what is to be sent again.
    pub(super) fn prepare(&mut self, queue: &mut Queue<T>) {
        if !self.rewinding || self.in_flight > 0 {
            return;
        }
        self.rewinding = false;
        self.unnumber(queue);
        let is_forgotten = |batch: &Batch<T>| is_planted(PlantedBug::LinkForgetsSent) && batch.is_ambiguous;
        let again = self.window.iter().take_while(|batch| !batch.is_refused).filter(|batch| !batch.is_answered);
        let again = again.filter(|batch| !is_forgotten(batch));
        self.to_send_again = again.count();
    }

    /// What nobody can have applied, from the end on, goes back to what was never sent.
    fn unnumber(&mut self, queue: &mut Queue<T>) {
        while let Some(batch) = self.window.back()
            && !batch.is_answered
            && !batch.is_ambiguous
            && !batch.is_refused
            && !batch.in_flight
            && let Some(batch) = self.window.pop_back()
        {
            self.next_sequence = batch.first;
            self.window_operations -= batch.count;
            queue.give_back(batch);
        }
    }

    /// The order of the batch that is to be sent again next.
    pub(super) fn again_order(&self) -> Option<u64> {
        if self.to_send_again == 0 || self.rewinding {
            return None;
        }
        self.again_index().map(|index| self.window[index].order)
    }

    fn again_index(&self) -> Option<usize> {
        self.window.iter().position(|batch| !batch.is_answered && !batch.in_flight && !batch.is_refused)
    }

    /// Must what was never sent wait?
    pub(super) fn is_blocked(&self, count: usize) -> bool {
        self.rewinding
            || self.ending.is_some()
            || self.is_any_refused
            || self.to_send_again > 0
            || self.retired.len() >= RETIRED_MAX
            || (!self.window.is_empty() && self.window_operations + count > self.window_operations_max)
    }

    /// The batch that is to be sent again next, and its serial.
    pub(super) fn launch_again(&mut self, now_us: u64) -> Option<(&Batch<T>, u32)> {
        let index = self.again_index()?;
        self.to_send_again -= 1;
        self.in_flight += 1;
        let serial = self.serial(index);
        let batch = self.window.get_mut(index)?;
        batch.in_flight = true;
        batch.launched_at_us = now_us;
        self.statistics.batches_resent += 1;
        self.statistics.operations_resent += batch.count as u64;
        Some((batch, serial))
    }

    /// Numbers a batch that was never sent; it has its order.
    pub(super) fn launch(&mut self, mut batch: Batch<T>, now_us: u64) -> Option<(&Batch<T>, u32)> {
        if batch.sent_at_ms == 0 {
            batch.sent_at_ms = (now_us / 1000).max(1);
            self.statistics.batches += 1;
            self.statistics.operations_sent += batch.count as u64;
        }
        batch.launched_at_us = now_us;
        batch.first = self.next_sequence;
        batch.in_flight = true;
        self.next_sequence += batch.count as u64;
        self.window_operations += batch.count;
        self.in_flight += 1;
        let serial = self.serial(self.window.len());
        self.window.push_back(batch);
        self.window.back().map(|batch| (batch, serial))
    }

    // --- answers -----------------------------------------------------------------------------------------------------

    /// The shard applied the batch at this place of the window, now or before.
    pub(super) fn on_results(
        &mut self,
        index: usize,
        results: &Results<'_>,
        queue: &mut Queue<T>,
        new_id: impl FnOnce() -> SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) -> Result<(), LinkViolation> {
        let Some(batch) = self.window.get_mut(index) else { return Ok(()) };
        if results.count != batch.count {
            return Err(LinkViolation::Nonsense("results of another number of operations"));
        }
        batch.in_flight = false;
        self.in_flight -= 1;
        let &Results { level, commit, .. } = results;
        if level == Level::Durable || is_planted(PlantedBug::LinkTrustsApplied) {
            self.tail.answer_durably(batch.last());
        } else {
            let items = if self.reports.names_operations { batch.items.as_slice() } else { &[] };
            self.tail.answer(batch.first, batch.last(), items);
        }
        if is_planted(PlantedBug::LinkMixesAnswers) {
            batch.waiting.reverse();
        }
        let mut failed = 0;
        let mut items = Reader::new(if batch.abandoned > 0 { &batch.items } else { &[] });
        for ((place, result), one) in results.iter().enumerate().zip(&mut batch.waiting) {
            let item = read_item(&mut items);
            let outcome = match result {
                ItemResult::Value(value) => Outcome::Value { value, level, commit },
                ItemResult::Error(error) => {
                    if level == Level::Applied {
                        self.tail.refuse(batch.first + place as u64);
                    }
                    failed += 1;
                    let (code, message) = split_error(error);
                    Outcome::Error { code, message }
                }
            };
            match one.waiter.take() {
                Some(waiter) => done(waiter, outcome),
                None if matches!(outcome, Outcome::Error { .. }) => {
                    self.reports.give_up(item, batch.sent_at_ms, false);
                }
                None => {}
            }
        }
        self.statistics.operations_settled += batch.count as u64;
        self.statistics.operations_succeeded += batch.count as u64 - failed;
        self.statistics.operations_failed += failed;
        self.reports.count(batch.count as u64, 0);
        batch.is_answered = true;
        queue.release(batch);
        self.settle(queue, new_id, done);
        Ok(())
    }

    /// The shard refused a batch whole.
    pub(super) fn on_refusal(
        &mut self,
        index: usize,
        error: &str,
        queue: &mut Queue<T>,
        new_id: impl FnOnce() -> SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) -> Next {
        let Some(batch) = self.window.get_mut(index) else { return Next::GoOn };
        batch.in_flight = false;
        self.in_flight -= 1;
        self.statistics.batches_refused += 1;
        let (mut code, message) = split_error(error);
        batch.is_ambiguous |= code.effect() == Effect::Unknown;
        if code == ErrorCode::SessionUnknown && batch.first > 1 && self.tail.answered_max == 0 {
            // Before anything was answered, only the first batch can be told that the session is over. One behind it
            // finds that the session hasn't begun, as the first was refused or is late.
            code = ErrorCode::SequenceGap;
        }
        let mut next = Next::GoOn;
        if is_ending(code) {
            self.tail.may_be_forgotten |= code == ErrorCode::SessionUnknown;
            self.ending.get_or_insert_with(|| error.to_owned());
        } else if code.retryable() {
            batch.refusal = Some(code);
            self.rewinding = true;
            // A gap is only what another refusal or a lost connection leaves behind, but never ask in a tight circle.
            next = Next::Pause;
        } else if batch.is_ambiguous {
            let why = || format!("an attempt was not answered, and the next was refused: {error}");
            self.ending.get_or_insert_with(why);
        } else {
            batch.is_refused = true;
            self.is_any_refused = true;
            // A part of it may be accepted: it is cut when the session is renewed.
            if batch.count == 1 || !is_of_the_whole(code) {
                self.statistics.operations_settled += batch.count as u64;
                self.statistics.operations_failed += batch.count as u64;
                self.reports.count(0, batch.count as u64);
                answer(batch, Outcome::Error { code, message }, queue, &mut self.reports, done);
            }
            self.rewinding = true;
        }
        self.settle(queue, new_id, done);
        next
    }

    /// Forgets what is settled from the beginning; at a refused batch the rest moves to a new session.
    pub(super) fn settle(
        &mut self,
        queue: &mut Queue<T>,
        new_id: impl FnOnce() -> SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        while let Some(batch) = self.window.front()
            && batch.is_answered
            && !batch.is_refused
        {
            self.acked_through = batch.last();
            self.window_operations -= batch.count;
            self.first_serial = self.serial(1);
            self.window.pop_front();
        }
        if self.in_flight > 0 {
            return;
        }
        if self.window.front().is_some_and(|batch| batch.is_refused) {
            // Its numbers are free and will never be used, so nothing numbered behind it can count any more.
            let mut kept = Vec::new();
            for batch in std::mem::take(&mut self.window) {
                match batch {
                    batch if batch.is_answered => {}
                    batch if batch.is_refused => kept.extend(batch.split()),
                    batch => kept.push(batch),
                }
            }
            self.renew(kept, queue, new_id(), done);
        } else if self.ending.is_some() {
            self.finish_ending(queue, new_id(), done);
        }
    }

    // --- time --------------------------------------------------------------------------------------------------------

    /// Tells those whose time has run out; their operations stay.
    pub(super) fn tick(&mut self, now_ms: u64, done: &mut impl FnMut(T, Outcome<'_>)) {
        const LATE: Outcome<'static> = Outcome::Error {
            code: ErrorCode::Deadline,
            message: "the time ran out; it was sent and stays in the session: don't repeat it",
        };
        for batch in self.window.iter_mut().filter(|batch| batch.deadline_ms <= now_ms) {
            self.statistics.expired_sent += batch.expire(now_ms, |waiter| done(waiter, LATE));
        }
    }

    // --- what it knows -----------------------------------------------------------------------------------------------

    /// Numbered batches, in order, from the first that isn't settled.
    pub(super) fn window(&self) -> impl DoubleEndedIterator<Item = &Batch<T>> {
        self.window.iter()
    }

    /// The same, to be changed.
    pub(super) fn window_mut(&mut self) -> impl Iterator<Item = &mut Batch<T>> {
        self.window.iter_mut()
    }

    /// Is nothing numbered unanswered?
    pub(super) fn is_settled(&self) -> bool {
        self.window.is_empty()
    }

    /// Has anything been numbered?
    pub(super) const fn has_begun(&self) -> bool {
        self.next_sequence > 1
    }
}

/// All of a batch has one outcome.
pub(super) fn answer<T>(
    batch: &mut Batch<T>,
    outcome: Outcome<'_>,
    queue: &mut Queue<T>,
    reports: &mut Reports,
    done: &mut impl FnMut(T, Outcome<'_>),
) {
    batch.is_answered = true;
    let effect = match outcome {
        Outcome::Error { code, .. } => code.effect(),
        _ => Effect::Before,
    };
    let mut items = Reader::new(if batch.abandoned > 0 { &batch.items } else { &[] });
    for one in &mut batch.waiting {
        let item = read_item(&mut items);
        match one.waiter.take() {
            Some(waiter) => done(waiter, outcome),
            None if effect == Effect::Before => {}
            None => reports.give_up(item, batch.sent_at_ms, effect == Effect::Unknown),
        }
    }
    queue.release(batch);
}

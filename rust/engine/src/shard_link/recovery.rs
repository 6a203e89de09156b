//! How a session goes on after a lost connection, a crash of the shard, or its own end.

use std::fmt::Write as _;

use super::applied_tail::AppliedTail;
use super::batches::Batch;
use super::queue::Queue;
use super::reports::Reports;
use super::session::{ENDED_MAX, RENEWALS_MAX, Session, answer};
use super::types::{LinkStatistics, Outcome};
use crate::error_code::ErrorCode;
use crate::planted_bug::{PlantedBug, is_planted};
use crate::wire::request::SessionId;

impl<T> Session<T> {
    /// What was in flight may or may not have arrived.
    pub(super) fn on_disconnect(
        &mut self,
        queue: &mut Queue<T>,
        new_id: impl FnOnce() -> SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        for batch in self.window.iter_mut().filter(|batch| batch.in_flight) {
            batch.in_flight = false;
            batch.is_ambiguous = !is_planted(PlantedBug::LinkTakesSentForUnsent);
        }
        self.in_flight = 0;
        self.rewinding = true;
        if is_planted(PlantedBug::LinkRenewsSession) {
            let window = std::mem::take(&mut self.window);
            let kept = window.into_iter().filter(|batch| !batch.is_answered).collect();
            self.renew(kept, queue, new_id(), done);
            return;
        }
        self.settle(queue, new_id, done);
        self.prepare(queue);
    }

    /// What `hello` says on a new connection: the last number that the shard has (`None`: it doesn't know the session),
    /// and whether no request of an earlier connection can arrive any more, as the shard's process is another.
    pub(super) fn on_resume(
        &mut self,
        last_sequence: Option<u64>,
        restarted: bool,
        queue: &mut Queue<T>,
        new_id: impl FnOnce() -> SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        let last = last_sequence.unwrap_or(0);
        if !restarted && !self.is_behind(last_sequence) {
            let covered = self.acknowledged();
            self.confirm(&covered);
        }
        if last >= self.next_sequence {
            let sent = self.next_sequence - 1;
            self.statistics.operations_unknown += self.tail.clear();
            self.end(format!("the shard has {last} operations of it, but only {sent} were sent"), queue, new_id, done);
        } else if last < self.tail.confirmed_through {
            // Without a restart nothing was lost: the session was ended or has expired, and what counted, counted.
            judge(&mut self.statistics, &mut self.reports, &mut self.tail, last_sequence);
            self.end("the shard does not know it any more".into(), queue, new_id, done);
        } else if last < self.tail.answered_max {
            judge(&mut self.statistics, &mut self.reports, &mut self.tail, last_sequence);
            self.leave_behind(last, restarted, queue, new_id(), done);
        } else {
            self.tail.confirm(last);
            self.rewinding = true;
            if restarted && last_sequence.is_some() {
                // It knows the session, hasn't got these, and no copy is left that could arrive.
                for batch in &mut self.window {
                    batch.is_ambiguous &= batch.first <= last;
                }
            }
        }
        self.prepare(queue);
    }

    /// Acknowledged operations are gone: settles the unanswered ones against what is left.
    fn leave_behind(
        &mut self,
        last: u64,
        restarted: bool,
        queue: &mut Queue<T>,
        new_id: SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        const LOST: &str = "it was applied, but its result was lost in a crash of the shard";
        let mut kept = Vec::new();
        for mut batch in std::mem::take(&mut self.window) {
            if batch.is_answered {
                continue;
            }
            if batch.last() <= last {
                self.statistics.operations_settled += batch.count as u64;
                let settled = Outcome::Error { code: ErrorCode::AlreadySettled, message: LOST };
                answer(&mut batch, settled, queue, &mut self.reports, done);
            } else if batch.first > last && (restarted || !batch.is_ambiguous) {
                kept.push(batch);
            } else {
                self.give_up(batch, "the shard lost a part of it in a crash", queue, done);
            }
        }
        self.renew(kept, queue, new_id, done);
    }

    // --- what was acknowledged at applied ----------------------------------------------------------------------------

    /// Is anything acknowledged at `applied` and not known to be durable?
    pub(super) fn is_unconfirmed(&self) -> bool {
        !self.retired.is_empty() || !self.tail.is_empty()
    }

    /// How much that is.
    pub(super) fn unconfirmed_operations(&self) -> u64 {
        self.retired.iter().chain([&self.tail]).map(|tail| tail.operations).sum()
    }

    /// What is acknowledged now: a reply to a request sent now that waits for a commit confirms it.
    pub(super) fn acknowledged(&self) -> Vec<(SessionId, u64)> {
        self.retired.iter().chain([&self.tail]).map(|tail| (tail.session, tail.answered_max)).collect()
    }

    /// The barrier was answered, by the process of the shard that acknowledged all of it.
    pub(super) fn confirm(&mut self, covered: &[(SessionId, u64)]) {
        for &(session, through) in covered {
            if let Some(tail) = self.retired.iter_mut().chain([&mut self.tail]).find(|tail| tail.session == session) {
                tail.confirm(through);
            }
        }
        let ended = self.retired.extract_if(.., |tail| tail.is_empty()).map(|tail| tail.session).collect::<Vec<_>>();
        ended.into_iter().for_each(|session| self.say_goodbye(session));
    }

    fn say_goodbye(&mut self, session: SessionId) {
        if self.ended.len() < ENDED_MAX {
            self.ended.push(session);
        }
    }

    /// Does the shard know the session, and less of it than it acknowledged?
    pub(super) fn is_behind(&self, last_sequence: Option<u64>) -> bool {
        last_sequence.is_some_and(|last| last < self.tail.answered_max)
    }

    /// After a crash of the shard: what `hello` says of the oldest retired session. To be told before `on_resume`.
    pub(super) fn resolve(&mut self, last_sequence: Option<u64>) {
        if !self.retired.is_empty() {
            let mut tail = self.retired.remove(0);
            judge(&mut self.statistics, &mut self.reports, &mut tail, last_sequence);
            self.say_goodbye(tail.session);
        }
    }

    fn forget_tails(&mut self) {
        for tail in self.retired.iter_mut().chain([&mut self.tail]) {
            self.statistics.operations_unknown += tail.clear();
        }
        self.retired.clear();
    }

    // --- ends --------------------------------------------------------------------------------------------------------

    /// The session has no future at the shard that answers now, or none at all: tells what was sent as unknown. What
    /// nobody can have applied goes back to what was never sent.
    pub(super) fn abandon(
        &mut self,
        reason: &str,
        queue: &mut Queue<T>,
        new_id: SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        self.forget_tails();
        for batch in &mut self.window {
            batch.is_ambiguous |= batch.in_flight;
        }
        self.ending = Some(reason.to_owned());
        self.finish_ending(queue, new_id, done);
        // Whoever it was that knew them isn't there any more.
        self.ended.clear();
    }

    /// The shard may have forgotten the session, and nobody asked it for too long.
    pub(super) fn expire(
        &mut self,
        queue: &mut Queue<T>,
        new_id: impl FnOnce() -> SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        for tail in self.retired.iter_mut().chain([&mut self.tail]) {
            tail.may_be_forgotten = true;
        }
        self.end("there was no answer for longer than the shard keeps a session".into(), queue, new_id, done);
    }

    fn end(
        &mut self,
        reason: String,
        queue: &mut Queue<T>,
        new_id: impl FnOnce() -> SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        self.ending.get_or_insert(reason);
        if self.in_flight == 0 {
            self.finish_ending(queue, new_id(), done);
        }
    }

    /// Nothing is in flight: it is clear which batches are ambiguous.
    pub(super) fn finish_ending(
        &mut self,
        queue: &mut Queue<T>,
        new_id: SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        let reason = self.ending.take().unwrap_or_default();
        let mut kept = Vec::new();
        for batch in std::mem::take(&mut self.window) {
            if batch.is_answered {
                continue;
            }
            if batch.is_ambiguous {
                self.give_up(batch, &reason, queue, done);
            } else {
                kept.push(batch);
            }
        }
        self.ending = Some(reason);
        self.renew(kept, queue, new_id, done);
    }

    fn give_up(
        &mut self,
        mut batch: Batch<T>,
        reason: &str,
        queue: &mut Queue<T>,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        self.statistics.operations_unknown += batch.count as u64;
        self.statistics.operations_failed += batch.count as u64;
        self.reports.count(0, batch.count as u64);
        let mut message = String::from("session ");
        for byte in self.id.0 {
            let _ = write!(message, "{byte:02x}");
        }
        let (first, last) = (batch.first, batch.last());
        let _ = write!(message, " has ended ({reason}); it is unknown whether operations {first} to {last} ");
        if let Some((key, delta, _)) = batch.iter().next().filter(|_| self.reports.names_operations) {
            let _ = write!(message, "(the first {} {delta:+}) ", key.escape_ascii());
        }
        message.push_str("counted, and they are not sent again");
        let unknown = Outcome::Error { code: ErrorCode::UnknownOutcome, message: &message };
        answer(&mut batch, unknown, queue, &mut self.reports, done);
    }

    /// Begins a new session with batches of which no copy can count any more, before what is queued.
    pub(super) fn renew(
        &mut self,
        kept: Vec<Batch<T>>,
        queue: &mut Queue<T>,
        new_id: SessionId,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        let reason = self.ending.take().unwrap_or_default();
        if self.next_sequence > 1 {
            self.statistics.sessions_renewed += 1;
            let tail = std::mem::replace(&mut self.tail, AppliedTail::new(new_id));
            if tail.is_empty() {
                self.say_goodbye(tail.session);
            } else {
                self.retired.push(tail);
            }
        }
        self.begin(new_id);
        for mut batch in kept.into_iter().rev() {
            batch.renewals += 1;
            if batch.renewals <= RENEWALS_MAX {
                queue.give_back(batch);
            } else {
                let message = format!("no session lasts at this shard ({reason}); nothing was applied");
                let nothing = Outcome::Error { code: ErrorCode::Unavailable, message: &message };
                self.statistics.operations_failed += batch.count as u64;
                self.reports.count(0, batch.count as u64);
                answer(&mut batch, nothing, queue, &mut self.reports, done);
            }
        }
    }
}

/// Counts what of a tail is lost after a crash that left its session at this number.
fn judge(statistics: &mut LinkStatistics, reports: &mut Reports, tail: &mut AppliedTail, last_sequence: Option<u64>) {
    if tail.is_unknown(last_sequence) {
        statistics.operations_unknown += tail.clear();
    } else {
        let lost = tail.take_lost(last_sequence.unwrap_or(0));
        statistics.operations_lost += lost.count;
        reports.lose(lost);
    }
}

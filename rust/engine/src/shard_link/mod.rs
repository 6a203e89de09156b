//! One connection to one shard and the exactly-once session on it, without the socket: what is written, and what replies
//! mean. Coordinators use it, and clients.
//!
//! Increments gather into `apply` batches of a session at that shard, in order with all other requests. In each turn of its
//! loop the host calls `incr` and `call` for what is wanted, `feed` for what the shard sent, and at the end `flush`, whose
//! bytes count as sent. `tick` moves time: some times a second, or at `next_wake_ms`. When the connection ends, the host
//! calls `lost`; after the next one was made, `connected`. What is unsettled goes on by the rules of `session`, `recovery`
//! and `calls`.
//!
//! One thread, the host's, owns it. It has no clock: `tick` and `note_time` say what time it is.

mod applied_tail;
mod asking;
mod batches;
mod calls;
mod halves;
mod invariants;
mod knowledge;
mod queue;
mod receiving;
mod recovery;
mod replies;
mod reports;
mod sending;
mod session;
#[cfg(test)]
mod tests;
mod types;

use crate::error_code::ErrorCode;
use crate::planted_bug::{PlantedBug, is_planted};
use crate::wire::msgpack_rpc::FrameScanner;
use crate::wire::request::SessionId;
use calls::Calls;
pub(crate) use calls::split_error;
use halves::Halves;
use queue::{Entry, Queue};
use reports::Reports;
use session::Session;
pub use types::{GivenUp, LinkSample, LostTail};
pub use types::{LinkSettings, LinkStatistics, LinkViolation, Outcome, Repeat};

/// The two highest bits of a msgid say what it belongs to: nothing for calls.
const BATCH: u32 = 0x8000_0000;
/// The msgid of `hello`, of which one at most is under way.
const HELLO: u32 = 0x4000_0000;

/// How far the present connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// There is none, or it can't be used any more.
    Down,
    /// To be greeted, with this session.
    Greet(SessionId),
    /// The shard was asked who it is and where this session is.
    Greeting(SessionId),
    /// It is known who it is and where each session is: requests may be sent.
    Ready,
}

/// What the shard said of itself while retired sessions are still asked for.
#[derive(Debug, Clone, Copy)]
struct Met {
    epoch: u64,
    last_sequence: Option<u64>,
    restarted: bool,
}

/// Somebody who waits until what was acknowledged is durable.
#[derive(Debug)]
struct Confirming<T> {
    waiter: T,
    deadline_ms: u64,
    /// The question that is under way covers all that was acknowledged when this began.
    is_asked: bool,
}

/// So many wait at most until what was acknowledged is durable.
const CONFIRMING_MAX: usize = 100_000;

/// The state machine of one connection. `T` is who waits for an operation.
pub struct ShardLink<T> {
    settings: LinkSettings,
    session: Session<T>,
    calls: Calls<T>,
    queue: Queue<T>,
    stage: Stage,
    met: Option<Met>,
    /// The shard's, since it was met first.
    identity: Option<String>,
    expected_identity: Option<String>,
    epoch: Option<u64>,
    /// The newest commit that the shard answered an increment of the session with.
    commit_seen: u64,
    last_error: String,
    now_ms: u64,
    now_us: u64,
    /// Who wants to know that what was acknowledged is durable.
    confirming: Vec<Confirming<T>>,
    /// Where batches of durable increments leave at half of the callers.
    halves: Halves,
    /// With so many durable increments gathered, they leave at once.
    gather_full: usize,
    /// The shard refused something for now: no batch is sent before this.
    resume_at_ms: u64,
    /// Refusals for now since the last result.
    refusals: u32,
    /// State of the pauses' chance.
    chance: u64,
    /// The next time to ask for what is durable, and what the question under way covers.
    confirm_at_ms: u64,
    /// After a refusal to say what is durable, it is not asked before this.
    confirm_not_before_ms: u64,
    barrier: Option<Vec<(SessionId, u64)>>,
    order: u64,
    /// Received and not yet consumed: a part of a reply.
    input: Vec<u8>,
    scanner: FrameScanner,
    /// The scanner, and not the reader, decides when the reply at the start of `input` is whole.
    is_scanning: bool,
    /// When bytes came last, or something was asked while nothing was.
    heard_at_ms: u64,
    /// When the shard last answered anything; 0: never.
    answered_at_ms: u64,
}

impl<T> ShardLink<T> {
    /// A link that has no connection yet.
    #[must_use]
    pub fn new(settings: LinkSettings) -> Self {
        let id = (settings.new_session_id)();
        let chance = id.0.iter().fold(1, |sum: u64, &byte| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
        Self {
            session: Session::new(
                id,
                settings.window_operations_max,
                Reports::new(settings.names_operations, settings.samples_max),
            ),
            gather_full: settings.gather_operations_max,
            settings,
            calls: Calls::new(),
            queue: Queue::new(),
            stage: Stage::Down,
            met: None,
            identity: None,
            expected_identity: None,
            epoch: None,
            commit_seen: 0,
            last_error: String::new(),
            now_ms: 0,
            now_us: 0,
            confirming: Vec::new(),
            halves: Halves::default(),
            resume_at_ms: 0,
            refusals: 0,
            chance: chance | 1,
            confirm_at_ms: 0,
            confirm_not_before_ms: 0,
            barrier: None,
            order: 0,
            input: Vec::new(),
            scanner: FrameScanner::default(),
            is_scanning: false,
            heard_at_ms: 0,
            answered_at_ms: 0,
        }
    }

    // --- the connection ----------------------------------------------------------------------------------------------

    /// A connection was made: the next `flush` greets the shard.
    pub fn connected(&mut self) {
        self.stage = Stage::Greet(self.session.id);
        self.met = None;
        self.barrier = None;
        self.input.clear();
        self.scanner.reset();
        self.is_scanning = false;
        self.heard_at_ms = self.now_ms;
    }

    /// The connection ended, or couldn't be made; may be called more than once. What was sent may have arrived or not.
    pub fn lost(&mut self, done: &mut impl FnMut(T, Outcome<'_>)) {
        if self.stage != Stage::Down {
            self.session.statistics.losses += 1;
            if self.session.in_flight > 0 {
                self.session.reports.sample(LinkSample { latency_us: 0, failure: Some(ErrorCode::Unavailable) });
            }
        }
        self.stage = Stage::Down;
        self.met = None;
        self.barrier = None;
        self.input = Vec::new();
        let new_id = &self.settings.new_session_id;
        self.session.on_disconnect(&mut self.queue, || new_id(), done);
        self.calls.lose(done);
        self.confirming.iter_mut().for_each(|one| one.is_asked = false);
        self.check();
    }

    /// The only identity that is accepted from now on, 32 hexadecimal digits; else any is.
    pub fn expect_identity(&mut self, identity: &str) {
        self.expected_identity = Some(identity.to_owned());
    }

    /// What the server is sent from the next connection on.
    pub fn set_token(&mut self, token: Option<Vec<u8>>) {
        self.settings.token = token;
    }

    /// Why no connection could be made: told to those whose time runs out.
    pub fn note_error(&mut self, error: &str) {
        error.clone_into(&mut self.last_error);
    }

    // --- time --------------------------------------------------------------------------------------------------------

    /// What time it is, in microseconds: before anything else in a turn of the loop where latencies matter.
    pub fn note_time(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        self.now_ms = self.now_us / 1000;
    }

    /// What time it is, some times a second. Operations whose deadline has passed are told so: those that were never
    /// sent, or that the shard refused, were not applied; those that were sent stay until they are settled.
    pub fn tick(&mut self, now_ms: u64, done: &mut impl FnMut(T, Outcome<'_>)) {
        self.note_time(now_ms * 1000);
        let now_ms = self.now_ms;
        self.session.tick(now_ms, done);
        let (queue, statistics) = (&mut self.queue, &mut self.session.statistics);
        self.calls.tick(now_ms, statistics, done);
        let (is_ready, last_error) = (self.stage == Stage::Ready, &self.last_error);
        let unreachable = || match last_error.as_str() {
            _ if is_ready => "the shard didn't take it in time: nothing was applied".to_owned(),
            "" => "the shard can't be reached: nothing was applied".to_owned(),
            error => format!("the shard can't be reached ({error}): nothing was applied"),
        };
        let before = statistics.expired_unsent;
        let expired = &mut statistics.expired_unsent;
        queue.change_batches(|batch| {
            if batch.deadline_ms > now_ms {
                return;
            }
            let (code, message) = match batch.refusal {
                Some(code) => (code, format!("{}: nothing was applied", code.meaning())),
                None => (ErrorCode::Unavailable, unreachable()),
            };
            batch.take(
                |one| one.deadline_ms <= now_ms,
                |_, _, _, waiter| {
                    *expired += 1;
                    done(waiter, Outcome::Error { code, message: &message });
                },
            );
        });
        let failed = *expired - before;
        statistics.operations_failed += failed;
        self.session.reports.count(0, failed);
        queue.take_expired_calls(now_ms, |mut call| {
            if let Some(waiter) = call.waiter.take() {
                *expired += 1;
                done(waiter, Outcome::Error { code: ErrorCode::Unavailable, message: &unreachable() });
            }
        });
        for one in self.confirming.extract_if(.., |one| one.deadline_ms <= now_ms) {
            const LATE: &str = "the time ran out before what was acknowledged was known to be durable";
            done(one.waiter, Outcome::Error { code: ErrorCode::Deadline, message: LATE });
        }
        self.check();
    }

    /// When `tick` and `flush` have something to do, if nothing else happens before; `None`: never.
    #[must_use]
    pub fn next_wake_ms(&self) -> Option<u64> {
        let queued = self.queue.iter().filter_map(|entry| match entry {
            Entry::Batch(batch) => Some(batch.deadline_ms),
            Entry::Call(_) => None,
        });
        let sent = self.session.window().map(|batch| batch.deadline_ms);
        let confirming = self.confirming.iter().map(|one| one.deadline_ms);
        let mut wake = self.calls.next_wake_ms(self.now_ms).min(self.queue.call_deadline_ms);
        wake = queued.chain(sent).chain(confirming).fold(wake, u64::min);
        if self.stage == Stage::Ready {
            if self.is_paused() {
                wake = wake.min(self.resume_at_ms);
            }
            if self.barrier.is_none() && (self.session.is_unconfirmed() || !self.confirming.is_empty()) {
                let at = if self.confirming.is_empty() { self.confirm_at_ms } else { self.confirm_not_before_ms };
                wake = wake.min(at.max(self.confirm_not_before_ms));
            }
            if self.is_holding() {
                wake = wake.min(self.queue.hold_until_ms);
            }
        }
        if self.stage != Stage::Down && self.is_waiting() {
            wake = wake.min(self.heard_at_ms + self.settings.silence_timeout_ms + 1);
        }
        Some(wake).filter(|&wake| wake < u64::MAX)
    }

    /// Whether replies are due and nothing has arrived for so long that the connection should be closed.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.stage != Stage::Down
            && self.is_waiting()
            && self.now_ms.saturating_sub(self.heard_at_ms) > self.settings.silence_timeout_ms
            && !is_planted(PlantedBug::LinkWaitsForever)
    }

    /// Is any reply due?
    fn is_waiting(&self) -> bool {
        self.session.in_flight > 0
            || self.calls.is_any_in_flight()
            || self.barrier.is_some()
            || matches!(self.stage, Stage::Greet(_) | Stage::Greeting(_))
    }

    // --- the end -----------------------------------------------------------------------------------------------------

    /// Is nothing accepted that has no outcome, and nothing acknowledged that a crash of the shard could take back?
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.calls.is_empty() && self.session.is_settled() && !self.session.is_unconfirmed()
    }

    /// Ends a settled session at the shard; nothing may be asked afterwards.
    pub fn say_goodbye(&mut self, out: &mut Vec<u8>) {
        if self.stage == Stage::Ready && self.is_settled() {
            self.session.ended.drain(..).for_each(|session| sending::write_goodbye(session, out));
            if self.session.has_begun() {
                sending::write_goodbye(self.session.id, out);
            }
        }
    }

    /// Gives everything up: sent operations fail as `unknown_outcome`, unsent ones as `unavailable`.
    pub fn abandon(&mut self, reason: &str, done: &mut impl FnMut(T, Outcome<'_>)) {
        let message = format!("{reason}: nothing was applied");
        self.abandon_with(reason, Outcome::Error { code: ErrorCode::Unavailable, message: &message }, done);
    }

    /// Gives everything up: sent operations fail as `unknown_outcome`, unsent ones as `refusal`.
    pub fn abandon_with(&mut self, reason: &str, refusal: Outcome<'_>, done: &mut impl FnMut(T, Outcome<'_>)) {
        self.lost(done);
        let new_id = (self.settings.new_session_id)();
        self.session.abandon(reason, &mut self.queue, new_id, done);
        self.calls.abandon(reason, done);
        let mut failed = 0;
        self.take_unsent(1.0, |_, _, _, _, waiter| {
            failed += 1;
            done(waiter, refusal);
        });
        self.session.statistics.operations_failed += failed;
        self.session.reports.count(0, failed);
        // Those that are left were sent once, came back, and have nobody waiting for them.
        let reports = &mut self.session.reports;
        self.queue.change_batches(|batch| {
            batch.iter().for_each(|(key, delta, _)| reports.give_up(Some((key, delta)), batch.sent_at_ms, false));
            batch.clear();
        });
        for call in self.queue.take_calls() {
            if let Some(waiter) = call.waiter {
                done(waiter, refusal);
            }
        }
        for one in self.confirming.drain(..) {
            done(one.waiter, refusal);
        }
        self.check();
    }
}

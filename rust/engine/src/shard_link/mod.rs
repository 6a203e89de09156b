//! A coordinator's one connection to one shard, without the socket: what is written to it, and what its replies mean.
//!
//! Increments gather into `apply` batches of the coordinator's own session at that shard, in order with all other
//! requests. The host calls, in each turn of its loop: `incr` and `call` for what clients want, `feed` for what the shard
//! sent, `tick` some times a second, and at the end `flush`, whose bytes count as sent. When the connection ends it calls
//! `lost`, and after the next one was made `connected`: what is unsettled goes on by the rules of `session` and
//! `calls`.
//!
//! One thread, the host's, owns it. There is no clock inside: `tick` says what time it is.

mod applied_tail;
mod batches;
mod calls;
mod queue;
mod receiving;
mod recovery;
mod replies;
mod sending;
mod session;
#[cfg(test)]
mod tests;
mod types;

use crate::error_code::ErrorCode;
use crate::wire::msgpack_rpc::FrameScanner;
use crate::wire::request::{Level, SessionId};
pub(crate) use calls::split_error;
use calls::{Call, Calls};
use queue::Queue;
use session::Session;
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
    /// The shard refused something for now: no batch is sent before this.
    resume_at_ms: u64,
    /// Refusals for now since the last result.
    refusals: u32,
    /// State of the pauses' chance.
    chance: u64,
    /// The next time to ask for what is durable, and what the question under way covers.
    confirm_at_ms: u64,
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
            session: Session::new(id, settings.window_operations_max),
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
            resume_at_ms: 0,
            refusals: 0,
            chance: chance | 1,
            confirm_at_ms: 0,
            barrier: None,
            order: 0,
            input: Vec::new(),
            scanner: FrameScanner::default(),
            is_scanning: false,
            heard_at_ms: 0,
            answered_at_ms: 0,
        }
    }

    // --- what clients want -------------------------------------------------------------------------------------------

    /// Accepts an increment; `key` has 1 to 1,024 bytes. It is sent with the next `flush`, or later.
    ///
    /// # Errors
    /// What is unsettled fills the bound: gives back `waiter`, and nothing was done (`overloaded`).
    #[inline]
    pub fn incr(&mut self, key: &[u8], delta: i64, level: Level, deadline_ms: u64, waiter: T) -> Result<(), T> {
        if self.memory_bytes() + batches::memory_of::<T>(key.len()) > self.settings.queue_bytes_max {
            return Err(waiter);
        }
        let settings = &self.settings;
        let batch = self.queue.open_batch(level, settings.batch_operations_max, settings.batch_bytes_max);
        let before = batch.memory_bytes();
        batch.push(key, delta, deadline_ms, waiter);
        let grown = batch.memory_bytes() - before;
        self.queue.batch_bytes += grown;
        self.session.statistics.operations += 1;
        Ok(())
    }

    /// Accepts any other request, behind the increments before it. Only while the shard refuses increments for now does
    /// it overtake those that were never sent.
    ///
    /// `params` is an encoded array.
    ///
    /// # Errors
    /// What is unsettled fills the bound: gives back `waiter`, and nothing was done (`overloaded`).
    pub fn call(&mut self, method: &str, params: &[u8], repeat: Repeat, deadline_ms: u64, waiter: T) -> Result<(), T> {
        let memory = calls::memory_of::<T>(method.len() + params.len() + 5);
        if self.memory_bytes() + memory > self.settings.queue_bytes_max {
            return Err(waiter);
        }
        self.queue.push_call(Call::new(method, params, repeat, deadline_ms, waiter));
        self.session.statistics.calls += 1;
        Ok(())
    }

    /// Memory of all that is accepted and not settled.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.queue.batch_bytes + self.queue.call_bytes + self.calls.bytes
    }

    /// Takes increments back that were never sent, or that the shard refused so that no copy can count: this share of
    /// them (0.0 to 1.0), evenly. Gives each to `take(key, delta, level, deadline_ms, waiter)`.
    pub fn take_unsent(&mut self, share: f64, mut take: impl FnMut(&[u8], i64, Level, u64, T)) {
        let mut due = 0.0;
        let taken = &mut self.session.statistics.operations_taken;
        self.queue.change_batches(|batch| {
            let level = batch.level;
            let is_wanted = |_: &_| {
                due += share;
                let is_due = due >= 1.0;
                due -= f64::from(u8::from(is_due));
                is_due
            };
            batch.take(is_wanted, |key, delta, one| {
                if let Some(waiter) = one.waiter {
                    *taken += 1;
                    take(key, delta, level, one.deadline_ms, waiter);
                }
            });
        });
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
        }
        self.stage = Stage::Down;
        self.met = None;
        self.barrier = None;
        self.input = Vec::new();
        let new_id = &self.settings.new_session_id;
        self.session.on_disconnect(&mut self.queue, || new_id(), done);
        self.calls.lose(done);
    }

    /// The only identity that is accepted from now on, 32 hexadecimal digits; else any is.
    pub fn expect_identity(&mut self, identity: &str) {
        self.expected_identity = Some(identity.to_owned());
    }

    /// Why no connection could be made: told to those whose time runs out.
    pub fn note_error(&mut self, error: &str) {
        error.clone_into(&mut self.last_error);
    }

    // --- time --------------------------------------------------------------------------------------------------------

    /// What time it is, some times a second. Operations whose deadline has passed are told so: those that were never
    /// sent, or that the shard refused, were not applied; those that were sent stay until they are settled.
    pub fn tick(&mut self, now_ms: u64, done: &mut impl FnMut(T, Outcome<'_>)) {
        self.now_ms = self.now_ms.max(now_ms);
        let now_ms = self.now_ms;
        self.session.tick(now_ms, done);
        let (queue, statistics) = (&mut self.queue, &mut self.session.statistics);
        self.calls.tick(now_ms, statistics, done);
        let (is_ready, last_error) = (self.stage == Stage::Ready, &self.last_error);
        let unreachable = || match last_error.as_str() {
            _ if is_ready => "the shard took it in no time: nothing was applied".to_owned(),
            "" => "the shard can't be reached: nothing was applied".to_owned(),
            error => format!("the shard can't be reached ({error}): nothing was applied"),
        };
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
                |_, _, one| {
                    if let Some(waiter) = one.waiter {
                        *expired += 1;
                        done(waiter, Outcome::Error { code, message: &message });
                    }
                },
            );
        });
        queue.take_expired_calls(now_ms, |mut call| {
            if let Some(waiter) = call.waiter.take() {
                *expired += 1;
                done(waiter, Outcome::Error { code: ErrorCode::Unavailable, message: &unreachable() });
            }
        });
    }

    /// With replies due, was nothing heard for so long that the connection is to be given up?
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.stage != Stage::Down
            && self.is_waiting()
            && self.now_ms.saturating_sub(self.heard_at_ms) > self.settings.silence_timeout_ms
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

    /// Gives everything up: what was sent is told as unknown, what wasn't as unavailable.
    pub fn abandon(&mut self, reason: &str, done: &mut impl FnMut(T, Outcome<'_>)) {
        self.lost(done);
        let new_id = (self.settings.new_session_id)();
        self.session.abandon(reason, &mut self.queue, new_id, done);
        self.calls.abandon(reason, done);
        let message = format!("{reason}: nothing was applied");
        let nothing = Outcome::Error { code: ErrorCode::Unavailable, message: &message };
        self.take_unsent(1.0, |_, _, _, _, waiter| done(waiter, nothing));
        for call in self.queue.take_calls() {
            if let Some(waiter) = call.waiter {
                done(waiter, nothing);
            }
        }
    }

    // --- what it knows -----------------------------------------------------------------------------------------------

    /// Is it connected, and has the shard said who it is and where the session is?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// The shard's, 32 hexadecimal digits; `None` before it was met.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// The shard's, which rises with each start of its process.
    #[must_use]
    pub const fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// The newest commit of this shard that holds an increment of the session, as far as it was answered; 0: none.
    #[must_use]
    pub const fn commit_seen(&self) -> u64 {
        self.commit_seen
    }

    /// Why the last connection ended or couldn't be made, or what the shard last refused for now; may be empty.
    #[must_use]
    pub fn last_error(&self) -> &str {
        &self.last_error
    }

    /// Figures since it was made.
    #[must_use]
    pub const fn statistics(&self) -> LinkStatistics {
        self.session.statistics
    }

    /// The present session's id.
    #[must_use]
    pub const fn session_id(&self) -> SessionId {
        self.session.id
    }
}

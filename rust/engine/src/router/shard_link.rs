//! A coordinator's one connection to one shard, without the socket: what is written to it, and what its replies mean.
//!
//! Increments gather into `apply` batches of the coordinator's own session at that shard, in order with all other
//! requests. The host calls, in each turn of its loop: `incr` and `call` for what clients want, `feed` for what the shard
//! sent, `tick` some times a second, and at the end `flush`, whose bytes count as sent. When the connection ends it calls
//! `lost`, and after the next one was made `connected`: what is unsettled goes on by the rules of `link_session` and
//! `link_calls`.
//!
//! One thread, the host's, owns it. There is no clock inside: `tick` says what time it is.

use std::fmt::Write as _;

use super::link_batch::{self, Batch};
use super::link_calls::{self, Call, Calls};
use super::link_queue::{Entry, Queue};
use super::link_replies::{self as replies, Greeting, Reply};
use super::link_session::{Next, Session};
pub use super::link_types::{LinkSettings, LinkStatistics, LinkViolation, Outcome, Repeat};
use crate::error_code::ErrorCode;
use crate::wire::msgpack_rpc::{self as rpc, FrameScanner};
use crate::wire::request::{Level, SessionId};
use crate::wire::scan::{FrameLimits, Scan};

/// The two highest bits of a msgid say what it belongs to: nothing for calls.
const BATCH: u32 = 0x8000_0000;
/// The msgid of `hello`, of which one at most is under way.
const HELLO: u32 = 0x4000_0000;

/// A connection whose replies come in pieces keeps at most so much memory for the next piece.
const INPUT_SPARE_BYTES: usize = 64 << 10;

/// How far the present connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// There is none, or it can't be used any more.
    Down,
    /// To be greeted, with this session.
    Greet(SessionId),
    /// The shard was asked who it is and where this session is.
    Greeting(SessionId),
    /// Who it is and where the present session is are known; retired sessions are asked for.
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
        if self.memory_bytes() + link_batch::memory_of::<T>(key.len()) > self.settings.queue_bytes_max {
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
        let memory = link_calls::memory_of::<T>(method.len() + params.len() + 5);
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

    /// Appends what may be written now. Once a turn of the loop, and after `feed` and `tick`.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        match self.stage {
            Stage::Down | Stage::Greeting(_) => {}
            Stage::Greet(session) => {
                self.stage = Stage::Greeting(session);
                self.write_hello(session, out);
            }
            Stage::Ready => {
                let was_idle = !self.is_waiting();
                let before = out.len();
                self.write_housekeeping(out);
                self.write_requests(out);
                if was_idle && out.len() > before {
                    self.heard_at_ms = self.now_ms;
                }
            }
        }
    }

    fn write_hello(&self, session: SessionId, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0x94, 0x00]);
        rpc::write_u64(out, u64::from(HELLO));
        rpc::write_str(out, "hello");
        rpc::write_array_len(out, 1);
        rpc::write_map_len(out, 2 + usize::from(self.settings.token.is_some()));
        rpc::write_str(out, "client");
        rpc::write_str(out, &self.settings.client);
        rpc::write_str(out, "session");
        rpc::write_bin(out, &session.0);
        if let Some(token) = &self.settings.token {
            rpc::write_str(out, "token");
            rpc::write_bin(out, token);
        }
    }

    /// Goodbyes to sessions that have ended, and the question for what is durable.
    fn write_housekeeping(&mut self, out: &mut Vec<u8>) {
        for session in self.session.ended.drain(..) {
            write_goodbye(session, out);
        }
        if self.barrier.is_none() && self.session.is_unconfirmed() && self.now_ms >= self.confirm_at_ms {
            self.barrier = Some(self.session.acknowledged());
            self.write_hello(self.session.id, out);
        }
    }

    fn write_requests(&mut self, out: &mut Vec<u8>) {
        self.session.prepare(&mut self.queue);
        let is_paused = self.is_paused();
        // After a pause one batch finds out whether the shard takes them again.
        let in_flight_max = if self.refusals > 0 { 1 } else { self.settings.batches_in_flight_max };
        // First what was sent before, in its old order.
        loop {
            let batch = self.session.again_order().filter(|_| !is_paused);
            let call = self.calls.again_order(self.now_ms);
            if let Some(batch) = batch
                && call.is_none_or(|call| batch < call)
            {
                if self.session.in_flight >= in_flight_max {
                    return;
                }
                self.write_batch_again(out);
            } else if call.is_some() {
                if let Some(call) = self.calls.take_again(self.now_ms) {
                    self.session.statistics.calls_resent += 1;
                    self.calls.launch(call, out);
                }
            } else {
                break;
            }
        }
        if is_paused {
            for call in self.queue.take_calls() {
                self.launch_call(call, out);
            }
        }
        loop {
            match self.queue.front() {
                Some(Entry::Batch(batch)) => {
                    let is_full = self.session.in_flight >= in_flight_max;
                    if is_paused || is_full || self.session.is_blocked(batch.count) {
                        return;
                    }
                }
                Some(Entry::Call(_)) => {}
                None => return,
            }
            match self.queue.pop_front() {
                Some(Entry::Batch(batch)) => self.launch_batch(batch, out),
                Some(Entry::Call(call)) => self.launch_call(call, out),
                None => return,
            }
        }
    }

    fn launch_call(&mut self, mut call: Call<T>, out: &mut Vec<u8>) {
        self.order += 1;
        call.order = self.order;
        self.calls.launch(call, out);
    }

    fn launch_batch(&mut self, mut batch: Batch<T>, out: &mut Vec<u8>) {
        self.order += 1;
        batch.order = self.order;
        let (session, acked) = (self.session.id, self.session.acked_through);
        if let Some((batch, serial)) = self.session.launch(batch) {
            write_batch(batch, session, acked, BATCH | serial, out);
        }
    }

    fn write_batch_again(&mut self, out: &mut Vec<u8>) {
        let (session, acked) = (self.session.id, self.session.acked_through);
        if let Some((batch, serial)) = self.session.launch_again() {
            write_batch(batch, session, acked, BATCH | serial, out);
        }
    }

    // --- replies -----------------------------------------------------------------------------------------------------

    /// Takes a chunk as it came from the socket, and tells what became of operations.
    ///
    /// # Errors
    /// The connection can't be used any more: close it, and call `lost`.
    pub fn feed(&mut self, chunk: &[u8], done: &mut impl FnMut(T, Outcome<'_>)) -> Result<(), LinkViolation> {
        if self.stage == Stage::Down {
            return Ok(());
        }
        self.heard_at_ms = self.now_ms;
        let fed = self.feed_open(chunk, done);
        if let Err(violation) = &fed {
            self.last_error.clear();
            let _ = write!(self.last_error, "{violation}");
            self.session.statistics.losses += 1;
            self.stage = Stage::Down;
        }
        fed
    }

    fn feed_open(&mut self, chunk: &[u8], done: &mut impl FnMut(T, Outcome<'_>)) -> Result<(), LinkViolation> {
        if self.input.is_empty() {
            let consumed = self.consume(chunk, done)?;
            self.input.extend_from_slice(chunk.get(consumed..).unwrap_or_default());
            return Ok(());
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(chunk);
        let consumed = self.consume(&input, done)?;
        input.drain(..consumed);
        if consumed > 0 && input.capacity() > INPUT_SPARE_BYTES {
            input.shrink_to(INPUT_SPARE_BYTES);
        }
        self.input = input;
        Ok(())
    }

    /// Handles every whole reply; gives the number of bytes used up.
    fn consume(&mut self, bytes: &[u8], done: &mut impl FnMut(T, Outcome<'_>)) -> Result<usize, LinkViolation> {
        let mut position = 0;
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            // Nearly every reply is whole, and read at once. For one that isn't the scanner remembers where it was.
            if self.is_scanning {
                match self.scanner.scan(rest, FrameLimits { bytes_max: self.settings.reply_bytes_max }) {
                    Ok(Scan::Complete(_)) => self.is_scanning = false,
                    Ok(Scan::Incomplete) => break,
                    Err(_) => return Err(LinkViolation::Nonsense("a reply that is too large or no MessagePack")),
                }
                let reply = replies::read_reply(rest)?.ok_or(LinkViolation::Nonsense("a reply that is not whole"))?;
                position += reply.length;
                self.take_reply(&reply, done)?;
            } else if let Some(reply) = replies::read_reply(rest)? {
                position += reply.length;
                self.take_reply(&reply, done)?;
            } else {
                self.is_scanning = true;
            }
        }
        Ok(position)
    }

    fn take_reply(&mut self, reply: &Reply<'_>, done: &mut impl FnMut(T, Outcome<'_>)) -> Result<(), LinkViolation> {
        const NOT_ASKED: LinkViolation = LinkViolation::Nonsense("a reply to what was not asked");
        if reply.msgid == HELLO {
            return self.take_greeting(reply, done);
        }
        if self.stage != Stage::Ready {
            return Err(NOT_ASKED);
        }
        self.answered_at_ms = self.now_ms;
        if reply.msgid & BATCH != 0 {
            let index = self.session.find(reply.msgid & !BATCH).ok_or(NOT_ASKED)?;
            return self.take_batch_reply(index, reply, done);
        }
        let mut call = self.calls.take_answered(reply.msgid).ok_or(NOT_ASKED)?;
        match reply.error {
            None => {
                if let Some(waiter) = call.waiter.take() {
                    done(waiter, Outcome::Reply(reply.result));
                }
            }
            Some(error) => {
                let resume_at = self.now_ms + self.settings.backoff_first_ms;
                self.calls.refuse(call, error, resume_at, done);
            }
        }
        Ok(())
    }

    fn take_batch_reply(
        &mut self,
        index: usize,
        reply: &Reply<'_>,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) -> Result<(), LinkViolation> {
        let new_id = || (self.settings.new_session_id)();
        let Some(error) = reply.error else {
            let results = replies::read_results(reply.result)?;
            self.refusals = 0;
            return self.session.on_results(index, &results, &mut self.queue, new_id, done);
        };
        if self.session.on_refusal(index, error, &mut self.queue, new_id, done) == Next::Pause && !self.is_paused() {
            error.clone_into(&mut self.last_error);
            self.resume_at_ms = self.now_ms + self.next_pause_ms();
        }
        Ok(())
    }

    /// Exponential and capped, each drawn between half and all of the present step, so that links spread out.
    fn next_pause_ms(&mut self) -> u64 {
        let step = self.settings.backoff_first_ms.saturating_mul(1 << self.refusals.min(20));
        self.refusals = self.refusals.saturating_add(1);
        let step = step.clamp(1, self.settings.backoff_max_ms.max(1));
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        step / 2 + self.chance % (step - step / 2 + 1)
    }

    const fn is_paused(&self) -> bool {
        self.now_ms < self.resume_at_ms
    }

    // --- greeting ----------------------------------------------------------------------------------------------------

    fn take_greeting(&mut self, reply: &Reply<'_>, done: &mut impl FnMut(T, Outcome<'_>)) -> Result<(), LinkViolation> {
        if self.stage == Stage::Ready {
            return self.take_confirmation(reply);
        }
        let Stage::Greeting(session) = self.stage else {
            return Err(LinkViolation::Nonsense("a reply to what was not asked"));
        };
        if let Some(error) = reply.error {
            return Err(LinkViolation::Refused(error.to_owned()));
        }
        let greeting = replies::read_greeting(reply.result)?;
        if self.met.is_none() {
            self.meet(&greeting, done)?;
        } else {
            self.session.resolve(greeting.last_sequence);
            debug_assert_ne!(session, self.session.id, "a retired session was asked for");
        }
        let Some(met) = self.met else { return Ok(()) };
        if (met.restarted || self.session.is_behind(met.last_sequence))
            && let Some(tail) = self.session.retired.first()
        {
            self.stage = Stage::Greet(tail.session);
            return Ok(());
        }
        self.resume(met, done);
        Ok(())
    }

    /// The shard says who it is.
    fn meet(&mut self, greeting: &Greeting<'_>, done: &mut impl FnMut(T, Outcome<'_>)) -> Result<(), LinkViolation> {
        if let Some(expected) = self.expected_identity.as_ref().filter(|expected| *expected != greeting.identity) {
            return Err(LinkViolation::WrongShard { found: greeting.identity.to_owned(), expected: expected.clone() });
        }
        self.session.statistics.greetings += 1;
        if self.identity.as_deref().is_some_and(|identity| identity != greeting.identity) {
            let reason =
                format!("the shard is {} now: it was restored from a backup, or is another", greeting.identity);
            let new_id = (self.settings.new_session_id)();
            self.session.abandon(&reason, &mut self.queue, new_id, done);
            self.calls.change_shard(done);
            self.epoch = None;
        } else if self.answered_at_ms > 0
            && self.now_ms.saturating_sub(self.answered_at_ms) > self.settings.session_window_ms
        {
            let new_id = &self.settings.new_session_id;
            self.session.expire(&mut self.queue, || new_id(), done);
        }
        self.identity = Some(greeting.identity.to_owned());
        let restarted = self.epoch.is_some_and(|epoch| epoch != greeting.epoch);
        // Of a session that has just begun the shard knows nothing, whatever it said of the one before.
        let last_sequence = greeting.last_sequence.filter(|_| self.stage == Stage::Greeting(self.session.id));
        self.met = Some(Met { epoch: greeting.epoch, last_sequence, restarted });
        Ok(())
    }

    /// All sessions are asked for. Only now the epoch counts as known: had the connection ended before, the next one
    /// would have to ask for the rest.
    fn resume(&mut self, met: Met, done: &mut impl FnMut(T, Outcome<'_>)) {
        self.epoch = Some(met.epoch);
        self.answered_at_ms = self.now_ms;
        let new_id = &self.settings.new_session_id;
        self.session.on_resume(met.last_sequence, met.restarted, &mut self.queue, || new_id(), done);
        self.stage = Stage::Ready;
        self.resume_at_ms = self.now_ms;
        self.confirm_at_ms = self.now_ms + self.settings.confirm_interval_ms;
    }

    /// `hello` on a connection in use waited for a commit: what was acknowledged before it is durable.
    fn take_confirmation(&mut self, reply: &Reply<'_>) -> Result<(), LinkViolation> {
        let Some(covered) = self.barrier.take() else {
            return Err(LinkViolation::Nonsense("a reply to what was not asked"));
        };
        self.confirm_at_ms = self.now_ms + self.settings.confirm_interval_ms;
        if reply.error.is_none() {
            replies::read_greeting(reply.result)?;
            self.session.confirm(&covered);
        }
        Ok(())
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
            self.session.ended.drain(..).for_each(|session| write_goodbye(session, out));
            if self.session.has_begun() {
                write_goodbye(self.session.id, out);
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

/// `[0, msgid, "apply", [session, first_sequence, acked_through, items, level]]`
fn write_batch<T>(batch: &Batch<T>, session: SessionId, acked_through: u64, msgid: u32, out: &mut Vec<u8>) {
    out.reserve(batch.items.len() + 80);
    out.extend_from_slice(&[0x94, 0x00]);
    rpc::write_u64(out, u64::from(msgid));
    rpc::write_str(out, "apply");
    rpc::write_array_len(out, 5);
    rpc::write_bin(out, &session.0);
    rpc::write_u64(out, batch.first);
    rpc::write_u64(out, acked_through);
    rpc::write_array_len(out, batch.count);
    out.extend_from_slice(&batch.items);
    rpc::write_str(out, batch.level.name());
}

/// `[2, "bye", [session]]`
fn write_goodbye(session: SessionId, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x93, 0x02]);
    rpc::write_str(out, "bye");
    rpc::write_array_len(out, 1);
    rpc::write_bin(out, &session.0);
}

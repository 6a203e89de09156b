//! What a link reads: replies, each to what was asked, and what the shard says of itself when it is greeted.

use std::fmt::Write as _;

use super::calls::split_error;
use super::replies::{self as replies, Greeting, Reply};
use super::session::Next;
use super::types::LinkSample;
use super::{BATCH, HELLO, LinkViolation, Met, Outcome, ShardLink, Stage};
use crate::error_code::ErrorCode;
use crate::wire::request::Level;
use crate::wire::scan::{FrameLimits, Scan};

/// A connection whose replies come in pieces keeps at most so much memory for the next piece.
const INPUT_SPARE_BYTES: usize = 64 << 10;

impl<T> ShardLink<T> {
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
        self.check();
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
                    let outcome = if call.is_ambiguous { Outcome::ReplyAgain } else { Outcome::Reply };
                    done(waiter, outcome(reply.result));
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
        let Some(error) = reply.error else {
            let results = replies::read_results(reply.result)?;
            self.sample(index, None);
            self.learn_halves(index, results.level);
            let new_id = || (self.settings.new_session_id)();
            self.refusals = 0;
            self.commit_seen = self.commit_seen.max(results.commit);
            return self.session.on_results(index, &results, &mut self.queue, new_id, done);
        };
        self.sample(index, Some(split_error(error).0));
        let new_id = || (self.settings.new_session_id)();
        if self.session.on_refusal(index, error, &mut self.queue, new_id, done) == Next::Pause && !self.is_paused() {
            error.clone_into(&mut self.last_error);
            self.resume_at_ms = self.now_ms + self.next_pause_ms();
        }
        Ok(())
    }

    fn sample(&mut self, index: usize, failure: Option<ErrorCode>) {
        let launched_at_us = self.session.window().nth(index).map(|batch| batch.launched_at_us);
        if let Some(launched_at_us) = launched_at_us {
            let latency_us = self.now_us.saturating_sub(launched_at_us);
            self.session.reports.sample(LinkSample { latency_us, failure });
        }
    }

    /// A batch was answered: at which size do the next ones leave?
    fn learn_halves(&mut self, index: usize, level: Level) {
        if self.settings.gather_ms > 0
            && level == Level::Durable
            && let Some(count) = self.session.window().nth(index).map(|batch| batch.count)
        {
            let size = self.halves.on_answer(self.now_us, count, self.queue.operations);
            self.gather_full = size.unwrap_or(usize::MAX).min(self.settings.gather_operations_max);
        }
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

    pub(super) const fn is_paused(&self) -> bool {
        self.now_ms < self.resume_at_ms
    }

    fn take_greeting(&mut self, reply: &Reply<'_>, done: &mut impl FnMut(T, Outcome<'_>)) -> Result<(), LinkViolation> {
        if self.stage == Stage::Ready {
            return self.take_confirmation(reply, done);
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
            self.commit_seen = 0;
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
        self.confirm_not_before_ms = self.now_ms;
    }

    /// `hello` on a connection in use waited for a commit: what was acknowledged before it is durable.
    fn take_confirmation(
        &mut self,
        reply: &Reply<'_>,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) -> Result<(), LinkViolation> {
        let Some(covered) = self.barrier.take() else {
            return Err(LinkViolation::Nonsense("a reply to what was not asked"));
        };
        self.confirm_at_ms = self.now_ms + self.settings.confirm_interval_ms;
        let outcome = match reply.error {
            None => {
                replies::read_greeting(reply.result)?;
                self.session.confirm(&covered);
                Outcome::Reply(&[0xc0])
            }
            Some(error) if split_error(error).0.retryable() => {
                let pause_ms = self.next_pause_ms();
                self.confirm_not_before_ms = self.now_ms + pause_ms;
                self.confirming.iter_mut().for_each(|one| one.is_asked = false);
                return Ok(());
            }
            Some(error) => {
                self.confirm_not_before_ms = self.confirm_at_ms;
                Outcome::ErrorText(error)
            }
        };
        for one in self.confirming.extract_if(.., |one| one.is_asked) {
            done(one.waiter, outcome);
        }
        Ok(())
    }
}

//! Calls: requests other than `apply`, and what becomes of them when their reply doesn't come.
//!
//! A read is sent again after a lost connection. A change under an operation id is too, to the same shard and while that
//! keeps the id; a refusal settles it only if no earlier attempt is unanswered. Any other change is sent once.

use std::collections::VecDeque;

use super::types::{LinkStatistics, Outcome, Repeat};
use crate::error_code::{Effect, ErrorCode};
use crate::planted_bug::{PlantedBug, is_planted};
use crate::wire::msgpack_rpc as rpc;

/// Memory of a call beside its bytes, about, and of the batch that it keeps from growing.
const CALL_OVERHEAD: usize = 256;

/// Refusals for good that come before the id is looked up: they say nothing about an attempt before. The shard may have
/// been started anew with other settings since.
const fn is_before_the_id(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Unauthenticated
            | ErrorCode::Forbidden
            | ErrorCode::BadRequest
            | ErrorCode::UnknownMethod
            | ErrorCode::TooLarge
            | ErrorCode::WrongShard
    )
}

/// A request that is accepted and not settled.
pub(super) struct Call<T> {
    /// Method and params, encoded. Empty once it will never be sent again.
    pub body: Vec<u8>,
    pub repeat: Repeat,
    pub deadline_ms: u64,
    /// `None` once it was told that its time ran out.
    pub waiter: Option<T>,
    /// Rises with everything that is sent for the first time: what is sent again keeps that order. 0: it never was.
    pub order: u64,
    /// An earlier attempt was never answered, and changes something.
    pub is_ambiguous: bool,
    /// After a refusal for now.
    pub not_before_ms: u64,
}

impl<T> Call<T> {
    pub(super) fn new(method: &str, params: &[u8], repeat: Repeat, deadline_ms: u64, waiter: T) -> Self {
        let mut body = Vec::with_capacity(method.len() + params.len() + 2);
        rpc::write_str(&mut body, method);
        body.extend_from_slice(params);
        Self { body, repeat, deadline_ms, waiter: Some(waiter), order: 0, is_ambiguous: false, not_before_ms: 0 }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        memory_of::<T>(self.body.len())
    }

    fn may_be_sent(&self, now_ms: u64) -> bool {
        self.not_before_ms <= now_ms && !matches!(self.repeat, Repeat::SameShard { until_ms } if until_ms <= now_ms)
    }
}

/// Memory that a call takes while it isn't settled.
pub(super) const fn memory_of<T>(body_bytes: usize) -> usize {
    body_bytes + size_of::<T>() + CALL_OVERHEAD
}

/// The calls of one link that were sent.
pub(super) struct Calls<T> {
    /// By msgid.
    in_flight: hashbrown::HashMap<u32, Call<T>, foldhash::fast::FixedState>,
    /// To be sent again, in order.
    again: VecDeque<Call<T>>,
    last_msgid: u32,
    /// No call in flight has an earlier deadline.
    deadline_ms: u64,
    /// Memory of all of them, in flight or to be sent again.
    pub bytes: usize,
}

impl<T> Calls<T> {
    /// Msgids of calls are at most this.
    pub(super) const MSGID_MAX: u32 = 0x3fff_ffff;

    pub(super) fn new() -> Self {
        Self {
            in_flight: hashbrown::HashMap::default(),
            again: VecDeque::new(),
            last_msgid: 0,
            deadline_ms: u64::MAX,
            bytes: 0,
        }
    }

    pub(super) fn is_any_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.again.is_empty()
    }

    /// Sends a call that has its order; it is counted in `bytes` from now on.
    pub(super) fn launch(&mut self, mut call: Call<T>, out: &mut Vec<u8>) {
        loop {
            self.last_msgid = (self.last_msgid + 1) & Self::MSGID_MAX;
            if !self.in_flight.contains_key(&self.last_msgid) {
                break;
            }
        }
        out.extend_from_slice(&[0x94, 0x00]);
        rpc::write_u64(out, u64::from(self.last_msgid));
        out.extend_from_slice(&call.body);
        if call.repeat == Repeat::Never {
            call.body = Vec::new();
        }
        self.deadline_ms = self.deadline_ms.min(call.deadline_ms);
        self.bytes += call.memory_bytes();
        self.in_flight.insert(self.last_msgid, call);
    }

    /// The order of the call that is to be sent again next.
    pub(super) fn again_order(&self, now_ms: u64) -> Option<u64> {
        self.again.iter().find(|call| call.may_be_sent(now_ms)).map(|call| call.order)
    }

    /// Takes it.
    pub(super) fn take_again(&mut self, now_ms: u64) -> Option<Call<T>> {
        let index = self.again.iter().position(|call| call.may_be_sent(now_ms))?;
        let call = self.again.remove(index)?;
        self.bytes -= call.memory_bytes();
        Some(call)
    }

    fn wait(&mut self, call: Call<T>) {
        self.bytes += call.memory_bytes();
        let index = self.again.partition_point(|other| other.order < call.order);
        self.again.insert(index, call);
    }

    /// Takes the call that is answered; `None`: nothing of this msgid was asked.
    pub(super) fn take_answered(&mut self, msgid: u32) -> Option<Call<T>> {
        let call = self.in_flight.remove(&msgid)?;
        self.bytes -= call.memory_bytes();
        Some(call)
    }

    /// The shard refused a call.
    pub(super) fn refuse(
        &mut self,
        mut call: Call<T>,
        error: &str,
        resume_at_ms: u64,
        done: &mut impl FnMut(T, Outcome<'_>),
    ) {
        let (code, _) = split_error(error);
        if matches!(call.repeat, Repeat::SameShard { .. }) {
            if call.is_ambiguous && is_before_the_id(code) {
                let message = format!("it was sent and not answered, then: {error}");
                return tell(&mut call, &Outcome::Error { code: ErrorCode::UnknownOutcome, message: &message }, done);
            }
            call.is_ambiguous |= code.effect() == Effect::Unknown;
            let is_open = call.is_ambiguous && code.retryable() && !is_planted(PlantedBug::LinkTrustsRefusals);
            if is_open && call.waiter.is_some() {
                call.not_before_ms = resume_at_ms;
                return self.wait(call);
            }
        }
        tell(&mut call, &Outcome::ErrorText(error), done);
    }

    /// The connection ended.
    pub(super) fn lose(&mut self, done: &mut impl FnMut(T, Outcome<'_>)) {
        for (_, mut call) in std::mem::take(&mut self.in_flight) {
            self.bytes -= call.memory_bytes();
            match call.repeat {
                Repeat::Never => unknown(&mut call, "it was sent, but the connection ended before its reply", done),
                Repeat::Always | Repeat::SameShard { .. } if call.waiter.is_some() => {
                    call.is_ambiguous |= matches!(call.repeat, Repeat::SameShard { .. });
                    self.bytes += call.memory_bytes();
                    self.again.push_back(call);
                }
                Repeat::Always | Repeat::SameShard { .. } => {}
            }
        }
        self.again.make_contiguous().sort_unstable_by_key(|call| call.order);
        self.deadline_ms = u64::MAX;
    }

    /// Another shard answers now, which doesn't know what this one had.
    pub(super) fn change_shard(&mut self, done: &mut impl FnMut(T, Outcome<'_>)) {
        for mut call in std::mem::take(&mut self.again) {
            self.bytes -= call.memory_bytes();
            if call.is_ambiguous {
                unknown(&mut call, "it was sent and not answered, and another shard is in this place now", done);
            } else {
                self.wait(call);
            }
        }
    }

    /// Tells those whose time has run out.
    pub(super) fn tick(&mut self, now_ms: u64, statistics: &mut LinkStatistics, done: &mut impl FnMut(T, Outcome<'_>)) {
        const LATE: Outcome<'static> =
            Outcome::Error { code: ErrorCode::Deadline, message: "it was sent and not answered in time" };
        if self.deadline_ms <= now_ms {
            self.deadline_ms = u64::MAX;
            for call in self.in_flight.values_mut().filter(|call| call.waiter.is_some()) {
                if call.deadline_ms > now_ms {
                    self.deadline_ms = self.deadline_ms.min(call.deadline_ms);
                    continue;
                }
                statistics.expired_sent += 1;
                self.bytes -= call.body.len();
                call.body = Vec::new();
                tell(call, &LATE, done);
            }
        }
        let is_over = |call: &Call<T>| {
            call.deadline_ms <= now_ms || matches!(call.repeat, Repeat::SameShard { until_ms } if until_ms <= now_ms)
        };
        while let Some(index) = self.again.iter().position(is_over)
            && let Some(mut call) = self.again.remove(index)
        {
            self.bytes -= call.memory_bytes();
            if call.deadline_ms <= now_ms {
                statistics.expired_sent += 1;
                tell(&mut call, &LATE, done);
            } else {
                unknown(&mut call, "it was not answered for longer than the shard keeps its id", done);
            }
        }
    }

    /// Forgets the waiters that `is_gone` names: their calls are not sent again.
    pub(super) fn abandon_waiters(&mut self, mut is_gone: impl FnMut(&T) -> bool, mut drop_waiter: impl FnMut(T)) {
        for call in self.in_flight.values_mut() {
            if let Some(waiter) = call.waiter.take_if(|waiter| is_gone(waiter)) {
                drop_waiter(waiter);
            }
        }
        let bytes = &mut self.bytes;
        self.again.retain_mut(|call| {
            let gone = call.waiter.take_if(|waiter| is_gone(waiter));
            let is_kept = gone.is_none();
            if !is_kept {
                *bytes -= call.memory_bytes();
            }
            gone.into_iter().for_each(&mut drop_waiter);
            is_kept
        });
    }

    /// When something is to be done at the latest: a deadline, the end of an id's window or of a pause.
    pub(super) fn next_wake_ms(&self, now_ms: u64) -> u64 {
        let again = self.again.iter().map(|call| {
            let until = match call.repeat {
                Repeat::SameShard { until_ms } => until_ms,
                Repeat::Always | Repeat::Never => u64::MAX,
            };
            let pause = if call.not_before_ms > now_ms { call.not_before_ms } else { u64::MAX };
            call.deadline_ms.min(until).min(pause)
        });
        again.fold(self.deadline_ms, u64::min)
    }

    /// What must hold between two calls.
    pub(super) fn check(&self) {
        let all = self.in_flight.values().chain(&self.again);
        debug_assert_eq!(self.bytes, all.map(Call::memory_bytes).sum::<usize>(), "memory of calls");
        debug_assert!(self.again.iter().is_sorted_by_key(|call| call.order), "calls are sent again out of order");
        debug_assert!(self.again.iter().all(|call| call.waiter.is_some() && call.repeat != Repeat::Never));
    }

    /// Nothing goes on any more.
    pub(super) fn abandon(&mut self, message: &str, done: &mut impl FnMut(T, Outcome<'_>)) {
        let in_flight = std::mem::take(&mut self.in_flight).into_values();
        for mut call in in_flight.chain(std::mem::take(&mut self.again)) {
            unknown(&mut call, message, done);
        }
        self.bytes = 0;
    }
}

fn tell<T>(call: &mut Call<T>, outcome: &Outcome<'_>, done: &mut impl FnMut(T, Outcome<'_>)) {
    if let Some(waiter) = call.waiter.take() {
        done(waiter, *outcome);
    }
}

fn unknown<T>(call: &mut Call<T>, message: &str, done: &mut impl FnMut(T, Outcome<'_>)) {
    tell(call, &Outcome::Error { code: ErrorCode::UnknownOutcome, message }, done);
}

/// An error on the wire is `code: message`. A code that isn't known may mean anything.
pub(crate) fn split_error(error: &str) -> (ErrorCode, &str) {
    let (name, message) = error.split_once(": ").unwrap_or((error, ""));
    ErrorCode::from_name(name).map_or((ErrorCode::Internal, error), |code| (code, message))
}

//! What becomes of commands that need counters whole when shards answer.

use super::core::{Core, large};
use super::reply_row::Reply;
use super::slab::Place;
use super::waiter::Waiter;
use super::whole_counters::{RemovalGroup, What, WholeCommand};
use crate::connection_input::Protocol;
use crate::error_code::{Effect, ErrorCode};
use crate::shard_link::{Outcome, split_error};
use crate::wire::msgpack_rpc as rpc;
use crate::wire::msgpack_rpc::reader::{Reader, Value};
use crate::wire::resp;

impl Core {
    /// A shard answered what it holds of a counter, or what it took of it.
    pub(super) fn part_of_whole_done(
        &mut self,
        shard: usize,
        waiter: Waiter,
        part: Result<Option<i64>, (ErrorCode, &str)>,
    ) {
        let Some(command) = self.wholes.get_mut(waiter.place) else { return };
        let is_changing = command.is_changing;
        if let Err((code, message)) = part {
            command.fail(code, message);
        }
        let Some(whole) = command.wholes.get_mut(waiter.ticket as usize) else { return };
        match part {
            Ok(value) if is_changing => {
                whole.taken += i128::from(value.unwrap_or(0));
                whole.is_applied = true;
            }
            Ok(value) => {
                if let Some(held) = whole.held.get_mut(shard) {
                    *held = value;
                }
            }
            Err((code, _)) => {
                whole.is_unknown |= is_changing && code.effect() == Effect::Unknown;
                whole.error = whole.error.or(Some(code));
            }
        }
        if is_changing {
            self.settled(waiter.hash);
            self.partials.forget(waiter.hash, self.shard_times.len());
        }
        self.one_less_of_whole(waiter.place);
    }

    /// A step of a SET is done.
    pub(super) fn set_whole_done(&mut self, waiter: Waiter, outcome: Result<(), (ErrorCode, &str)>) {
        let Some(command) = self.wholes.get_mut(waiter.place) else { return };
        match outcome {
            Ok(()) => {
                command.difference -= i128::from(command.step());
                command.is_partly_added = true;
                if command.difference != 0 {
                    return self.read_wholes.push(waiter.place);
                }
            }
            Err((code, message)) if !command.is_partly_added && code.effect() == Effect::Nothing => {
                command.fail(code, message)
            }
            Err((_, message)) => {
                let message = format!("the difference was sent, then: {message}");
                command.fail(ErrorCode::UnknownOutcome, &message);
            }
        }
        self.one_less_of_whole(waiter.place);
    }

    pub(super) fn one_less_of_whole(&mut self, place: Place) {
        let Some(command) = self.wholes.get_mut(place) else { return };
        command.lacking -= 1;
        if command.lacking > 0 {
            return;
        }
        if !command.is_changing {
            let what = command.what;
            if command.error.is_none() && self.now_ms > command.change_by_ms {
                command.fail(ErrorCode::Unavailable, "they took too long");
            }
            if let Some(code) = command.error {
                let needs =
                    format!("{} needs what every shard holds: {}; nothing was applied", what.name(), command.message);
                command.message = needs;
                if code != ErrorCode::Overloaded {
                    command.error = Some(ErrorCode::Unavailable);
                }
            } else {
                if let (What::Set { value, .. }, Some(whole)) = (what, command.wholes.first()) {
                    command.before = whole.is_found().then(|| whole.total());
                    command.difference = i128::from(value) - command.before.unwrap_or(0);
                }
                return self.read_wholes.push(place);
            }
        }
        self.end_whole(place);
    }

    fn end_whole(&mut self, place: Place) {
        let Some(command) = self.wholes.remove(place) else { return };
        self.held_bytes -= command.bytes;
        self.statistics.errors += u64::from(command.error.is_some());
        self.settle(command.connection, |connection| match &connection.protocol {
            Protocol::Resp(state) => {
                let version = state.version;
                connection.replies.settle(command.ticket, command.reply(), version, &mut connection.out);
            }
            _ => {
                command.write(&mut connection.out);
                connection.pending -= 1;
            }
        });
        self.release_stopped();
    }

    /// A shard's answer to removals.
    pub(super) fn removal_group_done(&mut self, shard: usize, place: Place, outcome: Outcome<'_>) {
        let Some(RemovalGroup { waiters }) = self.removal_groups.remove(place) else { return };
        let nonsense = (ErrorCode::Internal, "the shard's answer has another form");
        let (reply, failure) = match outcome {
            Outcome::Reply(reply) | Outcome::ReplyAgain(reply) => (reply, None),
            Outcome::Error { code, message } => (&b""[..], Some((code, message))),
            Outcome::ErrorText(text) => (&b""[..], Some(split_error(text))),
            Outcome::Value { .. } => (&b""[..], Some(nonsense)),
        };
        let (mut reader, failure) = match (failure, values_of(reply, waiters.len())) {
            (Some(failure), _) => (Reader::new(b""), Some(failure)),
            (None, Some((reader, commit))) => {
                self.commit_noted = Some(commit);
                (reader, None)
            }
            (None, None) => (Reader::new(b""), Some(nonsense)),
        };
        if let Some((code, _)) = failure {
            self.stopwatches[shard].note_error(code);
        }
        for waiter in waiters {
            let part = match failure {
                Some(failure) => Err(failure),
                None => match reader.read_whole() {
                    Ok(Value::Text(text)) => {
                        let (code, message) = split_error(std::str::from_utf8(text).unwrap_or("internal: "));
                        // The attempt before it may be on its way, and find room.
                        let is_open = code.retryable() && matches!(outcome, Outcome::ReplyAgain(_));
                        Err((if is_open { ErrorCode::UnknownOutcome } else { code }, message))
                    }
                    Ok(Value::Unsigned(value)) if i64::try_from(value).is_ok() => Ok(Some(value as i64)),
                    Ok(Value::Negative(value)) => Ok(Some(value)),
                    _ => Err(nonsense),
                },
            };
            self.part_of_whole_done(shard, waiter, part);
        }
    }
}

impl WholeCommand {
    fn reply(&self) -> Reply {
        let (code, message) = match (self.what, self.error) {
            (What::Set { get: true, .. } | What::GetDel, None) => {
                let taken = || self.wholes.first().filter(|whole| whole.is_found()).map(|whole| whole.taken);
                let value = if self.what == What::GetDel { taken() } else { self.before };
                return value
                    .map_or(Reply::Null, |value| i64::try_from(value).map_or_else(|_| large(value), Reply::Bulk));
            }
            (What::Set { .. }, None) => return Reply::Bytes(b"+OK\r\n"[..].into()),
            (_, None) => return Reply::Int(self.wholes.iter().filter(|whole| whole.is_found()).count() as i64),
            (What::Set { .. }, Some(code)) => (code, self.message.clone()),
            (_, Some(code)) => self.failure(code),
        };
        let mut text = Vec::new();
        resp::write_error(&mut text, code, &message);
        Reply::Bytes(text.into())
    }

    /// Of a removal.
    fn failure(&self, code: ErrorCode) -> (ErrorCode, String) {
        let is_open = self.wholes.iter().any(|whole| whole.is_applied || whole.is_unknown);
        if !is_open {
            return (code, self.message.clone());
        }
        let found = self.wholes.iter().filter(|whole| whole.is_found()).count();
        let message = match found {
            1 => format!("the counter may be deleted, at some shards or all, then: {}", self.message),
            _ => format!("some of {found} counters may be deleted, then: {}", self.message),
        };
        (ErrorCode::UnknownOutcome, message)
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let (false, Some(code)) = (self.is_changing, self.error) {
            return rpc::reply_error(out, self.ticket, code, &self.message);
        }
        rpc::reply_begin(out, self.ticket);
        if self.detail {
            // Each shard has commits of its own.
            rpc::write_map_len(out, 3);
            rpc::write_str(out, "level");
            rpc::write_str(out, self.level.name());
            rpc::write_str(out, "commit");
            rpc::write_nil(out);
            rpc::write_str(out, "values");
        }
        rpc::write_array_len(out, self.wholes.len());
        for whole in &self.wholes {
            match whole.outcome() {
                Ok(taken) => rpc::write_i128(out, taken),
                Err(code) => rpc::write_error(out, code, code.meaning()),
            }
        }
    }
}

/// The reader of so many values in a shard's answer to removals, and the commit that covers them.
fn values_of(reply: &[u8], count: usize) -> Option<(Reader<'_>, u64)> {
    let mut reader = Reader::new(reply);
    let Value::Map(pairs) = reader.read().ok()? else { return None };
    let (mut values, mut commit) = (None, 0);
    for _ in 0..pairs {
        match reader.read_whole().ok()? {
            Value::Text(b"values") => {
                values = Some(Reader::new(reader.rest()));
                reader.skip(1).ok()?;
            }
            Value::Text(b"commit") => {
                let Value::Unsigned(value) = reader.read_whole().ok()? else { return None };
                commit = value;
            }
            _ => reader.skip(1).ok()?,
        }
    }
    let mut values = values?;
    matches!(values.read(), Ok(Value::Array(length)) if length == count).then_some((values, commit))
}

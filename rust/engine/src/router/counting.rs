//! DBSIZE: all that ask in one turn of the loop are answered by two questions to each shard. While a shard has foreign
//! counters, the host looks which of them lie on two shards.

use super::Router;
use super::connection::Connection;
use super::core::{Core, Late};
use super::reply_row::Reply;
use super::slab::Place;
use super::waiter::{Kind, Waiter};
use crate::connection_input::Protocol;
use crate::error_code::ErrorCode;
use crate::shard_link::{Outcome, Repeat, split_error};
use crate::wire::msgpack_rpc::reader::{Reader, Value};
use crate::wire::resp;

/// DBSIZE of several connections, asked together.
#[derive(Debug, Default)]
pub(super) struct Counting {
    askers: Vec<(Place, u32)>,
    lacking: usize,
    counters: u64,
    has_foreign: bool,
    error: Option<(ErrorCode, String)>,
}

impl Router {
    /// Counts the counters for a connection of RESP, together with all that ask in this turn.
    pub(super) fn count_counters(&mut self, place: Place, connection: &mut Connection) {
        let ticket = connection.replies.push();
        self.wants_flush = true;
        self.core.count_askers.push((place, ticket));
    }

    /// Asks every shard how many counters it has, if anybody wants to know.
    pub(super) fn send_counting(&mut self) {
        if self.core.count_askers.is_empty() {
            return;
        }
        let askers = std::mem::take(&mut self.core.count_askers);
        let counting = Counting { askers, lacking: 2 * self.links.len(), ..Counting::default() };
        let place = self.core.countings.insert(counting);
        // A figure waits for no disk, but an empty read does: what is told is not taken back by a crash.
        for (method, params) in [("stats", &b"\x90"[..]), ("get_many", &b"\x91\x90"[..])] {
            for shard in 0..self.links.len() {
                let waiter = Waiter { hash: 0, place, ticket: 0, kind: Kind::Count };
                let deadline_ms = self.core.now_ms + self.settings.request_timeout_ms;
                match self.links[shard].link.call(method, params, Repeat::Always, deadline_ms, waiter) {
                    Ok(()) => self.core.stopwatches[shard].asked += 1,
                    Err(waiter) => self.core.late.push(Late::Refused(waiter, ErrorCode::Overloaded, shard)),
                }
            }
        }
    }
}

impl Core {
    /// A shard's answer to one of the two questions of a count.
    pub(super) fn count_done(&mut self, place: Place, outcome: Outcome<'_>) {
        let Some(counting) = self.countings.get_mut(place) else { return };
        let failure = match outcome {
            Outcome::Reply(reply) | Outcome::ReplyAgain(reply) => match counts_of(reply) {
                Some((counters, foreign)) => {
                    counting.counters += counters;
                    counting.has_foreign |= foreign > 0;
                    None
                }
                None => Some((ErrorCode::Internal, "the shard does not say how many counters it has")),
            },
            Outcome::Error { code, message } => Some((code, message)),
            Outcome::ErrorText(text) => Some(split_error(text)),
            Outcome::Value { .. } => None,
        };
        if let (Some((code, message)), None) = (failure, &counting.error) {
            counting.error = Some((code, message.to_owned()));
        }
        counting.lacking -= 1;
        if counting.lacking > 0 {
            return;
        }
        let Some(counting) = self.countings.remove(place) else { return };
        for (place, ticket) in counting.askers {
            self.tell_count(place, ticket, counting.counters, counting.has_foreign, counting.error.as_ref());
        }
    }

    fn tell_count(
        &mut self,
        place: Place,
        ticket: u32,
        counters: u64,
        has_foreign: bool,
        error: Option<&(ErrorCode, String)>,
    ) {
        self.statistics.errors += u64::from(error.is_some());
        self.settle(place, |connection| {
            let Protocol::Resp(state) = &connection.protocol else { return };
            let version = state.version;
            let mut text = Vec::new();
            match error {
                Some((code, message)) => {
                    let message = format!("DBSIZE needs every shard: {message}");
                    resp::write_error(&mut text, *code, &message);
                }
                None if has_foreign => {
                    // Counters that lie on two shards are one: the host looks for them.
                    return connection.leave_to_host("dbsize", ticket, version);
                }
                None => resp::write_int(&mut text, i64::try_from(counters).unwrap_or(i64::MAX)),
            }
            connection.replies.settle(ticket, Reply::Bytes(text.into()), version, &mut connection.out);
        });
        if has_foreign {
            self.call(place);
        }
    }
}

/// How many counters a shard has, and how many of them were foreign ever; of the empty read, none.
fn counts_of(reply: &[u8]) -> Option<(u64, u64)> {
    let mut reader = Reader::new(reply);
    let pairs = match reader.read().ok()? {
        Value::Array(0) => return Some((0, 0)),
        Value::Map(pairs) => pairs,
        _ => return None,
    };
    let (mut counters, mut foreign) = (None, None);
    for _ in 0..pairs {
        let name = reader.read_whole().ok()?;
        match (name, reader.read_whole().ok()?) {
            (Value::Text(b"counters"), Value::Unsigned(value)) => counters = Some(value),
            (Value::Text(b"counters_foreign"), Value::Unsigned(value)) => foreign = Some(value),
            _ => {}
        }
    }
    Some((counters?, foreign?))
}

//! Rare requests, which the host answers: those that take all shards, or more than counting.
//!
//! One starts once everything before it on its connection is answered. On RESP what comes behind it waits for its
//! answer; on MessagePack-RPC only until it has started, as replies there may overtake each other.

use super::Router;
use super::connection::{Connection, Hold};
use super::reply_row::Reply;
use super::slab::Place;
use crate::error_code::ErrorCode;
use crate::shard_link::split_error;
use crate::wire::msgpack_rpc::reader::{Reader, Value};
use crate::wire::msgpack_rpc::{self as rpc};
use crate::wire::resp::{self, Version};

/// Requests of one connection that the host may have to answer at a time and that wait for nothing.
const OPEN_MAX: usize = 64;

/// A request for the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRequest {
    /// To answer it by. Of its connection.
    pub token: u64,
    /// The method.
    pub method: &'static str,
    /// An encoded array.
    pub params: Vec<u8>,
    /// `msgpack-rpc`, `resp2` or `resp3`.
    pub protocol: &'static str,
}

/// How the answer becomes a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// MessagePack-RPC's: as it is, under this msgid; `None` for a notification.
    Result(Option<u32>),
    /// RESP's, by command: an integer.
    Int,
    /// A value or nil.
    Value,
    /// An array of them.
    Values,
    /// OK.
    Ok,
    /// `string` or `none`.
    Type,
    /// `int` or nil.
    Encoding,
    /// So many bytes, or nil.
    Memory(i64),
    /// Keys.
    Keys,
    /// A cursor and keys.
    Page,
    /// A text for people.
    Text,
}

/// A request that isn't answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenRequest {
    pub(super) token: u64,
    pub(super) shape: Shape,
    /// It is owed: what comes later and needs all before it waits for it.
    pub(super) counts: bool,
    /// RESP's: its reply's place in the row, once it has started.
    pub(super) ticket: u32,
}

impl Router {
    /// Hands a request to the host, once all before it are answered.
    pub(super) fn ask_host(
        &mut self,
        connection: &mut Connection,
        method: &'static str,
        shape: Shape,
        params: Vec<u8>,
        version: Version,
    ) {
        self.core.statistics.host_requests += 1;
        let protocol = match (shape, version) {
            (Shape::Result(_), _) => "msgpack-rpc",
            (_, Version::Resp2) => "resp2",
            (_, Version::Resp3) => "resp3",
        };
        let request = HostRequest { token: connection.next_token, method, params, protocol };
        connection.next_token += 1;
        let open = OpenRequest { token: request.token, shape, counts: true, ticket: 0 };
        if connection.owes() {
            connection.hold = Some(Hold::Start(open, request));
        } else {
            start(connection, open, request);
        }
    }

    /// Hands a request to the host that asks for no counter: it waits for nothing, and nothing waits for it.
    pub(super) fn ask_host_at_once(
        &mut self,
        connection: &mut Connection,
        method: &'static str,
        msgid: Option<u32>,
        params: &[u8],
    ) -> Result<(), ErrorCode> {
        if connection.open.len() >= OPEN_MAX {
            return Err(ErrorCode::Overloaded);
        }
        self.core.statistics.host_requests += 1;
        let token = connection.next_token;
        connection.next_token += 1;
        connection.open.push(OpenRequest { token, shape: Shape::Result(msgid), counts: false, ticket: 0 });
        let params = params.to_vec();
        connection.host_requests.push(HostRequest { token, method, params, protocol: "msgpack-rpc" });
        Ok(())
    }

    /// Takes the host's answer: `error` is `code: message`, else `result` is one encoded value. The reply is in the
    /// connection's output then. False: nobody waits for it.
    pub fn answer(&mut self, place: Place, token: u64, error: Option<&str>, result: &[u8]) -> bool {
        let Some(connection) = self.core.connections.get_mut(place) else { return false };
        let Some(index) = connection.open.iter().position(|open| open.token == token) else { return false };
        let open = connection.open.swap_remove(index);
        let version = connection.protocol.version();
        match open.shape {
            Shape::Result(msgid) => {
                match (msgid, error) {
                    (None, _) => {}
                    (Some(msgid), Some(error)) => rpc::reply_error_text(&mut connection.out, msgid, error),
                    (Some(msgid), None) => {
                        rpc::reply_begin(&mut connection.out, msgid);
                        connection.out.extend_from_slice(if result.is_empty() { &[0xc0] } else { result });
                    }
                }
                connection.pending -= usize::from(open.counts);
            }
            shape => {
                let mut text = Vec::new();
                let written = match error {
                    Some(error) => {
                        let (code, message) = split_error(error);
                        resp::write_error(&mut text, code, message);
                        Some(())
                    }
                    None => write_resp(&mut text, version, shape, result),
                };
                if written.is_none() {
                    text.clear();
                    resp::write_error(&mut text, ErrorCode::Internal, "the answer has another form");
                }
                connection.replies.settle(open.ticket, Reply::Bytes(text.into()), version, &mut connection.out);
            }
        }
        match connection.hold {
            Some(Hold::Answer) => connection.hold = None,
            Some(Hold::Passage) => {
                connection.closing = true;
                connection.stalled = false;
                connection.drop_unfinished();
                self.input_bytes -= std::mem::take(&mut connection.input_bytes);
            }
            _ => {}
        }
        self.core.note_output(place);
        self.core.look(place);
        true
    }

    /// Ends a connection that asked for a passage; gives what the shard is to be sent first, the `hello` as it came and all
    /// that came behind it, and whether the client has finished. `None`: it doesn't wait for a passage any more.
    pub fn hand_over(&mut self, place: Place) -> Option<(Vec<u8>, bool)> {
        let connection = self.core.connections.get_mut(place)?;
        if !matches!(connection.hold, Some(Hold::Passage)) {
            return None;
        }
        let handed_over = (std::mem::take(&mut connection.input), connection.finished);
        self.disconnect(place);
        Some(handed_over)
    }

    /// Requests for the host, taken.
    pub fn take_host_requests(&mut self, place: Place) -> Vec<HostRequest> {
        self.core
            .connections
            .get_mut(place)
            .map(|connection| std::mem::take(&mut connection.host_requests))
            .unwrap_or_default()
    }
}

impl Connection {
    /// Leaves a command of RESP to the host that was begun without it: its reply has its place, and later commands wait.
    pub(super) fn leave_to_host(&mut self, method: &'static str, ticket: u32, version: Version) {
        let token = self.next_token;
        self.next_token += 1;
        self.open.push(OpenRequest { token, shape: Shape::Int, counts: true, ticket });
        let protocol = if version == Version::Resp2 { "resp2" } else { "resp3" };
        self.host_requests.push(HostRequest { token, method, params: vec![0x90], protocol });
    }
}

/// All before it are answered: the host may take it.
pub(super) fn start(connection: &mut Connection, mut open: OpenRequest, request: HostRequest) {
    if matches!(open.shape, Shape::Result(_)) {
        connection.pending += 1;
    } else {
        connection.hold = Some(Hold::Answer);
        open.ticket = connection.replies.push();
    }
    connection.open.push(open);
    connection.host_requests.push(request);
}

/// Writes a result in RESP's form. `None`: it isn't what the command gives.
fn write_resp(out: &mut Vec<u8>, version: Version, shape: Shape, result: &[u8]) -> Option<()> {
    let mut reader = Reader::new(result);
    match shape {
        Shape::Result(_) => return None,
        Shape::Ok => {
            resp::write_simple(out, "OK");
            return Some(());
        }
        Shape::Int => match reader.read().ok()? {
            Value::Unsigned(value) => resp::write_int(out, i64::try_from(value).ok()?),
            Value::Negative(value) => resp::write_int(out, value),
            _ => return None,
        },
        Shape::Type => match reader.read().ok()? {
            Value::Bool(true) => resp::write_simple(out, "string"),
            Value::Bool(false) => resp::write_simple(out, "none"),
            _ => return None,
        },
        Shape::Encoding => match reader.read().ok()? {
            Value::Bool(true) => resp::write_bulk(out, b"int"),
            Value::Bool(false) => resp::write_null(out, version),
            _ => return None,
        },
        Shape::Memory(bytes) => match reader.read().ok()? {
            Value::Bool(true) => resp::write_int(out, bytes),
            Value::Bool(false) => resp::write_null(out, version),
            _ => return None,
        },
        Shape::Text => match reader.read().ok()? {
            Value::Text(text) => resp::write_text(out, version, std::str::from_utf8(text).ok()?),
            _ => return None,
        },
        Shape::Value => write_value(out, version, &mut reader)?,
        Shape::Values => {
            let Value::Array(count) = reader.read().ok()? else { return None };
            resp::write_array_len(out, count);
            for _ in 0..count {
                write_value(out, version, &mut reader)?;
            }
        }
        Shape::Page => {
            let (Value::Array(2), Value::Unsigned(cursor), Value::Array(count)) =
                (reader.read().ok()?, reader.read().ok()?, reader.read().ok()?)
            else {
                return None;
            };
            resp::write_array_len(out, 2);
            resp::write_bulk(out, itoa::Buffer::new().format(cursor).as_bytes());
            write_keys(out, &mut reader, count)?;
        }
        Shape::Keys => {
            let Value::Array(count) = reader.read().ok()? else { return None };
            write_keys(out, &mut reader, count)?;
        }
    }
    reader.rest().is_empty().then_some(())
}

fn write_keys(out: &mut Vec<u8>, reader: &mut Reader<'_>, count: usize) -> Option<()> {
    resp::write_array_len(out, count);
    for _ in 0..count {
        let Value::Text(key) = reader.read().ok()? else { return None };
        resp::write_bulk(out, key);
    }
    Some(())
}

/// A counter's value, or what is too large for one, as a decimal string already.
fn write_value(out: &mut Vec<u8>, version: Version, reader: &mut Reader<'_>) -> Option<()> {
    match reader.read().ok()? {
        Value::Nil => resp::write_null(out, version),
        Value::Unsigned(value) => resp::write_bulk(out, itoa::Buffer::new().format(value).as_bytes()),
        Value::Negative(value) => resp::write_bulk_int(out, value),
        Value::Text(digits) => resp::write_bulk(out, digits),
        _ => return None,
    }
    Some(())
}

//! One client's connection: bytes that don't make a frame yet, replies that wait for their commit, and what the
//! protocol remembers. The loop thread owns it.

use super::held_replies::{HeldReplies, ReplyKind};
use crate::connection_input::Protocol;
use crate::counter_store::Top;
use crate::error_code::ErrorCode;
use crate::resp_connection::{Peer, Transaction};
use crate::wire::msgpack_rpc as rpc;
use crate::wire::request::TailRequest;
use crate::wire::resp;

/// In the place of a reply that would show what a crash may still take back.
const SEEN_AND_NOT_SAFE: &str =
    "the shard cannot write to its disk, and the answer depends on what is not there yet; nothing was applied";

/// What the engine leaves to its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostCall {
    /// Write a backup into this folder.
    Backup(String),
    /// Answer the topology once it is newer than this version, or after a while.
    WatchTopology(u64),
    /// Answer durable records.
    Tail(TailRequest),
}

/// A request that the engine leaves to its host, such as a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRequest {
    /// `None` for a notification.
    pub msgid: Option<u32>,
    /// What to do.
    pub call: HostCall,
}

/// A `top` that looks at some counters in each turn of the loop.
#[derive(Debug)]
pub(super) struct PendingTop {
    pub(super) msgid: Option<u32>,
    pub(super) top: Top,
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) protocol: Protocol,
    /// Received and not yet consumed: an incomplete frame, or more while replies pile up.
    pub(super) input: Vec<u8>,
    /// What of `input_bytes` the shard counts for it in its sum.
    pub(super) input_bytes: usize,
    pub(super) held: HeldReplies,
    pub(super) authenticated: bool,
    /// No more is read; the connection closes once its replies are out.
    pub(super) closing: bool,
    /// The client sends nothing more.
    pub(super) finished: bool,
    /// Replies piled up, or the turn was over: `input` holds whole frames that wait.
    pub(super) stalled: bool,
    /// Stalled, and the host was told to feed it: telling it twice would give it two turns.
    pub(super) called: bool,
    /// In the shard's list of connections that others' held replies stopped.
    pub(super) stopped: bool,
    /// In the shard's list of connections with held replies.
    pub(super) waiting: bool,
    pub(super) host_requests: Vec<HostRequest>,
    /// Its `top` that isn't done: what comes behind waits.
    pub(super) top: Option<PendingTop>,
    pub(super) id: u64,
    pub(super) peer: Peer,
    /// The host says that the client reads nothing: what was sent to it fills its buffers.
    pub(super) unread: bool,
}

impl Connection {
    pub(super) fn new(id: u64, authenticated: bool, peer: Peer) -> Self {
        Self {
            protocol: Protocol::Unknown,
            input: Vec::new(),
            input_bytes: 0,
            held: HeldReplies::default(),
            authenticated,
            closing: false,
            finished: false,
            stalled: false,
            called: false,
            stopped: false,
            waiting: false,
            host_requests: Vec::new(),
            top: None,
            id,
            peer,
            unread: false,
        }
    }

    /// Memory of what it sent and that is not carried out: an incomplete frame, whole frames that wait, a transaction.
    pub(super) fn unfinished_bytes(&self) -> usize {
        let transaction = match &self.protocol {
            Protocol::Resp(state) => state.transaction.as_ref().map_or(0, Transaction::memory_bytes),
            _ => 0,
        };
        self.input.capacity() + transaction
    }

    /// Drops all of that.
    pub(super) fn drop_unfinished(&mut self) {
        self.input = Vec::new();
        if let Protocol::Resp(state) = &mut self.protocol {
            state.transaction = None;
        }
    }

    /// The client reads nothing, or goes on reading.
    pub fn note_unread(&mut self, unread: bool) {
        self.unread = unread;
    }

    /// May the host read from it though the client reads nothing? In a transaction answers can be kept as a number.
    #[must_use]
    pub fn reads_on(&self) -> bool {
        matches!(&self.protocol, Protocol::Resp(state) if state.transaction.is_some())
    }

    /// Should the host stop reading from it?
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.stalled || self.closing || self.finished
    }

    /// Replies have left: must the host look at it?
    pub(super) fn call(&mut self) -> bool {
        let was_called = std::mem::replace(&mut self.called, self.stalled);
        self.is_crowded() && !(was_called && self.stalled) || self.is_closing()
    }

    /// Is it to be closed? True only once no reply is held.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        (self.closing || self.finished && !self.stalled) && self.held.is_empty()
    }

    /// Is a reply held, or a request waiting for replies to leave?
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.stalled || !self.held.is_empty()
    }

    /// Has the client sent the token, or is none needed?
    #[must_use]
    pub const fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// `msgpack-rpc`, `resp2`, `resp3`, or nothing yet.
    #[must_use]
    pub fn protocol_name(&self) -> &'static str {
        self.protocol.name()
    }

    /// The commit that all held replies wait for failed: writes to each of them what is certain all the same.
    pub(super) fn fail_held(&mut self, out: &mut Vec<u8>, pool: &mut Vec<Vec<u8>>) {
        let protocol = &self.protocol;
        self.held.take_all(pool, |kind, replies| {
            let (code, message) = match kind {
                ReplyKind::Neutral => return out.extend_from_slice(replies),
                ReplyKind::Seen => (ErrorCode::ReadOnly, SEEN_AND_NOT_SAFE),
                ReplyKind::Changed => (ErrorCode::UnknownOutcome, ErrorCode::UnknownOutcome.meaning()),
            };
            match protocol {
                Protocol::Unknown => 0,
                Protocol::MsgpackRpc(_) => rpc::fail_held(replies, out, code, message),
                Protocol::Resp(_) => resp::fail_held(replies, out, code, message),
            };
        });
    }

    /// Requests for the host, taken.
    pub fn take_host_requests(&mut self) -> Vec<HostRequest> {
        std::mem::take(&mut self.host_requests)
    }
}

//! One client's connection: bytes that don't make a frame yet, replies that wait for their commit, and what the
//! protocol remembers. The loop thread owns it.

use std::collections::VecDeque;

use crate::error_code::ErrorCode;
use crate::wire::msgpack_rpc::{self as rpc, FrameScanner};
use crate::wire::resp::{self, Version};
use crate::wire::scan;

/// What a connection speaks, known from its first byte on.
#[derive(Debug)]
pub enum Protocol {
    /// Nothing was received.
    Unknown,
    /// MessagePack-RPC.
    MsgpackRpc(FrameScanner),
    /// RESP, version 2 or 3.
    Resp(RespState),
}

/// What RESP remembers of a connection.
#[derive(Debug, Default)]
pub struct RespState {
    /// Where the scan of an incomplete command stands.
    pub scanner: resp::FrameScanner,
    /// 3 after HELLO 3.
    pub version: Version,
    /// After MULTI: the commands queued so far.
    pub transaction: Option<Transaction>,
    /// By CLIENT SETNAME or HELLO SETNAME.
    pub name: Vec<u8>,
}

/// Commands between MULTI and EXEC.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Whole frames, one behind the other.
    pub frames: Vec<u8>,
    /// The length of each.
    pub lengths: Vec<usize>,
    /// A command was refused while queueing: EXEC will refuse all.
    pub broken: bool,
}

/// A request that the engine leaves to its host, such as a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRequest {
    /// `None` for a notification.
    pub msgid: Option<u32>,
    /// The method.
    pub method: &'static str,
    /// Its one argument.
    pub argument: String,
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) protocol: Protocol,
    /// Received and not yet consumed: an incomplete frame, or more while replies pile up.
    pub(super) input: Vec<u8>,
    pub(super) held: HeldReplies,
    pub(super) authenticated: bool,
    /// No more is read; the connection closes once its replies are out.
    pub(super) closing: bool,
    /// The client sends nothing more.
    pub(super) finished: bool,
    /// Replies piled up: `input` holds whole frames that wait.
    pub(super) stalled: bool,
    /// In the shard's list of connections that others' held replies stopped.
    pub(super) stopped: bool,
    /// In the shard's list of connections with held replies.
    pub(super) waiting: bool,
    pub(super) host_requests: Vec<HostRequest>,
    pub(super) id: u64,
}

impl Protocol {
    /// By a connection's first byte; `None` if it is no protocol's.
    pub(super) fn detect(first: u8) -> Option<Self> {
        Some(match scan::detect(first)? {
            scan::Protocol::MsgpackRpc => Self::MsgpackRpc(FrameScanner::default()),
            scan::Protocol::Resp => Self::Resp(RespState::default()),
        })
    }
}

impl Connection {
    pub(super) fn new(id: u64, authenticated: bool) -> Self {
        Self {
            protocol: Protocol::Unknown,
            input: Vec::new(),
            held: HeldReplies::default(),
            authenticated,
            closing: false,
            finished: false,
            stalled: false,
            stopped: false,
            waiting: false,
            host_requests: Vec::new(),
            id,
        }
    }

    /// Should the host stop reading from it?
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.stalled || self.closing || self.finished
    }

    /// Is it to be closed? True only once no reply is held.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        (self.closing || self.finished && !self.stalled) && self.held.is_empty()
    }

    /// Has the client sent the token, or is none needed?
    #[must_use]
    pub const fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// `msgpack-rpc`, `resp2`, `resp3`, or nothing yet.
    #[must_use]
    pub fn protocol_name(&self) -> &'static str {
        match &self.protocol {
            Protocol::Unknown => "",
            Protocol::MsgpackRpc(_) => "msgpack-rpc",
            Protocol::Resp(state) if state.version == Version::Resp3 => "resp3",
            Protocol::Resp(_) => "resp2",
        }
    }

    /// Writes `unknown_outcome` in the place of each reply in `lost`: its commit failed.
    pub(super) fn fail(&self, lost: &[u8], out: &mut Vec<u8>) {
        let code = ErrorCode::UnknownOutcome;
        match self.protocol {
            Protocol::Unknown => 0,
            Protocol::MsgpackRpc(_) => rpc::fail_held(lost, out, code, code.meaning()),
            Protocol::Resp(_) => resp::fail_held(lost, out, code, code.meaning()),
        };
    }

    /// Requests for the host, taken.
    pub fn take_host_requests(&mut self) -> Vec<HostRequest> {
        std::mem::take(&mut self.host_requests)
    }
}

/// Encoded replies in the order in which they may leave, each group with the commit that it waits for.
/// The commits never fall along the queue.
#[derive(Debug, Default)]
pub(super) struct HeldReplies {
    groups: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
}

impl HeldReplies {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds replies that wait for `commit`; takes a buffer from `pool` where it needs one.
    pub(super) fn push(&mut self, commit: u64, replies: &[u8], pool: &mut Vec<Vec<u8>>) {
        self.bytes += replies.len();
        if let Some((last, buffer)) = self.groups.back_mut()
            && *last == commit
        {
            buffer.extend_from_slice(replies);
            return;
        }
        let mut buffer = pool.pop().unwrap_or_default();
        buffer.extend_from_slice(replies);
        self.groups.push_back((commit, buffer));
    }

    /// Moves what waits for nothing later than `durable` to `out`.
    pub(super) fn release(&mut self, durable: u64, out: &mut Vec<u8>, pool: &mut Vec<Vec<u8>>) {
        while self.groups.front().is_some_and(|(commit, _)| *commit <= durable) {
            if let Some((_, buffer)) = self.groups.pop_front() {
                self.bytes -= buffer.len();
                out.extend_from_slice(&buffer);
                give_back(buffer, pool);
            }
        }
    }

    /// Takes everything, whatever it waits for.
    pub(super) fn take_all(&mut self, out: &mut Vec<u8>, pool: &mut Vec<Vec<u8>>) {
        self.release(u64::MAX, out, pool);
    }
}

/// Puts a buffer into the pool, emptied. Bounded, so that an idle server is small again.
pub(super) fn give_back(mut buffer: Vec<u8>, pool: &mut Vec<Vec<u8>>) {
    const POOLED_BUFFERS_MAX: usize = 256;
    const POOLED_BUFFER_BYTES_MAX: usize = 64 * 1024;
    if pool.len() < POOLED_BUFFERS_MAX && buffer.capacity() <= POOLED_BUFFER_BYTES_MAX {
        buffer.clear();
        pool.push(buffer);
    }
}

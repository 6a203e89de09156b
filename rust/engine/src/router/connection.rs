//! A raw client's connection: bytes that don't make a request yet, replies that it is owed, and what its protocol
//! remembers. The loop thread owns it.

use super::host_requests::{HostRequest, OpenRequest};
use super::reply_row::ReplyRow;
use crate::connection_input::Protocol;
use crate::placement::hash_ring::key_hash;
use crate::resp_connection::{Peer, Transaction};
use crate::wire::resp::Command;

/// Memory of a reply that is owed, wherever it is waited for: here, in a link, in a row.
const OWED_REPLY_BYTES: usize = 64;

/// Why nothing more of a connection is carried out for now.
#[derive(Debug)]
pub(super) enum Hold {
    /// All replies have to leave first: the next command changes how they are written.
    Replies,
    /// All replies have to leave first: then this is for the host.
    Start(OpenRequest, HostRequest),
    /// The host has to answer: RESP's later commands must see what it did.
    Answer,
    /// The host connects the client to a shard, which gets the input. An answer says why it can't.
    Passage,
}

/// Which commands of RESP may begin beside those that aren't answered yet.
#[derive(Debug, Default)]
pub(super) enum Together {
    /// Those that keep their order on the way to the shards. So do all that are unanswered.
    #[default]
    Ordered,
    /// Only SET, GETDEL and DEL are unanswered; the hashes of their keys. Such of other keys may begin.
    Wholes(Vec<u64>),
    /// Only DBSIZE is. So may that.
    Counts,
}

/// Keys of unanswered commands that a new one is compared with.
const WHOLE_KEYS_MAX: usize = 64;

/// A transaction that is being carried out, command by command.
#[derive(Debug)]
pub(super) struct Execution {
    transaction: Transaction,
    /// Frames done, and their bytes.
    done: usize,
    done_bytes: usize,
}

impl Execution {
    pub(super) const fn new(transaction: Transaction) -> Self {
        Self { transaction, done: 0, done_bytes: 0 }
    }

    /// The next command's frame.
    pub(super) fn frame(&self) -> Option<&[u8]> {
        let length = *self.transaction.lengths.get(self.done)?;
        self.transaction.frames.get(self.done_bytes..self.done_bytes + length)
    }

    /// The next command is done.
    pub(super) fn advance(&mut self) {
        self.done_bytes += self.transaction.lengths.get(self.done).copied().unwrap_or(0);
        self.done += 1;
    }
}

/// A raw client's connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) id: u64,
    pub(super) protocol: Protocol,
    /// Received and not yet consumed: an incomplete frame, or more while replies pile up.
    pub(super) input: Vec<u8>,
    /// What of `input_bytes` the router counts for it in its sum.
    pub(super) input_bytes: usize,
    /// Replies that may leave.
    pub(super) out: Vec<u8>,
    /// It is in the list of those with something in `out`.
    pub(super) ready: bool,
    /// MessagePack-RPC's replies that are owed.
    pub(super) pending: usize,
    /// RESP's replies that are owed.
    pub(super) replies: ReplyRow,
    pub(super) authenticated: bool,
    /// No more is read; the connection closes once its replies are out.
    pub(super) closing: bool,
    /// The client sends nothing more.
    pub(super) finished: bool,
    /// `input` holds whole frames that wait.
    pub(super) stalled: bool,
    /// The host was told to look at it.
    pub(super) called: bool,
    /// In the list of connections that the bound for all stopped.
    pub(super) stopped: bool,
    pub(super) hold: Option<Hold>,
    pub(super) together: Together,
    pub(super) execution: Option<Execution>,
    /// Requests for the host to take.
    pub(super) host_requests: Vec<HostRequest>,
    /// Requests that the host has to answer.
    pub(super) open: Vec<OpenRequest>,
    pub(super) next_token: u64,
    pub(super) peer: Peer,
    /// The host says that the client reads nothing: what was sent to it fills its buffers.
    pub(super) unread: bool,
}

impl Connection {
    pub(super) fn new(id: u64, authenticated: bool, peer: Peer) -> Self {
        Self {
            id,
            protocol: Protocol::Unknown,
            input: Vec::new(),
            input_bytes: 0,
            out: Vec::new(),
            ready: false,
            pending: 0,
            replies: ReplyRow::default(),
            authenticated,
            closing: false,
            finished: false,
            stalled: false,
            called: false,
            stopped: false,
            hold: None,
            together: Together::Ordered,
            execution: None,
            host_requests: Vec::new(),
            open: Vec::new(),
            next_token: 0,
            peer,
            unread: false,
        }
    }

    /// May a command of RESP begin now? If not, then once all before it are answered.
    pub(super) fn may_begin(&mut self, command: &Command<'_>) -> bool {
        let is_free = !self.owes();
        if is_free {
            self.together = Together::Ordered;
        }
        match command {
            // They change how replies are written, and those before them are not written yet.
            Command::Hello { .. } | Command::Reset => is_free,
            Command::DbSize if is_free => {
                self.together = Together::Counts;
                true
            }
            Command::DbSize => matches!(self.together, Together::Counts),
            Command::Set { key, only_if: None, .. } | Command::GetDel { key } => self.may_begin_whole(is_free, &[key]),
            Command::Del { keys } => self.may_begin_whole(is_free, keys),
            _ => matches!(self.together, Together::Ordered),
        }
    }

    fn may_begin_whole(&mut self, is_free: bool, keys: &[&[u8]]) -> bool {
        if is_free {
            self.together = Together::Wholes(Vec::new());
        }
        let Together::Wholes(others) = &mut self.together else { return false };
        let hashes = keys.iter().map(|key| key_hash(key));
        if !is_free && (others.len() + keys.len() > WHOLE_KEYS_MAX || hashes.clone().any(|hash| others.contains(&hash)))
        {
            return false;
        }
        others.extend(hashes.take(WHOLE_KEYS_MAX + 1));
        true
    }

    /// Memory of what it sent and that is not carried out.
    pub(super) fn unfinished_bytes(&self) -> usize {
        let transaction = match &self.protocol {
            Protocol::Resp(state) => state.transaction.as_ref().map_or(0, Transaction::memory_bytes),
            _ => 0,
        };
        let execution = self.execution.as_ref().map_or(0, |execution| execution.transaction.memory_bytes());
        let held = match &self.hold {
            Some(Hold::Start(_, request)) => request.params.capacity(),
            _ => 0,
        };
        let requests: usize = self.host_requests.iter().map(|request| request.params.capacity()).sum();
        self.input.capacity() + transaction + execution + held + requests
    }

    /// Drops all of that.
    pub(super) fn drop_unfinished(&mut self) {
        self.input = Vec::new();
        self.execution = None;
        self.hold = None;
        if let Protocol::Resp(state) = &mut self.protocol {
            state.transaction = None;
        }
    }

    /// Takes an encoded reply of RESP, which is nothing for an empty command: it leaves behind those before it.
    pub(super) fn say(&mut self, reply: &[u8]) {
        if self.replies.is_empty() {
            self.out.extend_from_slice(reply);
        } else if !reply.is_empty() {
            self.replies.push_known(reply);
        }
    }

    /// Is a request unanswered?
    pub(super) fn owes(&self) -> bool {
        self.pending > 0 || !self.replies.is_empty()
    }

    /// Memory of what it is owed.
    #[inline]
    pub(super) fn owed_bytes(&self) -> usize {
        (self.pending + self.replies.len()) * OWED_REPLY_BYTES + self.replies.bytes() + self.out.len()
    }

    /// Does anything more than the reply itself follow when a reply is settled?
    #[inline]
    pub(super) const fn is_watched(&self) -> bool {
        self.stalled || self.closing || self.finished
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

    /// Is it to be closed? True only once every reply has been taken.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        (self.closing || self.finished && !self.stalled) && !self.owes() && self.open.is_empty() && self.out.is_empty()
    }

    /// Is a reply owed, or a request waiting?
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.stalled || self.owes()
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
}

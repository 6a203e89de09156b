//! Requests, independent of the protocol. Everything borrows from the received bytes.

use crate::error_code::ErrorCode;
use crate::limits::{KEY_BYTES_MAX, SESSION_ID_BYTES};

/// How safe a change must be before its reply is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is in the shard's memory.
    Applied,
    /// It is on disk, fsynced.
    Durable,
}

impl Level {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Durable => "durable",
        }
    }
}

/// A smart client's session with one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; SESSION_ID_BYTES]);

/// Options of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChangeOptions<'a> {
    /// The operation id, 1 to 64 bytes.
    pub id: Option<&'a [u8]>,
    /// When the id was made, in milliseconds on the clock of `hello`'s `time`.
    pub born: Option<u64>,
    /// `None` means the server's level.
    pub level: Option<Level>,
    /// Answer `{value, level, commit, exact}` instead of the bare value.
    pub detail: bool,
}

/// How fresh a coordinator's answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accuracy {
    /// A somewhat outdated value is enough.
    Cached,
    /// Includes everything answered before the request arrived.
    #[default]
    Recent,
    /// The same, and never from a replica.
    Exact,
}

/// Which copy a coordinator may read. A lone shard has only its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadFrom {
    /// The shard; a replica only if the shard can't answer.
    #[default]
    Primary,
    /// A replica, if there is a healthy one.
    Replica,
    /// Whichever answers first.
    Any,
}

/// Options of a read. A shard answers from its own memory, so `accuracy` has no effect there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// `None` means the server's level; `Applied` reads without waiting for a commit.
    pub level: Option<Level>,
    /// The reply waits until this commit is durable.
    pub min_commit: Option<u64>,
    /// How fresh the value must be.
    pub accuracy: Accuracy,
    /// Answer nil instead of 0 where there is no counter (`get` and `get_many`).
    pub or_nil: bool,
    /// Which copy to read.
    pub read_from: ReadFrom,
}

/// One item of `incr_many` or `apply`. A bad key or delta fails only this item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// The key, empty if `error` is set.
    pub key: &'a [u8],
    /// The delta, 0 if `error` is set.
    pub delta: i64,
    /// The operation id (`incr_many` and `delete_many` only).
    pub id: Option<&'a [u8]>,
    /// `bad_key` or `bad_delta`.
    pub error: Option<ErrorCode>,
    /// A hash of a bad item's encoded bytes, to recognise its repetition. 0 for good items.
    pub raw_hash: u64,
}

/// A replica's position, and what it wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TailRequest {
    /// The identity of the shard it follows: 32 hexadecimal digits on the wire. `None` if it has nothing.
    pub identity: Option<u128>,
    /// The last commit that it has in full; 0 if none.
    pub after: u64,
    /// The newest epoch that it knows.
    pub epoch: u64,
    /// The hash of that commit's last record.
    pub hash: u64,
    /// How many records of the next commit it has.
    pub index: u32,
    /// The checkpoint that it is reading, and the next page to send.
    pub page: Option<(u64, u64)>,
    /// How long to wait for new records.
    pub wait_ms: u64,
}

/// A request to a shard.
#[derive(Debug, Clone, PartialEq)]
pub enum Request<'a> {
    /// Add and answer the value after.
    Incr {
        /// 1 to 1,024 bytes, checked.
        key: &'a [u8],
        /// The amount to add.
        delta: i64,
        /// Options.
        options: ChangeOptions<'a>,
    },
    /// Independent increments, each with its own outcome.
    IncrMany {
        /// In order.
        items: Vec<Item<'a>>,
        /// `id` is always `None`, because items carry their own (`born` applies to all of them), and `detail` is false.
        options: ChangeOptions<'a>,
    },
    /// Independent removals of counters, each with its own outcome.
    DeleteMany {
        /// In order; their deltas are 0.
        items: Vec<Item<'a>>,
        /// `id` is always `None`, because items carry their own (`born` applies to all of them).
        options: ChangeOptions<'a>,
    },
    /// A session's numbered increments.
    Apply {
        /// The session.
        session: SessionId,
        /// The sequence of the first item, from 1.
        first_sequence: u64,
        /// The shard may forget results up to this sequence.
        acked_through: u64,
        /// In order.
        items: Vec<Item<'a>>,
        /// `None` means the server's level.
        level: Option<Level>,
    },
    /// One value, 0 if there is no counter.
    Get {
        /// A valid key.
        key: &'a [u8],
        /// Options.
        options: ReadOptions,
    },
    /// Several values.
    GetMany {
        /// Valid keys.
        keys: Vec<&'a [u8]>,
        /// Options.
        options: ReadOptions,
    },
    /// A total with its partials: on a lone shard, its own value.
    Total {
        /// A valid key.
        key: &'a [u8],
        /// Options.
        options: ReadOptions,
    },
    /// Several totals.
    TotalMany {
        /// Valid keys.
        keys: Vec<&'a [u8]>,
        /// Options.
        options: ReadOptions,
    },
    /// Take everything out; the counter stays, at 0.
    Drain {
        /// A valid key.
        key: &'a [u8],
        /// Options.
        options: ChangeOptions<'a>,
    },
    /// Take everything out and forget the counter.
    Delete {
        /// A valid key.
        key: &'a [u8],
        /// Options.
        options: ChangeOptions<'a>,
    },
    /// Forget every counter.
    DeleteAll {
        /// Options.
        options: ChangeOptions<'a>,
    },
    /// A page of counters.
    Scan {
        /// 0 to begin, otherwise the cursor from the last page.
        cursor: u64,
        /// About how many counters, 1 to `REQUEST_ITEMS_MAX`.
        count: usize,
        /// Only keys with this prefix.
        prefix: &'a [u8],
        /// Only counters whose home is another shard.
        foreign: bool,
    },
    /// The largest counters.
    Top {
        /// How many counters, up to `REQUEST_ITEMS_MAX`.
        n: usize,
        /// Only keys with this prefix.
        prefix: &'a [u8],
    },
    /// Authenticate, ask for the server's identity, and resume a session.
    Hello {
        /// The token, if the server requires one.
        token: Option<&'a [u8]>,
        /// The client's own name, for logs.
        client: Option<&'a [u8]>,
        /// A session to resume.
        session: Option<SessionId>,
        /// The shard that the client wants to talk to, by name.
        shard: Option<&'a [u8]>,
    },
    /// End a session.
    Bye {
        /// The session.
        session: SessionId,
    },
    /// Check that the server answers.
    Ping,
    /// Statistics.
    Stats,
    /// Whether the shard serves, and if not, why.
    Health {
        /// Also return the hashes of foreign counters from this index of their list on.
        foreign_from: Option<u64>,
    },
    /// The list of shards.
    Topology,
    /// The list of shards, once there is a newer version.
    WatchTopology {
        /// The version that the client has; 0 if none.
        known: u64,
    },
    /// Durable records for a replica.
    Tail(TailRequest),
    /// Copy the shard's state into a folder on the server's machine.
    Backup {
        /// UTF-8 path, not empty.
        directory: &'a str,
    },
}

/// Whether this is a valid key.
#[must_use]
pub const fn key_is_valid(key: &[u8]) -> bool {
    !key.is_empty() && key.len() <= KEY_BYTES_MAX
}

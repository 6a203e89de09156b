//! What a client can ask for, whichever protocol it came by. Everything borrows from the received bytes.

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
    /// The word on the wire.
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
    /// When the id was made, in the milliseconds of `hello`'s `time`.
    pub born: Option<u64>,
    /// `None` is the server's level.
    pub level: Option<Level>,
    /// Answer `{value, level, commit, exact}` instead of the bare value.
    pub detail: bool,
}

/// How fresh a coordinator's answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accuracy {
    /// As it was some time ago is enough.
    Cached,
    /// Everything that was answered before the request came.
    #[default]
    Recent,
    /// The same, and never from a replica.
    Exact,
}

/// Whose memory a coordinator may read. A server of one shard has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadFrom {
    /// The shard's; a replica's only where that can't answer.
    #[default]
    Primary,
    /// A replica's, where there is a healthy one.
    Replica,
    /// Whichever answers soonest.
    Any,
}

/// Options of a read. A shard answers from its own memory, which is always exact, so `accuracy` has no effect there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// `None` is the server's level; `Applied` reads without waiting for a commit.
    pub level: Option<Level>,
    /// The reply waits until this commit is durable.
    pub min_commit: Option<u64>,
    /// How fresh.
    pub accuracy: Accuracy,
    /// Answer nil instead of 0 where there is no counter (`get` and `get_many`).
    pub or_nil: bool,
    /// Whose memory.
    pub read_from: ReadFrom,
}

/// One item of `incr_many` or `apply`. A bad part spoils this item only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// The key, or empty where `error` is set.
    pub key: &'a [u8],
    /// The delta, or 0 where `error` is set.
    pub delta: i64,
    /// The operation id (`incr_many` only).
    pub id: Option<&'a [u8]>,
    /// `bad_key` or `bad_delta`.
    pub error: Option<ErrorCode>,
    /// A hash of the item's raw encoded bytes: tells a repeated bad item from another one. 0 for good items.
    pub raw_hash: u64,
}

/// What a replica has, and what it wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TailRequest {
    /// Whose history it is: 32 hexadecimal digits on the wire. `None` if it has nothing.
    pub identity: Option<u128>,
    /// The last commit that it has whole; 0: none.
    pub after: u64,
    /// The newest epoch that it knows.
    pub epoch: u64,
    /// The hash of that commit's last record.
    pub hash: u64,
    /// How many records of the next commit it has.
    pub index: u32,
    /// The checkpoint that it is reading, and the page that it wants next.
    pub page: Option<(u64, u64)>,
    /// How long to wait for something new.
    pub wait_ms: u64,
}

/// A request to a shard.
#[derive(Debug, Clone, PartialEq)]
pub enum Request<'a> {
    /// Add and answer the value after.
    Incr {
        /// 1 to 1,024 bytes, checked.
        key: &'a [u8],
        /// What to add.
        delta: i64,
        /// How.
        options: ChangeOptions<'a>,
    },
    /// Independent increments: each has its own outcome.
    IncrMany {
        /// In order.
        items: Vec<Item<'a>>,
        /// `id` is always `None` here, since items carry their own (`born` holds for each of them), and `detail` is false.
        options: ChangeOptions<'a>,
    },
    /// A session's numbered increments.
    Apply {
        /// Whose.
        session: SessionId,
        /// The sequence of the first item, from 1.
        first_sequence: u64,
        /// Results up to here need not be kept.
        acked_through: u64,
        /// In order.
        items: Vec<Item<'a>>,
        /// `None` is the server's level.
        level: Option<Level>,
    },
    /// One value, 0 where there is no counter.
    Get {
        /// Checked.
        key: &'a [u8],
        /// How.
        options: ReadOptions,
    },
    /// Several values.
    GetMany {
        /// Checked.
        keys: Vec<&'a [u8]>,
        /// How.
        options: ReadOptions,
    },
    /// A total with its partials: on a lone shard, its own value.
    Total {
        /// Checked.
        key: &'a [u8],
        /// How.
        options: ReadOptions,
    },
    /// Several totals.
    TotalMany {
        /// Checked.
        keys: Vec<&'a [u8]>,
        /// How.
        options: ReadOptions,
    },
    /// Take everything out; the counter stays, at 0.
    Drain {
        /// Checked.
        key: &'a [u8],
        /// How.
        options: ChangeOptions<'a>,
    },
    /// Take everything out and forget the counter.
    Delete {
        /// Checked.
        key: &'a [u8],
        /// How.
        options: ChangeOptions<'a>,
    },
    /// Forget every counter.
    DeleteAll {
        /// How.
        options: ChangeOptions<'a>,
    },
    /// A page of counters.
    Scan {
        /// 0 to begin, else what the last page gave.
        cursor: u64,
        /// About how many, 1 to `REQUEST_ITEMS_MAX`.
        count: usize,
        /// Only keys that begin so.
        prefix: &'a [u8],
        /// Only counters whose home is another shard.
        foreign: bool,
    },
    /// The largest counters.
    Top {
        /// How many, up to `REQUEST_ITEMS_MAX`.
        n: usize,
        /// Only keys that begin so.
        prefix: &'a [u8],
    },
    /// Who am I, who are you, and where is my session.
    Hello {
        /// To be allowed in.
        token: Option<&'a [u8]>,
        /// The client's own name, for logs.
        client: Option<&'a [u8]>,
        /// A session to resume.
        session: Option<SessionId>,
    },
    /// End a session.
    Bye {
        /// Which.
        session: SessionId,
    },
    /// Are you there.
    Ping,
    /// Figures.
    Stats,
    /// Whether and why not.
    Health {
        /// Also give the hashes of foreign counters from this place of their list on.
        foreign_from: Option<u64>,
    },
    /// The list of shards.
    Topology,
    /// The list of shards, once it is newer.
    WatchTopology {
        /// The version that the client has; 0 if none.
        known: u64,
    },
    /// Durable records for a replica.
    Tail(TailRequest),
    /// Copy the shard's state into a folder of the server's machine.
    Backup {
        /// UTF-8 path, not empty.
        directory: &'a str,
    },
}

/// Is this a key that a counter may have?
#[must_use]
pub const fn key_is_valid(key: &[u8]) -> bool {
    !key.is_empty() && key.len() <= KEY_BYTES_MAX
}

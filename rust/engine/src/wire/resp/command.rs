//! What a Redis client can ask for. Everything borrows from the received bytes.

use super::reply_writer::Version;

/// A user's name, which is not looked at, and the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// Present in the form with two arguments.
    pub user: Option<&'a [u8]>,
    /// The token.
    pub password: &'a [u8],
}

/// A subcommand of CLIENT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCommand<'a> {
    /// Remember a name for logs. Empty: forget it.
    SetName(&'a [u8]),
    /// Answer the name.
    GetName,
    /// The client's library and its version: answer OK.
    SetInfo,
    /// Answer the connection's number.
    Id,
}

/// A subcommand of COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableQuery {
    /// COMMAND, COMMAND INFO, COMMAND LIST: an empty array is a valid answer.
    Rows,
    /// COMMAND DOCS (redis-cli sends it): an empty map is a valid answer.
    Docs,
    /// COMMAND COUNT.
    Count,
}

/// A command with its arguments, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// An empty line or `*0`: no answer.
    Empty,
    /// INCR, INCRBY, DECR, DECRBY: answer the value after.
    IncrBy {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
        /// What to add.
        delta: i64,
    },
    /// Answer the value as a bulk string, nil where there is no counter.
    Get {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
    },
    /// The same for several.
    MGet {
        /// At least one.
        keys: Vec<&'a [u8]>,
    },
    /// Answer the value and delete the counter.
    GetDel {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
    },
    /// Delete and answer how many there were.
    Del {
        /// At least one.
        keys: Vec<&'a [u8]>,
    },
    /// Answer how many exist, one given twice counting twice.
    Exists {
        /// At least one.
        keys: Vec<&'a [u8]>,
    },
    /// Make the value this.
    Set {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
        /// The new value.
        value: i64,
        /// Answer the value before, or nil, instead of OK.
        get: bool,
    },
    /// A page of keys.
    Scan {
        /// 0 to begin, else what the last page gave.
        cursor: u64,
        /// About how many, 1 to `REQUEST_ITEMS_MAX`.
        count: usize,
        /// A glob pattern, see [`glob`](crate::wire::glob).
        pattern: Option<&'a [u8]>,
        /// `TYPE` asked for something that isn't a string: nothing matches.
        other_type: bool,
    },
    /// How many counters.
    DbSize,
    /// `string`, or `none` where there is no counter.
    Type {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
    },
    /// `+PONG`, or the message as a bulk string.
    Ping {
        /// To be echoed.
        message: Option<&'a [u8]>,
    },
    /// Answer the message.
    Echo {
        /// To be echoed.
        message: &'a [u8],
    },
    /// Choose the version, sign in, and answer what the server is.
    Hello {
        /// `None`: leave it.
        version: Option<Version>,
        /// From `AUTH user password`.
        credentials: Option<Credentials<'a>>,
        /// From `SETNAME name`.
        name: Option<&'a [u8]>,
    },
    /// Sign in.
    Auth(Credentials<'a>),
    /// Database 0, the only one: answer OK.
    Select,
    /// CLIENT.
    Client(ClientCommand<'a>),
    /// COMMAND.
    Table(TableQuery),
    /// Figures as text.
    Info {
        /// Which; none means all.
        sections: Vec<&'a [u8]>,
    },
    /// CONFIG GET: a map of those that there are.
    ConfigGet {
        /// Glob patterns of names.
        patterns: Vec<&'a [u8]>,
    },
    /// Delete every counter.
    FlushAll,
    /// Answer OK and close.
    Quit,
    /// Forget the connection's state: version 2, not signed in, no transaction. Answer `+RESET`.
    Reset,
    /// Begin to queue.
    Multi,
    /// Do what was queued and answer an array.
    Exec,
    /// Forget what was queued.
    Discard,
    /// Refused, see [`words::WATCH_REFUSED`](super::words::WATCH_REFUSED).
    Watch,
    /// Nothing is watched: answer OK.
    Unwatch,
}

/// What happens to a command between MULTI and EXEC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InTransaction {
    /// Answer `+QUEUED`.
    Queue,
    /// Do it now.
    Run,
    /// Refuse it with [`words::NOT_IN_MULTI`](super::words::NOT_IN_MULTI), and EXEC with it.
    Refuse,
}

impl Command<'_> {
    /// What happens to this command between MULTI and EXEC, as in Redis.
    #[must_use]
    pub const fn in_transaction(&self) -> InTransaction {
        match self {
            Self::Empty | Self::Multi | Self::Exec | Self::Discard | Self::Watch | Self::Quit | Self::Reset => {
                InTransaction::Run
            }
            // They change how replies are written or whether they are.
            Self::Hello { .. } | Self::Auth(_) => InTransaction::Refuse,
            _ => InTransaction::Queue,
        }
    }

    /// May it be sent before signing in?
    #[must_use]
    pub const fn before_auth(&self) -> bool {
        matches!(self, Self::Empty | Self::Hello { .. } | Self::Auth(_) | Self::Quit | Self::Reset)
    }
}

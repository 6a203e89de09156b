//! What a Redis client can ask for. Everything borrows from the received bytes.

use super::command_table::CommandRow;
use super::reply_writer::Version;

/// A user's name, which is not looked at, and the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// Present in the form with two arguments.
    pub user: Option<&'a [u8]>,
    /// The token.
    pub password: &'a [u8],
}

/// Which connections CLIENT LIST tells of, or CLIENT KILL closes. All of what is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFilter<'a> {
    /// One of these numbers.
    pub ids: Option<Vec<u64>>,
    /// This address, as CLIENT LIST shows it.
    pub address: Option<&'a [u8]>,
    /// A kind of client that there is none of.
    pub nobody: bool,
    /// Not the one that asks.
    pub skip_self: bool,
}

/// A subcommand of CLIENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCommand<'a> {
    /// Remember a name, for CLIENT LIST. Empty: forget it.
    SetName(&'a [u8]),
    /// Answer the name.
    GetName,
    /// Remember the name of the client's library.
    SetLibraryName(&'a [u8]),
    /// Remember its version.
    SetLibraryVersion(&'a [u8]),
    /// Answer the connection's number.
    Id,
    /// A line about this connection.
    Info,
    /// A line for each connection.
    List(ClientFilter<'a>),
    /// Close connections and answer how many.
    Kill(ClientFilter<'a>),
    /// Close the one at an address: answer OK, or an error if there is none.
    KillOne(&'a [u8]),
    /// What it turns on or off does nothing here: answer OK.
    NoEffect,
}

/// A subcommand of COMMAND.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableQuery<'a> {
    /// COMMAND: every row.
    All,
    /// COMMAND INFO: the rows of these.
    Rows(Vec<&'a [u8]>),
    /// COMMAND DOCS: what these do; none means all.
    Docs(Vec<&'a [u8]>),
    /// COMMAND COUNT.
    Count,
    /// COMMAND LIST: every name.
    List,
    /// Those of a module: there is none.
    ListModule,
    /// Those in a category.
    ListCategory(&'a [u8]),
    /// Those that match.
    ListPattern(&'a [u8]),
    /// COMMAND GETKEYS: a command with its arguments.
    GetKeys(Vec<&'a [u8]>),
}

/// A condition of SET.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetIf {
    /// NX: there is no counter yet.
    Missing,
    /// XX: there is one.
    Exists,
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
        /// Else leave it, and answer nil, or with `get` the value that it has.
        only_if: Option<SetIf>,
    },
    /// Set it if there is no counter; answer 1 if it was set, 0 if not.
    SetNx {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
        /// The new value.
        value: i64,
    },
    /// Set several, in order; answer OK.
    MSet {
        /// At least one.
        pairs: Vec<(&'a [u8], i64)>,
    },
    /// Answer how many characters GET would give.
    Strlen {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
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
    /// Every key that matches, if there are at most [`KEYS_COUNTERS_MAX`](super::KEYS_COUNTERS_MAX) counters.
    Keys {
        /// A glob pattern.
        pattern: &'a [u8],
    },
    /// Some key, or nil.
    RandomKey,
    /// How many counters.
    DbSize,
    /// OBJECT ENCODING: `int`, nil where there is no counter.
    Encoding {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
    },
    /// MEMORY USAGE: bytes, nil where there is no counter.
    MemoryUsage {
        /// 1 to 1,024 bytes.
        key: &'a [u8],
    },
    /// When the last checkpoint was made, in seconds since 1970.
    LastSave,
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
    Table(TableQuery<'a>),
    /// HELP of a command that has subcommands.
    Help(&'static CommandRow),
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
    /// Seconds since 1970, and microseconds.
    Time,
    /// `master`.
    Role,
    /// 0: nothing waits for replicas.
    Wait,
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

//! The commands, once: the parser looks them up here, COMMAND answers from here, and `docs/wire.md` lists what is here
//! (`tests/wire_document.rs` compares them).

use super::command_error::CommandError;
use crate::error_code::ErrorCode;

/// What the parser does with a command's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Incr,
    IncrBy,
    Decr,
    DecrBy,
    Get,
    MGet,
    GetDel,
    GetSet,
    Del,
    Exists,
    Set,
    SetNx,
    MSet,
    Strlen,
    Scan,
    Keys,
    RandomKey,
    DbSize,
    Type,
    Object,
    ObjectEncoding,
    Memory,
    MemoryUsage,
    Ping,
    Echo,
    Time,
    Hello,
    Auth,
    Select,
    Client,
    ClientGetName,
    ClientId,
    ClientInfo,
    ClientKill,
    ClientList,
    ClientNoEvict,
    ClientNoTouch,
    ClientSetInfo,
    ClientSetName,
    Command,
    CommandCount,
    CommandDocs,
    CommandGetKeys,
    CommandInfo,
    CommandList,
    Info,
    Config,
    ConfigGet,
    Role,
    LastSave,
    Wait,
    FlushAll,
    Quit,
    Reset,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    /// HELP of the command that this is a subcommand of.
    Help,
}

/// Which arguments are keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPlaces {
    /// None.
    None,
    /// The first one.
    First,
    /// Each.
    All,
    /// The first, the third and so on.
    EverySecond,
    /// The first one behind a subcommand.
    Second,
}

impl KeyPlaces {
    /// First key, last key and step, as COMMAND INFO gives them: the command's name is 0, and -1 is the last argument.
    #[must_use]
    pub const fn range(self) -> (i64, i64, i64) {
        match self {
            Self::None => (0, 0, 0),
            Self::First => (1, 1, 1),
            Self::All => (1, -1, 1),
            Self::EverySecond => (1, -1, 2),
            Self::Second => (2, 2, 1),
        }
    }
}

/// What happens to a command between MULTI and EXEC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InTransaction {
    /// Answer `+QUEUED`.
    Queue,
    /// Do it now.
    Run,
}

/// What COMMAND INFO tells of a command, beside its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// Changes counters.
    pub const WRITE: Self = Self(1);
    /// Reads counters.
    pub const READONLY: Self = Self(2);
    /// Refused where a bound of memory is reached.
    pub const DENYOOM: Self = Self(4);
    /// Costs the same however many counters there are.
    pub const FAST: Self = Self(8);
    /// May be sent before signing in.
    pub const NO_AUTH: Self = Self(16);
    /// For operators.
    pub const ADMIN: Self = Self(32);

    const NAMES: [(Self, &'static str); 6] = [
        (Self::WRITE, "write"),
        (Self::READONLY, "readonly"),
        (Self::DENYOOM, "denyoom"),
        (Self::ADMIN, "admin"),
        (Self::FAST, "fast"),
        (Self::NO_AUTH, "no_auth"),
    ];
    const NONE: Self = Self(0);
    const CHANGE: Self = Self(Self::WRITE.0 | Self::DENYOOM.0 | Self::FAST.0);
    const REMOVE: Self = Self(Self::WRITE.0 | Self::FAST.0);
    const READ: Self = Self(Self::READONLY.0 | Self::FAST.0);
    const SIGN_IN: Self = Self(Self::FAST.0 | Self::NO_AUTH.0);

    /// Has it all of these?
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// In Redis's words.
    pub fn names(self) -> impl Iterator<Item = &'static str> + Clone {
        Self::NAMES.iter().filter(move |(flag, _)| self.has(*flag)).map(|(_, name)| *name)
    }
}

/// A command, or a subcommand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandRow {
    /// `incr`, or `client|setname`.
    pub name: &'static str,
    pub(super) kind: Kind,
    /// As in Redis: how many words there must be, name and subcommand counted. Negative: at least so many.
    pub arity: i64,
    /// Which arguments are keys.
    pub keys: KeyPlaces,
    /// For COMMAND INFO.
    pub flags: Flags,
    /// `string`, `generic` and so on: the topic that Redis's documentation has it under.
    pub group: &'static str,
    /// The version of Redis that had it first.
    pub since: &'static str,
    /// Its arguments, in the notation of `argument_notation.rs`.
    pub arguments: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// Where it has any.
    pub subcommands: &'static [CommandRow],
}

impl CommandRow {
    /// The row of a command, in any case.
    #[must_use]
    pub fn find(sent: &[u8]) -> Option<&'static Self> {
        COMMANDS.iter().find(|row| row.name.as_bytes().eq_ignore_ascii_case(sent))
    }

    /// The row of a subcommand, in any case.
    #[must_use]
    pub fn find_subcommand(&self, sent: &[u8]) -> Option<&'static Self> {
        self.subcommands.iter().find(|row| row.own_name().as_bytes().eq_ignore_ascii_case(sent))
    }

    /// The row of `get`, or of `client|id`.
    #[must_use]
    pub fn find_full(sent: &[u8]) -> Option<&'static Self> {
        match memchr::memchr(b'|', sent) {
            Some(end) => Self::find(sent.get(..end)?)?.find_subcommand(sent.get(end + 1..)?),
            None => Self::find(sent),
        }
    }

    /// `setname` of `client|setname`.
    #[must_use]
    pub fn own_name(&self) -> &'static str {
        self.name.rsplit('|').next().unwrap_or(self.name)
    }

    /// Do so many words, names counted, have the right number?
    #[must_use]
    pub const fn takes(&self, words: usize) -> bool {
        if self.arity < 0 { words as u64 >= self.arity.unsigned_abs() } else { words as u64 == self.arity as u64 }
    }

    /// What happens to it between MULTI and EXEC, as in Redis.
    #[must_use]
    pub const fn in_transaction(&self) -> InTransaction {
        match self.kind {
            Kind::Multi | Kind::Exec | Kind::Discard | Kind::Watch | Kind::Quit | Kind::Reset => InTransaction::Run,
            _ => InTransaction::Queue,
        }
    }

    /// Redis's categories of access.
    #[must_use]
    pub fn categories(&self) -> Vec<&'static str> {
        let flags = self.flags;
        let of_group = match self.group {
            "generic" => "@keyspace",
            "string" => "@string",
            "connection" => "@connection",
            "transactions" => "@transaction",
            _ => "",
        };
        let named = [
            (flags.has(Flags::WRITE), "@write"),
            (flags.has(Flags::READONLY), "@read"),
            (flags.has(Flags::ADMIN), "@admin"),
            (flags.has(Flags::ADMIN), "@dangerous"),
            (!of_group.is_empty(), of_group),
            (flags.has(Flags::FAST), "@fast"),
            (!flags.has(Flags::FAST), "@slow"),
        ];
        named.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect()
    }

    const fn group(self, group: &'static str, since: &'static str) -> Self {
        Self { group, since, ..self }
    }

    const fn of(self, subcommands: &'static [Self]) -> Self {
        Self { subcommands, ..self }
    }
}

const fn row(
    name: &'static str,
    kind: Kind,
    arity: i64,
    keys: KeyPlaces,
    flags: Flags,
    arguments: &'static str,
    summary: &'static str,
) -> CommandRow {
    CommandRow { name, kind, arity, keys, flags, group: "", since: "", arguments, summary, subcommands: &[] }
}

const fn counter(
    name: &'static str,
    kind: Kind,
    arity: i64,
    keys: KeyPlaces,
    flags: Flags,
    arguments: &'static str,
    summary: &'static str,
) -> CommandRow {
    row(name, kind, arity, keys, flags, arguments, summary).group("string", "1.0.0")
}

const fn key_command(
    name: &'static str,
    kind: Kind,
    arity: i64,
    keys: KeyPlaces,
    flags: Flags,
    arguments: &'static str,
    summary: &'static str,
) -> CommandRow {
    row(name, kind, arity, keys, flags, arguments, summary).group("generic", "1.0.0")
}

const fn connection(
    name: &'static str,
    kind: Kind,
    arity: i64,
    flags: Flags,
    arguments: &'static str,
    summary: &'static str,
) -> CommandRow {
    row(name, kind, arity, KeyPlaces::None, flags, arguments, summary).group("connection", "1.0.0")
}

const fn server(
    name: &'static str,
    kind: Kind,
    arity: i64,
    flags: Flags,
    arguments: &'static str,
    summary: &'static str,
) -> CommandRow {
    row(name, kind, arity, KeyPlaces::None, flags, arguments, summary).group("server", "1.0.0")
}

const fn transaction(name: &'static str, kind: Kind, arity: i64, summary: &'static str) -> CommandRow {
    row(name, kind, arity, KeyPlaces::None, Flags::FAST, "", summary).group("transactions", "1.2.0")
}

use KeyPlaces::{All, EverySecond, First, None as NoKeys, Second};

const CLIENT: &[CommandRow] = &[
    connection("client|getname", Kind::ClientGetName, 2, Flags::NONE, "", "The connection's name, nil without one."),
    connection("client|help", Kind::Help, 2, Flags::NONE, "", "These lines."),
    connection("client|id", Kind::ClientId, 2, Flags::NONE, "", "The connection's number."),
    connection("client|info", Kind::ClientInfo, 2, Flags::NONE, "", "What the server knows of this connection."),
    connection(
        "client|kill",
        Kind::ClientKill,
        -3,
        Flags::ADMIN,
        "address|<ID id|ADDR address|TYPE type|USER user|SKIPME yes-or-no> ...",
        "Closes connections once their replies have left.",
    ),
    connection(
        "client|list",
        Kind::ClientList,
        -2,
        Flags::ADMIN,
        "[TYPE type] [ID id ...]",
        "A line for each connection of a Redis client.",
    ),
    connection("client|no-evict", Kind::ClientNoEvict, 3, Flags::ADMIN, "ON|OFF", "OK: no client is ever evicted."),
    connection("client|no-touch", Kind::ClientNoTouch, 3, Flags::NONE, "ON|OFF", "OK: reads change no counter's age."),
    connection(
        "client|setinfo",
        Kind::ClientSetInfo,
        4,
        Flags::NONE,
        "LIB-NAME name|LIB-VER version",
        "Notes the client's library, for CLIENT LIST.",
    ),
    connection("client|setname", Kind::ClientSetName, 3, Flags::NONE, "name", "Names the connection."),
];

const COMMAND: &[CommandRow] = &[
    server("command|count", Kind::CommandCount, 2, Flags::NONE, "", "How many commands there are."),
    server(
        "command|docs",
        Kind::CommandDocs,
        -2,
        Flags::NONE,
        "[command ...]",
        "What commands do, and their arguments.",
    ),
    server(
        "command|getkeys",
        Kind::CommandGetKeys,
        -4,
        Flags::NONE,
        "command [argument ...]",
        "The keys in a command.",
    ),
    server("command|help", Kind::Help, 2, Flags::NONE, "", "These lines."),
    server("command|info", Kind::CommandInfo, -2, Flags::NONE, "[command ...]", "Arity, flags and keys of commands."),
    server(
        "command|list",
        Kind::CommandList,
        -2,
        Flags::NONE,
        "[FILTERBY <MODULE module|ACLCAT category|PATTERN pattern>]",
        "The names of commands.",
    ),
];

const CONFIG: &[CommandRow] = &[
    server("config|get", Kind::ConfigGet, -3, Flags::ADMIN, "pattern ...", "Settings, in Redis's terms."),
    server("config|help", Kind::Help, 2, Flags::NONE, "", "These lines."),
];

const MEMORY: &[CommandRow] = &[
    server("memory|help", Kind::Help, 2, Flags::NONE, "", "These lines."),
    CommandRow {
        keys: Second,
        ..server(
            "memory|usage",
            Kind::MemoryUsage,
            -3,
            Flags::READONLY,
            "key [SAMPLES count]",
            "About how many bytes a counter takes, nil without one.",
        )
    },
];

const OBJECT: &[CommandRow] = &[
    key_command(
        "object|encoding",
        Kind::ObjectEncoding,
        3,
        Second,
        Flags::READONLY,
        "key",
        "`int`, nil where there is no counter.",
    ),
    key_command("object|help", Kind::Help, 2, NoKeys, Flags::NONE, "", "These lines."),
];

/// All of them, the most frequent first.
#[rustfmt::skip]
pub const COMMANDS: &[CommandRow] = &[
    counter("incr", Kind::Incr, 2, First, Flags::CHANGE, "key", "Adds 1; gives the value after."),
    counter("incrby", Kind::IncrBy, 3, First, Flags::CHANGE, "key n", "Adds; gives the value after."),
    counter("get", Kind::Get, 2, First, Flags::READ, "key", "The value as a string, nil where there is no counter."),
    connection("ping", Kind::Ping, -1, Flags::FAST, "[text]", "PONG, or the text."),
    counter("decr", Kind::Decr, 2, First, Flags::CHANGE, "key", "Subtracts 1; gives the value after."),
    counter("decrby", Kind::DecrBy, 3, First, Flags::CHANGE, "key n", "Subtracts; gives the value after."),
    counter("mget", Kind::MGet, -2, All, Flags::READ, "key ...", "The values, nil where there is no counter."),
    transaction("multi", Kind::Multi, 1, "Begins a transaction: what follows is queued."),
    transaction("exec", Kind::Exec, 1, "Runs what was queued, as one commit: the disk has all of it or nothing."),
    counter("set", Kind::Set, -3, First, Flags::CHANGE, "key n [NX|XX] [GET] [KEEPTTL]",
        "Makes the value this; with GET gives the one before. `n` must be an integer."),
    key_command("del", Kind::Del, -2, All, Flags::REMOVE, "key ...", "Deletes counters, all or none; gives how many there were."),
    counter("getdel", Kind::GetDel, 2, First, Flags::REMOVE, "key", "Deletes the counter; gives its value."),
    key_command("exists", Kind::Exists, -2, All, Flags::READ, "key ...", "How many of them exist; one named twice counts twice."),
    key_command("scan", Kind::Scan, -2, NoKeys, Flags::READONLY, "cursor [MATCH pattern] [COUNT count] [TYPE type]",
        "A page of keys; cursors are unsigned integers of 64 bits."),
    server("dbsize", Kind::DbSize, 1, Flags::READ, "", "How many counters there are."),
    key_command("type", Kind::Type, 2, First, Flags::READ, "key", "`string`, or `none` where there is no counter."),
    connection("echo", Kind::Echo, 2, Flags::FAST, "text", "The text."),
    connection("hello", Kind::Hello, -1, Flags::SIGN_IN, "[protover [AUTH user token] [SETNAME name]]",
        "Chooses RESP2 or RESP3; gives a map of server, version, proto and more."),
    connection("auth", Kind::Auth, -2, Flags::SIGN_IN, "[user] token", "Signs in. The user's name is not looked at."),
    connection("select", Kind::Select, 2, Flags::FAST, "0", "OK: there is one database, 0."),
    connection("client", Kind::Client, -2, Flags::NONE, "", "About connections.").of(CLIENT),
    server("command", Kind::Command, -1, Flags::NONE, "", "This table, for clients.").of(COMMAND),
    server("info", Kind::Info, -1, Flags::NONE, "[section ...]", "Figures, in Redis's terms and in PyCounter's."),
    server("config", Kind::Config, -2, Flags::NONE, "", "About settings.").of(CONFIG),
    server("flushall", Kind::FlushAll, -1, Flags::WRITE, "[ASYNC|SYNC]", "Deletes every counter, before it answers."),
    server("flushdb", Kind::FlushAll, -1, Flags::WRITE, "[ASYNC|SYNC]", "The same."),
    connection("quit", Kind::Quit, -1, Flags::SIGN_IN, "", "OK, and the connection is closed."),
    connection("reset", Kind::Reset, 1, Flags::SIGN_IN, "", "Makes the connection as it was at first."),
    transaction("discard", Kind::Discard, 1, "Forgets what was queued."),
    CommandRow { keys: All, arguments: "key ...", ..transaction("watch", Kind::Watch, -2,
        "Refused: an increment needs no watching.") },
    transaction("unwatch", Kind::Unwatch, 1, "OK."),
    key_command("unlink", Kind::Del, -2, All, Flags::REMOVE, "key ...", "DEL under another name."),
    key_command("touch", Kind::Exists, -2, All, Flags::READ, "key ...", "EXISTS under another name."),
    counter("strlen", Kind::Strlen, 2, First, Flags::READ, "key", "How long the value is as a string, 0 where there is no counter."),
    counter("getset", Kind::GetSet, 3, First, Flags::CHANGE, "key n", "SET with GET."),
    counter("setnx", Kind::SetNx, 3, First, Flags::CHANGE, "key n", "Sets it if there is no counter; gives 1 if it did, 0 if not."),
    counter("mset", Kind::MSet, -3, EverySecond, Flags(Flags::WRITE.0 | Flags::DENYOOM.0), "<key n> ...", "Sets several."),
    key_command("keys", Kind::Keys, 2, NoKeys, Flags::READONLY, "pattern",
        "The keys that match; refused with more than 65,536 counters: use SCAN."),
    key_command("randomkey", Kind::RandomKey, 1, NoKeys, Flags::READONLY, "", "Some key, nil without counters."),
    key_command("object", Kind::Object, -2, NoKeys, Flags::NONE, "", "About one counter.").of(OBJECT),
    server("memory", Kind::Memory, -2, Flags::NONE, "", "About memory.").of(MEMORY),
    server("time", Kind::Time, 1, Flags::FAST, "", "The server's time: seconds since 1970, and microseconds."),
    server("role", Kind::Role, 1, Flags::FAST, "", "`master`, whoever asks."),
    server("lastsave", Kind::LastSave, 1, Flags::FAST, "",
        "When the last checkpoint was made, in seconds since 1970; in a cluster the oldest of the shards'."),
    key_command("wait", Kind::Wait, 3, NoKeys, Flags::NONE, "replicas timeout",
        "0 at once: a reply never waits for a replica, and needs none."),
];

/// Commands of Redis that clients send by themselves or people try, and why there are none here.
const ABSENT: &[(&[&str], &str)] = &[
    (
        &["subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe", "publish", "pubsub"],
        "PyCounter has counters, and no channels to subscribe to",
    ),
    (&["expire", "pexpire", "expireat", "pexpireat", "setex", "psetex", "getex"], "PyCounter's counters don't expire"),
    (&["incrbyfloat", "append", "setrange", "setbit"], "PyCounter stores integers of 64 bits and nothing else"),
];
/// In Redis's words: clients look for a cluster by these.
const OF_A_CLUSTER: &[&str] = &["cluster", "readonly", "readwrite", "asking"];

/// Why there is no such command, where more can be said than that.
pub(super) fn absence(sent: &[u8]) -> Option<CommandError> {
    let is = |name: &&str| name.as_bytes().eq_ignore_ascii_case(sent);
    if OF_A_CLUSTER.iter().any(&is) {
        return Some(CommandError::new(ErrorCode::UnknownMethod, "ERR This instance has cluster support disabled"));
    }
    let (names, reason) = ABSENT.iter().find(|(names, _)| names.iter().any(&is))?;
    let name = names.iter().find(|name| is(name))?.to_ascii_uppercase();
    Some(CommandError::owned(ErrorCode::UnknownMethod, format!("ERR unknown command '{name}': {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = &'static CommandRow> {
        COMMANDS.iter().flat_map(|row| std::iter::once(row).chain(row.subcommands))
    }

    #[test]
    fn each_row_is_found_by_its_name_only() {
        let mut names: Vec<_> = all().map(|row| row.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for row in all() {
            let found = CommandRow::find_full(row.name.to_ascii_uppercase().as_bytes()).map(|found| found.name);
            assert_eq!(found, Some(row.name));
            assert!(row.name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'|' | b'-')));
            assert!(row.summary.ends_with('.') && !row.group.is_empty(), "{}", row.name);
            assert_eq!(
                row.subcommands.is_empty(),
                !matches!(row.name, "client" | "command" | "config" | "object" | "memory")
            );
            assert!(row.subcommands.iter().all(|own| own.name.starts_with(&format!("{}|", row.name))));
        }
        for (names, _) in ABSENT {
            assert!(names.iter().chain(OF_A_CLUSTER).all(|name| CommandRow::find(name.as_bytes()).is_none()));
        }
    }

    #[test]
    fn an_arity_counts_as_in_redis() {
        let takes = |name: &str, words: usize| CommandRow::find_full(name.as_bytes()).unwrap().takes(words);
        assert!(takes("get", 2) && !takes("get", 1) && !takes("get", 3));
        assert!(takes("mget", 2) && takes("mget", 99) && !takes("mget", 1));
        assert!(takes("client|setname", 3) && !takes("client|setname", 2) && !takes("client|setname", 4));
    }
}

//! Errors in Redis's words.
//!
//! Clients turn an error's first word into a class, and some classes make them act on their own. So:
//!
//! * `LOADING` is never used: redis-py takes it for a lost connection, reconnects and sends the request again.
//! * `READONLY`, `TRYAGAIN`, `CLUSTERDOWN`, `MASTERDOWN` and `MOVED` are never used: go-redis sends the
//!   request again or elsewhere, Sentinel clients drop the connection and look for another primary. None
//!   of that helps against a full disk.
//! * `read_only` is `MISCONF`, which Redis says when it can't write to its disk and therefore takes no changes.
//! * `overloaded` is `OOM`, which Redis says when a bound of memory is reached and nothing was done.
//! * `unknown_outcome` and all others are `ERR`, on which no client acts by itself.

use std::borrow::Cow;

use crate::error_code::ErrorCode;

/// An error line without its `-` and without the code that is appended in parentheses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    /// For metrics, and for the parentheses.
    pub code: ErrorCode,
    /// First word and sentence, as clients of Redis know them.
    pub line: Cow<'static, str>,
}

impl CommandError {
    pub(super) const fn new(code: ErrorCode, line: &'static str) -> Self {
        Self { code, line: Cow::Borrowed(line) }
    }

    pub(super) const fn owned(code: ErrorCode, line: String) -> Self {
        Self { code, line: Cow::Owned(line) }
    }
}

/// The first word of a code's errors.
pub(super) const fn prefix(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Unauthenticated => "NOAUTH",
        ErrorCode::Forbidden => "NOPERM",
        ErrorCode::Overloaded => "OOM",
        ErrorCode::ReadOnly => "MISCONF",
        _ => "ERR",
    }
}

/// Errors whose words are fixed, for the parser and for those who carry commands out.
pub mod words {
    use super::CommandError;
    use crate::error_code::ErrorCode;

    /// No AUTH was sent, and it is needed.
    pub const NO_AUTH: CommandError = CommandError::new(ErrorCode::Unauthenticated, "NOAUTH Authentication required.");
    /// The token is wrong.
    pub const WRONG_PASS: CommandError =
        CommandError::new(ErrorCode::Unauthenticated, "WRONGPASS invalid username-password pair or user is disabled.");
    /// AUTH was sent to a server that has no token.
    pub const AUTH_NOT_SET: CommandError = CommandError::new(
        ErrorCode::BadRequest,
        "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
    );
    /// The value would leave 64 bits.
    pub const OVERFLOW: CommandError =
        CommandError::new(ErrorCode::Overflow, "ERR increment or decrement would overflow");
    /// MULTI within MULTI.
    pub const MULTI_NESTED: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR MULTI calls can not be nested");
    /// EXEC alone.
    pub const EXEC_WITHOUT_MULTI: CommandError = CommandError::new(ErrorCode::BadRequest, "ERR EXEC without MULTI");
    /// DISCARD alone.
    pub const DISCARD_WITHOUT_MULTI: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR DISCARD without MULTI");
    /// EXEC after a command that was refused when it was queued.
    pub const EXEC_ABORT: CommandError =
        CommandError::new(ErrorCode::BadRequest, "EXECABORT Transaction discarded because of previous errors.");
    /// EXEC with arguments ends the transaction.
    pub const EXEC_ARITY: CommandError = CommandError::new(
        ErrorCode::BadRequest,
        "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command",
    );
    /// A command that has no room in its transaction.
    pub const TRANSACTION_TOO_LARGE: CommandError = CommandError::new(
        ErrorCode::TooLarge,
        "ERR a transaction holds 65536 commands and 4 MiB at most: this one is discarded, and EXEC will refuse it",
    );
    /// WATCH within MULTI.
    pub const WATCH_IN_MULTI: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR WATCH inside MULTI is not allowed");
    /// WATCH at all.
    pub const WATCH_REFUSED: CommandError =
        CommandError::new(ErrorCode::Forbidden, "ERR WATCH is not supported: increments need no watching");
    /// HELLO before signing in.
    pub const HELLO_NO_AUTH: CommandError = CommandError::new(
        ErrorCode::Unauthenticated,
        "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
    );
    /// CLIENT KILL of an address that nobody has.
    pub const NO_SUCH_CLIENT: CommandError = CommandError::new(ErrorCode::BadRequest, "ERR No such client");
    /// KEYS where there are too many counters.
    pub const TOO_MANY_FOR_KEYS: CommandError = CommandError::new(
        ErrorCode::TooLarge,
        "ERR KEYS looks at 65536 counters at most, and there are more: use SCAN",
    );
    /// KEYS where the answer would be too long.
    pub const TOO_MUCH_FOR_KEYS: CommandError = CommandError::new(
        ErrorCode::TooLarge,
        "ERR the keys that match fill the connection's bound of replies: use SCAN",
    );
    /// A condition of SET at a coordinator.
    pub const CONDITION_OF_SEVERAL: CommandError = CommandError::new(
        ErrorCode::Forbidden,
        "ERR a coordinator sets no counter on a condition: two clients could both be told that theirs held; nothing was applied",
    );
    pub(in crate::wire::resp) const NOT_AN_INTEGER: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR value is not an integer or out of range");
    pub(in crate::wire::resp) const BAD_DELTA: CommandError =
        CommandError::new(ErrorCode::BadDelta, "ERR value is not an integer or out of range");
    pub(in crate::wire::resp) const DECREMENT_OVERFLOW: CommandError =
        CommandError::new(ErrorCode::Overflow, "ERR decrement would overflow");
    pub(in crate::wire::resp) const BAD_KEY: CommandError =
        CommandError::new(ErrorCode::BadKey, "ERR a key is a string of 1 to 1024 bytes");
    pub(in crate::wire::resp) const SYNTAX: CommandError = CommandError::new(ErrorCode::BadRequest, "ERR syntax error");
    pub(in crate::wire::resp) const INVALID_CURSOR: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR invalid cursor");
    pub(in crate::wire::resp) const PATTERN_TOO_LONG: CommandError =
        CommandError::new(ErrorCode::TooLarge, "ERR a pattern has at most 1024 bytes");
    pub(in crate::wire::resp) const DB_INDEX: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR DB index is out of range");
    pub(in crate::wire::resp) const NO_PROTO: CommandError =
        CommandError::new(ErrorCode::BadRequest, "NOPROTO unsupported protocol version");
    pub(in crate::wire::resp) const PROTO_NOT_AN_INTEGER: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR Protocol version is not an integer or out of range");
    pub(in crate::wire::resp) const CLIENT_NAME: CommandError = CommandError::new(
        ErrorCode::BadRequest,
        "ERR Client names cannot contain spaces, newlines or special characters.",
    );
    pub(in crate::wire::resp) const SET_EXPIRY: CommandError = CommandError::new(
        ErrorCode::BadRequest,
        "ERR PyCounter's counters don't expire: EX, PX, EXAT and PXAT are refused",
    );
    pub(in crate::wire::resp) const NOT_A_COUNTER: CommandError = CommandError::new(
        ErrorCode::BadDelta,
        "ERR PyCounter stores counters: a value must be an integer of 64 bits, such as 42",
    );
    pub(in crate::wire::resp) const INVALID_COMMAND: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR Invalid command specified");
    pub(in crate::wire::resp) const NO_KEYS: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR The command has no key arguments");
    pub(in crate::wire::resp) const INVALID_ARGUMENTS: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR Invalid number of arguments specified for command");
    pub(in crate::wire::resp) const INVALID_CLIENT_ID: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR Invalid client ID");
    pub(in crate::wire::resp) const CLIENT_ID_ABOVE_0: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR client-id should be greater than 0");
    pub(in crate::wire::resp) const LIB_NAME: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR lib-name cannot contain spaces, newlines or special characters.");
    pub(in crate::wire::resp) const LIB_VER: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR lib-ver cannot contain spaces, newlines or special characters.");
    pub(in crate::wire::resp) const TIMEOUT_NOT_AN_INTEGER: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR timeout is not an integer or out of range");
    pub(in crate::wire::resp) const TIMEOUT_NEGATIVE: CommandError =
        CommandError::new(ErrorCode::BadRequest, "ERR timeout is negative");
    pub(in crate::wire::resp) const TEXT_TOO_LONG: CommandError =
        CommandError::new(ErrorCode::TooLarge, "ERR a name or token has at most 1024 bytes");
}

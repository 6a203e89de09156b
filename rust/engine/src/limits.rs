//! Limits fixed by the contract with users. Limits that an operator may change are settings instead.

/// Longest key, in bytes. The shortest is 1.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest operation id, in bytes. The shortest is 1.
pub const OPERATION_ID_BYTES_MAX: usize = 64;
/// A session id has exactly this many bytes (128 bits).
pub const SESSION_ID_BYTES: usize = 16;
/// Deepest nesting of arrays and maps that a MessagePack frame may have.
pub const FRAME_DEPTH_MAX: usize = 8;
/// Most items (keys, increments, bulk strings) that one request may carry.
pub const REQUEST_ITEMS_MAX: usize = 65_536;
/// A journal record with its header stays below this many bytes, so that any journal can hold it.
pub const RECORD_BYTES_MAX: usize = 900_000;
/// Longest token or client name in `hello`, in bytes.
pub const HELLO_TEXT_BYTES_MAX: usize = 1024;
/// Longest frame before authentication, in bytes.
pub const GREETING_BYTES_MAX: usize = 16_384;
/// Longest path that `backup` takes, in bytes.
pub const BACKUP_PATH_BYTES_MAX: usize = 4096;
/// Longest inline command (a RESP request as a line of text), in bytes.
pub const INLINE_BYTES_MAX: usize = 65_536;
/// Longest glob pattern that `SCAN MATCH` takes, in bytes: matching costs pattern times key.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// Default count of `scan`.
pub const SCAN_COUNT_DEFAULT: usize = 100;
/// Default count of `top`.
pub const TOP_COUNT_DEFAULT: usize = 10;

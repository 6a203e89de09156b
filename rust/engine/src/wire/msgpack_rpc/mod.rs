//! MessagePack-RPC: `[0, msgid, method, params]` answered by `[1, msgid, error, result]`, and the
//! notification `[2, method, params]`, which has no answer.
//!
//! A connection's bytes go through [`fast_incr`] first. If it declines, a [`FrameScanner`] finds the frame's end and
//! [`parse`] interprets it. `parse` is the authority: the fast path accepts a subset with the same meaning. Everything
//! borrows from the received bytes, no function here recurses, and nothing is allocated before its count is checked.
//!
//! No state but the scanner's, no threads.

mod frame_scanner;
mod held_replies;
mod hot_path;
pub(crate) mod reader;
mod reply_writer;
mod request_parser;

pub use frame_scanner::{FrameError, FrameScanner};
pub use held_replies::fail_held;
pub use hot_path::{FastIncr, fast_incr};
pub use reply_writer::{
    reply_begin, reply_error, reply_error_text, reply_int, reply_nil, write_array_len, write_bin, write_bool,
    write_error, write_f64, write_i64, write_i128, write_key, write_map_len, write_nil, write_str, write_u64,
};
pub use request_parser::{Parsed, call_of, parse, request_msgid};

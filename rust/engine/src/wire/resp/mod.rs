//! RESP2 and RESP3, the protocol of Redis: requests are arrays of bulk strings, or a line of text typed by
//! a person; replies come back in request order.
//!
//! A connection's bytes go through [`fast_incr`] first. What it declines is measured by
//! a [`FrameScanner`] and understood by [`parse`], which is the authority: the fast path accepts a subset
//! of what it accepts and means the same by it. Errors have Redis's words, which clients match on, and end
//! with this project's code in parentheses.
//!
//! No state but the scanner's, no threads.

mod argument_notation;
mod arguments;
mod client_parser;
mod command;
mod command_answers;
mod command_error;
mod command_parser;
mod command_table;
mod frame_scanner;
mod held_replies;
mod hot_path;
mod integer;
mod reply_writer;

pub use command::{ClientCommand, ClientFilter, Command, Credentials, SetIf, TableQuery};
pub use command_answers::{write_help, write_table};
pub use command_error::{CommandError, words};
pub use command_parser::{Request, find_command, parse};
pub use command_table::{COMMANDS, CommandRow, Flags, InTransaction, KeyPlaces};
pub use frame_scanner::{FrameScanner, ProtocolError};
pub use held_replies::fail_held;
pub use hot_path::{FastIncr, fast_incr};
pub use reply_writer::{
    Version, write_array_len, write_bool, write_bulk, write_bulk_int, write_command_error, write_double, write_error,
    write_int, write_map_len, write_null, write_null_array, write_protocol_error, write_set_len, write_simple,
    write_text,
};

/// KEYS answers where there are at most so many counters: it looks at all of them at once.
pub const KEYS_COUNTERS_MAX: usize = crate::limits::REQUEST_ITEMS_MAX;

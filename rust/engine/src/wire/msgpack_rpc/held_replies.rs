//! Replaces replies that waited for a commit that then failed.

use super::reader::{Reader, Truncated, Value};
use super::reply_writer::reply_error;
use crate::error_code::ErrorCode;

/// Writes an error with the same msgid for each reply in `held`, and returns how many there were.
///
/// `held` holds whole replies from this module's writer. If it ended within one (a bug), the rest can't be separated and
/// gets no answer, which a client must treat as an unknown outcome anyway.
pub fn fail_held(held: &[u8], out: &mut Vec<u8>, code: ErrorCode, message: &str) -> usize {
    let mut reader = Reader::new(held);
    let mut failed = 0;
    while !reader.rest().is_empty() {
        let Ok(msgid) = next_msgid(&mut reader) else {
            debug_assert!(false, "held replies are not whole");
            break;
        };
        reply_error(out, msgid, code, message);
        failed += 1;
    }
    failed
}

fn next_msgid(reader: &mut Reader<'_>) -> Result<u32, Truncated> {
    let (Value::Array(4), Value::Unsigned(1), Value::Unsigned(msgid)) =
        (reader.read()?, reader.read()?, reader.read()?)
    else {
        return Err(Truncated);
    };
    reader.skip(2)?;
    u32::try_from(msgid).map_err(|_| Truncated)
}

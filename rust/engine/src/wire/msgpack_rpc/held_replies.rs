//! What becomes of replies that waited for a commit which then failed.

use super::reader::{Reader, Truncated, Value};
use super::reply_writer::reply_error;
use crate::error_code::ErrorCode;

/// Writes for each reply in `held` an error under the same msgid, and returns how many there were.
///
/// `held` is what this module's writer wrote, whole replies only. Should it end within one (a bug), the
/// rest can't be told apart and gets no answer, which a client must take as an unknown outcome anyway.
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

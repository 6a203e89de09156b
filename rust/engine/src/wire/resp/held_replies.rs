//! What becomes of replies that waited for a commit which then failed.

use memchr::memchr;

use super::integer::parse_i64;
use super::reply_writer::write_error;
use crate::error_code::ErrorCode;

/// Writes one error for each top-level reply in `held` (an EXEC's array is one), and returns how many there were.
///
/// `held` is what this module's writer wrote, whole replies only. Should it end within one (a bug), the
/// rest can't be told apart and gets no answer; replies have no ids, so the connection must then be closed.
pub fn fail_held(held: &[u8], out: &mut Vec<u8>, code: ErrorCode, message: &str) -> usize {
    let mut rest = held;
    let mut failed = 0;
    while !rest.is_empty() {
        let Some(after) = skip_reply(rest) else {
            debug_assert!(false, "held replies are not whole");
            break;
        };
        write_error(out, code, message);
        (rest, failed) = (after, failed + 1);
    }
    failed
}

/// What follows the first reply. Without recursion: only how many values lack is counted.
fn skip_reply(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    let mut lacking = 1_u64;
    while lacking > 0 {
        let line_end = memchr(b'\n', rest)?;
        let (line, after) = rest.split_at_checked(line_end + 1)?;
        let (kind, text) = line.strip_suffix(b"\r\n")?.split_first()?;
        rest = after;
        lacking -= 1;
        match kind {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => {}
            b'$' | b'=' | b'!' => {
                // A negative length is RESP2's nil: nothing follows.
                if let Ok(len) = usize::try_from(parse_i64(text)?) {
                    rest = rest.get(len..)?.strip_prefix(b"\r\n")?;
                }
            }
            b'*' | b'~' | b'>' => lacking = lacking.checked_add(u64::try_from(parse_i64(text)?).unwrap_or(0))?,
            b'%' => lacking = lacking.checked_add(u64::try_from(parse_i64(text)?).ok()?.checked_mul(2)?)?,
            _ => return None,
        }
    }
    Some(rest)
}

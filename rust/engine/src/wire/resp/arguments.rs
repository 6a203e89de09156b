//! The arguments of one request, one after the other, borrowed from its bytes.

use memchr::memchr;

use super::integer::parse_u64;

/// Arguments of a frame that a scanner measured. Malformed bytes end the sequence early.
#[derive(Debug, Clone)]
pub(super) enum Arguments<'a> {
    /// `$n\r\n...\r\n`, so many times.
    Bulk { rest: &'a [u8], left: usize },
    /// Words of a line.
    Line { rest: &'a [u8] },
}

impl<'a> Arguments<'a> {
    pub(super) fn of_frame(frame: &'a [u8]) -> Self {
        match frame {
            [b'*', rest @ ..] => {
                let (count, rest) = header(rest).unwrap_or((0, &[]));
                Self::Bulk { rest, left: count }
            }
            line => Self::Line { rest: line },
        }
    }

    /// How many are still to come.
    pub(super) fn count_left(&self) -> usize {
        match self {
            Self::Bulk { left, .. } => *left,
            Self::Line { .. } => self.clone().count(),
        }
    }
}

impl<'a> Iterator for Arguments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self {
            Self::Bulk { rest, left } => {
                *left = left.checked_sub(1)?;
                let [b'$', after @ ..] = *rest else { return None };
                let (len, body) = header(after)?;
                let (argument, after) = body.split_at_checked(len)?;
                *rest = after.strip_prefix(b"\r\n")?;
                Some(argument)
            }
            Self::Line { rest } => next_word(rest).ok().flatten(),
        }
    }
}

/// A number up to the end of its line, and what follows.
fn header(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = memchr(b'\r', bytes)?;
    let number = usize::try_from(parse_u64(bytes.get(..end)?)?).ok()?;
    Some((number, bytes.get(end..)?.strip_prefix(b"\r\n")?))
}

/// A quote isn't closed, something follows it at once, or it has a backslash, which would need a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnbalancedQuotes;

/// The next word of a line, taken off it. Words may be quoted with `"` or `'`, without escapes.
pub(super) fn next_word<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, UnbalancedQuotes> {
    let line = rest.trim_ascii_start();
    let (word, after) = match line {
        [] => {
            *rest = line;
            return Ok(None);
        }
        [quote @ (b'"' | b'\''), body @ ..] => {
            let end = memchr(*quote, body).ok_or(UnbalancedQuotes)?;
            let (word, after) = (body.get(..end).unwrap_or(body), body.get(end + 1..).unwrap_or(&[]));
            if memchr(b'\\', word).is_some() || after.first().is_some_and(|byte| !byte.is_ascii_whitespace()) {
                return Err(UnbalancedQuotes);
            }
            (word, after)
        }
        _ => {
            let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
            line.split_at_checked(end).unwrap_or((line, &[]))
        }
    };
    *rest = after;
    Ok(Some(word))
}

//! Finds the end of a frame, however its bytes are split, without reading any of them twice.

use super::reader::{Head, decode_head};
use crate::error_code::ErrorCode;
use crate::limits::FRAME_DEPTH_MAX;
use crate::wire::scan::{FrameLimits, Scan};

/// A frame that can't be accepted. The next frame can't be located, so answer (see
/// [`request_msgid`](super::request_msgid)) and close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It exceeds the length limit, or declares more than could fit.
    #[error("the frame is over the size limit")]
    TooLarge,
    /// It nests deeper than [`FRAME_DEPTH_MAX`].
    #[error("the frame nests too deeply")]
    TooDeep,
    /// It contains the byte 0xc1, which MessagePack never uses.
    #[error("this is not MessagePack")]
    NotMessagePack,
}

impl FrameError {
    /// The code to answer with.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::TooLarge => ErrorCode::TooLarge,
            Self::TooDeep | Self::NotMessagePack => ErrorCode::BadRequest,
        }
    }
}

/// A resumable scan over one frame. It remembers where the next value begins and how many values each open array or map
/// still needs, so bytes that arrive one at a time cost as much as bytes that arrive together.
///
/// Owned by its connection, used by the thread that feeds it.
#[derive(Debug, Clone, Default)]
pub struct FrameScanner {
    /// Offset of the next value in the frame; past the buffer while a payload is incomplete.
    position: usize,
    /// The number of open arrays and maps.
    depth: usize,
    /// Values that each open array or map still needs.
    lacking: [u64; FRAME_DEPTH_MAX],
    /// Values that the frame still needs in total. Each takes at least a byte.
    outstanding: u64,
}

impl FrameScanner {
    /// Continues the frame that starts at `buf[0]`. Each call passes the bytes of the last call followed by more, until
    /// the result is `Complete` or an error; then the scanner starts over.
    ///
    /// # Errors
    /// Returned as early as possible: a declared size over the limit is refused before its bytes arrive.
    pub fn scan(&mut self, buf: &[u8], limits: FrameLimits) -> Result<Scan, FrameError> {
        let result = self.advance(buf, limits);
        if !matches!(result, Ok(Scan::Incomplete)) {
            self.reset();
        }
        result
    }

    /// Drops a frame in progress, for when a fast path consumed it after all.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn advance(&mut self, buf: &[u8], limits: FrameLimits) -> Result<Scan, FrameError> {
        if self.position == 0 {
            self.outstanding = 1;
        }
        while self.outstanding > 0 {
            let Some((head, head_bytes)) = buf.get(self.position..).and_then(decode_head) else {
                return Ok(Scan::Incomplete);
            };
            if head == Head::Never {
                return Err(FrameError::NotMessagePack);
            }
            self.position = self.position.saturating_add(head_bytes).saturating_add(head.payload_bytes());
            let children = head.children();
            self.outstanding = (self.outstanding - 1).saturating_add(children);
            if (self.position as u64).saturating_add(self.outstanding) > limits.bytes_max as u64 {
                return Err(FrameError::TooLarge);
            }
            self.count_one(matches!(head, Head::Array(_) | Head::Map(_)), children)?;
        }
        Ok(if buf.len() < self.position { Scan::Incomplete } else { Scan::Complete(self.position) })
    }

    /// Counts a value against the enclosing array or map, and opens it if it is an array or map itself.
    fn count_one(&mut self, is_container: bool, children: u64) -> Result<(), FrameError> {
        if let Some(lacking) = self.depth.checked_sub(1).and_then(|level| self.lacking.get_mut(level)) {
            *lacking = lacking.saturating_sub(1);
        }
        if is_container {
            // An empty one counts as a level too: the limit is on the encoding, not the contents.
            *self.lacking.get_mut(self.depth).ok_or(FrameError::TooDeep)? = children;
            self.depth += 1;
        }
        while let Some(level) = self.depth.checked_sub(1)
            && self.lacking.get(level) == Some(&0)
        {
            self.depth = level;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { bytes_max: 1 << 20 };

    fn whole(bytes: &[u8]) -> Result<Scan, FrameError> {
        FrameScanner::default().scan(bytes, LIMITS)
    }

    /// Every prefix in turn, as if each byte came alone.
    fn bytewise(bytes: &[u8]) -> Result<Scan, FrameError> {
        let mut scanner = FrameScanner::default();
        for end in 0..=bytes.len() {
            match scanner.scan(&bytes[..end], LIMITS)? {
                Scan::Incomplete => {}
                complete => return Ok(complete),
            }
        }
        Ok(Scan::Incomplete)
    }

    #[test]
    fn every_marker_has_its_length() {
        let rows: &[(&[u8], usize)] = &[
            (b"\x00", 1),
            (b"\x7f", 1),
            (b"\xe0", 1),
            (b"\xff", 1),
            (b"\xc0", 1),
            (b"\xc2", 1),
            (b"\xc3", 1),
            (b"\x80", 1),
            (b"\x90", 1),
            (b"\xa0", 1),
            (b"\x91\x01", 2),
            (b"\x81\x01\x02", 3),
            (b"\xa3abc", 4),
            (b"\xc4\x01a", 3),
            (b"\xc5\x00\x01a", 4),
            (b"\xc6\x00\x00\x00\x01a", 6),
            (b"\xc7\x01\x05a", 4),
            (b"\xc8\x00\x01\x05a", 5),
            (b"\xc9\x00\x00\x00\x01\x05a", 7),
            (b"\xca1234", 5),
            (b"\xcb12345678", 9),
            (b"\xcc1", 2),
            (b"\xcd12", 3),
            (b"\xce1234", 5),
            (b"\xcf12345678", 9),
            (b"\xd01", 2),
            (b"\xd112", 3),
            (b"\xd21234", 5),
            (b"\xd312345678", 9),
            (b"\xd4t1", 3),
            (b"\xd5t12", 4),
            (b"\xd6t1234", 6),
            (b"\xd7t12345678", 10),
            (b"\xd8t1234567812345678", 18),
            (b"\xd9\x01a", 3),
            (b"\xda\x00\x01a", 4),
            (b"\xdb\x00\x00\x00\x01a", 6),
            (b"\xdc\x00\x01\x01", 4),
            (b"\xdd\x00\x00\x00\x01\x01", 6),
            (b"\xde\x00\x01\x01\x02", 5),
            (b"\xdf\x00\x00\x00\x01\x01\x02", 7),
            (b"\x94\x00\x01\xa4incr\x91\xa1k", 11),
        ];
        for (bytes, len) in rows {
            let mut longer = bytes.to_vec();
            longer.extend_from_slice(b"\x94\x00");
            assert_eq!(whole(&longer), Ok(Scan::Complete(*len)), "{}", bytes.escape_ascii());
            assert_eq!(bytewise(&longer), Ok(Scan::Complete(*len)), "{}", bytes.escape_ascii());
            for end in 0..bytes.len() {
                assert_eq!(whole(&bytes[..end]), Ok(Scan::Incomplete), "{}", bytes[..end].escape_ascii());
            }
        }
    }

    #[test]
    fn depth_is_exact_and_no_tail_call_escapes_it() {
        for (open, close) in [(&b"\x91"[..], &b"\x01"[..]), (b"\x92\x01", b"\x01"), (b"\x81\x01", b"\x01")] {
            let nested = |levels: usize| [open.repeat(levels), close.to_vec()].concat();
            assert!(matches!(whole(&nested(FRAME_DEPTH_MAX)), Ok(Scan::Complete(_))));
            assert_eq!(whole(&nested(FRAME_DEPTH_MAX + 1)), Err(FrameError::TooDeep));
            assert_eq!(bytewise(&nested(100_000)), Err(FrameError::TooDeep));
        }
        // Closed levels give their place back.
        let siblings = [&b"\x9f"[..], &b"\x91\x91\x91\x91\x91\x91\x01".repeat(15)].concat();
        assert_eq!(whole(&siblings), Ok(Scan::Complete(siblings.len())));
        let empty = [b"\x91".repeat(FRAME_DEPTH_MAX), b"\x90".to_vec()].concat();
        assert_eq!(whole(&empty), Err(FrameError::TooDeep));
    }

    #[test]
    fn declared_sizes_are_refused_before_the_bytes_come() {
        for bytes in [
            &b"\xdb\xff\xff\xff\xff"[..],
            b"\xc6\x00\x10\x00\x00",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xdf\x00\x08\x00\x00",
            b"\xc9\xff\xff\xff\xff\x01",
            b"\x94\x00\x01\xdb\x00\x10\x00\x00",
        ] {
            assert_eq!(whole(bytes), Err(FrameError::TooLarge), "{}", bytes.escape_ascii());
        }
        // Exactly at the limit is allowed; one byte more isn't.
        let limits = FrameLimits { bytes_max: 10 };
        assert_eq!(FrameScanner::default().scan(b"\xa9123456789", limits), Ok(Scan::Complete(10)));
        assert_eq!(FrameScanner::default().scan(b"\xaa", limits), Err(FrameError::TooLarge));
        // Many small values, each allowed alone.
        let limits = FrameLimits { bytes_max: 4 };
        assert_eq!(FrameScanner::default().scan(b"\x92\xa1a\xa1", limits), Err(FrameError::TooLarge));
    }

    #[test]
    fn the_unused_marker_is_refused() {
        assert_eq!(whole(b"\xc1"), Err(FrameError::NotMessagePack));
        assert_eq!(bytewise(b"\x92\x01\xc1"), Err(FrameError::NotMessagePack));
    }

    #[test]
    fn a_scanner_begins_anew_after_each_frame() {
        let mut scanner = FrameScanner::default();
        assert_eq!(scanner.scan(b"\x92\x01", LIMITS), Ok(Scan::Incomplete));
        assert_eq!(scanner.scan(b"\x92\x01\x02\x93", LIMITS), Ok(Scan::Complete(3)));
        assert_eq!(scanner.scan(b"\x93", LIMITS), Ok(Scan::Incomplete));
        scanner.reset();
        assert_eq!(scanner.scan(b"\x05", LIMITS), Ok(Scan::Complete(1)));
        assert_eq!(scanner.scan(b"\xc1", LIMITS), Err(FrameError::NotMessagePack));
        assert_eq!(scanner.scan(b"\x05", LIMITS), Ok(Scan::Complete(1)));
    }
}

//! Feeds a scanner whole and in pieces, which must come out the same.

use pycounter_engine::wire::scan::{FrameLimits, Scan};

/// Small, so that fuzzing finds what happens at the limit.
pub const LIMITS: FrameLimits = FrameLimits { bytes_max: 16_384 };

/// The lengths of a stream's frames, and the error that ended it, if one did.
#[derive(Debug, PartialEq)]
pub struct Frames<E> {
    pub lengths: Vec<usize>,
    pub error: Option<E>,
}

/// Scans a stream that arrives in pieces of `1..=piece_bytes_max` bytes, one length after the other.
pub fn frames<E>(stream: &[u8], piece_bytes_max: usize, mut scan: impl FnMut(&[u8]) -> Result<Scan, E>) -> Frames<E> {
    let mut frames = Frames { lengths: Vec::new(), error: None };
    let (mut start, mut arrived, mut piece) = (0, 0, 0);
    loop {
        match scan(&stream[start..arrived]) {
            Ok(Scan::Complete(len)) => {
                assert!(len > 0 && len <= arrived - start, "a frame is longer than what came");
                assert!(len <= LIMITS.bytes_max, "a frame is over the limit");
                frames.lengths.push(len);
                start += len;
            }
            Ok(Scan::Incomplete) if arrived == stream.len() => return frames,
            Ok(Scan::Incomplete) => {
                piece = piece % piece_bytes_max.max(1) + 1;
                arrived = stream.len().min(arrived + piece);
            }
            Err(error) => {
                frames.error = Some(error);
                return frames;
            }
        }
    }
}

//! Shared by both protocols before parsing: detecting the protocol, and the end of a frame.

/// The protocols that share the port. A connection's first byte selects one for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// MessagePack-RPC: every frame is an array.
    MsgpackRpc,
    /// RESP2 until `HELLO 3` asks for RESP3.
    Resp,
}

/// The protocol of a connection's first byte. `None`: neither, so close.
///
/// A MessagePack-RPC message is an array of 3 or 4 elements, whose first byte is above 127; RESP is
/// `*` or a line of text. So one byte is enough.
#[must_use]
pub const fn detect(first: u8) -> Option<Protocol> {
    match first {
        0x93 | 0x94 | 0xdc | 0xdd => Some(Protocol::MsgpackRpc),
        _ if begins_line(first) => Some(Protocol::Resp),
        _ => None,
    }
}

/// May a line of text begin with this byte? A blank or a quote may stand before its first word.
pub(super) const fn begins_line(first: u8) -> bool {
    matches!(first, b'\t' | b'\n' | b'\r' | b' '..=b'~')
}

/// Bounds of one frame. The count of items and the depth are fixed in [`crate::limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest frame, in bytes. A frame that declares more is refused before its bytes arrive.
    pub bytes_max: usize,
}

/// The state of a frame scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// The frame's length in bytes. The scanner is ready for the next frame.
    Complete(usize),
    /// More bytes are needed. Call again with the same bytes followed by more.
    Incomplete,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_decides_the_protocol() {
        for byte in 0..=u8::MAX {
            let expected = match byte {
                0x93 | 0x94 | 0xdc | 0xdd => Some(Protocol::MsgpackRpc),
                b'\t' | b'\n' | b'\r' | b' ' => Some(Protocol::Resp),
                printable if printable.is_ascii_graphic() => Some(Protocol::Resp),
                _ => None,
            };
            assert_eq!(detect(byte), expected, "{byte:#04x}");
        }
    }
}

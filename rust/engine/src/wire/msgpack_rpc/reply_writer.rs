//! Writes replies `[1, msgid, error, result]` to a connection's buffer, without `fmt` and without allocating beyond the
//! buffer's growth.
//!
//! **Keys in replies** are str if their bytes are valid UTF-8 and bin otherwise, however they were sent. Many clients
//! decode a str to text while reading the stream; invalid UTF-8 would raise there and cost the connection. Most keys are
//! text, and as bin they would come back as bytes, unequal to what the user sent. Str and bin with the same bytes name
//! the same counter.

use crate::error_code::ErrorCode;

/// Most bytes of a reply's head plus one integer: `94 01`, a msgid of 5, `c0`, an integer of 9.
const INT_REPLY_BYTES_MAX: usize = 17;

/// A whole reply whose result is an integer.
pub fn reply_int(out: &mut Vec<u8>, msgid: u32, value: i64) {
    let mut frame = Small::reply(msgid);
    frame.byte(0xc0);
    frame.int(value);
    frame.append_to(out);
}

/// A whole reply whose result is nil.
pub fn reply_nil(out: &mut Vec<u8>, msgid: u32) {
    reply_begin(out, msgid);
    write_nil(out);
}

/// A whole reply with an error: one string, `code: message`, because several third-party clients decode nothing else.
pub fn reply_error(out: &mut Vec<u8>, msgid: u32, code: ErrorCode, message: &str) {
    Small::reply(msgid).append_to(out);
    write_error(out, code, message);
    write_nil(out);
}

/// The same with a ready text, `code: message`.
pub fn reply_error_text(out: &mut Vec<u8>, msgid: u32, error: &str) {
    Small::reply(msgid).append_to(out);
    write_str(out, error);
    write_nil(out);
}

/// An error as one string, `code: message`. It also serves as the result of a refused item.
pub fn write_error(out: &mut Vec<u8>, code: ErrorCode, message: &str) {
    let name = code.name();
    let len = name.len().saturating_add(2).saturating_add(message.len());
    write_size(out, len, STR);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(message.as_bytes());
}

/// Starts a reply without an error. Exactly one value must follow.
pub fn reply_begin(out: &mut Vec<u8>, msgid: u32) {
    let mut frame = Small::reply(msgid);
    frame.byte(0xc0);
    frame.append_to(out);
}

/// nil.
pub fn write_nil(out: &mut Vec<u8>) {
    out.push(0xc0);
}

/// true or false.
pub fn write_bool(out: &mut Vec<u8>, value: bool) {
    out.push(0xc2 | u8::from(value));
}

/// A signed integer in its shortest encoding.
pub fn write_i64(out: &mut Vec<u8>, value: i64) {
    let mut frame = Small::default();
    frame.int(value);
    frame.append_to(out);
}

/// An unsigned integer in its shortest encoding.
pub fn write_u64(out: &mut Vec<u8>, value: u64) {
    let mut frame = Small::default();
    frame.unsigned(value);
    frame.append_to(out);
}

/// A total: an integer if it fits i64, otherwise a decimal string, which every language can read.
pub fn write_i128(out: &mut Vec<u8>, value: i128) {
    match i64::try_from(value) {
        Ok(value) => write_i64(out, value),
        Err(_) => write_str(out, itoa::Buffer::new().format(value)),
    }
}

/// A float of 64 bits.
pub fn write_f64(out: &mut Vec<u8>, value: f64) {
    out.push(0xcb);
    out.extend_from_slice(&value.to_be_bytes());
}

/// Text.
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    write_size(out, text.len(), STR);
    out.extend_from_slice(text.as_bytes());
}

/// Bytes.
pub fn write_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    write_size(out, bytes.len(), BIN);
    out.extend_from_slice(bytes);
}

/// A key: str if it is valid UTF-8, otherwise bin. The top of this file says why.
pub fn write_key(out: &mut Vec<u8>, key: &[u8]) {
    match std::str::from_utf8(key) {
        Ok(text) => write_str(out, text),
        Err(_) => write_bin(out, key),
    }
}

/// An array's head; `count` values must follow.
pub fn write_array_len(out: &mut Vec<u8>, len: usize) {
    write_size(out, len, ARRAY);
}

/// A map's head; `count` pairs must follow.
pub fn write_map_len(out: &mut Vec<u8>, pairs: usize) {
    write_size(out, pairs, MAP);
}

/// How a kind encodes its size: in up to 4 or 5 bits of the marker, or in 1, 2 or 4 bytes.
#[derive(Clone, Copy)]
struct Kind {
    /// The marker of size 0 and the largest size that fits into it.
    small: Option<(u8, usize)>,
    size8: Option<u8>,
    size16: u8,
    size32: u8,
}

const STR: Kind = Kind { small: Some((0xa0, 31)), size8: Some(0xd9), size16: 0xda, size32: 0xdb };
const BIN: Kind = Kind { small: None, size8: Some(0xc4), size16: 0xc5, size32: 0xc6 };
const ARRAY: Kind = Kind { small: Some((0x90, 15)), size8: None, size16: 0xdc, size32: 0xdd };
const MAP: Kind = Kind { small: Some((0x80, 15)), size8: None, size16: 0xde, size32: 0xdf };

fn write_size(out: &mut Vec<u8>, size: usize, kind: Kind) {
    let mut head = Small::default();
    if let Some((marker, max)) = kind.small
        && size <= max
    {
        head.byte(marker | (size & 0x1f) as u8);
    } else if let (Some(marker), Ok(size)) = (kind.size8, u8::try_from(size)) {
        head.byte(marker);
        head.byte(size);
    } else if let Ok(size) = u16::try_from(size) {
        head.byte(kind.size16);
        head.bytes(size.to_be_bytes());
    } else {
        debug_assert!(u32::try_from(size).is_ok(), "a reply of 4 GiB");
        head.byte(kind.size32);
        head.bytes((size as u32).to_be_bytes());
    }
    head.append_to(out);
}

/// A few bytes on the stack. Appending copies the whole array, because its constant size takes two moves instead of a
/// call, and then truncates the unused part.
#[derive(Default)]
struct Small {
    bytes: [u8; INT_REPLY_BYTES_MAX],
    len: usize,
}

impl Small {
    fn reply(msgid: u32) -> Self {
        let mut frame = Self::default();
        frame.bytes([0x94, 0x01]);
        frame.unsigned(u64::from(msgid));
        frame
    }

    fn byte(&mut self, byte: u8) {
        self.bytes([byte]);
    }

    /// The longest sequence of calls above writes `INT_REPLY_BYTES_MAX` bytes.
    fn bytes<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += N;
    }

    fn unsigned(&mut self, value: u64) {
        match value {
            0..=0x7f => self.byte(value as u8),
            0x80..=0xff => self.bytes([0xcc, value as u8]),
            0x100..=0xffff => {
                self.byte(0xcd);
                self.bytes((value as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.byte(0xce);
                self.bytes((value as u32).to_be_bytes());
            }
            _ => {
                self.byte(0xcf);
                self.bytes(value.to_be_bytes());
            }
        }
    }

    fn int(&mut self, value: i64) {
        match value {
            0.. => self.unsigned(value.unsigned_abs()),
            -32..=-1 => self.byte(value as u8),
            -0x80..=-33 => self.bytes([0xd0, value as u8]),
            -0x8000..=-0x81 => {
                self.byte(0xd1);
                self.bytes((value as i16).to_be_bytes());
            }
            -0x8000_0000..=-0x8001 => {
                self.byte(0xd2);
                self.bytes((value as i32).to_be_bytes());
            }
            _ => {
                self.byte(0xd3);
                self.bytes(value.to_be_bytes());
            }
        }
    }

    fn append_to(&self, out: &mut Vec<u8>) {
        let before = out.len();
        out.extend_from_slice(&self.bytes);
        out.truncate(before + self.len);
    }
}

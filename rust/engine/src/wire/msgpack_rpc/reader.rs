//! Reads MessagePack values one after another. The scanner, the parser, the held replies and the load generator share it,
//! so they can't disagree about where a value ends.

/// A value's first bytes: its kind, and its size if a payload follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Nil,
    Bool(bool),
    /// Any integer encoding, if the value isn't negative.
    Unsigned(u64),
    /// Any integer encoding, if the value is negative.
    Negative(i64),
    Float,
    /// Payload bytes.
    Str(usize),
    /// Payload bytes.
    Bin(usize),
    /// Payload bytes (the type byte belongs to the head).
    Ext(usize),
    /// Elements.
    Array(usize),
    /// Pairs.
    Map(usize),
    /// 0xc1, which MessagePack never uses.
    Never,
}

impl Head {
    /// Bytes between the head and the next value.
    pub(crate) const fn payload_bytes(self) -> usize {
        match self {
            Self::Str(bytes) | Self::Bin(bytes) | Self::Ext(bytes) => bytes,
            _ => 0,
        }
    }

    /// The number of values nested directly in this one. A map's count is at most 2^32 - 1, so this can't overflow.
    pub(crate) const fn children(self) -> u64 {
        match self {
            Self::Array(count) => count as u64,
            Self::Map(count) => 2 * count as u64,
            _ => 0,
        }
    }
}

const fn signed(value: i64) -> Head {
    if value < 0 { Head::Negative(value) } else { Head::Unsigned(value.unsigned_abs()) }
}

fn be<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.get(1..)?.first_chunk::<N>().copied()
}

/// The head at the start of `bytes` and its length (1 to 9). `None`: incomplete.
pub(crate) fn decode_head(bytes: &[u8]) -> Option<(Head, usize)> {
    let marker = *bytes.first()?;
    let size1 = || be::<1>(bytes).map(|b| usize::from(b[0]));
    let size2 = || be(bytes).map(|b| usize::from(u16::from_be_bytes(b)));
    let size4 = || be(bytes).map(|b| u32::from_be_bytes(b) as usize);
    Some(match marker {
        0x00..=0x7f => (Head::Unsigned(u64::from(marker)), 1),
        0x80..=0x8f => (Head::Map(usize::from(marker & 0x0f)), 1),
        0x90..=0x9f => (Head::Array(usize::from(marker & 0x0f)), 1),
        0xa0..=0xbf => (Head::Str(usize::from(marker & 0x1f)), 1),
        0xc0 => (Head::Nil, 1),
        0xc1 => (Head::Never, 1),
        0xc2 => (Head::Bool(false), 1),
        0xc3 => (Head::Bool(true), 1),
        0xc4 => (Head::Bin(size1()?), 2),
        0xc5 => (Head::Bin(size2()?), 3),
        0xc6 => (Head::Bin(size4()?), 5),
        0xc7 => (Head::Ext(size1()?), be::<2>(bytes).map(|_| 3)?),
        0xc8 => (Head::Ext(size2()?), be::<3>(bytes).map(|_| 4)?),
        0xc9 => (Head::Ext(size4()?), be::<5>(bytes).map(|_| 6)?),
        0xca => (Head::Float, be::<4>(bytes).map(|_| 5)?),
        0xcb => (Head::Float, be::<8>(bytes).map(|_| 9)?),
        0xcc => (Head::Unsigned(u64::from(be::<1>(bytes)?[0])), 2),
        0xcd => (Head::Unsigned(u64::from(u16::from_be_bytes(be(bytes)?))), 3),
        0xce => (Head::Unsigned(u64::from(u32::from_be_bytes(be(bytes)?))), 5),
        0xcf => (Head::Unsigned(u64::from_be_bytes(be(bytes)?)), 9),
        0xd0 => (signed(i64::from(i8::from_be_bytes(be(bytes)?))), 2),
        0xd1 => (signed(i64::from(i16::from_be_bytes(be(bytes)?))), 3),
        0xd2 => (signed(i64::from(i32::from_be_bytes(be(bytes)?))), 5),
        0xd3 => (signed(i64::from_be_bytes(be(bytes)?)), 9),
        0xd4 => (Head::Ext(1), be::<1>(bytes).map(|_| 2)?),
        0xd5 => (Head::Ext(2), be::<1>(bytes).map(|_| 2)?),
        0xd6 => (Head::Ext(4), be::<1>(bytes).map(|_| 2)?),
        0xd7 => (Head::Ext(8), be::<1>(bytes).map(|_| 2)?),
        0xd8 => (Head::Ext(16), be::<1>(bytes).map(|_| 2)?),
        0xd9 => (Head::Str(size1()?), 2),
        0xda => (Head::Str(size2()?), 3),
        0xdb => (Head::Str(size4()?), 5),
        0xdc => (Head::Array(size2()?), 3),
        0xdd => (Head::Array(size4()?), 5),
        0xde => (Head::Map(size2()?), 3),
        0xdf => (Head::Map(size4()?), 5),
        0xe0..=0xff => (Head::Negative(i64::from(i8::from_be_bytes([marker]))), 1),
    })
}

/// A value without the contents of arrays and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    /// A str or a bin; requests may use either anywhere.
    Text(&'a [u8]),
    /// Elements follow.
    Array(usize),
    /// Pairs follow.
    Map(usize),
    /// A float or an extension, which no request uses.
    Other,
}

/// The bytes end within a value. This can't happen in a frame that a scanner has measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncated;

/// Reads values from a position. Never recurses, never allocates.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes not read yet.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next value. After `Array` or `Map`, its elements come next.
    pub(crate) fn read(&mut self) -> Result<Value<'a>, Truncated> {
        let (head, head_bytes) = decode_head(self.rest).ok_or(Truncated)?;
        let body = self.rest.get(head_bytes..).ok_or(Truncated)?;
        let (payload, rest) = body.split_at_checked(head.payload_bytes()).ok_or(Truncated)?;
        self.rest = rest;
        Ok(match head {
            Head::Nil => Value::Nil,
            Head::Bool(value) => Value::Bool(value),
            Head::Unsigned(value) => Value::Unsigned(value),
            Head::Negative(value) => Value::Negative(value),
            Head::Str(_) | Head::Bin(_) => Value::Text(payload),
            Head::Array(count) => Value::Array(count),
            Head::Map(count) => Value::Map(count),
            Head::Float | Head::Ext(_) => Value::Other,
            Head::Never => return Err(Truncated),
        })
    }

    /// The next value; an array or a map is skipped with its contents, and returned as `Other`.
    pub(crate) fn read_whole(&mut self) -> Result<Value<'a>, Truncated> {
        match self.read()? {
            Value::Array(count) => self.skip(count as u64).map(|()| Value::Other),
            Value::Map(count) => self.skip(2 * count as u64).map(|()| Value::Other),
            value => Ok(value),
        }
    }

    /// Skips this many values with their contents. Each step consumes at least a byte, so this terminates.
    pub(crate) fn skip(&mut self, count: u64) -> Result<(), Truncated> {
        let mut left = count;
        while left > 0 {
            let (head, head_bytes) = decode_head(self.rest).ok_or(Truncated)?;
            if head == Head::Never {
                return Err(Truncated);
            }
            let taken = head_bytes.checked_add(head.payload_bytes()).ok_or(Truncated)?;
            self.rest = self.rest.get(taken..).ok_or(Truncated)?;
            left = (left - 1).saturating_add(head.children());
        }
        Ok(())
    }
}

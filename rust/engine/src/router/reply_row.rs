//! Replies of a RESP connection: they leave in the order of their requests, whatever order shards answer in.

use std::collections::VecDeque;

use crate::wire::resp::{self, Version};

/// A reply, or the place for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// It isn't known yet.
    Waiting,
    /// An integer.
    Int(i64),
    /// An integer as a bulk string.
    Bulk(i64),
    /// Nothing.
    Null,
    /// Encoded.
    Bytes(Box<[u8]>),
    /// An array.
    Values(Box<[Reply]>),
}

impl Reply {
    fn write(&self, version: Version, out: &mut Vec<u8>) {
        match self {
            Self::Waiting => {}
            Self::Int(value) => resp::write_int(out, *value),
            Self::Bulk(value) => resp::write_bulk_int(out, *value),
            Self::Null => resp::write_null(out, version),
            Self::Bytes(bytes) => out.extend_from_slice(bytes),
            Self::Values(values) => {
                resp::write_array_len(out, values.len());
                for value in values {
                    value.write(version, out);
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Values(values) => values.len() * size_of::<Self>() + values.iter().map(Self::bytes).sum::<usize>(),
            _ => 0,
        }
    }
}

/// Replies that can't leave yet, in order. Numbers of requests count up and wrap around.
#[derive(Debug, Default)]
pub(super) struct ReplyRow {
    /// The number of the front one.
    first: u32,
    row: VecDeque<Reply>,
    /// Of encoded replies in it.
    bytes: usize,
}

impl ReplyRow {
    pub(super) fn is_empty(&self) -> bool {
        self.row.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.row.len()
    }

    /// Memory of encoded replies.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A place at the end; gives its number.
    #[inline]
    pub(super) fn push(&mut self) -> u32 {
        // A connection's pending replies are bounded far below 2^32.
        let number = self.first.wrapping_add(self.row.len() as u32);
        self.row.push_back(Reply::Waiting);
        number
    }

    /// Adds what is known already.
    pub(super) fn push_known(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.row.push_back(Reply::Bytes(bytes.into()));
    }

    /// Takes a reply and writes what may leave with it. A number that isn't waited for changes nothing.
    #[inline]
    pub(super) fn settle(&mut self, number: u32, reply: Reply, version: Version, out: &mut Vec<u8>) {
        let index = number.wrapping_sub(self.first) as usize;
        if index > 0 {
            let Some(place) = self.row.get_mut(index).filter(|place| **place == Reply::Waiting) else { return };
            self.bytes += reply.bytes();
            *place = reply;
            return;
        }
        if self.row.pop_front().is_none() {
            return;
        }
        self.first = self.first.wrapping_add(1);
        reply.write(version, out);
        while let Some(reply) = self.row.front()
            && *reply != Reply::Waiting
        {
            reply.write(version, out);
            self.bytes -= reply.bytes();
            self.row.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        self.shrink();
    }

    /// A connection that is idle again is small again.
    fn shrink(&mut self) {
        const SPARE_REPLIES: usize = 256;
        if self.row.is_empty() && self.row.capacity() > SPARE_REPLIES {
            self.row.shrink_to(SPARE_REPLIES);
        }
    }
}

#[cfg(all(test, not(pycounter_loom)))]
mod tests {
    use super::*;

    #[test]
    fn replies_leave_in_order_whatever_order_they_come_in() {
        // All orders of five replies, one of which was known when it was asked for, around a number that wraps.
        let expected = b":0\r\n+OK\r\n$1\r\n2\r\n$-1\r\n-ERR\r\n";
        let replies = [
            (0, Reply::Int(0)),
            (2, Reply::Bulk(2)),
            (3, Reply::Null),
            (4, Reply::Bytes(b"-ERR\r\n".as_slice().into())),
        ];
        for first in [0, u32::MAX - 2] {
            for order in 0..24 {
                let mut left = replies.to_vec();
                let mut row = ReplyRow { first, ..ReplyRow::default() };
                row.push();
                row.push_known(b"+OK\r\n");
                for _ in 0..3 {
                    row.push();
                }
                let (mut out, mut order) = (Vec::new(), order);
                while !left.is_empty() {
                    let (number, reply) = left.remove(order % left.len());
                    order /= left.len() + 1;
                    row.settle(first.wrapping_add(number), reply, Version::Resp2, &mut out);
                    assert!(expected.starts_with(&out));
                }
                assert_eq!(out, expected);
                assert_eq!((row.len(), row.bytes()), (0, 0));
                row.settle(first.wrapping_add(5), Reply::Int(9), Version::Resp2, &mut out);
                assert_eq!(out, expected, "nobody waits for it");
            }
        }
    }

    #[test]
    fn a_number_is_settled_once() {
        let (mut row, mut out) = (ReplyRow::default(), Vec::new());
        let numbers = [row.push(), row.push(), row.push()];
        row.settle(numbers[1], Reply::Int(1), Version::Resp2, &mut out);
        row.settle(numbers[1], Reply::Int(7), Version::Resp2, &mut out);
        row.settle(numbers[0], Reply::Int(0), Version::Resp2, &mut out);
        assert_eq!(out, b":0\r\n:1\r\n");
        row.settle(numbers[0], Reply::Int(7), Version::Resp2, &mut out);
        assert_eq!(row.len(), 1);
    }
}

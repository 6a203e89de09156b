//! The floor: parses requests as a server does, and answers every increment with the same value.

use crate::wire::{msgpack_rpc, resp};

/// Longest request accepted; the load generator sends none as long.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// A request that isn't a plain increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("constant replies answer plain increments only")]
pub struct NotAnIncrement;

/// One connection's requests and replies, without any counters.
#[derive(Debug, Default)]
pub struct ConstantReplies {
    /// The incomplete request at the end of the input.
    rest: Vec<u8>,
}

impl ConstantReplies {
    /// Appends the replies to the requests in a chunk.
    ///
    /// # Errors
    ///
    /// Any request but `incr` in MessagePack-RPC and INCR in RESP. The connection is unusable afterwards.
    pub fn feed(&mut self, chunk: &[u8], replies: &mut Vec<u8>) -> Result<(), NotAnIncrement> {
        let left = if self.rest.is_empty() {
            answer(chunk, replies).to_vec()
        } else {
            self.rest.extend_from_slice(chunk);
            answer(&self.rest, replies).to_vec()
        };
        self.rest = left;
        if self.rest.len() > REQUEST_BYTES_MAX { Err(NotAnIncrement) } else { Ok(()) }
    }
}

/// Returns what follows the last whole increment.
fn answer<'a>(mut requests: &'a [u8], replies: &mut Vec<u8>) -> &'a [u8] {
    while let Some(first) = requests.first() {
        let len = if *first == b'*' {
            let Some(incr) = resp::fast_incr(requests) else { break };
            replies.extend_from_slice(b":1\r\n");
            incr.len
        } else {
            let Some(incr) = msgpack_rpc::fast_incr(requests) else { break };
            msgpack_rpc::reply_int(replies, incr.msgid, 1);
            incr.len
        };
        requests = &requests[len..];
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_of_the_requests_gets_the_same_replies() {
        let requests = b"*2\r\n$4\r\nINCR\r\n$1\r\na\r\n*2\r\n$4\r\nINCR\r\n$16\r\nkey:000000000000\r\n";
        for end in 0..requests.len() {
            let (mut connection, mut replies) = (ConstantReplies::default(), Vec::new());
            connection.feed(&requests[..end], &mut replies).expect("increments");
            connection.feed(&requests[end..], &mut replies).expect("increments");
            assert_eq!(replies, b":1\r\n:1\r\n");
        }
        let (mut connection, mut replies) = (ConstantReplies::default(), Vec::new());
        connection.feed(b"\x94\x00\x07\xa4incr\x91\xa1a", &mut replies).expect("increments");
        assert_eq!(replies, b"\x94\x01\x07\xc0\x01");
        assert_eq!(connection.feed(&[b'*'; REQUEST_BYTES_MAX + 1], &mut replies), Err(NotAnIncrement));
    }
}

//! A connection's requests, encoded once. The parts that differ between requests have a fixed width and are patched in
//! place: key digits, message numbers, ids, sequences, counts.

use super::key_picker::{KEY, KeyPicker};
use super::{Operation, Protocol, Workload};

/// Most bytes of one increment.
pub(super) const ITEM_BYTES_MAX: usize = 24;
/// Most bytes of a request besides its increments.
pub(super) const FRAME_BYTES_MAX: usize = 96;

/// Where a key's digits begin.
const DIGITS_AT: usize = KEY.len() - 8;

/// One request: a head, `batch` items, a tail. Offsets count from the start of the request.
#[derive(Default)]
struct Shape {
    head: Vec<u8>,
    item: Vec<u8>,
    /// Offset within an item.
    key_at: usize,
    tail: Vec<u8>,
    msgid_at: Option<usize>,
    /// Offset of the low eight bytes of an operation id.
    id_at: Option<usize>,
    session: Option<SessionPlaces>,
}

/// The further offsets of an `apply`.
#[derive(Clone, Copy)]
struct SessionPlaces {
    first_at: usize,
    acked_at: usize,
    /// Offset of the number of items.
    count_at: usize,
}

impl Shape {
    fn resp(command: &str) -> Self {
        Self {
            head: format!("*2\r\n${}\r\n{command}\r\n${}\r\n", command.len(), KEY.len()).into_bytes(),
            item: KEY.to_vec(),
            tail: b"\r\n".to_vec(),
            ..Self::default()
        }
    }

    fn memcached(before: &str, after: &str) -> Self {
        Self {
            head: before.as_bytes().to_vec(),
            item: KEY.to_vec(),
            tail: after.as_bytes().to_vec(),
            ..Self::default()
        }
    }

    /// `[0, msgid, method, [...` up to the key, and the part after it.
    fn rpc(method: &[u8], params: u8, after: &[u8]) -> Self {
        let mut head = vec![0x94, 0x00, 0xce, 0, 0, 0, 0, 0xa0 | method.len() as u8];
        head.extend_from_slice(method);
        head.push(0x90 | params);
        let mut item = vec![0xa0 | KEY.len() as u8];
        item.extend_from_slice(&KEY);
        Self { head, item, key_at: 1, tail: after.to_vec(), msgid_at: Some(3), ..Self::default() }
    }

    /// `["incr", [key, 1, {"id": 16 bytes}]]`.
    fn incr_with_id(run: [u8; 16]) -> Self {
        let mut after = b"\x01\x81\xa2id\xc4\x10".to_vec();
        after.extend_from_slice(&run);
        let mut shape = Self::rpc(b"incr", 3, &after);
        shape.id_at = Some(shape.head.len() + shape.item.len() + after.len() - 8);
        shape
    }

    /// `["apply", [session, first_sequence, acked_through, [[key, 1], ...]]]`.
    fn apply(session: [u8; 16]) -> Self {
        let mut shape = Self::rpc(b"apply", 4, b"");
        shape.head.extend_from_slice(b"\xc4\x10");
        shape.head.extend_from_slice(&session);
        let mut place = |marker: u8, width: usize| {
            shape.head.push(marker);
            let at = shape.head.len();
            shape.head.resize(at + width, 0);
            at
        };
        let places = SessionPlaces { first_at: place(0xcf, 8), acked_at: place(0xcf, 8), count_at: place(0xdc, 2) };
        shape.session = Some(places);
        shape.item.insert(0, 0x92);
        shape.item.push(1);
        shape.key_at = 2;
        shape
    }

    fn of(workload: &Workload, random: [u8; 16]) -> Self {
        match (workload.protocol, workload.operation) {
            (Protocol::Resp, Operation::Get) => Self::resp("GET"),
            (Protocol::Resp, _) => Self::resp("INCR"),
            // `v`: return the value. `N0`: create the item without expiry; `J1`: with the value 1 (instead of incrementing).
            (Protocol::Memcached, Operation::Get) => Self::memcached("mg ", " v\r\n"),
            (Protocol::Memcached, _) => Self::memcached("ma ", " v N0 J1\r\n"),
            (Protocol::MsgpackRpc, Operation::Incr) => Self::rpc(b"incr", 1, b""),
            (Protocol::MsgpackRpc, Operation::Get) => Self::rpc(b"get", 1, b""),
            (Protocol::MsgpackRpc, Operation::IncrWithId) => Self::incr_with_id(random),
            (Protocol::MsgpackRpc, Operation::Apply { .. }) => Self::apply(random),
        }
    }
}

pub(super) struct Requests {
    bytes: Vec<u8>,
    shape: Shape,
    batch: usize,
    /// Message number of the first request in `bytes`.
    first_msgid: u32,
    requests: usize,
    operations: usize,
    /// Operations before those in `bytes`; all are answered when `bytes` is refilled.
    before: u64,
}

impl Requests {
    /// `random` keeps ids and sessions distinct from those of other connections.
    pub(super) fn new(workload: &Workload, random: [u8; 16]) -> Self {
        let shape = Shape::of(workload, random);
        let batch = workload.batch();
        let one = [shape.head.clone(), shape.item.repeat(batch), shape.tail.clone()].concat();
        Self {
            bytes: one.repeat(workload.pipeline),
            shape,
            batch,
            first_msgid: 0,
            requests: 0,
            operations: 0,
            before: 0,
        }
    }

    /// Fills in requests for `operations`, at most `pipeline * batch`. Returns their length in bytes.
    pub(super) fn fill(&mut self, operations: usize, keys: &mut KeyPicker) -> usize {
        self.first_msgid = self.first_msgid.wrapping_add(self.requests as u32);
        self.before += self.operations as u64;
        self.requests = operations.div_ceil(self.batch);
        self.operations = operations;
        let Shape { head, item, key_at, tail, msgid_at, id_at, session } = &self.shape;
        let request_len = head.len() + self.batch * item.len() + tail.len();
        let mut left = operations;
        let mut msgid = self.first_msgid;
        let mut sequence = self.before + 1;
        for request in self.bytes.chunks_exact_mut(request_len).take(self.requests) {
            let items = left.min(self.batch);
            if let Some(at) = *msgid_at {
                request[at..at + 4].copy_from_slice(&msgid.to_be_bytes());
            }
            if let Some(at) = *id_at {
                request[at..at + 8].copy_from_slice(&sequence.to_be_bytes());
            }
            if let Some(SessionPlaces { first_at, acked_at, count_at }) = *session {
                request[first_at..first_at + 8].copy_from_slice(&sequence.to_be_bytes());
                request[acked_at..acked_at + 8].copy_from_slice(&self.before.to_be_bytes());
                request[count_at..count_at + 2].copy_from_slice(&(items as u16).to_be_bytes());
            }
            for item in request[head.len()..].chunks_exact_mut(item.len()).take(items) {
                let at = key_at + DIGITS_AT;
                if let Some(digits) = item.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                    keys.write_digits(digits);
                }
            }
            left -= items;
            sequence += items as u64;
            msgid = msgid.wrapping_add(1);
        }
        // Only the last request may hold less than a full batch, and requests with batches have no tail.
        let missing = self.requests * self.batch - operations;
        self.requests * request_len - missing * item.len()
    }

    /// The bytes from `fill`.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Requests in flight.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// The index, among the requests in flight, of the one with this message number.
    pub(super) fn place_of(&self, msgid: u32) -> Option<usize> {
        let place = msgid.wrapping_sub(self.first_msgid) as usize;
        (place < self.requests).then_some(place)
    }

    /// Operations of the request at that index.
    pub(super) fn operations_of(&self, place: usize) -> usize {
        self.batch.min(self.operations.saturating_sub(place * self.batch))
    }
}

#[cfg(test)]
mod tests {
    use super::super::KeyOrder;
    use super::*;
    use crate::wire::{msgpack_rpc, resp};

    fn workload(protocol: Protocol, operation: Operation) -> Workload {
        Workload {
            protocol,
            operation,
            connections: 1,
            pipeline: 3,
            keys: 1_000,
            order: KeyOrder::Sequential,
            operations: Some(1),
            duration: None,
            seed: 1,
        }
    }

    fn filled(operation: Operation, operations: usize) -> (Requests, Vec<u8>) {
        let mut keys = KeyPicker::new(KeyOrder::Sequential, 1_000, 1);
        let mut requests = Requests::new(&workload(Protocol::MsgpackRpc, operation), *b"0123456789abcdef");
        requests.fill(3 * workload(Protocol::MsgpackRpc, operation).batch(), &mut keys);
        let len = requests.fill(operations, &mut keys);
        let bytes = requests.bytes()[..len].to_vec();
        (requests, bytes)
    }

    fn values(mut bytes: &[u8]) -> Vec<String> {
        let mut values = Vec::new();
        while !bytes.is_empty() {
            values.push(rmpv::decode::read_value(&mut bytes).expect("whole").to_string());
        }
        values
    }

    #[test]
    fn increments_take_the_fast_path() {
        let (_, bytes) = filled(Operation::Incr, 2);
        let first = msgpack_rpc::fast_incr(&bytes).expect("an incr");
        assert_eq!((first.msgid, first.key, first.delta), (3, &b"key:000000000003"[..], 1));
        let second = msgpack_rpc::fast_incr(&bytes[first.len..]).expect("an incr");
        assert_eq!((second.msgid, second.key), (4, &b"key:000000000004"[..]));
        assert_eq!(first.len + second.len, bytes.len());

        let mut requests = Requests::new(&workload(Protocol::Resp, Operation::Incr), [0; 16]);
        let len = requests.fill(1, &mut KeyPicker::new(KeyOrder::Sequential, 9, 1));
        let incr = resp::fast_incr(&requests.bytes()[..len]).expect("an incr");
        assert_eq!((incr.len, incr.key), (len, &b"key:000000000000"[..]));
    }

    #[test]
    fn ids_differ() {
        let (_, bytes) = filled(Operation::IncrWithId, 2);
        assert_eq!(bytes.iter().filter(|&&byte| byte == b'k').count(), 2);
        assert_eq!(&bytes[bytes.len() - 16..], b"01234567\0\0\0\0\0\0\0\x05");
        let values = values(&bytes);
        assert_eq!(values.len(), 2);
        assert_ne!(values[0], values[1]);
    }

    #[test]
    fn a_short_last_batch_is_a_whole_request() {
        let (requests, bytes) = filled(Operation::Apply { batch: 2 }, 3);
        let values = values(&bytes);
        assert_eq!(values.len(), 2, "{values:?}");
        assert!(values[0].contains(", 7, 6, [[\"key:000000000006\", 1], [\"key:000000000007\", 1]]"), "{values:?}");
        assert!(values[1].contains(", 9, 6, [[\"key:000000000008\", 1]]"), "{values:?}");
        assert_eq!((requests.operations_of(0), requests.operations_of(1), requests.requests()), (2, 1, 2));
        assert_eq!(
            (requests.place_of(2), requests.place_of(3), requests.place_of(4), requests.place_of(5)),
            (None, Some(0), Some(1), None)
        );
    }
}

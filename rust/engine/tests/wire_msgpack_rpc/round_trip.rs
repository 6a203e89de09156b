//! Random requests and replies there and back, cut anywhere.

use proptest::prelude::*;
use pycounter_engine::wire::msgpack_rpc::*;
use pycounter_engine::wire::request::{ChangeOptions, Level, Request};
use pycounter_engine::wire::scan::Scan;
use rmpv::{Integer, Value};

use super::{LIMITS, bin, call, encode, outcome};

/// A request to be encoded, in a form that owns its parts.
#[derive(Debug, Clone)]
struct Sent {
    msgid: u32,
    key: Vec<u8>,
    key_as_bin: bool,
    delta: i64,
    id: Option<Vec<u8>>,
    born: Option<u64>,
    durable: Option<bool>,
    detail: bool,
    reversed: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    let key = prop::collection::vec(any::<u8>(), 1..80);
    let id = prop::option::of(prop::collection::vec(any::<u8>(), 1..=64));
    (
        any::<u32>(),
        key,
        any::<bool>(),
        any::<i64>(),
        id,
        any::<Option<u64>>(),
        any::<Option<bool>>(),
        any::<(bool, bool)>(),
    )
        .prop_map(|(msgid, key, key_as_bin, delta, id, born, durable, (detail, reversed))| Sent {
            msgid,
            key,
            key_as_bin,
            delta,
            id,
            born,
            durable,
            detail,
            reversed,
        })
}

impl Sent {
    fn key(&self) -> Value {
        match std::str::from_utf8(&self.key) {
            Ok(text) if !self.key_as_bin => text.into(),
            _ => bin(&self.key),
        }
    }

    fn options(&self) -> Value {
        let mut pairs: Vec<(Value, Value)> = vec![("detail".into(), self.detail.into())];
        if let Some(id) = &self.id {
            pairs.push((bin(b"id"), bin(id)));
        }
        if let Some(born) = self.born {
            pairs.push(("born".into(), Value::Integer(Integer::from(born))));
        }
        if let Some(durable) = self.durable {
            pairs.push(("level".into(), if durable { "durable" } else { "applied" }.into()));
        }
        if self.reversed {
            pairs.reverse();
        }
        Value::Map(pairs)
    }

    fn expected(&self) -> ChangeOptions<'_> {
        let level = self.durable.map(|durable| if durable { Level::Durable } else { Level::Applied });
        ChangeOptions { id: self.id.as_deref(), born: self.born, level, detail: self.detail }
    }
}

proptest! {
    #[test]
    fn changes_round_trip(sent in sent(), method in 0..3_usize) {
        let name = ["incr", "drain", "delete"][method];
        let mut params = vec![sent.key(), sent.delta.into(), sent.options()];
        if method > 0 {
            params.remove(1);
        }
        let frame = encode(&Value::Array(vec![0.into(), sent.msgid.into(), bin(name.as_bytes()), Value::Array(params)]));
        let (key, delta, options) = (&sent.key[..], sent.delta, sent.expected());
        let expected = match method {
            0 => Request::Incr { key, delta, options },
            1 => Request::Drain { key, options },
            _ => Request::Delete { key, options },
        };
        prop_assert_eq!(parse(&frame), Parsed::Request { msgid: sent.msgid, request: Ok(expected) });
        prop_assert_eq!(request_msgid(&frame), Some(sent.msgid));
    }

    #[test]
    fn batches_round_trip(items in prop::collection::vec(sent(), 0..20), session: [u8; 16], first in 1..u64::MAX / 2, acked: u64) {
        let values = items.iter().map(|item| Value::Array(vec![item.key(), item.delta.into()])).collect();
        let frame = call("apply", vec![bin(&session), first.into(), acked.into(), Value::Array(values)]);
        let Ok(Request::Apply { items: parsed, first_sequence, acked_through, .. }) = outcome(&frame) else { panic!("refused") };
        prop_assert_eq!((first_sequence, acked_through), (first, acked));
        prop_assert_eq!(parsed.len(), items.len());
        for (parsed, item) in parsed.iter().zip(&items) {
            prop_assert_eq!((parsed.key, parsed.delta, parsed.error), (&item.key[..], item.delta, None));
        }
        let values = items.iter().map(|item| Value::Array(vec![item.key(), item.delta.into(), item.id.as_deref().map_or(Value::Nil, bin)])).collect();
        let frame = call("incr_many", vec![Value::Array(values)]);
        let Ok(Request::IncrMany { items: parsed, .. }) = outcome(&frame) else { panic!("refused") };
        for (parsed, item) in parsed.iter().zip(&items) {
            prop_assert_eq!((parsed.key, parsed.delta, parsed.id), (&item.key[..], item.delta, item.id.as_deref()));
        }
    }

    #[test]
    fn any_split_of_a_stream_gives_the_same_frames(all in prop::collection::vec(sent(), 1..6), cuts in prop::collection::vec(1..40_usize, 1..40)) {
        let frames: Vec<Vec<u8>> = all
            .iter()
            .map(|sent| encode(&Value::Array(vec![0.into(), sent.msgid.into(), "incr".into(), Value::Array(vec![sent.key(), sent.delta.into(), sent.options()])])))
            .collect();
        let stream = frames.concat();
        let (mut scanner, mut start, mut arrived, mut found) = (FrameScanner::default(), 0, 0, Vec::new());
        let mut cuts = cuts.iter().cycle();
        loop {
            match scanner.scan(&stream[start..arrived], LIMITS) {
                Ok(Scan::Complete(len)) => {
                    found.push(stream[start..start + len].to_vec());
                    start += len;
                }
                Ok(Scan::Incomplete) if arrived == stream.len() => break,
                Ok(Scan::Incomplete) => arrived = stream.len().min(arrived + cuts.next().unwrap()),
                Err(error) => panic!("{error}"),
            }
        }
        prop_assert_eq!(found, frames);
    }

    #[test]
    fn integer_replies_decode_to_what_was_written(msgid: u32, value: i64, unsigned: u64, total: i128) {
        let mut out = Vec::new();
        reply_int(&mut out, msgid, value);
        prop_assert_eq!(&out, &encode(&Value::Array(vec![1.into(), msgid.into(), Value::Nil, value.into()])));
        out.clear();
        write_u64(&mut out, unsigned);
        prop_assert_eq!(&out, &encode(&unsigned.into()));
        out.clear();
        write_i128(&mut out, total);
        let decoded = rmpv::decode::read_value(&mut &out[..]).unwrap();
        let back = decoded.as_i64().map(i128::from).or_else(|| decoded.as_str().and_then(|text| text.parse().ok()));
        prop_assert_eq!(back, Some(total));
    }

    /// Any MessagePack at all: the scanner agrees with an independent encoder on its length, the parser survives it.
    #[test]
    fn any_value_is_measured_rightly(value in any_value(), tail: Vec<u8>) {
        let bytes = encode(&value);
        let _ = parse(&bytes);
        let _ = parse(&call("incr_many", vec![value.clone()]));
        let _ = parse(&call("incr", vec!["k".into(), value.clone()]));
        let longer = [&bytes[..], &tail].concat();
        prop_assert_eq!(FrameScanner::default().scan(&longer, LIMITS), Ok(Scan::Complete(bytes.len())));
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        let _ = parse(&bytes);
        let _ = parse(&[&b"\x94\x00\x01\xa4incr\x93\xa1k\x01"[..], &bytes].concat());
        let _ = FrameScanner::default().scan(&bytes, LIMITS);
        let _ = (fast_incr(&bytes), request_msgid(&bytes));
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        ".{0,40}".prop_map(|text: String| Value::from(text)),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::Binary),
        (any::<i8>(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, bytes)| Value::Ext(kind, bytes)),
    ];
    leaf.prop_recursive(5, 40, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
            prop::collection::vec((inner.clone(), inner), 0..20).prop_map(Value::Map),
        ]
    })
}

//! Replies, byte by byte and through an independent decoder.

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::wire::msgpack_rpc::*;
use rmpv::Value;

use super::{bin, call, encode};

#[test]
fn errors_are_one_string_that_quotes_little() {
    let frame = call("x".repeat(5000).as_str(), vec![]);
    let Parsed::Request { request: Err(error), .. } = parse(&frame) else { panic!("accepted") };
    assert!(error.message.len() < 200, "{}", error.message);
    let mut out = Vec::new();
    reply_error(&mut out, 7, error.code, &error.message);
    let Value::Array(reply) = rmpv::decode::read_value(&mut &out[..]).unwrap() else { panic!("an array") };
    assert_eq!(reply[..2], [1.into(), 7.into()]);
    assert!(reply[2].as_str().unwrap().starts_with("unknown_method: there is no method 'xxx"));
    assert_eq!((reply[3].clone(), reply.len()), (Value::Nil, 4));
}

#[test]
fn replies_begin_with_the_byte_that_clients_expect() {
    let mut out = Vec::new();
    reply_int(&mut out, 1, 42);
    assert_eq!(out, b"\x94\x01\x01\xc0\x2a");
    out.clear();
    reply_nil(&mut out, 300);
    assert_eq!(out, b"\x94\x01\xcd\x01\x2c\xc0\xc0");
    out.clear();
    reply_error(&mut out, 1, ErrorCode::BadKey, "no");
    assert_eq!(out, b"\x94\x01\x01\xabbad_key: no\xc0");
}

#[test]
fn values_take_their_shortest_form() {
    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = b"before".to_vec();
        write(&mut out);
        out.split_off(6)
    }
    for len in [0, 1, 31, 32, 255, 256, 65_535, 65_536] {
        let text = "x".repeat(len);
        assert_eq!(written(|out| write_str(out, &text)), encode(&text.as_str().into()));
        assert_eq!(written(|out| write_bin(out, text.as_bytes())), encode(&bin(text.as_bytes())));
        assert_eq!(written(|out| write_key(out, text.as_bytes())), encode(&text.as_str().into()));
        let mut array = encode(&Value::Array(vec![Value::Nil; len]));
        array.truncate(array.len() - len);
        assert_eq!(written(|out| write_array_len(out, len)), array);
        let mut map = encode(&Value::Map(vec![(Value::Nil, Value::Nil); len]));
        map.truncate(map.len() - 2 * len);
        assert_eq!(written(|out| write_map_len(out, len)), map);
    }
    let powers = (0..64).map(|bits| 1_i128 << bits);
    for edge in powers.flat_map(|power| [power - 1, power, power + 1, 1 - power, -power, -power - 1, -33, -32]) {
        if let Ok(edge) = i64::try_from(edge) {
            assert_eq!(written(|out| write_i64(out, edge)), encode(&edge.into()), "{edge}");
        }
        if let Ok(edge) = u64::try_from(edge) {
            assert_eq!(written(|out| write_u64(out, edge)), encode(&edge.into()), "{edge}");
        }
    }
    assert_eq!(written(|out| write_key(out, b"\xff")), b"\xc4\x01\xff");
    assert_eq!(written(|out| write_bool(out, true)), b"\xc3");
    assert_eq!(written(|out| write_bool(out, false)), b"\xc2");
    assert_eq!(written(|out| write_f64(out, 0.5)), encode(&0.5.into()));
    assert_eq!(written(|out| write_i128(out, i128::from(i64::MAX))), encode(&i64::MAX.into()));
    assert_eq!(written(|out| write_i128(out, i128::from(i64::MIN))), encode(&i64::MIN.into()));
    assert_eq!(written(|out| write_i128(out, i128::from(i64::MAX) + 1)), encode(&"9223372036854775808".into()));
    assert_eq!(written(|out| write_i128(out, i128::MIN)), encode(&i128::MIN.to_string().as_str().into()));
}

#[test]
fn held_replies_become_errors_under_their_msgids() {
    let mut held = Vec::new();
    reply_int(&mut held, 1, -7);
    reply_error(&mut held, u32::MAX, ErrorCode::Overflow, "too far");
    reply_begin(&mut held, 200);
    write_map_len(&mut held, 2);
    write_str(&mut held, "results");
    write_array_len(&mut held, 3);
    write_i64(&mut held, 1);
    write_bin(&mut held, b"\x94\x01\x05");
    write_f64(&mut held, 1.5);
    write_key(&mut held, b"nested");
    write_array_len(&mut held, 0);
    reply_nil(&mut held, 0);
    let mut out = b"before".to_vec();
    assert_eq!(fail_held(&held, &mut out, ErrorCode::UnknownOutcome, "lost"), 4);
    let mut expected = b"before".to_vec();
    for msgid in [1, u32::MAX, 200, 0] {
        reply_error(&mut expected, msgid, ErrorCode::UnknownOutcome, "lost");
    }
    assert_eq!(out, expected);
    assert_eq!(fail_held(b"", &mut out, ErrorCode::UnknownOutcome, "lost"), 0);
}

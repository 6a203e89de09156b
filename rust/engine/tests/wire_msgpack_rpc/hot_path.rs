//! What the hot paths take, encoding by encoding.

use pycounter_engine::wire::msgpack_rpc::fast_incr;

#[test]
fn hot_paths_take_every_encoding_and_nothing_else() {
    let msgids: [&[u8]; 11] = [
        b"\x05",
        b"\xcc\x05",
        b"\xcd\x00\x05",
        b"\xce\x00\x00\x00\x05",
        b"\xcf\x00\x00\x00\x00\x00\x00\x00\x05",
        b"\xd0\x05",
        b"\xd1\x00\x05",
        b"\xd2\x00\x00\x00\x05",
        b"\xd3\x00\x00\x00\x00\x00\x00\x00\x05",
        b"\xcc\xc8",
        b"\xce\xff\xff\xff\xff",
    ];
    let methods: [&[u8]; 3] = [b"\xa4incr", b"\xd9\x04incr", b"\xc4\x04incr"];
    let keys: [&[u8]; 5] = [b"\xa3key", b"\xd9\x03key", b"\xda\x00\x03key", b"\xc4\x03key", b"\xc5\x00\x03key"];
    let deltas: [(&[u8], Option<i64>); 16] = [
        (b"\x07", Some(7)),
        (b"\xff", Some(-1)),
        (b"\xe0", Some(-32)),
        (b"\xcc\xff", Some(255)),
        (b"\xcd\xff\xff", Some(65_535)),
        (b"\xce\xff\xff\xff\xff", Some(0xffff_ffff)),
        (b"\xcf\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
        (b"\xcf\x80\x00\x00\x00\x00\x00\x00\x00", None),
        (b"\xd0\x80", Some(-128)),
        (b"\xd1\x80\x00", Some(-32_768)),
        (b"\xd2\x80\x00\x00\x00", Some(i64::from(i32::MIN))),
        (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", Some(i64::MIN)),
        (b"\xc0", None),
        (b"\xc2", None),
        (b"\xca\x00\x00\x00\x00", None),
        (b"\x80", None),
    ];
    for msgid in msgids {
        for method in methods {
            for key in keys {
                let head = [b"\x94\x00", msgid, method].concat();
                let plain = [&head[..], b"\x91", key].concat();
                let fast = fast_incr(&plain).expect("a hot shape");
                assert_eq!((fast.len, fast.key, fast.delta), (plain.len(), &b"key"[..], 1));
                assert!((0..plain.len()).all(|end| fast_incr(&plain[..end]).is_none()));
                for (delta, value) in deltas {
                    let frame = [&head[..], b"\x92", key, delta, b"after"].concat();
                    let fast = fast_incr(&frame);
                    assert_eq!(fast.map(|fast| fast.delta), value);
                    assert!(fast.is_none_or(|fast| fast.len == frame.len() - 5));
                }
            }
        }
    }
    for id in [&b"\xa4once"[..], b"\xd9\x04once", b"\xc4\x04once", b"\xda\x00\x04once"] {
        for name in [&b"\xa2id"[..], b"\xd9\x02id", b"\xc4\x02id"] {
            let frame = [&b"\x94\x00\x05\xa4incr\x93\xa1k\x07\x81"[..], name, id].concat();
            let fast = fast_incr(&frame).expect("a hot shape");
            assert_eq!((fast.len, fast.key, fast.delta, fast.id), (frame.len(), &b"k"[..], 7, Some(&b"once"[..])));
            assert!((0..frame.len()).all(|end| fast_incr(&frame[..end]).is_none()));
        }
    }
    let long_id = [&b"\x94\x00\x05\xa4incr\x93\xa1k\x07\x81\xa2id\xd9\x41"[..], &[b'i'; 65]].concat();
    for frame in [
        &long_id[..],
        b"\x94\x00\x05\xa4incr\x93\xa1k\x07\x81\xa2id\xa0",
        b"\x94\x00\x05\xa4incr\x93\xa1k\x07\x81\xa2id\x05",
        b"\x94\x00\x05\xa4incr\x93\xa1k\x07\x81\xa2iD\xa1i",
        b"\x94\x00\x05\xa4incr\x93\xa1k\x07\x82\xa2id\xa1i\xa4born\x05",
        b"\x94\x00\x05\xa4incr\x93\xa1k\xc0\x81\xa2id\xa1i",
        &b"\x94\x00\x05\xa4incr\x91\xa0"[..],
        b"\x94\x00\x05\xa4incr\x91\xc4\x00",
        b"\x94\x00\x05\xa4Incr\x91\xa1k",
        b"\x94\x00\x05\xa4incr\x90",
        b"\x94\x00\x05\xa4incr\x93\xa1k\x01\x80",
        b"\x94\x00\xff\xa4incr\x91\xa1k",
        b"\x94\x00\xd0\x80\xa4incr\x91\xa1k",
        b"\x93\x02\xa4incr\x91\xa1k",
        b"\x94\x01\x05\xa4incr\x91\xa1k",
        b"\x94\x00\xcf\x00\x00\x00\x01\x00\x00\x00\x05\xa4incr\x91\xa1k",
        b"\x94\x00\x05\xa5incr\x91\xa1k",
    ] {
        assert_eq!(fast_incr(frame), None, "{}", frame.escape_ascii());
    }
}

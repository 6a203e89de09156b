//! MessagePack-RPC requests: any bytes, cut anywhere.

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::limits::REQUEST_ITEMS_MAX;
use pycounter_engine::wire::msgpack_rpc::{self, FrameScanner, Parsed};
use pycounter_engine::wire::request::{ChangeOptions, Request, key_is_valid};
use pycounter_engine::wire::scan::Scan;

use crate::split::{LIMITS, frames};

/// The first byte says how the rest, a connection's bytes, is cut.
pub fn check(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else { return };
    let mut scanner = FrameScanner::default();
    let whole = frames(stream, usize::MAX, |buf| scanner.scan(buf, LIMITS));
    let mut scanner = FrameScanner::default();
    let pieces = frames(stream, usize::from(*piece) + 1, |buf| scanner.scan(buf, LIMITS));
    assert_eq!(whole, pieces, "cut differently, the same bytes mean something else");

    let (mut start, mut held, mut answers) = (0, Vec::new(), 0);
    for len in whole.lengths {
        let frame = &stream[start..start + len];
        check_hot_path(&stream[start..], frame);
        answers += check_frame(frame, &mut held);
        start += len;
    }
    let mut failed = Vec::new();
    assert_eq!(msgpack_rpc::fail_held(&held, &mut failed, ErrorCode::UnknownOutcome, "lost"), answers);
    let mut scanner = FrameScanner::default();
    assert_eq!(frames(&failed, usize::MAX, |buf| scanner.scan(buf, LIMITS)).lengths.len(), answers);

    // Bytes that no scanner measured are no frame, but no harm either.
    let _ = msgpack_rpc::parse(stream);
    let _ = msgpack_rpc::request_msgid(stream);
    check_hot_path(stream, stream);
}

/// What a fast path takes must be what the general path makes of the same bytes.
fn check_hot_path(buf: &[u8], frame: &[u8]) {
    let general = |len: usize| {
        assert_eq!(
            FrameScanner::default().scan(buf, pycounter_engine::wire::scan::FrameLimits { bytes_max: usize::MAX }),
            Ok(Scan::Complete(len))
        );
        msgpack_rpc::parse(&buf[..len])
    };
    if let Some(fast) = msgpack_rpc::fast_incr(buf) {
        let options = ChangeOptions { id: fast.id, ..ChangeOptions::default() };
        let request = Request::Incr { key: fast.key, delta: fast.delta, options };
        assert_eq!(general(fast.len), Parsed::Request { msgid: fast.msgid, request: Ok(request) });
        assert_eq!(msgpack_rpc::fast_incr(&buf[..fast.len - 1]), None, "it is not all there");
    }
    // Past the frame the bytes are another frame's.
    assert_eq!(msgpack_rpc::fast_incr(frame), msgpack_rpc::fast_incr(buf));
}

/// Answers a frame as a shard would, and returns how many answers that were.
fn check_frame(frame: &[u8], held: &mut Vec<u8>) -> usize {
    match msgpack_rpc::parse(frame) {
        Parsed::Request { msgid, request } => {
            assert_eq!(msgpack_rpc::request_msgid(frame), Some(msgid));
            match request {
                Ok(request) => {
                    check_request(&request);
                    msgpack_rpc::reply_int(held, msgid, i64::from(msgid) - (1 << 31));
                }
                Err(error) => msgpack_rpc::reply_error(held, msgid, error.code, &error.message),
            }
            1
        }
        Parsed::Notification { request, .. } => {
            if let Ok(request) = request {
                check_request(&request);
            }
            0
        }
        Parsed::Invalid { msgid: Some(msgid), error } => {
            msgpack_rpc::reply_error(held, msgid, error.code, &error.message);
            1
        }
        Parsed::Invalid { msgid: None, .. } => 0,
    }
}

/// What a request promises to those who carry it out.
fn check_request(request: &Request<'_>) {
    match request {
        Request::Incr { key, options, .. } | Request::Drain { key, options } | Request::Delete { key, options } => {
            assert!(key_is_valid(key));
            assert!(options.id.is_none_or(|id| (1..=64).contains(&id.len())));
        }
        Request::DeleteAll { options } => assert!(options.id.is_none_or(|id| (1..=64).contains(&id.len()))),
        Request::Get { key, .. } | Request::Total { key, .. } => assert!(key_is_valid(key)),
        Request::GetMany { keys, .. } | Request::TotalMany { keys, .. } => {
            assert!(keys.len() <= REQUEST_ITEMS_MAX && keys.iter().all(|key| key_is_valid(key)));
        }
        Request::DeleteMany { items, .. } => {
            assert!(items.len() <= REQUEST_ITEMS_MAX);
            assert!(items.iter().all(|item| item.delta == 0 && item.error.is_none() == key_is_valid(item.key)));
        }
        Request::IncrMany { items, .. } | Request::Apply { items, .. } => {
            assert!(items.len() <= REQUEST_ITEMS_MAX);
            for item in items {
                match item.error {
                    None => assert!(key_is_valid(item.key) && item.raw_hash == 0),
                    Some(code) => {
                        assert!(matches!(code, ErrorCode::BadKey | ErrorCode::BadDelta));
                        assert!(item.key.is_empty() && item.delta == 0 && item.raw_hash != 0);
                    }
                }
            }
            if let Request::Apply { first_sequence, .. } = request {
                assert!(*first_sequence >= 1 && first_sequence.checked_add(items.len() as u64).is_some());
            }
        }
        Request::Scan { count, prefix, .. } | Request::Top { n: count, prefix } => {
            assert!((1..=REQUEST_ITEMS_MAX).contains(count) && prefix.len() <= 1024);
        }
        Request::Backup { directory } => assert!(!directory.is_empty() && !directory.contains('\0')),
        _ => {}
    }
}

/// Where fuzzing begins: every method, every option, and what is nearly right. The first byte cuts.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let long_key = [&b"\x00\x94\x00\x01\xa4incr\x91\xda\x04\x00"[..], &[b'k'; 1024]].concat();
    let too_long_key = [&b"\x00\x94\x00\x01\xa4incr\x91\xda\x04\x01"[..], &[b'k'; 1025]].concat();
    let pipeline = [&b"\x07"[..], &b"\x94\x00\x01\xa4incr\x91\xa1k\x94\x00\x02\xa3get\x91\xa1k".repeat(8)].concat();
    let fixed: &[(&'static str, &[u8])] = &[
        ("incr-plain", b"\x00\x94\x00\x01\xa4incr\x91\xa1k"),
        ("incr-delta", b"\x00\x94\x00\xcd\x12\x34\xa4incr\x92\xa3key\xd1\xff\x00"),
        ("incr-bin", b"\x01\x94\x00\xce\xff\xff\xff\xff\xc4\x04incr\x92\xc4\x03key\xd3\x80\x00\x00\x00\x00\x00\x00\x00"),
        ("incr-msgid-u64", b"\x00\x94\x00\xcf\x00\x00\x00\x00\xff\xff\xff\xff\xd9\x04incr\x91\xd9\x01k"),
        ("incr-msgid-over", b"\x00\x94\x00\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa4incr\x91\xa1k"),
        ("incr-msgid-signed", b"\x00\x94\x00\xd0\x7f\xa4incr\x91\xa1k"),
        ("incr-options", b"\x02\x94\x00\x01\xa4incr\x93\xa1k\x05\x84\xa2id\xa2op\xa4born\xcd\x30\x39\xa5level\xa7applied\xa6detail\xc3"),
        ("incr-options-no-delta", b"\x02\x94\x00\x01\xa4incr\x92\xa1k\x81\xa5level\xa7durable"),
        ("incr-typo", b"\x00\x94\x00\x01\xa4incr\x93\xa1k\x01\x81\xa5levle\xa7durable"),
        ("incr-option-twice", b"\x00\x94\x00\x01\xa4incr\x93\xa1k\x01\x82\xa2id\xa1a\xa2id\xa1a"),
        ("incr-float", b"\x00\x94\x00\x01\xa4incr\x92\xa1k\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"),
        ("incr-u64-over", b"\x00\x94\x00\x01\xa4incr\x92\xa1k\xcf\x80\x00\x00\x00\x00\x00\x00\x00"),
        ("incr-empty-key", b"\x00\x94\x00\x01\xa4incr\x91\xa0"),
        ("incr-array16", b"\x00\xdc\x00\x04\xcc\x00\x01\xa4incr\xdc\x00\x01\xa1k"),
        ("incr-many", b"\x03\x94\x00\x09\xa9incr_many\x91\x93\x92\xa1a\x01\x93\xa1b\xff\xa2id\x92\xa0\x01"),
        ("incr-many-options", b"\x03\x94\x00\x09\xa9incr_many\x92\x91\x92\xa1a\x91\x91\x01\x81\xa6detail\xc2"),
        ("apply", b"\x04\x94\x00\x0a\xa5apply\x95\xc4\x10sixteen bytes id\x01\x00\x92\x92\xa1a\x01\x92\xa1b\xff\xa7durable"),
        ("apply-bad-items", b"\x04\x94\x00\x0a\xa5apply\x94\xb0sixteen bytes id\x07\x06\x93\x92\xa1a\xa1x\x92\xc0\x01\x92\x81\x01\x02\x80"),
        ("apply-last-sequence", b"\x04\x94\x00\x0a\xa5apply\x94\xb0sixteen bytes id\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x00\x91\x92\xa1a\x01"),
        ("get", b"\x00\x94\x00\x01\xa3get\x91\xa1k"),
        ("get-options", b"\x05\x94\x00\x01\xa3get\x92\xa1k\x82\xa8accuracy\xa6recent\xaamin_commit\x07"),
        ("get-many", b"\x00\x94\x00\x01\xa8get_many\x92\x93\xa1a\xc4\x01\xff\xa1c\xc0"),
        ("total", b"\x00\x94\x00\x01\xa5total\x92\xa1k\x81\xa8accuracy\xa5exact"),
        ("total-many", b"\x00\x94\x00\x01\xaatotal_many\x91\x92\xa1a\xa1b"),
        ("drain", b"\x00\x94\x00\x01\xa5drain\x92\xa1k\x81\xa2id\xa1x"),
        ("delete", b"\x00\x94\x00\x01\xa6delete\x91\xa1k"),
        ("delete-all", b"\x00\x94\x00\x01\xaadelete_all\x91\x81\xa2id\xa1x"),
        ("scan", b"\x00\x94\x00\x01\xa4scan\x93\x00\x64\xa2p:"),
        ("scan-count-over", b"\x00\x94\x00\x01\xa4scan\x92\x00\xce\x00\x01\x00\x01"),
        ("scan-foreign", b"\x00\x94\x00\x01\xacscan_foreign\x92\x00\x64"),
        ("top", b"\x00\x94\x00\x01\xa3top\x92\x0a\xa2p:"),
        ("hello", b"\x06\x94\x00\x01\xa5hello\x91\x83\xa5token\xa6secret\xa6client\xa2me\xa7session\xc4\x10sixteen bytes id"),
        ("hello-empty", b"\x00\x94\x00\x01\xa5hello\x90"),
        ("bye", b"\x00\x94\x00\x01\xa3bye\x91\xc4\x10sixteen bytes id"),
        ("ping-stats-health-topology", b"\x08\x94\x00\x01\xa4ping\x90\x94\x00\x02\xa5stats\x90\x94\x00\x03\xa6health\x90\x94\x00\x04\xa8topology\x90"),
        ("backup", b"\x00\x94\x00\x01\xa6backup\x91\xa7/backup"),
        ("unknown-method", b"\x00\x94\x00\x01\xa4tail\x92\x00\x01"),
        ("notification", b"\x00\x93\x02\xc4\x04incr\x92\xa1k\x02"),
        ("notification-unknown", b"\x00\x93\x02\xc4\x14nvim_set_client_info\x91\xa6pynvim"),
        ("response", b"\x00\x94\x01\x01\xc0\xc0"),
        ("request-of-three", b"\x00\x93\x00\x05\xa4ping"),
        ("not-an-array", b"\x00\x81\x01\x02"),
        ("not-msgpack", b"\x00\x94\x00\x01\xc1"),
        ("too-deep", b"\x00\x91\x91\x91\x91\x91\x91\x91\x91\x91\x01"),
        ("too-large", b"\x00\x94\x00\x01\xa4incr\x91\xdb\x7f\xff\xff\xff"),
        ("array-too-large", b"\x00\x94\x00\x01\xa8get_many\x91\xdd\xff\xff\xff\xff"),
        ("exts", b"\x00\x94\x00\x01\xa4incr\x92\xa1k\xd6\xff\x00\x00\x00\x00\x94\x00\x01\xa4incr\x91\xc7\x01\x05a"),
        ("unfinished", b"\x00\x94\x00\x01\xa4incr\x92\xa3ke"),
    ];
    let mut seeds: Vec<_> = fixed.iter().map(|(name, bytes)| (*name, bytes.to_vec())).collect();
    seeds.extend([("key-longest", long_key), ("key-too-long", too_long_key), ("pipeline", pipeline)]);
    seeds
}

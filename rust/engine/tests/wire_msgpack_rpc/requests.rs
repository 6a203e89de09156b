//! What each request means, and which code each wrong one gets.

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::limits::{FRAME_DEPTH_MAX, REQUEST_ITEMS_MAX};
use pycounter_engine::wire::msgpack_rpc::{FrameError, FrameScanner, Parsed, parse, request_msgid};
use pycounter_engine::wire::request::{
    Accuracy, ChangeOptions, Item, Level, ReadFrom, ReadOptions, Request, SessionId, TailRequest,
};
use pycounter_engine::wire::request_error::RequestError;
use pycounter_engine::wire::scan::Scan;
use rmpv::Value;

use super::{LIMITS, SESSION, array, bin, call, map, outcome};

#[test]
fn every_method_means_what_the_table_says() {
    let read = ReadOptions {
        level: Some(Level::Applied),
        min_commit: Some(9),
        accuracy: Accuracy::Exact,
        or_nil: true,
        read_from: ReadFrom::Any,
    };
    let read_map = || {
        let level = ("level", "applied".into());
        map([
            ("accuracy", "exact".into()),
            ("min_commit", 9.into()),
            level,
            ("or_nil", true.into()),
            ("read_from", "any".into()),
        ])
    };
    let change = ChangeOptions { id: Some(b"op"), born: Some(12345), level: Some(Level::Durable), detail: true };
    let change_map =
        || map([("id", bin(b"op")), ("born", 12345.into()), ("level", bin(b"durable")), ("detail", true.into())]);
    let none = ChangeOptions::default();
    let rows: Vec<(&str, Vec<Value>, Request<'_>)> = vec![
        ("incr", vec!["k".into()], Request::Incr { key: b"k", delta: 1, options: none }),
        ("incr", vec![bin(b"\xff"), (-5).into()], Request::Incr { key: b"\xff", delta: -5, options: none }),
        ("incr", vec!["k".into(), Value::Nil, Value::Nil], Request::Incr { key: b"k", delta: 1, options: none }),
        ("incr", vec!["k".into(), 2.into(), change_map()], Request::Incr { key: b"k", delta: 2, options: change }),
        ("incr", vec!["k".into(), change_map()], Request::Incr { key: b"k", delta: 1, options: change }),
        ("incr", vec!["k".into(), 0.into(), map([])], Request::Incr { key: b"k", delta: 0, options: none }),
        (
            "incr",
            vec!["k".into(), 1.into(), map([("id", Value::Nil)])],
            Request::Incr { key: b"k", delta: 1, options: none },
        ),
        ("get", vec!["k".into()], Request::Get { key: b"k", options: ReadOptions::default() }),
        ("get", vec!["k".into(), read_map()], Request::Get { key: b"k", options: read }),
        (
            "get_many",
            vec![array(["a".into(), bin(b"b")])],
            Request::GetMany { keys: vec![b"a", b"b"], options: ReadOptions::default() },
        ),
        ("get_many", vec![array([]), Value::Nil], Request::GetMany { keys: vec![], options: ReadOptions::default() }),
        ("total", vec!["k".into(), read_map()], Request::Total { key: b"k", options: read }),
        ("total_many", vec![array(["a".into()]), read_map()], Request::TotalMany { keys: vec![b"a"], options: read }),
        ("drain", vec!["k".into(), change_map()], Request::Drain { key: b"k", options: change }),
        ("delete", vec!["k".into()], Request::Delete { key: b"k", options: none }),
        (
            "delete_many",
            vec![array(["a".into(), array([bin(b"b"), bin(b"id")]), "".into()])],
            Request::DeleteMany {
                items: vec![removal(b"a", None), removal(b"b", Some(b"id")), bad_key()],
                options: none,
            },
        ),
        ("delete_all", vec![], Request::DeleteAll { options: none }),
        ("delete_all", vec![change_map()], Request::DeleteAll { options: change }),
        ("scan", vec![], Request::Scan { cursor: 0, count: 100, prefix: b"", foreign: false }),
        ("scan_foreign", vec![], Request::Scan { cursor: 0, count: 100, prefix: b"", foreign: true }),
        (
            "scan",
            vec![u64::MAX.into(), 5.into(), "p".into()],
            Request::Scan { cursor: u64::MAX, count: 5, prefix: b"p", foreign: false },
        ),
        ("top", vec![], Request::Top { n: 10, prefix: b"" }),
        ("top", vec![65_536.into(), bin(b"p")], Request::Top { n: 65_536, prefix: b"p" }),
        ("hello", vec![], Request::Hello { token: None, client: None, session: None, shard: None }),
        ("hello", vec![Value::Nil], Request::Hello { token: None, client: None, session: None, shard: None }),
        (
            "hello",
            vec![map([("token", "t".into()), ("client", bin(b"c")), ("session", bin(&SESSION))])],
            Request::Hello { token: Some(b"t"), client: Some(b"c"), session: Some(SessionId(SESSION)), shard: None },
        ),
        (
            "hello",
            vec![map([("shard", "shard-1".into())])],
            Request::Hello { token: None, client: None, session: None, shard: Some(b"shard-1") },
        ),
        ("bye", vec![bin(&SESSION)], Request::Bye { session: SessionId(SESSION) }),
        ("ping", vec![], Request::Ping),
        ("stats", vec![], Request::Stats),
        ("health", vec![], Request::Health { foreign_from: None }),
        ("health", vec![map([("foreign_from", 7.into())])], Request::Health { foreign_from: Some(7) }),
        ("topology", vec![], Request::Topology),
        ("watch_topology", vec![], Request::WatchTopology { known: 0 }),
        ("watch_topology", vec![3.into()], Request::WatchTopology { known: 3 }),
        ("tail", vec![], Request::Tail(TailRequest::default())),
        (
            "tail",
            vec![
                9.into(),
                2.into(),
                "000000000000000000000000000000ff".into(),
                map([
                    ("hash", u64::MAX.into()),
                    ("index", 3.into()),
                    ("fold", 4.into()),
                    ("page", 5.into()),
                    ("wait_ms", 6.into()),
                ]),
            ],
            Request::Tail(TailRequest {
                identity: Some(255),
                after: 9,
                epoch: 2,
                hash: u64::MAX,
                index: 3,
                page: Some((4, 5)),
                wait_ms: 6,
            }),
        ),
        ("backup", vec!["/a/b".into()], Request::Backup { directory: "/a/b" }),
    ];
    for (method, params, expected) in rows {
        assert_eq!(outcome(&call(method, params)), Ok(expected), "{method}");
    }
}

#[test]
fn wrong_requests_get_their_code() {
    use ErrorCode::{BadDelta, BadKey, BadRequest, TooLarge, UnknownMethod};
    let session = || bin(&SESSION);
    let key = || Value::from("k");
    let rows: Vec<(&str, Vec<Value>, ErrorCode)> = vec![
        ("incr", vec![], BadRequest),
        ("incr", vec!["".into()], BadKey),
        ("incr", vec![5.into()], BadKey),
        ("incr", vec![array([key()])], BadKey),
        ("incr", vec![bin(&[b'k'; 1025])], BadKey),
        ("incr", vec![Value::Ext(1, vec![1])], BadKey),
        ("incr", vec![key(), 1.0.into()], BadDelta),
        ("incr", vec![key(), true.into()], BadDelta),
        ("incr", vec![key(), "1".into()], BadDelta),
        ("incr", vec![key(), (i64::MAX as u64 + 1).into()], BadDelta),
        ("incr", vec![key(), array([])], BadDelta),
        ("incr", vec![key(), 1.into(), 2.into()], BadRequest),
        ("incr", vec![key(), 1.into(), map([]), 2.into()], BadRequest),
        ("incr", vec![key(), map([]), map([])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("levle", "applied".into())])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("accuracy", "exact".into())])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("level", "fast".into())])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("detail", 1.into())])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("born", (-1).into())])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("id", "".into())])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("id", bin(&[b'i'; 65]))])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("id", "a".into()), ("id", "a".into())])], BadRequest),
        ("incr", vec![key(), 1.into(), map([("id", Value::Nil), ("id", "a".into())])], BadRequest),
        ("incr", vec![key(), 1.into(), Value::Map(vec![(1.into(), 1.into())])], BadRequest),
        ("get", vec![key(), map([("id", "a".into())])], BadRequest),
        ("get", vec![key(), map([("accuracy", "precise".into())])], BadRequest),
        ("get", vec![key(), map([("min_commit", (-1).into())])], BadRequest),
        ("get", vec![key(), "options".into()], BadRequest),
        ("get_many", vec![key()], BadRequest),
        ("health", vec![map([("foreign", 1.into())])], BadRequest),
        ("health", vec![map([("foreign_from", "1".into())])], BadRequest),
        ("health", vec![map([("foreign_from", 1.into()), ("foreign_from", 1.into())])], BadRequest),
        ("watch_topology", vec![(-1).into()], BadRequest),
        ("tail", vec![0.into(), 0.into(), "ff".into()], BadRequest),
        ("tail", vec![0.into(), 0.into(), "+00000000000000000000000000000ff".into()], BadRequest),
        ("tail", vec![0.into(), 0.into(), Value::Nil, map([("index", (1_u64 << 32).into())])], BadRequest),
        ("get_many", vec![array([key(), Value::Nil])], BadKey),
        ("get_many", vec![array([key(), array([key()])])], BadKey),
        ("get_many", vec![Value::Array(vec![key(); REQUEST_ITEMS_MAX + 1])], TooLarge),
        ("incr_many", vec![], BadRequest),
        ("incr_many", vec![array([key()])], BadRequest),
        ("incr_many", vec![array([array([key()])])], BadRequest),
        ("incr_many", vec![array([array([key(), 1.into(), "".into()])])], BadRequest),
        ("incr_many", vec![array([array([key(), 1.into(), 5.into()])])], BadRequest),
        ("incr_many", vec![array([array([key(), 1.into(), "i".into(), 1.into()])])], BadRequest),
        ("incr_many", vec![array([]), map([("id", "a".into())])], BadRequest),
        ("incr_many", vec![array([]), map([("detail", true.into())])], BadRequest),
        ("incr_many", vec![Value::Array(vec![array([key(), 1.into()]); REQUEST_ITEMS_MAX + 1])], TooLarge),
        ("apply", vec![], BadRequest),
        ("apply", vec!["short".into(), 1.into(), 0.into(), array([])], BadRequest),
        ("apply", vec![session(), 0.into(), 0.into(), array([])], BadRequest),
        ("apply", vec![session(), (-1).into(), 0.into(), array([])], BadRequest),
        ("apply", vec![session(), 1.into(), (-1).into(), array([])], BadRequest),
        ("apply", vec![session(), 1.into(), 0.into()], BadRequest),
        ("apply", vec![session(), 1.into(), 0.into(), array([array([key(), 1.into(), "id".into()])])], BadRequest),
        ("apply", vec![session(), u64::MAX.into(), 0.into(), array([array([key(), 1.into()])])], BadRequest),
        ("apply", vec![session(), 1.into(), 0.into(), array([]), "fast".into()], BadRequest),
        ("apply", vec![session(), 1.into(), 0.into(), array([]), Value::Nil, Value::Nil], BadRequest),
        ("scan", vec![(-1).into()], BadRequest),
        ("scan", vec![0.into(), 0.into()], BadRequest),
        ("scan", vec![0.into(), 65_537.into()], TooLarge),
        ("scan", vec![0.into(), u64::MAX.into()], TooLarge),
        ("scan", vec![0.into(), 1.into(), bin(&[b'p'; 1025])], BadRequest),
        ("scan", vec![0.into(), 1.into(), "p".into(), Value::Nil], BadRequest),
        ("hello", vec!["token".into()], BadRequest),
        ("hello", vec![map([("tokne", "t".into())])], BadRequest),
        ("hello", vec![map([("token", "t".into()), ("token", "t".into())])], BadRequest),
        ("hello", vec![map([("token", 5.into())])], BadRequest),
        ("delete_many", vec![], BadRequest),
        ("delete_many", vec!["a".into()], BadRequest),
        ("delete_many", vec![array([array(["a".into()])])], BadRequest),
        ("delete_many", vec![array([array(["a".into(), 1.into(), "id".into()])])], BadRequest),
        ("delete_many", vec![array([array(["a".into(), "".into()])])], BadRequest),
        ("delete_many", vec![array([]), map([("id", "i".into())])], BadRequest),
        ("hello", vec![map([("session", "short".into())])], BadRequest),
        ("hello", vec![map([("shard", 1.into())])], BadRequest),
        ("hello", vec![map([("shard", "a".into()), ("shard", "a".into())])], BadRequest),
        ("hello", vec![map([("shard", bin(&[b's'; 1025]))])], TooLarge),
        ("hello", vec![map([("client", bin(&[b'c'; 1025]))])], TooLarge),
        ("bye", vec![], BadRequest),
        ("bye", vec![bin(&[0; 17])], BadRequest),
        ("ping", vec![Value::Nil], BadRequest),
        ("backup", vec![], BadRequest),
        ("backup", vec!["".into()], BadRequest),
        ("backup", vec!["a/b".into()], BadRequest),
        ("backup", vec![bin(b"\xff")], BadRequest),
        ("backup", vec!["a\0b".into()], BadRequest),
        ("INCR", vec![key()], UnknownMethod),
        ("", vec![], UnknownMethod),
    ];
    for (method, params, code) in rows {
        let shown = format!("{method} {}", &format!("{params:?}").chars().take(200).collect::<String>());
        assert_eq!(outcome(&call(method, params)), Err(code), "{shown}");
    }
}

#[test]
fn what_comes_too_much_is_named() {
    let message = |frame: &[u8]| match parse(frame) {
        Parsed::Request { request: Err(error), .. } => error.to_string(),
        other => panic!("accepted: {other:?}"),
    };
    assert_eq!(message(&call("ping", vec![Value::Nil])), "bad_request: there are too many params");
    let tail = [&call("ping", vec![])[..], b"\xc0"].concat();
    assert_eq!(message(&tail), "bad_request: there are bytes after the message");
    let unknown = call("get", vec!["k".into(), map([("levle", "applied".into())])]);
    assert_eq!(message(&unknown), "bad_request: there is no such option here: 'levle'");
}

#[test]
fn a_bad_item_spoils_only_itself() {
    let items = array([
        array(["a".into(), 1.into()]),
        array(["".into(), 1.into()]),
        array(["b".into(), "x".into()]),
        array([array([1.into(), 2.into()]), map([("x", 1.into())])]),
        array(["c".into(), (-1).into(), "id".into()]),
        array(["".into(), 1.into()]),
        array(["".into(), 2.into()]),
    ]);
    let frame = call("incr_many", vec![items, map([("born", 5.into())])]);
    let Ok(Request::IncrMany { items, options }) = outcome(&frame) else { panic!("refused") };
    assert_eq!(options, ChangeOptions { born: Some(5), ..ChangeOptions::default() });
    let summary: Vec<_> = items.iter().map(|item| (item.key, item.delta, item.id, item.error)).collect();
    assert_eq!(
        summary,
        [
            (&b"a"[..], 1, None, None),
            (b"", 0, None, Some(ErrorCode::BadKey)),
            (b"", 0, None, Some(ErrorCode::BadDelta)),
            (b"", 0, None, Some(ErrorCode::BadKey)),
            (b"c", -1, Some(&b"id"[..]), None),
            (b"", 0, None, Some(ErrorCode::BadKey)),
            (b"", 0, None, Some(ErrorCode::BadKey)),
        ]
    );
    assert_eq!((items[0].raw_hash, items[4].raw_hash), (0, 0));
    assert_eq!(items[1].raw_hash, items[5].raw_hash, "the same bad item again");
    assert_ne!(items[1].raw_hash, items[6].raw_hash, "another bad item");
    // Kept in the journal, so it must be the same in every version.
    assert_eq!(items[1].raw_hash, xxhash_rust::xxh3::xxh3_64(b"\x92\xa0\x01"));
}

#[test]
fn apply_takes_sequences_to_the_end() {
    let frame = call(
        "apply",
        vec![
            bin(&SESSION),
            (u64::MAX - 1).into(),
            4.into(),
            array([array(["a".into(), i64::MIN.into()])]),
            "applied".into(),
        ],
    );
    let Ok(Request::Apply { session, first_sequence, acked_through, items, level }) = outcome(&frame) else {
        panic!("refused")
    };
    assert_eq!((session, first_sequence, acked_through), (SessionId(SESSION), u64::MAX - 1, 4));
    assert_eq!((items.len(), items[0].delta, level), (1, i64::MIN, Some(Level::Applied)));
}

#[test]
fn messages_that_are_no_requests() {
    let invalid = |bytes: &[u8]| match parse(bytes) {
        Parsed::Invalid { msgid, error: RequestError { code: ErrorCode::BadRequest, .. } } => msgid,
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    };
    for bytes in [
        &b""[..],
        b"\x05",
        b"\x90",
        b"\x81\x00\x01",
        b"\xc0",
        b"\x94\x01\x07\xc0\xc0",
        b"\x94\x03\x07\xa4ping\x90",
        b"\x94\xff\x07\xa4ping\x90",
        b"\x94\xa1a\x07\xa4ping\x90",
        b"\x94\x00\xff\xa4ping\x90",
        b"\x94\x00\xa1a\xa4ping\x90",
        b"\x94\x00\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa4ping\x90",
        b"\x94\x02\xa4ping\x90\xc0",
        b"\x93\x02\x05\x90",
        b"\x91\x00",
        b"\x94\x90\x07\xa4ping\x90",
    ] {
        assert_eq!(invalid(bytes), None, "{}", bytes.escape_ascii());
    }
    for bytes in
        [&b"\x93\x00\x07\xa4ping"[..], b"\x95\x00\x07\xa4ping\x90\xc0", b"\x92\x00\x07", b"\x94\x00\x07\x05\x90"]
    {
        assert_eq!(invalid(bytes), Some(7), "{}", bytes.escape_ascii());
    }
    // A request whose params are wrong is one all the same.
    assert_eq!(outcome(b"\x94\x00\x07\xa4ping\xc0"), Err(ErrorCode::BadRequest));
    assert_eq!(outcome(b"\x94\x00\x07\xa4ping\x80"), Err(ErrorCode::BadRequest));
    assert_eq!(outcome(b"\x94\x00\x07\xa4ping\x90\x90"), Err(ErrorCode::BadRequest));
}

#[test]
fn notifications_are_done_or_ignored() {
    let Parsed::Notification { method: b"incr", request: Ok(Request::Incr { key: b"k", delta: 2, .. }) } =
        parse(b"\x93\x02\xc4\x04incr\x92\xa1k\x02")
    else {
        panic!("a notification of a known method")
    };
    // pynvim begins with this.
    let Parsed::Notification { method: b"nvim_set_client_info", request: Err(error) } =
        parse(b"\x93\x02\xc4\x14nvim_set_client_info\x90")
    else {
        panic!("a notification of an unknown method")
    };
    assert_eq!(error.code, ErrorCode::UnknownMethod);
}

#[test]
fn a_refused_frame_can_still_be_answered() {
    assert_eq!(request_msgid(b"\x94\x00\xcd\x01\x00\xa4incr\x91\xdb\x7f\xff\xff\xff"), Some(256));
    assert_eq!(request_msgid(b"\xdd\xff\xff\xff\xff\x00\x05"), Some(5));
    for bytes in [&b"\x94\x00"[..], b"\x94\x02\x05", b"\x94\x01\x05", b"\x94\x00\xff", b"\x05", b""] {
        assert_eq!(request_msgid(bytes), None);
    }
}

#[test]
fn depth_is_bounded_in_params_too() {
    let mut nested = Value::from(1);
    for _ in 0..FRAME_DEPTH_MAX - 2 {
        nested = array([nested]);
    }
    let fits = call("ping", vec![nested.clone()]);
    assert_eq!(FrameScanner::default().scan(&fits, LIMITS), Ok(Scan::Complete(fits.len())));
    let deeper = call("ping", vec![array([nested])]);
    assert_eq!(FrameScanner::default().scan(&deeper, LIMITS), Err(FrameError::TooDeep));
}

fn removal<'a>(key: &'a [u8], id: Option<&'a [u8]>) -> Item<'a> {
    Item { key, delta: 0, id, error: None, raw_hash: 0 }
}

fn bad_key() -> Item<'static> {
    Item { error: Some(ErrorCode::BadKey), ..removal(b"", None) }
}

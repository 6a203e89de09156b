//! RESP as Redis's clients see it.

use proptest::prelude::*;
use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::limits::REQUEST_ITEMS_MAX;
use pycounter_engine::wire::resp::*;
use pycounter_engine::wire::scan::{FrameLimits, Scan};

const LIMITS: FrameLimits = FrameLimits { bytes_max: 64 << 20 };

fn request<T: AsRef<[u8]>>(words: &[T]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Words without blanks, as an array.
fn words(line: &str) -> Vec<u8> {
    request(&line.split(' ').collect::<Vec<_>>())
}

/// The error line that a request gets.
fn refusal(frame: &[u8]) -> String {
    let mut out = Vec::new();
    write_command_error(&mut out, &parse(frame).expect_err("it is accepted"));
    String::from_utf8(out).unwrap()
}

#[test]
fn every_command_means_what_redis_means() {
    let credentials = Credentials { user: None, password: b"pw" };
    let named = Credentials { user: Some(b"me"), password: b"pw" };
    let scan = Command::Scan { cursor: 0, count: 10, pattern: None, other_type: false };
    let rows: Vec<(&str, Command<'_>)> = vec![
        ("INCR k", Command::IncrBy { key: b"k", delta: 1 }),
        ("incr k", Command::IncrBy { key: b"k", delta: 1 }),
        ("IncrBy k -9223372036854775808", Command::IncrBy { key: b"k", delta: i64::MIN }),
        ("DECR k", Command::IncrBy { key: b"k", delta: -1 }),
        ("DECRBY k 5", Command::IncrBy { key: b"k", delta: -5 }),
        ("DECRBY k -5", Command::IncrBy { key: b"k", delta: 5 }),
        ("DECRBY k 9223372036854775807", Command::IncrBy { key: b"k", delta: -i64::MAX }),
        ("GET k", Command::Get { key: b"k" }),
        ("MGET a b a", Command::MGet { keys: vec![b"a", b"b", b"a"] }),
        ("GETDEL k", Command::GetDel { key: b"k" }),
        ("DEL a b", Command::Del { keys: vec![b"a", b"b"] }),
        ("EXISTS a", Command::Exists { keys: vec![b"a"] }),
        ("SET k 42", Command::Set { key: b"k", value: 42, get: false, only_if: None }),
        ("SET k -42 get", Command::Set { key: b"k", value: -42, get: true, only_if: None }),
        ("SCAN 0", scan),
        (
            "SCAN 17 MATCH a* COUNT 500 TYPE string",
            Command::Scan { cursor: 17, count: 500, pattern: Some(b"a*"), other_type: false },
        ),
        (
            "SCAN 18446744073709551615 TYPE hash COUNT 9999999",
            Command::Scan { cursor: u64::MAX, count: REQUEST_ITEMS_MAX, pattern: None, other_type: true },
        ),
        ("DBSIZE", Command::DbSize),
        ("TYPE k", Command::Type { key: b"k" }),
        ("PING", Command::Ping { message: None }),
        ("PING hi", Command::Ping { message: Some(b"hi") }),
        ("ECHO hi", Command::Echo { message: b"hi" }),
        ("HELLO", Command::Hello { version: None, credentials: None, name: None }),
        ("HELLO 2", Command::Hello { version: Some(Version::Resp2), credentials: None, name: None }),
        (
            "HELLO 3 AUTH me pw SETNAME n",
            Command::Hello { version: Some(Version::Resp3), credentials: Some(named), name: Some(b"n") },
        ),
        ("AUTH pw", Command::Auth(credentials)),
        ("AUTH me pw", Command::Auth(named)),
        ("SELECT 0", Command::Select),
        ("CLIENT SETNAME n", Command::Client(ClientCommand::SetName(b"n"))),
        ("CLIENT GETNAME", Command::Client(ClientCommand::GetName)),
        ("CLIENT SETINFO LIB-NAME redis-py", Command::Client(ClientCommand::SetLibraryName(b"redis-py"))),
        ("client setinfo lib-ver 8", Command::Client(ClientCommand::SetLibraryVersion(b"8"))),
        ("CLIENT INFO", Command::Client(ClientCommand::Info)),
        ("CLIENT NO-EVICT on", Command::Client(ClientCommand::NoEffect)),
        ("CLIENT NO-TOUCH off", Command::Client(ClientCommand::NoEffect)),
        ("CLIENT KILL 1.2.3.4:5", Command::Client(ClientCommand::KillOne(b"1.2.3.4:5"))),
        (
            "CLIENT KILL ID 7 ADDR a SKIPME no USER default",
            Command::Client(ClientCommand::Kill(ClientFilter {
                ids: Some(vec![7]),
                address: Some(b"a"),
                nobody: false,
                skip_self: false,
            })),
        ),
        ("CLIENT LIST", Command::Client(ClientCommand::List(ClientFilter::default()))),
        (
            "CLIENT LIST ID 1 2",
            Command::Client(ClientCommand::List(ClientFilter { ids: Some(vec![1, 2]), ..ClientFilter::default() })),
        ),
        ("UNLINK a b", Command::Del { keys: vec![b"a", b"b"] }),
        ("TOUCH a", Command::Exists { keys: vec![b"a"] }),
        ("STRLEN a", Command::Strlen { key: b"a" }),
        ("GETSET a 5", Command::Set { key: b"a", value: 5, get: true, only_if: None }),
        ("SET a 5 NX keepttl", Command::Set { key: b"a", value: 5, get: false, only_if: Some(SetIf::Missing) }),
        ("SET a 5 get xx", Command::Set { key: b"a", value: 5, get: true, only_if: Some(SetIf::Exists) }),
        ("SETNX a 5", Command::SetNx { key: b"a", value: 5 }),
        ("MSET a 5 b -6", Command::MSet { pairs: vec![(b"a", 5), (b"b", -6)] }),
        ("KEYS a*", Command::Keys { pattern: b"a*" }),
        ("RANDOMKEY", Command::RandomKey),
        ("OBJECT ENCODING a", Command::Encoding { key: b"a" }),
        ("MEMORY USAGE a SAMPLES 5", Command::MemoryUsage { key: b"a" }),
        ("TIME", Command::Time),
        ("ROLE", Command::Role),
        ("LASTSAVE", Command::LastSave),
        ("WAIT 1 100", Command::Wait),
        ("CLIENT ID", Command::Client(ClientCommand::Id)),
        ("COMMAND", Command::Table(TableQuery::All)),
        ("COMMAND DOCS", Command::Table(TableQuery::Docs(vec![]))),
        ("COMMAND INFO get", Command::Table(TableQuery::Rows(vec![b"get"]))),
        ("COMMAND LIST", Command::Table(TableQuery::List)),
        ("COMMAND LIST FILTERBY PATTERN *", Command::Table(TableQuery::ListPattern(b"*"))),
        ("COMMAND GETKEYS GET a", Command::Table(TableQuery::GetKeys(vec![b"GET", b"a"]))),
        ("COMMAND COUNT", Command::Table(TableQuery::Count)),
        ("INFO", Command::Info { sections: vec![] }),
        ("INFO server memory", Command::Info { sections: vec![b"server", b"memory"] }),
        ("CONFIG GET save", Command::ConfigGet { patterns: vec![b"save"] }),
        ("FLUSHALL", Command::FlushAll),
        ("FLUSHALL async", Command::FlushAll),
        ("FLUSHDB", Command::FlushAll),
        ("QUIT", Command::Quit),
        ("RESET", Command::Reset),
        ("MULTI", Command::Multi),
        ("EXEC", Command::Exec),
        ("DISCARD", Command::Discard),
        ("WATCH a b", Command::Watch),
        ("UNWATCH", Command::Unwatch),
    ];
    for (line, expected) in rows {
        assert_eq!(parse(&words(line)), Ok(expected.clone()), "{line}");
        let inline = format!("{line}\r\n");
        assert_eq!(parse(inline.as_bytes()), Ok(expected), "{line} as a line");
    }
    assert_eq!(parse(b"*0\r\n"), Ok(Command::Empty));
    assert_eq!(parse(b"*-1\r\n"), Ok(Command::Empty));
    assert_eq!(parse(b" \"ping\"\r\n"), Ok(Command::Ping { message: None }));
    assert_eq!(parse(b"\r\n"), Ok(Command::Empty));
    assert_eq!(parse(b"  \t \n"), Ok(Command::Empty));
    assert_eq!(parse(b"INCR \"a key\"\r\n"), Ok(Command::IncrBy { key: b"a key", delta: 1 }));
    assert_eq!(parse(b"set 'k' 5 \r\n"), Ok(Command::Set { key: b"k", value: 5, get: false, only_if: None }));
}

#[test]
fn refusals_have_redis_words_and_our_code() {
    let integer = "-ERR value is not an integer or out of range";
    let rows: Vec<(&str, String)> = vec![
        ("GET", "-ERR wrong number of arguments for 'get' command (bad_request)".into()),
        ("get a b", "-ERR wrong number of arguments for 'get' command (bad_request)".into()),
        ("INCR", "-ERR wrong number of arguments for 'incr' command (bad_request)".into()),
        ("PING a b", "-ERR wrong number of arguments for 'ping' command (bad_request)".into()),
        ("CLIENT", "-ERR wrong number of arguments for 'client' command (bad_request)".into()),
        ("CLIENT SETNAME", "-ERR wrong number of arguments for 'client|setname' command (bad_request)".into()),
        ("CONFIG GET", "-ERR wrong number of arguments for 'config|get' command (bad_request)".into()),
        ("CLIENT KILL", "-ERR wrong number of arguments for 'client|kill' command (bad_request)".into()),
        ("CLIENT FOO", "-ERR unknown subcommand 'FOO'. Try CLIENT HELP. (unknown_method)".into()),
        ("CLIENT SETINFO LIB-NAM x", "-ERR Unrecognized option 'LIB-NAM' (bad_request)".into()),
        ("CLIENT NO-TOUCH x", "-ERR syntax error (bad_request)".into()),
        ("CONFIG SET a b", "-ERR unknown subcommand 'SET'. Try CONFIG HELP. (unknown_method)".into()),
        ("COMMAND GETKEYS", "-ERR wrong number of arguments for 'command|getkeys' command (bad_request)".into()),
        ("MSET a", "-ERR wrong number of arguments for 'mset' command (bad_request)".into()),
        ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command (bad_request)".into()),
        ("foo a b", "-ERR unknown command 'foo', with args beginning with: 'a' 'b' (unknown_method)".into()),
        ("INCRBY k x", format!("{integer} (bad_delta)")),
        ("INCRBY k 9223372036854775808", format!("{integer} (bad_delta)")),
        ("INCRBY k +1", format!("{integer} (bad_delta)")),
        ("INCRBY k 1.5", format!("{integer} (bad_delta)")),
        ("SET k v", "-ERR PyCounter stores counters: a value must be an integer of 64 bits, such as 42 (bad_delta)".into()),
        ("DECRBY k -9223372036854775808", "-ERR decrement would overflow (overflow)".into()),
        (
            "SET k 1 EX 5",
            "-ERR PyCounter's counters don't expire: EX, PX, EXAT and PXAT are refused (bad_request)".into(),
        ),
        ("SET k 1 NX XX", "-ERR syntax error (bad_request)".into()),
        (
            "SUBSCRIBE a",
            "-ERR unknown command 'SUBSCRIBE': PyCounter has counters, and no channels to subscribe to (unknown_method)"
                .into(),
        ),
        ("CLUSTER NODES", "-ERR This instance has cluster support disabled (unknown_method)".into()),
        ("SET k 1 FOO", "-ERR syntax error (bad_request)".into()),
        ("SCAN x", "-ERR invalid cursor (bad_request)".into()),
        ("SCAN 0 COUNT 0", "-ERR syntax error (bad_request)".into()),
        ("SCAN 0 COUNT x", format!("{integer} (bad_request)")),
        ("SCAN 0 COUNT", "-ERR syntax error (bad_request)".into()),
        ("SCAN 0 FOO 1", "-ERR syntax error (bad_request)".into()),
        ("SELECT 1", "-ERR DB index is out of range (bad_request)".into()),
        ("SELECT x", format!("{integer} (bad_request)")),
        ("HELLO 4", "-NOPROTO unsupported protocol version (bad_request)".into()),
        ("HELLO x", "-ERR Protocol version is not an integer or out of range (bad_request)".into()),
        ("HELLO 3 FOO", "-ERR Syntax error in HELLO option 'FOO' (bad_request)".into()),
        ("HELLO 3 AUTH me", "-ERR Syntax error in HELLO option 'AUTH' (bad_request)".into()),
        ("AUTH a b c", "-ERR syntax error (bad_request)".into()),
        ("FLUSHALL x", "-ERR syntax error (bad_request)".into()),
    ];
    for (line, expected) in rows {
        assert_eq!(refusal(&words(line)), format!("{expected}\r\n"), "{line}");
    }
    let bad_key = "-ERR a key is a string of 1 to 1024 bytes (bad_key)\r\n";
    assert_eq!(refusal(&request(&["GET", ""])), bad_key);
    assert_eq!(refusal(&request(&["MGET", "a", ""])), bad_key);
    assert_eq!(refusal(&request(&["INCR", &"k".repeat(1025)])), bad_key);
    assert!(refusal(&request(&["SCAN", "0", "MATCH", &"*".repeat(1025)])).contains("(too_large)"));
    assert!(refusal(&request(&vec!["MGET"; REQUEST_ITEMS_MAX + 2])).contains("(too_large)"));
    let with_blank = "-ERR Client names cannot contain spaces, newlines or special characters. (bad_request)\r\n";
    assert_eq!(refusal(&request(&["CLIENT", "SETNAME", "a b"])), with_blank);
    // What is quoted is made harmless and short.
    let hostile = refusal(&request(&["a\r\n+OK", "b\r\nc", &"d".repeat(9000), "e"]));
    assert!(hostile.starts_with("-ERR unknown command 'a\\r\\n+OK', with args beginning with: 'b\\r\\nc' 'ddd"));
    assert!(hostile.len() < 400 && hostile.matches('\n').count() == 1);
}

#[test]
fn codes_choose_the_word_that_clients_act_on() {
    let line = |code: ErrorCode| {
        let mut out = Vec::new();
        write_error(&mut out, code, "sentence");
        String::from_utf8(out).unwrap()
    };
    assert_eq!(line(ErrorCode::Unauthenticated), "-NOAUTH Authentication required. (unauthenticated)\r\n");
    assert_eq!(line(ErrorCode::Overflow), "-ERR increment or decrement would overflow (overflow)\r\n");
    assert_eq!(line(ErrorCode::Forbidden), "-NOPERM sentence (forbidden)\r\n");
    assert_eq!(line(ErrorCode::Overloaded), "-OOM sentence (overloaded)\r\n");
    assert_eq!(line(ErrorCode::ReadOnly), "-MISCONF sentence (read_only)\r\n");
    assert_eq!(line(ErrorCode::UnknownOutcome), "-ERR sentence (unknown_outcome)\r\n");
    for &code in ErrorCode::ALL {
        let line = line(code);
        assert!(line.ends_with(&format!(" ({})\r\n", code.name())));
        // Clients send the request again, or drop the connection, on these.
        for word in ["-LOADING", "-READONLY", "-TRYAGAIN", "-CLUSTERDOWN", "-MASTERDOWN", "-MOVED", "-ASK", "-BUSY"] {
            assert!(!line.starts_with(word), "{line}");
        }
        assert!(!line.contains("max number of clients reached"));
    }
    let mut out = Vec::new();
    write_protocol_error(&mut out, ProtocolError::BulkLength);
    assert_eq!(out, b"-ERR Protocol error: invalid bulk length (bad_request)\r\n");
}

#[test]
fn transactions_queue_what_redis_queues() {
    use InTransaction::{Queue, Run};
    for (line, expected) in [
        ("INCR k", Some(Queue)),
        ("PING", Some(Queue)),
        ("UNWATCH", Some(Queue)),
        ("FLUSHALL", Some(Queue)),
        ("HELLO 3", Some(Queue)),
        ("AUTH pw", Some(Queue)),
        // Wrong arguments fail alone, when it runs.
        ("INCRBY k x", Some(Queue)),
        ("SET k 1 FOO", Some(Queue)),
        ("SCAN x", Some(Queue)),
        ("SELECT 1", Some(Queue)),
        ("CLIENT LIST FOO", Some(Queue)),
        ("MULTI", Some(Run)),
        ("EXEC", Some(Run)),
        ("DISCARD", Some(Run)),
        ("WATCH k", Some(Run)),
        ("QUIT", Some(Run)),
        ("RESET", Some(Run)),
        // These spoil it.
        ("INCR", None),
        ("FOO", None),
        ("CLIENT FOO", None),
        ("CLIENT SETNAME", None),
    ] {
        let found = find_command(&words(line)).map(|request| request.unwrap().row().in_transaction());
        assert_eq!(found.ok(), expected, "{line}");
    }
    for (line, expected) in
        [("HELLO 3", true), ("AUTH x", true), ("QUIT", true), ("RESET", true), ("PING", false), ("GET k", false)]
    {
        let row = find_command(&words(line)).unwrap().unwrap().row();
        assert_eq!(row.flags.has(Flags::NO_AUTH), expected, "{line}");
    }
}

#[test]
fn replies_differ_between_the_versions_where_they_must() {
    use Version::{Resp2, Resp3};
    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"before".to_vec();
        write(&mut out);
        String::from_utf8(out.split_off(6)).unwrap()
    }
    assert_eq!(written(|out| write_simple(out, "OK")), "+OK\r\n");
    assert_eq!(written(|out| write_int(out, i64::MIN)), ":-9223372036854775808\r\n");
    assert_eq!(written(|out| write_int(out, 0)), ":0\r\n");
    assert_eq!(written(|out| write_bulk(out, b"")), "$0\r\n\r\n");
    assert_eq!(written(|out| write_bulk_int(out, -42)), "$3\r\n-42\r\n");
    assert_eq!(written(|out| write_array_len(out, 3)), "*3\r\n");
    assert_eq!(written(|out| write_null(out, Resp2)), "$-1\r\n");
    assert_eq!(written(|out| write_null(out, Resp3)), "_\r\n");
    assert_eq!(written(|out| write_bool(out, Resp2, true)), ":1\r\n");
    assert_eq!(written(|out| write_bool(out, Resp3, true)), "#t\r\n");
    assert_eq!(written(|out| write_bool(out, Resp3, false)), "#f\r\n");
    assert_eq!(written(|out| write_map_len(out, Resp2, 2)), "*4\r\n");
    assert_eq!(written(|out| write_map_len(out, Resp3, 2)), "%2\r\n");
    assert_eq!(written(|out| write_double(out, Resp2, 1.5)), "$3\r\n1.5\r\n");
    assert_eq!(written(|out| write_double(out, Resp3, 1.5)), ",1.5\r\n");
    assert_eq!(written(|out| write_double(out, Resp3, f64::INFINITY)), ",inf\r\n");
    assert_eq!(written(|out| write_double(out, Resp3, f64::NEG_INFINITY)), ",-inf\r\n");
    assert_eq!(written(|out| write_double(out, Resp3, f64::NAN)), ",nan\r\n");
    assert_eq!(written(|out| write_text(out, Resp2, "a\r\n")), "$3\r\na\r\n\r\n");
    assert_eq!(written(|out| write_text(out, Resp3, "a\r\n")), "=7\r\ntxt:a\r\n\r\n");
    for extreme in [f64::MIN, f64::MAX, f64::MIN_POSITIVE, -5e-324] {
        let text = written(|out| write_double(out, Resp3, extreme));
        assert_eq!(text[1..text.len() - 2].parse::<f64>(), Ok(extreme));
    }
}

#[test]
fn held_replies_become_one_error_each() {
    for version in [Version::Resp2, Version::Resp3] {
        let mut held = Vec::new();
        write_simple(&mut held, "OK");
        write_int(&mut held, -5);
        write_bulk(&mut held, b"+a\r\n:1\r\n");
        write_null(&mut held, version);
        write_command_error(&mut held, &words::OVERFLOW);
        // An EXEC with arrays within.
        write_array_len(&mut held, 3);
        write_int(&mut held, 1);
        write_map_len(&mut held, version, 1);
        write_bulk(&mut held, b"name");
        write_array_len(&mut held, 2);
        write_null(&mut held, version);
        write_double(&mut held, version, 1.5);
        write_bool(&mut held, version, true);
        write_text(&mut held, version, "text\r\n");
        write_array_len(&mut held, 0);
        let mut out = b"before".to_vec();
        assert_eq!(fail_held(&held, &mut out, ErrorCode::UnknownOutcome, "lost"), 8);
        let expected = ["before", &"-ERR lost (unknown_outcome)\r\n".repeat(8)].concat();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
    use pycounter_engine::wire::resp::words;
    assert_eq!(fail_held(b"", &mut Vec::new(), ErrorCode::UnknownOutcome, "lost"), 0);
}

#[test]
fn hot_paths_take_the_plain_form_and_nothing_else() {
    let frame = request(&["iNcR", "key"]);
    assert_eq!(fast_incr(&frame), Some(FastIncr { len: frame.len(), key: b"key", delta: 1 }));
    for (delta, expected) in [
        ("1", Some(1)),
        ("0", Some(0)),
        ("-1", Some(-1)),
        ("999999999999999999", Some(999_999_999_999_999_999)),
        ("-999999999999999999", Some(-999_999_999_999_999_999)),
        ("-0", None),
        ("01", None),
        ("+1", None),
        ("-", None),
        ("1x", None),
        ("1000000000000000000", None),
        ("", None),
        ("--1", None),
    ] {
        let frame = request(&["INCRBY", "key", delta]);
        assert_eq!(fast_incr(&frame).map(|fast| fast.delta), expected, "{delta}");
        assert!((0..frame.len()).all(|end| fast_incr(&frame[..end]).is_none()));
    }
    for len in [1, 9, 10, 99, 100, 999, 1000, 1023, 1024, 1025, 9999, 10_000] {
        let key = "k".repeat(len);
        let frame = request(&["INCR", &key]);
        let found = fast_incr(&frame).map(|fast| (fast.len, fast.key));
        assert_eq!(found, (len <= 1024).then_some((frame.len(), key.as_bytes())), "{len}");
    }
    for frame in [
        &b"*2\r\n$4\r\nINCR\r\n$0\r\n\r\n"[..],
        b"*2\r\n$4\r\nINCR\r\n$01\r\nk\r\n",
        b"*2\r\n$4\r\nINCR\r\n$1\r\nk\r ",
        b"*2\r\n$4\r\nINCR\r\n$1\nk\r\n      ",
        b"*2\r\n$4\r\nDECR\r\n$1\r\nk\r\n",
        b"*2\r\n$4\r\nINCR\r\n$-1\r\nk\r\n",
        b"*3\r\n$4\r\nINCR\r\n$1\r\nk\r\n",
        b"*2\r\n$6\r\nINCRBY\r\n$1\r\nk\r\n",
        b"*2\r\n$4\r\n\x09NCR\r\n$1\r\nk\r\n",
        b"*2\r\n$4\r\nINCR\r\n$1:\r\nkkkkkkkkkkkkkkkkkkkk\r\n",
        b"INCR k\r\n                 ",
    ] {
        assert_eq!(fast_incr(frame), None, "{}", frame.escape_ascii());
    }
}

proptest! {
    #[test]
    fn arguments_come_back_as_sent(keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 1..20), delta: i64) {
        let frame = request(&[vec![b"MGET".to_vec()], keys.clone()].concat());
        let borrowed: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        prop_assert_eq!(parse(&frame), Ok(Command::MGet { keys: borrowed }));
        let digits = delta.to_string();
        let frame = request(&[b"INCRBY", &keys[0][..], digits.as_bytes()]);
        prop_assert_eq!(parse(&frame), Ok(Command::IncrBy { key: &keys[0], delta }));
        if let Some(fast) = fast_incr(&frame) {
            prop_assert_eq!((fast.len, fast.key, fast.delta), (frame.len(), &keys[0][..], delta));
        }
    }

    #[test]
    fn any_split_of_a_stream_gives_the_same_requests(
        requests in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..5), 1..8),
        inline in any::<bool>(),
        cuts in prop::collection::vec(1..20_usize, 1..40),
    ) {
        let mut frames: Vec<Vec<u8>> = requests.iter().map(|words| request(words)).collect();
        if inline {
            frames.insert(frames.len() / 2, b"incr \"a key\"\r\n".to_vec());
        }
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
    fn any_bytes_are_survived(bytes: Vec<u8>, text in "[*$0-9\r\n a-zA-Z\"'\\\\]{0,60}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            let _ = parse(bytes);
            let _ = FrameScanner::default().scan(bytes, LIMITS);
            let _ = fast_incr(bytes);
        }
    }
}

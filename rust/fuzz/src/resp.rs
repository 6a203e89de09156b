//! RESP requests: any bytes, cut anywhere.

use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::limits::REQUEST_ITEMS_MAX;
use pycounter_engine::wire::glob;
use pycounter_engine::wire::request::key_is_valid;
use pycounter_engine::wire::resp::{self, Command, FrameScanner, Version};
use pycounter_engine::wire::scan::{FrameLimits, Scan};

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
    for len in &whole.lengths {
        check_hot_path(&stream[start..]);
        answers += check_frame(&stream[start..start + len], &mut held);
        start += len;
    }
    if let Some(error) = whole.error {
        resp::write_protocol_error(&mut held, error);
        answers += 1;
    }
    let mut failed = Vec::new();
    assert_eq!(resp::fail_held(&held, &mut failed, ErrorCode::UnknownOutcome, "lost\r\n+OK"), answers);
    assert_eq!(failed.split_inclusive(|&byte| byte == b'\n').count(), answers);

    let _ = resp::parse(stream);
    check_hot_path(stream);
}

/// What a fast path takes must be what the general path makes of the same bytes.
fn check_hot_path(buf: &[u8]) {
    let general = |len: usize| {
        let limits = FrameLimits { bytes_max: usize::MAX };
        assert_eq!(FrameScanner::default().scan(buf, limits), Ok(Scan::Complete(len)));
        resp::parse(&buf[..len])
    };
    if let Some(fast) = resp::fast_incr(buf) {
        assert_eq!(general(fast.len), Ok(Command::IncrBy { key: fast.key, delta: fast.delta }));
        assert_eq!(resp::fast_incr(&buf[..fast.len - 1]), None, "it is not all there");
    }
}

/// Answers a request, in both versions by turns, and returns how many answers that were.
fn check_frame(frame: &[u8], held: &mut Vec<u8>) -> usize {
    let version = if frame.len().is_multiple_of(2) { Version::Resp2 } else { Version::Resp3 };
    let before = held.len();
    match resp::parse(frame) {
        Ok(Command::Empty) => return 0,
        Ok(command) => {
            check_command(&command);
            answer(&command, version, held);
        }
        Err(error) => {
            resp::write_command_error(held, &error);
            let line = &held[before..];
            assert!(
                line.ends_with(b")\r\n") && !line[..line.len() - 2].iter().any(|byte| matches!(byte, b'\r' | b'\n'))
            );
            assert!(line.len() < 2048, "an error quotes too much");
        }
    }
    1
}

fn answer(command: &Command<'_>, version: Version, held: &mut Vec<u8>) {
    match command {
        Command::IncrBy { delta, .. } => resp::write_int(held, *delta),
        Command::Set { value, .. } => resp::write_bulk_int(held, *value),
        Command::Get { key } => resp::write_bulk(held, key),
        Command::MGet { keys } => {
            resp::write_array_len(held, keys.len());
            for _ in keys {
                resp::write_null(held, version);
            }
        }
        Command::Exists { keys } => {
            resp::write_map_len(held, version, keys.len());
            for key in keys {
                resp::write_bulk(held, key);
                resp::write_double(held, version, key.len() as f64 / 3.0);
            }
        }
        Command::Info { .. } => resp::write_text(held, version, "# Server\r\n"),
        Command::DbSize => resp::write_bool(held, version, true),
        Command::Ping { .. } => resp::write_simple(held, "PONG"),
        Command::Table(query) => resp::write_table(held, version, query),
        Command::Help(row) => resp::write_help(held, row),
        _ => resp::write_error(held, ErrorCode::Internal, "a bug\r\n+OK"),
    }
}

/// What a command promises to those who carry it out.
fn check_command(command: &Command<'_>) {
    match command {
        Command::IncrBy { key, .. }
        | Command::Get { key }
        | Command::GetDel { key }
        | Command::Set { key, .. }
        | Command::SetNx { key, .. }
        | Command::Strlen { key }
        | Command::Encoding { key }
        | Command::MemoryUsage { key }
        | Command::Type { key } => assert!(key_is_valid(key)),
        Command::MSet { pairs } => {
            assert!(!pairs.is_empty() && pairs.iter().all(|(key, _)| key_is_valid(key)));
        }
        Command::Keys { pattern } => assert!(pattern.len() <= 1024),
        Command::MGet { keys } | Command::Del { keys } | Command::Exists { keys } => {
            assert!((1..=REQUEST_ITEMS_MAX).contains(&keys.len()) && keys.iter().all(|key| key_is_valid(key)));
        }
        Command::Scan { count, pattern, .. } => {
            assert!((1..=REQUEST_ITEMS_MAX).contains(count));
            if let Some(pattern) = pattern {
                assert!(pattern.len() <= 1024);
                let _ = glob::matches(pattern, b"a key that is somewhat longer: aaaaaaaaaaaaaaaaaaaaaaaaaaaaab");
            }
        }
        _ => {}
    }
}

/// Where fuzzing begins: every command, and what is nearly right. The first byte cuts.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let array = |words: &[&str]| {
        let mut bytes = format!("\0*{}\r\n", words.len());
        for word in words {
            bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        bytes.into_bytes()
    };
    let long = "k".repeat(1024);
    let too_long = "k".repeat(1025);
    let mut seeds = vec![
        ("incr", array(&["INCR", "key"])),
        ("incr-small", array(&["incr", "k"])),
        ("incr-longest", array(&["INCR", &long])),
        ("incr-too-long", array(&["INCR", &too_long])),
        ("incrby", array(&["INCRBY", "key", "1"])),
        ("incrby-negative", array(&["IncrBy", "key", "-9223372036854775808"])),
        ("incrby-wrong", array(&["INCRBY", "key", "007"])),
        ("decr", array(&["DECR", "key"])),
        ("decrby", array(&["DECRBY", "key", "5"])),
        ("decrby-min", array(&["DECRBY", "key", "-9223372036854775808"])),
        ("get", array(&["GET", "key"])),
        ("mget", array(&["MGET", "a", "b", "c"])),
        ("getdel", array(&["GETDEL", "key"])),
        ("del", array(&["DEL", "a", "b"])),
        ("exists", array(&["EXISTS", "a", "a"])),
        ("set", array(&["SET", "key", "42"])),
        ("set-get", array(&["SET", "key", "42", "GET"])),
        ("set-nx", array(&["SET", "key", "42", "NX"])),
        ("scan", array(&["SCAN", "0", "MATCH", "a*[b-d]\\?", "COUNT", "10", "TYPE", "string"])),
        (
            "dbsize-type-ping",
            [array(&["DBSIZE"]), array(&["TYPE", "k"])[1..].to_vec(), array(&["PING", "x"])[1..].to_vec()].concat(),
        ),
        ("echo-empty", array(&["ECHO", ""])),
        ("hello", array(&["HELLO", "3", "AUTH", "default", "secret", "SETNAME", "me"])),
        ("hello-4", array(&["HELLO", "4"])),
        ("auth", array(&["AUTH", "secret"])),
        ("select", array(&["SELECT", "0"])),
        ("client", array(&["CLIENT", "SETINFO", "LIB-NAME", "redis-py"])),
        ("client-unknown", array(&["CLIENT", "MAINT_NOTIFICATIONS", "ON"])),
        ("command-docs", array(&["COMMAND", "DOCS"])),
        ("command-info", array(&["COMMAND", "INFO", "get", "no", "client|id"])),
        ("command-list", array(&["COMMAND", "LIST", "FILTERBY", "PATTERN", "*get*"])),
        ("command-getkeys", array(&["COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2"])),
        ("client-help", array(&["CLIENT", "HELP"])),
        ("client-kill", array(&["CLIENT", "KILL", "ID", "5", "ADDR", "a:1", "SKIPME", "no"])),
        ("client-list", array(&["CLIENT", "LIST", "ID", "1", "2"])),
        ("mset", array(&["MSET", "a", "1", "b", "-2"])),
        ("keys", array(&["KEYS", "a*[b-d]\\?"])),
        ("memory-usage", array(&["MEMORY", "USAGE", "key", "SAMPLES", "5"])),
        ("wait", array(&["WAIT", "1", "100"])),
        ("info", array(&["INFO", "server", "memory"])),
        ("config", array(&["CONFIG", "GET", "save"])),
        ("flushall", array(&["FLUSHALL", "ASYNC"])),
        ("flushdb", array(&["FLUSHDB"])),
        (
            "transaction",
            [array(&["MULTI"]), array(&["INCRBY", "k", "1"])[1..].to_vec(), array(&["EXEC"])[1..].to_vec()].concat(),
        ),
        ("unknown", array(&["XADD", "stream", "*", "a\r\nb"])),
        ("arity", array(&["GET"])),
    ];
    let fixed: &[(&'static str, &[u8])] = &[
        ("empty-array", b"\x00*0\r\n*0\r\n"),
        ("inline", b"\x00PING\r\nINCR \"a key\" 'b'\r\n\r\nset a 1\n"),
        ("inline-blank", b"\x00 \t PING\r\n\"PING\"\r\n"),
        ("inline-quotes", b"\x00GET \"a\r\n"),
        ("http", b"\x00GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("negative-count", b"\x00*-1\r\n"),
        ("negative-length", b"\x00*1\r\n$-1\r\n"),
        ("not-bulk", b"\x00*1\r\n:1\r\n"),
        ("length-too-large", b"\x00*1\r\n$99999999999\r\n"),
        ("count-too-large", b"\x00*1048577\r\n"),
        ("endless-count", b"\x00*11111111111111111111111111111111111111"),
        ("wrong-length", b"\x00*1\r\n$3\r\nPING\r\n"),
        ("bytewise", b"\x00*2\r\n$4\r\nINCR\r\n$3\r\nk\r\n\r\n*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n"),
        ("unfinished", b"\x03*2\r\n$4\r\nINCR\r\n$3\r\nke"),
    ];
    seeds.extend(fixed.iter().map(|(name, bytes)| (*name, bytes.to_vec())));
    seeds
}

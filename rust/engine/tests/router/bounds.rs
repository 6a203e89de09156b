//! What fills a bound stops, or is refused, and nothing grows beyond.

use pycounter_engine::router::{LinkSettings, RouterSettings};
use rmpv::Value;

use super::cluster::{Cluster, TIMEOUT_MS, call, code, settings};

#[test]
fn a_connection_that_is_owed_too_much_is_not_read_any_more_until_replies_leave() {
    let mut cluster = Cluster::with_settings(2, RouterSettings { reply_bytes_max: 64 * 100, ..settings() });
    let client = cluster.router.connect();
    cluster.stalled = vec![true; 2];
    let text: String = (0..1000).map(|number| format!("INCR k{number}\r\n")).collect();
    cluster.send(client, text.as_bytes());
    let connection = cluster.router.connection(client).unwrap();
    assert!(connection.is_crowded() && connection.is_owed() && !connection.is_closing());
    assert_eq!(cluster.figure("increments"), 101, "the first one over the bound is the last");
    cluster.stalled = vec![false; 2];
    assert_eq!(cluster.resp(client, ""), ":1\r\n".repeat(1000));
    assert!(!cluster.router.connection(client).unwrap().is_crowded());
}

#[test]
fn who_stopped_for_large_replies_goes_on_once_they_have_left_together() {
    let mut cluster = Cluster::with_settings(2, RouterSettings { reply_bytes_max: 2000, ..settings() });
    let client = cluster.router.connect();
    let (slow, many) = (cluster.key_at(0, 0), format!("MGET{}\r\n", format!(" {}", cluster.key_at(1, 0)).repeat(50)));
    cluster.stalled[0] = true;
    assert_eq!(cluster.resp(client, &format!("INCR {slow}\r\n{}", many.repeat(10))), "");
    assert_eq!(cluster.resp(client, "PING\r\n"), "");
    assert!(cluster.router.connection(client).unwrap().is_crowded());
    cluster.stalled[0] = false;
    cluster.run();
    assert!(cluster.output(client).ends_with(b"+PONG\r\n"));
    assert!(!cluster.router.connection(client).unwrap().is_crowded());
}

#[test]
fn what_waits_for_a_shard_has_a_bound() {
    let link = LinkSettings { queue_bytes_max: 20_000, ..settings().link };
    let mut cluster = Cluster::with_settings(2, RouterSettings { link, ..settings() });
    let client = cluster.router.connect();
    cluster.stalled[0] = true;
    let (slow, fast) = (cluster.key_at(0, 0), cluster.key_at(1, 0));
    let told = cluster.resp(client, &(format!("INCR {slow}\r\n").repeat(1000) + &format!("INCR {fast}\r\n")));
    assert_eq!(told, "");
    assert!(cluster.figure("overloaded") > 100);
    cluster.stalled[0] = false;
    let told = cluster.resp(client, "");
    let lines: Vec<&str> = told.lines().collect();
    let counted = lines.iter().filter(|line| line.starts_with(':')).count();
    let refused = lines.iter().filter(|line| line.starts_with("-OOM") && line.ends_with("(overloaded)")).count();
    assert_eq!((counted + refused, lines.len(), lines[1000]), (1001, 1001, ":1"));
    assert_eq!(cluster.partial(0, &slow), (counted as i64 - 1).into(), "what was refused was not applied");
}

#[test]
fn gathers_of_all_connections_have_a_bound_behind_which_all_wait() {
    let mut cluster = Cluster::with_settings(2, RouterSettings { held_bytes_max: 100_000, ..settings() });
    let (greedy, other) = (cluster.router.connect(), cluster.router.connect());
    cluster.stalled = vec![true; 2];
    let keys = Value::Array((0..1000).map(|number| format!("k{number}").into()).collect());
    let bytes: Vec<u8> = (0..10).flat_map(|msgid| call(msgid, "get_many", std::slice::from_ref(&keys))).collect();
    cluster.send(greedy, &bytes);
    assert!(cluster.router.connection(greedy).unwrap().is_crowded());
    assert!(cluster.figure("held_bytes") < 200_000);
    cluster.send(other, b"PING\r\n");
    assert!(cluster.router.connection(other).unwrap().is_crowded());
    cluster.stalled = vec![false; 2];
    cluster.run();
    assert_eq!(cluster.output(other), b"+PONG\r\n");
    assert_eq!(super::cluster::replies(&cluster.output(greedy)).len(), 10);
    assert_eq!(cluster.figure("held_bytes"), 0);
}

#[test]
fn who_stopped_for_its_own_replies_goes_on_though_they_left_while_the_bound_for_all_was_full() {
    let bounds = RouterSettings { reply_bytes_max: 64 * 100, held_bytes_max: 100_000, ..settings() };
    let mut cluster = Cluster::with_settings(2, bounds);
    let (greedy, other) = (cluster.router.connect(), cluster.router.connect());
    cluster.stalled = vec![true; 2];
    let (key, kept) = (cluster.key_at(0, 0), cluster.key_at(1, 0));
    assert_eq!(cluster.resp(other, &format!("INCR {key}\r\n").repeat(1000)), "");
    assert_eq!(cluster.figure("increments"), 101, "it is owed too much");
    let keys = Value::Array(vec![kept.into(); 1000]);
    let bytes: Vec<u8> = (0..5).flat_map(|msgid| call(msgid, "get_many", std::slice::from_ref(&keys))).collect();
    cluster.send(greedy, &bytes);
    assert!(cluster.figure("held_bytes") > 100_000);
    cluster.stalled[0] = false;
    cluster.run();
    assert_eq!(cluster.output(other).split(|&byte| byte == b'\n').count(), 101 + 1);
    assert!(cluster.router.connection(other).unwrap().is_crowded());
    cluster.stalled[1] = false;
    cluster.run();
    assert_eq!(cluster.figure("held_bytes"), 0);
    assert_eq!(cluster.output(other).split(|&byte| byte == b'\n').count(), 899 + 1);
    assert!(!cluster.router.connection(other).unwrap().is_crowded());
}

#[test]
fn unfinished_requests_of_all_connections_have_a_bound() {
    let mut cluster = Cluster::with_settings(2, RouterSettings { input_bytes_max: 1 << 20, ..settings() });
    let clients: Vec<_> = (0..4).map(|_| cluster.router.connect()).collect();
    for &client in &clients {
        cluster.send(client, b"*2\r\n$4\r\nECHO\r\n$900000\r\n");
        cluster.send(client, &vec![b'x'; 200_000]);
    }
    assert!(cluster.figure("input_bytes") <= 1 << 20);
    let closing = clients.iter().filter(|&&client| cluster.router.connection(client).unwrap().is_closing()).count();
    assert!(closing >= 1, "one of them was refused");
    let said = cluster.output(clients[3]);
    assert!(said.starts_with(b"-OOM"), "{}", said.escape_ascii());
    for client in clients {
        cluster.router.disconnect(client);
    }
    assert_eq!((cluster.figure("input_bytes"), cluster.figure("connections")), (0, 0));
}

#[test]
fn the_last_words_to_who_sends_too_much_come_behind_the_hosts_answer() {
    let mut cluster = Cluster::with_settings(2, RouterSettings { input_bytes_max: 1 << 20, ..settings() });
    let client = cluster.router.connect();
    assert_eq!(cluster.resp(client, "FLUSHALL\r\n"), "");
    let request = cluster.host_request(client);
    assert_eq!(cluster.ask(client, &vec![b'x'; 600_000]), b"", "its first request isn't answered");
    let said = cluster.answer(client, request.token, None, Value::Nil);
    assert!(said.starts_with(b"+OK\r\n-OOM "), "{}", said.escape_ascii());
    assert!(cluster.router.connection(client).unwrap().is_closing());
}

#[test]
fn increments_with_ids_for_one_shard_stay_below_its_bound_on_frames() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    // Nearly as long as a frame may be; passed on, keys and ids take a byte more each.
    let item = |number| Value::Array(vec![key.as_str().into(), 1.into(), format!("{number:05}").into()]);
    let items = (0..62_000).map(item);
    let frame = call(0, "incr_many", &[Value::Array(items.collect())]);
    assert!(((1 << 20) - 70_000..1 << 20).contains(&frame.len()), "{}", frame.len());
    let told = super::cluster::replies(&cluster.ask(client, &frame));
    let expected: Vec<Value> = (1..=62_000).map(Value::from).collect();
    assert_eq!(code(&told[&0]), "");
    assert!(told[&0] == Ok(Value::Array(expected)), "each of them counted");
}

#[test]
fn what_gathers_for_a_shard_stays_below_its_bound_on_frames_however_low_that_is() {
    let mut cluster = Cluster::with_settings(1, RouterSettings { frame_bytes_max: 4096, ..settings() });
    let client = cluster.router.connect();
    let key = |number: u32| format!("{number:0>1024}");
    let text: String = (0..40).map(|number| format!("INCR {0}\r\nGET {0}\r\n", key(number % 9))).collect();
    let told = cluster.resp(client, &text);
    assert_eq!((told.matches(':').count(), told.matches('$').count()), (40, 40), "{told}");
    let id = |number: u32| format!("{number:0>64}");
    let item = |number| Value::Array(vec![key(number).into(), 1.into(), id(number).into()]);
    let msgpack = cluster.router.connect();
    for pair in 0..3 {
        let items = Value::Array((100..103).map(|number| item(10 * pair + number)).collect());
        let born = super::cluster::map(&[("born", 0.into()), ("level", "applied".into())]);
        let counted = Value::Array(vec![1.into(); 3]);
        assert_eq!(cluster.call(msgpack, "incr_many", vec![items, born]), Ok(counted));
    }
}

#[test]
fn who_sends_nothing_more_is_answered_and_then_closed() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    cluster.send(client, b"INCR a\r\nFLUSHALL\r\nINCR b\r\nINC");
    cluster.router.finish(client);
    cluster.run();
    assert!(!cluster.router.connection(client).unwrap().is_closing());
    let request = cluster.host_request(client);
    cluster.answer(client, request.token, None, Value::Nil);
    assert!(cluster.router.connection(client).unwrap().is_closing());
}

#[test]
fn a_late_answer_does_not_reach_the_next_connection_in_the_same_slot() {
    let mut cluster = Cluster::new(2);
    let gone = cluster.router.connect();
    cluster.stalled = vec![true; 2];
    let many = Value::Array((0..10).map(|number| Value::Array(vec![format!("k{number}").into(), 1.into()])).collect());
    cluster.send(
        gone,
        &[call(1, "incr", &["a".into()]), call(2, "get", &["a".into()]), call(3, "incr_many", &[many])].concat(),
    );
    cluster.send(gone, &call(4, "stats", &[]));
    let request = cluster.host_request(gone);
    cluster.router.disconnect(gone);
    let next = cluster.router.connect();
    assert_eq!(next.slot(), gone.slot());
    cluster.stalled = vec![false; 2];
    cluster.run();
    assert!(!cluster.router.answer(gone, request.token, None, b"\xc0"));
    assert_eq!((cluster.output(next), cluster.output(gone)), (vec![], vec![]));
    assert_eq!(cluster.call(next, "get", vec!["a".into()]), Ok(1.into()), "it counted all the same");
    assert_eq!((cluster.figure("under_way"), cluster.figure("held_bytes")), (0, 0));
}

#[test]
fn requests_that_wait_at_the_host_have_a_bound() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let calls: Vec<(&str, Vec<Value>)> = (0..65).map(|_| ("stats", vec![])).collect();
    let bytes: Vec<u8> = (0..).zip(&calls).flat_map(|(msgid, (method, params))| call(msgid, method, params)).collect();
    let told = super::cluster::replies(&cluster.ask(client, &bytes));
    assert_eq!((told.len(), code(&told[&64])), (1, "overloaded"));
    assert_eq!(cluster.host_requests(client).len(), 64);
}

#[test]
fn a_connection_is_closed_once_its_last_reply_has_left() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    cluster.stalled = vec![true; 2];
    cluster.ask(client, b"INCR a\r\n");
    cluster.router.finish(client);
    cluster.run();
    cluster.router.tick(cluster.now_ms + TIMEOUT_MS as f64 + 1.0);
    let is_closing = |cluster: &Cluster| cluster.router.connection(client).unwrap().is_closing();
    assert!(!is_closing(&cluster), "its reply is here still");
    cluster.turn();
    assert!(cluster.output(client).ends_with(b"(deadline)\r\n"));
    let mut called = Vec::new();
    cluster.router.take_attend(|place| called.push(place));
    assert!(is_closing(&cluster) && called == [client], "nobody closes it");
}

#[test]
fn who_sends_nothing_more_is_answered_by_the_host_too() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    cluster.send(client, &call(1, "stats", &[]));
    cluster.router.finish(client);
    let request = cluster.host_request(client);
    assert!(!cluster.router.connection(client).unwrap().is_closing());
    let told = super::cluster::replies(&cluster.answer(client, request.token, None, 5.into()));
    assert_eq!(told[&1], Ok(5.into()));
    assert!(cluster.router.connection(client).unwrap().is_closing());
}

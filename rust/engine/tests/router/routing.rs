//! Where operations go, and what comes back.

use pycounter_engine::operation_id_table::OperationIdSettings;
use rmpv::Value;

use super::cluster::{Cluster, TIMEOUT_MS, code, map, settings};

#[test]
fn each_key_is_counted_at_its_home_whichever_protocol_asks() {
    let mut cluster = Cluster::new(3);
    let (resp, msgpack) = (cluster.router.connect(), cluster.router.connect());
    for number in 0..50 {
        let key = format!("k{number}");
        assert_eq!(cluster.resp(resp, &format!("INCRBY {key} 5\r\n")), ":5\r\n");
        assert_eq!(cluster.call(msgpack, "incr", vec![key.as_str().into(), 2.into()]), Ok(7.into()));
        let home = cluster.ring.home(key.as_bytes());
        for shard in 0..3 {
            let expected = if shard == home { 7.into() } else { Value::Nil };
            assert_eq!(cluster.partial(shard, &key), expected);
        }
        assert_eq!(cluster.resp(resp, &format!("GET {key}\r\n")), "$1\r\n7\r\n");
    }
    assert_eq!(cluster.figure("increments"), 100);
    assert_eq!(cluster.figure("under_way"), 0);
    assert!(cluster.router.is_settled());
}

#[test]
fn a_counter_that_does_not_exist_is_nil_and_one_at_zero_is_not() {
    let mut cluster = Cluster::new(2);
    let (resp, msgpack) = (cluster.router.connect(), cluster.router.connect());
    cluster.resp(resp, "INCRBY zero 0\r\n");
    assert_eq!(cluster.resp(resp, "MGET zero never\r\nGET never\r\n"), "*2\r\n$1\r\n0\r\n$-1\r\n$-1\r\n");
    assert_eq!(cluster.resp(resp, "HELLO 3\r\nGET never\r\n").rsplit("*0\r\n").next(), Some("_\r\n"));
    let keys = Value::Array(vec!["zero".into(), "never".into()]);
    let or_nil = map(&[("or_nil", true.into())]);
    let outcomes = cluster.calls(
        msgpack,
        &[
            ("get_many", vec![keys.clone()]),
            ("get_many", vec![keys, or_nil.clone()]),
            ("get", vec!["never".into()]),
            ("get", vec!["never".into(), or_nil]),
            ("get_many", vec![Value::Array(vec![])]),
        ],
    );
    let values = |values: &[Value]| Ok(Value::Array(values.to_vec()));
    assert_eq!(outcomes[0], values(&[0.into(), 0.into()]));
    assert_eq!(outcomes[1], values(&[0.into(), Value::Nil]));
    assert_eq!(outcomes[2..4], [Ok(0.into()), Ok(Value::Nil)]);
    assert_eq!(outcomes[4], values(&[]));
}

#[test]
fn each_of_several_increments_has_its_own_outcome_and_ids_count_once() {
    let mut cluster = Cluster::new(3);
    let client = cluster.router.connect();
    let item = |parts: &[Value]| Value::Array(parts.to_vec());
    let items = Value::Array(vec![
        item(&["a".into(), 1.into()]),
        item(&["a".into(), 2.into(), "id-1".into()]),
        item(&["".into(), 2.into()]),
        item(&["b".into(), 3.into(), "id-2".into()]),
        item(&["c".into(), "x".into()]),
        item(&["big".into(), i64::MAX.into(), "id-3".into()]),
        item(&["big".into(), 1.into(), "id-4".into()]),
        item(&["big".into(), 1.into()]),
    ]);
    for _ in 0..2 {
        let Ok(Value::Array(results)) = cluster.call(client, "incr_many", vec![items.clone()]) else { panic!() };
        let texts: Vec<String> = results.iter().map(|result| result.to_string()).collect();
        assert!(texts[2].starts_with("\"bad_key: "), "{texts:?}");
        assert!(texts[4].starts_with("\"bad_delta: "), "{texts:?}");
        assert_eq!(texts[3], "3");
        assert_eq!(results[5], i64::MAX.into());
        assert!(texts[6].starts_with("\"overflow: ") && texts[7].starts_with("\"overflow: "), "{texts:?}");
    }
    // Once with the id, and twice without.
    assert_eq!(cluster.call(client, "get", vec!["a".into()]), Ok(4.into()));
    assert_eq!(cluster.call(client, "incr_many", vec![Value::Array(vec![])]), Ok(Value::Array(vec![])));
    for _ in 0..2 {
        let with_id = map(&[("id", "x".into())]);
        assert_eq!(cluster.call(client, "incr", vec!["once".into(), 5.into(), with_id]), Ok(5.into()));
    }
    let reused = cluster.call(client, "incr", vec!["once".into(), 6.into(), map(&[("id", "x".into())])]);
    assert_eq!(code(&reused), "id_reused");
}

#[test]
fn an_increment_with_an_id_that_is_refused_after_an_attempt_without_an_answer_is_unknown() {
    let full = OperationIdSettings { ids_bytes_max: 0, ..OperationIdSettings::default() };
    let mut cluster = Cluster::with_bounds(2, settings(), full);
    let client = cluster.router.connect();
    let key = cluster.key_at(1, 0);
    let items = Value::Array(vec![Value::Array(vec![key.as_str().into(), 1.into(), "id".into()])]);
    let many = super::cluster::call(7, "incr_many", std::slice::from_ref(&items));
    let refusal = |told: &[u8]| {
        let Ok(Value::Array(results)) = &super::cluster::replies(told)[&7] else { panic!() };
        results[0].as_str().unwrap().split(':').next().unwrap().to_owned()
    };
    assert_eq!(refusal(&cluster.ask(client, &many)), "overloaded");
    cluster.stalled[1] = true;
    assert_eq!(cluster.ask(client, &many), b"");
    cluster.cut(1, false);
    cluster.stalled[1] = false;
    cluster.link(1);
    cluster.settle();
    // What was sent first might still come to the shard, and find room.
    assert_eq!(refusal(&cluster.output(client)), "unknown_outcome");
}

#[test]
fn detail_tells_level_and_commit_with_and_without_an_id() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    for (number, options) in
        [map(&[("detail", true.into())]), map(&[("detail", true.into()), ("id", "i".into())])].into_iter().enumerate()
    {
        let reply = cluster.call(client, "incr", vec!["k".into(), 1.into(), options]).unwrap();
        let Value::Map(pairs) = reply else { panic!("{reply}") };
        let names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str().unwrap()).collect();
        assert_eq!(names, ["value", "exact", "level", "commit"]);
        assert_eq!(pairs[0].1, (number as i64 + 1).into());
        assert_eq!((&pairs[1].1, &pairs[2].1), (&true.into(), &"applied".into()));
        assert!(pairs[3].1.as_u64() > Some(0));
    }
}

#[test]
fn a_link_knows_the_newest_commit_with_an_increment_of_its_own() {
    let mut cluster = Cluster::new(1);
    let client = cluster.router.connect();
    assert_eq!(cluster.router.link(0).commit_seen(), 0);
    let mut before = 0;
    for _ in 0..3 {
        let detail = map(&[("detail", true.into())]);
        let Ok(Value::Map(pairs)) = cluster.call(client, "incr", vec!["k".into(), 1.into(), detail]) else { panic!() };
        assert_eq!(pairs[3].1.as_u64(), Some(cluster.router.link(0).commit_seen()));
        assert!(cluster.router.link(0).commit_seen() >= before.max(1));
        before = cluster.router.link(0).commit_seen();
    }
}

#[test]
fn an_id_says_when_it_was_born_on_the_coordinators_clock() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    cluster.advance(1000);
    let Ok(Value::Map(hello)) = cluster.call(client, "hello", vec![]) else { panic!() };
    let time = hello.iter().find(|(name, _)| name.as_str() == Some("time")).unwrap().1.as_u64().unwrap();
    assert_eq!(time, cluster.now_ms as u64);
    let incr = |cluster: &mut Cluster, id: &str, born: u64| {
        let options = map(&[("id", id.into()), ("born", born.into())]);
        cluster.call(client, "incr", vec!["k".into(), 1.into(), options])
    };
    assert_eq!(incr(&mut cluster, "young", time), Ok(1.into()));
    assert_eq!(incr(&mut cluster, "young", time), Ok(1.into()));
    // The shards have run for less than a window: whatever an id's age, they would know it.
    assert_eq!(incr(&mut cluster, "old", 0), Ok(2.into()));
}

#[test]
fn an_id_from_the_future_is_of_another_clock_and_counts_only_if_it_is_known() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    cluster.advance(1000);
    // A client may be some seconds ahead, as at a shard.
    let (now, soon, later) = (cluster.now_ms as u64, cluster.now_ms as u64 + 4_000, cluster.now_ms as u64 + 60_000);
    let options = |id: &str, born: u64| map(&[("id", id.into()), ("born", born.into())]);
    let incr = |cluster: &mut Cluster, id: &str, born: u64| {
        cluster.call(client, "incr", vec!["k".into(), 1.into(), options(id, born)])
    };
    assert_eq!(incr(&mut cluster, "known", now), Ok(1.into()));
    assert_eq!(incr(&mut cluster, "soon", soon), Ok(2.into()));
    // Made before the machine began anew, say: nobody can tell any more whether it was counted and forgotten.
    assert_eq!(code(&incr(&mut cluster, "unknown", later)), "bad_request");
    assert_eq!(incr(&mut cluster, "known", later), Ok(1.into()));
    let item = |id: &str| Value::Array(vec!["k".into(), 1.into(), id.into()]);
    let items = Value::Array(vec![item("unknown"), item("known")]);
    let many = cluster.call(client, "incr_many", vec![items, map(&[("born", later.into())])]);
    let Ok(Value::Array(results)) = many else { panic!("{many:?}") };
    assert!(results[0].as_str().is_some_and(|error| error.starts_with("bad_request: ")), "{results:?}");
    assert_eq!(results[1], 1.into());
    assert_eq!(cluster.call(client, "get", vec!["k".into()]), Ok(2.into()));
}

#[test]
fn what_only_shards_do_is_refused_and_what_the_server_knows_is_told() {
    let mut cluster = Cluster::new(2);
    cluster.router.set_topology(vec![0x81, 0xa7, b'v', b'e', b'r', b's', b'i', b'o', b'n', 0x09]);
    let client = cluster.router.connect();
    let session = Value::Binary(vec![7; 16]);
    let apply = vec![session.clone(), 1.into(), 0.into(), Value::Array(vec![])];
    for (method, params) in
        [("apply", apply), ("bye", vec![session.clone()]), ("hello", vec![map(&[("session", session)])])]
    {
        assert_eq!(code(&cluster.call(client, method, params)), "forbidden", "{method}");
    }
    assert_eq!(cluster.call(client, "topology", vec![]), Ok(map(&[("version", 9.into())])));
    assert_eq!(cluster.call(client, "ping", vec![]), Ok("pong".into()));
    assert_eq!(code(&cluster.call(client, "fly", vec![])), "unknown_method");
}

#[test]
fn reads_that_may_ask_replicas_are_the_hosts() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let options = map(&[("read_from", "replica".into())]);
    cluster.ask(client, &super::cluster::call(1, "get", &["a".into(), options]));
    let request = cluster.host_request(client);
    assert_eq!(request.method, "get");
    let told = cluster.answer(client, request.token, None, 5.into());
    assert_eq!(super::cluster::replies(&told)[&1], Ok(5.into()));
    let wrong = map(&[("read_from", "anywhere".into())]);
    assert_eq!(code(&cluster.call(client, "get", vec!["a".into(), wrong])), "bad_request");
}

#[test]
fn a_token_is_needed_and_a_wrong_one_ends_a_msgpack_connection() {
    let mut cluster = Cluster::with_settings(2, super::cluster::with_token(settings()));
    let (resp, good, bad) = (cluster.router.connect(), cluster.router.connect(), cluster.router.connect());
    assert!(cluster.resp(resp, "INCR a\r\n").starts_with("-NOAUTH"));
    assert!(cluster.resp(resp, "AUTH wrong\r\n").starts_with("-WRONGPASS"));
    assert_eq!(cluster.resp(resp, "AUTH secret\r\nINCR a\r\n"), "+OK\r\n:1\r\n");
    assert_eq!(code(&cluster.call(good, "incr", vec!["a".into()])), "unauthenticated");
    assert_eq!(code(&cluster.call(good, "hello", vec![map(&[("token", "secret".into())])])), "");
    assert_eq!(cluster.call(good, "incr", vec!["a".into()]), Ok(2.into()));
    assert_eq!(code(&cluster.call(bad, "hello", vec![map(&[("token", "wrong".into())])])), "unauthenticated");
    assert!(cluster.router.connection(bad).unwrap().is_closing());
}

#[test]
fn a_shard_without_a_connection_is_unavailable_after_the_timeout_and_served_if_it_comes_back_before() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(1, 0);
    let incr = format!("INCR {key}\r\nGET {key}\r\n");
    cluster.cut(1, false);
    assert_eq!(cluster.resp(client, &incr), "");
    cluster.advance(TIMEOUT_MS / 2);
    assert_eq!(cluster.output(client), b"");
    cluster.advance(TIMEOUT_MS / 2 + 1);
    let text = String::from_utf8(cluster.output(client)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line.starts_with("-ERR ") && line.ends_with("(unavailable)")), "{lines:?}");
    assert_eq!(cluster.resp(client, &incr), "");
    cluster.link(1);
    cluster.settle();
    assert_eq!(cluster.output(client), b":1\r\n$1\r\n1\r\n", "what was refused had not been applied");
}

#[test]
fn what_was_sent_and_not_answered_is_told_as_unknown_and_counts_once_all_the_same() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(1, 0);
    for arrives in [true, false] {
        cluster.stalled[1] = true;
        assert_eq!(cluster.resp(client, &format!("INCR {key}\r\n")), "");
        cluster.advance(TIMEOUT_MS + 1);
        let told = String::from_utf8(cluster.output(client)).unwrap();
        assert!(told.ends_with("(deadline)\r\n"), "{told}");
        cluster.cut(1, arrives);
        cluster.stalled[1] = false;
        cluster.link(1);
        cluster.settle();
        assert_eq!(cluster.output(client), b"", "it was told already");
    }
    assert_eq!(cluster.resp(client, &format!("GET {key}\r\n")), "$1\r\n2\r\n");
}

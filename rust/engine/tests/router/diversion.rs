//! What happens while a shard is unwell.

use rmpv::Value;

use super::cluster::{Cluster, TIMEOUT_MS, code, map};

#[test]
fn a_dead_shards_new_increments_go_elsewhere_and_are_found_there() {
    let mut cluster = Cluster::new(3);
    let (resp, msgpack) = (cluster.router.connect(), cluster.router.connect());
    let key = cluster.key_at(1, 0);
    assert_eq!(cluster.resp(resp, &format!("INCRBY {key} 10\r\n")), ":10\r\n");
    cluster.cut(1, false);
    cluster.serve(&[(1.0, None), (0.0, Some(2)), (1.0, None)]);
    // What the dead one is known to hold counts.
    assert_eq!(cluster.resp(resp, &format!("INCR {key}\r\n")), ":11\r\n");
    assert_eq!((cluster.partial(1, &key), cluster.partial(2, &key)), (10.into(), 1.into()));
    let detail = cluster.call(msgpack, "incr", vec![key.as_str().into(), 1.into(), map(&[("detail", true.into())])]);
    let Ok(Value::Map(pairs)) = detail else { panic!() };
    assert_eq!((&pairs[0].1, &pairs[1].1), (&12.into(), &false.into()));
    assert_eq!(cluster.figure("diverted"), 2);
    // A read needs the dead shard: the host may know a replica.
    assert_eq!(cluster.resp(resp, &format!("GET {key}\r\n")), "");
    let request = cluster.host_request(resp);
    assert_eq!(request.method, "get");
    assert_eq!(cluster.answer(resp, request.token, None, 12.into()), b"$2\r\n12\r\n");
    // Once it is back, the sum of both.
    cluster.link(1);
    cluster.settle();
    cluster.serve(&[(1.0, None), (1.0, None), (1.0, None)]);
    assert_eq!(cluster.resp(resp, &format!("GET {key}\r\nMGET {key} x\r\n")), "$2\r\n12\r\n*2\r\n$2\r\n12\r\n$-1\r\n");
    assert_eq!(cluster.resp(resp, &format!("INCR {key}\r\n")), ":13\r\n");
    assert_eq!(cluster.partial(1, &key), 11.into());
    assert_eq!(cluster.call(msgpack, "get", vec![key.as_str().into()]), Ok(13.into()));
}

#[test]
fn operations_with_ids_and_strict_keys_stay_at_home_and_are_unavailable_at_once_while_it_is_dead() {
    let mut cluster = Cluster::new(3);
    let client = cluster.router.connect();
    let key = cluster.key_at(1, 0);
    let strict = (0..).map(|n| format!("unique:{n}")).find(|key| cluster.ring.home(key.as_bytes()) == 1).unwrap();
    cluster.cut(1, false);
    cluster.serve(&[(1.0, None), (0.0, Some(2)), (1.0, None)]);
    let with_id = map(&[("id", "i".into())]);
    let many = Value::Array(vec![Value::Array(vec![key.as_str().into(), 1.into(), "j".into()])]);
    let outcomes = cluster.calls(
        client,
        &[
            ("incr", vec![key.as_str().into(), 1.into(), with_id]),
            ("incr", vec![strict.as_str().into()]),
            ("incr_many", vec![many]),
            ("incr", vec![key.as_str().into()]),
        ],
    );
    assert_eq!((code(&outcomes[0]), code(&outcomes[1])), ("unavailable", "unavailable"));
    let Ok(Value::Array(results)) = &outcomes[2] else { panic!() };
    assert!(results[0].as_str().unwrap().starts_with("unavailable: "));
    assert_eq!(outcomes[3], Ok(1.into()));
    // Nobody takes it: at once, too.
    cluster.serve(&[(0.0, None), (0.0, None), (0.0, None)]);
    assert_eq!(code(&cluster.call(client, "incr", vec![key.into()])), "unavailable");
}

#[test]
fn an_unwell_shard_keeps_its_share_and_reads_ask_both() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    cluster.serve(&[(0.5, Some(1)), (1.0, None)]);
    let told = cluster.resp(client, &format!("INCR {key}\r\n").repeat(100));
    assert_eq!(told.lines().count(), 100);
    assert_eq!((cluster.partial(0, &key), cluster.partial(1, &key)), (50.into(), 50.into()));
    assert_eq!(cluster.resp(client, &format!("INCR {key}\r\nGET {key}\r\n")).lines().last(), Some("101"));
}

#[test]
fn what_was_never_sent_leaves_with_its_shards_weight() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    let strict = (0..).map(|n| format!("unique:{n}")).find(|key| cluster.ring.home(key.as_bytes()) == 0).unwrap();
    cluster.cut(0, false);
    assert_eq!(cluster.resp(client, &format!("INCR {key}\r\nINCR {strict}\r\nINCR {key}\r\n")), "");
    cluster.serve(&[(0.0, Some(1)), (1.0, None)]);
    cluster.settle();
    assert_eq!(cluster.output(client), b":1\r\n");
    assert_eq!(cluster.partial(1, &key), 2.into());
    cluster.advance(TIMEOUT_MS + 1);
    let told = String::from_utf8(cluster.output(client)).unwrap();
    assert!(told.contains("(unavailable)\r\n:2\r\n"), "{told}");
}

#[test]
fn reads_behind_an_increment_that_leaves_its_shard_see_it_all_the_same() {
    let mut cluster = Cluster::new(2);
    let (client, msgpack) = (cluster.router.connect(), cluster.router.connect());
    let (key, other) = (cluster.key_at(0, 0), cluster.key_at(0, 1));
    assert_eq!(cluster.resp(client, &format!("INCRBY {key} 10\r\n")), ":10\r\n");
    cluster.cut(0, false);
    let text = format!("GET {key}\r\nINCR {key}\r\nGET {key}\r\nMGET {key} {other}\r\nINCR {key}\r\nGET {key}\r\n");
    assert_eq!(cluster.resp(client, &text), "");
    let bytes =
        [("incr", 1), ("get", 2)].map(|(method, msgid)| super::cluster::call(msgid, method, &[other.as_str().into()]));
    cluster.ask(msgpack, &bytes.concat());
    cluster.serve(&[(0.0, Some(1)), (1.0, None)]);
    cluster.settle();
    assert_eq!((cluster.partial(1, &key), cluster.partial(1, &other)), (2.into(), 1.into()));
    cluster.link(0);
    let told = cluster.resp(client, "");
    assert!(told.starts_with("$2\r\n10\r\n:11\r\n$2\r\n1"), "{told}");
    // The reads' order among the moved increments isn't kept: each sees at least those before it.
    let values: Vec<i64> = told.lines().filter_map(|line| line.trim_start_matches(':').parse().ok()).collect();
    assert!(values[2] >= 11 && values[3] >= 11 && values[5] == 12, "{values:?} in {told}");
    let told = super::cluster::replies(&cluster.ask(msgpack, b""));
    assert_eq!((&told[&1], &told[&2]), (&Ok(1.into()), &Ok(1.into())));
    assert_eq!((cluster.figure("held_bytes"), cluster.figure("under_way")), (0, 0));
}

#[test]
fn what_others_were_known_to_hold_is_forgotten_with_a_removal() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let keys = [cluster.key_at(0, 0), cluster.key_at(0, 1), cluster.key_at(0, 2)];
    let incr = |cluster: &mut Cluster| keys.each_ref().map(|key| cluster.resp(client, &format!("INCRBY {key} 10\r\n")));
    incr(&mut cluster);
    cluster.serve(&[(0.0, Some(1)), (1.0, None)]);
    assert_eq!(incr(&mut cluster), [":20\r\n"; 3]);
    cluster.router.forget(Some(keys[0].as_bytes()));
    assert_eq!(incr(&mut cluster), [":20\r\n", ":30\r\n", ":30\r\n"]);
    cluster.router.forget(None);
    assert_eq!(incr(&mut cluster), [":30\r\n"; 3]);
}

#[test]
fn what_was_sent_stays_where_it_was_sent() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    cluster.stalled[0] = true;
    assert_eq!(cluster.resp(client, &format!("INCR {key}\r\n")), "");
    cluster.serve(&[(0.0, Some(1)), (1.0, None)]);
    cluster.settle();
    assert_eq!(cluster.partial(1, &key), Value::Nil);
    cluster.stalled[0] = false;
    assert_eq!(cluster.resp(client, ""), ":1\r\n");
}

#[test]
fn a_sum_outside_of_64_bits_is_a_decimal_string() {
    let mut cluster = Cluster::new(2);
    let (resp, msgpack) = (cluster.router.connect(), cluster.router.connect());
    let key = cluster.key_at(0, 0);
    let add = |cluster: &mut Cluster| cluster.call(msgpack, "incr", vec![key.as_str().into(), i64::MAX.into()]);
    assert_eq!(add(&mut cluster), Ok(i64::MAX.into()));
    cluster.serve(&[(0.0, Some(1)), (1.0, None)]);
    let sum = (2 * i128::from(i64::MAX)).to_string();
    assert_eq!(add(&mut cluster), Ok(sum.as_str().into()));
    assert_eq!(cluster.resp(resp, &format!("INCRBY {key} 0\r\n")), format!("${}\r\n{sum}\r\n", sum.len()));
    cluster.serve(&[(1.0, None), (1.0, None)]);
    assert_eq!(cluster.call(msgpack, "get", vec![key.as_str().into()]), Ok(sum.as_str().into()));
    assert_eq!(cluster.resp(resp, &format!("GET {key}\r\n")), format!("${}\r\n{sum}\r\n", sum.len()));
}

#[test]
fn a_cached_read_is_answered_without_the_shard_until_the_key_is_written() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    let get = |cluster: &mut Cluster| {
        cluster.call(client, "get", vec![key.as_str().into(), map(&[("accuracy", "cached".into())])])
    };
    cluster.call(client, "incr", vec![key.as_str().into(), 5.into()]).unwrap();
    assert_eq!(get(&mut cluster), Ok(5.into()));
    cluster.stalled[0] = true;
    assert_eq!(get(&mut cluster), Ok(5.into()));
    assert_eq!(cluster.figure("cached_reads"), 1);
    cluster.stalled[0] = false;
    cluster.call(client, "incr", vec![key.as_str().into()]).unwrap();
    assert_eq!(get(&mut cluster), Ok(6.into()));
    assert_eq!(cluster.figure("cached_reads"), 1);
}

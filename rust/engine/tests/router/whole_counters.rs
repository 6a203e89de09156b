//! SET, GETDEL, DEL, `delete_many` and DBSIZE: what needs counters whole, wherever their parts are.

use pycounter_engine::operation_id_table::OperationIdSettings;
use rmpv::Value;

use super::cluster::{Cluster, TIMEOUT_MS, call, code, map, replies, settings};

/// Adds to a counter at one shard, whichever its home is.
fn add(cluster: &mut Cluster, shard: usize, key: &str, delta: i64) {
    let slot = cluster.shards[shard].connect();
    cluster.shards[shard].feed(slot, &call(0, "incr", &[key.into(), delta.into()]));
    cluster.shards[shard].disconnect(slot);
}

#[test]
fn a_value_is_set_wherever_parts_of_the_counter_are() {
    let mut cluster = Cluster::new(3);
    let client = cluster.router.connect();
    let key = cluster.key_at(1, 0);
    assert_eq!(cluster.resp(client, &format!("SET {key} 5 GET\r\nGET {key}\r\n")), "$-1\r\n$1\r\n5\r\n");
    // The router doesn't know of it.
    add(&mut cluster, 2, &key, 100);
    assert_eq!(cluster.resp(client, &format!("SET {key} 7 GET\r\n")), "$3\r\n105\r\n");
    assert_eq!((cluster.partial(1, &key), cluster.partial(2, &key)), ((-93).into(), 100.into()));
    assert_eq!(cluster.resp(client, &format!("SET {key} 0\r\nSET {key} 0 GET\r\nGETDEL {key}\r\nGETDEL {key}\r\n")), {
        "+OK\r\n$1\r\n0\r\n$1\r\n0\r\n$-1\r\n"
    });
    assert_eq!((cluster.partial(1, &key), cluster.partial(2, &key)), (Value::Nil, Value::Nil));
    assert_eq!(cluster.figure("host_requests"), 0);
}

#[test]
fn any_value_of_64_bits_follows_any_other() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let values = [i64::MIN, i64::MAX, 0, i64::MIN, -1, i64::MAX, i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MIN];
    for value in values {
        assert_eq!(cluster.resp(client, &format!("SET o {value}\r\n")), "+OK\r\n");
        let text = value.to_string();
        assert_eq!(cluster.resp(client, "GET o\r\n"), format!("${}\r\n{text}\r\n", text.len()));
    }
    // The home would have to hold more than it can.
    let key = cluster.key_at(0, 0);
    add(&mut cluster, 1, &key, -1);
    let refused = cluster.resp(client, &format!("SET {key} {}\r\n", i64::MAX));
    assert!(refused.ends_with("(overflow)\r\n"), "{refused}");
    assert_eq!(cluster.partial(0, &key), Value::Nil);
}

#[test]
fn counters_are_deleted_wherever_their_parts_are() {
    let mut cluster = Cluster::new(3);
    let client = cluster.router.connect();
    let (one, two) = (cluster.key_at(0, 0), cluster.key_at(1, 0));
    for (shard, key) in [(0, &one), (2, &one), (1, &two), (2, &two)] {
        add(&mut cluster, shard, key, 5);
    }
    assert_eq!(cluster.resp(client, &format!("DEL {one} none {one} {two}\r\nDEL {one} {two}\r\n")), ":2\r\n:0\r\n");
    for shard in 0..3 {
        assert_eq!((cluster.partial(shard, &one), cluster.partial(shard, &two)), (Value::Nil, Value::Nil));
    }
    add(&mut cluster, 0, &one, 5);
    add(&mut cluster, 2, &one, i64::MAX);
    assert_eq!(cluster.resp(client, &format!("GETDEL {one}\r\n")), "$19\r\n9223372036854775812\r\n");
    assert_eq!(cluster.resp(client, &format!("INCR {one}\r\n")), ":1\r\n", "what was known is forgotten");
}

#[test]
fn each_command_of_a_pipeline_sees_those_before_it() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let commands = "SET a 1\r\nSET b 2\r\nSET a 3\r\nINCR a\r\nDEL b\r\nDEL b a\r\nEXISTS a b\r\nSET c 5\r\nEXISTS c c d\r\n\
                    TYPE c\r\nTYPE d\r\nDBSIZE\r\nDBSIZE\r\nINCR d\r\nDBSIZE\r\nGETDEL c\r\nGET c\r\nPING\r\n";
    let expected = "+OK\r\n+OK\r\n+OK\r\n:4\r\n:1\r\n:1\r\n:0\r\n+OK\r\n:2\r\n+string\r\n+none\r\n:1\r\n:1\r\n:1\r\n:2\r\n\
                    $1\r\n5\r\n$-1\r\n+PONG\r\n";
    assert_eq!(cluster.resp(client, commands), expected);
    let many: String = (0..300).map(|number| format!("SET k{number} {number}\r\n")).collect();
    assert_eq!(cluster.resp(client, &many), "+OK\r\n".repeat(300));
    assert_eq!(cluster.resp(client, "GET k299\r\nDBSIZE\r\n"), "$3\r\n299\r\n:301\r\n");
}

#[test]
fn commands_of_one_turn_travel_together() {
    let mut cluster = Cluster::new(2);
    let clients: Vec<_> = (0..10).map(|_| cluster.router.connect()).collect();
    for (number, &client) in clients.iter().enumerate() {
        cluster.send(client, format!("SET k{number} 1\r\nSET l{number} 1\r\n").as_bytes());
    }
    cluster.run();
    let calls = |cluster: &Cluster| (0..2).map(|shard| cluster.router.link(shard).statistics().calls).sum::<u64>();
    let before = calls(&cluster);
    for (number, &client) in clients.iter().enumerate() {
        cluster.send(client, format!("DEL k{number}\r\nDEL l{number} none\r\nGETDEL m{number}\r\n").as_bytes());
    }
    cluster.run();
    assert_eq!(calls(&cluster) - before, 4, "a read and a removal at each shard");
    for &client in &clients {
        assert_eq!(cluster.output(client), b"+OK\r\n+OK\r\n:1\r\n:1\r\n$-1\r\n");
    }
    for &client in &clients {
        cluster.send(client, b"DBSIZE\r\n");
    }
    let before = calls(&cluster);
    cluster.run();
    assert_eq!(calls(&cluster) - before, 4);
}

#[test]
fn each_of_several_removals_has_its_own_outcome_and_ids_count_once() {
    let mut cluster = Cluster::new(3);
    let client = cluster.router.connect();
    let (one, two) = (cluster.key_at(0, 0), cluster.key_at(1, 0));
    for (shard, key) in [(0, &one), (2, &one), (1, &two)] {
        add(&mut cluster, shard, key, 5);
    }
    let with_id = |key: &str| Value::Array(vec![key.into(), "an id".into()]);
    let items = |cluster: &mut Cluster| {
        let list = Value::Array(vec![with_id(&one), two.as_str().into(), "".into(), "none".into()]);
        let Value::Array(mut outcomes) = cluster.call(client, "delete_many", vec![list]).unwrap() else { panic!() };
        assert!(outcomes.remove(2).as_str().unwrap().starts_with("bad_key"));
        outcomes
    };
    assert_eq!(items(&mut cluster), [10.into(), 5.into(), 0.into()]);
    add(&mut cluster, 0, &one, 1);
    assert_eq!(items(&mut cluster), [10.into(), 0.into(), 0.into()], "the first result");
    assert_eq!(cluster.partial(0, &one), 1.into());
    let options = map(&[("detail", true.into()), ("level", "durable".into())]);
    let list = Value::Array(vec![one.as_str().into()]);
    let told = cluster.call(client, "delete_many", vec![list, options]).unwrap();
    let values = Value::Array(vec![1.into()]);
    assert_eq!(told, map(&[("level", "durable".into()), ("commit", Value::Nil), ("values", values)]));
    // An id from the future is of another clock, and is settled only if it is known.
    let options = map(&[("born", (cluster.now_ms as u64 + 60_000).into())]);
    let unknown = Value::Array(vec![one.as_str().into(), "another id".into()]);
    let list = Value::Array(vec![unknown, with_id(&one), two.as_str().into()]);
    let told = cluster.call(client, "delete_many", vec![list, options]).unwrap();
    assert!(told[0].as_str().unwrap().starts_with("bad_request"), "{told}");
    assert_eq!((&told[1], &told[2]), (&10.into(), &0.into()));
}

#[test]
fn requests_before_a_list_of_removals_are_done_before_it() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    let list = Value::Array(vec![key.as_str().into()]);
    let calls = [("incr", vec![key.as_str().into(), 7.into()]), ("delete_many", vec![list])];
    assert_eq!(cluster.calls(client, &calls)[1], Ok(Value::Array(vec![7.into()])));
    let notification =
        Value::Array(vec![2.into(), "delete_many".into(), Value::Array(vec![Value::Array(vec!["a".into()])])]);
    let mut bytes = call(1, "incr", &["a".into()]);
    rmpv::encode::write_value(&mut bytes, &notification).unwrap();
    assert_eq!(replies(&cluster.ask(client, &bytes)).len(), 1);
    assert_eq!(cluster.call(client, "get", vec!["a".into()]), Ok(0.into()));
}

#[test]
fn nothing_is_begun_while_a_shard_is_dead() {
    let mut cluster = Cluster::new(2);
    let (client, msgpack) = (cluster.router.connect(), cluster.router.connect());
    assert_eq!(cluster.resp(client, "SET a 1\r\n"), "+OK\r\n");
    cluster.serve(&[(1.0, None), (0.0, None)]);
    for command in ["SET a 1", "GETDEL a", "DEL a", "DBSIZE"] {
        let refused = cluster.resp(client, &format!("{command}\r\n"));
        let name = command.split(' ').next().unwrap();
        let expected = format!(
            "-ERR {name} needs every shard, and shard-1 can't be reached: nothing was applied (unavailable)\r\n"
        );
        assert_eq!(refused, expected);
    }
    let list = Value::Array(vec!["a".into()]);
    assert_eq!(code(&cluster.call(msgpack, "delete_many", vec![list])), "unavailable");
}

#[test]
fn a_shard_that_says_nothing_leaves_all_as_it_was_until_something_is_sent_to_be_changed() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    cluster.resp(client, &format!("SET {key} 5\r\n"));
    cluster.stalled[1] = true;
    for command in [format!("SET {key} 6"), format!("DEL {key}"), format!("GETDEL {key}")] {
        assert_eq!(cluster.resp(client, &format!("{command}\r\n")), "");
        cluster.advance(TIMEOUT_MS + 1);
        let told = String::from_utf8(cluster.output(client)).unwrap();
        assert!(
            told.contains("needs what every shard holds") && told.ends_with("nothing was applied (unavailable)\r\n")
        );
    }
    assert_eq!(cluster.partial(0, &key), 5.into());
    cluster.stalled[1] = false;
    cluster.settle();
    // Now it has answered what there is, and then says nothing.
    for (command, found) in [("DEL", "may be deleted"), ("SET", "the difference was sent")] {
        let command = format!("{command} {key}{}\r\n", if command == "SET" { " 9" } else { "" });
        cluster.send(client, command.as_bytes());
        cluster.turn();
        cluster.stalled[0] = true;
        cluster.run();
        cluster.advance(TIMEOUT_MS / 2 + 1);
        let told = String::from_utf8(cluster.output(client)).unwrap();
        assert!(told.contains(found) && told.ends_with("(unknown_outcome)\r\n"), "{told}");
        cluster.stalled[0] = false;
        cluster.settle();
    }
    assert_eq!(cluster.resp(client, &format!("GET {key}\r\n")), "$1\r\n9\r\n");
}

#[test]
fn a_removal_that_was_sent_is_repeated_under_its_id() {
    for arrives in [true, false] {
        let mut cluster = Cluster::new(2);
        let client = cluster.router.connect();
        let key = cluster.key_at(0, 0);
        cluster.resp(client, &format!("SET {key} 5\r\n"));
        cluster.send(client, format!("GETDEL {key}\r\n").as_bytes());
        cluster.turn();
        cluster.stalled[0] = true;
        cluster.run();
        cluster.cut(0, arrives);
        add(&mut cluster, 0, &key, 1);
        cluster.stalled[0] = false;
        cluster.link(0);
        cluster.run();
        let (taken, left) = if arrives { (5, Value::from(1)) } else { (6, Value::Nil) };
        assert_eq!(cluster.output(client), format!("$1\r\n{taken}\r\n").as_bytes());
        assert_eq!(cluster.partial(0, &key), left);
    }
}

#[test]
fn a_refused_removal_is_told_with_what_is_known_of_the_others() {
    let full = OperationIdSettings { ids_bytes_max: 0, ..OperationIdSettings::default() };
    let mut cluster = Cluster::with_bounds(2, settings(), full);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    cluster.resp(client, &format!("SET {key} 5\r\n"));
    let told = cluster.resp(client, &format!("DEL {key}\r\nGET {key}\r\n"));
    assert!(told.starts_with("-OOM ") && told.ends_with("(overloaded)\r\n$1\r\n5\r\n"), "{told}");
}

#[test]
fn a_count_that_needs_a_look_at_foreign_counters_is_the_hosts() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    cluster.resp(client, "SET a 1\r\nSET b 1\r\n");
    // A shard alone has no foreign counters: what it says of them is forged.
    assert_eq!(cluster.resp(client, "DBSIZE\r\n"), ":2\r\n");
    cluster.stalled[0] = true;
    cluster.send(client, b"DBSIZE\r\n");
    let stats = map(&[("counters", 2.into()), ("counters_foreign", 1.into())]);
    cluster.answer_calls(0, &[stats, Value::Array(Vec::new())]);
    cluster.run();
    let request = cluster.host_request(client);
    assert_eq!((request.method, request.protocol), ("dbsize", "resp2"));
    assert_eq!(cluster.answer(client, request.token, None, 3.into()), b":3\r\n");
}

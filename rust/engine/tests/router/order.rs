//! In which order replies leave and requests are carried out.

use rmpv::Value;

use super::cluster::{Cluster, call, map, replies};

#[test]
fn resp_replies_leave_in_request_order_though_shards_answer_in_theirs() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let (slow, fast) = (cluster.key_at(0, 0), cluster.key_at(1, 0));
    cluster.stalled[0] = true;
    let text = format!("INCR {fast}\r\nINCR {slow}\r\nINCR {fast}\r\nPING\r\nGET {fast}\r\nNOPE\r\n");
    assert_eq!(cluster.resp(client, &text), ":1\r\n", "what is behind the slow one waits");
    cluster.stalled[0] = false;
    let rest = String::from_utf8(cluster.ask(client, b"")).unwrap();
    assert!(rest.starts_with(":1\r\n:2\r\n+PONG\r\n$1\r\n2\r\n-ERR unknown command"), "{rest}");
}

#[test]
fn msgpack_replies_do_not_wait_for_each_other() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let (slow, fast) = (cluster.key_at(0, 0), cluster.key_at(1, 0));
    cluster.stalled[0] = true;
    let bytes = [call(1, "incr", &[slow.into()]), call(2, "incr", &[fast.into()]), call(3, "ping", &[])].concat();
    let told = replies(&cluster.ask(client, &bytes));
    assert_eq!((told.len(), &told[&2], &told[&3]), (2, &Ok(1.into()), &Ok("pong".into())));
    cluster.stalled[0] = false;
    assert_eq!(replies(&cluster.ask(client, b""))[&1], Ok(1.into()));
}

#[test]
fn a_read_sees_what_came_before_it_on_its_connection_and_not_what_came_after() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let (mut text, mut expected) = (String::new(), String::new());
    // Reads gather; an increment of the same key must not overtake them, in the same chunk or the same turn.
    for turn in 1..=300 {
        for key in ["a", "b", "c"] {
            text += &format!("GET {key}\r\nINCR {key}\r\nMGET {key}\r\nGET other-{turn}\r\n");
            let digits = turn.to_string();
            expected += &match turn {
                1 => "$-1\r\n".to_owned(),
                _ => format!("${}\r\n{}\r\n", (turn - 1).to_string().len(), turn - 1),
            };
            expected += &format!(":{turn}\r\n*1\r\n${}\r\n{digits}\r\n$-1\r\n", digits.len());
        }
    }
    assert_eq!(cluster.resp(client, &text), expected);
}

#[test]
fn on_resp_a_request_for_the_host_is_a_barrier() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let slow = cluster.key_at(0, 0);
    cluster.stalled[0] = true;
    cluster.resp(client, &format!("INCR {slow}\r\nFLUSHALL\r\nINCR x\r\nPING\r\n"));
    assert!(cluster.host_requests(client).is_empty(), "what is before it isn't answered");
    assert!(cluster.router.connection(client).unwrap().is_crowded());
    cluster.stalled[0] = false;
    assert_eq!(cluster.ask(client, b""), b":1\r\n");
    let request = cluster.host_request(client);
    assert_eq!((request.method, request.protocol), ("flushall", "resp2"));
    let params = rmpv::decode::read_value(&mut &request.params[..]).unwrap();
    assert_eq!(params, Value::Array(Vec::new()));
    cluster.run();
    assert_eq!(cluster.partial(0, "x"), Value::Nil);
    assert_eq!(cluster.partial(1, "x"), Value::Nil, "what is behind it waits for its answer");
    assert_eq!(cluster.answer(client, request.token, None, Value::Nil), b"+OK\r\n:1\r\n+PONG\r\n");
    assert!(!cluster.router.answer(client, request.token, None, b"\xc0"), "it is answered once");
}

#[test]
fn on_msgpack_a_request_for_the_host_waits_for_those_before_it_and_nobody_for_its_answer() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let slow = cluster.key_at(0, 0);
    cluster.stalled[0] = true;
    let drain = [Value::from(slow.as_str()), map(&[("id", "i".into())])];
    let bytes = [call(1, "incr", &[slow.as_str().into()]), call(2, "drain", &drain), call(3, "stats", &[])].concat();
    cluster.ask(client, &bytes);
    assert!(cluster.host_requests(client).is_empty());
    cluster.stalled[0] = false;
    assert_eq!(replies(&cluster.ask(client, &call(4, "incr", &["b".into()]))).len(), 2);
    let requests = cluster.host_requests(client);
    let methods: Vec<_> = requests.iter().map(|request| (request.method, request.protocol)).collect();
    assert_eq!(methods, [("drain", "msgpack-rpc"), ("stats", "msgpack-rpc")]);
    assert_eq!(rmpv::decode::read_value(&mut &requests[0].params[..]).unwrap(), Value::Array(drain.to_vec()));
    // One more that needs the drain's answer; one that needs none.
    cluster.ask(client, &[call(5, "total", &["b".into()]), call(6, "health", &[])].concat());
    assert!(cluster.host_requests(client).is_empty());
    let told = replies(&cluster.answer(client, requests[1].token, None, map(&[("x", 1.into())])));
    assert_eq!(told[&3], Ok(map(&[("x", 1.into())])));
    let told = replies(&cluster.answer(client, requests[0].token, Some("unavailable: it is down"), Value::Nil));
    assert_eq!(told[&2], Err("unavailable: it is down".to_owned()));
    let methods: Vec<_> = cluster.host_requests(client).iter().map(|request| request.method).collect();
    assert_eq!(methods, ["total", "health"]);
}

#[test]
fn an_exact_read_is_the_hosts_who_asks_every_shard() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let exact = map(&[("accuracy", "exact".into())]);
    let keys = Value::Array(vec!["a".into(), "b".into()]);
    cluster.ask(client, &call(1, "get", &["a".into(), exact.clone()]));
    let request = cluster.host_request(client);
    assert_eq!(request.method, "get");
    cluster.answer(client, request.token, None, 5.into());
    cluster.ask(client, &call(2, "get_many", &[keys, exact]));
    assert_eq!(cluster.host_request(client).method, "get_many");
}

#[test]
fn a_transaction_is_carried_out_in_order_and_answered_as_one_array() {
    let mut cluster = Cluster::new(3);
    let client = cluster.router.connect();
    let queued =
        cluster.resp(client, "MULTI\r\nINCR a\r\nINCR b\r\nSET a 7\r\nINCR a\r\nGET a\r\nPING\r\nNOTHING x\r\n");
    assert!(queued.starts_with("+OK\r\n+QUEUED\r\n") && queued.contains("-ERR unknown command"));
    assert!(cluster.resp(client, "EXEC\r\n").starts_with("-EXECABORT"));
    cluster.resp(client, "MULTI\r\nINCR a\r\nINCR b\r\nSET a 7\r\nINCR a\r\nGET a\r\nPING\r\n");
    let expected = "*6\r\n:1\r\n:1\r\n+OK\r\n:8\r\n$1\r\n8\r\n+PONG\r\n$5\r\nafter\r\n";
    assert_eq!(cluster.resp(client, "EXEC\r\nECHO after\r\n"), expected);
    cluster.resp(client, "MULTI\r\nINCR a\r\nFLUSHALL\r\nINCR a\r\nPING\r\n");
    assert_eq!(cluster.resp(client, "EXEC\r\nECHO after\r\n"), "*4\r\n:9\r\n");
    let request = cluster.host_request(client);
    let rest = cluster.answer(client, request.token, Some("read_only: the disk is full"), Value::Nil);
    let expected = "-MISCONF the disk is full (read_only)\r\n:10\r\n+PONG\r\n$5\r\nafter\r\n";
    assert_eq!(String::from_utf8(rest).unwrap(), expected);
    assert_eq!(cluster.resp(client, "MULTI\r\nEXEC\r\nDISCARD\r\n"), {
        "+OK\r\n*0\r\n-ERR DISCARD without MULTI (bad_request)\r\n"
    });
}

#[test]
fn the_protocols_version_changes_between_replies() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let slow = cluster.key_at(0, 0);
    cluster.stalled[0] = true;
    assert_eq!(cluster.resp(client, &format!("GET {slow}\r\nHELLO 3\r\nGET {slow}\r\nRESET\r\nGET {slow}\r\n")), "");
    cluster.stalled[0] = false;
    let told = cluster.resp(client, "");
    assert!(told.starts_with("$-1\r\n%8\r\n") && told.ends_with("*0\r\n_\r\n+RESET\r\n$-1\r\n"), "{told}");
}

#[test]
fn forms_of_the_hosts_answers() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let page = Value::Array(vec![9.into(), Value::Array(vec!["k1".into(), Value::Binary(b"\xff".to_vec())])]);
    // Of reads, those that may need a dead shard.
    cluster.serve(&[(0.0, None), (0.0, None)]);
    let rows: [(&str, Value, &[u8]); 12] = [
        ("GET a\r\n", Value::Nil, b"$-1\r\n"),
        ("GET a\r\n", (-5).into(), b"$2\r\n-5\r\n"),
        ("GET a\r\n", "9223372036854775808".into(), b"$19\r\n9223372036854775808\r\n"),
        ("MGET a b\r\n", Value::Array(vec![1.into(), Value::Nil]), b"*2\r\n$1\r\n1\r\n$-1\r\n"),
        ("EXISTS a b\r\n", 2.into(), b":2\r\n"),
        ("EXISTS a b\r\n", "two".into(), b"-ERR the answer has another form (internal)\r\n"),
        ("TYPE a\r\n", true.into(), b"+string\r\n"),
        ("TYPE a\r\n", false.into(), b"+none\r\n"),
        ("SCAN 0\r\n", page, b"*2\r\n$1\r\n9\r\n*2\r\n$2\r\nk1\r\n$1\r\n\xff\r\n"),
        ("FLUSHALL\r\n", Value::Nil, b"+OK\r\n"),
        ("FLUSHDB\r\n", Value::Nil, b"+OK\r\n"),
        ("INFO keyspace\r\n", "the text".into(), b"$8\r\nthe text\r\n"),
    ];
    for (command, result, reply) in rows {
        assert_eq!(cluster.resp(client, command), "");
        let request = cluster.host_request(client);
        assert_eq!(cluster.answer(client, request.token, None, result), reply, "{command}");
    }
}

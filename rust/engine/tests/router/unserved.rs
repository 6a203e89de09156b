//! Increments that nobody waits for: the host keeps those that no shard takes, and each is in one place only.

use rmpv::Value;

use super::cluster::{Cluster, TIMEOUT_MS, code, map};

fn notification(method: &str, params: &[Value]) -> Vec<u8> {
    let frame = Value::Array(vec![2.into(), method.into(), Value::Array(params.to_vec())]);
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &frame).unwrap();
    bytes
}

fn kept(cluster: &mut Cluster, unsent: bool) -> Vec<(String, i64)> {
    let taken = cluster.router.take_unserved(unsent);
    taken.into_iter().map(|(key, delta)| (String::from_utf8(key).unwrap(), delta)).collect()
}

#[test]
fn what_comes_while_nobody_serves_is_kept() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    cluster.serve(&[(0.0, None), (0.0, None)]);
    let items = Value::Array(vec![
        Value::Array(vec![key.as_str().into(), 3.into()]),
        Value::Array(vec![key.as_str().into(), 4.into(), "an id".into()]),
        Value::Array(vec!["".into(), 5.into()]),
    ]);
    cluster.ask(client, &notification("incr", &[key.as_str().into()]));
    cluster.ask(client, &notification("incr", &[key.as_str().into(), 2.into(), map(&[("level", "applied".into())])]));
    cluster.ask(client, &notification("incr_many", &[items]));
    // With an id it is its client's affair, and so is what somebody waits for.
    cluster.ask(client, &notification("incr", &[key.as_str().into(), 9.into(), map(&[("id", "other".into())])]));
    assert_eq!(code(&cluster.call(client, "incr", vec![key.as_str().into()])), "unavailable");
    let expected: Vec<_> = [1, 2, 3].map(|delta| (key.clone(), delta)).into();
    assert_eq!(kept(&mut cluster, false), expected);
    assert_eq!(kept(&mut cluster, true), []);
    cluster.serve(&[(1.0, None), (1.0, None)]);
    cluster.advance(TIMEOUT_MS + 1);
    assert_eq!(cluster.partial(0, &key), Value::Nil);
}

#[test]
fn what_was_never_sent_is_kept_when_its_shard_dies_and_nobody_takes_it() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    cluster.cut(0, false);
    cluster.ask(client, &notification("incr", &[key.as_str().into(), 7.into()]));
    let waiting = super::cluster::call(5, "incr", &[key.as_str().into(), 1.into()]);
    cluster.ask(client, &waiting);
    assert_eq!(kept(&mut cluster, false), []);
    cluster.serve(&[(0.0, None), (1.0, None)]);
    assert_eq!(kept(&mut cluster, false), [(key.clone(), 7)]);
    // Who waits goes on waiting, and is counted once the shard is back.
    cluster.link(0);
    cluster.settle();
    assert_eq!(super::cluster::replies(&cluster.output(client))[&5], Ok(1.into()));
    assert_eq!(cluster.partial(0, &key), 1.into());
}

#[test]
fn at_the_end_what_was_never_sent_is_kept_and_what_was_sent_is_not() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let (sent, unsent) = (cluster.key_at(0, 0), cluster.key_at(1, 0));
    cluster.stalled[0] = true;
    cluster.ask(client, &notification("incr", &[sent.as_str().into(), 1.into()]));
    cluster.cut(1, false);
    cluster.ask(client, &notification("incr", &[unsent.as_str().into(), 2.into()]));
    assert_eq!(kept(&mut cluster, true), [(unsent.clone(), 2)]);
    cluster.stalled[0] = false;
    cluster.link(1);
    cluster.settle();
    assert_eq!((cluster.partial(0, &sent), cluster.partial(1, &unsent)), (1.into(), Value::Nil));
}

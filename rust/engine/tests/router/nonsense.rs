//! A shard's answers that are MessagePack, and not what was asked for.

use rmpv::Value;

use super::cluster::{Cluster, call, code, map, replies};

fn array(parts: &[Value]) -> Value {
    Value::Array(parts.to_vec())
}

#[test]
fn what_is_inside_of_nonsense_is_no_other_items_value() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let (first, second) = (cluster.key_at(0, 0), cluster.key_at(0, 1));
    cluster.stalled[0] = true;
    let items = array(&[
        array(&[first.as_str().into(), 1.into(), "id-1".into()]),
        array(&[second.as_str().into(), 1.into(), "id-2".into()]),
    ]);
    for nonsense in [array(&[7.into(), 8.into()]), map(&[("value", 7.into())]), (1_u64 << 63).into(), 0.5.into()] {
        cluster.send(client, &call(1, "incr_many", std::slice::from_ref(&items)));
        cluster.forge(0, &array(&[nonsense.clone(), 5.into()]));
        let Ok(Value::Array(results)) = &replies(&cluster.output(client))[&1] else { panic!() };
        assert!(results[0].as_str().unwrap().starts_with("internal: "), "{results:?}");
        assert_eq!(results[1], 5.into());

        // Two reads that travel together.
        cluster.send(client, &call(1, "get", &[first.as_str().into()]));
        cluster.send(client, &call(2, "get", &[second.as_str().into()]));
        cluster.forge(0, &array(&[nonsense, 5.into()]));
        let told = replies(&cluster.output(client));
        assert_eq!((code(&told[&1]), &told[&2]), ("internal", &Ok(5.into())));
    }
}

#[test]
fn a_read_that_is_passed_on_gets_a_value_or_nil() {
    let mut cluster = Cluster::new(2);
    let client = cluster.router.connect();
    let key = cluster.key_at(0, 0);
    cluster.stalled[0] = true;
    let deep = (0..100).fold(Value::Nil, |inside, _| array(&[inside]));
    for (result, expected) in [(5.into(), ""), ((-5).into(), ""), (Value::Nil, ""), (deep, "internal")] {
        cluster.send(client, &call(1, "get", &[key.as_str().into(), map(&[("level", "applied".into())])]));
        cluster.forge(0, &result);
        let told = &replies(&cluster.output(client))[&1];
        assert_eq!(code(told), expected, "{told:?}");
        assert!(told.is_err() || told.as_ref() == Ok(&result));
    }
}

//! What a coordinator's link to a shard costs an increment: accepted, written in a batch, its reply read and told.
//! Divan counts items, so 1 / its `ops` is the time of an increment.
//!
//! `cargo bench -p pycounter-engine --bench shard_link`

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use pycounter_engine::shard_link::{LinkSettings, Outcome, Repeat, ShardLink};
use pycounter_engine::wire::msgpack_rpc as rpc;
use pycounter_engine::wire::request::Level;

/// Who waits: a connection and a place on it.
type Waiter = (u32, u32, u64);

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, whose figures mean nothing: use cargo bench");
        std::process::exit(1);
    }
    divan::main();
}

/// A link that its shard has greeted.
fn link() -> ShardLink<Waiter> {
    let mut link = ShardLink::new(LinkSettings::default());
    link.connected();
    link.flush(&mut Vec::new());
    let mut greeting = Vec::new();
    rpc::reply_begin(&mut greeting, 0x4000_0000);
    rpc::write_map_len(&mut greeting, 2);
    rpc::write_str(&mut greeting, "identity");
    rpc::write_str(&mut greeting, "0123456789abcdef0123456789abcdef");
    rpc::write_str(&mut greeting, "epoch");
    rpc::write_u64(&mut greeting, 1);
    link.feed(&greeting, &mut |_, _| ()).expect("it is a greeting");
    assert!(link.is_ready());
    link
}

fn keys() -> Vec<String> {
    (0..10_000).map(|number| format!("key:{number:012}")).collect()
}

/// The reply to a batch, without its msgid: values of 3 and 5 bytes, as counters have that are in use.
fn results(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    rpc::write_map_len(&mut bytes, 3);
    rpc::write_str(&mut bytes, "results");
    rpc::write_array_len(&mut bytes, count);
    (0..count as i64).for_each(|value| rpc::write_i64(&mut bytes, 1000 + (value % 2) * 1_000_000 + value));
    rpc::write_str(&mut bytes, "level");
    rpc::write_str(&mut bytes, "durable");
    rpc::write_str(&mut bytes, "commit");
    rpc::write_u64(&mut bytes, 123_456);
    bytes
}

#[divan::bench(args = [1, 16, 100, 1000])]
fn increments(bencher: Bencher<'_, '_>, batch: usize) {
    let (mut link, keys, results) = (link(), keys(), results(batch));
    let (mut out, mut reply) = (Vec::new(), Vec::new());
    let (mut next, mut serial, mut sum) = (0, 0_u32, 0);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        for place in 0..batch {
            next = (next + 1) % keys.len();
            let key = keys[next].as_bytes();
            link.incr(key, 1, Level::Durable, 2000, (1, place as u32, 0)).expect("there is room");
        }
        out.clear();
        link.flush(&mut out);
        black_box(&out);
        reply.clear();
        rpc::reply_begin(&mut reply, 0x8000_0000 | serial);
        serial = (serial + 1) & 0x3fff_ffff;
        reply.extend_from_slice(&results);
        let told = &mut |waiter: Waiter, outcome: Outcome<'_>| {
            if let Outcome::Value { value, .. } = outcome {
                sum += value + i64::from(waiter.1);
            }
        };
        link.feed(&reply, told).expect("it is a reply");
    });
    assert!(link.is_settled());
    black_box(sum);
}

/// Reads, each a request of its own.
#[divan::bench(args = [1, 100])]
fn calls(bencher: Bencher<'_, '_>, count: usize) {
    let mut link = link();
    let params: Vec<Vec<u8>> = keys()
        .iter()
        .map(|key| {
            let mut params = Vec::new();
            rpc::write_array_len(&mut params, 1);
            rpc::write_str(&mut params, key);
            params
        })
        .collect();
    let (mut out, mut reply) = (Vec::new(), Vec::new());
    let (mut next, mut msgid, mut sum) = (0, 0_u32, 0);
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        for place in 0..count {
            next = (next + 1) % params.len();
            link.call("get", &params[next], Repeat::Always, 2000, (1, place as u32, 0)).expect("there is room");
        }
        out.clear();
        link.flush(&mut out);
        black_box(&out);
        reply.clear();
        for _ in 0..count {
            msgid = (msgid + 1) & 0x3fff_ffff;
            rpc::reply_int(&mut reply, msgid, 1234);
        }
        let told = &mut |waiter: Waiter, _: Outcome<'_>| sum += waiter.1;
        link.feed(&reply, told).expect("it is a reply");
    });
    assert!(link.is_settled());
    black_box(sum);
}

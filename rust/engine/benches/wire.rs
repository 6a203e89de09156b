//! What it costs to understand a request and write its reply: chunks of 64 frames, as a client that pipelines
//! sends them. Divan counts items, so its `ops` column reads as requests a second and 1 / ops as ns a request.
//!
//! `cargo bench -p pycounter-engine --bench wire`

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use pycounter_engine::wire::msgpack_rpc::{self, Parsed};
use pycounter_engine::wire::request::Request;
use pycounter_engine::wire::resp::{self, Command};
use pycounter_engine::wire::scan::{FrameLimits, Scan};

const FRAMES: usize = 64;
const LIMITS: FrameLimits = FrameLimits { bytes_max: 1 << 20 };

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, whose figures mean nothing: use cargo bench");
        std::process::exit(1);
    }
    divan::main();
}

/// Msgids count up through their encodings, as a client's do; keys are of 16 bytes.
fn msgpack_chunk() -> Vec<u8> {
    let mut chunk = Vec::new();
    for frame in 0..FRAMES {
        chunk.extend_from_slice(b"\x94\x00\xcd");
        chunk.extend_from_slice(&(1000 + frame as u16).to_be_bytes());
        chunk.extend_from_slice(b"\xa4incr\x91\xb0");
        chunk.extend_from_slice(format!("key:{frame:012}").as_bytes());
    }
    chunk
}

fn resp_chunk(command: &str, tail: &str) -> Vec<u8> {
    let arguments = 2 + usize::from(!tail.is_empty());
    (0..FRAMES)
        .flat_map(|frame| {
            format!("*{arguments}\r\n${}\r\n{command}\r\n$16\r\nkey:{frame:012}\r\n{tail}", command.len()).into_bytes()
        })
        .collect()
}

/// Goes over a chunk with a function that gives a frame's length, and writes its reply.
fn over_chunk(bencher: Bencher<'_, '_>, chunk: &[u8], mut one: impl FnMut(&[u8], &mut Vec<u8>) -> usize) {
    let mut out = Vec::with_capacity(1 << 16);
    bencher.counter(ItemsCount::new(FRAMES)).bench_local(|| {
        out.clear();
        let mut rest = black_box(chunk);
        while !rest.is_empty() {
            let len = one(rest, &mut out);
            rest = &rest[len..];
        }
        black_box(&out);
    });
}

#[divan::bench]
fn msgpack_incr_hot(bencher: Bencher<'_, '_>) {
    over_chunk(bencher, &msgpack_chunk(), |buf, out| {
        let incr = msgpack_rpc::fast_incr(buf).expect("the hot shape");
        msgpack_rpc::reply_int(out, incr.msgid, incr.delta + incr.key.len() as i64);
        incr.len
    });
}

#[divan::bench]
fn msgpack_incr_general(bencher: Bencher<'_, '_>) {
    let mut scanner = msgpack_rpc::FrameScanner::default();
    over_chunk(bencher, &msgpack_chunk(), |buf, out| {
        let Ok(Scan::Complete(len)) = scanner.scan(buf, LIMITS) else { unreachable!("whole frames") };
        let Parsed::Request { msgid, request: Ok(Request::Incr { key, delta, .. }) } = msgpack_rpc::parse(&buf[..len])
        else {
            unreachable!("increments")
        };
        msgpack_rpc::reply_int(out, msgid, delta + key.len() as i64);
        len
    });
}

#[divan::bench]
fn resp_incr_hot(bencher: Bencher<'_, '_>) {
    over_chunk(bencher, &resp_chunk("INCR", ""), |buf, out| {
        let incr = resp::fast_incr(buf).expect("the hot shape");
        resp::write_int(out, incr.delta + incr.key.len() as i64);
        incr.len
    });
}

#[divan::bench]
fn resp_incrby_hot(bencher: Bencher<'_, '_>) {
    over_chunk(bencher, &resp_chunk("INCRBY", "$2\r\n17\r\n"), |buf, out| {
        let incr = resp::fast_incr(buf).expect("the hot shape");
        resp::write_int(out, incr.delta + incr.key.len() as i64);
        incr.len
    });
}

#[divan::bench]
fn resp_incr_general(bencher: Bencher<'_, '_>) {
    let mut scanner = resp::FrameScanner::default();
    over_chunk(bencher, &resp_chunk("INCR", ""), |buf, out| {
        let Ok(Scan::Complete(len)) = scanner.scan(buf, LIMITS) else { unreachable!("whole requests") };
        let Ok(Command::IncrBy { key, delta }) = resp::parse(&buf[..len]) else { unreachable!("increments") };
        resp::write_int(out, delta + key.len() as i64);
        len
    });
}

#[divan::bench]
fn msgpack_incr_hot_without_reply(bencher: Bencher<'_, '_>) {
    over_chunk(bencher, &msgpack_chunk(), |buf, _| black_box(msgpack_rpc::fast_incr(buf)).expect("the hot shape").len);
}

#[divan::bench]
fn resp_incr_hot_without_reply(bencher: Bencher<'_, '_>) {
    over_chunk(bencher, &resp_chunk("INCR", ""), |buf, _| black_box(resp::fast_incr(buf)).expect("the hot shape").len);
}

/// What walking over the chunk and the loop around cost alone.
#[divan::bench]
fn floor(bencher: Bencher<'_, '_>) {
    let chunk = msgpack_chunk();
    let len = chunk.len() / FRAMES;
    over_chunk(bencher, &chunk, |buf, out| {
        out.extend_from_slice(&buf[..8]);
        len
    });
}

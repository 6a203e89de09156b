//! Hostile requests must not make the parsers allocate: what a frame declares is not what it holds.
//!
//! A test binary of its own, since it counts the allocations of the whole process.
#![allow(unsafe_code, reason = "a global allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pycounter_engine::wire::scan::{FrameLimits, Scan};
use pycounter_engine::wire::{msgpack_rpc, resp};

/// Passes everything on and counts the bytes that each thread asked for.
struct Counting;

thread_local! {
    static ASKED_BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ASKED_BYTES.try_with(|asked| asked.set(asked.get() + layout.size()));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise about both is passed on: `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many bytes `work` asked for.
fn asked_bytes(work: impl FnOnce()) -> usize {
    let before = ASKED_BYTES.with(Cell::get);
    work();
    ASKED_BYTES.with(Cell::get) - before
}

const LIMITS: FrameLimits = FrameLimits { bytes_max: 1 << 20 };

#[test]
fn the_counter_counts() {
    assert!(asked_bytes(|| drop(std::hint::black_box(vec![0_u8; 1000]))) >= 1000);
}

#[test]
fn the_hot_paths_and_replies_allocate_nothing() {
    let mut out = Vec::with_capacity(4096);
    let asked = asked_bytes(|| {
        let incr = msgpack_rpc::fast_incr(b"\x94\x00\x01\xa4incr\x92\xa1k\x05").expect("the hot shape");
        msgpack_rpc::reply_int(&mut out, incr.msgid, i64::MIN);
        let incr = resp::fast_incr(b"*3\r\n$6\r\nINCRBY\r\n$1\r\nk\r\n$2\r\n-5\r\n").expect("the hot shape");
        resp::write_int(&mut out, incr.delta);
        resp::write_double(&mut out, resp::Version::Resp3, f64::MIN_POSITIVE);
        msgpack_rpc::reply_error(&mut out, 1, pycounter_engine::error_code::ErrorCode::Overflow, "x");
        msgpack_rpc::write_i128(&mut out, i128::MIN);
        // The general paths of single requests neither.
        let frame = b"\x94\x00\x01\xa4incr\x93\xa1k\x05\x81\xa5level\xa7applied";
        let mut scanner = msgpack_rpc::FrameScanner::default();
        assert_eq!(scanner.scan(frame, LIMITS), Ok(Scan::Complete(frame.len())));
        assert!(matches!(msgpack_rpc::parse(frame), msgpack_rpc::Parsed::Request { request: Ok(_), .. }));
        let frame = b"*2\r\n$4\r\nDECR\r\n$1\r\nk\r\n";
        let mut scanner = resp::FrameScanner::default();
        assert_eq!(scanner.scan(frame, LIMITS), Ok(Scan::Complete(frame.len())));
        assert!(resp::parse(frame).is_ok());
    });
    assert_eq!(asked, 0);
}

#[test]
fn declared_counts_allocate_no_more_than_the_frame_can_hold() {
    // 65,536 items declared, none there: what no scanner lets through.
    for frame in [
        &b"\x94\x00\x01\xa9incr_many\x91\xdd\x00\x01\x00\x00"[..],
        b"\x94\x00\x01\xa8get_many\x91\xdd\x00\x01\x00\x00\xa1k",
        b"\x94\x00\x01\xa8get_many\x91\xdd\xff\xff\xff\xff",
        b"\x94\x00\x01\xa9incr_many\x91\xdf\xff\xff\xff\xff",
    ] {
        assert!(asked_bytes(|| drop(msgpack_rpc::parse(frame))) < 1024, "{}", frame.escape_ascii());
    }
    // Arguments that are empty, and refused at the first.
    let empty = [&b"*65537\r\n$4\r\nMGET\r\n"[..], &b"$0\r\n\r\n".repeat(65_536)].concat();
    assert!(asked_bytes(|| drop(resp::parse(&empty))) <= 16 * 65_536);
    // The largest batch that a frame of 1 MiB can hold: 56 bytes for each of its items.
    let items = [&b"\x94\x00\x01\xa9incr_many\x91\xdd\x00\x01\x00\x00"[..], &b"\x92\xa1k\x01".repeat(65_536)].concat();
    assert!(asked_bytes(|| drop(msgpack_rpc::parse(&items))) <= 64 * 65_536);
    // An error quotes a piece only.
    let long_name = [&b"\x94\x00\x01\xda\xff\xff"[..], &[0xff; 0xffff], b"\x90"].concat();
    assert!(asked_bytes(|| drop(msgpack_rpc::parse(&long_name))) < 4096);
    let long_name = [&b"*1\r\n$65535\r\n"[..], &[0xff; 65_535], b"\r\n"].concat();
    assert!(asked_bytes(|| drop(resp::parse(&long_name))) < 8192);
}

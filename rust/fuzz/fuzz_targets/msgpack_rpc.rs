//! Run it with `RUSTC_BOOTSTRAP=1 cargo fuzz run msgpack_rpc` in `rust/`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pycounter_fuzz::msgpack_rpc::check(data));

//! Run it with `RUSTC_BOOTSTRAP=1 cargo fuzz run resp` in `rust/`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pycounter_fuzz::resp::check(data));

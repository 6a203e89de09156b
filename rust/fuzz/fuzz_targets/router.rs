//! Run it with `make fuzz`, which has AddressSanitizer watch too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pycounter_fuzz::router::check(data));

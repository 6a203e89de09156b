//! What the fuzz targets check, as plain functions: each takes any bytes and panics if a promise is broken.
//!
//! `rust/engine/tests/fuzz_corpus.rs` includes this file, so that an ordinary `cargo test` replays every
//! seed in `corpus/` through the very same functions, and keeps the seeds in step with `seeds()`.

pub mod checked_client;
pub mod fake_shard;
pub mod journal_record;
pub mod memory_files;
pub mod msgpack_rpc;
pub mod replies;
pub mod resp;
pub mod router;
pub mod router_host;
pub mod shard;
pub mod shard_host;
pub mod split;

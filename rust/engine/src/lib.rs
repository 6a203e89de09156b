//! The counter engine of PyCounter, in plain Rust.
//!
//! Layers, lowest first: `limits`, `clock` and `error_code`; `cell`, `counter_store`, `write_batch_queue`; `placement`
//! (the ring, foreign counters); `wire` (codecs); `journal` (records, segments, commit thread, recovery);
//! `session_table` and `operation_id_table`; `checkpoint` (pages); `state`, what is journaled of a shard; `folder`, what
//! is on disk; `shard`, which serves it; `shard_link`, a client's one connection to a shard and its session there;
//! `router`, a coordinator's way between clients and shards. Apart from them: `load_generator`, which measures servers.

#[cfg(not(target_os = "linux"))]
compile_error!("PyCounter runs on Linux only: the commit thread wakes the event loop by an eventfd");

#[allow(unused_imports, reason = "which of them are used depends on the cfg")]
mod atomics;
mod cell;
pub mod checkpoint;
pub mod clock;
mod connection_input;
pub mod counter_snapshot;
pub mod counter_store;
pub mod embedded;
pub mod error_code;
pub mod figure;
pub mod fingerprint;
pub mod folder;
pub mod frequency_sketch;
pub mod journal;
pub mod latest_values;
mod lazy_memory;
pub mod limits;
pub mod load_generator;
pub mod operation_id_table;
pub mod placement;
pub mod planted_bug;
pub mod read_cache;
mod resp_connection;
pub mod router;
pub mod session_table;
pub mod shard;
pub mod shard_link;
pub mod state;
mod token;
pub mod wire;
pub mod write_batch_queue;

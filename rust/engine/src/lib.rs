//! The counter engine of PyCounter, in plain Rust.
//!
//! Layers, lowest first: `limits` and `error_code`; `cell`, `counter_store`, `write_batch_queue`,
//! `hash_ring`; `session_table` and `operation_id_table`; `wire` (codecs); `journal` (log, recovery,
//! commit thread) and `checkpoint` (pages); `shard`, which puts them together.

mod atomics;
pub mod error_code;
pub mod limits;

//! What a coordinator does with chunks of bytes: clients' requests to shards, shards' replies to clients.
//!
//! Threads: one thread, the host's event loop, calls everything here. There is no clock inside: whoever owns these
//! objects says what time it is.
//!
//! `shard_link` is the connection to one shard.

mod link_batch;
mod link_calls;
mod link_queue;
mod link_replies;
mod link_session;
mod link_tail;
#[cfg(test)]
mod link_tests;
mod link_types;
pub mod shard_link;

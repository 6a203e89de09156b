//! What a shard is told of itself: its settings and its name.

use std::time::Duration;

use crate::wire::request::Level;

/// What an operator may set, beside the bounds of the state.
#[derive(Debug, Clone)]
pub struct ShardSettings {
    /// The level of operations that name none.
    pub level: Level,
    /// Shown by `hello`, `stats` and INFO.
    pub server_version: String,
    /// Clients must send one of them first; without any, nobody needs one.
    pub tokens: Vec<Vec<u8>>,
    /// Longest frame, in bytes.
    pub frame_bytes_max: usize,
    /// Bytes of unfinished requests that all connections together may leave in memory. Half of them is anybody's; of
    /// the other half each of `connections_max` connections has its even share.
    pub input_bytes_max: usize,
    /// Connections that the host admits.
    pub connections_max: usize,
    /// Bytes of replies that a connection may have waiting before reading from it stops.
    pub reply_bytes_max: usize,
    /// The same for all connections together: a slow disk must not fill the memory with answers.
    pub held_bytes_max: usize,
    /// Longest time for which an `applied` change may stay only in memory.
    pub flush_interval: Duration,
}

/// Who this shard is, as `hello` tells it.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// As the folder has it.
    pub(super) name: String,
    /// 32 hexadecimal digits.
    pub(super) identity: String,
    /// Rises with each start.
    pub(super) epoch: u64,
}

//! Increments that came as notifications, and that no shard takes: nobody waits for them, so the host keeps them.

use super::Router;
use super::slab::Place;
use super::waiter::{Kind, Waiter};
use crate::wire::request::Level;

/// Bytes of increments that the host hasn't taken yet.
const UNSERVED_BYTES_MAX: usize = 16 << 20;
/// What one costs beside its key.
const UNSERVED_BYTES: usize = 48;

/// Increments for the host to take: key and delta. They were never sent.
#[derive(Debug, Default)]
pub(super) struct Unserved {
    increments: Vec<(Vec<u8>, i64)>,
    bytes: usize,
}

impl Unserved {
    /// Takes an increment, if there is room.
    fn take(&mut self, key: &[u8], delta: i64) -> bool {
        let bytes = key.len() + UNSERVED_BYTES;
        if self.bytes + bytes > UNSERVED_BYTES_MAX {
            return false;
        }
        self.bytes += bytes;
        self.increments.push((key.to_vec(), delta));
        true
    }
}

/// Is it an increment that nobody waits for?
fn is_unwatched(waiter: &Waiter) -> bool {
    waiter.place == Place::NOWHERE && matches!(waiter.kind, Kind::Incr | Kind::IncrDetail)
}

impl Router {
    /// Keeps an increment that no shard takes, if nobody waits for it and there is room.
    pub(super) fn keep_unserved(&mut self, key: &[u8], delta: i64, waiter: &Waiter) -> bool {
        is_unwatched(waiter) && self.unserved.take(key, delta)
    }

    /// Of what a shard was never sent, what nobody waits for is kept; the rest goes on waiting for the shard.
    pub(super) fn keep_unsent(&mut self, shard: usize) {
        let mut taken: Vec<(Vec<u8>, i64, Level, u64, Waiter)> = Vec::new();
        self.links[shard].link.take_unsent(1.0, |key, delta, level, deadline_ms, waiter| {
            taken.push((key.to_vec(), delta, level, deadline_ms, waiter));
        });
        self.core.stopwatches[shard].answered += taken.len() as u64;
        for (key, delta, level, deadline_ms, waiter) in taken {
            if !self.keep_unserved(&key, delta, &waiter) {
                self.send_incr(shard, &key, delta, level, deadline_ms, waiter);
            }
        }
    }

    /// What the host is to keep. With `unsent`, also what waits for a shard and was never sent: the router ends.
    pub fn take_unserved(&mut self, unsent: bool) -> Vec<(Vec<u8>, i64)> {
        if unsent {
            (0..self.links.len()).for_each(|shard| self.keep_unsent(shard));
        }
        self.unserved.bytes = 0;
        std::mem::take(&mut self.unserved.increments)
    }
}

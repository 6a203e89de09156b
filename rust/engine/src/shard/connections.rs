//! The connections of a shard.

use super::Shard;
use super::connection::Connection;
use crate::resp_connection::Peer;

/// Connections by slot; free slots are used again.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) slots: Vec<Option<Box<Connection>>>,
    free: Vec<usize>,
    pub(super) count: usize,
}

impl Connections {
    pub(super) fn insert(&mut self, connection: Connection) -> usize {
        self.count += 1;
        let connection = Some(Box::new(connection));
        if let Some(slot) = self.free.pop() {
            self.slots[slot] = connection;
            return slot;
        }
        self.slots.push(connection);
        self.slots.len() - 1
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Box<Connection>> {
        let connection = self.take(slot)?;
        self.count -= 1;
        self.free.push(slot);
        Some(connection)
    }

    /// Takes it out for the length of a call, so that the shard can be changed meanwhile.
    pub(super) fn take(&mut self, slot: usize) -> Option<Box<Connection>> {
        self.slots.get_mut(slot)?.take()
    }

    pub(super) fn put_back(&mut self, slot: usize, connection: Box<Connection>) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(connection);
        }
    }
}

impl Shard {
    /// Begins a connection from an address that isn't known; gives its slot.
    pub fn connect(&mut self) -> usize {
        self.connect_from("")
    }

    /// Begins a connection; gives its slot. `address` is for CLIENT LIST.
    pub fn connect_from(&mut self, address: &str) -> usize {
        self.statistics.connections_total += 1;
        let authenticated = self.settings.tokens.is_empty();
        self.update_uptime();
        let peer = Peer { address: address.into(), connected_ms: self.uptime_ms, heard_ms: self.uptime_ms };
        self.connections.insert(Connection::new(self.statistics.connections_total, authenticated, peer))
    }

    /// Connections that the host has to look at because another one's CLIENT KILL closed them, taken.
    pub fn take_killed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.killed)
    }
}

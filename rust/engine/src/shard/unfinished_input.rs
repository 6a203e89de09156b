//! The bound on what clients have sent and the shard can't carry out yet: half requests, requests that wait behind
//! replies, transactions that wait for their EXEC.

use super::Shard;
use super::connection::Connection;
use crate::connection_input::{Protocol, TOO_MUCH, is_too_much};

impl Shard {
    /// Counts what the connection leaves unfinished. When that of all connections fills the bound, a connection that
    /// brings more than its share ends: to stop reading wouldn't help, as half a request never leaves by itself.
    pub(super) fn count_input(&mut self, connection: &mut Connection) {
        let bytes = connection.unfinished_bytes();
        self.input_bytes = self.input_bytes - connection.input_bytes + bytes;
        connection.input_bytes = bytes;
        let (bytes_max, connections_max) = (self.settings.input_bytes_max, self.settings.connections_max);
        if is_too_much(self.input_bytes, bytes, bytes_max, connections_max) {
            self.refuse_input(connection);
            self.input_bytes -= connection.input_bytes;
            connection.input_bytes = 0;
        }
    }

    #[cold]
    fn refuse_input(&mut self, connection: &mut Connection) {
        match connection.protocol {
            Protocol::Unknown => {}
            Protocol::MsgpackRpc(_) => self.refuse_msgpack_input(&connection.input, TOO_MUCH),
            Protocol::Resp(_) => self.refuse_resp_input(&connection.held, TOO_MUCH),
        }
        connection.drop_unfinished();
        connection.stalled = false;
        connection.closing = true;
    }
}

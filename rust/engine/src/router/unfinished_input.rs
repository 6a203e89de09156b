//! The bound on what clients have sent and that isn't carried out: half requests, requests that wait, transactions.

use super::Router;
use super::connection::Connection;
use crate::connection_input::{Protocol, TOO_MUCH, is_too_much};
use crate::error_code::ErrorCode;
use crate::wire::msgpack_rpc as rpc;
use crate::wire::resp;

impl Router {
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
        self.core.statistics.errors += 1;
        match connection.protocol {
            Protocol::Unknown => {}
            Protocol::MsgpackRpc(_) => {
                if let Some(msgid) = rpc::request_msgid(&connection.input) {
                    rpc::reply_error(&mut connection.out, msgid, ErrorCode::Overloaded, TOO_MUCH);
                }
            }
            Protocol::Resp(_) => {
                let mut text = Vec::new();
                resp::write_error(&mut text, ErrorCode::Overloaded, TOO_MUCH);
                connection.say(&text);
            }
        }
        connection.drop_unfinished();
        connection.stalled = false;
        connection.closing = true;
    }
}

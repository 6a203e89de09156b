//! RESP: commands to operations. Replies leave in request order, whatever order shards answer in.

use super::Router;
use super::connection::{Connection, Execution, Hold};
use super::host_requests::Shape;
use super::slab::Place;
use super::waiter::Kind;
use crate::figure::{info_text, wants_section};
use crate::resp_connection::{self, Client, REDIS_VERSION, Ran, RespState, Server};
use crate::wire::msgpack_rpc as rpc;
use crate::wire::resp::{self, Command};
use crate::wire::scan::Scan;

/// The section of INFO that shards have to be asked for.
const KEYSPACE: &str = "Keyspace";

impl Router {
    /// Carries out every whole command of `bytes`; gives the number of bytes used up.
    pub(super) fn consume_resp(
        &mut self,
        place: Place,
        connection: &mut Connection,
        state: &mut RespState,
        bytes: &[u8],
    ) -> usize {
        let mut position = 0;
        if !self.go_on_executing(place, connection, state) {
            return position;
        }
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            if self.must_wait(connection) {
                connection.stalled = true;
                break;
            }
            if connection.authenticated
                && state.transaction.is_none()
                && let Some(fast) = resp::fast_incr(rest)
            {
                let ticket = connection.replies.push();
                self.route_incr(fast.key, fast.delta, self.settings.level, place, ticket, Kind::Incr);
                position += fast.len;
                state.scanner.reset();
                continue;
            }
            match state.scanner.scan(rest, self.frame_limits(connection)) {
                Ok(Scan::Complete(length)) => {
                    if !self.execute_resp(place, connection, state, &rest[..length]) {
                        break;
                    }
                    position += length;
                    if connection.closing || !self.go_on_executing(place, connection, state) {
                        break;
                    }
                }
                Ok(Scan::Incomplete) => break,
                Err(error) => {
                    self.core.statistics.protocol_errors += 1;
                    let mut text = Vec::new();
                    resp::write_protocol_error(&mut text, error);
                    connection.say(&text);
                    connection.closing = true;
                    break;
                }
            }
        }
        position
    }

    /// Carries out commands of a transaction, as far as they don't have to wait. False: some are left.
    fn go_on_executing(&mut self, place: Place, connection: &mut Connection, state: &mut RespState) -> bool {
        let Some(mut execution) = connection.execution.take() else { return true };
        while let Some(frame) = execution.frame() {
            if self.must_wait(connection) || !self.execute_resp(place, connection, state, frame) {
                connection.stalled = true;
                connection.execution = Some(execution);
                return false;
            }
            execution.advance();
        }
        true
    }

    /// Executes a command. False: it has to wait until all replies before it have left.
    fn execute_resp(&mut self, place: Place, connection: &mut Connection, state: &mut RespState, frame: &[u8]) -> bool {
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        let done = match resp_connection::take(state, connection.authenticated, frame, &mut text) {
            // They change how replies are written, and those before them are not written yet.
            Some(Command::Hello { .. } | Command::Reset) if connection.owes() => {
                connection.hold = Some(Hold::Replies);
                connection.stalled = true;
                false
            }
            Some(command) => {
                self.run_command(place, connection, state, &command, &mut text);
                true
            }
            None => true,
        };
        self.core.statistics.requests += u64::from(done);
        self.core.statistics.errors += u64::from(text.first() == Some(&b'-'));
        connection.say(&text);
        self.scratch = text;
        done
    }

    fn run_command(
        &mut self,
        place: Place,
        connection: &mut Connection,
        state: &mut RespState,
        command: &Command<'_>,
        text: &mut Vec<u8>,
    ) {
        let server = Server {
            token: self.settings.token.as_deref(),
            version: &self.settings.server_version,
            level: self.settings.level,
        };
        let mut client = Client {
            id: connection.id,
            authenticated: &mut connection.authenticated,
            closing: &mut connection.closing,
            refused_tokens: &mut self.core.statistics.refused_tokens,
        };
        match resp_connection::run(state, &mut client, &server, command, text) {
            Ran::Answered => {}
            Ran::Execute(transaction) => {
                // The commands' own replies are the array's elements.
                resp::write_array_len(text, transaction.lengths.len());
                connection.execution = Some(Execution::new(transaction));
            }
            Ran::Other => self.run_counter_command(place, connection, state, command, text),
        }
    }

    fn run_counter_command(
        &mut self,
        place: Place,
        connection: &mut Connection,
        state: &RespState,
        command: &Command<'_>,
        text: &mut Vec<u8>,
    ) {
        let mut params = Vec::new();
        let (method, shape) = match command {
            Command::IncrBy { key, delta } => {
                let ticket = connection.replies.push();
                return self.route_incr(key, *delta, self.settings.level, place, ticket, Kind::Incr);
            }
            Command::Get { key } if !self.is_out_of_reach(&[key]) => {
                let ticket = connection.replies.push();
                return self.read_one(key, place, ticket, true);
            }
            Command::MGet { keys } if !self.is_out_of_reach(keys) => {
                let ticket = connection.replies.push();
                return self.read_many(keys, place, ticket, true);
            }
            Command::Info { sections } if wants_section(sections, KEYSPACE) => {
                (write_keys(&mut params, "info", sections), Shape::Text)
            }
            Command::Info { sections } => return resp::write_text(text, state.version, &self.info(sections, "")),
            Command::Get { key } => (write_keys(&mut params, "get", &[key]), Shape::Value),
            Command::MGet { keys } => (write_keys(&mut params, "mget", keys), Shape::Values),
            Command::GetDel { key } => (write_keys(&mut params, "getdel", &[key]), Shape::Value),
            Command::Del { keys } => (write_keys(&mut params, "del", keys), Shape::Int),
            Command::Exists { keys } => (write_keys(&mut params, "exists", keys), Shape::Int),
            Command::Type { key } => (write_keys(&mut params, "type", &[key]), Shape::Type),
            Command::Set { key, value, get } => {
                rpc::write_array_len(&mut params, 3);
                rpc::write_bin(&mut params, key);
                rpc::write_i64(&mut params, *value);
                rpc::write_bool(&mut params, *get);
                ("set", if *get { Shape::Value } else { Shape::Ok })
            }
            Command::Scan { cursor, count, pattern, other_type } => {
                rpc::write_array_len(&mut params, 4);
                rpc::write_u64(&mut params, *cursor);
                rpc::write_u64(&mut params, *count as u64);
                match pattern {
                    Some(pattern) => rpc::write_bin(&mut params, pattern),
                    None => rpc::write_nil(&mut params),
                }
                rpc::write_bool(&mut params, *other_type);
                ("scan", Shape::Page)
            }
            Command::DbSize => (write_keys(&mut params, "dbsize", &[]), Shape::Int),
            // `resp_connection` did all others.
            _ => (write_keys(&mut params, "flushall", &[]), Shape::Ok),
        };
        self.ask_host(connection, method, shape, params, state.version);
    }

    /// INFO: what Redis's clients and dashboards know, then everything that `stats` says. What shards hold is asked by the
    /// host: `keyspace`.
    #[must_use]
    pub fn info(&self, sections: &[&[u8]], keyspace: &str) -> String {
        let process = format!(
            "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nprocess_id:{}\r\nuptime_in_seconds:{}\r\n",
            std::process::id(),
            (self.core.now_ms.saturating_sub(self.started_ms.unwrap_or(self.core.now_ms))) / 1000
        );
        let blocks = [
            ("Server", process),
            ("Clients", format!("connected_clients:{}\r\n", self.core.connections.len())),
            ("Persistence", "loading:0\r\naof_enabled:1\r\n".to_owned()),
            ("Replication", "role:master\r\nconnected_slaves:0\r\n".to_owned()),
            (KEYSPACE, keyspace.to_owned()),
        ];
        info_text(sections, &blocks, &self.stats())
    }
}

/// Params that are keys; gives the method back.
fn write_keys(params: &mut Vec<u8>, method: &'static str, keys: &[&[u8]]) -> &'static str {
    rpc::write_array_len(params, keys.len());
    for key in keys {
        rpc::write_bin(params, key);
    }
    method
}

//! RESP: commands to operations. Replies leave in request order, whatever order shards answer in.

use super::Router;
use super::connection::{Connection, Execution, Hold, Together};
use super::gather::Wanted;
use super::host_requests::Shape;
use super::slab::Place;
use super::waiter::Kind;
use super::whole_counters::What;
use crate::connection_input::Protocol;
use crate::error_code::ErrorCode;
use crate::figure::wants_section;
use crate::resp_connection::{
    self, Client, Clients, InfoFacts, Ran, RespState, Server, counter_bytes, write_clients, write_killed,
    write_killed_one,
};
use crate::wire::msgpack_rpc as rpc;
use crate::wire::resp::{self, ClientFilter, Command, words};
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
        if !state.unanswered.is_empty() && !connection.unread {
            let mut text = Vec::new();
            state.unanswered.write(&mut text);
            connection.say(&text);
            connection.stalled = !state.unanswered.is_empty();
            if connection.stalled {
                return position;
            }
        }
        while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
            if self.must_wait(connection) {
                connection.stalled = true;
                break;
            }
            if connection.authenticated
                && state.transaction.is_none()
                && matches!(connection.together, Together::Ordered)
                && let Some(fast) = resp::fast_incr(rest)
            {
                let ticket = connection.replies.push();
                self.route_incr(fast.key, fast.delta, self.settings.level, place, ticket, Kind::Incr);
                position += fast.len;
                state.scanner.reset();
                continue;
            }
            match state.scanner.scan(rest, self.frame_limits(connection)) {
                Ok(Scan::Complete(length)) if resp_connection::must_be_read_first(state, &rest[..length]) => {
                    connection.stalled = true;
                    break;
                }
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
                Err(_) if !state.unanswered.is_empty() => {
                    connection.stalled = true;
                    break;
                }
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
        let done = match resp_connection::take(state, connection.authenticated, connection.unread, frame, &mut text) {
            Some(command) if !connection.may_begin(&command) => {
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
            tokens: &self.settings.tokens,
            version: &self.settings.server_version,
            level: self.settings.level,
            port: &self.port,
            connections_max: self.settings.connections_max,
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
            Ran::Clients(clients) => self.run_clients(connection, state, &clients, text),
            Ran::Other => self.run_counter_command(place, connection, state, command, text),
        }
    }

    fn run_clients(&mut self, own: &mut Connection, state: &RespState, clients: &Clients<'_>, text: &mut Vec<u8>) {
        match clients {
            Clients::List(filter) => {
                let others = self.core.connections.iter().filter_map(|connection| match &connection.protocol {
                    Protocol::Resp(state) => Some((connection.id, &connection.peer, &**state)),
                    _ => None,
                });
                let all = others.chain([(own.id, &own.peer, state)]);
                let wanted = all.filter(|(id, peer, _)| filter.matches(*id, peer, own.id));
                write_clients(text, state.version, self.core.now_ms, wanted);
            }
            Clients::Kill(filter) => write_killed(text, self.kill(own, filter)),
            Clients::KillOne(filter) => write_killed_one(text, self.kill(own, filter)),
        }
    }

    /// Has connections of Redis clients closed once their replies have left; gives how many.
    fn kill(&mut self, own: &mut Connection, filter: &ClientFilter<'_>) -> usize {
        let is_meant = |connection: &Connection| {
            matches!(connection.protocol, Protocol::Resp(_))
                && !connection.closing
                && filter.matches(connection.id, &connection.peer, own.id)
        };
        let all = self.core.connections.places();
        let killed: Vec<Place> = all.filter(|(_, connection)| is_meant(connection)).map(|(place, _)| place).collect();
        for &place in &killed {
            let Some(mut connection) = self.core.connections.take(place) else { continue };
            connection.closing = true;
            connection.stalled = false;
            connection.drop_unfinished();
            self.count_input(&mut connection);
            self.core.connections.put_back(place, connection);
            self.core.call(place);
        }
        let is_own = filter.matches(own.id, &own.peer, own.id);
        own.closing |= is_own;
        killed.len() + usize::from(is_own)
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
            Command::Exists { keys } if !self.is_out_of_reach(keys) => {
                let ticket = connection.replies.push();
                return self.read_for(Wanted::Existing, keys, place, ticket);
            }
            Command::Type { key } if !self.is_out_of_reach(&[key]) => {
                let ticket = connection.replies.push();
                return self.read_for(Wanted::Type, &[key], place, ticket);
            }
            Command::Set { key, value, get, only_if: None } => {
                let what = What::Set { value: *value, get: *get };
                return self.begin_whole(place, connection, what, &[key], text);
            }
            Command::GetDel { key } => return self.begin_whole(place, connection, What::GetDel, &[key], text),
            Command::Del { keys } => return self.begin_whole(place, connection, What::Del, keys, text),
            Command::DbSize => match self.unreachable("DBSIZE") {
                Some(message) => return resp::write_error(text, ErrorCode::Unavailable, &message),
                None => return self.count_counters(place, connection),
            },
            Command::Info { sections } if wants_section(sections, KEYSPACE) => {
                (write_keys(&mut params, "info", sections), Shape::Text)
            }
            Command::Info { sections } => return resp::write_text(text, state.version, &self.info(sections, "")),
            Command::Get { key } => (write_keys(&mut params, "get", &[key]), Shape::Value),
            Command::MGet { keys } => (write_keys(&mut params, "mget", keys), Shape::Values),
            Command::Exists { keys } => (write_keys(&mut params, "exists", keys), Shape::Int),
            Command::Type { key } => (write_keys(&mut params, "type", &[key]), Shape::Type),
            Command::Set { only_if: Some(_), .. } | Command::SetNx { .. } => {
                return resp::write_command_error(text, &words::CONDITION_OF_SEVERAL);
            }
            Command::Strlen { key } => (write_keys(&mut params, "strlen", &[key]), Shape::Int),
            Command::Encoding { key } => (write_keys(&mut params, "type", &[key]), Shape::Encoding),
            Command::MemoryUsage { key } => {
                (write_keys(&mut params, "type", &[key]), Shape::Memory(counter_bytes(key)))
            }
            Command::Keys { pattern } => (write_keys(&mut params, "keys", &[pattern]), Shape::Keys),
            Command::RandomKey => (write_keys(&mut params, "randomkey", &[]), Shape::Value),
            Command::LastSave => (write_keys(&mut params, "lastsave", &[]), Shape::Int),
            Command::MSet { pairs } => {
                rpc::write_array_len(&mut params, pairs.len() * 2);
                for (key, value) in pairs {
                    rpc::write_bin(&mut params, key);
                    rpc::write_i64(&mut params, *value);
                }
                ("mset", Shape::Ok)
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
            // `resp_connection` did all others.
            _ => (write_keys(&mut params, "flushall", &[]), Shape::Ok),
        };
        self.ask_host(connection, method, shape, params, state.version);
    }

    /// INFO: what Redis's clients and dashboards know, then everything that `stats` says. What shards hold is asked by the
    /// host: `keyspace`.
    #[must_use]
    pub fn info(&self, sections: &[&[u8]], keyspace: &str) -> String {
        let own = &self.core.statistics;
        let facts = InfoFacts {
            port: &self.port,
            uptime_s: (self.core.now_ms.saturating_sub(self.started_ms.unwrap_or(self.core.now_ms))) / 1000,
            connections: self.core.connections.len(),
            connections_max: self.settings.connections_max,
            connections_total: own.connections_total,
            connections_refused: None,
            commands: own.commands(),
            commands_per_s: self.rate.per_s(),
            bytes_received: own.bytes_received,
            bytes_sent: own.bytes_sent,
            errors: own.errors,
            counters_bytes: None,
            persistence: String::new(),
            replication: "role:master\r\nconnected_slaves:0\r\n",
            keyspace: keyspace.to_owned(),
        };
        resp_connection::info(sections, &facts, &self.stats())
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

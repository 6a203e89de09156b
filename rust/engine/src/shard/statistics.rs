//! What a shard counts of itself, and how it tells it. Plain numbers: the loop thread is their only writer.

use super::Shard;
use crate::figure::{Figure, Figures, write_figures, write_pairs};
use crate::placement::foreign_list::ForeignList;
use crate::resp_connection::unix_now_s;
use crate::wire::msgpack_rpc as rpc;

/// Counted since the start of this run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Changes applied.
    pub changes: u64,
    /// Requests answered, plain increments not among them.
    pub requests: u64,
    /// Increments of RESP and MessagePack-RPC that came as runs, refused ones among them.
    pub increments: u64,
    /// Requests refused as a whole, plain increments among them.
    pub errors: u64,
    /// Connections closed for bytes that are no protocol's.
    pub protocol_errors: u64,
    /// Wrong or missing tokens.
    pub refused_tokens: u64,
    /// Connections accepted.
    pub connections_total: u64,
    /// Bytes read from sockets.
    pub bytes_received: u64,
    /// Bytes given to sockets.
    pub bytes_sent: u64,
}

/// What only the host can count, told by [`Shard::report`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFigures {
    /// Checkpoints made since the start of this run.
    pub checkpoints: u64,
    /// Failed attempts to make one.
    pub checkpoints_failed: u64,
    /// Why the last attempt failed, if it did.
    pub checkpoint_failure: Option<String>,
    /// Bytes of the log's files.
    pub log_bytes: u64,
    /// Connections refused because there were too many.
    pub connections_refused: u64,
}

impl Statistics {
    /// Requests of all kinds.
    pub(super) const fn commands(&self) -> u64 {
        self.requests + self.increments
    }
}

impl Shard {
    /// Takes what the host has counted, to be shown from now on.
    pub fn report(&mut self, figures: HostFigures) {
        if figures.checkpoints > self.host_figures.checkpoints {
            self.saved_at_s = unix_now_s();
        }
        self.host_figures = figures;
    }

    /// Everything worth knowing, by name.
    #[must_use]
    pub fn stats(&self) -> Figures {
        use Figure::{Number, Text};
        let sessions = self.state.sessions.stats();
        let ids = self.state.ids.stats();
        let journal = self.journal.statistics();
        let own = &self.statistics;
        let host = &self.host_figures;
        vec![
            ("shard", Text(self.identity.name.clone())),
            ("version", Text(self.settings.server_version.clone())),
            ("identity", Text(self.identity.identity.clone())),
            ("epoch", Number(self.identity.epoch)),
            ("level", Text(self.settings.level.name().to_owned())),
            ("uptime_ms", Number(self.uptime_ms)),
            ("counters", Number(self.state.counters.len() as u64)),
            ("counters_bytes", Number(self.state.counters.memory_bytes())),
            ("counters_bytes_max", Number(self.state.counters.bytes_max())),
            ("counters_foreign", Number(self.state.counters.foreign().map_or(0, ForeignList::len) as u64)),
            ("pending", Number(self.state.dirty.len() as u64)),
            ("changes", Number(own.changes)),
            ("requests", Number(own.requests)),
            ("errors", Number(own.errors)),
            ("protocol_errors", Number(own.protocol_errors)),
            ("refused_tokens", Number(own.refused_tokens)),
            ("connections", Number(self.connections.count as u64)),
            ("connections_total", Number(own.connections_total)),
            ("connections_refused", Number(host.connections_refused)),
            ("connections_waiting", Number(self.waiting.len() as u64)),
            ("held_bytes", Number(self.held_bytes as u64)),
            ("input_bytes", Number(self.input_bytes as u64)),
            ("bytes_received", Number(own.bytes_received)),
            ("bytes_sent", Number(own.bytes_sent)),
            ("sessions", Number(sessions.sessions as u64)),
            ("session_tombstones", Number(sessions.tombstones as u64)),
            ("session_bytes", Number(sessions.bytes as u64)),
            ("operation_ids", Number(ids.ids as u64)),
            ("operation_id_bytes", Number(ids.bytes as u64)),
            ("commits", Number(journal.commits)),
            ("commit_bytes", Number(journal.bytes)),
            ("commits_failed", Number(journal.failures)),
            ("append_us_max", Number(journal.append_ns_max / 1_000)),
            ("append_us_mean", Number(journal.append_ns_sum / journal.commits.max(1) / 1_000)),
            ("commit", Number(self.handed_over)),
            ("commit_durable", Number(self.journal.durable())),
            ("log_bytes", Number(host.log_bytes)),
            ("torn_bytes", Number(self.torn_bytes)),
            ("last_save", Number(self.saved_at_s)),
            ("checkpoints", Number(host.checkpoints)),
            ("checkpoints_failed", Number(host.checkpoints_failed)),
        ]
    }

    /// `ok`, or `read_only` with the reason; and why the last checkpoint failed, if it did.
    #[must_use]
    pub fn health(&self) -> Figures {
        if let Some(following) = self.following.as_deref() {
            return self.replica_health(following);
        }
        let failure = self.journal.failure();
        let mut health = vec![
            ("name", Figure::Text(self.identity.name.clone())),
            ("identity", Figure::Text(self.identity.identity.clone())),
            ("epoch", Figure::Number(self.identity.epoch)),
            ("state", Figure::Text(if failure.is_some() { "read_only" } else { "ok" }.to_owned())),
            ("commit_durable", Figure::Number(self.journal.durable())),
            ("pending", Figure::Number(self.state.dirty.len() as u64)),
        ];
        if let Some(reason) = failure {
            health.push(("reason", Figure::Text(reason)));
        }
        if let Some(reason) = &self.host_figures.checkpoint_failure {
            health.push(("checkpoint_failure", Figure::Text(reason.clone())));
        }
        health
    }

    pub(super) fn write_stats(&self, out: &mut Vec<u8>) {
        write_figures(out, &self.stats());
    }

    /// With `foreign_from`, also a part of the list of foreign counters.
    pub(super) fn write_health(&self, out: &mut Vec<u8>, foreign_from: Option<u64>) {
        let health = self.health();
        let Some(from) = foreign_from else { return write_figures(out, &health) };
        rpc::write_map_len(out, health.len() + 1);
        write_pairs(out, &health);
        let list = self.state.counters.foreign();
        let (from, hashes) = list.map_or((0, &[][..]), |list| list.part(from));
        rpc::write_str(out, "foreign");
        rpc::write_map_len(out, 4);
        rpc::write_str(out, "count");
        rpc::write_u64(out, list.map_or(0, ForeignList::len) as u64);
        rpc::write_str(out, "from");
        rpc::write_u64(out, from);
        rpc::write_str(out, "hashes");
        rpc::write_bin(out, hashes);
        rpc::write_str(out, "all");
        rpc::write_bool(out, list.is_some_and(ForeignList::is_full));
    }
}

//! INFO: sections that Redis's clients and dashboards read, then PyCounter's own figures.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::OnceLock;

use super::REDIS_VERSION;
use super::process_figures::ProcessFigures;
use crate::figure::{Figure, info_text};

/// What a shard and a coordinator each know of themselves.
#[derive(Debug)]
pub(crate) struct InfoFacts<'a> {
    /// Of the address, as text; empty where none is known.
    pub(crate) port: &'a str,
    pub(crate) uptime_s: u64,
    pub(crate) connections: usize,
    pub(crate) connections_max: usize,
    pub(crate) connections_total: u64,
    /// `None`: the host counts them.
    pub(crate) connections_refused: Option<u64>,
    /// Requests of all kinds, each increment counted.
    pub(crate) commands: u64,
    pub(crate) commands_per_s: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) errors: u64,
    /// Memory of the counters.
    pub(crate) counters_bytes: Option<u64>,
    /// Further lines of Persistence.
    pub(crate) persistence: String,
    /// The lines of Replication.
    pub(crate) replication: &'a str,
    /// The lines of Keyspace.
    pub(crate) keyspace: String,
}

/// INFO's text; of the `sections` asked for.
pub(crate) fn info(sections: &[&[u8]], facts: &InfoFacts<'_>, figures: &[(&'static str, Figure)]) -> String {
    let process = ProcessFigures::read();
    let blocks = [
        (
            "Server",
            format!(
                "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nos:Linux\r\narch_bits:{}\r\nprocess_id:{}\r\nrun_id:{}\r\ntcp_port:{}\r\nserver_time_usec:{}\r\nuptime_in_seconds:{}\r\nuptime_in_days:{}\r\n",
                usize::BITS,
                std::process::id(),
                run_id(),
                if facts.port.is_empty() { "0" } else { facts.port },
                unix_now_us(),
                facts.uptime_s,
                facts.uptime_s / 86_400,
            ),
        ),
        (
            "Clients",
            format!(
                "connected_clients:{}\r\nmaxclients:{}\r\nblocked_clients:0\r\n",
                facts.connections, facts.connections_max
            ),
        ),
        ("Memory", memory(&process, facts.counters_bytes)),
        (
            "Persistence",
            format!(
                "loading:0\r\nrdb_bgsave_in_progress:0\r\naof_enabled:1\r\naof_rewrite_in_progress:0\r\n{}",
                facts.persistence
            ),
        ),
        ("Stats", stats(facts)),
        ("Replication", facts.replication.to_owned()),
        (
            "CPU",
            format!(
                "used_cpu_sys:{:.6}\r\nused_cpu_user:{:.6}\r\n",
                process.cpu_system.as_secs_f64(),
                process.cpu_user.as_secs_f64()
            ),
        ),
        ("Cluster", "cluster_enabled:0\r\n".to_owned()),
        ("Keyspace", facts.keyspace.clone()),
    ];
    info_text(sections, &blocks, figures)
}

fn memory(process: &ProcessFigures, counters_bytes: Option<u64>) -> String {
    let mut text = format!(
        "used_memory:{0}\r\nused_memory_human:{1}\r\nused_memory_rss:{0}\r\nused_memory_rss_human:{1}\r\nused_memory_peak:{2}\r\nused_memory_peak_human:{3}\r\n",
        process.memory_bytes,
        human(process.memory_bytes),
        process.memory_peak_bytes,
        human(process.memory_peak_bytes),
    );
    if let Some(bytes) = counters_bytes {
        let _ = write!(text, "used_memory_dataset:{bytes}\r\n");
    }
    text.push_str("maxmemory:0\r\nmaxmemory_policy:noeviction\r\n");
    text
}

fn stats(facts: &InfoFacts<'_>) -> String {
    let mut text = format!(
        "total_connections_received:{}\r\ntotal_commands_processed:{}\r\ninstantaneous_ops_per_sec:{}\r\ntotal_net_input_bytes:{}\r\ntotal_net_output_bytes:{}\r\n",
        facts.connections_total, facts.commands, facts.commands_per_s, facts.bytes_received, facts.bytes_sent,
    );
    if let Some(refused) = facts.connections_refused {
        let _ = write!(text, "rejected_connections:{refused}\r\n");
    }
    let _ = write!(
        text,
        "expired_keys:0\r\nevicted_keys:0\r\npubsub_channels:0\r\npubsub_patterns:0\r\ntotal_error_replies:{}\r\n",
        facts.errors
    );
    text
}

/// As Redis writes it: 1.50M.
fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "K", "M"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes}B") } else { format!("{value:.2}{unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.2}G")
}

fn unix_now_us() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_micros()
}

/// 40 hexadecimal digits that differ between runs.
fn run_id() -> &'static str {
    static RUN_ID: OnceLock<String> = OnceLock::new();
    RUN_ID.get_or_init(|| {
        let mut bytes = [0_u8; 20];
        // Without randomness it is the same for all; it tells runs apart, and nothing depends on it.
        let _ = getrandom::fill(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    })
}

/// How fast a count has grown lately.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    /// Times in milliseconds and counts, the oldest first.
    samples: VecDeque<(u64, u64)>,
}

impl Rate {
    const SAMPLES_MAX: usize = 16;
    const INTERVAL_MS: u64 = 100;

    /// To be told often.
    pub(crate) fn note(&mut self, now_ms: u64, count: u64) {
        if self.samples.back().is_some_and(|&(last, _)| now_ms < last + Self::INTERVAL_MS) {
            return;
        }
        if self.samples.len() == Self::SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now_ms, count));
    }

    /// A second, over the last one and a half.
    pub(crate) fn per_s(&self) -> u64 {
        let (Some((from_ms, from)), Some((to_ms, to))) = (self.samples.front(), self.samples.back()) else { return 0 };
        to.saturating_sub(*from).saturating_mul(1000) / to_ms.saturating_sub(*from_ms).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_forgets_what_was_long_ago() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_s(), 0);
        for step in 0..100 {
            rate.note(step * 100, step * 50);
            rate.note(step * 100 + 1, step * 50 + 7);
        }
        assert_eq!(rate.per_s(), 500);
        for step in 100..200 {
            rate.note(step * 100, 99 * 50);
        }
        assert_eq!(rate.per_s(), 0);
    }

    #[test]
    fn bytes_are_shown_as_redis_shows_them() {
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1536, "1.50K"), (3 << 20, "3.00M"), (5 << 30, "5.00G")] {
            assert_eq!(human(bytes), text);
        }
    }
}

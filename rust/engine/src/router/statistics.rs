//! What a router counts of itself, and how long shards take.

use super::Router;
use crate::error_code::ErrorCode;
use crate::figure::{Figure, Figures};

/// Counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Increments passed to shards.
    pub increments: u64,
    /// Of them those that another shard than the home took.
    pub diverted: u64,
    /// Counters read at shards.
    pub reads: u64,
    /// Reads that the cache answered.
    pub cached_reads: u64,
    /// Requests that aren't increments.
    pub requests: u64,
    /// Commands that needed counters whole: SET, GETDEL, DEL, `delete_many`.
    pub whole_commands: u64,
    /// Requests that the host answers.
    pub host_requests: u64,
    /// Requests answered by an error.
    pub errors: u64,
    /// Operations refused because a shard's queue was full.
    pub overloaded: u64,
    /// Connections closed for bytes that are no protocol's.
    pub protocol_errors: u64,
    /// Wrong or missing tokens.
    pub refused_tokens: u64,
    /// Connections accepted.
    pub connections_total: u64,
    /// Bytes read from clients.
    pub bytes_received: u64,
    /// Bytes given to clients.
    pub bytes_sent: u64,
}

impl Statistics {
    /// Requests of all kinds.
    pub(super) const fn commands(&self) -> u64 {
        self.requests + self.increments
    }
}

/// How long a shard took to answer, and whether by an error that speaks of its health.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Which.
    pub shard: usize,
    /// Milliseconds.
    pub latency_ms: f64,
    /// No error.
    pub ok: bool,
}

/// Times one request of a shard at a time. Answers come nearly in order: what was asked for when the watch was
/// started is answered when as many answers have come.
#[derive(Debug, Clone, Default)]
pub(super) struct Stopwatch {
    /// Operations given to the link.
    pub(super) asked: u64,
    /// Operations answered, or given up.
    pub(super) answered: u64,
    /// Answers that stop the watch, and when it was started.
    running: Option<(u64, f64)>,
    /// Errors since the last sample.
    errors: u32,
}

impl Stopwatch {
    /// Something is about to be sent.
    pub(super) fn start(&mut self, now_ms: f64) {
        if self.running.is_none() && self.asked > self.answered {
            self.running = Some((self.asked, now_ms));
        }
    }

    /// Gives latency, and whether there was no error, if that is known now. `heard`: the shard has sent something.
    pub(super) fn look(&mut self, now_ms: f64, heard: bool) -> Option<(f64, bool)> {
        let (until, started) = self.running?;
        let errors = std::mem::take(&mut self.errors);
        let is_over = self.answered >= until;
        if is_over {
            self.running = None;
        }
        // What was given up, or taken away, is over too, and says nothing for the shard.
        let is_known = errors > 0 || (is_over && heard);
        is_known.then(|| ((now_ms - started).max(0.0), errors == 0))
    }

    /// An error came: one that tells that the shard isn't well counts.
    pub(super) fn note_error(&mut self, code: ErrorCode) {
        self.errors += u32::from(matches!(
            code,
            ErrorCode::Unavailable
                | ErrorCode::Deadline
                | ErrorCode::UnknownOutcome
                | ErrorCode::ReadOnly
                | ErrorCode::Storage
                | ErrorCode::Internal
        ));
    }
}

impl Router {
    /// Everything worth knowing, by name.
    #[must_use]
    pub fn stats(&self) -> Figures {
        use Figure::{Number, Text};
        let core = &self.core;
        let own = &core.statistics;
        let under_way = core.stopwatches.iter().map(|watch| watch.asked.saturating_sub(watch.answered)).sum();
        vec![
            ("name", Text(self.settings.name.clone())),
            ("version", Text(self.settings.server_version.clone())),
            ("identity", Text(self.settings.identity.clone())),
            ("level", Text(self.settings.level.name().to_owned())),
            ("shards", Number(self.links.len() as u64)),
            ("increments", Number(own.increments)),
            ("diverted", Number(own.diverted)),
            ("reads", Number(own.reads)),
            ("cached_reads", Number(own.cached_reads)),
            ("requests", Number(own.requests)),
            ("whole_commands", Number(own.whole_commands)),
            ("host_requests", Number(own.host_requests)),
            ("errors", Number(own.errors)),
            ("overloaded", Number(own.overloaded)),
            ("protocol_errors", Number(own.protocol_errors)),
            ("refused_tokens", Number(own.refused_tokens)),
            ("connections", Number(core.connections.len() as u64)),
            ("connections_total", Number(own.connections_total)),
            ("under_way", Number(under_way)),
            ("held_bytes", Number(core.held_bytes as u64)),
            ("input_bytes", Number(self.input_bytes as u64)),
            ("bytes_received", Number(own.bytes_received)),
            ("bytes_sent", Number(own.bytes_sent)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(asked: u64) -> Stopwatch {
        let mut watch = Stopwatch { asked, ..Stopwatch::default() };
        watch.start(100.0);
        watch
    }

    #[test]
    fn a_sample_is_taken_when_what_was_asked_is_answered() {
        let mut watch = running(3);
        watch.answered = 2;
        assert_eq!(watch.look(101.0, true), None);
        watch.answered = 3;
        assert_eq!(watch.look(102.0, true), Some((2.0, true)));
        assert_eq!(watch.look(103.0, true), None);
    }

    #[test]
    fn what_a_silent_shard_never_answered_is_no_good_sample() {
        let mut watch = running(3);
        // Given up without an error, or taken away to be given to another shard.
        watch.answered = 3;
        assert_eq!(watch.look(2100.0, false), None);
        watch.asked = 4;
        watch.start(2200.0);
        watch.note_error(ErrorCode::Deadline);
        assert_eq!(watch.look(4200.0, false), Some((2000.0, false)));
        watch.answered = 4;
        assert_eq!(watch.look(4300.0, false), None);
    }
}

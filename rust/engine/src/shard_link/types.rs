//! What the owner of a [`ShardLink`](super::ShardLink) sets, is told, and can count.

use std::sync::Arc;

use crate::error_code::ErrorCode;
use crate::limits::SESSION_ID_BYTES;
use crate::wire::request::{Level, SessionId};

/// What became of an operation, told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// An increment counted.
    Value {
        /// The counter's value after, at this shard.
        value: i64,
        /// How safe it is.
        level: Level,
        /// The commit that covers it.
        commit: u64,
    },
    /// An increment was refused, or an operation has no outcome that could be told; the code says which.
    Error {
        /// Why.
        code: ErrorCode,
        /// For people.
        message: &'a str,
    },
    /// The result of a call, encoded as MessagePack.
    Reply(&'a [u8]),
    /// The same of a change that was sent before and not answered then. What the result says was refused for now may still
    /// count: the earlier attempt may be on its way.
    ReplyAgain(&'a [u8]),
    /// The shard's error to a call, `code: message`, as it came.
    ErrorText(&'a str),
}

/// What may be done with a call whose reply never came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Send it again: it changes nothing.
    Always,
    /// A change under an operation id: send it again to the shard of the same identity, as long as that keeps the id.
    SameShard {
        /// Milliseconds, of the same clock as everything.
        until_ms: u64,
    },
    /// Nothing: `unknown_outcome`.
    Never,
}

/// Settings of a link. Times are milliseconds.
#[derive(Clone)]
pub struct LinkSettings {
    /// The shard's, if it has one.
    pub token: Option<Vec<u8>>,
    /// The client's name in `hello`.
    pub client: String,
    /// The name of the shard, where a coordinator is to connect to it.
    pub passage_to: Option<String>,
    /// Operations in one `apply`.
    pub batch_operations_max: usize,
    /// Bytes of the items in one `apply`; below the shard's limit on frames, which is 1 MiB by default.
    pub batch_bytes_max: usize,
    /// Batches that are sent and not answered. While so many are, increments gather.
    pub batches_in_flight_max: usize,
    /// Numbered and unsettled operations; below the shard's bound on results kept for a session, 10,000 by default.
    pub window_operations_max: usize,
    /// Memory of all that is accepted and not settled.
    pub queue_bytes_max: usize,
    /// One reply; a shard that sends more is not believed.
    pub reply_bytes_max: usize,
    /// The first pause after the shard refused something for now; each further one is twice as long.
    pub backoff_first_ms: u64,
    /// The longest pause.
    pub backoff_max_ms: u64,
    /// So often it is asked whether what was acknowledged at `applied` is durable by now.
    pub confirm_interval_ms: u64,
    /// With requests in flight and no byte received for so long, the connection is to be given up.
    pub silence_timeout_ms: u64,
    /// Without an answer for so long the shard may have forgotten the session; below the shard's 7 days.
    pub session_window_ms: u64,
    /// Operations acknowledged at `applied` and not known to be durable. At half of it the shard is asked what is
    /// durable; at all of it nothing is sent until some are.
    pub unconfirmed_operations_max: u64,
    /// While others are in flight, increments wait at most this long for company; 0: they never wait.
    pub gather_ms: u64,
    /// Company enough: with so many gathered they leave at once.
    pub gather_operations_max: usize,
    /// Do calls overtake increments that were never sent? Where callers wait for each answer, nobody needs their order.
    pub calls_overtake: bool,
    /// Are operations named by key and delta when they are lost, given up or unknown? It takes memory for those that
    /// are not known to be durable.
    pub names_operations: bool,
    /// Samples of batches that are kept until they are taken; 0: none.
    pub samples_max: usize,
    /// Never gives the same twice.
    pub new_session_id: Arc<dyn Fn() -> SessionId + Send + Sync>,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            token: None,
            client: "coordinator".into(),
            passage_to: None,
            batch_operations_max: 1000,
            batch_bytes_max: 512 << 10,
            batches_in_flight_max: 8,
            window_operations_max: 9000,
            queue_bytes_max: 64 << 20,
            reply_bytes_max: 64 << 20,
            backoff_first_ms: 50,
            backoff_max_ms: 1000,
            confirm_interval_ms: 1000,
            silence_timeout_ms: 30_000,
            session_window_ms: 6 * 24 * 3_600_000,
            unconfirmed_operations_max: u64::MAX,
            gather_ms: 0,
            gather_operations_max: 1000,
            calls_overtake: false,
            names_operations: false,
            samples_max: 0,
            new_session_id: Arc::new(random_session_id),
        }
    }
}

impl std::fmt::Debug for LinkSettings {
    /// Without the token.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LinkSettings").field("client", &self.client).finish_non_exhaustive()
    }
}

/// 128 bits from the system's source of chance.
fn random_session_id() -> SessionId {
    let mut id = [0; SESSION_ID_BYTES];
    // Linux's source of chance doesn't fail once the system has booted; a session id that isn't unique counts wrongly.
    getrandom::fill(&mut id).expect("the system has no random numbers");
    SessionId(id)
}

/// Figures since the link was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStatistics {
    /// Increments accepted.
    pub operations: u64,
    /// Unsettled operations that were sent at least once.
    pub operations_sent: u64,
    /// Increments that were answered with a value.
    pub operations_succeeded: u64,
    /// Increments that failed: answered with an error, refused with their batch, given up, or never sent in time.
    pub operations_failed: u64,
    /// Increments that the shard answered, each with a value or an error of its own.
    pub operations_settled: u64,
    /// Increments of which nobody can tell whether they counted, or, at `applied`, whether they lasted.
    pub operations_unknown: u64,
    /// Increments that were acknowledged at `applied` and lost in a crash of the shard.
    pub operations_lost: u64,
    /// Increments sent again.
    pub operations_resent: u64,
    /// Increments taken back by `take_unsent`.
    pub operations_taken: u64,
    /// Batches sent for the first time.
    pub batches: u64,
    /// Batches sent again.
    pub batches_resent: u64,
    /// Batches that the shard refused whole.
    pub batches_refused: u64,
    /// Calls accepted.
    pub calls: u64,
    /// Calls sent again.
    pub calls_resent: u64,
    /// Operations whose deadline passed before they were sent: nothing was applied.
    pub expired_unsent: u64,
    /// Operations whose deadline passed after they were sent.
    pub expired_sent: u64,
    /// Sessions that had to be begun after the first.
    pub sessions_renewed: u64,
    /// Connections on which the shard said who it is.
    pub greetings: u64,
    /// Connections that ended.
    pub losses: u64,
}

/// Why a connection can't be used: close it, and call `lost`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkViolation {
    /// These bytes are no reply to what was asked.
    #[error("the shard sent nonsense: {0}")]
    Nonsense(&'static str),
    /// The shard refused to be greeted: `code: message`.
    #[error("the shard refused the greeting: {0}")]
    Refused(String),
    /// Another shard answers at this address.
    #[error("the shard is {found}, not {expected}")]
    WrongShard {
        /// Who answered.
        found: String,
        /// Who should have.
        expected: String,
    },
}

/// Operations that were acknowledged at `applied` and lost in a crash of the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostTail {
    /// Of which session.
    pub session: SessionId,
    /// The first number that is lost.
    pub first_sequence: u64,
    /// The last one.
    pub last_sequence: u64,
    /// How many of the operations between counted.
    pub count: u64,
    /// Their keys and deltas, where the settings say that operations are named.
    pub operations: Vec<(Vec<u8>, i64)>,
}

/// What became of an operation for which nobody waited any more, other than that it counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// Of which counter.
    pub key: Vec<u8>,
    /// How much.
    pub delta: i64,
    /// When it was first sent.
    pub sent_at_ms: u64,
    /// Can nobody tell whether it counted? It didn't count otherwise.
    pub is_unknown: bool,
}

/// How a batch fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSample {
    /// From when it was sent until it was answered, or the connection ended.
    pub latency_us: u64,
    /// Why it was refused; `Unavailable` if the connection ended.
    pub failure: Option<ErrorCode>,
}

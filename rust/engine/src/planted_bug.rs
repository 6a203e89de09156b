//! Bugs planted on purpose, to show that the crash tests see them. Without the cargo feature `planted-bugs` there are
//! none: [`is_planted`] is a constant, and what depends on it is not compiled in. With it, the environment names one.

use crate::journal::entry::Entry;
use crate::wire::request::Level;

/// One way of breaking a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// Replies don't wait for the commit that covers them.
    ReplyBeforeCommit,
    /// Commits carry counters, but not the sessions whose operations changed them.
    SessionRowsLeftOut,
    /// A checkpoint forgets the results of sessions and operation ids.
    ResultsLostAtCheckpoint,
    /// A repeated operation is answered although the commit with its first application is still on its way.
    DuplicateAnsweredBeforeItsCommit,
    /// The read cache keeps a value whose load began before a write.
    CacheFilledByEarlierLoad,
    /// After a lost connection a link goes on under a new session.
    LinkRenewsSession,
    /// What was in flight when a link's connection broke is not sent again.
    LinkForgetsSent,
    /// What was in flight when a link's connection broke is taken for never sent.
    LinkTakesSentForUnsent,
    /// A lost tail of applied operations is not reported.
    LinkHidesLostTail,
    /// What a link's shard acknowledged at `applied` counts as durable at once.
    LinkTrustsApplied,
    /// A batch of increments answers its callers in the wrong order.
    LinkMixesAnswers,
    /// A batch that is settled leaves no room for others.
    LinkLeavesNoRoom,
    /// A shard may be silent for ever.
    LinkWaitsForever,
    /// An operation that was sent goes to another shard when its own falls ill.
    LinkDivertsSent,
    /// A refusal settles an operation of which an earlier attempt is unanswered.
    LinkTrustsRefusals,
}

impl PlantedBug {
    /// Every bug, by the name that the environment gives it.
    pub const ALL: [(&'static str, PlantedBug); 15] = [
        ("reply_before_commit", PlantedBug::ReplyBeforeCommit),
        ("session_rows_left_out", PlantedBug::SessionRowsLeftOut),
        ("results_lost_at_checkpoint", PlantedBug::ResultsLostAtCheckpoint),
        ("duplicate_answered_before_its_commit", PlantedBug::DuplicateAnsweredBeforeItsCommit),
        ("cache_filled_by_earlier_load", PlantedBug::CacheFilledByEarlierLoad),
        ("link_renews_session", PlantedBug::LinkRenewsSession),
        ("link_forgets_sent", PlantedBug::LinkForgetsSent),
        ("link_takes_sent_for_unsent", PlantedBug::LinkTakesSentForUnsent),
        ("link_hides_lost_tail", PlantedBug::LinkHidesLostTail),
        ("link_trusts_applied", PlantedBug::LinkTrustsApplied),
        ("link_mixes_answers", PlantedBug::LinkMixesAnswers),
        ("link_leaves_no_room", PlantedBug::LinkLeavesNoRoom),
        ("link_waits_forever", PlantedBug::LinkWaitsForever),
        ("link_diverts_sent", PlantedBug::LinkDivertsSent),
        ("link_trusts_refusals", PlantedBug::LinkTrustsRefusals),
    ];
}

/// Does this build break that promise?
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
pub const fn is_planted(_: PlantedBug) -> bool {
    false
}

/// Does this build break that promise?
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is_planted(bug: PlantedBug) -> bool {
    environment::read().0 == Some(bug)
}

/// Stops the commit thread for as long as the environment says, so that a kill meets commits that are not yet written.
#[cfg(feature = "planted-bugs")]
pub fn delay_append() {
    std::thread::sleep(environment::read().1);
}

/// Stops nobody in this build.
#[cfg(not(feature = "planted-bugs"))]
pub const fn delay_append() {}

/// The level at which a reply is given: a planted bug lowers it for repeated operations.
#[must_use]
pub fn level_of(level: Level, is_repeated: impl FnOnce() -> bool) -> Level {
    let is_lowered = is_planted(PlantedBug::DuplicateAnsweredBeforeItsCommit) && is_repeated();
    if is_lowered { Level::Applied } else { level }
}

/// What a checkpoint that loses results keeps of an entry.
#[must_use]
pub fn without_results<'e>(entry: &Entry<'e>) -> Option<Entry<'e>> {
    match entry.clone() {
        Entry::OperationId { .. } => None,
        // As if the client had acknowledged all of them.
        Entry::Session { session, first_sequence, used_ms, results, .. } => {
            let next_sequence = first_sequence.saturating_add(results.len() as u64);
            let acked_through = next_sequence.saturating_sub(1);
            Some(Entry::Session { session, acked_through, first_sequence: next_sequence, used_ms, results: Vec::new() })
        }
        other => Some(other),
    }
}

#[cfg(feature = "planted-bugs")]
mod environment {
    use super::PlantedBug;
    use std::sync::OnceLock;
    use std::time::Duration;

    /// The bug and the delay, read once. A bug's name that is none ends the process: a test would pass by mistake.
    pub(super) fn read() -> (Option<PlantedBug>, Duration) {
        static READ: OnceLock<(Option<PlantedBug>, Duration)> = OnceLock::new();
        *READ.get_or_init(|| {
            let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            let bug = variable("PYCOUNTER_PLANTED_BUG").map(|name| {
                let known = PlantedBug::ALL.into_iter().find(|&(known, _)| known == name);
                known.unwrap_or_else(|| panic!("PYCOUNTER_PLANTED_BUG is {name:?}, which is no planted bug")).1
            });
            let delay = variable("PYCOUNTER_PLANTED_DELAY_MS").and_then(|delay| delay.parse().ok());
            (bug, Duration::from_millis(delay.unwrap_or(0)))
        })
    }
}

//! What a link knows and tells when it is asked.

use super::batches::Waiting;
use super::queue::Entry;
use super::types::{GivenUp, LinkSample, LinkStatistics, LostTail};
use super::{ShardLink, Stage};
use crate::wire::request::SessionId;

impl<T> ShardLink<T> {
    /// Is it connected, and has the shard said who it is and where the session is?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// The shard's, 32 hexadecimal digits; `None` before it was met.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// The shard's, which rises with each start of its process.
    #[must_use]
    pub const fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// The newest commit of this shard that holds an increment of the session, as far as it was answered, or another
    /// change that was noted; 0: none.
    #[must_use]
    pub const fn commit_seen(&self) -> u64 {
        self.commit_seen
    }

    /// The shard answered a call that changed something with this commit.
    pub fn note_commit(&mut self, commit: u64) {
        self.commit_seen = self.commit_seen.max(commit);
    }

    /// Why the last connection ended or couldn't be made, or what the shard last refused for now; may be empty.
    #[must_use]
    pub fn last_error(&self) -> &str {
        &self.last_error
    }

    /// Figures since it was made.
    #[must_use]
    pub const fn statistics(&self) -> LinkStatistics {
        self.session.statistics
    }

    /// The share of the latest operations that didn't fail with their batch, and that were sent in time; 1.0 where there
    /// are none.
    #[must_use]
    pub fn success_rate(&self) -> f64 {
        self.session.reports.success_rate()
    }

    /// Increments that were sent and are not answered.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.session.window().filter(|batch| !batch.is_answered).map(|batch| batch.count).sum()
    }

    /// Increments that were acknowledged at `applied` and are not known to be durable.
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.session.unconfirmed_operations()
    }

    /// When the oldest batch that is in flight was sent, in microseconds.
    #[must_use]
    pub fn in_flight_since_us(&self) -> Option<u64> {
        self.session.window().filter(|batch| batch.in_flight).map(|batch| batch.launched_at_us).min()
    }

    /// Each increment that was sent and whose outcome nobody knows now, because an attempt was never answered or nobody
    /// waits for it any more: key, delta, when it was first sent in milliseconds, and the mark of its batch. A mark that is
    /// not told any more is settled.
    pub fn unknown(&self, mut tell: impl FnMut(&[u8], i64, u64, u64)) {
        let queued = self.queue.iter().filter_map(|entry| match entry {
            Entry::Batch(batch) => Some(batch),
            Entry::Call(_) => None,
        });
        for batch in self.session.window().chain(queued).filter(|batch| batch.is_ambiguous || batch.abandoned > 0) {
            let is_unknown = |one: &Waiting<T>| batch.is_ambiguous || one.waiter.is_none();
            for (key, delta, _) in batch.iter().filter(|(_, _, one)| is_unknown(one)) {
                tell(key, delta, batch.sent_at_ms, batch.mark);
            }
        }
    }

    /// What time it was last said to be, in microseconds.
    #[must_use]
    pub const fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Is there anything to take by the next three?
    #[must_use]
    pub fn has_reports(&self) -> bool {
        let reports = &self.session.reports;
        !(reports.lost.is_empty() && reports.given_up.is_empty() && reports.samples.is_empty())
    }

    /// What was lost since the last call.
    pub fn take_lost(&mut self) -> Vec<LostTail> {
        std::mem::take(&mut self.session.reports.lost)
    }

    /// What was given up since the last call while nobody waited for it.
    pub fn take_given_up(&mut self) -> Vec<GivenUp> {
        std::mem::take(&mut self.session.reports.given_up).into()
    }

    /// How batches fared since the last call.
    pub fn take_samples(&mut self) -> Vec<LinkSample> {
        std::mem::take(&mut self.session.reports.samples)
    }

    /// The present session's id.
    #[must_use]
    pub const fn session_id(&self) -> SessionId {
        self.session.id
    }
}

//! Bounds and windows of the session table, and what follows from them for one batch.

use crate::error_code::ErrorCode;
use crate::session_table::row::RESULT_BYTES;

/// Least room for results, once there is one.
pub(super) const RESULTS_CAPACITY_MIN: usize = 4;

/// Bounds and windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionSettings {
    /// Most live sessions.
    pub sessions_max: usize,
    /// Most unacknowledged results of one session.
    pub results_per_session_max: usize,
    /// Most bytes of rows, results and tombstones together.
    pub table_bytes_max: usize,
    /// A session unused for less is never forgotten.
    pub session_window_ms: u64,
    /// An ended session is remembered for at least so long.
    pub tombstone_window_ms: u64,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            sessions_max: 100_000,
            results_per_session_max: 10_000,
            table_bytes_max: 256 << 20,
            session_window_ms: 7 * 24 * 3600 * 1000,
            tombstone_window_ms: 120_000,
        }
    }
}

impl SessionSettings {
    /// May a tombstone be dropped? The table and the pages both ask this.
    #[must_use]
    pub fn tombstone_has_expired(&self, ended_ms: u64, now_ms: u64) -> bool {
        // At least 1: a new life of the same id must be later than the tombstone of the old one.
        now_ms >= ended_ms.saturating_add(self.tombstone_window_ms.max(1))
    }

    /// A use that is newer than the journaled one by this much is journaled.
    pub(super) fn refresh_ms(&self) -> u64 {
        self.session_window_ms / 64
    }

    /// Is a session over whose last journaled use was at `used_ms`? The table and the pages both ask this, the
    /// pages at the uptime that they are folded to. Even if later uses were not journaled, it was unused for the
    /// window.
    #[must_use]
    pub fn session_has_expired(&self, used_ms: u64, now_ms: u64) -> bool {
        now_ms >= used_ms.saturating_add(self.session_window_ms).saturating_add(self.refresh_ms()).saturating_add(1)
    }

    /// The room to give a session that needs `needed` results, `new_count` of them new, and has room for
    /// `capacity`; `others_bytes` is what the rest of the table takes.
    pub(super) fn room_for(
        &self,
        needed: usize,
        new_count: usize,
        capacity: usize,
        others_bytes: usize,
    ) -> Result<usize, ErrorCode> {
        if new_count > self.results_per_session_max {
            return Err(ErrorCode::TooLarge);
        }
        if needed > self.results_per_session_max {
            return Err(ErrorCode::Overloaded);
        }
        if needed <= capacity {
            return Ok(capacity);
        }
        let generous = needed.max(capacity + capacity / 2).max(RESULTS_CAPACITY_MIN);
        let fits = |capacity: usize| others_bytes + capacity * RESULT_BYTES <= self.table_bytes_max;
        [generous.min(self.results_per_session_max), needed]
            .into_iter()
            .find(|&capacity| fits(capacity))
            .ok_or(ErrorCode::Overloaded)
    }
}

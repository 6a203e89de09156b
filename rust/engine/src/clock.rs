//! The clock of a shard: the system's, or one that a simulation sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a shard asks for the time. Clones show the same.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<SetClock>>);

#[derive(Debug)]
struct SetClock {
    began: Instant,
    /// Since then. Relaxed: a number, which leads to nothing else.
    nanoseconds: AtomicU64,
}

impl Clock {
    /// The system's monotonic clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(None)
    }

    /// One that stands still until it is set.
    #[must_use]
    pub fn by_hand() -> Self {
        Self(Some(Arc::new(SetClock { began: Instant::now(), nanoseconds: AtomicU64::new(0) })))
    }

    /// Sets a clock made by `by_hand` to a time after its beginning; the system's stays as it is.
    pub fn set(&self, elapsed: Duration) {
        if let Some(clock) = &self.0 {
            clock.nanoseconds.store(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(clock) => clock.began + Duration::from_nanos(clock.nanoseconds.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_by_hand_stands_still_and_the_systems_does_not_let_itself_be_set() {
        let clock = Clock::by_hand();
        let (began, copy) = (clock.now(), clock.clone());
        assert_eq!(copy.now(), began);
        clock.set(Duration::from_millis(1500));
        assert_eq!(copy.now() - began, Duration::from_millis(1500));
        let system = Clock::system();
        let before = system.now();
        system.set(Duration::from_secs(1 << 30));
        assert!(system.now() - before < Duration::from_secs(1 << 20));
    }
}

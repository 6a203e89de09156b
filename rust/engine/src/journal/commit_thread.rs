//! The commit thread: appends and fsyncs, off the loop, and tells the loop by an eventfd.
//!
//! It owns the appender. Everything else goes through the `CommitSlot`. When an attempt fails the same commit is
//! tried again, and nothing else, until that works: see `docs/journal.md`.
//!
//! In a simulation there is no thread: whoever runs it takes each step, so that a seed decides when a commit ends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::journal::Appender;
use crate::journal::commit_slot::{CommitSlot, Order};
pub use crate::journal::commit_slot::{Durable, WaitOutcome};
use crate::journal::record::EncodedCommit;
use crate::journal::unwritten::Unwritten;
use crate::planted_bug;

/// The pause after a first failed attempt; it doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What the commit thread counted since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JournalStatistics {
    /// Durable commits.
    pub commits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Failed attempts.
    pub failures: u64,
    /// Time spent in appending, in nanoseconds: write and fsync.
    pub append_ns_sum: u64,
    /// The longest append.
    pub append_ns_max: u64,
}

/// Relaxed throughout: figures, which lead to nothing else.
#[derive(Debug, Default)]
struct Counts {
    commits: AtomicU64,
    bytes: AtomicU64,
    append_ns_sum: AtomicU64,
    append_ns_max: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    slot: CommitSlot,
    wake: OwnedFd,
    counts: Counts,
}

/// What a step by hand came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There was nothing to append.
    Idle,
    /// A commit is on disk.
    Durable,
    /// The attempt failed.
    Failed,
}

/// What stands in for the thread.
struct Hand {
    /// `None` once it has ended.
    appender: Option<Box<dyn Appender>>,
    /// Failed so far.
    unsettled: Option<EncodedCommit>,
}

impl std::fmt::Debug for Hand {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Hand").field("unsettled", &self.unsettled).finish_non_exhaustive()
    }
}

/// A handle on the commit thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct CommitThread {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// In place of the thread.
    hand: Option<Mutex<Hand>>,
}

impl CommitThread {
    /// Starts the thread; `durable` is the newest commit that is on disk.
    ///
    /// # Errors
    /// The system gives no eventfd or no thread.
    pub fn start(appender: impl Appender + 'static, durable: u64) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(durable)?);
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("pycounter-commit".into()).spawn(move || shared.run(appender))?
        };
        Ok(Self { shared, thread: Mutex::new(Some(thread)), hand: None })
    }

    /// A stand-in where nothing is ever appended: a replica's, whose commits become durable at its primary.
    ///
    /// # Errors
    /// The system gives no eventfd.
    pub fn elsewhere() -> std::io::Result<Self> {
        let hand = Some(Mutex::new(Hand { appender: None, unsettled: None }));
        Ok(Self { shared: Arc::new(Shared::new(0)?), thread: Mutex::new(None), hand })
    }

    /// Commits up to this one are durable elsewhere.
    pub fn follow(&self, number: u64) {
        self.shared.slot.follow(number);
    }

    /// Starts no thread: [`CommitThread::step`] appends.
    ///
    /// # Errors
    /// The system gives no eventfd.
    pub fn start_by_hand(appender: impl Appender + 'static, durable: u64) -> std::io::Result<Self> {
        let hand = Hand { appender: Some(Box::new(appender)), unsettled: None };
        let shared = Arc::new(Shared::new(durable)?);
        Ok(Self { shared, thread: Mutex::new(None), hand: Some(Mutex::new(hand)) })
    }

    /// Tries once to append what was handed over, where the thread would: only after `start_by_hand`.
    pub fn step(&self) -> Step {
        let Some(hand) = &self.hand else { return Step::Idle };
        let Hand { appender, unsettled } = &mut *hand.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(appender) = appender else { return Step::Idle };
        let Some(commit) = unsettled.take().or_else(|| self.shared.slot.take_next()) else { return Step::Idle };
        match self.shared.try_append(&mut **appender, commit) {
            Ok(()) => Step::Durable,
            Err((commit, is_final)) => {
                *unsettled = Some(commit);
                if is_final {
                    self.shared.slot.end();
                }
                Step::Failed
            }
        }
    }

    /// The newest durable commit.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.shared.slot.durable().commit()
    }

    /// The same for threads that outlive this handle's borrow.
    #[must_use]
    pub fn durable_handle(&self) -> Arc<Durable> {
        Arc::clone(self.shared.slot.durable())
    }

    /// Is a commit on its way?
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.shared.slot.in_flight()
    }

    /// Did the last attempt fail, or has the thread ended? Then no changes are taken.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.shared.slot.is_failing()
    }

    /// Failed attempts so far.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.shared.slot.failure().0
    }

    /// Why the last attempt failed, while that is so.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.slot.failure().1
    }

    /// What the commit holds whose last attempt failed, until one works.
    #[must_use]
    pub fn unwritten(&self) -> Option<Arc<Unwritten>> {
        self.shared.slot.unwritten()
    }

    /// A buffer of an earlier commit, for its memory.
    #[must_use]
    pub fn take_buffer(&self) -> Vec<u8> {
        self.shared.slot.take_buffer()
    }

    /// Hands a commit over.
    ///
    /// # Errors
    /// The commit, if one is on its way or the thread has ended.
    pub fn submit(&self, commit: EncodedCommit) -> Result<(), EncodedCommit> {
        self.shared.slot.submit(commit)
    }

    /// Sleeps until commit `number` is durable, an attempt fails from now on, or the time is over.
    #[must_use]
    pub fn wait_durable(&self, number: u64, timeout: Duration) -> WaitOutcome {
        // A time that no clock reaches is none.
        self.shared.slot.wait_durable(number, Instant::now().checked_add(timeout))
    }

    /// Readable after each attempt, until `clear_wake`.
    #[must_use]
    pub fn wake_fd(&self) -> i32 {
        self.shared.wake.as_raw_fd()
    }

    /// Call it before looking at `durable` and `failures`: what comes later wakes again.
    pub fn clear_wake(&self) {
        let mut count = [0; 8];
        // Nothing to read is fine, and the only error there is.
        let _ = rustix::io::read(&self.shared.wake, &mut count);
    }

    /// What it counted.
    #[must_use]
    pub fn statistics(&self) -> JournalStatistics {
        let counts = &self.shared.counts;
        JournalStatistics {
            commits: counts.commits.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
            failures: self.failures(),
            append_ns_sum: counts.append_ns_sum.load(Ordering::Relaxed),
            append_ns_max: counts.append_ns_max.load(Ordering::Relaxed),
        }
    }

    /// Ends the thread after the commit on its way; one that fails is given up, unacknowledged. Idempotent.
    pub fn shutdown(&self) {
        self.shared.slot.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic of the thread was printed by it, and its commit stays unacknowledged.
        drop(thread.map(JoinHandle::join));
        let Some(hand) = &self.hand else { return };
        self.step();
        let appender = hand.lock().unwrap_or_else(PoisonError::into_inner).appender.take();
        if let Some(Err(error)) = appender.map(|mut appender| appender.close()) {
            self.shared.slot.fail(error.to_string());
        }
        self.shared.slot.end();
    }
}

impl Drop for CommitThread {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Ends the slot even if the appender panics, so that nobody waits for ever.
struct EndOnDrop<'s>(&'s Shared);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.slot.end();
        self.0.wake();
    }
}

impl Shared {
    fn new(durable: u64) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { slot: CommitSlot::new(durable), wake, counts: Counts::default() })
    }

    fn run(&self, mut appender: impl Appender) {
        let _end = EndOnDrop(self);
        loop {
            match self.slot.next_order() {
                Order::Commit(commit) => {
                    if !self.append(&mut appender, commit) {
                        return;
                    }
                }
                Order::Check => self.check(&appender),
                Order::Stop => break,
            }
        }
        if let Err(error) = appender.close() {
            self.slot.fail(error.to_string());
        }
    }

    /// While nothing is appended: fails where an append would, and recovers once it wouldn't.
    fn check(&self, appender: &impl Appender) {
        match (appender.check(), self.slot.is_failing()) {
            (Err(error), false) => self.slot.fail(error.to_string()),
            (Ok(()), true) => self.slot.recover(),
            _ => return,
        }
        self.wake();
    }

    /// Appends until that works. False: the thread must end, the commit is not known to be durable.
    fn append(&self, appender: &mut impl Appender, mut commit: EncodedCommit) -> bool {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            planted_bug::delay_append();
            match self.try_append(appender, commit) {
                Ok(()) => return true,
                Err((_, true)) => return false,
                Err((failed, false)) => commit = failed,
            }
            if self.slot.pause(pause) {
                return false;
            }
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    /// One attempt. Gives the commit back if it failed, and whether that is final.
    fn try_append(&self, appender: &mut dyn Appender, commit: EncodedCommit) -> Result<(), (EncodedCommit, bool)> {
        let began = Instant::now();
        let outcome = match appender.append(&commit) {
            Ok(()) => {
                self.count(began.elapsed(), commit.bytes.len());
                self.slot.settle(commit);
                Ok(())
            }
            Err(error) => {
                self.slot.note_unwritten(&commit);
                self.slot.fail(error.to_string());
                Err((commit, error.is_final()))
            }
        };
        self.wake();
        outcome
    }

    fn count(&self, elapsed: Duration, bytes: usize) {
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.counts.commits.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.counts.append_ns_sum.fetch_add(nanoseconds, Ordering::Relaxed);
        self.counts.append_ns_max.fetch_max(nanoseconds, Ordering::Relaxed);
    }

    #[allow(clippy::host_endian_bytes, reason = "the kernel reads a native number")]
    fn wake(&self) {
        // It can only fail when the counter is at its end, and then the loop is being woken anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::JournalError;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    /// Fails while it is broken.
    struct Flaky {
        broken: Arc<AtomicBool>,
        attempts: Arc<AtomicUsize>,
    }

    impl Appender for Flaky {
        fn append(&mut self, _: &EncodedCommit) -> Result<(), JournalError> {
            self.attempts.fetch_add(1, Ordering::SeqCst);
            if self.broken.load(Ordering::SeqCst) {
                return Err(JournalError::io("write", "disk")(std::io::Error::other("broken")));
            }
            Ok(())
        }

        fn close(&mut self) -> Result<(), JournalError> {
            Ok(())
        }
    }

    fn commit(number: u64) -> EncodedCommit {
        EncodedCommit { number, bytes: vec![1; 10], previous_hash: 0, last_hash: number }
    }

    fn started(broken: bool) -> (CommitThread, Arc<AtomicBool>, Arc<AtomicUsize>) {
        let (broken, attempts) = (Arc::new(AtomicBool::new(broken)), Arc::new(AtomicUsize::new(0)));
        let appender = Flaky { broken: Arc::clone(&broken), attempts: Arc::clone(&attempts) };
        (CommitThread::start(appender, 0).unwrap(), broken, attempts)
    }

    #[test]
    fn a_commit_becomes_durable_wakes_the_loop_and_gives_its_buffer_back() {
        let (thread, ..) = started(false);
        thread.submit(commit(1)).unwrap();
        assert_eq!(thread.wait_durable(1, Duration::MAX), WaitOutcome::Durable);
        assert!(!thread.in_flight());
        assert_eq!(thread.take_buffer().len(), 10);
        assert_eq!(thread.statistics().commits, 1);
    }

    #[test]
    fn a_failed_commit_is_tried_again_until_it_works() {
        let (thread, broken, attempts) = started(true);
        thread.submit(commit(1)).unwrap();
        assert_eq!(thread.wait_durable(1, Duration::MAX), WaitOutcome::Failing);
        assert!(thread.is_failing() && thread.failure().is_some_and(|why| why.contains("broken")));
        assert!(thread.submit(commit(2)).is_err(), "a commit overtook a failing one");
        assert_eq!(thread.wait_durable(1, Duration::MAX), WaitOutcome::Failing);
        broken.store(false, Ordering::SeqCst);
        // One more attempt may have failed just before.
        while thread.wait_durable(1, Duration::MAX) == WaitOutcome::Failing {}
        assert!(!thread.is_failing() && thread.durable() == 1);
        let failures = thread.failures();
        assert!(failures >= 2 && attempts.load(Ordering::SeqCst) as u64 == failures + 1);
    }

    /// An appender with nothing to append, whose log is gone while it is `broken`.
    struct Gone(Arc<AtomicBool>);

    impl Appender for Gone {
        fn append(&mut self, _: &EncodedCommit) -> Result<(), JournalError> {
            Ok(())
        }

        fn check(&self) -> Result<(), JournalError> {
            if self.0.load(Ordering::SeqCst) {
                return Err(JournalError::Vanished { path: "log".into() });
            }
            Ok(())
        }

        fn close(&mut self) -> Result<(), JournalError> {
            Ok(())
        }
    }

    #[test]
    fn an_idle_thread_notices_that_its_log_is_gone_and_that_it_is_back() {
        let gone = Arc::new(AtomicBool::new(false));
        let thread = CommitThread::start(Gone(Arc::clone(&gone)), 0).unwrap();
        gone.store(true, Ordering::SeqCst);
        assert_eq!(thread.wait_durable(1, Duration::MAX), WaitOutcome::Failing);
        assert!(thread.failure().is_some_and(|why| why.contains("was removed")));
        gone.store(false, Ordering::SeqCst);
        while thread.is_failing() {
            std::thread::yield_now();
        }
        assert_eq!((thread.failure(), thread.failures()), (None, 1));
    }

    #[test]
    fn by_hand_each_attempt_is_a_step() {
        let (broken, attempts) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let appender = Flaky { broken: Arc::clone(&broken), attempts: Arc::clone(&attempts) };
        let hand = CommitThread::start_by_hand(appender, 0).unwrap();
        assert_eq!(hand.step(), Step::Idle);
        hand.submit(commit(1)).unwrap();
        assert!(hand.in_flight() && hand.durable() == 0 && attempts.load(Ordering::SeqCst) == 0);
        assert_eq!((hand.step(), hand.is_failing()), (Step::Failed, true));
        assert!(hand.submit(commit(2)).is_err(), "a commit overtook a failing one");
        broken.store(false, Ordering::SeqCst);
        assert_eq!((hand.step(), hand.durable(), hand.is_failing()), (Step::Durable, 1, false));
        hand.submit(commit(2)).unwrap();
        hand.shutdown();
        assert_eq!((hand.durable(), hand.step()), (2, Step::Idle));
        assert!(hand.submit(commit(3)).is_err() && hand.is_failing());
    }

    #[test]
    fn shutdown_finishes_what_is_in_flight_and_gives_up_what_fails() {
        let (thread, ..) = started(false);
        thread.submit(commit(1)).unwrap();
        thread.shutdown();
        assert_eq!(thread.durable(), 1);
        assert!(thread.submit(commit(2)).is_err() && thread.is_failing());
        let (thread, ..) = started(true);
        thread.submit(commit(1)).unwrap();
        thread.shutdown();
        assert_eq!(thread.wait_durable(1, Duration::MAX), WaitOutcome::Ended);
        assert_eq!(thread.durable(), 0);
    }
}

//! The session table against a plain model: batches good and bad, ends, the passing of time, drains, and crashes
//! after which the table is built again from what was drained, straight or through folded pages.

use std::collections::HashMap;

use proptest::prelude::*;
use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::journal::entry::{Entry, Fingerprint, StoredResult};
use pycounter_engine::session_table::{SessionSettings, SessionTable, merge_session_entry};
use pycounter_engine::wire::request::SessionId;

const WINDOW_MS: u64 = 6_400;
const REFRESH_MS: u64 = WINDOW_MS / 64;
const TOMBSTONE_MS: u64 = 500;
const RESULTS_MAX: usize = 30;
const SESSIONS_MAX: usize = 5;

fn settings() -> SessionSettings {
    SessionSettings {
        sessions_max: SESSIONS_MAX,
        results_per_session_max: RESULTS_MAX,
        table_bytes_max: 1 << 20,
        session_window_ms: WINDOW_MS,
        tombstone_window_ms: TOMBSTONE_MS,
    }
}

#[derive(Debug, Clone)]
enum Operation {
    /// `first` and `acked` are relative to the next sequence; `other` gives old items another fingerprint.
    Batch {
        session: u8,
        first: i64,
        count: usize,
        acked: i64,
        other: bool,
    },
    Resume {
        session: u8,
    },
    End {
        session: u8,
    },
    Wait {
        ms: u64,
    },
    Expire {
        budget: usize,
    },
    Drain,
    /// The process dies, after so many (of 255) of the commits were folded into pages.
    Crash {
        folded: u8,
        uptime_falls: bool,
    },
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let batch = (0u8..8, -12i64..=1, 0usize..14, -14i64..=1, prop::bool::weighted(0.1))
        .prop_map(|(session, first, count, acked, other)| Operation::Batch { session, first, count, acked, other });
    let good_batch = (0u8..8, 1usize..10, -8i64..0).prop_map(|(session, count, acked)| Operation::Batch {
        session,
        first: 0,
        count,
        acked,
        other: false,
    });
    let huge = (0u8..8).prop_map(|session| Operation::Batch { session, first: 0, count: 31, acked: -14, other: false });
    let operation = prop_oneof![
        6 => batch,
        10 => good_batch,
        1 => huge,
        2 => (0u8..8).prop_map(|session| Operation::Resume { session }),
        2 => (0u8..8).prop_map(|session| Operation::End { session }),
        3 => (0u64..300).prop_map(|ms| Operation::Wait { ms }),
        1 => (0u64..8_000).prop_map(|ms| Operation::Wait { ms }),
        2 => prop_oneof![0usize..4, Just(100)].prop_map(|budget| Operation::Expire { budget }),
        4 => Just(Operation::Drain),
        2 => (any::<u8>(), any::<bool>())
            .prop_map(|(folded, uptime_falls)| Operation::Crash { folded, uptime_falls }),
    ];
    prop::collection::vec(operation, 1..120)
}

#[derive(Debug, Clone)]
struct Session {
    /// All ever recorded.
    results: Vec<(Fingerprint, StoredResult)>,
    acked: usize,
    /// When it was last used.
    used_ms: u64,
    /// When it was last used and the reply did not have to wait for a commit, or the commit came.
    answered_ms: u64,
}

struct Model {
    table: SessionTable,
    live: HashMap<u8, Session>,
    ended: HashMap<u8, u64>,
    /// The same at the last drain.
    durable_live: HashMap<u8, Session>,
    durable_ended: HashMap<u8, u64>,
    drained_ms: u64,
    pages: HashMap<SessionId, Entry<'static>>,
    /// Commits that are not in the pages yet, each with its uptime.
    log: Vec<(u64, Vec<Entry<'static>>)>,
    now_ms: u64,
    values: i64,
}

fn id(session: u8) -> SessionId {
    SessionId([session; 16])
}

fn owned(entry: &Entry<'_>) -> Entry<'static> {
    match *entry {
        Entry::Session { session, acked_through, first_sequence, used_ms, ref results } => {
            Entry::Session { session, acked_through, first_sequence, used_ms, results: results.clone() }
        }
        Entry::SessionEnded { session, ended_ms } => Entry::SessionEnded { session, ended_ms },
        _ => panic!("{entry:?}"),
    }
}

impl Model {
    fn new() -> Self {
        Self {
            table: SessionTable::new(settings()),
            live: HashMap::new(),
            ended: HashMap::new(),
            durable_live: HashMap::new(),
            durable_ended: HashMap::new(),
            drained_ms: 0,
            pages: HashMap::new(),
            log: Vec::new(),
            now_ms: 1,
            values: 0,
        }
    }

    /// What the rules say of a batch, tombstones that may have been dropped by now aside.
    fn refusal(&self, session: u8, first: u64, count: usize, acked: u64) -> Option<ErrorCode> {
        if first == 0 {
            return Some(ErrorCode::BadRequest);
        }
        let Some(known) = self.live.get(&session) else {
            let remembered = self.ended.get(&session).is_some_and(|&ended_ms| self.now_ms < ended_ms + TOMBSTONE_MS);
            return match () {
                () if first > 1 || count == 0 || remembered => Some(ErrorCode::SessionUnknown),
                () if acked > 0 => Some(ErrorCode::BadRequest),
                () if self.live.len() >= SESSIONS_MAX => Some(ErrorCode::Overloaded),
                () => (count > RESULTS_MAX).then_some(ErrorCode::TooLarge),
            };
        };
        let last = known.results.len() as u64;
        let new = (first + count as u64 - 1).saturating_sub(last).min(count as u64) as usize;
        let kept = known.results.len() - known.acked.max(acked as usize).min(known.results.len());
        match () {
            () if first > last + 1 => Some(ErrorCode::SequenceGap),
            () if acked > last => Some(ErrorCode::BadRequest),
            () if new > RESULTS_MAX => Some(ErrorCode::TooLarge),
            () => (new > 0 && kept + new > RESULTS_MAX).then_some(ErrorCode::Overloaded),
        }
    }

    fn batch(&mut self, session: u8, first: i64, count: usize, acked: i64, other: bool) {
        let last = self.live.get(&session).map_or(0, |session| session.results.len());
        let first = (last as i64 + 1 + first).max(0) as u64;
        let acked = (last as i64 + acked).max(0) as u64;
        let refusal = self.refusal(session, first, count, acked);
        let before = format!("{:?}", self.table);
        let batch = match self.table.begin_batch(id(session), first, count, acked, self.now_ms) {
            Ok(batch) => batch,
            Err(code) => {
                assert_eq!(before, format!("{:?}", self.table), "a refusal consumes nothing");
                let live_and_over = self.live.get(&session).is_some_and(|it| self.now_ms >= it.used_ms + WINDOW_MS);
                let forgotten = live_and_over || self.ended.contains_key(&session);
                let may_be_unknown = code == ErrorCode::SessionUnknown && forgotten;
                assert!(refusal == Some(code) || may_be_unknown, "{code:?} instead of {refusal:?}");
                return;
            }
        };
        assert_eq!(refusal, None);
        self.ended.remove(&session);
        let now_ms = self.now_ms;
        let known =
            self.live.entry(session).or_insert(Session { results: vec![], acked: 0, used_ms: now_ms, answered_ms: 0 });
        known.acked = known.acked.max(acked as usize);
        known.used_ms = known.used_ms.max(now_ms);
        assert_eq!(batch.old_count(), (last + 1 - first as usize).min(count));
        for index in 0..count {
            let sequence = first + index as u64;
            if index < batch.old_count() {
                let (fingerprint, result) = known.results[sequence as usize - 1];
                let asked = if other { Fingerprint(!fingerprint.0) } else { fingerprint };
                let expected = match () {
                    () if sequence as usize <= known.acked => Err(ErrorCode::AlreadySettled),
                    () if other => Err(ErrorCode::IdReused),
                    () => Ok(result),
                };
                assert_eq!(self.table.old_result(batch, sequence, asked), expected);
            } else {
                self.values += 1;
                let result = match self.values % 7 {
                    0 => StoredResult::Error(ErrorCode::Overflow),
                    _ => StoredResult::Value(self.values),
                };
                let fingerprint = Fingerprint(self.values as u64 * 31);
                self.table.record(batch, fingerprint, result);
                known.results.push((fingerprint, result));
                assert!(self.table.is_dirty());
            }
        }
    }

    fn expire(&mut self, budget: usize) {
        let ended = self.table.expire(self.now_ms, budget);
        let table = &self.table;
        let gone: Vec<u8> = self.live.keys().copied().filter(|&it| table.last_sequence(id(it)).is_none()).collect();
        assert_eq!(gone.len(), ended);
        for session in gone {
            let used_ms = self.live.remove(&session).map(|session| session.used_ms).unwrap();
            assert!(self.now_ms >= used_ms + WINDOW_MS, "forgotten {} ms after its use", self.now_ms - used_ms);
            self.ended.insert(session, self.now_ms);
        }
    }

    fn drain(&mut self) {
        let mut entries = Vec::new();
        self.table.drain_dirty(|entry| entries.push(owned(entry)));
        self.log.push((self.now_ms, entries));
        assert!(!self.table.is_dirty());
        assert_eq!(self.table.dirty_bytes(), 0);
        self.table.drain_dirty(|entry| panic!("drained twice: {entry:?}"));
        self.live.values_mut().for_each(|session| session.answered_ms = session.used_ms);
        self.durable_live = self.live.clone();
        self.durable_ended = self.ended.clone();
        self.drained_ms = self.now_ms;
    }

    /// Folds commits into pages, as a checkpoint does, then reads pages in no particular order and the commits
    /// after them.
    fn crash(&mut self, folded: u8, uptime_falls: bool) {
        let folded = self.log.len() * usize::from(folded) / 255;
        for (uptime_ms, entries) in self.log.drain(..folded) {
            for entry in entries {
                let (Entry::Session { session, .. } | Entry::SessionEnded { session, .. }) = entry else { panic!() };
                let page = merge_session_entry(self.pages.remove(&session), entry);
                self.pages.insert(session, page);
            }
            self.pages.retain(|_, entry| match *entry {
                Entry::SessionEnded { ended_ms, .. } => !settings().tombstone_has_expired(ended_ms, uptime_ms),
                Entry::Session { used_ms, .. } => !settings().session_has_expired(used_ms, uptime_ms),
                _ => false,
            });
        }
        if uptime_falls {
            self.now_ms = self.drained_ms.max(1);
        }
        self.table = SessionTable::new(settings());
        let commits = self.log.iter().flat_map(|(_, entries)| entries);
        self.pages.values().chain(commits).for_each(|entry| self.table.restore(entry));
        assert_eq!(self.table.finish_restore(), Ok(()));
        assert!(!self.table.is_dirty());
        for (session, durable) in &mut self.durable_live {
            // A use that was answered without being journaled was a use.
            if let Some(live) = self.live.get(session).filter(|live| live.results[0] == durable.results[0]) {
                durable.used_ms = durable.used_ms.max(live.answered_ms);
            }
        }
        let (table, now_ms) = (&self.table, self.now_ms);
        self.durable_live.retain(|&session, durable| {
            let known = table.last_sequence(id(session)).is_some();
            assert!(known || now_ms >= durable.used_ms + WINDOW_MS, "dropped from its page too early");
            known
        });
        self.live = self.durable_live.clone();
        self.ended = self.durable_ended.clone();
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Batch { session, first, count, acked, other } => self.batch(session, first, count, acked, other),
            Operation::Resume { session } => {
                let last = self.table.resume(id(session), self.now_ms);
                let Some(known) = self.live.get_mut(&session) else {
                    assert_eq!(last, None);
                    return;
                };
                if last.is_none() {
                    assert!(self.now_ms >= known.used_ms + WINDOW_MS);
                } else {
                    assert_eq!(last, Some(known.results.len() as u64));
                    known.used_ms = known.used_ms.max(self.now_ms);
                }
            }
            Operation::End { session } => {
                let ended = self.table.end(id(session), self.now_ms);
                match (self.live.remove(&session), self.ended.get(&session)) {
                    (Some(_), _) => {
                        assert_eq!(ended, Ok(()));
                        assert!(self.table.is_dirty());
                        self.ended.insert(session, self.now_ms);
                    }
                    (None, Some(&ended_ms)) => assert!(ended.is_ok() || self.now_ms >= ended_ms + TOMBSTONE_MS),
                    (None, None) => assert_eq!(ended, Err(ErrorCode::SessionUnknown)),
                }
            }
            Operation::Wait { ms } => self.now_ms += ms,
            Operation::Expire { budget } => self.expire(budget),
            Operation::Drain => self.drain(),
            Operation::Crash { folded, uptime_falls } => self.crash(folded, uptime_falls),
        }
        assert_eq!(self.table.stats().sessions, self.live.len());
        for (&session, known) in &mut self.live {
            if !self.table.is_dirty() {
                known.answered_ms = known.used_ms;
            }
            assert_eq!(self.table.last_sequence(id(session)), Some(known.results.len() as u64));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_the_rules_say(operations in operations()) {
        let mut model = Model::new();
        for operation in &operations {
            model.step(operation);
        }
        // Every result that was not acknowledged is still there, after a crash too.
        model.drain();
        model.crash(128, false);
        for (session, known) in model.live.clone() {
            model.batch(session, -(known.results.len() as i64), known.results.len(), -20, false);
        }
        model.now_ms += WINDOW_MS + 3 * REFRESH_MS;
        model.drain();
        model.expire(100);
        model.drain();
        model.now_ms += TOMBSTONE_MS + 1;
        model.table.expire(model.now_ms, 1_000);
        let stats = model.table.stats();
        prop_assert_eq!((stats.sessions, stats.tombstones, stats.bytes), (0, 0, 0));
    }
}

const A: SessionId = SessionId([1; 16]);
const B: SessionId = SessionId([2; 16]);

fn apply(table: &mut SessionTable, session: SessionId, first: u64, count: usize, acked: u64) -> Result<(), ErrorCode> {
    let batch = table.begin_batch(session, first, count, acked, 1)?;
    for index in batch.old_count()..count {
        table.record(batch, Fingerprint(first + index as u64), StoredResult::Value(1));
    }
    Ok(())
}

#[test]
fn a_late_copy_of_the_first_batch_after_bye_is_refused() {
    let mut table = SessionTable::new(SessionSettings::default());
    assert_eq!(apply(&mut table, A, 1, 3, 0), Ok(()));
    assert_eq!(table.end(A, 1), Ok(()));
    assert_eq!(table.end(A, 2), Ok(()));
    assert_eq!(table.end(B, 2), Err(ErrorCode::SessionUnknown));
    assert_eq!(apply(&mut table, A, 1, 3, 0), Err(ErrorCode::SessionUnknown));
    assert_eq!(table.resume(A, 3), None);
}

#[test]
fn sequences_stay_within_64_bits() {
    let mut table = SessionTable::new(SessionSettings::default());
    assert_eq!(apply(&mut table, A, 0, 1, 0), Err(ErrorCode::BadRequest));
    assert_eq!(apply(&mut table, A, u64::MAX, 1, 0), Err(ErrorCode::BadRequest));
    assert_eq!(apply(&mut table, A, u64::MAX - 1, 5, 0), Err(ErrorCode::BadRequest));
    let results = vec![(Fingerprint(1), StoredResult::Value(1))];
    let last = u64::MAX - 3;
    table.restore(&Entry::Session { session: A, acked_through: last - 1, first_sequence: last, used_ms: 0, results });
    assert_eq!(table.finish_restore(), Ok(()));
    assert_eq!(apply(&mut table, A, last, 2, last), Ok(()));
    assert_eq!(table.last_sequence(A), Some(u64::MAX - 2));
    assert_eq!(apply(&mut table, A, u64::MAX - 1, 1, last), Err(ErrorCode::BadRequest));
}

#[test]
fn the_byte_bound_holds_and_acknowledging_makes_room() {
    let settings = SessionSettings { table_bytes_max: 20_000, ..SessionSettings::default() };
    let mut table = SessionTable::new(settings);
    assert_eq!(apply(&mut table, A, 1, 900, 0), Ok(()));
    assert_eq!(apply(&mut table, A, 901, 400, 0), Err(ErrorCode::Overloaded));
    assert_eq!(apply(&mut table, B, 1, 400, 0), Err(ErrorCode::Overloaded));
    assert_eq!(table.last_sequence(B), None);
    // Not generously more, but exactly what is needed, still fits.
    assert_eq!(apply(&mut table, A, 901, 200, 0), Ok(()));
    assert!(table.stats().bytes <= 20_000, "{:?}", table.stats());
    assert_eq!(apply(&mut table, A, 1101, 0, 1100), Ok(()));
    assert!(table.stats().bytes < 500, "{:?}", table.stats());
    assert_eq!(apply(&mut table, B, 1, 400, 0), Ok(()));
}

#[test]
fn many_results_are_drained_in_several_entries() {
    let mut table = SessionTable::new(SessionSettings::default());
    assert_eq!(apply(&mut table, A, 1, 10_000, 0), Ok(()));
    let mut again = SessionTable::new(SessionSettings::default());
    let mut sizes = Vec::new();
    table.drain_dirty(|entry| {
        let Entry::Session { results, .. } = entry else { panic!() };
        sizes.push(results.len());
        again.restore(entry);
    });
    assert_eq!(sizes, [4096, 4096, 1808]);
    assert_eq!(again.finish_restore(), Ok(()));
    assert_eq!(again.last_sequence(A), Some(10_000));
    assert_eq!(again.stats().sessions, 1);
}

#[test]
fn greetings_are_journaled_rarely() {
    let mut table = SessionTable::new(SessionSettings::default());
    assert_eq!(apply(&mut table, A, 1, 1, 0), Ok(()));
    table.drain_dirty(|_| {});
    let hour_ms = 3_600_000;
    for minute in 0..60 {
        assert_eq!(table.resume(A, minute * 60_000), Some(1));
        assert!(!table.is_dirty());
    }
    assert_eq!(table.resume(A, 3 * hour_ms), Some(1));
    assert!(table.is_dirty());
    let mut used = None;
    table.drain_dirty(|entry| {
        let Entry::Session { used_ms, first_sequence, results, .. } = entry else { panic!() };
        assert!(results.is_empty());
        used = Some((*used_ms, *first_sequence));
    });
    assert_eq!(used, Some((3 * hour_ms, 2)));
}

#[test]
fn an_acknowledgement_rides_along_with_the_next_commit() {
    let mut table = SessionTable::new(SessionSettings::default());
    assert_eq!(apply(&mut table, A, 1, 5, 0), Ok(()));
    table.drain_dirty(|_| {});
    assert_eq!(apply(&mut table, A, 6, 0, 4), Ok(()));
    assert!(!table.is_dirty());
    let mut acked = None;
    table.drain_dirty(|entry| {
        let Entry::Session { acked_through, .. } = entry else { panic!() };
        acked = Some(*acked_through);
    });
    assert_eq!(acked, Some(4));
}

#[test]
fn missing_results_are_found_at_the_end_of_recovery() {
    let mut table = SessionTable::new(SessionSettings::default());
    let entry = Entry::Session { session: A, acked_through: 0, first_sequence: 4, used_ms: 1, results: vec![] };
    table.restore(&entry);
    assert!(table.finish_restore().is_err());
    table.restore(&Entry::SessionEnded { session: A, ended_ms: 5 });
    assert_eq!(table.finish_restore(), Ok(()));
}

#[test]
fn rows_and_results_take_what_the_documents_say() {
    use pycounter_engine::session_table::{RESULT_BYTES, ROW_BYTES, TOMBSTONE_BYTES};
    assert_eq!((ROW_BYTES, RESULT_BYTES, TOMBSTONE_BYTES), (96, 17, 64));
}

#[test]
fn recovery_takes_the_later_of_a_row_and_a_tombstone() {
    let row = |used_ms| Entry::Session {
        session: A,
        acked_through: 0,
        first_sequence: 1,
        used_ms,
        results: vec![(Fingerprint(1), StoredResult::Value(1))],
    };
    let ended = Entry::SessionEnded { session: A, ended_ms: 9 };
    for (entries, last_sequence) in [
        ([ended.clone(), row(8)], None),
        ([ended.clone(), row(9)], None),
        ([ended.clone(), row(10)], Some(1)),
        ([row(10), ended.clone()], Some(1)),
        ([row(9), ended.clone()], None),
    ] {
        let mut table = SessionTable::new(SessionSettings::default());
        entries.iter().for_each(|entry| table.restore(entry));
        assert_eq!(table.finish_restore(), Ok(()));
        assert_eq!(table.last_sequence(A), last_sequence, "{entries:?}");
        assert_eq!(table.stats().sessions, usize::from(last_sequence.is_some()));
    }
}

#[test]
fn a_session_is_kept_for_its_window_after_a_use_that_was_not_journaled() {
    let mut table = SessionTable::new(settings());
    assert_eq!(apply(&mut table, A, 1, 1, 0), Ok(()));
    let mut entries = Vec::new();
    table.drain_dirty(|entry| entries.push(owned(entry)));
    // Applied at 1, used again as late as needs no journaling.
    assert_eq!(table.resume(A, 1 + REFRESH_MS), Some(1));
    assert!(!table.is_dirty());
    let mut after_crash = SessionTable::new(settings());
    entries.iter().for_each(|entry| after_crash.restore(entry));
    assert_eq!(after_crash.expire(1 + REFRESH_MS + WINDOW_MS, 10), 0);
    assert_eq!(after_crash.expire(1 + REFRESH_MS + WINDOW_MS + 1, 10), 1);
}

#[test]
fn a_session_that_its_page_may_have_dropped_is_refused() {
    // The last use, at 1 + REFRESH_MS, was not journaled; pages go by the one at 1.
    let dropped_ms = 1 + WINDOW_MS + REFRESH_MS + 1;
    assert!(settings().session_has_expired(1, dropped_ms));
    assert!(!settings().session_has_expired(1, dropped_ms - 1));
    for (now_ms, expected) in [(dropped_ms - 1, Ok(1)), (dropped_ms, Err(ErrorCode::SessionUnknown))] {
        let mut table = SessionTable::new(settings());
        assert_eq!(apply(&mut table, A, 1, 1, 0), Ok(()));
        table.drain_dirty(|_| {});
        assert_eq!(table.resume(A, 1 + REFRESH_MS), Some(1));
        let batch = table.begin_batch(A, 1, 2, 0, now_ms);
        assert_eq!(batch.map(|batch| batch.old_count()), expected);
        assert_eq!(table.begin_batch(A, 1, 1, 0, now_ms).map(|batch| batch.old_count()), expected);
        assert_eq!(table.resume(A, now_ms), expected.ok().map(|_| 1));
    }
}

#[test]
fn what_was_not_drained_does_not_expire() {
    let mut table = SessionTable::new(settings());
    assert_eq!(apply(&mut table, A, 1, 1, 0), Ok(()));
    assert_eq!(table.expire(1 << 40, 10), 0);
    table.drain_dirty(|_| {});
    assert_eq!(table.expire(1 << 40, 10), 1);
    assert_eq!(table.expire(1 << 41, 10), 0);
    assert_eq!(table.stats().tombstones, 1);
    table.drain_dirty(|_| {});
    table.expire(1 << 41, 10);
    assert_eq!(table.stats().tombstones, 0);
}

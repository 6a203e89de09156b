//! The operation id table against a plain list, with drains, crashes and the passing of time.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest_state::{Operation, operations};
use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::journal::entry::{Entry, Fingerprint, StoredResult};
use pycounter_engine::operation_id_table::{Lookup, OperationIdSettings, OperationIdTable};

const WINDOW_MS: u64 = 1_000;
const AHEAD_MS: u64 = 50;

fn settings() -> OperationIdSettings {
    OperationIdSettings { ids_window_ms: WINDOW_MS, born_ahead_ms: AHEAD_MS, ids_bytes_max: 1 << 20 }
}

/// What one can try.
mod proptest_state {
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    pub enum Operation {
        /// An operation under an id out of a few, long or short.
        Use {
            id: u8,
            fingerprint: u64,
            value: i64,
        },
        /// Many fresh ids at once, so that chunks are filled and given back.
        UseMany {
            count: u16,
            len: u8,
        },
        Wait {
            ms: u64,
        },
        Expire {
            budget: usize,
        },
        Drain,
        /// The process dies: what was not drained is gone. Pages come in no order.
        Crash {
            seed: u64,
        },
    }

    pub fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let operation = prop_oneof![
            8 => (0u8..40, 0u64..2, any::<i64>()).prop_map(|(id, fingerprint, value)| Operation::Use { id, fingerprint, value }),
            2 => (1u16..3000, 8u8..=64).prop_map(|(count, len)| Operation::UseMany { count, len }),
            3 => (0u64..700).prop_map(|ms| Operation::Wait { ms }),
            2 => prop_oneof![0usize..5, Just(10_000)].prop_map(|budget| Operation::Expire { budget }),
            3 => Just(Operation::Drain),
            1 => any::<u64>().prop_map(|seed| Operation::Crash { seed }),
        ];
        prop::collection::vec(operation, 1..80)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    fingerprint: Fingerprint,
    result: StoredResult,
    seen_ms: u64,
}

struct Model {
    table: OperationIdTable,
    /// Every id ever used, drained or not; expired ones may or may not be known to the table.
    known: HashMap<Vec<u8>, Known>,
    drained: HashMap<Vec<u8>, Known>,
    now_ms: u64,
    fresh: u64,
}

impl Model {
    fn new() -> Self {
        let table = OperationIdTable::new(settings());
        Self { table, known: HashMap::new(), drained: HashMap::new(), now_ms: 0, fresh: 0 }
    }

    fn must_know(&self, known: &Known) -> bool {
        known.seen_ms + WINDOW_MS + AHEAD_MS >= self.now_ms
    }

    fn use_id(&mut self, id: &[u8], fingerprint: Fingerprint, result: StoredResult) {
        let lookup = self.table.get(id, fingerprint);
        match self.known.get(id) {
            Some(known) if lookup != Lookup::Unknown || self.must_know(known) => {
                let expected =
                    if known.fingerprint == fingerprint { Lookup::Known(known.result) } else { Lookup::Reused };
                assert_eq!(lookup, expected);
                return;
            }
            _ => assert_eq!(lookup, Lookup::Unknown),
        }
        if !self.table.has_room(id.len()) {
            assert!(self.table.stats().bytes > (1 << 20) - (1 << 17), "refused with room left");
            return;
        }
        self.table.insert(id, fingerprint, result, self.now_ms);
        self.known.insert(id.to_vec(), Known { fingerprint, result, seen_ms: self.now_ms });
        assert!(self.table.has_new());
        assert!(self.table.stats().bytes <= (1 << 20) + (1 << 12), "{:?}", self.table.stats());
    }

    fn drain(&mut self) {
        let (known, drained) = (&self.known, &mut self.drained);
        let mut newest_ms = 0;
        self.table.drain_new(|entry| {
            let Entry::OperationId { id, fingerprint, result, seen_ms } = *entry else { panic!("{entry:?}") };
            let row = Known { fingerprint, result, seen_ms };
            assert_eq!(known.get(id), Some(&row));
            assert_ne!(drained.insert(id.to_vec(), row), Some(row), "drained twice");
            assert!(newest_ms <= seen_ms);
            newest_ms = seen_ms;
        });
        assert!(!self.table.has_new());
        assert_eq!(self.table.new_bytes(), 0);
        for (id, known) in &self.known {
            assert!(!self.must_know(known) || self.drained.get(id) == Some(known), "not drained: {id:?}");
        }
    }

    fn crash(&mut self, seed: u64) {
        self.table = OperationIdTable::new(settings());
        let mut rows: Vec<_> = self.drained.iter().collect();
        rows.sort_by_key(|(id, _)| {
            id.iter().fold(seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15))
        });
        for (id, known) in &rows {
            let Known { fingerprint, result, seen_ms } = **known;
            self.table.restore(&Entry::OperationId { id, fingerprint, result, seen_ms }).unwrap();
        }
        // Records are read again over pages that contain them, and an older life of an id may be among them.
        for (id, known) in rows.iter().take(20) {
            let Known { fingerprint, result, seen_ms } = **known;
            self.table.restore(&Entry::OperationId { id, fingerprint, result, seen_ms }).unwrap();
            let before =
                Entry::OperationId { id, fingerprint: Fingerprint(99), result, seen_ms: seen_ms.saturating_sub(1) };
            if seen_ms > 0 {
                self.table.restore(&before).unwrap();
            }
        }
        self.table.finish_restore();
        self.known = self.drained.clone();
        assert_eq!(self.table.stats().ids, self.known.len());
        assert!(!self.table.has_new());
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Use { id, fingerprint, value } => {
                let name = vec![id + 1; usize::from(id % 64) + 1];
                let result =
                    if value % 5 == 0 { StoredResult::Error(ErrorCode::Overflow) } else { StoredResult::Value(value) };
                self.use_id(&name, Fingerprint(fingerprint), result);
            }
            Operation::UseMany { count, len } => {
                for _ in 0..count {
                    self.fresh += 1;
                    let mut id = vec![b'f'; usize::from(len)];
                    id[..8].copy_from_slice(&self.fresh.to_le_bytes());
                    self.use_id(&id, Fingerprint(7), StoredResult::Value(self.fresh as i64));
                }
            }
            Operation::Wait { ms } => self.now_ms += ms,
            Operation::Expire { budget } => {
                let before = self.table.stats().ids;
                let forgotten = self.table.expire(self.now_ms, budget);
                assert!(forgotten <= budget);
                assert_eq!(self.table.stats().ids, before - forgotten);
            }
            Operation::Drain => self.drain(),
            Operation::Crash { seed } => self.crash(seed),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn answers_as_a_plain_list_does(operations in operations()) {
        let mut model = Model::new();
        for operation in &operations {
            model.step(operation);
        }
        model.drain();
        model.crash(1);
        for (id, known) in model.known.clone() {
            assert_eq!(model.table.get(&id, known.fingerprint), Lookup::Known(known.result));
        }
        model.now_ms += 10 * WINDOW_MS;
        model.table.expire(model.now_ms, usize::MAX);
        assert_eq!(model.table.stats().ids, 0);
        // Two chunks, and 1,024 parts of the index, which are not shrunk below 64 places of 5 bytes.
        assert!(model.table.stats().bytes < 1 << 19, "{:?}", model.table.stats());
    }

    /// An id that carries `born` is never applied twice, whenever it comes back and however much is forgotten.
    #[test]
    fn born_keeps_what_was_forgotten_from_counting_again(
        born in 5_000u64..5_200, tries in prop::collection::vec(0u64..2_500, 1..20)
    ) {
        let mut table = OperationIdTable::new(settings());
        let mut times: Vec<u64> = tries.iter().map(|after| 5_000 + after).collect();
        times.sort_unstable();
        let mut applied = 0;
        for now_ms in times {
            table.drain_new(|_| {});
            table.expire(now_ms, 10);
            if table.get(b"id", Fingerprint(1)) == Lookup::Unknown && table.check_born(born, now_ms).is_ok() {
                table.insert(b"id", Fingerprint(1), StoredResult::Value(1), now_ms);
                applied += 1;
            }
        }
        prop_assert!(applied <= 1);
    }
}

#[test]
fn ids_that_were_not_drained_outlive_their_window() {
    let mut table = OperationIdTable::new(settings());
    table.insert(b"a", Fingerprint(1), StoredResult::Value(1), 0);
    assert_eq!(table.expire(1 << 40, 10), 0);
    assert_eq!(table.get(b"a", Fingerprint(1)), Lookup::Known(StoredResult::Value(1)));
    table.drain_new(|_| {});
    assert_eq!(table.expire(1 << 40, 10), 1);
    assert_eq!(table.get(b"a", Fingerprint(1)), Lookup::Unknown);
}

#[test]
fn an_id_is_kept_to_the_end_of_its_window() {
    let mut table = OperationIdTable::new(settings());
    table.insert(b"a", Fingerprint(1), StoredResult::Value(1), 100);
    table.drain_new(|_| {});
    assert_eq!(table.expire(100 + WINDOW_MS + AHEAD_MS, 1), 0);
    assert_eq!(table.expire(100 + WINDOW_MS + AHEAD_MS + 1, 1), 1);
}

#[test]
fn born_is_checked_against_the_window() {
    let table = OperationIdTable::new(settings());
    assert_eq!(table.check_born(0, WINDOW_MS), Ok(()));
    assert_eq!(table.check_born(0, WINDOW_MS + 1), Err(ErrorCode::IdExpired));
    assert_eq!(table.check_born(100 + AHEAD_MS, 100), Ok(()));
    assert_eq!(table.check_born(101 + AHEAD_MS, 100), Err(ErrorCode::BadRequest));
    assert_eq!(table.check_born(u64::MAX, 100), Err(ErrorCode::BadRequest));
}

#[test]
fn a_full_table_has_no_room_until_ids_expire() {
    let settings = OperationIdSettings { ids_bytes_max: 256 << 10, ..settings() };
    let mut table = OperationIdTable::new(settings);
    let mut count = 0u64;
    while table.has_room(8) {
        table.insert(&count.to_le_bytes(), Fingerprint(count), StoredResult::Value(0), 0);
        count += 1;
    }
    assert!(count > 3_000, "{count}");
    assert!(table.stats().bytes <= 256 << 10);
    table.drain_new(|_| {});
    assert!(!table.has_room(8));
    table.expire(WINDOW_MS + AHEAD_MS + 1, usize::MAX);
    assert!(table.has_room(8));
}

#[test]
fn a_row_with_its_index_takes_about_fifty_bytes() {
    let mut table = OperationIdTable::new(OperationIdSettings::default());
    let empty = table.stats().bytes;
    for number in 0..1_000_000u128 {
        table.insert(&(number * 0x9E37_79B9_7F4A_7C15).to_le_bytes(), Fingerprint(1), StoredResult::Value(1), 0);
    }
    let bytes = (table.stats().bytes - empty) as f64 / 1e6;
    println!("bytes a row: {bytes:.1}");
    assert!((42.0..56.0).contains(&bytes), "{bytes}");
}

#[test]
fn absurd_ids_are_refused_in_recovery() {
    let mut table = OperationIdTable::new(settings());
    for id in [vec![], vec![1; 65]] {
        let entry =
            Entry::OperationId { id: &id, fingerprint: Fingerprint(1), result: StoredResult::Value(1), seen_ms: 1 };
        assert!(table.restore(&entry).is_err());
    }
}

#[test]
fn the_oldest_leave_first_whatever_the_order_of_recovery() {
    let mut table = OperationIdTable::new(settings());
    for (id, seen_ms) in [(b"late", 200), (b"soon", 100)] {
        let entry = Entry::OperationId { id, fingerprint: Fingerprint(1), result: StoredResult::Value(1), seen_ms };
        table.restore(&entry).unwrap();
    }
    table.finish_restore();
    assert_eq!(table.expire(101 + WINDOW_MS + AHEAD_MS, 10), 1);
    assert_eq!(table.get(b"soon", Fingerprint(1)), Lookup::Unknown);
    assert_eq!(table.get(b"late", Fingerprint(1)), Lookup::Known(StoredResult::Value(1)));
}

#[test]
fn times_do_not_fall_when_the_uptime_does() {
    let mut table = OperationIdTable::new(settings());
    table.insert(b"a", Fingerprint(1), StoredResult::Value(1), 100);
    table.insert(b"b", Fingerprint(1), StoredResult::Value(1), 40);
    let mut times = Vec::new();
    table.drain_new(|entry| {
        let Entry::OperationId { seen_ms, .. } = entry else { panic!("{entry:?}") };
        times.push(*seen_ms);
    });
    assert_eq!(times, [100, 100]);
}

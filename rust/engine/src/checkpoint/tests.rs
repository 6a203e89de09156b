//! Folding against maps: any portions, any damage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::journal::entry::{Fingerprint, StoredResult};
use crate::wire::request::SessionId;

const IDENTITY: ShardIdentity = ShardIdentity([7; 16]);

fn windows() -> Windows {
    Windows {
        sessions: SessionSettings { tombstone_window_ms: 1_000, ..SessionSettings::default() },
        ids: OperationIdSettings { ids_window_ms: 1_000, born_ahead_ms: 0, ..OperationIdSettings::default() },
    }
}

/// The rows of a checkpoint, as a store would hold them.
#[derive(Default)]
struct Store {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    root: Option<Root>,
}

impl Store {
    fn root(&self) -> Root {
        self.root.clone().unwrap_or_else(|| Root::empty(IDENTITY))
    }

    fn fold(&mut self, commit: u64, entries: &[Entry<'_>]) {
        let mut fold = Fold::new(&self.root(), self.root().fold + 1, windows());
        for entry in entries {
            fold.add(entry).unwrap();
        }
        fold.seal(Position { commit, hash: commit }).unwrap();
        for step in 0..fold.steps() {
            let old = fold.old_key(step).map(|key| self.rows[&key].clone());
            for (key, row) in fold.merge(step, old.as_deref()).unwrap() {
                assert!(self.rows.insert(key, row).is_none(), "a page was overwritten");
            }
        }
        let (row, root, garbage) = fold.finish();
        assert_eq!(Root::decode(&row, IDENTITY).unwrap().pages, root.pages);
        for key in garbage {
            self.rows.remove(&key).unwrap();
        }
        assert_eq!(self.rows.len(), root.page_keys().len(), "rows that nobody names are left");
        self.root = Some(root);
    }

    fn counters(&self) -> BTreeMap<Vec<u8>, i64> {
        let mut counters = BTreeMap::new();
        self.read(|entry| {
            if let Entry::Counter { key, value } = entry {
                assert!(counters.insert(key.to_vec(), *value).is_none(), "a counter is in two pages");
            }
        });
        counters
    }

    fn read(&self, mut sink: impl FnMut(&Entry<'_>)) {
        let root = self.root();
        for key in root.page_keys() {
            root.read_page(&key, self.rows.get(&key).map(Vec::as_slice), &mut sink).unwrap();
        }
    }
}

fn key(number: u32) -> Vec<u8> {
    format!("counter-{number:08}").into_bytes()
}

#[test]
fn pages_split_as_they_grow_and_hold_everything_once() {
    let mut store = Store::default();
    let mut expected = BTreeMap::new();
    for round in 0..4_u32 {
        let keys: Vec<_> = (0..5_000 * (round + 1)).map(|number| key(number * (4 - round))).collect();
        let entries: Vec<_> = keys.iter().map(|key| Entry::Counter { key, value: i64::from(round) }).collect();
        expected.extend(keys.iter().map(|key| (key.clone(), i64::from(round))));
        store.fold(u64::from(round) + 1, &entries);
        assert_eq!(store.counters(), expected);
    }
    assert!(store.rows.len() > 5);
    for row in store.rows.values() {
        assert!(row.len() < PAGE_BYTES_MAX + 4096, "a page of {} bytes", row.len());
    }
}

#[test]
fn untouched_pages_stay_and_cleared_ones_go() {
    let mut store = Store::default();
    let keys: Vec<_> = (0..50_000).map(key).collect();
    store.fold(1, &keys.iter().map(|key| Entry::Counter { key, value: 1 }).collect::<Vec<_>>());
    let before = store.root();
    store.fold(2, &[Entry::Counter { key: &keys[0], value: 2 }]);
    let same = store.root().pages.iter().filter(|page| before.pages.contains(page)).count();
    assert_eq!(same, before.pages.len() - 1, "one change rewrote more than one page");
    let late = key(99);
    let session = SessionId([1; 16]);
    store.fold(3, &[Entry::SessionEnded { session, ended_ms: 0 }]);
    store.fold(
        4,
        &[Entry::Counter { key: b"early", value: 5 }, Entry::Cleared, Entry::Counter { key: &late, value: 9 }],
    );
    assert_eq!(store.counters(), BTreeMap::from([(late, 9)]));
    let mut sessions = 0;
    store.read(|entry| sessions += usize::from(matches!(entry, Entry::SessionEnded { .. })));
    assert_eq!(sessions, 1, "clearing the counters took a session with it");
}

#[test]
fn ids_leave_after_their_window_and_not_before() {
    let mut store = Store::default();
    let id = |id: &'static [u8], seen_ms| Entry::OperationId {
        id,
        fingerprint: Fingerprint(1),
        result: StoredResult::Value(1),
        seen_ms,
    };
    store.fold(1, &[Entry::Uptime { uptime_ms: 100 }, id(b"old", 100)]);
    let ids = |store: &Store| {
        let mut ids = Vec::new();
        store.read(|entry| {
            if let Entry::OperationId { id, .. } = entry {
                ids.push(id.to_vec());
            }
        });
        ids
    };
    store.fold(2, &[Entry::Uptime { uptime_ms: 1_100 }, id(b"new", 1_100)]);
    assert_eq!(ids(&store).len(), 2);
    store.fold(3, &[Entry::Uptime { uptime_ms: 1_101 }, id(b"newer", 1_101)]);
    assert_eq!(ids(&store).len(), 2);
    assert!(!ids(&store).contains(&b"old".to_vec()));
}

#[test]
fn a_wrong_row_is_found_out() {
    let mut store = Store::default();
    store.fold(1, &[Entry::Counter { key: b"a", value: 1 }]);
    let first = store.rows.clone();
    store.fold(2, &[Entry::Counter { key: b"a", value: 2 }]);
    let root = store.root();
    let key = root.page_keys().remove(0);
    let row = store.rows[&key].clone();
    let read = |row: Option<&[u8]>| root.read_page(&key, row, &mut |_| {});
    assert!(read(Some(&row)).is_ok());
    assert!(read(None).is_err());
    assert!(read(first.values().next().map(Vec::as_slice)).is_err(), "an older version of the page passed");
    for at in 0..row.len() {
        let mut flipped = row.clone();
        flipped[at] ^= 1;
        assert!(read(Some(&flipped)).is_err(), "a flipped bit at {at} passed");
        assert!(read(Some(&row[..at])).is_err(), "a row cut at {at} passed");
    }
    let mut next = root.clone();
    let encoded = next.encode();
    for at in 0..encoded.len() {
        let mut flipped = encoded.clone();
        flipped[at] ^= 1;
        assert!(Root::decode(&flipped, IDENTITY).is_err());
        assert!(Root::decode(&encoded[..at], IDENTITY).is_err());
    }
    assert!(Root::decode(&encoded, ShardIdentity([8; 16])).is_err());
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, i64),
    Delete(u8),
    Clear,
}

proptest! {
    #[test]
    fn folding_in_any_portions_gives_the_last_values(
        steps in prop::collection::vec(
            prop_oneof![
                8 => (any::<u8>(), any::<i64>()).prop_map(|(key, value)| Step::Set(key, value)),
                3 => any::<u8>().prop_map(Step::Delete),
                1 => Just(Step::Clear),
            ],
            0..200,
        ),
        portion in 1..50_usize,
    ) {
        let mut store = Store::default();
        let mut expected = BTreeMap::new();
        let keys: Vec<_> = (0..=u8::MAX).map(|number| key(u32::from(number))).collect();
        for (commit, portion) in steps.chunks(portion).enumerate() {
            let entries: Vec<_> = portion.iter().map(|step| match *step {
                Step::Set(number, value) => {
                    expected.insert(keys[usize::from(number)].clone(), value);
                    Entry::Counter { key: &keys[usize::from(number)], value }
                }
                Step::Delete(number) => {
                    expected.remove(&keys[usize::from(number)]);
                    Entry::Deleted { key: &keys[usize::from(number)] }
                }
                Step::Clear => {
                    expected.clear();
                    Entry::Cleared
                }
            }).collect();
            store.fold(commit as u64 + 1, &entries);
            prop_assert_eq!(&store.counters(), &expected);
        }
    }
}

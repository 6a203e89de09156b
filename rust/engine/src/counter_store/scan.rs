//! Looking at many counters: by cursor, all at once, the largest.

use super::index::Slot;
use super::{CounterRef, CounterStore, arena::Arena};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How many slots ahead a scan prefetches entries.
const AHEAD: usize = 8;

/// Larger values are greater; of equal values the earlier key.
type Ranked = (i64, Reverse<Box<[u8]>>);

impl CounterStore {
    /// Visits the present counters of the next `count` places in hash order; gives the next cursor,
    /// 0 at the end. Begin with cursor 0.
    ///
    /// A cursor is the least hash prefix not yet visited, so it means the same however the store
    /// grows, and after a restart with the same seed. From 0 to 0, a counter that is present
    /// throughout is visited exactly once; one that comes or goes meanwhile, at most once. A call
    /// looks at `count` places and the row of filled slots that it ends in, so it may visit fewer
    /// counters than `count`, none at all, or a few more.
    pub fn scan(&self, cursor: u64, count: usize, mut f: impl FnMut(&[u8], i64)) -> u64 {
        let Ok(from) = u32::try_from(cursor) else { return 0 };
        let index = self.index();
        let first = index.home(from);
        let past = first.saturating_add(count.max(1)).min(index.homes());
        // All counters with hash prefixes in `from..until` are visited now, and no others: counters
        // with one prefix are never separated.
        let until = index.first_tag(past);
        let mut visit = |slot: Slot| {
            if slot.tag >= from && u64::from(slot.tag) < until {
                let entry = self.arena.at(slot.at);
                if let Some(value) = entry.cell().get(&self.cells) {
                    f(entry.key(), value);
                }
            }
        };
        let mut fetched = Ahead::new(&self.arena);
        for (place, slot) in (first..).zip(index.slots_from(first)) {
            if let Some(slot) = fetched.exchange(place, slot) {
                visit(slot);
            }
            // Behind the range, the first empty slot ends what could have been pushed out of it.
            if slot.is_none() && place + 1 >= past {
                break;
            }
        }
        fetched.rest().for_each(visit);
        if past == index.homes() { 0 } else { until }
    }

    /// Gives every counter, absent ones too, in the order in which their keys came.
    pub fn for_each_ref(&self, mut f: impl FnMut(CounterRef)) {
        self.arena.for_each(|at, _| f(at));
    }

    /// Visits every present counter, in the order in which their keys came.
    pub fn for_each(&self, mut f: impl FnMut(&[u8], i64)) {
        self.arena.for_each(|_, entry| {
            if let Some(value) = entry.cell().get(&self.cells) {
                f(entry.key(), value);
            }
        });
    }

    /// The `n` largest counters whose key begins with `prefix`: by falling value, then by key.
    /// Looks at every counter.
    pub fn top(&self, n: usize, prefix: &[u8]) -> Vec<(Box<[u8]>, i64)> {
        // The smallest of the largest on top.
        let mut largest = BinaryHeap::<Reverse<Ranked>>::new();
        self.for_each(|key, value| {
            if !key.starts_with(prefix) {
                return;
            }
            if largest.len() >= n {
                let Some(Reverse((least, Reverse(last)))) = largest.peek() else { return };
                if (value, Reverse(key)) <= (*least, Reverse(&**last)) {
                    return;
                }
                largest.pop();
            }
            largest.push(Reverse((value, Reverse(key.into()))));
        });
        let sorted = largest.into_sorted_vec().into_iter();
        sorted.map(|Reverse((value, Reverse(key)))| (key, value)).collect()
    }
}

/// A short row of slots whose entries are on their way from memory.
struct Ahead<'a> {
    arena: &'a Arena,
    row: [Option<Slot>; AHEAD],
}

impl<'a> Ahead<'a> {
    fn new(arena: &'a Arena) -> Self {
        Self { arena, row: [None; AHEAD] }
    }

    /// Begins to fetch a slot's entry and gives the slot of AHEAD places before.
    fn exchange(&mut self, place: usize, slot: Option<Slot>) -> Option<Slot> {
        if let Some(slot) = slot {
            self.arena.prefetch(slot.at);
        }
        std::mem::replace(&mut self.row[place % AHEAD], slot)
    }

    /// The slots not yet given.
    fn rest(self) -> impl Iterator<Item = Slot> {
        self.row.into_iter().flatten()
    }
}

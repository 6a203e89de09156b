//! Reading many counters: by cursor, all at once, or the largest.

use super::index::Slot;
use super::{CounterRef, CounterStore, arena::Arena};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How many slots ahead a scan prefetches entries.
const AHEAD: usize = 8;

/// Orders by value, then by reversed key.
type Ranked = (i64, Reverse<Box<[u8]>>);

impl CounterStore {
    /// Visits the present counters in the next `count` slots in hash order; returns the next cursor, 0 at the end. Start
    /// with cursor 0.
    ///
    /// A cursor is the smallest hash prefix not yet visited, so it stays valid as the store grows, and after a restart
    /// with the same seed. From 0 to 0, a counter that is present throughout is visited exactly once; one that appears or
    /// disappears meanwhile, at most once. A call reads `count` slots and the run of filled slots where they end, so it
    /// may visit fewer counters than `count`, none, or a few more.
    pub fn scan(&self, cursor: u64, count: usize, mut f: impl FnMut(&[u8], i64)) -> u64 {
        let Ok(from) = u32::try_from(cursor) else { return 0 };
        let index = self.index();
        let first = index.home(from);
        let past = first.saturating_add(count.max(1)).min(index.homes());
        // Visits all counters with hash prefixes in `from..until` and no others: counters that share a
        // prefix stay together.
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
            // Past the range, entries pushed out of it end at the first empty slot.
            if slot.is_none() && place + 1 >= past {
                break;
            }
        }
        fetched.rest().for_each(visit);
        if past == index.homes() { 0 } else { until }
    }

    /// Visits every counter, absent ones too, in the order of insertion.
    pub fn for_each_ref(&self, mut f: impl FnMut(CounterRef)) {
        self.arena.for_each(|at, _| f(at));
    }

    /// Visits every present counter in the order of insertion.
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
        let mut top = Top::new(n, prefix);
        self.for_each(|key, value| top.largest.offer(key, value));
        top.finish()
    }
}

/// The largest counters, looked for some at a time.
#[derive(Debug)]
pub struct Top {
    cursor: u64,
    largest: Largest,
}

#[derive(Debug)]
struct Largest {
    n: usize,
    prefix: Box<[u8]>,
    /// The smallest of the largest on top.
    heap: BinaryHeap<Reverse<Ranked>>,
    key_bytes: usize,
}

impl Top {
    /// Looks for the `n` largest whose key begins with `prefix`.
    #[must_use]
    pub fn new(n: usize, prefix: &[u8]) -> Self {
        Self { cursor: 0, largest: Largest { n, prefix: prefix.into(), heap: BinaryHeap::new(), key_bytes: 0 } }
    }

    /// Looks at about `places` more places of the same store. True: it has seen them all. Each counter that is there
    /// throughout is looked at once, at some moment.
    pub fn look(&mut self, counters: &CounterStore, places: usize) -> bool {
        let largest = &mut self.largest;
        self.cursor = counters.scan(self.cursor, places, |key, value| largest.offer(key, value));
        self.cursor == 0
    }

    /// Bytes of the keys that it would give now.
    #[must_use]
    pub const fn key_bytes(&self) -> usize {
        self.largest.key_bytes
    }

    /// What was found: by falling value, then by key.
    #[must_use]
    pub fn finish(self) -> Vec<(Box<[u8]>, i64)> {
        let sorted = self.largest.heap.into_sorted_vec().into_iter();
        sorted.map(|Reverse((value, Reverse(key)))| (key, value)).collect()
    }
}

impl Largest {
    fn offer(&mut self, key: &[u8], value: i64) {
        if !key.starts_with(&self.prefix) {
            return;
        }
        if self.heap.len() >= self.n {
            let Some(Reverse((least, Reverse(last)))) = self.heap.peek() else { return };
            if (value, Reverse(key)) <= (*least, Reverse(&**last)) {
                return;
            }
            self.key_bytes -= last.len();
            self.heap.pop();
        }
        self.key_bytes += key.len();
        self.heap.push(Reverse((value, Reverse(key.into()))));
    }
}

/// A short queue of slots whose entries are being prefetched.
struct Ahead<'a> {
    arena: &'a Arena,
    row: [Option<Slot>; AHEAD],
}

impl<'a> Ahead<'a> {
    fn new(arena: &'a Arena) -> Self {
        Self { arena, row: [None; AHEAD] }
    }

    /// Starts to prefetch a slot's entry and returns the slot from AHEAD steps before.
    fn exchange(&mut self, place: usize, slot: Option<Slot>) -> Option<Slot> {
        if let Some(slot) = slot {
            self.arena.prefetch(slot.at);
        }
        std::mem::replace(&mut self.row[place % AHEAD], slot)
    }

    /// The slots not returned yet.
    fn rest(self) -> impl Iterator<Item = Slot> {
        self.row.into_iter().flatten()
    }
}

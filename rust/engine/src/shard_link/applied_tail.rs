//! What was acknowledged at `applied` and is not known to be durable: how much is lost after a crash, and of what.
//!
//! A session may end while it has such a tail. The tail outlives it, because the shard may still crash.

use std::collections::VecDeque;

use super::batches::read_item;
use super::types::LostTail;
use crate::wire::msgpack_rpc::reader::Reader;
use crate::wire::request::SessionId;

/// At most this many refused numbers are remembered. Beyond it, a lost tail is counted too large by those forgotten.
const REFUSED_MAX: usize = 65_536;

/// Neighbouring operations that were answered at `applied`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    first: u64,
    last: u64,
    /// The encoded items, where the owner wants to know them. Empty otherwise.
    items: Vec<u8>,
}

/// How far one session was answered, how much of that is known to be durable, and the operations between.
#[derive(Debug)]
pub(super) struct AppliedTail {
    pub session: SessionId,
    /// The highest number that was answered.
    pub answered_max: u64,
    /// Up to here, what was answered is known to be durable.
    pub confirmed_through: u64,
    /// The shard may have forgotten the session without a crash.
    pub may_be_forgotten: bool,
    /// Answered at `applied` and not confirmed.
    pub operations: u64,
    runs: VecDeque<Run>,
    /// Of these, the ones that were answered with an error, so didn't count.
    refused: VecDeque<u64>,
}

impl AppliedTail {
    pub(super) const fn new(session: SessionId) -> Self {
        Self {
            session,
            answered_max: 0,
            confirmed_through: 0,
            may_be_forgotten: false,
            operations: 0,
            runs: VecDeque::new(),
            refused: VecDeque::new(),
        }
    }

    /// A batch was answered at `applied`. `items` are its encoded items, or nothing.
    pub(super) fn answer(&mut self, first: u64, last: u64, items: &[u8]) {
        self.answered_max = self.answered_max.max(last);
        self.operations += last - first + 1;
        // Answers may overtake each other.
        let index = self.runs.partition_point(|run| run.first < first);
        match index.checked_sub(1).and_then(|before| self.runs.get_mut(before)) {
            Some(run) if run.last + 1 == first && items.is_empty() && run.items.is_empty() => run.last = last,
            _ => self.runs.insert(index, Run { first, last, items: items.to_vec() }),
        }
        if first <= self.confirmed_through {
            // One behind it was answered at `durable` before.
            self.confirm(self.confirmed_through);
        }
    }

    /// An operation of a batch that was answered at `applied` was refused.
    pub(super) fn refuse(&mut self, sequence: u64) {
        if self.refused.len() == REFUSED_MAX {
            self.refused.pop_front();
        }
        let index = self.refused.partition_point(|&other| other < sequence);
        if sequence > self.confirmed_through {
            self.refused.insert(index, sequence);
        }
    }

    /// A batch that ends with this number was answered at `durable`: so is all before it.
    pub(super) fn answer_durably(&mut self, last: u64) {
        self.answered_max = self.answered_max.max(last);
        self.confirm(last);
    }

    /// What was answered up to this number is durable.
    pub(super) fn confirm(&mut self, through: u64) {
        let through = through.min(self.answered_max);
        self.confirmed_through = self.confirmed_through.max(through);
        while let Some(run) = self.runs.front_mut()
            && run.first <= through
        {
            if run.last > through {
                self.operations -= through + 1 - run.first;
                let length = items_length(&run.items, through + 1 - run.first);
                run.items.drain(..length);
                run.first = through + 1;
                break;
            }
            self.operations -= run.last + 1 - run.first;
            self.runs.pop_front();
        }
        while self.refused.front().is_some_and(|&sequence| sequence <= through) {
            self.refused.pop_front();
        }
    }

    /// Is nothing unconfirmed?
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// After a crash: does an unknown session (`None`) leave open what became of the operations? A session that was
    /// never durable is unknown because all of it is lost. Another one was forgotten, before the crash or after it.
    pub(super) const fn is_unknown(&self, last_sequence: Option<u64>) -> bool {
        last_sequence.is_none() && (self.may_be_forgotten || self.confirmed_through > 0)
    }

    /// After a crash that left the session at this number: what is lost. The tail is empty then.
    pub(super) fn take_lost(&mut self, last: u64) -> LostTail {
        let mut lost =
            LostTail { session: self.session, first_sequence: 0, last_sequence: 0, count: 0, operations: Vec::new() };
        for run in self.runs.iter().filter(|run| run.last > last) {
            let first = run.first.max(last + 1);
            lost.first_sequence = if lost.first_sequence == 0 { first } else { lost.first_sequence.min(first) };
            lost.last_sequence = lost.last_sequence.max(run.last);
            lost.count += run.last - first + 1;
            let mut reader = Reader::new(&run.items);
            for sequence in run.first..=run.last {
                let Some((key, delta)) = read_item(&mut reader) else { break };
                if sequence > last && !self.refused.contains(&sequence) {
                    lost.operations.push((key.to_vec(), delta));
                }
            }
        }
        let refused = self.refused.iter().filter(|&&sequence| sequence > last).count() as u64;
        lost.count = lost.count.saturating_sub(refused);
        self.clear();
        lost
    }

    /// Forgets the operations; gives how many these were.
    pub(super) fn clear(&mut self) -> u64 {
        self.runs.clear();
        self.refused.clear();
        std::mem::take(&mut self.operations)
    }

    /// What must hold between two calls.
    pub(super) fn check(&self) {
        debug_assert!(self.confirmed_through <= self.answered_max, "more is durable than was answered: {self:?}");
        let counted = |run: &Run| run.last + 1 - run.first;
        debug_assert_eq!(self.operations, self.runs.iter().map(counted).sum::<u64>(), "unconfirmed operations");
        debug_assert!(self.runs.iter().is_sorted_by_key(|run| run.first), "unconfirmed runs out of order");
        debug_assert!(self.runs.iter().all(|run| run.last > self.confirmed_through), "durable, and unconfirmed");
    }
}

/// Bytes of the first `count` encoded items.
fn items_length(items: &[u8], count: u64) -> usize {
    let mut reader = Reader::new(items);
    for _ in 0..count {
        if read_item(&mut reader).is_none() {
            break;
        }
    }
    items.len() - reader.rest().len()
}

#[cfg(test)]
mod tests {
    use super::super::batches::push_item;
    use super::*;

    fn tail() -> AppliedTail {
        AppliedTail::new(SessionId([1; 16]))
    }

    #[test]
    fn neighbours_are_one_run_and_a_durable_answer_covers_what_is_before_it() {
        let mut tail = tail();
        for first in (1..=91).step_by(10) {
            tail.answer(first, first + 9, &[]);
        }
        assert_eq!(tail.runs, [Run { first: 1, last: 100, items: Vec::new() }]);
        tail.confirm(15);
        assert_eq!(tail.runs.front().map(|run| (run.first, run.last)), Some((16, 100)));
        assert_eq!((tail.confirmed_through, tail.operations), (15, 85));
        tail.answer_durably(110);
        assert!(tail.is_empty());
        // An answer at applied may overtake the durable one before it.
        tail.answer(121, 130, &[]);
        tail.answer_durably(120);
        assert_eq!((tail.confirmed_through, tail.answered_max, tail.take_lost(120).count), (120, 130, 10));
        // And the other way round, or one at applied another.
        tail.answer_durably(150);
        tail.answer(141, 145, &[]);
        tail.refuse(142);
        assert!(tail.is_empty());
        tail.answer(171, 180, &[]);
        tail.answer(161, 165, &[]);
        tail.check();
        tail.confirm(165);
        assert_eq!((tail.operations, tail.take_lost(0).count), (10, 10));
        tail.check();
    }

    #[test]
    fn a_lost_tail_counts_only_what_counted() {
        let mut tail = tail();
        tail.answer(1, 10, &[]);
        tail.refuse(3);
        tail.refuse(9);
        assert_eq!(tail.take_lost(5).count, 4);
        assert_eq!(tail.take_lost(0).count, 0);
    }

    #[test]
    fn a_lost_tail_names_what_was_lost() {
        let mut tail = tail();
        let items = |names: std::ops::RangeInclusive<u64>| {
            let mut bytes = Vec::new();
            names.for_each(|name| push_item(&mut bytes, name.to_string().as_bytes(), name as i64));
            bytes
        };
        tail.answer(1, 4, &items(1..=4));
        tail.answer(5, 9, &items(5..=9));
        tail.refuse(7);
        // Confirmed in the middle of a batch, and lost in the middle of what is left of it.
        tail.confirm(2);
        tail.check();
        let lost = tail.take_lost(3);
        let named = [4, 5, 6, 8, 9].map(|name: i64| (name.to_string().into_bytes(), name));
        assert_eq!((lost.first_sequence, lost.last_sequence, lost.count), (4, 9, 5));
        assert_eq!(lost.operations, named);
        assert!(tail.is_empty());
        tail.check();
    }
}

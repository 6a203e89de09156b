//! What was acknowledged at `applied` and is not known to be durable, as numbers: how much is lost after a crash.
//!
//! A session may end while it has such a tail. The tail outlives it, because the shard may still crash.

use std::collections::VecDeque;

use crate::wire::request::SessionId;

/// So many refused numbers are remembered; beyond it a lost tail is counted too large by those forgotten.
const REFUSED_MAX: usize = 65_536;

/// How far one session was answered, how much of that is known to be durable, and the numbers between.
#[derive(Debug)]
pub(super) struct AppliedTail {
    pub session: SessionId,
    /// The highest number that was answered.
    pub answered_max: u64,
    /// Up to here, what was answered is known to be durable.
    pub confirmed_through: u64,
    /// The shard may have forgotten the session without a crash.
    pub may_be_forgotten: bool,
    /// Answered at `applied` and not confirmed: first and last, neighbours made one.
    ranges: VecDeque<(u64, u64)>,
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
            ranges: VecDeque::new(),
            refused: VecDeque::new(),
        }
    }

    /// A batch was answered at `applied`.
    pub(super) fn answer(&mut self, first: u64, last: u64) {
        self.answered_max = self.answered_max.max(last);
        match self.ranges.back_mut() {
            Some(range) if range.1 + 1 == first => range.1 = last,
            _ => self.ranges.push_back((first, last)),
        }
    }

    /// An operation of a batch that was answered at `applied` was refused.
    pub(super) fn refuse(&mut self, sequence: u64) {
        if self.refused.len() == REFUSED_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back(sequence);
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
        while let Some(range) = self.ranges.front_mut()
            && range.0 <= through
        {
            if range.1 > through {
                range.0 = through + 1;
                break;
            }
            self.ranges.pop_front();
        }
        while self.refused.front().is_some_and(|&sequence| sequence <= through) {
            self.refused.pop_front();
        }
    }

    /// Is nothing unconfirmed?
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// After a crash: does an unknown session (`None`) leave open what became of the operations? A session that was
    /// never durable is unknown because all of it is lost. Another one was forgotten, before the crash or after it.
    pub(super) const fn is_unknown(&self, last_sequence: Option<u64>) -> bool {
        last_sequence.is_none() && (self.may_be_forgotten || self.confirmed_through > 0)
    }

    /// After a crash that left the session at this number: how many are lost. The tail is empty then.
    pub(super) fn take_lost(&mut self, last: u64) -> u64 {
        let numbers: u64 = self.ranges.iter().map(|&(first, end)| end.saturating_sub(last.max(first - 1))).sum();
        let refused = self.refused.iter().filter(|&&sequence| sequence > last).count() as u64;
        self.clear();
        numbers.saturating_sub(refused)
    }

    /// Forgets the operations; gives how many these were.
    pub(super) fn clear(&mut self) -> u64 {
        let count = self.ranges.iter().map(|&(first, last)| last - first + 1).sum();
        self.ranges.clear();
        self.refused.clear();
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail() -> AppliedTail {
        AppliedTail::new(SessionId([1; 16]))
    }

    #[test]
    fn neighbours_are_one_range_and_a_durable_answer_covers_what_is_before_it() {
        let mut tail = tail();
        for first in (1..=91).step_by(10) {
            tail.answer(first, first + 9);
        }
        assert_eq!(tail.ranges, [(1, 100)]);
        tail.confirm(15);
        assert_eq!((tail.ranges.front(), tail.confirmed_through), (Some(&(16, 100)), 15));
        tail.answer_durably(110);
        assert!(tail.is_empty());
        // An answer at applied may overtake the durable one before it.
        tail.answer(121, 130);
        tail.answer_durably(120);
        assert_eq!((tail.confirmed_through, tail.answered_max, tail.take_lost(120)), (120, 130, 10));
    }

    #[test]
    fn a_lost_tail_counts_only_what_counted() {
        let mut tail = tail();
        tail.answer(1, 10);
        tail.refuse(3);
        tail.refuse(9);
        assert_eq!(tail.take_lost(5), 4);
        assert_eq!(tail.take_lost(0), 0);
    }
}

//! What the owner of a link is told beside the outcomes of operations, when it asks: what was lost, what was given up while
//! nobody waited for it, how batches fared, and how many of the latest operations failed.

use std::collections::VecDeque;

use super::types::{GivenUp, LinkSample, LostTail};
use crate::planted_bug::{PlantedBug, is_planted};

/// At most so many operations that were given up are kept until they are taken; the oldest are forgotten.
const GIVEN_UP_MAX: usize = 10_000;
/// At most so many lost tails.
const LOST_MAX: usize = 1000;
/// The share of failures looks at so many operations or more, and at less than twice as many.
const PERIOD_OPERATIONS: u64 = 1000;

/// Reports that wait to be taken.
#[derive(Debug)]
pub(super) struct Reports {
    /// Are operations named?
    pub names_operations: bool,
    samples_max: usize,
    pub lost: Vec<LostTail>,
    pub given_up: VecDeque<GivenUp>,
    pub samples: Vec<LinkSample>,
    /// Operations that were answered, and that failed with their batch: in this period, and in the one before.
    recent: [(u64, u64); 2],
}

impl Reports {
    pub(super) const fn new(names_operations: bool, samples_max: usize) -> Self {
        Self {
            names_operations,
            samples_max,
            lost: Vec::new(),
            given_up: VecDeque::new(),
            samples: Vec::new(),
            recent: [(0, 0); 2],
        }
    }

    /// Operations were lost in a crash of the shard.
    pub(super) fn lose(&mut self, lost: LostTail) {
        let is_hidden = is_planted(PlantedBug::LinkHidesLostTail);
        if self.names_operations && lost.count > 0 && self.lost.len() < LOST_MAX && !is_hidden {
            self.lost.push(lost);
        }
    }

    /// This operation did not count, or nobody can tell, and nobody waits for it.
    pub(super) fn give_up(&mut self, item: Option<(&[u8], i64)>, sent_at_ms: u64, is_unknown: bool) {
        if let Some((key, delta)) = item.filter(|_| self.names_operations) {
            if self.given_up.len() == GIVEN_UP_MAX {
                self.given_up.pop_front();
            }
            self.given_up.push_back(GivenUp { key: key.to_vec(), delta, sent_at_ms, is_unknown });
        }
    }

    /// A batch was answered, or its connection ended.
    pub(super) fn sample(&mut self, sample: LinkSample) {
        if self.samples.len() < self.samples_max {
            self.samples.push(sample);
        }
    }

    /// So many operations have an answer of their own, an error too; so many failed with their batch or were never sent.
    pub(super) const fn count(&mut self, answered: u64, failed: u64) {
        let [now, before] = &mut self.recent;
        now.0 += answered;
        now.1 += failed;
        if now.0 + now.1 >= PERIOD_OPERATIONS {
            *before = *now;
            *now = (0, 0);
        }
    }

    /// The share of the latest operations that were answered; 1.0 where there are none.
    pub(super) fn success_rate(&self) -> f64 {
        let [now, before] = self.recent;
        let (answered, failed) = (now.0 + before.0, now.1 + before.1);
        if answered + failed == 0 { 1.0 } else { answered as f64 / (answered + failed) as f64 }
    }
}

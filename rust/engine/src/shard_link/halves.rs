//! Whether the callers of a shard are served all together or in two halves.
//!
//! Callers that count on as soon as they are answered fall into step: all of them wait while the shard writes their batch
//! to disk, and the shard waits while the client serves them. A batch that leaves as soon as it has half of them lets both
//! work at the same time. Where the disk is slow it only makes two writes of what could be one. Which is better depends on
//! the disk, the machine and the callers. So now and then the other way is tried, and kept if more increments are answered
//! by it: a window of answers each, those with a pause in them left out.

/// A smaller half isn't worth a request of its own.
const HALF_MIN: usize = 8;
/// Answers in a window.
const ANSWERS: u64 = 64;
/// In a window with a gap so many times longer than the mean, callers or the machine paused.
const GAP: u64 = 8;
/// What is better by less is noise.
const GAIN: f64 = 1.05;
/// Between two trials there are at most so many windows: a trial that fails doubles them.
const WINDOWS_MAX: u32 = 64;

/// Learns from answers at which size batches leave.
#[derive(Debug, Default)]
pub(super) struct Halves {
    is_apart: bool,
    is_trial: bool,
    /// Increments a microsecond by the way that is better as far as is known; 0.0: it isn't known yet.
    rate: f64,
    /// Windows since the last trial.
    windows: u32,
    /// How many there are to be; 0 stands for the 1 of the beginning.
    wait: u32,
    since_us: u64,
    answered_at_us: u64,
    gap_us: u64,
    answers: u64,
    settled: usize,
    /// Callers are as many as there were at most in this window and the one before.
    callers: usize,
    callers_before: usize,
}

impl Halves {
    fn begin(&mut self, now_us: u64) {
        self.since_us = now_us;
        self.answered_at_us = now_us;
        self.answers = 0;
        self.settled = 0;
        self.gap_us = 0;
        self.callers_before = std::mem::take(&mut self.callers);
    }

    /// So many increments were answered together, when so many were not settled, these included. Gives the size at which
    /// batches leave from now on; `None`: all together.
    pub(super) fn on_answer(&mut self, now_us: u64, count: usize, unsettled: usize) -> Option<usize> {
        if self.since_us == 0 {
            self.begin(now_us);
        }
        self.gap_us = self.gap_us.max(now_us.saturating_sub(self.answered_at_us));
        self.answered_at_us = now_us;
        self.answers += 1;
        self.settled += count;
        self.callers = self.callers.max(unsettled);
        let half = self.callers.max(self.callers_before).div_ceil(2);
        if self.answers == ANSWERS {
            let took_us = now_us.saturating_sub(self.since_us);
            if half >= HALF_MIN && self.gap_us * ANSWERS < GAP * took_us {
                self.judge(self.settled as f64 / took_us as f64);
            }
            self.begin(now_us);
        }
        (self.is_apart && half >= HALF_MIN).then_some(half)
    }

    fn judge(&mut self, rate: f64) {
        if self.is_trial {
            self.is_trial = false;
            self.windows = 0;
            if rate > GAIN * self.rate {
                self.rate = rate;
                self.wait = 1;
            } else {
                self.is_apart = !self.is_apart;
                self.wait = (2 * self.wait.max(1)).min(WINDOWS_MAX);
            }
            return;
        }
        self.rate = if self.rate > 0.0 { f64::midpoint(self.rate, rate) } else { rate };
        self.windows += 1;
        if self.windows >= self.wait.max(1) {
            self.is_trial = true;
            self.is_apart = !self.is_apart;
        }
    }
}

#[cfg(test)]
mod tests {
    //! Against a model of a shard, a disk and a client.

    use std::collections::VecDeque;

    use super::*;

    const CALLERS: usize = 100;

    /// Callers that count on at once. The disk makes one write at a time, the client serves one caller at a time.
    struct World {
        now_us: f64,
        serving_us: f64,
        disk_us: f64,
        hops_us: f64,
        callers: usize,
        noise: f64,
        chance: u64,
        halves: Halves,
        disk_free_at: f64,
        /// When they are answered, and how many, of batches in order.
        answers: VecDeque<(f64, usize)>,
        gathered: usize,
    }

    impl World {
        fn new(serving_us: f64, disk_us: f64, hops_us: f64) -> Self {
            Self::of(serving_us, disk_us, hops_us, CALLERS, 0.0, 1)
        }

        fn of(serving_us: f64, disk_us: f64, hops_us: f64, callers: usize, noise: f64, seed: u64) -> Self {
            let mut world = Self {
                now_us: 1.0,
                serving_us,
                disk_us,
                hops_us,
                callers,
                noise,
                chance: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
                halves: Halves::default(),
                disk_free_at: 0.0,
                answers: VecDeque::new(),
                gathered: 0,
            };
            world.leave(callers, 0.0);
            world
        }

        fn leave(&mut self, count: usize, when: f64) {
            self.chance ^= self.chance << 13;
            self.chance ^= self.chance >> 7;
            self.chance ^= self.chance << 17;
            let chance = (self.chance % 1000) as f64 / 1000.0;
            let begin = (when + self.hops_us).max(self.disk_free_at);
            self.disk_free_at = begin + self.disk_us * (1.0 + self.noise * chance);
            self.answers.push_back((self.disk_free_at, count));
        }

        /// The share of answers that were given in halves.
        fn run(&mut self, answers: usize, pause_us: f64) -> f64 {
            let mut apart = 0;
            for number in 0..answers {
                let (answered_at, count) = self.answers.pop_front().unwrap();
                let pause = if number % 50 == 0 { pause_us } else { 0.0 };
                self.now_us = self.now_us.max(answered_at) + pause;
                let unsettled = count + self.answers.iter().map(|&(_, others)| others).sum::<usize>();
                let size = self.halves.on_answer(self.now_us as u64, count, unsettled);
                apart += usize::from(size.is_some());
                for _ in 0..count {
                    self.now_us += self.serving_us / self.callers as f64;
                    self.gathered += 1;
                    if Some(self.gathered) == size {
                        self.leave_all();
                    }
                }
                if self.gathered > 0 && self.answers.is_empty() {
                    self.leave_all();
                }
            }
            apart as f64 / answers as f64
        }

        fn leave_all(&mut self) {
            let count = std::mem::take(&mut self.gathered);
            self.leave(count, self.now_us);
        }
    }

    #[test]
    fn two_halves_where_the_client_is_slower_than_the_disk() {
        assert!(World::new(400.0, 100.0, 200.0).run(5000, 0.0) > 0.9);
    }

    #[test]
    fn all_together_where_the_disk_is_slower() {
        assert!(World::new(400.0, 5000.0, 0.0).run(5000, 0.0) < 0.1);
        assert!(World::new(0.0, 100.0, 0.0).run(5000, 0.0) < 0.1);
    }

    #[test]
    fn a_noisy_disk_does_not_change_that() {
        for seed in 1..6 {
            assert!(World::of(400.0, 100.0, 200.0, CALLERS, 1.0, seed).run(5000, 0.0) > 0.8, "{seed}");
            assert!(World::of(400.0, 5000.0, 0.0, CALLERS, 1.0, seed).run(5000, 0.0) < 0.2, "{seed}");
        }
    }

    #[test]
    fn it_is_noticed_when_the_disk_becomes_slow_or_fast() {
        let mut world = World::new(400.0, 100.0, 200.0);
        world.run(6000, 0.0);
        world.disk_us = 5000.0;
        world.run(6000, 0.0);
        assert!(world.run(6000, 0.0) < 0.1);
        world.disk_us = 100.0;
        world.run(6000, 0.0);
        assert!(world.run(6000, 0.0) > 0.9);
    }

    #[test]
    fn pauses_say_nothing() {
        assert!(World::new(400.0, 100.0, 200.0).run(5000, 1e6) == 0.0);
    }

    #[test]
    fn few_callers_stay_together() {
        assert!(World::of(400.0, 100.0, 200.0, 14, 0.0, 1).run(5000, 0.0) == 0.0);
        assert!(World::of(400.0, 100.0, 200.0, 16, 0.0, 1).run(5000, 0.0) > 0.9);
    }

    #[test]
    fn a_half_follows_the_callers() {
        let mut halves = Halves { is_apart: true, ..Halves::default() };
        for (count, unsettled) in [(50, 100), (50, 50)].repeat(100) {
            assert_eq!(halves.on_answer(1, count, unsettled), Some(50));
        }
        // Fewer callers are noticed, if not at once.
        let mut last = None;
        (0..200).for_each(|_| last = halves.on_answer(1, 20, 41));
        assert_eq!(last, Some(21));
    }
}

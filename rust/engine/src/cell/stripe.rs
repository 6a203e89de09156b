//! Where a contended counter lives: a base and several lanes, each on its own cache line.
//!
//! A thread adds to its lane without meeting the others. Whoever wants to know the value takes the
//! lock, *closes* every open lane by swapping CLOSED in, and puts what was in them together with its
//! own change into the base in one compare-and-swap. An adder that finds its lane closed goes to the
//! base. So the base's change includes everything that was completed before it:
//!
//! - an amount in a lane was swapped out, or its adder found CLOSED and went to the base;
//! - lanes are opened under the lock only, so none opens while another is being closed.
//!
//! Lanes stay closed until adders collide on the base again: a counter that is read often works as
//! a single atomic.
//!
//! Nothing can overflow: a lane opens only while the base is calm (within ±2^62); without the lock
//! the base changes from calm to calm only; a lane holds at most 2^40. So the base plus all lanes
//! stays far inside 64 bits, and a refused change has nothing to take back.

use super::{Content, Overflow, SPECIAL, calm};
use crate::atomics::{AtomicI64, Mutex, Ordering, lock};
use crossbeam_utils::CachePadded;

/// Lanes of a stripe, a power of two.
const LANES: usize = if cfg!(pycounter_loom) { 2 } else { 16 };
/// A lane that takes nothing: no amount in a lane comes near it.
const CLOSED: i64 = i64::MIN;
/// The most that a lane holds, either way.
const LANE_MAX: i64 = 1 << 40;

// The overflow argument of the header, and CLOSED being no amount.
const _: () = assert!((LANES as i64) * LANE_MAX < i64::MAX / 4);

struct State {
    present: bool,
    /// One bit a lane that may be open.
    open: u32,
}

pub(super) struct Stripe {
    state: Mutex<State>,
    /// The value but for what is in lanes; SPECIAL if absent (`State::present` decides).
    base: CachePadded<AtomicI64>,
    lanes: [CachePadded<AtomicI64>; LANES],
}

impl Stripe {
    /// A stripe for nothing yet: absent, all lanes closed.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State { present: false, open: 0 }),
            base: CachePadded::new(AtomicI64::new(SPECIAL)),
            lanes: std::array::from_fn(|_| CachePadded::new(AtomicI64::new(CLOSED))),
        }
    }

    /// Takes over a present counter; `take` takes the value out of its word, with the lock held.
    pub(super) fn open(&self, take: impl FnOnce() -> i64) {
        let mut state = lock(&self.state);
        // Relaxed: it is a count; what leads to it was published by others.
        self.base.store(take(), Ordering::Relaxed);
        state.present = true;
    }

    /// Adds without the lock, to the caller's lane or the base; false: use [`change`](Self::change).
    pub(super) fn add(&self, delta: i64, lane: usize) -> bool {
        let place = lane % LANES;
        let lane = &self.lanes[place];
        // All Relaxed: amounts are only counted with, and each read-modify-write sees the newest.
        let mut amount = lane.load(Ordering::Relaxed);
        while amount != CLOSED {
            let next = amount.wrapping_add(delta);
            if !lane_holds(delta) || !lane_holds(next) {
                return false;
            }
            match lane.compare_exchange_weak(amount, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => amount = seen,
            }
        }
        let mut base = self.base.load(Ordering::Relaxed);
        loop {
            let next = base.wrapping_add(delta); // if it wraps, it isn't calm
            if !calm(base) || !calm(next) {
                return false;
            }
            match self.base.compare_exchange_weak(base, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => base = seen,
            }
            if self.open_lane(place, delta) {
                return true;
            }
        }
    }

    /// Adds to a lane, opening it if it is closed; false if that isn't allowed now.
    #[cfg(test)]
    pub(super) fn force_lane(&self, lane: usize, delta: i64) -> bool {
        let place = lane % LANES;
        self.open_lane(place, delta) || (self.lanes[place].load(Ordering::Relaxed) != CLOSED && self.add(delta, lane))
    }

    /// Opens the lane with this amount, if nobody holds the lock and the base is calm.
    fn open_lane(&self, place: usize, delta: i64) -> bool {
        let Ok(mut state) = self.state.try_lock() else { return false };
        let open = state.open & (1 << place) != 0;
        if open || !lane_holds(delta) || !calm(self.base.load(Ordering::Relaxed)) {
            return false;
        }
        // Closed, and only a holder of the lock opens it: nobody else writes to it now.
        self.lanes[place].store(delta, Ordering::Relaxed);
        state.open |= 1 << place;
        true
    }

    /// Closes the lanes and replaces the content by what `to` makes of it.
    pub(super) fn change(
        &self,
        to: impl Fn(Content) -> Result<Content, Overflow>,
    ) -> Result<(Content, Content), Overflow> {
        let mut state = lock(&self.state);
        let mut folded = 0;
        for (place, lane) in self.lanes.iter().enumerate() {
            if state.open & (1 << place) != 0 {
                folded += lane.swap(CLOSED, Ordering::Relaxed);
            }
        }
        state.open = 0;
        let mut base = self.base.load(Ordering::Relaxed);
        loop {
            // Lanes are open only while present, so `folded` is 0 for an absent counter.
            let before = state.present.then_some(base).map(|base| base + folded);
            let outcome = to(before);
            let after = outcome.unwrap_or(before);
            let next = after.unwrap_or(SPECIAL);
            // It fails only while the base is calm: adders change nothing else.
            match self.base.compare_exchange_weak(base, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    state.present = after.is_some();
                    return outcome.map(|_| (before, after));
                }
                Err(seen) => base = seen,
            }
        }
    }
}

fn lane_holds(amount: i64) -> bool {
    (-LANE_MAX..=LANE_MAX).contains(&amount)
}

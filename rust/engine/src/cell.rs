//! A counter's cell: one atomic word that holds the value, or says that there is none, or that the
//! value lives in stripes.
//!
//! # The word
//!
//! A value from -2^62 up to below 2^62 is *calm* and is stored in the word as it is. Calm values change into calm
//! values by one compare-and-swap, without a lock. Every other change (a counter comes to be, is
//! deleted, leaves the calm range or comes back, gets stripes) is made under a lock, and outside
//! the calm range only holders of that lock write the word at all. [`SPECIAL`], a number outside
//! the calm range, means "absent" or "in stripes"; a genuine value that happens to equal it is told
//! apart by [`LITERAL`]. So presence and value change together, in one atomic step: `delete` racing
//! with `incr` can neither lose an amount nor leave an empty counter behind.
//!
//! # Stripes
//!
//! An `add` that keeps losing its compare-and-swap may move its counter into a [`stripe::Stripe`]:
//! a base and several lanes, each on a cache line of its own. It stays there for good (until the
//! store is rebuilt under exclusive access), so the word of a striped cell never changes again.
//!
//! # Ordering
//!
//! No other memory hangs on the value itself, and a read-modify-write always sees the newest value, so Relaxed
//! suffices for calm changes. Where a word leads to other memory (SPECIAL leads to the
//! stripe's number and pointer), its store is Release and its load Acquire.

#[path = "cell/stripe.rs"]
mod stripe;

use crate::atomics::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU8, AtomicUsize, Mutex, MutexGuard, Ordering, lock, locked_mut,
};
use std::ptr;
use stripe::Stripe;

#[cfg(test)]
#[path = "cell/owned.rs"]
mod owned;

#[cfg(all(test, not(pycounter_loom)))]
#[path = "cell/tests.rs"]
mod tests;

#[cfg(all(test, pycounter_loom))]
#[path = "cell/loom_tests.rs"]
mod loom_tests;

/// The change would overflow 64 bits; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value would leave the range of 64 bits")]
pub struct Overflow;

/// The content of a cell: a value, or None if the counter is absent.
pub(crate) type Content = Option<i64>;

/// The word of a cell whose value is elsewhere. Any number outside the calm range would do; counters are unlikely to
/// reach this one.
pub(crate) const SPECIAL: i64 = -0x7A5F_3C1D_9B2E_6F48;
const CALM: i64 = 1 << 62;
/// Mark: SPECIAL is the counter's genuine value. Read and changed under `Cells::moves` only.
pub(crate) const LITERAL: u8 = 1 << 7;
/// Compare-and-swaps that an `add` may lose before it asks for a stripe.
const LOSSES_MAX: u32 = 2;
/// Most stripes in a store: their number fits a byte, and 0 means none.
const STRIPES_MAX: usize = if cfg!(pycounter_loom) { 2 } else { 256 };

/// Whether a value may change without a lock. Adding to a calm value can't wrap round to another calm value, which is
/// why the range is half open.
fn calm(value: i64) -> bool {
    (value.wrapping_add(CALM) as u64) < 2 * CALM as u64
}

/// State shared by all cells of a store.
pub(crate) struct Cells {
    /// Held to move an unstriped cell's word from, to or within the range outside calm, or to give it a stripe. Contains
    /// the number of stripes in use. Taken before a stripe's own lock.
    moves: Mutex<usize>,
    /// Whether any cell has ever held SPECIAL as a genuine value.
    literals: AtomicBool,
    /// The number of present counters.
    present: AtomicUsize,
    /// Owned; each written once, under `moves`. Index 0 stays empty.
    stripes: [AtomicPtr<Stripe>; STRIPES_MAX],
    striping: bool,
}

impl Cells {
    pub(crate) fn new(striping: bool) -> Self {
        Self {
            moves: Mutex::new(0),
            literals: AtomicBool::new(false),
            present: AtomicUsize::new(0),
            stripes: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            striping,
        }
    }

    pub(crate) fn set_striping(&mut self, striping: bool) {
        self.striping = striping;
    }

    pub(crate) fn striping(&self) -> bool {
        self.striping
    }

    /// The number of present counters. Relaxed: it is for statistics and thresholds.
    pub(crate) fn present(&self) -> usize {
        self.present.load(Ordering::Relaxed)
    }

    /// Bytes in stripes.
    pub(crate) fn memory_bytes(&self) -> usize {
        if self.striping { *lock(&self.moves) * size_of::<Stripe>() } else { 0 }
    }

    /// Counts a change of presence.
    fn count(&self, before: Content, after: Content) {
        match (before, after) {
            (None, Some(_)) => {
                self.present.fetch_add(1, Ordering::Relaxed);
            }
            (Some(_), None) => {
                self.present.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    #[allow(unsafe_code, reason = "stripes are owned through atomic pointers")]
    fn stripe(&self, number: u8) -> Option<&Stripe> {
        // Acquire pairs with the Release store in `give_stripe`.
        let stripe = self.stripes.get(usize::from(number))?.load(Ordering::Acquire);
        // SAFETY: null, or from Box::into_raw in `give_stripe` and freed only in `drop`.
        unsafe { stripe.as_ref() }
    }

    /// Moves a calm cell into a new stripe, if one is left. `given` is the guard of `moves`.
    fn give_stripe(&self, cell: &Cell<'_>, mut given: MutexGuard<'_, usize>) {
        let number = *given + 1;
        let (Some(place), Ok(byte)) = (self.stripes.get(number), u8::try_from(number)) else {
            return;
        };
        if !calm(cell.word.load(Ordering::Relaxed)) {
            return;
        }
        let stripe = Box::into_raw(Box::new(Stripe::new()));
        // Release: a thread that reads the stripe's number finds the stripe. Its base isn't calm yet,
        // so a thread that gets here before `open` below waits for the lock.
        place.store(stripe, Ordering::Release);
        *given = number;
        let Some(stripe) = self.stripe(byte) else { return };
        stripe.open(|| {
            cell.stripe.store(byte, Ordering::Release);
            // Release: a thread that reads SPECIAL here reads the number too. While we hold the lock,
            // others only change calm values into calm values, so the swapped word is a value.
            cell.word.swap(SPECIAL, Ordering::AcqRel)
        });
    }
}

impl Drop for Cells {
    #[allow(unsafe_code, reason = "stripes are owned through atomic pointers")]
    fn drop(&mut self) {
        let given = *locked_mut(&mut self.moves);
        for place in self.stripes.iter().take(given + 1) {
            let stripe = place.load(Ordering::Relaxed);
            if !stripe.is_null() {
                // SAFETY: from Box::into_raw in `give_stripe`, and `&mut self` means nobody else uses it.
                drop(unsafe { Box::from_raw(stripe) });
            }
        }
    }
}

/// One counter's cell, borrowed from its entry.
#[derive(Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub(crate) word: &'a AtomicI64,
    pub(crate) marks: &'a AtomicU8,
    pub(crate) stripe: &'a AtomicU8,
}

impl Cell<'_> {
    /// The value, None if absent. Linearizable: amounts in lanes are folded first.
    pub(crate) fn get(&self, cells: &Cells) -> Content {
        // Acquire: pairs with the Release stores of SPECIAL, which lead to more.
        let word = self.word.load(Ordering::Acquire);
        if word == SPECIAL { self.get_special(cells) } else { Some(word) }
    }

    #[cold]
    fn get_special(&self, cells: &Cells) -> Content {
        // Relaxed twice: ordered by the Acquire load of SPECIAL before.
        let number = self.stripe.load(Ordering::Relaxed);
        if number == 0 && !cells.literals.load(Ordering::Relaxed) {
            return None;
        }
        match self.change_special(cells, Ok) {
            Ok((content, _)) => content,
            Err(Overflow) => unreachable!("a change to the same content can't overflow"),
        }
    }

    /// Replaces the content with the result of `to`; returns the old and new content. `to` may run several times.
    pub(crate) fn change(
        &self,
        cells: &Cells,
        to: impl Fn(Content) -> Result<Content, Overflow>,
    ) -> Result<(Content, Content), Overflow> {
        let mut word = self.word.load(Ordering::Relaxed);
        while calm(word) {
            let Some(next) = to(Some(word))?.filter(|&next| calm(next)) else { break };
            // Relaxed: see the header.
            match self.word.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok((Some(word), Some(next))),
                Err(seen) => word = seen,
            }
        }
        self.change_special(cells, to)
    }

    /// As [`change`](Self::change), for a caller with exclusive access: no atomic read-modify-write.
    pub(crate) fn change_alone(
        &self,
        cells: &Cells,
        to: impl Fn(Content) -> Result<Content, Overflow>,
    ) -> Result<(Content, Content), Overflow> {
        let word = self.word.load(Ordering::Relaxed);
        if calm(word)
            && let Some(next) = to(Some(word))?.filter(|&next| calm(next))
        {
            self.word.store(next, Ordering::Relaxed);
            return Ok((Some(word), Some(next)));
        }
        self.change_special(cells, to)
    }

    /// The change under a lock: for presence, values outside calm, and stripes.
    #[cold]
    fn change_special(
        &self,
        cells: &Cells,
        to: impl Fn(Content) -> Result<Content, Overflow>,
    ) -> Result<(Content, Content), Overflow> {
        let moves = lock(&cells.moves);
        if let Some(stripe) = cells.stripe(self.stripe.load(Ordering::Acquire)) {
            // A cell keeps its stripe, so `moves` is no longer needed.
            drop(moves);
            let (before, after) = stripe.change(to)?;
            cells.count(before, after);
            return Ok((before, after));
        }
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let literal = self.marks.load(Ordering::Relaxed) & LITERAL != 0;
            let before = if word == SPECIAL && !literal { None } else { Some(word) };
            let after = to(before)?;
            if after == Some(SPECIAL) {
                // Stored before the word can become SPECIAL, so readers of that word see it.
                cells.literals.store(true, Ordering::Relaxed);
            }
            let next = after.unwrap_or(SPECIAL);
            // Release: a reader of SPECIAL sees `literals`. This fails only while the word is calm.
            match self.word.compare_exchange(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if after == Some(SPECIAL) {
                        self.marks.fetch_or(LITERAL, Ordering::Relaxed);
                    } else if literal {
                        self.marks.fetch_and(!LITERAL, Ordering::Relaxed);
                    }
                    cells.count(before, after);
                    return Ok((before, after));
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Adds and returns the new value.
    pub(crate) fn incr(&self, cells: &Cells, delta: i64) -> Result<i64, Overflow> {
        let (_, after) = self.change(cells, plus(delta))?;
        Ok(after.unwrap_or(0))
    }

    /// Adds without returning the result, so threads can add concurrently.
    /// `lane` is the caller's preferred lane.
    pub(crate) fn add(&self, cells: &Cells, delta: i64, lane: usize) -> Result<(), Overflow> {
        let mut word = self.word.load(Ordering::Acquire);
        let mut losses = 0;
        while calm(word) {
            let next = word.wrapping_add(delta); // if it wraps, it isn't calm
            if !calm(next) {
                break;
            }
            // Acquire on failure: the word may have become SPECIAL.
            match self.word.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(seen) => word = seen,
            }
            losses += 1;
            if losses == LOSSES_MAX && cells.striping {
                if let Ok(given) = cells.moves.try_lock() {
                    cells.give_stripe(self, given);
                }
                word = self.word.load(Ordering::Acquire);
            }
        }
        if word == SPECIAL
            && let Some(stripe) = cells.stripe(self.stripe.load(Ordering::Relaxed))
            && stripe.add(delta, lane)
        {
            return Ok(());
        }
        self.change_special(cells, plus(delta)).map(|_| ())
    }
}

/// The current thread's preferred lane: threads get consecutive ones.
pub(crate) fn own_lane() -> usize {
    // Not loom's: the choice of a lane only affects speed.
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // Relaxed: the numbers only have to differ.
        static LANE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    // A thread that is ending has no lane.
    LANE.try_with(|lane| *lane).unwrap_or(0)
}

/// The change that adds `delta`; an absent counter counts as 0.
pub(crate) fn plus(delta: i64) -> impl Fn(Content) -> Result<Content, Overflow> {
    move |content| content.unwrap_or(0).checked_add(delta).map(Some).ok_or(Overflow)
}

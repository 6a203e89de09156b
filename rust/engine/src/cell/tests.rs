//! Tests of the striped cell.

use super::owned::Owned;
use super::*;
use proptest::prelude::*;

#[test]
fn calm_is_the_inner_half() {
    for inside in [0, 1, -1, CALM - 1, -CALM] {
        assert!(calm(inside), "{inside}");
    }
    for outside in [CALM, -CALM - 1, i64::MAX, i64::MIN, SPECIAL] {
        assert!(!calm(outside), "{outside}");
    }
    // What wraps isn't calm: `add` relies on it.
    assert!(!calm((CALM - 1).wrapping_add(i64::MAX)) && !calm((-CALM).wrapping_add(i64::MIN)));
}

#[test]
fn the_special_number_is_a_value_like_any_other() {
    for owned in [Owned::new(), Owned::striped(3)] {
        owned.set(SPECIAL);
        assert_eq!(owned.get(), Some(SPECIAL));
        assert_eq!(owned.cells.present(), 1);
        assert_eq!(owned.incr(1), Ok(SPECIAL + 1));
        assert_eq!(owned.incr(-1), Ok(SPECIAL));
        assert_eq!(owned.delete(), Some(SPECIAL));
        assert_eq!((owned.get(), owned.cells.present()), (None, 0));
        assert_eq!(owned.delete(), None);
        assert_eq!(owned.add(SPECIAL, 0), Ok(()));
        assert_eq!(owned.set(4), Some(SPECIAL));
        assert_eq!(owned.get(), Some(4));
    }
}

#[test]
fn a_refused_change_changes_nothing() {
    for owned in [Owned::new(), Owned::striped(0)] {
        owned.set(i64::MAX);
        assert_eq!((owned.incr(1), owned.add(1, 0)), (Err(Overflow), Err(Overflow)));
        assert_eq!(owned.get(), Some(i64::MAX));
        owned.set(i64::MIN);
        assert_eq!((owned.incr(-1), owned.add(-1, 0)), (Err(Overflow), Err(Overflow)));
        assert_eq!(owned.incr(i64::MAX), Ok(-1));
        assert_eq!((owned.incr(i64::MIN), owned.get()), (Err(Overflow), Some(-1)));
    }
}

#[test]
fn a_refused_change_keeps_what_was_in_lanes() {
    let owned = Owned::striped(CALM - 1);
    assert!(owned.add_in_lane(5, 0) && owned.add_in_lane(6, 1));
    assert_eq!(owned.incr(i64::MAX), Err(Overflow));
    assert_eq!(owned.get(), Some(CALM + 10));
}

#[test]
fn lanes_open_only_while_the_base_is_calm() {
    let owned = Owned::striped(CALM);
    assert!(!owned.add_in_lane(1, 0));
    owned.delete();
    assert!(!owned.add_in_lane(1, 0));
    assert_eq!(owned.add(7, 0), Ok(()));
    assert!(owned.add_in_lane(1, 0));
    assert!(!owned.add_in_lane(i64::MIN, 1), "too much for a lane");
    assert_eq!((owned.get(), owned.cells.present()), (Some(8), 1));
}

#[test]
fn only_so_many_stripes() {
    let owned = Owned::new();
    for _ in 0..300 {
        owned.stripe.store(0, Ordering::Relaxed);
        owned.word.store(1, Ordering::Relaxed);
        owned.cells.give_stripe(&owned.cell(), lock(&owned.cells.moves));
    }
    assert_eq!(*lock(&owned.cells.moves), STRIPES_MAX - 1);
    assert_eq!(owned.get(), Some(1));
}

#[test]
fn threads_on_a_striped_cell_lose_nothing_and_see_their_own() {
    let owned = Owned::striped(0);
    let rounds: i64 = if cfg!(miri) { 50 } else { 50_000 };
    std::thread::scope(|scope| {
        for lane in 0..3 {
            let owned = &owned;
            scope.spawn(move || {
                let mut least = 0;
                for round in 0..rounds {
                    owned.add_in_lane(1, lane);
                    owned.add(2, lane).unwrap();
                    if round % 16 == 0 {
                        let now = owned.get().unwrap();
                        assert!(now >= least + 2, "{now} after {least}");
                        least = now;
                    }
                }
            });
        }
    });
    let opened = owned.get().unwrap() - 3 * 2 * rounds;
    assert!((0..=3 * rounds).contains(&opened));
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "proptest reads files")]
    fn a_striped_cell_counts_as_a_plain_one(
        steps in proptest::collection::vec((0..6, any::<i64>(), 0..64u32, 0..4usize), 1..100),
    ) {
        let owned = Owned::striped(0);
        let mut model = Some(0i64);
        for (kind, number, shift, lane) in steps {
            let delta = number >> shift;
            let sum = model.unwrap_or(0).checked_add(delta);
            match kind {
                0 => prop_assert_eq!(owned.incr(delta).ok(), sum),
                1 => prop_assert_eq!(owned.add(delta, lane).ok(), sum.map(|_| ())),
                2 => {
                    if owned.add_in_lane(delta, lane) {
                        prop_assert!(sum.is_some());
                        model = sum;
                    }
                    continue;
                }
                3 => {
                    prop_assert_eq!(owned.set(delta), model);
                    model = Some(delta);
                    continue;
                }
                4 => {
                    prop_assert_eq!(owned.delete(), model);
                    model = None;
                    continue;
                }
                _ => {
                    prop_assert_eq!(owned.get(), model);
                    continue;
                }
            }
            model = sum.or(model);
        }
        prop_assert_eq!(owned.get(), model);
        prop_assert_eq!(owned.cells.present(), usize::from(model.is_some()));
    }
}

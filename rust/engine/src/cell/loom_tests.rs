//! Interleavings of a few steps, by the model checker.
//!
//! Loom remembers only the last access to an atomic, so it overlooks that a reader's load came before
//! a writer that loads the same atomic before storing. Where it matters the writer therefore runs on
//! the main thread, which goes first, and the reader is spawned.

use super::owned::Owned;
use super::*;
use crate::atomics::Arc;
use loom::thread;

#[test]
fn loom_adders_in_lanes_and_a_counter_that_wants_the_result() {
    loom::model(|| {
        let cell = Arc::new(Owned::striped(0));
        let theirs = cell.clone();
        let adder = thread::spawn(move || {
            // To a lane if that can be opened just now, else to the base.
            if !theirs.add_in_lane(1, 0) {
                theirs.add(1, 0).unwrap();
            }
            // What it completed is in what it sees.
            assert!(theirs.get().unwrap() >= 1);
        });
        assert!(cell.add_in_lane(10, 1) || cell.add(10, 1).is_ok());
        let seen = cell.incr(100).unwrap();
        assert!(seen == 110 || seen == 111, "{seen}");
        adder.join().unwrap();
        assert_eq!(cell.get(), Some(111));
    });
}

#[test]
fn loom_a_fold_hides_no_amount_from_another_reader() {
    loom::model(|| {
        let cell = Arc::new(Owned::striped(0));
        assert!(cell.add_in_lane(5, 0));
        let theirs = cell.clone();
        let folder = thread::spawn(move || theirs.get());
        assert_eq!(cell.get(), Some(5));
        assert_eq!(folder.join().unwrap(), Some(5));
    });
}

#[test]
fn loom_an_add_is_seen_no_later_than_one_that_follows_it() {
    loom::model(|| {
        let cell = Arc::new(Owned::striped(0));
        assert!(cell.add_in_lane(0, 0) && cell.add_in_lane(0, 1));
        let theirs = cell.clone();
        let adder = thread::spawn(move || {
            theirs.add(10, 0).unwrap();
            theirs.add(1, 1).unwrap();
        });
        // 1 without the 10 before it never existed.
        let seen = cell.get().unwrap();
        assert!([0, 10, 11].contains(&seen), "{seen}");
        adder.join().unwrap();
        assert_eq!(cell.get(), Some(11));
    });
}

#[test]
fn loom_a_cell_gets_a_stripe_while_others_count() {
    loom::model(|| {
        let cell = Arc::new(Owned::new());
        cell.set(0);
        let theirs = cell.clone();
        let counter = thread::spawn(move || theirs.incr(1).unwrap());
        cell.give_stripe();
        cell.add_in_lane(10, 0);
        let after_lane = cell.get().unwrap();
        let seen = counter.join().unwrap();
        assert!([10, 11].contains(&after_lane) && [1, 11].contains(&seen));
        // Whoever came second saw the other.
        assert!(seen == 11 || after_lane == 11, "{seen} {after_lane}");
        assert_eq!(cell.get(), Some(11));
    });
}

#[test]
fn loom_a_reader_of_the_word_finds_the_stripe() {
    loom::model(|| {
        let cell = Arc::new(Owned::new());
        cell.set(3);
        let theirs = cell.clone();
        let reader = thread::spawn(move || {
            assert_eq!(theirs.get(), Some(3));
            theirs.add(1, 0).unwrap();
        });
        cell.give_stripe();
        reader.join().unwrap();
        assert_eq!(cell.get(), Some(4));
    });
}

#[test]
fn loom_delete_takes_all_or_nothing_of_an_increment() {
    for striped in [false, true] {
        loom::model(move || {
            let cell = Arc::new(if striped { Owned::striped(7) } else { Owned::new() });
            cell.set(7);
            let theirs = cell.clone();
            let counter = thread::spawn(move || theirs.incr(1).unwrap());
            let taken = cell.delete().unwrap();
            let counted = counter.join().unwrap();
            match taken {
                7 => assert_eq!((counted, cell.get(), cell.cells.present()), (1, Some(1), 1)),
                8 => assert_eq!((counted, cell.get(), cell.cells.present()), (8, None, 0)),
                other => panic!("took {other}"),
            }
        });
    }
}

#[test]
fn loom_the_special_number_is_never_mistaken_for_absence() {
    loom::model(|| {
        let cell = Arc::new(Owned::new());
        cell.set(1);
        let theirs = cell.clone();
        let reader = thread::spawn(move || {
            let seen = theirs.get();
            assert!([Some(1), Some(SPECIAL), Some(2)].contains(&seen), "{seen:?}");
        });
        cell.set(SPECIAL);
        cell.set(2);
        reader.join().unwrap();
    });
}

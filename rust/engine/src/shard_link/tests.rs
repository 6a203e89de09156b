//! A link against replies written by hand.

mod clients;
mod played_shard;

use played_shard::{FIRST, Link, SECOND, Seen, code_of, results, settings, shapes};

use super::{LinkSettings, LinkViolation, Repeat};
use crate::error_code::ErrorCode;
use crate::wire::msgpack_rpc as rpc;
use crate::wire::request::Level;

#[test]
fn increments_gather_by_level_and_keep_their_place_among_calls() {
    let mut link = Link::ready();
    link.incr("a", Level::Durable, 1);
    link.incr("b", Level::Applied, 2);
    link.incr("c", Level::Durable, 3);
    link.get(4);
    link.incr("d", Level::Durable, 5);
    let seen = link.flush();
    let item = |key: &str| (key.as_bytes().to_vec(), 1);
    let session = FIRST;
    assert_eq!(
        seen,
        [
            Seen::Apply {
                msgid: 0x8000_0000,
                session,
                first: 1,
                acked: 0,
                items: vec![item("a"), item("c")],
                level: Level::Durable
            },
            Seen::Apply {
                msgid: 0x8000_0001,
                session,
                first: 3,
                acked: 0,
                items: vec![item("b")],
                level: Level::Applied
            },
            Seen::Get { msgid: 1, key: b"k".to_vec() },
            Seen::Apply {
                msgid: 0x8000_0002,
                session,
                first: 4,
                acked: 0,
                items: vec![item("d")],
                level: Level::Durable
            },
        ]
    );
    // Replies may overtake each other, and come in pieces.
    link.answer(0x8000_0001, &[8], Level::Applied).unwrap();
    let mut bytes = results(0x8000_0000, &[1, 2], Level::Durable);
    rpc::reply_int(&mut bytes, 1, 9);
    for byte in bytes {
        link.feed(&[byte]).unwrap();
    }
    assert_eq!(link.take_told(), [(2, Ok(8)), (1, Ok(1)), (3, Ok(2))]);
    assert_eq!(link.replies, [(4, b"\x09".to_vec())]);
    link.incr("e", Level::Durable, 6);
    assert!(matches!(link.flush().as_slice(), [Seen::Apply { first: 5, acked: 3, .. }]));
    link.answer(0x8000_0002, &[1], Level::Durable).unwrap();
    link.answer(0x8000_0003, &[-3], Level::Durable).unwrap();
    assert_eq!(link.take_told(), [(5, Ok(1)), (6, Ok(-3))]);
    assert!(link.link.is_settled());
    assert_eq!(link.link.memory_bytes(), 0);
}

#[test]
fn a_cut_sends_the_same_numbers_again_in_the_old_order() {
    let mut link = Link::ready();
    link.incr("a", Level::Durable, 1);
    link.get(2);
    link.flush();
    link.incr("b", Level::Durable, 3);
    link.link.call("incr", b"\x91\xa1k", Repeat::Never, 2000, 4).unwrap();
    link.link.call("incr", b"\x91\xa1k", Repeat::SameShard { until_ms: 9000 }, 2000, 5).unwrap();
    link.flush();
    link.incr("c", Level::Durable, 6);
    link.lose();
    assert_eq!(link.take_told(), [(4, Err(ErrorCode::UnknownOutcome))]);
    link.connect("a", 1, Some(2));
    let seen = link.flush();
    assert_eq!(
        shapes(&seen),
        [(0x8000_0000, 1, 1), (4, 0, 0), (0x8000_0001, 2, 1), (5, 0, 0), (0x8000_0002, 3, 1)],
        "{seen:?}"
    );
    assert!(matches!(&seen[0], Seen::Apply { items, .. } if items[0].0 == b"a"));
    link.answer(0x8000_0000, &[1], Level::Durable).unwrap();
    link.answer(0x8000_0001, &[2], Level::Durable).unwrap();
    assert_eq!(link.take_told(), [(1, Ok(1)), (3, Ok(2))]);
}

#[test]
fn another_identity_makes_unknown_what_was_sent_and_nothing_else() {
    let mut link = Link::ready();
    link.incr("a", Level::Durable, 1);
    link.get(2);
    link.link.call("incr", b"\x91\xa1k", Repeat::SameShard { until_ms: 9000 }, 2000, 3).unwrap();
    link.flush();
    link.incr("b", Level::Durable, 4);
    link.lose();
    link.connect("b", 1, None);
    let mut told = link.take_told();
    told.sort_unstable_by_key(|&(waiter, _)| waiter);
    assert_eq!(told, [(1, Err(ErrorCode::UnknownOutcome)), (3, Err(ErrorCode::UnknownOutcome))]);
    let seen = link.flush();
    assert!(matches!(seen.as_slice(), [Seen::Get { .. }, Seen::Apply { first: 1, session: SECOND, .. }]), "{seen:?}");
    assert_eq!(link.link.statistics().operations_unknown, 1);
    assert_eq!(link.link.identity(), Some("b"));
}

#[test]
fn only_the_expected_shard_is_met() {
    let mut link = Link::new(settings());
    link.link.expect_identity("a");
    link.link.connected();
    link.flush();
    let violation = link.greet("b", 1, None).unwrap_err();
    assert!(matches!(violation, LinkViolation::WrongShard { .. }), "{violation}");
    link.lose();
    assert_eq!((link.link.is_ready(), link.link.identity()), (false, None));
    link.connect("a", 1, None);
    assert!(link.link.is_ready());
}

#[test]
fn a_refusal_gives_the_numbers_back_only_where_no_attempt_is_unanswered() {
    let mut link = Link::ready();
    link.incr("a", Level::Durable, 1);
    link.flush();
    link.incr("b", Level::Durable, 2);
    link.flush();
    link.refuse(0x8000_0000, ErrorCode::ReadOnly);
    assert!(link.flush().is_empty(), "something was sent while a reply was due");
    link.refuse(0x8000_0001, ErrorCode::SequenceGap);
    // A read is answered all the same.
    link.incr("c", Level::Durable, 3);
    link.get(4);
    assert!(matches!(link.flush().as_slice(), [Seen::Get { .. }]));
    link.feed(b"\x94\x01\x01\xc0\x05").unwrap();
    assert_eq!(link.replies, [(4, b"\x05".to_vec())]);
    // None of them counts: they may be taken to another shard.
    let mut taken = Vec::new();
    link.link.take_unsent(0.5, |key, _, _, deadline_ms, waiter| taken.push((key.to_vec(), deadline_ms, waiter)));
    assert_eq!(taken, [(b"b".to_vec(), 2000, 2)]);
    link.tick(1000);
    let seen = link.flush();
    assert_eq!(shapes(&seen), [(0x8000_0000, 1, 1)], "one batch finds out whether the shard takes them again");
    link.answer(0x8000_0000, &[1], Level::Durable).unwrap();
    assert_eq!(shapes(&link.flush()), [(0x8000_0001, 2, 1)]);

    // After a cut it isn't known, and a refusal says nothing of the attempt before.
    link.lose();
    link.connect("a", 1, Some(1));
    link.flush();
    link.refuse(0x8000_0001, ErrorCode::Overloaded);
    link.link.take_unsent(1.0, |_, _, _, _, waiter| panic!("{waiter} was sent"));
    link.tick(3000);
    assert_eq!(link.take_told(), [(1, Ok(1)), (3, Err(ErrorCode::Deadline))]);
    assert!(matches!(link.flush().as_slice(), [Seen::Apply { first: 2, .. }]));
    link.answer(0x8000_0001, &[1], Level::Durable).unwrap();
    assert!(link.link.is_settled());
}

#[test]
fn a_refusal_for_good_moves_what_is_behind_it_to_a_new_session() {
    let mut link = Link::ready();
    for (waiter, key) in ["a", "b", "c"].into_iter().enumerate() {
        link.incr(key, Level::Applied, waiter as u32);
        link.flush();
    }
    link.answer(0x8000_0000, &[1], Level::Applied).unwrap();
    link.refuse(0x8000_0001, ErrorCode::TooLarge);
    assert!(link.flush().is_empty());
    link.refuse(0x8000_0002, ErrorCode::SequenceGap);
    link.tick(1000);
    assert_eq!(link.take_told(), [(0, Ok(1)), (1, Err(ErrorCode::TooLarge))]);
    let seen = link.flush();
    // The first session has a tail that isn't known to be durable: the shard isn't told goodbye yet.
    let apply = Seen::Apply {
        msgid: 0x8000_0001,
        session: SECOND,
        first: 1,
        acked: 0,
        items: vec![(b"c".to_vec(), 1)],
        level: Level::Applied,
    };
    assert_eq!(seen, [Seen::Hello(SECOND), apply]);
    link.greet("a", 1, None).unwrap();
    assert_eq!(link.flush(), [Seen::Bye(FIRST)]);
}

#[test]
fn a_lost_tail_is_counted_and_the_rest_is_settled_against_it() {
    let mut link = Link::ready();
    for (waiter, level) in [Level::Applied, Level::Applied, Level::Durable].into_iter().enumerate() {
        link.incr("a", level, waiter as u32);
        link.flush();
    }
    link.answer(0x8000_0000, &[1], Level::Applied).unwrap();
    link.answer(0x8000_0001, &[2], Level::Applied).unwrap();
    link.lose();
    link.connect("a", 2, Some(1));
    assert_eq!(link.link.statistics().operations_lost, 1);
    assert_eq!(link.take_told(), [(0, Ok(1)), (1, Ok(2))]);
    // The third was lost with the second, and no copy of it is left: it goes on under a new session.
    let seen = link.flush();
    assert!(matches!(seen.as_slice(), [Seen::Bye(FIRST), Seen::Apply { first: 1, session: SECOND, .. }]), "{seen:?}");
    link.answer(0x8000_0002, &[2], Level::Durable).unwrap();
    assert_eq!(link.take_told(), [(2, Ok(2))]);
}

#[test]
fn what_was_lost_without_a_restart_may_still_arrive() {
    let mut link = Link::ready();
    link.incr("a", Level::Applied, 1);
    link.incr("b", Level::Durable, 2);
    link.flush();
    link.answer(0x8000_0000, &[1], Level::Applied).unwrap();
    link.lose();
    // No honest shard does this; should one, a copy of the second may be on its way to it.
    link.connect("a", 1, Some(0));
    assert_eq!(link.take_told(), [(1, Ok(1)), (2, Err(ErrorCode::UnknownOutcome))]);
}

#[test]
fn a_session_that_the_shard_forgot_makes_ambiguous_ones_unknown() {
    let mut link = Link::ready();
    link.incr("a", Level::Durable, 1);
    link.flush();
    link.answer(0x8000_0000, &[1], Level::Durable).unwrap();
    link.incr("b", Level::Durable, 2);
    link.flush();
    link.lose();
    link.connect("a", 1, None);
    assert_eq!(link.take_told(), [(1, Ok(1)), (2, Err(ErrorCode::UnknownOutcome))]);
    // One that no attempt is unanswered of moves on.
    link.incr("c", Level::Durable, 3);
    assert!(matches!(link.flush().as_slice(), [Seen::Bye(FIRST), Seen::Apply { session: SECOND, first: 1, .. }]));
    link.refuse(0x8000_0001, ErrorCode::SessionUnknown);
    assert!(matches!(link.flush().as_slice(), [Seen::Bye(SECOND), Seen::Apply { first: 1, .. }]));
    assert!(link.take_told().is_empty());
}

#[test]
fn a_session_that_the_shard_does_not_know_behind_its_refused_first_batch_has_not_begun() {
    let mut link = Link::ready();
    link.incr("a", Level::Durable, 1);
    link.flush();
    link.incr("b", Level::Durable, 2);
    link.flush();
    link.refuse(0x8000_0000, ErrorCode::UnknownOutcome);
    link.refuse(0x8000_0001, ErrorCode::SessionUnknown);
    link.tick(1000);
    // The first may still be settled, as nothing of the session was ever answered; the second was never applied.
    let seen = link.flush();
    assert!(matches!(seen.as_slice(), [Seen::Apply { session: FIRST, first: 1, .. }]), "{seen:?}");
    assert!(link.take_told().is_empty());
    // The first itself is told for good.
    link.refuse(0x8000_0000, ErrorCode::SessionUnknown);
    assert_eq!(link.take_told(), [(1, Err(ErrorCode::UnknownOutcome))]);
    assert!(matches!(link.flush().as_slice(), [Seen::Bye(FIRST), Seen::Apply { session: SECOND, first: 1, .. }]));
}

#[test]
fn deadlines_say_whether_something_may_have_been_applied() {
    let mut link = Link::ready();
    link.incr("a", Level::Durable, 1);
    link.get(2);
    link.flush();
    link.lose();
    link.incr("b", Level::Durable, 3);
    link.link.incr(b"c", 1, Level::Durable, 9000, 4).unwrap();
    link.get(5);
    link.link.note_error("nobody listens");
    link.tick(1999);
    assert!(link.take_told().is_empty());
    link.tick(2000);
    let mut told = link.take_told();
    told.sort_unstable_by_key(|&(waiter, _)| waiter);
    let (late, nothing) = (Err(ErrorCode::Deadline), Err(ErrorCode::Unavailable));
    assert_eq!(told, [(1, late), (2, late), (3, nothing), (5, nothing)]);
    // What was sent is settled all the same, and what wasn't is not sent any more.
    link.connect("a", 1, Some(0));
    let seen = link.flush();
    assert_eq!(shapes(&seen), [(0x8000_0000, 1, 1), (0x8000_0001, 2, 1)]);
    link.answer(0x8000_0000, &[1], Level::Durable).unwrap();
    link.answer(0x8000_0001, &[1], Level::Durable).unwrap();
    assert_eq!(link.take_told(), [(4, Ok(1))]);
    assert_eq!(link.link.memory_bytes(), 0);
}

#[test]
fn a_change_with_an_id_is_sent_again_while_the_shard_keeps_the_id() {
    let call = |link: &mut Link, waiter| {
        let repeat = Repeat::SameShard { until_ms: 5000 };
        link.link.call("incr", b"\x91\xa1k", repeat, 9000, waiter).unwrap();
    };
    let mut link = Link::ready();
    call(&mut link, 1);
    link.flush();
    // A first refusal settles it.
    link.refuse(1, ErrorCode::Overloaded);
    assert_eq!(link.errors.pop().map(|(waiter, text)| (waiter, text.starts_with("overloaded: "))), Some((1, true)));
    // One that leaves the outcome open doesn't, nor does what comes after it.
    call(&mut link, 2);
    call(&mut link, 3);
    link.flush();
    link.refuse(2, ErrorCode::UnknownOutcome);
    link.lose();
    link.connect("a", 1, None);
    assert_eq!(link.flush().len(), 1, "there was no pause");
    link.tick(100);
    assert_eq!(link.flush().len(), 1);
    link.refuse(4, ErrorCode::Overloaded);
    link.refuse(5, ErrorCode::Forbidden);
    link.tick(4999);
    assert_eq!(link.flush().len(), 1);
    link.lose();
    link.tick(5000);
    let mut told = link.take_told();
    told.sort_unstable_by_key(|&(waiter, _)| waiter);
    let unknown = Err(ErrorCode::UnknownOutcome);
    assert_eq!(told, [(2, unknown), (3, unknown)]);
    assert!(link.errors.is_empty());
}

#[test]
fn a_refusal_before_the_id_is_looked_up_says_nothing_of_an_attempt_before() {
    let repeat = Repeat::SameShard { until_ms: 5000 };
    for code in [ErrorCode::TooLarge, ErrorCode::BadRequest, ErrorCode::UnknownMethod, ErrorCode::Forbidden] {
        let mut link = Link::ready();
        link.link.call("incr", b"\x91\xa1k", repeat, 9000, 1).unwrap();
        link.flush();
        link.lose();
        link.connect("a", 2, None);
        link.flush();
        link.refuse(2, code);
        assert_eq!(link.take_told(), [(1, Err(ErrorCode::UnknownOutcome))], "{code:?}");
        // What the id's first result was says it.
        link.link.call("incr", b"\x91\xa1k", repeat, 9000, 2).unwrap();
        link.flush();
        link.lose();
        link.connect("a", 3, None);
        link.flush();
        link.refuse(4, ErrorCode::Overflow);
        assert_eq!(link.errors.len(), 1);
    }
}

#[test]
fn bounds_refuse_before_anything_is_taken() {
    let mut link = Link::new(LinkSettings { queue_bytes_max: 2000, ..settings() });
    let mut accepted = 0;
    while link.link.incr(&[b'k'; 100], 1, Level::Durable, 2000, 1).is_ok() {
        accepted += 1;
    }
    assert!((10..20).contains(&accepted), "{accepted}");
    assert_eq!(link.link.call("get", &[0xc0; 100], Repeat::Always, 2000, 7), Err(7));
    link.tick(2000);
    assert_eq!(link.take_told().len(), accepted);
    assert_eq!(link.link.memory_bytes(), 0);
    assert_eq!(link.link.call("get", &[0xc0; 100], Repeat::Always, 2000, 7), Ok(()));
}

#[test]
fn windows_bound_what_is_numbered() {
    let mut link = Link::new(LinkSettings {
        batch_operations_max: 2,
        batches_in_flight_max: 3,
        window_operations_max: 5,
        ..settings()
    });
    link.connect("a", 1, None);
    (0..9).for_each(|waiter| link.incr("a", Level::Durable, waiter));
    assert_eq!(shapes(&link.flush()), [(0x8000_0000, 1, 2), (0x8000_0001, 3, 2)]);
    link.answer(0x8000_0001, &[1, 2], Level::Durable).unwrap();
    assert!(link.flush().is_empty(), "the first is unsettled, and keeps the window full");
    link.answer(0x8000_0000, &[1, 2], Level::Durable).unwrap();
    assert_eq!(shapes(&link.flush()), [(0x8000_0002, 5, 2), (0x8000_0003, 7, 2), (0x8000_0004, 9, 1)]);
}

#[test]
fn nonsense_is_no_reply() {
    let asked = |bytes: &[u8]| {
        let mut link = Link::ready();
        link.incr("a", Level::Durable, 1);
        link.get(2);
        link.flush();
        let outcome = link.feed(bytes);
        assert_eq!(outcome.is_err(), !link.link.is_ready());
        (outcome, link.told, link.replies)
    };
    let value = results(0x8000_0000, &[1], Level::Durable);
    assert_eq!(asked(&value), (Ok(()), vec![(1, Ok(1))], vec![]));
    let nonsense: [&[u8]; 14] = [
        b"\x94\x00\x01\xc0\x01",                                    // a request
        b"\x93\x01\x01\xc0",                                        // too short
        b"\x94\x01\xa1x\xc0\x01",                                   // a msgid that is none
        b"\x94\x01\x03\xc0\x01",                                    // not asked
        b"\x94\x01\xce\x80\x00\x00\x07\xc0\x01",                    // a batch that isn't under way
        b"\x94\x01\xce\x40\x00\x00\x00\xc0\x80",                    // a greeting that wasn't asked for
        b"\x94\x01\x01\x05\x01",                                    // an error that is no text
        b"\x94\x01\x01\xa1\xff\x01",                                // nor this
        b"\x94\x01\xce\x80\x00\x00\x00\xc0\x05",                    // results that are none
        b"\x94\x01\xce\x80\x00\x00\x00\xc0\x81\xa7results\x91\x01", // without a level
        b"\xc1",
        b"GET",
        b"\xdd\xff\xff\xff\xff",
        b"\x94\x01\x01\xc0\x91\x91\x91\x91\x91\x91\x91\x91\x91",
    ];
    for bytes in nonsense {
        let (outcome, told, replies) = asked(bytes);
        assert!(outcome.is_err(), "{}", bytes.escape_ascii());
        assert!(told.is_empty() && replies.is_empty(), "{}", bytes.escape_ascii());
    }
    assert!(asked(&results(0x8000_0000, &[1, 2], Level::Durable)).0.is_err(), "too many results");
    assert!(asked(&results(0x8000_0000, &[], Level::Durable)).0.is_err(), "too few");
    let twice = [value.as_slice(), value.as_slice()].concat();
    assert!(asked(&twice).0.is_err(), "answered twice");
    // Broken anywhere: something is told or the connection is given up, and nothing is told twice.
    for index in 0..value.len() {
        for byte in 0..=u8::MAX {
            let mut broken = value.clone();
            broken[index] = byte;
            let (_, told, _) = asked(&broken);
            assert!(told.len() <= 1);
        }
    }
}

#[test]
fn giving_up_says_what_is_open_and_what_never_was() {
    let mut link = Link::ready();
    link.incr("a", Level::Durable, 1);
    link.get(2);
    link.flush();
    link.incr("b", Level::Durable, 3);
    link.get(4);
    let told = &mut link.told;
    link.link.abandon("the coordinator ends", &mut |waiter, outcome| told.push((waiter, code_of(outcome))));
    link.told.sort_unstable_by_key(|&(waiter, _)| waiter);
    let (unknown, nothing) = (Err(ErrorCode::UnknownOutcome), Err(ErrorCode::Unavailable));
    assert_eq!(link.told, [(1, unknown), (2, unknown), (3, nothing), (4, nothing)]);
    assert_eq!(link.link.memory_bytes(), 0);
}

#[test]
fn silence_is_only_silence_while_a_reply_is_due() {
    let mut link = Link::ready();
    link.tick(100_000);
    link.get(1);
    link.flush();
    for (now_ms, is_silent) in [(130_000, false), (130_001, true)] {
        link.tick(now_ms);
        assert_eq!(link.link.is_silent(), is_silent);
    }
    link.lose();
    assert!(!link.link.is_silent());
}

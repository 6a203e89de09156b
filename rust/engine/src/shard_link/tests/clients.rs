//! What clients need of a link and a coordinator doesn't: company, confirmation, and what became of whom nobody waits for.

use super::played_shard::{FIRST, Link, SECOND, Seen, settings, shapes};
use crate::error_code::ErrorCode;
use crate::shard_link::{GivenUp, LinkSettings, Outcome};
use crate::wire::request::Level;

fn client(settings: LinkSettings) -> Link {
    let mut link = Link::new(LinkSettings { names_operations: true, ..settings });
    link.tick(1);
    link.connect("a", 1, None);
    link
}

fn unknown(link: &Link) -> Vec<String> {
    let mut keys = Vec::new();
    link.link.unknown(|key, _, _, _| keys.push(String::from_utf8_lossy(key).into_owned()));
    keys
}

#[test]
fn increments_wait_for_company_while_others_are_in_flight() {
    let mut link = client(LinkSettings { gather_ms: 10, gather_operations_max: 3, ..settings() });
    link.incr("a", Level::Durable, 1);
    assert_eq!(shapes(&link.flush()), [(0x8000_0000, 1, 1)], "nobody else is there");
    link.incr("b", Level::Durable, 2);
    link.incr("c", Level::Durable, 3);
    assert!(link.flush().is_empty());
    assert_eq!(link.link.next_wake_ms(), Some(11));
    link.tick(11);
    assert_eq!(shapes(&link.flush()), [(0x8000_0001, 2, 2)], "long enough");
    (4..7).for_each(|waiter| link.incr("d", Level::Durable, waiter));
    assert_eq!(shapes(&link.flush()), [(0x8000_0002, 4, 3)], "company enough");
    link.incr("e", Level::Durable, 7);
    link.link.incr_in_list(b"f", 1, Level::Durable, 2000, 8).unwrap();
    assert_eq!(shapes(&link.flush()), [(0x8000_0003, 7, 2)], "a list takes along who is there");
    link.incr("g", Level::Durable, 9);
    link.get(10);
    assert_eq!(link.flush().len(), 2, "a call isn't held up");
    for (msgid, values) in [(0, 1), (1, 2), (2, 3), (3, 2), (4, 1)] {
        link.answer(0x8000_0000 + msgid, &vec![1; values], Level::Durable).unwrap();
    }
    link.incr("h", Level::Durable, 11);
    assert_eq!(shapes(&link.flush()).len(), 1, "nothing is in flight any more");
}

#[test]
fn nothing_wakes_an_idle_link() {
    let mut link = client(settings());
    assert_eq!(link.link.next_wake_ms(), None);
    link.incr("a", Level::Durable, 1);
    assert_eq!(link.link.next_wake_ms(), Some(2000));
    link.flush();
    link.answer(0x8000_0000, &[1], Level::Durable).unwrap();
    assert_eq!(link.link.next_wake_ms(), None);
    link.get(3);
    link.flush();
    link.feed(b"\x94\x01\x01\xc0\x05").unwrap();
    link.tick(2000);
    assert_eq!(link.link.next_wake_ms(), None, "the deadline of what was answered passes once");
    link.link.incr(b"a", 1, Level::Applied, 9000, 2).unwrap();
    link.flush();
    link.answer(0x8000_0001, &[2], Level::Applied).unwrap();
    assert_eq!(link.link.next_wake_ms(), Some(1001), "it is to be confirmed");
}

#[test]
fn what_is_acknowledged_is_confirmed_on_demand() {
    let mut link = client(settings());
    link.incr("a", Level::Applied, 1);
    link.flush();
    link.answer(0x8000_0000, &[1], Level::Applied).unwrap();
    assert_eq!(link.link.unconfirmed(), 1);
    link.link.confirm(2000, 7).unwrap();
    assert_eq!(link.flush(), [Seen::Hello(FIRST)]);
    // One that comes now isn't covered by that question.
    link.link.confirm(2000, 8).unwrap();
    assert!(link.flush().is_empty());
    link.refuse(0x4000_0000, ErrorCode::ReadOnly);
    assert!(link.flush().is_empty(), "there is no pause");
    link.tick(1000);
    assert_eq!(link.flush(), [Seen::Hello(FIRST)]);
    link.greet("a", 1, Some(1)).unwrap();
    assert_eq!(std::mem::take(&mut link.replies), [(7, vec![0xc0]), (8, vec![0xc0])]);
    assert_eq!(link.link.unconfirmed(), 0);
    link.link.confirm(1500, 9).unwrap();
    link.flush();
    link.tick(1500);
    assert_eq!(link.take_told(), [(1, Ok(1)), (9, Err(ErrorCode::Deadline))]);
}

#[test]
fn with_too_much_unconfirmed_nothing_is_sent_until_it_is() {
    let mut link = client(LinkSettings { unconfirmed_operations_max: 4, ..settings() });
    (1..5).for_each(|waiter| link.incr("a", Level::Applied, waiter));
    link.flush();
    link.answer(0x8000_0000, &[1, 2, 3, 4], Level::Applied).unwrap();
    link.incr("b", Level::Applied, 5);
    link.get(6);
    assert_eq!(link.flush(), [Seen::Hello(FIRST), Seen::Get { msgid: 1, key: b"k".to_vec() }]);
    link.greet("a", 1, Some(4)).unwrap();
    assert_eq!(shapes(&link.flush()), [(0x8000_0001, 5, 1)]);
}

#[test]
fn what_was_sent_stays_when_nobody_waits_any_more_and_what_was_not_goes() {
    let mut link = client(settings());
    link.incr("sent", Level::Durable, 1);
    link.get(2);
    link.flush();
    link.incr("queued", Level::Durable, 3);
    link.get(4);
    let mut gone = Vec::new();
    link.link.abandon_waiters(|_| true, |waiter| gone.push(waiter));
    gone.sort_unstable();
    assert_eq!(gone, [1, 2, 3, 4]);
    assert_eq!((unknown(&link), link.link.unsettled()), (vec!["sent".to_owned()], 1));
    link.lose();
    link.connect("a", 2, None);
    let seen = link.flush();
    assert!(matches!(seen.as_slice(), [Seen::Apply { items, .. }] if items.len() == 1), "{seen:?}");
    link.answer(0x8000_0000, &[1], Level::Durable).unwrap();
    assert_eq!((unknown(&link).len(), link.link.unsettled(), link.take_told().len()), (0, 0, 0));
    assert!(link.link.take_given_up().is_empty(), "it counted");
}

#[test]
fn whoever_was_told_not_to_repeat_it_learns_that_it_did_not_count() {
    let given_up = |is_unknown| {
        [GivenUp { key: b"a".to_vec(), delta: 1, sent_at_ms: 1, is_unknown }].into_iter().collect::<Vec<_>>()
    };
    let late = || {
        let mut link = client(settings());
        link.incr("a", Level::Durable, 1);
        link.flush();
        link.tick(2000);
        assert_eq!(link.take_told(), [(1, Err(ErrorCode::Deadline))]);
        assert_eq!(unknown(&link), ["a"]);
        link
    };
    let mut link = late();
    link.refuse(0x8000_0000, ErrorCode::Forbidden);
    assert_eq!(link.link.take_given_up(), given_up(false));
    let mut link = late();
    link.refuse(0x8000_0000, ErrorCode::IdReused);
    assert_eq!(link.flush().len(), 2, "no copy can count, so it goes on in another session");
    let mut link = late();
    link.lose();
    link.connect("b", 1, None);
    assert_eq!(link.link.take_given_up(), given_up(true));
    // It came back to what was never sent, and stays there.
    let mut link = late();
    link.refuse(0x8000_0000, ErrorCode::Overloaded);
    assert!(link.flush().is_empty());
    assert_eq!(unknown(&link), ["a"]);
    link.link.take_unsent(1.0, |_, _, _, _, _| panic!("it was sent"));
    link.tick(9000);
    assert_eq!(shapes(&link.flush()), [(0x8000_0000, 1, 1)]);
    link.refuse(0x8000_0000, ErrorCode::Overloaded);
    link.flush();
    let refusal = Outcome::Error { code: ErrorCode::Unavailable, message: "closed" };
    link.link.abandon_with("closed", refusal, &mut |_, _| panic!("nobody waits"));
    assert_eq!((link.link.take_given_up(), link.link.unsettled()), (given_up(false), 0));
}

#[test]
fn a_batch_that_is_too_large_is_cut_until_its_parts_are_accepted() {
    let mut link = client(settings());
    (1..=4).for_each(|waiter| link.incr("a", Level::Durable, waiter));
    assert_eq!(shapes(&link.flush()), [(0x8000_0000, 1, 4)]);
    link.refuse(0x8000_0000, ErrorCode::TooLarge);
    let seen = link.flush();
    assert!(matches!(seen[0], Seen::Bye(FIRST)));
    assert!(seen[1..].iter().all(|one| matches!(one, Seen::Apply { session: SECOND, .. })));
    assert_eq!(shapes(&seen[1..]), [(0x8000_0000, 1, 2), (0x8000_0001, 3, 2)]);
    assert!(link.take_told().is_empty());
    link.answer(0x8000_0000, &[1, 2], Level::Durable).unwrap();
    link.refuse(0x8000_0001, ErrorCode::TooLarge);
    let seen = link.flush();
    assert_eq!(shapes(&seen[1..]), [(0x8000_0001, 1, 1), (0x8000_0002, 2, 1)]);
    link.refuse(0x8000_0001, ErrorCode::TooLarge);
    link.refuse(0x8000_0002, ErrorCode::SequenceGap);
    link.tick(1000);
    let seen = link.flush();
    assert_eq!(shapes(&seen[1..]), [(0x8000_0001, 1, 1)]);
    link.answer(0x8000_0001, &[3], Level::Durable).unwrap();
    let mut told = link.take_told();
    told.sort_unstable_by_key(|&(waiter, _)| waiter);
    assert_eq!(told, [(1, Ok(1)), (2, Ok(2)), (3, Err(ErrorCode::TooLarge)), (4, Ok(3))]);
    assert_eq!(link.link.unsettled(), 0);
}

#[test]
fn figures_count_what_failed_for_want_of_a_shard() {
    let mut link = Link::new(LinkSettings { samples_max: 8, ..settings() });
    link.tick(1);
    (1..=4).for_each(|waiter| link.incr("a", Level::Durable, waiter));
    link.link.note_error("connection refused");
    link.tick(2000);
    assert_eq!(link.take_told().len(), 4);
    assert_eq!((link.link.statistics().operations_failed, link.link.success_rate()), (4, 0.0));
    link.connect("a", 1, None);
    link.link.incr(b"a", 1, Level::Durable, 9000, 5).unwrap();
    link.flush();
    link.link.note_time(2_000_250);
    link.answer(0x8000_0000, &[1], Level::Durable).unwrap();
    assert_eq!(link.link.success_rate(), 0.2);
    let samples = link.link.take_samples();
    assert_eq!(samples.iter().map(|one| (one.latency_us, one.failure)).collect::<Vec<_>>(), [(250, None)]);
}

"""The rules of exactly once, without a network, one by one. All of them together: `test_session_model.py`."""

import pytest

from pycounter.client.session import Next
from pycounter.errors import AlreadySettled, SessionLost, TooLarge, Unavailable, from_wire
from tests.support.session_driver import Driver


def ok(driver, batch, value=1):
    driver.session.on_results(batch, [value] * batch.count)


def refuse(driver, batch, code):
    return driver.session.on_refusal(batch, from_wire(f"{code}: no"))


def test_numbers_follow_each_other_and_acknowledgements_only_rise():
    driver = Driver()
    a, b, c = driver.add("a"), driver.add("b", [("b", 1)] * 5), driver.add("c")
    assert driver.send() == [a, b, c]
    assert [batch.first for batch in (a, b, c)] == [1, 2, 7]
    ok(driver, b)
    assert driver.session.acked_through == 0
    ok(driver, a)
    assert driver.session.acked_through == 6
    assert driver.outcomes == {"a": [1], "b": [1] * 5}


@pytest.mark.parametrize("end", ["dropped", "abandoned", "answered"])
def test_what_was_sent_and_goes_on_under_a_new_session_is_unknown_until_it_is_settled(end):
    driver = Driver(in_flight_max=1)
    batch = driver.add("a")
    driver.send()
    refuse(driver, batch, "session_unknown")
    assert list(driver.session.queue) == driver.session.sent() == [batch]
    told = []
    batch.watchers.append(lambda: told.append(end))
    if end == "dropped":
        assert driver.session.drop(batch)
    elif end == "abandoned":
        (back,) = driver.session.abandon("it is over")
        back.settle(Unavailable("nothing was applied"))
    else:
        assert driver.send() == [batch]
        ok(driver, batch)
    assert told == [end]
    assert driver.session.sent() == []


def test_flight_and_window_are_bounded():
    driver = Driver(in_flight_max=2, window_max=10)
    batches = [driver.add(str(n), [("k", 1)] * 4) for n in range(4)]
    assert driver.send() == batches[:2]
    ok(driver, batches[1])
    assert driver.send() == [], "eight of ten are unsettled, as the first isn't"
    ok(driver, batches[0])
    assert driver.send() == batches[2:]


def test_item_errors_are_outcomes_of_items():
    driver = Driver()
    batch = driver.add("a", [("a", 1), ("", 1)])
    driver.send()
    driver.session.on_results(batch, [5, "bad_key: a key is a string of 1 to 1024 bytes"])
    value, error = driver.outcomes["a"]
    assert (value, error.code) == (5, "bad_key")


def test_wrong_number_of_results_is_no_answer():
    driver = Driver()
    batch = driver.add("a")
    driver.send()
    for results in ([1, 2], [], None, {1: 1}, "1", [None], [True], [1.0], [[1]]):
        with pytest.raises(ValueError, match="result"):
            driver.session.on_results(batch, results)
    assert driver.outcomes == {}


def test_after_a_cut_the_unanswered_go_again_in_order_under_their_numbers():
    driver = Driver()
    a, b, c = driver.add("a"), driver.add("b"), driver.add("c")
    driver.send()
    ok(driver, b)
    driver.session.on_disconnect()
    driver.session.on_resume(2, restarted=False)
    assert driver.send() == [a, c]
    assert (a.first, c.first) == (1, 3)
    assert driver.session.statistics.operations_resent == 2


def test_a_refusal_for_now_rewinds_once_everything_has_landed():
    driver = Driver()
    a, b, c = driver.add("a"), driver.add("b"), driver.add("c")
    driver.send()
    assert refuse(driver, a, "overloaded") is Next.PAUSE
    assert driver.send() == [], "the gap behind it hasn't been answered"
    refuse(driver, b, "sequence_gap")
    refuse(driver, c, "sequence_gap")
    assert driver.send() == [a, b, c]


def test_a_refusal_for_good_takes_no_numbers_and_the_rest_moves_to_a_new_session():
    driver = Driver()
    a, b, c = driver.add("a"), driver.add("b"), driver.add("c")
    first_session = driver.session.id
    driver.send()
    ok(driver, a)
    refuse(driver, b, "too_large")
    assert isinstance(driver.outcomes["b"], TooLarge)
    assert driver.session.id == first_session, "the one behind it is in flight"
    refuse(driver, c, "sequence_gap")
    assert driver.session.id != first_session
    assert driver.session.ended == [first_session]
    assert driver.send() == [c]
    assert c.first == 1


def test_a_refusal_for_good_after_an_unanswered_attempt_settles_nothing():
    driver = Driver()
    a = driver.add("a")
    driver.send()
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=False)
    assert driver.send() == [a]
    refuse(driver, a, "forbidden")
    assert isinstance(driver.outcomes["a"], SessionLost)
    assert driver.send() == []


def test_what_a_restarted_shard_does_not_have_is_no_longer_ambiguous():
    driver = Driver()
    a, b = driver.add("a"), driver.add("b")
    driver.send()
    driver.session.on_disconnect()
    driver.session.on_resume(1, restarted=True)
    assert driver.send() == [a, b]
    refuse(driver, b, "too_large")
    ok(driver, a)
    assert isinstance(driver.outcomes["b"], TooLarge), "the attempt before can't arrive any more"


def test_unknown_outcome_is_retried_under_the_same_number():
    driver = Driver()
    a = driver.add("a")
    driver.send()
    assert refuse(driver, a, "unknown_outcome") is Next.PAUSE
    assert driver.send() == [a]
    assert a.first == 1
    refuse(driver, a, "session_unknown")
    assert isinstance(driver.outcomes["a"], SessionLost)


def test_session_unknown_reports_the_ambiguous_and_keeps_the_rest():
    driver = Driver(in_flight_max=1)
    a, b = driver.add("a"), driver.add("b")
    assert driver.send() == [a]
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=True)
    driver.send()
    refuse(driver, a, "session_unknown")
    lost = driver.outcomes["a"]
    assert isinstance(lost, SessionLost)
    assert "operation 1" in str(lost)
    assert "'a' +1" in str(lost)
    assert driver.send() == [b], "it was never sent"


def test_session_unknown_without_an_unanswered_attempt_is_a_fresh_start():
    driver = Driver()
    a = driver.add("a")
    driver.send()
    ok(driver, a)
    b = driver.add("b")
    driver.send()
    refuse(driver, b, "session_unknown")
    assert "b" not in driver.outcomes
    assert driver.send() == [b]
    assert (b.first, driver.session.statistics.operations_unknown) == (1, 0)


def test_a_shard_that_knows_no_session_is_not_asked_for_ever():
    driver = Driver()
    a = driver.add("a")
    for _ in range(10):
        for batch in driver.send():
            refuse(driver, batch, "session_unknown")
    assert isinstance(driver.outcomes["a"], Unavailable)
    assert a.is_answered


def test_a_forgotten_session_is_seen_in_hello():
    driver = Driver()
    a, b = driver.add("a"), driver.add("b")
    driver.send()
    ok(driver, a)
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=True)
    assert isinstance(driver.outcomes["b"], SessionLost)
    assert driver.send() == []
    assert b.is_answered


def test_a_session_ahead_of_its_client_is_not_this_session():
    driver = Driver()
    driver.add("a")
    driver.send()
    driver.session.on_disconnect()
    driver.session.on_resume(9, restarted=True)
    assert isinstance(driver.outcomes["a"], SessionLost)


def test_a_lost_tail_is_reported_with_its_operations_and_the_unanswered_go_to_a_new_session():
    driver = Driver("applied", in_flight_max=4)
    a, b = driver.add("a"), driver.add("b", [("b", 2), ("b", 3)])
    c = driver.add("c")
    driver.send()
    ok(driver, a)
    ok(driver, b)
    driver.session.on_disconnect()
    driver.session.on_resume(2, restarted=True)
    (tail,) = driver.tails
    assert (tail.first_sequence, tail.last_sequence, tail.count) == (3, 3, 1)
    assert tail.operations == [("b", 3)]
    assert driver.send() == [c]
    assert c.first == 1
    assert driver.session.statistics.operations_lost == 1


def test_a_lost_tail_settles_what_the_shard_still_has():
    driver = Driver("applied")
    driver.add("a")
    b = driver.add("b")
    driver.add("c")
    driver.send()
    ok(driver, b)
    driver.session.on_disconnect()
    driver.session.on_resume(1, restarted=True)
    assert isinstance(driver.outcomes["a"], AlreadySettled)
    assert [tail.count for tail in driver.tails] == [1]


def test_confirmed_operations_are_no_longer_remembered():
    driver = Driver("applied")
    for name in "abc":
        driver.add(name)
    for batch in driver.send():
        ok(driver, batch)
    driver.session.tail.confirm(2)
    assert driver.session.unconfirmed_operations == 1
    driver.session.on_disconnect()
    driver.session.on_resume(2, restarted=True)
    assert driver.tails[0].operations == [("c", 1)]


def test_a_tail_has_no_items_that_were_answered_with_an_error():
    driver = Driver("applied")
    batch = driver.add("a", [("a", 1), ("", 1), ("b", 2)])
    driver.send()
    driver.session.on_results(batch, [1, "bad_key: no", 2])
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=True)
    assert [tail.operations for tail in driver.tails] == [[("a", 1), ("b", 2)]]
    assert driver.session.statistics.operations_lost == 2


def retire(driver):
    """Has an operation `a` acknowledged at applied in a session that is refused for good then; gives its tail."""
    a, refused = driver.add("a"), driver.add("refused")
    driver.send()
    ok(driver, a)
    refuse(driver, refused, "too_large")
    (tail,) = driver.session.retired
    assert driver.session.ended == [], "no goodbye before it is durable"
    assert driver.session.unconfirmed_operations == 1
    return tail


def test_a_retired_session_is_confirmed_by_the_barrier_of_the_present_one():
    driver = Driver("applied")
    tail = retire(driver)
    covered = driver.session.acknowledged()
    late = driver.add("late")
    driver.send()
    ok(driver, late)
    driver.session.confirm(covered)
    assert driver.session.retired == []
    assert driver.session.ended == [tail.session]
    assert driver.session.unconfirmed_operations == 1, "the barrier was asked for before this one"


def test_a_retired_session_is_confirmed_by_hello_of_the_same_life_of_the_shard():
    driver = Driver("applied")
    tail = retire(driver)
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=False)
    assert driver.session.ended == [tail.session]
    assert driver.session.unconfirmed_operations == 0
    assert driver.tails == []


@pytest.mark.parametrize(("last", "lost"), [(None, 1), (0, 1), (1, 0)])
def test_a_retired_session_is_resolved_after_a_crash(last, lost):
    driver = Driver("applied")
    tail = retire(driver)
    driver.session.on_disconnect()
    driver.session.resolve(tail, last)
    driver.session.on_resume(None, restarted=True)
    assert [found.operations for found in driver.tails] == [[("a", 1)]] * lost
    assert driver.session.ended == [tail.session]
    assert driver.session.statistics.operations_lost == lost


def test_what_nobody_can_tell_about_a_retired_session_is_no_lost_tail():
    """Unknown after a crash, it may have expired with all of it on disk: applying it again might count it twice."""
    driver = Driver("applied")
    tail = retire(driver)
    driver.session.on_disconnect()
    driver.session.expire()
    driver.session.resolve(tail, None)
    assert driver.tails == []
    assert driver.session.statistics.operations_unknown == 1


def test_a_session_that_is_unknown_after_an_answer_was_forgotten():
    driver = Driver("applied")
    a, b, c = driver.add("a"), driver.add("b"), driver.add("c")
    driver.send()
    ok(driver, a)
    refuse(driver, b, "session_unknown")
    ok(driver, c)
    (tail,) = driver.session.retired
    driver.session.on_disconnect()
    driver.session.resolve(tail, None)
    assert driver.tails == []
    assert driver.session.statistics.operations_unknown == 2


def test_a_session_that_is_unknown_behind_its_refused_first_batch_has_not_begun():
    driver = Driver()
    a, b = driver.add("a"), driver.add("b")
    session = driver.session.id
    assert driver.send() == [a, b]
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=True)
    assert driver.send() == [a, b]
    refuse(driver, a, "overloaded")
    assert refuse(driver, b, "session_unknown") is Next.PAUSE
    assert driver.send() == [a, b]
    assert (driver.session.id, a.first, b.first) == (session, 1, 2)
    assert driver.outcomes == {}, "both can still be settled: nothing of the session was ever answered"
    # The first batch itself is told for good.
    refuse(driver, a, "session_unknown")
    refuse(driver, b, "session_unknown")
    assert {name: type(outcome) for name, outcome in driver.outcomes.items()} == {"a": SessionLost, "b": SessionLost}


def test_a_session_that_was_partly_durable_and_is_unknown_after_a_crash_is_no_lost_tail():
    driver = Driver("applied")
    a, b = driver.add("a"), driver.add("b")
    driver.send()
    ok(driver, a)
    driver.session.confirm(driver.session.acknowledged())
    ok(driver, b)
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=True)
    assert driver.tails == []
    assert driver.session.statistics.operations_unknown == 1


def test_abandoning_counts_what_was_never_confirmed_as_unknown():
    driver = Driver("applied")
    retire(driver)
    assert driver.session.abandon("closed") == []
    assert driver.session.unconfirmed_operations == 0
    assert driver.session.statistics.operations_unknown == 1


def test_a_batch_that_was_not_sent_can_be_taken_back():
    driver = Driver(in_flight_max=1)
    a, b = driver.add("a"), driver.add("b")
    driver.send()
    assert driver.session.drop(b)
    assert not driver.session.drop(a)


def test_abandoning_names_what_is_unknown_and_gives_back_the_rest():
    driver = Driver(in_flight_max=1)
    driver.add("a", [("a", 1), ("a", 2)])
    b = driver.add("b")
    driver.send()
    assert driver.session.abandon("it is another shard") == [b]
    assert "operations 1 to 2" in str(driver.outcomes["a"])
    assert "another shard" in str(driver.outcomes["a"])

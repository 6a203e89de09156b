"""The checker of the crash tests on histories made up for it: right ones pass, and each kind of wrong one is seen."""

import pytest

from tests.support.history import History, Operation, Violation

KEY = b"key"


def increment(history: History, answer: int | str | None = None, delta: int = 1, key: bytes = KEY) -> Operation:
    operation = Operation("client 1", key, delta)
    history.attempt(operation)
    if answer is not None:
        history.answer(operation, answer)
    return operation


def drain(history: History, answer: int | None = None) -> Operation:
    operation = Operation("client 1", KEY, 0, "drain")
    history.attempt(operation)
    if answer is not None:
        history.answer(operation, answer)
    return operation


def read(history: History, value: int) -> None:
    history.end_read(history.begin_read([KEY]), {KEY: value})


def test_a_right_history_passes():
    history = History()
    for value in range(1, 6):
        increment(history, value)
        read(history, value)
    late = increment(history)
    read(history, 5)
    read(history, 6)
    history.answer(late, 6)
    history.answer(late, 6)
    increment(history, 10, delta=4)
    increment(history, "overflow", delta=2**63 - 1)
    history.check_settled({KEY: 10})
    assert (history.acknowledged, history.repeated, history.reads) == (8, 1, 7)


def test_a_total_below_what_was_acknowledged():
    history = History()
    increment(history, 1)
    with pytest.raises(Violation, match="1 was acknowledged"):
        read(history, 0)


def test_a_total_above_what_was_attempted():
    history = History()
    increment(history, 1)
    increment(history)
    with pytest.raises(Violation, match="only 2 was attempted"):
        read(history, 3)


def test_an_answer_above_what_was_attempted():
    history = History()
    with pytest.raises(Violation, match="1 attempted in all"):
        increment(history, 2)


def test_a_refused_increment_counts_for_nobody():
    history = History()
    increment(history, "overflow", delta=5)
    with pytest.raises(Violation, match="only 0 was attempted"):
        read(history, 5)


def test_a_read_that_began_before_an_answer_need_not_see_it():
    history = History()
    floor = history.begin_read([KEY])
    increment(history, 1)
    history.end_read(floor, {KEY: 0})


def test_what_a_read_saw_stays_visible():
    history = History()
    increment(history)
    read(history, 1)
    with pytest.raises(Violation, match="seen before"):
        read(history, 0)


def test_what_an_answer_covers_stays_visible():
    history = History()
    increment(history)
    increment(history, 2)
    with pytest.raises(Violation, match="2 was acknowledged or seen"):
        read(history, 1)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (1, "overflow"), ("bad_key", 1)])
def test_a_repeated_operation_with_another_answer(first, second):
    history = History()
    increment(history, 1)
    increment(history, 2)
    operation = increment(history, first, key=b"other")
    with pytest.raises(Violation, match="repeated"):
        history.answer(operation, second)


def test_two_increments_with_one_answer():
    history = History()
    increment(history, 1)
    increment(history)
    with pytest.raises(Violation, match="as another increment was"):
        increment(history, 1)


def test_two_increments_that_own_one_unit():
    history = History()
    increment(history, 5, delta=5)
    increment(history, 7, delta=3)
    with pytest.raises(Violation, match="overlap"):
        history.check_settled({KEY: 8})


def test_units_that_nobody_added():
    """An increment said to be lost was counted: the one after it gives that away by its answer."""
    history = History()
    increment(history, 1)
    lost = increment(history)
    increment(history, 3)
    history.abandon(lost, known_lost=True)
    with pytest.raises(Violation, match="2 was acknowledged"):
        history.check_settled({KEY: 3})
    with pytest.raises(Violation, match="nobody added"):
        history.check_settled({KEY: 2})


def test_an_open_operation_is_not_settled():
    history = History()
    increment(history)
    with pytest.raises(Violation, match="nobody was told"):
        history.check_settled({KEY: 1})


@pytest.mark.parametrize("total", [1, 3])
def test_the_end_must_be_equal(total):
    history = History()
    increment(history, 1)
    increment(history, 2)
    with pytest.raises(Violation, match="2 was acknowledged"):
        history.check_settled({KEY: total})


def test_a_counter_from_nowhere():
    with pytest.raises(Violation, match="nobody touched"):
        History().check_settled({KEY: 1})


def test_a_missing_counter():
    history = History()
    increment(history, 1)
    with pytest.raises(Violation, match="is 0"):
        history.check_settled({})


def test_unknown_outcomes_widen_the_end_and_no_more():
    history = History()
    increment(history, 1)
    history.abandon(increment(history), known_lost=False)
    history.check_settled({KEY: 1})
    history.check_settled({KEY: 2})
    for total in (0, 3):
        with pytest.raises(Violation, match="not within 1 to 2"):
            history.check_settled({KEY: total})


def test_a_lost_operation_must_not_come_back():
    history = History()
    lost = increment(history)
    history.abandon(lost, known_lost=True)
    history.check_settled({KEY: 0})
    with pytest.raises(Violation, match="only 0 was attempted"):
        read(history, 1)
    with pytest.raises(Violation, match="after it was reported lost"):
        history.answer(lost, 1)


def test_an_applied_answer_binds_until_the_next_kill():
    history = History()
    operation = increment(history)
    history.answer(operation, 1, "applied", epoch=1)
    history.answer(operation, 1, "applied", epoch=1)
    read(history, 0)
    with pytest.raises(Violation, match="answered 1, and repeated 2"):
        history.answer(operation, 2, "durable", epoch=1)
    increment(history, 1)
    history.answer(operation, 2, "durable", epoch=2)
    history.check_settled({KEY: 2})


def test_drains():
    history = History()
    increment(history, 1)
    increment(history, 2)
    unanswered = drain(history)
    read(history, 0)
    history.answer(unanswered, 2)
    with pytest.raises(Violation, match="only 0 was attempted"):
        read(history, 1)
    increment(history, 1)
    history.check_settled({KEY: 1})
    with pytest.raises(Violation, match="1 was acknowledged"):
        history.check_settled({KEY: 3})


def test_increments_downwards():
    history = History()
    increment(history, 5, delta=5)
    floor = history.begin_read([KEY])
    increment(history, 3, delta=-2)
    increment(history, delta=-2)
    for value in (1, 3, 5):
        history.end_read(floor, {KEY: value})
    with pytest.raises(Violation, match="must be at least 1"):
        history.end_read(floor, {KEY: 0})
    with pytest.raises(Violation, match="only 3 was attempted"):
        read(history, 5)

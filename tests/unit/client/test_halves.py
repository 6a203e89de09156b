"""When the callers of a shard are served in two halves."""

from pycounter.client.halves import Halves


def learnt(serving_s, answer_s, callers=100):
    halves = Halves()
    for _ in range(100):
        halves.on_leave(callers, serving_s)
        halves.on_answer(answer_s, callers)
    return halves


def test_two_halves_where_serving_takes_longer_than_the_shard():
    assert learnt(0.5, 0.4).on_answer(0.4, 100) == 50
    assert learnt(0.5, 0.4, 31).on_answer(0.4, 31) == 16


def test_all_together_where_the_disk_is_slower():
    assert learnt(0.5, 0.6).on_answer(0.6, 100) is None
    assert learnt(0.0, 0.0).on_answer(0.0, 100) is None


def test_how_long_serving_takes_grows_with_the_callers():
    assert learnt(0.5, 0.6).on_answer(0.6, 200) == 100


def test_a_half_that_waits_for_the_other_is_no_reason_to_join_them():
    halves = learnt(0.5, 0.4)
    assert [halves.on_answer(0.8, 100) for _ in range(100)] == [50] * 100
    # ... but a slower disk is.
    assert [halves.on_answer(1.1, 100) for _ in range(100)][-1] is None


def test_both_halves_answered_at_once_are_as_many_callers_as_before():
    halves = learnt(0.5, 0.4)
    assert [halves.on_answer(0.4, operations) for operations in [100, 50] * 100] == [50] * 200
    # Fewer callers are noticed, if not at once.
    assert [halves.on_answer(0.1, 40) for _ in range(100)][-1] == 20


def test_few_callers_stay_together():
    assert learnt(0.5, 0.01, 15).on_answer(0.01, 15) is None
    assert learnt(0.5, 0.01, 16).on_answer(0.01, 16) == 8


def test_small_batches_say_nothing_about_serving():
    halves = Halves()
    for _ in range(100):
        halves.on_leave(7, 1.0)
        assert halves.on_answer(0.01, 100) is None

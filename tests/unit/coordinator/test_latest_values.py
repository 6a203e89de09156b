"""The values that a client last saw at a shard, bounded."""

from pycounter._native import LatestValues


def test_the_latest_are_remembered_and_the_others_are_not():
    values = LatestValues(100)
    for number in range(1000):
        values.note(f"key-{number}", number)
    assert len(values) <= 200
    assert [values.get(f"key-{number}".encode()) for number in range(901, 1000)] == list(range(901, 1000))
    assert values.get(b"key-0") is None


def test_the_newest_value_of_a_counter_counts_whatever_form_its_key_has():
    values = LatestValues(3)
    values.note("a", 0)
    values.note(b"a", 1)
    values.note(b"b", 2)
    assert (values.get(b"a"), values.get(b"b")) == (1, 2)
    values.note("a", 3)
    assert values.get(b"a") == 3
    values.forget(b"a")
    assert (values.get(b"a"), values.get(b"b")) == (None, 2)
    values.note(b"\xff", 4)
    assert values.get(b"\xff") == 4
    values.forget(None)
    assert len(values) == 0

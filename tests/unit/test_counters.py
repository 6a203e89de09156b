"""The counter map in memory, against `collections.Counter`."""

import pickle
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pycounter
from pycounter import Counters, errors

WORDS = st.lists(st.sampled_from(["a", "b", "c", "ü", "longer " * 9]), max_size=50)


@given(WORDS, WORDS)
def test_it_counts_as_collections_counter_does(first, second):
    counters, expected = Counters(first), Counter(first)
    counters.update(second)
    expected.update(second)
    assert counters == expected
    assert dict(counters.items()) == expected
    assert sorted(counters) == sorted(expected)
    assert counters.total() == expected.total()
    assert [value for _, value in counters.most_common()] == [value for _, value in expected.most_common()]
    assert pickle.loads(pickle.dumps(counters)) == counters
    assert Counters.from_bytes(counters.to_bytes()) == counters
    counters.subtract(second)
    expected.subtract(second)
    assert dict(counters.items()) == expected


def test_overflow_changes_nothing_either_way():
    counters = Counters()
    assert counters.incr("x", 2**63 - 1) == 2**63 - 1
    with pytest.raises(errors.CounterOverflow):
        counters.incr("x")
    assert counters.incr("y", -(2**63)) == -(2**63)
    with pytest.raises(errors.CounterOverflow):
        counters.add("y", -1)
    assert dict(counters.items()) == {"x": 2**63 - 1, "y": -(2**63)}


def test_keys_are_bytes_and_bad_ones_are_refused():
    counters = Counters()
    counters.incr("ü")
    assert counters["ü".encode()] == 1
    counters.incr(b"\xff")
    assert set(counters) == {"ü", b"\xff"}
    for key in ("", "x" * 1025, b"", "\ud800"):
        with pytest.raises(errors.BadKey):
            counters.incr(key)
    assert len(counters) == 2


def test_drain_and_delete():
    counters = Counters({"a": 5, "b": 7})
    assert counters.drain("a") == 5
    assert "a" in counters
    assert counters.delete("b") == 7
    assert "b" not in counters
    assert counters.delete("b") == 0


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_many_are_deleted_by_one_call(tmp_path, where):
    def reopened():
        return Counters() if where == "memory" else pycounter.open(tmp_path / "counters", level="applied")

    counters = reopened()
    counters.update({f"a-{number}": number for number in range(20_000)})
    counters.update({"b": 7, "c": 8, b"\xff\x00": 9})
    assert counters.delete_many(["b", "never", b"a-5", "b"]) == [7, 0, 5, 0]
    assert counters.delete_many(np.array(["a-6", "c"])) == [6, 8]
    assert counters.delete_many(iter([])) == []
    with pytest.raises(errors.BadKey):
        counters.delete_many(["a-7", ""])
    with pytest.raises(TypeError, match="not one str"):
        counters.delete_many("a-7")
    assert counters["a-7"] == 7, "a call that is refused deletes nothing"
    assert counters.delete_prefix("a-1") == 11_111
    assert counters.delete_prefix("a-1") == 0
    assert counters.delete_prefix(b"\xff") == 1
    assert len(counters) == 20_000 - 2 - 11_111
    with pytest.raises(ValueError, match="clear"):
        counters.delete_prefix("")
    if where == "disk":
        counters.close()
        with reopened() as counters:
            assert len(counters) == 20_000 - 2 - 11_111
            assert not any(str(key).startswith("a-1") for key in counters)


def test_deletion_by_prefix_loses_no_increment():
    counters = Counters()
    started, removed = threading.Barrier(2), []

    def work():
        started.wait()
        for number in range(30_000):
            counters.incr(f"k-{number % 100}")

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    while worker.is_alive():
        removed.extend(counters.delete_many([f"k-{number}" for number in range(100)]))
    worker.join()
    assert sum(removed) + counters.total() == 30_000


def test_threads_lose_nothing():
    counters = Counters()
    words = [f"word-{number % 97}" for number in range(20_000)]

    def work():
        counters.update(words)
        for word in words[:2000]:
            counters.incr(word)
            counters.add("hot")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = Counter((words + words[:2000]) * 8)
    expected["hot"] = 16_000
    assert dict(counters.items()) == expected


def test_hostile_bytes_are_refused():
    whole = Counters(["a", "b"]).to_bytes()
    for at in range(len(whole)):
        with pytest.raises(ValueError):  # noqa: PT011 - which of its sentences depends on the place
            Counters.from_bytes(whole[:at])
        flipped = bytearray(whole)
        flipped[at] ^= 1
        with pytest.raises(ValueError):  # noqa: PT011 - which of its sentences depends on the place
            Counters.from_bytes(bytes(flipped))

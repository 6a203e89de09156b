"""The counter map in the user's process, beside a dict under a lock and `collections.Counter`."""

import threading
from collections import Counter
from typing import Any

import pytest

from pycounter import Counters

OPERATIONS = 100_000


@pytest.fixture(params=[1_000, 100_000], ids=["1k-keys", "100k-keys"])
def keys(request: pytest.FixtureRequest) -> list[str]:
    count: int = request.param
    names = [f"counter:{number:012d}" for number in range(count)]
    return names * (OPERATIONS // count)


def test_incr(benchmark: Any, keys: list[str]) -> None:
    counters = Counters(keys)

    def run() -> None:
        incr = counters.incr
        for key in keys:
            incr(key)

    benchmark(run)


def test_dict_under_a_lock(benchmark: Any, keys: list[str]) -> None:
    counters, lock = dict.fromkeys(keys, 0), threading.Lock()

    def run() -> None:
        for key in keys:
            with lock:
                counters[key] += 1

    benchmark(run)


def test_update(benchmark: Any, keys: list[str]) -> None:
    benchmark(Counters(keys).update, keys)


def test_collections_counter_update(benchmark: Any, keys: list[str]) -> None:
    benchmark(Counter(keys).update, keys)

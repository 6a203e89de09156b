"""Per-key structures of clients, coordinators and caches, with few keys and with a million distinct ones.

Each bounded structure must cost the same full as empty: compare the two rows of a structure.
"""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pycounter._native import Counters, ForeignKeys, LatestValues, ReadCache

DISTINCT = 1_000_000
#: Keys touched in each round.
CHUNK = 20_000

KEYS = {
    "few keys": [b"key-%d" % (number % 1000) for number in range(CHUNK)],
    "a million keys": [b"key-%d" % number for number in range(DISTINCT)],
}


def latest_values() -> Callable[[bytes], object]:
    values = LatestValues(65_536)
    return lambda key: values.note(key, 1)


def bumps() -> Callable[[bytes], object]:
    return ReadCache().bump


def loads() -> Callable[[bytes], object]:
    cache = ReadCache()
    return lambda key: cache.fill(key, 1, cache.begin(key))


def foreign_keys() -> Callable[[bytes], object]:
    keys = ForeignKeys(2)
    return lambda key: keys.note(1, key)


def counters() -> Callable[[bytes], object]:
    return Counters().incr


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("structure", [latest_values, bumps, loads, foreign_keys, counters])
def test_structure(benchmark: BenchmarkFixture, structure: Callable[[], Callable[[bytes], object]], keys: str) -> None:
    touch = structure()
    every = KEYS[keys]
    for key in every:
        touch(key)
    position = 0

    def chunk() -> list[bytes]:
        nonlocal position
        position = (position + CHUNK) % len(every)
        return every[position : position + CHUNK]

    def touch_all(part: list[bytes]) -> None:
        for key in part:
            touch(key)

    benchmark.pedantic(touch_all, setup=lambda: ((chunk(),), {}), rounds=40)  # type: ignore[no-untyped-call]

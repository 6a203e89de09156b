"""What a coordinator's cached read costs through Python, and a write's bump: a thousand keys, one call each."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pycounter._native import ReadCache

KEYS = [f"counter-{number}" for number in range(1_000)]


@pytest.fixture
def cache() -> ReadCache:
    """One whose values don't grow old during a bench."""
    cache = ReadCache(l1_ttl_s=3600.0, l2_ttl_s=3600.0)
    for key in KEYS:
        cache.fill(key, 1, cache.begin(key))
    return cache


def test_cached_reads(benchmark: BenchmarkFixture, cache: ReadCache) -> None:
    get = cache.get
    values = benchmark(lambda: [get(key) for key in KEYS])
    assert values == [1] * len(KEYS)


def test_misses(benchmark: BenchmarkFixture) -> None:
    get = ReadCache().get
    benchmark(lambda: [get(key) for key in KEYS])


def test_bumps(benchmark: BenchmarkFixture, cache: ReadCache) -> None:
    bump = cache.bump
    benchmark(lambda: [bump(key) for key in KEYS])


def test_loads(benchmark: BenchmarkFixture, cache: ReadCache) -> None:
    benchmark(lambda: [cache.fill(key, 1, cache.begin(key)) for key in KEYS])

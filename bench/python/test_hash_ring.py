"""Where does a key live? One lookup, and many in one call."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pycounter import HashRing

KEYS = [f"counter-{number}" for number in range(1_000)]


@pytest.fixture
def ring() -> HashRing:
    return HashRing([f"shard-{number}" for number in range(16)])


def test_one_key_a_call(benchmark: BenchmarkFixture, ring: HashRing) -> None:
    benchmark(lambda: [ring.home(key) for key in KEYS])


def test_many_keys_a_call(benchmark: BenchmarkFixture, ring: HashRing) -> None:
    benchmark(ring.home_many, KEYS)


def test_one_shard_more(benchmark: BenchmarkFixture, ring: HashRing) -> None:
    benchmark(ring.with_shard, "shard-16")

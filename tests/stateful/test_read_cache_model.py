"""The read cache against a simple reference: shards' values, loads and writes in steps that mix in any order.

A write is sent, applied and settled; a load begins, is answered by the shard and is filled in. The reference knows
for each key the newest write that was sent or settled, and what was kept since: a read gives exactly that, or nothing
for a reason that the reference knows too. With room for all keys even the hits of each level are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pycounter._native import ReadCache
from pycounter.errors import BadKey

KEYS = [f"key-{number}" for number in range(12)]
HOT_READS, COLD_READS = 40, 3
L1_TTL_S, L2_TTL_S, HOT_TTL_S = 1.0, 10.0, 5.0
keys = st.sampled_from(KEYS)


@dataclass
class Load:
    key: str
    version: int
    #: The step in which it began.
    began: int
    value: int


@dataclass
class Kept:
    load: Load
    at: float
    l1_until: float


class ReadCacheMachine(RuleBasedStateMachine):
    """Room for every key: the reference is exact."""

    l1_entries = l2_entries = 100
    bytes_max = 1 << 20
    writes: Bundle[tuple[str, int]] = Bundle("writes")
    loads: Bundle[Load] = Bundle("loads")

    def __init__(self) -> None:
        super().__init__()
        self.now = 500.0
        self.step = 0
        self.cache = ReadCache(
            l1_entries=self.l1_entries,
            l1_ttl_s=L1_TTL_S,
            l2_entries=self.l2_entries,
            l2_ttl_s=L2_TTL_S,
            hot_reads=HOT_READS,
            hot_ttl_s=HOT_TTL_S,
            cold_reads=COLD_READS,
            bytes_max=self.bytes_max,
            clock=lambda: self.now,
        )
        self.shard = dict.fromkeys(KEYS, 0)
        self.settled = dict.fromkeys(KEYS, 0)
        self.bumped = dict.fromkeys(KEYS, 0)
        self.reads = dict.fromkeys(KEYS, 0)
        self.kept: dict[str, Kept] = {}
        names = ["l1_hits", "l2_hits", "misses", "expired", "stale", "evictions", "fills", "fills_refused"]
        self.figures = dict.fromkeys(names, 0)

    # --- writes ---

    def bump(self, key: str) -> None:
        self.step += 1
        self.bumped[key] = self.step
        self.cache.bump(key)

    @rule(target=writes, key=keys, delta=st.integers(1, 9))
    def write_is_sent(self, key: str, delta: int) -> tuple[str, int]:
        self.bump(key)
        return key, delta

    @rule(write=consumes(writes), target=writes)
    def write_is_applied(self, write: tuple[str, int]) -> tuple[str, int]:
        key, delta = write
        self.shard[key] += delta
        return key, 0

    @rule(write=consumes(writes))
    def write_is_applied_and_settled(self, write: tuple[str, int]) -> None:
        key, delta = write
        self.shard[key] += delta
        self.settled[key] = self.shard[key]
        self.bump(key)

    # --- loads ---

    @rule(target=loads, key=keys)
    def load_begins(self, key: str) -> Load:
        self.step += 1
        return Load(key, self.cache.begin(key), self.step, self.shard[key])

    @rule(load=consumes(loads), target=loads)
    def load_is_answered_later(self, load: Load) -> Load:
        load.value = self.shard[load.key]
        return load

    @rule(load=consumes(loads))
    def load_is_filled_in(self, load: Load) -> None:
        is_current = load.began > self.bumped[load.key]
        assert self.cache.fill(load.key, load.value, load.version) == is_current
        self.figures["fills" if is_current else "fills_refused"] += 1
        if is_current:
            self.kept[load.key] = Kept(load, self.now, self.now + self.l1_ttl(load.key))

    @rule(key=keys)
    def load_in_one_step(self, key: str) -> None:
        self.load_is_filled_in(self.load_begins(key))

    @rule(key=keys, value=st.sampled_from([2**63, -(2**63) - 1]))
    def load_of_more_than_64_bits(self, key: str, value: int) -> None:
        assert not self.cache.fill(key, value, self.cache.begin(key))
        self.figures["fills_refused"] += 1

    # --- the rest ---

    # Sums of these are exact.
    @rule(seconds=st.sampled_from([0.25, 0.75, 1.0, 4.0, 9.75, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.kept.clear()

    @rule(key=keys, times=st.sampled_from([1, 1, 2, HOT_READS + 1]))
    def read(self, key: str, times: int) -> None:
        for _ in range(times):
            self.reads[key] += 1
            self.check(key, self.cache.lookup(key))

    def check(self, key: str, got: tuple[int, float] | None) -> None:
        """A read gave this: exactly what was kept, or nothing if that is old or stale."""
        outcome = self.outcome(key)
        self.figures[outcome] += 1
        kept = self.kept.get(key)
        if outcome in {"l1_hits", "l2_hits"}:
            assert kept is not None
            assert got == (kept.load.value, self.now - kept.at)
            assert kept.load.value >= self.settled[key]
            if outcome == "l2_hits":
                kept.l1_until = self.now + self.l1_ttl(key)
            return
        assert got is None
        if outcome != "misses":
            self.figures["misses"] += 1
        self.kept.pop(key, None)

    def outcome(self, key: str) -> str:
        kept = self.kept.get(key)
        if kept is None:
            return "misses"
        if self.now - kept.at >= L2_TTL_S:
            return "expired"
        if kept.load.began < self.bumped[key]:
            return "stale"
        return "l1_hits" if self.now < kept.l1_until else "l2_hits"

    def l1_ttl(self, key: str) -> float:
        return HOT_TTL_S if self.reads[key] > HOT_READS else L1_TTL_S

    @invariant()
    def figures_agree(self) -> None:
        statistics = self.cache.statistics()
        assert {name: statistics[name] for name in self.figures} == self.figures
        assert statistics["entries"] == len(self.kept)
        assert {key for key, _ in self.cache.hottest(100)} == set(self.kept)


class CrowdedReadCacheMachine(ReadCacheMachine):
    """Room for a few keys only: any may have left, but none is wrong, and the bounds hold."""

    l1_entries = 2
    l2_entries = 5
    bytes_max = 480

    def check(self, key: str, got: tuple[int, float] | None) -> None:
        if got is None:
            self.kept.pop(key, None)
            return
        assert self.outcome(key) in {"l1_hits", "l2_hits"}
        kept = self.kept[key]
        assert got == (kept.load.value, self.now - kept.at)
        assert kept.load.value >= self.settled[key]

    @invariant()
    def figures_agree(self) -> None:
        statistics = self.cache.statistics()
        assert statistics["fills"] == self.figures["fills"]
        assert statistics["fills_refused"] == self.figures["fills_refused"]
        assert statistics["entries"] <= min(self.l2_entries, len(self.kept))
        assert statistics["l1_entries"] <= min(self.l1_entries, statistics["entries"])
        assert statistics["bytes"] <= self.bytes_max
        assert {key for key, _ in self.cache.hottest(100)} <= set(self.kept)


TestReadCache = ReadCacheMachine.TestCase
TestCrowdedReadCache = CrowdedReadCacheMachine.TestCase


def test_no_two_of_these_keys_share_a_version() -> None:
    """What the exact reference relies on."""
    cache = ReadCache()
    for key in KEYS:
        cache.fill(key, 1, cache.begin(key))
    for number, key in enumerate(KEYS):
        cache.bump(key)
        assert [cache.get(other) for other in KEYS] == [None] * (number + 1) + [1] * (len(KEYS) - number - 1)


@pytest.mark.parametrize(
    "wrong",
    [{"l1_entries": 0}, {"l2_ttl_s": 0.0}, {"l1_ttl_s": float("nan")}, {"hot_ttl_s": -1.0}, {"bytes_max": 0}],
)
def test_settings_that_make_no_cache_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ReadCache(**wrong)


def test_a_bad_key_is_refused_by_every_method() -> None:
    cache = ReadCache()
    for method in (cache.get, cache.lookup, cache.bump, cache.begin):
        for key in ("", b"x" * 1025, "\udc80"):
            with pytest.raises(BadKey):
                method(key)
    with pytest.raises(TypeError):
        cache.fill("a", "1", cache.begin("a"))  # type: ignore[arg-type]


def test_the_hottest_come_first() -> None:
    cache = ReadCache()
    keys: list[str | bytes] = ["cold", b"\xff", "hot"]
    for number, key in enumerate(keys):
        cache.fill(key, 1, cache.begin(key))
        for _ in range(10 * number):
            cache.get(key)
    assert cache.hottest(2) == [("hot", 20), (b"\xff", 10)]
    assert cache.hottest(0) == []

"""Values that were read or counted lately.

For example:

    version = cache.begin("visits")  # before the shard is asked
    cache.fill("visits", value, version)
"""

from collections.abc import (
    Callable,
)
from typing import final

from pycounter._native.link import SplitItems

@final
class ReadCache:
    """Values that were read lately, in two levels, for as long as nobody here has written them.

    A load takes `begin(key)` before it asks the shard, and gives it to `fill` with the value; a write calls `bump`
    when it is sent and again when it is settled. So `get` never gives a value whose load began before such a write.
    Any thread may use it. Keys are 1 to 1,024 bytes; a str is its UTF-8.

    Args:
        l1_entries, l1_ttl_s: most values in level 1, and how long they stay there.
        l2_entries, l2_ttl_s: most values at all, and how old they may grow.
        hot_reads, hot_ttl_s: a key read more often stays in level 1 for so long.
        cold_reads: a key read less often leaves first.
        bytes_max: bytes of the values and their keys.
        clock: for tests and simulations: seconds that only rise, asked at every call. None: the system's.

    Raises:
        ValueError: an argument isn't positive.
        BadKey (every method that takes a key): it is no key.
    """

    def __new__(
        cls,
        l1_entries: int = 10_000,
        l1_ttl_s: float = 1.0,
        l2_entries: int = 100_000,
        l2_ttl_s: float = 10.0,
        hot_reads: int = 1000,
        hot_ttl_s: float = 5.0,
        cold_reads: int = 10,
        bytes_max: int = 67_108_864,
        *,
        clock: Callable[[], float] | None = None,
    ) -> ReadCache: ...
    def get(self, key: str | bytes) -> int | None:
        """The value, or None if none is held that may be returned."""

    def lookup(self, key: str | bytes) -> tuple[int, float] | None:
        """The value and how many seconds ago it was loaded, or None."""

    def bump(self, key: str | bytes) -> None:
        """A write to this key is sent, or settled: values loaded before are no longer returned."""

    def bump_split(self, split: SplitItems) -> None:
        """As `bump`, of every key of a split list."""

    def bump_all(self) -> None:
        """A write to every key is sent, or settled."""

    def begin(self, key: str | bytes) -> int:
        """The key's version: to be asked for before the shard is, and given to `fill` with what the shard answers."""

    def fill(self, key: str | bytes, value: int, version: int) -> bool:
        """Keeps a value that was loaded since `version` was the key's version.

        Returns:
            False: the key was written since, or the value is beyond 64 bits, or there is no room.
        """

    def hottest(self, n: int) -> list[tuple[str | bytes, int]]:
        """Up to `n` of the keys whose values are held, those read most first: a list of (key, estimated reads)."""

    def clear(self) -> None:
        """Forgets all values."""

    def statistics(self) -> dict[str, int]:
        """What it has done since it was made (`l1_hits`, `l2_hits`, `misses`, of them `expired` and `stale`,
        `evictions`, `fills`, `fills_refused`) and holds now (`entries`, `l1_entries`, `bytes`): a new dict."""

@final
class LatestValues:
    """Remembers the values of the latest `counters_min` counters, and of at most twice as many.

    At a constant cost for each, however many keys there are.
    """

    def __new__(cls, counters_min: int) -> LatestValues: ...
    def __len__(self) -> int: ...
    def note(self, key: str | bytes, value: int) -> None:
        """This is the counter's value now."""

    def note_split(self, split: SplitItems, shard: int) -> None:
        """The same of all increments of a shard's part that have a value."""

    def get(self, key: str | bytes) -> int | None:
        """The counter's latest value; None where it isn't remembered."""

    def forget(self, key: str | bytes | None) -> None:
        """Forgets a counter; None: all of them."""

"""Where counters lie: the ring, and the counters that lie elsewhere.

For example:

    ring = HashRing({"shard-0": 1.0, "shard-1": 2.0})
    ring.home("visits")  # "shard-0" or "shard-1"
"""

from collections.abc import (
    Iterable,
    Mapping,
)
from typing import Any, final

from pycounter._native.link import SplitItems

@final
class HashRing:
    """A weighted consistent hash ring: which shard is a key's home.

    The home depends only on the shards' names and weights and on the key, in every process and language. A ring
    never changes; `with_shard`, `with_weight` and `without_shard` make another one, in which only the keys have
    moved that the shard gained or lost. Any thread may use it.

    Args:
        shards: names (1 to 255 bytes of UTF-8) and their weights (0.01 to 100), or names alone, of weight 1. A
            weight of 1 takes 2,048 points of 16 bytes; a ring has at most 4,194,304 points.

    Raises:
        ValueError: no shard, a bad name or weight, a name twice, or too many points.
        TypeError: names that aren't str, or weights that aren't numbers.
    """

    def __new__(cls, shards: Mapping[str, float] | Iterable[str]) -> HashRing: ...
    def home(self, key: str | bytes) -> str:
        """The name of the key's home. A str is looked up as its UTF-8.

        Raises:
            TypeError: the key is neither str nor bytes.
            UnicodeEncodeError: a str with lone surrogates.
        """

    def home_many(self, keys: Iterable[str | bytes]) -> list[str]:
        """The names of the keys' homes, in the keys' order. Errors as `home`."""

    def split(self, items: Iterable[tuple[str | bytes, int]] | Mapping[Any, int]) -> SplitItems:
        """A list of increments by the shards that are their homes: pairs of key and delta, or a dict.

        A wrong item has its error in `SplitItems.results`.

        Raises:
            TypeError: it can't be iterated over.
        """

    def with_shard(self, name: str, weight: float = 1.0) -> HashRing:
        """This ring and one more shard, to which about `weight / (all weights)` of the keys move.

        Raises:
            ValueError: the shard is there already, a bad name or weight, or too many points.
        """

    def with_weight(self, name: str, weight: float) -> HashRing:
        """This ring with another weight for a shard: keys move only to it, or only away from it.

        Raises:
            KeyError: there is no such shard.
            ValueError: a bad weight, or too many points.
        """

    def without_shard(self, name: str) -> HashRing:
        """This ring without a shard, whose keys move to the others.

        Raises:
            KeyError: there is no such shard.
            ValueError: there is no other shard.
        """

    @property
    def shards(self) -> dict[str, float]:
        """The shards' names and weights, in the order of the names' bytes: a new dict."""

    def shares(self) -> dict[str, float]:
        """The share of all possible keys that each shard is the home of; they add up to 1."""

    def digest(self) -> int:
        """A hash of all points: equal in every implementation that places them right (`docs/hash-ring.md`)."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[type[HashRing], tuple[dict[str, float]]]: ...

@final
class ForeignKeys:
    """What a coordinator knows about foreign counters: which shards beside a key's home may hold some of it.

    A shard too many may be named (a counter was deleted, a list isn't known yet), never one too few. Any thread may
    use it. At the beginning nothing is foreign: say `set_all(shard, True)` of shards whose list wasn't read.

    Args:
        shards: how many there are, numbered as `HashRing.shards` lists them.

    Raises:
        IndexError: from whatever takes a shard's number: there is no such shard.
        BadKey: from whatever takes a key: it is none.
    """

    def __new__(cls, shards: int) -> ForeignKeys: ...
    def is_foreign(self, key: str | bytes) -> bool:
        """Whether a shard other than the key's home may hold some of it."""

    def foreign_places(self, split: SplitItems) -> list[int]:
        """The places of those items of a split list whose keys `is_foreign` names."""

    def holders(self, key: str | bytes) -> tuple[int, ...]:
        """The shards that may hold some of a key though they aren't its home. The caller adds the home."""

    def count(self, shard: int) -> int:
        """How many hashes are known of a shard."""

    def may_hold_all(self, shard: int) -> bool:
        """Whether a shard is taken to hold any key: its list is full, or not known."""

    def replace(self, shard: int) -> None:
        """A shard's list begins anew. Until `set_all(shard, False)` it may hold any key; what was noted stays."""

    def extend(self, shard: int, hashes: bytes) -> None:
        """Adds hashes of a shard's list, 8 bytes each, little-endian; beyond 1,048,576 it may hold any key."""

    def set_all(self, shard: int, on: bool) -> None:
        """Says that a shard may hold any key, or that its list is known."""

    def note(self, shard: int, key: str | bytes) -> None:
        """Remembers that an operation on a key was diverted to a shard: call it before it is sent."""

    def absorb(
        self, shard: int, *, identity: str, epoch: int, count: int, from_: int, hashes: bytes, full: bool
    ) -> int:
        """Takes in `foreign` of a shard's reply to `health`, and gives the `foreign_from` to ask for next.

        `full` is the reply's `all`. It does what `replace`, `extend` and `set_all` do: another identity or epoch begins
        the list anew, and a shard whose list isn't read to its end may hold any key.
        """

"""The engine as a Python module."""

from collections.abc import Iterable, Mapping
from typing import final

__all__ = ["DEBUG_BUILD", "HashRing"]

DEBUG_BUILD: bool

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

    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[type[HashRing], tuple[dict[str, float]]]: ...

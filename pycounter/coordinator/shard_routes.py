"""What reads, removals and listings need to know of the shards: who can be asked, and how it fares.

The client implements `ShardRoutes`; tests script it. Shards are numbered in the ring's order, as in `ForeignKeys`.
Everything here belongs to one event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, Protocol, SupportsIndex

from pycounter.coordinator.total import I64
from pycounter.errors import BadDelta, BadKey, BadRequest, InternalError, RpcError

__all__ = [
    "Items",
    "Key",
    "ReplicaCaller",
    "ShardCaller",
    "ShardRoutes",
    "checked_item",
    "checked_items",
    "delta_number",
    "key_bytes",
    "prefix_bytes",
    "shown_key",
]

Key = str | bytes
#: Increments: pairs of key and delta, or a mapping.
Items = Iterable[tuple[Key, int]] | Mapping[Key, int] | Mapping[str, int] | Mapping[bytes, int]
KEY_BYTES_MAX = 1024


class ShardCaller(Protocol):
    """One shard, over connections that come and go."""

    @property
    def name(self) -> str:
        """As in the topology."""

    async def call(self, method: str, *params: object, timeout_s: float) -> Any:
        """The result of a request; reads and changes with an id are sent again within the time, to this shard only.

        Raises:
            Unavailable: it couldn't be sent: nothing was applied.
            UnknownOutcome, DeadlineExceeded: it was sent, and nobody knows.
            RpcError: the shard's own.
        """


class ReplicaCaller(ShardCaller, Protocol):
    """A read replica of a shard."""

    @property
    def lag_ms(self) -> int:
        """How far it is behind its primary, as far as it is known."""


class ShardRoutes(Protocol):
    """All shards of the cluster, as the client sees them now."""

    @property
    def shards(self) -> Sequence[ShardCaller]:
        """Every shard's primary, in the ring's order."""

    def home(self, key: bytes) -> int:
        """The number of the key's home."""

    def replicas(self, shard: int) -> Sequence[ReplicaCaller]:
        """The shard's replicas that are healthy (under 100 ms, under 5 % errors), best first."""

    def is_down(self, shard: int) -> bool:
        """Is it known that the shard can't be reached now?"""

    def is_unwell(self, shard: int) -> bool:
        """Is a replica of the shard better to read than the shard, which is slow or fails?"""

    def time_ms(self, shard: int) -> int | None:
        """The shard's clock now, unless it has stood still since its last `hello`; None where it never answered."""

    async def ask_time_ms(self, shard: int, *, timeout_s: float) -> int | None:
        """The shard's clock a moment ago: never later than it is. None where it doesn't say.

        Raises:
            RpcError: it didn't answer, or refused to.
        """

    def commit_seen(self, shard: int) -> int:
        """The newest commit with which the shard answered a change of this client; 0: none. For replicas."""

    def note_commit(self, shard: int, commit: int) -> None:
        """A change of this client was answered with this commit."""


def prefix_bytes(prefix: Key) -> bytes:
    """The beginning of keys as the wire has it; it may be empty.

    Raises:
        BadKey: no key begins so: it is neither text nor bytes.
    """
    if isinstance(prefix, str):
        try:
            return prefix.encode()
        except UnicodeEncodeError as error:
            raise BadKey(f"{prefix!r} is no valid text; use bytes: nothing was sent") from error
    if not isinstance(prefix, bytes):
        raise BadKey(f"a key is str or bytes, not {type(prefix).__name__}: nothing was sent")
    return prefix


def key_bytes(key: Key) -> bytes:
    """A key as the wire has it.

    Raises:
        BadKey: it isn't 1 to 1,024 bytes of text or bytes.
    """
    key = prefix_bytes(key)
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise BadKey(f"a key has 1 to {KEY_BYTES_MAX:,} bytes, not {len(key):,}: nothing was sent")
    return key


def shown_key(key: bytes) -> Key:
    """A key as callers get it: str where it is UTF-8, bytes otherwise."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def delta_number(delta: SupportsIndex) -> int:
    """A delta as the wire has it: an integer of 64 bits, or what Python takes for one. Raises BadDelta."""
    if not hasattr(delta, "__index__"):
        raise BadDelta(f"a delta is an integer, not {type(delta).__name__}: nothing was applied")
    number = index(delta)
    if number not in I64:
        raise BadDelta(f"a delta is a signed 64-bit integer, not {number}: nothing was applied")
    return number


def checked_item(item: Any) -> bytes:
    """The key of an item that can be sent. Raises RpcError."""
    match item:
        case [key, delta]:
            delta_number(delta)
            return key_bytes(key)
    raise BadRequest(f"an item is a key and a delta, not {item!r:.100}: nothing was applied")


def checked_items(items: Sequence[Any]) -> tuple[list[bytes], list[int | RpcError], list[int]]:
    """Each item's key, its error if it can't be sent, and the places of those that can, whose outcome is still due."""
    keys = [b""] * len(items)
    results: list[int | RpcError] = [InternalError("an increment without an outcome")] * len(items)
    good: list[int] = []
    for place, item in enumerate(items):
        try:
            keys[place] = checked_item(item)
        except RpcError as error:
            results[place] = error
        else:
            good.append(place)
    return keys, results, good

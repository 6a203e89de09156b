"""A client's connection to one shard, and lists of increments for several.

For example:

    split = ring.split([("visits", 1), ("errors", 2)])
    link.incr_split(split, split.shards[0], future)
"""

from asyncio import Future
from collections.abc import (
    Callable,
    Iterable,
)
from typing import Any, final

@final
class SplitItems:
    """Increments of one call, by the shards that are their homes. Made by `HashRing.split`.

    Each shard's part goes to its link, by `SessionLink.incr_split`; `results` has the outcomes of all, in the items'
    order. Shards have their numbers in the ring's order, items their places.
    """

    def __len__(self) -> int: ...
    @property
    def shards(self) -> list[int]:
        """The shards that have a part."""

    def places(self, shard: int) -> list[int]:
        """The places of a shard's part, in order."""

    def count(self, shard: int) -> int:
        """How many items a shard's part has."""

    def item(self, place: int) -> tuple[str | bytes, int]:
        """The key (str where it is UTF-8) and the delta at a place.

        Raises:
            IndexError: there is no such item, or it is a wrong one.
        """

    def withdrawn(self) -> list[int]:
        """The places of the items that were taken back before they were sent."""

    def results(self) -> list[Any]:
        """For each item, in order: its value, or its error. 0 where there is no outcome."""

@final
class SessionLink:
    """A client's connection to one shard and the exactly-once session on it, for the event loop that owns it.

    It holds the futures of its callers. Times are seconds on `clock`.
    """

    def __new__(
        cls,
        *,
        clock: Callable[[], float],
        level: str = "durable",
        token: bytes | None = None,
        client: str = "pycounter",
        passage_to: str | None = None,
        timeout_s: float = 60.0,
        pending_operations_max: int = 50_000,
        gather_operations_max: int = 100,
        gather_s: float = 0.01,
        batch_operations_max: int = 1000,
        batch_bytes_max: int = 524_288,
        batches_in_flight_max: int = 8,
        window_operations_max: int = 9000,
        unconfirmed_operations_max: int = 200_000,
        reply_bytes_max: int = 67_108_864,
        backoff_first_s: float = 0.05,
        backoff_max_s: float = 1.0,
        silence_timeout_s: float = 30.0,
        session_window_s: float = 518_400.0,
        samples_max: int = 0,
        new_session_id: Callable[[], bytes] | None = None,
    ) -> SessionLink: ...
    def start(self, call_soon: Callable[[Callable[[], None]], object], on_flush: Callable[[], None]) -> None:
        """Starts: asks `call_soon` to call `on_flush` once in each turn that has something to flush."""

    def stop(self) -> None:
        """Calls nothing any more. Idempotent."""

    def incr(
        self,
        key: str | bytes,
        delta: int,
        future: Future[Any],
        level: str | None = None,
        detail: bool = False,
        timeout_s: float | None = None,
    ) -> int:
        """Adds to a counter. The future gets the value, or (value, level, commit) with `detail`.

        Returns the slot for `abandon`, or -1 if there is no room and nothing was done.

        Raises:
            BadKey, BadDelta: it can't be sent.
        """

    def incr_many(
        self, items: Iterable[object], future: Future[Any], level: str | None = None, timeout_s: float | None = None
    ) -> int:
        """Adds to many counters: pairs of key and delta. The future gets a list: each item's value, or its error.

        It doesn't check for room: see `fits`.
        """

    def incr_split(
        self,
        split: SplitItems,
        shard: int,
        future: Future[Any],
        level: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Adds to the counters of a shard's part of a split list.

        The future gets None once `split.results` has all its outcomes. Whether there is room is not asked.

        Raises:
            ValueError: the shard has no part.
        """

    def call(
        self,
        method: str,
        params: bytes,
        repeat: str,
        future: Future[Any],
        timeout_s: float | None = None,
        id_window_s: float = 110.0,
    ) -> int:
        """Sends any other request; `params` is an encoded array. The future gets the encoded result.

        `repeat` says when to send it again if no reply comes: `always`, `same_shard` (for `id_window_s`) or `never`.
        """

    def confirm(self, future: Future[Any], timeout_s: float | None = None) -> int:
        """The future gets None once all that is acknowledged now is durable, or reported as lost."""

    def abandon(self, slot: int, future: Future[Any]) -> None:
        """Stops waiting for this future: an unsent operation is taken back, a sent one stays until it is settled."""

    def withdraw(self, share: float, refusal: Callable[[], Exception]) -> int:
        """Takes back this share of the unsent increments; their futures fail with what `refusal` returns."""

    def connected(self) -> None:
        """A connection was made: `flush` gives what to write first."""

    def feed(self, data: bytes) -> None:
        """Takes a chunk from the shard, and settles futures. What may be sent then leaves at the end of the turn.

        Raises:
            ConnectionError: the shard sent nonsense. RpcError: it refused the greeting. WrongShard: it is another.
                The connection can't be used any more: close it, and call `lost`.
        """

    def flush(self) -> bytes | None:
        """The bytes to write now."""

    def tick(self) -> bytes | None:
        """Handles deadlines that have passed, and returns the bytes to write now."""

    def next_wake(self) -> float | None:
        """Seconds until `tick` is due, if that is sooner than it said before."""

    def lost(self, reason: str) -> None:
        """Reports that the connection ended or couldn't be established, and why."""

    def expect_identity(self, identity: str) -> None:
        """Sets the only identity to accept from now on."""

    def goodbye(self) -> bytes:
        """The bytes that end a settled session; write them before closing the connection."""

    def give_up(self, reason: str, refusal: str) -> None:
        """Gives up: sent operations fail as unknown, the rest with `refusal`, which is `code: message`."""

    @property
    def ready(self) -> bool:
        """Whether the shard has identified itself on the current connection."""

    @property
    def silent(self) -> bool:
        """Whether replies are due and nothing has arrived for so long that the connection should be closed."""

    @property
    def identity(self) -> str | None:
        """The shard's, once it was met."""

    @property
    def epoch(self) -> int | None:
        """The shard's, which rises with each start of its process."""

    @property
    def commit_seen(self) -> int:
        """The newest commit that holds an increment of the session; 0 if none."""

    @property
    def session_id(self) -> bytes:
        """The present session's id."""

    @property
    def unsettled(self) -> int:
        """Increments that were accepted and not settled."""

    @property
    def pending(self) -> int:
        """Unsettled increments that were sent."""

    @property
    def unconfirmed(self) -> int:
        """Increments that were acknowledged at `applied` and are not known to be durable."""

    @property
    def success_rate(self) -> float:
        """The share of the latest increments that didn't fail with their batch; 1.0 where there are none."""

    def in_flight_s(self) -> float | None:
        """Seconds that the oldest batch in flight has waited; None if none is in flight."""

    @property
    def news(self) -> bool:
        """Whether `lost_tails`, `given_up` or `samples` has anything new."""

    def unknown(self) -> list[tuple[str | bytes, int, float, int]]:
        """Increments that were sent and whose outcome nobody knows now.

        Each as key, delta, seconds since it was sent, and the mark of its batch. A mark that is gone is settled.
        """

    def given_up(self) -> list[tuple[str | bytes, int, float, bool]]:
        """Increments given up since the last call, with nobody waiting: key, delta, age, whether it is unknown."""

    def lost_tails(self) -> list[tuple[bytes, int, int, list[tuple[str | bytes, int]]]]:
        """Increments acknowledged at `applied` and lost in a crash: session, first and last number, operations."""

    def samples(self) -> list[tuple[float, str | None]]:
        """Each batch since the last call: its latency in seconds, and the code of its refusal."""

    def statistics(self) -> dict[str, int]:
        """Figures since it was made, by name."""

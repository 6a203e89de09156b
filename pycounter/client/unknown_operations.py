"""Operations whose outcome nobody knows yet: to be looked at, and waited for."""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pycounter.client.framing import Key

__all__ = ["UnknownOperation", "UnknownOperations"]

_log = logging.getLogger(__name__)

#: So many that stay unknown for ever are remembered until somebody asks for them.
_ENDED_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownOperation:
    """An increment that was sent, and of which nobody knows yet whether it counted."""

    key: Key
    delta: int
    #: The name of the shard, or its address.
    shard: str
    #: When it was first sent, in seconds since 1970.
    since: float


class UnknownOperations:
    """The list of them. It belongs to one event loop.

    An operation is on it from when its caller gave up (a deadline, a cancellation) or its connection broke, until its
    outcome is known. One that nobody will ever know leaves it too; it is reported once, by `wait` and in the log.

    Args:
        pending: gives those of now, each with what to call to be told when it is settled.
    """

    def __init__(self, pending: Callable[[], Iterable[tuple[UnknownOperation, Callable[[Callable[[], None]], None]]]]):
        self._pending = pending
        self._ended: deque[UnknownOperation] = deque(maxlen=_ENDED_MAX)

    def list(self) -> list[UnknownOperation]:
        """Those of now, the oldest first."""
        return sorted((operation for operation, _ in self._pending()), key=lambda operation: operation.since)

    def __iter__(self) -> Iterator[UnknownOperation]:
        return iter(self.list())

    def __len__(self) -> int:
        return sum(1 for _ in self._pending())

    def end(self, operations: Iterable[UnknownOperation]) -> None:
        """Nobody will ever know the outcome of these, and their callers wait no longer."""
        for operation in operations:
            self._ended.append(operation)
            _log.warning(
                "it stays unknown whether %r %+d counted at %s", operation.key, operation.delta, operation.shard
            )

    def take_ended(self) -> builtins.list[UnknownOperation]:
        """Those that stay unknown for ever and weren't reported yet."""
        ended = [*self._ended]
        self._ended.clear()
        return ended

    async def wait(self, *, timeout_s: float | None = None) -> builtins.list[UnknownOperation]:
        """Waits until the outcome of all that are on the list now is known.

        Returns:
            Those that stay unknown for ever, each reported once: whether they counted can be seen only by the counter.

        Raises:
            TimeoutError: not all are settled yet.
        """
        loop = asyncio.get_running_loop()
        waiting: builtins.list[asyncio.Future[None]] = []
        for _, watch in self._pending():
            settled = loop.create_future()
            waiting.append(settled)
            watch(_setter(settled))
        async with asyncio.timeout(timeout_s):
            for settled in waiting:
                await settled
        return self.take_ended()


def _setter(settled: asyncio.Future[None]) -> Callable[[], None]:
    def tell() -> None:
        if not settled.done():
            settled.set_result(None)

    return tell

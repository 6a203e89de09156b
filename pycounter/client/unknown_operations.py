"""Operations whose outcome nobody knows yet: to be looked at, and waited for."""

from __future__ import annotations

import asyncio
import builtins
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pycounter.client.framing import Key
from pycounter.durations import seconds

__all__ = ["UnknownOperation", "UnknownOperations", "Watchers"]

_log = logging.getLogger(__name__)

#: Whoever is to be told once, when something is settled.
Watchers = list[Callable[[], None]]
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
    #: None: nobody knows. False: it is known by now that it did not count.
    counted: bool | None = None


class UnknownOperations:
    """The list of them. It belongs to one event loop.

    An operation is on it from when its caller gave up (a deadline, a cancellation) or its connection broke, until its
    outcome is known. If its caller gave up, and it didn't count or nobody will ever know, it is reported once, by
    `wait` and in the log.

    Args:
        pending: gives those of now, each with those who are told when it is settled.
    """

    def __init__(self, pending: Callable[[], Iterable[tuple[UnknownOperation, Watchers]]]):
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
        """These didn't count, or nobody will ever know, and their callers wait no longer."""
        for operation in operations:
            self._ended.append(operation)
            said = "it stays unknown whether %r %+d counted at %s"
            if operation.counted is False:
                said = "%r %+d did not count at %s, and its caller had given up"
            _log.warning(said, operation.key, operation.delta, operation.shard)

    def take_ended(self) -> builtins.list[UnknownOperation]:
        """Those that didn't count or stay unknown for ever, and weren't reported yet."""
        ended = [*self._ended]
        self._ended.clear()
        return ended

    async def wait(self, *, timeout_s: float | None = None) -> builtins.list[UnknownOperation]:
        """Waits until the outcome of all that are on the list now is known.

        Returns:
            Those that did not count (`counted` is False) and those that stay unknown for ever (None), each once.

        Raises:
            TimeoutError: not all are settled yet.
        """
        limit_s = None if timeout_s is None else seconds(timeout_s, 0.0)
        settled = asyncio.get_running_loop().create_future()
        watched = [watchers for _, watchers in self._pending()]
        left = len(watched)

        def tell() -> None:
            nonlocal left
            left -= 1
            if not left and not settled.done():
                settled.set_result(None)

        for watchers in watched:
            watchers.append(tell)
        try:
            async with asyncio.timeout(limit_s):
                if watched:
                    await settled
        finally:
            for watchers in watched:
                if tell in watchers:
                    watchers.remove(tell)
        return self.take_ended()

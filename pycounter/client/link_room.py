"""Callers that wait until a link has room for their increments. It belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pycounter.errors import RpcError, Unavailable

__all__ = ["LinkRoom"]


class LinkRoom:
    """Admits callers in their order, as long as no more than `operations_max` increments are unsettled.

    Args:
        operations_max: the bound. A list that is larger goes alone.
        unsettled: how many increments the link has accepted and not settled.
    """

    __slots__ = ("_admitted", "_operations_max", "_unsettled", "_waiting", "crowd")

    def __init__(self, operations_max: int, unsettled: Callable[[], int]) -> None:
        self._operations_max = operations_max
        self._unsettled = unsettled
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        #: Increments of callers that were admitted and haven't come yet.
        self._admitted = 0
        #: How many callers wait or were admitted: with any, nobody enters without asking.
        self.crowd = 0

    def fits(self, count: int) -> bool:
        """Whether there is room for this many increments."""
        used = self._unsettled() + self._admitted
        return not used or used + count <= self._operations_max

    async def enter(self, count: int, deadline: float) -> None:
        """Waits for room. Who returns from it gives the increments to the link before anything else is awaited.

        Raises:
            Unavailable: there was no room in time: nothing was applied.
            RpcError: the room was closed meanwhile.
        """
        if not self._waiting and self.fits(count):
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, place)
        self._waiting.append(entry)
        self.crowd += 1
        try:
            async with asyncio.timeout_at(deadline):
                await place
        except BaseException as error:
            self._leave(entry)
            # Those behind it may fit where it didn't.
            self.admit()
            if isinstance(error, TimeoutError):
                message = "the time ran out before there was room to send it: nothing was applied"
                raise Unavailable(message) from error
            raise
        self._leave(entry)

    def _leave(self, entry: tuple[int, asyncio.Future[None]]) -> None:
        count, place = entry
        self.crowd -= 1
        if entry in self._waiting:
            self._waiting.remove(entry)
        elif not place.cancelled() and place.exception() is None:
            self._admitted -= count

    def admit(self) -> None:
        """There may be more room."""
        while self._waiting and self.fits(self._waiting[0][0]):
            count, place = self._waiting.popleft()
            if not place.done():
                self._admitted += count
                place.set_result(None)

    def close(self, refusal: RpcError) -> None:
        """Refuses whoever waits."""
        while self._waiting:
            _, place = self._waiting.popleft()
            if not place.done():
                place.set_exception(refusal)

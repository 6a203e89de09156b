"""The bound on operations that are accepted and not settled. It belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections import deque

from pycounter.errors import RpcError

__all__ = ["Room"]


class Room:
    """Admits so many operations at a time; beyond that callers wait, first come, first served."""

    def __init__(self, operations_max: int) -> None:
        #: Admitted and not settled.
        self.operations = 0
        self._operations_max = operations_max
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._empty = asyncio.Event()
        self._refusal: RpcError | None = None

    def try_enter(self) -> bool:
        """Takes room for one operation, if there is any and nobody waits for it."""
        if self._waiters or self.operations >= self._operations_max:
            return False
        self.operations += 1
        return True

    async def enter(self, count: int) -> None:
        """Waits for room and takes it. Cancelled, it has taken none.

        Raises:
            RpcError: the room was closed meanwhile.
        """
        if not self._waiters and self._fits(count):
            self.operations += count
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, waiter)
        self._waiters.append(entry)
        try:
            await waiter
            if self._refusal is not None:
                raise self._refusal
        except BaseException:
            if entry in self._waiters:
                self._waiters.remove(entry)
                # Those behind it may fit where it didn't.
                self.leave(0)
            elif not waiter.cancelled() and waiter.exception() is None:
                self.leave(count)
            raise

    def leave(self, count: int) -> None:
        """So many operations are settled: their room goes to who waits for it."""
        self.operations -= count
        while self._waiters and self._fits(self._waiters[0][0]):
            wanted, waiter = self._waiters.popleft()
            if not waiter.done():
                self.operations += wanted
                waiter.set_result(None)
        if not self.operations:
            self._empty.set()

    def close(self, refusal: RpcError) -> None:
        """Refuses whoever waits."""
        self._refusal = refusal
        while self._waiters:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(refusal)

    async def wait_empty(self) -> None:
        """Waits until every operation that was admitted is settled."""
        while self.operations:
            self._empty.clear()
            await self._empty.wait()

    def _fits(self, count: int) -> bool:
        # A batch larger than the bound goes alone.
        return not self.operations or self.operations + count <= self._operations_max

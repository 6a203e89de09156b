"""Makes batches of single increments: those of one turn of the event loop travel together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pycounter.client.framing import Item, encode_batches
from pycounter.client.room import Room
from pycounter.client.session import Batch, Results, Session
from pycounter.errors import RpcError

__all__ = ["Coalescer"]


class Coalescer:
    """Gathers increments that have room, and queues them as batches of a session at the end of the loop's turn.

    Args:
        session: where the batches go.
        room: what each increment leaves when it is settled.
        operations_max: so many go at once, without waiting for the end of the turn.
        bytes_max: the size of a batch.
        on_queued: called when there are new batches.
    """

    def __init__(
        self, session: Session, room: Room, *, operations_max: int, bytes_max: int, on_queued: Callable[[], None]
    ) -> None:
        self._session = session
        self._room = room
        self._operations_max = operations_max
        self._bytes_max = bytes_max
        self._on_queued = on_queued
        self._waiting: list[tuple[Item, asyncio.Future[int]]] = []

    def add(self, item: Item) -> asyncio.Future[int]:
        """Takes an increment; the future gets its value or its error. Cancelled in this turn, it is never sent."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[int] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self.flush)
        self._waiting.append((item, reply))
        if len(self._waiting) >= self._operations_max:
            self.flush()
        return reply

    def flush(self) -> None:
        """Queues what was gathered."""
        if not self._waiting:
            return
        gathered, self._waiting = self._waiting, []
        waiting = [entry for entry in gathered if not entry[1].done()]
        if len(waiting) < len(gathered):
            self._room.leave(len(gathered) - len(waiting))
        if waiting:
            self._queue(waiting)
            self._on_queued()

    def refuse(self, refusal: RpcError) -> None:
        """Refuses what was gathered: none of it was sent."""
        gathered, self._waiting = self._waiting, []
        self._room.leave(len(gathered))
        for _, reply in gathered:
            if not reply.done():
                reply.set_exception(refusal)

    def _queue(self, waiting: list[tuple[Item, asyncio.Future[int]]]) -> None:
        try:
            encoded = encode_batches([item for item, _ in waiting], self._operations_max, self._bytes_max)
        except RpcError as error:
            # One of them can't be sent: find out which, each on its own.
            if len(waiting) == 1:
                self._room.leave(1)
                waiting[0][1].set_exception(error)
            else:
                for entry in waiting:
                    self._queue([entry])
            return
        start = 0
        for count, data in encoded:
            replies = [reply for _, reply in waiting[start : start + count]]
            start += count
            self._session.add(Batch(count, data, self._settler(replies)))

    def _settler(self, replies: list[asyncio.Future[int]]) -> Callable[[Results | RpcError], None]:
        def settle(outcome: Results | RpcError) -> None:
            self._room.leave(len(replies))
            results = [outcome] * len(replies) if isinstance(outcome, RpcError) else outcome
            for reply, result in zip(replies, results, strict=True):
                if reply.done():
                    continue
                if isinstance(result, RpcError):
                    reply.set_exception(result)
                else:
                    reply.set_result(result)

        return settle

"""Makes batches of single increments. It belongs to one event loop.

Where nothing is under way, those of one turn of the loop leave together at its end. Otherwise they gather until what is
under way was answered, until the batch is full, or until the delay has passed, whichever comes first. So a lone caller
never waits, and many callers share their requests without a timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pycounter.client.framing import Item, Level, encode_batches
from pycounter.client.room import Room
from pycounter.client.session import Batch, Results, Session
from pycounter.errors import DeadlineExceeded, RpcError, Unavailable

__all__ = ["Coalescer", "Detail", "Withdrawn"]

#: Refusals that look at the request and not at its operations: each of them may go alone.
_TOGETHER_ONLY = frozenset({"too_large", "bad_request"})


@dataclass(frozen=True, slots=True)
class Detail:
    """What is known of an increment that was answered."""

    #: The value after it.
    value: int
    #: The level that was reached.
    level: Level
    #: The shard's commit that has it.
    commit: int


class Withdrawn(Unavailable):
    """Taken back before it was sent, by `SessionClient.withdraw`: it may go elsewhere."""


class _Gathered:
    """Increments of one level that wait to become a batch."""

    __slots__ = ("details", "items", "replies")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.replies: list[asyncio.Future[Any]] = []
        #: Those of the replies that want a `Detail`.
        self.details: set[asyncio.Future[Any]] = set()


class Coalescer:
    """Gathers increments that have room, and queues them as batches of a session.

    Args:
        session: where the batches go.
        room: what each increment leaves when it is settled.
        operations_max: the size of a batch, at which it waits no longer.
        bytes_max: its size in bytes.
        delay_s: how long an increment waits at most while others are under way.
        timeout_s: after so long the callers of a batch are told that the outcome is not known.
        on_queued: called when there are new batches.
    """

    def __init__(
        self,
        session: Session,
        room: Room,
        *,
        operations_max: int,
        bytes_max: int,
        delay_s: float,
        timeout_s: float,
        on_queued: Callable[[], None],
    ) -> None:
        self._session = session
        self._room = room
        self._operations_max = operations_max
        self._bytes_max = bytes_max
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._on_queued = on_queued
        self._loop: asyncio.AbstractEventLoop
        self._gathered: dict[Level, _Gathered] = {"durable": _Gathered(), "applied": _Gathered()}
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        #: Batches and when their callers give up, in order.
        self._deadlines: deque[tuple[float, Batch, list[asyncio.Future[Any]]]] = deque()
        self._deadline_timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """To be called before the first increment."""
        self._loop = loop

    # --- gathering -------------------------------------------------------------------------------------------------

    def add(self, item: Item, level: Level, *, detail: bool = False) -> asyncio.Future[Any]:
        """Takes an increment; the future gets its value, its `Detail` or its error.

        Cancelled before it is part of a batch, it is never sent.
        """
        gathered = self._gathered[level]
        reply: asyncio.Future[Any] = self._loop.create_future()
        gathered.items.append(item)
        gathered.replies.append(reply)
        if detail:
            gathered.details.add(reply)
        if len(gathered.items) >= self._operations_max:
            self._close(level)
            self._on_queued()
        elif not self._is_scheduled:
            session = self._session
            if not session.in_flight and not session.queue:
                self._is_scheduled = True
                self._loop.call_soon(self._on_turn)
            elif self._timer is None:
                self._timer = self._loop.call_later(self._delay_s, self._on_delay)
        return reply

    @property
    def operations(self) -> int:
        """Increments that are part of no batch yet."""
        return sum(len(gathered.items) for gathered in self._gathered.values())

    def _on_turn(self) -> None:
        self._is_scheduled = False
        self.flush()

    def _on_delay(self) -> None:
        self._timer = None
        self.flush()

    def on_idle(self) -> None:
        """Nothing is under way any more. What the callers that were answered add now travels along."""
        if not self._is_scheduled and (self._gathered["durable"].items or self._gathered["applied"].items):
            self._is_scheduled = True
            self._loop.call_soon(self._on_turn)

    def flush(self) -> None:
        """Queues what was gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queued = False
        for level, gathered in self._gathered.items():
            if gathered.items:
                self._close(level)
                queued = True
        if queued:
            self._on_queued()

    def refuse(self, refusal: RpcError, share: float = 1.0) -> int:
        """Refuses this share of what was gathered: none of it was sent. Gives how many these were."""
        refused = 0
        for level, gathered in self._gathered.items():
            kept = self._gathered[level] = _Gathered()
            for place, (item, reply) in enumerate(zip(gathered.items, gathered.replies, strict=True)):
                if int((place + 1) * share) == int(place * share):
                    kept.items.append(item)
                    kept.replies.append(reply)
                    continue
                refused += 1
                self._room.leave(1)
                if not reply.done():
                    reply.set_exception(refusal)
            kept.details = gathered.details
        return refused

    # --- batches ---------------------------------------------------------------------------------------------------

    def _close(self, level: Level) -> None:
        gathered, self._gathered[level] = self._gathered[level], _Gathered()
        items, replies = gathered.items, gathered.replies
        if any(reply.done() for reply in replies):
            waiting = [entry for entry in zip(items, replies, strict=True) if not entry[1].done()]
            self._room.leave(len(items) - len(waiting))
            items, replies = [item for item, _ in waiting], [reply for _, reply in waiting]
        if items:
            self._queue(items, replies, gathered.details, level)

    def _queue(
        self, items: list[Item], replies: list[asyncio.Future[Any]], details: set[asyncio.Future[Any]], level: Level
    ) -> None:
        try:
            encoded = encode_batches(items, self._operations_max, self._bytes_max)
        except RpcError as error:
            # One of them can't be sent: find out which, each on its own.
            if len(items) == 1:
                self._room.leave(1)
                replies[0].set_exception(error)
            else:
                self._queue_each(items, replies, details, level)
            return
        start = 0
        for count, data in encoded:
            end = start + count
            self._add_batch(items[start:end], data, replies[start:end], details, level)
            start = end

    def _queue_each(
        self, items: list[Item], replies: list[asyncio.Future[Any]], details: set[asyncio.Future[Any]], level: Level
    ) -> None:
        for item, reply in zip(items, replies, strict=True):
            if reply.done():
                self._room.leave(1)
            else:
                self._queue([item], [reply], details, level)

    def _add_batch(
        self,
        items: list[Item],
        data: bytes,
        replies: list[asyncio.Future[Any]],
        details: set[asyncio.Future[Any]],
        level: Level,
    ) -> None:
        def settle(outcome: Results | RpcError) -> None:
            if isinstance(outcome, RpcError):
                if outcome.code in _TOGETHER_ONLY and len(items) > 1:
                    self._queue_each(items, replies, details, level)
                    return
                self._room.leave(len(replies))
                for reply in replies:
                    if not reply.done():
                        reply.set_exception(outcome)
                return
            self._room.leave(len(replies))
            for reply, result in zip(replies, outcome, strict=True):
                if reply.done():
                    continue
                if type(result) is not int:
                    reply.set_exception(result)  # type: ignore[arg-type] # it is an int or an RpcError
                elif details and reply in details:
                    reply.set_result(Detail(result, batch.level_reached, batch.commit))
                else:
                    reply.set_result(result)

        batch = Batch(len(items), data, settle, level)
        batch.abandoned = lambda: [place for place, reply in enumerate(replies) if reply.done()]
        self._session.add(batch)
        self._deadlines.append((self._loop.time() + self._timeout_s, batch, replies))
        while self._deadlines[0][1].is_answered:
            self._deadlines.popleft()
        if self._deadline_timer is None:
            self._deadline_timer = self._loop.call_at(self._deadlines[0][0], self._on_deadline)

    # --- deadlines -------------------------------------------------------------------------------------------------

    def _on_deadline(self) -> None:
        """One timer for all batches: a timer for each increment would cost more than the increment."""
        self._deadline_timer = None
        now = self._loop.time()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1].is_answered):
            _, batch, replies = self._deadlines.popleft()
            if batch.is_answered:
                continue
            if self._session.drop(batch):
                batch.on_settled(Unavailable("the time ran out before it was sent: nothing was applied"))
                continue
            for reply in replies:
                if not reply.done():
                    reply.set_exception(
                        DeadlineExceeded("the time ran out; it was sent and stays in the session: don't repeat it")
                    )
        if self._deadlines:
            self._deadline_timer = self._loop.call_at(self._deadlines[0][0], self._on_deadline)

    def stop(self) -> None:
        """Ends the timers."""
        for timer in (self._timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._deadline_timer = None

"""Makes batches of single increments. It belongs to one event loop.

Where nothing is under way, those of one turn of the loop leave together at its end. Otherwise they gather until what is
under way was answered, until a batch is full, or until the delay has passed, whichever comes first. So a lone caller
never waits, and many callers share their requests without a timer. Of durable increments a half may be a full batch:
see `halves`.

Gathered increments become a batch only when it can be sent at once: until then each of them can be taken back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pycounter.client.framing import Item, Level, encode_batches
from pycounter.client.halves import Halves
from pycounter.client.room import Room
from pycounter.client.session import Batch, Results, Session
from pycounter.errors import DeadlineExceeded, RpcError, Unavailable

__all__ = ["Coalescer", "Detail", "Ticket", "Withdrawn"]

#: Refusals that look at the request and not at its operations: each of them may go alone.
_TOGETHER_ONLY = frozenset({"too_large", "bad_request"})
#: So many cancelled increments may wait among the others before these are looked through.
_CANCELLED_MAX = 64


@dataclass(frozen=True, slots=True)
class Detail:
    """What is known of an increment that was answered."""

    #: The value after it.
    value: int
    #: The level that was reached.
    level: Level
    #: The shard's commit that has it.
    commit: int
    #: Is it all of the counter? False: other shards hold some of it, and their part is as old as when it was last seen.
    exact: bool = True
    #: The name of the shard that has it.
    shard: str = ""


class Withdrawn(Unavailable):
    """Taken back before it was sent, by `SessionClient.withdraw`: it may go elsewhere."""


@dataclass(slots=True)
class Ticket:
    """Of an increment whose caller wants to know more than its value."""

    #: Is the answer to be a `Detail`?
    detail: bool = False
    #: May it have been sent?
    is_sent: bool = False


_Reply = asyncio.Future[Any]
_Tickets = dict[_Reply, Ticket]


class _Gathered:
    """Increments of one level that are part of no batch yet, oldest first."""

    __slots__ = ("full", "items", "replies", "taken")

    def __init__(self, full: int) -> None:
        self.items: list[Item] = []
        self.replies: list[_Reply] = []
        #: So many leave at once.
        self.full = full
        #: How many have left it, so that increments have numbers.
        self.taken = 0

    def take(self, count: int) -> tuple[list[Item], list[_Reply]]:
        """The oldest ones."""
        items, replies = self.items[:count], self.replies[:count]
        del self.items[:count], self.replies[:count]
        self.taken += len(items)
        return items, replies

    def replace(self, entries: list[tuple[Item, _Reply]]) -> None:
        """Has only these of them from now on."""
        # As if the oldest had left: a deadline may come late then, and never early.
        self.taken += len(self.items) - len(entries)
        self.items = [item for item, _ in entries]
        self.replies = [reply for _, reply in entries]


class Coalescer:
    """Gathers increments that have room, and makes them batches of a session.

    Args:
        session: where the batches go.
        room: what each increment leaves when it is settled.
        operations_max: the size of a batch, at which it waits no longer.
        bytes_max: its size in bytes.
        delay_s: how long an increment waits at most while others are under way.
        timeout_s: after so long callers are told that the time ran out.
        on_due: called when there is something to send: it calls `make_batch` as long as batches can be sent.
        running_s: the clock by which it is learnt how fast answers come.
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
        on_due: Callable[[], None],
        running_s: Callable[[], float],
    ) -> None:
        self._session = session
        self._room = room
        self._operations_max = operations_max
        self._bytes_max = bytes_max
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._on_due = on_due
        self._halves = Halves(running_s)
        self._loop: asyncio.AbstractEventLoop
        self._gathered: dict[Level, _Gathered] = {level: _Gathered(operations_max) for level in ("durable", "applied")}
        self._tickets: _Tickets = {}
        #: What is gathered waits no longer for company.
        self._is_due = False
        self._is_scheduled = False
        self._delay: asyncio.TimerHandle | None = None
        self._cancelled = 0
        #: (when their callers give up, level, number behind the last): increments that wait for a batch, in order.
        self._marks: deque[tuple[float, Level, int]] = deque()
        #: The same for batches.
        self._batches: deque[tuple[float, Batch, list[_Reply]]] = deque()
        self._deadline: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """To be called before the first increment."""
        self._loop = loop

    # --- gathering -------------------------------------------------------------------------------------------------

    def add(self, item: Item, level: Level, ticket: Ticket | None = None) -> _Reply:
        """Takes an increment; the future gets its value, its `Detail` or its error."""
        gathered = self._gathered[level]
        reply: _Reply = self._loop.create_future()
        gathered.items.append(item)
        gathered.replies.append(reply)
        if ticket is not None:
            self._tickets[reply] = ticket
        if not len(gathered.items) % gathered.full:
            self._on_due()
        if gathered.items and not self._is_scheduled:
            session = self._session
            if not session.in_flight and not session.queue:
                self._is_scheduled = True
                self._loop.call_soon(self._on_turn)
            elif self._delay is None:
                self._delay = self._loop.call_later(self._delay_s, self._on_delay)
        return reply

    @property
    def operations(self) -> int:
        """Increments that are part of no batch yet."""
        return sum(len(gathered.items) for gathered in self._gathered.values())

    def _on_turn(self) -> None:
        self._is_scheduled = False
        self.flush()

    def _on_delay(self) -> None:
        self._delay = None
        self.flush()

    def on_idle(self) -> None:
        """Nothing is under way any more. What the callers that were answered add now travels along."""
        if not self._is_scheduled and self.operations:
            self._is_scheduled = True
            self._loop.call_soon(self._on_turn)

    def flush(self) -> None:
        """What was gathered waits no longer."""
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        if self.operations:
            self._is_due = True
            self._on_due()
            self._mark()

    def note_cancelled(self) -> None:
        """A future that `add` gave was cancelled: if it wasn't sent, it must not take room for long."""
        self._cancelled += 1
        if self._cancelled > max(_CANCELLED_MAX, self.operations // 2):
            self._forget_cancelled()

    def _forget_cancelled(self) -> None:
        self._cancelled = 0
        for gathered in self._gathered.values():
            entries = list(zip(gathered.items, gathered.replies, strict=True))
            kept = [entry for entry in entries if not entry[1].done()]
            if len(kept) < len(entries):
                gathered.replace(kept)
                self._leave([reply for _, reply in entries if reply.done()])

    def refuse(self, refusal: RpcError, share: float = 1.0) -> int:
        """Refuses this share of what was gathered: none of it was sent. Gives how many these were."""
        refused: list[_Reply] = []
        for gathered in self._gathered.values():
            kept: list[tuple[Item, _Reply]] = []
            for place, entry in enumerate(zip(gathered.items, gathered.replies, strict=True)):
                if int((place + 1) * share) > int(place * share):
                    refused.append(entry[1])
                else:
                    kept.append(entry)
            gathered.replace(kept)
        self._refuse(refused, refusal)
        return len(refused)

    def _refuse(self, replies: list[_Reply], refusal: RpcError) -> None:
        self._leave(replies)
        for reply in replies:
            if not reply.done():
                reply.set_exception(refusal)

    def _leave(self, replies: list[_Reply]) -> None:
        self._room.leave(len(replies))
        if self._tickets:
            for reply in replies:
                self._tickets.pop(reply, None)

    # --- batches ---------------------------------------------------------------------------------------------------

    def make_batch(self) -> bool:
        """Queues the next batch, if there is one. The caller sends it at once."""
        is_one = False
        for level, gathered in self._gathered.items():
            if not gathered.items or not (self._is_due or len(gathered.items) >= gathered.full):
                continue
            items, replies = gathered.take(self._operations_max)
            if any(reply.done() for reply in replies):
                self._leave([reply for reply in replies if reply.done()])
                waiting = [entry for entry in zip(items, replies, strict=True) if not entry[1].done()]
                items, replies = [item for item, _ in waiting], [reply for _, reply in waiting]
            if items:
                self._queue(items, replies, level)
            is_one = True
            break
        if self._is_due and not self.operations:
            self._is_due = False
        return is_one

    def _queue(self, items: list[Item], replies: list[_Reply], level: Level) -> None:
        try:
            encoded = encode_batches(items, self._operations_max, self._bytes_max)
        except RpcError as error:
            # One of them can't be sent: find out which, each on its own.
            if len(items) == 1:
                self._refuse(replies, error)
            else:
                self._queue_each(items, replies, level)
            return
        start = 0
        for count, data in encoded:
            end = start + count
            self._add_batch(items[start:end], data, replies[start:end], level)
            start = end

    def _queue_each(self, items: list[Item], replies: list[_Reply], level: Level) -> None:
        for item, reply in zip(items, replies, strict=True):
            if reply.done():
                self._leave([reply])
            else:
                self._queue([item], [reply], level)

    def _add_batch(self, items: list[Item], data: bytes, replies: list[_Reply], level: Level) -> None:
        def settle(outcome: Results | RpcError) -> None:
            if level == "durable":
                size = self._halves.on_answer(len(items), self._room.operations)
                self._gathered[level].full = min(size or self._operations_max, self._operations_max)
            if isinstance(outcome, RpcError):
                if outcome.code in _TOGETHER_ONLY and len(items) > 1:
                    self._queue_each(items, replies, level)
                else:
                    self._refuse(replies, outcome)
            else:
                self._answer(batch, replies, outcome)

        if self._tickets:
            for reply in replies:
                if (ticket := self._tickets.get(reply)) is not None:
                    ticket.is_sent = True
        batch = Batch(len(items), data, settle, level)
        batch.abandoned = lambda: [place for place, reply in enumerate(replies) if reply.done()]
        self._session.add(batch)
        while self._batches and self._batches[0][1].is_answered:
            self._batches.popleft()
        self._batches.append((self._loop.time() + self._timeout_s, batch, replies))
        if self._deadline is None:
            self._deadline = self._loop.call_at(self._batches[0][0], self._on_deadline)

    def _answer(self, batch: Batch, replies: list[_Reply], results: Results) -> None:
        self._room.leave(len(replies))
        tickets = self._tickets
        for reply, result in zip(replies, results, strict=True):
            ticket = tickets.pop(reply, None) if tickets else None
            if reply.done():
                continue
            if isinstance(result, RpcError):
                reply.set_exception(result)
            elif ticket is not None and ticket.detail:
                reply.set_result(Detail(result, batch.level_reached, batch.commit))
            else:
                reply.set_result(result)

    # --- deadlines -------------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        """What could not be sent now expires one day. One mark for all that come within the delay."""
        now = self._loop.time()
        for level, gathered in self._gathered.items():
            if not gathered.items:
                continue
            behind = gathered.taken + len(gathered.items)
            expires = now + self._timeout_s
            if self._marks and self._marks[-1][1] == level and expires - self._marks[-1][0] < self._delay_s:
                expires = self._marks.pop()[0]
            self._marks.append((expires, level, behind))
        if self._deadline is None and self._marks:
            self._deadline = self._loop.call_at(self._marks[0][0], self._on_deadline)

    def _on_deadline(self) -> None:
        """One timer for all: a timer for each increment would cost more than the increment."""
        self._deadline = None
        now = self._loop.time()
        while self._marks and self._marks[0][0] <= now:
            _, level, behind = self._marks.popleft()
            _, replies = self._gathered[level].take(max(0, behind - self._gathered[level].taken))
            self._refuse(replies, Unavailable("the time ran out before it was sent: nothing was applied"))
        while self._batches and (self._batches[0][0] <= now or self._batches[0][1].is_answered):
            _, batch, replies = self._batches.popleft()
            for reply in [] if batch.is_answered else replies:
                if not reply.done():
                    reply.set_exception(
                        DeadlineExceeded("the time ran out; it was sent and stays in the session: don't repeat it")
                    )
        first = [waiting[0][0] for waiting in (self._marks, self._batches) if waiting]
        if first:
            self._deadline = self._loop.call_at(min(first), self._on_deadline)

    def stop(self) -> None:
        """Ends the timers."""
        for timer in (self._delay, self._deadline):
            if timer is not None:
                timer.cancel()
        self._delay = self._deadline = None

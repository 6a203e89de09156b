"""The rules of exactly once, without input or output: which operations have which numbers, and what may be sent when.

A batch goes through these states:

    queued -> numbered and sent -> answered
       ^            |  ^
       |            |  `-- sent again, under the same numbers, after a lost connection or a refusal
       `------------'  only where it is certain that no copy of it can count any more; then under a new session

What makes a retry safe is the pair of session and number, and only at the shard that knows the session. Two facts about
each numbered batch decide everything: whether an attempt is in flight on the present connection, and whether an earlier
attempt was never answered (`is_ambiguous`). A refusal settles a batch only if none was.

Where a session can't go on (the shard has forgotten it), ambiguous batches are reported as unknown and never sent
again; the others move to a new session. A batch that the server refuses for good (`too_large`) has used no numbers:
nothing after it can have been applied, so what was numbered behind it moves to a new session as well.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from pycounter.client.framing import Item, Level, decode_items
from pycounter.client.statistics import ClientStatistics
from pycounter.errors import AlreadySettled, RpcError, SessionLost, from_wire

__all__ = ["Batch", "LostTail", "Next", "Session"]

Results = list[int | RpcError]
#: Told once what became of a batch: its results, or the error that all of it shares.
OnSettled = Callable[[Results | RpcError], None]

#: Codes after which the shard doesn't go on with the session.
_ENDING = frozenset({"session_unknown", "id_reused", "already_settled", "internal"})
#: A batch that had to leave so many sessions is given up.
_RENEWALS_MAX = 3
_SESSION_BYTES = 16


class Next(Enum):
    """What the owner of a session has to do after an answer."""

    GO_ON = auto()
    #: Wait some time, then go on: the server refused for now.
    PAUSE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class LostTail:
    """Operations that were acknowledged at `applied` and are gone: the shard crashed before it wrote them to disk."""

    session: bytes
    first_sequence: int
    last_sequence: int
    #: Those of them that are remembered, oldest first. They weren't applied: they may be applied again as new ones.
    operations: list[Item]

    @property
    def count(self) -> int:
        """How many operations are lost."""
        return self.last_sequence - self.first_sequence + 1


class Batch:
    """Operations that travel together. `first` is 0 until they are numbered."""

    __slots__ = (
        "count",
        "first",
        "in_flight",
        "is_ambiguous",
        "is_answered",
        "is_refused",
        "items",
        "on_settled",
        "renewals",
    )

    def __init__(self, count: int, items: bytes, on_settled: OnSettled) -> None:
        self.count = count
        self.items = items
        self.on_settled = on_settled
        self.first = 0
        self.in_flight = False
        #: An earlier attempt was never answered.
        self.is_ambiguous = False
        self.is_answered = False
        #: Refused for good; its numbers are unused.
        self.is_refused = False
        self.renewals = 0

    @property
    def last(self) -> int:
        """The number of its last operation."""
        return self.first + self.count - 1


class Session:
    """The numbered operations of one client at one shard, and those that wait for a number."""

    def __init__(
        self,
        *,
        level: Level,
        batches_in_flight_max: int,
        window_operations_max: int,
        statistics: ClientStatistics,
        on_lost_tail: Callable[[LostTail], None],
        new_id: Callable[[], bytes] = lambda: os.urandom(_SESSION_BYTES),
    ) -> None:
        self.level = level
        self.statistics = statistics
        self._batches_in_flight_max = batches_in_flight_max
        self._window_operations_max = window_operations_max
        self._on_lost_tail = on_lost_tail
        self._new_id = new_id
        self.queue: deque[Batch] = deque()
        #: Acknowledged at `applied` and not known to be durable: (first, count, bytes).
        self.unconfirmed: deque[tuple[int, int, bytes]] = deque()
        self.unconfirmed_operations = 0
        #: Sessions to say goodbye to.
        self.ended: list[bytes] = []
        self._begin()

    def _begin(self) -> None:
        self.id = self._new_id()
        self.next_sequence = 1
        #: Everything up to here is settled.
        self.acked_through = 0
        #: The highest number that was answered.
        self.answered_max = 0
        #: Up to here, what was answered is known to be durable.
        self.confirmed_through = 0
        #: Numbered, in order, from the first that isn't settled.
        self.window: deque[Batch] = deque()
        self.window_operations = 0
        self.in_flight = 0
        #: To be sent again, in order.
        self._resend: deque[Batch] = deque()
        #: Send nothing until what is in flight is answered, then send again from the first unanswered.
        self._rewinding = False
        #: Why this session can't go on.
        self._ending = ""

    # --- what to send ----------------------------------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """Queues a batch."""
        self.queue.append(batch)

    def drop(self, batch: Batch) -> bool:
        """Takes back a batch that was never sent; False if it was."""
        try:
            self.queue.remove(batch)
        except ValueError:
            return False
        return True

    def take_next(self) -> Batch | None:
        """The batch to be sent now, numbered; None if there is none or it isn't time."""
        if self._rewinding:
            if self.in_flight:
                return None
            self._rewind()
        if self.in_flight >= self._batches_in_flight_max:
            return None
        while self._resend:
            batch = self._resend.popleft()
            if not batch.is_answered:
                self.statistics.batches_resent += 1
                self.statistics.operations_resent += batch.count
                return self._launch(batch)
        if not self.queue or self._ending or any(batch.is_refused for batch in self.window):
            return None
        if self.window and self.window_operations + self.queue[0].count > self._window_operations_max:
            return None
        batch = self.queue.popleft()
        batch.first = self.next_sequence
        self.next_sequence += batch.count
        self.window.append(batch)
        self.window_operations += batch.count
        if not batch.renewals:
            self.statistics.batches += 1
            self.statistics.operations += batch.count
        return self._launch(batch)

    def _launch(self, batch: Batch) -> Batch:
        batch.in_flight = True
        self.in_flight += 1
        return batch

    def _rewind(self) -> None:
        self._rewinding = False
        self._resend.clear()
        for batch in self.window:
            if batch.is_refused:
                break
            if not batch.is_answered:
                self._resend.append(batch)

    # --- answers ---------------------------------------------------------------------------------------------------

    def on_results(self, batch: Batch, results: list[Any]) -> None:
        """The shard applied the batch, now or before.

        Raises:
            ValueError: these aren't the results of so many operations.
        """
        if len(results) != batch.count:
            raise ValueError(f"{len(results)} results for {batch.count} operations")
        self._land(batch)
        if batch.is_answered:
            return
        if set(map(type, results)) != {int}:
            results = [from_wire(result) if isinstance(result, str) else result for result in results]
        if self.level == "applied":
            self.unconfirmed.append((batch.first, batch.count, batch.items))
            self.unconfirmed_operations += batch.count
        self.answered_max = max(self.answered_max, batch.last)
        if self.level == "durable":
            self.confirmed_through = self.answered_max
        self.statistics.operations_settled += batch.count
        self._answer(batch, results)
        self._settle()

    def on_refusal(self, batch: Batch, error: RpcError) -> Next:
        """The shard refused the batch whole."""
        self._land(batch)
        if batch.is_answered:
            return Next.GO_ON
        step = self._refuse(batch, error)
        self._settle()
        return step

    def _refuse(self, batch: Batch, error: RpcError) -> Next:
        self.statistics.batches_refused += 1
        if error.effect == "unknown":
            batch.is_ambiguous = True
        if error.code in _ENDING:
            self._ending = self._ending or str(error)
            return Next.GO_ON
        if error.retryable:
            self._rewinding = True
            # A gap is only what another refusal or a lost connection leaves behind, but never ask in a tight circle.
            return Next.PAUSE
        if batch.is_ambiguous:
            self._ending = self._ending or f"an attempt was not answered, and the next was refused: {error}"
            return Next.GO_ON
        batch.is_refused = True
        self.statistics.operations_settled += batch.count
        self._answer(batch, error)
        self._rewinding = True
        return Next.GO_ON

    def _land(self, batch: Batch) -> None:
        if batch.in_flight:
            batch.in_flight = False
            self.in_flight -= 1

    def _answer(self, batch: Batch, outcome: Results | RpcError) -> None:
        batch.is_answered = True
        batch.on_settled(outcome)

    def _settle(self) -> None:
        """Forgets what is settled from the beginning; at a refused batch the rest moves to a new session."""
        window = self.window
        while window and window[0].is_answered and not window[0].is_refused:
            batch = window.popleft()
            self.window_operations -= batch.count
            self.acked_through = batch.last
        if window and window[0].is_refused and not self.in_flight:
            # Its numbers are free and will never be used, so nothing numbered behind it can count any more.
            self._renew([batch for batch in window if not batch.is_answered])
        self._finish_ending()

    # --- the connection --------------------------------------------------------------------------------------------

    def on_disconnect(self) -> None:
        """What was in flight may or may not have arrived."""
        for batch in self.window:
            if batch.in_flight:
                batch.in_flight = False
                batch.is_ambiguous = True
        self.in_flight = 0
        self._rewinding = True
        self._settle()

    def on_resume(self, last_sequence: int | None, *, restarted: bool) -> None:
        """What `hello` says on a new connection.

        Args:
            last_sequence: the last number that the shard has; None: it doesn't know the session.
            restarted: no request of an earlier connection can arrive any more, as the shard's process is another.
        """
        last = last_sequence or 0
        if last >= self.next_sequence:
            self._end(f"the shard has {last} operations of it, but only {self.next_sequence - 1} were sent")
        elif last < self.confirmed_through or (last_sequence is None and self.answered_max and not restarted):
            # Without a restart nothing was lost: the session was ended or has expired, and what counted, counted.
            self._end("the shard does not know it any more")
        elif last < self.answered_max:
            self._lose_tail(last, restarted=restarted)
        else:
            self.confirm(last)
            self._rewinding = True

    def confirm(self, through: int) -> None:
        """Everything up to this number is durable."""
        self.confirmed_through = max(self.confirmed_through, min(through, self.answered_max))
        while self.unconfirmed and self.unconfirmed[0][0] + self.unconfirmed[0][1] - 1 <= through:
            self.unconfirmed_operations -= self.unconfirmed.popleft()[1]

    def _lose_tail(self, last: int, *, restarted: bool) -> None:
        """Acknowledged operations are gone: reports them and settles the unanswered ones against what is left."""
        self.confirm(last)
        operations: list[Item] = []
        for first, _, items in self.unconfirmed:
            operations += decode_items(items)[max(0, last + 1 - first) :]
        tail = LostTail(
            session=self.id, first_sequence=last + 1, last_sequence=self.answered_max, operations=operations
        )
        self.statistics.operations_lost += tail.count
        kept = []
        for batch in self.window:
            if batch.is_answered:
                continue
            if batch.last <= last:
                self._answer(batch, AlreadySettled("it was applied, but its result was lost in a crash of the shard"))
                self.statistics.operations_settled += batch.count
            elif batch.first > last and (restarted or not batch.is_ambiguous):
                kept.append(batch)
            else:
                self._give_up(batch, "the shard lost a part of it in a crash")
        self._renew(kept)
        self._on_lost_tail(tail)

    # --- ends ------------------------------------------------------------------------------------------------------

    def abandon(self, reason: str) -> list[Batch]:
        """Ends for good: reports what was sent as unknown, and gives back what never was."""
        for batch in self.window:
            batch.in_flight = False
            if not batch.is_answered:
                self._give_up(batch, reason)
        queued = list(self.queue)
        self.queue.clear()
        self._begin()
        return queued

    def expire(self) -> None:
        """The shard may have forgotten the session, and nobody asked it for too long."""
        self._end("there was no answer for longer than the shard keeps a session")

    def _end(self, reason: str) -> None:
        self._ending = self._ending or reason
        self._finish_ending()

    def _finish_ending(self) -> None:
        """Once nothing is in flight it is clear which batches are ambiguous."""
        if not self._ending or self.in_flight:
            return
        kept = []
        for batch in self.window:
            if batch.is_answered:
                continue
            if batch.is_ambiguous:
                self._give_up(batch, self._ending)
            else:
                kept.append(batch)
        self._renew(kept)

    def _give_up(self, batch: Batch, reason: str) -> None:
        self.statistics.operations_unknown += batch.count
        what = f"operation {batch.first}" if batch.count == 1 else f"operations {batch.first} to {batch.last}"
        key, delta = decode_items(batch.items)[0]
        self._answer(
            batch,
            SessionLost(
                f"session {self.id.hex()} has ended ({reason}); it is unknown whether {what} "
                f"({'' if batch.count == 1 else 'the first '}{key!r} {delta:+d}) counted, and they are not sent again"
            ),
        )

    def _renew(self, kept: list[Batch]) -> None:
        """Begins a new session with batches of which no copy can count any more, before what is queued."""
        if self.next_sequence > 1:
            self.ended.append(self.id)
            self.statistics.sessions_renewed += 1
        reason = self._ending
        self._begin()
        self.unconfirmed.clear()
        self.unconfirmed_operations = 0
        waiting: list[Batch] = []
        for batch in kept:
            batch.first = 0
            batch.is_ambiguous = False
            batch.renewals += 1
            if batch.renewals <= _RENEWALS_MAX:
                waiting.append(batch)
            else:
                self._answer(
                    batch, from_wire(f"unavailable: no session lasts at this shard ({reason}); nothing was applied")
                )
        self.queue.extendleft(reversed(waiting))

    @property
    def is_settled(self) -> bool:
        """Is nothing queued and nothing unanswered?"""
        return not self.queue and not self.window

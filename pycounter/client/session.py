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

Each batch has a level. At `applied` an answer is not the end: a crash of the shard may take back what it had not
written to disk. Each session has an `AppliedTail` of such operations; an answer at `durable` covers those with lower
numbers too. A session that ends while it has one is *retired*: the shard isn't told goodbye yet, as it must be able to
say, after a crash, how much of the session is left. A reply that waits for a commit (`hello`) confirms every tail at
once, those of retired sessions too. After a restart of the shard it is asked for each of them before anything else is
sent.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

from pycounter.client.applied_tail import AppliedTail, LostTail
from pycounter.client.framing import Level, decode_items
from pycounter.client.statistics import ClientStatistics
from pycounter.errors import AlreadySettled, RpcError, SessionLost, from_wire

__all__ = ["RETIRED_MAX", "SESSION_BYTES", "Batch", "Covered", "Next", "Session"]

_log = logging.getLogger(__name__)

Results = list[int | RpcError]
#: Told once what became of a batch: its results, or the error that all of it shares.
OnSettled = Callable[[Results | RpcError], None]

#: Codes after which the shard doesn't go on with the session.
_ENDING = frozenset({"session_unknown", "id_reused", "already_settled", "internal"})
#: A batch that had to leave so many sessions is given up.
_RENEWALS_MAX = 3
SESSION_BYTES = 16
#: With so many retired sessions nothing new is to be sent: each is asked for after a restart.
RETIRED_MAX = 64

#: Tails, and up to which number each was answered when a barrier was asked for.
Covered = list[tuple[AppliedTail, int]]


class Next(Enum):
    """What the owner of a session has to do after an answer."""

    GO_ON = auto()
    #: Wait some time, then go on: the server refused for now.
    PAUSE = auto()


def _nobody() -> Sequence[int]:
    return ()


class Batch:
    """Operations that travel together, at one level. `first` is 0 until they are numbered."""

    __slots__ = (
        "abandoned",
        "commit",
        "count",
        "first",
        "in_flight",
        "is_ambiguous",
        "is_answered",
        "is_refused",
        "items",
        "launched_at",
        "level",
        "level_reached",
        "on_settled",
        "renewals",
        "sent_at",
        "watchers",
    )

    def __init__(self, count: int, items: bytes, on_settled: OnSettled, level: Level) -> None:
        self.count = count
        self.items = items
        self.on_settled = on_settled
        self.level: Level = level
        self.first = 0
        self.in_flight = False
        #: An earlier attempt was never answered.
        self.is_ambiguous = False
        self.is_answered = False
        #: Refused for good; its numbers are unused.
        self.is_refused = False
        self.renewals = 0
        #: Where operations are whose callers wait no longer.
        self.abandoned: Callable[[], Sequence[int]] = _nobody
        #: Of the answer.
        self.level_reached: Level = level
        self.commit = 0
        #: When it was first sent, in the time of its owner.
        self.sent_at = 0.0
        #: When it was last sent, in the loop's time.
        self.launched_at = 0.0
        #: To be told when it is settled.
        self.watchers: list[Callable[[], None]] = []

    @property
    def last(self) -> int:
        """The number of its last operation."""
        return self.first + self.count - 1

    def settle(self, outcome: Results | RpcError) -> None:
        """Tells what became of it."""
        self.is_answered = True
        self.on_settled(outcome)
        self.tell_watchers()

    def tell_watchers(self) -> None:
        """Whoever waits for its outcome waits no longer."""
        for tell in self.watchers:
            tell()
        self.watchers.clear()


class Session:
    """The numbered operations of one client at one shard, and those that wait for a number."""

    def __init__(
        self,
        *,
        batches_in_flight_max: int,
        window_operations_max: int,
        statistics: ClientStatistics,
        on_lost_tail: Callable[[LostTail], None],
        on_given_up: Callable[[Batch], None] = lambda batch: None,
        new_id: Callable[[], bytes] = lambda: os.urandom(SESSION_BYTES),
    ) -> None:
        self.statistics = statistics
        self._batches_in_flight_max = batches_in_flight_max
        self._window_operations_max = window_operations_max
        self._on_lost_tail = on_lost_tail
        self._on_given_up = on_given_up
        self._new_id = new_id
        self.queue: deque[Batch] = deque()
        #: Of sessions that have ended before all that they had acknowledged was known to be durable.
        self.retired: list[AppliedTail] = []
        #: Sessions to say goodbye to.
        self.ended: list[bytes] = []
        self._begin()

    def _begin(self) -> None:
        self.id = self._new_id()
        self.next_sequence = 1
        #: Everything up to here is settled.
        self.acked_through = 0
        self.tail = AppliedTail(self.id)
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
        batch.tell_watchers()
        return True

    def take_unsent(self, share: float) -> list[Batch]:
        """Takes back this share of the batches that were never sent, the newest first."""
        unsent = [batch for batch in reversed(self.queue) if not batch.renewals]
        taken = unsent[: round(len(unsent) * share)]
        for batch in taken:
            self.queue.remove(batch)
        return taken

    def sent(self) -> list[Batch]:
        """Those that were sent and aren't answered, also where a new session is to send them again."""
        renewed = [batch for batch in self.queue if batch.renewals]
        return [*(batch for batch in self.window if not batch.is_answered), *renewed]

    @property
    def in_flight_since(self) -> float | None:
        """When the oldest batch that is in flight was sent, in the time of its owner; None: there is none."""
        return min((batch.launched_at for batch in self.window if batch.in_flight), default=None)

    @property
    def pending_operations(self) -> int:
        """Sent and not answered."""
        return sum(batch.count for batch in self.window if not batch.is_answered)

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

    def takes_more(self, operations: int) -> bool:
        """Would a new batch of so many operations be sent at once?"""
        return not (
            self.queue
            or self._resend
            or self._rewinding
            or self._ending
            or self.in_flight >= self._batches_in_flight_max
            or (self.window and self.window_operations + operations > self._window_operations_max)
            or any(batch.is_refused for batch in self.window)
        )

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

    def on_results(self, batch: Batch, results: Any) -> None:
        """The shard applied the batch, now or before.

        Raises:
            ValueError: these aren't the results of so many operations.
        """
        if type(results) is not list or len(results) != batch.count:
            raise ValueError(f"{results!r:.100} are no results of {batch.count} operations")
        kinds = set(map(type, results))
        if not kinds <= {int, str}:
            raise ValueError("a result is neither a number nor an error")
        self._land(batch)
        if batch.is_answered:
            return
        refused: frozenset[int] = frozenset()
        if str in kinds:
            refused = frozenset(place for place, result in enumerate(results) if type(result) is str)
            results = [from_wire(result) if type(result) is str else result for result in results]
        if batch.level_reached == "durable":
            self.tail.answer_durably(batch.last)
        else:
            self.tail.answer(batch.first, batch.count, batch.items, refused)
        self.statistics.operations_settled += batch.count
        self.statistics.record(succeeded=batch.count - len(refused), refused=len(refused))
        batch.settle(results)
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
        # Before anything was answered, only the first batch can be told that the session is over. One behind it finds
        # that the session hasn't begun, as the first was refused or is late: a gap.
        is_unknown = error.code == "session_unknown"
        is_gap = is_unknown and batch.first > 1 and not self.tail.answered_max
        if error.code in _ENDING and not is_gap:
            self.tail.may_be_forgotten |= is_unknown
            self._ending = self._ending or str(error)
            return Next.GO_ON
        if error.retryable or is_gap:
            self._rewinding = True
            # A gap is only what another refusal or a lost connection leaves behind, but never ask in a tight circle.
            return Next.PAUSE
        if batch.is_ambiguous:
            self._ending = self._ending or f"an attempt was not answered, and the next was refused: {error}"
            return Next.GO_ON
        batch.is_refused = True
        self.statistics.operations_settled += batch.count
        self.statistics.record(failed=batch.count)
        batch.settle(error)
        self._rewinding = True
        return Next.GO_ON

    def _land(self, batch: Batch) -> None:
        if batch.in_flight:
            batch.in_flight = False
            self.in_flight -= 1

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
        tail, last = self.tail, last_sequence or 0
        if not restarted and not self.is_behind(last_sequence):
            self.confirm(self.acknowledged())
        lost = None
        if last >= self.next_sequence:
            self._forget_tail(tail)
            self._end(f"the shard has {last} operations of it, but only {self.next_sequence - 1} were sent")
        elif last < tail.confirmed_through:
            # Without a restart nothing was lost: the session was ended or has expired, and what counted, counted.
            lost = self._judge(tail, last_sequence)
            self._end("the shard does not know it any more")
        elif last < tail.answered_max:
            lost = self._judge(tail, last_sequence)
            self._leave_behind(last, restarted=restarted)
        else:
            tail.confirm(last)
            self._rewinding = True
            if restarted and last_sequence is not None:
                # It knows the session, hasn't got these, and no copy is left that could arrive.
                for batch in self.window:
                    batch.is_ambiguous = batch.is_ambiguous and batch.first <= last
        self._report(lost)

    def _leave_behind(self, last: int, *, restarted: bool) -> None:
        """Acknowledged operations are gone: settles the unanswered ones against what is left."""
        kept = []
        for batch in self.window:
            if batch.is_answered:
                continue
            if batch.last <= last:
                batch.settle(AlreadySettled("it was applied, but its result was lost in a crash of the shard"))
                self.statistics.operations_settled += batch.count
            elif batch.first > last and (restarted or not batch.is_ambiguous):
                kept.append(batch)
            else:
                self._give_up(batch, "the shard lost a part of it in a crash")
        self._renew(kept)

    # --- what was acknowledged at applied --------------------------------------------------------------------------

    @property
    def unconfirmed_operations(self) -> int:
        """Acknowledged at `applied` and not known to be durable."""
        return self.tail.operations + sum(tail.operations for tail in self.retired)

    def acknowledged(self) -> Covered:
        """What is acknowledged now: a reply to a request sent now that waits for a commit confirms it."""
        return [(tail, tail.answered_max) for tail in (*self.retired, self.tail)]

    def confirm(self, covered: Covered) -> None:
        """The barrier was answered, by the process of the shard that acknowledged all of it."""
        for tail, through in covered:
            tail.confirm(through)
        self.ended += [tail.session for tail in self.retired if not tail.operations]
        self.retired = [tail for tail in self.retired if tail.operations]

    def is_behind(self, last_sequence: int | None) -> bool:
        """Does the shard know the session, and less of it than it acknowledged?"""
        return last_sequence is not None and last_sequence < self.tail.answered_max

    def resolve(self, tail: AppliedTail, last_sequence: int | None) -> None:
        """After a crash of the shard: what `hello` says of a retired session. To be told before `on_resume`."""
        self.retired.remove(tail)
        self.ended.append(tail.session)
        self._report(self._judge(tail, last_sequence))

    def _judge(self, tail: AppliedTail, last_sequence: int | None) -> LostTail | None:
        if tail.is_unknown(last_sequence):
            self._forget_tail(tail)
            return None
        return tail.take_lost(last_sequence or 0)

    def _report(self, lost: LostTail | None) -> None:
        if lost is not None:
            self.statistics.operations_lost += lost.count
            self._on_lost_tail(lost)

    def _forget_tail(self, tail: AppliedTail) -> None:
        if unknown := tail.clear():
            self.statistics.operations_unknown += unknown
            _log.warning(
                "session %s: it is unknown whether %d operations that were acknowledged at applied lasted",
                tail.session.hex(),
                unknown,
            )

    # --- ends ------------------------------------------------------------------------------------------------------

    def abandon(self, reason: str) -> list[Batch]:
        """Ends for good: reports what was sent as unknown, and gives back what never was."""
        for batch in self.window:
            batch.in_flight = False
            if not batch.is_answered:
                self._give_up(batch, reason)
        for tail in (*self.retired, self.tail):
            self._forget_tail(tail)
        self.retired.clear()
        queued = list(self.queue)
        self.queue.clear()
        self._begin()
        return queued

    def expire(self) -> None:
        """The shard may have forgotten the session, and nobody asked it for too long."""
        for tail in (*self.retired, self.tail):
            tail.may_be_forgotten = True
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
        self.statistics.record(failed=batch.count)
        self._on_given_up(batch)
        what = f"operation {batch.first}" if batch.count == 1 else f"operations {batch.first} to {batch.last}"
        key, delta = decode_items(batch.items)[0]
        batch.settle(
            SessionLost(
                f"session {self.id.hex()} has ended ({reason}); it is unknown whether {what} "
                f"({'' if batch.count == 1 else 'the first '}{key!r} {delta:+d}) counted, and they are not sent again"
            ),
        )

    def _renew(self, kept: list[Batch]) -> None:
        """Begins a new session with batches of which no copy can count any more, before what is queued."""
        if self.next_sequence > 1:
            self.statistics.sessions_renewed += 1
            if self.tail.operations:
                self.retired.append(self.tail)
            else:
                self.ended.append(self.id)
        reason = self._ending
        self._begin()
        waiting: list[Batch] = []
        for batch in kept:
            batch.first = 0
            batch.is_ambiguous = False
            batch.renewals += 1
            if batch.renewals <= _RENEWALS_MAX:
                waiting.append(batch)
            else:
                batch.settle(from_wire(f"unavailable: no session lasts at this shard ({reason}); nothing was applied"))
        self.queue.extendleft(reversed(waiting))

    @property
    def is_settled(self) -> bool:
        """Is nothing queued and nothing unanswered?"""
        return not self.queue and not self.window

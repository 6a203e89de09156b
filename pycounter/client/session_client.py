"""The client of one shard that counts exactly once through cut connections, crashes and restarts of the shard.

Here is what callers see; `session_connection` has the connection and the clock, and `Session` decides what may be sent.
Everything runs on one event loop, asyncio's own or uvloop's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

from pycounter.client.coalescer import Detail, Ticket, Withdrawn
from pycounter.client.framing import Item, Key, Level, check_level, encode_batches
from pycounter.client.limit import Limit
from pycounter.client.retry import BEFORE_THE_ID, CHANGES_WITH_ID, READS
from pycounter.client.session import Batch, Results
from pycounter.client.session_connection import SessionConnection
from pycounter.client.statistics import BatchHealth
from pycounter.errors import (
    DeadlineExceeded,
    PyCounterError,
    RpcError,
    SessionLost,
    Unavailable,
    UnknownOutcome,
)

__all__ = ["SessionClient"]

_log = logging.getLogger(__name__)


class SessionClient(SessionConnection):
    """Counts at one shard, each operation exactly once.

    Use it as `async with SessionClient(host, port) as client`, or call `connect` and `close`.

    A deadline that passes, or a cancellation, ends the waiting and not the counting: an operation that was sent stays
    in the session until it is settled, and is not to be repeated by the caller; until then it is on the list `unknown`.
    What still waits for room, and a list (`apply`) that wasn't sent yet, is taken back: after a deadline that is
    `Unavailable`, nothing was applied.

    Args:
        host: the shard's.
        port: the shard's.
        token: the server's, if it has one.
        level: when operations that name no level are acknowledged, `durable` (on disk) or `applied` (in memory).
        tls: how to verify the server, if it speaks TLS.
        identity: the shard's, 32 hex digits; None takes the first that answers.
        settings: everything else.
        name: what the shard is called in `unknown`; its address otherwise.
        may_move: the shard may be at another address, which somebody will tell: to meet another one there is no end.
        on_lost_tail: told of operations that were acknowledged at `applied` and lost in a crash; logged otherwise.
        on_unknown: told of operations that stay unknown for ever and whose callers wait no longer; `unknown` reports
            them otherwise.
        on_sample: told of each batch that was answered or cut off: its latency in seconds, and what went wrong.
        on_connection: told when a connection is there (True), and when it is gone.
        clock: time and random numbers, beside the loop's own time.
    """

    # --- life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except PyCounterError:
            if error is None:
                raise
            _log.exception("closing the client")

    async def connect(self, *, timeout_s: float | None = None) -> None:
        """Begins to connect and waits until that has worked. Cancelled or too late, it goes on in the background.

        Raises:
            Unavailable: the shard can't be reached in time.
            Unauthenticated: the token is missing or wrong.
            WrongShard: it isn't the shard of the identity that was given.
        """
        self.start()
        await self._wait_ready(self._deadline(timeout_s if timeout_s is not None else self.settings.connect_timeout_s))

    async def close(self, *, timeout_s: float | None = None) -> None:
        """Waits for what is not settled, says goodbye, and ends the connection. Cancellation ends it at once.

        From its beginning on nothing new is accepted.

        Raises:
            SessionLost: not everything was settled in time, or, at `applied`, known to be durable; the message says how
                much is unknown.
        """
        if self._runner is None:
            return
        timeout_s = self.settings.close_timeout_s if timeout_s is None else timeout_s
        unknown_before = self.statistics.operations_unknown
        refusal = self._refusal = self._refusal or Unavailable("the client is closed: nothing was applied")
        try:
            self._coalescer.flush()
            async with asyncio.timeout(timeout_s):
                await self._room.wait_empty()
                while self._session.unconfirmed_operations:
                    await self._confirm()
                await self._say_goodbye()
        except (TimeoutError, RpcError) as error:
            _log.debug("closing: %s", error)
        finally:
            tasks = [task for task in (self._runner, self._barrier) if task is not None]
            self._runner = None
            for task in tasks:
                task.cancel()
            self._fail(refusal, "the client was closed")
            if self._connection is not None:
                self._connection.close()
            await asyncio.gather(*tasks, return_exceptions=True)
        unknown = self.statistics.operations_unknown - unknown_before
        if unknown:
            raise SessionLost(f"closed after {timeout_s} s: it is unknown whether {unknown} operations counted")

    async def _say_goodbye(self) -> None:
        """Only a settled session may end: its results are of no more use."""
        if self._connection is not None and self._session.next_sequence > 1:
            try:
                await self._connection.call("bye", self._session.id)
            except (OSError, RpcError) as error:
                _log.debug("no answer to bye: %s", error)

    # --- counting --------------------------------------------------------------------------------------------------

    @overload
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> int: ...
    @overload
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: Literal[True],
        timeout_s: float | None = None,
    ) -> Detail: ...
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: bool = False,
        timeout_s: float | None = None,
    ) -> int | Detail:
        """Adds to a counter and gives its value after; with `detail`, also the level that was reached.

        Increments travel together: see `coalescer`.

        Raises:
            RpcError: it was refused; `effect` says what that means.
            DeadlineExceeded: it was sent and not answered yet; it stays in the session, don't repeat it.
            SessionLost: nobody can tell whether it counted.
        """
        level = self._level if level is None else check_level(level)
        ticket = Ticket(detail=detail) if detail or timeout_s is not None else None
        answer: int | Detail
        if timeout_s is None and self.can_take():
            try:
                answer = await self._coalescer.add((key, delta), level, ticket)
            except asyncio.CancelledError:
                self._coalescer.note_cancelled()
                raise
            return answer
        async with self._limit(timeout_s) as limit:
            await self._enter(1, limit)
            ticket = ticket or Ticket()
            try:
                answer = await self._coalescer.add((key, delta), level, ticket)
            except asyncio.CancelledError:
                self._coalescer.note_cancelled()
                limit.is_sent = ticket.is_sent
                raise
        return answer

    def can_take(self) -> bool:
        """Takes room for one increment that is given to `begin_incr` at once; False: `incr` has to wait for it."""
        return self._failure is None and self._refusal is None and self._runner is not None and self._room.try_enter()

    def begin_incr(self, key: Key, delta: int) -> asyncio.Future[Any]:
        """The increment for which `can_take` took room, at the client's level: a future of its value.

        Whoever cancels the future calls `note_cancelled`.
        """
        return self._coalescer.add((key, delta), self._level)

    def note_cancelled(self) -> None:
        """A future of `begin_incr` was cancelled."""
        self._coalescer.note_cancelled()

    async def apply(
        self, items: Sequence[Item], *, level: Level | None = None, timeout_s: float | None = None
    ) -> Results:
        """Adds to many counters and gives, for each item, its value after or its error.

        Items that would make too large a request go as several. They are encoded before anything is awaited, so the
        sequence may be changed afterwards.

        Raises:
            RpcError: all of it was refused, for one reason. Where only a part was, the error stands in the result.
            DeadlineExceeded: it was sent and not answered yet; it stays in the session, don't repeat it.
            SessionLost: nobody can tell whether it counted.
        """
        level = self._level if level is None else check_level(level)
        if not items:
            return []
        limits = self.settings
        encoded = encode_batches(items, limits.batch_operations_max, limits.batch_bytes_max)
        loop = asyncio.get_running_loop()
        async with self._limit(timeout_s) as limit:
            replies: list[asyncio.Future[Results | RpcError]] = []
            batches: list[Batch] = []
            refused: list[RpcError] = []
            try:
                for count, data in encoded:
                    try:
                        await self._enter(count, limit)
                    except RpcError as refusal:
                        if not batches:
                            raise
                        refused = [refusal] * (len(encoded) - len(batches))
                        break
                    replies.append(loop.create_future())
                    batches.append(self._batch_of(count, data, level, replies[-1]))
                    self._session.add(batches[-1])
                    self._pump()
                outcomes = [await reply for reply in replies] + refused
            except asyncio.CancelledError:
                dropped = [batch for batch in batches if self._session.drop(batch)]
                self._room.leave(sum(batch.count for batch in dropped))
                limit.is_sent = len(dropped) < len(batches)
                for reply in replies:
                    reply.cancel()
                raise
        if len(outcomes) == 1:
            outcome = outcomes[0]
            if isinstance(outcome, RpcError):
                raise outcome
            return outcome
        if all(isinstance(outcome, RpcError) for outcome in outcomes):
            raise next(outcome for outcome in outcomes if isinstance(outcome, RpcError))
        results: Results = []
        for outcome, (count, _) in zip(outcomes, encoded, strict=True):
            results += [outcome] * count if isinstance(outcome, RpcError) else outcome
        return results

    def withdraw(self, share: float = 1.0) -> int:
        """Takes back this share of the operations that were never sent: their callers get `Withdrawn`.

        Gives how many these were. What was sent stays: it may have counted, so it can go nowhere else.
        """
        refusal = Withdrawn("it was taken back before it was sent: nothing was applied")
        taken = self._session.take_unsent(share)
        for batch in taken:
            batch.settle(refusal)
        return sum(batch.count for batch in taken) + self._coalescer.refuse(refusal, share)

    async def flush(self, *, timeout_s: float | None = None) -> None:
        """Waits until everything that is acknowledged now is durable, or reported as lost. For clients at `applied`.

        Raises:
            DeadlineExceeded: it isn't yet.
        """
        async with self._limit(timeout_s):
            await self._confirm()

    async def call(self, method: str, *params: object, timeout_s: float | None = None) -> Any:
        """Calls any other method and gives its result.

        When a connection breaks, reads are sent again, and so is a change that has an operation id in its options, to
        the same shard only. Other changes are not.

        Raises:
            RpcError: the server's.
            UnknownOutcome: it was sent, the reply never came, and it can't be repeated safely.
            DeadlineExceeded: the time ran out.
            Unavailable: the shard couldn't be reached; nothing was applied.
        """
        options = params[-1] if params else None
        has_id = method in CHANGES_WITH_ID and isinstance(options, dict) and options.get("id") is not None
        deadline = self._deadline(timeout_s)
        sent_first: float | None = None
        is_ambiguous = False
        while True:
            try:
                connection = await self._wait_ready(deadline)
            except RpcError as error:
                if is_ambiguous:
                    raise UnknownOutcome(f"{method} was sent and not answered, then: {error}") from error
                raise
            sent_first = sent_first or self._running_s()
            if is_ambiguous and self._running_s() - sent_first > self.settings.id_window_s:
                raise UnknownOutcome(f"{method} was not answered for longer than the shard keeps its id")
            try:
                async with asyncio.timeout_at(deadline):
                    return await connection.call(method, *params)
            except TimeoutError as error:
                raise DeadlineExceeded(f"{method} was not answered in time") from error
            except OSError as error:
                if not has_id and method not in READS:
                    raise UnknownOutcome(f"{method} was sent, but the connection ended before its reply") from error
                is_ambiguous = is_ambiguous or has_id
                # Let the runner see the loss before the next attempt.
                await asyncio.sleep(0)
            except RpcError as error:
                # A refusal settles an operation only if no earlier attempt is unanswered.
                if is_ambiguous and error.code in BEFORE_THE_ID:
                    raise UnknownOutcome(f"{method} was sent and not answered, then: {error}") from error
                is_ambiguous = is_ambiguous or (has_id and error.effect == "unknown")
                if not (is_ambiguous and error.retryable):
                    raise
                await asyncio.sleep(self._pause.next_s())

    @property
    def unconfirmed(self) -> int:
        """Operations that were acknowledged at `applied` and aren't known to be durable yet."""
        return self._session.unconfirmed_operations

    @property
    def unsettled(self) -> int:
        """Operations that were accepted and have no outcome yet, their callers still waiting or not."""
        return self._room.operations

    @property
    def health(self) -> BatchHealth:
        """How the batches fare: unhealthy where too many operations fail, or are not answered."""
        pending, rate = self._session.pending_operations, self.statistics.success_rate
        settings = self.settings
        return BatchHealth(
            queued=self._room.operations - pending,
            pending=pending,
            success_rate=rate,
            is_healthy=pending <= settings.healthy_pending_max and 1.0 - rate <= settings.healthy_failed_share_max,
        )

    @property
    def is_connected(self) -> bool:
        """Is there a connection now, on which the shard has answered?"""
        return self._connection is not None and not self._connection.lost.is_set()

    @property
    def in_flight_since(self) -> float | None:
        """Since when, in the loop's time, the oldest request has waited for its answer; None: there is none."""
        return self._session.in_flight_since

    @property
    def failure(self) -> RpcError | None:
        """Why nothing can succeed any more; None as long as something can."""
        return self._failure

    @property
    def session_id(self) -> bytes:
        """The present session's."""
        return self._session.id

    # --- room and time ---------------------------------------------------------------------------------------------

    def _deadline(self, timeout_s: float | None) -> float:
        return asyncio.get_running_loop().time() + (self.settings.call_timeout_s if timeout_s is None else timeout_s)

    def _limit(self, timeout_s: float | None) -> Limit:
        return Limit(self._deadline(timeout_s))

    async def _enter(self, count: int, limit: Limit) -> None:
        """Waits for room. A deadline that passes meanwhile has sent nothing."""
        self._check()
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        limit.is_sent = False
        await self._room.enter(count)
        limit.is_sent = True

    # --- sending -----------------------------------------------------------------------------------------------------

    def _batch_of(self, count: int, data: bytes, level: Level, reply: asyncio.Future[Results | RpcError]) -> Batch:
        def settle(outcome: Results | RpcError) -> None:
            self._room.leave(count)
            if not reply.done():
                reply.set_result(outcome)

        batch = Batch(count, data, settle, level)
        batch.abandoned = lambda: range(count) if reply.done() else ()
        return batch

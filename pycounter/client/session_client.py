"""The client of one shard that counts exactly once through cut connections, crashes and restarts of the shard.

Everything here runs on one event loop, asyncio's own or uvloop's. `Session` decides what may be sent; this module has
the connection, the callers and the clock. One task connects, and connects again; batches are sent by whoever makes the
next one possible: a caller, or a reply.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

from pycounter.client.applied_tail import LostTail
from pycounter.client.backoff import Backoff
from pycounter.client.coalescer import Coalescer, Detail, Ticket, Withdrawn
from pycounter.client.connection import RpcConnection
from pycounter.client.framing import Item, Key, Level, ProtocolViolation, decode_items, encode_batches
from pycounter.client.hello import HelloReply
from pycounter.client.limit import Limit
from pycounter.client.room import Room
from pycounter.client.session import RETIRED_MAX, SESSION_BYTES, Batch, Next, Results, Session
from pycounter.client.settings import ClientSettings
from pycounter.client.statistics import BatchHealth, ClientStatistics
from pycounter.client.unknown_operations import UnknownOperation, UnknownOperations
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.errors import (
    BadRequest,
    DeadlineExceeded,
    Forbidden,
    PyCounterError,
    RpcError,
    SessionLost,
    Unauthenticated,
    Unavailable,
    UnknownOutcome,
    WrongShard,
    from_wire,
)

__all__ = ["SessionClient"]

_log = logging.getLogger(__name__)

#: Methods that change nothing: sent again when a connection breaks.
_READS = frozenset({"get", "get_many", "total", "total_many", "scan", "top", "ping", "stats", "health", "topology"})
_WITH_ID = frozenset({"incr", "drain", "delete"})
#: Refusals that look at who asks, not at the operation: they say nothing about an attempt before.
_DOORS = frozenset({"unauthenticated", "forbidden"})
#: Said by who isn't the right one, or doesn't let us in: to ask again helps nobody.
_FINAL = (Unauthenticated, Forbidden, WrongShard)
_LEVELS = frozenset({"applied", "durable"})


def _checked(level: Any) -> Level:
    if level not in _LEVELS:
        raise BadRequest(f"a level is 'durable' or 'applied', not {level!r}: nothing was applied")
    checked: Level = level
    return checked


class SessionClient:
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

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 7400,
        *,
        token: str | bytes | None = None,
        level: Level = "durable",
        tls: ssl.SSLContext | None = None,
        identity: str | None = None,
        settings: ClientSettings | None = None,
        name: str = "",
        may_move: bool = False,
        on_lost_tail: Callable[[LostTail], None] | None = None,
        on_unknown: Callable[[list[UnknownOperation]], None] | None = None,
        on_sample: Callable[[float, RpcError | None], None] | None = None,
        on_connection: Callable[[bool], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings or ClientSettings()
        self.statistics = ClientStatistics()
        #: Where the next connection goes.
        self.address = (host, port)
        self.identity = identity
        self.name = name or f"{host}:{port}"
        self.epoch: int | None = None
        self._token = token
        self._tls = tls
        self._may_move = may_move
        self._on_lost_tail = on_lost_tail
        self._on_sample = on_sample
        self._on_connection = on_connection
        #: The newest commit with which the shard answered a batch.
        self.commit_seen = 0
        self._running_s = clock.running_s
        self._random = clock.random()
        self._level: Level = level
        self._wall_s = clock.wall_s
        #: Operations that were sent, and of which nobody knows yet whether they counted.
        self.unknown = UnknownOperations(self.pending_unknown)
        self._on_unknown = on_unknown or self.unknown.end
        self._session = Session(
            batches_in_flight_max=self.settings.batches_in_flight_max,
            window_operations_max=self.settings.window_operations_max,
            statistics=self.statistics,
            on_lost_tail=self._report_lost_tail,
            on_given_up=self._note_given_up,
            new_id=lambda: clock.random_bytes(SESSION_BYTES),
        )
        self._connection: RpcConnection | None = None
        self._ready = asyncio.Event()
        self._room = Room(self.settings.pending_operations_max)
        #: Why no operation is accepted any more, and why none can succeed any more.
        self._refusal: RpcError | None = None
        self._failure: RpcError | None = None
        #: Why the last connection didn't come to be.
        self._trouble: Exception | None = None
        self._runner: asyncio.Task[None] | None = None
        self._barrier: asyncio.Task[None] | None = None
        self._pause = Backoff(self.settings.backoff_first_s, self.settings.backoff_max_s, self._random)
        self._resume: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        self._coalescer = Coalescer(
            self._session,
            self._room,
            operations_max=self.settings.coalesced_operations_max,
            bytes_max=self.settings.batch_bytes_max,
            delay_s=self.settings.coalesced_delay_s,
            timeout_s=self.settings.call_timeout_s,
            on_due=self._pump,
        )

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

    def start(self) -> None:
        """Begins to connect in the background, unless that was begun. Increments wait until it has worked."""
        if self._runner is None:
            loop = asyncio.get_running_loop()
            self._coalescer.start(loop)
            self._runner = loop.create_task(self._run(), name="pycounter session client")

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
        level = self._level if level is None else _checked(level)
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
        level = self._level if level is None else _checked(level)
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
            batch.on_settled(refusal)
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
        has_id = method in _WITH_ID and isinstance(options, dict) and options.get("id") is not None
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
                if not has_id and method not in _READS:
                    raise UnknownOutcome(f"{method} was sent, but the connection ended before its reply") from error
                is_ambiguous = is_ambiguous or has_id
                # Let the runner see the loss before the next attempt.
                await asyncio.sleep(0)
            except RpcError as error:
                # A refusal settles an operation only if no earlier attempt is unanswered.
                if is_ambiguous and not error.retryable and error.code in _DOORS:
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

    def _check(self) -> None:
        if self._failure is not None:
            # One object for all callers: without this it would remember each of them.
            raise self._failure.with_traceback(None)
        if self._runner is None:
            raise Unavailable("the client is not connected: nothing was applied")

    async def _wait_ready(self, deadline: float | None) -> RpcConnection:
        """The present connection, once there is one."""
        while True:
            self._check()
            if self._connection is not None and not self._connection.lost.is_set():
                return self._connection
            self._ready.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._ready.wait()
            except TimeoutError as error:
                host, port = self.address
                raise Unavailable(
                    f"can't reach the shard at {host}:{port} ({self._trouble or 'no answer'}): nothing was applied"
                ) from error

    # --- sending ---------------------------------------------------------------------------------------------------

    def _batch_of(self, count: int, data: bytes, level: Level, reply: asyncio.Future[Results | RpcError]) -> Batch:
        def settle(outcome: Results | RpcError) -> None:
            self._room.leave(count)
            if not reply.done():
                reply.set_result(outcome)

        batch = Batch(count, data, settle, level)
        batch.abandoned = lambda: range(count) if reply.done() else ()
        return batch

    def _pump(self) -> None:
        """Sends whatever may be sent now."""
        connection = self._connection
        if connection is None or connection.lost.is_set() or self._resume is not None:
            return
        session = self._session
        unconfirmed, bound = session.unconfirmed_operations, self.settings.unconfirmed_operations_max
        if self._barrier is None and (session.retired or unconfirmed >= bound // 2):
            self._barrier = asyncio.create_task(self._confirm_in_background(), name="pycounter confirmation")
        if unconfirmed >= bound or len(session.retired) >= RETIRED_MAX:
            return
        while True:
            if (batch := session.take_next()) is None:
                if session.takes_more(self.settings.coalesced_operations_max) and self._coalescer.make_batch():
                    continue
                break
            batch.sent_at = batch.sent_at or self._wall_s()
            batch.launched_at = connection.time()
            connection.apply(batch, session.id, session.acked_through)
        while session.ended:
            connection.notify("bye", session.ended.pop())

    def _pump_later(self) -> None:
        if self._resume is None:
            self._resume = asyncio.get_running_loop().call_later(self._pause.next_s(), self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._pump()

    # --- what the connection tells ---------------------------------------------------------------------------------

    def on_batch_reply(self, batch: Batch, error: str | None, result: Any) -> None:
        """A batch was answered."""
        self._answered_at = self._running_s()
        refusal = from_wire(error) if error is not None else None
        if self._on_sample is not None and self._connection is not None:
            self._on_sample(self._connection.time() - batch.launched_at, refusal)
        if refusal is not None:
            if self._session.on_refusal(batch, refusal) is Next.PAUSE:
                self._pump_later()
            return
        try:
            batch.level_reached = _checked(result.get("level", batch.level))
            batch.commit = int(result.get("commit", 0))
            self.commit_seen = max(self.commit_seen, batch.commit)
            self._session.on_results(batch, result["results"])
        except (TypeError, AttributeError, KeyError, ValueError, BadRequest) as wrong:
            raise ProtocolViolation(f"the server's answer to apply makes no sense: {wrong}") from wrong
        self._pause.reset()

    def on_replies(self) -> None:
        """Replies came: there may be room for more."""
        self._pump()
        if not self._session.in_flight:
            self._coalescer.on_idle()

    def _report_lost_tail(self, tail: LostTail) -> None:
        _log.warning("%d operations that were acknowledged at applied were lost in a crash of the shard", tail.count)
        if self._on_lost_tail is not None:
            try:
                self._on_lost_tail(tail)
            except Exception:  # noqa: BLE001 - it is the user's, and the client goes on without it
                _log.exception("on_lost_tail")

    # --- what nobody knows -----------------------------------------------------------------------------------------

    def pending_unknown(self) -> Iterator[tuple[UnknownOperation, Callable[[Callable[[], None]], None]]]:
        """The operations that `unknown` lists, each with what to call to be told when it is settled."""
        for batch in list(self._session.window):
            if batch.is_answered:
                continue
            places = range(batch.count) if batch.is_ambiguous else batch.abandoned()
            if places:
                for operation in self._operations_of(batch, places):
                    yield operation, batch.watchers.append

    def _operations_of(self, batch: Batch, places: Sequence[int]) -> list[UnknownOperation]:
        items = decode_items(batch.items)
        return [
            UnknownOperation(key=items[place][0], delta=items[place][1], shard=self.name, since=batch.sent_at)
            for place in places
        ]

    def _note_given_up(self, batch: Batch) -> None:
        # Callers that wait still are told by an exception.
        self._on_unknown(self._operations_of(batch, batch.abandoned()))

    # --- durability of applied operations --------------------------------------------------------------------------

    async def _confirm(self) -> None:
        """Waits until all that is acknowledged now is durable: `hello` waits for the commit that covers it."""
        while True:
            connection = await self._wait_ready(None)
            covered = self._session.acknowledged()
            try:
                await self._greet(connection, self._session.id)
            except ConnectionError:
                # Let the runner see the loss before the next attempt.
                await asyncio.sleep(0)
                continue
            except RpcError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(self._pause.next_s())
                continue
            # On another connection the shard may be another process, and what this one said is settled there.
            if connection is self._connection:
                self._session.confirm(covered)
                self._pump()
            return

    async def _confirm_in_background(self) -> None:
        """A task of its own, so that counting goes on meanwhile; its errors are the next caller's as well."""
        try:
            await self._confirm()
        except RpcError as error:
            _log.warning("can't ask the shard what is durable: %s", error)
            await asyncio.sleep(self._pause.next_s())
        finally:
            self._barrier = None
        self._pump()

    # --- connecting ------------------------------------------------------------------------------------------------

    async def _greet(self, connection: RpcConnection, session: bytes) -> HelloReply:
        """Asks the shard who it is and where a session is. Raises ConnectionError, RpcError."""
        said: dict[str, object] = {"client": "pycounter", "session": session}
        if self._token is not None:
            said["token"] = self._token
        reply = await connection.call("hello", said)
        try:
            return HelloReply.parse(reply)
        except ProtocolViolation as violation:
            connection.refuse(violation)
            raise

    async def _run(self) -> None:
        """The task that connects, for as long as the client lives. Every other task waits for what it makes."""
        try:
            await self._stay_connected()
        except Exception as error:  # noqa: BLE001 - the task's boundary: callers would wait for it in vain
            _log.exception("the client can't go on")
            self._fail(Unavailable(f"the client can't go on: {error!r}"), repr(error))

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(self.settings.backoff_first_s, self.settings.backoff_max_s, self._random)
        connected_before = False
        while self._failure is None:
            try:
                connection = await self._open()
            except (OSError, RpcError) as error:
                is_final = isinstance(error, _FINAL) and not (self._may_move and isinstance(error, WrongShard))
                if is_final and isinstance(error, RpcError):
                    self._fail(error, str(error))
                    return
                self._trouble = error
                await asyncio.sleep(backoff.next_s())
                continue
            self.statistics.reconnects += connected_before
            connected_before = True
            opened_at = loop.time()
            self._connection = connection
            self._answered_at = self._running_s()
            self._ready.set()
            self._tell_connection(is_there=True)
            self._pump()
            try:
                await self._watch(connection)
            finally:
                connection.abort()
                self._connection = None
                self._trouble = connection.cause
                if self._session.in_flight and self._on_sample is not None:
                    self._on_sample(0.0, Unavailable("the connection ended"))
                self._session.on_disconnect()
                self._tell_connection(is_there=False)
            # A server that greets and hangs up must not be called in a tight circle.
            if connection.is_useful or loop.time() - opened_at > self.settings.backoff_max_s:
                backoff.reset()
            else:
                await asyncio.sleep(backoff.next_s())

    def _tell_connection(self, *, is_there: bool) -> None:
        if self._on_connection is not None:
            self._on_connection(is_there)

    async def _open(self) -> RpcConnection:
        """A connection on which the shard has said that it is the right one and where the sessions are."""
        if self._answered_at and self._running_s() - self._answered_at > self.settings.session_window_s:
            self._session.expire()
        async with asyncio.timeout(self.settings.connect_timeout_s):
            connection = await RpcConnection.open(
                self, self.address, tls=self._tls, reply_bytes_max=self.settings.reply_bytes_max
            )
        try:
            await self._meet(connection)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _meet(self, connection: RpcConnection) -> None:
        """Learns who answers, and what the shard still has. Raises ConnectionError, TimeoutError, RpcError."""
        # The replies wait for a commit, and with a slow disk that may take longer than a connection should.
        patience_s = self.settings.silence_timeout_s
        session = self._session
        async with asyncio.timeout(patience_s):
            shard = await self._greet(connection, session.id)
        if self.identity is not None and shard.identity != self.identity:
            raise WrongShard(
                f"the shard at {self.address[0]}:{self.address[1]} is {shard.identity}, not {self.identity}: it was "
                f"restored from a backup or is another; nothing is sent to it"
            )
        self.identity = shard.identity
        restarted = self.epoch is not None and shard.epoch != self.epoch
        if restarted or session.is_behind(shard.last_sequence):
            for tail in list(session.retired):
                async with asyncio.timeout(patience_s):
                    left = await self._greet(connection, tail.session)
                session.resolve(tail, left.last_sequence)
        # Only now: should the connection end before, the next one has to ask for the rest.
        self.epoch = shard.epoch
        session.on_resume(shard.last_sequence, restarted=restarted)

    async def _watch(self, connection: RpcConnection) -> None:
        """Returns when the connection has ended or has been silent for too long."""
        loop = asyncio.get_running_loop()
        limit = self.settings.silence_timeout_s
        silent_since: float | None = None
        while not connection.lost.is_set():
            try:
                async with asyncio.timeout(limit / 4):
                    await connection.lost.wait()
            except TimeoutError:
                if not connection.is_waiting:
                    silent_since = None
                    continue
                silent_since = max(silent_since or loop.time(), connection.received_at)
                if loop.time() - silent_since > limit:
                    connection.cause = TimeoutError(f"no answer for {limit} s")
                    return

    def _fail(self, refusal: RpcError, reason: str) -> None:
        """Nothing can succeed any more: what was sent is unknown, what wasn't is refused."""
        self._failure = self._failure or refusal
        self._coalescer.refuse(refusal)
        self._coalescer.stop()
        for batch in self._session.abandon(reason):
            batch.on_settled(refusal)
        self._room.close(refusal)
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._ready.set()

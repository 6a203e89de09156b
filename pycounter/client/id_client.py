"""Increments under operation ids: for servers that take no sessions, such as a coordinator. For one event loop.

An operation has one id, from its first attempt to its last. What stays unanswered is sent again: its batch three
times, then each operation on its own, then as a replay, until the server answers or may have forgotten the id. Each of
these ways is safe, as the id travels along; and none is taken that isn't: after the window an operation is reported as
unknown, and never sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pycounter.client.framing import Item, Key, Level
from pycounter.client.limit import Limit
from pycounter.client.outcomes import Detail
from pycounter.client.pool import Pool
from pycounter.client.retry import BEFORE_THE_ID, RetryPolicy
from pycounter.client.room import Room
from pycounter.client.settings import ClientSettings
from pycounter.client.statistics import BatchHealth, ClientStatistics
from pycounter.client.unknown_operations import UnknownOperation, UnknownOperations, Watchers
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.errors import DeadlineExceeded, InternalError, RpcError, SessionLost, Unavailable, from_wire

__all__ = ["IdClient"]

_log = logging.getLogger(__name__)

_ID_BYTES = 16
#: Operations of a batch that are sent each on its own at a time.
_SINGLES_MAX = 16
#: A value outside 64 bits comes as a text.
_INTEGER = re.compile(r"-?[0-9]{1,40}")
#: Refusals that look at the request and not at its operations: each of them may go alone.
_TOGETHER_ONLY = frozenset({"too_large", "bad_request"})


class _Operation:
    """One increment, and what became of its attempts."""

    __slots__ = (
        "delta",
        "detail",
        "failure",
        "id",
        "is_ambiguous",
        "is_sent",
        "is_settled",
        "key",
        "level",
        "next_s",
        "replays",
        "reply",
        "sent_s",
        "since",
        "watchers",
    )

    def __init__(self, item: Item, level: Level, operation_id: bytes, reply: asyncio.Future[Any], *, detail: bool):
        self.key, self.delta = item
        self.level: Level = level
        self.detail = detail
        self.id = operation_id
        self.reply = reply
        #: May bytes of it have left?
        self.is_sent = False
        #: An attempt was never answered.
        self.is_ambiguous = False
        self.is_settled = False
        #: What the last attempt ended with.
        self.failure: RpcError = Unavailable("it was never sent: nothing was applied")
        #: When it was first sent: by the machine's uptime, and by the wall clock.
        self.sent_s = 0.0
        self.since = 0.0
        #: Replays so far, and when the next one is due, in the loop's time.
        self.replays = 0
        self.next_s = 0.0
        self.watchers: list[Callable[[], None]] = []


class IdClient:
    """Counts through a server that takes ids, each operation exactly once.

    Args:
        pool: connections to the server, or to any of several that pass ids on to the same shards.
        level: of increments that name none.
        settings: bounds, batches and times.
        policy: how often a batch is sent again.
        name: what the server is called in `unknown`.
        on_unknown: told of operations that stay unknown for ever and whose callers wait no longer.
        clock: time and random numbers.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        level: Level = "durable",
        settings: ClientSettings | None = None,
        policy: RetryPolicy | None = None,
        name: str = "coordinator",
        on_unknown: Callable[[list[UnknownOperation]], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings or ClientSettings()
        self.statistics = ClientStatistics()
        #: Operations that were sent, and of which nobody knows yet whether they counted.
        self.unknown = UnknownOperations(self.pending_unknown)
        self.name = name
        self._pool = pool
        self._level = level
        self._policy = policy or RetryPolicy()
        self._on_unknown = on_unknown or self.unknown.end
        self._clock = clock
        self._random = clock.random()
        self._room = Room(self.settings.pending_operations_max)
        self._gathered: dict[Level, list[_Operation]] = {"durable": [], "applied": []}
        #: Sent, or about to be, and not settled.
        self._pending: dict[bytes, _Operation] = {}
        self._replays: deque[_Operation] = deque()
        #: One more of them is there.
        self._has_replay = asyncio.Event()
        self._batches: set[asyncio.Task[None]] = set()
        self._replayer: asyncio.Task[None] | None = None
        self._timer: asyncio.Handle | None = None
        self._is_due = False
        self._refusal: RpcError | None = None

    # --- counting --------------------------------------------------------------------------------------------------

    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: bool = False,
        timeout_s: float | None = None,
    ) -> int | Detail:
        """Adds to a counter and gives its value after. Errors as `SessionClient.incr`."""
        deadline = asyncio.get_running_loop().time() + (
            self.settings.call_timeout_s if timeout_s is None else timeout_s
        )
        await self._enter(deadline)
        operation = self._add((key, delta), level or self._level, detail=detail)
        try:
            async with asyncio.timeout_at(deadline):
                reply = await operation.reply
        except TimeoutError:
            reply = _late(operation)
            self._leave([operation])
        except asyncio.CancelledError:
            self._leave([operation])
            raise
        if isinstance(reply, RpcError):
            raise reply
        answer: int | Detail = reply
        return answer

    async def apply(
        self, items: Sequence[Item], *, level: Level | None = None, timeout_s: float | None = None
    ) -> list[int | RpcError]:
        """Adds to many counters and gives, for each item, its value after or its error."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.settings.call_timeout_s if timeout_s is None else timeout_s)
        operations: list[_Operation] = []
        try:
            for item in items:
                await self._enter(deadline)
                operations.append(self._add(item, level or self._level, detail=False))
            replies = [operation.reply for operation in operations]
            await asyncio.wait(replies, timeout=max(0.0, deadline - loop.time()))
        except BaseException as error:
            self._leave(operations)
            if isinstance(error, RpcError) and operations:
                return [*map(_late, operations), *[error] * (len(items) - len(operations))]
            raise
        late = [operation for operation in operations if not operation.reply.done()]
        outcomes = [
            _late(operation) if not operation.reply.done() else operation.reply.result() for operation in operations
        ]
        self._leave(late)
        return outcomes

    async def _enter(self, deadline: float) -> None:
        """Waits for room for one operation."""
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        if not self._room.try_enter():
            async with Limit(deadline) as limit:
                limit.is_sent = False
                await self._room.enter(1)

    def _add(self, item: Item, level: Level, *, detail: bool) -> _Operation:
        loop = asyncio.get_running_loop()
        operation = _Operation(item, level, self._clock.random_bytes(_ID_BYTES), loop.create_future(), detail=detail)
        gathered = self._gathered[level]
        gathered.append(operation)
        if not self._batches:
            if self._timer is None or isinstance(self._timer, asyncio.TimerHandle):
                self._cancel_timer()
                self._timer = loop.call_soon(self.flush)
        elif len(gathered) >= self.settings.coalesced_operations_max:
            self._pump()
        elif self._timer is None:
            self._timer = loop.call_later(self.settings.coalesced_delay_s, self.flush)
        return operation

    def _leave(self, operations: list[_Operation]) -> None:
        """Their callers wait no longer. What was never sent is taken back."""
        for operation in operations:
            operation.reply.cancel()
            gathered = self._gathered[operation.level]
            if not operation.is_sent and operation in gathered:
                gathered.remove(operation)
                self._room.leave(1)

    def flush(self) -> None:
        """What was gathered waits no longer."""
        self._cancel_timer()
        self._is_due = True
        self._pump()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pump(self) -> None:
        for level, gathered in self._gathered.items():
            size = self.settings.coalesced_operations_max
            while gathered and (self._is_due or len(gathered) >= size):
                if len(self._batches) >= self.settings.batches_in_flight_max:
                    return
                batch = gathered[:size]
                del gathered[:size]
                task = asyncio.get_running_loop().create_task(self._send(batch, level), name="pycounter batch")
                self._batches.add(task)
                task.add_done_callback(self._on_batch_done)
        self._is_due = False

    def _on_batch_done(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._is_due = self._is_due or not self._batches
        self._pump()

    # --- attempts --------------------------------------------------------------------------------------------------

    async def _send(self, batch: list[_Operation], level: Level) -> None:
        """A batch: together, again together, each on its own, and then as replays."""
        self.statistics.batches += 1
        self.statistics.operations += len(batch)
        for operation in batch:
            self._pending[operation.id] = operation
        pauses = self._policy.pauses(self._random)
        left = await self._attempt(batch, level)
        for _ in range(self._policy.retries):
            if not left:
                return
            await asyncio.sleep(pauses.next_s())
            self.statistics.batches_resent += 1
            self.statistics.operations_resent += len(left)
            left = await self._attempt(left, level)
        if len(left) > 1:
            left = await self._attempt_each(left, level)
        for operation in left:
            self._replay(operation)

    async def _attempt_each(self, operations: list[_Operation], level: Level) -> list[_Operation]:
        left: list[_Operation] = []
        for start in range(0, len(operations), _SINGLES_MAX):
            part = operations[start : start + _SINGLES_MAX]
            for outcome in await asyncio.gather(*(self._attempt([operation], level) for operation in part)):
                left += outcome
        return left

    async def _attempt(self, operations: list[_Operation], level: Level) -> list[_Operation]:
        """One request. Gives those that are to be sent again; the others are settled."""
        operations = [operation for operation in operations if self._may_send(operation)]
        if not operations:
            return []
        sent_before = [operation.is_sent for operation in operations]
        for operation in operations:
            operation.is_sent = True
            operation.sent_s = operation.sent_s or self._clock.running_s()
            operation.since = operation.since or self._clock.wall_s()
        method, params = _request_of(operations, level)
        deadline = asyncio.get_running_loop().time() + self._pool.settings.request_timeout_s
        try:
            said = await self._pool.request(method, *params, deadline=deadline)
        except OSError as error:
            return self._fail(operations, Unavailable(f"the connection ended before the reply: {error}"), "unknown")
        except RpcError as error:
            if error.effect == "nothing":
                # Nothing has left, or nothing of it counts.
                for operation, was_sent in zip(operations, sent_before, strict=True):
                    operation.is_sent = was_sent
            if error.code in _TOGETHER_ONLY and len(operations) > 1:
                return await self._attempt_each(operations, level)
            return self._fail(operations, error, error.effect)
        results = [said] if method == "incr" else said
        if not isinstance(results, list) or len(results) != len(operations):
            return self._fail(operations, InternalError(f"a server answered {method} with nonsense"), "unknown")
        left: list[_Operation] = []
        for operation, result in zip(operations, results, strict=True):
            left += self._take(operation, result)
        return left

    def _may_send(self, operation: _Operation) -> bool:
        if operation.is_settled:
            return False
        if operation.reply.done() and not operation.is_ambiguous:
            self._settle(operation, Unavailable("nobody waits for it: nothing was applied"))
            return False
        if operation.sent_s and self._clock.running_s() - operation.sent_s > self.settings.id_window_s:
            self._give_up(operation, "it was not answered for longer than a shard keeps its id")
            return False
        return True

    def _take(self, operation: _Operation, result: Any) -> list[_Operation]:
        """What a server says of one operation. Gives it if it is to be sent again."""
        value = _value_of(result)
        if value is not None:
            self._settle(operation, _detail_of(result, operation.level) if operation.detail else value)
            return []
        if not isinstance(result, str):
            return self._fail([operation], InternalError("a server answered an increment with nonsense"), "unknown")
        error = from_wire(result)
        return self._fail([operation], error, error.effect)

    def _fail(self, operations: list[_Operation], error: RpcError, effect: str) -> list[_Operation]:
        """An attempt didn't count, or nobody knows. Gives those that are to be sent again."""
        left: list[_Operation] = []
        for operation in operations:
            operation.failure = error
            if effect == "unknown":
                operation.is_ambiguous = True
            if error.retryable or (effect == "unknown" and error.code != "id_expired"):
                left.append(operation)
            elif operation.is_ambiguous and (error.code in BEFORE_THE_ID or error.effect == "unknown"):
                self._give_up(operation, f"an attempt was not answered, and the next was refused: {error}")
            else:
                self._settle(operation, error)
        return left

    def _settle(self, operation: _Operation, outcome: int | Detail | RpcError) -> None:
        if operation.is_settled:
            return
        operation.is_settled = True
        self._pending.pop(operation.id, None)
        self._room.leave(1)
        is_value = not isinstance(outcome, RpcError)
        self.statistics.operations_settled += 1
        self.statistics.record(succeeded=is_value, refused=not is_value)
        if not operation.reply.done():
            operation.reply.set_result(outcome)
        for tell in operation.watchers:
            tell()
        operation.watchers.clear()

    def _give_up(self, operation: _Operation, reason: str) -> None:
        """Nobody will ever know."""
        self.statistics.operations_unknown += 1
        if operation.reply.done():
            self._on_unknown([self._told(operation)])
        self._settle(
            operation,
            SessionLost(f"it is unknown whether {operation.key!r} {operation.delta:+d} counted: {reason}"),
        )

    # --- replay ----------------------------------------------------------------------------------------------------

    def _replay(self, operation: _Operation) -> None:
        """All attempts have failed. If none of them can count, that is an answer; else they go on."""
        if operation.is_settled:
            return
        if not operation.is_ambiguous:
            self._settle(operation, operation.failure)
            return
        settings, now = self.settings, asyncio.get_running_loop().time()
        if operation.replays < settings.replays:
            pause_s = settings.replay_first_s * 2.0**operation.replays
        else:
            pause_s = settings.replay_scheduled_s
        # The last one comes before the shard may forget the id.
        left_s = operation.sent_s + settings.id_window_s - self._clock.running_s()
        operation.next_s = now + max(0.0, min(pause_s, left_s))
        self._replays.append(operation)
        self._has_replay.set()
        if self._replayer is None or self._replayer.done():
            self._replayer = asyncio.get_running_loop().create_task(self._replay_due(), name="pycounter replay")

    async def _replay_due(self) -> None:
        loop = asyncio.get_running_loop()
        while self._replays:
            due = [operation for operation in self._replays if operation.next_s <= loop.time()]
            if not due:
                first = min(operation.next_s for operation in self._replays)
                # One that comes meanwhile may be due sooner.
                self._has_replay.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.01, first - loop.time())):
                        await self._has_replay.wait()
                continue
            due = due[: self.settings.coalesced_operations_max]
            for operation in due:
                self._replays.remove(operation)
                operation.replays += 1
            for level in ("durable", "applied"):
                part = [operation for operation in due if operation.level == level]
                if part:
                    self.statistics.operations_resent += len(part)
                    for operation in await self._attempt(part, part[0].level):
                        self._replay(operation)

    # --- what nobody knows -----------------------------------------------------------------------------------------

    def pending_unknown(self) -> Iterator[tuple[UnknownOperation, Watchers]]:
        """The operations that `unknown` lists, each with those who are told when it is settled."""
        for operation in list(self._pending.values()):
            if operation.is_sent and (operation.is_ambiguous or operation.reply.done()):
                yield self._told(operation), operation.watchers

    def _told(self, operation: _Operation) -> UnknownOperation:
        return UnknownOperation(key=operation.key, delta=operation.delta, shard=self.name, since=operation.since)

    @property
    def health(self) -> BatchHealth:
        """How the batches fare: as `SessionClient.health`."""
        pending, rate = len(self._pending), self.statistics.success_rate
        return BatchHealth(
            queued=self._room.operations - pending,
            pending=pending,
            success_rate=rate,
            is_healthy=pending <= self.settings.healthy_pending_max
            and 1.0 - rate <= self.settings.healthy_failed_share_max,
        )

    # --- the end ---------------------------------------------------------------------------------------------------

    async def close(self, *, timeout_s: float) -> None:
        """Waits for what is not settled. The pool stays.

        Raises:
            SessionLost: not everything was settled in time; the message says how much is unknown.
        """
        refusal = self._refusal = self._refusal or Unavailable("the client is closed: nothing was applied")
        unknown_before = self.statistics.operations_unknown
        self.flush()
        try:
            async with asyncio.timeout(timeout_s):
                await self._room.wait_empty()
        except TimeoutError:
            _log.debug("closing: %d operations are not settled", self._room.operations)
        finally:
            tasks = [*self._batches, *([self._replayer] if self._replayer is not None else [])]
            for task in tasks:
                task.cancel()
            for gathered in self._gathered.values():
                for operation in gathered:
                    self._settle(operation, refusal)
                gathered.clear()
            for operation in list(self._pending.values()):
                if operation.is_sent:
                    self._give_up(operation, "the client was closed")
                else:
                    self._settle(operation, refusal)
            self._room.close(refusal)
            self._cancel_timer()
            await asyncio.gather(*tasks, return_exceptions=True)
        unknown = self.statistics.operations_unknown - unknown_before
        if unknown:
            raise SessionLost(f"closed after {timeout_s} s: it is unknown whether {unknown} operations counted")


def _request_of(operations: list[_Operation], level: Level) -> tuple[str, tuple[object, ...]]:
    if len(operations) == 1:
        (one,) = operations
        options: dict[str, object] = {"id": one.id, "level": level}
        if one.detail:
            options["detail"] = True
        return "incr", (one.key, one.delta, options)
    items = [[operation.key, operation.delta, operation.id] for operation in operations]
    return "incr_many", (items, {"level": level})


def _value_of(result: Any) -> int | None:
    if isinstance(result, dict):
        result = result.get("value")
    if type(result) is int:
        return result
    if isinstance(result, str) and _INTEGER.fullmatch(result):
        return int(result)
    return None


def _detail_of(result: Any, level: Level) -> Detail:
    value = _value_of(result) or 0
    if not isinstance(result, dict):
        return Detail(value, level, 0, exact=False)
    return Detail(value, result.get("level", level), int(result.get("commit", 0)), bool(result.get("exact", False)))


def _late(operation: _Operation) -> Any:
    if operation.reply.done() and not operation.reply.cancelled():
        return operation.reply.result()
    if operation.is_sent:
        return DeadlineExceeded("the time ran out; it was sent and is repeated under its id: don't repeat it")
    return Unavailable("the time ran out before it was sent: nothing was applied")

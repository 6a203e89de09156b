"""Sends what the replay log keeps, until a shard has settled it.

An operation that was never sent goes to whoever serves its counter now. From its first sending on it belongs to that
shard: it is repeated there only, under the same id, and ends as unknown before the shard may have forgotten the id.
That it is about to be sent is on disk before it is, so that this holds through a crash of the coordinator too.

One event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.coordinator.replay_log import Kept, ReplayLog, Sent
from pycounter.coordinator.shard_routes import ShardRoutes
from pycounter.errors import RpcError, Unavailable

__all__ = ["ReplaySettings", "Replayer"]

_log = logging.getLogger(__name__)

ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """Times are seconds."""

    #: Before the first attempt, doubled after each ...
    first_s: float = 1.0
    #: ... of so many. Then it is attempted ...
    tries: int = 5
    #: ... so often.
    scheduled_s: float = 30.0
    attempt_timeout_s: float = 2.0
    #: So long after its first sending an operation is given up; below the shards' window for ids, 2 minutes by default.
    id_window_s: float = 110.0
    #: Attempts at the same time.
    concurrent_max: int = 64


class Replayer:
    """Works on a replay log.

    Args:
        log: the operations.
        routes: the shards.
        serving: the number of the shard that takes the next new operation on a key; raises Unavailable if none can.
        identity: a shard's, by its number; None where it isn't known yet.
        bump: told of each key that is written, when it is sent and when it is settled.
        settings: times.
        clock: makes ids.
    """

    def __init__(
        self,
        log: ReplayLog,
        routes: ShardRoutes,
        *,
        serving: Callable[[bytes], int],
        identity: Callable[[int], str | None],
        bump: Callable[[bytes], object],
        settings: ReplaySettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        #: Since the start: accepted, counted, refused by a shard for good, given up without anybody knowing, and not
        #: accepted for want of room.
        self.accepted = self.replayed = self.refused = self.unknown = self.dropped = 0
        self._log = log
        self._routes = routes
        self._serving = serving
        self._identity = identity
        self._bump = bump
        self._settings = settings or ReplaySettings()
        self._clock = clock
        #: How often each operation was tried.
        self._tries: dict[bytes, int] = {}
        #: When those that aren't under way are due: (the loop's time, id), a heap.
        self._due: list[tuple[float, bytes]] = []
        self._under_way = 0
        #: What brings operations to disk, and what sends them.
        self._keeping: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to send what is there, and reports what damage to the file has left unknown."""
        for operation in self._log.lost:
            self.unknown += 1
            _log.error(
                "nobody knows whether an increment by %d of %r counted (id %s): the replay log was damaged",
                operation.delta,
                operation.key,
                operation.id.hex(),
            )
        for operation in self._log.operations.values():
            self._schedule(operation)
        self._runner = asyncio.get_running_loop().create_task(self._run(), name="pycounter replay")

    async def close(self) -> None:
        """Stops to send. What was accepted and isn't settled is on disk, if that works."""
        await asyncio.gather(*self._keeping)
        tasks = [*self._tasks, *([] if self._runner is None else [self._runner])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._log.close()

    def accept(self, key: bytes, delta: int) -> None:
        """Takes an increment that nobody waits for and no shard could take. It was certainly not sent."""
        if len(self._tries) >= self._log.operations_max:
            self.dropped += 1
            _log.error("an increment by %d of %r is dropped: too many wait for shards already", delta, key)
            return
        self.accepted += 1
        operation = Kept(self._clock.random_bytes(ID_BYTES), key, delta)
        self._tries[operation.id] = 0
        self._begin(self._keep(operation), self._keeping)

    def status(self) -> dict[str, int | str]:
        """Figures by name; `failure` is why the disk takes nothing, empty if it does."""
        return {
            "waiting": len(self._log.operations),
            "accepted": self.accepted,
            "replayed": self.replayed,
            "refused": self.refused,
            "unknown": self.unknown,
            "dropped": self.dropped,
            "failure": self._log.failure,
        }

    # --- one operation -----------------------------------------------------------------------------------------------

    async def _keep(self, operation: Kept) -> None:
        await self._log.accept(operation)
        self._schedule(operation)

    def _schedule(self, operation: Kept) -> None:
        """The next attempt: soon at first, each time later, and at last in a fixed rhythm."""
        tries = self._tries.setdefault(operation.id, 0)
        settings = self._settings
        pause = (
            min(settings.first_s * 2.0**tries, settings.scheduled_s) if tries < settings.tries else settings.scheduled_s
        )
        heapq.heappush(self._due, (asyncio.get_running_loop().time() + pause, operation.id))
        self._work.set()

    async def _attempt(self, operation: Kept) -> None:
        try:
            await self._send(operation)
        finally:
            self._under_way -= 1
            if operation.id in self._tries:
                self._tries[operation.id] += 1
                self._schedule(operation)
            self._work.set()

    async def _send(self, operation: Kept) -> None:
        was_sent = operation.sent is not None
        shard = self._shard_of(operation)
        if shard is None:
            return
        sent = operation.sent
        if sent is None:
            try:
                now = await self._routes.ask_time_ms(shard, timeout_s=self._settings.attempt_timeout_s)
            except RpcError:
                return
            identity = self._identity(shard)
            if now is None or identity is None:
                return
            sent = Sent(self._routes.shards[shard].name, identity, now)
            if not await self._log.note_sent(operation, sent):
                # Sent now, nobody would know of it after a crash.
                operation.sent = None
                return
        elif await self._is_over(operation, sent, shard):
            return
        self._bump(operation.key)
        try:
            await self._routes.shards[shard].call(
                "incr",
                operation.key,
                operation.delta,
                {"id": operation.id, "born": sent.born},
                timeout_s=self._settings.attempt_timeout_s,
            )
        except RpcError as error:
            await self._take_refusal(operation, error, was_sent=was_sent)
        else:
            self.replayed += 1
            await self._end(operation)
        finally:
            self._bump(operation.key)

    def _shard_of(self, operation: Kept) -> int | None:
        """Where it goes; None: nowhere now."""
        if operation.sent is None:
            try:
                return self._serving(operation.key)
            except Unavailable:
                return None
        for number, shard in enumerate(self._routes.shards):
            if shard.name == operation.sent.shard:
                return number
        return None

    async def _is_over(self, operation: Kept, sent: Sent, shard: int) -> bool:
        """Gives up an operation that nobody can settle any more."""
        identity, now = self._identity(shard), self._routes.time_ms(shard)
        if identity is not None and identity != sent.identity:
            await self._give_up(operation, f"{sent.shard} is another shard now")
        elif now is not None and now - sent.born > self._settings.id_window_s * 1000:
            await self._give_up(operation, f"{sent.shard} may have forgotten its id")
        else:
            return False
        return True

    async def _take_refusal(self, operation: Kept, error: RpcError, *, was_sent: bool) -> None:
        if error.code == "id_expired" or (was_sent and error.code == "wrong_shard"):
            await self._give_up(operation, str(error))
        elif error.effect == "unknown":
            return
        elif error.retryable or error.code in {"unauthenticated", "forbidden", "wrong_shard"}:
            if not was_sent:
                # Its only attempt was refused, so it may go elsewhere.
                await self._log.note_unsent(operation)
        else:
            self.refused += 1
            _log.error("an increment by %d of %r is refused: %s", operation.delta, operation.key, error)
            await self._end(operation)

    async def _give_up(self, operation: Kept, reason: str) -> None:
        self.unknown += 1
        _log.error(
            "nobody knows whether an increment by %d of %r counted (id %s): %s",
            operation.delta,
            operation.key,
            operation.id.hex(),
            reason,
        )
        await self._end(operation)

    async def _end(self, operation: Kept) -> None:
        self._tries.pop(operation.id, None)
        await self._log.settle(operation)

    # --- all of them -------------------------------------------------------------------------------------------------

    @staticmethod
    def _begin(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._work.clear()
            while self._due and self._due[0][0] <= loop.time() and self._under_way < self._settings.concurrent_max:
                _, number = heapq.heappop(self._due)
                if (operation := self._log.operations.get(number)) is not None:
                    self._under_way += 1
                    self._begin(self._attempt(operation), self._tasks)
            is_full = self._under_way >= self._settings.concurrent_max
            wait = None if is_full or not self._due else max(0.0, self._due[0][0] - loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._work.wait()

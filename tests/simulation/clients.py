"""Clients of one shard: callers that count, read, drain, give up and come again, as the seed says."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pycounter.client import ClientSettings, SessionClient
from pycounter.clock import Clock
from pycounter.errors import AlreadySettled, CounterOverflow, RpcError, SessionLost
from tests.simulation.ledger import Ledger, Level, Operation, Read, Violation
from tests.simulation.network import calls_from
from tests.simulation.shard_host import ShardHost
from tests.simulation.virtual_loop import VirtualLoop

#: Attempts of a caller that repeats its operation under the same id.
ATTEMPTS_MAX = 5
KINDS = (
    "incr",
    "apply",
    "get",
    "total",
    "incr_with_id",
    "incr_bare",
    "drain",
    "drain_with_id",
    "flush",
    "overflow",
)
#: With no trouble left, everything that anybody waits for has ended after this. Callers have a minute, and the end of a
#: connection may be noticed after another.
PATIENCE_S = 300.0


class SimulatedClock(Clock):
    """The loop's time, and the seed's numbers."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        self._loop = loop
        self._chance = chance

    def running_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return 1.7e9 + self._loop.time()

    def random(self) -> random.Random:
        return random.Random(self._chance.getrandbits(64))

    def random_bytes(self, count: int) -> bytes:
        return self._chance.randbytes(count)


@dataclass
class Work:
    """What callers do: weights of the kinds of calls, and chances."""

    callers: int = 3
    calls: int = 5
    pause_s: float = 0.3
    incr: float = 6
    apply: float = 3
    get: float = 3
    total: float = 1
    incr_with_id: float = 3
    incr_bare: float = 1
    drain: float = 1
    drain_with_id: float = 0.5
    flush: float = 0.5
    overflow: float = 0.3
    applied: float = 0.3
    cancelled: float = 0.1
    hurried: float = 0.15
    #: May the shard forget a session, or a part of it?
    may_lose_sessions: bool = False


def is_refusal(error: RpcError) -> bool:
    """Does it say that nothing was applied, now or before?"""
    return error.effect == "nothing"


class SimulatedClient:
    """One client's process: a `SessionClient` and callers that share it."""

    def __init__(
        self,
        loop: VirtualLoop,
        name: str,
        shard: ShardHost,
        chance: random.Random,
        ledger: Ledger,
        work: Work,
        settings: ClientSettings,
        log: Callable[..., None],
    ) -> None:
        self.loop = loop
        self.name = name
        self.chance = chance
        self.ledger = ledger
        self.work = work
        self.log = log
        self.is_killed = False
        self.applied_unknown = 0
        self.client = SessionClient(
            *shard.address,
            settings=settings,
            on_lost_tail=self._on_lost_tail,
            clock=SimulatedClock(loop, random.Random(chance.getrandbits(64))),
        )
        self._keys = 0
        self._callers: list[asyncio.Task[None]] = []
        #: Keys that all clients share, and of each kind the one in use.
        self.key_of: Callable[[str], str]

    def _on_lost_tail(self, tail: Any) -> None:
        self.log("%s: %d operations were lost", self.name, tail.count)
        for key, delta in tail.operations:
            self.ledger.lose(key, delta)

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        with calls_from(self.name):
            self._callers.append(self.loop.create_task(self._connect(), name=f"{self.name} connects"))
            for number in range(self.work.callers):
                caller = self._caller(f"{self.name}.{number}")
                self._callers.append(self.loop.create_task(caller, name=f"{self.name}.{number}"))

    async def _connect(self) -> None:
        try:
            await self.client.connect()
        except RpcError as error:
            self.log("%s: not connected yet: %s", self.name, error)

    async def wait(self) -> None:
        """Until all callers are done, and everything that they began is settled. A broken promise is raised."""
        for caller in self._callers:
            await asyncio.wait([caller])
            if not caller.cancelled():
                caller.result()
            elif not self.is_killed:
                raise Violation(f"{caller.get_name()} was cancelled, and nobody did that")
        if not self.is_killed:
            while self.client.unsettled:
                await asyncio.sleep(0.05)
            await self.client.flush(timeout_s=PATIENCE_S)

    def kill(self) -> None:
        """The process is gone; its endpoints have vanished already."""
        self.is_killed = True
        for caller in self._callers:
            caller.cancel()
        with calls_from(self.name):
            self._callers.append(self.loop.create_task(self._end(), name=f"{self.name} ends"))

    async def _end(self) -> None:
        """Nothing that it does can be seen any more: this only ends its tasks."""
        with contextlib.suppress(RpcError):
            await self.client.close(timeout_s=0.001)

    async def close(self) -> None:
        await self.client.close()

    # --- calls -----------------------------------------------------------------------------------------------------

    async def _caller(self, who: str) -> None:
        chance, work = self.chance, self.work
        weights = [getattr(work, kind) for kind in KINDS]
        try:
            for _ in range(work.calls):
                await asyncio.sleep(work.pause_s * chance.random() * chance.random())
                kind = chance.choices(KINDS, weights)[0]
                self.log("%s: %s", who, kind)
                await getattr(self, f"_{kind}")(who)
        except asyncio.CancelledError:
            if not self.is_killed:
                raise

    async def _limited(self, call: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        """A call, which may have little time, or be cancelled by its caller."""
        chance = self.chance
        if chance.random() < self.work.hurried:
            options["timeout_s"] = chance.choice([0.0, 0.001, 0.003, 0.01, 0.1, 1.0])
        if chance.random() >= self.work.cancelled:
            return await call(*args, **options)
        task = asyncio.ensure_future(call(*args, **options))
        self.loop.call_later(chance.choice([0.0, 0.0005, 0.002, 0.01, 0.5]) * chance.random(), task.cancel)
        # Its own cancellation is the caller's; it reaches the task.
        return await task

    def _level(self) -> Level:
        return "applied" if self.chance.random() < self.work.applied else "durable"

    async def _incr(self, who: str) -> None:
        level = self._level()
        operation = self.ledger.begin(who, self.key_of(level), level)
        if self.chance.random() < 0.3:
            await self._count(operation, self._incr_detail(operation))
        else:
            call = self._limited(self.client.incr, operation.key, operation.delta, level=level)
            await self._count(operation, call)

    async def _incr_detail(self, operation: Operation) -> int:
        detail = await self._limited(
            self.client.incr, operation.key, operation.delta, level=operation.level, detail=True
        )
        if operation.level == "durable" and detail.level != "durable":
            raise Violation(f"{operation} was answered at {detail.level}")
        return detail.value

    async def _count(self, operation: Operation, call: Awaitable[int]) -> None:
        try:
            value = await call
        except asyncio.CancelledError:
            self.ledger.give_up(operation)
            if self.is_killed:
                raise
        except RpcError as error:
            self._failed(operation, error)
        else:
            self.log("%s: %d", operation, value)
            self.ledger.acknowledge(operation, value, operation.level)

    def _failed(self, operation: Operation, error: RpcError) -> None:
        self.log("%s: %r", operation, error)
        if isinstance(error, SessionLost) and not self.work.may_lose_sessions and not self.is_killed:
            raise Violation(f"{operation}: a shard that forgets nothing lost a session: {error}")
        if isinstance(error, AlreadySettled):
            self.ledger.acknowledge(operation, None, "durable")
        elif is_refusal(error):
            self.ledger.refuse(operation)
        else:
            self.ledger.give_up(operation)

    async def _apply(self, who: str) -> None:
        level = self._level()
        count = self.chance.randint(1, 6)
        operations = [self.ledger.begin(who, self.key_of(level), level) for _ in range(count)]
        items = [(operation.key, operation.delta) for operation in operations]
        try:
            results = await self._limited(self.client.apply, items, level=level)
        except asyncio.CancelledError:
            for operation in operations:
                self.ledger.give_up(operation)
            if self.is_killed:
                raise
            return
        except RpcError as error:
            for operation in operations:
                self._failed(operation, error)
            return
        if len(results) != count:
            raise Violation(f"{who}: {len(results)} results of {count} operations")
        for operation, result in zip(operations, results, strict=True):
            if isinstance(result, RpcError):
                self._failed(operation, result)
            else:
                self.ledger.acknowledge(operation, result, level)

    async def _get(self, who: str) -> None:
        read = self.ledger.begin_read(who, self.key_of("any"))
        value = await self._ask(who, "get", read.key)
        if value is not None:
            self.ledger.end_read(read, value)

    async def _total(self, who: str) -> None:
        read = self.ledger.begin_read(who, self.key_of("any"))
        said = await self._ask(who, "total", read.key)
        if said is not None:
            if not said["exact"] or said["missing"] or sum(said["partials"].values()) != said["total"]:
                raise Violation(f"{who}: total of {read.key} is {said}")
            self.ledger.end_read(read, said["total"])

    async def _ask(self, who: str, *request: Any) -> Any:
        """Something that changes nothing; None if it failed."""
        try:
            answer = await self._limited(self.client.call, *request)
        except asyncio.CancelledError:
            if self.is_killed:
                raise
            return None
        except RpcError as error:
            self.log("%s: %s: %r", who, request, error)
            return None
        self.log("%s: %s: %r", who, request, answer)
        return answer

    async def _flush(self, who: str) -> None:
        try:
            await self._limited(self.client.flush)
        except asyncio.CancelledError:
            if self.is_killed:
                raise
        except RpcError as error:
            self.log("%s: flush: %r", who, error)

    async def _incr_bare(self, who: str) -> None:
        """Nothing protects it: it is sent once."""
        operation = self.ledger.begin(who, self.key_of("durable"), "durable")
        await self._count(operation, self._limited(self.client.call, "incr", operation.key, operation.delta))

    async def _incr_with_id(self, who: str) -> None:
        operation = self.ledger.begin(who, self.key_of("durable"), "durable")
        options = {"id": self.chance.randbytes(8)}
        await self._insist(who, ("incr", operation.key, operation.delta, options), operation)

    async def _drain_with_id(self, who: str) -> None:
        drain = self.ledger.begin_drain(who, self.key_of("drained"))
        await self._insist(who, ("drain", drain.key, {"id": self.chance.randbytes(8)}), drain)

    async def _drain(self, who: str) -> None:
        drain = self.ledger.begin_drain(who, self.key_of("drained"))
        try:
            amount = await self._limited(self.client.call, "drain", drain.key)
        except asyncio.CancelledError:
            self.ledger.end_drain(drain, None)
            if self.is_killed:
                raise
        except RpcError as error:
            self.log("%s: drain: %r", who, error)
            if not is_refusal(error):
                self.ledger.end_drain(drain, None)
        else:
            self.ledger.end_drain(drain, amount)

    async def _insist(self, who: str, request: tuple[Any, ...], what: Operation | Read) -> None:
        """Repeats a change under its id until it is answered, and sometimes then: the answer must stay the same."""
        answer: int | None = None
        is_open = False
        try:
            for _ in range(ATTEMPTS_MAX):
                try:
                    result = await self._limited(self.client.call, *request)
                except RpcError as error:
                    self.log("%s: %s: %r", who, request, error)
                    if answer is not None and error.code in {"overflow", "bad_request", "internal"}:
                        raise Violation(f"{who}: {request} was answered {answer}, and now {error!r}") from error
                    # A refusal says nothing about the attempts before it.
                    is_open = is_open or not is_refusal(error)
                    if not error.retryable or (not is_open and self.chance.random() < 0.5):
                        # Nothing was applied, it says: the caller may take it at its word.
                        break
                    await asyncio.sleep(self.chance.random())
                    continue
                self.log("%s: %s: %r", who, request, result)
                if answer is not None and answer != result:
                    raise Violation(f"{who}: {request} was answered {answer}, and now {result}")
                if answer is None:
                    answer = result
                    self._answered(what, result)
                if self.chance.random() < 0.7:
                    return
        except asyncio.CancelledError:
            is_open = True
            if self.is_killed:
                raise
        finally:
            if answer is None:
                self._unanswered(what, is_open=is_open)

    def _answered(self, what: Operation | Read, result: int) -> None:
        if isinstance(what, Operation):
            self.ledger.acknowledge(what, result, "durable")
        else:
            self.ledger.end_drain(what, result)

    def _unanswered(self, what: Operation | Read, *, is_open: bool) -> None:
        if isinstance(what, Read):
            self.ledger.end_drain(what, None)
        elif is_open:
            self.ledger.give_up(what)
        else:
            self.ledger.refuse(what)

    async def _overflow(self, who: str) -> None:
        """An operation that is refused, each time, and uses its number."""
        key = self.key_of("full")
        try:
            await self._limited(self.client.incr, key, (1 << 63) - 1)
        except asyncio.CancelledError:
            if self.is_killed:
                raise
        except CounterOverflow as error:
            self.log("%s: %r", who, error)
        except RpcError as error:
            self.log("%s: %r", who, error)

"""Callers in one client's process: they count, read, drain, give up and come again, as the seed says.

What they call is the subclasses' business; how they call it, and what they tell the ledger, is the same for all.
"""

import abc
import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pycounter.clock import Clock
from pycounter.errors import AlreadySettled, RpcError, SessionLost
from tests.simulation.ledger import Ledger, Level, Operation, Violation
from tests.simulation.network import calls_from
from tests.simulation.virtual_loop import VirtualLoop

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
    """What callers do, and how impatient they are: chances."""

    callers: int = 3
    calls: int = 5
    pause_s: float = 0.3
    #: Weights of the kinds of calls.
    kinds: dict[str, float] = field(default_factory=dict)
    applied: float = 0.3
    cancelled: float = 0.1
    hurried: float = 0.15
    #: May a shard forget a session, or a part of it?
    may_lose_sessions: bool = False


def is_refusal(error: RpcError) -> bool:
    """Does it say that nothing was applied, now or before?"""
    return error.effect == "nothing"


class Callers(abc.ABC):
    """One client's process. Each kind of call is a method `_kind(who)`."""

    #: With the weights that they have unless the seed says something else.
    KINDS: ClassVar[dict[str, float]]
    #: Is there one shard only, so that the value after an increment is the whole counter?
    is_alone: ClassVar[bool] = False
    #: Has `incr` and what else the subclasses call.
    client: Any

    def __init__(
        self,
        loop: VirtualLoop,
        name: str,
        chance: random.Random,
        ledger: Ledger,
        work: Work,
        key_of: Callable[[str], str],
        log: Callable[..., None],
    ) -> None:
        self.loop = loop
        self.name = name
        self.chance = chance
        self.ledger = ledger
        self.work = work
        #: A counter of a kind: `applied` and `durable` ones are counted at, `any` are read, `drained` are emptied too.
        self.key_of = key_of
        self.log = log
        self.clock = SimulatedClock(loop, random.Random(chance.getrandbits(64)))
        self.is_killed = False
        self._callers: list[asyncio.Task[None]] = []

    def _on_lost_tail(self, tail: Any) -> None:
        self.log("%s: %d operations were lost", self.name, tail.count)
        for key, delta in tail.operations:
            self.ledger.lose(key if isinstance(key, str) else key.decode(), delta)

    # --- what the client does --------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def _connect(self) -> None:
        """Begins to connect; it may go on in the background."""

    @abc.abstractmethod
    async def _settle(self) -> None:
        """Waits until everything that was begun is settled."""

    @abc.abstractmethod
    async def close(self, *, timeout_s: float | None = None) -> None:
        """Closes the client. Raises SessionLost."""

    @property
    @abc.abstractmethod
    def operations_unknown(self) -> int:
        """How many the client says nobody will ever know of."""

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        with calls_from(self.name):
            self._callers.append(self.loop.create_task(self._begin(), name=f"{self.name} begins"))

    async def _begin(self) -> None:
        try:
            await self._connect()
        except RpcError as error:
            self.log("%s: not connected yet: %s", self.name, error)
        for number in range(self.work.callers):
            caller = self._caller(f"{self.name}.{number}")
            self._callers.append(self.loop.create_task(caller, name=f"{self.name}.{number}"))

    async def wait(self) -> None:
        """Until all callers are done, and everything that they began is settled. A broken promise is raised."""
        for caller in self._callers:
            await asyncio.wait([caller])
            if not caller.cancelled():
                caller.result()
            elif not self.is_killed:
                raise Violation(f"{caller.get_name()} was cancelled, and nobody did that")
        if not self.is_killed:
            await self._settle()

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
            await self.close(timeout_s=0.001)

    # --- calls -----------------------------------------------------------------------------------------------------

    async def _caller(self, who: str) -> None:
        chance, work = self.chance, self.work
        try:
            for _ in range(work.calls):
                await asyncio.sleep(work.pause_s * chance.random() * chance.random())
                kind = chance.choices(list(work.kinds), list(work.kinds.values()))[0]
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
            self.ledger.acknowledge(operation, value, operation.level, is_whole=self.is_alone)

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

    async def _count_many(self, who: str, call: Callable[..., Awaitable[list[Any]]]) -> None:
        """Several increments in one call."""
        level = self._level()
        count = self.chance.randint(1, 6)
        operations = [self.ledger.begin(who, self.key_of(level), level) for _ in range(count)]
        items = [(operation.key, operation.delta) for operation in operations]
        try:
            results = await self._limited(call, items, level=level)
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
                self.log("%s: %d", operation, result)
                self.ledger.acknowledge(operation, result, level, is_whole=self.is_alone)

    async def _ask(self, who: str, call: Callable[..., Awaitable[Any]], *request: Any, **options: Any) -> Any:
        """Something that changes nothing; None if it failed."""
        try:
            answer = await self._limited(call, *request, **options)
        except asyncio.CancelledError:
            if self.is_killed:
                raise
            return None
        except RpcError as error:
            self.log("%s: %s %s: %r", who, request, options, error)
            return None
        self.log("%s: %s %s: %r", who, request, options, answer)
        return answer

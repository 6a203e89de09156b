"""One simulation from its seed to its verdict."""

import abc
import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pycounter.client import SessionClient
from tests.simulation.callers import PATIENCE_S, Callers, SimulatedClock
from tests.simulation.coordinator_host import CoordinatorHost
from tests.simulation.ledger import Ledger, Violation, client_of
from tests.simulation.network import Network, Weather, calls_from
from tests.simulation.shard_host import ShardHost
from tests.simulation.trouble import Plan, Trouble
from tests.simulation.virtual_loop import BEGIN_S, Stuck, VirtualLoop

EVENTS_MAX = 150_000
#: Counters of each kind that are in use at the same time.
COUNTERS = 3


@dataclass
class Report:
    """What a simulation was like."""

    seed: int
    events: int = 0
    virtual_s: float = 0.0
    acknowledged: int = 0
    reads: int = 0
    unknown: int = 0
    refused: int = 0
    lost: int = 0
    kills: int = 0
    cuts: int = 0
    digest: str = ""
    troubles: dict[str, int] = field(default_factory=dict)


class _Ear(logging.Handler):
    """Hears what the product says."""

    def __init__(self, world: "World") -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.log("log: %s", record.getMessage())
        if record.levelno >= logging.ERROR:
            self._world.loop.problems.append(f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")


class World(abc.ABC):
    """Everything that there is, and its history.

    Args:
        seed: decides everything.
        is_told: keep the history, to be printed.
    """

    def __init__(self, seed: int, *, is_told: bool = False) -> None:
        self.seed = seed
        self._chance = random.Random(seed)
        self.history: list[str] = []
        self._is_told = is_told
        self._hash = hashlib.blake2b(digest_size=16)
        self.loop = VirtualLoop(self.part(), EVENTS_MAX)
        self.ledger = Ledger()
        self.shards: list[ShardHost] = []
        self.coordinators: list[CoordinatorHost] = []
        self.clients: Sequence[Callers] = []
        self.plan = Plan()
        self.network = Network(self.loop, self.part(), Weather(), self.log)
        self._keys = Keys(self.part(), self.ledger)
        chance = self.part()
        with self._running():
            self._make(chance)
        self.loop.on_advance = self._set_clocks
        self.trouble = Trouble(self, self.part())

    @abc.abstractmethod
    def _make(self, chance: random.Random) -> None:
        """Makes hosts and clients."""

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Things are made as if the loop ran."""
        asyncio._set_running_loop(self.loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def part(self) -> random.Random:
        """Numbers for one part of the world, so that more of them in one part change no other."""
        return random.Random(self._chance.getrandbits(64))

    def log(self, form: str, *values: Any) -> None:
        line = f"{self.loop.time() - BEGIN_S:10.6f}  {form % values if values else form}"
        self._hash.update(line.encode())
        if self._is_told:
            self.history.append(line)

    @property
    def _hosts(self) -> list[ShardHost | CoordinatorHost]:
        return [*self.shards, *self.coordinators]

    def _set_clocks(self, now: float) -> None:
        for shard in self.shards:
            shard.disk.set_clock(now - BEGIN_S)

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Runs to the end.

        Raises:
            Violation: a promise was broken.
            Stuck: somebody waits for ever.
        """
        loop = self.loop
        try:
            with self._hearing():
                loop.run_until_complete(self._main())
            if left := [task for task in asyncio.all_tasks(loop) if not task.done()]:
                raise Violation(f"tasks are left: {left}")
            self._check_problems()
        finally:
            self._abandon()
        return self._finish()

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """What the product logs belongs to the history; an error there is one that nobody caught."""
        logger = logging.getLogger("pycounter")
        handler = _Ear(self)
        before = logger.propagate
        logger.addHandler(handler)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = before

    def _abandon(self) -> None:
        """Ends what is left, so that one broken world doesn't talk into the next."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.loop.end()

    def _check_problems(self) -> None:
        if self.loop.problems:
            raise Violation(f"nobody caught: {self.loop.problems[0]}")

    def _finish(self) -> Report:
        ledger = self.ledger
        return Report(
            self.seed,
            events=self.loop.events,
            virtual_s=self.loop.time() - BEGIN_S,
            acknowledged=ledger.acknowledged,
            reads=ledger.reads,
            unknown=ledger.unknown,
            refused=ledger.refused,
            lost=ledger.lost,
            kills=sum(host.kills for host in self._hosts),
            cuts=self.network.cuts,
            digest=self._hash.hexdigest(),
            troubles=self.trouble.counts,
        )

    # --- one history -----------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        for host in self._hosts:
            host.start()
        for client in self.clients:
            client.start()
        self.trouble.start()
        await asyncio.sleep(self.plan.within_s)
        self.trouble.end()
        for client in self.clients:
            await within(PATIENCE_S, f"{client.name} is not done")(client.wait())
        self._check_problems()
        for client in self.clients:
            if not client.is_killed:
                await within(PATIENCE_S, f"{client.name} is not closed")(client.close())
        await self._end_coordinators()
        inside = await within(PATIENCE_S, "the last reads")(self._read_all())
        self._check_applied(inside)
        for shard in self.shards:
            shard.kill("to see what is left", power=True)
            shard.start()
        if inside != await within(PATIENCE_S, "the very last reads")(self._read_all()):
            raise Violation("what was read at the end did not outlast a power failure")
        for shard in self.shards:
            shard.kill("that was it")

    async def _end_coordinators(self) -> None:
        for coordinator in self.coordinators:
            await within(PATIENCE_S, f"{coordinator.name} keeps operations")(coordinator.settled())
            coordinator.kill("nobody needs it any more")
            await within(PATIENCE_S, f"{coordinator.name} doesn't end")(coordinator.ended())

    async def _read_all(self) -> dict[str, int]:
        """The operations in each counter, over all shards, which are checked."""
        values = dict.fromkeys(self.ledger.counters, 0)
        for shard in self.shards:
            with calls_from("auditor"):
                async with SessionClient(*shard.address, clock=SimulatedClock(self.loop, self.part())) as auditor:
                    for key in values:
                        values[key] += await auditor.call("get", key)
        return {key: self.ledger.settle(key, value) for key, value in values.items()}

    def _check_applied(self, inside: dict[str, int]) -> None:
        """What was acknowledged at `applied` and is gone was reported, where there was anybody left to report it."""
        missing = [
            operation for key, places in inside.items() for operation in self.ledger.missing_applied(key, places)
        ]
        for client in self.clients:
            own = [operation for operation in missing if client_of(operation.who) == client.name]
            if own and not client.is_killed and len(own) > client.operations_unknown:
                raise Violation(f"lost, and nobody was told: {', '.join(map(str, own))}")


class Keys:
    """Which counters are used."""

    def __init__(self, chance: random.Random, ledger: Ledger) -> None:
        self._chance = chance
        self._ledger = ledger
        self._names = 0
        self._in_use: dict[str, list[str]] = {}

    def of(self, kind: str) -> str:
        """A counter: `applied` and `durable` ones are counted at, `any` are read, `drained` ones are emptied too."""
        chance = self._chance
        if kind == "full":
            return "full"
        if kind == "any":
            keys = [key for keys in self._in_use.values() for key in keys]
            return chance.choice(keys) if keys else "never"
        if kind == "drained" or chance.random() < 0.2:
            return self._fresh("drained", 1)
        return self._fresh("counter", COUNTERS)

    def _fresh(self, kind: str, count: int) -> str:
        """One of so many counters of a kind; a full one is replaced."""
        keys = self._in_use.setdefault(kind, [])
        place = self._chance.randrange(count)
        if place < len(keys) and not self._ledger.is_full(keys[place]):
            return keys[place]
        self._names += 1
        key = f"{kind}-{self._names}"
        if place >= len(keys):
            keys.append(key)
        else:
            keys[place] = key
        return key


def within(patience_s: float, what: str) -> Callable[[Awaitable[Any]], Awaitable[Any]]:
    """Whoever waits longer waits for ever."""

    async def wait(awaited: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(patience_s):
                return await awaited
        except TimeoutError as error:
            raise Stuck(f"{what}: still not after {patience_s:g} s without any trouble") from error

    return wait

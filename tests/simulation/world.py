"""One simulation from its seed to its verdict."""

import asyncio
import gc
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pycounter.client import ClientSettings, SessionClient
from pycounter.errors import RpcError
from tests.simulation.clients import KINDS as WORK_KINDS
from tests.simulation.clients import PATIENCE_S, SimulatedClient, SimulatedClock, Work
from tests.simulation.ledger import Ledger, Violation
from tests.simulation.network import Network, Weather, calls_from
from tests.simulation.shard_host import DiskWeather, ShardHost
from tests.simulation.trouble import KINDS as TROUBLE_KINDS
from tests.simulation.trouble import Plan, Trouble
from tests.simulation.virtual_loop import BEGIN_S, Stuck, VirtualLoop

EVENTS_MAX = 150_000
COUNTERS = 3
#: Of a shard that soon forgets sessions.
SESSION_WINDOW_S = 6.0
#: The client gives up sooner: by more than an answer can be old when it comes, which silence bounds.
CLIENT_WINDOW_S = 2.0


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
    resent: int = 0
    renewed: int = 0
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


class World:
    """Everything that there is, and its history.

    Args:
        seed: decides everything.
        is_told: keep the history, to be printed.
    """

    def __init__(self, seed: int, *, is_told: bool = False) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.history: list[str] = []
        self._is_told = is_told
        self._hash = hashlib.blake2b(digest_size=16)
        self.loop = VirtualLoop(self.part(), EVENTS_MAX)
        self.ledger = Ledger()
        self.report = Report(seed)

    def part(self) -> random.Random:
        """Numbers for one part of the world, so that more of them in one part change no other."""
        return random.Random(self.chance.getrandbits(64))

    def log(self, form: str, *values: Any) -> None:
        line = f"{self.loop.time() - BEGIN_S:10.6f}  {form % values if values else form}"
        self._hash.update(line.encode())
        if self._is_told:
            self.history.append(line)

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
        loop = self.loop
        for task in asyncio.all_tasks(loop):
            task.cancel()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.end()

    async def _main(self) -> None:
        raise NotImplementedError

    def _check_problems(self) -> None:
        if self.loop.problems:
            raise Violation(f"nobody caught: {self.loop.problems[0]}")

    def _finish(self) -> Report:
        report, ledger = self.report, self.ledger
        report.events = self.loop.events
        report.virtual_s = self.loop.time() - BEGIN_S
        report.acknowledged, report.reads = ledger.acknowledged, ledger.reads
        report.unknown, report.refused, report.lost = ledger.unknown, ledger.refused, ledger.lost
        report.digest = self._hash.hexdigest()
        return report


def within(patience_s: float, what: str) -> Callable[[Awaitable[Any]], Awaitable[Any]]:
    """Whoever waits longer waits for ever."""

    async def wait(awaited: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(patience_s):
                return await awaited
        except TimeoutError as error:
            raise Stuck(f"{what}: still not after {patience_s:g} s without any trouble") from error

    return wait


def thin_out(weights: Work | Plan, kinds: tuple[str, ...], chance: random.Random) -> None:
    """Leaves out some kinds: what they would bring is found sooner when others are not in the way."""
    if chance.random() < 0.3:
        return
    kept = [kind for kind in kinds if chance.random() < 0.5] or [chance.choice(kinds)]
    for kind in kinds:
        if kind not in kept:
            setattr(weights, kind, 0.0)


def keep_only(weights: Work | Plan, kinds: tuple[str, ...], *kept: str) -> None:
    """Leaves out all other kinds."""
    for kind in kinds:
        if kind not in kept:
            setattr(weights, kind, 0.0)


class ShardWorld(World):
    """Session clients of one shard."""

    def __init__(self, seed: int, *, is_told: bool = False) -> None:
        super().__init__(seed, is_told=is_told)
        chance = self.part()
        calls = chance.randint(2, 8)
        self.forgets = chance.random() < 0.2
        within_s = 20.0 if self.forgets else chance.choice([0.3, 3.0, 8.0])
        self.work = Work(
            callers=chance.choice([1, 2, 4, 10]),
            calls=calls,
            pause_s=within_s / calls * chance.choice([0.1, 1.0, 4.0]),
            applied=chance.choice([0.0, 0.3, 1.0]),
            cancelled=chance.choice([0.0, 0.1, 0.4]),
            hurried=chance.choice([0.0, 0.1, 0.4]),
        )
        self.plan = Plan(events=chance.choice([0, 2, 4, 8]), within_s=within_s)
        self._narrow_down(chance)
        if self.forgets:
            self.plan.lasts_s = 15.0
        self.work.may_lose_sessions = self.forgets or self.work.applied > 0
        weather = Weather(
            latency_s=chance.choice([0.00005, 0.001, 0.02]),
            jitter_s=chance.choice([0.0001, 0.002, 0.05]),
            split=chance.choice([0.0, 0.2, 0.7]),
            loss=chance.choice([0.0, 0.02, 0.2]),
            window=chance.choice([40, 400, 64 * 1024]),
        )
        self.network = Network(self.loop, self.part(), weather, self.log)
        # A shard that is often overloaded; it must have room for one batch.
        self.is_narrow = chance.random() < 0.3
        settings: dict[str, Any] = {"dirty_counters_max": 4 if self.is_narrow else 1_048_576}
        if self.forgets:
            settings["session_window_s"] = SESSION_WINDOW_S
        self.shard = ShardHost(self.loop, self.network, "shard-0", self.part(), log=self.log, settings=settings)
        self.shard.disk_weather = DiskWeather(slow=chance.choice([0.0, 0.1]), slow_s=chance.choice([0.1, 2.0]))
        self.loop.on_advance = lambda now: self.shard.disk.set_clock(now - BEGIN_S)
        self._names = 0
        self._in_use: dict[str, list[str]] = {}
        self._keys_chance = self.part()
        self.clients = [self._client(f"client-{number}", chance) for number in range(chance.randint(1, 3))]
        self.trouble = Trouble(self.loop, self.network, [self.shard], self.clients, self.part(), self.plan, self.log)

    def _narrow_down(self, chance: random.Random) -> None:
        """Leaves out kinds of calls and of trouble."""
        thin_out(self.work, WORK_KINDS, chance)
        thin_out(self.plan, TROUBLE_KINDS, chance)

    def _client(self, name: str, chance: random.Random) -> SimulatedClient:
        sizes = [1, 3] if self.is_narrow else [1, 3, 1000]
        batch = chance.choice(sizes)
        settings = ClientSettings(
            coalesced_operations_max=chance.choice(sizes),
            batch_operations_max=batch,
            batches_in_flight_max=chance.choice([1, 2, 8]),
            window_operations_max=max(batch, chance.choice([1, 5, 9000])),
            pending_operations_max=chance.choice([2, 8, 50_000]),
            unconfirmed_operations_max=chance.choice([2, 10, 200_000]),
            session_window_s=CLIENT_WINDOW_S if self.forgets else 6 * 24 * 3600.0,
            silence_timeout_s=1.0 if self.forgets else chance.choice([1.0, 5.0, 30.0]),
            call_timeout_s=chance.choice([2.0, 60.0]),
        )
        client = SimulatedClient(self.loop, name, self.shard, self.part(), self.ledger, self.work, settings, self.log)
        client.key_of = self._key_of
        return client

    def _key_of(self, kind: str) -> str:
        """A counter: `applied` and `durable` ones are counted at, `any` are read, `drained` ones are emptied too."""
        chance = self._keys_chance
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
        place = self._keys_chance.randrange(count)
        if place >= len(keys) or self.ledger.is_full(keys[place]):
            self._names += 1
            key = f"{kind}-{self._names}"
            if place >= len(keys):
                keys.append(key)
            else:
                keys[place] = key
            return key
        return keys[place]

    # --- one history -----------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        self.shard.start()
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
        inside = await within(PATIENCE_S, "the last reads")(self._read_all())
        self._check_applied(inside)
        self.shard.kill("to see what is left", power=True)
        self.shard.start()
        if inside != await within(PATIENCE_S, "the very last reads")(self._read_all()):
            raise Violation("what was read at the end did not outlast a power failure")
        self.shard.kill("that was it")

    async def _read_all(self) -> dict[str, int]:
        """The operations in each counter, which is checked."""
        inside: dict[str, int] = {}
        clock = SimulatedClock(self.loop, self.part())
        with calls_from("auditor"):
            async with SessionClient(*self.shard.address, clock=clock) as auditor:
                for key in self.ledger.counters:
                    inside[key] = self.ledger.settle(key, await auditor.call("get", key))
        return inside

    def _check_applied(self, inside: dict[str, int]) -> None:
        """What was acknowledged at `applied` and is gone was reported, where there was anybody left to report it."""
        missing = [
            operation for key, places in inside.items() for operation in self.ledger.missing_applied(key, places)
        ]
        for client in self.clients:
            own = [operation for operation in missing if operation.who.partition(".")[0] == client.name]
            if len(own) > client.client.statistics.operations_unknown and not client.is_killed:
                raise Violation(f"lost, and nobody was told: {', '.join(map(str, own))}")

    def _finish(self) -> Report:
        report = super()._finish()
        report.kills, report.cuts = self.shard.kills, self.network.cuts
        report.resent = sum(client.client.statistics.batches_resent for client in self.clients)
        report.renewed = sum(client.client.statistics.sessions_renewed for client in self.clients)
        report.troubles = self.trouble.counts
        return report


class IdWorld(ShardWorld):
    """Callers that repeat operations under ids, a shard that often refuses, and requests that arrive late."""

    def _narrow_down(self, chance: random.Random) -> None:
        keep_only(self.work, WORK_KINDS, "incr_with_id", "drain_with_id", "get")
        keep_only(self.plan, TROUBLE_KINDS, "betrayal", "failing_disk", "slow_disk", "die_in_commit")
        self.plan.betrayal, self.plan.failing_disk = 12, 6
        self.plan.events, self.work.calls, self.work.hurried = chance.choice([8, 16]), 12, 0.0


SCENARIOS: dict[str, type[World]] = {"shard": ShardWorld, "ids": IdWorld}


def simulate(scenario: str, seed: int) -> Report:
    """Runs one seed. A failure says how to see it again."""
    world = SCENARIOS[scenario](seed)
    try:
        return world.run()
    except (Violation, Stuck, RpcError) as error:
        command = f"python -m tests.simulation {scenario} {seed}"
        raise Violation(f"seed {seed}: {error}\n\nThe history of this seed: {command}") from error
    finally:
        if seed % 50 == 0:
            gc.collect()

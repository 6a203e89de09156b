"""One shard on a fresh folder, its clients, and someone who kills it at random moments until enough is enough.

Everything that is drawn is drawn from the seed. What the threads of the machine add can't be repeated, so a seed brings
back the same clients and the same moments, not the same race.
"""

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.crash.ground import Client, Ground
from tests.support.crash.id_client import IdClient
from tests.support.crash.observer import Observer, scan_all
from tests.support.crash.plain_client import PlainClient
from tests.support.crash.session_client import SessionClient
from tests.support.history import History, Violation
from tests.support.rpc_stream import RpcStream
from tests.support.shard_process import Launcher, ShardEnded, ShardProcess

SETTLE_TIMEOUT_S = 60.0
STATUS_KILLED = -signal.SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How the shard is set, who works on it, and how it is killed."""

    name: str
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    level: str = "durable"
    session_clients: int = 2
    applied_session_clients: int = 1
    id_clients: int = 2
    plain_clients: int = 1
    observers: int = 1
    unacknowledged_max: int = 400
    life_s_max: float = 0.4
    """A life under load ends within this time."""
    moments: Mapping[str, int] = field(default_factory=lambda: {"load": 7, "start": 2, "shutdown": 1, "frozen": 1})
    """When to kill, and how often: under load, while starting (recovery), while ending, after standing still."""


@dataclass(slots=True)
class Report:
    """What happened, for people and for tests that ask whether anything did."""

    seed: str
    kills: Counter[str] = field(default_factory=Counter)
    good_ends: int = 0
    acknowledged: int = 0
    repeated: int = 0
    reads: int = 0
    lost: int = 0
    overloaded: int = 0
    folds: int = 0
    trims: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {moment}" for moment, count in self.kills.most_common())
        return (
            f"{self.kills.total()} kills ({kills}), {self.good_ends} good ends, {self.folds} checkpoints, "
            f"{self.trims} trims; {self.acknowledged} acknowledged, {self.repeated} repeated, {self.lost} lost or "
            f"unknown, {self.overloaded} overloaded, {self.reads} reads; {self.seconds:.1f} s"
        )


class Arena:
    """Runs one scenario once."""

    def __init__(self, scenario: Scenario, folder: Path, launcher: Launcher, seed: str) -> None:
        self.scenario = scenario
        self.process = ShardProcess(
            folder,
            launcher=launcher,
            settings=scenario.settings,
            arguments=["--level", scenario.level],
        )
        self.history = History()
        self.ground = Ground(self.history, level=scenario.level)
        self.report = Report(seed)
        self._random = random.Random(f"{seed}:{scenario.name}:kills")
        self._start_s = 0.1
        """How long a start takes, about."""
        self._first_segment = 1
        self._tasks: list[asyncio.Task[None]] = []
        sessions = range(scenario.session_clients)
        applied = range(scenario.applied_session_clients)
        most = scenario.unacknowledged_max
        self._repeaters: list[SessionClient | IdClient] = [
            *(SessionClient(f"session{n}", self.ground, seed, unacknowledged_max=most) for n in sessions),
            *(SessionClient(f"applied{n}", self.ground, seed, level="applied") for n in applied),
            *(IdClient(f"id{n}", self.ground, seed) for n in range(scenario.id_clients)),
        ]
        self._clients: list[Client] = [
            *self._repeaters,
            *(PlainClient(f"plain{n}", self.ground, seed) for n in range(scenario.plain_clients)),
            *(Observer(f"observer{n}", self.ground, seed) for n in range(scenario.observers)),
        ]

    async def run(self, kills: int) -> Report:
        """Kills the shard that often, then checks that all is settled. Raises Violation."""
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                self._tasks = [group.create_task(client.run(), name=client.name) for client in self._clients]
                group.create_task(self._reign(kills), name="kills")
            await self._check_the_end()
        except BaseExceptionGroup as failures:
            failure = _first(failures)
            failure.add_note(self._circumstances())
            raise failure from None
        except Exception as failure:
            failure.add_note(self._circumstances())
            raise
        finally:
            await asyncio.to_thread(self.process.kill)
            self.report.seconds = time.monotonic() - began
            self._count()
        return self.report

    def _circumstances(self) -> str:
        self._count()
        return (
            f"scenario {self.scenario.name}, seed {self.report.seed}, in {self.process.directory}: {self.report}\n"
            f"stderr of the shard:\n{self.process.output()}"
        )

    def _count(self) -> None:
        history, report = self.history, self.report
        report.acknowledged, report.repeated = history.acknowledged, history.repeated
        report.reads, report.lost, report.overloaded = history.reads, history.lost, self.ground.overloaded

    # --- lives and ends --------------------------------------------------------------------------------------------

    async def _reign(self, kills: int) -> None:
        """One life after the other; the last one goes on until every client has settled what it began."""
        moments, weights = zip(*self.scenario.moments.items(), strict=True)
        while self.report.kills.total() < kills:
            await self._live(self._random.choices(moments, weights)[0])
            self._see_the_folder()
        self.ground.stopping = True
        await self._start()
        _, busy = await asyncio.wait(self._tasks, timeout=SETTLE_TIMEOUT_S)
        if busy:
            names = sorted(task.get_name() for task in busy)
            raise Violation(f"after {SETTLE_TIMEOUT_S} s of quiet {names} still wait for answers")

    async def _start(self) -> None:
        began = time.monotonic()
        if not self.process.is_running:
            self.process.begin()
        try:
            ready = await asyncio.to_thread(self.process.wait_ready)
        except (ShardEnded, TimeoutError) as failure:
            raise Violation(f"the shard doesn't start on what it left behind: {failure}") from None
        self._start_s = 0.8 * self._start_s + 0.2 * (time.monotonic() - began)
        self.ground.publish((ready.host, ready.port))

    async def _live(self, moment: str) -> None:
        self.process.begin()
        if moment == "start":
            await asyncio.sleep(self._random.uniform(0, 1.2 * self._start_s))
        else:
            await self._start()
            await asyncio.sleep(self._random.uniform(0, self.scenario.life_s_max))
        if moment == "shutdown":
            self.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(self._random.uniform(0, 0.2))
        elif moment == "frozen":
            self.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self._random.uniform(0, 0.05))
        status = await asyncio.to_thread(self.process.kill)
        self.ground.withdraw()
        if status == STATUS_KILLED:
            self.report.kills[moment] += 1
        elif status == 0 and moment == "shutdown":
            self.report.good_ends += 1
        else:
            raise Violation(f"the shard ended by itself, with status {status}")

    def _see_the_folder(self) -> None:
        """Counts checkpoints and trims by what the manifest says."""
        try:
            content = json.loads((self.process.directory / "manifest.json").read_bytes())["content"]
        except FileNotFoundError:
            return
        checkpoint = content["checkpoint"]
        self.report.folds = checkpoint["fold"] if checkpoint else 0
        first_segment = content["segments"][0] if content["segments"] else 0
        if first_segment != self._first_segment:
            self.report.trims += 1
            self._first_segment = first_segment

    # --- the end ---------------------------------------------------------------------------------------------------

    async def _check_the_end(self) -> None:
        """Everything is settled: totals are exact, and stay so over a good end and over a kill."""
        totals = await self._read_all()
        self.history.check_settled(totals)
        await self._repeat_all()
        status = await asyncio.to_thread(self.process.terminate)
        if status != 0:
            raise Violation(f"SIGTERM was answered with status {status}")
        for _ in range(2):
            await self._start()
            await self._repeat_all()
            again = await self._read_all()
            if again != totals:
                changed = {key for key in totals.keys() | again.keys() if totals.get(key) != again.get(key)}
                raise Violation(f"after a restart without operations {sorted(changed)[:10]} changed")
            await asyncio.to_thread(self.process.kill)
            self.ground.withdraw()
        self._see_the_folder()

    async def _read_all(self) -> dict[bytes, int]:
        stream = await RpcStream.open(await self.ground.address())
        try:
            return await scan_all(stream)
        finally:
            stream.close()

    async def _repeat_all(self) -> None:
        for client in self._repeaters:
            stream = await RpcStream.open(await self.ground.address())
            try:
                await client.verify(stream)
                stream.check()
            except ConnectionError:
                raise stream.failure or Violation("the shard closed a connection that did nothing wrong") from None
            finally:
                stream.close()


def _first(failures: BaseExceptionGroup) -> BaseException:
    """The failure that tells most: a violation, if there is one."""
    leaves: list[BaseException] = []
    open_groups: list[BaseException] = [failures]
    while open_groups:
        failure = open_groups.pop()
        if isinstance(failure, BaseExceptionGroup):
            open_groups.extend(failure.exceptions)
        else:
            leaves.append(failure)
    return next((leaf for leaf in leaves if isinstance(leaf, Violation)), leaves[0])

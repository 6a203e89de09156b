"""A cluster whose processes are killed and stopped one after the other, while callers of every kind count."""

import asyncio
import random
import signal
from collections import Counter
from typing import Any

import pytest

import pycounter
from pycounter.coordinator.shard_routes import key_bytes
from tests.support.cluster_callers import Caller, IdCaller, RespCaller, SmartCaller, ThroughCoordinator
from tests.support.cluster_ledger import Ledger
from tests.support.cluster_process import ClusterProcess
from tests.support.history import Violation
from tests.support.resp_socket import RespSocket
from tests.support.waiting import wait_until

SHARDS, COORDINATORS = 3, 2
SETTLE_TIMEOUT_S = 60.0
PAUSE_S_MAX = 0.8
STOPPED_S_MAX = 2.5
EVENTS = {
    "kill shard": 5,
    "stop shard": 2,
    "kill replica": 1,
    "kill coordinator": 3,
    "stop coordinator": 1,
    "kill supervisor": 1,
}


class Misfortune:
    """Draws what happens to the cluster next, and does it. Everything drawn comes from the seed."""

    def __init__(self, cluster: ClusterProcess, seed: int | str) -> None:
        self.random = random.Random(f"{seed}:misfortune")
        self.happened: Counter[str] = Counter()
        self._cluster = cluster

    async def happen(self, event: str | None = None) -> None:
        """One event."""
        event = event or self.random.choices(list(EVENTS), list(EVENTS.values()))[0]
        self.happened[event] += 1
        what, _, kind = event.partition(" ")
        if kind == "supervisor":
            await asyncio.to_thread(self._cluster.restart)
            return
        name = await asyncio.to_thread(self._draw, kind)
        if what == "kill":
            await asyncio.to_thread(self._cluster.kill_process, name)
            return
        await asyncio.to_thread(self._cluster.send_signal_to, name, signal.SIGSTOP)
        await asyncio.sleep(self.random.uniform(0.1, STOPPED_S_MAX))
        await asyncio.to_thread(self._cluster.send_signal_to, name, signal.SIGCONT)

    def _draw(self, kind: str) -> str:
        """A process of this kind that runs."""

        def running() -> list[str]:
            processes = self._cluster.topology().processes
            return [process.name for process in processes if process.kind == kind and process.pid]

        return self.random.choice(wait_until(running))


async def count_through(cluster: ClusterProcess, seed: int | str, events: int, kinds: list[type[Caller]]) -> str:
    """Callers count while that much happens; then every total is checked, by whatever way it is read."""
    # Later starts listen where callers know it to.
    cluster.change_arguments("--port", str(cluster.address[1]))
    ledger = Ledger()
    misfortune = Misfortune(cluster, seed)
    callers = [kind(f"{kind.__name__}-{number}", cluster.address, ledger, seed) for number, kind in enumerate(kinds)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(caller.run(), name=caller.name) for caller in callers]
            for _ in range(events):
                await asyncio.sleep(misfortune.random.uniform(0, PAUSE_S_MAX))
                await misfortune.happen()
            await asyncio.to_thread(cluster.wait_all_ok)
            for caller in callers:
                caller.stopping = True
            _, busy = await asyncio.wait(tasks, timeout=SETTLE_TIMEOUT_S)
            if busy:
                raise Violation(f"after {SETTLE_TIMEOUT_S} s of quiet {sorted(task.get_name() for task in busy)} wait")
        await check_totals(cluster, ledger)
    except BaseExceptionGroup as failures:
        failure = failures.exceptions[0]
        failure.add_note(f"seed {seed}, {dict(misfortune.happened)}\n{cluster.output()}")
        raise failure from None
    except Exception as failure:
        failure.add_note(f"seed {seed}, {dict(misfortune.happened)}\n{cluster.output()}")
        raise
    return (
        f"seed {seed}: {dict(misfortune.happened)}, {ledger.operations} operations, {ledger.reads} exact reads, "
        f"{ledger.refused} refused, {sum(ledger.open.values())} in deltas that stay unknown"
    )


async def check_totals(cluster: ClusterProcess, ledger: Ledger) -> None:
    """Exact totals, a scan over all shards, and GET agree with what was acknowledged. Raises Violation."""
    host, port = cluster.address
    async with pycounter.connect(f"pycounter://{host}:{port}") as client:
        keys = sorted(ledger.acknowledged)
        totals = await client.total_many(keys, accuracy="exact", timeout_s=30)
        assert not any(total.missing for total in totals)
        exact = {key: total.total for key, total in zip(keys, totals, strict=True)}
        ledger.check_settled(exact)
        scanned = {key_bytes(key): value async for key, value in client.scan()}
        ledger.check_settled(scanned)
        check_same("scan", scanned, exact)

    def read_by_resp() -> dict[bytes, Any]:
        with RespSocket((host, port)) as resp:
            return {key: int(value or 0) for key, value in zip(keys, resp.call("MGET", *keys), strict=True)}

    # A coordinator hears of counters that another one diverted with a shard's next health reply.
    deadline = asyncio.get_running_loop().time() + SETTLE_TIMEOUT_S
    while (answered := await asyncio.to_thread(read_by_resp)) != exact:
        if asyncio.get_running_loop().time() > deadline:
            check_same("MGET", answered, exact)
        await asyncio.sleep(PAUSE_S_MAX)


def check_same(what: str, found: dict[bytes, int], exact: dict[bytes, int]) -> None:
    """Is every total the same, however it is read? Raises Violation."""
    wrong = {key: (found.get(key), value) for key, value in exact.items() if found.get(key) != value}
    if wrong:
        raise Violation(f"{what} gives other values than exact totals, here behind them: {wrong}")


@pytest.mark.timeout(240)
async def test_totals_are_exact_whatever_is_killed(start_cluster, seed, pytestconfig, record_property):
    cluster = start_cluster(shards=SHARDS, replicas=1, coordinators=COORDINATORS)
    kinds: list[type[Caller]] = [SmartCaller, SmartCaller, ThroughCoordinator, IdCaller, IdCaller, RespCaller]
    events: int = pytestconfig.getoption("cluster_events")
    told = await count_through(cluster, seed, events, kinds)
    record_property("told", told)
    print(told)


@pytest.mark.timeout(120)
async def test_with_one_shard_left_the_load_goes_on(start_cluster, seed):
    cluster = start_cluster(shards=2, coordinators=1)
    ledger = Ledger()
    callers = [SmartCaller(name, cluster.address, ledger, seed) for name in ("early", "late")]
    early = asyncio.create_task(callers[0].run())
    await asyncio.sleep(0.5)
    stopped = await asyncio.to_thread(cluster.send_signal_to, "shard-0", signal.SIGSTOP)
    try:
        await asyncio.to_thread(cluster.wait_state, "shard-0", "stalled")
        # What was sent stays where it was sent, and its callers wait. New operations go to the shard that is left.
        before = ledger.acknowledged.total()
        late = asyncio.create_task(callers[1].run())
        await asyncio.sleep(3.0)
        assert ledger.acknowledged.total() > before + 1000
        assert cluster.process("shard-0").pid == stopped
    finally:
        await asyncio.to_thread(cluster.send_signal_to, "shard-0", signal.SIGCONT)
    await asyncio.to_thread(cluster.wait_all_ok)
    for caller in callers:
        caller.stopping = True
    await asyncio.wait_for(asyncio.gather(early, late), SETTLE_TIMEOUT_S)
    await check_totals(cluster, ledger)

"""P8, shards and totals: what a coordinator costs, how that grows with the shards, what asking all of them takes."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.peers import clients, peers
from bench.peers.cluster import Processes, delayed, sample_cluster, topology_of
from bench.peers.load import Figures, fill, medians, run_checked, sample
from bench.peers.run import Run
from bench.peers.servers import BenchError, Server
from bench.peers.table import Goal, Row, Table, ratio
from pycounter.coordinator.client import Client
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.topology import Topology

KEYS = 100_000
CONNECTIONS = 50
PIPELINES = {f"pipeline {depth}": depth for depth in (1, 64, 256)}
GOAL_CASE = "pipeline 64"
COORDINATOR_GOAL, TOGETHER_GOAL = 1.0, 1.5
SHARDS = (1, 2, 4, 8)
COROUTINES = 100
TOTAL_SHARDS = 8
DELAY_S = 0.002
BARE_GOAL, DELAYED_GOAL = 5.0, 1.5
BARE, DELAYED = "bare", f"{DELAY_S * 1e3:g} ms more"
ONE_SHARD = "one shard's value, asked of the shard"
TWO_REDIS = "2 Redis, chosen by the client"


def _sample_both(servers: list[Server], **workload: Any) -> Figures:
    """The same load over several servers at once, as from a client that knows where each key is."""
    reports: list[Any] = []
    before = sum(server.cpu_seconds() for server in servers)
    work = [threading.Thread(target=lambda s=server: reports.append(run_checked(s, **workload))) for server in servers]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    if len(reports) < len(servers):
        raise BenchError("a load generator failed")
    operations = sum(report.operations for report in reports)
    return {
        "per_second": sum(report.per_second for report in reports),
        "p50_us": max(report.p50_us for report in reports),
        "p99_us": max(report.p99_us for report in reports),
        "p999_us": max(report.p999_us for report in reports),
        "cpu_us": (sum(server.cpu_seconds() for server in servers) - before) / operations * 1e6,
        "generator_us": sum(report.cpu_seconds for report in reports) / operations * 1e6,
    }


def coordinator(run: Run) -> Table:
    """P8."""
    cluster = run.servers.shared(peers.cluster(2, "applied"))
    subjects: dict[str, Callable[..., Figures]] = {cluster.peer.title: partial(sample_cluster, cluster)}
    filled = [cluster]
    if peers.REDIS.missing() is None:
        redis, other = run.servers.shared(peers.REDIS), run.servers.fresh(peers.REDIS)
        filled += [redis, other]
        subjects = {
            peers.REDIS.title: partial(sample, redis),
            TWO_REDIS: partial(_sample_both, [redis, other]),
            **subjects,
        }
    for server in filled:
        fill(server, KEYS)
    samplers = {
        (case, title): partial(
            take,
            connections=CONNECTIONS // 2 if title == TWO_REDIS else CONNECTIONS,
            keys=KEYS,
            seconds=run.seconds,
            pipeline=depth,
        )
        for case, depth in PIPELINES.items()
        for title, take in subjects.items()
    }
    figures = medians(run, "p8", samplers)
    rows = [Row(case, title, dict(values)) for (case, title), values in figures.items()]
    for row in rows:
        base = figures.get((row.case, peers.REDIS.title))
        together = ratio(row.figures, base, "cpu_us")
        if row.case == GOAL_CASE and row.subject == cluster.peer.title and base and together is not None:
            alone = row.figures["coordinator_us"] / base["cpu_us"]
            row.goals += [
                Goal(what="coordinator's CPU to Redis's", ratio=alone, at_most=COORDINATOR_GOAL),
                Goal(what="with its shards'", ratio=together, at_most=TOGETHER_GOAL),
            ]
    return Table(
        name="p8",
        title="a coordinator and two shards",
        workload=f"RESP INCR of uniformly chosen counters among {KEYS:,}, {CONNECTIONS} connections. All processes of "
        "a server are on one core. `CPU us/op` is of all of them, supervisor left out.",
        rows=rows,
        reference=peers.REDIS.title,
        notes=[
            f"{TWO_REDIS}: half of the connections and all keys to each. What choosing costs is the client's: see p7.",
        ],
    )


def _straight(run: Run, server: Server) -> Figures:
    """Increments of a client that goes straight to the shards."""
    keys = [f"counter-{number}" for number in range(1_000)]

    async def take() -> Figures:
        async with clients.pycounter_client(server, level="applied") as incr:
            processes, client_before = Processes(server), time.process_time()
            latencies, elapsed = await clients.drive(incr, coroutines=COROUTINES, keys=keys, seconds=run.seconds)
            client = time.process_time() - client_before
            latencies.sort()
            operations = round(len(latencies) * (elapsed + clients.WARM_UP_S) / elapsed)
            return {
                "per_second": len(latencies) / elapsed,
                "p50_us": latencies[len(latencies) // 2] * 1e6,
                "p99_us": latencies[len(latencies) * 99 // 100] * 1e6,
                **processes.microseconds(operations),
                "generator_us": client / operations * 1e6,
            }

    return clients.on_uvloop(take())


def shards(run: Run) -> Table:
    """How cost grows with the number of shards."""
    servers = {count: run.servers.fresh(peers.cluster(count, "applied")) for count in SHARDS}
    for server in servers.values():
        fill(server, KEYS)
    load = {"connections": CONNECTIONS, "keys": KEYS, "seconds": run.seconds, "pipeline": 64}
    samplers: dict[tuple[str, str], Callable[[], Figures]] = {}
    for count, server in servers.items():
        case = f"{count} shard{'s' if count > 1 else ''}"
        samplers[case, "RESP through the coordinator, pipeline 64"] = partial(sample_cluster, server, **load)
        samplers[case, f"pycounter.connect, {COROUTINES} coroutines"] = partial(_straight, run, server)
    figures = medians(run, "shards", samplers)
    for server in servers.values():
        run.servers.discard(server)
    return Table(
        name="shards",
        title="how cost grows with the number of shards",
        workload=f"Increments among {KEYS:,} counters, level `applied`; straight to the shards: among 1,000.",
        rows=[Row(case, title, dict(values)) for (case, title), values in figures.items()],
        notes=[
            "All processes share one core and the load has the other: CPU for an operation shows what shards cost, "
            "throughput doesn't show what they would bring on cores of their own.",
        ],
    )


async def _times(client: Client, ask: Callable[[Client], Any], seconds: float) -> Figures:
    """One request after the other."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < ends:
        await ask(client)
        taken.append(time.perf_counter() - begun)
    taken.sort()
    return {
        "p50_us": statistics.median(taken) * 1e6,
        "p99_us": taken[len(taken) * 99 // 100] * 1e6,
        "per_second": len(taken) / sum(taken),
    }


def _asked(run: Run, topology: Topology, delay_s: float, ask: Callable[[Client], Any]) -> Figures:
    async def take(reached: Topology) -> Figures:
        async with Client(ConnectSettings(), topology=reached) as client:
            await client.incr("total", 1)
            await asyncio.sleep(1.5)  # every shard has told once what it holds
            return await _times(client, ask, run.seconds)

    if not delay_s:
        return clients.on_uvloop(take(topology))
    with delayed(topology, delay_s) as further:
        return clients.on_uvloop(take(further))


def totals(run: Run) -> Table:
    """What asking all shards takes, beside asking one."""
    server = run.servers.fresh(peers.cluster(TOTAL_SHARDS, "applied"))
    topology = topology_of(server)
    asks: dict[str, Callable[[Client], Any]] = {
        ONE_SHARD: lambda client: client.shards.handles[0].call("get", b"total", timeout_s=2.0),
        "a total of one counter": lambda client: client.total("total", accuracy="exact"),
        "totals of 100 counters": lambda client: client.total_many(
            [f"counter-{number}" for number in range(100)], accuracy="exact"
        ),
    }
    samplers = {
        (case, title): partial(_asked, run, topology, delay_s, ask)
        for case, delay_s in ((BARE, 0.0), (DELAYED, DELAY_S))
        for title, ask in asks.items()
    }
    figures = medians(run, "totals", samplers)
    run.servers.discard(server)
    rows = [Row(case, title, dict(values)) for (case, title), values in figures.items()]
    for row in rows:
        if row.subject == "a total of one counter":
            took = row.figures["p50_us"] / figures[row.case, ONE_SHARD]["p50_us"]
            goal = BARE_GOAL if row.case == BARE else DELAYED_GOAL
            row.goals.append(Goal(what="time to one shard's round trip", ratio=took, at_most=goal))
    return Table(
        name="totals",
        title=f"totals over {TOTAL_SHARDS} shards",
        workload="One client, one request after the other, `exact`: every shard is asked itself. "
        f"{DELAYED}: a proxy before each shard, which makes each round trip so much longer.",
        rows=rows,
    )

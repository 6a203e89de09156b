"""P7: a hundred coroutines of one Python process that await an increment each, and what batches do to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

from bench.peers import clients, peers, redis_cluster
from bench.peers.clients import Increment
from bench.peers.load import Figures, medians
from bench.peers.run import Run
from bench.peers.servers import BenchError, Server
from bench.peers.table import Goal, Row, Table, ratio

COROUTINES = 100
TWO = "2 servers, in memory"
KEYS = [f"counter-{number}" for number in range(1_000)]
CLIENT_GOAL = 8.0
#: Operations in a batch at most, and how long one waits for more.
SIZES = (1, 10, 100, 1_000)
DELAYS_MS = (1, 10, 50)
BATCH_COROUTINES = 1_000
Connect = Callable[[], AbstractAsyncContextManager[Increment]]


def _sampler(
    run: Run, server: Server | Sequence[Server], connect: Connect, coroutines: int = COROUTINES
) -> Callable[[], Figures]:
    servers = [server] if isinstance(server, Server) else list(server)

    async def take() -> Figures:
        async with connect() as incr:
            return await clients.sample(servers, incr, coroutines=coroutines, keys=KEYS, seconds=run.seconds)

    return lambda: clients.on_uvloop(take())


def _over_two(run: Run, own_title: str) -> dict[tuple[str, str], Callable[[], Figures]]:
    """Two servers in memory, the client choosing."""
    samplers: dict[tuple[str, str], Callable[[], Figures]] = {}
    if peers.REDIS.missing() is None:
        pair = [run.servers.shared(peers.REDIS), run.servers.fresh(peers.REDIS)]
        ports = [server.port for server in pair]
        samplers[TWO, clients.redis_client_title()] = _sampler(run, pair, partial(clients.redis_py, ports, COROUTINES))
        try:
            nodes = redis_cluster.two_nodes(run)
        except BenchError as error:
            run.tell(f"p7: {error}")
        else:
            connect = partial(clients.redis_cluster, nodes[0].port, COROUTINES)
            samplers[TWO, "redis-py asyncio, Redis Cluster"] = _sampler(run, nodes, connect)
    server = run.servers.shared(peers.cluster(2, "applied"))
    samplers[TWO, own_title] = _sampler(run, server, partial(clients.pycounter_client, server, level="applied"))
    return samplers


def clients_compared(run: Run) -> Table:
    """P7."""
    redis_title, own_title = clients.redis_client_title(), "pycounter.connect"
    samplers: dict[tuple[str, str], Callable[[], Figures]] = {}
    pairs = [("in memory", peers.REDIS, peers.APPLIED), ("after an fsync", peers.REDIS_FSYNC, peers.DURABLE)]
    for case, redis, shard in pairs:
        if redis.missing() is None:
            server = run.servers.shared(redis)
            connect = partial(clients.redis_py, [server.port], COROUTINES)
            samplers[case, redis_title] = _sampler(run, server, connect)
        server = run.servers.shared(shard)
        connect = partial(clients.pycounter_client, server, level=shard.name)
        samplers[case, own_title] = _sampler(run, server, connect)
    samplers |= _over_two(run, own_title)
    figures = medians(run, "p7", samplers)
    rows = [Row(case, title, dict(values)) for (case, title), values in figures.items()]
    for row in rows:
        speed = ratio(row.figures, figures.get((row.case, redis_title)), "per_second")
        if row.subject == own_title and row.case != TWO and speed is not None:
            row.goals.append(Goal(what="speed to redis-py", ratio=speed, at_least=CLIENT_GOAL))
    return Table(
        name="p7",
        title=f"{COROUTINES} coroutines that await an increment each",
        workload=f"One Python process on uvloop, {len(KEYS):,} counters. In memory: Redis without a log, a shard at "
        "`applied`; after an fsync: Redis with `appendfsync always`, a shard at `durable`.",
        rows=rows,
        reference=redis_title,
        notes=[
            "redis-py sends each increment by itself, over a pool of as many connections as there are coroutines; "
            "`generator us/op` is the client's own processor time. Redis counts an increment twice that redis-py "
            "repeats after a cut; a session doesn't.",
            f"{TWO}: Redis without a log, chosen by the key's hash in the client, or by Redis Cluster's slots; "
            "PyCounter: a cluster of two shards at `applied`, which the client reaches directly.",
        ],
    )


def batches(run: Run) -> Table:
    """What the two settings of a client's batches do to throughput and latency."""
    server = run.servers.shared(peers.DURABLE)
    samplers = {
        (f"{size:,} operations", f"{delay_ms} ms"): _sampler(
            run,
            server,
            partial(
                clients.pycounter_client,
                server,
                level="durable",
                batch_operations_max=size,
                batch_delay_s=delay_ms / 1e3,
            ),
            BATCH_COROUTINES,
        )
        for size in SIZES
        for delay_ms in DELAYS_MS
    }
    figures = medians(run, "batches", samplers)
    return Table(
        name="batches",
        title="batches of a client: how large, and how long they wait",
        workload=f"`pycounter.connect` to one shard at `durable`, {BATCH_COROUTINES:,} coroutines that await an "
        "increment each. A batch goes at once when nothing is in flight; else when it is full or has waited.",
        rows=[Row(case, title, dict(values)) for (case, title), values in figures.items()],
    )

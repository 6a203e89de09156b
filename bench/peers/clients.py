"""Python clients under load: coroutines that each await one increment after the other."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import redis.asyncio as redis_asyncio
import uvloop

import pycounter
from bench.peers.load import Figures
from bench.peers.servers import BenchError, Server

#: Adds one to a counter, and gives its value after.
Increment = Callable[[str], Awaitable[Any]]
#: Before the samples: connections are made, code has run.
WARM_UP_S = 0.2


def redis_client_title() -> str:
    """What redis-py parses with."""
    parser = "hiredis" if importlib.util.find_spec("hiredis") is not None else "its own parser: hiredis is missing"
    return f"redis-py asyncio ({parser})"


async def drive(incr: Increment, *, coroutines: int, keys: Sequence[str], seconds: float) -> tuple[list[float], float]:
    """Lets so many coroutines increment for a while. Gives every latency, and the seconds that it all took."""
    latencies: list[float] = []
    chosen = random.Random(7).choices(keys, k=4096)

    async def work(number: int, ends: float) -> None:
        turn = number
        while (begun := time.perf_counter()) < ends:
            if await incr(chosen[turn % len(chosen)]) <= 0:
                raise BenchError("an increment answered a value that no increment has")
            latencies.append(time.perf_counter() - begun)
            turn += coroutines

    async def all_work(duration: float) -> float:
        latencies.clear()
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(coroutines):
                group.create_task(work(number, begun + duration))
        return time.perf_counter() - begun

    await all_work(WARM_UP_S)
    return latencies, await all_work(seconds)


def on_uvloop(coroutine: Coroutine[Any, Any, Figures]) -> Figures:
    """Runs a sample on the loop that the product recommends; redis-py gets it too."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


async def sample(
    servers: Sequence[Server], incr: Increment, *, coroutines: int, keys: Sequence[str], seconds: float
) -> Figures:
    """Figures of one client; `cpu_us` is the servers' processor time for an operation, `generator_us` the client's."""
    server_before, client_before = sum(server.cpu_seconds() for server in servers), time.process_time()
    latencies, elapsed = await drive(incr, coroutines=coroutines, keys=keys, seconds=seconds)
    client = time.process_time() - client_before
    spent = sum(server.cpu_seconds() for server in servers) - server_before
    latencies.sort()
    # The warm-up's operations cost as much as the others, so its share of the time is its share of the work.
    share = elapsed / (elapsed + WARM_UP_S)
    return {
        "per_second": len(latencies) / elapsed,
        "p50_us": latencies[len(latencies) // 2] * 1e6,
        "p99_us": latencies[len(latencies) * 99 // 100] * 1e6,
        "cpu_us": spent * share / len(latencies) * 1e6,
        "generator_us": client * share / len(latencies) * 1e6,
    }


@asynccontextmanager
async def redis_py(ports: Sequence[int], connections: int) -> AsyncIterator[Increment]:
    """redis-py over one or several Redis: each key's is chosen by its hash, in the client."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                redis_asyncio.Redis(host="127.0.0.1", port=port, max_connections=connections)
            )
            for port in ports
        ]
        if len(clients) == 1:
            yield clients[0].incr
            return

        def incr(key: str) -> Awaitable[Any]:
            return clients[hash(key) % len(clients)].incr(key)

        yield incr


@asynccontextmanager
async def redis_cluster(port: int, connections: int) -> AsyncIterator[Increment]:
    """redis-py's client of a Redis Cluster."""
    async with redis_asyncio.RedisCluster(host="127.0.0.1", port=port, max_connections=connections) as client:
        yield client.incr


@asynccontextmanager
async def pycounter_client(server: Server, **settings: Any) -> AsyncIterator[Increment]:
    """`pycounter.connect`, to a shard or to a cluster."""
    async with pycounter.connect(f"pycounter://127.0.0.1:{server.port}", **settings) as client:
        yield client.incr

"""One slow shard among fast ones: who waits for it, and whose tail suffers."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

import pycounter
from tests.support.fault_proxy import Direction, FaultProxy
from tests.support.topology_server import TopologyServer

pytestmark = pytest.mark.timeout(120)

NAMES = ("shard-0", "shard-1", "shard-2")
SLOW = "shard-1"
#: There and back, and drawn on top: below what makes a shard unhealthy, and above.
SLUGGISH = (0.012, 0.010)
SICK = (0.060, 0.020)


@contextlib.asynccontextmanager
async def one_slow(start_shard, seed, delay_s, jitter_s) -> AsyncIterator[tuple[pycounter.Client, FaultProxy]]:
    ring = [f"{name}=1" for name in NAMES]
    shards = {name: start_shard(name=name, settings={"name": name, "ring": ring}) for name in NAMES}
    addresses = {name: shard.address for name, shard in shards.items()}
    async with FaultProxy(addresses[SLOW], seed) as proxy:
        proxy.to_client = Direction(delay_s=delay_s, jitter_s=jitter_s)
        async with (
            TopologyServer({**addresses, SLOW: proxy.address}) as server,
            pycounter.connect(server.url) as client,
        ):
            yield client, proxy


async def count(client, chance, workers, rounds) -> dict[str, list[float]]:
    """How long each increment took, by its key's home."""
    home, loop = client.topology.ring.home, asyncio.get_running_loop()
    latencies: dict[str, list[float]] = {name: [] for name in NAMES}

    async def work() -> None:
        for _ in range(rounds):
            key = f"key-{chance.randrange(300)}"
            began = loop.time()
            await client.incr(key, timeout_s=30)
            latencies[home(key)].append(loop.time() - began)

    await asyncio.gather(*(work() for _ in range(workers)))
    return {name: sorted(taken) for name, taken in latencies.items()}


async def test_the_tail_of_others_is_their_own(start_shard, seed, record_property):
    async with one_slow(start_shard, seed, *SLUGGISH) as (client, _):
        latencies = await count(client, random.Random(seed), workers=30, rounds=40)
        for name, taken in latencies.items():
            record_property(name, f"p50 {taken[len(taken) // 2]:.4f} s, p99 {taken[len(taken) * 99 // 100]:.4f} s")
        slow = latencies[SLOW]
        for name in set(NAMES) - {SLOW}:
            fast = latencies[name]
            assert fast[len(fast) // 2] < slow[len(slow) // 2] / 2, f"{name} waits for {SLOW}"
        assert sum(len(taken) for taken in latencies.values()) == 30 * 40
        assert not any(shard["diverted"] for shard in client.status()["shards"])


async def test_a_shard_that_is_too_slow_keeps_half_and_no_count_is_lost(start_shard, seed):
    async with one_slow(start_shard, seed, *SICK) as (client, proxy):
        await count(client, random.Random(seed), workers=30, rounds=60)
        status = {shard["shard"]: shard for shard in client.status()["shards"]}
        assert status[SLOW]["state"] == "unhealthy"
        assert status[SLOW]["diverted"] > 0
        assert not any(status[name]["diverted"] for name in set(NAMES) - {SLOW})
        proxy.restore()
        totals = await client.total_many([f"key-{number}" for number in range(300)], accuracy="exact", timeout_s=30)
        assert sum(total.total for total in totals) == 30 * 60
        assert not any(total.missing for total in totals)

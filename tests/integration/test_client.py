"""`pycounter.connect` against real shards: one alone, and several that a topology names."""

import asyncio
import contextlib
import resource
from collections import Counter
from typing import Any

import pytest

import pycounter
from pycounter.errors import BadDelta, BadKey, SettingsError, Unavailable, WrongShard
from pycounter.topology import format_address
from tests.support.topology_server import TopologyServer


def url_of(shard, query=""):
    return f"pycounter://{format_address(*shard.address)}{query}"


@pytest.fixture
def shards(start_shard):
    return {name: start_shard(name=name) for name in ("shard-0", "shard-1", "shard-2")}


def addresses_of(shards):
    return {name: shard.address for name, shard in shards.items()}


async def test_one_shard_without_coordinator(shard):
    async with pycounter.connect(url_of(shard)) as client:
        assert await client.incr("a") == 1
        detail = await client.incr(b"a", 4, detail=True)
        assert (detail.value, detail.level, detail.exact, detail.shard) == (5, "durable", True, "shard-0")
        assert (await client.incr("a", level="applied", detail=True)).level == "applied"
        results = await client.incr_many([("a", 1), ("b", 2), ("", 1), ("c", 1 << 70)])
        assert results[:2] == [7, 2]
        assert [type(result) for result in results[2:]] == [BadKey, BadDelta]
        assert await client.get("a") == await client.get("a", accuracy="exact") == 7
        assert await client.get_many(["b", "a", "never"]) == [2, 7, 0]
        assert dict([entry async for entry in client.scan()]) == {"a": 7, "b": 2}
        assert await client.drain("a") == 7
        await client.flush()
        assert client.statistics["succeeded"] == 5
        assert client.topology.shards[0].name == "shard-0"


async def test_a_client_is_awaited_as_well(shard):
    client = await pycounter.connect(url_of(shard))
    try:
        assert await client.incr("a") == 1
    finally:
        await client.close()
    with pytest.raises(Unavailable):
        await client.incr("a")


async def test_several_shards_are_counted_at_directly(shards):
    async with TopologyServer(addresses_of(shards)) as server, pycounter.connect(server.url) as client:
        expected = Counter({f"key-{number}": number % 7 + 1 for number in range(200)})
        await asyncio.gather(*(client.incr(key, count) for key, count in expected.items()))
        await client.incr_many(list(expected.items()))
        assert await client.get_many(list(expected)) == [2 * count for count in expected.values()]
        totals = await client.total_many(list(expected), accuracy="exact")
        assert all(total.exact and not total.missing for total in totals)
        # Each is at home, and nowhere else.
        ring = client.topology.ring
        for key, total in zip(expected, totals, strict=True):
            assert {name for name, value in total.partials.items() if value} == {ring.home(key)}
        assert len({ring.home(key) for key in expected}) == 3
        assert server.server.count("incr") == 0


@pytest.mark.parametrize("can_watch", [True, False])
async def test_a_shard_that_has_moved_is_found_again(shards, can_watch, monkeypatch):
    async with (
        TopologyServer(addresses_of(shards), can_watch=can_watch) as server,
        pycounter.connect(server.url, poll_interval_s=0.05, increment_timeout_s=30.0) as client,
    ):
        key = next(f"key-{number}" for number in range(100) if client.topology.ring.home(f"key-{number}") == "shard-1")
        monkeypatch.setattr(client.shards.balancer, "divert", lambda home: None)
        assert await client.incr(key) == 1
        shards["shard-1"].restart()
        server.place(addresses_of(shards))
        server.server.cut()
        assert await client.incr(key) == 2
        assert client.topology.version == server.document["version"]
        assert await client.get(key, accuracy="exact") == 2


@pytest.fixture(scope="module")
def cluster(start_shared_cluster):
    return start_shared_cluster(shards=2)


@pytest.mark.parametrize("route", ["direct", "coordinator", "auto"])
async def test_a_cluster_either_way(cluster, route):
    async with pycounter.connect(url_of(cluster, f"?route={route}")) as client:
        assert client.route == {"auto": "direct"}.get(route, route)
        keys = [f"{route}-{number}" for number in range(20)]
        assert await asyncio.gather(*(client.incr(key) for key in keys)) == [1] * 20
        detail = await client.incr(keys[0], 4, detail=True)
        assert (detail.value, detail.level, detail.exact) == (5, "durable", True)
        assert (await client.incr(keys[0], level="applied", detail=True)).level == "applied"
        await client.flush()
        results = await client.incr_many([(keys[0], 1), ("", 1), (keys[1], 2)])
        assert [result if isinstance(result, int) else type(result) for result in results] == [7, BadKey, 3]
        assert await client.get_many(keys[:3]) == [7, 3, 1]
        assert await client.get(keys[0], accuracy="exact") == await client.get(keys[0]) == 7
        total = await client.total(keys[0], accuracy="exact")
        assert (total.total, total.exact, total.missing) == (7, True, ())
        assert [total.total for total in await client.total_many(keys[:2])] == [7, 3]
        prefix = f"{route}-"
        expected = dict.fromkeys(keys, 1) | {keys[0]: 7, keys[1]: 3}
        assert dict([entry async for entry in client.scan(prefix)]) == expected
        assert await client.top(2, prefix) == [(keys[0], 7), (keys[1], 3)]
        assert await client.set(keys[2], 9) == 1
        assert await client.drain(keys[2]) == 9
        assert await client.delete(keys[2]) == 0
        assert await client.get(keys[2]) == 0
        removed = await client.delete_many([keys[3], "", keys[4], keys[3]])
        assert [one if isinstance(one, int) else type(one) for one in removed] == [1, BadKey, 1, 0]
        assert await client.delete_prefix(f"{prefix}1") == 11
        assert [key async for key, _ in client.scan(f"{prefix}1")] == []
        left = len([key async for key, _ in client.scan()])
        assert await client.delete_all(operation_id=route.encode()) == left
        assert await client.incr(keys[0]) == 1
        assert await client.delete_all(operation_id=route.encode()) == left
        assert [entry async for entry in client.scan()] == [(keys[0], 1)]
        assert client.status()["route"] == client.route
        assert client.statistics["pending"] == 0
        assert len(client.topology.shards) == 2


async def test_a_key_that_is_no_key_is_refused_before_it_travels(cluster):
    async with pycounter.connect(url_of(cluster)) as client:
        bad: list[Any] = ["", "x" * 1025, 5, None, "\ud800"]
        for key in bad:
            with pytest.raises(BadKey):
                await client.incr(key)
            with pytest.raises(BadKey):
                await client.incr(key, level="durable")
            with pytest.raises(BadKey):
                await client.get(key)
        assert await client.incr_many([]) == []
        assert await client.get_many([]) == []


async def test_what_a_client_wrote_it_reads_though_it_caches(cluster):
    async with pycounter.connect(url_of(cluster)) as client, pycounter.connect(url_of(cluster)) as other:
        for value in range(1, 30):
            assert await client.incr("cached") == value
            assert await client.get("cached", accuracy="cached") == value
            assert await client.get("cached", accuracy="cached") == value
        assert client.status()["cache"]["l1_hits"] >= 29
        # Another client's write is seen when the time of the cache is over, or by a read that isn't cached.
        await other.incr("cached")
        assert await client.get("cached") == 30


@pytest.mark.slow
async def test_a_thousand_clients_connect_at_once(shard):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connected = 0
    everybody = asyncio.Event()

    async def count(number):
        nonlocal connected
        async with pycounter.connect(url_of(shard), connect_timeout_s=60.0, increment_timeout_s=60.0) as client:
            await client.incr("all")
            await client.incr(f"own-{number}")
            connected += 1
            if connected == 1000:
                everybody.set()
            await everybody.wait()

    try:
        await asyncio.gather(*(count(number) for number in range(1000)))
        async with pycounter.connect(url_of(shard)) as client:
            assert await client.get("all") == 1000
            assert await client.get_many([f"own-{number}" for number in range(1000)]) == [1] * 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
async def test_cancelled_at_any_turn_connecting_leaves_nothing_open(shard, turns):
    before = len(asyncio.all_tasks())
    connecting = asyncio.create_task(open_client(url_of(shard)))
    for _ in range(turns):
        await asyncio.sleep(0)
    connecting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await connecting).close()
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before


async def open_client(url):
    return await pycounter.connect(url)


async def test_nobody_listens(start_shard):
    shard = start_shard()
    url = url_of(shard)
    shard.kill()
    with pytest.raises(Unavailable):
        await pycounter.connect(url, connect_timeout_s=0.3)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://a",
        "pycounter://",
        "pycounter://a:b",
        "pycounter://a:70000",
        "pycounter://a/b",
        "pycounter://a?route=no",
        "pycounter://a?nonsense=1",
    ],
)
def test_a_url_that_is_none(url):
    with pytest.raises(SettingsError):
        pycounter.connect(url)


async def test_one_shard_that_is_down_holds_up_nobody(shards):
    addresses = addresses_of(shards)
    shards["shard-1"].kill()
    async with TopologyServer(addresses) as server, pycounter.connect(server.url) as client:
        ring = client.topology.ring
        keys = [key for key in map("key-{}".format, range(50)) if ring.home(key) != "shard-1"]
        assert await client.incr_many([(key, 1) for key in keys]) == [1] * len(keys)


async def test_another_shard_at_the_address_is_not_the_end(shards):
    """A port may be taken by another process before anybody says where the shard is now."""
    swapped = dict(zip(shards, [shards["shard-1"], shards["shard-0"], shards["shard-2"]], strict=True))
    async with TopologyServer(addresses_of(shards)) as server:
        for entry, shard in zip(server.document["shards"], shards.values(), strict=True):
            entry["identity"] = shard.ready.identity
        async with pycounter.connect(server.url, increment_timeout_s=30.0) as client:
            ring = client.topology.ring
            key = next(key for key in map("key-{}".format, range(100)) if ring.home(key) == "shard-1")
            assert await client.incr(key) == 1
            right = server.document
            server.place(addresses_of(swapped))
            for entry, shard in zip(server.document["shards"], shards.values(), strict=True):
                entry["identity"] = shard.ready.identity
            server.server.cut()
            while client.topology.version != server.document["version"]:
                await asyncio.sleep(0.01)
            shards["shard-1"].restart()
            server.document = {**right, "version": server.document["version"] + 1}
            for entry, shard in zip(server.document["shards"], shards.values(), strict=True):
                entry["address"] = format_address(*shard.address)
            server.server.cut()
            while (await client.incr(key, detail=True)).shard != "shard-1":
                await asyncio.sleep(0.05)
            assert await client.unknown.wait() == []


async def test_another_shard_alone_at_the_address(start_shard):
    """As after a restore: what was unanswered is unknown, and what comes is counted there."""
    shard = start_shard(name="first")
    async with pycounter.connect(url_of(shard), increment_timeout_s=30.0) as client:
        assert await client.incr("a") == 1
        host, port = shard.address
        shard.kill()
        # What was sent before the cut is noticed stays unknown.
        while client.shards.handles[0].is_connected:
            await asyncio.sleep(0.01)
        other = start_shard(name="second", arguments=["--port", str(port)])
        assert other.address == (host, port)
        while True:
            with contextlib.suppress(WrongShard, Unavailable):
                assert await client.incr("a") == 1
                break
            await asyncio.sleep(0.02)
        assert await client.get("a") == 1
        assert client.shards.handles[0].identity == other.ready.identity

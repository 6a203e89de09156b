"""`pycounter.connect` against real shards: one alone, and several that a topology names."""

import asyncio
from collections import Counter

import pytest

import pycounter
from pycounter.errors import BadDelta, BadKey, SettingsError, Unavailable
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
        assert dict([entry async for entry in client.scan()]) == {b"a": 7, b"b": 2}
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

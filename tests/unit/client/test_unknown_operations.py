"""The list of operations whose outcome nobody knows yet."""

import asyncio

import pytest

from pycounter.client import ClientSettings, SessionClient
from pycounter.errors import DeadlineExceeded, SessionLost
from tests.support.scripted_shard import SILENCE, ScriptedShard

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def shard():
    async with ScriptedShard() as server:
        yield server


def client_of(shard, **settings):
    quick = {"backoff_first_s": 0.001, "backoff_max_s": 0.01}
    host, port = shard.address
    return SessionClient(host, port, name="shard-7", settings=ClientSettings(**{**quick, **settings}))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def test_what_was_given_up_is_listed_until_it_is_settled(shard):
    usual, shard.handlers["apply"] = shard.handlers["apply"], lambda *_: SILENCE
    async with client_of(shard) as client:
        counting = [asyncio.create_task(client.incr(key, 2)) for key in ("a", "b")]
        listing = asyncio.create_task(client.apply([("c", 3), (b"\xff", 4)], level="applied"))
        await until(lambda: client.health.pending == 4)
        assert client.unknown.list() == []
        counting[0].cancel()
        listing.cancel()
        await asyncio.sleep(0)
        assert {(each.key, each.delta, each.shard) for each in client.unknown} == {
            ("a", 2, "shard-7"),
            ("c", 3, "shard-7"),
            (b"\xff", 4, "shard-7"),
        }
        assert len(client.unknown) == 3
        assert all(each.since > 0 for each in client.unknown)
        waiting = asyncio.create_task(client.unknown.wait())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        shard.handlers["apply"] = usual
        shard.cut()
        assert await waiting == []
        assert client.unknown.list() == []
        assert await counting[1] == 2
        assert shard.totals == {"a": 2, "b": 2, "c": 3, b"\xff": 4}


async def test_waiting_in_vain_leaves_nothing_behind(shard):
    usual, shard.handlers["apply"] = shard.handlers["apply"], lambda *_: SILENCE
    async with client_of(shard) as client:
        listing = asyncio.create_task(client.apply([("a", 1), ("b", 1)]))
        await until(lambda: client.health.pending == 2)
        listing.cancel()
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await client.unknown.wait(timeout_s=0.001)
        assert not any(client._watchers.values())
        waiting = [asyncio.create_task(client.unknown.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        shard.handlers["apply"] = usual
        shard.cut()
        assert await waiting[1] == []


async def test_what_was_cut_is_unknown_though_its_caller_waits(shard):
    shard.handlers["apply"] = lambda *_: SILENCE
    async with client_of(shard, backoff_first_s=10.0, backoff_max_s=10.0) as client:
        counting = asyncio.create_task(client.incr("a"))
        await until(lambda: client.health.pending == 1)
        await shard.vanish()
        await until(lambda: len(client.unknown) == 1)
        with pytest.raises(TimeoutError):
            await client.unknown.wait(timeout_s=0.01)
        with pytest.raises(SessionLost):
            await client.close(timeout_s=0.0)
        with pytest.raises(SessionLost):
            await counting


async def test_what_nobody_will_ever_know_is_reported_once(shard):
    shard.handlers["apply"] = lambda *_: SILENCE
    async with client_of(shard) as client:
        with pytest.raises(DeadlineExceeded):
            await client.incr("late", timeout_s=0.05)
        with_caller = asyncio.create_task(client.incr("with caller"))
        await until(lambda: client.health.pending == 2)
        shard.identity = "b" * 32
        waiting = asyncio.create_task(client.unknown.wait())
        await asyncio.sleep(0)
        shard.cut()
        (ended,) = await waiting
        assert (ended.key, ended.delta) == ("late", 1)
        # Its caller was told.
        with pytest.raises(SessionLost):
            await with_caller
        assert await client.unknown.wait() == []
        assert client.unknown.list() == []

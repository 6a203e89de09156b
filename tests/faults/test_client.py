"""The client of several shards, which are killed, stopped and cut off: each increment counts as its caller was told.

Everything that a caller does is bounded here: what stays unknown must be settled, or reported, before the totals are
compared.
"""

import asyncio
import contextlib
import json
import random
import signal
from collections import Counter
from typing import Any

import pytest

import pycounter
from pycounter.client import LostTail
from pycounter.errors import AlreadySettled, DeadlineExceeded, Overloaded, SessionLost, Unavailable
from pycounter.topology import format_address
from tests.support.fault_proxy import Direction, FaultProxy
from tests.support.topology_server import TopologyServer

pytestmark = pytest.mark.timeout(120)

NAMES = ("shard-0", "shard-1", "shard-2")
RING = [f"{name}=1" for name in NAMES]


@pytest.fixture
def shards(start_shard):
    return {name: start_shard(name=name, settings={"name": name, "ring": RING}) for name in NAMES}


def addresses_of(shards):
    return {name: shard.address for name, shard in shards.items()}


class Tally:
    """What callers were told: at least what was acknowledged counts, and at most what was sent."""

    def __init__(self):
        self.least: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.refused = 0

    async def incr(self, client, key, delta, **options):
        try:
            await client.incr(key, delta, **options)
        except (Unavailable, Overloaded):
            self.refused += 1
            await asyncio.sleep(0.01)
        except (DeadlineExceeded, SessionLost, asyncio.CancelledError):
            self.most[key] += delta
        except AlreadySettled:
            # It counted; its value is what was lost.
            self.least[key] += delta
            self.most[key] += delta
        else:
            self.least[key] += delta
            self.most[key] += delta

    async def check(self, client, lost=()):
        """Every total, once all is settled. `lost` are operations that were reported as lost."""
        for tail in lost:
            for key, delta in tail.operations:
                self.least[key] -= delta
        totals = await client.total_many(sorted(self.most), accuracy="exact", timeout_s=10.0)
        for key, total in zip(sorted(self.most), totals, strict=True):
            assert not total.missing
            assert self.least[key] <= total.total <= self.most[key], f"{key}: {total}"


async def work_until(ended, tally, client, chance, workers=40):
    async def worker():
        while not ended.is_set():
            options: dict[str, Any] = {"level": "durable"} if chance.random() < 0.1 else {}
            key, delta = f"key-{chance.randrange(60)}", chance.randint(1, 5)
            counting = asyncio.create_task(tally.incr(client, key, delta, **options))
            if chance.random() < 0.02:
                await asyncio.sleep(0)
                counting.cancel()
            await counting

    await asyncio.gather(*(worker() for _ in range(workers)))


@pytest.mark.parametrize("level", ["durable", "applied"])
async def test_shards_are_killed_and_stopped_under_load(shards, level, seed):
    chance = random.Random(seed)
    lost: list[LostTail] = []
    tally, ended = Tally(), asyncio.Event()
    async with (
        TopologyServer(addresses_of(shards)) as server,
        pycounter.connect(server.url, level=level, increment_timeout_s=3.0, on_lost_tail=lost.append) as client,
    ):

        async def misfortune():
            for _ in range(6):
                await asyncio.sleep(chance.uniform(0.1, 0.5))
                shard = shards[chance.choice(NAMES)]
                if chance.random() < 0.6:
                    shard.kill()
                    await asyncio.sleep(chance.uniform(0.0, 0.6))
                    await asyncio.to_thread(shard.start)
                    server.place(addresses_of(shards))
                    server.server.cut()
                else:
                    shard.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(chance.uniform(0.1, 1.5))
                    shard.send_signal(signal.SIGCONT)
            ended.set()

        await asyncio.gather(misfortune(), work_until(ended, tally, client, chance))
        assert await client.unknown.wait(timeout_s=30) == []
        await client.flush(timeout_s=30)
        await tally.check(client, lost)
        assert sum(tally.least.values()) > 1000
        # Not only this client, which diverted: the shards tell everybody what they hold for others.
        async with pycounter.connect(server.url) as other:
            await asyncio.sleep(1.5)
            values = await other.get_many(sorted(tally.most), timeout_s=10.0)
            exact = await other.get_many(sorted(tally.most), accuracy="exact", timeout_s=10.0)
            assert values == exact


@pytest.mark.parametrize("route", ["direct", "coordinator"])
async def test_a_cluster_loses_its_processes_under_load(start_cluster, route, seed):
    chance = random.Random(seed)
    cluster = start_cluster(shards=2, coordinators=2)
    url = f"pycounter://{format_address(*cluster.address)}?route={route}"
    tally, ended = Tally(), asyncio.Event()
    async with pycounter.connect(url, increment_timeout_s=5.0) as client:

        async def misfortune():
            for name in chance.sample(["shard-0", "shard-1", "coordinator-0", "coordinator-1"], 4):
                await asyncio.sleep(chance.uniform(0.1, 0.5))
                await asyncio.to_thread(cluster.kill_process, name)
                await asyncio.to_thread(cluster.wait_restarted, name)
            ended.set()

        await asyncio.gather(misfortune(), work_until(ended, tally, client, chance))
        assert await client.unknown.wait(timeout_s=60) == []
        assert sum(tally.least.values()) > 500
    async with pycounter.connect(url) as client:
        await tally.check(client)


@pytest.mark.parametrize("route", ["direct", "coordinator"])
async def test_an_abandoned_increment_is_settled_all_the_same(start_cluster, route):
    cluster = start_cluster(shards=1)
    async with pycounter.connect(f"pycounter://{format_address(*cluster.address)}?route={route}") as client:
        total = await client.incr("a")
        for then in ("goes on", "is killed"):
            cluster.send_signal_to("shard-0", signal.SIGSTOP)
            for _ in range(20):
                with pytest.raises((DeadlineExceeded, Unavailable)):
                    await client.incr("a", timeout_s=0.05)
            # What was sent can't be taken back; what wasn't is certain not to count.
            abandoned = client.unknown.list()
            assert abandoned
            assert {(one.key, one.delta, one.shard) for one in abandoned} == {("a", 1, "shard-0")}
            if then == "is killed":
                await asyncio.to_thread(cluster.kill_process, "shard-0")
                await asyncio.to_thread(cluster.wait_restarted, "shard-0")
            else:
                cluster.send_signal_to("shard-0", signal.SIGCONT)
            assert await client.unknown.wait(timeout_s=60) == []
            total += len(abandoned)
            assert await client.get("a", timeout_s=10.0) == total


async def test_a_dead_shard_costs_its_callers_little(shards):
    """Never-sent increments go elsewhere, and what they count is seen at once."""
    async with TopologyServer(addresses_of(shards)) as server, pycounter.connect(server.url) as client:
        keys = [key for key in map("key-{}".format, range(100)) if client.topology.ring.home(key) == "shard-1"]
        await client.incr_many([(key, 10) for key in keys])
        shards["shard-1"].kill()
        # What is sent before the cut is noticed stays there.
        await asyncio.sleep(0.6)
        details = [await client.incr(key, detail=True, timeout_s=30.0) for key in keys]
        assert {detail.shard for detail in details} <= {"shard-0", "shard-2"}
        # What the dead shard was last known to hold is in the value.
        assert [(detail.value, detail.exact) for detail in details] == [(11, False)] * len(keys)
        assert await client.incr_many([(key, 1) for key in keys]) == [12] * len(keys)
        with pytest.raises(Unavailable):
            await client.get(keys[0], accuracy="exact", timeout_s=0.5)
        assert (await client.total(keys[0], timeout_s=0.5)).missing == ("shard-1",)
        events = {(event["shard"], event["what"]) for event in client.status()["events"]}
        assert ("shard-1", "dead") in events
        assert ("shard-1", "diverting") in events
        shards["shard-1"].start()
        server.place(addresses_of(shards))
        server.server.cut()
        while client.status()["shards"][1]["state"] == "dead":
            await asyncio.sleep(0.05)
        assert await client.get_many(keys) == [12] * len(keys)


async def test_a_strict_counter_waits_for_its_home(shards):
    async with TopologyServer(addresses_of(shards)) as server:
        server.document["strict"] = ["number-"]
        async with pycounter.connect(server.url) as client:
            key = next(
                key for key in map("number-{}".format, range(100)) if client.topology.ring.home(key) == "shard-1"
            )
            assert await client.incr(key) == 1
            shards["shard-1"].kill()
            await asyncio.sleep(0.5)
            counting = asyncio.create_task(client.incr(key, detail=True, timeout_s=60.0))
            await asyncio.sleep(0.3)
            assert not counting.done()
            shards["shard-1"].start()
            server.place(addresses_of(shards))
            server.server.cut()
            detail = await counting
            assert (detail.value, detail.exact, detail.shard) == (2, True, "shard-1")


async def test_nobody_is_left(shards):
    async with TopologyServer(addresses_of(shards)) as server, pycounter.connect(server.url) as client:
        await client.incr("a")
        for shard in shards.values():
            shard.kill()
        await asyncio.sleep(0.6)
        with pytest.raises(Unavailable):
            await client.incr("a")
        with pytest.raises(Unavailable):
            await client.incr_many([("a", 1), ("b", 1)])
        for shard in shards.values():
            shard.start()
        server.place(addresses_of(shards))
        server.server.cut()
        while True:
            with contextlib.suppress(Unavailable):
                assert await client.incr("a") == 2
                break
            await asyncio.sleep(0.05)


async def test_a_shard_that_was_restored_gets_a_new_session(start_shard):
    shards = {name: start_shard(name=name, settings={"name": name, "ring": RING}) for name in NAMES}
    async with TopologyServer({}) as server:
        identities = {name: shard.ready.identity for name, shard in shards.items()}

        def place():
            server.place(addresses_of(shards))
            for entry in server.document["shards"]:
                entry["identity"] = identities[entry["name"]]

        place()
        async with pycounter.connect(server.url) as client:
            key = next(key for key in map("key-{}".format, range(100)) if client.topology.ring.home(key) == "shard-1")
            assert await client.incr(key) == 1
            shards["shard-1"].kill()
            shards["shard-1"] = start_shard(name="restored", settings={"name": "shard-1", "ring": RING})
            identities["shard-1"] = shards["shard-1"].ready.identity
            place()
            server.server.cut()
            while client.shards.handles[1].identity != identities["shard-1"]:
                await asyncio.sleep(0.02)
            while (detail := await client.incr(key, detail=True)).shard != "shard-1":
                await asyncio.sleep(0.05)
            assert detail.value >= 1


async def test_connections_are_cut_anywhere_under_load(shards, seed):
    chance = random.Random(seed)
    tally, ended = Tally(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        proxies = {name: await stack.enter_async_context(FaultProxy(shard.address)) for name, shard in shards.items()}
        server = await stack.enter_async_context(
            TopologyServer({name: proxy.address for name, proxy in proxies.items()})
        )
        client = await stack.enter_async_context(pycounter.connect(server.url, increment_timeout_s=5.0))

        async def misfortune():
            for _ in range(40):
                proxy = chance.choice(list(proxies.values()))
                proxy.to_server = Direction(cut_after=chance.randrange(1, 6000), reset=chance.random() < 0.5)
                proxy.to_client = Direction(cut_after=chance.randrange(1, 6000), reset=chance.random() < 0.5)
                await asyncio.sleep(chance.uniform(0.0, 0.1))
            for proxy in proxies.values():
                proxy.restore()
            ended.set()

        await asyncio.gather(misfortune(), work_until(ended, tally, client, chance))
        assert await client.unknown.wait(timeout_s=30) == []
        await tally.check(client)
        assert client.statistics["reconnects"] > 3
        assert json.dumps(client.status())


async def test_one_shard_behind_a_hole_holds_up_nobody_else(shards):
    async with contextlib.AsyncExitStack() as stack:
        proxies = {name: await stack.enter_async_context(FaultProxy(shard.address)) for name, shard in shards.items()}
        server = await stack.enter_async_context(
            TopologyServer({name: proxy.address for name, proxy in proxies.items()})
        )
        client = await stack.enter_async_context(pycounter.connect(server.url, increment_timeout_s=30.0))
        homes: dict[str, list[str]] = {}
        for key in map("key-{}".format, range(100)):
            homes.setdefault(client.topology.ring.home(key), []).append(key)
        proxies["shard-1"].blackhole()
        sent = asyncio.create_task(client.incr(homes["shard-1"][0]))
        while client.status()["shards"][1]["state"] != "dead":
            # Whoever counts elsewhere doesn't notice.
            await asyncio.wait_for(client.incr(homes["shard-0"][0]), 5.0)
            await asyncio.sleep(0.01)
        assert not sent.done()
        # What was sent stays; what wasn't goes elsewhere.
        detail = await asyncio.wait_for(client.incr(homes["shard-1"][1], detail=True), 5.0)
        assert detail.shard != "shard-1"
        proxies["shard-1"].restore()
        await shards_cut(proxies["shard-1"])
        assert await sent == 1
        assert await client.get(homes["shard-1"][0], timeout_s=10.0) == 1


async def shards_cut(proxy):
    """Ends the connections through a proxy: what it swallowed never comes."""
    for end in list(proxy._ends):
        end.transport.abort()


@pytest.mark.parametrize("route", ["direct", "coordinator"])
async def test_an_idle_shard_that_stalls_is_avoided_before_anybody_needs_it(start_cluster, route):
    """Its supervisor sees it first: nothing is sent to it, and a replica is read."""
    cluster = start_cluster(shards=2, replicas=1)
    async with pycounter.connect(f"pycounter://{format_address(*cluster.address)}?route={route}") as client:
        key = next(key for key in map("key-{}".format, range(100)) if client.topology.ring.home(key) == "shard-1")
        assert await client.incr(key, 7) == 7
        while (await client.total(key, read_from="replica")).replicas == {}:
            await asyncio.sleep(0.05)
        cluster.send_signal_to("shard-1", signal.SIGSTOP)
        while client.status()["shards"][1]["state"] != "dead":
            await asyncio.sleep(0.05)
        total = await client.total(key)
        assert (total.total, list(total.replicas)) == (7, ["shard-1"])
        detail = await client.incr(key, detail=True)
        assert (detail.value, detail.exact, detail.shard) == (8, False, "shard-0")
        assert await client.get(key) == 8
        with pytest.raises(Unavailable):
            await client.drain(key)
        cluster.send_signal_to("shard-1", signal.SIGCONT)
        while client.status()["shards"][1]["state"] == "dead":
            await asyncio.sleep(0.05)
        assert (await client.total(key, accuracy="exact", timeout_s=10.0)).partials == {"shard-0": 1, "shard-1": 7}
        assert await client.drain(key) == 8

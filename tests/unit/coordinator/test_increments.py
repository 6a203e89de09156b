"""Which shard takes an increment, against scripted shards and a balancer that decides as the test says."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pycounter._native import ForeignKeys
from pycounter.clock import Clock
from pycounter.coordinator.client import Client
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.coordinator.load_balancer import Serving
from pycounter.errors import BadDelta, BadKey, BadRequest, CounterOverflow, DeadlineExceeded, Unavailable
from pycounter.topology import Topology
from tests.support.scripted_shard import SILENCE, ScriptedShard
from tests.support.topology_server import TopologyServer

pytestmark = pytest.mark.timeout(30)

NAMES = ("shard-0", "shard-1")


class Health:
    """What a scripted shard says of itself: nothing that it holds is foreign."""

    def __init__(self, shard):
        self.shard = shard
        shard.handlers["health"] = self
        shard.handlers["ping"] = lambda: "pong"
        shard.handlers["get"] = lambda key, *_: shard.totals[key.decode()]
        shard.handlers["hello"] = self.greet

    def greet(self, said):
        known = self.shard.sessions.get(said.get("session"))
        last = None if known is None else len(known)
        return {"identity": self.shard.identity, "epoch": 1, "last_sequence": last, "time": 1}

    def __call__(self, options):
        foreign = {"count": 0, "from": options["foreign_from"], "hashes": b"", "all": False}
        return {"state": "ok", "identity": self.shard.identity, "epoch": 1, "foreign": foreign}


@pytest.fixture
async def shards():
    async with ScriptedShard() as first, ScriptedShard() as second:
        for shard in (first, second):
            shard.identity = ("a" if shard is first else "b") * 32
            Health(shard)
        yield [first, second]


@pytest.fixture
async def client(shards, request, monkeypatch):
    """A client; a parameter says how many batches may be in flight at a shard."""
    settings = ConnectSettings()
    session = replace(settings.session(), batches_in_flight_max=getattr(request, "param", 8))
    monkeypatch.setattr(ConnectSettings, "session", lambda _: session)
    server = TopologyServer(dict(zip(NAMES, [shard.address for shard in shards], strict=True)))
    server.document["strict"] = ["strict-"]
    made = Client(settings, topology=Topology.from_wire(server.document), clock=Clock())
    await made.open()
    await made.shards.wait_connected(5.0)
    # As soon as both have said so, nothing is foreign.
    while any(made.shards.foreign.may_hold_all(number) for number in range(2)):
        await asyncio.sleep(0.01)
    yield made
    for shard in shards:
        Health(shard)
        shard.handlers["apply"] = shard.apply
        shard.cut()
    await made.close()


def keys_at(client, name, prefix="key"):
    return [key for number in range(200) if client.shards.ring.home(key := f"{prefix}-{number}") == name]


def say(client, *serving):
    """Has the balancer say so, from now on."""
    decided = [Serving(state, weight, target) for state, weight, target in serving]

    class Balancer(type(client.shards.balancer)):  # type: ignore[misc]
        serving = decided
        version = object()

        def divert(self, home: int) -> int | None:
            one = decided[home]
            if one.weight >= 1.0:
                return None
            if one.divert_to is None:
                raise Unavailable("nobody can")
            return one.divert_to

    client.shards.balancer.__class__ = Balancer
    client.shards._follow()


WELL = ("healthy", 1.0, None)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def test_each_goes_home_as_long_as_all_are_well(client, shards):
    key = keys_at(client, "shard-1")[0]
    detail = await client.incr(key, 3, detail=True)
    assert (detail.value, detail.exact, detail.shard, detail.level) == (3, True, "shard-1", "durable")
    assert shards[1].totals == {key: 3}
    assert shards[0].count("apply") == 0


async def test_what_is_diverted_is_foreign_before_it_is_sent(client, shards):
    key = keys_at(client, "shard-1")[0]
    await client.incr(key, 10)
    say(client, WELL, ("dead", 0.0, 0))
    usual = shards[0].handlers["apply"]

    def apply(*params):
        assert client.shards.foreign.holders(key) == (0,)
        return usual(*params)

    shards[0].handlers["apply"] = apply
    detail = await client.incr(key, 1, detail=True)
    # What its home was last known to hold counts in.
    assert (detail.value, detail.exact, detail.shard) == (11, False, "shard-0")
    assert await client.incr(key) == 12
    assert await client.incr_many([(key, 1), (keys_at(client, "shard-0")[0], 5)]) == [13, 5]
    assert await client.get(key) == 13
    say(client, WELL, WELL)
    assert await client.incr(key) == 14
    assert shards[1].totals[key] == 11


async def test_a_strict_one_stays(client, shards):
    key = keys_at(client, "shard-1", "strict")[0]
    say(client, WELL, ("dead", 0.0, 0))
    assert await client.incr(key) == 1
    assert await client.incr_many([(key, 1)]) == [2]
    assert shards[1].totals == {key: 2}


@pytest.mark.parametrize("client", [1], indirect=True)
async def test_what_was_sent_stays_and_what_was_not_goes_elsewhere(client, shards):
    shards[1].handlers["apply"] = lambda *_: SILENCE
    keys = keys_at(client, "shard-1")
    sent = asyncio.create_task(client.incr(keys[0]))
    await until(lambda: shards[1].count("apply") == 1)
    waiting = [asyncio.create_task(client.incr(key, detail=True)) for key in keys[1:6]]
    listed = asyncio.create_task(client.incr_many([(key, 1) for key in keys[6:9]]))
    await asyncio.sleep(0.01)
    say(client, WELL, ("dead", 0.0, 0))
    assert {detail.shard for detail in await asyncio.gather(*waiting)} == {"shard-0"}
    assert await listed == [1, 1, 1]
    assert not sent.done()
    assert shards[0].totals == dict.fromkeys(keys[1:9], 1)
    shards[1].handlers["apply"] = shards[1].apply
    shards[1].cut()
    assert await sent == 1
    assert shards[1].totals == {keys[0]: 1}


async def test_nobody_can(client):
    say(client, ("dead", 0.0, None), ("dead", 0.0, None))
    with pytest.raises(Unavailable, match="nobody can"):
        await client.incr("a")
    with pytest.raises(Unavailable, match="nobody can"):
        await client.incr_many([("a", 1), ("", 1)])


async def test_a_mapping_is_taken_and_a_call_that_fails_as_a_whole_raises(client, shards):
    key, other = keys_at(client, "shard-0")[:2]
    assert await client.incr_many({key: 2, other: 1}) == [2, 1]
    assert await client.incr_many(Counter([key, key, other])) == [4, 2]
    with pytest.raises(BadKey):
        await client.incr_many([("", 1), (key, "1")])
    outcomes = await client.incr_many([("", 1), (key, 1)])
    assert (type(outcomes[0]), outcomes[1]) == (BadKey, 5)
    for shard in shards:
        await shard.vanish()
    await until(lambda: not client.shards.handles[0].is_connected)
    before = client.statistics
    with pytest.raises(Unavailable, match=r"can.t be reached .*nothing was applied"):
        await client.incr_many({key: 1, other: 1}, timeout_s=0.05)
    after = client.statistics
    assert after["failed"] == before["failed"] + 2
    assert (after["success_rate"] < 0.8, after["healthy"]) == (True, False)
    for shard in shards:
        await shard.listen()


async def test_many_have_their_own_outcomes_in_order(client, shards):
    def overflow(session, first, acked_through, items, level):
        return {"results": ["overflow: no" for _ in items], "level": level, "commit": 1}

    shards[1].handlers["apply"] = overflow
    at_0, at_1 = keys_at(client, "shard-0")[0], keys_at(client, "shard-1")[0]
    items: list[Any] = [
        (at_1, 1),
        (at_0, 2),
        ("", 1),
        (at_0, 1 << 63),
        (at_0, "1"),
        (at_0,),
        7,
        [at_0, 3],
        (at_0, 1.0),
    ]
    outcomes = await client.incr_many(items)
    kinds = [outcome if isinstance(outcome, int) else type(outcome) for outcome in outcomes]
    assert kinds == [CounterOverflow, 2, BadKey, BadDelta, BadDelta, BadRequest, BadRequest, 5, BadDelta]
    with pytest.raises(CounterOverflow):
        await client.incr(at_1)


async def test_a_write_makes_cached_values_stale_when_sent_and_when_settled(client, shards):
    key = keys_at(client, "shard-0")[0]
    assert await client.get(key, accuracy="cached") == 0
    shards[0].handlers["apply"] = lambda *_: SILENCE
    counting = asyncio.create_task(client.incr(key))
    await until(lambda: shards[0].count("apply") == 1)
    before = shards[0].count("get")
    # A load that is begun now may or may not see it: it may be given to who asks now, and to nobody later.
    assert await client.get(key, accuracy="cached") == 0
    assert shards[0].count("get") == before + 1
    shards[0].handlers["apply"] = shards[0].apply
    shards[0].cut()
    assert await counting == 1
    assert await client.get(key, accuracy="cached") == 1


@pytest.mark.parametrize("turns", range(10))
async def test_cancelled_at_any_turn_it_counts_once_or_never(client, shards, turns):
    key = keys_at(client, "shard-0")[0]
    calls = [client.incr(key), client.incr(key, level="applied"), client.incr_many([(key, 1), (key, 1)])]
    counting = [asyncio.create_task(call) for call in calls]
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in counting:
        task.cancel()
    await asyncio.gather(*counting, return_exceptions=True)
    await client.unknown.wait(timeout_s=5)
    assert shards[0].totals[key] <= 4
    await client.flush()
    assert await client.incr(key) == shards[0].totals[key]
    assert client.statistics["pending"] == 0


async def test_a_deadline_leaves_it_on_the_list(client, shards):
    key = keys_at(client, "shard-0")[0]
    shards[0].handlers["apply"] = lambda *_: SILENCE
    with pytest.raises(DeadlineExceeded):
        await client.incr(key, 5, timeout_s=0.05)
    assert [(each.key, each.delta, each.shard) for each in client.unknown] == [(key, 5, "shard-0")]
    shards[0].handlers["apply"] = shards[0].apply
    shards[0].cut()
    assert await client.unknown.wait(timeout_s=10) == []
    assert shards[0].totals == {key: 5}


async def test_a_topology_of_other_shards_is_not_followed(client, shards):
    before = client.topology
    document = {**before.to_wire(), "version": before.version + 1}
    document["shards"] = [*document["shards"], {"name": "shard-2", "state": "ok"}]
    client.set_topology(Topology.from_wire(document))
    assert client.topology is before
    client.set_topology(Topology.from_wire({**before.to_wire(), "version": before.version - 1}))
    assert client.topology is before
    assert isinstance(client.shards.foreign, ForeignKeys)

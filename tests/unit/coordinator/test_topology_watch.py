"""Following the topology: watched, asked for, from servers that come and go."""

import asyncio

import pytest

from pycounter.clock import Clock
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.coordinator.topology_watch import TopologyWatch
from pycounter.errors import RpcError, TopologyError, Unauthenticated
from pycounter.topology import Topology
from tests.support.scripted_shard import ScriptedShard
from tests.support.topology_server import TopologyServer

pytestmark = pytest.mark.timeout(30)

ONE = {"shard-0": ("127.0.0.1", 1)}
TWO = {"shard-0": ("127.0.0.1", 2)}


@pytest.fixture
async def server():
    async with TopologyServer(ONE) as scripted:
        yield scripted


@pytest.fixture
async def make_watch():
    made = []

    def make(*addresses):
        watch = TopologyWatch(ConnectSettings(addresses=addresses, poll_interval_s=0.01), Clock())
        made.append(watch)
        return watch

    yield make
    for watch in made:
        await watch.close()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("can_watch", [True, False])
async def test_newer_ones_are_told_once(server, make_watch, can_watch):
    server.can_watch = can_watch
    watch = make_watch(server.server.address)
    first = await watch.ask(1.0)
    assert first.shards[0].endpoint == ("127.0.0.1", 1)
    told: list[Topology] = []
    watch.follow(first.version, told.append)
    await asyncio.sleep(0.03)
    server.place(TWO)
    # A watch that was begun before is answered by nobody here: its connection ends.
    server.server.cut()
    await until(lambda: told)
    await asyncio.sleep(0.05)
    assert [topology.shards[0].endpoint for topology in told] == [("127.0.0.1", 2)]


async def test_a_server_that_answers_at_once_is_not_asked_in_a_tight_circle(server, make_watch):
    server.server.handlers["watch_topology"] = lambda known: server.document
    watch = make_watch(server.server.address)
    watch.follow((await watch.ask(1.0)).version, lambda topology: None)
    await asyncio.sleep(0.3)
    assert server.server.count("watch_topology") < 15


async def test_the_next_address_is_asked(server, make_watch):
    async with ScriptedShard() as gone:
        nowhere = gone.address
    watch = make_watch(nowhere, server.server.address)
    assert (await watch.ask(5.0)).version == server.document["version"]
    with pytest.raises(RpcError):
        await make_watch(nowhere).ask(0.1)


async def test_it_goes_on_when_its_server_is_back(server, make_watch):
    watch = make_watch(server.server.address)
    told: list[Topology] = []
    watch.follow((await watch.ask(1.0)).version, told.append)
    await server.server.vanish()
    await asyncio.sleep(0.05)
    server.place(TWO)
    await server.server.listen()
    await until(lambda: told)


async def test_nonsense_is_told_and_never_taken(server, make_watch):
    good, server.document = server.document, {"version": 9, "shards": []}
    watch = make_watch(server.server.address)
    with pytest.raises(TopologyError):
        await watch.ask(1.0)
    told: list[Topology] = []
    watch.follow(1, told.append)
    await asyncio.sleep(0.05)
    assert told == []
    server.document = good
    await until(lambda: told)


async def test_who_isnt_let_in_asks_no_more(server, make_watch):
    def refuse(said):
        raise Unauthenticated("no")

    server.server.handlers["hello"] = refuse
    with pytest.raises(Unauthenticated):
        await make_watch(server.server.address).ask(5.0)

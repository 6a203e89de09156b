"""One shard and all of them as a client sees them: what they tell of themselves, and whose replicas are believed."""

import pytest

from pycounter.clock import Clock
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.coordinator.shard_set import ShardSet
from pycounter.errors import WrongShard
from pycounter.topology import ReplicaInfo, ShardInfo, Topology, format_address
from tests.support.scripted_shard import ScriptedShard

pytestmark = pytest.mark.timeout(30)

SHARD, OTHER = "a" * 32, "b" * 32


@pytest.fixture
async def copy():
    """A replica of SHARD that knows one counter."""
    async with ScriptedShard() as scripted:
        scripted.identity = SHARD
        scripted.handlers["hello"] = lambda said: {"identity": scripted.identity, "epoch": 1, "time": 5}
        scripted.handlers["ping"] = lambda: "pong"
        scripted.totals["k"] = 7
        yield scripted


def topology_of(copy, identity=SHARD, version=1):
    replica = ReplicaInfo(name="copy", address=format_address(*copy.address), state="ok")
    shards = (
        ShardInfo(name="shard-0", identity=identity, state="ok", replicas=(replica,)),
        ShardInfo(name="shard-1", state="starting"),
    )
    return Topology(version=version, cluster="c1", shards=shards)


@pytest.fixture
async def make_shards():
    made = []

    def make(topology, **options):
        options = {"clock": Clock(), **options}
        shards = ShardSet(
            topology, settings=ConnectSettings(), is_alone=False, on_unknown=lambda operations: None, **options
        )
        made.append(shards)
        return shards

    yield make
    for shards in made:
        await shards.close(timeout_s=0.0)


def read(shards):
    return shards.by_name["shard-0"].replicas["copy"].call("get", "k", timeout_s=2.0)


async def test_a_replica_of_another_shard_at_the_address_is_not_believed(copy, make_shards):
    assert await read(make_shards(topology_of(copy))) == 7
    copy.identity = OTHER
    with pytest.raises(WrongShard):
        await read(make_shards(topology_of(copy)))


async def test_a_shard_with_another_identity_has_replicas_with_that(copy, make_shards):
    shards = make_shards(topology_of(copy))
    assert await read(shards) == 7
    copy.identity = OTHER
    copy.cut()
    assert shards.update(topology_of(copy, OTHER, version=2))
    assert await read(shards) == 7


async def test_a_replica_that_has_yet_to_hear_of_its_shard_is_no_other_one_later(copy, make_shards):
    copy.identity = ""
    shards = make_shards(topology_of(copy, identity=""))
    assert await read(shards) == 7
    copy.identity = SHARD
    copy.cut()
    assert await read(shards) == 7


async def test_the_newest_commit_is_that_of_whoever_changed_something(copy, make_shards):
    router = [3]
    shards = make_shards(topology_of(copy), router_commit=lambda shard: router[shard])
    number = shards.by_name["shard-0"].number
    router *= 2
    assert shards.commit_seen(number) == 3
    shards.note_commit(number, 5)
    shards.note_commit(number, 4)
    assert shards.commit_seen(number) == 5
    router[number] = 9
    assert shards.commit_seen(number) == 9

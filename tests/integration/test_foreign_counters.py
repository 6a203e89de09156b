"""A shard among others lists the counters that it holds though another is their home: what `health` gives of them."""

import pytest

from pycounter._native import ForeignKeys, HashRing
from tests.support.rpc_socket import RpcSocket
from tests.support.shard_process import ShardEnded

RING = HashRing(["shard-0", "shard-1"])
SETTINGS = {"name": "shard-0", "ring": ["shard-0=1", "shard-1=1"]}
KEYS = [f"key-{number}" for number in range(200)]
AWAY = [key for key in KEYS if RING.home(key) != "shard-0"]


def read(keys, rpc, start):
    health = rpc.call("health", {"foreign_from": start})
    foreign = health[b"foreign"]
    return keys.absorb(
        0,
        identity=health[b"identity"].decode(),
        epoch=health[b"epoch"],
        count=foreign[b"count"],
        from_=foreign[b"from"],
        hashes=foreign[b"hashes"],
        full=foreign[b"all"],
    )


def listed(keys):
    return [key for key in KEYS if keys.is_foreign(key)]


def test_what_is_not_at_home_is_listed_as_it_comes_and_after_a_start(start_shard):
    shard = start_shard(settings={**SETTINGS, "checkpoint_interval_s": 0.05})
    keys = ForeignKeys(2)
    with RpcSocket(shard.address) as rpc:
        position = read(keys, rpc, 0)
        assert listed(keys) == []
        for way in (
            lambda some: [rpc.call("incr", key) for key in some],
            lambda some: rpc.call("incr_many", [[key, 1] for key in some]),
            lambda some: rpc.call("apply", b"s" * 16, 1, 0, [[key, 1] for key in some]),
        ):
            some = KEYS[position : position + 60]
            way(some)
            way_home = listed(keys)
            position = read(keys, rpc, position)
            assert set(listed(keys)) == set(way_home) | (set(some) & set(AWAY))
        rpc.call("incr_many", [[key, 1] for key in KEYS])
        position = read(keys, rpc, position)
        assert listed(keys) == AWAY
        assert position == len(AWAY) == rpc.call("stats")[b"counters_foreign"]
        rpc.call("delete", AWAY[0])
        # Reading them, and adding to them, lists nothing anew.
        rpc.call("get_many", KEYS)
        rpc.call("incr", AWAY[1])
        assert rpc.call("health", {"foreign_from": position})[b"foreign"] == {
            b"count": position,
            b"from": position,
            b"hashes": b"",
            b"all": False,
        }
    shard.kill()
    shard.start()
    with RpcSocket(shard.address) as rpc:
        assert read(keys, rpc, position) == 0, "another epoch has another list"
        assert read(keys, rpc, 0) in {len(AWAY), len(AWAY) - 1}
        assert set(AWAY[1:]) <= set(listed(keys)) <= set(AWAY)


def test_a_shard_alone_has_nothing_foreign(rpc):
    rpc.call("incr", "a")
    assert b"foreign" not in rpc.call("health")
    foreign = rpc.call("health", {"foreign_from": 3})[b"foreign"]
    assert foreign == {b"count": 0, b"from": 0, b"hashes": b"", b"all": False}


def test_a_ring_without_the_shard_is_refused(start_shard):
    with pytest.raises(ShardEnded, match="ring has no shard 'shard-0'"):
        start_shard(settings={"name": "shard-0", "ring": ["shard-1=1"]})
    with pytest.raises(ShardEnded, match="ring has 'shard-0'"):
        start_shard(settings={"ring": ["shard-0"]})


def test_the_topology_is_answered_at_once_to_whoever_has_none(rpc):
    topology = rpc.call("topology")
    assert rpc.call("watch_topology") == rpc.call("watch_topology", 0) == topology
    # Who has it waits, and hinders nobody.
    rpc.begin("watch_topology", topology[b"version"])
    assert rpc.call("ping") == b"pong"

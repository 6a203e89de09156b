"""A connection that is cut at every byte of a request, and at every byte of its reply.

Whoever then connects anew and sends the same under the same id or number gets what the first attempt gave or would have
given, and it has counted once.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from tests.support.fault_proxy import Direction, FaultProxy
from tests.support.rpc_socket import request
from tests.support.rpc_stream import RpcStream

#: A request by the attempt's number, which makes its ids, and what it answers where nothing counted yet.
SHAPES: dict[str, Callable[[int], tuple[str, list[Any], Any]]] = {
    "incr with an id": lambda n: ("incr", [f"a{n}", 7, {"id": b"id-%06d" % n}], 7),
    "drain with an id": lambda n: ("drain", [f"full{n}", {"id": b"id-%06d" % n}], 5),
    "incr_many with ids": lambda n: (
        "incr_many",
        [[[f"a{n}", 1, b"x-%06d" % n], [f"a{n}", 2, b"y-%06d" % n], ["", 1]]],
        [1, 3, b"bad_key: a key is a string of 1 to 1024 bytes"],
    ),
    "apply": lambda n: ("apply", [b"%016d" % n, 1, 0, [[f"a{n}", 1], [f"a{n}", 2]]], [1, 3]),
}
COUNTED = {"incr with an id": 7, "drain with an id": 0, "incr_many with ids": 3, "apply": 3}


def settled(result: Any) -> Any:
    """The part of a result that a repetition must give again."""
    return result[b"results"] if isinstance(result, dict) else result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", ["applied", "durable"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_cut_at_every_byte(start_shared_shard, cut_shards, shape, level, reset):
    shard = cut_shards(level)
    direct = await RpcStream.open(shard.address)
    ways = {"to_server": 0, "to_client": 1}
    async with FaultProxy(shard.address) as proxy:
        for way, number in ways.items():
            length, at = 1_000_000, 0
            while at <= length:
                unique = (number * 1000 + at) * 16 + list(SHAPES).index(shape) * 2 + reset
                method, params, expected = SHAPES[shape](unique)
                if method == "drain":
                    await direct.call("incr", f"full{unique}", 5)
                if way == "to_server":
                    length = len(request(1, method, *params))
                setattr(proxy, way, Direction(cut_after=at, reset=reset))
                first = await outcome(proxy, method, params)
                proxy.restore()
                assert first in (None, expected), f"cut at byte {at} {way}"
                if way == "to_client" and first is not None:
                    length = at  # the reply came whole: this was its last byte
                again = await outcome(proxy, method, params)
                assert again == expected, f"cut at byte {at} {way}"
                key = params[0] if method == "drain" else f"a{unique}"
                assert await direct.call("get", key) == COUNTED[shape], f"cut at byte {at} {way}"
                at += 1
            assert at > 4
    direct.close()


async def outcome(proxy: FaultProxy, method: str, params: list[Any]) -> Any:
    """What one attempt on a connection of its own got; None where the connection ended first."""
    stream = await RpcStream.open(proxy.address)
    try:
        with contextlib.suppress(ConnectionResetError):
            return settled(await stream.call(method, *params))
        return None
    finally:
        stream.close()


@pytest.fixture(scope="module")
def cut_shards(start_shared_shard):
    """One shard for each level."""
    shards = {}

    def shard(level):
        if level not in shards:
            shards[level] = start_shared_shard(name=level, settings={"level": level})
        return shards[level]

    return shard


async def test_a_network_that_swallows_and_comes_back(shard):
    async with FaultProxy(shard.address) as proxy:
        stream = await RpcStream.open(proxy.address)
        assert await stream.call("incr", "a", 1, {"id": "one"}) == 1
        proxy.to_client.swallow = True
        lost: list[Any] = []
        stream.send(lambda _, result: lost.append(result), "incr", "a", 1, {"id": "two"})
        while proxy.bytes_swallowed == 0:  # it got there, and its reply gets lost
            await asyncio.sleep(0.01)
        proxy.restore()
        # The connection is still there, and a repetition on it is answered: the reply before it never comes.
        assert await stream.call("incr", "a", 1, {"id": "two"}) == 2
        assert lost == []
        stream.close()


async def test_a_slow_network_changes_nothing(shard):
    async with FaultProxy(shard.address) as proxy:
        proxy.to_server = Direction(delay_s=0.01, bytes_per_s=200_000)
        proxy.to_client = Direction(delay_s=0.01, bytes_per_s=200_000)
        stream = await RpcStream.open(proxy.address)
        results: list[int] = []
        for _ in range(1000):
            stream.send(lambda _, result: results.append(result), "incr", "a")
        assert await stream.call("get", "a") == 1000
        assert results == list(range(1, 1001))
        assert proxy.bytes_to_server >= len(msgpack.packb([0, 1, "incr", ["a"]])) * 1000
        stream.close()

"""Clients of others, unchanged: redis-py, redis-cli, redis-benchmark, aio-msgpack-rpc."""

import asyncio
import re
import shutil
import subprocess

import aio_msgpack_rpc
import pytest
import redis
import redis.asyncio

needs_redis_tools = pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-tools are not installed")


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(shard, protocol):
    with redis.Redis("127.0.0.1", shard.address[1], protocol=protocol, decode_responses=True) as client:
        assert client.ping()
        assert client.incr("hits") == 1
        assert client.incr("hits", 41) == 42
        assert client.decr("hits", 2) == 40
        assert client.get("hits") == "40"
        assert client.get("never") is None
        assert client.set("other", 5)
        assert client.mget("hits", "other", "never") == ["40", "5", None]
        assert client.exists("hits", "never") == 1
        assert client.type("hits") == "string"
        assert client.getdel("other") == "5"
        assert client.dbsize() == 1
        assert set(client.scan_iter(match="h*")) == {"hits"}
        assert client.echo("hello") == "hello"
        assert client.info()["redis_version"]
        with pytest.raises(redis.ResponseError, match="overflow"):
            client.incr("hits", 2**63 - 1)
        assert client.delete("hits", "never") == 1
        client.incr("x")
        assert client.flushall()
        assert client.dbsize() == 0


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("transaction", [True, False])
def test_redis_py_pipelines(shard, protocol, transaction):
    with redis.Redis("127.0.0.1", shard.address[1], protocol=protocol) as client:
        pipeline = client.pipeline(transaction=transaction)
        for number in range(100):
            pipeline.incr("a").incr(f"b{number % 3}", number)
        results = pipeline.execute()
        assert results[::2] == list(range(1, 101))
        assert client.get("a") == b"100"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py_asyncio(shard, protocol):
    async with redis.asyncio.Redis(host="127.0.0.1", port=shard.address[1], protocol=protocol) as client:
        assert await client.incr("hits") == 1
        async with client.pipeline() as pipeline:
            for _ in range(2):
                pipeline.incr("hits")
            pipeline.get("hits")
            assert await pipeline.execute() == [2, 3, b"3"]


async def test_aio_msgpack_rpc(shard):
    client = aio_msgpack_rpc.Client(*await asyncio.open_connection("127.0.0.1", shard.address[1]))
    try:
        assert await client.call("incr", "hits", 5) == 5
        assert await client.call("incr", "hits") == 6
        assert await client.call("get_many", ["hits", "never"]) == [6, 0]
        with pytest.raises(Exception, match="bad_delta"):
            await client.call("incr", "hits", "many")
    finally:
        client.close()


@needs_redis_tools
def test_redis_cli(shard):
    cli = ("redis-cli", "-p", str(shard.address[1]))
    assert run(*cli, "incr", "hits").strip() == "1"
    assert run(*cli, "-3", "incrby", "hits", "41").strip() == "42"
    assert run(*cli, "--scan").split() == ["hits"]
    assert "pycounter_shard" in run(*cli, "info")
    assert "unknown command" in run(*cli, "lpush", "list", "1")


@needs_redis_tools
def test_redis_benchmark(shard):
    output = run(
        *("redis-benchmark", "-p", str(shard.address[1]), "-t", "ping_inline,ping,incr,get,mget"),
        *("-P", "16", "-n", "20000", "-r", "1000", "-q"),
    )
    assert len(re.findall(r"requests per second", output)) >= 4, output
    with redis.Redis("127.0.0.1", shard.address[1]) as client:
        total = sum(int(client.get(key) or 0) for key in client.scan_iter(count=1000))
        assert total == 20_000

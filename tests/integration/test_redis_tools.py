"""What Redis's clients and tools ask of a server by themselves, at a shard and at a coordinator."""

import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.fixtures import StartShard
from tests.support.resp_socket import RespSocket, command

TRANSACTION = 600_000


@pytest.fixture(scope="module", params=["shard", "coordinator"])
def server(
    request: pytest.FixtureRequest, start_shared_shard: StartShard, start_shared_cluster: Callable[..., Any]
) -> tuple[str, int]:
    """The address of one of the two."""
    started = start_shared_shard() if request.param == "shard" else start_shared_cluster(shards=2)
    address: tuple[str, int] = started.address
    return address


def connected(server: tuple[str, int], protocol: int) -> redis.Redis:
    return redis.Redis(*server, protocol=protocol, decode_responses=True, retry=Retry(NoBackoff(), 0))


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(server, protocol):
    with connected(server, protocol) as client:
        client.flushall()
        assert client.mset({"a": 1, "b": 2}) is True
        assert client.incr("a", 4) == 5
        assert client.getset("a", 7) == "5"
        assert sorted(client.keys("*")) == ["a", "b"]
        assert client.randomkey() in ("a", "b")
        assert (client.strlen("a"), client.touch("a", "c"), client.unlink("b", "c")) == (1, 1, 1)
        assert client.object("encoding", "a") == "int"
        assert client.memory_usage("a") > 8
        assert client.memory_usage("never") is None
        assert client.wait(0, 10) == 0
        assert client.lastsave().year > 2000
        assert client.time()[0] > 1_000_000_000
        assert client.config_get("APPEND*") == {"appendonly": "yes", "appendfsync": "always"}
        names = set(client.command_list())
        assert {"incr", "client|list"} < names
        assert client.command_count() == len({name for name in names if "|" not in name}) == len(client.command())
        assert client.command_getkeys("MSET", "a", 1, "b", 2) == ["a", "b"]
        with pytest.raises(redis.ResponseError, match="no channels to subscribe to"):
            client.execute_command("SUBSCRIBE", "news")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py_async(server, protocol):
    async with redis.asyncio.Redis(host=server[0], port=server[1], protocol=protocol, decode_responses=True) as client:
        await client.flushall()
        async with client.pipeline(transaction=True) as pipe:
            pipe.incr("a")
            pipe.execute_command("INCRBY", "a", "x")
            pipe.incr("a")
            answers = await pipe.execute(raise_on_error=False)
        assert (answers[0], str(answers[1]).split(" (")[0], answers[2]) == (
            1,
            "value is not an integer or out of range",
            2,
        )
        assert (await client.info("keyspace"))["db0"]["keys"] == 1


def test_connections_are_told_and_closed(server):
    with connected(server, 3) as client, connected(server, 2) as other:
        other.client_setname("the-other")
        other.client_setinfo("LIB-NAME", "a-library")
        (row,) = [row for row in client.client_list() if row["name"] == "the-other"]
        assert row["lib-name"] == "a-library"
        assert (row["resp"], row["user"], row["multi"]) == ("2", "default", "-1")
        address = re.fullmatch(r"127\.0\.0\.1:(\d+)", row["addr"])
        assert address is not None
        own = client.client_info()
        assert str(own["id"]) == str(client.client_id()) != row["id"]
        assert client.client_kill_filter(_id="999999999") == 0
        assert client.client_kill_filter(addr=row["addr"]) == 1
        assert [row for row in client.client_list() if row["name"] == "the-other"] == []
        with pytest.raises(redis.ResponseError, match="No such client"):
            client.client_kill(row["addr"])


def test_info_has_what_its_readers_read(server):
    with connected(server, 2) as client:
        client.flushall()
        before = client.info()
        for _ in range(10):
            client.incr("a")
        with connected(server, 2) as other:
            other.ping()
            after = client.info()
        assert after["connected_clients"] >= 2
        assert after["total_commands_processed"] - before["total_commands_processed"] >= 11
        assert after["total_connections_received"] > before["total_connections_received"]
        assert after["total_net_input_bytes"] > before["total_net_input_bytes"]
        assert after["tcp_port"] == server[1] == int(client.config_get("port")["port"])
        assert re.fullmatch("[0-9a-f]{40}", after["run_id"])
        assert after["run_id"] == before["run_id"]
        assert after["used_memory"] > 1_000_000
        assert after["used_memory_peak"] >= after["used_memory"] // 2
        assert after["used_cpu_user"] + after["used_cpu_sys"] > 0
        assert after["db0"]["keys"] == 1
        assert (after["loading"], after["blocked_clients"], after["cluster_enabled"]) == (0, 0, 0)
        assert set(client.info("stats")) & {"total_commands_processed", "used_memory"} == {"total_commands_processed"}
        assert "used_memory" in client.info("MEMORY")


def test_a_transaction_that_is_too_large_ends_in_an_error(server):
    """However much a client sends before it reads anything."""
    with RespSocket(server) as connection:
        connection.call("FLUSHALL")
        connection.send(command("MULTI") + command("INCR", "a") * TRANSACTION + command("EXEC") + command("DBSIZE"))
        assert connection.reply() == b"OK"
        answers = connection.replies(TRANSACTION)
        assert [number for number, answer in enumerate(answers) if answer != b"QUEUED"] == [65_536]
        assert "65536 commands and 4 MiB at most" in str(answers[65_536])
        assert str(connection.reply()).startswith("EXECABORT ")
        assert connection.reply() == 0


def redis_cli(server: tuple[str, int], *arguments: str, typed: str | None = None) -> str:
    words = ["redis-cli", "-h", server[0], "-p", str(server[1]), *arguments]
    run = subprocess.run(words, input=typed, capture_output=True, text=True, timeout=60, check=True)
    return re.sub(r"\x1b\[\d+m", "", run.stdout)


def test_redis_cli_shows_figures(server):
    with RespSocket(server) as connection:
        connection.call("FLUSHALL")
        connection.call("INCR", "a")
    words = ["redis-cli", "-h", server[0], "-p", str(server[1]), "--stat", "-i", "0.01"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(4)]
        finally:
            process.kill()
    # Keys, memory, clients, blocked, requests, connections.
    found = re.match(r"(\d+) +([\d.]+)M +(\d+) +0 +(\d+) \(\+\d+\) +(\d+)", lines[3])
    assert found is not None, lines
    assert found[1] == "1"
    assert min(int(found[3]), int(found[4]), int(found[5])) >= 1


def test_redis_cli_helps(server):
    assert "summary: Adds; gives the value after." in redis_cli(server, typed="help incrby\n")
    assert "INCRBY key n" in redis_cli(server, typed="help incrby\n")
    assert "CLIENT SETNAME" in redis_cli(server, typed="help client setname\n")
    assert "SETNAME name" in redis_cli(server, "CLIENT", "HELP")


def test_a_benchmark_that_sets_text_is_told_why_not(server):
    words = ["redis-benchmark", "-h", server[0], "-p", str(server[1]), "-t", "set", "-n", "10", "-q"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "PyCounter stores counters: a value must be an integer" in run.stdout + run.stderr

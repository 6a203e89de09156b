"""A Unix socket beside the port, of a shard and a cluster: both protocols, and what is in the way at a start."""

import asyncio
import os
import signal
import socket
import stat

import pytest

import pycounter
from pycounter.errors import PyCounterError, Unavailable
from pycounter.net.unix_socket import UnixSocket
from tests.support.credentials import TOKEN, write_token
from tests.support.resp_socket import RespSocket
from tests.support.rpc_socket import RpcSocket
from tests.support.shard_process import ShardEnded


@pytest.fixture
def path(tmp_path):
    return tmp_path / "counters.sock"


@pytest.fixture
def here(path, monkeypatch):
    """Where clients of tests connect to; their sockets are the same but for the address."""

    def connect(address, timeout=None):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(timeout)
        client.connect(str(address))
        return _UnixClient(client)

    monkeypatch.setattr(socket, "create_connection", connect)
    return path


class _UnixClient:
    """A socket on which there is no TCP to set anything of."""

    def __init__(self, client):
        self._client = client

    def setsockopt(self, *_):
        pass

    def __getattr__(self, name):
        return getattr(self._client, name)


@pytest.fixture(scope="module")
def shared_cluster(start_shared_cluster, tmp_path_factory):
    path = tmp_path_factory.mktemp("unix") / "counters.sock"
    start_shared_cluster(shards=2, arguments=["--unix", str(path)])
    return path


def count_over_both(path):
    with RespSocket(path) as resp, RpcSocket(path) as rpc:
        before = rpc.call("get", "a")
        assert resp.call("INCRBY", "a", 2) == before + 2
        assert rpc.call("incr", "a") == before + 3
        assert isinstance(resp.call("CLIENT", "LIST"), bytes)


def test_a_shard_serves_both_protocols_and_removes_the_file(start_shard, here):
    shard = start_shard(arguments=["--unix", str(here)])
    assert stat.S_ISSOCK(here.stat().st_mode)
    count_over_both(here)
    assert shard.terminate() == 0
    assert not here.exists()


def test_a_file_of_a_killed_server_is_replaced(start_shard, here):
    shard = start_shard(arguments=["--unix", str(here)])
    shard.kill()
    assert here.exists()
    shard.start()
    count_over_both(here)


def test_a_token_is_needed_there_too(start_shard, here, tmp_path):
    start_shard(arguments=["--unix", str(here), "--token-file", write_token(tmp_path)])
    with RespSocket(here) as resp:
        assert resp.outcome("INCR", "a").word == "NOAUTH"
        assert resp.call("AUTH", TOKEN) == b"OK"
        assert resp.call("INCR", "a") == 1


def test_a_cluster_serves_both_protocols_at_a_socket(start_cluster, here):
    cluster = start_cluster(shards=2, arguments=["--unix", str(here)])
    count_over_both(here)
    cluster.kill_process("coordinator-0")
    count_over_both(here)  # who connects meanwhile waits for the next coordinator
    cluster.kill()
    cluster.start()
    count_over_both(here)
    cluster.send_signal(signal.SIGTERM)
    assert cluster.wait() == 0
    assert not here.exists()


async def test_a_client_of_a_shard(start_shard, path, tmp_path):
    shard = start_shard(arguments=["--unix", str(path), "--token-file", write_token(tmp_path)])
    async with pycounter.connect(f"pycounter+unix://{TOKEN}@{path}") as client:
        assert await client.incr("a") == 1
        assert await client.incr_many([("a", 1), ("b", 1)]) == [2, 1]
        shard.kill()
        counting = asyncio.create_task(client.incr("a", timeout_s=60.0))
        await asyncio.to_thread(shard.start)
        assert await counting == 3
        assert await client.get_many(["a", "b"]) == [3, 1]
    with pytest.raises(Unavailable, match=f"can't reach {path}x .*No such file"):
        await pycounter.connect(f"pycounter+unix://{path}x", connect_timeout_s=0.2)


@pytest.mark.parametrize("route", ["auto", "direct", "coordinator"])
async def test_a_client_of_a_cluster(shared_cluster, route):
    async with pycounter.connect(f"pycounter+unix://{shared_cluster}?route={route}") as client:
        assert client.route == {"auto": "direct"}.get(route, route)
        assert await client.incr_many([(f"{route}-{number}", 1) for number in range(20)]) == [1] * 20
        assert (await client.total(f"{route}-3", accuracy="exact")).total == 1


def test_what_is_in_the_way_is_said_and_left_alone(start_shard, path, tmp_path):
    path.write_text("notes")
    with pytest.raises(ShardEnded) as end:
        start_shard(arguments=["--unix", str(path)])
    assert end.value.status == 1
    assert f"pycounter: can't listen on {path}: it is there and is no socket; nothing was removed" in end.value.output
    assert path.read_text() == "notes"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone/x.sock", r"there is no folder \S+/gone$"),
        ("x" * 108, r"the path has \d+ bytes, and that of a socket may have 107 at most$"),
    ],
)
def test_paths_that_cannot_be(tmp_path, name, said):
    with pytest.raises(PyCounterError, match=said):
        UnixSocket(str(tmp_path / name))


def test_a_server_that_listens_is_not_pushed_aside(path):
    first = UnixSocket(str(path))
    with pytest.raises(PyCounterError, match=r": another server does$"):
        UnixSocket(str(path))
    path.unlink()
    second = UnixSocket(str(path))
    first.close()
    assert path.exists(), "another server's file stays"
    second.close()
    second.close()
    assert not path.exists()


def test_the_umask_says_who_may_connect(path):
    before = os.umask(0o077)
    try:
        listener = UnixSocket(str(path))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o700
    listener.close()

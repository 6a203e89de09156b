"""What an operator relies on: the shard's name, figures, and when idle connections are closed."""

import secrets
import time

import pytest

from tests.support.resp_socket import RespSocket
from tests.support.rpc_socket import ConnectionClosed, RpcSocket
from tests.support.shard_process import ShardEnded

DEADLINE_S = 60.0


def figures_until(rpc, what):
    """Asks until the figures are as wanted; gives them."""
    deadline = time.monotonic() + DEADLINE_S
    while not what(figures := rpc.call("stats")):
        assert time.monotonic() < deadline, figures
        time.sleep(0.02)
    return figures


# --- the name --------------------------------------------------------------------------------------------------------


def told_names(shard):
    with RpcSocket(shard.address) as rpc:
        topology = rpc.call("topology")[b"shards"][0][b"name"]
        (partial,) = rpc.call("total", "a")[b"partials"]
        return {rpc.call("hello")[b"shard"], rpc.call("stats")[b"shard"], topology, partial}


def test_a_folder_keeps_its_name(start_shard):
    shard = start_shard(settings={"name": "blue"})
    assert (shard.ready.shard, told_names(shard)) == ("blue", {b"blue"})
    shard.terminate()
    # Not set, it is the folder's, and not the default.
    shard = start_shard()
    assert (shard.ready.shard, told_names(shard)) == ("blue", {b"blue"})
    shard.terminate()
    with pytest.raises(ShardEnded) as end:
        start_shard(settings={"name": "red"})
    assert end.value.status == 1
    assert f"pycounter: name is 'red', but the shard in {shard.directory} keeps the name" in end.value.output
    assert start_shard(settings={"name": "blue"}).ready.shard == "blue"


def test_a_new_folder_has_the_name_that_is_documented(shard):
    assert (shard.ready.shard, told_names(shard)) == ("shard-0", {b"shard-0"})


# --- figures ---------------------------------------------------------------------------------------------------------


def test_refusals_of_both_protocols_are_counted(rpc, resp):
    before = rpc.call("stats")[b"errors"]
    largest = 2**63 - 1
    assert rpc.call("incr", "a", largest) == largest
    # Plain increments, which take the short way, then others.
    for refused in range(1, 4):
        assert rpc.outcome("incr", "a", largest).code == "overflow"
        assert "overflow" in str(resp.outcome("INCRBY", "a", str(largest)))
        assert rpc.call("stats")[b"errors"] == before + 2 * refused
    before += 6
    resp.outcome("NO-SUCH-COMMAND")
    resp.outcome("EXEC")
    resp.outcome("SET", "a", "1.5")
    rpc.outcome("no_such_method")
    rpc.outcome("apply", secrets.token_bytes(16), 2, 0, [["a", 1]])
    rpc.call("incr_many", [["", 1]])
    assert rpc.call("stats")[b"errors"] == before + 5


def test_checkpoints_the_log_and_refused_connections_are_counted(start_shard):
    shard = start_shard(settings={"connections_max": 1, "checkpoint_interval_s": 0.05})
    with RpcSocket(shard.address) as rpc:
        for _ in range(2):
            made = rpc.call("stats")[b"checkpoints"]
            rpc.call("incr", "a")
            figures_until(rpc, lambda figures, made=made: figures[b"checkpoints"] > made)
        assert rpc.call("stats")[b"checkpoints_failed"] == 0
        assert figures_until(rpc, lambda figures: figures[b"log_bytes"] > 0)
        with RespSocket(shard.address) as refused:
            assert len(refused.read_to_end()) == 1
        assert figures_until(rpc, lambda figures: figures[b"connections_refused"] == 1)
        health = rpc.call("health")
        assert health.keys() == {b"name", b"identity", b"epoch", b"state", b"commit_durable", b"pending"}


def test_what_a_start_cuts_off_the_log_is_told(start_shard):
    shard = start_shard()
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr", "a")
        assert rpc.call("stats")[b"torn_bytes"] == 0
    shard.kill()
    (log,) = (shard.directory / "log").iterdir()
    with log.open("ab") as file:
        file.write(b"torn!")
    shard.start()
    with RpcSocket(shard.address) as rpc, RespSocket(shard.address) as resp:
        assert (rpc.call("stats")[b"torn_bytes"], rpc.call("get", "a")) == (5, 1)
        assert b"\r\npycounter_torn_bytes:5\r\n" in resp.call("INFO", "PyCounter")


# --- idle connections ------------------------------------------------------------------------------------------------


def test_an_idle_connection_is_closed_and_not_before_its_time(start_shard):
    idle_timeout_s = 1.0
    shard = start_shard(settings={"idle_timeout_s": idle_timeout_s})
    for pause_s in (0.0, 0.3):
        with RpcSocket(shard.address) as rpc:
            time.sleep(pause_s)
            began = time.monotonic()
            assert rpc.call("ping") == b"pong"
            with pytest.raises(ConnectionClosed):
                rpc.message()
            assert time.monotonic() - began >= idle_timeout_s

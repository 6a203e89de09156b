"""Replicas of a cluster: they follow their shards, come back when killed, and come and go at run time."""

import signal
import socket
import subprocess
import sys

import pytest

from pycounter.cluster.control import ask_supervisor
from pycounter.errors import PyCounterError
from tests.support.rpc_socket import RpcSocket
from tests.support.waiting import wait_until


def call(address, method, *params):
    with RpcSocket(address) as rpc:
        return rpc.outcome(method, *params)


def replica_address(cluster, name):
    shard = cluster.topology().shard(name.partition("-replica-")[0])
    (address,) = (replica.endpoint for replica in shard.replicas if replica.name == name)
    return address


def test_a_replica_follows_its_shard_and_outlives_it(start_cluster):
    cluster = start_cluster(shards=2, replicas=1)
    topology = cluster.wait_all_ok()
    assert [replica.name for shard in topology.shards for replica in shard.replicas] == [
        "shard-0-replica-0",
        "shard-1-replica-0",
    ]
    shard, replica = topology.shard("shard-1").endpoint, replica_address(cluster, "shard-1-replica-0")
    assert call(shard, "incr", "a", 5) == 5
    wait_until(lambda: call(replica, "get", "a") == 5)
    pid = cluster.pids()["shard-1-replica-0"]
    cluster.send_signal_to("shard-1", signal.SIGSTOP)
    assert call(replica, "get", "a") == 5
    cluster.send_signal_to("shard-1", signal.SIGKILL)
    cluster.wait_restarted("shard-1")
    assert call(shard, "incr", "a") == 6
    wait_until(lambda: call(replica, "get", "a") == 6)
    assert cluster.pids()["shard-1-replica-0"] == pid
    assert "lag_ms" in cluster.status()["facts"]["shard-1-replica-0"]


def test_a_coordinator_leads_to_a_replica(start_cluster):
    cluster = start_cluster(shards=1, replicas=1)
    cluster.wait_all_ok()
    assert call(cluster.address, "incr", "a", 5) == 5
    with RpcSocket(cluster.address) as rpc:
        assert rpc.call("hello", {"shard": "shard-0-replica-0"})[b"identity"]
        wait_until(lambda: rpc.call("get", "a") == 5)
        assert b"lag_ms" in rpc.call("health")
    with RpcSocket(replica_address(cluster, "shard-0-replica-0")) as rpc:
        assert rpc.outcome("hello", {"shard": "shard-0"}).code == "wrong_shard"


def test_what_went_through_a_coordinator_is_in_what_its_clients_read_of_replicas(start_cluster):
    cluster = start_cluster(shards=2, replicas=1)
    cluster.wait_all_ok()
    with RpcSocket(cluster.address) as rpc:
        for number in range(1, 51):
            assert rpc.call("incr", "a") == number
            assert rpc.call("get", "a", {"read_from": "replica"}) == number
            assert rpc.call("drain", "b") == number - 1
            assert rpc.call("get", "b", {"read_from": "replica"}) == 0
            assert rpc.call("incr", "b", number) == number


def test_a_replica_that_is_killed_comes_back_at_its_address(start_cluster):
    cluster = start_cluster(shards=1, replicas=1)
    cluster.wait_all_ok()
    address = replica_address(cluster, "shard-0-replica-0")
    cluster.kill_process("shard-0-replica-0")
    cluster.wait_restarted("shard-0-replica-0")
    assert replica_address(cluster, "shard-0-replica-0") == address
    assert call(address, "get", "a") == 0


def test_replicas_come_and_go_at_run_time_and_are_remembered(start_cluster):
    cluster = start_cluster(shards=2)

    def replica(*words):
        command = [sys.executable, "-m", "pycounter", "replica", *words, "--data", cluster.directory]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    pids = cluster.pids()
    assert replica("add", "shard-1").stdout.startswith("shard-1-replica-0 is being started.")
    assert replica("add", "shard-1").stdout.startswith("shard-1-replica-1 is being started.")
    topology = cluster.wait_all_ok()
    assert {name: len(topology.shard(name).replicas) for name in ("shard-0", "shard-1")} == {"shard-0": 0, "shard-1": 2}
    assert pids.items() <= cluster.pids().items(), "nothing else was restarted"
    removed = cluster.pids()["shard-1-replica-1"]
    assert replica("remove", "shard-1").stdout.startswith("shard-1-replica-1 is stopped")
    assert cluster.topology().process("shard-1-replica-1") is None
    assert removed not in cluster.children_left()
    cluster.restart()
    assert [replica.name for replica in cluster.wait_all_ok().shard("shard-1").replicas] == ["shard-1-replica-0"]
    assert replica("remove", "shard-1-replica-0").returncode == 0
    assert replica("remove", "shard-1-replica-0").returncode == 1
    with pytest.raises(PyCounterError, match="shard-1 has no replica"):
        ask_supervisor(cluster.directory, {"do": "replica remove", "shard": "shard-1"})


def test_a_shard_whose_port_was_taken_is_followed_at_its_new_one(start_cluster):
    cluster = start_cluster(shards=1, replicas=1)
    before = cluster.wait_all_ok().shard("shard-0").endpoint
    cluster.terminate()
    with socket.create_server(before):
        cluster.start()
        after = cluster.wait_all_ok().shard("shard-0").endpoint
        assert after[1] != before[1]
        assert call(after, "incr", "a") == 1
        wait_until(lambda: call(replica_address(cluster, "shard-0-replica-0"), "get", "a") == 1)

"""A cluster as an operator has it: what is killed comes back, what stalls is left alone, and nothing is left behind."""

import fcntl
import os
import shutil
import signal
import time

import pytest

from pycounter.cluster.control import ask_supervisor
from pycounter.errors import PyCounterError
from tests.support.cluster_process import is_there
from tests.support.credentials import TOKEN, write_token
from tests.support.rpc_socket import RpcSocket
from tests.support.shard_process import ShardEnded
from tests.support.waiting import wait_until

KEPT_ACROSS = {"stall_timeout_s": 1.0}


def shard_call(cluster, name, method, *params):
    """Calls a method of one shard, past the coordinators."""
    endpoint = cluster.topology().shard(name).endpoint
    with RpcSocket(endpoint) as rpc:
        return rpc.call(method, *params)


# --- starting and stopping -------------------------------------------------------------------------------------------


def test_every_shard_is_a_process_with_a_folder_and_a_name_of_its_own(start_cluster):
    cluster = start_cluster(shards=2)
    assert cluster.said["shards"] == ["shard-0", "shard-1"]
    assert cluster.said["coordinators"] == ["coordinator-0"]
    pids = cluster.pids()
    assert len(set(pids.values())) == len(pids) == 4
    for number in range(2):
        hello = shard_call(cluster, f"shard-{number}", "hello")
        shard = cluster.topology().shard(f"shard-{number}")
        assert hello[b"shard"].decode() == shard.name
        assert hello[b"identity"].decode() == shard.identity
        assert (cluster.directory / "shards" / shard.name / "manifest.json").exists()
    assert (cluster.directory / "control.sock").stat().st_mode & 0o777 == 0o600
    assert cluster.topology().cluster == cluster.ready.identity


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_orderly_stop_leaves_no_process_and_clean_folders(start_cluster, number):
    cluster = start_cluster(shards=2)
    pids = cluster.pids()
    assert shard_call(cluster, "shard-0", "incr", "a", 5) == 5
    cluster.send_signal(number)
    assert cluster.wait() == 0
    assert [pid for pid in pids.values() if is_there(pid)] == []
    assert cluster.children_left() == []
    with pytest.raises(PyCounterError, match="no supervisor runs on"):
        cluster.status()
    cluster.start()
    assert shard_call(cluster, "shard-0", "get", "a") == 5
    # Nothing to replay: the shards were stopped in good order as well.
    assert shard_call(cluster, "shard-0", "stats")[b"torn_bytes"] == 0


def test_ports_identities_and_the_cluster_survive_and_versions_rise(start_cluster):
    cluster = start_cluster(shards=2)
    before, first = cluster.topology(), cluster.ready
    cluster.terminate()
    cluster.start()
    after, second = cluster.topology(), cluster.ready
    assert [(shard.name, shard.address, shard.identity) for shard in after.shards] == [
        (shard.name, shard.address, shard.identity) for shard in before.shards
    ]
    assert second.identity == first.identity
    assert second.epoch == first.epoch + 1
    assert after.version > before.version


def test_kill_9_of_the_supervisor_leaves_no_process_and_the_next_start_works_at_once(start_cluster):
    cluster = start_cluster(shards=2)
    port = cluster.ready.port
    pids = cluster.pids()
    shard_call(cluster, "shard-1", "incr", "a", 7)
    cluster.kill()
    # At once, on the same port: the start deals with whatever is still ending.
    cluster.change_arguments("--port", str(port))
    cluster.start()
    assert cluster.ready.port == port
    assert shard_call(cluster, "shard-1", "get", "a") == 7
    assert [pid for pid in pids.values() if is_there(pid)] == []
    assert sorted(cluster.children_left()) == sorted(
        pid for name, pid in cluster.pids().items() if name != "supervisor"
    )


def test_a_second_signal_ends_hard(start_cluster):
    cluster = start_cluster(shards=1)
    pids = cluster.pids()
    # A stop that takes long: a process that does not hear.
    cluster.send_signal_to("coordinator-0", signal.SIGSTOP)
    cluster.send_signal_to("shard-0", signal.SIGSTOP)
    cluster.send_signal(signal.SIGTERM)
    cluster.send_signal(signal.SIGTERM)
    cluster.wait()
    wait_until(lambda: not any(is_there(pid) for pid in pids.values()))


# --- what exits is started again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shard-1", "coordinator-0"])
def test_what_is_killed_is_started_again_and_the_rest_never_noticed(start_cluster, name):
    cluster = start_cluster(shards=2)
    before = cluster.pids()
    shard_call(cluster, "shard-1", "incr", "a", 3)
    killed = cluster.kill_process(name)
    process = cluster.wait_restarted(name)
    assert (process.restarts, process.reason) == (1, "ended by SIGKILL")
    after = cluster.pids()
    assert after.pop(name) != killed
    assert before.pop(name) == killed
    assert after == before
    assert shard_call(cluster, "shard-1", "get", "a") == 3
    assert any(f"{name} ended by SIGKILL" in event for event in cluster.events())


def test_the_topology_follows_each_change(start_cluster):
    cluster = start_cluster(shards=2)
    versions = [cluster.topology().version]
    states = []
    cluster.kill_process("shard-0")
    while True:
        topology = cluster.topology()
        if topology.version != versions[-1]:
            versions.append(topology.version)
            states.append(topology.shard("shard-0").state)
        if states and states[-1] == "ok":
            break
        time.sleep(0.005)
    assert versions == sorted(set(versions))
    assert "starting" in states
    assert set(states) <= {"down", "starting", "ok"}


def test_a_shard_that_can_not_start_is_reported_and_the_rest_serve(start_cluster):
    cluster = start_cluster(shards=2)
    shard_call(cluster, "shard-0", "incr", "a", 1)
    cluster.terminate()
    manifest = cluster.directory / "shards" / "shard-1" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20])
    cluster.start()
    assert "manifest" in cluster.said["not_ready"]["shard-1"]
    process = cluster.process("shard-1")
    assert process.state == "down"
    assert "ended with exit code 1: " in process.reason
    assert "manifest" in process.reason
    assert shard_call(cluster, "shard-0", "get", "a") == 1
    # Mended, it joins without anything else being restarted.
    pid = cluster.pids()["shard-0"]
    manifest.write_bytes(whole)
    cluster.wait_state("shard-1", "ok")
    assert cluster.pids()["shard-0"] == pid


def test_a_folder_that_was_lost_is_not_taken_for_an_empty_shard(start_cluster):
    cluster = start_cluster(shards=2)
    cluster.terminate()
    folder = cluster.directory / "shards" / "shard-1"
    shutil.move(folder, folder.with_name("aside"))
    cluster.start()
    assert "is empty, and it held a shard" in cluster.process("shard-1").reason
    assert not folder.exists()
    shutil.move(folder.with_name("aside"), folder)
    cluster.wait_state("shard-1", "ok")


def test_where_no_shard_can_start_the_start_is_refused_with_the_reason(start_cluster):
    cluster = start_cluster(shards=1)
    cluster.terminate()
    (cluster.directory / "shards" / "shard-0" / "manifest.json").write_text("{")
    with pytest.raises(ShardEnded) as end:
        cluster.start()
    assert end.value.status == 1
    assert "no shard of the cluster in" in end.value.output
    assert cluster.children_left() == []


def test_a_folder_that_a_process_of_the_last_run_still_holds_is_waited_for(start_cluster):
    cluster = start_cluster(shards=1)
    cluster.kill()
    with (cluster.directory / "shards" / "shard-0" / "lock").open("rb") as held:
        # As by a process that was killed, and that a slow disk keeps from ending.
        fcntl.flock(held, fcntl.LOCK_EX)
        cluster.begin()
        wait_until(lambda: "it is started again in" in cluster.output())
    assert cluster.wait_ready().epoch == 2


def test_where_no_coordinator_can_start_the_start_is_refused_too(start_cluster):
    cluster = start_cluster(shards=1)
    cluster.terminate()
    shutil.rmtree(cluster.directory / "coordinators")
    (cluster.directory / "coordinators").touch()
    with pytest.raises(ShardEnded) as end:
        cluster.start()
    assert end.value.status == 1
    assert "no coordinator of the cluster in" in end.value.output
    assert cluster.children_left() == []


# --- what stalls is left alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shard-1", "coordinator-0"])
def test_a_stopped_process_is_called_stalled_and_not_replaced(start_cluster, name):
    cluster = start_cluster(shards=2, settings=KEPT_ACROSS)
    pid = cluster.send_signal_to(name, signal.SIGSTOP)
    process = cluster.wait_state(name, "stalled")
    assert process.pid == pid
    assert "stopped by a signal" in process.reason
    time.sleep(2 * KEPT_ACROSS["stall_timeout_s"])
    assert cluster.process(name).pid == pid, "it is left alone"
    os.kill(pid, signal.SIGCONT)
    process = cluster.wait_state(name, "ok")
    assert (process.pid, process.restarts) == (pid, 0)
    assert process.reason == "it was stalled, and has recovered"


def test_the_supervisor_may_be_stopped_for_a_while(start_cluster):
    cluster = start_cluster(shards=1, settings=KEPT_ACROSS)
    address = cluster.topology().shard("shard-0").endpoint
    pids = cluster.pids()
    cluster.send_signal(signal.SIGSTOP)
    time.sleep(3 * KEPT_ACROSS["stall_timeout_s"])
    with RpcSocket(address) as rpc:
        assert rpc.call("incr", "a") == 1
    cluster.send_signal(signal.SIGCONT)
    assert cluster.pids() == pids
    assert not any("stalled" in event for event in cluster.events()), "who was stopped itself has heard no silence"


# --- folders ---------------------------------------------------------------------------------------------------------


def test_another_number_of_shards_is_refused_and_said_what_to_do(start_cluster):
    cluster = start_cluster(shards=2)
    cluster.terminate()
    with pytest.raises(ShardEnded) as end:
        start_cluster(shards=3)
    assert end.value.status == 1
    assert "holds a cluster of 2 shards, and --shards says 3" in end.value.output
    assert "pycounter dump" in end.value.output
    assert cluster.start()


def test_a_shards_folder_is_no_clusters_and_the_other_way_round(start_cluster, start_shard):
    shard = start_shard(name="one")
    shard.terminate()
    with pytest.raises(ShardEnded) as end:
        start_cluster(name="one")
    assert "is the folder of a shard alone" in end.value.output
    assert shard.start()
    cluster = start_cluster(name="many", shards=1)
    with pytest.raises(ShardEnded) as end:
        start_shard(name="many")
    assert "is the folder of a cluster" in end.value.output
    assert cluster.process("shard-0").state == "ok"


def test_a_cluster_runs_once(start_cluster):
    cluster = start_cluster(shards=1)
    with pytest.raises(ShardEnded) as end:
        start_cluster(shards=1)
    assert f"runs already, under the supervisor with process id {cluster.ready.pid}" in end.value.output
    assert cluster.process("shard-0").restarts == 0


def test_a_port_that_is_taken_is_told(start_cluster, shard):
    with pytest.raises(ShardEnded) as end:
        start_cluster(shards=1, arguments=["--port", str(shard.address[1])])
    assert f"can't listen on 127.0.0.1:{shard.address[1]}" in end.value.output


def test_an_open_address_needs_a_token(start_cluster):
    with pytest.raises(ShardEnded) as end:
        start_cluster(shards=1, arguments=["--host", "0.0.0.0"])
    assert "no token is set" in end.value.output


def test_a_deep_folder_has_a_control_socket_too(start_cluster, tmp_path):
    (tmp_path / ("d" * 100)).mkdir()
    cluster = start_cluster(shards=1, name=f"{'d' * 100}/{'e' * 50}")
    assert len(os.fspath(cluster.directory / "control.sock")) > 150
    assert cluster.process("shard-0").state == "ok"
    with pytest.raises(PyCounterError, match="doesn't know 'dance'"):
        ask_supervisor(cluster.directory, {"do": "dance"})


# --- the public address ----------------------------------------------------------------------------------------------


def test_clients_wait_while_no_coordinator_runs(start_cluster):
    cluster = start_cluster(shards=2)
    with RpcSocket(cluster.address) as rpc:
        assert rpc.call("incr", "a") == 1
        cluster.kill_process("coordinator-0")
        # The socket is the supervisor's: it takes connections whether or not somebody accepts them.
        with RpcSocket(cluster.address) as waiting:
            assert waiting.call("incr", "a") == 2
    cluster.wait_restarted("coordinator-0")


def test_several_coordinators_share_the_address(start_cluster):
    cluster = start_cluster(shards=1, coordinators=2)
    for name in ("coordinator-0", "coordinator-1"):
        pid = cluster.kill_process(name)
        with RpcSocket(cluster.address) as rpc:
            assert isinstance(rpc.call("incr", "a"), int)
        assert cluster.wait_restarted(name).pid != pid
    with RpcSocket(cluster.address) as rpc:
        assert rpc.call("get", "a") == 2


def test_coordinators_tell_clients_the_topology_that_the_supervisor_has(start_cluster):
    cluster = start_cluster(shards=2, arguments=["--strict", "order:", "--strict", "invoice:"])
    cluster.kill_process("shard-1")
    cluster.wait_restarted("shard-1")
    with RpcSocket(cluster.address) as rpc:
        wait_until(lambda: rpc.call("topology")[b"version"] == cluster.topology().version)
        told = rpc.call("topology")
    assert [prefix.decode() for prefix in told[b"strict"]] == ["order:", "invoice:"]
    assert {process[b"name"].decode(): process[b"pid"] for process in told[b"processes"]} == cluster.pids()


def test_one_token_guards_every_process(start_cluster, tmp_path):
    cluster = start_cluster(shards=2, settings=KEPT_ACROSS, arguments=["--token-file", write_token(tmp_path)])
    for address in (cluster.address, *(shard.endpoint for shard in cluster.topology().shards)):
        with RpcSocket(address) as rpc:
            assert rpc.outcome("incr", "a").code == "unauthenticated"
            rpc.call("hello", {"token": TOKEN})
            assert rpc.call("get", "a") == 0
    time.sleep(2 * KEPT_ACROSS["stall_timeout_s"])
    assert {process.state for process in cluster.topology().processes} == {"ok"}, "the supervisor has it too"


def test_an_orderly_stop_answers_what_is_in(start_cluster):
    cluster = start_cluster(shards=2)
    with RpcSocket(cluster.address) as rpc:
        # Its reply says that the connection was accepted: the rest is in before the signal.
        assert rpc.call("ping") == b"pong"
        msgids = [rpc.begin("incr", f"key-{number}") for number in range(100)]
        assert rpc.response() is not None
        cluster.send_signal(signal.SIGTERM)
        answered = 1 + len(rpc.read_to_end())
    assert cluster.wait() == 0
    assert answered == len(msgids)
    cluster.start()
    with RpcSocket(cluster.address) as rpc:
        assert rpc.call("get_many", [f"key-{number}" for number in range(100)]) == [1] * 100

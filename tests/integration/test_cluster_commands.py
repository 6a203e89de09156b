"""`pycounter status` and `pycounter replica`: what they tell, and what they refuse."""

import json
import re
import socket
import subprocess
import sys

import pytest

from tests.support.rpc_socket import RpcSocket
from tests.support.waiting import wait_until


def pycounter(*words):
    return subprocess.run(
        [sys.executable, "-m", "pycounter", *map(str, words)], capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def cluster(start_shared_cluster):
    return start_shared_cluster(shards=2)


@pytest.fixture
def free_port():
    """A port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_status_shows_every_process(cluster):
    done = pycounter("status", "--data", cluster.directory)
    assert done.returncode == 0, done.stderr
    headline, header, *rows = done.stdout.splitlines()
    assert headline.endswith("2 shards, all serving.")
    assert header.split() == ["NAME", "STATE", "PID", "ADDRESS", "RESTARTS"]
    shown = {row.split()[0]: row.split()[1:3] for row in rows[: rows.index("")]}
    for name, pid in cluster.pids().items():
        assert shown[name] == ["ok", str(pid)], name
    assert any(row.startswith("coordinator-0 is ") for row in rows), "and what the coordinator sees"


def test_status_as_json_is_what_the_supervisor_says(cluster):
    done = pycounter("status", "--data", cluster.directory, "--json")
    told = json.loads(done.stdout)
    assert told["topology"] == cluster.status()["topology"]
    assert told["address"] == f"127.0.0.1:{cluster.ready.port}"


def test_status_tells_the_story_of_a_kill(cluster):
    cluster.kill_process("shard-1")
    cluster.wait_restarted("shard-1")
    lines = pycounter("status", "--data", cluster.directory).stdout.splitlines()
    (row,) = (line for line in lines if line.startswith("shard-1 "))
    assert re.search(r" ok +\d+ +127\.0\.0\.1:\d+ +1 +ended by SIGKILL$", row)
    assert any("shard-1 ended by SIGKILL; it is started again in" in line for line in lines)


def test_status_asks_a_server_by_its_address(cluster, shard):
    by_address = json.loads(pycounter("status", "--port", cluster.ready.port, "--json").stdout)["topology"]
    assert [one["name"] for one in by_address["shards"]] == ["shard-0", "shard-1"]
    assert {process["name"] for process in by_address["processes"]} == set(cluster.pids())
    alone = pycounter("status", "--port", shard.address[1])
    assert alone.stdout.startswith("One shard, shard-0, without a cluster."), alone.stderr
    assert re.search(rf"^shard-0 +ok +- +127\.0\.0\.1:{shard.address[1]}$", alone.stdout, re.MULTILINE)


def test_nobody_to_ask(tmp_path, free_port):
    done = pycounter("status", "--data", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no supervisor runs on" in done.stderr
    done = pycounter("status", "--port", free_port, "--timeout-s", "0.5")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pycounter: ")
    assert pycounter("status", "--data", tmp_path, "--host", "x").returncode == 2


def test_replicas_of_shards_that_are_not_there(cluster):
    done = pycounter("replica", "add", "shard-7", "--data", cluster.directory)
    assert (done.returncode, done.stderr) == (1, "pycounter: there is no shard 'shard-7'; there are shard-0, shard-1\n")
    done = pycounter("replica", "remove", "shard-0", "--data", cluster.directory)
    assert (done.returncode, done.stderr) == (1, "pycounter: shard-0 has no replica\n")


def test_a_backup_of_a_cluster_is_restored_into_another_one(start_cluster, tmp_path):
    cluster = start_cluster(shards=2)
    keys = [f"key-{number}" for number in range(50)]
    with RpcSocket(cluster.address) as rpc:
        rpc.call("incr_many", [[key, 3] for key in keys])
        at = ("--port", cluster.address[1])
        backup = tmp_path / "backup"
        folders = [str(backup / "shard-0"), str(backup / "shard-1")]
        made = pycounter("backup", backup, *at, "--json")
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["path"] == folders
        checked = pycounter("check", backup, "--json")
        assert checked.returncode == 0, checked.stderr
        assert [shard["name"] for shard in json.loads(checked.stdout)["shards"]] == ["shard-0", "shard-1"]
        rpc.call("incr_many", [[key, 1] for key in keys])
        # One of them can't be made: no backup, and the error says of which shard there is one.
        (tmp_path / "again" / "shard-1").mkdir(parents=True)
        (tmp_path / "again" / "shard-1" / "a file").touch()
        failed = pycounter("backup", tmp_path / "again", *at)
        assert failed.returncode == 1
        said = r"shard-0 is whole, shard-1 failed \(.* is not empty.*begin again"
        assert re.search(said, failed.stderr, re.DOTALL), failed.stderr
        refused = pycounter("check", tmp_path / "again")
        assert refused.returncode == 1
        assert "cluster-backup.json, which is written last, is missing; there are backups of shard-0" in refused.stderr
        assert "absolute path" in pycounter("backup", "here", *at).stderr
    cluster.kill()
    restored = pycounter("restore", backup, cluster.directory.parent / "other")
    assert restored.returncode == 0, restored.stderr
    assert "pycounter serve --shards 2 --data" in restored.stdout
    other = start_cluster(name="other", shards=2)
    with RpcSocket(other.address) as rpc:
        wait_until(lambda: rpc.outcome("get_many", keys) == [3] * len(keys))
        totals = rpc.call("total_many", keys, {"accuracy": "exact"})
        assert all(total[b"total"] == 3 and total[b"exact"] for total in totals)
        assert rpc.call("incr", keys[0]) == 4


def test_help_teaches():
    for words in (["serve"], ["status"], ["replica"], ["replica", "add"], ["replica", "remove"]):
        done = pycounter(*words, "--help")
        assert done.returncode == 0
        assert "--data" in done.stdout or words == ["replica"]
    assert "coordinator " not in pycounter("--help").stdout, "processes of the supervisor are no commands for people"

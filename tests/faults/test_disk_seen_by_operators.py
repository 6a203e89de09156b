"""A lone shard whose disk refuses, or whose folder goes away: what its log, `status`, new clients and its end say."""

import errno
import shutil
import subprocess
import sys

import pytest

from tests.support.faulty_disk import Call
from tests.support.rpc_socket import RpcSocket
from tests.support.shard_process import ROOT
from tests.support.waiting import wait_until

READ_ONLY = "read only: the disk refuses changes"


def state(rpc):
    return rpc.call("health")[b"state"]


def status_of(shard):
    command = [sys.executable, "-m", "pycounter", "status", "--port", str(shard.address[1])]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture(params=["applied", "durable"])
def failing_shard(request, start_shard, disk):
    """A shard at each level, on a disk that is full."""
    shard = start_shard(on=disk, settings={"level": request.param, "flush_interval_s": 0.05})
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr", "kept", 5, {"level": "durable"})
        disk.plant(Call.WRITE, error=errno.ENOSPC, part="/log/")
        rpc.outcome("incr", "a")
        wait_until(lambda: state(rpc) == b"read_only")
    return shard


def test_a_full_disk_is_logged_once_and_seen_by_status(failing_shard, disk):
    wait_until(lambda: READ_ONLY in failing_shard.output())
    with RpcSocket(failing_shard.address) as rpc:
        failed = rpc.call("stats")[b"commits_failed"]
        wait_until(lambda: rpc.call("stats")[b"commits_failed"] > failed + 1)
        ended = status_of(failing_shard)
        assert ended.returncode == 3, ended.stderr
        assert "read_only" in ended.stdout
        disk.lift()
        wait_until(lambda: state(rpc) == b"ok")
    wait_until(lambda: "the disk works again" in failing_shard.output())
    assert failing_shard.output().count(READ_ONLY) == 1
    assert "No space left" in failing_shard.output()
    assert status_of(failing_shard).returncode == 0


def test_a_new_client_gets_in_while_the_disk_refuses(failing_shard):
    with RpcSocket(failing_shard.address) as rpc:
        said = rpc.call("hello", {"session": b"n" * 16})
        assert said[b"shard"] == b"shard-0"
        assert said[b"last_sequence"] is None
        assert rpc.call("get", "kept", {"level": "applied"}) == 5
        assert rpc.outcome("incr", "b").code == "read_only"


def test_a_stop_with_unwritten_changes_says_so_and_fails(failing_shard):
    assert failing_shard.terminate() == 1
    said = failing_shard.output().splitlines()[-1]
    assert said.startswith("pycounter: stopped with changes of 1 counters that the disk didn't take")
    assert "No space left" in said
    assert "Operations at `applied` were answered" in said
    assert "replays the log" not in failing_shard.output()


def remove(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("away", [remove, move])
@pytest.mark.parametrize("level", ["applied", "durable"])
def test_a_folder_that_goes_away_is_noticed(start_shard, away, busy, level):
    shard = start_shard(settings={"level": level, "flush_interval_s": 0.05})
    with RpcSocket(shard.address) as rpc:
        assert rpc.call("incr", "a", 1, {"level": "durable"}) == 1
        away(shard.directory)
        if busy:
            # Whatever is durable from now on would be in a file that no start finds.
            assert rpc.outcome("incr", "a", 1, {"level": "durable"}).code in {"unknown_outcome", "read_only"}
        wait_until(lambda: state(rpc) == b"read_only")
        assert "removed, moved or replaced" in rpc.call("health")[b"reason"].decode() or busy
        assert rpc.outcome("incr", "b").code == "read_only"
    assert shard.terminate() == 1
    assert "the next start" not in shard.output().splitlines()[-1]


def test_a_folder_that_comes_back_is_noticed_too(start_shard):
    shard = start_shard()
    elsewhere = shard.directory.with_name("elsewhere")
    with RpcSocket(shard.address) as rpc:
        assert rpc.call("incr", "a") == 1
        shard.directory.rename(elsewhere)
        wait_until(lambda: state(rpc) == b"read_only")
        elsewhere.rename(shard.directory)
        wait_until(lambda: state(rpc) == b"ok")
        assert rpc.call("incr", "a") == 2
    shard.restart()
    with RpcSocket(shard.address) as rpc:
        assert rpc.call("get", "a") == 2

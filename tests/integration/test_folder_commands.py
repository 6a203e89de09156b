"""The commands that keep a shard's folder, as a person or a script runs them, beside real servers."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from pycounter.client import SessionClient
from pycounter.errors import WrongShard
from tests.support.folders import flip_where, log_files
from tests.support.rpc_socket import RpcSocket
from tests.support.shard_process import ROOT, ShardEnded

TIMEOUT_S = 60.0


def pycounter(*arguments, status=0, stdin=b""):
    """Runs the command; gives what it wrote to stdout, or to stderr where it is to fail."""
    command = [sys.executable, "-m", "pycounter", *map(str, arguments)]
    ended = subprocess.run(command, input=stdin, capture_output=True, timeout=TIMEOUT_S, cwd=ROOT)
    assert ended.returncode == status, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    return (ended.stderr if status else ended.stdout).decode()


def at(shard):
    return ("--host", shard.address[0], "--port", shard.address[1])


def counters_of(shard):
    with RpcSocket(shard.address) as rpc:
        counters: dict[bytes, int] = {}
        cursor = 0
        while True:
            cursor, page = rpc.call("scan", cursor, 1000)
            counters.update((bytes(key), value) for key, value in page)
            if cursor == 0:
                return counters


def fill(shard, count=500):
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr_many", [[f"key {number}", number - 7] for number in range(count)])
        rpc.call("incr", b"\xff\xfe", -(2**63))
        rpc.call("apply", b"s" * 16, 1, 0, [["applied", 3]])
        rpc.call("incr", "with an id", 5, {"id": b"an id"})
    return counters_of(shard)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_check_beside_a_running_server_after_a_crash_and_after_a_stop(shard):
    fill(shard)
    assert "locked" in pycounter("check", shard.directory, status=1)
    shard.kill()
    crashed = json.loads(pycounter("check", shard.directory, "--json"))
    assert (crashed["is_sound"], crashed["counters"], crashed["sessions"], crashed["ids"]) == (True, 503, 1, 1)
    shard.start()
    shard.terminate()
    stopped = json.loads(pycounter("check", shard.directory, "--json"))
    assert (stopped["counters"], stopped["sessions"], stopped["ids"], stopped["epoch"]) == (503, 1, 1, 2)
    assert "Sound" in pycounter("check", shard.directory)


def test_repair_asks_and_leaves_a_folder_that_starts(shard):
    expected = fill(shard)
    shard.kill()
    flip_where(log_files(shard.directory)[-1], b"\xff\xfe")
    with pytest.raises(ShardEnded, match="damaged between bytes"):
        shard.start()
    shard.kill()
    said = json.loads(
        subprocess.run(
            [sys.executable, "-m", "pycounter", "check", shard.directory, "--json"], capture_output=True, cwd=ROOT
        ).stdout
    )
    assert not said["is_sound"]
    assert "--yes" in pycounter("repair", shard.directory, status=1)
    before = said["identity"]
    assert "The old files are in" in pycounter("repair", shard.directory, "--yes")
    assert "nothing to repair" in pycounter("repair", shard.directory, "--yes")
    assert shard.start().identity != before
    del expected[b"\xff\xfe"]
    assert counters_of(shard) == expected


async def test_a_restored_backup_is_another_shard_and_no_client_counts_twice_unawares(shard, start_shard, tmp_path):
    client = SessionClient(*shard.address, identity=shard.ready.identity)
    async with client:
        await client.incr("by a session", 4)
        expected = await asyncio.to_thread(fill, shard)
        with RpcSocket(shard.address) as rpc:
            born = rpc.call("hello")[b"time"]
            rpc.call("incr", "born", 1, {"id": b"born", "born": born})
        said = await asyncio.to_thread(pycounter, "backup", tmp_path / "backup", *at(shard))
        assert "on the machine of" in said
        shard.kill()
        backup = json.loads(await asyncio.to_thread(pycounter, "check", tmp_path / "backup", "--json"))
        assert (backup["kind"], backup["is_sound"]) == ("backup", True)
        made = await asyncio.to_thread(pycounter, "restore", tmp_path / "backup", tmp_path / "restored", "--json")
        assert json.loads(made)["sessions_dropped"] == 2
        restored = await asyncio.to_thread(start_shard, name="restored")
        assert restored.ready.identity != backup["identity"]
        assert counters_of(restored) == {**expected, b"born": 1}
        # The client had a session there; it is told, and nothing of it counts again.
        client.address = restored.address
        with pytest.raises(WrongShard):
            await client.incr("by a session")
        with RpcSocket(restored.address) as rpc:
            assert rpc.call("hello", {"session": b"s" * 16})[b"last_sequence"] is None
            assert rpc.outcome("apply", b"s" * 16, 2, 0, [["applied", 3]]).code == "session_unknown"
            assert rpc.outcome("incr", "born", 1, {"id": b"born", "born": born}).code == "id_expired"
        assert counters_of(restored) == {**expected, b"born": 1}


def test_backup_refuses_a_path_that_means_another_place_on_the_server(shard, tmp_path):
    assert "absolute path" in pycounter("backup", "backup", *at(shard), status=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "not empty" in pycounter("backup", tmp_path / "full", *at(shard), status=1)


def test_a_token_is_sent(start_shard, tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    shard = start_shard(arguments=["--token-file", str(token)])
    assert "the token is missing or wrong" in pycounter("dump", *at(shard), status=1)
    assert '"end": true' in pycounter("dump", *at(shard), "--token-file", token)


def test_dumps_of_server_folder_and_backup_say_the_same_and_load_into_another_shard(shard, start_shard, tmp_path):
    expected = fill(shard)
    pycounter("backup", tmp_path / "backup", *at(shard))
    from_server = pycounter("dump", *at(shard)).splitlines()
    shard.terminate()
    pycounter("dump", shard.directory, "--output", tmp_path / "dump")
    from_folder = (tmp_path / "dump").read_text().splitlines()
    assert from_folder == pycounter("dump", tmp_path / "backup").splitlines()
    assert json.loads(from_folder[0])["format"] == "pycounter-dump"
    assert sorted(from_server[1:]) == sorted(from_folder[1:])
    assert len(from_folder) == len(expected) + 2
    other = start_shard(name="other")
    assert json.loads(pycounter("load", tmp_path / "dump", *at(other), "--json"))["counters"] == len(expected)
    assert counters_of(other) == expected


def dump_of(lines):
    header = {"format": "pycounter-dump", "version": 1}
    return [json.dumps(line) for line in (header, *lines, {"end": True, "counters": len(lines)})]


def test_a_load_counts_once_though_the_server_is_killed_on_the_way(start_shard, tmp_path):
    count = 60_000
    lines = dump_of([{"key": f"key {number % 997}", "value": 1} for number in range(count)])
    (tmp_path / "dump").write_text("\n".join(lines))
    shard = start_shard(arguments=["--port", str(free_port())])
    ended = threading.Event()
    kills = 0

    def kill_and_start():
        nonlocal kills
        # Not for ever: on a busy machine it would get nowhere.
        while kills < 20 and not ended.wait(0.3):
            shard.restart()
            kills += 1

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    try:
        said = json.loads(pycounter("load", tmp_path / "dump", *at(shard), "--json"))
    finally:
        ended.set()
        killer.join()
    assert kills > 0
    assert said == {"counters": count, "first_line": 2, "last_line": count + 1}
    assert counters_of(shard) == {
        f"key {number}".encode(): count // 997 + (number < count % 997) for number in range(997)
    }


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"key": "a", "value": 1.0}', "whole number"),
        ('{"key": "a", "value": true}', "whole number"),
        ('{"key": "a", "value": 9223372036854775808}', "whole number"),
        ('{"key": "", "value": 1}', "1 to 1024"),
        ('{"key": "a"}', "exactly a key"),
        ('{"key": "a", "key_base64": "YQ==", "value": 1}', "exactly a key"),
        ('{"key_base64": "?", "value": 1}', "its key is wrong"),
        ('{"key": "\\ud800", "value": 1}', "its key is wrong"),
        ("[1]", "no object"),
        ("nonsense", "no JSON"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_sent(emptied_shard, tmp_path, line, what):
    lines = dump_of([{"key": "good", "value": 1}] * 3)
    lines[2] = line
    (tmp_path / "dump").write_text("\n".join(lines))
    said = pycounter("load", tmp_path / "dump", *at(emptied_shard), status=1)
    assert "line 3" in said
    assert what in said
    assert "no line is applied" in said
    assert counters_of(emptied_shard) == {}


def test_a_load_that_is_refused_on_the_way_says_where_to_go_on(emptied_shard):
    lines = dump_of([{"key": "full", "value": 2**63 - 1}, {"key": "full", "value": 1}, {"key": "a", "value": 1}])
    said = pycounter("load", *at(emptied_shard), status=1, stdin="\n".join(lines).encode())
    assert "line 3" in said
    assert "--from-line 5" in said
    assert counters_of(emptied_shard) == {b"full": 2**63 - 1, b"a": 1}


@pytest.mark.parametrize("cut", [1, 2])
def test_a_dump_that_was_cut_is_noticed(emptied_shard, tmp_path, cut):
    lines = dump_of([{"key": "a", "value": 1}] * 3)
    (tmp_path / "dump").write_text("\n".join(lines[:-cut]))
    assert "cut short" in pycounter("load", tmp_path / "dump", *at(emptied_shard), status=1)
    (tmp_path / "dump").write_text("\n".join([*lines[:2], *lines[3:]]))
    assert "lines are missing" in pycounter("load", tmp_path / "dump", *at(emptied_shard), status=1)
    assert counters_of(emptied_shard) == {}


def test_an_interrupted_load_says_what_is_applied(emptied_shard):
    command = [sys.executable, "-m", "pycounter", "load", *map(str, at(emptied_shard))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as load:
        assert load.stdin is not None
        assert load.stderr is not None
        lines = dump_of([{"key": "a", "value": 1}] * 20_000)[:-1]
        load.stdin.write("".join(line + "\n" for line in lines).encode())
        load.stdin.flush()
        deadline = time.monotonic() + TIMEOUT_S
        while counters_of(emptied_shard).get(b"a") != 16_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(load.pid, signal.SIGINT)
        said = load.stderr.read().decode()
        assert load.wait(TIMEOUT_S) in {1, 130}
    assert "Traceback" not in said
    assert "--from-line 16002 goes on" in said
    assert counters_of(emptied_shard) == {b"a": 16_000}

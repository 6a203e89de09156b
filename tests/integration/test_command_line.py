"""`pycounter serve` and its sentences: how it starts, refuses to start, and stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pycounter._native import VERSION
from tests.support.resp_socket import RespSocket, command
from tests.support.rpc_socket import RpcSocket, request
from tests.support.shard_process import ShardEnded


@pytest.fixture
def run(launcher, tmp_path):
    """Runs `pycounter` with these words to its end; gives status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with tempfile.TemporaryFile(dir=tmp_path) as stdout, tempfile.TemporaryFile(dir=tmp_path) as stderr:
            status = launcher.spawn(arguments, stdout.fileno(), stderr.fileno()).wait(60)
            texts = []
            for file in (stdout, stderr):
                file.seek(0)
                texts.append(file.read().decode())
        return status, texts[0], texts[1]

    return run


def refusal(start_shard, **options) -> str:
    """Starts a shard that refuses; gives its last words."""
    with pytest.raises(ShardEnded) as end:
        start_shard(**options)
    assert end.value.status == 1
    return end.value.output.splitlines()[-1]


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sevre"], "sevre"),
        (["serve", "--prot", "7400"], "--prot"),
        (["serve", "--port", "http"], "--port"),
        (["serve", "--data"], "--data"),
        (["serve", "folder"], "folder"),
        (["demo", "--level", "safe"], "durable or applied"),
        (["demo", "--clients", "0"], "--clients"),
    ],
)
def test_wrong_words_exit_with_2(run, words, said):
    status, stdout, stderr = run(*words)
    assert (status, stdout) == (2, "")
    assert stderr.splitlines()[-1].startswith("Error: ")
    assert said in stderr.splitlines()[-1]


def test_help_and_version(run):
    assert run("--version") == (0, f"pycounter {VERSION}\n", "")
    status, stdout, _ = run("--help")
    assert status == 0
    assert "serve" in stdout
    assert "demo" in stdout
    status, stdout, _ = run("serve", "--help")
    assert status == 0
    assert "--token-file" in stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no data folder: give --data DIR, PYCOUNTER_DATA, or data in the config file"),
        (["--data", "x", "--port", "70000"], "--port: port is 70000, but must be from 0 to 65535"),
        (["--data", "x", "--level", "safe"], "--level: level must be applied or durable, not 'safe'"),
        (["--data", "x", "--config", "missing"], "the config file missing can't be read: No such file or directory"),
        (["--data", "x", "--tls-cert", "c"], "tls_cert is set and tls_key is not: they go together"),
    ],
)
def test_wrong_settings_are_one_sentence(run, words, said):
    assert run("serve", *words) == (1, "", f"pycounter: {said}\n")


# --- starting --------------------------------------------------------------------------------------------------------


def test_the_ready_line(tmp_path):
    """As a program and as a person reads it, from the command as users start it."""
    words = ["serve", "--data", str(tmp_path / "data"), "--port", "0", "--level", "applied"]
    for as_json in (True, False):
        server = subprocess.Popen(
            [sys.executable, "-m", "pycounter", *words, *(["--json"] if as_json else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        line = server.stdout.readline()
        server.send_signal(signal.SIGINT)
        rest, stderr = server.communicate(timeout=60)
        assert (server.returncode, rest, stderr) == (0, "", "")
        if as_json:
            facts = json.loads(line)
            assert facts.pop("address").startswith("127.0.0.1:")
            assert len(facts.pop("identity")) == 32
            expected = {"event": "ready", "pid": server.pid, "shard": "shard-0", "epoch": 1, "level": "applied"}
            assert facts == {**expected, "commits_replayed": 0}
        else:
            assert f"shard shard-0 serves {tmp_path / 'data'} at 127.0.0.1:" in line
            assert f"applied, epoch 2, pid {server.pid}. Ctrl-C stops it in good order." in line


def test_a_second_process_on_a_folder_is_refused(start_shard, tmp_path):
    first = start_shard()
    with RpcSocket(first.address) as rpc:
        assert rpc.call("incr", "a") == 1
        said = refusal(start_shard)
        assert said.startswith(f"pycounter: {tmp_path / 'shard'}")
        assert "is locked: another process has the folder open; stop it first" in said
        assert rpc.call("incr", "a") == 2, "the first one goes on"


def test_a_port_in_use_is_refused_and_the_folder_is_free_again(start_shard):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # The last of two options counts.
        said = refusal(start_shard, arguments=["--port", str(port)])
        assert said.startswith(f"pycounter: can't listen on 127.0.0.1:{port}: ")
        assert "address already in use" in said.lower()
    with RpcSocket(start_shard().address) as rpc:
        assert rpc.call("incr", "a") == 1


def test_an_address_that_is_not_ours_is_refused(start_shard):
    said = refusal(start_shard, arguments=["--host", "192.0.2.1", "--insecure"])
    assert said.startswith("pycounter: can't listen on 192.0.2.1:0: ")


def test_a_folder_of_a_newer_version_is_refused_and_unchanged(start_shard, tmp_path):
    shard = start_shard()
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr", "a")
    assert shard.terminate() == 0
    manifest = tmp_path / "shard" / "manifest.json"
    newer = json.loads(manifest.read_text())
    newer["format"] += 1
    manifest.write_text(json.dumps(newer))
    before = {path: path.read_bytes() for path in (tmp_path / "shard").rglob("*") if path.is_file()}
    said = refusal(start_shard)
    assert f"has format {newer['format']}, newer than {newer['format'] - 1}" in said
    assert said.endswith("run a newer version; nothing was changed")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]"])
def test_a_manifest_that_is_none_is_refused(start_shard, tmp_path, content):
    (tmp_path / "shard").mkdir()
    (tmp_path / "shard" / "manifest.json").write_bytes(content)
    words = refusal(start_shard)
    assert words.startswith("pycounter: ")
    assert "manifest.json" in words
    assert (tmp_path / "shard" / "manifest.json").read_bytes() == content


def test_a_data_folder_that_is_a_file_is_refused(start_shard, tmp_path):
    (tmp_path / "shard").write_text("mine")
    assert refusal(start_shard).startswith("pycounter: ")
    assert (tmp_path / "shard").read_text() == "mine"


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_orderly_stop_answers_what_came_and_keeps_it(start_shard, number):
    shard = start_shard()
    with RpcSocket(shard.address) as rpc, RespSocket(shard.address) as resp, RpcSocket(shard.address) as idle:
        rpc.send(requests := b"".join(request(msgid, "incr", "a") for msgid in range(1, 1001)))
        resp.send(commands := command("INCR", "b") * 1000)
        while idle.call("stats")[b"bytes_received"] < len(requests) + len(commands):
            pass
        shard.send_signal(number)
        assert rpc.outcomes(range(1, 1001)) == list(range(1, 1001))
        assert resp.replies(1000) == list(range(1, 1001))
        assert (rpc.read_to_end(), resp.read_to_end(), idle.read_to_end()) == ([], [], [])
    assert shard.wait() == 0
    ready = shard.start()
    assert ready.epoch == 2
    with RpcSocket(shard.address) as rpc:
        assert rpc.call("get_many", ["a", "b"]) == [1000, 1000]
    assert shard.terminate() == 0


def test_an_applied_change_is_on_disk_after_an_orderly_stop(start_shard):
    shard = start_shard(settings={"level": "applied"})
    with RpcSocket(shard.address) as rpc:
        assert rpc.call("incr", "a", 5) == 5
    assert shard.terminate() == 0
    shard.start()
    with RpcSocket(shard.address) as rpc:
        assert rpc.call("get", "a") == 5


def test_nobody_is_let_in_during_a_stop(start_shard):
    shard = start_shard()
    address = shard.address
    assert shard.terminate() == 0
    with pytest.raises(ConnectionRefusedError):
        RpcSocket(address)


def test_a_relative_folder_is_relative_to_where_it_was_started(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-m", "pycounter", "serve", "--data", "here", "--port", "0", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert json.loads(server.stdout.readline())["event"] == "ready"
    server.terminate()
    server.communicate(timeout=60)
    assert server.returncode == 0
    assert (tmp_path / "here" / "manifest.json").exists()


def test_help_keeps_the_lines_of_an_example():
    output = subprocess.run(
        [sys.executable, "-m", "pycounter", "serve", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "\n  pycounter serve --data ./counters\n  redis-cli -p 7400 incr visits\n" in output

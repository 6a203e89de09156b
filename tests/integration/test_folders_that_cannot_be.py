"""Folders that can't be created: one sentence that names folder and reason, in each command that makes one."""

import os
import socket
import subprocess
import sys

import pytest

from tests.support.shard_process import ROOT

OPEN = "import sys, pycounter; pycounter.open(sys.argv[1])"


def run(*arguments, cwd=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


def pycounter(*arguments, cwd=None):
    return run("-m", "pycounter", *arguments, cwd=cwd)


@pytest.fixture
def gone(tmp_path):
    """Runs something in a folder that has been removed."""
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'

    def run_in(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = ["sh", "-c", script, "sh", sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    return run_in


@pytest.fixture(params=["/proc/x", "/proc/x/y", "link", "file", "file/below"])
def path(request, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    return request.param if request.param.startswith("/") else str(tmp_path / request.param)


def assert_one_sentence(ended, path):
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert path in ended.stderr


@pytest.mark.parametrize("arguments", [(), ("--shards", "2")])
def test_a_server_says_why_it_has_no_folder(path, arguments):
    assert_one_sentence(pycounter("serve", "--port", "0", "--data", path, *arguments), path)


def test_a_program_is_told_why_it_has_no_folder(path):
    ended = run("-c", OPEN, path)
    assert ended.returncode == 1
    assert path in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [(), ("--shards", "2")])
def test_a_server_in_a_folder_that_is_gone(gone, arguments):
    ended = gone("-m", "pycounter", "serve", "--port", "0", "--data", "./x", *arguments)
    assert_one_sentence(ended, "x")


def test_a_program_in_a_folder_that_is_gone(gone):
    ended = gone("-c", OPEN, "./x")
    assert ended.returncode == 1
    assert "./x" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [(), ("--shards", "2")])
@pytest.mark.parametrize("what", ["port", "unix"])
def test_a_start_whose_address_is_taken_leaves_nothing(tmp_path, arguments, what):
    path = tmp_path / "socket"
    path.write_text("in the way")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if what == "port" else 0
        unix = ("--unix", str(path)) if what == "unix" else ()
        ended = pycounter("serve", "--data", str(tmp_path / "new"), "--port", str(port), *unix, *arguments)
    assert_one_sentence(ended, f":{port}" if what == "port" else str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["socket"]

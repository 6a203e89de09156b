"""The control socket: requests, refusals, and askers who make no sense."""

import asyncio
import errno
import json
import os
import socket

import pytest

from pycounter.cluster.control import REQUEST_BYTES_MAX, ControlServer, ask_supervisor
from pycounter.errors import PyCounterError


@pytest.fixture
async def served(tmp_path):
    """A folder with a control socket that echoes, refuses "no", and has no room for "keep"."""

    async def answer(request):
        if request.get("do") == "no":
            raise PyCounterError("not now")
        if request.get("do") == "keep":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return request

    server = ControlServer(tmp_path, answer)
    await server.start()
    yield tmp_path
    await server.close()


async def ask(folder, request, **options):
    return await asyncio.to_thread(ask_supervisor, folder, request, **options)


async def test_an_answer_and_a_refusal(served):
    assert await ask(served, {"do": "x", "y": ["ü", 1]}) == {"do": "x", "y": ["ü", 1]}
    with pytest.raises(PyCounterError, match=r"^not now$"):
        await ask(served, {"do": "no"})
    with pytest.raises(PyCounterError, match="No space left"):
        await ask(served, {"do": "keep"})


async def test_only_the_folders_owner_may_ask(served):
    assert (served / "control.sock").stat().st_mode & 0o777 == 0o600


async def test_the_socket_of_one_that_was_killed_is_replaced(served):
    again = ControlServer(served, lambda request: asyncio.sleep(0, "the new one"))
    await again.start()
    assert await ask(served, {}) == "the new one"
    await again.close()
    with pytest.raises(PyCounterError, match="no supervisor runs on"):
        await ask(served, {})


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{\n", b"\xff\n", b"[" * 10_000 + b"\n"])
async def test_what_is_no_request_is_told_so(served, line):
    reader, writer = await asyncio.open_unix_connection(served / "control.sock")
    writer.write(line)
    assert json.loads(await reader.readline()) == {"error": "a request is a line with one JSON object"}
    writer.write(b'{"do": "x"}\n')
    assert json.loads(await reader.readline()) == {"result": {"do": "x"}}, "and the connection goes on"
    writer.close()


async def test_a_line_without_end_is_given_up(served):
    reader, writer = await asyncio.open_unix_connection(served / "control.sock")
    writer.write(b"x" * 4 * REQUEST_BYTES_MAX)
    assert await reader.read() == b""
    writer.close()
    assert await ask(served, {"a": 1}) == {"a": 1}


async def test_nobody_there(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PyCounterError, match="no supervisor runs on"):
            await ask(folder, {})


async def test_one_that_does_not_answer(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control.sock"))
        silent.listen()
        with pytest.raises(PyCounterError, match="is it stopped"):
            await ask(tmp_path, {}, timeout_s=0.1)

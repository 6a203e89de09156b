"""The control socket: a Unix socket in the cluster's folder, for those who may use the folder.

Lines of JSON: a request `{"do": NAME, ...}`, and for each one `{"result": ...}` or `{"error": sentence}`. The socket is
reached through a descriptor of the folder, since the path of a Unix socket has at most 107 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pycounter.errors import PyCounterError

__all__ = ["ControlServer", "ask_supervisor"]

SOCKET_NAME = "control.sock"
REQUEST_BYTES_MAX = 65_536
ANSWER_BYTES_MAX = 64 << 20
CONNECTIONS_MAX = 64
#: One that asks nothing is not waited for longer.
IDLE_S = 60.0

Answer = Callable[[dict[str, Any]], Awaitable[Any]]


class ControlServer:
    """Answers requests with `answer`, whose PyCounterErrors and OSErrors are told to the asker."""

    def __init__(self, directory: Path, answer: Answer) -> None:
        self._directory = directory
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens. The folder has to be locked: the socket of a supervisor that was killed is replaced.

        Raises:
            OSError: the folder takes no socket.
        """
        (self._directory / SOCKET_NAME).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before it has a name, so that there is no moment in which others could connect.
            os.fchmod(listener.fileno(), 0o600)
            with _short_path(self._directory) as path:
                listener.bind(path)
            (self._directory / SOCKET_NAME).chmod(0o600)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_BYTES_MAX)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Listens no more, and drops who is connected."""
        if self._server is not None:
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            (self._directory / SOCKET_NAME).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # An end in the middle, a line without end, silence: there is nobody to tell.
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                while len(self._connections) <= CONNECTIONS_MAX and (
                    line := await asyncio.wait_for(reader.readline(), IDLE_S)
                ):
                    writer.write(json.dumps(await self._respond(line)).encode() + b"\n")
                    await asyncio.wait_for(writer.drain(), IDLE_S)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _respond(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            return {"error": "a request is a line with one JSON object"}
        try:
            return {"result": await self._answer(request)}
        except (PyCounterError, OSError) as error:
            # Above all a full disk: the asker would take silence for a supervisor that isn't there.
            return {"error": str(error)}


def ask_supervisor(directory: str | os.PathLike[str], request: dict[str, Any], *, timeout_s: float = 10.0) -> Any:
    """Asks the supervisor that runs on a cluster's folder, and gives its answer.

    Raises:
        PyCounterError: nobody runs there, or the supervisor refuses: its sentence.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            with _short_path(Path(directory)) as path:
                connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = _read_line(connection)
        except TimeoutError:
            raise PyCounterError(
                f"the supervisor of {directory} has not answered within {timeout_s:g} s: is it stopped?"
            ) from None
        except (FileNotFoundError, NotADirectoryError, ConnectionError) as error:
            if (Path(directory) / "manifest.json").exists():
                raise PyCounterError(
                    f"{directory} is the folder of a shard alone, which has no supervisor: ask the shard itself with "
                    "`pycounter status --host HOST --port PORT`"
                ) from error
            raise PyCounterError(
                f"no supervisor runs on {directory}: start the cluster with `pycounter serve --shards N --data "
                f"{directory}`, or say where it is by --host and --port"
            ) from error
        except OSError as error:
            raise PyCounterError(f"the supervisor of {directory} can't be reached: {error.strerror}") from error
    if "error" in answer:
        raise PyCounterError(answer["error"])
    return answer["result"]


def _read_line(connection: socket.socket) -> dict[str, Any]:
    content = bytearray()
    while not content.endswith(b"\n"):
        chunk = connection.recv(65_536)
        if not chunk or len(content) > ANSWER_BYTES_MAX:
            raise ConnectionResetError("the supervisor ended the connection")
        content += chunk
    answer: dict[str, Any] = json.loads(content)
    return answer


@contextlib.contextmanager
def _short_path(directory: Path) -> Any:
    """A path of the socket that is short, however deep the folder lies."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)

"""A Redis client as simple as can be: commands out, replies in, in order."""

import asyncio
from collections import deque
from typing import Any

#: What there is in place of a reply when the connection has ended.
LOST = ""


class RespConnection(asyncio.Protocol):
    """Integers and errors are all that it understands."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._waiting: deque[asyncio.Future[int | str]] = deque()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, *words: str) -> asyncio.Future[int | str]:
        """Sends a command. The future gets an integer, the text of an error, or `LOST`."""
        reply: asyncio.Future[int | str] = self._loop.create_future()
        self._waiting.append(reply)
        command = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        self._transport.write(f"*{len(words)}\r\n{command}".encode())
        return reply

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        for line in lines:
            value = int(line[1:]) if line[:1] == b":" else line.decode()
            if not self._waiting:
                continue
            reply = self._waiting.popleft()
            if not reply.done():
                reply.set_result(value)

    def connection_lost(self, exc: Exception | None) -> None:
        for reply in self._waiting:
            if not reply.done():
                reply.set_result(LOST)
        self._waiting.clear()

    def close(self) -> None:
        """Ends it."""
        self._transport.abort()

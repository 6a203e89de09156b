"""A pipelined MessagePack-RPC connection on asyncio: each reply goes to the function given with its request."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, cast

import msgpack

from tests.support.rpc_socket import RpcError

OnReply = Callable[[str | None, Any], None]
"""Takes the error (`code: message`) or None, and the result."""


class RpcStream(asyncio.Protocol):
    """One connection. Callbacks run in the loop; what one raises ends the connection and is kept in `failure`."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.changed = asyncio.Event()
        """Set at every reply, and at the end."""
        self.failure: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._unpacker = msgpack.Unpacker(raw=True, strict_map_key=False)
        self._packer = msgpack.Packer()
        self._msgids = itertools.count(1)
        self._waiting: dict[int, OnReply] = {}
        self._calls: set[asyncio.Future[tuple[str | None, Any]]] = set()

    @classmethod
    async def open(cls, address: tuple[str, int]) -> "RpcStream":
        """Connects. Raises OSError."""
        _, stream = await asyncio.get_running_loop().create_connection(cls, *address)
        return stream

    @property
    def in_flight(self) -> int:
        """Requests that have no reply yet."""
        return len(self._waiting)

    def encode(self, on_reply: OnReply, method: str, *params: object) -> bytes:
        """A request's frame, to be written by `write`; the reply will be expected from now on."""
        msgid = next(self._msgids) & 0xFFFFFFFF
        self._waiting[msgid] = on_reply
        return bytes(self._packer.pack([0, msgid, method, params]))

    def write(self, data: bytes) -> None:
        """Hands bytes to the transport. Nothing happens where the connection is lost."""
        if self._transport is not None and not self.lost.is_set():
            self._transport.write(data)

    def send(self, on_reply: OnReply, method: str, *params: object) -> None:
        """Sends a request."""
        self.write(self.encode(on_reply, method, *params))

    async def call(self, method: str, *params: object) -> Any:
        """Sends a request and waits. Raises RpcError, or ConnectionResetError at the end of the connection."""
        reply: asyncio.Future[tuple[str | None, Any]] = asyncio.get_running_loop().create_future()

        def on_reply(error: str | None, result: Any) -> None:
            if not reply.done():
                reply.set_result((error, result))

        self.check()
        self.send(on_reply, method, *params)
        self._calls.add(reply)
        try:
            error, result = await reply
        finally:
            self._calls.discard(reply)
        if error is not None:
            raise RpcError(error)
        return result

    async def wait_changed(self) -> None:
        """Waits for a reply or the end. Raises what a callback raised, else ConnectionResetError at the end."""
        await self.changed.wait()
        self.changed.clear()
        self.check()

    def check(self) -> None:
        """Raises as `wait_changed` does."""
        if self.failure is not None:
            raise self.failure
        if self.lost.is_set():
            raise ConnectionResetError

    def close(self) -> None:
        """Drops the connection and all that is expected on it."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        try:
            for message in self._unpacker:
                _, msgid, error, result = message
                self._waiting.pop(msgid)(None if error is None else error.decode(), result)
        except Exception as failure:  # noqa: BLE001 - kept for the task that waits on this connection, which raises it
            self.failure = self.failure or failure
            self.close()
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.clear()
        for reply in self._calls:
            if not reply.done():
                reply.set_exception(ConnectionResetError())
        self.lost.set()
        self.changed.set()

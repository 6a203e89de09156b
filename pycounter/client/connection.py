"""One TCP connection that speaks MessagePack-RPC, pipelined. It belongs to one event loop and knows no sessions."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable
from typing import Any, cast

from pycounter.client.connecting import open_connection
from pycounter.client.framing import MSGID_MAX, ProtocolViolation, ReplyDecoder, notification, request
from pycounter.errors import from_wire

__all__ = ["RpcConnection"]


class RpcConnection(asyncio.Protocol):
    """A connection. `on_replies` is called after a chunk of replies was handled.

    `lost` is set when it ends; whatever waits for a reply gets ConnectionResetError then.
    """

    def __init__(self, on_replies: Callable[[], None], reply_bytes_max: int) -> None:
        self.lost = asyncio.Event()
        self.cause: Exception | None = None
        #: When bytes last came, in the loop's time.
        self.received_at = 0.0
        #: Called when it has ended.
        self.on_lost: Callable[[RpcConnection], None] | None = None
        self._on_replies = on_replies
        self._loop = asyncio.get_running_loop()
        #: The loop's.
        self.time = self._loop.time
        self._decoder = ReplyDecoder(reply_bytes_max)
        self._msgids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    async def open(
        cls,
        on_replies: Callable[[], None],
        address: tuple[str, int],
        *,
        tls: ssl.SSLContext | None,
        reply_bytes_max: int,
    ) -> RpcConnection:
        """Connects. Raises OSError. Cancellation leaves nothing open."""
        _, connection = await open_connection(lambda: cls(on_replies, reply_bytes_max), address, tls)
        return connection

    @property
    def is_waiting(self) -> bool:
        """Is any reply due?"""
        return bool(self._calls)

    @property
    def unanswered(self) -> int:
        """Replies that are due, those too that nobody waits for any more."""
        return len(self._calls)

    def _next_msgid(self) -> int:
        return next(self._msgids) & MSGID_MAX

    async def call(self, method: str, *params: object) -> Any:
        """Sends a request and waits for its result. Cancelled, it drops the reply when that comes.

        Raises:
            RpcError: the server's.
            ConnectionResetError: the connection ended first.
        """
        if self.lost.is_set():
            raise ConnectionResetError("the connection has ended")
        msgid = self._next_msgid()
        frame = request(msgid, method, params)
        reply: asyncio.Future[Any] = self._loop.create_future()
        self._calls[msgid] = reply
        self._transport.write(frame)
        return await reply

    def notify(self, method: str, *params: object) -> None:
        """Sends a request that is never answered."""
        if not self.lost.is_set():
            self._transport.write(notification(method, params))

    def abort(self) -> None:
        """Drops the connection at once: nothing is sent or taken from it any more."""
        self.lost.set()
        self._transport.abort()

    def refuse(self, violation: ProtocolViolation) -> None:
        """Drops the connection, because the server sent nonsense."""
        self.cause = self.cause or violation
        self.abort()

    def close(self) -> None:
        """Closes once what is written has left."""
        self._transport.close()

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self.received_at = self._loop.time()

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        if self.lost.is_set():
            return
        self.received_at = self._loop.time()
        try:
            for msgid, error, result in self._decoder.feed(data):
                if (reply := self._calls.pop(msgid, None)) is None:
                    raise ProtocolViolation(f"the server answered {msgid}, which was not asked")
                if reply.done():
                    continue
                if error is None:
                    reply.set_result(result)
                else:
                    reply.set_exception(from_wire(error))
        except ProtocolViolation as violation:
            self.refuse(violation)
        self._on_replies()

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        self.cause = self.cause or exc
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(ConnectionResetError("the connection ended before the reply came"))
        self._calls.clear()
        self.lost.set()
        if self.on_lost is not None:
            self.on_lost(self)

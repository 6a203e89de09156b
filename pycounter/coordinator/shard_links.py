"""A coordinator's connections to its shards: one to each, made again for as long as the coordinator runs.

The router decides what travels on them; here are only the sockets. One event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from pycounter.client.backoff import Backoff
from pycounter.topology import Address, format_address

if TYPE_CHECKING:
    from pycounter._native import RouterLink

__all__ = ["ShardLink", "notice_silence"]

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
BACKOFF_FIRST_S = 0.02
BACKOFF_MAX_S = 1.0
#: A connection that lived for so long was a good one: the next attempt comes soon.
GOOD_S = 1.0
#: How often a connection with replies due is looked at.
SILENCE_LOOK_S = 5.0
#: Bytes that the other machine doesn't acknowledge for so long end the connection. A shard that only stalls still has a
#: kernel that does.
SILENCE_MS = 15_000


def notice_silence(transport: asyncio.BaseTransport) -> None:
    """Has the kernel end a connection to a shard whose machine is silent."""
    opened = transport.get_extra_info("socket")
    if opened is not None:
        with contextlib.suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_MS // 3000)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_MS // 3000)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)


class _Connection(asyncio.Protocol):
    """One connection of a link, from its beginning to its end."""

    def __init__(self, link: RouterLink) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        notice_silence(transport)

    def data_received(self, data: bytes) -> None:
        """Replies of the shard: the hot path."""
        try:
            replies = self._link.feed(data)
        except ValueError as violation:
            if not self.lost.done():
                self.lost.set_result(violation)
            return
        for owner, written in replies:
            owner.write(written)

    def write(self, data: bytes) -> None:
        """The router has something for the shard."""
        # Once it is lost, the transport takes nothing any more; the router hears of it within this turn of the loop.
        if not self.lost.done():
            self._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)

    def close(self) -> None:
        """Ends it once what is written has left."""
        self._transport.close()

    def abort_if_open(self) -> None:
        """Drops it, unless it is being closed."""
        if not self._transport.is_closing():
            self._transport.abort()


class ShardLink:
    """The link to one shard.

    Args:
        name: the shard's, for the log.
        link: the router's side of it.
        on_connected: told when a connection begins and when it ends.
        chance: spreads attempts.
    """

    def __init__(
        self, name: str, link: RouterLink, *, on_connected: Callable[[bool], None], chance: random.Random | None = None
    ) -> None:
        self.name = name
        self.link = link
        self.trouble = ""
        self._on_connected = on_connected
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S, chance)
        self._address: Address | None = None
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def set_address(self, address: Address | None) -> None:
        """Where the shard is; None: nobody knows. Another address ends a wait before the next attempt."""
        if address != self._address:
            self._address = address
            self._moved.set()

    def start(self) -> None:
        """Begins to connect."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link to {self.name}")

    async def close(self) -> None:
        """Ends the connection, once what is written has left or at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._moved.clear()
            if self._address is None:
                await self._moved.wait()
                continue
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    _, connection = await loop.create_connection(lambda: _Connection(self.link), *self._address)
            except OSError as error:
                self._say(str(error) or "it doesn't answer")
                self.link.note_error(self.trouble)
            else:
                opened_at = loop.time()
                await self._serve(connection)
                if loop.time() - opened_at > GOOD_S:
                    self._backoff.reset()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next_s()):
                    await self._moved.wait()

    async def _serve(self, connection: _Connection) -> None:
        """Until the connection ends."""
        self.link.connected(connection)
        self._on_connected(True)
        try:
            cause = await self._watch(connection)
            self._say("the connection ended" if cause is None else str(cause))
        except asyncio.CancelledError:
            # Its session there is of no more use.
            connection.write(self.link.goodbye())
            connection.close()
            raise
        finally:
            connection.abort_if_open()
            self.link.lost()
            self._on_connected(False)

    async def _watch(self, connection: _Connection) -> Exception | None:
        """Why the connection has ended, or is to be given up."""
        while not connection.lost.done():
            await asyncio.wait([connection.lost], timeout=SILENCE_LOOK_S)
            if self.link.silent and not connection.lost.done():
                return TimeoutError("it has not answered for too long")
        return connection.lost.result()

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            where = format_address(*self._address) if self._address else "nowhere"
            _log.info("%s at %s: %s", self.name, where, trouble)

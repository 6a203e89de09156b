"""A client's connection on the event loop: chunks go to the engine whole, replies come back whole.

One native call a chunk. Nothing here looks at single operations. A shard's server and a coordinator's share it; each
says in `_take_requests` what becomes of the rare requests that the engine leaves to Python.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from pycounter.topology import format_address

if TYPE_CHECKING:
    from pycounter.net.clients import Clients

__all__ = ["ClientProtocol", "EngineConnection"]

#: Redis's own words, for people and Redis clients: which protocol it is isn't known yet.
TOO_MANY_CONNECTIONS = b"-ERR max number of clients reached (overloaded)\r\n"


#: The loop reads a socket many times in a row as long as this much comes at once, before it calls anybody.
FULL_CHUNK_BYTES = 64 * 1024
#: Looks that may find nothing new. The first comes within one period of the last chunk, so two periods have passed
#: when one more does.
IDLE_LOOKS = 2


class EngineConnection(Protocol):
    """The engine's side of a connection: `_native.Connection`, `_native.RouterConnection`."""

    @property
    def closing(self) -> bool:
        """Write what is left, then close."""

    @property
    def crowded(self) -> bool:
        """Stop reading until this is false again."""

    @property
    def reads_on(self) -> bool:
        """May it be read from though the client reads nothing? Then `crowded` decides as ever."""

    def note_unread(self, unread: bool) -> None:
        """The client reads nothing, or goes on reading: then `feed` must be called, with nothing if need be."""

    @property
    def owed(self) -> bool:
        """Is there a reply that the client still has to get?"""

    def feed(self, data: bytes) -> bytes | None:
        """Takes a chunk. Gives what to write at once."""

    def finish(self) -> None:
        """The client sends nothing more."""

    def shutdown(self) -> None:
        """The transport is gone."""


class ClientProtocol(asyncio.Protocol, ABC):
    """The event loop's side of one connection.

    Args:
        clients: all of the server's.
        connect: begins the engine's side, of this protocol and the client's address.
    """

    __slots__ = (
        "_clients",
        "_connect",
        "_connection",
        "_feed",
        "_looks",
        "_owed",
        "_reading",
        "_transport",
        "_write",
        "_writing_paused",
    )

    def __init__(self, clients: Clients, connect: Callable[[Any, str], Any]) -> None:
        self._clients = clients
        self._connect = connect
        self._reading = True
        self._writing_paused = False
        # How often the server has looked for something new since the last chunk.
        self._looks = 0
        # Requests that the server answers itself, and hasn't yet, and of which the engine doesn't know.
        self._owed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._write = self._transport.write
        peer = transport.get_extra_info("peername")
        self._connection = self._connect(self, format_address(*peer[:2]) if peer else "")
        self._feed = self._connection.feed
        if not self._clients.admit(self):
            # A server that stops says nothing, as if it had stopped already: there is room, for the next start.
            if not self._clients.stopping:
                self._write(TOO_MANY_CONNECTIONS)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """A chunk came: the hot path."""
        self._looks = 0
        replies = self._feed(data)
        if replies is not None:
            self._write(replies)
        if len(data) >= FULL_CHUNK_BYTES:
            # `attend` would come too late: megabytes would be waiting by then.
            self._adjust_reading()

    def write(self, replies: bytes) -> None:
        """Sends replies that may leave now."""
        self._write(replies)
        if self._writing_paused:
            self._clients.note_unsent(self, self._transport.get_write_buffer_size())

    def attend(self) -> None:
        """The engine says that this connection needs more than its replies written."""
        if self._transport.is_closing():
            return
        self._take_requests()
        connection = self._connection
        # Go on with input that was left. One turn: if more is left after it, the engine calls again, after the others.
        if connection.crowded and not connection.closing and not self._writing_paused:
            replies = self._feed(b"")
            if replies is not None:
                self.write(replies)
        if connection.closing:
            self._transport.close()
        else:
            self._adjust_reading()

    @abstractmethod
    def _take_requests(self) -> None:
        """Takes the requests that the engine leaves to Python."""

    def pause_writing(self) -> None:
        """The client reads slower than replies come."""
        self._writing_paused = True
        self._connection.note_unread(True)
        self._clients.note_unsent(self, self._transport.get_write_buffer_size())
        self._adjust_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writing_paused = False
        self._looks = 0
        self._clients.note_unsent(self, 0)
        self._connection.note_unread(False)
        if (replies := self._feed(b"")) is not None:
            self.write(replies)
        self.attend()

    def eof_received(self) -> bool:
        """The client sends nothing more. True: it may still receive."""
        # The client may have shut down its side only, and still wait for replies that a commit holds. TLS has no such
        # half on an event loop: whoever ends it has left.
        self._connection.finish()
        self.attend()
        return self._transport.get_extra_info("sslcontext") is None

    def stop_reading(self) -> None:
        """For an orderly stop: nothing more is accepted, replies still leave."""
        self._reading = False
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def close_if_idle(self) -> None:
        """Closes if nothing came since two calls ago and no reply is owed, unless to a client that reads nothing.

        Drops what was closing already at the last call.
        """
        is_owed = self._owed or (self._connection.owed and not self._writing_paused)
        self._looks = 0 if is_owed else self._looks + 1
        if self._transport.is_closing():
            self._transport.abort()
        elif self._looks > IDLE_LOOKS:
            self._transport.close()

    def close(self) -> None:
        """Closes once what is written has left."""
        self._transport.close()

    def abort(self) -> None:
        """Closes at once; what hasn't left is dropped."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._connection.shutdown()
        self._clients.forget(self)

    def _adjust_reading(self) -> None:
        connection = self._connection
        may_read = not self._writing_paused or connection.reads_on
        reading = may_read and not connection.crowded and not self._clients.stopping
        if reading == self._reading or self._transport.is_closing():
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

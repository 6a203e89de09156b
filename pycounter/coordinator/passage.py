"""A client's passage through a coordinator to one shard: bytes go both ways, unparsed.

Client and shard are read only as fast as the other takes what came, so little of it is ever in memory. Nothing here is
lost when a coordinator dies: whoever has a session at the shard opens another passage, and resumes it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from pycounter.coordinator.shard_links import notice_silence
from pycounter.errors import Overloaded, Unavailable
from pycounter.topology import Address, format_address

if TYPE_CHECKING:
    from pycounter.coordinator.coordinator_protocol import CoordinatorProtocol
    from pycounter.net.clients import Clients

__all__ = ["WAITING_BYTES_MAX", "Passage", "connect_passage"]

#: Reading pauses on one side while more than this waits for the other. One chunk, as it is read from a socket (at most
#: 256 KiB), may come on top.
WAITING_BYTES_MAX = 64 * 1024


class Passage(asyncio.Protocol):
    """The connection to the shard; towards the client it takes the place of the engine's side.

    Args:
        client: its other end.
        clients: where it counts as one more connection.

    Raises (constructor):
        Overloaded: there are too many connections.
    """

    #: Whether the shard owes a reply isn't known.
    owed = False

    def __init__(self, client: CoordinatorProtocol, clients: Clients) -> None:
        if not clients.admit_passage():
            raise Overloaded("the coordinator has as many connections as it may have: nothing was applied")
        #: The shard's side has ended.
        self.closing = False
        self._client = client
        self._clients = clients
        #: Its sides that haven't ended; before `begin` only the shard's counts.
        self._sides = 1
        self._shard_reads_slowly = False
        #: The client sends nothing more, or the coordinator takes nothing more.
        self.has_finished = False
        self._transport: asyncio.Transport | None = None

    def begin(self) -> None:
        """The client has it from now on."""
        self._sides = 2

    def forget_side(self) -> None:
        """One side has ended, or couldn't be made."""
        self._sides -= 1
        if not self._sides:
            self._clients.forget_passage(self)

    # --- towards the client: an EngineConnection ---------------------------------------------------------------------

    @property
    def crowded(self) -> bool:
        """Must the client wait?"""
        return self._shard_reads_slowly or self.has_finished

    @property
    def reads_on(self) -> bool:
        """May more be read of a client that reads nothing? No: the shard's answers would pile up."""
        return False

    def note_unread(self, unread: bool) -> None:
        """The client reads nothing, or goes on reading: its transport's own bound is all that a passage needs."""

    def feed(self, data: bytes) -> None:
        """A chunk from the client: the hot path."""
        shard = self._shard()
        if data and not shard.is_closing():
            shard.write(data)

    def finish(self) -> None:
        """The client sends nothing more. The shard answers what came, and then closes."""
        if not self.has_finished:
            self.has_finished = True
            if not self._shard().is_closing():
                self._shard().write_eof()

    def take_requests(self) -> tuple[Any, ...]:
        """There are none that the coordinator answers."""
        return ()

    def shutdown(self) -> None:
        """The client's transport is gone. What it sent still goes to the shard, unless that doesn't read."""
        if self._shard_reads_slowly:
            self.abort()
        else:
            self._shard().close()
        self.forget_side()

    def abort(self) -> None:
        """Ends it at once; what hasn't left is dropped."""
        self._shard().abort()

    def wait_for_client(self, is_slow: bool) -> None:
        """Stops reading from the shard while the client reads slowly."""
        if self._shard().is_closing():
            return
        if is_slow:
            self._shard().pause_reading()
        else:
            self._shard().resume_reading()

    # --- towards the shard: an asyncio protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The shard has let it in."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WAITING_BYTES_MAX)
        notice_silence(transport)

    def data_received(self, data: bytes) -> None:
        """A chunk from the shard: the hot path."""
        self._client.pass_on(data)

    def pause_writing(self) -> None:
        """The shard reads more slowly than the client sends."""
        self._shard_reads_slowly = True
        self._clients.note_unsent(self, self._shard().get_write_buffer_size())
        self._client.attend()

    def resume_writing(self) -> None:
        """The shard has caught up."""
        self._shard_reads_slowly = False
        self._clients.note_unsent(self, 0)
        self._client.attend()

    def connection_lost(self, exc: Exception | None) -> None:
        """The shard has closed, or died: the client gets what came, and no more."""
        self.closing = True
        self._clients.note_unsent(self, 0)
        self.forget_side()
        self._client.attend()

    def _shard(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport


async def connect_passage(
    client: CoordinatorProtocol, clients: Clients, name: str, address: Address | None, *, timeout_s: float
) -> Passage:
    """Connects a client to a shard.

    Raises:
        Unavailable: the shard can't be reached; nothing was sent to it.
        Overloaded: there are too many connections.
    """
    if address is None:
        raise Unavailable(f"{name} is not running now: nothing was applied")
    passage = Passage(client, clients)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().create_connection(lambda: passage, *address)
    except OSError as error:
        reason = str(error) or "it does not answer"
        raise Unavailable(f"{name} at {format_address(*address)}: {reason}: nothing was applied") from error
    finally:
        if passage._transport is None:
            passage.forget_side()
    return passage

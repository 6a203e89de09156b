"""The connections that a link lives on: one task connects, greets the shard, and connects again.

What may be sent, and what replies mean, is the link's business (`SessionLink`, in Rust). Here are the socket, the timer
and the order of events. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from pycounter._native import SessionLink
from pycounter.client.backoff import Backoff
from pycounter.client.connecting import open_connection
from pycounter.errors import Forbidden, RpcError, Unauthenticated, Unavailable, WrongShard

__all__ = ["LinkConnection"]

_log = logging.getLogger(__name__)

#: Permanent errors: retrying cannot help.
_FINAL = (Unauthenticated, Forbidden, WrongShard)


class _Protocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, owner: LinkConnection, link: SessionLink) -> None:
        self.cause: Exception | None = None
        #: It has ended, or the shard has said who it is.
        self.is_decided = asyncio.Event()
        self.has_ended = asyncio.Event()
        self._owner = owner
        self._link = link
        self._transport: asyncio.Transport | None = None

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def end(self, cause: Exception) -> None:
        """Drops the connection at once: nothing is sent or taken from it any more."""
        if self.has_ended.is_set():
            return
        self.cause = cause
        self.has_ended.set()
        self.is_decided.set()
        if self._transport is not None:
            self._transport.abort()
        self._owner.on_lost(self)

    def close(self) -> None:
        """Closes once what is written has left."""
        if self._transport is not None:
            self._transport.close()

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.has_ended.is_set():
            return
        try:
            self._link.feed(data)
        except (ConnectionError, RpcError) as error:
            self.end(error)
            return
        if not self.is_decided.is_set() and self._link.ready:
            self.is_decided.set()
        self._owner.on_events()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(exc or ConnectionResetError("the shard closed the connection"))


class LinkConnection:
    """Keeps a link connected, and has it told the time.

    Args:
        link: what to connect.
        addresses: where its shard is, or coordinators that lead to it: the next one is tried when one can't be reached.
            `address`, where the next connection goes, may be changed.
        tls: how to verify the server, if it speaks TLS.
        connect_timeout_s: how long a connection may take to be made.
        pauses: between attempts.
        steady_s: a connection that lasted so long was none that is called in a tight circle.
        may_move: the shard may be at another address soon: to meet another one there is no end.
        on_events: called after anything has happened.
        on_connection: told when the shard has said who it is, and when it is gone.
        on_failure: told why nothing can succeed any more.
    """

    def __init__(
        self,
        link: SessionLink,
        addresses: Sequence[tuple[str, int]],
        *,
        tls: ssl.SSLContext | None,
        connect_timeout_s: float,
        pauses: Backoff,
        steady_s: float,
        may_move: bool,
        on_events: Callable[[], None],
        on_connection: Callable[[bool], None],
        on_failure: Callable[[RpcError, str], None],
    ) -> None:
        self.address = addresses[0]
        #: Why there is no connection, if anybody knows.
        self.trouble: Exception | None = None
        self._link = link
        self._addresses = addresses
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._pauses = pauses
        self._steady_s = steady_s
        self._may_move = may_move
        self._on_events = on_events
        self._on_connection = on_connection
        self._on_failure = on_failure
        self._protocol: _Protocol | None = None
        self._is_ready = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to connect in the background, unless that was begun."""
        if self._runner is None:
            self._loop = asyncio.get_running_loop()
            self._link.start(self._loop.call_soon, self.flush)
            self._runner = self._loop.create_task(self._run(), name="pycounter session client")

    @property
    def is_started(self) -> bool:
        """Was it started, and not closed?"""
        return self._runner is not None

    @property
    def is_ready(self) -> bool:
        """Is there a connection now, on which the shard has said who it is?"""
        return self._is_ready

    async def close(self) -> None:
        """Ends the connection once what is written has left. Nothing is sent any more."""
        self._link.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)

    def write(self, data: bytes) -> None:
        """Writes on the present connection."""
        if data and self._protocol is not None:
            self._protocol.write(data)

    def flush(self) -> None:
        """Writes what may be written now."""
        if data := self._link.flush():
            self.write(data)
        self.on_events()

    # --- what happens ----------------------------------------------------------------------------------------------

    def on_events(self) -> None:
        """Something has happened: sets the timer, and tells whom it concerns."""
        delay_s = self._link.next_wake()
        if delay_s is not None and self._loop is not None and self._runner is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(delay_s, self._on_time)
        self._on_events()

    def _on_time(self) -> None:
        self._timer = None
        if data := self._link.tick():
            self.write(data)
        if self._protocol is not None and self._link.silent:
            self._protocol.end(TimeoutError("the shard did not answer for too long"))
        else:
            self.on_events()

    def on_lost(self, protocol: _Protocol) -> None:
        """A connection has ended."""
        if protocol is not self._protocol:
            return
        self._protocol = None
        self.trouble = protocol.cause
        self._link.lost(str(protocol.cause))
        if self._is_ready:
            self._is_ready = False
            self._on_connection(False)
        self.on_events()

    # --- connecting ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """The task that connects, for as long as the client lives."""
        try:
            await self._stay_connected()
        except Exception as error:  # noqa: BLE001 - the task's boundary: callers would wait for it in vain
            _log.exception("the client can't go on")
            self._on_failure(Unavailable(f"the client can't go on: {error!r}"), repr(error))
        finally:
            if self._protocol is not None:
                protocol, self._protocol = self._protocol, None
                protocol.close()

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                protocol = await self._open()
            except (OSError, RpcError) as error:
                if isinstance(error, _FINAL) and not (self._may_move and isinstance(error, WrongShard)):
                    self._on_failure(error, str(error))
                    return
                self.trouble = error
                self._turn_to_next_address()
                self._link.lost(str(error) or type(error).__name__)
                self.on_events()
                await asyncio.sleep(self._pauses.next_s())
                continue
            opened_at, settled = loop.time(), self._settled()
            self._is_ready = True
            self._on_connection(True)
            self.flush()
            await protocol.has_ended.wait()
            # A server that greets and hangs up must not be called in a tight circle.
            if self._settled() > settled or loop.time() - opened_at > self._steady_s:
                self._pauses.reset()
            else:
                await asyncio.sleep(self._pauses.next_s())

    def _turn_to_next_address(self) -> None:
        if self.address in self._addresses:
            self.address = self._addresses[(self._addresses.index(self.address) + 1) % len(self._addresses)]

    def _settled(self) -> int:
        return int(self._link.statistics()["operations_settled"])

    async def _open(self) -> _Protocol:
        """A connection on which the shard has said that it is the right one and where the sessions are."""
        async with asyncio.timeout(self._connect_timeout_s):
            _, protocol = await open_connection(lambda: _Protocol(self, self._link), self.address, self._tls)
        self._protocol = protocol
        self._link.connected()
        self.flush()
        await protocol.is_decided.wait()
        if protocol.has_ended.is_set():
            raise protocol.cause or ConnectionResetError("the connection ended")
        return protocol

"""Listening for TLS clients, who count as connections from the first moment on.

An event loop's own TLS server shows a connection only once its handshake is done: any number of clients that begin one
and fall silent would be open, and nobody could count them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterable

__all__ = ["TlsListener"]

_log = logging.getLogger(__name__)

#: For the other side's goodbye, and for reading what was sent before it.
SHUTDOWN_TIMEOUT_S = 10.0
#: So many clients are accepted before others have their turn.
ACCEPTED_AT_A_TIME = 64
#: After the system refused to accept: it would refuse again at once.
PAUSE_S = 0.1


class TlsListener:
    """Accepts, and hands clients over once their handshake is done.

    Args:
        context: the server's side of TLS.
        connect: makes a client's protocol, as for `loop.create_server`.
        has_room: may one more client come? Asked before its handshake, with `handshakes` counted already.
        handshake_timeout_s: how long a handshake may take.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        connect: Callable[[], asyncio.Protocol],
        has_room: Callable[[], bool],
        *,
        handshake_timeout_s: float,
    ) -> None:
        self.sockets: list[socket.socket] = []
        #: Of handshakes that begin from now on.
        self.context = context
        self._connect = connect
        self._has_room = has_room
        self._handshake_timeout_s = handshake_timeout_s
        self._handshakes: set[asyncio.Task[None]] = set()

    @property
    def handshakes(self) -> int:
        """Clients whose handshake isn't done."""
        return len(self._handshakes)

    def adopt(self, listeners: Iterable[socket.socket]) -> None:
        """Accepts on sockets that listen already."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            listener.setblocking(False)
            self.sockets.append(listener)
            loop.add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Accepts no more, and ends the handshakes that aren't done."""
        loop = asyncio.get_running_loop()
        for listener in self.sockets:
            loop.remove_reader(listener)
            listener.close()
        self.sockets.clear()
        for handshake in self._handshakes:
            handshake.cancel()

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTED_AT_A_TIME):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.error("a client can't be accepted: %s", error.strerror)
                loop.remove_reader(listener)
                loop.call_later(PAUSE_S, self._resume, listener)
                return
            if not self._has_room():
                client.close()
                continue
            handshake = loop.create_task(self._shake_hands(client))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self.sockets:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def _shake_hands(self, client: socket.socket) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # No TLS, a reset, the time is over: nothing that an operator could do about it.
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connect,
                client,
                ssl=self.context,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )

"""The sockets that a server listens on.

They are bound before the server makes or starts anything, so that a refused start leaves nothing behind.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterable

from pycounter.errors import PyCounterError
from pycounter.net.server_process import BACKLOG
from pycounter.topology.addresses import format_address

__all__ = ["bind", "listen"]

#: How long to wait for a port that processes of the last run may still hold: they are being killed.
WAIT_S = 5.0
POLL_S = 0.05


def bind(host: str, port: int, *, wait: bool = False) -> list[socket.socket]:
    """Sockets on every address that `host` stands for. Nobody can connect before they listen.

    Args:
        host: a name or an address.
        port: 0 lets the system choose one, the same for all.
        wait: give a port that is taken some seconds to become free.

    Raises:
        PyCounterError: an address can't be listened on.
    """
    deadline = time.monotonic() + (WAIT_S if wait else 0.0)
    while True:
        try:
            return _bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                where = format_address(host, port)
                raise PyCounterError(f"can't listen on {where}: {error.strerror or error}") from error
            time.sleep(POLL_S)


def listen(sockets: Iterable[socket.socket]) -> None:
    """Lets clients connect.

    Raises:
        PyCounterError: another server listens there by now.
    """
    for bound in sockets:
        try:
            bound.listen(BACKLOG)
        except OSError as error:
            where = format_address(*bound.getsockname()[:2])
            raise PyCounterError(f"can't listen on {where}: {error.strerror or error}") from error


def _bind(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            where = (address[0], port, *address[2:])
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # So that IPv4 can have the port too.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(where)
            port = listener.getsockname()[1]
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets

"""Opening a connection to an address: over TCP, or to a Unix socket on this machine."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TypeVar

from pycounter.topology.addresses import Address, is_path

__all__ = ["open_connection"]

_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)


async def open_connection(
    make: Callable[[], _Protocol], address: Address, tls: ssl.SSLContext | None
) -> tuple[asyncio.Transport, _Protocol]:
    """Connects. What leaves no machine needs no TLS: none is spoken on a Unix socket.

    Raises:
        OSError: it can't be reached.
    """
    loop = asyncio.get_running_loop()
    if is_path(address):
        return await loop.create_unix_connection(make, address[0])
    return await loop.create_connection(make, *address, ssl=tls)

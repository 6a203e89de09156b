"""The error of an address that a server can't listen on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pycounter.errors import PyCounterError
from pycounter.topology.addresses import format_address

__all__ = ["listening_on"]


@contextlib.contextmanager
def listening_on(host: str, port: int) -> Iterator[None]:
    """Around what binds and listens. Raises PyCounterError that names the address."""
    try:
        yield
    except OSError as error:
        raise PyCounterError(f"can't listen on {format_address(host, port)}: {error.strerror or error}") from error

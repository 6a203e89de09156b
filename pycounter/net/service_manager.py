"""Tells systemd, or another service manager with its protocol (sd_notify), when this server serves and when it stops.

The protocol is datagrams of text to the Unix socket that the environment names. Without one, nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, MutableMapping
from typing import Self

__all__ = ["ServiceManager"]

_log = logging.getLogger(__name__)

#: A manager that reads nothing must not hold up the server.
SEND_TIMEOUT_S = 1.0


class ServiceManager:
    """Who started this process and wants to know how it is.

    Args:
        address: of its socket; "" if there is no manager. "@" at the beginning stands for the abstract namespace.
        watchdog_s: it expects to hear at least so often that the server is alive; None: it doesn't.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """The manager that the environment names. Its variables are taken out: children have another one, or none."""
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        watchdog_pid = environment.pop("WATCHDOG_PID", "")
        is_watched = watchdog_us.isdecimal() and int(watchdog_us) > 0 and watchdog_pid in {"", str(os.getpid())}
        return cls(address, int(watchdog_us) / 1e6 if is_watched else None)

    def ready(self) -> None:
        """Clients are served."""
        self._tell(f"READY=1\nMAINPID={os.getpid()}")

    def stopping(self) -> None:
        """An orderly stop has begun."""
        self._tell("STOPPING=1")

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Meanwhile says twice in each interval of the watchdog that the event loop is alive."""
        task = asyncio.create_task(self._report_life())
        try:
            yield
        finally:
            task.cancel()

    async def _report_life(self) -> None:
        while self._address and self._watchdog_s is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_TIMEOUT_S)
                sender.sendto(state.encode(), self._address)
        except (OSError, ValueError) as error:
            _log.warning("the service manager can't be told %s: %s", state.replace("\n", " "), error)

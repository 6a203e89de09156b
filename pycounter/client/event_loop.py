"""A client belongs to one event loop: the one that it was connected on."""

from __future__ import annotations

import asyncio

from pycounter.errors import WrongLoop

__all__ = ["check_loop"]


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Raises WrongLoop if another event loop than this runs now."""
    if asyncio.get_running_loop() is not loop:
        raise WrongLoop(
            "this client belongs to the event loop that connected it, and another one is running: nothing was sent. "
            "Connect once in each loop (each asyncio.run has its own), or use connect_blocking from any thread"
        )

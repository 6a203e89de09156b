"""Asks a shard or a replica for its `health`, again and again, over one connection of its own.

Somebody who doesn't answer keeps the question: no second one is sent, and no second connection made, so a process that
was stopped for hours finds one question when it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from pycounter.client.framing import ProtocolViolation, ReplyDecoder, request
from pycounter.topology import Address

__all__ = ["HealthProbe"]

REPLY_BYTES_MAX = 1 << 20


class HealthProbe:
    """Asks until it is closed.

    Args:
        address: whom to ask.
        token: gives what to send first; None: nothing.
        interval_s: between an answer and the next question.
        on_health: gets every answer; an empty one where the process answers with an error.
    """

    def __init__(
        self,
        address: Address,
        token: Callable[[], bytes | None],
        interval_s: float,
        on_health: Callable[[dict[str, Any]], None],
    ) -> None:
        #: Is an answer due?
        self.is_waiting = False
        self._address = address
        self._token = token
        self._interval_s = interval_s
        self._on_health = on_health
        self._task = asyncio.get_running_loop().create_task(self._ask_for_ever())

    def close(self) -> None:
        """Asks no more."""
        self._task.cancel()

    async def _ask_for_ever(self) -> None:
        while True:
            self.is_waiting = True
            # It is starting, ending, or refuses: asked again soon, and without an answer it counts as silent.
            with contextlib.suppress(OSError, EOFError, ProtocolViolation):
                await self._ask()
            await asyncio.sleep(self._interval_s)

    async def _ask(self) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            decoder = ReplyDecoder(REPLY_BYTES_MAX)
            hello: dict[str, object] = {"client": "pycounter-supervisor"}
            if (token := self._token()) is not None:
                hello["token"] = token
            writer.write(request(0, "hello", [hello]))
            await _reply(reader, decoder)
            while True:
                self.is_waiting = True
                writer.write(request(1, "health", []))
                answer = await _reply(reader, decoder)
                self.is_waiting = False
                self._on_health(answer if isinstance(answer, dict) else {})
                await asyncio.sleep(self._interval_s)
        finally:
            writer.close()


async def _reply(reader: asyncio.StreamReader, decoder: ReplyDecoder) -> Any:
    """The result of one reply; None where it is an error: somebody who refuses is there."""
    while True:
        chunk = await reader.read(65_536)
        if not chunk:
            raise EOFError
        for _, _, result in decoder.feed(chunk):
            return result
